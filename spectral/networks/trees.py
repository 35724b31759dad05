"""Tensors in whatever holds them: tuples, lists, mappings, dataclasses and plain objects, nested as they come.

A place is the path to a leaf: keys of mappings, names of fields and attributes, positions of tuples and lists.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

Place: TypeAlias = tuple[Any, ...]
PLAIN = (str, bytes, bool, int, float, complex, type(None), type, ModuleType, nn.Module, np.ndarray, np.generic, torch.Size,
         torch.dtype, torch.device, torch.Generator, FunctionType, BuiltinFunctionType, MethodType, partial)  # fmt: skip


def children(tree: Any) -> list[tuple[Any, Any]] | None:
    """(key, part) of what holds other things; None for a leaf."""
    if isinstance(tree, (torch.Tensor, *PLAIN)):
        return None
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, tuple | list):
        return list(enumerate(tree))
    if dataclasses.is_dataclass(tree):
        return [(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree) if hasattr(tree, f.name)]
    return list(vars(tree).items()) if hasattr(tree, "__dict__") else None


def leaves(tree: Any, place: Place = (), above: tuple[int, ...] = ()) -> Iterator[tuple[Place, Any]]:
    """(place, leaf) of everything, in order; what holds itself is followed once."""
    parts = children(tree)
    if parts is None or id(tree) in above:
        yield place, tree
        return
    for key, part in parts:
        yield from leaves(part, (*place, key), (*above, id(tree)))


def tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors of a tree, in order."""
    return [leaf for _, leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]


def mapped(function: Callable[[Place, Any], Any], tree: Any, place: Place = (), above: tuple[int, ...] = ()) -> Any:
    """The tree with function(place, leaf) for every leaf; parts in which nothing changes are not copied."""
    parts = children(tree)
    if parts is None or id(tree) in above:
        return function(place, tree)
    new = [(key, mapped(function, part, (*place, key), (*above, id(tree)))) for key, part in parts]
    if all(a is b for (_, a), (_, b) in zip(parts, new, strict=True)):
        return tree
    return _rebuilt(tree, new)


def _rebuilt(tree: Any, parts: list[tuple[Any, Any]]) -> Any:
    """A tree of the same kind that holds these parts."""
    if isinstance(tree, tuple):
        values, new = [part for _, part in parts], type(tree).__new__
        if isinstance(new, BuiltinFunctionType) and new is not tuple.__new__:  # torch.return_types
            return type(tree)(values)
        some = tuple.__new__(type(tree), values)  # its own __new__ may take anything
        vars(some).update(vars(tree)) if hasattr(tree, "__dict__") else None
        return some
    try:
        other = copy.copy(tree)
        if isinstance(tree, list):
            other[:] = [part for _, part in parts]
            return other
        for key, part in parts:
            if isinstance(tree, Mapping):
                other[key] = part
            else:
                object.__setattr__(other, key, part)  # frozen dataclasses too
    except TypeError:  # a mapping that cannot be written to
        return dict(parts)
    return other


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """The tree with function(t) for every tensor t."""
    return mapped(lambda _, leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)


def repacked(tree: Any, above: tuple[int, ...] = ()) -> Any:
    """The same leaves in containers of their own: what a user's function takes out of them or writes into them stays there."""
    if id(tree) in above or not (isinstance(tree, MutableMapping | tuple | list) or dataclasses.is_dataclass(tree)):
        return tree
    parts = children(tree) or []
    new = [(key, repacked(part, (*above, id(tree)))) for key, part in parts]
    if isinstance(tree, tuple) and all(a is b for (_, a), (_, b) in zip(parts, new, strict=True)):
        return tree  # nobody writes into it
    return _rebuilt(tree, new)


def replaced(tree: Any, parts: Mapping[Place, Any]) -> Any:
    """The tree with other leaves at some places."""
    return mapped(lambda place, leaf: parts.get(place, leaf), tree)


def named(place: Place) -> str:
    """A place as a user writes it: logits, 0.boxes."""
    return ".".join(map(str, place)) or "the output"
