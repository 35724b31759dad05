"""The weight matrices of a network, a layer at a time: of a model, of a mapping of tensors, or of safetensors files.

A layer is read when its turn comes and forgotten before the next, so that files may be larger than memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

# What the name of a module's class, or of one it derives from, says it is: WeightWatcher's kinds in WeightWatcher's order, and
# "conv" for convolutions that it does not know
KINDS = ("linear", "conv1d", "conv2d", "embedding", "norm", "conv")
BY_DIMENSIONS = {2: "dense", 4: "conv2d"}  # all that a file tells of a kind


class Layer(NamedTuple):
    """A weight that has not been read yet: its number, its full name, its kind ("" where only its shape tells), how it is read.

    `reason` says why it is no layer of its own, "" where it is one.
    """

    number: int
    parameter: str
    kind: str
    read: Callable[[], Tensor]
    reason: str = ""

    @property
    def longname(self) -> str:
        """The module's name, or the parameter's where it is not called "weight"."""
        return self.parameter.removesuffix(".weight")


def layers_of(source: Any) -> Iterator[Layer]:
    """The layers of a model, a mapping of names to tensors, or a path, in order; errors come before the first is read."""
    if isinstance(source, nn.Module):
        return _of_model(source)
    if isinstance(source, str | Path):
        return _of_tensors(Files(Path(source)))
    if isinstance(source, Mapping):
        if names := [name for name in source if not isinstance(name, str)]:
            raise TypeError(
                f"the mapping has the key {names[0]!r}; pass one of names to tensors, such as a state_dict."
            )
        return _of_tensors(source)
    raise TypeError(
        f"model is of type {type(source).__name__}; pass a torch module, a mapping of names to tensors (a state_dict), a "
        ".safetensors file, or a folder that holds one or several."
    )


def _of_model(model: nn.Module) -> Iterator[Layer]:
    """`weight` of each module, and of modules without one their own parameters of two dimensions or more."""
    seen: dict[int, str] = {}
    for number, (path, module) in enumerate(model.named_modules()):
        if "parametrizations" in path.split("."):
            continue  # what a `weight` is computed from
        own = dict(module.named_parameters(recurse=False))
        whole = isinstance(getattr(module, "weight", None), Tensor)
        for name in ["weight"] if whole else [name for name, p in own.items() if p.ndim >= 2]:
            parameter, reason = f"{path}.{name}".lstrip("."), ""
            if name in own:  # what is computed anew has no identity
                twin = seen.setdefault(id(own[name]), parameter)
                reason = f"it is the weight of {twin}, tied" if twin != parameter else ""
            yield Layer(number, parameter, _kind(module), partial(getattr, module, name), reason)


def _kind(module: nn.Module) -> str:
    names = [base.__name__.lower() for base in type(module).__mro__]
    kind = next((kind for kind in KINDS if any(kind in name for name in names)), "other")
    return "dense" if kind == "linear" else kind


def _of_tensors(tensors: Mapping[str, Tensor]) -> Iterator[Layer]:
    """Every entry, in the natural order of the names ("2" before "10"); one that does not call itself a weight has a reason."""
    for number, name in enumerate(sorted(tensors, key=_natural), 1):
        named = "weight" in name.rpartition(".")[2]
        reason = "" if named else "its name does not say that it is a weight"
        yield Layer(number, name, "", partial(tensors.__getitem__, name), reason)


def _natural(name: str) -> list[Any]:
    """Text at even places, numbers at odd ones."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def matrices(W: Tensor, kind: str) -> Tensor:
    """The matrices (k, out, in) that a layer is made of: k = 1, or one for each place of a convolution's kernel.

    >>> matrices(torch.zeros(8, 4, 3, 3), "conv2d").shape, matrices(torch.zeros(8, 4), "dense").shape
    (torch.Size([9, 8, 4]), torch.Size([1, 8, 4]))
    """
    if W.ndim == 2:
        return W[None]
    return W.flatten(2).permute(2, 0, 1) if kind.startswith("conv") else W.flatten(0, -3)


class Files(Mapping[str, Tensor]):
    """The tensors of a safetensors file, of those of an index, or of a folder's, each read from disk when it is asked for.

    A folder's *.safetensors.index.json says what lies where; without one, all of its safetensors files are read.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            index, files = (sorted(path.glob(f"*.safetensors{end}")) for end in (".index.json", ""))
        else:
            index, files = ([path], []) if path.name.endswith(".index.json") else ([], [path])
        if len(index) > 1:
            raise ValueError(f"{path} holds {len(index)} indices of safetensors files; give the one that counts.")
        self.homes: dict[str, Path] = _indexed(index[0]) if index else {}
        files = sorted({*self.homes.values()}) if index else files
        if not files:
            held = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
            raise ValueError(
                f"{path} holds no .safetensors file (it holds {held}); load other formats yourself, such as by "
                "torch.load(FILE, weights_only=True), and pass the tensors."
            )
        for file in files:
            names = self._names(file)
            if not index:
                if twice := sorted(names & set(self.homes)):
                    raise ValueError(f"{twice[0]} stands in two files of {path}; give an index, or one file.")
                self.homes |= dict.fromkeys(sorted(names), file)
            elif missing := [name for name, home in self.homes.items() if home == file and name not in names]:
                raise ValueError(
                    f"{index[0]} says that {missing[0]} is in {file.name}, and it is not; download it again."
                )

    @staticmethod
    def _names(file: Path) -> set[str]:
        if not file.exists():
            raise FileNotFoundError(
                f"there is no {file}; give a .safetensors file, or a folder with all that its index names."
            )
        try:
            with safe_open(file, framework="pt") as held:
                return set(held.keys())
        except SafetensorError as problem:
            raise ValueError(
                f"{file} is no safetensors file: {problem}; pass torch.load of it, or the model."
            ) from problem

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.homes[name], framework="pt") as held:
            return held.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.homes)

    def __len__(self) -> int:
        return len(self.homes)


def _indexed(index: Path) -> dict[str, Path]:
    """{name: file}, all files beside the index itself."""
    try:
        homes = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f'{index} is no index of safetensors files: it must be JSON with a "weight_map".') from problem
    for file in homes.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{index} names {file!r}, which is no file beside it.")
    return {name: index.parent / file for name, file in homes.items()}
