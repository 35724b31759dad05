"""What a model must be before its derivatives are taken, and which module breaks it: NaN, randomness, samples that meet.

A healthy model pays one more forward pass of the first batch and one of a few samples. Only what has already failed is run
again under hooks, which are removed before the sentence is returned: modes, buffers, gradients and every random state are as
before, and no sweep is counted. A culprit is the innermost module whose inputs are sound and whose outputs are not.

Legend: B samples in a batch, z (B, k) its outputs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from spectral import arrays
from spectral.networks.batches import evaluation, first_tensor, tensors
from spectral.networks.diagnose.hooks import ModuleCall, finite, untouched, visits

if TYPE_CHECKING:
    from spectral.networks.data_model import DataModel

Function = Callable[..., torch.Tensor]


def _sound(t: torch.Tensor) -> bool:
    """Finite, or an additive mask of attention: 0 and -infinity alone."""
    if not t.is_floating_point() or bool(torch.isfinite(t).all()):
        return True
    return bool(((t == 0) | (t == -torch.inf)).all() and (t == 0).any())


# Models --------------------------------------------------------------------------------------------------------------
def check_model(model: nn.Module) -> None:
    """One clear sentence for a model that eval mode does not make a function of single samples, as far as its modules tell."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__} without running statistics, which couples the samples of a "
                "batch in eval mode too; use track_running_stats=True, or another normalisation."
            )
    with evaluation(model):
        for name, module in model.named_modules():
            if module.training:
                raise ValueError(
                    f"{name or 'the model'} ({type(module).__name__}) stays in training mode after model.eval(): its own train() "
                    "or eval(), or a parent's, is overridden; let them call super() so that every module has an eval mode."
                )


def check_batch(network: DataModel, batch: Any, z: torch.Tensor, function: Function | None = None) -> str:
    """Refuse a model that is random or lets samples meet in eval mode; returns what could not be tested, "" if nothing.

    `z` is what `function` (network.function(batch) if None) gave on this batch. One more forward pass of the batch, with other
    random states, and one of two or three copies of its first sample.
    """
    culprit = active_randomness(network, batch, function, z)
    if culprit is not None:
        raise ValueError(f"two forward passes of one batch differ: {culprit} is random in eval mode; remove the noise.")
    return check_coupling(network, batch, z)


def check_coupling(network: DataModel, batch: Any, z: torch.Tensor) -> str:
    """Refuse a model that lets samples meet in eval mode; returns what could not be tested, "" if nothing."""
    try:
        culprit = samples_meet(network, batch, z)
    except (RuntimeError, ValueError, IndexError, AssertionError) as failure:
        words = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        return f"copies of one sample alone: {words}"
    if culprit is not None:
        raise ValueError(
            f"the outputs of the first sample depend on the other samples of its batch: {culprit} couples them in eval mode "
            "(statistics of the batch, say); mend it, or pass preflight=False if the matrix of these batches is meant."
        )
    return ""


# NaN and infinity ----------------------------------------------------------------------------------------------------
def first_nonfinite_module(network: DataModel, batch: Any, function: Function | None = None) -> str | None:
    """The first module with finite inputs and an output that holds NaN or infinity, as `norm (LayerNorm)`; None if none."""
    found: list[str] = []

    def enter(visit: ModuleCall, inputs: list[torch.Tensor]) -> None:
        visit.seen = all(_sound(t) for t in inputs)

    def leave(visit: ModuleCall, outputs: list[torch.Tensor]) -> None:
        if visit.seen and not finite(outputs):
            bad = [name for name, p in visit.module.named_parameters(recurse=False) if not finite([p.detach()])]
            found.append(visit.label + (f", whose {bad[0]} holds NaN or infinity" if bad else ""))

    with untouched(network), torch.no_grad(), visits(network, enter, leave):
        (function or network.function(batch))(*network.primals(batch))
    return found[0] if found else None


# Randomness and samples that meet ------------------------------------------------------------------------------------
def _reseed() -> None:
    """Other states of the global generators, whatever they are now: drawn from themselves."""
    torch.manual_seed(int(torch.randint(2**62, ())))
    random.seed(random.getrandbits(62))
    np.random.seed(np.random.randint(2**31))  # noqa: NPY002 (the user's model draws from the global state)


class _Kinds(TorchDispatchMode):
    """The floating dtypes that are computed: some models compute in float32 whatever their parameters are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.found |= {t.dtype for t in tensors([output]) if t.is_floating_point()}
        return output


def _differ(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> bool:
    """Further apart than the rounding of a deep network in this dtype explains, about sqrt(depth) eps, with room."""
    if a.shape != b.shape:
        return True
    if not a.is_floating_point():
        return not torch.equal(a, b)
    alike = (a == b) | (a.isnan() & b.isnan())  # masks of -infinity too
    allowed = min(0.1, 1e3 * arrays.machine_epsilon(dtype) ** 0.75)
    gap, size = (torch.where(keep, t, 0).reshape(-1) for keep, t in ((~alike, a - b), (a.isfinite(), a)))
    return not arrays.norm(gap) <= allowed * arrays.norm(size)


def active_randomness(
    network: DataModel, batch: Any, function: Function | None = None, z: torch.Tensor | None = None
) -> str | None:
    """The module that is random in eval mode, as `drop (Noise)`: with other random states its output is another; None if none.

    A model that resets the state itself is no function of it, hence not random; one that forks it is found.
    """
    function = function or network.function(batch)

    def run() -> torch.Tensor:
        return function(*network.primals(batch))

    def run_otherwise() -> torch.Tensor:
        _reseed()
        return run()

    with untouched(network), torch.no_grad():
        z = run() if z is None else z.detach()
        if not _differ(z, run_otherwise(), z.dtype):
            return None
        found = _first_difference(network, run, run_otherwise, z.dtype)
    return found or "of=, loss= or forward="


def samples_meet(network: DataModel, batch: Any, z: torch.Tensor | None = None) -> str | None:
    """The module that lets the samples of a batch meet in eval mode: alone, the first sample has other outputs; None if none.

    Alone means among two or three copies of itself, which models that squeeze an axis of length one read too.
    """
    first = first_tensor(batch)
    size = 0 if first is None else first.shape[0]
    if size < 2:
        return None
    copies = 3 if size == 2 else 2  # another number of samples, which tells the axis of the samples in any tensor
    alone = tree_map_only(
        torch.Tensor, lambda t: torch.cat([t[:1]] * copies) if t.ndim > 0 and t.shape[0] == size else t, batch
    )

    def run(part: Any) -> torch.Tensor:
        return network.function(part)(*network.primals(part))

    with untouched(network), torch.no_grad():
        z = run(batch) if z is None or z.shape[0] != size else z.detach()
        z_alone = run(alone)
        if not _differ(z[0], z_alone[0], z.dtype):
            return None
        with _Kinds() as kinds:
            run(alone)
        dtype = max(kinds.found | {z.dtype}, key=arrays.machine_epsilon)
        if not _differ(z[0], z_alone[0], dtype):
            return None
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

    with visits(network, keep, keep):
        one()
    with visits(network, enter, leave):
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
