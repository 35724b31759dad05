"""What block Lanczos and Golub-Kahan share: a basis that restarts, locks what has converged and starts anew beside it.

Both follow A on an orthonormal basis V and keep its small projection H there: V^T A V = T of a symmetric A, U^T K V = B of a
rectangular one. The vectors that come next are `pending`. A thick restart keeps Ritz vectors and goes on from the same pending
vectors; locking keeps Ritz vectors for good and forgets how they were coupled: the recurrence goes on in their complement.

Legend: n the dimension, j basis vectors of which the first l are locked, b pending vectors. V (j, n) as rows, H (j, j).
Source: thick restarts: Wu, Simon (2000); Baglama, Reichel (2005); locking: Parlett (1980), section 5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from spectral import arrays, distributed, longvectors
from spectral.krylov.lanczos import BREAKDOWN
from spectral.krylov.symmetry import KnownProduct, expected, random_coefficients
from spectral.operators.operator import Operator
from spectral.schema import COUNT, NONNEGATIVE, Array, Law, Number, Rule

COARSE = 0.01  # chance, about, that a random vector has less on a given eigenvector than rounding: 16-bit dtypes

Indices = Sequence[int] | np.ndarray
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
T = TypeVar("T")


class RestartedKrylov(ABC):
    """`start` a block, `step` while `pending` has rows; `ritz`, `restart` and `lock` in between. Holds `capacity` vectors."""

    power: ClassVar[int]  # the recurrence is Lanczos on A ** power
    own: ClassVar[dict[str, Rule]]  # what the state of a recurrence has beside `SHARED`, attributes of it
    laws: ClassVar[tuple[Law, ...]] = (
        Law(
            "locked vectors among a basis that its capacity holds", lambda f, s: f["locked"] <= s["j"] <= f["capacity"]
        ),
        Law("at most as many directions as a block", lambda f, s: s["b"] <= s["block"]),
        Law("an orthonormal basis", lambda f, s: longvectors.orthonormal(torch.cat([f["V"], f["pending"]]))),
    )
    SHARED: ClassVar[dict[str, Rule]] = {
        "pending": Array("dtype", "b", "n"),
        "locked": COUNT,
        "depth": COUNT,
        "norm": NONNEGATIVE,
        "forgotten": NONNEGATIVE,
        "capacity": Number(True, least="least", most="most"),
    }

    def __init__(self, A: Operator, capacity: int) -> None:
        self.A, self.dim = A, A.shape[1]
        self.capacity = min(capacity, self.dim)
        self.V = A.empty(self.capacity)
        self.H = np.zeros((self.capacity, self.capacity))
        self.pending = self.V[:0]
        self.size = self.locked = self.depth = 0  # j, l, and steps since the last start
        self.norm = 0.0  # the largest row of |H| so far: what rounding is relative to
        self.allowed = expected(A)  # over the norm, what a product may be off before it is looked at again
        self.forgotten = 0.0  # the residuals of vectors when they were locked, together
        self.multiplying = False  # nothing changes while A multiplies: `state` is whole then, and between calls
        self._uncouple()

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """What a state must hold: j vectors V, b pending ones."""
        return {"V": Array("dtype", "j", "n"), "H": Array("float64", "j", "j"), **cls.SHARED, **cls.own}

    def state(self) -> dict[str, Any]:
        """All that the recurrence goes on from, views of its arrays."""
        j = self.size
        return {"V": self.V[:j], "H": self.H[:j, :j], **{k: getattr(self, k) for k in (*self.SHARED, *self.own)}}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`, of a recurrence with the same operator and capacity."""
        j = self.size = len(state["V"])
        self.V[:j], self.H[:j, :j] = state["V"], state["H"]
        for name in (*self.SHARED, *self.own):
            setattr(self, name, state[name])

    @property
    def coarse(self) -> bool:
        """Whether rounding may hide an eigenvector from a random vector: that nothing is left of a product shows little then."""
        return bool(BREAKDOWN * arrays.machine_epsilon(self.A.dtype) * self.dim**0.5 > COARSE)

    @property
    def floor(self) -> float:
        """What is not longer than this is rounding."""
        return BREAKDOWN * arrays.machine_epsilon(self.A.dtype) * self.norm

    @property
    def locked_values(self) -> np.ndarray:
        return np.diag(self.H)[: self.locked].copy()

    @property
    def unlocked(self) -> np.ndarray:
        """H of the vectors that are not locked."""
        return self.H[self.locked : self.size, self.locked : self.size]

    def start(self, block: torch.Tensor) -> None:
        """Go on from the part of `block` (b, n) that is orthogonal to the basis; of a full space nothing is left.

        However short that part is: where rounding is most of it, it is a direction in the complement like any other.
        """
        W, V = block.clone(), self.V[: self.size]
        scale = float(longvectors.norms(W).max(initial=0.0))
        if not np.isfinite(scale) or scale <= 0:
            name = "start vector has" if len(W) == 1 else "start block has"
            raise ValueError(f"the {name} length {scale}; use finite vectors that are not zero.")
        longvectors.orthogonalise(W, V)
        self.pending = longvectors.independent(W, V, 0.0, self.agree)[0][: self.dim - self.size]
        self.depth = 0
        self._uncouple()

    @abstractmethod
    def _uncouple(self) -> None:
        """Nothing couples the pending vectors to the basis."""

    @abstractmethod
    def step(self) -> int:
        """Multiply what is pending; the number of products."""

    def known_product(self) -> KnownProduct | None:
        """A random combination V^T c of the basis, and what H says of its product; None of an empty basis."""
        if self.size == 0:
            return None
        c = random_coefficients(self.size)
        x = longvectors.combination(c, self.V[: self.size])
        return KnownProduct(x, self._image(c), self.norm * max(float(np.linalg.norm(c)), 1.0))

    @abstractmethod
    def _image(self, c: np.ndarray) -> Callable[[torch.Tensor], float]:
        """How far a vector is from the product of V^T c, for numbers c (j,)."""

    def agree(self, numbers: T) -> T:
        """Those of the first rank: others may have rounded otherwise, and all must go on alike."""
        return distributed.decided(self.A, numbers)

    def pairs(self) -> Pairs:
        """Ritz values (j - l,) of what is not locked, coefficients (j - l, j - l) of their vectors in V, and residuals.

        All that a search decides follows from them, and the signs of vectors: of several ranks the first computes them.
        """
        pairs, self.norm = self.agree((self._pairs(), self.norm))
        return pairs

    @abstractmethod
    def _pairs(self) -> Pairs:
        """`pairs` by this rank's numbers."""

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values (j - l,) of what is not locked, and their residuals as the recurrence knows them."""
        values, _, residuals = self.pairs()
        return values, residuals

    def beyond(self, x: float) -> float:
        """At most so much of a single start vector's squared length, over all, lies at x and beyond; 1 where nothing is known."""
        return 1.0

    def restart_cost(self, count: int) -> int:
        """Products that `restart` with so many pairs takes."""
        return 0

    @abstractmethod
    def restart(self, chosen: Indices) -> None:
        """Thick restart: keep the locked vectors and the Ritz vectors `chosen`; what is pending stays."""

    def lock(self, old: Indices, chosen: Indices) -> None:
        """Keep the locked vectors `old` and the Ritz vectors `chosen`, all locked; forget what is pending."""
        values, S, residuals = self.pairs()
        self.forgotten = float(np.linalg.norm([self.forgotten, *residuals[chosen]]))
        self._replace(old, values[chosen], S[:, chosen])
        self.locked, self.pending = self.size, self.V[:0]
        self._uncouple()

    def _replace(self, old: Indices, values: np.ndarray, S: np.ndarray) -> None:
        """The basis becomes the locked vectors `old` and the combinations S of the others, H its `values`."""
        old = list(old)
        R = np.zeros((self.size, len(old) + len(values)))
        R[old, range(len(old))] = 1.0
        R[self.locked :, len(old) :] = S
        longvectors.rotate(self.V[: self.size], R)
        diagonal = np.concatenate([self.locked_values[old], values])
        self.size = len(diagonal)
        self.H[...] = 0.0
        self.H[range(self.size), range(self.size)] = diagonal
