"""Golub-Kahan-Lanczos bidiagonalisation: K V = U B and K^T U = V B^T + beta v e^T, B upper bidiagonal.

K is never squared, so that singular values are good to eps ||K||, not to sqrt(eps) ||K||. Only V, which a caller puts on the
short side, is kept and reorthogonalised; U then stays orthogonal as far as the singular values need it, and two vectors of
the long side are held. A thick restart makes the left vectors of the triplets that it keeps anew, one product each.

Every product is held against those before it: <u_{j-1}, K v_j> = beta_{j-1}, at one dot a step; <v_i, K^T u_j> = alpha_j for
i = j and 0 for i < j, from the dots that orthogonalise, as far as U is orthogonal: to eps ||K|| / min alpha. See `symmetry`.

Legend: K (m, n); j right vectors of which l are locked; V (j, n), U (j, m) as rows; B (j, j).
Source: Golub, Kahan (1965); one-sided: Simon, Zha (2000), backward stable: Barlow (2013); restart: Baglama, Reichel (2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from spectral import arrays
from spectral.krylov.block_lanczos import TINY, independent, orthogonalise, rotate
from spectral.krylov.lanczos import BREAKDOWN
from spectral.krylov.symmetry import AGAIN, expected, hold_size, hold_zero, look_again, repeated, wrong
from spectral.operators.operator import Operator


@dataclass(frozen=True, eq=False)
class BidiagonalRecord:
    """B of one start vector: `alphas` (k,) on the diagonal, `betas` (k,) above it with the residual norm beta_k last.

    `norm` is that of the start vector; `stop`: "steps" or "breakdown" (the singular values are then those of K on an invariant
    pair of subspaces, beta_k = 0); `dtype` is that of the products. 2k products made it, 2k - 1 where the last alpha is 0.
    """

    alphas: np.ndarray
    betas: np.ndarray
    norm: float
    dtype: str
    stop: str

    @property
    def steps(self) -> int:
        return len(self.alphas)

    @property
    def B(self) -> np.ndarray:
        """The upper bidiagonal matrix (k, k)."""
        return np.diag(self.alphas) + np.diag(self.betas[:-1], 1)

    @cached_property
    def triplets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(P (k, k), singular values (k,), descending, Q (k, k)) with B = P diag(values) Q^T."""
        P, values, Qt = np.linalg.svd(self.B)
        for array in (P, values, Qt):
            array.flags.writeable = False
        return P, values, Qt.T

    @property
    def residuals(self) -> np.ndarray:
        """||K^T u - sigma v|| of every triplet, (k,), as far as rounding allows: beta_k |p_k|."""
        return self.betas[-1] * np.abs(self.triplets[0][-1])


class GolubKahan:
    """`start` a vector, `step` while `pending` has a row; `ritz`, `restart` and `lock` in between, as `BlockLanczos`."""

    power = 2  # the recurrence is Lanczos on (K^T K) = sigma ** 2, without the square

    def __init__(self, K: Operator, capacity: int) -> None:
        self.K, self.Kt, self.dim = K, K.T, K.shape[1]
        self.capacity = min(capacity, self.dim)
        self.V = torch.empty(self.capacity, self.dim, dtype=K.dtype, device=K.device)
        self.B = np.zeros((self.capacity, self.capacity))
        self.pending = self.V[:0]
        self.beta = 0.0  # ||K^T u_j - alpha_j v_j - ...||, the coupling to the pending vector
        self.u: torch.Tensor | None = None  # u_j (m,)
        self.kept: torch.Tensor | None = None  # the left vectors (r, m) of a restart, until the next product
        self.size = self.locked = self.depth = 0
        self.norm = self.forgotten = 0.0  # the latter as in `BlockLanczos`, and:
        self.allowed = expected(K)
        self.least = np.inf  # alpha since the last start or restart: U is orthogonal to eps ||K|| over this
        self.multiplying = False  # as in `BlockLanczos`, during the first product of a step

    def state(self) -> dict[str, Any]:
        """All that the recurrence goes on from, views of its arrays."""
        j = self.size
        return {
            "V": self.V[:j], "B": self.B[:j, :j], "pending": self.pending, "beta": self.beta, "u": self.u, "kept": self.kept,
            "locked": self.locked, "depth": self.depth, "norm": self.norm, "capacity": self.capacity,
            "forgotten": self.forgotten,
        }  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`, of a recurrence with the same operator and capacity."""
        j = self.size = len(state["V"])
        self.V[:j], self.B[:j, :j] = state["V"], state["B"]
        self.pending, self.beta, self.u, self.kept = (state[name] for name in ("pending", "beta", "u", "kept"))
        self.locked, self.depth, self.norm = (state[name] for name in ("locked", "depth", "norm"))
        self.forgotten = state["forgotten"]
        alphas = np.diag(self.B)[self.locked : j]
        self.least = float(alphas.min(where=alphas > 0, initial=np.inf))

    @property
    def multiplied(self) -> Operator:
        """The operator whose products make the recurrence."""
        return self.K

    def known_product(self, c: np.ndarray) -> tuple[torch.Tensor, Callable[[torch.Tensor], float]] | None:
        """V^T c for numbers c (j,), and how far a vector is from its product U^T B c in length; None of an empty basis."""
        if self.size == 0:
            return None
        length = float(np.linalg.norm(self.B[: self.size, : self.size] @ c))
        x = self.V[: self.size].T @ torch.from_numpy(np.ascontiguousarray(c)).to(self.V)
        return x, lambda y: abs(arrays.norm(y) - length)

    @property
    def floor(self) -> float:
        """What is not longer than this is rounding."""
        return BREAKDOWN * arrays.machine_epsilon(self.K.dtype) * self.norm

    def start(self, block: torch.Tensor) -> None:
        """Go on from the part of `block` (1, n) that is orthogonal to the basis; of a full space nothing is left."""
        W, V = block.clone(), self.V[: self.size]
        scale = arrays.norm(W[0])
        if not np.isfinite(scale) or scale <= 0:
            raise ValueError(f"the start vector has length {scale}; use a finite vector that is not zero.")
        orthogonalise(W, V)
        floor = BREAKDOWN * arrays.machine_epsilon(W.dtype) * scale
        self.pending = independent(W, V, floor)[0][: self.dim - self.size]
        self.beta, self.u, self.kept, self.depth, self.least = 0.0, None, None, 0, np.inf

    def step(self) -> int:
        """One right and one left vector: two products."""
        v, j = self.pending[0], self.size
        self.multiplying = True
        w = (self.K @ v).clone()  # perhaps a buffer of the operator
        self.multiplying = False
        self.V[j] = v
        across = 0.0
        if self.u is not None:
            w.sub_(self.u, alpha=self.beta)  # K v_j = beta_{j-1} u_{j-1} + alpha_j u_j
            self.B[j - 1, j] = self.beta
            across = arrays.dot(self.u, w)
        elif self.kept is not None:
            row = self.locked + len(self.kept)
            self.B[self.locked : row, j] = orthogonalise(w[None], self.kept)[:, 0].cpu().numpy()
        alpha = arrays.norm(w)
        hold_size(w, alpha, f"the product K v after {j} basis vectors")
        self.norm = max(self.norm, float(np.hypot(alpha, np.linalg.norm(self.B[:j, j]))))
        if self.u is not None and abs(across) > self.allowed * self.norm + self.forgotten:
            names = _names("K v", "K^T u", j, j - 1)
            look_again(self.K, self.u, v, self.beta + across, self.beta, names, self.norm)
            self.allowed = AGAIN * abs(across) / self.norm
        self.pending, self.beta, self.u, self.kept = self.V[:0], 0.0, None, None
        self.size, self.depth = j + 1, self.depth + 1
        if alpha == 0 and self.depth == 1:
            hold_zero(self.K, v, _names("K v", "", j, j)[0])
        if alpha <= self.floor:  # K v_j lies in the span of the left vectors: invariant
            return 1
        self.B[j, j] = alpha
        u = w.div_(alpha)
        z = torch.sub(self.Kt @ u, v, alpha=alpha)
        along = orthogonalise(z[None], self.V[: j + 1])[:, 0].cpu().numpy()
        beta = arrays.norm(z)
        hold_size(z, math.hypot(alpha, beta), f"the product K^T u after {j} basis vectors")
        self.norm = max(self.norm, float(np.hypot(alpha, beta)))
        self._hold_transposed(along, u, alpha)
        if beta > self.floor and self.size < self.dim:
            self.beta, self.pending, self.u = beta, z.div_(beta)[None], u
        return 2

    def _hold_transposed(self, along: np.ndarray, u: torch.Tensor, alpha: float) -> None:
        """<v_i, K^T u_j> against <K v_i, u_j>, which is known for i = j; for i < j it is small as far as U is orthogonal."""
        self.least, j = min(self.least, alpha), self.size - 1
        amplified = np.full(j + 1, 1.0 + self.norm / self.least)
        amplified[j] = 1.0 + self.norm / alpha
        i = int((np.abs(along) / amplified).argmax())
        off = abs(float(along[i]))
        if off <= (self.allowed * self.norm + self.forgotten) * amplified[i]:
            return
        names = _names("K^T u", "K v", j, j)
        if i == j:
            look_again(self.Kt, self.V[j], u, alpha + float(along[j]), alpha, names, self.norm)
        else:
            again = arrays.dot(self.V[i], repeated(self.Kt, u, names[0]))
            if abs(again - along[i]) > off / 2:
                raise wrong(names[0], f"along an earlier vector it gave {along[i]:.6g}", again)
        self.allowed = AGAIN * off / (self.norm * amplified[i])

    def _hold_restarted(self, R: np.ndarray, kept: torch.Tensor, values: np.ndarray) -> None:
        """K V^T = (kept, as rows)^T R of singular vectors: orthogonal columns, as long as the singular values are."""
        table = np.abs(R.T @ R - np.diag(values**2))
        off = float(table.max(initial=0.0)) / max(self.norm, TINY)
        if off <= self.allowed * self.norm + self.forgotten:
            return
        name = f"a product K v of the restart after step {self.depth} of Golub-Kahan"
        for i in np.unravel_index(int(table.argmax()), table.shape):
            made = kept.T @ torch.from_numpy(R[:, i]).to(kept)
            if (far := arrays.norm(repeated(self.K, self.V[self.locked + i], name) - made)) > off / 4:
                raise wrong(name, f"it was {far:.6g} off", 0.0)
        self.allowed = AGAIN * off / self.norm

    @property
    def locked_values(self) -> np.ndarray:
        return np.diag(self.B)[: self.locked].copy()

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Singular values (j - l,) of the part that is not locked, and ||K^T u - sigma v|| as the recurrence knows it."""
        P, values, _ = self._svd()
        return values, self.beta * np.abs(P[-1:]).sum(0)  # of an empty basis, empty

    def _svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        P, values, Qt = np.linalg.svd(self.B[self.locked : self.size, self.locked : self.size])
        return P, values, Qt.T

    def restart_cost(self, kept: int) -> int:
        """Products that `restart` with `kept` triplets takes."""
        return kept

    def restart(self, chosen: Sequence[int]) -> None:
        """Thick restart: keep the locked vectors and the triplets `chosen`; the pending vector stays."""
        _, values, Q = self._svd()
        self._keep(range(self.locked), values[chosen], Q[:, chosen])
        l, j = self.locked, self.size
        W = (self.K @ self.V[l:j].T).T.clone(memory_format=torch.contiguous_format)
        self.u, self.least = None, np.inf
        self.kept, R = independent(W, W[:0], self.floor)
        self._hold_restarted(R, self.kept, values[chosen])
        self.B[l:j, l:j] = 0.0
        self.B[l : l + len(R), l:j] = R

    def lock(self, old: Sequence[int], chosen: Sequence[int]) -> None:
        """Keep the locked vectors `old` and the triplets `chosen`, all locked; forget the pending vector."""
        P, values, Q = self._svd()
        self.forgotten = float(np.linalg.norm([self.forgotten, *(self.beta * P[-1:, chosen].reshape(-1))]))
        self._keep(old, values[chosen], Q[:, chosen])
        self.locked, self.pending = self.size, self.V[:0]
        self.beta, self.u, self.kept = 0.0, None, None

    def _keep(self, old: Sequence[int], values: np.ndarray, S: np.ndarray) -> None:
        old = list(old)
        R = np.zeros((self.size, len(old) + len(values)))
        R[old, range(len(old))] = 1.0
        R[self.locked :, len(old) :] = S
        rotate(self.V[: self.size], R)
        diagonal = np.concatenate([self.locked_values[old], values])
        self.size = len(diagonal)
        self.B[...] = 0.0
        self.B[range(self.size), range(self.size)] = diagonal


def _names(now: str, before: str, j: int, i: int) -> tuple[str, str]:
    return f"the product {now} in step {j + 1} of Golub-Kahan", f"the product {before} in step {i + 1} of Golub-Kahan"


def golub_kahan(K: Operator, start: torch.Tensor, steps: int) -> BidiagonalRecord:
    """`steps` Golub-Kahan steps on K (m, n) from `start` (n,): two products each, at most n of them.

    Memory: `steps` vectors of length n, four of length m; pass K.T where m < n.
    ValueError: a start vector that is zero or not finite, steps < 1. Source: Golub, Kahan (1965).

    >>> K = spectral.as_operator(np.diag([3.0, 2.0, 0.0])[:, :2])
    >>> record = golub_kahan(K, torch.ones(2, dtype=torch.float64), steps=9)
    >>> record.stop, record.triplets[1].round(12).tolist()
    ('breakdown', [3.0, 2.0])
    """
    if steps < 1:
        raise ValueError(f"steps={steps} with dimension {K.shape[1]}; use at least 1.")
    state = GolubKahan(K, steps)
    state.start(start[None])
    betas = []
    while len(state.pending) and state.size < state.capacity:
        state.step()
        betas.append(state.beta)
    return BidiagonalRecord(
        alphas=np.diag(state.B)[: state.size].copy(),
        betas=np.array(betas),
        norm=arrays.norm(start),
        dtype=str(K.dtype).removeprefix("torch."),
        stop="steps" if len(state.pending) else "breakdown",
    )
