"""Laws of Golub-Kahan: K V = U B, K^T U = V B^T + beta v e^T, and B^T B is the Lanczos matrix of K^T K."""

import numpy as np
import pytest
import torch

import spectral
from spectral.krylov.golub_kahan import GolubKahan
from spectral.krylov.lanczos import lanczos


def matrix(m, values, seed=0):
    rng = np.random.default_rng(seed)
    n = len(values)
    U, V = np.linalg.qr(rng.standard_normal((m, n)))[0], np.linalg.qr(rng.standard_normal((n, n)))[0]
    return U * np.asarray(values) @ V.T


def start(n, dtype=torch.float64):
    return spectral.probes.probe(1, 0, n, dtype=dtype)


class Bidiagonal:
    """At most so many steps from a vector: alphas, betas with the last residual norm, and whether the subspaces are invariant."""

    def __init__(self, K, vector, steps):
        self.state = GolubKahan(K, steps)
        self.state.start(vector[None])
        betas = []
        while len(self.state.pending) and self.state.size < self.state.capacity:
            self.state.step()
            betas.append(self.state.beta)
        self.B, self.betas = self.state.H[: self.state.size, : self.state.size], np.array(betas)
        self.alphas, self.invariant = np.diag(self.B), not len(self.state.pending)


def test_both_relations_hold():
    K = matrix(90, np.linspace(1, 2, 40))
    state = GolubKahan(spectral.as_operator(K), 12)
    state.start(start(40)[None])
    while state.size < 12:
        state.step()
    V, B, v = state.V.numpy(), state.H[:12, :12], state.pending[0].numpy()
    np.testing.assert_allclose(V @ V.T, np.eye(12), atol=1e-14)
    U = np.linalg.solve(B.T, V @ K.T)  # rows: K V = U B
    np.testing.assert_allclose(U @ U.T, np.eye(12), atol=1e-12)
    np.testing.assert_allclose(K.T @ U.T, V.T @ B.T + state.beta * np.outer(v, np.eye(12)[-1]), atol=1e-12)


def test_B_squared_is_the_lanczos_matrix_of_the_gram():
    K = spectral.as_operator(matrix(50, np.linspace(1, 3, 30)))
    record = Bidiagonal(K, start(30), 8)
    assert K.products == 16
    gram = lanczos(K.gram(), start(30), 8)
    T = record.B.T @ record.B
    np.testing.assert_allclose(np.diag(T), gram.alphas, rtol=1e-12)
    np.testing.assert_allclose(np.diag(T, 1), gram.betas[:-1], rtol=1e-11)
    assert record.alphas[-1] * record.betas[-1] == pytest.approx(gram.betas[-1], rel=1e-11)


@pytest.mark.parametrize(
    ("values", "distinct"),
    [([3.0] * 10, [3.0]), ([0.0] * 10, [0.0]), ([573.0, 554.0, 469.0] + [0.0] * 17, [573.0, 554.0, 469.0, 0.0])],
    ids=["3 Q", "zero", "rank 3"],
)
def test_an_invariant_pair_of_subspaces_ends_it_exactly(values, distinct):
    record = Bidiagonal(spectral.as_operator(matrix(30, values)), start(len(values)), 50)
    assert record.invariant and record.betas[-1] == 0
    assert record.state.size <= len(distinct) + 1
    np.testing.assert_allclose(record.state.ritz()[0][: len(distinct)], distinct, atol=1e-10)
    np.testing.assert_allclose(record.state.ritz()[1], 0, atol=0)


@pytest.mark.parametrize(("dtype", "tol"), [(np.float64, 1e-14), (np.float32, 5e-7)])
def test_all_steps_give_all_singular_values_to_eps_times_the_norm_and_not_to_its_root(dtype, tol):
    values = np.geomspace(1, 1e-4, 40)
    K = matrix(100, values).astype(dtype)
    record = Bidiagonal(spectral.as_operator(K), start(40, torch.from_numpy(K).dtype), 40)
    assert (record.state.size, record.invariant) == (40, True)
    np.testing.assert_allclose(record.state.ritz()[0], values, atol=tol)


def test_scale_moves_along():
    K = matrix(50, np.linspace(1, 3, 30))
    one = Bidiagonal(spectral.as_operator(K), start(30), 8)
    for factor in (1e-9, 1e9):
        two = Bidiagonal(spectral.as_operator(factor * K), start(30), 8)
        np.testing.assert_allclose(two.alphas, factor * one.alphas, rtol=1e-10)
        np.testing.assert_allclose(two.betas, factor * one.betas, rtol=1e-10)


def test_nothing_to_start_from_is_refused():
    with pytest.raises(ValueError, match="start vector"):
        GolubKahan(spectral.as_operator(np.eye(3)), 2).start(torch.zeros(1, 3, dtype=torch.float64))
