"""Results of twelve seeds, written down before the house was rebuilt: python tests/frozen.py writes frozen.json anew.

Whoever changes a number here says why in the changelog. Values are stored in hexadecimal, to the last bit; the test allows for
what another machine's libraries round, `python tests/frozen.py --compare` for nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import spectral

FILE = Path(__file__).parent / "frozen.json"
SEEDS = range(12)


def matrix(seed: int) -> np.ndarray:
    """A symmetric matrix of order 90 with a bulk and three outliers, one of them twice; of powers and cosines, no generator."""
    i = np.arange(1, 91.0)
    values = np.concatenate([np.cos(i[:86] * (seed + 1)) ** 2, [4.0, 4.0, 6.0, 9.0]])
    Q, R = np.linalg.qr(np.cos(np.outer(i, i) * 0.7 + seed))
    return (Q * np.sign(np.diag(R)) * values) @ (Q * np.sign(np.diag(R))).T


def network() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A small network in float64 and its data, by formulas."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(torch.cos(torch.arange(p.numel(), dtype=torch.float64) * 1.3 + k).reshape(p.shape) / 2)
    x = torch.sin(torch.arange(60, dtype=torch.float64) * 0.9).reshape(12, 5)
    y = torch.arange(12) % 3
    return model, [(x[:7], y[:7]), (x[7:], y[7:])]


def results(seed: int) -> dict[str, Any]:
    """What is frozen of one seed: plain nested lists of floats."""
    A = matrix(seed)
    model, data = network()
    H = spectral.Hessian(model, nn.CrossEntropyLoss(), data, engine="fresh")
    J = spectral.Jacobian(model, data, engine="fresh")
    s = spectral.slq(A, probes=3, steps=25, seed=seed)
    k = spectral.kpm(A, probes=2, moments=40, seed=seed)
    h = spectral.slq(H, probes=2, steps=15, seed=seed, deflate=False)
    top = spectral.top(A, 4, seed=seed)
    svd = spectral.svd(J, 3, seed=seed)
    found: dict[str, Any] = {
        "slq": [s.nodes, s.weights, s.atoms.values, s.atoms.multiplicities],
        "slq.cdf": s.cdf(np.linspace(-0.5, 9.5, 9)).value,
        "slq.density": s.density(np.linspace(0, 9, 7)).value,
        "kpm": [k.nodes, k.weights],
        "slq of a Hessian": [h.nodes, h.weights],
        "top": [top.values, top.residuals],
        "svd": [svd.values],
    }
    for method in ("hutchinson", "hutch++", "xtrace", "xnystrace", "slq"):
        e = spectral.trace(A, method=method, probes=12, seed=seed)
        found[f"trace {method}"] = [e.value, e.stderr]
    for method in ("hutchinson", "xdiag"):
        d = spectral.diagonal(A, method=method, probes=12, seed=seed)
        found[f"diagonal {method}"] = [d.value, d.stderr]
    return {name: plain(value) for name, value in found.items()}


def plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    a = np.asarray(torch.as_tensor(value), dtype=np.float64)
    return a.tolist()


def hexed(value: Any) -> Any:
    return [hexed(v) for v in value] if isinstance(value, list) else float(value).hex()


def floats(value: Any) -> Any:
    return [floats(v) for v in value] if isinstance(value, list) else float.fromhex(value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    now = {str(seed): {name: hexed(v) for name, v in results(seed).items()} for seed in SEEDS}
    if "--compare" in sys.argv:
        then = json.loads(FILE.read_text())
        changed = sorted({name for seed in then for name in then[seed] if now[seed][name] != then[seed][name]})
        print("changed:", ", ".join(changed) or "nothing")
        sys.exit(bool(changed))
    FILE.write_text(json.dumps(now, indent=0) + "\n")
