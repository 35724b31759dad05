"""Smoothed densities with bands.

rho(lambda) is the fraction of all eigenvalues per unit of lambda on either scale: the one unit of densities in this package.
t is the coordinate of the axis: lambda, or log10 lambda. The quadrature part of a spectrum enters by the middle of its
certified CDF envelope on a fine grid of t, atoms enter one by one; both are smoothed by the same Gaussian kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import scipy

from spectral.quadrature.pooled import Quadrature
from spectral.results import Atoms, Density
from spectral.schema import POSITIVE, choice, number

LOG = 0.1  # a tenth of a decade
KERNELS = {"linear": 0.02, "log": LOG}  # by default: 2 % of the range
POINTS = 400
SIGNED_DECADES = 5  # that a two-sided logarithmic axis has on each side of zero
PER_KERNEL = 5  # grid points within one standard deviation of the kernel
Q = TypeVar("Q", bound=Quadrature)


def density(s: Quadrature, x: Any, resolution: float | None, scale: str, confidence: float = 0.95) -> Density:
    """See `Spectrum.density`."""
    choice(scale, "scale", KERNELS)
    resolution = KERNELS[scale] if resolution is None else resolution
    number(resolution, "resolution", "width", POSITIVE)
    low, high = _support(s, scale)
    width = resolution if scale == "log" else resolution * ((high - low) or abs(high) or 1.0)
    t = np.linspace(low - 3 * width, high + 3 * width, POINTS) if x is None else _coordinate(x, scale)
    value, half, variance, shown = _smooth(s, t, width, scale)
    noise = float(scipy.special.ndtri((1 + confidence) / 2)) * np.sqrt(variance)
    points = t if scale == "linear" else 10.0**t
    per_unit = 1.0 if scale == "linear" else points * np.log(10)
    lower, upper = np.maximum(value - half - noise, 0.0), value + half + noise
    value, lower, upper = (v / per_unit for v in (value, lower, upper))
    return Density(points, value, lower, upper, resolution, scale, float(np.clip(1 - shown, 0, 1)))


def _coordinate(x: Any, scale: str) -> np.ndarray:
    x = np.asarray(x, dtype=float).reshape(-1)
    if scale == "log" and (x <= 0).any():
        raise ValueError("scale='log' needs positive points x; use scale='linear' for others.")
    return np.asarray(np.log10(x) if scale == "log" else x)


def _support(s: Quadrature, scale: str) -> tuple[float, float]:
    """Ends of the axis: all values, on the log scale those above rounding."""
    values, _ = s.points(zeros=False)
    if len(values) == 0:
        return 0.0, 0.0
    if scale == "linear":
        return float(values[0]), float(values[-1])
    shown = positive(s)
    if len(shown) == 0:
        raise ValueError("the spectrum has no positive eigenvalue above rounding; use scale='linear'.")
    return float(np.log10(shown[0])), float(np.log10(shown[-1]))


def _smooth(s: Quadrature, t: np.ndarray, width: float, scale: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Per point: smoothed fraction per unit of t, half width of the envelope, probe variance; and the fraction on the axis."""
    left = t.min() - 4 * width

    def kernel(centre: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # far away it is 0
            return np.asarray(np.exp(-0.5 * ((t[:, None] - centre) / width) ** 2) / (width * np.sqrt(2 * np.pi)))

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
        lower, upper = s.envelope(10.0**edges if scale == "log" else edges)
        F = np.maximum.accumulate((lower + upper) / 2)  # the middle of two monotone bounds is so up to their rounding
        mass = np.maximum(np.diff(F), 0.0)
        centre = (edges[1:] + edges[:-1]) / 2
        K = kernel(centre)
        mean = K @ mass
        value += mean * (r / s.dim)
        # int K dF = -int K' F: F may be wrong by (upper - lower) / 2 anywhere
        half = np.abs(np.diff(kernel(edges), axis=1)) @ ((upper - lower)[1:] + (upper - lower)[:-1]) / 4 * (r / s.dim)
        spread = np.maximum(K**2 @ mass - mean**2, 0.0)
        variance = np.asarray(s.noise(spread)) * (r / s.dim) ** 2
        shown += float(mass.sum()) * r / s.dim
    return value, half, variance, shown


# Both signs ----------------------------------------------------------------------------------------------------------
def positive(s: Quadrature) -> np.ndarray:
    """The eigenvalues that a logarithmic axis can show, ascending: positive and above their own rounding."""
    values, _ = s.points(zeros=False)
    return values[values > s.floor]


def mirrored(s: Q) -> Q:
    """The spectrum of -A, whose positive side is the negative side of A; bands and atoms go along."""
    records = tuple(replace(record, alphas=-record.alphas, known=-record.known) for record in s.records)
    removed = tuple(  # Ritz values turn round, what was deflated stays behind them; rows follow the atoms
        np.where(gone < record.steps, record.steps - 1 - gone, gone)[::-1]
        for record, gone in zip(records, s.removed, strict=True)
    )
    atoms = Atoms(-s.atoms.values[::-1], s.atoms.multiplicities[::-1])
    meta = {**s.meta, "nonnegative": False}
    return replace(s, nodes=-s.nodes, atoms=atoms, records=records, removed=removed, meta=meta)


def is_signed(s: Quadrature) -> bool:
    """Whether it has negative eigenvalues beyond rounding: its logarithmic axis then has two sides."""
    return not s.nonnegative and bool((s.points(zeros=False)[0] < -s.floor).any())


def signed_floor(spectra: Iterable[Quadrature]) -> float:
    """|lambda| from which a two-sided axis is logarithmic: `SIGNED_DECADES` below the largest |lambda| of the spectra."""
    return max(s.scale for s in spectra) * 10.0**-SIGNED_DECADES


def per_efold(s: Quadrature, grid: np.ndarray, resolution: float = LOG) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """lambda rho(lambda) at the positive points of `grid`, with its band: value, lower, upper.

    It is the density per unit of ln lambda, so that on a logarithmic axis equal areas are equal numbers of eigenvalues. rho
    itself falls by as many decades as lambda spans: the bulk hides its shape, and the outliers leave the picture.
    """
    if not len(positive(s)):
        return np.zeros_like(grid), np.zeros_like(grid), np.zeros_like(grid)
    d = density(s, grid, resolution, "log")
    return d.value * grid, d.lower * grid, d.upper * grid


def one_eigenvalue(dim: int, resolution: float = LOG) -> float:
    """The peak that a single eigenvalue of `dim` has in `per_efold`.

    >>> round(100 * one_eigenvalue(100), 2)
    1.73
    """
    return float(1 / (dim * resolution * np.sqrt(2 * np.pi) * np.log(10)))
