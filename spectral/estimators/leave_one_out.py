"""Random vectors and what is made of their products: tests, the range of what was met, the error of exchangeable estimates.

Shapes: m vectors Omega (n, m), Y = A Omega, Q (n, k) orthonormal with the range of Y, Z = A Q. Blocks stay in the operator's
dtype on its device; every small matrix is summed in float64.

Of a symmetric A every product is held against another: <x, A y> = <A x, y>, from tables that the estimates need anyway, or at two
dots a product (`Neighbours`); see `spectral.krylov.symmetry`.

The error of an exchangeable estimate t = (e_1 + ... + e_m) / m, where e_i is unbiased given all vectors but omega_i: the e_i
are correlated, so that the published std(e) / sqrt(m) is too small, by up to 3 (seen). Let d_ij = e_i - e_i^(j) be the change
of e_i when omega_j takes part in its basis. Given all but omega_i, both versions of e_i have the mean tr A, and e_j^(i) does
not know omega_i: the products e_i^(j) e_j^(i), e_i^(j) d_ji and d_ij e_j^(i) of errors vanish in the mean, so that
Cov(e_i, e_j) = E d_ij d_ji without bias. The m (m - 1) numbers d_ij cost O(m^3) and no product:

    Var t = E [ s^2 / m + sum_{i != j} d_ij d_ji / (m (m - 1)) ],    s^2 the sample variance of the e_i.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import scipy
import torch

from spectral import arrays, longvectors
from spectral.krylov.symmetry import KnownProduct, distance, hold, hold_first, hold_size, random_coefficients
from spectral.longvectors import column_dots, combination, cross, orthonormal
from spectral.operators.operator import Operator
from spectral.pieces import like, local
from spectral.probes import Signs
from spectral.schema import NONNEGATIVE, Array, Fields, Law

SHARED, LIGHT = 8, 1 << 26  # vectors multiplied at a time, and bytes that they may take
RANK = 4.0  # a direction of Y within this many eps of its largest column is rounding
ALONE = 1e-6  # leverage 1 - ALONE: no other vector of Y reaches this one's direction
PARALLEL = 1e-12  # squared sine below which two directions are one
Products = tuple[torch.Tensor, torch.Tensor]  # vectors (n, b), and what came of them
Tables = tuple[np.ndarray, np.ndarray]
RANGE = Fields(  # of a checkpoint
    {"Q": Array("dtype", "n", "rank"), "Z": Array("dtype", "n", "rank"), "largest": NONNEGATIVE},
    laws=(Law("an orthonormal basis", lambda f, s: orthonormal(f["Q"].T)),),
)


def block_of(A: Operator) -> int:
    """Vectors multiplied at a time, by each team: sweeps are shared where vectors, of an operator's factors too, are light."""
    longest = max(max(leaf.shape) for leaf in A.sources)
    return A.teams * max(1, min(SHARED, LIGHT // (longest * A.dtype.itemsize)))


def draw(A: Operator, seed: int, indices: range, kind: str) -> torch.Tensor:
    """The probes of these indices as columns, (n, b); one alone is not copied."""
    drawn = [A.probe(seed, i, kind) for i in indices]
    return drawn[0][:, None] if len(drawn) == 1 else torch.stack(drawn, 1)


def multiply(A: Operator, V: torch.Tensor, first: bool = False) -> torch.Tensor:
    """A V, finite; of the `first` random vectors not lost among the numbers that the dtype does not hold."""
    W = A @ V
    hold_size(W, math.nan, f"a product of {A!r}")
    if first:
        hold_first(A, V, W, f"the first product of {A!r}")
    return W


def hold_products(A: Operator, x: Products, y: Products, tables: Tables, transposed: bool = False) -> None:
    """X^T (A Y) against (A X)^T Y of a symmetric A, both `tables` made already; any A where AX is A^T X (`transposed`)."""
    (X, AX), (Y, AY) = x, y
    if (A.symmetric or transposed) and tables[0].size:
        name = f"one of the first {Y.shape[1]} products"
        scale = float(max(column_dots(AX, AX).max(), column_dots(AY, AY).max())) ** 0.5
        hold(A, *tables, lambda i: X[:, i].contiguous(), lambda j: Y[:, j].contiguous(), scale, (name, name))


class Neighbours:
    """Holds each product of a symmetric A with signs to the one before, <x, A y> = <A x, y>; x waits in bits."""

    def __init__(self, A: Operator) -> None:
        self.A = A
        self.product: torch.Tensor | None = None
        self.signs: Signs | None = None
        self.due = 0.0

    def meet(self, z: torch.Tensor) -> None:
        """The next vector, before it is multiplied: the product before is needed no longer."""
        if self.product is not None:
            self.due, self.product = longvectors.dot(self.product.contiguous(), z.contiguous()), None

    def hold(self, Z: torch.Tensor, Y: torch.Tensor, scale: float) -> None:
        """The products of vectors (n, b), the first of which has been met; `scale` is the length of the longest."""
        if not self.A.symmetric:
            return
        names = "the product with a random vector", "the product with the random vector before"
        for z, y in zip(Z.T, Y.T, strict=True):
            self.meet(z)
            if self.signs is not None:
                x, now = self.signs, z.contiguous()
                tables = np.array([[longvectors.dot(y.contiguous(), x)]]), np.array([[self.due]])

                def before(_: int, x: Signs = x, now: torch.Tensor = now) -> torch.Tensor:
                    return like(x[:].to(now.dtype), now)

                hold(self.A, *tables, before, lambda _, now=now: now, scale, names)  # type: ignore[misc]
            self.signs, self.product = Signs.of(local(z)), y


def welford(
    mean: torch.Tensor,
    z: torch.Tensor,
    y: torch.Tensor,
    m: int,
    out: torch.Tensor,
    squares: torch.Tensor | None = None,
    unit: float = 1.0,
) -> float:
    """The mean of m samples z * y into `out`, from that of m - 1; returns what the m-th adds to their squared deviations.

    `out` may be `mean` or z; `squares` (n,), where they are given, grow by what it adds entry by entry, in squares
    of `unit`: a power of two near the entries, since their dtype may not hold the squares of what it holds.
    """
    scatter, whole = 0.0, mean
    mean, z, y, out = (local(x) for x in (mean, z, y, out))
    squares = None if squares is None else local(squares)
    for piece in longvectors.chunks(len(mean), 1, longvectors.chunk(mean.device)):
        sample = arrays.double(z[piece]) * arrays.double(y[piece])
        before = arrays.double(mean[piece])
        step = sample - before
        now = before + step / m
        out[piece] = now
        scatter += float(torch.dot(step, sample - now))
        if squares is not None and m > 1:  # the first adds 0
            squares[piece] = arrays.double(squares[piece]) + step / unit * ((sample - now) / unit)
    return longvectors.added(scatter, whole)


def two_numbers(z: torch.Tensor, along: float, length: float) -> KnownProduct:
    """A product A z of which <z, A z> and ||A z|| are known."""

    def differs(y: torch.Tensor) -> float:
        return max(abs(longvectors.dot(z, y) - along) / longvectors.norm(z), abs(longvectors.norm(y) - length))

    return KnownProduct(z, differs)


class Range:
    """An orthonormal basis Q (n, k) of the columns met so far, and Z = A Q (or A^T Q); nested: it only grows."""

    def __init__(self, A: Operator) -> None:
        self.A, self.Q, self.Z, self.largest = A, empty(A), empty(A), 0.0

    def state(self) -> dict[str, Any]:
        """See `RANGE`."""
        return {"Q": self.Q, "Z": self.Z, "largest": self.largest}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.Q, self.Z, self.largest = state["Q"], state["Z"], state["largest"]

    def extend(self, Y: torch.Tensor) -> None:
        """Add what the columns of Y reach beyond Q, as far as it is more than rounding, and multiply it."""
        self.largest = max(self.largest, float(column_dots(Y, Y).max()) ** 0.5)
        X = self._orthogonal(arrays.near(Y).to(torch.float64, copy=True))
        X, R = longvectors.qr(X)
        U, s, _ = torch.linalg.svd(R)
        X = X @ U[:, s > RANK * arrays.machine_epsilon(self.A.dtype) * self.largest]
        if X.shape[1] == 0:
            return
        # once more: a short direction is not yet orthogonal
        X = longvectors.qr(self._orthogonal(X))[0].to(Y)
        self.Q, self.Z = torch.cat([self.Q, X], 1), torch.cat([self.Z, multiply(self.A, X)], 1)

    def _orthogonal(self, X: torch.Tensor) -> torch.Tensor:
        """(I - Q Q^T) X, in place."""
        for _ in range(2):
            G = torch.from_numpy(cross(self.Q, X)).to(X)
            for rows in longvectors.chunks(len(X), X.shape[1], longvectors.chunk(X.device)):
                X[rows] -= arrays.double(self.Q[rows]) @ G
        return X


def directions(R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S (k, m), alone (m,)): s_i is the unit vector with s_i^T r_j = 0 for all j != i, 0 where there is none."""
    U, sigma, Vt = np.linalg.svd(R, full_matrices=False)
    held = sigma > 0
    S = (U[:, held] / sigma[held]) @ Vt[held]
    alone = (Vt[held] ** 2).sum(0) > 1 - ALONE
    return np.where(alone, S / np.maximum(np.linalg.norm(S, axis=0), 1e-300), 0.0), alone


def exchangeable_variance(e: np.ndarray, change: np.ndarray) -> float:
    """s^2 / m + the mean of d_ij d_ji over pairs; a negative covariance is noise of its estimate and counts as 0."""
    m = len(e)
    return float(e.var(ddof=1)) / m + max(0.0, float((change * change.T).sum()) / (m * (m - 1)))


def widening(m: int) -> float:
    """Student's 97.5 % quantile for m values over the normal one: +- 1.96 stderr is then a 95 % interval."""
    return float(scipy.special.stdtrit(m - 1, 0.975) / 1.959964)


def empty(A: Operator) -> torch.Tensor:
    return A.empty(0).T


def zeros(A: Operator) -> torch.Tensor:
    """A vector of zeros (n,), whose memory is taken after the first product has been tested."""
    made = A.empty()
    return like(arrays.zeros_like(local(made)), made)


def known_product(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> KnownProduct:
    """A random combination of all vectors in blocks (n, b), with the same one of their products."""
    ends = np.cumsum([0, *(V.shape[1] for V, _ in pairs)])
    c = random_coefficients(int(ends[-1]))
    parts = [(c[a:b], *pair) for (a, b), pair in zip(itertools.pairwise(ends), pairs, strict=True)]
    x = functools.reduce(torch.add, (combination(share, V.T) for share, V, _ in parts))
    y = functools.reduce(torch.add, (combination(share, W.T) for share, _, W in parts))
    return KnownProduct(x, distance(y))
