"""A run of probes on disk: the records that are done, the deflated vectors, and the few vectors of the probe in flight.

Probes are followed by Lanczos (`begin`) or by the Chebyshev recurrence (`begin_moments`).

`path` is small and written whole; vectors that only grow in number (deflated ones, the basis in flight) are appended to files
beside it, so that a save costs O(n). What a crash leaves behind the marks in `path` is cut off.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral import checkpoint as files
from spectral import storage
from spectral.estimators.deflation import Deflation, Found
from spectral.operators.base import Operator
from spectral.probes import probe
from spectral.recurrences.chebyshev import Chebyshev, ChebyshevRecord
from spectral.recurrences.lanczos import NONE, Lanczos, LanczosRecord

FORMAT = "spectral.flight/4"
SAVE_SECONDS = 2.0  # between saves of a probe in flight


class Flight:
    """Where a run stands. Without a path nothing is kept on disk, and the counts alone are."""

    def __init__(self, path: Any, op: Operator, settings: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.op, self.seed = op, settings["seed"]
        self.identity = files.fingerprint([op.identity(), storage.plain(settings)]) if path is not None else ""
        self.records: list[LanczosRecord] = []
        self.attempts: list[ChebyshevRecord] = []  # those that left their interval included
        self.deflation: Deflation | None = None
        self.looks: list[list[float]] = []  # of the first probe, as `slq` writes them down
        self.before = (0, 0.0, 0.0)  # products, epochs and seconds of earlier sessions
        self.begun = (op.products, op.epochs, time.monotonic())
        self.spent = self.before  # those of all steps that were made, earlier sessions included
        self.kept: tuple[dict[str, np.ndarray], dict[str, Any]] | None = None  # a probe in flight as it was saved
        self.made, self.ended, self.saved = 0, False, time.monotonic()
        if self.path is not None and self.path.exists():
            self.packed, self.header = files.load_own(self.path, FORMAT, self.identity)

    def restore(self) -> None:
        """Take the records, the deflated vectors and the probe in flight from disk."""
        marks = getattr(self, "header", {}).get("marks", [None, None])
        if self.path is None:
            return
        self.vectors, self.basis = (
            files.Rows(self.path.with_name(f"{self.path.name}.{name}"), mark and (mark[0], mark[1]))
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
                self.deflation.vectors = self._tensor(self.vectors.content)
        self.vectors.content = b""

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
            two = self._tensor(packed["q"].tobytes())
            now = (int(flight["steps"]), two[0] if len(two) > 1 else None, two[-1],
                   (packed["omega0"], packed["omega1"], bool(flight["again"])))  # fmt: skip
            rows = self._tensor(self.basis.content) if self.basis.size else None
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
            two = self._tensor(packed["q"].tobytes())
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
        if self.path is not None:
            self.basis = files.Rows(self.basis.path)
            self.save(None)
            self.basis.remove()

    def save(self, state: Lanczos | Chebyshev | None) -> None:
        """Vectors first, then the file that says how many of them count."""
        if self.path is None or (isinstance(state, Chebyshev) and not state.whole):
            return  # the last save stands: this step has overwritten a vector and was not ended
        if state is not None and state.steps != self.made:  # a signal came between a step and `stepped`
            self._count()
            self.made, self.ended = state.steps, state.stop in ("breakdown", "outside")
        packed, names = storage.pack_records(self.records)
        moments, attempts = storage.pack_moments(self.attempts)
        packed |= moments
        flight: dict[str, Any] = {}
        if isinstance(state, Chebyshev) and state.steps:
            packed |= {"in_moments": np.array(state.moments), "q": self._pair(state.t_prev, state.t)}
            flight = {"stop": state.stop, "ended": self.ended}
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
        files.save_arrays(self.path, packed, header)
        self.saved = time.monotonic()

    @classmethod
    def _pair(cls, before: torch.Tensor | None, now: torch.Tensor) -> np.ndarray:
        return np.frombuffer((b"" if before is None else cls._bytes(before)) + cls._bytes(now), dtype=np.uint8)

    @staticmethod
    def _bytes(tensor: torch.Tensor) -> bytes:
        return tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()  # numpy has no bfloat16

    def _tensor(self, content: bytes) -> torch.Tensor:
        flat = torch.frombuffer(bytearray(content), dtype=self.op.dtype)
        return flat.reshape(-1, self.op.shape[0]).to(self.op.device)
