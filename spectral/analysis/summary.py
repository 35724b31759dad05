"""Every number that one spectrum gives: scale, rank, tail, bulk, curvature, each with its error.

Symbols: λ_i the eigenvalues (dim of them), p_i = |λ_i| / Σ|λ|. Shape metrics are functions of the |λ_i|, the singular
values, so that they hold for indefinite matrices too; for Gram, Gauss–Newton and Fisher matrices |λ| = λ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import scipy

from spectral.analysis.exponents import hill_of, top_values
from spectral.analysis.jackknife import Measure, jackknife, jackknife_stderr, leave_one_out
from spectral.analysis.marchenko_pastur import MarchenkoPastur, marchenko_pastur, without_probes
from spectral.analysis.power_law import power_laws
from spectral.estimators.deflation import NEAR, converged
from spectral.estimators.functionals import condition_number, frobenius, negative_mass, numerical_rank, quotient
from spectral.quadrature.gauss import blur, gauss_rule, norm
from spectral.results import Array, Estimate, nan, over
from spectral.schema import integer
from spectral.spectrum import Spectrum, hold_eigenvalues

Term = Callable[[Array], Array]
Pairs = dict[str, tuple[float, float]]  # numbers with their errors
EXPONENTS = (
    "alpha", "alpha_bounded", "sigma", "alpha_hat", "log_alpha_norm", "truncated_alpha", "truncated_rate", "hill",
)  # fmt: skip
RELATIVE_Z = ("1e-1", "1e-2", "1e-3")
INFORMATION = 0.9
UNLIKELY = 0.15  # a chance: what has no more lies beyond two standard errors
HEAVY = 0.05  # a chance: what has less is no single eigenvalue
PROBES = 3  # of which a cluster's values agree to a tenth of its width in one draw of a hundred

METRICS: dict[str, str] = {
    "dim": "dimension of the matrix, eigenvalues",
    "trace": "Σλ, units of λ",
    "mean": "Σλ / dim, units of λ",
    "lambda_max": "largest eigenvalue (largest node of a quadrature: a lower bound), units of λ",
    "lambda_min": "smallest eigenvalue (smallest node of a quadrature: an upper bound), ± rounding where it is less, units of λ",
    "frobenius": "√Σλ², units of λ",
    "stable_rank": "Σ|λ| / max|λ|, directions",
    "participation_ratio": "(Σ|λ|)² / Σλ², directions",
    "effective_rank": "exp(−Σ p ln p), p = |λ|/Σ|λ|, directions",
    "entropy": "−Σ p ln p / ln(hard rank), from 0 (one direction) to 1 (flat), no unit",
    **{f"n_eff_{z}": f"Σ |λ|/(|λ| + z), z = {z}·max|λ|: effective number of parameters" for z in RELATIVE_Z},
    "information_dimension": "smallest number of eigenvalues that hold 90 % of Σ|λ|, directions",
    "hard_rank": "eigenvalues with |λ| above hard_rank_threshold (`numerical_rank`)",
    "hard_rank_threshold": "`Spectrum.rounding`, in units of λ: (10 eps + √dim·2⁻⁵²)·max|λ|, more of a quadrature",
    "zeros_fraction": "eigenvalues known to be 0 by the shape of the matrix / dim",
    "condition_number": "max|λ| / min|λ| over all eigenvalues, inf when one is 0 or, error nan, not to be told from 0",
    "condition_number_nonzero": "max|λ| / min|λ| over |λ| above hard_rank_threshold",
    "negative_mass": "Σ |λ| over λ below −hard_rank_threshold / Σ|λ|, from 0 to 1",
    "negative_fraction": "eigenvalues below −hard_rank_threshold / dim",
    "skew": "third standardised moment of the eigenvalues; positive when the right tail is longer, no unit",
    "alpha": "exponent of the density in the tail, ρ(λ) ∝ λ^−alpha; nan, as all exponents, where the fit is refused",
    "alpha_accepted": "1 when the tail is a power law, 0 when the fit is refused; `power_law` says why",
    "alpha_bounded": "alpha from the likelihood that ends at the largest eigenvalue",
    "sigma": "standard error of alpha",
    "xmin": "where the fitted tail begins (least D), units of λ",
    "D": "largest distance between the tail's CDF and the power law, from 0 to 1",
    "tail": "eigenvalues in the fitted tail",
    "alpha_peak": "alpha with xmin at the peak of the density of ln λ; nan where that fit is refused",
    "alpha_peak_accepted": "1 when the eigenvalues above the peak are a power law, 0 when that fit is refused",
    "alpha_hat": "alpha · log10 λmax",
    "log_alpha_norm": "log10 Σ λ^alpha over λ > 0",
    "truncated_alpha": "exponent of the truncated power law λ^−alpha e^{−rate·λ} on the same tail",
    "truncated_rate": "its rate, 1/units of λ",
    "hill": "Hill's alpha from up to 50 largest exact eigenvalues",
    "mp_edge": "upper edge of the fitted Marchenko–Pastur bulk, units of λ; nan, as all of the bulk, where it is refused",
    "mp_accepted": "1 when the bulk is Marchenko–Pastur up to chance, 0 when it is not; `marchenko_pastur` says why",
    "mp_sigma": "σ of the fitted bulk, √units of λ",
    "mp_ratio": "aspect ratio γ of the fitted bulk",
    "mp_spikes": "eigenvalues above the bulk",
    "mp_softrank": "mp_edge / λmax",
    "mp_ks": "CDF distance between the bulk and the law, from 0 to 1",
    "top_c_energy": "sum of the `top` largest eigenvalues / Σ|λ|; needs them exactly",
    "gap": "λ_C / λ_{C+1} with C = `top`; needs both exactly, inf where rounding does not tell λ_{C+1} from 0",
}


def describe_metric(name: str) -> str:
    """One line of definition and unit of a key of `summary`, `x_stderr` included.

    Parameters
    ----------
    name : str
        A key of `METRICS`, or one with _stderr.

    Returns
    -------
    str
        What it is, and in which units.

    Raises
    ------
    ValueError
        For a name that is no metric.

    Examples
    --------
    >>> describe_metric("trace"), describe_metric("trace_stderr")
    ('Σλ, units of λ', 'standard error of trace: Σλ, units of λ')
    """
    base = name.removesuffix("_stderr")
    if base not in METRICS:
        raise ValueError(f"{name!r} is no metric; use one of {', '.join(METRICS)}, or one of them with _stderr.")
    return METRICS[base] if base == name else f"standard error of {base}: {METRICS[base]}"


# One definition each: `Spectrum` and `spectral.estimators.functionals` where they have it, else here --------------------
def trace_of(spectrum: Spectrum) -> Estimate:
    """Σλ, by `Spectrum.integrate`."""
    return spectrum.integrate(lambda x: x)


def extreme_of(spectrum: Spectrum, side: int) -> Estimate:
    """The largest value (side 1) or the smallest (−1): of a quadrature a bound from inside, with what may lie beyond.

    To that comes rounding. An exact value that rounding does not tell from 0 has that for its error.
    """
    value = spectrum.interval[1 if side > 0 else 0]
    error = _off(spectrum, value, side)
    if side < 0:
        error = min(error, max(value - spectrum.least, 0.0))
    known = spectrum.zeros > 0 and value == 0
    if not known and not (spectrum.is_exact and abs(value) > spectrum.rounding):
        error = float(np.hypot(error, spectrum.rounding))
    return Estimate(value, error, nan, nan, len(spectrum.nodes), spectrum.products)


def _off(spectrum: Spectrum, value: float, side: int = 0) -> float:
    """How far an eigenvalue may be from this value of the measure, the outermost on `side` (0: one within), as a standard error.

    An eigenvalue beyond weighs no more in a probe than the Christoffel function there; pooled, its mass has the Beta law, and
    where it is as light in UNLIKELY of the draws in which one here is as light as this, it lies two errors away. Where the first
    holds a window away from a converged Ritz value (`deflation.converged`), this is off by residual² / gap, or by what probes
    differ in, if it is not too heavy for one eigenvalue: a cluster ends elsewhere. So is one on which PROBES or more agree to a
    tenth of its residual, which a cluster moves from draw to draw. Within, by its residual.
    """
    if value in spectrum.known_points()[0]:
        return 0.0 if spectrum.is_exact else spectrum.value_error
    if not spectrum.records:
        return nan

    nearest = [np.abs(gauss_rule(record)[0] - value) for record in spectrum.records]
    of = int(np.argmin([away.min() for away in nearest]))
    record, node = spectrum.records[of], int(nearest[of].argmin())
    residual = float(record.betas[-1] * gauss_rule(record)[2][node])
    pair = next((p for p in converged(record) if node in p.nodes), None)
    apart = np.array([away.min() for away in nearest])
    agreed = bool(side) and len(apart) >= PROBES and apart.max() <= residual / 10
    if pair is not None or agreed:
        error, window = (pair.error, pair.window) if pair is not None else (blur(record), NEAR * residual)
        ends = value + window * np.array([side] if side else [-1.0, 1.0])
        if (spectrum.chance(ends) <= UNLIKELY).all() and spectrum.heavier(value, window) > HEAVY:
            return float(max(error, apart[apart <= window].max()))
    if side == 0:
        return residual
    reach = np.geomspace(blur(record), 8 * np.sqrt(spectrum.dim) * norm(record), 320)
    chance = spectrum.chance(value + side * reach)
    likely = np.flatnonzero(chance > UNLIKELY * chance[0])
    return float(reach[min(likely[-1] + 1, len(reach) - 1)] / 2)


def largest_of(spectrum: Spectrum) -> Estimate:
    """λmax, see `extreme_of`."""
    return extreme_of(spectrum, 1)


def of_sums(
    spectrum: Spectrum, terms: Sequence[Term], combine: Callable[..., tuple[float, Sequence[float]]]
) -> Estimate:
    """g(S_1, ..., S_j) of the sums S_i of `terms` over all eigenvalues; `combine` gives g and its partial derivatives.

    The error is that of the linearised g, Σ ∂g/∂S_i · term_i, by the law of `Spectrum.integrate`: one probe has one too.
    """
    value, slopes = combine(*(float(spectrum.integrate(term)) for term in terms))
    if not np.isfinite(value):
        return Estimate(nan, nan, nan, nan, len(spectrum.nodes), spectrum.products)
    linear = spectrum.integrate(lambda x: np.sum([s * term(x) for s, term in zip(slopes, terms, strict=True)], axis=0))
    bounds = (value, value) if spectrum.is_exact else (nan, nan)
    return Estimate(value, float(linear.stderr), *bounds, len(spectrum.nodes), spectrum.products)


def _terms(spectrum: Spectrum) -> tuple[Term, Term, Term]:
    """|λ|, λ² and |λ| ln |λ| in units of the largest |λ|, so that sums neither overflow nor vanish."""
    unit, small = spectrum.scale or 1.0, spectrum.rounding

    def logarithmic(x: Array) -> Array:
        y = np.abs(x) / unit
        return np.where(np.abs(x) > small, scipy.special.xlogy(y, y), 0.0)  # rounding is no direction

    return lambda x: np.abs(x) / unit, lambda x: (x / unit) ** 2, logarithmic


def stable_rank(spectrum: Spectrum) -> Estimate:
    """Σ|λ| / max|λ|."""
    ratio = of_sums(spectrum, _terms(spectrum)[:1], lambda s: (s if s > 0 else nan, [1.0]))
    return _and_by(ratio, float(ratio) * (spectrum.scale or 1.0) / (_most(spectrum) or 1.0))


def _most(spectrum: Spectrum) -> float:
    """What max|λ| may be: two errors beyond what the spectrum shows of either end."""
    ends = [extreme_of(spectrum, side) for side in (1, -1)]
    return float(np.max([spectrum.scale, *(abs(float(e)) + 2 * float(e.stderr) for e in ends)]))


def _and_by(e: Estimate, at_most: float) -> Estimate:
    """An estimate that would be `at_most` if max|λ| were `_most`, with half of that in its error."""
    return replace(e, stderr=float(np.hypot(e.stderr, (float(e) - at_most) / 2)))


def participation_ratio(spectrum: Spectrum) -> Estimate:
    """(Σ|λ|)² / Σλ²."""

    def combine(s: float, q: float) -> tuple[float, list[float]]:
        return (s * s / q, [2 * s / q, -((s / q) ** 2)]) if s > 0 else (nan, [])

    return of_sums(spectrum, _terms(spectrum)[:2], combine)


def spectral_entropy(spectrum: Spectrum) -> Estimate:
    """H = −Σ p ln p, p = |λ|/Σ|λ|, in nats: ln S − L/S with S = Σ|λ| and L = Σ|λ| ln|λ|."""
    size, _, logarithmic = _terms(spectrum)

    def combine(s: float, l: float) -> tuple[float, list[float]]:
        return (float(np.log(s)) - l / s, [1 / s + l / s**2, -1 / s]) if s > 0 else (nan, [])

    return of_sums(spectrum, (size, logarithmic), combine)


def effective_rank(spectrum: Spectrum) -> Estimate:
    """exp H; its error is half of what two of H's reach, where they reach farthest, within 1 and dim."""
    return _exponential(spectral_entropy(spectrum), spectrum.dim)


def _exponential(entropy: Estimate, dim: int) -> Estimate:
    """exp of an entropy between 0 and ln dim."""
    value, error, most = float(entropy), 2 * float(entropy.stderr), float(np.log(dim))
    ends = np.exp(np.clip([value - error, value + error], 0.0, most))
    stderr = float(np.abs(ends - np.exp(value)).max()) / 2 if error > 0 else error
    lower, upper = float(np.exp(entropy.lower)), float(np.exp(entropy.upper))
    return Estimate(float(np.exp(value)), stderr, lower, upper, entropy.probes, entropy.products)


def effective_parameters(spectrum: Spectrum, z: float) -> Estimate:
    """Σ |λ| / (|λ| + z max|λ|)."""
    unit = spectrum.scale
    if unit == 0:
        return Estimate(nan, nan)

    def relative_to(size: float) -> Estimate:
        return spectrum.integrate(lambda x: np.abs(x) / (np.abs(x) + z * size))

    return _and_by(relative_to(unit), float(relative_to(_most(spectrum))))


def skewness(spectrum: Spectrum) -> Estimate:
    """The third standardised moment of the eigenvalues; nan where they differ by rounding alone."""
    n, unit = spectrum.dim, spectrum.scale or 1.0
    centre = float(trace_of(spectrum)) / n / unit
    terms = [lambda x, p=p: (x / unit - centre) ** p for p in (1, 2, 3)]

    def combine(a: float, b: float, c: float) -> tuple[float, list[float]]:
        m2, m3 = b / n, c / n  # a is rounding: the derivatives are taken at 0
        if m2 <= 1e-24:
            return nan, []
        return m3 / m2**1.5, [-3 / m2**0.5 / n, -1.5 * m3 / m2**2.5 / n, 1 / m2**1.5 / n]

    return of_sums(spectrum, terms, combine)


def ratio_of(a: Estimate, b: Estimate) -> tuple[float, float]:
    """(a / b, its error to first order) of independent a and b; nan where b is 0."""
    x, y = float(a), float(b)
    return (x / y, float(np.hypot(a.stderr / y, x / y * b.stderr / y))) if y != 0 else (nan, nan)


def _numbers(spectrum: Spectrum) -> dict[str, Estimate]:
    """The metrics that are numbers of the whole spectrum."""
    n, trace, rank = spectrum.dim, trace_of(spectrum), numerical_rank(spectrum)
    negative, zero = negative_mass(spectrum), spectrum.scale == 0
    entropy, highest, lowest = spectral_entropy(spectrum), extreme_of(spectrum, 1), extreme_of(spectrum, -1)
    largest = max(highest, lowest, key=lambda e: abs(float(e)))
    return {
        "dim": Estimate(float(n), 0.0),
        "trace": trace,
        "mean": spectrum.moment(1),
        "lambda_max": highest,
        "lambda_min": lowest,
        "frobenius": frobenius(spectrum),
        "stable_rank": stable_rank(spectrum),
        "participation_ratio": participation_ratio(spectrum),
        "effective_rank": _exponential(entropy, n),
        "entropy": _entropy_ratio(entropy, rank),
        **{f"n_eff_{z}": effective_parameters(spectrum, float(z)) for z in RELATIVE_Z},
        "hard_rank": rank,
        "hard_rank_threshold": Estimate(spectrum.rounding, _threshold_error(spectrum, largest)),
        "zeros_fraction": Estimate(spectrum.zeros / n, 0.0),
        "condition_number": Estimate(nan, nan) if zero else condition_number(spectrum),
        "condition_number_nonzero": Estimate(nan, nan) if zero else nonzero_condition(spectrum),
        "negative_mass": Estimate(nan, nan) if zero else negative.mass,
        "negative_fraction": negative.fraction,
        "skew": skewness(spectrum),
        "size": spectrum.integrate(np.abs),
    }


def nonzero_condition(spectrum: Spectrum) -> Estimate:
    """max|λ| / min|λ| over |λ| above rounding; two errors are what those of both ends allow, nan where that has no end."""
    x = spectrum.points()[0]
    x = x[np.abs(x) > spectrum.rounding]
    if not len(x):
        return Estimate(nan, nan)
    ends = x[np.abs(x).argmax()], x[np.abs(x).argmin()]
    largest, smallest = np.abs(ends)
    high, low = (2 * _off(spectrum, end, _outward(spectrum, end)) for end in ends)
    value = quotient(largest, smallest)
    # rounding may put it to either side of an end that is known
    least = min(smallest, max(smallest - low, spectrum.least - spectrum.rounding))
    most = quotient(largest + high, least) if least > 0 else nan
    return Estimate(value, (most - value) / 2 if high or low else 0.0)


def _outward(spectrum: Spectrum, end: float) -> int:
    """On which side of a value nothing else was seen: 1, -1, or 0 for neither."""
    low, high = spectrum.interval
    return int(end == high) or -int(end == low)


def _threshold_error(spectrum: Spectrum, largest: Estimate) -> float:
    """Of `Spectrum.rounding`: it moves along with the largest |λ|, and from probe to probe with the bounds of ||T|| in it."""
    if spectrum.scale == 0:
        return 0.0
    blurs = [blur(record) for record in spectrum.records if "rounding" not in spectrum.meta]
    own = float(np.std(blurs, ddof=1)) if len(blurs) > 1 else nan if blurs else 0.0
    return float(np.hypot(own, spectrum.rounding / spectrum.scale * largest.stderr))


def _entropy_ratio(entropy: Estimate, rank: Estimate) -> Estimate:
    """H / ln rank; a single direction has entropy 0 and needs no normalisation. At an end of the rank it is from 0 to 1 too."""
    if not float(rank) > 1:
        return Estimate(0.0, 0.0) if np.isfinite(entropy.value) else entropy
    ratio = over(entropy, float(np.log(float(rank))))
    ratio = replace(ratio, stderr=min(float(ratio.stderr), max(abs(float(ratio)), abs(1 - float(ratio)))))
    ends = np.log([max(float(end), 1.0) for end in (rank.lower, rank.upper)])
    at_ends = np.clip(float(entropy) / np.maximum(ends, 1e-300), 0.0, 1.0)
    by_rank = float(np.max(np.abs(at_ends - float(ratio)))) / 1.96
    return replace(ratio, stderr=float(np.hypot(ratio.stderr, by_rank)))


def _information_dimension(values: Array, counts: Array) -> dict[str, float]:
    """How many of the largest |λ| reach 90 % of their sum: a whole number when all counts are whole, else ≥ 1."""
    size, counts = np.abs(values[counts > 0]), counts[counts > 0]
    if not size.max(initial=0.0) > 0:
        return {"information_dimension": nan}
    size = size / size.max()
    order = np.argsort(size)[::-1]
    size, counts = size[order], counts[order]
    energy = np.cumsum(counts * size)
    target = INFORMATION * energy[-1]
    j = min(int(np.searchsorted(energy, target * (1 - 1e-12))), len(size) - 1)  # 9 of 10 equal values are 90 %
    before = energy[j] - counts[j] * size[j]
    r = float(counts[:j].sum() + (target - before) / size[j])
    whole = np.all(np.abs(counts - np.round(counts)) < 1e-9)
    return {"information_dimension": float(np.ceil(r - 1e-9 * max(r, 1.0))) if whole else max(r, 1.0)}


def _bulk_metrics(spectrum: Spectrum, lambda_max: float) -> Pairs:
    """The Marchenko–Pastur bulk; what a refused fit would say is nan, and the verdict and the distance stay."""

    def metrics(fit: MarchenkoPastur) -> dict[str, float]:
        told = {"mp_edge": fit.upper, "mp_sigma": fit.sigma, "mp_ratio": fit.ratio, "mp_spikes": fit.spikes}
        told["mp_softrank"] = fit.upper / lambda_max if lambda_max > 0 else nan
        if not fit.accepted:
            told = dict.fromkeys(told, nan)
        return told | {"mp_ks": fit.ks, "mp_accepted": float(fit.accepted)}

    whole, *rest = map(metrics, [marchenko_pastur(spectrum), *without_probes(spectrum)])
    errors = {key: 0.0 if spectrum.is_exact else jackknife_stderr([m[key] for m in rest]) for key in whole}
    return {key: (value, errors[key]) for key, value in whole.items()} | {"mp_accepted": (whole["mp_accepted"], 0.0)}


def _tail_metrics(spectrum: Spectrum, lambda_max: float) -> Pairs:
    """The power law of the spectrum; the errors come from the fits themselves.

    Exponents of a refused fit are nan, and so is what is made of them: a single number in a dictionary cannot say that it is not
    to be trusted. `power_law` gives them with the reason; where the tail begins, its length and D stay here too.
    """
    fit, peak = power_laws(spectrum)
    truncated = fit.tests["truncated power law"].parameters if fit.tests else {"alpha": nan, "rate": nan}
    known = np.isfinite(fit.alpha) and lambda_max > 0
    norm = _log_alpha_norm(spectrum, fit.alpha, fit.errors["alpha"]) if known else (nan, nan)
    own = 0.0 if spectrum.is_exact else nan  # their error across probes is not computed
    decades = float(np.log10(lambda_max)) if known else nan
    result = {
        "alpha": (fit.alpha, fit.sigma),
        "alpha_accepted": (float(fit.accepted), 0.0),
        "alpha_bounded": (fit.alpha_bounded, fit.errors["alpha_bounded"]),
        "sigma": (fit.sigma, own),
        "xmin": (fit.xmin, fit.errors["xmin"]),
        "D": (fit.D, fit.errors["D"]),
        "tail": (fit.tail, fit.errors["tail"]),
        "alpha_peak": (peak.alpha, peak.sigma),
        "alpha_peak_accepted": (float(peak.accepted), 0.0),
        "alpha_hat": (fit.alpha * decades, fit.sigma * abs(decades)),
        "log_alpha_norm": norm,
        "truncated_alpha": (truncated["alpha"], own),
        "truncated_rate": (truncated["rate"], own),
        "hill": hill_of(spectrum),
    }
    refused = [key for key in EXPONENTS if not fit.accepted] + ["alpha_peak"] * (not peak.accepted)
    return result | dict.fromkeys(refused, (nan, nan))


def _log_alpha_norm(spectrum: Spectrum, alpha: float, alpha_error: float) -> tuple[float, float]:
    """log10 Σ λ^alpha; its error from the probes at fixed alpha, and from the probes' error of alpha, in quadrature."""

    def norm(measure: Measure, exponent: float) -> float:
        values, counts = measure
        kept = (values > 0) & (counts > 0)
        return float(scipy.special.logsumexp(exponent * np.log(values[kept]), b=counts[kept]) / np.log(10))

    pooled = spectrum.points()
    if spectrum.is_exact:
        return norm(pooled, alpha), 0.0
    fixed = jackknife_stderr([norm(m, alpha) for m in leave_one_out(spectrum)])
    moved = (norm(pooled, alpha + alpha_error) - norm(pooled, alpha - alpha_error)) / 2
    return norm(pooled, alpha), float(np.hypot(fixed, moved))


def _top_metrics(spectrum: Spectrum, top: int | None, total: float, total_stderr: float) -> Pairs:
    """Energy and gap at C; nan unless the eigenvalues above and, for the gap, below the cut are known exactly."""
    result = {"top_c_energy": (nan, nan), "gap": (nan, nan)}
    values = top_values(spectrum, top + 1) if top is not None else np.zeros(0)
    if top is not None and len(values) >= top and total > 0:
        energy = float(values[:top].sum()) / total
        result["top_c_energy"] = (energy, abs(energy) * total_stderr / total)
    if top is not None and len(values) > top:
        above, below = np.where(np.abs(values[top - 1 :]) > spectrum.rounding, values[top - 1 :], 0.0)
        result["gap"] = (quotient(float(above), float(below)), 0.0)
    return result


def summary(spectrum: Spectrum, top: int | None = None) -> dict[str, float]:
    """Every metric of METRICS that the spectrum can give, and beside each key `x` its standard error `x_stderr`.

    nan stands where the spectrum cannot tell: energies and gaps without exact largest eigenvalues, shapes of a zero matrix, and
    what belongs to a fit that was refused: alpha and what is made of it (alpha_accepted 0), alpha_peak, the Marchenko–Pastur
    bulk (mp_accepted 0). A number that another function gives too is that function's: `numerical_rank`, `negative_mass`,
    `condition_number`, `frobenius`, `spectral_form`. `describe_metric` says what a key is.

    Errors are 0 for exact spectra, up to rounding where that counts.

    - Sums over the eigenvalues, and what is made of sums: those of `Spectrum.integrate`.
    - Counts: how far `Spectrum.count`'s intervals reach from them, over 1.96.
    - lambda_max, lambda_min: how far beyond the outermost node an eigenvalue may lie, by what the probes would have on it, in
      85 of 100 draws, at least, within two errors; residual² / gap once the node has converged.
    - condition_number_nonzero: the same of both, the residual of a smallest |node| between others. nan where a 0 is not excluded.
    - information_dimension and the Marchenko–Pastur fit: a jackknife over probes, widened to Student's interval (nan with one
      probe, and for sigma and the truncated power law).
    - alpha, alpha_peak, alpha_hat and hill: statistical, of the fit, for exact spectra too.

    Scaling the matrix by c multiplies the keys in units of λ by c, and changes no other but alpha_hat and log_alpha_norm
    (logarithms of λ), mp_sigma (√c), truncated_rate (1/c).

    Cost: no products.

    Parameters
    ----------
    spectrum : Spectrum
        Exact, or a quadrature.
    top : int, optional
        The C of top_c_energy and gap, usually the number of classes.

    Returns
    -------
    dict
        {name: number}, always the same names.

    Raises
    ------
    ValueError
        Unless top >= 1.

    Examples
    --------
    >>> from spectral.spectrum import Spectrum
    >>> s = summary(Spectrum.from_eigenvalues([4.0, 2.0, 1.0, 1.0]), top=1)
    >>> s["trace"], s["stable_rank"], s["top_c_energy"], s["gap"], round(s["effective_rank"], 3), s["trace_stderr"]
    (8.0, 2.0, 0.5, 2.0, 3.364, 0.0)
    """
    if top is not None:
        integer(top, "top", "number of eigenvalues, such as that of the classes")
    hold_eigenvalues(spectrum, "a summary")
    pairs = {name: (float(e.value), float(e.stderr)) for name, e in _numbers(spectrum).items()}
    largest = pairs["lambda_max"][0]
    pairs |= _bulk_metrics(spectrum, largest) | _tail_metrics(spectrum, largest)
    pairs |= _top_metrics(spectrum, top, *pairs["size"])
    result = jackknife(spectrum, _information_dimension)
    if not spectrum.is_exact:  # of nodes it is no whole number: what rounding up may add, ± one half
        key = "information_dimension_stderr"
        result[key] = float(np.hypot(result[key], 0.5))
    for name, (value, error) in pairs.items():
        result |= {name: float(value), f"{name}_stderr": nan if np.isnan(value) else float(error)}
    return {name: result[name] for key in METRICS for name in (key, f"{key}_stderr")}
