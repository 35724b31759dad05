"""Rows about networks before training: dynamical isometry, the Fisher matrix, softmax regression."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import nn

import spectral
from published.measured import Measured, eigenvalues, jackknife, over_seeds
from spectral.analysis import theory

Row = dict[str, Measured]
WIDTH, DEPTHS, SEEDS = 200, (1, 2, 4, 8, 16), 8
SLOPES = {"linear": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}


def deep(
    layers: int, width: int, activation: str, weights: str, seed: int, sigma_w: float = 1.0, sigma_b: float = 0.0
) -> nn.Module:
    """`layers` times x ↦ σ(σ_w W x + b), W with entries N(0, 1/width) or Haar orthogonal, b of variance σ_b²."""
    g = torch.Generator().manual_seed(seed)
    parts: list[nn.Module] = []
    for _ in range(layers):
        layer = nn.Linear(width, width).double()
        W = torch.randn(width, width, dtype=torch.float64, generator=g)
        if weights == "orthogonal":
            W, R = torch.linalg.qr(W)
            W = W * R.diagonal().sign() * width**0.5  # by the signs of R it is uniform (Mezzadri 2007)
        with torch.no_grad():
            layer.weight.copy_(sigma_w * W / width**0.5)
            layer.bias.copy_(sigma_b * torch.randn(width, dtype=torch.float64, generator=g))
        parts += [layer, SLOPES[activation]()]
    return nn.Sequential(*parts)


def isometry(activation: str, weights: str, **scales: float) -> Row:
    """Var λ/(mean λ)² of J Jᵀ for each depth, from E Σλ² and E (Σλ)² over seeds."""
    row = {}
    for layers in DEPTHS:
        moments = []
        for seed in range(SEEDS):
            net = deep(layers, WIDTH, activation, weights, seed, scales.get("sigma_w", 1.0), scales.get("sigma_b", 0.0))
            x = torch.randn(1, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(10_000 + seed))
            x = x * scales.get("norm", 1.0) * WIDTH**0.5 / x.norm()
            values = eigenvalues(spectral.exact(spectral.Jacobian(net, [x], wrt="inputs"), progress=False))
            moments.append([values.mean() ** 2, (values**2).mean()])
        row[f"{layers} layer" + "s" * (layers > 1)] = jackknife(
            lambda m: float(m[:, 1].mean() / m[:, 0].mean() - 1), np.array(moments)
        )
    return row


def isometry_gaussian() -> Row:
    return isometry("linear", "gaussian")


def isometry_relu_gaussian() -> Row:
    return isometry("relu", "gaussian")


def isometry_relu_orthogonal() -> Row:
    return isometry("relu", "orthogonal")


def isometry_orthogonal() -> Row:
    return isometry("linear", "orthogonal")


CRITICAL = 1.3  # σ_w² of the tanh network


def isometry_tanh_critical() -> Row:
    q, sigma_b = theory.critical_point("tanh", CRITICAL**0.5)
    norm = ((q - sigma_b**2) / CRITICAL) ** 0.5  # so that the first layer's pre-activations have the variance q
    return isometry("tanh", "orthogonal", sigma_w=CRITICAL**0.5, sigma_b=sigma_b, norm=norm)


FISHER = {"tanh": {"sigma_w": 3**0.5, "sigma_b": 0.64**0.5}, "relu": {"sigma_w": 2**0.5, "sigma_b": 0.1**0.5}}
FISHER_WIDTHS, FISHER_SAMPLES = (300, 300, 300, 4), 50


def karakida() -> Row:
    row = {}
    for name, scales in FISHER.items():
        means, tops = [], []
        for seed in range(6):
            g = torch.Generator().manual_seed(seed)
            parts: list[nn.Module] = []
            for fan_in, out in pairwise(FISHER_WIDTHS):
                layer = nn.Linear(fan_in, out).double()
                with torch.no_grad():
                    layer.weight.normal_(0.0, scales["sigma_w"] / fan_in**0.5, generator=g)
                    layer.bias.normal_(0.0, scales["sigma_b"], generator=g)
                parts += [layer, SLOPES[name]()]
            X = torch.randn(FISHER_SAMPLES, FISHER_WIDTHS[0], dtype=torch.float64, generator=g)
            J = spectral.Jacobian(nn.Sequential(*parts[:-1]), [X])
            means.append(float(J.squared_norms().sum()) / FISHER_SAMPLES / J.shape[1])
            classes = FISHER_WIDTHS[-1]
            tops.append(spectral.top(J.gram(), classes, tol=1e-5, progress=False).values.mean() / FISHER_SAMPLES)
        row[f"{name}: mean eigenvalue"] = over_seeds(means)
        row[f"{name}: the largest, mean of the 4 of the outputs"] = over_seeds(tops)
    return row


def softmax_at_zero() -> Row:
    n, d, C = 60, 7, 5
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, dtype=torch.float64, generator=g)
    y = torch.randint(C, (n,), generator=g)
    expected = np.sort(theory.softmax_ggn_at_zero(X.numpy(), C))[::-1]
    row = {}
    for name, matrix in (
        ("Gauss-Newton", spectral.GaussNewton),
        ("Hessian", spectral.Hessian),
        ("Fisher", spectral.Fisher),
    ):
        found = eigenvalues(spectral.exact(matrix(_zero(d, C), nn.CrossEntropyLoss(), [(X, y)])))
        row[f"{name}: largest deviation from the closed form, over lambda_max"] = Measured(
            float(np.abs(found - expected).max() / expected[0]), 0.0
        )
    C, d, n = 4, 30, 800  # a tight mixture of C classes whose mean is not 0
    means, classes = 5 * torch.randn(C, d, dtype=torch.float64, generator=g), torch.arange(n) % C
    X = means[classes] + torch.randn(n, d, dtype=torch.float64, generator=g)
    found = spectral.outliers(spectral.exact(spectral.GaussNewton(_zero(d, C), nn.CrossEntropyLoss(), [(X, classes)])))
    row["outliers of a mixture of 4 classes, C(C - 1)"] = Measured(
        float(found.count) if found.accepted else np.nan, 0.0, str(found)
    )
    return row


def _zero(d: int, C: int) -> nn.Module:
    model = nn.Linear(d, C, bias=False).double()
    nn.init.zeros_(model.weight)
    return model


BLOCKS = {"samples": 800, "inputs": 400, "classes": (10, 30, 100)}


def softmax_blocks() -> Row:
    n, d, row = BLOCKS["samples"], BLOCKS["inputs"], {}
    for C in BLOCKS["classes"]:
        found, told = [], []
        for seed in range(6):
            g = torch.Generator().manual_seed(seed)
            x, y = torch.randn(n, d, dtype=torch.float64, generator=g), torch.randint(C, (n,), generator=g)
            model = nn.Linear(d, C, bias=False).double()
            with torch.no_grad():
                model.weight.normal_(0.0, d**-0.5, generator=g)
            H = spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, y)])
            gap = spectral.block_gap(H, [d] * C, pairs=20, seed=seed, progress=False)
            found.append(C**2 / (C - 1) * gap.value**2 / (1 - gap.value**2))
            told.append(f"{gap.value:.3g} ± {gap.stderr:.1g}")
        row[f"C² times the ratio, {C} classes"] = over_seeds(found, f"block gaps {', '.join(told)}")
    return row
