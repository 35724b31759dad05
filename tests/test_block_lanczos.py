"""Laws of block Lanczos: A V = V T + P B with T block tridiagonal, all copies up to the block size, exact breakdown."""

import numpy as np
import pytest
import torch

import spectral
from spectral.krylov.block_lanczos import BlockLanczos
from spectral.krylov.lanczos import lanczos
from spectral.longvectors import independent


def rotated(values, seed=0):
    values = np.asarray(values, dtype=float)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    A = Q * values @ Q.T
    return (A + A.T) / 2


def block(n, b, seed=1, dtype=torch.float64):
    return torch.stack([spectral.probes.probe(seed, i, n, dtype=dtype) for i in range(b)], dim=1)


def run(A, b, steps):
    A = spectral.as_operator(A)
    return follow(BlockLanczos(A, steps * b), block(A.shape[0], b, dtype=A.dtype), steps)


def follow(state, vectors, steps):
    """At most so many block steps from the columns of `vectors`."""
    state.start(vectors.T)
    while len(state.pending) and len(state.sizes) < steps:
        state.step()
    return state


def projection(state):
    return state.H[: state.size, : state.size]


@pytest.mark.parametrize("b", [1, 3])
def test_the_relation_holds_on_an_orthonormal_basis_and_T_is_block_tridiagonal(b):
    A = rotated(np.geomspace(1e-3, 1e3, 60))
    state = run(A, b, 8)
    T, V, P = projection(state), state.V.numpy(), state.pending.numpy()
    np.testing.assert_allclose(np.vstack([V, P]) @ np.vstack([V, P]).T, np.eye(9 * b), atol=1e-13)
    np.testing.assert_allclose(A @ V.T, V.T @ T + P.T @ state.coupling, atol=1e-10)
    i, j = np.indices(T.shape) // b
    assert np.all(T[np.abs(i - j) > 1] == 0)
    values, S, known = state.pairs()
    residuals = np.linalg.norm(A @ V.T @ S - V.T @ S * values, axis=0)
    np.testing.assert_allclose(known, residuals, atol=1e-10)


def test_ritz_values_interlace():
    truth = np.sort(np.random.default_rng(0).uniform(-1, 1, 50))
    theta = run(rotated(truth), 2, 6).ritz()[0]
    assert np.all(theta >= truth[:12] - 1e-13) and np.all(theta <= truth[-12:] + 1e-13)


@pytest.mark.parametrize("b", [1, 2, 3, 4])
def test_an_eigenvalue_comes_as_often_as_the_block_is_wide(b):
    state = run(np.diag([5.0] * 3 + [2.0] * 3 + [1.0] * 14), b, 30)
    assert not len(state.pending) and state.coupling.shape[0] == 0
    expected = [v for v, m in ((1.0, 14), (2.0, 3), (5.0, 3)) for _ in range(min(b, m))]
    np.testing.assert_allclose(state.ritz()[0], expected, atol=1e-12)


def test_one_block_step_from_a_block_of_one_is_lanczos():
    A, v = spectral.as_operator(rotated(np.linspace(0, 1, 40))), block(40, 1)
    one, other = projection(follow(BlockLanczos(A, 10), v, 10)), lanczos(A, v[:, 0], 10)
    np.testing.assert_allclose(np.diag(one), other.alphas, atol=1e-13)
    np.testing.assert_allclose(np.diag(one, 1), other.betas[:-1], atol=1e-13)


@pytest.mark.parametrize(("factor", "shift"), [(1e-9, 0.0), (1e9, 0.0), (-2.0, 3.0)])
def test_scale_and_shift_move_the_ritz_values_along(factor, shift):
    A = rotated(np.random.default_rng(0).uniform(-1, 1, 40))
    one, two = run(A, 2, 6), run(factor * A + shift * np.eye(40), 2, 6)
    expected = np.sort(factor * one.ritz()[0] + shift)
    np.testing.assert_allclose(two.ritz()[0], expected, atol=1e-10 * abs(factor))


@pytest.mark.parametrize("A", [np.zeros((9, 9)), 2 * np.eye(9)])
def test_zero_and_identity_break_down_at_once(A):
    state = run(A, 3, 5)
    assert (len(state.pending), state.sizes) == (0, [3])
    np.testing.assert_allclose(projection(state), A[:3, :3], atol=1e-15)


def test_independent_finds_the_rank_and_reproduces_the_rows():
    g = torch.Generator().manual_seed(0)
    W = torch.randn(5, 2, generator=g, dtype=torch.float64) @ torch.randn(2, 30, generator=g, dtype=torch.float64)
    Q, R = independent(W.clone(), W[:0], 1e-12)
    assert Q.shape == (2, 30)
    np.testing.assert_allclose(Q @ Q.T, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(R.T @ Q.numpy(), W, atol=1e-13)


def test_nothing_to_start_from_is_refused():
    for b in (1, 2):
        with pytest.raises(ValueError, match="start"):
            BlockLanczos(spectral.as_operator(np.eye(3)), 3).start(torch.zeros(b, 3, dtype=torch.float64))
