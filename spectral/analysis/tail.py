"""Power-law tails of a spectrum, fitted to a weighted measure.

An exact eigenvalue counts once, a quadrature node n·ω times: fitted with equal weights, Ritz values give a wrong
exponent (1.42 instead of 2.50 in one trial), because they crowd at the edges, and a smoothed density grows tails of its
own. Symbols: w weights in eigenvalues, u = ln(x/xmin), a = alpha − 1, L = ln(xmax/xmin), W = Σ w over the tail.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spectral.analysis.bulk import product_epsilon, zero_threshold
from spectral.analysis.jackknife import jackknife_stderr, leave_one_out
from spectral.analysis.rivals import LikelihoodRatio, against_power_law

if TYPE_CHECKING:
    from spectral.spectrum import Spectrum

Array = NDArray[np.float64]
NAN = float("nan")
MIN_TAIL = 50  # eigenvalues; with fewer, sigma/(alpha − 1) exceeds 14 % and the search over xmin fits noise
MIN_DECADES = 1.0  # a shorter tail cannot be told from a lognormal or an exponential
ALL_CANDIDATES = 4000  # up to so many distinct exact eigenvalues each is tried as xmin
GRID = 200  # otherwise a log grid of so many


@dataclass(frozen=True)
class TailCurve:
    """The fit as a function of where the tail begins; arrays of equal length, xmin ascending, tail in eigenvalues."""

    xmin: Array
    alpha: Array
    sigma: Array
    D: Array
    tail: Array


@dataclass(frozen=True)
class PowerLaw:
    """A power law ρ(λ) ∝ λ^{−alpha} for λ ≥ xmin, with what is needed to doubt it.

    alpha: exponent of the density. sigma: its standard error, (alpha−1)/√n_eff, with the jackknife over probes added
    in quadrature. xmin, xmax: the range; xmax is the one given, otherwise the largest eigenvalue. D: largest distance
    between the weighted midpoint CDF and the law. tail: eigenvalues in the range. curve: the fit for every xmin.
    tests: likelihood ratios against rivals (none beyond 43 decades, or without alpha). accepted, reason: False with
    one sentence when alpha is not to be trusted. alpha_bounded: alpha of the likelihood that ends at xmax. hill: from
    the exact largest eigenvalues, nan without them; ccdf_slope: 1 − slope of ln CCDF over ln λ. n_eff: independent
    points in the tail, at most `tail`. decades: log10 (largest/xmin). excluded: eigenvalues not positive beyond
    rounding, which no logarithm takes; above: eigenvalues beyond a given xmax. errors: jackknife errors of alpha,
    alpha_bounded, xmin, D, tail (0 if exact, nan with one probe). mode: how xmin was chosen.
    """

    alpha: float
    sigma: float
    xmin: float
    xmax: float
    D: float
    tail: float
    curve: TailCurve
    tests: dict[str, LikelihoodRatio]
    accepted: bool
    reason: str
    alpha_bounded: float = NAN
    hill: float = NAN
    ccdf_slope: float = NAN
    n_eff: float = NAN
    decades: float = NAN
    excluded: float = 0.0
    above: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    mode: str = "ks"


class _Tail(NamedTuple):
    """Positive points, ascending: values x, weights w, and squares s such that n_eff = W²/Σs."""

    x: Array
    w: Array
    s: Array

    def within(self, xmin: float, xmax: float | None) -> _Tail:
        keep = (self.x >= xmin) & (self.x <= (np.inf if xmax is None else xmax))
        return _Tail(self.x[keep], self.w[keep], self.s[keep])


class _Fit(NamedTuple):
    alpha: float
    alpha_bounded: float
    xmin: float
    D: float
    tail: float


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

    `values` are exact eigenvalues in any order; k=None takes the 50 largest, or half of them if there are fewer than
    100. The error is (alpha−1)/√(k−1). Returns (nan, nan) with fewer than two positive values or no spread.
    Raises ValueError if k exceeds the number of positive values. Source: Hill (1975).

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
        return NAN, NAN
    alpha = 1 + (k - 1) / total
    return alpha, (alpha - 1) / float(np.sqrt(k - 1))


def top_values(spectrum: Spectrum, k: int) -> Array:
    """Up to k largest eigenvalues that are known exactly, descending: atoms and known zeros above every node.

    Atoms come out as often as their multiplicity says. A quadrature node is no eigenvalue, so the list ends at the
    largest node that carries mass; for an exact spectrum it ends at k or at the dimension.
    """
    values, counts = np.asarray(spectrum.atoms.values), np.asarray(spectrum.atoms.multiplicities)
    if spectrum.zeros:
        values, counts = np.append(values, 0.0), np.append(counts, spectrum.zeros)
    massive = np.asarray(spectrum.weights) * spectrum.dim > 1e-8  # what rounding leaves on a deflated direction
    if massive.any():
        above = values > np.asarray(spectrum.nodes)[massive].max()
        values, counts = values[above], counts[above]
    order = np.argsort(values)[::-1]
    repeats = np.minimum(np.round(counts[order]).astype(int), k)
    return np.repeat(values[order], repeats)[:k]


def hill_of(spectrum: Spectrum) -> tuple[float, float]:
    """Hill's estimate from at most 50 largest exact eigenvalues: all deflated ones, at most half of a full list."""
    top = top_values(spectrum, 100)
    top = top[top > 0]
    return (
        hill(top[:50], None if spectrum.is_exact and len(top) < 100 else min(50, len(top)))
        if len(top) > 1
        else (NAN, NAN)
    )


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
    grid = np.linspace(y[0], y[-1], 512)
    edges = np.linspace(y[0], y[-1], 4097)
    mass = np.histogram(y, bins=edges, weights=w)[0]
    centre = (edges[1:] + edges[:-1]) / 2
    value = np.exp(-0.5 * ((grid[:, None] - centre) / width) ** 2) @ mass
    return float(np.clip(np.exp(grid[np.argmax(value)]), x[0], x[-1]))


def _positive(values: Array, counts: Array, atoms: Array | None, floor: float) -> _Tail:
    """atoms: values that count as so many eigenvalues each; None when all of them do. floor: rounding's largest value."""
    keep = (values > floor) & (counts > 0)
    x, w = np.unique(values[keep]), counts[keep]
    if len(x) < len(w):
        w = np.bincount(np.searchsorted(x, values[keep]), weights=w, minlength=len(x)).astype(np.float64)
    # one node of weight w is one number, not w of them; below w = 1 it still is no more than w eigenvalues
    s = w if atoms is None else np.where(np.isin(x, atoms), w, np.maximum(w, w**2))
    return _Tail(x, w, s)


def _scan(tail: _Tail, xmins: Array, xmax: float | None) -> TailCurve:
    x, w, s = tail.within(0.0, xmax)
    suffix = np.cumsum(np.stack([w, w * np.log(x / x[-1]), s])[:, ::-1], axis=1)[:, ::-1]
    first = np.minimum(np.searchsorted(x, xmins, side="left"), len(x) - 1)
    W, log_sum, squares = suffix[:, first]
    mean_u = np.maximum(log_sum / W - np.log(xmins / x[-1]), 0.0)
    L = np.full(len(xmins), np.inf) if xmax is None else np.log(xmax / xmins)
    a = np.where(first < len(x) - 1, exponent(mean_u, L), np.inf)  # one value has no slope
    n_eff = np.minimum(W, W**2 / squares)
    D = np.full(len(xmins), NAN)
    for j in np.flatnonzero(np.isfinite(a)):
        mass = w[first[j] :]
        middle = (np.cumsum(mass) - mass / 2) / mass.sum()
        D[j] = np.max(np.abs(middle - model_cdf(np.log(x[first[j] :] / xmins[j]), a[j], L[j])))
    return TailCurve(np.asarray(xmins), 1 + a, _error(a, L, n_eff), D, W)


def _error(a: Array, L: Array, n_eff: Array) -> Array:
    """1/√(n·Var u): a/√n for the infinite tail, from Var u = 1/a² − L²/(4 sinh²(aL/2)) for a bounded one."""
    t = np.where(np.isfinite(L), np.clip(np.abs(a) * np.where(np.isfinite(L), L, 1.0), 1e-3, 600.0), 1.0)
    factor = np.where(np.isfinite(L), 1 / np.sqrt(np.maximum(1 - (t / (2 * np.sinh(t / 2))) ** 2, 1e-9)), 1.0)
    size = np.where(np.isfinite(L), t / np.where(np.isfinite(L), L, 1.0), a)
    return size * factor / np.sqrt(n_eff)


def _candidates(tail: _Tail, exact: bool, xmax: float | None) -> Array:
    x = tail.x if xmax is None else tail.x[tail.x <= xmax]
    if exact and len(x) <= ALL_CANDIDATES:
        return x[:-1]
    low = max(x[0], 1e-12 * x[-1])  # below, float64 products leave rounding instead of eigenvalues
    grid = np.geomspace(low, x[-1], GRID + 1)[:-1]
    return x[np.searchsorted(x, grid * (1 - 1e-12))] if exact else grid


def _fit(tail: _Tail, xmin: float | str | None, xmax: float | None, exact: bool) -> tuple[_Fit, TailCurve]:
    curve = _scan(tail, np.unique(_candidates(tail, exact, xmax)), xmax)
    if xmin is None:
        finite = np.isfinite(curve.D)
        start = float(curve.xmin[np.nanargmin(curve.D)]) if finite.any() else float(tail.within(0.0, xmax).x[-1])
    elif isinstance(xmin, str):
        inside = tail.within(0.0, xmax)
        start = log_density_peak(inside.x, inside.w, float(inside.w.sum() ** 2 / inside.s.sum()))
    else:
        start = xmin
    here = _scan(tail, np.array([start]), xmax)
    inside = tail.within(start, xmax)
    u = np.log(inside.x / start)
    end = np.log((inside.x[-1] if xmax is None else xmax) / start)
    bounded = 1 + float(exponent(np.average(u, weights=inside.w), end)) if end > 0 else NAN
    return _Fit(float(here.alpha[0]), bounded, start, float(here.D[0]), float(here.tail[0])), curve


def _check_range(xmin: float | str | None, xmax: float | None, x: Array) -> None:
    if isinstance(xmin, str):
        if xmin != "peak":
            raise ValueError(f"xmin={xmin!r} is not a rule; use None (least KS distance), 'peak' or a number.")
    elif xmin is not None and not 0 < xmin <= x[-1]:
        raise ValueError(f"xmin={xmin} leaves no tail; use 0 < xmin <= {x[-1]:g}, the largest eigenvalue.")
    low = xmin if isinstance(xmin, (int, float)) else x[0]
    if xmax is not None and not xmax > low:
        raise ValueError(f"xmax={xmax} lies below the tail; use xmax > {low:g}.")
    if not np.any((x >= low) & (x <= (np.inf if xmax is None else xmax))):
        raise ValueError(f"no eigenvalue lies between xmin={low:g} and xmax={xmax}; widen the range.")


def _refusal(alpha: float, tail: float, decades: float) -> str:
    if not np.isfinite(alpha):
        return "All eigenvalues of the tail are equal, so there is no exponent."
    if tail < MIN_TAIL:
        return f"The tail holds {tail:.3g} eigenvalues, and alpha needs {MIN_TAIL}; choose a smaller xmin."
    if decades < MIN_DECADES:
        return f"The tail spans {decades:.2g} decades, and alpha needs {MIN_DECADES:g}; choose a smaller xmin."
    return ""


def power_law(spectrum: Spectrum, *, xmin: float | str | None = None, xmax: float | None = None) -> PowerLaw:
    """Fit ρ(λ) ∝ λ^{−alpha}, λ ≥ xmin, to the weighted measure: alpha = 1 + Σw / Σ w ln(λ/xmin).

    xmin=None searches the xmin of the least D (every eigenvalue, if exact and at most 4000, otherwise a log grid of
    200): the "tail" convention. xmin="peak" starts at the maximum of the density per unit of ln λ: the "near the peak"
    convention. A number is taken as it is. With `xmax`, alpha maximises the likelihood on [xmin, xmax]; without, that
    value is in `alpha_bounded`, with xmax the largest eigenvalue. alpha has no units, xmin those of the eigenvalues.

    accepted is False when the tail holds fewer than 50 eigenvalues or spans less than a decade; alpha is still given.
    Eigenvalues that are not positive beyond the rounding of the operator's products (`zero_threshold`) are left out,
    and counted in `excluded`. No products; memory O(points), plus O(candidates · points) time. sigma does not know
    the bias of a shallow quadrature: more steps and deflation lower it, more probes do not.

    Raises ValueError for a range that holds no eigenvalue. Sources: Clauset, Shalizi & Newman (2009), eqs. 3.1, 3.2,
    3.9; the weights are ours.

    >>> from spectral.spectrum import Spectrum
    >>> quantiles = (np.arange(1000) + 0.5) / 1000
    >>> fit = power_law(Spectrum.from_eigenvalues((1 - quantiles) ** (-1 / 1.5)), xmin=1.0)  # Pareto, alpha = 2.5
    >>> round(fit.alpha, 2), fit.tail, fit.accepted
    (2.5, 1000.0, True)
    """
    values, counts = (np.asarray(v, dtype=np.float64) for v in spectrum.points(zeros=False))
    atoms = None if spectrum.is_exact else np.asarray(spectrum.atoms.values)
    # values that come without an operator were never rounded by products: they are taken at their word
    floor = zero_threshold(values, spectrum.dim, product_epsilon(spectrum)) if spectrum.meta.get("operator") else 0.0
    tail = _positive(values, counts, atoms, floor)
    excluded = float(counts[values <= floor].sum() + spectrum.zeros)
    mode = "ks" if xmin is None else xmin if isinstance(xmin, str) else "given"
    if len(tail.x) == 0:
        return _nothing("No eigenvalue is positive, so there is no tail.", excluded, mode)
    _check_range(xmin, xmax, tail.x)
    if len(tail.x) == 1:
        return _nothing(_refusal(np.inf, 0, 0), excluded, mode, xmin=float(tail.x[0]), count=float(tail.w[0]))
    fit, curve = _fit(tail, xmin, xmax, spectrum.is_exact)
    inside = tail.within(fit.xmin, xmax)
    end = float(inside.x[-1]) if xmax is None else float(xmax)
    decades = float(np.log10(inside.x[-1] / fit.xmin))
    alpha = fit.alpha if np.isfinite(fit.alpha) else NAN
    reason = _refusal(alpha, fit.tail, decades)
    errors = _probe_errors(spectrum, xmin, xmax, floor)
    own = float(_scan(tail, np.array([fit.xmin]), xmax).sigma[0])
    W = float(inside.w.sum())
    n_eff = min(W, W**2 / float(inside.s.sum()))
    u, L = np.log(inside.x / fit.xmin), np.inf if xmax is None else float(np.log(xmax / fit.xmin))
    testable = np.isfinite(alpha) and len(u) > 2 and u[-1] < 100  # e^u of the truncated law within float64
    return PowerLaw(
        alpha=alpha,
        sigma=float(np.hypot(own, errors["alpha"] if np.isfinite(errors["alpha"]) else 0.0)) if alpha == alpha else NAN,
        xmin=fit.xmin,
        xmax=end,
        D=fit.D,
        tail=fit.tail,
        curve=curve,
        tests=against_power_law(u, inside.w / W, alpha - 1, L, n_eff, fit.xmin) if testable else {},
        accepted=not reason,
        reason=reason,
        alpha_bounded=fit.alpha_bounded,
        hill=hill_of(spectrum)[0],
        ccdf_slope=_ccdf_slope(u, inside.w),
        n_eff=n_eff,
        decades=decades,
        excluded=excluded,
        above=float(tail.w[tail.x > end].sum()),
        errors=errors,
        mode=mode,
    )


def _probe_errors(spectrum: Spectrum, xmin: float | str | None, xmax: float | None, floor: float) -> dict[str, float]:
    """Jackknife over probes of the whole procedure, the choice of xmin included."""
    if spectrum.is_exact:
        return dict.fromkeys(_Fit._fields, 0.0)
    fits = []
    for values, counts in leave_one_out(spectrum):
        tail = _positive(values, counts, np.asarray(spectrum.atoms.values), floor)
        inside = tail.within(xmin if isinstance(xmin, (int, float)) else 0.0, xmax)
        if len(inside.x) < 2:
            return dict.fromkeys(_Fit._fields, NAN)
        fits.append(_fit(tail, xmin, xmax, exact=False)[0])
    return {name: jackknife_stderr([getattr(fit, name) for fit in fits]) for name in _Fit._fields}


def _ccdf_slope(u: Array, w: Array) -> float:
    """1 − slope of the weighted regression of ln(midpoint CCDF) on u."""
    ccdf = 1 - (np.cumsum(w) - w / 2) / w.sum()
    if len(u) < 2 or np.ptp(u) == 0:
        return NAN
    centred = u - np.average(u, weights=w)
    return 1 - float(np.sum(w * centred * np.log(ccdf)) / np.sum(w * centred**2))


def _nothing(reason: str, excluded: float, mode: str, xmin: float = NAN, count: float = 0.0) -> PowerLaw:
    empty = np.zeros(0)
    curve = TailCurve(empty, empty, empty, empty, empty)
    return PowerLaw(
        NAN, NAN, xmin, xmin, NAN, count, curve, {}, False, reason, decades=0.0 if count else NAN, excluded=excluded,
        errors=dict.fromkeys(_Fit._fields, NAN), mode=mode,
    )  # fmt: skip
