"""The weights of a checkpoint, put into a network whole or not at all: safetensors, sharded or not, and what torch.save wrote."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral import arrays
from spectral.networks.weights import Files
from spectral.persist import DAMAGE

STATES = ("state_dict", "model_state_dict", "model", "module", "net", "weights")  # where files keep a state dict
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, Lightning


def load_weights(network: nn.Module, path: str | Path, of: str = "the model") -> str:
    """Put the tensors of a checkpoint into a network, all of them and nothing else; returns what was loaded, in words.

    Errors: a file that holds more than tensors, names that the network has not or that are missing, other shapes, and dtypes in
    which the network could not hold what it is given.
    """
    weights, under = weights_of(Path(path))
    own = network.state_dict()
    prefix = next((p for p in PREFIXES if _fits(weights, own, p)), "")
    names = {name: name.removeprefix(prefix) for name in weights}
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
        for name, tensor in weights.items():
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
    said += f", under {under!r}" if under else ""
    return f"{said}, names without {prefix!r}." if prefix else f"{said}."


def _fits(names: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether all names have the prefix, and are the model's without it and not with it."""
    given = set(names)
    bare = {name.removeprefix(prefix) for name in given if name.startswith(prefix)}
    return len(bare) == len(given) > 0 and bare <= set(own) and not given <= set(own)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """The same for tensors that are tied."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def weights_of(path: Path) -> tuple[Mapping[str, Tensor], str]:
    """(the tensors of a file, or of a folder of safetensors, sharded or not, each read when it is asked for; the key that they
    stand under in the file)."""
    if not path.exists():
        raise ValueError(
            f"model.checkpoint={path} does not exist; give a .safetensors or torch file, or a folder of shards."
        )
    if path.is_dir() or path.name.endswith((".safetensors", ".index.json")):
        return Files(path), ""
    return _of_torch(path)


def _of_torch(path: Path) -> tuple[Mapping[str, Tensor], str]:
    """Of what torch.save wrote, unpickled as tensors alone."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (*DAMAGE, pickle.UnpicklingError, AssertionError) as problem:
        raise ValueError(
            f"{path} holds more than tensors, or is no file of torch, and unpickling it would run what it says; save "
            "model.state_dict(), or safetensors."
        ) from problem
    under, given = "", held
    if isinstance(held, Mapping) and not _is_state(held):
        under = next((key for key in STATES if _is_state(held.get(key))), "")
        held = held.get(under)
    if not _is_state(held):
        keys = f"; it has {', '.join(map(str, list(given)[:8]))}" if isinstance(given, Mapping) else ""
        raise ValueError(
            f"{path} holds no state dict, neither itself nor under {', '.join(STATES)}{keys}; save model.state_dict()."
        )
    return held, under


def _is_state(value: Any) -> bool:
    """Whether it is {name: tensor}, with one at least."""
    named = isinstance(value, Mapping) and len(value) > 0
    return named and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
