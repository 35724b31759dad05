"""exact: all eigenvalues, a Jacobian's Gram in one pass over the data."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import spectral
from spectral.estimators import assembled
from spectral.estimators.assembled import gram_matrix
from spectral.estimators.cost import cost

RNG = np.random.default_rng(2)


def symmetric(n):
    B = RNG.standard_normal((n, n))
    return B + B.T


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("kind", ["dense", "sparse", "products", "float32"])
def test_all_eigenvalues_are_those_of_numpy(n, kind):
    A = symmetric(n)
    operand = {
        "dense": A,
        "sparse": sp.csr_array(A),
        "products": spectral.as_operator(A) + 0.0 * spectral.as_operator(A),
        "float32": A.astype(np.float32),
    }[kind]
    s = spectral.exact(operand)
    expected = np.linalg.eigvalsh(A.astype(np.float32).astype(float) if kind == "float32" else A)
    assert s.is_exact and s.method == "exact"
    np.testing.assert_allclose(s.atoms.values, expected, atol=max(s.value_error, 1e-14))
    assert s.value_error <= (1e-5 if kind == "float32" else 1e-12) * s.scale
    json.dumps(spectral.storage.plain(s.meta))


def network(dtype=torch.float64, samples=9):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).to(dtype)
    x = torch.randn(samples, 5, dtype=dtype)
    return model, [x[:4], x[4:8], x[8:]]


@pytest.mark.parametrize(("wrt", "layout"), [("params", "stacked"), ("inputs", "stacked"), ("inputs", "flattened")])
@pytest.mark.parametrize("side", ["auto", "left", "right"])
def test_a_jacobians_gram_takes_one_pass_and_carries_its_zeros(wrt, layout, side):
    model, data = network()
    J = spectral.Jacobian(model, data, wrt=wrt, layout=layout)
    dense = np.asarray(J @ np.eye(J.shape[1]))
    gram = J.gram(side)
    before = J.epochs
    s = spectral.exact(gram)
    assert J.epochs - before <= 1 + 1e-9
    singular = np.linalg.svd(dense, compute_uv=False) ** 2
    assert s.dim == gram.shape[0]
    assert s.zeros == s.dim - min(J.shape)
    np.testing.assert_allclose(np.sort(s.atoms.values), np.sort(singular), atol=1e-10 * singular.max())
    assert s.products == 3  # one VJP for each of the three outputs
    assert s.count(-1e-6, 1e-12).value >= s.zeros


@pytest.mark.parametrize(("wrt", "layout"), [("params", "stacked"), ("inputs", "stacked"), ("inputs", "flattened")])
@pytest.mark.parametrize("share", [1.9, 1.3, 0.7])
def test_where_the_rows_of_a_jacobian_do_not_fit_they_are_held_in_parts(monkeypatch, wrt, layout, share):
    """Half of the free memory holds a share of the rows: the same matrix to rounding, in as many sweeps as the cost says."""
    model, data = network(samples=12)
    J = spectral.Jacobian(
        model, [batch[i : i + 1] for batch in data for i in range(len(batch))], wrt=wrt, layout=layout
    )
    gram = J.gram("left")
    whole = gram_matrix(J, "left")
    monkeypatch.setattr(spectral.arrays, "available_memory", lambda device: int(share * J.shape[0] * J.shape[1] * 8))
    expected = cost(gram)
    before = J.epochs, J.products
    assert torch.allclose(gram_matrix(J, "left"), whole, rtol=0, atol=1e-13 * float(whole.abs().max()))
    assert (J.epochs - before[0], J.products - before[1]) == (expected.epochs, expected.products)
    assert expected.epochs == {1.9: 2, 1.3: 2, 0.7: 4}[share]


def test_multiples_and_shifts_of_a_gram_take_one_pass_too_and_leave_matrices_alone():
    model, data = network()
    J = spectral.Jacobian(model, data)
    values = spectral.exact(J.gram()).atoms.values
    G, I = J.gram(), spectral.I
    made = [(2 * G, 2, 0), (G + 3 * I, 1, 3), (-(G - 3 * I) / 2, -0.5, 1.5), ((3 * J.T).gram(), 9, 0)]
    for A, factor, shift in [*made, ((2 * J).gram("left") + I, 4, 1)]:
        before = J.epochs
        s = spectral.exact(A)
        assert J.epochs - before == 1 and s.products == 3
        np.testing.assert_allclose(s.atoms.values, np.sort(factor * values + shift), atol=max(s.value_error, 1e-10))
    M = torch.diag(torch.tensor([1.0, 2.0]).double())
    assert spectral.exact(spectral.as_operator(M) + 5 * spectral.I).atoms.values.tolist() == [6.0, 7.0]
    assert M.diagonal().tolist() == [1.0, 2.0]
    near = spectral.exact(spectral.as_operator(M.float()) - 1 * spectral.I)  # the error is that of what was shifted
    assert near.value_error >= 2 * torch.finfo(torch.float32).eps


def test_a_rectangular_matrix_means_its_gram_on_the_smaller_side():
    B = RNG.standard_normal((4, 30))
    s = spectral.exact(B)
    assert (s.dim, s.zeros) == (4, 0)
    np.testing.assert_allclose(s.atoms.values, np.linalg.eigvalsh(B @ B.T), rtol=1e-10)


def test_what_is_not_symmetric_is_refused_and_a_black_box_is_tested_with_two_products():
    with pytest.raises(ValueError, match="not symmetric"):
        spectral.exact(RNG.standard_normal((6, 6)))
    A = symmetric(6)
    calls = []
    box = sp.linalg.LinearOperator((6, 6), matvec=lambda v: calls.append(1) or A @ v, dtype=np.float64)
    s = spectral.exact(box)
    assert s.products == 6 + 2 == len(calls)
    np.testing.assert_allclose(s.atoms.values, np.linalg.eigvalsh(A), atol=1e-10)
    with pytest.raises(ValueError, match="not symmetric"):
        spectral.exact(sp.linalg.LinearOperator((2, 2), matvec=lambda v: np.array([v[1], 0 * v[0]]), dtype=np.float64))


def test_a_matrix_that_does_not_fit_is_one_sentence(monkeypatch):
    monkeypatch.setattr(spectral.arrays, "available_memory", lambda device: 1000)
    with pytest.raises(ValueError, match=r"exact needs .* GiB for the 50 x 50 matrix") as error:
        spectral.exact(symmetric(50))
    assert "spectral.slq" in str(error.value)


def test_nan_in_the_data_is_one_sentence():
    model, data = network()
    data[1][0, 0] = float("nan")
    with pytest.raises(ValueError) as error:
        spectral.exact(spectral.Jacobian(model, data))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("struck", [KeyboardInterrupt, RuntimeError], ids=["a signal", "as if killed"])
def test_a_matrix_that_is_whole_is_not_assembled_again(tmp_path, monkeypatch, struck):
    """Interrupted in the eigenvalue routine: neither the rows of J nor the products are made again."""
    monkeypatch.setattr(spectral.estimators.checkpoint, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(spectral.estimators.checkpoint, "SHARE", 0.0)
    model, data = network()
    path, routine = tmp_path / "run.npz", torch.linalg.eigvalsh
    J = spectral.Jacobian(model, data)
    whole = spectral.exact(J)
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda matrix: (_ for _ in ()).throw(struck))
    with pytest.raises(struck):
        spectral.exact(J, checkpoint=path)
    monkeypatch.setattr(torch.linalg, "eigvalsh", routine)
    monkeypatch.setattr(spectral.Jacobian, "rows", lambda self: pytest.fail("assembled again"))
    for _ in range(2):
        resumed = spectral.exact(J, checkpoint=path)
        monkeypatch.setattr(torch.linalg, "eigvalsh", lambda matrix: pytest.fail("computed again"))
        np.testing.assert_array_equal(resumed.atoms.values, whole.atoms.values)
        for name in ("products", "epochs", "zeros", "dim", "value_error"):
            assert getattr(resumed, name) == getattr(whole, name)
        assert resumed.meta["assembled"] == whole.meta["assembled"]


def test_products_that_were_kept_are_gone_on_with_whatever_fits_into_memory_then(tmp_path, monkeypatch):
    """Without room for one batch's rows the Gram is multiplied; a later session with room goes on as the first began."""
    model, data = network()
    data = [torch.cat(data)]
    monkeypatch.setattr(assembled, "BLOCK", 3)
    J = spectral.Jacobian(model, data, engine="fresh")  # auto measures, and may go another way next time
    size = J.shape[0] * J.shape[1] * 8
    monkeypatch.setattr(spectral.arrays, "available_memory", lambda device: 2 * size - 1)
    whole = spectral.exact(J)
    assert whole.meta["assembled"] == "27 products"
    stopped, multiply = [], spectral.Jacobian._apply

    def until(self, V):
        stopped.append(1)
        if len(stopped) == 4:
            raise KeyboardInterrupt
        return multiply(self, V)

    monkeypatch.setattr(spectral.Jacobian, "_apply", until)
    with pytest.raises(KeyboardInterrupt):
        spectral.exact(J, checkpoint=tmp_path / "run.npz")
    monkeypatch.setattr(spectral.arrays, "available_memory", lambda device: 2**35)
    resumed = spectral.exact(J, checkpoint=tmp_path / "run.npz")
    assert len(stopped) == 9 + 2  # one product proves the checkpoint, the block that was cut off is multiplied again
    assert (resumed.products, resumed.epochs, resumed.meta["assembled"]) == (27, whole.epochs, "27 products")
    np.testing.assert_array_equal(resumed.atoms.values, whole.atoms.values)


@pytest.mark.parametrize("side", ["left", "right"])
def test_jacobian_in_statistics_of_the_batch_goes_by_products(side):
    """Rows of single samples are not defined there; the matrix is."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    J = spectral.Jacobian(model.double(), [torch.randn(6, 3).double() for _ in range(2)], statistics="batch")
    G = J.gram(side)
    spectrum, n = spectral.exact(G, progress=False), min(J.shape)
    assert spectrum.meta["assembled"] == f"{n} products"
    dense = J @ torch.eye(J.shape[1], dtype=torch.float64)
    expected = np.linalg.eigvalsh((dense @ dense.T if J.shape[0] == n else dense.T @ dense).numpy())
    np.testing.assert_allclose(np.sort(spectrum.atoms.values)[-n:], expected, atol=1e-12 * expected[-1])
    assert (
        spectral.esd(J, probes=1, steps=5, progress=False).method == "slq"
    )  # exact takes n / 5 times as many products


def test_entries_near_the_largest_number_have_their_eigenvalues_or_one_sentence():
    """(A + A^T) / 2 overflowed from half of it on, and LAPACK's error came through."""
    A = np.array([[1.2e308, 1e307], [1e307, 1e308]])
    np.testing.assert_allclose(spectral.exact(A).atoms.values, np.linalg.eigvalsh(A / 16) * 16, rtol=1e-14)
    with pytest.raises(ValueError, match=r"beyond 1\.8e\+308, the largest number of float64; multiply"):
        spectral.exact(np.full((3, 3), 1.7e308))
