"""Operators built alike on each rank from its own samples mean the whole: two gloo processes against one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from oracles import CASES

import spectral
from spectral import distributed

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
    torch.save({**found, "curvature": curvature(own)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
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


def test_one_process_is_the_identity():
    t = torch.ones(3)
    assert (distributed.world_size(), distributed.rank(), distributed.gather(lambda: 5)) == (1, 0, [5])
    assert distributed.all_reduce(t) is t and distributed.all_rows(t, [3]) is t
