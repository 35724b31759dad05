"""One self-contained HTML page: the answer, the pictures, the numbers, what separates the conditions, settings and cost.

`page.html.j2` is the page, this module says what stands in it. Pictures are inlined as PNG and the style sheet stands in the
page: the file can be mailed and needs neither a network nor scripts.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from spectral.experiments.prose import prose, say
from spectral.persist import atomic_write
from spectral.quadrature.density import LOG, is_signed, signed_floor

from . import Curve, Report, Row, charts, conditions_of, figures, matrices_of, of_matrix, tables
from .picture import Picture
from .tables import Table, d_text, matrices, number, seconds, words

TEXTS = prose(__file__)
SAID: dict[str, Callable[[float], str]] = {  # costs in words, see TEXTS["costs"]
    "products": "{:,.0f}".format,
    "epochs": "{:,.1f}".format,
    "seconds": seconds,
    "peak_bytes": lambda v: f"{v / 2**20:,.0f} MiB",
}


Finding = tuple[str, str]  # what a sentence begins with, and the rest of it


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
        made["cdf"] = figures.distributions(chosen, labels, levels)
        if len(matrices_of(report.curves)) > len(shown):
            made["esd"] = figures.landscape(report.curves, [], matrices_of(report.curves), "", labels, levels)
    if report.numbers is not None and (picture := figures.numbers(report.numbers)) is not None:
        made["numbers"] = picture
    if any(row.effect is not None and row.candidate for row in report.headline_rows):
        made["effects"] = figures.effects(report.headline_rows, labels)
    if report.blocks:
        made["blocks"] = figures.landscape(report.blocks, [], matrices_of(report.blocks), "", labels, band=False)
    made |= {f"chart{i}": charts.picture(chart) for i, chart in enumerate(report.charts, 1)}
    lines = {"alignment": report.alignment, "alpha": report.alpha, "training": report.losses}
    targets = {float(entry["target loss"]) for entry in report.training if "target loss" in entry}
    for name, items in lines.items():
        if items:
            level = next(iter(targets)) if name == "training" and len(targets) == 1 else None
            made[name] = figures.lines(items, labels, levels=levels, level=level, **TEXTS["lines"][name])
    return made


def captions(report: Report) -> dict[str, str]:
    """What is drawn, under each picture: the quantity, the resolution, the zeros."""
    strips = [row for row in report.rows if row.metric == report.headline_metric]
    facts = {
        "report": report, "small": _resolution(report), "metric": words(report.headline_metric, report.labels),
        "multi": len(conditions_of(report.curves)) > 1, "hollow": any(row.doubted()[0] for row in strips),
        "effect": any(row.effect for row in strips),
    }  # fmt: skip
    return {name: say(text, **facts) for name, text in TEXTS["captions"].items()}


def _resolution(report: Report) -> str:
    """The smoothing width, the known zeros and the fit of the picture, in one or two sentences."""
    if not report.curves:
        return ""
    each = [of_matrix(report.curves, matrix) for matrix in matrices_of(report.curves)]
    signed = [_about_zero(own, report.labels) for own in each if any(is_signed(curve.spectrum) for curve in own)]
    zeros = sorted({(c.matrix, c.spectrum.zeros, c.spectrum.dim) for c in report.curves if c.spectrum.zeros})
    named = [f"{zero} of {dim} ({words(matrix, report.labels)})" for matrix, zero, dim in zeros]
    return say(TEXTS["resolution"], width=LOG, signed=signed, zeros=named)


def _about_zero(curves: list[Curve], labels: Mapping[str, str]) -> str:
    """What a two-sided axis leaves out and how much lies left of it, with their intervals, for each condition."""
    low = signed_floor(curve.spectrum for curve in curves)
    said = []
    for condition in conditions_of(curves):
        first = next(curve for curve in curves if curve.condition == condition)
        bands = [first.spectrum.count(*ends) for ends in ((-math.inf, -low), (-low, low))]
        said.append(say(TEXTS["left of it"], condition=words(condition, labels), seed=first.seed, bands=bands))
    matrix, dim = words(curves[0].matrix, labels), curves[0].spectrum.dim
    return say(TEXTS["two sides"], matrix=matrix, low=low, dim=dim, said=said)


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
        candidates = [row for row in rows if row.candidate]
        if sentence := _separating(candidates, len(rows), report.labels):
            apart.append((-sum(bool(row.separates) for row in candidates) / len(rows), sentence))
        elif candidates:
            mixed.append(words(metric, report.labels))
        else:
            name = f"{tables.opening(words(metric, report.labels))} {tables.REFUSED}"
            apart.append((0.0, (name, ": not compared, its fits were refused in every matrix.")))
    said = [sentence for _, sentence in sorted(apart, key=lambda pair: pair[0])]
    if mixed:
        said.append(("On no matrix", f" do all seeds agree on the sign of the difference for: {', '.join(mixed)}."))
    said += _scales(judged, report.labels)
    seeds = min(len(row.values.get("true", ())) for row in judged)
    return [*said, ("Differences are paired", say(TEXTS["paired"], seeds=seeds))]


def _separating(rows: Sequence[Row], count: int, labels: Mapping[str, str]) -> Finding | None:
    """In how many of the `count` matrices a metric separates, and where most clearly; `rows` are those without refused fits."""
    apart = [row for row in rows if row.separates]
    if not apart:
        return None
    larger = {_d(row) > 0 for row in apart}
    strongest = max(apart, key=lambda row: abs(_d(row)))
    numbers = {"d": "–" if strongest.effect is None else d_text(strongest.effect)}
    numbers |= {"own": number(strongest, "true"), "other": number(strongest, "random"), "mark": tables.REFUSED}
    facts = {"larger": larger, "apart": len(apart), "all": matrices(count), "refused": count - len(rows)}
    rest = say(TEXTS["separates"], **facts, where=words(strongest.matrix, labels), **numbers)
    return tables.opening(words(rows[0].metric, labels)), rest


def _scales(rows: Sequence[Row], labels: Mapping[str, str]) -> list[Finding]:
    """What scale does: worth knowing, and no separation."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        if row.scale and not row.doubted("true", "random")[0]:
            counts.setdefault(row.metric, []).append(int(bool(row.separates) and _d(row) < 0))
    parts = [f"{words(metric, labels)} in {sum(flags)} of {matrices(len(flags))}" for metric, flags in counts.items()]
    return [("Scale", f" {say(TEXTS['scale'], parts=parts)}")] if parts else []


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
    environment.globals["tables"] = tables
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
        titles=TEXTS["titles"],
        read=_read(report),
        findings=findings(report),
        numbers=_numbers(report),
        others=tables.of_rows(others, report.labels) if others else None,
        other_matrices=matrices(len({row.matrix for row in others})),
        metrics=[(words(name, report.labels), report.labels[f"note:{name}"]) for name in used],
        cost=costs(report.cost),
        version=report.environment.get("spectral", ""),
    )


def _read(report: Report) -> list[str]:
    """How to read the first picture."""
    if report.numbers is not None:
        return [TEXTS["read"][report.numbers.kind]]
    if not report.curves:
        return []
    conditions = conditions_of(report.curves)
    how = "compared" if {"true", "random"} <= set(conditions) else "swept" if len(conditions) > 1 else "single"
    return [TEXTS["read"]["spectra"], TEXTS["read"][how]]


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
    return "\n".join([*parts, *report.facts, *(f"- {subject}{rest}" for subject, rest in findings(report))])


def costs(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how much) in words, for each cost that is known."""
    return [(what, SAID[key](float(cost[key]))) for key, what in TEXTS["costs"].items() if key in cost]


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
