"""Curvature in the space of the outputs: products with the loss's Hessian and with the Fisher matrix, target by target.

z are a batch's logits in the model's own shape; every function returns U (B, k) -> H U (B, k), U flattened per sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from spectral import probes
from spectral.networks import losses

Product = Callable[[torch.Tensor], torch.Tensor]
CONVEX = (
    nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
)  # fmt: skip
PREDICTIVE = (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss)


def is_convex(loss: Any) -> bool:
    """Whether the loss is known to be convex in the logits, so that J^T H J is positive semi-definite."""
    return loss is None or isinstance(loss, CONVEX)


def check_predictive(loss: Any) -> None:
    """One sentence for a loss that names no predictive distribution."""
    plain = getattr(loss, "weight", None) is None and getattr(loss, "pos_weight", None) is None
    if loss is None or (isinstance(loss, PREDICTIVE) and (plain or isinstance(loss, nn.CrossEntropyLoss))):
        return
    names = ", ".join(kind.__name__ for kind in PREDICTIVE)
    raise ValueError(
        f"loss={loss!r} names no predictive distribution; Fisher knows {names} (weights with CrossEntropyLoss only) and None, "
        "the model's own cross entropy; use GaussNewton or EmpiricalFisher for other losses."
    )


def loss_hessian(loss: Any, z: torch.Tensor, output: Any, batch: Any, shift: bool | None) -> Product:
    """Products with the Hessian of the summed loss of the batch with respect to z, by double backward through the loss."""
    leaf = z.detach().requires_grad_()
    total = _loss_of_logits(loss, leaf, output, batch, shift)
    gradient = torch.autograd.grad(total, leaf, create_graph=True)[0] if total.requires_grad else torch.zeros_like(leaf)

    def product(U: torch.Tensor) -> torch.Tensor:
        if not gradient.requires_grad:  # piecewise linear in z
            return torch.zeros_like(U)
        (H_U,) = torch.autograd.grad(
            gradient, leaf, U.reshape(z.shape), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return H_U.reshape(U.shape)

    return product


def _loss_of_logits(loss: Any, z: torch.Tensor, output: Any, batch: Any, shift: bool | None) -> torch.Tensor:
    """The summed loss as a function of the logits alone."""
    if loss is None:
        return losses.own_cross_entropy(z, losses.target_of(batch), shift)
    return losses.loss_sum(loss, _with_logits(output, z), batch, shift)[0]


def _with_logits(output: Any, z: torch.Tensor) -> Any:
    """The model's output with other logits."""
    if isinstance(output, torch.Tensor):
        return z
    changed = copy.copy(output)
    if isinstance(changed, Mapping):
        changed["logits"] = z  # type: ignore[index]
    else:
        changed.logits = z
    return changed


def _targets(loss: Any, z: torch.Tensor, batch: Any, shift: bool | None) -> tuple[int, torch.Tensor]:
    """(axis of the classes, or no axis: z.ndim; what each target counts, shaped like z without that axis)."""
    target = losses.target_of(batch)
    if loss is None:
        losses.check_classes(shift)
        return z.ndim - 1, losses.label_counts(target, shift).to(z)
    if isinstance(loss, nn.CrossEntropyLoss):
        shape = z.shape[:1] + z.shape[2:]
        return 1, losses.target_counts(loss, z.new_ones(shape), target)
    return z.ndim, torch.ones_like(z)


def exact_fisher(loss: Any, z: torch.Tensor, batch: Any, shift: bool | None) -> Product:
    """Products with E[s s^T], s the score of a label drawn from the model's prediction."""
    axis, counts = _targets(loss, z, batch, shift)
    if isinstance(loss, nn.MSELoss):
        return lambda U: 2 * U
    if isinstance(loss, nn.BCEWithLogitsLoss):
        variance = (z.sigmoid() * (-z).sigmoid()).reshape(len(z), -1)
        return lambda U: variance * U
    p, counts = z.softmax(axis), counts.unsqueeze(axis)

    def product(U: torch.Tensor) -> torch.Tensor:
        V = U.reshape(z.shape)
        return (counts * p * (V - (p * V).sum(axis, keepdim=True))).reshape(U.shape)

    return product


def sampled_fisher(
    loss: Any, z: torch.Tensor, batch: Any, shift: bool | None, draws: int, seed: int, first: int
) -> Product:
    """Products with the mean of s s^T over `draws` labels for each target, drawn by (seed, sample) alone."""
    axis, counts = _targets(loss, z, batch, shift)
    scores = [_score(loss, z, axis, _uniform(counts, seed, first, draw)) for draw in range(draws)]
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
