"""Diagonals: unbiased entry by entry, with calibrated errors, exact where they can be."""

import numpy as np
import pytest

import spectral
from spectral.estimators import leave_one_out
from spectral.estimators.diagonal import diagonal

N = 80
RNG = np.random.default_rng(2)
Q = np.linalg.qr(RNG.standard_normal((N, N)))[0]
SPECTRA = {
    "flat": np.linspace(0.9, 1.1, N),
    "uniform, both signs": RNG.uniform(-1, 1, N),
    "outliers": np.append(RNG.uniform(0, 1, N - 6), np.geomspace(3, 100, 6)),
    "one outlier": np.append(RNG.uniform(0, 0.1, N - 1), 50.0),
    "log-uniform": 10 ** RNG.uniform(-6, 0, N),
    "exponential": 0.8 ** np.arange(N),
    "power law": 1.0 / np.arange(1, N + 1) ** 2,
}


def rotated(values, dtype=np.float64):
    A = Q * np.asarray(values) @ Q.T
    return ((A + A.T) / 2).astype(dtype)


def written(A, Omega, i):
    """Sample i of XDiag from its definition: a QR decomposition without vector i."""
    P = np.linalg.qr(A @ np.delete(Omega, i, 1))[0]
    w, projected = Omega[:, i], P @ (P.T @ A)
    return np.diag(projected) + w * ((A - projected) @ w)


@pytest.mark.parametrize("symmetric", [True, False])
def test_xdiag_is_the_mean_of_its_definition(symmetric):

    A = rotated(SPECTRA["power law"]) + (0 if symmetric else 0.1 * np.triu(RNG.standard_normal((N, N)), 1))
    op = spectral.as_operator(A)
    e = diagonal(op, method="xdiag", probes=12, seed=4)
    Omega = leave_one_out.draw(op, 4, range(6), "rademacher").numpy()
    assert e.value == pytest.approx(np.mean([written(A, Omega, i) for i in range(6)], 0), rel=1e-9, abs=1e-12)
    assert (e.probes, e.products) == (6, 12)


def test_the_stated_variance_is_that_of_leaving_two_out():
    """s^2 / m + mean of d_ij d_ji, each d_ij from two QR decompositions."""

    A, m = rotated(SPECTRA["exponential"]), 6
    op = spectral.as_operator(A)
    e = diagonal(op, method="xdiag", probes=2 * m, seed=1)
    Omega = leave_one_out.draw(op, 1, range(m), "rademacher").numpy()
    samples = np.array([written(A, Omega, i) for i in range(m)])
    change = np.zeros((m, m, N))
    for i in range(m):
        for j in set(range(m)) - {i}:
            change[i, j] = samples[i] - written(A, np.delete(Omega, j, 1), i - (j < i))
    covariance = (change * change.swapaxes(0, 1)).sum((0, 1)) / (m * (m - 1))
    variance = samples.var(0, ddof=1) / m + np.maximum(covariance, 0)
    assert e.stderr == pytest.approx(np.sqrt(variance) * leave_one_out.widening(m), rel=1e-6)


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
@pytest.mark.parametrize("name", SPECTRA)
def test_unbiased_with_calibrated_errors(method, name, trials=30, probes=24):
    A = spectral.as_operator(rotated(SPECTRA[name]))
    truth = np.diag(rotated(SPECTRA[name]))
    found = [diagonal(A, method=method, probes=probes, seed=seed) for seed in range(trials)]  # of 80 entries each
    error = np.array([e.value - truth for e in found])
    z = error / np.array([e.stderr for e in found])
    assert abs((error.mean(0) / (error.std(0) / np.sqrt(trials))).mean()) < 0.6  # the entries' errors hang together
    assert 0.8 <= np.sqrt(np.mean(z**2)) <= 1.3
    assert np.mean(np.abs(z) < 1.96) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("probes", [24, 40])
@pytest.mark.parametrize("method", ["auto", "hutchinson", "xdiag"])
@pytest.mark.parametrize("name", SPECTRA)
def test_unbiased_with_calibrated_errors_in_many_trials(method, name, probes):
    test_unbiased_with_calibrated_errors(method, name, 300, probes)


def test_xdiag_wins_where_the_spectrum_decays():
    A, truth = rotated(SPECTRA["exponential"]), np.diag(rotated(SPECTRA["exponential"]))
    x, h = (diagonal(A, method=m, probes=40).value - truth for m in ("xdiag", "hutchinson"))
    assert np.linalg.norm(x) < np.linalg.norm(h) / 10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_low_rank_is_exact_at_every_scale(scale, dtype):
    eps = float(np.finfo(dtype).eps)
    A = rotated(scale * np.append(np.zeros(N - 5), np.arange(1.0, 6.0)), dtype)
    e = diagonal(A, method="xdiag", probes=24)
    assert e.value == pytest.approx(np.diag(A).astype(float), abs=100 * eps * scale)
    assert (e.stderr < 100 * eps * scale).all()
    zero = diagonal(np.zeros((N, N), dtype), method="xdiag", probes=24)
    assert (zero.value == 0).all()
    assert (zero.stderr == 0).all()


@pytest.mark.parametrize("options", [{"method": "exact"}, {"probes": N}, {"probes": 500, "method": "xdiag"}])
def test_as_many_products_as_dimensions_are_exact(options):
    A = RNG.standard_normal((N, N))
    e = diagonal(A, **options)
    assert np.array_equal(e.value, np.diag(A))
    assert (e.stderr == 0).all()
    assert (e.lower == e.upper).all()
    assert e.products == N


def test_signs_have_no_variance_on_a_diagonal_matrix():
    e = diagonal(np.diag(np.arange(50.0)), method="hutchinson", probes=3)
    assert np.array_equal(e.value, np.arange(50.0))
    assert (e.stderr == 0).all()
    assert np.isnan(e.lower).all()


def test_the_sum_agrees_with_the_trace_and_a_seed_repeats():
    A = rotated(SPECTRA["uniform, both signs"])
    e = diagonal(A, method="hutchinson", probes=15, seed=9)
    assert e.value.sum() == pytest.approx(float(spectral.trace(A, method="hutchinson", probes=15, seed=9)), rel=1e-10)
    again = diagonal(A, method="hutchinson", probes=15, seed=9)
    assert np.array_equal(e.value, again.value)
    assert not np.array_equal(e.value, diagonal(A, method="hutchinson", probes=15, seed=10).value)


@pytest.mark.parametrize(
    ("A", "options", "words"),
    [
        (np.ones((4, 6)), {}, "has no diagonal"),
        (np.eye(60), {"probes": 1}, "probes=1"),
        (np.eye(60), {"probes": 2.5}, "probes=2.5"),
        (np.eye(60), {"probes": 3, "method": "xdiag"}, "probes >= 4"),
        (np.eye(60), {"method": "guess"}, "method='guess'"),
        (np.eye(60), {"seed": -1}, "seed=-1"),
    ],
)
def test_a_bad_argument_is_one_sentence(A, options, words):
    with pytest.raises(ValueError) as error:
        diagonal(A, **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype, power", [("float32", -100), ("float32", 90), ("float16", 9)])
def test_errors_scale_with_the_matrix_where_the_dtype_does_not_hold_squares(dtype, power):
    A = rotated(SPECTRA["uniform, both signs"], dtype)
    one, other = (diagonal(matrix, method="hutchinson", probes=5) for matrix in (A, A * A.dtype.type(2.0**power)))
    assert (one.stderr > 0).all()
    assert np.array_equal(other.value, one.value * 2.0**power) and np.array_equal(other.stderr, one.stderr * 2.0**power)
