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


def leaves(tree: Any) -> Iterator[tuple[Place, Any]]:
    """(place, leaf) of everything, in order; an object is followed once, and what holds itself once on each path."""
    return ((place, leaf) for place, leaf, again in _walk(tree, (), (), {}) if not again)


def _walk(
    tree: Any, place: Place, above: tuple[int, ...], objects: dict[int, tuple[Place, Any]]
) -> Iterator[tuple[Place, Any, bool]]:
    """(place, leaf or what was followed before, whether it was); `objects` gathers where each was followed first."""
    parts = children(tree)
    again = parts is not None and (id(tree) in above or id(tree) in objects)
    if parts is None or again:
        yield place, tree, again
        return
    if _is_object(tree):
        objects[id(tree)] = place, tree
    for key, part in parts:
        yield from _walk(part, (*place, key), (*above, id(tree)), objects)


def _is_object(tree: Any) -> bool:
    """Whether it is itself at whatever place; a tuple, list or mapping is its parts."""
    return not isinstance(tree, Mapping | tuple | list)


def tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors of a tree, in order."""
    return [leaf for _, leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]


def mapped(function: Callable[[Place, Any], Any], tree: Any) -> Any:
    """The tree with function(place, leaf) for every leaf; parts in which nothing changes are not copied.

    An object that is reached twice, or from itself, is one object in the new tree as well.
    """
    objects: dict[int, tuple[Place, Any]] = {}
    met = list(_walk(tree, (), (), objects))
    new = {place: function(place, leaf) for place, leaf, again in met if not again}
    back: dict[Place, list[Place]] = {}  # where an object was met first -> where it was met again
    for place, leaf, again in met:
        if again and id(leaf) in objects:
            back.setdefault(objects[id(leaf)][0], []).append(place)
    changed: set[Place] = set()
    todo = [place for place, leaf, again in met if not again and new[place] is not leaf]
    while todo:
        place = todo.pop()
        for above in (place[:i] for i in range(len(place), -1, -1)):
            if above in changed:
                break
            changed.add(above)
            todo += back.get(above, ())
    return _with(tree, (), new, changed, {})


def _with(tree: Any, place: Place, new: Mapping[Place, Any], changed: set[Place], copies: dict[int, Any]) -> Any:
    """The part of a tree that lies at a place, with the `new` leaves; `copies` are those of its objects so far."""
    if place in new or place not in changed:
        return new.get(place, tree)
    if id(tree) in copies:
        return copies[id(tree)]
    if not _is_object(tree):
        parts = children(tree) or []
        return _rebuilt(tree, [(key, _with(part, (*place, key), new, changed, copies)) for key, part in parts])
    return _copied(tree, lambda key, part: _with(part, (*place, key), new, changed, copies), copies)


def _copied(tree: Any, function: Callable[[Any, Any], Any], copies: dict[int, Any]) -> Any:
    """An object of the same kind that holds function(key, part) for each part, which may lead back to it."""
    other = copy.copy(tree)
    if other is tree:  # its own __copy__
        other = object.__new__(type(tree))
        vars(other).update(vars(tree))
    copies[id(tree)] = other
    for key, part in children(tree) or []:
        object.__setattr__(other, key, function(key, part))  # frozen dataclasses too
    return other


def _rebuilt(tree: Any, parts: list[tuple[Any, Any]]) -> Any:
    """A tuple, list or mapping of the same kind that holds these parts."""
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
            other[key] = part
    except TypeError:  # a mapping that cannot be written to
        return dict(parts)
    return other


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """The tree with function(t) for every tensor t."""
    return mapped(lambda _, leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)


def repacked(tree: Any) -> Any:
    """The same leaves in containers of their own: what a user's function takes out of them or writes into them stays there."""
    return _repacked(tree, (), {})


def _repacked(tree: Any, above: tuple[int, ...], copies: dict[int, Any]) -> Any:
    if id(tree) in above:
        return tree
    if not isinstance(tree, MutableMapping | tuple | list):
        if not dataclasses.is_dataclass(tree) or isinstance(tree, type):
            return tree
        if id(tree) not in copies:
            _copied(tree, lambda _, part: _repacked(part, above, copies), copies)
        return copies[id(tree)]
    parts = children(tree) or []
    new = [(key, _repacked(part, (*above, id(tree)), copies)) for key, part in parts]
    if isinstance(tree, tuple) and all(a is b for (_, a), (_, b) in zip(parts, new, strict=True)):
        return tree  # nobody writes into it
    return _rebuilt(tree, new)


def replaced(tree: Any, parts: Mapping[Place, Any]) -> Any:
    """The tree with other leaves at some places."""
    return mapped(lambda place, leaf: parts.get(place, leaf), tree)


def named(place: Place) -> str:
    """A place as a user writes it: logits, 0.boxes."""
    return ".".join(map(str, place)) or "the output"
