"""Operators built alike on each rank from its own samples mean the whole: two gloo processes against one."""

import os
import re

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from oracles import CASES

import spectral
from spectral import distributed, heartbeat

OWN = [(4, 1), (2,)]  # batches of each rank: ragged within and between
OPTIONS = {
    "params": {},
    "inputs": {"wrt": "inputs"},
    "flattened": {"wrt": "inputs", "layout": "flattened"},
    "loss": {"of": "loss", "loss": torch.nn.CrossEntropyLoss(ignore_index=0)},
}


class Whole(torch.nn.Module):
    """A loss of all samples together."""

    reduction = "mean"

    def forward(self, z, y):
        return torch.logsumexp(z.reshape(-1), 0)


PROBED = {"exact": {}, "probed": {"exact": False, "seed": 5}}


def results(batches, options):
    """Products with fixed blocks, both Grams and the norms."""
    J = spectral.Jacobian(CASES["batch-norm"].network(), batches, **options)
    m, n = J.shape
    g = torch.Generator().manual_seed(4)
    V, U = torch.randn(n, 2, generator=g).double(), torch.randn(m, 2, generator=g).double()
    found = {
        "J V": J @ V,
        "J^T U": J.T @ U,
        "J^T J V": J.gram("right") @ V,
        "J J^T U": J.gram("left") @ U,
        **{name: J.squared_norms(**how) for name, how in PROBED.items()},
    }
    rows = [(where.start, block) for where, block in J.rows()]  # this rank's own
    return found, rows, J.samples


def curvature(batches):
    """Products with respect to inputs and activations, of which every rank has its own, and diagonals by single samples."""
    case, found = CASES["batch-norm"], {}
    for wrt in ("params", "inputs", "module:0"):
        for layout in ("block-diagonal", "summed")[: 1 if wrt == "params" else 2]:
            A = spectral.GaussNewton(case.network(), torch.nn.CrossEntropyLoss(), batches, wrt=wrt, layout=layout)
            v = torch.randn(A.shape[0], 2, generator=torch.Generator().manual_seed(5)).double()
            found[wrt, layout] = A @ v, torch.from_numpy(spectral.diagonal(A, method="exact").value)
    return found


def beside(rank, own):
    """Products while the ranks sum something else, and in the end ranks that ask for different things."""
    case, loss = CASES["batch-norm"], torch.nn.CrossEntropyLoss()
    A, J = spectral.GaussNewton(case.network(), loss, own), spectral.Jacobian(case.network(), own)
    v, theirs = torch.ones(A.shape[0]).double(), torch.full((A.shape[0],), 7.0).double()
    waiting = dist.all_reduce(theirs, async_op=True) if rank == 1 else None
    found = {"product": A @ v}
    waiting.wait() if rank == 1 else dist.all_reduce(theirs)
    found["theirs"] = theirs
    left = torch.randn(J.shape[0], generator=torch.Generator().manual_seed(rank)).double()
    vectors = torch.randn(A.shape[0], 2, generator=torch.Generator().manual_seed(rank)).double()
    vectors[:, 0] = 0.0  # one that is not the same is enough
    refused = {"A v": lambda: A @ vectors, "J v": lambda: J @ vectors, "J^T u": lambda: J.T @ left,
               "J^T J v": lambda: J.gram("right") @ vectors, "0 and v": lambda: A @ (rank * v)}  # fmt: skip
    found["refused"] = {name: said(product) for name, product in refused.items()}
    together = torch.nn.SyncBatchNorm.convert_sync_batchnorm(case.network())
    found["together"] = [
        said(lambda: spectral.GaussNewton(together, loss, own, statistics="batch")),
        spectral.GaussNewton(together, loss, own) @ v - A @ v,
    ]
    found["rounded"] = J @ (v * (1 + 1e-6 * rank)), J @ v
    found["again"] = A @ v
    kinds = [spectral.GaussNewton, spectral.Hessian][rank]
    smooth = torch.nn.CrossEntropyLoss(label_smoothing=0.1 * rank)
    found["kinds"] = [
        said(lambda: kinds(case.network(), loss, own)),
        said(lambda: spectral.GaussNewton(case.network(), smooth, own)),
        said(lambda: spectral.Fisher(case.network(), loss, own, draws=1, seed=rank)),
    ]
    found["both fail"] = [
        said(lambda own=problems[rank]: distributed.gather(lambda: raised(own))) for problems in BOTH_FAIL
    ]
    if rank == 1:
        next(A.network.model.parameters()).data[0] += 1e-3
    found["moved"] = said(lambda: spectral.slq(A, probes=1, steps=2))
    heartbeat.PATIENCE, heartbeat.BEAT = 0.2, 0.05
    found["different"] = said(lambda: spectral.slq(J, probes=1, steps=2) if rank else J @ v)
    return found


BOTH_FAIL = [  # what either rank ends with; a kind that is not made of its words alone
    (ValueError("one."), ValueError("two.")),
    (ValueError("one."), TypeError("two.")),
    tuple(UnicodeDecodeError("ascii", b"\xff", 0, 1, words) for words in ("one", "two")),
]


def raised(problem):
    raise problem


def said(work):
    """Kind and words of what it ends with."""
    try:
        work()
    except Exception as problem:
        return type(problem).__name__, str(problem)
    return "", ""


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    case = CASES["batch-norm"]
    whole = case.batches(sum(OWN, ()))
    own = whole[: len(OWN[0])] if rank == 0 else whole[len(OWN[0]) :]
    assert distributed.world_size() == 2 and distributed.rank() == rank
    assert distributed.gather(lambda: 3 + rank) == [3, 4]
    with pytest.raises(ValueError, match=r"Whole couples the samples of a batch .* pass all data as one batch"):
        spectral.Hessian(case.network(), Whole(), own[:1])  # one batch on each rank
    found = {name: results(own, options) for name, options in OPTIONS.items()}
    torch.save({**found, "curvature": curvature(own), "beside": beside(rank, own)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    J = spectral.Jacobian(case.network(), own)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet again", rank=rank, world_size=2)
    torch.save(said(lambda: J @ torch.ones(J.shape[1]).double()), f"{folder}/{rank} alone.pt")
    os._exit(0)  # a collective that never ended is under way


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder):
    how = (
        "spawn" if torch.cuda.is_available() else "fork"
    )  # a forked process has imported torch already; CUDA forbids it
    mp.start_processes(work, (str(folder),), nprocs=2, start_method=how)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", OPTIONS)
def test_two_ranks_mean_the_whole(two, name):
    expected, rows, samples = results(CASES["batch-norm"].batches(sum(OWN, ())), OPTIONS[name])
    for rank in two:
        found, _, n = rank[name]
        assert n == samples == 7
        for key, value in expected.items():
            assert torch.allclose(found[key], value, rtol=1e-12, atol=1e-12), key
    both = two[0][name][1] + two[1][name][1]
    assert [start for start, _ in both] == [start for start, _ in rows]
    assert all(torch.allclose(a, b, atol=1e-13) for (_, a), (_, b) in zip(both, rows, strict=True))


def test_two_ranks_mean_the_curvature_of_all_activations(two):
    expected = curvature(CASES["batch-norm"].batches(sum(OWN, ())))
    for rank in two:
        for key, values in expected.items():
            for got, due in zip(rank["curvature"][key], values, strict=True):
                assert torch.allclose(got, due, rtol=1e-12, atol=1e-14), key


def test_no_collective_of_somebody_else_is_taken_for_one_of_a_product(two):
    A = spectral.GaussNewton(
        CASES["batch-norm"].network(), torch.nn.CrossEntropyLoss(), CASES["batch-norm"].batches(sum(OWN, ()))
    )
    expected = A @ torch.ones(A.shape[0]).double()
    for rank in two:
        assert torch.allclose(rank["beside"]["product"], expected, rtol=1e-12, atol=1e-14)
        assert torch.equal(rank["beside"]["again"], rank["beside"]["product"])
        assert torch.equal(rank["beside"]["theirs"], torch.full_like(expected, 14.0))


def test_ranks_that_multiply_different_vectors_are_refused_and_rounding_is_not(two):
    words = r"rank 1 multiplies another vector than rank 0, so that the sum would be of no product; .*broadcast\)\."
    for rank in two:
        for name, (kind, found) in rank["beside"]["refused"].items():
            assert kind == "ValueError" and re.fullmatch(words, found), name
        assert torch.allclose(*rank["beside"]["rounded"], rtol=1e-5)


def test_ranks_that_have_built_different_matrices_say_which(two):
    expected = [
        r"rank 1 has built another operator than rank 0: operator=Hessian instead of GaussNewton; .*",
        r"rank 1 has built another operator than rank 0: loss=CrossEntropyLoss\(.*label_smoothing=0.1.*; .*",
        r"rank 1 has built another operator than rank 0: seed=1 instead of 0; .*",
    ]
    for rank in two:
        for (kind, words), pattern in zip(rank["beside"]["kinds"], expected, strict=True):
            assert kind == "ValueError" and re.fullmatch(pattern, words), words
        assert rank["beside"]["moved"][0] == "ValueError" and "other weights" in rank["beside"]["moved"][1]


def test_statistics_of_all_ranks_batches_together_are_no_products_and_running_ones_are_those_of_any_batch_norm(two):
    for rank in two:
        (kind, words), difference = rank["beside"]["together"]
        assert kind == "ValueError" and re.fullmatch(
            r"\w+ is a SyncBatchNorm, which trains with the statistics of one batch of each rank together, .*all ranks\.",
            words,
        )
        assert not difference.any()


def test_ranks_that_ask_for_different_things_end_with_one_sentence(two):
    kind, words = two[0]["beside"]["different"]
    assert kind == "RankFailed" and two[1]["beside"]["different"] == (kind, words)
    place = r"\(called at test_distributed\.py:\d+\)"
    waits = rf"rank 0 is in \S*__matmul__ {place} and rank 1 in slq {place}"
    assert re.fullmatch(rf"the ranks were asked for different things: {waits}; .*", words)


def test_an_operator_belongs_to_the_group_in_which_it_was_built(two, folder):
    for rank in range(2):
        kind, words = torch.load(folder / f"{rank} alone.pt", weights_only=False)
        assert kind == "ValueError" and words.startswith("this Jacobian was built by 1 process, each with its share")


def test_one_process_is_the_identity():
    t = torch.ones(3)
    assert (distributed.world_size(), distributed.rank(), distributed.gather(lambda: 5)) == (1, 0, [5])
    assert distributed.all_reduce(t) is t and distributed.all_rows(t, [3]) is t


def test_what_ranks_fail_with_each_in_another_way_is_the_same_sentence_on_all(two):
    (first, mixed, derived), other = two[0]["beside"]["both fail"], two[1]["beside"]["both fail"]
    assert other == [first, mixed, derived]
    assert first == ("ValueError", "one.") and derived[0] == "ValueError" and derived[1].endswith(": one")
    assert mixed[0] == "RankFailed" and mixed[1].startswith("rank 0 of 2 failed (ValueError: one); ")
