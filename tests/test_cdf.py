"""Curves: their limits, their mixture and their distances, against scipy and against integrals done by hand or on a fine grid."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

import spectral
from spectral.quadrature import cdf

LINE = (np.array([0.0, 1.0]), np.array([0.0, 1.0]))  # uniform on [0, 1]
HALF = (np.array([0.0, 0.0, 2.0]), np.array([0.0, 0.5, 1.0]))  # an atom of mass 1/2 at 0, the rest uniform on [0, 2]


def steps(values, masses):
    return cdf.staircase(np.asarray(values, float), np.asarray(masses, float) / np.sum(masses))


def test_distances_are_those_of_scipy_and_metrics():
    rng = np.random.default_rng(3)
    sets = [(np.sort(np.round(rng.standard_normal(n), 1)), rng.integers(1, 5, n).astype(float)) for n in (30, 40, 50)]
    a, b, c = (steps(*one) for one in sets)
    for kind in ("wasserstein", "ks"):
        d = lambda x, y, kind=kind: cdf.distance(x, y, kind)  # noqa: E731
        assert d(a, a) == pytest.approx(0, abs=1e-15)
        assert d(a, b) == pytest.approx(d(b, a))
        assert d(a, c) <= d(a, b) + d(b, c) + 1e-12
    (x, u), (y, v) = sets[:2]
    assert cdf.distance(a, b, "wasserstein") == pytest.approx(stats.wasserstein_distance(x, y, u, v))
    whole = [np.repeat(x, w.astype(int)) for x, w in sets[:2]]
    assert cdf.distance(a, b, "ks") == pytest.approx(stats.ks_2samp(*whole).statistic)


def test_limits_on_pieces_at_jumps_and_outside():
    left, right = cdf.limits(HALF, np.array([-1.0, 0.0, 1.0, 2.0, 3.0, np.inf]))
    np.testing.assert_allclose(left, [0, 0, 0.75, 1, 1, 1])
    np.testing.assert_allclose(right, [0, 0.5, 0.75, 1, 1, 1])


def test_distances_by_hand():
    # F - G = x - 1/2 - x/4 on [0, 1]: zero at 2/3; then 1/2 - x/4 on [1, 2]
    expected = 0.5 * (2 / 3) * 0.5 + 0.5 * (1 / 3) * 0.25 + 0.5 * 1 * 0.25
    assert cdf.distance(LINE, HALF, "wasserstein") == pytest.approx(expected, rel=1e-12)
    assert cdf.distance(LINE, HALF, "ks") == pytest.approx(0.5)
    assert cdf.distance(LINE, steps([0.5], [1]), "wasserstein") == pytest.approx(0.25)


def test_a_mixture_is_the_mixture_everywhere():
    mixed = cdf.pooled([LINE, HALF, steps([0.3], [1])], [0.5, 0.3, 0.2])
    x = np.linspace(-0.5, 2.5, 301) + 1e-4
    parts = [cdf.limits(c, x)[1] for c in (LINE, HALF, steps([0.3], [1]))]
    np.testing.assert_allclose(cdf.limits(mixed, x)[1], np.dot([0.5, 0.3, 0.2], parts), atol=1e-14)


SPECTRA = {
    "uniform": np.linspace(0, 1, 900),
    "outliers and zeros": np.concatenate([np.zeros(40), np.random.default_rng(0).uniform(0, 1, 600), [3.0, 7.0, 20.0]]),
    "two points": np.repeat([0.0, 1.0], 200),
    "three clusters": np.concatenate([c + 1e-3 * np.random.default_rng(1).standard_normal(150) for c in (0, 1, 5)]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [6, 30])
def test_the_curve_of_a_spectrum_is_its_cdf(name, steps):
    s = spectral.slq(sp.diags_array(SPECTRA[name]).tocsr(), probes=3, steps=steps)
    low, high = s.interval
    x = np.random.default_rng(2).uniform(low, high, 400)
    np.testing.assert_allclose(cdf.limits(s.curve, x)[1], s.cdf(x).value, atol=0.02)
    t, F = s.curve
    assert (np.diff(t) >= 0).all() and (np.diff(F) >= -1e-12).all() and F[0] >= 0 and F[-1] == pytest.approx(1)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [3, 30])
def test_the_stated_truncation_bounds_the_distance_that_many_probes_leave(name, steps):
    """Of 40 probes, noise included in what is stated for 95 % of the draws."""
    truth = spectral.Spectrum.from_eigenvalues(SPECTRA[name])
    s = spectral.slq(sp.diags_array(SPECTRA[name]).tocsr(), probes=40, steps=steps, deflate=False)
    low, high = truth.interval
    assert float(s.distance(truth).value) <= 1.05 * s.meta["error"]["w1_95"] * (high - low)


def test_the_middle_of_the_envelope_is_nearer_than_the_nodes():
    for name in ("uniform", "outliers and zeros"):
        truth = spectral.Spectrum.from_eigenvalues(SPECTRA[name])
        s = spectral.slq(sp.diags_array(SPECTRA[name]).tocsr(), probes=20, steps=10, deflate=False)
        x, c = s.points()
        nodes = cdf.distance(steps(x, c), truth.curve, "wasserstein")
        assert float(s.distance(truth).value) <= nodes


def test_an_exact_two_step_rule_stays_two_steps():
    s = spectral.slq(sp.diags_array(SPECTRA["two points"]).tocsr(), probes=2, steps=10)
    truth = spectral.Spectrum.from_eigenvalues(SPECTRA["two points"])
    assert float(s.distance(truth).value) <= s.meta["error"]["w1_95"]
    near = []
    for seed in range(30):
        s = spectral.kpm(sp.diags_array(SPECTRA["two points"]).tocsr(), probes=4, seed=seed)
        near.append(float(s.distance(truth).value) <= s.meta["error"]["w1_95"])
    assert np.mean(near) >= 0.83  # 25 of 30 at .95: all but one in 300 runs


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [4, 12, 60])
def test_the_samples_of_a_curve_are_enough(name, steps):
    """Against the middle of the envelope on a fine grid: what is lost between the samples is far less than the stated error."""
    s = spectral.slq(sp.diags_array(SPECTRA[name]).tocsr(), probes=2, steps=steps)
    if s.is_exact:
        return
    low, high = s.interval
    x = np.linspace(low, high, 6001)[1:-1]
    for k in range(2):
        lower, upper = s.probe_envelope(k, x)
        ours = np.add(*cdf.limits(s.probe_curves[k], x)) / 2
        lost = np.abs(ours - np.maximum.accumulate((lower + upper) / 2)).mean()
        assert lost <= 0.05 * s.meta["error"]["w1"] * s.dim / s.unresolved + 1e-6


def test_the_quantile_inverts_the_cdf():
    s = spectral.slq(sp.diags_array(SPECTRA["uniform"]).tocsr(), probes=3, steps=20)
    for q in (0.03, 0.2, 0.5, 0.77, 0.99):
        value = float(s.quantile(q))
        assert float(s.cdf(value).value) == pytest.approx(q, abs=5e-3)
        left, right = cdf.limits(s.curve, np.array([value]))
        assert left[0] - 1e-9 <= q <= right[0] + 1e-9
    assert (float(s.quantile(0.0)), float(s.quantile(1.0))) == s.interval


def test_the_bounds_of_a_quantile_are_where_the_band_crosses_it():
    s = spectral.slq(sp.diags_array(SPECTRA["outliers and zeros"]).tocsr(), probes=3, steps=20)
    low, high = s.interval
    x = np.linspace(low, high, 4001)
    band, step = s.cdf(x), (high - low) / 4000
    for q in (0.02, 0.3, 0.9):
        e = s.quantile(q)
        below, above = x[band.upper < q], x[band.lower >= q]
        assert e.lower == pytest.approx(below[-1], abs=1.01 * step) if len(below) else e.lower == -np.inf
        assert e.upper == pytest.approx(above[0], abs=1.01 * step) if len(above) else e.upper == np.inf


@pytest.mark.parametrize("probes", [1, 4])
def test_the_error_of_ks_is_that_of_its_two_spectra(probes):
    """The triangle inequality: of each the largest noise of its probes, whose bridge has the Kolmogorov law, 1.358 in 5 % of the
    draws, times sqrt(2 / (m n + 2)), and half of the certified envelope where the distance is largest."""
    A = sp.diags_array(SPECTRA["uniform"]).tocsr()
    s, other = (spectral.slq(A, probes=probes, steps=15, seed=i, deflate=False) for i in (0, 1))
    x = np.unique(np.concatenate([s.curve[0], other.curve[0]]))
    x = np.concatenate([x - 1e-14, x + 1e-14])
    F, G = (cdf.limits(one.curve, x)[0] for one in (s, other))
    envelopes = [one.envelope(x[[np.argmax(np.abs(F - G))]]) for one in (s, other)]
    noise = 1.358 * np.sqrt(2 / (probes * s.dim + 2)) / 1.96
    whole = np.linalg.norm([float(high[0] - low[0]) / 2 + noise for low, high in envelopes])
    # of fifteen nodes the bridge is seen at fifteen points
    assert 0.8 * whole < s.distance(other, "ks").stderr < 1.05 * whole


def test_a_large_eigenvalue_that_two_probes_hardly_see_hides_none_of_their_noise():
    """Three outliers carry the W1 error: masses that are drawn small made what was stated small, a third of the error."""
    values = np.append(np.zeros(37), [10.0, 100.0, 1000.0])
    truth = spectral.Spectrum.from_eigenvalues(values)
    for seed in range(40):
        s = spectral.slq(np.diag(values), seed=seed, probes=2, steps=12, deflate=False)
        assert float(s.distance(truth).value) <= 1.1 * s.meta["error"]["w1_95"] * np.ptp(s.interval)


@pytest.mark.filterwarnings("error")
def test_a_curve_far_from_0_is_finite_beside_its_nodes():
    """Points 1e-15 of T's radius from a node: single precision divided by a cube of that, and the CDF was NaN."""
    values = 1000 + np.random.default_rng(0).standard_normal(150)
    for seed in range(4):
        for steps in (3, 4, 8):
            F = spectral.slq(np.diag(values), probes=1, steps=steps, seed=seed).curve[1]
            assert np.isfinite(F).all() and (np.diff(F) >= -1e-6).all()
