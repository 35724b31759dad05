"""Batches and sweeps: what data may be, and how a sweep leaves the model and every random state as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.data import Dataset, IterableDataset

from spectral import arrays


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, each module's own mode handed back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _generators(data: Any) -> list[torch.Generator]:
    """The private generators that a DataLoader and its sampler draw from."""
    owners = (data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return [generator for generator in dict.fromkeys(found) if isinstance(generator, torch.Generator)]


def random_state(data: Any) -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    private = [generator.get_state() for generator in _generators(data)]
    legacy = np.random.get_state()  # noqa: NPY002 (the user's global state is what is kept)
    return random.getstate(), legacy, torch.get_rng_state(), cuda, private


def set_random_state(data: Any, state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    torch.set_rng_state(state[2])
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])
    for generator, private in zip(_generators(data), state[4], strict=True):
        generator.set_state(private)


def check_data(data: Any) -> None:
    """One clear sentence where `data` is not a re-iterable of batches."""
    if isinstance(data, torch.Tensor | np.ndarray | Mapping | str):
        raise TypeError(
            f"data is one {type(data).__name__}, but it must be an iterable of batches; pass a list of batches, [data] for one."
        )
    if isinstance(data, tuple) and any(isinstance(part, torch.Tensor) for part in data):
        raise TypeError("data is a tuple of tensors, which may be meant as one batch (x, y); pass [(x, y)].")
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"data is a {type(data).__name__} of single samples, but it must give batches; pass DataLoader(data, batch_size=...)."
        )
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise TypeError(
            f"data is a {type(data).__name__}, but it must be an iterable of batches, such as a DataLoader."
        )
    if isinstance(data, Iterator):  # not `iter(data) is data`: iter() of a DataLoader draws from the global generator
        raise TypeError(
            f"data is a {type(data).__name__} that can be read only once, but every product is a sweep over the data; "
            "pass a list of batches or a DataLoader."
        )


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Without the fused inference path of nn.MultiheadAttention and TransformerEncoderLayer, which has no derivative."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def first_tensor(batch: Any) -> torch.Tensor | None:
    """The tensor whose first axis counts the samples."""
    if isinstance(batch, torch.Tensor):
        return batch
    return next((part for part in tensors(batch) if part.ndim > 0), None)


def tensors(batch: Any) -> list[torch.Tensor]:
    """The tensors of a batch, in order."""
    leaves = tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def is_finite(batch: Any) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors(batch))


def fingerprint(batch: Any) -> float:
    """A number that changes with the samples or their order, from up to about 1024 entries of each tensor."""
    return sum((arrays.sketch(t) + (t.shape[0] if t.ndim else 0) for t in tensors(batch)), 0.0)


def signature(batch: Any) -> Any:
    """What batches that can be joined have in common; None if some part is not one entry a sample, or no plain value."""
    leaves, tree = tree_flatten(dict(batch) if isinstance(batch, Mapping) else batch)
    first = first_tensor(batch)
    parts: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor) and leaf.ndim and first is not None and len(leaf) == len(first):
            parts.append((leaf.shape[1:], leaf.dtype))
        elif leaf is None or isinstance(leaf, bool | int | float | str):
            parts.append((type(leaf), leaf))
        else:
            return None
    return str(tree), tuple(parts)


def joined(batches: list[Any]) -> Any:
    """Batches of one `signature` as one, in their order."""
    if len(batches) == 1:
        return batches[0]
    flat = [tree_flatten(dict(batch) if isinstance(batch, Mapping) else batch) for batch in batches]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    whole = [torch.cat(parts) if isinstance(parts[0], torch.Tensor) else parts[0] for parts in columns]
    return tree_unflatten(whole, flat[0][1])
