"""Whatever runs inside leaves the model as it was; whatever a function may depend on changes the version."""

import copy
import itertools
import random
from collections import deque
from dataclasses import dataclass, field
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import dense_jacobian, logits
from torch import nn
from torch.nn.utils import parametrize

import spectral
from spectral import arrays
from spectral.networks import model_state
from spectral.networks.data_model import DataModel
from spectral.networks.model_state import Snapshot, Version

FAIL = []  # the forward passes after which the next one fails: an attribute of the module would be put back


@dataclass
class Record:
    calls: int = 0
    last: torch.Tensor | None = None
    history: list = field(default_factory=list)


class Busy(nn.Module):
    """Forward changes everything that a module can hold."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("mean", torch.zeros(4))
        self.plain = torch.ones(4)
        self.array = np.zeros(3)
        self.last, self.count, self.name = None, 0, "busy"
        self.history, self.cache, self.seen, self.queue = [], {"h": None}, set(), deque(maxlen=2)
        self.nested = {"deep": [[1, 2], {"x": 3}]}
        self.record, self.space = Record(), SimpleNamespace(h=None)
        self.noise, self.private = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.dice = random.Random(1)

    def forward(self, x):
        h = torch.tanh(self.layer(x))
        self.mean.mul_(0.9).add_(0.1)
        self.plain += 1
        self.array += 1
        self.last, self.count, self.name = h, self.count + 1, f"after {self.count}"
        self.history.append(h)
        self.cache["h"], self.cache["new"] = h, 1
        self.seen.add(self.count)
        self.queue.append(h)
        self.nested["deep"][0].append(self.count)
        self.nested["deep"][1]["x"] += 1
        self.record.calls += 1
        self.record.last = h
        self.record.history.append(h)
        self.space.h = h
        torch.rand(1, generator=self.noise), self.private.random(), self.dice.random()
        self.head.extra = h
        if FAIL:
            FAIL[0] -= 1
            if FAIL[0] < 0:
                raise KeyError("in the middle")
        return self.head(h)


def picture(model):
    """The state of a Busy model as plain values."""
    keys = ("plain", "last", "count", "name", "history", "cache", "seen", "queue", "nested", "space", "array")
    return (
        {key: str(vars(model)[key]) for key in keys},
        str(vars(model.record)),
        {name: b.tolist() for name, b in model.named_buffers()},
        {name: (p.tolist(), p.requires_grad, p._version, id(p)) for name, p in model.named_parameters()},
        [module.training for module in model.modules()],
        sorted(vars(model.head)),
        model.noise.get_state().tolist(),
        str(model.private.bit_generator.state),
        model.dice.getstate(),
    )


def use(model, x):
    J = spectral.Jacobian(model, [x[:2], x[2:]])
    J @ torch.ones(J.shape[1]), J.T @ torch.ones(J.shape[0]), J.squared_norms()
    H = spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, torch.tensor([0, 1, 1, 0, 1]))])
    H @ torch.ones(H.shape[1])


def test_whatever_forward_changes_is_as_before():
    model, x = Busy(), torch.randn(5, 3)
    before = picture(model)
    use(model, x)
    assert picture(model) == before
    copy.deepcopy(model)


@pytest.mark.parametrize("fail_at", range(0, 24, 3))
def test_after_a_failure_at_any_point_too(fail_at):
    model, x = Busy(), torch.randn(5, 3)
    before = picture(model)
    FAIL[:] = [fail_at]
    try:
        with pytest.raises(KeyError, match="in the middle"):
            use(model, x)
    finally:
        FAIL.clear()
    assert picture(model) == before


def test_state_that_the_user_made_by_a_forward_pass_stays():
    model, x = Busy(), torch.randn(5, 3)
    model(x).sum().backward()
    kept, gradient, before = model.last, model.layer.weight.grad, picture(model)
    use(model, x)
    assert model.last is kept and kept.grad_fn is not None and model.layer.weight.grad is gradient
    assert picture(model) == before


def test_loss_modules_and_callable_objects_are_put_back_too():
    class Keeping(nn.CrossEntropyLoss):
        def forward(self, z, y):
            self.last = z
            return super().forward(z, y)

    class Called:
        def __init__(self):
            self.seen = []

        def __call__(self, output, batch):
            self.seen.append(output)
            return output

    model, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    loss, of = Keeping(), Called()
    spectral.Hessian(model, loss, [(x, y)]) @ torch.ones(8)
    spectral.Jacobian(model, [(x, y)], of=of) @ torch.ones(8)
    assert not hasattr(loss, "last") and of.seen == []


# Modules that work in train() and eval() ------------------------------------------------------------------------------
class Adapter(nn.Linear):
    """Adds B A to its weight in eval mode, and takes it out in train mode."""

    def __init__(self, scale=1.0):
        super().__init__(3, 4)
        self.A, self.B = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(4, 2))
        self.merged, self.scale = False, scale

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.scale * self.B.data @ self.A.data
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) if self.merged else super().forward(x) + x @ self.A.T @ self.B.T


def test_adapter_that_merges_in_eval_keeps_its_columns_and_its_bits():
    model, x = nn.Sequential(Adapter(), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(5, 3).double()
    before = copy.deepcopy(model.state_dict())
    J = spectral.Jacobian(model, [x])
    dense = J @ torch.eye(J.shape[1], dtype=torch.float64)
    rows = []
    for e in model(x).reshape(-1):
        rows.append(
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(e, list(model.parameters()), retain_graph=True)])
        )
    assert torch.allclose(dense, torch.stack(rows), atol=1e-12)
    assert model.training and model[0].training and not model[0].merged
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_merged_adapter_names_the_parameters_without_influence():
    model, x = nn.Sequential(Adapter(), nn.Tanh(), nn.Linear(4, 2)).eval(), torch.randn(5, 3)
    assert spectral.Jacobian(model, [x]).describe()["without_influence"] == ["0.A", "0.B"]


def test_eval_that_changes_the_function_is_refused_until_it_was_called():
    model, x = nn.Sequential(Adapter(scale=2.0), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"0 \(Adapter\) changes what the model computes in its own train\(\) or eval\(\)"
    ):
        spectral.Jacobian(model, [x])
    assert model[0].training and not model[0].merged
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    J = spectral.Jacobian(model, [x])
    assert torch.allclose(J @ torch.eye(J.shape[1]), dense_jacobian(model, [x], logits), atol=1e-6)


def test_embedding_with_max_norm_is_right_or_refused_and_never_rewritten():
    model = nn.Sequential(nn.Embedding(7, 3, max_norm=1.0), nn.Flatten(), nn.Linear(15, 2)).double()
    with torch.no_grad():
        model[0].weight.mul_(2)
    kept, tokens = model[0].weight.clone(), torch.randint(0, 7, (6, 5))
    with pytest.raises(ValueError, match=r"0 \(Embedding\) has max_norm=1 and rows that are longer"):
        spectral.Jacobian(model, [tokens])
    assert torch.equal(model[0].weight, kept)
    model[0].weight.data.renorm_(2, 0, 0.99)
    J = spectral.Jacobian(model, [tokens])
    free = copy.deepcopy(model)
    free[0].max_norm = None
    assert torch.allclose(J @ torch.eye(J.shape[1]).double(), dense_jacobian(free, [tokens], logits), atol=1e-12)
    assert model[0].max_norm == 1.0


def divided(w):
    w.div_(w.norm())


def divided_in_a_view(w):
    w[1:].copy_(w[1:] / 2)


def divided_by_an_out_argument(w):
    torch.div(w, 2, out=w.data)


def assigned(w):
    w.data = w.data / 2


def past_torch(w):
    w.detach().numpy()[:] /= 2


def clamped(w):
    w.data.clamp_(-9, 9)


class Writing(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.write(self.weight)
        return super().forward(x)


@pytest.mark.parametrize("write", [divided, divided_in_a_view, divided_by_an_out_argument, assigned, past_torch])
@pytest.mark.parametrize("params", [None, ["bias"]])
def test_forward_that_writes_to_its_parameter_is_refused_and_the_parameter_stays(write, params):
    model = Writing(3, 2)
    model.write, before = write, model.weight.clone()
    with pytest.raises(ValueError, match="forward writes to the parameter weight"):
        spectral.Jacobian(model, [torch.randn(4, 3)], params=params)
    assert torch.equal(model.weight, before) or write is past_torch  # which nobody can undo


def test_forward_that_writes_what_is_there_changes_nothing():
    model, x = Writing(3, 2).double(), torch.randn(4, 3).double()
    model.write = clamped
    J = spectral.Jacobian(model, [x])
    assert torch.allclose(J @ torch.eye(8).double(), dense_jacobian(model, [x], logits), atol=1e-12)


def test_the_first_sweep_holds_less_than_a_quarter_of_the_parameters_beside_them(monkeypatch):
    monkeypatch.setattr(arrays, "NUMPY", {})  # all memory is torch's, which the profiler sees
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(12)))
    data = DataModel(model, [torch.randn(2, 1024)])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        assert data.look(0, data.data[0]) == (2, 1024)
    events = [event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert max(itertools.accumulate(events)) < sum(p.nbytes for p in model.parameters()) / 4


def test_cached_parametrisations_do_not_hide_the_parameters():
    class Double(nn.Module):
        def forward(self, w):
            return 2 * w

    model, x = nn.Linear(3, 2).double(), torch.randn(4, 3).double()
    parametrize.register_parametrization(model, "weight", Double())
    dense = dense_jacobian(model, [x], logits)
    with parametrize.cached():
        model(x)  # fills the cache
        J = spectral.Jacobian(model, [x])
        for _ in range(3):
            assert torch.allclose(J @ torch.eye(8).double(), dense, atol=1e-12)


def test_captured_parameter_is_refused_by_name():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(4, 3)
    captured = list(model.parameters())

    def loss(output, batch):
        return output.square().sum() + len(output) * sum((p**2).sum() for p in captured), len(output)

    with pytest.raises(ValueError, match=r"the parameter 0.weight is read by a reference from before"):
        spectral.Hessian(model, loss, [(x, x)])
    assert spectral.Hessian(model, loss, [(x, x)], preflight=False).describe()["preflight"] is False


def test_captured_frozen_parameter_that_is_differentiated_is_refused_and_stays_frozen():
    model, x = nn.Linear(3, 2).requires_grad_(False), torch.randn(4, 3)
    weight = model.weight
    with pytest.raises(ValueError, match=r"the parameter weight is read by a reference"):
        spectral.Jacobian(model, [x], params=["*"], of=lambda z, b: z + b @ weight.T)
    assert not model.weight.requires_grad


def test_derivative_that_is_cut_off_is_refused():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="the outputs change with the parameters but carry no derivative"):
        spectral.Jacobian(model, [torch.randn(4, 3)], of=lambda z, b: z.detach())
    with pytest.raises(ValueError, match="the outputs change with the inputs but carry no derivative"):
        spectral.Jacobian(model, [torch.randn(4, 3)], wrt="inputs", of=lambda z, b: torch.tensor(z.tolist()))
    constant = spectral.Jacobian(model, [torch.randn(4, 3)], of=lambda z, b: torch.ones(len(z), 2))
    assert constant.describe()["without_influence"] == ["weight", "bias"]


# Versions ------------------------------------------------------------------------------------------------------------
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 2))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.factor, self.offset, self.power = net(), 1.0, torch.zeros(2), [2]

    def forward(self, x):
        return self.factor * self.inner(x) ** self.power[0] + self.offset


def one_bit(model):
    with torch.no_grad():
        model.inner[0].weight.view(torch.int32)[1, 2] ^= 1


def batch_norm_moves(model):
    model.train()(torch.randn(9, 3) + 1)


CHANGES = {
    "one bit of one weight": one_bit,
    "data": lambda m: m.inner[4].bias.data.add_(1.0),
    "numpy view": lambda m: m.inner[0].weight.detach().numpy().__setitem__((0, 0), 7.0),
    "assigned state": lambda m: m.load_state_dict(
        {k: v + 1 if v.is_floating_point() else v for k, v in m.state_dict().items()}, assign=True
    ),
    "replaced parameter": lambda m: setattr(m.inner[0], "weight", nn.Parameter(torch.ones(4, 3))),
    "replaced module": lambda m: m.inner.__setitem__(2, nn.ReLU()),
    "replaced submodule with weights": lambda m: m.inner.__setitem__(4, nn.Linear(4, 2)),
    "batch norm's statistics": batch_norm_moves,
    "a number": lambda m: setattr(m, "factor", 3.0),
    "a plain tensor": lambda m: m.offset.data.add_(1.0),
    "a number in a list": lambda m: m.power.__setitem__(0, 3),
    "an option of a module": lambda m: setattr(m.inner[1], "eps", 0.5),
    "a forward of its own": lambda m: setattr(
        m.inner, "forward", MethodType(lambda self, x: self[4](self[0](x)), m.inner)
    ),
}


@pytest.mark.parametrize(
    ("engine", "change"),
    [
        *((engine, change) for engine in ("replay", "double-backward") for change in CHANGES),
        *(("auto", change) for change in ("data", "replaced module", "a number")),  # it has chosen one of the two
    ],
)
def test_products_are_those_of_the_model_of_now(change, engine):
    model, x = Scaled(), torch.randn(5, 3)
    J = spectral.Jacobian(model, [x], engine=engine)
    J.expect(20)
    for _ in range(3):
        J @ torch.ones(J.shape[1], 2), J.T @ torch.ones(J.shape[0])
    modes = [m.training for m in model.modules()]
    CHANGES[change](model)
    for module, mode in zip(model.modules(), modes, strict=False):
        module.training = mode
    D = dense_jacobian(model, [x], logits)
    for _ in range(2):
        assert torch.allclose(J @ torch.eye(J.shape[1]), D, atol=1e-5 * float(D.abs().max()))
        assert torch.allclose(J.T @ torch.eye(J.shape[0]), D.T, atol=1e-5 * float(D.abs().max()))


@pytest.mark.parametrize("change", CHANGES)
def test_version_changes_with_every_change_and_only_then(change):
    model = Scaled()
    before = Version([model])
    assert Version([model]) == before
    CHANGES[change](model)
    assert Version([model]) != before


def test_mode_alone_is_no_other_version():
    model = Scaled()
    before = Version([model])
    assert Version([model.eval()]) == before


def test_one_changed_weight_among_many_is_another_identity():
    model, x = nn.Linear(1000, 300), torch.randn(2, 1000)
    J = spectral.Jacobian(model, [x])
    before = J.identity()
    assert J.identity() == before
    with torch.no_grad():
        model.weight[123, 457] += 1e-3
    assert J.identity() != before


def test_programs_are_kept_while_nothing_changes():
    model, x = Scaled(), torch.randn(5, 3)
    J = spectral.Jacobian(model, [x], engine="replay")

    def program():
        return J.store.entries["J v", 0][0].program

    for _ in range(3):  # it is tested
        J @ torch.ones(J.shape[1])
    kept = program()
    for _ in range(3):
        model(x)  # in train mode: batch norm's statistics move
        J @ torch.ones(J.shape[1])
        assert program() is not kept
        kept = program()
        J @ torch.ones(J.shape[1])
        assert program() is kept


def test_renamed_or_reshaped_parameters_are_one_sentence():
    model, x = net(), torch.randn(5, 3)
    J = spectral.Jacobian(model, [x])
    model[4] = nn.Linear(4, 3)
    with pytest.raises(
        ValueError, match=r"the parameter 4.weight is now \(3, 4\) of torch.float32 instead of \(2, 4\) of"
    ):
        J @ torch.ones(J.shape[1])
    model[4] = nn.Identity()
    with pytest.raises(ValueError, match=r"the parameter 4.weight is now gone instead of"):
        J @ torch.ones(J.shape[1])


def test_snapshot_follows_no_foreign_object():
    class Trainer:
        def __init__(self):
            self.step = 0

    model = nn.Linear(2, 2)
    model.trainer = Trainer()
    snapshot = Snapshot([model])
    model.trainer.step = 5
    snapshot.restore()
    assert model.trainer.step == 5
    assert not any(thing is vars(model.trainer) for thing in model_state.walk([model]))


@pytest.mark.parametrize(
    ("place", "opened"), [("lib/site-packages", False), ("dist-packages/deep", False), ("mine", True)]
)
def test_code_of_installed_packages_is_not_followed_wherever_they_lie(tmp_path, place, opened):
    """A user's packages, or the system's below a virtual environment: a Lightning trainer was 4,400 things to look at."""
    file = tmp_path / place / "module.py"
    code = compile("def forward(x):\n    return x * FACTOR", str(file), "exec")
    scope = {"FACTOR": [2.0]}
    exec(code, scope)
    assert any(part is scope["FACTOR"] for part in model_state.read(scope["forward"]).values()) == opened
