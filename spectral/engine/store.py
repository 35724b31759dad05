"""What is kept of each batch from sweep to sweep, within a memory budget that several operators may share."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from spectral import arrays

KEEP = 0.25  # part of the free memory that kept linearisations may take
PATIENCE = 3  # waiting for so many products costs about what recording once too often would


class Store:
    """What is kept of each batch from sweep to sweep, as far as `budget` bytes go, and only while the model is the same.

    Stores of one `family` (the blocks of a matrix) have one budget together. Where it is full, a store that is used alone takes
    the room of the others after PATIENCE sweeps: blocks that multiply one after another have all of it, those that multiply in
    turns do not record anew at each turn.
    """

    def __init__(self, budget: int | None = None, family: weakref.WeakSet[Store] | None = None) -> None:
        """`budget`: bytes; 0 keeps nothing; None is a quarter of the free memory, read when it is first asked for."""
        self.budget, self.used = budget, 0
        self.version: Any = None
        self.entries: dict[Any, Any] = {}
        self.family = weakref.WeakSet[Store]() if family is None else family
        self.family.add(self)
        self.visits: Counter[Any] = Counter()  # of each batch since another of the family was asked
        self.latest: Any = None  # the key that was asked for

    @property
    def others(self) -> weakref.WeakSet[Store]:
        return self.family - {self}

    def get(self, key: Any, version: Callable[[], Any]) -> Any:
        """What was kept by this name, or None; `version` is asked for only if something is kept."""
        for other in self.others:
            other.visits.clear()
        self.latest = key
        self.visits[key] += 1
        if self.entries and version() != self.version:
            self.clear()
        return self.entries.get(key, (None, 0))[0]

    def whole(self, device: torch.device) -> int:
        """Bytes of the budget."""
        if self.budget is None:
            budget = int(KEEP * arrays.available_memory(device))
            for store in self.family:
                store.budget = budget if store.budget is None else store.budget
        return self.budget or 0

    def left(self, device: torch.device) -> int:
        """Bytes of the budget that are not taken."""
        return max(self.whole(device) - sum(store.used for store in self.family), 0)

    def room(self, size: int, device: torch.device) -> bool:
        """Whether `size` more bytes fit, at last without what the others keep."""
        if 0 < self.left(device) >= size:
            return True
        if not self.others or self.used + size > self.whole(device) or self.visits[self.latest] <= PATIENCE:
            return False
        for other in self.others:
            other.clear()
        return True

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
