"""Watching the Hessian while a network trains: its largest eigenvalue, and its whole density as a waterfall.

One learns to call a `Watcher` after each training step, what its share of the time buys, and to read what it has kept. Gradient
descent with a step eta is stable where lambda_max is below 2/eta: here lambda_max rises to that edge, swings about it, and
settles there (Cohen et al. 2021). The critical sharpness, from a gradient and a few forward passes, follows from below.

    python examples/watch_training.py [FOLDER]     # about 30 s; writes watch_training.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

import spectral
from spectral import plotting
from spectral.cards import COLOURS

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
    # a step of so small a network takes a tenth of a millisecond: every reading is made, whatever it takes
    watcher = spectral.Watcher(
        lambda: spectral.Hessian(model, loss, [(x, y)]),
        every=EVERY,
        share=None,
        what={"top": {"tol": 1e-3}, "critical_sharpness": {}, "esd": {"steps": 40}},
    )
    losses = []
    for step in range(STEPS + 1):
        watcher(step)
        optimizer.zero_grad()
        value = loss(model(x), y)
        losses.append(float(value.detach()))
        value.backward()
        optimizer.step()
    watcher.close()

    top, critical = watcher.history("top"), watcher.history("critical_sharpness")
    number, error = top["eigenvalue_1"], (top["eigenvalue_1_upper"] - top["eigenvalue_1_lower"]) / 2
    for i in range(0, len(number), len(number) // 6):
        step, sharp = top["step"][i], critical["critical_sharpness"][i]
        print(
            f"step {step:>4}  loss {losses[step]:.4f}  lambda_max {number[i]:.3f} ± {error[i]:.2g}  critical {sharp:.3f}"
        )
    late = number[len(number) // 2 :]
    print(f"second half: lambda_max {late.mean():.2f} ± {late.std():.2f} (sd over time); 2/eta = {2 / ETA:g}")
    products = [r.products for r in watcher.readings if r.what == "top"]
    print(
        f"{products[0]} products for the first lambda_max, {sum(products[1:]) / len(products[1:]):.1f} for each one after it"
    )
    print(watcher)

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2), width_ratios=[3, 3, 4])
    left.semilogy(losses, color=COLOURS[0])
    left.set(title="training loss", xlabel="step")
    plotting.over_steps({**critical, **top}, middle, "Hessian")
    middle.axhline(2 / ETA, color="k", ls="--", lw=1, label="2/η")
    middle.set_ylim(bottom=0)
    middle.legend(fontsize="small")
    watcher.plot(right)
    right.set_title("density of the Hessian")
    figure.tight_layout()
    figure.savefig(folder / "watch_training.png", dpi=80)
    print(folder / "watch_training.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
