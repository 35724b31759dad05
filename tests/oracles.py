"""Small networks of many kinds and their Jacobians made one sample and one output at a time by torch.autograd: no vmap, no
forward-mode AD, no functional_call, nothing that the package uses."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

DTYPE = torch.float64


def dense_jacobian(
    model: nn.Module,
    batches: list[Any],
    output: Callable[[nn.Module, Any], torch.Tensor],
    *,
    wrt: str = "params",
    layout: str = "stacked",
    names: list[str] | None = None,
) -> torch.Tensor:
    """J of `output(model, batch of one sample) -> k numbers`, row by row; on a copy of the model in eval mode."""
    model = copy.deepcopy(model).eval()
    chosen = [p for name, p in model.named_parameters() if (p.requires_grad if names is None else name in names)]
    for p in chosen:
        p.requires_grad_()
    blocks = []
    for batch in batches:
        for i in range(len(first(batch))):
            single, x = take(batch, i)
            with torch.enable_grad():
                z = output(model, single).reshape(-1)
            targets = chosen if wrt == "params" else [x]
            rows = []
            for entry in z:
                grads = torch.autograd.grad(entry, targets, retain_graph=True, allow_unused=True)
                rows.append(torch.cat([(torch.zeros_like(t) if g is None else g).reshape(-1)
                                       for g, t in zip(grads, targets, strict=True)]))  # fmt: skip
            blocks.append(torch.stack(rows))
    if layout == "flattened":
        return torch.stack([block.reshape(-1) for block in blocks])
    return torch.cat(blocks)


def first(batch: Any) -> torch.Tensor:
    """The tensor whose first axis is the samples."""
    return batch if isinstance(batch, torch.Tensor) else batch["x"] if isinstance(batch, dict) else batch[0]


def take(batch: Any, i: int) -> tuple[Any, torch.Tensor]:
    """(the batch of sample i alone, its input as a leaf)."""
    x = first(batch)[i : i + 1].clone()
    if x.is_floating_point():
        x.requires_grad_()
    if isinstance(batch, torch.Tensor):
        return x, x
    if isinstance(batch, dict):
        return {key: x if key == "x" else value[i : i + 1] for key, value in batch.items()}, x
    return (x, *(part[i : i + 1] for part in batch[1:])), x


def cut(x: torch.Tensor, y: torch.Tensor, sizes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(x, y) in batches of these sizes."""
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


# Networks ------------------------------------------------------------------------------------------------------------
class Residual(nn.Module):
    """A residual added in place, where a replayed linearisation may be wrong from its second call on."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4))
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = (x * self.w).square()
        h += x
        return self.out(h.relu_())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.mix(x, x, x, need_weights=False)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layer(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 3, batch_first=True)
        self.out = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.cell(x)[0][:, -1])


class Tied(nn.Module):
    """A token model whose output weights are its embedding: one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.mix = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.embed(ids)).tanh())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x).tanh())


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(2))
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).sin()


class Cube(torch.autograd.Function):
    """x^3 as an old custom function: no jvp, but twice differentiable."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Cubic(nn.Module):
    def __init__(self, function: Any = Cube) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function.apply(self.layer(x))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(checkpoint(self.inner, x, use_reentrant=False))


class Keywords(nn.Module):
    """Mappings in, an object with `.logits` out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> Any:
        return SimpleNamespace(logits=(self.layer(x) * scale[:, None]).tanh(), extra=None)


def frozen_mlp() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def conv_batch_norm() -> nn.Module:
    """Handed in in train mode, with running statistics that matter."""
    norm = nn.BatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([0.3, -0.2]))
    norm.running_var.copy_(torch.tensor([0.5, 2.0]))
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), norm, nn.ReLU(), nn.Dropout(0.5), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )


def group_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.Linear(64, 2))


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.SiLU(), nn.Linear(4, 2))


@dataclass(frozen=True)
class Case:
    """A network, the shape of its inputs and its number of classes."""

    build: Callable[[], nn.Module]
    features: tuple[int, ...]
    classes: int
    tokens: int = 0

    def network(self, dtype: torch.dtype = DTYPE) -> nn.Module:
        torch.manual_seed(1)
        model = self.build().to(dtype)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))  # biases and affine weights away from 0 and 1
        return model

    def data(self, n: int = 5, dtype: torch.dtype = DTYPE) -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.Generator().manual_seed(2)
        x = torch.randn(n, *self.features, generator=g, dtype=torch.float64).to(dtype)
        if self.tokens:
            x = torch.randint(self.tokens, (n, *self.features), generator=g)
        return x, torch.randint(self.classes, (n,), generator=g)

    def batches(self, sizes: tuple[int, ...] = (2, 2, 1), dtype: torch.dtype = DTYPE) -> list[Any]:
        x, y = self.data(sum(sizes), dtype)
        return cut(x, y, list(sizes))


CASES = {
    "mlp": Case(mlp, (3,), 3),
    "batch-norm": Case(conv_batch_norm, (1, 4, 4), 3),
    "group-norm": Case(group_norm, (1, 4, 4), 2),
    "layer-norm": Case(layer_norm, (3,), 2),
    "residual-in-place": Case(Residual, (4,), 3),
    "attention": Case(Attention, (3, 4), 2),
    "encoder-layer": Case(Encoder, (3, 4), 2),
    "lstm": Case(Recurrent, (3, 3), 2),
    "tied": Case(Tied, (2,), 5, tokens=5),
    "shared-twice": Case(Twice, (3,), 3),
    "unused-parameter": Case(Unused, (3,), 2),
    "frozen-parameter": Case(frozen_mlp, (3,), 3),
    "function-without-jvp": Case(Cubic, (3,), 2),
    "checkpointed": Case(Checkpointed, (3,), 2),
}


def logits(model: nn.Module, single: Any) -> torch.Tensor:
    return model(single if isinstance(single, torch.Tensor) else single[0])


def random_states() -> tuple[Any, ...]:
    """The global random states of python, numpy and torch, comparable."""
    legacy = np.random.get_state()  # noqa: NPY002
    return random.getstate(), legacy[1].tolist(), legacy[2:], torch.get_rng_state().tolist()
