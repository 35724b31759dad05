"""Weights in half precision: products in their dtype, vectors, dots and sums in float32, parameters never copied whole."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import spectral
from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian

HALF = (torch.bfloat16, torch.float16)
MATRICES = {
    "GaussNewton": lambda model, data: GaussNewton(model, nn.CrossEntropyLoss(), data),
    "Fisher": lambda model, data: Fisher(model, nn.CrossEntropyLoss(), data),
    "EmpiricalFisher": lambda model, data: EmpiricalFisher(model, nn.CrossEntropyLoss(), data),
    "Hessian": lambda model, data: Hessian(model, nn.CrossEntropyLoss(), data),
    "J^T J": lambda model, data: Jacobian(model, data).gram("right"),
}


def small(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    data = [(torch.randn(8, 6).to(dtype), torch.randint(3, (8,))) for _ in range(2)]
    return model, data


def dense(A):
    return A @ torch.eye(A.shape[1], dtype=A.dtype)


def exact(model, data):
    """The same weights and data, rounded already, in float64."""
    return copy.deepcopy(model).double(), [(x.double(), y) for x, y in data]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", MATRICES)
def test_products_are_those_of_the_rounded_weights_in_float32_vectors(name, dtype):
    model, data = small(dtype)
    A, truth = MATRICES[name](model, data), MATRICES[name](*exact(model, data))
    v = torch.randn(A.shape[1], generator=torch.Generator().manual_seed(1))
    assert A.dtype == torch.float32
    for _ in range(5):  # programs are recorded and take over
        w, due = A @ v, truth @ v.double()
        assert w.dtype == torch.float32
        assert float((w.double() - due).norm() / due.norm()) < 4 * torch.finfo(dtype).eps
    block = A @ torch.stack([v, -2 * v], 1)
    assert float((block[:, 1] + 2 * block[:, 0]).norm() / block.norm()) < 4 * torch.finfo(dtype).eps
    assert next(model.parameters()).dtype == dtype


def test_what_is_said_of_them():
    A = MATRICES["GaussNewton"](*small(torch.bfloat16))
    told = A.describe()
    assert told["dtype"] == "float32" and told["product_dtype"] == "bfloat16"
    assert A.epsilon == torch.finfo(torch.bfloat16).eps
    assert "product_noise" not in told  # it would take a copy of the weights; it is there for the asking
    assert 1e-4 < A.measure_noise() < 4 * torch.finfo(torch.bfloat16).eps


def test_spectrum_has_the_mass_of_the_exact_matrix():
    model, data = small(torch.bfloat16)
    A, truth = MATRICES["GaussNewton"](model, data), MATRICES["GaussNewton"](*exact(model, data))
    values = np.linalg.eigvalsh(dense(truth).numpy())
    found = spectral.slq(A, probes=4, steps=20, progress=False)
    assert found.meta["operator"]["product_dtype"] == "bfloat16"
    trace = found.integrate(lambda x: x)
    assert abs(trace.value - values.sum()) < 5 * trace.stderr + 0.02 * values.sum()
    pairs = spectral.top(A, 2, tol=0.02, progress=False)
    assert pairs.values[0] == pytest.approx(values[-1], rel=0.02)


@pytest.mark.parametrize("layout", ["stacked", "flattened"])
def test_jacobian_of_inputs_and_its_rows(layout):
    model, data = small(torch.bfloat16)
    J, truth = (Jacobian(m, d, wrt="inputs", layout=layout) for m, d in ((model, data), exact(model, data)))
    assert J.dtype == torch.float32
    made, due = dense(J).double(), dense(truth)
    assert float((made - due).norm() / due.norm()) < 4 * torch.finfo(torch.bfloat16).eps
    P = Jacobian(model, data)
    rows = torch.cat([block for _, block in P.rows()])
    assert rows.dtype == torch.float32
    u = torch.randn(P.shape[0])
    assert float((P.T @ u - rows.T @ u).norm() / (rows.T @ u).norm()) < 4 * torch.finfo(torch.bfloat16).eps


def test_a_finer_dtype_for_the_products_may_be_asked_for():
    model, data = small(torch.bfloat16)
    truth = MATRICES["Hessian"](*exact(model, data))
    A = Hessian(model, nn.CrossEntropyLoss(), data, product_dtype=torch.float32)
    v = torch.randn(A.shape[1])
    due = truth @ v.double()
    assert float(((A @ v).double() - due).norm() / due.norm()) < 1e-5
    assert next(model.parameters()).dtype == torch.bfloat16


def test_weights_without_arithmetic_are_refused():
    model, data = small(torch.float32)
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn))
    with pytest.raises(TypeError, match=r"the parameter 0.weight is float8_e4m3fn, .*convert it"):
        Jacobian(model, data)
    model, data = small(torch.float32)
    model[0].weight = nn.Parameter(torch.ones(16, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"fails on batch 0 \(.*parameter 0.weight is int8; convert it"):
        Jacobian(model, data)
    Jacobian(nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2)).eval(), data)  # a counter in int64 is a buffer
