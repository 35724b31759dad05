"""The pictures: densities and distribution functions with bands, effect sizes, label alignment, alpha(xmin), training.

A `Picture` is a number of panels of one size, drawn without pyplot: nothing global changes, no display is needed. A page lays
the panels out as its width allows, under a legend of its own; `Picture.png` puts both together for a file. Colours are those of
Okabe and Ito (2008), and viridis for levels and for many: both stay apart for colour-blind readers and in grey print.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from spectral import cards
from spectral.cards import COLOURS, GREY, thin_ticks
from spectral.experiments.prose import prose, say
from spectral.plotting import FLOOR, LABELS, eigenvalue_axis, shared_grid
from spectral.quadrature.density import mirrored, one_eigenvalue, per_efold

from . import Curve, Line, Numbers, Prototype, Row, conditions_of, matrices_of, of_matrix
from .picture import BOTTOM, DASHES, LEFT, NARROW, TOP, WIDE, Key, Panel, Picture, on_axes, shot
from .tables import d_text, number, opening, words

TEXTS = prose(__file__)
CONDITIONS = {"init": GREY, "true": COLOURS[0], "random": COLOURS[1]}
DECADES = 8  # how far below the largest eigenvalue a picture looks at most
POINTS = 300  # grid points of a curve
RANKS = 2000  # entries of a sorted diagonal that are drawn
STRIP = 150  # points that the name of a metric may take beside its axis
NAMED, LETTERS = 1.72, 23  # inches for the names of metrics, and how many letters of 9 points they hold

Style = tuple[str, str]  # colour, dash


def styles(conditions: Sequence[str], levels: Mapping[str, float] | None = None) -> dict[str, Style]:
    """A colour and a dash for each condition, no two alike.

    Fixed for init, true and random; dark to light for the levels of an axis; by position for up to eight others; beyond
    those dark to light with three dashes in turn.
    """
    others = [name for name in conditions if name not in CONDITIONS]
    made: dict[str, Style] = {name: (CONDITIONS[name], "solid") for name in conditions if name in CONDITIONS}
    free = [shade for shade in COLOURS if shade not in [colour for colour, _ in made.values()]]
    if levels and all(name in levels for name in others):
        order = sorted(others, key=lambda name: levels[name])
        return made | {name: (shade, "solid") for name, shade in zip(order, _shades(len(order)), strict=True)}
    if len(others) <= len(free):
        return made | {name: (shade, "solid") for name, shade in zip(others, free, strict=False)}
    dashes = list(DASHES)
    pairs = zip(others, _shades(len(others)), strict=True)
    return made | {name: (shade, dashes[i % 3]) for i, (name, shade) in enumerate(pairs)}


def _shades(count: int) -> list[str]:
    """Shades of viridis, without its light end, which white paper swallows and a dark page turns dark."""
    return [mpl.colors.to_hex(mpl.colormaps["viridis"](x)) for x in np.linspace(0.1, 0.75, count)]


def _keys(conditions: Sequence[str], style: Mapping[str, Style], labels: Mapping[str, str]) -> tuple[Key, ...]:
    return tuple(Key(words(name, labels), *style[name]) for name in conditions)


# Densities -----------------------------------------------------------------------------------------------------------
def _common_grid(curves: Sequence[Curve]) -> tuple[np.ndarray, bool]:
    """A grid over the eigenvalues of all curves, at most `DECADES` below the largest, and whether it has two sides."""
    grid, signed = shared_grid([curve.spectrum for curve in curves], POINTS, DECADES)
    return grid if len(grid) else np.geomspace(0.1, 1.0, POINTS), signed


def _pooled(bands: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, smallest and largest over seeds per grid point; a single spectrum keeps its own band."""
    if len(bands) == 1:
        return bands[0]
    values_SX = np.array([band[0] for band in bands])
    return values_SX.mean(0), values_SX.min(0), values_SX.max(0)


def draw_density(ax: Axes, curves: Sequence[Curve], style: Mapping[str, Style], band: bool = True) -> None:
    """Overlaid densities on logarithmic axes: several seeds give their mean and range, one spectrum its own `band`.

    Where a spectrum has negative eigenvalues the axis has two sides, each logarithmic in |λ|.
    """
    grid, signed = _common_grid(curves)
    floor = FLOOR * one_eigenvalue(max(curve.spectrum.dim for curve in curves))
    top = 10 * floor
    for condition, (shade, dash) in style.items():
        own = [curve.spectrum for curve in curves if curve.condition == condition]
        if not own:
            continue
        for side in (1, -1) if signed else (1,):
            spectra = own if side == 1 else [mirrored(spectrum) for spectrum in own]
            middle, lower, upper = _pooled([per_efold(spectrum, grid) for spectrum in spectra])
            lower, upper = np.maximum(lower, floor), np.maximum(upper if band else middle, floor)
            if band:
                ax.fill_between(side * grid, lower, upper, color=shade, alpha=0.2, linewidth=0)
            line = np.where(middle > floor, middle, np.nan)
            ax.plot(side * grid, line, color=shade, linestyle=DASHES[dash], linewidth=1.8)
            top = max(top, float(upper.max()))
    ax.set(yscale="log", ylim=(floor, top * 1.6), xlabel="eigenvalue λ", ylabel=LABELS["signed" if signed else "log"])
    eigenvalue_axis(ax, float(grid[0]), float(grid[-1]), signed)


def draw_known(ax: Axes, theory: Sequence[Line], stems: Sequence[Line], style: Mapping[str, Style]) -> None:
    """Densities of closed forms as dashed lines, and eigenvalues that stand apart as stems, in the colours of their
    conditions.
    """
    low, high = ax.get_ylim()
    for line in theory:
        shown = line.y > low
        ax.plot(line.x[shown], line.y[shown], color=style[line.condition][0], linestyle=DASHES["dashed"], linewidth=1.1)
    for line in stems:
        ax.vlines(line.x, low, line.y, color=style[line.condition][0], linewidth=0.9)
        ax.plot(line.x, line.y, "o", color=style[line.condition][0], markersize=2.6)
    ax.set_ylim(low, max([high, *(1.6 * float(line.y.max()) for line in theory)]))


def draw_cdf(ax: Axes, curves: Sequence[Curve], style: Mapping[str, Style]) -> None:
    """Overlaid distribution functions: the fraction of eigenvalues at or below λ, with the same bands."""
    half, signed = _common_grid(curves)
    grid = np.concatenate([-half[::-1], [0.0], half]) if signed else half
    for condition, (shade, dash) in style.items():
        own = [curve for curve in curves if curve.condition == condition]
        if not own:
            continue
        bands = [curve.spectrum.cdf(grid) for curve in own]
        middle, lower, upper = _pooled([(band.value, band.lower, band.upper) for band in bands])
        ax.fill_between(grid, lower, upper, color=shade, alpha=0.22, linewidth=0, step="mid")
        ax.plot(grid, middle, color=shade, linestyle=DASHES[dash], linewidth=1.8, drawstyle="steps-mid")
    ax.set(ylim=(-0.02, 1.02), xlabel="eigenvalue λ", ylabel="fraction of eigenvalues ≤ λ")
    eigenvalue_axis(ax, float(half[0]), float(half[-1]), signed)


def draw_strip(ax: Axes, row: Row, style: Mapping[str, Style], labels: Mapping[str, str]) -> None:
    """One dot per seed, hollow where a fit was refused, and the mean with one standard deviation, per condition."""
    style = {condition: own for condition, own in style.items() if condition in row.values}
    everything = [v for condition in style for v in row.values.get(condition, ()) if math.isfinite(v)]
    ends: list[float] = []
    for place, (condition, (shade, _)) in enumerate(style.items()):
        given = row.values.get(condition, ())
        flags = row.refused.get(condition, (False,) * len(given))
        known = [(v, flag) for v, flag in zip(given, flags, strict=True) if math.isfinite(v)]
        for i, (value, refused) in enumerate(known):
            x = place + (i - (len(known) - 1) / 2) * min(0.07, 0.5 / len(known))
            ax.plot(x, value, "o", color=shade, alpha=0.6, markersize=4.5, fillstyle="none" if refused else "full")
        if known:
            mean, sigma = row.mean(condition)
            sigma = float(np.nan_to_num(sigma))
            ends.append(mean + sigma)
            reach = cards.whiskers(np.array([mean, *everything]), np.full(1 + len(everything), sigma))[:, :1]
            ax.errorbar(
                place + 0.3, mean, yerr=reach, fmt="_", color=shade, capsize=4, markersize=11,
                linewidth=1.6, markeredgewidth=2,
            )  # fmt: skip
    if everything and min(everything) > 0:
        ax.set_ylim(0, 1.15 * max([*everything, *ends]))
    ticks = [labels.get(f"tick:{name}", name) for name in style]
    longest = max(map(len, ticks), default=1) * len(ticks)
    ax.set_xticks(range(len(ticks)), ticks, fontsize=10 if longest < 24 else 8)
    ax.set_xlim(-0.5, len(ticks) - 0.3)
    ax.grid(False, axis="x")
    name = words(row.metric, labels)  # a long one is written smaller than its axis is tall
    ax.set_ylabel(name, fontsize=min(9.5, STRIP / (0.55 * len(name))))
    if row.effect is not None and all(map(math.isfinite, row.effect)):
        ax.set_title(f"d = {d_text(row.effect)}", fontsize=9, pad=3)


def band_note(curves: Sequence[Curve]) -> str:
    """What line and band are, in words: mean and range over seeds, or the band of a single spectrum."""
    groups = Counter((curve.matrix, curve.condition) for curve in curves).values()
    exact = all(curve.spectrum.is_exact for curve in curves)
    return say(TEXTS["band"], fewest=min(groups), most=max(groups), exact=exact)


def landscape(
    curves: Sequence[Curve],
    rows: Sequence[Row],
    matrices: Sequence[str],
    metric: str,
    labels: Mapping[str, str],
    levels: Mapping[str, float] | None = None,
    order: Sequence[str] = (),
    theory: Sequence[Line] = (),
    stems: Sequence[Line] = (),
    band: bool = True,
) -> Picture:
    """A panel for each matrix: above the densities, below the metric that sums them up, seed by seed ("": the rows given).

    `order` is that of the conditions; by default as they come. `theory` are densities of closed forms, drawn dashed, `stems`
    single eigenvalues.
    """
    strips = {row.matrix: row for row in rows if metric in ("", row.metric) and row.matrix in matrices}
    names = [name for name in matrices if name in strips or of_matrix(curves, name)]
    chosen = [curve for curve in curves if curve.matrix in names]
    conditions = list(order) or conditions_of([*chosen, *strips.values()])
    style = styles(conditions, levels)

    def draw(name: str, *axes: Axes) -> None:
        if own := of_matrix(chosen, name):
            draw_density(axes[0], own, style, band)
            draw_known(axes[0], of_matrix(theory, name), of_matrix(stems, name), style)
        if name in strips:
            draw_strip(axes[-1], strips[name], style, labels)

    def axes(name: str) -> Sequence[tuple[float, float]]:
        strip = name in strips
        return [(2.4, BOTTOM + 0.2 * strip)] * bool(of_matrix(chosen, name)) + [(1.7, 0.3)] * strip

    def alt(name: str) -> str:
        return _alt_density(name, of_matrix(chosen, name), strips.get(name), labels)

    panels = _by_matrix(names, labels, draw, alt, axes)
    said = band_note(chosen) if chosen and band else ""
    note = say(TEXTS["landscape"], band=said, theory=bool(theory), stems=bool(stems))
    return Picture(panels, _keys(conditions, style, labels), note)


def _by_matrix(
    names: Sequence[str],
    labels: Mapping[str, str],
    draw: Callable[..., None],
    alt: Callable[[str], str],
    axes: Callable[[str], Sequence[tuple[float, float]]] = lambda name: [(2.4, BOTTOM)],
    left: float = LEFT,
) -> tuple[Panel, ...]:
    """A panel for each matrix: `draw(name, *axes)`, and what it shows in words, `alt(name)`."""
    width = NARROW if len(names) > 1 else WIDE
    return tuple(on_axes(partial(draw, m), words(m, labels), alt(m), width, axes(m), left) for m in names)


def _alt_density(name: str, curves: Sequence[Curve], strip: Row | None, labels: Mapping[str, str]) -> str:
    """What the densities of a matrix look like, for those who do not see them."""
    ends = {}
    for condition in conditions_of(curves):
        spectra = [curve.spectrum for curve in curves if curve.condition == condition]
        values = [x for s in spectra if len(x := s.points(zeros=False)[0])] or [np.zeros(1)]
        low, high = min(float(x[0]) for x in values), max(float(x[-1]) for x in values)
        size = max(abs(low), abs(high))
        ends[condition] = [0.0 if abs(x) < 1e-12 * size else x for x in (low, high)]
    named = partial(words, labels=labels)
    return say(TEXTS["densities"], name=name, ends=ends, strip=strip, words=named, number=number, opening=opening)


def distributions(
    curves: Sequence[Curve], labels: Mapping[str, str], levels: Mapping[str, float] | None = None
) -> Picture:
    """A panel for each matrix: the distribution functions."""
    conditions = conditions_of(curves)
    style = styles(conditions, levels)

    def draw(name: str, ax: Axes) -> None:
        draw_cdf(ax, of_matrix(curves, name), style)

    def alt(name: str) -> str:
        own = of_matrix(curves, name)
        halves = {words(c, labels): _median(own, c) for c in conditions_of(own)}
        return say(TEXTS["distributions"], name=words(name, labels), halves=halves)

    made = _by_matrix(matrices_of(curves), labels, draw, alt)
    return Picture(made, _keys(conditions, style, labels), band_note(curves))


def _median(curves: Sequence[Curve], condition: str) -> float:
    """The mean over seeds of the value below which half of the eigenvalues lie."""
    measures = [curve.spectrum.points() for curve in curves if curve.condition == condition]
    return float(np.mean([x[min(np.searchsorted(np.cumsum(c), c.sum() / 2), len(x) - 1)] for x, c in measures]))


# Numbers -------------------------------------------------------------------------------------------------------------
def numbers(given: Numbers) -> Picture | None:
    """Eigenvalues or singular values above their residuals, or the sorted diagonal with its errors; None for a trace."""
    if given.kind == "trace":
        return None
    return _sorted_diagonal(given) if given.kind == "diagonal" else _pairs(given)


def _pairs(given: Numbers) -> Picture:
    """Values with residual bars against their index, and the residuals with the threshold of convergence."""
    index, threshold = np.arange(1, len(given.value) + 1), float(given.about["threshold"])
    parts = [
        ("converged", given.converged, COLOURS[0], "full"),
        ("not converged (hollow)", ~given.converged, COLOURS[1], "none"),
    ]
    parts = [part for part in parts if part[1].any()]

    def draw(upper: Axes, lower: Axes) -> None:
        for _, chosen, shade, fill in parts:
            x, y, r = index[chosen], given.value[chosen], given.error[chosen]
            reach = cards.whiskers(given.value, given.error)[:, chosen]
            upper.errorbar(
                x, y, yerr=reach, fmt="o", color=shade, fillstyle=fill, markersize=4.5, capsize=3, linewidth=1.2
            )
            lower.plot(x, r, "o", color=shade, fillstyle=fill, markersize=4.5)
        upper.set_ylabel(given.kind.removesuffix("s"))
        if (given.value > 0).all():
            upper.set_yscale("log", nonpositive="clip")
            thin_ticks(upper)
        lower.axhline(threshold, color="black", linewidth=0.8, linestyle="--")
        if (given.error > 0).any():
            lower.set_yscale("log", nonpositive="clip")
            least = given.error[given.error > 0].min()
            lower.set_ylim(min(least, threshold) / 3, max(given.error.max(), threshold) * 3)
            thin_ticks(lower)
        lower.set(xlabel="index", ylabel="residual")
        for ax in (upper, lower):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_xlim(0.5, len(index) + 0.5)

    alt = say(TEXTS["pairs"], given=given, threshold=threshold, done=int(given.converged.sum()))
    keys = tuple(Key(name, shade) for name, _, shade, _ in parts)
    panel = on_axes(draw, "", alt, WIDE, [(2.2, 0.35), (1.8, BOTTOM)])
    return Picture((panel,), keys, TEXTS["residuals"])


def _sorted_diagonal(given: Numbers) -> Picture:
    """The entries from the largest to the smallest, each with one standard error on both sides."""
    n, order = len(given.value), np.argsort(-given.value, kind="stable")
    ranks = np.unique(np.linspace(0, n - 1, min(n, RANKS)).astype(int))
    value, error = given.value[order][ranks], given.error[order][ranks]

    def draw(ax: Axes) -> None:
        if (value > 0).all():
            ax.set_yscale("log", nonpositive="clip")
            ax.set_ylim(value.min() / 2, (value + error).max() * 1.5)
        elif (size := np.abs(value)).max() > 0:
            linear = max(np.quantile(size[size > 0], 0.5), 1e-4 * size.max())
            ax.set_yscale("symlog", linthresh=linear, linscale=0.5)
            ax.axhline(0, color="black", linewidth=0.8)
        if (error > 0).any():
            down, up = cards.whiskers(value, error)
            ax.vlines(ranks + 1, value - down, value + up, color=COLOURS[0], alpha=0.25, linewidth=0.8)
        ax.plot(ranks + 1, value, color=COLOURS[0], linewidth=1.8)
        ax.set(xlabel="rank of the entry, largest first", ylabel="diagonal entry")

    alt = f"{n} diagonal entries, sorted from {given.value.max():.3g} down to {given.value.min():.3g}."
    note = "bars: one standard error on both sides" if (error > 0).any() else "exact entries: a line without bars"
    return Picture((on_axes(draw, "", alt, WIDE, [(2.8, BOTTOM)]),), (), note)


# Classes, samples ----------------------------------------------------------------------------------------------------
def counts(items: Sequence[Line], labels: Mapping[str, str]) -> Picture:
    """The number of outliers against the number of classes C: a dot for each network, and the lines C − 1, C and C (C − 1)."""
    style = styles(conditions_of(items))
    most = max((float(np.nanmax(item.y)) for item in items if np.isfinite(item.y).any()), default=1.0)

    def draw(name: str, ax: Axes) -> None:
        own = of_matrix(items, name)
        low, high = min(float(item.x[0]) for item in own), max(float(item.x[-1]) for item in own)
        c = np.linspace(low, high, 100)
        for y, text, beside in ((c - 1, "C − 1", "top"), (c, "C", "bottom"), (c * (c - 1), "C (C − 1)", "center")):
            ax.plot(c, y, color=GREY, linewidth=0.9, linestyle=DASHES["dashed"])
            ax.annotate(
                text, (c[-1], y[-1]), (3, 0), textcoords="offset points", fontsize=8, va=beside, color="#555555"
            )
        for place, item in enumerate(own):
            shift = (place - (len(own) - 1) / 2) * 0.05
            ax.plot(item.x + shift, item.y, "o", color=style[item.condition][0], markersize=5, alpha=0.75)
        ax.set_yscale("symlog", linthresh=2)
        ticks = [t for t in (0, 1, 2, 5, 10, 20, 50, 100, 200) if t <= 2 * max(most, high * (high - 1))]
        ax.set_yticks(ticks, list(map(str, ticks)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set(xlim=(low - 0.4, high + 0.22 * (high - low) + 0.4), xlabel="classes C", ylabel="outliers")
        ax.set_xticks(sorted({float(x) for item in own for x in item.x}))
        ax.xaxis.set_major_formatter("{x:g}")

    def alt(name: str) -> str:
        pairs: dict[str, list[str]] = {words(c, labels): [] for c in style}
        for item in of_matrix(items, name):
            known = ((x, y) for x, y in zip(item.x, item.y, strict=True) if math.isfinite(y))
            pairs[words(item.condition, labels)] += [f"{y:.0f} of {x:g}" for x, y in known]
        return say(TEXTS["counts"], name=words(name, labels), pairs=pairs)

    made = _by_matrix(matrices_of(items), labels, draw, alt)
    return Picture(made, _keys(list(style), style, labels), TEXTS["dots"])


def prototypes(items: Sequence[Prototype]) -> Picture:
    """Samples as pictures, a panel for each end; above each its class and its ‖Jᵢ‖² over the mean."""
    ends = list(dict.fromkeys(item.end for item in items))
    columns = 4

    def panel(end: str) -> Panel:
        own = [item for item in items if item.end == end]
        rows = -(-len(own) // columns)
        side = (NARROW - 0.2) / columns
        tall = TOP + rows * (side + 0.02)
        figure = Figure(figsize=(NARROW, tall))
        figure.text(0.5, 1 - 0.05 / tall, end, ha="center", va="top", fontsize=10, fontweight="bold")
        for place, item in enumerate(own):
            row, column = divmod(place, columns)
            left, base = (0.1 + column * side) / NARROW, 1 - (TOP + (row + 1) * side) / tall
            ax = figure.add_axes((left, base, 0.74 * side / NARROW, 0.74 * side / tall))
            low, high = float(item.image.min()), float(item.image.max())
            ax.imshow((item.image - low) / (high - low or 1.0), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(f"{item.label} · {_times(item.value)}", fontsize=8, pad=2)
            ax.set_axis_off()
        said = ", ".join(f"class {item.label} {_times(item.value)}" for item in own)
        return shot(figure, f"Samples with the {end}, in times the mean: {said}.")

    return Picture(tuple(panel(end) for end in ends), (), "above each sample: its class · its ‖Jᵢ‖² in times the mean")


def _times(value: float) -> str:
    """A ratio with two significant digits.

    >>> _times(23.4), _times(0.00012)
    ('23×', '0.00012×')
    """
    return f"{value:.2g}×" if value < 1000 else f"{value:.0f}×"


# Differences, lines --------------------------------------------------------------------------------------------------
def effects(rows: Sequence[Row], labels: Mapping[str, str]) -> Picture:
    """Cohen's d of true minus random labels with its interval: a panel for each matrix, a line for each metric.

    Metrics of scale and refused fits are no candidates and are left out.
    """
    known = [(row, row.effect) for row in rows if row.candidate and row.effect is not None]
    judged = [(row, effect) for row, effect in known if all(map(math.isfinite, effect))]
    names = matrices_of([row for row, _ in judged])
    most = max((sum(row.matrix == name for row, _ in judged) for name in names), default=1)
    reach = max((abs(end) for _, effect in judged for end in effect[1:]), default=1.0) * 1.2
    called = {row.metric: textwrap.fill(words(row.metric, labels), LETTERS) for row, _ in judged}
    size = 8 if any("\n" in text for text in called.values()) else 9  # two lines fit where one does

    def draw(name: str, ax: Axes) -> None:
        own = [(row, effect) for row, effect in judged if row.matrix == name]
        for place, (row, (d, lower, upper)) in enumerate(own):
            shade = COLOURS[0] if row.separates else GREY
            ax.plot([lower, upper], [place, place], color=shade, linewidth=1.6, solid_capstyle="butt")
            ax.plot(d, place, "o" if row.separates else "s", color=shade, markersize=5.5)
        ax.axvline(0, color="black", linewidth=0.9)
        ax.set_yticks(range(len(own)), [called[row.metric] for row, _ in own], fontsize=size, linespacing=0.95)
        ax.set_xscale("symlog", linthresh=2)
        ax.set(xlim=(-reach, reach), ylim=(most - 0.4, -0.6))
        ends = (-100, -2, 0, 2, 100) if reach >= 100 else (-10, -2, 0, 2, 10)  # more have no room
        ax.set_xticks([t for t in ends if abs(t) <= reach])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
        ax.set_xlabel("Cohen's d, true − random labels", fontsize=9.5, loc="right")

    def alt(name: str) -> str:
        said = [f"{words(row.metric, labels)} {d_text(effect)}" for row, effect in judged if row.matrix == name]
        return f"Cohen's d, true minus random labels, of {words(name, labels)}: {'; '.join(said)}."

    made = _by_matrix(names, labels, draw, alt, lambda name: [(0.2 + 0.25 * most, BOTTOM)], left=NAMED)
    keys = (Key("same sign on every seed (dots)", COLOURS[0]), Key("not on every seed (squares)", GREY))
    return Picture(made, keys, "bars: 95 % interval")


def lines(
    items: Sequence[Line],
    labels: Mapping[str, str],
    *,
    x_label: str,
    y_label: str,
    note: str = "",
    levels: Mapping[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    level: float | None = None,
    chance: bool = False,
) -> Picture:
    """One panel per matrix, one thin line per seed in its condition's colour, a band where a line has a standard error.

    The fit that the tables quote is a dot, hollow where it was refused. `level` draws a dashed line across (a target),
    `chance` the line from 0 to 1 that meaningless directions would give.
    """
    conditions = conditions_of(items)
    style = styles(conditions, levels)

    def draw(name: str, ax: Axes) -> None:
        own = of_matrix(items, name)
        for item in own:
            shade, dash = style[item.condition]
            ax.plot(item.x, item.y, color=shade, linestyle=DASHES[dash], linewidth=1.2, alpha=0.85)
            if item.sigma is not None:
                low, high = item.y - item.sigma, item.y + item.sigma
                ax.fill_between(item.x, low, high, color=shade, alpha=0.12, linewidth=0)
        for item in own:
            if item.chosen is not None:
                shade = style[item.condition][0]
                fill = "white" if item.refused else shade
                ax.plot(*item.chosen, "o", color=shade, markerfacecolor=fill, markersize=5.5, zorder=5)
        if chance:
            end = max(float(item.x[-1]) for item in own)
            ax.plot([0, end], [0, 1], color="black", linewidth=0.8, linestyle=":")
        if level is not None:
            ax.axhline(level, color="black", linewidth=0.8, linestyle="--")
        if log_x:
            ax.set_xscale("log")
        if log_y:
            ax.set_yscale("log", nonpositive="clip")
        thin_ticks(ax)
        ax.set(xlabel=x_label, ylabel=y_label)

    def alt(name: str) -> str:
        return _alt_lines(name, of_matrix(items, name), labels, x_label, y_label)

    made = _by_matrix(matrices_of(items), labels, draw, alt)
    return Picture(made, _keys(conditions, style, labels), note)


def _alt_lines(name: str, items: Sequence[Line], labels: Mapping[str, str], x_label: str, y_label: str) -> str:
    """Where the lines of a panel begin and end, condition by condition."""
    own = {words(c, labels): [item for item in items if item.condition == c] for c in conditions_of(items)}
    ends = {name: [float(np.mean([item.y[i] for item in found])) for i in (0, -1)] for name, found in own.items()}
    return say(TEXTS["lines"], name=words(name, labels), x=x_label, y=y_label, own=own, ends=ends)


# Bars -------------------------------------------------------------------------------------------------------------------
def bars(lengths: Mapping[str, float], x_label: str, title: str) -> Picture:
    """A bar for each name."""

    def draw(ax: Axes) -> None:
        ax.barh(list(lengths), list(lengths.values()), color=COLOURS[0], height=0.6)
        ax.invert_yaxis()
        ax.set_xlabel(x_label)

    alt = f"{title}: " + "; ".join(f"{name} {value:.3g} {x_label}" for name, value in lengths.items())
    return Picture((on_axes(draw, title, alt, WIDE, [(0.3 + 0.32 * len(lengths), BOTTOM)], left=1.3),))
