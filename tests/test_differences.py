"""Second derivatives that torch gives and that are not there are refused by name; those that are there pass without a word."""

import pytest
import torch
from oracles import CASES
from torch import nn
from torch.nn import functional as F

from spectral import EmpiricalFisher, GaussNewton, Hessian, Jacobian, longvectors
from spectral.networks.diagnose import differences
from spectral.networks.diagnose.graph import graph_facts

DOUBLE = torch.float64


def dense(A):
    return A @ torch.eye(A.shape[1], dtype=A.dtype)


def difference_hessian(total, model, h=1e-5):
    """Central differences of the gradient, parameter by parameter."""
    params, columns = list(model.parameters()), []

    def gradient():
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(total(), params)])

    for p in params:
        entries = p.data.view(-1)
        for i in range(entries.numel()):
            keep, ends = entries[i].item(), []
            for step in (h, -h):
                entries[i] = keep + step
                ends.append(gradient())
            entries[i] = keep
            columns.append((ends[0] - ends[1]) / (2 * h))
    return torch.stack(columns, 1)


# Functions whose backward pass uses what forward saved ----------------------------------------------------------------
class FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, y):
        logp = z.log_softmax(1)
        ctx.save_for_backward(logp.exp() - F.one_hot(y, z.shape[1]))
        return -logp.gather(1, y[:, None]).sum()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


class FusedGelu(torch.autograd.Function):
    """The derivative is computed in forward and saved."""

    @staticmethod
    def forward(ctx, x):
        cdf = 0.5 * (1 + torch.erf(x / 2**0.5))
        ctx.save_for_backward(cdf + x * torch.exp(-(x**2) / 2) / (2 * torch.pi) ** 0.5)
        return x * cdf

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class Sine(torch.autograd.Function):
    """As it should be: backward computes from the input."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class WrongTangent(torch.autograd.Function):
    """Right backward passes, and a forward-mode rule of the gradient that is wrong."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return WrongSquare.apply(x) * 3 * g

    @staticmethod
    def jvp(ctx, t):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * t


class WrongSquare(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g

    @staticmethod
    def jvp(ctx, t):
        return ctx.saved_tensors[0] * t  # half of it


class RoundedSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.bfloat16())
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(function, dtype=DOUBLE, n=9):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), Apply(function), nn.Linear(4, 3)).to(dtype)
    return model, torch.randn(n, 3, dtype=dtype), torch.randint(3, (n,))


def fused(output, batch):
    return FusedCrossEntropy.apply(output, batch[1]), len(output)


@pytest.fixture(params=["light", "heavy"])
def size(request, monkeypatch):
    """Whether vectors are so heavy that the dtype of the product comes first, in which a test holds three of them."""
    if request.param == "heavy":
        monkeypatch.setattr(differences, "LIGHT", -1)
        monkeypatch.setattr(longvectors, "SKETCH", (8, 2))  # no vector is short


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("n, engine", [(1, "auto"), (5, "auto"), (40, "auto"), (9, "double-backward")])
def test_fused_activation_is_named(dtype, n, engine):
    model, x, y = network(FusedGelu.apply, dtype, n)
    with pytest.raises(
        ValueError, match=r"FusedGelu in 3 \(Apply\) has a second derivative that is not that of its grad"
    ):
        Hessian(model, nn.CrossEntropyLoss(), [(x, y)], engine=engine) @ torch.ones(51, dtype=dtype)
    if n > 1:
        J = Jacobian(model, [x])
        assert J.adjoint_error() < 1e-5  # first derivatives are right
        for A in (
            GaussNewton(model, nn.CrossEntropyLoss(), [(x, y)]),
            EmpiricalFisher(model, nn.CrossEntropyLoss(), [(x, y)]),
        ):
            A @ torch.ones(51, dtype=dtype)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("n", [1, 9])
@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_fused_loss_is_named(kind, dtype, n):
    model, x, y = network(torch.sin, dtype, n)
    with pytest.raises(ValueError, match=r"FusedCrossEntropy in (of= or )?loss= has a second derivative that is not"):
        kind(model, fused, [(x, y)]) @ torch.ones(51, dtype=dtype)


@pytest.mark.parametrize("made", [False, True])
def test_a_coarse_mask_hides_no_wrong_product(made):
    """0 and 1 are exact in bfloat16: products of a float32 model were held to 8 times themselves, and a wrong one passed."""
    mask = torch.tensor([1, 0, 1, 1], dtype=torch.bfloat16)
    masked = lambda h: h * (mask.clone() if made else mask)  # noqa: E731
    model, x, y = network(lambda h: FusedGelu.apply(masked(h)), torch.float32)
    with pytest.raises(ValueError, match=r"FusedGelu in 3 \(Apply\) has a second derivative that is not"):
        Hessian(model, nn.CrossEntropyLoss(), [(x, y)]) @ torch.ones(51)
    right = Hessian(network(lambda h: Sine.apply(masked(h)), torch.float32)[0], nn.CrossEntropyLoss(), [(x, y)])
    right @ torch.ones(51)
    assert "computes_in" not in right.describe() and right.epsilon == torch.finfo(torch.float32).eps


def test_what_a_function_keeps_in_a_coarse_dtype_is_computed_in_it():
    w, x, mask = torch.ones(3), torch.randn(3), torch.ones(3, dtype=torch.bfloat16)
    for function, dtype in (
        (lambda w: (w * x * mask).sin().sum(), torch.float32),
        (lambda w: RoundedSquare.apply(w * x).sum(), torch.bfloat16),
        (lambda w: ((w * x).bfloat16() * mask).float().sum(), torch.bfloat16),
    ):
        assert graph_facts(function, (w,)).dtype == dtype


def test_the_wrong_one_of_two_functions_is_named():
    model, x, y = network(lambda h: FusedGelu.apply(Sine.apply(h)))
    with pytest.raises(ValueError, match=r"\(FusedGelu in 3 \(Apply\) has"):
        Hessian(model, nn.CrossEntropyLoss(), [(x, y)]) @ torch.ones(51, dtype=DOUBLE)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("function", [Sine.apply, torch.relu, F.gelu, F.silu, lambda h: h.clamp(-0.3, 0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("n", [1, 64])
def test_second_derivatives_that_are_there_pass(function, dtype, n):
    model, x, y = network(function, dtype, n)
    loss = nn.CrossEntropyLoss()
    H = Hessian(model, loss, [(x, y)])
    expected = torch.zeros(51, 51)
    model64, x64 = network(function, DOUBLE, n)[0], x.double()
    model64.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    expected = difference_hessian(lambda: loss(model64(x64), y), model64, 1e-6)
    V = torch.randn(51, 3, dtype=dtype)
    ours, expected = (H @ V).double(), expected @ V.double()
    assert (ours - expected).norm() < (1e-3 if dtype == torch.float32 else 1e-5) * expected.norm()


def test_way_with_a_wrong_tangent_is_not_taken():
    model, x, y = network(WrongTangent.apply)
    loss = nn.CrossEntropyLoss()
    H = Hessian(model, loss, [(x, y)])
    right = difference_hessian(lambda: loss(model(x), y), model)
    assert (dense(H) - right).norm() < 1e-6 * right.norm()
    assert H.engine.choices["H v"].way == "double-backward"  # a program may have been recorded of it
    with pytest.raises(ValueError, match="no engine multiplies this matrix"):
        Hessian(model, loss, [(x, y)], engine="fresh") @ torch.ones(51, dtype=DOUBLE)


def test_scatter_reduce_of_products_is_right_whatever_torch_says():
    index = torch.tensor([0, 0, 1, 1])

    def products(h):
        return h.new_ones(len(h), 4).scatter_reduce(1, index.expand(len(h), 4), h, "prod")

    model, x, y = network(products)
    loss = nn.CrossEntropyLoss()
    right = difference_hessian(lambda: loss(model(x), y), model)
    try:
        ours = dense(Hessian(model, loss, [(x, y)]))
    except ValueError as problem:
        assert "has a second derivative that is not" in str(problem) or "no engine" in str(problem)
    else:
        assert (ours - right).norm() < 1e-6 * right.norm()


PIECEWISE = {
    "l1": (nn.L1Loss(), lambda y: F.one_hot(y, 3) * 1.0),
    "hinge": (lambda z, b: (F.relu(1 - z).sum(), len(z)), lambda y: y),
    "linear": (lambda z, b: (z.sum(), len(z)), lambda y: y),
}


@pytest.mark.parametrize("kind", PIECEWISE)
def test_gauss_newton_of_a_piecewise_linear_loss_is_zero(kind):
    model, x, y = network(torch.sin)
    loss, target = PIECEWISE[kind]
    target = target(y).double() if target(y).is_floating_point() else target(y)
    A = GaussNewton(model, loss, [(x, target)])
    assert float((A @ torch.ones(51, dtype=DOUBLE)).norm()) == 0.0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_no_healthy_network_is_refused(name, dtype):
    model, (x, y) = CASES[name].network(dtype), CASES[name].data(12, dtype)
    loss = lambda z, b: (F.cross_entropy(z.flatten(1), b[1], reduction="sum"), len(z))  # noqa: E731
    for kind in (Hessian, GaussNewton):
        A = kind(model, loss, [(x, y)])
        A @ torch.ones(A.shape[1], dtype=dtype)
        assert "fresh is off" not in A.describe()["reason"] and "untested" not in A.describe()


def test_check_can_be_switched_off_and_says_so():
    model, x, y = network(FusedGelu.apply)
    H = Hessian(model, nn.CrossEntropyLoss(), [(x, y)], preflight=False)
    H @ torch.ones(51, dtype=DOUBLE)
    assert H.describe()["preflight"] is False


def test_difference_tells_a_wrong_product_from_a_right_one():
    A = torch.randn(5, 5, dtype=DOUBLE)
    A = A + A.T
    p = differences.probe(lambda x: x @ A @ x / 2 + (x**4).sum(), (torch.randn(5, dtype=DOUBLE),))
    (x,), (t,) = p.primals, p.tangents
    right = A @ t + 12 * x**2 * t
    assert differences.difference_error(p, longvectors.sketch((right,))) < 1e-6
    for wrong, by in ((right * 1.001, r"1.0e-03"), (torch.zeros(5), r"1.0e\+00")):
        with pytest.raises(differences.Wrong, match=f"off by {by} from the difference"):
            differences.difference_error(p, longvectors.sketch((wrong,)))


def test_a_right_product_takes_one_more_gradient_where_the_first_is_there_and_a_wrong_one_is_told_all_the_same():
    A = torch.randn(5, 5)
    A, x, t, share = A + A.T, torch.randn(5), torch.randn(5), 0.25
    points = []

    def function(x):  # called once for each gradient
        points.append(x)
        return x @ A @ x / 2 + (x**4).sum()

    def told(by):
        points.clear()
        here = longvectors.sketch([share * (A @ x + 4 * x**3)])
        unit = torch.finfo(torch.float32).eps
        p = differences.Probe(function, (x,), (t,), unit, trial=True, share=share, here=here)
        return differences.difference_error(p, longvectors.sketch((by * share * (A @ t + 12 * x**2 * t),)))

    assert told(by=1.0) < 5e-3 and len(points) == 1
    with pytest.raises(differences.Wrong, match=r"off by 9\.1e-02 from the difference"):
        told(by=1.1)
    assert len(points) == 5  # and both steps of the central difference


def test_kinks_everywhere_are_no_verdict():
    saw = lambda x: (x * 1e9).sin().sum()  # noqa: E731  (no step is short enough)
    p = differences.probe(saw, (torch.randn(50, dtype=DOUBLE),))
    assert differences.difference_error(p, longvectors.sketch((torch.zeros(50),))) is None


class Partly(nn.Module):
    """The same weights with a gradient and, on another path, without: no matrix is the derivative of such a gradient."""

    def __init__(self, hide):
        super().__init__()
        self.hide, self.a, self.b = hide, nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        with torch.set_grad_enabled(not self.hide):
            aside = self.a(x).tanh()
        return self.b(self.a(x).tanh() * aside)


def test_hessian_is_symmetric_or_refused_where_a_path_has_no_gradient():
    """What lies under no_grad has no gradient, but gradients change with it: no second derivative is theirs."""
    torch.manual_seed(0)
    data = [(torch.randn(6, 4).double(), torch.randint(3, (6,)))]
    v = torch.randn(35, dtype=torch.float64)
    model = Partly(hide=True).double()
    with pytest.raises(ValueError, match=r"no engine multiplies.*second derivative that is not that of its gradient"):
        Hessian(model, nn.CrossEntropyLoss(), data) @ v
    with pytest.raises(ValueError, match=r"second derivative that is not that of its gradient: fresh is off"):
        Hessian(model, nn.CrossEntropyLoss(), data, engine="fresh") @ v
    model.hide = False
    Hessian(model, nn.CrossEntropyLoss(), data, engine="fresh") @ v


@pytest.mark.parametrize("engine", ["fresh", "replay", "double-backward"])
def test_products_are_those_of_the_gradients_where_a_path_has_none(engine):
    """Forward mode alone would go through no_grad. In float32 the adjoint test takes 6e-3 for rounding: it may miss that."""
    torch.manual_seed(0)
    model, x, loss = Partly(hide=True).double(), torch.randn(6, 4).double(), nn.CrossEntropyLoss()
    z = model(x)
    rows = [torch.autograd.grad(e, list(model.parameters()), retain_graph=True) for e in z.flatten()]
    expected = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    J = Jacobian(model, [(x, torch.zeros(6, dtype=torch.long))], engine=engine)
    assert torch.allclose(J @ torch.eye(35, dtype=torch.float64), expected, rtol=1e-12)
    G = GaussNewton(model, loss, [(x, torch.zeros(6, dtype=torch.long))], engine=engine)
    inner = torch.block_diag(*(torch.diag(p) - p.outer(p) for p in z.detach().softmax(1))) / 6
    assert torch.allclose(G @ torch.eye(35, dtype=torch.float64), expected.T @ inner @ expected, rtol=1e-12)


class Scaled(nn.Module):
    """Gradients that a hook scales are no gradient of a function, and forward mode does not see the hook in its tangents."""

    def __init__(self, factor):
        super().__init__()
        self.a, self.b, self.factor = nn.Linear(3, 4), nn.Linear(4, 2), factor

    def forward(self, x):
        h = self.a(x)
        if h.requires_grad:
            h.register_hook(lambda g: self.factor * g)
        return self.b(h.tanh())


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.1])
def test_hessian_of_scaled_gradients_is_refused_at_its_first_product(factor):
    torch.manual_seed(0)
    data = [(torch.randn(5, 3).double(), torch.tensor([0, 1, 0, 1, 1]))]
    with pytest.raises(ValueError, match=r"no engine multiplies this matrix"):
        Hessian(Scaled(factor).double(), nn.CrossEntropyLoss(), data) @ torch.randn(26, dtype=torch.float64)


class Halved(torch.autograd.Function):
    """(x_0, x_0, x_2), with a rule of forward mode that gives 0 for the first two, as torch's of logcumsumexp may."""

    @staticmethod
    def forward(x):
        return torch.stack([x[0], x[0], x[2]])

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, u):
        return torch.stack([u[0] + u[1], 0 * u[0], u[2]])

    @staticmethod
    def jvp(ctx, tangent):
        return torch.stack([0 * tangent[0], 0 * tangent[0], tangent[2]])


class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.randn(3, dtype=torch.float64))

    def forward(self, scale):
        return Halved.apply(self.x) * scale


def test_a_wrong_rule_of_forward_mode_shows_in_a_matrix_of_few_rows():
    """For signs u of which the first two add up to 0, <J v, u> = <v, J^T u> held for every v."""
    expected = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    for v in torch.eye(3, dtype=torch.float64):
        J = Jacobian(Three(), [torch.ones(1, 1, dtype=torch.float64)])
        assert torch.allclose(J @ v, expected @ v)
        assert torch.allclose(J.T @ v, expected.T @ v)


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        with torch.no_grad():
            h = self.a(x).tanh()
        return self.b(h)


@pytest.mark.parametrize("make", [Hessian, GaussNewton, lambda m, loss, data, **how: Jacobian(m, data, **how)])
def test_parameters_under_no_grad_are_named_and_left_out_by_params(make):
    torch.manual_seed(0)
    model, data = Frozen().double(), [(torch.randn(6, 4).double(), torch.randint(3, (6,)))]
    with pytest.raises(ValueError, match=r"change with a.weight, a.bias but carry no derivative .* params="):
        make(model, nn.CrossEntropyLoss(), data)
    A = make(model, nn.CrossEntropyLoss(), data, params=["b.*"])
    assert A.shape[1] == 15 and A.adjoint_error() < 1e-12
