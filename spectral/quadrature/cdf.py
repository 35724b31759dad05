"""CDFs as curves: piecewise linear between ascending points t (X,), with jumps where a point stands twice; their distances.

A staircase knows nothing between its nodes; the middle of the certified envelope does (Nex 1978), and is what `Spectrum.cdf`
gives.
Left of its first point a curve is 0, right of its last point 1. All arrays are float64 numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Curve = tuple[np.ndarray, np.ndarray]


def staircase(values: np.ndarray, masses: np.ndarray) -> Curve:
    """The CDF of a discrete measure: values (V,) ascending, masses (V,) with sum 1."""
    after = np.cumsum(masses)
    after /= after[-1]
    return np.repeat(values, 2), np.column_stack([np.append(0.0, after[:-1]), after]).reshape(-1)


def ascending(t: np.ndarray, F: np.ndarray) -> Curve:
    """Points and their values in the order of the points; equal points stay in theirs."""
    order = np.argsort(t, kind="stable")
    return t[order], F[order]


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
    return joined(x, left, right)


def joined(x: np.ndarray, left: np.ndarray, right: np.ndarray) -> Curve:
    """The curve with these limits at ascending points x."""
    return np.repeat(x, 2), np.column_stack([left, right]).reshape(-1)


def told_apart(values: np.ndarray, rounding: float) -> np.ndarray:
    """The index of each value's group in sorted `values`: one that rounding does not tell from the first of a group is in it.

    >>> told_apart(np.array([3.0, 2.0, 2.0 - 1e-15, 1.0]), 1e-14)
    array([0, 1, 1, 2])
    """
    index, group, first = np.empty(len(values), np.int64), -1, np.inf
    for i, value in enumerate(values.tolist()):
        if abs(value - first) > rounding:
            group, first = group + 1, value
        index[i] = group
    return index


def distances(left: np.ndarray, right: np.ndarray, x: np.ndarray, kind: str) -> np.ndarray:
    """W1 = int |F - G| dx, exactly, or KS = max |F - G|, from F - G just left and right of ascending points x (X,).

    `left` and `right` are (X,) or several at once, (..., X); F - G is 0 outside of x.
    """
    if kind == "ks":
        return np.asarray(np.maximum(np.abs(left).max(-1), np.abs(right).max(-1)))
    begin, end = right[..., :-1], left[..., 1:]
    size = np.abs(begin) + np.abs(end)  # the line from begin to end: a trapezium, or two triangles
    area = np.where(begin * end >= 0, size, (begin**2 + end**2) / np.maximum(size, 1e-300)) / 2
    return np.asarray(area @ np.diff(x))


def distance(a: Curve, b: Curve, kind: str) -> float:
    """W1 or KS of two curves."""
    x = np.unique(np.concatenate([a[0], b[0]]))
    (a_left, a_right), (b_left, b_right) = limits(a, x), limits(b, x)
    return float(distances(a_left - b_left, a_right - b_right, x, kind))
