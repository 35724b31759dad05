"""What the command does once its configuration is composed: one spectrum or an experiment, from data to page.

`execute(config)` takes plain containers, so that it can be called without hydra; `__main__` composes them.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext, suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from spectral import collectives, distributed
from spectral.app import configuration
from spectral.app.progress import Progress
from spectral.app.settings import arguments, device, estimator, keeps_probes, names_of, settings_of, trust_of
from spectral.app.single import Rehearsal, Rehearsed, peak_bytes, planned, save_spectrum, single
from spectral.app.store import STEP, RunStore
from spectral.app.targets import locate
from spectral.estimators.budget import versions
from spectral.experiments import own
from spectral.experiments.cell import TRUE, CellResult, Settings, all_cells, run_cell
from spectral.experiments.effects import mean_and_error
from spectral.experiments.experiments import Experiment, Outcome, conclude
from spectral.experiments.studies import READS
from spectral.experiments.study import Part, Study
from spectral.operators.foreign import as_operator
from spectral.pages import Report, build, charts, page, verdict
from spectral.pages.tables import seconds
from spectral.persist import FULL, alone, atomic_write, own_folder, save_arrays
from spectral.storage import plain

REHEARSED = 256  # dimension of a matrix that options are tried on
Done = TypeVar("Done")  # a finished cell of an experiment, or step of a study


class Interrupted(BaseException):
    """A signal came; `sentence` says what is kept and how to go on, `code` is the exit status."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence, code)  # both, for processes that a launcher has started
        self.sentence, self.code = sentence, code


class Terminated(SystemExit):
    """SIGTERM came; raised where the run is, so that a checkpoint can be left."""

    def __init__(self) -> None:
        super().__init__(143)


def environment(where: str) -> dict[str, Any]:
    """Versions and machine, as far as they may matter to a number."""
    return {
        **versions(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if where == "cuda" else where,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        **({"ranks": distributed.world_size()} if distributed.world_size() > 1 else {}),
    }


# Running -------------------------------------------------------------------------------------------------------------
def execute(
    config: dict[str, Any], folder: str | Path, command: str = "spectral", asked: Mapping[str, str] | None = None
) -> Path | None:
    """Run a composed configuration and write its folder; returns the file to look at (report.html or result.json).

    `command` is what a person would type to run it again; an interruption quotes it with resume=true. Of several ranks each has
    its share of the data, and the first alone reads and writes; the others return None. `asked` are texts by the names of files
    of the folder, written once it is this run's.
    """
    configuration.check(config)
    config = {"files": own.read_by(config), **config}
    folder = own_folder(folder)
    where = device(config)
    if config.get("plan") == "only":
        with own.told(trust_of(config)):
            print(planned(config, where), flush=True)
        return None
    about = {**environment(where), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    description = {k: v for k, v in config.items() if k not in ("resume", "output", "analysis", "plan")}
    description["computed by"] = {k: about[k] for k in ("spectral", "torch", "device")}
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder) if distributed.leads() else nullcontext():
        store = RunStore(config["output"]["state"], description, resume=config["resume"], present=distributed.leads())
        try:
            for name, text in (asked or {}).items() if distributed.leads() else ():
                atomic_write(folder / name, text.encode())
            perform = _experiment if config.get("experiment") else single
            with own.told(trust_of(config)):
                report, results = perform(config, folder, store, where)
                cost = {**report.cost, **peak_bytes()}
            if not distributed.leads():
                return None
            report = replace(report, config=recorded(config), environment=about, cost=cost)
            written = _write(folder, config, report, results)
            store.end()
            return written
        except OSError as problem:
            if problem.errno not in FULL:
                raise
            raise ValueError(
                f"{problem.filename or folder} could not be written ({problem.strerror}); {store.parts()} are kept in "
                f"{store.folder}: make room, and run it again with resume=true."
            ) from problem
        except (KeyboardInterrupt, Terminated) as stop:
            collectives.leave(stop)
            code = 143 if isinstance(stop, Terminated) else 130
            raise Interrupted(
                f"Interrupted with {store.parts()} kept in {store.folder}; go on with: {command} resume=true", code
            ) from stop


def _experiment(config: dict[str, Any], folder: Path, store: RunStore, where: str) -> tuple[Report, dict[str, Any]]:
    """All cells of an experiment, each stored as it ends: its report, and what result.json says of it."""
    node = config["experiment"]
    names = {item.name for item in fields(Settings)} & set(node)
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in node.items() if k in names}
    chosen["estimator"] = estimator(config["estimator"])
    rest = {k: v for k, v in arguments(node).items() if k not in names}
    plan: Experiment | Study = locate(node["_target_"])(settings_of(config, where, **chosen), **rest)
    if isinstance(plan, Study):
        return _study(plan, config, folder, store)
    sizes = _rehearse_experiment(config, plan)
    wanted, resumable = {cell.key: cell for cell in all_cells(plan.settings)}, keeps_probes(config["estimator"])
    started = time.perf_counter()

    def made(key: str) -> CellResult:
        probes = store.probes(key) if resumable else None
        store.save_cell(result := run_cell(wanted[key], plan.settings, store, checkpoint=probes))
        return result

    finished = list(_performed(plan.name, wanted, lambda key: store.load_cell(wanted[key]), made, {}).values())
    outcome = conclude(plan, finished)
    spent = {**outcome.result.cost, "wall_seconds": time.perf_counter() - started}
    spent["seconds"] += spent["training_seconds"]
    what = names_of(config, "model", "data", between=" on ") or plan.name.replace("_", " ")
    report = build.experiment(
        outcome,
        metrics=config["analysis"]["metrics"],
        headline=node.get("headline", ()),
        headline_metric=node.get("headline_metric", "effective_rank"),
        about=verdict.scope(sizes, what),
        alpha_curve=config["analysis"]["alpha_curve"],
        problem=plan.settings.data(0, TRUE) if any(r.samples for r in finished) else None,
    )
    listed = []
    for result in finished:
        file = save_spectrum(result.spectrum, folder, f"spectrum-{result.cell.key}.npz")
        listed.append({"spectrum": file, "metrics": result.metrics, **build.subject_of(result).to_dict()})
    metrics, estimates = _experiment_numbers(outcome)
    said = {"metrics": metrics, "estimates": estimates, "conditions": plan.words, "cells": listed}
    return replace(report, cost=spent), said


def _study(study: Study, config: dict[str, Any], folder: Path, store: RunStore) -> tuple[Report, dict[str, Any]]:
    """All steps of a study, each kept as it ends: its report, and what result.json says of it."""
    if distributed.world_size() > 1:
        raise ValueError(f"The experiment {study.name} is made by one process; leave torchrun out.")
    parts: dict[str, Part] = {}
    started = time.perf_counter()

    def made(name: str) -> Part:
        store.save(name, part := study.steps[name](parts, store))
        return part

    _performed(study.name, study.steps, partial(store.load, rule=STEP), made, parts)
    findings = study.conclude(parts)
    cells = []
    for name, part in parts.items():
        save_arrays(folder / f"{name}.npz", part.arrays, plain(part.facts))
        saved = [save_spectrum(s, folder, f"spectrum-{name}.{k}.npz") for k, s in part.spectra.items()]
        numbers = {k: float(v) for k, v in part.facts.items() if isinstance(v, int | float)}
        seed = int(part.facts.get("seed", study.settings.seeds[0]))
        files = {"arrays": f"{name}.npz"} | ({"spectrum": saved[0]} if len(saved) == 1 else {"spectra": saved})
        cells.append({"matrix": study.name, "condition": name, "seed": seed, "metrics": numbers, **files})
    spent = {key: sum(part.facts[key] for part in parts.values()) for key in ("products", "epochs", "seconds")}
    spent["wall_seconds"] = time.perf_counter() - started
    told = findings.estimates.items()
    metrics = {name: {k: float(e) for k, e in each.items()} for name, each in told}
    estimates = {n: {k: {"value": float(e), "stderr": float(e.stderr)} for k, e in each.items()} for n, each in told}
    said = {"metrics": {study.name: metrics}, "estimates": {study.name: estimates}, "conditions": dict(findings.words)}
    about = names_of(config, *(group for group in ("model", "data") if group in READS[study.name]), between=" on ")
    # of each kind of network once, as in an experiment: seeds and rates train the same one again
    sizes = sorted({int(part.facts["parameters"]) for part in parts.values() if "parameters" in part.facts})
    about = verdict.scope(sizes, about) if about and sizes else about
    report = charts.report(study, findings, about)
    return replace(report, cost=spent), {**said, "cells": cells}


def _performed(
    name: str,
    keys: Collection[str],
    kept: Callable[[str], Done | None],
    made: Callable[[str], Done],
    done: dict[str, Done],
) -> dict[str, Done]:
    """`done`, filled up key by key with what an earlier run has kept, or else with what is made now."""
    with Progress(name, len(keys)) as progress:
        for key in keys:
            progress.begin(key)
            before = distributed.by_first(partial(kept, key))
            done[key] = made(key) if before is None else before
            progress.end(before is not None)
    return done


def _experiment_numbers(outcome: Outcome) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics, estimates): means per matrix, metric and condition; the same with errors, seeds and effect sizes."""
    metrics: dict[str, Any] = {}
    estimates: dict[str, Any] = {}
    for row in outcome.result.rows:
        means, details = {}, {}
        for condition, numbers in row.values.items():
            value, sd = mean_and_error(numbers, row.errors[condition])
            seeds = sum(math.isfinite(v) for v in numbers)
            means[condition] = value
            stderr = sd / math.sqrt(seeds) if seeds > 1 else sd
            details[condition] = {"value": value, "stderr": stderr, "values": numbers, "errors": row.errors[condition]}
            if condition in row.refused:
                details[condition]["refused"] = row.refused[condition]
        details |= {pair: dict(zip(("d", "lower", "upper"), d, strict=True)) for pair, d in row.effects.items()}
        metrics.setdefault(row.matrix, {})[row.metric] = means
        estimates.setdefault(row.matrix, {})[row.metric] = details
    return metrics, estimates


def _rehearse_experiment(config: dict[str, Any], plan: Experiment) -> list[int]:
    """Build the first seed's data and networks, and let the estimator look at its options; the parameters of each kind
    of network.
    """
    settings, seed = plan.settings, plan.settings.seeds[0]
    kinds = {json.dumps([c.options, c.classes], default=str, sort_keys=True): c for c in settings.conditions}
    for condition in {c.inputs: c for c in settings.conditions}.values():
        settings.data(seed, condition)
    networks = (settings.build(settings.data(seed, condition), seed, condition) for condition in kinds.values())
    sizes = [sum(p.numel() for p in model.parameters()) for model in networks]
    with distributed.apart(distributed.teams(1)), suppress(Rehearsed):
        A = Rehearsal(as_operator(torch.eye(REHEARSED, dtype=settings.dtype)))
        estimator(config["estimator"])(A, progress=False)
    return sizes


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it stands in result.json and on the page."""
    return {key: value for key, value in config.items() if key not in ("resume", "plan")}


def _write(folder: Path, config: dict[str, Any], report: Report, results: dict[str, Any]) -> Path:
    """result.json, pictures, page and the table on the terminal; the last line names what to open."""
    result = {
        "config": report.config,
        "environment": report.environment,
        "cost": report.cost,
        "metrics": results.pop("metrics"),
        "estimates": results.pop("estimates"),
        "title": report.title,
        "question": report.question,
        "answer": {"verdict": report.verdict.answer, "sentence": report.verdict.sentence},
        **results,
    }
    last, output = folder / "result.json", config["output"]
    atomic_write(last, json.dumps(plain(result), indent=1, allow_nan=False).encode())
    print(page.text(report))
    pictures = page.draw(report) if output["figures"] or output["report"] else {}
    if output["figures"]:
        page.save_pictures(folder, pictures)
    if output["report"]:
        last = page.write(folder / "report.html", report, pictures)
    cost = report.cost
    said = f"{cost['products']:.0f} products, {cost['epochs']:.1f} epochs, {seconds(cost['seconds'])}"
    if "peak_bytes" in cost:
        said += f", {cost['peak_bytes'] / 2**20:.0f} MiB"
    print(f"\ncost: {said}\n{'report' if output['report'] else 'result'}: {last}", flush=True)
    return last
