"""Certified bounds of a probe's quadratic form u^T f(A) u, from a Lanczos record.

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
import torch

from spectral.compat import eigh_tridiagonal
from spectral.failures import first_line
from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import gauss
from spectral.results import nan

WEIGHTS = 1e-13  # of the range of f: rounding of the weights


def real_values(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """f(x) in float64, of a function of numpy's or of torch's."""
    try:
        with np.errstate(all="ignore"):
            y = f(x)
    except TypeError as problem:
        try:
            y = f(torch.from_numpy(x)).numpy()  # type: ignore[arg-type, attr-defined]
        except (TypeError, AttributeError, RuntimeError, ValueError):
            raise TypeError(
                f"f fails on an array of float64 ({first_line(problem)}); f must be a function that maps numpy arrays to arrays "
                "of their shape, such as numpy.log."
            ) from problem
    if np.iscomplexobj(y):
        raise TypeError(
            "f is complex, but only real functions are meant here; take its real and its imaginary part in turn."
        )
    return np.asarray(y, dtype=np.float64)


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

    def around(self, x: np.ndarray, blur: float) -> np.ndarray:
        """f at x - blur, x and x + blur, as far as they lie in the domain: (3, X)."""
        return np.array([real_values(self.f, np.clip(x + d, *self.domain)) for d in (-blur, 0.0, blur)])


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


Given = str | Signed | Callable[[np.ndarray], np.ndarray]


def signed(f: Given) -> Signed:
    """A function by its name, with signs of its own, or with none that are known."""
    if isinstance(f, Signed):
        return f
    if isinstance(f, str) and f in NAMED:
        return NAMED[f]
    if callable(f):
        return Signed(f, 0, 0)
    raise ValueError(
        f"f={f!r} is no function; use one of {', '.join(NAMED)}, a spectral.quadrature.bounds.Signed, or "
        "a function of arrays."
    )


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


def bracket(record: LanczosRecord, f: Given, interval: tuple[float | None, float | None]) -> Bracket:
    """Bounds of int f dmu = u^T f(A) u, u the record's start vector over its norm, given a <= spectrum <= b (None: unknown).

    f: "log", "inverse", "sqrt", "exp", "entropy" (-x log x), `power(p)`, or a `Signed` of your own. The best of the rules on each
    side is taken and then widened by what finite precision may have done: each node by 8 eps ||T||, eps of the products, or 8 eps
    times a known end that is larger, the weights by a change of T of a quarter of that. nan where no rule bounds that side or f
    is infinite there; of an invariant subspace it is then the Gauss rule, as if its residual were 0 and not only below
    16 eps ||T||. O(k^2), no product.
    Raises ValueError for an unknown name, or an interval that Ritz values leave or f's domain does not hold.

    >>> from spectral.krylov.lanczos import lanczos
    >>> record = lanczos(spectral.as_operator(np.diag([1.0, 2.0, 4.0, 8.0])), torch.ones(4, dtype=torch.float64), 2)
    >>> b = bracket(record, "log", (0.5, 10.0))     # the truth is 6 log 2 / 4 = 1.0397
    >>> bool(b.lower < 1.5 * np.log(2) < b.upper), round(b.upper - b.lower, 2)
    (True, 0.07)
    """
    g = signed(f)
    blur = gauss.blur(record, interval)
    known, shares = record.known, record.shares  # deflated eigenvectors: T is the rest
    found = _of_T(record, g, interval, blur)
    if len(known) == 0:
        return found
    with np.errstate(all="ignore"):
        values = g.around(known, blur)
    parts = zip(found, (values.min(0), values.max(0), values[1]), strict=True)
    return _finite(*((1 - shares.sum()) * float(part) + float(shares @ v) for part, v in parts))


def _finite(lower: float, upper: float, value: float) -> Bracket:
    """nan for a bound that is none."""
    return Bracket(
        float(lower) if np.isfinite(lower) else nan, float(upper) if np.isfinite(upper) else nan, float(value)
    )


def _of_T(record: LanczosRecord, g: Signed, interval: tuple[float | None, float | None], blur: float) -> Bracket:
    """The bracket of the measure that T stands for."""
    theta, (low, high) = record.eigen[0], g.domain
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
    change = gauss.turning(blur)
    rules = [(g.even, _widened(g, record.alphas, record.betas[:-1], blur, change))]  # Gauss
    # of an invariant subspace the residual is anything from 0, where the Gauss rule is exact, to what is not told from it
    own, value = rules[0][1] if record.betas[-1] == 0 else (nan, nan), sum(rules[0][1]) / 2
    if a < low or b > high or 2 * record.steps < g.order:
        return _finite(*own, value)
    rules += [(sign, _widened(g, d, e, blur, change)) for sign, d, e in _prescribed(g, record, a, b, blur)]
    lower = max((rule[0] for sign, rule in rules if sign > 0 and np.isfinite(rule[0])), default=nan)
    upper = min((rule[1] for sign, rule in rules if sign < 0 and np.isfinite(rule[1])), default=nan)
    return _finite(float(np.fmin(lower, own[0])), float(np.fmax(upper, own[1])), value)


def _prescribed(
    g: Signed, record: LanczosRecord, a: float, b: float, blur: float
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(sign of int f dmu - rule, diagonals of the rule's T) of both Radau rules and Lobatto's, where their nodes are known."""
    theta, alphas, betas = record.eigen[0], record.alphas, np.append(record.betas[:-1], gauss.residual(record))
    low, high = g.domain  # ends of the matrix that T belongs to, as far as f has signs there
    left = min(max(a - blur, low), theta[0] - blur)
    right = max(min(b + blur, high), theta[-1] + blur)
    for node, sign in ((left, g.odd), (right, -g.odd)):
        if np.isfinite(node):
            yield sign, np.append(alphas, gauss.last_alpha(record, node, betas[-1])), betas
    if np.isfinite(left) and np.isfinite(right):
        gamma, mu = 1 / gauss.last_pivot(record, left), 1 / gauss.last_pivot(record, right)
        square = (right - left) / (gamma - mu)
        yield -g.even, np.append(alphas, left + gamma * square), np.append(betas[:-1], np.sqrt(square))


def _widened(g: Signed, alphas: np.ndarray, betas: np.ndarray, blur: float, change: float) -> tuple[float, float]:
    """The rule's value with every node moved by up to `blur` within f's domain, down and up; then the rounding of weights.

    A `change` E of T moves e_1^T f(T) e_1 by sum_ij s_i s_j E_ij f[theta_i, theta_j] in its eigenvectors' coordinates (Daleckii,
    Krein), s their first entries; of that, i = j is what moves the nodes.
    """
    nodes, S = eigh_tridiagonal(alphas, betas)
    with np.errstate(all="ignore"):
        moved = g.around(nodes, blur)
        held = S[0] != 0
        s, x, (low, value, high) = np.abs(S[0][held]), nodes[held], np.sort(moved[:, held], axis=0)
        quotients = np.abs(value[:, None] - value) / np.maximum(np.abs(x[:, None] - x), blur)
        sums = 8 * 2.0**-52 * (s**2 @ np.abs(value))
        rounding = max(WEIGHTS * float(np.ptp(value)), change * float(s @ quotients @ s)) + float(sums)
        below, above = float(s**2 @ low) - rounding, float(s**2 @ high) + rounding
    return below if np.isfinite(below) else -np.inf, above if np.isfinite(above) else np.inf
