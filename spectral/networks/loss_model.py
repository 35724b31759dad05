"""A model, its data and a loss as functions of the parameters: sums over the counted targets of batches.

Legend: B samples in a batch, K real numbers that the loss reads of the output, of each sample or (one row) of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from spectral import longvectors
from spectral.networks import linear_head
from spectral.networks.batches import NotFinite
from spectral.networks.data_model import DataModel, FirstBatch, near
from spectral.networks.places import output_tensor
from spectral.networks.trees import Place, leaves, named, replaced
from spectral.probes import Signs


class LossModel(DataModel):
    """A model with a loss: its first sweep learns what the loss means and counts the targets."""

    needs_loss = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.places: list[Place] | None = None  # of what the loss reads in an output
        # the linear layer that gives the logits of a cross entropy, if one does on every batch
        self.head: str | None = None

    def look(self, index: int, batch: Any) -> tuple[int, int]:
        def chosen(output: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            if self.loss.is_cross_entropy and (z := output_tensor(output)).ndim < 2:
                raise ValueError(
                    f"the output has shape {tuple(z.shape)}, but a cross entropy is of (B, classes): a batch needs a first axis "
                    "of samples, as DataLoader(data, batch_size=...) makes it."
                )
            total, count = self._learn(index, output, batch)
            if self.places is None and not self._of_loss:
                self.places = self.loss.places(output, batch)
            if self.loss.is_cross_entropy and self.shards is None and self.wrt == "params":
                z = output_tensor(output)
                found = head(z.movedim(self.loss.class_axis(z), -1))
                self.head = found if index == 0 or found == self.head else None
            return total, count, self.select(output, batch)

        with linear_head.wide_calls(self.model) as head:
            total, count, z = self.guarded(index, batch, self.function(batch, chosen))
        if not torch.isfinite(total):
            raise NotFinite(index, batch, "the loss is", self.total(batch))
        self.counts.append(float(count))
        if index == 0:
            self.first = FirstBatch(batch, z.detach(), total.detach())
        return max(1, self.samples.size(batch)), z.shape[1]

    def total(self, batch: Any) -> Callable[..., torch.Tensor]:
        """The pure function parameters -> loss summed over the counted targets of this batch."""
        return self.function(batch, lambda output, there: self.loss(output, there)[0])

    def adds_up(self, parts: list[Any], whole: Any, allowed: float) -> bool:
        """Outputs, summed losses and counts: a loss that is divided within a batch does not add up."""
        if self.loss.couples:
            return False

        def told(output: Any, there: Any) -> tuple[torch.Tensor, ...]:
            return tuple(t.detach() for t in (self.select(output, there), *self.loss(output, there)))

        *some, (z, total, count) = (self.function(batch, told)(*self.primals(batch)) for batch in (*parts, whole))
        outputs, totals, counts = zip(*some, strict=True)
        scale, counted = sum(abs(float(t)) for t in totals), sum(map(float, counts))
        return (
            near(z, torch.cat(outputs), allowed)
            and abs(float(total) - sum(map(float, totals))) <= allowed * scale
            and abs(float(count) - counted) <= allowed * counted
        )

    # The head ---------------------------------------------------------------------------------------------------------
    def before_head(self, batch: Any, seen: list[Any]) -> Callable[..., torch.Tensor]:
        """The function parameters -> what the head reads of a batch, (B, k); (h, W, b) as the head saw them go into `seen`."""
        forward = self.function(batch)

        def hidden(*values: torch.Tensor) -> torch.Tensor:
            seen[:] = linear_head.inputs_of(self.model.get_submodule(self.head or ""), lambda: forward(*values))
            return seen[0].reshape(len(seen[0]), -1)

        return hidden

    def cut_at_head(self, batch: Any) -> tuple[Callable[..., torch.Tensor], list[torch.Tensor], list[Any]]:
        """(the outputs as a function of the parameters, whose head reads a leaf in the place of what is below it; and two lists).

        Once it was called they hold what is below; and the parameters, the leaf and the logits, for `head_pullback`.
        """
        head, below, seen = self.model.get_submodule(self.head or ""), list[torch.Tensor](), list[Any]()

        def begin_anew(module: Any, args: Any) -> Any:
            below[:] = args[:1]
            seen.append(args[0].detach().requires_grad_())
            return (seen[1], *args[1:])

        def selected(output: Any, there: Any) -> torch.Tensor:
            z = output_tensor(output)
            seen.append(z.movedim(self.loss.class_axis(z), -1))
            return self.select(output, there)

        def recorded(*values: torch.Tensor) -> torch.Tensor:
            seen[:] = [values]
            with head.register_forward_pre_hook(begin_anew):
                return self.function(batch, selected)(*values)

        return recorded, below, seen

    def head_pullback(self, primals: Sequence[torch.Tensor], h: torch.Tensor, z: torch.Tensor) -> tuple[float, float]:
        """(how far the derivatives of logits z are from those of W h + b, their norm), along signs; a backward pass to the cut.

        Pulled back to h and to all parameters: W^T u, u h^T, sum u, and 0 to others.
        """
        head = self.model.get_submodule(self.head or "")
        own, named = dict(self.model.named_parameters()), {**self.rest, **self.values}
        weight = next(named[name] for name, p in own.items() if p is head.weight)
        u = Signs(0, z.numel(), z.device)[:].to(z.dtype).view(-1, z.shape[-1])
        found: list[Any] = [None] * (1 + len(primals))
        if z.requires_grad:
            found = list(torch.autograd.grad(z, (h, *primals), u.view_as(z), allow_unused=True))
        rows = h.detach().reshape(len(u), -1)
        r = Signs(1, weight.shape[1], z.device)[:].to(z.dtype)  # the weight is as large as much of the model:
        of_weight, of_bias = self.of_head()
        due = {-1: u @ weight, of_weight: u.T @ (rows @ r), of_bias: u.sum(0)}  # its columns are added with signs
        gap = scale = 0.0
        for i, g in enumerate(found, -1):
            if g is not None or i in due:
                ours = due[i] if i in due else torch.zeros_like(g)
                g = torch.zeros_like(ours) if g is None else g.detach()
                g = (g @ r if i == of_weight and g.ndim > 1 else g).reshape(ours.shape)
                scale = math.hypot(scale, longvectors.norm(g.reshape(-1)))
                gap = math.hypot(gap, longvectors.norm((g - ours).reshape(-1)))
        return gap, max(gap, scale)

    def of_head(self) -> list[int | None]:
        """Where the head's weight and bias stand among the parameters that are differentiated; None where they do not."""
        layer = self.model.get_submodule(self.head or "")
        own = dict(self.model.named_parameters())
        ids = {id(own[name]): i for i, name in enumerate(self.names)}
        return [ids.get(id(layer.weight)), ids.get(id(layer.bias))]

    # What the loss reads ----------------------------------------------------------------------------------------------
    def heads(self, output: Any) -> list[torch.Tensor]:
        """The tensors of an output that the loss reads."""
        there = dict(leaves(output))
        for place in self.places or ():
            if not isinstance(there.get(place), torch.Tensor):
                raise ValueError(
                    f"the loss reads {named(place)} of the first batch's output, which another batch's lacks."
                )
        return [there[place] for place in self.places or ()]

    def with_heads(self, output: Any, heads: Sequence[torch.Tensor]) -> Any:
        """The output with other tensors where the loss reads."""
        return replaced(output, dict(zip(self.places or (), heads, strict=True)))

    def select(self, output: Any, batch: Any) -> torch.Tensor:
        """What the loss reads, (B, K) if all of it has one row for each sample, else (1, K); or what `of` names."""
        if self._of_loss:
            return super().select(output, batch)
        return joined(self.heads(output), self.samples.size(batch))


def joined(heads: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """Heads as one (B, K), or (1, K) if some head is not one row for each of the B samples."""
    rows = size if all(h.ndim and len(h) == size for h in heads) else 1
    flat = [h.reshape(rows, h.numel() // max(rows, 1)) for h in heads]
    return flat[0] if len(flat) == 1 else torch.cat(flat, 1)


def apart(z: torch.Tensor, heads: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What `joined` has put together, in the shapes of the heads."""
    widths = [h.numel() // max(len(z), 1) for h in heads]
    return [piece.reshape(h.shape) for piece, h in zip(z.split(widths, 1), heads, strict=True)]
