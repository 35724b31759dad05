"""f(A) u as a combination of the basis that a Lanczos record had, and how far it may be from the truth."""

from __future__ import annotations

import numpy as np

from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import gauss
from spectral.quadrature.bounds import Signed, real_values
from spectral.quadrature.function import Undefined, values_of, zero_where_undefined

SAMPLES = 4  # points between two Ritz values at which the error function of an f without signs is looked at


def approximation(record: LanczosRecord, f: Signed) -> np.ndarray:
    """f(T) e_1 (k,): f(A) u is these coefficients of the basis, up to `vector_error`.

    `Undefined` where f is not finite at a Ritz value, those within rounding of its domain counting as in it, or at 0 where one
    cannot be told from it.
    """
    (theta, S), blur = record.eigen, gauss.blur(record)
    near = np.where((theta < f.domain[0]) & (theta >= f.domain[0] - blur), f.domain[0], theta)
    near = np.where((near > f.domain[1]) & (near <= f.domain[1] + blur), f.domain[1], near)
    values = zero_where_undefined(f.f, near, values_of(f.f, near), blur)
    if not np.isfinite(values).all():
        raise Undefined(
            f"f is not finite at the Ritz value {theta[~np.isfinite(values)][0]:.6g}; shift the matrix, or take an f that is "
            "finite on the spectrum."
        )
    return np.asarray(S @ (S[0] * values))


def vector_error(
    record: LanczosRecord, f: Signed, interval: tuple[float | None, float | None]
) -> tuple[float, bool, float]:
    """(||f(A) u - V f(T) e_1|| at most, whether that is certain, rounding's part of it) on a <= spectrum <= b.

    u is the record's start vector over its norm. The error is e(A) q_{k+1} with e(x) = beta_k sum_i S_ki S_1i f[x, theta_i],
    f[x, theta] = (f(x) - f(theta)) / (x - theta): for f = 1 / (x - z) that is the residual of (A - z) y = u, and others are
    integrals of these (Saad 1992; Frommer, Schweitzer 2016). Its norm is at most max |e| over the spectrum. e is also beta_1
    ... beta_k f[x, theta_1, ..., theta_k]: of one sign where f^(k) is, and monotone where f^(k+1) is too, so that |e| is
    largest at a if their signs differ and at b if they agree. That end must be known; else the Ritz interval widened by the
    residual of its end stands for it, and of an f without signs |e| is looked at in some points: both are no proof. What
    rounding may have made of the sum, and of the Ritz values, is added. An invariant subspace has the residual that is not told
    from 0 where that gives a proof, and else none. O(k) a point.

    >>> from spectral.krylov.lanczos import lanczos
    >>> from spectral.quadrature.bounds import NAMED
    >>> record = lanczos(spectral.as_operator(np.diag([1.0, 2.0, 4.0, 8.0])), torch.ones(4, dtype=torch.float64), 2)
    >>> error, certain, rounding = vector_error(record, NAMED["inverse"], (1.0, None))
    >>> round(error, 3), certain     # the truth is 0.207
    (0.365, True)
    """
    (theta, S), blur, beta = record.eigen, gauss.blur(record), gauss.residual(record)
    eps, (low, high) = max(gauss.epsilon(record), 2.0**-52), f.domain
    with np.errstate(all="ignore"):
        moved = zero_where_undefined(f.f, theta, f.around(theta, blur), blur)
        size = float(np.sqrt((S[0] ** 2) @ np.square(moved[1])))
        change = np.abs(moved - moved[1]).max(0)
        rounding = float(np.sqrt((S[0] ** 2) @ np.square(change))) + 8 * eps * size
    if not np.isfinite(rounding):
        return np.inf, False, np.inf
    ends = theta[0] - beta * abs(S[-1, 0]), theta[-1] + beta * abs(S[-1, -1])
    known = interval[0] is not None and np.isfinite(interval[0]), interval[1] is not None and np.isfinite(interval[1])
    a = min(float(interval[0]), theta[0]) if known[0] else max(ends[0], low)  # type: ignore[arg-type]
    b = max(float(interval[1]), theta[-1]) if known[1] else min(ends[1], high)  # type: ignore[arg-type]
    signed = f.even != 0 and f.odd != 0 and record.steps >= f.order and a >= low and b <= high
    if signed:
        x = np.array([a if f.even != f.odd else b])
        certain = known[0] if f.even != f.odd else known[1]
    else:
        grid = np.unique(np.concatenate([[a], theta[(theta > a) & (theta < b)], [b]]))
        inner = (np.arange(SAMPLES) + 0.5) / SAMPLES  # at theta_i the quotient is a derivative, which nobody gave
        x = np.unique(np.append((grid[:-1, None] + np.diff(grid)[:, None] * inner).ravel(), [a, b]))
        certain = False
    with np.errstate(all="ignore"):
        apart = x[:, None] - theta
        apart = np.where(np.abs(apart) < eps * gauss.norm(record), np.inf, apart)  # there S_ki f' is rounding
        at = real_values(f.f, np.clip(x, low, high))[:, None]
        quotient = (at - moved[1]) / apart
        e = beta * np.abs(quotient @ (S[-1] * S[0]))
        lost = 8 * 2.0**-52 * beta * ((np.abs(at) + np.abs(moved[1])) / np.abs(apart)) @ np.abs(S[0])
    most = float((e + lost).max()) + rounding
    if record.betas[-1] == 0 and not (certain and np.isfinite(most)):
        return rounding, True, rounding
    return (most if np.isfinite(most) else np.inf), bool(certain), rounding
