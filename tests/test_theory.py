"""Closed forms against integrals, against dense matrices, and against the spectra of real Jacobians."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import spectral
from spectral.analysis import marchenko_pastur, power_law, theory


@pytest.mark.parametrize(("ratio", "sigma"), [(0.1, 1.0), (0.5, 2.0), (1.0, 0.3), (3.0, 1.5)])
def test_marchenko_pastur_cdf_is_the_integral_of_the_density(ratio, sigma):
    lower, upper = theory.marchenko_pastur_edges(ratio, sigma)
    atom = max(0.0, 1 - 1 / ratio)
    for x in np.linspace(lower, upper, 7)[1:]:
        # λ = lower + s² removes the 1/√λ singularity at ratio 1
        area = quad(
            lambda s: 2 * s * theory.marchenko_pastur_density(lower + s**2, ratio, sigma), 0, (x - lower) ** 0.5
        )
        assert theory.marchenko_pastur_cdf(x, ratio, sigma) == pytest.approx(atom + area[0], abs=1e-7)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5])
def test_marchenko_pastur_has_mean_variance_of_the_law(ratio):
    moment = [
        quad(lambda x, q=q: x**q * theory.marchenko_pastur_density(x, ratio), *theory.marchenko_pastur_edges(ratio))[0]
        for q in (1, 2)
    ]
    assert moment == pytest.approx([1.0, 1 + ratio], abs=1e-6)  # free Poisson moments


def test_marchenko_pastur_cdf_is_that_of_a_random_matrix():
    X = np.random.default_rng(0).standard_normal((600, 1200))
    values = np.sort(np.linalg.eigvalsh(X @ X.T / 600))  # the positive half of XᵀX/n at ratio 2
    expected = theory.marchenko_pastur_cdf(values, 2.0)
    assert np.max(np.abs(expected - (0.5 + (np.arange(600) + 0.5) / 1200))) < 0.005


@pytest.mark.parametrize("strength", [3.0, 0.3])
def test_spike_location_of_a_spiked_covariance(strength):
    n, d = 2000, 500
    X = np.random.default_rng(1).standard_normal((n, d))
    X[:, 0] *= np.sqrt(1 + strength)
    largest = np.linalg.eigvalsh(X.T @ X / n)[-1]
    assert largest == pytest.approx(theory.spike_location(strength, d / n), rel=0.05)


def test_product_of_gaussian_layers_has_fuss_catalan_moments():
    rng, width, layers = np.random.default_rng(2), 500, 2
    P = np.eye(width)
    for _ in range(layers):
        P = P @ rng.standard_normal((width, width)) / np.sqrt(width)
    values = np.linalg.eigvalsh(P.T @ P)
    for q in (1, 2, 3):
        assert np.mean(values**q) == pytest.approx(theory.gaussian_product_moment(q, layers), rel=0.06)
    assert values[-1] == pytest.approx(theory.gaussian_product_edge(layers), rel=0.05)
    # the q-th root of the moments tends to the edge
    growth = theory.gaussian_product_moment(201, layers) / theory.gaussian_product_moment(200, layers)
    assert growth == pytest.approx(theory.gaussian_product_edge(layers), rel=0.01)


def test_circle_kernel_is_the_limit_of_the_relu_gram():
    n = 801
    angle = 2 * np.pi * np.arange(n) / n
    K = theory.relu_gram(np.stack([np.cos(angle), np.sin(angle)], axis=1), outputs=3) / (3 * 2 * n)
    values = np.sort(np.linalg.eigvalsh(K))[::-1]
    assert values[:9] == pytest.approx(theory.circle_kernel_eigenvalues(9), rel=2e-3)
    assert np.trace(K) == pytest.approx(0.5)  # κ(0) = 1/2 = 1/4 + 2 Σ 1/(πk)² over odd k
    assert theory.circle_kernel_eigenvalues(200001).sum() == pytest.approx(0.5, abs=1e-5)


def test_relu_gram_is_the_mean_over_random_layers():
    rng = np.random.default_rng(3)
    X, width = rng.standard_normal((6, 4)), 40000
    W = rng.standard_normal((width, 4))
    on = (X @ W.T > 0).astype(float)
    M = np.einsum("ih,jh,h->ij", on, on, np.sum(W**2, axis=1))
    assert np.max(np.abs(M / theory.relu_gram(X, width) - 1)[theory.relu_gram(X, 1) > 0.3]) < 0.05


# Laws as spectra -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layers", [1, 3])
def test_gaussian_product_has_the_fuss_catalan_moments_and_edge(layers):
    law = theory.gaussian_product(layers, 4000)
    for q in (1, 2):
        assert float(law.moment(q)) == pytest.approx(theory.gaussian_product_moment(q, layers), rel=0.01)
    assert 0.98 * theory.gaussian_product_edge(layers) < law.atoms.values[-1] < theory.gaussian_product_edge(layers)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5])
def test_covariance_of_the_identity_is_marchenko_pastur(ratio):
    law = theory.sample_covariance([2.0], ratio, 1000)
    assert law.zeros == max(0, round(1000 * (1 - 1 / ratio)))
    levels = (law.zeros + np.arange(1000 - law.zeros) + 0.5) / 1000
    assert np.abs(theory.marchenko_pastur_cdf(law.atoms.values, ratio, 2**0.5) - levels).max() < 2e-4


def test_covariance_has_the_moments_of_free_multiplication():
    """m_1 = ⟨τ⟩, m_2 = ⟨τ²⟩ + γ⟨τ⟩², m_3 = ⟨τ³⟩ + 3γ⟨τ²⟩⟨τ⟩ + γ²⟨τ⟩³ (Bai and Silverstein 2010, eq. 3.3.7)."""
    t, g = np.array([0.0, 1.0, 1.0, 5.0]), 0.7
    law = theory.sample_covariance(t, g, 4000)
    m = [np.mean(t**q) for q in range(4)]
    for q, expected in ((1, m[1]), (2, m[2] + g * m[1] ** 2), (3, m[3] + 3 * g * m[2] * m[1] + g**2 * m[1] ** 3)):
        assert float(law.moment(q)) == pytest.approx(expected, rel=2e-3)
    assert law.zeros == 1000  # those of the population


def test_an_eigenvalue_far_above_its_population_comes_out_where_a_spike_does():
    law = theory.sample_covariance(np.append(np.ones(499), 4.0), 0.5)
    assert law.atoms.values[-1] == pytest.approx(theory.spike_location(3.0, 0.5), rel=0.01)
    assert law.atoms.values[-2] < theory.marchenko_pastur_edges(0.5)[1]


def test_linear_features_are_those_of_two_wishart_factors():
    """b = 1: F Fᵀ/N = (XWᵀ)(XWᵀ)ᵀ/(dN), of moments 1 and 1 + n/d + n/N."""
    law = theory.random_features(600, 300, 400, "linear")
    assert law.zeros == 300  # the rank is d
    assert float(law.moment(1)) == pytest.approx(1, rel=3e-3)
    assert float(law.moment(2)) == pytest.approx(1 + 600 / 300 + 600 / 400, rel=0.02)


def test_features_of_an_even_activation_are_marchenko_pastur_and_one_eigenvalue():
    n, d, N = 400, 200, 800
    law = theory.random_features(n, d, N, "abs")
    strength = (2 / np.pi) / (1 - 2 / np.pi) / 2 * n / d  # c_2²/2 of |z|, in closed form
    assert law.atoms.values[-1] == pytest.approx(theory.spike_location(strength, n / N), rel=0.02)
    assert np.abs(theory.marchenko_pastur_cdf(law.atoms.values[:-1], n / N) - (np.arange(n - 1) + 0.5) / n).max() < 0.01


def test_linear_width_kernel_has_the_moments_of_its_two_layers():
    """Of Σ^{1/2} (I + ZZᵀ/N) Σ^{1/2} + (a − 1) I with free factors: 1 + a, and E tr Σ²(1 + …) by the moments of each."""
    law, gamma = theory.linear_width_ntk(300, 300, 600, "linear"), 0.5
    # a = b = 1: Σ = X Xᵀ/d, ⟨τ⟩ = 1, ⟨τ²⟩ = 2; of I + MP: 2 and 4 + γ; free product: m_2(Σ) 4 + m_1² (4 + γ) − 4
    assert float(law.moment(1)) == pytest.approx(2, rel=5e-3)
    assert float(law.moment(2)) == pytest.approx(2 * 4 + (4 + gamma) - 4, rel=0.02)


def test_the_outlier_of_an_even_activations_tangent_kernel_is_that_of_both_layers():
    """Of |x| the first layer adds c_2² n/d along 1 to a I, the second c_2²/2 n/d to what it is made of: here by a matrix."""
    n, d, N, rng = 300, 100, 600, np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    X *= np.sqrt(d) / np.linalg.norm(X, axis=1, keepdims=True)
    H, v = X @ rng.standard_normal((d, N)) / np.sqrt(d), rng.choice([-1.0, 1.0], N)
    scale = np.sqrt(1 - 2 / np.pi)
    F, first = (np.abs(H) - np.sqrt(2 / np.pi)) / scale, np.sign(H) / scale * v
    found = np.linalg.eigvalsh(F @ F.T / N + (first @ first.T / N) * (X @ X.T / d))
    law = theory.linear_width_ntk(n, d, N, "abs")
    assert found[-1] == pytest.approx(law.atoms.values[-1], rel=0.05)  # with the outlier of F alone it was 24 % below
    assert found[-2] < 0.6 * found[-1]


def test_sphere_kernel_is_the_circle_kernel_in_two_dimensions_and_sums_to_a_half():
    values = np.repeat(*theory.relu_kernel_on_sphere(2, 7).atoms)[::-1]
    assert values == pytest.approx(theory.circle_kernel_eigenvalues(9))
    law = theory.relu_kernel_on_sphere(3, 401)
    assert float(law.integrate(lambda x: x)) == pytest.approx(0.5, abs=1e-3)  # κ(0), up to a tail of k^{−1}
    z = np.polynomial.legendre.leggauss(200)
    kernel = (np.pi - np.arccos(z[0])) / (2 * np.pi)
    for degree, expected in ((1, law.atoms.values[-2]), (2, 0.0), (3, law.atoms.values[-3])):  # Funk and Hecke on S²
        P = np.polynomial.legendre.legval(z[0], np.eye(4)[degree])
        assert z[1] @ (kernel * P) / 2 == pytest.approx(expected, abs=1e-6)
    assert power_law(law).alpha == pytest.approx(5 / 3, abs=0.02)


@pytest.mark.parametrize("trained", ["both", "first"])
def test_two_layer_kernel_has_the_fourier_coefficients_of_arc_cosines(trained):
    n = 4001
    theta = np.abs((2 * np.pi * np.arange(n) / n + np.pi) % (2 * np.pi) - np.pi)
    first = np.cos(theta) * (np.pi - theta) / np.pi
    kernel = first + (trained == "both") * (np.cos(theta) * (np.pi - theta) + np.sin(theta)) / np.pi
    fourier = np.fft.rfft(kernel).real[:8] / n
    law = theory.two_layer_ntk_on_circle(7, trained)
    expected = np.sort(np.concatenate([fourier[:1], np.repeat(fourier[1:], 2)]))
    assert np.sort(values_of(law)) == pytest.approx(expected, abs=1e-6)


# Initialisation ------------------------------------------------------------------------------------------------------
def test_jacobian_variance_is_the_published_law():
    for L in (1, 7):
        values = [theory.jacobian_variance(L, a, w) for a in ("linear", "relu") for w in ("gaussian", "orthogonal")]
        assert values == pytest.approx([L, 0, 2 * L, L], abs=1e-9)
    erf = (lambda h: h, lambda h: np.sqrt(2 + np.cos(h)))  # slope² has moments in closed form: E cos(√q z) = e^{−q/2}
    one, two = 2 + np.exp(-0.5), 4 + 4 * np.exp(-0.5) + (1 + np.exp(-2)) / 2
    assert theory.jacobian_variance(3, erf, "orthogonal") == pytest.approx(3 * (two / one**2 - 1))


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_jacobian_variance_of_a_finite_width_is_that_of_matrices(weights):
    N, L, rng = 5, 3, np.random.default_rng(0)
    G = rng.standard_normal((40_000, L, N, N))
    W = G / np.sqrt(N) if weights == "gaussian" else np.linalg.qr(G)[0]
    if weights == "orthogonal":
        W = W * rng.choice([-1.0, 1.0], (len(W), L, 1, N))  # LAPACK's signs are not uniform; ours are
    D = rng.integers(0, 2, (len(W), L, N)).astype(float)
    J = np.eye(N)
    for layer in range(L):
        J = D[:, layer, :, None] * (W[:, layer] @ J)
    M = np.swapaxes(J, 1, 2) @ J
    trace, square = np.trace(M, axis1=1, axis2=2), np.sum(M**2, axis=(1, 2))
    found = N * square.mean() / np.mean(trace**2) - 1
    assert theory.jacobian_variance(L, "relu", weights, width=N) == pytest.approx(found, rel=0.03)


def test_critical_tanh_neither_grows_nor_shrinks():
    q, sigma_b = theory.critical_point("tanh", 1.3)
    z = np.linspace(-10, 10, 20_001)
    w = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    h = np.sqrt(q) * z
    assert 1.69 * w @ np.cosh(h) ** -4 == pytest.approx(1)
    assert 1.69 * w @ np.tanh(h) ** 2 + sigma_b**2 == pytest.approx(q)
    with pytest.raises(ValueError, match="no critical variance"):
        theory.critical_point("relu", 1.0)


def test_mean_field_fisher_of_relu_layers_is_that_of_arc_cosines():
    """σ_w² = 2, no biases: q̂ = 1/2·2…: every layer gives the same norm; overlaps go by Cho and Saul's κ_0, κ_1."""
    found = theory.mean_field_fisher((300, 300, 300, 1), 10, "relu", sigma_w=2**0.5)

    def kappa(c):
        t = np.arccos(c)
        return (np.pi - t) / np.pi, (c * (np.pi - t) + np.sin(t)) / np.pi

    slope_1, c_1 = kappa(0.0)  # of the pre-activations of layer 1: the inputs are orthogonal
    slope_2, c_2 = kappa(c_1)
    # gradients: layer 3 sees q̂ = c of layer 2's units over 2 (relu halves), layers 1 and 2 what comes back
    norm = 300 * (1 * 1 + 1 + 1)
    assert found.kappa_1 * 600 == pytest.approx(300 * (1 * 1.0 + 1 * 1.0 + 1.0), rel=1e-9) and norm == 900
    overlap = 300 * (0 * slope_1 * slope_2 + c_1 * slope_2 + c_2)
    assert found.kappa_2 * 600 == pytest.approx(overlap, rel=1e-9)
    bias = (1 + 1 + 1) / 1.0, (slope_1 * slope_2 + slope_2 + 1) / 1.0
    assert found.largest == pytest.approx((9 * (overlap + bias[1]) + 900 + bias[0]) / 10, rel=1e-9)
    assert found.mean == pytest.approx((900 + bias[0]) / (2 * 300 * 301 + 301), rel=1e-9)


def test_errors_say_what_is_allowed():
    with pytest.raises(ValueError, match=">= 0, one of them"):
        theory.sample_covariance([-1.0], 0.5)
    with pytest.raises(ValueError, match="use one of gaussian, orthogonal"):
        theory.jacobian_variance(2, weights="he")
    with pytest.raises(ValueError, match="constant"):
        theory.random_features(10, 10, 10, (np.ones_like, np.zeros_like))
    with pytest.raises(ValueError, match="use one of linear, relu"):
        theory.random_features(10, 10, 10, "gelu")
    with pytest.raises(ValueError, match="use one of both, first"):
        theory.two_layer_ntk_on_circle(3, "second")
    with pytest.raises(ValueError, match="is no shape γ = d/n"):
        theory.marchenko_pastur_edges(0.0)
    with pytest.raises(ValueError, match="use one of stacked, flattened"):
        theory.linear_net_eigenvalues(np.eye(2), 3, layout="rows")
    with pytest.raises(ValueError, match="remove it"):
        theory.relu_gram([[0.0, 0.0]], outputs=1)


# Laws of real Jacobians ----------------------------------------------------------------------------------------------
def values_of(spectrum):
    """All eigenvalues, descending."""
    values, counts = spectrum.points()
    return np.repeat(values, np.round(counts).astype(int))[::-1]


def batches(*tensors, size=7):
    return (
        list(zip(*(t.split(size) for t in tensors), strict=True)) if len(tensors) > 1 else list(tensors[0].split(size))
    )


@pytest.mark.parametrize("layout", ["stacked", "flattened"])
def test_linear_net(layout):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Linear(9, 4)).double()
    weight = (model[1].weight @ model[0].weight).detach().numpy()
    J = spectral.Jacobian(model, batches(torch.randn(20, 6).double()), wrt="inputs", layout=layout)
    found = values_of(spectral.exact(J))
    expected = theory.linear_net_eigenvalues(weight, samples=20, layout=layout)
    assert found == pytest.approx(expected[: len(found)], abs=1e-9 * expected[0])


def test_linear_regression_is_marchenko_pastur():
    rng, n, d = np.random.default_rng(4), 400, 100
    X = torch.from_numpy(rng.standard_normal((n, d)))
    J = spectral.Jacobian(torch.nn.Linear(d, 1, bias=False).double(), batches(X, size=64))
    spectrum = spectral.exact(J)
    fit = marchenko_pastur(spectrum)
    assert values_of(spectrum)[:d] == pytest.approx(np.linalg.svd(X.numpy(), compute_uv=False) ** 2, rel=1e-9)
    assert fit.ratio == pytest.approx(d / n, rel=0.05)
    assert fit.sigma == pytest.approx(np.sqrt(n), rel=0.02)  # XᵀX is n times the covariance
    assert fit.spikes == 0 and fit.ks < 0.03


def test_relu_layer_on_the_circle_falls_with_alpha_three_halves():
    torch.manual_seed(0)
    n, width = 401, 6000
    angle = torch.arange(n, dtype=torch.float64) * 2 * torch.pi / n
    layer = torch.nn.Linear(2, width, bias=False).double()
    torch.nn.init.normal_(layer.weight)
    X = torch.stack([angle.cos(), angle.sin()], dim=1)
    J = (X @ layer.weight.detach().T > 0).double()  # rows of J_i = 1[Wx > 0] W, flattened
    rows = (J[:, :, None] * layer.weight.detach()[None]).reshape(n, -1)
    values = values_of(spectral.exact(rows / (2 * width * n) ** 0.5))
    assert values[:5] == pytest.approx(theory.circle_kernel_eigenvalues(5), rel=0.1)
    exact_kernel = spectral.Spectrum.from_eigenvalues(theory.circle_kernel_eigenvalues(2001))
    assert power_law(exact_kernel).alpha == pytest.approx(1.5, abs=0.01)


def test_flattened_jacobian_of_a_relu_layer_has_the_expected_gram():
    torch.manual_seed(0)
    n, d, width = 12, 5, 3000
    layer = torch.nn.Linear(d, width, bias=False)
    torch.nn.init.normal_(layer.weight)
    X = torch.randn(n, d)
    model = torch.nn.Sequential(layer, torch.nn.ReLU())
    J = spectral.Jacobian(model.double(), [X.double()], wrt="inputs", layout="flattened")
    found = values_of(spectral.exact(J))
    expected = np.linalg.eigvalsh(theory.relu_gram(X.numpy(), width))[::-1]
    assert found[:n] == pytest.approx(expected, rel=0.1)


def test_softmax_probability_jacobian_at_zero_weights():
    torch.manual_seed(0)
    n, d, C = 15, 4, 5
    model = torch.nn.Linear(d, C, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    X = torch.randn(n, d).double()
    found = values_of(spectral.exact(spectral.Jacobian(model, batches(X), of="probs")))
    S = np.eye(C) / C - np.ones((C, C)) / C**2
    dense = np.linalg.eigvalsh(np.kron(S @ S, X.numpy().T @ X.numpy()))[::-1]
    assert theory.softmax_probs_jacobian_at_zero(X.numpy(), C) == pytest.approx(dense, abs=1e-12)
    assert found == pytest.approx(dense[: len(found)], abs=1e-9)


def test_softmax_ggn_at_zero_is_the_autograd_hessian():
    torch.manual_seed(0)
    X, C = torch.randn(9, 3).double(), 4
    y = torch.randint(C, (9,))
    H = torch.autograd.functional.hessian(
        lambda w: torch.nn.functional.cross_entropy(X @ w.view(C, 3).T, y), torch.zeros(C * 3).double()
    )
    expected = torch.linalg.eigvalsh(H).numpy()[::-1]
    assert theory.softmax_ggn_at_zero(X.numpy(), C) == pytest.approx(expected, abs=1e-12)
