"""The closed form of cross entropy's Hessian is the double backward pass, and beside its result it holds a chunk."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectral import Fisher, GaussNewton
from spectral.engine import trace
from spectral.networks import output_curvature as outputs

C, B, T = 5, 4, 3
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


class Logits(nn.Module):
    """x (B, d) -> logits (B, C, T), or (B, C) without T."""

    def __init__(self, *shape):
        super().__init__()
        self.shape, self.layer = shape, nn.Linear(2, math.prod(shape))

    def forward(self, x):
        return self.layer(x).reshape(-1, *self.shape)


class Causal(nn.Module):
    """As Hugging Face's: tokens and labels to logits (B, T, C) and the mean cross entropy of shifted labels."""

    def __init__(self, classes=C, width=2, tied=False):
        super().__init__()
        self.embedding, self.head = nn.Embedding(classes, width), nn.Linear(width, classes, bias=not tied)
        self.mix = nn.Linear(width, width)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, input_ids, labels=None):
        logits = self.head(self.mix(self.embedding(input_ids)).tanh())
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"logits": logits, "loss": loss}


def cases():
    g = torch.Generator().manual_seed(0)
    weight = torch.tensor([0.0, 0.2, 1.0, 3.0, 0.5])  # a class that counts nothing
    hard = torch.randint(C, (B, T), generator=g)
    hard[0], hard[1, 1] = -100, -100
    soft = torch.rand(B, C, T, generator=g)  # sums that are not 1
    return {
        "one target a sample": (nn.CrossEntropyLoss(), hard[:, 2], (C,)),
        "ignored": (nn.CrossEntropyLoss(), hard, (C, T)),
        "another number ignored": (nn.CrossEntropyLoss(ignore_index=2), hard.clamp(min=0), (C, T)),
        "weights": (nn.CrossEntropyLoss(weight=weight), hard, (C, T)),
        "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.3), hard, (C, T)),
        "smoothing and weights": (nn.CrossEntropyLoss(weight=weight, label_smoothing=0.3), hard, (C, T)),
        "probabilities": (nn.CrossEntropyLoss(), soft, (C, T)),
        "probabilities, weights": (nn.CrossEntropyLoss(weight=weight, label_smoothing=0.3), soft, (C, T)),
        "images": (nn.CrossEntropyLoss(), hard.view(B, T, 1), (C, T, 1)),
    }


def both(A, batch, z, scale):
    """(closed form, double backward) of a matrix's own loss at any logits."""
    network = A.network
    output = {"logits": z} if network.loss.given is None else z
    with network.opened():
        plain = outputs.loss_hessian(network, output, batch, scale)
    return outputs.cross_entropy_hessian(network.loss, z, batch, scale), plain


def agree(A, batch, z, entries, monkeypatch):
    monkeypatch.setattr(outputs.longvectors, "CHUNK", entries)
    closed, plain = both(A, batch, z, 0.37)
    for _ in range(2):
        U = torch.randn_like(z).reshape(B, -1)
        given = U.clone()
        expected = plain(U)
        assert (closed(U) - expected).norm() <= TOLERANCE[z.dtype] * expected.norm() and expected.norm() > 0
        assert torch.equal(U, given)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("entries", [1, 11, 1 << 18])
@pytest.mark.parametrize("kind", cases())
def test_closed_form_is_the_double_backward_pass_of_torchs_loss(kind, entries, dtype, monkeypatch):
    loss, y, shape = cases()[kind]
    torch.manual_seed(0)
    batch = torch.randn(B, 2, dtype=dtype), y.to(dtype) if y.is_floating_point() else y
    A = GaussNewton(Logits(*shape).to(dtype), loss, [batch])
    agree(A, batch, 3 * torch.randn(B, *shape, dtype=dtype), entries, monkeypatch)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("entries", [1, 11, 1 << 18])
def test_closed_form_is_the_double_backward_pass_of_the_models_own_loss(entries, dtype, monkeypatch):
    torch.manual_seed(0)
    ids = torch.randint(C, (B, T))
    batch = {"input_ids": ids, "labels": ids.masked_fill(ids == 2, -100)}
    A = GaussNewton(Causal().to(dtype), None, [batch])
    agree(A, batch, 3 * torch.randn(B, T, C, dtype=dtype), entries, monkeypatch)


def test_subclasses_of_cross_entropy_are_differentiated():
    """Which may compute anything: here a quarter of the curvature."""

    class Cooled(nn.CrossEntropyLoss):
        def forward(self, z, y):
            return super().forward(z / 2, y)

    torch.manual_seed(0)
    x, y = torch.randn(B, 2, dtype=torch.float64), torch.randint(C, (B,))
    model = nn.Linear(2, C).double()
    half = nn.Linear(2, C).double()
    half.load_state_dict({name: value / 2 for name, value in model.state_dict().items()})
    v = torch.randn(3 * C, dtype=torch.float64)
    expected = GaussNewton(half, nn.CrossEntropyLoss(), [(x, y)]) @ v / 4
    assert torch.allclose(GaussNewton(model, Cooled(), [(x, y)]) @ v, expected, atol=1e-14)


def test_masked_classes_have_no_curvature():
    """Logits of -infinity, as where a vocabulary is padded."""
    z = torch.randn(B, C, dtype=torch.float64)
    z[:, 3:] = -torch.inf
    H = outputs.softmax_hessian(z, 1, torch.ones(B, dtype=torch.float64))
    U = torch.randn(B, C, dtype=torch.float64)
    expected = outputs.softmax_hessian(z[:, :3], 1, torch.ones(B, dtype=torch.float64))(U[:, :3])
    assert torch.allclose(H(U), F.pad(expected, (0, 2)), atol=1e-15)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 4, 7), (2, 300, 7), (0, 7)])
def test_chunks_hold_each_entry_once_and_no_more_than_they_may(shape, monkeypatch):
    monkeypatch.setattr(outputs.longvectors, "CHUNK", 40)
    x = torch.zeros(shape)
    for part in outputs.chunks(shape):
        x[part] += 1
        assert x[part].numel() <= 40
    assert (x == 1).all()


def peak(work):
    """Bytes that torch's allocator held at most beyond what was there, while `work` ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("axis", [1, 2])
def test_closed_form_holds_its_result_and_a_chunk(axis):
    z = torch.randn((4, 1000, 600) if axis == 1 else (4, 600, 1000)).contiguous()
    H, U = outputs.softmax_hessian(z, axis, torch.ones(4, 600)), torch.randn(4, 600_000)
    assert peak(lambda: H(U)) <= z.nbytes + 6 * 4 * outputs.longvectors.CHUNK


def test_recorded_closed_form_keeps_one_constant_of_its_size():
    z, U = torch.randn(4, 1000, 300), torch.randn(4 * 1000 * 300)
    H = outputs.softmax_hessian(z, 1, torch.rand(4, 300))
    program = trace.record(lambda u: (H(u.view(4, -1)),), U)
    assert program.bytes(set()) <= 1.01 * z.nbytes
    assert (program(U)[0] - H(U.view(4, -1))).norm() <= 1e-6 * H(U.view(4, -1)).norm()


def test_closed_form_rounds_no_more_than_the_double_backward_pass_on_a_large_vocabulary():
    """9e-6 each at V = 128 000: softmax adds in float32."""
    torch.manual_seed(0)
    batch = torch.randn(2, 2), torch.randint(128_000, (2,))
    A = GaussNewton(Logits(128_000), nn.CrossEntropyLoss(), [batch], preflight=False)
    z, U = 3 * torch.randn(2, 128_000), torch.randn(2, 128_000)
    exact = outputs.softmax_hessian(z.double(), 1, torch.ones(2).double())(U.double())
    closed, plain = ((H(U) - exact).norm() / exact.norm() for H in both(A, batch, z, 1.0))
    assert closed <= 1.1 * plain <= 1e-4


@pytest.mark.parametrize("make", [GaussNewton, Fisher])
def test_bfloat16_differs_by_its_rounding(make):
    torch.manual_seed(0)
    x, y = torch.randn(B, 2), torch.randint(C, (B,))
    model = nn.Linear(2, C)
    exact = make(model, nn.CrossEntropyLoss(), [(x, y)])
    rough = make(model, nn.CrossEntropyLoss(), [(x, y)], product_dtype=torch.bfloat16)
    v = torch.randn(3 * C)
    assert (rough @ v - exact @ v).norm() <= 0.02 * (exact @ v).norm()
