"""A model, its data and a loss as functions of the parameters: sums over the counted targets of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from spectral.networks import losses
from spectral.networks.batches import first_tensor, is_finite
from spectral.networks.data_model import DataModel
from spectral.networks.diagnose import checks
from spectral.networks.losses import output_tensor

Forward = Callable[[nn.Module, Any], Any] | None


class LossModel(DataModel):
    """A network with a loss: its first sweep counts the targets."""

    def __init__(self, model: nn.Module, data: Any, loss: Any, forward: Forward, **options: Any) -> None:
        if loss is None and forward is None:
            forward = _with_labels
        super().__init__(model, data, loss=loss, forward=forward, **options)
        names = f"{getattr(model, 'loss_type', '')} {type(model).__name__}"
        self.shift: bool | None = "CausalLM" in names or "LMHead" in names  # until a batch's own loss tells
        self.counts: list[float] = []
        self.shapes: list[tuple[int, ...]] = []

    def _checked_outputs(self, index: int, batch: Any) -> torch.Tensor:
        output = self.raw(self.values, batch)
        if self.loss is None and is_finite(batch):
            self._recognise(index, output, batch)
        total, count = losses.loss_sum(self.loss, output, batch, self.shift)
        self._check_loss(index, output, batch, total)
        self.counts.append(float(count))
        first = first_tensor(batch)
        return total.expand(1 if first is None else first.shape[0], 1)

    def _check_loss(self, index: int, output: Any, batch: Any, total: torch.Tensor) -> None:
        """One clear sentence for a loss that is not finite, is random, or in which samples meet."""

        def loss(*values: torch.Tensor) -> torch.Tensor:
            return self.total(dict(zip(self.values, values, strict=True)), batch)

        if not torch.isfinite(total):
            if not is_finite(batch):
                raise ValueError(f"the data hold NaN or infinity in batch {index}; remove those samples.")
            culprit = checks.first_nonfinite_module(self, batch, loss)
            first = "" if culprit is None else f", first in {culprit}"
            raise ValueError(
                f"the loss is NaN or infinity in batch {index}{first}; remove those samples or mend the model."
            )
        if index == 0 and self.preflight:
            culprit = checks.active_randomness(self, batch, loss, total)
            if culprit is not None:
                raise ValueError(f"two losses of one batch differ: {culprit} is random in eval mode; remove the noise.")
            with torch.no_grad():
                z = self.select(output, batch)
            self.untested = checks.check_coupling(self, batch, z)

    def _recognise(self, index: int, output: Any, batch: Any) -> None:
        """Hold the model's own loss against the cross entropy of its logits, with labels in place and shifted.

        Its name does not tell; a mean of anything else (an auxiliary loss) would depend on how the data are batched.
        """
        if losses.target_of(batch).is_floating_point():
            self.shift = None
            return
        fits = losses.own_shifts(output, batch)
        if self.shift in fits:
            return
        mean = float(losses.own_mean(output))
        if not fits or any(self.counts):
            raise ValueError(
                f"the model's own loss ({mean:.6g}) of batch {index} is not the mean cross entropy of its logits over labels "
                "that are not -100, in place or shifted by one (an auxiliary loss, say); pass loss= as a callable "
                "(output, batch) -> (sum, count)."
            )
        self.shift = fits[0]

    def total(self, values: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
        """The loss summed over the counted targets of a batch, as a function of the parameters."""
        return losses.loss_sum(self.loss, self.raw(values, batch), batch, self.shift)[0]

    def adds_up(self, parts: list[Any], whole: Any, allowed: float) -> bool:
        """Logits, summed losses and counts: a loss that is divided within a batch does not add up."""
        if not super().adds_up(parts, whole, allowed):
            return False
        sums = [losses.loss_sum(self.loss, self.raw(self.values, b), b, self.shift) for b in (*parts, whole)]
        *some, (total, count) = ((float(total), float(count)) for total, count in sums)
        expected, counted = (sum(numbers) for numbers in zip(*some, strict=True))
        scale = sum(abs(total) for total, _ in some)
        return abs(total - expected) <= allowed * scale and abs(count - counted) <= allowed * counted

    def select(self, output: Any, batch: Any) -> torch.Tensor:
        z = self.of(output, batch) if callable(self.of) else output_tensor(output)
        return z.reshape(z.shape[0], -1)


def _with_labels(model: nn.Module, batch: Any) -> Any:
    """The model's forward pass with its labels, which makes it return its own loss."""
    if not isinstance(batch, dict):
        raise ValueError(
            "loss=None means the model's own loss, which needs mappings with labels as batches; pass loss=."
        )
    return model(**batch)
