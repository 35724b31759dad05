"""Every seeded defect is named, exactly; a healthy model passes without a word; nothing is left behind."""

import copy
import random

import numpy as np
import pytest
import torch
from families import FAMILIES
from oracles import random_states
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

import spectral
from spectral.networks.data_model import DataModel
from spectral.networks.diagnose import checks, derivatives
from spectral.networks.products import Products
from spectral.networks.survey import survey

DOUBLE = torch.float64
x = torch.randn(6, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def traces(model):
    """Everything about a model and the process that a diagnosis may not change, hooks included."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
             "_backward_hooks", "_forward_hooks_always_called")  # fmt: skip
    return (
        [(m.training, [len(getattr(m, kind)) for kind in hooks]) for m in model.modules()],
        [(name, b.tolist(), id(b)) for name, b in model.named_buffers()],
        [(name, p.tolist(), id(p), p._version, p.grad, p._backward_hooks) for name, p in model.named_parameters()],
        random_states(),
        torch.is_grad_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    )


class Apply(nn.Module):
    """A function as a module of its own."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("seen", torch.zeros((), dtype=DOUBLE))

    def forward(self, h):
        self.seen.add_(1)
        return self.function(h)


class Block(nn.Module):
    """x -> x + scale(inner(norm x)): the culprit sits between innocent modules, on a residual branch."""

    def __init__(self, function):
        super().__init__()
        self.norm, self.inner, self.scale = nn.LayerNorm(3), Apply(function), nn.Linear(3, 3)

    def forward(self, h):
        return h + self.scale(self.inner(self.norm(h)))


def network(function):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 3), Block(torch.tanh), Block(function), Block(torch.tanh), nn.Linear(3, 2))
    return model.double().train()


def diagnose(model, question, **options):
    """The answer about the first batch; what it must not change is as before."""
    net = DataModel(model, [x], products=Products(preflight=False), **options)
    before, sweeps = traces(model), net.sweeps
    answer = question(net)
    assert traces(model) == before and net.sweeps == sweeps
    return answer


def prepared(model, batches, preflight=True, **options):
    """A model that has been surveyed and inspected, as an operator does it."""
    net = DataModel(model, batches, products=Products(preflight=preflight), **options)
    checks.surveyed(net)
    checks.inspected(net, net.function)
    return net


CULPRIT = "2.inner (Apply)"


# NaN and infinity ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("function", [lambda h: (h - 9).log(), lambda h: h / (h - h), lambda h: (-h.abs() - 1).sqrt()])
def test_module_that_makes_nan_is_named(function):
    model = network(function)
    assert diagnose(model, lambda net: checks.first_nonfinite_module(net, x, net.function(x))) == CULPRIT
    before = traces(model)
    with pytest.raises(
        ValueError, match=r"the model returns NaN or infinity in batch 0, first in 2.inner \(Apply\); rem"
    ):
        spectral.Jacobian(model, [x])
    assert traces(model) == before


def test_only_the_batch_that_fails_is_blamed():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), Apply(torch.log)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
    with pytest.raises(ValueError, match=r"in batch 1, first in 1 \(Apply\);"):
        spectral.Jacobian(model, [x.abs() + 1, x])


def test_healthy_forward_has_no_culprit():
    assert diagnose(network(torch.sin), lambda net: checks.first_nonfinite_module(net, x, net.function(x))) is None


def test_parameter_that_is_nan_is_named():
    model = network(torch.sin)
    with torch.no_grad():
        model[2].scale.weight[0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"first in 2.scale \(Linear\), whose weight holds NaN or infinity;"):
        spectral.Jacobian(model, [x])


def test_mask_of_minus_infinity_is_no_culprit():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend, self.root = Attend(), Apply(lambda h: (h - 9).sqrt())

        def forward(self, h):
            mask = torch.zeros(3, 3, dtype=h.dtype).masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(1), -torch.inf)
            return self.root(self.attend(h, mask))

    class Attend(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)

        def forward(self, h, mask):
            return super().forward(h) @ mask.softmax(-1)

    with pytest.raises(ValueError, match=r"first in root \(Apply\);"):
        spectral.Jacobian(Masked().double(), [x])


SINGULAR = {
    "sqrt": lambda h: (h - h).sqrt(),
    "norm": lambda h: (h * 0).pow(2).sum(1, keepdim=True).sqrt() * h,
    "pow": lambda h: (h - h).pow(0.5),
    "power of a tensor": lambda h: (h - h).pow(h.new_full((3,), 0.5)),
    "masked": lambda h: torch.where(h.isnan(), (h - h).sqrt(), h),  # J v is finite, J^T u is not
}


@pytest.mark.parametrize("wrt", ["params", "inputs"])
@pytest.mark.parametrize("kind", SINGULAR)
def test_derivative_that_is_not_finite_is_named(kind, wrt):
    clause = diagnose(
        network(SINGULAR[kind]), lambda net: derivatives.nonfinite_product(net, 2, x, net.function(x)), wrt=wrt
    )
    operation = {"norm": "sqrt", "power of a tensor": "pow", "masked": "sqrt"}.get(kind, kind)
    assert clause == f"batch 2, where the derivative of {operation} in {CULPRIT} is not finite"


def test_tangent_that_is_not_finite_is_named_where_the_gradient_is():
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(h):
            return h.clone()

        @staticmethod
        def setup_context(ctx, inputs, output): ...

        @staticmethod
        def backward(ctx, g):
            return g

        @staticmethod
        def jvp(ctx, t):
            return t / 0

    clause = diagnose(network(Half.apply), lambda net: derivatives.nonfinite_product(net, 0, x, net.function(x)))
    assert clause == f"batch 0, where the derivative of {CULPRIT} is not finite"


def test_second_derivative_that_is_not_finite_is_named():
    model = network(lambda h: (h - h.detach()).abs().pow(1.5))

    def ask(net):
        def total(*values):
            return net.function(x)(*values).sum()

        return derivatives.nonfinite_product(net, 1, x, total)

    assert diagnose(model, ask) == f"batch 1, where the second derivative of pow in {CULPRIT} is not finite"


def test_finite_derivatives_leave_the_batch_alone():
    assert (
        diagnose(network(torch.sin), lambda net: derivatives.nonfinite_product(net, 3, x, net.function(x))) == "batch 3"
    )


def test_singular_output_function_is_told_from_the_model():
    clause = diagnose(
        network(torch.sin),
        lambda net: derivatives.nonfinite_product(net, 0, x, net.function(x)),
        of=lambda z, batch: (z - z).sqrt(),
    )
    assert clause == "batch 0, where the derivative of sqrt in of= or loss= is not finite"


def test_first_batch_with_a_singular_derivative_is_located():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), Apply(lambda h: h.abs().sqrt())).double()
    net = DataModel(model, [x, x * 0, x], products=Products(preflight=False))
    survey(net)
    before, sweeps = traces(model), net.sweeps
    assert (
        derivatives.locate_nonfinite(net, net.function)
        == "batch 1, where the derivative of sqrt in 1 (Apply) is not finite"
    )
    assert traces(model) == before and net.sweeps == sweeps
    fine = DataModel(network(torch.sin), [x, x])
    survey(fine)
    assert derivatives.locate_nonfinite(fine, fine.function) == ""


# Randomness ----------------------------------------------------------------------------------------------------------
def forked(h):
    with torch.random.fork_rng():  # two passes under one state of the generator agree
        return h + torch.randn_like(h)


NOISE = {
    "dropout": lambda h: F.dropout(h, 0.5, training=True),
    "noise": lambda h: h + torch.randn_like(h),
    "forked": forked,
    "python": lambda h: h * random.random(),
    "numpy": lambda h: h * np.random.rand(),  # noqa: NPY002
}


@pytest.mark.parametrize("kind", NOISE)
def test_random_module_is_named(kind):
    model = network(NOISE[kind])
    assert diagnose(model, lambda net: checks.active_randomness(net, x)) == CULPRIT
    before = traces(model)[:-3]
    with pytest.raises(ValueError, match=r"differ: 2.inner \(Apply\) is random in eval mode; remove the noise"):
        spectral.Jacobian(model, [x])
    assert traces(model)[:-3] == before


def test_private_generator_is_found_too():
    own = torch.Generator().manual_seed(5)
    model = network(lambda h: h + torch.randn(h.shape, generator=own, dtype=h.dtype))
    assert diagnose(model, lambda net: checks.active_randomness(net, x)) == CULPRIT


def test_skipped_layers_blame_what_skips_them():
    class Skipping(nn.Sequential):
        def forward(self, h):
            for layer in self:
                h = layer(h) if random.random() < 0.5 else h
            return h

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), Skipping(*(nn.Linear(3, 3) for _ in range(40))), nn.Linear(3, 2)).double()
    assert diagnose(model, lambda net: checks.active_randomness(net, x)) == "1 (Skipping)"


def test_module_that_seeds_itself_is_a_function():
    def seeded(h):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return h * torch.rand(3, dtype=h.dtype)

    assert diagnose(network(seeded), lambda net: checks.active_randomness(net, x)) is None


def test_random_forward_is_told_from_the_model():
    def noisy(model, batch):
        return model(batch) + torch.randn(2, dtype=DOUBLE)

    answer = diagnose(network(torch.sin), lambda net: checks.active_randomness(net, x), forward=noisy)
    assert answer.startswith("forward=") and "noisy" in answer


# Samples that meet ---------------------------------------------------------------------------------------------------
MEETING = {
    "batch norm": lambda h: F.batch_norm(h, None, None, training=True),
    "mean": lambda h: h - h.mean(0),
    "other samples' attention": lambda h: (h @ h.T).softmax(-1) @ h,
    "norm of all": lambda h: h / h.norm(),
}


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("kind", MEETING)
def test_module_where_samples_meet_is_named(kind, n):
    model = network(MEETING[kind])
    assert diagnose(model, lambda net: checks.samples_meet(net, x[:n])) == CULPRIT
    with pytest.raises(ValueError, match=r"2.inner \(Apply\) couples them in eval mode.*preflight=False"):
        prepared(model, [x[:n]])


def test_module_in_another_layout_is_named():
    class Time(nn.Module):
        """(B, T) in, (T, B, 1) inside."""

        def __init__(self, function):
            super().__init__()
            self.up, self.meet, self.out = nn.Linear(1, 4), Apply(function), nn.Linear(4, 1)

        def forward(self, h):
            return self.out(self.meet(self.up(h.T.unsqueeze(-1)))).squeeze(-1).T

    assert diagnose(Time(torch.sin).double(), lambda net: checks.samples_meet(net, x)) is None
    apart = Time(lambda h: h - h.mean(1, keepdim=True)).double()
    assert diagnose(apart, lambda net: checks.samples_meet(net, x)) == "meet (Apply)"


def test_batch_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(ValueError, match=r"1 is a BatchNorm1d without running statistics.*couples the samples"):
        prepared(model, [x])


def test_module_without_eval_mode_is_refused():
    class Always(nn.Dropout):
        def train(self, mode=True):
            return super().train(True)

    class Stuck(nn.Sequential):
        def train(self, mode=True):
            self.training = mode
            return self

    for model, name in (
        (nn.Sequential(nn.Linear(3, 2), Always()), r"1 \(Always\)"),
        (Stuck(nn.Dropout()), r"0 \(Dropout\)"),
        (Always(), r"the model \(Always\)"),
    ):
        before = traces(model)
        with pytest.raises(ValueError, match=name + r" stays in training mode after model.eval\(\)"):
            prepared(model.double(), [x], wrt="inputs")
        assert traces(model) == before


# Off, and healthy ----------------------------------------------------------------------------------------------------
SIZES = []  # of the batches that forward has seen: an attribute of the module would be put back


class Forwards(nn.Linear):
    def forward(self, h):
        SIZES.append(len(h))
        return super().forward(h)


def test_cost_of_the_preflight_is_one_pass_of_two_samples():
    for preflight, sizes in ((True, [6, 4, 6, 2]), (False, [6, 4, 6])):  # the survey, the graph, samples alone
        SIZES.clear()
        prepared(Forwards(3, 2).double(), [x, x[:4]], preflight=preflight)
        assert sizes == SIZES


def test_preflight_off_is_said_and_only_then():
    model = network(NOISE["dropout"])
    net = DataModel(model, [x], products=Products(preflight=False))
    survey(net)
    assert net.describe()["preflight"] is False
    assert not {"preflight", "untested"} & set(prepared(network(torch.sin), [x]).describe())
    with pytest.raises(ValueError, match=r"NaN or infinity in batch 0, first in 2.inner"):
        prepared(network(lambda h: h / 0), [x], preflight=False)


def test_what_could_not_be_tested_is_said():
    def six(h):
        if len(h) != 6:
            raise ValueError("six samples, please")
        return h.sin()

    net = prepared(network(six), [x])
    assert net.describe()["untested"] == "copies of one sample alone: six samples, please"


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.hugging_face])
def test_healthy_families_pass_without_a_word(name):
    check_family(FAMILIES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.hugging_face])
def test_healthy_hugging_face_families_pass_without_a_word(name):
    pytest.importorskip("transformers")
    check_family(FAMILIES[name])


def check_family(family):
    model = family.model()
    batches = family.cut((3, 2))
    before = traces(model)
    net = prepared(model, batches)
    assert not net.untested and traces(model) == before
    for batch in batches:
        assert checks.first_nonfinite_module(net, batch, net.function(batch)) is None
        assert checks.samples_meet(net, batch) is None
        assert checks.active_randomness(net, batch) is None
        assert derivatives.nonfinite_product(net, 0, batch, net.function(batch)) == "batch 0"
    assert traces(model) == before
    bf16 = DataModel(copy.deepcopy(model), batches, products=Products(dtype=torch.bfloat16))
    survey(bf16)
    assert bf16.info.n == 5


# Missing derivatives -------------------------------------------------------------------------------------------------
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h * h

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class Once(Square):
    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def quantised(h):
    return torch.fake_quantize_per_tensor_affine(h.float(), 0.1, 0, -128, 127).to(h.dtype)


PROBLEM = RuntimeError("what torch said\nin many lines")
MISSING = {
    "quantised": (quantised, f"fake_quantize_per_tensor_affine_cachemask in {CULPRIT} has no forward-mode derivative"),
    "function": (Square.apply, f"Square in {CULPRIT} has no forward-mode derivative"),
    "once": (Once.apply, f"Once in {CULPRIT} has no forward-mode derivative and no second derivative"),
    "none missing": (torch.sin, "what torch said"),
}


@pytest.mark.parametrize("kind", MISSING)
def test_missing_derivative_names_operation_and_module(kind):
    function, clause = MISSING[kind]
    assert (
        diagnose(network(function), lambda net: derivatives.missing_derivative(net, x, PROBLEM, net.function(x)))
        == clause
    )


def test_largest_entries_of_a_bag_have_neither_derivative():
    model = nn.Sequential()
    model.add_module("encoder", nn.ModuleDict({"bag": nn.EmbeddingBag(7, 3, mode="max")}))
    model = model.double()
    ids = torch.randint(7, (4, 5))
    net = DataModel(model, [ids], forward=lambda m, b: m.encoder["bag"](b).sin())
    clause = derivatives.missing_derivative(net, ids, PROBLEM, net.function(ids))
    where = "embedding_bag in encoder.bag (EmbeddingBag)"
    assert clause == f"{where} has no forward-mode derivative and no second derivative"


def test_ctc_loss_outside_the_model_is_named():
    targets, lengths = torch.ones(6, 1, dtype=torch.long), torch.full((6,), 3)

    def ctc(z, batch):
        z = torch.stack([z, -z, z * 2]).log_softmax(-1)
        return F.ctc_loss(z, targets, lengths, torch.ones(6, dtype=torch.long), reduction="none")

    clause = diagnose(
        network(torch.sin), lambda net: derivatives.missing_derivative(net, x, PROBLEM, net.function(x)), of=ctc
    )
    assert "ctc_loss in of= or loss= has no forward-mode derivative" in clause and "no second derivative" in clause


def test_flex_attention_is_named():
    flex = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention

    def attend(h):
        q = h.float().reshape(-1, 1, 1, 3).repeat(1, 1, 1, 6)[..., :16]
        return flex(q, q, q)[..., 0, :3].reshape(-1, 3).to(h.dtype)

    net = DataModel(network(attend), [x], products=Products(preflight=False))
    clause = derivatives.missing_derivative(net, x, PROBLEM, net.function(x))
    assert f"in {CULPRIT} has no forward-mode derivative" in clause and "flex" in clause.lower()
