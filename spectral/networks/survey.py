"""The first sweep: sizes of all batches, and whether the ranks of a group hold parts of one matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from spectral import arrays, distributed
from spectral.networks.batches import DatasetInfo, fingerprint, random_state, same_random_state
from spectral.networks.data_model import DataModel

NOTHING = "data holds no batches, or empty ones alone; pass at least one batch that holds samples."


def of_all_ranks(model: DataModel, look: Callable[[], DatasetInfo]) -> DatasetInfo:
    """What `look` finds on each rank, which the model knows afterwards; one sentence where the ranks do not fit together.

    One collective, a second one for more than a hundred batches.
    """
    if model.info:
        return model.info
    if distributed.world_size() == 1:
        return look()

    def told() -> tuple[DatasetInfo, dict[str, Any], str]:
        weights = model.checksum() if model.shards is None else ""  # else each rank's are other ones
        return replace(look(), signatures=[]), _built(model), weights

    infos, built, weights = zip(*distributed.gather(told), strict=True)
    _check_alike(model, infos, built, weights)
    model.info = replace(model.info, ranks=infos)
    if not any(part.samples for part in model.info.parts):
        raise ValueError(NOTHING)
    return model.info


def _built(model: DataModel) -> dict[str, Any]:
    """What must be the same on every rank, by the words for it."""
    return {
        "wrt": model.wrt,
        "statistics": model.statistics,
        "dtype": arrays.dtype_name(model.dtype),
        "product_dtype": arrays.dtype_name(model.compute_dtype),
        "parameters": {name: model.built[name][0] for name in model.names},
        "modules": [
            f"{name or 'the model'} is {type(module).__name__}" for name, module in model.model.named_modules()
        ],
    }


def _check_alike(model: DataModel, infos: Any, built: Any, weights: Any) -> None:
    """Every rank has built the same operator of the same weights; rank 0's is what others are held against."""
    check_built(built)
    shapes = {rank: info.feature_shape for rank, info in enumerate(infos) if info.feature_shape is not None}
    for rank, shape in shapes.items():
        if shape != shapes[min(shapes)]:
            raise ValueError(
                f"rank {rank} has inputs of shape {shape}, rank {min(shapes)} of {shapes[min(shapes)]}; pad or crop them."
            )
    check_weights(model, weights)


def check_weights(model: DataModel, hashes: Sequence[str]) -> None:
    """The weights of every rank are rank 0's; `hashes` are of each rank's, the same list on every rank."""
    rank = next((rank for rank, own in enumerate(hashes) if own != hashes[0]), None)
    if rank is None:
        return
    entries = distributed.gather(model.checksums)
    names = [name for name in {**entries[0], **entries[rank]} if entries[0].get(name) != entries[rank].get(name)]
    raise ValueError(
        f"rank {rank} has other weights than rank 0 ({_short(names)} differ), so that the sum would be of no matrix; give every "
        "rank rank 0's parameters and buffers (torch.distributed.broadcast) before the operator is built."
    )


def check_built(everyone: Sequence[dict[str, Any]]) -> None:
    """Every rank has built the same kind of operator: what each says of its own must be what rank 0 says."""
    for rank, built in enumerate(everyone):
        for word, value in built.items():
            first = everyone[0].get(word)
            if value != first and isinstance(value, list) and isinstance(first, list):  # what is the same says nothing
                value, first = [one for one in value if one not in first], [one for one in first if one not in value]
            if value != first:
                raise ValueError(
                    f"rank {rank} has built another operator than rank 0: {word}={_short(value)} instead of {_short(first)}; "
                    "build operators alike on every rank, each from its own samples."
                )


def _short(value: Any) -> str:
    """In a sentence."""
    text = ", ".join(map(str, value)) if isinstance(value, list | dict) else str(value)
    return text if len(text) < 120 else f"{text[:120]} ..."


def survey(model: DataModel) -> DatasetInfo:
    """The sizes of all batches of this rank, from one forward sweep."""
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
                first, mark = batch, fingerprint(batch)
            size, width = model.look(index, batch)
            samples.append(size)
            outputs.append(width)
            joins = model.statistics == "population" and model.shards is None
            signatures.append(model.samples.signature(batch) if joins else None)
            if model.wrt != "params":
                shape = _checked_shape(model, index, batch, shape)
        model.draws = not same_random_state(begin, random_state(model.data))
    model.loss.single = ()  # what later batches were held against
    if not samples and distributed.world_size() == 1:
        raise ValueError(NOTHING)
    if samples and fingerprint(first) != mark:
        raise ValueError(
            "batch 0 holds other values than when it was read: the data write later batches over it, and several are looked at "
            "together; let them give copies, such as batch.clone()."
        )
    model.info = DatasetInfo(samples, outputs, shape, fingerprints, signatures, sum(model.counts))
    return model.info


def _checked_shape(model: DataModel, index: int, batch: Any, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    x = model.inputs_of(batch)
    if x.dtype != model.compute_dtype:
        raise TypeError(
            f"{_variable(model)} are {x.dtype} but the model is {model.compute_dtype}; convert one of them."
        )
    if shape is not None and tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"wrt={model.wrt!r} needs {_variable(model)[4:]} of one shape, but batch {index} has {tuple(x.shape[1:])} after "
            f"{shape}; pad or crop them."
        )
    return tuple(x.shape[1:])


def _variable(model: DataModel) -> str:
    return "the inputs" if model.inner is None else f"the outputs of {model.inner}"
