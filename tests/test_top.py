"""top: every copy of every eigenvalue, measured residuals, honest flags."""

import sys

import numpy as np
import pytest
import scipy.sparse
import torch
from oracles import CASES, dense_jacobian, logits

import spectral
from spectral.estimators import search
from spectral.estimators.top import top

WILKINSON = np.diag(np.abs(np.arange(-10.0, 11.0))) + np.diag(np.ones(20), 1) + np.diag(np.ones(20), -1)


def rotated(values, seed=0):
    values = np.asarray(values, dtype=float)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    A = Q * values @ Q.T
    return (A + A.T) / 2


def hypercube(d):
    A, v = np.zeros((2**d, 2**d)), np.arange(2**d)
    for bit in range(d):
        A[v, v ^ (1 << bit)] = 1.0
    return A


def best(values, k, which):
    key = {"largest": values, "smallest": -values, "magnitude": np.abs(values)}[which]
    return values[np.argsort(-key)[:k]]


def holds(pairs, A, expected, tol=1e-12):
    """The pairs are those of A, measured here again, and converged; magnitudes of equal size may come in any order."""
    A, V = np.asarray(A, dtype=float), pairs.vectors.double().numpy()
    scale = max(1e-300, np.abs(np.linalg.eigvalsh(A)).max())
    np.testing.assert_allclose(np.abs(pairs.values), np.abs(expected), atol=tol * scale)
    np.testing.assert_allclose(V.T @ V, np.eye(V.shape[1]), atol=max(tol, 1e-12) * 10)
    residuals = np.linalg.norm(A @ V - V * pairs.values, axis=0)
    np.testing.assert_allclose(pairs.residuals, residuals, atol=tol * scale)
    assert pairs.converged.all() and pairs.complete
    assert np.all(pairs.residuals <= pairs.threshold)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("basis", [None, 20])
def test_a_random_rotated_spectrum(which, block, basis):
    values = np.random.default_rng(0).standard_normal(200)
    A = rotated(values)
    holds(top(A, 4, which=which, block=block, basis=basis), A, best(values, 4, which))


CASES_KNOWN = {
    "3I": (3 * np.eye(50), 6),
    "I, all": (np.eye(5), 5),
    "zero": (np.zeros((20, 20)), 4),
    "rank 3": (rotated([573.0, 554.0, 469.0] + [0.0] * 47), 6),
    "rank 10": (rotated(list(range(1, 11)) + [0.0] * 190), 12),
    "double": (rotated([5.0, 5.0, 4.0, 3.0, *np.linspace(0, 1, 100)]), 3),
    "W21+": (WILKINSON, 4),
    "W21+ among others": (rotated([*np.linalg.eigvalsh(WILKINSON), *np.linspace(-5, 8, 200)]), 4),
    "hypercube": (hypercube(7), 10),
    "Laplacian": (2 * np.eye(40) - np.eye(40, k=1) - np.eye(40, k=-1), 40),
    "n = 1": (np.array([[-3.0]]), 1),
}


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("name", CASES_KNOWN)
def test_known_matrices_give_every_copy_and_nothing_else(name, which):
    A, k = CASES_KNOWN[name]
    holds(top(A, k, which=which), A, best(np.linalg.eigvalsh(A), k, which))


def test_the_laplacian_has_its_closed_form():
    A = 2 * np.eye(40) - np.eye(40, k=1) - np.eye(40, k=-1)
    expected = 2 - 2 * np.cos(np.arange(40, 37, -1) * np.pi / 41)
    np.testing.assert_allclose(top(A, 3).values, expected, atol=1e-13)


@pytest.mark.parametrize("seed", range(6))
def test_multiplicities_are_found_with_little_memory(seed):
    values = np.concatenate([[2.0] * 3, [1.99] * 2, [1.98], np.random.default_rng(seed).uniform(-2, 1.9, 200)])
    A = rotated(values, seed)
    holds(top(A, 6, seed=seed, basis=12), A, best(values, 6, "largest"))


@pytest.mark.parametrize("k", [3, 12])
def test_heavy_vectors_are_held_few_at_a_time_their_products_one_by_one(k, monkeypatch):
    monkeypatch.setattr(search, "HEAVY", 1)
    monkeypatch.setattr(sys.modules[top.__module__], "TOGETHER", 0)
    values = np.concatenate([[2.0] * 2, 1 / np.arange(1.0, 150)])
    A = rotated(values)
    pairs = top(A, k, tol=1e-13)
    holds(pairs, A, best(values, k, "largest"))
    assert pairs.meta == {"basis": k + 7}


@pytest.mark.parametrize(("k", "vectors", "more"), [(3, 40, 40), (3, 2, 16), (20, 2, 20), (3, 1000, 128)])
def test_vectors_of_a_middle_size_are_held_as_far_as_orthogonality_is_cheap(k, vectors, more, monkeypatch):
    monkeypatch.setattr(search, "HEAVY", vectors * 200 * 8)
    values = 1 / np.arange(1.0, 201)
    pairs = top(rotated(values), k, tol=1e-10)
    holds(pairs, rotated(values), values[:k])
    assert pairs.meta == {"basis": k + more}


def test_the_default_basis_holds_a_start_of_more_vectors_and_what_an_earlier_session_held(tmp_path, monkeypatch):
    A, file = rotated(1 / np.arange(1.0, 201)), tmp_path / "top.npz"
    one = top(A, 3, tol=1e-10, budget=20, checkpoint=file)
    assert one.meta == {"basis": 131} and not one.complete
    monkeypatch.setattr(search, "HEAVY", 2 * 200 * 8)
    assert top(A, 3, tol=1e-10, checkpoint=file).meta == {"basis": 131}
    start = np.random.default_rng(0).standard_normal((200, 40))
    holds(top(A, 3, tol=1e-10, start=start), A, 1 / np.arange(1.0, 4))


@pytest.mark.parametrize("basis", [None, 12])
def test_a_sum_that_loses_what_is_small_beside_its_first_terms_is_no_wrong_product(basis):
    """Eigenvectors on six entries of 12,000: of the others' squares 5e-14 are lost where a kernel adds one after another."""
    values = np.append(1 + np.linspace(1e-6, 1.1e-5, 6), np.linspace(0.9, 0, 11_994))
    for seed in range(3):
        pairs = top(scipy.sparse.diags_array(values), 5, tol=1e-5, seed=seed, basis=basis)
        np.testing.assert_allclose(pairs.values, values[5:0:-1], atol=1e-5)
        assert pairs.complete


@pytest.mark.parametrize(("factor", "shift"), [(1e-9, 0.0), (1e9, 0.0), (1e-30, 0.0), (2.0, -3.0)])
def test_scale_and_shift_move_the_values_along(factor, shift):
    A = rotated(np.random.default_rng(0).standard_normal(100))
    one, two = top(A, 3), top(factor * A + shift * np.eye(100), 3)
    np.testing.assert_allclose(two.values, factor * one.values + shift, atol=1e-12 * factor)
    assert two.converged.all()


def test_float32_states_its_floor():
    A = rotated(np.random.default_rng(0).standard_normal(150)).astype(np.float32)
    pairs = top(A, 4)
    assert pairs.vectors.dtype == torch.float32 and pairs.values.dtype == pairs.residuals.dtype == np.float64
    assert pairs.threshold == pytest.approx(16 * 2.0**-23 * np.abs(np.linalg.eigvalsh(A)).max(), rel=1e-4)
    holds(pairs, A, best(np.linalg.eigvalsh(A.astype(float)), 4, "largest"), tol=1e-6)


@pytest.mark.parametrize("budget", [20, "40 products"])
def test_a_budget_is_kept_and_what_has_not_converged_says_so(budget):
    A = rotated(np.random.default_rng(0).standard_normal(200))
    op = spectral.as_operator(A)
    pairs = top(op, 4, budget=budget)
    assert pairs.products == op.products == int(str(budget).split()[0])
    assert not pairs.complete and not pairs.converged.all()
    V = pairs.vectors.numpy()
    np.testing.assert_allclose(pairs.residuals, np.linalg.norm(A @ V - V * pairs.values, axis=0), atol=1e-12)
    np.testing.assert_array_equal(pairs.converged, pairs.residuals <= pairs.threshold)
    assert top(op, 4, budget="0.000001s").values.shape == (4,)


def test_the_same_seed_gives_the_same_bits_and_the_users_generator_is_left_alone():
    A = rotated(np.random.default_rng(0).standard_normal(80))
    state = torch.random.get_rng_state()
    one = top(A, 3, seed=4)
    top(A, 2, seed=5)
    two = top(A, 3, seed=4)
    assert np.array_equal(one.values, two.values) and torch.equal(one.vectors, two.vectors)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_jacobian_means_its_gram_and_a_gram_the_side_it_has():
    case = CASES["mlp"]
    model, batches = case.network(), case.batches()
    J = spectral.Jacobian(model, batches)
    D = dense_jacobian(model, batches, logits).numpy()
    expected = np.linalg.svd(D, compute_uv=False)[:3] ** 2
    for A, dim in ((J, min(J.shape)), (J.gram("right"), J.shape[1]), (J.gram("left"), J.shape[0])):
        pairs = top(A, 3)
        np.testing.assert_allclose(pairs.values, expected, rtol=1e-10)
        assert pairs.vectors.shape == (dim, 3) and pairs.converged.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 9}, "k=9 exceeds the dimension 8"),
        ({"tol": -1.0}, "tol=-1.0"),
        ({"which": "best"}, "which='best'"),
        ({"block": 0}, "block=0"),
        ({"basis": 3}, "basis=3"),
        ({"basis": "host"}, "basis='host' is no number of vectors"),
        ({"budget": 3}, "budget of 3 products"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        top(np.diag(np.arange(8.0)), **{"k": 2, **options})
    with pytest.raises(ValueError, match="not symmetric"):
        top(np.triu(np.ones((4, 4))), 1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_all_pairs_are_found_however_short_the_last_direction_is(which, seed):
    """In bfloat16 what a random vector has left beside six of seven is often below 16 eps: 6 of 7 values were given."""
    A = torch.from_numpy(rotated(np.linspace(1, 2, 7), seed)).bfloat16()
    pairs = top(A, 7, which=which)
    assert len(pairs.values) == 7 and pairs.complete
    exact = best(np.linalg.eigvalsh(A.double().numpy()), 7, which)
    np.testing.assert_allclose(pairs.values, exact, atol=pairs.threshold)
    assert spectral.svd(A, 7).values.shape == (7,)


def test_a_16_bit_search_is_complete_only_where_a_random_vector_would_have_shown_more():
    """Eigenvalues 2, 1, 1, 0, ...: of one eigenvector a random vector may have next to nothing (a third)."""
    A = torch.diag(torch.tensor([2.0, 1.0, 1.0] + [0.0] * 9)).bfloat16()
    found = [spectral.top(A, 3, seed=seed) for seed in range(12)]
    assert all(np.abs(p.values - [2.0, 1.0, 1.0]).max() <= p.threshold for p in found if p.complete)
    assert sum(p.complete for p in found) >= 10
    assert spectral.top(torch.zeros(40, 40).bfloat16(), 2).complete  # a random vector has shown that nothing is there
