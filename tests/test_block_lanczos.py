"""Laws of block Lanczos: A V = V T + P B with T block tridiagonal, all copies up to the block size, exact breakdown."""

import numpy as np
import pytest
import torch

import spectral
from spectral.krylov.block_lanczos import BlockLanczos, block_lanczos
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
    return block_lanczos(A, block(A.shape[0], b, dtype=A.dtype), steps)


@pytest.mark.parametrize("b", [1, 3])
def test_the_relation_holds_on_an_orthonormal_basis_and_T_is_block_tridiagonal(b):
    A = rotated(np.geomspace(1e-3, 1e3, 60))
    state = BlockLanczos(spectral.as_operator(A), 8 * b)
    state.start(block(60, b).T)
    for _ in range(8):
        state.step()
    record, V, P = state.record(), state.V.numpy(), state.pending.numpy()
    np.testing.assert_allclose(np.vstack([V, P]) @ np.vstack([V, P]).T, np.eye(9 * b), atol=1e-13)
    np.testing.assert_allclose(A @ V.T, V.T @ record.T + P.T @ record.coupling, atol=1e-10)
    i, j = np.indices(record.T.shape) // b
    assert np.all(record.T[np.abs(i - j) > 1] == 0)
    values, S = record.eigen
    residuals = np.linalg.norm(A @ V.T @ S - V.T @ S * values, axis=0)
    np.testing.assert_allclose(record.residuals, residuals, atol=1e-10)


def test_ritz_values_interlace():
    truth = np.sort(np.random.default_rng(0).uniform(-1, 1, 50))
    theta = run(rotated(truth), 2, 6).eigen[0]
    assert np.all(theta >= truth[:12] - 1e-13) and np.all(theta <= truth[-12:] + 1e-13)


@pytest.mark.parametrize("b", [1, 2, 3, 4])
def test_an_eigenvalue_comes_as_often_as_the_block_is_wide(b):
    record = run(np.diag([5.0] * 3 + [2.0] * 3 + [1.0] * 14), b, 30)
    assert record.stop == "breakdown" and record.coupling.shape[0] == 0
    expected = [v for v, m in ((1.0, 14), (2.0, 3), (5.0, 3)) for _ in range(min(b, m))]
    np.testing.assert_allclose(record.eigen[0], expected, atol=1e-12)


def test_one_block_step_from_a_block_of_one_is_lanczos():
    A, v = spectral.as_operator(rotated(np.linspace(0, 1, 40))), block(40, 1)
    one, other = block_lanczos(A, v, 10), spectral.krylov.lanczos(A, v[:, 0], 10)
    np.testing.assert_allclose(np.diag(one.T), other.alphas, atol=1e-13)
    np.testing.assert_allclose(np.diag(one.T, 1), other.betas[:-1], atol=1e-13)


@pytest.mark.parametrize(("factor", "shift"), [(1e-9, 0.0), (1e9, 0.0), (-2.0, 3.0)])
def test_scale_and_shift_move_the_ritz_values_along(factor, shift):
    A = rotated(np.random.default_rng(0).uniform(-1, 1, 40))
    one, two = run(A, 2, 6), run(factor * A + shift * np.eye(40), 2, 6)
    expected = np.sort(factor * one.eigen[0] + shift)
    np.testing.assert_allclose(two.eigen[0], expected, atol=1e-10 * abs(factor))


@pytest.mark.parametrize("A", [np.zeros((9, 9)), 2 * np.eye(9)])
def test_zero_and_identity_break_down_at_once(A):
    record = run(A, 3, 5)
    assert (record.stop, record.sizes) == ("breakdown", (3,))
    np.testing.assert_allclose(record.T, A[:3, :3], atol=1e-15)


def test_independent_finds_the_rank_and_reproduces_the_rows():
    g = torch.Generator().manual_seed(0)
    W = torch.randn(5, 2, generator=g, dtype=torch.float64) @ torch.randn(2, 30, generator=g, dtype=torch.float64)
    Q, R = independent(W.clone(), W[:0], 1e-12)
    assert Q.shape == (2, 30)
    np.testing.assert_allclose(Q @ Q.T, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(R.T @ Q.numpy(), W, atol=1e-13)


def test_nothing_to_start_from_is_refused():
    A = spectral.as_operator(np.eye(3))
    with pytest.raises(ValueError, match="start block"):
        block_lanczos(A, torch.zeros(3, 2, dtype=torch.float64), 2)
    with pytest.raises(ValueError, match="start block"):
        block_lanczos(A, torch.zeros(2, 2, dtype=torch.float64), 2)
    with pytest.raises(ValueError, match="steps=0"):
        block_lanczos(A, torch.ones(3, 2, dtype=torch.float64), 0)
