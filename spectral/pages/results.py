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
from spectral.experiments.prose import filled, prose, say
from spectral.layer_table import NAMED
from spectral.persist import atomic_write

from . import Curve, Numbers, Subject, build, figures, page, tables, verdict
from .picture import Panel, Picture, shot
from .tables import Table

TEXTS = prose(__file__)
QUESTIONS, CAPTIONS = build.QUESTIONS | TEXTS["questions"], page.TEXTS["read"] | TEXTS["captions"]
KNOWN = "a Spectrum, an Estimate or another result of spectral"
VALUE = "value"  # the one condition of a result
LISTED = (  # metrics of a spectrum that a table begins with; the others fold away
    "effective_rank", "information_dimension", "stable_rank", "trace", "mean", "lambda_max", "lambda_min",
    "negative_mass", "alpha",
)  # fmt: skip
WIDE = 30  # a ratio of traces from which on their axis is logarithmic
MOST_ROWS = tables.MOST_ENTRIES


@dataclass(frozen=True)
class Section:
    """One result: its name and kind, what it says in a sentence, its numbers, a picture, notes.

    `more` are tables that fold away, each under its title, `took` are products and sweeps over the data, `rest` ends the caption.
    """

    name: str
    kind: str
    sentence: str
    table: Table
    picture: Picture | None = None
    notes: tuple[str, ...] = ()
    more: tuple[tuple[str, Table], ...] = ()
    took: tuple[float, float] = (0.0, 0.0)
    rest: str = ""

    @property
    def question(self) -> str:
        return str(QUESTIONS[self.kind])

    @property
    def caption(self) -> str:
        return f"{CAPTIONS[self.kind]}{self.rest}"


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
        question=sections[0].question if len(sections) == 1 else QUESTIONS["other"],
        sections=sections,
        together=overlaid(spectra) if len(spectra) > 1 else None,
        read=[page.TEXTS["read"]["spectra"]] if spectra else [],
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
    densities = figures.landscape(curves, [], ["density"], "", {})
    steps = figures.distributions([replace(curve, matrix="distribution function") for curve in curves], {})
    return replace(densities, panels=densities.panels + steps.panels)


# Kinds --------------------------------------------------------------------------------------------------------------------
def _opened(said: object) -> str:
    """What a result says of itself as a sentence."""
    return f"{tables.opening(str(said)).rstrip('.')}."


def _took(result: Any) -> tuple[float, float]:
    return float(getattr(result, "products", 0)), float(getattr(result, "epochs", 0))


def _spectrum(name: str, s: Any) -> Section:
    picture = replace(overlaid({name: s}), keys=())
    if s.of_vector:  # where it lies, and nothing that counts eigenvalues
        rows = {key: with_error(float(e), float(e.stderr)) for key, e in s.estimates().items()}
        return Section(name, "vector", _opened(s), tables.of_settings(rows), picture, took=_took(s))
    numbers = summary(s)
    whole = build.single(Subject(name, VALUE, 0, None, math.nan), s, numbers, metrics=None, alpha_curve=True)
    labels = {**whole.labels, name: ""}
    first = sorted((row for row in whole.rows if row.metric in LISTED), key=lambda row: LISTED.index(row.metric))
    others = [row for row in whole.rows if row.metric not in LISTED]
    more = [(f"The other {len(others)} numbers", tables.of_rows(others, labels))]
    if whole.products:
        made = [{key: value for key, value in row.items() if key != "matrix"} for row in whole.products]
        more.append(("How the products were computed", tables.of_mappings(made)))
    rest = "."
    if whole.alpha:
        alone = [replace(line, matrix="exponent against the start of its tail") for line in whole.alpha]
        fitted = figures.lines(alone, {}, **page.TEXTS["lines"]["alpha"])
        picture = replace(picture, panels=picture.panels + fitted.panels)
        rest = ", and the power-law exponent for every start of its tail, hollow where the fit is refused."
    sentence, table = verdict.of_spectrum(s, numbers).sentence, tables.of_rows(first, labels)
    return Section(name, "spectrum", sentence, table, picture, whole.facts, tuple(more), _took(s), rest)


def _pairs(name: str, result: Any) -> Section:
    kind = "eigenvalues" if isinstance(result, spectral.Eigenpairs) else "singular values"
    given = Numbers.of(result.to_arrays(), {"kind": kind, "threshold": result.threshold, "complete": result.complete})
    note = say(TEXTS["notes"]["pairs"], result=result)
    sentence = verdict.of_numbers(given, which="extreme").sentence
    picture = figures.numbers(given) if len(given.value) else None
    return Section(name, kind, sentence, tables.of_numbers(given), picture, (note,), took=_took(result))


def _estimate(name: str, e: Any) -> Section:
    if np.ndim(e.value):
        given = Numbers.of(e.to_arrays(), {"kind": "diagonal"})
        sentence, table = verdict.of_numbers(given).sentence, tables.of_numbers(given)
        return Section(name, "diagonal", sentence, table, figures.numbers(given), took=_took(e))
    rows = {title: text for title, text in filled(TEXTS["tables"]["estimate"], e=e).items() if text}
    sentence = say(TEXTS["notes"]["estimate"], name=tables.opening(name), e=e)
    return Section(name, "other", sentence, tables.of_settings(rows), took=_took(e))


def _power_law(name: str, fit: Any) -> Section:
    line = build.exponents(fit, name, VALUE)
    drawn = {**page.TEXTS["lines"]["alpha"], "note": TEXTS["notes"]["power law"]}
    picture = replace(figures.lines([line], {}, **drawn), keys=()) if len(line.x) else None
    rows = filled(TEXTS["tables"]["power law"], fit=fit, unknown=math.nan)
    tests = [
        {"against": rival, "ln of the likelihood ratio": test.ratio, "p": test.p, "favours": test.favours}
        for rival, test in fit.tests.items()
    ]
    more = (("Likelihood ratios against rivals", tables.of_mappings(tests)),) if tests else ()
    return Section(name, "power law", _opened(fit), tables.of_settings(rows), picture, (), more)


def _plan(name: str, plan: Any) -> Section:
    rows = {f"seconds of {part}": f"{value:.3g}" for part, value in plan.parts.items()}
    rows |= {f"MiB of {part}": f"{size / 2**20:.4g}" for part, size in plan.held.items()}
    fits = f"{plan}: it {'fits' if plan.fits else 'does not fit'} what is free now"
    picture = figures.bars(plan.parts, "seconds", name)
    return Section(name, "plan", _opened(fits), tables.of_settings(rows), picture)


def _comparison(name: str, told: Any) -> Section:
    keys = [key for key in told if f"{key}_stderr" in told]
    rows = {key.replace("_", " "): with_error(told[key], told[f"{key}_stderr"]) for key in keys}
    both = overlaid({"a": told.a, "b": told.b})
    return Section(name, "comparison", _opened(told), tables.of_settings(rows), both, (TEXTS["notes"]["comparison"],))


def _cut(count: int, things: str) -> tuple[str, ...]:
    """What a table says that does not show all."""
    return (f"The table shows the first {MOST_ROWS} of {count} {things}.",) if count > MOST_ROWS else ()


def _layers(name: str, t: Any) -> Section:
    panels: list[Panel] = []
    for column in ("alpha", "data_trace"):
        known = t[column].astype(float) if column in t.columns else np.zeros(0)
        if not np.isfinite(known).any():
            continue
        figure = Figure(figsize=(4.6, 1.1 + 0.22 * min(max(len(t), 4), NAMED)), layout="constrained")
        ax = t.plot(column, ax=figure.add_subplot())
        ax.set_xscale("log" if column == "data_trace" and np.nanmax(known) > WIDE * np.nanmin(known) > 0 else "linear")
        said = "; ".join(f"{row['longname']} {row[column]:.3g}" for row in t.rows[:NAMED])
        panels.append(shot(figure, f"{column} of each layer: {said}"))
    picture, notes = Picture(tuple(panels)) if panels else None, (*_cut(len(t), "layers"), *t.notes())
    products = float(np.nansum(t["data_products"])) if "data_products" in t.columns else 0.0
    table = tables.of_mappings(t.shown()[:MOST_ROWS])
    return Section(name, "layers", t.sentence(), table, picture, notes, took=(products, 0.0))


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
    sentence, picture = _opened(str(result).splitlines()[0]), Picture((shot(drawn, name),))
    return Section(name, "other", sentence, tables.of_mappings(rows), picture, _cut(longest, "rows"))


def _told(name: str, result: Any) -> Section:
    """Any other result that says a sentence: that, and its numbers."""
    values = {item.name.replace("_", " "): getattr(result, item.name) for item in fields(result)}
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and v == v}
    rows = {k: ("no", "yes")[v] if isinstance(v, bool) else f"{v:.6g}" for k, v in numbers.items()}
    return Section(name, "other", _opened(result), tables.of_settings(rows), took=_took(result))


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
