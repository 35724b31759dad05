"""Numbers of a spectrum: log-determinant, Frobenius norm, rank, condition, negative mass, resolvent traces.

Each takes an operator (with options of `spectral.esd`) or a ready `Spectrum`, which costs no product. Of an `Estimate` here
`stderr` is statistical and quadrature error together. `lower` and `upper` are certified for the pooled quadratic forms of the
probes that were drawn: they say what more steps could change, not what other probes could (`spectral.quadrature.bounds`); where a
docstring says "confidence", they are a confidence interval instead. nan: nothing is certified. An exact value is both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import scipy

from spectral import longvectors
from spectral.estimators import leave_one_out
from spectral.estimators.esd import esd
from spectral.operators.foreign import as_operator
from spectral.probes import check_seed
from spectral.quadrature import bounds, gauss
from spectral.quadrature.function import STEEP
from spectral.results import Estimate, nan
from spectral.schema import REAL, Number, choice, integer, number, pair, reals
from spectral.spectrum import Spectrum, hold_eigenvalues

Interval = tuple[float | None, float | None]


def logdet(A: Any, shift: float = 0.0, *, interval: Interval | None = None, **options: Any) -> Estimate:
    """log det (A + shift I) = sum_i log(lambda_i + shift) of A + shift I > 0.

    Cost: the products of `esd`; none of a ready spectrum.

    Parameters
    ----------
    A : operator, matrix or Spectrum
        (n, n) symmetric, or rectangular for its Gram on the smaller side; whatever `as_operator` takes. A ready spectrum
        costs no product.
    shift : float
        Added to every eigenvalue.
    interval : (float, float), optional
        (a, b): bounds of all eigenvalues of A that you know, None for an end that you do not; a = 0 of a semi-definite
        operator is known. An a with a + shift > 0 makes stderr smaller where few steps have not seen the lower end.
    **options : object
        Of `esd`, which makes the spectrum: tol, budget, method, probes, steps, seed, checkpoint, ...; none with a ready
        spectrum.

    Returns
    -------
    Estimate
        In nats. stderr is statistical and quadrature error together.
        lower and upper are certified for the pooled quadratic forms of the probes that were drawn: what more steps could
        change, not what other probes could; nan where nothing is certified. An exact value is both.

    Raises
    ------
    ValueError
        Where an eigenvalue or Ritz value + shift <= 0.
    TypeError
        For options with a ready spectrum.

    Notes
    -----
    The upper bound needs an a with a + shift >= 0, the lower one a + shift > 0.

    References
    ----------
    Golub, Meurant (2010), Matrices, Moments and Quadrature with Applications, Princeton: Gauss and Gauss-Radau rules as
    bounds, see `spectral.quadrature.bounds`.

    Examples
    --------
    >>> float(logdet(2 * np.eye(50)))     # 50 log 2
    34.6573590279972...
    """
    number(shift, "shift", "shift, in units of the eigenvalues", REAL)
    pair(interval)
    spectrum = _spectrum(A, options)
    return functional(spectrum, bounds.shifted(bounds.NAMED["log"], float(shift)), interval)


def spectral_form(
    A: Any,
    shifts: float | Sequence[float] | np.ndarray,
    *,
    of: str = "resolvent",
    interval: Interval | None = None,
    **options: Any,
) -> Estimate:
    """Resolvent traces, or effective dimensions, at each shift, from one spectrum.

    "resolvent": tr (A + s I)^-1 = sum_i 1 / (lambda_i + s). "dimension": N_eff(s) = sum_i lambda_i / (lambda_i + s), the
    effective dimension of ridge regression.

    Cost: the products of `esd`, whatever the number of shifts; none of a ready spectrum.

    Parameters
    ----------
    A : operator, matrix or Spectrum
        (n, n) symmetric, or rectangular for its Gram on the smaller side; whatever `as_operator` takes. A ready spectrum
        costs no product.
    shifts : float or array
        s, or (S,) of them, in units of lambda; s > 0 for "dimension".
    of : str
        "resolvent" or "dimension".
    interval : (float, float), optional
        (a, b): bounds of all eigenvalues of A that you know, None for an end that you do not; a = 0 of a semi-definite
        operator is known.
    **options : object
        Of `esd`, which makes the spectrum: tol, budget, method, probes, steps, seed, checkpoint, ...; none with a ready
        spectrum.

    Returns
    -------
    Estimate
        value, stderr, lower and upper are arrays (S,), or numbers for one shift. stderr is statistical and quadrature error
        together.
        lower and upper are certified for the pooled quadratic forms of the probes that were drawn: what more steps could
        change, not what other probes could; nan where nothing is certified. An exact value is both. Both bounds hold for
        semi-definite A and s > 0 (or with `interval`, as in `logdet`).

    Raises
    ------
    ValueError
        For another form, a dimension at s <= 0, and a form that is not finite on the spectrum.
    TypeError
        For options with a ready spectrum.

    References
    ----------
    Golub, Meurant (2010), Matrices, Moments and Quadrature with Applications, Princeton: Gauss and Gauss-Radau rules as
    bounds, see `spectral.quadrature.bounds`.

    Examples
    --------
    >>> spectral_form(np.diag([1.0, 3.0]), [1.0, 3.0], of="dimension").value.tolist()
    [1.25, 0.75]
    """
    choice(of, "of", ("resolvent", "dimension"))
    each = reals(shifts, "shifts", "shift").ravel()
    pair(interval)
    spectrum = _spectrum(A, options)
    found = []
    for s in each:
        if of == "resolvent":
            f = bounds.shifted(bounds.NAMED["inverse"], float(s))
        elif s > 0:
            f = bounds.Signed(lambda x, s=s: x / (x + s), -1, 1, 1, (-float(s), np.inf))  # type: ignore[misc]
        else:
            raise ValueError(f"shift {s:g} has no effective dimension; use shifts > 0.")
        found.append(functional(spectrum, f, interval))
    if np.ndim(shifts) == 0:
        return found[0]
    stacked = [np.array([float(getattr(e, name)) for e in found]) for name in ("value", "stderr", "lower", "upper")]
    return Estimate(stacked[0], stacked[1], stacked[2], stacked[3], len(spectrum.nodes), spectrum.products)


def functional(spectrum: Spectrum, f: bounds.Signed, interval: Interval | None = None) -> Estimate:
    """sum_i f(lambda_i) with Golub-Meurant bounds of the pooled quadratic forms."""
    a, b = pair(interval)
    if a is not None:
        spectrum = replace(spectrum, meta={**spectrum.meta, "least": max(float(a), spectrum.least)})
    e, a = spectrum.integrate(f.f), spectrum.least
    if spectrum.is_exact or not spectrum.records:
        return e
    known = float(spectrum.atoms.multiplicities @ f.f(spectrum.atoms.values)) if len(spectrum.atoms.values) else 0.0
    known += spectrum.zeros * float(f.f(np.zeros(1))[0]) if spectrum.zeros else 0.0
    lower = upper = known
    for record, gone, share in zip(spectrum.records, spectrum.removed, spectrum.pooling, strict=True):
        (theta, omega, _), gone = gauss.gauss_rule(record), np.unique(gone)
        found = bounds.bracket(record, f, (a, b))
        taken = float(omega[gone] @ f.f(theta[gone])) if len(gone) else 0.0
        rest = max(1 - float(omega[gone].sum()), gauss.TINY)
        lower += spectrum.unresolved * share * (found.lower - taken) / rest
        upper += spectrum.unresolved * share * (found.upper - taken) / rest
    return replace(e, lower=float(lower), upper=float(upper))


def frobenius(A: Any, *, probes: int = 20, seed: int = 0) -> Estimate:
    """||A||_F of any (m, n) operator, from ||A z||^2 of random sign vectors, or sqrt(sum lambda^2) of a `Spectrum`.

    Cost: `probes` products, n at most, and no transposed one; none of a ready spectrum. Memory: two vectors.

    Parameters
    ----------
    A : operator, matrix or Spectrum
        (m, n), any; whatever `as_operator` takes.
    probes : int
        Sign vectors, one product each, 2 at least; n of them or more are exact, with the identity.
    seed : int
        0 to 2^64 - 1. Vector i depends on (seed, i) alone.

    Returns
    -------
    Estimate
        The square is unbiased, the root is low by about stderr^2 / (2 value). lower and upper are nan unless exact.

    Raises
    ------
    ValueError
        For probes that are no integer >= 2, and for products that hold NaN.

    References
    ----------
    Hutchinson (1990), A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines, Commun.
    Stat. Simul. Comput. 19: ||A||_F^2 = tr A^T A.

    Examples
    --------
    >>> frobenius(np.diag([3.0, 4.0])).value
    5.0
    """
    if isinstance(A, Spectrum):
        unit = A.scale or 1.0  # so that squares neither overflow nor vanish
        return _root(A.integrate(lambda x: (x / unit) ** 2), unit)
    integer(probes, "probes", "number of products", 2)
    A, seed = as_operator(A), check_seed(seed)
    n, before, exact = A.shape[1], A.products, probes >= A.shape[1]
    norms = []
    for i in range(n if exact else int(probes)):
        column = leave_one_out.draw(A, seed, range(i, i + 1), "rademacher")
        if exact:  # the identity instead
            column.zero_()
            column[i] = 1
        norms.append(longvectors.norm(leave_one_out.multiply(A, column, first=not (i or exact))[:, 0]))
    spent, unit = A.products - before, max(norms, default=0.0) or 1.0
    squares = (np.array(norms) / unit) ** 2
    if exact:
        value = float(squares.sum())
        return _root(Estimate(value, 0.0, value, value, n, spent), unit)
    m = len(squares)
    stderr = float(np.std(squares, ddof=1) / np.sqrt(m)) * leave_one_out.widening(m)
    return _root(Estimate(float(squares.mean()), stderr, nan, nan, m, spent), unit)


def _root(e: Estimate, unit: float) -> Estimate:
    """unit sqrt(e)."""
    value = unit * float(np.sqrt(e.value))
    stderr = unit * float(e.stderr) / (2 * float(np.sqrt(e.value))) if e.value > 0 else unit * float(np.sqrt(e.stderr))
    return Estimate(value, stderr, unit * float(np.sqrt(e.lower)), unit * float(np.sqrt(e.upper)), e.probes, e.products)


def numerical_rank(A: Any, tol: float | None = None, *, confidence: float = 0.95, **options: Any) -> Estimate:
    """How many |eigenvalues| exceed tol times the largest.

    Cost: the products of `esd`; none of a ready spectrum.

    Parameters
    ----------
    A : operator, matrix or Spectrum
        (n, n) symmetric, or rectangular for its Gram on the smaller side; whatever `as_operator` takes. A ready spectrum
        costs no product.
    tol : float, optional
        Relative, 0 <= tol < 1. By default `Spectrum.rounding`, below which an eigenvalue cannot be told from 0: (10 eps +
        sqrt(n) 2^-52) times the largest, eps of the products.
    confidence : float
        Of the interval.
    **options : object
        Of `esd`, which makes the spectrum: tol, budget, method, probes, steps, seed, checkpoint, ...; none with a ready
        spectrum. esd's own `tol` cannot be given here.

    Returns
    -------
    Estimate
        lower and upper are the confidence interval of `Spectrum.count`; stderr is how far they reach from the value, the
        farther one, over the normal quantile.

    Raises
    ------
    ValueError
        For a tol that is no relative tolerance, and a confidence that is no probability.
    TypeError
        For options with a ready spectrum.

    Notes
    -----
    The largest |eigenvalue| is taken from the spectrum, which sees it from below. `summary` calls the number "hard_rank".

    Examples
    --------
    >>> numerical_rank(np.diag([1.0, 2.0, 0.0])).value
    2.0
    """
    if tol is not None:
        number(tol, "tol", "relative tolerance", Number(least=0, below=1), "1e-6")
    spectrum = _spectrum(A, options)
    if spectrum.scale == 0:  # Gaussian probes miss no eigenvalue but with probability 0
        return Estimate(0.0, 0.0, 0.0, 0.0, len(spectrum.nodes), spectrum.products)
    if tol is None:
        small = spectrum.count_within(spectrum.rounding, confidence)
    else:
        cut = tol * spectrum.scale
        small = spectrum.count(np.nextafter(-cut, -np.inf), cut, confidence)
    n, z = spectrum.dim, float(scipy.special.ndtri((1 + confidence) / 2))
    value, lower, upper = n - float(small.value), n - float(small.upper), n - float(small.lower)
    return Estimate(value, _reach(value, lower, upper) / z, lower, upper, len(spectrum.nodes), spectrum.products)


def condition_number(A: Any, **options: Any) -> Estimate:
    """max |lambda| / min |lambda|: a certified lower bound, no upper one, unless the spectrum is exact.

    Cost: the products of `esd`; none of a ready spectrum.

    Parameters
    ----------
    A : operator, matrix or Spectrum
        (n, n) symmetric, or rectangular for its Gram on the smaller side; whatever `as_operator` takes. A ready spectrum
        costs no product.
    **options : object
        Of `esd`, which makes the spectrum: tol, budget, method, probes, steps, seed, checkpoint, ...; none with a ready
        spectrum.

    Returns
    -------
    Estimate
        `lower` is what is certain up to rounding, upper and stderr are nan. value is the ratio of the extreme |Ritz values| where
        all lie on one side of 0, and may be far too small; on both sides they may lie nearer to 0 than any eigenvalue, and
        value is `lower`. Of an exact spectrum lower and upper hold by the error of its eigenvalues.

    Raises
    ------
    ValueError
        For the matrix 0.
    TypeError
        For options with a ready spectrum.

    Notes
    -----
    Ritz values are never outside the spectrum, and within its residual of each lies an eigenvalue. No product with A
    excludes a smaller eigenvalue. An eigenvalue known to be 0 makes the number infinite. One that rounding does not tell
    from 0 does so too, and is no knowledge: stderr is then nan, and `lower` says how large it is at least.

    Examples
    --------
    >>> condition_number(np.diag([1.0, -4.0])).value
    4.0
    """
    spectrum = _spectrum(A, options)
    largest, rounding, products = spectrum.scale, spectrum.rounding, spectrum.products
    error = max(spectrum.value_error, rounding)
    if largest == 0:
        raise ValueError("the matrix is 0; it has no condition number.")
    if spectrum.zeros:
        return Estimate(np.inf, 0.0, np.inf, np.inf, len(spectrum.nodes), products)
    smallest = float(np.abs(spectrum.points()[0]).min())
    value = quotient(largest, smallest) if smallest > rounding else np.inf
    if spectrum.is_exact:
        upper = quotient(largest + error, smallest - error) if smallest > error else np.inf
        lower = max(1.0, (largest - error) / (smallest + error))
        steep = value * error / smallest if STEEP < value < np.inf else 0.0  # else the rounding of any quotient
        return Estimate(value, steep if value < np.inf else nan, lower, upper, 0, products)
    near = [float(np.abs(spectrum.atoms.values).min()) + spectrum.value_error] if len(spectrum.atoms.values) else []
    blur = 0.0
    for record in spectrum.records:
        theta, _, last = gauss.gauss_rule(record)
        blur = max(blur, gauss.BLUR * gauss.epsilon(record) * float(np.abs(theta).max()))
        residual = (record.betas[-1] * last)[: record.steps]  # of what was deflated the atoms know the error
        near.append(float((np.abs(theta[: record.steps]) + residual).min()))
        if spectrum.meta.get("nonnegative"):
            near.append(float(np.abs(theta).min()))  # inside the spectrum, on its one side of 0
    lower = max(1.0, (largest - max(blur, spectrum.value_error)) / (min(near, default=np.inf) + blur))
    one_sided = spectrum.points()[0].min() >= -rounding or spectrum.points()[0].max() <= rounding
    return Estimate(value if one_sided else lower, nan, lower, nan, len(spectrum.nodes), products)


def _reach(value: float, lower: float, upper: float) -> float:
    """How far an interval reaches from a value, which may lie at one of its ends."""
    return max(upper - value, value - lower, 0.0)


def quotient(a: float, b: float) -> float:
    """a / b; an overflow is inf, as is a / 0, and 0 / 0 is nan."""
    with np.errstate(all="ignore"):
        return float(np.float64(a) / np.float64(b))


class NegativeMass(NamedTuple):
    """The negative part of a spectrum, as two fractions.

    Attributes
    ----------
    fraction : Estimate
        Of the eigenvalues below 0.
    mass : Estimate
        Sum of |lambda| over them, as a fraction of sum |lambda|.

    Examples
    --------
    >>> spectral.negative_mass(np.diag([-1.0, 1.0, 2.0, 4.0])).fraction.value
    0.25
    """

    fraction: Estimate
    mass: Estimate


def negative_mass(A: Any, *, confidence: float = 0.95, **options: Any) -> NegativeMass:
    """The negative part of a spectrum, by count and by |lambda|.

    #{lambda_i < 0} / n and sum_{lambda_i < 0} |lambda_i| / sum_i |lambda_i|.

    Cost: the products of `esd`; none of a ready spectrum.

    Parameters
    ----------
    A : operator, matrix or Spectrum
        (n, n) symmetric, or rectangular for its Gram on the smaller side; whatever `as_operator` takes. A ready spectrum
        costs no product.
    confidence : float
        Of both intervals.
    **options : object
        Of `esd`, which makes the spectrum: tol, budget, method, probes, steps, seed, checkpoint, ...; none with a ready
        spectrum.

    Returns
    -------
    NegativeMass
        `fraction` and `mass`, whose lower and upper are confidence intervals. That of the fraction is `Spectrum.count`'s
        (certified envelope, then Beta law); that of the mass is value +- the normal quantile times stderr, within [0, 1].

    Raises
    ------
    ValueError
        For a confidence that is no probability.
    TypeError
        For options with a ready spectrum.

    Notes
    -----
    Negative is what lies below -`Spectrum.rounding`: nearer to 0 the sign is not known. A semi-definite operator has
    neither, exactly.

    Examples
    --------
    >>> negative_mass(np.diag([-1.0, 1.0, 2.0])).mass.value
    0.25
    """
    spectrum = _spectrum(A, options)
    K, products, unit, r = len(spectrum.nodes), spectrum.products, spectrum.scale, spectrum.rounding
    if spectrum.meta.get("nonnegative") or unit == 0:
        none = Estimate(0.0, 0.0, 0.0, 0.0, K, products)
        return NegativeMass(none, none)
    band = spectrum.count_below(-r, confidence)
    n, z = spectrum.dim, float(scipy.special.ndtri((1 + confidence) / 2))
    value, lower, upper = float(band.value) / n, float(band.lower) / n, float(band.upper) / n
    count = Estimate(value, _reach(value, lower, upper) / z, lower, upper, K, products)

    def negative(x: np.ndarray) -> np.ndarray:
        return np.where(x < -r, -x / unit, 0.0)

    total = float(spectrum.integrate(lambda x: np.abs(x) / unit))
    ratio = float(spectrum.integrate(negative)) / total
    stderr = float(spectrum.integrate(lambda x: negative(x) - ratio * np.abs(x) / unit).stderr) / total
    mass = Estimate(ratio, stderr, max(0.0, ratio - z * stderr), min(1.0, ratio + z * stderr), K, products)
    return NegativeMass(count, mass)


def _spectrum(A: Any, options: dict[str, Any]) -> Spectrum:
    """`A` if it is a spectrum, otherwise `esd` of it."""
    if not isinstance(A, Spectrum):
        return esd(A, **options)
    hold_eigenvalues(A, "this number")
    if options:
        raise TypeError(f"a ready spectrum takes no options, got {', '.join(options)}; give them where it is made.")
    return A
