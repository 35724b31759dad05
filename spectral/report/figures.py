"""The pictures: densities and distribution functions with bands, effect sizes, label alignment, alpha(xmin), training.

Every function returns a `matplotlib.figure.Figure` drawn without pyplot: nothing global changes, no display is needed.
Colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers and in grey print.

Densities are drawn as eigenvalues per factor of ten of λ, dim·ρ(λ)·λ·ln 10: a density per unit of λ
falls by as many decades as λ spans, so that the bulk hides its shape and the outliers leave the picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from spectral.results import Atoms
from spectral.spectrum import Spectrum

from . import Curve, Line, Numbers, Row, conditions_of, matrices_of
from .tables import d_text, words

COLOURS = {"init": "#767676", "true": "#0072B2", "random": "#D55E00"}
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
NAMES = {"init": "at initialisation", "true": "true labels", "random": "random labels"}
SIGNED_DECADES = 5  # the same on each side of zero, where a spectrum has both signs
DECADES = 8  # how far below the largest eigenvalue a picture looks at most
RESOLUTION = 0.1  # standard deviation of the kernel in decades
POINTS = 300  # grid points of a curve
RANKS = 2000  # entries of a sorted diagonal that are drawn
FLOOR = 0.3  # eigenvalues per decade: one eigenvalue under the default kernel peaks at 4, so its flanks end here


def colour(condition: str, conditions: Sequence[str]) -> str:
    """The colour of a condition: fixed for init, true and random, then by position."""
    if condition in COLOURS:
        return COLOURS[condition]
    others = [name for name in conditions if name not in COLOURS]
    return OTHERS[others.index(condition) % len(OTHERS)]


def png(figure: Figure, dpi: int = 140) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer) if dpi == figure.dpi else figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _canvas(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of `rows` x `columns` axes, each `width` x `height` inches, and its axes as an array (rows, columns)."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8.5)
        ax.set_axisbelow(True)
        ax.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    return figure, axes


def _legend(figure: Figure, handles: Mapping[str, Artist], note: str) -> None:
    """One legend for the whole figure above the axes, with what the band is."""
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=len(handles), frameon=False, fontsize=10.5,
        title=note, title_fontsize=9,
    )  # fmt: skip


def _positive(spectrum: Spectrum) -> np.ndarray:
    """The eigenvalues that a logarithmic axis can show: positive and above their own rounding."""
    values, _ = spectrum.points(zeros=False)
    return values[values > max(spectrum.value_error, spectrum.rounding)]


def mirrored(spectrum: Spectrum) -> Spectrum:
    """The spectrum of -A, whose positive side is the negative side of A; bands and atoms go along."""
    records = tuple(replace(record, alphas=-record.alphas, known=-record.known) for record in spectrum.records)
    removed = tuple(  # Ritz values turn round, what was deflated stays behind them; rows follow the atoms
        np.where(gone < record.steps, record.steps - 1 - gone, gone)[::-1]
        for record, gone in zip(records, spectrum.removed, strict=True)
    )
    atoms = Atoms(-spectrum.atoms.values[::-1], spectrum.atoms.multiplicities[::-1])
    meta = {**spectrum.meta, "nonnegative": False}
    return replace(spectrum, nodes=-spectrum.nodes, atoms=atoms, records=records, removed=removed, meta=meta)


def is_signed(spectrum: Spectrum) -> bool:
    """Whether it has negative eigenvalues beyond rounding, which a logarithmic axis cannot show."""
    return bool(len(_positive(mirrored(spectrum)))) and not spectrum.meta.get("nonnegative", False)


def signed_floor(curves: list[Curve]) -> float:
    """|λ| from which a two-sided axis is logarithmic: `SIGNED_DECADES` below the largest |λ| of the curves."""
    return max(curve.spectrum.scale for curve in curves) * 10.0**-SIGNED_DECADES


def _common_grid(curves: list[Curve]) -> np.ndarray:
    """A logarithmic grid over the positive eigenvalues of all curves, at most `DECADES` below the largest.

    Where one has negative eigenvalues: from the largest |λ| down to `signed_floor`.
    """
    if any(is_signed(curve.spectrum) for curve in curves):
        low = signed_floor(curves)
        return np.geomspace(low, low * 10.0**SIGNED_DECADES * 1.7, POINTS)
    found = [values for curve in curves if len(values := _positive(curve.spectrum))]
    if not found:
        return np.geomspace(0.1, 1.0, POINTS)
    high = max(float(values[-1]) for values in found)
    low = min(float(values[0]) for values in found)
    return np.geomspace(max(low, high * 10.0**-DECADES) / 1.7, high * 1.7, POINTS)


def per_decade(spectrum: Spectrum, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues per factor of ten of λ at the points of `grid`, with the band: value, lower, upper."""
    if not len(_positive(spectrum)):
        return np.zeros_like(grid), np.zeros_like(grid), np.zeros_like(grid)
    found = spectrum.density(grid, resolution=RESOLUTION, scale="log")
    unit = spectrum.dim * grid * math.log(10)
    return found.value * unit, found.lower * unit, found.upper * unit


def _pooled(bands: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, smallest and largest over seeds per grid point; a single spectrum keeps its own band."""
    if len(bands) == 1:
        return bands[0]
    values_SX = np.array([band[0] for band in bands])
    return values_SX.mean(0), values_SX.min(0), values_SX.max(0)


def draw_density(ax: Axes, curves: list[Curve], conditions: Sequence[str]) -> dict[str, Artist]:
    """Overlaid densities on logarithmic axes: several seeds give their mean and range, one spectrum its own band.

    Where a spectrum has negative eigenvalues the axis has two sides, each logarithmic in |λ|.
    """
    grid = _common_grid(curves)
    signed = any(is_signed(curve.spectrum) for curve in curves)
    handles: dict[str, Artist] = {}
    top = 10.0
    for condition in conditions:
        own = [curve.spectrum for curve in curves if curve.condition == condition]
        if not own:
            continue
        shade = colour(condition, conditions)
        for side in (1, -1) if signed else (1,):
            spectra = own if side == 1 else [mirrored(spectrum) for spectrum in own]
            middle, lower, upper = _pooled([per_decade(spectrum, grid) for spectrum in spectra])
            lower, upper = np.maximum(lower, FLOOR), np.maximum(upper, FLOOR)
            ax.fill_between(side * grid, lower, upper, color=shade, alpha=0.2, linewidth=0)
            (line,) = ax.plot(side * grid, np.where(middle > FLOOR, middle, np.nan), color=shade, linewidth=1.8)
            handles[NAMES.get(condition, condition)] = line
            top = max(top, float(upper.max()))
    ax.set_yscale("log")
    ax.set_ylim(FLOOR, top * 1.6)
    _eigenvalue_axis(ax, grid, signed)
    return handles


def _eigenvalue_axis(ax: Axes, grid: np.ndarray, signed: bool) -> None:
    """The axis of λ: logarithmic over the grid, or over both signs of it with a gap around 0."""
    if signed:
        ax.set_xscale("symlog", linthresh=grid[0], linscale=0.3)
        ax.set_xlim(-grid[-1], grid[-1])
        top = math.floor(math.log10(grid[-1]))
        powers = [10.0**power for power in range(top, math.ceil(math.log10(grid[0])) - 1, -2)]
        ax.set_xticks([*(-p for p in powers), 0.0, *reversed(powers)])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.axvspan(-grid[0], grid[0], color="#efefef", linewidth=0, zorder=0)
    else:
        ax.set_xscale("log")
        ax.set_xlim(grid[0], grid[-1])
    _thin_ticks(ax)
    ax.set_xlabel("eigenvalue λ", fontsize=9.5)


def _thin_ticks(ax: Axes) -> None:
    """At most six decades labelled on each axis."""
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(numticks=7))
            axis.set_minor_formatter(NullFormatter())


def draw_cdf(ax: Axes, curves: list[Curve], conditions: Sequence[str]) -> dict[str, Artist]:
    """Overlaid distribution functions: the fraction of eigenvalues at or below λ, with the same bands."""
    half = _common_grid(curves)
    signed = any(is_signed(curve.spectrum) for curve in curves)
    grid = np.concatenate([-half[::-1], [0.0], half]) if signed else half
    handles: dict[str, Artist] = {}
    for condition in conditions:
        own = [curve for curve in curves if curve.condition == condition]
        if not own:
            continue
        bands = [curve.spectrum.cdf(grid) for curve in own]
        middle, lower, upper = _pooled([(band.value, band.lower, band.upper) for band in bands])
        shade = colour(condition, conditions)
        ax.fill_between(grid, lower, upper, color=shade, alpha=0.22, linewidth=0, step="mid")
        (line,) = ax.plot(grid, middle, color=shade, linewidth=1.8, drawstyle="steps-mid")
        handles[NAMES.get(condition, condition)] = line
    ax.set_ylim(-0.02, 1.02)
    _eigenvalue_axis(ax, half, signed)
    return handles


def draw_strip(ax: Axes, row: Row, conditions: Sequence[str], label: str) -> None:
    """One dot per seed and the mean with one standard deviation, per condition; the effect size above."""
    everything = [v for condition in conditions for v in row.values.get(condition, ()) if math.isfinite(v)]
    for place, condition in enumerate(conditions):
        values = np.array([v for v in row.values.get(condition, ()) if math.isfinite(v)])
        if not len(values):
            continue
        shade = colour(condition, conditions)
        spread = (np.arange(len(values)) - (len(values) - 1) / 2) * 0.07
        ax.plot(place + spread, values, "o", color=shade, alpha=0.55, markersize=4.5, markeredgewidth=0)
        sigma = values.std(ddof=1) if len(values) > 1 else row.errors.get(condition, (math.nan,))[0]
        ax.errorbar(
            place + 0.28, values.mean(), yerr=np.nan_to_num(sigma), fmt="_", color=shade, capsize=4, markersize=13,
            linewidth=1.6, markeredgewidth=2,
        )  # fmt: skip
    if everything and min(everything) > 0:
        ax.set_ylim(0, max(everything) * 1.15)
    ax.set_xticks(range(len(conditions)), conditions, fontsize=9.5)
    ax.set_xlim(-0.5, len(conditions) - 0.4)
    ax.grid(False, axis="x")
    title = label
    if row.effect is not None and all(map(math.isfinite, row.effect)):
        title += f"\nCohen's d, true − random: {d_text(row.effect)}"
    ax.set_title(title, fontsize=9.5)


def band_note(curves: list[Curve]) -> str:
    """What the shaded band is, in words: the range over seeds, or the band of a single spectrum."""
    seeds = len({curve.seed for curve in curves})
    if seeds > 1:
        return f"line: mean over {seeds} seeds · band: smallest to largest of the seeds"
    if all(curve.spectrum.is_exact for curve in curves):
        return "exact eigenvalues: a line without a band"
    return "band: 95 % interval of the estimate"


def landscape(
    curves: list[Curve],
    rows: list[Row],
    matrices: Sequence[str],
    metric: str,
    labels: Mapping[str, str],
    title: str = "",
) -> Figure:
    """The first picture: above the densities of the main matrices, below the metric that sums them up, seed by seed."""
    shown = [name for name in matrices if any(curve.matrix == name for curve in curves)]
    chosen = [curve for curve in curves if curve.matrix in shown]
    conditions = conditions_of(chosen)
    strips = {row.matrix: row for row in rows if row.metric == metric and row.matrix in shown}
    figure, axes = _canvas(2 if strips else 1, max(len(shown), 1), 3.6 if len(shown) > 1 else 6.4, 3.5)
    handles: dict[str, Artist] = {}
    for column, name in enumerate(shown):
        handles.update(draw_density(axes[0, column], [c for c in chosen if c.matrix == name], conditions))
        axes[0, column].set_title(words(name, labels), fontsize=9.5, fontweight="bold")
        if name in strips:
            draw_strip(axes[1, column], strips[name], conditions, words(metric, labels))
    axes[0, 0].set_ylabel("eigenvalues per decade of λ", fontsize=9.5)
    if strips:
        axes[1, 0].set_ylabel(words(metric, labels), fontsize=9.5)
    _legend(figure, handles, band_note(chosen))
    if title:
        figure.suptitle(title, fontsize=13)
    return figure


def panels(curves: list[Curve], kind: str, labels: Mapping[str, str], columns: int = 4) -> Figure:
    """One panel per matrix, `kind` is "density" or "cdf"."""
    draw = {"density": draw_density, "cdf": draw_cdf}[kind]
    names, conditions = matrices_of(curves), conditions_of(curves)
    columns = min(columns, max(len(names), 1))
    figure, axes = _canvas(-(-len(names) // columns) or 1, columns, 3.6 if len(names) > 1 else 6.4, 3.1)
    handles: dict[str, Artist] = {}
    for ax, name in zip(axes.flat, names, strict=False):
        handles.update(draw(ax, [curve for curve in curves if curve.matrix == name], conditions))
        ax.set_title(words(name, labels), fontsize=10)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel(
            "eigenvalues per decade of λ" if kind == "density" else "fraction of eigenvalues ≤ λ", fontsize=9.5
        )
    _legend(figure, handles, band_note(curves))
    return figure


def numbers(shown: Numbers) -> Figure | None:
    """Eigenvalues or singular values above their residuals, or the sorted diagonal with its errors; None for a trace."""
    if shown.kind == "trace":
        return None
    return _sorted_diagonal(shown) if shown.kind == "diagonal" else _pairs(shown)


def _pairs(shown: Numbers) -> Figure:
    """Values with residual bars against their index, and the residuals with the threshold of convergence."""
    figure, axes = _canvas(2, 1, 6.4, 2.7)
    upper, lower = axes[:, 0]
    index = np.arange(1, len(shown.value) + 1)
    handles: dict[str, Artist] = {}
    for name, chosen, shade, fill in (
        ("converged", shown.converged, COLOURS["true"], "full"),
        ("not converged", ~shown.converged, COLOURS["random"], "none"),
    ):
        if chosen.any():
            x, y, r = index[chosen], shown.value[chosen], shown.error[chosen]
            handles[name] = upper.errorbar(
                x, y, yerr=r, fmt="o", color=shade, fillstyle=fill, markersize=4.5, capsize=3, linewidth=1.2
            )
            lower.plot(x, r, "o", color=shade, fillstyle=fill, markersize=4.5)
    upper.set_ylabel(shown.kind.removesuffix("s"), fontsize=9.5)
    if (shown.value > 0).all():
        upper.set_yscale("log", nonpositive="clip")
        _thin_ticks(upper)
        if (ratio := shown.value.max() / shown.value.min()) < 30:  # hardly a power of ten in sight
            ticks = LogLocator(subs=(1.0, 2.0, 5.0)) if ratio > 4 else MaxNLocator(6, steps=[1, 2, 5, 10])
            upper.yaxis.set_major_locator(ticks)
            upper.yaxis.set_major_formatter(ScalarFormatter())
            upper.yaxis.set_minor_locator(NullLocator())
    threshold = float(shown.about["threshold"])
    lower.axhline(threshold, color="black", linewidth=0.8, linestyle="--")
    if (shown.error > 0).any():
        lower.set_yscale("log", nonpositive="clip")
        _thin_ticks(lower)
        lower.set_ylim(min(shown.error[shown.error > 0].min(), threshold) / 3, max(shown.error.max(), threshold) * 3)
    lower.set_ylabel("residual", fontsize=9.5)
    lower.set_xlabel("index", fontsize=9.5)
    for ax in (upper, lower):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlim(0.5, len(index) + 0.5)
    _legend(figure, handles, "bars: residual · dashed: the residual from which a pair counts as converged")
    return figure


def _sorted_diagonal(shown: Numbers) -> Figure:
    """The entries from the largest to the smallest, each with one standard error on both sides."""
    figure, axes = _canvas(1, 1, 6.4, 3.6)
    ax = axes[0, 0]
    n = len(shown.value)
    order = np.argsort(-shown.value, kind="stable")
    ranks = np.unique(np.linspace(0, n - 1, min(n, RANKS)).astype(int))
    value, error = shown.value[order][ranks], shown.error[order][ranks]
    if (value > 0).all():
        ax.set_yscale("log", nonpositive="clip")
        ax.set_ylim(value.min() / 2, (value + error).max() * 1.5)
    elif (size := np.abs(value)).max() > 0:
        ax.set_yscale("symlog", linthresh=max(np.quantile(size[size > 0], 0.5), 1e-4 * size.max()), linscale=0.5)
        ax.axhline(0, color="black", linewidth=0.8)
    handles: dict[str, Artist] = {}
    if (error > 0).any():
        handles["± one standard error"] = ax.vlines(
            ranks + 1, value - error, value + error, color=COLOURS["true"], alpha=0.25, linewidth=0.8
        )
    (handles["diagonal entry"],) = ax.plot(ranks + 1, value, color=COLOURS["true"], linewidth=1.8)
    ax.set_xlabel("rank of the entry, largest first", fontsize=9.5)
    ax.set_ylabel("diagonal entry", fontsize=9.5)
    _legend(figure, handles, "" if (error > 0).any() else "exact entries: a line without bars")
    return figure


def forest(rows: list[Row], labels: Mapping[str, str]) -> Figure:
    """Cohen's d of true minus random labels with its interval, one line per metric and matrix, sorted by matrix."""
    shown = [row for row in rows if row.effect is not None and all(map(math.isfinite, row.effect))]
    figure, axes = _canvas(1, 1, 8.6, 1.5 + 0.25 * max(len(shown), 1))
    ax = axes[0, 0]
    previous = ""
    for place, row in enumerate(shown):
        d, lower, upper = row.effect or (math.nan, math.nan, math.nan)
        shade = "#0072B2" if row.separates else "#9a9a9a"
        ax.plot([lower, upper], [place, place], color=shade, linewidth=1.6, solid_capstyle="butt")
        ax.plot(d, place, "o" if row.separates else "s", color=shade, markersize=5.5)
        if row.matrix != previous and place:
            ax.axhline(place - 0.5, color="#cccccc", linewidth=0.8)
        previous = row.matrix
    ax.axvline(0, color="black", linewidth=0.9)
    ax.set_yticks(
        range(len(shown)), [f"{words(r.matrix, labels)}  ·  {words(r.metric, labels)}" for r in shown], fontsize=8.5
    )
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_xscale("symlog", linthresh=2)
    left, right = ax.get_xlim()
    ax.set_xticks([t for t in (-100, -50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50, 100) if left <= t <= right])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlabel("Cohen's d, true − random labels, with its 95 % interval", fontsize=9)
    ax.set_title("blue: the same sign on every seed · grey: not on every seed", fontsize=9.5)
    return figure


def lines(
    items: list[Line],
    labels: Mapping[str, str],
    *,
    x_label: str,
    y_label: str,
    note: str = "",
    log_x: bool = False,
    log_y: bool = False,
    level: float | None = None,
    chance: bool = False,
) -> Figure:
    """One panel per matrix, one thin line per seed in its condition's colour, a band where a line has a standard error.

    `level` draws a dashed line across (a target), `chance` the line from 0 to 1 that meaningless directions would give.
    """
    names, conditions = matrices_of(items), conditions_of(items)
    columns = min(4, max(len(names), 1))
    figure, axes = _canvas(-(-len(names) // columns) or 1, columns, 3.8 if len(names) > 1 else 6.4, 3.2)
    handles: dict[str, Artist] = {}
    for ax, name in zip(axes.flat, names, strict=False):
        own = [item for item in items if item.matrix == name]
        for item in own:
            shade = colour(item.condition, conditions)
            (line,) = ax.plot(item.x, item.y, color=shade, linewidth=1.2, alpha=0.85)
            if item.sigma is not None:
                ax.fill_between(item.x, item.y - item.sigma, item.y + item.sigma, color=shade, alpha=0.12, linewidth=0)
            handles[NAMES.get(item.condition, item.condition)] = line
        if chance:
            last = max(float(item.x[-1]) for item in own)
            ax.plot([0, last], [0, 1], color="black", linewidth=0.8, linestyle=":")
        if level is not None:
            ax.axhline(level, color="black", linewidth=0.8, linestyle="--")
        if log_x:
            ax.set_xscale("log")
        if log_y:
            ax.set_yscale("log")
        _thin_ticks(ax)
        ax.set_title(words(name, labels), fontsize=10)
        ax.set_xlabel(x_label, fontsize=9.5)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    axes[0, 0].set_ylabel(y_label, fontsize=9.5)
    _legend(figure, handles, note)
    return figure
