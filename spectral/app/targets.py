"""What a `_target_` may name: one of our own functions or a module of torch.nn, where such a name belongs."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

import spectral
from spectral.schema import Fields, Mismatch, Rule, Sizes

# Of spectral, whose functions a `_target_` may name.
PACKAGES = ("experiments", "networks", "operators", "estimators", "analysis")
BUILT = ("model", "data", "operator", "operator.loss", "estimator", "experiment")  # where a `_target_` may stand


def locate(target: str) -> Any:
    """The function or class that a `_target_` names: what a configuration needs of spectral, or a module of torch.nn.

    Of spectral that is: names of the top level and of the packages in `PACKAGES`. Anything else is refused before it is
    imported: a configuration file must not be a way to run any code or to write any file.
    """
    named = _named(str(target).split("."))
    if not callable(named):
        raise ValueError(
            f"_target_={target!r} is not allowed; use a public function of spectral or a module of torch.nn."
        )
    return named


def _named(parts: list[str]) -> Any:
    """What a dotted name leads to; None where it leads to nothing that may be named."""
    *home, name = parts
    if any(part.startswith("_") or not part.isidentifier() for part in parts):
        return None
    if home == ["torch", "nn"]:
        module = getattr(nn, name, None)
        return module if inspect.isclass(module) and issubclass(module, nn.Module) else None
    if home == ["spectral"]:
        return getattr(spectral, name) if name in spectral.__all__ else None
    if home[:1] != ["spectral"] or home[1] not in PACKAGES:
        return None
    try:
        own = getattr(importlib.import_module(".".join(home)), name, None)
    except ModuleNotFoundError:
        return None
    # what a module of ours has merely imported (os, torch.load, atomic_write, ...) is not its own
    ours = tuple(f"spectral.{package}" for package in PACKAGES)
    return own if str(getattr(own, "__module__", "")).startswith(ours) else None


def walked(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(where, what) of a configuration and of all that lies in it."""
    yield path, node
    if isinstance(node, Mapping):
        inside = [(f"{path}.{key}" if path else str(key), value) for key, value in node.items()]
    else:
        inside = [(f"{path}[{i}]", value) for i, value in enumerate(node if isinstance(node, list | tuple) else ())]
    for where, value in inside:
        yield from walked(value, where)


def targets(node: Any) -> Iterator[tuple[str, Any]]:
    """(where, what) of every `_target_` in a configuration."""
    return ((path, part["_target_"]) for path, part in walked(node) if isinstance(part, Mapping) and "_target_" in part)


def check_targets(config: Any) -> None:
    """Raise for the first `_target_` that `locate` refuses, or that stands where nothing is built."""
    for where, target in targets(config):
        locate(target)
        if where not in BUILT:
            raise ValueError(f"{where}._target_={target!r} is not allowed: nothing is built there; remove it.")


@dataclass(frozen=True)
class Target(Rule):
    """A node with a `_target_`, one of those that `rules` gives the settings of: of what it names."""

    rules: Callable[[Any], Fields | None]
    said: str

    def check(self, value: Any, where: str, sizes: Sizes | None = None) -> None:
        if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
            raise Mismatch(where, value, f"a mapping with the _target_ of {self.said}")
        rule = self.rules(locate(value["_target_"]))
        if rule is None:
            raise Mismatch(f"{where}._target_", value["_target_"], self.said)
        rule.check({key: item for key, item in value.items() if key != "_target_"}, where, sizes)

    def words(self, sizes: Sizes) -> str:
        return f"a mapping with the _target_ of {self.said}"
