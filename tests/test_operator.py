"""The algebra of operators is that of dense matrices; columns and sweeps are counted; what is no matrix is one sentence."""

import json

import numpy as np
import pytest
import scipy.sparse
import torch
from oracles import CASES
from torch.autograd import forward_ad

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
    op = (J.T @ (2 * J) + J.T @ J) / 2 + I
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


# Blocks without columns ----------------------------------------------------------------------------------------------
def over_data():
    """Operators over data by name, fresh."""
    case, loss = CASES["mlp"], torch.nn.CrossEntropyLoss()
    model, data = case.network(), case.batches()
    J, X, F = (spectral.Jacobian(model, data, **how)
               for how in ({}, {"wrt": "inputs"}, {"wrt": "inputs", "layout": "flattened"}))  # fmt: skip
    H, G = spectral.Hessian(model, loss, data), spectral.GaussNewton(model, loss, data)
    return {"params": J, "inputs": X, "flattened": F, "hessian": H, "gauss-newton": G,
            "fisher": spectral.EmpiricalFisher(model, loss, data),
            "transpose": J.T, "gram-right": J.gram("right"), "gram-left": F.gram("left"), "sum": H + 0.1 * G - I}  # fmt: skip


@pytest.mark.parametrize("name", [*ALGEBRA, *over_data()])
def test_a_block_without_columns_gives_one_and_costs_nothing(name):
    op = ALGEBRA[name][0] if name in ALGEBRA else over_data()[name]
    before = op.products, op.epochs
    for T in (op, op.T):
        m, n = T.shape
        for W in (T @ torch.zeros(n, 0, dtype=op.dtype), T.multiply_normal(torch.zeros(n, 0, dtype=op.dtype))):
            assert W.shape in {(m, 0), (n, 0)} and W.dtype == op.dtype
        assert (T @ torch.zeros(n, 0, dtype=op.dtype)).shape == (m, 0)
    assert (op.products, op.epochs) == before


# What a scipy LinearOperator offers -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ALGEBRA)
def test_what_scipys_operators_are_asked_is_answered(name):
    op, M = ALGEBRA[name]
    (m, n), M = op.shape, M.numpy()
    V, U = np.random.default_rng(0).normal(size=(n, 2)), np.random.default_rng(1).normal(size=(m, 2))
    for got, expected in (
        (op.matvec(V[:, 0]), M @ V[:, 0]), (op.matmat(V), M @ V), (op.dot(V), M @ V), (op.dot(V[:, 0]), M @ V[:, 0]),
        (op.rmatvec(U[:, 0]), M.T @ U[:, 0]), (op.rmatmat(U), M.T @ U), (op.H @ U, M.T @ U), (op.adjoint() @ U, M.T @ U),
        (op.transpose() @ U, M.T @ U), (op.H.H @ V, M @ V),
    ):  # fmt: skip
        assert got.shape == expected.shape and np.allclose(got, expected, atol=1e-12)
    assert op.ndim == 2 and isinstance(op.args, tuple) and op.H.shape == (n, m)


def test_args_are_what_an_expression_is_made_of():
    """As scipy's: (A, B) of sums and products, (A, factor), (A,) of a transpose; of a leaf, the matrix that it holds."""
    assert (A + B).args == (A, B) and (A @ B).args == (A, B) and (2 * A).args == (A, 2.0) and W.T.args == (W,)
    assert A.args == (A.matrix,) and spectral.Operator((2, 2), torch.float64).args == ()
    shifted = A + 3 * I
    assert shifted.args[0] is A and torch.equal((shifted.args[0] + shifted.args[1]) @ eye, shifted @ eye)
    for side in ("left", "right"):
        one, two = W.gram(side).args
        E = torch.eye(two.shape[1]).double()
        assert torch.allclose(one @ (two @ E), W.gram(side) @ E, atol=1e-14)


def test_powers_are_repeated_products():
    for three in (3, np.int64(3)):
        assert torch.allclose((A**three) @ eye, MA @ MA @ MA)
    assert A**1 is A
    for bad in (lambda: A**0, lambda: A**0.5, lambda: W**2, lambda: A**True):
        with pytest.raises(ValueError, match=r"is no power; use a square operator and an integer >= 1"):
            bad()


# Vectors by name ------------------------------------------------------------------------------------------------------
def test_parameters_come_and_go_by_their_names_in_the_order_of_the_columns():
    """J v with v all 1 in one parameter is the derivative along that parameter, by torch's own jvp."""
    ops, model = over_data(), CASES["mlp"].network()
    J = ops["params"]
    x = torch.cat([batch[0] for batch in CASES["mlp"].batches()])
    values = {name: p.detach() for name, p in model.named_parameters()}
    for chosen in values:
        direction = {name: torch.full_like(p, float(name == chosen)) for name, p in values.items()}
        call = lambda p: torch.func.functional_call(model, p, (x,))  # noqa: E731
        expected = torch.func.jvp(call, (values,), (direction,))[1].reshape(-1)
        assert torch.allclose(J @ J.flatten(direction), expected, atol=1e-12)


def test_expressions_have_the_names_of_their_parts():
    ops, shapes = over_data(), {name: p.shape for name, p in CASES["mlp"].network().named_parameters()}
    J, H = ops["params"], ops["hessian"]
    named = [ops[name] for name in ("params", "hessian", "gauss-newton", "fisher", "transpose", "gram-right", "sum")]
    for op in (*named, 2 * J, J + J, J.T @ J, H @ ops["fisher"], H + 0.5 * I, J.T.gram("left")):
        for w in (torch.randn(31).double(), torch.randn(31, 3).double(), np.ones((31, 0))):
            tensors = op.unflatten(w)
            assert {name: t.shape for name, t in tensors.items()} == {k: (*s, *w.shape[1:]) for k, s in shapes.items()}
            assert torch.equal(op.flatten(dict(reversed(tensors.items()))), torch.as_tensor(w))
    for name, block in spectral.blocks(H, by="parameter").items():
        assert {k: t.shape for k, t in block.unflatten(np.ones(block.shape[0])).items()} == {name: shapes[name]}


def test_eigenvectors_are_parameters_too():
    H = over_data()["hessian"]
    pairs = spectral.top(H, 2)
    tensors = H.unflatten(pairs.vectors)
    assert {t.shape[-1] for t in tensors.values()} == {2}
    first = H.flatten({name: t[..., 0] for name, t in tensors.items()})
    assert torch.allclose(H @ first, float(pairs.values[0]) * first, atol=1e-7)


@pytest.mark.parametrize("case", ["mlp", "batch-norm"])
def test_inputs_have_one_name_and_the_shape_of_a_sample(case):
    case = CASES[case]
    model, data = case.network().eval(), case.batches()
    k = model(data[0][0]).shape[1]
    for layout, shape in (("stacked", case.features), ("flattened", (k, *case.features))):
        J = spectral.Jacobian(model, data, wrt="inputs", layout=layout)
        for w in (torch.randn(J.shape[1]).double(), torch.randn(J.shape[1], 2).double()):
            tensors = J.gram("right").unflatten(w)
            assert {name: tuple(t.shape) for name, t in tensors.items()} == {"inputs": (*shape, *w.shape[1:])}
            assert torch.equal(J.flatten(tensors), w)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda ops: A.unflatten(torch.ones(4)), TypeError, "<Dense 4 x 4.* have no names; unflatten and flatten are for"),
        (lambda ops: A.flatten({}), TypeError, "have no names"),
        (lambda ops: (A @ B).unflatten(torch.ones(4)), TypeError, "have no names"),
        (lambda ops: ops["gram-left"].unflatten(torch.ones(5)), TypeError, "have no names"),
        (lambda ops: (ops["params"] @ ops["params"].T).unflatten(torch.ones(15)), TypeError, "have no names"),
        (lambda ops: ops["params"].unflatten(torch.ones(30)), ValueError, r"\(30,\), but the 0.weight, .* have 31 entries; use"),
        (lambda ops: ops["params"].unflatten(torch.ones(31, 1, 1)), ValueError, r"use \(31,\) or \(31, b\)"),
        (lambda ops: ops["params"].flatten(torch.ones(31)), ValueError, "takes a mapping .* got Tensor"),
        (lambda ops: ops["params"].flatten({"0.weight": torch.ones(4, 3)}), ValueError, "0.bias.*missing or unknown"),
        (lambda ops: ops["inputs"].flatten({"inputs": torch.ones(3).double(), "x": eye}), ValueError, "x missing"),
        (lambda ops: ops["inputs"].flatten({"inputs": torch.ones(4).double()}), ValueError, r"use \(3,\), or \(3, 'b'\)"),
        (lambda ops: ops["inputs"].flatten({"inputs": torch.ones(3, 1, 1).double()}), ValueError, r"use \(3,\)"),
        (lambda ops: ops["inputs"].flatten({"inputs": torch.ones(3)}), TypeError, "nothing is cast silently; convert the tensor"),
    ],
)  # fmt: skip
def test_what_has_no_names_is_one_sentence(make, kind, words):
    with pytest.raises(kind, match=words) as caught:
        make(over_data())
    assert "\n" not in str(caught.value)


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
        (lambda: np.ones(4) * A, ValueError, r"finite number, not by an array of float64"),
        (lambda: A / 0, ValueError, r"finite number, not by inf"),
        (lambda: A / 1e-310, ValueError, r"finite number, not by inf"),
        (lambda: A + 1, TypeError, r"added to operators .* not to int; write A \+ shift \* spectral.I for a number"),
        (lambda: 1 + A, TypeError, r"not to int; write"),
        (lambda: A - None, TypeError, r"not to NoneType; write"),
        (lambda: np.eye(4) + A, TypeError, r"not to ndarray; write .* A \+ spectral.as_operator\(M\) for a matrix"),
        (lambda: MA - A, TypeError, r"not to Tensor; write"),
        (lambda: scipy.sparse.eye(4) + A, TypeError, r"not to dia_\w+; write"),
        (lambda: A @ None, TypeError, r"multiplies arrays and operators, not NoneType; convert"),
        (lambda: A @ scipy.sparse.eye(4).tocsr(), TypeError, r"not csr_\w+; .* by spectral.as_operator"),
        (lambda: np.asarray(A), TypeError, r"holds no entries; write A @ np.eye\(n\) .* A.to_scipy\(\) for scipy"),
        (lambda: np.dot(A, np.ones(4)), TypeError, r"holds no entries; write"),
        (lambda: np.ones(4).dot(A), TypeError, r"holds no entries; write"),
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


@pytest.mark.parametrize(
    "given", [{"0.weight": torch.ones(4)}, [torch.ones(4)], (torch.ones(4),)], ids=["dict", "list", "tuple"]
)
@pytest.mark.parametrize(
    "ask",
    [
        lambda v: S @ v,
        lambda v: v @ S,
        lambda v: S.rmatvec(v),
        lambda v: S.T.matmat(v),
        lambda v: spectral.solve(S, v),
        lambda v: spectral.inverse(S) @ v,
        lambda v: spectral.funm(S, "exp", v),
        lambda v: spectral.spectrum_of(S, v),
        lambda v: spectral.top(S, 1, start=v),
        lambda v: spectral.low_rank_plus_diagonal(S, 1).solve(v, shift=100.0),
    ],
)  # fmt: skip
def test_named_tensors_are_refused_in_the_same_sentence_wherever_a_vector_is_asked(ask, given):
    words = rf"got {type(given).__name__}; a vector of named tensors is A\.flatten\(\{{name: tensor\}}\)\.$"
    with pytest.raises(TypeError, match=words):
        ask(given)


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


@pytest.mark.parametrize("matrix", [torch.eye(3), scipy.sparse.eye_array(3, format="csr", dtype=np.float32)])
def test_inside_torchs_transforms_and_on_meta_products_are_refused_in_one_sentence(matrix):
    """torch's own texts came through, and the derivative of a dense product was silently 0."""
    A, v = spectral.as_operator(matrix), torch.ones(3)
    for transformed in (
        lambda: torch.vmap(lambda u: A @ u)(torch.ones(2, 3)),
        lambda: torch.func.grad(lambda u: (A @ u).sum())(v),
        lambda: torch.func.jvp(lambda u: A @ u, (v,), (v,)),
    ):
        with pytest.raises(
            TypeError, match=r"torch.vmap, torch.func.grad or torch.func.jvp.*; multiply outside of them"
        ):
            transformed()
    for estimate in (lambda: spectral.trace(A), lambda: spectral.slq(A), lambda: spectral.top(np.eye(3), 1)):
        with torch.device("meta"), pytest.raises(ValueError, match="torch's default device is meta"):
            estimate()


def test_products_are_differentiated_and_what_is_not_is_refused():
    """v @ (A @ v) had the gradient A v of its first factor alone, and a dual vector lost its tangent."""
    torch.manual_seed(0)
    M, u = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    net = torch.nn.Linear(3, 1, dtype=torch.float64)
    G = spectral.GaussNewton(net, torch.nn.MSELoss(), [(torch.randn(9, 3).double(), torch.randn(9, 1).double())])
    S = spectral.as_operator(M + M.T + 9 * torch.eye(4))
    v = torch.randn(4, dtype=torch.float64, requires_grad=True)
    for A in (spectral.as_operator(M), spectral.as_operator(scipy.sparse.csr_array(M.numpy())), S + 2 * S, S.gram(),
              spectral.inverse(S), spectral.precondition(S, u.exp()), spectral.funm(S, "exp"), G, S[:3, 1:]):  # fmt: skip
        n = A.shape[1]
        dense = torch.stack([A @ e for e in torch.eye(n, dtype=torch.float64)], 1)
        for B, D in ((A, dense), (A.T, dense.T)):
            k = D.shape[1]
            for x in (v[:k], torch.stack([v[:k], v[:k] ** 2], 1)):
                (found,), (expected,) = (torch.autograd.grad((C @ x).cos().sum(), v, retain_graph=True) for C in (B, D))
                torch.testing.assert_close(found, expected)
        with forward_ad.dual_level():
            pushed = forward_ad.unpack_dual(A @ forward_ad.make_dual(v.detach()[:n], u[:n])).tangent
        torch.testing.assert_close(pushed, dense @ u[:n])
        with torch.no_grad():
            assert not (A @ v[:n]).requires_grad
    (first,) = torch.autograd.grad(v @ (S @ (S @ v)).tanh(), v, create_graph=True)
    dense = M + M.T + 9 * torch.eye(4)
    (other,) = torch.autograd.grad(v @ (dense @ (dense @ v)).tanh(), v, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(first.sum(), v), torch.autograd.grad(other.sum(), v))
    for taken in (spectral.solve, spectral.spectrum_of, lambda A, b: spectral.funm(A, "exp", b)):
        with pytest.raises(TypeError, match=r"products A @ v alone are differentiated; pass array.detach\(\)"):
            taken(S, v)
    named = dict(net.named_parameters())
    assert not G.flatten(named).requires_grad  # parameters are meant by their values
    theta = G.flatten({name: 1 * p for name, p in named.items()})
    torch.testing.assert_close((G + 2 * G) @ theta, 3 * (G @ theta.detach()))
    with pytest.raises(
        ValueError, match=r"changes with parameters that its vector was made of, .* multiply v.detach\(\)"
    ):
        torch.autograd.grad(theta @ ((G + 2 * G) @ theta), net.bias)  # half of it would be missing
    P = torch.nn.Parameter(M.clone())
    with pytest.raises(ValueError, match=r"changes with parameters that its vector was made of"):
        torch.autograd.grad((as_operator(P) @ (P**2).sum(1)).sum(), P)
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    product, named = G @ w, G.unflatten(w)
    assert named["weight"].requires_grad  # a leaf that is no parameter keeps its graph
    with torch.no_grad():
        net.weight.mul_(2)
    with pytest.raises(ValueError, match=r"has changed since the product whose derivative is taken"):
        torch.autograd.grad(product.sum(), w)


SPELT = """
np.matmul(A, V) | np.matmul(U, A) | np.multiply(2, A) @ V | np.divide(A, 4) @ V | np.add(A, A) @ V | np.subtract(A, A) @ V
np.negative(A) @ V | (+A) @ V | np.float64(2) * A @ V | np.array(3.0) * A @ V | U @ A
A @ I @ V | I @ A @ V | A @ (I / 2) @ V | (3 * I) @ V | V.T @ I
"""
REFUSED = """
len(A) | A // 2 | 2 // A | A % 2 | divmod(A, 2) | 2 / A | v / A | 2**A | abs(A) | ~A | np.sqrt(A) | np.isnan(A) | np.sum(A)
torch.tensor(A) | np.matmul(A, v, out=v)
"""


def expressions(text: str) -> list[str]:
    return [one.strip() for line in text.strip().splitlines() for one in line.split(" | ")]


@pytest.mark.parametrize("written", expressions(SPELT))
def test_numpy_and_the_identity_spell_the_algebra_as_matrices_do(written):
    M = np.random.default_rng(0).standard_normal((3, 5))
    rest = {"np": np, "V": np.arange(10.0).reshape(5, 2), "U": np.arange(6.0).reshape(2, 3)}
    ours = eval(written, rest | {"A": spectral.as_operator(M), "I": spectral.I})
    theirs = eval(written, rest | {"A": M, "I": np.eye(3 if "I @ A" in written else 5)})
    np.testing.assert_allclose(ours, theirs, rtol=1e-14)


@pytest.mark.parametrize("written", expressions(REFUSED))
def test_what_an_operator_has_not_is_said_in_one_sentence_with_what_to_write(written):
    A, v = spectral.as_operator(np.eye(3)), np.ones(3)
    with pytest.raises(TypeError, match=r"write (A|spectral)\."):
        eval(written, {"A": A, "v": v, "np": np, "torch": torch})
    assert A.products == 0 and bool(A)
    assert v != A and A in [v, A]  # nor are arrays and operators compared entry by entry


def test_the_identity_times_an_array_is_another_array():
    x = np.ones(3)
    for made in (spectral.I @ x, x @ spectral.I):
        made += 1
    assert (x == 1).all()


def test_an_operator_equals_itself_and_nothing_else():
    A, B = (spectral.as_operator(np.eye(2)) for _ in range(2))
    for equal, unequal in ((np.equal, np.not_equal), (lambda a, b: a == b, lambda a, b: a != b)):
        assert equal(A, A) and not unequal(A, A)
        for other in (B, np.eye(2)):
            assert not equal(A, other) and unequal(A, other)
            assert not equal(other, A) and unequal(other, A)


def test_a_matrix_times_its_own_transpose_is_its_gram_however_it_is_written():
    """Semi-definite, with the zeros that its shape makes: what a product of two matrices does not know."""
    J = spectral.as_operator(np.random.default_rng(0).standard_normal((3, 5)))
    for written, named in ((J.T @ J, J.gram("right")), (J @ J.T, J.gram("left")), (J.T.T @ J.T, J.T.gram("right"))):
        assert written.nonnegative and written.symmetric and written.known_zeros == named.known_zeros
        each = np.eye(written.shape[1])
        assert np.allclose(written @ each, named @ each, rtol=1e-14)
    other = spectral.as_operator(np.ones((3, 5)))
    assert not (J.T @ other).nonnegative and (J.T @ other).symmetric is None
