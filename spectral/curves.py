"""CDFs as piecewise linear curves with jumps: the middle of a probe's envelope, mixtures, quantiles, distances.

A curve is (x, F): x (X,) ascending, F (X,) from 0 to its mass, linear between the points; a repeated x is a jump.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spectral.measure import TINY, gauss_rule, weight_left
from spectral.recurrences.lanczos import LanczosRecord

Curve = tuple[np.ndarray, np.ndarray]
COARSE = (
    0.7  # log step of the contour: its error 2 exp(-pi^2 / 0.7) = 1.5e-6 of a mass is far below the envelope's width
)
RUNGS = 0.5 * 0.25 ** np.arange(11)  # of the gap to the next node: where the middle is computed


def staircase(values: np.ndarray, masses: np.ndarray) -> Curve:
    """The CDF of a discrete measure, `values` ascending."""
    F = np.concatenate([[0.0], np.cumsum(masses)])
    return np.repeat(values, 2), np.stack([F[:-1], F[1:]], 1).reshape(-1)


def middle(record: LanczosRecord, gone: np.ndarray) -> Curve:
    """The middle of a probe's envelope between its outermost nodes, the nodes `gone` taken out, as a curve from 0 to 1.

    Of all estimates from the same moments it has the least largest error at each point, half the envelope's width; where the
    density is smooth its error is of second order in 1 / k, that of the Gauss rule's steps of first. A node that has converged
    (|S_ki| below the last rung), known eigenvalues and exact rules are steps: there the envelope is tight. O(k) points, O(k^2).
    """
    theta, omega, last = gauss_rule(record)
    k, kept = record.steps, np.ones(len(theta), dtype=bool)
    kept[gone] = False
    own = np.flatnonzero(kept[:k])
    step = (last[own] < RUNGS[-1]) | (record.betas[-1] == 0)
    before = np.concatenate([[0.0], np.cumsum(np.where(kept, omega, 0.0)[:k])])[own]
    low, high = (before + omega[own] * np.where(step, end, 0.5) for end in (0.0, 1.0))
    if len(own):
        low[0], high[-1] = 0.0, before[-1] + omega[own[-1]]
    gap = np.concatenate([[0.0], np.diff(theta[:k]), [0.0]])
    rungs = np.where(np.where(step, RUNGS[0], np.minimum(last[own], RUNGS[0]))[:, None] <= RUNGS, RUNGS, 0.0)
    x = np.concatenate([theta[own, None] - gap[own, None] * rungs, theta[own, None] + gap[own + 1, None] * rungs])
    x = np.unique(x[np.abs(x - np.tile(theta[own], 2)[:, None]) > 0])
    x = x[(x > theta[own[0]]) & (x < theta[own[-1]])] if len(own) else x
    curve = np.concatenate([theta[own], theta[own]]), np.concatenate([low, high])
    if len(x) and record.betas[-1] > 0:
        centre, scale = record.alphas[0], np.abs(record.alphas - record.alphas[0]).max() + 2 * record.betas.max()
        scaled = (record.alphas - centre) / scale, record.betas / scale
        nudged = (x - centre) / scale + 2.0**-48  # off the exact zeros of symmetric spectra, where pivots vanish
        F = [weight_left(*scaled, part, 0, COARSE) for part in np.array_split(nudged, 1 + len(x) // 64)]
        taken = np.concatenate([[0.0], np.cumsum(np.where(kept, 0.0, omega)[:k])])[np.searchsorted(theta[:k], x)]
        rest = max(1 - float(record.shares.sum()), 0.0)
        curve = (
            np.concatenate([curve[0], x]),
            np.concatenate([curve[1], np.clip(rest * np.concatenate(F) - taken, low[0], high[-1])]),
        )
    order = np.lexsort(curve[::-1])
    total = float(omega[kept].sum())
    T = curve[0][order], np.maximum.accumulate(curve[1][order])
    known = np.flatnonzero(kept[k:]) + k
    known = known[np.argsort(theta[known])]
    return mixture([T, staircase(theta[known], omega[known])], np.full(2, 1 / max(total, TINY)))


def limits(curve: Curve, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve at x - 0 and at x + 0, (X,) each."""
    t, F = curve
    ends = []
    for i in (np.searchsorted(t, x, side="left"), np.searchsorted(t, x, side="right")):
        b = np.clip(i, 1, max(len(t) - 1, 1))
        share = (x - t[b - 1]) / np.where(t[b] > t[b - 1], t[b] - t[b - 1], 1.0)
        inside = F[b - 1] + share * (F[b] - F[b - 1])
        ends.append(np.where(i == 0, 0.0, np.where(i == len(t), F[-1], inside)))
    return ends[0], ends[1]


def mixture(curves: Sequence[Curve], shares: Sequence[float] | np.ndarray) -> Curve:
    """sum_i shares_i F_i, of curves that are not empty."""
    curves, shares = zip(*((c, share) for c, share in zip(curves, shares, strict=True) if len(c[0])), strict=True)
    x = np.unique(np.concatenate([t for t, _ in curves]))
    both = np.tensordot(np.array(shares), np.array([limits(curve, x) for curve in curves]), 1)
    return np.repeat(x, 2), both.T.reshape(-1)


def quantile(curve: Curve, q: float) -> float:
    """The smallest x with F(x) >= q."""
    x, F = curve
    i = min(int(np.searchsorted(F, q - 1e-12)), len(F) - 1)
    if i == 0 or F[i] <= q:
        return float(x[i])
    return float(x[i] - (x[i] - x[i - 1]) * (F[i] - q) / (F[i] - F[i - 1]))


def distance(a: Curve, b: Curve, kind: str) -> float:
    """W1 = int |F - G| dx or KS = sup |F - G| of two CDFs, exactly."""
    x = np.unique(np.concatenate([a[0], b[0]]))
    (f_left, f_right), (g_left, g_right) = limits(a, x), limits(b, x)
    if kind != "wasserstein":  # inside a jump that both have the CDFs have no value
        return float(max(np.abs(f_left - g_left).max(), np.abs(f_right - g_right).max()))
    one, two = (f_right - g_right)[:-1], (f_left - g_left)[1:]
    size = np.abs(one) + np.abs(two)  # of a line from one to two: int |line| = size / 2, or less where it changes sign
    crossing = (one**2 + two**2) / np.maximum(size, TINY)
    return float(np.where(one * two >= 0, size, crossing) @ np.diff(x)) / 2
