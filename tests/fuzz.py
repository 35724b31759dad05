"""Random damage that a checksum does not show: what a hand, another version or another program may have written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

JUNK: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 2**40, 2**70, 10**400, -0.5, 0.5, 1.5, 1e-300, 1e300, float("inf"), float("nan"),
    "", "x", "float64", "../../x", "\n", "=1+1", [], [1], [[]], [None], {}, {"a": 1}, {"shape": [10**12]}, [[[[]]]],
)  # fmt: skip
DTYPES = ("float32", "float64", "int64", "int32", "uint8", "bool", ">f8", "complex128", "U4", "float16", "object")


def damaged(rng: np.random.Generator, arrays: dict[str, Any], header: Any) -> tuple[dict[str, Any], Any, str]:
    """(arrays, header, what was done): a copy with one thing changed at random."""
    arrays, header = dict(arrays), copy.deepcopy(header)
    if arrays and rng.random() < 0.5:
        name = str(rng.choice(sorted(arrays)))
        how = HOWS[rng.integers(len(HOWS))]
        return *_array(rng, arrays, name, how, header), f"{name} {how}"
    known = list(places(header))
    path = known[rng.integers(len(known))]
    how = ("junk", "drop", "add", "moved", "longer", "shorter")[rng.integers(6)]
    return arrays, changed(rng, header, path, how), f"{'.'.join(map(str, path))} {how}"


HOWS = (
    "drop", "rename", "extra", "dtype", "flat", "rows", "short", "long", "empty", "scalar", "nan", "inf", "negated", "scaled",
    "zeroed", "one entry", "swapped", "transposed", "tiny", "huge",
)  # fmt: skip


def _array(
    rng: np.random.Generator, arrays: dict[str, Any], name: str, how: str, header: Any
) -> tuple[dict[str, Any], Any]:
    array = np.array(arrays[name])
    floating = array.dtype.kind == "f"
    if how == "drop":
        del arrays[name]
        return arrays, header
    if how == "rename":
        arrays[name + "x"] = arrays.pop(name)
        return arrays, header
    if how == "extra":
        arrays["extra"] = array
        return arrays, header
    if how == "swapped":
        other = str(rng.choice(sorted(arrays)))
        arrays[name], arrays[other] = arrays[other], arrays[name]
        return arrays, header
    if how == "dtype":
        with np.errstate(all="ignore"):
            array = array.astype(str(rng.choice(DTYPES)))
    elif how == "flat":
        array = array.reshape(-1)
    elif how == "rows":
        array = array[None]
    elif how == "short":
        array = array[:-1] if array.ndim else array
    elif how == "long":
        array = np.concatenate([array, array[-1:]]) if array.ndim else array
    elif how == "empty":
        array = array[:0] if array.ndim else array
    elif how == "scalar":
        array = np.array(1.0)
    elif how == "transposed":
        array = np.ascontiguousarray(array.T)
    elif how in ("nan", "inf") and floating and array.size:
        array.reshape(-1)[rng.integers(array.size)] = np.nan if how == "nan" else np.inf
    elif how == "negated":
        array = -array if floating else array[::-1].copy()
    elif how in ("scaled", "tiny", "huge") and floating:
        array = array * {"scaled": 1.001, "tiny": 1e-200, "huge": 1e200}[how]
    elif how == "zeroed":
        array = np.zeros_like(array)
    elif array.size:  # one entry
        place = rng.integers(array.size)
        flat = array.reshape(-1)
        flat[place] = flat[place] + 1 if not floating else flat[place] * 1.5 + 1e-3
        array = flat.reshape(array.shape)
    arrays[name] = array
    return arrays, header


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all nodes of plain data but the root."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(rng: np.random.Generator, tree: Any, path: tuple[Any, ...], how: str) -> Any:
    """The tree with the node at `path` changed."""
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    key, value = path[-1], parent[path[-1]]
    if how == "drop":
        del parent[key]
    elif how == "add" and isinstance(value, dict):
        value["extra"] = JUNK[rng.integers(len(JUNK))]
    elif how == "add" and isinstance(value, list):
        value.append(JUNK[rng.integers(len(JUNK))])
    elif how == "moved" and isinstance(value, int | float) and not isinstance(value, bool):
        parent[key] = value + type(value)(rng.choice([-1, 1, 1000])) if rng.random() < 0.7 else -value
    elif how == "longer" and isinstance(value, list) and value:
        value.append(copy.deepcopy(value[-1]))
    elif how == "shorter" and isinstance(value, list) and value:
        value.pop()
    else:
        parent[key] = copy.deepcopy(JUNK[rng.integers(len(JUNK))])
    return tree
