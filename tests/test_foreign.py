"""Matrices of other worlds multiply as their dense selves, and scipy's solvers on our views agree with dense ones."""

import sys
import types

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as sla
import torch
from oracles import CASES, dense_jacobian, logits
from test_arrays import cupy  # noqa: F401  (a fixture: the stand-in)

import spectral
from spectral import arrays, as_operator

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


class Careless(Duckling):
    """Writes into what it is given, and returns one array again and again."""

    def __init__(self, matrix, dtype):
        super().__init__(matrix)
        self.dtype, self.kept = dtype, {}

    def __matmul__(self, V):
        given = isinstance(V, torch.Tensor)
        out = self.kept.setdefault(V.shape, np.empty((len(self.matrix), V.shape[1])))
        np.matmul(self.matrix, V, out=out)
        V *= 0
        return torch.from_numpy(out) if given else out

    @property
    def T(self):
        return Careless(self.matrix.T, self.dtype)


def careless_matvec():
    out, back = np.empty(5), np.empty(7)
    return sla.LinearOperator(
        M.shape,
        matvec=lambda v: np.matmul(M, v.ravel(), out=out),
        rmatvec=lambda u: np.matmul(M.T, u.ravel(), out=back),
        dtype=float,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Careless(M, np.dtype(float)),
        lambda: Careless(M, torch.float64),
        careless_matvec,
        lambda: 2 * careless_matvec(),
    ],
    ids=["numpy", "torch", "matvec", "sum"],
)
def test_products_and_vectors_are_memory_of_their_own(make):
    """scipy's own block of `careless_matvec` is its last column, b times."""
    A, V, U = make(), rng.normal(size=(7, 3)), rng.normal(size=(5, 2))
    op, size = as_operator(A), 2 if hasattr(A, "args") and 2 in A.args else 1
    for times, matrix, block in ((op.__matmul__, M, V), (op.T.__matmul__, M.T, U)):
        first, second, one = times(before := block.copy()), times(2 * block), times(block[:, 0])
        assert np.array_equal(before, block)
        for product, right in ((first, block), (second, 2 * block), (one, block[:, 0])):
            assert np.allclose(product, size * matrix @ right, atol=1e-13)


def test_columns_that_are_equal_by_right_stay_so():
    ones = sla.LinearOperator((3, 3), matvec=lambda v: np.ones((3, 3)) @ v, dtype=float)
    assert np.array_equal(as_operator(ones) @ np.eye(3), np.ones((3, 3)))


def test_vector_may_be_a_negative_view():
    v = torch.ones(7, dtype=torch.complex128).mul(1j).conj().imag
    assert v.is_neg()
    for given in (M, sp.csr_matrix(M), sla.aslinearoperator(M)):
        assert torch.allclose(as_operator(given) @ v, torch.from_numpy(-M.sum(1)))


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
        (lambda: torch.ones(2, 2).to(torch.float8_e4m3fn), TypeError, r"float8_e4m3fn; .*of 16 bits or more: convert"),
        (
            lambda: torch.eye(2).to_sparse_bsr((1, 1)),
            TypeError,
            r"the Tensor is sparse_bsr, which has no products here",
        ),
        (lambda: M > 0, TypeError, r"bool; an operator is real"),
        (lambda: torch.ones(2, 2, dtype=torch.int32), TypeError, r"int32; an operator is real"),
        (lambda: sp.csr_matrix(M.astype(int)), TypeError, r"int64; an operator is real"),
        (lambda: sp.csr_matrix(M + 1j), TypeError, r"complex128; an operator is real"),
        (lambda: sla.aslinearoperator(M + 1j), TypeError, r"complex128; an operator is real"),
        (lambda: M.astype(int), TypeError, r"entries of the ndarray are int64.*A\.astype\(np\.float64\)"),
        (
            lambda: torch.ones(2, 2, dtype=torch.int32),
            TypeError,
            r"entries of the Tensor are int32.*A\.to\(torch\.float64\)",
        ),
        (
            lambda: sp.csr_matrix(M.astype(int)),
            TypeError,
            r"entries of the csr_matrix are int64.*A\.astype\(np\.float64\)",
        ),
        (lambda: sla.aslinearoperator(M.astype(int)), TypeError, r"int64.*build it with dtype float64"),
        (lambda: M + 1j, TypeError, r"pass the real matrix \[\[Re A, -Im A\], \[Im A, Re A\]\]"),
        (lambda: M.astype(object), TypeError, r"entries of the ndarray are object"),
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


def test_identity_sees_one_entry_among_a_million_moved_by_one_rounding():
    dense = np.random.default_rng(1).normal(size=(1000, 1100))
    sparse = sp.csr_matrix(dense * (dense > 1))
    seen = {as_operator(dense).identity(), as_operator(sparse).identity()}
    for i, j in ((0, 0), (17, 901), (999, 1099)):
        other = dense.copy()
        other[i, j] = np.nextafter(other[i, j], np.inf)
        seen.add(as_operator(other).identity())
    for k in (0, sparse.nnz // 3, sparse.nnz - 1):
        other = sparse.copy()
        other.data[k] = np.nextafter(other.data[k], np.inf)
        seen.add(as_operator(other).identity())
    assert len(seen) == 8
    assert as_operator(np.asfortranarray(dense)).identity() == as_operator(dense).identity()


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


@pytest.mark.parametrize("ours, dense", [(J, D), (as_operator(M.astype(np.float32)), M)], ids=["network", "single"])
def test_complex_vectors_go_through_the_scipy_view_by_their_parts(ours, dense):
    view, (m, n) = ours.to_scipy(), dense.shape
    v, V, u = (rng.normal(size=shape) + 1j * rng.normal(size=shape) for shape in (n, (n, 2), m))
    before, kind = ours.products, np.complex128 if view.dtype == np.float64 else np.complex64
    for got, expected in ((view @ v, dense @ v), (view @ V, dense @ V), (view.rmatvec(u), dense.T @ u),
                          (view.H @ u, dense.T @ u), (view.T @ u, dense.T @ u), (view @ V[:, :0], dense @ V[:, :0])):  # fmt: skip
        assert got.shape == expected.shape and got.dtype == kind
        assert np.allclose(got, expected, atol=1e-12 if kind == np.complex128 else 1e-5)
    assert ours.products - before == 2 * 6  # a real and an imaginary column for each of six


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


def test_scipy_solvers_on_a_hessian_and_a_fisher_matrix():
    network, data = case.network(), case.batches()
    loss, v0 = torch.nn.CrossEntropyLoss(), rng.normal(size=31)
    H, F = spectral.Hessian(network, loss, data), spectral.Fisher(network, loss, data)
    values = np.linalg.eigvalsh(H @ np.eye(31))
    ends = sla.eigsh(H.to_scipy(), k=4, which="BE", v0=v0, return_eigenvectors=False)  # indefinite: both ends
    assert values[0] < 0 and np.allclose(np.sort(ends), values[[0, 1, -2, -1]], atol=1e-10)
    s = sla.svds(H.to_scipy(), k=2, v0=v0, return_singular_vectors=False)
    assert np.allclose(np.sort(s), np.sort(np.abs(values))[-2:], atol=1e-10)
    dense = F @ np.eye(31)
    top, _ = sla.lobpcg(F.to_scipy(), rng.normal(size=(31, 2)), tol=1e-9, maxiter=300)
    assert np.allclose(np.sort(top), np.linalg.eigvalsh(dense)[-2:], rtol=1e-8)
    damped = dense + 0.1 * np.eye(31)
    x, info = sla.cg((F + 0.1 * spectral.I).to_scipy(), v0, rtol=1e-12)
    assert info == 0 and np.allclose(damped @ x, v0, atol=1e-9)
    y = sla.lsmr(F.to_scipy(), v0, damp=0.1, atol=1e-13, btol=1e-13, maxiter=500)[0]
    assert np.allclose((dense @ dense + 0.01 * np.eye(31)) @ y, dense @ v0, atol=1e-9)


def test_scipy_view_of_single_precision_casts_what_scipy_hands_in():
    single = as_operator(M.astype(np.float32)).to_scipy()
    assert single.dtype == np.float32 and np.allclose(single @ np.ones(7), M.sum(1), atol=1e-5)
    with pytest.raises(TypeError, match=r"scipy has no torch.bfloat16; build the operator in float32"):
        as_operator(torch.ones(2, 2, dtype=torch.bfloat16)).to_scipy()


def test_round_trip_through_scipy_is_the_operator():
    back = as_operator(J.to_scipy())
    assert np.allclose(back @ np.ones(31), D.sum(1)) and np.allclose(back.T @ np.ones(15), D.sum(0))


@pytest.mark.parametrize("given", [M, M.T.copy(), M.astype(np.float32)], ids=["wide", "tall", "single"])
def test_scipy_solvers_on_a_rectangular_matrix(given):
    view, dense = as_operator(given).to_scipy(), given.astype(np.float64)
    close = {"rtol": 1e-9} if given.dtype == np.float64 else {"rtol": 2e-5}
    assert np.allclose(np.sort(sla.svds(view, k=2, v0=np.ones(5), return_singular_vectors=False)),
                       np.sort(np.linalg.svd(dense, compute_uv=False))[-2:], **close)  # fmt: skip
    G = (as_operator(given).gram() + 0.5 * spectral.I).to_scipy()
    true = (dense @ dense.T if dense.shape[0] < dense.shape[1] else dense.T @ dense) + 0.5 * np.eye(5)
    assert np.allclose(sla.eigsh(G, k=2, v0=np.ones(5, given.dtype), return_eigenvectors=False),
                       np.linalg.eigvalsh(true)[-2:], **close)  # fmt: skip
    b = np.arange(1.0, 6.0)
    x, info = sla.cg(G, b.astype(given.dtype), rtol=1e-5 if given.dtype == np.float32 else 1e-12)
    assert info == 0 and np.linalg.norm(true @ x - b) <= 3e-5 * np.linalg.norm(b)
    c = np.ones(given.shape[0])
    y = sla.lsmr(view, c, damp=0.7, atol=1e-12, btol=1e-12)[0]
    assert np.allclose(y, np.linalg.solve(dense.T @ dense + 0.49 * np.eye(dense.shape[1]), dense.T @ c), atol=1e-5)


# PyLops and curvlinops -----------------------------------------------------------------------------------------------
class Torchlike:
    """As curvlinops': torch tensors in and out, `adjoint()`, products that differentiate; a base class without a dtype."""

    def __init__(self, matrix, device="cpu"):
        self.matrix, self.shape, self.device = matrix, tuple(matrix.shape), device

    @property
    def dtype(self):
        return self.matrix.dtype

    def __matmul__(self, V):
        if not isinstance(V, torch.Tensor):
            raise ValueError("Input must be tensor or list of tensors.")
        x = torch.zeros(self.shape[1], V.shape[1], dtype=self.dtype, requires_grad=True)
        return torch.autograd.grad((self.matrix @ x).sum(), x, create_graph=True)[0].sum() * 0 + self.matrix @ V

    def adjoint(self):
        return Torchlike(self.matrix.T)


class Folding(Duck):
    """As PyLops': @ folds its result to an image, `matmat` and `rmatmat` do not."""

    def __matmul__(self, V):
        return (self.matrix @ V).reshape(-1, 1, V.shape[1])

    def matmat(self, V):
        return self.matrix @ V

    def rmatmat(self, U):
        return self.matrix.T @ U


class Adjoint(Duck):
    @property
    def H(self):
        return Duck(self.matrix.T)


class Columns(Duck):
    def rmatvec(self, u):
        assert u.ndim == 1
        return self.matrix.T @ u


@pytest.mark.parametrize("make", [Folding, Adjoint, Columns, lambda A: Torchlike(torch.from_numpy(A).requires_grad_())])
def test_transposed_product_comes_by_many_names(make):
    op = as_operator(make(M))
    V, U = rng.normal(size=(7, 3)), rng.normal(size=(5, 2))
    assert op.symmetric is False and as_operator(make(M[:, :5])).symmetric is None
    with torch.no_grad():
        assert (
            np.allclose(op @ V, M @ V) and np.allclose(op.T @ U, M.T @ U) and np.allclose(op.T @ U[:, 0], M.T @ U[:, 0])
        )
    assert not (op @ torch.from_numpy(V)).requires_grad and op.adjoint_error() < 1e-14


def test_torch_dtype_means_torch_tensors_on_the_device_of_the_matrix():
    single = as_operator(Torchlike(torch.from_numpy(M).float()))
    assert single.dtype == torch.float32 and single.device == torch.device("cpu")
    meta = as_operator(Torchlike(torch.from_numpy(M), device="meta"))
    assert meta.device == torch.device("meta")
    with pytest.raises(TypeError, match=r"int64; an operator is real and floating"):
        as_operator(Torchlike(torch.ones(2, 2, dtype=torch.int64)))
    wrong = Torchlike(torch.from_numpy(M))
    wrong.matrix, wrong.__class__ = M, type("Wrong", (Duck,), {})
    wrong.dtype = torch.float64
    wrong.__class__.__matmul__ = lambda self, V: [V]
    with pytest.raises(TypeError, match=r"Wrong returned a list; its products must be arrays"):
        as_operator(wrong) @ np.ones(7)


def test_a_base_class_that_leaves_dtype_open_is_one_sentence():
    def refuse(self):
        raise NotImplementedError

    Open = type("Open", (), {"shape": (2, 2), "dtype": property(refuse), "__matmul__": lambda self, V: V})
    with pytest.raises(TypeError, match=r"Open has no dtype; set one"):
        as_operator(Open())


@pytest.mark.parametrize("dtype", [np.dtype(float), torch.float64])
def test_the_identity_never_hands_the_block_itself_back(dtype):
    Identity = type("Identity", (), {"shape": (3, 3), "dtype": dtype, "__matmul__": lambda self, V: V})
    V = torch.ones(3, 2, dtype=torch.float64)
    W = as_operator(Identity()) @ V
    W += 1
    assert torch.equal(V, torch.ones_like(V))


def test_spectrum_of_a_foreign_operator_is_that_of_its_matrix():
    S = M[:, :5] @ M[:, :5].T
    for foreign in (Torchlike(torch.from_numpy(S)), Adjoint(S)):
        assert np.isclose(float(spectral.esd(foreign).integrate(lambda x: x)), np.trace(S))


def test_pylops_operators_multiply_and_pass_their_own_dot_test():
    pylops = pytest.importorskip("pylops", reason="PyLops is not installed; the extra `dev` brings it")
    dottest = pylops.utils.dottest
    H = spectral.Hessian(case.network(), torch.nn.CrossEntropyLoss(), case.batches())
    for ours in (J, J.T, J.gram(), H, as_operator(M), as_operator(M.astype(np.float32))):
        view = ours.to_scipy()
        tolerance = 1e-10 if ours.dtype == torch.float64 else 1e-4
        assert dottest(view, *view.shape, rtol=tolerance) and dottest(pylops.aslinearoperator(view), rtol=tolerance)
    wrapped = pylops.MatrixMult(M)
    image = pylops.Restriction((4, 5), [0, 2], axis=0)  # @ folds (20, b) and (20,) by its dims
    for theirs in (wrapped, image, pylops.FirstDerivative(12, dtype="float32"), wrapped.H @ wrapped):
        op, dense = as_operator(theirs), theirs.todense()
        V, U = (rng.normal(size=(k, 3)).astype(dense.dtype) for k in dense.shape[::-1])
        assert op.shape == dense.shape and str(op.dtype)[6:] == str(dense.dtype)
        close = {"atol": 1e-12 if dense.dtype == np.float64 else 1e-5}
        assert np.allclose(op @ V, dense @ V, **close) and np.allclose(op.T @ U, dense.T @ U, **close)
        assert np.allclose(op @ V[:, 0], dense @ V[:, 0], **close) and op.adjoint_error() < 1e-5
    gram = as_operator(wrapped.H @ wrapped)
    assert np.isclose(float(spectral.esd(gram).integrate(lambda x: x)), (M**2).sum())
    with pytest.raises(TypeError, match="complex128; an operator is real"):
        as_operator(pylops.MatrixMult(M + 1j, dtype="complex128"))


def test_curvlinops_operators_are_our_own():
    curvlinops = pytest.importorskip(
        "curvlinops",
        reason="curvlinops-for-pytorch 3 is not installed: it brings torchvision, so `dev` leaves it out",
        exc_type=ImportError,
    )
    network, loss = case.network(), torch.nn.MSELoss()
    data = [(x, logits(network, (x, None)).detach() + 1.0) for x, *_ in case.batches()]
    params = [p for p in network.parameters() if p.requires_grad]
    theirs = as_operator(curvlinops.JacobianLinearOperator(network, params, data))
    assert theirs.shape == J.shape and theirs.dtype == torch.float64 and theirs.symmetric is False
    V, U = rng.normal(size=(31, 3)), rng.normal(size=(15, 2))
    assert np.allclose(theirs @ V, D @ V) and np.allclose(theirs.T @ U, D.T @ U) and theirs.adjoint_error() < 1e-12
    ggn = as_operator(curvlinops.GGNLinearOperator(network, loss, params, data))
    ours = spectral.GaussNewton(network, loss, data)
    assert ggn.symmetric is None and np.allclose(ggn @ V, ours @ V) and np.allclose(ggn.T @ V, ours @ V)
    trace = float(spectral.trace(ggn, probes=31, method="hutchinson"))
    assert np.isclose(trace, float(spectral.trace(ours, probes=31, method="hutchinson")))


# cupy: the glue against stand-ins, the real classes where they are -----------------------------------------------------
class Linear:
    """cupyx's LinearOperator, as far as views touch it."""

    def __init__(self, shape, matvec, rmatvec=None, matmat=None, rmatmat=None, dtype=None):
        self.shape, self.dtype, self.matvec, self.rmatvec = shape, np.dtype(dtype), matvec, rmatvec
        self.matmat, self.rmatmat = matmat, rmatmat

    def __matmul__(self, X):
        return self.matvec(X) if X.ndim == 1 else self.matmat(X)


Linear.__module__ = "cupyx.scipy.sparse.linalg._interface"


@pytest.fixture
def cupyx(cupy, monkeypatch):  # noqa: F811
    name = "cupyx"
    for part in ("", ".scipy", ".sparse", ".linalg"):
        name += part
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[name].LinearOperator = Linear
    return cupy


@pytest.mark.parametrize("streams", [(0, 0), (7, 9)], ids=["one stream", "two streams"])
@pytest.mark.parametrize("ours, dense", [(J, D), (as_operator(M), M), (as_operator(M.astype(np.float32)), M)])
def test_cupy_view_multiplies_as_the_matrix(cupyx, streams, ours, dense):
    cupyx.torch_stream = streams[0]
    (m, n), close = dense.shape, {"atol": 1e-12 if ours.dtype == torch.float64 else 1e-5}
    with cupyx.stream(streams[1]):
        view = ours.to_cupy()
        assert isinstance(view, Linear) and view.shape == (m, n) and view.dtype == str(ours.dtype)[6:]
        for shape in ((), (1,), (3,)):
            v, u = rng.normal(size=(n, *shape)), rng.normal(size=(m, *shape))
            forward, back = (view.matmat, view.rmatmat) if shape else (view.matvec, view.rmatvec)
            Av, Atu = forward(cupyx.ndarray(v)), back(cupyx.ndarray(u))
            assert isinstance(Av, cupyx.ndarray) and Av.dtype == view.dtype
            assert np.allclose(Av.array, dense @ v, **close) and np.allclose(Atu.array, dense.T @ u, **close)
        z = rng.normal(size=n) + 1j * rng.normal(size=n)
        Az = view.matvec(cupyx.ndarray(z))
        assert Az.dtype.kind == "c" and np.allclose(Az.array, dense @ z, **close)
    waits = [line for line in cupyx.log if "waits" in line]
    # in once, out once with a copy: each stream waits for the other at the three borders of each of seven products
    assert waits == ([] if streams == (0, 0) else ["torch waits for cupy", "cupy waits for torch"] * 21)


@pytest.mark.parametrize("streams", [(0, 0), (7, 9)], ids=["one stream", "two streams"])
def test_cupyx_operators_multiply_on_the_stream_of_torch(cupyx, streams):
    cupyx.torch_stream = streams[0]
    seen = []

    def times(matrix):
        def product(X):
            assert isinstance(X, cupyx.ndarray)
            seen.append(cupyx.current[-1].ptr)
            return cupyx.ndarray(matrix @ X.array)

        return product

    given = Linear(M.shape, times(M), times(M.T), times(M), times(M.T), dtype=float)
    with cupyx.stream(streams[1]):
        op = as_operator(given)
        V, U = rng.normal(size=(7, 3)), rng.normal(size=(5, 2))
        assert np.allclose(op @ V, M @ V) and np.allclose(op.T @ U, M.T @ U) and op.adjoint_error() < 1e-14
    assert set(seen) == {streams[0]} and not any("copy" in line for line in cupyx.log)
    waits = [line for line in cupyx.log if "waits" in line]
    assert waits == ([] if streams == (0, 0) else ["torch waits for cupy", "cupy waits for torch"] * 4)
    assert as_operator(cupyx.ndarray(M)).symmetric is False  # a dense cupy matrix, as any dense one


def test_cupy_view_that_cannot_be_is_one_sentence(monkeypatch):
    with pytest.raises(ValueError, match=r"cupy works on CUDA devices, but the operator is on cpu; build it on one"):
        J.to_cupy()
    with pytest.raises(TypeError, match=r"have no torch.bfloat16; build the operator in float32 or float64"):
        as_operator(torch.ones(2, 2, dtype=torch.bfloat16)).to_cupy()
    monkeypatch.setattr(arrays, "on_cuda", lambda device: True)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        ImportError, match=r"to_cupy needs cupy and the CUDA libraries that it loads \(.*pip install"
    ) as caught:
        J.to_cupy()
    assert "\n" not in str(caught.value)


def test_real_cupyx_class_takes_our_products(monkeypatch):
    linalg = pytest.importorskip(
        "cupyx.scipy.sparse.linalg",
        reason="cupy, or a CUDA library that it loads, is not installed",
        exc_type=ImportError,
    )
    from test_arrays import World

    ndarray = World().ndarray
    monkeypatch.setattr(arrays, "on_cuda", lambda device: True)
    monkeypatch.setattr(arrays, "to_torch", lambda X, known=arrays.to_torch: known(getattr(X, "array", X)))
    monkeypatch.setattr(arrays, "to_cupy", lambda tensor: ndarray(tensor.numpy()))
    view = J.to_cupy()
    assert (
        isinstance(view, linalg.LinearOperator) and linalg.aslinearoperator(view) is view and view.dtype == np.float64
    )
    for v, u in ((rng.normal(size=31), rng.normal(size=15)), (rng.normal(size=(31, 1)), rng.normal(size=(15, 1))),
                 (rng.normal(size=(31, 3)), rng.normal(size=(15, 3)))):  # fmt: skip
        for ours, dense in (
            (view @ ndarray(v), D @ v),
            (view.H @ ndarray(u), D.T @ u),
            (view.H @ (view @ ndarray(v)), D.T @ D @ v),
        ):
            assert ours.shape == dense.shape and np.allclose(ours.array, dense, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("own_stream", [False, True])
def test_on_a_gpu_cupyx_and_torch_agree(own_stream):
    cp = pytest.importorskip("cupy", reason="cupy is not installed")
    linalg = pytest.importorskip("cupyx.scipy.sparse.linalg", reason="cupy lacks a CUDA library", exc_type=ImportError)
    from cupyx.scipy import sparse

    A = as_operator(torch.from_numpy(M).cuda())
    stream = cp.cuda.Stream(non_blocking=True) if own_stream else cp.cuda.Stream.null
    with stream:
        view, V, U = A.to_cupy(), cp.asarray(rng.normal(size=(7, 3))), cp.asarray(rng.normal(size=(5, 2)))
        for _ in range(100):  # memory is handed out again and again
            assert cp.allclose(view @ V, cp.asarray(M) @ V) and cp.allclose(view.rmatmat(U), cp.asarray(M).T @ U)
        values = linalg.eigsh((A.gram() + 0.5 * spectral.I).to_cupy(), k=2, return_eigenvectors=False)
        assert np.allclose(np.sort(values.get()), np.linalg.eigvalsh(M @ M.T)[-2:] + 0.5)
        for given in (sparse.csr_matrix(cp.asarray(M)), sparse.coo_matrix(cp.asarray(M)), view, cp.asarray(M)):
            op = as_operator(given)
            assert op.device.type == "cuda" and op.adjoint_error() < 1e-13 and isinstance(op.identity(), str)
            assert cp.allclose(op @ V, cp.asarray(M) @ V) and cp.allclose(op.T @ U, cp.asarray(M).T @ U)
