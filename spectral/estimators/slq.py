"""Stochastic Lanczos quadrature with deflation of what has converged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import scipy

from spectral.distributed import decided, together
from spectral.estimators import stopping
from spectral.estimators.budget import Budget, environment, expect, progress_bar, symmetric_operand
from spectral.estimators.deflation import converged, padded
from spectral.estimators.probes_by_teams import ProbesByTeams
from spectral.estimators.shared_out import shared_out
from spectral.estimators.slq_options import PROBES, STEPS, Default, Plan
from spectral.estimators.stopping import Tolerance
from spectral.krylov.again import second_pass
from spectral.krylov.basis import check_place
from spectral.krylov.lanczos import Lanczos, LanczosRecord
from spectral.operators.operator import Operator
from spectral.probes import check_seed
from spectral.results import Atoms
from spectral.spectrum import Spectrum

COPIES = 8  # of one eigenvalue that an adaptive run without a basis looks for, a second pass each


def slq(
    A: Any,
    *,
    probes: int = PROBES,
    steps: int = STEPS,
    seed: int = 0,
    deflate: bool | str = "auto",
    reorthogonalize: bool | str = "auto",
    basis: Any = "device",
    tol: Any = None,
    budget: Any = None,
    checkpoint: Any = None,
    progress: bool | None = None,
    ranks: str = "data",
) -> Spectrum:
    """The spectrum of symmetric A (n, n) by stochastic Lanczos quadrature, with deflation of what has converged.

    Each of `probes` Gaussian vectors g becomes the Gauss rule of its spectral measure, of `steps` nodes: <g, f(A) g> =
    ||g||^2 sum_j w_j f(theta_j) for polynomials f of degree below 2 `steps`.

    Cost: probes x steps products. Memory: up to 2 `steps` vectors of length n with a basis, else four and what is deflated.

    Parameters
    ----------
    A : operator or matrix
        (n, n) symmetric, or rectangular for its Gram on the smaller side; whatever `as_operator` takes. Known zeros of a
        Gram are carried exactly.
    probes : int
        Gaussian vectors, 4 by default. With tol or budget the most where it is given, and decided by the run where not.
    steps : int
        Lanczos steps on each, 100 by default, at most n. With tol or budget as `probes`; with a budget and both given they
        are as given.
    seed : int
        0 to 2^64 - 1. Probe i depends on (seed, i) alone.
    deflate : bool or str
        "auto": with two probes or more, what the first has converged to is projected out of the others and becomes exact
        atoms once another probe shows no further copy. Without a basis this takes products of its own, see Notes. True asks
        for it, with reorthogonalize=False too; False deflates nothing.
    reorthogonalize : bool or str
        True (fully), "selective" (where orthogonality falls below sqrt(eps): fewer flops, the same memory), False (four
        vectors). "auto" is True if a basis takes at most a quarter of the free memory, else False.
    basis : str or path
        Where the basis is kept: "device" (beside the vectors), "bf16" (there, in bfloat16: half the memory of float32), "host"
        (the processor's memory) or the path of a folder (files that are mapped into memory and go with the run, where "auto"
        takes at most three quarters of the free disk). See Notes.
    tol : float or dict, optional
        Steps and probes go on until the W1 error relative to the spectral range, truncation and the probes' noise in 95 %
        of the draws, is below tol (0 < tol < 1). {"count": (lo, hi, width)}: until the interval of `count(lo, hi)` is that
        narrow. {"cdf": (points, error)}: until `cdf` is known to +-error with 95 % at each of the points, which are parts of
        the largest |eigenvalue|: the low end, see Notes. Several of "w1", "count" and "cdf" ask for all.
    budget : int or str, optional
        A number of products, or "90s", "10min", "2h", "50epochs", "400products". Earlier sessions of a checkpoint count.
    checkpoint : path, optional
        A file (its folder is made; two more lie beside it while a probe runs), saved every few seconds and at SIGINT and
        SIGTERM. The same call goes on from it to the same bits.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.
    ranks : str
        In a torch.distributed group. "data": each rank has its share of the data, products are summed. "probes": each rank
        has all the data and takes probes of its own. "both": the data repeat every p ranks, which share them, and each such
        team takes probes of its own.

    Returns
    -------
    Spectrum
        By method "slq"; `meta` says what was done.

    Raises
    ------
    ValueError
        For a square operator that is not symmetric (two products tell where nobody knows) or is empty, a keyword that is
        none of its values, ranks that do not hold the data that `ranks` asks for, and for a checkpoint that is damaged or
        of another operator, seed or setting.
    RuntimeError
        For products that come out otherwise when they are made again.

    Notes
    -----
    An invariant subspace ends a probe early with an exact rule, and finding all eigenvalues ends the run.

    `meta["error"]` states the W1 error relative to the range: `truncation` (certified envelope; `rounding` is what of it no
    step can lower), `statistical` (exact variance, mean) and `w1_95`. `meta["stop"]` says what ended the run: "probes",
    "tolerance", "budget", "exact" (all eigenvalues found), "depth" (more probes cannot meet tol: steps, memory or rounding
    limit the truncation).

    Without a basis, deflation makes the first probe's products twice (two-pass Lanczos) if "auto" left the basis out or
    deflate=True. It also makes those of a later probe again that shows a further copy, as long as the probes to come can
    find the rest of them. With reorthogonalize=False and deflate="auto" nothing is deflated.

    `basis="bf16"` rounds the rows that products are orthogonalised against, not the vectors that are multiplied: these stay
    orthogonal to about 1e-3 / sqrt(m) where they live on m entries, and eigenvalues are off by as much of ||A||. It is
    measured: `meta["orthogonality"]`, the largest inner product of a vector with a random sum of those before it, is the
    rounding that the spectrum states. Vectors to deflate are made of rounded rows, which may leave eigenvalues without the
    proof that makes them atoms. "host" and a path keep every bit.

    With probes shared out, the first (with tol or budget the second too) is made by the first team, as what it finds is
    deflated from the others; then each team takes one at a time. One that a probe before it would have deflated further is
    made again (`meta["made_again"]`), so that the spectrum is that of one process. A checkpoint goes on with any `ranks`.

    Few steps do not see the low end. Of a log-uniform spectrum over d decades the envelope of k steps is 1.4 / (k d sqrt(x))
    wide at x lambda_max (the Christoffel function there), until they find eigenvalues one by one: tol={"cdf": (x, error)} takes
    about as many steps as bring half of that below half of the error, at most n. A shifted solve knows no more: its products
    are polynomials of A too, and a recurrence of as many products is the best of them. Without room for a basis say
    reorthogonalize=False, or steps end where memory does.

    The certificate of `truncation` is `spectral.quadrature.certificate.envelope`. `plan` predicts products, seconds and
    memory.

    References
    ----------
    - Ubaru, Chen, Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal. Appl.
      38.
    - Chen, Trogdon, Ubaru (2021), Analysis of stochastic Lanczos quadrature for spectrum approximation, ICML.

    Examples
    --------
    >>> s = slq(2 * np.eye(50))
    >>> s.products, float(s.integrate(np.log).value)      # one step a probe: log det 2I = 50 log 2
    (4, 34.6573590279972...
    """
    op, zeros, dim = shared_out(A, ranks, symmetric_operand)
    with together() if op.ranks > 1 else nullcontext():  # a folder is there on one machine, and on another not
        place = check_place(basis, op.dtype)
    plan = Plan.of(op, probes, steps, deflate, reorthogonalize, place, tol, budget)
    settings = {
        "steps": None if plan.adaptive and isinstance(steps, Default) else int(steps),
        "seed": check_seed(seed),
        "reorthogonalize": plan.mode,
        "deflate": plan.vectors > 0,
        "tol": tol if tol is None else dict(tol) if isinstance(tol, Mapping) else float(tol),
    }
    if plan.choice:
        settings["memory"] = plan.choice
    if place != "device" and plan.mode:
        settings["basis"] = place
    run = _Run(op, settings, plan, (dim, zeros), checkpoint)
    limit = Budget(budget, op, run.checkpoint.before)
    twice = not plan.mode and plan.vectors > 0
    limit.announce((int(probes) + twice) * min(int(steps), op.shape[0]))
    if twice:
        run.settle()
    total = None if plan.adaptive else (int(probes) - len(run.records)) * min(int(steps), op.shape[0])
    with run.guard(), progress_bar(total, "slq", progress) as bar:
        while (stop := decided(op, run.stop(limit))) is None:
            run.next_probes(limit, bar)
    return run.spectrum(stop=stop)


class _Run(ProbesByTeams):
    """The probes that are done and the one at hand, with what deflation knows of them."""

    def __init__(self, op: Operator, settings: dict[str, Any], plan: Plan, size: tuple[int, int], path: Any) -> None:
        self.settings, self.plan, self.aim, (self.dim, self.zeros) = settings, plan, plan.aim, size
        most = min(settings["steps"] or op.shape[0], op.shape[0])
        super().__init__(path, op, settings, plan.probes, plan.vectors, least=1 if plan.adaptive else most, most=most)

    def stop(self, limit: Budget) -> str | None:
        """Why the run is over, None if it is not."""
        done = len(self.records)
        if not done or self.recurrence is not None:  # a probe that was interrupted comes to its own end
            return None
        if len(self.deflation.deflated) == self.op.shape[0]:
            return "exact"
        if self.aim is not None and (done <= 4 or stopping.due(done)):
            s = self.spectrum()
            parts = self.aim.parts(s)
            seen = done > 1 or self.plan.probes == 1 or s.meta["error"]["w1_95"] == 0
            if sum(parts) <= 1 and seen:  # the spread of one probe is not known
                return "tolerance"
            deep = done > 1 and self.records[-1].stop != "budget" and not self._divided(limit)
            if parts[0] >= 1 and deep and self.aim.parts(self._last(s))[0] >= 1:
                return "depth"
        if done >= self.plan.probes:
            return "probes"
        if limit.exhausted():
            return "budget"
        if self.plan.adaptive and done > 1:  # a shallow probe would spoil what the others resolve
            steps, exact = self.records[1].steps, self.records[1].betas[-1] == 0
            return "budget" if limit.left() < (steps if exact else steps / 2) else None
        return None

    def probe(self, index: int, depth: int | None, limit: Budget, bar: Any) -> LanczosRecord:
        """Run a probe to its end; what it finds is deflated from then on."""
        state = self.begin(index, lambda start: self.lanczos(start, depth or self.depth(index, limit)))
        growth = stopping.GROWTH if index < 2 else stopping.LATER

        def enough() -> bool:
            look = self.plan.adaptive and stopping.due(state.steps, growth)
            return look and decided(self.op, self._deep_enough(state, index, limit, bar))

        stop = self.follow(limit, bar, enough)
        record = state.record(seed=self.seed, index=index, stop=stop)
        self.orthogonality = max(self.orthogonality, state.orthogonality)
        if self.deflation.most:
            self.deflation.looked = index
            self.deflation.add(record, self._combine(state, record, limit), self._worth(record))
        return record

    def depth(self, index: int, limit: Budget, left: float | None = None) -> int:
        """Most steps of a probe with so many products `left`: later ones as many as the second, the first that is deflated.

        A budget without a tolerance, or that cannot meet it, is divided: equal depths beyond what the first has found.
        """
        if not self.plan.adaptive or index == 0:
            return self.plan.steps
        if not self._divided(limit):
            return self.plan.steps if index == 1 else self.records[1].steps
        first = self.records[0]
        depth = max(first.steps - len(self.deflation.deflated), 4)
        left = limit.left() if left is None else left
        return int(min(self.plan.steps, max(1, math.ceil(left / max(1, round(left / depth))))))

    def _combine(self, state: Lanczos, record: LanczosRecord, limit: Budget) -> Any:
        """How Ritz vectors are made: from the basis, or by a second pass if there are any."""
        if self.plan.mode:

            def combined(coefficients: np.ndarray) -> Any:
                made, state.kept = state.combine(coefficients), None  # what was found takes the place of the basis
                return made

            return combined
        if limit.left() < state.steps:
            return None

        def again(coefficients: np.ndarray) -> Any:
            return second_pass(state, self.start(record.index), coefficients)

        return again

    def _worth(self, record: LanczosRecord) -> float:
        """The mass up to which a further copy that this probe shows is worth a second pass, in units of an eigenvector's.

        Each pass finds one copy, and the last probe must show none: more copies than there are probes to come are never an
        atom, and none is where the tolerance is met. The mass of r copies is chi-squared with r degrees of freedom.
        """
        if self.plan.mode or record.index == 0:
            return math.inf
        if self.aim is not None and sum(self.aim.parts(self._preview(record))) <= 1:
            return 0.0
        left = min(self.plan.probes - 1 - record.index, COPIES)
        return float(scipy.special.chdtri(left, 1e-3)) if left > 0 else 0.0

    def _history(self, asked: bool) -> stopping.History:
        """What looks at the first probe saw, in units of the tolerance that was asked for or of W1."""
        first = 4 if asked else 2
        return {int(look[0]): (look[first], look[first + 1], int(look[1])) for look in self.history}

    def _divided(self, limit: Budget) -> bool:
        """Whether the budget is divided over probes: there is no tolerance, or none that it can meet."""
        return self.aim is None or stopping.out_of_reach(self._history(asked=True), limit.whole())

    def _deep_enough(self, state: Lanczos, index: int, limit: Budget, bar: Any) -> bool:
        """Whether more steps of this probe gain less than what they cost; shows the error that a stop would leave."""
        record = state.record(seed=self.seed, index=index)
        s = self._preview(record)
        aim = self.aim or Tolerance(1.0)
        parts, k, found = aim.parts(s), state.steps, len(s.atoms.values)
        need = stopping.probes_needed(parts, len(self.records) + 1)
        expect(bar, s.meta["error"]["w1"], need if self.aim else None, k - found)
        # areas are at rounding long before the low end is known
        if self.aim is not None and self.aim.cdf is None and stopping.stalled(s.meta["error"]):
            return True
        if index == 0:
            known = self.history and self.history[-1][0] == k  # after an interruption
            if not known:
                self.history.append([k, found, *Tolerance(1.0).parts(s), *parts])
            if self.aim is not None and stopping.first_is_deep_enough(
                self._history(asked=True), limit.whole(), self.plan.probes
            ):
                return True
            budget = limit.left() + k - (0 if self.plan.mode else k)  # a second pass costs as much again
            return (
                self._divided(limit)
                and self.plan.vectors > 0
                and stopping.first_has_its_share(self._history(asked=False), budget)
            )
        if self.aim is None:
            return False
        settled = found >= len(self.deflation.deflated) or k >= self.records[0].steps
        return sum(parts) <= 1 or (aim.parts(self._last(s))[0] <= stopping.SHARE and settled)

    def _last(self, s: Spectrum) -> Spectrum:
        """That of its last probe alone: those to come will be as deep as this one, not as the first."""
        return Spectrum.from_records(
            s.records[-1:], self.dim, zeros=self.zeros, atoms=s.atoms, removed=s.removed[-1:], meta=dict(s.meta)
        )

    def _preview(self, record: LanczosRecord) -> Spectrum:
        """The spectrum if this probe ended here; of the first, what has converged is taken for atoms."""
        if len(self.records) or not self.deflation.most:
            return self.spectrum([*self.records, record])
        pairs = converged(record)[: self.op.shape[0] - 1]
        atoms = Atoms(np.array([p.value for p in pairs]), np.ones(len(pairs), dtype=np.int64))
        removed = [padded([list(p.nodes) for p in pairs], max((len(p.nodes) for p in pairs), default=1))]
        meta = {"nonnegative": bool(self.op.nonnegative), "value_error": max((p.error for p in pairs), default=0.0)}
        return Spectrum.from_records([record], self.dim, zeros=self.zeros, atoms=atoms, removed=removed, meta=meta)

    def spectrum(self, records: list[LanczosRecord] | None = None, *, stop: str = "") -> Spectrum:
        """The spectrum of the probes so far, with its stated error."""
        records = self.records if records is None else records
        atoms, removed, error = self.deflation.atoms(records)
        meta = {
            **environment(self.op, self.matrix),
            **self.settings,
            "probes": len(records),
            "stop": stop,
            "stops": [record.stop for record in records],
            **({"made_again": self.made_again} if self.made_again else {}),
            "value_error": error,
        }
        if self.orthogonality:
            meta["orthogonality"] = self.orthogonality
            meta["epsilon"] = max(meta["epsilon"], self.orthogonality)
        products, epochs, _ = self.checkpoint.counted
        return Spectrum.from_records(
            records, self.dim, zeros=self.zeros, atoms=atoms, removed=removed, products=products, epochs=epochs, meta=meta
        )  # fmt: skip
