"""One network, one operator, one spectrum or other numbers of it."""

from __future__ import annotations

import inspect
import math
import sys
import time
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
from spectral.app.configuration import NUMBERS
from spectral.app.settings import arguments, estimator, keeps_probes, names_of, settings_of, trust_of
from spectral.app.store import ESTIMATE, FOUND, RunStore
from spectral.app.targets import locate
from spectral.estimators.budget import symmetric_operand
from spectral.estimators.esd import NETWORK_DIM, chosen_method
from spectral.estimators.slq_options import PROBES, STEPS
from spectral.experiments import own
from spectral.experiments.cell import Cell, Condition, Matrix, Settings, network
from spectral.experiments.datasets import Problem, batches, in_dtype
from spectral.experiments.models import GIVEN
from spectral.experiments.study import Part
from spectral.experiments.training import evaluate, few_threads
from spectral.networks.batches import random_state_kept
from spectral.networks.calling import default_forward
from spectral.operators.operator import Gram, Operator
from spectral.pages import Numbers, Report, Subject, build
from spectral.pages.tables import opening
from spectral.persist import save_arrays
from spectral.spectrum import Spectrum
from spectral.storage import plain

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MANY_THREADS = 2000  # dimension from which eigenvalues gain more by threads than the products of a small network lose
LONG = 60.0  # seconds from which a run says beforehand what it takes
PLANNED = (spectral.slq, spectral.esd)
Made = tuple[Report, dict[str, Any], dict[str, Any]]  # a report, what result.json says of it, the cost
SPECTRA = "spectra"  # the folder of a run's spectra: hundreds of them would hide report.html


def peak_bytes() -> dict[str, int]:
    """ "peak_bytes": the most memory that this process has held, resident and torch's on the GPU; of several ranks the largest.

    Nothing where the system does not tell.
    """
    if resource is None:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    held += torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"peak_bytes": max(distributed.gather(lambda: held))}


def save_spectrum(spectrum: Spectrum, folder: Path, name: str) -> str:
    """Where the spectrum was saved, from the run's folder."""
    if distributed.leads():
        (folder / SPECTRA).mkdir(exist_ok=True)
        spectrum.save(folder / SPECTRA / name)
    return f"{SPECTRA}/{name}"


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
        options |= {name: self.function(name) for name in ("loss", "forward") if isinstance(node.get(name), str)}
        if target is not spectral.Jacobian and node["loss"] is None:
            options["loss"] = None  # the model's own
        with self.apart(), own.seeded(self.config["seed"]):  # which samples a loader that shuffles gives first
            data, y = self.data(node["split"], node["samples"])
            alone = distributed.world_size() == 1
            return target(model=model, data=data if alone else distributed.share(list(data)), **options), y

    def function(self, name: str) -> Any:
        """A function of a trusted file that the operator is given under this name, None without one."""
        path = self.config["operator"].get(name)
        here = f"operator.{name}", path, trust_of(self.config), self.config["seed"]
        return own.function(*here) if isinstance(path, str) else None

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


def single(config: dict[str, Any], folder: Path, store: RunStore, where: str) -> tuple[Report, dict[str, Any]]:
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
    title = names_of(config, "operator", "model", "data", between=" · ") or config["operator"]["_target_"]
    subject = Subject(title, name, seed, trained, _test_accuracy(task, model))
    make = _numbers if locate(config["estimator"]["_target_"]) in NUMBERS else _spectrum
    report, said, cost = make(task, model, subject, folder)
    cost |= {"seconds": time.perf_counter() - started, "training_epochs": 0 if trained is None else trained.epochs}
    cells = [{**said.pop("cell"), **subject.to_dict(), **({"weights": weights} if weights else {})}]
    unknown = [f"{opening(build.NO_ACCURACY)}."] if weights and math.isnan(subject.test_accuracy) else []
    facts = (*report.facts, *([weights] if weights else []), *unknown)
    return replace(report, cost=cost, facts=facts), {**said, "cells": cells}


def _test_accuracy(task: Task, model: nn.Module) -> float:
    """The network's on the test samples (x, class); nan without any, and for outputs that are no logits of them."""
    problem, forward, right, count = task.problem, task.function("forward") or default_forward, 0.0, 0
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if isinstance(problem, own.Stream):
        data = problem.batches("test", None, dtype) if "test" in problem.given else []
    else:
        data = [(in_dtype(problem.x_test, dtype), problem.y_test)] if len(problem.x_test) else []
    with random_state_kept(data):
        for batch in data:
            x, y = own.pairs([batch]) or (torch.zeros(0), torch.zeros(0))
            accuracy = math.nan if y.is_floating_point() else evaluate(model, x, y, forward=forward)[1]
            if math.isnan(accuracy):  # and so of the whole
                return math.nan
            right, count = right + accuracy * y.numel(), count + y.numel()
    return right / count if count else math.nan


def _spectrum(task: Task, model: nn.Module, subject: Subject, folder: Path) -> Made:
    """The report of a spectrum, its numbers for result.json, its cost."""
    analysis = task.config["analysis"]
    part = distributed.by_first(lambda: task.store.load("spectrum", FOUND)) or _measured_spectrum(task, model)
    spectrum, numbers = part.spectra["whole"], part.facts
    report = build.single(subject, spectrum, numbers, metrics=analysis["metrics"], alpha_curve=analysis["alpha_curve"])
    metrics = {k: v for k, v in numbers.items() if not k.endswith("_stderr")}
    estimates = {k: {"value": v, "stderr": numbers.get(f"{k}_stderr", math.nan)} for k, v in metrics.items()}
    cell = {"spectrum": save_spectrum(spectrum, folder, "spectrum.npz"), "metrics": numbers}
    cost = {"products": spectrum.products, "epochs": spectrum.epochs}
    return report, {"metrics": metrics, "estimates": estimates, "cell": cell}, cost


def _numbers(task: Task, model: nn.Module, subject: Subject, folder: Path) -> Made:
    """The same of what makes no spectrum."""
    part = distributed.by_first(lambda: task.store.load("estimate", ESTIMATE)) or _measured_numbers(task, model)
    arrays, facts = part.arrays, part.facts
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
    if config.get("experiment") or locate(config["estimator"]["_target_"]) not in PLANNED:
        raise ValueError(
            "plan=only is of one spectrum by slq or esd; name model=, operator= and estimator=, and no experiment."
        )
    settings = settings_of(config, where)
    task = Task(config, settings, settings.problem(seed=config["seed"]).to(where), None)  # type: ignore[arg-type]  # nothing is kept
    model = task.untrained()
    with few_threads(model):
        told = _foreseen(task, task.operator(model)[0])
    return f"{names_of(config, 'operator', 'model', 'data', between=' · ')}: {told}"


def _foreseen(task: Task, A: Operator, *, least: float = 0.0) -> str:
    """What the estimate of a matrix would take, "" if it is less than so many seconds; what does not fit is refused."""
    options = arguments(task.config["estimator"])
    if locate(task.config["estimator"]["_target_"]) is spectral.esd:
        how: dict[str, Any] = {name: options.pop(name) for name in ("tol", "budget", "method") if name in options}
        method, why, _ = chosen_method(A, **how, options=options)
        if method != "slq":
            return f"{method}: {why}" if not least else ""
        options |= how
    given = {name: value for name, value in options.items() if name in inspect.signature(spectral.plan).parameters}
    if (asked := [name for name in ("tol", "budget") if name in options]) and not {"steps", "probes"} <= set(given):
        if least:
            return ""
        raise ValueError(
            f"plan=only counts steps and probes, and {asked[0]} decides in the run how many these are; name estimator.steps and "
            f"estimator.probes as well, or leave {asked[0]} out."
        )
    if least:
        products = int(given.get("steps", STEPS)) * int(given.get("probes", PROBES))
        op = symmetric_operand(A)[0]
        op.expect(products)
        v = op.probe(0, 0)
        begin = time.perf_counter()
        op @ v  # with its tests, it takes no less than those to come
        if distributed.decided(op, (time.perf_counter() - begin) * products < least):
            return ""
    told = spectral.plan(A, **given)
    if told.fits:
        return str(told) if told.seconds >= least else ""
    held = max(told.held, key=lambda what: told.held[what])
    way = {
        "basis": "estimator.reorthogonalize=false or estimator.basis=PATH", "deflation": "estimator.deflate=false",
        "products": "operator.chunk=1 or products=fresh", "vectors": "a smaller model, or parameters over ranks",
        "records": "fewer estimator.steps or estimator.probes",
    }[held]  # fmt: skip
    raise ValueError(f"{told}, which does not fit; most are for {held}: use {way}.")


def _rehearse(task: Task) -> None:
    """Build the operator over the network as it is before training, and let the estimator look at its options."""
    model = task.untrained()
    A = Rehearsal(task.operator(model)[0])
    with few_threads(model), distributed.apart(distributed.teams(1)), suppress(Rehearsed):
        task.estimator(task.operand(A), progress=False)


def _measured_numbers(task: Task, model: nn.Module) -> Part:
    """What an estimator gives that makes no spectrum, stored."""
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
    task.store.save("estimate", part := Part(arrays, facts))
    return part


def _measured_spectrum(task: Task, model: nn.Module) -> Part:
    """The spectrum and its metrics, stored."""
    node, estimate = task.config["operator"], task.estimator
    A, y = task.operator(model)
    kept = task.store.probes("spectrum")
    if keeps_probes(task.config["estimator"]):
        estimate = partial(estimate, checkpoint=kept)
    if locate(task.config["estimator"]["_target_"]) in PLANNED and distributed.by_first(lambda: not kept.exists()):
        with few_threads(model), task.apart():
            told = _foreseen(task, A, least=LONG)
        if told and distributed.leads():
            print(told, flush=True)
    # large enough to be decomposed, small enough for it to be chosen: there threads help more than they hurt
    with nullcontext() if MANY_THREADS < min(A.shape) <= NETWORK_DIM else few_threads(model):
        spectrum = estimate(A)
    top = task.config["analysis"]["top"] or task.problem.classes
    numbers = summary(spectrum, top=min(top, spectrum.dim) or None)
    of_labels = node.get("of") in ("logits", "probs") and y.ndim == 1 and not y.is_floating_point()
    if node.get("wrt") == "params" and of_labels and A.shape[0] <= EXACT_ROWS:
        with task.apart():  # labels of one class lie nowhere, once their mean is taken
            energy = label_alignment(A, y).own_label if len(y.unique()) > 1 else math.nan
        numbers |= {"true_label_alignment": energy, "true_label_alignment_stderr": 0.0}
    task.store.save("spectrum", part := Part({}, numbers, {"whole": spectrum}))
    return part
