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


def test_errors_say_what_is_allowed():
    with pytest.raises(ValueError, match="γ = d/n > 0"):
        theory.marchenko_pastur_edges(0.0)
    with pytest.raises(ValueError, match="'stacked' or 'flattened'"):
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
