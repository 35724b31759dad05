"""One spectrum drawn on matplotlib's axes, and the axis of eigenvalues that every picture of this package has.

On a linear axis the density rho(lambda) is drawn, on a logarithmic one lambda rho(lambda): equal areas are equal numbers of
eigenvalues on both. rho is the fraction of eigenvalues per unit of lambda, as `Spectrum.density` gives it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spectral import cards
from spectral.cards import COLOURS
from spectral.quadrature.density import (
    LOG,
    SIGNED_DECADES,
    density,
    is_signed,
    mirrored,
    one_eigenvalue,
    per_efold,
    positive,
    signed_floor,
)
from spectral.quadrature.pooled import Quadrature
from spectral.results import Density

LABELS = {  # fractions are of all eigenvalues
    "linear": "ρ(λ): fraction per unit of λ",
    "log": "λ·ρ(λ),  ρ: fraction per unit of λ",
    "signed": "|λ|·ρ(λ),  ρ: fraction per unit of λ",
}
POINTS = 400  # of each side of a two-sided axis
MARGIN = 1.7  # factor of lambda beyond the outermost eigenvalue
FLOOR = 0.075  # of the peak of a single eigenvalue: where the flanks of its kernel end
GAP = (0.5, 0.5, 0.5, 0.18)  # the strip around zero that a two-sided axis does not draw, grey on white and on black
Limits = tuple[float, float]
Curve = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x, value, lower, upper


def plot(s: Quadrature, ax: Any, scale: str, resolution: float | None, name: str, options: dict[str, Any]) -> Any:
    """See `Spectrum.plot`; `name` stands in the legend."""
    import matplotlib.pyplot as plt

    curves, outside, width = _curves(s, scale, resolution)
    if ax is None:
        ax = plt.subplots(figsize=(6, 4))[1]
    before = _before(ax, scale)
    if not {"color", "c"} & options.keys():
        options = {**options, "color": COLOURS[len(ax.get_legend_handles_labels()[1]) % len(COLOURS)]}
    if outside > 5e-4:
        name += f" ({100 * outside:.3g} % not on this axis)"
    floor = FLOOR * one_eigenvalue(s.meta.get("dimension", s.dim), width) if scale == "log" else 0.0
    for place, (x, value, lower, upper) in enumerate(curves):
        (line,) = ax.plot(x, np.where(value > floor, value, np.nan), label=name if place == 0 else "_", **options)
        options = {**options, "color": line.get_color()}
        lower, upper = np.maximum(lower, floor), np.maximum(upper, floor)
        ax.fill_between(x, lower, upper, color=line.get_color(), alpha=0.25, linewidth=0)
    if scale == "log":
        _logarithmic(ax, curves, floor, before)
    ax.set_xlabel(f"eigenvalue λ (smoothed by {width:g} {'decades' if scale == 'log' else 'of the range'})")
    ax.set_ylabel(LABELS["signed" if scale == "log" and ax.get_xscale() == "symlog" else scale])
    ax.legend(fontsize="small")
    return ax


def shared_grid(spectra: Sequence[Quadrature], points: int, decades: float = math.inf) -> tuple[np.ndarray, bool]:
    """A logarithmic grid that all eigenvalues lie on, as far as `decades` below the largest; () where none is positive.

    Where one spectrum has negative eigenvalues: of |λ| from `signed_floor` on, and True.
    """
    if any(map(is_signed, spectra)):
        low = signed_floor(spectra)
        return np.geomspace(low, low * 10.0**SIGNED_DECADES * MARGIN, points), True
    shown = np.concatenate([positive(s) for s in spectra])
    if not len(shown):
        return shown, False
    low, high = float(shown.min()), float(shown.max())
    return np.geomspace(max(low, high * 10.0**-decades) / MARGIN, high * MARGIN, points), False


def waterfall(spectra: Mapping[int, Quadrature], ax: Any) -> Any:
    """Densities over the steps of a training: lambda along, steps up, lambda rho(lambda) as colour on a logarithmic scale.

    A single eigenvalue is seen: the colours begin where the flanks of its kernel end.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    steps, each = np.array(sorted(spectra), dtype=float), [spectra[step] for step in sorted(spectra)]
    grid, signed = shared_grid(each, POINTS)
    if not len(grid):
        raise ValueError(
            "no spectrum has an eigenvalue above rounding; there is nothing to draw on a logarithmic axis."
        )
    middles = (steps[1:] + steps[:-1]) / 2
    first, last = (middles[0] - steps[0], steps[-1] - middles[-1]) if len(middles) else (0.5, 0.5)
    edges = np.concatenate([[steps[0] - first], middles, [steps[-1] + last]])
    sides = [(1, [per_efold(s, grid)[0] for s in each])]
    sides += [(-1, [per_efold(mirrored(s), grid)[0] for s in each])] if signed else []
    least = min(FLOOR * one_eigenvalue(s.dim, LOG) for s in each)
    norm = LogNorm(least, max(10 * least, *(float(np.max(values)) for _, values in sides)))
    x = np.append(grid / (grid[1] / grid[0]) ** 0.5, grid[-1] * (grid[1] / grid[0]) ** 0.5)
    for sign, values in sides:
        mesh = ax.pcolormesh(
            sign * x, edges, np.maximum(values, least), norm=norm, cmap="cividis", rasterized=True, shading="flat"
        )
    eigenvalue_axis(ax, float(grid[0]), float(grid[-1]), signed)
    ax.set(xlabel="eigenvalue λ (smoothed by 0.1 decades)", ylabel="step")
    plt.colorbar(mesh, ax=ax, label=LABELS["signed" if signed else "log"])
    return ax


def over_steps(history: Mapping[str, np.ndarray], ax: Any, title: str) -> Any:
    """Numbers over the steps of a training, with what bounds them: `step`, and NAME, NAME_lower, NAME_upper for each."""
    names = [name for name in history if f"{name}_lower" in history]
    for i, name in enumerate(names):
        y, errors = history[name], [history[f"{name}_lower"], history[f"{name}_upper"]]
        half = np.nan_to_num(np.abs(np.array(errors) - y), nan=0.0, posinf=0.0)
        colour, label = COLOURS[i % len(COLOURS)], name.replace("_", " ")
        ax.errorbar(history["step"], y, yerr=half, fmt=".-", color=colour, capsize=2, label=label)
    ax.set(xlabel="step", title=title)
    if len(names) > 1:
        ax.legend(fontsize="small")
    return ax


def card(s: Quadrature, said: str, trace: str, took: str) -> str:
    """A notebook's view of a spectrum: what it is, its trace (of one vector the mean), how sure it is and what it took."""
    vectors = "Lanczos from that vector" if s.of_vector else cards.counted(len(s.nodes), "random vector")
    sure = "all are exact" if s.is_exact else vectors
    error = s.meta.get("error")
    if not s.is_exact and isinstance(error, dict) and "w1" in error:
        sure += f"; off by {float(error['w1']):.2g} of the range (W1)"
    known = f"{s.atoms.multiplicities.sum()}, {s.zeros}"
    rows = [("mean" if s.of_vector else "trace", trace), ("exact, known zeros", known)]
    return cards.card(said, [*rows, ("how sure", sure), ("it took", took)], picture(s, said))


def picture(s: Quadrature, alt: str) -> str:
    """The density with its band as a small SVG, on the logarithmic axis of `Spectrum.plot`; "" where nothing is on it."""
    signed = is_signed(s)
    if not signed and not len(positive(s)):
        return ""
    curves, _, width = _curves(s, "log", None)
    floor = FLOOR * one_eigenvalue(s.dim, width)

    def draw(ax: Any) -> None:
        for x, v, a, b in curves:
            cards.Mark(x, np.where(v > floor, v, np.nan), np.maximum(a, floor), np.maximum(b, floor)).draw(ax)
        ax.set(xlabel="eigenvalue λ", ylabel="|λ| ρ(λ)" if signed else "λ ρ(λ)")
        _logarithmic(ax, curves, floor, None)

    return cards.svg(draw, alt)


def _curves(s: Quadrature, scale: str, resolution: float | None) -> tuple[list[Curve], float, float]:
    """What is drawn, a curve for each side of zero; the fraction that is not on the axis; the kernel's width."""
    if scale != "log" or not is_signed(s):
        d = density(s, None, resolution, scale)
        return [_drawn(d, d.x if scale == "log" else 1.0)], d.outside, d.resolution
    grid = shared_grid([s], POINTS)[0]
    both = [(sign, side) for sign, side in ((1, s), (-1, mirrored(s))) if len(positive(side))]
    sides = [(sign, density(side, grid, resolution, "log")) for sign, side in both]
    curves = [(sign * grid, *_drawn(d, grid)[1:]) for sign, d in sides]
    return curves, 1 - sum(1 - d.outside for _, d in sides), sides[0][1].resolution


def _drawn(d: Density, factor: Any) -> Curve:
    return d.x, d.value * factor, d.lower * factor, d.upper * factor


def _logarithmic(ax: Any, curves: Sequence[Curve], floor: float, before: tuple[Limits, Limits] | None) -> None:
    """Logarithmic axes that show the curves from `floor` on, and what was there `before`."""
    ends = [abs(float(x)) for curve in curves for x in curve[0][[0, -1]]]
    top = max(floor, *(float(curve[3].max()) for curve in curves))
    ax.set_yscale("log")
    ax.set_ylim(*_union((floor, 2 * top), before and before[1]))
    eigenvalue_axis(ax, min(ends), max(ends), len(curves) > 1 or curves[0][0][0] < 0, before and before[0])


def _before(ax: Any, scale: str) -> tuple[Limits, Limits] | None:
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


def eigenvalue_axis(ax: Any, low: float, high: float, signed: bool, before: Limits | None = None) -> None:
    """A logarithmic axis of lambda from `low` to `high`, or over both signs of it with a grey gap around zero.

    `before` are the limits of what the axes show already: nothing of it is hidden, and one signed curve makes the axis
    two-sided for all.
    """
    from matplotlib.ticker import NullLocator

    if before is not None:
        if ax.get_xscale() == "symlog":
            signed, low = True, min(low, ax.xaxis.get_transform().linthresh)
        else:
            low = min([low, *(x for x in before if x > 0)])
        high = max(high, *map(abs, before))
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
    cards.thin_ticks(ax)
