"""The Lanczos recurrence: A Q = Q T + beta_k q_{k+1} e_k^T, T tridiagonal.

Vectors stay in the operator's dtype on its device; alphas, betas and every dot are float64. Without reorthogonalisation
four vectors of the operator's dimension n are held; with it the basis of k vectors as well. Vectors that are deflated (U,
orthonormal rows) are projected out of the start vector and of every product: the recurrence is that of (I - P) A (I - P).

Every product is held against those before: <q_{j-1}, A q_j> = beta_{j-1} = <A q_{j-1}, q_j>, at one dot a step; with the full
basis <q_i, A q_j> = 0 for all i < j - 1 too, from the dots that orthogonalise. Of a semi-definite matrix no Ritz value is
negative, which the pivots of T tell. A product that was wrong once (scaled, of other weights, with entries flipped or with
noise) shows in its own step or in the next; `symmetry` says what then happens and what cannot be seen. A recurrence of one step
shows nothing, and the last step only what its product has along the vectors that are held.

Sources: Saad (2011), Numerical Methods for Large Eigenvalue Problems, Alg. 6.15; twice is enough: Giraud, Langou (2003);
selective: Simon (1984), The Lanczos algorithm with partial reorthogonalization, eq. (20): |omega| stays below sqrt(eps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from spectral import arrays, distributed, longvectors
from spectral.compat import eigh_tridiagonal
from spectral.krylov import symmetry
from spectral.krylov.basis import Basis
from spectral.krylov.kernels import recurrences
from spectral.operators.linear_map import ROUNDING
from spectral.operators.operator import Operator
from spectral.schema import choice

BREAKDOWN = 16.0  # beta <= 16 eps ||T|| counts as 0: A q - alpha q of an exact eigenvector rounds to a few eps ||A||
# <q_{j-1}, q_i> and <q_j, q_i> as estimated, and whether the next vector is reorthogonalised too (Simon 1984, section 4)
Omega = tuple[np.ndarray, np.ndarray, bool]
MODES = (True, "selective", False)
NONE = np.zeros(0)  # nothing deflated


@dataclass(frozen=True, eq=False)
class LanczosRecord:
    """T of one start vector: `alphas` (k,), `betas` (k,) with the residual norm beta_k last (0 on an invariant subspace).

    `squared_norm` is that of the start vector, `stop` why the recurrence ended: "steps", "breakdown" (the subspace is
    invariant, so that the Gauss rule is exact), "budget" or "tolerance". `seed` and `index` name the probe (-1: a given
    start vector), `dtype` is that of the products, `reorthogonalized` (True, "selective", False) says how the basis was kept
    orthogonal. `known` (l,) are eigenvalues whose eigenvectors were deflated, `shares` (l,) what the start vector has on them:
    T then belongs to the rest of it, 1 - sum(shares).
    """

    alphas: np.ndarray
    betas: np.ndarray
    squared_norm: float
    dtype: str
    reorthogonalized: bool | str
    stop: str
    seed: int = -1
    index: int = -1
    known: np.ndarray = field(default_factory=lambda: NONE)
    shares: np.ndarray = field(default_factory=lambda: NONE)

    @property
    def steps(self) -> int:
        return len(self.alphas)

    @cached_property
    def eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (k,), ascending, and eigenvectors (k, k), columns, of T."""
        values, vectors = eigh_tridiagonal(self.alphas, self.betas[:-1])
        values.flags.writeable = vectors.flags.writeable = False
        return values, vectors

    @property
    def first_product(self) -> tuple[float, float, float]:
        """(<x, A x>, ||A x||^2, scale of their rounding) of the start vector x, of length 1."""
        square = float(np.square(self.alphas[0]) + np.square(self.betas[0]))
        return float(self.alphas[0]), square, math.sqrt(square)

    @cached_property
    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """`eigen` of T - alpha_1 I; solved again where the shift is so large that it would take digits from the differences."""
        shift = float(self.alphas[0])
        spread = np.abs(self.alphas - shift).max() + self.betas.max()
        if abs(shift) <= 8 * spread:
            return self.eigen[0] - shift, self.eigen[1]
        values, vectors = eigh_tridiagonal(self.alphas - shift, self.betas[:-1])
        return values, vectors


class Lanczos:
    """The recurrence at work: `step()` until it returns False, then `record()`.

    `now` = (j, q_{j-1}, q_j, omega) is where it stands after j steps, replaced whole, so that a step that is interrupted has not
    been made; with it go the first j `alphas` and `betas` and, where it is kept, the first j vectors of the basis.
    """

    whole = True  # in the midst of a step too

    def __init__(
        self,
        A: Operator,
        start: torch.Tensor,
        steps: int,
        *,
        reorthogonalize: bool | str = True,
        deflate: torch.Tensor | None = None,
        known: np.ndarray = NONE,
        overwrite: bool = False,
        place: str = "device",
    ) -> None:
        """`deflate`: orthonormal eigenvectors (l, n) with the eigenvalues `known` (l,). `place`: where the basis is kept.

        `overwrite`: q_{j+1} takes the memory of q_{j-1} and q_1 that of `start`, so that three vectors are held instead of four;
        for runs without a basis whose interrupted steps nobody goes on from.
        """
        choice(reorthogonalize, "reorthogonalize", MODES)
        self.A, self.reorthogonalize, self.known = A, reorthogonalize, np.asarray(known, dtype=float)
        self.overwrite = overwrite
        self.U = deflate if deflate is not None and len(deflate) else None
        self.rank = A.shape[1] - (0 if self.U is None else len(self.U))  # dimension of the space that is searched
        self.limit = min(int(steps), self.rank)
        self.squared_norm = longvectors.start_square(start)
        if self.limit < 1:
            raise ValueError(f"steps={steps} with dimension {self.rank}; both must be at least 1.")
        self.alphas: list[float] = []
        self.betas: list[float] = []
        norm, self.shares = math.sqrt(self.squared_norm), NONE
        if self.U is not None:
            self.shares = np.array([longvectors.dot(u, start) ** 2 for u in self.U]) / self.squared_norm
            start = self._project(self._project(start))
            norm = longvectors.norm(start)
        first = start.div_(norm) if overwrite else start / norm
        self.now: tuple[int, torch.Tensor | None, torch.Tensor, Omega] = (0, None, first, (NONE, np.ones(1), False))
        self.kept = Basis(first, self.limit, place) if reorthogonalize else None
        # a rounded basis does not tell how orthogonal the vectors are: their sum with random signs does
        self.sum = first.clone() if self.kept is not None and not self.kept.exact else None
        # the largest |<sum_{i < j} +-q_i, q_j>|, which is about the root of sum_{i < j} <q_i, q_j>^2
        self.orthogonality = 0.0
        self.pivots = symmetry.Pivots()
        self.allowed = symmetry.expected(A)  # over ||T||, what a product may be off before it is looked at again
        if self.kept is not None:
            self.allowed += self.kept.rounding
        self.carried = (1, 0.0)  # (j, what <A q_{j-1}, q_j> is beyond beta_{j-1}): q_j keeps what w had along q_{j-2}

    @property
    def q(self) -> torch.Tensor:
        """q_j, the vector that the next step multiplies."""
        return self.now[2]

    @property
    def steps(self) -> int:
        """j, the steps that have been made."""
        return self.now[0]

    @property
    def ended(self) -> bool:
        """Whether no step is left: the subspace is invariant, or the limit is reached."""
        return self.steps >= self.limit or (self.steps > 0 and self.betas[self.steps - 1] == 0)

    def combine(self, coefficients: np.ndarray) -> torch.Tensor:
        """coefficients (c, k) times the basis, which must be kept: (c, n)."""
        if self.kept is None:
            raise ValueError("no basis is kept; use reorthogonalize=True.")
        return self.kept.combine(coefficients)

    def step(self) -> bool:
        """One product; False when the recurrence has ended."""
        j, q_prev, q, omega = self.now
        del self.alphas[j:], self.betas[j:]
        if self.kept is not None:
            self.kept.keep(j, q)
        # perhaps a buffer of the operator, perhaps q itself: not ours to change unless it is new
        w = self.A.multiply(q[:, None])[:, 0]
        full, new = self.reorthogonalize is True, self.A.new_products
        size = max([0.0, *map(abs, self.alphas), *np.abs(self.known)])
        coupling = max([0.0, *self.betas])
        # an interrupted step, or an earlier session, has forgotten what is due
        due = np.array([self.carried[1]]) if j > 0 and not full and self.carried[0] == j else None
        if q_prev is None:
            across, w = 0.0, w if new else w.clone()
            alpha, updates = longvectors.dot(w, q), recurrences.updates(w, q)
        else:
            out = w if new else q_prev if self.overwrite else arrays.empty(tuple(w.shape), w)
            if out is q_prev and due is not None:  # it is there no longer afterwards
                found = np.array([longvectors.dot(q_prev, w) - self.betas[j - 1]])
                self._hold_symmetric(j, found, due, size + 2 * coupling)
                due = None
            updates = recurrences.updates(w, q, q_prev)
            inner, alpha = updates.lanczos_subtract(q_prev, q, w, out, self.betas[j - 1])
            across, w = 0.0 if full else inner - self.betas[j - 1], out
        # the projection last: -alpha q_j would make rounding in U grow by alpha / beta a step
        if self.U is None and not full:
            length = updates.lanczos_shorten(q, w, alpha)
        else:
            w, length = self._project(w.sub_(q, alpha=alpha)), None
        beta, omega, along = self._orthogonal(w, j, alpha, omega, length)
        symmetry.hold_size(w, math.hypot(alpha, beta), f"the product in step {j + 1}")
        scale = max(size, abs(alpha)) + coupling
        if j == 0 and alpha == beta == 0:
            symmetry.hold_zero(self.A, q, _name(j))
        elif full and j > 0:
            self._hold_symmetric(j, along[:j], np.zeros(j), scale + beta)
        elif due is not None:
            self._hold_symmetric(j, np.array([across]), due, scale + beta)
        if self.A.nonnegative:
            self._hold_definite(j, alpha, scale + beta)
        floor = BREAKDOWN * arrays.machine_epsilon(self.A.dtype) * scale
        if beta <= longvectors.NEAR * floor:
            beta = distributed.decided(self.A, beta)
        if beta <= floor:
            beta = 0.0  # the subspace is invariant
        if j + 1 == self.rank and self.reorthogonalize:
            beta = 0.0  # it is the whole space
        self.alphas.append(alpha)
        self.betas.append(beta)
        leaves = j > 0 and beta > 0 and not len(along)  # what w has along q_{j-1} is left in q_{j+1}
        self.carried = (j + 1, self.betas[j - 1] * across / beta if leaves else 0.0)
        self.now = (j + 1, q, w.div_(beta), omega) if beta > 0 else (j + 1, q_prev, q, omega)
        if self.sum is not None and beta > 0:
            self.orthogonality = max(self.orthogonality, abs(longvectors.dot(self.sum, w)))
            self.sum.add_(w, alpha=float(np.random.default_rng(j).choice([-1.0, 1.0])))
        return not self.ended

    def _hold_symmetric(self, j: int, found: np.ndarray, due: np.ndarray, scale: float) -> None:
        """<q_i, A q_j> against <A q_i, q_j> for i = j - len(found) ... j - 1, both less T_ij.

        Without full reorthogonalisation q_{j-1} and q_j are orthogonal to eps ||A|| / beta_{j-1}, and so much less is known.
        """
        worst = int(np.abs(found - due).argmax())
        i, off, amplified = j - len(due) + worst, abs(float(found[worst] - due[worst])), 1.0
        if self.reorthogonalize is not True:
            amplified += scale / self.betas[j - 1]
        if off <= self.allowed * scale * amplified:
            return
        entry = self.betas[j - 1] if i == j - 1 else 0.0
        q_i: Any = self.now[1]
        if self.kept is not None and (q_i is None or i < j - 1):
            q_i = self.kept.row(i)
        names = _name(j), _name(i)
        pair = entry + float(found[worst]), entry + float(due[worst])
        symmetry.look_again(self.A, q_i, self.q, *pair, names, scale * amplified)
        self.allowed = symmetry.AGAIN * off / (scale * amplified)

    def _hold_definite(self, j: int, alpha: float, scale: float) -> None:
        """No Ritz value of a semi-definite A below rounding: all pivots of T + allowed I are positive."""
        alphas, most = [*self.alphas, alpha], self.allowed * scale
        if self.pivots.positive(alphas, self.betas, most):
            return
        for step, q in ((j, self.q), (j - 1, self.now[1])):
            if q is not None:
                found = f"of a semi-definite matrix it gave <q, A q> = {alphas[step]:.6g} and a negative Ritz value"
                symmetry.hold_form(self.A, q, alphas[step], most, _name(step), found)
        # rounding: look again where it is larger still
        self.allowed, self.pivots = symmetry.AGAIN * self.allowed, symmetry.Pivots()
        if self.allowed < 1:
            self._hold_definite(j, alpha, scale)

    def state(self) -> dict[str, Any]:
        """All that the recurrence goes on from, views of its arrays; the basis as a list of its rows."""
        j, q_prev, q, (omega_prev, omega, again) = self.now
        return {
            "alphas": np.array(self.alphas[:j]), "betas": np.array(self.betas[:j]), "q_prev": q_prev, "q": q,
            "basis": longvectors.GrowingRows() if self.kept is None else longvectors.GrowingRows(self.kept.row, j),
            "omega_prev": omega_prev, "omega": omega, "again": again,
            "limit": self.limit, **({} if self.sum is None else {"sum": self.sum, "orthogonality": self.orthogonality}),
        }  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`, of a recurrence from the same start."""
        self.alphas, self.betas, self.limit = state["alphas"].tolist(), state["betas"].tolist(), state["limit"]
        omega = state["omega_prev"], state["omega"], state["again"]
        self.now = len(self.alphas), state["q_prev"], state["q"], omega
        if self.kept is not None:
            self.kept.most = self.limit
            self.sum, self.orthogonality = state.get("sum"), state.get("orthogonality", 0.0)
            for j, q in enumerate(state["basis"]):
                self.kept.keep(j, q)

    def _project(self, w: torch.Tensor) -> torch.Tensor:
        """w without its part in the deflated space."""
        return w if self.U is None else longvectors.without(w, self.U)

    def _orthogonal(
        self, w: torch.Tensor, j: int, alpha: float, before: Omega, length: float | None
    ) -> tuple[float, Omega, np.ndarray]:
        """Reorthogonalise w in place: (its norm, the inner products of the next step, what it had along each basis vector).

        `length`: its norm before, where that is known.
        """
        if self.kept is None:
            return longvectors.norm(w) if length is None else length, before, NONE
        omega, again = NONE, False
        if self.reorthogonalize == "selective":
            beta = longvectors.norm(w) if length is None else length
            eps = arrays.machine_epsilon(self.A.dtype)
            omega = self._estimate(j, alpha, beta, before)
            exceeds = bool(np.abs(omega[: j + 1]).max() > math.sqrt(eps))
            if not exceeds and not before[2]:
                return beta, (before[1], omega, False), NONE
            omega[: j + 1], again = eps, exceeds and not before[2]
        along = self.kept.orthogonalise(w, j + 1)
        return longvectors.norm(w), (before[1], omega, again), along

    def _estimate(self, j: int, alpha: float, beta: float, before: Omega) -> np.ndarray:
        """omega_{j+1, i} ~ <q_{j+1}, q_i> for i = 0 .. j + 1, from the recurrence that they obey (Simon 1984, eq. 20)."""
        older, last, _ = before
        eps = arrays.machine_epsilon(self.A.dtype)
        omega = np.ones(j + 2)
        omega[j] = eps * math.sqrt(self.A.shape[1])
        if j > 0 and beta > 0:
            a, b, i = np.array(self.alphas), np.array(self.betas), np.arange(j)
            value = b[i] * last[i + 1] + (a[i] - alpha) * last[i] - b[j - 1] * older[i]
            value[1:] += b[i[1:] - 1] * last[i[1:] - 1]
            coarse = self.A.product_error > ROUNDING * eps  # products in another dtype than vectors
            rounding = (self.A.product_error if coarse else eps) * (b[i] + beta + 2 * abs(alpha))
            omega[:j] = (value + np.where(value >= 0, rounding, -rounding)) / beta
        return omega

    def record(self, *, seed: int = -1, index: int = -1, stop: str | None = None) -> LanczosRecord:
        """What has been computed so far."""
        return LanczosRecord(
            alphas=np.array(self.alphas[: self.steps]),
            betas=np.array(self.betas[: self.steps]),
            squared_norm=self.squared_norm,
            dtype=arrays.dtype_name(self.A.dtype),
            reorthogonalized=self.reorthogonalize,
            stop=stop or ("breakdown" if self.steps and self.betas[self.steps - 1] == 0 else "steps"),
            seed=seed,
            index=index,
            known=self.known,
            shares=self.shares,
        )


def _name(j: int) -> str:
    return f"the product in step {j + 1} of Lanczos"


def lanczos(A: Operator, start: torch.Tensor, steps: int, *, reorthogonalize: bool | str = True) -> LanczosRecord:
    """`steps` Lanczos steps on symmetric A (n, n) from `start` (n,): one product each, at most n of them.

    >>> A = spectral.as_operator(np.diag([1.0, 2.0, 4.0]))
    >>> record = lanczos(A, torch.ones(3, dtype=torch.float64), steps=10)
    >>> record.stop, record.steps, round(float(record.alphas[0]), 12)
    ('breakdown', 3, 2.333333333333)
    """
    state = Lanczos(A, start, steps, reorthogonalize=reorthogonalize)
    while state.step():
        pass
    return state.record()
