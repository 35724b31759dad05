"""Rewrites of a recorded program that save memory traffic: results where an operand dies, a product and a sum in one pass.

A pointwise operation of a product reads and writes tensors as large as a layer's activations and computes next to nothing;
memory that is asked for anew also costs the system a fault for each page. Values change by rounding alone (one operation
instead of two in `addcmul`).
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from spectral.engine import private
from spectral.engine.passes.cse import SUMS, Node, alike, aten, calls, replace

VIEWS = ("_unsafe_view", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")  # views, though no schema says so
PLACES = {  # operation: (the one in place, operands that it may be written to)
    aten.mul.Tensor: (aten.mul_.Tensor, (0, 1)),
    aten.mul.Scalar: (aten.mul_.Scalar, (0,)),
    aten.div.Tensor: (aten.div_.Tensor, (0,)),
    aten.div.Scalar: (aten.div_.Scalar, (0,)),
    aten.neg.default: (aten.neg_.default, (0,)),
    aten.add.Tensor: (aten.add_.Tensor, (0, 1)),
    aten.sub.Tensor: (aten.sub_.Tensor, (0,)),
    aten.addcmul.default: (aten.addcmul_.default, (0,)),
    aten.addmm.default: (aten.addmm_.default, (0,)),
    aten.baddbmm.default: (aten.baddbmm_.default, (0,)),
}


def fuse(graph: fx.Graph) -> None:
    """x + y z, x - y z: one pass over memory instead of two, in a graph without operations in place, other than on its inputs."""
    node: Node
    for node in list(graph.nodes):
        if not calls(node, SUMS) or node.kwargs or "shape" not in node.meta:
            continue
        for side in (1, 0) if node.target is aten.add.Tensor else (1,):
            product, other = node.args[side], node.args[1 - side]
            if (
                calls(product, (aten.mul.Tensor,))
                and len(product.users) == 1
                and all(alike(a, node, "strides") for a in (other, product))
                and all(isinstance(a, fx.Node) and a.meta.get("dtype") == node.meta["dtype"] for a in product.args)
            ):
                value: dict[str, Any] = {} if node.target is aten.add.Tensor else {"value": -1}
                with graph.inserting_before(node):
                    made = graph.call_function(aten.addcmul.default, (other, *product.args), value)
                made.meta.update(node.meta)
                replace(graph, node, made)
                graph.erase_node(product)
                break


def reuse(graph: fx.Graph) -> None:
    """Write a pointwise result to an operand that nothing reads afterwards, by whatever name."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    root: dict[Node, Node | None] = {}  # whose memory a value lies in; None: not ours
    names: dict[Node, list[Node]] = {}  # all values in that memory

    def last(memory: Node) -> int:
        return max((order[user] for name in names[memory] for user in name.users), default=-1)

    for node in graph.nodes:
        place = _place(node, root, order, last)
        if place is not None:
            operand = node.args[place]
            node.args = (operand, *(a for i, a in enumerate(node.args) if i != place))
            node.target = PLACES[node.target][0]
            root[node] = root[operand]
        else:
            root[node] = _root(node, root)
        memory = root[node]
        if memory is not None:
            names.setdefault(memory, []).append(node)


def _root(node: Node, root: dict[Node, Node | None]) -> Node | None:
    """The value in whose memory this one lies, if that is the program's own."""
    if node.op != "call_function":
        return None
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    views = _views(source.target if source is not None and node.target is operator.getitem else node.target)
    return node if not views else root[source] if source is not None else None


def _views(target: Any) -> bool:
    """Whether what an operation returns may lie in its operand's memory."""
    schema = private.schema(target)
    if schema is None:
        return True
    named = schema.name.removeprefix("aten::") in VIEWS
    return named or schema.is_mutable or any(r.alias_info is not None for r in schema.returns)


def _place(node: Node, root: dict[Node, Node | None], order: dict[Node, int], last: Any) -> int | None:
    """The operand that may take the result."""
    if node.target not in PLACES:
        return None
    for i in PLACES[node.target][1]:
        operand = node.args[i] if i < len(node.args) else None
        if not alike(operand, node, "strides") or not _dense(operand):
            continue
        memory = root[operand]
        if memory is None or last(memory) > order[node]:
            continue
        others = [a for j, a in enumerate(node.args) if j != i and isinstance(a, fx.Node)]
        if all(a is operand or root[a] is not memory for a in others) and not (i == 1 and node.kwargs):
            return i
    return None


def _dense(node: Node) -> bool:
    """Whether no two entries lie in one place."""
    reach = 1
    for stride, size in sorted(zip(node.meta["strides"], node.meta["shape"], strict=True)):
        if size > 1:
            if stride < reach:
                return False
            reach = stride * size
    return True
