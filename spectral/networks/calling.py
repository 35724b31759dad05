"""How a model is called: which entries of a batch it takes, and as one module with all that the user gave."""

from __future__ import annotations

import fnmatch
import inspect
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from spectral.engine import private
from spectral.failures import REFUSALS
from spectral.networks.batches import LABEL_KEYS, TARGETS
from spectral.networks.places import fields, label_place, unlabelled
from spectral.networks.trees import tensors
from spectral.threads import Shared

NOTHING = object()
eager = Shared(lambda: torch.compiler.set_stance("force_eager"))
"""What the user has compiled runs as it is written, where torch's compiler is loaded: it would compile our functions too."""
WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


# Which parameters ----------------------------------------------------------------------------------------------------
def select_parameters(model: nn.Module, params: Any) -> dict[str, nn.Parameter]:
    """The parameters that are differentiated: those that require a gradient, or those that `params` names.

    `params`: name globs, parameters and modules, in any mixture.
    """
    named = dict(model.named_parameters())  # deduplicated: tied weights count once
    if params is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            _differentiable(named)  # else params=["*"], as the sentence advises, would be refused
            raise ValueError("the model has no parameter that requires a gradient; name some with params=['*'].")
        return _differentiable(chosen)
    if isinstance(params, str):
        raise TypeError(f"params={params!r} is a string; pass a list of name globs, such as [{params!r}].")
    if not isinstance(params, torch.Tensor | nn.Module | Iterable):
        raise TypeError(f"params is a {type(params).__name__}; pass a list of name globs, parameters or modules.")
    given = [params] if isinstance(params, torch.Tensor | nn.Module) else list(params)
    wanted: set[str] = set()
    for one in given:
        wanted |= _names(model, named, one)
    if not wanted:
        raise ValueError("params=[] names no parameter; leave it out for all that require a gradient.")
    return _differentiable({name: p for name, p in named.items() if name in wanted})


def has_derivatives(p: torch.Tensor) -> bool:
    """Whether anything can be differentiated in this dtype and layout: others may be frozen weights, quantised or sparse ones."""
    return p.layout == torch.strided and (p.is_complex() or (p.is_floating_point() and p.dtype.itemsize > 1))


def _differentiable(chosen: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    for name, p in chosen.items():
        if not has_derivatives(p):
            kind = p.dtype if p.layout == torch.strided else p.layout
            raise TypeError(
                f"the parameter {name} is {str(kind).removeprefix('torch.')}, in which "
                "no derivative can be computed; convert it to a dense bfloat16, float32 or float64, or leave it out by params=."
            )
    return chosen


def _names(model: nn.Module, named: dict[str, nn.Parameter], one: Any) -> set[str]:
    """The names that a glob, a parameter or a module stands for; a glob may match any name of a tied weight."""
    if isinstance(one, str):
        every = model.named_parameters(remove_duplicate=False)
        matched = {id(p) for name, p in every if fnmatch.fnmatchcase(name, one)}
        found = {name for name, p in named.items() if id(p) in matched}
        if not found:
            raise ValueError(f"params: {one!r} matches no parameter; the names are {', '.join(list(named)[:12])}, ...")
        return found
    if not isinstance(one, torch.Tensor | nn.Module):
        raise TypeError(f"params must hold name globs, parameters or modules, got a {type(one).__name__}.")
    ids = {id(p) for p in (one.parameters() if isinstance(one, nn.Module) else (one,))}
    found = {name for name, p in named.items() if id(p) in ids}
    if len(found) < len(ids) or not found:
        what = f"a tensor of shape {tuple(one.shape)}" if isinstance(one, torch.Tensor) else f"a {type(one).__name__}"
        raise ValueError(
            f"params holds {what} that is no parameter or part of the model; take it from model.parameters()."
        )
    return found


def unwrapped(model: Any) -> Any:
    """The model inside a wrapper that adds nothing but the exchange of gradients; one sentence for wrappers that do more."""
    if isinstance(model, WRAPPERS):
        if getattr(model, "mixed_precision", None) is not None:
            raise ValueError(
                "DistributedDataParallel(mixed_precision=...) computes another function than the model inside; pass model.module "
                "with product_dtype=."
            )
        model = model.module
    composed = sys.modules.get("torch.distributed._composable.replicate")
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if composed and isinstance(module, composed.DDP) and not composed.replicate.state(module).has_initialized:
            raise ValueError(
                f"{name or 'the model'} is under torch's replicate, which spreads its weights when it is called for the first "
                "time; call the model once on every rank before, or wrap it in DistributedDataParallel."
            )
        if isinstance(module, WRAPPERS):
            raise ValueError(
                f"{name} is a {type(module).__name__} inside the model, whose hooks know no derivatives of derivatives; put its "
                ".module in its place."
            )
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            raise ValueError(
                f"{name or 'the model'} is a FullyShardedDataParallel (FSDP1), whose flat parameters cannot be differentiated "
                "one by one; shard the model by torch.distributed.fsdp.fully_shard, or pass it unsharded."
            )
    return model


def check_model(model: Any) -> None:
    if isinstance(model, nn.Module):
        for name, p in model.named_parameters():
            if isinstance(p, nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"the parameter {name} has no shape yet (a lazy layer); run one batch through the model first."
                )
            if p.is_inference():
                raise ValueError(
                    f"the parameter {name} was made under torch.inference_mode(), which allows no derivatives; make or load the "
                    "model outside of it."
                )
            if p.is_meta:
                raise ValueError(
                    f"the parameter {name} is on the device meta and has no values; load the model's weights first."
                )
        return
    exported = type(model).__name__ == "ExportedProgram"
    way = "program.module()" if exported else "a torch.nn.Module (wrap a function in one)"
    raise TypeError(f"model is a {type(model).__name__}; pass {way}.")


# The model's own call ------------------------------------------------------------------------------------------------
def required_inputs(model: nn.Module) -> int:
    """How many entries of a tuple the model's forward takes: its positional parameters without defaults, at least one."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in positional and p.default is p.empty for p in _signature(model)))


def _signature(model: nn.Module) -> list[inspect.Parameter]:
    """What the model's forward takes; nothing of one that is no Python function."""
    try:
        return list(inspect.signature(private.written(model).forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _optional(model: nn.Module, required: int) -> str | None:
    """The name of what forward may take behind the entries that it requires, if that may be an input."""
    positional = [p for p in _signature(model) if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    behind = positional[required:]
    several = next((f"*{p.name}" for p in positional if p.kind == p.VAR_POSITIONAL), None)
    if behind and behind[0].kind != behind[0].VAR_POSITIONAL:
        told = behind[0].name in TARGETS or isinstance(behind[0].default, bool | int | float | str)
        return None if told else behind[0].name
    return several


def default_forward(model: nn.Module, batch: Any, shared: tuple[Any, ...] = (), *, labelled: bool = False) -> Any:
    """model(x) for a tensor; model(x1, ..., xr) for a tuple, r what forward requires; model(**fields) without labels for others.

    A mapping or dataclass that comes first in a tuple is taken by its names too. Its labels are those that the loss reads: the
    first of LABEL_KEYS that is there, or what comes behind it. What is called so beside them is an input if forward takes it; of
    forward(*args, **kwargs), which hands on what it is given, that is not known. `labelled`: with the labels. One sentence where
    the batch does not fit the signature of forward.
    """
    args: tuple[Any, ...] = ()
    named, behind = fields(batch), 0
    if isinstance(batch, torch.Tensor):
        args = (batch,)
    elif named is None and len(batch):
        own = unlabelled(batch)
        named, behind = fields(batch[own[0]]) if own else None, len(batch) - 1
        if named is None:
            args = _inputs(model, batch, shared)
    kwargs = named or {}
    if kwargs and not labelled:
        taken = {p.name: p.kind for p in _signature(model)}
        kinds = taken.values()
        every = inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds
        label = None if behind else next((key for key in LABEL_KEYS if key in kwargs), None)
        left = {key for key in LABEL_KEYS if key == label or not (key in taken or every)}
        kwargs = {key: value for key, value in kwargs.items() if key not in left}
    try:
        inspect.signature(private.written(model).forward).bind(*args, **kwargs)
    except TypeError as problem:
        given = ", ".join([*(["the first entry"] * bool(args)), *map(str, kwargs)])
        raise TypeError(
            f"{_named(model)}.forward cannot be called with {given} of a batch ({problem}); pass forward=lambda model, batch: "
            "... that calls the model as it wants to be called."
        ) from problem
    except ValueError:  # it has no signature
        pass
    return model(*args, **kwargs)


def labelled_forward(model: nn.Module, batch: Any) -> Any:
    """The model's forward pass with its labels, which makes it return its own loss."""
    if fields(batch) is None:
        raise ValueError(
            "loss=None means the model's own loss, which needs mappings with labels as batches; pass loss=."
        )
    return default_forward(model, batch, labelled=True)


def _named(model: nn.Module) -> str:
    return type(private.written(model)).__name__


def _inputs(model: nn.Module, batch: Any, shared: tuple[Any, ...]) -> tuple[Any, ...]:
    """The entries of a tuple that forward requires; one sentence where it may take more and nothing tells what stands there."""
    own, required = unlabelled(batch), required_inputs(model)
    behind = own[required + (label_place(batch) is None) :]  # inputs and the target
    if not set(behind) <= set(shared) and (name := _optional(model, required)):
        raise _untold(model, batch, required, f"{name} too")
    return tuple(batch[i] for i in own[:required])


def _untold(model: nn.Module, batch: Any, required: int, more: str) -> ValueError:
    return ValueError(
        f"a batch holds {len(batch)} entries, and {_named(model)}.forward requires {required} and may take {more}, so that "
        "nothing tells inputs from targets; pass mappings whose keys are forward's names, or forward=lambda model, batch: ... "
        "that calls the model."
    )


class Reads:
    """Of a tuple or list: the entries that were read of it, and whether all were at once."""

    read: frozenset[int] = frozenset()
    whole = False

    def __getitem__(self, key: Any) -> Any:
        entry = super().__getitem__(key)  # type: ignore[misc]
        at = range(len(self))[key]  # type: ignore[arg-type]
        self.read |= {*at} if isinstance(key, slice) else {at}
        return entry

    def __iter__(self) -> Any:
        self.whole = True
        return super().__iter__()  # type: ignore[misc]


class ReadTuple(Reads, tuple):  # type: ignore[type-arg]
    pass


class ReadList(Reads, list):  # type: ignore[type-arg]
    pass


def noted(batch: Any) -> Any:
    """A plain tuple or list that notes what is read of it; anything else as it is."""
    if type(batch) is tuple:
        return ReadTuple(batch)
    return ReadList(batch) if type(batch) is list else batch


def may_take(model: nn.Module, batch: Any) -> str | None:
    """What forward may take of the entry behind its inputs, where a target stands too; None if it takes none."""
    if isinstance(batch, torch.Tensor) or fields(batch):
        return None
    own, required = unlabelled(batch), required_inputs(model)
    return _optional(model, required) if len(own) > required and fields(batch[own[0]]) is None else None


def check_left_out(model: nn.Module, batch: Any, name: str, output: Any) -> None:
    """One sentence where the entry that forward may take under this name, and nobody reads, would change its output."""
    required, without = required_inputs(model), tensors(output)
    try:
        with_it = tensors(model(*(batch[i] for i in unlabelled(batch)[: required + 1])))
    except REFUSALS:  # it does not take this entry
        return
    if len(with_it) != len(without) or not all(map(torch.equal, with_it, without)):
        raise _untold(model, batch, required, f"{name} too, with which its output is another one")


class ForwardCall(nn.Module):
    """forward(model, batch) as a module."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any], shared: tuple[Any, ...]) -> None:
        super().__init__()
        self.model, self.given, self.shared = model, forward, shared
        self.reads: int | None = None  # entries of a tuple up to the last one that a forward= of the user reads

    def forward(self, batch: Any) -> Any:
        if self.given is default_forward:
            return default_forward(self.model, batch, self.shared)
        own = self.given is labelled_forward
        seen = noted(batch)
        if own or self.reads is not None or seen is batch or len(batch) < 2:
            return self.given(self.model, batch)
        size = len(batch)
        output = self.given(self.model, seen)
        read = set(range(size)) if seen.whole else seen.read
        # of (x, y) that are both read y is the target: x, _ = batch is the way to read x, and some models are told y
        self.reads = 1 if size == 2 and 0 in read else max(read, default=-1) + 1
        return output


class WholeCall(nn.Module):
    """All that the user gave as one module, so that it runs on substituted parameters from end to end."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any], shared: tuple[Any, ...]) -> None:
        super().__init__()
        self.run = ForwardCall(model, forward, shared)

    def forward(self, batch: Any, then: Callable[[Any], Any], output: Any) -> Any:
        with eager() if "torch._dynamo" in sys.modules else nullcontext():
            return then(self.run(batch) if output is NOTHING else output)
