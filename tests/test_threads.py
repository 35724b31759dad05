"""Threads multiply by one model in turns and by several side by side: the numbers of one thread, models whole."""

import contextlib
import contextvars
import copy
import os
import signal
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spectral
from spectral import threads

ROUNDS = 2
PACKAGE = Path(spectral.__file__).parent


def problem(seed=0, attention=False):
    torch.manual_seed(seed)
    body = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True) if attention else nn.Linear(4, 4)
    model = nn.Sequential(body, nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    return model, [(torch.randn(5, 3, 4, dtype=torch.float64), torch.randint(3, (5,))) for _ in range(2)]


def run(functions):
    """Each function in a thread of its own: results, or what they raised."""
    results = [None] * len(functions)

    def work(i):
        try:
            results[i] = functions[i]()
        except Exception as problem:
            results[i] = problem

    started = [threading.Thread(target=work, args=(i,)) for i in range(len(functions))]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def settings():
    return (
        torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(), torch.is_grad_enabled(),
        torch.get_rng_state().tolist(),
    )  # fmt: skip


def products(A):
    v = torch.linspace(-1, 1, A.shape[1], dtype=torch.float64)
    return torch.stack([A @ (v + i) for i in range(3)])


MAKE = {
    "hessian": lambda model, data: spectral.Hessian(model, nn.CrossEntropyLoss(), data),
    "jacobian": lambda model, data: spectral.Jacobian(model, data, engine="fresh"),
    "gauss-newton": lambda model, data: spectral.GaussNewton(model, nn.CrossEntropyLoss(), data, engine="replay"),
}


@pytest.mark.parametrize(
    ("kind", "attention"), [("hessian", True), ("jacobian", False), ("gauss-newton", True), ("gauss-newton", False)]
)
@pytest.mark.parametrize("shared", ["operator", "model", "nothing"])
def test_numbers_are_those_of_one_thread(kind, shared, attention):
    base, data = problem(attention=attention)
    right, before = products(MAKE[kind](base, data)), settings()
    for _ in range(ROUNDS):
        model = copy.deepcopy(base)
        first = MAKE[kind](model, data)
        work = {
            "operator": [lambda first=first: products(first)] * 3,
            "model": [lambda first=first: products(first)]
            + [lambda model=model: products(MAKE[kind](model, data))] * 2,
            "nothing": [lambda: products(MAKE[kind](copy.deepcopy(base), data))] * 3,
        }
        found = run(work[shared])
        assert all(torch.allclose(W, right, rtol=1e-9, atol=1e-12) for W in found)
        assert all(
            type(p) is nn.Parameter and torch.equal(p, q)
            for p, q in zip(model.parameters(), base.parameters(), strict=True)
        )
        assert [m.training for m in model.modules()] == [m.training for m in base.modules()]
    assert settings() == before


def test_spectra_are_those_of_one_thread():
    model, data = problem()

    def estimate():
        return spectral.slq(spectral.Hessian(model, nn.CrossEntropyLoss(), data), probes=2, steps=12, seed=3).nodes

    right = estimate()
    for nodes in run([estimate, estimate]):
        assert np.allclose(nodes, right, rtol=1e-9, atol=1e-12)


def test_models_that_share_a_part_take_turns():
    body, data = problem()[0][0], problem()[1]
    models = [nn.Sequential(body, nn.Flatten(), nn.Linear(12, 3).double()) for _ in range(2)]
    right = [products(spectral.Jacobian(model, data)) for model in models]
    for _ in range(ROUNDS):
        found = run([lambda model=model: products(spectral.Jacobian(model, data)) for model in models])
        assert all(torch.allclose(W, R, atol=1e-12) for W, R in zip(found, right, strict=True))
    assert all(type(p) is nn.Parameter for model in models for p in model.parameters())


def test_shuffling_loaders_do_not_disturb_each_other():
    model, data = problem()
    x, y = torch.cat([b[0] for b in data]), torch.cat([b[1] for b in data])
    loaders = [DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True) for _ in range(2)]
    right = products(spectral.Hessian(copy.deepcopy(model), nn.CrossEntropyLoss(), [(x, y)]))
    make = lambda loader: products(spectral.Hessian(copy.deepcopy(model), nn.CrossEntropyLoss(), loader))  # noqa: E731
    before = torch.get_rng_state()
    for W in run([lambda loader=loader: make(loader) for loader in loaders]):
        assert torch.allclose(W, right, atol=1e-10)
    assert torch.equal(torch.get_rng_state(), before)


def test_setting_is_handed_back_by_the_last():
    log = []

    class Setting:
        def __enter__(self):
            log.append("set")

        def __exit__(self, *args):
            log.append("back")

    shared, inside, leave = threads.Shared(Setting), threading.Event(), threading.Event()

    def hold():
        with shared():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    with shared():
        leave.set()
        thread.join()
        assert log == ["set"]
    assert log == ["set", "back"]


def test_setting_of_a_context_variable_is_handed_back_by_the_last_whichever_thread_it_is():
    """torch 2.15's sdpa_kernel is such a setting; a token of a context variable is refused in another context."""
    variable, log = contextvars.ContextVar("variable", default=0), []

    @contextlib.contextmanager
    def setting():
        token = variable.set(variable.get() + 1)
        log.append("set")
        try:
            yield
        finally:
            log.append("back")
            variable.reset(token)

    shared, inside, beside, left = threads.Shared(setting), *(threading.Event() for _ in range(3))

    def first():
        with shared():
            inside.set()
            beside.wait(10)
        left.set()

    def second():
        inside.wait(10)
        with shared():
            beside.set()
            left.wait(10)

    run([first, second])
    with shared():
        assert log == ["set", "back", "set"]
    assert log == ["set", "back"] * 2 and variable.get() == 0


def test_kernels_of_attention_are_chosen_for_all_threads_at_once():
    """Who set them beside the others would hand back what those have set."""
    users = [path.name for path in PACKAGE.rglob("*.py") if "sdpa_kernel(" in path.read_text()]
    assert users == ["linearize.py"]


def test_modules_are_locked_in_one_order_and_again_by_the_same_thread():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    entered = []

    def work(modules):
        for _ in range(50):
            with threads.alone(modules), threads.alone(modules[:1]):
                entered.append(1)

    run([lambda: work([a, b]), lambda: work([b, a])])
    assert len(entered) == 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("busy", [False, True])
def test_process_forked_while_a_thread_multiplies_is_told_instead_of_waiting_for_ever(busy):
    """The thread that holds the locks is not there in the child; forked between products, the child has them all."""
    model, inside, go_on = nn.Linear(2, 1).double(), threading.Event(), threading.Event()
    J = spectral.Jacobian(model, [torch.ones(1, 2).double()])

    def hold():
        with threads.alone([model]):
            inside.set()
            go_on.wait(30)

    holder = threading.Thread(target=hold)
    if busy:
        holder.start()
        inside.wait(30)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
        child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            text = str((J @ torch.ones(3).double()).item())
        except RuntimeError as problem:
            text = str(problem)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    text = os.read(reader, 1000).decode()
    os.close(reader)
    os.waitpid(child, 0)
    go_on.set()
    if busy:
        holder.join()
        assert text.startswith("this process was forked while another thread was multiplying")
    else:
        assert float(text) == 3
    assert float(J @ torch.ones(3).double()) == 3
