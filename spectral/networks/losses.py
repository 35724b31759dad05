"""Losses as sums and counts: torch's loss modules under any reduction, and the loss that a model returns itself.

The mean over counted targets is torch's own mean on all data at once, so it never depends on how the data are batched:
cross entropy divides by the summed class weights of the targets that are not ignored, every other module by the entries.

Legend: B samples in a batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from spectral import arrays
from spectral.networks.places import output_tensor, target_of

ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.KLDivLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss,
               nn.HingeEmbeddingLoss)  # fmt: skip


MODULES = (
    (F.cross_entropy, nn.CrossEntropyLoss), (F.nll_loss, nn.NLLLoss), (F.mse_loss, nn.MSELoss), (F.l1_loss, nn.L1Loss),
    (F.smooth_l1_loss, nn.SmoothL1Loss), (F.huber_loss, nn.HuberLoss), (F.kl_div, nn.KLDivLoss),
    (F.binary_cross_entropy, nn.BCELoss), (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss),
    (F.poisson_nll_loss, nn.PoissonNLLLoss), (F.soft_margin_loss, nn.SoftMarginLoss),
)  # fmt: skip


class Misused(ValueError):
    """A loss is given what it would silently take for something else."""


def as_module(loss: Any) -> Any:
    """The module of a function of torch.nn.functional; what is given of anything else."""
    return next((module() for function, module in MODULES if loss is function), loss)


# torch's modules -----------------------------------------------------------------------------------------------------
def unreduced(loss: nn.Module, logits: torch.Tensor, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Terms and their counts, of one shape (B, ...): the mean of torch is sum(terms) / sum(counts)."""
    if isinstance(loss, ELEMENTWISE) and target.shape != logits.shape:
        raise Misused(
            f"{type(loss).__name__} would broadcast outputs {tuple(logits.shape)} against targets {tuple(target.shape)}; "
            "reshape one of them."
        )
    terms = reduced(loss, "none", logits, target)
    return terms, target_counts(loss, terms, target)


def reduced(loss: nn.Module, reduction: str, logits: torch.Tensor, target: Any) -> torch.Tensor:
    """What the module gives under this reduction, its weights in the dtype of the logits."""
    module = copy.copy(loss)
    module.reduction = reduction  # type: ignore[assignment]
    weights = {name: b.to(logits) for name, b in loss.named_buffers() if b.is_floating_point()}
    return torch.func.functional_call(module, weights, (logits, target))


def target_counts(loss: nn.Module, terms: torch.Tensor, target: Any) -> torch.Tensor:
    """What each term counts in torch's mean: 0 for an ignored target, its class weight for cross entropy, otherwise 1.

    For class probabilities torch divides by the samples, whatever the weights; so does KLDivLoss("batchmean").
    """
    if isinstance(loss, nn.KLDivLoss) and loss.reduction == "batchmean":
        return torch.full_like(terms, 1 / max(1, math.prod(terms.shape[1:])))
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or target.is_floating_point():
        return torch.ones_like(terms)
    counted = target != loss.ignore_index
    if loss.weight is None:
        return counted.to(terms.dtype)
    return loss.weight.to(terms)[target.clamp(min=0) * counted] * counted


def class_mass(loss: nn.CrossEntropyLoss, target: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """sum_c w_c y_c of each target, in the dtype of `like`: with y after smoothing, what stands before -log p in its term.

    The term -sum_c w_c y_c log p_c has the Hessian (sum_c w_c y_c) (diag(p) - p p^T) in the logits. Torch smooths y to
    (1 - s) y + s / C, and an ignored target has neither part.
    """
    smoothing = loss.label_smoothing
    weight = None if loss.weight is None else loss.weight.to(like)
    if target.is_floating_point():
        y = target.movedim(1, -1).to(like)
        counted, mass = torch.ones_like(y[..., 0]), y.sum(-1) if weight is None else y @ weight
    else:
        counted = (target != loss.ignore_index).to(like)
        mass = counted if weight is None else weight[target.clamp(min=0) * (target != loss.ignore_index)]
    mean = 1.0 if weight is None else weight.mean()
    return ((1 - smoothing) * mass + smoothing * mean) * counted


# The model's own loss ------------------------------------------------------------------------------------------------
def own_mean(output: Any) -> torch.Tensor:
    """The mean loss that the model itself returns."""
    mean = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if mean is None:
        raise ValueError("the model returned no loss of its own; put its labels into the batches, or pass loss=.")
    return mean


def own_shifts(output: Any, batch: Any) -> list[bool]:
    """Which of labels in place (False) and shifted by one place (True) make the model's own loss its logits' cross entropy.

    Both do where no target counts, or where all logits are equal.
    """
    logits, labels, mean = output_tensor(output).detach(), target_of(batch), float(own_mean(output).detach())
    relative = max(1e-4, 4 * arrays.machine_epsilon(logits.dtype))
    fits = []
    for shift in (False, True) if labels.shape == logits.shape[:-1] else ():
        count = float(label_counts(labels, shift).sum())
        each = float(own_cross_entropy(logits, labels, shift)) / count if count else math.nan
        if abs(each - mean) <= relative * abs(mean) + 1e-6 or (not count and (math.isnan(mean) or mean == 0)):
            fits.append(shift)
    return fits


def label_counts(labels: torch.Tensor, shift: bool | None) -> torch.Tensor:
    """1 where the output at this place has a counted label, 0 elsewhere, shaped like `labels` (Hugging Face's -100)."""
    if labels.is_floating_point():
        return torch.ones_like(labels)
    counted = labels != -100
    if shift:  # output t predicts label t + 1
        counted = torch.cat([counted[..., 1:], torch.zeros_like(counted[..., :1])], -1)
    return counted.to(torch.get_default_dtype())


def check_classes(shift: bool | None) -> None:
    """One sentence for a model whose own loss is known as a number alone."""
    if shift is None:
        raise ValueError(
            "the labels are real numbers, so that the model's own loss is no cross entropy of its logits; pass loss=, such as "
            "torch.nn.MSELoss() or a callable (output, batch) -> (sum, count)."
        )


def own_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, shift: bool | None) -> torch.Tensor:
    """The summed cross entropy that a Hugging Face model computes from its labels, as a function of its logits (..., C)."""
    check_classes(shift)
    if shift:
        logits, labels = logits[..., :-1, :], labels[..., 1:]
    return nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100, reduction="sum"
    )
