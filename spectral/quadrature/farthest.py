"""How far the integral of a function may be, of the vectors that were drawn: `Spectrum.truncation` says by what."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import gauss
from spectral.quadrature.function import STEEP, Function, values_of, values_on
from spectral.quadrature.pooled import Quadrature
from spectral.results import Array

LIGHT = 0.25  # of what an eigenvalue weighs in the mean: a single Gaussian has less in 38 %, four in 1 %
MISSED = 0.05  # a chance: what has no more lies beyond two standard errors


class Unfinished(NamedTuple):
    """A probe that more steps may move: (k,) for k steps, (R, k + 1) for R rules that are alike."""

    share: float  # the eigenvalues that it stands for
    rule: tuple[Array, Array]  # T's Gauss rule
    residuals: Array
    alike: tuple[Array, Array]
    record: LanczosRecord


def unfinished(q: Quadrature, least: float) -> list[Unfinished]:
    """The probes that did not end in an invariant subspace, of a matrix that has no eigenvalue below `least`."""
    found = []
    for share, record, gone in zip(q.pooling, q.records, q.removed, strict=True):
        if record.steps > 0 and record.betas[-1] > 0:
            free = share * q.unresolved * gauss.undeflated(record) / gauss.free_share(record, gone)
            (theta, S), alike = record.eigen, gauss.alike(record, least, LIGHT / q.eigenvalues)
            found.append(Unfinished(free, (theta, S[0] ** 2), record.betas[-1] * np.abs(S[-1]), alike, record))
    return found


def first_of(q: Quadrature) -> float:
    """The least Ritz value."""
    return min((float(record.eigen[0][0]) for record in q.records if record.steps), default=np.inf)


def farthest(q: Quadrature, f: Function, known: list[Unfinished], positive: Callable[[], list[Unfinished]]) -> Array:
    """How much larger and how much smaller the integral of f may be, (2,): over the probes, the most that rules alike add.

    `positive`: the probes of a matrix without negative eigenvalues, none where one is negative.
    """

    def at(x: Array) -> Array:  # f is asked for values of one row
        return values_of(f, x.reshape(-1)).reshape(x.shape)

    total, least = np.zeros(2), q.least
    if not np.isfinite(least) and not np.isfinite(at(np.zeros(1))).all() and (sure := positive()):
        least, known = 0.0, sure  # who asks for a logarithm says that there is one
    pole = np.isfinite(least) and not np.isfinite(at(np.full(1, least))).all()
    least = _nearest(q, least) if pole and known else least
    for share, (theta, omega), residuals, (nodes, weights), record in known:
        y = values_on(q, f, theta)
        own = omega @ y
        with np.errstate(all="ignore"):
            others = np.where(nodes.min(1) < least, np.nan, (weights * at(nodes)).sum(1))
            if pole and least < theta[0]:
                points, masses = gauss.outside(record, least)
                others = np.append(others, masses @ at(points))
            pairs, masses = gauss.spread(theta, residuals, least)
            moved = (masses * (at(pairs) - y)).sum(0)
            slope = np.ptp(y) / np.ptp(theta)
            steep = np.isfinite(moved) & (np.abs(moved) > STEEP * slope * residuals)
        finite = np.isfinite(others)
        beyond = others[finite] - own
        total += share * np.maximum([beyond.max(), -beyond.min()], 0.0) if finite.any() else np.inf
        jumps = np.where(steep, moved, 0.0)
        total += share * np.maximum([jumps.max(0), -jumps.min(0)], 0.0) @ omega
    return total


def _nearest(q: Quadrature, least: float) -> float:
    """How near to `least`, where f has no value, an eigenvalue may lie."""
    near, first = 2 * q.rounding, first_of(q)
    if first - least <= near:
        return least + near
    x = least + np.geomspace(max(near, gauss.TINY), first - least, 240)
    likely = np.flatnonzero(q.chance(x) > MISSED)
    return float(x[likely[0]]) if len(likely) else first
