"""Power-law tails of a spectrum, fitted to its counting function N(x) (`counting`).

An exact eigenvalue counts once, a quadrature node n·ω times: fitted with equal weights, Ritz values give a wrong
exponent (1.42 instead of 2.50 in one trial), because they crowd at the edges, and a smoothed density grows tails of its
own. Symbols: N(x) the number of eigenvalues from x on, u = ln(x/xmin), a = alpha − 1, L = ln(xmax/xmin).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectral import cards
from spectral.analysis.alternatives import OF_ALL, LikelihoodRatio, against_power_law, lognormal_of_all
from spectral.analysis.counting import Counting, counted_once, counting, log_sums
from spectral.analysis.exponents import exponent, hill_of, log_density_peak, model_cdf
from spectral.analysis.jackknife import jackknife_stderr
from spectral.analysis.marchenko_pastur import positive_floor
from spectral.results import Array, IntArray, nan
from spectral.schema import Number, item, number
from spectral.spectrum import Spectrum

MIN_TAIL = 50  # eigenvalues; with fewer, sigma/(alpha − 1) exceeds 14 % and the search over xmin fits noise
MIN_DECADES = 1.0  # a shorter tail cannot be told from a lognormal or an exponential
ALL_CANDIDATES = 4000  # up to so many distinct exact eigenvalues each is tried as xmin
GRID = 200  # otherwise a log grid of so many
# An error of N by so much of the weight between two nodes: what interpolation was seen to leave, for exponents of 1.8 to 3.5
# from 40 and 100 steps
LOOSE = 0.05
OPEN = 0.5  # of the tail: two nodes around xmin that weigh more leave open what lies between them, and N is a power law there
# D √n_eff above which a tail is no power law. Stephens (1974): with its rate fitted, an exponential u exceeds 1.31 in 1 of 100
# samples and 1.09 in 5. A tail that was searched for lies closer: 1.1 was exceeded by 1 of 100 (n = 60 to 4000).
MISFIT = {"ks": 1.1, "peak": 1.31, "given": 1.31, "chosen": 1.1}
RIVAL = 0.01  # a rival that is better with less than this probability of chance makes the power law untenable
OF_ALL_MISFIT = 0.9  # D √n of a lognormal that describes all eigenvalues; Lilliefors: 1 of 20 samples exceeds .89
OF_ALL_RATIO = 2.0  # Akaike: two parameters fitted to the tail alone are worth so much log-likelihood
ERRORS = ("alpha", "alpha_bounded", "xmin", "D", "tail")
DRAWN = 10  # eigenvalues that a tail must hold to be drawn


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

    Attributes
    ----------
    alpha : float
        Exponent of the density.
    sigma : float
        Its standard error, see `power_law`.
    xmin, xmax : float
        The range; xmax is the one given, otherwise the largest eigenvalue.
    D : float
        Largest distance between the CDF of the tail, on both sides of its steps, and the law.
    tail : float
        Eigenvalues in the range.
    curve : TailCurve
        The fit for every xmin: `xmin`, `alpha`, `sigma`, `D`, `tail`, arrays of one length.
    tests : dict
        Likelihood ratios against rivals; none beyond 43 decades, or without alpha.
    accepted : bool
        False when alpha is not to be trusted.
    reason : str
        One sentence that says why not.
    alpha_bounded : float
        alpha of the likelihood that ends at xmax.
    hill : float
        From the exact largest eigenvalues, nan without them.
    ccdf_slope : float
        1 − slope of ln CCDF over ln λ.
    n_eff : float
        Independent eigenvalues that say as much as the tail, at most `tail`.
    decades : float
        log10 (largest/xmin).
    excluded : float
        Eigenvalues not positive beyond rounding, which no logarithm takes.
    above : float
        Eigenvalues beyond a given xmax.
    errors : dict
        Jackknife errors over probes of alpha, alpha_bounded, xmin, D, tail: 0 if exact, nan with one probe.
    mode : str
        How xmin was chosen.

    Examples
    --------
    >>> spectral.power_law(spectral.exact(np.diag([1.0, 2.0, 3.0]))).accepted
    False
    """

    alpha: float
    sigma: float
    xmin: float
    xmax: float
    D: float
    tail: float
    curve: TailCurve
    tests: dict[str, LikelihoodRatio] = field(default_factory=dict)
    accepted: bool = False
    reason: str = ""
    alpha_bounded: float = nan
    hill: float = nan
    ccdf_slope: float = nan
    n_eff: float = nan
    decades: float = nan
    excluded: float = 0.0
    above: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    mode: str = "ks"

    def __str__(self) -> str:
        if not self.accepted:
            return f"no power law: {self.reason}"
        return (
            f"alpha {self.alpha:.3f} ± {self.sigma:.2g} from {self.xmin:.3g} on: {self.tail:.0f} eigenvalues, "
            f"{self.decades:.2g} decades, D = {self.D:.2g}"
        )

    def _repr_html_(self) -> str:
        c = self.curve
        known = np.isfinite(c.alpha) & (c.tail >= DRAWN)
        marks = [cards.Mark(c.xmin[known], c.alpha[known], (c.alpha - c.sigma)[known], (c.alpha + c.sigma)[known])]
        if np.isfinite(self.alpha):
            marks.append(cards.Mark(np.array([self.xmin]), np.array([self.alpha]), dots=True, hollow=not self.accepted))
        rows = [
            ("verdict", "accepted" if self.accepted else "refused"),
            ("tail", f"{self.tail:.0f} eigenvalues from {self.xmin:.3g}"),
            ("D", cards.with_error(self.D, self.errors.get("D", nan))),
            ("independent", f"{self.n_eff:.3g} eigenvalues"),
        ]
        rows += [(f"against {name}", f"ln R = {test.ratio:.3g}, p = {test.p:.2g}") for name, test in self.tests.items()]
        alt = "alpha against the start of the tail, with one standard error; the dot is the fit, hollow where it is refused"
        picture = cards.chart(marks, "start of the tail, xmin", "alpha", alt, x_scale="log") if known.any() else ""
        return cards.card(f"{self}", rows, picture)


class _Range(NamedTuple):
    """The eigenvalues of `c` up to its point `last`: `beyond` lie above.

    `largest` is the largest in the range, `sums` are `log_sums(c)`; xmax is None where the law has no end.
    """

    c: Counting
    xmax: float | None
    last: int
    beyond: float
    largest: float
    sums: Array
    log_x: Array

    def counts(self, first: IntArray) -> Array:
        """Eigenvalues from each of the points `first` on."""
        return self.c.at_least[first] - self.beyond

    def n_eff(self, first: IntArray) -> Array:
        return self.c.independent(first, self.last)

    def draws(self, first: IntArray) -> Array:
        """How many those are but for the noise of probes: an eigenvalue with all its copies is one."""
        return self.c.independent(first, self.last, probes=False)

    def mean_u(self, first: IntArray) -> Array:
        """Mean of u = ln(λ/xmin), xmin the point `first`."""
        total = self.sums[first] - self.sums[self.last] - self.beyond * np.log(self.c.x[self.last] / self.c.x[first])
        return np.maximum(total, 0.0) / np.maximum(self.counts(first), 1e-300)

    def length(self, first: IntArray) -> Array:
        """L = ln(xmax/xmin)."""
        return np.full(len(first), np.inf) if self.xmax is None else np.log(self.xmax / self.c.x[first])

    def distance(self, first: int, a: float, L: float) -> float:
        """D of Clauset et al., eq. 3.9: the largest distance to the law, on both sides of each step of the CDF."""
        points = slice(first, self.last + 1)
        u, n = self.log_x[points] - self.log_x[first], self.c.at_least[first] - self.beyond
        beyond_x = n * (1 - model_cdf(u, a, L) if np.isfinite(L) else np.exp(-a * u)) + self.beyond
        return float(max(np.max(beyond_x - self.c.above[points]), np.max(self.c.at_least[points] - beyond_x)) / n)


def _range(c: Counting, xmax: float | None) -> _Range:
    c = c if xmax is None else c.insert(xmax)
    last = len(c.x) - 1 if xmax is None else int(np.searchsorted(c.x, xmax))
    beyond = float(c.above[last])
    held = np.flatnonzero(c.at_least[: last + 1] > beyond)
    largest = float(c.x[held[-1]]) if len(held) else nan
    return _Range(c, xmax, last, beyond, largest, log_sums(c), np.log(c.x))


def _scan(r: _Range, first: IntArray) -> tuple[TailCurve, Array]:
    """The fit from each of the points `first` on, and the part of sigma that is chance."""
    n, mean_u, L = r.counts(first), r.mean_u(first), r.length(first)
    a = np.where((mean_u > 0) & (n > 0), exponent(mean_u, L), np.inf)  # one value has no slope
    chance = _error(a, L, r.n_eff(first))
    D, sigma = np.full(len(first), nan), np.full(len(first), np.inf)
    for i in np.flatnonzero(np.isfinite(a)):
        D[i] = r.distance(int(first[i]), float(a[i]), float(L[i]))
        sigma[i] = np.hypot(chance[i], LOOSE * abs(a[i]) * r.c.loose[first[i]] / n[i])
    return TailCurve(r.c.x[first], 1 + a, sigma, D, n), chance


def _error(a: Array, L: Array, n_eff: Array) -> Array:
    """1/√(n·Var u): a/√n for the infinite tail, from Var u = 1/a² − L²/(4 sinh²(aL/2)) for a bounded one."""
    t = np.where(np.isfinite(L), np.clip(np.abs(a) * np.where(np.isfinite(L), L, 1.0), 1e-3, 600.0), 1.0)
    factor = np.where(np.isfinite(L), 1 / np.sqrt(np.maximum(1 - (t / (2 * np.sinh(t / 2))) ** 2, 1e-9)), 1.0)
    size = np.where(np.isfinite(L), t / np.where(np.isfinite(L), L, 1.0), a)
    return size * factor / np.sqrt(n_eff)


def _candidates(r: _Range, exact: bool) -> IntArray:
    """Points at which a tail may begin: each exact eigenvalue, or those of a log grid."""
    x = r.c.x[: r.last + 1]
    if exact and len(x) <= ALL_CANDIDATES:
        return np.arange(len(x) - 1)
    low = max(x[0], 1e-12 * x[-1])  # below, float64 products leave rounding instead of eigenvalues
    grid = np.geomspace(low, x[-1], GRID + 1)[:-1]
    return np.unique(np.minimum(np.searchsorted(x, grid * (1 - 1e-12)), len(x) - 2))


class _Search(NamedTuple):
    """The fit for every start of the tail that is tried. able: tails that are long enough to be accepted."""

    c: Counting
    xmax: float | None
    curve: TailCurve
    chance: Array
    able: NDArray[np.bool_]
    largest: float


def _search(c: Counting, xmax: float | None, exact: bool) -> _Search:
    r = _range(c, xmax)
    first = _candidates(r, exact)
    curve, chance = _scan(r, first)
    able = (r.draws(first) >= MIN_TAIL - 1e-9) & (np.log10(r.largest / curve.xmin) >= MIN_DECADES)
    able &= r.c.loose[first] <= OPEN * curve.tail
    return _Search(c, xmax, curve, chance, able, r.largest)


def _least(search: _Search, among: NDArray[np.bool_]) -> float:
    """The xmin of the least D, nan where no tail has one."""
    D = np.where(among, search.curve.D, nan)
    return nan if np.isnan(D).all() else float(search.curve.xmin[np.nanargmin(D)])


def _starts(search: _Search, xmin: float | str | None, exact: bool) -> list[float]:
    """Where the tail may begin, by the rule: the first that is accepted counts, or the last.

    On exact eigenvalues the least D of all, which other packages report, is what is refused if no longer tail is a power law;
    between a few nodes an interpolated N is a power law whatever the spectrum is.
    """
    if isinstance(xmin, (int, float)):
        return [float(xmin)]
    if isinstance(xmin, str):
        r = _range(search.c, search.xmax)
        values, counts = r.c.masses
        inside = values <= r.c.x[r.last]
        return [log_density_peak(values[inside], counts[inside], float(r.n_eff(np.zeros(1, int))[0]))]
    long, any_ = _least(search, search.able), _least(search, np.ones_like(search.able))
    found = [v for v in ([long, any_] if exact or np.isnan(long) else [long]) if np.isfinite(v)]
    return list(dict.fromkeys(found)) or [search.largest]


def _from(search: _Search, start: float) -> tuple[_Range, IntArray]:
    """The eigenvalues with `start` among their points, and its place (1,)."""
    r = _range(search.c.insert(start), search.xmax)
    return r, np.searchsorted(r.c.x, [start])


def _fit(search: _Search, start: float, mode: str) -> PowerLaw:
    """The fit of the tail from `start` on, not judged yet."""
    r, first = _from(search, start)
    here, own = _scan(r, first)
    later = search.able & (search.curve.xmin > start) & (mode == "peak")  # where the density turns, its slope does
    drift = _drift(search.curve.alpha[later] - here.alpha[0], search.chance[later], own[0])
    known = np.isfinite(here.alpha[0])
    return PowerLaw(
        alpha=float(here.alpha[0]) if known else nan,
        sigma=float(np.hypot(here.sigma[0], drift)) if known else nan,
        xmin=start,
        xmax=search.largest if search.xmax is None else float(search.xmax),
        D=float(here.D[0]),
        tail=float(here.tail[0]),
        curve=search.curve,
        alpha_bounded=nan if mode == "chosen" else _bounded(r, first),  # a verdict alone does without
        n_eff=float(r.n_eff(first)[0]),
        decades=float(np.log10(r.largest / start)),
        mode=mode,
    )


def _bounded(r: _Range, first: IntArray) -> float:
    """alpha of the likelihood that ends at xmax, or at the largest eigenvalue."""
    end = np.log((r.largest if r.xmax is None else r.xmax) / r.c.x[first])
    return 1 + float(exponent(r.mean_u(first), end)[0]) if end[0] > 0 else nan


def _drift(change: Array, chance: Array, own: float) -> float:
    """How far alpha moves, beyond chance, when the tail begins later.

    A power law has one exponent wherever its tail is cut. Fits of a tail and of a part of it differ by chance with the
    difference of their variances, of which 2.5 standard deviations are left out.
    """
    beyond = change**2 - 2.5**2 * np.maximum(chance**2 - own**2, 0.0)
    return float(np.sqrt(np.max(beyond, initial=0.0)))


def _check_range(xmin: float | str | None, xmax: float | None, c: Counting) -> None:
    if isinstance(xmin, str):
        if xmin != "peak":
            raise ValueError(f"xmin={xmin!r} is not a rule; use None (least KS distance), 'peak' or a number.")
    elif xmin is not None and not (Number(above=0).holds(xmin, "xmin", {}) and xmin <= c.x[-1]):
        raise ValueError(f"xmin={xmin!r} leaves no tail; use 0 < xmin <= {c.x[-1]:g}, the largest eigenvalue.")
    low = xmin if isinstance(xmin, (int, float)) else c.x[0]
    if xmax is not None:
        number(xmax, "xmax", "end of a tail", Number(above=float(low)))
    if xmax is not None and not _eigenvalues_between(c, low, xmax) > 0:
        raise ValueError(f"no eigenvalue lies between xmin={low:g} and xmax={xmax}; widen the range.")


def _eigenvalues_between(c: Counting, low: float, high: float) -> float:
    c = c.insert(low).insert(high)
    return float(c.at_least[np.searchsorted(c.x, low)] - c.above[np.searchsorted(c.x, high)])


def _tail_of(search: _Search, start: float) -> tuple[Array, Array]:
    """The tail as a measure: u = ln(λ/xmin) and counts."""
    r = _range(search.c.insert(start), search.xmax)
    values, counts = r.c.masses
    inside = (values >= start) & (values <= r.c.x[r.last])
    return np.log(values[inside] / start), counts[inside]


def _tests(search: _Search, fit: PowerLaw) -> dict[str, LikelihoodRatio]:
    u, w = _tail_of(search, fit.xmin)
    if not np.isfinite(fit.alpha) or len(u) < 3 or u[-1] >= 100:  # e^u of the truncated law within float64
        return {}
    L = np.inf if search.xmax is None else float(np.log(search.xmax / fit.xmin))
    tail = (u, w / w.sum(), fit.alpha - 1, L, fit.n_eff, fit.xmin)
    return against_power_law(*tail) | {OF_ALL: lognormal_of_all(search.c, *tail)}


def _refusal(search: _Search, fit: PowerLaw, tests: dict[str, LikelihoodRatio]) -> str:
    """Why alpha is not to be trusted, "" where it is."""
    if np.isnan(fit.alpha):
        return "All eigenvalues of the tail are equal, so there is no exponent."
    r, first = _from(search, fit.xmin)
    draws, open_ = float(r.draws(first)[0]), float(r.c.loose[first[0]] / fit.tail)
    short = draws < MIN_TAIL - 1e-9
    tail, needed = cards.apart(draws, MIN_TAIL, 3)
    holds = f"{tail} eigenvalues{counted_once(draws, fit.tail)}"
    decades, span = cards.apart(fit.decades, MIN_DECADES)
    if fit.mode == "ks" and (short or fit.decades < MIN_DECADES):
        return (
            f"The tail closest to a power law holds {holds} in {decades} decades; alpha needs "
            f"{needed} in {span}, and no tail of that length is one."
        )
    hint = "." if fit.mode == "chosen" else "; choose a smaller xmin."
    if short:
        return f"The tail holds {holds}, and alpha needs {needed}{hint}"
    if fit.decades < MIN_DECADES:
        return f"The tail spans {decades} decades, and alpha needs {span}{hint}"
    if open_ > OPEN:
        weigh, most = cards.apart(100 * open_, 100 * OPEN, 3)
        return (
            f"The nodes around xmin weigh {weigh} % of the tail, and may be {most} %; use more steps, or a larger xmin."
        )
    allowed = MISFIT[fit.mode] / np.sqrt(fit.n_eff)
    if allowed < fit.D:
        away, most = cards.apart(fit.D, allowed)
        return f"The tail is no power law: its CDF is {away} away from the law, and chance allows {most}."
    better = {t.p: name for name, t in tests.items() if t.ratio < 0 and t.p < RIVAL and name != OF_ALL}
    if better:
        return f"A law of another form describes the tail better: {better[min(better)]} (p = {min(better):.1g})."
    of_all = tests.get(OF_ALL)
    if fit.mode != "given" and of_all and of_all.ratio < OF_ALL_RATIO and of_all.parameters["misfit"] < OF_ALL_MISFIT:
        return "One lognormal describes all the eigenvalues, and their tail as well as a power law does."
    return ""


def power_law(spectrum: Spectrum, *, xmin: float | str | None = None, xmax: float | None = None) -> PowerLaw:
    """Fit ρ(λ) ∝ λ^{−alpha}, λ ≥ xmin: alpha = 1 + n / Σ ln(λ/xmin) over the n eigenvalues of the tail.

    Of a quadrature, n and the sum are those of its interpolated counting function, n = N(xmin) and ∫ N(x) dx/x from xmin on.
    alpha has no units, xmin those of the eigenvalues. Eigenvalues that are not positive beyond the rounding of the operator's
    products are left out, and counted in `excluded`.

    The error `sigma` is (alpha − 1)/√n_eff, and in quadrature a twentieth of what the two nodes around xmin weigh, as a share
    of the tail, and for the peak how far alpha moves beyond chance when the tail begins later. n_eff is n for exact
    eigenvalues, and counts the copies of one (no further apart than the rounding of products) once; m probes make it
    n/(1 + 2/m). alpha ± sigma holds a planted exponent in 2 of 3 spectra (tests/test_calibration.py).

    `accepted` is False, and alpha still given,

    - when the tail holds fewer than 50 eigenvalues, copies counted once, or spans less than a decade,
    - when the two nodes around xmin weigh more than half of it,
    - when D √n_eff exceeds 1.1 (1.31 if the tail was not searched for),
    - when a rival (truncated power law, lognormal, exponential, log-uniform) is better with p < .01,
    - or when one lognormal describes all eigenvalues, and the tail as well.

    This refuses 0 to 6 of 100 Pareto tails, 9 of 10 lognormals, 98 of 100 exponentials and every Marchenko–Pastur bulk (exact
    and SLQ, 100 to 4000 eigenvalues). A third of the stretched exponentials of power 1/2 passes.

    Cost: no products; O(points) memory, O(candidates · points) time.

    Parameters
    ----------
    spectrum : Spectrum
        Exact, or a quadrature.
    xmin : float or "peak", optional
        Where the tail begins. None searches the xmin of the least D among the tails that could be accepted, those with 50
        eigenvalues, a decade and, in a quadrature, nodes near xmin: every eigenvalue is tried if exact and at most 4000,
        otherwise a log grid of 200. If none of them is a power law and the eigenvalues are exact, the least D of all tails is
        what is reported and refused. "peak" starts at the maximum of the density per unit of ln λ. A number is taken as it
        is.
    xmax : float, optional
        Where it ends: alpha then maximises the likelihood on [xmin, xmax]. Without, that value is in `alpha_bounded`, with
        xmax the largest eigenvalue.

    Returns
    -------
    PowerLaw
        With a verdict: `accepted` and `reason`.

    Raises
    ------
    ValueError
        For a range that holds no eigenvalue.

    References
    ----------
    Clauset, Shalizi and Newman (2009), Power-law distributions in empirical data, eqs. 3.1, 3.2, 3.9.

    Examples
    --------
    >>> from spectral.spectrum import Spectrum
    >>> quantiles = (np.arange(1000) + 0.5) / 1000
    >>> fit = power_law(Spectrum.from_eigenvalues((1 - quantiles) ** (-1 / 1.5)), xmin=1.0)  # Pareto, alpha = 2.5
    >>> round(fit.alpha, 2), fit.tail, fit.accepted
    (2.5, 1000.0, True)
    """
    return _fits(spectrum, [item(xmin)], item(xmax))[0]


def power_laws(spectrum: Spectrum) -> tuple[PowerLaw, PowerLaw]:
    """`power_law` by both rules, None and "peak", for the price of one search."""
    fit, peak = _fits(spectrum, [None, "peak"], None)
    return fit, peak


def refusal_from(values: Array, xmin: float) -> str:
    """Why the exact eigenvalues from `xmin` on are no power law, "" where they are: the rules of `power_law`, for a tail that
    another search has chosen, and for the price of one fit.

    >>> refusal_from(np.array([1.0, 2.0, 3.0]), 1.0)
    'The tail holds 3 eigenvalues, and alpha needs 50.'
    """
    c, _ = counting(Spectrum.from_eigenvalues(values))
    r = _range(c, None)
    search = _Search(c, None, *_scan(r, np.searchsorted(c.x, [xmin])), np.zeros(1, bool), r.largest)
    fit = _fit(search, xmin, "chosen")
    return _refusal(search, fit, {}) or _refusal(search, fit, _tests(search, fit))


def _fits(spectrum: Spectrum, rules: Sequence[float | str | None], xmax: float | None) -> list[PowerLaw]:
    # values that come without an operator were never rounded by products: they are taken at their word
    floor = positive_floor(spectrum)
    if spectrum.is_exact and not spectrum.meta.get("operator"):
        floor = 0.0  # numbers that somebody knows: nothing was multiplied
    c, without = counting(spectrum, floor)
    values, counts = spectrum.points(zeros=False)
    excluded = float(counts[values <= floor].sum() + spectrum.zeros)
    modes = ["ks" if rule is None else rule if isinstance(rule, str) else "given" for rule in rules]
    if len(c.x) == 0:
        return [_nothing("No eigenvalue is positive, so there is no tail.", excluded, mode) for mode in modes]
    for rule in rules:
        _check_range(rule, xmax, c)
    if len(c.x) == 1:
        reason, at = "All eigenvalues of the tail are equal, so there is no exponent.", float(c.x[0])
        return [_nothing(reason, excluded, mode, at, c.total) for mode in modes]
    exact, hills = spectrum.is_exact, hill_of(spectrum)[0]
    search = _search(c, xmax, exact)
    others = [_search(one, xmax, exact=False) if _holds(one, xmax) else None for one in without]
    both = zip(rules, modes, strict=True)
    return [_judged(search, others, rule, mode, exact, excluded, hills) for rule, mode in both]


def _judged(
    search: _Search, others: list[_Search | None], xmin: float | str | None, mode: str, exact: bool, excluded: float,
    hills: float,
) -> PowerLaw:  # fmt: skip
    """The fit by one rule, with its verdict."""
    for start in _starts(search, xmin, exact):
        fit = _fit(search, start, mode)
        tests = _tests(search, fit)
        reason = _refusal(search, fit, tests)
        if not reason:
            break
    errors = dict.fromkeys(ERRORS, 0.0) if exact else _probe_errors(others, xmin, mode)
    slope, above = _ccdf_slope(*_tail_of(search, fit.xmin)), _range(search.c, search.xmax).beyond
    own: dict[str, Any] = {"hill": hills, "ccdf_slope": slope, "excluded": excluded, "above": above, "errors": errors}
    return replace(fit, tests=tests, accepted=not reason, reason=reason, **own)


def _holds(c: Counting, xmax: float | None) -> bool:
    """Whether the eigenvalues up to xmax are several."""
    return len(c.x) > 1 and (xmax is None or (xmax > c.x[0] and _eigenvalues_between(c, c.x[0], xmax) > 0))


def _probe_errors(others: list[_Search | None], xmin: float | str | None, mode: str) -> dict[str, float]:
    """Jackknife over probes of the whole procedure, the choice of xmin included."""
    fits = []
    for search in others:
        if search is None or (mode == "given" and not xmin < search.largest):  # type: ignore[operator]
            return dict.fromkeys(ERRORS, nan)
        fits.append(_fit(search, _starts(search, xmin, exact=False)[0], mode))
    return {name: jackknife_stderr([getattr(fit, name) for fit in fits]) for name in ERRORS}


def _ccdf_slope(u: Array, w: Array) -> float:
    """1 − slope of the weighted regression of ln(midpoint CCDF) on u."""
    ccdf = 1 - (np.cumsum(w) - w / 2) / w.sum()
    if len(u) < 2 or np.ptp(u) == 0:
        return nan
    centred = u - np.average(u, weights=w)
    return 1 - float(np.sum(w * centred * np.log(ccdf)) / np.sum(w * centred**2))


def _nothing(reason: str, excluded: float, mode: str, xmin: float = nan, count: float = 0.0) -> PowerLaw:
    empty = np.zeros(0)
    curve = TailCurve(empty, empty, empty, empty, empty)
    own: dict[str, Any] = {
        "decades": 0.0 if count else nan,
        "excluded": excluded,
        "errors": dict.fromkeys(ERRORS, nan),
        "mode": mode,
    }
    return PowerLaw(nan, nan, xmin, xmin, nan, count, curve, reason=reason, **own)
