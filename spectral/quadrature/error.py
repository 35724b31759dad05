"""The errors that are stated of CDFs: of one, in W1 from the truth; of the distance of two, from what both may be off by.

W1 and KS obey the triangle inequality: a distance is off by no more than both of its CDFs are.
"""

from __future__ import annotations

import math

import numpy as np

from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import beta, cdf
from spectral.quadrature.certificate import truncation, truncation_log10
from spectral.quadrature.pooled import Quadrature

CELLS = 128  # of equal noise, on which draws of the probes are simulated; cut where noise says, and not at a node
# of beta, around the alpha of one step: half of its envelope's area there is beta, the most that |lambda - alpha| is in the mean
MEAN = math.tan(1.0)
NORMAL = 1.96  # standard errors that 95 % are within


def stated_error(q: Quadrature) -> dict[str, float]:
    """W1 error of the CDF of `q` relative to its range (`_range`).

    "truncation": half the area of the certified envelope, "rounding": what finite precision alone leaves of it; "statistical":
    the mean over draws of the probes, from their exact variance; "w1": their sum; "w1_95" is exceeded in 5 % of the draws.
    """
    (low, high), r = _range(q), q.unresolved
    one_value = high - low <= 16 * q.epsilon * q.scale  # the values of a multiple of I differ by rounding
    if r == 0 or one_value or not q.weights.any():
        return dict.fromkeys(("w1", "truncation", "rounding", "statistical", "w1_95"), 0.0)
    share = r / q.dim / (high - low)
    ends = [_around(record, MEAN) if record.steps == 1 else (low, high) for record in q.records]
    probes = [truncation(record, gone, *own) for record, gone, own in zip(q.records, q.removed, ends, strict=True)]
    truncated, rounding = (share * float(part) for part in q.pooling @ probes)
    statistical, noise = _noise(q, *_steps(q), share)
    worst = truncated + noise
    return {
        "w1": truncated + statistical, "w1_95": worst, "truncation": truncated, "rounding": rounding,
        "statistical": statistical,
    }  # fmt: skip


def _steps(q: Quadrature) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of all probes, ascending, and the CDF of the unresolved part right of each."""
    held = q.mass > 0
    order = np.argsort(q.nodes[held], kind="stable")
    mass = beta.located(q.nodes, q.mass, 1 / q.unresolved)[held][order]
    F = np.clip(np.cumsum(mass / mass.sum()), 0, 1)  # a mass that was drawn too light would hide its noise
    return q.nodes[held][order], F


def _noise(q: Quadrature, x: np.ndarray, F: np.ndarray, share: float) -> tuple[float, float]:
    """`share` times int |noise| dx of the probes, F right of each of x: (its mean, what 5 % of the draws exceed)."""

    def mean(F: np.ndarray) -> np.ndarray:  # of |noise| of the CDF where it is F: E|z| of a normal z
        return np.sqrt(2 / np.pi * np.asarray(q.noise(F * (1 - F))))

    parts = mean(F[:-1]) * np.diff(x) * share  # constant between nodes
    statistical = float(parts.sum())
    if statistical == 0:
        return 0.0, 0.0
    # a cell's F is its mean by noise, its width what gives it an equal share: both move no further than the nodes do
    ends = np.linspace(0, statistical, CELLS + 1)
    held_by, below = (np.concatenate([[0.0], np.cumsum(y)]) for y in (parts, parts * F[:-1]))
    cells = np.diff(np.interp(ends, held_by, below)) * CELLS / statistical
    noisy = beta.noise_of(cells, len(q.nodes), q.unresolved)
    return statistical, float(np.quantile(statistical / CELLS / mean(cells) @ noisy, 0.95))


def _around(record: LanczosRecord, reach: float) -> tuple[float, float]:
    """`reach` beta around the alpha of a record of one step; a beta of moments that end in rounding says nothing."""
    width = 0.0 if record.stop == "rounding" else reach * float(record.betas[0])
    return float(record.alphas[0]) - width, float(record.alphas[0]) + width


def _range(q: Quadrature) -> tuple[float, float]:
    """`q.interval`, with alpha -+ beta of a probe of one step, whose node says nothing of how far the eigenvalues reach."""
    ends = [_around(record, 1.0) for record in q.records if record.steps == 1]
    every = np.concatenate([q.interval, *ends])
    return float(every.min()), float(every.max())


def between(
    a: Quadrature,
    b: Quadrature,
    kind: str,
    units: tuple[float, float] = (1.0, 1.0),
    unsure: tuple[float, float] = (0.0, 0.0),
) -> tuple[float, float]:
    """(W1 or KS between two CDFs, each divided by its unit; its error).

    The error is that of both CDFs, in quadrature, what 95 % of the draws of their probes are within over 1.96. In W1
    `stated_error` knows it. In KS it is the largest noise of the probes, with half the certified envelope where the distance is
    largest: within it a crowd of eigenvalues that one node stands for may lie anywhere. What each unit may be off by, `unsure`,
    moves the CDFs: in W1 by that of the mean |value|, in KS by what lies where the distance is largest. 0 of exact spectra and of
    measures of one vector, and in KS no more than to the farther end of [0, 1], in which it lies. KS looks at points that
    rounding tells apart: steps of one eigenvalue, 1e-16 apart, are no distance.
    """
    scaled = [(q.curve[0] / unit, q.curve[1]) for q, unit in zip((a, b), units, strict=True)]
    x = np.unique(np.concatenate([scaled[0][0], scaled[1][0]]))
    whole = [cdf.limits(curve, x) for curve in scaled]
    left, right = whole[0][0] - whole[1][0], whole[0][1] - whole[1][1]
    off = [u / unit for u, unit in zip(unsure, units, strict=True)]
    if kind == "wasserstein":
        return float(cdf.distances(left, right, x, kind)), math.hypot(*map(_off_w1, (a, b), units, off))
    apart = float(sum(q.floor / unit for q, unit in zip((a, b), units, strict=True)))
    of = cdf.told_apart(x, apart)
    first, last = (np.searchsorted(of, np.unique(of), side) for side in ("left", "right"))
    last -= 1
    i, j = first[np.abs(left[first]).argmax()], last[np.abs(right[last]).argmax()]
    at = x[i] - apart if abs(left[i]) >= abs(right[j]) else x[j] + apart
    value, both = float(cdf.distances(left[first], right[last], x, kind)), math.hypot(*off)
    error = math.hypot(*(_off_ks(q, at * unit, both) for q, unit in zip((a, b), units, strict=True)))
    return value, min(error, max(value, 1 - value))


def _off_w1(q: Quadrature, unit: float, off: float) -> float:
    """How far the CDF of q in its unit, which is `off` of itself, may be from the truth in W1, as a standard error."""
    if q.is_exact or q.of_vector:
        return 0.0
    low, high = _range(q)
    error, (x, c) = q.meta.get("error") or stated_error(q), q.points()
    return (float(error["w1_95"]) * (high - low) / NORMAL + float(c @ np.abs(x)) / q.dim * off) / unit


def _off_ks(q: Quadrature, x: float, off: float) -> float:
    """The same in KS: half of the envelope at x, what lies nearer to it than units tell, and the largest noise of the probes."""
    reach = 2 * off * abs(x)
    (before, _), (_, after) = cdf.limits(q.curve, np.array([x - reach])), cdf.limits(q.curve, np.array([x + reach]))
    moved = float(after[0] - before[0]) / NORMAL if off > 0 else 0.0
    if q.is_exact or q.of_vector:
        return moved
    (low,), (high,) = q.envelope(np.array([x])) if q.records else ([0.0], [0.0])
    F = _steps(q)[1]
    F = F[np.unique(np.linspace(0, len(F) - 1, CELLS).astype(int))]
    noise = float(np.quantile(beta.noise_of(F, len(q.nodes), q.unresolved).max(0), 0.95)) / NORMAL
    return moved + (float(high - low) / 2 + noise) * q.unresolved / q.dim


def off_log10(q: Quadrature, floor: float) -> float:
    """How far the CDF of log10 of the values above `floor` may be from the truth in W1, as a standard error, in decades.

    The nodes lie within the envelope, whose area on that axis is the most that truncation moves; the probes' noise is that of
    `stated_error`. What is not sure to lie above the floor counts as far as the others lie above it in the mean.
    """
    (x, c), r = q.points(), q.unresolved
    above = x > floor
    if q.is_exact or q.of_vector or not (above.any() and floor > 0):
        return 0.0
    high = max(_range(q)[1], float(x[above].max()))
    each = [truncation_log10(record, gone, floor, high) for record, gone in zip(q.records, q.removed, strict=True)]
    nodes, F = _steps(q)
    kept = float(c[above].sum()) / q.dim
    height = float(c[above] @ np.log10(x[above] / floor)) / q.dim / kept
    below = F[np.searchsorted(nodes, floor, "right") - 1] if nodes[0] <= floor else 0.0
    (lower,), (upper,) = q.envelope(np.array([floor]))
    lost = float(upper - lower) + NORMAL * math.sqrt(float(q.noise(below * (1 - below))))
    share = r / q.dim
    moved = share * float(q.pooling @ each) + _noise(q, np.log10(np.maximum(nodes, floor)), F, share)[1]
    return (moved + share * lost * height) / kept / NORMAL


def jackknife_variance(values: np.ndarray) -> float:
    """(K - 1) / K sum (v - mean)^2 of K leave-one-out values, nan for one (Tukey 1958)."""
    K = len(values)
    return (K - 1) / K * float(np.square(values - values.mean()).sum()) if K > 1 else float("nan")
