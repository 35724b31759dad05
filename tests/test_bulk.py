"""The bulk fit recovers what made the matrix, and counts what was planted above it."""

import numpy as np
import pytest

from spectral import Spectrum
from spectral.analysis import marchenko_pastur, theory


def wishart(n, d, sigma=1.0, spikes=(), seed=0):
    X = sigma * np.random.default_rng(seed).standard_normal((n, d))
    X[:, : len(spikes)] *= np.sqrt(1 + np.array(spikes))
    return np.linalg.eigvalsh(X.T @ X / n)


@pytest.mark.parametrize(("n", "d", "sigma"), [(1200, 300, 1.5), (500, 400, 1.0), (500, 500, 0.1), (300, 600, 2.0)])
def test_recovers_variance_ratio_and_edges(n, d, sigma):
    fit = marchenko_pastur(Spectrum.from_eigenvalues(wishart(n, d, sigma)))
    assert fit.ratio == pytest.approx(d / n, rel=0.04)
    assert fit.sigma == pytest.approx(sigma, rel=0.02)
    assert fit.upper == pytest.approx(theory.marchenko_pastur_edges(d / n, sigma)[1], rel=0.03)
    assert fit.spikes == 0
    assert fit.ks < 1.36 / np.sqrt(fit.bulk)
    assert (fit.zeros, fit.bulk) == (max(0, d - n), min(n, d))


def test_counts_planted_spikes_and_keeps_the_bulk():
    fit = marchenko_pastur(Spectrum.from_eigenvalues(wishart(1600, 400, spikes=[3.0, 5.0, 8.0, 20.0, 900.0])))
    assert fit.spikes == 5
    assert fit.ratio == pytest.approx(0.25, rel=0.04) and fit.sigma == pytest.approx(1.0, rel=0.02)


def test_a_spike_below_the_transition_is_not_seen():
    assert marchenko_pastur(Spectrum.from_eigenvalues(wishart(1600, 400, spikes=[0.3]))).spikes == 0


def test_pure_bulks_seldom_show_a_spike():
    found = [marchenko_pastur(Spectrum.from_eigenvalues(wishart(240, 120, seed=s))).spikes for s in range(60)]
    assert sum(found) <= 1


@pytest.mark.parametrize("c", [1e-9, 1e9])
def test_scale_equivariance(c):
    values = wishart(400, 200, spikes=[5.0])
    one, two = (marchenko_pastur(Spectrum.from_eigenvalues(values * s)) for s in (1.0, c))
    assert (two.ratio, two.ks, two.spikes) == pytest.approx((one.ratio, one.ks, one.spikes))
    assert (two.upper, two.sigma**2) == pytest.approx((one.upper * c, one.sigma**2 * c))


def test_spectra_without_a_bulk():
    for values in ([0.0, 0.0, 0.0], [-1.0, -2.0]):
        fit = marchenko_pastur(Spectrum.from_eigenvalues(values))
        assert np.isnan([fit.sigma, fit.ratio, fit.upper, fit.spikes, fit.ks]).all()
    assert marchenko_pastur(Spectrum.from_eigenvalues([-1.0, -2.0])).negative == 2
    flat = marchenko_pastur(Spectrum.from_eigenvalues([2.0, 2.0, 2.0]))
    assert (flat.sigma, flat.ratio, flat.lower, flat.upper, flat.spikes) == (2**0.5, 0.0, 2.0, 2.0, 0.0)
