"""Distances against scipy and against closed forms; effect sizes against the noncentral t and a simulation."""

import numpy as np
import pytest
import scipy.sparse
from scipy.stats import ks_2samp, nct, wasserstein_distance

import spectral
from spectral import Spectrum, slq
from spectral.analysis import cohens_d, compare
from spectral.analysis.compare import noncentral_t_cdf
from spectral.cards import with_error

rng = np.random.default_rng(0)
ONE, TWO = rng.exponential(1.0, 200), rng.exponential(2.0, 200)


def of(a, b):
    return compare(Spectrum.from_eigenvalues(a), Spectrum.from_eigenvalues(b))


def test_raw_and_scaled_distances_are_those_of_scipy():
    d = of(ONE, TWO)
    pairs = {
        "": (ONE, TWO),
        "_by_mean": (ONE / ONE.mean(), TWO / TWO.mean()),
        "_by_lambda_max": (ONE / ONE.max(), TWO / TWO.max()),
    }
    for suffix, (x, y) in pairs.items():
        assert d[f"wasserstein{suffix}"] == pytest.approx(wasserstein_distance(x, y))
        assert d[f"ks{suffix}"] == pytest.approx(ks_2samp(x, y).statistic)
    assert d["wasserstein_log10"] == pytest.approx(wasserstein_distance(np.log10(ONE), np.log10(TWO)))
    assert d["trace_ratio"] == pytest.approx(ONE.sum() / TWO.sum())
    assert all(value == 0 for key, value in d.items() if key.endswith("_stderr"))


@pytest.mark.parametrize("c", [1e-9, 3.0, 1e9])
def test_a_scaled_copy_has_the_same_shape(c):
    d = of(ONE, c * ONE)
    for key in ("wasserstein_by_mean", "ks_by_mean", "js_by_mean", "wasserstein_by_lambda_max", "js_by_lambda_max"):
        assert d[key] == pytest.approx(0, abs=0.02), key  # rounding may move a value across a step, or to the next bin
    assert d["wasserstein_log10"] == pytest.approx(abs(np.log10(c)), abs=1e-9)
    assert d["effective_rank_ratio"] == pytest.approx(1.0)
    assert d["lambda_max_ratio"] == pytest.approx(1 / c)


def test_identity_and_symmetry():
    same, there, back = of(ONE, ONE), of(ONE, TWO), of(TWO, ONE)
    assert all(v == pytest.approx(1.0 if "ratio" in k else 0.0) for k, v in same.items() if not k.endswith("_stderr"))
    for key in ("wasserstein", "ks", "js", "wasserstein_log10", "js_by_mean", "ks_by_mean"):
        assert there[key] == pytest.approx(back[key]), key


def test_js_of_a_known_overlap():
    # half of the mass in common, in one bin: p = (1/2, 1/2, 0), q = (1/2, 0, 1/2); JS = 1/2 bit
    assert of([1.0, 2.0], [1.0, 4.0])["js"] == pytest.approx(0.5)
    # zeros and negative values have bins of their own, so nothing is dropped
    assert of([0.0, 1.0], [-1.0, 1.0])["js"] == pytest.approx(0.5)


def test_values_without_logarithm_are_counted():
    d = of([0.0, -2.0, 1.0, 10.0], [1.0, 10.0])
    assert d["wasserstein_log10"] == 0 and d["log10_excluded_a"] == 0.5 and d["log10_excluded_b"] == 0


def test_zero_matrix_has_no_scale_free_distance():
    d = of([0.0, 0.0], [1.0, 3.0])
    assert d["wasserstein"] == 2.0 and d["ks"] == 1.0 and d["trace_ratio"] == 0
    assert np.isnan([d["wasserstein_by_mean"], d["js_by_lambda_max"], d["wasserstein_log10"]]).all()


def test_quadratures_carry_errors():
    values = np.linspace(0.1, 2.0, 100)
    a = slq(np.diag(values), probes=4, steps=25, seed=0, deflate=False)
    b = Spectrum.from_eigenvalues(values)
    d = compare(a, b)
    assert 0 < d["wasserstein_stderr"] < 0.2 and 0 < d["trace_ratio_stderr"] < 0.2
    assert abs(d["trace_ratio"] - 1) < 4 * d["trace_ratio_stderr"]
    assert d["js"] < 0.1  # coarse bins: sixty would find nodes and eigenvalues disjoint


def test_the_error_of_a_divergence_holds_what_noise_adds_to_it():
    """js of two estimates of one spectrum: the truth is 0, and what is found is of the size of the error that is stated."""
    A = scipy.sparse.diags(np.linspace(0.1, 2.0, 200))
    runs = [slq(A, probes=4, steps=30, seed=seed, deflate=False) for seed in range(12)]
    pairs = [compare(a, b) for a, b in zip(runs[::2], runs[1::2], strict=True)]
    for key, most in (("js", 1.3), ("wasserstein", 1.8), ("wasserstein_log10", 2.0)):
        z = [pair[key] / pair[f"{key}_stderr"] for pair in pairs]
        assert np.sqrt(np.mean(np.square(z))) < most, key


def test_the_error_of_a_distance_that_lies_between_0_and_1_does_not_leave_it():
    """Three products of spectra over many decades tell next to nothing; the truth still lies between 0 and 1."""
    found = [
        slq(np.diag(np.logspace(low, 0, 400)), probes=2, steps=3, seed=seed, deflate=False)
        for seed, low in enumerate((-8, -6, -2))
    ]
    pairs = [compare(a, b) for i, a in enumerate(found) for b in found[:i]]
    for pair in pairs:
        for key in ("ks", "js", "js_by_mean", "ks_by_mean"):
            assert pair[f"{key}_stderr"] <= max(pair[key], 1 - pair[key]) + 1e-12, key
    assert any(pair["js_stderr"] == max(pair["js"], 1 - pair["js"]) for pair in pairs)


# Effect sizes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("freedom", [2, 3, 8, 60])
def test_noncentral_t_is_that_of_scipy(freedom):
    for t in (0.0, 0.3, 1.0, 4.0, 25.0):
        for delta in (-2.0, 0.0, 1.5, 8.0):
            assert noncentral_t_cdf(t, freedom, delta) == pytest.approx(nct.cdf(t, freedom, delta), abs=2e-7)


def test_interval_inverts_the_noncentral_t():
    x, y = [3.0, 5.0, 4.0, 6.5, 4.2], [1.0, 2.5, 2.0, 3.0]
    d, lower, upper = cohens_d(x, y, confidence=0.9)
    pooled = np.sqrt((4 * np.var(x, ddof=1) + 3 * np.var(y, ddof=1)) / 7)
    assert d == pytest.approx((np.mean(x) - np.mean(y)) / pooled)
    root = np.sqrt(20 / 9)
    assert nct.cdf(d * root, 7, lower * root) == pytest.approx(0.95, abs=1e-6)
    assert nct.cdf(d * root, 7, upper * root) == pytest.approx(0.05, abs=1e-6)


def test_interval_covers_the_truth():
    draws = np.random.default_rng(1).standard_normal((400, 10))
    inside = [low <= 1.5 <= high for _, low, high in (cohens_d(row[:5] + 1.5, row[5:]) for row in draws)]
    assert 0.92 < np.mean(inside) < 0.98


def test_swap_shift_and_scale():
    x, y = [1.0, 2.0, 4.0], [3.0, 3.5, 7.0, 8.0]
    d, lower, upper = cohens_d(x, y)
    assert cohens_d(y, x) == pytest.approx((-d, -upper, -lower))
    assert cohens_d(np.array(x) * 1e6 + 5, np.array(y) * 1e6 + 5) == pytest.approx((d, lower, upper))
    for c in (1e-300, 1e-170, 1e170, 1e300):  # whose squares float64 does not hold
        assert cohens_d(np.array(x) * c, np.array(y) * c) == pytest.approx((d, lower, upper))


def test_hedges_shrinks_by_its_factor():
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 3.0, 4.0, 5.0, 6.5]
    ratio = np.array(cohens_d(x, y, hedges=True)) / np.array(cohens_d(x, y))
    assert ratio == pytest.approx([1 - 3 / (4 * 8 - 1)] * 3, rel=2e-3)  # the usual approximation of J


def test_groups_far_apart_and_without_spread():
    assert cohens_d([1.0, 1.0], [2.0, 2.0]) == (-np.inf, -np.inf, -np.inf)
    assert np.isnan(cohens_d([1.0, 1.0], [1.0, 1.0])).all()
    d, lower, upper = cohens_d([0.0, 1.0, 2.0], [1e6, 1e6 + 1, 1e6 + 2])
    assert lower < d < upper < -1e5
    with pytest.raises(ValueError, match="at least two"):
        cohens_d([1.0], [1.0, 2.0])


def test_a_comparison_is_a_dict_that_draws_both_spectra_with_their_distance():
    import matplotlib.pyplot as plt

    d = of(ONE, TWO)
    assert isinstance(d, dict) and {**d} == d and type(d | {}) is dict
    _, ax = plt.subplots()
    assert d.plot(ax, labels=("one", "two")) is ax
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert (
        names == ["one", "two"] and f"W1 {with_error(d['wasserstein'], d['wasserstein_stderr'])}, KS" in ax.get_title()
    )
    plt.close(ax.figure)


ONE_VALUE = spectral.Spectrum.from_eigenvalues([1.0])


@pytest.mark.parametrize(
    "of",
    [
        lambda A: compare(A, A),
        lambda A: ONE_VALUE.distance(A),
        spectral.summary,
        spectral.power_law,
        spectral.outliers,
        spectral.marchenko_pastur,
    ],
)
def test_an_operator_is_no_spectrum(of):
    with pytest.raises(TypeError, match=r"is of a Spectrum, and Dense is none; take its spectrum, spectral.esd\(A\)"):
        of(spectral.as_operator(np.eye(3)))


CROWDS = {
    "log-uniform": 10 ** np.random.default_rng(0).uniform(-6, 0, 300),
    "heavy": (1 - np.random.default_rng(1).random(300)) ** (-1 / 0.8),
    "zeros": np.append(np.zeros(150), np.random.default_rng(2).uniform(0.5, 1, 150)),
}


@pytest.mark.parametrize("steps", [4, 16])
@pytest.mark.parametrize("kind", [*CROWDS, "two values"])
def test_w1_lies_within_two_of_its_errors(kind, steps):
    """The triangle inequality: no farther from the truth than both CDFs. A jackknife held a third to a half of them, whatever the
    steps (rms 2 to 19 errors with two probes), and knew nothing of one probe."""
    values = CROWDS.get(kind, np.repeat([1.0, 3.0], [40, 120]))
    exact, shifted = Spectrum.from_eigenvalues(values), Spectrum.from_eigenvalues(1.3 * values)
    same, scaled = compare(exact, exact), compare(exact, shifted)
    held = {}
    for seed in range(15):
        probes = (1, 2, 4)[seed % 3]
        a, b = (slq(scipy.sparse.diags(values), probes=probes, steps=steps, seed=2 * seed + i) for i in (0, 1))
        for found, true in ((compare(a, b), same), (compare(a, exact), same), (compare(a, shifted), scaled)):
            for key in ("wasserstein", "wasserstein_by_mean", "wasserstein_by_lambda_max"):
                held.setdefault(key, []).append(abs(found[key] - true[key]) <= 2 * found[f"{key}_stderr"] + 1e-12)
    assert all(np.mean(inside) >= 0.86 for inside in held.values()), held  # 95 % of 15 draws, less 2 σ


@pytest.mark.parametrize("kind", CROWDS)
def test_ks_between_estimates_of_one_spectrum_lies_within_two_of_its_errors(kind):
    """Twelve steps leave a crowd to one node, which each probe places elsewhere: .3 ± .01 before, in none of 12 within two."""
    values = CROWDS[kind]
    exact, held = Spectrum.from_eigenvalues(values), []
    for seed in range(8):
        a, b = (slq(scipy.sparse.diags(values), probes=4, steps=12, seed=2 * seed + i) for i in (0, 1))
        held += [float(d) <= 2 * d.stderr for d in (a.distance(b, kind="ks"), a.distance(exact, kind="ks"))]
    assert np.mean(held) >= 0.9


def test_steps_of_one_eigenvalue_that_rounding_parts_are_no_distance():
    """The CDF at 2 of eigenvalues 1 and 3 is 1/4 ± sqrt(2 p (1 - p) / (m n)) = .018; KS took a step at 1 + 1e-16 for another."""
    values = np.repeat([1.0, 3.0], [75, 225])
    exact = Spectrum.from_eigenvalues(values)
    for seed in range(6):
        a, b = (slq(scipy.sparse.diags(values), probes=4, steps=12, seed=2 * seed + i) for i in (0, 1))
        assert float(a.distance(exact, kind="ks")) < 4 * 0.018
        assert float(a.distance(b, kind="ks")) < 4 * 2**0.5 * 0.018
    parted = Spectrum.from_eigenvalues(values * (1 + 2.0**-52))
    assert float(parted.distance(exact, kind="ks")) == 0
    assert float(Spectrum.from_eigenvalues(values * (1 + 1e-9)).distance(exact, kind="ks")) == 0.75


@pytest.mark.parametrize("steps", [1, 3, 30])
@pytest.mark.parametrize("kind", [*CROWDS, "two values"])
def test_divergences_and_decades_lie_within_two_of_their_errors(kind, steps):
    """Of one spectrum all are 0. By a jackknife, which knows nothing of truncation, js and the decades lay within two errors in 2
    to 7 of 10 (off by up to 1e15 of them), and KS over means, whose steps stand where the means are, in none."""
    values = CROWDS.get(kind, np.repeat([1.0, 3.0], [40, 120]))
    exact, held = Spectrum.from_eigenvalues(values), {}
    for seed in range(4):
        a, b = (slq(scipy.sparse.diags(values), probes=1 + seed % 2, steps=steps, seed=2 * seed + i) for i in (0, 1))
        for found in (compare(a, b), compare(a, exact)):
            for key in ("js", "js_by_mean", "js_by_lambda_max", "wasserstein_log10", "ks_by_mean", "ks_by_lambda_max"):
                # nan by a unit that is not told from 0
                held.setdefault(key, []).append(not found[key] > 2.1 * found[f"{key}_stderr"] + 1e-12)
    assert all(np.mean(inside) >= 7 / 8 for inside in held.values()), held


def test_a_unit_that_may_be_0_makes_no_error():
    """Ten of -1 and ten of 1.01: the mean of one probe is not told from 0, and nothing over it is known."""
    values = np.repeat([-1.0, 1.01], 10)
    for seed in range(3):
        found = compare(slq(np.diag(values), probes=1, steps=5, seed=seed), Spectrum.from_eigenvalues(values))
        for key in ("ks_by_mean", "js_by_mean"):
            assert np.isnan(found[f"{key}_stderr"])
        assert np.isfinite(found["wasserstein_stderr"])
