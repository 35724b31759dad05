"""What is kept of each batch from sweep to sweep, within a memory budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from spectral import arrays

KEEP = 0.25  # part of the free memory that kept linearisations may take


class Store:
    """What is kept of each batch from sweep to sweep, as far as `budget` bytes go, and only while the model is the same."""

    def __init__(self, budget: int | None = None) -> None:
        self.budget = (
            budget  # bytes; 0 keeps nothing; None: a quarter of the free memory, read when it is first asked for
        )
        self.used = 0
        self.version: Any = None
        self.entries: dict[Any, Any] = {}

    def get(self, key: Any, version: Callable[[], Any]) -> Any:
        """What was kept by this name, or None; `version` is asked for only if something is kept."""
        if self.entries and version() != self.version:
            self.clear()
        return self.entries.get(key, (None, 0))[0]

    def whole(self, device: torch.device) -> int:
        """Bytes of the budget."""
        if self.budget is None:
            self.budget = int(KEEP * arrays.available_memory(device))
        return self.budget

    def left(self, device: torch.device) -> int:
        """Bytes of the budget that are not taken."""
        return max(self.whole(device) - self.used, 0)

    def room(self, size: int, device: torch.device) -> bool:
        """Whether `size` more bytes fit."""
        return 0 < self.left(device) >= size

    def put(self, key: Any, value: Any, size: int, version: Callable[[], Any]) -> None:
        """Keep `value`, which takes `size` bytes and belongs to the model of this version."""
        if not self.entries:
            self.version = version()
        self.entries[key] = (value, size)
        self.used += size

    def free(self, key: Any) -> None:
        """Drop what was kept by this name, if anything was."""
        self.used -= self.entries.pop(key, (None, 0))[1]

    def clear(self) -> None:
        """Drop everything."""
        self.entries, self.used = {}, 0
