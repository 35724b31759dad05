"""From a configuration to what it names: keywords, estimator, device, data and networks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import spectral
from spectral.app.targets import locate
from spectral.experiments import own
from spectral.experiments.cell import Settings
from spectral.experiments.datasets import Problem

# Keys of a node that are read here, not by its target.
OWN_KEYS = {"_target_", "images", "text", "predicts", "headline", "headline_metric", "split", "samples"}


def arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a node for its target: without keys of our own and nulls, inner targets built."""
    given = {key: value for key, value in node.items() if key not in OWN_KEYS and value is not None}
    inner = {k: v for k, v in given.items() if isinstance(v, Mapping) and "_target_" in v}
    return given | {k: locate(v["_target_"])(**arguments(v)) for k, v in inner.items()}


def estimator(node: Mapping[str, Any], seed: int | None = None) -> Any:
    """The estimator as a function of an operator; the bare function where nothing differs from its defaults."""
    target, options = locate(node["_target_"]), arguments(node)
    known = inspect.signature(target).parameters
    default = {k: p.default for k, p in known.items()}
    options = {k: v for k, v in options.items() if type(v) is not type(default.get(k)) or v != default[k]}
    if seed and "seed" in known and "seed" not in options:
        options["seed"] = seed
    if seed and target is spectral.esd and options.get("method") != "exact":
        options["seed"] = seed
    return partial(target, **options) if options else target


def keeps_probes(node: Mapping[str, Any]) -> bool:
    """Whether the estimator can go on from a file of finished probes."""
    return "checkpoint" in inspect.signature(locate(node["_target_"])).parameters


def device(config: Mapping[str, Any]) -> str:
    """ "cpu", "cuda" or "mps" as the device group asks; sets the number of threads."""
    name, threads = config["device"]["name"], config["device"].get("threads")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if name == "mps" and config["dtype"] == "float64":
        raise ValueError("device=mps has no float64; add dtype=float32, or use device=cpu.")
    if not there[name]:
        raise ValueError(f"device={name} needs a GPU that torch can see, and there is none; use device=cpu.")
    if threads is not None:
        torch.set_num_threads(threads)
    return str(name)


def settings_of(config: Mapping[str, Any], where: str, **more: Any) -> Settings:
    """The `Settings` of an experiment: problem, model, training and estimator as the groups say."""
    data = config["data"]
    rest: dict[str, Any] = {"test": None} if "test" in data and data["test"] is None else {}  # null: all that remain
    if locate(data["_target_"]) is own.data:
        rest |= {"trust": trust_of(config), "whole": config["training"]["enabled"] or bool(config.get("experiment"))}
    return Settings(
        problem=partial(locate(data["_target_"]), **arguments(data), **rest),
        model=_model(config),
        training=arguments(config["training"]["options"]),
        device=where,
        dtype=getattr(torch, config["dtype"]),
        batch_size=config["batch_size"],
        **more,
    )


def trust_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The files that may run, with their digests."""
    files, trust = config.get("files", {}), config.get("trust", ())
    return {str(Path(file).resolve()): sha for file, sha in files.items() if own.is_trusted(file, trust)}


def _model(config: Mapping[str, Any]) -> Any:
    """A function (problem, seed, options) -> network; a module of torch.nn is built from its own arguments."""
    target, given = locate(config["model"]["_target_"]), arguments(config["model"])
    if target is own.model:
        return partial(target, **given, trust=trust_of(config))
    if inspect.isclass(target):

        def seeded(problem: Problem, seed: int = 0, options: Any = None) -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return target(**(given if options is None else {**given, **options}))

        return seeded
    return partial(target, **given)


def names_of(config: dict[str, Any], *groups: str, between: str) -> str:
    """The members of the groups that were chosen, by their names; those of one's own by their files."""
    chosen = config.get("choices", {})
    return between.join(_files(config[group]) or str(chosen[group]) for group in groups if group in chosen)


def _files(node: Mapping[str, Any]) -> str:
    """The files that a model or data are made of, in a word or two; "" for ours."""
    named = [node.get(key) for key in ("path", "name", "checkpoint")]
    return ", ".join(Path(name).name for name in named if isinstance(name, str))
