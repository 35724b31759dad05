"""Files are whole or absent; a run that was interrupted and resumed gives the bits of one shot."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

import spectral
from spectral import persist
from spectral.estimators import checkpoint
from spectral.krylov import chebyshev
from spectral.operators.operator import Operator
from spectral.schema import REAL, Fields

VALUES = np.append(np.linspace(0, 1, 77), [4.0, 7.0, 11.0])


class Diagonal(Operator):
    """diag(values), stopping with KeyboardInterrupt at a given product."""

    def __init__(self, values=VALUES, stop_at=None, dtype=torch.float64):
        super().__init__((len(values),) * 2, dtype, symmetric=True)
        self.values, self.stop_at = torch.as_tensor(values).to(dtype)[:, None], stop_at

    def _apply(self, V):
        if self.stop_at is not None and self.products > self.stop_at:
            raise KeyboardInterrupt
        return self.values * V

    def identity(self):
        return persist.fingerprint([self.describe(), self.values.double().sum().item()])


def same(a, b):
    for name in ("dim", "zeros", "products", "epochs", "method"):
        assert getattr(a, name) == getattr(b, name), name
    for x, y in ((a.nodes, b.nodes), (a.weights, b.weights), *zip(a.atoms, b.atoms, strict=True)):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(a.removed, b.removed, strict=True):
        np.testing.assert_array_equal(x, y)
    assert spectral.storage.plain(a.meta) == spectral.storage.plain(b.meta)


OPTIONS = {"probes": 5, "steps": 30, "seed": 3, "progress": False}
KPM_OPTIONS = {"probes": 5, "moments": 60, "seed": 3, "progress": False}


@pytest.mark.parametrize(
    ("stop_at", "dtype"),
    [*((n, torch.float64) for n in (5, 45, 75, 149)), (45, torch.float32), (75, torch.bfloat16)],
)
def test_an_interrupted_run_resumes_to_the_bits_of_one_shot(tmp_path, stop_at, dtype):
    whole = spectral.slq(Diagonal(dtype=dtype), **OPTIONS)
    if dtype == torch.float64:
        assert len(whole.atoms.values) == 3
    stop_at = stop_at * whole.products // 150
    with pytest.raises(KeyboardInterrupt):
        spectral.slq(Diagonal(stop_at=stop_at, dtype=dtype), checkpoint=tmp_path / "run.npz", **OPTIONS)
    A = Diagonal(dtype=dtype)
    A @ torch.ones(len(VALUES), 17, dtype=dtype)  # products of somebody else are none of ours
    same(spectral.slq(A, checkpoint=tmp_path / "run.npz", **OPTIONS), whole)
    again = Diagonal(dtype=dtype)
    same(spectral.slq(again, checkpoint=tmp_path / "run.npz", **OPTIONS), whole)
    assert again.products == 1  # one of the run, repeated: is it the same matrix?


def test_a_session_interrupted_many_times_counts_each_saved_product_once(tmp_path):
    A, path = Diagonal(), tmp_path / "run.npz"
    for _ in range(20):
        A.stop_at = A.products + 40  # one whole probe of 30 a session
        try:
            s = spectral.slq(A, checkpoint=path, **OPTIONS)
            break
        except KeyboardInterrupt:
            pass
    assert s.products == 150
    assert A.products > 150  # what the interrupted probes cost is lost


def test_a_budget_of_products_holds_over_sessions(tmp_path):
    options = {**OPTIONS, "probes": 50, "budget": 100}
    whole = spectral.slq(Diagonal(), **options)
    assert whole.products == 100
    with pytest.raises(KeyboardInterrupt):
        spectral.slq(Diagonal(stop_at=50), checkpoint=tmp_path / "run.npz", **options)
    same(spectral.slq(Diagonal(), checkpoint=tmp_path / "run.npz", **options), whole)


def test_more_probes_go_on_from_the_same_file(tmp_path):
    spectral.slq(Diagonal(), checkpoint=tmp_path / "run.npz", **{**OPTIONS, "probes": 2})
    A = Diagonal()
    same(spectral.slq(A, checkpoint=tmp_path / "run.npz", **OPTIONS), spectral.slq(Diagonal(), **OPTIONS))
    assert A.products == 90 + 1


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"steps": 31}, {"deflate": False}, {"tol": 0.01}, {"reorthogonalize": False}, "operator"]
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change):
    spectral.slq(Diagonal(), checkpoint=tmp_path / "run.npz", **OPTIONS)
    A = Diagonal(VALUES * 2) if change == "operator" else Diagonal()
    with pytest.raises(ValueError, match="another operator, seed or setting") as error:
        spectral.slq(A, checkpoint=tmp_path / "run.npz", **{**OPTIONS, **({} if change == "operator" else change)})
    assert "\n" not in str(error.value)


def test_every_damage_to_a_file_is_one_sentence(tmp_path):
    path = tmp_path / "a.npz"
    persist.save_arrays(path, {"x": np.arange(4.0), "y": np.zeros((2, 3), dtype=np.int64)}, {"format": "test"})
    good = path.read_bytes()
    arrays, header = persist.load_arrays(path)
    assert header == {"format": "test"}
    damaged = [good[:n] for n in range(0, len(good), 37)]
    damaged += [good[:i] + bytes([good[i] ^ 0xFF]) + good[i + 1 :] for i in range(0, len(good), 3)]
    caught = 0
    for content in [*damaged, b"", b"not a zip", b"\x93NUMPY"]:
        path.write_bytes(content)
        try:
            found, found_header = persist.load_arrays(path)
        except ValueError as problem:
            caught += 1
            assert "damaged" in str(problem) and "\n" not in str(problem)
        else:  # bytes of the zip that carry nothing, such as times
            assert found_header == header
            assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert caught > len(damaged) // 2


def test_pickles_are_never_loaded(tmp_path):
    np.savez(tmp_path / "evil.npz", checksum=np.array([{"a": 1}], dtype=object), header=np.zeros(1))
    np.save(tmp_path / "plain.npy", np.zeros(3))
    for name in ("evil.npz", "plain.npy"):
        with pytest.raises(ValueError, match="was not written by spectral"):
            persist.load_arrays(tmp_path / name)


def test_a_header_comes_back_in_its_order(tmp_path):
    header = {"b": 1, "a": {"d": 2, "c": 3}}
    persist.save_arrays(tmp_path / "one.npz", {}, header)
    found = persist.load_arrays(tmp_path / "one.npz")[1]
    assert [*found, *found["a"]] == ["b", "a", "d", "c"]


def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file"
    persist.atomic_write(path, b"old")
    with pytest.raises(TypeError):
        persist.atomic_write(path, "no bytes")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_fingerprints_do_not_depend_on_the_order_of_keys():
    assert persist.fingerprint({"a": 1, "b": 2}) == persist.fingerprint({"b": 2, "a": 1})
    assert persist.fingerprint({"a": 1}) != persist.fingerprint({"a": 2})


CHILD = """
import sys, time
sys.path.insert(0, {here!r})
import torch
from test_persist import KPM_OPTIONS, LONG, OPTIONS, Diagonal
import spectral
from spectral.estimators import assembled, checkpoint
checkpoint.SAVE_SECONDS = checkpoint.SHARE = 0.0
fast = Diagonal._apply
Diagonal._apply = lambda self, V: (time.sleep(0.004), fast(self, V))[1]
print("begun", flush=True)
{call}
"""
SLQ = "spectral.slq(Diagonal(), checkpoint=sys.argv[1], reorthogonalize={mode!r}, deflate=True, **OPTIONS)"
EXACT = "assembled.BLOCK = 8; spectral.exact(Diagonal(LONG), checkpoint=sys.argv[1])"
LONG = np.linspace(0, 1, 1200)
KPM = "spectral.kpm(Diagonal(), checkpoint=sys.argv[1], recurrence={mode!r}, **KPM_OPTIONS)"


def killed_and_resumed(folder, kills, call, number):
    """A run that is killed `kills` times at random moments after its first save: the file to resume from."""
    rng, path, struck = np.random.default_rng(kills), folder / "run.npz", 0
    code = CHILD.format(here=os.path.dirname(__file__), call=call)
    while struck < kills or not path.exists():
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        child.stdout.readline()
        while not path.exists() and child.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 1.2 / kills + 0.1))
        struck += child.poll() is None
        child.send_signal(number)
        code_left = child.wait()
        child.stdout.close()
        if code_left == 0:  # it had ended: once more from nothing
            for file in folder.iterdir():
                file.unlink()
    return path


def goes_on(path, A, run, whole):
    """What is kept is not multiplied again, but for the one product that proves whose it is."""
    kept = persist.load_arrays(path)[1]["spent"][0]
    same(run(A), whole)
    assert kept > 0 and A.products == whole.products - kept + 1


@pytest.mark.parametrize(
    ("kills", "mode", "number"),
    [
        (1, True, signal.SIGKILL),
        pytest.param(3, True, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(2, "selective", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(50, True, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(12, False, signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_resumes_to_the_same_bits(tmp_path, kills, mode, number):
    run = partial(spectral.slq, reorthogonalize=mode, deflate=True, **OPTIONS)
    path = killed_and_resumed(tmp_path, kills, SLQ.format(mode=mode), number)
    goes_on(path, Diagonal(), partial(run, checkpoint=path), run(Diagonal()))


@pytest.mark.parametrize(
    ("kills", "number"),
    [
        pytest.param(2, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(25, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(10, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_exact_that_is_killed_resumes_to_the_same_bits(tmp_path, kills, number):
    path = killed_and_resumed(tmp_path, kills, EXACT, number)
    goes_on(path, Diagonal(LONG), partial(spectral.exact, checkpoint=path), spectral.exact(Diagonal(LONG)))


@pytest.mark.parametrize(
    ("kills", "recurrence", "number"),
    [
        pytest.param(1, "chebyshev", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(2, "chebyshev", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(2, "chebyshev", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(25, "chebyshev", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(25, "lanczos", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(10, "lanczos", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_kpm_that_is_killed_resumes_to_the_same_bits(tmp_path, kills, recurrence, number):
    run = partial(spectral.kpm, recurrence=recurrence, **KPM_OPTIONS)
    path = killed_and_resumed(tmp_path, kills, KPM.format(mode=recurrence), number)
    goes_on(path, Diagonal(), partial(run, checkpoint=path), run(Diagonal()))


def test_a_probe_in_flight_loses_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0.0)
    whole = spectral.slq(Diagonal(), tol=0.02, seed=1)
    A, path = Diagonal(), tmp_path / "run.npz"
    for _ in range(200):
        A.stop_at = A.products + 17
        try:
            same(spectral.slq(A, tol=0.02, seed=1, checkpoint=path), whole)
            break
        except KeyboardInterrupt:
            pass
    else:
        pytest.fail("the run went on without end")


@pytest.mark.parametrize("often", [True, False], ids=["saved often", "saved at the signal"])
def test_second_passes_are_resumed_to_the_bits_of_one_shot(tmp_path, monkeypatch, often):
    """Without a basis, a pass for each copy of a triple outlier; one that is cut off is made again."""
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0 if often else 1e9)
    monkeypatch.setattr(checkpoint, "SHARE", 0.0)
    options = {**OPTIONS, "reorthogonalize": False, "deflate": True}
    values = np.append(VALUES, [11.0, 11.0])
    whole = spectral.slq(Diagonal(values), **options)
    assert whole.atoms.multiplicities.tolist() == [1, 1, 3] and whole.products == 5 * 30 + 3 * 29
    A = Diagonal(values)
    for _ in range(20):
        A.stop_at = A.products + 37
        try:
            s = spectral.slq(A, checkpoint=tmp_path / "run.npz", **options)
            break
        except KeyboardInterrupt:
            pass
    same(s, whole)


def test_vectors_beside_a_checkpoint_that_were_damaged_are_one_sentence(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        spectral.slq(Diagonal(stop_at=40), checkpoint=tmp_path / "run.npz", **OPTIONS)
    for name in ("run.npz.vectors", "run.npz.basis"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
        with pytest.raises(ValueError, match="damaged"):
            spectral.slq(Diagonal(), checkpoint=tmp_path / "run.npz", **OPTIONS)
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match="missing"):
            spectral.slq(Diagonal(), checkpoint=tmp_path / "run.npz", **OPTIONS)
        (tmp_path / name).write_bytes(content)
    whole = spectral.slq(Diagonal(), **OPTIONS)
    same(spectral.slq(Diagonal(), checkpoint=tmp_path / "run.npz", **OPTIONS), whole)


class Late(Diagonal):
    """Hides its largest eigenvalue until product 60, so that the Chebyshev recurrence leaves its interval and restarts."""

    hidden = 0  # products of earlier sessions

    def _apply(self, V):
        w = super()._apply(V)
        w[-1] *= 0.05 if self.products + self.hidden <= 60 else 1.0
        return w


@pytest.mark.parametrize(  # every pair of settings once
    ("recurrence", "interval", "dtype"),
    [
        ("lanczos", None, torch.float64),
        ("lanczos", (-0.1, 12.0), torch.bfloat16),
        ("chebyshev", None, torch.bfloat16),
        ("chebyshev", (-0.1, 12.0), torch.float64),
    ],
)
def test_kpm_interrupted_anywhere_resumes_to_the_bits_of_one_shot(tmp_path, recurrence, interval, dtype):
    options = {**KPM_OPTIONS, "recurrence": recurrence, "interval": interval, "checkpoint": tmp_path / "run.npz"}
    whole = spectral.kpm(Diagonal(dtype=dtype), **{**options, "checkpoint": None})
    A = Diagonal(dtype=dtype)
    for _ in range(50):
        A.stop_at = A.products + 23
        try:
            s = spectral.kpm(A, **options)
            break
        except KeyboardInterrupt:
            pass
    same(s, whole)
    assert A.products < whole.products + 50 + 23 * (recurrence == "chebyshev")  # one product a session is lost
    with pytest.raises(ValueError, match="another operator, seed or setting"):
        spectral.kpm(A, **{**options, "moments": 62})
    with pytest.raises(ValueError, match="another operator, seed or setting"):
        spectral.slq(A, steps=30, seed=3, checkpoint=tmp_path / "run.npz")
    A.stop_at = None
    more = spectral.kpm(A, **{**options, "probes": 6})
    same(more, spectral.kpm(Diagonal(dtype=dtype), **{**options, "probes": 6, "checkpoint": None}))


def test_a_probe_that_left_its_interval_is_saved_as_an_attempt(tmp_path, monkeypatch):
    for owner, name in (  # a matrix that changes on the way is refused otherwise
        (checkpoint.Checkpoint, "prove"),
        (chebyshev, "look_again"),
    ):
        monkeypatch.setattr(owner, name, lambda *given: None)
    options = {**KPM_OPTIONS, "recurrence": "chebyshev"}
    whole = spectral.kpm(Late(), **options)
    assert whole.meta["restarts"] >= 1
    for stop_at in range(52, whole.products, 17):
        path = tmp_path / f"{stop_at}.npz"
        with pytest.raises(KeyboardInterrupt):
            spectral.kpm(Late(stop_at=stop_at), checkpoint=path, **options)
        rest = Late()
        rest.hidden = int(persist.load_arrays(path)[1]["spent"][0])
        same(spectral.kpm(rest, checkpoint=path, **options), whole)


@pytest.mark.parametrize("estimate", [spectral.slq, spectral.kpm])
def test_seconds_of_earlier_sessions_count(tmp_path, monkeypatch, estimate):
    """On a clock that each product moves by a second: 20 s are 20 products, however often they are interrupted."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Slow(Diagonal):
        def _apply(self, V):
            w = super()._apply(V)
            clock[0] += 1.0
            return w

    options = {"probes": 50, "budget": "20s", "progress": False}
    options |= {"steps": 8, "deflate": False} if estimate is spectral.slq else {"moments": 16}
    whole = estimate(Slow(), **options)
    for stop_at in (5, 9):
        clock[0] += 500.0  # between sessions nothing is spent
        with pytest.raises(KeyboardInterrupt):
            estimate(Slow(stop_at=stop_at), checkpoint=tmp_path / "run.npz", **options)
    same(estimate(Slow(), checkpoint=tmp_path / "run.npz", **options), whole)
    assert whole.products == 20


@pytest.mark.parametrize(
    ("options", "often"),
    [
        ({"tol": 0.006}, True),
        ({"tol": 0.006}, False),
        ({"budget": 150}, False),
        ({"tol": 0.004, "budget": 150}, True),
        ({"tol": {"count": (0.52, 20, 6)}}, False),
    ],
    ids=str,
)
def test_what_an_adaptive_run_decides_does_not_depend_on_interruptions(tmp_path, monkeypatch, options, often):
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0 if often else 1e9)
    monkeypatch.setattr(checkpoint, "SHARE", 0.0)
    whole = spectral.slq(Diagonal(), seed=5, progress=False, **options)
    A, path = Diagonal(), tmp_path / "run.npz"
    for _ in range(whole.products):
        A.stop_at = A.products + 17
        try:
            s = spectral.slq(A, seed=5, checkpoint=path, progress=False, **options)
            break
        except KeyboardInterrupt:
            pass
    assert whole.products > 20
    same(s, whole)


class Table(Operator):
    """A dense matrix, stopping with KeyboardInterrupt at given counts of products."""

    def __init__(self, A, stops=(), symmetric=True):
        self.A, self.stops = torch.as_tensor(A), list(stops)
        super().__init__(tuple(self.A.shape), self.A.dtype, symmetric=symmetric)

    def _apply(self, V):
        if self.stops and self.products > self.stops[0]:
            self.stops.pop(0)
            raise KeyboardInterrupt
        return self.A @ V

    def _apply_transpose(self, V):
        return self.A.T @ V

    def identity(self):
        return persist.fingerprint([self.describe(), self.A.double().sum().item()])


SYMMETRIC = np.diag(np.concatenate([np.linspace(0, 1, 60), [2.0, 2.0, 3.0, 7.0]])) + 1e-3
TALL = np.random.default_rng(5).standard_normal((90, 40)) @ np.diag(np.geomspace(1, 1e-3, 40))
SAVED = {
    "top": (SYMMETRIC, lambda A, **o: spectral.top(A, 4, **o)),
    "top, restarts": (SYMMETRIC, lambda A, **o: spectral.top(A, 5, basis=12, which="smallest", budget=400, **o)),
    "top, blocks": (SYMMETRIC, lambda A, **o: spectral.top(A, 3, block=2, **o)),
    "svd": (TALL, lambda A, **o: spectral.svd(A, 4, **o)),
    "svd, restarts": (TALL, lambda A, **o: spectral.svd(A, 3, basis=9, which="smallest", budget=900, **o)),
    "hutchinson": (SYMMETRIC, lambda A, **o: spectral.trace(A, method="hutchinson", probes=50, **o)),
    "hutch++": (SYMMETRIC, lambda A, **o: spectral.trace(A, method="hutch++", probes=48, **o)),
    "xtrace": (SYMMETRIC, lambda A, **o: spectral.trace(A, method="xtrace", probes=10, rtol=1e-3, **o)),
    "xnystrace": (SYMMETRIC, lambda A, **o: spectral.trace(A, method="xnystrace", probes=40, **o)),
    "exact trace": (SYMMETRIC, lambda A, **o: spectral.trace(A, probes=100, **o)),
    "slq trace": (SYMMETRIC, lambda A, **o: spectral.trace(A, np.exp, probes=2, steps=9, rtol=6e-3, **o)),
    "diagonal": (SYMMETRIC, lambda A, **o: spectral.diagonal(A, method="hutchinson", probes=50, **o)),
    "xdiag": (SYMMETRIC, lambda A, **o: spectral.diagonal(A, method="xdiag", probes=40, **o)),
    "exact": (np.diag(np.linspace(-1, 1, 400)) + 1e-3, lambda A, **o: spectral.exact(A, **o)),
    "exact, singular": (TALL, lambda A, **o: spectral.exact(A, **o)),
    "exact diagonal": (SYMMETRIC, lambda A, **o: spectral.diagonal(A, method="exact", **o)),
}


def bits(result):
    names = getattr(result, "__dataclass_fields__", {})
    skipped = ("epochs", "method", "meta", "records")
    parts = {name: getattr(result, name) for name in names if name not in skipped}
    return {name: [np.asarray(p).tobytes() for p in (v if isinstance(v, tuple) else [v])] for name, v in parts.items()}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize(
    ("dtype", "often"), [(np.float64, True), (np.float32, False)], ids=["saved often", "saved at the signal, float32"]
)
def test_every_long_estimator_goes_on_to_the_bits_of_one_shot(tmp_path, monkeypatch, name, dtype, often):
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0 if often else 1e9)
    monkeypatch.setattr(checkpoint, "SHARE", 0.0)
    matrix, run = SAVED[name]
    A = matrix.astype(dtype)
    symmetric = A.shape[0] == A.shape[1]
    whole = run(Table(A, symmetric=symmetric or None), progress=False)
    interrupted = Table(A, stops=np.linspace(3, 0.9 * whole.products, 7).astype(int), symmetric=symmetric or None)
    for _ in range(30):
        try:
            result = run(interrupted, checkpoint=tmp_path / "run.npz", progress=False)
            break
        except KeyboardInterrupt:
            pass
    assert not interrupted.stops
    assert bits(result) == bits(whole)
    again = Table(A, symmetric=symmetric or None)
    assert bits(run(again, checkpoint=tmp_path / "run.npz", progress=False)) == bits(whole)
    assert again.products <= 12  # nothing is drawn again; residuals are measured again


def test_a_saved_state_of_another_setting_is_refused_and_so_is_a_damaged_one(tmp_path):
    path = tmp_path / "run.npz"
    spectral.top(Table(SYMMETRIC), 3, checkpoint=path)
    for run in (
        lambda: spectral.top(Table(SYMMETRIC), 4, checkpoint=path),
        lambda: spectral.top(Table(SYMMETRIC + 1), 3, checkpoint=path),
        lambda: spectral.top(Table(SYMMETRIC), 3, seed=1, checkpoint=path),
        lambda: spectral.trace(Table(SYMMETRIC), checkpoint=path),
        lambda: spectral.exact(Table(SYMMETRIC), checkpoint=path),
    ):
        with pytest.raises(ValueError, match="another operator, seed or setting"):
            run()
    path.write_bytes(path.read_bytes()[:-100])
    for run in (spectral.exact, lambda A, **o: spectral.top(A, 3, **o)):
        with pytest.raises(ValueError, match="damaged"):
            run(Table(SYMMETRIC), checkpoint=path)


def test_a_search_that_its_budget_ended_goes_on_with_a_larger_one(tmp_path):
    values = np.linspace(0, 1, 400)
    short = spectral.top(Diagonal(values), 3, budget=40, checkpoint=tmp_path / "run.npz")
    assert not short.complete and short.products <= 40
    long = spectral.top(Diagonal(values), 3, budget=4000, checkpoint=tmp_path / "run.npz")
    assert long.complete and long.products > short.products
    np.testing.assert_allclose(long.values, values[:-4:-1], atol=1e-7)


# The operator of a checkpoint -----------------------------------------------------------------------------------------
class Opaque(Table):
    """Nothing but products, as a scipy LinearOperator: whatever the matrix, its identity is the same."""

    def identity(self):
        return Operator.identity(self)


def interrupted(run, A, stop_at, path):
    """Run until a product; whether it was cut off."""
    A.stops = [stop_at]
    try:
        run(A, checkpoint=path, progress=False)
    except KeyboardInterrupt:
        return True
    return False


PROVEN = {
    **{name: made for name, made in SAVED.items() if name != "slq trace"},  # that is slq
    "slq": (SYMMETRIC, lambda A, **o: spectral.slq(A, probes=3, steps=20, **o)),
    "slq, no basis": (SYMMETRIC, lambda A, **o: spectral.slq(A, probes=3, steps=20, reorthogonalize=False, **o)),
    "kpm": (SYMMETRIC, lambda A, **o: spectral.kpm(A, probes=3, moments=40, **o)),
    "kpm, chebyshev": (SYMMETRIC, lambda A, **o: spectral.kpm(A, probes=3, moments=40, recurrence="chebyshev", **o)),
    "kpm, interval": (
        SYMMETRIC,
        lambda A, **o: spectral.kpm(A, probes=3, moments=40, recurrence="chebyshev", interval=(-1.0, 9.0), **o),
    ),
}


@pytest.mark.parametrize("name", PROVEN)
def test_a_checkpoint_of_another_matrix_is_refused_where_only_products_tell(tmp_path, name):
    """A matrix 1e-6 away, of the same class and size; the same one with products that are rounded otherwise goes on.

    Of a run that was cut off before its first product was done nothing is mixed: the other matrix gives its own numbers.
    """
    matrix, run = PROVEN[name]
    symmetric = True if matrix.shape[0] == matrix.shape[1] else None
    rng = np.random.default_rng(2)
    noise = rng.standard_normal(matrix.shape)
    noise = (noise + noise.T) / 2 if symmetric else noise
    other = matrix + 1e-6 * noise
    whole, theirs = (run(Opaque(M, symmetric=symmetric), progress=False) for M in (matrix, other))
    refused = 0
    for share in (0.6, 2.0):
        path = tmp_path / f"{share}.npz"
        interrupted(run, Opaque(matrix, symmetric=symmetric), int(share * whole.products), path)
        before = {file: file.read_bytes() for file in tmp_path.iterdir()}
        try:
            result = run(Opaque(other, symmetric=symmetric), checkpoint=path, progress=False)
        except ValueError as error:
            refused += 1
            assert "of another operator: a product" in str(error) and "\n" not in str(error)
        else:
            assert bits(result) == bits(theirs)
        for file in tmp_path.iterdir():
            file.unlink()
        for file, content in before.items():
            file.write_bytes(content)
        again = run(Opaque(matrix * (1 + 2e-16 * np.sign(noise)), symmetric=symmetric), checkpoint=path, progress=False)
        assert again.products == whole.products
    assert refused > 0


def test_scipy_operators_of_two_matrices_are_two_operators(tmp_path):
    one, two = (scipy.sparse.linalg.aslinearoperator(np.diag(v)) for v in (VALUES, VALUES + 1e-9))
    for i, run in enumerate((spectral.slq, spectral.kpm, spectral.exact, spectral.trace, spectral.diagonal)):
        run(one, checkpoint=tmp_path / f"{i}.npz")
        with pytest.raises(ValueError, match="of another operator: a product of its run, made again, differs by"):
            run(two, checkpoint=tmp_path / f"{i}.npz")


class Noisy(Diagonal):
    """Products that are never twice the same, to 1e-5; `stated` says so."""

    stated = True

    def _apply(self, V):
        return super()._apply(V) * (
            1 + 1e-5 * torch.from_numpy(np.random.default_rng(self.products).standard_normal(V.shape))
        )

    @property
    def product_error(self):
        return 1e-4 if self.stated else super().product_error


def test_noise_that_is_stated_is_no_other_matrix_and_other_noise_ends_the_run(tmp_path):
    for values, refused in ((VALUES, False), (VALUES * 1.01, True)):
        A, B = Noisy(), Noisy(values)
        B.identity = A.identity
        path = tmp_path / f"{refused}.npz"
        spectral.kpm(A, probes=2, moments=20, checkpoint=path)
        B @ torch.ones(len(VALUES), dtype=torch.float64)  # its noise is another
        with pytest.raises(ValueError, match="another operator") if refused else nullcontext():
            spectral.kpm(B, probes=3, moments=20, checkpoint=path)
    A = Noisy()
    A.stated = False
    with pytest.raises(RuntimeError, match="is not twice the same"):
        spectral.kpm(A, probes=2, moments=20)


def test_the_repeated_product_is_not_counted_and_not_paid_from_the_budget(tmp_path):
    for run, budget in ((lambda A, **o: spectral.top(A, 3, **o), 60), (lambda A, **o: spectral.slq(A, **o), 60)):
        whole = run(Diagonal(), budget=budget)
        path, sessions, result = tmp_path / f"{whole.products}.npz", 0, None
        while result is None:
            sessions += 1
            with suppress(KeyboardInterrupt):
                result = run(Diagonal(stop_at=12), budget=budget, checkpoint=path)
        assert result.products == whole.products and sessions > 2
        path.unlink()


def test_a_whole_file_of_another_form_is_said_to_be_of_another_version(tmp_path):
    path = tmp_path / "network-1.npz"
    persist.save_arrays(path, {}, {"facts": {"accuracy": 1.0}})
    with pytest.raises(ValueError, match=r"is damaged, or was not written by this version of spectral: facts\.noise"):
        persist.check(
            path, persist.load_arrays(path)[1], Fields({"facts": Fields({"noise": REAL}, {"accuracy": REAL})}), ""
        )


def test_a_run_on_a_system_without_posix_goes_on_and_is_reported(tmp_path):
    """As on Windows, whose pipes have no letter for lambda."""
    tests = Path(__file__).parent
    small = [
        "data.train=40",
        "data.test=20",
        "model.options.widths=[8]",
        "training.options.max_epochs=2",
        "operator=input_stacked",
    ]
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", tests / "windows.py", tmp_path, *small], capture_output=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(tests.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout.decode("cp1252")
    assert r"\u03bbmax" in said and "MiB\nreport" not in said
    assert len(list(tmp_path.rglob("report.html"))) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
@pytest.mark.parametrize(
    "write", [lambda path: persist.atomic_write(path, b"x"), persist.claim], ids=["write", "claim"]
)
def test_what_is_no_ordinary_file_is_never_replaced(tmp_path, write):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is a device, a pipe or a socket"):
        write(path)
    assert path.is_fifo() and list(tmp_path.iterdir()) == [path]
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(ValueError, match=r"is a device, a pipe or a socket|is a link"):
        write(link)
    assert link.is_symlink() and sorted(tmp_path.iterdir()) == [link, path]
