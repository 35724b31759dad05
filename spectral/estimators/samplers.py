"""What each method of trace draws, keeps and computes: m vectors so far, and their estimate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch

from spectral import arrays, longvectors
from spectral.estimators import leave_one_out
from spectral.krylov.symmetry import KnownProduct
from spectral.longvectors import column_dots, cross
from spectral.operators.operator import Operator
from spectral.pieces import local
from spectral.schema import COUNT, NONNEGATIVE, Array, Fields, Items, Law, Number, Rule, Same


class Sampler(ABC):
    """m vectors drawn so far, and what they say of tr A.

    `parts` are the attributes that a checkpoint holds: replaced by `add`, never changed in place.
    """

    cost = 1  # products for each vector
    parts: ClassVar[dict[str, Rule]] = {}

    def __init__(self, A: Operator, seed: int) -> None:
        self.A, self.seed, self.m = A, seed, 0
        self.squares = 0.0  # sum of the squared lengths of products
        self.range = leave_one_out.Range(A)  # of those that have one

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
        """Widened to Student's interval, and with what rounding leaves of a trace: of products, and of sums in float64."""
        eps = self.A.epsilon + np.sqrt(self.A.shape[0]) * 2.0**-52
        rounding = float(eps * np.sqrt(self.squares / self.m))
        return float(np.hypot(np.sqrt(variance) * leave_one_out.widening(self.m), rounding))


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
        self.neighbours = leave_one_out.Neighbours(A)
        self.scatter = 0.0
        self.mean = leave_one_out.zeros(A)

    def add(self, count: int) -> None:
        Z = leave_one_out.draw(self.A, self.seed, range(self.m, self.m + count), "rademacher")
        self.neighbours.meet(Z[:, 0])
        Y = leave_one_out.multiply(self.A, Z, first=not self.m)
        self.values = self.values + column_dots(Z, Y).tolist()
        squares = column_dots(Y, Y)
        self.length = self.length if self.m else float(squares[0]) ** 0.5
        self.squares += float(squares.sum())
        self.neighbours.hold(Z, Y, float(squares.max()) ** 0.5)
        for z, y in zip(Z.T, Y.T, strict=True):
            self.m += 1
            out = z if self.A.new_products and z.is_contiguous() else torch.empty_like(z)
            self.scatter += leave_one_out.welford(self.mean, z, y, self.m, out)
            self.mean = out

    @staticmethod
    def sums(state: Any, sizes: Any) -> bool:
        """The entries of the mean sum up to the mean of the values, and ||z * A z|| = ||A z|| for signs z."""
        m, mean, eps = state["m"], state["mean"], arrays.summation_error(sizes["dtype"])
        size = np.sqrt(sizes["n"] * state["squares"] * m)
        scatter = state["squares"] - m * float(mean @ mean)
        return (
            abs(sum(state["values"]) - m * longvectors.sums(mean)[0]) <= eps * size
            and abs(scatter - state["scatter"]) <= eps * state["squares"]
        )

    def known_product(self) -> KnownProduct:
        z = leave_one_out.draw(self.A, self.seed, range(1), "rademacher")[:, 0]
        return leave_one_out.two_numbers(z, self.values[0], self.length)

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
        self.Omega = self.Y = leave_one_out.empty(A)

    def _draw(self, start: int, stop: int) -> torch.Tensor:
        indices = range(self.first + start * self.stride, self.first + stop * self.stride, self.stride)
        return leave_one_out.draw(self.A, self.seed, indices, self.kind)

    def resume(self, state: dict[str, Any]) -> None:
        super().resume(state)
        if self.m:
            self.Omega = self._draw(0, self.m)

    def add(self, count: int) -> None:
        Omega = self._draw(self.m, self.m + count)
        Y = leave_one_out.multiply(self.A, Omega, first=not self.m)
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
        basis = [(self.range.Q, self.range.Z)] if "range" in self.parts else []
        return leave_one_out.known_product([(self.Omega, self.Y), *basis])


class HutchPlusPlus(Pairs):
    """tr Q^T A Q for Q from m vectors, and g^T B g, B = (I - Q Q^T) A (I - Q Q^T), of m other ones: Omega, with products Y.

    The variance of g^T B g is that of Hutchinson's. Of m sign vectors two entries have the same product throughout with a chance
    of 2^(1 - m): where B lies on few entries its samples are then alike, and say nothing of it. 2 ||B||_F^2, the variance of
    Gaussian vectors, which is no less, is seen there too; it counts by that chance.
    """

    cost = 3
    kind, first, stride = "rademacher", 1, 2
    parts: ClassVar[dict[str, Rule]] = {**Pairs.parts, "range": leave_one_out.RANGE}

    def add(self, count: int) -> None:
        others = range(2 * self.m, 2 * (self.m + count), 2)
        self.range.extend(leave_one_out.multiply(self.A, leave_one_out.draw(self.A, self.seed, others, self.kind)))
        super().add(count)

    def estimate(self) -> tuple[float, float]:
        Q, Z, G, AG = self.range.Q, self.range.Z, self.Omega, self.Y
        W, H, R, T = cross(Q, G), cross(Q, Z), cross(Q, AG), cross(Z, G)
        leave_one_out.hold_products(self.A, (Q, Z), (G, AG), (R, T))
        rest = column_dots(G, AG) - (W * R).sum(0) - (W * T).sum(0) + (W * (H @ W)).sum(0)
        scatter, squares = self._scatter(W, R - H @ W)
        variance = 2 * scatter / (self.m - 1) if self.A.symmetric else float(rest.var(ddof=1))
        variance += 2.0 ** (1 - self.m) * max(0.0, 2 * squares / self.m - variance)
        return float(np.trace(H) + rest.mean()), self.stderr(variance / self.m)

    def _scatter(self, W: np.ndarray, along: np.ndarray) -> tuple[float, float]:
        """Squares of the entries of g * B g, summed, less those of their means, and whole; B G = Y - Z W - Q `along`."""
        Q, Z, G, AG = (local(x) for x in (self.range.Q, self.range.Z, self.Omega, self.Y))
        by_z, by_q = (torch.from_numpy(x).to(arrays.float64_device(AG.device)) for x in (W, along))
        scatter = squares = 0.0
        for rows in longvectors.chunks(len(AG), self.m, longvectors.chunk(AG.device)):
            g, ag, z, q = (arrays.double(X[rows]) for X in (G, AG, Z, Q))
            E = g * (ag - z @ by_z - q @ by_q)
            scatter += float((E - E.mean(1, keepdim=True)).square().sum())
            squares += float(E.square().sum())
        return longvectors.added(scatter, self.Y), longvectors.added(squares, self.Y)


class Exchangeable(Pairs):
    """An estimate that is the mean of e_i, each unbiased given all vectors but omega_i."""

    @abstractmethod
    def samples(self) -> tuple[np.ndarray, np.ndarray, float]:
        """e (m,), d (m, m): d_ij = e_i less the same without the j-th vector in its basis; the rounding of their mean."""

    def estimate(self) -> tuple[float, float]:
        if self.squares == 0:
            return 0.0, 0.0
        e, change, rounding = self.samples()
        return float(e.mean()), float(np.hypot(self.stderr(leave_one_out.exchangeable_variance(e, change)), rounding))


class XTrace(Exchangeable):
    """e_i = tr Q_i^T A Q_i + c_i omega_i^T (I - Q_i Q_i^T) A (I - Q_i Q_i^T) omega_i, Q_i the range of Y without y_i.

    c_i = (n - dim Q_i) / ||(I - Q_i Q_i^T) omega_i||^2 puts the projected vector on the sphere ("resphered"), which makes
    Gaussian and sphere vectors the same thing. With R = Q^T Y, s_i is the unit vector with s_i^T r_j = 0 for j != i, so that
    Q_i Q_i^T = Q (I - s_i s_i^T) Q^T; where others reach the whole range (rank below m), s_i = 0. Epperly, Tropp, Webber (2024).
    """

    cost = 2
    parts: ClassVar[dict[str, Rule]] = {**Pairs.parts, "range": leave_one_out.RANGE}

    def take(self, Y: torch.Tensor) -> None:
        self.range.extend(Y)

    def samples(self) -> tuple[np.ndarray, np.ndarray, float]:
        """e (m,), d (m, m): d_ij = e_i less the same without y_j in its basis; 0."""
        n, Q, Z = self.A.shape[0], self.range.Q, self.range.Z
        k = Q.shape[1]
        W, R, H, T = cross(Q, self.Omega), cross(Q, self.Y), cross(Q, Z), cross(Z, self.Omega)
        leave_one_out.hold_products(self.A, (Q, Z), (self.Omega, self.Y), (R, T))
        S, alone = leave_one_out.directions(R)
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
        nu = np.sqrt(np.maximum(1 - g**2, leave_one_out.PARALLEL))
        php = (np.diag(h)[None, :] - g * (h + h.T) + g**2 * np.diag(h)[:, None]) / nu**2
        b, tp, phc, chp = ((M.T - g * np.diag(M)[:, None]) / nu for M in (SW, ST, SHC, CHS))
        quad2 = quad[:, None] + b * (-g * SR / nu + tp - phc - chp) + b**2 * php
        e2 = np.trace(H) - np.diag(h)[:, None] - php + quad2 * (dim[:, None] + 1) / (left[:, None] + b**2)
        change = np.where(np.outer(alone, alone), e[:, None] - e2, 0.0)
        np.fill_diagonal(change, 0.0)
        return e, change, 0.0


class XNysTrace(Exchangeable):
    """e_i = tr A_i + c_i omega_i^T (A - A_i) omega_i, A_i Nystrom's approximation of A >= 0 without omega_i.

    With H = Omega^T Y, G = Omega^T Omega, P = H^-1 and the unit vectors u_i: A_i = Y P Y^T - Y P u_i u_i^T P Y^T / P_ii, the
    quadratic form is 1 / P_ii, and resphering multiplies it by (n - m + 1) (G^-1)_ii. A + nu I with nu at the rounding of Y is
    what is approximated; nu n is subtracted again. Epperly, Tropp, Webber (2024).
    """

    def samples(self) -> tuple[np.ndarray, np.ndarray, float]:
        """e (m,), d (m, m): d_ij = e_i less the same without omega_j; what nu n, which is added and subtracted, may leave."""
        n, m = self.A.shape[0], self.m
        plain, G = cross(self.Omega, self.Y), cross(self.Omega, self.Omega)
        leave_one_out.hold_products(self.A, (self.Omega, self.Y), (self.Omega, self.Y), (plain, plain.T))
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
        p2 = p[:, None] * np.maximum(1 - ratio * ratio.T, leave_one_out.PARALLEL)
        k2 = k[:, None] - 2 * ratio * K + ratio**2 * k[None, :]
        g2 = g[:, None] - G**2 / g[None, :]
        change = e[:, None] - (total - (k / p)[None, :] - k2 / p2 + (n - m + 2) * g2 / p2)
        np.fill_diagonal(change, 0.0)
        return e, change, float(nu * n / np.sqrt(m))

    def _cholesky(self, H: np.ndarray, G: np.ndarray) -> tuple[np.ndarray, float]:
        """The factor of H + nu G, nu the smallest of a few that makes it definite; ValueError where A is not."""
        n, size = self.A.shape[0], np.sqrt(self.squares / self.A.shape[0])
        if np.abs(H - H.T).max() > arrays.discrepancy(self.A.epsilon) * np.abs(H).max():
            raise ValueError(f"{self.A!r} is not symmetric, and 'xnystrace' needs A >= 0; use method='xtrace'.")
        eps = arrays.machine_epsilon(self.A.dtype)
        while eps < min(0.1, 2e3 * self.A.epsilon):
            try:
                return np.linalg.cholesky((H + H.T) / 2 + eps * size * G), eps * size
            except np.linalg.LinAlgError:
                eps *= 10
        raise ValueError(
            f"{self.A!r} is not positive semi-definite: x^T A x = {np.linalg.eigvalsh((H + H.T) / 2)[0] / n:.3g} was met for a "
            "vector of norm about 1; use method='xtrace'."
        )


SAMPLERS: dict[str, type[Sampler]] = {
    "hutchinson": Hutchinson, "hutch++": HutchPlusPlus, "xtrace": XTrace, "xnystrace": XNysTrace,
}  # fmt: skip
