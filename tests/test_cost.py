"""The cost model counts what is done: passes of samples, sweeps, products and bytes, over layouts and operators."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import spectral
from spectral.engine import linearize
from spectral.estimators.cost import BLOCK, Cost, affine, columns, cost, sweeps
from spectral.networks import per_sample

SAMPLES, OUTPUTS, FEATURES = 7, 3, 5


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, OUTPUTS)).double()  # 39 parameters
    x, y = torch.randn(SAMPLES, FEATURES).double(), torch.randint(OUTPUTS, (SAMPLES,))
    return model, [(x[:4], y[:4]), (x[4:], y[4:])]


LAYOUTS = {"params": {}, "inputs": {"wrt": "inputs"}, "flattened": {"wrt": "inputs", "layout": "flattened"}}


def curvature(kind):
    model, data = problem()
    return kind(model, nn.CrossEntropyLoss(), [tuple(map(torch.cat, zip(*data, strict=True)))], engine="fresh")


def jacobian(layout):
    model, data = problem()
    return spectral.Jacobian(model, [x for x, _ in data], engine="fresh", **LAYOUTS[layout])


@pytest.fixture
def passes(monkeypatch):
    """[JVPs, VJPs] of single samples that are made from now on."""
    made = [0, 0]

    def counted(kind, name, places, samples):
        plain = getattr(kind, name)

        def run(self, *arguments, **options):
            result = plain(self, *arguments, **options)
            for place in places:
                made[place] += samples(self, arguments, result)
            return result

        monkeypatch.setattr(kind, name, run)

    counted(linearize.ForwardMode, "jvp", [0], lambda lin, arguments, result: len(result))
    counted(linearize.ForwardMode, "vjp", [1], lambda lin, arguments, result: len(arguments[0]))
    # the derivative of a gradient is a pass forwards and one backwards, here of all samples as one batch
    counted(linearize.ForwardOverReverse, "jvp", [0, 1], lambda lin, arguments, result: SAMPLES)
    return made


EXPRESSIONS = {
    "J": lambda J, H: J,
    "J^T": lambda J, H: J.T,
    "J^T J": lambda J, H: J.gram("right"),
    "J J^T": lambda J, H: J.gram("left"),
    "of the transpose": lambda J, H: J.T.gram("left"),
    "by hand": lambda J, H: J.T @ J,
    "scaled and shifted": lambda J, H: 2 * J.gram("left") + spectral.I,
    "sum": lambda J, H: H + 0.1 * H,
    "curvature": lambda J, H: H,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_product_is_as_many_passes_and_sweeps_as_are_made(name, layout, passes):
    if name in ("sum", "curvature") and layout != "params":
        pytest.skip("curvature has no layout")
    for kind in (spectral.Hessian, spectral.GaussNewton) if name in ("sum", "curvature") else (spectral.Fisher,):
        A = EXPRESSIONS[name](jacobian(layout), curvature(kind))
        v = torch.randn(A.shape[1]).double()
        A @ v  # engines are tried
        A @ v
        passes[:], before = [0, 0], (A.products, A.epochs)
        A @ v
        said = cost(A, 1)
        assert [said.jvps, said.vjps] == passes
        assert (A.products - before[0], A.epochs - before[1]) == (said.products, said.epochs)
        five = cost(A, 5)
        assert (five.jvps, five.vjps, five.products, five.epochs) == tuple(
            5 * x for x in (said.jvps, said.vjps, 1, said.epochs)
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "make", [lambda J: J.gram("left"), lambda J: J.gram("right"), lambda J: 2 * J.T.gram("left") + spectral.I]
)
def test_all_eigenvalues_of_a_jacobian_are_its_rows_once(layout, make, passes):
    """k VJPs a sample; one more batch's VJP checks the rows."""
    J = jacobian(layout)
    J.singles = per_sample.Gradients(J.network, "asked for")
    A, before = make(J), J.epochs
    A = getattr(A, "smaller", A)
    passes[:] = [0, 0]
    s = spectral.exact(A)
    said = cost(A)
    assert (said.jvps, said.vjps, said.products, said.epochs) == (0, SAMPLES * OUTPUTS, OUTPUTS, 1)
    assert passes == [0, SAMPLES * OUTPUTS + 4] and (s.products, J.epochs - before) == (OUTPUTS, 1)


def test_all_eigenvalues_of_anything_else_are_products_with_the_identity(passes):
    H, n = curvature(spectral.Hessian), 39
    said = cost(H)
    assert (said.jvps, said.vjps, said.products, said.epochs) == (n * SAMPLES, n * SAMPLES, n, 1)
    H @ np.ones(n)
    passes[:], before = [0, 0], H.epochs
    assert spectral.exact(H).products == n and passes == [n * SAMPLES, n * SAMPLES] and H.epochs - before == 1
    assert cost(spectral.as_operator(np.eye(50))).work == 0  # the matrix is there
    for A in (sp.eye_array(50).tocsr(), sp.linalg.aslinearoperator(np.eye(50))):
        op = spectral.as_operator(A)
        assert cost(op).products == cost(op).work == 50 and cost(op, 7).work == 7 and cost(op).epochs == 0


def test_bytes_are_those_of_the_matrix_of_the_rows_and_of_the_columns():
    """By hand, in doubles: 3 dim^2; or dim^2, the rows, those of the larger batch, and J once more in float64."""
    J = jacobian("params")  # 21 x 39, batches of 12 and 9 rows
    assert cost(J.gram("left")).bytes == max(3 * 21**2, 21**2 + 21 * 39 + 12 * 39 + 21 * 39) * 8
    assert cost(J.gram("right")).bytes == max(3 * 39**2, 39**2 + 12 * 39 + 21 * 39) * 8
    flat = jacobian("flattened")  # 7 x 15, batches of 4 and 3
    assert cost(flat.gram("left")).bytes == max(3 * 7**2, 7**2 + 7 * 15 + 4 * 15 + 7 * 15) * 8
    assert cost(spectral.as_operator(np.eye(50))).bytes == 3 * 50**2 * 8
    narrow = spectral.as_operator(sp.eye_array(2000).tocsr().astype(np.float32))
    assert cost(narrow).bytes == 3 * 2000**2 * 8 > 2000**2 * 8 + BLOCK * 4000 * 2 * 4
    wide = spectral.as_operator(
        sp.random_array((10, 10**6), density=1e-6).tocsr()
    ).gram()  # columns as long as the wide side
    assert cost(wide, free=2**34).bytes == 10**2 * 8 + 10 * 2 * 8 * (10 + 10 + 10 + 10**6)


def test_blocks_of_the_identity_are_as_wide_as_a_quarter_of_the_memory_holds(monkeypatch):
    wide = spectral.as_operator(sp.random_array((10, 10**6), density=1e-6).tocsr()).gram()
    each = 2 * 8 * (30 + 10**6)
    assert [columns(wide, 4 * each * share) for share in (20, 3, 1, 0)] == [10, 3, 1, 1]
    widths = []
    monkeypatch.setattr(spectral.arrays, "available_memory", lambda device: 4 * each * 3)
    plain = type(wide)._apply
    monkeypatch.setattr(type(wide), "_apply", lambda self, V: widths.append(V.shape[1]) or plain(self, V))
    spectral.exact(wide)
    assert widths == [3, 3, 3, 1]


def test_rows_that_do_not_fit_are_held_in_parts_and_later_rows_meet_those():
    J = jacobian("params")
    J = spectral.Jacobian(J.network.model, [x[None] for batch in J.network.data for x in batch])  # 7 batches of 3 rows
    rows, gram = 3 * 39 * 8, J.gram("left")
    assert sweeps(gram, 2 * 7 * rows + 2) == [range(7)]
    assert sweeps(gram, 2 * 7 * rows) == [range(6), range(6, 7)]  # one batch more passes by
    assert sweeps(gram, 2 * 4 * rows) == [range(3), range(3, 6), range(6, 7)]
    assert sweeps(gram, 2 * 2 * rows) == [range(i, i + 1) for i in range(7)]
    assert sweeps(gram, 2 * 2 * rows - 2) == [] == sweeps(spectral.as_operator(np.eye(3)), 2**30)
    said = cost(gram, free=2 * 4 * rows)
    assert (said.vjps, said.epochs, said.products) == (3 * (7 + 4 + 1), 3, 9)
    assert cost(gram, free=2 * 2 * rows).vjps == 3 * (7 * 8 // 2)
    assert sweeps(J.gram("right"), 2 * rows + 2) == [range(7)] and sweeps(J.gram("right"), 2 * rows) == []


def test_what_is_a_multiple_and_a_shift_of_a_gram_is_recognised():
    J = jacobian("params")
    M, eye = J @ torch.eye(39).double(), torch.eye(21).double()
    for A in (
        -2 * (J.gram("left") + 3 * spectral.I) / 5 - spectral.I,
        (2 * J.T).gram("right"),
        (-J).T.gram("right") * 3,
    ):
        factor, shift, inner = affine(A)
        assert inner.parts == (J,) and inner.side == "left"
        assert torch.allclose(factor * M @ M.T + shift * eye, A @ eye, atol=1e-12)
    H = spectral.as_operator(np.eye(3))
    assert affine(2 * (H + H) + spectral.I)[:2] == (2.0, 1.0) and affine(H) == (1.0, 0.0, H)


def test_a_cost_says_its_numbers():
    assert str(Cost(1, 2, 3, 4, 5.0, 2**20)) == "1 JVP and 2 VJPs of samples in 4 sweeps, 1 MiB"
    assert str(Cost(0, 2, 3, 1)) == "2 VJPs of samples in 1 sweep" and str(Cost(products=3)) == "3 products"
