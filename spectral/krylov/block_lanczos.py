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

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch

from spectral import longvectors
from spectral.krylov.restarted import Indices, Pairs, RestartedKrylov
from spectral.krylov.symmetry import AGAIN, distance, hold_form, hold_size, hold_zero, look_again
from spectral.operators.operator import Operator
from spectral.schema import Array, Items, Law, Number, Rule


class BlockLanczos(RestartedKrylov):
    """The recurrence at work: H is T, and `coupling` (b, j) the B of A V = V T + P B.

    An eigenvalue of multiplicity up to b comes with all its copies. A residual is ||A y - theta y|| = ||B s||.

    >>> lanczos = BlockLanczos(spectral.as_operator(np.diag([3.0, 3.0, 1.0])), capacity=3)
    >>> lanczos.start(torch.eye(3, dtype=torch.float64)[:2])
    >>> lanczos.step(), lanczos.ritz()[0].tolist(), len(lanczos.pending)     # the subspace is invariant
    (2, [3.0, 3.0], 0)
    """

    power = 1
    own: ClassVar[dict[str, Rule]] = {"coupling": Array("float64", "b", "j"), "sizes": Items(Number(True, least=1))}
    laws: ClassVar[tuple[Law, ...]] = (
        *RestartedKrylov.laws,
        Law("a symmetric T", lambda f, s: np.array_equal(f["H"], f["H"].T)),
    )

    def __init__(self, A: Operator, capacity: int) -> None:
        self.sizes: list[int] = []  # of the blocks that were multiplied
        super().__init__(A, capacity)

    def _uncouple(self) -> None:
        self.coupling = np.zeros((len(self.pending), self.size))

    def _image(self, c: np.ndarray) -> Callable[[torch.Tensor], float]:
        """The product is V^T T c + P^T B c."""
        V, T = self.V[: self.size], self.H[: self.size, : self.size]
        return distance(longvectors.combination(T @ c, V) + longvectors.combination(self.coupling @ c, self.pending))

    def step(self) -> int:
        """Multiply the pending block: that many products."""
        P, j = self.pending, self.size
        b = len(P)
        self.multiplying = True
        W = (self.A @ P.T).T.clone(memory_format=torch.contiguous_format)  # perhaps a buffer of the operator
        self.multiplying = False
        if self.depth == 0 and b == 1 and longvectors.largest(W) == 0:  # wider blocks meet each other
            hold_zero(self.A, P[0], f"the product in step {len(self.sizes) + 1} of block Lanczos")
        self.V[j : j + b] = P
        V, H = self.V[: j + b], self.H
        C = longvectors.orthogonalise(W, V, recent=b + (self.sizes[-1] if self.sizes else 0)).cpu().numpy()
        hold_size(W, float(np.abs(C).max()), f"the product after {j} basis vectors")
        H[j : j + b, :j] = self.coupling
        H[:j, j : j + b] = self.coupling.T
        H[j : j + b, j : j + b] = (C[j:] + C[j:].T) / 2
        self.norm = max(self.norm, float(np.abs(H[j : j + b, : j + b]).sum(1).max()))
        l = self.locked  # what these are coupled by was forgotten, and is seen here
        H[:l, j : j + b], H[j : j + b, :l] = C[:l], C[:l].T
        Q, R = longvectors.independent(W, V, 0.0 if self.coarse else self.floor, self.agree, again=self.coarse)
        self._hold_symmetric(C, max(self.norm, float(np.linalg.norm(R, axis=0).max(initial=0.0))))
        self.pending = Q[: self.dim - j - b]  # beyond n there is only rounding
        self.coupling = np.concatenate([np.zeros((len(self.pending), j)), R[: len(self.pending)]], axis=1)
        self.size, self.depth = j + b, self.depth + 1
        self.sizes = [*self.sizes, b]
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
        y, name = longvectors.combination(s, V), "the product with a Ritz vector of block Lanczos"
        source = f"a product in the first {len(self.sizes)} steps of block Lanczos"
        found = f"they gave a semi-definite matrix the Ritz value {theta:.6g}"
        hold_form(self.A, y, theta, self.allowed * self.norm, name, found, source)
        self.allowed = AGAIN * abs(theta) / self.norm

    def _pairs(self) -> Pairs:
        values, S = np.linalg.eigh(self.unlocked)
        return values, S, np.linalg.norm(self.coupling[:, self.locked :] @ S, axis=0)

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values (j - l,) of the vectors that are not locked, and ||A y - theta y|| as the recurrence knows it."""
        values, S, residuals = self.pairs()
        if len(values):
            self._hold_definite(float(values[0]), S[:, 0])
        return values, residuals

    def beyond(self, x: float) -> float:
        """The most of a single start vector's squared length, over all, that lies at x and beyond, x outside the Ritz values.

        The Christoffel function 1 / sum_i p_i(x)^2, i = 0, ..., s, after s steps; 1 where a block was started, or restarted.
        """
        if self.depth != self.size - self.locked or len(self.coupling) != 1:
            return 1.0
        theta, S = np.linalg.eigh(self.unlocked)
        b = self.coupling[0, self.locked :] @ S
        u = 1 / (theta - x)
        return float((u @ (S[0] * b)) ** 2 / (1 + (u * u) @ (b * b)))

    def refine(self, rest: torch.Tensor, along: Indices, best: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
        """One block step along some rows of `rest` (l, n), A X - X Theta of the locked X; the l `best` pairs are then locked.

        Returns A Y - Y Theta of these, Y = X a + W c: rest a - W D^T a + P B (a, c), D what X and the block W are coupled by.
        """
        l = self.locked
        self.start(torch.stack([rest[i] for i in along]))
        self.step()
        j, H = self.size, self.H
        values, S = np.linalg.eigh(H[:j, :j])
        S = S[:, best(values)]
        C = np.concatenate([S[:l], -H[l:j, :l] @ S[:l], self.coupling @ S])
        rest = longvectors.combination(C.T, torch.cat([rest, self.V[l:j], self.pending]))
        self.locked = 0  # what was locked is as the rest again
        self.lock([], best(values))
        self.forgotten = float(np.linalg.norm(longvectors.norms(rest)))
        return rest

    def restart(self, chosen: Indices) -> None:
        """Of the Ritz vectors `chosen`, T becomes diagonal, with an arrow once the pending block is multiplied."""
        values, S, _ = self.pairs()
        coupling = self.coupling[:, self.locked :] @ S[:, chosen]
        self._replace(range(self.locked), values[chosen], S[:, chosen])
        self.coupling = np.concatenate([np.zeros((len(self.pending), self.locked)), coupling], axis=1)
