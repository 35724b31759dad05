"""The Marchenko–Pastur bulk of a spectrum, and the spikes that stand above it.

Symbols: γ = d/n the aspect ratio, σ² the variance of a matrix entry, λ± = σ²(1 ± √γ)² the edges. The positive part of a
bulk with γ > 1 is that of its transpose, so the fit runs on γ' ≤ 1 and the zeros decide afterwards which side it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from spectral.analysis.jackknife import Measure
from spectral.analysis.theory import marchenko_pastur_cdf, marchenko_pastur_edges
from spectral.measure import zero_level

if TYPE_CHECKING:
    from spectral.spectrum import Spectrum

Array = NDArray[np.float64]
NAN = float("nan")
ROUNDING = 2.0**-52
TRACY_WIDOM = 3.27  # the largest eigenvalue of a pure bulk exceeds this many scales once in a thousand matrices
LEVELS = np.linspace(0.05, 0.95, 37)  # quantiles that are matched: neither a spike nor the smallest eigenvalues enter
RATIOS = np.concatenate([np.geomspace(1e-4, 0.05, 12), np.linspace(0.06, 1.0, 48)])


@dataclass(frozen=True)
class MarchenkoPastur:
    """A fitted bulk. sigma: standard deviation of a matrix entry, √ of the eigenvalues' unit. ratio: γ = d/n, above 1
    when the zeros are as many as 1 − 1/γ of all. lower, upper: the edges. spikes: eigenvalues beyond the upper edge and
    its Tracy–Widom width. ks: largest CDF distance between the bulk and the law. bulk: eigenvalues that were fitted.
    zeros: eigenvalues that are 0 up to rounding; negative: those below; neither is fitted."""

    sigma: float
    ratio: float
    lower: float
    upper: float
    spikes: float
    ks: float
    bulk: float = NAN
    zeros: float = 0.0
    negative: float = 0.0


def zero_threshold(values: Array, dim: float, eps: float = ROUNDING) -> float:
    """`Spectrum.rounding` of a plain measure: at or below it an eigenvalue is indistinguishable from 0."""
    return zero_level(float(np.max(np.abs(values), initial=0.0)), dim, eps)


def product_epsilon(spectrum: Spectrum) -> float:
    """`Spectrum.epsilon`."""
    return spectrum.epsilon


def _distance(x: Array, w: Array, ratio: float, sigma: float) -> float:
    middle = (np.cumsum(w) - w / 2) / w.sum()
    return float(np.max(np.abs(middle - marchenko_pastur_cdf(x, ratio, sigma))))


def _mean_square(x: Array, w: Array, ratio: float, sigma: float) -> float:
    middle = (np.cumsum(w) - w / 2) / w.sum()
    return float(w @ (middle - marchenko_pastur_cdf(x, ratio, sigma)) ** 2 / w.sum())


def _standard_quantiles() -> Array:
    """Quantiles of the bulk with σ = 1 for every trial ratio, (ratios, levels)."""
    table = np.empty((len(RATIOS), len(LEVELS)))
    for i, ratio in enumerate(RATIOS):
        lower, upper = marchenko_pastur_edges(ratio)
        x = lower + (upper - lower) * (1 - np.cos(np.linspace(0, np.pi, 400))) / 2
        table[i] = np.interp(LEVELS, marchenko_pastur_cdf(x, ratio), x)
    return table


STANDARD = _standard_quantiles()


def _fit_bulk(x: Array, w: Array) -> tuple[float, float]:
    """(γ' ≤ 1, σ'²): quantiles pick the start, then the least mean square distance of the CDFs (Cramér–von Mises).

    The largest distance instead would follow the steps of a quadrature's nodes, and put its last node above the edge.
    """
    middle = (np.cumsum(w) - w / 2) / w.sum()
    observed = np.interp(LEVELS, middle, x)
    scale = STANDARD @ observed / np.sum(STANDARD**2, axis=1)
    best = int(np.argmin(np.sum((observed - scale[:, None] * STANDARD) ** 2, axis=1)))
    size = float(scale[best])

    def objective(theta: Array) -> float:
        root, factor = theta  # √γ', because the edges move with it
        if not (1e-3 <= root <= 1 and 0.2 < factor < 5):
            return 2.0
        return _mean_square(x, w, float(root**2), float(np.sqrt(size * factor)))

    start = np.array([np.sqrt(RATIOS[best]), 1.0])
    simplex = start + np.array([[0.0, 0.0], [-0.05 * start[0], 0.0], [0.0, 0.05]])
    options = {"initial_simplex": simplex, "xatol": 1e-5, "fatol": 1e-12, "maxiter": 200}
    found = minimize(objective, start, method="Nelder-Mead", options=options)
    return float(found.x[0] ** 2), float(size * found.x[1])


def _edge_width(ratio: float, variance: float, bulk: float) -> float:
    """Tracy–Widom scale of the largest eigenvalue, Johnstone (2001), for p = `bulk` eigenvalues and p/γ' samples."""
    p, n = bulk, bulk / ratio
    return variance / n * (np.sqrt(n) + np.sqrt(p)) * (1 / np.sqrt(n) + 1 / np.sqrt(p)) ** (1 / 3)


def fit_measure(values: Array, counts: Array, probes: int = 0, eps: float = ROUNDING) -> MarchenkoPastur:
    """`marchenko_pastur` of a plain measure (values ascending, counts in eigenvalues); probes=0 for an exact one."""
    dim = float(counts.sum())
    threshold = zero_threshold(values, dim, eps)
    keep = (values > threshold) & (counts > 0)
    x, where = np.unique(values[keep], return_inverse=True)  # repeated values are one step of the CDF
    w = np.bincount(where, weights=counts[keep], minlength=len(x)).astype(np.float64)
    zeros = float(counts[np.abs(values) <= threshold].sum())
    negative = float(counts[values < -threshold].sum())
    if len(x) == 0:
        return MarchenkoPastur(NAN, NAN, NAN, NAN, NAN, NAN, 0.0, zeros, negative)
    if x[-1] - x[0] <= 1e-12 * x[-1]:  # one eigenvalue, or many equal ones: the limit γ = 0
        return MarchenkoPastur(
            float(np.sqrt(x[0])), 0.0, float(x[0]), float(x[-1]), 0.0, 0.0, float(w.sum()), zeros, negative
        )
    inside = len(x)
    for _ in range(20):  # spikes only ever leave: the loop ends
        ratio, variance = _fit_bulk(x[:inside], w[:inside])
        lower, upper = marchenko_pastur_edges(ratio, np.sqrt(variance))
        bulk = float(w[:inside].sum())
        # the fitted variance carries the noise of the probes' trace, Var/mean² = 2(1 + γ')/(bulk · probes)
        noise = upper * 3 * np.sqrt(2 * (1 + ratio) / (bulk * probes)) if probes else 0.0
        limit = upper + TRACY_WIDOM * _edge_width(ratio, variance, bulk) + noise
        remaining = int(np.searchsorted(x, limit, side="right"))
        if remaining >= inside or remaining < 3:
            break
        inside = remaining
    ks = _distance(x[:inside], w[:inside], ratio, np.sqrt(variance))
    spikes, empty = float(w[x > limit].sum()), zeros / dim
    if abs(empty - (1 - ratio)) < empty:  # as many zeros as d > n makes: the same bulk, seen from the larger side
        ratio, variance = 1 / ratio, variance * ratio
    sigma = float(np.sqrt(variance))
    return MarchenkoPastur(sigma, ratio, lower, upper, spikes, ks, float(w[:inside].sum()), zeros, negative)


def marchenko_pastur(spectrum: Spectrum) -> MarchenkoPastur:
    """Fit the Marchenko–Pastur law to the bulk and count the spikes above it.

    Quantiles between 5 and 95 % give a start, the least Cramér–von Mises distance the fit; eigenvalues beyond the
    edge by more than 3.27 Tracy–Widom scales (one in a thousand pure bulks has one) are spikes and leave the fit until
    none is left; in a quadrature the edge is uncertain by the noise of the trace as well, and three standard errors of
    that are added. Eigenvalues that are 0 up to rounding are not fitted: if they are as many as d > n makes, ratio > 1.
    `ks` says whether there is a bulk at all: compare with 1.36/√bulk. No products; O(points) memory.

    All fields are nan without a positive eigenvalue. Source: Marchenko & Pastur (1967); Johnstone (2001) for the width.

    >>> from spectral.spectrum import Spectrum
    >>> from spectral.analysis.theory import marchenko_pastur_cdf
    >>> x = np.linspace(0.25, 2.25, 20001)  # γ = 1/4, σ = 1
    >>> bulk = np.interp((np.arange(400) + 0.5) / 400, marchenko_pastur_cdf(x, 0.25), x)
    >>> fit = marchenko_pastur(Spectrum.from_eigenvalues(np.append(bulk, [5.0, 6.0])))
    >>> round(fit.sigma, 2), round(fit.ratio, 2), fit.spikes
    (1.0, 0.25, 2.0)
    """
    probes = 0 if spectrum.is_exact else len(spectrum.nodes)
    return fit_measure(*as_measure(spectrum), probes, product_epsilon(spectrum))


def as_measure(spectrum: Spectrum) -> Measure:
    """The pooled points as float64, zeros included."""
    values, counts = spectrum.points()
    return np.asarray(values, dtype=np.float64), np.asarray(counts, dtype=np.float64)
