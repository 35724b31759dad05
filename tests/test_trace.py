"""Traces: unbiased, with honest errors, and an end for every tolerance."""

import numpy as np
import pytest

import spectral

RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.standard_normal((60, 60)))[0]


def rotated(values):
    A = Q * np.asarray(values) @ Q.T
    return (A + A.T) / 2


@pytest.mark.parametrize(
    "values", [np.arange(60.0), RNG.standard_normal(60), np.append(np.zeros(52), np.arange(1.0, 9.0))]
)
def test_hutchinson_is_unbiased_with_a_calibrated_error(values):
    A = spectral.as_operator(rotated(values))
    found = [spectral.trace(A, probes=10, seed=seed) for seed in range(300)]
    error = np.array([float(e.value) for e in found]) - values.sum()
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(300)
    assert 0.8 < np.sqrt(np.mean((error / [e.stderr for e in found]) ** 2)) < 1.3


def test_signs_have_no_variance_on_a_diagonal_matrix():
    e = spectral.trace(np.diag([1.0, -5.0, 2.5]), probes=3)
    assert (e.value, e.stderr, e.probes, e.products) == (-1.5, 0.0, 3, 3)
    assert np.isnan(e.lower)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rtol_is_met_for_positive_and_negative_traces(sign):
    A = rotated(sign * np.linspace(0.5, 2, 60))
    e = spectral.trace(A, rtol=0.01)
    assert e.stderr <= 0.01 * abs(float(e))
    assert 10 <= e.probes < 2000
    assert abs(float(e) - np.trace(A)) < 5 * e.stderr


def test_a_trace_near_zero_ends_with_its_error_stated(monkeypatch):
    import importlib

    monkeypatch.setattr(importlib.import_module("spectral.estimators.trace"), "MOST", 200)
    e = spectral.trace(rotated(np.tile([1.0, -1.0], 30)), rtol=1e-3)
    assert e.probes == 200
    assert abs(float(e)) < 5 * e.stderr
    assert spectral.trace(np.zeros((5, 5)), rtol=1e-3).probes == 10  # 0 +- 0 meets every tolerance


def test_a_budget_ends_the_probes():
    e = spectral.trace(rotated(np.arange(60.0)), rtol=1e-9, budget=37)
    assert (e.probes, e.products) == (37, 37)


def test_a_function_goes_through_quadrature():
    A = rotated(np.linspace(0.5, 2, 60))
    e = spectral.trace(A, np.log, steps=60)
    assert abs(float(e) - np.log(np.linspace(0.5, 2, 60)).sum()) < 4 * e.stderr + 1e-12
    assert float(spectral.trace(2 * np.eye(50), np.log)) == pytest.approx(34.657359027997266)
    assert float(spectral.trace(A, method="slq", probes=2)) == pytest.approx(
        float(spectral.slq(A, probes=2).integrate(lambda x: x))
    )


def test_a_rectangular_operator_means_its_gram():
    B = RNG.standard_normal((40, 9))
    e = spectral.trace(B, probes=400)
    assert abs(float(e) - (B**2).sum()) < 5 * e.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": 1}, "probes=1"),
        ({"probes": True}, "probes=True"),
        ({"probes": 2.5}, "probes=2.5"),
        ({"rtol": 0.0}, "rtol=0.0"),
        ({"rtol": -1}, "rtol=-1"),
        ({"method": "guess"}, "method='guess'"),
        ({"f": np.log, "method": "hutchinson"}, "hutchinson"),
        ({"f": np.log, "rtol": 0.1}, "rtol="),
        ({"budget": "x"}, "budget='x'"),
    ],
)
def test_a_bad_argument_is_one_sentence(options, words):
    with pytest.raises(ValueError) as error:
        spectral.trace(np.eye(3), **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="steps"):
        spectral.trace(np.eye(3), steps=5)
