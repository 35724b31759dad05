"""One spectrum drawn on matplotlib's axes, and the axis of eigenvalues that every picture of this package has.

On a linear axis the density rho(lambda) is drawn, on a logarithmic one lambda rho(lambda): equal areas are equal numbers of
eigenvalues on both. rho is the fraction of eigenvalues per unit of lambda, as `Spectrum.density` gives it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from spectral.quadrature.density import (
    LOG,
    SIGNED_DECADES,
    density,
    is_signed,
    mirrored,
    one_eigenvalue,
    positive,
    signed_floor,
)

if TYPE_CHECKING:
    from spectral.spectrum import Spectrum

LABELS = {  # fractions are of all eigenvalues
    "linear": "ρ(λ): fraction per unit of λ",
    "log": "λ·ρ(λ),  ρ: fraction per unit of λ",
    "signed": "|λ|·ρ(λ),  ρ: fraction per unit of λ",
}
POINTS = 400  # of each side of a two-sided axis
MARGIN = 1.7  # factor of lambda beyond the outermost eigenvalue
FLOOR = 0.075  # of the peak of a single eigenvalue: where the flanks of its kernel end
GAP = "#e9e9e9"  # the strip around zero that a two-sided axis does not draw
Limits = tuple[float, float]
Curve = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x, value, lower, upper


def plot(s: Spectrum, ax: Any, scale: str, resolution: float | None, label: str | None, options: dict[str, Any]) -> Any:
    """See `Spectrum.plot`."""
    import matplotlib.pyplot as plt

    curves, outside, width = _curves(s, scale, resolution)
    if ax is None:
        ax = plt.subplots(figsize=(6, 4))[1]
    before = _before(ax, scale)
    name = label if label is not None else f"{s.dim} eigenvalues, {s.method}"
    if outside > 5e-4:
        name += f" ({100 * outside:.3g} % not on this axis)"
    floor = FLOOR * one_eigenvalue(s.dim, width) if scale == "log" else 0.0
    for place, (x, value, lower, upper) in enumerate(curves):
        (line,) = ax.plot(x, np.where(value > floor, value, np.nan), label=name if place == 0 else "_", **options)
        options = {**options, "color": line.get_color()}
        ax.fill_between(
            x, np.maximum(lower, floor), np.maximum(upper, floor), color=line.get_color(), alpha=0.25, linewidth=0
        )
    unit = "of the range"
    if scale == "log":
        unit = "decades"
        ends = [abs(float(x)) for curve in curves for x in (curve[0][0], curve[0][-1])]
        top = max(floor, *(float(curve[3].max()) for curve in curves))
        ax.set_yscale("log")
        ax.set_ylim(*_union((floor, 2 * top), before and before[1]))
        eigenvalue_axis(ax, min(ends), max(ends), len(curves) > 1 or curves[0][0][0] < 0, before and before[0])
    two_sided = scale == "log" and ax.get_xscale() == "symlog"
    ax.set_xlabel(f"eigenvalue λ (smoothed by {width:g} {unit})")
    ax.set_ylabel(LABELS["signed" if two_sided else scale])
    ax.legend(fontsize="small")
    return ax


def _curves(s: Spectrum, scale: str, resolution: float | None) -> tuple[list[Curve], float, float]:
    """What is drawn, a curve for each side of zero; the fraction that is not on the axis; the kernel's width."""
    if scale != "log" or not is_signed(s):
        d = density(s, None, resolution, scale, 0.95)
        factor = d.x if scale == "log" else 1.0
        return [(d.x, d.value * factor, d.lower * factor, d.upper * factor)], d.outside, d.resolution
    low = signed_floor([s])
    grid = np.geomspace(low, low * 10.0**SIGNED_DECADES * MARGIN, POINTS)
    curves, shown, width = [], 0.0, LOG
    for sign, side in ((1, s), (-1, mirrored(s))):
        if len(positive(side)):
            d = density(side, grid, resolution, "log", 0.95)
            curves.append((sign * grid, d.value * grid, d.lower * grid, d.upper * grid))
            shown, width = shown + 1 - d.outside, d.resolution
    return curves, 1 - shown, width


def _before(ax: Axes, scale: str) -> tuple[Limits, Limits] | None:
    """The limits of what the axes show already, None where they are empty; ValueError for a density on another scale."""
    if not ax.has_data():
        return None
    other = {"linear": ("log", "signed"), "log": ("linear",)}[scale]
    if ax.get_ylabel() in [LABELS[name] for name in other]:
        raise ValueError(
            f"ax shows a spectrum with scale={other[0]!r}, and scale={scale!r} draws another quantity; use one scale for both."
        )
    return ax.get_xlim(), ax.get_ylim()


def _union(ends: Limits, before: Limits | None) -> Limits:
    """The limits of a logarithmic axis that show both."""
    if before is None:
        return ends
    return min([ends[0], *(x for x in before if x > 0)]), max(ends[1], *before)


def eigenvalue_axis(ax: Axes, low: float, high: float, signed: bool, before: Limits | None = None) -> None:
    """A logarithmic axis of lambda from `low` to `high`, or over both signs of it with a grey gap around zero.

    `before` are the limits of what the axes show already: nothing of it is hidden, and one signed curve makes the axis
    two-sided for all.
    """
    if before is not None:
        transform = ax.xaxis.get_transform()
        signed = signed or isinstance(transform, SymmetricalLogTransform)
        low = min(low, transform.linthresh) if isinstance(transform, SymmetricalLogTransform) else low
        if signed:
            low, high = (
                min([low, *(x for x in before if x > 0 and ax.get_xscale() == "log")]),
                max(high, *map(abs, before)),
            )
        else:
            low, high = _union((low, high), before)
    if signed:
        ax.set_xscale("symlog", linthresh=low, linscale=0.3)
        ax.set_xlim(-high, high)
        powers = [10.0**power for power in range(math.floor(math.log10(high)), math.floor(math.log10(10 * low)), -2)]
        ax.set_xticks([*(-p for p in powers), 0.0, *reversed(powers)])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.axvspan(-low, low, color=GAP, linewidth=0, zorder=0)
    else:
        ax.set_xscale("log")
        ax.set_xlim(low, high)
    thin_ticks(ax)


def thin_ticks(ax: Axes) -> None:
    """At most six decades labelled on each logarithmic axis, and no ticks between them where there are many."""
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(numticks=7))
            axis.set_minor_formatter(NullFormatter())
            if high > 1e3 * low:
                axis.set_minor_locator(NullLocator())
