"""The search that top and svd share: pairs of a recurrence are locked until the k best are, and nothing better is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
import torch

from spectral import arrays, longvectors
from spectral.distributed import decided
from spectral.estimators.budget import Budget, vectors_that_fit
from spectral.estimators.checkpoint import Checkpoint
from spectral.estimators.shared_out import SharedOut
from spectral.krylov.block_lanczos import BlockLanczos
from spectral.krylov.restarted import RestartedKrylov
from spectral.operators.operator import Operator
from spectral.probes import check_seed
from spectral.schema import COUNT, NONNEGATIVE, Array, Fields, Flag, Law, Number, choice, integer, maybe, number
from spectral.threads import Weakly

KEYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "largest": lambda x: x,
    "smallest": lambda x: -x,
    "magnitude": np.abs,
}
FLOOR = 16.0  # times eps ||A||: no residual of products in that precision is asked to be smaller
LOOKS = 16  # products after those with `start`, about: an engine need not prepare for more
INNER = 0.25  # of the tolerance: the recurrence's own residual is brought there, so that the measured one has room
MISSED = 1e-4  # probability, for any matrix, that the bound for random starts rules out wrongly
# The same where `start` shows that the matrix has moved slowly: an earlier run has looked; four in a row miss with 1e-4.
MISSED_AGAIN = 0.1
SLOWLY = 0.05  # times ||A||: the residuals of `start` up to which it has
UNTOLD = 1e300  # what a product may be off, over ||A||, where that is not known
CLOSE = 10.0  # times the tolerance: residuals of `start` up to which each is made smaller by a step along itself
ROUNDS = 3  # of such steps, at most
POOR = 0.25  # times ||A||: the residual from which a vector of `start` tells nothing
MOST = 50.0  # times n: products after which a search with restarts has stalled, and ends incomplete
# Basis vectors beyond k, where memory allows: more of them save products where eigenvalues lie close at their end (a Hessian of
# 2 million parameters, k = 5: 594, 350, 317 and 314 with k + 7, 15, 31 and 128), and none on eigenvalues 1/i. But each product is
# orthogonalised against the basis at the memory's speed (the same runs: 61, 32, 43 and 62 s).
ROOM, SPARE = 128, 16
# where a vector is HEAVY
FEW, HEAVY = 7, arrays.HEAVY
EVERY = 32  # the small eigenproblem is solved each time the basis has grown by 1/EVERY
ANY = Number(finite=False)
NUMBERS = {  # of a search, as a checkpoint holds them
    "probes": COUNT, "lowest": ANY, "highest": ANY, "deepest": COUNT, "norm": NONNEGATIVE, "look": COUNT,
    "verdict": maybe(Flag()), "held": COUNT, "missed": NONNEGATIVE, "measured": maybe(Array("float64", "k", least=0)),
}  # fmt: skip


def saved(recurrence: type[RestartedKrylov]) -> Fields:
    """What a checkpoint of a search with this recurrence must hold: j vectors V, l of them locked."""
    whole = Law(
        "k locked vectors and no others where the search has ended",
        lambda f, s: (
            f["search"]["verdict"] is None or (f["search"]["verdict"] and s["k"] <= s["j"] == f["recurrence"]["locked"])
        ),
    )
    own = Fields(recurrence.rules(), laws=recurrence.laws)
    return Fields({"search": Fields(NUMBERS), "recurrence": own}, laws=(whole,))


def check(op: Operator, k: int, n: int, tol: float, which: str, keys: dict[str, Any]) -> None:
    """One sentence about whatever is wrong with the arguments."""
    integer(k, "k", "number of pairs")
    if k > n:
        raise ValueError(f"k={k} exceeds the dimension {n} of {op!r}; use k <= {n}.")
    number(tol, "tol", "residual relative to the norm", Number(least=0, below=1), "1e-8")
    choice(which, "which", keys)


def capacity(file: Checkpoint, op: Operator, sizes: dict[str, int], basis: int | None, extra: int, wanted: int) -> int:
    """Basis vectors to hold: those of an earlier session, `basis`, or `wanted`, as far as a quarter of the free memory holds
    them beside `extra`.

    It may have been chosen by the memory that was free then. `sizes` as of `bounds`, with k and block.
    """
    if file.state is not None:
        return int(file.state["recurrence"]["capacity"])
    if basis is not None:
        return sizes["most"]
    n, extra = op.shape[1], extra + sizes["block"]
    room = vectors_that_fit(op, n)
    if room - extra < sizes["least"]:
        raise ValueError(
            f"{sizes['k']} pairs need {sizes['least'] + extra} vectors of length {n} ({op.dtype}), and a quarter of the free "
            f"memory holds {room}; ask for fewer pairs, or say basis= yourself."
        )
    return min(room - extra, sizes["most"], max(wanted, sizes["least"]))


def beyond(k: int, size: int) -> int:
    """Basis vectors beyond k by default, each of so many bytes."""
    return FEW if size >= HEAVY else max(k, SPARE, min(ROOM, HEAVY // size))


def bounds(k: int, n: int, block: int, basis: int | None, few: bool = False) -> dict[str, int]:
    """The least and the most basis vectors that a search may hold; `few`: of heavy ones."""
    least = min(n, k + 3 * block + 1)
    if basis is None:
        basis = max(k + FEW if few else max(4 * k, k + ROOM), least)
    elif isinstance(basis, bool) or not isinstance(basis, int | np.integer):
        raise ValueError(
            f"basis={basis!r} is no number of vectors, which it is here; use a whole one, at least {least} (where a basis lies, "
            "such as 'host', is slq's to choose)."
        )
    elif basis < least:
        raise ValueError(f"basis={basis!r} is too small for {k} pairs in blocks of {block}; use at least {least}.")
    return {"least": int(least), "most": int(min(basis, n))}


class Search:
    """Lock pairs of a recurrence until the k best are locked and nothing better is left in their complement."""

    def __init__(
        self, state: RestartedKrylov, k: int, key: Callable[[np.ndarray], np.ndarray], tol: float, op: Operator, seed: int,
        block: int, file: Checkpoint, budget: Any,
    ) -> None:  # fmt: skip
        self.state, self.k, self.key, self.file = state, k, key, file
        self.tol = max(tol, FLOOR * arrays.machine_epsilon(op.dtype))
        self.op, self.seed, self.block = op, check_seed(seed), block
        self.probes = 0  # random directions so far
        self.lowest, self.highest = np.inf, -np.inf  # Ritz values since the last of them, to the recurrence's power
        self.deepest = 0  # steps from it until the first restart
        self.norm = 0.0  # the largest |theta| so far
        self.look = 0  # size of the basis at the next look at its Ritz values; 0: random directions are due
        self.verdict: bool | None = None  # whether nothing better is left; None while it is not known
        self.reserve = 0  # products that stay unspent
        self.warm = False  # whether the run begins with vectors of an earlier one
        self.missed = MISSED  # the chance that something better is ruled out wrongly
        self.held = 0  # of its pairs, those that were still within the tolerance
        self.measured: np.ndarray | None = None  # (k,) residuals of the first k vectors, where `start` has told them
        Budget(budget, op, file.before).announce(2 * (state.capacity + k))
        if file.state is not None:
            self._resume(file.state)
        self.limit = Budget(budget, op, file.before)  # the product that proved a checkpoint is none of the run's

    def _current(self) -> dict[str, Any]:
        return {"search": {name: getattr(self, name) for name in NUMBERS}, "recurrence": self.state.state()}

    def _resume(self, saved: dict[str, Any]) -> None:
        for name in NUMBERS:
            setattr(self, name, saved["search"][name])
        self.state.resume(saved["recurrence"])
        if known := self.state.known_product():
            slack = self.tol * known.scale * math.sqrt(self.state.locked)  # the residuals of locked pairs are forgotten
            self.file.prove(known, self.state.A, slack)

    def find(self, reserve: int, bar: Any, begin: torch.Tensor | None = None) -> bool:
        """Leave the k best pairs in `state`, locked; `reserve` products stay unspent. Whether nothing better is left.

        `begin` (j, n) are orthonormal vectors of an earlier run, with which this one begins.
        """
        self.reserve, self.bar, self.warm = reserve, bar, begin is not None
        least = (self.k + self.block - 1) * self.state.power + reserve + (0 if begin is None else len(begin))
        if self.limit.products < least:
            raise ValueError(
                f"a budget of {self.limit.products:g} products does not give {self.k} pairs; use at least {least}."
            )
        if begin is not None and self.file.state is None:
            self.limit.announce(len(begin) + LOOKS)
            self._begin(begin)
        with self.file.guard(Weakly(self._current), lambda: self.state.multiplying):
            while self.verdict is None:
                if not self.look:
                    self._start()
                    self.look = self.state.size + 1
                if len(self.state.pending):
                    self.verdict = self._explore()
                elif self.state.size == self.state.dim:
                    self.verdict = True  # the locked vectors span the whole space
                self.look = 0
            if self.verdict:
                self.file.stepped(end=True)
        return self.verdict

    def _begin(self, begin: torch.Tensor) -> None:
        """Lock the Ritz pairs of `begin` that are among its k best and have converged; what is left of these comes next.

        Where little is missing, each of them by a step along its own residual, which is mostly what is multiplied by the least
        eigenvalues; all residuals are then known. Else from their sum: one direction has a part on each of them, and its Krylov
        space finds them together; a block would find them one by one.
        """
        state = self.state
        state.start(begin)
        # near the null space products are rounding, and nothing is known yet of ||A||: they are held to those that follow
        allowed, state.allowed = state.allowed, UNTOLD
        self.bar.update(state.step())
        state.allowed = allowed
        values, S, residuals = state.pairs()
        _, new = self._best(values)
        residuals, threshold = residuals[new], self.tol * self.norm
        good = residuals <= threshold
        self.held = int(good.sum())
        if len(new) == self.k and (residuals <= SLOWLY * self.norm).all():
            self.missed = MISSED_AGAIN
            if (residuals <= CLOSE * threshold).all() and isinstance(state, BlockLanczos):
                return self._refine(state, S[:, new], new, residuals, threshold)
        near = ~good & (residuals <= POOR * self.norm)
        rest = longvectors.combination(S[:, new[near]].sum(1), state.V[: state.size])
        state.lock([], new[good])
        return self._follow(rest) if near.any() else None

    def _refine(
        self, state: BlockLanczos, S: np.ndarray, new: np.ndarray, residuals: np.ndarray, threshold: float
    ) -> None:
        """Steps along the residuals of those of k pairs that are above the threshold."""
        rest = longvectors.combination((state.coupling @ S).T, state.pending)
        state.lock([], new)
        for _ in range(ROUNDS):
            bad = np.flatnonzero(residuals > threshold)
            if not len(bad) or self.exhausted(len(bad)) or state.size + len(bad) > state.capacity:
                break
            rest = state.refine(rest, bad, lambda theta: np.argsort(-self.key(theta), kind="stable")[: self.k])
            self.bar.update(len(bad))
            residuals = longvectors.norms(rest)
        good = residuals <= threshold
        if good.all():
            self.measured = residuals
            self.verdict = True if state.locked == state.dim else None
        else:
            direction = longvectors.combination(1.0 * ~good, state.V[: state.size])
            state.lock(np.flatnonzero(good), np.zeros(0, int))
            self._follow(direction)

    def _follow(self, direction: torch.Tensor) -> None:
        self.state.start(direction[None])
        self.look = self.state.size + 1

    def _start(self) -> None:
        """Fresh random directions in the complement of what is locked."""
        indices = range(self.probes, self.probes + min(self.block, self.state.capacity - self.state.locked))
        self.probes = indices.stop
        self.state.start(torch.stack([self.state.A.probe(self.seed, i) for i in indices]))
        self.lowest, self.highest, self.deepest = np.inf, -np.inf, 0

    def told(self, values: np.ndarray, residuals: np.ndarray, complete: bool) -> dict[str, Any]:
        """What a result says beside its vectors."""
        if isinstance(self.op, SharedOut):
            self.op.tally()
        threshold = self.tol * max(self.norm, float(np.abs(values).max()))
        return {
            "values": values,
            "residuals": residuals,
            "converged": residuals <= threshold,
            "threshold": threshold,
            "complete": complete,
            "products": self.file.spent.products,
            "epochs": self.file.spent.epochs,
        }

    def exhausted(self, more: int) -> bool:
        """Whether `more` products, and the reserve after them, would exceed the budget; or the search has stalled."""
        more += self.reserve
        return (
            self.limit.exhausted(max(more, 1))
            or self.limit.spent.products > MOST * self.state.dim
            or (self.limit.seconds < np.inf and self.limit.left() < more)
        )

    def _explore(self) -> bool | None:
        """Follow the pending directions. None: pairs were locked, look again; True: nothing is left; False: budget."""
        state, k = self.state, self.k
        seen = state.locked >= k  # the wanted number is there: is anything better left?
        while True:
            cost = len(state.pending) * state.power
            spent = self.exhausted(cost) and state.size >= k
            full = state.size + len(state.pending) > state.capacity
            if len(state.pending) and not (spent or full or state.size >= self.look):
                self.bar.update(state.step())
                self.file.stepped()
                continue
            self.look = state.size + 1 + state.size // EVERY
            values, residuals = state.ritz()
            old, new = self._best(values)
            invariant = not len(state.pending)
            if seen:
                worst = float(self.key(state.locked_values).min())
                new = new[self.key(values[new]) > worst + self.tol * self.norm]
                old = np.argsort(-self.key(state.locked_values), kind="stable")[: k - len(new)]
            settled = bool((residuals[new] <= INNER * self.tol * self.norm).all())
            enough = state.locked + len(values) >= k
            if len(new):
                self.measured = None
            if invariant or (enough and settled and (len(new) or not seen)):
                whole = state.size == state.dim and enough
                nothing = seen and not len(new)
                hidden = state.coarse and bool(values.any()) and not whole
                state.lock(old, new)
                return not hidden if whole or nothing else None
            if seen and not len(new) and decided(self.op, self._ruled_out(values, residuals, worst)):
                state.lock(old, new)
                return True
            if spent:
                return self._give_up(old, new)
            if full:
                null = new[residuals[new] <= INNER * self.tol * self.norm]
                null = null[values[null] <= (self.tol * self.norm if state.power == 2 else -np.inf)]
                if len(null) and not self.exhausted(cost + k * state.power):
                    state.lock(old, null)  # a restart would make their left vectors from K v, which is rounding
                    return None
                pairs = self._restarted(len(new))
                if self.exhausted(cost + state.restart_cost(pairs)):
                    return self._give_up(old, new)
                self.deepest = self.deepest or state.depth
                state.restart(np.argsort(-self.key(values), kind="stable")[:pairs])
                self.bar.update(state.restart_cost(pairs))
                self.look = state.size + 1
                self.file.stepped()

    def _give_up(self, old: np.ndarray, new: np.ndarray) -> bool:
        """Lock what there is; the checkpoint keeps the search as it was, for a larger budget."""
        self.file.stepped(end=True)
        self.state.lock(old, new)
        return False

    def _best(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(locked, other) indices of the k best Ritz values of both kinds."""
        l = self.state.locked
        pool = np.concatenate([self.state.locked_values, values])
        self.norm = max(self.norm, float(np.abs(pool).max(initial=0.0)))
        best = np.argsort(-self.key(pool), kind="stable")[: self.k]
        return best[best < l], best[best >= l] - l

    def _restarted(self, wanted: int) -> int:
        """Pairs to keep in a thick restart: half of the room that the wanted ones leave, less where each costs a product."""
        wanted, room = max(1, wanted), self.state.capacity - self.state.locked
        more = (room - wanted) // 2 if self.state.restart_cost(1) == 0 else min((room - wanted) // 2, 8)
        return max(1, min(wanted + more, room - 2 * self.block))

    def _ruled_out(self, values: np.ndarray, residuals: np.ndarray, worst: float) -> bool:
        """Whether the complement, seen from a random start, holds nothing better than `worst`.

        After s steps from a random vector, theta_max >= lambda_max - e (lambda_max - lambda_min) with probability 1 - MISSED if
        e = (ln(1.648 sqrt(n) / MISSED) / (2 s - 1))^2; so at both ends, and the range is at most (range of theta) / (1 - 2 e).
        """
        state = self.state
        if not len(values):
            return False
        best = int(np.argmax(self.key(values)))
        logarithm = math.log(1.648 * math.sqrt(state.dim) / MISSED)
        deep = not state.coarse or logarithm**2 < 0.5 * (2 * state.depth - 1) ** 2  # as the bound must be
        if deep and residuals[best] <= INNER * self.tol * self.norm:
            return True
        if self.warm and self._unlikely(worst + self.tol * self.norm, values):
            return True
        squares = values**state.power
        self.lowest, self.highest = min(self.lowest, squares.min()), max(self.highest, squares.max())
        e = (logarithm / (2 * (self.deepest or state.depth) - 1)) ** 2
        if e >= 0.5:
            return False
        margin = e / (1 - 2 * e) * (self.highest - self.lowest)
        level = np.abs(worst) ** state.power * np.sign(worst)
        return bool(self.key(squares).max() + margin <= level)

    def _unlikely(self, level: float, values: np.ndarray) -> bool:
        """Whether the random direction has next to nothing left for an eigenvector whose key is above `level`.

        The mass that it has on what lies at x and beyond, outside its Ritz values, is at most the Christoffel function at x. A
        given eigenvector of N has a mass of the Beta law (1/2, (N - 1) / 2), drawn before the first step: whenever one looks, it
        is below a bound with no more than that bound's probability.
        """
        state, rest = self.state, self.state.dim - self.state.locked
        if rest < 2 or self.key(values).max() >= level:
            return False
        mass = sum(state.beyond(x) for x in {level, -level} if self.key(np.array(x)) == level)
        return bool(scipy.special.betainc(0.5, (rest - 1) / 2, min(mass, 1.0)) <= self.missed)
