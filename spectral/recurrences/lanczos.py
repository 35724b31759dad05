"""The Lanczos recurrence: A Q = Q T + beta_k q_{k+1} e_k^T, T tridiagonal.

Vectors stay in the operator's dtype on its device; alphas, betas and every dot are float64. Without reorthogonalisation
four vectors of the operator's dimension n are held; with it the basis of k vectors as well.

Source: Saad (2011), Numerical Methods for Large Eigenvalue Problems, Alg. 6.15; twice is enough: Giraud, Langou (2003).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal

from spectral import arrays
from spectral.operators.base import Operator

BREAKDOWN = 16.0  # beta <= 16 eps ||T|| counts as 0: A q - alpha q of an exact eigenvector rounds to a few eps ||A||


@dataclass(frozen=True, eq=False)
class LanczosRecord:
    """T of one start vector: `alphas` (k,), `betas` (k,) with the residual norm beta_k last (0 on an invariant subspace).

    `squared_norm` is that of the start vector, `stop` why the recurrence ended: "steps", "breakdown" (the subspace is
    invariant, so that the Gauss rule is exact), "budget" or "tolerance". `seed` and `index` name the probe (-1: a given
    start vector), `dtype` is that of the products, `reorthogonalized` says whether the basis was kept orthogonal.
    """

    alphas: np.ndarray
    betas: np.ndarray
    squared_norm: float
    dtype: str
    reorthogonalized: bool
    stop: str
    seed: int = -1
    index: int = -1

    @property
    def steps(self) -> int:
        return len(self.alphas)

    @cached_property
    def eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (k,), ascending, and eigenvectors (k, k), columns, of T."""
        values, vectors = eigh_tridiagonal(self.alphas, self.betas[:-1])
        values.flags.writeable = vectors.flags.writeable = False
        return values, vectors


class Lanczos:
    """The recurrence in flight: `step()` until it returns False, then `record()`; `basis` (k, n) where it is kept."""

    def __init__(self, A: Operator, start: torch.Tensor, steps: int, *, reorthogonalize: bool = True) -> None:
        n = A.shape[1]
        self.A, self.limit, self.reorthogonalize = A, min(int(steps), n), reorthogonalize
        self.squared_norm = arrays.dot(start, start)
        if not math.isfinite(self.squared_norm) or self.squared_norm <= 0:
            raise ValueError(
                f"the start vector has squared norm {self.squared_norm}; use a finite vector that is not zero."
            )
        if self.limit < 1:
            raise ValueError(f"steps={steps} with dimension {n}; both must be at least 1.")
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.q = start / math.sqrt(self.squared_norm)
        self.q_prev: torch.Tensor | None = None
        self.stop = "steps"
        self.Q = self.q.new_empty(self.limit, n) if reorthogonalize else None

    @property
    def basis(self) -> torch.Tensor | None:
        """The orthonormal vectors q_1 .. q_k as rows, None without reorthogonalisation."""
        return None if self.Q is None else self.Q[: len(self.alphas)]

    def step(self) -> bool:
        """One product; False when the recurrence has ended."""
        j = len(self.alphas)
        if self.Q is not None:
            self.Q[j] = self.q
        w = self.A @ self.q  # perhaps a buffer of the operator, perhaps q itself: not ours to change
        w = (
            w.clone() if self.q_prev is None else torch.sub(w, self.q_prev, alpha=self.betas[-1])
        )  # A q_j - beta_{j-1} q_{j-1}
        alpha = arrays.dot(w, self.q)
        w = w.sub_(self.q, alpha=alpha)
        if self.Q is not None:
            for _ in range(2):  # classical Gram-Schmidt, twice
                w = w.sub_(self.Q[: j + 1].T @ (self.Q[: j + 1] @ w))
        beta = arrays.norm(w)
        if not math.isfinite(alpha) or not math.isfinite(beta):
            raise ValueError(
                f"the product in step {j + 1} holds NaN or infinity; check the operator with A.adjoint_error()."
            )
        self.alphas.append(alpha)
        scale = max(map(abs, self.alphas)) + max([0.0, *self.betas])
        if beta <= BREAKDOWN * arrays.machine_epsilon(self.A.dtype) * scale:
            self.betas.append(0.0)
            self.stop = "breakdown"
            return False
        if j + 1 == self.limit:
            if j + 1 == self.A.shape[1] and self.reorthogonalize:
                beta, self.stop = 0.0, "breakdown"  # the basis spans the whole space
            self.betas.append(beta)
            return False
        self.betas.append(beta)
        self.q_prev, self.q = self.q, w.div_(beta)
        return True

    def record(self, *, seed: int = -1, index: int = -1, stop: str | None = None) -> LanczosRecord:
        """What has been computed so far."""
        return LanczosRecord(
            alphas=np.array(self.alphas),
            betas=np.array(self.betas),
            squared_norm=self.squared_norm,
            dtype=str(self.A.dtype).removeprefix("torch."),
            reorthogonalized=self.reorthogonalize,
            stop=stop or self.stop,
            seed=seed,
            index=index,
        )


def lanczos(A: Operator, start: torch.Tensor, steps: int, *, reorthogonalize: bool = True) -> LanczosRecord:
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
