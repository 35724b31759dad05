"""A run of probes that deflates what it finds, where teams of ranks share the probes out."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from spectral import distributed
from spectral.estimators.budget import Budget, settle
from spectral.estimators.deflation import Deflated
from spectral.estimators.probe_run import ProbeRun
from spectral.estimators.shared_out import SharedOut
from spectral.estimators.slq_options import Plan
from spectral.krylov.lanczos import LanczosRecord


class ProbesByTeams(ProbeRun):
    """The probes of `slq`: one after the other, or one for each team where there are any.

    A later probe is deflated of what an earlier one has found. Teams begin theirs together: what one process would have
    made otherwise is made again.
    """

    plan: Plan
    orthogonality = 0.0  # of a rounded basis, as measured
    made_again = 0  # probes, where teams have taken some that an earlier one would have deflated further

    @abstractmethod
    def probe(self, index: int, depth: int | None, limit: Budget, bar: Any) -> LanczosRecord:
        """Run a probe to its end; what it finds is deflated from then on."""

    @abstractmethod
    def depth(self, index: int, limit: Budget, left: float | None = None) -> int:
        """Most steps of a probe with so many products `left`."""

    def next_probes(self, limit: Budget, bar: Any) -> None:
        """Run one probe to its end and keep its record; where teams share them out, one for each team."""
        if isinstance(self.op, SharedOut):
            self._one_for_each_team(self.op, limit, bar)
        else:
            self.finish(self.probe(len(self.records), None, limit, bar))

    def settle(self) -> None:
        """Until products come out to the same bits again, on every team."""
        if not isinstance(self.op, SharedOut):
            settle(self.op, self.start(0))
            return
        begun = self.op.products
        with distributed.apart(self.op.team):
            settle(self.op, self.start(0))
        self.op.tally(self.op.products - begun)

    def _one_for_each_team(self, op: SharedOut, limit: Budget, bar: Any) -> None:
        """Probes of the teams, each deflated of what is known now; those are kept that one process would have made so."""
        done, deflation = len(self.records), self.deflation
        depths, known = self._depths(limit), len(deflation.deflated)

        def made(team: int) -> tuple[LanczosRecord | None, list[Deflated], Any, float]:
            there = team < len(depths)
            record = self.probe(done + team, depths[team], limit.after(sum(depths[:team])), bar) if there else None
            return record, deflation.deflated[known:], self.history, self.orthogonality

        told = self.by_teams(op, bar, made)
        last = next((team for team, (_, new, *_) in enumerate(told) if new), len(depths) - 1)
        self.made_again += len(depths) - 1 - last
        vectors = None if deflation.vectors is None else deflation.vectors[known:]
        if new := told[last][1]:
            vectors = distributed.first({"new": vectors}, op.device, last * op.team.size)["new"]
        deflation.take(known, new, vectors if new else None, done + last + 1)
        self.history = told[0][2]
        self.orthogonality = max(lost for *_, lost in told)
        self.records += [one for one, *_ in told[:last] if one is not None]
        self.finish(told[last][0])

    def _depths(self, limit: Budget) -> list[int]:
        """Steps of the probes to come, one for each team as far as probes and budget go: as if they were made in turn."""
        done, left = len(self.records), limit.left(self.op.teams)
        # probes on which later ones depend
        before = 2 if self.plan.adaptive else 1 if self.deflation.most else 0
        most = self.op.teams if done >= before and self.recurrence is None else 1
        depths: list[int] = []
        while len(depths) < most and done + len(depths) < self.plan.probes:
            if depths and left < (self.records[1].steps / 2 if self.plan.adaptive else 1):
                break
            depths.append(max(1, self.depth(done + len(depths), limit, left)))
            left -= depths[-1]
        return depths
