"""Losses as sums and counts: torch's loss modules under any reduction, and callables `(output, batch) -> (sum, count)`.

The mean over counted targets is torch's own mean on all data at once, so it never depends on how the data are batched:
cross entropy divides by the summed class weights of the targets that are not ignored, every other module by the entries.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only


def target_of(batch: Any) -> Any:
    """The target of a batch: its second entry, or its labels."""
    if isinstance(batch, Mapping):
        for key in ("labels", "label", "y", "targets"):
            if key in batch:
                return batch[key]
        raise ValueError(f"the loss finds no labels among the keys {', '.join(map(str, batch))}; name them 'labels'.")
    if isinstance(batch, torch.Tensor) or len(batch) < 2:
        raise ValueError("the loss needs targets, but the batch has none; pass batches (x, y).")
    return batch[1]


def unreduced(loss: nn.Module, logits: torch.Tensor, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Terms and their counts, both (B, m): the mean of torch is sum(terms) / sum(counts)."""
    module = copy.copy(loss)
    module.reduction = "none"  # type: ignore[assignment]
    terms = module(logits, target)
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and not target.is_floating_point():
        counted = target != loss.ignore_index
        counts = counted.to(terms.dtype)
        if loss.weight is not None:
            counts = loss.weight.to(terms.dtype)[target.clamp(min=0) * counted] * counts
    elif isinstance(loss, nn.CrossEntropyLoss):
        counts = torch.ones_like(terms)  # torch divides by the samples for class probabilities, whatever the weights
    else:
        counts = torch.ones_like(terms)
    return terms.reshape(len(terms), -1), counts.reshape(len(counts), -1)


def per_sample_loss(loss: Any, output: Any, batch: Any) -> torch.Tensor:
    """The mean loss of each sample alone, (B,): what the loss gives on a batch of that one sample."""
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        logits = output if isinstance(output, torch.Tensor) else output.logits
        terms, counts = unreduced(loss, logits, target_of(batch))
        total = counts.sum(1)
        return terms.sum(1) / torch.where(
            total > 0, total, torch.ones_like(total)
        )  # nothing counted: loss 0, no gradient
    if not callable(loss):
        raise TypeError(
            f"loss is a {type(loss).__name__}; pass a torch loss module or a callable (output, batch) -> (sum, count)."
        )
    size = (output if isinstance(output, torch.Tensor) else output.logits).shape[0]
    values = []
    for i in range(size):

        def one(t: torch.Tensor, i: int = i) -> torch.Tensor:
            return t[i : i + 1] if t.ndim > 0 and t.shape[0] == size else t

        total, count = loss(tree_map_only(torch.Tensor, one, output), tree_map_only(torch.Tensor, one, batch))
        values.append(total.reshape(()) / count)
    return torch.stack(values)
