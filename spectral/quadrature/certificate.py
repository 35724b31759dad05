"""The certified envelope of a CDF, from the eigenvectors of T.

With T = S Theta S^T of k steps, a_i = S_1i and b_i = beta_k S_ki, the Gauss-Radau rule that has x among its k + 1 nodes is
the spectral measure of e_1 under the bordered matrix of Theta, b and d = x + sum_i b_i^2 / (theta_i - x). Its weight at x is
the Christoffel function. Its weight left of x is (1 - sum_j w_j sign(xi_j - x)) / 2, and a rational approximation of the sign
turns that sum into values of one resolvent on the line Re z = x, where the node x itself is imaginary and drops out. Between
two nodes xi there is one theta: no node but x is nearer to x than the nearest theta, and x outside of all theta is the first
node or the last.

Legend: X points, k steps, L poles. All arrays are float64 numpy, in units of the radius of T around its first alpha.
Source: Golub, Meurant (2010), ch. 6; the best rational sign: Zolotarev (1877), as in Nakatsukasa, Freund (2016), SIAM Rev. 58.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.special import ellipk, ellipkm1

from spectral.krylov.lanczos import LanczosRecord

SIGN = 1e-13  # largest error of the sign between NEAREST and REACH
NEAREST = 2.0**-49  # to a Gauss node: theta itself is known to a few units of 2^-52
REACH = 9.0  # Gauss nodes stay within 1, and a Radau node beyond 8 has a weight below 16^(-2k)
SINGLE = 1e-6  # an error that single precision has: half the time
LEAST = 7  # steps for that to be rounding
EPS = 2.0**-52
CHUNK = 16  # points at a time: their (X, k, L) array stays in cache


class Radau:
    """The Radau rules of one record, for T - alpha_1 I divided by `scale`."""

    def __init__(self, record: LanczosRecord, scale: float) -> None:
        theta, S = record.centred
        self.theta = theta / scale
        self.a, self.b = S[0], S[-1] * (record.betas[-1] / scale)

    def distance(self, x: np.ndarray) -> np.ndarray:
        """To the nearest Gauss node, (X,)."""
        right = np.clip(np.searchsorted(self.theta, x), 1, len(self.theta) - 1)
        return np.minimum(np.abs(x - self.theta[right - 1]), np.abs(self.theta[right] - x))

    def inside(self, x: np.ndarray) -> np.ndarray:
        """Where x has Gauss nodes on both sides, (X,) of bool: elsewhere x is the last node or the first."""
        return (x > self.theta[0]) & (x < self.theta[-1])

    def reaches(self, x: np.ndarray) -> np.ndarray:
        """Where `middle` is exact to rounding, (X,) of bool."""
        return ~self.inside(x) | ((len(self.theta) >= LEAST) & (self.distance(x) >= NEAREST))

    def at(self, x: np.ndarray) -> np.ndarray:
        """The weight at x, (X,): the Christoffel function 1 / sum_j p_j(x)^2, j = 0, ..., k; O(k) a point."""
        found = np.empty(len(x))
        for s in range(0, len(x), 256):
            u = self.theta - x[s : s + 256, None]
            C = 1 / np.where(np.abs(u) < EPS, EPS, u)  # theta is known to that; at theta_i the limit is a_i^2
            found[s : s + 256] = (C @ (self.a * self.b)) ** 2 / (1 + (C * C) @ self.b**2)
        return found

    def middle(self, x: np.ndarray, error: float = SIGN) -> np.ndarray:
        """The weight left of x and half of that at x, (X,), where `reaches`, to `error`; O(k L) a point, L = 15 to 120.

        Nearer to a Gauss node it is that of the Gauss rule, which is the Radau rule of its nodes.
        """
        own, inside, distance = self.at(x), self.inside(x), self.distance(x)
        found = np.where(x <= self.theta[0], own / 2, 1 - own / 2)
        on, mass = inside & (distance < NEAREST), self.a**2
        found[on] = (np.cumsum(mass) - mass / 2)[np.abs(self.theta - x[on, None]).argmin(1)]
        near = np.exp2(np.floor(np.log2(np.clip(distance, NEAREST, 0.5))))  # a few sets of poles serve all
        for nearest in np.unique(near[inside & ~on]):
            some = np.flatnonzero(inside & ~on & (near == nearest))
            weights, squares = sign_poles(float(nearest), error)
            space = np.empty((CHUNK, len(self.theta), len(squares)), np.float32 if error >= SINGLE else np.float64)
            for s in range(0, len(some), CHUNK):
                chunk = some[s : s + CHUNK]
                found[chunk] = (1 - self._resolvent(x[chunk], squares, space[: len(chunk)]) @ weights) / 2
        return found

    def _resolvent(self, x: np.ndarray, squares: np.ndarray, space: np.ndarray) -> np.ndarray:
        """Re e_1^T (T_x - x - i y)^-1 e_1 at y^2 = `squares`, (X, L); `space` (X, k, L) is overwritten.

        With u = theta - x, z = x + i y and G = sum a b / (u - i y): the border's Schur complement d - z - sum b^2 / (theta - z)
        is -i y E, E = 1 + sum b^2 / (u (u - i y)), where x no longer cancels, and m = sum a^2 / (u - i y) + i G^2 / (y E).
        """
        u = self.theta - x[:, None]
        a, b, y = self.a, self.b, np.sqrt(squares)
        whole = np.ones_like(u)
        parts = np.stack([a * a * u, a * b * u, a * b * whole, b * b * whole, b * b / u], axis=1).astype(
            space.dtype
        )  # (X, 5, k)
        poles = np.add((u * u).astype(space.dtype)[:, :, None], squares.astype(space.dtype), out=space)
        sums = (parts @ np.divide(1, poles, out=space)).astype(np.float64)
        g_re, g_im, e_re, e_im = sums[:, 1], y * sums[:, 2], 1 + sums[:, 3], y * sums[:, 4]
        re, im = g_re**2 - g_im**2, 2 * g_re * g_im  # of G^2
        return sums[:, 0] - (im * e_re - re * e_im) / (y * (e_re**2 + e_im**2))


@lru_cache(maxsize=128)
def sign_poles(nearest: float, error: float = SIGN) -> tuple[np.ndarray, np.ndarray]:
    """Weights w (L,) and squares c (L,): sign(t) = t sum_l w_l / (t^2 + c_l) to `error` for nearest <= |t| <= REACH.

    The best approximation of its kind: c from the elliptic function sc at equal steps, here by its series in the nome.
    """
    k = nearest / REACH
    K, K_small = ellipkm1(k * k), ellipk(k * k)
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
