"""What stands where: the inputs and targets of a batch, the logits of an output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from spectral.networks.batches import LABEL_KEYS
from spectral.networks.trees import Place, children

INPUT_KEYS = ("inputs_embeds", "pixel_values", "input_values", "input_features", "inputs", "x", "input")


def fields(batch: Any) -> dict[Any, Any] | None:
    """The entries of a mapping, a dataclass or an object by name; None for tensors, tuples and lists."""
    parts = None if isinstance(batch, tuple | list) else children(batch)
    return None if parts is None else dict(parts)


def label_place(batch: Any) -> int | None:
    """Where a named tuple has its labels; None where no name tells."""
    names = getattr(batch, "_fields", ()) if isinstance(batch, tuple) else ()
    return next((names.index(key) for key in LABEL_KEYS if key in names), None)


def unlabelled(batch: Any) -> list[int]:
    """The positions of a tuple at which no name says that labels stand."""
    return [i for i in range(len(batch)) if i != label_place(batch)]


def target_of(batch: Any, inputs: int = 1) -> Any:
    """The target of a batch: its labels by name, or the entry behind the model's inputs."""
    named = fields(batch)
    if named is not None:
        for key in LABEL_KEYS:
            if key in named:
                return named[key]
        raise ValueError(f"the loss finds no labels among the keys {', '.join(map(str, named))}; name them 'labels'.")
    if (place := label_place(batch)) is not None:
        return batch[place]
    place = 1 if not isinstance(batch, torch.Tensor) and len(batch) and fields(batch[0]) is not None else inputs
    if isinstance(batch, torch.Tensor) or len(batch) <= place:
        raise ValueError("the loss needs targets, but the batch has none; pass batches (x, y).")
    return batch[place]


def output_place(output: Any) -> Place:
    """Where the logits stand in a model's output: it is them, or it holds `logits`."""
    if isinstance(output, torch.Tensor):
        return ()
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        fields_of = getattr(output, "_fields", ())  # of a named tuple
        return (fields_of.index("logits"),) if "logits" in fields_of else ("logits",)
    raise TypeError(
        f"the model returns a {type(output).__name__} without logits; pass forward=lambda model, batch: ... that returns a "
        "tensor whose first axis is the sample, or of= or loss= as a callable(output, batch) of such an output."
    )


def output_tensor(output: Any) -> torch.Tensor:
    """The logits of a model's output: the tensor itself, or its `logits`."""
    if output_place(output) == ():
        return output
    return output["logits"] if isinstance(output, Mapping) else output.logits


def probabilities(output: Any) -> torch.Tensor:
    """Softmax over the classes: the last axis of (B, C), or of the logits of a mapping's model."""
    logits = output_tensor(output)
    if logits is output and logits.ndim != 2:
        raise ValueError(
            f"of='probs' of an output of shape {tuple(logits.shape)} is ambiguous; pass a callable that says which axis holds "
            "the classes, such as of=lambda output, batch: output.softmax(1)."
        )
    if logits.shape[-1] == 1:
        raise ValueError("of='probs' of a single logit is constant; pass of=lambda output, batch: output.sigmoid().")
    return logits.softmax(-1)


def input_place(batch: Any, shared: tuple[Any, ...] = ()) -> Place | None:
    """Where the inputs stand: an entry of a known name, the only floating one, or the first of a tuple; None if nowhere."""
    if isinstance(batch, torch.Tensor):
        return ()
    inside: Place = ()
    named = fields(batch)
    if named is None:
        first = next(iter(unlabelled(batch)), 0)
        inside, named = (first,), fields(batch[first])
        if named is None:
            return inside
    for key in INPUT_KEYS:
        if key in named:
            return (*inside, key)
    parts = [(key, value) for key, value in named.items() if key not in LABEL_KEYS and key not in shared]
    real = [key for key, value in parts if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return (*inside, real[0]) if len(real) == 1 and "input_ids" not in named else None
