"""A function on eigenvalues that are known to rounding: its values, and what rounding may change where it is steep."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from spectral.quadrature.bounds import real_values
from spectral.quadrature.pooled import Quadrature

Function = Callable[[np.ndarray], np.ndarray]
STEEP = 64.0  # times the mean slope of a function over the spectrum
RISES, STEP = 48, 2**0.25  # of an eigenvalue within the rounding, at which f is looked at for a jump close by


class Undefined(ValueError):
    """A function is not finite where an eigenvalue is, or may be."""


def values_of(f: Function, x: np.ndarray) -> np.ndarray:
    """f(x) as float64, held to the shape of x; warnings of numpy's are answered by those who look at the values."""
    y = real_values(f, x)
    if y.shape != x.shape:
        raise ValueError(f"f maps an array of shape {x.shape} to {y.shape}; f must keep the shape of its array.")
    return y


def zero_where_undefined(f: Function, x: np.ndarray, y: np.ndarray, rounding: float) -> np.ndarray:
    """f(0) for what is not finite in y (..., X), of points x (X,) within `rounding` of 0, such as the root of -1e-17.

    `Undefined` where f is not finite at 0 either, which such a point cannot be told from, whatever f is there.
    """
    small = np.abs(x) <= rounding
    if not small.any():
        return y
    zero = values_of(f, np.zeros(1))[0]
    if not np.isfinite(zero):
        raise Undefined(
            f"f is not finite at the eigenvalue 0, from which {x[small][0]:.2g} cannot be told, as rounding leaves up to "
            f"{rounding:.2g}; shift the matrix, or take a function that is finite at 0."
        )
    return np.where(small & ~np.isfinite(y), zero, y)


def values_on(q: Quadrature, f: Function, x: np.ndarray) -> np.ndarray:
    """f(x), finite."""
    y = zero_where_undefined(f, x, values_of(f, x), q.rounding)
    if not np.isfinite(y).all():
        where = x[~np.isfinite(y)][0]
        raise ValueError(f"f is not finite at the eigenvalue {where:.6g}; f must be finite on the spectrum.")
    return y


def moved_by_rounding(q: Quadrature, f: Function, y: np.ndarray) -> float:
    """What `rounding` of every eigenvalue but the known zeros may change, where f varies STEEP times as fast as on the whole.

    Elsewhere the same rounding is of the size of that of any sum in float64. y: f on all points. Of a quadrature of a
    semi-definite matrix the mean is known, and none lies below 0: the 10^8 eigenvalues of a network near 0 rise together by no
    more than what they could fall by, and the mean's own rounding, relative to ||A v|| or that of n independent terms.
    """
    (x, c), r = q.points(zeros=False), q.rounding
    if not len(x) or r == 0 or q.scale == 0:
        return 0.0
    here, low = values_on(q, f, x), x - r
    low = np.maximum(low, np.minimum(x, 0.0)) if q.nonnegative else low
    limited = q.nonnegative and not q.is_exact
    rises = r * STEP ** -np.arange(RISES if limited else 1.0)[:, None]
    fallen, risen = values_of(f, low) - here, np.array([values_of(f, x + rise) for rise in rises]) - here
    undefined = ~(np.isfinite(fallen) & np.isfinite(risen).all(0))
    if (undefined & (np.abs(x) > r)).any():
        where = x[undefined & (np.abs(x) > r)][0]
        raise ValueError(
            f"f is not finite within {r:.2g}, the rounding, of the eigenvalue {where:.6g}; f must be finite on the spectrum."
        )
    span = np.ptp(x)
    slope = max(float(np.ptp(y)) / span if span > 0 else 0.0, float(np.abs(y).max()) / q.scale)
    down, ups = np.abs(np.where(np.isfinite(fallen), fallen, 0.0)), np.abs(np.where(np.isfinite(risen), risen, 0.0))
    steep = np.maximum(down, ups.max(0)) > STEEP * slope * r
    every = float(c @ np.where(steep, np.maximum(down, ups.max(0)), 0.0))
    if not limited:
        return every
    n = float(c.sum())
    room = float(c @ np.clip(x, 0.0, r)) + n * r * (math.sqrt(float(c @ x**2) / n) / q.scale + 1 / math.sqrt(n))
    return min(every, float(c @ np.where(steep, down, 0.0)) + _risen(np.where(steep, ups, 0.0), rises, c, room))


def _risen(ups: np.ndarray, rises: np.ndarray, c: np.ndarray, room: float) -> float:
    """The most that f gains where c (X,) eigenvalues rise by `room` in all, ups (J, X) by each of the `rises` (J, 1)."""
    rate = STEP * (ups / rises).max(0)  # where f jumps between two of them, it may be at the lower
    order = np.argsort(-rate)
    most = (c * ups.max(0))[order]
    spent = np.cumsum(most / np.maximum(rate[order], 1e-300))
    kept = np.clip(1 - (spent - room) / np.maximum(np.diff(spent, prepend=0.0), 1e-300), 0.0, 1.0)
    return float(kept @ most)
