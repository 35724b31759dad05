"""Do published numbers come out? One row for each result, with the number expected, ours, its error, a tolerance: green or red.

    make papers                                                          # all rows, into benchmarks/results, about 5 minutes
    python benchmarks/papers.py --only bbp karakida --json papers.json   # some rows
    python benchmarks/papers.py --show papers.json --table docs/papers.md --html papers.html     # a stored run as a table

`published/expected.json` holds what is expected, with its source; whoever has another result adds it there, and a function of the
same name to `published/`. A number is

- "=": green if |ours − expected| ≤ finite_size + 3 error, `expected` a number, or an interval [low, high];
- ">" or "<": green if ours is beyond `expected` by more than 2 error.

`error` is one standard error, over seeds or as the method states it; `finite_size` what the sizes of the row may change, by the
argument in `why`, which was written down before the row was run. An error above `error_at_most` is red whatever the value is:
the row was too noisy to tell. Red rows stay, with a `reading`. The exit status is 1 if a row is red.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

Record = dict[str, Any]
EXPECTED = Path(__file__).parent / "published" / "expected.json"
SIGMAS, BEYOND = 3.0, 2.0  # of 80 numbers within three errors chance makes .2 red
NEEDED = {"quantity", "expected"}  # of a number; of a row: paper, source, claim, matrix, estimator, seeds


def expectations(path: Path = EXPECTED) -> dict[str, Record]:
    """{row: what is expected}, held to the format."""
    rows = json.loads(path.read_text())["rows"]
    for row in rows:
        lacks = {"name", "paper", "source", "claim", "matrix", "estimator", "seeds", "numbers"} - row.keys()
        if lacks:
            raise ValueError(f"row {row.get('name', '?')!r} of {path} lacks {', '.join(sorted(lacks))}.")
        for number in row["numbers"]:
            if not number.keys() >= NEEDED or number.get("relation", "=") not in ("=", ">", "<"):
                raise ValueError(
                    f"row {row['name']!r}: a number needs quantity, expected and a relation =, > or <, not {number}."
                )
            if number.get("finite_size", 0) and not number.get("why"):
                raise ValueError(f"row {row['name']!r}, {number['quantity']!r}: finite_size without a why.")
    return {row["name"]: row for row in rows}


def tolerance(number: Record, error: float) -> float:
    """How far ours may be from what is expected; of an order, how far beyond it must be."""
    if number.get("relation", "=") != "=":
        return BEYOND * error
    return float(number.get("finite_size", 0.0)) + SIGMAS * error


def green(number: Record, value: float, error: float) -> bool:
    """The verdict on one number."""
    if not (math.isfinite(value) and math.isfinite(error)) or error > number.get("error_at_most", math.inf):
        return False
    relation, slack = number.get("relation", "="), tolerance(number, error)
    if relation == ">":
        return value - slack > number["expected"]
    if relation == "<":
        return value + slack < number["expected"]
    expected = number["expected"]
    low, high = expected if isinstance(expected, list) else (expected, expected)
    return low - slack <= value <= high + slack


def judged(expected: Record, measured: Record) -> list[Record]:
    """Each number of a row with what was measured; a quantity that only one of both has is an error of the row."""
    names = [number["quantity"] for number in expected["numbers"]]
    if set(names) != set(measured):
        raise ValueError(
            f"{expected['name']}: expected.json and the function disagree on {sorted(set(names) ^ set(measured))}."
        )
    numbers = []
    for number in expected["numbers"]:
        value, error, note = measured[number["quantity"]]
        verdict = "green" if green(number, value, error) else "red"
        ours = {"ours": value, "error": error, "tolerance": tolerance(number, error), "verdict": verdict}
        numbers.append({**number, **ours, **({"note": note} if note else {})})
    return numbers


def run(expected: Record) -> Record:
    """One row, measured and judged; what fails is red and says why."""
    import torch
    from published import ROWS

    torch.set_num_threads(1)
    began, cpu = time.perf_counter(), time.process_time()
    try:
        numbers, failure = judged(expected, ROWS[expected["name"]]()), {}
    except (ArithmeticError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        numbers, failure = expected["numbers"], {"failure": f"{type(error).__name__}: {error}"}
    verdict = "green" if not failure and all(n["verdict"] == "green" for n in numbers) else "red"
    cost = {"seconds": round(time.perf_counter() - began, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
    return {**expected, "numbers": numbers, **failure, **cost, "verdict": verdict}


# Tables --------------------------------------------------------------------------------------------------------------
def shown(value: Any, digits: int = 4) -> str:
    """A number as it stands in a table."""
    if isinstance(value, list):
        return " to ".join(shown(v) for v in value)
    return f"{value:.{digits}g}"


def cells(row: Record, number: Record) -> list[str]:
    """One line of the table: quantity, expected, ours, tolerance, verdict."""
    relation = {"=": "", ">": "> ", "<": "< "}[number.get("relation", "=")]
    if "ours" not in number:
        return [number["quantity"], relation + shown(number["expected"]), row.get("failure", ""), "", "red"]
    error = f" ± {shown(number['error'], 2)}" if number["error"] else ""
    return [
        number["quantity"], relation + shown(number["expected"]), shown(number["ours"]) + error,
        shown(number["tolerance"], 2), number["verdict"],
    ]  # fmt: skip


def said(row: Record) -> str:
    """What a row is, in a paragraph."""
    text = f"{row['claim']} {row['paper']}, {row['source']}. Matrix: {row['matrix']}. By {row['estimator']}; {row['seeds']}"
    return text + (f"; {row['cpu_seconds']:.0f} s." if "cpu_seconds" in row else ".")


def markdown(stored: Record) -> str:
    """A heading, a paragraph and a table for each row, arguments for tolerances below it."""
    text = [summary(stored), ""]
    for row in stored["rows"]:
        text += [f"### {row['name']}: {row['verdict']}", "", said(row), ""]
        text += ["| quantity | expected | ours | may differ by | |", "|---|---|---|---|---|"]
        text += ["| " + " | ".join(cells(row, number)) + " |" for number in row["numbers"]]
        whys = dict.fromkeys(number["why"] for number in row["numbers"] if number.get("why"))
        text += ["", *(f"- {why}" for why in whys)] if whys else []
        text += ["", f"**Reading.** {row['reading']}"] if row.get("reading") else []
        text.append("")
    return "\n".join(text)


def page(stored: Record) -> str:
    """The same as one HTML file."""
    parts = [
        "<!doctype html><meta charset=utf-8><title>Published numbers</title><style>body{font:1rem/1.5 system-ui;max-width:60rem;"
        "margin:2rem auto;padding:0 1rem;color-scheme:light dark}td,th{padding:.2rem .8rem;text-align:left}"
        ".green{color:#0a7d4f}.red{color:#c43b1d;font-weight:bold}</style>",
        f"<h1>Published numbers</h1><p>{html.escape(summary(stored))}</p>",
    ]
    for row in stored["rows"]:
        parts.append(f"<h2>{html.escape(row['name'])}: <span class={row['verdict']}>{row['verdict']}</span></h2>")
        parts.append(f"<p>{html.escape(said(row))}</p><table><tr><th>quantity<th>expected<th>ours<th>may differ by<th>")
        for number in row["numbers"]:
            *texts, verdict = map(html.escape, cells(row, number))
            parts.append("<tr>" + "".join(f"<td>{t}" for t in texts) + f"<td class={verdict}>{verdict}")
        parts.append("</table>")
        if row.get("reading"):
            parts.append(f"<p><b>Reading.</b> {html.escape(row['reading'])}</p>")
    return "\n".join(parts)


def summary(stored: Record) -> str:
    """One sentence."""
    rows, numbers = stored["rows"], [n for row in stored["rows"] for n in row["numbers"]]
    red = [row["name"] for row in rows if row["verdict"] == "red"]
    held, about = sum(n.get("verdict") == "green" for n in numbers), stored["environment"]
    return (
        f"{len(rows) - len(red)} of {len(rows)} rows are green, {held} of {len(numbers)} numbers"
        f"{'; red: ' + ', '.join(red) if red else ''}. {stored['seconds']:.0f} s with {stored['workers']} processes, "
        f"{sum(row['cpu_seconds'] for row in rows):.0f} s of one core; commit {about.get('commit', 'unknown')}, "
        f"torch {about['torch']}."
    )


MARKS = ("<!-- papers: printed by benchmarks/papers.py, not edited -->", "<!-- end of papers -->")


def into(path: Path, table: str) -> None:
    """Write the table between the marks of a page, or as the whole file where there is none."""
    old = path.read_text() if path.exists() else ""
    if all(mark in old for mark in MARKS):
        head, rest = old.split(MARKS[0])
        table = f"{head}{MARKS[0]}\n{table}{MARKS[1]}{rest.split(MARKS[1])[1]}"
    path.write_text(table)


# The command ---------------------------------------------------------------------------------------------------------
def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows to run; all by default")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write rows, verdicts and the environment here")
    parser.add_argument("--show", metavar="FILE", type=Path, help="judge a stored run by today's expected.json")
    parser.add_argument(
        "--table",
        metavar="FILE",
        type=Path,
        help="write the table as Markdown, between a page's marks",
    )
    parser.add_argument(
        "--update", action="store_true", help="with --only: put these rows into the run that --json names"
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the table as a page")
    options = parser.parse_args()
    unknown = sorted(set(options.only or []) - set(expectations()))
    if unknown or options.workers < 1:
        parser.error(f"{', '.join(unknown)} is no row; --list names them." if unknown else "use 1 process or more.")
    if options.update and not (options.json and options.json.exists()):
        parser.error("--update needs a --json FILE that is there.")
    return options


def measured(rows: list[Record], workers: int) -> Record:
    """All rows, printed as they come."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in the processes
    from machine import environment

    began, stored = time.perf_counter(), {"environment": environment([]), "workers": workers, "rows": []}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(run, rows):
            stored["rows"].append({**row, "commit": stored["environment"].get("commit", "unknown")})
            print(f"{row['verdict']:6} {row['name']:26} {row['cpu_seconds']:6.1f} s  {row['paper']}", flush=True)
            for number in row["numbers"]:
                quantity, expected, ours, slack, verdict = cells(row, number)
                print(f"       {verdict:6} {quantity:62} {ours:>22}   expected {expected} (± {slack})", flush=True)
    return {**stored, "seconds": round(time.perf_counter() - began, 1)}


def rejudged(stored: Record) -> Record:
    """A stored run, held to what is expected today."""
    expected, rows = expectations(), []
    for row in stored["rows"]:
        now = {**row, **expected[row["name"]]}
        if "failure" not in row:
            now["numbers"] = judged(
                expected[row["name"]],
                {n["quantity"]: (n["ours"], n["error"], n.get("note", "")) for n in row["numbers"]},
            )
            now["verdict"] = "green" if all(n["verdict"] == "green" for n in now["numbers"]) else "red"
        rows.append(now)
    return {**stored, "rows": rows}


def updated(old: Record, new: Record) -> Record:
    """A stored run in which the rows of a later one stand in for its own."""
    later = {row["name"]: row for row in new["rows"]}
    rows = [later.pop(row["name"], row) for row in old["rows"]] + list(later.values())
    return {**old, "rows": rows, "seconds": round(sum(row["seconds"] for row in rows) / old["workers"], 1)}


def main() -> int:
    options = arguments()
    rows = [row for name, row in expectations().items() if not options.only or name in options.only]
    if options.list:
        print("\n".join(f"{row['name']:26} {row['claim']}" for row in rows))
        return 0
    stored = (
        rejudged(json.loads(options.show.read_text()))
        if options.show
        else measured(rows, min(options.workers, len(rows)))
    )
    if options.update:
        stored = updated(json.loads(options.json.read_text()), stored)
    print(summary(stored))
    for path, text in ((options.json, lambda: json.dumps(stored, indent=1)), (options.html, lambda: page(stored))):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text() + "\n")
    if options.table:
        into(options.table, markdown(stored))
    return int(any(row["verdict"] == "red" for row in stored["rows"]))


if __name__ == "__main__":
    sys.exit(main())
