"""A function on eigenvalues that are known to rounding: its values, and what rounding may change where it is steep."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spectral.quadrature.bounds import real_values
from spectral.quadrature.pooled import Quadrature

Function = Callable[[np.ndarray], np.ndarray]
STEEP = 64.0  # times the mean slope of a function over the spectrum
DISTANCES = 2.0 ** -np.arange(0.0, 10.0, 0.25)  # at which an eigenvalue may lie, times the rounding


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


def moved_by_atoms(q: Quadrature, f: Function) -> float:
    """What `value_error` of each atom may change, steep or not: rounding of a float32 outlier is no rounding of the rest."""
    x, off = q.atoms.values, q.value_error
    if not len(x) or off == 0:
        return 0.0
    moved = values_of(f, np.concatenate([x - off, x + off])).reshape(2, -1) - values_on(q, f, x)
    return float(np.linalg.norm(q.atoms.multiplicities * np.where(np.isfinite(moved), np.abs(moved), 0.0).max(0)))


def moved_by_rounding(q: Quadrature, f: Function, y: np.ndarray) -> float:
    """What `rounding` of every eigenvalue but the known zeros may change, where f varies STEEP times as fast as on the whole.

    Elsewhere the same rounding is of the size of that of any sum in float64. y: f on all points.

    Eigenvalues that move by d_i, |d_i| <= r, move the trace by sum_i d_i; products that are rounded to u = r / scale of what they
    are, by at most u sum_i |lambda_i|^2 / rms: what some gain, others lose. So with any slope s (Lagrange) the change is at most
    sum_i max_d (f(lambda_i + d) - f(lambda_i) - s d) + |s| times that, here with the best s of those that f has on the point
    which gives most. Distances d are looked at in steps of 2^(1/4). Of an exact spectrum each moves by itself.
    """
    (x, c), r = q.points(zeros=False), q.rounding
    if not len(x) or r == 0 or q.scale == 0:
        return 0.0
    here, down = values_on(q, f, x), np.full(len(x), r)
    down = np.minimum(down, np.maximum(x, 0.0)) if q.nonnegative else down
    distances = (DISTANCES[:1] if q.is_exact else DISTANCES)[:, None]
    d = np.concatenate([distances * np.full(len(x), r), -distances * down])
    moved = values_of(f, (x + d).reshape(-1)).reshape(d.shape) - here
    undefined = ~np.isfinite(moved).all(0) & (np.abs(x) > r)
    if undefined.any():
        where = x[undefined][0]
        raise ValueError(
            f"f is not finite within {r:.2g}, the rounding, of the eigenvalue {where:.6g}; f must be finite on the spectrum."
        )
    moved = np.where(np.isfinite(moved), moved, 0.0)
    change, span = np.abs(moved).max(0), np.ptp(x)
    slope = max(float(np.ptp(y)) / span if span > 0 else 0.0, float(np.abs(y).max()) / q.scale)
    changes = c * np.where(change > STEEP * slope * r, change, 0.0)
    most, whole = int(changes.argmax()), float(changes.sum())
    if whole == 0 or q.is_exact:
        return whole
    able, off = d[:, most] != 0, r / q.scale * float(np.sqrt(c.sum() * (c @ x**2)))
    slopes = moved[able, most] / d[able, most]
    gains = [[c @ (side * (moved - s * d)).max(0, initial=0.0) + abs(s) * off for s in slopes] for side in (1, -1)]
    return float(min(np.min(gains, axis=1).max(), whole))
