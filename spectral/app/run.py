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
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import spectral
from spectral import distributed
from spectral.analysis import label_alignment, summary
from spectral.analysis.alignment import EXACT_ROWS
from spectral.app import configuration
from spectral.app.configuration import NUMBERS
from spectral.app.progress import Progress
from spectral.app.store import RunStore
from spectral.app.targets import locate
from spectral.estimators.budget import versions
from spectral.estimators.esd import NETWORK_DIM
from spectral.experiments import own
from spectral.experiments.cell import TRUE, Cell, Condition, Matrix, Settings, all_cells, network, run_cell
from spectral.experiments.datasets import Problem, batches, in_dtype
from spectral.experiments.experiments import Experiment, Outcome, conclude
from spectral.experiments.models import GIVEN
from spectral.experiments.studies import READS
from spectral.experiments.study import Part, Study
from spectral.experiments.training import evaluate, few_threads
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Gram, Operator
from spectral.pages import Numbers, Report, Subject, build, charts, mean_and_error, page, verdict
from spectral.pages.tables import seconds
from spectral.persist import atomic_write, own_folder, save_arrays
from spectral.spectrum import Spectrum
from spectral.storage import plain

# Keys of a node that are read here, not by its target.
OWN_KEYS = {"_target_", "images", "text", "predicts", "headline", "headline_metric", "split", "samples"}
REHEARSED = 256  # dimension of a matrix that options are tried on
MANY_THREADS = 2000  # dimension from which eigenvalues gain more by threads than the products of a small network lose
SPECTRA = "spectra"  # the folder of a run's spectra: hundreds of them would hide report.html


class Interrupted(BaseException):
    """A signal came; `sentence` says what is kept and how to go on, `code` is the exit status."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence, code)  # both, for processes that a launcher has started
        self.sentence, self.code = sentence, code


class Terminated(SystemExit):
    """SIGTERM came; raised where the run is, so that a checkpoint can be left."""

    def __init__(self) -> None:
        super().__init__(143)


# Configuration -------------------------------------------------------------------------------------------------------
def arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a node for its target: without keys of our own and nulls, inner targets built."""
    given = {key: value for key, value in node.items() if key not in OWN_KEYS and value is not None}
    inner = {k: v for k, v in given.items() if isinstance(v, Mapping) and "_target_" in v}
    return given | {k: locate(v["_target_"])(**arguments(v)) for k, v in inner.items()}


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
        **versions(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if where == "cuda" else where,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        **({"ranks": distributed.world_size()} if distributed.world_size() > 1 else {}),
    }


def peak_bytes() -> int:
    """The most memory this process has held, of several ranks the largest: resident on the CPU, plus torch's on the GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    held += torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return max(distributed.gather(lambda: held))


def settings_of(config: Mapping[str, Any], where: str, **more: Any) -> Settings:
    """The `Settings` of an experiment: problem, model, training and estimator as the groups say."""
    data = config["data"]
    rest: dict[str, Any] = {"test": None} if "test" in data and data["test"] is None else {}  # null: all that remain
    if locate(data["_target_"]) is own.data:
        rest |= {"trust": _trust(config), "whole": config["training"]["enabled"] or bool(config.get("experiment"))}
    return Settings(
        problem=partial(locate(data["_target_"]), **arguments(data), **rest),
        model=_model(config),
        training=arguments(config["training"]["options"]),
        device=where,
        dtype=getattr(torch, config["dtype"]),
        batch_size=config["batch_size"],
        **more,
    )


def _trust(config: Mapping[str, Any]) -> dict[str, str]:
    """The files that may run, with their digests."""
    return {str(Path(file).resolve()): config["files"][file] for file in config.get("trust", ())}


def _model(config: Mapping[str, Any]) -> Any:
    """A function (problem, seed, options) -> network; a module of torch.nn is built from its own arguments."""
    target, given = locate(config["model"]["_target_"]), arguments(config["model"])
    if target is own.model:
        return partial(target, **given, trust=_trust(config))
    if inspect.isclass(target):

        def seeded(problem: Problem, seed: int = 0, options: Any = None) -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return target(**(given if options is None else {**given, **options}))

        return seeded
    return partial(target, **given)


# Running -------------------------------------------------------------------------------------------------------------
def execute(config: dict[str, Any], folder: str | Path, command: str = "spectral") -> Path | None:
    """Run a composed configuration and write its folder; returns the file to look at (report.html or result.json).

    `command` is what a person would type to run it again; an interruption quotes it with resume=true. Of several ranks each has
    its share of the data, and the first alone reads and writes; the others return None.
    """
    configuration.check(config)
    config = {"files": own.read_by(config), **config}
    folder = own_folder(folder)
    where = device(config["device"])
    if config.get("plan") == "only":
        with own.told(_trust(config)):
            print(planned(config, where), flush=True)
        return None
    about = {**environment(where), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    description = {k: v for k, v in config.items() if k not in ("resume", "output", "analysis", "plan")}
    description["computed by"] = {k: about[k] for k in ("spectral", "torch", "device")}
    store = RunStore(config["output"]["state"], description, resume=config["resume"], present=distributed.leads())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        perform = _experiment if config.get("experiment") else _single
        with own.told(_trust(config)):
            report, results = perform(config, folder, store, where)
        if not distributed.leads():
            return None
        return _write(folder, config, replace(report, config=recorded(config), environment=about), results)
    except (KeyboardInterrupt, Terminated) as stop:
        distributed.leave(stop)
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
    wanted, finished, resumable = all_cells(plan.settings), [], _keeps_probes(config["estimator"])
    started = time.perf_counter()
    with Progress(plan.name, len(wanted)) as progress:
        for cell in wanted:
            progress.begin(cell.key)
            before = distributed.by_first(lambda key=cell.key: store.load_cell(key))  # type: ignore[misc]
            if before is None:
                probes = store.probes(cell.key) if resumable else None
                finished.append(run_cell(cell, plan.settings, store, checkpoint=probes))
                store.save_cell(finished[-1])
            else:
                finished.append(before)
            progress.end(before is not None)
    outcome = conclude(plan, finished)
    spent = {**outcome.result.cost, "wall_seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}
    spent["seconds"] += spent["training_seconds"]
    what = _named(config, "model", "data", between=" on ") or plan.name.replace("_", " ")
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
        file = _save_spectrum(result.spectrum, folder, f"spectrum-{result.cell.key}.npz")
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
    with Progress(study.name, len(study.steps)) as progress:
        for name, step in study.steps.items():
            progress.begin(name)
            before = store.load_part(name)
            parts[name] = before or step(parts, store)
            if before is None:
                store.save_part(name, parts[name])
            progress.end(before is not None)
    findings = study.conclude(parts)
    cells = []
    for name, part in parts.items():
        save_arrays(folder / f"{name}.npz", part.arrays, plain(part.facts))
        saved = [_save_spectrum(s, folder, f"spectrum-{name}.{k}.npz") for k, s in part.spectra.items()]
        numbers = {k: float(v) for k, v in part.facts.items() if isinstance(v, int | float)}
        cell = {
            "matrix": study.name,
            "condition": name,
            "seed": int(part.facts.get("seed", study.settings.seeds[0])),
            "metrics": numbers,
        }
        cells.append(
            {**cell, "arrays": f"{name}.npz", **({"spectrum": saved[0]} if len(saved) == 1 else {"spectra": saved})}
        )
    spent = {key: sum(part.facts[key] for part in parts.values()) for key in ("products", "epochs", "seconds")}
    spent |= {"wall_seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}
    metrics = {name: {k: float(e) for k, e in each.items()} for name, each in findings.estimates.items()}
    estimates = {
        name: {k: {"value": float(e), "stderr": float(e.stderr)} for k, e in each.items()}
        for name, each in findings.estimates.items()
    }
    said = {"metrics": {study.name: metrics}, "estimates": {study.name: estimates}, "conditions": dict(findings.words)}
    about = _named(config, *(group for group in ("model", "data") if group in READS[study.name]), between=" on ")
    sizes = [int(part.facts["parameters"]) for part in parts.values() if "parameters" in part.facts]
    about = verdict.scope(sizes, about) if about and sizes else about
    report = charts.report(study, findings, about)
    return replace(report, cost=spent), {**said, "cells": cells}


def _named(config: dict[str, Any], *groups: str, between: str) -> str:
    """The members of the groups that were chosen, by their names; those of one's own by their files."""
    chosen = config.get("choices", {})
    return between.join(_files(config[group]) or str(chosen[group]) for group in groups if group in chosen)


def _files(node: Mapping[str, Any]) -> str:
    """The files that a model or data are made of, in a word or two; "" for ours."""
    named = [node.get(key) for key in ("path", "name", "checkpoint")]
    return ", ".join(Path(name).name for name in named if isinstance(name, str))


def _save_spectrum(spectrum: Spectrum, folder: Path, name: str) -> str:
    """Where the spectrum was saved, from the run's folder."""
    if distributed.leads():
        (folder / SPECTRA).mkdir(exist_ok=True)
        spectrum.save(folder / SPECTRA / name)
    return f"{SPECTRA}/{name}"


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
        for effect in row.effects:
            details[f"{effect.a}-{effect.b}"] = {"d": effect.d, "lower": effect.lower, "upper": effect.upper}
        metrics.setdefault(row.matrix, {})[row.metric] = means
        estimates.setdefault(row.matrix, {})[row.metric] = details
    return metrics, estimates


@dataclass(frozen=True)
class Task:
    """What one matrix is of: the configuration, the data, where what is finished is stored."""

    config: dict[str, Any]
    settings: Settings
    problem: Problem
    store: RunStore

    def untrained(self) -> nn.Module:
        """The network as it is before training, in eval mode."""
        network: nn.Module = self.settings.model(self.problem, seed=self.config["seed"]).to(self.settings.device)
        return network.eval()

    def operator(self, model: nn.Module) -> tuple[Operator, torch.Tensor]:
        """The operator that the configuration names, and the labels of its samples."""
        node, target = self.config["operator"], locate(self.config["operator"]["_target_"])
        options, model = arguments(node), model.to(self.settings.dtype)
        if "product_dtype" in options:
            options["product_dtype"] = getattr(torch, options["product_dtype"])
        if isinstance(node.get("loss"), str):
            options["loss"] = own.loss(node["loss"], _trust(self.config), self.config["seed"])
        elif target is not spectral.Jacobian and node["loss"] is None:
            options["loss"] = None  # the model's own
        data, y = self.data(node["split"], node["samples"])
        with self.apart():
            alone = distributed.world_size() == 1
            return target(model=model, data=data if alone else distributed.share(list(data)), **options), y

    def data(self, split: str, samples: int | None) -> tuple[Any, torch.Tensor]:
        """The first samples (None: all) in batches, and their labels; a scalar where these are not at hand."""
        if isinstance(self.problem, own.Stream):
            return self.problem.batches(split, samples, self.settings.dtype), torch.zeros(())
        x, y = self.problem.split(split)
        x, y = in_dtype(x[:samples], self.settings.dtype), in_dtype(y[:samples], self.settings.dtype)
        if not len(x):
            raise ValueError(f"operator.split={split} has no samples; take the other, or data that has some.")
        return batches(x, y, self.settings.batch_size), y

    def apart(self) -> AbstractContextManager[None]:
        """Where the ranks of a group share out probes, each has all the data by itself."""
        probes = self.config["estimator"].get("ranks") == "probes"
        return distributed.apart(distributed.teams(1)) if probes else nullcontext()

    @property
    def estimator(self) -> Any:
        return estimator(self.config["estimator"], self.config["seed"])

    def operand(self, A: Operator) -> Operator:
        """What the estimator is given: the operator, or for numbers of square matrices its Gram."""
        square = A.shape[0] == A.shape[1] and A.self_map
        target = locate(self.config["estimator"]["_target_"])
        return A if square or target not in NUMBERS or target is spectral.svd else Gram(A)


def _single(config: dict[str, Any], folder: Path, store: RunStore, where: str) -> tuple[Report, dict[str, Any]]:
    """One network, one operator, one spectrum or other numbers of it: the report, and what result.json says of it."""
    started, seed, training = time.perf_counter(), config["seed"], config["training"]
    settings = settings_of(config, where)
    task = Task(config, settings, settings.problem(seed=seed).to(where), store)
    noise = float(training["noise"])
    model_node = config["model"]
    comes = model_node.get("kind") in GIVEN or model_node.get("checkpoint") or model_node.get("name")
    untrained = "given" if comes else "init"
    name = {0.0: "true", 1.0: "random"}.get(noise, f"noise{100 * noise:g}") if training["enabled"] else untrained
    cell = Cell(seed, Condition(name, noise if training["enabled"] else None), Matrix("matrix", "logits", "train"))
    if training["enabled"] and distributed.by_first(lambda: cell.network not in store):
        _rehearse(task)
    model, snapshot = network(cell, settings, task.problem, store)
    trained, weights = None if snapshot is None else snapshot.trained, own.loaded(model)
    title = _named(config, "operator", "model", "data", between=" · ") or config["operator"]["_target_"]
    subject = Subject(title, name, seed, trained, _test_accuracy(model, task.problem))
    make = _numbers if locate(config["estimator"]["_target_"]) in NUMBERS else _spectrum
    report, said, cost = make(task, model, subject, folder)
    cost |= {
        "seconds": time.perf_counter() - started,
        "training_epochs": 0 if trained is None else trained.epochs,
        "peak_bytes": peak_bytes(),
    }
    cells = [{**said.pop("cell"), **subject.to_dict(), **({"weights": weights} if weights else {})}]
    facts = (*report.facts, *([weights] if weights else []))
    return replace(report, cost=cost, facts=facts), {**said, "cells": cells}


def _test_accuracy(model: nn.Module, problem: Problem) -> float:
    """The network's on the test samples; nan without any, and for labels that are no classes."""
    x, y = problem.x_test, problem.y_test
    if not len(x) or y.is_floating_point():
        return math.nan
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    return evaluate(model, in_dtype(x, dtypes[0]) if dtypes else x, y)[1]


def _spectrum(
    task: Task, model: nn.Module, subject: Subject, folder: Path
) -> tuple[Report, dict[str, Any], dict[str, Any]]:
    """The report of a spectrum, its numbers for result.json, its cost."""
    analysis = task.config["analysis"]
    before = distributed.by_first(lambda: task.store.load_spectrum("spectrum"))
    spectrum, numbers = before or _measured_spectrum(task, model)
    report = build.single(subject, spectrum, numbers, metrics=analysis["metrics"], alpha_curve=analysis["alpha_curve"])
    metrics = {k: v for k, v in numbers.items() if not k.endswith("_stderr")}
    estimates = {k: {"value": v, "stderr": numbers.get(f"{k}_stderr", math.nan)} for k, v in metrics.items()}
    cell = {"spectrum": _save_spectrum(spectrum, folder, "spectrum.npz"), "metrics": numbers}
    cost = {"products": spectrum.products, "epochs": spectrum.epochs}
    return report, {"metrics": metrics, "estimates": estimates, "cell": cell}, cost


def _numbers(
    task: Task, model: nn.Module, subject: Subject, folder: Path
) -> tuple[Report, dict[str, Any], dict[str, Any]]:
    """The same of what makes no spectrum."""
    before = distributed.by_first(lambda: task.store.load_arrays("estimate"))
    arrays, facts = before or _measured_numbers(task, model)
    if distributed.leads():
        save_arrays(folder / "estimate.npz", arrays, facts)
    numbers = Numbers.of(arrays, facts)
    estimates = numbers.estimates()
    metrics = {k: e["value"] for k, e in estimates.items()}
    errors = {f"{k}_{n}": e[n] for k, e in estimates.items() for n in ("stderr", "residual") if n in e}
    cell = {"arrays": "estimate.npz", "metrics": metrics | errors, "found": facts}
    report = build.numbers(subject, numbers, str(task.config["estimator"].get("which") or "largest"))
    cost = {"products": facts["products"], "epochs": facts["epochs"]}
    return report, {"metrics": metrics, "estimates": estimates, "cell": cell}, cost


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


def planned(config: dict[str, Any], where: str) -> str:
    """What the spectrum of a configuration would take, by products with the network as it is before training: one line."""
    target = locate(config["estimator"]["_target_"])
    if config.get("experiment") or target not in (spectral.slq, spectral.esd):
        raise ValueError(
            "plan=only is of one spectrum by slq or esd; name model=, operator= and estimator=, and no experiment."
        )
    settings, options = settings_of(config, where), arguments(config["estimator"])
    task = Task(config, settings, settings.problem(seed=config["seed"]).to(where), None)  # type: ignore[arg-type]  # nothing is kept
    model = task.untrained()
    A = task.operator(model)[0]
    with few_threads(model):
        told = spectral.plan(A, steps=options.get("steps", 100), probes=options.get("probes", 4))
    if not told.fits:
        held = max(told.held, key=lambda what: told.held[what])
        way = {
            "basis": "estimator.reorthogonalize=false or estimator.basis=PATH", "deflation": "estimator.deflate=false",
            "products": "operator.chunk=1 or products=fresh", "vectors": "a smaller model, or parameters over ranks",
        }[held]  # fmt: skip
        raise ValueError(f"{told}, which does not fit; most are for {held}: use {way}.")
    return f"{_named(config, 'operator', 'model', 'data', between=' · ')}: {told}"


def _rehearse(task: Task) -> None:
    """Build the operator over the network as it is before training, and let the estimator look at its options."""
    model = task.untrained()
    A = Rehearsal(task.operator(model)[0])
    with few_threads(model), distributed.apart(distributed.teams(1)), suppress(Rehearsed):
        task.estimator(task.operand(A), progress=False)


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


def _measured_numbers(task: Task, model: nn.Module) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What an estimator gives that makes no spectrum: (arrays, plain facts), stored."""
    said, whole = "The numbers are those of the matrix itself.", task.operator(model)[0]
    A = task.operand(whole)
    if isinstance(A, Gram) and A is not whole:
        m, n, side = *whole.shape, A.shape[0]
        said = f"The matrix is {m} x {n}: the numbers are those of its Gram, {side} x {side}, on the {A.side} side."
    begun = A.epochs
    with few_threads(model):
        result = task.estimator(A, checkpoint=task.store.probes("estimate"))
    arrays = result.to_arrays()
    rest = {item.name: getattr(result, item.name) for item in fields(result) if item.name not in arrays}
    facts = {name: value for name, value in rest.items() if np.ndim(value) == 0}
    kind = NUMBERS[locate(task.config["estimator"]["_target_"])]
    with task.apart():
        described, alone = plain(A.describe()), distributed.is_apart()
    swept = distributed.gather(lambda: A.epochs - begun)
    facts = {"epochs": sum(swept) if alone else swept[0], **facts, "kind": kind, "of": said, "operator": described}
    task.store.save_arrays("estimate", arrays, facts)
    return arrays, facts


def _measured_spectrum(task: Task, model: nn.Module) -> tuple[Spectrum, dict[str, float]]:
    """The spectrum and its metrics, stored."""
    node, estimate = task.config["operator"], task.estimator
    A, y = task.operator(model)
    if _keeps_probes(task.config["estimator"]):
        estimate = partial(estimate, checkpoint=task.store.probes("spectrum"))
    # large enough to be decomposed, small enough for it to be chosen: there threads help more than they hurt
    with nullcontext() if MANY_THREADS < min(A.shape) <= NETWORK_DIM else few_threads(model):
        spectrum = estimate(A)
    top = task.config["analysis"]["top"] or task.problem.classes
    numbers = summary(spectrum, top=min(top, spectrum.dim) or None)
    of_labels = node.get("of") in ("logits", "probs") and y.ndim == 1 and not y.is_floating_point()
    if node.get("wrt") == "params" and of_labels and A.shape[0] <= EXACT_ROWS:
        with task.apart():
            aligned = label_alignment(A, y)
        numbers |= {"true_label_alignment": aligned.own_label, "true_label_alignment_stderr": 0.0}
    task.store.save_spectrum("spectrum", spectrum, numbers)
    return spectrum, numbers


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
    cost, memory = report.cost, float(report.cost["peak_bytes"]) / 2**20
    spent = (
        f"{cost['products']:.0f} products, {cost['epochs']:.1f} epochs, {seconds(cost['seconds'])}, {memory:.0f} MiB"
    )
    print(f"\ncost: {spent}\n{'report' if output['report'] else 'result'}: {last}", flush=True)
    return last
