"""Names that torch does not promise, in one place, each with what happens when it is gone.

Those that lie with one module for good (of `fully_shard`, of a module's buffers) stay there; `docs/versions.md` lists all.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import torch

# Without these, importing this module raises ImportError or AttributeError with the name.
from torch.autograd.forward_ad import _set_fwd_grad_enabled as tangents_enabled
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch, _pytree

from spectral.threads import Shared, instead

dispatch_modes = _python_dispatch._get_current_dispatch_mode_stack
tree_flatten, tree_unflatten = _pytree.tree_flatten, _pytree.tree_unflatten
weight_norm: Any = sys.modules.get("torch.nn.utils.weight_norm")  # torch.nn.utils has a function of this name
aten: Any = torch.ops.aten
unsafe_view = aten._unsafe_view.default
has_same_storage_numel = aten._has_same_storage_numel.default


class DispatchMode(_python_dispatch.TorchDispatchMode):
    """Sees every operation that is called under it.

    torch keeps its compiler away from such a method, for which it loads the compiler at the first operation: a second in each
    process, and time at every call. Nothing is compiled under one of ours. Without the name the compiler is loaded.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class TangentsLikeGradients(TorchFunctionMode):
    """What is called under `torch.no_grad` has no tangent either: forward mode alone would go through it.

    Not seen: what scripts, other threads and transforms of torch.func inside do there. Tests of products refuse these.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        with tangents_enabled(False):
            return func(*args, **(kwargs or {}))


def version(t: torch.Tensor) -> int:
    """How often its memory was written to. Without it the first product raises AttributeError."""
    return t._version


def is_hooked(t: torch.Tensor) -> bool:
    """Whether `register_hook` may change its gradient. Without this name no hook is seen."""
    return bool(getattr(t, "_backward_hooks", None))


def written(model: torch.nn.Module) -> torch.nn.Module:
    """The module that torch.compile hides, as it is written. Without the name its forward takes what the wrapper's does."""
    return getattr(model, "_orig_mod", model)


def is_view(t: torch.Tensor) -> bool:
    """Whether it lies in another's memory. Without it the first product in forward mode raises AttributeError."""
    return t._is_view()


def is_zero(t: torch.Tensor) -> bool:
    """Whether it is forward mode's zero, which has no memory. Without it nothing can be recorded, as `describe()` says."""
    try:
        return t._is_zerotensor()
    except AttributeError as gone:
        raise RuntimeError("this torch does not say which tensors are zeros without memory") from gone


def schema(operation: Any) -> Any:
    """Which operands an operation writes, None if nobody knows. Without it nothing can be recorded, as `describe()` says."""
    return getattr(operation, "_schema", None)


def written_by(operation: Any, args: Any, kwargs: Any) -> list[Any] | None:
    """What it writes to of what it is given; None where there is no `schema`."""
    places = getattr(schema(operation), "arguments", None)
    return None if places is None else [
        args[i] if i < len(args) else kwargs.get(place.name)
        for i, place in enumerate(places) if place.alias_info is not None and place.alias_info.is_write
    ]  # fmt: skip


def softmax_backward(u: torch.Tensor, p: torch.Tensor, axis: int) -> torch.Tensor:
    """(diag(p) - p p^T) u. Without it the first product with a cross entropy's curvature raises AttributeError."""
    return torch._softmax_backward_data(u, p, axis, p.dtype)


@contextmanager
def _unwarned() -> Iterator[None]:
    warns = getattr(getattr(torch._C, "_functorch", None), "_set_vmap_fallback_warning_enabled", lambda on: None)
    warns(False)
    try:
        yield
    finally:
        warns(True)


mapped_in_silence = Shared(_unwarned)
"""Without what torch's vmap writes to the terminal, past Python's filters, where it maps an operation in a loop.

There is no asking what was set before: after the last that needs it, it is torch's default. Without the name it is written.
"""


def _plainly(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


# held weakly: torch's graphs keep copies of the context
_again: ContextVar[Callable[[], Callable[..., Any] | None]] = ContextVar("_again", default=lambda: _plainly)


def call_again() -> Callable[..., Any]:
    """What calls a function that is given with its arguments, later, as it would be called now."""
    return _again.get()() or _plainly


@contextmanager
def called_again(call: Callable[..., Any]) -> Iterator[None]:
    """Inside, `call` is `call_again()`."""
    token = _again.set(weakref.ref(call))
    try:
        yield
    finally:
        _again.reset(token)


@contextmanager
def checkpoints() -> Iterator[None]:
    """Activation checkpoints call again what they make again by `call_again`, which substitutes what was substituted then.

    Graphs are kept where nothing can be made again: under torch.func, and of reentrant ones, which would begin anew in a backward
    pass that no other derivative reaches. Without these names the first product raises AttributeError, if torch.utils.checkpoint
    is loaded.
    """
    if (loaded := sys.modules.get("torch.utils.checkpoint")) is None:
        yield
        return
    frame, hook = loaded._CheckpointFrame, loaded._checkpoint_hook

    def framed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return frame(partial(call_again(), function), *args, **kwargs)

    def hooked(frame: Any) -> Any:
        why = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() or ""
        return nullcontext() if "torch.func" in why else hook(frame)

    others = {"_NoopSaveInputs": _moving(loaded._NoopSaveInputs)} if hasattr(loaded, "_NoopSaveInputs") else {}
    with instead(loaded, CheckpointFunction=_Kept, _CheckpointFrame=framed, _checkpoint_hook=hooked, **others):
        yield


@cache
def _moving(saver: Any) -> Any:
    """The operation by which torch 2.6 keeps what enters a checkpoint, and later ones do not, in forward mode and vmap too."""
    rules = {"jvp": staticmethod(lambda ctx, *tangents: torch.empty(0)), "generate_vmap_rule": True}
    return type(saver.__name__, (saver,), rules)


class _Kept:
    """In the place of a reentrant checkpoint: the function is called, and its graph kept."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def dtypes_of(node: Any, places: Collection[int]) -> set[torch.dtype]:
    """Of values that a node of a backward graph is of; without this name AttributeError says so before the first product."""
    values = node._input_metadata  # all of them, made anew each time
    return {values[place].dtype for place in places}


@contextmanager
def weight_norm_of_operations() -> Iterator[None]:
    """Weight normalisation by v g / |v|: torch's fused one has no forward mode, and its second derivative keeps |v| fixed.

    Without these names nothing is replaced, and a Hessian of such a model is refused by the difference of its gradients.
    """

    def by_operations(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
        return v * (g / torch.norm_except_dim(v, 2, dim))

    with ExitStack() as stack:
        for module in (torch, weight_norm):
            if hasattr(module, "_weight_norm"):
                stack.enter_context(instead(module, _weight_norm=by_operations))
        yield


@contextmanager
def embeddings_of_operations() -> Iterator[None]:
    """What a lookup reads of `padding_idx` as the constant for which torch's backward pass takes it, and training with it.

    Forward mode differentiates it, and a difference of gradients moves it: `weight.held`, where there is one, says what it is.
    Gradients are dense, and those that are divided by how often a row is read are no derivative. Sums and means of bags are made
    of looked up rows: torch's own have neither forward mode nor a second derivative.
    """
    F: Any = torch.nn.functional
    embedding, embedding_bag = F.embedding, F.embedding_bag

    def looked_up(
        input: torch.Tensor, weight: torch.Tensor, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        if scale_grad_by_freq:
            raise ValueError(
                "an embedding has scale_grad_by_freq=True, so that its backward pass is not the derivative of what it computes; "
                "set it to False."
            )
        rows = embedding(input, weight, None, max_norm, norm_type)
        if padding_idx is None:
            return rows
        held = getattr(weight, "held", weight).detach()[padding_idx].to(rows)
        return torch.where((input == padding_idx % len(weight)).unsqueeze(-1), held, rows)

    def bags(
        input: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
        per_sample_weights: torch.Tensor | None = None, include_last_offset: bool = False, padding_idx: int | None = None,
    ) -> torch.Tensor:  # fmt: skip
        if mode == "max":
            return embedding_bag(
                input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
                include_last_offset, padding_idx,
            )  # fmt: skip
        ids = input.reshape(-1)
        if offsets is None:  # bags of one length
            number, bag = len(input), torch.arange(len(ids), device=ids.device) // max(1, input.shape[1])
        else:
            number = len(offsets) - include_last_offset
            bag = torch.bucketize(torch.arange(len(ids), device=ids.device), offsets[:number], right=True) - 1
        share = (ids != padding_idx % len(weight) if padding_idx is not None else torch.ones_like(ids)).to(weight.dtype)
        if mode == "mean":
            share = share / share.new_zeros(number).index_add(0, bag, share).clamp(min=1)[bag]
        elif per_sample_weights is not None:
            share = share * per_sample_weights.reshape(-1)
        rows = looked_up(ids, weight, None, max_norm, norm_type, scale_grad_by_freq)
        return rows.new_zeros(number, rows.shape[1]).index_add(0, bag, rows * share[:, None])

    with instead(F, embedding=looked_up, embedding_bag=bags):
        yield
