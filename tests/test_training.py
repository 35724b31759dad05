"""Laws of training: the target is measured, never claimed; the seed decides; everything else is as before."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectral.experiments.datasets import digits, permute_labels
from spectral.experiments.models import cnn, mlp
from spectral.experiments.training import Trained, evaluate, train


@pytest.fixture(scope="module")
def problem():
    return digits(train=60, test=60, seed=0)


def test_the_target_is_reached_in_eval_mode_also_on_random_labels(problem):
    for y in (problem.y_train, permute_labels(problem.y_train, 1.0, seed=1).y):
        model = mlp(64, (32,), 10)
        record = train(model, problem.x_train, y, target_loss=5e-3, lr=3e-3, batch_size=20, progress=False)
        assert record.reached
        assert record.accuracy == 1.0
        with torch.no_grad():
            loss = float(F.cross_entropy(model(problem.x_train), y))
        assert loss == pytest.approx(record.loss, rel=1e-4)
        assert loss <= 5e-3
        assert record.history[-1][0] == record.epochs
        assert record.history[-2][2] > 5e-3  # and it stopped at the first epoch that reached it


def test_a_missed_target_is_said(problem):
    record = train(mlp(64), problem.x_train, problem.y_train, target_loss=1e-9, max_epochs=2, progress=False)
    assert not record.reached
    assert record.epochs == 2
    assert "DID NOT REACH" in record.sentence
    assert record.loss > 1e-9


def test_one_full_batch_epoch_is_one_step_of_adam(problem):
    model = mlp(64, (8,), 10)
    before = [p.detach().clone() for p in model.parameters()]
    gradients = torch.autograd.grad(F.cross_entropy(model(problem.x_train), problem.y_train), list(model.parameters()))
    train(model, problem.x_train, problem.y_train, batch_size=60, max_epochs=1, lr=0.01, progress=False)
    for p, p0, g in zip(model.parameters(), before, gradients, strict=True):
        # after one step the bias-corrected moments are g and g^2: the step is lr g / (|g| + eps), Kingma and Ba 2015
        torch.testing.assert_close(p.detach(), p0 - 0.01 * g / (g.abs() + 1e-8), rtol=1e-3, atol=1e-5)


def test_the_seed_decides_and_the_global_generator_stays_put(problem):
    def run(seed):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(torch.sin(torch.arange(p.numel()).reshape(p.shape) * (i + 1.0)) * 0.1)
        before = torch.get_rng_state()
        record = train(model, problem.x_train, problem.y_train, max_epochs=3, batch_size=16, seed=seed, progress=False)
        assert torch.equal(torch.get_rng_state(), before)
        return record.history

    torch.manual_seed(0)
    a = run(1)
    torch.manual_seed(99)
    assert run(1) == a
    assert run(2) != a


def test_modes_and_gradients_are_as_before(problem):
    x = problem.x_train.reshape(-1, 1, 8, 8)
    model = cnn(1, 10, 4, norm=True)
    model.train()
    model[1].eval()  # one frozen batch norm
    train(model, x, problem.y_train, max_epochs=1, batch_size=59, progress=False)  # 59 + 1: the last one joins
    assert model.training
    assert not model[1].training
    assert model[4].training
    assert all(p.grad is None for p in model.parameters())


def test_evaluation_is_in_eval_mode_and_blind_to_batches(problem):
    x = problem.x_train.reshape(-1, 1, 8, 8)
    model = cnn(1, 10, 4, norm=True)
    train(model, x, problem.y_train, max_epochs=2, progress=False)
    buffers = {k: v.clone() for k, v in model.state_dict().items()}
    whole, cut = evaluate(model, x, problem.y_train), evaluate(model, x, problem.y_train, batch_size=7)
    assert whole[0] == pytest.approx(cut[0], rel=1e-5)
    assert whole[1] == cut[1]
    assert all(torch.equal(v, buffers[k]) for k, v in model.state_dict().items())


def test_threads_are_one_for_a_small_model_and_restored(problem):
    before = torch.get_num_threads()
    seen = []
    watch = lambda epoch, loss: seen.append(torch.get_num_threads())  # noqa: E731
    try:
        torch.set_num_threads(2)
        train(mlp(64), problem.x_train, problem.y_train, max_epochs=1, progress=watch)
        assert seen == [1]
        train(mlp(64, (400, 400)), problem.x_train, problem.y_train, max_epochs=1, progress=watch)
        assert seen == [1, 2]
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="use a smaller lr"):
            train(mlp(64), problem.x_train, problem.y_train, lr=1e30, max_epochs=50, progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_progress_sees_every_epoch(problem, capsys):
    shown = []
    record = train(
        mlp(64),
        problem.x_train,
        problem.y_train,
        max_epochs=3,
        target_loss=1e-9,
        progress=lambda epoch, loss: shown.append((epoch, loss)),
    )
    assert shown == [(e, loss) for e, _, loss in record.history] and len(shown) == 3
    train(mlp(64), problem.x_train, problem.y_train, max_epochs=1)
    assert capsys.readouterr().err == ""  # not a terminal: quiet
    train(mlp(64), problem.x_train, problem.y_train, max_epochs=1, progress=True)
    assert "train: " in capsys.readouterr().err


def test_errors_are_one_sentence_each(problem):
    x, y = problem.x_train, problem.y_train
    with pytest.raises(ValueError, match="use a smaller lr"):
        train(mlp(64), x, y, lr=1e30, max_epochs=50, progress=False)
    with pytest.raises(ValueError, match="The inputs hold NaN"):
        train(mlp(64), x * math.nan, y, progress=False)
    with pytest.raises(ValueError, match="60 inputs and 59 labels"):
        train(mlp(64), x, y[:-1], progress=False)
    with pytest.raises(ValueError, match=r"^batch_size must be a whole number >= 1, got 0"):
        train(mlp(64), x, y, batch_size=0, progress=False)
    with pytest.raises(ValueError, match="no parameters"):
        train(nn.Flatten(), x, y, progress=False)


def test_a_record_survives_json(problem):
    record = train(mlp(64), problem.x_train, problem.y_train, max_epochs=2, progress=False)
    assert Trained.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_loss_and_accuracy_of_text_are_means_over_its_tokens():
    """Logits (n, C, T) against targets (n, T): what each token has by itself, however they are cut."""
    logits = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    y = logits.argmax(1)
    y[0] = (y[0] + 1) % 3
    loss, accuracy = evaluate(nn.Identity(), logits, y, batch_size=2)
    flat = logits.transpose(1, 2).reshape(20, 3).double()
    each = [float(torch.logsumexp(row, 0) - row[label]) for row, label in zip(flat, y.reshape(20), strict=True)]
    assert loss == pytest.approx(sum(each) / 20, rel=1e-6)
    assert accuracy == 16 / 20
