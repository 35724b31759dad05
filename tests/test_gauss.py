"""The certified envelope against the true CDF and an eigenvalue oracle."""

import numpy as np
import pytest
import torch

import spectral
from spectral.krylov.lanczos import lanczos
from spectral.quadrature import certificate

RNG = np.random.default_rng(7)
SPECTRA = {
    "uniform": np.sort(RNG.uniform(-1, 1, 300)),
    "outliers": np.sort(np.append(RNG.uniform(0, 0.3, 280), np.geomspace(0.5, 100, 20))),
    "log": np.geomspace(1e-12, 1, 300),
    "clustered": np.sort(np.concatenate([c + 1e-4 * RNG.standard_normal(100) for c in (-3.0, 0.0, 1.0)])),
    "far from zero": 1e6 + np.sort(RNG.uniform(-1, 1, 300)),
    "negative": -np.geomspace(1e3, 1e-3, 300),
}


def probe_of(values, steps, reorthogonalize=True, dtype=torch.float64):
    v = spectral.probes.probe(0, 3, len(values), dtype=dtype)
    A = spectral.as_operator(torch.diag(torch.as_tensor(values).to(dtype)))
    weights = v.double().numpy() ** 2
    return lanczos(A, v, steps, reorthogonalize=reorthogonalize), weights / weights.sum()


def true_cdf(values, weights, x, side):
    return np.append(0.0, np.cumsum(weights))[np.searchsorted(values, x, side=side)]


def points_of(values, record):
    low, span = values[0], values[-1] - values[0]
    ritz = record.eigen[0]
    inside = np.random.default_rng(1).uniform(low - 0.1 * span, low + 1.1 * span, 200)
    far = low + span * np.array([-1e9, -1e4, -3.0, 4.0, 1e4, 1e9])
    return np.concatenate([inside, values[::3], ritz, (ritz[1:] + ritz[:-1]) / 2, far, [-np.inf, np.inf]])


@pytest.mark.parametrize("reorthogonalize", [True, False])
@pytest.mark.parametrize("steps", [1, 5, 20, 60, 120])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_envelope_contains_the_true_cdf_of_the_probe(name, steps, reorthogonalize):
    values = SPECTRA[name]
    record, weights = probe_of(values, steps, reorthogonalize)
    x = points_of(values, record)
    lower, upper = certificate.envelope(record, x)
    assert (lower <= true_cdf(values, weights, x, "left") + 1e-13).all()
    assert (upper >= true_cdf(values, weights, x, "right") - 1e-13).all()


@pytest.mark.parametrize("name", ["uniform", "outliers", "log"])
def test_the_envelope_contains_the_truth_of_float32_products(name):
    values = SPECTRA[name].astype(np.float32).astype(float)
    record, weights = probe_of(values, 40, dtype=torch.float32)
    x = points_of(values, record)
    lower, upper = certificate.envelope(record, x)
    slack = 1e-6  # the weights themselves carry the rounding of the products
    assert (lower <= true_cdf(values, weights, x, "left") + slack).all()
    assert (upper >= true_cdf(values, weights, x, "right") - slack).all()


def radau_oracle(record, x):
    """(weight left of x, that plus the weight at x) of the Gauss-Radau rule with the node x, by the full eigenproblem."""
    k = record.steps
    T = np.diag(record.alphas) + np.diag(record.betas[:-1], 1) + np.diag(record.betas[:-1], -1)
    delta = np.linalg.solve(T - x * np.eye(k), record.betas[-1] ** 2 * np.eye(k)[-1])
    R = np.zeros((k + 1, k + 1))
    R[:k, :k], R[k - 1, k], R[k, k - 1], R[k, k] = T, record.betas[-1], record.betas[-1], x + delta[-1]
    nodes, vectors = np.linalg.eigh(R)
    weights, at = vectors[0] ** 2, np.argmin(np.abs(nodes - x))
    return weights[:at].sum(), weights[: at + 1].sum()


@pytest.mark.parametrize("name", ["uniform", "outliers", "clustered"])
@pytest.mark.parametrize("steps", [2, 7, 15])
def test_the_envelope_is_the_gauss_radau_bound(name, steps):
    values = SPECTRA[name]
    record, _ = probe_of(values, steps)
    span = values[-1] - values[0]
    for x in np.random.default_rng(2).uniform(values[0] - 0.2 * span, values[-1] + 0.2 * span, 40):
        if np.abs(record.eigen[0] - x).min() < 1e-3 * span:
            continue  # there the oracle's matrix has an unbounded entry
        lower, upper = certificate.envelope(record, np.array([x]))
        expected = radau_oracle(record, x)
        assert lower[0] == pytest.approx(expected[0], abs=2e-7)
        assert upper[0] == pytest.approx(expected[1], abs=2e-7)


def test_the_envelope_is_monotone_narrows_with_steps_and_ends_at_0_and_1():
    values = SPECTRA["uniform"]
    x = np.linspace(-1.5, 1.5, 400)
    widths = []
    for steps in (5, 20, 80):
        lower, upper = certificate.envelope(probe_of(values, steps)[0], x)
        assert (np.diff(lower) >= -1e-10).all()
        assert (np.diff(upper) >= -1e-10).all()
        widths.append(np.mean(upper - lower))
    assert widths[0] > 2 * widths[1] > 4 * widths[2]
    record = probe_of(values, 10)[0]
    assert certificate.envelope(record, np.array([-np.inf, np.inf]))[0].tolist() == [0.0, 1.0]
    assert certificate.envelope(record, np.array([-np.inf, np.inf]))[1].tolist() == [0.0, 1.0]


def test_a_shift_of_the_matrix_does_not_widen_the_envelope():
    values = SPECTRA["uniform"]
    x = np.linspace(-0.9, 0.9, 50)
    near = np.subtract(*certificate.envelope(probe_of(values, 30)[0], x)[::-1])
    far = np.subtract(*certificate.envelope(probe_of(values + 1e6, 30)[0], x + 1e6)[::-1])
    np.testing.assert_allclose(far, near, atol=1e-4)


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**90])
def test_the_envelope_of_a_scaled_matrix_is_the_same_bit_for_bit(factor):
    values = SPECTRA["outliers"]
    x = np.linspace(-1, 101, 70)
    one = certificate.envelope(probe_of(values, 25)[0], x)
    two = certificate.envelope(probe_of(values * factor, 25)[0], x * factor)
    np.testing.assert_array_equal(one, two)


def test_an_exact_rule_has_an_envelope_without_width():
    record, weights = probe_of(np.array([1.0, 1.0, 3.0, 7.0]), 10)
    lower, upper = certificate.envelope(record, np.array([0.0, 2.0, 5.0, 8.0]))
    np.testing.assert_allclose(lower, [0, weights[:2].sum(), weights[:3].sum(), 1], atol=1e-10)
    np.testing.assert_allclose(upper, lower, atol=1e-10)
