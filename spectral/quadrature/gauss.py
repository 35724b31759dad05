"""Gauss rules of Lanczos records, and what finite precision leaves of them.

Notation: T the Jacobi matrix of k steps with last residual beta_k; nodes theta_i, weights omega_i = S_{1i}^2; a probe's
measure is mu = sum_i (u_i^T g)^2 / ||g||^2 delta_{lambda_i}. Of a record with deflated eigenvectors, T stands for the rest of
mu, and its l known eigenvalues with their shares follow the Ritz values. `gone` are indices of nodes that became atoms, repeats
allowed. All arrays are float64 numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from spectral import arrays
from spectral.compat import eigh_tridiagonal
from spectral.krylov.lanczos import BREAKDOWN, LanczosRecord

Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = "left", "right"
TINY = float(np.finfo(float).tiny)
TURNED = 2.0  # eps ||T||: how far rounding of products changes T; .7 seen, in float32 and float64
# nodes of `alike` in all, and rules of each kind: what is narrower than their distance is not seen
DENSE, FEWEST = 256, 2
OPEN = 1.5  # of beta: 1 is what the Chebyshev measure leaves open within its ends, and half of each gap
NEARER = 2.0 ** -np.arange(5.0)  # residuals: how far the nearer point of a pair is
TOUCHING = 8 * float(np.finfo(float).eps)  # ||T||: as close as two eigenvalues of T itself are told apart
BLUR = 8.0  # eps ||T||: how far eigenvalues of the matrix that T belongs to may be from A's (Greenbaum 1989)


def gauss_rule(record: LanczosRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, weights, and |last components| of the eigenvectors of T, (k + l,) each: residuals are beta_k times the last."""
    nodes, S = record.eigen
    return (
        np.concatenate([nodes, record.known]),
        np.concatenate([undeflated(record) * S[0] ** 2, record.shares]),
        np.concatenate([np.abs(S[-1]), np.zeros(len(record.known))]),
    )


def alike(record: LanczosRecord, least: float = -np.inf, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Rules that the record hardly tells from its own: (nodes, weights), (R, k + 1) each, of T's part of mu.

    Those of k + 1 steps that begin as T does, with an alpha within OPEN beta_k of its last: they have its moments (the Radau
    rules; Golub, Meurant 2010, ch. 6). Those of k steps with a last alpha within OPEN beta_{k-1} of its own, and that of k - 1
    steps. As the alpha moves, the nodes pass through the gaps of T. Few steps have not seen what lies beyond: there are also
    the Radau rules of nodes as far out as one may weigh `share`, what an eigenvalue has. No node is below `least`, which bounds
    the spectrum, and the rule that has it among its nodes is one of them.
    """
    alphas, betas, k = record.alphas, record.betas, record.steps
    levels = max(DENSE // k, FEWEST)
    moves = np.cos(np.pi * (np.arange(levels) + 0.5) / levels)
    low, high = alphas[-1] - OPEN * betas[-1], alphas[-1] + OPEN * betas[-1]
    ends, shorter = [], alphas[-1] + OPEN * moves * betas[k - 2]
    if np.isfinite(least):
        # not a blur below theta_1: of 10^8 eigenvalues near 0 that would be more than the trace
        edge = min(least, record.eigen[0][0] - TOUCHING * norm(record))
        low = min(last_alpha(record, edge, betas[-1]), high)
        high, ends = max(high, low + betas[-1]), [low]
        shorter = np.maximum(shorter, alphas[-1] - last_pivot(record, edge))
    far = [d for _, d in _far(record, share) if d > high or (d < low and not np.isfinite(least))]
    rules = [(np.append(alphas, d), betas) for d in (*ends, *far, *((low + high) / 2 + moves * (high - low) / 2))]
    if k > 1:
        rules += [(np.append(alphas[:-1], d), betas[:-1]) for d in shorter] + [(alphas[:-1], betas[:-2])]
    nodes, weights = np.zeros((len(rules), k + 1)), np.zeros((len(rules), k + 1))
    for i, rule in enumerate(rules):
        theta, S = eigh_tridiagonal(*rule)
        nodes[i], nodes[i, : len(theta)], weights[i, : len(theta)] = theta[0], theta, S[0] ** 2
    if not np.isfinite(least):
        return nodes, weights
    inside = np.where(nodes <= least + 2 * TOUCHING * norm(record), least, nodes)
    # of each mean, where rounding has left T an eigenvalue below `least`
    raised = np.maximum((weights * (inside - nodes)).sum(1), 0.0)
    for x, w in zip((inside - least).T[1:], weights.T[1:], strict=True):
        moved = np.minimum(w, raised / np.maximum(x, TINY))
        raised, w[:], weights[:, 0] = raised - moved * x, w - moved, weights[:, 0] + moved
    return inside, weights


def outside(record: LanczosRecord, x: float) -> tuple[np.ndarray, np.ndarray]:
    """The Radau rule, (k + 1,) each, with a node at x below the Ritz values; the sum of its eigenvalue rounds like ||T||."""
    theta, S = eigh_tridiagonal(np.append(record.alphas, last_alpha(record, x, record.betas[-1])), record.betas)
    return np.append(x, theta[1:]), S[0] ** 2


def reach(record: LanczosRecord, share: float) -> tuple[float, float]:
    """Beyond what points no eigenvalue lies that weighs `share`: half as far again as the outermost Radau nodes that may."""
    low, high = record.eigen[0][[0, -1]]
    nodes = [x for x, _ in _far(record, share)]
    return low - 1.5 * (low - min(nodes, default=low)), high + 1.5 * (max(nodes, default=high) - high)


def _far(record: LanczosRecord, share: float) -> list[tuple[float, float]]:
    """(x, last alpha) of the Radau rules whose outermost node x lies beyond T's by beta_k / 4, and by half more each time."""
    (theta, S), beta, found = record.eigen, float(record.betas[-1]), []
    for end, side in ((theta[-1], 1.0), (theta[0], -1.0)):
        step = beta / 4
        while True:
            x = end + side * step
            b = beta * S[-1] / (theta - x)
            # the Christoffel function at x, as in `certificate.Radau.at`
            if not float(S[0] @ b) ** 2 / (1 + float(b @ b)) >= share:
                break
            found.append((x, x + float(beta * S[-1] @ b)))
            step *= 1.5
    return found


def spread(theta: np.ndarray, residuals: np.ndarray, least: float = -np.inf) -> tuple[np.ndarray, np.ndarray]:
    """(points, masses), (2, P, k) each: pairs that a node may stand for, with it as their mean and its residual as their spread.

    The spectral measure of a Ritz vector has both: a crowd near 0 moves up no further than its mean lets it. A pair with a point
    below `least`, or beyond the nodes, is the node itself.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        lower = np.minimum(NEARER[:, None], np.maximum(theta - least, 0.0) / residuals)
        t = np.concatenate([lower, np.broadcast_to(NEARER[:, None], lower.shape)])
        side = np.repeat([-1.0, 1.0], len(NEARER))[:, None]
        near, far = theta + side * t * residuals, theta - side * residuals / t
        able = (far >= max(least, theta[0])) & (far <= theta[-1])
    points = np.where(able, [near, far], theta)
    return points, np.where(able, [1 / (1 + t**2), t**2 / (1 + t**2)], [[[1.0]], [[0.0]]])


def last_pivot(record: LanczosRecord, x: float) -> float:
    """d_k of the Sturm sequence of T - x I, x outside the Ritz values: 1 / e_k^T (T - x)^-1 e_k, a sum of one sign.

    The sequence itself cancels where an end has converged.
    """
    theta, S = record.eigen
    return float(1 / np.sum(S[-1] ** 2 / (theta - x)))


def last_alpha(record: LanczosRecord, x: float, beta: float) -> float:
    """That of the Radau rule with a node at x, outside the Ritz values, and the residual norm `beta`."""
    return x + beta**2 / last_pivot(record, x)


def undeflated(record: LanczosRecord) -> float:
    """The share of mu that T stands for."""
    return max(1 - float(record.shares.sum()), 0.0)


def free_share(record: LanczosRecord, gone: np.ndarray) -> float:
    """The share of mu off the nodes `gone`."""
    return max(1 - float(gauss_rule(record)[1][np.unique(gone)].sum()), TINY)


def left_of(nodes: np.ndarray, weights: np.ndarray, x: np.ndarray, side: Side) -> np.ndarray:
    """What the nodes left of x weigh together, (X,), without those at x ("left") or with them ("right")."""
    order = np.argsort(nodes)
    below = np.concatenate([[0.0], np.cumsum(weights[order])])
    return below[np.searchsorted(nodes[order], x, side=side)]


def padded_rules(
    records: Sequence[LanczosRecord], removed: Sequence[np.ndarray], dim: int, rest: int
) -> tuple[np.ndarray, np.ndarray]:
    """(nodes (K, M), weights (K, M)): Gauss rules of records; `removed` nodes have become atoms, the others weigh rest / dim."""
    longest = max((record.steps + len(record.known) for record in records), default=0)
    nodes, weights = np.zeros((len(records), longest)), np.zeros((len(records), longest))
    for k, (record, gone) in enumerate(zip(records, removed, strict=True)):
        theta, omega, _ = gauss_rule(record)
        omega[gone] = 0.0
        nodes[k, : len(theta)] = theta
        total = omega.sum()
        if rest > 0 and total > 0:
            weights[k, : len(theta)] = omega * (rest / dim / total)
    return nodes, weights


# Finite precision -----------------------------------------------------------------------------------------------------
def epsilon(record: LanczosRecord) -> float:
    """Relative rounding of the products that made the record."""
    return arrays.machine_epsilon(getattr(torch, record.dtype))


def norm(record: LanczosRecord) -> float:
    """A bound of ||T||."""
    return float(np.abs(record.alphas).max() + 2 * record.betas.max(initial=0.0))


def blur(record: LanczosRecord, interval: tuple[float | None, float | None] = (None, None)) -> float:
    """How far finite precision moves an eigenvalue at most: BLUR eps times a bound of ||T|| and of the known eigenvalues.

    `interval`: ends of the spectrum, as far as they are known. Products round to the size of A, and T is small beside it where
    the start lies on small eigenvalues.
    """
    ends = [abs(x) for x in interval if x is not None and np.isfinite(x)]
    return BLUR * epsilon(record) * max(norm(record), float(np.abs(record.known).max(initial=0.0)), *ends, 1e-150)


def turning(blur: float) -> float:
    """How far rounding of products changes T where it moves eigenvalues by `blur`."""
    return TURNED / BLUR * blur


def residual(record: LanczosRecord) -> float:
    """beta_k, as far as it is told from 0: of an invariant subspace the most that counts as 0."""
    return float(record.betas[-1]) or BREAKDOWN * epsilon(record) * norm(record)


def zero_level(scale: float, dim: float, eps: float) -> float:
    """See `Quadrature.rounding`. numpy's rule for ranks, dim eps, would leave nothing of a float32 matrix with 10^7 rows."""
    return float((10 * eps + np.sqrt(dim) * 2.0**-52) * scale)
