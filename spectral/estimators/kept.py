"""One state on disk, replaced whole: for estimators whose vectors change in place (searches) or are few (sketches).

A state is a dict of numbers, strings, lists of numbers, numpy arrays, tensors and None. It is saved when the last save is a while
ago, and when SIGINT or SIGTERM ends the run; a save takes at most a twentieth of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral import checkpoint as files
from spectral import storage
from spectral.estimators import effort
from spectral.operators.base import Operator

FORMAT = "spectral.kept/1"
SAVE_SECONDS = 2.0  # between saves, at least
SHARE = 20.0  # times what the last save took

State = dict[str, Any]


class Kept:
    """Where a run stands on disk; without a path, nowhere. `state` is what an earlier session left, None without one."""

    def __init__(self, path: Any, op: Operator, settings: dict[str, Any]) -> None:
        """`settings` are all that the result depends on beside the operator.

        ValueError for a file that is damaged or of another operator, seed or setting.
        """
        self.path, self.op = None if path is None else Path(path), op
        self.identity = "" if path is None else files.fingerprint([op.identity(), storage.plain(settings)])
        self.state: State | None = None
        self.before = (0, 0.0, 0.0)  # products, epochs and seconds of earlier sessions
        self.begun, self.saved, self.took = (op.products, op.epochs, time.monotonic()), time.monotonic(), 0.0
        if self.path is not None and self.path.exists():
            packed, header = files.load_own(self.path, FORMAT, self.identity)
            self.state = _unpacked(packed, header["state"], op)
            products, epochs, seconds = header["spent"]
            self.before = (int(products), float(epochs), float(seconds))
        self.counted = self.before  # spent when the last step ended: a product that a signal cuts off is made again

    @property
    def spent(self) -> tuple[int, float, float]:
        """Products, epochs and seconds so far, earlier sessions included."""
        now = (self.op.products, self.op.epochs, time.monotonic())
        products, epochs, seconds = (b + n - s for b, n, s in zip(self.before, now, self.begun, strict=True))
        return int(products), epochs, seconds

    def stepped(self, state: State, end: bool = False) -> None:
        """A step was made, after which this is the state; saved if the last save is long ago, or if this is the `end`."""
        self.counted = self.spent
        if self.path is not None and (end or time.monotonic() - self.saved >= max(SAVE_SECONDS, SHARE * self.took)):
            self._save(state)

    def _save(self, state: State) -> None:
        begun = time.monotonic()
        packed, names = _packed(state)
        files.save_arrays(
            self.path, packed, {"format": FORMAT, "identity": self.identity, "state": names, "spent": self.counted}
        )
        self.saved = time.monotonic()
        self.took = self.saved - begun

    @contextmanager
    def guard(self, whole: Callable[[], State | None]) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM save what `whole` gives before they end the run; None: the last save stands."""
        with effort.stoppable(self.path is not None):
            try:
                yield
            except (KeyboardInterrupt, SystemExit):
                state = whole() if self.path is not None else None
                if state is not None:
                    self._save(state)
                raise


def _packed(state: State) -> tuple[dict[str, np.ndarray], State]:
    """(arrays, header): tensors as their bytes, since numpy has no bfloat16."""
    packed: dict[str, np.ndarray] = {}
    names: State = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            whole = value.detach().contiguous().cpu()
            packed[name] = whole.reshape(-1).view(torch.uint8).numpy()
            names[name] = {"shape": list(whole.shape), "dtype": str(whole.dtype).removeprefix("torch.")}
        elif isinstance(value, np.ndarray):
            packed[name], names[name] = value, {"shape": list(value.shape)}
        else:
            names[name] = value
    return packed, names


def _unpacked(packed: dict[str, np.ndarray], names: State, op: Operator) -> State:
    state: State = {}
    for name, value in names.items():
        if not isinstance(value, dict):
            state[name] = value
        elif "dtype" in value:
            made = torch.empty(value["shape"], dtype=getattr(torch, value["dtype"]))
            if made.numel():
                made.view(-1).view(torch.uint8).copy_(torch.from_numpy(packed[name]))
            state[name] = made.to(op.device)
        else:
            state[name] = packed[name]
    return state
