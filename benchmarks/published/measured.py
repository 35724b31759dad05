"""A number of ours with its error, and how seeds become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from spectral import Spectrum


class Measured(NamedTuple):
    """A value, one standard error of it (0 where nothing is random, or a bound where the method states one), and what to know."""

    value: float
    error: float
    note: str = ""


def over_seeds(values: Sequence[float], note: str = "") -> Measured:
    """The mean and its standard error.

    >>> over_seeds([1.0, 3.0])
    Measured(value=2.0, error=1.0, note='')
    """
    v = np.asarray(values, dtype=np.float64)
    return Measured(float(v.mean()), float(v.std(ddof=1) / np.sqrt(len(v))), note)


def farthest(counts: Sequence[float], from_: float, note: str = "") -> Measured:
    """Of counts, one a seed, the one farthest from what must come out: a mean hides one too many beside one too few.

    >>> farthest([4, 6], 5).value, farthest([5, 5], 5).value
    (4.0, 5.0)
    """
    return Measured(
        float(max(counts, key=lambda count: abs(count - from_))), 0.0, note or f"of each seed: {list(counts)}"
    )


def jackknife(statistic: Callable[[np.ndarray], float], samples: np.ndarray, note: str = "") -> Measured:
    """A function of all samples, with the error by leaving out one row at a time."""
    n = len(samples)
    without = np.array([statistic(np.delete(samples, i, axis=0)) for i in range(n)])
    return Measured(statistic(samples), float(np.sqrt((n - 1) * without.var())), note)


def eigenvalues(spectrum: Spectrum) -> np.ndarray:
    """All eigenvalues of an exact spectrum, descending."""
    values, counts = spectrum.points()
    return np.repeat(values, np.round(counts).astype(int))[::-1]
