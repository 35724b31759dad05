"""What does a product cost, against one gradient over the same data in the same run?

    python benchmarks/product_cost.py [--json FILE] [--repeats 7] [--models mlp cnn]

Prints, for each model, the median time of one gradient of the mean loss and of each product as a multiple of it. By FLOPs the
limit of one J^T J v that shares nothing with another is 4/3 (two forward and two backward passes of the linearised network
against three passes of a gradient). Run it on an idle machine: spinning threads falsify ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import spectral


def mlp() -> tuple[nn.Module, torch.Tensor]:
    """1.9 million parameters."""
    sizes = [784, 1024, 1024, 10]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1]), torch.randn(512, 784)


def cnn() -> tuple[nn.Module, torch.Tensor]:
    """A convolutional network with group norm, 0.29 million parameters."""

    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.ReLU()]

    body = [*block(3, 64), *block(64, 128), nn.MaxPool2d(2), *block(128, 128), nn.MaxPool2d(2), *block(128, 64)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), torch.randn(64, 3, 32, 32)


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {"mlp": mlp, "cnn": cnn}


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    """Median wall time of `action` after two warm-up calls."""
    times = []
    for i in range(repeats + 2):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
        if i == 1:
            times.clear()
    return statistics.median(times)


def ratios(name: str, repeats: int) -> dict[str, float]:
    """Time of each product over that of one gradient on the same batches."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model.eval()
    y = torch.randint(10, (len(x),))
    data = [(part, target) for part, target in zip(x.chunk(4), y.chunk(4), strict=True)]
    loss = nn.CrossEntropyLoss()

    def gradient() -> None:
        for a, b in data:
            torch.autograd.grad(loss(model(a), b), list(model.parameters()))

    J = spectral.Jacobian(model, data)
    v, u = torch.randn(J.shape[1]), torch.randn(J.shape[0])
    V = torch.randn(J.shape[1], 8)
    right = J.gram("right")
    actions: dict[str, tuple[Callable[[], object], int]] = {
        "J v": (lambda: J @ v, 1),
        "J^T u": (lambda: J.T @ u, 1),
        "J^T J v": (lambda: right @ v, 1),
        "J^T J V, per column of 8": (lambda: right @ V, 8),
    }
    unit = median_seconds(gradient, repeats)
    found = {"gradient [s]": unit}
    for label, (action, columns) in actions.items():
        found[label] = median_seconds(action, repeats) / columns / unit
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the numbers and the environment here")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    results = {name: ratios(name, options.repeats) for name in options.models}
    for name, found in results.items():
        print(f"{name}: one gradient takes {found['gradient [s]']:.4f} s; times of products as multiples of it:")
        for label, value in found.items():
            if label != "gradient [s]":
                print(f"    {label:28s} {value:5.2f}")
    if options.json:
        about = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.processor() or platform.machine(),
            "spectral": spectral.__version__,
        }
        with open(options.json, "w") as file:
            json.dump({"environment": about, "ratios": results}, file, indent=1)


if __name__ == "__main__":
    main()
