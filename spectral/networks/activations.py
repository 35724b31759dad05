"""The output of one module as the variable: taken out of a forward pass, and put in its place in another.

Hooks are gone afterwards. What the model does with the module's output elsewhere (a residual connection, a second reader) follows
the variable too; what does not pass through it is constant.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from spectral.engine import private

PREFIX = "module:"  # of `wrt`


def module_named(model: nn.Module, name: str) -> nn.Module:
    """The module of this name; one sentence with near names where there is none, or where it takes no hooks."""
    there = dict(model.named_modules(remove_duplicate=False))
    if name not in there:
        near = difflib.get_close_matches(name, there, n=4, cutoff=0.4) or [other for other in there if other][:8]
        raise ValueError(
            f"wrt='{PREFIX}{name}' names no module of {type(model).__name__}; near it are {', '.join(near) or 'none'}."
        )
    if isinstance(there[name], torch.jit.ScriptModule):
        raise TypeError(
            f"wrt='{PREFIX}{name}' is TorchScript, whose output nothing can stand in for; name a module around it."
        )
    return there[name]


class Reached(BaseException):
    """The forward pass has come to where it is to end; models that handle exceptions do not handle this one."""


def taken(model: nn.Module, name: str, samples: int, forward: Callable[[], Any]) -> torch.Tensor:
    """What the module of this name returns in a forward pass, which ends there: a tensor (B, ...) of as many `samples`."""

    def stop(_: nn.Module, args: Any, output: Any) -> None:
        raise Reached(output)

    try:
        with module_named(model, name).register_forward_hook(stop), torch.no_grad():
            forward()
    except Reached as reached:
        h = reached.args[0]
    else:
        raise ValueError(
            f"wrt='{PREFIX}{name}' is never called in the forward pass; name a module that is called once."
        )
    if not isinstance(h, torch.Tensor):
        raise TypeError(
            f"wrt='{PREFIX}{name}' returns a {type(h).__name__}, but must return a tensor; name a module inside it."
        )
    if not h.is_floating_point() or not h.ndim or len(h) != samples:
        raise ValueError(
            f"wrt='{PREFIX}{name}' returns {h.dtype} of shape {tuple(h.shape)}, but must return real numbers whose first axis is "
            f"the {samples} samples of the batch; name another module."
        )
    return h.detach()


@contextmanager
def standing_in(model: nn.Module, name: str, h: torch.Tensor) -> Iterator[None]:
    """Inside, and in what a backward pass makes again, the module's one call gives h; ValueError where it is not called once."""
    module, calls = module_named(model, name), list[int]()
    outer = private.call_again()

    def instead(_: nn.Module, args: Any, output: Any) -> torch.Tensor:
        calls.append(1)
        return h.clone()  # the next module may write to it

    def again(function: Callable[..., Any], *args: Any) -> Any:
        with module.register_forward_hook(instead):
            return outer(function, *args)

    with module.register_forward_hook(instead), private.called_again(again):
        yield
    if len(calls) != 1:
        raise ValueError(
            f"wrt='{PREFIX}{name}' is called {len(calls)} times in one forward pass, so that its output is no one variable; name "
            "a module that is called once."
        )
