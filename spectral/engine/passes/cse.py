"""Common subexpressions of a recorded program: equal operations become one, constants of the same numbers one memory.

Derivatives of derivatives ask for the same thing again and again (a mean, a centred activation, a transposed gradient), once
for each path by which it is reached; a tracer that copies its constants keeps each copy.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx

from spectral.engine import private

aten: Any = torch.ops.aten
Node: TypeAlias = Any  # of an fx graph; its arguments may be anything, which no type says
Values = dict[Node, torch.Tensor]
VIEWS = (aten.view.default, private.unsafe_view, aten.reshape.default)
SUMS = (aten.add.Tensor, aten.sub.Tensor)
ZEROS = (aten.zeros_like.default, aten.new_zeros.default)
LEAST = 64  # entries from which a constant is worth a look for its double


def share(graph: fx.Graph, value: Values) -> None:
    """Once what is computed twice, in a graph without operations in place; `value`: constants by placeholder.

    Constants of one shape are shared already: the tracer has met them one by one.
    """
    _shorten_views(graph)
    _merge(graph)
    clean(graph, value)


def clean(graph: fx.Graph, value: Values) -> None:
    """Without operations and constants that nothing reads."""
    graph.eliminate_dead_code()
    for node in [node for node in value if not node.users]:
        graph.erase_node(node)
        del value[node]


def replace(graph: fx.Graph, node: Node, other: Node) -> None:
    node.replace_all_uses_with(other)
    graph.erase_node(node)


def likeness(t: torch.Tensor, dense: bool = False) -> tuple[Any, ...]:
    """What tensors that hold the same numbers in the same order have in common; of `dense` ones, whatever their shapes."""
    key = (t.numel(), t.dtype, t.device) if dense else (t.shape, t.stride(), t.dtype, t.device)
    if not t.is_floating_point():
        return key
    places = range(0, t.numel(), max(1, t.numel() // 8))
    if t.is_contiguous():
        some = t.view(-1)[:: places.step]
    else:  # a transpose, of which no copy is made
        some = t[tuple(map(torch.from_numpy, np.unravel_index(places, t.shape)))]
    return (*key, float(some.cpu().double().sum()))  # most differ here already


def share_constants(graph: fx.Graph, value: Values) -> None:
    """Constants that hold the same numbers in the same order become one; those of another shape its views.

    Views are no constants any more to other rewrites, which come before.
    """
    known: dict[tuple[Any, ...], list[Node]] = {}
    names = list(value)
    for node in names:
        t = value[node]
        dense = t.is_contiguous()
        if t.numel() < LEAST:
            continue
        key = likeness(t, dense)
        for other in known.get(key, []):
            s = value[other]
            if not torch.equal(s.view(-1) if dense else s, t.view(-1) if dense else t):
                continue
            if s.shape == t.shape:
                node.replace_all_uses_with(other)
            else:
                with graph.inserting_after(names[-1]):
                    seen = graph.call_function(aten.view.default, (other, list(t.shape)))
                seen.meta.update(shape=t.shape, dtype=t.dtype, strides=t.stride())
                node.replace_all_uses_with(seen)
            break
        else:
            known.setdefault(key, []).append(node)


def drop_copies(graph: fx.Graph) -> None:
    """Copies in the layout of the original: nothing is written in place."""
    for node in graph.find_nodes(op="call_function", target=aten.clone.default):
        if node.meta["strides"] == node.args[0].meta.get("strides"):
            replace(graph, node, node.args[0])


def drop_zeros(graph: fx.Graph, value: Values) -> None:
    """x + 0, x - 0: of tangents that are zero, of gradients that are added to new zeros."""
    for node in [node for node in graph.nodes if calls(node, SUMS) and not node.kwargs]:
        sides = (node.args[:2], node.args[1::-1])
        for x, zero in sides if node.target is aten.add.Tensor else sides[:1]:
            nothing = calls(zero, ZEROS) or (zero in value and not value[zero].any())
            if nothing and x not in value and alike(x, node):
                replace(graph, node, x)
                break


def _shorten_views(graph: fx.Graph) -> None:
    """Views of views, and those that change nothing."""
    for node in list(graph.nodes):
        if calls(node, VIEWS):
            source = node.args[0]
            while calls(source, VIEWS):
                source = source.args[0]
            node.target, node.args = aten.reshape.default, (source, list(node.meta["shape"]))
            if alike(source, node) and source.meta.get("strides") == node.meta["strides"]:
                replace(graph, node, source)
        elif calls(node, (aten.expand.default,)) and alike(node.args[0], node):
            replace(graph, node, node.args[0])
        elif calls(node, (aten.t.default,)) and calls(node.args[0], (aten.t.default,)):
            replace(graph, node, node.args[0].args[0])


def _merge(graph: fx.Graph) -> None:
    """Equal operations on equal operands become one."""
    known: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        if key in known:
            replace(graph, node, known[key])
        else:
            known[key] = node


def _frozen(argument: Any) -> Any:
    """An argument as a key; numbers of different types differ."""
    if isinstance(argument, list | tuple):
        return tuple(map(_frozen, argument))
    if isinstance(argument, dict):
        return tuple((key, _frozen(argument[key])) for key in sorted(argument))
    return argument if isinstance(argument, fx.Node) else (type(argument), argument)


def calls(node: Any, targets: tuple[Any, ...]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def alike(a: Any, b: Node, *also: str) -> bool:
    """Whether a value has the shape and dtype of another, and `also` its strides."""
    return isinstance(a, fx.Node) and all(a.meta.get(key) == b.meta.get(key) for key in ("shape", "dtype", *also))
