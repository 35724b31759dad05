"""What is written for people and is no code: the prose of a module lies beside it, in a YAML file of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def prose(module: str) -> Any:
    """The texts of a module, of which `module` is the `__file__`, as they stand in its YAML file."""
    return OmegaConf.to_container(OmegaConf.load(Path(module).with_suffix(".yaml")))
