"""How the linear maps of one batch (J v, J^T u, J^T H J v, H v) are computed.

The derivative is taken in one of two ways:

- `fresh`: forward-mode AD (of the gradient, for the Hessian), computed anew for each product; J^T u by a backward pass;
- `double-backward`: backward passes alone, through a graph that is recorded once; for functions without forward-mode AD.

Where neither holds, J v is made of the rows of J, one backward pass for each of a batch's outputs (`rows`), if these are few.
Either of the two can be run again without what does not depend on the vector (`spectral.engine.trace`):

- `replay`: the recorded program, for single vectors and, by vmap, for blocks of them;
- `compiled`: that program through `torch.compile`, once for all batches whose programs differ in their constants alone.

`auto` chooses by the products that are made anyway (`spectral.engine.autotune`). The first products of a way are held to
<J v, u> = <v, J^T u> (`Adjoint`), those of a Hessian to differences of gradients and to symmetry. A program is held to what it
was recorded from and, as it may be silently wrong from the second call on, to two products more before it multiplies alone.
Choice, reason and times stand in the operator's description. Linearisations and programs stay from sweep to sweep as far as a
memory budget goes (`spectral.engine.store`); batches beyond it are multiplied in the way.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, disable_saved_tensors_hooks, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectral import arrays, longvectors, probes
from spectral.engine import private, trace
from spectral.failures import REFUSALS
from spectral.threads import FORWARD_MODE, Shared

DIFFERENCE = "finite-difference"  # of the Hessian alone, and never chosen by itself
ENGINES = ("auto", "fresh", "replay", "double-backward", "compiled", DIFFERENCE)
ROWS = "rows"  # where no other way holds, and never asked for
MOST_ROWS = 1 << 10
PART = 1 << 20  # entries of a vector that are looked at at a time
TINY = 1e-25  # of a sum of squares in float32: below, and beyond what it holds, float64 tells
LOOKS = 32  # entries of a user's vector that tell whether it is like a random one
LARGE = 1 << 20  # entries of a parameter, parts of whose gradient do not wait for one another
CALLS = 3  # products of the first batch on which a program is held to its way, and in which a way is timed
Function = Callable[..., torch.Tensor]
Tensors = Sequence[torch.Tensor]
Vector = torch.Tensor | probes.Signs | Tensors
Held = Sequence[torch.Tensor | tuple[torch.Tensor, float]]  # pieces, or pieces over a unit
Waiting = list[torch.Tensor | tuple[torch.Tensor, float]]  # the same, to be emptied
Place = tuple[int, int, bool]  # of what a node of the graph gives: which, of which leaf, whether transposed
Giver = tuple[Any, Sequence[Place]]
Linear = Callable[[torch.Tensor], Tensors]  # a vector -> what follows one another in its image


math_attention = Shared(lambda: sdpa_kernel(SDPBackend.MATH))
"""Attention by matrix products and a softmax, which every kind of differentiation knows."""


def softmax_pullback(p: torch.Tensor, u: torch.Tensor, axis: int, *, own: bool = False) -> torch.Tensor:
    """(diag(p) - p p^T) u along an axis, p a softmax: its derivative is symmetric, and torch has it in one pass.

    A number that is added to u changes nothing: the likeliest class has 0 in it here. Where its p is nearly 1, as in a network
    that fits its targets, u - <p, u> would be rounding: off by eps / loss. `own`: u may be overwritten.
    """
    likeliest = u.gather(axis, p.argmax(axis, keepdim=True))
    return private.softmax_backward(u.sub_(likeliest) if own else u - likeliest, p, axis)


def gradients(total: torch.Tensor, leaves: Tensors, *, create_graph: bool = False) -> tuple[torch.Tensor, ...]:
    """The gradient of a scalar with respect to the leaves, zeros for those that it does not depend on."""
    if not total.requires_grad:
        return tuple(torch.zeros_like(p) for p in leaves)
    found = torch.autograd.grad(total, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    return dense(found if create_graph else [t.detach() for t in found])  # torch 2.6: see `_through`


def dense(parts: Tensors) -> tuple[torch.Tensor, ...]:
    """Gradients of sparse embeddings as ordinary tensors."""
    return tuple(t.to_dense() if t.layout != torch.strided else t for t in parts)


def edges(parts: Tensors) -> tuple[GradientEdge | None, ...]:
    """Where backward passes through these tensors begin, without their values; None for one that depends on nothing."""
    return tuple(get_gradient_edge(t) if t.requires_grad else None for t in parts)


def unviewed(t: torch.Tensor) -> torch.Tensor:
    """A part of a vector as a tensor of its own in the same memory: forward-mode AD would copy a view, and nobody writes to it.

    A program that is being recorded must see where it comes from, and gets t itself.
    """
    if not private.is_view(t) or not t.is_contiguous() or trace.recording():
        return t
    low, size = t.storage_offset() * t.element_size(), t.numel() * t.element_size()
    return t.new_empty(0).set_(t.untyped_storage()[low : low + size], 0, t.shape, t.stride())


def _copied(tangents: Tensors) -> tuple[torch.Tensor, ...]:
    """For forward-mode AD, which would copy a view into new memory that no program records."""
    return tuple(t.clone() if private.is_view(t) else t for t in tangents)


def _through(
    links: Sequence[GradientEdge | None],
    weights: Tensors,
    leaves: Tensors,
    there: Mapping[int, torch.Tensor] = MappingProxyType({}),
) -> tuple[torch.Tensor, ...]:
    """A backward pass from where some tensors begin, zeros for leaves that nothing leads to; the graph stays.

    `there`: the parts of some leaves' gradients that `written` has once the pass is over.
    """
    linked = [(g, t) for g, t in zip(links, weights, strict=True) if g is not None]
    pulled: Sequence[torch.Tensor | None] = (None,) * len(leaves)
    if linked:
        outputs, cotangents = zip(*linked, strict=True)
        pulled = torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True, allow_unused=True)
    made = []
    for i, (leaf, g) in enumerate(zip(leaves, pulled, strict=True)):
        if g is None:
            made.append(there[i] if i in there else torch.zeros_like(leaf))
        else:  # the cotangent itself, where a tensor is the leaf
            made.append(there[i].add_(g.detach()) if i in there else g.detach())
    return tuple(made)


@functools.cache
def _forward_rules() -> None:
    """Load what torch loads at the first dual tensor of a process: its deprecated `torch.jit.script` warns then, which is not for
    our users, and is an error in a program that takes warnings for errors.
    """
    with warnings.catch_warnings(), FORWARD_MODE, forward_ad.dual_level():
        warnings.simplefilter("ignore")
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


def pushed(function: Function) -> Function:
    """The function as forward mode must see it: what gradients do not go through, tangents do not."""

    def call(*leaves: torch.Tensor) -> torch.Tensor:
        with private.TangentsLikeGradients():
            return function(*leaves)

    return call


@contextmanager
def written(
    leaves: Tensors, room: torch.Tensor | None, givers: Sequence[Giver] = ()
) -> Iterator[dict[int, torch.Tensor]]:
    """Inside, a backward pass writes the leaves' gradients, one behind the other, into `room` if it has their size and dtype.

    Each is written as soon as it is there, and its own memory is free again: there are never two of such a vector. What `givers`
    give is added as it comes, for torch would keep what one of them gave until the last has given: of those leaves the gradients
    are in what is yielded.
    """
    there: dict[int, torch.Tensor] = {}
    if (
        room is None
        or sum(leaf.numel() for leaf in leaves) != room.numel()
        or any(p.dtype != room.dtype for p in leaves)
    ):
        yield there
        return
    pieces = room.split([leaf.numel() for leaf in leaves])
    parts = [part.view(p.shape) for p, part in zip(leaves, pieces, strict=True)]

    def write(into: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return into.copy_(g)  # which a sparse one becomes dense in

    def add(places: Sequence[Place], given: Tensors, _: Any) -> tuple[torch.Tensor | None, ...]:
        left: list[torch.Tensor | None] = list(given)
        for k, i, transposed in places:
            if (g := left[k]) is not None:
                part = parts[i].T if transposed else parts[i]
                _ = part.add_(g) if i in there else part.copy_(g)
                there[i], left[k] = parts[i], None
        return tuple(left)

    early = {i for _, places in givers for _, i, _ in places}
    hooks = [node.register_hook(functools.partial(add, places)) for node, places in givers]
    hooks += [
        p.register_hook(functools.partial(write, part))
        for i, (p, part) in enumerate(zip(leaves, parts, strict=True))
        if i not in early
    ]
    try:
        yield there
    finally:
        for hook in hooks:
            hook.remove()


def givers_of(starts: Iterable[Any], leaves: Tensors) -> list[Giver]:
    """The nodes of a backward graph that each give a part of the gradient of a large leaf, and at which places."""
    large = {id(p): i for i, p in enumerate(leaves) if p.numel() >= LARGE}
    there = arrays.nodes(starts) if large else []

    def find(node: Any) -> tuple[int, bool] | None:
        """The leaf that a node hands all that it gets on to, and whether transposed."""
        if (leaf := arrays.leaf_of(node)) is not None:
            return (large[id(leaf)], False) if id(leaf) in large else None
        beyond = find(node.next_functions[0][0]) if node is not None and node.name() == "TBackward0" else None
        return beyond and (beyond[0], not beyond[1])

    into = {node: found for node in there if (found := find(node)) is not None}
    places = ((node, [(k, *into[to]) for k, (to, _) in enumerate(node.next_functions) if to in into]) for node in there)
    return [(node, some) for node, some in places if some and node not in into]


class ForwardMode:
    """The linearisation of `function` at `primals`: `jvp(tangents) -> (B, k)`, `vjp(cotangent (B, k)) -> like primals`.

    `recorded`: the same function, whose graph is smaller.
    """

    room: torch.Tensor | None = None  # where the next J^T u may be written, once
    _passed = False  # the graph, by a backward pass

    def __init__(self, function: Function, primals: Tensors, recorded: Function | None = None) -> None:
        self.function, self.primals, self.recorded = function, tuple(primals), recorded or function
        self._leaves: tuple[torch.Tensor, ...] = ()
        self._output: torch.Tensor | None = None
        self._apart = recorded is not None  # forward pass and graph do not go together
        _forward_rules()

    @property
    def output(self) -> torch.Tensor:
        """z with its backward graph, recorded on first use.

        A program keeps the attention's probabilities for J v anyway: its backward pass need not make them again, as a fused one
        does, which has no rule for blocks either.
        """
        if self._output is None:
            self._leaves = tuple(p.detach().requires_grad_() for p in self.primals)
            with math_attention() if trace.recording() else nullcontext():
                self._output = self.recorded(*self._leaves)
        return self._output

    def vjp(self, cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """J^T u by one backward pass; torch.autograd.grad, which lives with activation checkpointing."""
        z = self.output
        if not z.requires_grad:  # the outputs do not depend on these primals
            return tuple(torch.zeros_like(p) for p in self.primals)
        room, self.room = self.room, None
        try:
            pulled = self._pull(cotangent, room)
        except REFUSALS:
            if not self._passed:
                raise
            self._output = None  # a graph that may be passed once (selective checkpoints) is made anew
            pulled = self._pull(cotangent, room)
        self._passed = True
        return tuple(t.detach() for t in pulled)  # torch 2.6 materialises zeros that require gradients

    def _pull(self, cotangent: torch.Tensor, room: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        z = self.output
        with written(self._leaves, room):
            return dense(torch.autograd.grad(
                z, self._leaves, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
            ))  # fmt: skip

    def jvp(self, tangents: Tensors, *, graph: bool = False) -> torch.Tensor:
        """J v by forward-mode AD; fused attention has none, so that the math kernel runs here.

        `graph`: J^T u comes next, so that this forward pass records the graph too, if none is there yet.
        """
        copies = _copied(tangents)
        with math_attention(), FORWARD_MODE:
            if graph and self._output is None and not self._apart and not trace.recording():
                try:
                    return self._both(copies)
                except RuntimeError:  # what records both does not do so for every operation
                    self._apart = True
            return torch.func.jvp(pushed(self.function), self.primals, copies)[1].detach()

    def _both(self, tangents: Tensors) -> torch.Tensor:
        """J v and the graph of z in one forward pass: 1.8 to 2.2 gradients for both products, instead of 2.2."""
        leaves = tuple(p.detach().requires_grad_() for p in self.primals)
        # what is made again in a backward pass has no tangents there
        with forward_ad.dual_level(), disable_saved_tensors_hooks("hooks of saved tensors know no tangents"):
            z, jv = forward_ad.unpack_dual(pushed(self.function)(*map(forward_ad.make_dual, leaves, tangents)))
            jv = torch.zeros_like(z) if jv is None else jv.detach().clone()
        self._leaves, self._output = leaves, z
        return jv


class DoubleBackward(ForwardMode):
    """J v as the derivative of u -> J^T u (it is linear in u): two backward passes, no forward-mode AD."""

    _u: torch.Tensor | None = None
    _pulled: tuple[GradientEdge | None, ...] = ()

    @property
    def output(self) -> torch.Tensor:
        with math_attention():  # the fused one has no double backward
            return super().output

    def jvp(self, tangents: Tensors, *, graph: bool = False) -> torch.Tensor:
        z = self.output
        if not z.requires_grad:
            return torch.zeros_like(z)
        if self._u is None:
            self._u = torch.zeros_like(z, requires_grad=True)
            self._pulled = edges(torch.autograd.grad(
                z, self._leaves, self._u, create_graph=True, allow_unused=True, materialize_grads=True
            ))  # fmt: skip
        return _through(self._pulled, tangents, (self._u,))[0]


class ByRows(ForwardMode):
    """J v by the rows of J, a backward pass each: for what can be differentiated once and no further (CTC, many kernels)."""

    def jvp(self, tangents: Tensors, *, graph: bool = False) -> torch.Tensor:
        z = self.output
        if z.numel() > MOST_ROWS:
            raise NotImplementedError(f"{z.numel()} outputs are too many for a backward pass each")
        flat, u = torch.zeros_like(z).reshape(-1), torch.zeros_like(z).reshape(-1)
        for i in range(len(flat)):
            u[i] = 1
            flat[i] = sum(torch.sum(g * t) for g, t in zip(self.vjp(u.view_as(z)), tangents, strict=True))
            u[i] = 0
        return flat.view_as(z)


WAYS: dict[str, type[ForwardMode]] = {"fresh": ForwardMode, "double-backward": DoubleBackward}
# graphs of the forward pass that each one keeps: .4 to 2.1 on three models; a Hessian's second backward pass 1.1 to 2.1
COPIES = {"fresh": 1.0, "double-backward": 2.5, ROWS: 1.0}


class Wrong(RuntimeError):
    """Products are not those of one matrix and its transpose."""


class ForwardOverReverse:
    """The derivative of a scalar function's gradient, H v by forward-mode AD of its backward pass."""

    see: Callable[[Tensors], None] | None = None  # is shown the gradient that a product makes on its way
    room: torch.Tensor | None = None  # where the next product may be written, once

    def __init__(self, function: Function, primals: Tensors) -> None:
        self.function, self.primals = function, tuple(primals)
        _forward_rules()

    def jvp(self, tangents: Tensors) -> tuple[torch.Tensor, ...]:
        gradient = torch.func.grad(pushed(self.function), argnums=tuple(range(len(self.primals))))
        with math_attention(), FORWARD_MODE:
            value, products = torch.func.jvp(gradient, self.primals, _copied(tangents))[:2]
        if self.see is not None:
            self.see([t.detach() for t in value])
        return tuple(t.detach() for t in products)


class ReverseOverReverse(ForwardOverReverse):
    """H v by one backward pass through the graph of the gradient, which is recorded once."""

    _leaves: tuple[torch.Tensor, ...] = ()
    _gradients: tuple[GradientEdge | None, ...] | None = None
    _givers: Sequence[Giver] | None = None  # of the graph, once there is room for a product

    def jvp(self, tangents: Tensors) -> tuple[torch.Tensor, ...]:
        if self._gradients is None:
            self._leaves = tuple(p.detach().requires_grad_() for p in self.primals)
            with math_attention():  # the fused one has no double backward
                value = gradients(self.function(*self._leaves), self._leaves, create_graph=True)
            self._gradients = edges(value)
            if self.see is not None:
                self.see([t.detach() for t in value])
            del value
        room, self.room = self.room, None
        if room is not None and self._givers is None:
            self._givers = givers_of((edge.node for edge in self._gradients if edge is not None), self._leaves)
        with written(self._leaves, room, self._givers or ()) as there:
            return _through(self._gradients, tangents, self._leaves, there)


class CentralDifference(ForwardOverReverse):
    """H v as (g(x + h v) - g(x - h v)) / 2 h, two gradients: for what has no second derivative, or none that fits.

    h = eps^(1/3) min(||x|| / ||v||, max |x| / max |v|): the parameters move by a relative eps^(1/3), where truncation, h^2, and
    rounding, eps / h, are about as large; an entry in which v lies nearly alone does not move further than others are large.
    """

    def jvp(self, tangents: Tensors, factor: float = 1.0) -> tuple[torch.Tensor, ...]:
        """`factor`: of the step."""
        step = factor * self.step(tangents)
        if step == 0:
            return tuple(torch.zeros_like(p) for p in self.primals)
        sides = self.gradient_at(step, tangents), self.gradient_at(-step, tangents)
        return tuple((a - b).div_(2 * step) for a, b in zip(*sides, strict=True))

    def step(self, tangents: Tensors) -> float:
        """h; 0 where v is."""
        (x, x_max), (v, v_max) = self.sizes(self.primals), self.sizes(tangents)
        relative = max(arrays.machine_epsilon(p.dtype) for p in self.primals) ** (1 / 3)
        return relative * min((x or 1.0) / v, (x_max or 1.0) / v_max) if v > 0 else 0.0

    def sizes(self, parts: Tensors) -> tuple[float, float]:
        """The norm and the largest |entry| of a vector in pieces."""
        return norm(parts), max((longvectors.largest(part) for part in parts), default=0.0)

    def gradient_at(self, step: float, tangents: Tensors) -> Tensors:
        """The gradient at x + step v."""
        leaves = [
            torch.add(p.detach(), t, alpha=step).requires_grad_() for p, t in zip(self.primals, tangents, strict=True)
        ]
        return gradients(self.function(*leaves), leaves)


# the first product of the former took 2.0 to 4.4 gradients on five models, of the latter 2.8 to 5.6
GRADIENTS: dict[str, type[ForwardOverReverse]] = {
    "double-backward": ReverseOverReverse,
    "fresh": ForwardOverReverse,
    DIFFERENCE: CentralDifference,
}
EXACT = ("double-backward", "fresh")


class Adjoint:
    """Holds products to <J v, u> = <v, J^T u>, for signs u that are drawn once, with J^T u.

    Each product J v is held to (u, J^T u). A J^T w is held to signs v and their J v, drawn too; or, where it was made of a J v
    (w = H J v), to that pair v, J v, if v is generic: what a user multiplies may be blind to an error (ones, before a
    normalisation), and then signs v are drawn, for a J v alone too.

    An inner product of signs with J v has the standard deviation ||J v||, so that a wrong product shows as about 1 in any
    dimension; divided by ||u|| or ||v|| it would drown in float32's rounding from a million parameters on. Of vectors that were
    made of each other the inner product itself may be larger, and rounding with it, as in `symmetry_error`.

    Where J v is in several pieces, u is of the first one, and 0 on others. A J^T (H J v) that has been held to J^T u is held to
    its own pair alone afterwards, so that no vector waits for it.

    Cost: a J^T u, a J v where that is drawn, then two inner products a test; memory: a vector of each side that is drawn, half of
    one where it is large.
    """

    def __init__(self, back: Linear, v: torch.Tensor, rows: int, allowed: float = math.inf) -> None:
        """`back`: u (rows,) -> the pieces of J^T u (n,); `v`: like any v (n,)."""
        self.allowed, self.error = allowed, 0.0
        self.holds = True  # once a product is wrong, what was drawn may be
        self.v, self.u = probes.generic_signs(1, len(v), v.device), probes.generic_signs(0, rows, v.device)
        self.Jv: Held | None = None
        self.pulled: Held | None = list(back(self.u[:].to(v.dtype)))

    def of_forward(self, v: torch.Tensor, Jv: Tensors, there: Callable[[probes.Signs], Tensors]) -> float:
        """The error of J v; `Wrong` if it is more than allowed. `there`: signs v (n,) -> the pieces of J v (rows,)."""
        error = self._by_drawn(v, Jv, there)
        self._wait()
        return error

    def of_transpose(
        self, u: torch.Tensor | Tensors, pulled: Tensors, there: Callable[[probes.Signs], Tensors]
    ) -> float:
        """The error of J^T u, u in one piece or in those of J v; `Wrong` if it is more than allowed."""
        return max(self._identity(inner(u, self._draw(there)), inner(self.v, pulled)), self.error)

    def of_both(
        self,
        v: torch.Tensor,
        Jv: Tensors,
        u: Tensors,
        pulled: Tensors,
        there: Callable[[probes.Signs], Tensors],
    ) -> float:
        """The larger error of J v and of J^T u, u made of J v; `Wrong` if it is more than allowed."""
        error = self._by_drawn(v, Jv, there)
        self.pulled = None
        if self.Jv is not None:
            return max(error, self.of_transpose(u, pulled, there))
        return max(error, self._identity(inner(u, Jv), inner(v, pulled), related=True))

    def _wait(self) -> None:
        """J^T u, as it waits for the next product."""
        pulled, self.pulled = list(self.pulled or ()), None
        self.pulled = waiting(pulled)

    def _draw(self, there: Callable[[probes.Signs], Tensors]) -> Held:
        if self.Jv is None:
            due = None
            if self.pulled is not None:
                due = inner(self.v, self.pulled)
                self._wait()  # beside what is drawn
            Jv: Waiting = list(there(self.v))
            self.error = 0.0 if due is None else self._identity(inner(self.u, Jv[:1]), due)
            self.Jv = waiting(Jv)
        return self.Jv

    def _by_drawn(self, v: torch.Tensor, Jv: Tensors, there: Callable[[probes.Signs], Tensors]) -> float:
        """With J^T u, while that is there, and where v may be blind with what is drawn in its place, too."""
        error = self._identity(inner(self.u, Jv[:1]), inner(v, self.pulled)) if self.pulled is not None else 0.0
        if not is_generic(v):
            self._draw(there)
        return max(self.error, error)

    def _identity(self, left: tuple[float, float], right: tuple[float, float], related: bool = False) -> float:
        """`disagreement` of <J v, u> and <v, J^T u>; `Wrong` if it is more than allowed."""
        error = disagreement(left, right, related)
        self.holds = error <= self.allowed
        if not self.holds:
            raise Wrong(f"<Jv, u> and <v, J^T u> differ by {error:.1e}")
        return error


def disagreement(left: tuple[float, float], right: tuple[float, float], related: bool) -> float:
    """|one - two| of two inner products, each beside what it would be of vectors that have nothing to do with each other, over
    the largest of these, and of both where the vectors are `related`: made of each other."""
    (one, of_u), (two, of_v) = left, right
    scale = max(of_u, of_v, *((abs(one), abs(two)) if related else ()))
    # what is not finite is somebody else's to say
    return abs(one - two) / scale if scale > 0 and math.isfinite(scale) else 0.0


def is_generic(*pieces: torch.Tensor) -> bool:
    """Whether a vector's entries are like random ones: of LOOKS none is zero, and their sizes or their signs differ.

    Of independent signs LOOKS - 1 neighbours differ half of the time; outside of a quarter to three quarters once in 250.
    """
    step = max(1, sum(p.numel() for p in pieces) // LOOKS)
    some = torch.cat([p.reshape(-1)[::step] for p in pieces])
    changes = float((some[1:].signbit() != some[:-1].signbit()).float().mean())
    differ = 0.25 <= changes <= 0.75 or len(torch.unique(some.abs())) == len(some)
    return differ and len(some) >= LOOKS and bool((some != 0).all())


def waiting(pieces: Waiting) -> Waiting:
    """A large vector's large float32 pieces in float16 over their largest entry, with that.

    Inner products are off by 1e-4 of norms, less than float32 may be; what float64 may be off by is less, and waits as it is.
    """
    if sum(p.numel() * p.element_size() for p in pieces if isinstance(p, torch.Tensor)) <= arrays.HEAVY:
        return pieces
    held: Waiting = []
    while pieces:
        piece = pieces.pop(0)
        if isinstance(piece, tuple):
            held.append(piece)
            continue
        piece = piece.reshape(-1)
        large = len(piece) > PART and piece.dtype == torch.float32
        largest = max(map(abs, map(float, torch.aminmax(piece)))) if large else 0.0
        if not 0 < largest < math.inf:
            held.append(piece.clone() if private.is_view(piece) else piece)  # others write to what it is a view of
            continue
        half = torch.empty_like(piece, dtype=torch.half)
        for some, rounded in zip(piece.split(PART), half.split(PART), strict=True):
            rounded.copy_(some / largest)
        held.append((half, largest))
    return held


def norm(pieces: Iterable[torch.Tensor | tuple[torch.Tensor, float]]) -> float:
    """Of pieces that follow one another."""
    return math.sqrt(
        sum(unit * unit * _dot(some, some) for piece, unit in _units(pieces) for some in piece.split(PART))
    )


def _units(pieces: Iterable[torch.Tensor | tuple[torch.Tensor, float]]) -> Iterator[tuple[torch.Tensor, float]]:
    for piece in pieces:
        y, unit = piece if isinstance(piece, tuple) else (piece, 1.0)
        yield y.reshape(-1), unit


def distance(one: Tensors, two: Tensors) -> float:
    """Of two vectors in the same pieces."""
    return math.hypot(*(longvectors.distance(a, b) for a, b in zip(one, two, strict=True)))


def beside(x: Vector, pieces: Held) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """Parts of x and y, y over a unit, for y in pieces that follow one another, x in the same ones if it is in some."""
    start = 0
    for i, (y, unit) in enumerate(_units(pieces)):
        own, at = (x, start) if isinstance(x, torch.Tensor | probes.Signs) else (x[i].reshape(-1), 0)
        for some in y.split(PART):
            yield own[at : at + len(some)], some, unit
            at += len(some)
        start += len(y)


def inner(x: Vector, pieces: Held) -> tuple[float, float]:
    """(<x, y>, what it would be for a y that has nothing to do with x: ||y|| times a component of x); they are read once."""
    value, of_x, of_y, entries = 0.0, 0.0, 0.0, 0
    for own, some, unit in beside(x, pieces):
        value += unit * _dot(own, some)
        of_y += unit * unit * _dot(some, some)
        of_x += len(some) if isinstance(x, probes.Signs) and not x.sized else _dot(own, own)
        entries += len(some)
    return value, math.sqrt(of_y) * math.sqrt(of_x / max(entries, 1))


def _dot(x: torch.Tensor, y: torch.Tensor) -> float:
    """<x, y> to what tests of products need: in float32 where nothing is finer, a quarter of what float64 takes."""
    kind = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    value = float(torch.dot(x.to(kind), y.to(kind)))
    return value if TINY < abs(value) < math.inf else longvectors.dot(x, y)


def symmetry_error(u: Vector, Au: Held, v: torch.Tensor, Av: Tensors, allowed: float) -> float:
    """|<u, A v> - <v, A u>| over what it is for a wrong A; `Wrong` if it is more than allowed.

    Of unrelated vectors both are about ||A v|| times a component of u; in a recurrence u is made of A v, and they are larger.
    """
    error = disagreement(inner(u, Av), inner(v, Au), related=True)
    if not error <= allowed:
        raise Wrong(f"<u, H v> and <v, H u> differ by {error:.1e}")
    return error
