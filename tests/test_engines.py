"""Every engine gives the derivative; the choice is made by the adjoint identity and says its reason."""

import pytest
import torch
from oracles import Cube

from spectral.operators import engines


def f(a, b):
    return torch.stack([(a * b).sum() * x + b.sin().sum() for x in (1.0, 2.0, 3.0)])[:, None] * a[:2]


def dense(primals):
    J = torch.autograd.functional.jacobian(lambda *p: f(*p).reshape(-1), primals)
    return torch.cat([block.reshape(6, -1) for block in J], 1)


@pytest.mark.parametrize("engine", [engines.Fresh, engines.Replay, engines.DoubleBackward])
def test_jvp_and_vjp_are_those_of_the_dense_jacobian(engine):
    primals = (torch.randn(3).double(), torch.randn(3).double())
    J, lin = dense(primals), engine(f, primals)
    for _ in range(2):  # the graph is kept
        v, u = torch.randn(6).double(), torch.randn(3, 2).double()
        assert torch.allclose(lin.jvp(v.split(3)).reshape(-1), J @ v, atol=1e-12)
        assert torch.allclose(torch.cat(lin.vjp(u)), J.T @ u.reshape(-1), atol=1e-12)
    assert engines.adjoint_error(lin)[0] < 1e-14
    assert not lin.jvp(v.split(3)).requires_grad and not any(p.requires_grad for p in primals)


@pytest.mark.parametrize("engine", [engines.Fresh, engines.Replay, engines.DoubleBackward])
def test_constant_function_has_zero_derivative(engine):
    lin = engine(lambda a: torch.ones(2, 3), (torch.randn(4),))
    assert torch.equal(lin.jvp((torch.ones(4),)), torch.zeros(2, 3))
    assert torch.equal(lin.vjp(torch.ones(2, 3))[0], torch.zeros(4))
    assert engines.adjoint_error(lin)[0] == 0.0


@pytest.mark.parametrize("engine", [engines.Fresh, engines.Replay, engines.DoubleBackward])
def test_unused_primal_and_linear_function(engine):
    lin = engine(lambda a, b: 3 * a[None], (torch.ones(2), torch.ones(5)))
    assert torch.equal(lin.jvp((torch.tensor([1.0, 2.0]), torch.ones(5))), torch.tensor([[3.0, 6.0]]))
    assert [g.tolist() for g in lin.vjp(torch.ones(1, 2))] == [[3.0, 3.0], [0.0] * 5]


def test_choice_says_why():
    choice = engines.choose("auto", lambda a: a[None].sin(), (torch.ones(3),))
    assert set(choice.trials) == {"fresh", "replay"} and not choice.failures and choice.once == "fresh"
    assert "hold on three calls" in choice.describe(10)["reason"]
    choice = engines.choose("auto", lambda a: Cube.apply(a[None]), (torch.ones(3),))
    assert choice.kept(100) == choice.once == "double-backward"
    assert "fresh: " in choice.describe(100)["reason"] and "replay: " in choice.describe(100)["reason"]
    assert engines.choose("replay", lambda a: a[None].sin(), (torch.ones(3),)).describe(1)["reason"] == "asked for"
    with pytest.raises(ValueError, match=r"no engine multiplies.*\(fresh: .*give the failing module a derivative"):
        engines.choose("fresh", lambda a: Cube.apply(a[None]), (torch.ones(3),))
    with pytest.raises(ValueError, match=r"engine='quick' is no engine; use one of auto, fresh"):
        engines.choose("quick", f, (torch.ones(3),))


def test_recording_must_pay_for_itself():
    trials = {"fresh": engines.Trial(0.0, 1.0, 1.0), "replay": engines.Trial(0.0, 5.0, 0.5)}
    choice = engines.Choice("auto", trials, [])
    assert choice.kept(1) == choice.kept(8) == "fresh"  # 8 x 1.0 < 5.0 + 7 x 0.5
    assert choice.kept(10) == "replay"  # 10 x 1.0 > 5.0 + 9 x 0.5


def test_program_that_is_wrong_from_its_second_call_on_is_refused():
    class Stale(engines.Replay):
        calls = 0

        def jvp(self, tangents):
            self.calls += 1
            return super().jvp(tangents) * (1.0 if self.calls == 1 else 0.6)

    with pytest.raises(RuntimeError, match=r"differ by .* on call 2"):
        engines._trial(Stale(f, (torch.randn(3).double(), torch.randn(3).double())))


def test_store_keeps_what_fits_and_only_while_the_model_is_the_same():
    store = engines.Store(budget=10)
    assert store.get(0, "a") is None and store.room(6, torch.device("cpu"))
    store.put(0, "kept", 6)
    assert store.get(0, "a") == "kept" and not store.room(6, torch.device("cpu")) and store.room(4, torch.device("cpu"))
    assert store.get(0, "b") is None and store.used == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [0.0, 1.5])
def test_wrong_product_is_refused_in_any_dimension(dtype, wrong):
    class Wrong(engines.Fresh):
        def jvp(self, tangents):
            return wrong * super().jvp(tangents)

    n = 300_000
    lin = Wrong(lambda a: a.view(3, -1).cos(), (torch.linspace(0.1, 1, n).to(dtype),))
    assert engines.adjoint_error(lin)[0] > 0.1 >= engines.adjoint_error(engines.Fresh(lin.function, lin.primals))[0]
