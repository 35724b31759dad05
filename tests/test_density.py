"""Densities: normalised, equal to the kernel formula, inside their band, and the same at every scale."""

import matplotlib as mpl
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.integrate import trapezoid

import spectral
from spectral import Spectrum

mpl.use("Agg")
RNG = np.random.default_rng(1)


def diagonal(values):
    return sp.diags_array(np.asarray(values, dtype=float)).tocsr()


def kernel_formula(values, t, width):
    return np.exp(-0.5 * ((t[:, None] - values) / width) ** 2).sum(1) / (len(values) * width * np.sqrt(2 * np.pi))


def test_an_exact_spectrum_is_the_kernel_formula():
    values = RNG.standard_normal(60)
    d = Spectrum.from_eigenvalues(values).density(resolution=0.03)
    expected = kernel_formula(values, d.x, 0.03 * np.ptp(values))
    np.testing.assert_allclose(d.value, expected, rtol=1e-12)
    np.testing.assert_allclose([d.lower, d.upper], [expected] * 2, rtol=1e-12)
    positive = np.exp(3 * values)
    d = Spectrum.from_eigenvalues(positive).density(scale="log", resolution=0.2)
    expected = kernel_formula(np.log10(positive), np.log10(d.x), 0.2) / (d.x * np.log(10))
    np.testing.assert_allclose(d.value, expected, rtol=1e-9)


SPECTRA = {
    "exact": lambda: Spectrum.from_eigenvalues(RNG.uniform(0.1, 2, 80), zeros=20),
    "slq": lambda: spectral.slq(diagonal(np.append(RNG.uniform(0.01, 1, 300), [4.0, 9.0])), steps=30),
    "gram": lambda: spectral.slq(spectral.as_operator(RNG.standard_normal((50, 150))).gram("right"), steps=30),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_density_integrates_to_what_is_on_the_axis(name, scale):
    s = SPECTRA[name]()
    d = s.density(scale=scale)
    assert trapezoid(d.value, d.x) == pytest.approx(1 - d.outside, abs=0.01)
    assert d.outside >= s.zeros / s.dim - 1e-9
    assert (d.lower <= d.value).all() and (d.value <= d.upper).all() and (d.lower >= 0).all()


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_band_contains_the_smoothed_truth(scale):
    inside = []
    for seed in range(20):
        values = np.sort(np.append(np.random.default_rng(seed).uniform(0.05, 1, 200), [3.0, 5.0]))
        s = spectral.slq(diagonal(values), steps=30, seed=seed)
        x = np.linspace(0.1, 5, 60) if scale == "linear" else np.geomspace(0.1, 5, 60)
        d = s.density(x, scale=scale)
        low, high = s.interval
        width = d.resolution * (high - low) if scale == "linear" else d.resolution
        t, centre = (x, values) if scale == "linear" else (np.log10(x), np.log10(values))
        truth = kernel_formula(centre, t, width) / (1 if scale == "linear" else x * np.log(10))
        inside.append((d.lower <= truth * (1 + 1e-6)) & (truth <= d.upper * (1 + 1e-6) + 1e-9))
    assert np.mean(inside) >= 0.93


@pytest.mark.parametrize("factor", [1e-9, 1e9, 2.0**-20])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_scaling_the_matrix_scales_the_density(factor, scale):
    values = np.append(RNG.uniform(0.1, 1, 100), 7.0)
    for make in (Spectrum.from_eigenvalues, lambda v: spectral.slq(diagonal(v), steps=20)):
        one, two = (make(values * c).density(scale=scale) for c in (1.0, factor))
        np.testing.assert_allclose(two.x, one.x * factor, rtol=1e-9)
        np.testing.assert_allclose(two.value * factor, one.value, rtol=1e-4, atol=1e-3 * one.value.max())


@pytest.mark.parametrize("value", [2.0, -1e-9, 1e12])
def test_one_distinct_eigenvalue_has_a_kernel_of_its_own_size(value):
    d = Spectrum.from_eigenvalues([value] * 4).density()
    assert trapezoid(d.value, d.x) == pytest.approx(1, abs=0.01)
    assert np.ptp(d.x) == pytest.approx(6 * 0.02 * abs(value))


def test_an_indefinite_spectrum_on_the_log_scale_says_what_is_outside():
    s = Spectrum.from_eigenvalues([-3.0, -1.0, 0.5, 2.0], zeros=1)
    d = s.density(scale="log")
    assert d.outside == pytest.approx(3 / 5)
    assert trapezoid(d.value, d.x) == pytest.approx(2 / 5, abs=0.01)
    q = spectral.slq(diagonal(np.linspace(-1, 1, 200)), steps=20)
    assert q.density(scale="log").outside == pytest.approx(0.5, abs=0.15)


def test_what_has_no_density_is_one_sentence():
    zero, one = Spectrum.from_eigenvalues([0.0, -1.0]), Spectrum.from_eigenvalues([1.0, 2.0])
    for call in (
        lambda: zero.density(scale="log"),
        lambda: one.density(scale="cubic"),
        lambda: one.density(resolution=0.0),
        lambda: one.density([-1.0], scale="log"),
        lambda: spectral.slq(diagonal(np.linspace(0, 1, 200)), steps=10).density([0.0, 1e9]),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_zero_matrix_has_a_linear_density():
    d = spectral.slq(np.zeros((5, 5))).density()
    assert np.isfinite(d.value).all()


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_plot_says_what_it_does_not_show(scale):
    s = SPECTRA["gram"]()
    ax = s.plot(scale=scale)
    label = ax.get_legend().get_texts()[0].get_text()
    assert "% not on this axis" in label
    assert 66.5 <= float(label.split("(")[1].split()[0]) <= 68.5  # 100 zeros of 150
    assert s.plot(ax, scale=scale, label="mine", color="red") is ax
    mpl.pyplot.close("all")
