"""What the checkpoint of a run of probes must hold, as `probe_run` writes it: sizes, and laws that its parts obey together.

Records are held against one another: what was deflated must be what they have converged to.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from spectral import arrays, longvectors, storage
from spectral.estimators.deflation import converged
from spectral.schema import (
    COUNT,
    NONNEGATIVE,
    REAL,
    SIZE,
    Array,
    Either,
    Fields,
    Flag,
    Items,
    Law,
    Number,
    Row,
    Sizes,
    Vectors,
    maybe,
)


def _of_the_run(f: Any, s: Sizes) -> bool:
    """Records and attempts are those of this run's probes, in their order."""
    own = [(r["seed"], r["dtype"]) for r in (*f["records"], *f["attempts"])]
    places = [0, *(a["index"] for a in f["attempts"])]
    steps = [a["stop"] != "outside" for a in f["attempts"][:-1]]
    return (
        all(r == (s["seed"], s["dtype"]) for r in own)
        and all(r["index"] == k and r["reorthogonalized"] == s["mode"] for k, r in enumerate(f["records"]))
        and all(r["steps"] <= s["n"] for r in f["records"])
        and all(
            b - a == (up if i else 0)
            for i, (a, b, up) in enumerate(zip(places, places[1:], [False, *steps], strict=False))
        )
    )


def _deflated(f: Any, s: Sizes) -> bool:
    """What was deflated comes from probes that are done, in their order, and each record knows what was deflated before it."""
    ends = np.cumsum([0, *(r["known"] for r in f["records"])])
    known = [f["known"][a:b] for a, b in pairwise(ends)]
    probes = [x[3] for x in f["deflated"]]
    return (
        (s["deflates"] or not f["deflated"])
        and probes == sorted(probes)
        and all(p < len(f["records"]) for p in probes)
        and all(max(x[4]) < f["records"][x[3]]["steps"] for x in f["deflated"])
        and all(list(v) == [x[0] for x in f["deflated"] if x[3] < k] for k, v in enumerate(known))
        and len(f["vectors"]) == len(f["deflated"])
    )


def _converged(f: Any, s: Sizes) -> bool:
    """What was deflated is what its record gives: a pair that has converged, at its nodes, with its value, error and window."""
    eps = 1e3 * arrays.machine_epsilon(s["dtype"])
    records = storage.unpack_records(f)
    pairs = [{tuple(map(int, p.nodes)): p for p in converged(record)} for record in records]

    def near(one: list[Any]) -> bool:
        pair, scale = pairs[one[3]].get(tuple(one[4])), float(np.abs(records[one[3]].eigen[0]).max())
        if pair is None:
            return False
        given, known = np.array(one[:3]), np.array([pair.value, pair.error, pair.window])
        return bool((np.abs(given - known) <= eps * scale + 0.5 * np.array([0.0, *known[1:]])).all())

    return all(map(near, f["deflated"]))


def _aimed_at(f: Any, s: Sizes) -> bool:
    """Lanczos steps that are meant, at most as many as the space has dimensions that are left."""
    least = min(s["least"], s["n"] - len(f["deflated"]))
    return "limit" not in (f["recurrence"] or {}) or f["recurrence"]["limit"] >= least


def _is_whole(f: Any, s: Sizes) -> bool:
    """The parts of a saved state have the sizes of j steps in this mode."""
    j, mode, omegas = s["j"], s["mode"], (len(f["omega_prev"]), len(f["omega"]))
    return (
        1 <= j <= f["limit"]
        and (f["q_prev"] is not None or j == 1)
        and len(f["basis"]) == (j if mode else 0)
        and (omegas == (j, j + 1) if mode == "selective" else max(omegas) <= 1)
        and bool((f["betas"][:-1] > 0).all())
    )


def _of_its_vectors(f: Any, s: Sizes) -> bool:
    """The last two moments are those of the vectors that a saved state holds."""
    mu, (t_prev, t) = f["moments"], (f["t_prev"], f["t"])
    first = len(mu) == 3
    cross, square = longvectors.dot(t_prev, t), longvectors.dot(t, t)
    off = abs(2 * square - mu[0] - mu[-1]), abs((cross if first else 2 * cross - mu[1]) - mu[-2])
    return max(off) <= math.sqrt(arrays.machine_epsilon(t.dtype))


ANY = Number(finite=False, nan=True)
LANCZOS_STATE = Fields(
    {
        "alphas": Array("float64", "j"),
        "betas": Array("float64", "j", least=0),
        "q_prev": maybe(Array("dtype", "n")),
        "q": Array("dtype", "n"),
        "basis": Vectors(),
        "omega_prev": Array("float64", None),
        "omega": Array("float64", None),
        "again": Flag(),
        "limit": Number(True, least=1, most="most"),
    },
    {"sum": Array("dtype", "n"), "orthogonality": NONNEGATIVE},  # of a rounded basis
    laws=(
        Law("a recurrence that is whole", _is_whole),
        Law(
            "vectors of length 1",
            lambda f, s: (
                longvectors.of_length_1(f["q_prev"], f["q"])
                and longvectors.of_length_1(f["basis"], rounding=s["rounding"])
            ),
        ),
    ),
)
CHEBYSHEV_STATE = Fields(
    {
        "moments": Array("float64", None),
        "t_prev": Array("dtype", "n"),
        "t": Array("dtype", "n"),
        "interval": Row(Number(), Number()),
    },
    laws=(
        Law("an interval with low < high", lambda f, s: f["interval"][0] < f["interval"][1]),
        Law(
            "an odd number of moments, the first of them > 0",
            lambda f, s: len(f["moments"]) % 2 == 1 < len(f["moments"]) and bool(f["moments"][0] > 0),
        ),
        Law("moments that are those of its vectors", _of_its_vectors),
    ),
)
# Sizes: n the dimension; dtype, seed and mode (whether a basis is kept, which) are those of the run, `deflates` whether it
# deflates, `rounding` how far the rows of its basis may be from length 1.
STATE = Fields(
    {
        "deflated": Items(Row(REAL, NONNEGATIVE, NONNEGATIVE, COUNT, Items(COUNT, least=1))),
        "vectors": Vectors(),
        "recurrence": Either(LANCZOS_STATE, CHEBYSHEV_STATE, None),
        "history": Items(Row(SIZE, COUNT, ANY, ANY, ANY, ANY)),
        **storage.RECORDS,
        **storage.DEFLATED,
        **storage.MOMENTS,
    },
    laws=(
        *storage.RECORD_LAWS,
        *storage.MOMENT_LAWS,
        Law("records of this run's probes", _of_the_run),
        Law("deflated vectors of probes that are done, as many as were found", _deflated),
        Law("deflated values at nodes of their records", _converged),
        Law("as many steps as the run aims at", _aimed_at),
        Law("deflated vectors of length 1", lambda f, s: longvectors.of_length_1(f["vectors"])),
    ),
)
