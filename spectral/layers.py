"""`layers`: one row a layer, its weight's spectrum as WeightWatcher tells it beside the spectrum of what the data make of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectral.analysis import weightwatcher
from spectral.analysis.power_law import power_law, refusal_from
from spectral.analysis.summary import effective_rank, largest_of, trace_of
from spectral.estimators.budget import progress_bar
from spectral.estimators.esd import esd
from spectral.layer_table import LayerTable
from spectral.networks.blocks import blocks
from spectral.networks.curvature import GaussNewton, Hessian
from spectral.networks.fisher import EmpiricalFisher, Fisher
from spectral.networks.jacobian import Jacobian
from spectral.networks.weights import BY_DIMENSIONS, Layer, layers_of, matrices
from spectral.operators.operator import Gram, Operator
from spectral.results import Array, Estimate, nan
from spectral.schema import SWITCH, choice, integer, several
from spectral.spectrum import Spectrum
from spectral.version import __version__

CURVATURES = {"gauss_newton": GaussNewton, "hessian": Hessian, "fisher": Fisher, "empirical_fisher": EmpiricalFisher}
OPERATORS = ("jacobian", *CURVATURES)


def layers(
    model: Any,
    data: Any = None,
    loss: Any = None,
    *,
    params: Sequence[str] | None = None,
    min_evals: int = 8,
    max_evals: int | None = 15000,
    mp_fit: bool = False,
    randomize: bool = False,
    detX: bool = False,
    operator: str | Operator | None = None,
    probes: int = 2,
    steps: int = 50,
    budget: Any = None,
    seed: int = 0,
    progress: bool | None = None,
) -> LayerTable:
    """One row a layer: the spectrum of its weight, by WeightWatcher's columns, and what the data make of it.

    The weight W (N, M), N >= M, of a layer gives the squares of its singular values, and of these norms, ranks and the exponent
    alpha of their tail, with a verdict. With data, the layer's diagonal block of a Jacobian's Gram or of a curvature matrix gives
    lambda_max, trace, effective rank and alpha, each with its error, in columns that begin with data_. docs/layers.md defines
    each column, and says where WeightWatcher's differs.

    Cost: N M² operations and the eigenvalues of an (M, M) matrix a layer, in float64. With data, at most probes x steps products
    a layer, and where all eigenvalues are cheaper as many products or sweeps as they take (`esd`).

    Parameters
    ----------
    model : torch.nn.Module, mapping or path
        A model, a state_dict, a .safetensors file, or a folder of them with or without its *.safetensors.index.json. Of files and
        mappings one layer is read at a time.
    data : iterable of batches, optional
        As for `Jacobian`; needs a model.
    loss : torch.nn.Module or callable, optional
        As for `Hessian`.
    params : list of str, optional
        Globs: layers whose longname or parameter fits one of them. All by default.
    min_evals, max_evals : int
        A layer with fewer or more squared singular values is skipped, with the reason; None for no upper limit.
    mp_fit : bool
        Fit a Marchenko–Pastur bulk: num_spikes, mp_softrank and what belongs to them.
    randomize : bool
        Shuffle the entries of each matrix, and tell its spectrum from what is then left: rand_distance, num_traps.
    detX : bool
        How many of the largest eigenvalues multiply to 1: detX_num.
    operator : str or Operator, optional
        The matrix of the data: "jacobian" (of the logits, JᵀJ), "gauss_newton", "hessian", "fisher" or "empirical_fisher" (of the
        loss, or of the model's own). By default "gauss_newton" with a loss and "jacobian" without. Or an operator of this model
        that has `blocks`, built with whatever keywords it needs; data and loss are then its own.
    probes, steps : int
        Of the Lanczos quadrature of each block.
    budget : int or str, optional
        Of each block, as for `esd`, beside probes and steps.
    seed : int
        Of the probes and of the shuffling.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.

    Returns
    -------
    LayerTable
        A table that prints, plots and goes to pandas.

    Raises
    ------
    TypeError
        For a model that is none of these, and an operator without blocks.
    ValueError
        For data without a model, an unknown operator, limits that are no numbers, globs that fit nothing, and files that are no
        safetensors.
    FileNotFoundError
        For a path where nothing is, and a shard that an index names.

    Notes
    -----
    A layer is a module's `weight` of two dimensions or more; of modules without one (recurrent nets, attention) each of their
    own parameters of two dimensions. Convolutions are one matrix for each place of their kernel, pooled. Vectors are no layers.
    Skipped, and listed with the reason: tied weights but the first, norms, dtypes that are not real floating point, weights that
    are not finite.

    `method` says how the squares were found: "gram", by the eigenvalues of the smaller Gram matrix, off by a few eps·λmax; or
    "svd", by singular values, where the smallest is below 1e-5 of the largest so that this would tell.

    References
    ----------
    Martin, Peng, Mahoney (2021), Predicting trends in the quality of state-of-the-art neural networks without access to training
    or testing data, Nature Communications 12.

    Examples
    --------
    >>> W = torch.diag(torch.arange(1.0, 9.0))
    >>> row = next(iter(layers({"fc.weight": W})))
    >>> row["lambda_max"], row["norm"], row["matrix_rank"], row["num_evals"]  # of 1, 4, ..., 64
    (64.0, 204.0, 8, 8)
    """
    integer(min_evals, "min_evals", "number of eigenvalues", 0)
    if max_evals is not None:
        integer(max_evals, "max_evals", "number of eigenvalues", 0)
    for name, switch in (("mp_fit", mp_fit), ("randomize", randomize), ("detX", detX)):
        choice(switch, name, SWITCH)
    if params is not None:
        several(params, "params", "globs of names")
    most = np.inf if max_evals is None else max_evals
    found, A = _chosen(layers_of(model), params), _operator(model, data, loss, operator)
    parts = blocks(A) if A is not None else {}
    matrix = "J^T J" if isinstance(A, Gram) else type(A).__name__
    how: dict[str, Any] = {"probes": probes, "steps": steps, "budget": budget, "seed": seed}
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    eigenvalues: dict[str, Array] = {}
    spectra: dict[str, Spectrum] = {}
    with progress_bar(None, "layers", progress, unit="layer") as bar:
        for layer in found:
            row, values, reason = _weight_row(layer, min_evals, most, mp_fit, randomize, detX, seed)
            if reason:
                skipped[layer.longname] = reason
            if row is None or values is None:
                continue
            if A is not None:
                if (block := parts.get(layer.parameter)) is not None:
                    spectra[layer.longname] = esd(block, progress=False, **how)
                row |= _data_columns(matrix, spectra.get(layer.longname))
            rows.append(row)
            eigenvalues[layer.longname] = values
            bar.update()
    if params is not None and not rows and not skipped:
        raise ValueError(
            f"params={list(params)} fit no layer; use globs of names such as those of layers(model) without params."
        )
    spent = f"{probes} probes of {steps} steps a layer" + (f", budget {budget}" if budget is not None else "")
    meta = {
        "version": __version__, "min_evals": min_evals, "max_evals": max_evals, "threshold": weightwatcher.THRESHOLD,
        "dtype": "float64", "seed": seed, **({"data": spent, "operator": A.describe()} if A is not None else {}),
    }  # fmt: skip
    return LayerTable(tuple(rows), skipped, eigenvalues, spectra, meta)


def _chosen(found: Iterator[Layer], globs: Sequence[str] | None) -> Iterator[Layer]:
    for layer in found:
        names = (layer.longname, layer.parameter)
        if globs is None or any(fnmatchcase(name, glob) for name in names for glob in globs):
            yield layer


def _operator(model: Any, data: Any, loss: Any, operator: str | Operator | None) -> Operator | None:
    """The matrix whose blocks are asked for, None without data."""
    if isinstance(operator, Operator):
        if data is not None or loss is not None:
            raise ValueError("an operator was given with data or a loss of its own; leave data and loss out.")
        if isinstance(operator, Jacobian):
            raise TypeError("a Jacobian has no diagonal blocks; pass its Gram, J.gram('right').")
        return operator
    if operator is not None and operator not in OPERATORS:
        raise ValueError(
            f"operator={operator!r} is unknown; use one of {', '.join(OPERATORS)}, or an operator with blocks."
        )
    if data is None:
        if loss is not None or operator is not None:
            raise ValueError(
                "a loss or an operator was given without data; give data too, or neither for the weights alone."
            )
        return None
    if not isinstance(model, nn.Module):
        raise ValueError("data need a model that can be called on them; weights from a file or a mapping have none.")
    name = operator or ("jacobian" if loss is None else "gauss_newton")
    if name == "jacobian":
        if loss is not None:
            raise ValueError(
                "operator='jacobian' is of the logits and takes no loss; leave it out, or name a curvature matrix."
            )
        return Jacobian(model, data).gram("right")
    return CURVATURES[name](model, loss, data)


def _weight_row(
    layer: Layer, min_evals: int, max_evals: float, mp_fit: bool, randomize: bool, detX: bool, seed: int
) -> tuple[dict[str, Any] | None, Array | None, str]:
    """(the columns of a weight, its eigenvalues, why it is skipped); nothing of a vector, which is no layer."""
    W = layer.read()
    if not isinstance(W, Tensor):
        return None, None, f"it is of type {type(W).__name__}, not a tensor"
    if W.ndim < 2:
        return None, None, ""
    kind = layer.kind or BY_DIMENSIONS.get(W.ndim, "")
    if reason := layer.reason or _unfit(W, kind):
        return None, None, reason
    stack = matrices(W.detach(), kind)
    rf, M, N = len(stack), *sorted(stack.shape[1:])
    if not min_evals <= M * rf <= max_evals:
        limit = f"fewer than min_evals={min_evals}" if M * rf < min_evals else f"more than max_evals={max_evals}"
        return None, None, f"it has {M * rf} eigenvalues, {limit}"
    # WeightWatcher halves the squares of two-dimensional convolutions (its conv2d_norm)
    factor = 0.5 if kind == "conv2d" else 1.0
    try:
        parts, methods = zip(*map(weightwatcher.squared_singular_values, stack), strict=True)
    except weightwatcher.NotFinite as problem:
        return None, None, str(problem)
    columns, values = weightwatcher.columns([factor * part for part in parts], N)
    row: dict[str, Any] = {
        "layer_id": layer.number, "name": layer.longname.rpartition(".")[2], "longname": layer.longname, "layer_type": kind,
        "N": N, "M": M, "rf": rf, "Q": N / M, "method": max(methods), **columns,
    }  # fmt: skip
    refused = refusal_from(values, row["xmin"]) if row["status"] == "success" else "No tail has an exponent."
    row |= {"accepted": not refused, "reason": refused}
    if mp_fit:
        row |= weightwatcher.bulk(values, N, M)
    if randomize:
        generator = torch.Generator().manual_seed(seed)
        others = [factor * weightwatcher.squared_singular_values(_shuffled(part, generator))[0] for part in stack]
        row |= weightwatcher.shuffled(values, np.sort(np.concatenate(others)), N, M)
    if detX:
        row |= weightwatcher.unit_determinant(values, row["num_pl_spikes"])
    return row, values, ""


def _unfit(W: Tensor, kind: str) -> str:
    """Why a weight is no layer, "" where it is one."""
    if hasattr(W, "full_tensor"):
        raise TypeError("the model's parameters lie over several ranks; gather its state_dict on one, and pass that.")
    if W.device.type == "meta":
        raise ValueError("the model's weights are on the meta device, where they have no values; load them first.")
    if not W.is_floating_point():
        return f"its dtype is {str(W.dtype).removeprefix('torch.')}, not real floating point"
    if W.layout != torch.strided:
        return f"its layout is {str(W.layout).removeprefix('torch.')}, not dense"
    if not kind:
        return f"its {W.ndim} dimensions do not tell which of them are a matrix"
    return "the weights of a norm are no matrix" if kind == "norm" else "it is empty" * (W.numel() == 0)


def _shuffled(W: Tensor, generator: torch.Generator) -> Tensor:
    return W.flatten()[torch.randperm(W.numel(), generator=generator).to(W.device)].reshape(W.shape)


def _data_columns(matrix: str, spectrum: Spectrum | None) -> dict[str, Any]:
    """lambda_max, trace, effective rank and alpha of a block, each with its error; nan where the operator has no such block."""
    if spectrum is None:
        numbers = dict.fromkeys(("lambda_max", "trace", "effective_rank"), Estimate(nan, nan))
        tail = {"alpha": nan, "sigma": nan, "accepted": False, "reason": "The operator has no parameter of this name."}
        cost = {"products": 0, "method": ""}
    else:
        numbers = {"lambda_max": largest_of(spectrum), "trace": trace_of(spectrum)}
        numbers["effective_rank"] = effective_rank(spectrum)
        fit = power_law(spectrum)
        tail = {"alpha": fit.alpha, "sigma": fit.sigma, "accepted": fit.accepted, "reason": fit.reason}
        cost = {"products": spectrum.products, "method": spectrum.method}
    each = {f"{k}{end}": float(v) for k, e in numbers.items() for end, v in (("", e.value), ("_stderr", e.stderr))}
    return {f"data_{name}": value for name, value in ({"matrix": matrix} | each | tail | cost).items()}
