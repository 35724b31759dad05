"""The calls of a model's modules in a forward pass, seen through hooks that are gone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spectral.networks.trees import tensors

if TYPE_CHECKING:
    from spectral.networks.data_model import DataModel


@dataclass(eq=False)
class ModuleCall:
    """One call of one module: the `number`-th of that module, entered and left between two autograd sequence numbers."""

    label: str
    module: nn.Module
    number: int
    begin: int
    end: int = 0
    seen: Any = field(default=None, repr=False)


def label(network: DataModel, name: str, module: nn.Module) -> str:
    """A module as a user knows it: `layers.2 (LayerNorm)`."""
    if not name:
        return "of= or loss="
    if name == "run":
        return f"forward={getattr(network.call.run.given, '__qualname__', type(network.call.run.given).__name__)}"
    inner = name.removeprefix("run.model").removeprefix(".")
    return f"{inner or 'the model'} ({type(module).__name__})"


def _sequence() -> int:
    """The number that autograd gives to its next node on this thread."""
    with torch.enable_grad():
        node = torch.zeros((), requires_grad=True).mul(1).grad_fn
    return 0 if node is None else node._sequence_nr()


@contextmanager
def module_calls(
    network: DataModel,
    enter: Callable[[ModuleCall, list[torch.Tensor]], None] | None = None,
    leave: Callable[[ModuleCall, list[torch.Tensor]], None] | None = None,
) -> Iterator[tuple[list[ModuleCall], list[ModuleCall]]]:
    """(calls under way, outermost first; calls that are over, children first) of the forward passes inside.

    TorchScript takes no hooks: what happens in it belongs to the module around it.
    """
    under_way: list[ModuleCall] = []
    over: list[ModuleCall] = []
    calls: dict[str, int] = {}

    def before(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        visit = ModuleCall(label(network, name, module), module, calls.get(name, 0), _sequence())
        calls[name] = visit.number + 1
        under_way.append(visit)
        if enter is not None:
            enter(visit, tensors([args, kwargs]))

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        visit = under_way.pop()
        visit.end = _sequence()
        over.append(visit)
        if leave is not None:
            leave(visit, tensors(output))

    with ExitStack() as hooks:
        for name, module in network.call.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.enter_context(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(after, with_kwargs=True))
        yield under_way, over
