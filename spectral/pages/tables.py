"""One table for a terminal, a page and a file; every number with the digits that its error allows."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from spectral.cards import in_columns, with_error

from . import Numbers, Row, conditions_of

MOST_ENTRIES = 50  # numbers listed on a page; result.json and the arrays hold all
NARROW = 46  # letters that a row of a table may have on a screen of 390 pixels
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four: of full width
# what `with_error` leaves out
EXACT = "without ±: exact, or sure to nine digits; ± ?: not known, of one random vector or one network."
REFUSED = "†"  # behind a number of which a fit was refused


@dataclass(frozen=True)
class Entry:
    """One row of a table: `cells` for its columns, `note` explains it, `strong` sets it apart; `links` are (text, address), shown
    one after the other in place of the last cell."""

    cells: tuple[str, ...]
    note: str = ""
    strong: bool = False
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows in groups under headings ("": none); the first `heads` columns name a row, the others are its numbers.

    `foot` is what a reader needs to know of the marks in it.
    """

    titles: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Entry, ...]], ...]
    heads: int = 1
    foot: str = ""
    layout: str = "cards"  # of a page: `cards` on a narrow screen, or `pairs words`, two columns without titles

    @property
    def narrow(self) -> bool:
        """Whether it fits a telephone as it is; others become cards there."""
        rows = [self.titles, *(entry.cells for _, entries in self.groups for entry in entries)]
        return sum(max(len(row[i]) for row in rows) + 2 for i in range(len(self.titles))) <= NARROW

    def text(self) -> str:
        """The table in columns, as wide as its texts need."""
        lines = [list(self.titles)]
        for heading, entries in self.groups:
            indent = "  " if heading else ""
            lines += [[indent + e.cells[0], *e.cells[1:]] for e in entries]
        texts = iter(in_columns(lines, self.heads))
        rows = [next(texts)]
        for heading, entries in self.groups:
            rows += [heading] if heading else []
            rows += islice(texts, len(entries))
        return "\n".join([*rows, self.foot] if self.foot else rows)


# Numbers -------------------------------------------------------------------------------------------------------------
def words(name: str, labels: Mapping[str, str]) -> str:
    """The name in words: from `labels`, else with its underscores as spaces."""
    return labels.get(name, name.replace("_", " "))


def seconds(value: float) -> str:
    """A duration as a person says it.

    >>> seconds(4.25), seconds(75), seconds(7300)
    ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def matrices(count: int) -> str:
    """So many matrices, in words."""
    return f"{count} matrices" if count > 1 else "1 matrix"


def opening(text: str) -> str:
    """The text as a sentence begins; symbols keep their case.

    >>> opening("energy in the top C"), opening("λmax")
    ('Energy in the top C', 'λmax')
    """
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def d_text(effect: tuple[float, float, float]) -> str:
    """Cohen's d with its interval, as far as they are finite.

    >>> d_text((-3.25, -5.0, -1.5))
    '−3.2 [−5.0, −1.5]'
    """
    if not all(map(math.isfinite, effect)):
        return "–"
    return "{:.1f} [{:.1f}, {:.1f}]".format(*effect).replace("-", "−")


def number(row: Row, condition: str) -> str:
    """Mean and error of a row under a condition; a mark and a count where a fit was refused."""
    values = row.values.get(condition)
    if values is None:
        return "–"
    refused, count = row.doubted(condition)
    text = with_error(*row.mean(condition))
    if refused and not any(map(math.isfinite, values)):
        text = "refused"
    return f"{text} {REFUSED}{f'{refused}/{count}' if count > 1 else ''}" if refused else text


# Tables --------------------------------------------------------------------------------------------------------------
def of_rows(rows: Sequence[Row], labels: Mapping[str, str]) -> Table:
    """A row for each metric under the name of its matrix: a column for each condition, then what is said of their difference."""
    conditions = conditions_of(rows)
    seeds = max((len(v) for row in rows for v in row.values.values()), default=1)
    compared = any(row.effect is not None for row in rows)
    groups: dict[str, list[Entry]] = {}
    for row in rows:
        texts = [words(row.metric, labels), *(number(row, name) for name in conditions)]
        if compared:
            texts += [d_text(row.effect) if row.effect else "–", apart(row)]
        note = labels.get(f"note:{row.metric}", "")
        strong = bool(row.separates) and not row.scale
        groups.setdefault(row.matrix, []).append(Entry(tuple(texts), note, strong))
    unit = f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else f"± one standard error; {EXACT}"
    if compared:
        unit += " d: Cohen's effect size, true minus random, with its 95 % interval. Separates: the same sign on every seed."
    if any(row.doubted()[0] for row in rows):
        unit += f" {REFUSED}: the fit was refused{' on so many of the seeds' * (seeds > 1)}, and gives no number."
    titles = ("", *(words(name, labels) for name in conditions), *(("d [95 %]", "separates") if compared else ()))
    return Table(titles, tuple((words(m, labels), tuple(entries)) for m, entries in groups.items()), foot=unit)


def apart(row: Row) -> str:
    """Whether true and random labels are told apart by a row: yes, no, or why it is no candidate."""
    if row.scale:
        return "scale"
    if row.doubted("true", "random")[0]:
        return "refused"
    return {True: "yes", False: "no", None: "–"}[row.separates]


def of_numbers(given: Numbers) -> Table:
    """A row for each number that makes no spectrum, at most `MOST_ENTRIES`: its value, error, and what else is said."""
    renamed = {"stderr": "standard error", "lower": "at least", "upper": "at most"}
    rows = []
    for name, estimate in list(given.estimates().items())[:MOST_ENTRIES]:
        row: dict[str, object] = {"": name.replace("_", " ")}
        for key, value in estimate.items():
            digits = ".6g" if key == "value" else ".2g"
            row[renamed.get(key, key)] = value if isinstance(value, int) else f"{value:{digits}}"
        rows.append(row)
    return of_mappings(rows)


def of_mappings(rows: Sequence[Mapping[str, object]], heads: int = 1) -> Table:
    """A row for each mapping, a column for each key that any of them has."""
    titles = tuple(dict.fromkeys(key for row in rows for key in row))
    entries = tuple(Entry(tuple(plain(row.get(title)) for title in titles)) for row in rows)
    return Table(titles, (("", entries),), heads)


def of_settings(mapping: Mapping[str, object]) -> Table:
    """A nested mapping in two columns, its keys joined by dots."""
    known = {name: value for name, value in leaves(mapping).items() if not isinstance(value, Mapping)}
    texts = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in known.items()}
    entries = tuple(Entry(pair) for pair in texts.items())
    return Table(("setting", "value"), (("", entries),), layout="pairs words")


def plain(value: object) -> str:
    """A value of a mapping as a person reads it.

    >>> plain(True), plain(0.12345), plain(None), plain([64, 64])
    ('yes', '0.123', '', '[64, 64]')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)


def leaves(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level.

    >>> leaves({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        inner = isinstance(value, Mapping) and value
        flat |= leaves(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


# Files for spreadsheets ----------------------------------------------------------------------------------------------
def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """The rows as CSV whose cells are data; None and nan are empty cells.

    A program that opens a table takes a cell that begins with =, +, - or @ for a formula, and a formula can call programs. Text
    that begins so gets an apostrophe in front; numbers stay numbers.

    >>> print(csv_text([["a", "=1+1", -1.5, "-2e3", None, "- or @"]]), end="")
    a,'=1+1,-1.5,-2e3,,'- or @
    """
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([[_harmless(value) for value in row] for row in rows])
    return buffer.getvalue()


def parquet(rows: Iterable[Sequence[Any]]) -> bytes | None:
    """The rows as a Parquet file, the first of them the names of the columns; None where pyarrow is not installed.

    A column is of truth values, of numbers, or of texts, whichever holds all its cells; None and nan are null.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return None
    names, *rest = rows
    columns = [_column(values) for values in zip(*rest, strict=True)] or [[] for _ in names]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], names=list(map(str, names))), file)
    return file.getvalue()


def _column(values: Sequence[Any]) -> list[Any]:
    """The cells in one type."""
    cells = [None if value is None or value != value else value for value in values]
    types = {type(cell) for cell in cells if cell is not None}
    if len(types) <= 1:
        return cells
    kind = float if types == {int, float} else str
    return [None if cell is None else kind(cell) for cell in cells]


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
    number = NUMBER.fullmatch(value)
    return value if number or not value.lstrip(" ").startswith(FORMULA) else "'" + value
