"""One state on disk, replaced whole: for estimators whose vectors change in place (searches) or are few (sketches).

A state is a dict of numbers, strings, lists of numbers, numpy arrays, tensors and None. It is saved when the last save is a while
ago, and when SIGINT or SIGTERM ends the run; a save takes at most a twentieth of the time. What is read is held against the rule
of its estimator, and `prove` repeats one product of the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral import persist, storage
from spectral.estimators import proof
from spectral.estimators.budget import stoppable
from spectral.operators.operator import Operator
from spectral.schema import FLOATS, Fields, Items, Number, Plain, Row, Rule, Same, Text

FORMAT = "spectral.kept/2"
SAVE_SECONDS = 2.0  # between saves, at least
SHARE = 20.0  # times what the last save took

State = dict[str, Any]
COUNT, POSITIVE = Number(True, least=0), Number(least=0)
FILE = Fields(
    {
        "format": Same(FORMAT),
        "identity": Text(),
        "state": Fields(others=Plain()),
        "spent": Row(COUNT, POSITIVE, POSITIVE),
    }
)
PACKED = Fields({"shape": Items(COUNT, most=4)}, {"dtype": Text(*FLOATS)})


class Kept:
    """Where a run stands on disk; without a path, nowhere. `state` is what an earlier session left, None without one."""

    def __init__(
        self, path: Any, op: Operator, settings: dict[str, Any], rule: Rule | None = None, **sizes: Any
    ) -> None:
        """`settings` are all that the result depends on beside the operator; `rule` with its `sizes` is what a state must be.

        ValueError for a file that is damaged or of another operator, seed or setting.
        """
        self.path, self.op = None if path is None else persist.claim(path), op
        self.identity = "" if path is None else persist.fingerprint([op.identity(), storage.plain(settings)])
        self.state: State | None = None
        self.before = (0, 0.0, 0.0)  # products, epochs and seconds of earlier sessions
        if self.path is not None and self.path.exists():
            packed, header = persist.load_own(self.path, FORMAT, self.identity)
            persist.check(self.path, header, FILE, "")
            self.state = _unpacked(self.path, packed, header["state"], op)
            persist.check(self.path, self.state, rule or Fields(others=Plain()), "", dtype=dtype_name(op), **sizes)
            products, epochs, seconds = header["spent"]
            self.before = (int(products), float(epochs), float(seconds))
        self._begin()
        self.saved, self.took = time.monotonic(), 0.0

    def _begin(self) -> None:
        """Count from here."""
        self.begun = (self.op.products, self.op.epochs, time.monotonic())
        self.counted = self.before  # spent when the last step ended: a product that a signal cuts off is made again

    def prove(self, x: torch.Tensor, expected: torch.Tensor | Callable[[torch.Tensor], float], **options: Any) -> None:
        """Repeat the product of x that the state knows, before anything else is multiplied; see `proof.repeat`."""
        differs = proof.away(expected) if isinstance(expected, torch.Tensor) else expected
        proof.repeat(options.pop("op", self.op), self.path, x, differs, **options)
        self._begin()

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
        header = {"format": FORMAT, "identity": self.identity, "state": names, "spent": self.counted}
        with persist.forgiving(self.path):
            persist.save_arrays(self.path, packed, header)
        self.saved = time.monotonic()
        self.took = self.saved - begun

    @contextmanager
    def guard(self, whole: Callable[[], State | None]) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM save what `whole` gives before they end the run; None: the last save stands."""
        with stoppable(self.path is not None):
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


def _unpacked(path: Path, packed: dict[str, np.ndarray], names: State, op: Operator) -> State:
    """The inverse of `_packed`; what an array says of its size is held against what is there before it is made."""
    state: State = {}
    for name, value in names.items():
        if not isinstance(value, dict):
            state[name] = value
            continue
        persist.check(path, value, PACKED, name)
        content = packed.pop(name, None)
        dtype = getattr(torch, value["dtype"]) if "dtype" in value else None
        sized = content is not None and (
            content.shape == tuple(value["shape"])
            if dtype is None
            else content.dtype == np.uint8 and content.shape == (math.prod(value["shape"]) * dtype.itemsize,)
        )
        if content is None or not sized:
            raise ValueError(f"{path} is damaged: {name} is not of the size that it says; delete it and run again.")
        if dtype is None:
            state[name] = content
            continue
        made = torch.empty(value["shape"], dtype=dtype)
        if made.numel():
            made.view(-1).view(torch.uint8).copy_(torch.from_numpy(content))
        state[name] = made.to(op.device)
    if packed:
        raise ValueError(f"{path} is damaged: it holds {', '.join(sorted(packed))}, which nothing needs; delete it.")
    return state


def dtype_name(op: Operator) -> str:
    """The dtype of an operator as rules name it."""
    return str(op.dtype).removeprefix("torch.")
