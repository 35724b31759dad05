"""What a sweep over the data tells: the facts that it finds, and the outputs that it may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


class NotFinite(ValueError):
    """The outputs of a batch, or its loss, hold NaN or infinity."""

    def __init__(self, index: int, batch: Any, what: str, function: Callable[..., torch.Tensor]) -> None:
        super().__init__(f"{what} NaN or infinity in batch {index}")
        self.index, self.batch, self.what, self.function = index, batch, what, function


@dataclass(frozen=True)
class DatasetInfo:
    """What one forward sweep tells of the data: samples and outputs per batch, a hash to recognise each, and its form."""

    samples: list[int]
    outputs: list[int]
    feature_shape: tuple[int, ...] | None
    fingerprints: list[str] = field(repr=False)
    signatures: list[Any] = field(repr=False)
    counted: float = 0.0  # targets of the loss
    ranks: tuple[DatasetInfo, ...] = field(default=(), repr=False)  # what each rank holds; empty on one process

    @property
    def n(self) -> int:
        return sum(self.samples)

    @property
    def parts(self) -> tuple[DatasetInfo, ...]:
        """What each rank holds, in rank order."""
        return self.ranks or (self,)

    @property
    def variable(self) -> tuple[int, ...]:
        """The shape of what is differentiated of a sample, if it is not the parameters, by the first rank that has one."""
        return next((part.feature_shape for part in self.parts if part.feature_shape is not None), ())

    @property
    def busiest(self) -> DatasetInfo:
        """What the rank with the most samples holds, for which all others wait."""
        return max(self.parts, key=lambda part: part.n)

    @property
    def leader(self) -> int:
        """The first rank that holds samples."""
        return next(rank for rank, part in enumerate(self.parts) if part.samples)
