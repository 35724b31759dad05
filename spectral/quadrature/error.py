"""The errors that are stated of CDFs: of one, in W1 from the truth; of the distance of two, from both or from probe to probe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from spectral.quadrature import beta, cdf
from spectral.quadrature.certificate import truncation
from spectral.quadrature.pooled import Quadrature

Units = tuple[Sequence[float] | None, Sequence[float] | None]
CELLS = 128  # of equal noise, on which draws of the probes are simulated; cut where noise says, and not at a node


def stated_error(q: Quadrature) -> dict[str, float]:
    """W1 error of the CDF of `q` relative to its range (`_range`).

    "truncation": half the area of the certified envelope, "rounding": what finite precision alone leaves of it; "statistical":
    the mean over draws of the probes, from their exact variance; "w1": their sum; "w1_95" is exceeded in 5 % of the draws.
    """
    (low, high), r, K = _range(q), q.unresolved, len(q.nodes)
    one_value = high - low <= 16 * q.epsilon * q.scale  # the values of a multiple of I differ by rounding
    if r == 0 or one_value or not q.weights.any():
        return dict.fromkeys(("w1", "truncation", "rounding", "statistical", "w1_95"), 0.0)
    share = r / q.dim / (high - low)
    probes = [truncation(record, gone, low, high) for record, gone in zip(q.records, q.removed, strict=True)]
    truncated, rounding = (share * float(part) for part in q.pooling @ probes)
    held = q.mass > 0
    order = np.argsort(q.nodes[held], kind="stable")
    nodes, mass = q.nodes[held][order], beta.located(q.nodes, q.mass, 1 / r)[held][order]
    F = np.clip(np.cumsum(mass / mass.sum()), 0, 1)  # a mass that was drawn too light would hide its noise

    def mean(F: np.ndarray) -> np.ndarray:  # of |noise| of the CDF where it is F: E|z| of a normal z
        return np.sqrt(2 / np.pi * np.asarray(q.noise(F * (1 - F))))

    parts = mean(F[:-1]) * np.diff(nodes) * share  # constant between nodes
    statistical, worst = float(parts.sum()), truncated
    if statistical > 0:
        # a cell's F is its mean by noise, its width what gives it an equal share: both move no further than the nodes do
        ends = np.linspace(0, statistical, CELLS + 1)
        held_by, below = (np.concatenate([[0.0], np.cumsum(x)]) for x in (parts, parts * F[:-1]))
        cells = np.diff(np.interp(ends, held_by, below)) * CELLS / statistical
        worst += beta.w1_noise(cells, statistical / CELLS / mean(cells), K, r)
    return {
        "w1": truncated + statistical, "w1_95": worst, "truncation": truncated, "rounding": rounding,
        "statistical": statistical,
    }  # fmt: skip


def _range(q: Quadrature) -> tuple[float, float]:
    """`q.interval`, with alpha -+ beta of a probe of one step, whose node says nothing of how far the eigenvalues reach.

    A beta of moments that end in rounding is that.
    """
    single = [record for record in q.records if record.steps == 1 and record.stop != "rounding"]
    ends = [record.alphas[0] + record.betas[0] * np.array([-1.0, 1.0]) for record in single]
    every = np.concatenate([q.interval, *ends])
    return float(every.min()), float(every.max())


def between(
    a: Quadrature,
    b: Quadrature,
    kind: str,
    units: tuple[float, float] = (1.0, 1.0),
    without: Units = (None, None),
    unsure: tuple[float, float] = (0.0, 0.0),
) -> tuple[float, float]:
    """(W1 or KS between two CDFs, each divided by its unit; its error).

    W1 obeys the triangle inequality, so that it is off by no more than both CDFs are in W1, of which `stated_error` knows the
    law: its error is theirs, in quadrature, w1_95 being two of them, and what each unit may be off by, `unsure`. That of KS is
    its `jackknife_error` over the probes of both (nan if one has a single probe; `without`: each one's unit without probe k,
    (K,), where it moves along), with half the certified envelopes of both where the distance is largest: within them a crowd of
    eigenvalues that one node stands for may lie anywhere. Both are 0 of exact spectra and of measures of one vector. KS looks at
    points that rounding tells apart: steps of one eigenvalue, 1e-16 apart, are no distance.
    """
    scaled = [(q.curve[0] / unit, q.curve[1]) for q, unit in zip((a, b), units, strict=True)]
    x = np.unique(np.concatenate([scaled[0][0], scaled[1][0]]))
    whole = [cdf.limits(curve, x) for curve in scaled]
    left, right = whole[0][0] - whole[1][0], whole[0][1] - whole[1][1]
    if kind == "wasserstein":
        errors = map(_own, (a, b), units, unsure)
        return float(cdf.distances(left, right, x, kind)), math.hypot(*errors)
    apart = float(sum(q.floor / unit for q, unit in zip((a, b), units, strict=True)))
    of = cdf.told_apart(x, apart)
    first, last = (np.searchsorted(of, np.unique(of), side) for side in ("left", "right"))
    last -= 1
    i, j = first[np.abs(left[first]).argmax()], last[np.abs(right[last]).argmax()]
    at = x[i] - apart if abs(left[i]) >= abs(right[j]) else x[j] + apart
    envelopes = sum(_half_envelope(q, at * unit) for q, unit in zip((a, b), units, strict=True))
    value = float(cdf.distances(left[first], right[last], x, kind))
    rest = []
    for q, unit, own, other in ((a, units[0], without[0], whole[1]), (b, units[1], without[1], whole[0])):
        if not (q.is_exact or q.of_vector):
            left, right = q.without_each(x * unit)
            if own is not None:
                rows = zip(left, right, own, strict=True)
                moved = [cdf.limits(cdf.joined(x * unit, l, r), x * one) for l, r, one in rows]
                left, right = np.array([l for l, _ in moved]), np.array([r for _, r in moved])
            rest.append(cdf.distances((left - other[0])[..., first], (right - other[1])[..., last], x, kind))
    return value, float(np.hypot(jackknife_error(value, rest), envelopes))


def _own(q: Quadrature, unit: float, unsure: float) -> float:
    """How far the CDF of q in its unit may be from the truth in W1, as a standard error."""
    if q.is_exact or q.of_vector:
        return 0.0
    low, high = _range(q)
    error, (x, c) = q.meta.get("error") or stated_error(q), q.points()
    return (float(error["w1_95"]) * (high - low) / 1.96 + float(c @ np.abs(x)) / q.dim * unsure / unit) / unit


def _half_envelope(q: Quadrature, x: float) -> float:
    """How far the middle of the certified envelope may be from the CDF at x, of the vectors that were drawn."""
    if q.is_exact or q.of_vector or not q.records:
        return 0.0
    low, high = q.envelope(np.array([x]))
    return float(high[0] - low[0]) / 2 * q.unresolved / q.dim


def jackknife_error(value: float, rest: Sequence[np.ndarray]) -> float:
    """√(variance + bias²) of a function of independent samples, by leaving one member out of each: `rest` (samples, K).

    Distances between estimates are too large by what noise adds, and the scatter alone does not see that. For a function of
    means that is quadratic near the truth the bias Σ (K − 1)(mean − value) is exact (Quenouille 1956). 0 without samples, nan
    for one of a single member.
    """
    if any(len(values) < 2 for values in rest):
        return float("nan")
    bias = sum((len(values) - 1) * (float(values.mean()) - value) for values in rest)
    return float(np.sqrt(sum(map(jackknife_variance, rest)) + bias**2))


def jackknife_variance(values: np.ndarray) -> float:
    """(K - 1) / K sum (v - mean)^2 of K leave-one-out values, nan for one (Tukey 1958)."""
    K = len(values)
    return (K - 1) / K * float(np.square(values - values.mean()).sum()) if K > 1 else float("nan")
