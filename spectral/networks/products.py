"""How the products of a network's matrix are made: what `engine=`, `product_dtype=`, `memory=`, `preflight=` and `chunk=` say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from spectral.engine.linearize import ENGINES
from spectral.schema import SWITCH, choice, integer

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Products:
    """Checked before the model or the data are touched."""

    engine: str = "auto"
    dtype: torch.dtype | None = None  # that of the vectors, if None
    memory: Any = None  # as it was given
    preflight: bool = True
    chunk: int | None = None  # samples of a batch that are multiplied at a time; None leaves it to the free memory

    def __post_init__(self) -> None:
        choice(self.engine, "engine", ENGINES)
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(f"product_dtype={self.dtype!r} is no floating dtype; use torch.bfloat16, for example.")
        budget_bytes(self.memory)
        choice(self.preflight, "preflight", SWITCH)
        if self.chunk is not None:
            integer(self.chunk, "chunk", "number of samples (None: as many as fit)")


def budget_bytes(memory: Any) -> int | None:
    """Bytes that engines may keep between sweeps: a number of them, "512MiB", "2GiB", or None (a quarter of the free memory)."""
    if memory is None:
        return None
    if isinstance(memory, int | float) and not isinstance(memory, bool) and 0 <= memory < float("inf"):
        return int(memory)
    unit = memory[-3:] if isinstance(memory, str) else ""
    try:
        amount = float(memory[:-3]) if unit in UNITS else -1.0
    except ValueError:
        amount = -1.0
    if not 0 <= amount < float("inf"):
        raise ValueError(f"memory={memory!r} is no amount; use bytes, '512MiB', '2GiB', 0 to keep nothing, or None.")
    return int(amount * UNITS[unit])
