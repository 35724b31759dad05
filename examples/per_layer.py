"""One spectrum for each layer: where the curvature of a network sits.

One learns to cut a curvature matrix into the diagonal blocks of its modules (`blocks`), which share one sweep over the data where
they can, and to compare layers by numbers that have errors: trace, largest eigenvalue, effective rank.

    python examples/per_layer.py [FOLDER]     # about 15 s; writes per_layer.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import spectral

LEVELS = np.geomspace(1e-6, 0.5, 200)  # where eigenvalues are counted


def problem() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A small convolutional network, trained to tell where in an image a bright patch lies."""
    torch.manual_seed(0)
    y = torch.arange(256) % 4
    x = 0.5 * torch.randn(256, 1, 8, 8)
    for image, label in zip(x, y, strict=True):
        image[0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 0.7
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    data = list(zip(x.split(64), y.split(64), strict=True))
    optimizer, loss = torch.optim.Adam(model.parameters(), 1e-2), nn.CrossEntropyLoss()
    for _ in range(20):
        for images, labels in data:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
    return model, data


def main(folder: Path) -> None:
    model, data = problem()
    G = spectral.GaussNewton(model, nn.CrossEntropyLoss(), data)
    layers = spectral.blocks(G, by="module")
    names = {name: f"{type(model.get_submodule(name)).__name__} {name}" for name in layers}
    _, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
    print(f"{'layer':<10} {'size':>5} {'trace':>18} {'largest':>10} {'effective rank':>18}")
    traces = []
    for name, block in layers.items():
        spectrum = spectral.esd(block, progress=False)
        trace, numbers = spectrum.integrate(lambda x: x), spectral.summary(spectrum)
        traces.append(trace)
        rank = f"{numbers['effective_rank']:.2f} ± {numbers['effective_rank_stderr']:.2g}"
        print(f"{names[name]:<10} {block.shape[0]:>5} {trace!s:>18} {numbers['lambda_max']:>10.3g} {rank:>18}")
        band = spectrum.count(LEVELS, np.inf)
        axes[0].step(LEVELS, band.value, label=names[name])
        axes[0].fill_between(LEVELS, band.lower, band.upper, step="pre", alpha=0.3)
    whole = spectral.trace(G)
    print(f"all layers: trace {whole}; the blocks' traces add up to {sum(float(t) for t in traces):.6g}")
    axes[0].set(
        title="Gauss-Newton: eigenvalues above $\\lambda$",
        xscale="log",
        yscale="log",
        xlabel="$\\lambda$",
        ylim=(0.8, None),
    )
    axes[0].legend(fontsize=8)
    axes[1].bar(
        list(names.values()), np.array([float(t) for t in traces]), yerr=[float(t.stderr) for t in traces], capsize=3
    )
    axes[1].set_title("trace")
    axes[1].tick_params(axis="x", labelrotation=20)
    axes[0].figure.tight_layout()
    axes[0].figure.savefig(folder / "per_layer.png", dpi=100)
    print(folder / "per_layer.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
