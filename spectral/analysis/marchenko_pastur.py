"""The Marchenko–Pastur bulk of a spectrum, and the spikes that stand above it.

Symbols: γ = d/n the aspect ratio, σ² the variance of a matrix entry, λ± = σ²(1 ± √γ)² the edges. The positive part of a
bulk with γ > 1 is that of its transpose, so the fit runs on γ' ≤ 1 and the zeros decide afterwards which side it is.
Eigenvalues of a random matrix repel each other: N(x) differs from its law by about ln n / 2 eigenvalues, not by √n, so that
a few hundred are enough to tell a bulk that is not the law's. At the edge they move by the Tracy–Widom width.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy

from spectral import arrays, cards
from spectral.analysis.counting import MASSIVE, Counting, counted_once, counting, zero_within_residual
from spectral.analysis.jackknife import Measure, leave_one_out
from spectral.analysis.theory import marchenko_pastur_cdf, marchenko_pastur_edges
from spectral.results import Array, IntArray, nan
from spectral.schema import POSITIVE, number
from spectral.spectrum import Spectrum, hold_eigenvalues

TRACY_WIDOM = 3.27  # the largest eigenvalue of a pure bulk exceeds this many scales once in a thousand matrices
TRACY_WIDOM_MEAN, TRACY_WIDOM_SD = -1.2065, 1.268
LEVELS = np.linspace(0.05, 0.95, 37)  # quantiles that are matched: neither a spike nor the smallest eigenvalues enter
RATIOS = np.concatenate([np.geomspace(1e-4, 0.05, 12), np.linspace(0.06, 1.0, 48)])
LOOKS = (np.arange(200) + 0.5) / 200  # where the CDFs are compared in the fit
MIN_BULK = 20  # eigenvalues; with fewer, every bulk passes
# The largest difference of N(x) to the law that chance makes, after the fit: 1.5 + 0.45 ln n. Seen in one of 1 000 (n = 30 to
# 1 000, γ = .05 to 1; entries Gaussian, of two values, uniform, exponential, Student's with 5 degrees of freedom)
RIGID = 1.5, 0.45
# and so many standard deviations of the probes' noise at the median
NOISE = 2.4
MAX_SPIKES = 0.1  # of the bulk: a signal of low rank makes few spikes, and more of them are a tail
# An empty stretch at the edge, measured in the eigenvalues that a bulk of its upper end would have there. The gap of the two
# largest holds 3.5 in one of a thousand matrices
EMPTY = 3.5
NOTHING = nan, nan, -1, nan  # a fit where nothing lies below the gap


@dataclass(frozen=True)
class MarchenkoPastur(cards.Sentence):
    """A fitted bulk, and whether it is one.

    Attributes
    ----------
    sigma : float
        Standard deviation of a matrix entry, √ of the eigenvalues' unit.
    ratio : float
        γ = d/n, above 1 when the zeros are as many as 1 − 1/γ of all.
    lower, upper : float
        The edges.
    spikes : float
        Eigenvalues above the bulk, nan where the fit is refused.
    ks : float
        Largest CDF distance between the bulk and the law.
    bulk : float
        Eigenvalues that were fitted.
    zeros : float
        Eigenvalues that are 0 up to rounding; they are not fitted.
    negative : float
        Eigenvalues below those; they are not fitted either.
    accepted : bool
        False where the bulk is not Marchenko–Pastur; the other fields are then those of the closest law.
    reason : str
        One sentence that says why not.

    Examples
    --------
    >>> print(spectral.marchenko_pastur(spectral.exact(np.eye(5))).accepted)
    False
    """

    sigma: float
    ratio: float
    lower: float
    upper: float
    spikes: float
    ks: float
    bulk: float = nan
    zeros: float = 0.0
    negative: float = 0.0
    accepted: bool = False
    reason: str = ""

    def __str__(self) -> str:
        if not self.accepted:
            return f"no Marchenko–Pastur bulk: {self.reason}"
        return (
            f"Marchenko–Pastur bulk of {self.bulk:.0f} eigenvalues in [{self.lower:.4g}, {self.upper:.4g}], "
            f"sigma {self.sigma:.4g}, ratio {self.ratio:.3g}, KS {self.ks:.2g}; {self.spikes:.0f} spikes above"
        )


def positive_floor(spectrum: Spectrum) -> float:
    """What an eigenvalue must exceed to be positive: `Spectrum.rounding`, or what Lanczos has not told from 0.

    ValueError where the eigenvalues are so large or small that float64 does not hold what fits make of them.
    """
    hold_eigenvalues(spectrum, "a fit")
    values, _ = spectrum.points()
    arrays.hold_squares(float(np.abs(values).max(initial=0.0)), "the largest eigenvalue")
    return max(spectrum.rounding, zero_within_residual(spectrum))


@functools.cache
def _standard_quantiles() -> Array:
    """Quantiles of the bulk with σ = 1 for every trial ratio, (ratios, levels)."""
    table = np.empty((len(RATIOS), len(LEVELS)))
    for i, ratio in enumerate(RATIOS):
        lower, upper = marchenko_pastur_edges(ratio)
        x = lower + (upper - lower) * (1 - np.cos(np.linspace(0, np.pi, 400))) / 2
        table[i] = np.interp(LEVELS, marchenko_pastur_cdf(x, ratio), x)
    return table


def _edge_width(ratio: float, variance: float, bulk: float) -> float:
    """Tracy–Widom scale of the largest eigenvalue, Johnstone (2001), for p = `bulk` eigenvalues and p/γ' samples."""
    p, n = bulk, bulk / ratio
    return variance / n * (np.sqrt(n) + np.sqrt(p)) * (1 / np.sqrt(n) + 1 / np.sqrt(p)) ** (1 / 3)


class _Bulk(NamedTuple):
    """The eigenvalues up to a point: `size` of them, `draws` without their copies, the CDF before and after each point, and where
    the fit looks.

    noise: the probes make Var F noise · q(1 − q), q the share of what only they stand for below a point. The fit looks where
    the CDF passes each of LOOKS, and at that height: equal eigenvalues that rounding parts are looked at like one.
    """

    x: Array
    before: Array
    after: Array
    size: float
    draws: float
    noise: float
    at: IntArray
    looked: Array
    sd: Array


def _bulk(c: Counting, last: int) -> _Bulk:
    beyond = float(c.above[last])
    size = c.total - beyond
    before, after = (1 - (n[: last + 1] - beyond) / size for n in (c.at_least, c.above))
    unresolved = c.at_least - c.exact
    q = 1 - unresolved[: last + 1] / max(float(unresolved[0]), 1e-300)
    noise = 2 / c.probes * float(unresolved[0]) / size**2 if c.probes else 0.0
    at = np.minimum(np.searchsorted(after, LOOKS), last)
    looked = np.clip(LOOKS, before[at], after[at])
    draws = float(c.independent(np.zeros(1, np.int64), last, probes=False)[0])
    sd = np.sqrt((1 / draws) ** 2 + noise * (q * (1 - q))[at])  # and they move by about one on their own
    return _Bulk(c.x[: last + 1], before, after, size, draws, noise, at, looked, sd)


class _Top(NamedTuple):
    """The largest eigenvalue of a bulk that Lanczos has found: its value, and the weight of the node that stands for it."""

    value: float
    weight: float


def _fit(b: _Bulk, ratio: float | None, top: _Top | None = None) -> tuple[float, float]:
    """(γ' ≤ 1, σ'²): quantiles pick the start, then the least mean square distance of the CDFs, in standard deviations.

    The largest distance instead would follow the steps of a quadrature's nodes. Where the CDF has the noise of probes, `top`
    ties the edge: its law is Tracy and Widom's.
    """
    observed = b.x[np.minimum(np.searchsorted(b.after, LEVELS), len(b.x) - 1)]
    standard = _standard_quantiles()
    scales = standard @ observed / np.sum(standard**2, axis=1)
    misfit = np.sum((observed - scales[:, None] * standard) ** 2, axis=1)
    best = int(np.argmin(misfit) if ratio is None else np.argmin(np.abs(RATIOS - ratio)))
    size, weight = float(scales[best]), 1 / (b.sd * np.sqrt(len(b.at)))

    def residuals(theta: Array) -> Array:
        gamma = float(theta[1] ** 2) if ratio is None else ratio  # √γ', because the edges move with it
        variance = size * float(np.exp(theta[0]))
        parts = weight * (b.looked - marchenko_pastur_cdf(b.x[b.at], gamma, np.sqrt(variance)))
        if top is None:
            return np.asarray(parts)
        upper, width = marchenko_pastur_edges(gamma, np.sqrt(variance))[1], _edge_width(gamma, variance, b.draws)
        spread = np.hypot(TRACY_WIDOM_SD, (0.75 * np.pi * max(top.weight - 1, 0.0)) ** (2 / 3))
        return np.append(parts, (top.value - upper - TRACY_WIDOM_MEAN * width) / (spread * width))

    start = [0.0] if ratio is not None else [0.0, min(float(np.sqrt(RATIOS[best])), 0.999)]
    limits = [-2.0, 1e-3][: len(start)], [2.0, 1.0][: len(start)]
    exactly = {"xtol": 1e-10, "ftol": 1e-12, "gtol": 1e-12}
    found = scipy.optimize.least_squares(residuals, start, bounds=limits, x_scale=0.1, **exactly).x
    return (float(found[1] ** 2) if ratio is None else ratio), size * float(np.exp(found[0]))


def _by_edge(c: Counting, ratio: float | None) -> tuple[float, float, int, float]:
    """(γ', σ'², last point of the bulk, spikes) of exact eigenvalues: what lies beyond the edge leaves, until nothing does."""
    last = len(c.x) - 1
    for _ in range(20):  # spikes only ever leave: the loop ends
        b = _bulk(c, last)
        gamma, variance = _fit(b, ratio)
        upper = marchenko_pastur_edges(gamma, np.sqrt(variance))[1]
        limit = upper + TRACY_WIDOM * _edge_width(gamma, variance, b.draws)
        inside = int(np.searchsorted(c.x, limit, side="right")) - 1
        if inside >= last or inside < 2:
            break
        last = inside
    return gamma, variance, last, float(c.above[last])


def _by_gap(c: Counting, measure: Measure, ratio: float | None) -> tuple[float, float, int, float]:
    """The same of a quadrature, whose CDF does not know its edge as well as the largest nodes do.

    Spikes are what lies above the last empty stretch: one in which a bulk up to its upper end would have EMPTY eigenvalues more
    than the nodes at its ends may stand for. A bulk has 2/(3π) t^{3/2} eigenvalues within t Tracy–Widom widths of its edge.
    """
    values, weights = (v[measure[0] > c.x[0]][::-1] for v in measure)
    if not len(values):
        return NOTHING
    gamma, variance = _fit(_bulk(c, len(c.x) - 1), ratio)
    width = _edge_width(gamma, variance, c.total)
    first = np.flatnonzero(np.append(True, -np.diff(values) > 0.2 * width))  # of nodes that found the same eigenvalue
    weights, lowest = np.add.reduceat(weights, first), values[np.append(first[1:], len(values)) - 1]
    upper, lower = lowest[:-1], values[first[1:]]
    expected = 2 / (3 * np.pi) * ((upper - lower) / width) ** 1.5
    loose = c.loose[np.minimum(np.searchsorted(c.x, (upper + lower) / 2), len(c.x) - 1)]
    empty = np.flatnonzero(expected > EMPTY + loose)
    count = int(empty[-1]) + 1 if len(empty) else 0
    # what one eigenvalue weighs is a chi square over the probes
    several = 2 * scipy.special.gammaincinv(c.probes / 2, 1 - 1e-4) / c.probes
    copies = np.where(weights > several, np.round(weights), 1.0)[:count]
    top = _Top(float(values[first[count]]), float(weights[count]))
    last = int(np.searchsorted(c.x, top.value, side="right")) - 1
    if c.total - c.above[last] <= MASSIVE:
        return NOTHING
    return *_fit(_bulk(c, last), ratio, top), last, float(copies.sum())


def _refusal(b: _Bulk, ks: float, spikes: float) -> str:
    """Why there is no bulk of this law, "" where there is one."""
    if b.draws < MIN_BULK - 1e-9:
        size, least = cards.apart(b.draws, MIN_BULK, 3)
        return f"The bulk holds {size} eigenvalues{counted_once(b.draws, b.size)}, and a verdict needs {least}."
    allowed = (RIGID[0] + RIGID[1] * np.log(b.draws)) / b.draws + NOISE * np.sqrt(b.noise / 4)
    if ks > allowed:
        away, most = cards.apart(ks, allowed)
        return f"The bulk is not Marchenko–Pastur: its CDF is {away} away from the law, and chance allows {most}."
    if spikes > MAX_SPIKES * b.size:
        return f"{spikes:.0f} eigenvalues lie above a bulk of {b.size:.0f}: a tail, and no spikes."
    return ""


def _of(c: Counting, measure: Measure, floor: float, ratio: float | None) -> MarchenkoPastur:
    values, counts = measure
    zeros, negative = float(counts[np.abs(values) <= floor].sum()), float(counts[values < -floor].sum())
    none = MarchenkoPastur(nan, nan, nan, nan, nan, nan, 0.0, zeros, negative)
    if not c.total > 0:
        return replace(none, reason="No eigenvalue is positive, so there is no bulk.")
    if c.x[-1] - c.x[0] <= 1e-12 * c.x[-1]:  # one eigenvalue, or many equal ones: the limit γ = 0
        low, high, reason = float(c.x[0]), float(c.x[-1]), "All positive eigenvalues are equal, so there is no bulk."
        return MarchenkoPastur(float(np.sqrt(low)), 0.0, low, high, 0.0, 0.0, c.total, zeros, negative, False, reason)
    side = None if ratio is None else min(ratio, 1 / ratio)
    gamma, variance, last, spikes = _by_gap(c, measure, side) if c.probes else _by_edge(c, side)
    if last < 0:
        return replace(none, reason="Nothing lies below the gap, so there is no bulk.")
    b = _bulk(c, last)
    law = marchenko_pastur_cdf(b.x, gamma, np.sqrt(variance))
    ks = float(max(np.max(law - b.before), np.max(b.after - law)))
    reason = _refusal(b, ks, spikes)
    lower, upper = marchenko_pastur_edges(gamma, np.sqrt(variance))
    empty = zeros / float(counts.sum())
    if abs(empty - (1 - gamma)) < empty if ratio is None else ratio > 1:
        gamma, variance = 1 / gamma, variance * gamma  # the same bulk, seen from the larger side, which has the zeros
    return MarchenkoPastur(
        float(np.sqrt(variance)), gamma, lower, upper, nan if reason else spikes, ks, b.size, zeros, negative,
        not reason, reason,
    )  # fmt: skip


def without_probes(spectrum: Spectrum) -> list[MarchenkoPastur]:
    """`marchenko_pastur` without probe 0, without probe 1, ..., for a jackknife; none with fewer than two probes."""
    floor = positive_floor(spectrum)
    _, rest = counting(spectrum, floor)
    return [_of(c, measure, floor, None) for c, measure in zip(rest, leave_one_out(spectrum), strict=True)]


def marchenko_pastur(spectrum: Spectrum, *, ratio: float | None = None) -> MarchenkoPastur:
    """Fit the Marchenko–Pastur law to the bulk, say whether it holds, and count the spikes above it.

    Quantiles between 5 and 95 % give a start, the least mean square distance of the CDFs, in standard deviations, the fit.
    Eigenvalues that are 0 up to rounding are not fitted: if they are as many as d > n makes, ratio > 1. All fields are nan
    without a positive eigenvalue.

    Spikes: of exact eigenvalues, those beyond the edge by more than 3.27 Tracy–Widom widths (one in a thousand pure bulks has
    one). They leave the fit until none is left. Of a quadrature, those above the last stretch that is empty though a bulk up to
    its upper end would have 3.5 eigenvalues there: the largest Ritz values know the edge better than the noisy CDF.

    `accepted` is False when the CDF is further from the law than chance moves n eigenvalues of a random matrix, (1.5 + .45 ln
    n)/n, and 1.2 √(2/(n probes)) of a quadrature; when there would be a spike for each ten eigenvalues of the bulk; and below
    20 eigenvalues. One bulk of independent entries in a thousand is refused. Of 100 exact eigenvalues or more, flat, lognormal,
    exponential and semicircle bulks and power laws are. Quadratures tell what the noise of their probes lets them.

    Cost: no products; O(points) memory.

    Parameters
    ----------
    spectrum : Spectrum
        Exact, or a quadrature.
    ratio : float, optional
        γ = d/n where the shape is known (above 1 too: the positive eigenvalues are those of the transpose), so that only sigma is
        fitted.

    Returns
    -------
    MarchenkoPastur
        With a verdict: `accepted` and `reason`.

    Raises
    ------
    ValueError
        For a ratio that is no number > 0, and for eigenvalues whose squares float64 does not hold.

    References
    ----------
    Marchenko and Pastur (1967), Distribution of eigenvalues for some sets of random matrices. Johnstone
    (2001), On the distribution of the largest eigenvalue, for the width. Baik, Ben Arous and Péché (2005), Phase transition of
    the largest eigenvalue, for what can be seen: spikes ℓ > √γ.

    Examples
    --------
    >>> from spectral.spectrum import Spectrum
    >>> from spectral.analysis.theory import marchenko_pastur_cdf
    >>> x = np.linspace(0.25, 2.25, 20001)  # γ = 1/4, σ = 1
    >>> bulk = np.interp((np.arange(400) + 0.5) / 400, marchenko_pastur_cdf(x, 0.25), x)
    >>> fit = marchenko_pastur(Spectrum.from_eigenvalues(np.append(bulk, [5.0, 6.0])))
    >>> round(fit.sigma, 2), round(fit.ratio, 2), fit.spikes, fit.accepted
    (1.0, 0.25, 2.0, True)
    """
    if ratio is not None:
        number(ratio, "ratio", "shape γ = d/n of a matrix (left out: it is fitted)", POSITIVE)
    floor = positive_floor(spectrum)
    return _of(counting(spectrum, floor)[0], spectrum.points(), floor, ratio)
