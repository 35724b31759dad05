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


@pytest.mark.parametrize("engine", [engines.Fresh, engines.DoubleBackward])
def test_jvp_and_vjp_are_those_of_the_dense_jacobian(engine):
    primals = (torch.randn(3).double(), torch.randn(3).double())
    J, lin = dense(primals), engine(f, primals)
    for _ in range(2):  # the graph is kept
        v, u = torch.randn(6).double(), torch.randn(3, 2).double()
        assert torch.allclose(lin.jvp(v.split(3)).reshape(-1), J @ v, atol=1e-12)
        assert torch.allclose(torch.cat(lin.vjp(u)), J.T @ u.reshape(-1), atol=1e-12)
    assert engines.adjoint_error(lin) < 1e-14
    assert not lin.jvp(v.split(3)).requires_grad and not any(p.requires_grad for p in primals)


@pytest.mark.parametrize("engine", [engines.Fresh, engines.DoubleBackward])
def test_constant_function_has_zero_derivative(engine):
    lin = engine(lambda a: torch.ones(2, 3), (torch.randn(4),))
    assert torch.equal(lin.jvp((torch.ones(4),)), torch.zeros(2, 3))
    assert torch.equal(lin.vjp(torch.ones(2, 3))[0], torch.zeros(4))
    assert engines.adjoint_error(lin) == 0.0


@pytest.mark.parametrize("engine", [engines.Fresh, engines.DoubleBackward])
def test_unused_primal_and_linear_function(engine):
    lin = engine(lambda a, b: 3 * a[None], (torch.ones(2), torch.ones(5)))
    assert torch.equal(lin.jvp((torch.tensor([1.0, 2.0]), torch.ones(5))), torch.tensor([[3.0, 6.0]]))
    assert [g.tolist() for g in lin.vjp(torch.ones(1, 2))] == [[3.0, 3.0], [0.0] * 5]


def test_choice_says_why():
    engine, notes = engines.choose("auto", lambda a: a[None].sin(), (torch.ones(3),))
    assert engine is engines.Fresh and notes["reason"] == "forward-mode AD works"
    engine, notes = engines.choose("auto", lambda a: Cube.apply(a[None]), (torch.ones(3),))
    assert engine is engines.DoubleBackward and notes["reason"].startswith("fresh: ")
    with pytest.raises(ValueError, match=r"no engine multiplies.*\(fresh: .*give the failing module a derivative"):
        engines.choose("fresh", lambda a: Cube.apply(a[None]), (torch.ones(3),))
    with pytest.raises(ValueError, match=r"engine='quick' is no engine; use one of auto, fresh"):
        engines.choose("quick", f, (torch.ones(3),))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [0.0, 1.5])
def test_wrong_product_is_refused_in_any_dimension(dtype, wrong):
    class Wrong(engines.Fresh):
        def jvp(self, tangents):
            return wrong * super().jvp(tangents)

    n = 300_000
    lin = Wrong(lambda a: a.view(3, -1).cos(), (torch.linspace(0.1, 1, n).to(dtype),))
    assert engines.adjoint_error(lin) > 0.1 >= engines.adjoint_error(engines.Fresh(lin.function, lin.primals))
