"""How far two spectra are apart, with and without their scale, and how far two groups of numbers.

Symbols: F, G the distribution functions of the eigenvalues; W1 = ∫|F − G| dλ; KS = max|F − G|.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from spectral import cards
from spectral.analysis.alternatives import gauss_legendre
from spectral.analysis.jackknife import Measure
from spectral.analysis.summary import effective_rank, largest_of, ratio_of, trace_of
from spectral.quadrature import beta, cdf
from spectral.quadrature.error import NORMAL, between, off_log10
from spectral.results import Array, Estimate, nan
from spectral.schema import FRACTION, number
from spectral.spectrum import Spectrum, hold_spectrum

Pair = tuple[float, float]
BINS = 60  # log-histogram bins between the smallest and the largest positive value of both
NODES_PER_BIN = 3  # fewer nodes of a quadrature than that leave bins empty by chance, and any two look disjoint
ORDER = (  # of what `compare` tells
    "wasserstein", "ks", "js", "wasserstein_log10", "log10_excluded_a", "log10_excluded_b",
    "wasserstein_by_mean", "ks_by_mean", "js_by_mean", "wasserstein_by_lambda_max", "ks_by_lambda_max", "js_by_lambda_max",
    "trace_ratio", "lambda_max_ratio", "effective_rank_ratio",
)  # fmt: skip


class Effect(NamedTuple):
    """Cohen's d with its confidence interval; unpacks as (d, lower, upper)."""

    d: float
    lower: float
    upper: float


def wasserstein(a: Measure, b: Measure) -> float:
    """W1 = ∫ |F − G| dx between two measures, each normalised to mass 1, in the units of the values.

    >>> wasserstein((np.array([0.0, 2.0]), np.ones(2)), (np.array([1.0]), np.ones(1)))
    1.0
    """
    if not (len(a[0]) and len(b[0]) and a[1].sum() > 0 and b[1].sum() > 0):
        return nan
    return cdf.distance(cdf.staircase(*a), cdf.staircase(*b), "wasserstein")


def bits_apart(p: Array, q: Array) -> float | Array:
    """The Jensen–Shannon divergence of probability vectors (..., B), ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2, in bits.

    >>> float(bits_apart(np.array([1.0, 0.0]), np.array([0.0, 1.0])))
    1.0
    """
    m = (p + q) / 2
    parts = scipy.special.rel_entr(p, m).sum(-1) + scipy.special.rel_entr(q, m).sum(-1)
    return np.clip(parts / 2 / np.log(2), 0.0, 1.0)


class _Binned(NamedTuple):
    """A spectrum over its unit: its histogram `p` (B,), draws of it (D, B), what a larger or smaller unit makes of it (2, B), and
    of each probe that more steps may move what the rules alike would add (R, B).
    """

    p: Array
    draws: Array
    moved: Array
    others: list[Array]


def _binned(spectrum: Spectrum, stream: int, unit: float, unsure: float, edges: Array) -> _Binned:
    small, n = spectrum.rounding / unit, spectrum.dim

    def histogram(values: Array, masses: Array, of: float = unit) -> Array:
        return _histogram(values / of, masses, small, edges)

    (x, c), (known, counts) = spectrum.points(), spectrum.known_points()
    p, fixed = histogram(x, c / n), histogram(known, counts / n)
    draws, others = p[None], []
    if not (spectrum.is_exact or spectrum.of_vector):
        rest = np.maximum(p - fixed, 0.0)
        masses = beta.drawn(len(spectrum.nodes) * n * rest[rest > 0] / 2, stream)
        draws = np.tile(fixed, (masses.shape[1], 1))
        draws[:, rest > 0] += spectrum.unresolved / n * (masses / masses.sum(0)).T
    for free, (theta, omega), residuals, (nodes, weights), _ in spectrum.unfinished:
        rules = [*zip(nodes, weights, strict=True), (theta - residuals, omega), (theta + residuals, omega)]
        moved = [histogram(*rule) - histogram(theta, omega) for rule in rules]
        others.append(np.maximum(p + free / n * np.array(moved), 0.0))
    units = (unit / (1 + NORMAL * unsure / unit), unit + NORMAL * unsure)
    return _Binned(p, draws, np.array([histogram(x, c / n, of) for of in units]), others)


def _divergence(a: Spectrum, b: Spectrum, bins: int, units: Pair = (1.0, 1.0), unsure: Pair = (0.0, 0.0)) -> Pair:
    """(Jensen–Shannon divergence in bits, 0 (same) to 1 (disjoint), between histograms on one grid; its error).

    `bins` bins, equal in ln λ, from the smallest to the largest positive value of both, one bin for what is 0 up to
    rounding and one for what is negative, so that no eigenvalue is dropped. It depends on the bins, as any density does.

    The error: what draws of the probes make of it, in rms, and how far the rules that a record does not tell from its own
    (`Spectrum.truncation`) are from it, the farthest of each probe: the root of the divergence obeys the triangle inequality.
    No more than to the farther end of [0, 1], in which every divergence lies.
    """
    positive = [x[x > s.rounding] / unit for s, unit in zip((a, b), units, strict=True) for x in (s.points()[0],)]
    pooled, edges = np.concatenate(positive), np.zeros(0)
    if len(pooled) and pooled.max() > pooled.min():
        edges = np.linspace(np.log(pooled.min()), np.log(pooled.max()), bins + 1)[1:-1]
    one, two = _binned(a, 1, units[0], unsure[0], edges), _binned(b, 2, units[1], unsure[1], edges)
    value = float(bits_apart(one.p, two.p))
    errors = [float(np.sqrt(np.mean((bits_apart(one.draws, two.draws) - value) ** 2)))]
    for this, other in ((one, two), (two, one)):
        apart = sum(float(np.sqrt(bits_apart(rules, this.p)).max()) for rules in this.others)
        moved = float(np.abs(bits_apart(this.moved, other.p) - value).max()) / NORMAL
        errors += [apart * (2 * math.sqrt(value) + apart), moved]
    return value, min(float(np.linalg.norm(errors)), max(value, 1 - value))


def _histogram(values: Array, masses: Array, threshold: float, edges: Array) -> Array:
    """Mass that is negative, zero, and in each of the len(edges) + 1 bins."""
    inner = np.searchsorted(edges, np.log(np.where(values > threshold, values, 1.0)), side="right")
    bins = np.where(values > threshold, 2 + inner, np.where(values < -threshold, 0, 1))
    return np.bincount(bins, weights=masses, minlength=len(edges) + 3).astype(np.float64)


def _logarithms(m: Measure, small: float) -> tuple[Measure, float]:
    """log10 of the values above `small`, and the fraction that is not."""
    keep = (m[0] > small) & (m[1] > 0)
    total = float(m[1].sum())
    return (np.log10(m[0][keep]), m[1][keep]), float(m[1][~keep].sum()) / total


def _off_excluded(spectrum: Spectrum, fraction: float) -> float:
    """How far the fraction at or below rounding may be from the truth, by the interval of its count, as a standard error."""
    if spectrum.is_exact or spectrum.of_vector:
        return 0.0
    count = spectrum.count(-np.inf, spectrum.rounding)
    ends = np.array([float(count.lower), float(count.upper)]) / spectrum.dim
    return float(np.abs(ends - fraction).max()) / NORMAL


class Comparison(dict[str, float]):
    """What `compare` tells of two spectra: a dict of numbers that can draw them.

    Attributes
    ----------
    numbers : dict
        What it holds.
    a, b : Spectrum
        The two.

    Examples
    --------
    >>> a, b = (Spectrum.from_eigenvalues(v) for v in ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]))
    >>> print(compare(a, b))
    W1 2.000, KS 0.6667; over their means W1 0.000, KS 0.000; traces as 0.5000
    """

    def __init__(self, numbers: Mapping[str, float], a: Spectrum, b: Spectrum) -> None:
        super().__init__(numbers)
        self.a, self.b = a, b

    def plot(self, ax: Any = None, *, labels: tuple[str, str] = ("a", "b"), scale: str = "log") -> Any:
        """Draw both densities with their bands, and how far they are apart (matplotlib).

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw, a new figure by default.
        labels : tuple of str
            The names of a and b.
        scale : str
            As in `Spectrum.plot`.

        Returns
        -------
        matplotlib.axes.Axes
            Where it was drawn.

        Examples
        --------
        >>> a, b = (Spectrum.from_eigenvalues(v) for v in ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]))
        >>> compare(a, b).plot(labels=("before", "after")).get_legend().get_texts()[1].get_text()
        'after'
        """
        ax = self.a.plot(ax, label=labels[0], scale=scale)
        ax = self.b.plot(ax, label=labels[1], scale=scale)
        said = ", ".join(f"{name} {self._said(key)}" for name, key in (("W1", "wasserstein"), ("KS", "ks")))
        ax.set_title(said, fontsize="medium")
        return ax

    def _said(self, key: str) -> str:
        return cards.with_error(self[key], self[f"{key}_stderr"])

    def __str__(self) -> str:
        return (
            f"W1 {self._said('wasserstein')}, KS {self._said('ks')}; over their means W1 {self._said('wasserstein_by_mean')}, "
            f"KS {self._said('ks_by_mean')}; traces as {self._said('trace_ratio')}"
        )

    def _repr_html_(self) -> str:
        rows = [(key.replace("_", " "), self._said(key)) for key in ORDER if not key.startswith("log10")]
        return cards.card(f"{self}.", rows)


def compare(a: Spectrum, b: Spectrum) -> Comparison:
    """Distances and ratios between two spectra, and beside each key `x` its standard error `x_stderr`.

    - `wasserstein` (units of λ) and `ks` (fractions): between the spectra as they are, `a.distance(b, kind=...)`.
    - `..._by_mean`, `..._by_lambda_max`: the same after dividing each spectrum's values by its mean, or by its largest: shape
      without scale. nan unless both are positive; an error of `ks` and `js` nan where one is not, within 1.96 of its errors.
    - `wasserstein_log10`: W1 between the log10 of the values, in decades. Values that are not positive beyond
      `Spectrum.rounding` have no logarithm; `log10_excluded_a` and `log10_excluded_b` are their fractions.
    - `js`: the Jensen-Shannon divergence in bits, with 60 bins, or a third of the nodes of a probe: to be compared only between
      pairs of equal kind.
    - `trace_ratio`, `lambda_max_ratio`, `effective_rank_ratio`: a over b, of the numbers of `summary`; nan when b's is 0.

    Errors are 0 when both are exact. Those of ratios follow from the errors of `summary`. Those of `wasserstein` and `ks`, by a
    unit or by none, and of `wasserstein_log10` are how far the two CDFs may be from the truth, by the triangle inequality, in
    quadrature: what 95 % of the draws of the probes are within, and the certified envelope (of `ks` half of it where the distance
    is largest), over 1.96; with what the units may be off by. That of `js` is what the probes' draws make of it, in rms, and what
    the rules do that a record does not tell from its own, on these bins. So a distance between estimates of *one* spectrum is not
    0 but of the order of its error. Where few steps have been made, `wasserstein_log10` does not know what lies near 0, over all
    the decades down to `Spectrum.rounding`, and its error says so.

    Cost: no products.

    Parameters
    ----------
    a, b : Spectrum
        Of any two matrices; their dimensions may differ.

    Returns
    -------
    Comparison
        A dict {name: number}, always the same names, with `plot()`.

    Examples
    --------
    >>> from spectral.spectrum import Spectrum
    >>> a, b = (Spectrum.from_eigenvalues(v) for v in ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]))
    >>> d = compare(a, b)
    >>> d["wasserstein"], d["wasserstein_by_mean"], round(d["wasserstein_log10"], 6), d["trace_ratio"], d["js_by_mean"]
    (2.0, 0.0, 0.30103, 0.5, 0.0)
    """
    for one in (a, b):
        hold_spectrum(one, "a comparison")
    nodes = [s.nodes.shape[1] for s in (a, b) if not s.is_exact]
    bins = max(2, min([BINS, *(n // NODES_PER_BIN for n in nodes)]))
    pairs = {kind: between(a, b, kind) for kind in ("wasserstein", "ks")} | {"js": _divergence(a, b, bins)}
    by: dict[str, list[Estimate]] = {
        "mean": [s.moment(1) for s in (a, b)],
        "lambda_max": [largest_of(s) for s in (a, b)],
    }
    for name, each in by.items():
        units, off = (float(each[0]), float(each[1])), [float(e.stderr) for e in each]
        spare = [unit - NORMAL * error for unit, error in zip(units, off, strict=True)]
        told = min(spare) > 0
        for kind in ("wasserstein", "ks", "js"):
            found = nan, nan
            if min(units) > 0:
                own = off[0], off[1]
                if told and kind != "wasserstein":
                    own = units[0] * off[0] / spare[0], units[1] * off[1] / spare[1]
                found = _divergence(a, b, bins, units, own) if kind == "js" else between(a, b, kind, units, own)
            pairs[f"{kind}_by_{name}"] = found if told or kind == "wasserstein" else (found[0], nan)
    for name, of in (("trace", trace_of), ("lambda_max", largest_of), ("effective_rank", effective_rank)):
        pairs[f"{name}_ratio"] = ratio_of(of(a), of(b))
    (log_a, out_a), (log_b, out_b) = (_logarithms(s.points(), s.rounding) for s in (a, b))
    apart = wasserstein(log_a, log_b)
    pairs["wasserstein_log10"] = apart, math.hypot(*(off_log10(s, s.rounding) for s in (a, b))) + 0 * apart
    pairs |= {f"log10_excluded_{n}": (out, _off_excluded(s, out)) for n, s, out in (("a", a, out_a), ("b", b, out_b))}
    numbers = {name: number for key in ORDER for name, number in zip((key, f"{key}_stderr"), pairs[key], strict=True)}
    return Comparison(numbers, a, b)


def cohens_d(xs: ArrayLike, ys: ArrayLike, *, confidence: float = 0.95, hedges: bool = False) -> Effect:
    """Effect size d = (x̄ − ȳ)/s, s the pooled standard deviation, with its exact interval under normality.

    t = d·√(nx·ny/(nx+ny)) is noncentral t with nx + ny − 2 degrees of freedom. The interval holds the noncentralities for which
    t is neither too large nor too small. It is that of two unpaired groups: of pairs it holds the truth more often than said if
    they go together, and less often, 81 % instead of 95 % at a correlation of −.8, if they go against each other. Two groups
    without any spread give d = ±inf, or nan where their means are equal too.

    Parameters
    ----------
    xs, ys : array
        The two groups, at least two values each.
    confidence : float
        Of the interval.
    hedges : bool
        d is biased away from 0 in small samples: True multiplies all three numbers by J = Γ(ν/2)/(√(ν/2) Γ((ν−1)/2)), 0.90
        for two groups of five.

    Returns
    -------
    Effect
        Unpacks as (d, lower, upper).

    Raises
    ------
    ValueError
        For a group of fewer than two, values that are not finite, or confidence outside (0, 1).

    References
    ----------
    Cohen (1988), Statistical power analysis. Hedges (1981), Distribution theory for Glass's estimator of
    effect size. Cumming and Finch (2001), A primer on confidence intervals, for the interval.

    Examples
    --------
    >>> d, lower, upper = cohens_d([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    >>> round(d, 9), round(lower, 2), round(upper, 2)
    (2.0, -0.15, 4.02)
    """
    x, y = np.asarray(xs, dtype=np.float64).ravel(), np.asarray(ys, dtype=np.float64).ravel()
    if min(len(x), len(y)) < 2 or not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        raise ValueError(f"groups of {len(x)} and {len(y)} values; give at least two finite values in each.")
    number(confidence, "confidence", "probability", FRACTION, 0.95)
    freedom = len(x) + len(y) - 2
    exponent = np.frexp(max(np.abs(x).max(), np.abs(y).max()))[1]
    x, y = np.ldexp(x, -exponent), np.ldexp(y, -exponent)  # exact, so that squares neither overflow nor vanish
    difference = float(x.mean() - y.mean())
    pooled = float(np.sqrt((np.sum((x - x.mean()) ** 2) + np.sum((y - y.mean()) ** 2)) / freedom))
    if pooled <= 1e-14 * max(float(np.abs(x).max()), float(np.abs(y).max())):  # equal values up to rounding
        d = float(np.copysign(np.inf, difference)) if abs(difference) > pooled else nan
        return Effect(d, d, d)
    d, root = difference / pooled, float(np.sqrt(len(x) * len(y) / (len(x) + len(y))))
    half = (1 - confidence) / 2
    lower, upper = (_noncentrality(d * root, freedom, q) / root for q in (1 - half, half))
    correction = 1.0
    if hedges:
        log_gamma = scipy.special.gammaln
        correction = float(np.exp(log_gamma(freedom / 2) - log_gamma((freedom - 1) / 2)) / np.sqrt(freedom / 2))
    return Effect(d * correction, lower * correction, upper * correction)


def noncentral_t_cdf(t: float, freedom: float, delta: float) -> float:
    """P(T ≤ t) of the noncentral t law, t ≥ 0: E Φ(t·s − δ) over s = √(χ²_ν/ν).

    Written as E P(s ≥ (Z+δ)/t) over the normal Z when that integrand is the smoother one, by 400-node Gauss–Legendre.
    Far out, where groups that hardly scatter end up, `scipy.stats.nct` (1.18) returns nan, and `scipy.special.nctdtrinc` (1.17)
    does not return for minutes.

    >>> round(noncentral_t_cdf(1.0, 1.0, 0.0), 9)  # the Cauchy law: 3/4
    0.75
    """
    x, w = gauss_legendre(400)
    if t > np.sqrt(2 * freedom):
        z = 9.0 * x
        inside = scipy.special.chdtrc(freedom, freedom * np.clip((z + delta) / t, 0.0, None) ** 2)
        return float(9.0 * w @ (inside * np.exp(-(z**2) / 2)) / np.sqrt(2 * np.pi))
    end = np.sqrt(scipy.special.chdtri(freedom, 1e-17) / freedom)
    s, w = end * (x + 1) / 2, end * w / 2
    log_density = np.log(2.0) + (freedom / 2) * np.log(freedom / 2) - scipy.special.gammaln(freedom / 2)
    density = np.exp(log_density + (freedom - 1) * np.log(s) - freedom * s**2 / 2)
    return float(w @ (density * scipy.special.ndtr(t * s - delta)))


def _noncentrality(t: float, freedom: int, probability: float) -> float:
    """The δ with P(T ≤ t | δ) = probability; the probability falls as δ grows."""
    sign = 1.0 if t >= 0 else -1.0
    t, probability = abs(t), probability if t >= 0 else 1 - probability

    def excess(delta: float) -> float:
        return noncentral_t_cdf(t, freedom, delta) - probability

    low, high = -40.0, 40.0 + 4 * t
    while excess(high) > 0:  # few degrees of freedom: s has a long tail
        high *= 2
    return sign * float(scipy.optimize.brentq(excess, low, high, xtol=1e-9, rtol=1e-12))
