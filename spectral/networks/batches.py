"""Data as batches: what they may be, which entries belong to single samples, and the random state that they are read under.

Legend: B samples in a batch. An entry belongs to the samples if its first axis has length B and `shared` does not name it.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from spectral import arrays
from spectral.checksum import checksum_of
from spectral.networks.trees import Place, leaves, mapped, replaced, tensors

SHOWN = 200  # characters of a value that stand in a fingerprint as they are
LABEL_KEYS = ("labels", "label", "y", "targets", "target")
# what a parameter that takes no input is called
TARGETS = (*LABEL_KEYS, "t", "gt", "y_true", "true", "tgt", "ground_truth")


# What data may be ----------------------------------------------------------------------------------------------------
def check_data(data: Any) -> None:
    """One clear sentence where `data` is not a re-iterable of batches."""
    inside = [part for part in data if isinstance(part, DataLoader | Dataset)] if isinstance(data, list | tuple) else []
    if inside:
        raise TypeError(
            f"data is a {type(data).__name__} that holds a {type(inside[0]).__name__}, but its entries must be batches; pass one."
        )
    if isinstance(data, torch.Tensor | np.ndarray | np.generic | Mapping | str | bytes):
        raise TypeError(
            f"data is one {type(data).__name__}, but it must be an iterable of batches; pass a list of batches, [data] for one."
        )
    if isinstance(data, tuple) and any(isinstance(part, torch.Tensor | np.ndarray) for part in data):
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


def warm_up(data: Any) -> None:
    """Start the workers that persist: their first pass draws one random number more than the later ones do."""
    if isinstance(data, DataLoader) and data.persistent_workers and data._iterator is None:
        iter(data)


def _halfway(data: Any) -> bool:
    """Whether a pass over a loader whose workers persist has begun and not ended."""
    if not (isinstance(data, DataLoader) and data.persistent_workers and data._iterator is not None):
        return False
    # that of a subclass may have none of these
    begun, received, sent = (getattr(data._iterator, name, 0) for name in ("_num_yielded", "_rcvd_idx", "_send_idx"))
    return bool(begun) and received < sent


def apart(data: Any) -> Any:
    """The data, or a loader of them with workers of its own where somebody is in the middle of a pass.

    torch has one iterator for a loader whose workers persist, which a sweep would leave at its end: the other pass would end.
    """
    if not _halfway(data):
        return data
    own = copy.copy(data)
    vars(own)["_iterator"] = None
    with random_state_kept(data):
        warm_up(own)
    return own


def rewind(data: Any) -> None:
    """After a pass of ours that may have stopped early, so that nobody takes it for one that goes on."""
    if _halfway(data):
        iter(data)


def placed(batch: Any, device: torch.device, cast: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The batch on a device, NumPy arrays as tensors, `cast` applied; the user's tensors keep their flags whatever is run."""

    def place(_: Place, leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf":
            leaf = arrays.to_torch(leaf)
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if leaf.is_nested:
            raise TypeError(
                "a batch holds a nested tensor, of which no entry has a place of its own; pass padded ones with a mask "
                "(torch.nested.to_padded_tensor), or let forward make the nested tensor."
            )
        if leaf.is_meta:
            raise TypeError("a batch holds a tensor on the device meta, which has no values; pass one that has.")
        if leaf.is_inference() and not torch.is_inference_mode_enabled():
            leaf = leaf.clone()  # no graph takes what was made under inference_mode
        moved = cast(leaf.detach().to(device))
        return moved.requires_grad_() if leaf.requires_grad else moved

    batch = mapped(place, batch)
    if not tensors(batch):
        raise TypeError(
            f"a batch is a {type(batch).__name__} that holds no tensor; pass tensors, tuples (x, y) or mappings of tensors."
        )
    return batch


def is_finite(batch: Any) -> bool:
    """Whether no tensor of a batch, or of any tree, holds NaN or infinity."""
    return all(bool(torch.isfinite(t).all()) for t in tensors(batch))


def fingerprint(batch: Any) -> str:
    """A hash of every entry of a batch's tensors and of all else in it that has a value."""
    others = ((place, leaf) for place, leaf in leaves(batch) if leaf is not None and not isinstance(leaf, torch.Tensor))
    return "; ".join(
        [checksum_of(*tensors(batch)), *(f"{place}: {text}" for place, leaf in others if (text := _text(leaf)))]
    )


def _text(leaf: Any) -> str:
    """The value of what is no tensor, a long one hashed; nothing of what is shown by its address, or not at all."""
    try:
        if isinstance(leaf, set | frozenset):  # in no order
            leaf = sorted(map(repr, leaf))
        shown = str if isinstance(leaf, bool | int | float | str) else repr
        text = shown(leaf.tolist() if isinstance(leaf, np.ndarray) else leaf)
    except Exception:  # of a class of the user's
        return ""
    if " at 0x" in text and not isinstance(leaf, str | bytes):
        return ""
    return text if len(text) <= SHOWN else hashlib.sha256(text.encode(errors="replace")).hexdigest()


def part(t: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows start, ..., stop - 1 of a tensor, of a sparse one too."""
    if t.layout == torch.strided:
        return t[start:stop]
    rows = t.to_sparse_coo().index_select(0, torch.arange(start, stop, device=t.device))
    return rows if t.is_sparse else rows.to_sparse(layout=t.layout)


# Samples -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Samples:
    """Which entries of a batch belong to its samples; `shared` names those that belong to none, by key or position."""

    shared: tuple[Any, ...] = ()

    def is_shared(self, place: Place) -> bool:
        return bool(place) and (place[0] in self.shared or any(isinstance(k, str) and k in self.shared for k in place))

    def first(self, batch: Any) -> torch.Tensor | None:
        """The tensor whose first axis counts the samples."""
        parts = ((place, leaf) for place, leaf in leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.ndim)
        return next((leaf for place, leaf in parts if not self.is_shared(place)), None)

    def size(self, batch: Any) -> int:
        """B; 0 where no tensor has an axis."""
        first = self.first(batch)
        return 0 if first is None else len(first)

    def check(self, batch: Any) -> None:
        """One sentence for a name in `shared` that the batch does not have."""
        places = [place for place, _ in leaves(batch)]
        for name in self.shared:
            if not any(Samples((name,)).is_shared(place) for place in places):
                there = ", ".join(dict.fromkeys(str(place[0]) for place in places if place)) or "none"
                raise ValueError(f"shared={name!r} names no entry of a batch; the keys or positions there are {there}.")

    def belongs(self, place: Place, leaf: Any, size: int) -> bool:
        tensor = isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and len(leaf) == size
        return tensor and not self.is_shared(place)

    def some(self, tree: Any, size: int, choose: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """The tree with `choose` applied to every entry that belongs to the `size` samples."""
        return mapped(lambda place, leaf: choose(leaf) if self.belongs(place, leaf, size) else leaf, tree)

    def rows(self, tree: Any, size: int, start: int, stop: int) -> Any:
        """Samples start, ..., stop - 1."""
        return self.some(tree, size, lambda t: part(t, start, stop))

    def apart(self, batch: Any, size: int) -> tuple[list[torch.Tensor], Callable[[Sequence[torch.Tensor]], Any]]:
        """The entries that belong to the samples, and the function that puts others in their places."""
        own = [(place, leaf) for place, leaf in leaves(batch) if self.belongs(place, leaf, size)]

        def rebuild(parts: Sequence[torch.Tensor]) -> Any:
            return replaced(batch, dict(zip((place for place, _ in own), parts, strict=True)))

        return [leaf for _, leaf in own], rebuild

    def signature(self, batch: Any) -> Any:
        """What batches that can be joined have in common; None if some part is not one entry a sample, or no plain value."""
        size, parts = self.size(batch), []
        for place, leaf in leaves(batch):
            if self.belongs(place, leaf, size) and leaf.layout == torch.strided:
                parts.append((place, leaf.shape[1:], leaf.dtype))
            elif leaf is None or isinstance(leaf, bool | int | float | str):
                parts.append((place, type(leaf), leaf))
            else:
                return None
        return tuple(parts)

    def joined(self, batches: list[Any]) -> Any:
        """Batches of one `signature` as one, in their order."""
        if len(batches) == 1:
            return batches[0]
        columns = zip(*(self.apart(batch, self.size(batch))[0] for batch in batches), strict=True)
        return self.apart(batches[0], self.size(batches[0]))[1]([torch.cat(parts) for parts in columns])


# What a sweep tells --------------------------------------------------------------------------------------------------
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


# Random states -------------------------------------------------------------------------------------------------------
def _generators(data: Any) -> list[torch.Generator]:
    """The private generators that a DataLoader and its sampler draw from."""
    owners = (data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return [generator for generator in dict.fromkeys(found) if isinstance(generator, torch.Generator)]


def random_state(data: Any) -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    apple = [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else []
    private = [generator.get_state() for generator in _generators(data)]
    legacy = np.random.get_state()  # noqa: NPY002 (the user's global state is what is kept)
    return random.getstate(), legacy, torch.get_rng_state(), cuda, private, apple


def set_random_state(data: Any, state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    torch.set_rng_state(state[2])
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])
    for apple in state[5]:
        torch.mps.set_rng_state(apple)
    for generator, private in zip(_generators(data), state[4], strict=True):
        generator.set_state(private)


@contextmanager
def random_state_kept(data: Any) -> Iterator[None]:
    """What is drawn inside, from global generators and those of the data, is drawn again afterwards, whatever ends it."""
    state = random_state(data)
    try:
        yield
    finally:
        set_random_state(data, state)


def same_random_state(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    """Whether nothing was drawn in between."""
    alike = one[0] == two[0] and one[1][2:] == two[1][2:] and bool((one[1][1] == two[1][1]).all())
    pairs = zip((one[2], *one[3], *one[4], *one[5]), (two[2], *two[3], *two[4], *two[5]), strict=False)
    return alike and len(one[3]) == len(two[3]) and all(torch.equal(a, b) for a, b in pairs)
