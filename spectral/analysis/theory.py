"""Closed-form spectra: what an estimate must reproduce.

Symbols: d features, n samples, k outputs, C classes, γ = d/n the aspect ratio, σ² the variance of one matrix entry,
λ± the edges of the Marchenko–Pastur bulk. Eigenvalues are returned in descending order, as float64. A law that is a density
comes as a `Spectrum` of its quantiles: `dim` eigenvalues that stand as the law says, to be drawn, and asked for distances.

Of an activation σ and z ~ N(0, 1): c_k = E σ(z) He_k(z) its Hermite coefficients, b = c_1 = E σ′(z), a = E σ′(z)².
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from math import comb
from typing import NamedTuple, TypeAlias

import numpy as np
import scipy
from numpy.typing import ArrayLike

from spectral.results import Array
from spectral.schema import NONNEGATIVE, POSITIVE, choice, integer, number
from spectral.spectrum import Spectrum

Function: TypeAlias = Callable[[Array], Array]
Activation: TypeAlias = "str | tuple[Function, Function]"  # by name, or σ and its derivative; kinks at 0 alone
ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "linear": (lambda z: z, np.ones_like),
    "relu": (lambda z: np.maximum(z, 0.0), lambda z: np.heaviside(z, 0.5)),
    "abs": (np.abs, np.sign),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "erf": (lambda z: scipy.special.erf(z), lambda z: 2 / np.sqrt(np.pi) * np.exp(-(z**2))),
}
GRID = 600  # points at which a law is solved for; its quantiles are interpolated between them
ATOMS = 300  # that stand for a continuous population
HALVINGS = 34  # of the distance from the real axis, from 16 times the scale down to 1e-9 of it


def _check_bulk(ratio: float, sigma: float) -> None:
    number(ratio, "ratio", "shape γ = d/n of a matrix", POSITIVE)
    number(sigma, "sigma", "standard deviation", POSITIVE)


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
    number(strength, "strength", "spike above the identity", NONNEGATIVE)
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
    integer(samples, "samples", "number of samples")
    choice(layout, "layout", ("stacked", "flattened"))
    if layout == "stacked":
        squares = np.linalg.svd(W, compute_uv=False) ** 2
        return samples * np.concatenate([squares, np.zeros(W.shape[1] - len(squares))])
    return np.concatenate([[samples * float(np.sum(W**2))], np.zeros(samples - 1)])


def gaussian_product_moment(q: int, layers: int) -> float:
    """Limit of the q-th spectral moment of PᵀP, P the product of L square Gaussian layers with entries N(0, 1/width).

    Fuss–Catalan numbers: m_q = C((L+1)q, q) / (Lq + 1); L = 1 gives the Catalan numbers of Marchenko–Pastur at γ = 1.
    Raises ValueError unless q ≥ 0 and layers ≥ 1. Source: Penson & Życzkowski (2011).

    >>> [gaussian_product_moment(q, layers=1) for q in range(5)]
    [1.0, 1.0, 2.0, 5.0, 14.0]
    """
    integer(q, "q", "moment", 0)
    integer(layers, "layers", "number of layers")
    return comb((layers + 1) * q, q) / (layers * q + 1)


def gaussian_product_edge(layers: int) -> float:
    """Upper edge of the spectrum of `gaussian_product_moment`: (L+1)^{L+1} / L^L, close to e·L for deep products.

    >>> gaussian_product_edge(1), gaussian_product_edge(2)
    (4.0, 6.75)
    """
    integer(layers, "layers", "number of layers")
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
    difference, total = (np.linalg.norm(unit[:, None] + sign * unit[None], axis=-1) for sign in (-1, 1))
    theta = 2 * np.arctan2(difference, total)
    return outputs * X.shape[1] * (np.pi - theta) / (2 * np.pi)


def circle_kernel_eigenvalues(count: int) -> Array:
    """Largest eigenvalues of the kernel (π − θ)/2π on the circle: 1/4 once, 1/(πk)² twice for each odd k, 0 otherwise.

    They are the limits of the eigenvalues of `relu_gram` / (n·k·d) for n inputs spread evenly over the circle. The
    number above λ grows like λ^{−1/2}, so the density falls as λ^{−3/2}: a power law with alpha exactly 3/2.

    >>> (circle_kernel_eigenvalues(4) * np.pi**2).round(6)
    array([2.467401, 1.      , 1.      , 0.111111])
    """
    integer(count, "count", "number of eigenvalues")
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
    integer(classes, "classes", "number of classes", 2)
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


# Products of layers --------------------------------------------------------------------------------------------------
def gaussian_product(layers: int, dim: int = 1000) -> Spectrum:
    """The spectrum of PᵀP, P the product of L square Gaussian layers: the law whose moments are the Fuss–Catalan numbers.

    With B = e^{−iφ} sin((L+1)φ) / sin(Lφ), 0 < φ < π/(L+1): x = sin^{L+1}((L+1)φ) / (sin φ sin^L(Lφ)), and the fraction below x
    is F = 1 + Im[ln(B − 1) − L B]/π.

    Parameters
    ----------
    layers : int
        L, at least 1; entries N(0, 1/width).
    dim : int
        Eigenvalues, at the quantiles (i − 1/2)/dim of the law.

    Returns
    -------
    Spectrum
        Mean 1, largest eigenvalue just below `gaussian_product_edge`.

    Raises
    ------
    ValueError
        For fewer than one layer or eigenvalue.

    References
    ----------
    Penson and Życzkowski (2011), Product of Ginibre matrices: Fuss–Catalan and Raney distributions.

    Examples
    --------
    >>> law = gaussian_product(layers=2)
    >>> round(float(law.moment(1)), 2), round(float(law.moment(2)), 1)  # 1 and 3
    (1.0, 3.0)
    """
    L = integer(layers, "layers", "number of layers")
    integer(dim, "dim", "number of eigenvalues")
    phi = np.pi / (L + 1) * (np.arange(20 * GRID) + 0.5) / (20 * GRID)
    B = np.exp(-1j * phi) * np.sin((L + 1) * phi) / np.sin(L * phi)
    F = 1 + (np.angle(B - 1) - L * B.imag) / np.pi
    phi = np.interp((np.arange(dim) + 0.5) / dim, F[::-1], phi[::-1])
    x = np.sin((L + 1) * phi) ** (L + 1) / (np.sin(phi) * np.sin(L * phi) ** L)
    return Spectrum.from_eigenvalues(x, rounding=0.0, meta={"law": f"Fuss–Catalan, {L} layers"})


def critical_point(activation: Activation, sigma_w: float) -> tuple[float, float]:
    """(q, σ_b) at which signals neither die nor explode: σ_w² E σ′(√q z)² = 1 and q = σ_w² E σ(√q z)² + σ_b².

    Parameters
    ----------
    activation : str or (callable, callable)
        A name of `ACTIVATIONS`, or σ and σ′.
    sigma_w : float
        Standard deviation of the weights times √width.

    Returns
    -------
    (float, float)
        The variance q of the pre-activations, and the standard deviation of the biases.

    Raises
    ------
    ValueError
        Where no q is critical: ReLU is at σ_w² = 2 alone, and then at every q.

    References
    ----------
    Schoenholz et al. (2017), Deep information propagation.

    Examples
    --------
    >>> q, sigma_b = critical_point("tanh", 1.05 ** 0.5)
    >>> round(q, 4), round(sigma_b ** 2, 6)
    (0.0259, 2e-05)
    """
    f, slope = _activation(activation)

    def excess(log_q: float) -> float:
        return sigma_w**2 * _mean(lambda h: slope(h) ** 2, np.exp(log_q)) - 1

    low, high = np.log(1e-12), np.log(1e4)
    if not excess(low) * excess(high) < 0:
        raise ValueError(f"sigma_w={sigma_w} has no critical variance with this activation; of tanh use sigma_w > 1.")
    q = float(np.exp(scipy.optimize.brentq(excess, low, high, xtol=1e-14)))
    bias = q - sigma_w**2 * _mean(lambda h: f(h) ** 2, q)
    if bias < 0:
        raise ValueError(f"sigma_w={sigma_w} is critical at q={q:.4g} only with biases of a negative variance.")
    return q, float(np.sqrt(bias))


def jacobian_variance(
    layers: int,
    activation: Activation = "linear",
    weights: str = "gaussian",
    *,
    q: float = 1.0,
    width: int | None = None,
) -> float:
    """Var λ / (mean λ)² of the eigenvalues of J Jᵀ, J the input Jacobian of L square layers x ↦ σ(Wx + b) at initialisation.

    Infinitely wide it is L (μ_2/μ_1² − 1 − s), μ_k = E σ′(√q z)^{2k}, with s = −1 for Gaussian weights and 0 for orthogonal
    ones: L, 2L (ReLU), L (ReLU, orthogonal), 0 (orthogonal, linear). Of a finite width it is E Σλ²·N/E(Σλ)² − 1, exactly for
    slopes σ′ that do not depend on the weights.

    Parameters
    ----------
    layers : int
        L.
    activation : str or (callable, callable)
        A name of `ACTIVATIONS`, or σ and σ′.
    weights : str
        "gaussian" or "orthogonal".
    q : float
        Variance of the pre-activations, the same in each layer: `critical_point` gives it.
    width : int, optional
        N; infinite by default.

    Returns
    -------
    float
        The relative variance.

    Raises
    ------
    ValueError
        For other weights, and fewer than one layer or two units.

    References
    ----------
    Pennington, Schoenholz and Ganguli (2017), Resurrecting the sigmoid in deep learning through dynamical isometry.

    Examples
    --------
    >>> [round(jacobian_variance(8, *net), 9) for net in (("linear",), ("relu",), ("relu", "orthogonal"))]
    [8.0, 16.0, 8.0]
    >>> jacobian_variance(1, width=100)  # of one Gaussian matrix, 1 + 1/N less what its trace fluctuates
    1.009...
    """
    choice(weights, "weights", ("gaussian", "orthogonal"))
    integer(layers, "layers", "number of layers")
    _, slope = _activation(activation)
    mu, mu_2 = _mean(lambda h: slope(h) ** 2, q), _mean(lambda h: slope(h) ** 4, q)
    if width is None:
        return float(layers * (mu_2 / mu**2 - 1 + (weights == "gaussian")))
    integer(width, "width", "number of units", 2)
    # With M the Gram so far and P = W M Wᵀ: E P_ij P_kl = alpha δ_ij δ_kl + beta (δ_ik δ_jl + δ_il δ_jk)
    N, squared, fourth = width, 1.0, 1.0  # E (tr M/N)² and E tr M²/N, in units of μ_1^layer
    r = mu_2 / mu**2
    for _ in range(layers):
        if weights == "gaussian":
            alpha, beta = squared, fourth / N
        else:
            beta = N * (fourth - squared) / ((N - 1) * (N + 2))
            alpha = squared - 2 * beta / N
        squared, fourth = (alpha * (r + N - 1) + 2 * beta * r) / N, r * (alpha + 2 * beta) + (N - 1) * beta
    return float(fourth / squared - 1)


class FisherStatistics(NamedTuple):
    """Of the Fisher matrix of a random network: the mean of its eigenvalues, the largest, and κ_1, κ_2 of the theory."""

    mean: float
    largest: float
    kappa_1: float
    kappa_2: float


def mean_field_fisher(
    widths: tuple[int, ...],
    samples: int,
    activation: Activation = "tanh",
    *,
    sigma_w: float = 1.0,
    sigma_b: float = 0.0,
) -> FisherStatistics:
    """Mean and largest eigenvalue of the Fisher matrix JᵀJ/n (linear outputs, squared loss) of a wide random network.

    Σ_l q̃_1 (M_{l−1} q̂_1 + 1)·C is its trace, and the same sum of one output, with the correlations of two inputs (q̃_2, q̂_2)
    in place of n − 1 of n, its largest eigenvalues, C of them. At leading order in the width M they are κ_1 C/M and
    α ((n−1) κ_2 + κ_1)/n · M, α M² the weights between hidden layers; here weights and biases of all layers are counted.

    Parameters
    ----------
    widths : tuple of int
        Inputs, hidden layers, outputs.
    samples : int
        n inputs, N(0, 1) entries, independent.
    activation : str or (callable, callable)
        A name of `ACTIVATIONS`, or σ and σ′. The last layer has none.
    sigma_w, sigma_b : float
        Weights are N(0, σ_w²/fan-in), biases N(0, σ_b²).

    Returns
    -------
    FisherStatistics
        `mean` over all parameters, `largest`, and the paper's `kappa_1`, `kappa_2`, in which α leaves out the last layer.

    Raises
    ------
    ValueError
        Without a hidden layer.

    References
    ----------
    Karakida, Akaho and Amari (2019), Universal statistics of Fisher information in deep neural networks.

    Examples
    --------
    >>> wide = mean_field_fisher((1000, 1000, 1), samples=100, activation="linear")
    >>> round(wide.kappa_1, 9), round(wide.kappa_2, 9)  # 1 for each layer's gradient; the inputs are orthogonal
    (2.0, 0.0)
    """
    if len(widths) < 3 or min(widths) < 1 or samples < 1:
        raise ValueError(
            f"widths={widths}, samples={samples}: give inputs, one hidden layer or more, outputs, and samples >= 1."
        )
    f, slope = _activation(activation)
    layers = len(widths) - 1
    # (of one input, of two): q̂ of layers 0, 1, ...; q̃ of layers L, L − 1, ...
    forward, backward, slopes = [(1.0, 0.0)], [(1.0, 1.0)], []
    for _ in range(layers - 1):
        q, pair = (sigma_w**2 * value + sigma_b**2 for value in forward[-1])
        forward.append((_mean(lambda h: f(h) ** 2, q), _pair_mean(f, q, pair / q)))
        slopes.append((_mean(lambda h: slope(h) ** 2, q), _pair_mean(slope, q, pair / q)))
    for one, two in reversed(slopes):
        backward.append((sigma_w**2 * backward[-1][0] * one, sigma_w**2 * backward[-1][1] * two))
    gradients = [(b[0] * h[0], b[1] * h[1], *b) for b, h in zip(reversed(backward), forward, strict=True)]
    M = np.array(widths[:-1], dtype=np.float64)
    one, two, bias_one, bias_two = np.array(gradients).T
    norm, overlap = float(M @ one + bias_one.sum()), float(M @ two + bias_two.sum())
    parameters = sum(out * (fan_in + 1) for fan_in, out in pairwise(widths))
    between = float(M[1:] @ M[:-1]) / M[-1]
    mean, largest = widths[-1] * norm / parameters, ((samples - 1) * overlap + norm) / samples
    return FisherStatistics(mean, largest, float(M @ one / between), float(M @ two / between))


# Random matrices of random features ----------------------------------------------------------------------------------
def sample_covariance(population: Spectrum | ArrayLike, ratio: float, dim: int | None = None) -> Spectrum:
    """The spectrum of Σ^{1/2} Z Zᵀ Σ^{1/2}/n for Z (d, n) with independent entries of variance 1: Σ's, smeared by sampling.

    The Stieltjes transform v of ZᵀΣZ/n solves v = 1/(−z + γ⟨τ/(1 + vτ)⟩), the mean over the eigenvalues τ of Σ, γ = d/n. With
    Σ = σ²I it is Marchenko and Pastur's law; an eigenvalue of Σ far above the others comes out as an outlier.

    Parameters
    ----------
    population : Spectrum or array
        The eigenvalues of Σ, all ≥ 0; of a continuous one some hundred quantiles.
    ratio : float
        γ = d/n.
    dim : int, optional
        Eigenvalues, at the quantiles of the law; by default as many as the population has.

    Returns
    -------
    Spectrum
        The zeros of Σ, and of a Z with fewer columns than rows, are known zeros.

    Raises
    ------
    ValueError
        For a negative eigenvalue of Σ, ratio ≤ 0, and dim < 1.

    References
    ----------
    Silverstein and Bai (1995), On the empirical distribution of eigenvalues of a class of large dimensional random matrices.

    Examples
    --------
    >>> law = sample_covariance([1.0], ratio=0.25, dim=1000)
    >>> law.atoms.values[[0, -1]].round(1)  # marchenko_pastur_edges(0.25): 0.25 and 2.25
    array([0.3, 2.2])
    >>> float(sample_covariance([1.0], ratio=2.0, dim=1000).zeros)  # half of them
    500.0
    """
    tau, share = _population(population)
    _check_bulk(ratio, 1.0)
    dim = dim or (population.dim if isinstance(population, Spectrum) else len(tau))
    none = max(float(share[tau == 0].sum()), 1 - 1 / ratio)
    return _law(np.zeros_like(tau), tau, share, ratio, dim, none, "sample covariance")


def random_features(samples: int, features: int, width: int, activation: Activation = "relu") -> Spectrum:
    """The spectrum of F Fᵀ/N, F = σ(X Wᵀ/√d) centred and of variance 1: the conjugate kernel of one random layer.

    Given X, the N columns of F are independent with covariance Σ ≈ (1 − b²) I + b² X Xᵀ/d, so that it is the law of
    `sample_covariance` at γ = n/N. The second Hermite coefficient adds (c_2²/2)(n/d) along one direction to Σ: an eigenvalue
    outside of the bulk where that is large, and all that an even activation shows of its inputs.

    Parameters
    ----------
    samples, features, width : int
        n rows of X of length √d, isotropic; d; N neurons with weights N(0, 1).
    activation : str or (callable, callable)
        A name of `ACTIVATIONS`, or σ and σ′; it is centred and scaled here, σ ← (σ − E σ)/√Var σ.

    Returns
    -------
    Spectrum
        n eigenvalues, of mean 1.

    Raises
    ------
    ValueError
        For sizes below 1, and an activation that is constant.

    References
    ----------
    Pennington and Worah (2017), Nonlinear random matrix theory for deep learning. Benigni and Péché (2022), Largest eigenvalues
    of the conjugate kernel of single-layered neural networks, for the outlier.

    Examples
    --------
    >>> law = random_features(800, 400, 1600, "abs")  # b = 0: Marchenko–Pastur up to 2.91, and one eigenvalue above
    >>> law.atoms.values[[-2, -1]].round(1)
    array([2.9, 3.5])
    """
    tau, _, share = _feature_covariance(samples, features, width, activation)
    none = max(float(share[tau == 0].sum()), 1 - width / samples)
    return _law(np.zeros_like(tau), tau, share, samples / width, samples, none, "random features")


def linear_width_ntk(samples: int, features: int, width: int, activation: Activation = "tanh") -> Spectrum:
    """The spectrum of the tangent kernel of v·σ(Wx/√d)/√N, both layers trained: F Fᵀ/N + b² X Xᵀ/d + (a − b²) I.

    F is that of `random_features`, and shares its X. With Σ the covariance of F's columns the last two terms are Σ + (a − 1) I,
    so that the kernel is (a − 1) I + Σ^{1/2} (I + Z Zᵀ/N) Σ^{1/2}. Along the direction of the second Hermite coefficient they
    have c_2² n/d, twice what Σ has there: an activation that is not odd can have an eigenvalue outside of the bulk.

    Parameters
    ----------
    samples, features, width : int
        n rows of X of length √d, isotropic; d; N neurons, weights N(0, 1) in both layers.
    activation : str or (callable, callable)
        As of `random_features`, and centred and scaled likewise.

    Returns
    -------
    Spectrum
        n eigenvalues, of mean 1 + a.

    Raises
    ------
    ValueError
        For sizes below 1, and an activation that is constant.

    References
    ----------
    Fan and Wang (2020), Spectra of the conjugate kernel and neural tangent kernel for linear-width neural networks.

    Examples
    --------
    >>> law = linear_width_ntk(200, 200, 400, "linear")  # a = b = 1: X Xᵀ/d (I + Z Zᵀ/N), of mean 2
    >>> round(float(law.moment(1)), 1)
    2.0
    """
    tau, own, share = _feature_covariance(samples, features, width, activation)
    return _law(own, tau, share, samples / width, samples, 0.0, "tangent kernel at linear width")


# Kernels on circle and sphere ----------------------------------------------------------------------------------------
def relu_kernel_on_sphere(features: int, degree: int) -> Spectrum:
    """The kernel (π − θ)/2π on S^{p−1}: eigenvalues c_k² of spherical harmonics, 0 for each even degree k ≥ 2.

    c_0 = 1/2 and c_k = Γ(p/2) Γ(k) / (√π 2^k Γ((k+1)/2) Γ((k+p)/2)) for odd k, by Funk and Hecke; c_k² occurs
    C(k+p−1, k) − C(k+p−3, k−2) times. `circle_kernel_eigenvalues` is p = 2. The density falls with alpha = 2 − 1/p.

    Parameters
    ----------
    features : int
        p, the dimension of the space that the sphere lies in.
    degree : int
        The largest k.

    Returns
    -------
    Spectrum
        All harmonics up to that degree: those of even degrees as known zeros.

    Raises
    ------
    ValueError
        For p < 2 and degree < 0.

    References
    ----------
    Bach (2017), Breaking the curse of dimensionality with convex neural networks, appendix D.

    Examples
    --------
    >>> law = relu_kernel_on_sphere(3, degree=3)
    >>> law.atoms.values[::-1], law.atoms.multiplicities[::-1], law.zeros
    (array([0.25      , 0.0625    , 0.00390625]), array([1, 3, 7]), 5)
    """
    p = integer(features, "features", "dimension of a space with a sphere", 2)
    integer(degree, "degree", "degree", 0)
    copies = [comb(k + p - 1, k) - (comb(k + p - 3, k - 2) if k > 1 else 0) for k in range(degree + 1)]
    k = np.arange(1, degree + 1, 2, dtype=np.float64)
    log = scipy.special.gammaln
    c = np.exp(log(p / 2) + log(k) - k * np.log(2) - log((k + 1) / 2) - log((k + p) / 2)) / np.sqrt(np.pi)
    values, counts = np.append(c**2, 0.25), [*copies[1::2], 1]
    return Spectrum.from_eigenvalues(values, multiplicities=counts, zeros=sum(copies[2::2]), rounding=0.0)


def two_layer_ntk_on_circle(degree: int, trained: str = "both") -> Spectrum:
    """The tangent kernel of two ReLU layers on the circle: 0 for odd frequencies k ≥ 3, k^{−2} for even ones.

    κ = u κ_0(u) + κ_1(u), u = cos θ, with Cho and Saul's κ_0 and κ_1; training the first layer alone leaves out κ_1. At even k
    the first part gives (1/(k−1)² + 1/(k+1)²)/π², the second (2/(π(k²−1)))²; at k = 1 both give 1/4. Each twice, once at k = 0.

    Parameters
    ----------
    degree : int
        The largest frequency k.
    trained : str
        "both" layers or the "first".

    Returns
    -------
    Spectrum
        2·degree + 1 eigenvalues, of inputs spread evenly; those that vanish are known zeros.

    Raises
    ------
    ValueError
        For degree < 0 and another `trained`.

    References
    ----------
    Bietti and Mairal (2019), On the inductive bias of neural tangent kernels, proposition 5.

    Examples
    --------
    >>> law = two_layer_ntk_on_circle(3)
    >>> (law.atoms.values[::-1] * np.pi ** 2).round(6), law.atoms.multiplicities[::-1], law.zeros
    (array([6.      , 4.934802, 1.555556]), array([1, 2, 2]), 2)
    """
    integer(degree, "degree", "frequency", 0)
    choice(trained, "trained", ("both", "first"))
    both = trained == "both"
    k = np.arange(0, degree + 1, 2, dtype=np.float64)
    even = (1 / (k - 1) ** 2 + 1 / (k + 1) ** 2) / np.pi**2 + both * 4 / (np.pi * (k**2 - 1)) ** 2
    values = np.append(even, [0.25 * (1 + both)] * (degree > 0))
    counts, zeros = [1] + [2] * (len(values) - 1), 2 * len(range(3, degree + 1, 2))
    return Spectrum.from_eigenvalues(values, multiplicities=counts, zeros=zeros, rounding=0.0)


# What the laws are made of -------------------------------------------------------------------------------------------
def _activation(activation: Activation) -> tuple[Function, Function]:
    if not isinstance(activation, str):
        return activation
    choice(activation, "activation", ACTIVATIONS)
    return ACTIVATIONS[activation]


@cache
def _half_line() -> tuple[Array, Array]:
    """Nodes r on [0, 12] and Gauss–Legendre weights times e^{−r²/2}: kinks at 0 lie between two such intervals."""
    x, w = np.polynomial.legendre.leggauss(200)
    r = 6 * (x + 1)
    return r, 6 * w * np.exp(-(r**2) / 2)


def _mean(f: Function, q: float = 1.0) -> float:
    """E f(√q z), z ~ N(0, 1)."""
    r, w = _half_line()
    h = np.sqrt(q) * r
    return float(w @ (f(h) + f(-h)) / (2 * w.sum()))


def _pair_mean(f: Function, q: float, correlation: float) -> float:
    """E f(u) f(v) of Gaussians of variance q: in polar coordinates kinks at 0 are rays, and sectors lie between them."""
    r, w = _half_line()
    theta = np.arccos(np.clip(correlation, -1.0, 1.0))
    x, v = np.polynomial.legendre.leggauss(40)
    rays = np.array([-np.pi / 2, theta - np.pi / 2, np.pi / 2, theta + np.pi / 2, 3 * np.pi / 2])
    middle, half = (rays[1:] + rays[:-1]) / 2, np.diff(rays) / 2
    t, v = (middle[:, None] + half[:, None] * x).ravel(), (half[:, None] * v).ravel()
    R = np.sqrt(q) * r[:, None]
    product = f(R * np.cos(t)) * f(R * np.cos(t - theta))
    return float((w * r) @ product @ v / ((w @ r) * 2 * np.pi))


def _feature_covariance(samples: int, features: int, width: int, activation: Activation) -> tuple[Array, Array, Array]:
    """(eigenvalues of Σ, those of the first layer's part, the share of each), Σ the covariance of `random_features`' columns."""
    for name, size in (("samples", samples), ("features", features), ("width", width)):
        integer(size, name, "size")
    f, slope = _activation(activation)
    mean = _mean(f)
    variance = _mean(lambda z: (f(z) - mean) ** 2)
    if not variance > 1e-12 * mean**2:
        raise ValueError(
            "the activation is constant on what Gaussian inputs give it; there is nothing left once it is centred."
        )
    b2 = _mean(lambda z: z * f(z)) ** 2 / variance
    c2 = _mean(lambda z: (z**2 - 1) * f(z)) ** 2 / variance
    gram, counts = sample_covariance([1.0], samples / features, ATOMS).points()
    tau, share = 1 - b2 + b2 * gram, counts / counts.sum()
    tau[tau < 1e-12] = 0.0  # of a linear activation and fewer features than samples
    own, a = tau, _mean(lambda z: slope(z) ** 2) / variance
    if (strength := c2 / 2 * samples / features) > 1e-9:  # one direction, which knows nothing of those of the bulk
        # σ′ has the Hermite coefficients c_{k+1}: of ρ² in ρ E σ′σ′ that is c_2², twice what σ has
        tau, own = (np.append(tau, _beside(tau, share, times * strength)) for times in (1, 2))
        share = np.append(share * (1 - 1 / samples), 1 / samples)
    return tau, own + a - 1, share


def _beside(tau: Array, share: Array, strength: float) -> float:
    """The largest eigenvalue of a matrix with the eigenvalues τ and `strength` more along one direction, alike to all."""
    low, high = tau.max() * (1 + 1e-12), tau.max() + 1.001 * strength
    return float(scipy.optimize.brentq(lambda t: strength * share @ (1 / (t - tau)) - 1, low, high))


def _population(population: Spectrum | ArrayLike) -> tuple[Array, Array]:
    """(eigenvalues, the share of each)."""
    if isinstance(population, Spectrum):
        tau, counts = population.points()
    else:
        tau = np.asarray(population, dtype=np.float64).reshape(-1)
        counts = np.ones(len(tau))
    if not len(tau) or not np.isfinite(tau).all() or tau.min() < 0:
        raise ValueError("the eigenvalues of a covariance must be finite and >= 0, one of them at least.")
    return tau, counts / counts.sum()


def _law(A: Array, tau: Array, share: Array, ratio: float, dim: int, none: float, name: str) -> Spectrum:
    """The quantiles of A + Σ^{1/2} Z Zᵀ Σ^{1/2}/N, A and Σ diagonal in one basis, a fraction `none` of them 0.

    Its resolvent is that of A + s Σ with s = 1/(1 + γ⟨τ/(A + s τ − z)⟩), solved for above the real axis and followed down to
    it. At a solution −Im[⟨ln(A + s τ − z)⟩ − (ln s − s)/γ]/π is the fraction of eigenvalues below z, since the bracket does
    not change with s and its derivative in z is minus the Stieltjes transform: nothing is integrated.
    """
    integer(dim, "dim", "number of eigenvalues")
    scale = float(tau.max() * (1 + np.sqrt(ratio)) ** 2) or 1.0
    top = 1.02 * (float(A.max()) + scale)
    x = np.union1d(np.linspace(0, top, GRID + 1)[1:], np.geomspace(1e-7 * top, top, GRID // 3))
    s = np.ones(len(x), dtype=np.complex128)
    for halving in range(HALVINGS):
        z = x + 1j * scale * 16 * 0.5**halving
        for _ in range(3):  # Newton's steps: the last solution is near
            resolvent = 1 / (A + s[:, None] * tau - z[:, None])
            G, change = resolvent @ (share * tau), (resolvent**2) @ (share * tau**2)
            s = s - (s * (1 + ratio * G) - 1) / (1 + ratio * G - ratio * s * change)
            s = np.where(s.imag > 0, s.conj(), s)
    inside = A + s[:, None] * tau - z[:, None]  # in the lower half plane, as s is
    F = (np.abs(np.angle(inside)) @ share - (np.abs(np.angle(s)) + s.imag) / ratio) / np.pi
    error = float(np.abs(s * (1 + ratio * ((1 / inside) @ (share * tau))) - 1).max())
    fall = float(np.maximum(-np.diff(F), 0).max())
    if not (error < 1e-6 and fall < 1e-4 and abs(F[-1] - 1) < 1e-3):
        raise ArithmeticError(
            f"the law's equation was solved to {error:.1g} and its CDF falls by {fall:.1g}; thin out the population."
        )
    zeros = round(dim * none)
    share_of = zeros / dim
    levels = share_of + (1 - share_of) * (np.arange(dim - zeros) + 0.5) / max(dim - zeros, 1)
    values = np.interp(levels, np.maximum.accumulate(F), x)
    return Spectrum.from_eigenvalues(values, zeros=zeros, rounding=0.0, meta={"law": name})
