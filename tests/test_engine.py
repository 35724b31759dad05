"""Both ways give the derivative; programs give what their way gives; the choice is measured and says its reason."""

import gc
import shutil
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import Cube
from torch import nn

from spectral import EmpiricalFisher, GaussNewton, Hessian, Jacobian, arrays
from spectral.engine import autotune, capture, linearize, trace
from spectral.engine.autotune import AutoEngine
from spectral.engine.plain import Maps, Workload
from spectral.engine.store import Store
from spectral.networks import sum_over_batches
from spectral.networks.products import budget_bytes


def f(a, b):
    return torch.stack([(a * b).sum() * x + b.sin().sum() for x in (1.0, 2.0, 3.0)])[:, None] * a[:2]


def dense(primals):
    J = torch.autograd.functional.jacobian(lambda *p: f(*p).reshape(-1), primals)
    return torch.cat([block.reshape(6, -1) for block in J], 1)


def adjoint_error(lin, calls=3):
    """Of products J v and J^T u on so many calls."""
    sizes, shape = [p.numel() for p in lin.primals], lin.output.shape

    def there(v):
        v = v[:].to(like.dtype)
        return (
            lin.jvp(tuple(piece.view_as(p) for piece, p in zip(v.split(sizes), lin.primals, strict=True))).reshape(-1),
        )

    def back(u):
        return lin.vjp(u.view(shape))

    like = torch.empty(sum(sizes), dtype=lin.primals[0].dtype)
    test, errors = linearize.Adjoint(back, like, lin.output.numel()), []
    for call in range(calls):
        v, u = (
            torch.randn(n, generator=torch.Generator().manual_seed(call)).to(like.dtype)
            for n in (len(like), lin.output.numel())
        )
        errors += [test.of_forward(v, there(v), there), test.of_transpose(u, back(u), there)]
    return max(errors)


@pytest.fixture
def loop():
    """x -> 2 x, for which vmap has no rule."""
    library = torch.library.Library("spectral_tests", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CPU")
    yield torch.ops.spectral_tests.twice
    library._destroy()


def test_what_is_mapped_in_a_loop_warns_nobody(capfd, loop):
    def said(mapped):
        with warnings.catch_warnings(record=True) as caught:  # of torch 2.15, which wrote it to the terminal before
            warnings.simplefilter("always")
            assert mapped(torch.ones(2, 3)).sum() == 12
        return capfd.readouterr().err + "".join(str(warning.message) for warning in caught)

    assert said(trace.vmap(loop)) == ""
    inner = trace.vmap(lambda x: 1 * x)  # one within another, after which the other goes on
    assert said(trace.vmap(lambda x: loop(inner(x)))) == ""
    assert "performance drop" in said(torch.func.vmap(loop))


@pytest.mark.parametrize("engine", linearize.WAYS.values())
def test_jvp_and_vjp_are_those_of_the_dense_jacobian(engine):
    primals = (torch.randn(3).double(), torch.randn(3).double())
    J, lin = dense(primals), engine(f, primals)
    for _ in range(2):  # the graph is kept
        v, u = torch.randn(6).double(), torch.randn(3, 2).double()
        assert torch.allclose(lin.jvp(v.split(3)).reshape(-1), J @ v, atol=1e-12)
        assert torch.allclose(torch.cat(lin.vjp(u)), J.T @ u.reshape(-1), atol=1e-12)
    assert adjoint_error(lin) < 1e-14
    assert not lin.jvp(v.split(3)).requires_grad and not any(p.requires_grad for p in primals)


@pytest.mark.parametrize("engine", linearize.WAYS.values())
def test_constant_function_has_zero_derivative(engine):
    lin = engine(lambda a: torch.ones(2, 3), (torch.randn(4),))
    assert torch.equal(lin.jvp((torch.ones(4),)), torch.zeros(2, 3))
    assert torch.equal(lin.vjp(torch.ones(2, 3))[0], torch.zeros(4))
    assert adjoint_error(lin) == 0.0


@pytest.mark.parametrize("engine", linearize.WAYS.values())
def test_unused_primal_and_linear_function(engine):
    lin = engine(lambda a, b: 3 * a[None], (torch.ones(2), torch.ones(5)))
    assert torch.equal(lin.jvp((torch.tensor([1.0, 2.0]), torch.ones(5))), torch.tensor([[3.0, 6.0]]))
    assert [g.tolist() for g in lin.vjp(torch.ones(1, 2))] == [[3.0, 3.0], [0.0] * 5]


def linear_model(module=None):
    torch.manual_seed(0)
    body = module or nn.Tanh()
    model = nn.Sequential(nn.Linear(3, 4), body, nn.Linear(4, 2)).double()
    return model, [
        (torch.randn(5, 3).double(), torch.randint(2, (5,))),
        (torch.randn(2, 3).double(), torch.randint(2, (2,))),
    ]


class Cubed(nn.Module):
    def forward(self, x):
        return Cube.apply(x)


def test_choice_says_why():
    model, data = linear_model()
    J = Jacobian(model, data)
    assert J.engine.choices == {} and J.describe()["engine"] == "auto"
    v = torch.randn(J.shape[1]).double()
    J @ v
    assert set(J.engine.choices["J v"].timings) == {"fresh"}
    J.expect(10**9)
    J @ v
    assert set(J.engine.choices["J v"].timings) == {"fresh", "replay"}
    assert "fastest of those that hold" in J.describe()["reason"]
    J.T @ (J @ v)
    assert J.describe()["other_engines"].keys() == {"J v"}
    for engine in linearize.WAYS:
        asked = Jacobian(model, data, engine=engine)
        asked.expect(100)
        assert torch.allclose(asked @ v, J @ v, atol=1e-12)
        assert asked.describe()["engine"] == engine and asked.describe()["reason"] == "asked for"


def test_old_custom_function_goes_by_double_backward_and_its_replay():
    model, data = linear_model(Cubed())
    J = Jacobian(model, data, engine="replay")
    for _ in range(3):
        J @ torch.randn(J.shape[1]).double()
    choice = J.engine.choices["J v"]
    assert set(choice.timings) == {"double-backward", "replay"} and choice.engine == "replay"
    assert "fresh: " in J.describe()["reason"]
    with pytest.raises(ValueError, match=r"no engine multiplies.*Cube in 1 \(Cubed\).*give what fails a derivative"):
        Jacobian(model, data, engine="fresh") @ torch.randn(J.shape[1]).double()
    with pytest.raises(ValueError, match=r"engine='quick' is not known; use one of auto, fresh"):
        Jacobian(model, data, engine="quick")


@pytest.mark.parametrize("kind", ["J v", "J^T J v", "Gauss-Newton"])
def test_what_products_are_held_to_is_dropped_once_they_have_been(kind):
    """The pair is two vectors of a model's size; three products of each way are tested, the second way's after TURN of them."""
    model, data = linear_model()
    A = GaussNewton(model, nn.CrossEntropyLoss(), data) if kind == "Gauss-Newton" else Jacobian(model, data)
    B, v = (A.gram("right") if kind == "J^T J v" else A), torch.ones(A.shape[1]).double()
    B @ v
    pair = A._adjoint[1]
    assert len(pair.v) == A.shape[1] and pair.error < 1e-12
    for _ in range(int(autotune.TURN) + 4):
        B @ v
    assert A._adjoint == (None, None)
    forced = Jacobian(model, data, engine="fresh")
    for _ in range(4):
        forced @ v
    assert forced._adjoint == (None, None)


class Half(linearize.ForwardMode):
    """Its transpose is wrong."""

    def vjp(self, cotangent):
        return tuple(0.5 * g for g in super().vjp(cotangent))


def test_a_way_with_a_wrong_transpose_is_left_for_the_next_one(monkeypatch):
    monkeypatch.setitem(linearize.WAYS, "fresh", Half)
    model, data = linear_model()
    J, right = Jacobian(model, data), Jacobian(model, data, engine="double-backward")
    v = torch.ones(J.shape[1]).double()
    assert torch.allclose(J.gram("right") @ v, right.gram("right") @ v, atol=1e-12)
    assert J.describe()["engine"] == "double-backward" and "fresh: <Jv, u>" in J.describe()["reason"]


class Tilted(linearize.ForwardMode):
    """Its transpose is wrong by what ones do not see."""

    def vjp(self, cotangent):
        first, *rest = super().vjp(cotangent)
        return (first + cotangent.sum() * (torch.eye(*first.shape) - first.shape[1] / first.numel()), *rest)


@pytest.mark.parametrize("make", [torch.ones, torch.randn, lambda n: torch.eye(n)[0], torch.zeros])
def test_whatever_is_multiplied_first_a_wrong_transpose_is_found(monkeypatch, make):
    monkeypatch.setitem(linearize.WAYS, "fresh", Tilted)
    model, data = linear_model()
    for make_operator in (
        lambda **options: Jacobian(model, data, **options).gram("right"),
        lambda **options: GaussNewton(model, nn.MSELoss(), [(data[0][0], torch.zeros(5, 2).double())], **options),
    ):
        A, right = make_operator(), make_operator(engine="double-backward")
        v = make(A.shape[1]).double()
        assert torch.allclose(A @ v, right @ v, atol=1e-12)


def test_a_random_vector_is_its_own_test_pair_and_others_are_given_one():
    """Beside the product itself: one J^T u for a random v, and a J v for what an error may be orthogonal to."""
    A, calls = torch.randn(50, 40).double(), []

    def there(v):
        calls.append("J v")
        return (A @ v[:].double(),)

    def back(u):
        calls.append("J^T u")
        return (A.T @ u,)

    for v, drawn in ((torch.randn(40), []), (torch.ones(40), ["J v"]), (torch.arange(40) % 7 + 1, ["J v"])):
        calls.clear()
        Jv = A @ v.double()
        test = linearize.Adjoint(back, A[0], 50, 1e-9)
        assert test.of_both(v.double(), (Jv,), (3 * Jv,), (3 * A.T @ Jv,), there) < 1e-12
        assert calls == ["J^T u", *drawn]
        with pytest.raises(linearize.Wrong):
            test.of_both(v.double(), (Jv,), (3 * Jv,), (3.3 * A.T @ Jv,), there)


@pytest.fixture
def ticks(monkeypatch):
    """A clock on which each product takes one second."""
    clock = iter(range(10**6))
    monkeypatch.setattr(autotune, "_now", lambda v: float(next(clock)))


def work(A, kind="J v", index=0, **options):
    """A batch whose map is the dense A."""
    return Workload(kind, index, lambda way: Maps(lambda v: (A @ v,), lambda v, w: 0.0), **options)


def multiply(engine, job, v, expected=0):
    W = torch.full((1, len(job.linearize("fresh").product(v)[0])), torch.nan).double()
    engine.multiplier(replace(job, expected=expected)).add(v[None], W, True)
    return W[0]


def test_recording_must_pay_for_itself(ticks):
    """A recording takes 2.25 products, of a Hessian 4, and saves a fifth of each: it begins once as many are to come."""
    A, v = torch.randn(4, 3).double(), torch.ones(3).double()
    for turns, begins in ((True, 12), (False, 21)):
        engine, announced = AutoEngine(turns=turns), AutoEngine(turns=turns)
        for call in range(1, 26):
            assert torch.equal(multiply(engine, work(A), v), A @ v)
            assert ("replay" in engine.choices["J v"].timings) == (call >= begins)
        for call in (1, 2):  # the first product is tested as it is
            multiply(announced, work(A), v, expected=100)
            assert ("replay" in announced.choices["J v"].timings) == (call == 2)


def test_a_slow_first_product_puts_recording_off_by_a_half_at_most(monkeypatch):
    """The first of a process loads code (the time of 5 to 10), which recording does not: 1.5 times as many are to come."""
    A, v, now = torch.randn(4, 3).double(), torch.ones(3).double(), [0.0]
    monkeypatch.setattr(autotune, "_now", lambda v: now[0])

    def linearized(way):
        def product(x):
            now[0] += 1.0 if now[0] else 10.0
            return (A @ x,)

        return Maps(product, lambda v, w: 0.0)

    engine = AutoEngine()
    for call in range(1, 20):
        engine.multiplier(Workload("J v", 0, linearized)).add(v[None], torch.empty(1, 4).double(), True)
        assert ("replay" in engine.choices["J v"].timings) == (call >= 17)


class Unrecorded(AutoEngine):
    def build(self, linear, v, own):
        raise trace.Unrecordable("not this one")


def test_where_nothing_is_recorded_the_other_way_takes_a_turn_and_the_faster_one_goes_on(monkeypatch):
    times = {"fresh": 2.0, "double-backward": 1.0}
    for faster in linearize.WAYS:
        now = [0.0]
        monkeypatch.setattr(autotune, "_now", lambda v, now=now: now[0])
        engine, v, taken = Unrecorded(), torch.ones(3).double(), []

        def linearized(way, faster=faster, now=now, taken=taken):
            def product(x):
                now[0] += times[way] if faster == "double-backward" else 3.0 - times[way]
                taken.append(way)
                return (x,)

            return Maps(product, lambda x, w: 0.0)

        for _ in range(int(autotune.TURN) + 4):
            engine.multiplier(Workload("J v", 0, linearized)).add(v[None], torch.empty(1, 3).double(), True)
        assert taken[: int(autotune.TURN)] == ["fresh"] * int(autotune.TURN)  # a turn costs as much as some products
        assert set(taken) == set(linearize.WAYS) and taken[0] == "fresh" and taken[-1] == faster


def test_the_other_ways_program_takes_over_where_it_is_shorter_and_is_held_to_the_same_products(monkeypatch):
    """A Hessian's: its forward-mode program may be shorter than that of double backward, or wrong."""
    for right in (True, False):
        now, A = [0.0], torch.randn(3, 3).double()
        monkeypatch.setattr(autotune, "_now", lambda v, now=now: now[0])

        class Clocked(AutoEngine):
            def build(self, linear, v, own, now=now):
                program, cost = super().build(linear, v, own), 1.0 if linear.way == "fresh" else 2.0

                def run(*operands):
                    now[0] += cost
                    return program.module(*operands)

                program.run, program.sum, program.put = run, None, None
                return program

        def linearized(way, A=A, now=now, right=right):
            def product(x):
                now[0] += 3.0
                return (A @ x if right or way != "fresh" else 1.5 * (A @ x),)

            product.way = way
            return Maps(product, lambda x, w: 0.0)

        engine = Clocked(ways=("double-backward", "fresh"), turns=False)
        for _ in range(6):
            v = torch.randn(3).double()
            assert torch.allclose(multiply(engine, Workload("H v", 0, linearized), v, 200), A @ v, atol=1e-14)
        choice = engine.choices["H v"]
        assert choice.engine == "replay" and choice.way == ("fresh" if right else "double-backward")
        assert any("replay of fresh: differs" in why for why in choice.failures) == (not right)


def test_every_batch_of_a_hessian_is_recorded_in_the_way_that_took_over(monkeypatch):
    """What this way's program was held to are the other way's products: it is tested no further, here or in a recording."""
    monkeypatch.setattr(autotune, "RIVAL", 1e9)
    monkeypatch.setattr(autotune, "BETTER", 1e9)
    monkeypatch.setattr(sum_over_batches, "JOIN", 0)  # each batch by itself
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = [(torch.randn(n, 6).double(), torch.randint(3, (n,))) for n in (5, 4, 7)]
    A, plain = (Hessian(model, nn.CrossEntropyLoss(), data, engine=name) for name in ("replay", "double-backward"))
    A.expect(1000)
    for count in range(8):
        v = torch.randn(A.shape[1]).double()
        torch.testing.assert_close(A @ v, plain @ v, rtol=1e-12, atol=1e-14)
        choice = A.engine.choices["H v"]
        if count in (3, 7):
            assert (choice.way, choice.engine, choice.failures) == ("fresh", "replay", [])
            assert [entry[0].program is not None for entry in A.store.entries.values()] == 3 * [True]
        if count == 3:
            with torch.no_grad():
                model[0].weight.mul_(1.01)


class Stale(AutoEngine):
    """Its programs are wrong from their second call on, or after so many `good` ones."""

    good = 1

    def build(self, linear, v, own):
        program, calls = super().build(linear, v, own), []

        def run(*operands):
            calls.append(0)
            factor = 1.0 if len(calls) <= self.good else 0.6
            return tuple(factor * piece for piece in program.module(*operands))

        program.run, program.sum, program.put = run, None, None
        return program


def test_program_that_is_wrong_from_its_second_call_on_is_refused_and_no_product_is_its():
    A, engine = torch.randn(4, 3).double(), Stale()
    for _ in range(4):
        v = torch.randn(3).double()
        assert torch.equal(multiply(engine, work(A), v, expected=10**9), A @ v)
    choice = engine.choices["J v"]
    assert choice.engine in linearize.WAYS and "replay" not in choice.timings
    assert any("replay: differs from a fresh product by 4.0e-01 on call 2" in why for why in choice.failures)


@pytest.mark.parametrize("good", [1, 2])
def test_a_program_is_held_to_a_product_that_lies_in_part_where_it_would_write(good, monkeypatch):
    """A heavy J^T u lies in its place, but for what autograd does not reach: an idle first parameter's zeros."""
    monkeypatch.setattr(arrays, "HEAVY", 0)
    net = nn.ModuleDict({"idle": nn.Linear(5, 5), "used": nn.Linear(4, 3)}).double()
    x, engine = torch.randn(6, 4).double(), Stale()
    engine.good = good
    J = Jacobian(net, [x], forward=lambda model, batch: model["used"](batch).tanh())
    due, J.engine = torch.stack([J.T @ e for e in torch.eye(18).double()], 1), engine
    J.expect(10**9)
    for _ in range(5):
        u = torch.randn(18).double()
        assert torch.allclose(J.T @ u, due @ u, rtol=1e-12, atol=1e-14)
    assert any("replay: differs from a fresh product" in why for why in engine.choices["J^T u"].failures)


@pytest.mark.parametrize("vectors", ["random", "units", "one"])
@pytest.mark.parametrize("good", [1, 2, None])
def test_a_program_of_a_symmetric_matrix_is_held_to_its_product_with_signs(good, vectors):
    """The way makes the first product and the recorded one, and no more while the program holds; none is of one that does not."""
    A, asked = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double(), []
    A += A.T.clone()

    def product(v):
        asked.append(1)
        return (A @ v,)

    class Counted(Stale if good else AutoEngine):
        pass

    Counted.good, engine = good, Counted("replay", ways=("double-backward",), turns=False)
    for i in range(5):
        v = {"random": torch.randn(5).double(), "units": torch.eye(5).double()[i], "one": torch.ones(5).double()}[
            vectors
        ]
        job = Workload("H v", 0, lambda way: Maps(product, lambda v, w: 0.0), expected=10**4, symmetric=True)
        W = torch.full((1, 5), torch.nan).double()
        engine.multiplier(job).add(v[None], W, True)
        assert torch.allclose(W[0], A @ v, rtol=1e-13, atol=1e-13)
    choice = engine.choices["H v"]
    assert (choice.engine == "replay") == (good is None)
    assert len(asked) == (2 if good is None else 6)
    assert good is None or any("replay: <r, A v> and <v, A r> of signs r differ by" in why for why in choice.failures)


class Broken(AutoEngine):
    """Its compiler is not there, or makes programs that are wrong from their second call on."""

    how = ""

    def compile(self, program):
        if self.how == "missing":
            raise ImportError("no compiler on this machine")
        plain, calls = program.run, []

        def run(*operands):
            calls.append(0)
            return tuple((1.0 if len(calls) == 1 else 0.6) * piece for piece in plain(*operands))

        program.run, program.sum, program.put = run, None, None


@pytest.mark.parametrize("how", ["missing", "wrong"])
@pytest.mark.parametrize("asked", ["compiled", "auto"])
def test_a_compiled_program_that_fails_leaves_the_one_that_holds_and_says_so(monkeypatch, how, asked):
    monkeypatch.setattr(autotune, "COMPILE", 0.0)
    monkeypatch.setattr(autotune, "BETTER", 1e9)
    A, engine = torch.randn(2, 4, 3).double(), Broken(asked, turns=False)
    engine.how = how
    for _ in range(6):
        v = torch.randn(3).double()
        for index in (0, 1):
            assert torch.allclose(multiply(engine, work(A[index], index=index), v, 10**6), A[index] @ v, atol=1e-14)
    choice = engine.choices["J v"]
    said = "no compiler on this machine" if how == "missing" else "differs from a fresh product by 4.0e-01 on call 2"
    assert choice.engine == "replay" and "compiled" not in choice.timings and not choice.without
    assert choice.failures == [f"compiled: {said}"]


class WrongLater(AutoEngine):
    """Its programs are wrong, but for that of the first batch."""

    made = 0

    def build(self, linear, v, own):
        self.made += 1
        program, factor = super().build(linear, v, own), 1.0 if self.made == 1 else 1.01
        program.run = lambda *operands: tuple(factor * w for w in program.module(*operands))
        program.sum = program.put = None
        return program


def test_programs_of_later_batches_are_held_to_their_products_too():
    A, engine, v = torch.randn(2, 4, 3).double(), WrongLater("replay"), torch.ones(3).double()
    for _ in range(5):
        for index in (0, 1):
            assert torch.allclose(multiply(engine, work(A[index], index=index), v, 100), A[index] @ v, atol=1e-14)
    assert engine.made == 2 and any("replay of a later batch: differs" in why for why in engine.choices["J v"].failures)


def test_constants_that_vmap_makes_are_the_blocks_own():
    """torch's rule for batch norm with running statistics makes weights of ones: v / sqrt(variance), here of 2 channels."""
    engine, (one, other) = AutoEngine("replay", turns=False), torch.tensor([[4.0, 9.0], [16.0, 25.0]]).double()
    V = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).double()
    for index, variance in enumerate((one, other)):

        def product(v, variance=variance):
            return (nn.functional.batch_norm(v.view(3, 2), 0 * variance, variance, eps=0.0),)

        job = Workload("J v", index, lambda way, product=product: Maps(product, lambda v, w: 0.0), expected=10000)
        for rows in (V[:1], V[1:2], V[2:3], V):
            W = torch.empty_like(rows)
            engine.multiplier(job).add(rows, W, True)
            assert torch.allclose(W, rows / variance.sqrt().repeat(3), rtol=1e-14)
    assert " each by vmap of 8, " in engine.choices["J v"].block


def test_blocks_are_taken_in_parts_and_the_rest_with_zeros():
    taken = []

    def times(v, columns):
        taken.append(columns)
        return v[..., :1], 2 * v[..., 1:]  # w = diag(1, 2) v in two pieces

    class Several:
        def __call__(self, V):
            return times(V, len(V))

        def add(self, V, W, new=False):
            W.copy_(torch.cat(self(V), 1) + (0 if new else W))

    tuned, V = AutoEngine().multiplier(work(torch.eye(2))), torch.arange(12.0).view(6, 2)
    tuned.kept.several, tuned.kept.width = Several(), 4
    for part, new in ((V[:4], False), (V[:3], False), (V[4:], True)):
        W = torch.ones(len(part), 2)
        tuned._together(part, W, new)
        assert torch.equal(W, (not new) + part * torch.tensor([1.0, 2.0])) and taken.pop() == 4


def test_memory_of_a_budget():
    assert [budget_bytes(m) for m in (None, 0, 10, "2KiB", "1.5GiB")] == [None, 0, 10, 2048, 3 * 2**29]
    model, data = linear_model()
    kept, anew = (GaussNewton(model, nn.CrossEntropyLoss(), data, memory=m, engine="replay") for m in ("1MiB", 0))
    v = torch.randn(kept.shape[0]).double()
    for _ in range(3):
        assert torch.allclose(kept @ v, anew @ v, atol=1e-13)
    assert kept.store.used > 0 and anew.store.used == 0 and not anew.store.entries


@pytest.fixture
def recorders(monkeypatch):
    """Every recorder that is made from now on."""
    made, plain = [], trace.Tracer.__init__
    monkeypatch.setattr(trace.Tracer, "__init__", lambda self, *a, **k: made.append(self) or plain(self, *a, **k))
    return made


def flattened(outputs, **options):
    """A product is as many passes as there are outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, outputs), nn.Tanh()).double()
    return Jacobian(model, [torch.randn(6, 2).double()], wrt="inputs", layout="flattened", **options)


def test_a_program_that_is_expected_to_exceed_the_budget_is_not_even_tried(recorders):
    """k JVPs and k VJPs hold some k graphs: 40 of 6 x 40 doubles are more than 64 KiB."""
    free, tight = flattened(40), flattened(40, memory="64KiB")
    for J in (free, tight):
        J.expect(10**6)
        recorders.clear()
        v, u = torch.ones(J.shape[1]).double(), torch.ones(6).double()
        products = [J @ v, J.T @ u]
        assert not recorders  # the first product is tested as it is
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip((J @ v, J.T @ u), products, strict=True))
        assert bool(recorders) is (J is free)
        if J is free:
            expected = products
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(products, expected, strict=True))
    for choice in tight.engine.choices.values():
        assert set(choice.timings) <= set(linearize.WAYS)
        assert any("recording would hold about" in why and "memory=" in why for why in choice.failures)
    assert "more than the 0.0625 MiB of memory=" in tight.describe()["reason"]


@pytest.mark.parametrize("kind, engine", [("J v", "auto"), ("Gauss-Newton", "replay"), ("Hessian", "auto")])
def test_recording_never_holds_more_than_the_budget_leaves(recorders, kind, engine):
    """Constants are counted while they are met; what does not fit is given up, and the product is the same."""
    model, data = linear_model()
    make = {"J v": lambda **o: Jacobian(model, data, **o),
            "Gauss-Newton": lambda **o: GaussNewton(model, nn.CrossEntropyLoss(), data, **o),
            "Hessian": lambda **o: Hessian(model, nn.CrossEntropyLoss(), data, **o)}[kind]  # fmt: skip
    fresh, recorded = make(engine="fresh"), 0
    v = torch.randn(fresh.shape[1]).double()
    for budget in (0, 1500, 6000, 10**6):
        A = make(engine=engine, memory=budget)
        recorders.clear()
        A.expect(10**6)
        for _ in range(3):
            seen = len(recorders)
            assert torch.allclose(A @ v, fresh @ v, atol=1e-12)
            assert all(recorder.held <= recorder.room <= budget for recorder in recorders[seen:])
            assert A.store.used <= budget
        recorded += bool(recorders)
    assert 0 < recorded < 4


def test_recording_is_given_up_at_the_first_constant_that_does_not_fit():
    """Three constants of 800 bytes, the first of them there anyway, the third equal to the second."""
    A, B = (torch.randn(10, 10, generator=torch.Generator().manual_seed(i)).double() for i in (0, 1))
    C, v, own = B.clone(), torch.ones(10).double(), {A.untyped_storage().data_ptr()}

    def function(v):
        return (A @ v, B @ v, C @ v)

    program = trace.record(function, v, 800, own)
    assert program.held == 800 and len(program.constants) == 2
    for room, there in ((799, own), (1599, ())):
        with pytest.raises(trace.Unrecordable, match="would keep exceeds the memory budget"):
            trace.record(function, v, room, there)
    assert trace.record(function, v, 1600).held == 1600


def test_the_vector_that_a_program_was_recorded_with_is_gone_without_a_collection(monkeypatch):
    """Of a model's size: a vector more until Python looks for cycles, which it may not do in a whole run."""
    given, copy = [], trace.arrays.copy

    def copied(v):
        made = copy(v)
        given.append(weakref.ref(made))
        return made

    monkeypatch.setattr(trace.arrays, "copy", copied)
    B = torch.randn(10, 10).double()
    gc.disable()
    try:
        program = trace.record(lambda v: (B @ v,), torch.ones(10).double())
        assert len(given) == 1 and given[0]() is None and len(program.constants) == 1
    finally:
        gc.enable()


def test_a_forward_pass_that_runs_for_each_output_is_kept_once(recorders):
    J = flattened(30)
    J.expect(10**6)
    for _ in range(2):
        J @ torch.ones(J.shape[1]).double()
    graph = J._graph_bytes * 6
    assert max(recorder.held for recorder in recorders) < 5 * graph  # not 30 times


def test_values_die_while_they_are_recorded_as_they_do_otherwise():
    """A chain of 50 operations on the argument: at the end one value is alive, and no name is left of the dead."""
    A = torch.randn(20, 20).double()

    def chain(v):
        for _ in range(50):
            v = A @ v
        return (v,)

    with trace.Tracer([torch.ones(20).double()], False) as recorder:
        out = chain(recorder.given[0])
    assert sum(reference() is not None for reference in recorder.alive.values()) <= 3  # the argument, A and the result
    assert len([key for key in recorder.nodes if not isinstance(key, tuple)]) <= 2
    v = torch.randn(20).double()
    assert torch.allclose(trace.record(chain, v)(v)[0], chain(v)[0]) and out


def test_coarse_products_state_their_noise():
    """bf16 keeps 8 bits, so that a product of a few of them is off by some 1e-3 to 1e-2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3))
    data = [(torch.randn(40, 20), torch.randint(3, (40,)))]
    fine = GaussNewton(model, nn.CrossEntropyLoss(), data)
    rough = GaussNewton(model, nn.CrossEntropyLoss(), data, product_dtype=torch.bfloat16)
    v = torch.randn(fine.shape[0])
    seen = float((rough @ v - fine @ v).norm() / (fine @ v).norm())
    stated = rough.describe()["product_noise"]
    assert 1e-3 < stated < 3e-2 and stated / 3 < seen < 3 * stated
    assert "product_noise" not in fine.describe()


def test_store_keeps_what_fits_and_only_while_the_model_is_the_same():
    def first():
        return "a"

    store, cpu = Store(budget=10), torch.device("cpu")
    assert store.get(0, first) is None and store.room(6, cpu)
    store.put(("J v", 0), "kept", 6, first)
    assert store.get(("J v", 0), first) == "kept" and not store.room(6, cpu) and store.room(4, cpu)
    store.free(("J^T u", 0))
    assert store.used == 6
    assert store.get(("J v", 0), lambda: "b") is None and store.used == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [0.0, 1.5])
def test_wrong_product_is_refused_in_any_dimension(dtype, wrong):
    class Wrong(linearize.ForwardMode):
        def jvp(self, tangents):
            return wrong * super().jvp(tangents)

    n = 300_000
    lin = Wrong(lambda a: a.view(3, -1).cos(), (torch.linspace(0.1, 1, n).to(dtype),))
    assert adjoint_error(lin) > 0.1 >= adjoint_error(linearize.ForwardMode(lin.function, lin.primals))


def test_an_adder_adds_what_its_program_gives():
    """Products, transposed products, sums of them and constants, into sums that are there; in blocks too."""
    torch.manual_seed(0)
    X, Y, c = torch.randn(5, 3).double(), torch.randn(4, 5).double(), torch.ones(2).double()

    def function(v):
        U = v.view(4, 3)
        product = Y.T @ U  # (5, 3)
        return product, (X.T @ product).T, product.T @ X + product.T @ Y.T @ U.new_ones(4, 3), c * 1, v[:2] * 2

    v = torch.randn(12).double()
    program = trace.record(function, v)
    expected = trace.flat(function(v))
    for one in (program, trace.record(lambda v: function(v)[1:3], v)):
        one.sum = one.adder()
        inside = {str(node.target) for node in one.sum.graph.nodes}
        assert {"aten.addmm_.default"} <= inside
    w = torch.arange(len(expected)).double()
    program.add(v, w)
    assert torch.allclose(w, torch.arange(len(expected)) + expected, atol=1e-13)
    block = program.batched(3)
    block.sum = block.adder()
    V = torch.randn(3, 12).double()
    W = torch.ones(3, len(w) + 2).double()
    block.add(V, W[:, 1:-1])  # rows that lie apart
    assert torch.allclose(W[:, 1:-1] - 1, torch.stack([trace.flat(function(u)) for u in V]), atol=1e-13)
    assert (W[:, [0, -1]] == 1).all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("asked", ["compiled", "auto"])
@pytest.mark.parametrize("kind", [GaussNewton, Hessian])
def test_compiled_programs_give_fresh_products_and_long_runs_try_them(monkeypatch, kind, asked):
    monkeypatch.setattr(autotune, "COMPILE", 0.0)  # seconds that a run is predicted to take
    monkeypatch.setattr(autotune, "BETTER", 1e9)  # however busy the machine is
    model, data = linear_model()
    fresh = kind(model, nn.CrossEntropyLoss(), data, engine="fresh")
    A = kind(model, nn.CrossEntropyLoss(), data, engine=asked)
    A.expect(10_000)
    V = torch.randn(A.shape[0], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for _ in range(4):
        assert torch.allclose(A @ V[:, 0], fresh @ V[:, 0], rtol=1e-12, atol=1e-14)
    assert torch.allclose(A @ V, fresh @ V, rtol=1e-12, atol=1e-14)
    told = A.describe()
    assert "compiled" in told["seconds_first_batch"], told
    assert told["engine"] == "compiled" or asked == "auto"


@pytest.fixture
def launches(monkeypatch):
    """A GPU that captures: what is captured runs again on the same memory, and always seems faster. How often it ran."""
    ran = []

    def captured(work, device):
        return lambda: (ran.append(device), work())

    monkeypatch.setattr(arrays, "on_cuda", lambda device: True)
    monkeypatch.setattr(capture, "captured", captured)
    monkeypatch.setattr(capture, "LAUNCH", 1e9)
    monkeypatch.setattr(autotune, "BETTER", 1e9)
    return ran


def two_batches():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    batches = [(torch.randn(size, 5).double(), torch.randint(3, (size,))) for size in (3, 4)]
    return net, nn.CrossEntropyLoss(), batches


def replayed(matrix, products):
    """(one that has multiplied so many vectors as a plain one does, that one)."""
    net, loss, batches = two_batches()
    plain, A = matrix(net, loss, batches, engine="fresh"), matrix(net, loss, batches, engine="replay")
    A.expect(100)
    for i in range(products):
        v = torch.randn(A.shape[1], generator=torch.Generator().manual_seed(i)).double()
        torch.testing.assert_close(A @ v, plain @ v, rtol=1e-12, atol=1e-12)
    return A, plain


@pytest.mark.parametrize("matrix", [GaussNewton, Hessian])
def test_what_a_gpu_launches_at_once_multiplies_as_before(matrix, launches):
    A, plain = replayed(matrix, 10)
    assert A.describe()["launch"] == "CUDA graph"
    before = len(launches)
    V = torch.randn(A.shape[1], 2).double()
    torch.testing.assert_close(A @ V, plain @ V, rtol=1e-12, atol=1e-12)
    assert len(launches) > before


@pytest.mark.parametrize("broken", ["stale", "refused"])
def test_a_capture_that_is_wrong_or_refused_is_dropped_and_says_so(broken, launches, monkeypatch):
    def captured(work, device):
        if broken == "refused":
            raise RuntimeError("operation not permitted when stream is capturing")
        work()
        return lambda: None

    monkeypatch.setattr(capture, "captured", captured)
    said = replayed(GaussNewton, 8)[0].describe()
    assert "launch" not in said
    assert ("not permitted" if broken == "refused" else "differs from a fresh product") in said["reason"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_large_vectors_that_follow_one_another_pass_their_tests(dtype, monkeypatch):
    """A vector made of the one that waits is parallel to it: how it waits must cost less than what the dtype may be off by."""
    monkeypatch.setattr(arrays, "HEAVY", 1)
    monkeypatch.setattr(linearize, "PART", 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    x, y = torch.randn(2, 6, dtype=dtype), torch.randint(3, (2,))

    def kernel():
        J = Jacobian(model, [(x, y)], wrt="params")
        return J @ J.T

    for make in (kernel, lambda: Hessian(model, nn.CrossEntropyLoss(), [(x, y)])):
        columns, A = make(), make()
        M = torch.stack([columns @ e for e in torch.eye(A.shape[0], dtype=dtype)], 1)
        v = torch.ones(A.shape[1], dtype=dtype)
        for _ in range(4):
            w = A @ v
            torch.testing.assert_close(w, M @ v, rtol=1e-4 if dtype == torch.float32 else 1e-11, atol=1e-6)
            v = w / w.norm()


@pytest.mark.parametrize("matrix", [GaussNewton, EmpiricalFisher, "normal", "J^T"])
@pytest.mark.parametrize("engine", ["fresh", "double-backward", "replay"])
def test_a_large_product_lies_in_the_memory_of_one_that_nobody_holds_and_of_no_other(matrix, engine, monkeypatch):
    monkeypatch.setattr(arrays, "HEAVY", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    data = [(torch.randn(9, 5), torch.randint(3, (9,))), (torch.randn(4, 5), torch.randint(3, (4,)))]
    if matrix in ("normal", "J^T"):
        J = Jacobian(model, data, engine=engine)
        A = J.T if matrix == "J^T" else J.gram("right")
    else:
        A = matrix(model, nn.CrossEntropyLoss(), data, engine=engine)
    V = torch.randn(8, A.shape[1])
    expected = [(A @ v).clone() for v in torch.cat([V, V])][8:]  # nothing is tested any more
    w = A @ V[0]
    at, kept = w.data_ptr(), w.numpy()
    other = A @ V[1]
    assert other.data_ptr() != at
    del w
    assert (A @ V[2]).data_ptr() != at  # an array of numpy's holds it
    np.testing.assert_array_equal(kept, expected[0])
    torch.testing.assert_close(other, expected[1], rtol=0, atol=0)
    del kept
    for v, due in zip(V, expected, strict=True):
        w = A @ v
        assert w.data_ptr() == at
        torch.testing.assert_close(w, due, rtol=0, atol=0)
        del w


def test_who_interrupts_a_programs_first_call_leaves_it_to_be_recorded_again(monkeypatch):
    A, engine = torch.randn(4, 4).double(), AutoEngine(ways=("double-backward",), turns=False)
    A += A.T.clone()
    job, plain, calls = replace(work(A, kind="H v"), symmetric=True), trace.Program.add, []

    def interrupted(self, *operands, **how):
        calls.append(0)
        if len(calls) == 1:
            raise KeyboardInterrupt
        plain(self, *operands, **how)

    monkeypatch.setattr(trace.Program, "add", interrupted)
    monkeypatch.setattr(autotune, "BETTER", 1e9)
    for call in range(5):
        v = torch.randn(4).double()
        if call == 1:
            with pytest.raises(KeyboardInterrupt):
                multiply(engine, job, v, 10**4)
        else:
            assert torch.allclose(multiply(engine, job, v, 10**4), A @ v, rtol=1e-13, atol=1e-13)
    choice = engine.choices["H v"]
    assert (choice.engine, choice.failures, engine.settled) == ("replay", [], True)
