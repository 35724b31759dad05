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
    """Terms and their counts, both (B, m): the mean of torch is sum(terms) / sum(counts)."""
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
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and not target.is_floating_point():
        counted = target != loss.ignore_index
        counts = counted.to(terms.dtype)
        if loss.weight is not None:
            counts = loss.weight.to(terms)[target.clamp(min=0) * counted] * counts
    elif isinstance(loss, nn.CrossEntropyLoss):
        counts = torch.ones_like(terms)  # torch divides by the samples for class probabilities, whatever the weights
    else:
        counts = torch.ones_like(terms)
    return terms.reshape(len(terms), -1), counts.reshape(len(counts), -1)


def per_sample_loss(loss: Any, output: Any, batch: Any) -> torch.Tensor:
    """The mean loss of each sample alone, (B,): what the loss gives on a batch of that one sample."""
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        terms, counts = unreduced(loss, output_tensor(output), target_of(batch))
        return _mean(terms.sum(1), counts.sum(1))
    if not callable(loss):
        raise TypeError(
            f"loss is a {type(loss).__name__}; pass a torch loss module or a callable (output, batch) -> (sum, count)."
        )
    size = output_tensor(output).shape[0]
    values = []
    for i in range(size):
        total, count = loss(_one(output, i, size), _one(batch, i, size))
        values.append(_mean(total.reshape(()), torch.as_tensor(count, device=total.device)))
    return torch.stack(values)


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
