"""From finished spectra to pictures, tables and one page: what a report is made of.

Nothing here computes an eigenvalue. A `Report` is a plain collection of results; `figures`, `tables` and `page` turn it
into pictures, rows and one HTML file, `compose` makes it from finished runs, `gather` from the folders of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spectral.spectrum import Spectrum

__all__ = ["Curve", "Line", "Report", "Row", "conditions_of", "matrices_of"]


@dataclass(frozen=True)
class Curve:
    """One spectrum and what it is of: the matrix, the condition (init, true, random, ...) and the seed."""

    matrix: str
    condition: str
    seed: int
    spectrum: Spectrum


@dataclass(frozen=True)
class Line:
    """One line of a picture, y against x, arrays of one length; `sigma` is the standard error of y where it is known."""

    matrix: str
    condition: str
    seed: int
    x: np.ndarray
    y: np.ndarray
    sigma: np.ndarray | None = None


@dataclass(frozen=True)
class Row:
    """One metric of one matrix: per condition one number per seed, and what separates `true` from `random`.

    `errors` holds the standard error of each number within its seed (0: exact, nan: unknown); `effect` is Cohen's d of
    true minus random with its interval (d, lower, upper); `separates` says whether true is below random on every seed, or
    above on every seed (None: cannot be said from fewer than two seeds).
    """

    matrix: str
    metric: str
    values: Mapping[str, tuple[float, ...]]
    errors: Mapping[str, tuple[float, ...]]
    effect: tuple[float, float, float] | None = None
    separates: bool | None = None


@dataclass(frozen=True)
class Report:
    """Everything a page shows.

    `labels` gives matrices and metrics their names in words ("note:METRIC" its definition), `headline` the matrices of the
    first picture and `headline_metric` what it sums up; `facts` are sentences beside the cost, `training` one mapping per
    network, `products` one mapping per network's matrix: how its products were computed.
    """

    title: str
    question: str
    curves: list[Curve]
    rows: list[Row]
    headline: tuple[str, ...] = ()
    headline_metric: str = ""
    alignment: list[Line] = field(default_factory=list)
    alpha: list[Line] = field(default_factory=list)
    losses: list[Line] = field(default_factory=list)
    training: list[Mapping[str, Any]] = field(default_factory=list)
    labels: Mapping[str, str] = field(default_factory=dict)
    products: list[Mapping[str, Any]] = field(default_factory=list)
    facts: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)


def conditions_of(items: list[Curve] | list[Line] | list[Row]) -> list[str]:
    """The conditions in the order of their first appearance, init, true and random before all others."""
    seen: dict[str, None] = {}
    for item in items:
        for condition in item.values if isinstance(item, Row) else (item.condition,):
            seen[condition] = None
    known = [name for name in ("init", "true", "random") if name in seen]
    return known + [name for name in seen if name not in known]


def matrices_of(items: list[Curve] | list[Line] | list[Row]) -> list[str]:
    """The matrices in the order of their first appearance."""
    return list(dict.fromkeys(item.matrix for item in items))
