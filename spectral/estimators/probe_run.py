"""A run of probes, as `slq` and `kpm` make them: the records that are done, the recurrence of the probe at hand, its checkpoint.

What is read from a checkpoint is held against the records themselves: what was deflated must be what they have converged to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch

from spectral import arrays, longvectors, storage
from spectral.estimators.budget import Budget
from spectral.estimators.checkpoint import Checkpoint, State
from spectral.estimators.deflation import Deflation, Found, converged
from spectral.krylov.chebyshev import CHEBYSHEV_STATE, Chebyshev, ChebyshevRecord
from spectral.krylov.lanczos import LANCZOS_STATE, NONE, Lanczos, LanczosRecord, unit_rows
from spectral.krylov.symmetry import KnownProduct
from spectral.operators.operator import Operator
from spectral.probes import probe
from spectral.schema import COUNT, POSITIVE, REAL, SIZE, Array, Either, Fields, Items, Law, Number, Row, Sizes

R = TypeVar("R", Lanczos, Chebyshev)


# What a checkpoint must hold --------------------------------------------------------------------------------------------
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
    probes = [x[3] for x in f["found"]]
    return (
        (s["deflates"] or not f["found"])
        and probes == sorted(probes)
        and all(p < len(f["records"]) for p in probes)
        and all(max(x[4]) < f["records"][x[3]]["steps"] for x in f["found"])
        and all(list(v) == [x[0] for x in f["found"] if x[3] < k] for k, v in enumerate(known))
        and len(f["vectors"]) == len(f["found"])
    )


def _converged(f: Any, s: Sizes) -> bool:
    """What was deflated is what its record gives: a pair that has converged, at its nodes, with its value, error and window."""
    eps = 1e3 * arrays.machine_epsilon(s["dtype"])
    records = storage.unpack_records(f, f["records"])
    pairs = [{tuple(map(int, p.nodes)): p for p in converged(record)} for record in records]

    def near(found: list[Any]) -> bool:
        pair, scale = pairs[found[3]].get(tuple(found[4])), float(np.abs(records[found[3]].eigen[0]).max())
        if pair is None:
            return False
        given, known = np.array(found[:3]), np.array([pair.value, pair.error, pair.window])
        return bool((np.abs(given - known) <= eps * scale + 0.5 * np.array([0.0, *known[1:]])).all())

    return all(map(near, f["found"]))


def _aimed_at(f: Any, s: Sizes) -> bool:
    """Lanczos steps that are meant, at most as many as the space has dimensions that are left."""
    return "limit" not in (f["recurrence"] or {}) or f["recurrence"]["limit"] >= min(
        s["least"], s["n"] - len(f["found"])
    )


ANY = Number(finite=False, nan=True)
# Sizes: n the dimension; dtype, seed and mode (how the basis is kept) are those of the run, `deflates` whether it deflates.
STATE = Fields(
    {
        "found": Items(Row(REAL, POSITIVE, POSITIVE, COUNT, Items(COUNT, least=1))),
        "vectors": Array("dtype", None, "n"),
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
        Law("deflated vectors of length 1", lambda f, s: unit_rows(f["vectors"])),
    ),
)


class ProbeRun:
    """Where a run of probes stands. Without a path nothing is on disk."""

    def __init__(
        self, path: Any, op: Operator, settings: dict[str, Any], deflation: Deflation | None = None, **steps: int
    ) -> None:
        """`steps`: the `least` and the `most` that a probe may aim at."""
        self.op, self.seed, self.mode = op, settings["seed"], settings.get("reorthogonalize", False)
        self.deflation = deflation
        self.records: list[LanczosRecord] = []
        self.attempts: list[ChebyshevRecord] = []  # those that left their interval included
        self.history: list[list[float]] = []  # of the first probe, as `slq` writes it down
        self.recurrence: Lanczos | Chebyshev | None = None  # of the probe at hand, the one after so many `done`
        self.done = self.counted = 0  # `counted`: its steps of which the products are
        run = {"seed": self.seed, "mode": self.mode, "deflates": deflation is not None}
        self.checkpoint = Checkpoint(path, op, settings, STATE, **run, **steps)
        self.matrix = self.checkpoint.matrix
        if self.checkpoint.state is not None:
            self._resume(self.checkpoint.state)

    # On disk -----------------------------------------------------------------------------------------------------------
    def guard(self) -> AbstractContextManager[None]:
        """Inside, SIGINT and SIGTERM save where the run stands."""
        return self.checkpoint.guard(self.state, lambda: self.recurrence is None or self.recurrence.whole)

    def state(self) -> State:
        """All that the run goes on from, see `STATE`."""
        recurrence = self.recurrence if self.done == len(self.records) + len(self.attempts) else None
        steps = 0 if recurrence is None else recurrence.steps
        if steps != self.counted:  # a signal came between a step and `stepped`
            self.checkpoint.count()
        records, names = storage.pack_records(self.records)
        moments, attempts = storage.pack_moments(self.attempts)
        found, vectors = [], None
        if self.deflation is not None:
            found, vectors = [f for f in self.deflation.found if f.probe < len(self.records)], self.deflation.vectors
        return {
            **records,
            **moments,
            "records": names,
            "attempts": attempts,
            "history": self.history,
            "found": [[f.value, f.error, f.window, f.probe, f.nodes] for f in found],
            "vectors": longvectors.GrowingRows([] if vectors is None else vectors[: len(found)]),
            "recurrence": None if recurrence is None or not steps else recurrence.state(),
        }

    def _resume(self, state: State) -> None:
        """Take the records, the deflated vectors and the recurrence from a state, and repeat a product of the run."""
        self.records += storage.unpack_records(state, state["records"])
        self.attempts += storage.unpack_moments(state, state["attempts"])
        self.history = state["history"]
        if self.deflation is not None:
            self.deflation.looked = len(self.records)
            self.deflation.found = [Found(f[0], f[1], f[2], f[3], tuple(f[4])) for f in state["found"]]
            self.deflation.vectors = state["vectors"] if state["found"] else None
        if (saved := state["recurrence"]) is not None:
            recurrence: Lanczos | Chebyshev
            if "alphas" in saved:
                recurrence = self.begin(len(self.records), lambda start: self.lanczos(start, 1))
            else:
                index = sum(record.stop != "outside" for record in self.attempts)
                recurrence = self.begin(index, lambda start: Chebyshev(self.op, start, 1, saved["interval"]))
            recurrence.resume(saved)
            self.counted = recurrence.steps
        if self.records or self.attempts or saved is not None:
            self._prove()

    def _prove(self) -> None:
        """Repeat a product: of all vectors that the recurrence holds where it can say what comes out, else the run's first."""
        known = self.recurrence.known_product() if isinstance(self.recurrence, Lanczos) else None
        if known is None:
            return self.checkpoint.prove(self._first_product())
        slack = 0.0
        if self.deflation is not None and self.deflation.found:  # what was deflated is no eigenvector to the last digit
            slack = max(f.window for f in self.deflation.found) * len(self.deflation.found) ** 0.5
        return self.checkpoint.prove(known, slack=slack * longvectors.norm(known.vector))

    def _first_product(self) -> KnownProduct:
        """That of the first probe's start: two numbers of it are known, to each recurrence that has made it.

        Both have where Lanczos gave the Chebyshev recurrence its interval.
        """
        firsts: list[LanczosRecord | ChebyshevRecord] = [*self.records[:1], *self.attempts[:1]]
        if self.recurrence is not None and (record := self.recurrence.record()).steps:
            firsts += [] if type(record) in map(type, firsts) else [record]
        known = [record.first_product for record in firsts]
        start = self.start(0)
        x = start / math.sqrt(longvectors.dot(start, start))

        def differs(y: torch.Tensor) -> float:
            along, square = longvectors.dot(x, y), longvectors.dot(y, y)
            return max(max(abs(along - a), abs(square - b) / max(scale, longvectors.TINY)) for a, b, scale in known)

        return KnownProduct(x, differs, max(scale for _, _, scale in known))

    # Probe by probe ----------------------------------------------------------------------------------------------------
    def start(self, index: int) -> torch.Tensor:
        """The Gaussian vector of probe `index`."""
        return probe(self.seed, index, self.op.shape[0], dtype=self.op.dtype, device=self.op.device)

    def lanczos(self, start: torch.Tensor, steps: int) -> Lanczos:
        """The recurrence from this start, in the complement of what is deflated."""
        U, known = (None, NONE) if self.deflation is None else (self.deflation.vectors, self.deflation.known)
        return Lanczos(self.op, start, steps, reorthogonalize=self.mode, deflate=U, known=known)

    def begin(self, index: int, make: Callable[[torch.Tensor], R]) -> R:
        """The recurrence of probe `index`, made from its start, or the one that an earlier session has left."""
        if self.recurrence is None:
            self.done, self.counted = len(self.records) + len(self.attempts), 0
            self.recurrence = make(self.start(index))
        return self.recurrence  # type: ignore[return-value]

    def follow(self, limit: Budget, shown: Any, enough: Callable[[], bool] = lambda: False) -> str | None:
        """Step to the end of the probe; why it ended before, if it did."""
        recurrence = self.recurrence
        while recurrence is not None and not recurrence.ended:
            if enough():
                return "tolerance"
            if recurrence.steps and limit.exhausted():
                return "budget"
            recurrence.step()
            shown.update(1)
            self.checkpoint.stepped()
            self.counted = recurrence.steps
        return None

    def finish(self, record: LanczosRecord | ChebyshevRecord) -> None:
        """The probe is done."""
        if isinstance(record, LanczosRecord):
            self.records.append(record)
        else:
            self.attempts.append(record)
        self.recurrence, self.counted = None, 0
        self.checkpoint.stepped(end=True)
