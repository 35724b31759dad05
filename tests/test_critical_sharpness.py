"""critical_sharpness: the Rayleigh quotient of a quadratic loss, a bracket of any other; its loss and its gradient."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import spectral
from spectral import critical_sharpness


def regression(dtype=torch.float64, n=30, d=4):
    torch.manual_seed(0)
    x, y = torch.randn(n, d, dtype=dtype), torch.randn(n, 1, dtype=dtype)
    model = nn.Linear(d, 1, bias=False).to(dtype)
    batches = [(x[:7], y[:7]), (x[7:], y[7:])]  # cut unevenly: the mean is over all
    H = 2 * x.double().T @ x.double() / n
    g = (2 * x.T @ (model(x) - y) / n)[:, 0].detach().double()
    return model, batches, H.numpy(), g.numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [spectral.Hessian, spectral.GaussNewton, spectral.EmpiricalFisher])
def test_of_a_quadratic_it_is_the_rayleigh_quotient_of_the_gradient(kind, dtype):
    model, batches, H, g = regression(dtype)
    A = kind(model, nn.MSELoss(), batches)
    sweeps, products = A.epochs, A.products
    e = critical_sharpness(A)
    assert e.value == pytest.approx(g @ H @ g / (g @ g), rel=1e-4 if dtype == torch.float32 else 1e-9)
    assert e.lower < e.value < e.upper and 1 - e.lower / e.upper <= 0.05
    assert int(e.method.split()[0]) <= 6 and A.products == products and A.epochs - sweeps <= 7


def test_along_an_eigenvector_it_is_the_eigenvalue():
    """Started where the gradient is one, at the distance of any eigenvector from the minimum: lambda_max among them."""
    model, batches, H, _ = regression()
    values, vectors = np.linalg.eigh(H)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    solution = torch.linalg.lstsq(x, y).solution[:, 0]
    for value, v in zip(values, vectors.T, strict=True):
        with torch.no_grad():
            model.weight.copy_(solution + 0.3 * torch.from_numpy(v))
        A = spectral.Hessian(model, nn.MSELoss(), batches)
        for given in (None, torch.from_numpy(v), 1e3 * torch.from_numpy(v)):
            scale = 1.0 if given is None else 0.3 * value / float(given.norm())  # d = g / scale
            assert critical_sharpness(A, given).value * scale == pytest.approx(
                value, rel=0.03 if given is not None else 1e-9
            )


def test_of_any_loss_it_is_bracketed_where_torch_says_that_the_loss_rises():
    torch.manual_seed(2)
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    A = spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, y)])
    parameters = list(model.parameters())
    g = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)

    def loss(eta):
        with torch.no_grad():
            for p, part in zip(parameters, g, strict=True):
                p -= eta * part
            value = float(nn.functional.cross_entropy(model(x), y))
            for p, part in zip(parameters, g, strict=True):
                p += eta * part
        return value

    for guess in (None, 1e-2, 1e2):
        e = critical_sharpness(A, guess=guess)
        assert loss(2 / e.upper) <= loss(0.0) < loss(2 / e.lower) and 1 - e.lower / e.upper <= 0.05
    again = critical_sharpness(A, guess=e.value)
    assert int(again.method.split()[0]) <= 4
    exact = critical_sharpness(A, rtol=1e-6, most=60)
    assert abs(loss(2 / exact.value) - loss(0.0)) < 1e-6


def test_a_loss_that_never_rises_or_rises_at_once_says_so():
    x = torch.ones(3, 2, dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    falls = spectral.Hessian(model, lambda z, batch: (z.sum(), len(z)), [(x,)], preflight=False)
    e = critical_sharpness(falls)
    assert math.isnan(e.value) and e.lower == 0.0 and 0 < e.upper < math.inf
    model, batches, _, g = regression()
    e = critical_sharpness(spectral.Hessian(model, nn.MSELoss(), batches), -torch.from_numpy(g))
    assert e.upper == math.inf and e.lower > 0


def test_loss_and_gradient_are_torchs_over_all_data_and_nothing_is_touched():
    torch.manual_seed(0)
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    loss, unused = nn.CrossEntropyLoss(), nn.Parameter(torch.zeros(2))
    model.register_parameter("unused", unused)
    loss(model(x), y).backward()
    before = {name: t.clone() for name, t in model.state_dict().items()}, model[0].weight.grad.clone()
    A = spectral.Hessian(model, loss, [(x[:8], y[:8]), (x[8:], y[8:])])
    random = torch.get_rng_state()
    value, g = A.mean_loss(), A.gradient()
    shift = 0.1 * torch.randn(A.shape[0], generator=torch.Generator().manual_seed(1))
    there = A.mean_loss(shift)
    critical_sharpness(A)
    assert (
        model.training and torch.equal(random, torch.get_rng_state()) and torch.equal(before[1], model[0].weight.grad)
    )
    assert all(torch.equal(before[0][name], t) for name, t in model.state_dict().items())
    model.eval()
    own = loss(model(x), y)
    assert value == pytest.approx(own.item(), rel=1e-6)
    found = torch.autograd.grad(own, list(model.parameters()), allow_unused=True, materialize_grads=True)
    named = dict(zip((name for name, _ in model.named_parameters()), found, strict=True))
    for name, part in A.unflatten(g).items():
        torch.testing.assert_close(part, named[name], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        for name, part in A.unflatten(shift).items():
            dict(model.named_parameters())[name].add_(part)
    assert there == pytest.approx(loss(model(x), y).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": torch.zeros(4, dtype=torch.float64)}, "the direction has length 0"),
        ({"direction": torch.full((4,), torch.nan, dtype=torch.float64)}, "the direction has length nan"),
        ({"direction": torch.ones(5, dtype=torch.float64)}, "cannot multiply|shape"),
        ({"guess": -1.0}, "guess=-1.0 is no sharpness"),
        ({"rtol": 0.0}, "rtol=0.0 is no relative width"),
        ({"most": 2}, "most=2"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(options, message):
    model, batches, _, _ = regression()
    with pytest.raises(ValueError, match=message):
        critical_sharpness(spectral.Hessian(model, nn.MSELoss(), batches), **options)


def test_a_matrix_without_a_loss_is_refused():
    with pytest.raises(TypeError, match="has no loss over data"):
        critical_sharpness(np.eye(3))
