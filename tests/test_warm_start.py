"""top(start=): what an earlier run has found costs little, and what it has missed is found all the same."""

import numpy as np
import pytest
import torch
from test_top import CASES_KNOWN, best, holds, rotated
from torch import nn

import spectral
from spectral.estimators.top import top
from spectral.krylov.block_lanczos import BlockLanczos

RNG = np.random.default_rng(3)


def moved(A, size):
    """A matrix near A: by `size` of its norm."""
    E = RNG.standard_normal(A.shape)
    E = E + E.T
    return A + size * np.linalg.norm(A, 2) / np.linalg.norm(E, 2) * E


@pytest.mark.parametrize(("which", "block"), [("largest", 1), ("smallest", 1), ("magnitude", 1), ("largest", 2)])
def test_pairs_are_those_of_the_matrix_whatever_the_start(which, block):
    A = rotated(np.random.default_rng(0).standard_normal(60))
    values, vectors = np.linalg.eigh(A)
    expected = best(values, 3, which)
    near = top(moved(A, 1e-3), 3, which=which).vectors
    for start in (near, near[:, :2].numpy(), vectors[:, 20:25], np.ones(60)):
        holds(top(A, 3, which=which, start=start, block=block), A, expected)


@pytest.mark.parametrize("name", CASES_KNOWN)
def test_every_copy_is_found_where_the_start_has_one(name):
    """And where it has none, or wrong ones."""
    A, k = CASES_KNOWN[name]
    values, vectors = np.linalg.eigh(A)
    expected = best(values, k, "largest")
    first, one, lowest = vectors[:, ::-1][:, :k], vectors[:, -1:], vectors[:, :k]
    for start in (first, one, lowest):
        holds(top(A, k, start=np.ascontiguousarray(start)), A, expected)


@pytest.mark.parametrize("tol", [1e-2, 1e-8])
def test_a_better_pair_in_the_complement_of_exact_eigenvectors_is_found(tol):
    """The start tells nothing of it: only the random direction can."""
    values = np.append(np.linspace(0, 1, 300), [1.5, 1.5, 1.5, 2.0])
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((304, 304)))[0]
    A = (Q * values) @ Q.T
    A = (A + A.T) / 2
    for seed in range(5):
        pairs = top(A, 3, tol=tol, seed=seed, start=Q[:, 300:303])
        np.testing.assert_allclose(pairs.values, [2.0, 1.5, 1.5], atol=2 * tol)


def test_single_precision_keeps_its_threshold():
    A = rotated(np.random.default_rng(0).standard_normal(150)).astype(np.float32)
    cold = top(A, 4)
    warm = top(A, 4, start=cold.vectors)
    holds(warm, A, best(np.linalg.eigvalsh(A.astype(float)), 4, "largest"), tol=1e-6)
    assert warm.products < cold.products and warm.meta["start"] == {"vectors": 4, "independent": 4, "held": 4}


def test_held_pairs_are_measured_by_the_first_products_alone():
    """Nothing is multiplied to measure them again, and the residuals are those of their vectors."""
    A = rotated([9.0, 8.0, 7.0, *np.linspace(0, 1, 60)])
    cold = top(A, 3, tol=1e-3)
    warm = top(A, 3, tol=1e-3, start=cold.vectors)
    V = warm.vectors.numpy()
    np.testing.assert_allclose(V.T @ V, np.eye(3), atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(A @ V - V * warm.values, axis=0), warm.residuals, atol=1e-12)
    assert warm.meta["missed"] == 0.1 and cold.meta == {"basis": warm.meta["basis"]}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("k", "part"), [(1, 0.3), pytest.param(3, 0.3, marks=SLOW), (5, 0.36), pytest.param(10, 0.34, marks=SLOW)]
)
def test_training_that_moves_slowly_takes_a_third_of_the_cold_products(k, part):
    """A Gauss-Newton matrix and its largest eigenvalues, after each step of gradient descent: products are counted.

    k of them measure the residuals, whatever was found before; a cold run takes 19, 28, 31 and 50.
    """
    torch.manual_seed(1)
    x = torch.randn(64, 8, dtype=torch.float64)
    y = (x[:, :4].sum(1) > 0).long() + 2 * (x[:, 4] > 0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.02)
    H = spectral.GaussNewton(model, loss, [(x, y)])
    vectors, cold, warm = None, 0, 0
    for step in range(6):
        pairs = top(H, k, tol=1e-2, seed=step, start=vectors)
        plain = top(H, k, tol=1e-2, seed=step)
        np.testing.assert_allclose(pairs.values, plain.values, atol=2 * plain.threshold)
        vectors = pairs.vectors
        if step:
            cold, warm = cold + plain.products, warm + pairs.products
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    assert warm <= part * cold, (warm, cold)


def test_pairs_made_better_are_measured_without_further_products():
    """Residuals that the recurrence tells are those of the vectors, and the values lie within them."""
    A = rotated([9.0, 8.0, 7.0, *np.linspace(0, 1, 60)])
    start = top(moved(A, 5e-3), 3, tol=1e-6).vectors
    warm = top(A, 3, tol=1e-3, start=start)
    V = warm.vectors.numpy()
    np.testing.assert_allclose(V.T @ V, np.eye(3), atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(A @ V - V * warm.values, axis=0), warm.residuals, atol=1e-12)
    assert warm.meta["start"]["held"] == 0 and warm.converged.all() and warm.products <= 3 + 3 + 4


@pytest.mark.parametrize(
    ("start", "kind", "message"),
    [
        (np.ones((7, 1)), ValueError, r"start has shape \(7, 1\); use \(n, j\) with n=8"),
        (np.ones((8, 0)), ValueError, r"start has shape \(8, 0\)"),
        (np.ones((8, 9)), ValueError, "1 <= j <= 8"),
        (np.ones((2, 8, 1)), ValueError, r"start has shape \(2, 8, 1\)"),
        (np.full((8, 1), np.nan), ValueError, "start holds NaN"),
        (np.eye(8) * np.arange(8), ValueError, "a column of zeros"),
        (np.ones((8, 1), np.float32), TypeError, "start is torch.float32, and .* multiplies torch.float64"),
        ([1.0] * 8, TypeError, "got list; convert it first"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_anything_is_multiplied(start, kind, message):
    A = spectral.as_operator(np.diag(np.arange(8.0)))
    with pytest.raises(kind, match=message):
        top(A, 2, start=start)
    assert A.products == 0


def test_dependent_vectors_count_once_and_are_not_written_to():
    A = np.diag(np.arange(8.0))
    start = np.ones((8, 3)) * [1.0, 2.0, 1e-5]
    before = start.copy()
    assert top(A, 2, start=start).meta["start"]["independent"] == 1
    assert np.array_equal(start, before)


class Killed(spectral.Operator):
    """A symmetric matrix whose products end the program at one of them."""

    def __init__(self, A, last):
        super().__init__(A.shape, torch.float64, symmetric=True)
        self.A, self.last = torch.from_numpy(A), last

    def _apply(self, V):
        if self.products > self.last:
            raise KeyboardInterrupt
        return self.A @ V


@pytest.mark.parametrize("held", [True, False])
def test_an_interrupted_warm_run_goes_on_to_the_same_bits(tmp_path, held):
    A = rotated(np.append(np.linspace(0, 1, 100), [1.1, 1.2]))
    start = top(A, 2).vectors if held else top(moved(A, 1e-2), 2).vectors
    options = {"start": start, "tol": 1e-8, "checkpoint": tmp_path / "file"}
    whole = top(Killed(A, 10**6), 2, tol=1e-8, start=start)
    with pytest.raises(KeyboardInterrupt):
        top(Killed(A, 4 if held else 12), 2, **options)
    resumed = top(Killed(A, 10**6), 2, **options)
    assert np.array_equal(whole.values, resumed.values) and torch.equal(whole.vectors, resumed.vectors)
    assert np.array_equal(whole.residuals, resumed.residuals) and whole.meta == resumed.meta
    assert whole.products == resumed.products
    with pytest.raises(ValueError, match="of another operator, seed or setting"):
        top(Killed(A, 10**6), 2, **{**options, "start": start + 1e-9})


@pytest.mark.parametrize("seed", range(3))
def test_what_lies_beyond_is_the_weight_of_the_radau_rule(seed):
    """T with a last row that makes x an eigenvalue: no measure with these moments has more at x and beyond; ours has less."""
    A = rotated(np.linspace(0, 1, 40), seed)
    lanczos = BlockLanczos(spectral.as_operator(A), 40)
    g = np.random.default_rng(seed).standard_normal(40)
    lanczos.start(torch.from_numpy(g)[None])
    for _ in range(6):
        lanczos.step()
    x = 1.02
    T, b = lanczos.unlocked, lanczos.coupling[0]
    extended = np.zeros((7, 7))
    extended[:6, :6], extended[6, :6], extended[:6, 6] = T, b, b
    extended[6, 6] = x + b @ np.linalg.solve(T - x * np.eye(6), b)
    values, S = np.linalg.eigh(extended)
    assert values[-1] == pytest.approx(x)
    assert lanczos.beyond(x) == pytest.approx(S[0, -1] ** 2, rel=1e-8)
    lower = float(lanczos.ritz()[0].max()) + 1e-3
    exact, vectors = np.linalg.eigh(A)
    mass = (vectors.T @ g) ** 2 / (g @ g)
    assert mass[exact >= lower].sum() <= lanczos.beyond(lower)
