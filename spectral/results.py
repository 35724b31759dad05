"""What estimators return: numbers with their errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

nan = float("nan")


class Atoms(NamedTuple):
    """Exact eigenvalues: `values` (L,) ascending and how often each occurs, `multiplicities` (L,)."""

    values: np.ndarray
    multiplicities: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A number with its error: `stderr` is one standard error (statistical and quadrature, 0 if exact).

    `lower` and `upper` are certified bounds, nan where nothing is certified; of a quantile they bound its confidence interval.
    `method` names what `trace` and `diagonal` did ("xtrace", "slq", "exact", ...), "" where there is but one way.

    >>> float(Estimate(2.0, 0.1))
    2.0
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

    def __str__(self) -> str:
        return f"{float(self.value):.6g} ± {float(self.stderr):.2g}"


@dataclass(frozen=True)
class Band:
    """A function with its band: `lower` <= truth <= `upper` at each point with probability `confidence`.

    `certified_lower` and `certified_upper` bound, without any statistics, what the given probes can have seen: the part of the
    band that more steps would narrow. The rest is probe noise, by its exact Beta law; more probes narrow that.
    """

    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    confidence: float
    certified_lower: np.ndarray
    certified_upper: np.ndarray


@dataclass(frozen=True)
class Density:
    """A density at the points `x`: the fraction of the dimension per unit of lambda, with its band of 95 % confidence.

    `resolution` is the standard deviation of the Gaussian kernel: in units of the spectrum's range on the linear scale, in
    decades on the log scale. `outside` is the fraction of eigenvalues that the axis does not show: known zeros, and on the
    log scale what is not above the first point by more than the kernel.
    """

    x: np.ndarray
    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    resolution: float
    scale: str
    outside: float
