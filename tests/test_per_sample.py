"""The exact diagonal by squares of single samples' gradients is that of products with the identity, in few products."""

import numpy as np
import pytest
import torch
from torch import nn

import spectral
from spectral import EmpiricalFisher, Fisher, GaussNewton, diagonal
from spectral.networks import per_sample

N, D = 6, 3


def network(outputs=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def cut(x, y, sizes=(3, 1, 2)):
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def inputs():
    torch.manual_seed(1)
    return torch.randn(N, D).double()


def by_products(A):
    return (A @ torch.eye(A.shape[0], dtype=A.dtype)).diagonal().numpy()


class Steps(nn.Module):
    """(B, C, T): classes for several targets of a sample."""

    def __init__(self):
        super().__init__()
        self.net = network(8)

    def forward(self, x):
        return self.net(x).reshape(len(x), 4, 2)


def coupled_outputs(output, batch):
    return (output - batch[1]).logsumexp(1).square().sum(), len(output)


LABELS = torch.tensor([0, 3, -100, 1, 1, 2])
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0]).double()
CASES = {
    "weights, smoothing, ignored": (network, nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1), LABELS),
    "probabilities": (network, nn.CrossEntropyLoss(), torch.rand(N, 4, generator=torch.manual_seed(2)).double()),
    "several targets": (Steps, nn.CrossEntropyLoss(ignore_index=2, reduction="sum"),
                        torch.randint(4, (N, 2), generator=torch.manual_seed(3))),
    "squared error": (network, nn.MSELoss(), torch.ones(N, 4).double()),
    "binary": (network, nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), torch.ones(N, 4).double()),
    "any other loss": (network, coupled_outputs, torch.ones(N, 4).double()),
}  # fmt: skip


@pytest.mark.parametrize(
    ("matrix", "case"),
    [
        *((GaussNewton, case) for case in CASES),
        (EmpiricalFisher, "several targets"),
        (EmpiricalFisher, "any other loss"),
    ],
)
def test_the_diagonal_by_samples_is_that_of_the_products(matrix, case):
    make, loss, y = CASES[case]
    A = matrix(make(), loss, cut(inputs(), y), engine="fresh")
    due = by_products(A)
    e = diagonal(A, method="exact")
    assert np.allclose(e.value, due, rtol=1e-10, atol=1e-13)
    assert (e.products, e.method) == (1, "exact") and not e.stderr.any() and A.describe()["single_samples"] == "vmap"


def test_so_are_multiples_shifts_and_the_whole_matrix():
    A = GaussNewton(network(), nn.MSELoss(), cut(inputs(), CASES["squared error"][2]), engine="fresh")
    whole = A @ torch.eye(A.shape[0]).double()
    assert torch.allclose(A.single_samples(whole=True), whole, atol=1e-13)
    e = diagonal(2 * A + 0.5 * spectral.I, method="exact")
    assert np.allclose(e.value, 2 * whole.diagonal() + 0.5) and e.products == 1


@pytest.mark.parametrize("draws", [None, 2])
@pytest.mark.parametrize("case", ["several targets", "binary"])
def test_fisher_has_its_own_output_curvature(case, draws):
    make, loss, y = CASES[case]
    loss = nn.BCEWithLogitsLoss() if case == "binary" else loss
    F = Fisher(make(), loss, cut(inputs(), y), draws=draws, seed=3, engine="fresh")
    assert np.allclose(diagonal(F, method="exact").value, by_products(F), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("layout", ["block-diagonal", "summed"])
@pytest.mark.parametrize("wrt", ["inputs", "module:0"])
def test_so_is_that_of_inputs_and_activations(wrt, layout):
    matrix = GaussNewton if layout == "summed" else EmpiricalFisher
    A = matrix(network(), nn.CrossEntropyLoss(), cut(inputs(), LABELS), wrt=wrt, layout=layout, engine="fresh")
    assert np.allclose(diagonal(A, method="exact").value, by_products(A), rtol=1e-10, atol=1e-14)


def test_a_few_passes_stand_for_all_products():
    calls = []
    model = network()
    A = EmpiricalFisher(model, nn.CrossEntropyLoss(), [(inputs(), LABELS)])
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    diagonal(A, method="exact")
    handle.remove()
    assert A.products == 1 and A.epochs == 3 and len(calls) < A.shape[0] / 2


class Branch(nn.Module):
    """Reads a number, which vmap cannot."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x) if x.sum().item() > -1e9 else x


def test_where_vmap_fails_samples_go_one_by_one_and_the_operator_says_so():
    A = GaussNewton(Branch(), nn.CrossEntropyLoss(), cut(inputs(), LABELS), engine="fresh")
    assert np.allclose(diagonal(A, method="exact").value, by_products(A), rtol=1e-10, atol=1e-14)
    told = A.describe()["single_samples"]
    assert told.startswith("one by one: ") and "item" in told


@pytest.mark.parametrize("room", [1, 8 * 56 * 9])
def test_however_little_memory_there_is(room, monkeypatch):
    monkeypatch.setattr(per_sample, "ROOM", room)
    A = GaussNewton(Steps(), *(CASES["several targets"][1], cut(inputs(), CASES["several targets"][2])), engine="fresh")
    assert np.allclose(diagonal(A, method="exact").value, by_products(A), rtol=1e-10, atol=1e-13)


def test_in_float32_and_with_changed_weights():
    model = network().float()
    A = GaussNewton(model, nn.CrossEntropyLoss(), [(inputs().float(), LABELS)], engine="fresh")
    for _ in range(2):
        assert np.allclose(diagonal(A, method="exact").value, by_products(A), rtol=1e-4, atol=1e-7)
        with torch.no_grad():
            model[0].weight.mul_(2)


def test_where_samples_meet_products_are_made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    y = LABELS.clamp(0, 1)
    A = GaussNewton(model, nn.CrossEntropyLoss(), [(inputs(), y)], statistics="batch", engine="fresh")
    e = diagonal(A, method="exact")
    assert e.products == A.shape[0] and np.allclose(e.value, by_products(A), rtol=1e-10, atol=1e-14)


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x - x.mean(0))


def test_samples_that_meet_unseen_are_caught_by_the_product():
    A = GaussNewton(Mean(), nn.CrossEntropyLoss(), [(inputs(), LABELS)], preflight=False)
    with pytest.raises(ValueError, match=r"by single samples and .* by a product: the samples of a batch meet"):
        diagonal(A, method="exact")


def test_a_finished_diagonal_is_read_from_its_checkpoint_and_proved(tmp_path):
    def make(scale=1.0):
        model = network()
        return GaussNewton(model, nn.CrossEntropyLoss(), [(inputs(), LABELS)], forward=lambda m, b: scale * m(b[0]))

    file = tmp_path / "d.npz"
    one = diagonal(make(), method="exact", checkpoint=file)
    A = make()
    sweeps = A.epochs
    two = diagonal(A, method="exact", checkpoint=file)
    assert np.array_equal(one.value, two.value) and A.epochs == sweeps + 1
    with pytest.raises(ValueError, match="another operator"):
        diagonal(make(2.0), method="exact", checkpoint=file)
