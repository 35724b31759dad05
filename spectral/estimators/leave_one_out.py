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

import itertools
import math
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.special import stdtrit

from spectral import arrays
from spectral.estimators import proof
from spectral.krylov.symmetry import hold, hold_size
from spectral.operators.operator import Operator
from spectral.probes import probe
from spectral.schema import Array, Fields, Items, Law, Number, Rule, Same

RANK = 4.0  # a direction of Y within this many eps of its largest column is rounding
ALONE = 1e-6  # leverage 1 - ALONE: no other vector of Y reaches this one's direction
PARALLEL = 1e-12  # squared sine below which two directions are one
POSITIVE, COLUMNS = Number(least=0), Array("dtype", "n", "m")
RANGE: dict[str, Rule] = {"Q": Array("dtype", "n", "rank"), "Z": Array("dtype", "n", "rank"), "largest": POSITIVE}


class Sampler:
    """Vectors drawn so far, and what they say of tr A."""

    cost = 1  # products for each vector
    alone = True  # without a `Range`
    parts: ClassVar[
        dict[str, Rule]
    ] = {}  # attributes that hold what has been drawn; replaced by `add`, never changed in place

    def __init__(self, A: Operator, seed: int) -> None:
        self.A, self.seed, self.m = A, seed, 0

    def state(self) -> dict[str, Any]:
        """What has been drawn, for a checkpoint."""
        own = {name: getattr(self, name) for name in ("m", *self.parts)}
        basis = getattr(self, "range", None)
        return own if basis is None else {**own, "Q": basis.Q, "Z": basis.Z, "largest": basis.largest}

    @classmethod
    def rule(cls, name: str) -> Fields:
        """What a checkpoint of this sampler under its name must hold; `targets`: numbers of vectors that a run may aim at."""
        whole = Number(True, least=0)
        ranged = {} if cls.alone else RANGE
        laws = (
            Law("a number of vectors that the run aims at", lambda f, s: f["target"] in s["targets"][name]),
            Law(
                "as many vectors as it says, and not more than it aims at", lambda f, s: f["m"] == s["m"] <= f["target"]
            ),
            Law("an orthonormal basis", lambda f, s: "Q" not in f or orthonormal(f["Q"])),
            Law("sums that are those of its vectors", cls.sums),
        )
        return Fields({"method": Same(name), "target": whole, "m": whole, **cls.parts, **ranged}, laws=laws)

    @staticmethod
    def sums(state: Any, sizes: Any) -> bool:
        """Whether numbers that were summed up on the way are those of what is held."""
        raise TypeError("a sampler sums something.")

    def drawn(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Blocks of vectors that were multiplied, and their products."""
        raise TypeError(f"{type(self).__name__} draws nothing.")

    def again(self) -> None:
        """Draw the vectors that a checkpoint leaves out once more."""

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name in ("m", *self.parts):
            setattr(self, name, state[name])
        basis = getattr(self, "range", None)
        if basis is not None:
            basis.Q, basis.Z, basis.largest = state["Q"], state["Z"], state["largest"]
        if self.m:
            self.again()

    def add(self, count: int) -> None:
        """Draw `count` more vectors and multiply."""
        raise TypeError(f"{type(self).__name__} draws nothing.")

    def estimate(self) -> tuple[float, float]:
        """(value, standard error)."""
        raise TypeError(f"{type(self).__name__} estimates nothing.")

    def draw(self, first: int, count: int, kind: str, stride: int = 1) -> torch.Tensor:
        """Probes first, first + stride, ...: (n, count)."""
        return draw(self.A, self.seed, range(first, first + count * stride, stride), kind)

    def multiply(self, V: torch.Tensor) -> torch.Tensor:
        return multiply(self.A, V)


def draw(A: Operator, seed: int, indices: range, kind: str) -> torch.Tensor:
    """The probes of these indices as columns, (n, b)."""
    columns = [probe(seed, i, A.shape[1], kind=kind, dtype=A.dtype, device=A.device) for i in indices]
    return torch.stack(columns, 1)


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
        "squares": POSITIVE,
        "scatter": POSITIVE,
        "mean": Array("float64", "n"),
        "product": Array("dtype", "n"),
    }

    def __init__(self, A: Operator, seed: int) -> None:
        super().__init__(A, seed)
        self.values: list[float] = []
        self.product = torch.zeros(A.shape[0], dtype=A.dtype, device=A.device)  # of the first vector
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None  # a vector (n, 1) and its product, to meet the next
        self.squares = self.scatter = 0.0
        self.mean = torch.zeros(A.shape[0], dtype=torch.float64, device=A.device)

    def add(self, count: int) -> None:
        Z = self.draw(self.m, count, "rademacher")
        Y = self.multiply(Z)
        if self.m == 0:
            self.product = Y[:, 0].clone()
        self.values = self.values + column_dots(Z, Y).tolist()
        squares = column_dots(Y, Y)
        self.last = hold_neighbours(self.A, self.last, Z, Y, float(squares.max()) ** 0.5)
        self.squares += float(squares.sum())
        for i in range(count):  # Welford's recurrence
            self.m += 1
            sample = (Z[:, i] * Y[:, i]).double()
            step = sample - self.mean
            self.mean = self.mean + step / self.m
            self.scatter += arrays.dot(step, sample - self.mean)

    @staticmethod
    def sums(state: Any, sizes: Any) -> bool:
        """The entries of the mean sum up to the mean of the values, and ||z * A z|| = ||A z|| for signs z."""
        m, mean, eps = state["m"], state["mean"], proof.rounding(getattr(torch, sizes["dtype"]))
        size = np.sqrt(len(mean) * state["squares"] * m)
        scatter = state["squares"] - m * float(mean @ mean)
        return (
            abs(sum(state["values"]) - m * float(mean.sum())) <= eps * size
            and abs(scatter - state["scatter"]) <= eps * state["squares"]
        )

    def drawn(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.draw(0, 1, "rademacher"), self.product[:, None])]

    def estimate(self) -> tuple[float, float]:
        values = np.array(self.values)
        variance = 2 * self.scatter / (self.m - 1) if self.A.symmetric else float(values.var(ddof=1))
        return float(values.mean()), _stderr(variance / self.m, self.m, _rounding(self))


class HutchPlusPlus(Sampler):
    """tr Q^T A Q for Q from m vectors, and g^T (I - Q Q^T) A (I - Q Q^T) g of m other ones."""

    cost = 3
    alone = False
    parts: ClassVar[dict[str, Rule]] = {"AG": COLUMNS, "squares": POSITIVE}

    def __init__(self, A: Operator, seed: int) -> None:
        super().__init__(A, seed)
        self.range, self.squares = Range(A), 0.0
        self.G = self.AG = empty(A)

    def add(self, count: int) -> None:
        self.range.extend(self.multiply(self.draw(2 * self.m, count, "rademacher", 2)))
        G = self.draw(2 * self.m + 1, count, "rademacher", 2)
        AG = self.multiply(G)
        self.G, self.AG = torch.cat([self.G, G], 1), torch.cat([self.AG, AG], 1)
        self.squares += float(column_dots(AG, AG).sum())
        self.m += count

    @staticmethod
    def sums(state: Any, sizes: Any) -> bool:
        return same_squares(state["AG"], state["squares"])

    def drawn(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.G, self.AG), (self.range.Q, self.range.Z)]

    def again(self) -> None:
        self.G = self.draw(1, self.m, "rademacher", 2)

    def estimate(self) -> tuple[float, float]:
        Q, Z = self.range.Q, self.range.Z
        W, H, R, T = cross(Q, self.G), cross(Q, Z), cross(Q, self.AG), cross(Z, self.G)
        hold_products(self.A, Q, Z, self.G, self.AG, (R, T))
        rest = column_dots(self.G, self.AG) - (W * R).sum(0) - (W * T).sum(0) + (W * (H @ W)).sum(0)
        return float(np.trace(H) + rest.mean()), _stderr(float(rest.var(ddof=1)) / self.m, self.m, _rounding(self))


class XTrace(Sampler):
    """e_i = tr Q_i^T A Q_i + c_i omega_i^T (I - Q_i Q_i^T) A (I - Q_i Q_i^T) omega_i, Q_i the range of Y without y_i.

    c_i = (n - dim Q_i) / ||(I - Q_i Q_i^T) omega_i||^2 puts the projected vector on the sphere ("resphered"), which makes
    Gaussian and sphere vectors the same thing. With R = Q^T Y, s_i is the unit vector with s_i^T r_j = 0 for j != i, so that
    Q_i Q_i^T = Q (I - s_i s_i^T) Q^T; where others reach the whole range (rank below m), s_i = 0. Epperly, Tropp, Webber (2024).
    """

    cost = 2
    alone = False
    parts: ClassVar[dict[str, Rule]] = {"Y": COLUMNS, "squares": POSITIVE}

    def __init__(self, A: Operator, seed: int) -> None:
        super().__init__(A, seed)
        self.range, self.squares = Range(A), 0.0
        self.Omega = self.Y = empty(A)

    def add(self, count: int) -> None:
        Omega = self.draw(self.m, count, "gaussian")
        Y = self.multiply(Omega)
        self.range.extend(Y)
        self.Omega, self.Y = torch.cat([self.Omega, Omega], 1), torch.cat([self.Y, Y], 1)
        self.squares += float(column_dots(Y, Y).sum())
        self.m += count

    def estimate(self) -> tuple[float, float]:
        e, change = self.samples()
        return float(e.mean()), _stderr(exchangeable_variance(e, change), self.m, _rounding(self))

    @staticmethod
    def sums(state: Any, sizes: Any) -> bool:
        return same_squares(state["Y"], state["squares"])

    def drawn(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.Omega, self.Y), (self.range.Q, self.range.Z)]

    def again(self) -> None:
        self.Omega = self.draw(0, self.m, "gaussian")

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


class XNysTrace(Sampler):
    """e_i = tr A_i + c_i omega_i^T (A - A_i) omega_i, A_i Nystrom's approximation of A >= 0 without omega_i.

    With H = Omega^T Y, G = Omega^T Omega, P = H^-1 and the unit vectors u_i: A_i = Y P Y^T - Y P u_i u_i^T P Y^T / P_ii, the
    quadratic form is 1 / P_ii, and resphering multiplies it by (n - m + 1) (G^-1)_ii. A + nu I with nu at the rounding of Y is
    what is approximated; nu n is subtracted again. Epperly, Tropp, Webber (2024).
    """

    parts: ClassVar[dict[str, Rule]] = {"Y": COLUMNS, "squares": POSITIVE}

    def __init__(self, A: Operator, seed: int) -> None:
        super().__init__(A, seed)
        self.Omega = self.Y = empty(A)
        self.squares = 0.0

    @staticmethod
    def sums(state: Any, sizes: Any) -> bool:
        return same_squares(state["Y"], state["squares"])

    def drawn(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.Omega, self.Y)]

    def again(self) -> None:
        self.Omega = self.draw(0, self.m, "gaussian")

    def add(self, count: int) -> None:
        Omega = self.draw(self.m, count, "gaussian")
        Y = self.multiply(Omega)
        self.Omega, self.Y = torch.cat([self.Omega, Omega], 1), torch.cat([self.Y, Y], 1)
        self.squares += float(column_dots(Y, Y).sum())
        self.m += count

    def estimate(self) -> tuple[float, float]:
        if self.squares == 0:
            return 0.0, 0.0
        e, change = self.samples()
        return float(e.mean()), _stderr(exchangeable_variance(e, change), self.m, _rounding(self))

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """e (m,) and d (m, m): d_ij = e_i less the same without omega_j."""
        n, m = self.A.shape[0], self.m
        plain, G = cross(self.Omega, self.Y), cross(self.Omega, self.Omega)
        hold_products(self.A, self.Omega, self.Y, self.Omega, self.Y, (plain, plain.T))
        C, nu = self._cholesky(plain, G)
        inverse = np.linalg.inv(C)  # H = C C^T
        R = triangle(self.Y, self.Omega, nu)
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
        if np.abs(H - H.T).max() > 1e3 * eps**0.75 * np.abs(H).max():
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


def hold_neighbours(
    A: Operator, last: tuple[torch.Tensor, torch.Tensor] | None, Y: torch.Tensor, AY: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Hold each column of a symmetric A's products AY against the one before, the first against `last`; the next `last`."""
    if not A.symmetric:
        return None
    pairs = [(Y[:, i : i + 1], AY[:, i : i + 1]) for i in range(Y.shape[1])]
    for (x, Ax), (y, Ay) in itertools.pairwise([*([] if last is None else [last]), *pairs]):
        tables = np.array([column_dots(x, Ay)]), np.array([column_dots(Ax, y)])
        names = "the product with a random vector", "the product with the random vector before"
        hold(A, *tables, lambda _, x=x: x[:, 0].contiguous(), lambda _, y=y: y[:, 0].contiguous(), scale, names)  # type: ignore[misc]
    return pairs[-1][0].clone(), pairs[-1][1].clone()


def _pair(count: int) -> tuple[str, str]:
    return f"one of the first {count} products", f"one of the first {count} products"


class Range:
    """An orthonormal basis Q (n, k) of the columns met so far, and Z = A Q (or A^T Q); nested: it only grows."""

    def __init__(self, A: Operator) -> None:
        self.A, self.Q, self.Z, self.largest = A, empty(A), empty(A), 0.0

    def extend(self, Y: torch.Tensor) -> None:
        """Add what the columns of Y reach beyond Q, as far as it is more than rounding, and multiply it."""
        self.largest = max(self.largest, float(column_dots(Y, Y).max()) ** 0.5)
        X = self._orthogonal(Y.to(torch.float64, copy=True))
        X, R = torch.linalg.qr(X)
        U, s, _ = torch.linalg.svd(R)
        X = X @ U[:, s > RANK * arrays.machine_epsilon(self.A.dtype) * self.largest]
        if X.shape[1] == 0:
            return
        X = torch.linalg.qr(self._orthogonal(X))[0].to(
            self.A.dtype
        )  # once more: a short direction is not yet orthogonal
        self.Q, self.Z = torch.cat([self.Q, X], 1), torch.cat([self.Z, multiply(self.A, X)], 1)

    def _orthogonal(self, X: torch.Tensor) -> torch.Tensor:
        """(I - Q Q^T) X, in place."""
        for _ in range(2):
            G = torch.from_numpy(cross(self.Q, X)).to(X)
            for rows in _chunks(X):
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


def _stderr(variance: float, m: int, rounding: float) -> float:
    return float(np.hypot(np.sqrt(variance) * widening(m), rounding))


def widening(m: int) -> float:
    """Student's 97.5 % quantile for m values over the normal one: +- 1.96 stderr is then a 95 % interval."""
    return float(stdtrit(m - 1, 0.975) / 1.959964)


def _rounding(sampler: Hutchinson | HutchPlusPlus | XTrace | XNysTrace) -> float:
    """eps ||A||_F, the latter from ||A omega||^2: what products in this dtype leave of a trace."""
    return arrays.machine_epsilon(sampler.A.dtype) * float(np.sqrt(sampler.squares / sampler.m))


# Blocks in the operator's dtype, sums in float64 -----------------------------------------------------------------------
def empty(A: Operator) -> torch.Tensor:
    return torch.empty(A.shape[1], 0, dtype=A.dtype, device=A.device)


def _chunks(X: torch.Tensor) -> list[slice]:
    step = max(1, arrays.CHUNK // max(1, X.shape[1]))
    return [slice(start, start + step) for start in range(0, X.shape[0], step)]


def cross(X: torch.Tensor, Y: torch.Tensor) -> np.ndarray:
    """X^T Y, (k, n) times (n, m), summed in float64."""
    total = torch.zeros(X.shape[1], Y.shape[1], dtype=torch.float64, device=X.device)
    for rows in _chunks(X if X.shape[1] > Y.shape[1] else Y):
        total += X[rows].double().T @ Y[rows].double()
    return total.cpu().numpy()


def orthonormal(Q: torch.Tensor) -> bool:
    """Whether the columns of Q (n, k) are, to their rounding."""
    return bool(np.abs(cross(Q, Q) - np.eye(Q.shape[1])).max(initial=0.0) <= proof.rounding(Q.dtype))


def same_squares(Y: torch.Tensor, squares: float) -> bool:
    """Whether `squares` is ||Y||_F^2."""
    return abs(float(column_dots(Y, Y).sum()) - squares) <= proof.rounding(Y.dtype) * squares


def together(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A random combination of all vectors, (n,), and the same one of their products."""
    c = proof.coefficients(sum(V.shape[1] for V, _ in pairs))
    ends = np.cumsum([0, *(V.shape[1] for V, _ in pairs)])
    x, y = (
        torch.stack([proof.combined(pair[i].T, c[a:b]) for pair, a, b in zip(pairs, ends, ends[1:], strict=False)]).sum(
            0
        )
        for i in (0, 1)
    )
    return x, y


def column_dots(X: torch.Tensor, Y: torch.Tensor) -> np.ndarray:
    """x_i^T y_i of the columns, in float64."""
    return np.array([arrays.dot(X[:, i].contiguous(), Y[:, i].contiguous()) for i in range(X.shape[1])])


def triangle(Y: torch.Tensor, Omega: torch.Tensor, nu: float) -> np.ndarray:
    """R of the QR decomposition of Y + nu Omega, rows taken in chunks, in float64."""
    R = torch.zeros(0, Y.shape[1], dtype=torch.float64, device=Y.device)
    for rows in _chunks(Y):
        R = torch.linalg.qr(torch.cat([R, Y[rows].double() + nu * Omega[rows].double()]), mode="r")[1]
    return R.cpu().numpy()
