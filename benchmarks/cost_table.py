"""Markdown tables of `product_cost.py`'s records: `python benchmarks/product_cost.py --table FILE` prints them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models import MATRICES

COLUMNS = 8  # of a block
WRONG = {"float32": 1e-4, "bfloat16": 0.1}  # relative mismatch beyond rounding
Record = dict[str, Any]


def grid(records: list[Record], cell: Callable[[Record], str]) -> list[str]:
    """Markdown: a row for each package and variant, a column for each matrix and width."""
    matrices = [matrix for matrix in MATRICES if any(r["matrix"] == matrix for r in records)]
    keys = [(matrix, width) for matrix in matrices for width in (1, COLUMNS)]
    found = {(r["row"], r["matrix"], r["columns"]): cell(r) for r in records}
    heads = [m if width == 1 else f"{m}, column of {width}" for m, width in keys]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(keys)]
    for row in dict.fromkeys(r["row"] for r in records):
        lines.append(f"| {row} | " + " | ".join(found.get((row, *key), "–") for key in keys) + " |")
    return lines


def spread(q: dict[str, float]) -> str:
    return f"{q['median']:.2f} ({q['low']:.2f}–{q['high']:.2f})"


def time_cell(record: Record) -> str:
    if "failure" in record:
        return "fails"
    wrong = f" **wrong: {record['mismatch']:.0e}**" if not record["mismatch"] <= WRONG[record["dtype"]] else ""
    return spread(record["ratio"]) + ("†" if record["math_attention"] else "") + wrong


def memory_cell(record: Record) -> str:
    return f"{record['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in record else "fails"


def error_cell(record: Record) -> str:
    if "failure" in record:
        return "fails"
    return f"{record['error']:.0e} ({record['mismatch']:.0e})" + (
        f", set-up {record['setup']:.1f}" if record["columns"] == 1 else ""
    )


def notes(records: list[Record]) -> list[str]:
    """Engines taken, failures in the words of the package, the mark."""
    lines = []
    for row in dict.fromkeys(r["row"] for r in records):
        mine = [r for r in records if r["row"] == row and r["columns"] == 1]
        engines = [f"{r['matrix']} by {r['chosen']}" for r in mine if r.get("chosen") and r["replay"]]
        lines += [f"- {row}: {', '.join(engines)}."] * bool(engines)
        lines += [f"- {row}, {r['matrix']} fails: {r['failure']}" for r in mine if "failure" in r]
        lines += [f"- {row}, {r['matrix']}, memory fails: {r['peak_failure']}" for r in mine if "peak_failure" in r]
    if any(r.get("math_attention") for r in records):
        lines.append("- † fails with the default attention; this is under torch's math attention.")
    return lines


def table(stored: Record) -> str:
    """The Markdown of docs/performance.md from a stored run."""
    said = "Largest relative error against float64 (against plain torch in the same dtype), and set-up in gradients:"
    about = stored["environment"]
    lines = [", ".join(f"{key} {_words(value)}" for key, value in about.items()) + "."]
    for name, found in stored["models"].items():
        records = found["records"]
        seconds_each, low = found["gradient_seconds"]["median"], spread(found["gradient_bfloat16"])
        lines += ["", f"### {name}: {found['parameters'] / 1e6:.2f} million parameters", ""]
        lines.append(
            f"{found['about']}. One gradient takes {seconds_each * 1e3:.1f} ms in float32, {low} of that in bfloat16. "
            f"Others kept {found['others']:.2f} cores busy. Times, one gradient = 1:\n"
        )
        lines += grid(records, time_cell)
        if any("peak_bytes" in r for r in records):
            lines += ["", f"Peak memory in MiB (a gradient: {found['gradient_peak_bytes'] / 2**20:.0f}):", ""]
            lines += grid(records, memory_cell)
        lines += [
            "",
            said,
            "",
        ]
        lines += [*grid(records, error_cell), "", *notes(records)]
    return "\n".join(lines)


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_words, value))
    return f"{value:.2f}" if isinstance(value, float) else str(value)
