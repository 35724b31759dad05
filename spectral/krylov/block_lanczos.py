"""Block Lanczos with full reorthogonalisation: A V = V T + P B, T symmetric, P the block to come, B its coupling.

Vectors stay in the operator's dtype on its device, as rows; T, B and every dot are float64. From b start vectors T is block
tridiagonal; after a thick restart it is diagonal with an arrow. Directions that vanish are dropped, so that the block narrows
by itself, and new ones may start beside locked vectors at any time.

Every product is held against those before it, from the dots that orthogonalise: along V it has the coupling of the last step,
and among the block it is symmetric. Ritz values of a semi-definite matrix are not negative. See `symmetry`.

Legend: n the dimension, j basis vectors of which l are locked, b vectors in a block. V (j, n), P (b, n), T (j, j), B (b, j).
Source: Golub, Underwood (1977); restart: Wu, Simon (2000); dropping: Freund (2000), Templates, section 7.10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from spectral import arrays
from spectral.krylov.lanczos import BREAKDOWN
from spectral.krylov.symmetry import AGAIN, expected, hold_size, hold_zero, look_again, repeated, wrong
from spectral.operators.operator import Operator

TINY = float(np.finfo(float).tiny)


# Verbs on rows of long vectors ------------------------------------------------------------------------------------------
def dots(V: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    """V W^T in float64, (j, n) and (b, n) to (j, b), a chunk of columns upcast at a time."""
    if V.dtype == torch.float64:
        return V @ W.T
    total = torch.zeros(len(V), len(W), dtype=torch.float64, device=V.device)
    width = max(1, arrays.CHUNK // max(1, len(V)))
    for s in range(0, V.shape[1], width):
        total += V[:, s : s + width].double() @ W[:, s : s + width].double().T
    return total


def lengths(W: torch.Tensor) -> np.ndarray:
    """The norm of each row, (b,), in float64."""
    return np.array([arrays.norm(w) for w in W])


def orthogonalise(W: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    """Subtract from the rows of W, in place, their part in the span of V's; returns the coefficients (j, b)."""
    total = torch.zeros(len(V), len(W), dtype=torch.float64, device=V.device)
    for _ in range(2):  # classical Gram-Schmidt, twice: Giraud, Langou (2003)
        C = dots(V, W)
        W.addmm_(C.T.to(W.dtype), V, alpha=-1)
        total += C
    return total


def rotate(V: torch.Tensor, S: np.ndarray) -> torch.Tensor:
    """S^T V, (j, n) and (j, k) with k <= j to (k, n), written over the first k rows of V."""
    R = torch.from_numpy(np.ascontiguousarray(S.T)).to(V)
    width = max(1, arrays.CHUNK // max(1, len(V)))
    for s in range(0, V.shape[1], width):
        V[: len(R), s : s + width] = R @ V[:, s : s + width]
    return V[: len(R)]


def independent(W: torch.Tensor, V: torch.Tensor, floor: float) -> tuple[torch.Tensor, np.ndarray]:
    """W = R^T Q for rows orthogonal to V's: (Q (r, n) orthonormal, R (r, b)); what is at most `floor` long is dropped.

    Gram-Schmidt with pivoting, overwrites W. A direction that comes out of a cancellation is orthogonalised again.
    """
    Q, R, left, r = W.new_empty(W.shape), np.zeros((len(W), len(W))), list(range(len(W))), 0
    while left:
        norms = lengths(W[left])
        i = left[int(norms.argmax())]
        length = float(norms.max())
        if length <= floor:
            break
        q = W[i : i + 1] / length
        kept = 0.0 if r else 1.0
        while kept < 0.5 and length > floor:
            orthogonalise(q, V)
            orthogonalise(q, Q[:r])
            kept = arrays.norm(q[0])
            length *= kept
            q /= max(kept, TINY)
        if length <= floor:
            left.remove(i)
            continue
        Q[r] = q[0]
        R[r, left] = dots(q, W[left])[0].cpu().numpy()
        left.remove(i)
        if left:
            W[left] = torch.addmm(W[left], torch.from_numpy(R[r : r + 1, left].T).to(W), q, alpha=-1)
        r += 1
    return Q[:r], R[:r]


# The record ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class BlockRecord:
    """T (k, k) of k products, block tridiagonal with blocks of `sizes`; `coupling` (b, k) to the block that would come next.

    No row of `coupling`: the subspace is invariant. `stop`: "steps" or "breakdown"; `dtype` is that of the products.
    """

    T: np.ndarray
    coupling: np.ndarray
    sizes: tuple[int, ...]
    dtype: str
    stop: str

    @property
    def steps(self) -> int:
        return len(self.sizes)

    @cached_property
    def eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values (k,), ascending, and eigenvectors (k, k), columns, of T."""
        values, vectors = np.linalg.eigh(self.T)
        values.flags.writeable = vectors.flags.writeable = False
        return values, vectors

    @property
    def residuals(self) -> np.ndarray:
        """||A y - theta y|| of every Ritz pair, (k,), as far as rounding allows: ||B s||."""
        return np.linalg.norm(self.coupling @ self.eigen[1], axis=0)


# The recurrence in flight -------------------------------------------------------------------------------------------------
class BlockLanczos:
    """`start` a block, `step` while `pending` has rows; `ritz`, `restart` and `lock` in between. Holds `capacity` vectors.

    The first `locked` basis vectors are Ritz vectors whose residual is forgotten: the recurrence goes on in their complement.
    """

    power = 1  # the recurrence is Lanczos on A ** 1

    def __init__(self, A: Operator, capacity: int) -> None:
        self.A, self.dim = A, A.shape[1]
        self.capacity = min(capacity, self.dim)
        self.V = torch.empty(self.capacity, self.dim, dtype=A.dtype, device=A.device)
        self.T = np.zeros((self.capacity, self.capacity))
        self.pending = self.V[:0]
        self.coupling = np.zeros((0, 0))
        self.size = self.locked = self.depth = 0
        self.sizes: list[int] = []
        self.norm = 0.0  # the largest row sum of |T| so far: what rounding is relative to
        self.allowed = expected(A)  # over the norm, what a product may be off before it is looked at again
        self.forgotten = 0.0  # the residuals of vectors when they were locked, together
        self.multiplying = False  # nothing changes while A multiplies: `state` is whole then, and between calls

    def state(self) -> dict[str, Any]:
        """All that the recurrence goes on from, views of its arrays."""
        j = self.size
        return {
            "V": self.V[:j], "T": self.T[:j, :j], "pending": self.pending, "coupling": self.coupling, "locked": self.locked,
            "depth": self.depth, "sizes": self.sizes, "norm": self.norm, "capacity": self.capacity,
            "forgotten": self.forgotten,
        }  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`, of a recurrence with the same operator and capacity."""
        j = self.size = len(state["V"])
        self.V[:j], self.T[:j, :j] = state["V"], state["T"]
        self.pending, self.coupling = state["pending"], state["coupling"]
        self.locked, self.depth = state["locked"], state["depth"]
        self.sizes, self.norm, self.forgotten = list(state["sizes"]), state["norm"], state["forgotten"]

    @property
    def multiplied(self) -> Operator:
        """The operator whose products make the recurrence."""
        return self.A

    def known_product(self, c: np.ndarray) -> tuple[torch.Tensor, Callable[[torch.Tensor], float]] | None:
        """V^T c for numbers c (j,), and how far a vector is from its product, V^T T c + P^T B c; None of an empty basis."""
        if self.size == 0:
            return None
        V = self.V[: self.size]
        x, images = (torch.from_numpy(np.ascontiguousarray(v)).to(V) for v in (c, self.T[: self.size, : self.size] @ c))
        expected = V.T @ images + self.pending.T @ torch.from_numpy(self.coupling @ c).to(V)
        return V.T @ x, lambda y: arrays.norm(y - expected)

    @property
    def floor(self) -> float:
        """What is not longer than this is rounding."""
        return BREAKDOWN * arrays.machine_epsilon(self.A.dtype) * self.norm

    def start(self, block: torch.Tensor) -> None:
        """Go on from the part of `block` (b, n) that is orthogonal to the basis; of a full space nothing is left."""
        W, V = block.clone(), self.V[: self.size]
        scale = float(lengths(W).max(initial=0.0))
        if not np.isfinite(scale) or scale <= 0:
            raise ValueError(f"the start block has length {scale}; use finite vectors that are not zero.")
        orthogonalise(W, V)
        floor = BREAKDOWN * arrays.machine_epsilon(W.dtype) * scale
        self.pending = independent(W, V, floor)[0][: self.dim - self.size]
        self.coupling = np.zeros((len(self.pending), self.size))
        self.depth = 0

    def step(self) -> int:
        """Multiply the pending block: that many products."""
        P, j = self.pending, self.size
        b = len(P)
        self.multiplying = True
        W = (self.A @ P.T).T.clone(memory_format=torch.contiguous_format)  # perhaps a buffer of the operator
        self.multiplying = False
        if self.depth == 0 and b == 1 and not W.any():  # wider blocks meet each other
            hold_zero(self.A, P[0], f"the product in step {len(self.sizes) + 1} of block Lanczos")
        self.V[j : j + b] = P
        V = self.V[: j + b]
        C = orthogonalise(W, V).cpu().numpy()
        hold_size(W, float(np.abs(C).max()), f"the product after {j} basis vectors")
        self.T[j : j + b, :j] = self.coupling
        self.T[:j, j : j + b] = self.coupling.T
        self.T[j : j + b, j : j + b] = (C[j:] + C[j:].T) / 2
        self.norm = max(self.norm, float(np.abs(self.T[j : j + b, : j + b]).sum(1).max()))
        Q, R = independent(W, V, self.floor)
        self._hold_symmetric(C, max(self.norm, float(np.linalg.norm(R, axis=0).max(initial=0.0))))
        self.pending = Q[: self.dim - j - b]  # beyond n there is only rounding
        self.coupling = np.concatenate([np.zeros((len(self.pending), j)), R[: len(self.pending)]], axis=1)
        self.size, self.depth = j + b, self.depth + 1
        self.sizes.append(b)
        return b

    def _hold_symmetric(self, C: np.ndarray, scale: float) -> None:
        """V^T A P against the coupling, and P^T A P against its transpose: `C` (j + b, b) holds the coefficients of A P."""
        j = self.size
        due = np.concatenate([self.coupling.T, C[j:].T])
        row, column = np.unravel_index(int(np.abs(C - due).argmax()), C.shape)
        off = float(np.abs(C - due).max())
        if off <= self.allowed * scale + self.forgotten:
            return
        step = len(self.sizes) + 1
        names = f"the product in step {step} of block Lanczos", f"a product in step {step} or before of block Lanczos"
        look_again(
            self.A, self.V[row], self.V[j + column], float(C[row, column]), float(due[row, column]), names, scale
        )
        self.allowed = AGAIN * off / scale

    def _hold_definite(self, theta: float, s: np.ndarray) -> None:
        """The least Ritz value of a semi-definite matrix, with its coefficients s in the vectors that are not locked."""
        if not self.A.nonnegative or theta >= -self.allowed * self.norm:
            return
        V = self.V[self.locked : self.size]
        y = V.T @ torch.from_numpy(s).to(V)
        again = arrays.dot(y, repeated(self.A, y, "the product with a Ritz vector of block Lanczos"))
        if abs(again - theta) > self.allowed * self.norm:
            name = f"a product in the first {len(self.sizes)} steps of block Lanczos"
            raise wrong(name, f"they gave a semi-definite matrix the Ritz value {theta:.6g}", again)
        self.allowed = AGAIN * abs(theta) / self.norm

    @property
    def locked_values(self) -> np.ndarray:
        return np.diag(self.T)[: self.locked].copy()

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values (j - l,) of the vectors that are not locked, and ||A y - theta y|| as the recurrence knows it."""
        values, S = self._eigen()
        if len(values):
            self._hold_definite(float(values[0]), S[:, 0])
        return values, np.linalg.norm(self.coupling[:, self.locked :] @ S, axis=0)

    def _eigen(self) -> tuple[np.ndarray, np.ndarray]:
        return np.linalg.eigh(self.T[self.locked : self.size, self.locked : self.size])

    def restart_cost(self, kept: int) -> int:
        """Products that `restart` with `kept` pairs takes."""
        return 0

    def restart(self, chosen: Sequence[int]) -> None:
        """Thick restart: keep the locked vectors and the Ritz vectors `chosen`; the pending block stays."""
        values, S = self._eigen()
        coupling = self.coupling[:, self.locked :] @ S[:, chosen]
        self._keep(range(self.locked), values[chosen], S[:, chosen])
        self.coupling = np.concatenate([np.zeros((len(self.pending), self.locked)), coupling], axis=1)

    def lock(self, old: Sequence[int], chosen: Sequence[int]) -> None:
        """Keep the locked vectors `old` and the Ritz vectors `chosen`, all locked; forget the pending block."""
        values, S = self._eigen()
        residuals = np.linalg.norm(self.coupling[:, self.locked :] @ S[:, chosen], axis=0)
        self.forgotten = float(np.linalg.norm([self.forgotten, *residuals]))
        self._keep(old, values[chosen], S[:, chosen])
        self.locked, self.pending, self.coupling = self.size, self.V[:0], np.zeros((0, self.size))

    def _keep(self, old: Sequence[int], values: np.ndarray, S: np.ndarray) -> None:
        old = list(old)
        R = np.zeros((self.size, len(old) + len(values)))
        R[old, range(len(old))] = 1.0
        R[self.locked :, len(old) :] = S
        rotate(self.V[: self.size], R)
        diagonal = np.concatenate([self.locked_values[old], values])
        self.size = len(diagonal)
        self.T[...] = 0.0
        self.T[range(self.size), range(self.size)] = diagonal

    def record(self) -> BlockRecord:
        """What has been computed since the start."""
        j = self.size
        return BlockRecord(
            T=self.T[:j, :j].copy(),
            coupling=self.coupling.copy(),
            sizes=tuple(self.sizes),
            dtype=str(self.A.dtype).removeprefix("torch."),
            stop="steps" if len(self.pending) else "breakdown",
        )


def block_lanczos(A: Operator, start: torch.Tensor, steps: int) -> BlockRecord:
    """`steps` block Lanczos steps on symmetric A (n, n) from `start` (n, b): b products each, fewer where directions vanish.

    Memory: b (steps + 2) vectors of length n. An eigenvalue of multiplicity up to b comes with all its copies.
    ValueError: a start block that is zero or not finite, steps < 1. Source: Golub, Underwood (1977).

    >>> A = spectral.as_operator(np.diag([3.0, 3.0, 1.0]))
    >>> record = block_lanczos(A, torch.eye(3, dtype=torch.float64)[:, :2], steps=5)
    >>> record.stop, record.steps, record.eigen[0].tolist()
    ('breakdown', 1, [3.0, 3.0])
    """
    if steps < 1:
        raise ValueError(f"steps={steps} with dimension {A.shape[0]}; use at least 1.")
    if start.ndim != 2 or start.shape[0] != A.shape[1]:
        raise ValueError(f"the start block has shape {tuple(start.shape)}; use ({A.shape[1]}, b).")
    state = BlockLanczos(A, steps * start.shape[1])
    state.start(start.T)
    while len(state.pending) and len(state.sizes) < steps:
        state.step()
    return state.record()
