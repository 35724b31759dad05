"""The weights of a checkpoint, put into a network whole or not at all: safetensors, sharded or not, and what torch.save wrote."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from spectral import arrays
from spectral.failures import first_line

STATES = ("state_dict", "model_state_dict", "model", "module", "net", "weights")  # where files keep a state dict
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, Lightning


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint: their names, and how they are read one by one; `under` is the key that they stand under."""

    names: tuple[str, ...]
    read: Callable[[], Iterator[tuple[str, Tensor]]]
    under: str = ""


def load_weights(network: nn.Module, path: str | Path, of: str = "the model") -> str:
    """Put the tensors of a checkpoint into a network, all of them and nothing else; returns what was loaded, in words.

    Errors: a file that holds more than tensors, names that the network has not or that are missing, other shapes, and dtypes in
    which the network could not hold what it is given.
    """
    weights, own = weights_of(Path(path)), network.state_dict()
    prefix = next((p for p in PREFIXES if _fits(weights.names, own, p)), "")
    names = {name: name.removeprefix(prefix) for name in weights.names}
    shared = {_memory(own[name]) for name in names.values() if name in own and own[name].numel()}
    missing = [name for name, tensor in own.items() if name not in names.values() and _memory(tensor) not in shared]
    unexpected = [name for name in names.values() if name not in own]
    if missing or unexpected:
        parts = [
            f"{said} {found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}"
            for said, found in (("lacks", missing), ("has, which the model has not,", unexpected))
            if found
        ]
        raise ValueError(
            f"{path} is no checkpoint of {of}: it {', and '.join(parts)}; give the weights of this very model."
        )
    dtypes: dict[str, None] = {}
    with torch.no_grad():
        for name, tensor in weights.read():
            into = own[names[name]]
            held, wanted = arrays.dtype_name(tensor.dtype), arrays.dtype_name(into.dtype)
            if tensor.shape != into.shape:
                raise ValueError(
                    f"{path} is no checkpoint of {of}: {names[name]} is {tuple(tensor.shape)}, and the model's is "
                    f"{tuple(into.shape)}; give the sizes that it was trained with (model.options)."
                )
            if torch.promote_types(tensor.dtype, into.dtype) != into.dtype or (
                into.is_floating_point() and not tensor.is_floating_point()
            ):
                raise ValueError(
                    f"{path} holds {names[name]} in {held}, which the model's {wanted} cannot hold without loss; return "
                    f"a model in {held}."
                )
            dtypes[held if held == wanted else f"{held} as {wanted}"] = None
            into.copy_(tensor)
    said = f"Weights: {len(names)} tensors of {path} ({', '.join(dtypes)})"
    said += f", under {weights.under!r}" if weights.under else ""
    return f"{said}, names without {prefix!r}." if prefix else f"{said}."


def _fits(names: tuple[str, ...], own: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether all names have the prefix, and are the model's without it and not with it."""
    bare = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    return len(bare) == len(names) > 0 and bare <= set(own) and not set(names) <= set(own)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """The same for tensors that are tied."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def weights_of(path: Path) -> Weights:
    """The tensors of a file, or of a folder of safetensors, sharded or not."""
    if path.is_dir():
        return _sharded(path)
    if not path.is_file():
        raise ValueError(
            f"model.checkpoint={path} does not exist; give a .safetensors or torch file, or a folder of shards."
        )
    if path.name.endswith(".index.json"):
        return _indexed(path)
    return _of_safetensors({path: None}) if path.suffix == ".safetensors" else _of_torch(path)


def _sharded(folder: Path) -> Weights:
    indices, files = sorted(folder.glob("*.safetensors.index.json")), sorted(folder.glob("*.safetensors"))
    if len(indices) > 1 or not (indices or files):
        raise ValueError(
            f"model.checkpoint={folder} holds {len(indices)} indices and {len(files)} files of safetensors; give a folder with "
            "one index, or with .safetensors files, or the file itself."
        )
    return _indexed(indices[0]) if indices else _of_safetensors(dict.fromkeys(files))


def _indexed(index: Path) -> Weights:
    """Of an index {"weight_map": {name: file}}: files that lie beside it."""
    try:
        where = json.loads(index.read_bytes())["weight_map"]
        shards: dict[Path, set[str] | None] = {}
        for name, file in where.items():
            if Path(file).name != file:
                raise ValueError(f"{file!r} does not lie beside it")
            shards[index.parent / file] = (shards.get(index.parent / file) or set()) | {name}
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"{index} is no index of safetensors ({first_line(problem)}); download it again.") from problem
    return _of_safetensors(shards)


def _of_safetensors(files: Mapping[Path, set[str] | None]) -> Weights:
    """Of several files, of each the names that an index gives (None: all)."""
    names: list[str] = []
    for file, wanted in files.items():
        try:
            with safetensors.safe_open(str(file), "pt") as opened:
                there = list(opened.keys())
        except (OSError, safetensors.SafetensorError) as problem:
            raise ValueError(
                f"{file} is no whole file of safetensors ({first_line(problem)}); give one that is."
            ) from problem
        if wanted is not None and (lost := sorted(wanted - set(there))):
            raise ValueError(f"{file} lacks {lost[0]}, which its index says is there; download it again.")
        names += there if wanted is None else sorted(wanted)
    if twice := [name for name, after in pairwise(sorted(names)) if name == after]:
        raise ValueError(f"{twice[0]} stands in two files of {next(iter(files)).parent}; give an index, or one file.")

    def read() -> Iterator[tuple[str, Tensor]]:
        for file, wanted in files.items():
            with safetensors.safe_open(str(file), "pt") as opened:
                for name in opened.keys() if wanted is None else sorted(wanted):
                    yield name, opened.get_tensor(name)

    return Weights(tuple(names), read)


def _of_torch(path: Path) -> Weights:
    """Of what torch.save wrote, unpickled as tensors alone."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as problem:
        raise ValueError(
            f"{path} holds more than tensors, or is no file of torch, and unpickling it would run what it says; save "
            "model.state_dict(), or safetensors."
        ) from problem
    under = ""
    if isinstance(held, Mapping) and not _is_state(held):
        under = next((key for key in STATES if _is_state(held.get(key))), "")
        held = held.get(under)
    if not _is_state(held):
        raise ValueError(
            f"{path} holds no state dict, neither itself nor under {', '.join(STATES)}; save model.state_dict()."
        )
    return Weights(tuple(held), lambda: iter(held.items()), under)


def _is_state(value: Any) -> bool:
    """Whether it is {name: tensor}, with one at least."""
    named = isinstance(value, Mapping) and len(value) > 0
    return named and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
