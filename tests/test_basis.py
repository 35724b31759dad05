"""Where a basis is kept: the same bits in host memory and in files, semi-orthogonality in bfloat16, and nothing left behind."""

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from resident import measured

import spectral
from spectral import longvectors
from spectral.krylov.basis import ROUNDED, Basis
from spectral.krylov.lanczos import Lanczos
from spectral.operators.operator import Operator

VALUES = np.append(np.linspace(0, 1, 3000), np.geomspace(2, 100, 20))


class Diagonal(Operator):
    def __init__(self, values, dtype=torch.float32):
        self.values = torch.as_tensor(values).to(dtype)
        super().__init__((len(values),) * 2, dtype, torch.device("cpu"), symmetric=True)

    def _apply(self, V):
        return self.values[:, None] * V

    def identity(self):
        return f"diagonal of {len(self.values)}"


def matrix(dtype=torch.float32):
    return Diagonal(VALUES, dtype)


def start(n, dtype=torch.float32):
    return torch.randn(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def place_of(where, folder):
    return str(folder) if where == "disk" else where


@pytest.mark.parametrize("where", ["host", "disk"])
@pytest.mark.parametrize("mode", [True, "selective"])
def test_other_memory_gives_the_same_bits(tmp_path, where, mode):
    options = {"probes": 2, "steps": 70, "reorthogonalize": mode, "progress": False}
    one = spectral.slq(matrix(), **options)
    two = spectral.slq(matrix(), basis=place_of(where, tmp_path), **options)
    for a, b in zip(one.records, two.records, strict=True):
        assert np.array_equal(a.alphas, b.alphas) and np.array_equal(a.betas, b.betas)
    assert np.array_equal(one.atoms.values, two.atoms.values) and len(one.atoms.values)
    assert two.meta["basis"] == place_of(where, tmp_path) and "basis" not in one.meta


def test_files_have_no_name_while_they_are_used(tmp_path):
    basis = Basis(torch.zeros(1000), 40, str(tmp_path))
    rows = torch.randn(40, 1000)
    for j, q in enumerate(rows):
        basis.keep(j, q)
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.stack([basis.row(j) for j in range(40)]), rows)


@pytest.mark.parametrize("where", ["device", "bf16", "host", "disk"])
def test_verbs_of_a_basis_are_those_of_its_matrix(tmp_path, monkeypatch, where):
    """Gram-Schmidt and combinations in float64, of the rows as they are kept; pieces that do not divide the length."""
    monkeypatch.setattr("spectral.krylov.basis.PIECE", 7000)
    Q = torch.linalg.qr(torch.randn(901, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0].T
    basis = Basis(torch.zeros(901), 40, place_of(where, tmp_path))
    basis.plain = basis.plain and where == "device"  # moved piece by piece, as to a device
    for j, q in enumerate(Q.float()):
        basis.keep(j, q)
    kept = torch.stack([basis.row(j) for j in range(40)]).double()
    assert float((kept - Q).norm(dim=1).max()) < (2**-9 if where == "bf16" else 1e-6)
    C = np.random.default_rng(0).standard_normal((3, 37))
    np.testing.assert_allclose(basis.combine(C), C @ kept[:37].numpy(), atol=1e-5)
    w = start(901)
    due = w.double()
    for _ in range(2):
        due = due - kept[:37].T @ (kept[:37] @ due)
    along = basis.orthogonalise(w, 37)
    np.testing.assert_allclose(along, kept[:37] @ start(901).double(), atol=1e-4)
    np.testing.assert_allclose(w, due, atol=1e-5)


def test_rows_in_bfloat16_keep_semi_orthogonality_and_the_eigenvalues():
    A = matrix()
    state, vectors = Lanczos(A, start(len(VALUES)), 120, place="bf16"), []
    vectors.append(state.q.clone())
    while state.step():
        vectors.append(state.q.clone())
    Q = torch.stack(vectors).double()
    loss = (Q @ Q.T - torch.eye(len(Q), dtype=torch.float64)).abs()
    assert float(loss.max()) < ROUNDED
    largest = float(loss.tril(-1).norm(dim=1).max())
    assert largest / 5 < state.orthogonality < 5 * largest  # as stated: a sum with random signs
    np.testing.assert_allclose(state.record().eigen[0][-20:], VALUES[-20:], atol=100 * largest)
    assert A.asymmetry == 0.0  # nothing was taken for a wrong product


def test_rows_in_bfloat16_cost_less_the_more_entries_vectors_live_on():
    """Of a rotated matrix: 2^-9 / sqrt(3 n) is lost, and no more of the eigenvalues."""
    n, values = 1500, np.append(np.linspace(0, 1, 1480), np.geomspace(2, 100, 20))
    O = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0)))[0]
    state = Lanczos(spectral.as_operator((O * torch.as_tensor(values).float()) @ O.T), start(n), 100, place="bf16")
    while state.step():
        pass
    assert state.orthogonality < 8 * 2**-9 / (3 * n) ** 0.5 * 10  # a sum of a hundred
    np.testing.assert_allclose(state.record().eigen[0][-20:], values[-20:], atol=100 * state.orthogonality)


def test_spectrum_by_rows_in_bfloat16_states_how_orthogonal_they_were():
    s = spectral.slq(matrix(), probes=3, steps=90, basis="bf16", progress=False)
    assert 1e-6 < s.meta["orthogonality"] < ROUNDED and s.epsilon == s.meta["orthogonality"]
    assert s.meta["basis"] == "bf16"
    count = s.count(1.5, 1000.0)
    assert count.lower <= 20 <= count.upper


@pytest.mark.parametrize("where", ["bf16", "host", "disk"])
@pytest.mark.parametrize("stop_at", [1, 40, 65])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, where, stop_at):
    class Stops(Diagonal):
        left = stop_at

        def _apply(self, V):
            self.left -= 1
            if self.left == -1:
                raise KeyboardInterrupt
            return super()._apply(V)

    (tmp_path / "disk").mkdir()
    options = {"probes": 2, "steps": 50, "basis": place_of(where, tmp_path / "disk"), "progress": False}
    A = Stops(np.geomspace(1e-3, 1, 500))
    A.left = 1000
    whole = spectral.slq(A, **options)
    with pytest.raises(KeyboardInterrupt):
        spectral.slq(Stops(np.geomspace(1e-3, 1, 500)), checkpoint=tmp_path / "run", **options)
    A.left = 1000
    again = spectral.slq(A, checkpoint=tmp_path / "run", **options)
    for a, b in zip(whole.records, again.records, strict=True):
        assert np.array_equal(a.alphas, b.alphas) and np.array_equal(a.betas, b.betas)


def test_what_is_no_place_is_said_before_anything_is_multiplied(tmp_path):
    A = matrix()
    for basis, kind, words in (
        ("bf61", ValueError, "no folder; use 'device', 'bf16', 'host' or the path"),
        (tmp_path / "missing", ValueError, "no folder"),
        (3, TypeError, "basis=3 is no place"),
    ):
        with pytest.raises(kind, match=words):
            spectral.slq(A, basis=basis)
    with pytest.raises(ValueError, match="basis='host' with reorthogonalize=False, which keeps none"):
        spectral.slq(A, basis="host", reorthogonalize=False)
    with pytest.raises(ValueError, match="leaves float64 vectors no more digits"):
        spectral.slq(matrix(torch.float64), basis="bf16")
    assert A.products == 0


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    def full(handle, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"no room for .* GiB more \(No space left on device\)"):
        spectral.slq(matrix(), steps=3, basis=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


RESUMES = """
import json, sys
import torch, spectral
from resident import peak
from spectral.operators.operator import Operator

n = 1 << 22
class Ramp(Operator):
    stop = 10**9
    def __init__(self):
        super().__init__((n, n), torch.float32, torch.device("cpu"), symmetric=True)
        self.d = torch.linspace(0, 1, n)
    def _apply(self, V):
        if self.products >= self.stop:
            raise KeyboardInterrupt
        return self.d[:, None] * V
    def identity(self):
        return "ramp"

folder, stop = sys.argv[1], int(sys.argv[2])
spectral.slq(torch.eye(100), probes=1, steps=3, progress=False)
A = Ramp()
base = peak(lambda: None)
def run():
    A.stop = stop
    try:
        spectral.slq(A, probes=1, steps=40, deflate=False, reorthogonalize=True, checkpoint=f"{folder}/run", progress=False)
    except KeyboardInterrupt:
        pass
print(json.dumps((peak(run) - base) / 4 / n))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_going_on_takes_no_more_than_a_tenth_beyond_what_the_run_takes(tmp_path):
    def vectors(folder, stop):
        folder.mkdir(exist_ok=True)
        return json.loads(measured(RESUMES, folder, stop, environment={"MALLOC_MMAP_THRESHOLD_": "131072"}))

    whole = vectors(tmp_path / "whole", 10**9)
    vectors(tmp_path / "parts", 35)
    assert Path(tmp_path / "parts" / "run.basis").stat().st_size >= 34 * 4 << 22
    assert vectors(tmp_path / "parts", 10**9) <= 1.1 * whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outside", [1.0, 1e-2, 1e-4])
def test_a_long_vector_is_orthogonal_to_a_basis_however_much_of_it_lies_there(dtype, outside):
    """One pass where half is left, two where little is: rounding of 1 / `outside` times the vector stays after one."""
    draws = torch.Generator().manual_seed(0)
    n, k, eps = longvectors.SHORT + 100, 40, torch.finfo(dtype).eps
    Q = torch.linalg.qr(torch.randn(n, k + 1, generator=draws, dtype=torch.float64))[0].T.contiguous()
    c = torch.randn(k, generator=draws, dtype=torch.float64)
    w = (outside * c.norm() * Q[k] + c @ Q[:k]).to(dtype)
    V = Q[:k].to(dtype)
    basis = Basis(V[0].clone(), k)
    for j, row in enumerate(V):
        basis.keep(j, row)
    one, two, three = w.clone(), w[None].clone(), w[None].clone()
    found = (
        basis.orthogonalise(one, k),
        longvectors.orthogonalise(two, V),
        longvectors.orthogonalise(three, V, recent=5),
    )
    for left, coefficients in zip((one, two[0], three[0]), (found[0], found[1][:, 0], found[2][:, 0]), strict=True):
        along = (V.double() @ left.double()).norm() / left.double().norm()
        assert along < 3 * k**0.5 * eps  # k dots, off by eps of a vector that is at most sqrt(5) times what is left
        np.testing.assert_allclose(np.asarray(coefficients), c, atol=20 * eps * float(c.norm()))
