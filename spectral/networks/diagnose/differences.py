"""Second derivatives held against differences of the gradient: torch's own can be wrong, and symmetric.

A function whose backward pass uses what its forward pass saved has a right gradient and no second derivative; a forward-mode
rule may be wrong without anybody noticing. Both show in one central difference. It is taken on a few samples of the first
batch in float64 if the model runs there: steps can then be so short that hardly a ReLU crosses its kink. Where the product has
left the gradient at the point itself, the gradient at one more point may be enough.

Legend: t a direction (tangents), w = H t the product that is held, h a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from spectral import arrays, longvectors, probes
from spectral.engine import linearize
from spectral.engine.linearize import Function, ReverseOverReverse, Tensors, gradients, is_generic, math_attention, norm
from spectral.failures import REFUSALS
from spectral.networks.data_model import DataModel
from spectral.networks.diagnose.derivatives import operation, owner
from spectral.networks.diagnose.graph import graph_facts, nodes
from spectral.networks.diagnose.hooks import label, module_calls
from spectral.networks.trees import leaves as leaves_of
from spectral.networks.trees import map_tensors, replaced, tensors
from spectral.threads import instead

Make = Callable[[Any, Any, Callable[[], Any]], tuple[Function, Tensors]]
SLICE = 8  # the first batch is at least so many times as large as what differences are taken on
FINE = (1e-7, 1e-5)  # steps relative to the size of the primals, in float64
COARSE = (1e-2, 1e-3)  # in dtypes that round more
# A step to one side, from a gradient that is there: in float32 it was off by .1 to .4 % on five models, at 1e-3 by up to 1.1 %.
SIDE = 3e-4
AGREES = 1e-5, 2e-2  # relative difference that truncation explains, in float64 and in others
DOUBLES, MEMORY = 10, 0.25  # vectors of float64 that a test takes, and the part of the free memory that they may take
LIGHT = 1 << 28  # bytes of vectors that are no matter; beyond, they are what a run needs its memory for
ROUNDING = 100  # of a gradient, in units of eps times its norm


class Wrong(linearize.Wrong):
    """A product is not the derivative of the gradient."""


@dataclass(frozen=True)
class Probe:
    """A scalar function and its gradient at a point, a direction, and the rounding unit that they are computed in."""

    function: Function
    primals: tuple[torch.Tensor, ...]
    tangents: tuple[torch.Tensor, ...]
    eps: float
    where: str = ""
    rounding: float = 0.0  # unit of the product, where it is coarser
    trial: bool = False  # the product along t is there already
    share: float = 1.0  # the product is this times the derivative of the gradient
    here: torch.Tensor | None = None  # the sketch of this times the gradient at the primals, if that was seen

    def gradient(self, at: Tensors) -> tuple[torch.Tensor, ...]:
        leaves = [p.detach().requires_grad_() for p in at]
        return gradients(self.function(*leaves), leaves)


@dataclass(frozen=True)
class Trial:
    """A product that is there: its direction, and `share`, by which the derivative of the gradient was multiplied."""

    tangents: Tensors
    share: float
    here: torch.Tensor | None = None  # the sketch of `share` times the gradient at the primals, if the product made it
    inside: torch.dtype | None = None  # the coarsest dtype that it was computed in, where that is known
    graph: float = 0.0  # bytes of its batch's


def directions(primals: Tensors, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random signs."""
    n = sum(p.numel() for p in primals)
    pieces = probes.signs(seed, n, dtype=torch.int8, device=primals[0].device if primals else "cpu").split(
        [p.numel() for p in primals]
    )
    return tuple(piece.to(p.dtype).view_as(p) for piece, p in zip(pieces, primals, strict=True))


def probe(
    function: Function,
    primals: Tensors,
    where: str = "",
    along: Tensors | None = None,
    inside: torch.dtype | None = None,
) -> Probe:
    """A direction at these primals, a random one if None.

    `inside`: the coarsest dtype that the function computes in, from a forward pass if None.
    """
    inside = inside or graph_facts(function, primals).dtype
    eps = max(arrays.machine_epsilon(inside), *(arrays.machine_epsilon(p.dtype) for p in primals))
    along = directions(primals) if along is None else along
    tangents = tuple(t.to(x.dtype) for t, x in zip(along, primals, strict=True))
    return Probe(function, tuple(p.detach() for p in primals), tangents, eps, where)


def double_backward(p: Probe) -> tuple[torch.Tensor, ...]:
    """H t by a backward pass through the gradient."""
    return ReverseOverReverse(p.function, p.primals).jvp(p.tangents)


def of_parameters(model: Any, batch: Any, output: Any) -> tuple[Function, tuple[torch.Tensor, ...]]:
    """The summed loss of a batch as a function of the parameters, and these."""
    return model.total(batch), model.primals(batch)


def candidates(network: DataModel, batch: Any, make: Make, trial: Trial | None = None) -> Iterator[Probe]:
    """Where `make(network, batch, output)` can be tested, the best place first; `output()` is the model's there.

    In float64 on an eighth of the samples, along a random direction; on all of them along the `trial`'s, the direction of a
    product that is there, in float64 and in the dtype it was made in (a random one where that is blind, such as a column of the
    identity). Float64 only where the memory holds it, and last where it takes more than little, or than the graph of the batch:
    in the product's own dtype a test holds three vectors.
    """
    size = network.samples.size(batch)
    entries, graph, inside = 0, 0.0, None
    if trial is not None:
        entries, graph, inside = sum(t.numel() for t in trial.tangents), trial.graph, trial.inside
    fits = arrays.has_float64(network.device)
    fits = fits and DOUBLES * 8 * entries <= MEMORY * arrays.available_memory(network.device)
    heavy = DOUBLES * 8 * entries > max(LIGHT, graph)
    told = trial if trial is not None and is_generic(*trial.tangents) else None

    def fine(t: torch.Tensor) -> torch.Tensor:
        return t.double() if t.dtype in network.kinds or t.dtype == network.compute_dtype else t

    places: list[tuple[str, bool, Any, Trial | None]] = []  # in float64 or not, on these samples
    if fits and (size >= SLICE or trial is None):
        some = max(1, size // SLICE)
        few = network.samples.rows(batch, size, 0, some)
        places.append((f"{some} of the first batch's samples, in float64", True, few, None))
    if fits and trial is not None and network.device.type == "cpu" and network.compute_dtype != torch.float64:
        places.append(("the first batch, in float64", True, batch, told))
    places.insert(0 if heavy else len(places), ("the first batch", False, batch, told))
    for where, double, rows, along in places:
        cast = fine if double else lambda t: t
        model = network.in_dtype(torch.float64, cast=trial is not None) if double else network
        try:
            made = make(model, map_tensors(cast, rows), partial(_output, network, rows, cast))
            p = probe(*made, where, None if along is None else along.tangents, None if double else inside)
        except REFUSALS:  # not in float64, or not with so few samples
            continue
        if along is not None:
            kinds = network.kinds | {network.compute_dtype, inside or network.compute_dtype}
            coarse, here = max(map(arrays.machine_epsilon, kinds)), None if double else along.here
            p = replace(p, rounding=coarse, trial=True, share=along.share, here=here)
        yield p


def hold_gradient(network: DataModel, batch: Any, allowed: float) -> None:
    """Refuse a gradient that is not that of the loss, by a difference of losses: no matrix is the derivative of such a one."""
    for p in candidates(network, batch, of_parameters, Trial(directions(network.primals(batch)), 1.0)):
        h = p.eps ** (1 / 3) * (norm(p.primals) or 1.0) / norm(p.tangents)
        g, *ends = ([part.detach() for part in p.gradient(_moved(p, step))] for step in (0.0, h, -h))
        # where it jumps (a kink at the point itself), no slope tells
        bend = max(sum(float((a - b).abs().sum()) for a, b in zip(g, end, strict=True)) for end in ends)
        with torch.no_grad():
            one, two = ((_value(p, step) - _value(p, -step)) / (2 * step) for step in (h, 2 * h))
            here = abs(_value(p, 0.0))
        # losses of samples that are fitted are differences of outputs, which are larger
        rounding = 100 * p.eps * (here + 10 * network.samples.size(batch)) / h
        due = sum(longvectors.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(g, p.tangents, strict=True))
        told = bend + 10 * abs(one - two) + allowed * norm(g) + rounding
        if abs(one - due) > told:
            raise ValueError(
                f"the gradient is not that of the loss on {p.where} ({due:.3g} along a direction, the slope is {one:.3g}), as "
                "after a stop-gradient, and its differences make no Hessian; remove that, or pass preflight=False, which takes "
                "the differences as they are."
            )
        if told < 0.1 * norm(g):
            return


def _moved(p: Probe, step: float) -> list[torch.Tensor]:
    """x + step t."""
    return [
        torch.add(x, t, alpha=step, out=arrays.empty(x.shape, x)) for x, t in zip(p.primals, p.tangents, strict=True)
    ]


def _value(p: Probe, step: float) -> float:
    return float(p.function(*_moved(p, step)))


def _output(network: DataModel, rows: Any, cast: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return map_tensors(cast, network.output(rows))


def difference_error(p: Probe, w: torch.Tensor) -> float | None:
    """||D - w|| / ||D|| for a difference D of the gradient along t, if rounding and truncation explain it.

    D is central, unless one to a side shows it already. None where differences cannot tell (kinks, rounding). `Wrong` if the
    product is far from the differences of two steps, which agree with each other. w and D are sketches, so that no vector waits
    for another.
    """
    steps = FINE if p.eps < 1e-12 else COARSE
    agrees = max(AGREES[0] if p.eps < 1e-12 else AGREES[1], 1e3 * p.rounding)
    scale = (norm(p.primals) or 1.0) / norm(p.tangents)
    length = float(w.norm())

    def off(D: torch.Tensor) -> tuple[float, float]:
        return max(float(D.norm()), length), float((D - w).norm())

    if p.here is not None and p.eps >= 1e-12:
        with math_attention():  # both by the same kernels
            ahead = _gradient(p, SIDE * scale)
        size, error = off((p.share * ahead - p.here) / (SIDE * scale))
        if error <= agrees * size:
            return error / size if size else 0.0
    judged: list[tuple[torch.Tensor, float]] = []
    for step in steps:
        h = step * scale
        ahead, back = _gradient(p, h), _gradient(p, -h)
        D, ends = (ahead - back) * (p.share / (2 * h)), float(ahead.norm() + back.norm())
        size, error = off(D)
        if error <= agrees * size:
            return error / size if size else 0.0
        if ROUNDING * p.eps * p.share * ends / (2 * h) < 0.1 * error:
            judged.append((D, error))
    if len(judged) < 2:
        return 0.0 if not judged and not length else None
    (one, _), (two, error) = judged
    if float((one - two).norm()) > 0.3 * error:
        return None
    raise Wrong(f"is off by {error / size:.1e} from the difference of gradients on {p.where}")


def _gradient(p: Probe, step: float) -> torch.Tensor:
    """The sketch of that at x + step t."""
    return longvectors.sketch([g.detach() for g in p.gradient(_moved(p, step))])


def hold(places: Iterable[Probe], product: Callable[[Probe], Tensors], way: str) -> float | None:
    """`difference_error` at the first place where the product and the differences run and tell; `Wrong` names the way."""
    for p in places:
        try:
            error = difference_error(p, longvectors.sketch(product(p)))
        except Wrong as problem:
            raise Wrong(f"{way} {problem}") from None
        except REFUSALS:
            continue
        if error is not None:
            return error
    return None


# Who is to blame ------------------------------------------------------------------------------------------------------
def wrong_second_derivative(network: DataModel, batch: Any, function: Function) -> str:
    """`Cube in 2 (Cubic)`: the innermost call whose second derivative, by double backward, is not that of its gradient."""
    with network.opened(), math_attention():
        leaves = [p.detach().requires_grad_() for p in network.primals(batch)]
        with module_calls(network) as (_, over):
            z = function(*leaves)
        custom = {
            node._forward_cls: f"{operation(node)} in {owner(over, node)}" for node in nodes([z])[::-1] if _own(node)
        }
        for where, call, inputs in _calls(network, function, leaves, custom):
            try:
                _own_error(call, inputs)
            except Wrong:
                inside = [name for name in custom.values() if name.endswith(f" in {where}")]
                return " or ".join(inside) or where
            except REFUSALS:  # it cannot be run alone
                continue
    return " or ".join(custom.values()) or "an operation in loss="


def _own(node: Any) -> bool:
    """Whether a node is of a Python autograd.Function."""
    return hasattr(node, "_forward_cls")


def _calls(
    network: DataModel, function: Function, leaves: Tensors, custom: dict[Any, str]
) -> list[tuple[str, Function, tuple[torch.Tensor, ...]]]:
    """(name, call, its real inputs) of the custom functions and of the modules that one forward pass calls, children first."""
    seen: list[tuple[str, Function, tuple[torch.Tensor, ...]]] = []

    def note(name: str, run: Callable[[Any], Any], given: Any, weights: dict[str, torch.Tensor]) -> None:
        real = {p: t.detach() for p, t in leaves_of(given) if isinstance(t, torch.Tensor) and t.is_floating_point()}

        def call(*values: torch.Tensor) -> Any:
            inputs = replaced(given, dict(zip(real, values, strict=False)))
            return run((inputs, dict(zip(weights, values[len(real) :], strict=True))))

        seen.append((name, call, (*real.values(), *weights.values())))

    def of_module(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        weights = {key: p.detach() for key, p in module.named_parameters()}
        note(label(network, name, module), lambda x: functional_call(module, x[1], *x[0]), (args, kwargs), weights)

    with ExitStack() as stack:
        for cls, name in custom.items():

            def noted(*args: Any, apply: Any = cls.apply, name: str = name) -> Any:
                note(name, lambda x: apply(*x[0]), args, {})
                return apply(*args)

            stack.enter_context(instead(cls, apply=noted))
        for name, module in network.model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                hook = partial(of_module, f"run.model.{name}".rstrip("."))
                stack.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        function(*leaves)
    return sorted(seen, key=lambda one: one[0] not in custom.values())


def _own_error(call: Function, inputs: tuple[torch.Tensor, ...]) -> float | None:
    """The error of a call's own second derivative along a random direction, its outputs summed up with random weights."""

    def total(*values: torch.Tensor) -> torch.Tensor:
        real = [t for t in tensors(call(*values)) if t.is_floating_point()]
        parts = [(t * u).sum() for t, u in zip(real, directions(real, 1), strict=True)]
        return torch.stack(parts).sum()

    p = probe(total, inputs)
    return difference_error(p, longvectors.sketch(double_backward(p)))
