"""Rows about matrices without a network: covariance, products of layers, a linear recurrence, planted tails and spikes."""

from __future__ import annotations

import numpy as np
import scipy
import torch
from torch import nn

import spectral
from published.measured import Measured, eigenvalues, farthest, over_seeds
from spectral.analysis import theory

Row = dict[str, Measured]
GAMMA, SAMPLES = 0.5, 1000
FEATURES = int(GAMMA * SAMPLES)


def covariance(seed: int, strengths: tuple[float, ...] = ()) -> spectral.Operator:
    """X/√n, 1000 x 500, rows N(0, Σ), Σ the identity with 1 + ℓ for each strength ℓ."""
    X = np.random.default_rng(seed).standard_normal((SAMPLES, FEATURES))
    X[:, : len(strengths)] *= np.sqrt(1 + np.array(strengths))
    return spectral.as_operator(X / np.sqrt(SAMPLES))


def marchenko_pastur() -> Row:
    points = theory.sample_covariance([1.0], GAMMA, 3).atoms.values  # where the law is 1/6, 1/2 and 5/6
    shares, edges, sigmas = [], [], []
    for seed in range(6):
        A = covariance(seed)
        spectrum = spectral.slq(A, probes=4, steps=60, seed=seed, progress=False)
        shares.append(spectrum.cdf(points).value)
        edges.append(
            [spectral.top(A, 1, which=end, tol=1e-6, progress=False).values[0] for end in ("largest", "smallest")]
        )
        sigmas.append(spectral.marchenko_pastur(spectral.exact(A), ratio=GAMMA).sigma)
    shares, edges = np.array(shares), np.array(edges)
    return {
        "share of the eigenvalues below the law's first sixth": over_seeds(shares[:, 0]),
        "share below its median": over_seeds(shares[:, 1]),
        "share below its last sixth": over_seeds(shares[:, 2]),
        "largest eigenvalue": over_seeds(edges[:, 0]),
        "smallest eigenvalue": over_seeds(edges[:, 1]),
        "sigma of the fitted law": over_seeds(sigmas),
    }


def bbp() -> Row:
    row, seeds = {}, 8
    for strength in (0.5, 1.5, 3.0):
        spectra = [spectral.exact(covariance(100 + seed, (strength,))) for seed in range(seeds)]
        found = [spectral.outliers(spectrum) for spectrum in spectra]
        row[f"largest eigenvalue, strength {strength:g}"] = over_seeds([eigenvalues(s)[0] for s in spectra])
        row[f"outliers, strength {strength:g}"] = farthest([o.count for o in found], float(strength > GAMMA**0.5))
    return row


def planted_spikes() -> Row:
    strengths, seeds = (1.5, 2.5, 4.0, 6.0, 9.0), 5
    found = [spectral.outliers(spectral.exact(covariance(200 + seed, strengths))) for seed in range(seeds)]
    by_slq = [
        spectral.outliers(spectral.slq(covariance(200 + seed, strengths[2:]), probes=2, steps=100, progress=False))
        for seed in range(seeds)
    ]
    return {
        "spikes found of 5": farthest([o.count for o in found], 5),
        "by slq, of the 3 far ones": farthest([o.count for o in by_slq], 3, str([str(o) for o in by_slq])),
    }


def linear_network(layers: int, width: int, seed: int) -> nn.Sequential:
    """Square Gaussian layers, entries N(0, 1/width)."""
    net = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers))).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in net:
            layer.weight.normal_(0.0, width**-0.5, generator=generator)
    return net


def fuss_catalan() -> Row:
    row, width = {}, 600
    for layers in (1, 2, 4, 8):
        largest = []
        for seed in range(6):
            J = spectral.Jacobian(linear_network(layers, width, seed), [torch.ones(1, width).double()], wrt="inputs")
            largest.append(spectral.top(J.gram(), 1, tol=1e-6, progress=False).values[0])
        row[f"largest eigenvalue, {layers} layers"] = over_seeds(largest)
    return row


def lyapunov_exponents(factors, n: int, burn: int = 0) -> np.ndarray:
    """Benettin's method: (steps, n) logarithms of diag R where Q_{t+1} R_{t+1} = A_t Q_t, without the first `burn`."""
    Q, logs = torch.linalg.qr(torch.eye(n, dtype=torch.float64))[0], []
    for A in factors:
        Q, R = torch.linalg.qr(A @ Q)
        logs.append(R.diagonal().abs().log().numpy())
    return np.array(logs[burn:])


UNITS, BURN, STEPS = 24, 200, 1000  # of the linear recurrence


def linear_rnn() -> Row:
    n, gaps, largest = UNITS, [], []
    for seed in range(4):
        cell = linear_network(1, n, seed)
        A = spectral.Jacobian(cell, [torch.zeros(1, n).double()], wrt="inputs")
        found = lyapunov_exponents((A for _ in range(BURN + STEPS)), n, burn=BURN).mean(0)
        truth = np.sort(np.log(np.abs(np.linalg.eigvals(cell[0].weight.detach().numpy()))))[::-1]
        gaps.append(np.abs(found - truth).max())
        largest.append(found[0] - truth[0])
    return {
        "largest exponent, less ln |eigenvalue|": Measured(float(np.mean(largest)), 0.0),
        "farthest exponent of all": Measured(float(np.max(gaps)), 0.0, f"of {n} exponents and 4 matrices"),
    }


def gaussian_exponents() -> Row:
    n, steps = 10, 3000
    rng = np.random.default_rng(0)
    factors = (spectral.as_operator(torch.from_numpy(rng.standard_normal((n, n)) / np.sqrt(n))) for _ in range(steps))
    logs = lyapunov_exponents(factors, n)
    return {f"exponent {i + 1} of {n}": over_seeds(logs[:, i]) for i in (0, 4, 9)}


def planted(alpha: float, n: int = 4000) -> np.ndarray:
    """Half a uniform bulk below 1, half a Pareto tail from 1 on: the quantiles, a sample without noise."""
    q = (np.arange(n // 2) + 0.5) / (n // 2)
    return np.concatenate([0.01 + 0.99 * q, (1 - q) ** (-1 / (alpha - 1))])


def _by_slq(values: np.ndarray, seed: int) -> spectral.Spectrum:
    return spectral.slq(scipy.sparse.diags(values), probes=4, steps=100, seed=seed, progress=False)


def _planted(fit: spectral.analysis.PowerLaw) -> Measured:
    """Quantiles have no noise: alpha is held to the tolerance alone, whatever sigma is."""
    return Measured(
        fit.alpha, 0.0 if fit.accepted else np.nan, fit.reason or f"sigma {fit.sigma:.2g}, {fit.tail:.0f} eigenvalues"
    )


def planted_tails() -> Row:
    row = {}
    for alpha in (1.8, 2.5, 3.5):
        values = planted(alpha)
        fit = spectral.power_law(spectral.Spectrum.from_eigenvalues(values))
        row[f"alpha {alpha:g}, all eigenvalues"] = _planted(fit)
        fits = [spectral.power_law(_by_slq(values, seed)) for seed in range(3)]
        far = max(fits, key=lambda f: (not f.accepted, abs(f.alpha - alpha)))
        row[f"alpha {alpha:g}, 100 steps, the farthest of 3 seeds"] = _planted(far)
    q = (np.arange(4000) + 0.5) / 4000
    others = {
        "exponential": -np.log(1 - q),
        "Marchenko-Pastur": theory.sample_covariance([1.0], 0.5, 4000).atoms.values,
        "a Pareto of .8 decades": (1 - q * (1 - 10 ** (-0.8 * 1.5))) ** (-1 / 1.5),
    }
    for name, values in others.items():
        fits = [spectral.power_law(s) for s in (spectral.Spectrum.from_eigenvalues(values), _by_slq(values, 0))]
        row[f"{name}: fits accepted, exact and by slq"] = Measured(
            float(sum(f.accepted for f in fits)), 0.0, " / ".join(f.reason for f in fits)
        )
    return row
