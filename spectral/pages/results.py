"""The page of results that somebody has at hand (`spectral.report`): a section for each, what all of them say before them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import spectral
from spectral.analysis import Comparison, PowerLaw, summary
from spectral.cards import with_error
from spectral.layer_table import NAMED
from spectral.persist import atomic_write

from . import Curve, Line, Numbers, Subject, build, figures, page, tables, verdict
from .picture import Panel, Picture, shot
from .tables import Table

KNOWN = "a Spectrum, an Estimate or another result of spectral"
QUESTION = "What was found, and how sure is it?"
VALUE = "value"  # the one condition of a result
APART = (
    "W1: the mean distance of eigenvalues of the same rank; KS: the largest difference of the distribution functions."
)
ALPHA = "A plateau is a tail, a slope is none; starts that leave fewer than ten eigenvalues are not drawn."
LAYERS_READ = (
    "Each layer's weight, its exponent with one standard error; hollow: the tail is no power law, whatever the exponent. Between "
    "the dashed lines WeightWatcher does not warn. Data columns are of the layer's block of the matrix that is named below."
)
PRODUCTS = "How the products were computed"
PAIRS = "pairs words"  # the layout of a table of two columns
LISTED = (  # metrics of a spectrum that a table begins with; the others fold away
    "effective_rank", "information_dimension", "stable_rank", "trace", "mean", "lambda_max", "lambda_min",
    "negative_mass", "alpha",
)  # fmt: skip
LEAST_TAIL = 10  # eigenvalues that a start must leave to be drawn
WIDE = 30  # a ratio of traces from which on their axis is logarithmic
MOST_ROWS = tables.MOST_ENTRIES


@dataclass(frozen=True)
class Section:
    """One result: its name, what it says in a sentence, a picture with its caption, its numbers, and notes.

    `more` are tables that fold away, each under its title, `took` are products and sweeps over the data, `kind` is the layout of
    the table.
    """

    name: str
    question: str
    sentence: str
    table: Table
    picture: Picture | None = None
    caption: str = ""
    notes: tuple[str, ...] = ()
    more: tuple[tuple[str, Table], ...] = ()
    took: tuple[float, float] = (0.0, 0.0)
    kind: str = "cards"


def write(results: Any, path: str | Path, title: str | None) -> Path:
    """See `spectral.report`."""
    given, target = named(results), Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is no folder, and the page shall lie in it; make it first.")
    if target.is_dir():
        raise ValueError(f"{target} is a folder; name the page, such as {target / 'page.html'}.")
    sections = [section(name, result) for name, result in given.items()]
    spectra = {k: r for k, r in given.items() if isinstance(r, spectral.Spectrum) and not r.of_vector}
    products, epochs = (sum(part.took[i] for part in sections) for i in (0, 1))
    rendered = page.template("results.html.j2").render(
        title=title or (sections[0].name if len(given) == 1 else f"{len(given)} results"),
        question=sections[0].question if len(sections) == 1 else QUESTION,
        sections=sections,
        together=overlaid(spectra) if len(spectra) > 1 else None,
        read=page.READ if spectra else (),
        cost=page.costs({"products": products, "epochs": epochs}) if products else [],
        version=spectral.__version__,
    )
    atomic_write(target, rendered.encode())
    return target


def named(results: Any) -> dict[str, Any]:
    """Results by their names: those of a mapping, or their kinds, numbered where one comes twice; of a named tuple each part."""
    if isinstance(results, Mapping) and not isinstance(results, Comparison):
        given = {str(name): result for name, result in results.items()}
    else:
        listed = list(results) if type(results) in (list, tuple) else [results]
        kinds = [type(result).__name__ for result in listed]
        given = {
            kind if kinds.count(kind) == 1 else f"{kind} {kinds[: i + 1].count(kind)}": result
            for i, (kind, result) in enumerate(zip(kinds, listed, strict=True))
        }
    if not given:
        raise ValueError("there are no results to report; give one at least.")
    apart: dict[str, Any] = {}
    for name, result in given.items():
        parts = zip(result._fields, result, strict=True) if hasattr(result, "_fields") else [("", result)]
        apart |= {f"{name} {part}".strip(): value for part, value in parts}
    return apart


def section(name: str, result: Any) -> Section:
    """What a page says of one result."""
    for kind, told in KINDS.items():
        if isinstance(result, kind):
            return told(name, result)
    if callable(getattr(result, "plot", None)) and callable(getattr(result, "to_arrays", None)):
        return _other(name, result)
    if is_dataclass(result) and type(result).__str__ is not object.__str__:
        return _told(name, result)
    raise TypeError(
        f"{name} is of type {type(result).__name__}, of which there is no page; give {KNOWN}, or what has plot and to_arrays."
    )


def overlaid(spectra: Mapping[str, Any]) -> Picture:
    """All densities on one pair of axes, and all distribution functions."""
    curves = [Curve("density", name, 0, spectrum) for name, spectrum in spectra.items()]
    densities = figures.panels(curves, "density", {})
    steps = figures.panels([replace(curve, matrix="distribution function") for curve in curves], "cdf", {})
    return replace(densities, panels=densities.panels + steps.panels)


# Kinds --------------------------------------------------------------------------------------------------------------------
def _spectrum(name: str, s: Any) -> Section:
    if s.of_vector:
        return _measure(name, s)
    numbers = summary(s)
    whole = build.single(Subject(name, VALUE, 0, None, math.nan), s, numbers, metrics=None, alpha_curve=True)
    labels = {**whole.labels, name: ""}
    first = [row for row in whole.rows if row.metric in LISTED]
    rest = [row for row in whole.rows if row.metric not in LISTED]
    picture = replace(overlaid({name: s}), keys=())
    if whole.alpha:
        fitted = figures.lines(
            [replace(line, matrix="exponent against the start of its tail") for line in whole.alpha], {},
            x_label="xmin (start of the tail)", y_label="fitted exponent α", log_x=True,
        )  # fmt: skip
        picture = replace(picture, panels=picture.panels + fitted.panels)
    return Section(
        name,
        build.QUESTION_SINGLE,
        verdict.of_spectrum(s, numbers).sentence,
        tables.of_rows(sorted(first, key=lambda row: LISTED.index(row.metric)), labels),
        picture,
        "The spectral density, its distribution function (not smoothed)"
        + (
            ", and the power-law exponent for every start of its tail, hollow where the fit is refused."
            if whole.alpha
            else "."
        ),
        whole.facts,
        (
            (f"The other {len(rest)} numbers", tables.of_rows(rest, labels)),
            *(
                (PRODUCTS, tables.of_mappings([_without_matrix(row) for row in whole.products]))
                for _ in whole.products[:1]
            ),
        ),
        took=(float(s.products), float(s.epochs)),
    )


def _measure(name: str, s: Any) -> Section:
    """Of one vector: where it lies, and nothing that counts eigenvalues."""
    rows = {key: with_error(float(e), float(e.stderr)) for key, e in s.estimates().items()}
    return Section(
        name, "On which eigenvalues does the vector lie?", f"{tables.opening(str(s)).rstrip('.')}.", tables.of_settings(rows),
        replace(overlaid({name: s}), keys=()), "The vector's part by eigenvalue, and its distribution function (not smoothed).",
        took=(float(s.products), float(s.epochs)), kind=PAIRS,
    )  # fmt: skip


def _without_matrix(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "matrix"}


def _pairs(name: str, result: Any) -> Section:
    kind = "eigenvalues" if isinstance(result, spectral.Eigenpairs) else "singular values"
    about = {"kind": kind, "threshold": result.threshold, "complete": result.complete}
    given = Numbers.of(result.to_arrays(), about)
    left = "Nothing better was left" if result.complete else "The search was cut off, and a better one may be missing"
    return Section(
        name,
        build.QUESTIONS[kind],
        verdict.of_numbers(given, which="extreme").sentence,
        tables.of_numbers(given),
        figures.numbers(given) if len(given.value) else None,
        page.READ_NUMBERS[kind],
        (f"{left}; a residual of {result.threshold:.2g} counts as converged.",),
        took=(float(result.products), float(result.epochs)),
    )


def _estimate(name: str, e: Any) -> Section:
    said = f" ({e.method or 'estimated'}, {e.products} products)" if np.any(np.asarray(e.stderr) != 0) else ", exactly"
    took = (float(e.products), 0.0)
    if np.ndim(e.value):
        given = Numbers.of(e.to_arrays(), {"kind": "diagonal"})
        sentence = verdict.of_numbers(given).sentence
        return Section(
            name, build.QUESTIONS["diagonal"], sentence, tables.of_numbers(given), figures.numbers(given),
            page.READ_NUMBERS["diagonal"].partition("; estimate.npz")[0] + ".", took=took,
        )  # fmt: skip
    text = with_error(float(e.value), float(e.stderr))
    known = {"certified, at least": e.lower, "certified, at most": e.upper}
    rows = {"standard error": f"{float(e.stderr):.3g}", **{k: f"{v:.6g}" for k, v in known.items() if math.isfinite(v)}}
    rows |= {"random vectors": str(e.probes), "products": str(e.products)}
    rows = {"value": f"{float(e.value):.6g}", **rows, **({"method": e.method} if e.method else {})}
    return Section(
        name, QUESTION, f"{tables.opening(name)} is {text}{said}.", tables.of_settings(rows), took=took, kind=PAIRS
    )


def _power_law(name: str, fit: Any) -> Section:
    c = fit.curve
    drawn = np.isfinite(c.alpha) & (c.tail >= LEAST_TAIL)
    chosen = (float(fit.xmin), float(fit.alpha)) if math.isfinite(fit.alpha) else None
    line = Line(name, VALUE, 0, c.xmin[drawn], c.alpha[drawn], c.sigma[drawn], chosen, not fit.accepted)
    picture = figures.lines(
        [line], {}, x_label="xmin (start of the tail)", y_label="fitted exponent α", log_x=True,
        note="band: one standard error · dot: the fit, hollow where it is refused",
    )  # fmt: skip
    rows = {"verdict": "accepted" if fit.accepted else "refused"}
    rows |= {"α": with_error(fit.alpha, fit.sigma)}
    for label, key in (("start xmin", "xmin"), ("distance D", "D"), ("eigenvalues in the tail", "tail")):
        rows[label] = with_error(float(getattr(fit, key)), fit.errors.get(key, math.nan))
    rows |= {
        "decades": f"{fit.decades:.3g}",
        "independent eigenvalues": f"{fit.n_eff:.0f}",
        "Hill's estimate": f"{fit.hill:.4g}",
    }
    tests = [
        {"against": name, "ln of the likelihood ratio": test.ratio, "p": test.p, "favours": test.favours}
        for name, test in fit.tests.items()
    ]
    return Section(
        name, "Is the tail a power law?", f"{tables.opening(str(fit)).rstrip('.')}.", tables.of_settings(rows),
        replace(picture, keys=()) if drawn.any() else None, ALPHA, (),
        (("Likelihood ratios against rivals", tables.of_mappings(tests)),) if tests else (), kind=PAIRS,
    )  # fmt: skip


def _plan(name: str, plan: Any) -> Section:
    rows = {f"seconds of {part}": f"{value:.3g}" for part, value in plan.parts.items()}
    rows |= {f"MiB of {part}": f"{size / 2**20:.4g}" for part, size in plan.held.items()}
    fits = "it fits what is free now" if plan.fits else "it does not fit what is free now"
    picture = figures.bars(plan.parts, "seconds", name)
    return Section(
        name, "What would it take?", f"{tables.opening(str(plan))}: {fits}.", tables.of_settings(rows), picture,
        "Seconds of the whole run by what takes them, predicted from products that were measured.", kind=PAIRS,
    )  # fmt: skip


def _comparison(name: str, told: Any) -> Section:
    keys = [key for key in told if f"{key}_stderr" in told]
    rows = {key.replace("_", " "): with_error(told[key], told[f"{key}_stderr"]) for key in keys}
    return Section(
        name, "How far are the two spectra apart?", f"{tables.opening(str(told))}.", tables.of_settings(rows),
        overlaid({"a": told.a, "b": told.b}), "Both spectra, overlaid.",
        (APART,), kind=PAIRS,
    )  # fmt: skip


def _layers(name: str, t: Any) -> Section:
    columns = [c for c in ("alpha", "data_trace") if c in t.columns and np.isfinite(t[c].astype(float)).any()]
    panels: list[Panel] = []
    for column in columns:
        figure = Figure(figsize=(4.6, 1.1 + 0.22 * min(max(len(t), 4), NAMED)), layout="constrained")
        ax = t.plot(column, ax=figure.add_subplot())
        known = t[column].astype(float)
        ax.set_xscale("log" if column == "data_trace" and np.nanmax(known) > WIDE * np.nanmin(known) > 0 else "linear")
        said = "; ".join(f"{row['longname']} {row[column]:.3g}" for row in t.rows[:NAMED])
        panels.append(shot(figure, f"{column} of each layer: {said}"))
    cut = (f"The table shows the first {MOST_ROWS} of {len(t)} layers.",) if len(t) > MOST_ROWS else ()
    return Section(
        name, "Which layers have a heavy tail, and what do the data make of them?", t.sentence(),
        tables.of_mappings(t.shown()[:MOST_ROWS]), Picture(tuple(panels)) if panels else None, LAYERS_READ,
        (*cut, *t.notes()), took=(float(np.nansum(t["data_products"])) if "data_products" in t.columns else 0.0, 0.0),
    )  # fmt: skip


def _other(name: str, result: Any) -> Section:
    """Whatever has a picture and arrays of one length: its rows."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = {"ax": figure.add_subplot()} if "ax" in inspect.signature(result.plot).parameters else {}
    made = result.plot(**axes)
    drawn = made if isinstance(made, Figure) else getattr(np.ravel(np.asarray(made, dtype=object))[0], "figure", figure)
    arrays = {key: np.asarray(value) for key, value in result.to_arrays().items()}
    longest = max((len(a) for a in arrays.values() if a.ndim == 1), default=0)
    columns = {key: a for key, a in arrays.items() if a.ndim == 1 and len(a) == longest}
    rows = [{key: a[i].item() for key, a in columns.items()} for i in range(min(longest, MOST_ROWS))]
    cut = (f"The table shows the first {MOST_ROWS} of {longest} rows.",) if longest > MOST_ROWS else ()
    sentence = f"{tables.opening(str(result)).splitlines()[0].rstrip('.')}."
    return Section(name, QUESTION, sentence, tables.of_mappings(rows), Picture((shot(drawn, name),)), "", cut)


def _told(name: str, result: Any) -> Section:
    """Any other result that says a sentence: that, and its numbers."""
    values = {item.name.replace("_", " "): getattr(result, item.name) for item in fields(result)}
    rows = {
        k: ("no", "yes")[v] if isinstance(v, bool) else f"{v:.6g}"
        for k, v in values.items()
        if isinstance(v, int | float) and v == v
    }
    return Section(
        name, QUESTION, f"{tables.opening(str(result)).rstrip('.')}.", tables.of_settings(rows),
        took=(float(getattr(result, "products", 0)), float(getattr(result, "epochs", 0))), kind=PAIRS,
    )  # fmt: skip


KINDS: dict[type, Callable[[str, Any], Section]] = {
    spectral.Spectrum: _spectrum,
    spectral.Eigenpairs: _pairs,
    spectral.SingularTriplets: _pairs,
    spectral.Estimate: _estimate,
    spectral.Plan: _plan,
    spectral.LayerTable: _layers,
    PowerLaw: _power_law,
    Comparison: _comparison,
}
