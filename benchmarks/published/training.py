"""Rows about trained networks: outliers, batch norm, the edge of stability, sloppiness, the information space."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import spectral
from published.measured import Measured, eigenvalues, farthest, over_seeds
from spectral.experiments import datasets, models
from spectral.experiments.training import train

Row = dict[str, Measured]


def some_classes(problem: datasets.Problem, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The training samples of the first C classes."""
    kept = problem.y_train < C
    return problem.x_train[kept], problem.y_train[kept]


def papyan() -> Row:
    row = {}
    for C in (4, 10):
        above, found = [], []
        for seed in range(2):
            x, y = some_classes(datasets.mnist(train=2500, test=10, seed=seed), C)
            model = models.mlp(784, (64, 64), C, seed=seed)
            train(model, x, y, target_loss=0.15, max_epochs=100, lr=1e-3, seed=seed, progress=False)
            G = spectral.GaussNewton(model, nn.CrossEntropyLoss(), [(x, y)])
            Q = spectral.as_operator(torch.linalg.qr(spectral.class_structure(G).class_means())[0])
            without = spectral.I - Q @ Q.T
            edge = spectral.top(without @ G @ without, 1, tol=1e-4, progress=False).values[0]
            values = spectral.top(G, C + 2, tol=1e-4, progress=False).values
            above.append(int((values > edge).sum()))
            # of 60 steps outliers() says, at some seeds, that too few eigenvalues below the gap are known, and asks for more
            found.append(spectral.outliers(spectral.slq(G, probes=2, steps=120, seed=seed, progress=False)))
        row[f"eigenvalues above lambda_max without the class means, {C} classes"] = farthest(
            above, C - 0.5, f"{above}; outliers() says: {'; '.join(map(str, found))}"
        )
    row["outliers of 10 classes"] = farthest([o.count if o.accepted else 0 for o in found], 9.5)
    return row


def ghorbani() -> Row:
    logs: dict[str, list[float]] = {"none": [], "batch": [], "population": []}
    for seed in range(4):
        problem = datasets.digits(train=300, test=10, seed=seed, image=True)
        batch = [(problem.x_train, problem.y_train)]
        for norm in (False, True):
            model = models.cnn(width=8, norm=norm, seed=seed)
            train(model, problem.x_train, problem.y_train, target_loss=0.05, max_epochs=300, seed=seed, progress=False)
            for name in ("batch", "population") if norm else ("none",):
                H = spectral.Hessian(
                    model, nn.CrossEntropyLoss(), batch, statistics="batch" if name == "batch" else "population"
                )
                values = spectral.top(H, 10, tol=1e-3, seed=seed, progress=False).values
                logs[name].append(float(np.log(values[0] / values[9])))
    plain, batch, population = (np.array(logs[name]) for name in ("none", "batch", "population"))
    told = "lambda_1/lambda_10: " + ", ".join(f"{name} {np.exp(np.mean(v)):.3g}" for name, v in logs.items())
    return {
        "ln of the ratio of lambda_1/lambda_10, no batch norm to batch norm": over_seeds(plain - batch, told),
        "the same, population to batch statistics": over_seeds(population - batch),
    }


def squared_loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """½‖f − y‖² summed, and the samples: Cohen et al.'s squared loss."""
    return 0.5 * ((output - batch[1]) ** 2).sum(), len(output)


def tanh_mlp(sizes: tuple[int, ...], seed: int) -> nn.Sequential:
    """Weights N(0, 1/fan-in), biases 0, float64."""
    g, parts = torch.Generator().manual_seed(seed), []
    for fan_in, out in pairwise(sizes):
        layer = nn.Linear(fan_in, out).double()
        with torch.no_grad():
            layer.weight.normal_(0.0, fan_in**-0.5, generator=g)
            layer.bias.zero_()
        parts += [layer, nn.Tanh()]
    return nn.Sequential(*parts[:-1])


def full_batch(
    seed: int, optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int, every: int, last: int,
    matrix: Callable[[spectral.Operator, torch.optim.Optimizer], spectral.Operator],
) -> tuple[float, float]:  # fmt: skip
    """Full-batch training on squared loss; (λ_max of `matrix` at first, its mean over the last `last` looks)."""
    problem = datasets.digits(train=200, test=10, seed=seed)
    x, y = problem.x_train.double(), F.one_hot(problem.y_train, 10).double()
    model = tanh_mlp((64, 64, 64, 10), seed)
    step, seen = optimiser(list(model.parameters())), []
    with torch.random.fork_rng():
        for k in range(1, steps + 1):
            step.zero_grad()
            total, n = squared_loss(model(x), (x, y))
            (total / n).backward()
            step.step()
            if k == 1 or (k > steps - every * last and k % every == 0):
                H = spectral.Hessian(model, squared_loss, [(x, y)], preflight=k == 1)
                seen.append(spectral.top(matrix(H, step), 1, tol=1e-4, seed=k, progress=False).values[0])
    return float(seen[0]), float(np.mean(seen[1:]))


def cohen_gradient_descent() -> Row:
    row = {}
    for eta in (0.4, 0.3):
        found = [
            full_batch(seed, lambda p, eta=eta: torch.optim.SGD(p, lr=eta), 1000, 50, 8, lambda H, _: H)
            for seed in range(3)
        ]
        first = np.mean([a for a, _ in found]) * eta / 2
        row[f"lambda_max eta/2, eta = {eta:g}"] = over_seeds(
            [b * eta / 2 for _, b in found], f"{first:.2g} after one step"
        )
    return row


BETA_1, BETA_2 = 0.9, 0.999


def cohen_adam() -> Row:
    row = {}
    for eta in (4e-3, 2e-3):
        adam = partial(torch.optim.Adam, lr=eta, betas=(BETA_1, BETA_2))
        found = [full_batch(seed, adam, 3000, 100, 8, spectral.precondition) for seed in range(3)]
        threshold = (2 + 2 * BETA_1) / ((1 - BETA_1) * eta)  # 38/η
        row[f"preconditioned lambda_max eta/38, eta = {eta:g}"] = over_seeds([b / threshold for _, b in found])
    return row


def yang() -> Row:
    lines, decades = [], []
    for seed in range(3):
        X = datasets.mnist(train=1000, test=10, seed=seed).x_train.double()
        spectrum = spectral.exact(spectral.as_operator(X / len(X) ** 0.5))
        values = eigenvalues(spectrum)
        logs = np.log10(values[values > spectrum.rounding])
        inner = logs[len(logs) // 10 : -len(logs) // 10]  # 80 % of them
        lines.append(np.corrcoef(inner, np.arange(len(inner)))[0, 1] ** 2)
        decades.append(inner[0] - inner[-1])
    return {
        "R^2 of log lambda over its index, the middle 80 %": over_seeds(lines),
        "decades that they span": over_seeds(decades),
    }


def oymak() -> Row:
    found: dict[str, list[float]] = {"before": [], "random": [], "after": []}
    for seed in range(3):
        problem = datasets.digits(train=100, test=10, seed=seed)
        x, y = problem.x_train.double(), problem.y_train
        model = models.mlp(64, (64, 64), 10, seed=seed).double()
        J = spectral.Jacobian(model, [x])
        found["before"].append(spectral.label_alignment(J, y, k=50).energy)
        found["random"].append(spectral.label_alignment(J, datasets.permute_labels(y, 1.0, seed).y, k=50).energy)
        train(model, x, y, target_loss=0.01, max_epochs=1000, seed=seed, progress=False)
        found["after"].append(spectral.label_alignment(spectral.Jacobian(model, [x]), y, k=50).energy)
    before, random, after = (np.array(found[name]) for name in found)
    told = ", ".join(f"{name} {np.mean(v):.3g}" for name, v in found.items())
    return {
        "energy of true less that of random labels in 50 directions": over_seeds(before - random, told),
        "energy after training less that before": over_seeds(after - before),
    }
