"""How far the integral of a function may be, of the vectors that were drawn: `Spectrum.truncation` says by what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import gauss
from spectral.quadrature.certificate import largest_mass
from spectral.quadrature.function import STEEP, Function, values_of, values_on
from spectral.quadrature.pooled import Quadrature
from spectral.results import Array

LIGHT = 0.25  # of what an eigenvalue weighs in the mean: a single Gaussian has less in 38 %, four in 1 %
CLOUD = 200  # points
MISSED = 0.05  # a chance: what has no more lies beyond two standard errors


Rule = tuple[Array, Array]  # nodes and weights


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
    edge, pole = least, np.isfinite(least) and not np.isfinite(at(np.array([least, min(least, 0.0)]))).all()
    least = _nearest(q, least) if pole and known and not np.isfinite(at(np.full(1, least))).all() else least
    for share, (theta, omega), residuals, (nodes, weights), record in known:
        y, lowest = values_on(q, f, theta), least
        own = omega @ y
        with np.errstate(all="ignore"):
            others = np.where(nodes.min(1) < least, np.nan, (weights * at(nodes)).sum(1))
            if pole and least < theta[0]:
                (x, c), (rest, masses) = unseen(record, edge, least, q.eigenvalues)
                crowd, others = masses @ at(rest), np.where(nodes.min(1) <= least, np.nan, others)
                added = crowd + np.array([c @ at(x), c.sum() * at(np.full(1, least))[0]])
                others = np.append(others, added[np.abs(added - own).argmin()])
                # a pair stands no nearer to the pole than the crowd does in the mean of its logarithms
                lowest = min(edge, 0.0) + float(np.exp(c @ np.log(x - min(edge, 0.0)) / c.sum()))
            pairs, masses = gauss.spread(theta, residuals, lowest)
            moved = (masses * (at(pairs) - y)).sum(0)
            slope = np.ptp(y) / np.ptp(theta)
            steep = np.isfinite(moved) & (np.abs(moved) > STEEP * slope * residuals)
        finite = np.isfinite(others)
        beyond = others[finite] - own
        total += share * np.maximum([beyond.max(), -beyond.min()], 0.0) if finite.any() else np.inf
        jumps = np.where(steep, moved, 0.0)
        total += share * np.maximum([jumps.max(0), -jumps.min(0)], 0.0) @ omega
    return total


def unseen(record: LanczosRecord, edge: float, least: float, eigenvalues: int) -> tuple[Rule, Rule]:
    """(where the weight of the Radau rule with a node at `least` lies by what the record says, the other nodes and weights).

    W_j, the most that j steps leave possible at `edge`, fell with x_j = theta_1 - edge of j steps as x^a, at the slowest since
    half of the steps. So it falls on: of what may lie left of theta_1 the part (x / x_k)^a is within x of the edge. Of N
    eigenvalues the nearest lies where that is MISSED / N, or farther out.
    """
    points, masses = gauss.outside(record, least)
    k, at, falls = record.steps, np.full(1, edge), [0.0]
    x, W = record.eigen[0][0] - edge, largest_mass(record, at)[0]
    if k > 1:
        shorter = [
            replace(record, alphas=record.alphas[:j], betas=record.betas[:j]) for j in {k // 2, 3 * k // 4, k - 1} - {0}
        ]
        before = [(r.eigen[0][0] - edge, largest_mass(r, at)[0]) for r in shorter]
        falls = [max(float(np.log(V / W) / np.log(y / x)), 0.0) for y, V in before if y > x and W > 0] or falls
    u = np.geomspace(MISSED / max(masses[0] * eigenvalues, 1.0), 1, CLOUD)
    crowd = np.maximum(edge + x * u[:-1] ** (1 / max(min(falls), gauss.TINY)), least)
    return (crowd, np.diff(np.append(0.0, u[1:])) * masses[0]), (points[1:], masses[1:])


def _nearest(q: Quadrature, least: float) -> float:
    """How near to `least`, where f has no value, an eigenvalue may lie."""
    near, first = 2 * q.rounding, first_of(q)
    if first - least <= near:
        return least + near
    x = least + np.geomspace(max(near, gauss.TINY), first - least, 240)
    likely = np.flatnonzero(q.chance(x) > MISSED)
    return float(x[likely[0]]) if len(likely) else first
