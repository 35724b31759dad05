"""Certified bounds of a probe's quadratic form u^T f(A) u, and of the error of f(A) u, from a Lanczos record.

The form (Golub, Meurant 2010, ch. 6): with T of k steps and mu the probe's measure, the error int f dmu - rule has the sign of
    Gauss f^(2k), left Radau (node a) f^(2k+1), right Radau (node b) -f^(2k+1), Lobatto (a and b) -f^(2k+2),
for a <= spectrum <= b. Where the even and the odd derivatives of f keep their signs on [a, b], half of the rules lie above
and half below. What lies outside the Ritz values is the caller's knowledge: Lanczos certifies no end, A >= 0 gives a = 0.
Finite precision: T belongs to a nearby matrix, so that every node is moved by `gauss.blur` and the weights by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from spectral.compat import eigh_tridiagonal
from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import gauss
from spectral.results import nan

WEIGHTS = 1e-13  # of the range of f: rounding of the weights
SAMPLES = 4  # points between two Ritz values at which the error function of an f without signs is looked at


@dataclass(frozen=True)
class Signed:
    """f (float64 arrays to arrays) with the signs (+1, -1; 0 unknown) of its derivatives of even and odd order >= `order`.

    `domain`: where the signs hold; f must be monotone near its ends. An `order` above 2k makes the rules of k steps useless.
    """

    f: Callable[[np.ndarray], np.ndarray]
    even: int
    odd: int
    order: int = 2
    domain: tuple[float, float] = (-np.inf, np.inf)


class Bracket(NamedTuple):
    """lower <= int f dmu <= upper (nan: nothing certified), and the Gauss rule's value."""

    lower: float
    upper: float
    value: float


POSITIVE = (0.0, np.inf)
NAMED = {
    "log": Signed(np.log, -1, 1, 1, POSITIVE),
    "inverse": Signed(lambda x: 1 / x, 1, -1, 0, POSITIVE),
    "sqrt": Signed(np.sqrt, -1, 1, 1, POSITIVE),
    "exp": Signed(np.exp, 1, 1, 0),
    "entropy": Signed(lambda x: -x * np.log(np.where(x == 0, 1.0, x)), -1, 1, 2, POSITIVE),  # -x log x, 0 at 0
}


def power(p: float) -> Signed:
    """x^p on x >= 0: the derivative of order j > p has the sign (-1)^(j - 1 - floor(p)); whole powers have none below 0."""
    floor = int(np.floor(p))
    if p == floor and p >= 0:
        return Signed(lambda x: x**p, 1, 1, 0, POSITIVE)
    sign = (-1) ** (floor + 1) if floor >= 0 else 1
    return Signed(lambda x: x**p, sign, -sign, max(0, floor + 1), POSITIVE)


def shifted(g: Signed, shift: float) -> Signed:
    """x -> g(x + shift)."""
    return Signed(lambda x: g.f(x + shift), g.even, g.odd, g.order, (g.domain[0] - shift, g.domain[1] - shift))


def bracket(record: LanczosRecord, f: str | Signed, interval: tuple[float | None, float | None]) -> Bracket:
    """Bounds of int f dmu = u^T f(A) u, u the record's start vector over its norm, given a <= spectrum <= b (None: unknown).

    f: "log", "inverse", "sqrt", "exp", "entropy" (-x log x), `power(p)`, or a `Signed` of your own. The best of the rules on each
    side is taken and then widened by what finite precision may have done: each node by 8 eps ||T||, eps of the products, the
    weights by rounding. nan where no rule bounds that side or f is infinite there. O(k^2), no product.
    Raises ValueError for an unknown name, or an interval that Ritz values leave or f's domain does not hold.

    >>> from spectral.krylov.lanczos import lanczos
    >>> record = lanczos(spectral.as_operator(np.diag([1.0, 2.0, 4.0, 8.0])), torch.ones(4, dtype=torch.float64), 2)
    >>> b = bracket(record, "log", (0.5, 10.0))     # the truth is 6 log 2 / 4 = 1.0397
    >>> bool(b.lower < 1.5 * np.log(2) < b.upper), round(b.upper - b.lower, 2)
    (True, 0.07)
    """
    if isinstance(f, str) and f not in NAMED:
        raise ValueError(f"f={f!r} is no known function; use one of {', '.join(NAMED)}, power(p) or a Signed.")
    g = NAMED[f] if isinstance(f, str) else f
    known, shares, blur = record.known, record.shares, gauss.blur(record)  # deflated eigenvectors: T is the rest
    found = _of_T(record, g, interval, blur)
    if len(known) == 0:
        return found
    at = np.clip(known + np.array([[-blur], [0.0], [blur]]), *g.domain)
    with np.errstate(all="ignore"):
        values = np.asarray(g.f(at.reshape(-1)), float).reshape(at.shape)
    parts = zip(found, (values.min(0), values.max(0), values[1]), strict=True)
    return _finite(*((1 - shares.sum()) * float(part) + float(shares @ v) for part, v in parts))


def approximation(record: LanczosRecord, f: Signed) -> np.ndarray:
    """f(T) e_1 (k,): f(A) u is these coefficients of the basis, up to `vector_error`.

    ValueError where f is not finite at a Ritz value, those within rounding of its domain counting as in it.
    """
    (theta, S), blur = record.eigen, gauss.blur(record)
    near = np.where((theta < f.domain[0]) & (theta >= f.domain[0] - blur), f.domain[0], theta)
    near = np.where((near > f.domain[1]) & (near <= f.domain[1] + blur), f.domain[1], near)
    with np.errstate(all="ignore"):
        values = np.asarray(f.f(near), float)
    if values.shape != theta.shape:
        raise ValueError(
            f"f maps an array of shape {theta.shape} to {values.shape}; f must keep the shape of its array."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"f is not finite at the Ritz value {theta[~np.isfinite(values)][0]:.6g}; shift the matrix, or take an f that is "
            "finite on the spectrum."
        )
    return np.asarray(S @ (S[0] * values))


def vector_error(record: LanczosRecord, f: Signed, interval: tuple[float | None, float | None]) -> tuple[float, bool]:
    """(||f(A) u - V f(T) e_1|| at most, whether that is certain), u the record's start vector over its norm, a <= spectrum <= b.

    The error is e(A) q_{k+1} with e(x) = beta_k sum_i S_ki S_1i f[x, theta_i], f[x, theta] = (f(x) - f(theta)) / (x - theta): for
    f = 1 / (x - z) that is the residual of (A - z) y = u, and others are integrals of these (Saad 1992; Frommer, Schweitzer
    2016). Its norm is at most max |e| over the spectrum. e is also beta_1 ... beta_k f[x, theta_1, ..., theta_k]: of one sign
    where f^(k) is, and monotone where f^(k+1) is too, so that |e| is largest at a if their signs differ and at b if they agree.
    That end must be known; else the Ritz interval widened by the residual of its end stands for it, and of an f without signs
    |e| is looked at in some points: both are no proof. What rounding may have made of the sum, and of the Ritz values, is
    added. O(k) a point.

    >>> from spectral.krylov.lanczos import lanczos
    >>> record = lanczos(spectral.as_operator(np.diag([1.0, 2.0, 4.0, 8.0])), torch.ones(4, dtype=torch.float64), 2)
    >>> error, certain = vector_error(record, NAMED["inverse"], (1.0, None))
    >>> round(error, 3), certain     # the truth is 0.207
    (0.365, True)
    """
    (theta, S), blur, beta = record.eigen, gauss.blur(record), float(record.betas[-1])
    eps, (low, high) = max(gauss.epsilon(record), 2.0**-52), f.domain
    with np.errstate(all="ignore"):
        moved = np.array([np.asarray(f.f(np.clip(theta + d, low, high)), float) for d in (-blur, 0.0, blur)])
        size = float(np.sqrt((S[0] ** 2) @ np.square(moved[1])))
        change = np.abs(moved - moved[1]).max(0)
        rounding = float(np.sqrt((S[0] ** 2) @ np.square(change))) + 8 * eps * size
    if beta == 0:
        return rounding, bool(np.isfinite(rounding))
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
        at = np.asarray(f.f(np.clip(x, low, high)), float)[:, None]
        quotient = (at - moved[1]) / apart
        e = beta * np.abs(quotient @ (S[-1] * S[0]))
        lost = 8 * 2.0**-52 * beta * ((np.abs(at) + np.abs(moved[1])) / np.abs(apart)) @ np.abs(S[0])
    most = float((e + lost).max()) + rounding
    return (most if np.isfinite(most) else np.inf), bool(certain)


def _finite(lower: float, upper: float, value: float) -> Bracket:
    """nan for a bound that is none."""
    return Bracket(
        float(lower) if np.isfinite(lower) else nan, float(upper) if np.isfinite(upper) else nan, float(value)
    )


def _of_T(record: LanczosRecord, g: Signed, interval: tuple[float | None, float | None], blur: float) -> Bracket:
    """The bracket of the measure that T stands for."""
    theta, (low, high), eps = record.eigen[0], g.domain, gauss.epsilon(record)
    a, b = (-np.inf if interval[0] is None else interval[0]), (np.inf if interval[1] is None else interval[1])
    if not a <= b or theta[0] < a - blur or theta[-1] > b + blur:
        raise ValueError(
            f"the interval [{a:.6g}, {b:.6g}] does not hold the Ritz values {theta[0]:.6g} to {theta[-1]:.6g}; give bounds of "
            "all eigenvalues."
        )
    if theta[0] < low - blur or theta[-1] > high + blur:
        raise ValueError(
            f"f is known on [{low:.6g}, {high:.6g}], but Ritz values reach from {theta[0]:.6g} to {theta[-1]:.6g}; shift the "
            "matrix."
        )
    rules = [(g.even, _widened(g, record.alphas, record.betas[:-1], blur, eps))]  # Gauss
    (lower, upper), value = rules[0][1], sum(rules[0][1]) / 2
    if record.betas[-1] == 0:
        return _finite(lower, upper, value)
    if a < low or b > high or 2 * record.steps < g.order:
        return Bracket(nan, nan, float(value))
    rules += [(sign, _widened(g, d, e, blur, eps)) for sign, d, e in _prescribed(g, record, a, b, blur)]
    lower = max((rule[0] for sign, rule in rules if sign > 0), default=nan)
    upper = min((rule[1] for sign, rule in rules if sign < 0), default=nan)
    return _finite(lower, upper, value)


def _prescribed(
    g: Signed, record: LanczosRecord, a: float, b: float, blur: float
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(sign of int f dmu - rule, diagonals of the rule's T) of both Radau rules and Lobatto's, where their nodes are known."""
    theta, alphas, betas = record.eigen[0], record.alphas, record.betas
    left, right = min(a, theta[0] - blur), max(b, theta[-1] + blur)
    for node, sign in ((left, g.odd), (right, -g.odd)):
        if np.isfinite(node):
            yield sign, np.append(alphas, node + betas[-1] ** 2 / _last_pivot(record, node)), betas
    if np.isfinite(left) and np.isfinite(right):
        gamma, mu = 1 / _last_pivot(record, left), 1 / _last_pivot(record, right)
        square = (right - left) / (gamma - mu)
        yield -g.even, np.append(alphas, left + gamma * square), np.append(betas[:-1], np.sqrt(square))


def _last_pivot(record: LanczosRecord, x: float) -> float:
    """d_k of the Sturm sequence of T - x I; of one sign for all j outside the Ritz values."""
    d = record.alphas[0] - x
    for alpha, beta in zip(record.alphas[1:], record.betas[:-1], strict=True):
        d = alpha - x - beta**2 / d
    return float(d)


def _widened(g: Signed, alphas: np.ndarray, betas: np.ndarray, blur: float, eps: float) -> tuple[float, float]:
    """The rule's value with every node moved by up to `blur` within f's domain, down and up; then the weights' rounding."""
    nodes, S = eigh_tridiagonal(alphas, betas)
    weights = S[0] ** 2
    with np.errstate(all="ignore"):
        moved = np.array([np.asarray(g.f(np.clip(nodes + d, *g.domain)), float) for d in (-blur, 0.0, blur)])
        least, most = moved.min(0), moved.max(0)
        rounding = max(WEIGHTS, eps) * float(most.max() - least.min())
        held = weights > 0
        below, above = float(weights[held] @ least[held]) - rounding, float(weights[held] @ most[held]) + rounding
    return below if np.isfinite(below) else -np.inf, above if np.isfinite(above) else np.inf
