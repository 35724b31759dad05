"""Training to a target loss: Adam with its own seeded shuffling, and an honest record of what was reached."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral.estimators.budget import progress_bar
from spectral.experiments.datasets import stream
from spectral.networks.batches import random_state_kept
from spectral.schema import COUNT, NONNEGATIVE, POSITIVE, SIZE, held, ruled

Progress = Callable[[int, float], None]
SMALL = 100_000  # parameters; above it threads pay for themselves


@dataclass(frozen=True)
class Trained:
    """What training did. Losses are mean cross-entropies in nats per target.

    `reached`: whether `loss` is at or below `target_loss`, measured in eval mode over all samples; `history` has one
    row (epoch, loss in train mode while stepping, loss in eval mode after it) for each epoch; `seconds` is wall time.
    """

    reached: bool
    loss: float
    accuracy: float
    epochs: int
    seconds: float
    target_loss: float
    history: tuple[tuple[int, float, float], ...]
    settings: dict[str, object]

    @property
    def sentence(self) -> str:
        """One line for a person, which says so when the target was missed."""
        said = "reached" if self.reached else "DID NOT REACH"
        return (
            f"{said} the target loss {self.target_loss:g}: loss {self.loss:.3g}, accuracy {100 * self.accuracy:.1f} % "
            f"after {self.epochs} epochs, {self.seconds:.1f} s"
        )

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> Trained:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        rows = tuple((int(epoch), float(a), float(b)) for epoch, a, b in plain.get("history", ()))
        return Trained(**{**plain, "history": rows})


@ruled(target_loss=POSITIVE, max_epochs=COUNT, batch_size=SIZE, lr=POSITIVE, weight_decay=NONNEGATIVE)
def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    target_loss: float = 1e-3,
    max_epochs: int = 3000,
    batch_size: int = 64,
    lr: float = 3e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> Trained:
    """Train `model` in place with Adam on cross-entropy until its training loss is at most `target_loss`.

    x is (n, ...), y is (n,) int64, or (n, T) of text, both on the model's device. After every epoch the loss over all of (x, y)
    is measured in eval mode (a third of an epoch more); that is the loss held against the target, as batch norm and
    dropout make the train-mode loss another quantity. The model is handed back in the mode it came in. The order of
    the samples depends on `seed` alone; dropout draws from the seed too, and the global generators are as before. A
    last batch of one sample joins the batch before it.

    progress: a callable (epoch, loss), True or False for a bar or none; None shows a bar with the remaining time when
    stderr is a terminal. An unreached target is no error: see `Trained.reached`.
    Errors: settings out of range, a loss that is not finite.

    Source: Kingma and Ba (2015).

    >>> x = torch.tensor([[-1.0], [1.0]]); y = torch.tensor([0, 1])
    >>> record = train(nn.Linear(1, 2), x, y, target_loss=0.1, lr=0.1, progress=False)
    >>> record.reached, record.accuracy
    (True, 1.0)
    """
    options = {"lr": lr, "batch_size": batch_size, "weight_decay": weight_decay, "max_epochs": max_epochs}
    held(train, locals())
    _check(model, x, y)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    order = torch.Generator().manual_seed(stream(seed, "order"))
    started = time.perf_counter()
    history: list[tuple[int, float, float]] = []
    loss, accuracy = evaluate(model, x, y)
    if not math.isfinite(loss):
        raise ValueError(f"The loss is {loss:g} before the first step; give a model whose weights are finite.")
    with _shown(progress, max_epochs) as show, _own_draws(x.device, seed), _keeping_modes(model), few_threads(model):
        while loss > target_loss and len(history) < max_epochs:
            running = _epoch(model, optimiser, x, y, batch_size, order)
            loss, accuracy = evaluate(model, x, y)
            epoch = len(history) + 1
            if not (math.isfinite(running) and math.isfinite(loss)):
                raise ValueError(f"The loss became {running:g} in epoch {epoch} at lr={lr:g}; use a smaller lr.")
            history.append((epoch, running, loss))
            show(epoch, loss)
    optimiser.zero_grad(set_to_none=True)
    return Trained(
        reached=loss <= target_loss,
        loss=loss,
        accuracy=accuracy,
        epochs=len(history),
        seconds=time.perf_counter() - started,
        target_loss=target_loss,
        history=tuple(history),
        settings={"optimiser": "Adam", **options, "seed": seed, "samples": len(x)},
    )


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int = 1024,
    forward: Callable[[nn.Module, Any], Any] = lambda model, batch: model(batch[0]),
) -> tuple[float, float]:
    """The mean cross-entropy (nats) and the accuracy over all targets of (x, y), in eval mode; the model's mode is as before.

    Both are nan where `forward`(model, (x, y)) is no logits of these classes.

    Cost: one forward pass. How the samples are cut into batches changes nothing beyond round-off.
    """
    total, correct = 0.0, 0
    with torch.no_grad(), _keeping_modes(model):
        model.eval()
        for start in range(0, len(x), batch_size):
            target = y[start : start + batch_size]
            logits = forward(model, (x[start : start + batch_size], target))
            logits = getattr(logits, "logits", logits)
            each = (
                isinstance(logits, Tensor) and logits.ndim > 1 and logits.shape[:1] + logits.shape[2:] == target.shape
            )
            if not each or int(target.max()) >= logits.shape[1]:
                return math.nan, math.nan
            total += float(F.cross_entropy(logits, target, reduction="sum"))
            correct += int((logits.argmax(dim=1) == target).sum())
    return total / y.numel(), correct / y.numel()


@contextlib.contextmanager
def few_threads(model: nn.Module) -> Iterator[None]:
    """One torch thread while a network of at most SMALL parameters computes on the CPU; the number is restored.

    Threads that wait for each other after every tiny operation made the flagship's training 8 times slower on two idle
    cores and 70 times slower beside two busy neighbours; the results were the same to the last bit.
    """
    before = torch.get_num_threads()
    parameters = list(model.parameters())
    small = sum(p.numel() for p in parameters) <= SMALL and all(p.device.type == "cpu" for p in parameters)
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _epoch(
    model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, size: int, order: torch.Generator
) -> float:
    """One pass of Adam steps in a fresh order; the mean loss met on the way, in train mode."""
    model.train()
    n = len(x)
    rows = torch.randperm(n, generator=order).to(x.device)
    total = torch.zeros((), device=x.device)
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()  # batch norm cannot take the variance of one sample: it joins the batch before
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        batch = rows[start:stop]
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += loss.detach() * len(batch)
    return float(total) / n


@contextlib.contextmanager
def _keeping_modes(model: nn.Module) -> Iterator[None]:
    """Put every module's train or eval flag back as it was, one by one: a frozen batch norm stays frozen."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _own_draws(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout draws from the global generator of the device: seed it here and put its state back afterwards."""
    with random_state_kept(()):
        torch.default_generator.manual_seed(stream(seed, "dropout"))
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(stream(seed, "dropout"))
        elif device.type == "mps":
            torch.mps.manual_seed(stream(seed, "dropout"))
        yield


@contextlib.contextmanager
def _shown(progress: Progress | bool | None, max_epochs: int) -> Iterator[Progress]:
    if callable(progress):
        yield progress
        return
    with progress_bar(max_epochs, "train", progress, "epoch") as bar:

        def show(epoch: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.2e}", refresh=False)
            bar.update(epoch - bar.n)

        yield show


def _check(model: nn.Module, x: Tensor, y: Tensor) -> None:
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"{len(x)} inputs and {len(y)} labels cannot be trained on; give one label for each input.")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("The inputs hold NaN or infinity; remove or fill those samples before training.")
    if next(model.parameters(), None) is None:
        raise ValueError("The model has no parameters to train; give a model with parameters.")
