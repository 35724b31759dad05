"""What strangers bring, of kinds on which the package was once wrong, or refused what it can do."""

import copy
import functools
import math
import pickle
import threading
import warnings
import weakref
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import spectral
from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian
from spectral.networks.diagnose import graph

DOUBLE = torch.float64
CE = nn.CrossEntropyLoss()


def dense(A):
    return A @ torch.eye(A.shape[1], dtype=A.dtype)


def agrees(A, right, tol=1e-10):
    D = dense(A).to(right.dtype)
    return D.shape == right.shape and float((D - right).norm()) <= tol * float(right.norm())


def rows(z, params):
    grads = (torch.autograd.grad(e, params, retain_graph=True, materialize_grads=True) for e in z.reshape(-1))
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in grads])


def second(total, params):
    """The Hessian of total() by central differences of its gradient."""
    columns, h = [], 1e-5
    for p in params:
        entries = p.data.view(-1)
        for i in range(len(entries)):
            keep, ends = entries[i].item(), []
            for step in (h, -h):
                entries[i] = keep + step
                ends.append(rows(total(), params)[0])
            entries[i] = keep
            columns.append((ends[0] - ends[1]) / (2 * h))
    return torch.stack(columns, 1)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)
    return model, torch.randn(6, 3, dtype=DOUBLE), torch.randint(3, (6,))


def cut(x, y):
    return [(x[:4], y[:4]), (x[4:], y[4:])]


# Second derivatives ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("normalise, engine", [(nn.utils.weight_norm, "fresh"), (parametrizations.weight_norm, "auto")])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_hessian_of_a_normalised_weight_is_the_derivative_of_its_gradient(problem, normalise, engine):
    """torch's fused one takes the norms for constants in its second derivative, which is symmetric all the same."""
    model, x, y = problem
    model[0] = normalise(model[0])
    right = second(lambda: CE(model(x), y), list(model.parameters()))
    fused = torch._weight_norm
    assert agrees(Hessian(model, CE, cut(x, y), engine=engine), right, 1e-8) and torch._weight_norm is fused


class Cube(torch.autograd.Function):
    """x^3, with x^2 kept from forward: its second derivative is 0."""

    @staticmethod
    def forward(ctx, x):
        ctx.square = x * x
        return ctx.square * x

    @staticmethod
    def backward(ctx, g):
        return 3 * g * ctx.square


class Cubic(nn.Module):
    def forward(self, x):
        return Cube.apply(x)


class Settling(nn.Module):
    """A fixed point that is differentiated through its last step alone."""

    def __init__(self):
        super().__init__()
        self.step, self.out = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        h = torch.tanh(self.step(x)).detach()
        return self.out(torch.tanh(self.step(h) + x))


def test_matrix_that_was_refused_is_refused_whenever_it_is_asked_for(problem):
    """The second product of the same operator was handed out: what had failed its test counted as tested."""
    _, x, y = problem
    model = Settling().to(DOUBLE)
    H, v = Hessian(model, CE, cut(x, y)), torch.randn(24, dtype=DOUBLE)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"is not that of its gradient.*replace it by torch operations\.$"):
            H @ v


@pytest.mark.parametrize("inplace", [False, True])
def test_hessian_of_a_hard_sigmoid(problem, inplace):
    """torch's own has no second derivative, which is 0."""
    _, x, y = problem
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Hardsigmoid(inplace)).to(DOUBLE)
    assert agrees(Hessian(model, CE, cut(x, y)), second(lambda: CE(model(x), y), list(model.parameters())), 1e-6)


@pytest.mark.parametrize("halved, dtype", [(True, DOUBLE), (False, torch.float32)])
def test_differences_of_what_is_not_the_gradient_are_refused_each_time(problem, halved, dtype):
    """z sg(z) has half of a square's gradient, whose differences are symmetric; those of z sg(sigmoid(z)) are not."""
    model, x, y = problem
    model, x = model.to(dtype), x.to(dtype)
    keep = (lambda z: z) if halved else torch.sigmoid
    forward = lambda m, b: (z := m(b[0])) * keep(z).detach()  # noqa: E731
    H = Hessian(model, CE, cut(x, y), engine="finite-difference", forward=forward)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^the gradient is not that of the loss on .*stop-gradient"):
            H @ torch.ones(31, dtype=dtype)
    own = Hessian(model, CE, cut(x, y), engine="finite-difference", forward=forward, preflight=False)
    assert (own @ torch.ones(31, dtype=dtype)).norm() > 0


class MadeAgain(torch.autograd.Function):
    """A call of a module whose backward pass calls it again, as adjoint methods and reversible layers do."""

    @staticmethod
    def forward(ctx, module, x, *weights):
        ctx.module = module
        ctx.save_for_backward(x, *weights)
        return module(x)

    @staticmethod
    def backward(ctx, g):
        x, *weights = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return None, *torch.autograd.grad(ctx.module(x), (x, *weights), g)


def test_backward_pass_that_calls_the_model_again_is_of_the_weights_that_are_differentiated(problem):
    """It ran on the model's own, in train mode: J was without the columns of what was called again, and so was its transpose."""
    _, x, y = problem
    model = nn.ModuleDict({"step": nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout()), "out": nn.Linear(4, 3)})
    own = list(model.to(DOUBLE).parameters())
    again = lambda m, b: m["out"](MadeAgain.apply(m["step"], b[0], *m["step"].parameters()))  # noqa: E731
    A = Jacobian(model, cut(x, y), forward=again)
    for _ in range(2):
        right = rows(model["out"](torch.tanh(model["step"][0](x))), own)
        assert agrees(A, right) and agrees(A.T, right.T)
        with torch.no_grad():
            own[0].mul_(1.5)


class Checkpointed(nn.Module):
    """Its middle layer is made again in the backward pass, by a graph of its own."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return checkpoint(self.net[2], self.net[:2](x), use_reentrant=True)


@pytest.mark.parametrize("engine", ["auto", "finite-difference"])
def test_reentrant_checkpoint_changes_no_derivative(problem, engine):
    """It was refused, and its gradient ended in torch's words."""
    net, x, y = problem
    model, own = Checkpointed(net), list(net.parameters())
    H = Hessian(model, CE, cut(x, y), engine=engine)
    assert agrees(H, second(lambda: CE(net(x), y), own), 1e-6)
    (gradient,) = rows(CE(net(x), y), own)
    assert torch.allclose(H.gradient(), gradient, rtol=1e-10, atol=1e-12)
    J, p = rows(net(x), own), net(x).softmax(1).detach()
    middle = torch.block_diag(*[torch.diag(q) - torch.outer(q, q) for q in p]) / len(x)
    assert agrees(Jacobian(model, cut(x, y)), J) and agrees(GaussNewton(model, CE, cut(x, y)), J.T @ middle @ J)
    D = torch.autograd.functional.jacobian(net, x)
    assert agrees(Jacobian(model, [x], wrt="inputs"), torch.cat([D[i, :, i] for i in range(len(x))]))


def test_operator_that_torch_func_does_not_differentiate_is_named(problem):
    model, x, y = problem
    wave = lambda m, b: torch.ops.higher_order.cond(torch.tensor(True), torch.sin, torch.tanh, (m(b[0]),))  # noqa: E731
    words = r"^the model fails on batch 0 \(NotImplementedError: torch.func does not differentiate the operator cond; [^:<]*\);"
    with pytest.raises(RuntimeError, match=words):
        Jacobian(model, cut(x, y), forward=wave)


def test_loss_that_is_differentiated_once_has_an_empirical_fisher_and_a_hessian_by_differences(problem):
    """Connectionist temporal classification, of which torch has neither forward mode nor a second derivative."""
    model, _, _ = problem
    x, lengths = torch.randn(4, 5, 3, dtype=DOUBLE), torch.tensor([5, 4, 5, 3])
    own, batch = list(model.parameters()), (x, torch.tensor([[1, 2], [2, 1], [1, 1], [2, 2]]), lengths)

    def losses(z, batch):
        two = torch.full((len(z),), 2)
        return F.ctc_loss(z.log_softmax(2).transpose(0, 1), batch[1], batch[2], two, reduction="none")

    G = rows(losses(model(x), batch), own)
    data = [[part[:3] for part in batch], [part[3:] for part in batch]]
    how = {"loss": lambda z, batch: (losses(z, batch).sum(), len(z)), "data": data, "forward": lambda m, b: m(b[0])}
    A = EmpiricalFisher(model, **how)
    assert agrees(A, G.T @ G / 4) and A.describe()["engine"] == "rows"
    assert torch.allclose(torch.as_tensor(spectral.diagonal(A, method="exact").value), (G**2).sum(0) / 4)
    right = second(lambda: losses(model(x), batch).mean(), own)
    assert agrees(Hessian(model, **how, engine="finite-difference"), right, 1e-6)
    with pytest.raises(ValueError, match=r"ctc_loss in of= or loss= has no .* or take differences of gradients"):
        Hessian(model, **how) @ torch.ones(31, dtype=DOUBLE)


@pytest.mark.parametrize("n", [3, 20])
def test_wrong_second_derivative_is_seen_whatever_the_first_vector(n):
    """The last bias, of which the loss is a quadratic function, says nothing of what lies below the cubes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), Cubic(), nn.Linear(2, 1)).to(DOUBLE)
    H = Hessian(model, nn.MSELoss(), [(torch.randn(n, 2, dtype=DOUBLE), torch.randn(n, 1, dtype=DOUBLE))])
    blind = torch.eye(9, dtype=DOUBLE)[8]
    with pytest.raises(
        ValueError, match=r"Cube in 1 \(Cubic\) has a second derivative that is not that of its gradient"
    ):
        H @ blind


@pytest.mark.parametrize("kind, engine", [(GaussNewton, "auto"), (Fisher, "replay")])
def test_curvature_of_a_fitted_cross_entropy_keeps_its_digits(kind, engine):
    """p is nearly 1, and p (1 - p) is made of the others: in float32 it was 0.4 off at a loss of 5e-12."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 3, bias=False), torch.eye(3)
    with torch.no_grad():
        model.weight.copy_(26 * torch.eye(3) + torch.randn(3, 3))
    z = model(x).detach().double()
    p, rest = z.softmax(1), (z.softmax(1) * (1 - torch.eye(3))).sum(1)
    right = torch.zeros(3, 3, 3, 3, dtype=DOUBLE)  # class, input, class, input
    for i in range(3):
        right[:, i, :, i] = torch.diag(p[i]) - p[i][:, None] * p[i]
        right[i, i, i, i] = p[i, i] * rest[i]
    assert agrees(kind(model, CE, [(x, torch.arange(3))], engine=engine), right.reshape(9, 9) / 3, 1e-5)


def test_way_whose_product_is_not_finite_gives_place_to_the_other(problem):
    """Forward mode of logcumsumexp is NaN in torch where its backward pass is finite."""
    model, x, _ = problem
    J = Jacobian(model, [x], of=lambda z, batch: z.logcumsumexp(1))
    assert agrees(J, rows(model(x).logcumsumexp(1), list(model.parameters())))


# Embeddings -----------------------------------------------------------------------------------------------------------
class Words(nn.Module):
    """Tokens whose padding is looked up and read, too; with `held` as a constant, by an index and no embedding."""

    def __init__(self, tied, held=False):
        super().__init__()
        self.words, self.head = (
            nn.Embedding(5, 2, padding_idx=0, dtype=DOUBLE),
            nn.Linear(2, 5, bias=False, dtype=DOUBLE),
        )
        with torch.no_grad():
            self.words.weight[0] = torch.tensor([0.3, -0.8])
        if tied:
            self.head.weight = self.words.weight
        self.held = self.words.weight.detach()[0].clone() if held else None

    def forward(self, ids):
        rows = (
            self.words(ids)
            if self.held is None
            else torch.where((ids == 0)[..., None], self.held, self.words.weight[ids])
        )
        return self.head(rows.tanh().mean(1))


@pytest.mark.parametrize("tied", [False, True])
def test_padding_that_an_embedding_reads_is_a_constant(tied):
    """As in torch's backward pass, in forward mode and in the difference of gradients, too."""
    ids, y = torch.tensor([[0, 1], [2, 0], [3, 4]]), torch.tensor([1, 0, 3])
    model, other = (torch.manual_seed(0) and Words(tied, held) for held in (False, True))
    own = list(other.parameters())
    looked_up = F.embedding
    H = Hessian(model, CE, [(ids, y)])
    assert agrees(H, second(lambda: CE(other(ids), y), own), 1e-8) and F.embedding is looked_up
    assert agrees(Jacobian(model, [ids], engine="fresh"), rows(other(ids), own))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bag_of_an_embedding_is_the_sum_of_its_rows(mode):
    """Without its padding, which is read nowhere; torch's own bags have backward passes alone."""
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(5, 2, mode=mode, padding_idx=0, dtype=DOUBLE)
    ids, y = torch.tensor([[0, 1], [2, 2], [0, 0]]), torch.tensor([0, 1, 0])
    flat, offsets, weights = ids.reshape(-1), torch.tensor([0, 2, 4]), torch.rand(6, dtype=DOUBLE)
    own, right = list(bag.parameters()), rows(bag(ids), list(bag.parameters()))
    assert agrees(Jacobian(bag, [ids]), right)
    assert agrees(Hessian(bag, CE, [(ids, y)]), second(lambda: CE(bag(ids), y), own), 1e-8)

    def cut(model, batch):
        return model(flat, offsets, weights if mode == "sum" else None)

    assert agrees(Jacobian(bag, [y], forward=cut, preflight=False), rows(cut(bag, y), own))


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(9, 3, mode="sum").to(DOUBLE), nn.Linear(3, 2).to(DOUBLE)

    def forward(self, words, offsets):
        return self.out(torch.tanh(self.bag(words, offsets)))


BAGS = {
    "Jacobian": (lambda *given, **options: Jacobian(given[0], given[2], **options), lambda J, M: J),
    "Hessian": (Hessian, None),
    "GaussNewton": (GaussNewton, lambda J, M: J.T @ M @ J / 5),
    "Fisher": (Fisher, lambda J, M: J.T @ M @ J / 5),
}


@pytest.mark.parametrize("kind", BAGS)
def test_bags_that_begin_at_offsets_are_no_samples_that_meet(kind):
    """Words and offsets belong to no single bag; with both shared it was said that the loss couples the samples."""
    torch.manual_seed(0)
    model, y = Bags(), torch.randint(2, (5,))
    words = [torch.randint(9, (n,)) for n in (2, 3, 1, 4, 2)]

    def batch(some, labels):
        return torch.cat(some), torch.tensor([0, *map(len, some[:-1])]).cumsum(0), labels

    def of(model):  # without the bag
        return model.out(torch.tanh(torch.stack([model.bag.weight[some].sum(0) for some in words])))

    data, own = [batch(words[:3], y[:3]), batch(words[3:], y[3:])], list(model.parameters())
    make, right = BAGS[kind]
    J, p = rows(of(model), own), of(model).softmax(1).detach()
    M = torch.block_diag(*[torch.diag(q) - torch.outer(q, q) for q in p])
    A = second(lambda: CE(of(model), y), own) if right is None else right(J, M)
    assert agrees(make(model, CE, data, shared=[0, 1]), A, 1e-7)
    with pytest.raises(
        ValueError, match=r"bag \(EmbeddingBag\) couples .*begin of a shared entry \(offsets\) is shared too"
    ):
        make(model, CE, data, shared=[0])


def test_gradient_that_is_divided_by_how_often_a_row_is_read_is_refused():
    model = nn.Sequential(nn.Embedding(4, 3, scale_grad_by_freq=True), nn.Flatten())
    with pytest.raises(ValueError, match=r"scale_grad_by_freq=True, so that its backward pass is not the derivative"):
        Jacobian(model, [torch.tensor([[0, 1], [1, 1]])])


# Models ---------------------------------------------------------------------------------------------------------------
class Remembering(nn.Module):
    def __init__(self, matters):
        super().__init__()
        self.layer, self.calls, self.matters = nn.Linear(3, 3, dtype=DOUBLE), 0, matters

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * (self.calls if self.matters else 1)


def test_model_is_a_function_of_its_first_call_alone(problem):
    """What is as it was before each sweep shows nothing from sweep to sweep."""
    x = problem[1][:1]
    model = Remembering(False)
    assert agrees(Jacobian(model, [x]), rows(model(x), list(model.parameters()))) and model.calls == 1
    with pytest.raises(ValueError, match=r"the model \(Remembering\) keeps something from one call to the next"):
        Jacobian(Remembering(True), [x])


class Cached(nn.Module):
    """Keeps its normalised weight until someone empties the cache, as models for inference do."""

    def __init__(self, where):
        super().__init__()
        self.layer, self.cache, self.where = nn.Linear(3, 3, dtype=DOUBLE), {}, where

    def forward(self, x):
        key = len(x) if self.where == "by length" else "w"
        if key not in self.cache:
            self.cache[key] = F.normalize(self.layer.weight, dim=1)
        return F.linear(x, self.cache[key], self.layer.bias)


@pytest.mark.parametrize("where", ["once", "by length"])
@pytest.mark.parametrize("kind", [Jacobian, Hessian])
def test_parameter_that_a_call_reads_from_the_one_before_is_told(problem, where, kind):
    """Its columns were 0 without a word; with the cache emptied they are those of a first call."""
    _, x, y = problem
    model, given = Cached(where), () if kind is Jacobian else (CE,)
    with pytest.raises(ValueError, match=r"made of layer.weight in one call is kept .*; empty the cache in forward="):
        kind(model, *given, cut(x, y))
    assert not model.cache

    def forward(model, batch):
        model.cache.clear()
        return model(batch[0])

    own = list(model.parameters())
    right = rows(forward(model, [x]), own) if kind is Jacobian else second(lambda: CE(forward(model, [x]), y), own)
    assert agrees(kind(model, *given, cut(x, y), forward=forward), right, 1e-8)


class Memo(nn.Module):
    """A function of its weight, read directly too, is kept where the module's attributes do not tell."""

    made: ClassVar = {}
    constant: ClassVar = {"two": torch.tensor(2.0, dtype=DOUBLE)}

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False, dtype=DOUBLE)

    def weight(self):
        return self.layer.weight.tanh()

    def forward(self, x):
        return F.linear(x, self.weight() * self.layer.weight * self.constant["two"])


class MemoOfFunctools(Memo):
    weight = functools.cache(Memo.weight)


class MemoOfProperty(Memo):
    own = property(functools.cache(Memo.weight))

    def weight(self):
        return self.own


class MemoOfClass(Memo):
    def weight(self):
        return self.made.get("w") if "w" in self.made else self.made.setdefault("w", self.layer.weight.tanh())


class MemoOfDefault(Memo):
    def weight(self, made={}):  # noqa: B006 (the cache)
        return made["w"] if "w" in made else made.setdefault("w", self.layer.weight.tanh())


class MemoOfAttribute(Memo):
    own = functools.cached_property(Memo.weight)

    def weight(self):
        return self.own


@pytest.mark.parametrize("kind", [MemoOfFunctools, MemoOfProperty, MemoOfClass, MemoOfDefault, MemoOfAttribute])
def test_what_an_earlier_call_has_made_of_a_parameter_is_told_wherever_it_is_kept(problem, kind):
    """Taken away, it is made again to the same value, and of other parameters to another: what is not so is no cache."""
    _, x, y = problem
    model = kind()
    with torch.no_grad():
        model(x)
    with pytest.raises(ValueError, match=r"made of the parameters in one call is kept .*\(.*(weight|own|made)"):
        Jacobian(model, cut(x, y))
    plain = Memo()
    assert agrees(Jacobian(plain, cut(x, y)), rows(plain(x), list(plain.parameters())))


MEMO: dict = {}
WEAK = weakref.WeakKeyDictionary()


class Holder:
    def __init__(self):
        self.values = {}


OBJECT = Holder()


def kept_in(values, key, make):
    if key not in values:
        values[key] = make()
    return values[key]


class Memoised(nn.Module):
    """A product of a parameter is made once, where the layer is used too; what keeps it lies outside of the model."""

    classes: ClassVar[dict] = {}

    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(3, 3), kind

    @functools.lru_cache  # noqa: B019
    def cached(self):
        return self.made()

    def made(self):
        return self.layer.weight @ self.layer.weight.T

    def forward(self, x):
        ways = {
            "functools": self.cached,
            "function": lambda: of_function(self),
            "closure": lambda: of_closure(self),
            "dict": lambda: kept_in(MEMO, "weight", self.made),
            "class": lambda: kept_in(self.classes, len(x), self.made),
            "weak": lambda: kept_in(WEAK, self, self.made),
            "object": lambda: kept_in(OBJECT.values, id(self), self.made),
            "none": self.made,
        }
        return self.layer(torch.tanh(x @ ways[self.kind]()))


@functools.lru_cache
def of_function(model):
    return model.made()


def in_a_closure(function):
    values: dict = {}

    def of(model):
        return kept_in(values, model, lambda: function(model))

    return of


of_closure = in_a_closure(Memoised.made)


@pytest.mark.parametrize("kind", ["functools", "function", "closure", "dict", "class", "weak", "object"])
@pytest.mark.parametrize("matrix", [Jacobian, Hessian])
def test_what_is_kept_of_a_call_outside_of_the_model_is_told(problem, kind, matrix):
    """Its part of the parameter's columns was 0 without a word; without what is kept they are those of a first call."""
    (_, x, y), given = problem, () if matrix is Jacobian else (CE,)
    model = Memoised(kind).to(DOUBLE)
    with pytest.raises(ValueError, match=r"made of the parameters in one call is kept .*; empty the cache"):
        matrix(model, *given, cut(x, y))

    def forward(model, batch):
        for values in (MEMO, WEAK, OBJECT.values, Memoised.classes):
            values.clear()
        Memoised.cached.cache_clear(), of_function.cache_clear()
        return model(batch[0])

    if kind != "closure":
        own, plain = list(model.parameters()), Memoised("none").to(DOUBLE)
        plain.layer = model.layer
        right = rows(plain(x), own) if matrix is Jacobian else second(lambda: CE(plain(x), y), own)
        assert agrees(matrix(model, *given, cut(x, y), forward=forward), right, 1e-8)


TABLE = {"shift": torch.ones(3, dtype=DOUBLE)}
SHIFTS = [torch.ones(3, dtype=DOUBLE)]


class Reading(nn.Module):
    """What is kept of the sizes of a batch, and constants in containers, are no memory of the parameters."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    @functools.lru_cache  # noqa: B019
    def places(self, n):
        return torch.arange(3, dtype=DOUBLE).expand(n, 3)

    def forward(self, x):
        return sum(SHIFTS, self.layer(x + self.places(len(x)) * TABLE["shift"])).tanh()


def test_constants_that_are_kept_are_no_memory(problem):
    model, x = Reading().to(DOUBLE), problem[1]
    assert agrees(Jacobian(model, cut(x, problem[2])), rows(model(x), list(model.parameters())))
    assert TABLE.keys() == {"shift"} and len(SHIFTS) == 1


class Pruned(nn.Module):
    """A mask among the attributes, of weights that are 0 where it is: without it the outputs are the same."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.mask = torch.ones(3, 3, dtype=DOUBLE).tril()
        with torch.no_grad():
            self.layer.weight.mul_(self.mask)

    def forward(self, x):
        return F.linear(x, self.layer.weight if self.mask is None else self.layer.weight * self.mask)


class Missing(Exception):
    pass


class Strict(nn.Module):
    """What it keeps is needed, and its own exception says so."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3), {"two": torch.tensor(2.0, dtype=DOUBLE)}

    def forward(self, x):
        if not self.scale:
            raise Missing
        return self.layer(x) * self.scale["two"]


@pytest.mark.parametrize("kind", [Pruned, Strict])
def test_what_no_call_fills_again_is_no_cache(problem, kind):
    """Constants that are inert at these parameters were taken for caches, and a stranger's exception ended the build."""
    model, (_, x, y) = kind().to(DOUBLE), problem
    assert agrees(Jacobian(model, cut(x, y)), rows(model(x), list(model.parameters())))


def test_penalties_from_where_training_began_are_no_caches(problem):
    """L2-SP, elastic weight consolidation: the penalty is 0 there, with its anchors and without."""
    model, x, y = problem
    start = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(z, batch):
        away = sum((p - start[name]).square().sum() for name, p in model.named_parameters() if name in start)
        return F.cross_entropy(z, batch[1], reduction="sum") + len(z) * away, len(z)

    own = list(model.parameters())
    right = second(
        lambda: CE(model(x), y) + sum((p - start[n]).square().sum() for n, p in model.named_parameters()), own
    )
    try:
        assert agrees(Hessian(model, loss, cut(x, y)), right, 1e-8)
    except ValueError as told:  # a loss that reads what is differentiated may be refused, by the sentence that says so
        assert "kept" not in str(told)


@pytest.fixture
def unruled():
    """An operation of torch.library that has values and no rule for its derivative."""
    library = torch.library.Library("spectral_tests", "FRAGMENT")
    library.define("square(Tensor x) -> Tensor")
    library.impl("square", lambda x: torch.from_numpy(x.detach().numpy() ** 2), "CPU")
    yield torch.ops.spectral_tests.square
    library._destroy()


class Unruled(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.layer, self.operation = nn.Linear(3, 3), operation

    def forward(self, x):
        return (z := self.layer(x)) + self.operation(z)


@pytest.mark.parametrize("wrt", ["params", "inputs"])
def test_operation_without_a_rule_for_its_derivative_is_told(problem, unruled, wrt):
    """torch warns and goes on without that part: the columns were those of the other summand."""
    with pytest.raises(ValueError, match=r"has no rule for its derivative.*register_autograd"):
        Jacobian(Unruled(unruled).to(DOUBLE), cut(*problem[1:]), wrt=wrt)


@pytest.mark.parametrize("coarse", [False, True])
def test_matrix_is_of_the_autocast_that_it_was_built_in(problem, coarse):
    """Whatever is on at a product, kept programs or none; at another one torch refused products of two dtypes."""
    model, x, y = problem
    model, data = copy.deepcopy(model).float(), cut(x.float(), y)

    def context(on):
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=on)

    with context(coarse):
        H = Hessian(model, CE, data)
        v = torch.ones(H.shape[1])
        right = H @ v
    with context(not coarse):
        other = Hessian(model, CE, data)
        assert all(torch.allclose(H @ v, right, rtol=1e-6, atol=1e-7) for _ in range(20))
        assert not torch.allclose(other @ v, right, rtol=1e-5)


@pytest.mark.parametrize("estimate", [spectral.slq, spectral.exact, lambda A: spectral.top(A, 1), spectral.trace])
def test_estimators_inside_of_autocast_are_refused(estimate):
    A = spectral.as_operator(torch.diag(torch.arange(1.0, 9)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ValueError, match=r"torch.autocast is on, .* inside torch.autocast\('cpu', enabled=False\)"):
            estimate(A)
        with torch.autocast("cpu", enabled=False):
            assert float(spectral.exact(A).moment(1)) == pytest.approx(4.5)


class Swapped(nn.Module):
    """Puts another module with its weights in a module's place where inputs are small, as BigBird does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        other = nn.Linear(3, 3).train(self.training)
        other.weight, other.bias = self.layer.weight, self.layer.bias
        self.layer = other
        return other(x).tanh()


def test_forward_that_swaps_a_module(problem):
    model, x = Swapped().to(DOUBLE), problem[1]
    right = rows(model(x), list(model.parameters()))
    assert agrees(Jacobian(model, cut(x, problem[2])), right)


class Tangent(nn.Module):
    """The derivative of a network along an input, by torch.func inside."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x):
        return torch.func.jvp(self.net, (x,), (torch.ones_like(x),))[1]


def test_forward_may_use_forward_mode_itself(problem):
    _, x, y = problem
    model = Tangent().to(DOUBLE)
    own, W, V = list(model.parameters()), model.net[0].weight, model.net[2].weight
    assert agrees(Jacobian(model, cut(x, y)), rows((1 - model.net[:2](x) ** 2) * W.sum(1) @ V.T, own))


def test_model_that_takes_whole_batches_alone_has_no_rows_of_single_samples(problem):
    """A graph network's edges name other samples."""
    model, x, _ = problem
    edges = torch.tensor([[0, 3], [1, 4], [2, 5], [3, 0]])

    def forward(model, batch):
        return model(batch[0].index_add(0, batch[1][:, 0], batch[0][batch[1][:, 1]]))

    J = Jacobian(model, [(x, edges)], forward=forward, shared=[1])
    assert agrees(J, rows(forward(model, (x, edges)), list(model.parameters())))
    with pytest.raises(ValueError, match=r"the model fails on a single sample of a batch \(IndexError: .*use products"):
        J.squared_norms()


class Mixed(nn.Module):
    """One layer in bfloat16, by autocast inside, between others in float32."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = self.layer(x)
        return self.out(h.float().tanh())


def test_hessian_of_a_model_that_rounds_inside_is_held_to_differences_within_that_rounding(problem):
    _, x, y = problem
    model = Mixed()
    H = Hessian(model, CE, cut(x.float(), y))
    total = F.cross_entropy(model.out(model.layer(x.float()).tanh()), y)  # without rounding
    own = list(model.parameters())
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, own, create_graph=True)])
    assert agrees(H, rows(gradient, own), 0.03) and H.describe()["computes_in"] == "bfloat16"


class Failing(nn.Module):
    """Its forward pass fails from some call on."""

    def __init__(self, calls):
        super().__init__()
        self.layer, self.left = nn.Linear(3, 3), iter(range(calls))

    def forward(self, x):
        if next(self.left, None) is None:
            raise RuntimeError("the disk is full")
        return self.layer(x)


@pytest.mark.parametrize("calls, where", [(0, "fails on batch 0"), (1, "tested"), (6, "the forward pass itself fails")])
def test_what_forward_raises_is_told_whenever_it_does(calls, where):
    with pytest.raises((RuntimeError, ValueError), match=rf"{where}.*RuntimeError: the disk is full"):
        Jacobian(Failing(calls), [torch.ones(2, 3)]) @ torch.ones(12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_script_in_train_mode_is_computed_in_eval_mode(problem):
    """Its flag lies in the script: dropout and batch norm run by it."""
    layers = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).to(DOUBLE)
    model, x = nn.Sequential(torch.jit.script(layers)), problem[1]
    J = Jacobian(model, [x[:4], x[4:]])
    right = rows(layers.eval()(x), list(layers.parameters()))
    assert agrees(J, right) and all(module.training for module in model.modules())


class Heads(NamedTuple):
    aux: torch.Tensor
    logits: torch.Tensor


def test_logits_of_a_named_tuple(problem):
    model, x, y = problem
    H = Hessian(model, CE, [(x, y)], forward=lambda model, batch: Heads(x, model(batch[0])))
    assert agrees(H, second(lambda: CE(model(x), y), list(model.parameters())), 1e-8)


class Quantised(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.q = nn.Parameter((torch.rand(4, 3) * 9).to(dtype), requires_grad=False)
        self.low, self.head = nn.Parameter(torch.randn(4, 3, dtype=DOUBLE)), nn.Linear(4, 3, dtype=DOUBLE)

    def forward(self, x):
        return self.head(torch.tanh(x @ (self.q.to(x.dtype) / 9 + self.low).T))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn])
def test_frozen_weights_may_be_of_any_dtype(problem, dtype):
    x = problem[1]
    model = Quantised(dtype)
    trained = [model.low, *model.head.parameters()]
    assert agrees(Jacobian(model, [x[:4], x[4:]]), rows(model(x), trained))
    assert Jacobian(model, [x], wrt="inputs").shape == (18, 3)
    with pytest.raises(TypeError, match=r"the parameter q is .*, in which no derivative .*leave it out by params="):
        Jacobian(model, [x], params=["*"])


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_graph_network_with_a_sparse_adjacency(problem, layout):
    """Kept by the model or an entry of the batch; a change of it is another matrix."""
    model, x, y = problem
    A = (torch.rand(6, 6, dtype=DOUBLE) > 0.5) + torch.eye(6, dtype=DOUBLE)
    model.adjacency, seen = A.to_sparse(layout=layout), torch.tensor([0, 1, 4])

    def loss(z, batch):
        return F.cross_entropy(z[seen], batch[-1][seen], reduction="sum"), 3

    def right(A):
        return second(lambda: CE((A @ model(A @ x))[seen], y[seen]), list(model.parameters()))

    H = Hessian(model, loss, [(x, y)], forward=lambda m, b: m.adjacency @ m(m.adjacency @ b[0]), engine="replay")
    assert agrees(H, right(A), 1e-8)
    model.adjacency.values().mul_(2) if layout == torch.sparse_csr else model.adjacency._values().mul_(2)
    assert agrees(H, right(2 * A), 1e-8)
    H = Hessian(model, loss, [(x, A.to_sparse(layout=layout), y)], forward=lambda m, b: b[1] @ m(b[1] @ b[0]))
    assert agrees(H, right(A), 1e-8)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_weights_may_be_sparse_and_frozen_and_batches_sparse(problem, layout):
    model, x, y = problem
    X, A = x * (x > 0), torch.eye(4, dtype=DOUBLE) + torch.ones(4, 4, dtype=DOUBLE).tril(-2)

    def forward(m, b):
        return m[2]((m.mix @ torch.tanh(b[0] @ m[0].weight.T + m[0].bias).T).T)

    right = second(lambda: CE(model[2](torch.tanh(model[0](X)) @ A.T), y), list(model.parameters()))
    model.mix = nn.Parameter(A.to_sparse(layout=layout), requires_grad=False)
    data = [(part.to_sparse(layout=layout), targets) for part, targets in cut(X, y)]
    assert agrees(Hessian(model, CE, data, forward=forward), right, 1e-8)
    with pytest.raises(
        TypeError, match=r"the parameter mix is sparse_.*, in which no derivative .*leave it out by params="
    ):
        Jacobian(model, data, forward=forward, params=["*"])


class Scaled(nn.Module):
    def __init__(self, settings):
        super().__init__()
        self.linear, self.settings = nn.Linear(3, 3, dtype=DOUBLE), settings

    def forward(self, x):
        return self.linear(x) * self.settings.scale


def test_changed_setting_of_an_object_is_another_matrix(problem):
    model, x = Scaled(type("Settings", (), {})()), problem[1]
    model.settings.scale = 1.0
    J = Jacobian(model, [x], engine="replay")
    before = [dense(J) for _ in range(2)][1]
    model.settings.scale = 3.0
    assert agrees(J, 3 * before)


class Reader:
    """A stranger's object, such as a trainer."""

    def __init__(self, net):
        self.net, self.scale, self.calls = net, 1.0, 0

    def forward(self, model, batch):
        self.calls += 1
        return model(self.net(batch[0])) * self.scale


NET = Reader(None)  # a global name
READS = {
    "closed over": lambda r: lambda model, batch: model(r.net(batch[0])) * r.scale,
    "its method": lambda r: r.forward,
    "a partial": lambda r: functools.partial(Reader.forward, r),
    "a default": lambda r: lambda model, batch, r=r: model(r.net(batch[0])) * r.scale,
    "a global name": lambda r: lambda model, batch: model(NET.net(batch[0])) * NET.scale,
    "a class": lambda r: type("Called", (), {"__call__": lambda self, *given: r.forward(*given)})(),
}


@pytest.mark.parametrize("way", READS)
def test_what_a_function_reads_is_part_of_the_matrix(problem, way):
    """Another module that it calls, a number that it knows: kept programs hold them as constants."""
    model, x, y = problem
    reader = NET if way == "a global name" else Reader(None)
    reader.net, reader.scale = nn.Linear(3, 3, dtype=DOUBLE), 1.0
    J = Jacobian(model, cut(x, y), forward=READS[way](reader), engine="replay")
    for _ in range(3):
        dense(J), J @ torch.ones(31, dtype=DOUBLE)
    reader.net.weight.detach().numpy()[...] += 0.5
    assert agrees(J, rows(model(reader.net(x).detach()), list(model.parameters())))
    reader.scale = 3.0
    assert agrees(J, 3 * rows(model(reader.net(x).detach()), list(model.parameters())))


@pytest.mark.parametrize("kind", [Hessian, GaussNewton, EmpiricalFisher])
def test_number_that_a_loss_closes_over_is_part_of_the_matrix(problem, kind):
    model, x, y = problem
    scale = 1.0
    A = kind(
        model, lambda z, b: (scale * F.cross_entropy(z, b[1], reduction="sum"), len(z)), cut(x, y), engine="replay"
    )
    before = [dense(A) for _ in range(3)][2]
    scale = 3.0
    assert agrees(A, (9 if kind is EmpiricalFisher else 3) * before)


def test_setting_of_a_class_is_part_of_the_matrix(problem, monkeypatch):
    class Times(nn.Linear):
        scale = 1.0

        def forward(self, x):
            return super().forward(x) * self.scale

    J = Jacobian(Times(3, 3, dtype=DOUBLE), [problem[1]], engine="replay")
    before = [dense(J) for _ in range(3)][2]
    Times.scale = 3.0
    assert agrees(J, 3 * before)


GAIN = {"gain": 1.0}
ASKED = {
    "property": lambda ask: (property(ask), lambda model: model.gain),
    "static method": lambda ask: (staticmethod(lambda: ask(None)), lambda model: model.gain()),
    "class method": lambda ask: (classmethod(ask), lambda model: model.gain()),
    "cached property": lambda ask: (
        functools.cached_property(lambda model: lambda: ask(model)),
        lambda model: model.gain(),
    ),
}


@pytest.mark.parametrize("way", ASKED)
def test_what_a_method_of_any_kind_reads_is_part_of_the_matrix(problem, way, monkeypatch):
    gain, asked = ASKED[way](lambda _: GAIN["gain"])
    kind = type(
        "Gained", (nn.Linear,), {"gain": gain, "forward": lambda self, x: nn.Linear.forward(self, x) * asked(self)}
    )
    J = Jacobian(kind(3, 3, dtype=DOUBLE), [problem[1]], engine="replay")
    before = [dense(J) for _ in range(3)][2]
    monkeypatch.setitem(GAIN, "gain", 3.0)
    assert agrees(J, 3 * before)


def test_module_beside_the_model_is_left_as_it_was(problem):
    model, x, y = problem
    norm = nn.BatchNorm1d(3, dtype=DOUBLE)
    Hessian(model, CE, [(x, y)], forward=lambda model, batch: model(norm(batch[0])), preflight=False) @ torch.ones(
        31
    ).double()
    assert norm.running_mean.norm() == 0 and norm.num_batches_tracked == 0 and norm.training


# Losses ---------------------------------------------------------------------------------------------------------------
FUNCTIONS = {
    "cross_entropy": (F.cross_entropy, CE, False),
    "mse": (F.mse_loss, nn.MSELoss(), True),
    "bce": (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss(), True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", [Hessian, GaussNewton, Fisher, EmpiricalFisher])
def test_function_of_torch_is_its_module(problem, name, kind):
    model, x, y = problem
    function, module, real = FUNCTIONS[name]
    data = cut(x, F.one_hot(y, 3).to(DOUBLE) if real else y)
    assert agrees(kind(model, function, data), dense(kind(model, module, data)))


class Smoothed(nn.Module):
    """A stranger's module: (output, target), without a reduction."""

    def forward(self, z, target):
        return F.cross_entropy(z, target, label_smoothing=0.1)


@pytest.mark.parametrize("loss", [Smoothed(), lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1)])
def test_loss_of_output_and_target_is_understood_by_its_names(problem, loss):
    model, x, y = problem
    H = Hessian(model, loss, cut(x, y))
    assert H.describe()["loss_takes"] == "(output, target)"
    assert agrees(H, second(lambda: F.cross_entropy(model(x), y, label_smoothing=0.1), list(model.parameters())), 1e-8)


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_random_loss_is_refused(problem, kind):
    model, x, y = problem

    def loss(z, batch):
        return F.cross_entropy(z + torch.randn_like(z), batch[1], reduction="sum"), np.int64(len(z))

    with pytest.raises(ValueError, match="random"):
        kind(model, loss, [(x[:1], y[:1])])


def test_count_that_is_the_same_for_any_part_of_a_batch_is_told(problem):
    model, x, y = problem
    with pytest.raises(ValueError, match=r"two parts of batch 0 count 12 and the whole 6"):
        EmpiricalFisher(model, lambda z, batch: (F.cross_entropy(z, batch[1], reduction="sum"), 6), [(x, y)])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("scalar", [False, True])
def test_mean_over_targets_is_no_mean_over_samples_whatever_the_batches(problem, size, scalar):
    """Of one sample each, or of samples that count alike: parts of one batch do not tell. The output may be the loss itself."""
    model, _, _ = problem
    x, y = torch.randn(4, 5, 3, dtype=DOUBLE), torch.randint(3, (4, 5))
    y[2:, 1:] = -100

    def mean(z, batch):
        return CE(z.flatten(0, 1), batch[1].flatten())

    forward, loss = (None, mean) if not scalar else (lambda m, b: mean(m(b[0]), b), lambda z, batch: z)
    data = [*zip(x.split(size), y.split(size), strict=True)]
    with pytest.raises(ValueError, match=r"is no mean over the samples .*; return \(sum, count\)\.$"):
        Hessian(model, loss, data, forward=forward)
    own = list(model.parameters())
    for some in (data[:1], data[: 2 // size]):  # where they count alike, it is one
        right = second(
            lambda some=some: mean(model(torch.cat([b[0] for b in some])), [0, torch.cat([b[1] for b in some])]), own
        )
        assert agrees(Hessian(model, loss, some, forward=forward), right, 1e-8)


def test_number_of_graphs_is_not_that_of_their_nodes(problem):
    """None of the output has a row for each row of the first entry, so that a mean over them says nothing of those."""
    model, x, y = problem
    data = [(x, torch.tensor([0, 0, 1, 1, 1, 2]), y[:3]), (x[:4], torch.tensor([0, 1, 1, 1]), y[4:])]

    def pooled(model, batch):
        return torch.zeros(len(batch[2]), 3, dtype=DOUBLE).index_add(0, batch[1], model(batch[0]))

    def mean(z, batch):
        return CE(z, batch[2])

    own = list(model.parameters())
    with pytest.raises(ValueError, match=r"or a callable \(output, batch\) -> \(sum, count\)"):
        Hessian(model, mean, data, forward=pooled)
    one = second(lambda: CE(pooled(model, data[0]), y[:3]), own)
    assert agrees(Hessian(model, mean, data[:1], forward=pooled), one, 1e-8)
    right = (3 * one + 2 * second(lambda: CE(pooled(model, data[1]), y[4:]), own)) / 5
    assert agrees(Hessian(model, lambda z, b: (len(z) * mean(z, b), len(z)), data, forward=pooled), right, 1e-8)


def test_weights_that_change_after_targets_were_counted_are_refused(problem):
    model, x, y = problem
    loss = nn.CrossEntropyLoss(weight=torch.ones(3, dtype=DOUBLE))
    H = Hessian(model, loss, [(x, y)])
    loss.weight[0] = 5.0
    with pytest.raises(
        ValueError, match=r"loss=CrossEntropyLoss has other weights or ignored targets than when its tar"
    ):
        H @ torch.ones(31, dtype=DOUBLE)
    H = Hessian(model, loss, [(x, y)])
    loss.ignore_index = 1
    with pytest.raises(ValueError, match="or ignored targets"):
        H @ torch.ones(31, dtype=DOUBLE)


def test_loss_may_hold_derivatives_in_the_parameters(problem):
    """A penalty on the gradient, a step of an inner training."""
    model, x, y = problem

    def step(model, batch):
        own = dict(model.named_parameters())
        grads = torch.autograd.grad(CE(model(x), y), list(own.values()), create_graph=True)
        return {name: p - 0.1 * g for (name, p), g in zip(own.items(), grads, strict=True)}, grads

    def stepped(model, batch):
        return torch.func.functional_call(model, step(model, batch)[0], (batch[0],))

    own = list(model.parameters())
    assert agrees(Jacobian(model, cut(x, y), forward=stepped), rows(stepped(model, (x, y)), own))
    H = Hessian(model, lambda z, batch: CE(z, batch[1]) + sum((g**2).sum() for g in step(model, batch)[1]), cut(x, y))
    right = second(lambda: CE(model(x), y) + sum((g**2).sum() for g in step(model, None)[1]), own)
    assert agrees(H, right, 1e-8) and H.epochs == 2


def residual(u, x):
    """u_xx + u_y + u^3 for each sample."""
    g = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    return torch.autograd.grad(g[:, 0].sum(), x, create_graph=True)[0][:, 0] + g[:, 1] + u[:, 0] ** 3


PHYSICS = {
    "(sum, count)": lambda u, batch: ((residual(u, batch[0]) ** 2).sum(), len(u)),
    "mean": lambda u, batch: (residual(u, batch[0]) ** 2).mean(),
    "each": lambda u, batch: residual(u, batch[0]) ** 2,
}


@pytest.fixture
def physics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).to(DOUBLE)
    x = torch.rand(5, 2, dtype=DOUBLE)
    whole = x.clone().requires_grad_()
    own = list(model.parameters())
    return model, [[part.clone().requires_grad_()] for part in (x[:3], x[3:])], rows(residual(model(whole), whole), own)


@pytest.mark.parametrize("form", PHYSICS)
def test_loss_may_differentiate_the_output_in_the_inputs(physics, form):
    model, data, J = physics
    H = Hessian(model, PHYSICS[form], data)
    r = torch.cat([residual(model(x), x).detach() for (x,) in data])
    right = second(lambda: sum((residual(model(x), x) ** 2).sum() for (x,) in data) / 5, list(model.parameters()))
    assert agrees(H, right, 1e-7) and "loss_couples_samples" not in H.describe()
    assert math.isclose(H.mean_loss(), float((r**2).mean()), rel_tol=1e-12)
    assert agrees(EmpiricalFisher(model, PHYSICS[form], data), 4 * J.T @ (r[:, None] ** 2 * J) / 5)


def test_gauss_newton_is_of_what_the_loss_reads_of_the_output(physics):
    """Through u's values alone the derivatives of u would be constants, or lost."""
    model, data, J = physics

    def lenient(u, batch):
        g = torch.autograd.grad(u.sum(), batch[0], create_graph=True, allow_unused=True)[0]
        return (u**2).sum() + (0 if g is None else (g**2).sum()), len(u)

    for loss, some in (
        (PHYSICS["(sum, count)"], data),
        (lenient, data),
        (lenient, [[data[0][0].detach()[:1].requires_grad_()]]),
    ):
        with pytest.raises(
            ValueError, match="loss= differentiates the output itself, in the inputs say; let forward= return"
        ):
            GaussNewton(model, loss, some) @ torch.ones(13, dtype=DOUBLE)
    A = GaussNewton(model, lambda r, b: ((r**2).sum(), len(r)), data, forward=lambda m, b: residual(m(b[0]), b[0]))
    assert agrees(A, 2 * J.T @ J / 5)


def test_model_with_a_hook_on_a_parameter_is_refused_as_long_as_it_is_there(problem):
    """A mask of its gradient, say, which training would call; what steps the optimiser after the gradient may stay."""
    model, x, y = problem
    H = Hessian(model, CE, cut(x, y))
    right = dense(H)
    model[0].weight.register_post_accumulate_grad_hook(lambda p: pytest.fail("no product makes a .grad"))
    assert agrees(H, right)
    handle = model[0].weight.register_hook(lambda g: None)
    for make in (lambda: Jacobian(model, [x]), lambda: dense(H)):
        with pytest.raises(ValueError, match=r"the parameter 0.weight has a hook on its gradient .*copy.deepcopy"):
            make()
    assert agrees(Hessian(copy.deepcopy(model), CE, cut(x, y)), right)
    assert agrees(Hessian(model, CE, cut(x, y), params=["2.*"]), right[16:, 16:])
    handle.remove()
    assert agrees(H, right)


@pytest.mark.parametrize("count", [-3, float("nan"), torch.tensor(float("inf"))])
def test_count_is_a_number_from_0_on(problem, count):
    model, x, y = problem
    with pytest.raises(ValueError, match=r"counts \S+ targets in batch 0; a callable .* the count a number from 0 on"):
        Hessian(model, lambda z, batch: (F.cross_entropy(z, batch[1], reduction="sum"), count), [(x, y)])


# Batches --------------------------------------------------------------------------------------------------------------
class Optional(nn.Module):
    """Its second argument may be left out, and then is, unless it is told by name."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 3).to(DOUBLE)

    def forward(self, x, y=None):
        return self.net(x if y is None else x * y).tanh()


class AnyNumber(Optional):
    def forward(self, *inputs):
        return super().forward(*inputs)


class Keywords(Optional):
    def forward(self, x, **others):
        return super().forward(x, others.get("y"))


class Mask(Optional):
    def forward(self, x, mask=None):
        return super().forward(x, mask)


class Targets(Optional):
    """A model that makes its loss where it is given labels, as many language models do."""

    def forward(self, x, targets=None, verbose=False):
        assert targets is None
        return super().forward(x)


class Pair(NamedTuple):
    y: torch.Tensor
    x: torch.Tensor


class Masked(NamedTuple):
    x: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor


TOLD = {  # (model, batch of x, w, y, whether w is an input)
    "labels beside an input of such a name": (Optional, lambda x, w, y: {"x": x, "y": w, "labels": y}, True),
    "an input in a mapping before the target": (Optional, lambda x, w, y: ({"x": x, "y": w}, y), True),
    "an input among keywords": (Keywords, lambda x, w, y: {"x": x, "y": w, "labels": y}, True),
    "labels of such a name": (Optional, lambda x, w, y: {"x": x, "y": y}, False),
    "a target before the input": (Optional, lambda x, w, y: Pair(y, x), False),
    "an index behind the target": (Targets, lambda x, w, y: (x, y, torch.arange(len(x))), False),
    "a mask that the model does not take": (Targets, lambda x, w, y: Masked(x, w, y), False),
}


def entries_are_told(make, batch, reads=False, shared=()):
    """Whether the Hessian of `batch` (x, w, y), in two pieces, is that of x and y, or of x, w and y where the model `reads` w."""
    torch.manual_seed(0)
    model = make()
    x, w, y = (torch.randn(6, 3, dtype=DOUBLE) for _ in range(3))
    given = (x, w) if reads else (x,)
    right = second(
        lambda: F.mse_loss(Optional.forward(model, *given) if reads else model(x), y), list(model.parameters())
    )
    data = [batch(x[i], w[i], y[i]) for i in (slice(0, 4), slice(4, 6))]
    return agrees(Hessian(model, nn.MSELoss(), data, shared=shared), right, 1e-7)


@pytest.mark.parametrize("kind", TOLD)
def test_entry_of_a_batch_is_what_its_name_or_place_says(kind):
    assert entries_are_told(*TOLD[kind])


def test_input_of_a_named_tuple_whose_target_comes_first():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 3).to(DOUBLE), torch.randn(4, 3, dtype=DOUBLE)
    J = Jacobian(model, [Pair(torch.zeros_like(x), x)], wrt="inputs", layout="flattened")
    assert agrees(J, model.weight.detach().reshape(1, 9).repeat(4, 1))


@pytest.mark.parametrize("batch", [lambda x, w: (w, x), lambda x, w: {"x": w, 1: x}])
def test_inputs_that_forward_does_not_read_are_none(problem, batch):
    """The derivative in them is 0, and that in the entry that it reads was meant."""
    model, x, _ = problem
    with pytest.raises(
        ValueError, match=r"the outputs do not change with what wrt='inputs' takes for the inputs, .*name it 'x'"
    ):
        Jacobian(model, [batch(x, x + 1)], wrt="inputs", forward=lambda model, b: model(b[1]))


@pytest.mark.parametrize("make, name", [(Mask, "mask"), (AnyNumber, r"\*inputs")])
def test_tuple_that_tells_no_input_from_the_target_is_refused(make, name):
    """(x, mask, y) has the form of (x, y, index)."""
    x, w, y = (torch.rand(6, 3, dtype=DOUBLE) for _ in range(3))
    words = rf"a batch holds 3 entries, and {make.__name__}.forward requires 1 and may take {name} too, .*pass mappings"
    for build in (lambda data: Hessian(make(), CE, data), lambda data: Jacobian(torch.compile(make()), data)):
        with pytest.raises(ValueError, match=words):
            build([(x, w, y)])
    assert Hessian(make(), CE, [(x, y)]).shape == (12, 12)


UNREAD = {  # (batch of x, w; of=)
    "logits": (lambda x, w: (x, w), "logits"),
    "probabilities of a list": (lambda x, w: [x, w], "probs"),
    "a named tuple": (lambda x, w: Masked(x, w, w)[:2], "logits"),
    "an output that reads the input": (lambda x, w: (x, w), lambda z, batch: z * batch[0]),
}


@pytest.mark.parametrize("kind", UNREAD)
@pytest.mark.parametrize("wrt", ["params", "inputs", "module:net"])
def test_entry_that_nobody_reads_and_forward_may_take_is_refused(kind, wrt):
    """(x, mask) without a target has the form of (x, y): the mask was left out."""
    batch, of = UNREAD[kind]
    x, w = torch.randn(6, 3, dtype=DOUBLE), torch.rand(6, 3, dtype=DOUBLE)
    with pytest.raises(
        ValueError, match=r"a batch holds 2 entries, and Mask.forward .* with which its output is another"
    ):
        Jacobian(Mask(), [batch(x, w)], of=of, wrt=wrt)


@pytest.mark.parametrize("entry", [torch.ones(6, 3, dtype=DOUBLE), torch.arange(6)])
def test_entry_that_is_no_input_or_changes_nothing_may_stand_where_a_target_does(entry):
    """A mask that masks nothing, and labels."""
    torch.manual_seed(0)
    model, x = Mask(), torch.randn(6, 3, dtype=DOUBLE)
    assert agrees(Jacobian(model, [(x, entry)]), rows(model(x), list(model.parameters())))


@pytest.mark.parametrize("of", [lambda z, batch: z * batch[1], lambda z, batch: z * [*batch][1]])
def test_entry_that_an_output_reads_is_no_input(of):
    torch.manual_seed(0)
    model, x, w = Mask(), torch.randn(6, 3, dtype=DOUBLE), torch.rand(6, 3, dtype=DOUBLE)
    assert agrees(Jacobian(model, [(x, w)], of=of), rows(model(x) * w, list(model.parameters())))


@pytest.mark.parametrize("at", [1, -1])
def test_input_that_forward_reads_is_no_target(problem, at):
    """Of (target, input) the second was taken for both."""
    model, x, _ = problem
    with pytest.raises(ValueError, match=r"forward= reads the last entry of a batch, so that none of them is known as"):
        Hessian(model, nn.MSELoss(), [(x + 1, x)], forward=lambda model, batch: model(batch[at]))

    def unpacked(model, batch):
        x, _ = batch
        return model(x)

    right = second(lambda: F.mse_loss(model(x), x + 1), list(model.parameters()))
    assert agrees(Hessian(model, nn.MSELoss(), [(x, x + 1)], forward=unpacked), right, 1e-7)


class Own(tuple):
    """A tuple that is made of two things."""

    def __new__(cls, x, y):
        return super().__new__(cls, (x, y))


class Both(Optional):
    def forward(self, x):
        z = super().forward(x)
        return Own(z, z**2)


def test_tuples_of_a_class_of_their_own_are_batches_and_outputs():
    torch.manual_seed(0)
    model, x, y = Both(), torch.randn(6, 3, dtype=DOUBLE), torch.randint(3, (6,))

    def loss(output, batch):
        assert type(output) is type(batch) is Own
        return F.cross_entropy(output[0], batch[1], reduction="sum") + output[1].sum(), len(output[1])

    own = list(model.parameters())
    right = second(lambda: F.cross_entropy(model(x)[0], y) + model(x)[1].sum() / 6, own)
    assert agrees(Hessian(model, loss, [Own(x[:4], y[:4]), Own(x[4:], y[4:])]), right, 1e-7)


class Largest(nn.Module):
    """torch's own named tuples."""

    def __init__(self, largest):
        super().__init__()
        self.up, self.largest = nn.Linear(3, 6).to(DOUBLE), largest

    def forward(self, x):
        return self.largest(self.up(x).view(-1, 2, 3))


@pytest.mark.parametrize("largest", [lambda z: z.max(1), lambda z: z.topk(1, 1), lambda z: z.sort(1)])
def test_named_tuples_of_torch_are_outputs(largest):
    torch.manual_seed(0)
    model, x, y = Largest(largest), torch.randn(6, 3, dtype=DOUBLE), torch.randint(3, (6,))

    def loss(o, batch):
        assert hasattr(o, "indices")
        return F.cross_entropy(o.values.reshape(len(o.values), -1), batch[1])

    right = second(lambda: loss(model(x), (x, y)), list(model.parameters()))
    assert agrees(Hessian(model, loss, cut(x, y)), right, 1e-7)


READING = {
    "a slice of nothing": lambda model, b: model(b[0], *b[2:]),
    "both": lambda model, b: model(b[0]) + 0.1 * F.one_hot(b[1], 3),
    "both, the target first": lambda model, b: (b[1] * 0.0)[:, None] + model(b[0]),
    "whether there is a target": lambda model, b: model(b[0]) if b[1] is not None else None,
    "its kind": lambda model, b: model(b[0]) if isinstance(b, list | tuple) and len(b) == 2 else None,
}


@pytest.mark.parametrize("kind", READING)
@pytest.mark.parametrize("make", [list, tuple])
def test_forward_may_read_the_target_beside_the_input(problem, kind, make):
    model, x, y = problem
    forward, kinds = READING[kind], set()

    def noted(model, batch):
        kinds.add(next(k for k in (list, tuple) if isinstance(batch, k)))
        return forward(model, batch)

    right = second(lambda: CE(forward(model, (x, y)), y), list(model.parameters()))
    data = [make(part) for part in cut(x, y)]
    assert agrees(Hessian(model, CE, data, forward=noted), right, 1e-7) and kinds == {make}


class Tempered(Optional):
    def forward(self, x, temperature=2.0):
        return super().forward(x) / temperature


class HandsOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Targets()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


LEFT = {
    "a number": (Tempered, lambda x, w, y: (x, y, torch.arange(len(x))), ()),
    "what is shared": (Mask, lambda x, w, y: (x, y, torch.ones(3)), (2,)),
    "a second label": (HandsOn, lambda x, w, y: {"x": x, "label": w, "labels": y}, ()),
}


@pytest.mark.parametrize("kind", LEFT)
def test_entry_that_forward_does_not_take_is_left_out(kind):
    make, batch, shared = LEFT[kind]
    assert entries_are_told(make, batch, shared=shared)


def test_shared_entry_in_the_place_of_the_target_is_none():
    x, w, y = (torch.rand(6, 3, dtype=DOUBLE) for _ in range(3))
    with pytest.raises(ValueError, match=r"a batch holds 3 entries, and Mask.forward requires 1 and may take mask too"):
        Hessian(Mask(), nn.MSELoss(), [(x, w, y)], shared=[1])


class OwnLoss(nn.Module):
    """It returns its mean loss over the labels that are not -100, as Hugging Face's models do."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 4).to(DOUBLE)

    def forward(self, x, labels=None):
        z = torch.tanh(self.net(x))
        return {"loss": None if labels is None else F.cross_entropy(z.reshape(-1, 4), labels.reshape(-1)), "logits": z}


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
@pytest.mark.parametrize("long", [5, 3])
@pytest.mark.parametrize("entries", [lambda x, y: {"x": x, "labels": y}, lambda x, y: (x, y)])
def test_callable_that_hands_on_the_models_own_loss_is_that_loss(kind, long, entries):
    """Whatever the lengths of batches and however many labels they count: it was taken for no mean over the samples."""
    torch.manual_seed(0)
    model, x, y = OwnLoss(), torch.randn(5, 5, 3, dtype=DOUBLE), torch.randint(4, (5, 5))
    y[0, 1:] = y[4, 2:] = y[3:, long:] = -100
    data = [entries(x[:3], y[:3]), entries(x[3:, :long], y[3:, :long])]
    own = list(model.parameters())
    z = model(x)["logits"].view(-1, 4)
    J, p = rows(z, own), z.softmax(1).detach()
    counted = (y.view(-1) != -100).to(DOUBLE)
    middle = [torch.diag(q) - torch.outer(q, q) for q in p]
    right = (
        sum(c * j.T @ m @ j for c, j, m in zip(counted, J.view(-1, 4, J.shape[1]), middle, strict=True)) / counted.sum()
    )
    if kind is Hessian:
        right = second(lambda: model(x, y)["loss"], own)
    read = (lambda model, b: model(**b)) if isinstance(data[0], dict) else lambda model, b: model(b[0], labels=b[1])
    assert agrees(kind(model, lambda o, b: o["loss"], data, forward=read), right, 1e-7)


def test_callable_that_misses_the_models_own_loss_is_told_of_none():
    batch = {"x": torch.randn(5, 3, dtype=DOUBLE), "labels": torch.randint(4, (5,))}
    for loss in (lambda o, b: o["loss"], lambda o, b: o["loss"] * 5, lambda o, b: o.loss):
        with pytest.raises(TypeError, match=r"returns its own loss, with loss=None alone\.$"):
            Hessian(OwnLoss(), loss, [batch])


# What counts as a sample ----------------------------------------------------------------------------------------------
ENTRIES = {
    "a number of the batch": (torch.tensor([0.5], dtype=DOUBLE), "counts 1, its output 4"),
    "edges": (torch.tensor([[0, 1, 2], [1, 2, 3]]), "counts 2, its output 4"),
}


@pytest.mark.parametrize("kind", ENTRIES)
@pytest.mark.parametrize("reduced", [False, True])
def test_mean_is_over_the_samples_and_not_over_another_entry(problem, kind, reduced):
    """What comes first in a mapping counted the samples: batches of 4 and 2 had one weight each."""
    model, x, y = problem
    entry, words = ENTRIES[kind]
    data = [{"other": entry, "x": x[i], "labels": y[i]} for i in (slice(0, 4), slice(4, 6))]

    def forward(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["labels"]) if reduced else model(batch["x"])

    def loss(output, batch):
        return output if reduced else F.cross_entropy(output, batch["labels"])

    words = "a batch has entries of" if reduced else words
    with pytest.raises(ValueError, match=rf"{words}.*name entries that belong to none by shared="):
        Hessian(model, loss, data, forward=forward)
    right = second(lambda: F.cross_entropy(model(x), y), list(model.parameters()))
    assert agrees(Hessian(model, loss, data, forward=forward, shared=["other"]), right, 1e-7)


def test_number_of_samples_of_other_shapes_is_told_by_nothing():
    """A mean over tokens is none over sequences, if these differ in length from batch to batch; classes of them are no tokens."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Tanh(), nn.Linear(4, 5)).to(DOUBLE)
    x = [torch.randint(5, (3, 4)), torch.randint(5, (2, 7))]
    y = [torch.randint(5, (3,)), torch.randint(5, (2,))]

    def of_tokens(z, batch):
        return F.cross_entropy(z.flatten(0, 1), batch[0].flatten())

    with pytest.raises(ValueError, match=r"batch 1 has samples of another shape than the first batch.*\(sum, count\)"):
        Hessian(model, of_tokens, [(t, t) for t in x])

    def pooled(model, batch):
        return model(batch[0]).mean(1)

    A = Hessian(model, lambda z, b: F.cross_entropy(z, b[1]), list(zip(x, y, strict=True)), forward=pooled)
    right = second(
        lambda: F.cross_entropy(torch.cat([model(t).mean(1) for t in x]), torch.cat(y)), list(model.parameters())
    )
    assert agrees(A, right, 1e-7)


class Headed(nn.Module):
    """A head of pooled states, with all that is made on the way."""

    def __init__(self):
        super().__init__()
        self.up, self.out = nn.Embedding(5, 3).to(DOUBLE), nn.Linear(3, 5).to(DOUBLE)

    def forward(self, ids, labels=None):
        h = self.up(ids).tanh()
        z = self.out(h.mean(1))
        made = {"logits": z, "h": h, "flat": self.out(h).view(-1, 5), "twice": torch.cat([z, -z])}
        own = {} if labels is None else {"loss": F.cross_entropy(z, labels)}
        return made | own | {"kl": (h**2).mean((1, 2)).mean(), "several": z.mean().reshape(1)}


def of_views(z, batch):
    return F.cross_entropy(z, batch["labels"].repeat(2))


MEANS = {  # (what forward returns of the outputs, loss)
    "the model's own": (dict, lambda o, b: o["loss"]),
    "a number alone": (lambda o: o["loss"], lambda o, b: o),
    "a term of the batch": (dict, lambda o, b: F.cross_entropy(o["logits"], b["labels"]) + 0.1 * o["kl"]),
    "one of shape (1,)": (dict, lambda o, b: F.cross_entropy(o["logits"], b["labels"]) + o["several"].sum()),
    "a tuple": (lambda o: (o["logits"], o["kl"]), lambda o, b: F.cross_entropy(o[0], b["labels"]) + 0.1 * o[1]),
    "flat tokens": (lambda o: o["flat"], lambda z, b: F.cross_entropy(z, b["ids"].reshape(-1))),
    "two views": (lambda o: o["twice"], of_views),
}


@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("sizes", [(3, 3), (4, 2), (5, 1)])
def test_mean_may_read_numbers_of_the_batch_and_several_rows_of_a_sample(kind, sizes):
    """They were those of the second of two samples, and rows of tokens were no samples."""
    torch.manual_seed(0)
    model, ids, labels = Headed(), torch.randint(5, (6, 4)), torch.randint(5, (6,))
    choose, loss = MEANS[kind]
    data = [{"ids": i, "labels": y} for i, y in zip(ids.split(sizes), labels.split(sizes), strict=True)]

    def forward(model, batch):
        return choose(model(**batch))

    whole, own = {"ids": ids, "labels": labels}, list(model.parameters())
    right = second(lambda: loss(forward(model, whole), whole), own)
    assert agrees(Hessian(model, loss, data, forward=forward), right, 1e-7)
    if kind == "flat tokens":
        each = [{"ids": i[None], "labels": y[None]} for i, y in zip(ids, labels, strict=True)]
        G = rows(torch.stack([loss(forward(model, one), one) for one in each]), own)
        assert agrees(EmpiricalFisher(model, loss, data, forward=forward), G.T @ G / 6)


def test_sum_of_a_batch_beside_rows_is_no_mean():
    """The number of two samples is made of both."""
    torch.manual_seed(0)
    model, ids, labels = Headed(), torch.randint(5, (6, 4)), torch.randint(5, (6,))
    data = [{"ids": i, "labels": y} for i, y in zip(ids.split(4), labels.split(4), strict=True)]

    def forward(model, batch):
        z = model(batch["ids"])["logits"]
        return z, (z**2).sum()

    with pytest.raises(
        ValueError, match=r"returns a number that is no mean over the samples \(.*return \(sum, count\)"
    ):
        Hessian(model, lambda o, b: F.cross_entropy(o[0], b["labels"]) + o[1], data, forward=forward)


def test_mean_of_logits_beside_states_of_other_lengths():
    """Dynamic padding: the hidden states of two batches cannot be joined, and no loss reads them."""
    torch.manual_seed(0)
    model, own = Headed(), None
    data = [{"ids": torch.randint(5, (size, t)), "labels": torch.randint(5, (size,))} for size, t in ((4, 6), (2, 5))]

    def loss(o, b):
        return F.cross_entropy(o["logits"], b["labels"])

    own = list(model.parameters())
    right = sum(len(b["ids"]) / 6 * second(lambda b=b: loss(model(**b), b), own) for b in data)
    assert agrees(Hessian(model, loss, data, forward=lambda model, b: model(**b)), right, 1e-7)
    for read in ("h", "flat"):
        with pytest.raises(
            ValueError, match=r"batch 1 has samples of another shape than the first batch.*\(sum, count\)"
        ):
            Hessian(model, lambda o, b, r=read: (o[r] ** 2).mean(), data, forward=lambda model, b: model(**b))


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.out = nn.Linear(3, 4).to(DOUBLE), nn.Linear(4, 3).to(DOUBLE)

    def forward(self, x):
        self.hidden = self.up(x).tanh()
        return self.out(self.hidden)


def test_loss_may_read_what_the_model_keeps_of_each_sample():
    """And of the batch as a whole it is no mean over the samples of several."""
    torch.manual_seed(0)
    model, x, y = Keeps(), torch.randn(6, 3, dtype=DOUBLE), torch.randint(3, (6,))
    data = [(x[:4], y[:4]), (x[4:], y[4:])]

    def each(z, batch):
        return F.cross_entropy(z, batch[1], reduction="none") + (model.hidden**4).sum(1)

    own = list(model.parameters())
    right, G = second(lambda: each(model(x), (x, y)).mean(), own), rows(each(model(x), (x, y)), own)
    for loss in (each, lambda z, batch: each(z, batch).mean()):
        assert agrees(Hessian(model, loss, data), right, 1e-7)
        assert agrees(EmpiricalFisher(model, loss, data), G.T @ G / 6)

    def balanced(z, batch):
        return F.cross_entropy(z, batch[1]) + (model.hidden.mean(0) ** 2).sum()

    with pytest.raises(ValueError, match=r"balanced couples the samples of a batch .*pass all data as one batch"):
        Hessian(model, balanced, data)
    assert agrees(Hessian(model, balanced, [(x, y)]), second(lambda: balanced(model(x), (x, y)), own), 1e-7)


class Recurrent(nn.Module):
    """Time comes first, as in torch.nn.RNN."""

    def __init__(self, backwards):
        super().__init__()
        self.rnn, self.backwards = nn.RNN(3, 3).to(DOUBLE), backwards

    def forward(self, x):
        return self.rnn(x.flip(0))[0].flip(0) if self.backwards else self.rnn(x)[0]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("backwards", [False, True])
def test_losses_of_time_steps_are_none_of_samples(size, backwards):
    """The first time step reads no other; of as many sequences as steps the rows were those of steps. The Hessian has no rows."""
    torch.manual_seed(0)
    model, x, y = Recurrent(backwards), torch.randn(size, size, 3, dtype=DOUBLE), torch.randint(3, (size, size))

    def loss(z, batch):
        return F.cross_entropy(z.transpose(1, 2), batch[1], reduction="sum"), batch[1].numel()

    with pytest.raises(ValueError, match=r"the outputs of a sample depend on the other samples of its batch"):
        EmpiricalFisher(model, loss, [(x, y)])
    if not backwards:
        right = second(lambda: F.cross_entropy(model(x).transpose(1, 2), y), list(model.parameters()))
        assert agrees(Hessian(model, loss, [(x, y)]), right, 1e-7)


def test_single_samples_are_no_batches_of_their_entries(problem):
    model, x, _ = problem
    with pytest.raises(ValueError, match=r"a batch seems to be a single sample; pass batches with a first axis"):
        EmpiricalFisher(model, nn.MSELoss(), [(one, one) for one in x])


# Models ---------------------------------------------------------------------------------------------------------------
def test_model_that_makes_a_layer_when_it_is_called_is_asked_to_be_called():
    class Lazily(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.heads = nn.Linear(3, 4), nn.ModuleDict()

        def forward(self, x):
            if "out" not in self.heads:
                self.heads["out"] = nn.Linear(4, 2)
            return self.heads["out"](self.up(x))

    model, x = Lazily(), torch.randn(5, 3)
    with pytest.raises(
        ValueError, match=r"forward makes the parameter heads.out.weight when it is first called; run one"
    ):
        Jacobian(model, [x])
    model(x)
    assert agrees(Jacobian(model, [x]), rows(model(x), list(model.parameters())), 1e-6)


def test_model_that_was_cast_is_another(problem):
    model, x, y = problem
    H = Hessian(model, CE, cut(x, y))
    dense(H)
    model.float()
    with pytest.raises(
        ValueError, match=r"the parameter 0.weight is now .* of torch.float32 instead of .* of torch.float64; build the"
    ):
        dense(H)


class Record:
    def __init__(self, x, y):
        self.input, self.y = x, y


FORWARDS = {
    "the last entry is the target": (lambda x, m, y: (x, m, y), lambda model, b: model(b[0] + 0 * b[1])),
    "an index first": (lambda x, m, y: (torch.arange(len(x)), x, y), lambda model, b: model(b[1])),
    "an index last": (lambda x, m, y: [x, y, torch.arange(len(x))], lambda model, b: model(*b[:1])),
}


@pytest.mark.parametrize("kind", FORWARDS)
def test_target_stands_behind_what_forward_reads(problem, kind):
    """A mask of the outputs' shape is a distribution of classes for torch."""
    model, x, y = problem
    make, forward = FORWARDS[kind]
    mask = torch.rand(6, 3, dtype=DOUBLE)
    right = dense(Hessian(model, CE, [(x, y)]))
    data = [make(x[i], mask[i], y[i]) for i in (slice(0, 4), slice(4, 6))]
    assert agrees(Hessian(model, CE, data, forward=forward), right)


def test_target_that_nothing_tells_is_asked_for(problem):
    model, x, y = problem

    def forward(model, batch):
        x, mask, _ = batch
        return model(x + 0 * mask)

    with pytest.raises(
        ValueError, match=r"forward= reads all 3 entries of a batch, so that none of them is known as the target"
    ):
        Hessian(model, CE, [(x, x, y)], forward=forward)


FAILING = {
    "another shape": (
        lambda x: x[:, :2],
        {},
        RuntimeError,
        "the model fails on batch 0 .RuntimeError: .*mat1 and mat2 shapes",
    ),
    "an axis that is not there": (
        lambda x: x,
        {"forward": lambda m, b: m(b).sum(2)},
        ValueError,
        "IndexError: Dimension",
    ),
    "a forward of one argument": (
        lambda x: x,
        {"forward": lambda b: b},
        TypeError,
        "takes 1 positional argument but 2",
    ),
}


@pytest.mark.parametrize("kind", FAILING)
def test_model_that_fails_on_a_batch_is_one_sentence(problem, kind):
    model, x, _ = problem
    change, options, error, words = FAILING[kind]
    with pytest.raises(
        error, match=rf"the model fails on batch 0 .*{words.removeprefix('the model fails on batch 0 ')}"
    ) as caught:
        Jacobian(model, [change(x)], **options)
    assert caught.value.__cause__ is not None and "\n" not in str(caught.value)


class TwoInputs(nn.Module):
    """Two inputs; a pair of them is one entry of a batch where Keras' habit is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, a, b):
        return self.a(a) * self.b(b)


@pytest.mark.parametrize("together", [tuple, list])
def test_inputs_that_are_one_entry_of_a_batch_are_refused_with_the_forward_that_takes_them(together):
    model, a, b, y = TwoInputs(), torch.randn(6, 3), torch.randn(6, 4), torch.arange(6) % 2
    data = [(together((a, b)), y)]
    with pytest.raises(TypeError, match=r"pass (forward=lambda model, batch: model\(\*batch\[0\]\))\.") as said:
        Hessian(model, CE, data)
    forward = eval(str(said.value).rsplit("pass forward=", 1)[1].rstrip("."))
    v = torch.randn(18)
    torch.testing.assert_close(Hessian(model, CE, data, forward=forward) @ v, Hessian(model, CE, [(a, b, y)]) @ v)


@pytest.mark.parametrize("build", [lambda m, x, y: Jacobian(m, [x]), lambda m, x, y: Hessian(m, CE, [(x, y)])])
def test_complex_parameters_are_named_with_what_leaves_them_out(build):
    """What is left is the matrix of the real ones, beside complex ones that stay as they are."""

    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wave, self.head = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64)), nn.Linear(4, 2)

        def forward(self, x):
            return self.head((x.to(self.wave.dtype) @ self.wave).abs())

    model, x, y = Wave(), torch.randn(5, 3), torch.arange(5) % 2
    with pytest.raises(TypeError, match=r"the parameter wave is torch.complex64; leave it out by params=, or"):
        build(model, x, y)
    v, features = torch.randn(10), (x.to(model.wave.dtype) @ model.wave).abs().detach()
    ours = Hessian(model, CE, [(x, y)], params=["head.*"]) @ v
    torch.testing.assert_close(ours, Hessian(model.head, CE, [(features, y)]) @ v)
    with pytest.raises(TypeError, match=r"the model or its inputs are torch.complex64; convert them"):
        Jacobian(nn.Flatten(), [x.to(torch.complex64)], wrt="inputs")


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_sample_without_an_axis_of_samples_is_one_sentence(problem, kind):
    model, x, y = problem
    with pytest.raises(ValueError, match=r"the output has shape \(3,\), but a cross entropy is of \(B, classes\)"):
        kind(model, CE, list(zip(x, y, strict=True)))


def test_objects_and_inference_tensors_as_batches(problem):
    model, x, y = problem
    right = rows(model(x), list(model.parameters()))
    assert agrees(Jacobian(model, [Record(x[:4], y[:4]), Record(x[4:], y[4:])]), right)
    with torch.inference_mode():
        features, other = x * 1, nn.Linear(3, 3)
    assert agrees(Jacobian(model, [features]), right)
    with pytest.raises(ValueError, match=r"the parameter weight was made under torch.inference_mode\(\)"):
        Jacobian(other, [x])


def test_operator_is_no_pickle_and_can_be_copied(problem):
    model, x, _ = problem
    A = Jacobian(model, [x]).gram() + 1.0 * spectral.I
    with pytest.raises(TypeError, match=r"Jacobian cannot be pickled, for it holds graphs and the data; build it anew"):
        pickle.dumps(A)
    with pytest.raises(TypeError, match=r"Jacobian cannot be pickled"):
        pickle.dumps(A.to_scipy())
    assert agrees(copy.deepcopy(A), dense(A))
    view = pickle.loads(pickle.dumps(spectral.as_operator(np.diag([1.0, 2.0])).to_scipy()))
    assert (view.matvec(np.ones(2)) == [1, 2]).all() and (view.rmatmat(np.eye(2)) == np.diag([1, 2])).all()


def test_operator_that_holds_what_nothing_copies_says_so(problem):
    model, x, _ = problem
    model.lock = threading.Lock()
    J = Jacobian(model, [x])
    with pytest.raises(
        TypeError, match=r"Jacobian cannot be copied .*_thread.lock.*; build another one, or take copy.copy"
    ):
        copy.deepcopy(J)
    assert agrees(J, dense(copy.copy(J)))


def test_nested_tensor_as_a_batch_is_one_sentence():
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)
    with pytest.raises(TypeError, match="a batch holds a nested tensor"):
        Jacobian(nn.Linear(3, 2), [nested])


class Endless:
    """A loader without an end looks like a sweep that takes long."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        yield from [self.batch] * 3


def test_data_that_do_not_say_how_many_they_are_are_told_about(problem, monkeypatch):
    monkeypatch.setattr("spectral.networks.data_model.PATIENCE", 0)
    model, x, _ = problem
    with pytest.warns(UserWarning, match=r"have given \d batches in 0 s and do not say how many they are"):
        Jacobian(model, Endless(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Jacobian(model, [x, x])


@pytest.mark.parametrize("params", [3, torch.optim.SGD([torch.ones(1)], lr=1)])
def test_no_list_of_parameters_is_one_sentence(problem, params):
    with pytest.raises(TypeError, match=r"params is a \w+; pass a list of name globs"):
        Jacobian(problem[0], [problem[1]], params=params)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"product_dtype": "float32"}, "'float32' is no floating dtype"),
        ({"memory": float("inf")}, "memory=inf is no amount"),
    ],
)
def test_no_option_is_one_sentence(problem, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        Jacobian(problem[0], [problem[1]], **options)
    with pytest.raises(TypeError, match="on the device meta, which has no values"):
        Jacobian(problem[0], [problem[1].to("meta")])


# Matrices -------------------------------------------------------------------------------------------------------------
A = np.diag([1.0, 2.0, 4.0])
NO_MATRIX = {
    "masked": (lambda: np.ma.masked_array(A, mask=np.eye(3)), "masked in some entries"),
    "meta": (lambda: torch.eye(3, device="meta"), "the Tensor is meta"),
    "hybrid": (lambda: torch.sparse_coo_tensor([[0, 1]], torch.eye(2), (2, 2)), "the Tensor is sparse_coo"),
    "table": (lambda: SimpleTable(), r"a table of columns; pass its matrix, A.to_numpy\(\)"),
}


class SimpleTable(SimpleNamespace):
    shape = (3, 3)

    def __matmul__(self, v):
        return v

    def to_numpy(self):
        return A


@pytest.mark.parametrize("kind", NO_MATRIX)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_no_matrix_is_one_sentence(kind):
    make, words = NO_MATRIX[kind]
    with pytest.raises(TypeError, match=words):
        spectral.as_operator(make())


def test_unmasked_and_swapped_bytes_are_the_matrix():
    for given in (np.ma.masked_array(A, mask=False), A.astype(">f8")):
        assert np.array_equal(spectral.as_operator(given) @ np.ones(3, ">f8"), A.sum(1))
    with pytest.raises(TypeError, match="masked in some entries"):
        spectral.as_operator(A) @ np.ma.masked_array(np.ones(3), mask=[0, 1, 0])


@pytest.mark.parametrize(
    "vector, words",
    [
        (np.ones(3, dtype=object), "the array is object, which torch does not have"),
        (torch.ones(3, dtype=DOUBLE).to_sparse(), r"sparse_coo; pass a dense one"),
        (np.array([1, np.nan, 0]), "the array that Dense is to multiply holds NaN or infinity"),
    ],
)
def test_no_vector_is_one_sentence(vector, words):
    with pytest.raises((TypeError, ValueError), match=words):
        spectral.as_operator(A) @ vector


def test_functions_of_a_spectrum_are_real_and_may_be_those_of_torch():
    s = spectral.exact(A)
    assert s.integrate(torch.log).value == pytest.approx(np.log(8))
    assert np.allclose(spectral.funm(A, torch.sqrt, np.ones(3)).value, np.sqrt([1, 2, 4]))
    for f, words in (
        (lambda x: 1 / (x - 1j), "f is complex"),
        (float, "f fails on an array"),
        ("log", "f fails on an array"),
    ):
        with pytest.raises(TypeError, match=words):
            s.integrate(f)


def test_numbers_of_numpy_are_numbers():
    assert spectral.slq(A, probes=np.int64(1), tol=np.float32(0.1), budget=np.int64(9)).products <= 9


def test_models_and_losses_that_are_compiled_run_as_they_are_written(problem):
    """torch's compiler would take our own functions along: warnings, and ten seconds for a first product."""
    model, x, y = problem

    def compiled(thing):
        return torch.compile(thing, backend=lambda graph, inputs: pytest.fail("it was compiled"))

    def squares(z, batch):
        return (z**2).sum(), len(z)

    for loss in (CE, squares):
        right = dense(Hessian(model, loss, cut(x, y)))
        other = compiled(loss) if loss is squares else loss
        assert agrees(Hessian(compiled(model), other, cut(x, y)), right, 1e-12)
        assert agrees(Hessian(nn.Sequential(compiled(model[0]), *model[1:]), other, cut(x, y)), right, 1e-12)


@pytest.mark.parametrize("kind", [Jacobian, GaussNewton])
def test_output_that_is_rounded_to_float32_has_products_of_that_precision(problem, kind):
    """Casting keeps nothing for the backward pass, so that float64 was asked of the adjoint identity."""
    model, x, y = problem
    rounded, data = (lambda m, b: m(b[0]).float()), cut(x, y)
    A, right = (
        kind(model, *([CE] if kind is GaussNewton else []), data, forward=f) for f in (rounded, lambda m, b: m(b[0]))
    )
    assert agrees(A, dense(right), 1e-6)


class Rounded(nn.Module):
    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.kind).to(x.dtype)


@pytest.mark.parametrize("coarse, tol", [(torch.float32, 1e-6), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("engine", ["auto", "fresh", "double-backward"])
def test_model_that_rounds_on_the_way_has_products_of_that_precision(problem, coarse, tol, engine):
    """A cast (simulated quantisation) keeps nothing for the backward pass, which rounds as it does."""
    model, x, y = problem
    rounded = nn.Sequential(*model[:2], Rounded(coarse), model[2])
    own = list(model.parameters())
    J, G = Jacobian(rounded, cut(x, y), engine=engine), GaussNewton(rounded, CE, cut(x, y), engine=engine)
    assert J.describe()["computes_in"] == str(coarse).removeprefix("torch.")
    right = rows(model(x), own)
    p = model(x).detach().softmax(1)
    inner = torch.block_diag(*[torch.diag(q) - q[:, None] * q for q in p])
    assert agrees(J, right, tol) and agrees(G, right.T @ inner @ right / len(x), tol)


def test_a_node_of_the_graph_is_asked_once_for_all_that_it_made(monkeypatch):
    """A loop over unbound steps asked their one node as often as it has steps, each time for all: 51 s of 4,000 steps."""
    asked, of = [], graph.dtypes_of
    monkeypatch.setattr(graph, "dtypes_of", lambda node, places: asked.append(node) or of(node, places))
    x = torch.randn(50, 3)
    facts = graph.graph_facts(lambda w: torch.stack([u.tanh() for u in (x * w).unbind(0)]), (torch.ones(3),))
    assert facts.reached == (True,) and facts.dtype == torch.float32
    assert len(asked) == len(set(asked)) == 53  # 50 tanh, what unbinds, what multiplies, and the leaf


# What forward leaves behind ---------------------------------------------------------------------------------------------
def test_functions_may_take_a_batch_apart(problem):
    """The second call of batch.pop("labels") failed, and the user's own batches were left without their entries."""
    model, x, y = problem
    data = [{"x": x[:4], "labels": y[:4]}, {"x": x[4:], "labels": y[4:]}]
    loss = lambda z, batch: (F.cross_entropy(z, batch.pop("labels"), reduction="sum"), len(z))  # noqa: E731
    H = Hessian(model, loss, data, forward=lambda m, batch: m(batch.pop("x")))
    assert agrees(H, second(lambda: CE(model(x), y), list(model.parameters())), 1e-6)
    assert all(set(batch) == {"x", "labels"} for batch in data)


@pytest.mark.parametrize("left", ["batch", "attribute", "hook"])
def test_loss_that_reads_what_forward_leaves_behind_has_a_hessian_and_no_gauss_newton(problem, left):
    """Of sum(h^2)^2, h a hidden layer beside the output: GaussNewton took it for a constant and was without its terms."""
    model, x, y = problem
    data, seen = [{"x": x[:4], "y": y[:4]}, {"x": x[4:], "y": y[4:]}], {}

    def forward(m, batch):
        h = m[1](m[0](batch["x"]))
        batch["h"] = m.h = h
        return m[2](h)

    def loss(z, batch):
        h = {"batch": lambda: batch["h"], "attribute": lambda: model.h, "hook": lambda: seen["h"]}[left]()
        return F.cross_entropy(z, batch["y"], reduction="sum") + h.square().sum().square(), len(z)

    model[1].register_forward_hook(lambda module, args, output: seen.update(h=output))
    total = lambda: sum(loss(forward(model, b), b)[0] for b in [{**d} for d in data]) / 6  # noqa: E731
    assert agrees(Hessian(model, loss, data, forward=forward), second(total, list(model.parameters())), 1e-6)
    with pytest.raises(ValueError, match=r"^GaussNewton is the curvature .*, but loss= .* let forward= return"):
        GaussNewton(model, loss, data, forward=forward)


def test_output_may_be_what_a_hook_has_kept(problem):
    """What was left of rows by vmap could not be hashed: the next operator ended with torch's words."""
    model, x, y = problem
    kept = {}
    model[1].register_forward_hook(lambda module, args, output: kept.update(h=output))
    of = lambda z, batch: kept["h"]  # noqa: E731
    for _ in range(2):
        J = Jacobian(model, cut(x, y), of=of)
        right = rows(torch.tanh(model[0](x)), list(model.parameters()))
        assert agrees(J, right)
        torch.testing.assert_close(J.squared_norms(), right.square().sum(1).view(6, 4).sum(1))


class InPlace(nn.Module):
    """Changes what it is given, and applies a model to that."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x):
        self.change(x)
        return self.model(x)


CHANGES = {
    "scaled": lambda x: x.mul_(0.5).sub_(0.1),
    "clamped": lambda x: x.clamp_(-0.3, 0.3),
    "part": lambda x: x[:, :1].neg_(),
    "in a later batch": lambda x: x.clamp_(max=5) if (x > 5).any() else x,
}


@pytest.mark.parametrize("how", CHANGES)
def test_forward_may_write_to_its_inputs_and_yours_stay_as_they_were(problem, how):
    """The first forward pass changed the user's tensors, and the second one was refused as random."""
    model, x, y = problem
    x[-1, 0] = 7
    given, changed, data = InPlace(model, CHANGES[how]), x.clone(), cut(x, y)
    CHANGES[how](changed)
    before = [part.clone() for part, _ in data]
    for one in (Hessian, GaussNewton, EmpiricalFisher):
        assert agrees(one(given, CE, data), dense(one(model, CE, cut(changed, y))))
    assert agrees(Jacobian(given, data), dense(Jacobian(model, cut(changed, y))))
    due = spectral.diagonal(EmpiricalFisher(model, CE, cut(changed, y)), method="exact", progress=False).value
    found = spectral.diagonal(EmpiricalFisher(given, CE, data), method="exact", progress=False).value
    np.testing.assert_allclose(found, due, rtol=1e-10)
    apart = InPlace(given, lambda x: None)  # which takes a copy beforehand
    apart.forward = lambda x: given(x.clone())
    assert agrees(Jacobian(given, data, wrt="inputs"), dense(Jacobian(apart, data, wrt="inputs")))
    assert all(torch.equal(part, old) for (part, _), old in zip(data, before, strict=True))


def test_forward_has_a_batch_in_a_list_of_the_users_own_kind_with_what_it_carries() -> None:
    class Pair(list):  # type: ignore[type-arg]
        scale = 1.0

    x = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    batch = Pair([x, torch.zeros(4, 1)])
    batch.scale = 2.0  # an attribute, which no item holds
    model = torch.nn.Linear(3, 1, bias=False).double()
    J = spectral.Jacobian(model, [batch], forward=lambda m, b: m(b[0]) * b.scale)
    v = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    assert torch.allclose(J @ v, 2 * x @ v)
    assert type(batch) is Pair
    assert batch[0] is x


class Placed(nn.Module):
    """Reads its weight by where it lies in its storage."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.head = kind, nn.Linear(4, 3, dtype=DOUBLE)
        self.w = nn.Parameter(torch.randn(3, 4, *([2] if kind == "complex" else []), dtype=DOUBLE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "complex":  # a state-space model, a Fourier layer
            return self.head((x.to(torch.complex128) @ torch.view_as_complex(self.w)).abs())
        return self.head(torch.tanh(x @ self.w.as_strided((3, 2), (4, 1), self.w.storage_offset() + 1).repeat(1, 2)))


@pytest.mark.parametrize("kind", ["complex", "strided"])
@pytest.mark.parametrize("engine", ["auto", "replay"])
def test_product_is_the_same_wherever_its_vector_lies(problem, kind, engine):
    """Rows of a block of odd width begin at places that a complex number or a stride does not."""
    _, x, y = problem
    model = Placed(kind)
    own = list(model.parameters())
    V = torch.randn(8, 39, dtype=DOUBLE)[:, : sum(p.numel() for p in own)].contiguous()
    J = rows(model(x), own)
    H = second(lambda: CE(model(x), y), own)
    for A, right in ((Jacobian(model, [x], engine=engine), J), (Hessian(model, CE, [(x, y)], engine=engine), H)):
        assert torch.allclose(A @ V.T, right @ V.T, rtol=0, atol=1e-7)
        for v in [V[0]] * 20 + [*V]:  # while a program is recorded and after
            assert torch.allclose(A @ v, right @ v, rtol=0, atol=1e-7)
