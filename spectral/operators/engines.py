"""How J v and J^T u of one batch are computed.

An engine linearises a pure function z = f(primals), (B, k), at its primals:

- `fresh`: J v by forward-mode AD (`torch.func.jvp`), J^T u by a backward pass whose graph is kept while this batch is in hand;
- `double-backward`: J v as the derivative of u -> J^T u, for functions without forward-mode AD.

`auto` takes `fresh` where forward-mode AD works on the first batch and <J v, u> = <v, J^T u> holds there, otherwise
`double-backward`; the choice and its reason stand in the operator's description.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectral import arrays, probes

ENGINES = ("auto", "fresh", "double-backward")
Function = Callable[..., torch.Tensor]
Tensors = Sequence[torch.Tensor]


def math_attention() -> AbstractContextManager[None]:
    """Attention by matrix products and a softmax, which every kind of differentiation knows."""
    return sdpa_kernel(SDPBackend.MATH)


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


class DoubleBackward(Fresh):
    """J v as the derivative of u -> J^T u (it is linear in u): two backward passes, no forward-mode AD."""

    @property
    def output(self) -> torch.Tensor:
        with math_attention():  # the fused one has no double backward
            return super().output

    def jvp(self, tangents: Tensors) -> torch.Tensor:
        z = self.output
        if not z.requires_grad:
            return torch.zeros_like(z)
        u = torch.zeros_like(z, requires_grad=True)
        gradients = torch.autograd.grad(
            z, self._leaves, u, create_graph=True, allow_unused=True, materialize_grads=True
        )
        linked = [(g, t) for g, t in zip(gradients, tangents, strict=True) if g.requires_grad]
        if not linked:
            return torch.zeros_like(z)
        outputs, weights = zip(*linked, strict=True)
        (jv,) = torch.autograd.grad(outputs, u, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        return jv.detach()


def adjoint_error(lin: Fresh) -> float:
    """|<J v, u> - <v, J^T u>| / max(||J v||, ||J^T u||) of one batch, for one Gaussian pair.

    The inner products of a Gaussian u (v) have the standard deviation ||J v|| (||J^T u||), so that a wrong product shows as
    about 1 in any dimension; divided by ||u|| or ||v|| it would drown in float32's tolerance from a million parameters on.
    """
    dtype, device = lin.primals[0].dtype, lin.primals[0].device
    tangents = [probes.probe(0, i, p.numel(), dtype=dtype, device=device).view_as(p) for i, p in enumerate(lin.primals)]
    jv = lin.jvp(tangents)
    u = probes.probe(1, 0, jv.numel(), dtype=jv.dtype, device=device).view_as(jv)
    pulled = lin.vjp(u)
    forward, backward = (
        (jv.double() * u.double()).sum(),
        sum((t.double() * g.double()).sum() for t, g in zip(tangents, pulled, strict=True)),
    )
    scale = max(arrays.norm(jv.reshape(-1)), sum(arrays.norm(g.reshape(-1)) ** 2 for g in pulled) ** 0.5)
    return abs(float(forward - backward)) / scale if scale > 0 else 0.0


def choose(name: str, function: Function, primals: Tensors) -> tuple[type[Fresh], dict[str, str | float]]:
    """The engine for this model, tried on its first batch, and what there is to tell of the choice."""
    if name not in ENGINES:
        raise ValueError(f"engine={name!r} is no engine; use one of {', '.join(ENGINES)}.")
    # products round: about sqrt(depth) eps, with room; a bf16 product may be off by 1e-2, a wrong one is off by about 1
    tolerance = min(0.1, 1e3 * arrays.machine_epsilon(primals[0].dtype) ** 0.75)
    failures: list[str] = []
    for label, engine in (("fresh", Fresh), ("double-backward", DoubleBackward)):
        if name not in ("auto", label):
            continue
        try:
            error = adjoint_error(engine(function, primals))
        except (RuntimeError, NotImplementedError) as failure:
            failures.append(f"{label}: {str(failure).strip().splitlines()[0]}")
            continue
        if error <= tolerance:
            reason = "; ".join(failures) or ("asked for" if name != "auto" else "forward-mode AD works")
            return engine, {"engine": label, "reason": reason, "adjoint_error": error}
        failures.append(f"{label}: <Jv, u> and <v, J^T u> differ by {error:.1e}")
    raise ValueError(
        f"no engine multiplies this model's Jacobian ({' | '.join(failures)}); give the failing module a derivative, or "
        "replace it by torch operations."
    )
