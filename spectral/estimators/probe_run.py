"""A run of probes, as `slq` and `kpm` make it: the records that are done, the recurrence of the probe at hand, its checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch

from spectral import collectives, distributed, longvectors, storage
from spectral.estimators.budget import Budget
from spectral.estimators.checkpoint import Checkpoint, State
from spectral.estimators.deflation import Deflated, Deflation
from spectral.estimators.probe_state import STATE
from spectral.estimators.shared_out import SharedOut
from spectral.krylov.again import known_product
from spectral.krylov.basis import ROUNDED
from spectral.krylov.chebyshev import Chebyshev, ChebyshevRecord
from spectral.krylov.lanczos import Lanczos, LanczosRecord
from spectral.krylov.symmetry import KnownProduct
from spectral.operators.operator import Operator
from spectral.threads import Weakly

T = TypeVar("T")
R = TypeVar("R", Lanczos, Chebyshev)
Record = TypeVar("Record", LanczosRecord, ChebyshevRecord)


class ProbeRun:
    """Where a run of probes stands. Without a path nothing is on disk."""

    def __init__(
        self, path: Any, op: Operator, settings: dict[str, Any], probes: float, deflated: int = 0, **steps: int
    ) -> None:
        """`probes`: asked for, next time others perhaps; `deflated`: vectors that may be, at most; `steps`: the `least` and the
        `most` that a probe may aim at."""
        self.op, self.seed, self.mode = op, settings["seed"], settings.get("reorthogonalize", False)
        self.place = settings.get("basis", "device")
        self.deflation = Deflation(deflated, op.shape[0])
        self.records: list[LanczosRecord] = []
        self.attempts: list[ChebyshevRecord] = []  # those that left their interval included
        self.history: list[list[float]] = []  # of the first probe, as `slq` writes it down
        self.recurrence: Lanczos | Chebyshev | None = None  # of the probe at hand, the one after so many `done`
        self.done = self.counted = 0  # `counted`: its steps of which the products are
        rounding = ROUNDED if self.place == "bf16" else 0.0
        run = {"seed": self.seed, "mode": self.mode, "deflates": deflated > 0, "rounding": rounding}
        self.checkpoint = Checkpoint(path, op, settings, STATE, probes, **run, **steps)
        self.matrix = self.checkpoint.matrix
        if self.checkpoint.state is not None:
            self._resume(self.checkpoint.state)

    # On disk -----------------------------------------------------------------------------------------------------------
    def guard(self) -> AbstractContextManager[None]:
        """Inside, SIGINT and SIGTERM save where the run stands."""
        return self.checkpoint.guard(Weakly(self.state), lambda: self.recurrence is None or self.recurrence.whole)

    def state(self) -> State:
        """All that the run goes on from, see `STATE`."""
        recurrence = self.recurrence if self.done == len(self.records) + len(self.attempts) else None
        steps = 0 if recurrence is None else recurrence.steps
        if steps != self.counted:  # a signal came between a step and `stepped`
            self.checkpoint.count()
        deflated = [f for f in self.deflation.deflated if f.probe < len(self.records)]
        vectors = self.deflation.vectors
        return {
            **storage.pack_records(self.records),
            **storage.pack_moments(self.attempts),
            "history": self.history,
            "deflated": [[f.value, f.error, f.window, f.probe, f.nodes] for f in deflated],
            "vectors": longvectors.GrowingRows()
            if vectors is None
            else longvectors.GrowingRows(vectors.__getitem__, len(deflated)),
            "recurrence": None if recurrence is None or not steps else recurrence.state(),
        }

    def _resume(self, state: State) -> None:
        """Take the records, the deflated vectors and the recurrence from a state, and repeat a product of the run."""
        self.records += storage.unpack_records(state)
        self.attempts += storage.unpack_moments(state)
        self.history = state["history"]
        self.deflation.looked = len(self.records)
        self.deflation.deflated = [Deflated(f[0], f[1], f[2], f[3], tuple(f[4])) for f in state["deflated"]]
        self.deflation.vectors = torch.stack(list(state["vectors"])) if state["deflated"] else None
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
        known = known_product(self.recurrence) if isinstance(self.recurrence, Lanczos) else None
        if known is None:
            return self.checkpoint.prove(self._first_product())
        deflated = self.deflation.deflated
        # what was deflated is no eigenvector to the last digit
        slack = max((one.window for one in deflated), default=0.0) * len(deflated) ** 0.5
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
        return self.op.probe(self.seed, index)

    def lanczos(self, start: torch.Tensor, steps: int) -> Lanczos:
        """The recurrence from this start, in the complement of what is deflated."""
        U, known = self.deflation.vectors, self.deflation.known
        return Lanczos(self.op, start, steps, reorthogonalize=self.mode, deflate=U, known=known, place=self.place)

    def begin(self, index: int, make: Callable[[torch.Tensor], R]) -> R:
        """The recurrence of probe `index`, made from its start, or the one that an earlier session has left."""
        if self.recurrence is None:
            self.done, self.counted = len(self.records) + len(self.attempts), 0
            self.recurrence = make(self.start(index))
        return self.recurrence  # type: ignore[return-value]

    def side_by_side(
        self, first: int, last: int, steps: int, limit: Budget, bar: Any, make: Callable[[int, Budget], Record]
    ) -> list[Record]:
        """What `make` gives for probe `first` or, where teams share probes out, for one of each team, up to `last`.

        They depend on nothing that the others find. `steps`: of each, as far as is known; with a budget the first one tells.
        """
        op = self.op
        if not isinstance(op, SharedOut):
            return [make(first, limit)]
        left = limit.left(op.teams)
        alone = self.recurrence is not None or (first == 0 and left < math.inf)
        affordable = -(-left // steps) if left < math.inf else math.inf
        count = 1 if alone else int(max(1, min(op.teams, last - first, affordable)))

        def apart(team: int) -> Record | None:
            return make(first + team, limit.after(team * steps)) if team < count else None

        return [one for one in self.by_teams(op, bar, apart) if one is not None]

    def by_teams(self, op: SharedOut, bar: Any, make: Callable[[int], T]) -> list[T]:
        """What each team makes apart from the others, by its number, once all have; the others' products count as well."""
        begun = op.products
        with distributed.apart(op.team):
            own = make(op.team.index)
        self.recurrence = None
        collectives.meet()
        told = distributed.gather(lambda: own)[:: op.team.size]
        made = op.tally(op.products - begun)
        bar.update(sum(made) - made[op.team.index])
        return told

    def follow(self, limit: Budget, bar: Any, enough: Callable[[], bool] = lambda: False) -> str | None:
        """Step to the end of the probe; why it ended before, if it did."""
        recurrence = self.recurrence
        while recurrence is not None and not recurrence.ended:
            collectives.look()
            if enough():
                return "tolerance"
            if recurrence.steps and limit.exhausted():
                return "budget"
            recurrence.step()
            bar.update(1)
            self.checkpoint.stepped()
            self.counted = recurrence.steps
        return None

    def finish(self, record: LanczosRecord | ChebyshevRecord | None) -> None:
        """The probe is done."""
        if isinstance(record, LanczosRecord):
            self.records.append(record)
        elif record is not None:
            self.attempts.append(record)
        self.recurrence, self.counted = None, 0
        self.checkpoint.stepped(end=True)
