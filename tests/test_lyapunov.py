"""Lyapunov exponents and singular values of products: closed forms, and products that no float holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import spectral
from spectral.analysis.lyapunov import log_singular_values


def test_a_linear_recurrence_has_the_logarithms_of_its_eigenvalues():
    generator = np.random.default_rng(0)
    W = torch.from_numpy(generator.standard_normal((6, 6)) / math.sqrt(6))
    found = spectral.lyapunov(lambda h: W @ h, torch.ones(6, dtype=torch.float64), steps=200)
    expected = np.sort(np.log(np.abs(np.linalg.eigvals(W.numpy()))))[::-1]
    np.testing.assert_allclose(found.values, expected, atol=0.04)  # complex pairs turn: an error of order 1 / steps
    assert np.all(np.abs(found.values - expected) < 5 * found.stderr + 0.02)


@pytest.mark.parametrize("second", [0.9, 0.8995, 0.899])
def test_directions_that_turn_slowly_are_part_of_the_error(second):
    """A Jordan block's perturbations grow like t 0.9^t: both exponents were 3.5 errors off, always."""
    W = torch.tensor([[0.9, 1.0], [0.0, second]], dtype=torch.float64)
    for seed in range(3):
        found = spectral.lyapunov(lambda x: W @ x, torch.ones(2, dtype=torch.float64), seed=seed)
        assert (np.abs(found.values - np.log([0.9, second])) <= 2 * found.stderr).all()


def test_the_logistic_map_at_4_has_ln_2():
    found = spectral.lyapunov(lambda x: 4 * x * (1 - x), torch.tensor([0.3], dtype=torch.float64), steps=300)
    assert abs(found.values[0] - math.log(2)) < 4 * found.stderr[0]
    assert 1e-3 < found.stderr[0] < 0.1


def test_the_henon_map_contracts_areas_by_its_parameter():
    """The sum of all exponents is ln |det J| = ln b at every point (Henon 1976: .419 and -1.623, dimension 1.26)."""
    found = spectral.lyapunov(
        lambda s: torch.stack([1 - 1.4 * s[0] ** 2 + s[1], 0.3 * s[0]]), torch.zeros(2, dtype=torch.float64), steps=200
    )
    assert abs(found.values.sum() - math.log(0.3)) < 1e-9
    assert abs(found.values[0] - 0.419) < 4 * found.stderr[0] + 5e-3
    assert abs(found.dimension - 1.258) < 0.1


def test_a_recurrent_cell_driven_by_inputs_goes_on_where_it_stopped():
    torch.manual_seed(0)
    cell, x = nn.RNNCell(3, 5).double(), torch.randn(60, 3, dtype=torch.float64)

    def step(h, u):
        return cell(u[None], h[None])[0]

    found = spectral.lyapunov(step, torch.zeros(5, dtype=torch.float64), x, k=2, discard=0, blocks=4)
    h, J = torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    for u in x:
        J = torch.autograd.functional.jacobian(lambda h, u=u: step(h, u), h) @ J
        h = step(h, u).detach()
    np.testing.assert_allclose(found.state, h, atol=1e-14)
    growth = np.log(np.linalg.norm(J.numpy(), 2)) / 60
    assert abs(found.values[0] - growth) < 0.05  # a norm and a rate differ by O(1 / steps)
    assert found.steps == 60 and found.blocks.shape == (4, 2) and found.values[0] < 0


def test_float32_states_and_lost_directions():
    found = spectral.lyapunov(lambda x: torch.stack([0.5 * x[0], 0 * x[1]]), torch.ones(2), steps=50)
    np.testing.assert_allclose(found.values, [math.log(0.5), -math.inf])
    assert found.state.dtype == torch.float32 and math.isnan(found.stderr[1])
    assert found.dimension == 0.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"k": 3}, "k=3 is no number of exponents; use an integer from 1 to 2"),
        ({"blocks": 1}, "blocks=1"),
        ({"steps": 4}, "steps=4"),
    ],
)
def test_numbers_out_of_range_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        spectral.lyapunov(lambda x: x / 2, torch.ones(2), **given)


def test_steps_that_make_no_trajectory_are_refused():
    with pytest.raises(TypeError, match="real floating state"):
        spectral.lyapunov(lambda x: x, torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="one of the same shape"):
        spectral.lyapunov(lambda x: x[:1], torch.ones(2), steps=10)
    with pytest.raises(ValueError, match="not finite at step"):
        spectral.lyapunov(lambda x: 1e30 * x, torch.ones(2), steps=10)
    with pytest.raises(ValueError, match="use an integer from 10 to 4"):
        spectral.lyapunov(lambda x, u: x, torch.ones(2), torch.ones(5, 1), steps=10, discard=1)


def test_singular_values_of_a_product_that_a_float_holds():
    generator = np.random.default_rng(1)
    A = [generator.standard_normal((m, n)) for m, n in ((5, 7), (4, 5), (6, 4), (8, 6))]
    found = log_singular_values(A)
    expected = np.linalg.svd(A[3] @ A[2] @ A[1] @ A[0], compute_uv=False)[:4]
    np.testing.assert_allclose(found.values, np.log(expected), atol=1e-9)
    assert found.error <= 1e-10


def test_a_deep_product_keeps_its_small_singular_values():
    """Two hundred factors, down to 10^-310 and below: the sum of all logarithms is that of the determinants, exactly."""
    generator = np.random.default_rng(2)
    A = [generator.standard_normal((4, 4)) / 40 for _ in range(200)]
    found = log_singular_values(A)
    assert abs(found.values.sum() - sum(np.linalg.slogdet(a)[1] for a in A)) < 1e-8
    assert found.values[-1] < math.log(1e-308)
    rates = spectral.lyapunov(
        lambda x, a: a @ x, torch.ones(4, dtype=torch.float64), torch.from_numpy(np.stack(A)), discard=0
    )
    assert np.all(np.abs(rates.values - found.values / 200) < 0.03)


def test_equal_and_zero_singular_values():
    Q = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    np.testing.assert_allclose(log_singular_values([2 * Q, Q, Q.T]).values, math.log(2), atol=1e-14)
    assert log_singular_values([np.zeros((2, 0)), np.ones((1, 2))]).values.shape == (0,)
    np.testing.assert_allclose(log_singular_values([np.diag([1e-300, 1.0])] * 2).values, [0, 2 * math.log(1e-300)])


@pytest.mark.parametrize("factors", [[], [np.ones(2)], [np.ones((2, 3)), np.ones((2, 3))], [np.full((1, 1), np.nan)]])
def test_what_is_no_product_is_refused(factors):
    with pytest.raises(ValueError):
        log_singular_values(factors)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_torchs_cells_which_take_their_input_first_are_refused_with_what_turns_them(kind):
    """Of as many inputs as states, input and state were exchanged silently."""
    cell, inputs = kind(3, 3).double(), torch.randn(40, 3, dtype=torch.float64)
    state = torch.zeros(6 if kind is nn.LSTMCell else 3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"takes \(input, state\)") as said:
        spectral.lyapunov(cell, state, inputs)
    step = eval(str(said.value).split("pass ")[1].removesuffix(" of a cell."), {"cell": cell, "torch": torch})
    found = spectral.lyapunov(step, state, inputs, discard=0)
    with torch.no_grad():  # the sum of all exponents is that of ln |det| of the Jacobians along the trajectory
        logs = []
        for x in inputs:
            logs.append(float(torch.linalg.slogdet(torch.func.jacfwd(step)(state, x))[1]))
            state = step(state, x)
    np.testing.assert_allclose(found.values.sum(), np.mean(logs), rtol=1e-10)
