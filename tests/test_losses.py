"""Sums over counts are torch's own mean on all data at once; each sample's loss is what the loss gives on it alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import CASES, dense_jacobian
from torch import nn
from torch.nn import functional as F

import spectral
from spectral.networks.batches import Samples
from spectral.networks.learned_loss import Loss
from spectral.networks.losses import unreduced
from spectral.networks.places import target_of


def per_sample_loss(loss, output, batch):
    return Loss(loss, Samples()).means(output, batch)


torch.manual_seed(0)
N, C = 7, 4
logits = torch.randn(N, C).double()
labels = torch.tensor([0, 1, 2, 3, 1, 1, 0])
weight = torch.tensor([0.3, 1.0, 2.0, 0.7]).double()
pixels, pixel_labels = torch.randn(N, C, 3).double(), torch.randint(C, (N, 3))
pixel_labels[2] = 1  # a sample in which ignore_index=1 counts nothing
values, bits = torch.randn(N, C).double(), torch.randint(2, (N, C)).double()

LOSSES = {
    "ce": (nn.CrossEntropyLoss(), logits, labels),
    "ce-ignore": (nn.CrossEntropyLoss(ignore_index=1), logits, labels),
    "ce-ignore-255": (nn.CrossEntropyLoss(ignore_index=255), logits, torch.where(labels == 1, 255, labels)),
    "ce-weight": (nn.CrossEntropyLoss(weight=weight), logits, labels),
    "ce-all": (nn.CrossEntropyLoss(weight=weight, ignore_index=1, label_smoothing=0.3), logits, labels),
    "ce-pixels": (nn.CrossEntropyLoss(weight=weight, ignore_index=1), pixels, pixel_labels),
    "ce-soft": (nn.CrossEntropyLoss(weight=weight), logits, values.softmax(1)),
    "nll": (nn.NLLLoss(weight=weight), logits.log_softmax(1), labels),
    "mse": (nn.MSELoss(), logits, values),
    "huber": (nn.HuberLoss(delta=0.5), logits, values),
    "bce": (nn.BCEWithLogitsLoss(pos_weight=weight), logits, bits),
    "bce-weight": (nn.BCEWithLogitsLoss(weight=weight), logits, bits),
}


def reduced(loss, reduction):
    loss.reduction = reduction
    return loss


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_sum_over_counts_is_the_mean_of_torch(name, reduction):
    loss, z, y = LOSSES[name]
    mean = reduced(loss, "mean")(z, y)
    terms, counts = unreduced(reduced(loss, reduction), z, y)
    assert torch.allclose(terms.sum() / counts.sum(), mean, rtol=1e-13, atol=0)
    assert loss.reduction == reduction


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_a_sample_is_that_of_a_batch_of_one(name):
    loss, z, y = LOSSES[name]
    reduced(loss, "mean")
    alone = torch.stack(
        [loss(z[i : i + 1], y[i : i + 1]) for i in range(N)]
    ).nan_to_num()  # torch: 0 / 0 if none counts
    assert torch.allclose(per_sample_loss(loss, z, (None, y)), alone, rtol=1e-13, atol=1e-15)
    assert torch.allclose(
        per_sample_loss(loss, SimpleNamespace(logits=z), {"labels": y}), alone, rtol=1e-13, atol=1e-15
    )
    assert torch.allclose(per_sample_loss(loss, {"logits": z}, {"labels": y}), alone, rtol=1e-13, atol=1e-15)


def test_callable_is_asked_sample_by_sample():
    def loss(output, batch):
        kept = batch["y"] != 1
        return F.cross_entropy(output.logits[kept], batch["y"][kept], reduction="sum"), kept.sum()

    got = per_sample_loss(loss, SimpleNamespace(logits=logits, name="x"), {"y": labels})
    assert torch.allclose(got, F.cross_entropy(logits, labels, reduction="none") * (labels != 1))


def test_uncounted_sample_has_a_zero_row():
    case = CASES["mlp"]
    model, batches = case.network(), case.batches()
    ignored = int(batches[0][1][0])
    J = spectral.Jacobian(model, batches, of="loss", loss=nn.CrossEntropyLoss(ignore_index=ignored))
    counted = torch.cat([y for _, y in batches]) != ignored
    D = dense_jacobian(model, batches, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"))
    assert torch.allclose(J @ torch.eye(31).double(), D * counted[:, None], atol=1e-14)


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_regression_jacobian_is_dense(kind):
    case = CASES["mlp"]
    model = case.network()
    x, y = case.data()[0], torch.rand(5, 3).double()
    loss = nn.MSELoss(reduction="sum") if kind == "mse" else nn.BCEWithLogitsLoss()
    mean = F.mse_loss if kind == "mse" else F.binary_cross_entropy_with_logits
    D = dense_jacobian(model, [(x, y)], lambda m, b: mean(m(b[0]), b[1]))
    for batches in ([(x, y)], [(x[:4], y[:4]), (x[4:], y[4:])]):
        assert torch.allclose(
            spectral.Jacobian(model, batches, of="loss", loss=loss) @ torch.eye(31).double(), D, atol=1e-14
        )


def test_targets_are_found_or_one_sentence():
    y = torch.ones(1)
    assert target_of((0, y)) is y and target_of({"x": 0, "y": y}) is y and target_of({"labels": y, "y": 0}) is y
    with pytest.raises(ValueError, match=r"no labels among the keys x, z; name them 'labels'"):
        target_of({"x": 0, "z": 1})
    for batch in (torch.ones(2, 2), (y,)):
        with pytest.raises(ValueError, match=r"the loss needs targets.*pass batches \(x, y\)"):
            target_of(batch)


@pytest.mark.parametrize("y", [[0, 1, 2, 0], ("a", "b", "c", "d"), 3, None, np.array(["a", "b", "c", "d"])])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss()])
def test_targets_that_are_no_tensor_are_refused_by_their_type(loss, y):
    """Of the second batch too."""
    good = torch.zeros(4, 3) if isinstance(loss, nn.MSELoss) else torch.arange(4) % 3
    data = [(torch.ones(4, 2), good), (torch.ones(4, 2), y)]
    with pytest.raises(ValueError, match=rf"in batch 1 they are of type {type(y).__name__}; make them a tensor"):
        spectral.GaussNewton(nn.Linear(2, 3), loss, data)


def test_targets_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"MSELoss would broadcast outputs \(4, 1\) against targets \(4,\)"):
        per_sample_loss(nn.MSELoss(), torch.ones(4, 1), (None, torch.ones(4)))


def test_real_targets_that_are_no_probabilities_are_refused_by_cross_entropy():
    model, x = nn.Linear(3, 2).double(), torch.ones(4, 3).double()
    y = torch.tensor([[0.2, 0.8]] * 4).double()
    assert spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, y)]).shape == (8, 8)
    with pytest.raises(ValueError, match=r"batch 1 has some below 0; use another loss, such as MSELoss"):
        spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, y), (x, y - 0.5)])
