"""The algebra of operators is that of dense matrices; columns and sweeps are counted; what is no matrix is one sentence."""

import json

import numpy as np
import pytest
import torch
from oracles import CASES

import spectral
from spectral import I, as_operator

eye = torch.eye(4).double()
MA, MB, MC = (torch.randn(4, 4, generator=torch.Generator().manual_seed(i)).double() for i in range(3))
MW = torch.randn(4, 6, generator=torch.Generator().manual_seed(9)).double()
MS = MA + MA.T
A, B, C, W, S = (as_operator(M) for M in (MA, MB, MC, MW, MS))

ALGEBRA = {
    "sum": (A + B, MA + MB),
    "scaled": (2.5 * A, 2.5 * MA),
    "scaled-right": (A * -2, -2 * MA),
    "difference": (A - B, MA - MB),
    "negative": (-A, -MA),
    "quotient": (A / 2, MA / 2),
    "shift": (A + 0.7 * I, MA + 0.7 * eye),
    "shift-left": (0.7 * I + A, MA + 0.7 * eye),
    "shift-minus": (A - 2 * I, MA - 2 * eye),
    "shift-minus-left": (I - A, eye - MA),
    "shift-zero": (A + 0 * I, MA),
    "negative-identity": (A + -I, MA - eye),
    "product": (A @ B, MA @ MB),
    "rectangular": (A @ W, MA @ MW),
    "transposed": (W.T, MW.T),
    "transposed-twice": (W.T.T, MW),
    "gram-by-hand": (W.T @ W, MW.T @ MW),
    "gram-right": (W.gram("right"), MW.T @ MW),
    "gram-left": (W.gram("left"), MW @ MW.T),
    "nested": (2 * (A @ B - C.T) @ (S + I) / 3, 2 * (MA @ MB - MC.T) @ (MS + eye) / 3),
    "numpy-factor": (np.float64(2) * A, 2 * MA),
    "numpy-factor-right": (A * np.float32(2), 2 * MA),
    "numpy-array-factor": (np.array(2.0) * A, 2 * MA),
    "torch-factor": (A * torch.tensor(2.0), 2 * MA),
    "same-twice": (A + A, 2 * MA),
}


@pytest.mark.parametrize("name", ALGEBRA)
def test_algebra_is_that_of_matrices(name):
    op, M = ALGEBRA[name]
    m, n = M.shape
    assert op.shape == (m, n) and op.dtype == torch.float64
    for T, D in ((op, M), (op.T, M.T), (op.T.T, M)):
        assert torch.allclose(T @ torch.eye(D.shape[1]).double(), D, atol=1e-13)
        v = torch.randn(D.shape[1]).double()
        assert torch.allclose(T @ v, D @ v, atol=1e-13)
    assert op.adjoint_error() < 1e-14
    assert torch.allclose(op.gram("right") @ torch.eye(n).double(), M.T @ M, atol=1e-12)
    json.dumps(op.describe())


def test_symmetry_and_sign_follow_the_algebra():
    G = W.gram("right")
    assert (S.symmetric, A.symmetric, W.symmetric) == (True, False, False)
    assert (S + S).symmetric and (2 * S).symmetric and (S + I).symmetric and G.symmetric and (S + I).T is not None
    assert (S @ S).symmetric is None and (A + S).symmetric is None  # two products tell
    assert G.nonnegative and (2 * G + I).nonnegative and (G + G).nonnegative
    assert not (-G).nonnegative and not (G - I).nonnegative and not S.nonnegative
    assert (G.known_zeros, (3 * G).known_zeros, (G + I).known_zeros, W.gram().known_zeros) == (2, 2, 0, 0)
    assert S.T is S


def test_columns_are_counted_by_every_operator():
    a, b = as_operator(MA), as_operator(MB)
    op = a @ b + 2 * a
    op @ torch.ones(4, 3).double()
    assert (op.products, a.products, b.products) == (3, 6, 3)
    op.T @ torch.ones(4).double()
    assert (a.products, b.products, op.products) == (8, 4, 4)


def test_sweeps_of_shared_data_are_counted_once():
    case = CASES["mlp"]
    J = spectral.Jacobian(case.network(), case.batches())
    op = (J.T @ J + J.gram("right")) / 2 + I
    assert op.epochs == J.epochs == 1
    op @ torch.ones(31).double()
    assert op.epochs == J.epochs == 4  # J, J^T, and J^T J in one
    other = spectral.Jacobian(case.network(), case.batches())
    assert (J + other).epochs == 5


def test_array_kind_in_is_array_kind_out():
    v = np.arange(4.0)
    assert isinstance(A @ v, np.ndarray) and np.allclose(A @ v, MA.numpy() @ v)
    assert isinstance(A @ torch.from_numpy(v), torch.Tensor)
    block = np.asfortranarray(np.random.default_rng(0).normal(size=(4, 3)))
    assert np.allclose(A @ block, MA.numpy() @ block) and np.allclose(A @ block[:, ::-1], MA.numpy() @ block[:, ::-1])
    assert (A @ block[:, :0]).shape == (4, 0)


def test_arrays_multiply_from_the_left():
    v, X = np.arange(4.0), np.arange(8.0).reshape(2, 4)
    assert np.allclose(v @ W, v @ MW.numpy()) and np.allclose(X @ W, X @ MW.numpy())
    assert isinstance(X @ W, np.ndarray)
    t = torch.from_numpy(X)
    assert torch.allclose(t @ W, t @ MW)


def test_product_is_no_view_of_its_argument():
    v = torch.ones(4).double()
    w = (1.0 * (A + 0 * I)) @ v
    w.zero_()
    assert float(v.sum()) == 4


def test_adjoint_error_sees_a_wrong_transpose():
    class Wrong(spectral.Operator):
        def _apply(self, V):
            return MA @ V

        def _apply_transpose(self, U):
            return MB @ U

    assert Wrong((4, 4), torch.float64).adjoint_error() > 1e-3


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: A + W, ValueError, r"cannot add .*Dense 4 x 4.* and .*4 x 6.*shapes differ"),
        (lambda: W @ A, ValueError, r"cannot multiply .*6 columns meet 4 rows"),
        (lambda: W + I, ValueError, r"cannot add 1.0 I .* not square"),
        (lambda: A * B, ValueError, r"finite number, not by <Dense.*write A @ B"),
        (lambda: A * "x", ValueError, r"finite number, not by 'x'"),
        (lambda: A * float("nan"), ValueError, r"finite number, not by nan"),
        (lambda: A * 1j, ValueError, r"finite number, not by 1j"),
        (lambda: np.ones(4) * A, ValueError, r"finite number, not by array"),
        (lambda: A + 1, TypeError, r"unsupported operand"),
        (lambda: A @ [1.0] * 4, TypeError, r"unsupported operand"),
        (lambda: A + as_operator(MA.float()), TypeError, r"differ in dtype or device; build both in one"),
        (
            lambda: A @ torch.ones(3).double(),
            ValueError,
            r"shape \(4, 4\) with an array of shape \(3,\); use \(4,\) or",
        ),
        (lambda: A @ torch.ones(4, 1, 1).double(), ValueError, r"use \(4,\) or \(4, b\)"),
        (lambda: A @ torch.ones(()).double(), ValueError, r"use \(4,\) or \(4, b\)"),
        (lambda: A @ np.ones(4, np.float32), TypeError, r"nothing is cast silently; convert"),
        (lambda: spectral.Operator((2, 2), torch.int64), TypeError, r"real and floating"),
        (
            lambda: spectral.Operator((2, 2), torch.float64) @ torch.ones(2).double(),
            TypeError,
            r"Operator has no product",
        ),
        (
            lambda: spectral.Operator((2, 3), torch.float64).T @ torch.ones(2).double(),
            TypeError,
            r"no transposed product; give one",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(make, error, words):
    with pytest.raises(error, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_identity_is_that_of_the_expression():
    same = as_operator(MA.clone())
    assert (A + 2 * I).identity() == (same + 2 * I).identity() and A.identity() == same.identity()
    changed = MA.clone()
    changed[2, 1] += 1e-9
    made = [
        A,
        as_operator(changed),
        A.T,
        A + I,
        A + 2 * I,
        2 * A,
        -A,
        A + B,
        A @ B,
        B @ A,
        A.gram("left"),
        A.gram("right"),
    ]
    assert len({op.identity() for op in made}) == len(made)
