"""`spectral-report DIR...`: the runs of a sweep as one page and two tables.

A run is a folder with a result.json; folders are searched to any depth. Written into `--output` (the first DIR): sweep.html,
one panel per operator and one row per configuration, seeds aggregated; sweep.csv, one row for each matrix of each run;
sweep_long.csv, one row for each number; both as .parquet too where pyarrow is installed. Runs are of one configuration only if
every setting but the seed is the same.

Tables are made from the result.json files alone, so that thousands of runs take seconds; `--tables` leaves the page out, which
reads spectra.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import spectral
from spectral import failures
from spectral.app.store import inside, read_result
from spectral.experiments.effects import Row, number_of, refused, row_of
from spectral.experiments.prose import prose, say, told
from spectral.persist import atomic_write
from spectral.spectrum import Spectrum

from . import Curve, Verdict, figures, page, tables
from .build import labels_for
from .picture import Picture
from .tables import Entry, Table, number, words

TEXTS = prose(__file__)
# Settings in which the runs of one configuration may differ.
SEEDS = ("seed", "experiment.seeds")
COMPUTED_BY = ("spectral", "torch", "device")
MOST_CURVES = 12  # configurations in one picture; more are unreadable
MOST_NUMBERS = 6  # columns of numbers; the CSV files hold all
SUMMED = ("products", "epochs", "seconds")  # costs of runs


@dataclass(frozen=True)
class Run:
    """A folder, its result.json, and its settings as one level of plain values."""

    folder: Path
    result: dict[str, Any]
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """The same for two runs if and only if every setting but the seeds is the same."""
        same = {name: _canonical(value) for name, value in self.settings.items() if name not in SEEDS}
        return json.dumps(same, sort_keys=True)

    @property
    def is_experiment(self) -> bool:
        return "experiment._target_" in self.settings or len({cell["matrix"] for cell in self.result["cells"]}) > 1

    def choice(self, group: str) -> str:
        """Which member of a group was chosen: its name, or what its `_target_` ends in."""
        if group == "operator" and not any(key.startswith("operator.") for key in self.settings):
            return ""  # of an experiment
        named = self.result["config"].get("choices", {}).get(group)
        return str(named or str(self.settings.get(f"{group}._target_", "")).rpartition(".")[2])


@dataclass(frozen=True)
class Configuration:
    """One matrix under one set of settings: `values` are those of the swept columns, `seeds` has what was run with each seed."""

    panel: str
    values: tuple[str, ...]
    seeds: dict[int, tuple[Run, Mapping[str, Any]]]

    @property
    def metrics(self) -> list[Mapping[str, Any]]:
        """All numbers, a mapping for each seed."""
        return [cell["metrics"] for _, cell in self.seeds.values()]

    def row(self, metric: str) -> Row:
        """A metric of all seeds as a row with one condition, "all"; with none where it is neither known nor refused."""
        return row_of(self.panel, metric, {"all": self.metrics})


@dataclass(frozen=True)
class Sweep:
    """Runs in order: the swept columns, the configurations, and what a reader must know of how they were made."""

    runs: tuple[Run, ...]
    columns: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    labels: dict[str, str]
    notes: tuple[str, ...] = ()
    same: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def panels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c.panel for c in self.configurations))

    def of(self, panel: str) -> list[Configuration]:
        return [c for c in self.configurations if c.panel == panel]

    @cached_property
    def series(self) -> tuple[tuple[str, ...], ...]:
        """The values of the swept columns, each once: what has one number and one colour in all panels."""
        return tuple(dict.fromkeys(c.values for c in self.configurations))

    def name(self, values: tuple[str, ...]) -> str:
        """A series in words, with its number."""
        return f"{self.series.index(values) + 1}: {self.text(values)}"

    def text(self, values: tuple[str, ...]) -> str:
        """A series in words: values that speak for themselves, others with the name of their column."""
        pairs = zip(self.columns, values, strict=True)
        parts = [value if _speaks(value) else f"{column} {value}" for column, value in pairs if value != "–"]
        return " · ".join(parts) or "all runs"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `spectral-report`; errors are one sentence and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="spectral-report",
        description="Gather runs of spectral into one page (sweep.html) and two tables (sweep.csv and sweep_long.csv).",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="run folders, or folders that hold some")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: the first DIR)")
    parser.add_argument("--tables", action="store_true", help="the tables alone: no page, no spectrum is read")
    given = parser.parse_args(arguments)
    failures.writable_output()
    try:
        runs = find(given.folders)
        output = Path(given.output or given.folders[0])
        output.mkdir(parents=True, exist_ok=True)
        tabled = write_tables(runs, output)
        page = None if given.tables else write(runs, output)
    except (ValueError, OSError) as problem:
        said = failures.of_file(problem) if isinstance(problem, OSError) else problem
        print(f"spectral-report: {said}", file=sys.stderr)
        raise SystemExit(2) from None
    print("\n" + "\n".join(f"{kind}: {path}" for kind, path in tabled))
    if page is not None:
        print(f"report: {page}")


# Runs ----------------------------------------------------------------------------------------------------------------
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
    result = read_result(path)
    settings = _settings(result["config"])
    if "experiment._target_" in settings:  # an experiment has matrices of its own
        settings = {key: value for key, value in settings.items() if not key.startswith("operator.")}
    about = result.get("environment", {})
    settings |= {f"computed by.{name}": about[name] for name in COMPUTED_BY if name in about}
    return Run(path.parent, result, settings)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as one level {dotted name: value}, without what says nothing about the numbers."""
    ignored = tuple(f"{name}." for name in TEXTS["ignored"])
    return {k: v for k, v in tables.leaves(config).items() if not f"{k}.".startswith(ignored)}


def _canonical(value: Any) -> Any:
    """The value as JSON, such that 0 and 0.0 are the same setting, and nothing else is."""

    def number(digits: str) -> float | int:
        return float(digits) if abs(int(digits)) < 2**53 else int(digits)

    return json.loads(json.dumps(value, default=str), parse_int=number)


def _told(value: Any) -> str:
    """A setting as a person reads it; never shorter than what tells it from another one."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list | tuple):
        return " × ".join(map(_told, value)) or "none"
    return "default" if value is None else str(value)


def _speaks(text: str) -> bool:
    """Whether a value is a name, and no number, yes or no that needs the name of its column."""
    return text[:1].isalpha() and text not in ("yes", "no", "default", "none", "true", "false", "inf", "nan")


# Configurations ------------------------------------------------------------------------------------------------------
def swept(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """(groups of which the runs chose different members, other settings that differ), seeds left out.

    A setting of a swapped group counts where it differs between runs of the same choice, as the choice says the rest. One that
    equals a setting of a swapped group in every run follows from the choice.
    """
    keys = [key for key in dict.fromkeys(key for run in runs for key in run.settings) if key not in SEEDS]
    groups = list(dict.fromkeys(key.partition(".")[0] for key in keys if "." in key))
    swapped = [group for group in groups if len({run.choice(group) for run in runs}) > 1]
    column = {key: [json.dumps(_canonical(run.settings.get(key, "–"))) for run in runs] for key in keys}
    within = [column[key] for key in keys if key.partition(".")[0] in swapped]
    differ = []
    for key in keys:
        group = key.partition(".")[0]
        chosen = [run.choice(group) if group in swapped else "" for run in runs]
        several = len(set(zip(chosen, column[key], strict=True))) > len(set(chosen))
        if several and (group in swapped or column[key] not in within):
            differ.append(key)
    return swapped, _without_digests(differ, column)


def _without_digests(differ: list[str], column: Mapping[str, list[str]]) -> list[str]:
    """The settings that differ, without digests of files that are told apart by their names."""
    named = [key for key in differ if not key.startswith("files.")]
    rows = list(zip(*(column[key] for key in named), strict=True)) or [()] * len(next(iter(column.values()), []))
    return [key for key in differ if key in named or len(set(zip(rows, column[key], strict=True))) > len(set(rows))]


def sweep_of(runs: Sequence[Run]) -> Sweep:
    """The configurations of the runs, in the order of their first appearance."""
    swapped, differ = swept(runs)
    groups = [group for group in swapped if group != "operator"]
    columns = [*(group.replace("_", " ") for group in groups), *_short(differ)]
    labels, repeats = labels_for([]), 0
    matrices: dict[tuple[str, str, str], dict[int, tuple[Run, Mapping[str, Any]]]] = {}
    for run in sorted(runs, key=lambda run: str(run.result.get("environment", {}).get("started", ""))):
        for cell in run.result["cells"]:
            where = (_panel(run, cell, labels), run.key, cell["condition"] if run.is_experiment else "")
            seeds = matrices.setdefault(where, {})
            repeats += cell["seed"] in seeds
            seeds[cell["seed"]] = (run, cell)  # the last one that was started
    configurations = []
    for (panel, _, condition), seeds in matrices.items():
        run = next(iter(seeds.values()))[0]
        values = [run.choice(group) or "–" for group in groups]
        values += [_told(run.settings[key]) if key in run.settings else "–" for key in differ]
        if any(run.is_experiment for run in runs):
            values.append(words(condition, labels | run.result.get("conditions", {})) if condition else "–")
        configurations.append(Configuration(panel, tuple(values), dict(sorted(seeds.items()))))
    if any(run.is_experiment for run in runs):
        columns.append("condition")
    order = {run.folder: place for place, run in enumerate(runs)}
    configurations.sort(key=lambda c: min(order[run.folder] for run, _ in c.seeds.values()))
    labels |= labels_for([c.panel for c in configurations if c.panel not in labels])
    told = f"{repeats} matrices were computed more than once with the same settings and seed: the last run counts."
    left_out = (*SEEDS, *differ)
    same = {k: v for k, v in runs[0].settings.items() if k not in left_out and k.partition(".")[0] not in swapped}
    apart = tuple(_told_apart(configurations))
    return Sweep(tuple(runs), tuple(columns), apart, labels, (told,) * bool(repeats), same)


def _panel(run: Run, cell: Mapping[str, Any], labels: dict[str, str]) -> str:
    """What a panel is of: the operator of a single spectrum, the matrix of an experiment; numbers have panels of their own."""
    if run.is_experiment:
        return str(cell["matrix"])
    operator = run.choice("operator") or str(cell["matrix"])
    kind = cell.get("found", {}).get("kind")
    if kind is None:
        return operator
    labels[f"{operator}, {kind}"] = f"{words(operator, labels)}, {kind}"
    return f"{operator}, {kind}"


def _short(keys: Sequence[str]) -> list[str]:
    """Names of settings in short words; where two would be the same, with the group."""
    short = [TEXTS["short"].get(key, key.rpartition(".")[2].replace("_", " ").strip()) for key in keys]
    pairs = zip(keys, short, strict=True)
    return [name if short.count(name) == 1 else f"{key.partition('.')[0]} {name}" for key, name in pairs]


def _told_apart(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Configurations of one panel never share their words: a further one is numbered."""
    seen: dict[tuple[str, tuple[str, ...]], int] = {}
    out = []
    for c in configurations:
        count = seen[c.panel, c.values] = seen.get((c.panel, c.values), 0) + 1
        last = f"{c.values[-1]} ({count})" if c.values else f"({count})"
        out.append(c if count == 1 else Configuration(c.panel, (*c.values[:-1], last), c.seeds))
    return out


# Tables --------------------------------------------------------------------------------------------------------------
def metrics_of(configurations: Iterable[Configuration]) -> list[str]:
    """The numbers that a table has of these: a few of a spectrum's, or those that an estimator gave."""
    named = list(dict.fromkeys(name for c in configurations for metrics in c.metrics for name in metrics))
    listed = [name for name in TEXTS["listed"] if name in named]
    if "effective_rank" not in listed:
        listed = [name for name in named if f"{name}_residual" in named or f"{name}_stderr" in named]
    return [name for name in listed if not name.endswith(("_stderr", "_residual"))][:MOST_NUMBERS]


def table(sweep: Sweep, panel: str, output: Path) -> Table:
    """One row per configuration of an operator: its settings, mean and scatter of each number, a link to the run of each seed.

    What is the same in all rows stands below them.
    """
    own = sweep.of(panel)
    metrics = [m for m in metrics_of(own) if any(c.row(m).values for c in own)]
    differ = [i for i in range(len(sweep.columns)) if len({c.values[i] for c in own}) > 1]
    entries = []
    for c in own:
        links = tuple((str(seed), _address(run, output)) for seed, (run, _) in c.seeds.items())
        texts = [str(sweep.series.index(c.values) + 1), *(c.values[i] for i in differ)]
        texts += [number(c.row(m), "all") for m in metrics]
        entries.append(Entry((*texts, ", ".join(seed for seed, _ in links)), links=links))
    residuals = {m for m in metrics if any(f"{m}_residual" in numbers for c in own for numbers in c.metrics)}
    titles = ["#", *(sweep.columns[i] for i in differ)]
    titles += [words(m, sweep.labels) + " (± residual)" * (m in residuals) for m in metrics]
    same = tuple("–" if i in differ else value for i, value in enumerate(own[0].values))
    facts = {
        "same": sweep.text(same) if any(value != "–" for value in same) else "", "scattered": any(len(c.seeds) > 1 for c in own),
        "refused": any(c.row(m).doubted()[0] for c in own for m in metrics), "exact": tables.EXACT, "mark": tables.REFUSED,
    }  # fmt: skip
    foot = told(TEXTS["foot"], **facts)
    return Table((*titles, "seeds"), (("", tuple(entries)),), 1 + len(differ), " ".join(foot))


def _address(run: Run, output: Path) -> str:
    """Where the page of a run is, seen from the page of the sweep."""
    pages = [run.folder / name for name in ("report.html", "result.json")]
    target = next((path for path in pages if path.exists()), run.folder)
    return quote(Path(os.path.relpath(target.resolve(), output.resolve())).as_posix())


def write_tables(runs: Sequence[Run], output: Path) -> list[tuple[str, Path]]:
    """Write sweep.csv and sweep_long.csv into `output`, as .parquet too where that can be written; (what it is, where)."""
    written = []
    for kind, name, rows in zip(("table", "numbers"), ("sweep", "sweep_long"), rows_of(runs), strict=True):
        atomic_write(output / f"{name}.csv", tables.csv_text(rows).encode("utf-8"))
        written.append((kind, output / f"{name}.csv"))
        if (content := tables.parquet(rows)) is not None:
            atomic_write(output / f"{name}.parquet", content)
            written.append((kind, output / f"{name}.parquet"))
    return written


def rows_of(runs: Sequence[Run]) -> tuple[list[list[Any]], list[list[Any]]]:
    """(a row for each matrix of each run with all its numbers, a row for each number): settings that differ, then results.

    The first row of each has the names.
    """
    swapped, differ = swept(runs)
    seeds = [key for key in SEEDS if len({json.dumps(run.settings.get(key)) for run in runs}) > 1]
    keys = [*differ, *seeds]
    metrics = list(dict.fromkeys(m for run in runs for cell in run.result["cells"] for m in cell["metrics"]))
    costs = ["products", "epochs", "seconds", "peak_bytes"]
    fixed = ["run", *swapped, *keys, "matrix", "condition", "network_seed"]
    wide, long = [], []
    for run in runs:
        for cell in run.result["cells"]:
            trained, numbers = cell.get("trained") or {}, cell["metrics"]
            start: list[Any] = [str(run.folder), *(run.choice(group) for group in swapped)]
            start += [_plain(run.settings.get(key)) for key in keys]
            start += [cell["matrix"], cell["condition"], cell["seed"]]
            spent = [run.result["cost"].get(c) for c in costs]
            values = [numbers.get(m) for m in metrics]
            wide.append([*start, cell.get("test_accuracy"), trained.get("reached"), *spent, *values])
            for m in (m for m in metrics if m in numbers and not m.endswith(("_stderr", "_residual"))):
                kind = next((kind for kind in ("stderr", "residual") if f"{m}_{kind}" in numbers), "")
                long.append([*start, m, numbers[m], numbers.get(f"{m}_{kind}"), kind, refused(m, numbers)])
    titles = [*fixed, "test_accuracy", "reached_target", *(f"run_{c}" for c in costs), *metrics]
    of_numbers = [*fixed, "metric", "value", "error", "error_kind", "refused"]
    return [titles, *wide], [of_numbers, *long]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


# The page ------------------------------------------------------------------------------------------------------------
def write(runs: Sequence[Run], output: Path) -> Path:
    """Write sweep.html into `output`, print what it says, and return where it is."""
    sweep = sweep_of(runs)
    own = {panel: table(sweep, panel, output) for panel in sweep.panels}
    said = answer(sweep)
    print(f"{question(sweep)}\n{said.sentence}")
    for panel, numbers in own.items():
        print(f"\n{words(panel, sweep.labels)}\n{numbers.text()}")
    for note in sweep.notes:
        print(note)
    html = page.template("sweep.html.j2").render(
        sweep=sweep,
        question=question(sweep),
        verdict=said,
        picture=draw(sweep),
        caption=caption(sweep),
        tables=[(tables.opening(words(panel, sweep.labels)), numbers) for panel, numbers in own.items()],
        cost=page.costs({k: sum(number_of(run.result["cost"].get(k)) for run in runs) for k in SUMMED}),
        settings=tables.of_settings(sweep.same),
        version=spectral.__version__,
    )
    atomic_write(output / "sweep.html", html.encode("utf-8"))
    return output / "sweep.html"


def question(sweep: Sweep) -> str:
    """What a sweep asks."""
    seeds = {seed for c in sweep.configurations for seed in c.seeds}
    return say(TEXTS["question"], columns=list(sweep.columns), several=len(seeds) > 1)


def answer(sweep: Sweep) -> Verdict:
    """Between which values one number of each operator lies, and where: the effective rank, or the first that there is."""
    parts = []
    for panel in sweep.panels:
        metric = headline(sweep, panel)
        rows = [(c, row) for c in sweep.of(panel) if (row := c.row(metric)).values]
        means = [(row.mean("all")[0], number(row, "all"), c) for c, row in rows]
        known = sorted((m for m in means if math.isfinite(m[0])), key=lambda m: m[0])
        if not known:
            continue
        ends = [(text, sweep.text(c.values)) for _, text, c in (known[0], known[-1])]
        of = words(panel.partition(", ")[0], sweep.labels)
        parts.append(say(TEXTS["span"], metric=words(metric, sweep.labels), of=of, ends=ends, alone=len(known) == 1))
    counts = [len(c.seeds) for c in sweep.configurations]
    said = say(TEXTS["answer"], parts=parts, few=min(counts), many=max(counts), runs=len(sweep.runs))
    return Verdict("found", tables.opening(said))


def headline(sweep: Sweep, panel: str) -> str:
    """The number that a panel sums up."""
    return next(iter(metrics_of(sweep.of(panel))), "")


def draw(sweep: Sweep) -> Picture | None:
    """A panel for each operator: the densities of its configurations, and below the number that sums them up, seed by seed."""
    drawn = sweep.series[:MOST_CURVES]
    labels = dict(sweep.labels)
    curves, rows = [], []
    for panel in sweep.panels:
        metric, known = headline(sweep, panel), {}
        for c in (c for c in sweep.of(panel) if c.values in drawn):
            name = sweep.name(c.values)
            labels[f"tick:{name}"] = str(sweep.series.index(c.values) + 1)
            for seed, (run, cell) in c.seeds.items():
                if "spectrum" in cell:
                    curves.append(Curve(panel, name, seed, Spectrum.load(inside(run.folder, cell["spectrum"]))))
            if any(math.isfinite(v) for values in c.row(metric).values.values() for v in values):
                known[name] = c.metrics
        rows += [row_of(panel, metric, known)] if known else []
    if not (curves or rows):
        return None
    order = [sweep.name(values) for values in drawn]
    return figures.landscape(curves, rows, sweep.panels, "", labels, _levels(sweep), order)


def _levels(sweep: Sweep) -> dict[str, float]:
    """The places of the series on their axis, where there is one and its values are numbers."""
    try:
        return {sweep.name(values): float(values[0]) for values in sweep.series} if len(sweep.columns) == 1 else {}
    except ValueError:
        return {}


def caption(sweep: Sweep) -> str:
    """What is drawn."""
    cells = (cell for panel in sweep.panels for c in sweep.of(panel) for _, cell in c.seeds.values())
    densities = any("spectrum" in cell for cell in cells)
    return say(TEXTS["caption"], most=MOST_CURVES, configurations=len(sweep.series), densities=densities)


if __name__ == "__main__":
    main()
