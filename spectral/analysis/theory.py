"""Closed-form spectra: what an estimate must reproduce.

Symbols: d features, n samples, k outputs, C classes, γ = d/n the aspect ratio, σ² the variance of one matrix entry,
λ± the edges of the Marchenko–Pastur bulk. Eigenvalues are returned in descending order, as float64.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import ArrayLike

from spectral.results import Array


def _check_bulk(ratio: float, sigma: float) -> None:
    if not (np.isfinite(ratio) and ratio > 0):
        raise ValueError(f"ratio={ratio} is not the shape of a matrix; give γ = d/n > 0.")
    if not (np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma={sigma} is not a standard deviation; give sigma > 0.")


def marchenko_pastur_edges(ratio: float, sigma: float = 1.0) -> tuple[float, float]:
    """Edges of the bulk of XᵀX/n for X (n, d) with independent entries of variance σ²: λ± = σ²(1 ± √γ)², γ = d/n.

    Raises ValueError unless ratio > 0 and sigma > 0. Source: Marchenko & Pastur (1967).

    >>> marchenko_pastur_edges(0.25)
    (0.25, 2.25)
    """
    _check_bulk(ratio, sigma)
    return float(sigma**2 * (1 - np.sqrt(ratio)) ** 2), float(sigma**2 * (1 + np.sqrt(ratio)) ** 2)


def marchenko_pastur_density(x: ArrayLike, ratio: float, sigma: float = 1.0) -> Array:
    """Continuous part of the Marchenko–Pastur density, ρ(λ) = √((λ₊−λ)(λ−λ₋)) / (2πσ²γλ) on [λ₋, λ₊].

    It integrates to min(1, 1/γ): the rest, 1 − 1/γ when γ > 1, is an atom at 0 that a density cannot show.
    `x` of any shape; the result has that shape, per unit of λ. Raises ValueError unless ratio > 0 and sigma > 0.

    >>> marchenko_pastur_density([1.0, 5.0], ratio=1.0).round(6)  # √(1·3)/(2π) at λ = 1, outside at 5
    array([0.275664, 0.      ])
    """
    lower, upper = marchenko_pastur_edges(ratio, sigma)
    x = np.asarray(x, dtype=np.float64)
    inside = (x > lower) & (x < upper)
    safe = np.where(inside, x, 1.0)
    root = np.sqrt(np.clip((upper - safe) * (safe - lower), 0.0, None))
    return np.where(inside, root / (2 * np.pi * sigma**2 * ratio * safe), 0.0)


def marchenko_pastur_cdf(x: ArrayLike, ratio: float, sigma: float = 1.0) -> Array:
    """Fraction of the eigenvalues of XᵀX/n that are at most x, the atom at 0 included, in closed form.

    With R = √((λ₊−x)(x−λ₋)) and γ ≤ 1, the antiderivative of ρ gives
    F = 1/2 + [R/σ² − (1+γ) atan2(λ₊+λ₋−2x, 2R) + (1−γ) atan2(2λ₊λ₋ − x(λ₊+λ₋), 2√(λ₊λ₋) R)] / (2πγ);
    for γ > 1 the positive eigenvalues are those of XXᵀ/n: F = (1 − 1/γ) + F_{1/γ, σ√γ}/γ.
    `x` of any shape. Raises ValueError unless ratio > 0 and sigma > 0.

    >>> marchenko_pastur_cdf([-1.0, 0.0, 9.0], ratio=2.0)  # half of the eigenvalues are 0
    array([0. , 0.5, 1. ])
    """
    lower, upper = marchenko_pastur_edges(ratio, sigma)
    x = np.asarray(x, dtype=np.float64)
    if ratio > 1:
        positive = marchenko_pastur_cdf(x, 1 / ratio, sigma * np.sqrt(ratio))
        return np.where(x < 0, 0.0, 1 - 1 / ratio + positive / ratio)
    inside = np.clip(x, lower, upper)
    R = np.sqrt(np.clip((upper - inside) * (inside - lower), 0.0, None))
    first = np.arctan2(upper + lower - 2 * inside, 2 * R)
    second = np.arctan2(2 * upper * lower - inside * (upper + lower), 2 * np.sqrt(upper * lower) * R)
    F = 0.5 + (R / sigma**2 - (1 + ratio) * first + (1 - ratio) * second) / (2 * np.pi * ratio)
    return np.where(x <= lower, 0.0, np.where(x >= upper, 1.0, np.clip(F, 0.0, 1.0)))


def spike_location(strength: float, ratio: float, sigma: float = 1.0) -> float:
    """Where a spiked covariance I + ℓvvᵀ shows up in XᵀX/n: σ²(1+ℓ)(1+γ/ℓ) if ℓ > √γ, otherwise at the edge λ₊.

    Raises ValueError unless strength ≥ 0, ratio > 0 and sigma > 0. Source: Baik, Ben Arous & Péché (2005).

    >>> spike_location(4.0, ratio=1.0), spike_location(0.5, ratio=1.0)
    (6.25, 4.0)
    """
    if not strength >= 0:
        raise ValueError(f"strength={strength} is not a spike above the identity; give strength >= 0.")
    upper = marchenko_pastur_edges(ratio, sigma)[1]
    if strength <= np.sqrt(ratio):
        return upper
    return float(sigma**2 * (1 + strength) * (1 + ratio / strength))


def linear_net_eigenvalues(weight: ArrayLike, samples: int, layout: str = "stacked") -> Array:
    """Gram eigenvalues of the input Jacobian of x ↦ Wx over n samples: the data do not matter.

    `weight` (k, d) is the product of all layers. layout="stacked": n·σ_i(W)², d of them with the zeros, from Σ JᵢᵀJᵢ;
    layout="flattened": rank one, n‖W‖_F² and n − 1 zeros, from the n × n matrix <J_i, J_j>. Units: output² per input².

    >>> linear_net_eigenvalues([[3.0, 0.0], [0.0, 1.0]], samples=2)
    array([18.,  2.])
    >>> linear_net_eigenvalues([[3.0, 0.0], [0.0, 1.0]], samples=2, layout="flattened")
    array([20.,  0.])
    """
    W = np.atleast_2d(np.asarray(weight, dtype=np.float64))
    if samples < 1:
        raise ValueError(f"samples={samples} is not a number of samples; give samples >= 1.")
    if layout == "stacked":
        squares = np.linalg.svd(W, compute_uv=False) ** 2
        return samples * np.concatenate([squares, np.zeros(W.shape[1] - len(squares))])
    if layout == "flattened":
        return np.concatenate([[samples * float(np.sum(W**2))], np.zeros(samples - 1)])
    raise ValueError(f"layout={layout!r} is not a layout; use 'stacked' or 'flattened'.")


def gaussian_product_moment(q: int, layers: int) -> float:
    """Limit of the q-th spectral moment of PᵀP, P the product of L square Gaussian layers with entries N(0, 1/width).

    Fuss–Catalan numbers: m_q = C((L+1)q, q) / (Lq + 1); L = 1 gives the Catalan numbers of Marchenko–Pastur at γ = 1.
    Raises ValueError unless q ≥ 0 and layers ≥ 1. Source: Penson & Życzkowski (2011).

    >>> [gaussian_product_moment(q, layers=1) for q in range(5)]
    [1.0, 1.0, 2.0, 5.0, 14.0]
    """
    if q < 0 or layers < 1:
        raise ValueError(f"q={q}, layers={layers}: give a moment q >= 0 of layers >= 1.")
    return comb((layers + 1) * q, q) / (layers * q + 1)


def gaussian_product_edge(layers: int) -> float:
    """Upper edge of the spectrum of `gaussian_product_moment`: (L+1)^{L+1} / L^L, close to e·L for deep products.

    >>> gaussian_product_edge(1), gaussian_product_edge(2)
    (4.0, 6.75)
    """
    if layers < 1:
        raise ValueError(f"layers={layers} is not a product; give layers >= 1.")
    return float((layers + 1) ** (layers + 1) / layers**layers)


def relu_gram(inputs: ArrayLike, outputs: int) -> Array:
    """Expected flattened Gram of a random ReLU layer x ↦ relu(Wx), W (k, d) with entries N(0, 1).

    E <J_i, J_j>_F = k d (π − θ_ij) / 2π with θ_ij the angle between inputs i and j, for `inputs` (n, d); the result is
    (n, n). The same holds for V relu(Wx) with V of variance 1/width. Raises ValueError for an input that is 0.

    >>> relu_gram([[1.0, 0.0], [0.0, 2.0]], outputs=4)
    array([[4., 2.],
           [2., 4.]])
    """
    X = np.atleast_2d(np.asarray(inputs, dtype=np.float64))
    norms = np.linalg.norm(X, axis=1)
    if not np.all(norms > 0):
        raise ValueError("relu_gram: an input of norm 0 has no angle; remove it.")
    unit = X / norms[:, None]
    # atan2 of difference and sum (Kahan): arccos of a rounded cosine loses half of the digits near 0 and π
    theta = 2 * np.arctan2(
        np.linalg.norm(unit[:, None] - unit[None], axis=-1), np.linalg.norm(unit[:, None] + unit[None], axis=-1)
    )
    return outputs * X.shape[1] * (np.pi - theta) / (2 * np.pi)


def circle_kernel_eigenvalues(count: int) -> Array:
    """Largest eigenvalues of the kernel (π − θ)/2π on the circle: 1/4 once, 1/(πk)² twice for each odd k, 0 otherwise.

    They are the limits of the eigenvalues of `relu_gram` / (n·k·d) for n inputs spread evenly over the circle. The
    number above λ grows like λ^{−1/2}, so the density falls as λ^{−3/2}: a power law with alpha exactly 3/2.

    >>> (circle_kernel_eigenvalues(4) * np.pi**2).round(6)
    array([2.467401, 1.      , 1.      , 0.111111])
    """
    if count < 1:
        raise ValueError(f"count={count} eigenvalues cannot be listed; give count >= 1.")
    odd = 2 * (np.arange(count - 1) // 2) + 1
    return np.concatenate([[0.25], 1 / (np.pi * odd) ** 2])


def softmax_ggn_at_zero(inputs: ArrayLike, classes: int) -> Array:
    """Gauss–Newton eigenvalues of softmax regression with cross-entropy at W = 0: spec(XᵀX/n) ⊗ spec(I/C − 11ᵀ/C²).

    `inputs` (n, d), a column of ones standing for a bias. Each eigenvalue of XᵀX/n over C comes C − 1 times, and d
    zeros from the direction 1: d·C in all. The Hessian and the Fisher matrix are the same matrix there.

    >>> softmax_ggn_at_zero([[2.0]], classes=4)
    array([1., 1., 1., 0.])
    """
    X = np.atleast_2d(np.asarray(inputs, dtype=np.float64))
    if classes < 2:
        raise ValueError(f"classes={classes} makes no softmax; give classes >= 2.")
    squares = np.zeros(X.shape[1])
    singular = np.linalg.svd(X, compute_uv=False)
    squares[: len(singular)] = singular**2 / len(X)
    return np.concatenate([np.repeat(squares / classes, classes - 1), np.zeros(X.shape[1])])


def softmax_probs_jacobian_at_zero(inputs: ArrayLike, classes: int) -> Array:
    """Eigenvalues of JᵀJ, J the Jacobian of the softmax probabilities with respect to the weights at W = 0.

    J_i = xᵢᵀ ⊗ S with S = I/C − 11ᵀ/C², so JᵀJ = XᵀX ⊗ S²: each eigenvalue of XᵀX over C², C − 1 times, and d zeros.
    `inputs` (n, d); d·C eigenvalues.

    >>> softmax_probs_jacobian_at_zero([[2.0]], classes=2)
    array([1., 0.])
    """
    X = np.atleast_2d(np.asarray(inputs, dtype=np.float64))
    return softmax_ggn_at_zero(X, classes) * len(X) / classes
