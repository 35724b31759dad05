"""From what a study has found to its report, and the pictures that no grid of cells has: charts of lines, surfaces as contours
and in space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spectral.cards import COLOURS
from spectral.experiments.study import Findings, Lines, Sheet, Study, Surfaces

from . import Curve, Report, Verdict, build, figures, titled
from .picture import Panel, Picture, shot

WIDTH, HEIGHT = 4.2, 3.5  # inches of a surface
LEVELS = 14  # contours
FLOOR = 1e-12  # of a loss on a logarithmic scale


def report(study: Study, findings: Findings, about: str) -> Report:
    """The report of a study; `about` says in words how much the answer is an answer of."""
    curves = [Curve(*item) for item in findings.spectra]
    matrices = dict.fromkeys(curve.matrix for curve in curves)
    return Report(
        title=titled(study.name),
        question=study.question,
        verdict=Verdict.of(findings.answer, findings.sentence.removesuffix("."), about),
        expectation=study.expectation,
        reference=study.reference,
        curves=curves,
        rows=[],
        headline=tuple(matrices),
        labels=build.labels_for(list(matrices), findings.words)
        | {name: findings.words.get(name, name) for name in matrices},
        facts=findings.facts,
        charts=findings.charts,
        listed=list(findings.table),
    )


def picture(chart: Lines | Surfaces) -> Picture:
    """A chart as panels."""
    if isinstance(chart, Surfaces):
        return Picture(tuple(panel for sheet in chart.sheets for panel in _surface(sheet, chart.z_label)))
    axes = {name: getattr(chart, name) for name in ("x_label", "y_label", "note", "log_x", "log_y", "level")}
    return figures.lines(chart.lines, {}, **axes)


def _surface(sheet: Sheet, z_label: str) -> list[Panel]:
    """The same surface as contours with its path, and in space."""
    z = np.log10(np.maximum(sheet.z, FLOOR))
    centre = sheet.z[len(sheet.y) // 2, len(sheet.x) // 2]
    alt = f"{z_label} over {sheet.panel}: from {sheet.z.min():.2g} to {sheet.z.max():.2g}, {centre:.2g} at the centre"
    panels = []
    for draw, how, projection in ((_contours, "as contours", None), (_space, "in space", "3d")):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        ax = figure.add_subplot(projection=projection)
        ax.set_title(sheet.panel, fontsize=9, fontweight="bold")
        ax.tick_params(labelsize=8)
        draw(sheet, z, z_label, figure, ax)
        panels.append(replace(shot(figure, f"{alt}, {how}."), figure=None))  # thousands of facets: pixels alone
    return panels


def _contours(sheet: Sheet, z: np.ndarray, z_label: str, figure: Figure, ax) -> None:  # type: ignore[no-untyped-def]
    levels = np.linspace(z.min(), z.max(), LEVELS) if np.ptp(z) > 0 else np.array([z.min(), z.min() + 1])
    filled = ax.contourf(sheet.x, sheet.y, z, levels=levels, cmap="viridis")
    ax.contour(sheet.x, sheet.y, z, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
    if len(sheet.path):
        ax.plot(*sheet.path.T, "-", color=COLOURS[1], linewidth=1.5)
        ax.plot(*sheet.path[:-1].T, ".", color=COLOURS[1], markersize=4)
        ax.plot(*sheet.path[0], "o", color=COLOURS[1], markersize=6)
    ax.plot(0, 0, "*", color="white", markeredgecolor="black", markersize=11)
    bar = figure.colorbar(filled, ax=ax, ticks=MaxNLocator(6))
    bar.set_label(f"log₁₀ {z_label}", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    ax.set_xlabel(sheet.x_label, fontsize=9)
    ax.set_ylabel(sheet.y_label, fontsize=9)


def _space(sheet: Sheet, z: np.ndarray, z_label: str, figure: Figure, ax) -> None:  # type: ignore[no-untyped-def]
    X, Y = np.meshgrid(sheet.x, sheet.y)
    ax.plot_surface(X, Y, z, cmap="viridis", linewidth=0, antialiased=True, rcount=60, ccount=60)
    ax.set_xlabel(sheet.x_label, fontsize=8)
    ax.set_ylabel(sheet.y_label, fontsize=8)
    ax.set_zlabel(f"log₁₀ {z_label}", fontsize=8)
    ax.locator_params(nbins=5)
    ax.view_init(elev=32, azim=-55)
