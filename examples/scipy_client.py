"""Between scipy and networks: a LinearOperator in, a LinearOperator out.

One learns that whatever multiplies is an operator here (`as_operator`: a sparse Laplacian of a grid, whose spectrum has a closed
form to be held against), that an operator of a network is one of scipy's (`to_scipy`), and that scipy's `eigsh` and `top` agree
on its largest eigenvalues; `top` also finds the copies of a multiple eigenvalue and measures every residual.

    python examples/scipy_client.py [FOLDER]     # about 10 s; writes scipy_client.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import nn

import spectral

SIDE = 60  # of the grid


def grid_laplacian() -> tuple[scipy.sparse.linalg.LinearOperator, np.ndarray]:
    """The Laplacian of a square grid as scipy's operator, and its eigenvalues 4 - 2 cos(pi i/s) - 2 cos(pi j/s)."""
    line = scipy.sparse.diags_array(
        [-np.ones(SIDE - 1), 2 * np.ones(SIDE), -np.ones(SIDE - 1)], offsets=[-1, 0, 1]
    ).tolil()
    line[0, 0] = line[-1, -1] = 1.0
    one = scipy.sparse.eye_array(SIDE)
    L = scipy.sparse.csr_array(scipy.sparse.kron(line, one) + scipy.sparse.kron(one, line))
    each = 2 - 2 * np.cos(np.pi * np.arange(SIDE) / SIDE)
    return scipy.sparse.linalg.aslinearoperator(L), np.sort((each[:, None] + each).ravel())


def network() -> spectral.Hessian:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 5)).double()
    x, y = torch.randn(200, 10, dtype=torch.float64), torch.randint(5, (200,))
    return spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, y)])


def main(folder: Path) -> None:
    laplacian, truth = grid_laplacian()
    spectrum = spectral.slq(laplacian, probes=4, steps=80, progress=False)
    band, within = spectrum.count(1.0, 3.0), int(((truth > 1.0) & (truth <= 3.0)).sum())
    print(
        f"grid: {band.value:.0f} eigenvalues in (1, 3], 95 % sure of {band.lower:.0f} to {band.upper:.0f}; truth {within}"
    )

    H = network()
    ours = spectral.top(H, 6, progress=False)
    print(f"top:   {ours}")
    before = H.products
    theirs = scipy.sparse.linalg.eigsh(H.to_scipy(), k=6, which="LA", return_eigenvectors=False)[::-1]
    print(f"eigsh: {', '.join(f'{value:.6g}' for value in theirs)}; {H.products - before} products")
    print(f"largest difference, relative: {np.abs(theirs - ours.values).max() / ours.values[0]:.1e}")

    _, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
    x = np.linspace(0, 8, 400)
    shown = spectrum.cdf(x)
    axes[0].plot(x, np.searchsorted(truth, x, side="right") / len(truth), "k", lw=1, label="closed form")
    axes[0].plot(x, shown.value, label="slq, 320 products")
    axes[0].fill_between(x, shown.lower, shown.upper, alpha=0.3, label="95 %")
    axes[0].set(title="CDF of a grid's Laplacian", xlabel="$\\lambda$")
    axes[0].legend()
    axes[1].errorbar(
        np.arange(1, 7), ours.values, yerr=ours.residuals, fmt="o", mfc="none", ms=9, label="top, ± residual"
    )
    axes[1].plot(np.arange(1, 7), theirs, "x", label="scipy's eigsh")
    axes[1].set(title="largest eigenvalues of a Hessian", xlabel="which", ylabel="$\\lambda$")
    axes[1].legend()
    axes[0].figure.tight_layout()
    axes[0].figure.savefig(folder / "scipy_client.png", dpi=100)
    print(folder / "scipy_client.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
