"""From finished spectra to pictures, tables and one page: what a report is made of.

Nothing here computes an eigenvalue. A `Report` is a plain collection of results: `build` makes it from a finished run,
`verdict` answers its question in one sentence, `figures`, `tables` and `page` turn it into pictures, rows and one HTML file.
`sweep` gathers the folders of many runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from spectral.experiments.effects import Row
from spectral.experiments.study import Line
from spectral.experiments.training import Trained
from spectral.spectrum import Spectrum


def titled(name: str) -> str:
    """The name of an experiment in words.

    >>> titled("ggn_outliers"), titled("cross_section")
    ('GGN outliers', 'Cross section')
    """
    first, *others = name.split("_")
    return " ".join([first.upper() if first in ("ggn", "ntk") else first.capitalize(), *others])


@dataclass(frozen=True)
class Subject:
    """What numbers are of: a matrix of one network, how that was trained (None: not at all), its accuracy on the test samples."""

    matrix: str
    condition: str
    seed: int
    trained: Trained | None
    test_accuracy: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the history of the training."""
        trained = {} if self.trained is None else self.trained.to_dict()
        return {**vars(self), "trained": {k: v for k, v in trained.items() if k != "history"} or None}


@dataclass(frozen=True)
class Curve:
    """One spectrum and what it is of: the matrix, the condition (init, true, random, ...) and the seed."""

    matrix: str
    condition: str
    seed: int
    spectrum: Spectrum


@dataclass(frozen=True)
class Prototype:
    """A sample as a picture (height, width) or (height, width, 3): its label, its ‖Jᵢ‖² over the mean, to which end it
    belongs.
    """

    end: str
    image: np.ndarray
    label: int
    value: float


Item = TypeVar("Item", Curve, Line, Row)


@dataclass(frozen=True)
class Numbers:
    """What an estimator gives that makes no spectrum: `value` (M,) and `error` (M,), in the order in which it gave them.

    `kind`: "eigenvalues" and "singular values" (errors are residuals, small where `converged` (M,)), "diagonal" and "trace"
    (errors are standard errors). `about`: the kind, and plain facts such as method, probes, threshold, complete, lower and upper.
    """

    value: np.ndarray
    error: np.ndarray
    converged: np.ndarray
    about: Mapping[str, Any]

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Numbers:
        """From the arrays of a result (`to_arrays`) and its plain facts."""
        if "values" in arrays:
            return Numbers(arrays["values"], arrays["residuals"], arrays["converged"], about)
        return Numbers(arrays["value"], arrays["stderr"], np.ones(len(arrays["value"]), dtype=bool), about)

    @property
    def kind(self) -> str:
        return str(self.about["kind"])

    def estimates(self) -> dict[str, dict[str, Any]]:
        """Each number by its name, with its error; of a diagonal the extreme entries."""
        v, e = self.value, self.error
        if self.kind == "trace":
            bounds = {name: self.about[name] for name in ("lower", "upper") if np.isfinite(self.about[name])}
            return {"trace": {"value": v[0], "stderr": e[0], **bounds}}
        if self.kind == "diagonal":
            ends = {"largest_entry": int(v.argmax()), "smallest_entry": int(v.argmin())}
            return {name: {"value": v[i], "stderr": e[i], "index": i} for name, i in ends.items()}
        name = self.kind.removesuffix("s").replace(" ", "_")
        rows = enumerate(zip(v, e, self.converged, strict=True), 1)
        return {f"{name}_{i}": {"value": x, "residual": r, "converged": bool(c)} for i, (x, r, c) in rows}


@dataclass(frozen=True)
class Verdict:
    """What a run says, in one sentence of plain text; `answer` is "yes", "no", "undecided", or "found" where the
    question is not one of yes or no."""

    answer: str
    sentence: str

    @staticmethod
    def of(answer: str, text: str, about: str) -> Verdict:
        """Without the full stop a sentence, and `about`, how much it is an answer of ("": nothing is said of that)."""
        return Verdict(answer, f"{text}{f'; {about}' if about else ''}.")


@dataclass(frozen=True)
class Report:
    """Everything a page shows.

    `verdict` answers the question. `labels` gives matrices, conditions and metrics their names in words ("note:METRIC" its
    definition), `levels` the conditions their places on a swept axis. `headline` are the matrices of the first picture and
    `headline_metric` what it sums up. `facts` are sentences beside the cost, `training` one mapping per network, `trends` one
    per metric that moves along an axis, `products` one per network's matrix: how its products were computed. `blocks` are the
    spectra of diagonal blocks, their names in place of conditions, `parts` one mapping for each. `numbers` are shown where
    there is no spectrum. `expectation` is what others found or predict, `reference` who. `theory` are densities λρ(λ) of closed
    forms, `stems` eigenvalues that stand apart, both for the first picture; `counts` are numbers of outliers against numbers of
    classes, `prototypes` samples as pictures. `charts` and `listed`, one mapping for each row, are those of a study.
    """

    title: str
    question: str
    verdict: Verdict
    curves: list[Curve]
    rows: list[Row]
    headline: tuple[str, ...] = ()
    headline_metric: str = ""
    alignment: list[Line] = field(default_factory=list)
    alpha: list[Line] = field(default_factory=list)
    losses: list[Line] = field(default_factory=list)
    training: list[Mapping[str, Any]] = field(default_factory=list)
    trends: list[Mapping[str, Any]] = field(default_factory=list)
    labels: Mapping[str, str] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    products: list[Mapping[str, Any]] = field(default_factory=list)
    blocks: list[Curve] = field(default_factory=list)
    parts: list[Mapping[str, Any]] = field(default_factory=list)
    numbers: Numbers | None = None
    charts: tuple[Any, ...] = ()
    listed: list[Mapping[str, Any]] = field(default_factory=list)
    facts: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    expectation: str = ""
    reference: str = ""
    theory: list[Line] = field(default_factory=list)
    stems: list[Line] = field(default_factory=list)
    counts: list[Line] = field(default_factory=list)
    prototypes: list[Prototype] = field(default_factory=list)

    @property
    def headline_rows(self) -> list[Row]:
        """The rows of the matrices of the first picture; all, where it names none of them."""
        return [row for row in self.rows if row.matrix in self.headline] or self.rows


def conditions_of(items: Sequence[Curve | Line | Row]) -> list[str]:
    """The conditions in the order of their first appearance, init, true and random before all others."""
    each = (item.values if isinstance(item, Row) else (item.condition,) for item in items)
    first = ("init", "true", "random")
    seen = dict.fromkeys(chain.from_iterable(each))
    return sorted(seen, key=lambda name: first.index(name) if name in first else len(first))


def matrices_of(items: Sequence[Curve | Line | Row]) -> list[str]:
    """The matrices in the order of their first appearance."""
    return list(dict.fromkeys(item.matrix for item in items))


def of_matrix(items: Sequence[Item], matrix: str) -> list[Item]:
    """Those of one matrix."""
    return [item for item in items if item.matrix == matrix]
