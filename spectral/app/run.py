"""What the command does once its configuration is composed: one spectrum or an experiment, from data to page.

`execute(config)` takes plain containers, so that it can be called without hydra; `__main__` composes them.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from torch import nn

import spectral
from spectral.analysis import label_alignment, summary
from spectral.app import configuration
from spectral.app.configuration import NUMBERS, locate
from spectral.app.progress import Progress, seconds
from spectral.app.store import State
from spectral.estimators.esd import NETWORK_DIM
from spectral.experiments.cell import Cell, CellResult, Condition, Matrix, Settings, cells, network, run_cell
from spectral.experiments.datasets import Problem, batches
from spectral.experiments.experiments import Experiment, Outcome, conclude
from spectral.experiments.training import evaluate, few_threads
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Gram, Operator
from spectral.persist import atomic_write, own_folder, save_arrays
from spectral.report import Report, build, page, tables, verdict
from spectral.spectrum import Spectrum

OWN_KEYS = {"_target_", "images", "headline", "headline_metric", "split", "samples"}  # read here, not by the target
REHEARSED = 256  # dimension of a matrix that options are tried on
MANY_THREADS = 2000  # dimension from which eigenvalues gain more by threads than the products of a small network lose
SPECTRA = "spectra"  # the folder of a run's spectra: hundreds of them would hide report.html


class Interrupted(BaseException):
    """A signal came; `sentence` says what is kept and how to go on, `code` is the exit status."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.sentence, self.code = sentence, code


class Terminated(SystemExit):
    """SIGTERM came; raised where the run is, so that a checkpoint can be left."""

    def __init__(self) -> None:
        super().__init__(143)


# Configuration -------------------------------------------------------------------------------------------------------
def arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a node for its target: without keys of our own and nulls, inner targets built."""
    kept = {key: value for key, value in node.items() if key not in OWN_KEYS and value is not None}
    return {k: locate(v["_target_"])(**arguments(v)) if _is_node(v) else v for k, v in kept.items()}


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def estimator(node: Mapping[str, Any], seed: int | None = None) -> Any:
    """The estimator as a function of an operator; the bare function where nothing differs from its defaults."""
    target, options = locate(node["_target_"]), arguments(node)
    known = inspect.signature(target).parameters
    options = {
        k: v
        for k, v in options.items()
        if k not in known or type(v) is not type(known[k].default) or v != known[k].default
    }
    if seed and "seed" in known and "seed" not in options:
        options["seed"] = seed
    if seed and target is spectral.esd and options.get("method") != "exact":
        options["seed"] = seed
    return partial(target, **options) if options else target


def _keeps_probes(node: Mapping[str, Any]) -> bool:
    """Whether the estimator can go on from a file of finished probes."""
    return "checkpoint" in inspect.signature(locate(node["_target_"])).parameters


def device(node: Mapping[str, Any]) -> str:
    """ "cpu" or "cuda" as the device group asks; sets the number of threads."""
    name = node["name"]
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda needs a GPU that torch can see, and there is none; use device=cpu.")
    if node.get("threads") is not None:
        torch.set_num_threads(node["threads"])
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def environment(where: str) -> dict[str, Any]:
    """Versions and machine, as far as they may matter to a number."""
    return {
        "spectral": spectral.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if where == "cuda" else where,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def peak_bytes() -> int:
    """The most memory this process has held: resident on the CPU, plus torch's on the GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return held + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


def settings_of(config: Mapping[str, Any], where: str, **more: Any) -> Settings:
    """The `Settings` of an experiment: problem, model, training and estimator as the groups say."""
    return Settings(
        problem=partial(locate(config["data"]["_target_"]), **_data_options(config["data"])),
        model=_model(config["model"]),
        training=arguments(config["training"]["options"]),
        device=where,
        dtype=getattr(torch, config["dtype"]),
        batch_size=config["batch_size"],
        **more,
    )


def _data_options(node: Mapping[str, Any]) -> dict[str, Any]:
    """Like `arguments`, but test=null means all that remain."""
    return {k: v for k, v in node.items() if k not in OWN_KEYS and (v is not None or k == "test")}


def _model(node: Mapping[str, Any]) -> Any:
    """A function (problem, seed, options) -> network; a module of torch.nn is built from its own arguments."""
    target, given = locate(node["_target_"]), arguments(node)
    if inspect.isclass(target):

        def seeded(problem: Problem, seed: int = 0, options: Any = None) -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return target(**(given if options is None else {**given, **options}))

        return seeded
    return partial(target, **given)


# Running -------------------------------------------------------------------------------------------------------------
def execute(config: dict[str, Any], folder: str | Path, command: str = "spectral") -> Path:
    """Run a composed configuration and write its folder; returns the file to look at (report.html or result.json).

    `command` is what a person would type to run it again; an interruption quotes it with resume=true.
    """
    configuration.check(config)
    folder = own_folder(folder)
    where = device(config["device"])
    about = {**environment(where), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    kept = {k: v for k, v in config.items() if k not in ("resume", "output", "analysis")}
    kept["computed by"] = {k: about[k] for k in ("spectral", "torch", "device")}
    state = State(config["output"]["state"], kept, resume=config["resume"])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if config.get("experiment"):
            return _experiment(config, folder, state, where, about)
        return _single(config, folder, state, where, about)
    except (KeyboardInterrupt, Terminated) as stop:
        code = 143 if isinstance(stop, Terminated) else 130
        raise Interrupted(
            f"Interrupted with {state.parts()} kept in {state.folder}; go on with: {command} resume=true", code
        ) from stop


def _experiment(config: dict[str, Any], folder: Path, state: State, where: str, about: dict[str, Any]) -> Path:
    """All cells of an experiment, each kept as it ends, and its report."""
    node = config["experiment"]
    names = {item.name for item in fields(Settings)} & set(node)
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in node.items() if k in names}
    chosen["estimator"] = estimator(config["estimator"])
    rest = {k: v for k, v in arguments(node).items() if k not in names}
    plan: Experiment = locate(node["_target_"])(settings_of(config, where, **chosen), **rest)
    _rehearse_experiment(config, plan)
    wanted, finished, resumable = cells(plan.settings), [], _keeps_probes(config["estimator"])
    started = time.perf_counter()
    with Progress(plan.name, len(wanted)) as progress:
        for cell in wanted:
            progress.begin(cell.key)
            result = state.load_cell(cell.key)
            if kept := result is not None:
                finished.append(result)
            else:
                probes = state.probes(cell.key) if resumable else None
                finished.append(run_cell(cell, plan.settings, state, checkpoint=probes))
                state.save_cell(finished[-1])
            progress.end(kept)
    outcome = conclude(plan, finished)
    spent = {**outcome.result.cost, "wall_seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}
    spent["seconds"] += spent["training_seconds"]
    report = build.experiment(
        outcome,
        metrics=config["analysis"]["metrics"],
        headline=node.get("headline", ()),
        headline_metric=node.get("headline_metric", "effective_rank"),
        about=_about(config, plan),
        alpha_curve=config["analysis"]["alpha_curve"],
        config=recorded(config),
        environment=about,
        cost=spent,
    )
    (folder / SPECTRA).mkdir(exist_ok=True)
    for result in finished:
        result.spectrum.save(folder / _spectrum_file(result))
    extra = {"conditions": plan.words, "cells": [_cell_record(result) for result in finished]}
    return _write(folder, config, report, *_experiment_numbers(outcome), extra)


def _about(config: dict[str, Any], plan: Experiment) -> str:
    """How many networks of what size an experiment is about, and what they are of."""
    options = {json.dumps(c.options, default=str, sort_keys=True): c.options for c in plan.settings.conditions}
    problem = plan.settings.problem(seed=plan.settings.seeds[0])
    models = [plan.settings.model(problem, seed=0, **({} if o is None else {"options": o})) for o in options.values()]
    chosen = config.get("choices", {})
    what = " on ".join(str(chosen[key]) for key in ("model", "data") if key in chosen) or plan.name.replace("_", " ")
    return verdict.scope([sum(p.numel() for p in model.parameters()) for model in models], what)


def _spectrum_file(result: CellResult) -> str:
    return f"{SPECTRA}/spectrum-{result.cell.key}.npz"


def _cell_record(result: CellResult) -> dict[str, Any]:
    """One matrix of one network: enough for `spectral-report` to find and label it."""
    return {
        "spectrum": _spectrum_file(result),
        "matrix": result.cell.matrix.name,
        "condition": result.cell.condition.name,
        "seed": result.cell.seed,
        "metrics": result.metrics,
        "test_accuracy": result.test_accuracy,
        "trained": None if result.trained is None else result.trained.to_dict(history=False),
    }


def _experiment_numbers(outcome: Outcome) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics, estimates): means per matrix, metric and condition; the same with errors, seeds and effect sizes."""
    metrics: dict[str, Any] = {}
    estimates: dict[str, Any] = {}
    for row in outcome.result.rows:
        means, details = {}, {}
        for condition, numbers in row.values.items():
            value, sd = tables.mean_and_error(numbers, row.errors[condition])
            seeds = sum(math.isfinite(v) for v in numbers)
            means[condition] = value
            stderr = sd / math.sqrt(seeds) if seeds > 1 else sd
            details[condition] = {"value": value, "stderr": stderr, "values": numbers, "errors": row.errors[condition]}
            if condition in row.refused:
                details[condition]["refused"] = row.refused[condition]
        for effect in row.effects:
            details[f"{effect.a}-{effect.b}"] = {"d": effect.d, "lower": effect.lower, "upper": effect.upper}
        metrics.setdefault(row.matrix, {})[row.metric] = means
        estimates.setdefault(row.matrix, {})[row.metric] = details
    return metrics, estimates


def _single(config: dict[str, Any], folder: Path, state: State, where: str, about: dict[str, Any]) -> Path:
    """Train (or not), one operator, one spectrum or other numbers of it, their report."""
    started, seed, node = time.perf_counter(), config["seed"], config["operator"]
    settings = settings_of(config, where)
    problem = settings.problem(seed=seed).to(device=where)
    training = config["training"]
    noise = float(training["noise"])
    name = "init" if not training["enabled"] else {0.0: "true", 1.0: "random"}.get(noise, f"noise{100 * noise:g}")
    cell = Cell(seed, Condition(name, noise if training["enabled"] else None), Matrix("matrix", "logits", "train"))
    if training["enabled"] and cell.network not in state:
        _rehearse(config, settings, problem)
    model, snapshot = network(cell, settings, problem, state)
    trained = None if snapshot is None else snapshot.trained
    accuracy = evaluate(model, problem.x_test, problem.y_test)[1] if len(problem.x_test) else math.nan
    if other := locate(config["estimator"]["_target_"]) in NUMBERS:
        arrays, numbers = state.load_arrays("estimate") or _found(config, settings, problem, model, state)
        save_arrays(folder / "estimate.npz", arrays, numbers)
        products, epochs = numbers["products"], numbers["epochs"]
    else:
        kept = state.load_spectrum("spectrum")
        spectrum, numbers = kept or _measured(config, settings, problem, model, state)
        (folder / SPECTRA).mkdir(exist_ok=True)
        spectrum.save(folder / SPECTRA / "spectrum.npz")
        products, epochs = spectrum.products, spectrum.epochs
    spent = {
        "products": products,
        "epochs": epochs,
        "seconds": time.perf_counter() - started,
        "training_epochs": 0 if trained is None else trained.epochs,
        "peak_bytes": peak_bytes(),
    }
    chosen = config.get("choices", {})
    title = " · ".join(str(chosen[k]) for k in ("operator", "model", "data") if k in chosen) or node["_target_"]
    shared: dict[str, Any] = {
        "matrix": title, "condition": name, "seed": seed, "trained": trained, "test_accuracy": accuracy,
        "config": recorded(config), "environment": about, "cost": spent,
    }  # fmt: skip
    if other:
        found = build.of_arrays(arrays, numbers)
        which = str(config["estimator"].get("which") or "largest")
        report, estimates = build.numbers(found, which=which, **shared), found.estimates()
        metrics = {k: e["value"] for k, e in estimates.items()}
        errors = {f"{k}_{n}": e[n] for k, e in estimates.items() for n in ("stderr", "residual") if n in e}
        own = {"arrays": "estimate.npz", "metrics": metrics | errors, "found": numbers}
    else:
        analysis = config["analysis"]
        report = build.single(
            spectrum, numbers, metrics=analysis["metrics"], alpha_curve=analysis["alpha_curve"], **shared
        )
        metrics = {k: v for k, v in numbers.items() if not k.endswith("_stderr")}
        estimates = {k: {"value": v, "stderr": numbers.get(f"{k}_stderr", math.nan)} for k, v in metrics.items()}
        own = {"spectrum": f"{SPECTRA}/spectrum.npz", "metrics": numbers}
    plain = None if trained is None else trained.to_dict(history=False)
    common = {"matrix": title, "condition": name, "seed": seed, "test_accuracy": accuracy, "trained": plain}
    return _write(folder, config, report, metrics, estimates, {"cells": [own | common]})


def _operator(
    config: dict[str, Any], settings: Settings, problem: Problem, model: nn.Module
) -> tuple[Operator, torch.Tensor]:
    """The operator that the configuration names, and the labels of its samples."""
    node = config["operator"]
    x, y = problem.split(node["split"])
    count = len(x) if node["samples"] is None else min(node["samples"], len(x))
    x, y, model = x[:count].to(settings.dtype), y[:count], model.to(settings.dtype)
    options = arguments(node)
    if "product_dtype" in options:
        options["product_dtype"] = getattr(torch, options["product_dtype"])
    return locate(node["_target_"])(model=model, data=batches(x, y, settings.batch_size), **options), y


def _subject(config: dict[str, Any], A: Operator) -> Operator:
    """What the estimator is given: the operator, or for numbers of square matrices its Gram."""
    square = A.shape[0] == A.shape[1] and A.self_map
    target = locate(config["estimator"]["_target_"])
    return A if square or target not in NUMBERS or target is spectral.svd else Gram(A)


class Rehearsed(Exception):
    """A product was asked for: everything that comes before it was in order."""


class Rehearsal(Operator):
    """The shape and the kind of an operator, without its products: an estimator looks at its options before it multiplies."""

    def __init__(self, A: Operator) -> None:
        super().__init__(A.shape, A.dtype, A.device, symmetric=A.symmetric, nonnegative=A.nonnegative)
        self.self_map, self.known_zeros = A.self_map, A.known_zeros

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        raise Rehearsed

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        raise Rehearsed


def _rehearse(config: dict[str, Any], settings: Settings, problem: Problem) -> None:
    """Build the operator over the network as it is before training, and let the estimator look at its options."""
    model = settings.model(problem, seed=config["seed"]).to(settings.device).eval()
    with few_threads(model), suppress(Rehearsed):
        A = _operator(config, settings, problem, model)[0]
        estimator(config["estimator"], config["seed"])(_subject(config, Rehearsal(A)), progress=False)


def _rehearse_experiment(config: dict[str, Any], plan: Experiment) -> None:
    """Build the first seed's data and networks, and let the estimator look at its options."""
    settings = plan.settings
    problem = settings.problem(seed=settings.seeds[0])
    for condition in settings.conditions:
        settings.model(
            problem, seed=settings.seeds[0], **({} if condition.options is None else {"options": condition.options})
        )
    with suppress(Rehearsed):
        A = Rehearsal(as_operator(torch.eye(REHEARSED, dtype=settings.dtype)))
        estimator(config["estimator"])(A, progress=False)


def _found(
    config: dict[str, Any], settings: Settings, problem: Problem, model: nn.Module, state: State
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What an estimator finds that makes no spectrum: (arrays, plain facts), kept."""
    estimate, of = estimator(config["estimator"], config["seed"]), "The numbers are those of the matrix itself."
    whole = _operator(config, settings, problem, model)[0]
    A = _subject(config, whole)
    if isinstance(A, Gram) and A is not whole:
        m, n, side = *whole.shape, A.shape[0]
        of = f"The matrix is {m} x {n}: the numbers are those of its Gram, {side} x {side}, on the {A.side} side."
    begun = A.epochs
    with few_threads(model):
        arrays, about = build.to_arrays(estimate(A, checkpoint=state.probes("estimate")))
    about = {"epochs": A.epochs - begun, **about, "of": of, "operator": plain(A.describe())}
    state.save_arrays("estimate", arrays, about)
    return arrays, about


def _measured(
    config: dict[str, Any], settings: Settings, problem: Problem, model: nn.Module, state: State
) -> tuple[Spectrum, dict[str, float]]:
    """The spectrum and its metrics, kept."""
    node, estimate = config["operator"], estimator(config["estimator"], config["seed"])
    A, y = _operator(config, settings, problem, model)
    if _keeps_probes(config["estimator"]):
        estimate = partial(estimate, checkpoint=state.probes("spectrum"))
    # large enough to be decomposed, small enough for it to be chosen: there threads help more than they hurt
    with nullcontext() if MANY_THREADS < min(A.shape) <= NETWORK_DIM else few_threads(model):
        spectrum = estimate(A)
    top = config["analysis"]["top"] or problem.classes
    numbers = summary(spectrum, top=min(top, spectrum.dim))
    if node.get("wrt") == "params" and node.get("of") in ("logits", "probs") and A.shape[0] <= 4000:
        aligned = label_alignment(A, y)
        numbers |= {"true_label_alignment": aligned.own_label, "true_label_alignment_stderr": 0.0}
    state.save_spectrum("spectrum", spectrum, numbers)
    return spectrum, numbers


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it stands in result.json and on the page."""
    return {key: value for key, value in config.items() if key != "resume"}


def _write(
    folder: Path,
    config: dict[str, Any],
    report: Report,
    metrics: dict[str, Any],
    estimates: dict[str, Any],
    extra: dict[str, Any],
) -> Path:
    """result.json, pictures, page and the table on the terminal; the last line names what to open."""
    result = {
        "config": recorded(config),
        "environment": report.environment,
        "cost": report.cost,
        "metrics": metrics,
        "estimates": estimates,
        "title": report.title,
        "question": report.question,
        "answer": {"verdict": report.verdict.answer, "sentence": report.verdict.sentence},
        **extra,
    }
    last = folder / "result.json"
    atomic_write(last, json.dumps(plain(result), indent=1, allow_nan=False).encode())
    shown = [row for row in report.rows if row.matrix in report.headline] or report.rows
    print(f"{report.title}: {report.question}\n{report.verdict.sentence}\n")
    listed = tables.of_rows(shown, report.labels) if report.numbers is None else tables.of_numbers(report.numbers)
    print(listed.text() + "\n")
    if report.trends:
        print(tables.of_mappings(report.trends, 2).text() + "\n")
    for fact in report.facts:
        print(fact)
    for finding in page.findings(report):
        print(f"- {finding}")
    pictures = page.draw(report) if config["output"]["figures"] or config["output"]["report"] else {}
    if config["output"]["figures"]:
        page.save_pictures(folder, pictures)
    if config["output"]["report"]:
        last = page.write(folder / "report.html", report, pictures)
    cost = report.cost
    memory = float(cost["peak_bytes"]) / 2**20
    spent = (
        f"{cost['products']:.0f} products, {cost['epochs']:.1f} epochs, {seconds(cost['seconds'])}, {memory:.0f} MiB"
    )
    print(f"\ncost: {spent}\n{'report' if config['output']['report'] else 'result'}: {last}", flush=True)
    return last


def plain(value: Any) -> Any:
    """Plain JSON data: numpy numbers as Python's, numbers that JSON has not (nan, inf) as null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
