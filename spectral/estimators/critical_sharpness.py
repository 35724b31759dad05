"""The curvature that a step meets: 2 / eta_c, eta_c the step along a direction from which on the loss is larger than here.

Along the line the loss is L(eta) = L(theta - eta d), and eta_c is the root of f(eta) = (L(eta) - L(0)) / eta. f(0) = -<g, d>, and
for a quadratic loss f is linear in eta: the secant through two points finds the root at once. Further passes make a bracket.
"""

from __future__ import annotations

import math
from typing import Any

from spectral import longvectors
from spectral.networks.curvature import Curvature
from spectral.operators.foreign import as_operator
from spectral.results import Estimate, nan
from spectral.schema import FRACTION, POSITIVE, integer, number

ROUNDING = 16.0  # times eps |L|: a difference of two losses below that tells nothing
FURTHER = 8.0  # as far as the next trial may lie from the last one while the loss has not risen
PATIENT = 10  # passes after which every second one halves the bracket
BESIDE = 0.4  # of rtol: how far from the predicted root a trial lies, so that the next one may be on its other side


def critical_sharpness(
    A: Any, direction: Any = None, *, guess: float | None = None, rtol: float = 0.05, most: int = 20
) -> Estimate:
    """2 / eta_c: eta_c is the step along a direction d from which on the loss of A is larger than where the step began.

    eta_c = inf {eta > 0: L(theta - eta d) > L(theta)}. For a quadratic loss with Hessian H and gradient g it is d^T H d / <g, d>:
    along the gradient a Rayleigh quotient of H, at most lambda_max, and lambda_max itself where g is its eigenvector.

    Cost: no products; a gradient where no direction is given, and 4 to 6 forward passes over the data. Memory: the gradient, and
    a copy of the parameters.

    Parameters
    ----------
    A : operator
        `Hessian`, `GaussNewton`, `Fisher` or `EmpiricalFisher`: of them the loss and the data are used, not the matrix.
    direction : array, optional
        (P,) d, a step that an optimizer subtracts, in units of its learning rate. By default the gradient of the loss over these
        data.
    guess : float, optional
        A value near the result, such as that of a reading before.
    rtol : float
        The bracket's width over its larger end, at which the search ends; above 0, below 1.
    most : int
        Forward passes at most, 3 or more.

    Returns
    -------
    Estimate
        `lower` and `upper` bracket it: after a step of 2 / lower the loss is larger, after one of 2 / upper it is not. stderr is
        0: the data are fixed. The value is nan where the loss never rises, with lower 0; upper is infinite where it rises from
        the start.

    Raises
    ------
    TypeError
        For a matrix without a loss over data.
    ValueError
        For a direction that is zero or does not fit, a loss that is not finite where the step begins, a guess, rtol or number of
        passes that is none, and parameters that lie over ranks.

    Notes
    -----
    Between the ends of the bracket the loss rises above L(theta). That it does so before, and falls again, between two trials, no
    number of passes can exclude. Differences of the loss below 16 eps |L| are rounding and end the search: the bracket then says
    what is known. In float32 that is so where a step lowers the loss by less than a millionth.

    References
    ----------
    Kalra, Gagnon-Audet, Gromov, Mediratta, Niu, Miller, Shvartsman (2026), A scalable measure of loss landscape curvature for
    analyzing the training dynamics of LLMs, arXiv:2601.16979.

    Examples
    --------
    >>> x, y = torch.tensor([[3.0]]), torch.zeros(1, 1)
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> H = spectral.Hessian(model, torch.nn.MSELoss(), [(x, y)])     # L = 9 w^2: H = 18
    >>> e = critical_sharpness(H)
    >>> round(float(e), 3), e.lower < 18 < e.upper
    (18.0, True)
    """
    if not isinstance(A, Curvature):
        raise TypeError(
            f"{as_operator(A)!r} has no loss over data; use a Hessian, GaussNewton, Fisher or EmpiricalFisher, whose loss is "
            "taken."
        )
    number(rtol, "rtol", "relative width", FRACTION, 0.05)
    if guess is not None:
        number(guess, "guess", "sharpness", POSITIVE)
    most = integer(most, "most", "number of forward passes", 3)
    d = A.gradient() if direction is None else A.columns(direction).reshape(-1)
    size = longvectors.norm(d)
    if not 0 < size < math.inf:
        raise ValueError(
            f"the direction has length {size:g}, and no step leads along it; use one that is finite and not zero."
        )
    here = A.mean_loss()
    if not math.isfinite(here):
        raise ValueError(f"the loss is {here:g} where the step begins; there is nothing to compare with.")
    slope = -(size**2) if direction is None else nan  # f(0)
    noise = ROUNDING * A.epsilon * abs(here)
    # beside the guess: on the crossing itself the loss tells nothing
    eta = (1 + BESIDE * rtol) * (2 / guess if guess is not None else _first(A, here, size, slope))
    low, f_low, high, f_high = 0.0, slope, math.inf, nan
    passes = 1
    while passes < most:
        passes += 1
        there = A.mean_loss(d * -eta)
        if abs(there - here) <= noise:
            return _estimate(2 / eta, low, high, passes)
        f = (there - here) / eta if math.isfinite(there) else math.inf
        before = low, f_low
        low, f_low, high, f_high = (low, f_low, eta, f) if f > 0 else (eta, f, high, f_high)
        root = _root(low, f_low, high, f_high, before)
        if high < math.inf and high - low <= rtol * high:
            break
        eta = _trial(root, low, high, rtol, halve=passes >= PATIENT and passes % 2 == 0)
    return _estimate(nan if high == math.inf else 2 / root, low, high, passes)


def _first(A: Curvature, here: float, size: float, slope: float) -> float:
    """A step to begin with: an eighth of the longest that a quadratic above 0 has; or a hundredth of the parameters' length."""
    if slope < 0 < here:
        return -here / (2 * slope)
    own = math.hypot(*(longvectors.norm(p.reshape(-1)) for p in A.network.values.values()))
    return 1e-2 * (own or 1.0) / size


def _root(low: float, f_low: float, high: float, f_high: float, before: tuple[float, float]) -> float:
    """Where f is 0 by the secant: through the ends of the bracket, or through the last two points where it has not risen."""
    if high < math.inf:
        between = math.isfinite(f_high) and math.isfinite(f_low)
        return low - f_low * (high - low) / (f_high - f_low) if between else (low + high) / 2
    other, f_other = before
    rises = math.isfinite(f_other) and low > other and f_low > f_other
    return low - f_low * (low - other) / (f_low - f_other) if rises else math.inf


def _trial(root: float, low: float, high: float, rtol: float, halve: bool) -> float:
    """The next step to try: beside the root, on the side on which the bracket is wider."""
    if high == math.inf:
        return min(max((1 + BESIDE * rtol) * root, (1 + rtol) * low), FURTHER * low)
    if low == 0.0 and not root > 0:
        return high / FURTHER
    if low == 0.0 and root < high / 2:  # far beyond, the loss grows more slowly than a quadratic
        return min((1 - BESIDE * rtol) * root, high / 4)
    if halve:
        return (low + high) / 2
    beside = (1 - BESIDE * rtol) * root if root - low > high - root else (1 + BESIDE * rtol) * root
    margin = rtol / 8 * (high - low)
    return min(max(beside, low + margin, high / FURTHER**2), high - margin)


def _estimate(value: float, low: float, high: float, passes: int) -> Estimate:
    lower, upper = 0.0 if high == math.inf else 2 / high, math.inf if low == 0.0 else 2 / low
    return Estimate(value, 0.0, lower, upper, method=f"{passes} forward passes")
