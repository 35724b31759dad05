"""The same rows as text for a terminal and as HTML for a page; every number with the digits that its error allows."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from . import Numbers, Row, conditions_of

MOST_ENTRIES = 50  # numbers listed on a page; result.json and the arrays hold all


def words(name: str, labels: Mapping[str, str]) -> str:
    """The name in words: from `labels`, else with its underscores as spaces."""
    return labels.get(name, name.replace("_", " "))


def with_error(value: float, error: float) -> str:
    """The value and its error, rounded to two significant digits of the error.

    >>> with_error(3.14159, 0.0123), with_error(351234.0, 1200.0), with_error(12.3456, 0.0)
    ('3.142 ± 0.012', '(3.512 ± 0.012)e5', '12.35')
    >>> with_error(0.5, float("nan")), with_error(float("nan"), 1.0)
    ('0.5000 ± ?', '–')
    """
    if not math.isfinite(value):
        return "–"
    power = math.floor(math.log10(abs(value))) if value else 0
    far = not -3 <= power < 5
    if far:
        value, error = value / 10.0**power, error / 10.0**power
    if not math.isfinite(error):
        text = f"{_significant(value)} ± ?"
    elif error <= 0 or (value and abs(error / value) < 1e-9):
        text = _significant(value)
        return f"{text}e{power}" if far else text
    else:
        digits = min(max(1 - math.floor(math.log10(error)), 0), 9)
        text = f"{value:.{digits}f} ± {error:.{digits}f}"
    return f"({text})e{power}" if far else text


def _significant(value: float, digits: int = 4) -> str:
    """A number of moderate size with `digits` significant digits and no exponent."""
    power = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(digits - 1 - power, 0)}f}"


def mean_and_error(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation across seeds; for a single number the number and its own standard error."""
    kept = [(v, e) for v, e in zip(values, errors, strict=True) if math.isfinite(v)]
    if not kept:
        return math.nan, math.nan
    if len(kept) == 1:
        return kept[0]
    return float(np.mean([v for v, _ in kept])), float(np.std([v for v, _ in kept], ddof=1))


def cells(row: Row, conditions: Sequence[str]) -> list[str]:
    """One text per condition, then d with its interval, then yes or no, as far as the row has them."""
    texts = [
        with_error(*mean_and_error(row.values[c], row.errors.get(c, (math.nan,) * len(row.values[c]))))
        if c in row.values
        else "–"
        for c in conditions
    ]
    if row.effect is not None:
        texts.append(d_text(row.effect))
        texts.append({True: "yes", False: "no", None: "–"}[row.separates])
    return texts


def d_text(effect: tuple[float, float, float]) -> str:
    """Cohen's d with its interval, as far as they are finite.

    >>> d_text((-3.25, -5.0, -1.5))
    '−3.2 [−5.0, −1.5]'
    """
    if not all(map(math.isfinite, effect)):
        return "–"
    return "{:.1f} [{:.1f}, {:.1f}]".format(*effect).replace("-", "−")


def header(rows: list[Row]) -> list[str]:
    """The column titles that fit the rows."""
    seeds = max((len(v) for row in rows for v in row.values.values()), default=1)
    conditions = conditions_of(rows)
    unit = f"mean ± sd of {seeds} seeds" if seeds > 1 else "± standard error; none: exact"
    names = [f"{conditions[0]} ({unit})", *conditions[1:]] if conditions else []
    return names + (["d [95 %]", "same sign"] if any(row.effect is not None for row in rows) else [])


def text_table(rows: list[Row], labels: Mapping[str, str]) -> str:
    """The rows as a plain table, one block per matrix, columns aligned, at most as wide as its numbers need."""
    if not rows:
        return ""
    titles, conditions = header(rows), conditions_of(rows)
    lines = [["", *titles]]
    for place, row in enumerate(rows):
        if place == 0 or row.matrix != rows[place - 1].matrix:
            lines.append([words(row.matrix, labels)])
        texts = cells(row, conditions)
        lines.append(["  " + words(row.metric, labels), *texts, *[""] * (len(titles) - len(texts))])
    widths = [max(len(line[i]) for line in lines if len(line) > 1) for i in range(len(titles) + 1)]
    return "\n".join(
        "  ".join(text.ljust(widths[0]) if i == 0 else text.rjust(widths[i]) for i, text in enumerate(line)).rstrip()
        for line in lines
    )


def entries(numbers: Numbers) -> list[dict[str, str]]:
    """One mapping of texts per number that is listed, at most `MOST_ENTRIES`: its name, value, error, and what else is said."""
    titles = {"stderr": "standard error", "lower": "at least", "upper": "at most"}
    rows = []
    for name, found in list(numbers.estimates().items())[:MOST_ENTRIES]:
        row = {"": name.replace("_", " "), "value": f"{found['value']:.6g}"}
        for key, given in found.items():
            if key == "converged":
                row[key] = "yes" if given else "no"
            elif key != "value":
                row[titles.get(key, key)] = str(given) if isinstance(given, int) else f"{given:.2g}"
        rows.append(row)
    return rows


def text_entries(numbers: Numbers) -> str:
    """`entries` as a plain table."""
    rows = entries(numbers)
    titles = list(dict.fromkeys(title for row in rows for title in row))
    lines = [titles, *([row.get(title, "") for title in titles] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def html_table(rows: list[Row], labels: Mapping[str, str], notes: Mapping[str, str]) -> str:
    """The rows as an HTML table, one body per matrix; `notes` explains a metric when the pointer rests on it."""
    if not rows:
        return ""
    titles, conditions = header(rows), conditions_of(rows)
    parts = ["<table><thead><tr><th></th>", *(f"<th>{html.escape(t)}</th>" for t in titles), "</tr></thead>"]
    for place, row in enumerate(rows):
        if place == 0 or row.matrix != rows[place - 1].matrix:
            name = html.escape(words(row.matrix, labels))
            parts.append(f'<tbody><tr class="matrix"><th colspan="{len(titles) + 1}">{name}</th></tr>')
        texts = cells(row, conditions)
        note = html.escape(notes.get(row.metric, ""), quote=True)
        name = html.escape(words(row.metric, labels))
        mark = ' class="apart"' if row.separates else ""
        body = "".join(f"<td>{html.escape(t)}</td>" for t in texts + [""] * (len(titles) - len(texts)))
        parts.append(f'<tr{mark}><th title="{note}">{name}</th>{body}</tr>')
        if place + 1 == len(rows) or rows[place + 1].matrix != row.matrix:
            parts.append("</tbody>")
    return "".join(parts) + "</table>"


def mapping_table(mapping: Mapping[str, object]) -> str:
    """A two-column HTML table of a nested mapping, its keys joined by dots."""
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in flatten(mapping).items()
    )
    return f'<table class="settings">{rows}</table>'


def flatten(mapping: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """A nested mapping as one level: {"a": {"b": 1}} is {"a.b": "1"}; empty mappings vanish."""
    flat: dict[str, str] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return flat
