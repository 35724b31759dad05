"""Laws of Chebyshev moments: what they are, what they determine, and where they say that they determine no more."""

import numpy as np
import pytest
import torch
from numpy.polynomial.chebyshev import chebvander

import spectral
from spectral.estimators.kpm import damping
from spectral.krylov.chebyshev import bounds, chebyshev, jacobi, rescaled
from spectral.krylov.lanczos import lanczos
from spectral.operators.operator import Operator
from spectral.quadrature import certificate, gauss

RNG = np.random.default_rng(3)
N = 120
SPECTRA = {
    "uniform": np.sort(RNG.uniform(-1, 1, N)),
    "outliers": np.append(np.sort(RNG.uniform(0, 1, N - 5)), np.geomspace(3, 100, 5)),
    "log-uniform": np.sort(10 ** RNG.uniform(-6, 0, N)),
    "clustered": np.sort(np.concatenate([c + 1e-3 * RNG.standard_normal(N // 3) for c in (-2.0, 0.0, 4.0)])),
    "rank 10": np.append(np.zeros(N - 10), np.arange(1.0, 11.0)),
    "narrow clusters": np.sort(np.repeat(np.linspace(-1, 1, 6), N // 6) + 1e-7 * RNG.standard_normal(N)),
    "strakos": np.sort(0.1 + np.arange(24) / 23 * 99.9 * 0.65 ** np.arange(23, -1, -1)),
}


def operator(values, dtype=np.float64):
    return spectral.as_operator(np.diag(np.asarray(values, dtype=dtype)))


def start(n, dtype=torch.float64):
    return spectral.probes.probe(1, 0, n, dtype=dtype)


def around(values, by=0.002):
    pad = by * np.ptp(values) / 2 or 1.0
    return float(np.min(values) - pad), float(np.max(values) + pad)


def truth(values, interval, count):
    """Moments of the probe's measure in the eigenbasis, and its weights."""
    w = start(len(values)).numpy() ** 2
    low, high = interval
    return (w / w.sum()) @ chebvander((2 * values - low - high) / (high - low), count - 1), w / w.sum()


@pytest.mark.parametrize("steps", [1, 2, 30])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_moments_are_those_of_the_probe_two_for_each_product(name, dtype, steps):
    values = SPECTRA[name].astype(dtype).astype(float)
    A, interval = operator(values, dtype), around(SPECTRA[name], 0.02)
    record = chebyshev(A, start(len(values), A.dtype), steps, interval)
    steps = min(steps, len(values))
    assert (A.products, record.steps, record.stop) == (steps, steps, "steps")
    expected, _ = truth(values, interval, 2 * steps + 1)
    np.testing.assert_allclose(record.moments, expected, atol=100 * np.finfo(dtype).eps)


def test_kac_matrix_gives_its_own_coefficients_back():
    m = 12
    beta = np.sqrt(np.arange(1, m + 1) * np.arange(m, 0, -1))
    A = spectral.as_operator(np.diag(beta, 1) + np.diag(beta, -1))
    record = jacobi(chebyshev(A, torch.eye(m + 1, dtype=torch.float64)[0], m, (-float(m), float(m))))
    assert record.stop == "steps"
    np.testing.assert_allclose(record.alphas, 0, atol=1e-9)
    np.testing.assert_allclose(record.betas, beta, rtol=1e-9)


def test_a_path_from_its_end_has_the_moments_of_the_semicircle():
    n, k = 100, 40
    A = spectral.as_operator(2 * np.eye(n) - np.diag(np.ones(n - 1), 1) - np.diag(np.ones(n - 1), -1))
    record = chebyshev(A, torch.eye(n, dtype=torch.float64)[0], k, (0.0, 4.0))
    expected = np.zeros(2 * k + 1)
    expected[[0, 2]] = 1.0, -0.5  # of 2 / pi sqrt(1 - t^2)
    np.testing.assert_allclose(record.moments, expected, atol=1e-14)
    found = jacobi(record)
    np.testing.assert_allclose(found.alphas, 2, atol=1e-12)
    np.testing.assert_allclose(found.betas, 1, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_record_is_that_of_lanczos_as_far_as_it_goes(name, dtype):
    """Coefficients to what they are said to be determined to; the rule reproduces the moments to their rounding."""
    values, eps = SPECTRA[name].astype(dtype).astype(float), np.finfo(dtype).eps
    A, interval = operator(values, dtype), around(SPECTRA[name])
    record = chebyshev(A, start(len(values), A.dtype), 40, interval)
    ours = jacobi(record)
    theirs = lanczos(operator(values), start(len(values)), ours.steps)
    k, h = min(ours.steps, theirs.steps), (interval[1] - interval[0]) / 2
    assert ours.steps >= 1
    assert (ours.stop == "rounding") == (ours.steps < record.steps or ours.betas[-1] < 1e-2 * h)
    np.testing.assert_allclose(ours.alphas[:k], theirs.alphas[:k], atol=5e-3 * h)
    np.testing.assert_allclose(ours.betas[: k - 1], theirs.betas[: k - 1], atol=5e-3 * h)
    theta, omega, _ = gauss.gauss_rule(ours)
    t = (theta - interval[0] - h) / h
    np.testing.assert_allclose(omega @ chebvander(t, 2 * k - 1), record.moments[: 2 * k], atol=500 * eps)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_envelope_holds_the_probes_cdf_however_few_steps_survive(name, dtype):
    values, eps = SPECTRA[name].astype(dtype).astype(float), np.finfo(dtype).eps
    A = operator(values, dtype)
    for steps in (3, 12, 40):
        interval = around(SPECTRA[name])
        record = jacobi(chebyshev(A, start(len(values), A.dtype), steps, interval))
        _, w = truth(values, interval, 1)
        grid = np.linspace(*around(values, 0.2), 400)
        x = np.concatenate([grid, (values[1:] + values[:-1]) / 2, values + 1e-6 * np.ptp(values)])
        cdf = np.array([w[values <= t].sum() for t in x])
        near = np.abs(x[:, None] - values).min(1) < 16 * eps * np.abs(values).max()  # on an eigenvalue, to rounding
        lower, upper = certificate.envelope(record, x)
        assert (lower[~near] <= cdf[~near] + 4 * eps).all()
        assert (upper[~near] >= cdf[~near] - 4 * eps).all()


def test_a_gap_leaves_few_steps_and_a_full_interval_nearly_all():
    full, gap = SPECTRA["uniform"], np.append(SPECTRA["uniform"][:-1] / 10, 50.0)
    kept = [jacobi(chebyshev(operator(v), start(N), 30, around(v))).steps for v in (full, gap)]
    assert kept[0] == 30
    assert kept[1] <= 5


@pytest.mark.parametrize("exponent", [-300, -30, 30, 300])
def test_scaling_by_a_power_of_two_scales_the_record_bit_for_bit(exponent):
    values, (low, high), c = SPECTRA["uniform"], around(SPECTRA["uniform"]), 2.0**exponent
    one = chebyshev(operator(values), start(N), 20, (low, high))
    two = chebyshev(operator(c * values), start(N), 20, (c * low, c * high))
    np.testing.assert_array_equal(one.moments, two.moments)
    np.testing.assert_allclose(jacobi(two).betas, c * jacobi(one).betas, rtol=1e-14)


def test_an_eigenvalue_outside_is_seen_by_moments_that_grow():
    record = chebyshev(operator(SPECTRA["uniform"]), start(N), 60, (-1.0, 0.8))
    assert record.stop == "outside"
    assert record.steps < 20
    assert abs(record.moments[-2:]).max() > 1
    assert jacobi(record).eigen[0][-1] > 0.8  # the moments are right all the same, and find it


def test_bounds_hold_the_spectrum_and_follow_scale_and_shift():
    for values in SPECTRA.values():
        low, high = bounds([lanczos(operator(values), start(len(values)), 30)])
        assert low <= values.min() + 1e-3 * np.ptp(values)
        assert high >= values.max() - 1e-3 * np.ptp(values)
        assert high - low <= 1.1 * np.ptp(values)
        there = bounds([lanczos(operator(3 - 1e9 * values), start(len(values)), 30)])
        np.testing.assert_allclose(there, (3 - 1e9 * high, 3 - 1e9 * low), atol=10 * np.ptp(values))


@pytest.mark.parametrize(("value", "expected"), [(2.0, (0.0, 4.0)), (0.0, (-1.0, 1.0)), (-1e-30, (-2e-30, 0.0))])
def test_bounds_of_a_multiple_of_the_identity_are_an_interval(value, expected):
    assert bounds([lanczos(operator(np.full(9, value)), start(9), 5)]) == pytest.approx(expected)


def test_moments_on_a_wider_interval():
    values = SPECTRA["log-uniform"]
    old, new = around(values), (-0.3, 1.7)
    moved = rescaled(truth(values, old, 81)[0], old, new)
    np.testing.assert_allclose(moved, truth(values, new, 81)[0], atol=1e-13)


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_jacksons_kernel_is_nowhere_negative_and_keeps_the_mass(count):
    g = damping(count)
    assert g[0] == pytest.approx(1, abs=1e-15)
    if count > 1:
        assert g[1] == pytest.approx(np.cos(np.pi / (count + 1)))  # the largest g_1 that a nonnegative kernel can have
    phi = np.linspace(0, np.pi, 2001)
    kernel = g[0] + 2 * np.cos(np.outer(phi, np.arange(1, count))) @ g[1:]
    assert kernel.min() > -1e-12 * count


class Buffered(Operator):
    """A product that returns its own buffer, or its argument, each time."""

    def __init__(self, values, alias):
        super().__init__((len(values),) * 2, torch.float64, symmetric=True)
        self.values, self.alias, self.buffer = torch.as_tensor(values)[:, None], alias, None

    def _apply(self, V):
        if self.alias:
            return V
        self.buffer = torch.empty_like(V) if self.buffer is None else self.buffer
        return torch.mul(self.values, V, out=self.buffer)


def test_a_product_in_the_operators_own_buffer_is_never_changed():
    values = np.linspace(0, 1, 30)
    expected = chebyshev(operator(values), start(30), 8, (0.0, 1.0)).moments
    np.testing.assert_allclose(
        chebyshev(Buffered(values, False), start(30), 8, (0.0, 1.0)).moments, expected, atol=1e-14
    )
    v = start(30)
    ones = chebyshev(Buffered(values, True), v, 8, (-1.0, 1.0)).moments
    np.testing.assert_allclose(ones, 1, atol=1e-13)  # T_j(1)
    assert torch.equal(v, start(30))


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        chebyshev(operator([1.0, np.nan]), start(2), 2, (0.0, 1.0))
    with pytest.raises(ValueError, match="start vector"):
        chebyshev(operator([1.0, 2.0]), torch.zeros(2, dtype=torch.float64), 2, (0.0, 1.0))
    with pytest.raises(ValueError, match="steps=0"):
        chebyshev(operator([1.0, 2.0]), start(2), 0, (0.0, 1.0))
