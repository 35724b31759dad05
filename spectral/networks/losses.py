"""Losses as sums and counts: torch's loss modules under any reduction, and callables `(output, batch) -> (sum, count)`.

The mean over counted targets is torch's own mean on all data at once, so it never depends on how the data are batched:
cross entropy divides by the summed class weights of the targets that are not ignored, every other module by the entries.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from spectral import arrays

LABEL_KEYS = ("labels", "label", "y", "targets")


def target_of(batch: Any) -> Any:
    """The target of a batch: its second entry, or its labels."""
    if isinstance(batch, Mapping):
        for key in LABEL_KEYS:
            if key in batch:
                return batch[key]
        raise ValueError(f"the loss finds no labels among the keys {', '.join(map(str, batch))}; name them 'labels'.")
    if isinstance(batch, torch.Tensor) or len(batch) < 2:
        raise ValueError("the loss needs targets, but the batch has none; pass batches (x, y).")
    return batch[1]


def output_tensor(output: Any) -> torch.Tensor:
    """The logits of a model's output: the tensor itself, or its `logits`."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(logits, torch.Tensor):
        return logits
    raise TypeError(
        f"the model returns a {type(output).__name__} without logits; pass forward=lambda model, batch: ... that returns a "
        "tensor whose first axis is the sample."
    )


def unreduced(loss: nn.Module, logits: torch.Tensor, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Terms and their counts, of one shape (B, ...): the mean of torch is sum(terms) / sum(counts)."""
    module = copy.copy(loss)
    module.reduction = "none"  # type: ignore[assignment]
    elementwise = nn.MSELoss | nn.L1Loss | nn.SmoothL1Loss | nn.HuberLoss
    if isinstance(loss, elementwise) and target.shape != logits.shape:
        raise ValueError(
            f"{type(loss).__name__} would broadcast outputs {tuple(logits.shape)} against targets {tuple(target.shape)}; "
            "reshape one of them."
        )
    weights = {name: b.to(logits) for name, b in loss.named_buffers() if b.is_floating_point()}
    terms = torch.func.functional_call(module, weights, (logits, target))
    return terms, target_counts(loss, terms, target)


def target_counts(loss: nn.Module, terms: torch.Tensor, target: Any) -> torch.Tensor:
    """What each term counts in torch's mean: 0 for an ignored target, its class weight for cross entropy, otherwise 1.

    For class probabilities torch divides by the samples, whatever the weights.
    """
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or target.is_floating_point():
        return torch.ones_like(terms)
    counted = target != loss.ignore_index
    if loss.weight is None:
        return counted.to(terms.dtype)
    return loss.weight.to(terms)[target.clamp(min=0) * counted] * counted


def loss_sum(loss: Any, output: Any, batch: Any, shift: bool | None = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum over the counted targets, their count) of one batch, scalars: added over batches they make torch's mean of all.

    `loss` None is the model's own: the cross entropy of its logits, shifted or not (`own_shifts`), or as it returns it where
    shift is None.
    """
    if loss is None and shift is None:
        labels = target_of(batch)
        return own_mean(output) * labels.numel(), torch.tensor(float(labels.numel()), device=labels.device)
    if loss is None:
        labels = target_of(batch)
        return own_cross_entropy(output_tensor(output), labels, shift), label_counts(labels, shift).sum()
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        terms, counts = unreduced(loss, output_tensor(output), target_of(batch))
        return terms.sum(), counts.sum()
    if not callable(loss):
        raise TypeError(
            f"loss is a {type(loss).__name__}; pass a torch loss module, a callable (output, batch) -> (sum, count), or None for "
            "the model's own loss."
        )
    total, count = loss(output, batch)
    return total.reshape(()), torch.as_tensor(count, device=total.device).detach().reshape(())


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
    logits, labels, mean = output_tensor(output).detach(), target_of(batch), float(own_mean(output))
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


def per_sample_loss(loss: Any, output: Any, batch: Any) -> torch.Tensor:
    """The mean loss of each sample alone, (B,): what the loss gives on a batch of that one sample."""
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        terms, counts = unreduced(loss, output_tensor(output), target_of(batch))
        return _mean(terms.reshape(len(terms), -1).sum(1), counts.reshape(len(terms), -1).sum(1))
    if not callable(loss):
        raise TypeError(
            f"loss is a {type(loss).__name__}; pass a torch loss module or a callable (output, batch) -> (sum, count)."
        )
    return torch.stack([_mean(total, count) for total, count in _each_sample(loss, output, batch)])


def per_sample_sums(loss: Any, output: Any, batch: Any, shift: bool | None = False) -> torch.Tensor:
    """The summed loss of each sample's counted targets, (B,): their sum is that of the batch."""
    if loss is None:
        logits, labels = output_tensor(output), target_of(batch)
        return torch.stack([own_cross_entropy(z, y, shift) for z, y in zip(logits, labels, strict=True)])
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        terms, _ = unreduced(loss, output_tensor(output), target_of(batch))
        return terms.reshape(len(terms), -1).sum(1)
    return torch.stack([total for total, _ in _each_sample(loss, output, batch)])


def _each_sample(loss: Any, output: Any, batch: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A callable's (sum, count) on each sample alone."""
    size = output_tensor(output).shape[0]
    pairs = (loss(_one(output, i, size), _one(batch, i, size)) for i in range(size))
    return [(total.reshape(()), torch.as_tensor(count, device=total.device)) for total, count in pairs]


def _mean(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """total / count, and 0 without a gradient where nothing is counted."""
    return torch.where(count > 0, total / torch.where(count > 0, count, torch.ones_like(count)), 0.0)


def _one(value: Any, i: int, size: int) -> Any:
    """Sample i of an output or a batch: of every tensor in it whose first axis is the samples."""

    def row(t: torch.Tensor) -> torch.Tensor:
        return t[i : i + 1] if t.ndim > 0 and t.shape[0] == size else t

    if isinstance(value, torch.Tensor | Mapping | tuple | list) or not hasattr(value, "__dict__"):
        return tree_map_only(torch.Tensor, row, value)
    single = copy.copy(value)  # an object with tensors as attributes, such as one with .logits
    vars(single).update({name: tree_map_only(torch.Tensor, row, part) for name, part in vars(value).items()})
    return single
