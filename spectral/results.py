"""What estimators return: numbers with their errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from spectral import cards

nan = float("nan")
Array = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Atoms(NamedTuple):
    """Exact eigenvalues, and how often each occurs.

    Attributes
    ----------
    values : numpy.ndarray
        (L,), ascending.
    multiplicities : numpy.ndarray
        (L,), integers.

    Examples
    --------
    >>> spectral.exact(np.diag([1.0, 2.0, 2.0])).atoms.values
    array([1., 2., 2.])
    """

    values: np.ndarray
    multiplicities: np.ndarray


SHOWN = 6  # of many numbers


def listed(values: np.ndarray, errors: np.ndarray) -> str:
    """`1.5 ± 0.1, 2 ± 0.1, ...`: the first of several numbers with their errors.

    >>> listed(np.array([1.5, 2.0]), np.array([0.1, 0.0]))
    '1.5 ± 0.1, 2 ± 0'
    """
    pairs = [f"{value:.6g} ± {error:.2g}" for value, error in zip(values[:SHOWN], errors[:SHOWN], strict=True)]
    return ", ".join(pairs) + (f", ... {len(values) - SHOWN} more" if len(values) > SHOWN else "")


@dataclass(frozen=True)
class Estimate:
    """A number with its error, or an array of them with theirs; `float(estimate)` is the number.

    Attributes
    ----------
    value : float or numpy.ndarray
        The number.
    stderr : float or numpy.ndarray
        One standard error, statistical and of the quadrature; 0 if exact.
    lower, upper : float or numpy.ndarray
        Certified bounds, nan where nothing is certified; of a quantile they bound its confidence interval.
    probes : int
        Random vectors behind it.
    products : int
        Products that it took.
    method : str
        What `trace` and `diagonal` did: "xtrace", "slq", "exact", ...; "" where there is but one way.

    Examples
    --------
    >>> float(Estimate(2.0, 0.1))
    2.0
    >>> print(Estimate(2.0, 0.1))
    2 ± 0.1
    >>> f"{Estimate(2.0, 0.1):.2f}"
    '2.00 ± 0.10'
    >>> print(Estimate(2.0, 0.0), "|", Estimate(2.0, 0.0, lower=1.9, upper=2.2))
    2 ± 0 | 2 in [1.9, 2.2]
    """

    value: float | np.ndarray
    stderr: float | np.ndarray
    lower: float | np.ndarray = nan
    upper: float | np.ndarray = nan
    probes: int = 0
    products: int = 0
    method: str = ""

    def __float__(self) -> float:
        return float(self.value)

    def __format__(self, spec: str) -> str:
        return f"{float(self.value):{spec}} ± {float(self.stderr):{spec}}" if spec else str(self)

    def __str__(self) -> str:
        value, stderr = np.asarray(self.value, np.float64), np.asarray(self.stderr, np.float64)
        if bounds := self._bounds():
            return f"{value.item():.6g} in [{', '.join(bounds)}]"
        return listed(value.ravel(), np.broadcast_to(stderr, value.shape).ravel())

    def _bounds(self) -> list[str]:
        """The bounds of a number that nothing random has touched and that is not exact either: in six digits they differ."""
        if np.size(self.value) != 1 or np.any(self.stderr) or np.any(np.isnan(self.lower) | np.isnan(self.upper)):
            return []
        bounds = [f"{np.asarray(bound).item():.6g}" for bound in (self.lower, self.upper)]
        return bounds if bounds[0] != bounds[1] else []

    def _repr_html_(self) -> str:
        value, stderr = (np.asarray(part, np.float64) for part in np.broadcast_arrays(self.value, self.stderr))
        v, e = value.ravel(), stderr.ravel()
        took = cards.counted(self.products, "product")
        took += f", {cards.counted(self.probes, 'random vector')}" * (self.probes > 0)
        bounds = self._bounds()
        sure = "0: nothing random, see its bounds" if bounds else "0: exact"
        rows = [("one standard error", f"at most {e.max(initial=0.0):.2g}" if e.any() else sure)]
        rows += [("it took", f"{self.method}: {took}" if self.method else took)]
        if len(v) == 1:
            lower, upper = float(np.ravel(self.lower)[0]), float(np.ravel(self.upper)[0])
            rows += [("bounds", f"{lower:.6g} to {upper:.6g}")] * bool(np.isfinite([lower, upper]).any())
            reach = 2 * e if np.isfinite(e).all() else np.zeros_like(v)
            marks = [
                cards.Mark(v, np.zeros_like(v), dots=True),
                cards.Mark(np.concatenate([v - reach, v + reach]), np.zeros(2)),
            ]
            picture = cards.chart(marks, "value, ± two standard errors", "", f"{self}", y_range=(-1.0, 1.0))
            title = str(self) if bounds else cards.with_error(float(v[0]), float(e[0]))
            return cards.card(title, rows, picture * bool(e.any()))
        order = np.argsort(-v, kind="stable")
        v, (down, up) = v[order], cards.whiskers(v, e)[:, order]
        marks = [cards.Mark(np.arange(1.0, len(v) + 1), v, v - down, v + up)]
        alt = f"{len(v)} numbers from the largest to the smallest, with one standard error"
        return cards.card(f"{len(v):,} numbers: {self}", rows, cards.chart(marks, "rank, largest first", "value", alt))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What stands in a file of results: a number is one entry.

        Returns
        -------
        dict of str to numpy.ndarray
            `value` and `stderr`, each (n,).

        Examples
        --------
        >>> Estimate(2.0, 0.1).to_arrays()["value"]
        array([2.])
        """
        return {"value": np.atleast_1d(self.value), "stderr": np.atleast_1d(self.stderr)}

    def estimates(self) -> dict[str, Estimate]:
        """Each number by its place, one number itself as "1".

        Returns
        -------
        dict of str to Estimate
            "1", "2", ...

        Examples
        --------
        >>> list(Estimate(np.array([1.0, 2.0]), np.zeros(2)).estimates())
        ['1', '2']
        """
        parts = np.broadcast_arrays(*map(np.atleast_1d, (self.value, self.stderr, self.lower, self.upper)))
        numbers = zip(*(part.ravel().tolist() for part in parts), strict=True)
        each = [Estimate(v, e, lo, hi, self.probes, self.products, self.method) for v, e, lo, hi in numbers]
        return {str(i): estimate for i, estimate in enumerate(each, 1)}


def rounded(e: Estimate) -> str:
    """The number and its error as a person reads them, see `cards.with_error`."""
    return cards.with_error(float(e.value), float(e.stderr))


def bounded(
    name: str, values: np.ndarray, residuals: np.ndarray, products: int, certain: bool = True
) -> dict[str, Estimate]:
    """NAME_1, NAME_2, ...: values that are off by their residuals, which are all their error and, where `certain`, bound them.

    >>> bounded("eigenvalue", np.array([2.0]), np.array([0.5]), 7)["eigenvalue_1"].upper
    2.5
    """
    pairs = enumerate(zip(values.tolist(), residuals.tolist(), strict=True), 1)
    sure = 1.0 if certain else nan
    return {f"{name}_{i}": Estimate(v, r, v - sure * r, v + sure * r, products=products) for i, (v, r) in pairs}


@dataclass(frozen=True, eq=False)
class Measured:
    """k values with measured residuals and the vectors of each: what `Eigenpairs` and `SingularTriplets` tell of themselves."""

    noun: ClassVar[str]  # of one value
    sides: ClassVar[tuple[str, ...]]  # the fields that hold vectors
    values: np.ndarray
    residuals: np.ndarray
    converged: np.ndarray
    threshold: float
    complete: bool
    products: int
    epochs: float

    def __str__(self) -> str:
        left, k = "nothing better is left" if self.complete else "a better one may be missing", len(self.values)
        return (
            f"{cards.counted(k, self.noun)}: {listed(self.values, self.residuals)}; {int(self.converged.sum())} of {k} "
            f"converged to a residual of {self.threshold:.2g}, relative to the matrix and not to the value; {left}"
        )

    def _repr_html_(self) -> str:
        values, k = self.values, len(self.values)
        index, (down, up) = np.arange(1.0, k + 1), cards.whiskers(values, self.residuals)
        low, high = values - down, values + up
        marks = [
            cards.Mark(index[c], values[c], low[c], high[c], dots=True, hollow=bool(i), colour=i)
            for i, c in enumerate((self.converged, ~self.converged))
            if c.any()
        ]
        rows = [(str(i + 1), f"{values[i]:.6g}, within {self.residuals[i]:.1g}") for i in range(min(k, SHOWN))]
        rows += [("products", f"{self.products:,}")]
        alt = f"{cards.counted(k, self.noun)} against the index, with residuals"
        return cards.card(f"{self}.", rows, cards.chart(marks, "index", self.noun, alt) if k else "")

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What stands in a file of results, on the CPU.

        Returns
        -------
        dict of str to numpy.ndarray
            `values`, `residuals`, `converged` (k,), and the vectors as columns: `vectors` (n, k), or `left` (m, k) and `right`
            (n, k).

        Examples
        --------
        >>> spectral.svd(np.ones((3, 2)), 1).to_arrays()["left"].shape
        (3, 1)
        """
        arrays = {name: getattr(self, name) for name in ("values", "residuals", "converged")}
        return arrays | {name: getattr(self, name).cpu().numpy() for name in self.sides}

    def estimates(self) -> dict[str, Estimate]:
        """Each value with its residual, within which one of the matrix lies.

        Returns
        -------
        dict of str to Estimate
            eigenvalue_1, eigenvalue_2, ..., or singular_value_1, ...

        Examples
        --------
        >>> list(spectral.top(np.diag([1.0, 2.0]), 2).estimates())
        ['eigenvalue_1', 'eigenvalue_2']
        """
        return bounded(self.noun.replace(" ", "_"), self.values, self.residuals, self.products)


@dataclass(frozen=True)
class Band(cards.Sentence):
    """A function with its band: `lower` <= truth <= `upper` at each point with probability `confidence`.

    `certified_lower` and `certified_upper` bound, without any statistics, what the given probes can have seen: the part of the
    band that more steps would narrow. The rest is probe noise, by its exact Beta law; more probes narrow that.

    Attributes
    ----------
    value : numpy.ndarray
        The function at each point.
    lower, upper : numpy.ndarray
        The band.
    confidence : float
        Of each point by itself.
    certified_lower, certified_upper : numpy.ndarray
        The part of the band that is certain.

    Examples
    --------
    >>> band = spectral.exact(np.diag([1.0, 2.0, 3.0])).cdf([0.5, 2.5])
    >>> band.value.round(3)
    array([0.   , 0.667])
    """

    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    confidence: float
    certified_lower: np.ndarray
    certified_upper: np.ndarray

    def __str__(self) -> str:
        value, lower, upper = (np.ravel(part) for part in (self.value, self.lower, self.upper))
        shown = [f"{v:.6g} in [{a:.6g}, {b:.6g}]" for v, a, b in zip(value, lower, upper, strict=True)][:SHOWN]
        more = f", ... {len(value) - SHOWN} more" * (len(value) > SHOWN)
        return f"{', '.join(shown)}{more}, {100 * self.confidence:g} % sure{' of each' * (len(value) > 1)}"


NUMBERS = ("value", "stderr", "lower", "upper", "certified_lower", "certified_upper")
Result = TypeVar("Result", Estimate, Band)


def over(result: Result, n: float) -> Result:
    """An estimate or a band of what is n times as small."""
    return replace(result, **{name: getattr(result, name) / n for name in NUMBERS if hasattr(result, name)})


@dataclass(frozen=True)
class Density:
    """A density at some points: the fraction of the dimension per unit of lambda, with its band of 95 % confidence.

    Attributes
    ----------
    x : numpy.ndarray
        Where it is evaluated, in units of lambda.
    value, lower, upper : numpy.ndarray
        The density and its band, per unit of lambda on either scale.
    resolution : float
        Standard deviation of the Gaussian kernel: a fraction of the spectrum's range on the linear scale, decades on the log
        scale.
    scale : str
        "linear" or "log".
    outside : float
        Fraction of the eigenvalues that the axis does not show: known zeros, and on the log scale what is not above the first
        point by more than the kernel.

    Examples
    --------
    >>> d = spectral.exact(np.diag(np.linspace(0.0, 1.0, 101))).density(resolution=0.05)
    >>> round(float((d.value * np.gradient(d.x)).sum()), 2)  # all of the mass
    1.0
    """

    x: np.ndarray
    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    resolution: float
    scale: str
    outside: float
