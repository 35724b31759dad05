"""Every operator and every estimator once, small: what `test_gpu.py` does on a device and holds to the processor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import spectral

DTYPE = torch.float64


def network() -> nn.Module:
    """Convolutions, a norm, a pooling and a linear layer."""
    torch.manual_seed(0)
    body = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ]
    return nn.Sequential(*body).to(DTYPE).eval()


def data(device: Any = "cpu") -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(10, 1, 4, 4, dtype=DTYPE, generator=generator), torch.randint(3, (10,), generator=generator)
    return [(x[:5].to(device), y[:5].to(device)), (x[5:].to(device), y[5:].to(device))]


def operators(device: Any) -> dict[str, Callable[[], Any]]:
    """Built on demand from one network on the device; data lie on the processor, as a loader gives them."""
    net, loss, batches = copy.deepcopy(network()).to(device), nn.CrossEntropyLoss(), data()
    A = torch.randn(20, 20, dtype=DTYPE, generator=torch.Generator().manual_seed(2)).to(device)
    mse = [(x, torch.nn.functional.one_hot(y, 3).to(DTYPE)) for x, y in batches]
    return {
        "Jacobian": lambda: spectral.Jacobian(net, batches),
        "Jacobian of inputs": lambda: spectral.Jacobian(net, batches, wrt="inputs"),
        "flattened Jacobian": lambda: spectral.Jacobian(net, batches, wrt="inputs", layout="flattened"),
        "Gram": lambda: spectral.Jacobian(net, batches).gram("right"),
        "Hessian": lambda: spectral.Hessian(net, loss, batches),
        "GaussNewton": lambda: spectral.GaussNewton(net, loss, batches),
        "GaussNewton of MSE": lambda: spectral.GaussNewton(net, nn.MSELoss(), mse),
        "Fisher": lambda: spectral.Fisher(net, loss, batches),
        "sampled Fisher": lambda: spectral.Fisher(net, loss, batches, draws=2),
        "EmpiricalFisher": lambda: spectral.EmpiricalFisher(net, loss, batches),
        "matrix": lambda: spectral.as_operator(A),
        "expression": lambda: 2.0 * spectral.as_operator(A + A.T) - 0.5 * spectral.I,
    }


QUIET: dict[str, Any] = {"progress": False}
ESTIMATORS: dict[str, Callable[[Any], Any]] = {
    "slq": lambda A: spectral.slq(A, probes=2, steps=8, **QUIET).points()[0],
    "slq without a basis": lambda A: spectral.slq(
        A, probes=1, steps=5, reorthogonalize=False, deflate=False, **QUIET
    ).points()[0],
    "slq, selective": lambda A: spectral.slq(
        A, probes=1, steps=5, reorthogonalize="selective", deflate=False, **QUIET
    ).points()[0],
    "kpm": lambda A: spectral.kpm(A, probes=2, moments=12, **QUIET).points()[0],
    "kpm, chebyshev": lambda A: spectral.kpm(A, probes=1, moments=12, recurrence="chebyshev", **QUIET).points()[0],
    "exact": lambda A: spectral.exact(A, **QUIET).points()[0],
    "esd": lambda A: spectral.esd(A, **QUIET).points()[0],
    "trace": lambda A: spectral.trace(A, probes=6, **QUIET).value,
    "diagonal": lambda A: spectral.diagonal(A, probes=6, **QUIET).value,
    "top": lambda A: spectral.top(A, k=3, tol=1e-3, **QUIET).values,
    "svd": lambda A: spectral.svd(A, k=3, tol=1e-3, **QUIET).values,
    "logdet": lambda A: spectral.logdet(A, 1.0, probes=3, steps=8, **QUIET).value,
    "frobenius": lambda A: spectral.frobenius(A, probes=3).value,
}


def product(A: Any, device: Any) -> torch.Tensor:
    """Four products: one after another, a block, and a transposed one."""
    V = spectral.probes.probe(0, 0, 2 * A.shape[1], dtype=A.dtype, device=device).view(-1, 2)
    u = spectral.probes.probe(0, 1, A.shape[0], dtype=A.dtype, device=device)
    return torch.cat([A @ V[:, 0].contiguous(), (A @ V).reshape(-1), A.T @ u])
