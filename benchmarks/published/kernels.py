"""Rows about random features and tangent kernels: of isotropic inputs, and of the circle and the sphere."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import spectral
from published.measured import Measured, eigenvalues, over_seeds
from spectral.analysis import theory

Row = dict[str, Measured]
FEATURES, NTK = (600, 400, 1200), (240, 240, 400)  # samples, features, neurons
CIRCLE, SPHERE = 800, 800  # points: every one has its antipode among them


def isotropic(n: int, d: int, seed: int) -> torch.Tensor:
    """n points of length √d, uniform on the sphere."""
    X = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return X * np.sqrt(d) / X.norm(dim=1, keepdim=True)


class Standardised(nn.Module):
    """An activation of mean 0 and variance 1 on N(0, 1): numbers by 10^6 quantiles."""

    def __init__(self, function) -> None:
        super().__init__()
        z = torch.special.ndtri((torch.arange(10**6, dtype=torch.float64) + 0.5) / 10**6)
        self.function, self.mean, self.scale = function, float(function(z).mean()), float(function(z).std())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.function(x) - self.mean) / self.scale


class TwoLayers(nn.Module):
    """x ↦ Σ_j v_j σ(w_j·x/√d) · gain/√N, all weights N(0, 1)."""

    def __init__(self, d: int, N: int, activation, seed: int, gain: float = 1.0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1000 + seed)
        self.W = nn.Parameter(torch.randn(N, d, dtype=torch.float64, generator=g))
        self.v = nn.Parameter(torch.randn(N, dtype=torch.float64, generator=g))
        self.activation, self.gain = activation, gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        N, d = self.W.shape
        return (self.activation(x @ self.W.T / d**0.5) @ self.v * self.gain / N**0.5)[:, None]


FUNCTIONS = {"relu": torch.relu, "tanh": torch.tanh, "abs": torch.abs}


def random_features() -> Row:
    (n, d, N), row = FEATURES, {}
    for name, function in FUNCTIONS.items():
        law, activation = theory.random_features(n, d, N, name), Standardised(function)
        distances, tops = [], []
        for seed in range(4):
            model = TwoLayers(d, N, activation, seed)
            measured = spectral.exact(spectral.Jacobian(model, [isotropic(n, d, seed)], params=["v"]))
            distances.append(float(measured.distance(law)))
            tops.append(eigenvalues(measured)[:2])
        row[f"{name}: W1 distance from the law, of mean 1"] = over_seeds(distances)
        if name == "abs":
            above, below = np.array(tops).T
            row["abs: the eigenvalue outside of the bulk"] = over_seeds(above)
            row["abs: the next, at the edge of the bulk"] = over_seeds(below)
    return row


def linear_width_ntk() -> Row:
    (n, d, N), distances, means = NTK, [], []
    law = theory.linear_width_ntk(n, d, N, "tanh")
    for seed in range(4):
        model = TwoLayers(d, N, Standardised(torch.tanh), seed)
        model.v.data.sign_()  # of variance 1 too, without a chance of its own in |v|²
        measured = spectral.exact(spectral.Jacobian(model, [isotropic(n, d, seed)]))
        distances.append(float(measured.distance(law)) / float(law.moment(1)))
        means.append(float(measured.moment(1)) / float(law.moment(1)))
    return {"W1 distance from the law, over its mean": over_seeds(distances), "mean over the law's": over_seeds(means)}


def circle(n: int) -> torch.Tensor:
    """n points spread evenly over the unit circle."""
    angle = torch.arange(n, dtype=torch.float64) * 2 * torch.pi / n
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def sphere(n: int) -> torch.Tensor:
    """n points of the unit sphere: n/2 on a spiral by the golden angle over one half, and their antipodes."""
    i = torch.arange(n // 2, dtype=torch.float64) + 0.5
    z, angle = i / (n // 2), i * np.pi * (3 - 5**0.5)
    half = torch.stack([(1 - z**2).sqrt() * angle.cos(), (1 - z**2).sqrt() * angle.sin(), z], dim=1)
    return torch.cat([half, -half])


def relu_jacobian(X: torch.Tensor, width: int, seed: int) -> torch.Tensor:
    """Rows J_i/√(k d n), flattened, of x ↦ relu(Wx): 1[w_h·x_i > 0] w_h for each unit h; their Gram tends to (π − θ_ij)/2πn."""
    n, d = X.shape
    W = torch.randn(width, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return ((X @ W.T > 0).double()[:, :, None] * W).reshape(n, -1) / (n * width * d) ** 0.5


def zeros_of(spectrum: spectral.Spectrum) -> float:
    """How many eigenvalues cannot be told from 0."""
    return float(np.sum(eigenvalues(spectrum) <= spectrum.rounding))


def exponent(spectra: list[spectral.Spectrum], xmin: float | None = None) -> Measured:
    """The mean alpha, with the sigma of one fit: the kernel is the same for all seeds."""
    fits = [spectral.power_law(s, xmin=xmin) for s in spectra]
    accepted, tail = sum(f.accepted for f in fits), np.mean([f.tail for f in fits])
    note = f"{accepted} of {len(fits)} accepted, {tail:.0f} eigenvalues"
    return Measured(float(np.mean([f.alpha for f in fits])), float(np.mean([f.sigma for f in fits])), note)


def relu_circle() -> Row:
    spectra = [spectral.exact(relu_jacobian(circle(CIRCLE), 16_000, seed)) for seed in range(3)]
    top = np.array([eigenvalues(s)[:5] for s in spectra])
    return {
        "eigenvalue of frequency 0": over_seeds(top[:, 0]),
        "of frequency 1, mean of two": over_seeds(top[:, 1:3].mean(1)),
        "of frequency 3, mean of two": over_seeds(top[:, 3:5].mean(1)),
        "eigenvalues that are 0": Measured(float(np.mean([zeros_of(s) for s in spectra])), 0.0, f"of {CIRCLE}"),
        "alpha": exponent(spectra),
    }


def resolved(n: int) -> float:
    """An eigenvalue just below the harmonics that n points tell apart: odd degrees k ≤ √n/2, as the points integrate 2k."""
    degree = int(n**0.5 / 2 - 1) // 2 * 2 + 1
    law = theory.relu_kernel_on_sphere(3, degree + 2).atoms.values
    return float((law[0] * law[1]) ** 0.5)


def relu_sphere() -> Row:
    spectra = [spectral.exact(relu_jacobian(sphere(SPHERE), 10_000, seed)) for seed in range(3)]
    top = np.array([eigenvalues(s)[:11] for s in spectra])
    return {
        "eigenvalue of degree 0": over_seeds(top[:, 0]),
        "of degree 1, mean of three": over_seeds(top[:, 1:4].mean(1)),
        "of degree 3, mean of seven": over_seeds(top[:, 4:].mean(1)),
        "eigenvalues that are 0": Measured(float(np.mean([zeros_of(s) for s in spectra])), 0.0, f"of {SPHERE}"),
        "alpha": exponent(spectra, resolved(SPHERE)),
    }


def ntk_circle() -> Row:
    n, width, spectra = 240, 3000, []
    for seed in range(6):
        model = TwoLayers(2, width, torch.relu, seed, gain=2**0.5)
        J = spectral.Jacobian(model, [circle(n) * 2**0.5])  # of length √d
        spectra.append(spectral.exact(J.gram("left") / n))
    top = np.array([eigenvalues(s)[:5] for s in spectra])
    return {
        "eigenvalue of frequency 0": over_seeds(top[:, 0]),
        "of frequency 1, mean of two": over_seeds(top[:, 1:3].mean(1)),
        "of frequency 2, mean of two": over_seeds(top[:, 3:5].mean(1)),
        "eigenvalues that are 0": Measured(float(np.mean([zeros_of(s) for s in spectra])), 0.0, f"of {n}"),
        "alpha": exponent(spectra),
    }
