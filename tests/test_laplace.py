"""Blocks and low rank plus diagonal are the dense matrix's; what low rank leaves out is stated."""

import numpy as np
import pytest
import torch
from torch import nn

import spectral
from spectral import EmpiricalFisher, GaussNewton, Hessian, block_diagonal, low_rank_plus_diagonal
from spectral.estimators import laplace


def curvature(matrix):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(7, 3).double(), torch.tensor([0, 1, 2, 2, -100, 0, 1])
    A = matrix(model, nn.CrossEntropyLoss(), [(x[:3], y[:3]), (x[3:], y[3:])], engine="double-backward")
    return A, (A @ torch.eye(A.shape[0]).double()).numpy()


@pytest.mark.parametrize("matrix", [GaussNewton, EmpiricalFisher, Hessian])
def test_dense_blocks_are_those_of_the_matrix(matrix):
    A, due = curvature(matrix)
    made = block_diagonal(A, by="module")
    assert list(made) == ["0", "2"]
    assert np.allclose(made["0"], due[:16, :16], atol=1e-13) and np.allclose(made["2"], due[16:, 16:], atol=1e-13)
    some = block_diagonal(A, [[0, 30, 7], slice(1, 3)])
    assert np.allclose(some["0"], due[np.ix_([0, 30, 7], [0, 30, 7])], atol=1e-13)


def test_blocks_that_do_not_fit_are_refused(monkeypatch):
    A, _ = curvature(GaussNewton)
    monkeypatch.setattr(laplace, "free_memory", lambda A: 8 * (16**2 + 15**2 + 2 * 16**2) - 1)
    with pytest.raises(ValueError, match="the largest is '0' with 16 entries: cut it"):
        block_diagonal(A, by="module")


def test_samples_that_meet_unseen_are_caught_by_a_product():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    A = GaussNewton(model, nn.MSELoss(), [(torch.randn(4, 3).double(), torch.zeros(4, 2).double())], preflight=False,
                    forward=lambda m, b: m(b[0] - b[0].mean(0)))  # fmt: skip
    with pytest.raises(ValueError, match="samples of a batch meet"):
        block_diagonal(A)


@pytest.mark.parametrize("low", [0.0, -4.0])
def test_low_rank_plus_diagonal_keeps_the_top_and_the_diagonal(low):
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((20, 20)))[0]
    due = Q * np.append([9.0, 5.0, low or 4.0, 3.0], np.linspace(0.1, 1, 16)) @ Q.T
    L = low_rank_plus_diagonal((due + due.T) / 2, 4, probes=2000)
    values, vectors = np.linalg.eigh(due)
    at = np.argsort(-np.abs(values))[:4]
    form = vectors[:, at] * values[at] @ vectors[:, at].T
    form += np.diag(np.diag(due - form))
    assert np.allclose(L @ np.eye(len(due)), form, atol=1e-9) and np.allclose(np.diag(form), np.diag(due))
    error = np.linalg.norm(due - form) / np.linalg.norm(due)
    assert abs(float(L.error) - error) < 4 * L.error.stderr < 0.2 * error
    shift = 1.0 - low
    whole = form + shift * np.eye(len(form))
    assert L.logdet(shift) == pytest.approx(np.linalg.slogdet(whole)[1])
    B = np.random.default_rng(0).standard_normal((len(form), 2))
    assert np.allclose(L.solve(B, shift), np.linalg.solve(whole, B)) and L.solve(B[:, 0], shift).shape == (len(form),)


def test_what_has_no_inverse_is_refused():
    L = low_rank_plus_diagonal(np.diag([4.0, 1.0, 0.0]), 1)
    with pytest.raises(ValueError, match="use a larger shift"):
        L.logdet()
    negative = low_rank_plus_diagonal(np.diag([-4.0, 1.0, 1.0]), 1)
    with pytest.raises(ValueError, match="not positive definite"):
        negative.solve(np.ones(3), shift=2.0)
    assert negative.solve(np.ones(3), shift=5.0) == pytest.approx([1.0, 1 / 6, 1 / 6])
    with pytest.raises(ValueError, match="use an integer >= 2"):
        low_rank_plus_diagonal(np.eye(3), 1, probes=1)
    with pytest.raises(ValueError, match="no diagonal"):
        low_rank_plus_diagonal(np.ones((2, 3)), 1)
    with pytest.raises(ValueError, match="shape"):
        L.solve(np.ones(2), shift=1.0)
    assert spectral.LowRankPlusDiagonal is laplace.LowRankPlusDiagonal
