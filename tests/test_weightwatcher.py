"""The metrics of a weight against numpy's singular values, WeightWatcher's formulas written out, and closed forms."""

import numpy as np
import pytest
import torch

from spectral.analysis import weightwatcher
from spectral.analysis.power_law import refusal_from
from spectral.analysis.weightwatcher import (
    NotFinite,
    bulk,
    columns,
    least_distance,
    shuffled,
    squared_singular_values,
    unit_determinant,
)


def gaussian(N, M, seed=0, dtype=torch.float32):
    return torch.randn(N, M, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pareto(n, alpha, seed=0):
    return np.sort((1 - np.random.default_rng(seed).random(n)) ** (-1 / (alpha - 1)))


def as_weightwatcher_writes_it(values):
    """(alpha, xmin, D, sigma) by a loop over every candidate: powers, not exponentials; sums, not prefix sums."""
    x = np.sort(values[values > 1e-5])
    N, best = len(x), None
    for i in range(N - 1):
        n = N - i
        if N < 20 and n < 8 and (N >= 8 or i > 0):
            continue
        alpha = 1 + (n - (N < 20)) / np.sum(np.log(x[i:] / x[i]))
        D = np.max(np.abs(1 - (x[i:] / x[i]) ** (1 - alpha) - np.arange(n) / n))
        if best is None or best[2] > D:
            best = (alpha, x[i], D, (alpha - 1) / np.sqrt(n))
    return best


# Eigenvalues -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (1, 1), (1, 7), (9, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_squares_are_those_of_the_singular_values(shape, dtype):
    W = gaussian(*shape, dtype=dtype)
    values, method = squared_singular_values(W)
    truth = np.linalg.svd(W.double().numpy(), compute_uv=False)[::-1] ** 2
    assert values == pytest.approx(truth, rel=1e-10) and method == "gram"


def test_blocks_of_rows_change_nothing(monkeypatch):
    W = gaussian(50, 7)
    whole = squared_singular_values(W)[0]
    monkeypatch.setattr(weightwatcher, "ROWS", 21)
    assert squared_singular_values(W)[0] == pytest.approx(whole, rel=1e-13)
    assert squared_singular_values(W.T)[0] == pytest.approx(whole, rel=1e-13)


def test_small_singular_values_that_a_gram_matrix_loses_are_found_by_another_way():
    U, V = (torch.linalg.qr(gaussian(30, 10, seed, torch.float64))[0] for seed in (1, 2))
    sizes = torch.logspace(0, -12, 10, dtype=torch.float64)
    values, method = squared_singular_values((U * sizes) @ V[:10].T)
    assert method == "svd"
    truth = np.linalg.svd(((U * sizes) @ V[:10].T).numpy(), compute_uv=False)[::-1] ** 2
    assert np.sqrt(values) == pytest.approx(np.sqrt(truth), rel=1e-9, abs=1e-15)


def test_a_zero_matrix_and_one_of_low_rank_have_exact_ranks():
    assert squared_singular_values(torch.zeros(5, 3))[0].tolist() == [0, 0, 0]
    low = gaussian(20, 3, 3, torch.float64) @ gaussian(3, 12, 4, torch.float64)
    row, _ = columns([squared_singular_values(low)[0]], 20)
    assert (row["matrix_rank"], row["rank_loss"]) == (3, 9)
    zero, _ = columns([np.zeros(4)], 5)
    assert (zero["status"], zero["matrix_rank"], zero["norm"]) == ("failed", 0, 0.0)
    assert np.isnan(zero["stable_rank"]) and np.isnan(zero["alpha"]) and zero["warning"] == ""


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_what_is_not_finite_is_refused(bad):
    W = torch.ones(4, 3, dtype=torch.float64)
    W[1, 2] = bad
    with pytest.raises(NotFinite, match="NaN, infinity"):
        squared_singular_values(W)


# The power law ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [2, 5, 8, 19, 20, 61, 300])
@pytest.mark.parametrize("law", ["pareto", "lognormal", "uniform", "gram"])
def test_the_tail_is_that_of_a_loop_over_all_candidates(n, law):
    rng = np.random.default_rng(n)
    draws = {
        "pareto": lambda: pareto(n, 2.5, n),
        "lognormal": lambda: rng.lognormal(0, 1.5, n),
        "uniform": lambda: rng.uniform(0.1, 3, n),
        "gram": lambda: squared_singular_values(gaussian(2 * n, n, n))[0],
    }
    values = np.append(draws[law](), [0.0, 1e-6])  # below the threshold
    alpha, xmin, D, sigma = as_weightwatcher_writes_it(values)
    tail = least_distance(values)
    assert (tail.alpha, tail.xmin, tail.D, tail.sigma) == pytest.approx((alpha, xmin, D, sigma), rel=1e-9)
    assert tail.spikes == np.count_nonzero(values >= xmin) and tail.xmax == values.max()


@pytest.mark.parametrize("seed", range(2))
def test_leaving_candidates_out_by_some_of_their_points_loses_none(seed, monkeypatch):
    values = np.concatenate([pareto(700, 2.2, seed), np.random.default_rng(seed).uniform(0.2, 1, 700)])
    monkeypatch.setattr(weightwatcher, "BLOCK", 5000)
    monkeypatch.setattr(weightwatcher, "FEW", 5000)
    seen = []
    plain = weightwatcher._distances
    monkeypatch.setattr(
        weightwatcher, "_distances", lambda *a: seen.append(len(a[2]) * min(a[3], len(a[0]))) or plain(*a)
    )
    tail = least_distance(values)
    alpha, xmin, D, _ = as_weightwatcher_writes_it(values)
    assert (tail.alpha, tail.xmin, tail.D) == pytest.approx((alpha, xmin, D), rel=1e-9)
    assert sum(seen) < 0.25 * len(values) ** 2 / 2, "of all distances"


def test_there_is_no_exponent_where_all_eigenvalues_are_equal_up_to_rounding():
    """WeightWatcher fits the rounding: an exponent of 1e13 for an orthogonal matrix."""
    Q = torch.linalg.qr(gaussian(64, 64, 5, torch.float64))[0]
    assert least_distance(squared_singular_values(Q)[0]) is None
    assert least_distance(np.array([1.0])) is None and least_distance(np.full(5, 1e-7)) is None


def test_several_largest_eigenvalues_that_are_equal_do_no_harm():
    tail = least_distance(np.append(pareto(100, 2.5), [1e3, 1e3, 1e3]))
    assert np.isfinite(tail.alpha) and tail.spikes > 3


def test_a_tail_that_another_search_has_chosen_is_judged():
    heavy = pareto(1000, 2.5)
    assert refusal_from(heavy, least_distance(heavy).xmin) == ""
    light = np.sort(np.random.default_rng(0).exponential(1.0, 2000)) + 1e-3
    assert "power law" in refusal_from(light, light[200])
    square = squared_singular_values(gaussian(300, 300))[0]
    assert refusal_from(square, least_distance(square).xmin)


# Columns ---------------------------------------------------------------------------------------------------------------
def test_columns_of_a_diagonal_matrix_in_closed_form():
    values = np.arange(1.0, 11.0) ** 2
    row, pooled = columns([values], 10)
    p = values / 385
    assert pooled.tolist() == values.tolist()
    assert (row["norm"], row["spectral_norm"], row["lambda_max"], row["sv_max"], row["sv_min"]) == (
        385,
        100,
        100,
        10,
        1,
    )
    assert (row["matrix_rank"], row["rank_loss"], row["weak_rank_loss"], row["num_evals"]) == (10, 0, 0, 10)
    assert row["stable_rank"] == pytest.approx(3.85) and row["log_spectral_norm"] == pytest.approx(2)
    assert row["log_norm"] == pytest.approx(np.log10(385))
    assert row["entropy"] == pytest.approx(-np.sum(p * np.log(p)) / np.log(10), rel=1e-6)
    assert row["alpha_weighted"] == pytest.approx(2 * row["alpha"])
    assert row["log_alpha_norm"] == pytest.approx(np.log10(np.sum(values ** row["alpha"])))


def test_the_norm_of_an_exponent_that_overflows_is_still_a_number():
    row, _ = columns([np.array([1e80, 1.001e80, 1.002e80])], 3)
    assert np.isfinite(row["log_alpha_norm"])


def test_exponents_beyond_two_and_six_are_warned_of():
    assert columns([pareto(400, 1.5)], 400)[0]["warning"] == "over-trained"
    assert columns([pareto(400, 3.0)], 400)[0]["warning"] == ""
    assert columns([1 + np.linspace(0, 0.1, 400)], 400)[0]["warning"] == "under-trained"


def test_the_bulk_of_a_random_matrix_is_found_and_a_planted_spike_with_it():
    N, M = 400, 200
    W = gaussian(N, M, 6, torch.float64) / np.sqrt(N)
    row = bulk(squared_singular_values(W)[0], N, M)
    assert row["mp_accepted"] and row["num_spikes"] == 0
    assert row["bulk_max"] == pytest.approx((1 + np.sqrt(M / N)) ** 2, rel=0.03)
    assert row["sigma_mp"] == pytest.approx(1, rel=0.02)
    u, v = gaussian(N, 1, 7, torch.float64), gaussian(M, 1, 8, torch.float64)
    spiked = W + 3 * (u / u.norm()) @ (v / v.norm()).T
    values = squared_singular_values(spiked)[0]
    row = bulk(values, N, M)
    assert row["num_spikes"] == 1 and row["mp_softrank"] == pytest.approx(row["bulk_max"] / values[-1])
    refused = bulk(pareto(300, 2.0), N, M)
    assert not refused["mp_accepted"] and refused["mp_reason"] and np.isnan(refused["num_spikes"])


def test_shuffling_changes_what_is_ordered_and_nothing_else():
    one, other = (squared_singular_values(gaussian(200, 100, seed))[0] for seed in (1, 2))
    row = shuffled(one, other, 200, 100)
    assert row["rand_distance"] < 0.02 and row["ww_softrank"] == pytest.approx(1, abs=0.05) and row["num_traps"] == 0
    spiked = one.copy()
    spiked[-1] = 1e4
    row = shuffled(spiked, other, 200, 100)
    assert row["ww_softrank"] < 0.1 and row["ww_maxdist"] == pytest.approx(1e4 - other[-1])


def test_the_unit_determinant_is_where_the_product_of_the_largest_falls_below_one():
    values = pareto(50, 2.0)
    scaled = values / values.mean()
    number = next(k for k in range(1, 50) if np.prod(scaled[-k:]) < 1)
    row = unit_determinant(values, 7)
    assert (row["detX_num"], row["num_ERG_spikes"], row["ERG_gap"]) == (number, number, number - 7)
    assert (row["detX_val"], row["detX_val_unrescaled"]) == pytest.approx((values[-number], scaled[-number]))
    assert unit_determinant(np.ones(5), 2)["detX_num"] == 0
