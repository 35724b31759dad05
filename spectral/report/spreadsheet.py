"""Tables for spreadsheets: CSV whose cells are data, whatever they hold.

A program that opens a table takes a cell that begins with =, +, - or @ for a formula, and a formula can call programs. Text that
begins so gets an apostrophe in front; numbers stay numbers.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four: of full width


def text(rows: Iterable[Sequence[Any]]) -> str:
    """The rows as CSV; None and nan are empty cells.

    >>> print(text([["a", "=1+1", -1.5, "-2e3", None, "- or @"]]), end="")
    a,'=1+1,-1.5,-2e3,,'- or @
    """
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([[_cell(value) for value in row] for row in rows])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
    harmless = not value.lstrip(" ").startswith(FORMULA) or NUMBER.fullmatch(value)
    return value if harmless else "'" + value
