"""The CDF of one probe as a curve: the middle of its certified envelope, at as many points as make it piecewise linear."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import gauss
from spectral.quadrature.cdf import Curve, ascending
from spectral.quadrature.certificate import MIDDLE

BEND = 3e-3  # of the CDF, from a line
AREA = 0.05  # of what the steps between nodes leave open: the same for areas, an equal part for each interval
JUMP = 1e-6  # of the range: an envelope that rises over less does so at once


def traced(
    record: LanczosRecord, gone: np.ndarray, interval: tuple[float, float], middle: Callable[[np.ndarray], np.ndarray]
) -> Curve:
    """The CDF `middle` of one probe over `interval`, off the nodes `gone`, which became atoms.

    At a Gauss node the Gauss rule is the Radau rule, which costs nothing. Intervals between nodes are halved until the middle is
    a line to BEND; over a node that stands alone it rises over the node's residual beta_k |s_k|, or, below JUMP, at once.
    """
    low, high = interval
    least = 4 * JUMP * (high - low)
    (t, F), around = _at_nodes(record, gone, high - low)
    x = np.unique(np.clip(np.concatenate([[low, high], around]), low, high))
    t, F = ascending(np.concatenate([t, x]), np.concatenate([F, middle(x)]))
    parts, fine = np.array([t[:-1], F[:-1], t[1:], F[1:]]), AREA * float(np.diff(t) @ np.diff(F)) / len(t)
    while parts.size:
        left, F_left, right, F_right = parts[:, parts[2] - parts[0] > least]
        x = (left + right) / 2
        y = middle(x)
        t, F = np.concatenate([t, x]), np.concatenate([F, y])
        bend = np.abs(y - (F_left + F_right) / 2)
        # a large rise may have its middle on the line by chance
        bent = (bend > BEND) | (F_right - F_left > 8 * BEND) | ((bend > 4 * MIDDLE) & (bend * (right - left) > fine))
        halves = np.array([left, F_left, x, y]), np.array([x, y, right, F_right])
        parts = np.concatenate([half[:, bent] for half in halves], axis=1)
    t, F = ascending(t, F)
    return t, np.maximum.accumulate(F)


def _at_nodes(record: LanczosRecord, gone: np.ndarray, spread: float) -> tuple[Curve, np.ndarray]:
    """Of the nodes that are no atoms: (the middle there, with jumps; points about those that it rises over slowly)."""
    theta, omega, last = gauss.gauss_rule(record)
    n = record.steps
    gap = np.full(len(theta), np.inf)  # what was deflated stands alone
    gap[:n] = np.minimum(np.diff(theta[:n], prepend=-np.inf), np.diff(theta[:n], append=np.inf))
    width, free = record.betas[-1] * last, np.ones(len(theta), dtype=bool)
    free[np.unique(gone)] = False
    mass, order, after = np.where(free, omega, 0.0), np.argsort(theta, kind="stable"), np.empty(len(theta))
    after[order] = np.cumsum(mass[order])
    after, mass = after / max(mass.sum(), gauss.TINY), mass / max(mass.sum(), gauss.TINY)
    jump, slow = free & (width <= JUMP * spread), free & (width >= gap / 8)
    rise = free & ~jump & ~slow
    t = np.concatenate([theta[slow], theta[jump], theta[jump]])
    F = np.concatenate([(after - mass / 2)[slow], (after - mass)[jump], after[jump]])
    return (t, F), np.concatenate([theta[rise] + c * width[rise] for c in (-3, -1, 1, 3)])
