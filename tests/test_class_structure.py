"""Papyan's levels: they add up to the Gauss-Newton matrix, each is what gradients say, class means carry the outliers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import spectral
from spectral.analysis.class_structure import LEVELS

CLASSES, FEATURES, N = 3, 3, 12


def problem(
    seed: int = 0, dtype: torch.dtype = torch.float64, spread: float = 0.3
) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network and a Gaussian mixture of unequal classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
    centres = torch.randn(CLASSES, FEATURES, generator=generator, dtype=torch.float64)
    x = centres[y] + spread * torch.randn(N, FEATURES, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES))
    return model.to(dtype), x.to(dtype), y


def batches(x: torch.Tensor, y: torch.Tensor, size: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def by_gradients(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, mass: torch.Tensor, count: float
) -> dict[str, np.ndarray]:
    """The levels by the paper: gradients of single samples for each label, their weighted means, sums over loops."""
    parameters = list(model.parameters())
    delta, weight = {}, {}
    for i in range(len(x)):
        for label in range(CLASSES):
            loss = nn.functional.cross_entropy(model(x[i : i + 1]), torch.tensor([label]))
            delta[i, label] = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]).numpy()
            weight[i, label] = float(mass[i] * model(x[i : i + 1]).detach().softmax(1)[0, label]) / count
    size = len(delta[0, 0])
    levels = {level: np.zeros((size, size)) for level in LEVELS}
    for i in range(len(x)):
        levels["same"] += weight[i, int(y[i])] * np.outer(delta[i, int(y[i])], delta[i, int(y[i])])
    for c in sorted(set(y.tolist())):
        mine, pairs, pair_weight = [i for i in range(len(x)) if y[i] == c], {}, {}
        for other in [label for label in range(CLASSES) if label != c]:
            pair_weight[other] = sum(weight[i, other] for i in mine)
            pairs[other] = sum(weight[i, other] * delta[i, other] for i in mine) / pair_weight[other]
            for i in mine:
                d = delta[i, other] - pairs[other]
                levels["within"] += weight[i, other] * np.outer(d, d)
        total = sum(pair_weight.values())
        mean = sum(pair_weight[other] * pairs[other] for other in pairs) / total
        levels["class"] += total * np.outer(mean, mean)
        for other in pairs:
            levels["cross"] += pair_weight[other] * np.outer(pairs[other] - mean, pairs[other] - mean)
    return levels


def dense(A: spectral.Operator) -> np.ndarray:
    return (A @ torch.eye(A.shape[1], dtype=A.dtype)).numpy()


def test_each_level_is_what_gradients_of_single_samples_say():
    model, x, y = problem()
    parts = spectral.class_structure(spectral.GaussNewton(model, nn.CrossEntropyLoss(), batches(x, y)))
    expected = by_gradients(model, x, y, torch.ones(N), N)
    for level in LEVELS:
        np.testing.assert_allclose(dense(parts.operator(level)), expected[level], atol=1e-14)
    np.testing.assert_allclose(
        dense(parts.without("class")), sum(expected[k] for k in LEVELS if k != "class"), atol=1e-14
    )


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 0.0]), ignore_index=1),
    ],
)
def test_the_levels_add_up_to_the_gauss_newton_matrix(loss):
    model, x, y = problem(1)
    G = spectral.GaussNewton(model, loss, batches(x, y))
    parts = spectral.class_structure(G)
    whole = dense(G)
    assert np.linalg.norm(whole) > 0.01
    np.testing.assert_allclose(sum(dense(parts.operator(level)) for level in LEVELS), whole, atol=1e-14)
    np.testing.assert_allclose(dense(parts.operator()), whole, atol=1e-14)
    assert all(np.linalg.eigvalsh(dense(parts.operator(level))).min() > -1e-14 for level in LEVELS)


def test_weights_count_in_each_level_as_in_the_loss():
    model, x, y = problem(2)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    parts = spectral.class_structure(spectral.GaussNewton(model, nn.CrossEntropyLoss(weight=weight), batches(x, y)))
    expected = by_gradients(model, x, y, weight[y], float(weight[y].sum()))
    for level in LEVELS:
        np.testing.assert_allclose(dense(parts.operator(level)), expected[level], atol=1e-14)


def test_float32_and_a_class_without_samples():
    model, x, y = problem(3, torch.float32)
    seen = y != 2
    G = spectral.GaussNewton(model, nn.CrossEntropyLoss(), batches(x[seen], y[seen]))
    parts = spectral.class_structure(G)
    np.testing.assert_allclose(dense(parts.operator()), dense(G), atol=1e-6)
    assert parts.class_means().dtype == torch.float32
    assert float(parts.class_means()[:, 2].abs().max()) == 0.0


def test_predicted_outliers_are_the_eigenvalues_of_the_class_level():
    model, x, y = problem(4)
    parts = spectral.class_structure(spectral.GaussNewton(model, nn.CrossEntropyLoss(), batches(x, y)))
    A = dense(parts.operator("class"))
    M = parts.class_means().numpy()
    np.testing.assert_allclose(M @ M.T, A, atol=1e-15)
    np.testing.assert_allclose(parts.predicted(), np.linalg.eigvalsh(A)[::-1][:CLASSES], atol=1e-15)


def test_knocking_out_the_class_means_of_a_trained_network_removes_its_outliers():
    """Two outliers of three classes, C - 1; before training the samples' own labels (p = 1/3) would carry them too."""
    model, x, y = problem(5, spread=0.6)
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    parts = spectral.class_structure(spectral.GaussNewton(model, nn.CrossEntropyLoss(), batches(x, y)))
    whole, without, neither = (
        np.linalg.eigvalsh(dense(parts.without(*levels)))[::-1] for levels in ((), ("class",), ("class", "cross"))
    )
    predicted = parts.predicted()
    assert whole[0] > 2 * without[0] > 2 * neither[0]
    assert np.all(predicted - 1e-14 <= whole[:CLASSES]) and whole[0] <= predicted[0] + without[0] + 1e-14  # Weyl


def test_spectra_of_levels_are_taken_as_of_any_operator():
    model, x, y = problem(6)
    parts = spectral.class_structure(spectral.GaussNewton(model, nn.CrossEntropyLoss(), batches(x, y)))
    found = spectral.top(parts.operator("class"), 2, tol=1e-10)
    np.testing.assert_allclose(found.values, parts.predicted()[:2], rtol=1e-9)
    assert parts.operator("class").identity() != parts.operator("cross").identity()


def test_what_has_no_classes_is_refused():
    model, x, y = problem()
    with pytest.raises(ValueError, match="has no classes"):
        spectral.class_structure(
            spectral.GaussNewton(model, nn.MSELoss(), [(x, nn.functional.one_hot(y, CLASSES).double())])
        )
    with pytest.raises(ValueError, match="not one class label for each sample"):
        soft = nn.functional.one_hot(y, CLASSES).double()
        spectral.class_structure(spectral.GaussNewton(model, nn.CrossEntropyLoss(), [(x, soft)]))
    G = spectral.GaussNewton(model, nn.CrossEntropyLoss(), batches(x, y))
    with pytest.raises(TypeError, match="is no Gauss-Newton matrix"):
        spectral.class_structure(spectral.Hessian(model, nn.CrossEntropyLoss(), batches(x, y)))
    parts = spectral.class_structure(G)
    with pytest.raises(ValueError, match="are no levels"):
        parts.operator("between")
    with pytest.raises(ValueError, match="cannot be taken out"):
        parts.without(*LEVELS)
