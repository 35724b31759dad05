"""Label energy against dense linear algebra, and the Krylov curve against the exact spectral measure."""

import numpy as np
import pytest
import torch

import spectral
from spectral.analysis import label_alignment
from spectral.analysis.alignment import gram_alignment, label_vector

N, C, P = 12, 3, 50
rng = np.random.default_rng(0)
J = rng.standard_normal((N * C, P)) * np.geomspace(1, 1e-2, P)
LABELS = rng.integers(0, C, N)


def dense_energy(J, y):
    U = np.linalg.svd(J, full_matrices=True)[0]
    return np.cumsum((U.T @ y) ** 2) / (y @ y)


def test_exact_curve_is_that_of_the_left_singular_vectors():
    fit = label_alignment(J, LABELS)
    onehot = np.eye(C)[LABELS]
    y = (onehot - onehot.mean(axis=0)).ravel()
    K = J @ J.T
    assert fit.curve.energy == pytest.approx(dense_energy(J, y), abs=1e-9)
    assert fit.curve.eigenvalue == pytest.approx(np.linalg.svd(J, compute_uv=False) ** 2)
    assert fit.kernel_target == pytest.approx(y @ K @ y / (y @ y * np.linalg.norm(K)))
    assert (fit.k, fit.method, fit.centred, fit.kernel_target_stderr) == (C, "exact", True, 0.0)
    assert fit.energy == fit.at(C) and fit.own_label == fit.at(50) == pytest.approx(1.0)


def test_a_label_that_is_a_singular_vector_is_found_where_it_lies():
    U = np.linalg.svd(J)[0]
    fit = label_alignment(J, U[:, 4], centred=False)
    assert fit.at(4) == pytest.approx(0, abs=1e-12) and fit.at(5) == pytest.approx(1)


def test_a_k_that_cuts_through_equal_eigenvalues_does_not_hang_on_rounding():
    Q, y = np.linalg.qr(rng.standard_normal((6, 6)))[0], np.array([1.0, 3.0, 0.0, 0.0, 2.0, 0.0])
    values = np.array([4.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    fit = gram_alignment(Q @ np.diag(values) @ Q.T, Q @ y, centred=False)
    assert fit.curve.energy == pytest.approx(np.array([1, 4, 7, 10, 12, 14]) / 14)  # 9 and 4 in spaces of three and two
    coarse = gram_alignment(np.diag([1.0, 1.0 - 1e-7]), [1.0, 0.0], centred=False, epsilon=2.0**-23)
    assert coarse.curve.energy == pytest.approx([0.5, 1.0])


def test_random_labels_have_energy_k_over_m():
    K = J @ J.T
    energy = np.mean(
        [gram_alignment(K, rng.standard_normal(N * C), centred=False).curve.energy for _ in range(400)], axis=0
    )
    assert energy == pytest.approx(np.arange(1, N * C + 1) / (N * C), abs=0.03)


def test_lanczos_curve_is_the_labels_spectral_measure():
    y = label_vector(LABELS, N * C)[0]
    exact, krylov = label_alignment(J, LABELS), label_alignment(J, LABELS, method="lanczos", steps=N * C)
    assert krylov.method == "lanczos" and krylov.products == 2 * (krylov.steps + 8)
    # energy above a threshold, between eigenvalues, agrees although k counts Ritz values
    values = exact.curve.eigenvalue
    for j in (2, 5, 10):
        cut = np.sqrt(values[j - 1] * values[j])
        above = krylov.curve.energy[np.sum(krylov.curve.eigenvalue > cut) - 1]
        assert above == pytest.approx(exact.curve.energy[j - 1], abs=1e-6)
    target = y @ (J @ (J.T @ y)) / (y @ y)
    assert krylov.kernel_target_stderr > 0
    assert abs(krylov.kernel_target - exact.kernel_target) < 4 * krylov.kernel_target_stderr
    assert np.sum(np.diff(krylov.curve.energy, prepend=0) * krylov.curve.eigenvalue) == pytest.approx(target)


def test_labels_are_laid_out_by_sample_then_class():
    assert label_vector([2, 0], 6, centred=False)[0].tolist() == [0, 0, 1, 1, 0, 0]
    assert label_vector(np.eye(3)[[2, 0]], 6, centred=False)[0].tolist() == [0, 0, 1, 1, 0, 0]
    assert label_vector(torch.tensor([1, 0]), 4)[0].tolist() == [-0.5, 0.5, 0.5, -0.5]
    assert label_vector([1.0, 2.0, 3.0], 3)[0].tolist() == [-1, 0, 1]


def test_centring_removes_the_class_frequencies():
    # a kernel that sees nothing but the outputs' means has all of the raw energy's constant part and none of the rest
    ones = np.kron(np.ones((N, 1)), np.eye(C))
    assert label_alignment(ones, LABELS).at(C) == pytest.approx(0, abs=1e-12)
    frequencies = np.bincount(LABELS, minlength=C) / N
    assert label_alignment(ones, LABELS, centred=False).at(C) == pytest.approx(np.sum(frequencies**2))


def test_jacobian_of_a_linear_model_aligns_with_linear_labels():
    torch.manual_seed(0)
    X = torch.randn(30, 4).double()
    y = (X[:, 0] > 0).long()
    model = torch.nn.Linear(4, 2).double()
    A = spectral.Jacobian(model, [X[:13], X[13:]])
    fit = label_alignment(A, y)
    # K = (XXᵀ + 1) ⊗ I: the 10 positive eigenvalues hold what a linear regression with a bias explains
    onehot = torch.nn.functional.one_hot(y, 2).double()
    onehot = onehot - onehot.mean(dim=0)
    design = torch.cat([X, torch.ones(30, 1).double()], dim=1)
    fitted = design @ torch.linalg.lstsq(design, onehot).solution
    assert fit.at(10) == pytest.approx(float((fitted**2).sum() / (onehot**2).sum()), abs=1e-9)
    assert fit.epochs >= 1


@pytest.mark.parametrize(
    ("y", "text"),
    [
        ([0, 1, 5] * 4, "integers from 0 to 2"),
        ([0.5] * 7, "has shape"),
        ([1] * N, "labels that differ"),
        ([0] * 5, "shape"),
    ],
)
def test_labels_that_do_not_fit_are_refused(y, text):
    with pytest.raises(ValueError, match=text):
        label_alignment(J, y)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="use an integer from 1 to 36"):
        label_alignment(J, LABELS, k=99)
    with pytest.raises(ValueError, match="use one of auto, exact, lanczos"):
        label_alignment(J, LABELS, method="fast")
