"""One cell of an experiment: a trained network, one of its matrices, its spectrum and what that says.

A *cell* is one matrix (kind, output, split; or a diagonal block of one) of one trained network (seed, condition). `all_cells`
lists them, `run_cell` does one, `effects.collect` turns any finished set into tables. Nothing here knows of files: trained
networks pass through a mapping that the caller may back by a disk.

Legend: n samples, C classes (outputs), d input features, P parameters; J_i (C, d) or (C, P) of sample i.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spectral import Spectrum, block_gap, distributed, esd, exact, layers, slq
from spectral.analysis import label_alignment, outliers, summary
from spectral.analysis.alignment import EXACT_ROWS, energies, label_vector
from spectral.estimators.assembled import gram_matrix
from spectral.estimators.budget import free_memory
from spectral.experiments.datasets import PermutedLabels, Problem, batches, digits, in_dtype, permute_labels
from spectral.experiments.models import model_for
from spectral.experiments.training import Trained, evaluate, few_threads, train
from spectral.networks.blocks import blocks
from spectral.networks.curvature import GaussNewton, Hessian
from spectral.networks.jacobian import Jacobian
from spectral.operators.operator import Operator
from spectral.schema import NAME, RULED, SIZE, Fields, Items, Number, Rule, Text, maybe

CURVE_POINTS = 120  # of a stored alignment curve, geometrically spaced
CURVATURES: dict[str, Callable[..., Operator]] = {"gauss_newton": GaussNewton, "hessian": Hessian}
OF_LOGITS = (*CURVATURES, "layers")  # what belongs to the mean cross entropy
KINDS = ("flattened", "stacked", "diagonal", "ntk", *OF_LOGITS)
SEED = Number(True, least=0, most=2**63 - 1)
RULES: dict[str, Rule] = {  # of `Settings`, as a configuration may give them too
    "seeds": Items(SEED, least=1, distinct=True),
    "kinds": Items(Text(*KINDS), least=1, distinct=True),
    "outputs": Items(Text("logits", "probs"), least=1, distinct=True),
    "splits": Items(Text("train", "test"), least=1, distinct=True),
    "ntk_samples": SIZE,
    "samples": maybe(SIZE),
    "data_seed": maybe(SEED),
    "alignment_k": SIZE,
}
BLOCKWISE: dict[str, Rule] = {  # the same of what is asked of diagonal blocks
    "blocks": Items(NAME, distinct=True), "by": Text("module", "parameter"), "block_probes": SIZE, "block_steps": SIZE,
    "pairs": Number(True, least=2),
}  # fmt: skip
LAYERWISE = {  # a column of the weights of `spectral.layers`, and one of the data
    "alpha": ("alpha", "data_alpha"), "rank": ("stable_rank", "data_effective_rank"), "scale": ("lambda_max", "data_lambda_max"),
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """What the network was trained on: `noise` is the fraction of permuted labels; None means not trained here.

    `epochs` stops the training after so many epochs, whatever the loss (spectra along the way); None: to the target.
    `options`, where given, are handed to the settings' model as `options=` (other depths or widths). `inputs` and `classes`
    change the data: noise in place of the inputs (`Problem.with_inputs`), the first classes alone (None: all).
    """

    name: str
    noise: float | None = 0.0
    epochs: int | None = None
    options: Mapping[str, object] | None = None
    inputs: str = "real"
    classes: int | None = None


INIT, TRUE, RANDOM = Condition("init", None), Condition("true", 0.0), Condition("random", 1.0)
GIVEN = Condition("given", None)  # the network as it is built, which has its weights of training


@dataclass(frozen=True)
class Matrix:
    """Which matrix: "flattened" (n, C d), "stacked" (n C, d) or "diagonal" (the n numbers ||J_i||_F^2) of the input
    Jacobian, or "ntk", the parameter Jacobian (n C, P); `of` logits or probs; `split` train or test. "gauss_newton" and "hessian"
    are those of the mean cross entropy (P, P), `of` logits alone; `block` names one of their diagonal blocks ("": the whole).
    "layers" are the weights' own squared singular values, beside the blocks of the Gauss-Newton matrix."""

    kind: str
    of: str
    split: str
    block: str = ""

    @property
    def name(self) -> str:
        return f"{self.whole}.{self.block}" if self.block else self.whole

    @property
    def whole(self) -> str:
        """The name of the matrix that a block is of."""
        return f"{self.kind}.{self.of}.{self.split}"


@dataclass(frozen=True)
class Cell:
    """One unit of work. `key` is unique within an experiment and fit for a file name."""

    seed: int
    condition: Condition
    matrix: Matrix

    @property
    def key(self) -> str:
        return f"seed{self.seed}-{self.condition.name}-{self.matrix.name}"

    @property
    def network(self) -> str:
        """The key of the trained network, shared by all cells of one seed and condition."""
        return f"seed{self.seed}-{self.condition.name}"


@dataclass(frozen=True)
class Settings:
    """Everything an experiment depends on; the defaults are the flagship on scikit-learn digits.

    `problem(seed=...)` and `model(problem, seed=...)` are callables, so any data and any network fit; `training` holds
    the keywords of `train`; `estimator` maps a Jacobian to a Spectrum. Networks train in float32; `dtype` is that of
    the copy whose spectra are taken (float64: eigenvalues down to 1e-16 of the largest mean something). `ntk_samples`
    bounds the samples of the parameter Jacobian, `samples` those of curvature matrices, `alignment_k` the leading directions that
    label alignment counts. `blocks` names diagonal blocks of curvature matrices whose spectra are taken too, each from
    `block_probes` and `block_steps`, so that they can be compared; `pairs` of products estimate what lies outside of all blocks.
    `by` is that of `spectral.blocks`. `data_seed` splits the data of all seeds alike (None: each seed has a split of its own), so
    that numbers of single samples can be compared between seeds.
    """

    problem: Callable[..., Problem] = digits
    model: Callable[..., nn.Module] = model_for  # its default: the MLP 64 - 64 - 64 - 10
    conditions: tuple[Condition, ...] = (INIT, TRUE, RANDOM)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    kinds: tuple[str, ...] = KINDS[:4]
    outputs: tuple[str, ...] = ("logits", "probs")
    splits: tuple[str, ...] = ("train", "test")
    ntk_samples: int = 150
    samples: int | None = None
    blocks: tuple[str, ...] = ()
    by: str = "module"
    block_probes: int = 2
    block_steps: int = 30
    pairs: int = 16
    alignment_k: int = 50
    batch_size: int = 150
    data_seed: int | None = None
    training: Mapping[str, object] = field(default_factory=dict)
    estimator: Callable[[Jacobian], Spectrum] = esd
    device: str = "cpu"
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        rules = {**RULES, **BLOCKWISE, "training": RULED[train]}
        Fields(rules).check({name: getattr(self, name) for name in rules}, "settings")
        if set(self.kinds) & set(OF_LOGITS) and "logits" not in self.outputs:
            raise ValueError(
                f"outputs={list(self.outputs)} leave out logits, of which curvature matrices are; name them too."
            )
        names = [condition.name for condition in self.conditions]
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"conditions {names} hold none or a repeated one; name each once.")

    def data(self, seed: int, condition: Condition) -> Problem:
        """The data of a condition."""
        split = seed if self.data_seed is None else self.data_seed
        return _problem(self.problem, split, seed, self.device, (condition.inputs, condition.classes))

    def build(self, problem: Problem, seed: int, condition: Condition) -> nn.Module:
        """The network of a condition, at initialisation."""
        other = {} if condition.options is None else {"options": condition.options}
        return self.model(problem, seed=seed, **other)


@dataclass(frozen=True)
class Snapshot:
    """A trained network as plain data: its state_dict on the CPU, how training went, which labels it saw."""

    state: dict[str, Tensor]
    trained: Trained
    noise: float
    changed: float


@dataclass(frozen=True)
class AlignmentCurve:
    """The labels' energy ||U_k^T y||^2 / ||y||^2 in the leading directions: at `k`, and at every size in `sizes`.

    `method` is "exact", or "lanczos" where directions are counted in Ritz values (see `spectral.label_alignment`): the
    two are not to be compared.
    """

    method: str
    k: int
    energy: float
    sizes: list[float]
    energies: list[float]


@dataclass(frozen=True)
class CellResult:
    """One finished cell: its spectrum, metrics with their standard errors within the seed, alignment, network and cost.

    `alignment` has the keys "own" (labels trained on) and "true" for the parameter Jacobian on training samples, "true"
    on test samples, none elsewhere. `trained` is None at initialisation. `changed` is the fraction of labels that
    differ from the true ones; `test_accuracy` is the network's. `cost` counts products, epochs, seconds of this cell. `samples`
    are the numbers ||J_i||_F^2 of a diagonal in the order of the samples, where all seeds have the same ones (`data_seed`).
    """

    cell: Cell
    spectrum: Spectrum
    metrics: dict[str, float]
    alignment: dict[str, AlignmentCurve]
    trained: Trained | None
    changed: float
    test_accuracy: float
    cost: dict[str, float]
    samples: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the key of the cell, and all but the spectrum (`Spectrum.save` keeps that)."""
        plain = asdict(replace(self, spectrum=None))  # type: ignore[arg-type]
        del plain["spectrum"]
        return {**plain, "cell": self.cell.key}

    @staticmethod
    def from_dict(plain: Mapping[str, Any], cell: Cell, spectrum: Spectrum) -> CellResult:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        trained = None if plain["trained"] is None else Trained.from_dict(plain["trained"])
        alignment = {name: AlignmentCurve(**curve) for name, curve in plain["alignment"].items()}
        own = {"cell": cell, "trained": trained, "alignment": alignment, "samples": tuple(plain["samples"])}
        return CellResult(spectrum=spectrum, **{**plain, **own})


def all_cells(settings: Settings) -> list[Cell]:
    """All cells in the order that trains each network once: by seed, then condition, then matrix, blocks after their matrix."""
    matrices = [
        Matrix(*names, block)
        for names in product(settings.kinds, settings.outputs, settings.splits)
        for block in ("", *(settings.blocks if names[0] in CURVATURES else ()))
        if names[0] not in OF_LOGITS or names[1] == "logits"
    ]
    return [Cell(seed, c, matrix) for seed in settings.seeds for c in settings.conditions for matrix in matrices]


def run_cell(
    cell: Cell,
    settings: Settings,
    store: MutableMapping[str, Snapshot] | None = None,
    *,
    checkpoint: str | Path | None = None,
) -> CellResult:
    """Train the cell's network, or take it from `store`, and take the spectrum of its matrix.

    `store` maps `cell.network` to a `Snapshot`; a missing one is trained and put in, so a dict shares networks between
    cells and a mapping over files resumes. `checkpoint` is a file that an estimator with this keyword keeps its finished
    probes in. Same settings and cell, same result. A small network computes with one thread (see `few_threads`).
    """
    estimate: Callable[..., Spectrum] = settings.estimator
    if checkpoint is not None:
        estimate = partial(estimate, checkpoint=checkpoint)
    problem = settings.data(cell.seed, cell.condition)
    model, snapshot = network(cell, settings, problem, {} if store is None else store)
    with few_threads(model):
        accuracy = evaluate(model, problem.x_test, problem.y_test)[1] if len(problem.x_test) else float("nan")
        started = time.perf_counter()
        kind = cell.matrix.kind
        x, y_true = problem.split(cell.matrix.split)
        y_own = _labels(problem, cell).y if cell.matrix.split == "train" else y_true
        count = settings.ntk_samples if kind == "ntk" else settings.samples if kind in OF_LOGITS else None
        x, y_true, y_own = in_dtype(x[:count], settings.dtype), y_true[:count], y_own[:count]
        found = MAKERS[kind](Work(cell.matrix, settings, model.to(settings.dtype), x, y_own, y_true, estimate))
        metrics = summary(found.spectrum, top=min(problem.classes, found.spectrum.dim)) | found.metrics
        for name, curve in found.alignment.items():
            inside = np.interp(metrics["information_dimension"], curve.sizes, curve.energies)
            metrics |= {f"{name}_label_alignment": curve.energy, f"{name}_information_alignment": float(inside)}
        products, epochs = float(found.counted.products), float(found.counted.epochs)
    return CellResult(
        cell=cell,
        spectrum=found.spectrum,
        metrics=metrics,
        alignment=found.alignment,
        trained=None if snapshot is None else snapshot.trained,
        changed=0.0 if snapshot is None else snapshot.changed,
        test_accuracy=accuracy,
        cost={"products": products, "epochs": epochs, "seconds": time.perf_counter() - started},
        samples=() if settings.data_seed is None else found.samples,
    )


class Work(NamedTuple):
    """One matrix to look at: of this network on these samples, with the labels trained on and the true ones."""

    matrix: Matrix
    settings: Settings
    model: nn.Module
    x: Tensor
    own: Tensor
    true: Tensor
    estimate: Callable[[Any], Spectrum]

    @property
    def data(self) -> list[tuple[Tensor, ...]]:
        return batches(self.x, self.own, self.settings.batch_size)

    @property
    def jacobian(self) -> Jacobian:
        return jacobian(self.model, self.x, self.own, self.matrix, self.settings.batch_size)


@dataclass(frozen=True)
class Found:
    """What it gives: a spectrum, what has counted its products, further metrics, alignment, numbers of the single samples."""

    spectrum: Spectrum
    counted: Operator | Spectrum
    metrics: dict[str, float] = field(default_factory=dict)
    alignment: dict[str, AlignmentCurve] = field(default_factory=dict)
    samples: tuple[float, ...] = ()


def _of_inputs(work: Work) -> Found:
    return Found(work.estimate(J := work.jacobian), J)


def _curvature(work: Work) -> Found:
    """The mean cross entropy's curvature with its outliers and block gap, or one of its diagonal blocks."""
    matrix, settings = work.matrix, work.settings
    A = CURVATURES[matrix.kind](work.model, nn.CrossEntropyLoss(), work.data)
    parts = blocks(A, by=settings.by) if settings.blocks else {}
    if matrix.block:
        B = parts[matrix.block]
        probes, steps = settings.block_probes, min(settings.block_steps, B.shape[0])
        return Found(slq(B, probes=probes, steps=steps, progress=False), B)
    spectrum, more = work.estimate(A), {}
    if parts:
        gap = block_gap(A, [B.shape[0] for B in parts.values()], pairs=settings.pairs, progress=False)
        more = {"block_gap": float(gap), "block_gap_stderr": float(gap.stderr)}
    return Found(spectrum, A, more | standing_apart(spectrum))


def _layers(work: Work) -> Found:
    """Squared singular values of all layers' weights, and how their columns go with those of the same layers' curvature."""
    loss, probes, steps = nn.CrossEntropyLoss(), work.settings.block_probes, work.settings.block_steps
    table = layers(work.model, work.data, loss, probes=probes, steps=steps, progress=False)
    if len(table) < 4:
        raise ValueError(
            f"the model has {len(table)} layers with 8 singular values or more, and a correlation needs 4; use a deeper one."
        )
    more: dict[str, float] = {}
    for name, (x, y) in LAYERWISE.items():
        found = table.correlation(x, y)
        more |= {f"{name}_correlation": float(found), f"{name}_correlation_stderr": float(found.stderr)}
    for name in ("accepted", "data_accepted"):
        more |= {f"layers_{name}": float(np.mean(table[name])), f"layers_{name}_stderr": 0.0}
    spectra = table.spectra.values()
    products, epochs = sum(s.products for s in spectra), sum(s.epochs for s in spectra)
    values, meta = np.concatenate(list(table.eigenvalues.values())), {"operator": table.meta["operator"]}
    whole = Spectrum.from_eigenvalues(values, method="weights", products=products, epochs=epochs, meta=meta)
    return Found(whole, whole, more)


def network(
    cell: Cell, settings: Settings, problem: Problem, store: MutableMapping[str, Snapshot]
) -> tuple[nn.Module, Snapshot | None]:
    """The cell's network in eval mode on the problem's device, and its snapshot (None at initialisation)."""
    model = settings.build(problem, cell.seed, cell.condition).to(settings.device)
    if cell.condition.noise is None:
        return model.eval(), None
    snapshot = distributed.by_first(lambda: store.get(cell.network) or _trained(cell, settings, problem, model, store))
    own, stored = ({name: (v.shape, v.dtype) for name, v in s.items()} for s in (model.state_dict(), snapshot.state))
    if own != stored or snapshot.noise != cell.condition.noise:
        raise ValueError(
            f"The kept network {cell.network} is of another model or label noise; delete it and train again."
        )
    model.load_state_dict(snapshot.state)
    return model.eval(), snapshot


def _trained(
    cell: Cell, settings: Settings, problem: Problem, model: nn.Module, store: MutableMapping[str, Snapshot]
) -> Snapshot:
    """The cell's network after training, which is stored; of several ranks the first trains, so that all have its weights."""
    y, changed = _labels(problem, cell)
    options = dict(settings.training)
    if cell.condition.epochs is not None:
        options["max_epochs"] = cell.condition.epochs
    trained = train(model, problem.x_train, y, seed=cell.seed, **options)  # type: ignore[arg-type]
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    snapshot = Snapshot(state=state, trained=trained, noise=cell.condition.noise or 0.0, changed=changed)
    store[cell.network] = snapshot
    return snapshot


def jacobian(model: nn.Module, x: Tensor, y: Tensor, matrix: Matrix, batch_size: int = 150) -> Jacobian:
    """The operator of a `Matrix` over (x, y): x (n, ...), y (n,), of which each rank of a group takes its share.

    The diagonal belongs to the flattened Gram.
    """
    data = distributed.share(batches(x, y, batch_size))
    if matrix.kind == "ntk":
        return Jacobian(model, data, of=matrix.of, wrt="params")
    layout = "flattened" if matrix.kind == "flattened" else "stacked"
    return Jacobian(model, data, of=matrix.of, wrt="inputs", layout=layout)


@lru_cache(maxsize=2)
def _problem(
    build: Callable[..., Problem], split: int, seed: int, device: str, condition: tuple[str, int | None]
) -> Problem:
    """The cells of one network come one after the other: their data are made once."""
    inputs, classes = condition
    problem = build(seed=split)
    problem = problem if classes is None else problem.of_classes(classes)
    return problem.with_inputs(inputs, seed).to(device)


def _labels(problem: Problem, cell: Cell) -> PermutedLabels:
    """The training labels of the cell's condition."""
    return permute_labels(problem.y_train, cell.condition.noise or 0.0, seed=cell.seed)


def concentration(values: np.ndarray) -> dict[str, float]:
    """How unequal n non-negative numbers are: "max_over_mean" (1..n) and the "gini" coefficient (0..1 - 1/n).

    Gini = sum_i (2i - n - 1) v_(i) / (n sum v): 0 when all are equal. Both are nan when all are 0. Errors are 0: exact.

    >>> concentration(np.array([0.0, 0.0, 0.0, 8.0]))["max_over_mean"], concentration(np.ones(5))["gini"]
    (4.0, 0.0)
    """
    v, n, total = np.sort(values), len(values), float(values.sum())
    weights = 2 * np.arange(1, n + 1) - n - 1
    ratio = float(v[-1]) * n / total if total > 0 else float("nan")
    gini = float(weights @ v) / (n * total) if total > 0 else float("nan")
    return {"max_over_mean": ratio, "max_over_mean_stderr": 0.0, "gini": gini, "gini_stderr": 0.0}


def standing_apart(spectrum: Spectrum) -> dict[str, float]:
    """How many eigenvalues stand apart above the bulk and how far, nan where that cannot be told ("outliers_accepted" 0).

    >>> standing_apart(Spectrum.from_eigenvalues(np.append(np.linspace(0.1, 1, 60), [5.0, 6.0, 9.0])))["outliers"]
    3.0
    """
    found = outliers(spectrum)
    numbers = (float(found.count), found.gap) if found.accepted else (float("nan"), float("nan"))
    return {
        **dict(zip(("outliers", "outlier_gap"), numbers, strict=True)),
        **dict.fromkeys(("outliers_stderr", "outlier_gap_stderr"), 0.0),
        "outliers_accepted": float(found.accepted),
    }


def _diagonal(work: Work) -> Found:
    """The n numbers ||J_i||_F^2 as a spectrum, the eigenvalues of the block-diagonal part, and in the order of the samples."""
    J = work.jacobian
    begun = J.epochs
    values = np.asarray(J.squared_norms().double().cpu().numpy())
    products, epochs, meta = J.products, J.epochs - begun, {"operator": J.describe(), "epsilon": J.epsilon}
    spectrum = Spectrum.from_eigenvalues(values, method="diagonal", products=products, epochs=epochs, meta=meta)
    return Found(spectrum, J, concentration(values), samples=tuple(map(float, values)))


def _kernel(work: Work) -> Found:
    """The spectrum of the parameter Jacobian, and its alignment with each set of labels (equal sets once); of text none.

    With `esd` or `exact` a small kernel J J^T is assembled and decomposed once for all of them: that halves the
    flagship's time. Otherwise the estimator and `label_alignment` each go their own way, the latter by Lanczos where the
    rows of J do not fit into half of the memory.
    """
    J, settings = work.jacobian, work.settings
    if work.true.ndim > 1:
        return Found(work.estimate(J), J)
    wanted = {"true": work.true} if work.matrix.split == "test" else {"own": work.own, "true": work.true}
    wanted = {name: y for name, y in wanted.items() if len(y.unique()) > 1}
    rows, columns = J.shape
    k = min(settings.alignment_k, rows)
    fits = rows <= EXACT_ROWS and rows * columns * J.dtype.itemsize < free_memory(J) // 2
    if settings.estimator not in (esd, exact) or not fits or rows > columns:
        method = "exact" if fits else "lanczos"
        aligned = {name: label_alignment(J, y, k=k, method=method) for name, y in wanted.items()}
        spectrum = work.estimate(J)
        return Found(spectrum, J, alignment={n: _thinned(a.curve.energy, k, method) for n, a in aligned.items()})
    products, epochs = J.products, J.epochs
    values, U = (part.cpu().numpy() for part in torch.linalg.eigh(gram_matrix(J, side="left")))
    products, epochs = J.products - products, J.epochs - epochs
    meta = {
        "operator": J.gram(side="left").describe(),
        "assembled": "kernel decomposed once for spectrum and label alignment",
        "epsilon": J.epsilon,
        "nonnegative": True,
    }
    spectrum = Spectrum.from_eigenvalues(values, products=products, epochs=epochs, meta=meta)
    spectrum.meta["value_error"] = spectrum.rounding
    energy = np.cumsum(np.abs(values)[::-1])
    curves, own = {}, int(np.searchsorted(energy, 0.9 * (1 - 1e-12) * energy[-1])) + 1  # as `information_dimension`
    for name, labels in wanted.items():
        y = label_vector(labels, rows)[0]
        curves[name] = _thinned(energies(values[::-1], U[:, ::-1], y, spectrum.rounding), k, "exact", own)
    return Found(spectrum, J, alignment=curves)


MAKERS: dict[str, Callable[[Work], Found]] = {
    **dict.fromkeys(("flattened", "stacked"), _of_inputs),
    **dict.fromkeys(CURVATURES, _curvature),
    "diagonal": _diagonal,
    "ntk": _kernel,
    "layers": _layers,
}


def _thinned(energies: np.ndarray, k: int, method: str, own: int = 1) -> AlignmentCurve:
    """A curve of all directions, thinned to CURVE_POINTS sizes and the one that is the dimension of the information space."""
    sizes = np.unique(np.append(np.geomspace(1, len(energies), CURVE_POINTS).astype(int), min(own, len(energies))))
    at_k = float(energies[min(k, len(energies)) - 1])
    return AlignmentCurve(method, k, at_k, sizes.astype(float).tolist(), energies[sizes - 1].tolist())
