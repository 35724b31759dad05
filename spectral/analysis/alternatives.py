"""Rivals of the power law on the same tail, and Vuong's likelihood-ratio test against each.

With u = ln(x/xmin) every law here is an exponential family, density exp(−a u − b t(u)) / Z(a, b) on 0 ≤ u ≤ L, so that
its log-likelihood is concave in (a, b) and has one maximum. L = ln(xmax/xmin), or infinity. Symbols: p the normalised
weights of the points, a = alpha − 1 for the power law itself (b = 0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import erfc, exp, log, sqrt

import numpy as np
import scipy

from spectral.analysis.counting import Counting
from spectral.results import Array, nan

gauss_legendre = cache(np.polynomial.legendre.leggauss)  # hundreds of nodes take longer than what is done with them
OF_ALL = "lognormal of all eigenvalues"
NEGLIGIBLE = 45.0  # exp(-45) = 3e-20: beyond it an integrand no longer changes a float64 sum


@dataclass(frozen=True)
class LikelihoodRatio:
    """Outcome of one test. `ratio` is ln(likelihood of the power law / of the rival) for the n_eff effective
    eigenvalues: positive favours the power law. `p` is the probability of so large a ratio between equally good laws:
    above 0.1 the data do not tell. `parameters` of the fitted rival are in units of the eigenvalues."""

    ratio: float
    p: float
    favours: str
    parameters: dict[str, float]


def log_normaliser(a: float, b: float, t: Callable[[Array], Array], L: float, width: float) -> tuple[float, Array]:
    """ln Z(a, b) and the means of (u, t) under exp(−a u − b t(u)) on [0, L]; ln Z is inf where the integral diverges.

    `width` is the order of magnitude of u. Gauss–Legendre with 200 nodes, between the points where the integrand has
    fallen by exp(−45) from its maximum.

    >>> value, means = log_normaliser(2.0, 0.0, lambda u: u, np.inf, 1.0)  # an exponential of rate 2: Z = 1/2, mean 1/2
    >>> round(float(np.exp(value)), 9), means.round(9)
    (0.5, array([0.5, 0.5]))
    """
    grid = np.concatenate([[0.0], width * np.geomspace(1e-6, 1e6, 400)])
    grid = np.append(grid[grid < L], L) if np.isfinite(L) else grid
    with np.errstate(over="ignore"):  # an infinite exponent is an integrand of 0, as it should be
        h = a * grid + b * t(grid)
    lowest = int(np.argmin(h))
    far = np.flatnonzero(h > h[lowest] + NEGLIGIBLE)
    if not np.isfinite(L) and not np.any(far > lowest):
        return float("inf"), np.full(2, np.nan)
    left = grid[far[far < lowest].max()] if np.any(far < lowest) else 0.0
    right = grid[far[far > lowest].min()] if np.any(far > lowest) else grid[-1]
    x, w = gauss_legendre(200)
    u = left + (right - left) * (x + 1) / 2
    with np.errstate(over="ignore"):
        density = w * (right - left) / 2 * np.exp(h[lowest] - a * u - b * t(u))
    Z = float(density.sum())
    if not 0 < Z < np.inf:  # the mass lies in a sliver between two grid points: no law that 200 nodes can integrate
        return float("inf"), np.full(2, np.nan)
    return log(Z) - float(h[lowest]), np.array([density @ u, density @ t(u)]) / Z


def _maximise(
    mean_u: float, mean_t: float, t: Callable[[Array], Array], L: float, power: float, fixed_a: float | None = None
) -> tuple[float, float, float]:
    """Maximum-likelihood (a, b ≥ 0) from the sufficient statistics; returns a, b and ln Z.

    Where the optimiser ends below the power law (`power`, 0), which a family with free a contains, that is returned.
    """

    def negative(theta: Array) -> tuple[float, Array]:
        a, b = (theta[0], theta[1]) if fixed_a is None else (fixed_a, theta[0])
        logZ, means = log_normaliser(a, b, t, L, mean_u)
        if not np.isfinite(logZ):
            return 1e10, np.zeros(len(theta))
        gradient = np.array([mean_u, mean_t]) - means
        return a * mean_u + b * mean_t + logZ, gradient if fixed_a is None else gradient[1:]

    if fixed_a is not None:
        least = [(1e-12 / mean_t, None)]
        best = scipy.optimize.minimize(negative, [1 / mean_t], jac=True, method="L-BFGS-B", bounds=least)
        a, b = fixed_a, float(best.x[0])
    else:
        start, bounds = [1 / mean_u, 1e-3 / mean_t], [(None, None), (0.0, None)]
        best = scipy.optimize.minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds)
        contained = negative(np.array([power, 0.0]))[0]
        a, b = (float(best.x[0]), float(best.x[1])) if best.fun <= contained else (power, 0.0)
    return a, b, log_normaliser(a, b, t, L, mean_u)[0]


def _vuong(
    name: str, difference: Array, p: Array, n_eff: float, nested: bool, parameters: dict[str, float]
) -> LikelihoodRatio:
    """Ratio R = n Σ p d and its p-value: Vuong (1989) for separate laws, χ² with one degree of freedom for nested."""
    mean = float(p @ difference)
    R = n_eff * mean
    spread = sqrt(max(float(p @ (difference - mean) ** 2), 0.0))
    if nested:
        chance = erfc(sqrt(abs(R)))  # the survival function of χ²₁ at 2|R|
    elif spread <= 1e-12 * (1 + abs(mean)):
        chance = 1.0 if abs(R) < 1e-9 else 0.0
    else:
        chance = erfc(abs(R) / (sqrt(2 * n_eff) * spread))
    favours = "neither" if chance > 0.1 else "power law" if R > 0 else name
    return LikelihoodRatio(R, chance, favours, parameters)


def against_power_law(u: Array, p: Array, a: float, L: float, n_eff: float, xmin: float) -> dict[str, LikelihoodRatio]:
    """Vuong tests of the power law exp(−a u) against four rivals on the same points u with weights p (sum 1).

    Truncated power law x^{−α} e^{−rate·x} (contains the power law: χ²₁), lognormal and exponential, each cut off at
    xmin (and at xmax, if L is finite), and log-uniform, the density 1/x between xmin and the largest point ("sloppy"
    spectra). Sources: Clauset, Shalizi & Newman (2009), section 5; Yang, Mao & Chaudhari (2021) for the last.
    """
    mean_u = float(p @ u)
    scale = float(p @ np.expm1(u))  # so that b is of order one whatever the decades that the tail spans

    def growth(v: Array) -> Array:
        return np.expm1(np.minimum(v, 600.0)) / scale  # exp(600) is the last comfortable float64

    def square(v: Array) -> Array:
        return v**2 / (2 * mean_u**2)

    power = -a * u - log_normaliser(a, 0.0, square, L, mean_u)[0]
    tests = {}

    def add(name: str, log_density: Array, nested: bool, parameters: dict[str, float]) -> None:
        tests[name] = _vuong(name, power - log_density, p, n_eff, nested, parameters)

    c, b, logZ = _maximise(mean_u, 1.0, growth, L, a)
    law = -c * u - b * growth(u) - logZ
    add("truncated power law", law, True, {"alpha": c + 1, "rate": b / (scale * xmin)})

    c, b, logZ = _maximise(mean_u, float(p @ square(u)), square, L, a)
    law = -c * u - b * square(u) - logZ
    variance = mean_u**2 / b if b > 0 else float("inf")
    mu = log(xmin) - c * variance if b > 0 else float("-inf")
    add("lognormal", law, False, {"mu": mu, "sigma": sqrt(variance)})

    c, b, logZ = _maximise(mean_u, 1.0, growth, L, a, fixed_a=-1.0)
    law = u - b * growth(u) - logZ
    add("exponential", law, False, {"rate": b / (scale * xmin)})

    end = L if np.isfinite(L) else float(u.max())
    add("log-uniform", np.full_like(u, -log(end)), False, {"xmin": xmin, "xmax": xmin * exp(end)})
    return tests


def lognormal_of_all(c: Counting, u: Array, p: Array, a: float, L: float, n_eff: float, xmin: float) -> LikelihoodRatio:
    """The power law of a tail against the one lognormal that fits all eigenvalues best, on the points u, p of the tail.

    The top decade of a wide lognormal passes for a power law on its own; what lies below it tells. The lognormal is the
    straight line Φ⁻¹(F) = (ln x − mu)/sigma, each point weighted by what is known of F there. `parameters` also has
    "misfit": D √n of it over all eigenvalues, less what the quadrature leaves open, half of the weight between two nodes
    (Lilliefors: below .89 in 95 of 100 samples). p is Vuong's, but nothing of this law was fitted to the tail.
    """
    total, y = c.total, np.log(c.x)
    before, after, open_ = 1 - c.at_least / total, 1 - c.above / total, c.loose / total / 2
    mass = np.diff(after, prepend=0.0)
    F = np.clip((before + after) / 2, 1e-12, 1 - 1e-12)
    kept = (mass > 0) & (total * np.minimum(F, 1 - F) > 0.5)
    if kept.sum() < 3:
        return LikelihoodRatio(nan, nan, "neither", {"mu": nan, "sigma": nan, "misfit": nan})
    z, at = scipy.special.ndtri(F[kept]), y[kept]
    spread = F[kept] * (1 - F[kept]) + total * open_[kept] ** 2
    w = mass[kept] * np.exp(-(z**2)) / spread  # 1/Var z, by the slope of Φ⁻¹
    slope = float(w @ ((at - np.average(at, weights=w)) * z) / (w @ (at - np.average(at, weights=w)) ** 2))
    sigma = 1 / slope
    mu = float(np.average(at, weights=w) - sigma * np.average(z, weights=w))
    law = scipy.special.ndtr((y - mu) / sigma)
    D = float(np.max(np.maximum(np.abs(before - law), np.abs(after - law)) - open_))
    start, v = (log(xmin) - mu) / sigma, (u + log(xmin) - mu) / sigma
    above, beyond = scipy.special.log_ndtr(-start), scipy.special.log_ndtr(-(start + L / sigma))
    inside = above + np.log1p(-np.exp(beyond - above))
    power = -a * u - log_normaliser(a, 0.0, np.square, L, float(p @ u))[0]
    difference = power + v**2 / 2 + log(sigma * sqrt(2 * np.pi)) + inside
    misfit = D * sqrt(float(c.independent(np.zeros(1, int))[0]))
    return _vuong(OF_ALL, difference, p, n_eff, False, {"mu": mu, "sigma": sigma, "misfit": misfit})
