"""The Jacobian of every kind of network equals the one made by torch.autograd one sample and one output at a time."""

import copy
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import CASES, Case, Cubic, Keywords, dense_jacobian, logits
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import spectral
from spectral.engine import linearize
from spectral.networks import per_sample

TOL = 1e-10
eye = partial(torch.eye, dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor, tol: float = TOL) -> bool:
    return bool((a - b).norm() <= tol * max(1.0, float(b.norm())))


def assert_is(J: spectral.Jacobian, D: torch.Tensor) -> None:
    """Products with vectors and blocks, both Grams, rows and norms of J are those of the dense D."""
    m, n = D.shape
    assert J.shape == (m, n)
    v, u, V, U = (
        torch.randn(n).double(),
        torch.randn(m).double(),
        torch.randn(n, 3).double(),
        torch.randn(m, 2).double(),
    )
    assert (J @ v).shape == (m,) and (J @ V).shape == (m, 3)
    assert close(J @ v, D @ v) and close(J @ V, D @ V)
    assert close(J.T @ u, D.T @ u) and close(J.T @ U, D.T @ U)
    assert close(J.gram("right") @ V, D.T @ (D @ V)) and close(J.gram("left") @ U, D @ (D.T @ U))
    found = torch.zeros_like(D)
    for rows, block in J.rows():
        found[rows] = block
    assert close(found, D)
    assert close(J.squared_norms(), D.square().reshape(J.samples, -1).sum(1))
    assert J.adjoint_error() < 1e-14


# One law for every network -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", ["auto", "double-backward"])
@pytest.mark.parametrize("name", CASES)
def test_jacobian_wrt_params_is_dense(name, engine):
    case = CASES[name]
    model, batches = case.network(), case.batches()
    assert_is(spectral.Jacobian(model, batches, engine=engine), dense_jacobian(model, batches, logits))


@pytest.mark.parametrize("layout", ["stacked", "flattened"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.tokens])
def test_jacobian_wrt_inputs_is_dense(name, layout):
    case = CASES[name]
    model, batches = case.network(), case.batches()
    J = spectral.Jacobian(model, batches, wrt="inputs", layout=layout)
    assert_is(J, dense_jacobian(model, batches, logits, wrt="inputs", layout=layout))


@pytest.mark.parametrize("engine", ["fresh", "double-backward"])
@pytest.mark.parametrize("layout", ["stacked", "flattened"])
def test_every_engine_is_dense_wrt_inputs(layout, engine):
    case = CASES["batch-norm"]
    model, batches = case.network(), case.batches()
    J = spectral.Jacobian(model, batches, wrt="inputs", layout=layout, engine=engine)
    assert_is(J, dense_jacobian(model, batches, logits, wrt="inputs", layout=layout))
    assert J.describe()["engine"] == engine


def probs(model, single):
    return model(single[0]).softmax(1)


def cross_entropy(model, single):
    return F.cross_entropy(model(single[0]), single[1])


def square(output, batch):
    return (output**2 * batch[1][:, None])[:, :2]


OUTPUTS = {
    "probs": ({"of": "probs"}, probs),
    "loss": ({"of": "loss", "loss": nn.CrossEntropyLoss()}, cross_entropy),
    "callable": ({"of": square}, lambda model, single: square(model(single[0]), single)),
}


@pytest.mark.parametrize(
    ("name", "wrt", "layout"),
    [("mlp", "params", "stacked"), ("batch-norm", "inputs", "stacked"), ("batch-norm", "inputs", "flattened")],
)
@pytest.mark.parametrize("of", OUTPUTS)
def test_every_output_is_dense(name, of, wrt, layout):
    case, (options, output) = CASES[name], OUTPUTS[of]
    model, batches = case.network(), case.batches()
    J = spectral.Jacobian(model, batches, wrt=wrt, layout=layout, **options)
    assert_is(J, dense_jacobian(model, batches, output, wrt=wrt, layout=layout))


def test_params_globs_select_columns_also_frozen_ones():
    model, batches = CASES["frozen-parameter"].network(), CASES["mlp"].batches()
    J = spectral.Jacobian(model, batches, params=["0.*"])
    assert_is(J, dense_jacobian(model, batches, logits, names=["0.weight", "0.bias"]))
    assert not model[0].weight.requires_grad


def test_mappings_and_objects_with_logits():
    model = Keywords().double()
    x, y = torch.randn(5, 3).double(), torch.randint(2, (5,))
    batches = [{"x": x[s], "scale": x[s, 0] + 2, "labels": y[s]} for s in (slice(0, 3), slice(3, 5))]

    def output(model, single):
        return model(single["x"], single["scale"]).logits

    for wrt in ("params", "inputs"):
        assert_is(spectral.Jacobian(model, batches, wrt=wrt), dense_jacobian(model, batches, output, wrt=wrt))

    def loss(output, batch):
        return F.cross_entropy(output.logits, batch["labels"], reduction="sum"), len(batch["labels"])

    dense = dense_jacobian(model, batches, lambda m, b: F.cross_entropy(output(m, b), b["labels"]))
    for given in (loss, nn.CrossEntropyLoss()):
        assert_is(spectral.Jacobian(model, batches, of="loss", loss=given), dense)


def test_probs_of_an_object_with_token_logits():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = CASES["tied"].network()

        def forward(self, input_ids):
            return SimpleNamespace(logits=self.body(input_ids))

    model, (ids, _) = Model(), CASES["tied"].data(4)
    J = spectral.Jacobian(model, [{"input_ids": ids[:3]}, {"input_ids": ids[3:]}], of="probs")
    assert_is(J, dense_jacobian(model.body, [ids[:3], ids[3:]], lambda m, x: m(x).softmax(-1)))


def test_token_model_is_differentiated_at_its_embeddings():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = CASES["tied"].network()

        def get_input_embeddings(self):
            return self.body.embed

        def forward(self, input_ids=None, inputs_embeds=None):
            x = self.body.embed(input_ids) if inputs_embeds is None else inputs_embeds
            return {"logits": self.body.head(self.body.mix(x).tanh()).sum(1)}

    model, (ids, _) = Model(), CASES["tied"].data(4)
    embedded = [{"x": model.body.embed(part).detach()} for part in (ids[:3], ids[3:])]
    J = spectral.Jacobian(model, [{"input_ids": ids[:3]}, {"input_ids": ids[3:]}], wrt="inputs")
    dense = dense_jacobian(model, embedded, lambda m, b: m(inputs_embeds=b["x"])["logits"], wrt="inputs")
    assert J.shape == (20, 6)
    assert_is(J, dense)


def test_forward_argument_is_the_function():
    model, batches = CASES["mlp"].network(), CASES["mlp"].batches()

    def forward(model, batch):
        return model(batch[0].flip(1)).exp()

    assert_is(spectral.Jacobian(model, batches, forward=forward), dense_jacobian(model, batches, forward))


@pytest.mark.parametrize("glob", ["embed.weight", "head.weight", "head.*"])
def test_a_tied_weight_goes_by_any_of_its_names(glob):
    """Its later names matched nothing, as `lm_head.*` of many language models."""
    model, batches = CASES["tied"].network(), [torch.randint(5, (2, 3))]
    J = spectral.Jacobian(model, batches, params=[glob])
    assert list(J.network.names) == ["embed.weight"]
    assert close(J @ eye(15), dense_jacobian(model, batches, logits)[:, :15])


def test_ragged_outputs_stack():
    model = CASES["tied"].network()
    batches = [torch.randint(5, (2, 3)), torch.randint(5, (1, 4))]
    J, D = spectral.Jacobian(model, batches), dense_jacobian(model, batches, logits)
    assert J.shape == D.shape == (50, 27)
    assert close(J @ eye(27), D) and close(J.T @ eye(50), D.T)
    assert close(J.squared_norms(), torch.stack([D[a:b].square().sum() for a, b in ((0, 15), (15, 30), (30, 50))]))


def test_lstm_in_single_precision():
    case = CASES["lstm"]
    model, batches = case.network(torch.float32), case.batches(dtype=torch.float32)
    J = spectral.Jacobian(model, batches)
    D = dense_jacobian(copy.deepcopy(model).double(), case.batches(), logits)
    for _ in range(3):
        assert close((J @ torch.eye(J.shape[1])).double(), D, 1e-5)
    assert close((J.T @ torch.eye(J.shape[0])).double(), D.T, 1e-5)


@pytest.mark.parametrize("name", ["residual-in-place", "encoder-layer", "lstm", "checkpointed"])
def test_products_do_not_change_with_the_call(name):
    case = CASES[name]
    J = spectral.Jacobian(case.network(), case.batches())
    v, u = torch.randn(J.shape[1]).double(), torch.randn(J.shape[0]).double()
    for _ in range(3):
        assert close(J @ v, J @ v) and close(J.T @ u, J.T @ u)  # engines may change, by rounding


def test_operator_follows_the_model_as_it_is_trained():
    case = CASES["batch-norm"]
    model, batches = case.network(), case.batches()
    for options in ({}, {"product_dtype": torch.float32}):
        J = spectral.Jacobian(model, batches, **options)
        J @ torch.ones(J.shape[1]).double()
        with torch.no_grad():
            model[0].weight.mul_(1.5)
            model[1].running_mean.add_(0.4)
        D = dense_jacobian(model, batches, logits)
        assert close(J @ eye(J.shape[1]), D, 1e-5 if options else TOL)


# Batches never matter ------------------------------------------------------------------------------------------------
weights = torch.tensor([0.5, 2.0, 1.0]).double()
POINT_LOSSES = {
    "ignore-index": nn.CrossEntropyLoss(ignore_index=1),
    "class-weights": nn.CrossEntropyLoss(weight=weights),
    "label-smoothing": nn.CrossEntropyLoss(weight=weights, label_smoothing=0.2, ignore_index=0),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "callable": lambda out, batch: (F.cross_entropy(out, batch[1], reduction="sum"), len(batch[1])),
}
CUTS = [(5,), (2, 2, 1), (1,) * 5, (4, 1)]


@pytest.mark.parametrize("name", ["mlp", "batch-norm", "attention", "tied", "checkpointed"])
def test_cut_of_the_data_never_matters(name):
    case = CASES[name]
    model = case.network()
    whole, *others = (spectral.Jacobian(model, case.batches(cut)) for cut in CUTS)
    v, u = torch.randn(whole.shape[1]).double(), torch.randn(whole.shape[0]).double()
    for J in others:
        assert close(J @ v, whole @ v, 1e-13) and close(J.T @ u, whole.T @ u, 1e-13)
        assert close(J.gram("right") @ v, whole.gram("right") @ v, 1e-13)
        assert close(J.squared_norms(), whole.squared_norms(), 1e-13)


@pytest.mark.parametrize("kind", POINT_LOSSES)
def test_cut_never_matters_for_losses(kind):
    case, loss = CASES["mlp"], POINT_LOSSES[kind]
    model = case.network()
    whole, *others = (spectral.Jacobian(model, case.batches(cut), of="loss", loss=loss) for cut in CUTS)
    assert whole.shape == (5, 31)
    for J in others:
        assert close(J.T @ eye(5), whole.T @ eye(5), 1e-13) and close(J @ eye(31), whole @ eye(31), 1e-13)


# Gram ----------------------------------------------------------------------------------------------------------------
def test_gram_takes_the_smaller_side_and_both_have_one_spectrum():
    case = CASES["mlp"]
    J = spectral.Jacobian(case.network(), case.batches())  # 15 x 31
    left, right = J.gram("left"), J.gram("right")
    assert (J.gram().side, J.gram().shape, J.gram().known_zeros) == ("left", (15, 15), 0)
    assert (right.shape, right.known_zeros, right.smaller.side) == ((31, 31), 16, "left")
    a, b = torch.linalg.eigvalsh(left @ eye(15)), torch.linalg.eigvalsh(right @ eye(31))
    assert close(a, b[16:]) and float(b[:16].abs().max()) < 1e-12 * float(b[-1])
    wide = spectral.Jacobian(case.network(), case.batches(), wrt="inputs")  # 15 x 3
    assert (wide.gram().side, wide.gram("left").known_zeros, wide.gram("left").smaller.side) == ("right", 12, "right")
    with pytest.raises(ValueError, match="side='top' is not known; use one of auto, left, right"):
        J.gram("top")


def test_one_sample_one_output_one_parameter():
    model = nn.Linear(1, 1, bias=False).double()
    J = spectral.Jacobian(model, [torch.full((1, 1), 3.0).double()])
    assert J.shape == (1, 1) and float(J @ torch.ones(1).double()) == 3.0
    assert float(J.gram() @ torch.ones(1).double()) == 9.0 and J.squared_norms().tolist() == [9.0]


# Norms ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrt", ["params", "inputs"])
def test_probed_norms_are_unbiased(wrt):
    case = CASES["mlp"]
    J = spectral.Jacobian(case.network(), case.batches(), wrt=wrt)
    draws = torch.stack([J.squared_norms(exact=False, seed=seed) for seed in range(60)])
    error = draws.mean(0) - J.squared_norms()
    assert bool((error.abs() <= 4 * draws.std(0) / 60**0.5 + 1e-12).all())
    assert float(draws.std(0).min()) > 0  # seeds differ


@pytest.mark.parametrize("name", ["mlp", "attention", "function-without-jvp"])
@pytest.mark.parametrize("wrt", ["params", "inputs"])
def test_probed_norms_depend_on_seed_and_sample_alone(name, wrt):
    case = CASES[name]
    model = case.network()
    norms = [spectral.Jacobian(model, case.batches(c), wrt=wrt).squared_norms(exact=False, seed=3) for c in CUTS]
    assert all(close(other, norms[0], 1e-13) for other in norms[1:])


def test_norms_do_not_depend_on_the_layout():
    case = CASES["mlp"]
    stacked, flat = (
        spectral.Jacobian(case.network(), case.batches(), wrt="inputs", layout=layout)
        for layout in ("stacked", "flattened")
    )
    assert close(stacked.squared_norms(), flat.squared_norms()) and stacked.squared_norms().dtype == torch.float64


# Precision -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["mlp", "batch-norm", "tied", "encoder-layer"])
def test_double_products_of_a_single_precision_model(name):
    case = CASES[name]
    model, batches = case.network(torch.float32), case.batches(dtype=torch.float32)
    J = spectral.Jacobian(model, batches, product_dtype=torch.float64)
    exact = [(x.double() if x.is_floating_point() else x, y) for x, y in batches]
    D = dense_jacobian(copy.deepcopy(model).double(), exact, logits)
    assert J.dtype == torch.float32 and J.describe()["product_dtype"] == "float64"
    for product, dense in ((J @ torch.eye(J.shape[1]), D), (J.T @ torch.eye(J.shape[0]), D.T)):
        assert product.dtype == torch.float32
        assert bool(((product.double() - dense).abs() <= 4e-7 * dense.abs() + 1e-9 * dense.abs().max()).all())
    assert close(J.squared_norms(), D.square().reshape(5, -1).sum(1), 1e-6)


def test_double_products_of_a_weighted_loss():
    case, loss = CASES["mlp"], nn.CrossEntropyLoss(weight=weights.float())
    model, batches = case.network(torch.float32), case.batches(dtype=torch.float32)
    J = spectral.Jacobian(model, batches, of="loss", loss=loss, product_dtype=torch.float64)
    D = dense_jacobian(
        copy.deepcopy(model).double(),
        [(x.double(), y) for x, y in batches],
        lambda m, b: F.cross_entropy(m(b[0]), b[1], weight=weights),
    )
    assert close((J @ torch.eye(31)).double(), D, 4e-7) and loss.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["mlp", "batch-norm", "attention"])
def test_bfloat16_products_within_their_rounding(name):
    case = CASES[name]
    model = case.network()
    J = spectral.Jacobian(model.float(), case.batches(dtype=torch.float32), product_dtype=torch.bfloat16)
    D = dense_jacobian(copy.deepcopy(model).double(), case.batches(), logits)
    assert close((J @ torch.eye(J.shape[1])).double() / D.norm(), D / D.norm(), 2e-2)
    assert close((J.T @ torch.eye(J.shape[0])).double() / D.norm(), D.T / D.norm(), 2e-2)


def test_model_that_returns_a_wider_dtype():
    class Upcast(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x).double()

    model, x = Upcast(), torch.randn(4, 3)
    J = spectral.Jacobian(model, [x])
    D = dense_jacobian(model, [x], lambda m, s: m(s))
    assert close(J @ torch.eye(8), D, 1e-6) and close(J.T @ torch.eye(8), D.T, 1e-6)


# Counters and descriptions -------------------------------------------------------------------------------------------
def test_products_and_epochs_are_counted():
    case = CASES["mlp"]
    J = spectral.Jacobian(case.network(), case.batches())
    assert (J.products, J.epochs) == (0, 1)  # the sweep for the sizes
    J @ eye(31)[:, :4]
    assert (J.products, J.epochs) == (4, 2)
    J.T @ eye(15)[:, 0]
    assert (J.products, J.epochs) == (5, 3)
    G = J.gram("right")
    G @ eye(31)[:, :2]
    assert (G.products, J.products, J.epochs, G.epochs) == (2, 9, 4, 4)  # J^T J in one sweep
    J.gram("left") @ eye(15)[:, 0]
    assert (J.products, J.epochs) == (11, 6)


def test_description_is_plain_json_and_names_the_choices():
    case = CASES["mlp"]
    J = spectral.Jacobian(case.network(), case.batches(), of=partial(square), wrt="inputs", layout="flattened")
    J.gram() @ torch.randn(5).double()
    told = json.loads(json.dumps(J.describe()))
    assert (told["wrt"], told["layout"], told["mode"], told["samples"]) == ("inputs", "flattened", "eval", 5)
    assert "0x" not in json.dumps(told)  # an address would make the identity new in each process
    json.dumps((2 * J.gram() + spectral.I).describe())


def test_identity_is_that_of_the_matrix():
    case = CASES["batch-norm"]
    model, batches = case.network(), case.batches()

    def identity(model=model, data=batches, **options):
        return spectral.Jacobian(model, data, **options).identity()

    J = spectral.Jacobian(model, batches)
    before = J.identity()
    J @ eye(J.shape[1])
    assert identity() == before == J.identity() == identity(copy.deepcopy(model)) == identity(engine="double-backward")
    weight, stats = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        weight[0].weight[0, 0, 0, 0] += 1e-3
        stats[1].running_var[0] += 1e-3
    ce = partial(dict, of="loss")
    others = [
        identity(weight),
        identity(stats),
        identity(data=[(x + 1e-3, y) for x, y in batches]),
        identity(data=batches[::-1]),
        identity(of="probs"),
        identity(**ce(loss=nn.CrossEntropyLoss())),
        identity(**ce(loss=nn.CrossEntropyLoss(ignore_index=0))),
        identity(**ce(loss=nn.CrossEntropyLoss(weight=weights))),
        identity(params=["0.*"]),
        identity(wrt="inputs"),
        identity(wrt="inputs", layout="flattened"),
        identity(product_dtype=torch.float32),
    ]
    assert len({before, *others}) == 1 + len(others)


# No derivative, or the wrong one: one sentence -----------------------------------------------------------------------
class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Detached(torch.autograd.Function):
    """A backward that hides its cotangent from autograd: J v by double backward loses it without a word."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g.detach()


class Branched(nn.Module):
    """A sound branch beside the wrong one, so that something is left of J v; a million parameters in single precision."""

    def __init__(self):
        super().__init__()
        self.sound, self.wrong = nn.Linear(500, 1000), nn.Linear(500, 1000)

    def forward(self, x):
        return self.sound(x) + Detached.apply(self.wrong(x))


WITHOUT = "has no forward-mode derivative"


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (Once, f"Once in the model \\(Cubic\\) {WITHOUT} and no second derivative"),
        (Detached, f"Detached in the model \\(Cubic\\) {WITHOUT}; double-backward: <Jv, u> and <v, J\\^T u> differ"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_function_that_differentiates_once_goes_by_rows_where_these_are_few(function, why, dtype, monkeypatch):
    model, x = Cubic(function).to(dtype), torch.randn(4, 3).to(dtype)
    J, v = spectral.Jacobian(model, [x]), torch.linspace(1, 2, 8)
    z = model.layer(x.double()) if dtype == torch.float64 else model.layer(x).double()
    right = (3 * z**2 * (x.double() @ v[:6].double().view(2, 3).T + v[6:].double())).reshape(-1)
    for _ in range(2):
        assert ((J @ v.to(J.dtype)).double() - right).norm() <= torch.finfo(dtype).eps * 8 * right.norm()
    assert J.describe()["engine"] == "rows"
    monkeypatch.setattr(linearize, "MOST_ROWS", 7)
    for product in [lambda: spectral.Jacobian(model, [x]) @ v.to(J.dtype)] * 2:
        with pytest.raises(ValueError, match=f"no engine multiplies.*{why}"):
            product()


def test_wrong_product_is_seen_among_a_million_parameters():
    J = spectral.Jacobian(Branched(), [torch.randn(2, 500)])
    with pytest.raises(ValueError, match=r"double-backward: <Jv, u> and <v, J\^T u> differ"):
        J @ torch.ones(J.shape[1])


def test_activation_overwritten_in_place_is_refused():
    class Overwritten(nn.Module):  # torch itself has no gradient here: relu saves its output
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return (x * self.w).relu().add_(x)

    model, x = Overwritten().double(), torch.randn(4, 3).double()
    for wrt in ("params", "inputs"):
        J = spectral.Jacobian(model, [x], wrt=wrt)
        for product in (lambda J=J: J @ torch.ones(3).double(), lambda J=J: J.T @ torch.ones(12).double()):
            with pytest.raises(ValueError, match=r"no engine multiplies.*inplace operation"):
                product()


@pytest.mark.parametrize("wrt", ["params", "inputs"])
def test_rows_are_refused_where_samples_meet(wrt):
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x * x.square().mean(0)).sin()

    J = spectral.Jacobian(Scaled(3, 2).double(), [torch.randn(4, 3).double()], wrt=wrt, preflight=False)
    assert J.adjoint_error() < 1e-14
    with pytest.raises(ValueError, match="samples of a batch meet in the model"):
        J.squared_norms()


def test_infinite_derivative_is_named():
    class Root(nn.Module):
        def forward(self, x):
            return x.abs().sqrt()

    x = torch.ones(4, 2).double()
    J = spectral.Jacobian(Root(), [x, x - 1], wrt="inputs")
    with pytest.raises(ValueError, match=r"batch 1, where the derivative of sqrt in the model \(Root\) is not finite"):
        J.T @ torch.ones(16).double()


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"of": "logit"}, ValueError, r"of='logit'.*logits, probs, loss"),
        ({"wrt": "weights"}, ValueError, r"wrt='weights'.*'params'.*'inputs'"),
        ({"layout": "flat"}, ValueError, r"layout='flat' is not known; use one of stacked, flattened"),
        ({"layout": "flattened"}, ValueError, r"'flattened' is for wrt='inputs'"),
        ({"engine": "fast"}, ValueError, r"engine='fast'.*auto, fresh, replay, double-backward"),
        ({"of": "loss"}, ValueError, r"loss=None means the model's own loss, which needs mappings with labels"),
        ({"of": "loss", "loss": "mse"}, TypeError, r"loss is a str.*torch loss module"),
        ({"params": ["nothing*"]}, ValueError, r"'nothing\*' matches no parameter; the names are 0.weight"),
        ({"params": "0.*"}, TypeError, r"string; pass a list.*\['0\.\*'\]"),
        ({"params": []}, ValueError, r"params=\[\] names no parameter"),
        ({"wrt": "inputs", "params": ["*"]}, ValueError, r"params= restricts wrt='params'"),
        ({"product_dtype": torch.int32}, TypeError, r"product_dtype=torch.int32 is no floating dtype"),
        ({"product_dtype": torch.ones(1)}, TypeError, r"is no floating dtype"),
        ({"layouts": "stacked"}, TypeError, r"unexpected keyword argument 'layouts'"),
        ({"forward": lambda m, b: m(b[0]).sum()}, ValueError, r"first axis must be the 2 samples"),
        ({"forward": lambda m, b: m(b[0]).T}, ValueError, r"\(3, 2\).*first axis must be the 2 samples"),
        ({"forward": lambda m, b: (m(b[0]), 1)}, TypeError, r"returns a tuple without logits; pass forward="),
        ({"of": lambda out, b: out.argmax(1)}, TypeError, r"int64, which has no real derivative"),
    ],
)
def test_wrong_options_are_one_sentence(options, error, words):
    case = CASES["mlp"]
    with pytest.raises(error, match=words) as caught:
        spectral.Jacobian(case.network(), case.batches(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [lambda: torch.ones(30).double(), lambda: torch.ones(15, 1).double()])
def test_wrong_shapes_say_the_right_ones(make):
    case = CASES["mlp"]
    J = spectral.Jacobian(case.network(), case.batches())
    with pytest.raises(ValueError, match=r"shape \(15, 31\) with an array of shape .* use \(31,\) or \(31, b\)"):
        J @ make()


def test_nothing_is_cast_silently():
    case = CASES["mlp"]
    J = spectral.Jacobian(case.network(), case.batches())
    for array in (torch.ones(31), np.ones(31, np.float32), torch.ones(31, dtype=torch.int64), torch.ones(31) * 1j):
        with pytest.raises(TypeError, match=r"convert the array to torch.float64"):
            J @ array


def test_flattened_needs_one_number_of_outputs():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.w * x.repeat(1, 3 - len(x))

    with pytest.raises(ValueError, match=r"one number of outputs per sample, got \[3, 6\]"):
        spectral.Jacobian(Wide(), [torch.ones(1, 3), torch.ones(2, 3)], wrt="inputs", layout="flattened")


def test_products_work_under_no_grad_and_keep_gradient_mode():
    case = CASES["mlp"]
    model, batches = case.network(), case.batches()
    D = dense_jacobian(model, batches, logits)
    with torch.no_grad():
        assert_is(spectral.Jacobian(model, batches), D)
        assert not torch.is_grad_enabled()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode.* leave it"):
        spectral.Jacobian(model, batches)


def test_vector_with_a_graph_is_refused_and_without_one_gives_a_product_without():
    case = CASES["mlp"]
    J = spectral.Jacobian(case.network(), case.batches())
    v, u = (torch.ones(n).double().requires_grad_() for n in (31, 15))
    for A, x in ((J, v), (J.T, u)):
        with pytest.raises(TypeError, match=r"pass array.detach\(\)"):
            A @ x
        assert not (A @ x.detach()).requires_grad
        with torch.no_grad():
            assert not (A @ x).requires_grad


@pytest.mark.parametrize("name", ["batch-norm", "attention"])
def test_rows_one_by_one_are_the_same(name, monkeypatch):
    case = CASES[name]
    model, batches = case.network(), case.batches()
    J = spectral.Jacobian(model, batches)
    rows = per_sample.Gradients._vectorised
    monkeypatch.setattr(
        per_sample.Gradients, "_vectorised", lambda *a: [0 * g for g in rows(*a)]
    )  # vmap gives nonsense
    D = dense_jacobian(model, batches, logits)
    assert_is(J, D)
    told = J.describe()
    assert told["rows"] == "one by one" and "vmap differs" in told["rows_reason"]


@pytest.mark.parametrize("change", [lambda g: g.flip(0), lambda g: -g])
def test_rows_of_another_order_or_sign_are_seen_before_vmap_makes_them(change, monkeypatch):
    case = CASES["mlp"]
    model, batches = case.network(), case.batches()
    rows = per_sample.Gradients._vectorised
    monkeypatch.setattr(per_sample.Gradients, "_vectorised", lambda *a: [change(g) for g in rows(*a)])
    J = spectral.Jacobian(model, batches)
    assert_is(J, dense_jacobian(model, batches, logits))
    assert "vmap differs" in J.describe()["rows_reason"]


@pytest.mark.parametrize("gradients", [0, 2, 4])  # of three outputs: less than one sample's at a time, or a little more
def test_rows_stand_in_their_order_however_little_memory_there_is(gradients, monkeypatch):
    case = CASES["mlp"]
    model, batches = case.network(), case.batches()
    monkeypatch.setattr(per_sample, "ROOM", gradients * 31 * 8)
    rows = torch.cat([block for _, block in spectral.Jacobian(model, batches).rows()])
    assert np.allclose(rows, dense_jacobian(model, batches, logits), rtol=1e-12)


def test_shuffling_loader_is_one_fixed_matrix():
    case: Case = CASES["mlp"]
    loader = DataLoader(TensorDataset(*case.data(7)), batch_size=3, shuffle=True)
    J = spectral.Jacobian(case.network(), loader)
    torch.rand(13)  # what happens in between does not matter
    v, u = torch.randn(31).double(), torch.randn(21).double()
    assert close(J @ v, J @ v)
    assert abs(float((J @ v) @ u - v @ (J.T @ u))) < 1e-12
    assert close(
        J.squared_norms().sort().values,
        spectral.Jacobian(case.network(), case.batches((7,))).squared_norms().sort().values,
    )
