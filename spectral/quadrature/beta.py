"""The law of pooled Gaussian probes: what m of them see of n eigenvalues, whatever these are.

The mass that m pooled probes have on r of n eigenvectors is Beta(m r / 2, m (n - r) / 2) exactly, a ratio of chi-squares. All
arrays are float64 numpy.
"""

from __future__ import annotations

import numpy as np
import scipy

LOCATED = 1e-7  # of the range: nodes of different probes as close as this are one eigenvalue
ROUNDING = 1e-11  # of masses
MISSED = 1.6e-6  # mass of an eigenvector, in units of 1/n, that a Gaussian probe is below once in a thousand
DRAWS = 400  # of the probes' noise


def count_interval(
    lower: np.ndarray, upper: np.ndarray, probes: int, dim: int, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Integers r_lo <= r <= r_hi: how many of `dim` eigenvalues lie where pooled Gaussian probes have mass in [lower, upper].

    The two one-sided tests at (1 - confidence) / 2 of the Beta law are inverted by bisection over r. The masses are known to
    rounding only (1 - 1e-16 must not exclude r = n), and to what eigenvectors that were projected out have left of themselves,
    for which `MISSED` is taken to be nothing. A mass that no number of eigenvalues would have gives the two next to it.
    """
    tail, nothing = (1 - confidence) / 2, max(ROUNDING, MISSED / dim)
    lower, upper = np.where(lower < nothing, 0.0, lower), np.where(upper > 1 - nothing, 1.0, upper)
    least, most = dim - _most(1 - lower, probes, dim, tail), _most(upper, probes, dim, tail)
    return np.minimum(least, most), np.maximum(least, most)


def _most(mass: np.ndarray, probes: int, dim: int, tail: float) -> np.ndarray:
    """The most eigenvectors, (X,), that have no more than `mass` with a probability of `tail` or more."""
    low, high = np.zeros(mass.shape), np.full(mass.shape, float(dim))
    while np.any(low < high):
        r = np.ceil((low + high) / 2)
        a, b = (np.clip(probes / 2 * count, 1e-300, None) for count in (r, dim - r))
        at_most = np.where(r >= dim, np.where(mass >= 1, 1.0, 0.0), scipy.special.betainc(a, b, np.clip(mass, 0, 1)))
        fits = (r <= 0) | (at_most >= tail)
        low, high = np.where(fits, r, low), np.where(fits, high, np.maximum(r - 1, low))
    return low


def pooled_variance(probes: int, dim: int, variance: float | np.ndarray) -> float | np.ndarray:
    """Variance of a pooled quadratic form: 2 Var_lambda(f) / (m n + 2), exact for m pooled Gaussian probes in dimension n.

    g^T f(A) g / g^T g of one vector uniform on the sphere in R^N has variance 2 Var(f) / (N + 2); pooled probes are one such
    vector of I_m (x) f(A) in R^{m n}.
    """
    return 2 * variance / (probes * dim + 2)


def located(nodes: np.ndarray, masses: np.ndarray, least: float) -> np.ndarray:
    """`masses` (K, M) of K probes' `nodes`, raised where what they hold is certainly too light.

    A value within LOCATED of the range on which every probe has a node is an eigenvalue, whose true mass is at least `least`;
    the random mass may be far smaller, and a variance taken with it too small (with one probe, without bound). So it is of
    what has not converged: at or beyond the j-th Ritz value of a probe from either end lie j eigenvalues (Cauchy).
    """
    held = masses > 0
    x, owner = nodes[held], np.nonzero(held)[0]
    order = np.argsort(x, kind="stable")
    group = np.empty(len(x), dtype=int)
    group[order] = np.cumsum(np.diff(x[order], prepend=x[order[0]]) > LOCATED * np.ptp(x))
    seen = np.zeros((group.max() + 1, len(nodes)), dtype=bool)
    seen[group, owner] = True
    total = np.bincount(group[order], masses[held][order])
    raised = masses.copy()
    raised[held] *= np.where(seen.all(1), np.maximum(1.0, least / total), 1.0)[group]
    # a copy that rounding makes of an eigenvalue, of next to no mass or beside another, is none of its own
    own = np.flatnonzero((masses > MISSED * least * masses.sum(1, keepdims=True))[held])
    own = own[np.lexsort((x[own], owner[own]))]
    apart = np.diff(x[own], prepend=-np.inf) > LOCATED * np.ptp(x)
    told = np.zeros((len(x), len(nodes)))
    told[own, owner[own]] = apart | (np.diff(owner[own], prepend=-1) > 0)
    for side in (order[::-1], order):
        beyond, at_least = np.cumsum(raised[held][side]), least * told[side].cumsum(0).max(1)
        if (beyond < at_least).any():
            weights = np.empty(len(x))
            weights[side] = np.diff(np.maximum(beyond, at_least), prepend=0.0)
            raised[held] = weights
    return raised


def noise_of(cdf: np.ndarray, probes: int, dim: int) -> np.ndarray:
    """|F_g - F| (X, DRAWS) over draws of pooled Gaussian probes, F a CDF of `dim` eigenvalues that is `cdf` (X,), ascending.

    The masses that m pooled probes have between its points are Dirichlet(m r_i / 2), r_i the eigenvalues there: the joint law
    of which the Beta law is one margin. Simulated with a fixed seed, each mass by random numbers of its own: what one of them
    takes moves no other.
    """
    F = np.maximum.accumulate(np.clip(cdf, 0, 1))
    noisy = np.cumsum(drawn(probes * dim * np.diff(F, prepend=0.0, append=1.0) / 2), axis=0)
    return np.asarray(np.abs(noisy[:-1] / noisy[-1] - F[:, None]))


def drawn(shape: np.ndarray, stream: int = 0) -> np.ndarray:
    """Gamma variables of these shapes (X,), each by random numbers of its own: (X, DRAWS); of another `stream`, by others."""
    bits = np.random.PCG64(0)
    rng, begin, draws = np.random.Generator(bits), bits.state, np.empty((len(shape), DRAWS))
    for i, own in enumerate(shape):
        bits.state = begin
        bits.advance(stream << 64 | i << 32)
        draws[i] = rng.standard_gamma(own, DRAWS)
    return draws
