"""A model's state: left as it was by whatever runs inside `untouched`, and hashed so that a changed model is another matrix.

What is put back: attributes of all modules, of loss modules and of plain containers among them (so that activations kept by
a forward pass, caches, counters, hooks and training flags are those of before), values of buffers and of other tensors held
as attributes, gradients, `requires_grad`, private generators and every global random state. Parameters are never written to:
runs see others in their place.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import sys
import sysconfig
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from spectral import arrays
from spectral.checksum import checksum_of
from spectral.engine import private
from spectral.networks.trees import tensors
from spectral.threads import Shared, instead

# not their subclasses, which may refuse to be filled again
CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
WEAK = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
MEMORY = type(functools.cache(lambda: None))  # a function with what it has returned
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
PLAIN_TYPES = set(PLAIN)
# what every module has among its attributes
MODULE = set(vars(nn.Module()))
ABSENT = object()
# where code lies that nobody changes while a program runs
INSTALLED = tuple(
    os.path.join(os.path.realpath(path), "")
    for path in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        os.path.dirname(torch.__file__),
        os.path.dirname(os.path.dirname(__file__)),
    )
)


@contextmanager
def _differentiable() -> Iterator[None]:
    """Without the fused inference path of nn.MultiheadAttention and TransformerEncoderLayer, which has no derivative, without
    cached parametrisations, which substituted parameters would not reach, and without fused weight normalisation,
    hard sigmoids (no second derivative) and bags; checkpointed activations are made again of the values that they were made of;
    what an embedding reads as its padding is a constant."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    uncached, hard = instead(parametrize, _cache_enabled=0), instead(functional, hardsigmoid=_hardsigmoid)
    operations = private.weight_norm_of_operations(), private.embeddings_of_operations()
    try:
        with uncached, hard, private.checkpoints(), operations[0], operations[1]:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _hardsigmoid(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    value = functional.relu6(input + 3) / 6
    return input.copy_(value) if inplace else value


differentiable = Shared(_differentiable)


# What is reachable ---------------------------------------------------------------------------------------------------
def walk(roots: Iterable[Any], opened: Callable[[Any], Any] | None = None) -> Iterator[Any]:
    """Each once: the modules and objects, the containers in which they keep their attributes, and what lies in these.

    Other objects are not opened: a trainer or a tokenizer among the attributes would lead to everything.
    `opened`: what holds the parts of a thing, in the place of `_opened`.
    """
    opened = opened or _opened
    seen: set[int] = set()
    queue = list(roots)[::-1]
    while queue:
        thing = queue.pop()
        if isinstance(thing, PLAIN) or id(thing) in seen:
            continue
        seen.add(id(thing))
        yield thing
        parts = opened(thing)
        if parts is None:
            continue
        if parts is not thing:
            yield parts
        queue += list(parts.values() if isinstance(parts, dict) else parts)[::-1]


def _opened(thing: Any) -> Any:
    """What holds the parts of a thing: itself where it is a container, its attributes, or None."""
    if type(thing) in CONTAINERS or isinstance(thing, tuple):
        return thing
    return vars(thing) if isinstance(thing, nn.Module | SimpleNamespace) or _is_record(thing) else None


def read(thing: Any) -> Any:
    """What holds all that a thing may read when it is called, by name: more than what is its own, and put back.

    Of a function what it closes over, its defaults and the globals that it names; of a class its methods and settings, of an
    installed one its forward alone; of any other object its plain attributes, functions, tensors and modules.
    """
    if (parts := _opened(thing)) is not None or isinstance(thing, ModuleType):
        return parts
    if isinstance(thing, functools.partial):
        return {"func": thing.func, "args": thing.args, "keywords": thing.keywords}
    if isinstance(thing, MethodType):
        owner = thing.__self__
        held = owner if isinstance(owner, nn.Module) else getattr(owner, "__dict__", owner)
        return {"func": thing.__func__, "self": held}
    if isinstance(thing, FunctionType):
        return _read_by_function(thing)
    if isinstance(thing, property | staticmethod | classmethod):
        return {"func": thing.fget if isinstance(thing, property) else thing.__func__}
    if isinstance(thing, type):
        kinds = [
            kind for kind in thing.__mro__ if not _installed(getattr(sys.modules.get(kind.__module__), "__file__", ""))
        ]
        entries = ((kind, key, part) for kind in kinds for key, part in vars(kind).items())
        methods = {
            (kind, key): part for kind, key, part in entries if key[:2] != "__" or isinstance(part, FunctionType)
        }
        return {**methods, "forward": getattr(thing, "forward", None)}
    kept = (*PLAIN, FunctionType, torch.Tensor, np.ndarray, nn.Module)
    own = getattr(thing, "__dict__", None)
    return own and {key: part for key, part in own.items() if isinstance(part, kept)}


def _read_by_function(function: FunctionType) -> dict[Any, Any]:
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    parts: dict[Any, Any] = {name: cell.cell_contents for name, cell in cells if cell != CellType()}  # which is empty
    parts |= {"defaults": function.__defaults__, "keywords": function.__kwdefaults__}
    names, codes = dict[str, None](), [] if _installed(code.co_filename) else [code]
    for one in codes:
        names |= dict.fromkeys(one.co_names)
        codes += [inner for inner in one.co_consts if isinstance(inner, CodeType)]
    for name in names:
        found = function.__globals__.get(name)
        parts["global", name] = found
        if isinstance(found, ModuleType) and not _installed(getattr(found, "__file__", "")):
            parts |= {(found, key): vars(found)[key] for key in names if key in vars(found)}
    return parts


class Kept(NamedTuple):
    """Where one call may keep for the next what it has made: what holds it, under which key, what makes an empty one."""

    name: str
    holder: Any
    key: Any
    empty: Callable[[], Any]


def between_calls(roots: Iterable[Any]) -> list[Kept]:
    """Functions under functools.cache, tensors and containers with tensors, of modules, classes, functions and other objects."""
    found: dict[tuple[int, Any], Kept] = {}
    for thing in walk(roots, _read_with_class):
        for key, part in _kept_by(thing).items():
            name, holder, place = str(key), vars(thing), key
            if isinstance(thing, FunctionType):
                name, holder, place = _where(thing, key)
            elif isinstance(thing, type):
                (holder, place), name = key if isinstance(key, tuple) else (None, None), f"{thing.__name__}.{key[1]}"
            elif key in MODULE:
                continue
            if holder is None:
                continue
            lazy = isinstance(thing, nn.Module) and isinstance(
                getattr(type(thing), key, None), functools.cached_property
            )
            empty = functools.partial(_before_calls, ABSENT if lazy else part)
            if empty() is not part:
                found[id(holder), place] = Kept(name, holder, place, empty)
    return list(found.values())


def _kept_by(thing: Any) -> Mapping[Any, Any]:
    """What it reads of its own; of any other object the containers and tensors among its attributes."""
    if isinstance(thing, nn.Module | FunctionType | type):
        return read(thing) or {}
    held = getattr(thing, "__dict__", None)
    if not isinstance(held, dict) or isinstance(thing, ModuleType):
        return {}
    return {key: part for key, part in held.items() if isinstance(part, (*CONTAINERS, *WEAK, torch.Tensor))}


def _read_with_class(thing: Any) -> Any:
    parts = read(thing)
    return [*parts.values(), type(thing)] if isinstance(thing, nn.Module) else parts


def _where(function: FunctionType, key: Any) -> tuple[str, Any, Any]:
    """(name, holder, key) of what `read` finds of a function; no holder for what cannot be exchanged."""
    if isinstance(key, tuple):
        return str(key[1]), function.__globals__ if key[0] == "global" else vars(key[0]), key[1]
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if key in cells:
        return key, cells[key], "cell_contents"
    return f"a default of {function.__name__}", function if key == "defaults" else None, "__defaults__"


def _before_calls(part: Any) -> Any:
    """What stands in the place of a thing before any call: the thing itself if calls leave nothing in it."""
    if isinstance(part, property) and part.fget is not None:
        getter = _before_calls(part.fget)
        return part if getter is part.fget else part.getter(getter)  # its setter stays
    if isinstance(part, staticmethod | classmethod):
        inner = _before_calls(part.__func__)
        return part if inner is part.__func__ else type(part)(inner)
    if isinstance(part, MEMORY):
        return part.__wrapped__
    if type(part) in CONTAINERS + WEAK:
        inside = walk([list(part.values()) if type(part) in WEAK else part])
        if any(isinstance(thing, torch.Tensor) and not isinstance(thing, nn.Parameter) for thing in inside):
            empty = part.copy()
            empty.clear()
            return empty
    if isinstance(part, tuple) and part:  # the defaults of a function
        new = tuple(_before_calls(one) for one in part)
        return part if all(a is b for a, b in zip(part, new, strict=True)) else new
    return None if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter) else part


def _filled(empty: Any, now: Any) -> bool:
    """Whether a call has left something where `empty` stood; of a function without its memory nobody can tell."""
    if isinstance(empty, tuple) and isinstance(now, tuple):
        return any(_filled(a, b) for a, b in zip(empty, now, strict=False))
    if now is not empty:
        return True
    return len(empty) > 0 if type(empty) in CONTAINERS + WEAK else callable(empty) or hasattr(type(empty), "__get__")


@contextmanager
def emptied(places: Iterable[Kept]) -> Iterator[Callable[[], bool]]:
    """Inside, each holder, a mapping or an object, has an empty thing under its key; yields whether one of them is filled."""
    now: list[tuple[Any, Callable[[], Any]]] = []
    with ExitStack() as stack:
        for _, holder, key, empty in places:
            other, held = empty(), holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
            # as it lies there: getattr would call a property, and unwrap a static method
            own = held[key] if key in held else getattr(holder, key)
            put = holder.__setitem__ if isinstance(holder, dict) else functools.partial(setattr, holder)
            stack.callback(put, key, own)
            holder.pop(key) if other is ABSENT else put(key, other)
            found = functools.partial(held.get, key, ABSENT) if key in held or other is ABSENT else None
            now.append((other, found or functools.partial(getattr, holder, key)))
        yield lambda: any(_filled(other, found()) for other, found in now)


@functools.cache
def _installed(path: str | None) -> bool:
    """Whether a file holds code that nobody changes while a program runs; "" is that of what is built in."""
    if not path:
        return path == ""
    real = os.path.realpath(path)  # other places of packages: a user's, the system's below a virtual environment
    return real.startswith(INSTALLED) or not {"site-packages", "dist-packages"}.isdisjoint(real.split(os.sep))


def _values(thing: Any) -> torch.Tensor | None:
    """The memory of a tensor or NumPy array that can be read and written; None for anything else."""
    if isinstance(thing, torch.Tensor):
        try:
            return thing.detach() if thing.layout == torch.strided and not thing.is_meta else None
        except RuntimeError:  # it is of a torch.vmap that has ended: a hook has kept it
            return None
    if isinstance(thing, np.ndarray) and thing.dtype.kind in "bif" and thing.flags.writeable:
        return torch.from_numpy(thing)
    return None


def _is_record(thing: Any) -> bool:
    """An object of a dataclass that keeps its fields in a dictionary."""
    return dataclasses.is_dataclass(thing) and hasattr(thing, "__dict__") and not isinstance(thing, type)


# As it was -----------------------------------------------------------------------------------------------------------
class Snapshot:
    """The state of some modules and plain objects, and the way back to it."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self.containers: list[tuple[Any, Any]] = []  # (what holds others, a shallow copy)
        self.tensors: list[tuple[torch.Tensor, torch.Tensor]] = []  # (tensor, its values)
        self.parameters: list[tuple[nn.Parameter, bool, torch.Tensor | None]] = []
        self.generators: list[tuple[Callable[[Any], Any], Any]] = []
        for thing in walk(roots):
            if type(thing) in CONTAINERS:
                self.containers.append((thing, thing.copy() if thing else ()))
            elif isinstance(thing, nn.Parameter):
                self.parameters.append((thing, thing.requires_grad, thing.grad))
            elif (values := _values(thing)) is not None:
                self.tensors.append((values, values.clone()))
            elif isinstance(thing, torch.Generator):
                self.generators.append((thing.set_state, thing.get_state()))
            elif isinstance(thing, np.random.Generator):
                self.generators.append(
                    (functools.partial(setattr, thing.bit_generator, "state"), thing.bit_generator.state)
                )
            elif isinstance(thing, random.Random):
                self.generators.append((thing.setstate, thing.getstate()))

    def holds(self) -> bool:
        """Whether nothing has changed; False where there are generators, of which nobody knows."""
        alike = all(_same(holder, copy) for holder, copy in self.containers)
        return alike and not self.generators and all(torch.equal(tensor, values) for tensor, values in self.tensors)

    def restore(self) -> None:
        for holder, copy in self.containers:
            if not _same(holder, copy):
                holder.clear()
                holder.extend(copy) if isinstance(holder, list | deque) else holder.update(copy)
        for tensor, values in self.tensors:
            if not torch.equal(tensor, values):
                tensor.copy_(values)
        for parameter, requires_grad, grad in self.parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad
        for put_back, state in self.generators:
            put_back(state)


def _same(holder: Any, copy: Any) -> bool:
    """Whether a container still holds the very same things."""
    if len(holder) != len(copy):
        return False
    if isinstance(holder, dict):
        return all(a is b and holder[a] is copy[b] for a, b in zip(holder, copy, strict=True))
    if isinstance(holder, set):
        return not holder or holder == copy  # of an empty one the copy is ()
    return all(a is b for a, b in zip(holder, copy, strict=True))


@contextmanager
def untouched(model: nn.Module, others: Iterable[Any] = (), population: bool = True) -> Iterator[None]:
    """The model in eval mode with dense gradients inside, and as it was afterwards, after an exception too.

    Flags alone are set: train() and eval() of the modules are not called, since some do work there (adapters that merge).
    population=False: batch norm in the statistics of each batch.
    """
    snapshot = Snapshot((*model.modules(), *others))
    scripted = [m for m in model.modules() if isinstance(m, torch.jit.ScriptModule) and m.training]
    try:
        for script in scripted:  # whose flag does not lie in its attributes
            script.training = False
        for module in model.modules():
            module.__dict__["training"] = False
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                module.sparse = False
                if module.max_norm is not None:
                    _check_norms(model, module)
                    module.max_norm = None  # no row is longer: it would change nothing
            if not population and isinstance(module, nn.modules.batchnorm._NormBase):
                module._buffers.update(running_mean=None, running_var=None)
        with torch.enable_grad(), differentiable():
            yield
    finally:
        snapshot.restore()
        for script in scripted:
            script.training = True


class Unwritten(private.DispatchMode):
    """Inside, the first operation that changes one of these tensors is undone and refused: one tensor at a time is copied."""

    def __init__(self, named: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        parts = ((name, part) for name, t in named.items() for part in arrays.strided(t.detach()) if part.numel())
        self.names = {part.untyped_storage().data_ptr(): name for name, part in parts}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = private.written_by(func, args, kwargs)
        held = [(t, t.clone(), name) for t in tensors(written) if (name := self._name(t))]
        out = func(*args, **kwargs)
        for t, before, name in held:
            if not same(t, before):
                t.copy_(before)
                raise ValueError(written_to(name))
        return out

    def _name(self, t: torch.Tensor) -> str | None:
        own = t.layout == torch.strided and t.numel() > 0
        return self.names.get(t.untyped_storage().data_ptr()) if own else None


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal entry by entry; NaN equals NaN."""
    return torch.equal(a, b) or (a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all()))


def written_to(name: str) -> str:
    return (
        f"forward writes to the parameter {name}, so that the outputs are no function of it; let forward compute from it "
        "without changing it (or give the changed values to the model before)."
    )


def _check_norms(model: nn.Module, module: nn.Embedding | nn.EmbeddingBag) -> None:
    rows = module.weight.detach().norm(module.norm_type, dim=1)
    if bool((rows > module.max_norm).any()):
        name = next(name for name, other in model.named_modules() if other is module)
        raise ValueError(
            f"{name or 'the model'} ({type(module).__name__}) has max_norm={module.max_norm:g} and rows that are longer, which "
            f"forward would shorten in the weight itself; shorten them before, by weight.data.renorm_(2, 0, {module.max_norm:g})."
        )


# Another matrix ------------------------------------------------------------------------------------------------------
class Version:
    """Equal as long as every value, setting, module and function that the roots and their classes `read` is the same.

    It holds modules and functions themselves, so that no other one can take an address that is free again.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        tensors: list[torch.Tensor] = []
        self.settings: list[list[Any]] = []
        self.held: list[Any] = []
        seen: set[int] = set()
        queue = list(roots)
        while queue:  # as `walk` goes, but past what is empty: most of what a module has
            thing = queue.pop()
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            if (values := _values(thing)) is not None:
                tensors.append(values)
                continue
            if isinstance(thing, torch.Tensor) and thing.layout in arrays.SPARSE:
                tensors += arrays.strided(thing)
                continue
            parts = read(thing)
            if parts is not thing:
                self.held.append(thing)
            if not isinstance(thing, type) and parts is not thing:
                queue.append(type(thing))
            if not parts:
                continue
            plain: list[Any] = []
            for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
                kind = type(part)
                if kind in PLAIN_TYPES or isinstance(part, PLAIN):
                    if key != "training":
                        plain.append((key, part))
                elif kind not in CONTAINERS or part:
                    queue.append(part)
            self.settings.append(plain)
        self.checksum = checksum_of(*tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Version) or self.checksum != other.checksum or self.settings != other.settings:
            return False
        return len(self.held) == len(other.held) and all(a is b for a, b in zip(self.held, other.held, strict=True))

    __hash__ = None  # type: ignore[assignment]
