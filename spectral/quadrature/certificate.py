"""The certified envelope of a probe's CDF, and what truncation moves at most.

With T = S Theta S^T of k steps, a_i = S_1i and b_i = beta_k S_ki, the Gauss-Radau rule that has x among its k + 1 nodes is
the spectral measure of e_1 under the bordered matrix of Theta, b and d = x + sum_i b_i^2 / (theta_i - x). Its weight at x is
the Christoffel function. Its weight left of x is (1 - sum_j w_j sign(xi_j - x)) / 2, and a rational approximation of the sign
turns that sum into values of one resolvent on the line Re z = x, where the node x itself is imaginary and drops out. Between
two nodes xi there is one theta: no node but x is nearer to x than the nearest theta, and x outside of all theta is the first
node or the last.

Legend: X points, k steps, L poles. All arrays are float64 numpy; those of `Radau` in units of the radius of T around its first
alpha. `gone` are nodes that became atoms, as in `gauss`.
Source: Golub, Meurant (2010), ch. 6; the best rational sign: Zolotarev (1877), as in Nakatsukasa, Freund (2016), SIAM Rev. 58.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import scipy

from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import gauss
from spectral.quadrature.beta import ROUNDING

SIGN = 1e-13  # largest error of the sign between NEAREST and REACH
NEAREST = 2.0**-49  # to a Gauss node: theta itself is known to a few units of 2^-52
REACH = 9.0  # Gauss nodes stay within 1, and a Radau node at R has a weight of (2 R - 2)^(-2k) at most
SINGLE = 1e-6  # an error that single precision has: half the time
APART = 2.0**-36  # from a node: nearer, a cube of the distance divides by more than single precision holds
EPS = 2.0**-52
NOTHING = np.zeros(0, dtype=np.int64)
CHUNK = 16  # points at a time: their (X, k, L) array stays in cache
MANY = 256  # points at a time of one value of each node
MIDDLE = 1e-6  # of the mass: what is drawn and compared knows no more
CUTS = np.array([[1 / 16], [1 / 4], [1 / 2]])  # of an interval, from its higher end
SPLITS = 10  # 16^-10 of a gap is beyond rounding
SETTLED = 0.02  # of the area under the width


class Radau:
    """The Radau rules of one record, in units of T's radius around its first alpha: a shift of A moves all but the blur along."""

    def __init__(self, record: LanczosRecord) -> None:
        (theta, S), beta = record.centred, gauss.residual(record)
        self.centre = float(record.alphas[0])
        spread = np.abs(record.alphas - self.centre).max() + 2 * max(record.betas.max(initial=0.0), beta)
        self.scale = max(float(spread), gauss.blur(record))
        self.theta, self.a, self.b = theta / self.scale, S[0], S[-1] * (beta / self.scale)
        self.reach = max(REACH, 1 + SIGN ** (-0.5 / len(theta)) / 2)

    def units(self, x: np.ndarray) -> np.ndarray:
        """Points in these units."""
        return np.asarray((x - self.centre) / self.scale)

    def distance(self, x: np.ndarray) -> np.ndarray:
        """To the nearest Gauss node, (X,)."""
        right = np.clip(np.searchsorted(self.theta, x), 1, len(self.theta) - 1)
        return np.asarray(np.minimum(np.abs(x - self.theta[right - 1]), np.abs(self.theta[right] - x)))

    def turned(self, x: np.ndarray, left: np.ndarray, change: float, gone: np.ndarray) -> np.ndarray:
        """The most mass, (X,), that a symmetric `change` E of T moves across x, which has the mass `left` on its left.

        The space of the nodes left of x turns by ||E|| / gap at most, gap that of the nodes around x (Davis, Kahan 1970); e_1 has
        sqrt(left) in it and sqrt(1 - left) beside it. Nodes that are `gone` turn among themselves, which moves none of the rest.
        """
        theta = np.delete(self.theta, np.unique(gone[gone < len(self.theta)]))
        angle = change / np.diff(theta, prepend=-np.inf, append=np.inf)[np.searchsorted(theta, x)]
        return np.asarray(2 * np.sqrt(left * (1 - left)) * angle + angle**2)

    def inside(self, x: np.ndarray) -> np.ndarray:
        """Where x has Gauss nodes on both sides, (X,) of bool: elsewhere x is the last node or the first."""
        return np.asarray((x > self.theta[0]) & (x < self.theta[-1]))

    def at(self, x: np.ndarray) -> np.ndarray:
        """The weight at x, (X,): the Christoffel function 1 / sum_j p_j(x)^2, j = 0, ..., k; O(k) a point."""
        found = np.empty(len(x))
        for s in range(0, len(x), MANY):
            u = self.theta - x[s : s + MANY, None]
            C = 1 / np.where(np.abs(u) < EPS, EPS, u)  # theta is known to that; at theta_i the limit is a_i^2
            found[s : s + MANY] = (C @ (self.a * self.b)) ** 2 / (1 + (C * C) @ self.b**2)
        return found

    def middle(self, x: np.ndarray, error: float = SIGN) -> np.ndarray:
        """The weight left of x and half of that at x, (X,), to `error`; O(k L) a point, L = 15 to 150.

        Nearer than NEAREST to a Gauss node it is that of the Gauss rule, which is the Radau rule of its nodes.
        """
        own, inside, distance = self.at(x), self.inside(x), self.distance(x)
        found = np.where(x <= self.theta[0], own / 2, 1 - own / 2)
        on, mass = inside & (distance < NEAREST), self.a**2
        found[on] = (np.cumsum(mass) - mass / 2)[np.abs(self.theta - x[on, None]).argmin(1)]
        near = np.exp2(np.floor(np.log2(np.clip(distance, NEAREST, 0.5))))  # a few sets of poles serve all
        for nearest in np.unique(near[inside & ~on]):
            some = np.flatnonzero(inside & ~on & (near == nearest))
            weights, squares = sign_poles(float(nearest), error, self.reach)
            dtype = np.float32 if error >= SINGLE and nearest >= APART else np.float64
            space = np.empty((CHUNK, len(self.theta), len(squares)), dtype)
            for s in range(0, len(some), CHUNK):
                chunk = some[s : s + CHUNK]
                found[chunk] = (1 - self._resolvent(x[chunk], squares, space[: len(chunk)]) @ weights) / 2
        return found

    def left(self, x: np.ndarray, side: int) -> np.ndarray:
        """The weight left of x, (X,), without that at x (side -1) or with it (+1); Gauss nodes nearer than NEAREST are at x."""
        found = self.middle(x) + side * self.at(x) / 2
        on = self.distance(x) < NEAREST
        found[on] = gauss.left_of(self.theta, self.a**2, x[on] + side * NEAREST, "left" if side < 0 else "right")
        return np.clip(found, 0, 1)

    def _resolvent(self, x: np.ndarray, squares: np.ndarray, space: np.ndarray) -> np.ndarray:
        """Re e_1^T (T_x - x - i y)^-1 e_1 at y^2 = `squares`, (X, L); `space` (X, k, L) is overwritten.

        With u = theta - x, z = x + i y and G = sum a b / (u - i y): the border's Schur complement d - z - sum b^2 / (theta - z)
        is -i y E, E = 1 + sum b^2 / (u (u - i y)), where x no longer cancels, and m = sum a^2 / (u - i y) + i G^2 / (y E).
        """
        u = self.theta - x[:, None]
        a, b, y = self.a, self.b, np.sqrt(squares)
        whole = np.ones_like(u)
        parts = np.stack([a * a * u, a * b * u, a * b * whole, b * b * whole, b * b / u], axis=1)  # (X, 5, k)
        poles = np.add((u * u).astype(space.dtype)[:, :, None], squares.astype(space.dtype), out=space)
        sums = (parts.astype(space.dtype) @ np.divide(1, poles, out=space)).astype(np.float64)
        g_re, g_im, e_re, e_im = sums[:, 1], y * sums[:, 2], 1 + sums[:, 3], y * sums[:, 4]
        re, im = g_re**2 - g_im**2, 2 * g_re * g_im  # of G^2
        return np.asarray(sums[:, 0] - (im * e_re - re * e_im) / (y * (e_re**2 + e_im**2)))


@lru_cache(maxsize=128)
def sign_poles(nearest: float, error: float = SIGN, reach: float = REACH) -> tuple[np.ndarray, np.ndarray]:
    """Weights w (L,) and squares c (L,): sign(t) = t sum_l w_l / (t^2 + c_l) to `error` for nearest <= |t| <= reach.

    The best approximation of its kind: c from the elliptic function sc at equal steps, here by its series in the nome.
    """
    k = nearest / reach
    K, K_small = scipy.special.ellipkm1(k * k), scipy.special.ellipk(k * k)
    count = 2 * int(np.ceil(np.log(4 / error) * np.log(4 / k) / np.pi**2))
    i, n = np.arange(1, count), np.arange(8)[:, None]
    half = np.minimum(i, count - i)  # sc(u) sc(K - u) = 1 / k
    q, v = np.exp(-np.pi * K / K_small), np.pi * K / (2 * K_small) * half / count
    sc = 2 * np.pi / (k * K_small) * (q ** (n + 0.5) / (1 - q ** (2 * n + 1)) * np.sinh((2 * n + 1) * v)).sum(0)
    c = np.where(i == half, sc, 1 / (k * sc)) ** 2
    odd, even = c[0::2], c[1::2]
    w = np.array([np.prod(np.append((even - p) / (np.delete(odd, j) - p), 1.0)) for j, p in enumerate(odd)])  # residues
    t = np.geomspace(1, 1 / k, 4001)[:, None]
    value = t[:, 0] * (w / (t * t + odd)).sum(1)
    return w * (2 * nearest / (value.max() + value.min())), odd * nearest**2


def envelope(
    record: LanczosRecord, x: np.ndarray, gone: np.ndarray = NOTHING, off: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Sharp bounds lower <= mu((-inf, t)) <= mu((-inf, t]) <= upper at t = x, (X,) each, from the moments in the record.

    Chebyshev-Markov-Stieltjes through the Gauss-Radau rule that has x among its k + 1 nodes (Golub, Meurant 2010, ch. 6):
    lower is the weight of its nodes left of x, upper adds the weight at x. In finite precision T belongs to a matrix whose
    eigenvalues differ by some eps ||A|| (Greenbaum 1989), so that lower is taken at x - 8 eps ||T||, upper at x + 8 eps ||T||,
    eps of the products' dtype; whose eigenvectors turn where eigenvalues are close (`Radau.turned`); and an invariant subspace
    has a residual, as far as it is not told from 0. `off`: how far a deflated one may be from its Ritz value. O(k) a point.
    """
    rules, margin, x = Radau(record), gauss.blur(record), np.asarray(x, dtype=float)
    change = gauss.TURNED * gauss.epsilon(record) * gauss.norm(record) / rules.scale
    # the shares of what was deflated are dots of vectors in the products' dtype
    slack = gauss.BLUR * gauss.epsilon(record) if len(record.known) else 0.0
    finite, bounds = np.isfinite(x), []
    for side, name in zip((-1, +1), gauss.SIDES, strict=True):
        mass = (x == np.inf).astype(float)
        at = rules.units(x[finite]) + side * margin / rules.scale
        left = rules.left(at, side)
        mass[finite] = left + side * np.maximum(ROUNDING, rules.turned(at, left, change, gone))
        mass = np.clip(mass, 0, 1)
        mass = gauss.undeflated(record) * mass + gauss.left_of(
            record.known, record.shares, x + side * max(margin, off), name
        )
        mass = np.clip(mass + side * slack, 0.0, 1.0)
        bounds.append(np.where(x == np.inf, 1.0, np.where(x == -np.inf, 0.0, mass)))
    return bounds[0], bounds[1]


def middle(record: LanczosRecord, x: np.ndarray) -> np.ndarray:
    """The middle of the envelope, (X,), to MIDDLE: mu left of x and half of what can sit at x, finite precision apart."""
    rules = Radau(record)
    found = rules.middle(rules.units(np.asarray(x, dtype=float)), MIDDLE)
    known = sum(gauss.left_of(record.known, record.shares, x, side) for side in gauss.SIDES) / 2
    return np.asarray(np.clip(gauss.undeflated(record) * found + known, 0.0, 1.0))


def largest_mass(record: LanczosRecord, x: np.ndarray) -> np.ndarray:
    """The largest share, (X,), of the undeflated part that can sit at x: the Christoffel function (Akhiezer 1965).

    It is the weight that the Gauss-Radau rule through x gives to x, and thereby the width of the envelope there.
    """
    rules = Radau(record)
    return rules.at(rules.units(x))


def truncation(record: LanczosRecord, gone: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """(the most that truncation moves in W1, what finite precision alone leaves of it), of the part of mu off the nodes `gone`.

    The first is half the area of the envelope over [low, high]; on an invariant subspace the envelope has no width between the
    nodes. The blur of finite precision (see `envelope`) adds twice itself.
    """
    nodes = np.clip(np.delete(gauss.gauss_rule(record)[0], np.unique(gone)), low, high)
    opened, rounded = (part / 2 + gauss.blur(record) for part in _opened(record, gone, nodes, low, high))
    return opened, rounded


def truncation_log10(record: LanczosRecord, gone: np.ndarray, low: float, high: float) -> float:
    """The most that truncation moves in W1 of log10, from the nodes: the area of the envelope, with its blur, over [low, high].

    Left of y + blur lie those that the blur takes from y, right of y - blur those that it brings: beside the width at y + blur, a
    node moves that far both ways. So it may if it lies below `low` and the next one above.
    """
    (theta, omega, last), blur, free = gauss.gauss_rule(record), gauss.blur(record), gauss.free_share(record, gone)
    omega[gone] = 0.0
    order = np.argsort(theta)
    theta, omega = theta[order], omega[order] / free
    far = blur + (2 * gauss.residual(record) * last[order] if record.betas[-1] == 0 else 0.0)
    y, near = np.maximum(theta, low + blur), np.append(theta[1:], np.inf) > low - blur
    moved = float(omega[near] @ np.log10((y + far) / np.maximum(y - far, low))[near])
    t = np.log10(np.clip(theta[omega > 0] - blur, low, high))
    return _opened(record, gone, t, math.log10(low), math.log10(high), lambda t: 10.0**t + blur)[0] + moved


def _opened(
    record: LanczosRecord,
    gone: np.ndarray,
    nodes: np.ndarray,
    low: float,
    high: float,
    at: Callable[[np.ndarray], np.ndarray] = lambda t: t,
) -> tuple[float, float]:
    """(the area from low to high of the envelope at `at` of each point, what rounding of masses leaves of it), the blur apart.

    Both of the part of mu off the nodes `gone`.
    """
    rules, free = Radau(record), gauss.free_share(record, gone)
    extra = 2 * ROUNDING + (2 * gauss.BLUR * gauss.epsilon(record) if len(record.known) else 0.0)
    rounded = min(extra / free, 1.0) * (high - low)
    if record.betas[-1] == 0:
        return rounded, rounded

    def width(t: np.ndarray) -> np.ndarray:
        return np.minimum((gauss.undeflated(record) * rules.at(rules.units(at(t))) + extra) / free, 1.0)

    x = np.unique(np.concatenate([[low, high], np.linspace(low, high, 33), nodes]))
    return area(width, np.unique(np.concatenate([x, (x[1:] + x[:-1]) / 2]))), rounded


def area(width: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> float:
    """int width dx from the first of ascending points x (X,) to the last, by trapezoids that are split until they are SETTLED.

    They are split near their higher end: a node that stands alone is a peak whose width is the root of its residual.
    """
    w, settled = width(x), 0.0
    x, w = np.stack([x[:-1], x[1:]]), np.stack([w[:-1], w[1:]])  # (2, intervals): both ends of each
    for splits in range(SPLITS + 1):
        length = x[1] - x[0]
        parts, bend = length * (w[0] + w[1]) / 2, length * np.abs(w[0] - w[1]) / 2  # a monotone width errs by less
        total = settled + float(parts.sum())
        coarse = bend > SETTLED * total / (len(bend) + 1)
        if splits == SPLITS or bend.sum() <= SETTLED * total or not coarse.any():
            break
        settled += float(parts[~coarse].sum())
        x, w = x[:, coarse], w[:, coarse]
        cuts = np.where(w[0] >= w[1], CUTS, 1 - CUTS[::-1]) * (x[1] - x[0]) + x[0]
        inner = width(cuts.reshape(-1)).reshape(cuts.shape)
        x, w = np.vstack([x[:1], cuts, x[1:]]), np.vstack([w[:1], inner, w[1:]])
        x, w = (np.stack([a[:-1].reshape(-1), a[1:].reshape(-1)]) for a in (x, w))
    return total
