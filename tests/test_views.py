"""Matrices of other worlds multiply as their dense selves, and scipy's solvers on our views agree with dense ones."""

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as sla
import torch
from oracles import CASES, dense_jacobian, logits

import spectral
from spectral import as_operator

rng = np.random.default_rng(0)
M = rng.normal(size=(5, 7)) * (rng.random((5, 7)) < 0.6)
read_only = M.copy()
read_only.flags.writeable = False


class Duck:
    """Shape, dtype and @ alone."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype

    def __matmul__(self, V):
        return self.matrix @ V


class Duckling(Duck):
    @property
    def T(self):
        return Duckling(self.matrix.T)


WAYS = {
    "numpy": lambda: M,
    "numpy-fortran": lambda: np.asfortranarray(M),
    "numpy-strided": lambda: np.repeat(M, 2, axis=1)[:, ::2],
    "numpy-negative": lambda: M[::-1].copy()[::-1],
    "numpy-read-only": lambda: read_only,
    "torch": lambda: torch.from_numpy(M),
    "torch-grad": lambda: torch.from_numpy(M.copy()).requires_grad_(),
    "torch-transposed": lambda: torch.from_numpy(M.T.copy()).T,
    "torch-coo": lambda: torch.from_numpy(M).to_sparse(),
    "torch-csr": lambda: torch.from_numpy(M).to_sparse_csr(),
    **{f"scipy-{k}": lambda k=k: sp.csr_matrix(M).asformat(k) for k in ("csr", "csc", "coo", "lil", "dok", "dia", "bsr")},
    "scipy-array": lambda: sp.csr_array(M),
    "scipy-coo-array": lambda: sp.coo_array(M),
    "linear-operator": lambda: sla.aslinearoperator(M),
    "linear-operator-matvec": lambda: sla.LinearOperator(M.shape, matvec=lambda v: M @ v, rmatvec=lambda u: M.T @ u, dtype=float),
    "duck": lambda: Duckling(M),
    "operator": lambda: as_operator(M),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_matrix_from_anywhere_multiplies_as_its_dense_self(way):
    op = as_operator(WAYS[way]())
    assert op.shape == (5, 7) and op.dtype == torch.float64 and op.symmetric is False
    V, U = rng.normal(size=(7, 3)), rng.normal(size=(5, 2))
    assert np.allclose(op @ V, M @ V, atol=1e-13) and np.allclose(op @ V[:, 0], M @ V[:, 0], atol=1e-13)
    assert np.allclose(op.T @ U, M.T @ U, atol=1e-13) and np.allclose(op.T @ U[:, 0], M.T @ U[:, 0], atol=1e-13)
    assert np.allclose(op.gram("right") @ V, M.T @ (M @ V), atol=1e-12)
    out = op @ torch.from_numpy(V)
    assert isinstance(out, torch.Tensor) and not out.requires_grad
    assert op.adjoint_error() < 1e-14 and isinstance(op.identity(), str)
    assert as_operator(op) is op


def test_single_precision_stays_single():
    for given in (M.astype(np.float32), sp.csr_matrix(M.astype(np.float32)), torch.from_numpy(M).float()):
        op = as_operator(given)
        assert op.dtype == torch.float32 and (op @ np.ones(7, np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    "make", [lambda S: S, torch.from_numpy, sp.csr_matrix, sp.coo_array, lambda S: sp.lil_matrix(S)]
)
def test_symmetry_is_seen(make):
    S = M[:, :5] + M[:, :5].T
    off = S.copy()
    off[0, 1] += 1e-6
    assert as_operator(make(S)).symmetric is True and as_operator(make(off)).symmetric is False
    assert as_operator(make(np.zeros((3, 3)))).symmetric is True


def test_symmetry_of_what_cannot_be_seen_is_unknown():
    S = M[:, :5]
    for given in (Duck(S), sla.aslinearoperator(S), torch.from_numpy(S).to_sparse()):
        assert as_operator(given).symmetric is None


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: M.astype(int), TypeError, r"int64; an operator is real and floating: convert"),
        (lambda: M + 1j, TypeError, r"complex128; an operator is real"),
        (lambda: M > 0, TypeError, r"bool; an operator is real"),
        (lambda: torch.ones(2, 2, dtype=torch.int32), TypeError, r"int32; an operator is real"),
        (lambda: sp.csr_matrix(M.astype(int)), TypeError, r"int64; an operator is real"),
        (lambda: sp.csr_matrix(M + 1j), TypeError, r"complex128; an operator is real"),
        (lambda: sla.aslinearoperator(M + 1j), TypeError, r"complex128; an operator is real"),
        (lambda: np.ones(3), ValueError, r"an operator is a matrix, but the array has shape \(3,\)"),
        (lambda: np.ones((2, 2, 2)), ValueError, r"shape \(2, 2, 2\)"),
        (lambda: sp.coo_array(np.ones(3)), ValueError, r"an operator is a matrix, but coo_array has shape \(3,\)"),
        (lambda: np.full((2, 2), np.nan), ValueError, r"NaN or infinity; remove"),
        (lambda: sp.csr_matrix(np.full((2, 2), np.inf)), ValueError, r"NaN or infinity; remove"),
        (lambda: torch.full((2, 2), torch.nan).to_sparse(), ValueError, r"NaN or infinity; remove"),
        (lambda: [[1.0]], TypeError, r"list is no matrix; pass something with a shape"),
        (lambda: "A", TypeError, r"str is no matrix"),
        (
            lambda: type("NoType", (), {"shape": (2, 2), "__matmul__": lambda s, v: v})(),
            TypeError,
            r"NoType has no dtype",
        ),
    ],
)
def test_no_matrix_is_one_sentence(make, error, words):
    with pytest.raises(error, match=words) as caught:
        as_operator(make())
    assert "\n" not in str(caught.value)


def test_missing_transpose_is_one_sentence():
    for given in (Duck(M), sla.LinearOperator(M.shape, matvec=lambda v: M @ v, dtype=float)):
        op = as_operator(given)
        assert np.allclose(op @ np.ones(7), M.sum(1))
        with pytest.raises(TypeError, match=r"has no transposed product; give it one"):
            op.T @ np.ones(5)
        with pytest.raises(TypeError, match=r"has no transposed product; give it one"):
            op.T @ np.ones((5, 2))


def test_products_that_change_dtype_or_shape_are_refused():
    duck = Duck(M)
    duck.dtype = np.dtype(np.float32)
    with pytest.raises(
        TypeError, match=r"returned float64 for a torch.float32 block; its products must keep the dtype"
    ):
        as_operator(duck) @ np.ones(7, np.float32)

    class Summed(Duck):
        def __matmul__(self, V):
            return (self.matrix @ V).sum(1)

    with pytest.raises(ValueError, match=r"Summed of shape \(5, 7\) returned \(5,\) where \(5, 3\) was due"):
        as_operator(Summed(M)) @ np.ones((7, 3))


@pytest.mark.parametrize("way", ["numpy", "torch-coo", "torch-csr", "scipy-csr", "scipy-coo"])
def test_identity_sees_entries_and_places(way):
    moved = np.roll(M, 1, axis=1)  # the same values elsewhere
    changed = M + 1e-6 * (M != 0)

    def made(matrix):
        if way == "numpy":
            return as_operator(matrix).identity()
        if way.startswith("torch"):
            t = torch.from_numpy(matrix)
            return as_operator(t.to_sparse() if way.endswith("coo") else t.to_sparse_csr()).identity()
        return as_operator(sp.csr_matrix(matrix).asformat(way[6:])).identity()

    assert made(M) == made(M.copy()) and len({made(M), made(moved), made(changed)}) == 3


# Out to scipy --------------------------------------------------------------------------------------------------------
case = CASES["mlp"]
J = spectral.Jacobian(case.network(), case.batches())
D = dense_jacobian(case.network(), case.batches(), logits).numpy()


def test_view_multiplies_as_the_matrix():
    view = J.to_scipy()
    assert isinstance(view, sla.LinearOperator) and view.shape == (15, 31) and view.dtype == np.float64
    v, V, u, U = rng.normal(size=31), rng.normal(size=(31, 2)), rng.normal(size=15), rng.normal(size=(15, 2))
    for ours, dense in ((view @ v, D @ v), (view @ V, D @ V), (view.rmatvec(u), D.T @ u), (view.rmatmat(U), D.T @ U),
                        (view.H @ u, D.T @ u), (view.T @ U, D.T @ U), (view @ v[:, None], D @ v[:, None]),
                        ((view.T @ view) @ v, D.T @ D @ v), (view @ np.ones(31, int), D.sum(1))):  # fmt: skip
        assert ours.shape == dense.shape and np.allclose(ours, dense, atol=1e-12)
    with pytest.raises(TypeError, match="real operator meets a complex vector"):
        view @ (v * 1j)


def test_scipy_eigsh_and_lobpcg_on_the_gram():
    G = J.gram().to_scipy()
    true = np.linalg.eigvalsh(D @ D.T)
    assert np.allclose(sla.eigsh(G, k=4, return_eigenvectors=False, v0=np.ones(15)), true[-4:], rtol=1e-10)
    values, _ = sla.lobpcg(G, rng.normal(size=(15, 2)), tol=1e-9, maxiter=200)
    assert np.allclose(np.sort(values), true[-2:], rtol=1e-8)


def test_scipy_svds_on_the_jacobian():
    U, s, Vt = sla.svds(J.to_scipy(), k=3, v0=np.ones(15))
    assert np.allclose(np.sort(s), np.sort(np.linalg.svd(D, compute_uv=False))[-3:], rtol=1e-9)
    assert np.allclose(D @ Vt.T, U * s, atol=1e-8)


def test_scipy_cg_and_lsmr_solve():
    b = rng.normal(size=15)
    x, info = sla.cg((J.gram("left") + 0.5 * spectral.I).to_scipy(), b, rtol=1e-12)
    assert info == 0 and np.allclose(x, np.linalg.solve(D @ D.T + 0.5 * np.eye(15), b), atol=1e-9)
    y = sla.lsmr(J.to_scipy(), b, damp=0.3, atol=1e-13, btol=1e-13, maxiter=500)[0]
    assert np.allclose(y, np.linalg.solve(D.T @ D + 0.09 * np.eye(31), D.T @ b), atol=1e-8)


def test_scipy_view_of_single_precision_casts_what_scipy_hands_in():
    single = as_operator(M.astype(np.float32)).to_scipy()
    assert single.dtype == np.float32 and np.allclose(single @ np.ones(7), M.sum(1), atol=1e-5)
    with pytest.raises(TypeError, match=r"scipy has no torch.bfloat16; build the operator in float32"):
        as_operator(torch.ones(2, 2, dtype=torch.bfloat16)).to_scipy()


def test_round_trip_through_scipy_is_the_operator():
    back = as_operator(J.to_scipy())
    assert np.allclose(back @ np.ones(31), D.sum(1)) and np.allclose(back.T @ np.ones(15), D.sum(0))
