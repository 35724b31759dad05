"""Curvature in the space of the outputs: products with the loss's Hessian and with the Fisher matrix, target by target.

z are a batch's outputs in the model's own shape; every function returns U (B, k) -> H U (B, k), U flattened per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from spectral import probes
from spectral.networks import losses
from spectral.networks.learned_loss import Loss
from spectral.networks.loss_model import LossModel, apart, joined

Product = Callable[[torch.Tensor], torch.Tensor]
CONVEX = (
    nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
)  # fmt: skip
PREDICTIVE = (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss)


def is_convex(loss: Any) -> bool:
    """Whether the loss is known to be convex in the logits, so that J^T H J is positive semi-definite."""
    return loss is None or type(loss) in CONVEX  # a subclass may be anything


def check_predictive(loss: Any) -> None:
    """One sentence for a loss that names no predictive distribution."""
    plain = getattr(loss, "weight", None) is None and getattr(loss, "pos_weight", None) is None
    if loss is None or (type(loss) in PREDICTIVE and (plain or isinstance(loss, nn.CrossEntropyLoss))):
        return
    names = ", ".join(kind.__name__ for kind in PREDICTIVE)
    raise ValueError(
        f"loss={loss!r} names no predictive distribution; Fisher knows {names} (weights with CrossEntropyLoss only) and None, "
        "the model's own cross entropy; use GaussNewton or EmpiricalFisher for other losses."
    )


def loss_hessian(model: LossModel, output: Any, batch: Any) -> Product:
    """Products with the Hessian of the summed loss of the batch with respect to all that it reads of the output.

    By double backward through the loss, which runs with the model's parameters of now.
    """
    heads = [h.detach().requires_grad_() for h in model.heads(output)]
    total = model.run(model.values, batch, lambda z: model.loss(z, batch)[0], model.with_heads(output, heads))
    gradient: Sequence[torch.Tensor] = [torch.zeros_like(h) for h in heads]
    if total.requires_grad:
        gradient = torch.autograd.grad(total, heads, create_graph=True, allow_unused=True, materialize_grads=True)
    linked = [i for i, g in enumerate(gradient) if g.requires_grad]

    def product(U: torch.Tensor) -> torch.Tensor:
        if not linked:  # piecewise linear in z
            return torch.zeros_like(U)
        parts = apart(U, heads)
        H_U = torch.autograd.grad(
            [gradient[i] for i in linked], heads, [parts[i] for i in linked], retain_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        return joined(H_U, len(U))

    return product


def loss_of_heads(
    model: LossModel, batch: Any, outputs: Callable[[], Any]
) -> tuple[Callable[..., torch.Tensor], None, list[torch.Tensor]]:
    """The summed loss of the batch as a function of what it reads of the output; no gradient; the output's own values there."""
    output = outputs()

    def loss(*heads: torch.Tensor) -> torch.Tensor:
        return model.run(model.values, batch, lambda z: model.loss(z, batch)[0], model.with_heads(output, heads))

    return loss, None, model.heads(output)


def _targets(loss: Loss, z: torch.Tensor, batch: Any) -> tuple[int, torch.Tensor]:
    """(axis of the classes, or no axis: z.ndim; what each target counts, shaped like z without that axis)."""
    target = loss.target(batch)
    if loss.given is None:
        losses.check_classes(loss.shift)
        return z.ndim - 1, losses.label_counts(target, loss.shift).to(z)
    if isinstance(loss.given, nn.CrossEntropyLoss):
        shape = z.shape[:1] + z.shape[2:]
        return 1, losses.target_counts(loss.given, z.new_ones(shape), target)
    return z.ndim, torch.ones_like(z)


def exact_fisher(loss: Loss, z: torch.Tensor, batch: Any) -> Product:
    """Products with E[s s^T], s the score of a label drawn from the model's prediction."""
    axis, counts = _targets(loss, z, batch)
    if isinstance(loss.given, nn.MSELoss):
        return lambda U: 2 * U
    if isinstance(loss.given, nn.BCEWithLogitsLoss):
        variance = (z.sigmoid() * (-z).sigmoid()).reshape(len(z), -1)
        return lambda U: variance * U
    p, counts = z.softmax(axis), counts.unsqueeze(axis)

    def product(U: torch.Tensor) -> torch.Tensor:
        V = U.reshape(z.shape)
        return (counts * p * (V - (p * V).sum(axis, keepdim=True))).reshape(U.shape)

    return product


def sampled_fisher(loss: Loss, z: torch.Tensor, batch: Any, draws: int, seed: int, first: int) -> Product:
    """Products with the mean of s s^T over `draws` labels for each target, drawn by (seed, sample) alone."""
    axis, counts = _targets(loss, z, batch)
    scores = [_score(loss.given, z, axis, _uniform(counts, seed, first, draw)) for draw in range(draws)]
    if axis == z.ndim:
        square = (sum(s**2 for s in scores) / draws).reshape(len(z), -1)  # type: ignore[union-attr]
        return lambda U: square * U

    def product(U: torch.Tensor) -> torch.Tensor:
        V = U.reshape(z.shape)
        total = sum(s * (s * V).sum(axis, keepdim=True) for s in scores)
        return (counts.unsqueeze(axis) * total / draws).reshape(U.shape)

    return product


def _uniform(counts: torch.Tensor, seed: int, first: int, draw: int) -> torch.Tensor:
    """Uniform numbers shaped like the targets; those of sample i are a function of (seed, i, draw)."""
    each = counts[0].numel()
    rows = [
        probes.probe(seed, first + i, each, start=draw * each, kind="uniform", dtype=counts.dtype)
        for i in range(len(counts))
    ]
    return torch.stack(rows).reshape(counts.shape).to(counts.device)


def _score(loss: Any, z: torch.Tensor, axis: int, uniform: torch.Tensor) -> torch.Tensor:
    """The gradient of the loss with respect to z at a label drawn by the inverse distribution function."""
    if isinstance(loss, nn.MSELoss):
        return -2 * (0.5**0.5) * torch.special.ndtri(uniform.double().clamp(1e-16, 1 - 1e-16)).to(z)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        p = z.sigmoid()
        return p - (uniform < p).to(z)
    p = z.softmax(axis)
    above = p.cumsum(axis) > uniform.unsqueeze(axis)
    drawn = above.to(torch.int8).argmax(axis)  # the first class whose cumulated probability exceeds the number
    last = torch.full_like(drawn, z.shape[axis] - 1)
    drawn = torch.where(above.any(axis), drawn, last)
    return p - torch.zeros_like(p).scatter_(axis, drawn.unsqueeze(axis), 1.0)
