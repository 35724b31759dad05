"""One self-contained HTML page: the question, the pictures, the table, what separates the conditions, settings and cost.

Pictures are inlined as base64 PNG and the style sheet stands in the page: the file can be mailed and needs neither a
network nor scripts.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from spectral.progress import seconds

from . import Curve, Report, Row, conditions_of, figures, matrices_of
from .tables import d_text, entries, html_table, mapping_table, mean_and_error, with_error, words

STYLE = """
body { font: 16px/1.55 Georgia, 'Times New Roman', serif; color: #1c1c1c; max-width: 72rem; margin: 2.5rem auto;
  padding: 0 1.5rem; background: #fff }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; border-bottom: 1px solid #ddd; padding-bottom: .25rem }
p, li { max-width: 56rem } .lead { font-size: 1.1rem; color: #333 }
figure { margin: 1.2rem 0 } figure img { max-width: 100%; height: auto }
figcaption { font-size: .88rem; color: #555; max-width: 60rem }
table { border-collapse: collapse; font: 13.5px/1.4 'DejaVu Sans', Verdana, Arial, sans-serif; margin: .8rem 0 }
th, td { padding: .2rem .75rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
tbody th { text-align: left; font-weight: normal } thead th { border-bottom: 2px solid #333 }
tr.matrix th { font-weight: bold; padding-top: .8rem; border-bottom: 1px solid #ccc }
tr.apart td:last-child { color: #0072b2; font-weight: bold }
table.settings td { text-align: left; white-space: normal; word-break: break-word }
table.settings th { color: #555; vertical-align: top }
.wide { overflow-x: auto } details { margin: .8rem 0 } summary { cursor: pointer; color: #0072b2 }
.cost { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; padding: 0; list-style: none }
.cost b { display: block; font-size: 1.25rem } footer { margin-top: 3rem; font-size: .85rem; color: #777 }
"""

READ = (
    "Each curve is the empirical spectral density (ESD) of one matrix: how many of its eigenvalues λ lie within a factor "
    "of ten, on logarithmic axes, where a power law is a straight line and a shift to the right is more sensitivity of the "
    "network to what the matrix differentiates by.",
    "Look at the shape before the position: a few eigenvalues far to the right of a bulk mean that the network answers "
    "along few directions (small effective rank), a broad shoulder without outliers that it answers along many.",
)
READ_COMPARED = (
    "Compare the blue curve (true labels) with the vermilion one (random labels) and the grey one (before training): where "
    "their bands do not overlap, the densities differ by more than seeds do.",
)
READ_SWEPT = ("Compare the colours, which are the steps of the sweep or its runs.",)
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


def write(path: str | Path, report: Report, pictures: Mapping[str, bytes] | None = None) -> Path:
    """Write the page to `path`; `pictures` are PNG bytes by name as `draw` makes them (drawn here if not given)."""
    path = Path(path)
    path.write_text(render(report, draw(report) if pictures is None else pictures), encoding="utf-8")
    return path


def draw(report: Report) -> dict[str, bytes]:
    """All pictures of the report as PNG bytes by name: landscape, esd, cdf, numbers, effects, alignment, alpha, training."""
    made: dict[str, Figure] = {}
    labels = report.labels
    if report.curves:
        shown = report.headline or tuple(matrices_of(report.curves)[:4])
        chosen = [curve for curve in report.curves if curve.matrix in shown]
        made["landscape"] = figures.landscape(report.curves, report.rows, shown, report.headline_metric, labels)
        made["cdf"] = figures.panels(chosen, "cdf", labels)
        if len(matrices_of(report.curves)) > len(shown):
            made["esd"] = figures.panels(report.curves, "density", labels)
    if report.numbers is not None and (picture := figures.numbers(report.numbers)) is not None:
        made["numbers"] = picture
    if any(row.effect is not None for row in report.rows):
        first = [row for row in report.rows if row.matrix in report.headline] or report.rows
        made["effects"] = figures.forest(first, labels)
    if report.alignment:
        made["alignment"] = figures.lines(
            report.alignment, labels, x_label="leading directions, part of all", y_label="part of the labels' energy",
            note="one line per seed · dotted: directions that know nothing of the labels", chance=True,
        )  # fmt: skip
    if report.alpha:
        made["alpha"] = figures.lines(
            report.alpha, labels, x_label="xmin (start of the tail)", y_label="fitted exponent α", log_x=True,
            note="one line per seed · band: standard error of the fit",
        )  # fmt: skip
    if report.losses:
        made["training"] = figures.lines(
            report.losses, labels, x_label="epoch", y_label="training loss (nats)", log_y=True,
            note="one line per seed · dashed: the target", level=_target(report),
        )  # fmt: skip
    return {name: figures.png(figure) for name, figure in made.items()}


def _target(report: Report) -> float | None:
    targets = {float(entry["target loss"]) for entry in report.training if "target loss" in entry}
    return targets.pop() if len(targets) == 1 else None


def captions(report: Report) -> dict[str, str]:
    """What stands under each picture: what the band is, the resolution, the zeros."""
    multi = len(conditions_of(report.curves)) > 1
    note = figures.band_note(report.curves) if report.curves else ""
    small = _resolution(report)
    return {
        "numbers": "" if report.numbers is None else f"The {report.numbers.kind} of {report.title}, with their errors.",
        "landscape": f"Spectral densities{', overlaid' if multi else ''}: {note}. {small}"
        + (
            f" Below: {words(report.headline_metric, report.labels)} of the same matrices; dots are seeds, bars mean ± one "
            "standard deviation."
            if report.headline_metric and multi
            else ""
        ),
        "esd": f"Densities of all matrices of the run: {note}. {small}",
        "cdf": f"Distribution functions of the same spectra, not smoothed: {note}.",
        "effects": "Effect sizes across seeds: Cohen's d of true minus random labels, on an axis that is linear to ±2 and "
        "logarithmic beyond. With few seeds the intervals are wide.",
        "alignment": "How much of the labels' energy ‖Uᵏᵀy‖²/‖y‖² lies in the leading k directions of the matrix. "
        "A curve that rises early says that the labels live where the network is easy to move.",
        "alpha": "The power-law exponent depends on where the tail is said to begin: a plateau is a tail, a slope is none. "
        "Starts that leave fewer than ten eigenvalues are not drawn.",
        "training": "Loss on the training labels after each epoch.",
    }


def _resolution(report: Report) -> str:
    """The smoothing width, the known zeros and the fit of the picture, in one or two sentences."""
    if not report.curves:
        return ""
    text = f"Smoothing: a Gaussian of {figures.RESOLUTION:g} decades in λ, under which a single eigenvalue peaks at 4."
    for matrix in matrices_of(report.curves):
        if any(figures.is_signed(c.spectrum) for c in report.curves if c.matrix == matrix):
            text += " " + _about_zero([c for c in report.curves if c.matrix == matrix], report.labels)
    zeros = sorted({(c.matrix, c.spectrum.zeros, c.spectrum.dim) for c in report.curves if c.spectrum.zeros})
    named = [f"{zero} of {dim} ({words(matrix, report.labels)})" for matrix, zero, dim in zeros]
    if named:
        text += f" Eigenvalues known to be zero are counted but not drawn: {', '.join(named[:4])}"
        text += f" and {len(named) - 4} more." if len(named) > 4 else "."
    return text


def _about_zero(curves: list[Curve], labels: Mapping[str, str]) -> str:
    """What a two-sided axis leaves out and how much lies left of it, with their intervals, for each condition."""
    low = figures.signed_floor(curves)
    said = []
    for condition in conditions_of(curves):
        first = next(curve for curve in curves if curve.condition == condition)
        bands = [first.spectrum.count(*ends) for ends in ((-math.inf, -low), (-low, low))]
        negative, small = (
            f"{float(b.value):.0f}" + ("" if b.lower == b.upper else f" (95 %: {b.lower:.0f} to {b.upper:.0f})")
            for b in bands
        )
        said.append(f"{figures.NAMES.get(condition, condition)}, seed {first.seed}: {negative} and {small}")
    return (
        f"{words(curves[0].matrix, labels)} has negative eigenvalues: its axis is logarithmic on both sides of zero, left of it "
        f"are the negative ones, and the grey strip |λ| < {low:.2g} is not drawn. Of its {curves[0].spectrum.dim} eigenvalues, "
        f"those left of the strip and those in it: {'; '.join(said)}."
    )


def findings(report: Report) -> list[str]:
    """What separates true from random labels, in sentences computed from the rows; empty where nothing is compared."""
    judged = [row for row in report.rows if row.effect is not None and row.separates is not None]
    if not judged:
        return []
    said: list[tuple[float, str]] = []
    mixed: list[str] = []
    for metric in dict.fromkeys(row.metric for row in judged):
        rows = [row for row in judged if row.metric == metric]
        apart = [row for row in rows if row.separates]
        name = words(metric, report.labels)
        if apart:
            ds = sorted((_d(row) for row in apart), key=abs)
            signs = {math.copysign(1, d) for d in ds}
            way = "in either direction"
            if len(signs) == 1:
                way = ("larger" if signs == {1.0} else "smaller") + " with true labels"
            strongest = max(apart, key=lambda row: abs(_d(row)))
            text = (
                f"<b>{html.escape(name)}</b> has the same sign on every seed in {len(apart)} of {_matrices(len(rows))}, {way}; "
                f"most clearly in {html.escape(words(strongest.matrix, report.labels))} "
                f"(true {_side(strongest, 'true')}, random {_side(strongest, 'random')}, d = {_effect(strongest)})."
            )
            said.append((-len(apart) / len(rows), text))
        else:
            mixed.append(name)
    sentences = [text for _, text in sorted(said, key=lambda pair: pair[0])]
    if mixed:
        sentences.append(
            f"On no matrix do all seeds agree on the sign of the difference for: {html.escape(', '.join(mixed))}."
        )
    seeds = min(len(row.values.get("true", ())) for row in judged)
    sentences.append(
        f"Differences are paired: true minus random labels of the same seed, that is of the same split, initial weights and "
        f"order of samples. Of rows that know nothing of the labels, {100 * 2.0 ** (1 - seeds):.2g} % would have the same sign "
        f"on all {seeds} seeds by chance; Cohen's d is that of two unpaired groups."
    )
    return sentences


def as_text(sentence: str) -> str:
    """A sentence of `findings` without its mark-up, for a terminal."""
    return html.unescape(re.sub(r"<[^>]+>", "", sentence))


def _matrices(count: int) -> str:
    return f"{count} matrices" if count > 1 else "1 matrix"


def _d(row: Row) -> float:
    return row.effect[0] if row.effect is not None else math.nan


def _effect(row: Row) -> str:
    return "–" if row.effect is None else d_text(row.effect)


def _side(row: Row, condition: str) -> str:
    values = row.values.get(condition, ())
    return with_error(*mean_and_error(values, row.errors.get(condition, (math.nan,) * len(values))))


def render(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The whole page as a string."""
    texts = captions(report)
    compared = len(conditions_of(report.curves)) > 1
    both = {"true", "random"} <= set(conditions_of(report.curves))
    read: tuple[str, ...] = READ + (READ_COMPARED if both else READ_SWEPT if compared else READ_SINGLE)
    if report.numbers is not None:
        read = (READ_NUMBERS[report.numbers.kind],)
    what = "the picture" if "landscape" in pictures or "numbers" in pictures else "it"
    notes = {key: value for key, value in report.labels.items() if key.startswith("note:")}
    explained = {key.removeprefix("note:"): value for key, value in notes.items()}
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{html.escape(report.title)}</title><style>{STYLE}</style></head><body>",
        f'<h1>{html.escape(report.title)}</h1><p class="lead">{html.escape(report.question)}</p>',
        _figure("landscape", pictures, texts) or _figure("numbers", pictures, texts),
        f"<h2>How to read {what}</h2><p>{' '.join(html.escape(sentence) for sentence in read)}</p>",
    ]
    said = findings(report)
    if said:
        parts.append("<h2>What separates true from random labels</h2><ul>")
        parts += [f"<li>{sentence}</li>" for sentence in said]
        parts.append("</ul>")
        parts.append(_figure("effects", pictures, texts))
    parts += [_numbers(report, explained), _more(pictures, texts), _training(report, pictures, texts)]
    parts.append(_settings(report))
    version = html.escape(str(report.environment.get("spectral", "")))
    parts.append(f"<footer>Written by spectral {version}. The page is self-contained.</footer></body></html>")
    return "\n".join(part for part in parts if part)


def _figure(name: str, pictures: Mapping[str, bytes], texts: Mapping[str, str]) -> str:
    if name not in pictures:
        return ""
    data = base64.b64encode(pictures[name]).decode("ascii")
    text = html.escape(texts.get(name, ""))
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _numbers(report: Report, explained: Mapping[str, str]) -> str:
    """The table of the headline matrices, the others folded; or the numbers that make no spectrum."""
    if report.numbers is not None:
        return f'<h2>The numbers</h2><div class="wide">{_table(entries(report.numbers))}</div>'
    if not report.rows:
        return ""
    first = [row for row in report.rows if row.matrix in report.headline] or report.rows
    others = [row for row in report.rows if row not in first]
    text = f'<h2>The numbers</h2><div class="wide">{html_table(first, report.labels, explained)}</div>'
    if others:
        text += (
            f"<details><summary>The other {_matrices(len({row.matrix for row in others}))}</summary>"
            f'<div class="wide">{html_table(others, report.labels, explained)}</div></details>'
        )
    if explained:
        used = [metric for metric in dict.fromkeys(row.metric for row in report.rows) if metric in explained]
        items = "".join(
            f"<li><b>{html.escape(words(m, report.labels))}</b>: {html.escape(explained[m])}</li>" for m in used
        )
        text += f"<details><summary>What each metric is</summary><ul>{items}</ul></details>"
    return text


def _more(pictures: Mapping[str, bytes], texts: Mapping[str, str]) -> str:
    """The remaining pictures, each under its title."""
    titles = {
        "cdf": "Distribution functions",
        "alignment": "Where the labels live",
        "alpha": "The power-law exponent and where its tail begins",
        "esd": "All densities",
    }
    return "\n".join(
        f"<h2>{title}</h2>{_figure(name, pictures, texts)}" for name, title in titles.items() if name in pictures
    )


def _training(report: Report, pictures: Mapping[str, bytes], texts: Mapping[str, str]) -> str:
    """Whether each network reached its target, and what it can do."""
    if not report.training:
        return ""
    return f"<h2>Training</h2>{_figure('training', pictures, texts)}{_table(report.training)}"


def _table(entries: Sequence[Mapping[str, object]], style: str = "") -> str:
    """One row per mapping, one column per key that any of them has."""
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    head = "".join(f"<th>{html.escape(column.replace('_', ' '))}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(_cell(entry.get(column)))}</td>' for column in columns)}</tr>"
        for entry in entries
    )
    named = f' class="{style}"' if style else ""
    return f"<table{named}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)


def _settings(report: Report) -> str:
    """Cost, remarks, settings and environment."""
    cost = dict(report.cost)
    units = {
        "products": lambda v: f"{v:,.0f}", "epochs": lambda v: f"{v:,.1f}", "seconds": seconds,
        "peak_bytes": lambda v: f"{v / 2**20:,.0f} MiB",
    }  # fmt: skip
    names = {"products": "products", "epochs": "sweeps over the data", "seconds": "time", "peak_bytes": "peak memory"}
    items = "".join(f"<li><b>{units[key](float(cost[key]))}</b>{names[key]}</li>" for key in names if key in cost)
    text = f'<h2>What it cost</h2><ul class="cost">{items}</ul>' if items else ""
    if report.facts:
        text += "".join(f"<p>{html.escape(fact)}</p>" for fact in report.facts)
    if report.products:
        rows = [{**row, "matrix": words(str(row["matrix"]), report.labels)} for row in report.products]
        text += (
            "<details><summary>How the products were computed</summary>"
            f'<div class="wide">{_table(rows, "settings")}</div></details>'
        )
    if report.config:
        table = mapping_table(report.config)
        text += f"<h2>Settings</h2><details open><summary>The whole configuration</summary>{table}</details>"
    if report.environment:
        text += f"<h2>Environment</h2>{mapping_table(report.environment)}"
    return text


def save_pictures(folder: str | Path, pictures: Mapping[str, bytes], names: Sequence[str] = ()) -> list[Path]:
    """Write each picture as FOLDER/name.png (all of them, or those named) and return the paths."""
    folder = Path(folder)
    paths = []
    for name, data in pictures.items():
        if not names or name in names:
            paths.append(folder / f"{name}.png")
            paths[-1].write_bytes(data)
    return paths
