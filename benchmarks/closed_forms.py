"""Closed forms beside measured spectra: how far apart, and one picture.

    python benchmarks/closed_forms.py [--pictures docs/images] [--table docs/theory.md]

Each law of `spectral.analysis.theory` that is a spectrum, and the eigenvalues of one random matrix or network of the size that it
is for: the W1 distance over the mean, and KS, the largest difference of the two CDFs. About a minute of one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from papers import into
from published import kernels, random_matrices
from published.measured import eigenvalues

import spectral
from spectral.analysis import theory


class Pair(NamedTuple):
    """A law with a measured spectrum; `stems` where both are lists of eigenvalues."""

    title: str
    of: str
    law: spectral.Spectrum
    measured: spectral.Spectrum
    scale: str = "linear"


def pairs() -> list[Pair]:
    """One of each law."""
    found = []
    for layers in (1, 2, 4):
        net = random_matrices.linear_network(layers, 600, 0)
        J = spectral.Jacobian(net, [torch.ones(1, 600).double()], wrt="inputs")
        title = f"product of {layers} Gaussian layer" + "s" * (layers > 1)
        found.append(
            Pair(title, "input Jacobian, width 600", theory.gaussian_product(layers, 600), spectral.exact(J), "log")
        )
    tau = np.repeat([0.2, 1.0, 6.0], [150, 250, 100])
    Z = np.random.default_rng(0).standard_normal((500, 2500)) * np.sqrt(tau)[:, None]
    measured = spectral.exact(spectral.as_operator(Z / 2500**0.5))
    found.append(
        Pair("sample covariance", "population .2, 1 and 6; 500 x 2500", theory.sample_covariance(tau, 0.2), measured)
    )
    n, d, N = kernels.FEATURES
    for name, function in kernels.FUNCTIONS.items():
        model = kernels.TwoLayers(d, N, kernels.Standardised(function), 0)
        measured = spectral.exact(spectral.Jacobian(model, [kernels.isotropic(n, d, 0)], params=["v"]))
        found.append(
            Pair(
                f"random features, {name}",
                f"n = {n}, d = {d}, {N} neurons",
                theory.random_features(n, d, N, name),
                measured,
            )
        )
    n, d, N = kernels.NTK
    model = kernels.TwoLayers(d, N, kernels.Standardised(torch.tanh), 0)
    measured = spectral.exact(spectral.Jacobian(model, [kernels.isotropic(n, d, 0)]))
    found.append(
        Pair(
            "tangent kernel, linear width, tanh",
            f"n = d = {n}, {N} neurons",
            theory.linear_width_ntk(n, d, N),
            measured,
        )
    )
    for p, points in ((2, kernels.circle(400)), (3, kernels.sphere(800))):
        degree = next(k for k in range(400) if theory.relu_kernel_on_sphere(p, k).dim >= len(points))
        measured = spectral.exact(kernels.relu_jacobian(points, 8000, 0))
        title = "ReLU kernel on the " + ("circle" if p == 2 else "sphere")
        found.append(
            Pair(title, f"{len(points)} points, 8000 units", theory.relu_kernel_on_sphere(p, degree), measured, "log")
        )
    model = kernels.TwoLayers(2, 3000, torch.relu, 0, gain=2**0.5)
    measured = spectral.exact(spectral.Jacobian(model, [kernels.circle(240) * 2**0.5]).gram("left") / 240)
    found.append(
        Pair(
            "tangent kernel on the circle",
            "240 points, 3000 units",
            theory.two_layer_ntk_on_circle(120),
            measured,
            "log",
        )
    )
    return found


def table(found: list[Pair]) -> str:
    """Markdown: how far each is from its law."""
    lines = ["| law | measured | W1 over the mean | KS |", "|---|---|---|---|"]
    for pair in found:
        w1 = float(pair.measured.distance(pair.law)) / float(pair.law.moment(1))
        lines.append(f"| {pair.title} | {pair.of} | {w1:.2g} | {float(pair.measured.distance(pair.law, 'ks')):.2g} |")
    return "\n".join(lines) + "\n"


INK, BAR = "#D55E00", "#56B4E9"  # Okabe and Ito's, told apart by all eyes


def picture(found: list[Pair], folder: Path) -> None:
    """closed_forms.png: laws as lines over histograms, or eigenvalue over its index where they are a list."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 4, figsize=(17, 11), layout="constrained")
    for ax in axes.flat[len(found) :]:
        ax.axis("off")
    for ax, pair in zip(axes.flat, found, strict=False):
        ax.set_title(f"{pair.title}\n{pair.of}", fontsize=11)
        (_ranks if pair.scale == "log" else _densities)(ax, pair)
        ax.grid(alpha=0.25)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[-1].legend(handles, labels, loc="center", fontsize=12, frameon=False)
    figure.savefig(folder / "closed_forms.png", dpi=90)
    plt.close(figure)


def _ranks(ax: Any, pair: Pair) -> None:
    measured, law = (v[v > 1e-9 * v[0]] for v in (eigenvalues(pair.measured), eigenvalues(pair.law)))
    ax.loglog(np.arange(1, len(measured) + 1), measured, "o", ms=4, color=BAR, mew=0, label="measured")
    ax.loglog(np.arange(1, len(law) + 1), law, "-", lw=1.5, color=INK, label="closed form")
    ax.set(xlabel="index", ylabel="λ")


def _densities(ax: Any, pair: Pair) -> None:
    measured, law = (v[v > 1e-9 * v[0]] for v in (eigenvalues(pair.measured), eigenvalues(pair.law)))
    high = max(measured[0], law[0]) * 1.03
    edges = np.linspace(0, high, 61)
    ax.hist(measured, edges, color=BAR, weights=np.full(len(measured), 1 / (pair.measured.dim * (edges[1] - edges[0]))))
    x, each = law[::-1], 8  # eigenvalues in a cell of the law's density, but for what stands alone at the top
    bulk = x if x[-1] - x[-2] < 4 * (x[-2] - x[-3]) else x[:-1]
    ends = np.unique(np.append(bulk[::each], bulk[-1]))
    widths, counts = np.diff(ends), np.diff(np.searchsorted(bulk, ends, side="left"))
    gap = np.r_[False, (widths[1:-1] > 4 * widths[:-2]) & (widths[1:-1] > 4 * widths[2:]), False]
    ax.plot((ends[1:] + ends[:-1]) / 2, np.where(gap, np.nan, counts / widths / pair.law.dim), color=INK, lw=1.8)
    if len(bulk) < len(x):
        ax.plot(x[-1], 0, "^", ms=12, color=INK, clip_on=False)
    ax.set(xlabel="λ", ylabel="density", xlim=(0, high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", metavar="FOLDER", type=Path, help="draw closed_forms.png there")
    parser.add_argument(
        "--table", metavar="FILE", type=Path, help="write the table as Markdown, between a page's marks"
    )
    options = parser.parse_args()
    found = pairs()
    print(table(found))
    if options.table:
        into(options.table, table(found))
    if options.pictures:
        picture(found, options.pictures)


if __name__ == "__main__":
    main()
