"""Vectors shared out over ranks give what one process gives: two ranks that have all the data, four that are a grid."""

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import CASES
from test_ranks import SIZES, fail, gauss_newton, same, sentence, short_of, started

import spectral
from spectral import heartbeat
from spectral.estimators import budget
from spectral.krylov.lanczos import Lanczos

pytestmark = pytest.mark.slow  # processes of their own

CASE = CASES["mlp"]
# eigenvalues of which later probes find further copies, above a bulk
MATRIX = np.diag(np.concatenate([[9.0, 9.0, 9.0, 7.0, 7.0, -1.0], np.linspace(0.0, 0.5, 200)]))
SIMPLE = np.diag(np.concatenate([[9.0, 7.0, -1.0], np.linspace(0.0, 0.5, 200)]))
WIDE = np.linspace(-1.0, 1.0, 60).reshape(6, 10) ** 3
OUTLYING = np.diag(np.concatenate([[1.02], np.linspace(0.0, 1.0, 1999)]))  # which a few steps may not see
FIXED = {"probes": 5, "steps": 25, "seed": 4}
RUNS = {
    "a basis": {},
    "nothing deflated": {"deflate": False},
    "two passes": {"reorthogonalize": False, "deflate": True},
    "a budget": {"budget": 90},
    "a budget that decides": {"budget": 150, "steps": None, "probes": None},
}
LONG = {"probes": 5, "steps": 12, "seed": 1, "deflate": False}  # what is interrupted
FEW = {"probes": 3, "steps": 4, "seed": 1}
METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace")


def told(s):
    """A spectrum's records, where they came from, and what they have cost where no probe was made again."""
    found = {key: s.meta.get(key) for key in ("stop", "stops", "probes", "identity", "reorthogonalize")}
    cost = None if s.meta.get("made_again") else s.products
    return found | {"cost": cost, "atoms": s.atoms.multiplicities}, [(r.alphas, r.betas) for r in s.records]


def measured(s):
    """What a measure says: without a basis the recurrence itself amplifies the rounding of sums over ranks."""
    return [s.integrate(f).value for f in (np.square, np.cos, np.exp)]


def results(data, **ranks):
    """Estimators on a matrix, and on operators over these data; the same calls by one process, and by several ranks."""
    A, J = gauss_newton(data), spectral.Jacobian(CASE.network(), data, engine="fresh")
    runs = {name: {k: v for k, v in {**FIXED, **options}.items() if v is not None} for name, options in RUNS.items()}
    found = {
        name: told(spectral.slq(SIMPLE if "budget" in options else MATRIX, **options, **ranks))
        for name, options in runs.items()
    }
    found["Gauss-Newton"] = told(spectral.slq(A, **FEW, **ranks))
    found["epochs"] = told(spectral.slq(A, **FEW, budget="10epochs", **ranks))
    found["a Jacobian"] = told(spectral.slq(J, **FEW, **ranks))
    found["an expression"] = told(spectral.slq(2 * A + 0.5 * spectral.I + J.gram("right"), **FEW, **ranks))
    for method in METHODS:
        e = spectral.trace(A, method=method, probes=24, seed=3, **ranks)
        found[f"trace by {method}"] = [e.value, e.stderr, e.products, e.method]
    e = spectral.trace(SIMPLE, np.cos, probes=2, steps=9, rtol=2e-2, seed=2, **ranks)
    found["trace of cos"] = [e.value, e.stderr, e.products]
    found["exact trace"] = float(spectral.trace(A, probes=1000, **ranks))
    for recurrence in ("lanczos", "chebyshev"):
        s = spectral.kpm(A, probes=5, moments=24, seed=1, recurrence=recurrence, **ranks)
        found[f"kpm by {recurrence}"] = measured(s), s.products, s.epochs, s.meta["interval"][1], s.meta["stop"]
    s = spectral.kpm(OUTLYING, probes=3, moments=120, seed=1, recurrence="chebyshev", **ranks)
    found["kpm on intervals"] = told(s)[1], s.meta["restarts"], s.meta["interval"]
    s = spectral.kpm(SIMPLE, probes=5, moments=40, seed=1, budget=50, **ranks)
    found["kpm on a budget"] = told(s)[1], s.products, s.meta["stops"]
    for method in ("hutchinson", "xdiag", "exact"):
        e = spectral.diagonal(A, method=method, probes=21, seed=3, **ranks)
        found[f"diagonal by {method}"] = [e.value, e.stderr, e.products]
    e = spectral.diagonal(J.gram("right"), probes=1000, **ranks)
    found["exact diagonal"] = [e.value, e.products]
    triplets = spectral.svd(J, 3, seed=3, **ranks)
    found["svd"] = [triplets.values, triplets.products, triplets.complete, triplets.epochs > 0]
    uneven = spectral.svd(WIDE, 2, seed=1, **ranks)
    found["svd of a matrix"] = [uneven.values, uneven.products]
    pairs = spectral.top(A, 3, block=2, seed=3, **ranks)
    found["top"] = [pairs.values, pairs.products, pairs.complete]
    return found


def rank_of_two(rank, folder):
    """Each rank has all the data."""
    heartbeat.PATIENCE = 0.5
    data = CASE.batches(SIZES)
    A, found = gauss_newton(data), {"results": results(data, ranks="probes")}
    found["made again"] = spectral.slq(MATRIX, **FIXED, ranks="probes").meta.get("made_again")
    s = spectral.slq(A, tol=0.05, seed=1, ranks="probes")
    found["tolerance"] = told(s), s.meta["error"]["w1_95"], s.meta["stop"]
    ticks, clock = itertools.count(), budget.time  # a look takes 10 ms on rank 0 and 20 on the other
    budget.time = SimpleNamespace(monotonic=lambda: 0.01 * (1 + rank) * next(ticks))
    found["seconds"] = told(spectral.slq(A, budget="0.5s", seed=1, ranks="probes"))
    budget.time = clock
    found["meta"] = [s.meta[key] for key in ("ranks",)] + [s.meta["operator"][key] for key in ("ranks", "teams")]
    found["epochs"] = s.epochs

    own = data[2 * rank : 2 * rank + 2]
    found["shares"] = sentence(lambda: spectral.slq(gauss_newton(own), **FIXED, ranks="probes"))
    found["no grid"] = sentence(lambda: spectral.slq(gauss_newton(own), **FIXED, ranks="both"))
    found["other matrix"] = sentence(lambda: spectral.trace(np.eye(9) * (1 + rank), ranks="probes"))

    if rank == 0:  # killed in the midst of its own probe, while the other is in the midst of another one
        found["ended"] = sentence(
            lambda: short_of(
                5, KeyboardInterrupt(), lambda: spectral.slq(A, **LONG, ranks="probes", checkpoint=f"{folder}/file"), 3
            )
        )
    else:
        found["ended"] = sentence(
            lambda: slowly(lambda: spectral.slq(A, **LONG, ranks="probes", checkpoint="elsewhere"))
        )
    found["resumed"] = told(spectral.slq(A, **LONG, ranks="probes", checkpoint=f"{folder}/file"))

    B, begun = gauss_newton(Failing(data, after=15) if rank == 1 else data), time.monotonic()
    work = (lambda run: run()) if rank == 1 else slowly
    found["failed"] = sentence(lambda: work(lambda: spectral.slq(B, **LONG, ranks="probes")))
    found["waited"] = time.monotonic() - begun
    time.sleep(1.0)  # a process that ends takes its connections with it
    return found


class Failing(list):
    """Batches that cannot be read any more after so many sweeps."""

    def __init__(self, batches, after):
        super().__init__(batches)
        self.after = after

    def __iter__(self):
        self.after -= 1
        if self.after < 0:
            fail()
        return super().__iter__()


def slowly(work):
    """`work()` with steps that take a while."""
    plain = Lanczos.step

    def step(self):
        time.sleep(0.1)
        return plain(self)

    Lanczos.step = step
    try:
        return work()
    finally:
        Lanczos.step = plain


def rank_of_four(rank, folder):
    """Ranks 0 and 2 hold one half of the data, 1 and 3 the other."""
    data = CASE.batches(SIZES)
    own = data[:2] if rank % 2 == 0 else data[2:]
    found = {"results": results(own, ranks="both")}
    if rank == 3:
        own = Failing(own, after=15)
    A = gauss_newton(own)
    found["failed"] = sentence(lambda: spectral.slq(A, **LONG, ranks="both"))
    time.sleep(1.0)
    return found


# What must come out ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return started(2, folder, rank_of_two)


@pytest.fixture(scope="module")
def by_one():
    return results(CASE.batches(SIZES))


@pytest.fixture(scope="module")
def one():
    torch.set_num_threads(1)
    return gauss_newton(CASE.batches(SIZES))


NAMES = [*RUNS, "Gauss-Newton", "epochs", "a Jacobian", "an expression", *(f"trace by {method}" for method in METHODS),
         "trace of cos", "exact trace", "top", "kpm by lanczos", "kpm by chebyshev", "kpm on intervals", "kpm on a budget",
         *(f"diagonal by {method}" for method in ("hutchinson", "xdiag", "exact")), "exact diagonal", "svd",
         "svd of a matrix"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_ranks_with_vectors_of_their_own_give_what_one_process_gives(two, by_one, name):
    assert same(two[1]["results"][name], two[0]["results"][name], exactly=True)
    assert as_by_one(two[0]["results"], by_one, name)


def as_by_one(found, by_one, name):
    """Whether a result is that of one process; what it has cost too, where no probe was made again."""
    own, expected = found[name], by_one[name]
    if name in RUNS and own[0]["cost"] is None:
        expected = expected[0] | {"cost": None}, expected[1]
    return same(own, expected, exactly=False)


def test_what_a_probe_would_have_deflated_further_is_made_again(two, by_one):
    assert two[0]["made again"] == two[1]["made again"] > 0
    assert by_one["a basis"][0]["atoms"].tolist() == [1, 2, 3]
    assert two[0]["results"]["a basis"][0]["atoms"].tolist() == [1, 2, 3]


def test_a_tolerance_and_a_clock_are_decided_together(two):
    assert same(two[1]["tolerance"], two[0]["tolerance"], exactly=True)
    assert two[0]["tolerance"][1] <= 0.05 and two[0]["tolerance"][2] == "tolerance"
    assert same(two[1]["seconds"], two[0]["seconds"], exactly=True)
    assert "budget" in (two[0]["seconds"][0]["stop"], *two[0]["seconds"][0]["stops"])
    assert two[0]["meta"] == [2, 2, 2] and two[0]["epochs"] == two[1]["epochs"] > 0


def test_ranks_that_do_not_hold_what_is_asked_for_say_so(two):
    for rank in two:
        assert rank["shares"] == two[0]["shares"] and rank["shares"][0] == "ValueError"
        assert rank["shares"][1].startswith(
            "ranks='probes' needs all the data on every rank, but rank 1 holds other batches"
        )
        assert rank["no grid"][1].startswith(
            "ranks='both' needs data that repeat, but no two groups of ranks hold the same"
        )
        assert rank["other matrix"][1].startswith("rank 1 has another matrix than rank 0")


def test_an_interrupted_round_goes_on_with_any_ranks(two, one):
    assert two[0]["ended"] == ("KeyboardInterrupt", "")
    assert two[1]["ended"][0] == "RankFailed" and "rank 0 of 2 failed (KeyboardInterrupt" in two[1]["ended"][1]
    expected = told(spectral.slq(one, **LONG))
    for rank in two:
        assert same(rank["resumed"], expected, exactly=False)


def test_a_rank_that_fails_in_its_own_probe_ends_the_others_in_theirs(two):
    words = "rank 1 of 2 failed (OSError: the disk of this rank is gone); mend it there, and start all ranks again."
    assert two[1]["failed"] == ("OSError", "the disk of this rank is gone.")
    assert two[0]["failed"] == ("RankFailed", words)
    assert max(rank["waited"] for rank in two) < 20


@pytest.mark.parametrize("ranks", ["data", "probes", "both"])
def test_on_one_process_all_is_the_same(one, ranks):
    assert same(told(spectral.slq(one, **FIXED, ranks=ranks)), told(spectral.slq(one, **FIXED)), exactly=True)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"ranks='all' is not known; use one of data, probes, both\."):
        spectral.slq(np.eye(3), ranks="all")
    with pytest.raises(
        ValueError, match=r"ranks='probes' shares out the directions of a block, and top follows one .* block=1"
    ):
        spectral.top(np.eye(3), 1, ranks="probes")


@pytest.mark.slow
def test_a_grid_of_ranks_gives_what_one_process_gives(tmp_path, by_one):
    found = started(4, tmp_path, rank_of_four)
    for name in NAMES:
        for rank in found:
            assert same(rank["results"][name], found[0]["results"][name], exactly=True), name
        assert as_by_one(found[0]["results"], by_one, name), name
    words = "rank 3 of 4 failed (OSError: the disk of this rank is gone); mend it there, and start all ranks again."
    assert all(
        rank["failed"] in (("RankFailed", words), ("OSError", "the disk of this rank is gone.")) for rank in found
    )
