"""The bulk fit recovers what made the matrix, and counts what was planted above it."""

import numpy as np
import pytest
import scipy.sparse

from spectral import Spectrum, slq
from spectral.analysis import marchenko_pastur, theory
from spectral.analysis.marchenko_pastur import without_probes


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
    assert fit.accepted and fit.reason == ""


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
    assert not flat.accepted and "All positive eigenvalues are equal" in flat.reason


# Verdicts -------------------------------------------------------------------------------------------------------------
def of(values, **options):
    return marchenko_pastur(Spectrum.from_eigenvalues(values), **options)


@pytest.mark.parametrize("entries", ["normal", "of two values", "uniform"])
@pytest.mark.parametrize(("n", "d"), [(800, 40), (300, 150), (150, 150), (60, 180)])
def test_bulks_of_independent_entries_are_accepted(n, d, entries):
    """Universality: variance 1 is all that counts of the entries. One in a thousand is refused."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        X = {
            "normal": lambda rng: rng.standard_normal((n, d)),
            "of two values": lambda rng: rng.choice([-1.0, 1.0], (n, d)),
            "uniform": lambda rng: rng.uniform(-np.sqrt(3), np.sqrt(3), (n, d)),
        }[entries](rng)
        fit = of(np.linalg.eigvalsh(X.T @ X / n))
        assert fit.accepted and fit.reason == "" and fit.spikes == 0


OTHERS = {
    "flat": lambda r: r.uniform(1, 2, 200),
    "lognormal": lambda r: np.exp(0.7 * r.standard_normal(200)),
    "exponential": lambda r: r.exponential(size=200),
    "semicircle": lambda r: (
        3 + np.linalg.eigvalsh((lambda a: (a + a.T) / np.sqrt(1600))(r.standard_normal((200, 200))))
    ),
    "power law": lambda r: (1 - r.random(200)) ** (-1 / 1.5),
    "two bulks": lambda r: np.append(wishart(400, 100), 5 * wishart(400, 100, seed=1)),
    "product of two": lambda r: (
        np.linalg.svd(r.standard_normal((100, 100)) @ r.standard_normal((100, 100)), compute_uv=False) ** 2
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_bulks_of_other_laws_are_refused_in_one_sentence(kind):
    for seed in range(5):
        fit = of(OTHERS[kind](np.random.default_rng(seed)))
        assert not fit.accepted and np.isnan(fit.spikes) and np.isfinite(fit.upper)
        assert fit.reason.endswith(".") and "\n" not in fit.reason
        assert str(fit) == f"no Marchenko–Pastur bulk: {fit.reason}"


def test_a_tail_above_a_bulk_is_no_spikes():
    """A tenth of the bulk or less may be spikes."""
    few, many = (np.append(wishart(1000, 200), np.geomspace(4, 400, k)) for k in (15, 60))
    assert of(few).accepted and of(few).spikes == 15
    assert not of(many).accepted and np.isnan(of(many).spikes)


def test_few_eigenvalues_have_no_verdict():
    fit = of(wishart(60, 15))
    assert not fit.accepted and fit.reason == "The bulk holds 15 eigenvalues, and a verdict needs 20."


@pytest.mark.parametrize("c", [1e-9, 1e9])
def test_verdicts_do_not_depend_on_the_unit(c):
    for values in (wishart(400, 200, spikes=[5.0]), OTHERS["flat"](np.random.default_rng(0))):
        one, two = of(values), of(values * c)
        assert (two.accepted, two.reason) == (one.accepted, one.reason)


# A known ratio --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("n", "d"), [(1200, 300), (300, 600)])
def test_a_known_ratio_fixes_the_shape_and_the_rest_is_fitted(n, d):
    values = wishart(n, d, sigma=1.5)
    fit = of(values, ratio=d / n)
    assert fit.accepted and fit.ratio == pytest.approx(d / n)
    assert fit.sigma == pytest.approx(1.5, rel=0.01)
    assert (fit.lower, fit.upper) == pytest.approx(theory.marchenko_pastur_edges(d / n, fit.sigma))


def test_the_transpose_has_the_same_bulk():
    """XᵀX and XXᵀ differ by zeros alone: 1/γ with σ √γ."""
    values = wishart(800, 200)
    one, two = of(values, ratio=0.25), of(values, ratio=4.0)
    assert (two.lower, two.upper, two.ks, two.accepted) == pytest.approx((one.lower, one.upper, one.ks, one.accepted))
    assert (two.ratio, two.sigma) == pytest.approx((4.0, one.sigma * 0.5))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_a_wrong_ratio_is_refused(ratio):
    assert not of(wishart(800, 200), ratio=ratio).accepted


@pytest.mark.parametrize("ratio", [0, -1.0, float("nan"), float("inf"), "a", True, [0.5]])
def test_what_is_no_ratio_is_refused(ratio):
    with pytest.raises(ValueError, match="is no shape"):
        of(wishart(40, 30), ratio=ratio)


# Quadratures ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [20, 60])
@pytest.mark.parametrize("spikes", [(), (3.0, 5.0, 8.0, 20.0)])
@pytest.mark.parametrize(("n", "d"), [(1600, 400), (600, 300)])
def test_a_quadrature_sees_the_bulk_and_the_spikes_of_the_eigenvalues(n, d, spikes, steps):
    values = wishart(n, d, spikes=spikes, seed=5)
    exact, fit = of(values), marchenko_pastur(slq(scipy.sparse.diags(values), steps=steps))
    assert fit.accepted and fit.spikes == exact.spikes == len(spikes)
    assert (fit.sigma, fit.upper) == pytest.approx((exact.sigma, exact.upper), rel=0.02)
    assert fit.ratio == pytest.approx(exact.ratio, rel=0.1)


def test_quadratures_of_power_laws_are_refused():
    for seed in range(3):
        values = OTHERS["power law"](np.random.default_rng(seed))
        assert not marchenko_pastur(slq(scipy.sparse.diags(values), steps=40)).accepted


@pytest.mark.parametrize("seed", range(3))
def test_a_bulk_in_copies_is_the_bulk(seed):
    """XᵀX ⊗ I has the CDF of XᵀX, and as many copies of its spikes."""
    X = np.random.default_rng(seed).standard_normal((300, 100)) * np.sqrt(1 + np.append([9.0], np.zeros(99)))
    values = np.linalg.svd(X, compute_uv=False) ** 2
    one, many = (marchenko_pastur(Spectrum.from_eigenvalues(np.repeat(values, c))) for c in (1, 4))
    assert one.accepted and many.accepted
    assert (many.bulk, many.spikes) == (4 * one.bulk, 4 * one.spikes)
    assert (many.ratio, many.sigma, many.ks) == pytest.approx((one.ratio, one.sigma, one.ks))


@pytest.mark.parametrize("probes", [2, 3])
@pytest.mark.parametrize(
    ("n", "rank", "steps", "seed"), [(40, 1, 1, 5), (10, 2, 1, 4), (20, 2, 2, 5), (40, 3, 2, 2), (10, 1, 1, 0)]
)
def test_a_quadrature_with_nothing_below_its_gap_has_no_bulk(n, rank, steps, seed, probes):
    """One node or two of a probe stand above a gap, or nowhere: of no eigenvalues there is no law, nor without one probe."""
    B = np.random.default_rng(seed).standard_normal((n, rank))
    spectrum = slq(B @ B.T, probes=probes, steps=steps, seed=seed)
    for fit in (marchenko_pastur(spectrum), *without_probes(spectrum)):
        assert not fit.accepted and fit.reason.endswith(".") and np.isnan(fit.spikes)
