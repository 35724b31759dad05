"""Functionals against closed forms, dense oracles and their own bounds."""

import numpy as np
import pytest
import scipy.sparse as sp

import spectral
from spectral.estimators.functionals import (
    condition_number,
    frobenius,
    logdet,
    negative_mass,
    numerical_rank,
    spectral_form,
)

N = 200
RNG = np.random.default_rng(4)
LAPLACIAN = 2 * np.eye(N) - np.eye(N, k=1) - np.eye(N, k=-1)
X = RNG.standard_normal((N, 300)) / np.sqrt(300)
GRAM = spectral.as_operator(X).gram("left")
EIGENVALUES = np.linalg.eigvalsh(X @ X.T)


def sampled(A, **options):
    return spectral.slq(A, **{"probes": 4, "steps": 25, **options})


# Log-determinant -------------------------------------------------------------------------------------------------------
def test_logdet_has_its_closed_forms():
    for method in ("exact", "slq"):
        e = logdet(2 * np.eye(50), method=method)
        assert float(e) == pytest.approx(34.657359027997266, rel=1e-13)
        assert e.stderr <= 1e-12
    assert float(logdet(LAPLACIAN)) == pytest.approx(np.log(N + 1), rel=1e-9)
    assert float(logdet(np.zeros((40, 40)), 3.0)) == pytest.approx(40 * np.log(3))
    e = logdet(LAPLACIAN, method="slq", probes=8, steps=N)
    assert float(e) == pytest.approx(np.log(N + 1), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_scale_moves_logdet_and_nothing_else(scale):
    one, other = logdet(sampled(GRAM)), logdet(sampled(scale * GRAM))
    assert float(other) - N * np.log(scale) == pytest.approx(float(one), rel=1e-6)
    assert other.stderr == pytest.approx(one.stderr, rel=1e-6)
    assert numerical_rank(scale * LAPLACIAN, 1e-3).value == numerical_rank(LAPLACIAN, 1e-3).value
    assert float(frobenius(scale * LAPLACIAN, seed=1)) == pytest.approx(scale * float(frobenius(LAPLACIAN, seed=1)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounds_hold_the_probes_own_value_and_errors_the_truth(dtype):
    """What infinitely many steps of the same probes give is a run to the end."""
    A = spectral.as_operator(X.astype(dtype)).gram("left")
    end = spectral.slq(A, probes=3, steps=N, deflate=False)
    for steps in (5, 10, 20):
        s = spectral.slq(A, probes=3, steps=steps, deflate=False)
        for form in (
            lambda s: logdet(s, 0.1),
            lambda s: spectral_form(s, 0.1),
            lambda s: spectral_form(s, 1.0, of="dimension"),
        ):
            e, final = form(s), form(end)
            slack = 1e-4 * abs(float(final)) if dtype == np.float32 else 1e-9
            assert e.lower - slack <= float(final) <= e.upper + slack
            assert e.lower <= float(e) + slack
    e = logdet(s, 0.1)
    assert abs(float(e) - np.log(EIGENVALUES + 0.1).sum()) < 4 * e.stderr
    assert np.isnan(logdet(s).lower)  # log 0: nothing keeps a semi-definite matrix from it
    assert logdet(s, interval=(0.9 * EIGENVALUES[0], None)).lower > -np.inf


def test_logdet_refuses_what_has_no_logarithm():
    with pytest.raises(ValueError, match="not finite at the eigenvalue"):
        logdet(np.diag([1.0, 0.0]))
    with pytest.raises(ValueError, match="not finite at the eigenvalue"):
        logdet(np.diag([1.0, -1.0]))
    with pytest.raises(TypeError, match="steps"):
        logdet(sampled(GRAM), steps=5)


# One spectrum, several shifts ------------------------------------------------------------------------------------------
def test_resolvents_and_effective_dimensions_need_no_further_product():
    s, shifts = sampled(GRAM), np.array([0.01, 0.1, 1.0, 10.0])
    before = GRAM.products
    resolvent, dimension = spectral_form(s, shifts), spectral_form(s, shifts, of="dimension")
    assert GRAM.products == before
    assert (np.abs(resolvent.value - (1 / (EIGENVALUES + shifts[:, None])).sum(1)) < 5 * resolvent.stderr).all()
    truth = (EIGENVALUES / (EIGENVALUES + shifts[:, None])).sum(1)
    assert (np.abs(dimension.value - truth) < 5 * dimension.stderr).all()
    assert dimension.value == pytest.approx(N - shifts * resolvent.value, rel=1e-9)
    assert (dimension.lower <= dimension.value + 1e-9).all()
    assert (dimension.value <= dimension.upper + 1e-9).all()
    with pytest.raises(ValueError, match="use one of resolvent, dimension"):
        spectral_form(s, 1.0, of="trace")
    with pytest.raises(ValueError, match="shifts > 0"):
        spectral_form(s, 0.0, of="dimension")


# Frobenius, rank, condition, negative mass -----------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(30, 80), (80, 30), (60, 60)])
def test_frobenius_of_any_shape_is_calibrated(shape):
    A = RNG.standard_normal(shape)
    truth = np.linalg.norm(A)
    found = [frobenius(A, seed=s) for s in range(80)]
    assert 0.8 < np.sqrt(np.mean([((float(e) - truth) / e.stderr) ** 2 for e in found])) < 1.3
    e = frobenius(A, probes=shape[1])
    assert (float(e), e.stderr, e.products) == (pytest.approx(truth), 0.0, shape[1])
    assert float(frobenius(spectral.exact(LAPLACIAN))) == pytest.approx(np.linalg.norm(LAPLACIAN))
    assert (frobenius(np.zeros(shape)).value, frobenius(np.zeros(shape)).stderr) == (0.0, 0.0)


def test_the_rank_holds_where_a_deflated_zero_is_off_by_more_than_rounding():
    """Ritz values of 5e-12 (residual^2 / gap) for 30 zeros, deflated, were said to be none: rank 49 ± 7 for 30."""
    A = spectral.as_operator(np.diag(np.append(np.zeros(30), np.random.default_rng(0).uniform(1, 2, 30))))
    A.nonnegative = True
    for seed in range(2):
        spectrum = spectral.slq(A, probes=16, steps=8, seed=seed)
        e = numerical_rank(spectrum)
        assert e.lower <= 30 <= e.upper and abs(e.value - 30) <= 2 * e.stderr
        assert (spectrum.envelope(np.array([1e-13]))[1] > 0.4).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rank_of_ten_in_a_thousand(dtype):
    B = RNG.standard_normal((1000, 10)).astype(dtype)
    for method in ("exact", "slq"):
        e = numerical_rank(B @ B.T, 1e-4, method=method)
        assert e.lower <= 10 <= e.upper
        assert e.upper - e.lower <= 1
    assert numerical_rank(B.T @ B).value == 10
    assert numerical_rank(np.diag([1.0, -2.0, 0.0, 1e-20])).value == 2
    assert numerical_rank(np.zeros((9, 9))).value == 0
    with pytest.raises(ValueError, match="tol=2"):
        numerical_rank(B, 2)


@pytest.mark.parametrize("seed", range(4))
def test_the_condition_number_of_an_indefinite_matrix_is_never_beyond_it(seed):
    """A Ritz value may pass 0 between eigenvalues on both of its sides: at steps 1, 3, ... of a symmetric spectrum it is 0."""
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((80, 80)))[0]
    for values in (np.linspace(-1, 3, 80), np.append(np.linspace(1, 2, 40), -np.linspace(1, 2, 40))):
        for steps in (5, 20, 40):
            found = condition_number(sampled((Q * values) @ Q.T, steps=steps, seed=seed))
            assert 1 <= found.lower <= found.value <= np.abs(values).max() / np.abs(values).min()


def test_the_condition_number_is_bounded_from_below():
    truth = EIGENVALUES[-1] / EIGENVALUES[0]
    exact = condition_number(X @ X.T)
    assert exact.lower <= truth <= exact.upper
    assert exact.upper - exact.lower < 1e-6 * truth
    before = 1.0
    for steps in (5, 10, 20, 40):
        e = condition_number(sampled(GRAM, steps=steps))
        assert before <= e.lower * (1 + 1e-9) <= truth * (1 + 1e-9)
        assert np.isnan(e.upper)
        before = e.lower
    assert before > 0.5 * truth
    indefinite = RNG.standard_normal((N, N))
    values = np.abs(np.linalg.eigvalsh(indefinite + indefinite.T))
    assert condition_number(sampled(indefinite + indefinite.T)).lower <= values.max() / values.min()
    assert condition_number(np.diag([1.0, 0.0])).value == np.inf
    with pytest.raises(ValueError, match="matrix is 0"):
        condition_number(np.zeros((4, 4)))


def test_the_negative_mass_has_intervals_that_hold():
    B = np.random.default_rng(0).standard_normal((N, N))
    values = np.linalg.eigvalsh(B + B.T + 10 * np.eye(N))
    A = spectral.as_operator(B + B.T + 10 * np.eye(N))
    count, mass = np.mean(values < 0), -values[values < 0].sum() / np.abs(values).sum()
    inside = []
    for seed in range(20):
        found = negative_mass(sampled(A, seed=seed))
        inside.append(
            [found.fraction.lower <= count <= found.fraction.upper, found.mass.lower <= mass <= found.mass.upper]
        )
        assert found.fraction.lower <= found.fraction.value <= found.fraction.upper
    assert (np.mean(inside, 0) >= 0.85).all()
    exact = negative_mass(A)
    assert (exact.fraction.value, exact.mass.value) == pytest.approx((count, mass))
    assert negative_mass(sampled(GRAM)).mass.upper == 0


@pytest.mark.parametrize("empty", [np.zeros((0, 0)), sp.csr_array((0, 0))])
def test_a_matrix_without_entries_has_a_norm_and_no_spectrum(empty):
    """max() of nothing, and a division by 0."""
    assert (frobenius(empty).value, frobenius(empty).stderr) == (0.0, 0.0)
    with pytest.raises(ValueError, match="is empty; it has no spectrum"):
        spectral.esd(empty)


def test_a_small_eigenvalue_that_was_deflated_bounds_the_condition_by_its_error_too():
    """Of -1e-9 below thirty-nine eigenvalues in [1, 2] eight steps find the vector, and the value to 1e-9 only."""
    values = np.append(np.random.default_rng(5).uniform(1, 2, 39), -1e-9)
    for seed in range(6):
        s = spectral.slq(np.diag(values), seed=seed, probes=3, steps=8)
        assert spectral.condition_number(s).lower <= values.max() / 1e-9


@pytest.mark.parametrize("steps", [5, 10, 40])
@pytest.mark.parametrize("shift", [1e-1, 1e-3, 1e-5])
def test_a_shift_is_known_wherever_it_is_said(shift, steps):
    """Lanczos of A + s I is that of A moved by s, and so is what both know of the lower end."""
    r = np.random.default_rng(0)
    G = spectral.as_operator(r.standard_normal((100, 100)) / 10 * np.logspace(0, -4, 100)[:, None]).gram("right")
    one = logdet(G, shift, method="slq", probes=2, steps=steps)
    two = logdet(G + shift * spectral.I, method="slq", probes=2, steps=steps)
    assert two.value == pytest.approx(one.value, rel=1e-6)
    assert two.stderr == pytest.approx(one.stderr, rel=0.02)
    assert [two.lower, two.upper] == pytest.approx([one.lower, one.upper], rel=1e-6)  # the lower one was nan
    weaker = logdet(G + shift * spectral.I, interval=(0.0, None), method="slq", probes=2, steps=steps)
    assert weaker.stderr == two.stderr  # what somebody knows less of is known all the same
    assert (weaker.lower, weaker.upper) == (two.lower, two.upper)
