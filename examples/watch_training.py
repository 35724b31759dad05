"""Watching the largest eigenvalue of the Hessian by hand, while a network trains.

One learns that an operator multiplies by the weights of now, so that it is built once and asked again after every few steps, and
what that costs. Gradient descent with a step eta is stable where lambda_max is below 2/eta: here lambda_max rises to that edge,
swings about it, and settles there (Cohen et al. 2021). The residual says how far each eigenvalue may be off.

    python examples/watch_training.py [FOLDER]     # about 20 s; writes watch_training.png
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

import spectral

ETA, STEPS, EVERY = 0.1, 400, 10


def main(folder: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 5)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    model, loss = (
        nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)),
        nn.MSELoss(),
    )
    optimizer = torch.optim.SGD(model.parameters(), ETA)
    H = spectral.Hessian(model, loss, [(x, y)])
    steps, losses, sharpness, errors, seconds = [], [], [], [], 0.0
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            begin = time.perf_counter()
            pair = spectral.top(H, 1, tol=1e-3, progress=False)
            seconds += time.perf_counter() - begin
            steps.append(step)
            sharpness.append(float(pair.values[0]))
            errors.append(float(pair.residuals[0]))
        optimizer.zero_grad()
        value = loss(model(x), y)
        losses.append(float(value.detach()))
        value.backward()
        optimizer.step()
    for step, number, error in list(zip(steps, sharpness, errors, strict=True))[:: len(steps) // 6]:
        print(f"step {step:>4}  loss {losses[step]:.4f}  lambda_max {number:.3f} ± {error:.2g}")
    late = torch.tensor(sharpness[len(sharpness) // 2 :])
    print(f"second half: lambda_max {late.mean():.2f} ± {late.std():.2f} (sd over time); 2/eta = {2 / ETA:g}")
    print(f"{H.products} products of {H.shape[0]} weights for {len(steps)} looks, {seconds / len(steps):.2g} s each")

    _, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    left.semilogy(losses)
    left.set(title="training loss", xlabel="step")
    right.errorbar(steps, sharpness, yerr=errors, fmt=".-", label="$\\lambda_{max}$ ± residual")
    right.axhline(2 / ETA, color="k", ls="--", lw=1, label="$2/\\eta$")
    right.set(title="largest eigenvalue of the Hessian", xlabel="step")
    right.set_ylim(bottom=0)
    right.legend()
    left.figure.tight_layout()
    left.figure.savefig(folder / "watch_training.png", dpi=100)
    print(folder / "watch_training.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
