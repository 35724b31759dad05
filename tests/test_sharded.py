"""Parameters and vectors that lie over ranks (fully_shard): two and three gloo processes against one; wrappers of other kinds."""

import copy
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_jacobian import Once
from test_ranks import sentence, started
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint as checkpointed

import spectral
from spectral import distributed, heartbeat, pieces
from spectral.estimators import assembled, checkpoint, leave_one_out
from spectral.estimators.funm import Product
from spectral.estimators.solve import Solution
from spectral.networks.curvature import Curvature
from spectral.networks.sharded import ShardedModel
from spectral.operators.operator import Operator

SIZES = (2, 2, 1, 3, 1, 2)
SOME = ["*norm*", "scales", "embed.weight"]
METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace")
CE = nn.CrossEntropyLoss()


# Models and data ------------------------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 7), nn.Linear(7, 6)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Tokens(nn.Module):
    """Tied weights, a block that is called twice, a parameter with fewer rows than three ranks."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.twice = nn.Embedding(11, 6), Block(), Block()
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.scales = nn.Parameter(torch.tensor([0.7, -0.4]))

    def forward(self, ids):
        h = self.twice(self.twice(self.first(self.embed(ids))))
        return self.head((h * self.scales.repeat(3)).mean(1))


def half_hidden(self, ids):
    h = self.first(self.embed(ids))
    with torch.no_grad():
        aside = self.twice(h)
    return self.head(((self.twice(h) + aside) * self.scales.repeat(3)).mean(1))


def network(dtype=torch.float64):
    torch.manual_seed(3)
    return Tokens().to(dtype)


def batches():
    g = torch.Generator().manual_seed(1)
    ids, y = torch.randint(11, (sum(SIZES), 4), generator=g), torch.randint(11, (sum(SIZES),), generator=g)
    return list(zip(ids.split(SIZES), y.split(SIZES), strict=True))


def own_batches(rank, ranks):
    each = len(SIZES) // ranks
    return batches()[rank * each : (rank + 1) * each]


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    for block in (model.first, model.twice):
        fully_shard(block)
    return fully_shard(model)


def squared(output, batch):
    """A loss without a closed form."""
    return (output.square().sum(1) * (1 + output[:, 0]).square()).sum(), len(output)


class Largest(TorchDispatchMode):
    """The entries of the largest tensor that is made inside."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for t in made if isinstance(made, list | tuple) else [made]:
            if isinstance(t, torch.Tensor) and t.is_floating_point() and not hasattr(t, "to_local"):
                self.entries = max(self.entries, t.numel())
        return made


OPERATORS = {
    "GaussNewton": lambda net, data: spectral.GaussNewton(net, CE, data),
    "GaussNewton of a callable": lambda net, data: spectral.GaussNewton(net, squared, data),
    "Fisher": lambda net, data: spectral.Fisher(net, CE, data),
    "sampled Fisher": lambda net, data: spectral.Fisher(net, CE, data, draws=2, seed=5),
    "EmpiricalFisher": lambda net, data: spectral.EmpiricalFisher(net, CE, data),
    "Hessian": lambda net, data: spectral.Hessian(net, CE, data, engine="finite-difference"),
    "some parameters": lambda net, data: spectral.GaussNewton(net, CE, data, params=SOME),
}  # fmt: skip
ESTIMATORS = {
    "slq": lambda A: spectral.slq(A, probes=2, steps=14, seed=1),
    "slq without a basis": lambda A: spectral.slq(A, probes=2, steps=9, seed=1, reorthogonalize=False, deflate=True),
    "selective": lambda A: spectral.slq(A, probes=2, steps=12, seed=1, reorthogonalize="selective"),
    "slq to a tolerance": lambda A: spectral.slq(A, tol=0.1, seed=1),
    "esd of a sum": lambda A: spectral.esd(2 * A + 0.1 * spectral.I, method="slq", probes=2, steps=9),
    "kpm": lambda A: spectral.kpm(A, probes=2, moments=20, seed=1),
    **{method: (lambda A, m=method: spectral.trace(A, method=m, probes=24, seed=1))
       for method in METHODS},
    "trace of a function": lambda A: spectral.trace(A, np.exp, probes=2, steps=9),
    "top": lambda A: spectral.top(A, 3, seed=2),
    "exact": lambda A: spectral.exact(A),
    "svd": lambda A: spectral.svd(A, 2, seed=2),
    "solve": lambda A: spectral.solve(A, A.probe(5, 0), shift=0.1, tol=1e-10),
    "solve by minres": lambda A: spectral.solve(A, A.probe(5, 0), shift=0.1, tol=1e-10, method="minres"),
    "least squares": lambda A: spectral.solve(A, A.probe(5, 0), shift=0.1, tol=1e-10, method="lsmr"),
    "funm": lambda A: spectral.funm(A, "exp", A.probe(5, 0), tol=1e-10),
    "funm without a basis": lambda A: spectral.funm(A, "exp", A.probe(5, 0), tol=1e-8, reorthogonalize=False),
    "spectrum_of": lambda A: spectral.spectrum_of(A, A.probe(5, 0), steps=8),
    "top in blocks": lambda A: spectral.top(A, 2, seed=2, block=2),
    **{f"diagonal {method}": (lambda A, m=method: spectral.diagonal(A, method=m, probes=24, seed=1))
       for method in ("hutchinson", "xdiag")},
}  # fmt: skip

EVERY = ESTIMATORS | {
    "frobenius": lambda A: spectral.frobenius(A, probes=8),
    "logdet": lambda A: spectral.logdet(A, 0.1, method="slq", probes=2, steps=9),
    "spectral_form": lambda A: spectral.spectral_form(A, 0.5, method="slq", probes=2, steps=9),
    "numerical_rank": lambda A: spectral.numerical_rank(A, 1e-3, method="slq", probes=2, steps=9),
    "condition_number": lambda A: spectral.condition_number(A + 0.1 * spectral.I, method="slq", probes=2, steps=9),
    "negative_mass": lambda A: spectral.negative_mass(A, method="slq", probes=2, steps=9).mass,
    "inverse": lambda A: spectral.trace(spectral.inverse(A, shift=0.5), probes=4, method="hutchinson"),
}  # fmt: skip
KINDS = {"GaussNewton": spectral.GaussNewton, "EmpiricalFisher": spectral.EmpiricalFisher}


def matrices(kind, net, data):
    """The matrix of each estimate: of all parameters, or of some where a product is made for each of their entries."""
    whole, some = KINDS[kind](net, CE, data), KINDS[kind](net, CE, data, params=SOME)
    return {name: some if name == "exact" else whole for name in EVERY}


def numbers(result, layout=None):
    """What a result says, vectors whole."""

    def whole(x):
        x = torch.as_tensor(x)
        return x if layout is None else layout.whole(x)

    if isinstance(result, spectral.Spectrum):
        found = {"atoms": result.atoms.values, "counts": result.atoms.multiplicities,
                 "moments": [result.integrate(lambda x, p=p: x**p).value for p in (1, 2, 3)]}  # fmt: skip
        if not result.records:
            return found
        return found | {"first record": np.stack([result.records[0].alphas[:6], result.records[0].betas[:6]])}
    if isinstance(result, spectral.Eigenpairs):
        V = whole(result.vectors)
        return {"values": result.values, "projector": V @ V.T, "converged": result.converged}
    if isinstance(result, spectral.SingularTriplets):
        return {"values": result.values, "projectors": [whole(V) @ whole(V).T for V in (result.left, result.right)]}
    if isinstance(result, Solution):
        return {"x": whole(result.x), "norm": result.estimates()["norm_1"].value, "converged": result.converged}
    if isinstance(result, Product):
        return {"value": whole(result.value), "bounds": [result.lower, result.upper], "products": result.products}
    if np.ndim(result.value):
        return {"value": whole(result.value), "stderr": whole(result.stderr)}
    return {"value": result.value, "stderr": result.stderr}


# What the processes do ------------------------------------------------------------------------------------------------
def scenes(rank, folder, quick=False):
    ranks = dist.get_world_size()
    data, net = own_batches(rank, ranks), sharded(network())
    found = {"products": {}}
    for name in ["GaussNewton"] if quick else OPERATORS:
        A = OPERATORS[name](net, data)
        v = A.probe(7, 0)
        w = A @ v
        assert isinstance(w, pieces.Piece) and len(w) == A.shards.entries
        found["products"][name] = A.shards.whole(v), A.shards.whole(w), float(v @ w), A.shape
    if quick:
        A = OPERATORS["GaussNewton"](net, [tuple(map(torch.cat, zip(*data, strict=True)))])
        found["slq"] = numbers(ESTIMATORS["slq"](A), A.shards)
    return found if quick else found | beside(rank, ranks, net, data)


def beside(rank, ranks, net, data):
    """What else there is to say of them."""
    found = {}
    A, J = OPERATORS["GaussNewton"](net, data), spectral.Jacobian(net, data)
    v, u = J.probe(7, 0), J.T.probe(7, 1)
    found["jacobian"] = (
        J @ v,
        J.shards.whole(J.T @ u),
        J.shards.whole(J.gram("right") @ v),
        J.gram("left") @ u,
        J.adjoint_error(),
    )
    triplets = spectral.svd(J, 2, seed=3)  # left vectors are whole, right ones pieces
    found["svd"] = triplets.values, J.shards.whole(triplets.right), triplets.left
    found["exact"] = spectral.exact(J.gram("left")).atoms.values
    found["left"] = numbers(spectral.slq(J.gram("left"), probes=2, steps=9))
    found["same data everywhere"] = A.shards.whole(OPERATORS["GaussNewton"](net, batches()) @ A.probe(7, 0))
    with Largest() as seen:
        A @ A.probe(7, 0)
    found["largest"] = seen.entries, len(A.probe(7, 0))
    again = A.flatten(A.unflatten(A.probe(7, 0)))
    found["named"] = A.unflatten(A.probe(7, 0)), torch.equal(A.shards.whole(again), A.shards.whole(A.probe(7, 0)))
    found["described"] = (
        A.describe()["sharded"],
        A.identity(),
        OPERATORS["Hessian"](net, data).describe()["finite_difference"],
    )
    found["single"] = single(rank, ranks)
    found["left alone"] = left_alone(rank, ranks)
    found["sentences"] = sentences(rank, ranks, net, data, A)
    return found


KEPT = {
    **{name: ESTIMATORS[name] for name in ("slq", "slq without a basis", "kpm", "top", "svd", *METHODS)},
    "diagonal": ESTIMATORS["diagonal hutchinson"], "xdiag": ESTIMATORS["diagonal xdiag"], "exact": ESTIMATORS["exact"],
}  # fmt: skip


def kept(name, A, path):
    """An estimate with a checkpoint."""
    plain = {key: getattr(spectral, key) for key in ("slq", "kpm", "trace", "diagonal", "top", "svd", "exact")}
    try:
        for key, estimator in plain.items():
            setattr(spectral, key, partial(estimator, checkpoint=path))
        return numbers(KEPT[name](A), A.shards)
    finally:
        for key, estimator in plain.items():
            setattr(spectral, key, estimator)


def of_rank(rank):
    leave_one_out.SHARED, assembled.BLOCK = 2, 6  # vectors at a time: a run has steps to be saved after
    ranks = dist.get_world_size()
    return OPERATORS["GaussNewton"](sharded(network()), own_batches(rank, ranks))


def interrupted(rank, folder):
    """Every estimate ends after some products, saved after each."""
    checkpoint.SAVE_SECONDS = checkpoint.SHARE = 0.0
    Path(f"{folder}/kept").mkdir(exist_ok=True)
    plain, found = Curvature._apply, {}
    for name in KEPT:
        A = of_rank(rank)

        def struck(self, V):
            if self.products > 13:
                raise KeyboardInterrupt
            return plain(self, V)

        Curvature._apply = struck
        try:
            found[name] = sentence(lambda name=name, A=A: kept(name, A, f"{folder}/kept/{name}"))
        finally:
            Curvature._apply = plain
    return found


def resumed(rank, folder):
    found = {}
    for name in KEPT:
        A = of_rank(rank)
        found[name] = kept(name, A, f"{folder}/kept/{name}"), A.products
    other = sharded(network())
    next(other.parameters()).detach().to_local().view(-1)[:1].add_(1e-3 if rank == 0 else 0.0)
    A = OPERATORS["GaussNewton"](other, own_batches(rank, dist.get_world_size()))
    found["other weights"] = sentence(lambda: kept("slq", A, f"{folder}/kept/slq"))
    return found


def quick(rank, folder):
    return scenes(rank, folder, quick=True)


def single(rank, ranks):
    """A product in float32."""
    A = spectral.GaussNewton(sharded(network(torch.float32)), CE, own_batches(rank, ranks))
    return A.shards.whole(A @ A.probe(7, 0)), numbers(spectral.slq(A, probes=2, steps=8))


def left_alone(rank, ranks):
    """What a step of training finds after products; gradients as torch makes them without us."""
    data = own_batches(rank, ranks)
    steps = []
    for between in (False, True):
        net = sharded(network()).train()
        for unit in (net, net.first):
            unit.set_gradient_divide_factor(3.0)
        if between:
            H = OPERATORS["Hessian"](net, data)
            for A in (OPERATORS["GaussNewton"](net, data), H):
                A @ A.probe(0, 0)
        modes = [module.training for module in net.modules()]
        assert all(p.grad is None for p in net.parameters())
        CE(net(data[0][0]), data[0][1]).backward()
        if between:  # while there are gradients
            A = OPERATORS["GaussNewton"](net, data)
            A @ A.probe(0, 0)
        steps.append([modes, *([t.detach().to_local().clone() for t in (p, p.grad)] for p in net.parameters())])
        torch.optim.SGD(net.parameters(), 0.1).step()
        steps[-1] += [net(data[0][0]).detach()]
    return all(same(a, b) for a, b in zip(*steps, strict=True))


def same(a, b):
    if isinstance(a, list):
        return all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def sentences(rank, ranks, net, data, A):
    """What cannot be done, in words."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks,))
    alone = nn.Linear(6, 6).double()
    alone.weight = nn.Parameter(distribute_tensor(alone.weight.detach(), mesh, [Shard(0)]))
    x = [torch.ones(2, 6).double()]
    part = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()
    fully_shard(part[0])
    coarse = fully_shard(nn.Linear(6, 6), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    flat = FullyShardedDataParallel(nn.Linear(6, 6).double(), device_id=torch.device("cpu"))
    inside = nn.Sequential(nn.parallel.DistributedDataParallel(nn.Linear(6, 6).double()))
    grid = init_device_mesh("cpu", (ranks, 1), mesh_dim_names=("replicate", "shard"))
    replicated = fully_shard(nn.Linear(6, 6).double(), mesh=grid)
    v = A.probe(0, 0)
    return {
        "fsdp1": sentence(lambda: spectral.Jacobian(flat, x)),
        "dtensor": sentence(lambda: spectral.Jacobian(alone, x)),
        "in part": sentence(lambda: spectral.Jacobian(part, x)),
        "inside": sentence(lambda: spectral.Jacobian(inside, x)),
        "mixed": sentence(lambda: spectral.Jacobian(coarse, [x[0].float()])),
        "fewer": sentence(lambda: OPERATORS["GaussNewton"](net, data[: 2 - (rank == 1)])),
        "nothing": sentence(lambda: OPERATORS["GaussNewton"](net, data if rank else [])),
        "hessian": sentence(lambda: spectral.Hessian(net, CE, data)),
        "engine": sentence(lambda: spectral.GaussNewton(net, CE, data, engine="replay")),
        "dtype": sentence(lambda: spectral.GaussNewton(net, CE, data, product_dtype=torch.float32)),
        "inputs": sentence(lambda: spectral.Jacobian(net, data, wrt="inputs")),
        "plain": sentence(lambda: A @ torch.ones(A.shape[1]).double()),
        "piece": sentence(lambda: spectral.as_operator(np.eye(len(v))) @ v),
        "sum": sentence(lambda: v.sum()),
        "copied": sentence(lambda: copy.deepcopy(A)),
        "hsdp": sentence(lambda: spectral.Jacobian(replicated, x)),
        "rows": sentence(lambda: spectral.Jacobian(net, data).squared_norms()),
        "gap": sentence(lambda: spectral.block_gap(A, [1, A.shape[0] - 1])),
        "classes": sentence(lambda: spectral.class_structure(A)),
        "blocks": sentence(lambda: spectral.blocks(A)),
    }  # fmt: skip


def language_model():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2, use_cache=False)
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(13, (6, 7), generator=g)
    data = [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x} for x in ids.split((2, 1, 2, 1))]
    return GPT2LMHeadModel(config).double(), data


def everything(kind, rank, folder):
    """Every estimator on a matrix of what torch itself shards."""
    net, data = sharded(network()), own_batches(rank, dist.get_world_size())
    whole = [tuple(map(torch.cat, zip(*data, strict=True)))]
    return {name: numbers(EVERY[name](A), A.shards) for name, A in matrices(kind, net, whole).items()}


def language(rank, folder):
    """A language model with tied weights and a loss of its own."""
    from torch.distributed.fsdp import fully_shard

    net, data = language_model()
    for block in net.transformer.h:
        fully_shard(block)
    A = spectral.GaussNewton(fully_shard(net), None, data[2 * rank : 2 * rank + 2])
    return A.shards.whole(A @ A.probe(7, 0)), numbers(spectral.slq(A, probes=2, steps=8))


def fail(*_):
    raise OSError("the disk of this rank is gone.")


def raises(net):
    net.twice.up.register_forward_pre_hook(fail)


def raises_backward(net):
    net.twice.up.register_full_backward_hook(fail)


def raises_later(net):
    """After the pass, where the others go on to their next batch."""
    plain = ShardedModel.pulled
    ShardedModel.pulled = lambda *args: (plain(*args), fail())


def dies(net):
    net.twice.up.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def within_the_model(ends, rank, folder, whose=(1,)):
    """Rank 1 (or more of them) ends where the others wait for it in torch's own collectives."""
    heartbeat.PATIENCE, heartbeat.SILENT, heartbeat.BEAT = 0.5, 2.0, 0.2
    net = sharded(network())
    A = OPERATORS["GaussNewton"](net, own_batches(rank, dist.get_world_size()))
    if rank in whose:
        ends(net)
    begun = time.monotonic()
    found = sentence(lambda: A @ A.probe(7, 0)), time.monotonic() - begun
    time.sleep(1.0)  # a process that ends takes its connections with it
    return found


def wrapped(rank, folder):
    """DistributedDataParallel is the model inside."""
    data = own_batches(rank, 2)
    found = {}
    for name, net in (("plain", network()), ("ddp", nn.parallel.DistributedDataParallel(network()))):
        A, H = (kind(net, CE, data) for kind in (spectral.GaussNewton, spectral.Hessian))
        J = spectral.Jacobian(net, data)
        v = A.probe(7, 0)
        found[name] = A @ v, H @ v, J @ v, J.T @ J.T.probe(7, 1), A.describe()["parameters"]
    return found


# What must come out ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    return started(request.param, tmp_path_factory.mktemp(f"{request.param}"), scenes, patience=570)


def close(found, expected, rtol, least=1e-300):
    """Each within rtol of the largest entry, or of what is `least`."""
    for key, value in expected.items():
        a, b = (np.asarray(x, dtype=float) for x in (found[key], value))
        assert a.shape == b.shape, key
        assert (np.isnan(a) == np.isnan(b)).all(), (key, a, b)  # a bound that nobody knows
        a, b = a[~np.isnan(a)], b[~np.isnan(b)]
        assert np.abs(a - b).max(initial=0.0) <= rtol * max(np.abs(b).max(initial=0.0), least), (key, a, b)


def held(ranks, name, rtol):
    A = OPERATORS[name](network(), batches())
    v = A.probe(7, 0)
    w = A @ v
    for rank in ranks:
        drawn, product, dot, shape = rank["products"][name]
        assert shape == A.shape and torch.equal(drawn, v)
        close({"w": product, "dot": dot}, {"w": w, "dot": float(v @ w)}, rtol)


@pytest.mark.slow
def test_two_ranks_hold_pieces_of_vectors_and_give_the_product_and_spectrum_of_one_process(tmp_path):
    ranks = started(2, tmp_path, quick)
    held(ranks, "GaussNewton", 1e-12)
    expected = numbers(ESTIMATORS["slq"](OPERATORS["GaussNewton"](network(), batches())))
    for rank in ranks:
        close(rank["slq"], expected, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_products_are_those_of_one_process(ranks, name):
    held(ranks, name, 1e-8 if name == "Hessian" else 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_estimate_of_what_torch_shards_is_that_of_one_process(kind, count, tmp_path):
    found = started(count, tmp_path, partial(everything, kind), patience=1500)
    for name, A in matrices(kind, network(), batches()).items():
        expected = numbers(EVERY[name](A))
        expected.pop("products", 0)  # where the space of a low rank ends, without a basis, is rounding: 25 or 59
        size = float(np.abs(np.asarray(expected.get("value", 0.0))).max())  # found whole, the error is rounding
        for rank in found:
            close(rank[name], expected, 1e-6, least=size)


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(2, 3), (3, 1)])
def test_a_run_on_pieces_goes_on_with_another_number_of_ranks(before, after, tmp_path):
    first, then = tmp_path / "first", tmp_path / "then"
    first.mkdir()
    for rank in started(before, first, interrupted, patience=570):
        assert set(rank.values()) == {("KeyboardInterrupt", "")}
    shutil.copytree(first / "kept", then / "kept")
    one = OPERATORS["GaussNewton"](network(), batches())
    found = started(after, then, resumed, patience=570)
    for name in KEPT:
        begun = one.products
        expected = numbers(KEPT[name](one))
        for rank in found:
            close(rank[name][0], expected, 1e-7)
            assert rank[name][1] < one.products - begun, (
                name
            )  # less than the whole run, the product that proves it included
    assert all("is of another operator" in rank["other weights"][1] for rank in found)


@pytest.mark.slow
def test_a_jacobian_has_sharded_columns_and_whole_rows(ranks):
    J = spectral.Jacobian(network(), batches())
    v, u = J.probe(7, 0), J.T.probe(7, 1)
    expected = J @ v, J.T @ u, J.gram("right") @ v, J.gram("left") @ u
    left = numbers(spectral.slq(J.gram("left"), probes=2, steps=9))
    values, V, U = (lambda t: (t.values, t.right, t.left))(spectral.svd(J, 2, seed=3))
    every = spectral.exact(J.gram("left")).atoms.values
    for rank in ranks:
        close({"values": rank["svd"][0], "every": rank["exact"]}, {"values": values, "every": every}, 1e-9)
        close({i: X @ X.T for i, X in enumerate(rank["svd"][1:])}, {0: V @ V.T, 1: U @ U.T}, 1e-6)
        *products, error = rank["jacobian"]
        assert error < 1e-14
        close(dict(enumerate(products)), dict(enumerate(expected)), 1e-12)
        close(rank["left"], left, 1e-7)


@pytest.mark.slow
def test_the_same_data_on_every_rank_are_the_same_mean(ranks):
    A = OPERATORS["GaussNewton"](network(), batches())
    for rank in ranks:
        close({"w": rank["same data everywhere"]}, {"w": A @ A.probe(7, 0)}, 1e-12)


@pytest.mark.slow
def test_nothing_is_larger_than_what_is_gathered_at_a_time_or_than_the_part_of_a_vector_that_a_rank_holds(ranks):
    net = network()
    unit, whole = (sum(p.numel() for p in model.parameters()) for model in (net.twice, net))
    for rank in ranks:
        largest, own = rank["largest"]
        assert unit <= largest <= max(1.2 * unit, own) < 0.6 * whole


@pytest.mark.slow
def test_vectors_are_named_by_the_rows_that_a_rank_holds(ranks):
    A = OPERATORS["GaussNewton"](network(), batches())
    whole = A.unflatten(A.probe(7, 0))
    assert all(back for _, back in (rank["named"] for rank in ranks))
    for name, value in whole.items():
        assert torch.equal(torch.cat([rank["named"][0][name] for rank in ranks]), value), name
    assert len(ranks) == 2 or ranks[2]["named"][0]["scales"].shape == (0,)


@pytest.mark.slow
def test_float32_agrees_to_its_rounding(ranks):
    A = spectral.GaussNewton(network(torch.float32), CE, batches())
    expected = numbers(spectral.slq(A, probes=2, steps=8))
    for rank in ranks:
        product, spectrum = rank["single"]
        close({"w": product}, {"w": A @ A.probe(7, 0)}, 1e-5)
        close({"moments": spectrum["moments"]}, {"moments": expected["moments"]}, 1e-5)


@pytest.mark.slow
def test_what_is_said_of_a_sharded_matrix_is_the_same_on_every_rank(ranks):
    for rank in ranks:
        assert rank["described"] == ranks[0]["described"]
        assert rank["described"][0] == f"over {len(ranks)} ranks, each with its own samples"
    assert ranks[0]["described"][2] == {"error": None, "measured_by": "the first product to come"}


@pytest.mark.slow
def test_training_goes_on_as_without_us(ranks):
    assert all(rank["left alone"] for rank in ranks)


WORDS = {
    "fsdp1": ("ValueError", "is a FullyShardedDataParallel (FSDP1)"),
    "dtensor": ("ValueError", "is not sharded by fully_shard"),
    "in part": ("ValueError", "the parameter 1.weight is not sharded by fully_shard"),
    "inside": ("ValueError", "0 is a DistributedDataParallel inside the model"),
    "mixed": ("ValueError", "computes in another dtype than the parameters'"),
    "fewer": ("ValueError", "rank 1 holds fewer batches than rank 0"),
    "nothing": ("ValueError", "rank 0 holds fewer batches than rank 1"),
    "hessian": ("ValueError", "use engine='finite-difference', GaussNewton"),
    "engine": ("ValueError", "engine='replay' is not there for a model whose parameters lie over ranks"),
    "dtype": ("ValueError", "product_dtype=torch.float32 is not there"),
    "inputs": ("ValueError", "wrt='inputs' is not there"),
    "plain": ("TypeError", "of which every rank holds a piece"),
    "piece": ("TypeError", "multiplies whole vectors"),
    "sum": ("TypeError", "sum of a vector of which each rank holds a piece is not defined on one rank"),
    "copied": ("TypeError", "build another one, or take copy.copy(A), which shares the model and the data."),
    "hsdp": ("ValueError", "shard rows alone, over all ranks in their order"),
    "rows": ("ValueError", "rows of single samples are not made"),
    "gap": ("ValueError", "block_gap needs whole vectors"),
    "classes": ("ValueError", "class_structure needs whole vectors"),
    "blocks": ("ValueError", "it has no blocks; build an operator of each by params="),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDS)
def test_what_ranks_with_sharded_parameters_cannot_do_is_one_sentence(ranks, name):
    kind, words = WORDS[name]
    for rank in ranks:
        found = rank["sentences"][name]
        assert found[0] == kind and words in found[1] and found[1].count("\n") == 0, found


@pytest.mark.slow
@pytest.mark.parametrize("ends", [raises, raises_backward, raises_later])
def test_what_one_rank_fails_with_inside_a_sharded_model_every_rank_raises(ends, tmp_path):
    words = "rank 1 of 3 failed (OSError: the disk of this rank is gone); mend it there, and start all ranks again."
    for said, waited in started(3, tmp_path, partial(within_the_model, ends)):
        assert said == ("RankFailed", words) and waited < 10


@pytest.mark.slow
def test_what_all_ranks_fail_with_inside_a_sharded_model_is_one_sentence_on_each(tmp_path):
    found = started(3, tmp_path, partial(within_the_model, raises, whose=(0, 1, 2)))
    ((kind, words),) = {said for said, _ in found}
    assert kind == "RankFailed" and "of 3 failed (OSError: the disk of this rank is gone)" in words


@pytest.mark.slow
def test_a_rank_that_dies_inside_a_sharded_model_is_named_by_all_others(tmp_path):
    found = started(3, tmp_path, partial(within_the_model, dies))
    assert found[1] is None
    for said, waited in (found[0], found[2]):
        assert said[0] == "RankFailed" and said[1].startswith("rank 1 of 3 died or was cut off") and waited < 10


@pytest.mark.slow
def test_a_language_model_of_which_each_rank_holds_a_part_is_that_of_one_process(tmp_path):
    net, data = language_model()
    A = spectral.GaussNewton(net, None, data)
    w, expected = A @ A.probe(7, 0), numbers(spectral.slq(A, probes=2, steps=8))
    for product, spectrum in started(2, tmp_path, language):
        close({"w": product}, {"w": w}, 1e-10)
        close(spectrum, expected, 1e-7)


@pytest.mark.slow
def test_ddp_is_the_model_inside(tmp_path):
    A, H = (kind(network(), CE, batches()) for kind in (spectral.GaussNewton, spectral.Hessian))
    v = A.probe(7, 0)
    for rank in started(2, tmp_path, wrapped):
        assert all(torch.equal(a, b) for a, b in zip(rank["ddp"][:4], rank["plain"][:4], strict=True))
        assert rank["ddp"][4] == rank["plain"][4] == A.describe()["parameters"]
        close({"A": rank["ddp"][0], "H": rank["ddp"][1]}, {"A": A @ v, "H": H @ v}, 1e-12)


def test_data_parallel_is_the_model_inside_and_a_wrapper_in_a_model_is_refused():
    x = [torch.ones(2, 3)]
    inner = nn.Linear(3, 2)
    assert torch.equal(
        spectral.Jacobian(nn.DataParallel(inner), x) @ torch.ones(8), spectral.Jacobian(inner, x) @ torch.ones(8)
    )
    with pytest.raises(ValueError, match=r"^1 is a DataParallel inside the model, .* put its .module in its place\.$"):
        spectral.Jacobian(nn.Sequential(nn.Linear(3, 3), nn.DataParallel(inner)), x)


# On one process -------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(
    not hasattr(dist.ProcessGroup, "get_group_store"), reason="models that lie over ranks: torch 2.8 and later"
)
def test_a_model_that_one_rank_holds_all_of_is_multiplied_as_sharded_ones_are(tmp_path, monkeypatch):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        net = sharded(network())
        for name in ("GaussNewton", "Hessian"):
            A, plain = OPERATORS[name](net, batches()), OPERATORS[name](network(), batches())
            v = A.probe(7, 0)
            assert isinstance(v, pieces.Piece) and A.describe()["sharded"].startswith("over 1 ranks")
            close({"w": A.shards.whole(A @ v)}, {"w": plain @ plain.probe(7, 0)}, 1e-8 if name == "Hessian" else 1e-12)
        J, plain = spectral.Jacobian(net, batches()), spectral.Jacobian(network(), batches())
        u = J.T.probe(7, 1)
        close(
            {"J v": J @ v, "J^T u": J.shards.whole(J.T @ u)},
            {"J v": plain @ plain.probe(7, 0), "J^T u": plain.T @ u},
            1e-12,
        )
        monkeypatch.setattr(Tokens, "forward", half_hidden)  # tangents stop where gradients do
        J, plain = spectral.Jacobian(net, batches()), spectral.Jacobian(network(), batches())
        rows = plain.T @ torch.eye(plain.shape[0], dtype=torch.float64)
        close({"J v": J @ v}, {"J v": rows.T @ plain.probe(7, 0)}, 1e-12)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(
    not hasattr(dist.ProcessGroup, "get_group_store"), reason="models that lie over ranks: torch 2.8 and later"
)
def test_a_model_that_torch_would_change_at_its_first_call_is_refused_in_a_sentence_each_time(tmp_path):
    from torch.distributed._composable.replicate import replicate
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        x, tied = torch.ones(2, 6), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        tied[1].weight = tied[0].weight
        for module in (*tied, tied):
            fully_shard(module)
        if torch.__version__ >= "2.13":
            for _ in range(2):  # torch says it once, and then goes on with two parameters
                with pytest.raises(ValueError, match=r"^the parameters 0.weight and 1.weight were tied, and are two"):
                    spectral.Jacobian(tied, [x])
        copies = replicate(nn.Linear(6, 6))
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^the model is under torch's replicate, .* call the model once"):
                spectral.Jacobian(copies, [x])
        copies(x)
        plain = nn.Linear(6, 6)
        plain.load_state_dict(copies.state_dict())
        assert torch.equal(
            spectral.Jacobian(copies, [x]) @ torch.ones(42), spectral.Jacobian(plain, [x]) @ torch.ones(42)
        )
    finally:
        dist.destroy_process_group()


class Split(Operator):
    """A symmetric matrix whose vectors lie over ranks."""

    ranks = 3

    def __init__(self, matrix):
        super().__init__(matrix.shape, matrix.dtype, symmetric=True, nonnegative=True)
        self.matrix = matrix

    def _shards(self, side):
        n = self.shape[0]  # the second rank holds nothing
        return pieces.Shards(n, (((0, 10), (30, n - 30)), ((10, 0),), ((10, 20),)))

    def _apply(self, V):
        return self.shards.part(self.matrix @ self.shards.whole(V))


def by_threads(monkeypatch, ranks, work):
    """What `work()` gives on each of so many ranks, which are threads."""
    own, meeting, slots = threading.local(), threading.Barrier(ranks, timeout=60), [None] * ranks

    def exchanged(value):
        slots[own.rank] = value
        meeting.wait()
        everyone = list(slots)
        meeting.wait()
        return everyone

    def life(rank):
        own.rank = rank
        try:
            return work()
        except BaseException:
            meeting.abort()
            raise

    def told(value, failure):
        if failure is not None:
            raise failure
        return exchanged(value)

    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    monkeypatch.setattr(distributed, "rank", lambda: own.rank)
    monkeypatch.setattr(distributed, "all_reduce", lambda t: t.copy_(sum(exchanged(t.clone()))))
    monkeypatch.setattr(distributed, "_told", told)
    monkeypatch.setattr(distributed, "first", lambda value, device=None: exchanged(value)[0])
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(life, range(ranks)))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_sum_over_the_ranks(name, monkeypatch):
    g = torch.Generator().manual_seed(5)
    Q = torch.linalg.qr(torch.randn(60, 60, generator=g).double())[0]
    values = torch.cat([torch.tensor([9.0, 9.0, 7.0]), torch.linspace(0.0, 1.0, 57)]).double()
    M = Q @ torch.diag(values) @ Q.T
    expected = numbers(ESTIMATORS[name](dense(M)))

    def work():
        A = Split(M)
        return numbers(ESTIMATORS[name](A), A.shards)

    for found in by_threads(monkeypatch, 3, work):
        close(found, expected, 1e-8)


def dense(M):
    A = spectral.as_operator(M)
    A.symmetric = A.nonnegative = True
    return A


def test_products_of_pieces_are_plain_and_what_is_done_entry_by_entry_is_a_piece():
    V, w = torch.arange(6.0).reshape(2, 3).as_subclass(pieces.Piece), torch.ones(3).as_subclass(pieces.Piece)
    for plain in (V @ w, V @ V.T, w @ w, torch.ones(2).to(V)):
        assert type(plain) is torch.Tensor
    c = torch.ones(2)
    for piece in (V.T @ c, c @ V, 2 * w - w, w / 2, V[0], V[:, None], torch.cat([V, V]), torch.stack([w, w]), w.clone(),
                  w.double(), torch.sub(w, w, alpha=2), w.sub_(w), next(iter(V)), w.new_zeros(3), V.T.contiguous()):  # fmt: skip
        assert type(piece) is pieces.Piece
    for work in (
        w.sum,
        w.norm,
        w.max,
        w.mean,
        lambda: torch.linalg.qr(V),
        lambda: torch.equal(w, w),
        w.argmax,
    ):
        with pytest.raises(TypeError, match="not defined on one rank"):
            work()


# The Hessian by differences -------------------------------------------------------------------------------------------
class Wide(nn.Module):
    """Entries of v in one parameter of many."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 2))

    def forward(self, x):
        return self.body(x)


class Again(Wide):
    """The same, which makes its activations again in the backward pass."""

    def forward(self, x):
        return checkpointed(self.body, x, use_reentrant=False)


def difference(dtype, kind=Wide, **options):
    torch.manual_seed(0)
    net, g = kind().to(dtype), torch.Generator().manual_seed(2)
    data = [(torch.randn(5, 3, generator=g).to(dtype), torch.randint(2, (5,), generator=g)) for _ in range(3)]
    return net, data, spectral.Hessian(net, CE, data, engine="finite-difference", **options)


@pytest.mark.parametrize("kind", [Wide, Again])
@pytest.mark.parametrize("dtype, off", [(torch.float64, 1e-9), (torch.float32, 3e-3)])
def test_the_hessian_by_differences_is_the_hessian_to_the_error_that_it_states(kind, dtype, off):
    net, data, H = difference(dtype, kind)
    exact = spectral.Hessian(copy.deepcopy(net).double(), CE, [(x.double(), y) for x, y in data])
    values = {name: p.detach().clone() for name, p in net.named_parameters()}
    vectors = [H.probe(0, 0), torch.eye(H.shape[0], dtype=dtype)[5], torch.zeros(H.shape[0], dtype=dtype)]
    for v in vectors:
        due = exact @ v.double()
        assert (H @ v - due).norm() <= off * due.norm()
    stated = H.describe()["finite_difference"]
    assert stated["measured_by"] == "an exact product of the first batch" and 0 < stated["error"] <= off
    assert all(torch.equal(p, values[name]) for name, p in net.named_parameters())
    assert H.epsilon == stated["error"] and H.product_error >= stated["error"]


def test_the_error_of_differences_stands_in_every_spectrum():
    _, _, H = difference(torch.float64)
    s = spectral.slq(H, probes=2, steps=6)
    assert s.meta["operator"]["finite_difference"]["error"] > 0 and s.meta["operator"]["engine"] == "finite-difference"
    assert s.meta["epsilon"] == H.epsilon


def test_without_an_exact_product_the_error_of_differences_is_that_of_a_longer_step():
    net = nn.Linear(2, 1, bias=False).double()
    H = spectral.Hessian(
        net, lambda z, batch: (Once.apply(z).sum(), len(z)), [torch.eye(2).double()], engine="finite-difference", preflight=False
    )  # fmt: skip
    w = net.weight.detach()[0]
    assert torch.allclose(H @ torch.ones(2).double(), 3 * w, rtol=1e-8)
    stated = H.describe()["finite_difference"]
    assert stated["measured_by"] == "a step twice as long" and 0 < stated["error"] < 1e-8


@pytest.mark.parametrize("kind", [spectral.GaussNewton, spectral.EmpiricalFisher])
def test_differences_are_of_the_hessian_alone(kind):
    net, data, _ = difference(torch.float64)
    with pytest.raises(ValueError, match=r"^engine='finite-difference' is of the Hessian"):
        kind(net, CE, data, engine="finite-difference")
    with pytest.raises(ValueError, match=r"^engine='finite-difference' is of the Hessian"):
        spectral.Jacobian(net, data, engine="finite-difference")
