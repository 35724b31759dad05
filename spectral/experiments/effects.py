"""From finished cells to tables: effect sizes across seeds, what separates, what trends.

Pure functions of `CellResult`s; a partial set of cells gives the rows that it can give.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata

from spectral import compare
from spectral.analysis import METRICS, cohens_d
from spectral.analysis.compare import Effect
from spectral.experiments.cell import CellResult
from spectral.experiments.datasets import stream

# What a pilot study saw separate: shape and alignment do; scale does too, the other way round from
# "a deeper funnel has a larger Jacobian", so that it is no measure of the funnel; alpha hardly does.
KEY_METRICS = ("effective_rank", "top_c_energy", "own_label_alignment", "trace", "lambda_max", "alpha")
PAIRS = (("true", "random"), ("true", "init"), ("random", "init"))
# How steep the network is: what changes when the matrix is multiplied by a number. It never counts as separating.
SCALE = frozenset(name for name, text in METRICS.items() if "units of λ" in text) | {"alpha_hat", "log_alpha_norm"}
# The key that says whether the fit behind a metric may be trusted (1) or was refused (0); a refused number may be nan.
POWER_LAW = "alpha alpha_bounded alpha_hat log_alpha_norm sigma xmin D tail hill truncated_alpha truncated_rate"
BULK = "mp_edge mp_sigma mp_ratio mp_spikes mp_softrank mp_ks"
FITS: dict[str, str] = {
    **dict.fromkeys(("outliers", "outlier_gap"), "outliers_accepted"),
    **dict.fromkeys(POWER_LAW.split(), "alpha_accepted"),
    **dict.fromkeys(BULK.split(), "mp_accepted"),
    "alpha_peak": "alpha_peak_accepted",
}
# Known before anything is computed, or no number of a matrix, or of pairs of networks, so that seeds are not independent
NOT_COMPARED = {"dim", "zeros_fraction", *FITS.values(), "prototype_overlap"}


@dataclass(frozen=True)
class Row:
    """One metric of one matrix: per condition one number per seed, in the order of their first appearance, nan where missing.

    `errors` holds the standard error of each number within its seed (0: exact, nan: unknown), `effects` Cohen's d between
    conditions, "true-random" that of true minus random. `refused` marks numbers that come from a refused fit.
    """

    matrix: str
    metric: str
    values: Mapping[str, tuple[float, ...]]
    errors: Mapping[str, tuple[float, ...]]
    effects: Mapping[str, Effect] = field(default_factory=dict)
    refused: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)

    @property
    def scale(self) -> bool:
        """Whether the metric changes when the matrix is multiplied by a number; it never counts as separating."""
        return self.metric in SCALE

    @property
    def effect(self) -> Effect | None:
        """Cohen's d of true minus random; None where a condition has fewer than two seeds, or nothing is to be compared."""
        return self.effects.get("true-random")

    @property
    def candidate(self) -> bool:
        """Whether it may be offered as telling true from random labels: no metric of scale, no refused fit."""
        return not self.scale and not self.doubted("true", "random")[0]

    @property
    def separates(self) -> bool | None:
        """Whether true is below random on every seed, or above on every seed; None where that cannot be said."""
        order = None if self.effect is None else self.order("true", "random")
        return None if order is None else bool(order)

    def order(self, a: str, b: str) -> int | None:
        """-1 where `a` is below `b` on every seed, 1 where it is above, 0 where neither; None where nothing can be compared.

        Seed by seed, as both share the split, the initial weights and the order of the samples.
        """
        pairs = zip(self.values.get(a, ()), self.values.get(b, ()), strict=False)
        signs = {int(np.sign(x - y)) for x, y in pairs if math.isfinite(x) and math.isfinite(y)}
        if not signs or any(map(any, self.refused.values())):
            return None
        return signs.pop() if len(signs) == 1 else 0

    def mean(self, condition: str) -> tuple[float, float]:
        """See `mean_and_error`."""
        values = self.values[condition]
        return mean_and_error(values, self.errors.get(condition, (math.nan,) * len(values)))

    def doubted(self, *conditions: str) -> tuple[int, int]:
        """(refused fits, all numbers) of the conditions, of all without any."""
        chosen = conditions or tuple(self.values)
        flags = [flag for name in chosen for flag in self.refused.get(name, ())]
        return sum(flags), sum(len(self.values.get(name, ())) for name in chosen)


def mean_and_error(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation across seeds; for a single number the number and its own standard error."""
    known = [(v, e) for v, e in zip(values, errors, strict=True) if math.isfinite(v)]
    if len(known) < 2:
        return known[0] if known else (math.nan, math.nan)
    return float(np.mean([v for v, _ in known])), float(np.std([v for v, _ in known], ddof=1))


@dataclass(frozen=True)
class Trend:
    """How a metric moves with a level (noise, depth, epoch): `values` is one tuple over the levels for each seed.

    `rho` is Spearman's rank correlation, the mean over seeds; `p_value` is the chance of so large an |rho| when the
    levels are shuffled within each seed.
    """

    matrix: str
    metric: str
    levels: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    rho: float
    p_value: float


@dataclass(frozen=True)
class Result:
    """A finished experiment. `cost` sums products, epochs, seconds of the spectra, and epochs, seconds of training."""

    cells: tuple[CellResult, ...]
    matrices: tuple[str, ...]
    rows: tuple[Row, ...]
    cost: dict[str, float]

    def row(self, matrix: str, metric: str) -> Row:
        """The row of a metric of a matrix, such as row("flattened.logits.train", "trace")."""
        for row in self.rows:
            if (row.matrix, row.metric) == (matrix, metric):
                return row
        raise KeyError(f"There is no metric {metric!r} of {matrix!r}; the matrices are {', '.join(self.matrices)}.")

    def untrained(self) -> tuple[str, ...]:
        """The networks that missed their target loss: their rows compare networks that are not alike in loss."""
        missed = {
            c.cell.network
            for c in self.cells
            if c.trained is not None and not c.trained.reached and c.cell.condition.epochs is None
        }
        return tuple(sorted(missed))


def collect(results: Iterable[CellResult]) -> Result:
    """Tables from any finished cells, in the order in which conditions, matrices and seeds first appear."""
    done = tuple(results)
    seeds = tuple(dict.fromkeys(r.cell.seed for r in done))
    conditions = tuple(dict.fromkeys(r.cell.condition.name for r in done))
    matrices = tuple(dict.fromkeys(r.cell.matrix.name for r in done))
    rows = []
    for matrix in matrices:
        own = {
            (r.cell.condition.name, r.cell.seed): r.metrics | heterogeneity(r, done) | overlap(r, done)
            for r in done
            if r.cell.matrix.name == matrix
        }
        names = dict.fromkeys(
            m for c in conditions for s in seeds for m in own.get((c, s), {}) if not m.endswith("_stderr")
        )
        numbers = {c: [own.get((c, s), {}) for s in seeds] for c in conditions}
        rows += [row_of(matrix, metric, numbers) for metric in names]
    return Result(done, matrices, tuple(rows), _cost(done))


def heterogeneity(whole: CellResult, done: Iterable[CellResult]) -> dict[str, float]:
    """How unlike the spectra of a matrix's diagonal blocks are; nothing for fewer than two blocks.

    "block_js" is the mean over all pairs of their Jensen-Shannon divergence in bits, "block_js_by_lambda_max" that of their
    shapes, each spectrum divided by its largest eigenvalue.

    The error is the mean of those of the pairs, as if all were off to one side: pairs share blocks, so that it is an upper bound.

    Source: Zhang et al. (2024), Why transformers need Adam: a Hessian perspective. Their JS0 is such a mean at
    initialisation; how they bin could not be confirmed.
    """
    cell = whole.cell
    own = [
        r.spectrum
        for r in done
        if (r.cell.network, r.cell.matrix.whole) == (cell.network, cell.matrix.name) and r.cell.matrix.block
    ]
    pairs = [compare(a, b) for i, a in enumerate(own) for b in own[:i]]
    names = {"block_js": "js", "block_js_by_lambda_max": "js_by_lambda_max"} if pairs else {}
    keys = {name + end: key + end for name, key in names.items() for end in ("", "_stderr")}
    return {name: float(np.mean([pair[key] for pair in pairs])) for name, key in keys.items()}


def overlap(result: CellResult, done: Iterable[CellResult]) -> dict[str, float]:
    """How many of the samples that stand out in one network stand out in networks of other seeds too; nothing for one seed.

    "prototype_overlap" is the part of the tenth of the samples with the largest ||J_i||^2 that is in that of another seed, the
    mean over the other seeds; chance gives a tenth. Its error is that of such a mean by chance: two random k-subsets of n share
    a hypergeometric number, of variance k^2 (n - k)^2 / (n^2 (n - 1)).
    """
    own, cell = result.samples, result.cell
    others = [
        r.samples
        for r in done
        if r.samples and (r.cell.condition, r.cell.matrix) == (cell.condition, cell.matrix) and r.cell.seed != cell.seed
    ]
    if not own or not others:
        return {}
    shared = [len(top(own) & top(other)) / len(top(own)) for other in others]
    n, k = len(own), len(top(own))
    chance = (n - k) / n / np.sqrt((n - 1) * len(others)) if n > 1 else 0.0
    return {"prototype_overlap": float(np.mean(shared)), "prototype_overlap_stderr": float(chance)}


def top(values: Sequence[float]) -> set[int]:
    """Which samples are the tenth with the largest values, at least one.

    >>> sorted(top([0.0, 5.0, 1.0] + [0.5] * 17))
    [1, 2]
    """
    return set(map(int, np.argsort(-np.asarray(values), kind="stable")[: max(1, round(len(values) / 10))]))


def trend(result: Result, matrix: str, metric: str, levels: Mapping[str, float], draws: int = 9999) -> Trend:
    """How a metric moves with the level of its condition, given as {condition: level}.

    Spearman's rho within each seed, averaged: a seed's own offset does not blur it. The p-value counts `draws`
    permutations of the levels within each seed, seeded (two-sided; at least 1 / (draws + 1)).

    Source: Spearman (1904); Good (2005) for the stratified permutation test.
    """
    row = result.row(matrix, metric)
    names = [name for name in levels if name in row.values]
    if len(names) < 3:
        raise ValueError(f"A trend needs three levels or more, but {len(names)} of {list(levels)} are in the result.")
    values_SL = np.array([row.values[name] for name in names]).T
    kept_SL = values_SL[np.isfinite(values_SL).all(axis=1)]
    at = np.array([levels[name] for name in names], dtype=float)
    rho, p_value = spearman_within(at, kept_SL, draws=draws)
    return Trend(matrix, metric, tuple(at), tuple(tuple(map(float, row)) for row in values_SL), rho, p_value)


def spearman_within(levels: np.ndarray, values_SL: np.ndarray, *, draws: int = 9999) -> tuple[float, float]:
    """Mean over the rows of Spearman's rho between `levels` (L,) and each row (S, L), and its permutation p-value.

    A constant row has no order and counts as 0; no rows at all give nan.

    >>> rho, p = spearman_within(np.arange(6.0), np.array([[0.0, 1, 4, 9, 16, 25]] * 3))
    >>> rho, p < 0.001
    (1.0, True)
    """
    if values_SL.size == 0:
        return math.nan, math.nan
    ranks_L = _standard_ranks(levels)
    ranks_SL = np.array([_standard_ranks(row) for row in values_SL])
    rho = float((ranks_SL @ ranks_L).mean())
    generator = np.random.default_rng(stream(0, "trend"))
    shuffled = np.stack([generator.permuted(np.tile(ranks_L, (draws, 1)), axis=1) @ row for row in ranks_SL])
    as_large = int((np.abs(shuffled.mean(axis=0)) >= abs(rho) - 1e-12).sum())
    return round(rho, 12), (as_large + 1) / (draws + 1)


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (ties averaged), centred, of unit length: their inner product is Spearman's rho."""
    ranks = rankdata(values)
    ranks = ranks - ranks.mean()
    length = float(np.linalg.norm(ranks))
    return ranks / length if length > 0 else ranks


def refused(metric: str, metrics: Mapping[str, float]) -> bool:
    """Whether `metric` comes from a fit that the same metrics say was refused.

    >>> refused("alpha", {"alpha": 2.0, "alpha_accepted": 0.0}), refused("trace", {"alpha_accepted": 0.0})
    (True, False)
    """
    return metric in FITS and metrics.get(FITS[metric]) == 0.0


def row_of(matrix: str, metric: str, numbers: Mapping[str, Sequence[Mapping[str, Any]]]) -> Row:
    """A metric of a matrix from all numbers of each condition, a mapping for each seed.

    A condition is left out in which the metric is neither known nor refused. Errors are standard errors, or residuals.

    >>> row_of("M", "trace", {"init": [{"trace": 2.0}, {"trace": None}], "true": [{}, {}]}).values
    {'init': (2.0, nan)}
    """
    values: dict[str, tuple[float, ...]] = {}
    errors: dict[str, tuple[float, ...]] = {}
    doubted: dict[str, tuple[bool, ...]] = {}
    for condition, of_seeds in numbers.items():
        known = tuple(number_of(m.get(metric)) for m in of_seeds)
        flags = tuple(refused(metric, m) for m in of_seeds)
        if any(map(math.isfinite, known)) or any(flags):
            values[condition] = known
            errors[condition] = tuple(
                number_of(m.get(f"{metric}_stderr", m.get(f"{metric}_residual"))) for m in of_seeds
            )
        if any(flags):
            doubted[condition] = flags
    effects = {}
    for a, b in () if metric in NOT_COMPARED else PAIRS:
        x, y = ([v for v in values.get(name, ()) if math.isfinite(v)] for name in (a, b))
        if min(len(x), len(y)) >= 2:
            effects[f"{a}-{b}"] = cohens_d(x, y)
    return Row(matrix, metric, values, errors, effects, doubted)


def number_of(value: Any) -> float:
    """A number of a file, in which nan is null."""
    return math.nan if value is None else float(value)


def _cost(done: Sequence[CellResult]) -> dict[str, float]:
    total = {name: sum(r.cost[name] for r in done) for name in ("products", "epochs", "seconds")}
    trained = {r.cell.network: r.trained for r in done if r.trained is not None}
    total["training_epochs"] = float(sum(t.epochs for t in trained.values()))
    total["training_seconds"] = sum(t.seconds for t in trained.values())
    return total
