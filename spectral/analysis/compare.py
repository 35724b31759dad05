"""How far two spectra are apart, with and without their scale, and how far two groups of numbers.

Symbols: F, G the distribution functions of the eigenvalues; W1 = ∫|F − G| dλ; KS = max|F − G|.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from spectral import cards
from spectral.analysis.alternatives import gauss_legendre
from spectral.analysis.jackknife import Measure, leave_one_out
from spectral.analysis.summary import effective_rank, largest_of, ratio_of, trace_of
from spectral.quadrature import cdf
from spectral.quadrature.error import between, jackknife_error
from spectral.results import Array, nan
from spectral.schema import FRACTION, number
from spectral.spectrum import Spectrum, hold_spectrum

Rounding = tuple[float, float]  # what rounding leaves of a 0 in a and in b
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


def jensen_shannon(a: Measure, b: Measure, bins: int = BINS, small: Rounding = (0.0, 0.0)) -> float:
    """Jensen–Shannon divergence in bits, 0 (same) to 1 (disjoint), between histograms on one grid.

    `bins` bins, equal in ln λ, from the smallest to the largest positive value of both, one bin for what is 0 up to
    rounding (|λ| <= `small`, of a and of b) and one for what is negative, so that no eigenvalue is dropped. It depends on the
    bins, as any density does.

    >>> jensen_shannon((np.array([1.0, 2.0]), np.ones(2)), (np.array([4.0, 8.0]), np.ones(2)))
    1.0
    """
    positive = [v[(v > t) & (c > 0)] for (v, c), t in zip((a, b), small, strict=True)]
    pooled = np.concatenate(positive)
    if len(pooled) and pooled.max() > pooled.min():
        edges = np.linspace(np.log(pooled.min()), np.log(pooled.max()), bins + 1)[1:-1]
    else:
        edges = np.zeros(0)
    p, q = (
        _histogram(v, c, t, edges) / c.sum() if c.sum() > 0 else np.full(len(edges) + 3, nan)
        for (v, c), t in zip((a, b), small, strict=True)
    )
    return bits_apart(p, q)


def bits_apart(p: Array, q: Array) -> float:
    """The Jensen–Shannon divergence of two probability vectors, ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2, in bits.

    >>> bits_apart(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    1.0
    """
    m = (p + q) / 2
    return float(np.clip(sum((r[r > 0] * np.log2(r[r > 0] / m[r > 0])).sum() for r in (p, q)) / 2, 0.0, 1.0))


def _histogram(values: Array, counts: Array, threshold: float, edges: Array) -> Array:
    """Mass that is negative, zero, and in each of the len(edges) + 1 bins."""
    inner = np.searchsorted(edges, np.log(np.where(values > threshold, values, 1.0)), side="right")
    bins = np.where(values > threshold, 2 + inner, np.where(values < -threshold, 0, 1))
    return np.bincount(bins, weights=counts, minlength=len(edges) + 3).astype(np.float64)


def _scaled(m: Measure, unit: float) -> Measure:
    return m[0] / unit, m[1]


def _logarithms(m: Measure, small: float) -> tuple[Measure, float]:
    """log10 of the values above `small`, and the fraction that is not."""
    keep = (m[0] > small) & (m[1] > 0)
    total = float(m[1].sum())
    return (np.log10(m[0][keep]), m[1][keep]), float(m[1][~keep].sum()) / total


def _units(m: Measure) -> dict[str, float]:
    """What scale-free distances divide by."""
    values, counts = m
    return {"mean": float(values @ counts) / float(counts.sum()), "lambda_max": float(values[counts > 0].max())}


def _histograms(a: Measure, b: Measure, bins: int, small: Rounding) -> dict[str, float]:
    """The part of `compare` that is a function of two pooled measures: what takes logarithms of values."""
    (log_a, out_a), (log_b, out_b) = _logarithms(a, small[0]), _logarithms(b, small[1])
    result = {"js": jensen_shannon(a, b, bins, small), "wasserstein_log10": wasserstein(log_a, log_b)}
    result |= {"log10_excluded_a": out_a, "log10_excluded_b": out_b}
    units = [_units(m) for m in (a, b)]
    for name in ("mean", "lambda_max"):
        u, v = (unit[name] for unit in units)
        result[f"js_by_{name}"] = nan
        if u > 0 and v > 0:
            result[f"js_by_{name}"] = jensen_shannon(_scaled(a, u), _scaled(b, v), bins, (small[0] / u, small[1] / v))
    return result


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
      without scale. nan unless both are positive.
    - `wasserstein_log10`: W1 between the log10 of the values, in decades. Values that are not positive beyond
      `Spectrum.rounding` have no logarithm; `log10_excluded_a` and `log10_excluded_b` are their fractions.
    - `js`: the Jensen-Shannon divergence in bits, with 60 bins, or a third of the nodes of a probe: to be compared only between
      pairs of equal kind.
    - `trace_ratio`, `lambda_max_ratio`, `effective_rank_ratio`: a over b, of the numbers of `summary`; nan when b's is 0.

    Errors are 0 when both are exact. Those of ratios follow from the errors of `summary`. Those of `wasserstein`, by a unit or by
    none, are how far the two CDFs may be from the truth, `meta["error"]["w1_95"]` of each, in quadrature, with what the units may
    be off by. All others are √(variance + bias²) of a jackknife over the probes of each: noise adds to every distance, so that
    one between estimates of *one* spectrum is not 0 but of the order of its error, mostly within 3 of them. That of `ks` also
    holds what the quadrature's finite depth blurs, half the certified envelopes of both where the distance is largest: a crowd
    that the smallest node stands for, and the probes of a and of b place elsewhere, is no jump. What it blurs in `js` and
    `wasserstein_log10` is not in them.

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
    pooled, without = (a.points(), b.points()), (leave_one_out(a), leave_one_out(b))
    nodes = [s.nodes.shape[1] for s in (a, b) if not s.is_exact]
    bins = max(2, min([BINS, *(n // NODES_PER_BIN for n in nodes)]))
    pairs = {kind: between(a, b, kind) for kind in ("wasserstein", "ks")}
    units = [_units(m) for m in pooled]
    off = {
        "mean": (float(a.moment(1).stderr), float(b.moment(1).stderr)),
        "lambda_max": (float(largest_of(a).stderr), float(largest_of(b).stderr)),
    }
    each = [[_units(m) for m in rest] for rest in without]
    for name in ("mean", "lambda_max"):
        for kind in ("wasserstein", "ks"):
            u, v = (unit[name] for unit in units)
            rest = [[unit[name] for unit in one] or None for one in each]
            able = all(w > 0 for w in (u, v, *(rest[0] or []), *(rest[1] or [])))
            pairs[f"{kind}_by_{name}"] = (
                between(a, b, kind, (u, v), (rest[0], rest[1]), off[name]) if able else (nan, nan)
            )
    for name, of in (("trace", trace_of), ("lambda_max", largest_of), ("effective_rank", effective_rank)):
        pairs[f"{name}_ratio"] = ratio_of(of(a), of(b))
    small = a.rounding, b.rounding
    values = _histograms(*pooled, bins, small)
    left = [] if a.is_exact else [[_histograms(m, pooled[1], bins, small) for m in without[0]]]
    left += [] if b.is_exact else [[_histograms(pooled[0], m, bins, small) for m in without[1]]]
    for key, value in values.items():
        error = jackknife_error(value, [np.array([row[key] for row in rows]) for rows in left])
        pairs[key] = value, nan if np.isnan(value) else error
    told = {name: number for key in ORDER for name, number in zip((key, f"{key}_stderr"), pairs[key], strict=True)}
    return Comparison(told, a, b)


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

    References ---------- Cohen (1988), Statistical power analysis. Hedges (1981), Distribution theory for Glass's estimator of
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
