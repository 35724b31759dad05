"""The CUDA source of the recurrences: run on the processor and held to torch, compiled for cards that are not there."""

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import spectral
from spectral import arrays, longvectors
from spectral.krylov import kernels
from spectral.krylov.lanczos import lanczos

HOST = Path(__file__).with_name("host_kernels.cpp")
CARDS = ("sm_80", "sm_90", "sm_100")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
COMPILER = next((path for name in ("g++", "clang++") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The kernels as functions of the processor."""
    if COMPILER is None:
        pytest.skip("no C++ compiler (g++, clang++) is here")
    made = tmp_path_factory.mktemp("kernels") / "host.so"
    flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-pthread", f"-I{kernels.SOURCE.parent}"]
    done = subprocess.run([COMPILER, *flags, str(HOST), "-o", str(made)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


class OnHost(kernels.Fused):
    """`Fused` with the launch of the processor's build in place of cupy's."""

    def __init__(self, library):
        self.device, self.name, self.library, self.blocks, self.launched = torch.device("cpu"), "host", library, 3, []

    def _launch(self, name, vectors, numbers, sums):
        self.launched.append(name)
        partial = torch.full((self.blocks, sums), torch.nan, dtype=torch.float64)
        call = getattr(self.library, f"host_{name}_{arrays.dtype_name(vectors[0].dtype)}")
        call(
            ctypes.c_uint(self.blocks), *(ctypes.c_void_p(x.data_ptr()) for x in vectors), *map(ctypes.c_double, numbers),
            ctypes.c_ulonglong(len(vectors[0])), ctypes.c_void_p(partial.data_ptr()),
        )  # fmt: skip
        return partial.sum(0).tolist()


@pytest.fixture
def host(library, monkeypatch):
    """Recurrences take the processor's build, whatever their length."""
    made = OnHost(library)
    monkeypatch.setattr(arrays, "on_cuda", lambda device: True)
    monkeypatch.setattr(kernels, "LEAST", 1)
    monkeypatch.setattr(kernels, "_DEVICES", {torch.device("cpu"): made})
    return made


# The source, run on the processor ---------------------------------------------------------------------------------------
@DTYPES
@pytest.mark.parametrize("n", [1, 7, 4 * 96, 4 * 96 + 3, 5000])
@pytest.mark.parametrize("offset", [0, 1])
def test_each_pass_gives_what_torch_gives(library, dtype, n, offset):
    """`offset`: vectors that do not begin at 16 bytes are read entry by entry."""
    made = OnHost(library)
    x, y, w = (t[offset:] for t in torch.randn(3, n + offset, dtype=dtype, generator=torch.Generator().manual_seed(n)))
    x, y, w = (t.clone() if offset == 0 else t for t in (x, y, w))
    for run in (kernels._subtracted, kernels._shortened, kernels._three_term):
        found, vector = run(made, x, y, w)
        due, expected = run(kernels.PLAIN, x, y, w)
        assert torch.equal(vector, expected)  # rounded alike, to the bit
        torch.testing.assert_close(
            torch.tensor(found), torch.tensor(due), rtol=1e-12, atol=1e-12 * n, check_dtype=False
        )


def test_the_result_of_a_subtraction_may_take_the_memory_of_the_product(library):
    q_prev, q, w = torch.randn(3, 1001)
    expected = w - 0.5 * q_prev
    OnHost(library).lanczos_subtract(q_prev, q, w, w, 0.5)
    torch.testing.assert_close(w, expected)


def test_kernels_are_tried_before_they_are_used(library, monkeypatch):
    monkeypatch.setattr(kernels, "TRIED", 1003)
    made = OnHost(library)
    made.hold()
    monkeypatch.setattr(made, "lanczos_shorten", lambda q, w, alpha: 1.01 * kernels.PLAIN.lanczos_shorten(q, w, alpha))
    with pytest.raises(ValueError, match="lanczos_shorten differs from torch's operations by"):
        made.hold()


# Recurrences by them ----------------------------------------------------------------------------------------------------
def symmetric(n=60):
    M = torch.randn(n, n, dtype=torch.float64)
    return spectral.as_operator(M + M.T)


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"reorthogonalize": False, "deflate": False}, {"reorthogonalize": True}, {"reorthogonalize": "selective", "deflate": False},
])  # fmt: skip
def test_slq_by_fused_passes_is_slq(host, options, monkeypatch):
    A = symmetric()
    run = {"probes": 2, "steps": 12, "progress": False, **options}
    found = spectral.slq(A, **run)
    assert host.launched and found.meta["kernels"] == "host"
    monkeypatch.setattr(kernels, "LEAST", 1 << 40)
    due = spectral.slq(A, **run)
    for one, two in zip(found.records, due.records, strict=True):
        np.testing.assert_allclose(one.alphas, two.alphas, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(one.betas, two.betas, rtol=1e-9, atol=1e-9)


def test_kpm_by_fused_passes_is_kpm(host, monkeypatch):
    A = symmetric()
    found = spectral.kpm(A, probes=2, moments=20, recurrence="chebyshev", progress=False)
    assert "chebyshev" in host.launched
    monkeypatch.setattr(kernels, "LEAST", 1 << 40)
    due = spectral.kpm(A, probes=2, moments=20, recurrence="chebyshev", progress=False)
    np.testing.assert_allclose(found.meta["chebyshev_moments"], due.meta["chebyshev_moments"], atol=1e-10)


def test_a_wrong_product_is_seen_by_fused_passes_too(host):
    A = symmetric()
    plain, calls = A._apply, []

    def once(V):
        calls.append(1)
        return plain(V) + (0.1 if len(calls) == 5 else 0.0)

    A._apply = once
    with pytest.raises(RuntimeError, match="was wrong"):
        lanczos(A, torch.ones(60, dtype=torch.float64), 12, reorthogonalize=False)


def test_without_cupy_torch_does_it_and_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(arrays, "on_cuda", lambda device: True)
    monkeypatch.setattr(kernels, "LEAST", 1)
    monkeypatch.setattr(kernels, "_DEVICES", {})
    monkeypatch.setitem(sys.modules, "cupy", None)
    A = symmetric()
    found = spectral.slq(A, probes=1, steps=5, progress=False)
    assert found.meta["kernels"].startswith("torch, since import of cupy halted")
    assert kernels.fused(torch.ones(3, dtype=torch.bfloat16)) is None
    assert kernels.fused(torch.ones(4, 2)[:, 0]) is None  # with gaps


# Compiled for cards -----------------------------------------------------------------------------------------------------
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize(
    "card", [pytest.param(card, marks=pytest.mark.slow if card != "sm_90" else ()) for card in CARDS]
)
def test_nvcc_compiles_the_source_and_registers_suffice(tmp_path, card):
    command = [
        "nvcc",
        "-std=c++17",
        f"-arch={card}",
        "-cubin",
        "-Xptxas",
        "-v",
        "-o",
        str(tmp_path / "out"),
        str(kernels.SOURCE),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("Compiling entry function", done.stderr)) == 6
    assert max(map(int, re.findall(r"(\d+) bytes spill", done.stderr))) <= 16
    assert max(map(int, re.findall(r"Used (\d+) registers", done.stderr))) <= 64


@pytest.mark.parametrize("card", CARDS)
def test_nvrtc_compiles_the_source_without_a_card(card):
    """As cupy's RawModule does, by the same compiler and options."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("cupy is not installed")
    import cupy

    try:
        cupy.cuda.nvrtc.getVersion()
    except (RuntimeError, ImportError) as missing:
        pytest.skip(f"cupy finds no nvrtc: {missing}")
    program = cupy.cuda.nvrtc.createProgram(kernels.SOURCE.read_text(), "recurrences.cu", (), ())
    try:
        cupy.cuda.nvrtc.compileProgram(program, ("--std=c++17", f"-DTHREADS={kernels.THREADS}", f"-arch={card}"))
    except cupy.cuda.nvrtc.NVRTCError:
        pytest.fail(cupy.cuda.nvrtc.getProgramLog(program))
    for kernel in kernels.KERNELS:
        assert kernel.encode() in cupy.cuda.nvrtc.getCUBIN(program)


# On a card --------------------------------------------------------------------------------------------------------------
@pytest.mark.gpu
@DTYPES
def test_on_a_gpu_cupy_compiles_the_kernels_and_they_give_what_torch_gives(dtype):
    pytest.importorskip("cupy", reason="cupy is not installed")
    made = kernels.Fused(torch.device("cuda", 0))
    made.hold()
    n = kernels.LEAST + 5
    x, y, w = torch.randn(3, n, dtype=dtype, device="cuda")
    x, y, w = x.clone(), y.clone(), w.clone()
    assert kernels.fused(x, y, w) is not None, kernels.described(x.device)
    out = w.clone()
    first = made.lanczos_subtract(x, y, w, out, 0.3)
    assert first == made.lanczos_subtract(x, y, w, out, 0.3)  # the same bits each time
    assert first[0] == pytest.approx(longvectors.dot(x, w), rel=1e-9, abs=1e-9 * n)
    with torch.cuda.stream(torch.cuda.Stream()):
        again = made.lanczos_subtract(x, y, w, out, 0.3)
    assert again == first
