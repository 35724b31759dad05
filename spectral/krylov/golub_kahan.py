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
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from spectral import longvectors
from spectral.krylov.restarted import Indices, Pairs, RestartedKrylov
from spectral.krylov.symmetry import AGAIN, hold_size, hold_zero, look_again, repeated, wrong
from spectral.operators.operator import Operator
from spectral.schema import Array, Law, Number, Rule, maybe


class GolubKahan(RestartedKrylov):
    """The recurrence at work: H is B, and `beta` couples the pending vector to the last left one, u (m,).

    `left` (r, m) are the left vectors of a restart, until the next product. With B = P diag(sigma) Q^T a residual is
    ||K^T u - sigma v|| = beta |p|, p in the last row of P. A step is two products, one where the last alpha is 0.

    >>> bidiagonal = GolubKahan(spectral.as_operator(np.diag([3.0, 2.0, 0.0])[:, :2]), capacity=2)
    >>> bidiagonal.start(torch.ones(1, 2, dtype=torch.float64))
    >>> bidiagonal.step(), bidiagonal.step(), bidiagonal.ritz()[0].round(12).tolist()
    (2, 2, [3.0, 2.0])
    """

    power = 2  # singular values converge as the eigenvalues sigma ** 2 of K^T K do, which is never formed
    own: ClassVar[dict[str, Rule]] = {
        "beta": Number(least=0),
        "u": maybe(Array("dtype", "m")),
        "left": maybe(Array("dtype", "r", "m")),
    }
    laws: ClassVar[tuple[Law, ...]] = (
        *RestartedKrylov.laws,
        Law("left vectors of length 1", lambda f, s: longvectors.of_length_1(f["u"], f["left"])),
        Law(
            "left vectors for what is not locked",
            lambda f, s: f["left"] is None or len(f["left"]) <= s["j"] - f["locked"],
        ),
    )

    def __init__(self, K: Operator, capacity: int) -> None:
        self.At = K.T
        super().__init__(K, capacity)

    def _uncouple(self) -> None:
        self.beta = 0.0  # ||K^T u_j - alpha_j v_j - ...||
        self.u: torch.Tensor | None = None
        self.left: torch.Tensor | None = None
        self.least = np.inf  # alpha since the last start or restart: U is orthogonal to eps ||K|| over this

    def resume(self, state: dict[str, Any]) -> None:
        super().resume(state)
        alphas = np.diag(self.unlocked)
        self.least = float(alphas.min(where=alphas > 0, initial=np.inf))

    def _image(self, c: np.ndarray) -> Callable[[torch.Tensor], float]:
        """The product is U^T B c, whose length is known."""
        length = float(np.linalg.norm(self.H[: self.size, : self.size] @ c))
        return lambda y: abs(longvectors.norm(y) - length)

    def step(self) -> int:
        """One right and one left vector: two products."""
        v, j = self.pending[0], self.size
        self.multiplying = True
        w = (self.A @ v).clone()  # perhaps a buffer of the operator
        self.multiplying = False
        self.V[j] = v
        across = 0.0
        if self.u is not None:
            w.sub_(self.u, alpha=self.beta)  # K v_j = beta_{j-1} u_{j-1} + alpha_j u_j
            self.H[j - 1, j] = self.beta
            across = longvectors.dot(self.u, w)
        elif self.left is not None:
            row = self.locked + len(self.left)
            self.H[self.locked : row, j] = longvectors.orthogonalise(w[None], self.left)[:, 0].cpu().numpy()
        alpha = self._near(longvectors.norm(w))
        hold_size(w, alpha, f"the product K v after {j} basis vectors")
        self.norm = max(self.norm, float(np.hypot(alpha, np.linalg.norm(self.H[:j, j]))))
        if self.u is not None and abs(across) > self.allowed * self.norm + self.forgotten:
            names = _names("K v", "K^T u", j, j - 1)
            look_again(self.A, self.u, v, self.beta + across, self.beta, names, self.norm)
            self.allowed = AGAIN * abs(across) / self.norm
        self.pending, self.beta, self.u, self.left = self.V[:0], 0.0, None, None
        self.size, self.depth = j + 1, self.depth + 1
        if alpha == 0 and self.depth == 1:
            hold_zero(self.A, v, _names("K v", "", j, j)[0])
        if alpha <= self.floor:  # K v_j lies in the span of the left vectors: invariant
            return 1
        self.H[j, j] = alpha
        u = w.div_(alpha)
        z = torch.sub(self.At @ u, v, alpha=alpha)
        along = longvectors.orthogonalise(z[None], self.V[: j + 1])[:, 0].cpu().numpy()
        beta = self._near(longvectors.norm(z))
        hold_size(z, math.hypot(alpha, beta), f"the product K^T u after {j} basis vectors")
        self.norm = max(self.norm, float(np.hypot(alpha, beta)))
        self._hold_transposed(along, u, alpha)
        if beta > self.floor and self.size < self.dim:
            self.beta, self.pending, self.u = beta, z.div_(beta)[None], u
        return 2

    def _near(self, length: float) -> float:
        """A length, where it may be rounding that of the first rank: whether a vector comes next hangs on it."""
        return length if length > longvectors.NEAR * self.floor else self.agree(length)

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
            look_again(self.At, self.V[j], u, alpha + float(along[j]), alpha, names, self.norm)
        else:
            again = longvectors.dot(self.V[i], repeated(self.At, u, names[0]))
            if abs(again - along[i]) > off / 2:
                raise wrong(names[0], f"along an earlier vector it gave {along[i]:.6g}", again)
        self.allowed = AGAIN * off / (self.norm * amplified[i])

    def _hold_restarted(self, R: np.ndarray, left: torch.Tensor, values: np.ndarray) -> None:
        """K V^T = left^T R of singular vectors: orthogonal columns, as long as the singular values are."""
        table = np.abs(R.T @ R - np.diag(values**2))
        off = float(table.max(initial=0.0)) / max(self.norm, longvectors.TINY)
        if off <= self.allowed * self.norm + self.forgotten:
            return
        name = f"a product K v of the restart after step {self.depth} of Golub-Kahan"
        for i in np.unravel_index(int(table.argmax()), table.shape):
            due = longvectors.combination(R[:, i], left)
            if (far := longvectors.norm(repeated(self.A, self.V[self.locked + i], name) - due)) > off / 4:
                raise wrong(name, f"it was {far:.6g} off", 0.0)
        self.allowed = AGAIN * off / self.norm

    def _pairs(self) -> Pairs:
        P, values, Qt = np.linalg.svd(self.unlocked)
        return values, Qt.T, self.beta * np.abs(P[-1:]).sum(0)  # of an empty basis, empty

    def restart_cost(self, count: int) -> int:
        """The left vectors are made anew, one product each."""
        return count

    def restart(self, chosen: Indices) -> None:
        """Of the triplets `chosen`, B becomes the factor R of their products."""
        values, S, _ = self.pairs()
        self._replace(range(self.locked), values[chosen], S[:, chosen])
        l, j = self.locked, self.size
        W = (self.A @ self.V[l:j].T).T.clone(memory_format=torch.contiguous_format)
        self.u, self.least = None, np.inf
        left, R = longvectors.independent(W, W[:0], self.floor, self.agree)
        self._hold_restarted(R, left, values[chosen])
        self.H[l:j, l:j] = 0.0
        self.H[l : l + len(R), l:j] = R
        self.left = left


def _names(now: str, before: str, j: int, i: int) -> tuple[str, str]:
    return f"the product {now} in step {j + 1} of Golub-Kahan", f"the product {before} in step {i + 1} of Golub-Kahan"
