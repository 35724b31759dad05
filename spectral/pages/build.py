"""From what a run returns to the `Report` that the pictures, tables and the page are made of."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from spectral.analysis import METRICS, PowerLaw, marchenko_pastur, outliers, power_law
from spectral.analysis.power_law import DRAWN
from spectral.analysis.theory import marchenko_pastur_density
from spectral.cards import with_error
from spectral.experiments.cell import CellResult
from spectral.experiments.datasets import Problem
from spectral.experiments.effects import SCALE, refused, row_of
from spectral.experiments.experiments import Outcome
from spectral.experiments.prose import filled, prose, told
from spectral.quadrature.density import one_eigenvalue
from spectral.spectrum import Spectrum

from . import Curve, Line, Numbers, Prototype, Report, Row, Subject, Verdict, tables, titled, verdict
from .figures import DECADES

TEXTS = prose(__file__)
KINDS, CONDITIONS, NAMES = TEXTS["kinds"], TEXTS["conditions"], TEXTS["metrics"]
COMPUTED, QUESTIONS, FACTS = TEXTS["products"], TEXTS["questions"], TEXTS["facts"]
SHOWN = 12  # samples at each end
NO_ACCURACY = "no test accuracy: the data have no test samples (x, class) of which this network gives logits"


def labels_for(matrices: Sequence[str], conditions: Mapping[str, str] | None = None) -> dict[str, str]:
    """Names in words of matrices such as "flattened.logits.train", of metrics and conditions.

    "note:METRIC" is the definition of a metric, "tick:CONDITION" a condition in a word. `conditions` names further ones.
    """
    ticks = {f"tick:{name}": name for name in CONDITIONS}
    labels = NAMES | TEXTS["operators"] | CONDITIONS | dict(conditions or {}) | ticks
    for name in conditions or {}:
        # before training: before; noise20: 20
        labels[f"tick:{name}"] = labels[name].split()[0] if name in CONDITIONS else re.sub(r"^\D+(?=\d)", "", name)
    for matrix in matrices:
        parts = matrix.split(".")
        if len(parts) == 3 and parts[0] in KINDS:
            labels[matrix] = f"{KINDS[parts[0]]} ({parts[1]}, {parts[2]})"
    return labels | {f"note:{name}": text for name, text in (METRICS | TEXTS["notes"]).items()}


def experiment(
    outcome: Outcome,
    *,
    metrics: Sequence[str] | None,
    headline: Sequence[str],
    headline_metric: str,
    about: str,
    alpha_curve: bool,
    problem: Problem | None = None,
) -> Report:
    """The report of an experiment; `metrics` are the rows shown (None: all), `headline` the matrices of the first picture.

    `about` says in words how much the answer is an answer of (see `verdict.scope`), `problem` has the samples that all seeds
    share.
    """
    result, asked = outcome.result, outcome.experiment
    cells = [r for r in result.cells if not r.cell.matrix.block]
    names = dict.fromkeys(r.cell.matrix.name for r in cells)
    known = [name for name in headline if name in names] or list(names)[:4]
    ordered = [*known, *(name for name in names if name not in known)]
    labels = labels_for(list(names), asked.words)
    curves = [Curve(r.cell.matrix.name, r.cell.condition.name, r.cell.seed, r.spectrum) for r in cells]
    everything = [row for name in ordered for row in result.rows if row.matrix == name and row.values]
    listed = tuple(dict.fromkeys((headline_metric, *asked.asked, *(metrics or (row.metric for row in everything)))))
    rows = [row for name in ordered for m in listed for row in everything if (row.matrix, row.metric) == (name, m)]
    trained = {r.cell.network: r for r in result.cells if r.trained is not None}
    blocks = [r for r in result.cells if r.cell.matrix.block and r.cell.seed == result.cells[0].cell.seed]
    return Report(
        title=titled(asked.name),
        question=asked.question,
        verdict=_verdict(outcome, everything, curves, headline_metric, labels, about),
        expectation=asked.expectation,
        reference=asked.reference,
        curves=curves,
        rows=rows,
        headline=tuple(known),
        headline_metric=headline_metric,
        alignment=_alignment(cells),
        alpha=_alpha([curve for curve in curves if curve.matrix in known]) if alpha_curve else [],
        losses=_losses(subject_of(r) for r in trained.values()),
        training=[
            _training(subject_of(r), labels) | {"labels changed": f"{100 * r.changed:.0f} %"} for r in trained.values()
        ],
        products=_products([(tables.words(c.matrix, labels), c.spectrum.meta.get("operator", {})) for c in curves]),
        blocks=[Curve(_panel_of(r, labels), r.cell.matrix.block, r.cell.seed, r.spectrum) for r in blocks],
        parts=[_part(r, labels) for r in blocks],
        labels=labels,
        levels=asked.levels,
        trends=_trends(outcome, labels),
        facts=_facts(outcome, labels),
        theory=_random_bulks(curves) if asked.rule == "of_noise" else [],
        stems=_stems(cells) if asked.rule == "of_classes" else [],
        counts=_counts(outcome) if asked.rule == "of_classes" else [],
        prototypes=[] if problem is None else _prototypes(cells, problem, known),
    )


def _random_bulks(curves: Sequence[Curve]) -> list[Line]:
    """Of each condition's first seed λρ(λ) of the Marchenko–Pastur law nearest to its bulk, as a fraction of all eigenvalues."""
    lines, first = [], {(c.matrix, c.condition): c for c in reversed(curves)}
    for (matrix, condition), curve in first.items():
        fit = marchenko_pastur(curve.spectrum)
        if fit.upper > fit.lower > 0 and condition in ("real", "gaussian"):
            x = np.linspace(fit.lower, fit.upper, 400)[1:-1]
            ratio, sigma = fit.ratio, fit.sigma
            if ratio > 1:  # the positive part is that of the transpose
                ratio, sigma = 1 / ratio, sigma * math.sqrt(ratio)
            y = x * marchenko_pastur_density(x, ratio, sigma) * fit.bulk / curve.spectrum.dim
            lines.append(Line(matrix, condition, x, y, refused=not fit.accepted))
    return lines


def _stems(cells: Sequence[CellResult]) -> list[Line]:
    """The outliers of the first seed, each as high as one eigenvalue is drawn."""
    first = [r for r in cells if r.cell.seed == cells[0].cell.seed and r.metrics.get("outliers", 0) > 0]
    pairs = [(r, outliers(r.spectrum).values) for r in first]
    return [
        Line(r.cell.matrix.name, r.cell.condition.name, x, np.full(len(x), one_eigenvalue(r.spectrum.dim)))
        for r, x in pairs
    ]


def _counts(outcome: Outcome) -> list[Line]:
    """The number of outliers against that of classes: a line for each matrix and seed, before and after training."""
    lines = []
    for matrix in outcome.result.matrices:
        own = [r for r in outcome.result.cells if r.cell.matrix.name == matrix]
        for seed in dict.fromkeys(r.cell.seed for r in own):
            for state, trained in (("init", False), ("true", True)):
                there = [r for r in own if r.cell.seed == seed and (r.cell.condition.noise is not None) == trained]
                pairs = [(r.cell.condition.classes, r.metrics.get("outliers", math.nan)) for r in there]
                x, y = np.array(sorted(pairs), dtype=float).reshape(-1, 2).T
                lines.append(Line(matrix, state, x, y))
    return lines


def _prototypes(cells: Sequence[CellResult], problem: Problem, headline: Sequence[str]) -> list[Prototype]:
    """The samples at both ends of the first matrix with numbers of single samples, by the mean over seeds of ‖Jᵢ‖²
    over its mean.
    """
    given = {r.cell.matrix.name: r.cell.matrix for r in cells if r.samples and r.cell.condition.name == "true"}
    matrix = next((given[name] for name in headline if name in given), None)
    if matrix is None:
        return []
    x, y = problem.split(matrix.split)
    shape = tuple(x.shape[1:])
    side = math.isqrt(math.prod(shape))
    if len(shape) == 1 and side * side == shape[0]:
        images = x.reshape(len(x), side, side)
    elif len(shape) == 3 and shape[0] in (1, 3):
        images = x.movedim(1, -1).squeeze(-1) if shape[0] == 1 else x.movedim(1, -1)
    else:
        return []
    own = np.array([r.samples for r in cells if r.cell.matrix == matrix and r.cell.condition.name == "true"])
    relative = (own / own.mean(axis=1, keepdims=True)).mean(axis=0)
    order = np.argsort(-relative, kind="stable")
    ends = {"largest ‖Jᵢ‖²": order[:SHOWN], "smallest ‖Jᵢ‖²": order[::-1][:SHOWN]}
    return [
        Prototype(end, images[i].cpu().double().numpy(), int(y[i]), float(relative[i]))
        for end, rows in ends.items()
        for i in rows
    ]


def subject_of(result: CellResult) -> Subject:
    """Of what the numbers of a cell are."""
    cell = result.cell
    return Subject(cell.matrix.name, cell.condition.name, cell.seed, result.trained, result.test_accuracy)


def _panel_of(r: CellResult, labels: Mapping[str, str]) -> str:
    """Of diagonal blocks: a matrix and a condition is a panel, each block a colour."""
    return f"{KINDS[r.cell.matrix.kind]}, {tables.words(r.cell.condition.name, labels)}"


def _part(r: CellResult, labels: Mapping[str, str]) -> Mapping[str, Any]:
    """The row of a block: its size, and trace, largest eigenvalue and effective rank with their errors."""
    row = {"matrix": _panel_of(r, labels), "block": r.cell.matrix.block, "parameters": f"{r.spectrum.dim:,}"}
    for name in ("trace", "lambda_max", "effective_rank"):
        row[NAMES.get(name, name)] = with_error(r.metrics[name], r.metrics.get(f"{name}_stderr", math.nan))
    return row


def _verdict(
    outcome: Outcome, rows: Sequence[Row], curves: Sequence[Curve], metric: str, labels: Mapping[str, str], about: str
) -> Verdict:
    """The answer to the question of an experiment by the rule that it names; else of two conditions, or of a swept axis."""
    asked, result = outcome.experiment, outcome.result
    conditions = asked.settings.conditions
    order = {name: place for place, name in enumerate(dict.fromkeys(row.matrix for row in rows))}
    ends = [words for _, words in sorted((level, asked.words[name]) for name, level in asked.levels.items())]
    return verdict.RULES[asked.rule or ("followed" if asked.levels else "compared")](
        verdict.Evidence(
            rows,
            labels,
            metric,
            asked=asked.asked,
            expected=asked.expected,
            about=about,
            missed=(len(result.untrained()), len({r.cell.network for r in result.cells if r.trained is not None})),
            curves=curves,
            trained=[c.name for c in conditions if c.noise is not None],
            classes={c.name: c.classes for c in conditions if c.classes is not None},
            sizes={curve.matrix: curve.spectrum.dim for curve in curves},
            trends=sorted(outcome.trends, key=lambda t: order[t.matrix]),
            axis=asked.axis,
            ends=(ends[0], ends[-1]) if ends else ("", ""),
        )
    )


def single(
    subject: Subject,
    spectrum: Spectrum,
    numbers: Mapping[str, float],
    *,
    metrics: Sequence[str] | None,
    alpha_curve: bool,
) -> Report:
    """The report of one spectrum; `numbers` are those of `summary`, errors included, `metrics` the rows shown (None: all)."""
    matrix, condition = subject.matrix, subject.condition
    curve = Curve(matrix, condition, subject.seed, spectrum)
    listed = metrics or [name for name in numbers if not name.endswith("_stderr")]
    rows = [row for name in listed if (row := row_of(matrix, name, {condition: [numbers]})).values]
    description = spectrum.meta.get("operator", {})
    why = power_law(spectrum).reason if refused("alpha", numbers) else ""
    alike = math.isnan(numbers.get("true_label_alignment", 0.0))
    facts = told(FACTS["spectrum"], s=spectrum) + _cautions(description)
    facts += told(FACTS["missing"], mark=tables.REFUSED, why=why, alike=alike)
    return _of_one(
        subject,
        description,
        facts,
        question=QUESTIONS["spectrum"],
        verdict=verdict.of_spectrum(spectrum, numbers, about=_state(condition)),
        curves=[curve],
        rows=rows,
        headline=(matrix,),
        alpha=_alpha([curve]) if alpha_curve else [],
    )


def numbers(subject: Subject, given: Numbers, which: str = "largest") -> Report:
    """The report of numbers that make no spectrum; `which` of them were asked for."""
    about = given.about
    facts = [str(about["of"]), *_cautions(about.get("operator", {}))]
    facts += told(FACTS["numbers"], about=about, given=given, most=tables.MOST_ENTRIES)
    return _of_one(
        subject,
        about.get("operator", {}),
        facts,
        question=QUESTIONS[given.kind],
        verdict=verdict.of_numbers(given, which=which, about=_state(subject.condition)),
        curves=[],
        rows=[],
        numbers=given,
    )


def _of_one(subject: Subject, description: Mapping[str, Any], facts: Sequence[str], **own: Any) -> Report:
    """What the reports of one matrix have in common: its training, its products, its labels."""
    labels, trained = labels_for([]) | _named(subject.condition), subject.trained
    known = math.isfinite(subject.test_accuracy)
    accuracy = f"test accuracy {_percent(subject.test_accuracy)}" if known else NO_ACCURACY
    if trained is not None:
        facts = [*facts, f"Training {trained.sentence}; {accuracy}."]
    elif known:
        facts = [*facts, f"{tables.opening(accuracy)}."]
    return Report(
        title=subject.matrix,
        losses=_losses([subject]),
        training=[] if trained is None else [_training(subject, labels)],
        products=_products([(tables.words(subject.matrix, labels), description)]),
        labels=labels,
        facts=tuple(facts),
        **own,
    )


def _named(condition: str) -> dict[str, str]:
    """A condition of partly permuted labels in words, as `run` names it."""
    if not condition.startswith("noise"):
        return {}
    part = condition.removeprefix("noise")
    return {condition: f"{part} % of the labels permuted", f"tick:{condition}": f"{part} %"}


def _state(condition: str) -> str:
    """What the network of one spectrum is, in words."""
    if condition in ("init", "given"):
        return f"the network {CONDITIONS[condition]}"
    if condition.startswith("noise"):
        return f"the network trained with {_named(condition)[condition]}"
    return f"the network trained on {CONDITIONS.get(condition, condition)}"


def _products(operators: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """How products with each matrix were computed: a row per matrix and way, its seeds and conditions together."""
    rows: dict[str, dict[str, Any]] = {}
    for matrix, description in operators:
        for leaf in _leaves(description):
            if "engine" in leaf:
                row = {"matrix": matrix} | {name: leaf[key] for key, name in COMPUTED.items() if key in leaf}
                noise = row.pop(COMPUTED["product_noise"], None)
                same = rows.setdefault(repr(sorted((k, str(v)) for k, v in row.items())), row)
                if noise is not None:  # the largest of those that it was measured on
                    same[COMPUTED["product_noise"]] = max(float(noise), same.get(COMPUTED["product_noise"], 0.0))
    return list(rows.values())


def _cautions(description: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the matrix itself: that it depends on how the data were cut into batches."""
    said = [caution for leaf in _leaves(description) for caution in told(FACTS["matrix"], leaf=leaf)]
    return list(dict.fromkeys(said))


def _leaves(description: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a described operator is made of, itself if of nothing else (the `of` of a network names its output)."""
    parts = description.get("of")
    return [leaf for part in parts for leaf in _leaves(part)] if isinstance(parts, list) else [description]


def _alignment(results: Sequence[CellResult]) -> list[Line]:
    """The curves of the labels each network was trained on (where those are not known, of the true ones)."""
    lines = []
    for r in results:
        curve = r.alignment.get("own", r.alignment.get("true"))
        if curve is not None:
            sizes = np.array(curve.sizes)
            x, y = np.append(0.0, sizes / sizes[-1]), np.append(0.0, np.array(curve.energies))
            at = r.metrics.get("information_dimension", math.nan) / sizes[-1]
            inside = (at, float(np.interp(at, x, y))) if math.isfinite(at) else None
            lines.append(Line(r.cell.matrix.name, r.cell.condition.name, x, y, chosen=inside))
    return lines


def exponents(fit: PowerLaw, matrix: str, condition: str, least: float = 0.0) -> Line:
    """alpha(xmin) of a fit, for starts above `least` from which on the tail still holds ten eigenvalues."""
    c = fit.curve
    drawn = np.isfinite(c.alpha) & (c.tail >= DRAWN) & (c.xmin > least)
    chosen = (float(fit.xmin), float(fit.alpha)) if math.isfinite(fit.alpha) else None
    return Line(matrix, condition, c.xmin[drawn], c.alpha[drawn], c.sigma[drawn], chosen, not fit.accepted)


def _alpha(curves: Sequence[Curve]) -> list[Line]:
    """alpha(xmin) of each curve that has several starts, as far down as pictures look."""
    lines = [exponents(power_law(c.spectrum), c.matrix, c.condition, 10.0**-DECADES * c.spectrum.scale) for c in curves]
    return [line for line in lines if len(line.x) > 1]


def _losses(subjects: Iterable[Subject]) -> list[Line]:
    """The loss after each epoch; a network of no epochs (the first point of an evolution) has no line."""
    trained = [(s, np.array(s.trained.history, dtype=float)) for s in subjects if s.trained and s.trained.history]
    return [Line("training loss", s.condition, rows[:, 0], rows[:, 2]) for s, rows in trained]


def _training(subject: Subject, labels: Mapping[str, str]) -> dict[str, Any]:
    """One row of the table of trained networks."""
    trained = subject.trained
    if trained is None:
        return {}
    return {
        "condition": labels.get(subject.condition, subject.condition),
        "seed": subject.seed,
        "reached target": trained.reached,
        "target loss": trained.target_loss,
        "loss": trained.loss,
        "epochs": trained.epochs,
        "train accuracy": _percent(trained.accuracy),
        "test accuracy": _percent(subject.test_accuracy),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "–"


def _facts(outcome: Outcome, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences that a reader must not miss: missed targets, refused fits."""
    cells, rows = outcome.result.cells, outcome.result.rows
    refusals = [
        f"{lost} of {sum(map(len, row.values.values()))} of {labels.get(row.matrix, row.matrix)}"
        for row in rows
        if row.metric == "alpha" and row.matrix in labels and (lost := sum(map(sum, row.refused.values())))
    ]
    aligned = [bool(r.alignment) for r in cells if r.cell.matrix.kind == "ntk"]
    facts = {"missed": outcome.result.untrained(), "refusals": refusals, "aligned": aligned, "mark": tables.REFUSED}
    return tuple(told(FACTS["experiment"], **facts))


def _trends(outcome: Outcome, labels: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """How each key metric of each matrix moves with the level, one row each."""
    return [
        filled(TEXTS["trend"], t=t, words=partial(tables.words, labels=labels), scale=t.metric in SCALE)
        for t in outcome.trends
        if math.isfinite(t.rho)
    ]
