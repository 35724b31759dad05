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

from spectral import measure

if TYPE_CHECKING:
    from spectral.spectrum import Spectrum

Curve = tuple[np.ndarray, np.ndarray]
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


def pooled(curves: Sequence[Curve], shares: Sequence[float]) -> Curve:
    """sum_i shares_i curves_i; the shares sum to 1."""
    x = np.unique(np.concatenate([t for t, _ in curves]))
    left, right = np.zeros_like(x), np.zeros_like(x)
    for curve, share in zip(curves, shares, strict=True):
        before, after = limits(curve, x)
        left, right = left + share * before, right + share * after
    return np.repeat(x, 2), np.column_stack([left, right]).reshape(-1)


def distance(a: Curve, b: Curve, kind: str) -> float:
    """W1 = int |F - G| dx, exactly, or KS = max |F - G|."""
    x = np.unique(np.concatenate([a[0], b[0]]))
    (a_left, a_right), (b_left, b_right) = limits(a, x), limits(b, x)
    left, right = a_left - b_left, a_right - b_right
    if kind == "ks":
        return float(max(np.abs(left).max(), np.abs(right).max()))
    begin, end = right[:-1], left[1:]
    size = np.abs(begin) + np.abs(end)  # the line from begin to end: a trapezium, or two triangles
    area = np.where(begin * end >= 0, size, (begin**2 + end**2) / np.maximum(size, 1e-300)) / 2
    return float(area @ np.diff(x))


def of(s: Spectrum, without: int | None = None) -> Curve:
    """The CDF of a spectrum: its atoms, its known zeros, and the rest by all probes or by all but one."""
    values, counts = s.points() if s.unresolved == 0 else s.known_points()
    steps = [staircase(values, counts)] if len(values) else []
    if s.unresolved == 0:
        return steps[0]
    keep = [k for k in range(len(s.nodes)) if k != without]
    rest = s.unresolved / s.dim
    shares = [*(s.pooling[keep] / s.pooling[keep].sum() * rest), 1 - rest]
    return pooled([s.probe_curves[k] for k in keep] + steps, shares[: len(keep) + len(steps)])


def of_probe(s: Spectrum, k: int) -> Curve:
    """The middle of probe k's envelope over the range of `s`, off the atoms; steps where its rule is exact or has no record."""
    if not s.records or s.records[k].betas[-1] == 0:
        held = s.weights[k] > 0
        order = np.argsort(s.nodes[k][held], kind="stable")
        return staircase(s.nodes[k][held][order], s.weights[k][held][order])
    t, _ = measure.graded(s.records[k], s.removed[k], *s.interval)
    lower, upper = s.probe_envelope(k, t)
    return t, np.maximum.accumulate((lower + upper) / 2)


def stated_error(s: Spectrum) -> dict[str, float]:
    """W1 error of the CDF of `s` relative to its range.

    "truncation": half the area of the certified envelope, "rounding": what finite precision alone leaves of it; "statistical":
    the mean over draws of the probes, from their exact variance; "w1": their sum; "w1_95" is exceeded in 5 % of the draws.
    """
    (low, high), r, K = s.interval, s.unresolved, len(s.nodes)
    eps = max((measure.epsilon(record) for record in s.records), default=2.0**-52)
    one_value = high - low <= 16 * eps * s.scale  # the values of a multiple of I differ by rounding
    if r == 0 or one_value or not s.weights.any():
        return dict.fromkeys(("w1", "truncation", "rounding", "statistical", "w1_95"), 0.0)
    share = r / s.dim / (high - low)
    probes = list(zip(s.pooling, s.records, s.removed, strict=True))
    truncation, rounding = (
        share * sum(float(part) * bound(record, gone, low, high) for part, record, gone in probes)
        for bound in (measure.truncation, measure.rounding)
    )
    mass = s.weights * (s.dim / r * s.pooling[:, None])
    order = np.argsort(s.nodes[mass > 0], kind="stable")
    nodes, F = s.nodes[mass > 0][order], np.clip(np.cumsum(mass[mass > 0][order]), 0, 1)

    def mean(F: np.ndarray, nodes: np.ndarray) -> np.ndarray:  # of |noise| between nodes: E|z| of a normal z
        variance = np.asarray(measure.pooled_variance(K, r, F[:-1] * (1 - F[:-1])))
        return np.sqrt(2 / np.pi * variance) * np.diff(nodes) * share

    parts = mean(F, nodes)
    statistical = float(parts.sum())
    cuts = np.searchsorted(np.cumsum(parts), np.linspace(0, statistical, CELLS + 1)[1:-1])
    some = np.unique(np.concatenate([[0], np.minimum(cuts, len(nodes) - 1), [len(nodes) - 1]]))
    coarse, worst = float(mean(F[some], nodes[some]).sum()), truncation
    if coarse > 0:
        worst += statistical / coarse * share * measure.w1_noise(F[some], nodes[some], K, r)
    return {
        "w1": truncation + statistical, "w1_95": worst, "truncation": truncation, "rounding": rounding,
        "statistical": statistical,
    }  # fmt: skip
