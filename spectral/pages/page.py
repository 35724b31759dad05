"""One self-contained HTML page: the answer, the pictures, the numbers, what separates the conditions, settings and cost.

`page.html.j2` is the page, this module says what stands in it. Pictures are inlined as PNG and the style sheet stands in the
page: the file can be mailed and needs neither a network nor scripts.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from spectral.persist import atomic_write
from spectral.quadrature.density import LOG, is_signed, signed_floor

from . import Curve, Report, Row, charts, conditions_of, figures, matrices_of, of_matrix, tables
from .picture import Picture
from .tables import Table, d_text, matrices, number, seconds, words

READ = (
    "Each curve is the empirical spectral density of one matrix: λ·ρ(λ) on logarithmic axes, ρ being the fraction of all "
    "eigenvalues per unit of λ. Equal areas are equal numbers of eigenvalues, a straight line is a power law, and a shift to the "
    "right is more sensitivity of the network to what the matrix differentiates by.",
    "Look at the shape before the position: a few eigenvalues far to the right of a bulk mean that the network answers "
    "along few directions (small effective rank), a broad shoulder without outliers that it answers along many.",
)
READ_COMPARED = (
    "Compare the blue curve (true labels) with the vermilion one (random labels) and the grey one (before training): where "
    "their bands do not overlap, the densities differ by more than seeds do.",
)
READ_SWEPT = ("Compare the colours: they are the steps of the sweep, in their order, or its configurations.",)
READ_NUMBERS = {
    "eigenvalues": "Within its residual ‖Av − θv‖ of each number there is an eigenvalue of the matrix: the "
    "bars are bounds, mostly smaller than the dots. Copies of a multiple eigenvalue are listed one by one.",
    "singular values": "Within its residual of each number there is a singular value of the matrix: the bars are bounds, mostly "
    "smaller than the dots. Copies of a multiple singular value are listed one by one.",
    "diagonal": "The entries are sorted, so that the picture shows how they are spread, not where they are; estimate.npz has "
    "them in order. Sorting noisy entries spreads them: where bars are as long as the curve is high, its ends are noise. "
    "The sum of the entries is the trace, of which estimator=trace gives the error.",
    "trace": "The standard error is that of the random vectors; the trace is the sum of the eigenvalues.",
}
READ_SINGLE = (
    "The shaded band is the error of the estimate; where there is none, the eigenvalues are exact and only the smoothing "
    "width is a choice.",
)
TITLES = {
    "cdf": "Distribution functions",
    "alignment": "Where the labels live",
    "alpha": "The power-law exponent and where its tail begins",
    "esd": "All densities",
    "blocks": "Block by block",
}
COST = {
    "products": ("products", lambda v: f"{v:,.0f}"),
    "epochs": ("sweeps over the data", lambda v: f"{v:,.1f}"),
    "seconds": ("time", seconds),
    "peak_bytes": ("peak memory", lambda v: f"{v / 2**20:,.0f} MiB"),
}


@dataclass(frozen=True)
class Finding:
    """A sentence that begins with its `subject`."""

    subject: str
    rest: str

    def __str__(self) -> str:
        return self.subject + self.rest


# Pictures ------------------------------------------------------------------------------------------------------------
def draw(report: Report) -> dict[str, Picture]:
    """All pictures of the report by name: counts, prototypes, landscape, cdf, esd, numbers, effects, blocks,
    alignment, alpha, training.
    """
    made: dict[str, Picture] = {}
    labels, levels = report.labels, report.levels
    if report.counts:
        made["counts"] = figures.counts(report.counts, labels)
    if report.prototypes:
        made["prototypes"] = figures.prototypes(report.prototypes)
    if report.curves:
        shown = report.headline or tuple(matrices_of(report.curves)[:4])
        chosen = [curve for name in shown for curve in report.curves if curve.matrix == name]
        strips = [] if report.numbers or len(conditions_of(chosen)) < 2 else report.rows
        made["landscape"] = figures.landscape(
            report.curves,
            strips,
            shown,
            report.headline_metric,
            labels,
            levels,
            theory=report.theory,
            stems=report.stems,
        )
        made["cdf"] = figures.panels(chosen, "cdf", labels, levels)
        if len(matrices_of(report.curves)) > len(shown):
            made["esd"] = figures.panels(report.curves, "density", labels, levels)
    if report.numbers is not None and (picture := figures.numbers(report.numbers)) is not None:
        made["numbers"] = picture
    if any(row.effect is not None and figures.is_candidate(row) for row in report.headline_rows):
        made["effects"] = figures.effects(report.headline_rows, labels)
    if report.blocks:
        made["blocks"] = figures.panels(report.blocks, "lines", labels)
    if report.alignment:
        made["alignment"] = figures.lines(
            report.alignment, labels, x_label="leading directions, part of all", y_label="part of the labels' energy",
            note="one line per seed · dot: the information space, 90 % of the trace · dotted: directions that know "
            "nothing of the "
            "labels", levels=levels, chance=True,
        )  # fmt: skip
    if report.alpha:
        made["alpha"] = figures.lines(
            report.alpha, labels, x_label="xmin (start of the tail)", y_label="fitted exponent α", log_x=True, levels=levels,
            note="one line per seed · band: standard error · dot: the fit of the table, hollow where it was refused",
        )  # fmt: skip
    made |= {f"chart{i}": charts.picture(chart) for i, chart in enumerate(report.charts, 1)}
    if report.losses:
        made["training"] = figures.lines(
            report.losses, labels, x_label="epoch", y_label="training loss (nats)", log_y=True, levels=levels,
            note="one line per seed · dashed: the target", level=_target(report),
        )  # fmt: skip
    return made


def _target(report: Report) -> float | None:
    targets = {float(entry["target loss"]) for entry in report.training if "target loss" in entry}
    return targets.pop() if len(targets) == 1 else None


def captions(report: Report) -> dict[str, str]:
    """What is drawn, under each picture: the quantity, the resolution, the zeros."""
    multi = len(conditions_of(report.curves)) > 1
    small = _resolution(report)
    strips = [row for row in report.rows if row.metric == report.headline_metric]
    hollow = " (hollow: a refused fit)" if any(row.doubted()[0] for row in strips) else ""
    effect = ", d Cohen's effect size of true minus random labels" if any(row.effect for row in strips) else ""
    return {
        "counts": "How many eigenvalues stand apart, against the number of classes, with the numbers that one mean a "
        "class (C, or C − 1 without their common direction) and one for each pair of classes, C (C − 1), would give.",
        "prototypes": "The samples at both ends of the diagonal of the first matrix, networks trained on true labels, "
        "mean over seeds: those that the outputs depend on most, and least.",
        "numbers": "" if report.numbers is None else f"The {report.numbers.kind} of {report.title}, with their errors.",
        "landscape": f"Spectral densities{', overlaid' if multi else ''}. {small}"
        + (
            f" Below: {words(report.headline_metric, report.labels)} of the same matrices; dots are seeds{hollow}, bars "
            f"mean ± one standard deviation, of one seed its standard error{effect}."
            if report.headline_metric and multi
            else ""
        ),
        "esd": f"Densities of all matrices of the run. {small}",
        "cdf": "The fraction of eigenvalues at or below λ, of the same spectra and not smoothed.",
        "effects": "Cohen's d of true minus random labels across seeds, on an axis that is linear to ±2 and logarithmic beyond. "
        "With few seeds the intervals are wide. Metrics of scale and refused fits are left out: they cannot separate.",
        "alignment": "How much of the labels' energy ‖Uᵏᵀy‖²/‖y‖² lies in the leading k directions of the matrix. "
        "A curve that rises early says that the labels live where the network is easy to move.",
        "alpha": "The power-law exponent depends on where the tail is said to begin: a plateau is a tail, a slope is none. "
        "Starts that leave fewer than ten eigenvalues are not drawn.",
        "training": "Loss on the training labels after each epoch.",
        "blocks": "Densities of the diagonal blocks, each of its own eigenvalues alone; the table has their errors. Where the "
        "curves lie apart, one step size is too large for some blocks or too small for others.",
    }


def _resolution(report: Report) -> str:
    """The smoothing width, the known zeros and the fit of the picture, in one or two sentences."""
    if not report.curves:
        return ""
    text = f"Smoothing: a Gaussian of {LOG:g} decades in λ, under which one of n eigenvalues peaks at 1.7/n."
    for matrix in matrices_of(report.curves):
        own = of_matrix(report.curves, matrix)
        if any(is_signed(curve.spectrum) for curve in own):
            text += " " + _about_zero(own, report.labels)
    zeros = sorted({(c.matrix, c.spectrum.zeros, c.spectrum.dim) for c in report.curves if c.spectrum.zeros})
    named = [f"{zero} of {dim} ({words(matrix, report.labels)})" for matrix, zero, dim in zeros]
    if named:
        text += f" Eigenvalues known to be zero are counted but not drawn: {', '.join(named[:4])}"
        text += f" and {len(named) - 4} more." if len(named) > 4 else "."
    return text


def _about_zero(curves: list[Curve], labels: Mapping[str, str]) -> str:
    """What a two-sided axis leaves out and how much lies left of it, with their intervals, for each condition."""
    low = signed_floor(curve.spectrum for curve in curves)
    said = []
    for condition in conditions_of(curves):
        first = next(curve for curve in curves if curve.condition == condition)
        bands = [first.spectrum.count(*ends) for ends in ((-math.inf, -low), (-low, low))]
        negative, small = (
            f"{float(b.value):.0f}" + ("" if b.lower == b.upper else f" (95 %: {b.lower:.0f} to {b.upper:.0f})")
            for b in bands
        )
        said.append(f"{words(condition, labels)}, seed {first.seed}: {negative} and {small}")
    return (
        f"{words(curves[0].matrix, labels)} has negative eigenvalues: its axis is logarithmic on both sides of zero, left of it "
        f"are the negative ones, and the grey strip |λ| < {low:.2g} is not drawn. Of its {curves[0].spectrum.dim} eigenvalues, "
        f"those left of the strip and those in it: {'; '.join(said)}."
    )


# Sentences -----------------------------------------------------------------------------------------------------------
def findings(report: Report) -> list[Finding]:
    """What separates true from random labels, in sentences computed from the rows; empty where nothing is compared.

    A metric of scale is no candidate, and neither is a row with a refused fit: both are named as what they are.
    """
    judged = [row for row in report.rows if row.effect is not None or row.doubted("true", "random")[0]]
    if not any(row.effect is not None for row in judged):
        return []
    apart: list[tuple[float, Finding]] = []
    mixed: list[str] = []
    for metric in dict.fromkeys(row.metric for row in judged if not row.scale):
        rows = [row for row in judged if row.metric == metric]
        candidates = [row for row in rows if figures.is_candidate(row)]
        if sentence := _separating(candidates, len(rows), report.labels):
            apart.append((-sum(bool(row.separates) for row in candidates) / len(rows), sentence))
        elif candidates:
            mixed.append(words(metric, report.labels))
        else:
            name = f"{tables.opening(words(metric, report.labels))} {tables.REFUSED}"
            apart.append((0.0, Finding(name, ": not compared, its fits were refused in every matrix.")))
    said = [sentence for _, sentence in sorted(apart, key=lambda pair: pair[0])]
    if mixed:
        said.append(
            Finding("On no matrix", f" do all seeds agree on the sign of the difference for: {', '.join(mixed)}.")
        )
    said += _scales(judged, report.labels)
    seeds = min(len(row.values.get("true", ())) for row in judged)
    chance = Finding(
        "Differences are paired",
        f": true minus random labels of the same seed, that is of the same split, initial weights and order of samples. Of rows "
        f"that know nothing of the labels, {100 * 2.0 ** (1 - seeds):.2g} % would have the same sign on all {seeds} seeds by "
        "chance; Cohen's d is that of two unpaired groups.",
    )
    return [*said, chance]


def _separating(rows: Sequence[Row], count: int, labels: Mapping[str, str]) -> Finding | None:
    """In how many of the `count` matrices a metric separates, and where most clearly; `rows` are those without refused fits."""
    apart = [row for row in rows if row.separates]
    if not apart:
        return None
    signs = {math.copysign(1, _d(row)) for row in apart}
    way = (
        f"{'larger' if signs == {1.0} else 'smaller'} with true labels"
        if len(signs) == 1
        else "of one sign, not always the same,"
    )
    strongest = max(apart, key=lambda row: abs(_d(row)))
    refused = f" (in {count - len(rows)} of them a fit was refused {tables.REFUSED})" if count > len(rows) else ""
    return Finding(
        tables.opening(words(rows[0].metric, labels)),
        f": {way} on every seed in {len(apart)} of {matrices(count)}{refused}, most clearly in "
        f"{words(strongest.matrix, labels)} ({number(strongest, 'true')} against {number(strongest, 'random')}, "
        f"d = {'–' if strongest.effect is None else d_text(strongest.effect)}).",
    )


def _scales(rows: Sequence[Row], labels: Mapping[str, str]) -> list[Finding]:
    """What scale does: worth knowing, and no separation."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        if row.scale and not row.doubted("true", "random")[0]:
            counts.setdefault(row.metric, []).append(int(bool(row.separates) and _d(row) < 0))
    parts = [f"{words(metric, labels)} in {sum(flags)} of {matrices(len(flags))}" for metric, flags in counts.items()]
    if not parts:
        return []
    text = (
        " says how steep a network is, not what it has learnt, and is not counted as separating. On every seed larger with "
        f"random labels: {', '.join(parts)}."
    )
    return [Finding("Scale", text)]


def _d(row: Row) -> float:
    return row.effect[0] if row.effect is not None else math.nan


# The page ------------------------------------------------------------------------------------------------------------
def template(name: str) -> jinja2.Template:
    """A template of this folder; what is put into it is escaped, and a name that it does not get is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment.get_template(name)


def render(report: Report, pictures: Mapping[str, Picture]) -> str:
    """The whole page as a string."""
    others = [row for row in report.rows if row not in report.headline_rows]
    used = dict.fromkeys(row.metric for row in report.rows if f"note:{row.metric}" in report.labels)
    return template("page.html.j2").render(
        report=report,
        pictures=pictures,
        captions=captions(report),
        titles=TITLES,
        read=_read(report),
        findings=findings(report),
        numbers=_numbers(report),
        others=tables.of_rows(others, report.labels) if others else None,
        other_matrices=matrices(len({row.matrix for row in others})),
        metrics=[(words(name, report.labels), report.labels[f"note:{name}"]) for name in used],
        training=tables.of_mappings(report.training, 2),
        trends=tables.of_mappings(report.trends, 2),
        parts=tables.of_mappings(report.parts, 2),
        products=tables.of_mappings(
            [{**row, "matrix": words(row["matrix"], report.labels)} for row in report.products]
        ),
        cost=costs(report.cost),
        settings=tables.of_settings(report.config),
        environment=tables.of_settings(report.environment),
        version=report.environment.get("spectral", ""),
    )


def _read(report: Report) -> tuple[str, ...]:
    """How to read the first picture."""
    if report.numbers is not None:
        return (READ_NUMBERS[report.numbers.kind],)
    if not report.curves:
        return ()
    conditions = conditions_of(report.curves)
    if {"true", "random"} <= set(conditions):
        return READ + READ_COMPARED
    return READ + (READ_SWEPT if len(conditions) > 1 else READ_SINGLE)


def _numbers(report: Report) -> Table | None:
    if report.numbers is not None:
        return tables.of_numbers(report.numbers)
    if report.listed:
        return tables.of_mappings(report.listed)
    return tables.of_rows(report.headline_rows, report.labels) if report.rows else None


def text(report: Report) -> str:
    """The report for a terminal: question, answer, the table of the page, facts and findings."""
    parts = [f"{report.title}: {report.question}\n{report.verdict.sentence}\n"]
    if listed := _numbers(report):
        parts.append(listed.text() + "\n")
    if report.trends:
        parts.append(tables.of_mappings(report.trends, 2).text() + "\n")
    return "\n".join([*parts, *report.facts, *(f"- {finding}" for finding in findings(report))])


def costs(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how much) in words, for each cost that is known."""
    return [(what, said(float(cost[key]))) for key, (what, said) in COST.items() if key in cost]


def write(path: str | Path, report: Report, pictures: Mapping[str, Picture] | None = None) -> Path:
    """Write the page to `path`; `pictures` are those that `draw` makes (drawn here if not given)."""
    path = Path(path)
    atomic_write(path, render(report, draw(report) if pictures is None else pictures).encode())
    return path


def save_pictures(folder: str | Path, pictures: Mapping[str, Picture]) -> list[Path]:
    """Write each picture as FOLDER/name.png, and as FOLDER/name.svg for print; return the paths."""
    files = {f"{name}.{end}": getattr(picture, end) for name, picture in pictures.items() for end in ("png", "svg")}
    paths = [Path(folder) / name for name in files]
    for path, made in zip(paths, files.values(), strict=True):
        atomic_write(path, made())
    return paths
