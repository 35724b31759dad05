"""What a model must be before its derivatives are taken, and which module breaks it: NaN, randomness, samples that meet.

A healthy model pays one more forward pass of the first batch, whose graph is needed anyway, and one of a few samples. Only what
has already failed is run again under hooks, which are removed before the sentence is returned: modes, buffers, gradients and
every random state are as before, and no sweep is counted. A culprit is the innermost module whose inputs are sound and whose
outputs are not.

Legend: B samples in a batch, z (B, k) its outputs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from spectral import arrays, distributed, longvectors
from spectral.engine.linearize import Function, Tensors
from spectral.failures import first_line, is_own, with_kind
from spectral.networks.batches import DatasetInfo, NotFinite, is_finite, part
from spectral.networks.data_model import FAILURES, DataModel, FirstBatch
from spectral.networks.diagnose.graph import GraphFacts, Made, graph_facts
from spectral.networks.diagnose.hooks import ModuleCall, module_calls
from spectral.networks.loss_model import LossModel
from spectral.networks.model_state import Kept, Snapshot, between_calls, emptied
from spectral.networks.output_curvature import loss_of_heads
from spectral.networks.survey import of_all_ranks, survey
from spectral.networks.trees import repacked
from spectral.threads import instead


def _sound(t: torch.Tensor) -> bool:
    """Finite, or an additive mask of attention: 0 and -infinity alone."""
    if not t.is_floating_point() or bool(torch.isfinite(t).all()):
        return True
    return bool(((t == 0) | (t == -torch.inf)).all() and (t == 0).any())


# All of them ----------------------------------------------------------------------------------------------------------
def surveyed(network: DataModel) -> DatasetInfo:
    """What the first sweep tells on every rank, with the module to blame in the sentence where outputs are not finite."""
    return of_all_ranks(network, lambda: _surveyed(network))


def _surveyed(network: DataModel) -> DatasetInfo:
    check_model(network)
    try:
        try:
            return survey(network)
        except FAILURES as problem:
            if "does not require grad" not in str(problem) or network.wrt != "params":
                raise
            network.inner_gradients, network.sweeps = True, 0
            return survey(network)
    except NotFinite as problem:
        if not is_finite(problem.batch):
            raise ValueError(f"the data hold NaN or infinity in batch {problem.index}; remove those samples.") from None
        # one rank alone cannot run a sharded model
        culprit = first_nonfinite_module(network, problem.batch, problem.function) if network.shards is None else None
        first = "" if culprit is None else f", first in {culprit}"
        raise ValueError(
            f"{problem.what} NaN or infinity in batch {problem.index}{first}; remove those samples or mend the model."
        ) from None


def inspected(
    network: DataModel, function: Callable[[Any], Function], recorded: Function | None = None, below: Tensors = ()
) -> GraphFacts:
    """The facts of the first batch's graph, after all tests of the model on that batch; one sentence where one fails.

    `function(batch)` is what is differentiated; `recorded` is the same of the first batch, with its graph cut in two (see
    `graph_facts`). Cost: a forward pass with its graph, under other random states than the first sweep's, and one of two or three
    samples; none of them counts as a sweep.
    """
    try:
        return _inspected(network, function, recorded, below)
    except FAILURES as problem:
        if is_own(problem):
            raise
        raise RuntimeError(
            f"the model runs once, but fails where its derivatives are tested ({with_kind(problem)}); "
            "forward must take other tensors in the place of its parameters, change neither them nor their flags, and keep no "
            "tensor of an earlier call."
        ) from problem


def _inspected(
    network: DataModel, function: Callable[[Any], Function], recorded: Function | None, below: Tensors
) -> GraphFacts:
    batch, z, total = network.first
    network.first = None
    with network.opened():
        named = dict(network.model.named_parameters())
        own = [named[name] for name in network.names]
        for p in own:
            p.requires_grad_()  # so that the graph shows them if something reads them behind our back; put back afterwards
        if network.preflight:
            _reseed()
            before = Snapshot(network.roots)
        facts = graph_facts(recorded or function(batch), network.primals(batch), own, below)
        if network.preflight:
            unchanged = before.holds()
            _check_reach(network, batch, function(batch), facts)
            _check_own_eval(network, batch, function(batch), facts.value)
            earlier = next((t for t in (z, total) if t is not None and t.shape == facts.value.shape), None)
            if earlier is None or _differ(earlier, facts.value, earlier.dtype):
                culprit = active_randomness(network, batch, function(batch), facts.value)
                if culprit is not None:
                    raise ValueError(
                        f"two forward passes of one batch differ: {culprit} is random in eval mode; remove the noise."
                    )
            if not unchanged:
                _check_memory(network, batch, function(batch), facts)
            _check_kept(network, batch, function(batch), facts.value)
            if network.statistics == "population":
                check_coupling(network, batch, z)
    return facts


# Models --------------------------------------------------------------------------------------------------------------
def check_model(network: DataModel) -> None:
    """One clear sentence for batch norm that eval mode does not make a function of single samples, or that is not there."""
    norms = [(n, m) for n, m in network.model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    if network.statistics == "batch":
        if not norms:
            raise ValueError("statistics='batch' is for models with batch norm, but this one has none; leave it out.")
        together = [name for name, m in norms if isinstance(m, nn.SyncBatchNorm)]
        if together and distributed.world_size() > 1:
            raise ValueError(
                f"{together[0] or 'the model'} is a SyncBatchNorm, which trains with the statistics of one batch of each rank "
                "together, and a product sees each rank's batches by themselves; use statistics='population', or one process "
                "whose batches hold the samples of all ranks."
            )
        if network.wrt != "params" or network.of in ("loss", "loss sums"):
            raise ValueError(
                "statistics='batch' couples the samples of a batch, so that rows of single samples are not defined; use "
                "statistics='population', or parameters' Hessian, GaussNewton, Fisher or Jacobian of the logits."
            )
        return
    for name, module in norms:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__} without running statistics, which couples the samples of a "
                "batch in eval mode too; use track_running_stats=True, another normalisation, or statistics='batch'."
            )


def _overriding(network: DataModel) -> list[tuple[str, nn.Module]]:
    """The modules that came in training mode and have a train() or eval() of their own."""
    plain = (nn.Module.train, nn.Module.eval)
    return [
        (name, m)
        for name, m in network.model.named_modules()
        if network.modes.get(m) and ((type(m).train, type(m).eval) != plain or {"train", "eval"} & set(vars(m)))
    ]


def _check_own_eval(network: DataModel, batch: Any, function: Function, value: torch.Tensor) -> None:
    """Flags alone are set for a sweep; where modules do more in eval(), the model must give the same after it.

    All that eval() changes is put back, the values of parameters too.
    """
    model = network.model
    own, stuck, other = _overriding(network), list[tuple[str, nn.Module]](), value
    if not own:
        return
    snapshot = Snapshot(network.roots)
    held = [(p, p.detach(), p.detach().clone()) for p in model.parameters()]
    try:
        for module, mode in network.modes.items():
            module.training = mode
        model.eval()
        stuck = [(name, module) for name, module in model.named_modules() if module.training]
        network.read_parameters()
        other = value if stuck else function(*network.primals(batch)).detach()
    except NotImplementedError:  # of an exported program
        pass
    finally:
        snapshot.restore()
        for p, memory, values in held:
            if p.data_ptr() != memory.data_ptr():
                p.data = memory
            if not torch.equal(memory, values):
                memory.copy_(values)
        network.read_parameters()
    for name, module in stuck:
        raise ValueError(
            f"{name or 'the model'} ({type(module).__name__}) stays in training mode after model.eval(): its own train() "
            "or eval(), or a parent's, is overridden; let them call super() so that every module has an eval mode."
        )
    if _differ(value, other, value.dtype):
        raise ValueError(
            f"{own[0][0] or 'the model'} ({type(own[0][1]).__name__}) changes what the model computes in its own train() or "
            "eval(), beyond the mode; call model.eval() before, so that the model is as you mean it."
        )


def _check_reach(network: DataModel, batch: Any, function: Function, facts: GraphFacts) -> None:
    """Derivatives reach the primals wherever the value depends on them, and nothing reads the parameters behind our back."""
    if facts.strangers:
        name = network.names[facts.strangers[0]]
        raise ValueError(
            f"the parameter {name} is read by a reference from before and not from the model (a tensor that a function or a list "
            f"captured), so that no other value can stand in for it; read it inside, as model.get_parameter({name!r})."
        )
    if facts.ruleless:
        raise ValueError(
            "an operation of the model or the loss has no rule for its derivative, so that nothing passes through it (one of "
            "torch.library without register_autograd, a quantised module); give it one, or put another in its place."
        )
    if all(facts.reached):
        return
    primals = network.primals(batch)
    moved = [p if reached else _moved(p) for p, reached in zip(primals, facts.reached, strict=True)]
    if not _differ(facts.value, function(*moved).detach(), facts.value.dtype):
        if network.wrt == "inputs":  # the one variable
            raise ValueError(
                "the outputs do not change with what wrt='inputs' takes for the inputs, the first entry of a batch or that of "
                "such a name; put the entry that is meant first, or name it 'x'."
            )
        return
    if _differ(facts.value, function(*primals).detach(), facts.value.dtype):
        return  # a random model, of which another test says so
    why = "detached, computed under torch.no_grad() or outside torch"
    if not any(facts.reached):
        what = {"params": "the parameters", "inputs": "the inputs"}.get(network.wrt, f"the output of {network.inner}")
        raise ValueError(
            f"the outputs change with {what} but carry no derivative (they are {why}); remove that from the model, forward=, "
            "of= or loss=."
        )
    lost = [name for name, reached in zip(network.names, facts.reached, strict=True) if not reached]
    some = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    raise ValueError(
        f"the outputs change with {some} but carry no derivative of what is made of it ({why}); name the parameters that are "
        "meant by params=, or remove that from the model, forward=, of= or loss=."
    )


def _moved(p: torch.Tensor) -> torch.Tensor:
    return (p + 0.1 * p.abs() + 0.1 * p.abs().mean() + 1e-3).detach()  # forward may have set p's flag


def _check_kept(network: DataModel, batch: Any, function: Function, value: torch.Tensor) -> None:
    """Refuse what was made in an earlier call and is read in place of the parameters (a cache, wherever it lies).

    A cache is what the model fills again, to the same value, when it is taken away, and fills otherwise of other parameters.
    Cost: nothing where nothing is kept between calls, else three forward passes; where some of it is no cache but needed, one
    pass more and up to three for each name.
    """
    primals = network.primals(batch)

    def cached(some: list[Kept]) -> bool | None:
        """Whether one of these is a cache; None where the model needs one that is none."""
        try:
            with emptied(some) as filled:
                again = function(*primals).detach()
                if not filled():
                    return False
            if _differ(value, again, value.dtype):
                return None
            moved = [_moved(p) for p in primals]
            with emptied(some):
                again = function(*moved).detach()
            return _differ(function(*moved).detach(), again, value.dtype)
        except Exception:  # of the user's code, without what it needs
            return None

    places = between_calls(network.reads)
    if not places or cached(places) is False:
        return
    for name in dict.fromkeys(place.name for place in places):
        if cached([place for place in places if place.name == name]):
            raise ValueError(_kept("the parameters" if network.wrt == "params" else "the variable", name))


def check_loss_of_outputs(network: LossModel, first: FirstBatch, matrix: str) -> None:
    """Refuse a loss that is no function of the outputs' values, or reads what is differentiated beside them, or a number that the
    model has reduced already.

    Through the outputs alone such terms would be left out. Cost: two forward passes of the first batch, for a loss of the user's,
    one with its graph: what forward leaves behind for the loss to read (in an attribute, by a hook) shows in that.
    """
    loss, batch = network.loss, first.batch
    if loss.given is None or loss.is_native or not network.preflight:
        return
    derived = (
        f"{matrix} is the curvature through the values of the model's output, but loss= differentiates the output itself, in the "
        "inputs say; let forward= return these derivatives for the loss to read, or use Hessian."
    )
    if loss.differentiates:
        raise ValueError(derived)
    with network.opened():
        x = network.inputs_of(batch).detach().requires_grad_() if network.wrt == "inputs" else None
        there = batch if x is None else network.with_inputs(batch, x)
        total_of, heads = loss_of_heads(network, there, lambda: network.output(batch))
        named = dict(network.model.named_parameters())
        own = {name: named[name].requires_grad_() for name in network.names}  # the flags are put back
        leaves = {name: value.detach().requires_grad_() for name, value in network.values.items()}
        heads = [head.requires_grad_() for head in heads]
        try:
            with instead(network, values=leaves):
                total = network.run(
                    leaves, repacked(there), lambda output: network.loss(network.with_heads(output, heads), there)[0]
                )
                _reseed()
                again = total_of(*heads)
        except RuntimeError as problem:
            raise ValueError(derived) from problem
        except (LookupError, AttributeError) as problem:
            raise ValueError(
                f"{matrix} is the curvature through the model's output, but loss= needs more than it and the batch as the data "
                f"give it ({with_kind(problem)}), such as what forward= writes into the batch; let "
                "forward= return that."
            ) from problem
        if _differ(total.detach(), again.detach(), total.dtype):
            raise ValueError("loss= gives two values for one output of the model: it is random; remove the noise.")
        if first.total is not None and _differ(first.total, total.detach(), total.dtype):
            raise ValueError(derived)  # without what it makes of the derivatives
        ends = {id(t) for t in arrays.reached_leaves([total])}
        read = [name for name in network.names if id(leaves[name]) in ends or id(own[name]) in ends]
        if read:
            raise ValueError(
                f"{matrix} is the curvature through the model's output, but loss= reads the parameter {read[0]} beside it, whose "
                "terms it would leave out; use Hessian, let forward= return what loss= reads, or take decay out of loss= and add "
                "its matrix (A + 2 * decay * spectral.I)."
            )
        if x is not None and id(x) in ends:
            raise ValueError(
                f"{matrix} is the curvature through the model's output, but loss= reads the inputs beside it, whose terms it "
                "would leave out; use Hessian, or give the loss a copy of them as a target."
            )
        if heads and not any(head.ndim for head in heads):
            raise ValueError(
                f"loss= reads numbers that the model has reduced already, and {matrix} through them is 0; let it read the "
                "outputs that they are made of."
            )


def _check_memory(network: DataModel, batch: Any, function: Function, facts: GraphFacts) -> None:
    """Refuse a model that a call has changed, if the next one gives something else, or does not read its parameters anew."""

    def run() -> torch.Tensor:
        return function(*network.primals(batch)).detach()

    value, again = facts.value, graph_facts(function, network.primals(batch))
    if not _differ(value, again.value, value.dtype):
        lost = [i for i, reached in enumerate(facts.reached) if reached and not again.reached[i]]
        if not lost:
            return
        raise ValueError(_kept(network.names[lost[0]] if network.wrt == "params" else "the variable", "a cache"))
    culprit = _first_difference(network, run, run, value.dtype) or "the model"
    raise ValueError(
        f"two forward passes of one batch differ: {culprit} keeps something from one call to the next (a hidden state, a "
        "counter, a generator), so that its outputs are no function of the parameters; let forward= begin from one state."
    )


def _kept(what: str, where: str) -> str:
    return (
        f"what the model has made of {what} in one call is kept and read in the next ({where}), without its derivative; empty "
        "the cache in forward=, or let the model keep nothing."
    )


def check_coupling(network: DataModel, batch: Any, z: torch.Tensor) -> None:
    """Refuse a model that lets samples meet in eval mode; what cannot be tested stands in network.untested."""
    try:
        culprit = samples_meet(network, batch, z)
    except (RuntimeError, ValueError, LookupError, AssertionError, TypeError) as failure:
        words = first_line(failure)
        entries, _ = network.samples.apart(batch, network.samples.size(batch))
        if network.of in ("loss", "loss sums") and all(t.ndim == 1 for t in entries) and z.ndim and len(entries) > 1:
            raise ValueError(
                f"no entry of the first batch has more than one axis, and the model fails on another length ({words}), so that a "
                "batch seems to be a single sample; pass batches with a first axis of samples, as DataLoader(data, "
                "batch_size=...) makes them."
            ) from failure
        network.untested["copies of one sample alone"] = words
        return
    if culprit is not None:
        offsets = (
            "; what counts from the begin of a shared entry (offsets) is shared too" if network.samples.shared else ""
        )
        raise ValueError(
            f"the outputs of a sample depend on the other samples of its batch: {culprit} couples them in eval mode (statistics "
            f"of the batch, say); mend it, or pass preflight=False if the matrix of these batches is meant{offsets}."
        )


# NaN and infinity ----------------------------------------------------------------------------------------------------
def first_nonfinite_module(network: DataModel, batch: Any, function: Function) -> str | None:
    """The first module with finite inputs and an output that holds NaN or infinity, as `norm (LayerNorm)`; None if none."""
    found: list[str] = []

    def enter(visit: ModuleCall, inputs: list[torch.Tensor]) -> None:
        visit.seen = all(_sound(t) for t in inputs)

    def leave(visit: ModuleCall, outputs: list[torch.Tensor]) -> None:
        if visit.seen and not is_finite(outputs):
            bad = [name for name, p in visit.module.named_parameters(recurse=False) if not is_finite([p.detach()])]
            found.append(visit.label + (f", whose {bad[0]} holds NaN or infinity" if bad else ""))

    with network.opened(), module_calls(network, enter, leave):
        function(*network.primals(batch))
    return found[0] if found else None


# Randomness and samples that meet ------------------------------------------------------------------------------------
def _reseed() -> None:
    """Other states of the global generators, whatever they are now: drawn from themselves."""
    torch.manual_seed(int(torch.randint(2**62, ())))
    random.seed(random.getrandbits(62))
    np.random.seed(np.random.randint(2**31))  # noqa: NPY002 (the user's model draws from the global state)


def _differ(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> bool:
    """Further apart than the rounding of a deep network in this dtype explains, about sqrt(depth) eps, with room."""
    if a.shape != b.shape:
        return True
    if not a.is_floating_point():
        return not torch.equal(a, b)
    gap = size = 0.0
    step = longvectors.chunk(a.device)
    for x, y in zip(a.reshape(-1).split(step), b.reshape(-1).split(step), strict=True):
        alike = (x == y) | (x.isnan() & y.isnan())  # masks of -infinity too
        gap = math.hypot(gap, longvectors.norm(torch.where(alike, 0, x - y)))
        size = math.hypot(size, longvectors.norm(torch.where(x.isfinite(), x, 0)))
    return not gap <= arrays.discrepancy(dtype) * size


def active_randomness(
    network: DataModel, batch: Any, function: Function | None = None, z: torch.Tensor | None = None
) -> str | None:
    """The module that is random in eval mode, as `drop (Noise)`: with other random states its output is another; None if none.

    A model that resets the state itself is no function of it, hence not random; one that forks it is found.
    """
    function = function or network.function(batch)

    def run() -> torch.Tensor:
        return function(*network.primals(batch)).detach()

    def run_otherwise() -> torch.Tensor:
        _reseed()
        return run()

    with network.opened():
        z = run() if z is None else z.detach()
        if not _differ(z, run_otherwise(), z.dtype):
            return None
        found = _first_difference(network, run, run_otherwise, z.dtype)
    return found or "of=, loss= or forward="


def samples_meet(network: DataModel, batch: Any, z: torch.Tensor | None = None) -> str | None:
    """The module that lets the samples of a batch meet in eval mode: alone, the first sample has other outputs; None if none.

    Alone means among two or three copies of itself, which models that squeeze an axis of length one read too. Where losses of
    single samples are meant, the last one is looked at as well, before the first: its outputs read no earlier ones.
    """
    size = network.samples.size(batch)
    if size < 2:
        return None
    copies = 3 if size == 2 else 2  # another number of samples, which tells the axis of the samples in any tensor

    def of(*order: int) -> Any:
        return network.samples.some(batch, size, lambda t: torch.cat([part(t, i, i + 1) for i in order]))

    alone = of(*[0] * copies)

    def run(part: Any) -> torch.Tensor:
        return network.function(part)(*network.primals(part)).detach()

    with network.opened():
        z = run(batch) if z is None else z.detach()
        if z.shape[0] != size:
            raise ValueError("the outputs do not have one row for each sample")
        if len(single := run(alone)) != copies:
            raise ValueError(
                "forward reads entries that belong to no single sample, so that its outputs cannot be made alone"
            )
        pairs = [(z[0], single[0])]
        if network.of in ("loss", "loss sums"):
            pairs.append((z[[-1, 0]], run(of(*[size - 1] * (copies - 1), 0))[[0, -1]]))
        if not any(_differ(*pair, z.dtype) for pair in pairs):
            return None
        with Made() as made:  # some models compute in float32 whatever their parameters are
            run(alone)
        dtype = max(made.kinds | {z.dtype}, key=arrays.machine_epsilon)
        if not _differ(*pairs[0], dtype):
            later = any(_differ(*pair, dtype) for pair in pairs)
            return "what comes before it in the batch (a first axis that is time, say)" if later else None
        found = _first_difference(network, lambda: run(alone), lambda: run(batch), dtype, (copies, size))
    return found or "of= or forward="


def _first_difference(
    network: DataModel,
    one: Callable[[], Any],
    two: Callable[[], Any],
    dtype: torch.dtype,
    sizes: tuple[int, int] = (1, 1),
) -> str | None:
    """The first call with equal inputs and different outputs in the passes `one` and `two`, of `sizes` samples each."""
    kept: dict[tuple[str, int], list[list[torch.Tensor]]] = {}
    found: list[str] = []

    def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
        if len(a) != len(b):
            return False
        pairs = [_common(s, t, sizes) for s, t in zip(a, b, strict=True)]
        return all(pair is not None and not _differ(*pair, dtype) for pair in pairs)

    def keep(visit: ModuleCall, parts: list[torch.Tensor]) -> None:
        kept.setdefault((visit.label, visit.number), []).append([t.detach().clone() for t in parts])

    def enter(visit: ModuleCall, inputs: list[torch.Tensor]) -> None:
        known = kept.get((visit.label, visit.number), [])
        visit.seen = len(known) == 2 and same(known[0], inputs)

    def leave(visit: ModuleCall, outputs: list[torch.Tensor]) -> None:
        if visit.seen and not same(kept[visit.label, visit.number][1], outputs):
            found.append(visit.label)

    with module_calls(network, keep, keep):
        one()
    with module_calls(network, enter, leave):
        two()
    return found[0] if found else None


def _common(s: torch.Tensor, t: torch.Tensor, sizes: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What both tensors say of the first sample: its part of the axis that grows with the samples, or all; None if neither."""
    if s.shape == t.shape:
        return s, t
    if s.ndim != t.ndim:
        return None
    axes = [i for i in range(s.ndim) if s.shape[i] != t.shape[i]]
    if len(axes) != 1 or s.shape[axes[0]] * sizes[1] != t.shape[axes[0]] * sizes[0]:
        return None
    each = s.shape[axes[0]] // sizes[0]
    return s.narrow(axes[0], 0, each), t.narrow(axes[0], 0, each)
