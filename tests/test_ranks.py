"""Ranks decide as one and end as one: gloo processes that see other memory, clocks, weights and data than one another."""

import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from oracles import CASES
from torch.overrides import TorchFunctionMode

import spectral
from spectral import arrays, distributed, heartbeat
from spectral.estimators import budget
from spectral.estimators.cost import cost
from spectral.estimators.stopping import Tolerance
from spectral.krylov.lanczos import Lanczos

CASE = CASES["mlp"]
SIZES = (2, 2, 1, 3)
LOSS = torch.nn.CrossEntropyLoss()
COLLECTIVES = ("all_reduce", "all_gather", "broadcast")
VECTOR = 8 * sum(p.numel() for p in CASE.network().parameters())
BASIS = 4 * VECTOR * 10  # free memory, a quarter of which holds ten vectors
MEMORY = (1 << 40, 2 * BASIS)  # of each rank; they share one machine
BLOCKS = (1 << 40, 2 * (40 << 10))  # so that columns of the identity go through by a few
TICKS = (0.25, 100.0)  # seconds between two looks at a rank's clock
RUN = {"probes": 2, "steps": 12, "seed": 1, "deflate": False}


# What the processes do ------------------------------------------------------------------------------------------------
class Data(list):
    """Batches whose reading fails, or ends the process, once `failing` is set."""

    failing = None

    def __iter__(self):
        if self.failing is not None:
            failing, self.failing = self.failing, None
            failing()
        return super().__iter__()


class Rounded(torch.nn.Linear):
    """A float64 layer that computes in float32 inside."""

    def forward(self, x):
        return super().forward(x).float().double()


class Root(torch.nn.Linear):
    """A layer whose derivative is not finite at 0."""

    def forward(self, x):
        return super().forward(x).square().sqrt()


class Sum(torch.nn.Module):
    """A function of inputs of any width."""

    def forward(self, x):
        return x.sum(1, keepdim=True)


def own_batches(rank, ranks):
    whole = CASE.batches(SIZES)
    return Data(whole[rank * len(whole) // ranks : (rank + 1) * len(whole) // ranks])


def gauss_newton(data, **options):
    options = {
        "engine": "fresh",
        **options,
    }  # a second pass is of the same bits only where nothing is chosen by the clock
    return spectral.GaussNewton(CASE.network(), LOSS, data, **options)


def with_memory(free, work, share=1):
    """`work()` where so many bytes are free, as far as it knows, or that part of them."""
    asked, arrays.available_memory = arrays.available_memory, lambda device: free // share
    try:
        return work()
    finally:
        arrays.available_memory = asked


def with_clock(tick, work):
    """`work()` by a clock that goes on by `tick` whenever it is read."""
    now = iter(np.arange(1, 1 << 20) * tick)
    plain, budget.time = budget.time, SimpleNamespace(monotonic=lambda: float(next(now)))
    try:
        return work()
    finally:
        budget.time = plain


def told(s):
    """What a spectrum says of its run, and its records."""
    kept = {key: s.meta.get(key) for key in ("memory", "reorthogonalize", "stop", "stops", "probes", "ranks", "choice")}
    return kept | {"products": s.products}, [(r.alphas, r.betas) for r in s.records]


def by_memory(data, free, blocks):
    """Estimators that look at the free memory, on operators over these data."""
    A = gauss_newton(data)
    J = spectral.Jacobian(CASE.network(), data)
    pairs = with_memory(free, lambda: spectral.top(A, 1, seed=3))
    return {
        "slq": told(with_memory(free, lambda: spectral.slq(A, probes=3, steps=7, seed=1), share=2)),
        "esd": told(with_memory(free, lambda: spectral.esd(J, probes=2, steps=9))),
        "exact": with_memory(blocks, lambda: spectral.exact(A)).atoms.values,
        "exact of rows": spectral.exact(J.gram("right")).atoms.values,
        "trace": with_memory(free, lambda: spectral.trace(A, probes=24, seed=1)).method,
        "diagonal": with_memory(free, lambda: spectral.diagonal(A, probes=20, seed=1)).method,
        "top": (pairs.values, pairs.products),
    }


def sentence(work):
    """(kind, message) of what `work` ends with."""
    try:
        work()
    except (Exception, KeyboardInterrupt) as problem:
        return type(problem).__name__, str(problem)
    return "", ""


def short_of(steps, problem, work, recurrence=2):
    """`work()`, in which the second Lanczos recurrence (or another) ends by `problem` after so many steps, between products."""
    plain, begun = Lanczos.step, []

    def step(self):
        begun.extend([self] * (self.steps == 0))
        if len(begun) == recurrence and self.steps == steps:
            raise problem
        return plain(self)

    Lanczos.step = step
    try:
        return work()
    finally:
        Lanczos.step = plain


def interrupted(work):
    """Ended by Ctrl-C in the midst of a probe."""
    with pytest.raises(KeyboardInterrupt):
        short_of(5, KeyboardInterrupt(), work)


def counted(work):
    """How many collectives of each kind `work` makes."""
    plain, counts = {name: getattr(dist, name) for name in COLLECTIVES}, dict.fromkeys(COLLECTIVES, 0)

    def counting(name):
        def one(*args, **options):
            counts[name] += 1
            return plain[name](*args, **options)

        return one

    for name in COLLECTIVES:
        setattr(dist, name, counting(name))
    try:
        work()
    finally:
        for name in COLLECTIVES:
            setattr(dist, name, plain[name])
    return counts


class Card(torch.Tensor):
    """A tensor that says that it lies on a GPU: it mixes with no tensor on the CPU, where `held` really is."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device="cuda:0"
        )

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on a GPU that is not there")


class Moves(TorchFunctionMode):
    """`tensor.to("cuda")` makes a `Card`, and `.to("cpu")`, `.cpu()` and `copy_` bring one back."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = func.__name__
        wanted = args[1] if name == "to" and isinstance(args[1], torch.device) else torch.device("cpu")
        if name == "to" and wanted.type == "cuda":
            return args[0] if isinstance(args[0], Card) else Card(args[0].clone())
        if name == "__get__" or not any(isinstance(x, Card) for x in args):
            return func(*args, **(kwargs or {}))
        brings_back = name in ("to", "cpu", "copy_")
        assert brings_back or all(isinstance(x, Card) for x in args if isinstance(x, torch.Tensor)), (
            f"{name} mixes devices"
        )
        made = func(*(x.held if isinstance(x, Card) else x for x in args), **(kwargs or {}))
        return Card(made) if isinstance(made, torch.Tensor) and not brings_back else made


def with_cards(work):
    """`work()` in a group whose backend, as it says, has collectives for GPUs alone; how many of them were made."""
    plain, seen = {name: getattr(dist, name) for name in COLLECTIVES}, []

    def there(x):
        assert isinstance(x, Card), "No backend type associated with device type cpu"  # the words of NCCL's group
        seen.append(x.device.type)
        return x.held

    dist.all_reduce = lambda x, **options: plain["all_reduce"](there(x), **options)
    dist.broadcast = lambda x, *args, **options: plain["broadcast"](there(x), *args, **options)
    dist.all_gather = lambda xs, x, **options: plain["all_gather"](list(map(there, xs)), there(x), **options)
    config, dist.get_backend_config = dist.get_backend_config, lambda: "cuda:nccl"
    try:
        with Moves():
            return work(), set(seen)
    finally:
        dist.get_backend_config = config
        for name in COLLECTIVES:
            setattr(dist, name, plain[name])


def rounded_otherwise(off, work):
    """`work()` on hardware of another kind: dots and eigenvalues off in their last digits, eigenvectors of the other sign."""
    dot, eigh, svd = torch.dot, np.linalg.eigh, np.linalg.svd
    torch.dot = lambda x, y: dot(x, y) * (1 + off)
    np.linalg.eigh = lambda M: (lambda values, S: (values * (1 + off), -S))(*eigh(M))
    np.linalg.svd = lambda M: (lambda P, values, Qt: (-P, values * (1 + off), -Qt))(*svd(M))
    try:
        return work()
    finally:
        torch.dot, np.linalg.eigh, np.linalg.svd = dot, eigh, svd


def searches(data, on=lambda off, work: work()):
    """What stops by numbers that are rounded; at step 1 of the multiple of the identity all that is left is rounding."""
    A = gauss_newton(data)
    single = 1e-30 * A + 3.0 * spectral.I
    kpm = on(2e-14, lambda: spectral.kpm(single, probes=2, moments=12))
    fast, pairs, block, triplets = on(4e-16, lambda: (
        spectral.kpm(A, probes=2, moments=12, recurrence="chebyshev"), spectral.top(A, 3, seed=3, basis=9),
        spectral.top(A, 2, block=2), spectral.svd(spectral.Jacobian(CASE.network(), data, engine="fresh"), 2, basis=6),
    ))  # fmt: skip
    projectors = [V @ V.T for V in (pairs.vectors, triplets.left, triplets.right)]
    return {
        "kpm": [kpm.nodes[:, 0], kpm.meta["made_steps"], fast.moment(2).value, fast.meta["made_steps"]],
        "top": [pairs.values, block.values, *projectors, pairs.products, block.products],
        "svd": [triplets.values, triplets.products],
    }


def answers(data):
    """What is asked of a matrix with vectors that are given."""
    A, J = gauss_newton(data), spectral.Jacobian(CASE.network(), data, engine="fresh")
    b = A.probe(5, 0)
    return {
        "solve": spectral.solve(A, b, shift=0.1, tol=1e-10).x,
        "least squares": spectral.solve(J, J.T.probe(5, 1), shift=0.1, tol=1e-10).x,
        "funm": spectral.funm(A, "exp", b, tol=1e-10).value,
        "spectrum_of": spectral.spectrum_of(A, b, steps=8).integrate(np.square).value,
        "svd": spectral.svd(J, 2).values,
    }


def fail():
    raise OSError("the disk of this rank is gone.")


def two_ranks(rank, folder):
    """Scenes of two ranks, one after the other; each leaves them in step."""
    data, whole = own_batches(rank, 2), CASE.batches(SIZES)
    A = gauss_newton(data)
    v = torch.ones(A.shape[1], dtype=A.dtype)
    found = {"product": A @ v}
    found["memory"] = by_memory(data, MEMORY[rank], BLOCKS[rank])
    found["clock"] = told(with_clock(TICKS[rank], lambda: spectral.slq(A, **RUN, budget="8s")))
    found["budgets"] = told(spectral.slq(A, **RUN, budget=7 + 6 * rank))
    found["alike"] = told(spectral.slq(A, tol=0.1, seed=1, deflate=False))
    sys.modules["spectral.plan"].SHARE = rank * 1e9  # as if rank 1 alone had time to measure more products
    found["plan"] = spectral.plan(A, steps=8, probes=2).products, A.products
    parts = Tolerance.parts
    if rank == 1:  # as if it rounded so that every tolerance is met
        Tolerance.parts = lambda self, s: (0.0, 0.0)
    found["verdicts"] = told(spectral.slq(A, tol=0.1, seed=1, deflate=False))
    Tolerance.parts = parts
    found["searches"] = searches(data, rounded_otherwise) if rank == 1 else searches(data)
    found["answers"] = answers(data)
    found["another b"] = sentence(lambda: spectral.solve(A, A.probe(5, rank)))
    found["counts"] = counted(lambda: A @ v)
    found["counts of building"] = counted(lambda: gauss_newton(data))
    found["counts of a run"] = counted(lambda: spectral.slq(A, probes=2, steps=8, seed=1))

    if rank == 1:
        data.failing = fail
    found["raised"] = sentence(lambda: A @ v)
    found["after"] = A @ v
    J = spectral.Jacobian(CASE.network(), data)
    coarse, raised = gauss_newton(data, product_dtype=torch.float32), []
    for work in (lambda: J @ v, lambda: J.T @ torch.ones(J.shape[0], dtype=J.dtype), J.squared_norms,
                 lambda: spectral.exact(J.gram("right")), lambda: gauss_newton(data), lambda: coarse @ v):  # fmt: skip
        if rank == 1:
            data.failing = fail
        raised.append(sentence(work))
    found["raised elsewhere"] = raised
    if rank == 1:
        data.failing = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    found["interrupted"] = sentence(lambda: A @ v)
    root = Root(3, 1, bias=False).double()
    root.weight.data.fill_(1)
    found["not finite"] = sentence(
        lambda: (
            spectral.Jacobian(root, [torch.full((2, 3), 1.0 - rank).double()], preflight=False) @ torch.ones(3).double()
        )
    )
    found["no data"] = sentence(lambda: gauss_newton([]))
    found["bad data"] = sentence(lambda: gauss_newton(data if rank == 0 else iter(data)))

    other = CASE.network()
    if rank == 1:
        other[2].bias.data[0] += 1e-3
    found["weights"] = sentence(lambda: spectral.GaussNewton(other, LOSS, data))
    found["parameters"] = sentence(lambda: gauss_newton(data, params=["0.*"] if rank == 0 else ["2.*"]))
    found["shapes"] = sentence(lambda: spectral.Jacobian(Sum(), [torch.ones(2, 3 + rank).double()], wrt="inputs"))
    found["keywords"] = sentence(lambda: spectral.slq(A, probes=1, steps=2 + rank))
    for name, estimator in (("slq", spectral.slq), ("kpm", spectral.kpm)):
        found[f"probes of {name}"] = sentence(lambda estimator=estimator: estimator(A, probes=2 + rank))
    found["folder"] = sentence(lambda: spectral.slq(A, probes=1, basis=folder if rank == 0 else f"{folder}/none"))

    found["parted"] = parted(rank, data)

    for empty in range(2):
        here = [] if rank == empty else whole
        E, K = gauss_newton(here), spectral.Jacobian(CASE.network(), here)
        flat = spectral.Jacobian(CASE.network(), here, wrt="inputs", layout="flattened")
        coarse = gauss_newton(here, product_dtype=torch.float32)
        found[f"empty {empty}"] = [
            E @ v, K @ v, K.squared_norms(), flat @ torch.ones(flat.shape[1], dtype=flat.dtype), coarse @ v,
            spectral.exact(K.gram("right")).atoms.values, E.identity(), str(cost(K.gram("right"))), rounding(here),
            spectral.plan(E, steps=6, probes=1).products,
        ]  # fmt: skip
    found["identity"] = A.identity(), A.describe()["samples"], A.describe()["batches"]

    path = f"{folder}/of rank {rank}"  # that of rank 0 counts
    interrupted(lambda: spectral.slq(A, **RUN, checkpoint=path))
    found["files"] = sorted(p.name for p in Path(folder).glob("of rank*"))
    found["resumed"] = told(spectral.slq(A, **RUN, checkpoint=f"{folder}/of one"))

    matrix = np.diag(np.arange(1.0, 9))
    found["alone"] = counted(
        lambda: rank == 0 and spectral.slq(matrix, probes=1, steps=4, budget="1h", checkpoint=f"{folder}/alone")
    )
    found["cards"] = with_cards(lambda: gauss_newton(data) @ v)
    cards = with_cards(lambda: told(spectral.slq(gauss_newton(data), probes=2, steps=6, seed=1, budget="1h")))
    found["cards of a run"] = cards[0], sorted(cards[1])

    heartbeat.PATIENCE = 0.5
    begun, steps = time.monotonic(), 2 if rank == 1 else math.inf  # between products, where no other rank can see it
    found["left"] = sentence(
        lambda: short_of(steps, MemoryError("no room for the basis"), lambda: spectral.slq(A, **RUN))
    )
    found["waited"] = time.monotonic() - begun
    found["in step again"] = A @ v, told(spectral.slq(A, **RUN))[0]["products"]
    if rank == 1:
        struck(dist.all_reduce)
    found["struck"] = [sentence(lambda: A @ v) for _ in range(2 - rank)]
    found["in step once more"] = A @ v
    time.sleep(2 * heartbeat.PATIENCE)  # a process that ends takes its connections with it
    return found


def parted(rank, data):
    """Products after one entry of one rank's weights has changed."""
    net = CASE.network()
    A, J = spectral.GaussNewton(net, LOSS, data), spectral.Jacobian(net, data)
    v, u = (torch.ones(n, dtype=A.dtype) for n in reversed(J.shape))
    with torch.no_grad():
        net[2].bias[0] += 1e-3 * rank
    works = (lambda: A @ v, lambda: J @ v, lambda: J.T @ u, lambda: spectral.frobenius(A, probes=2), A.mean_loss)
    said = [sentence(work) for work in works]
    with torch.no_grad():
        net[2].bias[0] -= 1e-3 * rank
        net[2].bias.fill_(0.5)
    return said, sentence(lambda: A @ v)


UNDER_WAY = []  # collectives whose rank has been interrupted


def struck(plain):
    """The next sum is interrupted while this rank waits for it."""

    def once(*args, **options):
        dist.all_reduce = plain
        UNDER_WAY.append(plain(*args, **options))
        raise KeyboardInterrupt

    dist.all_reduce = once


def rounding(data):
    """That of products with a model that computes in a coarser dtype than its weights'."""
    torch.manual_seed(0)
    return spectral.Jacobian(Rounded(3, 2).double(), data).epsilon


def three_ranks(rank, folder):
    """One of three dies in the midst of a product."""
    heartbeat.PATIENCE, heartbeat.SILENT, heartbeat.BEAT = 0.5, 2.0, 0.2
    data = own_batches(rank, 3)
    A = gauss_newton(data)
    v = torch.ones(A.shape[1], dtype=A.dtype)
    found = {"product": A @ v, "answers": answers(data)}
    if rank == 1:
        data.failing = lambda: os.kill(os.getpid(), signal.SIGKILL)
    begun = time.monotonic()
    found["dead"] = sentence(lambda: spectral.slq(A, probes=2, steps=9, checkpoint=f"{folder}/file"))
    found["waited"] = time.monotonic() - begun
    found["saved"] = Path(f"{folder}/file").exists()
    return found


def dies_early(rank, folder):
    """One of three dies before it has given a sign of life."""
    heartbeat.PATIENCE, heartbeat.SILENT, heartbeat.BEAT = 0.5, 2.0, 0.2
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    found = sentence(lambda: gauss_newton(own_batches(rank, 3)))
    time.sleep(1.0)  # a process that ends takes its connections with it
    return found


def one(rank, ranks, folder, work):
    """The life of a process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    try:
        torch.save(work(rank, folder), f"{folder}/{rank}.pt")
    except BaseException:
        Path(f"{folder}/{rank}.txt").write_text(traceback.format_exc())
        raise
    finally:
        os._exit(0)  # a group that has lost a rank cannot be taken down


def started(ranks, folder, work, patience=150):
    """What each rank found, None of one that died."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=one, args=(rank, ranks, str(folder), work)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(patience)
        process.kill()
    for rank in range(ranks):
        if (failed := folder / f"{rank}.txt").exists():
            raise AssertionError(f"rank {rank}: {failed.read_text()}")
    files = [folder / f"{rank}.pt" for rank in range(ranks)]
    return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


# What must come out ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder):
    A = gauss_newton(CASE.batches(SIZES))
    interrupted(lambda: spectral.slq(A, **RUN, checkpoint=folder / "of one"))
    return started(2, folder, two_ranks)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return started(3, tmp_path_factory.mktemp("three"), three_ranks)


@pytest.fixture(scope="module")
def A():
    return gauss_newton(CASE.batches(SIZES))


@pytest.fixture(scope="module")
def whole_searches():
    return searches(CASE.batches(SIZES))


@pytest.fixture(scope="module")
def whole_answers():
    return answers(CASE.batches(SIZES))


@pytest.fixture(scope="module")
def v(A):
    return torch.ones(A.shape[1], dtype=A.dtype)


def same(found, expected, exactly):
    """Equal, numbers to the last bit or to the rounding of sums."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[k], expected[k], exactly) for k in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected, [exactly] * len(found)))
    if not isinstance(expected, float | np.ndarray | torch.Tensor):
        return found == expected
    a, b = np.asarray(found), np.asarray(expected)
    return a.shape == b.shape and (np.array_equal(a, b) if exactly else np.allclose(a, b, rtol=1e-7, atol=1e-9))


def without_ranks(run):
    meta, records = run
    assert meta["ranks"] == 2
    choice = (meta["choice"] or "").split(":")[0]  # the passes of a rank are in it
    return {**meta, "ranks": None, "choice": choice}, records


@pytest.fixture(scope="module")
def by_one():
    found = by_memory(CASE.batches(SIZES), BASIS, BLOCKS[1] // 2)
    return {key: (value[0] | {"choice": (value[0]["choice"] or "").split(":")[0]}, value[1]) if key in ("slq", "esd") else value
            for key, value in found.items()}  # fmt: skip


@pytest.mark.parametrize("name", ["slq", "esd", "exact", "exact of rows", "trace", "diagonal", "top"])
def test_ranks_of_unequal_memory_give_the_answer_of_one_process_with_the_least(two, by_one, name):
    found = [without_ranks(rank["memory"][name]) if name in ("slq", "esd") else rank["memory"][name] for rank in two]
    assert same(found[0], found[1], exactly=True)
    assert same(found[0], by_one[name], exactly=False)


def test_one_rank_alone_would_have_decided_otherwise(by_one):
    alone = by_memory(CASE.batches(SIZES), MEMORY[0], BLOCKS[0])
    assert alone["slq"][0]["reorthogonalize"] is True and by_one["slq"][0]["reorthogonalize"] is False
    assert (alone["trace"], alone["diagonal"]) == ("xnystrace", "xdiag")
    assert (by_one["trace"], by_one["diagonal"]) == ("hutchinson", "hutchinson")


def test_ranks_of_unequal_clocks_stop_by_that_of_the_first(two, A):
    expected = told(with_clock(TICKS[0], lambda: spectral.slq(A, **RUN, budget="8s")))
    assert "budget" in expected[0]["stops"] and 2 < expected[0]["products"] < 24
    found = [without_ranks(rank["clock"]) for rank in two]
    assert same(found[0], found[1], exactly=True)
    assert same(found[0], (expected[0] | {"choice": ""}, expected[1]), exactly=False)


def test_a_plan_is_made_by_the_clock_of_the_first(two):
    assert two[1]["plan"] == two[0]["plan"] and two[0]["plan"][0] == 16


def test_of_budgets_that_differ_that_of_the_first_rank_counts(two, A):
    expected = told(spectral.slq(A, **RUN, budget=7))
    for rank in two:
        assert same(without_ranks(rank["budgets"]), (expected[0] | {"choice": ""}, expected[1]), exactly=False)


def test_ranks_that_round_otherwise_take_the_verdict_of_the_first(two):
    for rank in two:  # rank 1 alone would have stopped at its first look, after four products
        assert same(rank["verdicts"], two[0]["alike"], exactly=True)
    assert two[0]["alike"][0]["products"] > 4


@pytest.mark.parametrize("name", ["kpm", "top", "svd"])
def test_ranks_of_mixed_hardware_search_and_stop_as_the_first(two, whole_searches, name):
    for rank in two:
        assert same(rank["searches"][name], whole_searches[name], exactly=False)


def test_ranks_answer_as_one_process(two, whole_answers):
    for rank in two:
        assert same(rank["answers"], whole_answers, exactly=False)
        words = "rank 1 was given another b than rank 0; give every rank rank 0's (torch.distributed.broadcast)."
        assert rank["another b"] == ("ValueError", words)


def test_a_product_that_is_not_finite_names_the_rank(two):
    for rank in two:
        assert rank["not finite"] == two[0]["not finite"] and rank["not finite"][0] == "ValueError"
        assert "holds NaN or infinity though the outputs are finite: on rank 1, " in rank["not finite"][1]


def test_progress_is_shown_by_the_first_rank_alone(monkeypatch):
    monkeypatch.setattr(budget.sys.stderr, "isatty", lambda: True, raising=False)
    shown = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "leads", lambda rank=rank: rank == 0)
        with budget.progress_bar(1, "slq", None) as bar:
            shown.append(not bar.disable)
    assert shown == [True, False]


def test_a_product_is_one_all_reduce(two):
    for rank in two:
        assert rank["counts"] == {"all_reduce": 1, "all_gather": 0, "broadcast": 0}


def test_a_matrix_without_data_is_a_rank_s_own_business(two):
    assert all(rank["alone"] == {"all_reduce": 0, "all_gather": 0, "broadcast": 0} for rank in two)


def test_small_collectives_are_few(two):
    for rank in two:
        # the survey, the tests of the model, what it computes in
        assert rank["counts of building"] == {"all_reduce": 0, "all_gather": 3, "broadcast": 0}
        run = rank["counts of a run"]
        # 16 products; memory, place of the basis, keywords, identity; the budget, whether to go on, before each probe and after
        assert run == {"all_reduce": 16, "all_gather": 4, "broadcast": 4}


def test_no_tensor_on_the_cpu_reaches_a_backend_for_gpus(two, A, v):
    for rank in two:
        product, devices = rank["cards"]
        assert devices == {"cuda"}
        assert torch.allclose(product, A @ v, rtol=1e-12)
        assert rank["cards of a run"][1] == ["cuda"]


def test_what_one_rank_fails_with_in_a_product_every_rank_raises(two, v, A):
    words = "rank 1 of 2 failed (OSError: the disk of this rank is gone); mend it there, and start all ranks again."
    for rank in two:
        assert rank["raised"] == ("RankFailed", words)
        assert rank["raised elsewhere"] == [("RankFailed", words)] * 6
        assert torch.equal(rank["after"], two[0]["product"])  # in step afterwards
        assert torch.allclose(rank["after"], A @ v, rtol=1e-12)


def test_an_interrupted_rank_ends_the_others(two):
    assert two[1]["interrupted"] == ("KeyboardInterrupt", "")
    assert (
        two[0]["interrupted"][0] == "RankFailed" and "rank 1 of 2 failed (KeyboardInterrupt" in two[0]["interrupted"][1]
    )


def test_what_all_ranks_are_given_alike_is_refused_as_by_one(two):
    for rank in two:
        assert rank["no data"][0] == "ValueError" and rank["no data"][1].startswith("data holds no batches")


def test_ranks_that_were_given_other_things_say_what(two):
    expected = {
        "bad data": ("RankFailed", r"rank 1 of 2 failed \(TypeError: .* read .*"),
        "weights": (
            "ValueError",
            r"rank 1 has other weights than rank 0 \(2.bias differ\), .* before the operator is built.",
        ),
        "parameters": ("ValueError", r"rank 1 has built another operator than rank 0: parameters=.*"),
        "shapes": ("ValueError", r"rank 1 has inputs of shape \(4,\), rank 0 of \(3,\); pad or crop them\."),
        **dict.fromkeys(
            ("keywords", "probes of slq", "probes of kpm"),
            ("ValueError", r"rank 1 was asked for another run than rank 0 .*"),
        ),
        "folder": ("RankFailed", r"rank 1 of 2 failed \(ValueError: basis='.*/none' is no folder; .*"),
    }
    for rank in two:
        for name, (kind, words) in expected.items():
            assert rank[name][0] == kind and re.fullmatch(words, rank[name][1]), rank[name]
            assert rank[name] == two[0][name]


def test_ranks_whose_weights_have_parted_multiply_nothing(two):
    words = r"rank 1 has other weights than rank 0 \(2.bias differ\), so that the sum would be of no matrix; .*"
    for rank in two:
        said, after = rank["parted"]
        assert all(kind == "ValueError" and re.fullmatch(words, text) for kind, text in said), said
        assert after == ("", "")  # alike again


@pytest.mark.parametrize("empty", [0, 1])
def test_a_rank_without_samples_adds_nothing(two, v, empty):
    whole = CASE.batches(SIZES)
    E, K = gauss_newton(whole), spectral.Jacobian(CASE.network(), whole)
    flat = spectral.Jacobian(CASE.network(), whole, wrt="inputs", layout="flattened")
    expected = [
        E @ v, K @ v, K.squared_norms(), flat @ torch.ones(flat.shape[1], dtype=flat.dtype), E @ v,
        spectral.exact(K.gram("right")).atoms.values, E.identity(), str(cost(K.gram("right"))), rounding(whole), 6,
    ]  # fmt: skip
    for rank in two:
        found = rank[f"empty {empty}"]
        assert torch.allclose(found.pop(4), expected[4], rtol=1e-5)  # in float32
        assert same(found, expected[:4] + expected[5:], exactly=False)


def test_the_identity_is_that_of_all_data(two, A):
    for rank in two:
        assert rank["identity"] == (A.identity(), A.describe()["samples"], A.describe()["batches"])


def test_one_file_goes_on_with_any_number_of_ranks(two, folder, A):
    assert all(name.startswith("of rank 0") for name in two[0]["files"]) and two[0]["files"]
    expected = told(spectral.slq(A, **RUN))
    by_one = told(spectral.slq(A, **RUN, checkpoint=folder / "of rank 0"))
    for rank in two:
        assert same(without_ranks(rank["resumed"]), (expected[0] | {"choice": ""}, expected[1]), exactly=False)
    assert same(by_one, expected, exactly=False)


def test_a_rank_that_leaves_between_products_ends_the_others(two):
    assert two[1]["left"] == ("MemoryError", "no room for the basis")
    words = "rank 1 of 2 failed (MemoryError: no room for the basis); mend it there, and start all ranks again."
    assert two[0]["left"] == ("RankFailed", words) and two[0]["waited"] < 10
    for rank in two:  # what was given up is not summed with what comes next
        assert torch.equal(rank["in step again"][0], two[0]["product"]) and rank["in step again"][1] == 24


def test_a_rank_that_is_interrupted_while_it_waits_ends_the_others_though_the_sum_has_come_about(two):
    assert two[1]["struck"] == [("KeyboardInterrupt", "")]
    assert two[0]["struck"][0] == ("", "") and two[0]["struck"][1][0] == "RankFailed"
    assert "rank 1 of 2 failed (KeyboardInterrupt" in two[0]["struck"][1][1]
    assert all(torch.equal(rank["in step once more"], two[0]["product"]) for rank in two)


@pytest.mark.slow
def test_a_rank_that_dies_is_named_by_all_others_and_the_run_is_saved(three, whole_answers):
    assert three[1] is None
    for rank in (three[0], three[2]):
        assert same(rank["answers"], whole_answers, exactly=False)
        assert rank["dead"][0] == "RankFailed" and rank["waited"] < 20
        assert rank["dead"][1].startswith("rank 1 of 3 died or was cut off: no sign of life for 2 s")
    assert three[0]["saved"]


@pytest.mark.slow
def test_a_rank_that_dies_before_its_first_operator_is_named_by_all_others(tmp_path):
    found = started(3, tmp_path, dies_early)
    words = "rank 1 of 3 died or was cut off before it came to its first operator; see its own log"
    assert found[1] is None and all(found[r][0] == "RankFailed" and found[r][1].startswith(words) for r in (0, 2))


class Numbers:
    """A store of another process's, as `heartbeat` sees it."""

    def __init__(self):
        self.words = {}

    def set(self, key, value):
        self.words[key] = value.encode()

    def check(self, keys):
        return all(key in self.words for key in keys)

    def get(self, key):
        return self.words[key]


@pytest.fixture
def hearts(monkeypatch):
    """Those of three ranks, whose signs of life are given by hand, and their store."""
    monkeypatch.setattr(
        heartbeat.threading, "Thread", lambda **options: SimpleNamespace(start=lambda: None, join=lambda s: None)
    )
    store = Numbers()
    return [heartbeat.Heartbeat(store, rank, 3) for rank in range(3)], store


def beat(heart, store, places=("", "", "")):
    """A second goes by, in which ranks say where they are; None is one that is gone."""
    heart.beats += 1
    for rank, place in enumerate(places):
        if place is not None:
            store.set(f"spectral/beat/{rank}", f"{heart.beats} {place}")
    return heart.missing()


def test_only_a_rank_that_has_begun_and_then_stands_still_is_gone(hearts):
    (heart, *_), store = hearts
    assert beat(heart, store, ("", "", None)) == ""  # rank 2 may still read its data
    assert [beat(heart, store, ("", None, None)) for _ in range(int(heartbeat.SILENT))] == [""] * int(heartbeat.SILENT)
    time.sleep(0.01)
    assert beat(heart, store, ("", None, None)).startswith("rank 1 of 3 died")
    assert beat(heart, store, ("", "", None)) == ""


def test_while_this_process_is_stopped_no_other_one_is_silent(hearts, monkeypatch):
    """As where a scheduler stops all of a job, and lets it go on an hour later."""
    (heart, *_), store = hearts
    beat(heart, store)
    monkeypatch.setattr(heartbeat, "SILENT", 1e-6)
    time.sleep(0.01)
    assert heart.missing() == ""


def test_ranks_that_wait_for_different_things_say_so_and_those_that_are_late_do_not(hearts):
    (one, two, three), store = hearts
    for heart, what in ((one, "all_reduce:51"), (two, "all_reduce:51"), (three, "broadcast:1024")):
        heart.watch(what)
    found = [[beat(heart, store) for _ in range(3)][-1] for heart in (one, two, three)]
    assert set(found) == {found[0]}
    assert re.search(r"asked for different things: rank 0 is in .* and rank 2 in .* alike", found[0])
    three.come()
    assert [beat(one, store) for _ in range(5)] == [""] * 5
    two.come()
    two.count += 1  # it has sent what the others have not got yet
    two.watch("all_reduce:7")
    assert [beat(one, store) for _ in range(5)] == [""] * 5
    assert "different things" in [beat(one, store) for _ in range(int(heartbeat.SILENT) + 2)][-1]


def test_a_rank_that_is_elsewhere_is_waited_for_with_one_warning_that_says_where(hearts):
    (heart, *_), store = hearts
    heart.watch("all_reduce:51")
    words = r"rank 0 has waited for 30 s in .* for rank 2, which is at train.py:57; .* on every rank"
    with pytest.warns(UserWarning, match=words) as said:
        assert [beat(heart, store, ("", "", "train.py:57")) for _ in range(50)] == [""] * 50
    assert len(said) == 1


def test_a_rank_that_waits_in_a_collective_of_torch_s_for_one_that_waits_for_it_ends_both(hearts):
    (heart, *_), store = hearts
    heart.watch("all_reduce:51")
    place = "train.py:57 (in torch.distributed's barrier)"
    found = [beat(heart, store, ("", "", place)) for _ in range(int(heartbeat.SILENT) + 2)]
    assert found[0] == "" and re.fullmatch(
        rf"rank 2 waits at {re.escape(place)}, and rank 0 for it in .*every rank.*", found[-1]
    )


def test_who_waits_in_torch_s_own_collectives_says_why_and_gives_them_up(hearts):
    (heart, other, _), given_up = hearts[0], []
    heart.guarded = 0, lambda: given_up.append(heart.given_up)
    other.leave("rank 1 of 3 failed (x).")
    heart._guard()
    assert not given_up  # it may be on its way
    heart.beats = int(heartbeat.PATIENCE / heartbeat.BEAT)
    with pytest.warns(UserWarning, match=r"^rank 1 of 3 failed \(x\)\. This rank waits for it"):
        heart._guard()
    assert given_up == ["rank 1 of 3 failed (x)."]


def test_a_thread_is_elsewhere_unless_it_is_inside_this_package():
    begun, go_on, places = threading.Event(), threading.Event(), []

    def wait(*args):
        begun.set()
        go_on.wait()
        return torch.zeros(1)

    for work in (wait, lambda: spectral.funm(np.eye(3), lambda x: (wait(), x)[1], np.ones(3))):
        begun.clear()
        go_on.clear()
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        places.append(heartbeat.elsewhere(thread.ident))
        go_on.set()
        thread.join()
    assert re.fullmatch(r"test_ranks\.py:\d+", places[0]) and places[1] == ""


def test_what_a_rank_left_with_counts_wherever_the_others_stand_until_they_leave_as_well(hearts):
    heart, other, _ = hearts[0]
    heart.count = 3
    heart.leave("rank 0 of 2 failed (x)")
    for other.count in (2, 3, 4):  # not there yet; there; the sum has come about in which it was interrupted
        assert other.missing() == "rank 0 of 2 failed (x)"
    other.leave("rank 1 of 2 failed (y)")  # both were given what neither could do, and both went on
    assert heart.missing() == other.missing() == ""


def test_ranks_that_have_left_are_in_step_unless_one_has_given_up_a_collective(hearts):
    for given_up in (False, True):
        for heart in hearts[0]:
            heart.count += 3
            heart.leave("failed")
        hearts[0][1].broken = given_up
        for heart in hearts[0]:
            heart.begin()
        assert [heart.in_step() for heart in hearts[0]] == [not given_up] * 3
        assert [heart.missing() for heart in hearts[0]] == [""] * 3


def test_without_a_store_nothing_is_known():
    heart = heartbeat.Heartbeat(None, 0, 2)
    heart.leave("no")
    assert heart.missing() == ""
