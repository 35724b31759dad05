"""CDFs as curves: piecewise linear between ascending points t (X,), with jumps where a point stands twice; their distances, and
the error that a spectrum states of its own.

A staircase knows nothing between its nodes; the middle of the certified envelope does (Nex 1978), and is what `Spectrum.cdf`
gives.
Left of its first point a curve is 0, right of its last point 1. All arrays are float64 numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spectral.quadrature import gauss

if TYPE_CHECKING:
    from spectral.spectrum import Spectrum

Curve = tuple[np.ndarray, np.ndarray]
Units = tuple[Sequence[float] | None, Sequence[float] | None]
BEND = 3e-3  # of the CDF, from a line
AREA = 0.05  # of what the steps between nodes leave open: the same for areas, an equal part for each interval
JUMP = 1e-6  # of the range: an envelope that rises over less does so at once
TINY = gauss.TINY
CELLS = 128  # of equal noise, on which draws of the probes are simulated


def staircase(values: np.ndarray, masses: np.ndarray) -> Curve:
    """The CDF of a discrete measure: values (V,) ascending, masses (V,) with sum 1."""
    after = np.cumsum(masses)
    after /= after[-1]
    return np.repeat(values, 2), np.column_stack([np.append(0.0, after[:-1]), after]).reshape(-1)


def limits(curve: Curve, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values just left and just right of x (X,)."""
    t, F = np.concatenate([[-np.inf], curve[0], [np.inf]]), np.concatenate([[0.0], curve[1], [1.0]])

    def on(x: np.ndarray, end: np.ndarray) -> np.ndarray:  # the piece that ends at t[end], at x
        end = np.minimum(end, len(t) - 1)
        begin = end - 1
        with np.errstate(invalid="ignore"):
            share = (x - t[begin]) / (t[end] - t[begin])
        inner = np.where(np.isfinite(share), share, 0.0)
        middle = F[begin] + inner * (F[end] - F[begin])
        return np.where(begin == 0, 0.0, np.where(end == len(t) - 1, 1.0, middle))

    return on(x, np.searchsorted(t, x, side="left")), on(x, np.searchsorted(t, x, side="right"))


def inverse(curve: Curve, q: float) -> float:
    """The smallest x at which the CDF has reached q, to rounding of its sums."""
    t, F = curve
    q -= 1e-12
    i = min(int(np.searchsorted(F, q)), len(t) - 1)  # right of its last point the CDF is 1
    if i == 0 or F[i] <= q or F[i] == F[i - 1]:
        return float(t[i])
    return float(t[i - 1] + (q - F[i - 1]) / (F[i] - F[i - 1]) * (t[i] - t[i - 1]))


def pooled(curves: Sequence[Curve], shares: Sequence[float]) -> Curve:
    """sum_i shares_i curves_i; the shares sum to 1."""
    x = np.unique(np.concatenate([t for t, _ in curves]))
    left, right = (np.tensordot(shares, side, 1) for side in zip(*(limits(c, x) for c in curves), strict=True))
    return _joined(x, left, right)


def _joined(x: np.ndarray, left: np.ndarray, right: np.ndarray) -> Curve:
    """The curve with these limits at ascending points x."""
    return np.repeat(x, 2), np.column_stack([left, right]).reshape(-1)


def distances(left: np.ndarray, right: np.ndarray, x: np.ndarray, kind: str) -> np.ndarray:
    """W1 = int |F - G| dx, exactly, or KS = max |F - G|, from F - G just left and right of ascending points x (X,).

    `left` and `right` are (X,) or several at once, (..., X); F - G is 0 outside of x.
    """
    if kind == "ks":
        return np.maximum(np.abs(left).max(-1), np.abs(right).max(-1))
    begin, end = right[..., :-1], left[..., 1:]
    size = np.abs(begin) + np.abs(end)  # the line from begin to end: a trapezium, or two triangles
    area = np.where(begin * end >= 0, size, (begin**2 + end**2) / np.maximum(size, 1e-300)) / 2
    return area @ np.diff(x)


def distance(a: Curve, b: Curve, kind: str) -> float:
    """W1 or KS of two curves."""
    x = np.unique(np.concatenate([a[0], b[0]]))
    (a_left, a_right), (b_left, b_right) = limits(a, x), limits(b, x)
    return float(distances(a_left - b_left, a_right - b_right, x, kind))


def between(
    a: Spectrum, b: Spectrum, kind: str, units: tuple[float, float] = (1.0, 1.0), without: Units = (None, None)
) -> tuple[float, float]:
    """(W1 or KS between two spectra, each divided by its unit; its jackknife error over the probes of both).

    `without`: each spectrum's unit without probe k, (K,), where it moves along. The error is 0 between exact spectra, and nan if
    one has a single probe.
    """
    scaled = [(s.curve[0] / unit, s.curve[1]) for s, unit in zip((a, b), units, strict=True)]
    x = np.unique(np.concatenate([scaled[0][0], scaled[1][0]]))
    whole = [limits(curve, x) for curve in scaled]
    value = float(distances(whole[0][0] - whole[1][0], whole[0][1] - whole[1][1], x, kind))
    squares = 0.0
    for s, unit, own, other in ((a, units[0], without[0], whole[1]), (b, units[1], without[1], whole[0])):
        if not s.is_exact:
            left, right = without_each(s, x * unit)
            if own is not None:
                rows = zip(left, right, own, strict=True)
                moved = [limits(_joined(x * unit, l, r), x * one) for l, r, one in rows]
                left, right = np.array([l for l, _ in moved]), np.array([r for _, r in moved])
            squares += jackknife_variance(distances(left - other[0], right - other[1], x, kind))
    return value, float(np.sqrt(squares))


def jackknife_variance(values: np.ndarray) -> float:
    """(K - 1) / K sum (v - mean)^2 of K leave-one-out values, nan for one (Tukey 1958)."""
    K = len(values)
    return (K - 1) / K * float(np.square(values - values.mean()).sum()) if K > 1 else float("nan")


def of(s: Spectrum) -> Curve:
    """The CDF of a spectrum: its atoms, its known zeros, and the rest by all probes."""
    if s.unresolved == 0:
        return staircase(*s.points())
    steps = [staircase(*s.known_points())] if s.unresolved < s.dim else []
    rest = s.unresolved / s.dim
    return pooled([*s.probe_curves, *steps], [*(s.pooling * rest), 1 - rest][: len(s.nodes) + len(steps)])


def without_each(s: Spectrum, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The CDF without probe k, just left and right of x: (K, X) each."""
    rest, keep = s.unresolved / s.dim, np.maximum(1 - s.pooling, TINY)[:, None]
    sides = []
    for whole, parts in zip(limits(s.curve, x), zip(*(limits(c, x) for c in s.probe_curves), strict=True), strict=True):
        probes = np.array(parts)
        mean = s.pooling @ probes
        sides.append(whole + rest * ((mean - s.pooling[:, None] * probes) / keep - mean))
    return sides[0], sides[1]


def of_probe(s: Spectrum, k: int) -> Curve:
    """The middle of probe k's envelope over the range of `s`, off the atoms; steps where its rule is exact or has no record.

    At a Gauss node the Gauss rule is the Radau rule, which costs nothing. Intervals between nodes are halved until the middle is
    a line to BEND; over a node that stands alone it rises over the node's residual beta_k |s_k|, or, below JUMP, at once.
    """
    if not s.records or s.records[k].betas[-1] == 0:
        held = s.weights[k] > 0
        order = np.argsort(s.nodes[k][held], kind="stable")
        return staircase(s.nodes[k][held][order], s.weights[k][held][order])
    low, high = s.interval
    least = 4 * JUMP * (high - low)
    (t, F), around = _nodes(s, k)
    x = np.unique(np.clip(np.concatenate([[low, high], around]), low, high))
    t, F = _sorted(np.concatenate([t, x]), np.concatenate([F, s.probe_middle(k, x)]))
    parts, fine = (t[:-1], F[:-1], t[1:], F[1:]), AREA * float(np.diff(t) @ np.diff(F)) / len(t)
    while len(parts[0]):
        left, F_left, right, F_right = (part[parts[2] - parts[0] > least] for part in parts)
        x = (left + right) / 2
        y = s.probe_middle(k, x)
        t, F = np.concatenate([t, x]), np.concatenate([F, y])
        bend = np.abs(y - (F_left + F_right) / 2)
        # a large rise may have its middle on the line by chance
        bent = (
            (bend > BEND) | (F_right - F_left > 8 * BEND) | ((bend > 4 * gauss.MIDDLE) & (bend * (right - left) > fine))
        )
        halves = (left, F_left, x, y), (x, y, right, F_right)
        left, F_left, right, F_right = (np.concatenate([a[bent], b[bent]]) for a, b in zip(*halves, strict=True))
        parts = left, F_left, right, F_right
    t, F = _sorted(t, F)
    return t, np.maximum.accumulate(F)


def _nodes(s: Spectrum, k: int) -> tuple[Curve, np.ndarray]:
    """Of probe k's nodes that are no atoms: (the middle there, with jumps; points about those that it rises over slowly)."""
    theta, omega, last = gauss.gauss_rule(s.records[k])
    n, gone = s.records[k].steps, np.unique(s.removed[k]).astype(int)
    gap = np.full(len(theta), np.inf)  # what was deflated stands alone
    gap[:n] = np.minimum(np.diff(theta[:n], prepend=-np.inf), np.diff(theta[:n], append=np.inf))
    width, free = s.records[k].betas[-1] * last, np.ones(len(theta), dtype=bool)
    free[gone] = False
    mass, order, after = np.where(free, omega, 0.0), np.argsort(theta, kind="stable"), np.empty(len(theta))
    after[order] = np.cumsum(mass[order])
    after, mass = after / max(mass.sum(), TINY), mass / max(mass.sum(), TINY)
    jump, slow = free & (width <= JUMP * np.ptp(s.interval)), free & (width >= gap / 8)
    rise = free & ~jump & ~slow
    t = np.concatenate([theta[slow], theta[jump], theta[jump]])
    F = np.concatenate([(after - mass / 2)[slow], (after - mass)[jump], after[jump]])
    return (t, F), np.concatenate([theta[rise] + c * width[rise] for c in (-3, -1, 1, 3)])


def _sorted(t: np.ndarray, F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(t, kind="stable")
    return t[order], F[order]


def stated_error(s: Spectrum) -> dict[str, float]:
    """W1 error of the CDF of `s` relative to its range.

    "truncation": half the area of the certified envelope, "rounding": what finite precision alone leaves of it; "statistical":
    the mean over draws of the probes, from their exact variance; "w1": their sum; "w1_95" is exceeded in 5 % of the draws.
    """
    (low, high), r, K = s.interval, s.unresolved, len(s.nodes)
    one_value = high - low <= 16 * s.epsilon * s.scale  # the values of a multiple of I differ by rounding
    if r == 0 or one_value or not s.weights.any():
        return dict.fromkeys(("w1", "truncation", "rounding", "statistical", "w1_95"), 0.0)
    share = r / s.dim / (high - low)
    probes = list(zip(s.pooling, s.records, s.removed, strict=True))
    truncation, rounding = (
        share * sum(float(part) * bound(record, gone, low, high) for part, record, gone in probes)
        for bound in (gauss.truncation, gauss.rounding)
    )
    mass = s.weights * (s.dim / r * s.pooling[:, None])
    order = np.argsort(s.nodes[mass > 0], kind="stable")
    nodes, F = s.nodes[mass > 0][order], np.clip(np.cumsum(mass[mass > 0][order]), 0, 1)

    def mean(F: np.ndarray, nodes: np.ndarray) -> np.ndarray:  # of |noise| between nodes: E|z| of a normal z
        variance = np.asarray(gauss.pooled_variance(K, r, F[:-1] * (1 - F[:-1])))
        return np.sqrt(2 / np.pi * variance) * np.diff(nodes) * share

    parts = mean(F, nodes)
    statistical = float(parts.sum())
    cuts = np.searchsorted(np.cumsum(parts), np.linspace(0, statistical, CELLS + 1)[1:-1])
    some = np.unique(np.concatenate([[0], np.minimum(cuts, len(nodes) - 1), [len(nodes) - 1]]))
    coarse, worst = float(mean(F[some], nodes[some]).sum()), truncation
    if coarse > 0:
        worst += statistical / coarse * share * gauss.w1_noise(F[some], nodes[some], K, r)
    return {
        "w1": truncation + statistical, "w1_95": worst, "truncation": truncation, "rounding": rounding,
        "statistical": statistical,
    }  # fmt: skip
