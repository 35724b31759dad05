"""The spectrum of one's own model: what training does to the curvature of a small classifier.

One learns to build an operator from a model, a loss and batches, to take its spectrum with error bars, and to read off numbers of
it: the trace, how many eigenvalues lie above a level, how many are negative, the effective rank, each with its error.

    python examples/own_model.py [FOLDER]     # about 20 s; writes own_model.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

import spectral


def problem() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A model and batches, in place of your own: four noisy spirals in eight dimensions."""
    torch.manual_seed(0)
    y = torch.arange(400) % 4
    t = torch.linspace(0.2, 1.0, 400)
    angle = 5 * t + y * torch.pi / 2
    x = torch.cat([torch.stack([t * angle.cos(), t * angle.sin()], 1), torch.zeros(400, 6)], 1) + 0.03 * torch.randn(
        400, 8
    )
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    return model, list(zip(x.split(100), y.split(100), strict=True))


def train(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]], epochs: int = 150) -> float:
    optimizer, loss = torch.optim.Adam(model.parameters(), 1e-2), nn.CrossEntropyLoss()
    for _ in range(epochs):
        for x, y in data:
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
    return float(value.detach())


def spectrum_of(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> spectral.Spectrum:
    H = spectral.Hessian(model, nn.CrossEntropyLoss(), data)
    return spectral.slq(H, probes=4, steps=60, progress=False)


def report(name: str, spectrum: spectral.Spectrum) -> None:
    trace, above = spectrum.integrate(lambda x: x), spectrum.count(0.1, float("inf"))
    negative = spectrum.count(-float("inf"), -1e-3)
    numbers = spectral.summary(spectrum)
    print(f"{name}: {spectrum.dim} eigenvalues, {spectrum.products} products")
    print(f"  trace           {trace.value:.4g} ± {trace.stderr:.2g}")
    print(f"  above 0.1       {above.value:.0f}, 95 % sure of {above.lower:.0f} to {above.upper:.0f}")
    print(f"  below -0.001    {negative.value:.0f}, 95 % sure of {negative.lower:.0f} to {negative.upper:.0f}")
    print(f"  effective rank  {numbers['effective_rank']:.1f} ± {numbers['effective_rank_stderr']:.1f}")


def main(folder: Path) -> None:
    model, data = problem()
    _, ax = plt.subplots(figsize=(6.4, 3.6))
    spectra = {"at initialisation": spectrum_of(model, data)}
    print(f"loss after training: {train(model, data):.3f}")
    spectra["trained"] = spectrum_of(model, data)
    for name, spectrum in spectra.items():
        report(name, spectrum)
        spectrum.plot(ax, label=name)
    ax.set_title("Hessian of a small classifier")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8)
    ax.figure.savefig(folder / "own_model.png", dpi=110, bbox_inches="tight")
    print(folder / "own_model.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
