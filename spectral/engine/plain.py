"""What an engine is, and the plainest one: every product by its definition. Read this file first, and the others if need be.

The matrix of a data set is a sum over batches, and each batch is a linear map v -> w. An engine is given that map and gives
back what multiplies by it. How it does that, and what it keeps for the next sweep, never changes the matrix:

    engine.multiplier(work).add(V, W, new)      # W (b, m) += the products with the rows of V (b, n)

`PlainEngine` is the reference: `autotune.AutoEngine` must give what it gives, to rounding.

Legend: n columns and m rows of a batch's linear map, b vectors of a block, one a row. A row lies in one piece; rows may lie
apart, so that a batch's part of a block is no copy. Columns are for users: operators turn them into rows once, at the border.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from spectral.engine.store import Store
from spectral.engine.trace import Linear, Pieces, add_pieces
from spectral.threads import instead

CPU = torch.device("cpu")


@dataclass
class Maps:
    """One batch, linearised in one way: v (n,) -> the pieces of w (m,), such as the gradients of the parameters."""

    product: Linear
    check: Callable[[torch.Tensor, Pieces], float]  # a product's error; `linearize.Wrong` if it is no rounding
    bytes: int = 0  # that keeping it takes
    allowed: float = 1e-9  # how far a program's products may be off by rounding
    lin: Any = None  # what makes them, if it takes `room` to write a product into

    def product_in(self, v: torch.Tensor, room: torch.Tensor | None) -> Pieces:
        """The product, in `room` where there is some and `lin` takes it."""
        if room is None or self.lin is None:
            return self.product(v)
        with instead(self.lin, room=room):
            return self.product(v)


@dataclass(frozen=True)
class Workload:
    """One batch, or several as one, the kind of product that it is multiplied by, and what a choice is made by."""

    kind: str
    index: int  # of the first batch
    linearize: Callable[[str], Maps]  # by way
    samples: int = 1
    groups: int = 1  # batches of a sweep, those that are joined counted once
    expected: int = 0  # products that were announced
    version: Callable[[], Any] = int  # of the model: what was kept of another one is stale
    own: Callable[[], set[int]] = set  # storages that are there anyway
    graph: int = 0  # bytes that recording is expected to hold
    device: torch.device = CPU
    symmetric: bool = False  # <u, A v> = <v, A u> of this batch's A
    forget: Callable[[], Any] = tuple  # what a way's tests keep of a product until the next

    @property
    def key(self) -> tuple[str, int]:
        """By which what is kept of it is known."""
        return self.kind, self.index

    @property
    def leads(self) -> bool:
        """Whether engines are chosen on this batch."""
        return self.index == 0


class Multiplier(Protocol):
    """A batch, ready to be multiplied by the vectors of one sweep."""

    def add(self, V: torch.Tensor, W: torch.Tensor, new: bool) -> None:
        """W (b, m) += the products with the rows of V (b, n), or W = these if `new`."""


class Engine(Protocol):
    """What makes multipliers."""

    store: Store  # what is kept between sweeps
    recording: int  # bytes that recording a program has held, those of the store among them, at most

    def multiplier(self, work: Workload) -> Multiplier:
        """Of one batch in one sweep."""

    def tests(self, kind: str | None = None) -> bool:
        """Whether the product of this kind that is being made will be tested; without a kind, whether any to come may be."""

    @property
    def settled(self) -> bool:
        """Whether nothing is tried any more, so that a product comes out to the same bits again."""

    def describe(self, kind: str) -> dict[str, Any]:
        """What multiplies, and why, as plain JSON; `kind` is that of the latest product."""


@dataclass(frozen=True)
class PlainMultiplier:
    """One vector after the other through the linear map."""

    product: Linear

    def add(self, V: torch.Tensor, W: torch.Tensor, new: bool) -> None:
        for v, w in zip(V, W, strict=True):
            add_pieces(w, list(self.product(v)), new)


@dataclass
class PlainEngine:
    """Every product by its definition: nothing is kept, recorded, timed, tested or chosen."""

    way: str = "fresh"  # of `linearize.WAYS`
    store: Store = field(default_factory=lambda: Store(0))
    settled: bool = True
    recording: int = 0

    def multiplier(self, work: Workload) -> PlainMultiplier:
        return PlainMultiplier(work.linearize(self.way).product)

    def tests(self, kind: str | None = None) -> bool:
        return False

    def describe(self, kind: str) -> dict[str, Any]:
        return {"engine": self.way, "reason": "each product by its definition"}
