"""Batches that are multiplied some samples at a time: the same matrix, with the activations of fewer samples."""

import pytest
import torch
from torch import nn

import spectral
from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian

LOSS = nn.CrossEntropyLoss(label_smoothing=0.1)
MATRICES = {
    "J": lambda model, data, **o: Jacobian(model, data, **o),
    "J of inputs": lambda model, data, **o: Jacobian(model, data, wrt="inputs", layout="flattened", **o),
    "Hessian": lambda model, data, **o: Hessian(model, LOSS, data, **o),
    "GaussNewton": lambda model, data, **o: GaussNewton(model, LOSS, data, **o),
    "Fisher": lambda model, data, **o: Fisher(model, nn.CrossEntropyLoss(), data, draws=2, **o),
    "EmpiricalFisher": lambda model, data, **o: EmpiricalFisher(model, LOSS, data, **o),
}


SIZES: list[int] = []


class Watched(nn.Sequential):
    """Notes how many samples it is given at a time."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.double()

    def forward(self, x):
        SIZES.append(len(x))  # what a model keeps itself is put back after a sweep
        return super().forward(x)


def dense(A):
    return A @ torch.eye(A.shape[1], dtype=A.dtype)


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 5, generator=generator, dtype=torch.float64), torch.randint(3, (n,), generator=generator))
        for n in (7, 4, 7)
    ]


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("name", MATRICES)
def test_it_is_the_same_matrix_by_fewer_samples_at_a_time(name, chunk):
    model, data = Watched(), batches()
    whole, A = MATRICES[name](model, data), MATRICES[name](model, data, chunk=chunk)
    v = torch.randn(A.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    due = whole @ v
    SIZES.clear()
    for _ in range(3):
        torch.testing.assert_close(A @ v, due, rtol=1e-10, atol=1e-12)
    assert max(SIZES, default=0) <= chunk
    u = torch.randn(A.shape[0], dtype=torch.float64)
    torch.testing.assert_close(A.T @ u, whole.T @ u, rtol=1e-10, atol=1e-12)
    assert A.identity() == whole.identity()  # so that a checkpoint goes on with another chunk
    assert A.describe()["batches"] == 3 and A.describe()["chunk"] == chunk and "chunk" not in whole.describe()


def test_rows_and_samples_stand_where_they_did():
    model, data = Watched(), batches()
    whole, J = Jacobian(model, data), Jacobian(model, data, chunk=2)
    torch.testing.assert_close(dense(J), dense(whole))
    torch.testing.assert_close(J.squared_norms(), whole.squared_norms())
    assert J.samples == 18


def test_fields_of_a_mapping_are_cut_and_what_is_shared_is_not():
    class Weighted(nn.Linear):
        def forward(self, x, scale):
            return super().forward(x) * scale

    torch.manual_seed(0)
    model = Weighted(3, 2).double()
    x, scale = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 1, dtype=torch.float64)
    whole, J = (
        Jacobian(model, [{"x": x, "scale": scale}], forward=lambda m, b: m(b["x"], b["scale"]), chunk=c)
        for c in (None, 2)
    )
    torch.testing.assert_close(dense(J), dense(whole))
    prior = torch.ones(2, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"chunk=2 cannot cut a batch of 3 samples some entries of which are not one a sample"
    ):
        Jacobian(model, [{"x": x, "scale": scale, "prior": prior}], forward=lambda m, b: m(b["x"], b["scale"]), chunk=2)


def test_samples_that_meet_are_not_cut_apart():
    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    data = batches()
    with pytest.raises(ValueError, match=r"chunk=2 cuts batches, but the samples of a batch meet"):
        Jacobian(Centred(5, 3).double(), data, chunk=2)

    def of_the_batch(output, batch):
        return nn.functional.cross_entropy(output, batch[1]) + output.mean(0).square().sum()

    with pytest.raises(ValueError, match=r"meet"):
        Hessian(Watched(), of_the_batch, data, chunk=2)
    norm = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    with pytest.raises(ValueError, match=r"statistics='batch' is of whole ones"):
        GaussNewton(norm, LOSS, data, chunk=2, statistics="batch")
    for chunk in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match=r"is no number of samples"):
            Jacobian(Watched(), data, chunk=chunk)


@pytest.mark.parametrize("name", MATRICES)
def test_a_batch_that_does_not_fit_is_cut_by_itself_and_the_result_says_so(name, monkeypatch):
    model, data = Watched(), batches()
    whole = MATRICES[name](model, data)
    assert "chunk" not in whole.describe()
    monkeypatch.setattr(spectral.arrays, "available_memory", lambda device: 8 * 5 * max(whole.shape) + 3000)
    A = MATRICES[name](model, data)
    assert 1 <= A.describe()["chunk"] < 7 and A.identity() == whole.identity()
    v = torch.randn(A.shape[1], dtype=torch.float64)
    SIZES.clear()
    torch.testing.assert_close(A @ v, whole @ v, rtol=1e-10, atol=1e-12)
    assert min(SIZES) <= A.describe()["chunk"]


def test_what_cannot_be_cut_is_left_whole(monkeypatch):
    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    monkeypatch.setattr(spectral.arrays, "available_memory", lambda device: 1000)
    model = Centred(5, 3).double()
    A = GaussNewton(model, LOSS, batches(), preflight=False)
    assert "chunk" not in A.describe()
