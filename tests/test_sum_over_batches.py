"""Small batches are multiplied as one wherever that changes nothing, and nowhere else."""

import pytest
import torch
from torch import nn

from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian
from spectral.networks import sum_over_batches

SIZES = (3, 3, 3, 2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batches(sizes=SIZES):
    torch.manual_seed(1)
    x, y = torch.randn(sum(sizes), 5).double(), torch.randint(3, (sum(sizes),))
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def joined(A):
    return A.describe().get("batches_joined", 1)


def whole(data):
    return [tuple(torch.cat(parts) for parts in zip(*data, strict=True))]


@pytest.mark.parametrize("kind", [Hessian, GaussNewton, Fisher, EmpiricalFisher])
@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("join", [sum_over_batches.JOIN, 0])
def test_curvature_of_joined_batches(kind, memory, join, monkeypatch):
    monkeypatch.setattr(sum_over_batches, "JOIN", join)
    data = batches()
    A = kind(network(), nn.CrossEntropyLoss(), data, memory=memory)
    B = kind(network(), nn.CrossEntropyLoss(), whole(data))
    V = torch.randn(A.shape[0], 3, dtype=torch.float64)
    for _ in range(3):
        assert torch.allclose(A @ V, B @ V, atol=1e-12)
    assert joined(A) == (4 if join else 1)
    assert A.epochs == B.epochs


def test_sampled_labels_are_those_of_the_samples():
    data = batches()
    A, B = (Fisher(network(), nn.CrossEntropyLoss(), d, draws=2, seed=3) for d in (data, whole(data)))
    v = torch.randn(A.shape[0], dtype=torch.float64)
    assert torch.allclose(A @ v, B @ v, atol=1e-12) and joined(A) == 4


@pytest.mark.parametrize("options", [{}, {"wrt": "inputs"}, {"wrt": "inputs", "layout": "flattened"}])
@pytest.mark.parametrize("join", [sum_over_batches.JOIN, 0])
def test_rows_of_joined_batches_keep_their_order(options, join, monkeypatch):
    monkeypatch.setattr(sum_over_batches, "JOIN", join)
    data = batches()
    J, K = (Jacobian(network(), d, **options) for d in (data, whole(data)))
    v, u = (torch.randn(n, dtype=torch.float64) for n in reversed(J.shape))
    assert torch.allclose(J @ v, K @ v, atol=1e-12)
    assert torch.allclose(J.T @ u, K.T @ u, atol=1e-12)
    assert torch.allclose(J.gram("right") @ v, K.gram("right") @ v, atol=1e-12)
    assert torch.allclose(torch.cat([block for _, block in J.rows()]) @ v, K @ v, atol=1e-12)
    assert joined(J) == (4 if join else 1)


def test_memory_and_the_parameters_limit_what_is_joined(monkeypatch):
    data, v = batches((3,) * 8), torch.randn(57, dtype=torch.float64)
    small = GaussNewton(network(), nn.CrossEntropyLoss(), data)
    expected = small @ v
    graph = 3 * small._graph_bytes  # of one batch
    assert (
        len(small._groups[0]) < 8 and 3 * len(small._groups[0]) * small._graph_bytes <= sum_over_batches.JOIN * 57 * 8
    )
    monkeypatch.setattr(sum_over_batches, "JOIN", 1e9)
    free = GaussNewton(network(), nn.CrossEntropyLoss(), data)
    assert torch.allclose(free @ v, expected, atol=1e-12) and joined(free) == 8
    two = GaussNewton(network(), nn.CrossEntropyLoss(), data, memory=int(2.5 * graph / sum_over_batches.JOIN_MEMORY))
    assert torch.allclose(two @ v, expected, atol=1e-12) and joined(two) == 2
    assert two.store.used <= two.store.budget


def test_batches_of_other_forms_are_not_joined():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()
    data = [(torch.randn(2, 1, length).double(), torch.tensor([0, 1])) for length in (5, 5, 7, 5)]
    A = GaussNewton(model, nn.CrossEntropyLoss(), data)
    v = torch.randn(A.shape[0], dtype=torch.float64)
    parts = [GaussNewton(model, nn.CrossEntropyLoss(), [batch]) @ v for batch in data]
    assert torch.allclose(A @ v, sum(parts) / 4, atol=1e-12)
    assert [len(group) for group in A._groups] == [2, 1, 1]


def test_losses_that_are_divided_within_a_batch_are_not_joined():
    def mean(output, batch):  # (mean, 1), not (sum, count): what a batch is, matters
        return nn.functional.cross_entropy(output, batch[1]), 1

    data = batches()
    A = Hessian(network(), mean, data)
    v = torch.randn(A.shape[0], dtype=torch.float64)
    expected = sum(Hessian(network(), nn.CrossEntropyLoss(), [batch]) @ v for batch in data) / len(data)
    assert torch.allclose(A @ v, expected, atol=1e-12)
    assert joined(A) == 1


class Centred(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class OfThree(nn.Linear):
    def forward(self, x):
        return super().forward(x.view(3, 5) * torch.ones(3, 1, dtype=x.dtype))


@pytest.mark.parametrize("layer", [Centred, OfThree])
def test_models_in_which_samples_meet_or_that_take_one_size_are_not_joined(layer):
    torch.manual_seed(0)
    model, data = layer(5, 3).double(), batches((3, 3, 3))
    A = GaussNewton(model, nn.CrossEntropyLoss(), data, preflight=False)
    v = torch.randn(A.shape[0], dtype=torch.float64)
    parts = [GaussNewton(model, nn.CrossEntropyLoss(), [batch], preflight=False) @ v for batch in data]
    assert torch.allclose(A @ v, sum(parts) / 3, atol=1e-12)
    assert joined(A) == 1


@pytest.mark.parametrize("names", [["nope"], [], "0.bias", ["0.bias", "1"]])
def test_names_that_are_no_parameters_restrict_nothing(names):
    """They were left out: of none a matrix of no columns came."""
    G = GaussNewton(network(), nn.CrossEntropyLoss(), batches())
    with pytest.raises(ValueError, match=r"restricted\(.*\) needs names of .*; those .* are 0.weight, 0.bias"):
        G.restricted(names)
    J = Jacobian(network(), batches(), wrt="inputs")
    with pytest.raises(ValueError, match=r"restricted\(.*\) needs names of .*; it has wrt='inputs'"):
        J.restricted(names)


def test_mappings_with_plain_values():
    class Model(nn.Linear):
        def forward(self, x, power):
            return super().forward(x**power)

    torch.manual_seed(0)
    model = Model(5, 3).double()
    data = [{"x": x, "labels": y, "power": power} for (x, y), power in zip(batches((2, 2, 2)), (2, 2, 3), strict=True)]
    A = GaussNewton(model, nn.CrossEntropyLoss(), data)
    v = torch.randn(A.shape[0], dtype=torch.float64)
    parts = [GaussNewton(model, nn.CrossEntropyLoss(), [batch]) @ v for batch in data]
    assert torch.allclose(A @ v, sum(parts) / 3, atol=1e-12)
    assert [len(group) for group in A._groups] == [2, 1]


def test_a_batch_that_is_not_finite_is_named_by_its_own_number():
    class Root(nn.Linear):
        def forward(self, x):
            return super().forward(x).abs().sqrt()

    torch.manual_seed(0)
    model = Root(5, 3, bias=False).double()
    data = [(x.clone(), y) for x, y in batches((3, 3, 3))]
    data[2][0][1] = 0.0
    J = Jacobian(model, data)
    with pytest.raises(ValueError, match="batch 2"):
        J @ torch.ones(J.shape[1], dtype=torch.float64)


@pytest.mark.parametrize("engine", ["auto", "fresh", "double-backward", "replay"])
@pytest.mark.parametrize("kind", [Hessian, GaussNewton, Jacobian])
@pytest.mark.parametrize("products", [1, 5])
def test_weights_that_were_moved_and_put_back_are_the_same_matrix(kind, engine, products, monkeypatch):
    """As a line search or sharpness-aware training does it between two products."""
    monkeypatch.setattr(sum_over_batches, "JOIN", 0)  # several batches, each with a graph that is kept
    model, data = network(), batches()
    given = () if kind is Jacobian else (nn.CrossEntropyLoss(),)
    A = kind(model, *given, [x for x, _ in data] if kind is Jacobian else data, engine=engine)
    v = torch.randn(A.shape[1], dtype=torch.float64)
    before = [A @ v for _ in range(products)][-1]
    with torch.no_grad():
        own = [p.clone() for p in model.parameters()]
        for p in model.parameters():
            p.add_(0.5)
        for p, value in zip(model.parameters(), own, strict=True):
            p.copy_(value)
    torch.testing.assert_close(A @ v, before, rtol=1e-12, atol=1e-13)
    assert "inplace" not in A.describe()["reason"]
