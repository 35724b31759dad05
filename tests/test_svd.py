"""svd: triplets without squaring, every copy, measured residuals."""

import numpy as np
import pytest
import torch
from oracles import CASES, dense_jacobian, logits

import spectral
from spectral.estimators.svd import svd


def matrix(m, n, values, seed=0):
    rng = np.random.default_rng(seed)
    q = len(values)
    U, V = np.linalg.qr(rng.standard_normal((m, q)))[0], np.linalg.qr(rng.standard_normal((n, q)))[0]
    return U * np.asarray(values, dtype=float) @ V.T


def holds(t, J, expected, tol=1e-12):
    """Both residuals measured here again."""
    J, U, V = np.asarray(J, dtype=float), t.left.double().numpy(), t.right.double().numpy()
    scale = max(1e-300, np.linalg.norm(J, 2))
    k = len(expected)
    np.testing.assert_allclose(t.values, expected, atol=tol * scale)
    assert (U.shape, V.shape) == ((J.shape[0], k), (J.shape[1], k))
    for W in (U, V):
        np.testing.assert_allclose(W.T @ W, np.eye(k), atol=10 * tol)
    one, two = np.linalg.norm(J @ V - U * t.values, axis=0), np.linalg.norm(J.T @ U - V * t.values, axis=0)
    np.testing.assert_allclose(t.residuals, np.maximum(one, two), atol=tol * scale)
    assert t.converged.all() and t.complete and np.all(t.residuals <= t.threshold)


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (60, 60)])
@pytest.mark.parametrize("basis", [None, 14])
def test_a_random_matrix(shape, basis):
    J = np.random.default_rng(0).standard_normal(shape)
    holds(svd(J, 4, basis=basis), J, np.linalg.svd(J, compute_uv=False)[:4])


@pytest.mark.parametrize("shape", [(200, 60), (60, 200)])
def test_small_singular_values_survive_in_float32(shape):
    values = np.geomspace(1, 1e-6, 60)
    J = matrix(*shape, values).astype(np.float32)
    triplets = svd(J, 60)
    np.testing.assert_allclose(triplets.values, values, rtol=0.1)  # a Gram would lose all below 3e-4
    assert triplets.converged.all() and triplets.left.dtype == torch.float32
    double = svd(matrix(*shape, values), 60)
    np.testing.assert_allclose(double.values, values, rtol=1e-9)


KNOWN = {
    "3 I": (3 * np.eye(20), 5, [3.0] * 5),
    "I, all": (np.eye(4), 4, [1.0] * 4),
    "zero": (np.zeros((7, 4)), 3, [0.0] * 3),
    "rank 3": (matrix(50, 30, [573.0, 554.0, 469.0]), 6, [573.0, 554.0, 469.0, 0.0, 0.0, 0.0]),
    "multiple": (matrix(90, 40, [3.0] * 4 + [2.0] * 10 + [1.0] * 26), 12, [3.0] * 4 + [2.0] * 8),
    "one by one": (np.array([[-2.0]]), 1, [2.0]),
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", KNOWN)
def test_known_matrices_give_every_copy_and_nothing_else(name, wide):
    J, k, expected = KNOWN[name]
    J = J.T if wide else J
    holds(svd(J, k), J, expected)
    if name == "multiple":
        holds(svd(J, k, basis=17), J, expected)


def test_the_smallest_ones():
    values = np.linspace(1, 3, 50)
    J = matrix(80, 50, values)
    holds(svd(J, 3, which="smallest"), J, values[:3], tol=1e-11)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("shape", "zeros", "k", "basis"), [
    ((80, 50), 5, 3, None), ((80, 50), 2, 4, None), ((50, 50), 2, 3, None), ((400, 300), 4, 3, 20), ((400, 300), 4, 6, None),
])  # fmt: skip
def test_the_smallest_ones_where_some_are_zero(shape, zeros, k, basis, wide):
    """Left vectors too: they are orthogonal to the range, which no product with a right vector shows."""
    values = np.append(np.zeros(zeros), np.linspace(1, 3, shape[1] - zeros))
    J = matrix(*shape, values)
    J = J.T if wide else J
    holds(svd(J, k, which="smallest", basis=basis), J, values[:k], tol=1e-11)


def test_zeros_in_float32_and_within_a_budget():
    values = np.append(np.zeros(3), np.linspace(1, 3, 57))
    J = matrix(90, 60, values)
    single = svd(J.astype(np.float32), 4, which="smallest")
    assert single.converged.all() and single.complete
    np.testing.assert_allclose(single.values, values[:4], atol=3 * 16 * 2.0**-23)
    short = svd(J, 2, which="smallest", budget=180)
    assert short.products <= 180
    R = np.maximum(
        np.linalg.norm(J @ short.right.numpy() - short.left.numpy() * short.values, axis=0),
        np.linalg.norm(J.T @ short.left.numpy() - short.right.numpy() * short.values, axis=0),
    )
    np.testing.assert_allclose(short.residuals, R, atol=1e-12)
    np.testing.assert_array_equal(short.converged, short.residuals <= short.threshold)


@pytest.mark.parametrize("wide", [False, True])
def test_vectors_of_values_below_the_tolerance_are_orthonormal(wide):
    J = np.eye(9, 6) * np.array([1.0, 1e-2, 1e-7, 1e-11, 1e-12, 1e-17])
    for k in (2, 3, 5):
        triplets = svd(J.T if wide else J, k, which="smallest")
        for V in (triplets.left, triplets.right):
            np.testing.assert_allclose(V.T @ V, np.eye(k), rtol=0, atol=1e-14)


def test_scale_moves_along():
    J = np.random.default_rng(0).standard_normal((50, 30))
    one = svd(J, 3)
    for factor in (1e-9, 1e9):
        two = svd(factor * J, 3)
        np.testing.assert_allclose(two.values, factor * one.values, rtol=1e-12)
        assert two.converged.all()


def test_products_with_a_jacobian_and_its_transpose_are_counted():
    case = CASES["mlp"]
    model, batches = case.network(), case.batches()
    J = spectral.Jacobian(model, batches)
    D = dense_jacobian(model, batches, logits).numpy()
    before = J.products
    t = svd(J, 3)
    holds(t, D, np.linalg.svd(D, compute_uv=False)[:3], tol=1e-10)
    assert t.products == J.products - before > 0 and t.epochs > 0


def test_a_budget_is_kept_and_what_has_not_converged_says_so():
    J = spectral.as_operator(np.random.default_rng(0).standard_normal((100, 80)))
    t = svd(J, 4, budget=40)
    assert t.products == J.products and 38 <= t.products <= 40
    assert not t.complete and not t.converged.all()
    assert svd(J, 3, budget=41, basis=7).products <= 41


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 9}, "k=9 exceeds the dimension 8"),
        ({"which": "magnitude"}, "which='magnitude'"),
        ({"basis": 2}, "basis=2"),
        ({"basis": 7.5}, "basis=7.5 is no number of vectors"),
        ({"budget": 7}, "budget of 7 products"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        svd(np.ones((12, 8)), **{"k": 2, **options})
