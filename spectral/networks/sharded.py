"""Models whose parameters lie over the ranks of a group, by torch's `fully_shard` (FSDP2), as functions of them.

A vector lies as the parameters do: of each, every rank holds its rows, one parameter after the other (`pieces.Shards`). Each rank
runs the model on its own samples, all of them at once: torch gathers a module's parameters where the module is called.

    J v      by forward-mode AD: where a module is called, its part of v is gathered beside its parameters
    J^T u    by `backward()`: torch's reduce-scatter leaves each rank its rows of the sum over the ranks

Nothing of the model's size is ever whole. autograd.grad and torch.func know nothing of such parameters, so that all products of
this module go through the model's own call, hooks and all, and leave it as it was.

Of torch's private names `_get_fsdp_state()._fsdp_param_groups` are read, for how gradients are divided and in which dtype, and
`_orig_param_uid` of its parameters, for which were tied.

Source: Zhao et al. (2023), PyTorch FSDP, VLDB 16; torch's issue 182641 asks for J v.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad

from spectral import collectives, distributed, longvectors, pieces, probes
from spectral.checksum import checksum_of
from spectral.engine import linearize
from spectral.networks.calling import unwrapped
from spectral.networks.data_model import DataModel
from spectral.networks.loss_model import LossModel
from spectral.networks.model_state import Snapshot
from spectral.networks.products import Products
from spectral.pieces import Shards, own_rows
from spectral.threads import FORWARD_MODE, instead

OURS = {  # how the backward pass of a product reduces, whatever training does
    "gradient_divide_factor": 1.0,  # a sum, no mean
    "force_sum_reduction_for_comms": True,  # gloo has no other
    "reduce_grads": True,
    "reshard_after_backward": True,
}
UNTESTED = "ranks run a sharded model together"


# Which models ---------------------------------------------------------------------------------------------------------
def modelled(kind: type[DataModel], model: Any, data: Any, *, products: Products, **options: Any) -> Any:
    """A model and its data as a `kind`, or as one whose parameters lie over ranks."""
    if not lies_over_ranks(model):
        return kind(model, data, products=products, **options)
    hold(unwrapped(model), products, options)
    sharded = ShardedLossModel if issubclass(kind, LossModel) else ShardedModel
    return sharded(model, data, products=products, **options)


def lies_over_ranks(model: Any) -> bool:
    """Whether some parameter of the model is a DTensor, or will be one again once a module is left."""
    if not isinstance(model, nn.Module):
        return False
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    return bool(_units(model)) or any(isinstance(p, kind) for p in model.parameters())


def _units(model: nn.Module) -> list[Any]:
    """The modules that `fully_shard` was called with."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    return [module for module in model.modules() if isinstance(module, kind)]


def _groups(model: nn.Module) -> list[Any]:
    """What torch gathers and reduces at a time."""
    return [group for unit in _units(model) for group in unit._get_fsdp_state()._fsdp_param_groups]


def hold(model: nn.Module, products: Products, options: Mapping[str, Any]) -> None:
    """One sentence for what does not go with parameters that lie over ranks."""
    for word, given, only in (
        ("wrt", options.get("wrt", "params"), ("params",)),
        ("statistics", options.get("statistics", "population"), ("population",)),
        ("product_dtype", products.dtype, (None,)),
        ("chunk", products.chunk, (None,)),
        ("engine", products.engine, ("auto", "fresh", linearize.DIFFERENCE)),
    ):
        if given not in only:
            raise ValueError(
                f"{word}={given!r} is not there for a model whose parameters lie over ranks; use {only[0]!r}, or the model "
                "before it is sharded."
            )
    for unit in _units(model):
        unit.reshard()
    groups, dtype = _groups(model), next(model.parameters()).dtype
    # of a group, from torch 2.15 on of each of its parameters
    holders = [one for group in groups for one in ([group] if hasattr(group, "mp_policy") else group.fsdp_params)]
    for policy in (holder.mp_policy for holder in holders):
        if {policy.param_dtype, policy.reduce_dtype, policy.output_dtype} - {None, dtype}:
            raise ValueError(
                "fully_shard(mp_policy=...) computes in another dtype than the parameters', which products would not show; shard "
                "the model without it, in the dtype that is meant."
            )
    if missing := [name for name in OURS for group in groups if not hasattr(group, name)]:
        raise RuntimeError(
            f"torch {torch.__version__} does not say how fully_shard reduces gradients (no {missing[0]}); use torch 2.8 or later."
        )
    shared = {id(one.sharded_param): one for group in groups for one in group.fsdp_params}
    own: dict[str, Any] = dict(model.named_parameters())
    tied: dict[Any, str] = {}  # first names of what was one tensor before; torch before 2.13 cannot tell
    for name, p in own.items():
        if id(p) in shared and (one := tied.setdefault(getattr(shared[id(p)], "_orig_param_uid", name), name)) != name:
            raise ValueError(
                f"the parameters {one} and {name} were tied, and are two since fully_shard took their modules one by one; "
                "call it with a list of both (fully_shard([a, b])), or with a module that holds both."
            )
        if id(p) not in shared:
            raise ValueError(
                f"the parameter {name} is not sharded by fully_shard, as others are; shard the whole model by "
                "torch.distributed.fsdp.fully_shard."
            )
        mesh, rows = p.device_mesh, [placement.is_shard(0) for placement in p.placements]
        if rows != [True] or mesh.mesh.flatten().tolist() != list(range(distributed.world_size())):
            raise ValueError(
                f"the parameter {name} lies as {p.placements} on a mesh of shape {tuple(mesh.mesh.shape)}; shard rows alone, "
                "over all ranks in their order (fully_shard with its default mesh and placement)."
            )


def shards(values: Mapping[str, Any], ranks: int) -> Shards:
    """How vectors shaped like these DTensors lie: of each the rows as torch.chunk cuts them."""
    spans: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
    start = 0
    for value in values.values():
        rows, each = value.shape[0], math.prod(value.shape[1:])
        chunk = -(-rows // ranks)
        for rank, own in enumerate(spans):
            first, last = min(rank * chunk, rows), min((rank + 1) * chunk, rows)
            own.append((start + first * each, (last - first) * each))
        start += rows * each
    return Shards(start, tuple(map(tuple, spans)))


# Functions ------------------------------------------------------------------------------------------------------------
class ShardedModel(DataModel):
    """A model whose parameters lie over ranks: it is called as it is, and its parameters are never substituted."""

    def __init__(self, model: nn.Module, data: Any, **options: Any) -> None:
        super().__init__(model, data, **options)
        self.keeps = False
        self.untested = {"the first batch": UNTESTED}
        for unit in _units(self.model):  # what torch does at a first call belongs to the model as it was
            unit.unshard()
            unit.reshard()

    def read_parameters(self) -> None:
        self._reshard()
        super().read_parameters()
        self.shards = shards(self.values, distributed.world_size())

    def _reshard(self) -> None:
        for unit in _units(self.model):
            unit.reshard()

    def _group(self) -> Any:
        """Torch's group in whose collectives the ranks run the model."""
        return next(self.model.parameters()).device_mesh.get_group()  # type: ignore[attr-defined]

    def mark(self) -> tuple[int, str]:
        """(a number that summed over the ranks is a hash of all parameters, that of the buffers)."""
        named = {name: p.detach() for name, p in self.model.named_parameters()}
        spans = shards(named, distributed.world_size()).own
        own = (pieces.checksum(own_rows(p), (span,)) for p, span in zip(named.values(), spans, strict=True))
        return sum(own), checksum_of(*self.model.buffers())

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "sharded": f"over {distributed.world_size()} ranks, each with its own samples"}

    def local_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(own_rows(value).shape) for name, value in self.values.items()}

    def split(self, v: Any) -> tuple[torch.Tensor, ...]:
        """This rank's entries of a vector as its rows of tangents."""
        shapes = self.local_shapes()
        parts = v.split([math.prod(shape) for shape in shapes.values()])
        each = zip(parts, self.values.values(), shapes.values(), strict=True)
        return tuple(part.to(p.dtype).view(shape) for part, p, shape in each)

    # Every rank runs the model as often as all others -----------------------------------------------------------------
    def _batches(self, fingerprints: list[str] | None) -> Iterator[tuple[int, Any]]:
        batches = super()._batches(fingerprints)
        latest: list[tuple[int, Any]] = []

        def ended() -> bool:
            latest[:] = [one for one in (next(batches, None),) if one is not None]
            return not latest

        while not all(over := distributed.gather(ended)):
            if any(over):
                raise ValueError(
                    f"rank {over.index(True)} holds fewer batches than rank {over.index(False)}, but the ranks run a sharded "
                    "model together; cut the data into as many batches, none of them empty, on each rank."
                )
            yield latest[0]

    def look(self, index: int, batch: Any) -> tuple[int, int]:
        with distributed.together():  # what is wrong with one rank's outputs
            return super().look(index, batch)

    def guarded(self, index: int, batch: Any, function: Callable[..., Any]) -> Any:
        """Without a graph of the model's own; nothing stands in the place of its parameters."""
        with self.lending(), self._differentiating(()):
            return function(*self.primals(batch))

    def _called(self, values: Mapping[str, torch.Tensor], batch: Any, then: Callable[[Any], Any], output: Any) -> Any:
        """With the model's own parameters, which `values` are."""
        return self.call(batch, then, output)

    # Derivatives ------------------------------------------------------------------------------------------------------
    def linearised(self, way: str, function: Callable[..., torch.Tensor], batch: Any) -> linearize.ForwardMode:
        return ShardedMode(self, function)

    def gradient(self, way: str, function: Callable[..., torch.Tensor], batch: Any) -> linearize.ForwardOverReverse:
        return ShardedDifference(self, function)

    @contextmanager
    def moving(self, tangents: Sequence[torch.Tensor]) -> Iterator[None]:
        """Inside a forward-mode level, every module that is called finds its parameters with these tangents."""
        moves = dict(zip(self.names, tangents, strict=True))
        names = {id(p): name for name, p in self.model.named_parameters()}
        hooks = ExitStack()
        hooks.callback(self._reshard)
        for unit, places in _owned(self.model).items():
            where = [(m, key, names[id(p)], p) for m, key, p in places if names.get(id(p)) in moves]

            def meet(module: Any, args: Any, where: list[Any] = where) -> None:
                found = {name: p for _, _, name, p in where}
                whole = gathered([moves[name] for name in found], list(found.values()))
                tangent = dict(zip(found, whole, strict=True))
                for m, key, name, _ in where:
                    own = m._parameters[key]  # gathered by now
                    if forward_ad.unpack_dual(own).tangent is None:  # a module that is called twice has them
                        dual = forward_ad.make_dual(own.detach(), tangent[name])
                        dual._is_param = True  # what isinstance(dual, nn.Parameter) asks for
                        m._parameters[key] = dual

            if where:
                hooks.enter_context(unit.register_forward_pre_hook(meet))
        with hooks, collectives.guarded(self._group()):
            yield

    def pulled(self, function: Callable[..., torch.Tensor], cotangent: torch.Tensor | None) -> list[torch.Tensor]:
        """This rank's rows of J^T u, summed over the ranks; by the model's own backward pass, its gradients as before."""
        with self._differentiating(self.names) as named:
            z = function(*self.values.values())
            if z.requires_grad:
                torch.autograd.backward(z, cotangent)
            rows = {name: own_rows(value) for name, value in self.values.items()}
            return [torch.zeros_like(p) if (g := own_rows(named[name].grad)) is None else g for name, p in rows.items()]

    @contextmanager
    def _differentiating(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Inside, the named parameters alone have gradients, none yet, which torch sums over the ranks; yields all of them."""
        named = dict(self.model.named_parameters())
        with ExitStack() as stack:
            stack.callback(Snapshot(named.values()).restore)
            stack.callback(self._reshard)
            for name, p in named.items():
                p.grad = None
                p.requires_grad_(name in names)
            for group in _groups(self.model):
                stack.enter_context(instead(group, **OURS))
            stack.enter_context(collectives.guarded(self._group()))
            yield named


class ShardedLossModel(ShardedModel, LossModel):
    """The same with a loss."""


def _owned(model: nn.Module) -> dict[Any, list[tuple[nn.Module, str, Any]]]:
    """(module, key, parameter) of all that is gathered when a module that was sharded is called."""
    found: dict[Any, list[tuple[nn.Module, str, Any]]] = {unit: [] for unit in _units(model)}

    def walk(module: nn.Module, above: Any) -> None:
        above = module if module in found else above
        if above is not None:
            found[above] += [(module, key, p) for key, p in module._parameters.items() if p is not None]
        for child in module.children():
            walk(child, above)

    walk(model, None)
    return found


def gathered(rows: Sequence[torch.Tensor], like: Sequence[Any]) -> list[torch.Tensor]:
    """Whole tensors from every rank's rows, shaped like these DTensors: one collective."""
    ranks = distributed.world_size()
    sizes = [(-(-p.shape[0] // ranks), p.shape[1:]) for p in like]  # rows of a rank, each of this shape
    flat = torch.cat([
        torch.nn.functional.pad(own.reshape(-1), (0, chunk * math.prod(each) - own.numel()))
        for own, (chunk, each) in zip(rows, sizes, strict=True)
    ])  # fmt: skip
    out = flat.new_empty(ranks, len(flat))
    dist.all_gather(list(out), flat, group=like[0].device_mesh.get_group())
    parts = out.split([chunk * math.prod(each) for chunk, each in sizes], 1)
    whole = zip(parts, like, sizes, strict=True)
    return [part.reshape(ranks * chunk, *each)[: p.shape[0]] for part, p, (chunk, each) in whole]


class ShardedMode(linearize.ForwardMode):
    """J v and J^T u of a function of parameters that lie over ranks; z (B, k) are this rank's samples."""

    def __init__(self, network: ShardedModel, function: Callable[..., torch.Tensor]) -> None:
        super().__init__(function, tuple(network.values.values()))
        self.network = network

    def jvp(self, tangents: Sequence[torch.Tensor], *, graph: bool = False) -> torch.Tensor:
        plain = self.network._differentiating(())  # no graph of the model's own
        levels = (plain, linearize.math_attention(), FORWARD_MODE, forward_ad.dual_level())
        with ExitStack() as stack:
            for level in (*levels, self.network.moving(tangents)):
                stack.enter_context(level)
            z, jv = forward_ad.unpack_dual(linearize.pushed(self.function)(*self.primals))
            self._output = z.detach().clone()
            return torch.zeros_like(z) if jv is None else jv.detach().clone()

    def vjp(self, cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.network.pulled(self.function, cotangent))


class ShardedDifference(linearize.CentralDifference):
    """The same of a gradient, by differences: each rank moves its own rows, and puts them back."""

    def __init__(self, network: ShardedModel, function: Callable[..., torch.Tensor]) -> None:
        super().__init__(function, tuple(own_rows(value) for value in network.values.values()))
        self.network = network

    def gradient_at(self, step: float, tangents: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        before = [p.clone() for p in self.primals]
        try:
            for p, t in zip(self.primals, tangents, strict=True):
                p.add_(t, alpha=step)
            return self.network.pulled(self.function, None)
        finally:
            for p, values in zip(self.primals, before, strict=True):
                p.copy_(values)

    def sizes(self, tensors: Sequence[torch.Tensor]) -> tuple[float, float]:
        own = super().sizes(tensors)
        everyone = distributed.gather(lambda: own)
        return math.hypot(*(norm for norm, _ in everyone)), max(largest for _, largest in everyone)


# Tests ----------------------------------------------------------------------------------------------------------------
def adjoint_error(network: Any, batch: Any) -> float:
    """How far <J v, u> is from <v, J^T u> on the first batch of all ranks, over what it is for a wrong product.

    As `linearize.Adjoint` has it, for signs u and v, whose root mean square is 1.
    """
    at = ShardedMode(network, network.function(batch))
    how: Any = {"kind": "rademacher", "dtype": network.dtype, "device": network.device}
    v = network.shards.probe(0, 0, **how)
    with network.opened(), torch.enable_grad():
        jv = at.jvp(network.split(v.as_subclass(torch.Tensor)))
        u = probes.signs(1 + distributed.rank(), jv.numel(), dtype=jv.dtype, device=jv.device).view_as(jv)
        pulled = at.vjp(u)
    mine = longvectors.dot(u.reshape(-1), jv.reshape(-1)), longvectors.norm(jv.reshape(-1))
    there = linearize.inner(v.as_subclass(torch.Tensor), pulled)
    everyone = distributed.gather(lambda: (*mine, *there))
    one, of_one, two, of_two = zip(*everyone, strict=True)
    return linearize.disagreement((sum(one), math.hypot(*of_one)), (sum(two), math.hypot(*of_two)), related=False)
