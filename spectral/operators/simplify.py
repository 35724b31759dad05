"""Rewrites of a recorded program that save operations and memory.

Derivatives of derivatives ask for the same thing again and again (a mean, a centred activation, a transposed gradient), once
for each path by which it is reached; a recorder that copies its constants keeps each copy. Here equal operations become one,
constants that hold the same numbers one memory, and x + a b of matrices one product that adds.

What lies between matrix products is linear, entry by entry: y = sum_i c_i s_i with constants c_i and few values s_i, which
may be smaller than y and broadcast to it. `combine` writes it so, with the c_i computed once (partial evaluation; a chain of
many factors is one diagonal). Values change by rounding alone.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import fx

aten: Any = torch.ops.aten
Node: TypeAlias = Any  # of an fx graph
Values = dict[Node, torch.Tensor]
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
SUMMING = {aten.mm.default: aten.addmm.default, aten.bmm.default: aten.baddbmm.default}  # a b: c + a b
ZEROS = (aten.zeros_like.default, aten.new_zeros.default)
LEAST = 64  # entries from which a constant is worth a look for its double
PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.neg.default, aten.div.Tensor, aten.div.Scalar)
SUMS = (aten.add.Tensor, aten.sub.Tensor)
POINTWISE = (  # linear in the first operand, entry by entry
    aten.threshold_backward.default, aten.tanh_backward.default, aten.sigmoid_backward.default,
    aten.gelu_backward.default, aten.silu_backward.default, aten.leaky_relu_backward.default, aten.elu_backward.default,
    aten.hardtanh_backward.default, aten.softplus_backward.default, aten.hardswish_backward.default,
    aten.hardsigmoid_backward.default, aten.mish_backward.default, aten.logit_backward.default,
)  # fmt: skip
COSTLY = 3  # passes over memory that such an operation is worth
INLINE = 2  # terms of a value that is written out again for each of several readers, at most
# A coefficient: a number, a constant's node, ("+" | "*", coefficient, coefficient), ("1/", coefficient) or ("of", node): the
# diagonal of a pointwise operation.
Coefficient: TypeAlias = Any
Form = dict[Node, Coefficient]  # s_i: c_i


def simplify(graph: fx.Graph, value: Values) -> None:
    """Rewrite a graph without operations in place; `value` holds its constants by placeholder and is kept in step."""
    _drop_copies(graph)
    share(graph, value)
    _drop_zeros(graph, value)
    combine(graph, value)
    share(graph, value, reshaped=True)
    sum_products(graph)


def share(graph: fx.Graph, value: Values, reshaped: bool = False) -> None:
    """Once what is computed or kept twice, in a graph without operations in place; `value`: constants by placeholder.

    `reshaped`: also constants that differ in shape, whose doubles become views: no constants any more to other rewrites.
    """
    _share_constants(graph, value, reshaped)
    _shorten_views(graph)
    _merge(graph)
    clean(graph, value)


def clean(graph: fx.Graph, value: Values) -> None:
    """Without operations and constants that nothing reads."""
    graph.eliminate_dead_code()
    for node in [node for node in value if not node.users]:
        graph.erase_node(node)
        del value[node]


def _replace(graph: fx.Graph, node: Node, other: Node) -> None:
    node.replace_all_uses_with(other)
    graph.erase_node(node)


def likeness(t: torch.Tensor, dense: bool = False) -> tuple[Any, ...]:
    """What tensors that hold the same numbers in the same order have in common; of `dense` ones, whatever their shapes."""
    key = (t.numel(), t.dtype, t.device) if dense else (t.shape, t.stride(), t.dtype, t.device)
    if not t.is_floating_point():
        return key
    return (*key, float(t.reshape(-1)[:: max(1, t.numel() // 8)].double().sum()))  # most differ here already


def _share_constants(graph: fx.Graph, value: Values, reshaped: bool) -> None:
    """Constants that hold the same numbers in the same order become one."""
    known: dict[tuple[Any, ...], list[Node]] = {}
    names = list(value)
    for node in names:
        t = value[node]
        dense = reshaped and t.is_contiguous()
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


def _drop_copies(graph: fx.Graph) -> None:
    """Copies in the layout of the original: nothing is written in place."""
    for node in graph.find_nodes(op="call_function", target=aten.clone.default):
        if node.meta["strides"] == node.args[0].meta.get("strides"):
            _replace(graph, node, node.args[0])


def _drop_zeros(graph: fx.Graph, value: Values) -> None:
    """x + 0, x - 0: of tangents that are zero, of gradients that are added to new zeros."""
    for node in [node for node in graph.nodes if _is(node, SUMS) and not node.kwargs]:
        sides = (node.args[:2], node.args[1::-1])
        for x, zero in sides if node.target is aten.add.Tensor else sides[:1]:
            nothing = _is(zero, ZEROS) or (zero in value and not value[zero].any())
            if nothing and x not in value and alike(x, node):
                _replace(graph, node, x)
                break


def _shorten_views(graph: fx.Graph) -> None:
    """Views of views, and those that change nothing."""
    for node in list(graph.nodes):
        if _is(node, VIEWS):
            source = node.args[0]
            while _is(source, VIEWS):
                source = source.args[0]
            node.target, node.args = aten.reshape.default, (source, list(node.meta["shape"]))
            if alike(source, node) and source.meta.get("strides") == node.meta["strides"]:
                _replace(graph, node, source)
        elif _is(node, (aten.expand.default,)) and alike(node.args[0], node):
            _replace(graph, node, node.args[0])
        elif _is(node, (aten.t.default,)) and _is(node.args[0], (aten.t.default,)):
            _replace(graph, node, node.args[0].args[0])


def _merge(graph: fx.Graph) -> None:
    """Equal operations on equal operands become one."""
    known: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        if key in known:
            _replace(graph, node, known[key])
        else:
            known[key] = node


def _frozen(argument: Any) -> Any:
    """An argument as a key; numbers of different types differ."""
    if isinstance(argument, list | tuple):
        return tuple(map(_frozen, argument))
    if isinstance(argument, dict):
        return tuple((key, _frozen(argument[key])) for key in sorted(argument))
    return argument if isinstance(argument, fx.Node) else (type(argument), argument)


def combine(graph: fx.Graph, value: Values) -> None:
    """Write y = sum_i c_i s_i where that takes fewer passes over memory than the operations that are there."""
    forms, cost, needed = _forms(graph, value)
    made: dict[Node, Node] = {}
    known: dict[Coefficient, Any] = {}
    last = next(reversed(graph.find_nodes(op="placeholder")))
    for y in needed:
        form = {made.get(s, s): c for s, c in forms[y].items()}
        if _passes(form, y) >= cost[y]:
            continue
        terms: list[tuple[Node, Any]] = []
        for s, c in form.items():
            factor = _evaluate(c, value, known)
            if isinstance(factor, torch.Tensor):
                with graph.inserting_after(last):
                    last = graph.placeholder(f"d{len(value)}")
                last.meta.update(shape=factor.shape, dtype=factor.dtype, strides=factor.stride())
                value[last] = known[c] = factor
                factor = last
            terms.append((s, factor))
        whole = y.meta["shape"]
        terms.sort(key=lambda t: (not _whole(t[0], t[1], y), _shape(t[0], t[1]) != whole))
        total: Any = None
        with graph.inserting_before(y):
            for s, factor in terms:
                total = _plus(graph, total, s, factor, y)
        y.replace_all_uses_with(total)
        made[y] = total


def _forms(graph: fx.Graph, value: Values) -> tuple[dict[Node, Form], dict[Node, int], list[Node]]:
    """(what each pointwise value is made of, passes that its own operations take, those that must be there), in order."""
    parts = {node: found for node in graph.nodes if (found := _parts(node, value)) is not None}
    forms: dict[Node, Form] = {}
    cost: dict[Node, int] = {}
    needed: dict[Node, None] = {}
    for y, terms in parts.items():
        form: Form = {}
        passes = COSTLY if y.target in POINTWISE else 1
        spared = False
        for x, factor in terms:
            inner = {x: 1.0}
            if x in parts and alike(x, y):
                outside = any(user not in parts or not alike(user, x) for user in x.users)
                several = len(forms[x]) > 1 and outside
                if not several and (len(x.users) == 1 or len(forms[x]) <= INLINE):
                    inner = forms[x]
                    if len(x.users) == 1:
                        passes += cost[x]
                        spared = spared or (y.target in SUMS and x.target is aten.mul.Tensor)  # x + y z is one pass
            if inner.get(x) == 1.0 and x in parts:
                needed[x] = None
            for s, c in inner.items():
                made = _times(c, factor)
                form[s] = made if s not in form else ("+", form[s], made)
        forms[y], cost[y] = form, passes - spared
        if any(user not in parts for user in y.users):
            needed[y] = None
    return forms, cost, [y for y in parts if y in needed]


def _parts(node: Node, value: Values) -> list[tuple[Node, Coefficient]] | None:
    """[(x, c), ...] if the node is sum c x, entry by entry, with x that broadcast to its shape; None if it is not."""
    if node.op != "call_function" or node.target not in (*PRODUCTS, *SUMS, *POINTWISE) or "shape" not in node.meta:
        return None
    moving = [a for a in node.args if isinstance(a, fx.Node) and a not in value]
    others = [a for a in node.args if isinstance(a, fx.Node) and a in value]
    kinds = {a.meta.get("dtype") for a in (*moving, *others)}
    if kinds != {node.meta["dtype"]} or set(node.kwargs) - {"alpha", "approximate"}:
        return None
    first = node.args[0] is moving[0]
    if node.target in SUMS:
        sign = node.kwargs.get("alpha", 1) * (1 if node.target is aten.add.Tensor else -1)
        return [(moving[0], 1.0), (moving[1], float(sign))] if len(moving) == 2 == len(node.args) else None
    if len(moving) != 1 or not (first or node.target is aten.mul.Tensor):
        return None
    if node.target in POINTWISE:
        return [(moving[0], ("of", node))] if alike(moving[0], node) else None
    if node.target is aten.neg.default:
        return [(moving[0], -1.0)]
    c = node.args[1] if first else node.args[0]
    c = c if isinstance(c, fx.Node) else float(c)
    if node.target in (aten.div.Tensor, aten.div.Scalar):
        c = ("1/", c) if isinstance(c, fx.Node) else 1.0 / c
    return [(moving[0], c)]


def _times(a: Coefficient, b: Coefficient) -> Coefficient:
    if isinstance(a, float) and isinstance(b, float):
        return a * b
    return b if a == 1.0 else a if b == 1.0 else ("*", a, b)


def _evaluate(c: Coefficient, value: Values, known: dict[Coefficient, Any]) -> Any:
    """A number, or a tensor that is computed once."""
    if isinstance(c, fx.Node):
        return value[c]
    if not isinstance(c, tuple) or c in known:
        return known.get(c, c)
    if c[0] == "of":
        node = c[1]
        rest = [value[a] if isinstance(a, fx.Node) else a for a in node.args[1:]]
        device = next(a.device for a in rest if isinstance(a, torch.Tensor))
        one = torch.ones((), dtype=node.meta["dtype"], device=device).expand(node.meta["shape"])
        made = node.target(one, *rest, **node.kwargs)
    else:
        a, *b = (_evaluate(part, value, known) for part in c[1:])
        made = 1.0 / a if c[0] == "1/" else a + b[0] if c[0] == "+" else a * b[0]
    known[c] = made.contiguous() if isinstance(made, torch.Tensor) else made
    return known[c]


def _whole(s: Node, c: Coefficient, y: Node) -> bool:
    """Whether a sum may begin with s alone."""
    return c == 1.0 and alike(s, y)


def _shape(s: Node, factor: Any) -> torch.Size:
    """Of a product."""
    return (
        s.meta["shape"] if isinstance(factor, float) else torch.broadcast_shapes(s.meta["shape"], factor.meta["shape"])
    )


def _passes(form: Form, y: Node) -> int:
    """Passes over y's memory that a sum takes."""
    return len(form) - any(_whole(s, c, y) for s, c in form.items())


def _plus(graph: fx.Graph, total: Node | None, s: Node, factor: Any, y: Node) -> Node:
    """total + factor s."""

    def call(target: Any, args: tuple[Any, ...], shape: Any, **kwargs: Any) -> Node:
        made = graph.call_function(target, args, kwargs)
        made.meta.update(dtype=y.meta["dtype"], shape=shape, strides=torch.empty(shape, device="meta").stride())
        return made

    if isinstance(factor, float):
        if total is not None:
            return call(aten.add.Tensor, (total, s), y.meta["shape"], **({} if factor == 1.0 else {"alpha": factor}))
        return s if factor == 1.0 else call(aten.mul.Scalar, (s, factor), s.meta["shape"])
    product = call(aten.mul.Tensor, (s, factor), _shape(s, factor))
    return product if total is None else call(aten.add.Tensor, (total, product), y.meta["shape"])


def sum_products(graph: fx.Graph) -> None:
    """c + a b of matrices, or of batches of them: the product adds to c by itself."""
    for node in list(graph.nodes):
        if not _is(node, (aten.add.Tensor,)) or node.kwargs:
            continue
        for c, product in (node.args[:2], node.args[1::-1]):
            if _is(product, tuple(SUMMING)) and len(product.users) == 1 and alike(product, node) and _fits(c, node):
                with graph.inserting_before(node):
                    made = graph.call_function(SUMMING[product.target], (c, *product.args))
                made.meta.update(product.meta)
                _replace(graph, node, made)
                graph.erase_node(product)
                break


def _fits(c: Any, node: Node) -> bool:
    """Whether c can be added to: of the node's dtype, and broadcast to its shape."""
    shape = c.meta.get("shape") if isinstance(c, fx.Node) else None
    if shape is None or c.meta["dtype"] != node.meta["dtype"] or len(shape) > len(node.meta["shape"]):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(node.meta["shape"]), strict=False))


def _is(node: Any, targets: tuple[Any, ...]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def alike(a: Any, b: Node) -> bool:
    """Whether a value has the shape and dtype of another."""
    return isinstance(a, fx.Node) and all(a.meta.get(key) == b.meta.get(key) for key in ("shape", "dtype"))
