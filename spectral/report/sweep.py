"""`spectral-report DIR...`: the runs of a sweep as one table (CSV) and one page.

A run is a folder with a result.json; folders are searched to any depth. Written into `--output` (the first DIR): sweep.csv,
one row for each matrix of each run with the settings that differ between the runs, and sweep.html.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spectral
from spectral.checkpoint import atomic_write
from spectral.spectrum import Spectrum

from . import Curve, Report, Row, page
from .compose import labels_for
from .tables import flatten, text_table

IGNORED = ("output.", "choices.")  # settings that say nothing about the numbers
MOST_CURVES = 12  # runs in one picture; more are unreadable
SHOWN = ("effective_rank", "top_c_energy", "information_dimension", "stable_rank", "trace", "lambda_max", "alpha")


@dataclass(frozen=True)
class Run:
    """A folder, its result.json, and its settings as one level of texts."""

    folder: Path
    result: dict[str, Any]
    settings: dict[str, str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `spectral-report`; errors are one sentence and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="spectral-report",
        description="Gather runs of spectral into one table (sweep.csv) and one page (sweep.html).",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="run folders, or folders that hold some")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: the first DIR)")
    given = parser.parse_args(arguments)
    try:
        runs = find(given.folders)
        output = Path(given.output or given.folders[0])
        output.mkdir(parents=True, exist_ok=True)
        written = gather(runs, output)
    except (ValueError, OSError) as problem:
        print(f"spectral-report: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"\ntable: {written[0]}\nreport: {written[1]}")


def find(folders: Sequence[str | Path]) -> list[Run]:
    """All runs in and below the folders, in the order of their paths; ValueError if there is none."""
    runs: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; give run folders or a folder that holds some.")
        for path in sorted(folder.rglob("result.json"), key=_natural):
            if path.resolve() not in runs:
                runs[path.resolve()] = _read(path)
    if not runs:
        raise ValueError(
            f"There is no result.json in {', '.join(map(str, folders))}; give folders that spectral wrote."
        )
    return list(runs.values())


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts run 10 after run 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def _read(path: Path) -> Run:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        settings = {k: v for k, v in flatten(result["config"]).items() if not k.startswith(IGNORED)}
    except (ValueError, KeyError, AttributeError) as problem:
        raise ValueError(f"{path} is no result of spectral or is damaged; remove its folder.") from problem
    if "cells" not in result:
        raise ValueError(f"{path} lists no spectra; it was written by another version of spectral, run it again.")
    return Run(path.parent, result, settings)


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings whose values are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def gather(runs: Sequence[Run], output: Path) -> tuple[Path, Path]:
    """Write sweep.csv and sweep.html into `output`, print the table, and return their paths."""
    varied = differing(runs)
    table = _csv(runs, varied)
    atomic_write(output / "sweep.csv", table.encode("utf-8"))
    report = _report(runs, varied)
    print(text_table(report.rows, report.labels))
    return output / "sweep.csv", page.write(output / "sweep.html", report)


def _csv(runs: Sequence[Run], varied: Sequence[str]) -> str:
    """One row for each matrix of each run: where, which settings differ, cost of the run, every metric with its error."""
    metrics = list(dict.fromkeys(m for run in runs for cell in run.result["cells"] for m in cell["metrics"]))
    costs = ["products", "epochs", "seconds", "peak_bytes"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    fixed = ["run", *varied, "matrix", "condition", "network_seed", "test_accuracy", "reached_target"]
    writer.writerow([*fixed, *(f"run_{c}" for c in costs), *metrics])
    for run in runs:
        for cell in run.result["cells"]:
            trained = cell.get("trained") or {}
            row: list[Any] = [str(run.folder), *(run.settings.get(key, "") for key in varied)]
            row += [cell["matrix"], cell["condition"], cell["seed"], cell.get("test_accuracy"), trained.get("reached")]
            row += [run.result["cost"].get(c) for c in costs] + [cell["metrics"].get(m) for m in metrics]
            writer.writerow(["" if value is None else value for value in row])
    return buffer.getvalue()


def _name(run: Run, varied: Sequence[str], swapped: set[str]) -> str:
    """A short name of a run: its choice in the groups that were swapped, and the other settings that differ."""
    parts = []
    for key in varied:
        group, _, name = key.partition(".")
        if group in swapped:
            parts.append(str(run.result["config"].get("choices", {}).get(group, "")))
        else:
            parts.append(f"{name.split('.')[-1] or group}={run.settings.get(key, '')}")
    parts = list(dict.fromkeys(parts))
    return ", ".join(parts) or run.folder.name


def _report(runs: Sequence[Run], varied: Sequence[str]) -> Report:
    """Runs of single spectra as the conditions of one matrix; of experiments, run by run, matrix by matrix."""
    singles = [run for run in runs if len(run.result["cells"]) == 1]
    choices = [run.result["config"].get("choices", {}) for run in runs]
    swapped = {group for found in choices for group in found if len({c.get(group) for c in choices}) > 1}
    names = _unique([_name(run, varied, swapped) for run in singles])
    curves: list[Curve] = []
    rows: list[Row] = []
    for run, name in zip(singles, names, strict=True):
        cell = run.result["cells"][0]
        if "spectrum" in cell and len(curves) < MOST_CURVES:
            curves.append(Curve("all runs", name, cell["seed"], Spectrum.load(run.folder / cell["spectrum"])))
    numbers = [m for run in singles if "spectrum" not in (c := run.result["cells"][0]) for m in c["metrics"]]
    listed = [m for m in numbers if not m.endswith(("_stderr", "_residual"))]
    for metric in dict.fromkeys([*SHOWN, *listed]):
        found = {n: run.result["cells"][0]["metrics"] for n, run in zip(names, singles, strict=True)}
        values = {n: (_number(m.get(metric)),) for n, m in found.items()}
        if any(math.isfinite(v[0]) for v in values.values()):
            errors = {n: (_number(m.get(f"{metric}_stderr", m.get(f"{metric}_residual"))),) for n, m in found.items()}
            rows.append(Row("all runs", metric, values, errors))
    for run in (run for run in runs if run not in singles):
        rows += _experiment_rows(run, f"{_name(run, varied, swapped)} · " if len(runs) > 1 else "")
    cost = {key: sum(_number(run.result["cost"].get(key)) for run in runs) for key in ("products", "epochs", "seconds")}
    same = {k: v for k, v in runs[0].settings.items() if k not in varied}
    more = f" The pictures show the first {MOST_CURVES} of {len(singles)} runs." if len(singles) > MOST_CURVES else ""
    return Report(
        title=f"{len(runs)} runs of spectral",
        question=f"How does the spectrum change with {', '.join(varied) or 'nothing'}?{more}",
        curves=curves,
        rows=rows,
        headline=("all runs",) if curves else (),
        labels={f"{m}": f"{m.replace('_', ' ')} (± residual)" for m in listed if f"{m}_residual" in numbers}
        | labels_for([row.matrix for row in rows]),
        facts=tuple(f"{name}: {run.folder}" for name, run in zip(names, singles, strict=True)),
        config={"the same in all runs": same},
        environment={"spectral": spectral.__version__},
        cost=cost,
    )


def _experiment_rows(run: Run, prefix: str) -> list[Row]:
    """The rows of an experiment's result.json, for the metrics that tables show."""
    rows = []
    for matrix, metrics in run.result["estimates"].items():
        for metric in (m for m in SHOWN if m in metrics):
            found = {c: d for c, d in metrics[metric].items() if "values" in d}
            effect = metrics[metric].get("true-random")
            values = {c: tuple(map(_number, d["values"])) for c, d in found.items()}
            errors = {c: tuple(map(_number, d["errors"])) for c, d in found.items()}
            if effect is None:
                rows.append(Row(prefix + matrix, metric, values, errors))
                continue
            signs = {(t > r) - (t < r) for t, r in zip(values["true"], values["random"], strict=True)}
            three = (_number(effect["d"]), _number(effect["lower"]), _number(effect["upper"]))
            rows.append(Row(prefix + matrix, metric, values, errors, three, signs in ({1}, {-1})))
    return rows


def _unique(names: list[str]) -> list[str]:
    """The names, numbered where one is met again."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return made


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


if __name__ == "__main__":
    main()
