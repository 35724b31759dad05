"""Expected numbers and finite-size terms of `expected.json` that follow from a formula, as that formula.

`python benchmarks/published/arguments.py` prints them; a test holds the file to them. What is not here is a published number by
itself, or an inequality.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import digamma

from spectral import Spectrum, power_law
from spectral.analysis import theory

sys.path.insert(0, str(Path(__file__).parents[1]))
from published import initialisation, kernels, random_matrices

Argument = tuple[str, str, float, float]  # row, quantity, expected, finite_size
TRACY_WIDOM = 1.2065  # minus the mean of the law for real matrices


def _edge(n: int, d: int) -> tuple[float, float]:
    """How far the mean largest and smallest eigenvalue of XᵀX/n are from λ₊ and λ₋, by Johnstone's (2001) centre and scale."""
    big, small = np.sqrt(n - 1) + np.sqrt(d), np.sqrt(n - 1) - np.sqrt(d)
    lower, upper = theory.marchenko_pastur_edges(d / n)
    scale = big * (1 / np.sqrt(n - 1) + 1 / np.sqrt(d)) ** (1 / 3) / n
    low_scale = small * (1 / np.sqrt(d) - 1 / np.sqrt(n - 1)) ** (1 / 3) / n
    return abs(big**2 / n - TRACY_WIDOM * scale - upper), abs(small**2 / n + TRACY_WIDOM * low_scale - lower)


def covariances() -> Iterator[Argument]:
    n, d, gamma = random_matrices.SAMPLES, random_matrices.FEATURES, random_matrices.GAMMA
    high, low = _edge(n, d)
    lower, upper = theory.marchenko_pastur_edges(gamma)
    yield "marchenko_pastur", "largest eigenvalue", upper, high
    yield "marchenko_pastur", "smallest eigenvalue", lower, low
    yield "bbp", "largest eigenvalue, strength 0.5", upper, high
    for strength in (1.5, 3.0):
        yield "bbp", f"largest eigenvalue, strength {strength:g}", theory.spike_location(strength, gamma), 10 / n


def products() -> Iterator[Argument]:
    width = 600
    for L in (1, 2, 4, 8):
        edge = theory.gaussian_product_edge(L)
        # near the edge the density is A √(edge − x)/π: from the law's parametrisation at φ → 0
        A = L ** (L - 1) / (L + 1) ** L / np.sqrt(edge * L * (L + 1) / 2)
        shift = TRACY_WIDOM * (A * width) ** (-2 / 3)
        yield "fuss_catalan", f"largest eigenvalue, {L} layers", edge, shift * (1 + width ** (-1 / 3))
    for i in (1, 5, 10):
        yield "gaussian_exponents", f"exponent {i} of 10", float(digamma((10 - i + 1) / 2) + np.log(2 / 10)) / 2, 0.0


def linear_rnn() -> Iterator[Argument]:
    """After T steps the logarithms of the first i exponents' volume are off by at most ln κ(Λ^i V), V the eigenvectors."""
    n, T, worst, first = random_matrices.UNITS, random_matrices.STEPS, 0.0, 0.0
    for seed in range(4):
        V = np.linalg.eig(random_matrices.linear_network(1, n, seed)[0].weight.detach().numpy())[1]
        s = np.log(np.linalg.svd(V, compute_uv=False))
        volumes = np.concatenate([[0.0], np.cumsum(s - s[::-1])])
        worst, first = max(worst, float((volumes[1:] + volumes[:-1]).max())), max(first, float(volumes[1]))
    yield "linear_rnn", "largest exponent, less ln |eigenvalue|", 0.0, first / T
    yield "linear_rnn", "farthest exponent of all", 0.0, worst / T


def isometry() -> Iterator[Argument]:
    q, _ = theory.critical_point("tanh", initialisation.CRITICAL**0.5)
    for row, activation, weights, at in (
        ("isometry_gaussian", "linear", "gaussian", 1.0),
        ("isometry_relu_gaussian", "relu", "gaussian", 1.0),
        ("isometry_relu_orthogonal", "relu", "orthogonal", 1.0),
        ("isometry_orthogonal", "linear", "orthogonal", 1.0),
        ("isometry_tanh_critical", "tanh", "orthogonal", q),
    ):
        for L in initialisation.DEPTHS:
            law = theory.jacobian_variance(L, activation, weights, q=at)
            finite = abs(theory.jacobian_variance(L, activation, weights, q=at, width=initialisation.WIDTH) - law)
            correlated = 0.0 if activation == "linear" else L / initialisation.WIDTH * law
            yield row, f"{L} layer" + "s" * (L > 1), law, finite + correlated


def fisher() -> Iterator[Argument]:
    widths, n = initialisation.FISHER_WIDTHS, initialisation.FISHER_SAMPLES
    M, C = widths[1], widths[-1]
    alpha_M = sum(a * b for a, b in pairwise(widths[:-1])) / M
    for name, scales in initialisation.FISHER.items():
        counted = theory.mean_field_fisher(widths, n, name, **scales)
        mean, top = counted.kappa_1 * C / M, alpha_M * ((n - 1) * counted.kappa_2 + counted.kappa_1) / n
        layers = 2 * (len(widths) - 1) / M
        yield "karakida", f"{name}: mean eigenvalue", mean, abs(counted.mean - mean) + layers * mean
        quantity = f"{name}: the largest, mean of the 4 of the outputs"
        yield "karakida", quantity, top, abs(counted.largest - top) + layers * top


def _softmax(a: int, b: int, C: int) -> float:
    """E p_1^a p_2^b of the softmax of C independent N(0, 1), from 1/S^k = ∫ t^(k−1) e^(−tS) dt/(k − 1)!."""
    z, w = hermegauss(120)
    t = np.exp(np.linspace(-40, 10, 2001))
    kernel = np.exp(-np.outer(t, np.exp(z))) * w / np.sqrt(2 * np.pi)
    means = [kernel @ np.exp(k * z) for k in (a, b, 0)]  # E e^(kz − t e^z)
    rest = C - (a > 0) - (b > 0)
    product = means[0] * (means[1] if b else 1.0) * means[2] ** rest
    return float(t ** (a + b) @ product) * 50 / 2000 / math.factorial(a + b - 1)


def softmax_blocks() -> Iterator[Argument]:
    """The blocks H_ij = Σ w_n x_n x_nᵀ / n of multinomial logistic regression (Böhning 1992), w = −p_i p_j off the diagonal and
    p_i (1 − p_i) on it. With x ~ N(0, I_d) and w independent of x,

        E ||H_ij||² = Σ_nm E w_n w_m (x_n·x_m)² / n² = (E w² d (d + 2) + (n − 1) (E w)² d) / n,

    as E |x|⁴ = d (d + 2) and E (x·x')² = d: to leading order d²/n (E w² + (E w)²/γ), γ = d/n, which is the second moment of
    Marchenko and Pastur's law for Σ w x xᵀ. The logits x·W_i are N(0, 1) under LeCun's weights and independent for different i.
    For many classes Σ e^z → C √e, so that E p = 1/C, E p² = e/C², E p_i p_j = 1/C², E p_i² p_j² = e²/C⁴: the ratio of squared
    norms off and on the diagonal is (e² + 1/γ)/(e + 1/γ)/C² = (γe² + 1)/(γe + 1)/C². What is expected here is the same without
    that last step, at C classes (`_softmax`).
    """
    n, d, classes = (initialisation.BLOCKS[name] for name in ("samples", "inputs", "classes"))
    for C in classes:
        off = _softmax(2, 2, C) + _softmax(1, 1, C) ** 2 * n / d
        own = _softmax(2, 0, C) - 2 * _softmax(3, 0, C) + _softmax(4, 0, C)
        ratio = C**2 * off / (own + (_softmax(1, 0, C) - _softmax(2, 0, C)) ** 2 * n / d)
        yield "softmax_blocks", f"C² times the ratio, {C} classes", ratio, 16 / d * ratio


def _moments(name: str) -> dict[str, float]:
    """Of the centred and scaled activation, by the trapezoidal rule on a fine grid: c_2², a, b, E σ′⁴."""
    z = np.linspace(-12, 12, 240_001)
    w = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    f, slope = (g(z) for g in theory.ACTIVATIONS[name])
    f = f - w @ f
    scale = np.sqrt(w @ f**2)
    f, slope = f / scale, slope / scale
    return {"c2": (w @ (f * (z**2 - 1))) ** 2, "a": w @ slope**2, "b": w @ slope, "fourth": w @ slope**4}


def _spread(law: Spectrum, delta: float) -> Spectrum:
    """The law after a symmetric perturbation of standard deviation delta: half of each eigenvalue at ± delta."""
    values, counts = law.points()
    values = np.repeat(values, np.round(counts).astype(int))
    return Spectrum.from_eigenvalues(np.sort(np.concatenate([values - delta, values + delta])))


def features() -> Iterator[Argument]:
    n, d, N = kernels.FEATURES
    for name in kernels.FUNCTIONS:
        law = theory.random_features(n, d, N, name)
        # What Σ holds beyond the linear term and the direction of the second: (c_2²/2)(ρ_ij² − 1/d), of variance 2/d² an entry
        delta = _moments(name)["c2"] / 2 * np.sqrt(2 * n) / d
        yield (
            "random_features",
            f"{name}: W1 distance from the law, of mean 1",
            0.0,
            float(_spread(law, delta).distance(law)) + 4 / n,
        )
    strength = _moments("abs")["c2"] / 2 * n / d
    top, gamma = theory.spike_location(strength, n / N), n / N
    moved = (1 - gamma / strength**2) * (delta**2 / strength + strength / d)
    yield "random_features", "abs: the eigenvalue outside of the bulk", top, moved + 10 / n
    edge = theory.marchenko_pastur_edges(gamma)[1]
    yield "random_features", "abs: the next, at the edge of the bulk", edge, _edge(N, n)[0] + delta**2 * edge


def tangent_kernels() -> Iterator[Argument]:
    n, d, N = kernels.NTK
    m, law = _moments("tanh"), theory.linear_width_ntk(n, d, N, "tanh")
    # entries of the first layer's part are means over N neurons of σ′σ′ρ: their noise, off and on the diagonal
    delta = np.sqrt(n * (m["a"] ** 2 - m["b"] ** 4) / (N * d) + (m["fourth"] - m["a"] ** 2) / N)
    mean = float(law.moment(1))
    yield (
        "linear_width_ntk",
        "W1 distance from the law, over its mean",
        0.0,
        float(_spread(law, delta).distance(law)) / mean + 4 / n,
    )
    yield "linear_width_ntk", "mean over the law's", 1.0, 4 / n


def _kernel(
    row: str,
    gram: np.ndarray,
    law: np.ndarray,
    names: tuple[str, ...],
    alpha: float,
    sizes: tuple[int, ...],
    rest: float,
    xmin: float | None = None,
) -> Iterator[Argument]:
    """How far eigenvalues and alpha of the mean kernel at these points are off the law; `rest`, relative, is for the width."""
    values, start = np.linalg.eigvalsh(gram / len(gram))[::-1], 0
    for name, size in zip(names, sizes, strict=True):
        found, expected = values[start : start + size].mean(), float(law[start])
        yield row, name, expected, abs(found - expected) + rest * expected
        start += size
    fit = power_law(Spectrum.from_eigenvalues(values[values > 1e-12], zeros=int((values <= 1e-12).sum())), xmin=xmin)
    yield row, "alpha", alpha, abs(fit.alpha - alpha)


def circle_and_sphere() -> Iterator[Argument]:
    for row, X, p, sizes, names, alpha, width in (
        ("relu_circle", kernels.circle(kernels.CIRCLE), 2, (1, 2, 2),
         ("eigenvalue of frequency 0", "of frequency 1, mean of two", "of frequency 3, mean of two"), 1.5, 16_000),
        ("relu_sphere", kernels.sphere(kernels.SPHERE), 3, (1, 3, 7),
         ("eigenvalue of degree 0", "of degree 1, mean of three", "of degree 3, mean of seven"), 5 / 3, 10_000),
    ):  # fmt: skip
        spectrum = theory.relu_kernel_on_sphere(p, 3)
        law, xmin = np.repeat(*spectrum.atoms)[::-1], kernels.resolved(len(X)) if p == 3 else None
        yield from _kernel(row, theory.relu_gram(X.numpy(), 1) / p, law, names, alpha, sizes, 10 / width, xmin)
        yield row, "eigenvalues that are 0", len(X) / 2 - 1, 0.0
    n, spectrum = 240, theory.two_layer_ntk_on_circle(2)
    theta = np.abs((np.arange(n) * 2 * np.pi / n + np.pi) % (2 * np.pi) - np.pi)
    row_of = (2 * np.cos(theta) * (np.pi - theta) + np.sin(theta)) / np.pi  # u κ_0 + κ_1
    gram = row_of[np.abs(np.subtract.outer(np.arange(n), np.arange(n)))]
    law = np.repeat(*spectrum.atoms)[::-1]
    names = ("eigenvalue of frequency 0", "of frequency 1, mean of two", "of frequency 2, mean of two")
    yield from _kernel("ntk_circle", gram, law, names, 1.5, (1, 2, 2), 10 / 3000)
    yield "ntk_circle", "eigenvalues that are 0", float(theory.two_layer_ntk_on_circle(n // 2).zeros), 0.0


def noise() -> Iterator[Argument]:
    law = np.log10(theory.sample_covariance([1.0], 0.784, 784).atoms.values)[78:-78]
    yield "yang", "decades that they span", float(law[-1] - law[0]), 0.0


CHEAP = (covariances, products, linear_rnn, isometry, fisher, softmax_blocks, noise)
ALL = (*CHEAP, features, tangent_kernels, circle_and_sphere)

if __name__ == "__main__":
    for row, quantity, expected, finite in (line for argument in ALL for line in argument()):
        print(f"{row:26} {quantity:60} {expected:12.6g} {finite:12.3g}")
