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

    @property
    def n(self) -> int:
        return sum(self.samples)
