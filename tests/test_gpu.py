"""On a GPU everything is as on the processor: every operator and every estimator; no vector of a model's size leaves it.

Marked `gpu` are those that need a card (`make gpu`). The others run everywhere, on a card that is not there (`card.py`): all
recurrences and estimators, with a matrix for a model, since autograd asks for a real one.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from card import Card, card
from scenes import DTYPE, ESTIMATORS, data, network, operators, product
from torch import nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

import spectral
from spectral import arrays, longvectors, probes
from spectral.engine import autotune, capture
from spectral.krylov.lanczos import Lanczos, lanczos

N = 150  # whose multiples are the sizes of vectors; the sums of a checksum are 520

GPU = os.environ.get("SPECTRAL_TEST_GPU", "cuda")  # "cpu": are the tests themselves right?


def matrix(dtype=DTYPE):
    M = torch.randn(N, N, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    return (M @ M.T / N).to(dtype)


# A card that is not there ----------------------------------------------------------------------------------------------
def test_the_card_refuses_what_a_card_refuses_and_sees_what_leaves_it():
    with card() as moved:
        x = torch.ones(5).to("cuda:0")
        assert isinstance(x, Card) and x.device.type == "cuda" and moved == [("there", "aten._to_copy.default", 5)]
        with pytest.raises(RuntimeError, match="mixes devices"):
            x + torch.ones(5)
        with pytest.raises(TypeError, match=r"use \.cpu"):
            x.numpy()
        assert isinstance(x.new_zeros(3), Card) and float((2.0 * x).sum()) == 10
        assert x.cpu().tolist() == [1.0] * 5 and [way for way, _, _ in moved] == ["there", "back", "back"]
        assert float(torch.dot(x, x.add_(1))) == 20


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("top", "svd") else ()) for name in ESTIMATORS]
)
def test_no_vector_leaves_the_card(name, dtype=torch.float32):
    """Results that are vectors themselves (a diagonal, exact eigenvalues) leave once, what recurrences hold never."""
    run, results = ESTIMATORS[name], {"diagonal": 4, "exact": 4, "esd": 4, "logdet": 4}.get(name, 0)
    due = run(spectral.as_operator(matrix(dtype)))
    with card() as moved:
        found = run(spectral.as_operator(matrix(dtype).to("cuda:0")))
    np.testing.assert_allclose(
        found, due, rtol=1e3 * arrays.machine_epsilon(dtype), atol=1e3 * arrays.machine_epsilon(dtype)
    )
    long = [(operation, size) for way, operation, size in moved if way == "back" and size % N == 0]
    assert len(long) <= results, long


def resumed(run, A, folder, name):
    """Once to its end, and once more from its checkpoint."""
    for _ in range(2):
        found = run(A, checkpoint=folder / name, progress=False)
    return found


OTHERS = {  # (A, b, folder): what is no scene
    "solve": lambda A, b, folder: spectral.solve(A, b, shift=1.0).x.cpu(),
    "funm": lambda A, b, folder: spectral.funm(A, "sqrt", b).value.cpu(),
    "spectrum_of": lambda A, b, folder: spectral.spectrum_of(A, b).points()[0],
    "xtrace": lambda A, b, folder: spectral.trace(A, method="xtrace", probes=6, progress=False).value,
    "hutch++": lambda A, b, folder: spectral.trace(A, method="hutch++", probes=9, progress=False).value,
    "xdiag": lambda A, b, folder: spectral.diagonal(A, method="xdiag", probes=4, progress=False).value,
    "Laplace": lambda A, b, folder: spectral.low_rank_plus_diagonal(A, 2, tol=1e-3).solve(b, shift=5.0).cpu(),
    "alignment": lambda A, b, folder: spectral.label_alignment(A, np.arange(1.0, N), k=3, method="lanczos").energy,
    "exact again": lambda A, b, folder: resumed(spectral.exact, A, folder, "exact").points()[0],
    "diagonal again": lambda A, b, folder: (
        resumed(lambda A, **how: spectral.diagonal(A, method="exact", **how), A, folder, "diagonal").value
    ),
}


@pytest.mark.parametrize("name", [*ESTIMATORS, *OTHERS])
def test_a_card_without_float64_gives_the_same_numbers(name, tmp_path):
    """Apple's: every sum in float64 is taken on the processor."""
    M = matrix(torch.float32)[1:, 1:]
    b = torch.ones(N - 1)

    def run(device):
        A = spectral.as_operator(M.to(device))
        found = ESTIMATORS[name](A) if name in ESTIMATORS else OTHERS[name](A, b.to(device), tmp_path / device)
        return np.asarray(found)

    due = run("cpu")
    with card():
        np.testing.assert_allclose(run("mps"), due, rtol=1e-3, atol=1e-4)


def test_a_card_without_float64_refuses_products_in_float64(monkeypatch):
    monkeypatch.setattr(arrays, "has_float64", lambda device: False)
    with pytest.raises(ValueError, match=r"product_dtype=torch\.float64, but cpu has no float64; move the model"):
        spectral.Jacobian(nn.Linear(2, 1), [torch.ones(1, 2)], product_dtype=torch.float64)


@pytest.mark.parametrize("matrix", [spectral.GaussNewton, spectral.Hessian])
def test_where_there_is_no_float64_products_are_tested_in_their_own_dtype(matrix, monkeypatch):
    net, rows = network().float(), [(x.float(), y) for x, y in data()]
    due = product(matrix(net, nn.CrossEntropyLoss(), rows), "cpu")
    monkeypatch.setattr(arrays, "has_float64", lambda device: False)
    found = product(matrix(net, nn.CrossEntropyLoss(), rows), "cpu")
    torch.testing.assert_close(found, due)


@pytest.mark.parametrize(
    "how", ["narrow", *(pytest.param(how, marks=pytest.mark.slow) for how in ("", "all", "narrow all"))]
)
def test_networks_give_the_same_numbers_on_another_device(how):
    """On one that torch takes for real, in a process of its own."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch takes no backend that is written in Python")
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, tests / "device.py", *how.split()], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_step_waits_for_the_card_a_few_times():
    """Norms and coefficients decide what comes next; anything more would leave the card idle."""
    waits = {}
    for steps in (10, 20):
        with card() as moved:
            A = spectral.as_operator(matrix().to("cuda:0"))
            start = probes.probe(0, 0, N, dtype=DTYPE, device="cuda:0")
            lanczos(A, start, steps, reorthogonalize=False)
        waits[steps] = sum(way == "back" for way, _, _ in moved)
    assert waits[20] - waits[10] <= 4 * 10


def test_probes_are_the_same_numbers_on_the_card_and_come_in_pieces(monkeypatch):
    monkeypatch.setattr(probes, "PIECE", 30_000)
    with card() as moved:
        for kind in probes.KINDS:
            there = probes.probe(3, 1, 70_000, kind=kind, dtype=torch.float32, device="cuda:0")
            assert torch.equal(there.inside, probes.probe(3, 1, 70_000, kind=kind, dtype=torch.float32))
    assert max(size for _, _, size in moved) == 30_000


def test_long_vectors_are_multiplied_in_float64_on_a_card_where_float32_may_be_tf32(monkeypatch):
    """And in larger pieces: each is a launch there."""
    seen = []
    monkeypatch.setattr(longvectors, "CHUNK_ELSEWHERE", 64)
    V, W = torch.randn(4, 300), torch.randn(2, 300)
    due = longvectors.combination(np.ones((2, 4)), V), longvectors.orthogonalise(W.clone(), V[:2])

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default, torch.ops.aten.addmm.default):
                seen.extend(x.dtype for x in args if isinstance(x, torch.Tensor))
            return func(*args, **(kwargs or {}))

    with card():
        there, other = V.to("cuda:0"), W.to("cuda:0")
        with Watch():
            found = longvectors.combination(np.ones((2, 4)), there), longvectors.orthogonalise(other, there[:2])
            longvectors.rotate(there, np.eye(4))
        assert set(seen) == {torch.float64}
        for one, two in zip(found, due, strict=True):
            torch.testing.assert_close(one.inside, two)


def test_a_spectrum_says_what_of_the_model_is_in_tf32(monkeypatch):
    """Convolutions unless somebody has forbidden it, says torch."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    before = torch.backends.cudnn.allow_tf32
    try:
        for on, said in ((True, ["convolutions"]), (False, [])):
            torch.backends.cudnn.allow_tf32 = on
            assert arrays.tf32(torch.device("cuda", 0)) == said
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_memory_that_torch_has_cached_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert arrays.available_memory(torch.device("cuda", 0)) == 500


# A card ----------------------------------------------------------------------------------------------------------------
class Leaves(TorchDispatchMode):
    """Sizes of what is copied from the card."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_cuda and kwargs.get("device") == torch.device("cpu"):
            self.sizes.append(args[0].numel())
        if func is torch.ops.aten.copy_.default and args[1].is_cuda and not args[0].is_cuda:
            self.sizes.append(args[1].numel())
        return func(*args, **kwargs)


@pytest.fixture
def exact_convolutions(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", operators("cpu"))
def test_on_a_gpu_every_operator_is_that_of_the_processor(name, exact_convolutions):
    here, there = operators("cpu")[name](), operators(GPU)[name]()
    assert there.device.type == GPU
    torch.testing.assert_close(product(there, GPU).cpu(), product(here, "cpu"), rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["GaussNewton", "Hessian", "matrix"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_on_a_gpu_every_estimator_gives_what_it_gives_on_the_processor(name, estimator, exact_convolutions):
    if estimator == "logdet" and name != "GaussNewton":
        pytest.skip("indefinite")
    if name == "matrix" and estimator != "svd":
        pytest.skip("not symmetric")
    run = ESTIMATORS[estimator]
    found, due = run(operators(GPU)[name]()), run(operators("cpu")[name]())
    np.testing.assert_allclose(found, due, rtol=1e-6, atol=1e-6)


def by_engine(matrix, engine):
    """Products of a matrix of the network on the GPU, held to the processor's while ways take turns and programs begin."""
    net = network()
    v = probes.probe(0, 0, sum(p.numel() for p in net.parameters()), dtype=DTYPE)
    due = getattr(spectral, matrix)(net, nn.CrossEntropyLoss(), data()) @ v
    A = getattr(spectral, matrix)(copy.deepcopy(net).to(GPU), nn.CrossEntropyLoss(), data(), engine=engine)
    A.expect(100)
    for _ in range(8):
        torch.testing.assert_close((A @ v.to(GPU)).cpu(), due, rtol=1e-9, atol=1e-9)
    return A


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["fresh", "double-backward", "replay"])
@pytest.mark.parametrize("matrix", ["GaussNewton", "Hessian"])
def test_on_a_gpu_every_engine_multiplies(matrix, engine, exact_convolutions):
    by_engine(matrix, engine)


@pytest.mark.gpu
def test_on_a_gpu_probes_are_the_same_bits():
    for kind in probes.KINDS:
        there = probes.probe(3, 1, 200_000, kind=kind, dtype=torch.float32, device=GPU)
        assert torch.equal(there.cpu(), probes.probe(3, 1, 200_000, kind=kind, dtype=torch.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("estimator", ["slq", "slq without a basis", "kpm", "trace", "top"])
def test_on_a_gpu_no_vector_of_the_models_size_leaves_it(estimator):
    A = operators(GPU)["GaussNewton"]()
    ESTIMATORS[estimator](A)  # warm: fingerprints and tests have been made
    with Leaves() as leaves:
        ESTIMATORS[estimator](A)
    assert not [size for size in leaves.sizes if size >= A.shape[1]]


@pytest.mark.gpu
def test_on_a_gpu_a_basis_on_the_host_is_the_basis():
    if "basis" not in spectral.slq.__kwdefaults__:
        pytest.skip("slq has no basis=")
    run = {"probes": 2, "steps": 8, "progress": False}
    A = operators(GPU)["GaussNewton"]()
    due = spectral.slq(A, **run)
    found = spectral.slq(A, **run, basis="host")
    for one, two in zip(found.records, due.records, strict=True):
        np.testing.assert_allclose(one.alphas, two.alphas, rtol=1e-9, atol=1e-12)


@pytest.mark.gpu
def test_on_a_gpu_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch, exact_convolutions):
    run = {"probes": 2, "steps": 8, "progress": False}
    due = spectral.slq(operators(GPU)["GaussNewton"](), **run)
    step = Lanczos.step

    def interrupted(self):
        if self.steps == 5:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Lanczos, "step", interrupted)
        spectral.slq(operators(GPU)["GaussNewton"](), **run, checkpoint=tmp_path / "run")
    A = operators(GPU)["GaussNewton"]()
    found = spectral.slq(A, **run, checkpoint=tmp_path / "run")
    assert A.products < due.products  # some were made before
    np.testing.assert_allclose(found.points()[0], due.points()[0], rtol=1e-7, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_on_a_gpu_vectors_stay_orthogonal_whatever_float32_means_for_the_model(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        M = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
        pairs = spectral.top(spectral.as_operator((M @ M.T).to(GPU)), k=4, tol=1e-3, progress=False)
        V = pairs.vectors.T.contiguous()
        assert longvectors.orthonormal(V)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
def test_on_a_gpu_long_inner_products_are_those_of_float64():
    x, y = (probes.probe(0, i, 20_000_000, dtype=torch.float32, kind="uniform", device=GPU) for i in range(2))
    due = float((x.double() * y.double()).sum())
    assert longvectors.dot(x, y) == pytest.approx(due, rel=1e-12)
    assert longvectors.norm(x) ** 2 == pytest.approx(float(x.double().square().sum()), rel=1e-12)


@pytest.mark.gpu
def test_on_a_gpu_a_small_program_is_launched_as_one_graph(monkeypatch, exact_convolutions):
    """However long a launch takes on this card, and whether it gains or not."""
    monkeypatch.setattr(capture, "LAUNCH", 1e9)
    monkeypatch.setattr(autotune, "BETTER", 1e9)
    A = by_engine("GaussNewton", "replay")
    assert A.describe()["launch"] == "CUDA graph", A.describe()


@pytest.mark.gpu
def test_on_a_gpu_a_compiled_program_multiplies(exact_convolutions):
    """Last, since compiling takes long."""
    by_engine("GaussNewton", "compiled")
