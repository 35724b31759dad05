"""All tests of an operator together take less than four gradients of the first batch, counted in operations, once."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import spectral


class Operations(TorchDispatchMode):
    """Counts what matrix products and convolutions take, below every kind of differentiation."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=out)
        return out


def operations(action):
    with Operations() as mode:
        result = action()
    return mode.count, result


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0), nn.Linear(16, 10)

    def forward(self, x):
        return self.out(self.layer(x).mean(1))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), (64,)),
    "cnn": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10)),
        (3, 8, 8),
    ),
    "attention": (Attention, (4, 16)),
}
MATRICES = {
    "J^T J": lambda model, data, **options: spectral.Jacobian(model, data, **options).gram("right"),
    "Hessian": lambda model, data, **options: spectral.Hessian(model, nn.CrossEntropyLoss(), data, **options),
    "GaussNewton": lambda model, data, **options: spectral.GaussNewton(model, nn.CrossEntropyLoss(), data, **options),
    "EmpiricalFisher": lambda model, data, **options: spectral.EmpiricalFisher(
        model, nn.CrossEntropyLoss(), data, **options
    ),
}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mlp", 1),
        ("mlp", 6),
        ("cnn", 6),
        ("attention", 6),
        *(pytest.param(m, 16, marks=pytest.mark.slow) for m in MODELS),
    ],
)
@pytest.mark.parametrize("matrix", MATRICES)
def test_checks_take_less_than_four_gradients_of_the_first_batch(name, matrix, size):
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build()
    data = [(torch.randn(size, *shape), torch.randint(10, (size,))) for _ in range(3)]
    x, y = data[0]
    loss = nn.CrossEntropyLoss()
    gradient, _ = operations(lambda: torch.autograd.grad(loss(model(x), y), list(model.parameters())))
    sweep = sum(operations(lambda x=x: model(x))[0] for x, _ in data)
    taken = {}
    for preflight in (True, False):
        build_count, A = operations(lambda preflight=preflight: MATRICES[matrix](model, data, preflight=preflight))
        first, _ = operations(lambda A=A: A @ A.probe(0, 0))
        taken[preflight] = build_count, first
    told = A.describe()
    told = told["of"][0] if matrix == "J^T J" else told
    joined = told.get("batches_joined", 1)  # small batches are multiplied as one
    assert sum(taken[True]) - sum(taken[False]) <= 4 * gradient * joined
    assert taken[False][0] <= sweep + gradient  # one sweep, and the graph of the first batch
    third = {}
    for preflight in (True, False):
        A = MATRICES[matrix](model, data, preflight=preflight)
        for _ in range(2):
            A @ torch.ones(A.shape[1])
        third[preflight], _ = operations(lambda A=A: A @ torch.ones(A.shape[1]))
    assert third[True] <= 1.05 * third[False]  # nothing per product, once two have been tested
