"""`layers`: one row a layer, its weight's spectrum as WeightWatcher tells it beside the spectrum of what the data make of it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from spectral.analysis import weightwatcher
from spectral.analysis.power_law import power_law, refusal_from
from spectral.analysis.summary import effective_rank, largest_of, trace_of
from spectral.cards import COLOURS, GREY, Mark, card, chart, with_error
from spectral.estimators import esd
from spectral.estimators.budget import progress_bar
from spectral.networks.blocks import blocks
from spectral.networks.curvature import EmpiricalFisher, Fisher, GaussNewton, Hessian
from spectral.networks.jacobian import Jacobian
from spectral.networks.weights import BY_DIMENSIONS, Layer, layers_of, matrices
from spectral.operators.operator import Gram, Operator
from spectral.results import Array, Estimate, nan
from spectral.spectrum import Spectrum
from spectral.version import __version__

CURVATURES = {"gauss_newton": GaussNewton, "hessian": Hessian, "fisher": Fisher, "empirical_fisher": EmpiricalFisher}
OPERATORS = ("jacobian", *CURVATURES)
ERROR_OF = {"alpha": "sigma", "data_alpha": "data_sigma"}  # other columns have theirs under their own name with _stderr
VERDICT_OF = {"alpha": "accepted", "data_alpha": "data_accepted"}
LINES = {"alpha": (weightwatcher.OVER_TRAINED, weightwatcher.UNDER_TRAINED)}  # what WeightWatcher warns beyond
NAMED = 40  # layers whose names fit beside a picture
LETTERS = 36  # of a name there


@dataclass(frozen=True, eq=False)
class LayerTable:
    """One row a layer, by columns that docs/layers.md defines one by one.

    `table["alpha"]` is a column, `len(table)` the number of rows, and `for row in table` gives each as a dict.

    Attributes
    ----------
    rows : tuple of dict
        {column: value}; nan where a layer has no value.
    skipped : dict
        {name: why it is no row}.
    eigenvalues : dict
        {longname: squared singular values of the layer's weight, ascending}.
    spectra : dict
        {longname: Spectrum of the layer's block of the matrix of the data}; empty without data.
    meta : dict
        What was asked for, the version, and what the operator was.

    Examples
    --------
    >>> table = spectral.layers(torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.Linear(16, 4)))
    >>> len(table), table["alpha"].shape, table.skipped
    (1, (1,), {'1': 'it has 4 eigenvalues, fewer than min_evals=8'})
    """

    rows: tuple[dict[str, Any], ...]
    skipped: dict[str, str]
    eigenvalues: dict[str, Array] = field(default_factory=dict, repr=False)
    spectra: dict[str, Spectrum] = field(default_factory=dict, repr=False)
    meta: dict[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, column: str) -> np.ndarray:
        if column not in self.columns:
            raise KeyError(f"there is no column {column!r}; the columns are {', '.join(self.columns) or 'none'}.")
        return np.array([row[column] for row in self.rows])

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(self.rows[0]) if self.rows else ()

    def error(self, column: str) -> Array:
        """One standard error of each entry of a column, nan where none is known.

        Parameters
        ----------
        column : str
            Of numbers.

        Returns
        -------
        numpy.ndarray
            (rows,).

        Examples
        --------
        >>> spectral.layers(torch.nn.Linear(32, 16)).error("alpha").shape
        (1,)
        """
        name = ERROR_OF.get(column, f"{column}_stderr")
        return self[name].astype(np.float64) if name in self.columns else np.full(len(self), nan)

    def summary(self) -> dict[str, float]:
        """WeightWatcher's summary: means over the rows of the columns that it averages, entries that are nan left out.

        Returns
        -------
        dict
            log_norm, alpha, alpha_weighted, log_alpha_norm, log_spectral_norm, stable_rank, and mp_softrank with
            mp_fit=True.

        Examples
        --------
        >>> round(spectral.layers({"a.weight": torch.eye(8)}).summary()["log_norm"], 3)  # log10 8
        0.903
        """
        columns = {name: self[name].astype(np.float64) for name in weightwatcher.SUMMARY if name in self.columns}
        return {name: float(np.mean(x[np.isfinite(x)])) if np.isfinite(x).any() else nan for name, x in columns.items()}

    def correlation(self, x: str = "alpha", y: str = "data_alpha", *, confidence: float = 0.95) -> Estimate:
        """Spearman's rank correlation of two columns over the layers that have both.

        Parameters
        ----------
        x, y : str
            Columns of numbers. Refused exponents count as they are; leave them out by their verdicts where they must not.
        confidence : float
            Of the interval.

        Returns
        -------
        Estimate
            The interval is [lower, upper], by Fisher's z with the variance (1 + rho²/2)/(n − 3), and not certified; stderr
            is (1 − rho²) times the deviation of z. nan with fewer than four layers, or where a column is constant.

        Raises
        ------
        ValueError
            Unless 0 < confidence < 1.

        References
        ----------
        Bonett and Wright (2000), Sample size requirements for estimating Pearson, Kendall and Spearman correlations.

        Examples
        --------
        >>> table = LayerTable(tuple({"a": i, "b": i**3} for i in range(9)), {})
        >>> float(table.correlation("a", "b"))
        1.0
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence={confidence!r} must lie between 0 and 1.")
        pairs = np.array([self[x], self[y]], dtype=np.float64)
        pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
        n = pairs.shape[1]
        if n < 4 or not (np.ptp(pairs, axis=1) > 0).all():
            return Estimate(nan, nan)
        a, b = (ranks - ranks.mean() for ranks in scipy.stats.rankdata(pairs, axis=1))
        rho = float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))
        spread = float(np.sqrt((1 + rho**2 / 2) / (n - 3)))
        if abs(rho) > 1 - 1e-12:
            return Estimate(round(rho), 0.0, float(round(rho)), float(round(rho)))
        ends = np.tanh(np.arctanh(rho) + np.array([-1, 1]) * spread * scipy.special.ndtri((1 + confidence) / 2))
        return Estimate(rho, (1 - rho**2) * spread, float(ends[0]), float(ends[1]))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Every column as an array.

        Returns
        -------
        dict of str to numpy.ndarray
            (rows,) each.

        Examples
        --------
        >>> spectral.layers(torch.nn.Linear(32, 16)).to_arrays()["M"]
        array([16])
        """
        return {name: self[name] for name in self.columns}

    def estimates(self) -> dict[str, Estimate]:
        """The numbers that have an error: exponents, and what the data tell.

        Returns
        -------
        dict of str to Estimate
            "longname.column".

        Examples
        --------
        >>> list(spectral.layers({"a.weight": torch.rand(9, 9)}).estimates())
        ['a.alpha']
        """
        with_errors = [c for c in self.columns if ERROR_OF.get(c, f"{c}_stderr") in self.columns]
        errors = {column: self.error(column) for column in with_errors}
        return {
            f"{row['longname']}.{column}": Estimate(float(row[column]), float(errors[column][i]))
            for i, row in enumerate(self.rows)
            for column in with_errors
        }

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame, as WeightWatcher's `details` is one.

        Returns
        -------
        pandas.DataFrame
            A row a layer.

        Raises
        ------
        ImportError
            Where pandas is not installed.

        Examples
        --------
        >>> spectral.layers(torch.nn.Linear(32, 16)).to_pandas().loc[0, "layer_type"]  # doctest: +SKIP
        'dense'
        """
        try:
            import pandas
        except ImportError as problem:
            raise ImportError("to_pandas() needs pandas: pip install pandas, or use to_arrays() or rows.") from problem
        return pandas.DataFrame(list(self.rows), columns=list(self.columns))

    def plot(self, column: str = "alpha", ax: Any = None) -> Any:
        """One column, the layers one below the other, with one standard error where it has one; refused exponents are hollow.

        Parameters
        ----------
        column : str
            Of numbers.
        ax : matplotlib.axes.Axes, optional
            By default of a figure of its own.

        Returns
        -------
        matplotlib.axes.Axes
            With a line at 2 and 6 for alpha, beyond which WeightWatcher warns.

        Examples
        --------
        >>> spectral.layers(torch.nn.Linear(32, 16)).plot().get_xlabel()
        'alpha'
        """
        import matplotlib.pyplot as plt

        x, error = self[column].astype(np.float64), self.error(column)
        y = np.arange(len(x))
        judged = self[VERDICT_OF[column]].astype(bool) if VERDICT_OF.get(column) in self.columns else y >= 0
        if ax is None:
            ax = plt.subplots(figsize=(5.2, 1.1 + 0.22 * min(max(len(x), 4), NAMED)), layout="constrained")[1]
        for kept, face, label in ((judged, COLOURS[0], column), (~judged, "white", f"{column}, no power law")):
            if kept.any():
                bars = np.where(np.isfinite(error[kept]), error[kept], 0.0)
                look = {"fmt": "o", "color": COLOURS[0], "mfc": face, "ms": 5, "capsize": 2, "lw": 1}
                ax.errorbar(x[kept], y[kept], xerr=bars, label=label, **look)
        for line in LINES.get(column, ()):
            ax.axvline(line, color=GREY, lw=0.8, ls="--")
        if len(y) <= NAMED:
            names = list(self["longname"])
            ax.set_yticks(
                y, [name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}" for name in names], fontsize=8
            )
        else:
            ax.set_ylabel("layer, in the model's order")
        ax.set_ylim(len(y) - 0.5, -0.5)
        ax.set_xlabel(column)
        if column in VERDICT_OF:
            ax.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
        return ax

    def sentence(self) -> str:
        """What the table says, first.

        Returns
        -------
        str
            How many weights have a power-law tail, and with data which layer's block has the largest trace.

        Examples
        --------
        >>> spectral.layers(torch.nn.Linear(32, 16)).sentence()
        'Of 1 layer none has a weight with a power-law tail: no exponent here should be read.'
        """
        if not self.rows:
            return f"No layer has a spectrum: {len(self.skipped)} skipped."
        found = [row for row in self.rows if row["accepted"]]
        of = f"Of {len(self)} layers" if len(self) > 1 else "Of 1 layer"
        if not found:
            said = f"{of} none has a weight with a power-law tail: no exponent here should be read"
        elif len(found) == 1:
            said = (
                f"{of} one has a weight with a power-law tail ({found[0]['longname']}, alpha {_exponent(found[0], '')})"
            )
        else:
            low, *_, high = sorted(found, key=lambda row: float(row["alpha"]))
            said = f"{of} {len(found)} have weights with a power-law tail, "
            said += f"alpha from {_exponent(low, '')} to {_exponent(high, '')}"
        if "data_trace" in self.columns and np.nansum(self["data_trace"]) > 0:
            at = int(np.nanargmax(self["data_trace"]))
            share = self["data_trace"][at] / np.nansum(self["data_trace"])
            most = f"layer {self.rows[at]['longname']}, {100 * share:.0f} %"
            said += f"; the data's trace is largest in {most} of that of all blocks"
        return f"{said}."

    def shown(self) -> list[dict[str, str]]:
        """What a person is shown of each row: the numbers that matter most, with their errors.

        Returns
        -------
        list of dict
            {heading: text}; an exponent in brackets is of a tail that is no power law.

        Examples
        --------
        >>> spectral.layers(torch.nn.Linear(32, 16)).shown()[0]["N x M"]
        '32 x 16'
        """
        lines = []
        for row in self.rows:
            times = f"{row['rf']} · " if row["rf"] > 1 else ""
            line = {"layer": row["longname"], "kind": row["layer_type"], "N x M": f"{times}{row['N']} x {row['M']}"}
            line |= {"alpha": _exponent(row, ""), "lambda_max": f"{row['lambda_max']:.4g}"}
            line["stable rank"] = f"{row['stable_rank']:.4g}"
            if "data_trace" in self.columns:
                for c in ("trace", "effective_rank"):
                    line[f"data {c.replace('_', ' ')}"] = with_error(row[f"data_{c}"], row[f"data_{c}_stderr"])
                line["data alpha"] = _exponent(row, "data_")
            lines.append(line)
        return lines

    def notes(self) -> list[str]:
        """What the rows cannot say: what brackets mean, what the data columns are of, and what is skipped.

        Returns
        -------
        list of str
            Sentences.

        Examples
        --------
        >>> spectral.layers({"a.weight": torch.eye(3), "b.weight": torch.rand(9, 9)}).notes()[-1]
        '1 skipped: a (it has 3 eigenvalues, fewer than min_evals=8).'
        """
        notes = []
        if any(not row["accepted"] or not row.get("data_accepted", True) for row in self.rows):
            notes.append("An alpha in brackets is of a tail that is no power law; the column reason says why.")
        if "data_matrix" in self.columns:
            notes.append(f"data: {self.rows[0]['data_matrix']}, {self.meta['data']}.")
        if self.skipped:
            each = [f"{name} ({reason})" for name, reason in list(self.skipped.items())[:3]]
            more = f", and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
            notes.append(f"{len(self.skipped)} skipped: {', '.join(each)}{more}.")
        return notes

    def __str__(self) -> str:
        lines = self.shown()
        cells = [list(lines[0]) if lines else [], *(list(line.values()) for line in lines)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        return "\n".join([*text[: len(lines) + 1 if lines else 0], *self.notes()])

    def _repr_html_(self) -> str:
        lines = self.shown()
        titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in (lines[0] if lines else ()))
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line.values()) for line in lines]
        body = "".join(f"<tr>{line}</tr>" for line in cells)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes())
        table = f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>" if lines else ""
        return card(self.sentence(), [], self._picture()) + table + notes

    def _picture(self) -> str:
        """The exponents over the layers, hollow where they were refused, "" where there are none."""
        marks = []
        for hollow in (False, True):
            kept = [(i, row) for i, row in enumerate(self.rows, 1) if bool(row["accepted"]) is not hollow]
            kept = [(i, row) for i, row in kept if np.isfinite(row["alpha"])]
            if kept:
                x = np.array([float(i) for i, _ in kept])
                y, error = np.array([(row["alpha"], row["sigma"]) for _, row in kept], dtype=np.float64).T
                marks.append(Mark(x, y, y - error, y + error, dots=True, hollow=hollow))
        alt = "alpha of each layer with one standard error, hollow where the tail is no power law"
        return chart(marks, "layer", "alpha", alt) if marks else ""


def _exponent(row: dict[str, Any], prefix: str) -> str:
    alpha = row[f"{prefix}alpha"]
    if not np.isfinite(alpha):
        return "none"
    text = with_error(alpha, row[f"{prefix}sigma"])
    return text if row[f"{prefix}accepted"] else f"({text})"


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
    for name, given in (("min_evals", min_evals), ("max_evals", max_evals)):
        if isinstance(given, bool) or not (isinstance(given, int) or (given is None and name == "max_evals")):
            raise ValueError(f"{name}={given!r} must be an integer; use 1 or more, or max_evals=None for no limit.")
    if isinstance(params, str):
        raise ValueError(f"params={params!r} must be a list of globs; use [{params!r}].")
    most = np.inf if max_evals is None else max_evals
    found, A = _chosen(layers_of(model), params), _operator(model, data, loss, operator)
    parts = blocks(A) if A is not None else {}
    matrix = "J^T J" if isinstance(A, Gram) else type(A).__name__
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
                block = parts.get(layer.parameter)
                if block is not None:
                    spectra[layer.longname] = esd(
                        block, probes=probes, steps=steps, budget=budget, seed=seed, progress=False
                    )
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
        numbers = {
            "lambda_max": largest_of(spectrum),
            "trace": trace_of(spectrum),
            "effective_rank": effective_rank(spectrum),
        }
        fit = power_law(spectrum)
        tail = {"alpha": fit.alpha, "sigma": fit.sigma, "accepted": fit.accepted, "reason": fit.reason}
        cost = {"products": spectrum.products, "method": spectrum.method}
    each = {f"{k}{end}": float(v) for k, e in numbers.items() for end, v in (("", e.value), ("_stderr", e.stderr))}
    return {f"data_{name}": value for name, value in ({"matrix": matrix} | each | tail | cost).items()}
