"""A[rows, cols] is what numpy has of the dense matrix, each axis by itself; blocks over any partition are its diagonal blocks."""

import numpy as np
import pytest
import torch
from torch import nn

import spectral
from spectral import GaussNewton, Hessian, Jacobian, blocks

A = np.random.default_rng(0).standard_normal((6, 5))
S = A @ A.T
MASK = np.array([True, False, True, True, False])


def dense(op):
    return op @ np.eye(op.shape[1])


@pytest.mark.parametrize(
    "rows", [slice(1, 5), slice(None, None, -2), [0, -1, 2], np.array([3, 3, 1]), ..., slice(4, 1)]
)
@pytest.mark.parametrize("cols", [slice(None), slice(2), MASK, torch.tensor([4, 0]), list(MASK)])
def test_blocks_are_those_of_the_dense_matrix(rows, cols):
    op = spectral.as_operator(A)
    due = A[:, cols.numpy() if isinstance(cols, torch.Tensor) else cols][rows]
    part = op[rows, cols]
    assert part.shape == due.shape and np.allclose(dense(part), due)
    assert np.allclose(dense(part.T), due.T)
    if due.size:
        assert part.adjoint_error() < 1e-14
        assert np.allclose(part[[0], :] @ np.ones(part.shape[1]), due[:1].sum(1))


def test_numbers_rows_and_columns_are_numpys():
    op = spectral.as_operator(A)
    assert op[2, -1] == A[2, -1] and isinstance(op[np.int64(2), torch.tensor(1)], float)
    for got, due in (
        (op[2], A[2]), (op[2, 1:3], A[2, 1:3]), (op[:, 0], A[:, 0]), (op[[0, 3], 1], A[[0, 3], 1]), (op[..., 4], A[:, 4]),
    ):  # fmt: skip
        assert np.allclose(got, due)
    assert op.products == 7
    assert np.allclose(dense(op[[4, 0]]), A[[4, 0]]) and np.allclose(
        dense(op[np.ix_([0, 2], MASK)]), A[np.ix_([0, 2], MASK)]
    )
    assert op[:, :] is op and op[...] is op


def test_principal_blocks_are_symmetric_and_estimators_take_them():
    op = spectral.as_operator(S)
    idx = [4, 1, 2]
    part = (op + 0 * spectral.I)[idx, np.array(idx)]
    assert part.symmetric and part.self_map and not op[idx, [1, 2, 4]].self_map
    assert spectral.exact(part).atoms.values == pytest.approx(np.linalg.eigvalsh(S[np.ix_(idx, idx)]))
    assert spectral.as_operator(A).gram("left")[1:3, 1:3].nonnegative
    assert spectral.exact(op[:2, 3:]).atoms.values == pytest.approx(np.linalg.svd(S[:2, 3:])[1][::-1] ** 2)
    assert op[:3, :3].identity() != op[1:4, 1:4].identity()


def test_of_the_transpose_rows_are_columns():
    op = spectral.as_operator(A)
    assert np.allclose(op.T[1], A[:, 1]) and np.allclose(dense((2 * op)[1:, :2]), 2 * A[1:, :2])


@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        ((6, 0), IndexError, "index 6 is beyond the 6 entries"),
        ((slice(None), [0, 5]), IndexError, "beyond the 5 entries"),
        ((MASK, 0), IndexError, "the mask has 5 entries, its axis 6"),
        ((0, 0, 0), IndexError, "two axes"),
        (([0.5], 0), TypeError, "use integers or a boolean mask"),
        (("a", 0), TypeError, "is no index"),
        ((None, 0), TypeError, "is no index"),
        ((True, 0), TypeError, "is no index"),
    ],
)
def test_what_is_no_index_is_refused(key, error, words):
    with pytest.raises(error, match=words):
        spectral.as_operator(A)[key]


def test_operators_are_not_iterated_over():
    op = spectral.as_operator(A)
    with pytest.raises(TypeError, match="not iterable"):
        list(op)
    assert op.products == 0


def curvature():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    return model, [(torch.randn(4, 2).double(), torch.tensor([0, 1, 1, 0]))]


def test_any_partition_gives_the_diagonal_blocks():
    model, data = curvature()
    H = Hessian(model, nn.CrossEntropyLoss(), data, engine="double-backward")
    full = (H @ torch.eye(17).double()).numpy()
    parts = {"weights": "*.weight", "odd": np.arange(17)[6:9], "end": ["2.bias"]}
    where = {"weights": [*range(6), *range(9, 15)], "odd": [6, 7, 8], "end": [15, 16]}
    made = blocks(H, parts)
    assert list(made) == list(parts)
    for name, idx in where.items():
        assert np.allclose(dense(made[name]), full[np.ix_(idx, idx)], atol=1e-12) and made[name].symmetric
    listed = blocks(H, [slice(0, 9), [9, 16]])
    assert list(listed) == ["0", "1"] and np.allclose(dense(listed["1"]), full[np.ix_([9, 16], [9, 16])])
    G = Jacobian(model, data).gram("right")
    assert blocks(G, {"b": "*.bias"})["b"].shape == (5, 5)
    assert np.allclose(dense(blocks(S, [[*MASK.tolist(), True]])["0"]), S[np.ix_([0, 2, 3, 5], [0, 2, 3, 5])])


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ({"a": "0.*", "b": slice(0, 2)}, ValueError, "entry twice or shares one"),
        ({"a": [1, 1]}, ValueError, "entry twice or shares one"),
        ({"a": "3.*"}, ValueError, "matches no parameter"),
        ({"a": []}, ValueError, "is empty"),
        ({"a": 3}, TypeError, r"one entry; use \[3\]"),
        ("0.*", TypeError, "list of parts"),
    ],
)
def test_what_is_no_partition_is_refused(parts, error, words):
    model, data = curvature()
    with pytest.raises(error, match=words):
        blocks(GaussNewton(model, nn.CrossEntropyLoss(), data), parts)
    with pytest.raises(ValueError, match="both say"):
        blocks(GaussNewton(model, nn.CrossEntropyLoss(), data), [slice(1)], by="module")
    with pytest.raises(ValueError, match="no diagonal blocks"):
        blocks(spectral.as_operator(A), [slice(2)])
