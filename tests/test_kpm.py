"""kpm: the measure of slq on the same probes, exact to its degree, honest where moments determine less; jackson for pictures."""

import json
from math import comb

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.polynomial.chebyshev import chebvander
from scipy.integrate import trapezoid

import spectral
from spectral.estimators.kpm import damping, jackson, kpm, moments_of
from spectral.krylov.lanczos import Lanczos, lanczos
from spectral.operators.operator import Operator

RNG = np.random.default_rng(0)
BULK = RNG.uniform(0, 1, 300)
GAPS = np.append(BULK, [3.0, 8.0, 30.0])
X = RNG.standard_normal((200, 400))
SPECTRA = {
    "marchenko-pastur": np.linalg.eigvalsh(X @ X.T / 400),
    "uniform": RNG.uniform(-1, 1, 200),
    "outliers": np.append(RNG.uniform(0, 1, 192), np.geomspace(3, 100, 8)),
    "log-uniform": 10 ** RNG.uniform(-6, 0, 200),
    "two-point": np.repeat([1.0, 3.0], [50, 150]),
}
BOTH = pytest.mark.parametrize("recurrence", ["lanczos", "chebyshev"])


def diagonal(values, dtype=np.float64):
    return sp.diags_array(np.asarray(values, dtype=dtype)).tocsr()


def around(values, by=0.002):
    pad = by * np.ptp(values) / 2
    return float(np.min(values) - pad), float(np.max(values) + pad)


# The measure ---------------------------------------------------------------------------------------------------------
def test_the_lanczos_recurrence_gives_the_bits_of_slq():
    ours = kpm(diagonal(GAPS), moments=40, seed=3)
    theirs = spectral.slq(diagonal(GAPS), steps=20, seed=3, deflate=False, reorthogonalize=False)
    np.testing.assert_array_equal(ours.nodes, theirs.nodes)
    np.testing.assert_array_equal(ours.weights, theirs.weights)
    assert (ours.products, ours.method) == (theirs.products, "kpm") == (80, "kpm")


@pytest.mark.parametrize(("dtype", "moments", "tolerance"), [(np.float64, 40, 1e-7), (np.float32, 16, 1e-3)])
def test_both_recurrences_give_the_same_measure_of_a_filled_interval(dtype, moments, tolerance):
    A, interval = diagonal(BULK, dtype), around(BULK)
    direct = kpm(A, moments=moments, recurrence="chebyshev", interval=interval)
    theirs = kpm(A, moments=moments, interval=interval)
    assert direct.products == theirs.products == 4 * moments // 2
    assert [r.steps for r in direct.records] == [moments // 2] * 4
    np.testing.assert_allclose(direct.nodes, theirs.nodes, atol=tolerance)
    np.testing.assert_allclose(direct.weights, theirs.weights, atol=tolerance)
    np.testing.assert_allclose(
        [m[:moments] for m in direct.meta["chebyshev_moments"]],
        theirs.meta["chebyshev_moments"],
        atol=100 * np.finfo(dtype).eps,
    )


@pytest.mark.parametrize(
    ("recurrence", "moments"), [("lanczos", 2), ("lanczos", 24), ("chebyshev", 2), ("chebyshev", 24)]
)
def test_each_probe_is_exact_for_polynomials_of_degree_less_than_moments(recurrence, moments):
    s = kpm(diagonal(BULK), moments=moments, recurrence=recurrence, probes=2)
    for k, (nodes, weights) in enumerate(zip(s.nodes, s.weights, strict=True)):
        g = spectral.probes.probe(0, k, 300).numpy() ** 2
        share = g / g.sum()
        exact = share @ chebvander(2 * BULK - 1, moments)  # T_0, ..., T_moments on [0, 1]
        found = weights @ chebvander(2 * nodes - 1, moments)
        np.testing.assert_allclose(found[:moments], exact[:moments], atol=1e-11)
        assert abs(found[moments] - exact[moments]) > 1e-3


@BOTH
def test_weights_are_a_measure_and_zeros_are_carried_exactly(recurrence):
    B = np.random.default_rng(1).standard_normal((30, 80))
    s = kpm(B, recurrence=recurrence)
    assert (s.dim, s.zeros) == (30, 0)
    wide = kpm(spectral.as_operator(B).gram("right"), recurrence=recurrence)
    assert (wide.dim, wide.zeros) == (80, 50)
    assert wide.count(-1e-9, 0).value == 50
    assert (wide.weights >= 0).all()
    np.testing.assert_allclose(wide.weights.sum(1), 30 / 80)
    np.testing.assert_allclose(wide.integrate(lambda x: x).value, s.integrate(lambda x: x).value, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("A", [2 * np.eye(50), np.zeros((50, 50)), -1e-30 * np.eye(50)], ids=["2I", "0", "tiny"])
def test_multiples_of_the_identity_take_one_step_a_probe(A, recurrence):
    s = kpm(A, recurrence=recurrence)
    again = 0 if A.any() else 4 if recurrence == "lanczos" else 1  # a first product that is 0 is made again
    assert s.products == (4 if recurrence == "lanczos" else 5) + again
    assert float(s.integrate(lambda x: x).value) == pytest.approx(np.trace(A))
    assert s.count(-np.inf, 3).value == 50
    assert s.meta["error"]["w1"] == 0
    s.density(), s.quantile(0.5), repr(s), jackson(s)


@BOTH
def test_rank_10_in_dimension_1000(recurrence):
    values = np.append(np.zeros(990), np.arange(1.0, 11.0))
    s = kpm(diagonal(values), recurrence=recurrence, moments=60)
    b = s.count([0.5, 9.5], np.inf)
    assert (b.lower <= [10, 1]).all()
    assert (b.upper >= [10, 1]).all()
    e = s.integrate(lambda x: x)
    assert abs(float(e.value) - 55) <= 4 * float(e.stderr)
    if recurrence == "chebyshev":
        assert [r.steps for r in s.records] == [11] * 4
        np.testing.assert_allclose(s.nodes, np.tile(np.arange(11.0), (4, 1)), atol=1e-5)


def test_kac_matrix_has_its_eigenvalues():
    m = 12
    beta = np.sqrt(np.arange(1, m + 1) * np.arange(m, 0, -1))
    s = kpm(np.diag(beta, 1) + np.diag(beta, -1), moments=2 * m + 2, recurrence="chebyshev", interval=(-m, m), probes=1)
    np.testing.assert_allclose(s.nodes[0], np.arange(-m, m + 1, 2), atol=1e-3)
    first = np.eye(m + 1)[0]
    record = lanczos(spectral.as_operator(np.diag(beta, 1) + np.diag(beta, -1)), torch.as_tensor(first), m + 1)
    fourth = sum(comb(m, i) / 2**m * np.cos(4 * np.arccos(-1 + 2 * i / m)) for i in range(m + 1))
    assert moments_of(record, (-m, m), 5)[4] == pytest.approx(fourth)


@BOTH
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("factor", "shift"), [(1e-9, 0.0), (1e9, 0.0), (-2.0, 3.0), (2.0**-33, 0.0)])
def test_scale_and_shift_move_the_measure_along(recurrence, dtype, factor, shift):
    """Bands from all steps; moments alone where the coefficients beyond hang on rounding."""
    values = SPECTRA["uniform"].astype(dtype)
    moved = (dtype(factor) * values + dtype(shift)).astype(dtype)
    one, two = (kpm(diagonal(v, dtype), moments=12, recurrence=recurrence) for v in (values, moved))
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(
        two.meta["interval"], sorted(factor * np.array(one.meta["interval"]) + shift), rtol=3e4 * eps
    )
    sign = (np.sign(factor) ** np.arange(12))[None]
    mine, theirs = (np.array([m[:12] for m in s.meta["chebyshev_moments"]]) for s in (one, two))
    np.testing.assert_allclose(theirs, mine * sign, atol=1e5 * eps)
    if dtype is np.float64:
        back = np.sort((two.nodes - shift) / factor, axis=1)
        np.testing.assert_allclose(back, one.nodes, atol=1e-7)


# The interval --------------------------------------------------------------------------------------------------------
@BOTH
def test_meta_is_plain_json_and_says_what_was_run(recurrence):
    for interval in (None, (-0.1, 1.1)):
        s = kpm(diagonal(BULK), moments=20, recurrence=recurrence, interval=interval)
        assert json.loads(json.dumps(s.meta)) == spectral.storage.plain(s.meta)
        meta = s.meta
        assert (meta["damping"], meta["recurrence"], meta["moments"], meta["seed"]) == ("none", recurrence, 20, 0)
        low, high = meta["interval"]
        assert low < BULK.min() + 0.01 < BULK.max() - 0.01 < high
        assert (meta["interval_from"] == "given") == (interval is not None)
        assert s.products == 40 + (20 if recurrence == "chebyshev" and interval is None else 0)


@BOTH
def test_an_interval_that_does_not_hold_the_spectrum_is_one_sentence(recurrence):
    with pytest.raises(ValueError, match="lies outside") as error:
        kpm(diagonal(GAPS), interval=(0.0, 10.0), recurrence=recurrence)
    assert "\n" not in str(error.value)


def test_an_eigenvalue_that_the_first_steps_missed_restarts_on_a_wider_interval():
    class Late(Operator):
        """Hides its largest eigenvalue from the Lanczos steps that look for the interval, and from the first probe."""

        def _apply(self, V):
            hidden = torch.as_tensor(np.append(BULK, 0.5 if self.products <= 40 else 1.5))
            return hidden[:, None] * V

    s = kpm(Late((301, 301), torch.float64, symmetric=True), moments=40, recurrence="chebyshev")
    assert s.meta["restarts"] >= 1
    assert s.meta["interval"][1] >= 1.499
    assert s.products > 100
    later = np.append(BULK, 1.5)
    for k, mu in enumerate(s.meta["chebyshev_moments"]):  # the first probe's, moved to the new interval, among them
        g = spectral.probes.probe(0, k, 301).numpy() ** 2
        low, high = s.meta["interval"]
        values = later if k else np.append(BULK, 0.5)
        t = (2 * values - low - high) / (high - low)
        expected = [(g / g.sum()) @ np.cos(j * np.arccos(np.clip(t, -1, 1))) for j in range(40)]
        np.testing.assert_allclose(mu[:40], expected, atol=1e-2 if t.max() > 1 else 1e-12)


# Errors --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "recurrence"), [("uniform", "chebyshev"), ("outliers", "lanczos")])
def test_bands_cover(name, recurrence, count=25):
    """How often the 95 % bands of cdf and counts hold the truth, and rms z-scores of the trace, over seeded trials."""
    values = np.sort(SPECTRA[name])
    A, n = spectral.as_operator(np.diag(values)), len(values)
    x = np.quantile(values, [0.1, 0.5, 0.9, 0.98]) + 1e-4 * np.ptp(values)
    below = np.searchsorted(values, x, side="right")
    covered, z = [], []
    for seed in range(count):
        s = kpm(A, seed=seed, moments=24, recurrence=recurrence)
        band, number, e = s.cdf(x), s.count(x[:-1], x[1:]), s.integrate(lambda t: t)
        covered.append((band.lower * n - 1e-9 <= below) & (below <= band.upper * n + 1e-9))
        covered[-1] = np.append(covered[-1], (number.lower <= np.diff(below)) & (np.diff(below) <= number.upper))
        z.append((float(e.value) - values.sum()) / float(e.stderr))
    assert np.mean(covered) >= 0.93
    assert np.mean(covered, axis=0).min() >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / count)
    assert 0.6 <= np.sqrt(np.mean(np.square(z))) <= 1.3


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("name", SPECTRA)
def test_bands_cover_in_many_trials(name, recurrence):
    test_bands_cover(name, recurrence, count=250)


def test_truncated_moments_state_a_larger_error_that_still_holds():
    truth = spectral.Spectrum.from_eigenvalues(GAPS)
    adaptive, direct = (kpm(diagonal(GAPS), recurrence=r) for r in ("lanczos", "chebyshev"))
    assert set(direct.meta["stops"]) == {"rounding"}
    assert direct.meta["made_steps"] == adaptive.meta["made_steps"] == adaptive.meta["kept_steps"] == [100] * 4
    assert direct.meta["kept_steps"] == [r.steps for r in direct.records]
    assert max(r.steps for r in direct.records) < 15
    assert direct.meta["error"]["truncation"] > 10 * adaptive.meta["error"]["truncation"]
    for s in (adaptive, direct):
        assert float(s.distance(truth).value) <= 2 * s.meta["error"]["w1"] * np.ptp(GAPS)


def test_the_same_seed_gives_the_same_bits_and_a_file_gives_them_back(tmp_path):
    one = kpm(diagonal(GAPS), seed=5, recurrence="chebyshev", moments=30)
    torch.manual_seed(1)
    two = kpm(diagonal(GAPS), seed=5, recurrence="chebyshev", moments=30, probes=2)
    np.testing.assert_array_equal(one.nodes[:2], two.nodes[:, : one.nodes.shape[1]])
    one.save(tmp_path / "s.npz")
    loaded = spectral.Spectrum.load(tmp_path / "s.npz")
    np.testing.assert_array_equal(loaded.weights, one.weights)
    np.testing.assert_allclose(jackson(loaded).value, jackson(one).value)


def test_spectra_of_kpm_and_slq_merge():
    one, two = kpm(diagonal(BULK), moments=40, seed=1), spectral.slq(diagonal(BULK), steps=20, seed=2, deflate=False)
    both = one.merge(two)
    assert len(both.records) == 8
    assert jackson(both).value.min() >= 0


# Pictures ------------------------------------------------------------------------------------------------------------
@BOTH
def test_jacksons_density_is_the_truth_through_the_kernel(recurrence):
    """Many probes: the damped sum over eigenvalues itself, and the band holds it."""
    s = kpm(diagonal(GAPS), probes=30, moments=50, recurrence=recurrence)
    d = jackson(s)
    (low, high), M = s.meta["interval"], len(s.meta["chebyshev_moments"][0])
    g = (
        (M - np.arange(M) + 1) * np.cos(np.pi * np.arange(M) / (M + 1))
        + np.sin(np.pi * np.arange(M) / (M + 1)) / np.tan(np.pi / (M + 1))
    ) / (M + 1)
    t, y = ((2 * v - low - high) / (high - low) for v in (d.x, GAPS))
    T, U = (np.cos(np.outer(np.arccos(np.clip(v, -1, 1)), np.arange(M))) for v in (t, y))
    exact = (T * g * np.where(np.arange(M), 2, 1)) @ U.mean(0) / (np.pi * np.sqrt(1 - t**2)) * 2 / (high - low)
    held = (d.lower <= exact + 1e-12) & (exact <= d.upper + 1e-12)
    assert held.mean() >= 0.85  # neighbouring points err together
    assert (d.value >= -1e-9).all()
    assert trapezoid(d.value, d.x) == pytest.approx(1, abs=2e-3)
    assert np.abs(d.value - exact).max() < 0.3 * exact.max()


def test_jacksons_band_is_calibrated():
    x = np.array([0.1, 0.35, 0.6, 0.9])
    wide = kpm(diagonal(BULK), probes=1, moments=30, interval=(-0.01, 1.01))
    held = []
    t, y = ((2 * v - 1) / 1.02 for v in (x, BULK))
    g = damping(30) * np.where(np.arange(30), 2, 1)
    T, U = (np.cos(np.outer(np.arccos(v), np.arange(30))) for v in (t, y))
    exact = (T * g) @ U.mean(0) / (np.pi * np.sqrt(1 - t**2) * 0.51)
    for seed in range(30):
        d = jackson(kpm(diagonal(BULK), probes=2, moments=30, interval=(-0.01, 1.01), seed=seed), x)
        held.append((d.lower <= exact) & (exact <= d.upper))
    assert np.mean(held) >= 0.9
    assert jackson(wide, x, moments=10).resolution == pytest.approx(np.pi / 20)


def test_jackson_serves_slq_and_leaves_known_zeros_out():
    B = np.random.default_rng(1).standard_normal((40, 90))
    s = spectral.slq(spectral.as_operator(B).gram("right"), steps=12)
    d = jackson(s)
    assert d.outside == pytest.approx(50 / 90)
    assert trapezoid(d.value, d.x) == pytest.approx(40 / 90, abs=5e-3)
    with pytest.raises(ValueError, match="no moments"):
        jackson(spectral.exact(np.eye(3)))


# Arguments -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("budget", [35, "35products"])
@BOTH
def test_a_budget_of_products_is_kept(budget, recurrence):
    A = spectral.as_operator(diagonal(BULK))
    s = kpm(A, moments=40, probes=10, budget=budget, recurrence=recurrence, interval=(-0.1, 1.1))
    assert s.products == A.products == 35
    assert [r.steps for r in s.records] == [20, 15]
    assert s.meta["stops"][1] == s.meta["stop"] == "budget"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": 0}, "probes=0"),
        ({"moments": 2.5}, "moments=2.5"),
        ({"moments": True}, "moments=True"),
        ({"seed": -1}, "seed=-1"),
        ({"budget": "soon"}, "budget='soon'"),
        ({"recurrence": "jackson"}, "recurrence='jackson'"),
        ({"interval": (1, 0)}, "interval=(1, 0)"),
        ({"interval": (0, float("inf"))}, "interval=(0, inf)"),
        ({"interval": 3.0}, "interval=3.0"),
        ({"recurrence": "chebyshev", "budget": 2}, "budget"),
    ],
)
def test_a_bad_argument_is_one_sentence(options, words):
    with pytest.raises(ValueError) as error:
        kpm(np.diag(np.arange(9.0)), **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@BOTH
def test_low_precision_products_give_a_spectrum_within_their_rounding(recurrence):
    for dtype in (torch.float32, torch.bfloat16):

        class Diagonal(Operator):
            def _apply(self, V, dtype=dtype):
                return torch.as_tensor(BULK).to(dtype)[:, None] * V

        s = kpm(Diagonal((300, 300), dtype, symmetric=True), moments=30, recurrence=recurrence)
        e = s.integrate(lambda x: x)
        assert abs(float(e.value) - BULK.sum()) < 4 * float(e.stderr) + 300 * 2 * torch.finfo(dtype).eps


def test_matrices_that_are_no_operands_are_refused():
    with pytest.raises(ValueError, match="not symmetric"):
        kpm(np.array([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="NaN"):
        kpm(np.array([[np.nan]]))
    assert kpm(np.array([[-4.0]]), recurrence="chebyshev").nodes[0, 0] == -4


def test_lanczos_in_three_vectors_has_the_bits_of_lanczos():
    for A, steps in ((diagonal(GAPS), 25), (2 * np.eye(50), 5), (diagonal(np.float32(GAPS), np.float32), 25)):
        op = spectral.as_operator(A)
        start = spectral.probes.probe(3, 0, op.shape[0], dtype=op.dtype)
        theirs = lanczos(op, start, steps, reorthogonalize=False)
        state = Lanczos(op, start, steps, reorthogonalize=False, overwrite=True)
        while state.step():
            pass
        ours = state.record()
        np.testing.assert_array_equal(ours.alphas, theirs.alphas)
        np.testing.assert_array_equal(ours.betas, theirs.betas)
        assert (ours.stop, ours.squared_norm, ours.dtype) == (theirs.stop, theirs.squared_norm, theirs.dtype)
