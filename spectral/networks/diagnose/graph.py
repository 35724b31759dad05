"""What the backward graph of a function tells: which primals it reaches, what it holds, in which dtypes it was made."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from spectral import arrays
from spectral.engine.linearize import Function, Tensors
from spectral.engine.private import DispatchMode, dtypes_of
from spectral.networks.trees import tensors


@dataclass(frozen=True)
class GraphFacts:
    """One forward pass with its graph: value, bytes that the graph holds beyond the primals, the coarsest floating dtype that
    derivatives are computed from, which primals it reaches, and which of `others` (tensors that it must not depend on)."""

    value: torch.Tensor = field(repr=False)
    bytes: int
    dtype: torch.dtype
    reached: tuple[bool, ...]
    strangers: tuple[int, ...] = ()
    ruleless: bool = False  # whether an operation without a rule for its derivative lies on the way


class Made(DispatchMode):
    """The floating tensors that are computed: an upper bound of what a graph keeps, where hooks are not allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.kinds: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for t in tensors([output]):
            if t.is_floating_point():
                self.kinds.add(t.dtype)
                if t.layout == torch.strided:
                    self.sizes[len(self.sizes)] = t.nbytes
        return output


def graph_facts(function: Function, primals: Tensors, others: Tensors = (), below: Tensors = ()) -> GraphFacts:
    """The facts of `function` at `primals`, from one forward pass; `below` is filled in it, where it cuts its graph in two."""
    leaves = tuple(p.detach().requires_grad_() for p in primals)
    made: list[tuple[weakref.ref[torch.Tensor], bool]] = []  # (what is saved, whether it is computed of the leaves)

    def pack(t: torch.Tensor) -> torch.Tensor:
        saved = t.detach()  # an output would hold its graph, which holds it
        made.append((weakref.ref(saved), t.requires_grad))  # a constant, such as a mask, is what it is, however coarse
        return saved

    kinds = {p.dtype for p in primals}
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            z = function(*leaves)
    except RuntimeError as problem:
        if "saved tensor hooks" not in str(problem):  # torch.func inside the function forbids them
            raise
        with Made() as seen:
            z = function(*leaves)
        kinds |= seen.kinds
        size = sum(seen.sizes.values())
    else:
        # of what the function has not dropped already, such as a model's own loss
        held = [(t, derived) for t, derived in ((reference(), derived) for reference, derived in made) if t is not None]
        alive = [t for t, _ in held]
        # torch 2.6 marks what it makes again by an empty float32
        kinds |= {t.dtype for t, derived in held if derived and t.numel()}
        own = {p.untyped_storage().data_ptr() for p in primals}
        parts = [part for t in alive for part in arrays.strided(t)]
        size = sum(bytes for address, bytes in arrays.storages(parts).items() if address not in own)
    kinds.add(z.dtype)  # a cast keeps nothing, here and on the way
    read: dict[Any, set[int]] = {}
    graph = nodes([z, *below])
    for node in graph:
        for above, place in node.next_functions:
            if above is not None:
                read.setdefault(above, set()).add(place)
    for node in graph:  # what a Function keeps may be what it has computed, and requires no gradient
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            with suppress(RuntimeError):  # it was written to since, or given back
                kinds |= {t.dtype for t in node.saved_tensors if t is not None and t.numel()}
    # of 8 bits no test would be left
    kinds |= {kind for node, places in read.items() for kind in dtypes_of(node, places) if kind.itemsize > 1}
    ends = {id(t) for t in arrays.reached_leaves([z, *below])}
    return GraphFacts(
        z.detach(),
        size,
        max((kind for kind in kinds if kind.is_floating_point), key=arrays.machine_epsilon),
        tuple(id(leaf) in ends for leaf in leaves),
        tuple(i for i, other in enumerate(others) if id(other) in ends),
        any(node.name() == "torch::autograd::WarnNotImplemented" for node in graph),
    )


def nodes(values: Sequence[torch.Tensor]) -> list[Any]:
    """The nodes of the backward graph of some values."""
    return arrays.nodes(z.grad_fn for z in values)
