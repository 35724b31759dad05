"""What `spectral.layers` returns: rows with their errors, in words, as a picture and as a table."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy

from spectral.analysis import weightwatcher
from spectral.cards import COLOURS, GREY, HEIGHT, card, in_columns, svg, whiskers, with_error
from spectral.results import Array, Estimate, nan
from spectral.schema import FRACTION, number
from spectral.spectrum import Spectrum

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
        number(confidence, "confidence", "probability", FRACTION, 0.95)
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
        for kept, face, label in ((judged, COLOURS[0], column), (~judged, "none", f"{column}, no power law")):
            if kept.any():
                reach = whiskers(x, np.where(np.isfinite(error), error, 0.0))[:, kept]
                look = {"fmt": "o", "color": COLOURS[0], "mfc": face, "ms": 5, "capsize": 2, "lw": 1}
                ax.errorbar(x[kept], y[kept], xerr=reach, label=label, **look)
        for line in LINES.get(column, ()):
            ax.axvline(line, color=GREY, lw=0.8, ls="--")
        if len(y) <= NAMED:
            names = [name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}" for name in self["longname"]]
            ax.set_yticks(y, names, fontsize=8, parse_math=False)
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
        text = in_columns([list(lines[0]), *(list(line.values()) for line in lines)], len(lines[0])) if lines else []
        return "\n".join([*text, *self.notes()]) or self.sentence()

    def _repr_html_(self) -> str:
        lines = self.shown()
        titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in (lines[0] if lines else ()))
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line.values()) for line in lines]
        body = "".join(f"<tr>{line}</tr>" for line in cells)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes())
        table = f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>" if lines else ""
        return card(self.sentence(), [], self._picture()) + table + notes

    def _picture(self) -> str:
        """The exponents over the layers as `plot` draws them, "" where there are none."""
        if not self.rows or not np.isfinite(self["alpha"].astype(np.float64)).any():
            return ""
        height = 60 + 14 * len(self) if len(self) <= NAMED else HEIGHT
        alt = "alpha of each layer with one standard error, hollow where the tail is no power law"
        return svg(lambda ax: self.plot("alpha", ax), alt, height)


def _exponent(row: dict[str, Any], prefix: str) -> str:
    alpha = row[f"{prefix}alpha"]
    if not np.isfinite(alpha):
        return "none"
    text = with_error(alpha, row[f"{prefix}sigma"])
    return text if row[f"{prefix}accepted"] else f"({text})"
