"""What an exponent is estimated from: the likelihood of a tail, Hill's values, and where a density peaks."""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import ArrayLike

from spectral.analysis.counting import MASSIVE
from spectral.quadrature.cdf import told_apart
from spectral.results import Array, nan
from spectral.spectrum import Spectrum


def exponent(mean_u: ArrayLike, L: ArrayLike) -> Array:
    """Maximum-likelihood a = alpha − 1 from the mean of u = ln(x/xmin) on 0 ≤ u ≤ L: a = 1/mean for L = ∞, otherwise
    the root of 1/a − L/(e^{aL} − 1) = mean, which is 0 for mean = L/2 and negative above.

    >>> exponent([0.5, 0.5, 0.5], [np.inf, 1.0, 50.0]).round(9)
    array([ 2., -0.,  2.])
    """
    mean_u, L = np.broadcast_arrays(np.asarray(mean_u, np.float64), np.asarray(L, np.float64))
    finite = np.isfinite(L)
    a = np.full(mean_u.shape, np.inf)
    np.divide(1.0, mean_u, out=a, where=mean_u > 0)
    if not finite.any():
        return a
    y = np.clip(mean_u[finite] / L[finite], 1e-12, 1 - 1e-12)
    low, high = -1 / (1 - y), 1 / y  # 1/t − 1/(e^t − 1) lies below 1/t, and above 1 + 1/t for t < 0
    for _ in range(80):
        t = (low + high) / 2
        small = np.abs(t) < 1e-4
        safe = np.where(small, 1.0, t)
        g = np.where(small, 0.5 - t / 12, 1 / safe - 1 / np.expm1(np.clip(safe, -700, 700)))
        low, high = np.where(g > y, t, low), np.where(g > y, high, t)
    a[finite] = (low + high) / 2 / L[finite]
    return a


def model_cdf(u: Array, a: float, L: float) -> Array:
    """CDF of the power law in u: (1 − e^{−au}) / (1 − e^{−aL}), and u/L at a = 0."""
    if not np.isfinite(L):
        return -np.expm1(-a * u)
    if abs(a * L) < 1e-9:
        return u / L
    if a < 0:  # the law grows towards xmax: factor out e^{−aL}, which may overflow
        return np.exp(a * (L - u)) * np.expm1(a * u) / np.expm1(a * L)
    return np.expm1(-a * u) / np.expm1(-a * L)


def hill(values: ArrayLike, k: int | None = None) -> tuple[float, float]:
    """Hill's estimate of alpha and its standard error: 1 + (k−1)/Σ_{i<k} ln(λ_i/λ_k) over the k largest values.

    Parameters
    ----------
    values : array
        Exact eigenvalues in any order.
    k : int, optional
        How many; by default the 50 largest, or half of them if there are fewer than 100.

    Returns
    -------
    (float, float)
        alpha, and (alpha−1)/√(k−1); nan with fewer than two positive values or no spread.

    Raises
    ------
    ValueError
        If k exceeds the number of positive values.

    References
    ----------
    Hill (1975), A simple general approach to inference about the tail of a distribution.

    Examples
    --------
    >>> hill([np.e, 1.0], k=2)
    (2.0, 1.0)
    """
    x = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    x = x[x > 0]
    if k is None:
        k = min(50, len(x) // 2 if len(x) >= 4 else len(x))
    elif not 2 <= k <= len(x):
        raise ValueError(f"k={k} with {len(x)} positive values; use 2 <= k <= {len(x)}.")
    total = float(np.sum(np.log(x[: k - 1] / x[k - 1]))) if k >= 2 else 0.0
    if not total > 0:
        return nan, nan
    alpha = 1 + (k - 1) / total
    return alpha, (alpha - 1) / float(np.sqrt(k - 1))


def top_values(spectrum: Spectrum, k: int) -> Array:
    """Up to k largest eigenvalues that are known exactly, descending: atoms and known zeros above every node.

    Atoms come out as often as their multiplicity says. A quadrature node is no eigenvalue, so the list ends at the
    largest node that carries mass; for an exact spectrum it ends at k or at the dimension.
    """
    values, counts = spectrum.known_points()
    massive = spectrum.weights * spectrum.dim > MASSIVE
    if massive.any():
        above = values > spectrum.nodes[massive].max()
        values, counts = values[above], counts[above]
    return np.repeat(values[::-1], np.minimum(counts[::-1].astype(int), k))[:k]


def hill_of(spectrum: Spectrum) -> tuple[float, float]:
    """Hill's estimate from at most 50 largest exact eigenvalues: all deflated ones, at most half of a full list."""
    top = top_values(spectrum, 100)
    top = top[top > 0]
    if len(top) < 2:
        return nan, nan
    k = len(top) // 2 if spectrum.is_exact and 4 <= len(top) < 100 else min(50, len(top))
    alpha, error = hill(top, k)
    copies = np.bincount(told_apart(top[: k - 1], spectrum.rounding))
    return alpha, error * float(np.sqrt(np.sum(copies**2) / (k - 1)))  # the copies of a value are one draw


def log_density_peak(x: Array, w: Array, n_eff: float) -> float:
    """Where the density per unit of ln λ is highest: a Gaussian kernel estimate, Silverman's width from n_eff points.

    It only places xmin; the fit itself never sees the smoothed density.
    """
    y = np.log(x)
    if np.ptp(y) == 0:
        return float(x[0])
    mean = float(np.average(y, weights=w))
    middle = np.interp([0.25, 0.75], (np.cumsum(w) - w / 2) / w.sum(), y)
    spread = float(np.sqrt(np.average((y - mean) ** 2, weights=w)))
    spread = min(spread, (middle[1] - middle[0]) / 1.349) or spread
    width = max(0.9 * spread * max(n_eff, 1.0) ** -0.2, 1e-3 * np.ptp(y))
    edges = np.linspace(y[0], y[-1], 4097)
    mass = np.histogram(y, bins=edges, weights=w)[0]
    value = scipy.ndimage.gaussian_filter1d(mass, width / (edges[1] - edges[0]), mode="constant", truncate=6.0)
    at = np.argmax(value)
    return float(np.clip(np.exp((edges[at] + edges[at + 1]) / 2), x[0], x[-1]))
