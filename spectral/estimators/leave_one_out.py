"""Random vectors that estimate tr A: what each method draws, keeps and computes.

Shapes: m vectors Omega (n, m), Y = A Omega, Q (n, k) orthonormal with the range of Y, Z = A Q. Blocks stay in the operator's
dtype on its device; every small matrix is summed in float64.

Of a symmetric A every product is held against another: <x, A y> = <A x, y>, from tables that the estimates need anyway, or at two
dots a product (`Hutchinson`); see `spectral.krylov.symmetry`.

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
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import scipy
import torch

from spectral import arrays, longvectors
from spectral.krylov.symmetry import KnownProduct, distance, hold, hold_size, leaves, random_coefficients
from spectral.longvectors import column_dots, combination, cross, orthonormal
from spectral.operators.operator import Operator
from spectral.pieces import local
from spectral.schema import COUNT, NONNEGATIVE, Array, Fields, Items, Law, Number, Rule, Same

SHARED, LIGHT = 8, 1 << 26  # vectors multiplied at a time, and bytes that they may take
RANK = 4.0  # a direction of Y within this many eps of its largest column is rounding
ALONE = 1e-6  # leverage 1 - ALONE: no other vector of Y reaches this one's direction
PARALLEL = 1e-12  # squared sine below which two directions are one
RANGE = Fields(  # of a checkpoint
    {"Q": Array("dtype", "n", "rank"), "Z": Array("dtype", "n", "rank"), "largest": NONNEGATIVE},
    laws=(Law("an orthonormal basis", lambda f, s: orthonormal(f["Q"].T)),),
)


class Sampler(ABC):
    """m vectors drawn so far, and what they say of tr A.

    `parts` are the attributes that a checkpoint holds: replaced by `add`, never changed in place.
    """

    cost = 1  # products for each vector
    parts: ClassVar[dict[str, Rule]] = {}

    def __init__(self, A: Operator, seed: int) -> None:
        self.A, self.seed, self.m = A, seed, 0
        self.squares = 0.0  # sum of the squared lengths of products
        self.range = Range(A)  # of those that have one

    def state(self) -> dict[str, Any]:
        """What has been drawn."""
        state = {name: getattr(self, name) for name in ("m", *self.parts)}
        return {**state, "range": self.range.state()} if "range" in state else state

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name in ("m", *self.parts):
            if name == "range":
                self.range.resume(state[name])
            else:
                setattr(self, name, state[name])

    @classmethod
    def rule(cls, name: str) -> Fields:
        """What a checkpoint of this sampler under its name must hold; `targets`: numbers of vectors that a run may aim at."""
        laws = (
            Law("a number of vectors that the run aims at", lambda f, s: f["target"] in s["targets"][name]),
            Law(
                "as many vectors as it says, and not more than it aims at", lambda f, s: f["m"] == s["m"] <= f["target"]
            ),
            Law("sums that are those of its vectors", cls.sums),
        )
        return Fields({"method": Same(name), "target": COUNT, "m": COUNT, **cls.parts}, laws=laws)

    @staticmethod
    @abstractmethod
    def sums(state: Any, sizes: Any) -> bool:
        """Whether numbers that were summed up on the way are those of what is held."""

    @abstractmethod
    def known_product(self) -> KnownProduct:
        """A product that holds all that were made, or the first."""

    @abstractmethod
    def add(self, count: int) -> None:
        """Draw `count` more vectors and multiply."""

    @abstractmethod
    def estimate(self) -> tuple[float, float]:
        """(value, standard error)."""

    def stderr(self, variance: float) -> float:
        """Widened to Student's interval, and with eps ||A||_F, which products in this dtype leave of a trace."""
        rounding = arrays.machine_epsilon(self.A.dtype) * float(np.sqrt(self.squares / self.m))
        return float(np.hypot(np.sqrt(variance) * widening(self.m), rounding))


def block_of(A: Operator) -> int:
    """Vectors multiplied at a time, by each team: sweeps are shared where vectors, of an operator's factors too, are light."""
    longest = max(max(leaf.shape) for leaf in leaves(A))
    return A.teams * max(1, min(SHARED, LIGHT // (longest * A.dtype.itemsize)))


def draw(A: Operator, seed: int, indices: range, kind: str) -> torch.Tensor:
    """The probes of these indices as columns, (n, b)."""
    return torch.stack([A.probe(seed, i, kind) for i in indices], 1)


def multiply(A: Operator, V: torch.Tensor) -> torch.Tensor:
    """A V, finite."""
    W = A @ V
    hold_size(W, math.nan, f"a product of {A!r}")
    return W


class Hutchinson(Sampler):
    """z^T A z of signs z, with its variance from the entries of z * A z where A is symmetric.

    Var z^T A z = 2 sum_{a != b} A_ab^2 = 2 sum_a Var (z * A z)_a: the n sample variances together are far steadier than that of
    the m values, which of a dominant eigenvalue are chi-squares, small when their mean is (rms z of one outlier, m = 20: 1.5).
    """

    parts: ClassVar[dict[str, Rule]] = {
        "values": Items(Number(), count="m"),
        "squares": NONNEGATIVE,
        "scatter": NONNEGATIVE,
        "length": NONNEGATIVE,
        "mean": Array("dtype", "n"),
    }

    def __init__(self, A: Operator, seed: int) -> None:
        super().__init__(A, seed)
        self.values: list[float] = []
        self.length = 0.0  # of the first vector's product
        self.neighbours = Neighbours(A)
        self.scatter = 0.0
        self.mean = A.empty().zero_()

    def add(self, count: int) -> None:
        Z = draw(self.A, self.seed, range(self.m, self.m + count), "rademacher")
        self.neighbours.meet(Z[:, 0])
        Y = multiply(self.A, Z)
        self.values = self.values + column_dots(Z, Y).tolist()
        squares = column_dots(Y, Y)
        self.length = self.length if self.m else float(squares[0]) ** 0.5
        self.squares += float(squares.sum())
        self.neighbours.hold(Z, Y, float(squares.max()) ** 0.5)
        for z, y in zip(Z.T, Y.T, strict=True):
            self.m += 1
            out = z if self.A.new_products and z.is_contiguous() else torch.empty_like(z)
            self.scatter += welford(self.mean, z, y, self.m, out)
            self.mean = out

    @staticmethod
    def sums(state: Any, sizes: Any) -> bool:
        """The entries of the mean sum up to the mean of the values, and ||z * A z|| = ||A z|| for signs z."""
        m, mean, eps = state["m"], state["mean"], arrays.summation_error(sizes["dtype"])
        size = np.sqrt(sizes["n"] * state["squares"] * m)
        scatter = state["squares"] - m * float(mean @ mean)
        return (
            abs(sum(state["values"]) - m * longvectors.added(float(local(mean).sum()), mean)) <= eps * size
            and abs(scatter - state["scatter"]) <= eps * state["squares"]
        )

    def known_product(self) -> KnownProduct:
        z = draw(self.A, self.seed, range(1), "rademacher")[:, 0]
        return two_numbers(z, self.values[0], self.length)

    def estimate(self) -> tuple[float, float]:
        values = np.array(self.values)
        variance = 2 * self.scatter / (self.m - 1) if self.A.symmetric else float(values.var(ddof=1))
        return float(values.mean()), self.stderr(variance / self.m)


class Pairs(Sampler):
    """Vectors Omega (n, m) and their products Y; the former are drawn again where a checkpoint holds the latter."""

    kind, first, stride = "gaussian", 0, 1
    parts: ClassVar[dict[str, Rule]] = {"Y": Array("dtype", "n", "m"), "squares": NONNEGATIVE}

    def __init__(self, A: Operator, seed: int) -> None:
        super().__init__(A, seed)
        self.Omega = self.Y = empty(A)

    def _draw(self, start: int, stop: int) -> torch.Tensor:
        indices = range(self.first + start * self.stride, self.first + stop * self.stride, self.stride)
        return draw(self.A, self.seed, indices, self.kind)

    def resume(self, state: dict[str, Any]) -> None:
        super().resume(state)
        if self.m:
            self.Omega = self._draw(0, self.m)

    def add(self, count: int) -> None:
        Omega = self._draw(self.m, self.m + count)
        Y = multiply(self.A, Omega)
        self.take(Y)
        self.Omega, self.Y = torch.cat([self.Omega, Omega], 1), torch.cat([self.Y, Y], 1)
        self.squares += float(column_dots(Y, Y).sum())
        self.m += count

    def take(self, Y: torch.Tensor) -> None:
        """What else is made of new products."""

    @staticmethod
    def sums(state: Any, sizes: Any) -> bool:
        total = float(column_dots(state["Y"], state["Y"]).sum())
        return abs(total - state["squares"]) <= arrays.summation_error(sizes["dtype"]) * state["squares"]

    def known_product(self) -> KnownProduct:
        return known_product([(self.Omega, self.Y), *([(self.range.Q, self.range.Z)] if "range" in self.parts else [])])


class HutchPlusPlus(Pairs):
    """tr Q^T A Q for Q from m vectors, and g^T (I - Q Q^T) A (I - Q Q^T) g of m other ones: Omega, with products Y."""

    cost = 3
    kind, first, stride = "rademacher", 1, 2
    parts: ClassVar[dict[str, Rule]] = {**Pairs.parts, "range": RANGE}

    def add(self, count: int) -> None:
        others = range(2 * self.m, 2 * (self.m + count), 2)
        self.range.extend(multiply(self.A, draw(self.A, self.seed, others, self.kind)))
        super().add(count)

    def estimate(self) -> tuple[float, float]:
        Q, Z, G, AG = self.range.Q, self.range.Z, self.Omega, self.Y
        W, H, R, T = cross(Q, G), cross(Q, Z), cross(Q, AG), cross(Z, G)
        hold_products(self.A, Q, Z, G, AG, (R, T))
        rest = column_dots(G, AG) - (W * R).sum(0) - (W * T).sum(0) + (W * (H @ W)).sum(0)
        return float(np.trace(H) + rest.mean()), self.stderr(float(rest.var(ddof=1)) / self.m)


class Exchangeable(Pairs):
    """An estimate that is the mean of e_i, each unbiased given all vectors but omega_i."""

    @abstractmethod
    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """e (m,) and d (m, m): d_ij = e_i less the same without the j-th vector in its basis."""

    def estimate(self) -> tuple[float, float]:
        if self.squares == 0:
            return 0.0, 0.0
        e, change = self.samples()
        return float(e.mean()), self.stderr(exchangeable_variance(e, change))


class XTrace(Exchangeable):
    """e_i = tr Q_i^T A Q_i + c_i omega_i^T (I - Q_i Q_i^T) A (I - Q_i Q_i^T) omega_i, Q_i the range of Y without y_i.

    c_i = (n - dim Q_i) / ||(I - Q_i Q_i^T) omega_i||^2 puts the projected vector on the sphere ("resphered"), which makes
    Gaussian and sphere vectors the same thing. With R = Q^T Y, s_i is the unit vector with s_i^T r_j = 0 for j != i, so that
    Q_i Q_i^T = Q (I - s_i s_i^T) Q^T; where others reach the whole range (rank below m), s_i = 0. Epperly, Tropp, Webber (2024).
    """

    cost = 2
    parts: ClassVar[dict[str, Rule]] = {**Pairs.parts, "range": RANGE}

    def take(self, Y: torch.Tensor) -> None:
        self.range.extend(Y)

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """e (m,) and d (m, m): d_ij = e_i less the same without y_j in its basis."""
        n, Q, Z = self.A.shape[0], self.range.Q, self.range.Z
        k = Q.shape[1]
        W, R, H, T = cross(Q, self.Omega), cross(Q, self.Y), cross(Q, Z), cross(Z, self.Omega)
        hold_products(self.A, Q, Z, self.Omega, self.Y, (R, T))
        S, alone = directions(R)
        SW, SR, ST = S.T @ W, np.diag(S.T @ R)[:, None], S.T @ T
        a = np.diag(SW)
        C = W - S * a  # coordinates in Q of Q_i Q_i^T omega_i
        HC = H @ C
        h, SHC, CHS = S.T @ H @ S, S.T @ HC, S.T @ (H.T @ C)
        quad = a * SR[:, 0] - (T * C).sum(0) + (C * HC).sum(0)  # (I - Q_i Q_i^T) y_i = Q s_i s_i^T r_i
        left = column_dots(self.Omega, self.Omega) - (C * C).sum(0)
        dim = n - k + alone  # of the complement of Q_i
        e = np.trace(H) - np.diag(h) + quad * dim / left
        # without y_j as well: p = (s_j - g s_i) / nu joins s_i
        g = S.T @ S
        nu = np.sqrt(np.maximum(1 - g**2, PARALLEL))
        php = (np.diag(h)[None, :] - g * (h + h.T) + g**2 * np.diag(h)[:, None]) / nu**2
        b, tp, phc, chp = ((M.T - g * np.diag(M)[:, None]) / nu for M in (SW, ST, SHC, CHS))
        quad2 = quad[:, None] + b * (-g * SR / nu + tp - phc - chp) + b**2 * php
        e2 = np.trace(H) - np.diag(h)[:, None] - php + quad2 * (dim[:, None] + 1) / (left[:, None] + b**2)
        change = np.where(np.outer(alone, alone), e[:, None] - e2, 0.0)
        np.fill_diagonal(change, 0.0)
        return e, change


class XNysTrace(Exchangeable):
    """e_i = tr A_i + c_i omega_i^T (A - A_i) omega_i, A_i Nystrom's approximation of A >= 0 without omega_i.

    With H = Omega^T Y, G = Omega^T Omega, P = H^-1 and the unit vectors u_i: A_i = Y P Y^T - Y P u_i u_i^T P Y^T / P_ii, the
    quadratic form is 1 / P_ii, and resphering multiplies it by (n - m + 1) (G^-1)_ii. A + nu I with nu at the rounding of Y is
    what is approximated; nu n is subtracted again. Epperly, Tropp, Webber (2024).
    """

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """e (m,) and d (m, m): d_ij = e_i less the same without omega_j."""
        n, m = self.A.shape[0], self.m
        plain, G = cross(self.Omega, self.Y), cross(self.Omega, self.Omega)
        hold_products(self.A, self.Omega, self.Y, self.Omega, self.Y, (plain, plain.T))
        C, nu = self._cholesky(plain, G)
        inverse = np.linalg.inv(C)  # H = C C^T
        R = longvectors.triangle(self.Y, self.Omega, nu)
        B = R @ inverse.T  # A_m = Q B B^T Q^T
        P, YP = inverse.T @ inverse, B @ inverse
        K, G = YP.T @ YP, np.linalg.inv(G)
        total = float((B**2).sum()) - nu * n
        p, k, g = np.diag(P), np.diag(K), np.diag(G)
        e = total - k / p + (n - m + 1) * g / p
        ratio = P / p[None, :]  # P_ij / P_jj
        p2 = p[:, None] * np.maximum(1 - ratio * ratio.T, PARALLEL)
        k2 = k[:, None] - 2 * ratio * K + ratio**2 * k[None, :]
        g2 = g[:, None] - G**2 / g[None, :]
        change = e[:, None] - (total - (k / p)[None, :] - k2 / p2 + (n - m + 2) * g2 / p2)
        np.fill_diagonal(change, 0.0)
        return e, change

    def _cholesky(self, H: np.ndarray, G: np.ndarray) -> tuple[np.ndarray, float]:
        """The factor of H + nu G, nu the smallest of a few that makes it definite; ValueError where A is not."""
        n, eps = self.A.shape[0], arrays.machine_epsilon(self.A.dtype)
        if np.abs(H - H.T).max() > arrays.discrepancy(self.A.dtype) * np.abs(H).max():
            raise ValueError(f"{self.A!r} is not symmetric, and 'xnystrace' needs A >= 0; use method='xtrace'.")
        nu = eps * np.sqrt(self.squares / n)
        for _ in range(4):
            try:
                return np.linalg.cholesky((H + H.T) / 2 + nu * G), nu
            except np.linalg.LinAlgError:
                nu *= 10
        raise ValueError(
            f"{self.A!r} is not positive semi-definite: x^T A x = {np.linalg.eigvalsh((H + H.T) / 2)[0] / n:.3g} was met for a "
            "vector of norm about 1; use method='xtrace'."
        )


def hold_products(
    A: Operator,
    X: torch.Tensor,
    AX: torch.Tensor,
    Y: torch.Tensor,
    AY: torch.Tensor,
    tables: tuple[np.ndarray, np.ndarray],
    transposed: bool = False,
) -> None:
    """X^T (A Y) against (A X)^T Y of a symmetric A, both `tables` made already; any A where AX is A^T X (`transposed`)."""
    if (A.symmetric or transposed) and tables[0].size:
        scale = float(max(column_dots(AX, AX).max(), column_dots(AY, AY).max())) ** 0.5
        hold(A, *tables, lambda i: X[:, i].contiguous(), lambda j: Y[:, j].contiguous(), scale, _pair(Y.shape[1]))


class Neighbours:
    """Holds each product of a symmetric A with signs to the one before, <x, A y> = <A x, y>, between calls by signs in int8."""

    def __init__(self, A: Operator) -> None:
        self.A = A
        self.product: torch.Tensor | None = None
        self.signs: torch.Tensor | None = None
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
                hold(self.A, *tables, lambda _, x=x, now=now: x.to(now.dtype), lambda _, now=now: now, scale, names)  # type: ignore[misc]
            self.signs, self.product = z.to(torch.int8), y


def welford(
    mean: torch.Tensor, z: torch.Tensor, y: torch.Tensor, m: int, out: torch.Tensor, squares: torch.Tensor | None = None
) -> float:
    """The mean of m samples z * y into `out`, from that of m - 1; returns what the m-th adds to their squared deviations.

    `out` may be `mean` or z; `squares` (n,) grow by what it adds entry by entry, where they are given.
    """
    scatter, whole = 0.0, mean
    mean, z, y, out = (local(x) for x in (mean, z, y, out))
    squares = None if squares is None else local(squares)
    for piece in longvectors.chunks(len(mean), 1, longvectors.chunk(mean.device)):
        sample = z[piece].double() * y[piece].double()
        step = sample - mean[piece].double()
        now = mean[piece].double() + step / m
        out[piece] = now
        scatter += float(torch.dot(step, sample - now))
        if squares is not None:
            squares[piece] = squares[piece].double() + step * (sample - now)
    return longvectors.added(scatter, whole)


def two_numbers(z: torch.Tensor, along: float, length: float) -> KnownProduct:
    """A product A z of which <z, A z> and ||A z|| are known."""

    def differs(y: torch.Tensor) -> float:
        return max(abs(longvectors.dot(z, y) - along) / longvectors.norm(z), abs(longvectors.norm(y) - length))

    return KnownProduct(z, differs)


def _pair(count: int) -> tuple[str, str]:
    return f"one of the first {count} products", f"one of the first {count} products"


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
        X = self._orthogonal(Y.to(torch.float64, copy=True))
        X, R = longvectors.qr(X)
        U, s, _ = torch.linalg.svd(R)
        X = X @ U[:, s > RANK * arrays.machine_epsilon(self.A.dtype) * self.largest]
        if X.shape[1] == 0:
            return
        # once more: a short direction is not yet orthogonal
        X = longvectors.qr(self._orthogonal(X))[0].to(self.A.dtype)
        self.Q, self.Z = torch.cat([self.Q, X], 1), torch.cat([self.Z, multiply(self.A, X)], 1)

    def _orthogonal(self, X: torch.Tensor) -> torch.Tensor:
        """(I - Q Q^T) X, in place."""
        for _ in range(2):
            G = torch.from_numpy(cross(self.Q, X)).to(X)
            for rows in longvectors.chunks(len(X), X.shape[1], longvectors.chunk(X.device)):
                X[rows] -= self.Q[rows].double() @ G
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


def known_product(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> KnownProduct:
    """A random combination of all vectors in blocks (n, b), with the same one of their products."""
    ends = np.cumsum([0, *(V.shape[1] for V, _ in pairs)])
    c = random_coefficients(int(ends[-1]))
    shares = [c[a:b] for a, b in itertools.pairwise(ends)]
    x, y = (
        functools.reduce(torch.add, (combination(share, pair[i].T) for pair, share in zip(pairs, shares, strict=True)))
        for i in (0, 1)
    )
    return KnownProduct(x, distance(y))
