"""What the user gave as a loss: torch's modules, callables, the model's own; what it means is learnt from the data.

Two parts of a batch must add up to the whole, and a module's own mean must be the sum of its terms over their count. Where parts
do not add up, the samples of a batch meet in the loss.

Legend: B samples in a batch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from spectral import arrays, distributed
from spectral.checksum import checksum_of
from spectral.failures import REFUSALS, first_line
from spectral.networks import losses
from spectral.networks.batches import LABEL_KEYS, TARGETS, Samples, is_finite
from spectral.networks.places import fields, label_place, output_place, output_tensor, target_of
from spectral.networks.trees import Place, leaves, map_tensors, repacked, replaced, tensors

SHARED = "name entries that belong to none by shared="
RETURNED = {"mean": "mean over the samples", "each": "one number for each entry", "whole": "one number for all data"}


class Loss:
    """What the user gave as a loss, as (sum, count) of a batch and of each of its samples.

    `form`, learnt from the data: "sum" (a callable's (sum, count), a module's terms, the model's own cross entropy), "mean" over
    the samples, "each" (one number for each entry), "whole" (one number of all data, which are one batch).
    """

    def __init__(self, given: Any, samples: Samples, inputs: int = 1) -> None:
        _check_loss(given)
        self.given, self.samples, self.inputs = losses.as_module(given), samples, inputs
        self.read = 0  # entries of a tuple up to the last one that a forward= of the user reads
        self.shift: bool | None = False  # of the model's own loss: labels in place, shifted, or real numbers (None)
        self.form = ""
        # whether a callable takes (output, target), as torch's own functions do, not (output, batch)
        self.of_target = False
        self.couples = ""  # what shows that samples meet in the loss
        self.single: tuple[Any, ...] = ()  # (output, batch) of the first sample, where a number is returned
        self.own: list[set[Place]] = []  # where its output and it hold an entry for each sample
        # whether parts of a batch have been held against the whole; of torch's own modules that is known
        self.tested = self.is_native
        self.mark = self._marked()  # of what a module counts with
        self.counted = False  # whether a batch has counted targets, so that `shift` is certain
        # the model's output of a batch, and whether the loss differentiates it in what the batch holds (physics-informed)
        self.output: Callable[[Any], Any] | None = None
        self.differentiates = False
        self.fixed = False  # whether a module's output is given, so that the model is not to be run once more
        self.reads_model = False  # whether it reads what forward leaves behind: an attribute, what a hook has kept

    @property
    def is_module(self) -> bool:
        """One of torch's kind, (input, target) under a reduction."""
        return isinstance(self.given, nn.Module) and hasattr(self.given, "reduction")

    @property
    def is_native(self) -> bool:
        """A loss module of torch itself, of which no sample reads another."""
        return self.is_module and type(self.given).__module__.startswith("torch.nn.modules")

    @property
    def is_cross_entropy(self) -> bool:
        """The cross entropy of the logits, torch's own or the model's: a function that is known. A subclass may be anything."""
        return self.given is None or type(self.given) is nn.CrossEntropyLoss

    def guess(self, model: nn.Module) -> None:
        """Whether the model's own loss shifts its labels, by the model's name, until a batch tells."""
        names = f"{getattr(model, 'loss_type', '')} {type(model).__name__}"
        self.shift = "CausalLM" in names or "LMHead" in names

    def target(self, batch: Any) -> Any:
        if isinstance(batch, tuple | list) and 1 < len(batch) <= self.read and label_place(batch) is None:
            read = f"all {len(batch)} entries" if len(batch) > 2 else "the last entry"
            raise losses.Misused(
                f"forward= reads {read} of a batch, so that none of them is known as the target; pass loss= as a callable "
                "(output, batch) -> (sum, count), or let forward= read its own by batch[0]."
            )
        return target_of(batch, self.inputs)

    def check_counted(self) -> None:
        """One sentence where a module's own tensors, such as class weights, are not those with which targets were counted."""
        if self.mark != self._marked():
            raise ValueError(
                f"{_called(self.given)} has other weights or ignored targets than when its targets were counted; build the "
                "operator anew."
            )

    def _marked(self) -> str:
        ignored = getattr(self.given, "ignore_index", None)
        return f"{checksum_of(*self.given.buffers())} {ignored}" if self.is_module else ""

    def __call__(self, output: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum over the counted targets, their count) of one batch, scalars: added over batches they make the mean of all."""
        if self.given is None:
            labels = self.target(batch)
            if self.shift is None:
                count = torch.tensor(float(labels.numel()), device=labels.device)
                return losses.own_mean(output) * labels.numel(), count
            total = losses.own_cross_entropy(output_tensor(output), labels, self.shift)
            return total, losses.label_counts(labels, self.shift).sum()
        if self.is_module:
            terms, counts = self._terms(output, batch)
            if self.form == "mean":
                size = self.samples.size(batch)
                return terms.sum() * size, terms.new_tensor(float(size))
            return terms.sum(), counts.sum()
        value = self._value(output, batch)
        if isinstance(value, torch.Tensor):
            size = self.samples.size(batch)
            counted = {"mean": size, "each": value.numel()}.get(self.form, 1)
            total = value.sum() * size if self.form == "mean" and value.numel() == 1 else value.sum()
            return total, torch.tensor(float(counted), device=value.device)
        total, count = value
        return total.sum(), torch.as_tensor(count, device=total.device).detach().sum()

    def _value(self, output: Any, batch: Any) -> Any:
        """What a callable returns."""
        if self.of_target:
            return self.given(output_tensor(output), self.target(batch))
        return self.given(output, repacked(batch))

    def _terms(self, output: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return losses.unreduced(self.given, output_tensor(output), self.target(batch))

    def each(self, output: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(sums, counts) of the samples, (B,) each: what the loss gives on batches of a single sample."""
        if self.given is None:
            losses.check_classes(self.shift)
            logits, labels = output_tensor(output), self.target(batch)
            both = zip(logits, labels, strict=True)
            sums = torch.stack([losses.own_cross_entropy(z, y, self.shift) for z, y in both])
            return sums, losses.label_counts(labels, self.shift).reshape(len(labels), -1).sum(1).to(sums)
        if self.is_module:
            terms, counts = (t.reshape(len(t), -1).sum(1) for t in self._terms(output, batch))
            return terms, counts
        size = self.samples.size(batch)
        pairs = [self(*self._part(output, batch, i, i + 1)) for i in range(size)]
        return torch.stack([total for total, _ in pairs]), torch.stack([count for _, count in pairs])

    def _part(self, output: Any, batch: Any, start: int, stop: int) -> tuple[Any, Any]:
        """(output, batch) of some samples: see `_made_anew`."""
        size = self.samples.size(batch)
        part = self.samples.rows(batch, size, start, stop)
        if self._made_anew(output, size):
            return self.output(part), part  # type: ignore[misc]
        return Samples().rows(output, size, start, stop), part

    def _made_anew(self, output: Any, size: int) -> bool:
        """Whether the model is run on some samples: the loss reads more than its output, or none of it has a row for each."""
        has_rows = any(self.samples.belongs((), t, size) for t in tensors(output))
        return self.output is not None and (self.differentiates or self.reads_model or not has_rows)

    def sums(self, output: Any, batch: Any) -> torch.Tensor:
        """The summed loss of each sample's counted targets, (B,): their sum is that of the batch."""
        return self.each(output, batch)[0]

    def means(self, output: Any, batch: Any) -> torch.Tensor:
        """The mean loss of each sample alone, (B,), and 0 without a gradient where nothing is counted."""
        sums, counts = self.each(output, batch)
        return torch.where(counts > 0, sums / torch.where(counts > 0, counts, torch.ones_like(counts)), 0.0)

    # Of a cross entropy -----------------------------------------------------------------------------------------------
    def class_axis(self, z: torch.Tensor) -> int:
        """The axis of the classes in logits z."""
        return z.ndim - 1 if self.given is None else 1

    def class_mass(self, batch: Any, like: torch.Tensor) -> torch.Tensor:
        """What stands before diag(p) - p p^T in the Hessian of each target's term."""
        if self.given is None:
            return self.class_counts(batch, like)
        return losses.class_mass(self.given, self.target(batch), like)

    def class_counts(self, batch: Any, like: torch.Tensor) -> torch.Tensor:
        """What each target counts: the factor of its Fisher matrix, whose labels are the model's own."""
        target = self.target(batch)
        if self.given is None:
            losses.check_classes(self.shift)
            return losses.label_counts(target, self.shift).to(like)
        shape = target.shape[:1] + target.shape[2:] if target.is_floating_point() else target.shape
        return losses.target_counts(self.given, like.new_ones(shape), target)

    def describe(self) -> dict[str, Any]:
        """What was learnt of it, as plain JSON."""
        return {
            **({"loss_returns": RETURNED[self.form]} if self.form in RETURNED else {}),
            **({"loss_takes": "(output, target)"} if self.of_target else {}),
            **({"loss_couples_samples": self.couples} if self.couples else {}),
        }

    # Learning what it means -------------------------------------------------------------------------------------------
    def learn(self, index: int, output: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum, count) of a batch of the first sweep; ValueError or TypeError with one sentence for what has no meaning."""
        if self.given is None:
            if is_finite(batch):
                self._recognise(index, output, batch)
            total, count = self(output, batch)
            self.counted = self.counted or bool(count)
            return total, count
        if self.is_native and not isinstance(y := self.target(batch), torch.Tensor):
            raise losses.Misused(
                f"{_called(self.given)} reads targets from one tensor, and in batch {index} they are of type {type(y).__name__}; "
                "make them a tensor."
            )
        if self.is_cross_entropy and y.is_floating_point() and bool((y < 0).any()):
            raise losses.Misused(
                f"CrossEntropyLoss takes real targets for probabilities of classes, and batch {index} has some below 0; use "
                "another loss, such as MSELoss, or whole numbers as labels."
            )
        if not (self.form and self.tested):
            try:
                self._recognise_form(output, batch)
            except REFUSALS as problem:
                if isinstance(problem, losses.Misused):
                    raise
                raise _misused(self, batch, problem) from problem
            if self.given is None:
                return self.learn(index, output, batch)
            if self.is_module and index == 0 and not self.is_native:
                self._check_own_mean(output, batch)
        self._check_halves(index, output, batch)
        if self.form == "mean":
            self._check_mean(index, output, batch)
            self._leave(batch)
        several = index > 0 or distributed.world_size() > 1
        if several and self.couples and (self.form == "whole" or self.is_module):
            raise ValueError(
                f"{_called(self.given)} couples the samples of a batch ({self.couples}), so that several batches do not make its "
                "value on all data: pass all data as one batch, or a callable (output, batch) -> (sum, count) to take batches as "
                "cut."
            )
        total, count = self(output, batch)
        if not self.is_module and not 0 <= float(count) < math.inf:
            raise losses.Misused(
                f"{_called(self.given)} counts {float(count):g} targets in batch {index}; a callable (output, batch) must return "
                "(sum, count), the count a number from 0 on."
            )
        return total, count

    def _recognise_form(self, output: Any, batch: Any) -> None:
        """What the loss returns: terms, a number, one for each entry, or (sum, count)."""
        if self.is_module:
            terms, _ = self._terms(output, batch)
            self.form = "sum" if terms.ndim else "mean"  # a number under reduction="none": halves will tell
            return
        try:
            value = self._value(output, batch)
        except REFUSALS:
            self.of_target = _names_target(self.given)
            if not self.of_target:
                raise
            value = self._value(output, batch)
        if isinstance(value, torch.Tensor):
            if self._is_models_own(value, output, batch):
                self.given = None
                return
            self.form = "mean" if value.numel() == 1 else "each"
            first = self.samples.size(batch)
            if self.form == "each" and len(value) != first:
                raise ValueError(f"it returned a tensor of shape {tuple(value.shape)} for {first} samples")
            return
        pair = isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], torch.Tensor)
        if not pair or not isinstance(value[1], torch.Tensor | int | float | np.number) or isinstance(value[1], bool):
            raise TypeError(f"it returned {_kind(value)}")
        if torch.as_tensor(value[1]).numel() != 1 and torch.as_tensor(value[1]).shape != value[0].shape:
            raise ValueError(f"it returned a count of shape {tuple(torch.as_tensor(value[1]).shape)}")
        self.form = "sum"

    def _check_own_mean(self, output: Any, batch: Any) -> None:
        """A module's own mean on this batch is the sum of its terms over their count."""
        terms, counts = self._terms(output, batch)
        reduction = self.given.reduction if self.given.reduction not in ("sum", "none") else "mean"
        value = losses.reduced(self.given, reduction, output_tensor(output), self.target(batch))
        own, ours = float(value.detach().sum()), float(terms.detach().sum() / counts.sum())
        if math.isfinite(own) and math.isfinite(ours) and abs(own - ours) > _allowed(terms) * max(abs(own), abs(ours)):
            raise ValueError(
                f"{_called(self.given)} gives {own:.6g} for the first batch, but the mean of its terms is {ours:.6g}, so that it "
                "counts its targets in a way of its own; pass a callable (output, batch) -> (sum, count)."
            )

    def _is_models_own(self, value: torch.Tensor, output: Any, batch: Any) -> bool:
        """Whether a callable hands on the loss that the model has returned, the cross entropy of its logits: what None means."""
        with suppress(*REFUSALS):
            return value is losses.own_mean(output) and bool(losses.own_shifts(output, {"labels": self.target(batch)}))
        return False

    def _check_halves(self, index: int, output: Any, batch: Any) -> None:
        """Whether two parts of the batch add up to the whole: on the first batch of two samples, or on all for a mean."""
        size = self.samples.size(batch)
        if self.is_native or (self.tested and self.form != "mean"):
            return
        why = self._other_rows(output, batch) if self.form == "mean" and not self.is_module else ""
        if size < 2 and not why:
            return
        first, self.tested = not self.tested, True
        why = why or self._apart(index, output, batch)
        if why and not self.differentiates and any(t.requires_grad for t in tensors(output)):
            self.differentiates = True
            self.differentiates = not self._apart(index, output, batch)
            why = "" if self.differentiates else why
        if first and not self._made_anew(output, size) and self._reads_model(output, batch):
            self.reads_model = True
            why = self._apart(index, output, batch)
        self.couples = why or self.couples
        if why and self.form == "sum" and not self.is_module and self._is_mean(output, batch):
            raise ValueError(
                f"{_called(self.given)} returns (mean, count): its first number is the same where all samples are there twice; "
                "return (sum, count), such as (count * mean, count)."
            )
        if why and self.form == "mean":
            self.form = "whole"

    def _is_mean(self, output: Any, batch: Any) -> bool:
        """Whether the first number of (sum, count) is the same where half of the samples are there once and twice."""
        size = self.samples.size(batch)
        half, double = -(-size // 2), lambda t: torch.cat([t, t])
        anew = self.output is not None and not self.fixed  # of a number in the output its rows say nothing
        if not anew and not all(Samples().belongs((), t, size) for t in tensors(output)):
            return False
        try:
            one, z = self.samples.rows(batch, size, 0, half), Samples().rows(output, size, 0, half)
            two, zz = self.samples.some(one, half, double), Samples().some(z, half, double)
            if anew:
                z, zz = self.output(one), self.output(two)  # type: ignore[misc]
            (first, count), (second, counted) = self._numbers(z, one), self._numbers(zz, two)
        except REFUSALS:
            return False
        finally:
            self._leave(batch)
        allowed = min(_allowed(*tensors(output)), 0.1)  # a sum is twice itself, which 16 bits do not hide
        return first != 0 < counted - count and abs(second - first) <= allowed * abs(first)

    def _leave(self, batch: Any) -> None:
        """Run the model on the whole batch again, after parts of it, where the loss reads what that leaves behind."""
        if self.reads_model and self.output is not None:
            self.output(batch)

    def _other_rows(self, output: Any, batch: Any) -> str:
        """Why the rows of the first entry may be no samples: the output has others, or none and other entries have."""
        size = self.samples.size(batch)
        rows = {len(t) for t in tensors(output) if t.ndim}
        if not rows:
            own = [t for at, t in leaves(batch) if isinstance(t, torch.Tensor) and not self.samples.is_shared(at)]
            rows = {len(t) for t in own if t.ndim}
            several = " and ".join(map(str, sorted(rows)))
            return "" if rows <= {size} else f"a batch has entries of {several} samples; {SHARED}"
        entries = {len(t) for t in tensors(batch) if t.ndim}
        for_each = size > 0 and not rows & entries and any(count % size == 0 for count in rows)  # rows for each sample
        if size in rows or for_each:
            return ""
        return f"the first entry of a batch counts {size}, its output {max(rows)}; {SHARED}"

    def _reads_model(self, output: Any, batch: Any) -> bool:
        """Whether the loss of some samples is another when the model is run on them, though their output is not."""
        if self.output is None or self.fixed or self.is_module or self.differentiates:
            return False
        cut, there = self._part(output, batch, 0, -(-self.samples.size(batch) // 3))
        allowed, values = _allowed(*tensors(output)), []
        try:
            for made in (lambda: cut, lambda: self.output(there)):  # type: ignore[misc]
                try:
                    values.append((anew := made(), self._numbers(anew, there)[0]))
                except REFUSALS:
                    values.append((cut, math.nan))
        finally:
            with suppress(*REFUSALS):  # forward may have taken from the batch what it needs
                self.output(batch)  # which leaves behind what it did
        (_, one), (anew, two) = values
        pairs = zip(tensors(cut), tensors(anew), strict=False)
        same = all(s.shape == t.shape and torch.allclose(s, t, rtol=allowed, atol=allowed) for s, t in pairs)
        return same and math.isfinite(two) and not abs(one - two) <= allowed * max(abs(one), abs(two))

    def _check_mean(self, index: int, output: Any, batch: Any) -> None:
        """Whether a number is the mean over the samples of several batches too: of one of the first batch and one of this."""
        single = self._part(output, batch, 0, 1)
        size, both = self.samples.size(batch), ((output, Samples()), (batch, self.samples))
        own = [{at for at, leaf in leaves(tree) if samples.belongs(at, leaf, size)} for tree, samples in both]
        if index == 0:
            self.single = map_tensors(lambda t: t.detach().clone(), single[0]), map_tensors(torch.clone, single[1])
            self.own = own
            return
        of_output, of_batch = (one & two for one, two in zip(self.own, own, strict=True))
        others = {at for at, leaf in leaves(output) if isinstance(leaf, torch.Tensor)} - of_output
        outputs = _with_both(self.single[0], single[0], of_output, others)
        parts, numbers = _with_both(self.single[1], single[1], of_batch), []
        if not self._made_anew(output, size):
            numbers = self._values(outputs, parts)
        if not numbers and self.output is not None:
            numbers = self._values(map(self.output, parts), parts)
        if not numbers and all(_shapes(*pair) for pair in zip(self.single, single, strict=True)):
            return  # nothing of it but what parts of a batch have told
        if not numbers:
            raise ValueError(
                f"{_called(self.given)} returns a number, and batch {index} has samples of another shape than the first batch, "
                "so that nothing tells whether it is a mean over the samples; return (sum, count)."
            )
        alone, joint = numbers[0] + numbers[1], numbers[2]
        allowed = _allowed(*tensors(output)) * sum(map(abs, numbers))
        if min(abs(alone - 2 * joint), abs(alone - joint)) > allowed:  # of single samples, a sum is right
            raise ValueError(
                f"{_called(self.given)} returns a number that is no mean over the samples ({numbers[0]:.6g} for one of the first "
                f"batch, {numbers[1]:.6g} for one of batch {index}, {joint:.6g} for both); return (sum, count)."
            )

    def _values(self, outputs: Iterable[Any], batches: list[Any]) -> list[float]:
        """The numbers that a callable returns; none where it fails."""
        try:
            return [float(self._value(z, b).detach().sum()) for z, b in zip(outputs, batches, strict=True)]
        except REFUSALS:
            return []

    def _apart(self, index: int, output: Any, batch: Any) -> str:
        """Why two parts of a batch do not add up to the whole; "" where they do."""
        size = self.samples.size(batch)
        cut = -(-size // 3)  # of different sizes: a mean over something else than samples shows
        whole = self._numbers(output, batch)
        try:
            some = [self._numbers(*self._part(output, batch, *part)) for part in ((0, cut), (cut, size))]
        except REFUSALS as problem:
            return f"parts of a batch alone: {first_line(problem)}"
        finally:
            self._leave(batch)
        total, count = (sum(numbers) for numbers in zip(*some, strict=True))
        scale = max(abs(whole[0]), sum(abs(part[0]) for part in some))
        allowed = _allowed(*tensors(output))
        if abs(total - whole[0]) <= allowed * scale and abs(count - whole[1]) <= allowed * abs(whole[1]):
            return ""
        if self.form == "mean" and abs(sum(t / c for t, c in some) - whole[0] / whole[1]) <= allowed * scale:
            raise ValueError(
                f"{_called(self.given)} returns the sum over a batch without a count; return (sum, count), such as (sum, "
                "len(output))."
            )
        apart = abs(total - whole[0]) > allowed * scale
        ours, theirs, what = (total, whole[0], "give") if apart else (count, whole[1], "count")
        return f"two parts of batch {index} {what} {ours:.6g} and the whole {theirs:.6g}"

    def _numbers(self, output: Any, batch: Any) -> tuple[float, float]:
        total, count = self(output, batch)
        return float(total.detach()), float(count)

    def check_samples(self, output: Any, batch: Any) -> None:
        """One sentence where the samples have no losses of their own that add up to the batch's."""
        if self.couples or self.form == "whole":
            raise ValueError(
                f"{_called(self.given)} couples the samples of a batch ({self.couples}), so that there are no losses of single "
                "samples; use Hessian or GaussNewton, or name entries that belong to no sample by shared=."
            )
        if self.is_module:
            terms, _ = self._terms(output, batch)
            size = self.samples.size(batch)
            if terms.ndim == 0 or len(terms) != size:
                raise ValueError(
                    f"{_called(self.given)} gives terms of shape {tuple(terms.shape)} under reduction='none', but must give some "
                    f"for each of the {size} samples; pass a callable (output, batch) -> (sum, count), or {SHARED}."
                )
        total, sums = float(self(output, batch)[0].detach()), arrays.double(self.sums(output, batch).detach())
        if abs(total - float(sums.sum())) > _allowed(*tensors(output)) * max(abs(total), float(sums.abs().sum())):
            raise ValueError(
                f"the losses of single samples add up to {float(sums.sum()):.6g}, but the batch's is {total:.6g}: "
                f"{_called(self.given)} couples the samples, or reads an entry that belongs to none; name such by shared=."
            )

    def _recognise(self, index: int, output: Any, batch: Any) -> None:
        """Hold the model's own loss against the cross entropy of its logits, with labels in place and shifted.

        Its name does not tell; a mean of anything else (an auxiliary loss) would depend on how the data are batched.
        """
        if self.target(batch).is_floating_point():
            self.shift = None
            return
        fits = losses.own_shifts(output, batch)
        if self.shift in fits:
            return
        mean = float(losses.own_mean(output).detach())
        if not fits or self.counted:
            raise ValueError(
                f"the model's own loss ({mean:.6g}) of batch {index} is not the mean cross entropy of its logits over labels "
                "that are not -100, in place or shifted by one (an auxiliary loss, say); pass loss= as a callable "
                "(output, batch) -> (sum, count)."
            )
        self.shift = fits[0]

    # What it reads of an output ---------------------------------------------------------------------------------------
    def places(self, output: Any, batch: Any) -> list[Place]:
        """Where the real numbers stand that the loss reads of this output."""
        if self.given is None or self.is_module or self.of_target or isinstance(output, torch.Tensor):
            return [output_place(output)]
        real = [(p, t) for p, t in leaves(output) if isinstance(t, torch.Tensor) and t.is_floating_point()]
        heads = [t.detach().requires_grad_() for _, t in real]
        places = [place for place, _ in real]
        if any(t.requires_grad for _, t in real):  # it may be differentiated in what the batch holds, as it is alone
            return places
        total, _ = self(replaced(output, dict(zip(places, heads, strict=True))), batch)
        if not total.requires_grad:
            return places
        read = torch.autograd.grad(total, heads, allow_unused=True)
        return [place for place, gradient in zip(places, read, strict=True) if gradient is not None]


def _with_both(one: Any, two: Any, own: set[Place], others: Collection[Place] = ()) -> list[Any]:
    """Two samples and both as one tree: what stands at `own` is joined, or None in all three if it has other shapes there.

    None stands at `others` too, so that what reads it fails; all else is left as it is, in both as in the second.
    """
    first, second = (dict(leaves(tree)) for tree in (one, two))
    same = {place for place in own if _shapes(first.get(place), second.get(place))}
    gone = dict.fromkeys({*own, *others} - same)
    both = {place: torch.cat([first[place], second[place]]) for place in same}
    return [replaced(one, gone), replaced(two, gone), replaced(two, gone | both)]


def _shapes(one: Any, two: Any) -> bool:
    """Whether two trees have tensors of the same shapes."""
    return [t.shape for t in tensors(one)] == [t.shape for t in tensors(two)]


def _allowed(*values: torch.Tensor) -> float:
    """Relative difference that the rounding of sums explains."""
    kinds = [t.dtype for t in values if t.is_floating_point()] or [torch.get_default_dtype()]
    return 1e3 * max(map(arrays.machine_epsilon, kinds))


def _names_target(loss: Any) -> bool:
    """Whether the second parameter of a callable is called a target, so that it is no batch."""
    try:
        names = list(inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters)
    except (TypeError, ValueError):  # no Python function
        return False
    return len(names) > 1 and names[1] in TARGETS


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return f"a {type(value).__name__}"


def _called(loss: Any) -> str:
    """The loss in a sentence."""
    return f"loss={getattr(loss, '__qualname__', type(loss).__name__)}"


def _check_loss(loss: Any) -> None:
    """One sentence for what is no loss, and for what is written instead of one."""
    if loss is None or (isinstance(loss, nn.Module) and not isinstance(loss, type)):
        return
    if isinstance(loss, type):
        raise TypeError(f"loss must be an instance, got the class {loss.__name__}; write {loss.__name__}().")
    if not callable(loss):
        raise TypeError(
            f"loss is a {type(loss).__name__}; pass a torch loss module, a callable (output, batch) -> (sum, count), or None for "
            "the model's own loss."
        )


def _misused(loss: Loss, batch: Any, problem: Exception) -> Exception:
    """One sentence for a loss that fails on the first batch, or returns what has no meaning."""
    words = first_line(problem).rstrip(".")
    if loss.is_module:
        return ValueError(
            f"{_called(loss.given)} does not take the output and the target of the first batch ({words}); pass what it takes, or "
            "a callable (output, batch) -> (sum, count)."
        )
    withheld = any(key in (fields(batch) or {}) for key in LABEL_KEYS) and any(
        word in words for word in ("loss", "NoneType")
    )
    own = "; the model sees the labels of a batch, and returns its own loss, with loss=None alone" if withheld else ""
    return TypeError(
        f"{_called(loss.given)} fails on the model's output and the whole batch, {_kind(batch)} ({words}); a callable (output, "
        f"batch) must return (sum, count), the mean over the samples, or one number for each sample{own}."
    )
