"""What lies between a recorded program's matrix products, multiplied out; sums of matrix products that add by themselves.

Between matrix products everything is linear, entry by entry: y = sum_i c_i s_i with constants c_i and few values s_i, which
may be smaller than y and broadcast to it. `combine` writes it so, with the c_i computed once (partial evaluation; a chain of
many factors is one diagonal). Values change by rounding alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from spectral import arrays
from spectral.engine.passes import cse
from spectral.engine.passes.cse import SUMS, Node, Values, alike, aten, calls, replace

SUMMING = {aten.mm.default: aten.addmm.default, aten.bmm.default: aten.baddbmm.default}  # a b: c + a b
PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.neg.default, aten.div.Tensor, aten.div.Scalar)
POINTWISE = (  # linear in the first operand, entry by entry
    aten.threshold_backward.default, aten.tanh_backward.default, aten.sigmoid_backward.default,
    aten.gelu_backward.default, aten.silu_backward.default, aten.leaky_relu_backward.default, aten.elu_backward.default,
    aten.hardtanh_backward.default, aten.softplus_backward.default, aten.hardswish_backward.default,
    aten.hardsigmoid_backward.default, aten.mish_backward.default, aten.logit_backward.default,
)  # fmt: skip
COSTLY = 3  # passes over memory that such an operation is worth
INLINE = 2  # terms of a value that is written out again for each of several readers, at most


@dataclass(frozen=True)
class Combined:
    """a + b, a b or a / b, entry by entry: `rule` is a function of `operator`."""

    rule: Callable[[Any, Any], Any]
    a: Coefficient
    b: Coefficient

    def evaluate(self, value: Callable[[Coefficient], Factor]) -> Factor:
        made: Factor = self.rule(value(self.a), value(self.b))
        return made


@dataclass(frozen=True)
class Diagonal:
    """The diagonal of a pointwise operation: what it makes of ones."""

    node: Node

    def evaluate(self, value: Callable[[Coefficient], Factor]) -> Factor:
        node = self.node
        rest: list[Any] = [value(a) if isinstance(a, fx.Node) else a for a in node.args[1:]]
        device = next(a.device for a in rest if isinstance(a, torch.Tensor))
        one = torch.ones((), dtype=node.meta["dtype"], device=device).expand(node.meta["shape"])
        made: torch.Tensor = node.target(one, *rest, **node.kwargs)  # type: ignore[operator]
        return made


Factor: TypeAlias = float | torch.Tensor
Coefficient: TypeAlias = "float | Node | Combined | Diagonal"  # a node is a constant's
Form = dict[Node, Coefficient]  # s_i: c_i


def simplify(graph: fx.Graph, value: Values) -> int:
    """Rewrite a graph without operations in place; `value` holds its constants by placeholder and is kept in step.

    Returns the bytes of new constants, which are there before the old ones go.
    """
    cse.drop_copies(graph)
    cse.share(graph, value)
    cse.drop_zeros(graph, value)
    weigh(graph, value)
    made = combine(graph, value)
    cse.share_constants(graph, value)
    cse.share(graph, value)
    sum_products(graph)
    return made


def weigh(graph: fx.Graph, value: Values) -> None:
    """A convolution by an image is a weight's gradient, for which libraries have faster kernels, 1.1 to 4.5 times here.

    Double backward passes take it so: samples are channels, stride and dilation change places.
    """
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        x, image, bias, stride, padding, dilation, transposed, rest, groups = node.args
        (a, b, *size), device = node.meta["shape"], node.meta["device"]
        reach = [
            n + 2 * p - s * (k - 1) - 1 for n, p, s, k in zip(x.meta["shape"][2:], padding, stride, size, strict=True)
        ]
        seen = [n // d + 1 for n, d in zip(reach, dilation, strict=True)]  # by a kernel like the result
        if bias is not None or transposed or groups != 1 or seen != list(image.meta["shape"][2:]):
            continue
        if not (_turns(x) or _turns(image)):
            continue
        # read for its shape alone
        weight = _constant(graph, value, torch.zeros((), dtype=node.meta["dtype"], device=device).expand(b, a, *size))
        with graph.inserting_before(node):
            operands = _turned(graph, image), _turned(graph, x), weight
            options = (None, dilation, padding, stride, False, rest, 1, [False, True, False])
            gradients = graph.call_function(aten.convolution_backward.default, (*operands, *options))
            gradient = graph.call_function(operator.getitem, (gradients, 1))
            gradient.meta.update(weight.meta, strides=_strides(weight.meta["shape"]), device=device)
            made = _turned(graph, gradient)
        replace(graph, node, made)


def _turns(node: Node) -> bool:
    """Whether it exchanges the first two axes."""
    return calls(node, (aten.transpose.int,)) and set(node.args[1:]) == {0, 1}


def _turned(graph: fx.Graph, a: Node) -> Node:
    """Its first two axes exchanged."""
    if _turns(a):
        return a.args[0]
    made = graph.call_function(aten.transpose.int, (a, 0, 1))
    made.meta.update(a.meta)
    for name in {"shape", "strides"} & a.meta.keys():
        m, n, *rest = a.meta[name]
        made.meta[name] = type(a.meta[name])((n, m, *rest))
    return made


def _constant(graph: fx.Graph, value: Values, tensor: torch.Tensor) -> Node:
    """One more constant."""
    with graph.inserting_after(next(reversed(graph.find_nodes(op="placeholder")))):
        made = graph.placeholder(f"d{len(value)}")
    made.meta.update(shape=tensor.shape, dtype=tensor.dtype, strides=tensor.stride())
    value[made] = tensor
    return made


def _strides(shape: Any) -> tuple[int, ...]:
    """Of a new tensor."""
    return torch.empty(shape, device="meta").stride()


def combine(graph: fx.Graph, value: Values) -> int:
    """Write y = sum_i c_i s_i where that takes fewer passes over memory than the operations that are there; bytes of all c_i."""
    forms, cost, needed = _forms(graph, value)
    made: dict[Node, Node] = {}
    known: dict[Coefficient, Factor] = {}
    placed: dict[Coefficient, Node] = {}  # placeholders of coefficients that are tensors
    for y in needed:
        form = {made.get(s, s): c for s, c in forms[y].items()}
        if _passes(form, y) >= cost[y]:
            continue
        terms: list[tuple[Node, Any]] = []
        for s, c in form.items():
            factor = _evaluate(c, value, known)
            if isinstance(factor, torch.Tensor) and c not in placed:
                placed[c] = _constant(graph, value, factor)
            terms.append((s, placed.get(c, factor)))
        whole = y.meta["shape"]
        terms.sort(key=lambda t: (not _whole(t[0], t[1], y), _shape(t[0], t[1]) != whole))
        total: Any = None
        with graph.inserting_before(y):
            for s, factor in terms:
                total = _plus(graph, total, s, factor, y)
        y.replace_all_uses_with(total)
        made[y] = total
    return sum(arrays.storages(factor for factor in known.values() if isinstance(factor, torch.Tensor)).values())


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
            inner: Form = {x: 1.0}
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
                form[s] = made if s not in form else Combined(operator.add, form[s], made)
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
        return [(moving[0], Diagonal(node))] if alike(moving[0], node) else None
    if node.target is aten.neg.default:
        return [(moving[0], -1.0)]
    c = node.args[1] if first else node.args[0]
    c = c if isinstance(c, fx.Node) else float(c)
    if node.target in (aten.div.Tensor, aten.div.Scalar):
        c = Combined(operator.truediv, 1.0, c) if isinstance(c, fx.Node) else 1.0 / c
    return [(moving[0], c)]


def _times(a: Coefficient, b: Coefficient) -> Coefficient:
    if isinstance(a, float) and isinstance(b, float):
        return a * b
    return b if a == 1.0 else a if b == 1.0 else Combined(operator.mul, a, b)


def _evaluate(c: Coefficient, value: Values, known: dict[Coefficient, Factor]) -> Factor:
    """A number, or a tensor that is computed once."""
    if isinstance(c, fx.Node):
        return value[c]
    if isinstance(c, float):
        return c
    if c not in known:
        made = c.evaluate(lambda part: _evaluate(part, value, known))
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
        made.meta.update(dtype=y.meta["dtype"], shape=shape, strides=_strides(shape))
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
        if not calls(node, (aten.add.Tensor,)) or node.kwargs:
            continue
        for c, product in (node.args[:2], node.args[1::-1]):
            if calls(product, tuple(SUMMING)) and len(product.users) == 1 and alike(product, node) and _fits(c, node):
                with graph.inserting_before(node):
                    made = graph.call_function(SUMMING[product.target], (c, *product.args))
                made.meta.update(product.meta)
                replace(graph, node, made)
                graph.erase_node(product)
                break


def _fits(c: Any, node: Node) -> bool:
    """Whether c can be added to: of the node's dtype, and broadcast to its shape."""
    shape = c.meta.get("shape") if isinstance(c, fx.Node) else None
    if shape is None or c.meta["dtype"] != node.meta["dtype"] or len(shape) > len(node.meta["shape"]):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(node.meta["shape"]), strict=False))
