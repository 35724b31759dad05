"""Laws of the Lanczos record: the Gauss rule is exact to degree 2k - 1, and known matrices give their known records."""

from math import comb

import numpy as np
import pytest
import torch

import spectral
from spectral.krylov.again import second_pass
from spectral.krylov.lanczos import Lanczos, lanczos
from spectral.operators.operator import Operator
from spectral.quadrature import gauss


def rotated(values, seed=0):
    values = np.asarray(values, dtype=float)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    A = Q * values @ Q.T
    return (A + A.T) / 2


def start(n, seed=1, dtype=torch.float64):
    return spectral.probes.probe(seed, 0, n, dtype=dtype)


def run(A, vector=None, steps=10, **options):
    A = spectral.as_operator(A)
    return lanczos(A, start(A.shape[0], dtype=A.dtype) if vector is None else torch.as_tensor(vector), steps, **options)


def strakos(n=24, low=0.1, high=100.0, rho=0.65):
    i = np.arange(1, n + 1)
    return low + (i - 1) / (n - 1) * (high - low) * rho ** (n - i)


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("reorthogonalize", [True, False])
def test_gauss_rule_is_exact_to_degree_2k_minus_1_and_no_further(steps, reorthogonalize):
    values = np.sort(np.random.default_rng(0).uniform(-1, 1, 40))
    v = np.random.default_rng(2).standard_normal(40)
    nodes, weights, _ = gauss.gauss_rule(run(np.diag(values), v, steps, reorthogonalize=reorthogonalize))
    share = v**2 / (v @ v)
    for degree in range(2 * steps):
        assert weights @ nodes**degree == pytest.approx(share @ values**degree, abs=1e-12)
    assert abs(weights @ nodes ** (2 * steps) - share @ values ** (2 * steps)) > 1e-12
    assert weights.sum() == pytest.approx(1, abs=1e-13)


def test_three_term_relation_and_orthonormal_basis():
    A = rotated(np.geomspace(1e-3, 1e3, 60))
    state = Lanczos(spectral.as_operator(A), start(60), 25)
    while state.step():
        pass
    record, Q = state.record(), state.combine(np.eye(25)).numpy()
    T = np.diag(record.alphas) + np.diag(record.betas[:-1], 1) + np.diag(record.betas[:-1], -1)
    np.testing.assert_allclose(Q @ Q.T, np.eye(25), atol=1e-13)
    residual = A @ Q.T - Q.T @ T
    np.testing.assert_allclose(residual[:, :-1], 0, atol=1e-10)
    assert np.linalg.norm(residual[:, -1]) == pytest.approx(record.betas[-1], rel=1e-10)
    assert record.squared_norm == pytest.approx(float(start(60) @ start(60)))


@pytest.mark.parametrize(
    ("A", "distinct"),
    [
        (2 * np.eye(50), [2.0]),
        (np.zeros((20, 20)), [0.0]),
        (rotated([573.0, 554.0, 469.0] + [0.0] * 47), [0, 469, 554, 573]),
        (rotated(list(range(1, 11)) + [0.0] * 190), range(11)),
        (np.array([[-3.0]]), [-3.0]),
        (np.diag([1.0, 1.0, 4.0, 4.0, 4.0]), [1.0, 4.0]),
    ],
    ids=["2I", "zero", "rank 3", "rank 10", "n = 1", "two values"],
)
def test_an_invariant_subspace_ends_the_recurrence_with_the_exact_rule(A, distinct):
    record = run(A, steps=500)
    assert record.stop == "breakdown"
    assert record.betas[-1] == 0
    assert record.steps <= len(distinct) + 2  # of products with rounding, an eigenvalue may come twice
    distance = np.abs(record.eigen[0][:, None] - np.array(list(distinct), dtype=float))
    assert distance.min(0).max() <= 1e-10 * max(1, np.abs(A).max())  # none is missing
    assert distance.min(1).max() <= 1e-10 * max(1, np.abs(A).max())  # none is spurious


def test_rank_10_in_dimension_1000_breaks_down_with_its_ten_eigenvalues():
    B = np.random.default_rng(3).standard_normal((1000, 10))
    record = run(B @ B.T, steps=50)
    expected = np.append(0.0, np.linalg.eigvalsh(B.T @ B))
    assert (record.stop, record.steps <= 13) == ("breakdown", True)
    np.testing.assert_allclose(record.eigen[0][-10:], expected[1:], rtol=1e-12)
    np.testing.assert_allclose(record.eigen[0][:-10], 0, atol=1e-9)


def test_steps_beyond_the_dimension_give_all_eigenvalues():
    A = rotated(np.arange(1.0, 13.0))
    record = run(A, steps=400)
    assert (record.steps, record.stop) == (12, "breakdown")
    np.testing.assert_allclose(record.eigen[0], np.arange(1.0, 13.0), atol=1e-12)


def test_kac_matrix_from_the_first_unit_vector_has_binomial_weights():
    m = 12
    beta = np.sqrt(np.arange(1, m + 1) * np.arange(m, 0, -1))
    first = np.eye(m + 1)[0]
    record = run(np.diag(beta, 1) + np.diag(beta, -1), first, steps=m + 1)
    nodes, weights, _ = gauss.gauss_rule(record)
    np.testing.assert_allclose(record.betas[:-1], beta, rtol=1e-12)
    np.testing.assert_allclose(nodes, np.arange(-m, m + 1, 2), atol=1e-12)
    np.testing.assert_allclose(weights, [comb(m, i) / 2**m for i in range(m + 1)], atol=1e-14)


def test_hypercube_has_its_multiplicities_as_weights_from_a_vertex():
    d = 7
    vertices = np.arange(2**d)
    A = np.zeros((2**d, 2**d))
    for bit in range(d):
        A[vertices, vertices ^ (1 << bit)] = 1.0
    nodes, weights, _ = gauss.gauss_rule(run(A, np.eye(2**d)[5], steps=100))
    np.testing.assert_allclose(nodes, d - 2 * np.arange(d, -1, -1), atol=1e-12)
    np.testing.assert_allclose(2**d * weights, [comb(d, j) for j in range(d + 1)], rtol=1e-10)


def test_strakos_matrix_makes_ghosts_only_without_reorthogonalisation():
    values = strakos()
    v = np.ones(24)
    clean = run(np.diag(values), v, steps=24)
    np.testing.assert_allclose(clean.eigen[0], values, rtol=1e-9)
    ghosts = run(np.diag(values), v, steps=24, reorthogonalize=False)
    assert (np.abs(ghosts.eigen[0] - 100.0) < 1e-6).sum() >= 2  # 100 appears again
    nodes, weights, _ = gauss.gauss_rule(ghosts)  # yet the copies share one weight
    assert weights[nodes > 99].sum() == pytest.approx(1 / 24, abs=1e-10)


def test_wilkinson_matrix_has_its_top_pair():
    A = np.diag(np.abs(np.arange(-10.0, 11.0))) + np.diag(np.ones(20), 1) + np.diag(np.ones(20), -1)
    record = run(A, steps=21)
    assert record.eigen[0][-1] == pytest.approx(10.746194182903393, abs=1e-12)
    assert record.eigen[0][0] == pytest.approx(np.linalg.eigvalsh(A)[0], abs=1e-12)


@pytest.mark.parametrize("reorthogonalize", [True, False])
def test_scaling_by_a_power_of_two_scales_the_record_bit_for_bit(reorthogonalize):
    A = rotated(np.geomspace(1e-3, 1, 50))
    one = run(A, steps=20, reorthogonalize=reorthogonalize)
    two = run(A * 2.0**-30, steps=20, reorthogonalize=reorthogonalize)
    np.testing.assert_array_equal(two.alphas, one.alphas * 2.0**-30)
    np.testing.assert_array_equal(two.betas, one.betas * 2.0**-30)


@pytest.mark.parametrize(("factor", "shift"), [(1e-9, 0.0), (1e9, 0.0), (-2.0, 3.0), (1e-30, 0.0), (1e30, 0.0)])
def test_scale_and_shift_move_the_record_along(factor, shift):
    A = rotated(np.random.default_rng(0).uniform(-1, 1, 40))
    one, two = run(A, steps=10), run(factor * A + shift * np.eye(40), steps=10)
    np.testing.assert_allclose(two.alphas, factor * one.alphas + shift, atol=1e-10 * abs(factor))
    np.testing.assert_allclose(two.betas, abs(factor) * one.betas, rtol=1e-9)


def test_float32_products_give_float32_accuracy_with_float64_scalars():
    values = np.linspace(1, 2, 100)
    double, single = run(np.diag(values), steps=12), run(np.diag(values).astype(np.float32), steps=12)
    assert single.dtype == "float32"
    assert single.alphas.dtype == single.betas.dtype == np.float64
    np.testing.assert_allclose(single.alphas, double.alphas, atol=3e-6)


class Buffered(Operator):
    """A product that returns its own buffer, or its argument, each time."""

    def __init__(self, values, alias):
        super().__init__((len(values),) * 2, torch.float64, symmetric=True)
        self.values, self.alias, self.buffer = torch.as_tensor(values)[:, None], alias, None

    def _apply(self, V):
        if self.alias:
            return V
        self.buffer = torch.empty_like(V) if self.buffer is None else self.buffer
        return torch.mul(self.values, V, out=self.buffer)


@pytest.mark.parametrize("reorthogonalize", [True, False])
def test_a_product_in_the_operators_own_buffer_is_never_changed(reorthogonalize):
    values = np.linspace(0, 1, 30)
    expected = run(np.diag(values), steps=8, reorthogonalize=reorthogonalize)
    record = run(Buffered(values, False), steps=8, reorthogonalize=reorthogonalize)
    np.testing.assert_allclose(record.alphas, expected.alphas, atol=1e-14)
    identity, v = Buffered(values, True), start(30)
    assert run(identity, v, steps=8, reorthogonalize=reorthogonalize).alphas == pytest.approx([1.0])
    assert torch.equal(v, start(30))


@pytest.mark.parametrize("vector", [[0.0, 0.0], [float("nan"), 1.0]])
def test_a_start_vector_without_direction_is_refused(vector):
    with pytest.raises(ValueError, match="start vector"):
        run(np.eye(2), torch.tensor(vector, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_selective_reorthogonalisation_keeps_semi_orthogonality_and_the_values(dtype):
    values = np.append(np.linspace(0, 1, 2000), np.geomspace(2, 100, 20))
    A = spectral.as_operator(torch.diag(torch.as_tensor(values).to(dtype)))
    state = Lanczos(A, start(2020, dtype=dtype), 120, reorthogonalize="selective")
    while state.step():
        pass
    Q, eps = state.combine(np.eye(120)).double(), torch.finfo(dtype).eps
    assert float((Q @ Q.T - torch.eye(120, dtype=torch.float64)).abs().max()) <= 4 * eps**0.5
    np.testing.assert_allclose(state.record().eigen[0][-20:], values[-20:], atol=100 * eps * 100)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_deflated_recurrence_is_that_of_the_complement(dtype):
    """A = diag(bulk, outliers) deflated of the outliers' coordinates is diag(bulk), with the same start there."""
    bulk, outliers = np.linspace(0, 1, 300), np.geomspace(2, 100, 9)
    A = spectral.as_operator(torch.diag(torch.as_tensor(np.append(bulk, outliers)).to(dtype)))
    U = torch.eye(309, dtype=dtype)[300:]
    state = Lanczos(A, start(309, dtype=dtype), 60, deflate=U, known=outliers)
    while state.step():
        pass
    record = state.record()
    alone = run(np.diag(bulk).astype(str(dtype)[6:]), start(309, dtype=dtype)[:300], 60)
    np.testing.assert_allclose(record.alphas, alone.alphas, atol=2000 * torch.finfo(dtype).eps)
    assert float((state.combine(np.eye(60)) @ U.T).abs().max()) <= 100 * torch.finfo(dtype).eps
    whole = start(309, dtype=dtype).double().numpy() ** 2
    np.testing.assert_allclose(record.shares, whole[300:] / whole.sum(), rtol=1e-5)
    nodes, weights, _ = gauss.gauss_rule(record)
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert weights @ nodes == pytest.approx(whole @ np.append(bulk, outliers) / whole.sum(), rel=1e-5)


@pytest.mark.parametrize("deflated", [False, True])
def test_a_basis_of_long_float32_vectors_is_orthonormal_whatever_their_signs(deflated):
    """Millions of terms of one sign, added one after another in float32, are off by 1e-4: a run ended, "product was wrong"."""

    class Squared(Operator):
        new_products = True

        def _apply(self, V):
            return self.d[:, None] * V

    n = 1 << 21
    A = Squared((n, n), torch.float32, torch.device("cpu"), symmetric=True)
    A.d = torch.linspace(0, 1, n) ** 8
    U = torch.zeros(1, n)
    U[0, -1000:] = 1000**-0.5  # as good as an eigenvector
    A.d[-1000:] = 1.0
    known = {"deflate": U, "known": np.ones(1)} if deflated else {}
    state = Lanczos(A, torch.ones(n), 4, reorthogonalize=True, **known)
    while state.step():
        pass
    Q = torch.stack([*map(state.kept.row, range(4)), *U[: int(deflated)]]).double()
    assert (Q @ Q.T - torch.eye(len(Q), dtype=torch.float64)).abs().max() < 32 * torch.finfo(torch.float32).eps


def test_a_second_pass_makes_the_basis_again():
    A, v = spectral.as_operator(rotated(np.geomspace(1e-2, 1, 50))), start(50)
    state = Lanczos(A, v, 12)
    while state.step():
        pass
    bare = Lanczos(A, v, 12, reorthogonalize=False)
    while bare.step():
        pass
    before = A.products
    again = second_pass(bare, v, np.eye(12))
    assert A.products - before == 11
    np.testing.assert_allclose(again.numpy(), state.combine(np.eye(12)).numpy(), atol=1e-6)


class Rounded(Operator):
    """Products that are rounded to `noise` of their length, the same way each time."""

    noise = 3e-3

    def __init__(self, M):
        self.M = torch.as_tensor(M).float()
        super().__init__(tuple(self.M.shape), torch.float32, torch.device("cpu"), symmetric=True)

    @property
    def product_error(self):
        return 8 * self.noise

    def _apply(self, V):
        W = self.M @ V
        step = self.noise * W.norm(dim=0) / len(W) ** 0.5
        return (W / step).round() * step


def test_selective_basis_is_orthonormal_where_products_are_coarser_than_vectors():
    """Simon's recurrence with the products' own rounding in the place of eps: with eps alone they are off by 0.5 and more."""
    state = Lanczos(
        Rounded(rotated(np.geomspace(1e-3, 1, 80))), start(80, dtype=torch.float32), 40, reorthogonalize="selective"
    )
    while state.step():
        pass
    Q = state.combine(np.eye(state.steps)).double().numpy()
    np.testing.assert_allclose(Q @ Q.T, np.eye(len(Q)), atol=1e-3)
