"""The first sweep: sizes of all batches."""

from __future__ import annotations

from typing import Any

from spectral.networks.batches import random_state, same_random_state
from spectral.networks.data_model import DataModel
from spectral.networks.dataset import DatasetInfo


def survey(model: DataModel) -> DatasetInfo:
    """The sizes of all batches, from one forward sweep; the model knows them afterwards, and is not asked again."""
    if model.surveyed:
        return model.info
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
    model.info = DatasetInfo(samples, outputs, shape, fingerprints, signatures)
    return model.info


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
