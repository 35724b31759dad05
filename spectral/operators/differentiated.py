"""A product with a vector that torch differentiates: A is a constant, the vector is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spectral import arrays


class Differentiated(torch.autograd.Function):
    """A v as a part of torch's graph: the derivative of u^T A v by v is A^T u.

    A is a constant of that graph, so that v must not be made of what A is made of (`own`) where the derivative is taken.
    """

    @staticmethod
    def forward(ctx: Any, A: Any, v: torch.Tensor, own: Sequence[torch.Tensor]) -> Any:
        ctx.A = A
        ctx.save_for_backward(*own)  # so that torch tells when they are written to
        return A @ v.detach()

    @staticmethod
    def backward(ctx: Any, u: torch.Tensor) -> Any:
        try:
            own = set(map(id, ctx.saved_tensors))
        except RuntimeError as problem:
            if "inplace" not in str(problem):  # a second time through one graph, say
                raise
            raise ValueError(
                f"{ctx.A!r} has changed since the product whose derivative is taken: its parameters were written to; take the "
                "derivative before, or multiply again."
            ) from problem
        if any(id(arrays.leaf_of(node)) in own for node in arrays.nodes([ctx])):
            raise ValueError(
                f"{ctx.A!r} changes with parameters that its vector was made of, and a product has no derivative by the matrix; "
                "multiply v.detach(), or a v whose part that was made of them is detached."
            )
        return None, ctx.A.T @ u, None

    @staticmethod
    def jvp(ctx: Any, _: Any, tangent: torch.Tensor, *__: Any) -> Any:
        return ctx.A @ tangent
