"""Which module is at fault where a product is not finite, or where no engine can make one.

Called only after a failure. What failed is run once more on one batch, with hooks that are gone afterwards; modes, buffers,
gradients and random states are as before, and no sweep is counted.

Legend: z (B, k) the outputs of a batch, v a tangent of the primals, u a cotangent of z.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from spectral import probes
from spectral.engine.linearize import Function, math_attention
from spectral.failures import REFUSALS, first_line, with_kind
from spectral.networks.batches import is_finite
from spectral.networks.diagnose.graph import nodes
from spectral.networks.diagnose.hooks import ModuleCall, module_calls
from spectral.threads import FORWARD_MODE, instead

if TYPE_CHECKING:
    from spectral.networks.data_model import DataModel

Leaves = tuple[torch.Tensor, ...]
FORWARD = re.compile(r"forward AD with (\S+) that does not support it")
SECOND = re.compile(r"derivative for '?(?:aten::)?(\w+)'? is not implemented")
COMPILED = re.compile(r"Higher Order Operator: torch\.ops\.higher_order\.(\w+)")  # torch 2.15 compiles no dual tensors


@contextmanager
def _differentiated(network: DataModel) -> Iterator[None]:
    """The opened model, with attention by matrix products: the fused one has neither forward mode nor a second derivative."""
    with network.opened(), math_attention():
        yield


@contextmanager
def _forward_mode() -> Iterator[None]:
    with FORWARD_MODE, forward_ad.dual_level():
        yield


# Products that are not finite -----------------------------------------------------------------------------------------
def nonfinite_product(network: DataModel, index: int, batch: Any, function: Function) -> str:
    """`batch 2, where the derivative of norm (LayerNorm) is not finite`: for a sentence on a product that is not.

    One backward pass, then one forward pass with tangents and a backward pass through it (second derivatives), each along one
    random direction. "batch 2" where no module is found out. `function` is what is differentiated.
    """
    where = f"batch {index}"
    for search, order in ((_bad_gradient, ""), (_bad_tangent, ""), (_bad_second, "second ")):
        try:
            with _differentiated(network):
                culprit = search(network, batch, function)
        except REFUSALS:  # a missing derivative, or a model whose graph cannot be made twice
            continue
        if culprit is not None:
            return f"{where}, where the {order}derivative of {culprit} is not finite"
    return where


def locate_nonfinite(network: DataModel, function: Callable[[Any], Function]) -> str:
    """`nonfinite_product` of the first batch that has one, from an uncounted sweep; "" if no batch has.

    `function(batch)` is what is differentiated on a batch.
    """
    with instead(network, sweeps=network.sweeps), network.sweep() as batches:
        for index, batch in batches:
            clause = nonfinite_product(network, index, batch, function(batch))
            if "," in clause:
                return clause
    return ""


def _leaves(network: DataModel, batch: Any) -> Leaves:
    return tuple(p.detach().requires_grad_() for p in network.primals(batch))


def _direction(seed: int, like: Leaves) -> Leaves:
    drawn = (probes.probe(seed, i, t.numel(), dtype=t.dtype, device=t.device) for i, t in enumerate(like))
    return tuple(v.view_as(t) for v, t in zip(drawn, like, strict=True))


def owner(over: list[ModuleCall], node: Any) -> str:
    """The innermost call that made a node: calls end children first."""
    number = node._sequence_nr()
    return next((visit.label for visit in over if visit.begin < number < visit.end), "of= or loss=")


def operation(node: Any) -> str:
    """`sqrt` of SqrtBackward0, the class's name of a custom autograd.Function."""
    if hasattr(node, "_forward_cls"):
        return node._forward_cls.__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", re.sub(r"Backward\d*$", "", node.name())).lower().lstrip("_")


def _at_each_node(z: torch.Tensor, hook: Callable[[Any, Any, Any], None]) -> ExitStack:
    """Inside, `hook(node, made, given)` is called for each node of z's backward graph that is passed."""
    hooks = ExitStack()
    for node in nodes([z]):
        if node.next_functions:
            hooks.enter_context(node.register_hook(partial(hook, node)))
    return hooks


def _backward(
    network: DataModel, function: Function, leaves: Leaves, inputs: Leaves, sound: Callable[..., bool]
) -> str | None:
    """The first node of a backward pass that makes unsound gradients of sound ones, as `sqrt in norm (LayerNorm)`."""
    with module_calls(network) as (_, over):
        z = function(*inputs)
    if not z.requires_grad:
        return None
    bad: list[Any] = []

    def hook(node: Any, made: tuple[Any, ...], given: tuple[Any, ...]) -> None:
        parts = [[t for t in group if t is not None] for group in (given, made)]
        if sound(parts[0]) and not sound(parts[1]):
            bad.append(node)

    with _at_each_node(z, hook):
        torch.autograd.grad(z, leaves, _direction(1, (z.detach(),)), allow_unused=True)
    return f"{operation(bad[0])} in {owner(over, bad[0])}" if bad else None


def _bad_gradient(network: DataModel, batch: Any, function: Function) -> str | None:
    leaves = _leaves(network, batch)
    return _backward(network, function, leaves, leaves, is_finite)


def _tangents(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    duals = [forward_ad.unpack_dual(t).tangent for t in parts if t.is_floating_point()]
    return [t for t in duals if t is not None]


def _bad_tangent(network: DataModel, batch: Any, function: Function) -> str | None:
    found: list[str] = []

    def enter(visit: ModuleCall, inputs: list[torch.Tensor]) -> None:
        visit.seen = is_finite(_tangents(inputs))

    def leave(visit: ModuleCall, outputs: list[torch.Tensor]) -> None:
        if visit.seen and not is_finite(_tangents(outputs)):
            found.append(visit.label)

    primals = tuple(p.detach() for p in network.primals(batch))
    with torch.no_grad(), _forward_mode(), module_calls(network, enter, leave):
        z = function(*map(forward_ad.make_dual, primals, _direction(0, primals)))
        if not found and not is_finite(_tangents([z])):
            found.append("of= or loss=")
    return found[0] if found else None


def _bad_second(network: DataModel, batch: Any, function: Function) -> str | None:
    """Tangents of the gradients: forward mode over a backward pass."""
    leaves = _leaves(network, batch)
    with _forward_mode():
        duals = tuple(map(forward_ad.make_dual, leaves, _direction(0, leaves)))
        return _backward(network, function, leaves, duals, lambda parts: is_finite(_tangents(parts)))


# Missing derivatives -------------------------------------------------------------------------------------------------
def missing_derivative(network: DataModel, batch: Any, problem: Exception, function: Function) -> str:
    """What no engine can differentiate: `embedding_bag in encoder.bag (EmbeddingBag) has no forward-mode derivative`.

    Forward mode is run once more with hooks, and the graph of the gradient is searched for a step that has no derivative of
    its own ("... and no second derivative"). `problem`'s own first line where neither tells.
    """
    try:
        with _differentiated(network):
            function(*network.primals(batch))
    except REFUSALS as failure:
        return f"the forward pass itself fails, {with_kind(failure)}"
    forward, second = _without_forward(network, batch, function), _without_second(network, batch, function)
    if forward and forward == second:
        return f"{forward} has no forward-mode derivative and no second derivative"
    parts = [f"{forward} has no forward-mode derivative"] if forward else []
    parts += [f"{second} has no second derivative"] if second else []
    if not parts and FORWARD.search(str(problem)):
        return f"the gradient of {_refused(problem)} has no forward-mode derivative"
    return " and ".join(parts) or first_line(problem)


def _without_forward(network: DataModel, batch: Any, function: Function) -> str:
    primals = tuple(p.detach() for p in network.primals(batch))
    with _differentiated(network), module_calls(network) as (under_way, _):
        try:
            with torch.no_grad(), _forward_mode():
                function(*map(forward_ad.make_dual, primals, _direction(0, primals)))
        except REFUSALS as failure:
            place = under_way[-1].label if under_way else "of= or loss="
            return f"{_refused(failure)} in {place}"
    return ""


def _refused(failure: Exception) -> str:
    """The operation that torch's message names, or the autograd.Function that was applied."""
    text = str(failure)
    match = FORWARD.search(text) or SECOND.search(text) or COMPILED.search(text)
    if match:
        return match[1].removeprefix("aten::").removesuffix("_backward").lstrip("_")
    trace, name = failure.__traceback__, ""
    while trace is not None:
        frame = trace.tb_frame
        cls = frame.f_locals.get("cls") if frame.f_code.co_name == "apply" else None
        if frame.f_code.co_name == "apply_jvp":  # torch 2.15 applies without a Python frame of its own
            cls = getattr(frame.f_locals.get("self"), "_forward_cls", None)
        name = cls.__name__ if isinstance(cls, type) else name
        trace = trace.tb_next
    return name or f"an operation ({first_line(failure)})"


def _without_second(network: DataModel, batch: Any, function: Function) -> str:
    """The first node of a backward pass whose own gradient cannot be taken, or is cut off (once_differentiable)."""
    leaves = _leaves(network, batch)
    steps: list[tuple[Any, list[torch.Tensor], list[torch.Tensor]]] = []

    def hook(node: Any, made: tuple[Any, ...], given: tuple[Any, ...]) -> None:
        groups = [[t for t in group if t is not None and t.requires_grad] for group in (made, given)]
        steps.append((node, *groups))

    with _differentiated(network):
        try:
            with module_calls(network) as (_, over):
                z = function(*leaves)
            if not z.requires_grad:
                return ""
            (u,) = (t.requires_grad_() for t in _direction(1, (z.detach(),)))
            with _at_each_node(z, hook):
                torch.autograd.grad(z, leaves, u, create_graph=True, allow_unused=True)
        except REFUSALS:
            return ""
        for node, made, given in steps:
            if any(t.grad_fn is not None and t.grad_fn.name() == "torch::autograd::Error" for t in made):
                return f"{operation(node)} in {owner(over, node)}"
            if made and given:
                try:
                    torch.autograd.grad(made, given, _direction(2, tuple(made)), retain_graph=True, allow_unused=True)
                except REFUSALS:
                    return f"{operation(node)} in {owner(over, node)}"
    return ""
