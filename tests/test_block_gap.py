"""Laws of the block gap: what it is of a dense matrix, errors that are true, 0 for a block diagonal matrix whatever is drawn."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from spectral import GaussNewton, Hessian, block_gap, blocks

SIZES = (7, 1, 12, 5, 15)


def dense_gap(A, sizes):
    ends = np.cumsum([0, *sizes])
    D = np.zeros_like(A)
    for a, b in pairwise(ends):
        D[a:b, a:b] = A[a:b, a:b]
    return np.linalg.norm(A - D) / np.linalg.norm(A)


def matrix(kind):
    """(40, 40) with blocks SIZES, from a seed of its own."""
    rng = np.random.default_rng(3)
    Q = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    if kind == "outlier":  # one eigenvalue has 97 % of the squared norm
        return Q @ np.diag([30.0, *rng.exponential(size=39)]) @ Q.T
    if kind == "signed":
        return Q @ np.diag(rng.standard_normal(40)) @ Q.T
    if kind == "not symmetric":
        return rng.standard_normal((40, 40))
    A = np.zeros((40, 40))  # nearly block diagonal: a gap of a few per cent
    ends = np.cumsum([0, *SIZES])
    for a, b in pairwise(ends):
        A[a:b, a:b] = rng.standard_normal((b - a, b - a))
    return A + 0.02 * rng.standard_normal((40, 40))


@pytest.mark.parametrize(
    ("kind", "sizes"), [(k, SIZES) for k in ("outlier", "signed", "not symmetric", "nearly")] + [("signed", (13, 27))]
)
def test_the_gap_is_that_of_the_dense_matrix_and_its_error_is_true(kind, sizes):
    """100 seeds: the mean is off by less than a tenth, and intervals of 1.96 errors hold the truth as often as they say."""
    A = matrix(kind)
    truth, found = dense_gap(A, sizes), [block_gap(A, sizes, pairs=8, seed=seed, progress=False) for seed in range(100)]
    values, errors = (np.array([getattr(e, name) for e in found]) for name in ("value", "stderr"))
    assert abs(values.mean() - truth) < 0.1 * truth
    held = np.mean(np.abs(values - truth) <= 1.96 * errors)
    assert held >= 0.88, held
    assert errors.mean() < 3 * values.std(), "an error that is always large holds everything"


def test_more_pairs_come_as_near_as_their_error_says():
    A = matrix("signed")
    gap = block_gap(A, SIZES, pairs=600)
    assert gap.stderr < 0.01
    assert abs(float(gap) - dense_gap(A, SIZES)) < 4 * gap.stderr
    assert (gap.products, gap.probes) == (1200, 600)


def test_a_block_diagonal_matrix_has_none_whatever_is_drawn():
    A = matrix("signed")
    for a, b in ((0, 7), (7, 8), (8, 20), (20, 25)):
        A[a:b, b:] = A[b:, a:b] = 0
    gap = block_gap(A, SIZES, pairs=2)
    assert (float(gap), gap.stderr) == (0.0, 0.0)
    whole = block_gap(matrix("signed"), [40])
    assert (float(whole), whole.stderr, whole.products) == (0.0, 0.0, 0)


def test_scale_does_not_matter_and_two_empty_blocks_leave_everything_outside():
    A = matrix("outlier")
    assert float(block_gap(A, SIZES)) == pytest.approx(float(block_gap(1e3 * A, SIZES)), rel=1e-12)
    outside = np.kron([[0.0, 1.0], [1.0, 0.0]], np.ones((3, 3)))
    assert float(block_gap(outside, [3, 3])) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "by"), [(GaussNewton, "module"), (Hessian, "parameter")])
def test_the_gap_of_a_network_is_that_of_its_dense_matrix(kind, by):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 4, generator=generator).double(), torch.randint(3, (20,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    A = kind(model, torch.nn.CrossEntropyLoss(), [(x, y)])
    sizes = [B.shape[0] for B in blocks(A, by=by).values()]
    dense = (A @ torch.eye(A.shape[0], dtype=torch.float64)).numpy()
    gap = block_gap(A, sizes, pairs=40)
    assert 0.3 < dense_gap(dense, sizes) < 1
    assert abs(float(gap) - dense_gap(dense, sizes)) < 4 * gap.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((np.eye(4), [1, 2]), "2 blocks of 3 rows"),
        ((np.ones((3, 4)), [1, 3]), "2 blocks of 4 rows"),
        ((np.eye(4), [4, 0]), "sizes=0 is no size of a block"),
        ((np.zeros((4, 4)), [2, 2]), "0 has no block gap"),
    ],
)
def test_what_has_no_gap_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        block_gap(*given)


def test_one_pair_has_no_error():
    with pytest.raises(ValueError, match=r"pairs=1 is no number of pairs; use an integer >= 2\."):
        block_gap(np.eye(2), [1, 1], pairs=1)
