"""Smoothed densities with bands, and their picture.

t is the coordinate of the axis: lambda, or log10 lambda. The quadrature part of a spectrum enters by the middle of its
certified CDF envelope on a fine grid of t, atoms enter one by one; both are smoothed by the same Gaussian kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from spectral import measure
from spectral.results import Density

if TYPE_CHECKING:
    from spectral.spectrum import Spectrum

LINEAR, LOG = 0.02, 0.1  # default kernels: 2 % of the range, a tenth of a decade
POINTS = 400
PER_KERNEL = 5  # grid points within one standard deviation of the kernel


def density(s: Spectrum, x: Any, resolution: float | None, scale: str, confidence: float) -> Density:
    """See `Spectrum.density`."""
    if scale not in ("linear", "log"):
        raise ValueError(f"scale={scale!r} is no scale; use 'linear' or 'log'.")
    if resolution is None:
        resolution = LINEAR if scale == "linear" else LOG
    if not resolution > 0:
        raise ValueError(f"resolution={resolution} is no width; use a positive number.")
    low, high = _support(s, scale)
    width = resolution if scale == "log" else resolution * ((high - low) or abs(high) or 1.0)
    t = np.linspace(low - 3 * width, high + 3 * width, POINTS) if x is None else _coordinate(x, scale)
    value, half, variance, shown = _smooth(s, t, width, scale)
    noise = float(ndtri((1 + confidence) / 2)) * np.sqrt(variance)
    points = t if scale == "linear" else 10.0**t
    per_unit = 1.0 if scale == "linear" else points * np.log(10)
    band = np.maximum(value - half - noise, 0.0), value + half + noise
    return Density(
        points,
        value / per_unit,
        band[0] / per_unit,
        band[1] / per_unit,
        resolution,
        scale,
        float(np.clip(1 - shown, 0, 1)),
    )


def _coordinate(x: Any, scale: str) -> np.ndarray:
    x = np.asarray(x, dtype=float).reshape(-1)
    if scale == "log" and (x <= 0).any():
        raise ValueError("scale='log' needs positive points x; use scale='linear' for others.")
    return np.log10(x) if scale == "log" else x


def _support(s: Spectrum, scale: str) -> tuple[float, float]:
    """Ends of the axis: all values, on the log scale those above rounding."""
    values, _ = s.points(zeros=False)
    if len(values) == 0:
        return 0.0, 0.0
    if scale == "linear":
        return float(values[0]), float(values[-1])
    floor = max(s.value_error, s.rounding)
    positive = values[values > floor]
    if len(positive) == 0:
        raise ValueError("the spectrum has no positive eigenvalue above rounding; use scale='linear'.")
    return float(np.log10(positive[0])), float(np.log10(positive[-1]))


def _smooth(s: Spectrum, t: np.ndarray, width: float, scale: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Per point: smoothed fraction per unit of t, half width of the envelope, probe variance; and the fraction on the axis."""
    left = t.min() - 4 * width

    def kernel(centre: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * ((t[:, None] - centre) / width) ** 2) / (width * np.sqrt(2 * np.pi))

    value, half, variance, shown = np.zeros_like(t), np.zeros_like(t), np.zeros_like(t), 0.0
    atoms, counts = s.atoms.values, s.atoms.multiplicities / s.dim
    on_axis = atoms > 10.0**left if scale == "log" else np.full(len(atoms), True)
    for part in np.array_split(np.flatnonzero(on_axis), 1 + on_axis.sum() // 2048):
        centre = np.log10(atoms[part]) if scale == "log" else atoms[part]
        value += kernel(centre) @ counts[part]
        shown += float(counts[part].sum())
    r = s.unresolved
    if r:
        step, right = width / PER_KERNEL, t.max() + 4 * width
        if (right - left) / step > 20_000:
            raise ValueError("the kernel is too narrow for the axis; raise resolution= or give fewer points x.")
        edges = np.arange(left, right + step, step)
        lower, upper = s._rest(10.0**edges if scale == "log" else edges)
        F = np.maximum.accumulate((lower + upper) / 2)  # the middle of two monotone bounds is so up to their rounding
        mass = np.maximum(np.diff(F), 0.0)
        centre = (edges[1:] + edges[:-1]) / 2
        K = kernel(centre)
        mean = K @ mass
        value += mean * (r / s.dim)
        # int K dF = -int K' F: F may be wrong by (upper - lower) / 2 anywhere
        half = np.abs(np.diff(kernel(edges), axis=1)) @ ((upper - lower)[1:] + (upper - lower)[:-1]) / 4 * (r / s.dim)
        spread = np.maximum(K**2 @ mass - mean**2, 0.0)
        variance = np.asarray(measure.pooled_variance(len(s.nodes), r, spread)) * (r / s.dim) ** 2
        shown += float(mass.sum()) * r / s.dim
    return value, half, variance, shown


def plot(s: Spectrum, ax: Any, scale: str, resolution: float | None, label: str | None, options: dict[str, Any]) -> Any:
    """See `Spectrum.plot`."""
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.subplots(figsize=(6, 4))[1]
    d = density(s, None, resolution, scale, 0.95)
    name = label if label is not None else f"{s.dim} eigenvalues, {s.method}"
    if d.outside > 5e-4:
        name += f" ({100 * d.outside:.3g} % not on this axis)"
    seen = d.value > 0
    (line,) = ax.plot(d.x[seen], d.value[seen], label=name, **options)
    ax.fill_between(d.x[seen], d.lower[seen], d.upper[seen], color=line.get_color(), alpha=0.25, linewidth=0)
    if scale == "log":
        ax.set_xscale("log")
        ax.set_yscale("log")
        peak = d.value.max()
        ax.set_ylim(max(d.value[seen].min(), peak * 1e-9) / 2, peak * 4)
    unit = "decades" if scale == "log" else "of the range"
    ax.set_xlabel("eigenvalue λ")
    ax.set_ylabel(f"density, fraction per unit of λ (kernel {d.resolution:g} {unit})")
    ax.legend(fontsize="small")
    return ax
