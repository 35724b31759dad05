"""Activation checkpointing: of some modules a graph keeps what enters them alone, and makes the rest again in the backward pass.

It bounds the memory of J^T u. J v in forward mode keeps nothing in any case. A gradient that is differentiated once more keeps
what was made again, so that a Hessian gains nothing. Which modules: those of one depth of the model, or a chain of layers in
about as many pieces as each has layers; what leaves the graph least, with the largest of them made again beside it. One forward
pass tells what each call of a module keeps and takes in.

Source: Chen, Xu, Zhang, Guestrin (2016), Training deep nets with sublinear memory cost, arXiv:1604.06174. What makes a module
again in the backward pass is `torch.utils.checkpoint`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from spectral.engine.linearize import Function
from spectral.networks.trees import tensors
from spectral.threads import instead

WORTH = 0.8  # of a graph, that is left at most: making modules again takes a third of a gradient


@dataclass(frozen=True)
class MadeAgain:
    """Modules by name, or pieces of a chain, and the bytes of a graph without and with them, the largest one beside it."""

    pieces: tuple[tuple[str, ...], ...]
    before: int
    after: int

    def __str__(self) -> str:
        named = [piece[0] if len(piece) == 1 else f"{piece[0]} to {piece[-1]}" for piece in self.pieces]
        named = named if len(named) <= 4 else [*named[:2], "...", named[-1]]
        return f"{', '.join(named)} made again: {self.after / 2**20:.3g} of {self.before / 2**20:.3g} MiB"


class _Called(nn.Module):
    """The module's own forward, without its hooks."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.own = module, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.own(*args, **kwargs)


def _again(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The module's call, to be made again with the parameters and buffers that it has now, whatever it has then."""
    own = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    values = {f"module.{name}": value for name, value in own}

    def call(*args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(_Called(module, forward), values, args, kwargs, tie_weights=False)

    import torch.utils.checkpoint as checkpoints  # which loads sympy, a third of a second, in torch 2.6

    return checkpoints.checkpoint(call, *args, use_reentrant=False, **kwargs)


def _one_by_one(pieces: Sequence[nn.Module], x: Any) -> Any:
    """A chain, piece by piece."""
    for piece in pieces:
        x = _again(piece, piece.forward, x)
    return x


def checkpointed(function: Function, model: nn.Module, pieces: Sequence[Sequence[str]]) -> Function:
    """The same function, whose graph makes these pieces again."""

    def made(*primals: torch.Tensor) -> torch.Tensor:
        chained = any(len(piece) > 1 for piece in pieces)
        chains, forwards = dict[nn.Module, list[nn.Module]](), dict[nn.Module, Callable[..., Any]]()
        for names in pieces:
            modules = [model.get_submodule(name) for name in names]
            if not chained:
                forwards[modules[0]] = partial(_again, modules[0], modules[0].forward)
            else:
                chains.setdefault(model.get_submodule(names[0].rpartition(".")[0]), []).append(nn.Sequential(*modules))
        forwards |= {chain: partial(_one_by_one, parts) for chain, parts in chains.items()}
        with ExitStack() as stack:
            for module, forward in forwards.items():
                stack.enter_context(instead(module, forward=forward))
            return function(*primals)

    return made


def chosen(
    function: Function, primals: Sequence[torch.Tensor], model: nn.Module, but: Sequence[str]
) -> MadeAgain | None:
    """The pieces that leave least of the function's graph at the primals; None where that is not worth it.

    `but`: modules whose hooks the function itself needs, so that nothing around them is made again.
    """
    held, calls = _measured(function, primals, model)

    def around(name: str) -> bool:
        return any(f"{other}.".startswith(f"{name}.") for other in but)

    depths, candidates = dict[int, list[tuple[str, ...]]](), list[list[tuple[str, ...]]]()
    for name, module in model.named_modules():
        if name in calls and not around(name):
            depths.setdefault(name.count("."), []).append((name,))
        if type(module).forward is nn.Sequential.forward and "forward" not in vars(module):
            names = [f"{name}.{child}".lstrip(".") for child, _ in module.named_children()]
            width = math.isqrt(len(names))
            if width > 1 and all(len(calls.get(child, ())) == 1 and not around(child) for child in names):
                candidates.append([tuple(names[at : at + width]) for at in range(0, len(names), width)])
    found = []
    for pieces in (*depths.values(), *candidates):
        each = [sum(inside for name in piece for inside, _ in calls[name]) for piece in pieces]
        if all(len(piece) == 1 for piece in pieces):  # of a module that is called several times one call at a time
            each = [inside for (name,) in pieces for inside, _ in calls[name]]
        entering = sum(bytes for piece in pieces for _, bytes in calls[piece[0]])
        found.append(MadeAgain(tuple(pieces), held, held - sum(each) + entering + max(each)))
    best = min(found, key=lambda one: one.after, default=None)
    return best if best is not None and best.after <= WORTH * held else None


def _measured(
    function: Function, primals: Sequence[torch.Tensor], model: nn.Module
) -> tuple[int, dict[str, list[tuple[int, int]]]]:
    """(bytes of the graph, of each module's calls (bytes that the graph keeps of it, bytes that enter it))."""
    leaves = [p.detach().requires_grad_() for p in primals]
    seen = {p.untyped_storage().data_ptr() for p in (*leaves, *model.parameters())}
    total, open_calls, calls = 0, list[list[int]](), dict[str, list[tuple[int, int]]]()

    def pack(t: torch.Tensor) -> torch.Tensor:
        nonlocal total
        storage = t.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
            for call in open_calls:
                call[0] += storage.nbytes()
        return t.detach()

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        entering = {t.untyped_storage().data_ptr(): t.nbytes for t in tensors([args, kwargs])}
        open_calls.append([0, sum(entering.values())])

    def after(name: str, module: nn.Module, args: Any, output: Any) -> None:
        inside, entering = open_calls.pop()
        calls.setdefault(name, []).append((inside, entering))

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                stack.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
                stack.enter_context(module.register_forward_hook(partial(after, name)))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t))
        _ = function(*leaves)  # its graph keeps what was packed, so that no address comes twice
    return total, calls
