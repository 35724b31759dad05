"""The Chebyshev recurrence: t_{j+1} = 2 X t_j - t_{j-1}, X = (A - c I) / h, on the interval [c - h, c + h].

A product and two dots give two moments mu_j = <t_0, T_j(X) t_0>, and no dot feeds back into the vectors, of which three are held.
They stay in the operator's dtype on its device; moments are float64. The moments of a probe become its Jacobi matrix, as far
as their rounding determines it, so that Gauss rule, envelope and bands are those of Lanczos.

Every product is held against those before it, at one dot a step: <t_{j-1}, X t_j> = (mu_{2j} + mu_{2j-2} + mu_2 + mu_0) / 4 of
one symmetric matrix. See `symmetry`.

Notation: B copies of the moments, k steps. Source: Weisse, Wellein, Alvermann, Fehske (2006), Rev. Mod. Phys. 78, 275; modified
Chebyshev algorithm: Sack, Donovan (1972), as in Gautschi (2004), Orthogonal Polynomials, Alg. 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.polynomial.chebyshev import chebvander

from spectral import arrays, distributed, longvectors
from spectral.krylov.kernels import recurrences
from spectral.krylov.lanczos import LanczosRecord
from spectral.krylov.symmetry import AGAIN, expected, look_again, not_finite
from spectral.operators.operator import Operator

MARGIN = 0.002  # of the half width, on both sides: the density of an end point is then finite
# After 30 steps on seven spectra, 30 probes each: the ends held in 95 %, else missed by 0.1 % of the range.
RESIDUALS = 2.0
COPIES = 6  # of the moments, moved by their rounding: what moves with them they do not determine
# Of h / 2: with coefficients known to 1e-2 an envelope was seen to miss the truth by 4e-7, below never.
DETERMINED = 1e-3
EXCESS = 8.0  # an eigenvalue at an end of the interval, rounded outwards by eps, lets T_j grow by j^2 eps


@dataclass(frozen=True, eq=False)
class ChebyshevRecord:
    """Moments mu_0 = 1, mu_1, ..., mu_{2k} of one start vector on `interval`, over its `squared_norm`.

    `stop`: "steps", "budget", or "outside", when moments beyond mu_0 proved an eigenvalue outside the interval. The other
    fields are those of `LanczosRecord`.
    """

    moments: np.ndarray
    interval: tuple[float, float]
    squared_norm: float
    dtype: str
    stop: str
    seed: int = -1
    index: int = -1

    @property
    def steps(self) -> int:
        return len(self.moments) // 2

    @property
    def first_product(self) -> tuple[float, float, float]:
        """(<x, A x>, ||A x||^2, scale of their rounding) of the start vector x, of length 1: A x = c x + h X x."""
        (c, h), mu = map(np.float64, centre(self.interval)), self.moments
        with np.errstate(all="ignore"):  # of a damaged interval
            square = np.square(c) + 2 * c * h * mu[1] + np.square(h) * (1 + mu[2]) / 2  # 2 ||X x||^2 - 1 = mu_2
        return float(c + h * mu[1]), float(square), float(abs(c) + h)


class Chebyshev:
    """The recurrence at work: `step()` until it returns False, then `record()`.

    A step overwrites the older of the two vectors; `whole` is False while it does, and what it leaves then cannot be kept.
    """

    def __init__(self, A: Operator, start: torch.Tensor, steps: int, interval: tuple[float, float]) -> None:
        self.A, self.limit, self.interval = A, min(int(steps), A.shape[1]), interval
        self.squared_norm = longvectors.start_square(start)
        if self.limit < 1:
            raise ValueError(f"steps={steps} with dimension {A.shape[1]}; both must be at least 1.")
        self.t = start / math.sqrt(self.squared_norm)
        self.t_prev: torch.Tensor | None = None
        self.moments = [longvectors.dot(self.t, self.t)]
        self.whole = True
        self.allowed = expected(A)  # as in `Lanczos`

    @property
    def steps(self) -> int:
        """The steps that have been made."""
        return len(self.moments) // 2

    @property
    def excess(self) -> float:
        """How far the last moments are above what an interval that holds the spectrum allows, see `excess`."""
        mu = self.moments
        return excess(np.array(mu[-2:]) / mu[0], len(mu) - 1, self.interval, self.A.dtype)

    @property
    def ended(self) -> bool:
        """Whether no step is left."""
        return self.steps >= self.limit or (self.steps > 0 and self.excess > 1)

    def state(self) -> dict[str, Any]:
        """All that the recurrence goes on from."""
        return {
            "moments": np.array(self.moments), "t_prev": self.t_prev, "t": self.t, "interval": list(self.interval),
        }  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`, of a recurrence from the same start."""
        self.moments, self.t_prev, self.t = state["moments"].tolist(), state["t_prev"], state["t"]
        low, high = state["interval"]
        self.interval = low, high

    def step(self) -> bool:
        """One product, two moments; False when the recurrence has ended."""
        (c, h), mu = centre(self.interval), self.moments
        # perhaps a buffer of the operator, perhaps t itself: not ours to change
        w = self.A.multiply(self.t[:, None])[:, 0]
        if self.t_prev is not None:
            self._hold_symmetric(self.t_prev, w)
        self.whole = False
        first = self.t_prev is None
        if self.t_prev is None:
            t_next = torch.mul(w, 1 / h).sub_(self.t, alpha=c / h)
            cross, square = longvectors.dot(t_next, self.t), longvectors.dot(t_next, t_next)
        else:
            t_next, updates = self.t_prev, recurrences.updates(self.t_prev, self.t, w)
            cross, square = updates.chebyshev(t_next, self.t, w, 2 / h, 2 * c / h)
        if not math.isfinite(cross) or not math.isfinite(square):
            raise not_finite(f"the product in step {len(mu) // 2 + 1}")
        mu += [cross if first else 2 * cross - mu[1], 2 * square - mu[0]]
        if self.excess > 0.5:  # others may see it otherwise
            mu[-2:] = distributed.decided(self.A, mu[-2:])
        self.t_prev, self.t = self.t, t_next
        self.whole = True
        return not self.ended

    def _hold_symmetric(self, t_prev: torch.Tensor, w: torch.Tensor) -> None:
        """<t_{j-1}, A t_j> against the moments; what is not finite is found in `step`."""
        (c, h), mu, j = centre(self.interval), self.moments, self.steps
        due = c * (mu[2 * j - 1] + mu[1]) / 2 + h * (mu[2 * j] + mu[2 * j - 2] + mu[2] + mu[0]) / 4
        found, scale = longvectors.dot(t_prev, w), (1 + j) * (abs(c) + h) * max(map(abs, mu))
        if not abs(found - due) > self.allowed * scale:
            return
        now, before = (f"the product in step {step} of the Chebyshev recurrence" for step in (j + 1, j))
        look_again(self.A, t_prev, self.t, found, due, (now, before), scale)
        self.allowed = AGAIN * abs(found - due) / scale

    def record(self, *, seed: int = -1, index: int = -1, stop: str | None = None) -> ChebyshevRecord:
        """What has been computed so far."""
        return ChebyshevRecord(
            moments=np.array(self.moments) / self.moments[0],
            interval=self.interval,
            squared_norm=self.squared_norm,
            dtype=arrays.dtype_name(self.A.dtype),
            stop=stop or ("outside" if self.steps and self.excess > 1 else "steps"),
            seed=seed,
            index=index,
        )


def chebyshev(A: Operator, start: torch.Tensor, steps: int, interval: tuple[float, float]) -> ChebyshevRecord:
    """Chebyshev moments 0, ..., 2 `steps` of symmetric A (n, n) from `start` (n,): a product a step, at most n; three vectors.

    >>> A = spectral.as_operator(np.diag([-1.0, 0.0, 1.0]))
    >>> record = chebyshev(A, torch.ones(3, dtype=torch.float64), 2, (-1.0, 1.0))
    >>> np.round(3 * record.moments, 12) + 0.0        # sum_i T_j(lambda_i)
    array([3., 0., 1., 0., 3.])
    """
    state = Chebyshev(A, start, steps, interval)
    while state.step():
        pass
    return state.record()


def centre(interval: tuple[float, float]) -> tuple[float, float]:
    """(c, h): the interval is [c - h, c + h]."""
    low, high = interval
    return low / 2 + high / 2, high / 2 - low / 2


def excess(moments: np.ndarray, order: int, interval: tuple[float, float], dtype: torch.dtype) -> float:
    """How far moments up to `order` (of a measure of mass 1) exceed 1, in units of what rounding may do.

    |T_j| <= 1 holds inside alone: more than 1 proves that something lies outside.
    """
    c, h = centre(interval)
    slack = EXCESS * arrays.machine_epsilon(dtype) * (1 + abs(c) / h) * (1 + order) ** 2
    return float(np.abs(moments).max() - 1) / min(slack, 1.0)


def bounds(records: Sequence[LanczosRecord]) -> tuple[float, float]:
    """An interval around the Ritz values: the extreme ones, twice their residuals beta_k |s_k|, 0.2 % of the half width.

    Nothing certifies the ends of a spectrum from inside; an eigenvalue that was missed shows itself later, by moments that
    grow. Safer bounds (theta_max + beta_k; Zhou, Li 2011, Linear Algebra Appl. 435, 480) are no better here: a fraction p of h
    that is empty lets T_2k grow there to exp(2k acosh(1 + p)), and takes as many digits from the Jacobi matrix.
    """
    low, high = math.inf, -math.inf
    for record in records:
        theta, S = record.eigen
        residual = record.betas[-1] * np.abs(S[-1])
        low, high = min(low, theta[0] - RESIDUALS * residual[0]), max(high, theta[-1] + RESIDUALS * residual[-1])
    c, h = centre((low, high))
    eps = max(arrays.machine_epsilon(record.dtype) for record in records)
    if h <= 16 * eps * abs(c) or h == 0:  # a multiple of I has no range, and any interval around it serves
        return c - (abs(c) or 1.0), c + (abs(c) or 1.0)
    return float(low - MARGIN * h), float(high + MARGIN * h)


def rescaled(moments: np.ndarray, old: tuple[float, float], new: tuple[float, float]) -> np.ndarray:
    """The same moments, (M,), on another interval: T_j of the new one expanded in those of the old, by interpolation.

    Stable where the new interval holds the old one: the expansion's coefficients are then at most 2.
    """
    (c, h), (c_new, h_new), M = centre(old), centre(new), len(moments)
    y = np.cos(np.pi * (np.arange(M) + 0.5) / M)
    old_TM, new_TM = chebvander(y, M - 1), chebvander((c + h * y - c_new) / h_new, M - 1)
    scaled = moments * np.where(np.arange(M) == 0, 1.0, 2.0) / M
    return new_TM.T @ (old_TM @ scaled)


def jacobi(record: ChebyshevRecord) -> LanczosRecord:
    """The Lanczos record of the same probe: modified Chebyshev algorithm, in O(k^2) and without a product.

    Moments know a measure to their rounding, and beyond gaps of the spectrum a Jacobi matrix may hang on less than that. The
    algorithm is therefore run on copies whose moments are moved by their rounding, eps (1 + j / 4) (1 + |c| / h), and ends,
    with stop "rounding", at the first coefficient that moves by more than DETERMINED. The last beta is an upper bound: what the
    moments cannot tell from 0 is not called 0. Where the spectrum fills the interval all of 100 steps survive in float64, half in
    float32. Beyond a gap that takes a share p of the interval, T_j of a smaller one grows like exp(j acosh((1 + p) / (1 - p))),
    and so does what rounding weighs. Kept of 100 steps, dimension 3000, float64 (float32): one outlier beyond
    p = .03: 53 (21), .1: 29 (9), .3: 16 (4), .5: 11 (3), .8: 7 (2); a gap in the middle of two halves
    p = .1: 100 (43), .3: 48 (14), .5: 28 (8), .8: 14 (4). It is the moments that are rounded: the same algorithm in numpy's
    longdouble keeps as many, so that only longer products would help, or Lanczos, which keeps all.
    """
    c, h = centre(record.interval)
    order = np.arange(len(record.moments))
    eps = arrays.machine_epsilon(record.dtype)
    noise = eps * (1 + order / 4) * (1 + abs(c) / h)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (COPIES, len(order)))
    nu = np.vstack([record.moments, record.moments + signs * noise])
    nu[:, 1:] *= 2  # of C_j(y) = 2 T_j(y / 2), monic on [-2, 2]
    nu[:, 0] = 1.0
    alphas, betas, ended = _modified_chebyshev(nu, record.steps)
    return LanczosRecord(
        alphas=c + h / 2 * alphas,
        betas=h / 2 * betas,
        squared_norm=record.squared_norm,
        dtype=record.dtype,
        reorthogonalized=False,
        stop="rounding" if ended else record.stop,
        seed=record.seed,
        index=record.index,
    )


def _modified_chebyshev(nu: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Alphas and betas (k,) of the first of the copies `nu` (B, 2 steps + 1), k <= steps, and whether they ended early.

    sigma_{j,l} = <pi_j, C_l>; C_{l+1} = y C_l - b_l C_{l-1}, b_1 = 2, b_l = 1 otherwise.
    """
    alphas: list[float] = []
    betas: list[float] = []
    previous, row, square = np.zeros_like(nu), nu, np.zeros(len(nu))
    for j in range(steps):
        alpha = row[:, j + 1] / row[:, j] - (previous[:, j] / previous[:, j - 1] if j else 0.0)
        if j > 0 and _spread(alpha) > DETERMINED:  # the mean is known to the rounding of the products, whatever that is
            return np.array(alphas), np.array(betas), True
        l = np.arange(j + 1, 2 * steps - j)
        b = np.where(l == 1, 2.0, 1.0)
        following = np.zeros_like(nu)
        following[:, l] = (
            row[:, l + 1] - alpha[:, None] * row[:, l] - square[:, None] * previous[:, l] + b * row[:, l - 1]
        )
        square = following[:, j + 1] / row[:, j]  # beta_{j+1}^2
        bound = float(np.sqrt(max(square[0] + _spread(square), 0.0)))
        alphas.append(float(alpha[0]))
        betas.append(bound)
        if square.min() <= 0 or _spread(np.sqrt(square)) > DETERMINED:
            return np.array(alphas), np.array(betas), True
        if j + 1 < steps:
            betas[-1] = float(np.sqrt(square[0]))
        previous, row = row, following
    return np.array(alphas), np.array(betas), False


def _spread(values: np.ndarray) -> float:
    """How far the copies (B - 1,) are from the first."""
    return float(np.abs(values[1:] - values[0]).max())
