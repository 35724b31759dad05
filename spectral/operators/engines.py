"""How J v and J^T u of one batch are computed.

An engine linearises a pure function z = f(primals), (B, k), at its primals. All keep the graph of the backward pass, so that
a linearisation that is kept from one sweep to the next gives J^T u without another forward pass. They differ in J v:

- `fresh`: forward-mode AD (`torch.func.jvp`), a dual forward pass each time;
- `replay`: the tangent program that forward-mode AD makes, recorded once (`torch.func.linearize`) and run again;
- `double-backward`: the derivative of u -> J^T u, for functions without forward-mode AD; its graph too is recorded once.

`auto` tries them on the first batch. An engine counts only if <J v, u> = <v, J^T u> holds on its first, second *and third*
call: a recorded program is silently wrong from the second call on where an op saves its output and the output is then
changed in place. The fastest that holds is taken; choice, reason and times stand in the operator's description. Linearisations
of as many batches are kept as a quarter of the free memory holds (`Store`).
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectral import arrays, probes

ENGINES = ("auto", "fresh", "replay", "double-backward")
KEEP = 0.25  # part of the free memory that kept linearisations may take
CALLS = 3  # that an engine must get right on the first batch
Function = Callable[..., torch.Tensor]
Tensors = Sequence[torch.Tensor]


def math_attention() -> AbstractContextManager[None]:
    """Attention by matrix products and a softmax, which every kind of differentiation knows."""
    return sdpa_kernel(SDPBackend.MATH)


def gradients(total: torch.Tensor, leaves: Tensors, *, create_graph: bool = False) -> tuple[torch.Tensor, ...]:
    """The gradient of a scalar with respect to the leaves, zeros for those that it does not depend on."""
    if not total.requires_grad:
        return tuple(torch.zeros_like(p) for p in leaves)
    return torch.autograd.grad(total, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True)


class Fresh:
    """The linearisation of `function` at `primals`: `jvp(tangents) -> (B, k)`, `vjp(cotangent (B, k)) -> like primals`."""

    def __init__(self, function: Function, primals: Tensors) -> None:
        self.function, self.primals = function, tuple(primals)
        self._leaves: tuple[torch.Tensor, ...] = ()
        self._output: torch.Tensor | None = None

    @property
    def output(self) -> torch.Tensor:
        """z with its backward graph, recorded on first use."""
        if self._output is None:
            self._leaves = tuple(p.detach().requires_grad_() for p in self.primals)
            self._output = self.function(*self._leaves)
        return self._output

    def vjp(self, cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """J^T u by one backward pass; torch.autograd.grad, which lives with activation checkpointing."""
        z = self.output
        if not z.requires_grad:  # the outputs do not depend on these primals
            return tuple(torch.zeros_like(p) for p in self.primals)
        return torch.autograd.grad(
            z, self._leaves, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    def jvp(self, tangents: Tensors) -> torch.Tensor:
        """J v by forward-mode AD; fused attention has none, so that the math kernel runs here."""
        with math_attention():
            return torch.func.jvp(self.function, self.primals, tuple(tangents))[1].detach()


class Replay(Fresh):
    """J v by the recorded tangent program of the function: no second forward pass."""

    _program: Callable[..., torch.Tensor] | None = None

    def jvp(self, tangents: Tensors) -> torch.Tensor:
        if self._program is None:
            with math_attention(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"torch\.")  # of torch's own use of torch.jit and torch.fx
                _, self._program = torch.func.linearize(self.function, *self.primals)
        return self._program(*tangents).detach()


class DoubleBackward(Fresh):
    """J v as the derivative of u -> J^T u (it is linear in u): two backward passes, no forward-mode AD."""

    _u: torch.Tensor | None = None
    _pulled: tuple[torch.Tensor, ...] = ()

    @property
    def output(self) -> torch.Tensor:
        with math_attention():  # the fused one has no double backward
            return super().output

    def jvp(self, tangents: Tensors) -> torch.Tensor:
        z = self.output
        if not z.requires_grad:
            return torch.zeros_like(z)
        if self._u is None:
            self._u = torch.zeros_like(z, requires_grad=True)
            self._pulled = torch.autograd.grad(
                z, self._leaves, self._u, create_graph=True, allow_unused=True, materialize_grads=True
            )
        linked = [(g, t) for g, t in zip(self._pulled, tangents, strict=True) if g.requires_grad]
        if not linked:
            return torch.zeros_like(z)
        outputs, weights = zip(*linked, strict=True)
        (jv,) = torch.autograd.grad(
            outputs, self._u, weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return jv.detach()


CLASSES: dict[str, type[Fresh]] = {"fresh": Fresh, "replay": Replay, "double-backward": DoubleBackward}
COPIES = {"fresh": 1, "replay": 2, "double-backward": 3}  # graphs of about the forward pass's size that each one keeps


class _Wrong(RuntimeError):
    """An engine's products are not those of one matrix and its transpose."""


@dataclass(frozen=True)
class Trial:
    """An engine on the first batch: largest adjoint error, seconds of its first J v and J^T u and of the fastest later one."""

    error: float
    first: float
    later: float


@dataclass(frozen=True)
class Choice:
    """What holds on this model: `trials` of the engines that do, `failures` of those that do not, `asked` by name or auto."""

    asked: str
    trials: dict[str, Trial]
    failures: list[str]
    inside: str = ""  # the dtype that the model computes in, where that is coarser than its parameters'

    @property
    def once(self) -> str:
        """The engine that is fastest when nothing is kept."""
        return min(self.trials, key=lambda name: self.trials[name].first if name != "fresh" else 0.0)

    def kept(self, products: int) -> str:
        """The engine that is fastest for so many products when its linearisation is kept: recording must pay for itself."""
        return min(self.trials, key=lambda name: self.trials[name].first + (products - 1) * self.trials[name].later)

    def describe(self, products: int) -> dict[str, Any]:
        """Plain JSON: the engine, why, and what each one takes on the first batch."""
        best = self.kept(products)
        why = (
            "asked for"
            if self.asked != "auto"
            else f"fastest for {products} products of those that hold on three calls"
        )
        return {
            "engine": best,
            "reason": "; ".join([why, *self.failures]),
            **({"computes_in": self.inside} if self.inside else {}),
            "adjoint_error": self.trials[best].error,
            "seconds_first_batch": {name: round(trial.later, 6) for name, trial in self.trials.items()},
        }


def choose(name: str, function: Function, primals: Tensors) -> Choice:
    """Try the engines on the first batch; ValueError with one sentence if none is right."""
    if name not in ENGINES:
        raise ValueError(f"engine={name!r} is no engine; use one of {', '.join(ENGINES)}.")
    trials: dict[str, Trial] = {}
    failures: list[str] = []
    inside = coarsest(function, primals)
    for label in CLASSES if name == "auto" else [name]:
        if label == "double-backward" and "replay" in trials:
            continue  # two graphs deep, it is not faster than a recorded program that is right
        try:
            trials[label] = _trial(CLASSES[label](function, primals), tolerance(inside))
        except (RuntimeError, NotImplementedError, AssertionError) as failure:  # torch.fx asserts what it cannot record
            failures.append(f"{label}: {(str(failure).strip().splitlines() or [type(failure).__name__])[0]}")
    if not trials:
        raise ValueError(
            f"no engine multiplies this model's Jacobian ({' | '.join(failures)}); give the failing module a derivative, or "
            "replace it by torch operations."
        )
    coarser = inside not in {p.dtype for p in primals}
    return Choice(name, trials, failures, str(inside).removeprefix("torch.") if coarser else "")


def tolerance(dtype: torch.dtype) -> float:
    """How far products may be off by rounding alone: about sqrt(depth) eps, with room.

    A bf16 product may be off by 1e-2; a wrong one is off by about 1.
    """
    return min(0.1, 1e3 * arrays.machine_epsilon(dtype) ** 0.75)


def _trial(lin: Fresh, allowed: float = 1e-9) -> Trial:
    """CALLS products and transposed products, each pair held against the adjoint identity; _Wrong if one is off."""
    errors, seconds = [], []
    for call in range(CALLS):
        error, elapsed = adjoint_error(lin, seed=call)
        if not error <= allowed:
            raise _Wrong(f"<Jv, u> and <v, J^T u> differ by {error:.1e} on call {call + 1}")
        errors.append(error)
        seconds.append(elapsed)
    return Trial(max(errors), seconds[0], min(seconds[1:]))


def adjoint_error(lin: Fresh, seed: int = 0) -> tuple[float, float]:
    """(|<J v, u> - <v, J^T u>| / max(||J v||, ||J^T u||) of one batch for one Gaussian pair, seconds of both products).

    The inner products of a Gaussian u (v) have the standard deviation ||J v|| (||J^T u||), so that a wrong product shows as
    about 1 in any dimension; divided by ||u|| or ||v|| it would drown in float32's tolerance from a million parameters on.
    """
    dtype, device = lin.primals[0].dtype, lin.primals[0].device
    tangents = [
        probes.probe(2 * seed, i, p.numel(), dtype=dtype, device=device).view_as(p) for i, p in enumerate(lin.primals)
    ]
    _wait(device)
    begin = time.perf_counter()
    jv = lin.jvp(tangents)
    _wait(device)
    elapsed = time.perf_counter() - begin
    u = probes.probe(2 * seed + 1, 0, jv.numel(), dtype=jv.dtype, device=device).view_as(jv)
    begin = time.perf_counter()
    pulled = lin.vjp(u)
    _wait(device)
    elapsed += time.perf_counter() - begin
    forward = (jv.double() * u.double()).sum()
    backward = sum((t.double() * g.double()).sum() for t, g in zip(tangents, pulled, strict=True))
    scale = max(arrays.norm(jv.reshape(-1)), sum(arrays.norm(g.reshape(-1)) ** 2 for g in pulled) ** 0.5)
    return (abs(float(forward - backward)) / scale if scale > 0 else 0.0), elapsed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Saved:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _saved(function: Function, primals: Tensors) -> list[torch.Tensor]:
    """What the graph of the function's value keeps; not what else was computed on the way, such as a model's own loss."""
    made: list[weakref.ref[_Saved]] = []

    def pack(t: torch.Tensor) -> _Saved:
        saved = _Saved(t.detach())  # an output would hold its graph, which holds it
        made.append(weakref.ref(saved))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        z = function(*(p.detach().requires_grad_() for p in primals))
    alive = [saved.tensor for saved in (reference() for reference in made) if saved is not None]
    del z  # it held the graph
    return alive


def graph_bytes(function: Function, primals: Tensors) -> int:
    """Bytes that the backward graph of one forward pass holds beyond the primals themselves."""
    own = {p.untyped_storage().data_ptr() for p in primals}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _saved(function, primals)}
    return sum(size for address, size in storages.items() if address not in own)


def coarsest(function: Function, primals: Tensors) -> torch.dtype:
    """The coarsest floating dtype that derivatives are computed from: some models compute in float32 whatever they are in."""
    kinds = {t.dtype for t in (*primals, *_saved(function, primals)) if t.is_floating_point()}
    return max(kinds, key=arrays.machine_epsilon)


class Store:
    """What is kept of each batch from sweep to sweep, as far as `budget` bytes go, and only while the model is the same."""

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.used = 0
        self.version: Any = None
        self.entries: dict[int, Any] = {}

    def get(self, index: int, version: Any) -> Any:
        """What was kept of batch `index`, or None."""
        if version != self.version:
            self.clear()
            self.version = version
        return self.entries.get(index)

    def room(self, size: int, device: torch.device) -> bool:
        """Whether `size` more bytes fit."""
        if self.budget is None:
            self.budget = int(KEEP * arrays.available_memory(device))
        return self.used + size <= self.budget

    def put(self, index: int, value: Any, size: int) -> None:
        """Keep `value` of batch `index`, which takes `size` bytes."""
        self.entries[index] = value
        self.used += size

    def clear(self) -> None:
        """Drop everything."""
        self.entries, self.used = {}, 0
