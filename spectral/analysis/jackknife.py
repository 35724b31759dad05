"""Error bars across probes: leave one probe out, recompute, and see how far the answer moves.

A discrete measure is a pair (values, counts): sorted float64 arrays of equal length, counts summing to the dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spectral.estimators.leave_one_out import widening
from spectral.quadrature.error import jackknife_variance
from spectral.results import Array, nan
from spectral.spectrum import Spectrum

Measure = tuple[Array, Array]


def merged(values: Array, counts: Array) -> Measure:
    """Values ascending, equal ones once, with the sums of their counts."""
    points, where = np.unique(values, return_inverse=True)
    return points, np.bincount(where, counts, len(points)).astype(np.float64)


def leave_one_out(spectrum: Spectrum) -> list[Measure]:
    """The pooled measure without probe 0, without probe 1, …; empty when there are fewer than two probes."""
    if spectrum.is_exact or len(spectrum.nodes) < 2:
        return []
    probes, share = spectrum.probe_points(), spectrum.pooling
    values, where = np.unique(np.concatenate([v for v, _ in probes]), return_inverse=True)
    ends = np.cumsum([len(v) for v, _ in probes])[:-1]
    parts = zip(np.split(where, ends), probes, strict=True)
    rows = np.array([np.bincount(at, weights=c, minlength=len(values)) for at, (_, c) in parts])
    holders, total, found = (rows > 0).sum(0), share @ rows, []
    for row, part in zip(rows, share, strict=True):
        held = holders - (row > 0) > 0
        found.append((values[held], ((total - part * row) / (1 - part))[held]))
    return found


def jackknife_stderr(values: Sequence[float]) -> float:
    """√((K−1)/K Σ (θ₍ᵢ₎ − mean)²) over the K leave-one-out values, widened to Student's interval; nan when one of them, or all,
    cannot be had.

    For a mean it is the usual s/√K: of 1, 2, 3 the leave-one-out means are 2.5, 2, 1.5. Source: Tukey (1958).

    >>> round(jackknife_stderr([2.5, 2.0, 1.5]) / widening(3), 6) == round(1 / 3**0.5, 6)
    True
    """
    theta = np.asarray(values, dtype=np.float64)
    if len(theta) < 2 or not np.all(np.isfinite(theta)):
        return nan
    return float(np.sqrt(jackknife_variance(theta))) * widening(len(theta))


def jackknife(spectrum: Spectrum, metrics: Callable[[Array, Array], dict[str, float]]) -> dict[str, float]:
    """`metrics(values, counts)` of the pooled measure, and beside each key `x` its error `x_stderr`.

    The error is 0 for an exact spectrum and nan with a single probe, which cannot tell its own error. It covers the
    noise of the probes only: what the quadrature's finite depth blurs is not in it.
    """
    result = metrics(*spectrum.points())
    without = [metrics(values, counts) for values, counts in leave_one_out(spectrum)]
    for key in list(result):
        exact = 0.0 if spectrum.is_exact and not np.isnan(result[key]) else nan
        result[f"{key}_stderr"] = jackknife_stderr([m[key] for m in without]) if without else exact
    return result
