"""The CUDA sources: run on the processor and held to torch and numpy, compiled for cards that are not there."""

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
from spectral import arrays, longvectors, probes
from spectral.krylov.kernels import draws
from spectral.krylov.kernels import recurrences as kernels
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
    flags = [
        "-std=c++20",
        "-O2",
        "-ffp-contract=off",
        "-shared",
        "-fPIC",
        "-pthread",
        f"-I{kernels.Fused.source.parent}",
    ]
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
    monkeypatch.setattr(kernels.Fused, "known", {torch.device("cpu"): made})
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
    for run in kernels.KERNELS.values():
        found, vector = run(made, x, y, w)
        due, expected = run(kernels.PLAIN, x, y, w)
        assert torch.equal(vector, expected)  # rounded alike, to the bit
        torch.testing.assert_close(
            torch.tensor(found), torch.tensor(due), rtol=1e-12, atol=1e-12 * n, check_dtype=False
        )


class DrawsOnHost(draws.Draws):
    """`Draws` with the launch of the processor's build in place of cupy's."""

    def __init__(self, library):
        self.device, self.name, self.library = torch.device("cpu"), "host", library
        self.strips = [torch.from_numpy(table) for table in draws.strips()]

    def _launch(self, name, blocks, values, numbers):
        pointers = [ctypes.c_void_p(table.data_ptr()) for table in self.strips]
        call = getattr(self.library, f"host_{name}")
        call(ctypes.c_uint(blocks), ctypes.c_void_p(values.data_ptr()), *map(ctypes.c_ulonglong, numbers), *pointers)


@DTYPES
@pytest.mark.parametrize("kind", probes.KINDS)
@pytest.mark.parametrize("start, n", [(0, 3 * draws.SEGMENT + 5), (draws.SEGMENT - 3, 7), (70_001, 1)])
def test_the_kernel_draws_the_numbers_of_numpy(library, kind, dtype, start, n):
    """To the bit, but for the tail's logarithms: of 200 000 Gaussian entries 50 lie there."""
    values = torch.full((n,), torch.nan, dtype=dtype)
    DrawsOnHost(library).fill(values, 11, 2**40, start, kind)
    due = probes.probe(11, 2**40, n, start=start, kind=kind, dtype=dtype)
    torch.testing.assert_close(values, due, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
    assert torch.equal(values[due.abs() < 3.65], due[due.abs() < 3.65])


def test_long_probes_are_drawn_where_they_are_needed_and_kernels_that_differ_are_not_used(library, monkeypatch):
    due = probes.probe(1, 2, 100_000)
    monkeypatch.setattr(arrays, "on_cuda", lambda device: True)
    monkeypatch.setattr(draws, "LEAST", 1000)
    assert draws.of(torch.empty(999)) is None
    monkeypatch.setattr(draws.Draws, "known", {})
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert draws.of(torch.empty(1000)) is None
    assert "cupy" in draws.Draws.described(torch.device("cpu"))
    made = DrawsOnHost(library)
    made.hold()
    monkeypatch.setattr(draws.Draws, "known", {torch.device("cpu"): made})
    there = draws.of(values := torch.empty(100_000, dtype=torch.float64))
    there.fill(values, 1, 2, 0, "gaussian")
    assert torch.equal(values, due)
    made.strips[1] = made.strips[1] * (1 + 1e-12)
    with pytest.raises(ValueError, match=r"gaussian probes differ from numpy's by"):
        made.hold()


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
    monkeypatch.setattr(kernels.Fused, "known", {})
    monkeypatch.setitem(sys.modules, "cupy", None)
    A = symmetric()
    found = spectral.slq(A, probes=1, steps=5, progress=False)
    assert found.meta["kernels"].startswith("torch, since import of cupy halted")
    assert kernels.fused(torch.ones(3, dtype=torch.bfloat16)) is None
    assert kernels.fused(torch.ones(4, 2)[:, 0]) is None  # with gaps


# Compiled for cards -----------------------------------------------------------------------------------------------------
SOURCES = pytest.mark.parametrize("made", [kernels.Fused, draws.Draws])


@SOURCES
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize(
    "card", [pytest.param(card, marks=pytest.mark.slow if card != "sm_90" else ()) for card in CARDS]
)
def test_nvcc_compiles_the_source_and_registers_suffice(tmp_path, card, made):
    options = ["-std=c++17", f"-arch={card}", "-cubin", "-Xptxas", "-v", "-o", str(tmp_path / "out"), *made.options]
    done = subprocess.run(["nvcc", *options, str(made.source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("Compiling entry function", done.stderr)) == 6
    assert max(map(int, re.findall(r"(\d+) bytes spill", done.stderr))) <= 16
    assert max(map(int, re.findall(r"Used (\d+) registers", done.stderr))) <= 64


@SOURCES
@pytest.mark.parametrize("card", CARDS)
def test_nvrtc_compiles_the_source_without_a_card(card, made):
    """As cupy's RawModule does, by the same compiler and options."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("cupy is not installed")
    import cupy

    try:
        cupy.cuda.nvrtc.getVersion()
    except (RuntimeError, ImportError) as missing:
        pytest.skip(f"cupy finds no nvrtc: {missing}")
    program = cupy.cuda.nvrtc.createProgram(made.source.read_text(), made.source.name, (), ())
    try:
        cupy.cuda.nvrtc.compileProgram(program, ("--std=c++17", f"-arch={card}", *made.options))
    except cupy.cuda.nvrtc.NVRTCError:
        pytest.fail(cupy.cuda.nvrtc.getProgramLog(program))
    for kernel in kernels.KERNELS if made is kernels.Fused else draws.KINDS:
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
    assert kernels.fused(x, y, w) is not None, kernels.Fused.described(x.device)
    out = w.clone()
    first = made.lanczos_subtract(x, y, w, out, 0.3)
    assert first == made.lanczos_subtract(x, y, w, out, 0.3)  # the same bits each time
    assert first[0] == pytest.approx(longvectors.dot(x, w), rel=1e-9, abs=1e-9 * n)
    with torch.cuda.stream(torch.cuda.Stream()):
        again = made.lanczos_subtract(x, y, w, out, 0.3)
    assert again == first


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("kind", probes.KINDS)
def test_on_a_gpu_probes_are_those_of_the_processor(kind, dtype, monkeypatch):
    pytest.importorskip("cupy", reason="cupy is not installed")
    monkeypatch.setattr(draws, "LEAST", 1)
    n = 2_000_003
    found = probes.probe(5, 6, n, start=70_000, kind=kind, dtype=dtype, device="cuda")
    assert draws.of(found) is not None, draws.Draws.described(found.device)
    due = probes.probe(5, 6, n, start=70_000, kind=kind, dtype=dtype)
    torch.testing.assert_close(found.cpu(), due, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
