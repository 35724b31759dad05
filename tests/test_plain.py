"""The plain engine is the reference: what it gives, the other engine gives, and rows reach both where they lie."""

from types import SimpleNamespace

import pytest
import torch
from oracles import dense_jacobian, logits
from torch import nn

from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian
from spectral.engine import autotune, private
from spectral.engine.plain import Maps, PlainEngine, Workload
from spectral.networks import sum_over_batches


def linear_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, [(torch.randn(n, 3).double(), torch.randint(2, (n,))) for n in (5, 2)]


MATRICES = {
    "J": Jacobian,
    "J of inputs": lambda m, d, **o: Jacobian(m, d, wrt="inputs", layout="flattened", **o),
    **{kind.__name__: lambda m, d, kind=kind, **o: kind(m, nn.CrossEntropyLoss(), d, **o)
       for kind in (Hessian, GaussNewton, Fisher, EmpiricalFisher)},
    "GaussNewton of inputs": lambda m, d, **o: GaussNewton(m, nn.CrossEntropyLoss(), d, wrt="inputs", **o),
    "Hessian of a module, summed": lambda m, d, **o: Hessian(
        m, nn.CrossEntropyLoss(), d, wrt="module:1", layout="summed", **o
    ),
}  # fmt: skip


FAST = ("J of inputs", "Hessian", "GaussNewton")  # the others are slow by their number alone


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MATRICES])
def test_the_tuned_engine_gives_what_the_plain_one_gives(monkeypatch, name):
    """On products in its way, beside a program under test, by the program alone; then on a block, in parts and what is left."""
    dtype = torch.float32 if name in ("J", "GaussNewton") else torch.float64
    monkeypatch.setattr(
        autotune.Tuned, "_compare", lambda *measured: True
    )  # a block's program is taken, however long it takes
    monkeypatch.setattr(sum_over_batches, "JOIN", 0 if name in ("J of inputs", "Fisher") else sum_over_batches.JOIN)
    model, data = linear_model()
    model, data = model.to(dtype), [(x.to(dtype), y) for x, y in data]
    tuned, plain = MATRICES[name](model, data, engine="replay"), MATRICES[name](model, data)
    plain.engine = PlainEngine()
    tuned.expect(10**6)
    pairs = [(A, A.T, A.gram("right")) if isinstance(A, Jacobian) else (A,) for A in (tuned, plain)]
    for A, B in zip(*pairs, strict=True):
        V = torch.randn(A.shape[1], 13, dtype=dtype)
        for X in (*V.T[:5], V):
            due = B @ X
            assert (A @ X - due).norm() <= 100 * torch.finfo(dtype).eps * due.norm()
        assert tuned.engine.shared["width", tuned.kind] == 8 and tuned.engine.choices[tuned.kind].engine == "replay"
    assert tuned.store.used > 0 and not plain.store.entries
    assert plain.describe()["engine"] == "fresh" and plain.settled


def test_the_plain_engine_gives_the_jacobian_that_autograd_makes_row_by_row():
    model, data = linear_model()
    J, due = Jacobian(model, data), dense_jacobian(model, data, logits)
    J.engine = PlainEngine()
    for A, dense in ((J, due), (J.T, due.T), (J.gram("right"), due.T @ due)):
        assert torch.allclose(A @ torch.eye(A.shape[1], dtype=torch.float64), dense, atol=1e-13)


def test_the_plain_engine_writes_and_adds_what_a_matrix_gives_into_rows_that_lie_apart():
    A, V, W = torch.randn(4, 3).double(), torch.randn(5, 7).double(), torch.ones(5, 9).double()
    work = Workload("J v", 0, lambda way: Maps(lambda v: (A @ v,), lambda v, w: 0.0))
    multiplier = PlainEngine().multiplier(work)
    for new, factor in ((True, 1), (False, 2)):
        multiplier.add(V[:, 2:5], W[:, 1:5], new)
        assert torch.allclose(W[:, 1:5], factor * V[:, 2:5] @ A.T, atol=1e-14)
    assert (W[:, [0, 5, 6, 7, 8]] == 1).all()


class Spy(PlainEngine):
    """Notes where the rows lie that it is given."""

    def multiplier(self, work):
        inner = super().multiplier(work)

        def add(V, W, new):
            self.seen.append((V.untyped_storage().data_ptr(), W.untyped_storage().data_ptr(), V.stride(1), W.stride(1)))
            inner.add(V, W, new)

        return SimpleNamespace(add=add)


@pytest.mark.parametrize("name", MATRICES)
def test_rows_reach_the_engine_and_go_out_uncopied(monkeypatch, name):
    """A block whose columns are contiguous is rows already: batches read it where it lies, and write what is handed out."""
    monkeypatch.setattr(sum_over_batches, "JOIN", 0)
    J = MATRICES[name](*linear_model())
    for A in (J, J.T, J.gram("right")) if isinstance(J, Jacobian) else (J,):
        J.engine = Spy()
        J.engine.seen = []
        V = torch.randn(3, A.shape[1]).double().T
        W = A @ V
        assert J.engine.seen == 2 * [(*(t.untyped_storage().data_ptr() for t in (V, W)), 1, 1)]


@pytest.mark.parametrize("gone", ["schema", "_is_zerotensor"])
def test_without_a_private_name_nothing_is_recorded_and_products_are_the_same(monkeypatch, gone):
    model, data = linear_model()
    v = torch.randn(26).double()
    due = Jacobian(model, data, engine="fresh") @ v
    if gone == "schema":
        monkeypatch.setattr(private, "schema", lambda operation: None)
    else:
        is_zero = private.is_zero
        monkeypatch.setattr(private, "is_zero", lambda t: is_zero(SimpleNamespace()))
    J = Jacobian(model, data, engine="replay")
    assert torch.allclose(J @ v, due, atol=1e-14) and J.describe()["engine"] == "fresh"
    assert "replay: this torch does not say which" in J.describe()["reason"]
