"""exact: all eigenvalues, a Jacobian's Gram in one pass over the data."""

import importlib
import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import spectral

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
    monkeypatch.setattr(spectral.estimators.kept, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(spectral.estimators.kept, "SHARE", 0.0)
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
    """Without room for the rows of J the Gram is multiplied; a later session with room goes on as the first began."""
    model, data = network()
    exact_module = importlib.import_module("spectral.estimators.exact")
    monkeypatch.setattr(exact_module, "BLOCK", 4)
    J = spectral.Jacobian(model, data)
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
    assert len(stopped) == 7 + 1  # the block that was cut off is multiplied again
    assert (resumed.products, resumed.epochs, resumed.meta["assembled"]) == (27, whole.epochs, "27 products")
    np.testing.assert_array_equal(resumed.atoms.values, whole.atoms.values)
