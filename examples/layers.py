"""One row a layer: what the weights say by themselves, beside what the data make of them.

One learns to read `layers`: the exponent of each weight's spectrum as WeightWatcher fits it, whether its tail is a power law at
all, and the trace and effective rank of the same layer's block of the Gauss-Newton matrix, each with its error.

    python examples/layers.py [FOLDER]     # about 15 s; writes layers.png
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import spectral
from spectral.cards import COLOURS

CLASSES, FEATURES, WIDTH, DEPTH = 10, 64, 256, 4


def problem() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A multilayer perceptron of five layers, and points around ten centres, a few of them with another's label."""
    torch.manual_seed(0)
    widths = [FEATURES, *[WIDTH] * DEPTH]
    body = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    y = torch.arange(600) % CLASSES
    x = torch.randn(CLASSES, FEATURES)[y] + 1.2 * torch.randn(600, FEATURES)
    y[::20] = (y[::20] + 3) % CLASSES
    return nn.Sequential(*body, nn.Linear(WIDTH, CLASSES)), list(zip(x.split(150), y.split(150), strict=True))


def train(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    optimizer, loss = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05), nn.CrossEntropyLoss()
    for _ in range(60):
        for x, y in data:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()


def main(folder: Path) -> None:
    model, data = problem()
    before = spectral.layers(model)
    train(model, data)
    after = spectral.layers(model, data[:1], nn.CrossEntropyLoss(), steps=20, progress=False)  # 150 samples tell enough
    print(after)
    print(f"WeightWatcher's summary: {', '.join(f'{k} {v:.3g}' for k, v in after.summary().items())}")
    _, axes = plt.subplots(1, 2, figsize=(8.4, 2.8))
    after.plot(ax=axes[0])
    axes[0].plot(before["alpha"], np.arange(len(before)), "x", color=COLOURS[1], label="at initialisation")
    axes[0].set_xlabel("alpha: exponent of the weight's tail")
    axes[0].legend(fontsize=8)
    after.plot("data_trace", ax=axes[1])
    axes[1].set(xlabel="trace of the layer's block (Gauss-Newton)", xlim=(0, None))
    axes[0].figure.tight_layout()
    axes[0].figure.savefig(folder / "layers.png", dpi=100)
    print(folder / "layers.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
