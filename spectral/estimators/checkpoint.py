"""A run of probes on disk: the records that are done, the deflated vectors, and the few vectors of the probe in flight.

Probes are followed by Lanczos (`begin`) or by the Chebyshev recurrence (`begin_moments`).

`path` is small and written whole; vectors that only grow in number (deflated ones, the basis in flight) are appended to files
beside it, so that a save costs O(n). What a crash leaves behind the marks in `path` is cut off.

What is read is held against `FLIGHT`, and one product of the run is repeated: a file of another matrix is refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from spectral import arrays, persist, storage
from spectral.estimators import proof
from spectral.estimators.deflation import Deflation, Found, converged
from spectral.krylov.chebyshev import Chebyshev, ChebyshevRecord, centre
from spectral.krylov.lanczos import NONE, Lanczos, LanczosRecord
from spectral.operators.operator import Operator
from spectral.probes import probe
from spectral.schema import Array, Either, Fields, Flag, Items, Law, Number, Row, Same, Sizes, Text
from spectral.storage import COUNT, POSITIVE, REAL, SIZE

FORMAT = "spectral.flight/5"
SAVE_SECONDS = 2.0  # between saves of a probe in flight
TINY = 1e-300

# What a file must hold. Sizes: n the dimension, width the bytes of a vector; dtype, seed, mode (how the basis is kept) and most
# steps of a probe are those of the run; j steps of the probe in flight; R records, A attempts.
MARK = Row(COUNT, Text(pattern="[0-9a-f]{64}", said="a SHA-256"))
ANY = Number(finite=False, nan=True)
LANCZOS = Fields(
    {"steps": SIZE, "limit": SIZE, "again": Flag(), "stop": Text("steps", "breakdown"), "ended": Flag()},
)
CHEBYSHEV = Fields(
    {"stop": Text("steps", "outside"), "ended": Flag(), "interval": Row(REAL, REAL)},
    laws=(Law("an interval with low < high", lambda f, s: f["interval"][0] < f["interval"][1]),),
)
LANCZOS_ARRAYS = {
    "in_alphas": Array("float64", "j"),
    "in_betas": Array("float64", "j", least=0),
    "omega0": Array("float64", None),
    "omega1": Array("float64", None),
}
IN_FLIGHT = {"q": Array("uint8", None), "in_moments": Array("float64", None), **LANCZOS_ARRAYS}


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


def _found(f: Any, s: Sizes) -> bool:
    """What was found comes from probes that are done, in their order, and each record knows what was found before it."""
    ends = np.cumsum([0, *(r["known"] for r in f["records"])])
    known = [f["known"][a:b] for a, b in pairwise(ends)]
    probes = [x[3] for x in f["found"]]
    return (
        (s["deflates"] or not f["found"])
        and probes == sorted(probes)
        and all(p < len(f["records"]) for p in probes)
        and all(max(x[4]) < f["records"][x[3]]["steps"] for x in f["found"])
        and all(list(v) == [x[0] for x in f["found"] if x[3] < k] for k, v in enumerate(known))
    )


def _found_there(f: Any, s: Sizes) -> bool:
    """What was found is what its record gives: a pair that has converged, at its nodes, with its value, error and window."""
    eps = proof.ROUNDING * arrays.machine_epsilon(getattr(torch, s["dtype"]))
    records = storage.unpack_records(f, f["records"])
    pairs = [{tuple(map(int, p.nodes)): p for p in converged(record)} for record in records]

    def near(found: list[Any]) -> bool:
        pair, scale = pairs[found[3]].get(tuple(found[4])), float(np.abs(records[found[3]].eigen[0]).max())
        if pair is None:
            return False
        given, known = np.array(found[:3]), np.array([pair.value, pair.error, pair.window])
        return bool((np.abs(given - known) <= eps * scale + 0.5 * np.array([0.0, *known[1:]])).all())

    return all(map(near, f["found"]))


def _in_flight(f: Any, s: Sizes) -> bool:
    """The probe in flight has its arrays, of its sizes, and no others."""
    flight, held, width = f["flight"], set(IN_FLIGHT) & set(f), s["width"]
    if not flight:
        return not held and f["marks"][1][0] == 0
    if "steps" not in flight:
        mu = f.get("in_moments", np.zeros(0))
        return (
            held == {"q", "in_moments"} and len(f["q"]) == 2 * width and len(mu) % 2 == 1 < len(mu) and bool(mu[0] > 0)
        )
    j, mode = flight["steps"], s["mode"]
    if held != {"q", *LANCZOS_ARRAYS} or not j == s["j"] <= flight["limit"] <= s["most"]:
        return False
    omegas = (len(f["omega0"]), len(f["omega1"]))
    return (
        len(f["q"]) in ((2 * width, width) if j == 1 else (2 * width,))
        and (omegas == (j, j + 1) if mode == "selective" else max(omegas) <= 1)
        and f["marks"][1][0] == (j * width if mode else 0)
        and bool((f["in_betas"][:-1] > 0).all())
    )


FLIGHT = Fields(
    {
        "format": Same(FORMAT),
        "identity": Text(),
        "found": Items(Row(REAL, POSITIVE, POSITIVE, COUNT, Items(COUNT, least=1))),
        "marks": Row(MARK, MARK),
        "flight": Either(Fields(), LANCZOS, CHEBYSHEV),
        "looks": Items(Row(SIZE, COUNT, ANY, ANY, ANY, ANY)),
        "spent": Row(COUNT, POSITIVE, POSITIVE),
        **storage.RECORDS,
        **storage.DEFLATED,
        **storage.MOMENTS,
    },
    IN_FLIGHT,
    laws=(
        *storage.RECORD_LAWS,
        *storage.MOMENT_LAWS,
        Law("records of this run's probes", _of_the_run),
        Law("found vectors of probes that are done", _found),
        Law("found values at nodes of their records", _found_there),
        Law("as many vectors as were found", lambda f, s: f["marks"][0][0] == len(f["found"]) * s["width"]),
        Law("a probe in flight that is whole", _in_flight),
    ),
)


class Flight:
    """Where a run stands. Without a path nothing is kept on disk, and the counts alone are."""

    def __init__(self, path: Any, op: Operator, settings: dict[str, Any]) -> None:
        self.path = None if path is None else persist.claim(path)
        self.op, self.seed = op, settings["seed"]
        self.matrix = op.identity()  # of the operator as the run begins
        self.identity = persist.fingerprint([self.matrix, storage.plain(settings)]) if path is not None else ""
        self.mode, self.steps = settings.get("reorthogonalize", False), settings["steps"]
        self.records: list[LanczosRecord] = []
        self.attempts: list[ChebyshevRecord] = []  # those that left their interval included
        self.deflation: Deflation | None = None
        self.looks: list[list[float]] = []  # of the first probe, as `slq` writes them down
        self.before = (0, 0.0, 0.0)  # products, epochs and seconds of earlier sessions
        self.begun = (op.products, op.epochs, time.monotonic())
        self.spent = self.before  # those of all steps that were made, earlier sessions included
        self.kept: tuple[dict[str, np.ndarray], dict[str, Any]] | None = None  # a probe in flight as it was saved
        self.made, self.ended, self.saved = 0, False, time.monotonic()
        self.owed = False  # a probe's end that could not be saved
        if self.path is not None and self.path.exists():
            self.packed, self.header = persist.load_own(self.path, FORMAT, self.identity)

    def restore(self) -> None:
        """Take the records, the deflated vectors and the probe in flight from disk, and repeat a product of the run."""
        if self.path is None:
            return
        if hasattr(self, "header"):
            sizes: dict[str, Any] = {"n": self.op.shape[0], "width": self.op.shape[0] * self.op.dtype.itemsize}
            sizes |= {"dtype": str(self.op.dtype).removeprefix("torch."), "seed": self.seed, "mode": self.mode}
            sizes |= {
                "deflates": self.deflation is not None,
                "most": min(self.steps or self.op.shape[0], self.op.shape[0]),
            }
            persist.check(self.path, {**self.header, **self.packed}, FLIGHT, "", **sizes)
        marks = getattr(self, "header", {}).get("marks", [None, None])
        self.vectors, self.basis = (
            persist.Rows(self.path.with_name(f"{self.path.name}.{name}"), mark and (mark[0], mark[1]))
            for name, mark in zip(("vectors", "basis"), marks, strict=True)
        )
        if not hasattr(self, "header"):
            return
        header, packed = self.header, self.packed
        self.records.extend(storage.unpack_records(packed, header["records"]))
        self.attempts.extend(storage.unpack_moments(packed, header["attempts"]))
        products, epochs, seconds = header["spent"]
        self.spent = self.before = (int(products), float(epochs), float(seconds))
        self.looks = header["looks"]
        self.kept = (packed, header["flight"]) if header["flight"] else None
        if self.deflation is not None:
            self.deflation.looked = len(self.records)
            self.deflation.found = [Found(f[0], f[1], f[2], f[3], tuple(f[4])) for f in header["found"]]
            if self.deflation.found:
                self.deflation.vectors = self._tensor(self.vectors.content, unit=True)
        self.vectors.content = b""
        if self.kept is None:
            self.basis.remove()  # what a run that was killed has left
        if self.records or self.attempts or self.kept is not None:
            proof.repeat(self.op, self.path, *self._known_product())
            self.begun = (self.op.products, self.op.epochs, time.monotonic())  # that product is none of the run's

    def _known_product(self) -> tuple[torch.Tensor, Callable[[torch.Tensor], float], float, float]:
        """(x, how far a vector is from A x as the record says, scale of its rounding, how much else it may be off).

        Of a probe in flight with a basis V, x is a random combination of V and of what is deflated, and A V = V T + beta q e^T
        says what comes out: that holds all of them together. Without one, x is the vector that was multiplied last, and A x less
        its parts along x and q is as long as the beta before. Else x is the first probe's start, and two numbers of its product
        are known.
        """
        packed, flight = self.kept or ({}, {})
        if "steps" in flight and flight["stop"] == "steps" and self.mode != "selective":
            alphas, betas = packed["in_alphas"], packed["in_betas"]
            two, norm = self._tensor(packed["q"].tobytes(), unit=True), float(np.abs(alphas).max() + 2 * betas.max())
            U = None if self.deflation is None else self.deflation.vectors
            off = (
                0.0
                if U is None or self.deflation is None
                else max(f.window for f in self.deflation.found) * len(U) ** 0.5
            )
            if not self.mode:
                x, before = two[0], float(betas[-2]) if len(betas) > 1 else 0.0

                def last(y: torch.Tensor) -> float:
                    rest = arrays.norm(y.sub(x, alpha=float(alphas[-1])).sub_(two[1], alpha=float(betas[-1])))
                    return max(abs(arrays.dot(x, y) - float(alphas[-1])), abs(rest - before))

                return x, last, norm, off
            V = self._tensor(self.basis.content, unit=True)
            c = proof.coefficients(len(V))
            image = alphas * c
            image[:-1] += betas[:-1] * c[1:]
            image[1:] += betas[:-1] * c[:-1]
            x, expected = proof.combined(V, c), proof.combined(V, image).add_(two[1], alpha=float(betas[-1] * c[-1]))
            if U is not None and self.deflation is not None:
                d = proof.coefficients(len(U))
                x.add_(proof.combined(U, d))
                expected.add_(proof.combined(U, d * self.deflation.known))
            size = float(np.linalg.norm(c))
            return x, proof.away(expected), norm * size, off * size
        g = self.start(0)
        x, known = g / math.sqrt(arrays.dot(g, g)), self._first_product()

        def first(y: torch.Tensor) -> float:
            along, square = arrays.dot(x, y), arrays.dot(y, y)
            return max(max(abs(along - a), abs(square - b) / max(scale, TINY)) for a, b, scale in known)

        return x, first, max(scale for _, _, scale in known), 0.0

    def _first_product(self) -> list[tuple[float, float, float]]:
        """(<x, y>, ||y||^2, scale of their rounding) of the product y of the first probe's start x, of length 1.

        Of each recurrence that has made it: Lanczos, and Chebyshev where the first gave its interval.
        """
        packed, flight = self.kept or ({}, {})
        known = []
        if self.records or "steps" in flight:
            record = self.records[0] if self.records else None
            alphas, betas = (record.alphas, record.betas) if record else (packed["in_alphas"], packed["in_betas"])
            square = float(np.square(alphas[0]) + np.square(betas[0]))
            known.append((float(alphas[0]), square, math.sqrt(square)))
        if self.attempts or "interval" in flight:
            interval = self.attempts[0].interval if self.attempts else tuple(flight["interval"])
            mu = self.attempts[0].moments if self.attempts else packed["in_moments"] / packed["in_moments"][0]
            c, h = map(np.float64, centre(interval))  # y = c x + h X x, and 2 ||X x||^2 - 1 is the second moment
            with np.errstate(all="ignore"):  # of a damaged interval
                square = float(np.square(c) + 2 * c * h * mu[1] + np.square(h) * (1 + mu[2]) / 2)
                known.append((float(c + h * mu[1]), square, float(abs(c) + h)))
        return known

    def start(self, index: int) -> torch.Tensor:
        """The Gaussian vector of probe `index`."""
        return probe(self.seed, index, self.op.shape[0], dtype=self.op.dtype, device=self.op.device)

    def begin(self, index: int, steps: int, mode: bool | str) -> Lanczos:
        """Probe `index` from its start, or from where it was saved."""
        U, known = (None, NONE) if self.deflation is None else (self.deflation.vectors, self.deflation.known)
        if self.kept is not None:
            steps = int(self.kept[1]["limit"])
        state = Lanczos(self.op, self.start(index), steps, reorthogonalize=mode, deflate=U, known=known)
        self.made, self.ended = 0, False
        if self.kept is not None:
            packed, flight = self.kept
            two = self._tensor(packed["q"].tobytes(), unit=True)
            now = (int(flight["steps"]), two[0] if len(two) > 1 else None, two[-1],
                   (packed["omega0"], packed["omega1"], bool(flight["again"])))  # fmt: skip
            rows = self._tensor(self.basis.content, unit=True) if self.basis.size else None
            state.resume(packed["in_alphas"], packed["in_betas"], now, rows)
            state.stop, self.ended, self.made = flight["stop"], bool(flight["ended"]), now[0]
            self.kept, self.basis.content = None, b""
        return state

    def begin_moments(self, index: int, steps: int, interval: tuple[float, float]) -> Chebyshev:
        """The same by the Chebyshev recurrence; a kept probe has the interval that it had."""
        state = Chebyshev(self.op, self.start(index), steps, interval)
        self.made, self.ended = 0, False
        if self.kept is not None:
            packed, flight = self.kept
            if tuple(flight["interval"]) != interval:
                raise ValueError(
                    f"{self.path} is damaged: its interval is not that of the run; delete it and run again."
                )
            two, mu = self._tensor(packed["q"].tobytes()), packed["in_moments"]
            ends = (
                2 * arrays.dot(two[1], two[1]) - mu[0],
                (2 if len(mu) > 3 else 1) * arrays.dot(*two) - (len(mu) > 3) * mu[1],
            )
            if np.abs(np.subtract(ends, mu[:-3:-1])).max() > math.sqrt(arrays.machine_epsilon(self.op.dtype)):
                raise ValueError(
                    f"{self.path} is damaged: its moments are not those of its vectors; delete it and run again."
                )
            state.resume(packed["in_moments"], two[0] if len(two) > 1 else None, two[-1])
            state.stop, self.ended, self.made = flight["stop"], bool(flight["ended"]), state.steps
            self.kept = None
        return state

    def _count(self) -> None:
        now = (self.op.products, self.op.epochs, time.monotonic())
        products, epochs, seconds = (b + n - s for b, n, s in zip(self.before, now, self.begun, strict=True))
        self.spent = (int(products), epochs, seconds)

    def stepped(self, state: Lanczos | Chebyshev, more: bool) -> None:
        """A step was made; saved if the last save is long ago."""
        self._count()
        self.made, self.ended = state.steps, not more
        if self.path is not None and time.monotonic() - self.saved >= SAVE_SECONDS:
            self.save(state)

    def finish(self, record: LanczosRecord | ChebyshevRecord) -> None:
        """The probe is done."""
        self._count()
        if isinstance(record, LanczosRecord):
            self.records.append(record)
        else:
            self.attempts.append(record)
        self.made, self.ended = 0, False
        self.owed = self.path is not None
        self.save(None)

    def save(self, state: Lanczos | Chebyshev | None) -> None:
        """Write where the run stands; a full disk warns, and the last save stands.

        While the end of a probe is not on disk, the basis that its save goes on from is not written over.
        """
        if self.path is None or (isinstance(state, Chebyshev) and not state.whole):
            return  # this step has overwritten a vector and was not ended
        with persist.forgiving(self.path):
            if self.owed:
                self.basis = persist.Rows(self.basis.path)
                self._write(None)
                self.basis.remove()
                self.owed = False
            if state is not None:
                self._write(state)
        self.saved = time.monotonic()

    def _write(self, state: Lanczos | Chebyshev | None) -> None:
        """Vectors first, then the file that says how many of them count."""
        if state is not None and state.steps != self.made:  # a signal came between a step and `stepped`
            self._count()
            self.made, self.ended = state.steps, state.stop in ("breakdown", "outside")
        packed, names = storage.pack_records(self.records)
        moments, attempts = storage.pack_moments(self.attempts)
        packed |= moments
        flight: dict[str, Any] = {}
        if isinstance(state, Chebyshev) and state.steps:
            packed |= {"in_moments": np.array(state.moments), "q": self._pair(state.t_prev, state.t)}
            flight = {"stop": state.stop, "ended": self.ended, "interval": list(state.interval)}
        elif isinstance(state, Lanczos) and state.steps:
            j, before, q, (older, last, again) = state.now
            packed |= {
                "in_alphas": np.array(state.alphas[:j]),
                "in_betas": np.array(state.betas[:j]),
                "q": self._pair(before, q),
                "omega0": older,
                "omega1": last,
            }
            flight = {"steps": j, "limit": state.limit, "again": again, "stop": state.stop, "ended": self.ended}
            width = q.numel() * q.element_size()
            self.basis.append(b"".join(self._bytes(row) for row in state.rows(self.basis.size // width, j)))
        found = [] if self.deflation is None else self.deflation.found
        if self.deflation is not None and self.deflation.vectors is not None and state is None:
            U = self.deflation.vectors
            self.vectors.append(self._bytes(U[self.vectors.size // (U.shape[1] * U.element_size()) :]))
        header = {
            "format": FORMAT,
            "identity": self.identity,
            "records": names,
            "attempts": attempts,
            "found": [[f.value, f.error, f.window, f.probe, f.nodes] for f in found if f.probe < len(self.records)],
            "marks": [self.vectors.append(b""), self.basis.append(b"")],
            "flight": flight,
            "looks": self.looks,
            "spent": self.spent,
        }
        persist.save_arrays(self.path, packed, header)

    @classmethod
    def _pair(cls, before: torch.Tensor | None, now: torch.Tensor) -> np.ndarray:
        return np.frombuffer((b"" if before is None else cls._bytes(before)) + cls._bytes(now), dtype=np.uint8)

    @staticmethod
    def _bytes(tensor: torch.Tensor) -> bytes:
        return tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()  # numpy has no bfloat16

    def _tensor(self, content: bytes, unit: bool = False) -> torch.Tensor:
        """Vectors (l, n) from their bytes; ValueError unless they are finite, and of length 1 where they must be."""
        rows = torch.frombuffer(bytearray(content), dtype=self.op.dtype).reshape(-1, self.op.shape[0])
        squares = torch.tensor([arrays.dot(row, row) for row in rows])
        away = float((squares - 1).abs().max()) if unit else 0.0
        if not torch.isfinite(squares).all() or away > math.sqrt(arrays.machine_epsilon(self.op.dtype)):
            raise ValueError(f"{self.path} is damaged: its vectors are not those of a run; delete it and run again.")
        return rows.to(self.op.device)
