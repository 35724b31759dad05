"""The first sweep: sizes of all batches, and what forward does to its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from spectral.networks.batches import random_state, same_random_state
from spectral.networks.trees import tensors

if TYPE_CHECKING:
    from spectral.networks.data_model import DataModel


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


def surveyed(model: DataModel) -> DatasetInfo:
    """The sizes of all batches, from one forward sweep."""
    samples: list[int] = []
    outputs: list[int] = []
    fingerprints: list[str] = []
    signatures: list[Any] = []
    shape: tuple[int, ...] | None = None
    with model.sweep(fingerprints) as batches:
        begin = random_state(model.data)
        for index, batch in batches:
            if index == 0:
                model.samples.check(batch)
            size, width = model.look(index, batch)
            samples.append(size)
            outputs.append(width)
            signatures.append(model.samples.signature(batch) if model.statistics == "population" else None)
            if model.wrt == "inputs":
                shape = _checked_shape(model, index, batch, shape)
        model.draws = not same_random_state(begin, random_state(model.data))
    if not samples:
        raise ValueError("data holds no batches, or empty ones alone; pass at least one batch that holds samples.")
    return DatasetInfo(samples, outputs, shape, fingerprints, signatures)


def guarded(model: DataModel, index: int, batch: Any, function: Callable[..., Any]) -> Any:
    """The function's value with all parameters detached, so that no graph is kept that the user's code does not ask for.

    The first batch runs on copies of them, which show whether forward writes to its parameters.
    """
    own = model.values, model.rest, model.frozen
    every = {**model.rest, **model.values}
    if index == 0:
        every = {name: value.clone() for name, value in every.items()}
    model.values = {name: every.pop(name) for name in model.names}
    model.rest = model.frozen = every
    try:
        z = function(*model.primals(batch))
        copies = {**model.rest, **model.values}
    except RuntimeError as problem:
        if model.product_dtype is not None:
            words = str(problem).strip().splitlines()[0]
            raise TypeError(
                f"the model does not run in product_dtype={model.product_dtype} ({words}); leave product_dtype= out."
            ) from problem
        kinds = {t.dtype for t in tensors(batch) if t.is_floating_point()} - {model.compute_dtype, *model.kinds}
        if not kinds:
            raise
        listed = " and ".join(sorted(map(str, kinds)))
        raise TypeError(
            f"batch {index} holds {listed}, but the model is {model.compute_dtype}; convert one of them."
        ) from problem
    finally:
        model.values, model.rest, model.frozen = own
    if index == 0:
        for name, value in {**model.rest, **model.values}.items():
            if not _same(copies[name], value):
                raise ValueError(
                    f"forward writes to the parameter {name}, so that the outputs are no function of it; let forward compute "
                    "from it without changing it (or give the changed values to the model before)."
                )
    return z


def _checked_shape(model: DataModel, index: int, batch: Any, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    x = model.inputs_of(batch)
    if x.dtype != model.compute_dtype:
        raise TypeError(f"the inputs are {x.dtype} but the model is {model.compute_dtype}; convert one of them.")
    if shape is not None and tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"wrt='inputs' needs inputs of one shape, but batch {index} has {tuple(x.shape[1:])} after {shape}; pad or "
            "crop them."
        )
    return tuple(x.shape[1:])


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal entry by entry; NaN equals NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
