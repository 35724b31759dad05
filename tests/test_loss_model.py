"""All that a loss reads is differentiated (parameters, second calls, every head), and it means what its author thought."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectral
from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian

DOUBLE = torch.float64
N = 6


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def rows_of(outputs, model):
    """One backward pass for each entry."""
    params = list(model.parameters())
    return torch.stack(
        [flat(torch.autograd.grad(e, params, retain_graph=True, allow_unused=True, materialize_grads=True))
         for e in outputs.reshape(-1)]
    )  # fmt: skip


def hessian_of(total, model):
    params = list(model.parameters())
    g = flat(torch.autograd.grad(total, params, create_graph=True, allow_unused=True, materialize_grads=True))
    return torch.stack(
        [flat(torch.autograd.grad(e, params, retain_graph=True, allow_unused=True, materialize_grads=True))
         if e.requires_grad else torch.zeros(len(g), dtype=DOUBLE) for e in g]
    )  # fmt: skip


def close(a, b):
    return (a - b).norm() <= 1e-9 * b.norm().clamp(min=1e-3)


def agrees(A, right):
    """Three random products: no engine records anything for so few."""
    V = torch.randn(A.shape[1], 3, dtype=A.dtype)
    return close(A @ V, right @ V)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, torch.randn(N, 3, dtype=DOUBLE), torch.randint(3, (N,))


def cut(*parts, at=4):
    return [tuple(p[:at] for p in parts), tuple(p[at:] for p in parts)]


# What a loss reads beside the output ----------------------------------------------------------------------------------
def decay(model, x):
    return sum((p**2).sum() for p in model.parameters())


def path_norm(model, x):
    return (model[2].weight.abs() @ model[0].weight.abs()).sum()


def spectral_penalty(model, x):
    return torch.linalg.matrix_norm(model[0].weight, 2) ** 2


def named(model, x):
    return model.get_parameter("2.bias").exp().sum()


def other_points(model, x):
    return (model(torch.eye(3, dtype=DOUBLE)) ** 2).mean()


def input_gradient(model, x):
    """As in physics-informed losses: a derivative with respect to the inputs by torch.autograd.grad."""
    points = torch.eye(3, dtype=DOUBLE).requires_grad_()
    (slope,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
    return (slope**2).mean()


def jacobian_inside(model, x):
    """The same by torch.func."""
    return torch.func.vmap(torch.func.jacrev(lambda p: model(p[None])[0]))(torch.eye(3, dtype=DOUBLE)).square().mean()


PENALTIES = [decay, path_norm, spectral_penalty, named, other_points, input_gradient, jacobian_inside]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("engine", ["auto", "replay"])
def test_hessian_of_a_penalised_loss(problem, penalty, engine):
    model, x, y = problem

    def loss(output, batch):
        return F.cross_entropy(output, batch[1], reduction="sum") + len(output) * penalty(model, batch[0]), len(output)

    right = hessian_of(F.cross_entropy(model(x), y) + penalty(model, x), model)
    assert agrees(Hessian(model, loss, cut(x, y), engine=engine), right)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradients_of_single_samples_hold_the_penalty(problem, penalty):
    model, x, y = problem

    def loss(output, batch):
        return F.cross_entropy(output, batch[1], reduction="sum") + len(output) * penalty(model, batch[0]), len(output)

    G = rows_of(F.cross_entropy(model(x), y, reduction="none") + penalty(model, x), model)
    assert agrees(EmpiricalFisher(model, loss, cut(x, y)), G.T @ G / N)
    assert agrees(Jacobian(model, cut(x, y), of="loss", loss=loss), G)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gauss_newton_names_a_parameter_that_is_read_beside_the_outputs(problem, penalty):
    model, x, y = problem

    def loss(output, batch):
        return F.cross_entropy(output, batch[1], reduction="sum") + len(output) * penalty(model, batch[0]), len(output)

    with pytest.raises(ValueError, match=r"loss= reads the parameter \d.\w+ beside it, whose terms it would leave out"):
        GaussNewton(model, loss, cut(x, y))


def test_penalty_of_a_frozen_parameter_is_a_constant_for_gauss_newton(problem):
    model, x, y = problem

    def loss(output, batch):
        total = F.cross_entropy(output, batch[1], reduction="sum")
        return total + len(output) * model[0].weight.square().sum(), len(output)

    A = GaussNewton(model, loss, [(x, y)], params=["2.*"])
    other = GaussNewton(model, nn.CrossEntropyLoss(), [(x, y)], params=["2.*"])
    assert agrees(A, other @ torch.eye(A.shape[1], dtype=DOUBLE))


def test_output_that_calls_the_model_again(problem):
    model, x, _ = problem
    J = Jacobian(model, [x[:4], x[4:]], of=lambda output, batch: model(2 * batch) + output.sin())
    right = rows_of(model(2 * x) + model(x).sin(), model)
    assert agrees(J, right) and agrees(J.T, right.T)


def test_forward_that_differentiates_inside_works_with_every_operator(problem):
    model, x, y = problem

    def forward(model, batch):
        points = batch[0].requires_grad_()
        z = model(points)
        return torch.cat([z, torch.autograd.grad(z.sum(), points, create_graph=True)[0]], 1)

    J = Jacobian(model, [(x, y)], forward=forward)
    assert agrees(J, rows_of(forward(model, (x.clone(), y)), model)) and not x.requires_grad


# Heads ---------------------------------------------------------------------------------------------------------------
@dataclass
class Boxes:
    kind: torch.Tensor
    boxes: torch.Tensor
    note: str = "seen"


Pair = namedtuple("Pair", "kind boxes")
FORMS = {
    "dict": (lambda k, b: {"kind": k, "boxes": b, "unread": k * 3}, lambda o: (o["kind"], o["boxes"])),
    "logits and boxes": (lambda k, b: {"logits": k, "boxes": b}, lambda o: (o["logits"], o["boxes"])),
    "tuple": (lambda k, b: (k, b, k * 3), lambda o: o[:2]),
    "list": (lambda k, b: [k, b], lambda o: (o[0], o[1])),
    "named tuple": (Pair, lambda o: (o.kind, o.boxes)),
    "dataclass": (Boxes, lambda o: (o.kind, o.boxes)),
    "nested": (lambda k, b: {"a": [k], "b": ({"c": b},)}, lambda o: (o["a"][0], o["b"][0]["c"])),
    "a mean among them": (lambda k, b: (k, b.mean(0)), lambda o: (o[0], o[1])),
}


class Heads(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.body, self.kind, self.box, self.make = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 2), make

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.make(self.kind(h), self.box(h))


@pytest.mark.parametrize("form", FORMS)
def test_gauss_newton_and_hessian_of_several_heads(form):
    torch.manual_seed(0)
    make, take = FORMS[form]
    model, x, y = Heads(make).double(), torch.randn(N, 3, dtype=DOUBLE), torch.randint(3, (N,))

    def loss(output, batch):
        kind, boxes = take(output)
        each = F.cross_entropy(kind, batch[1], reduction="sum")
        return each + (boxes**2).sum() + (boxes**4).sum(), len(batch[1])

    A, H = GaussNewton(model, loss, [(x, y)]), Hessian(model, loss, [(x, y)])
    kind, boxes = take(model(x))
    p, b = kind.detach().softmax(1), boxes.detach().reshape(-1)
    inner = torch.block_diag(*[torch.diag(q) - q[:, None] * q for q in p])
    J, B = rows_of(kind, model), rows_of(boxes, model)
    right = (J.T @ inner @ J + B.T @ ((2 + 12 * b**2)[:, None] * B)) / N
    assert agrees(A, right) and agrees(H, hessian_of(loss(model(x), (x, y))[0] / N, model))
    if form != "a mean among them":
        assert agrees(GaussNewton(model, loss, cut(x, y)), right)
        assert "loss_couples_samples" not in A.describe()


def test_question_answering_reads_both_ends():
    """Start and end logits, as question answering models return them."""
    torch.manual_seed(0)
    model = Heads(lambda k, b: {"start_logits": k, "end_logits": b}).double()
    x, start, end = torch.randn(N, 3, dtype=DOUBLE), torch.randint(3, (N,)), torch.randint(2, (N,))

    def loss(output, batch):
        ends = F.cross_entropy(output["end_logits"], batch["end"], reduction="sum")
        return (F.cross_entropy(output["start_logits"], batch["start"], reduction="sum") + ends) / 2, len(batch["end"])

    batch = {"x": x, "start": start, "end": end}
    A = GaussNewton(model, loss, [batch], forward=lambda m, b: m(b["x"]))
    right = 0
    for key in ("start_logits", "end_logits"):
        J, p = rows_of(model(x)[key], model), model(x)[key].detach().softmax(1)
        right = right + J.T @ torch.block_diag(*[torch.diag(q) - q[:, None] * q for q in p]) @ J / (2 * N)
    assert agrees(A, right)


def test_gauss_newton_of_a_number_that_the_model_has_reduced_is_refused(problem):
    model, x, y = problem
    forward = lambda m, b: {"loss": F.cross_entropy(m(b[0]), b[1])}  # noqa: E731
    loss = lambda output, batch: (output["loss"] * len(batch[1]), len(batch[1]))  # noqa: E731
    with pytest.raises(ValueError, match="numbers that the model has reduced already"):
        GaussNewton(model, loss, [(x, y)], forward=forward)
    right = hessian_of(F.cross_entropy(model(x), y), model)
    assert agrees(Hessian(model, loss, [(x, y)], forward=forward), right)


# What a loss returns --------------------------------------------------------------------------------------------------
RETURNS = {
    "sum and count": lambda z, b: (F.cross_entropy(z, b[1], reduction="sum"), len(z)),
    "sum and a tensor": lambda z, b: (F.cross_entropy(z, b[1], reduction="sum"), torch.tensor(len(z))),
    "a list of both": lambda z, b: [F.cross_entropy(z, b[1], reduction="sum"), float(len(z))],
    "terms and count": lambda z, b: (F.cross_entropy(z, b[1], reduction="none"), len(z)),
    "terms and counts": lambda z, b: (F.cross_entropy(z, b[1], reduction="none"), torch.ones(len(z))),
    "mean": lambda z, b: F.cross_entropy(z, b[1]),
    "one for each": lambda z, b: F.cross_entropy(z, b[1], reduction="none"),
    "module": nn.CrossEntropyLoss(),
}


@pytest.mark.parametrize("form", RETURNS)
@pytest.mark.parametrize("sizes", [(4, 2), (1, 1, 1, 1, 1, 1)])
def test_loss_means_what_its_author_thought(problem, form, sizes):
    model, x, y = problem
    data, loss = list(zip(x.split(sizes), y.split(sizes), strict=True)), RETURNS[form]
    assert agrees(Hessian(model, loss, data), hessian_of(F.cross_entropy(model(x), y), model))
    G = rows_of(F.cross_entropy(model(x), y, reduction="none"), model)
    assert agrees(EmpiricalFisher(model, loss, data), G.T @ G / N)
    assert agrees(Jacobian(model, data, of="loss", loss=loss), G)


def test_what_was_taken_for_granted_is_recorded(problem):
    model, x, y = problem
    described = {form: Hessian(model, loss, [(x, y)]).describe().get("loss_returns") for form, loss in RETURNS.items()}
    assert described["mean"] == "mean over the samples" and described["one for each"] == "one number for each entry"
    assert described["sum and count"] is described["module"] is None


REFUSED = {
    "a function for other targets": (F.binary_cross_entropy_with_logits, r"does not take the output and the target"),
    "a class": (nn.CrossEntropyLoss, r"got the class CrossEntropyLoss; write CrossEntropyLoss\(\)"),
    "a word": ("cross_entropy", r"loss is a str"),
    "of (output, target)": (lambda z, s: F.cross_entropy(z, s), r"fails on the model's output and the whole batch, a tuple of"),
    "a number": (lambda z, b: float(F.cross_entropy(z, b[1])), r"it returned a float"),
    "with a dictionary": (lambda z, b: (F.cross_entropy(z, b[1]), {"acc": 1}), r"it returned a tuple of Tensor, dict"),
    "nothing": (lambda z, b: None, r"it returned a NoneType"),
    "three": (lambda z, b: (z.sum(), 1, 2), r"it returned a tuple of Tensor, int, int"),
    "a sum": (lambda z, b: F.cross_entropy(z, b[1], reduction="sum"), r"returns the sum over a batch without a count"),
    "a mean over counted targets": (
        lambda z, b: F.cross_entropy(z, b[1], ignore_index=0), r"couples the samples of a batch.*so that several batches",
    ),
    "a mean with weights": (
        lambda z, b: F.cross_entropy(z, b[1], weight=torch.tensor([1.0, 2, 4]).double()), r"couples the samples of a batch",
    ),
    "a module of three arguments": (nn.TripletMarginLoss(), r"does not take the output and the target"),
    "a module for other targets": (nn.BCEWithLogitsLoss(), r"does not take the output and the target"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_loss_without_a_meaning_is_one_sentence(problem, kind):
    model, x, _ = problem
    loss, words = REFUSED[kind]
    for make in (Hessian, GaussNewton):
        with pytest.raises((ValueError, TypeError), match=words) as caught:
            make(model, loss, cut(x, torch.tensor([0, 1, 2, 2, 0, 1])))
        assert "\n" not in str(caught.value)


# Modules of users -----------------------------------------------------------------------------------------------------
class Focal(nn.Module):
    def __init__(self, ignore_index=-100):
        super().__init__()
        self.reduction, self.ignore_index = "mean", ignore_index

    def forward(self, z, y):
        ce = F.cross_entropy(z, y, reduction="none", ignore_index=self.ignore_index)
        loss = (1 - torch.exp(-ce)) ** 2 * ce
        if self.reduction == "none":
            return loss
        return loss.sum() / (y != self.ignore_index).sum() if self.reduction == "mean" else loss.sum()


class Dice(nn.Module):
    reduction = "mean"

    def forward(self, z, y):
        p, t = z.softmax(1)[:, 1], (y == 1).to(z)
        return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


class Contrast(nn.Module):
    """Terms of single samples, each against all: (B,) under reduction="none"."""

    reduction = "mean"

    def forward(self, z, y):
        scores = F.normalize(z, dim=1) @ F.normalize(z.roll(1, 0) + 0.1, dim=1).T
        return F.cross_entropy(scores, torch.arange(len(z)), reduction=self.reduction)


def test_module_of_a_user_is_that_of_all_data_or_refused(problem):
    model, x, y = problem
    right = hessian_of(Focal()(model(x), y), model)
    assert agrees(Hessian(model, Focal(), cut(x, y)), right)
    y = torch.tensor([0, 1, -100, 2, 1, -100])
    with pytest.raises(ValueError, match=r"but the mean of its terms is .* counts its targets in a way of its own"):
        Hessian(model, Focal(), cut(x, y))


@pytest.mark.parametrize("kind", [Dice, Contrast])
def test_module_that_couples_samples_needs_all_data_in_one_batch(problem, kind):
    model, x, y = problem
    H = Hessian(model, kind(), [(x, y)])
    assert agrees(H, hessian_of(kind()(model(x), y), model))
    assert "two parts of batch 0 give" in H.describe()["loss_couples_samples"]
    with pytest.raises(ValueError, match=r"couples the samples of a batch .* pass all data as one batch"):
        Hessian(model, kind(), cut(x, y))
    for make in (EmpiricalFisher, lambda m, loss, data: Jacobian(m, data, of="loss", loss=loss)):
        with pytest.raises(ValueError, match="couples the samples of a batch"):
            make(model, kind(), [(x, y)])


def test_stop_gradient_in_a_loss_is_refused_unless_constants_are_meant(problem):
    """Its gradient is another function than the gradient at a frozen target, so that no matrix is its derivative."""

    def towards(z, batch):
        return (z - z.detach().roll(1, 1)).square().sum(), len(z)

    model, x, y = problem
    H = Hessian(model, towards, cut(x, y))
    with pytest.raises(ValueError, match=r"an operation in loss= has a second derivative .* stop-gradient"):
        H @ torch.ones(H.shape[1], dtype=torch.float64)
    frozen = model(x).detach().roll(1, 1)
    right = hessian_of((model(x) - frozen).square().sum() / N, model)
    assert agrees(Hessian(model, towards, cut(x, y), preflight=False), right)


def triplet(z, batch):
    return F.relu((z[:, None] - z[None]).square().sum(2) - 0.5).sum(), len(z)


def test_callable_that_couples_samples_is_taken_as_the_batches_are_cut(problem):
    model, x, y = problem
    H = Hessian(model, triplet, cut(x, y))
    right = hessian_of(sum(triplet(model(part), None)[0] for part in (x[:4], x[4:])) / N, model)
    assert agrees(H, right)
    assert "two parts of batch 0 give" in H.describe()["loss_couples_samples"]
    assert "batches_joined" not in H.describe()


MEANS = {
    "samples": lambda z, y: (F.cross_entropy(z, y), len(z)),
    "class weights": lambda z, y: (F.cross_entropy(z, y, torch.tensor([1.0, 2.0, 5.0]).to(z)), len(z)),
    "counted targets": lambda z, y: (F.cross_entropy(z, y, ignore_index=2), (y != 2).sum()),
    "ratio": lambda z, y: (z.softmax(1)[:, 0].sum() / z.abs().sum(), len(z)),
}


@pytest.mark.parametrize("kind", list(MEANS))
@pytest.mark.parametrize("owned", [False, True])
def test_mean_beside_a_count_is_no_sum(problem, kind, owned):
    """A mean is the same where each sample is there twice. A sum that the model made, or the user, is a sum."""
    model, x, y = problem
    forward = (lambda m, b: {"z": m(b[0]), "number": MEANS[kind](m(b[0]), b[1])[0]}) if owned else None
    number = lambda z, b: z["number"] if owned else MEANS[kind](z, b[1])[0]  # noqa: E731
    count = lambda b: MEANS[kind](torch.ones(len(b[1]), 3), b[1])[1]  # noqa: E731
    with pytest.raises(ValueError, match=r"returns \(mean, count\): .*; return \(sum, count\), such as"):
        Hessian(model, lambda z, b: (number(z, b), count(b)), cut(x, y), forward=forward)
    right = sum(float(count(b)) * hessian_of(MEANS[kind](model(b[0]), b[1])[0], model) for b in cut(x, y))
    H = Hessian(model, lambda z, b: (number(z, b) * count(b), count(b)), cut(x, y), forward=forward)
    assert agrees(H, right / sum(float(count(b)) for b in cut(x, y)))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_sum_in_16_bits_over_pairs_is_no_mean(kind):
    """A part of a batch has no pairs, so that a mean is asked after: a sum over samples there twice is twice itself."""
    model, x = nn.Linear(3, 3), torch.randn(8, 3)

    def pairs(z, batch):
        apart = z.float().view(-1, 2, 3)
        return 2 * (apart[:, 0] - apart[:, 1]).square().sum(), len(z)

    H = Hessian(model, pairs, [(x,)], forward=lambda m, b: m(b[0]).to(kind))
    apart = x[::2] - x[1::2]
    right = torch.block_diag(*[4 / 8 * apart.T @ apart] * 3)
    assert torch.allclose((H @ torch.eye(12))[:9, :9], right, rtol=0, atol=0.05 * float(right.abs().max()))


def test_one_number_that_couples_samples_is_that_of_one_batch(problem):
    model, x, y = problem
    mean = lambda z, b: triplet(z, b)[0] / len(z) ** 2  # noqa: E731
    H = Hessian(model, mean, [(x, y)])
    assert agrees(H, hessian_of(mean(model(x), None), model)) and H.count == 1
    assert H.describe()["loss_returns"] == "one number for all data"


REDUCTIONS = {
    "kl batchmean": (nn.KLDivLoss(reduction="batchmean", log_target=True), lambda y: F.one_hot(y, 3) * 2.0 - 3),
    "kl mean": (nn.KLDivLoss(reduction="mean", log_target=True), lambda y: F.one_hot(y, 3) * 2.0 - 3),
    "poisson": (nn.PoissonNLLLoss(), lambda y: F.one_hot(y, 3) * 1.0),
    "poisson full": (nn.PoissonNLLLoss(full=True, log_input=True), lambda y: F.one_hot(y, 3) * 2.0),
    "multi-label soft margin": (nn.MultiLabelSoftMarginLoss(), lambda y: F.one_hot(y, 3) * 1.0),
    "soft margin": (nn.SoftMarginLoss(), lambda y: F.one_hot(y, 3) * 2.0 - 1),
    "weighted": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double(), ignore_index=2), lambda y: y),
    "size_average=False": (nn.MSELoss(size_average=False), lambda y: F.one_hot(y, 3) * 1.0),
}


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reductions_of_torch_are_those_of_all_data(problem, kind):
    model, x, y = problem
    loss, target = REDUCTIONS[kind]
    target = target(y).double() if target(y).is_floating_point() else target(y)
    scale = target.numel() if kind == "size_average=False" else 1  # a sum, which by the contract means the mean
    right = hessian_of(loss(model(x), target) / scale, model)
    assert agrees(Hessian(model, loss, cut(x, target)), right)


def test_subclass_of_a_loss_of_torch_is_not_taken_for_it(problem):
    class Tempered(nn.CrossEntropyLoss):
        def forward(self, z, y):
            return super().forward(z.sin(), y)

    model, x, y = problem
    A = GaussNewton(model, Tempered(), [(x, y)])
    assert not A.nonnegative
    with pytest.raises(ValueError, match="names no predictive distribution"):
        Fisher(model, Tempered(), [(x, y)])


# Entries that belong to no sample --------------------------------------------------------------------------------------
def test_shared_entries_of_the_length_of_a_batch(problem):
    model, x, y = problem
    prior = torch.rand(N, dtype=DOUBLE)

    def loss(output, batch):
        return (F.cross_entropy(output, batch[1], reduction="none") * batch[2].mean()).sum(), len(output)

    G = rows_of(F.cross_entropy(model(x), y, reduction="none") * prior.mean(), model)
    assert agrees(EmpiricalFisher(model, loss, [(x, y, prior)], shared=[2]), G.T @ G / N)
    assert agrees(Jacobian(model, [(x, y, prior)], of="loss", loss=loss, shared=[2]), G)
    assert agrees(Jacobian(model, [(x, y, prior)], of="loss", loss=loss, shared=[2]).gram("left"), G @ G.T)
    rows = torch.cat([block for _, block in Jacobian(model, [(x, y, prior)], of="loss", loss=loss, shared=[2]).rows()])
    assert close(rows, G)
    with pytest.raises(ValueError, match=r"shared="):
        EmpiricalFisher(model, loss, [(x, y, prior)])


def test_shared_entries_of_a_mapping_that_the_model_reads():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, prior):
            return self.layer(x) * prior.sum()

    torch.manual_seed(0)
    model, x, prior = Weighted().double(), torch.randn(N, 3, dtype=DOUBLE), torch.rand(N, dtype=DOUBLE)
    right = rows_of(model(x, prior), model)
    with pytest.raises(ValueError, match="depend on the other samples"):
        Jacobian(model, [{"x": x, "prior": prior}])
    J = Jacobian(model, [{"x": x, "prior": prior}], shared=["prior"])
    assert agrees(J, right) and J.describe()["shared"] == ["prior"]
    assert close(J.squared_norms(), right.reshape(N, 2, -1).square().sum((1, 2)))
    with pytest.raises(
        ValueError, match=r"shared='priors' names no entry of a batch; the keys or positions there are x, prior"
    ):
        Jacobian(model, [{"x": x, "prior": prior}], shared=["priors"])
    with pytest.raises(TypeError, match=r"shared='prior' must be a list"):
        Jacobian(model, [{"x": x, "prior": prior}], shared="prior")


# The model's own loss --------------------------------------------------------------------------------------------------
def test_losses_of_single_samples_of_a_hugging_face_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=7, n_positions=6, attn_pdrop=0.0)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    ids = torch.randint(7, (4, 5))
    labels = ids.clone()
    labels[1, 2] = -100
    J = Jacobian(
        model, [{"input_ids": ids[:3], "labels": labels[:3]}, {"input_ids": ids[3:], "labels": labels[3:]}], of="loss"
    )
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        each = [model(input_ids=i[None], labels=label[None]).loss for i, label in zip(ids, labels, strict=True)]
    right = rows_of(torch.stack(each), model)
    ours = J @ torch.eye(J.shape[1], dtype=DOUBLE)[:, :40]
    assert (ours - right[:, :40]).norm() < 1e-6 * right.norm()  # theirs goes through float32
    assert spectral.Jacobian(model, [{"input_ids": ids}]).shape[0] == 4 * 5 * 7
    with pytest.raises(ValueError, match="the loss finds no labels among the keys input_ids"):
        Jacobian(model, [{"input_ids": ids}], of="loss")
