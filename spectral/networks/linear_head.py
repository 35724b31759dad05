"""The linear head of a language model: logits z = W h + b, multiplied a chunk of tokens at a time and never made whole.

The Gauss-Newton matrix of a cross entropy is J^T K J, with J the derivative of (h, W, b) and K that of the loss through the head:

    dz = W dh + dW h + db,   u = m (diag(p) - p p^T) dz,   K (dh, dW, db) = (W^T u, sum u h^T, sum u)

token by token (Schraudolph 2002, his R-forward and backward passes in the last layer). p = softmax(z) is made of h again for each
product, or kept.

Legend: N tokens of a batch, d the head's width, V classes; h (N, d), W (V, d), b (V,), m (N,) what a token's target weighs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from spectral import arrays, longvectors
from spectral.engine import linearize, private
from spectral.networks.activations import Reached

WIDER = 4  # times as many classes as inputs: from here on the logits are larger than what a layer below them keeps
ROWS = 4  # tokens on which the head's values are compared
# A chunk is a sixteenth of the logits, of which three are held at a time, or a quarter of W where that is more: each chunk reads
# W and dW and adds to a sum of their size, which takes longer than the products with fewer tokens.
PARTS, ROOM = 16, 4
LARGEST = 1 << 24  # entries of a chunk; matrix products gain nothing from more
Tensor = torch.Tensor


# Which module it is ---------------------------------------------------------------------------------------------------
@contextmanager
def wide_calls(model: nn.Module) -> Iterator[Callable[[Tensor], str | None]]:
    """Inside, of logits z (..., V): the wide linear layer that gave them, by name, and was called for nothing else; None if none.

    A head is what is called last. That it gave z: the same memory in the same order, not written to since, and W h + b.
    """
    counts, latest = Counter[str](), list[Any]()

    def note(name: str, layer: Any, args: Any, z: Tensor) -> None:
        bias = None if layer.bias is None else layer.bias.detach()
        counts[name] += 1
        latest[:] = name, args[0].detach(), layer.weight.detach(), bias, z.detach(), private.version(z)

    def head(z: Tensor) -> str | None:
        if not latest or counts[latest[0]] != 1:
            return None
        name, h, weight, bias, own, version = latest
        same = (z.data_ptr(), z.shape, z.stride()) == (own.data_ptr(), own.shape, own.stride())
        if not same or private.version(own) != version or not h.dtype == weight.dtype == z.dtype:
            return None
        h, z = h.reshape(-1, h.shape[-1]), z.reshape(-1, z.shape[-1])
        some = slice(None, None, -(-len(z) // ROWS))
        made = F.linear(h[some], weight, bias)
        gap = longvectors.distance(made, z[some])
        return name if gap <= arrays.discrepancy(z.dtype) * longvectors.norm(made.reshape(-1)) else None

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if type(module) is nn.Linear and module.out_features >= WIDER * module.in_features:
                hooks.enter_context(module.register_forward_hook(partial(note, name)))
        yield head


def inputs_of(head: nn.Module, forward: Callable[[], Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """(h, W, b) of the head's call in a forward pass, which ends there."""

    def stop(layer: Any, args: Any) -> None:
        raise Reached(args[0], layer.weight, layer.bias)

    try:
        with head.register_forward_pre_hook(stop):
            forward()
    except Reached as reached:
        return reached.args  # type: ignore[return-value]
    raise ValueError(
        "the forward pass no longer calls the head that it called in the first sweep; build the operator anew."
    )


# Products through it --------------------------------------------------------------------------------------------------
@dataclass
class HeadCurvature:
    """K (dh, dW, db): the curvature of the summed loss with respect to what the head reads, and to its own parameters.

    Beside vectors like (h, W, b) it holds three chunks of the logits, and their probabilities where it `keeps` them.
    """

    h: Tensor  # (..., d)
    weight: Tensor
    bias: Tensor | None
    mass: Tensor  # (...)
    keeps: bool = False
    kept: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.h, self.mass = self.h.reshape(-1, self.h.shape[-1]), self.mass.reshape(-1, 1)
        self.weighted = self.mass * self.h
        (classes, width), tokens = self.weight.shape, len(self.h)
        fewest, most = max(1, longvectors.chunk(self.h.device) // classes), LARGEST // classes
        tokens = max(fewest, min(most, max(tokens // PARTS, width // ROOM)))
        self.parts = [slice(start, start + tokens) for start in range(0, len(self.h), tokens)]

    def __call__(self, dh: Tensor, dW: Tensor | None, db: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(W^T u, sum u h^T, sum u) of dz = W dh + dW h + db; None for a parameter that does not vary."""
        rows = dh.reshape(self.h.shape)
        through: list[Tensor] = []
        of_weight: Tensor | None = None
        of_bias: Tensor | None = None
        for part in self.parts:
            u = self._curved(part, rows[part], dW, db)
            through.append((u @ self.weight).mul_(self.mass[part]))
            if dW is not None:
                of_weight = _plus(of_weight, u.T, self.weighted[part])
            if db is not None:
                of_bias = _plus(of_bias, u.T, self.mass[part])
            del u  # before the next chunk is made
        return torch.cat(through).reshape(dh.shape), of_weight, None if of_bias is None else of_bias.view(-1)

    def _curved(self, part: slice, dh: Tensor, dW: Tensor | None, db: Tensor | None) -> Tensor:
        """(diag(p) - p p^T) dz of some tokens."""
        p = self.kept.get(part.start)
        if p is None:
            p = F.linear(self.h[part], self.weight, self.bias).softmax(-1)
        if self.keeps:
            self.kept[part.start] = p
        dz = dh @ self.weight.T
        if dW is not None:
            dz.addmm_(self.h[part], dW.T)
        if db is not None:
            dz.add_(db)
        return linearize.softmax_pullback(p, dz, -1, own=True)


def _plus(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a b, in place."""
    return a @ b if total is None else total.addmm_(a, b)
