"""A study: an experiment that is no grid of cells, but named steps, each kept by itself, and what follows from them.

A `Study` is its question, its steps and a function of what they leave. Whoever performs it does the loop, and may show, store and
resume what is finished:

    study = edge_of_stability(Settings(seeds=(0,)))
    parts, networks = {}, {}                      # or mappings over files
    for name, step in study.steps.items():
        parts[name] = step(parts, networks)
    findings = study.conclude(parts)

Nothing here knows of files or of pictures: a step leaves arrays and plain facts, and findings say what is to be drawn as data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spectral import Estimate, Spectrum
from spectral.experiments.cell import Settings, Snapshot
from spectral.results import Array


@dataclass(frozen=True)
class Part:
    """What a finished step leaves: arrays, plain facts (numbers and texts), spectra by their names.

    `facts` holds "products", "epochs" and "seconds", what the step has cost; where a network is made, its "parameters". Arrays
    lie in memory as they come back from a file, or their sums would be others, by their last bits, once a study is resumed.
    """

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    spectra: Mapping[str, Spectrum] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", {name: np.asarray(a, order="C") for name, a in self.arrays.items()})


Parts = Mapping[str, Part]
Step = Callable[[Parts, MutableMapping[str, Snapshot]], Part]


@dataclass(frozen=True)
class Line:
    """One line of a picture, y against x: `matrix` names its panel, `condition` its colour; `sigma` is the standard error of y.

    `chosen` is the place (x, y) of the fit that the tables quote, and `refused` says that this fit is not to be trusted.
    """

    matrix: str
    condition: str
    x: Array
    y: Array
    sigma: Array | None = None
    chosen: tuple[float, float] | None = None
    refused: bool = False


@dataclass(frozen=True)
class Lines:
    """Panels of lines: a colour for each label; `level` is drawn across all panels."""

    title: str
    caption: str
    lines: tuple[Line, ...]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    level: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Sheet:
    """A surface z (Y, X) over x (X,) and y (Y,), and a path on it, (T, 2), that ends at (0, 0)."""

    panel: str
    x: Array
    y: Array
    z: Array
    path: Array
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Surfaces:
    """Surfaces as contours and in space, z on a logarithmic scale."""

    title: str
    caption: str
    sheets: tuple[Sheet, ...]
    z_label: str


@dataclass(frozen=True)
class Findings:
    """What a study says: `answer` as in a verdict ("yes", "no", "undecided", "found") with its sentence, every number with its
    error, rows of a table, charts, spectra as (matrix, condition, seed, spectrum), names in words, facts that a reader must know.
    """

    answer: str
    sentence: str
    estimates: Mapping[str, Mapping[str, Estimate]]
    table: tuple[Mapping[str, Any], ...]
    charts: tuple[Lines | Surfaces, ...] = ()
    spectra: tuple[tuple[str, str, int, Spectrum], ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """Steps by their names, in order; each is given what those before have left, and the trained networks by their keys.

    `expectation` is what others found or predict, `reference` who.
    """

    name: str
    question: str
    settings: Settings
    steps: Mapping[str, Step]
    conclude: Callable[[Parts], Findings]
    expectation: str = ""
    reference: str = ""


def perform(study: Study) -> Findings:
    """The whole study in memory, for a notebook; the command keeps every step."""
    parts: dict[str, Part] = {}
    networks: dict[str, Snapshot] = {}
    for name, step in study.steps.items():
        parts[name] = step(parts, networks)
    return study.conclude(parts)


def one_seed(settings: Settings) -> int:
    """The seed of a study that takes one; several are refused, for all but the first would be ignored."""
    if len(settings.seeds) > 1:
        raise ValueError(
            f"seeds={list(settings.seeds)} are {len(settings.seeds)}, and this study takes one; use [{settings.seeds[0]}]."
        )
    return settings.seeds[0]


class Cost:
    """What a step has cost, counted from where it began: `cost.of(A, B)` as the facts of a `Part`."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def of(self, *operators: Any) -> dict[str, float]:
        return {
            "products": float(sum(A.products for A in operators)),
            "epochs": float(sum(A.epochs for A in operators)),
            "seconds": time.perf_counter() - self.started,
        }


def block_error(series: Array, blocks: int = 4) -> float:
    """The standard error of the mean of a series that remembers: from the means of `blocks` parts of it, one after another.

    It holds where a part is longer than the memory. nan for fewer than two numbers a part.

    >>> round(block_error(np.array([1.0, 1.0, 2.0, 2.0]), blocks=2), 9)
    0.5
    """
    if len(series) < 2 * blocks:
        return float("nan")
    means = [part.mean() for part in np.array_split(series, blocks)]
    return float(np.std(means, ddof=1) / np.sqrt(blocks))
