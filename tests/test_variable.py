"""Curvature and Jacobians of inputs and of a module's output equal torch.autograd.functional on a hand-split model."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import functional

import spectral
from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian, blocks

N, D, K = 5, 3, 3
CURVATURES = (Hessian, GaussNewton, Fisher, EmpiricalFisher)


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, K)).double()
    return model, torch.randn(N, D).double(), torch.tensor([0, 2, 1, 1, -100])


def split(model, wrt, x):
    """(the variable, what the model makes of it), cut by hand."""
    if wrt == "inputs":
        return x, model
    at = int(wrt.removeprefix("module:")) + 1
    return model[:at](x).detach(), model[at:]


def oracle(matrix, head, h, y, loss):
    """(n, d, n, d) of torch's own mean loss on all data at once."""
    z = head(h).detach()
    count = (y != -100).sum() if isinstance(loss, nn.CrossEntropyLoss) else y.numel()
    if matrix is Hessian:
        return functional.hessian(lambda t: loss(head(t), y), h).reshape(N, -1, N, h[0].numel())
    J = functional.jacobian(head, h).reshape(z.numel(), h.numel())
    if matrix is EmpiricalFisher:
        each = [functional.jacobian(lambda t, i=i: loss(head(t)[i : i + 1], y[i : i + 1]) * (y[i : i + 1] != -100).sum()
                                    if y[i] != -100 else 0 * t.sum(), h).reshape(-1) for i in range(N)]  # fmt: skip
        G = torch.stack(each)
        return (G.T @ G / count).reshape(N, -1, N, h[0].numel())
    H = functional.hessian(lambda t: loss(t, y), z).reshape(z.numel(), -1)
    return (J.T @ H @ J).reshape(N, -1, N, h[0].numel())


def dense(A):
    return A @ torch.eye(A.shape[1], dtype=A.dtype)


@pytest.mark.parametrize("wrt", ["inputs", "module:1"])
@pytest.mark.parametrize("matrix", CURVATURES)
def test_curvature_of_inputs_and_activations_is_that_of_the_hand_split_model(matrix, wrt):
    model, x, y = network()
    loss = nn.CrossEntropyLoss()
    h, head = split(model, wrt, x)
    due = oracle(matrix, head, h, y, loss)
    for sizes in ([N], [2, 2, 1]):
        data = list(zip(x.split(sizes), y.split(sizes), strict=True))
        A = matrix(model, loss, data, wrt=wrt, engine="fresh")
        each = dense(A)
        assert A.shape == (h.numel(), h.numel())
        assert torch.allclose(each, due.reshape(A.shape), atol=1e-12)
        summed = matrix(model, loss, data, wrt=wrt, layout="summed", engine="fresh")
        assert torch.allclose(dense(summed), due.sum((0, 2)), atol=1e-12)
    assert A.describe()["wrt"] == wrt and A.identity() != summed.identity()


@pytest.mark.parametrize("engine", ["auto", "double-backward", "replay"])
@pytest.mark.parametrize("matrix", [Hessian, GaussNewton])
def test_engines_give_the_curvature_of_activations(matrix, engine):
    model, x, _ = network(1)
    y = torch.randn(N, K).double()
    h, head = split(model, "module:1", x)
    due = oracle(matrix, head, h, y, nn.MSELoss()).reshape(h.numel(), -1)
    A = matrix(model, nn.MSELoss(), [(x[:3], y[:3]), (x[3:], y[3:])], wrt="module:1", engine=engine)
    for _ in range(3):
        assert torch.allclose(dense(A), due, atol=1e-12)


def test_differences_of_gradients_know_the_variable():
    model, x, y = network()
    A = Hessian(model, nn.CrossEntropyLoss(), [(x, y)], wrt="module:1", engine="finite-difference")
    exact = dense(Hessian(model, nn.CrossEntropyLoss(), [(x, y)], wrt="module:1", engine="double-backward"))
    assert torch.allclose(dense(A), exact, atol=1e-6) and 0 < A.describe()["finite_difference"]["error"] < 1e-5


@pytest.mark.parametrize("layout", ["stacked", "flattened"])
def test_jacobian_of_activations_is_that_of_the_hand_split_model(layout):
    model, x, _ = network()
    h, head = split(model, "module:1", x)
    J = functional.jacobian(head, h)[torch.arange(N), :, torch.arange(N)]  # (n, k, d)
    A = Jacobian(model, list(x.split(2)), wrt="module:1", layout=layout, engine="fresh")
    due = J.reshape(N * K, -1) if layout == "stacked" else J.reshape(N, -1)
    assert torch.allclose(dense(A), due) and torch.allclose(A.T @ torch.eye(len(due)).double(), due.T)
    assert torch.allclose(torch.cat([block for _, block in A.rows()]), due)
    assert torch.allclose(A.squared_norms(), J.square().sum((1, 2)))
    assert list(A.unflatten(due[0])) == ["module:1"]


def test_of_the_squared_error_gauss_newton_summed_is_the_gram_of_the_jacobian():
    model, x, _ = network()
    data = [(x, torch.zeros(N, K).double())]
    for wrt in ("inputs", "module:3"):
        G = GaussNewton(model, nn.MSELoss(), data, wrt=wrt, layout="summed", engine="fresh")
        assert torch.allclose(
            dense(G), 2 / (N * K) * dense(Jacobian(model, data, wrt=wrt, engine="fresh").gram("right"))
        )


class Branches(nn.Module):
    """A residual connection around the module, which is written to in place behind it."""

    def __init__(self):
        super().__init__()
        self.inner, self.act, self.out = nn.Linear(D, 4), nn.ELU(inplace=True), nn.Linear(4, K)

    def forward(self, x):
        h = self.inner(x)
        return self.out(2 * h + self.act(h))


def test_a_module_read_twice_and_written_to_in_place_is_one_variable():
    model = Branches().double()
    _, x, y = network()
    h = model.inner(x).detach()
    due = functional.hessian(lambda t: nn.CrossEntropyLoss()(model.out(2 * t + nn.functional.elu(t)), y), h).reshape(
        h.numel(), -1
    )
    hooks = dict(model.inner._forward_hooks)
    assert torch.allclose(dense(Hessian(model, nn.CrossEntropyLoss(), [(x, y)], wrt="module:inner")), due, atol=1e-12)
    assert model.inner._forward_hooks == hooks


def test_the_output_itself_has_the_curvature_of_the_loss():
    model, x, y = network()
    due = functional.hessian(lambda z: nn.CrossEntropyLoss()(z, y), model(x).detach()).reshape(N * K, -1)
    for wrt in ("module:", "module:4"):
        A = GaussNewton(model, nn.CrossEntropyLoss(), [(x, y)], wrt=wrt, engine="fresh")
        assert torch.allclose(dense(A), due, atol=1e-14)


def test_changed_weights_change_the_activations():
    model, x, y = network()
    A = Hessian(model, nn.CrossEntropyLoss(), [(x, y)], wrt="module:1", engine="replay")
    for _ in range(3):
        dense(A)
    with torch.no_grad():
        model[0].weight.mul_(-2)
    h, head = split(model, "module:1", x)
    assert torch.allclose(dense(A), oracle(Hessian, head, h, y, nn.CrossEntropyLoss()).reshape(A.shape), atol=1e-12)


def test_vectors_of_activations_have_the_shape_of_the_activations():
    model, x, y = network()
    A = GaussNewton(model, nn.CrossEntropyLoss(), [(x, y)], wrt="module:1")
    v = torch.arange(float(A.shape[0]), dtype=torch.float64)
    (name, t), *_ = A.unflatten(v).items()
    assert (name, t.shape) == ("module:1", (N, 4)) and torch.equal(A.flatten({name: t}), v)
    summed = GaussNewton(model, nn.CrossEntropyLoss(), [(x, y)], wrt="inputs", layout="summed")
    assert summed.unflatten(torch.ones(D).double())["inputs"].shape == (D,)
    with pytest.raises(TypeError, match="parameters"):
        blocks(A)


class Tokens(nn.Module):
    """A language model's face: embeddings that are asked for, or given."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 2), nn.Linear(2, 7)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids=None, inputs_embeds=None, labels=None):
        h = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        return {"logits": self.out(h.cumsum(1).tanh())}


def test_of_tokens_the_embeddings_are_the_inputs():
    torch.manual_seed(0)
    model = Tokens().double()
    batch = {"input_ids": torch.randint(7, (3, 4)), "labels": torch.randint(7, (3, 4))}
    e = model.embed(batch["input_ids"]).detach()

    def loss(output, there):
        return nn.functional.cross_entropy(
            output["logits"].flatten(0, 1), there["labels"].flatten(), reduction="sum"
        ), 12

    def mean(t):
        logits = model.out(t.cumsum(1).tanh())
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    due = functional.hessian(mean, e).reshape(24, 24)
    for wrt in ("inputs", "module:embed"):
        A = Hessian(model, loss, [batch], wrt=wrt, engine="double-backward")
        assert torch.allclose(dense(A), due, atol=1e-12)
        assert A.unflatten(due[0])[wrt].shape == (3, 4, 2)


def test_float32_activations_are_multiplied_in_float32():
    model, x, y = network()
    A = GaussNewton(model.float(), nn.CrossEntropyLoss(), [(x.float(), y)], wrt="module:1")
    assert A.dtype == torch.float32
    exact = dense(GaussNewton(model.double(), nn.CrossEntropyLoss(), [(x, y)], wrt="module:1", engine="fresh"))
    assert torch.allclose(dense(GaussNewton(model.float(), nn.CrossEntropyLoss(), [(x.float(), y)], wrt="module:1")).double(),
                          exact, atol=1e-6)  # fmt: skip


def test_a_loss_that_reads_the_inputs_is_differentiated_through_them_or_refused():
    model, x, _ = network()

    def rebuilt(output, batch):
        return (output - batch[0].sin()).square().sum(), len(output)

    due = functional.hessian(lambda t: (model(t) - t.sin()).square().sum() / N, x).reshape(N * D, -1)
    data = [(x, x)]
    assert torch.allclose(dense(Hessian(model, rebuilt, data, wrt="inputs")), due, atol=1e-12)
    with pytest.raises(ValueError, match="reads the inputs beside it"):
        GaussNewton(model, rebuilt, data, wrt="inputs")


class Odd(nn.Module):
    """Modules whose outputs are no variable."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.rnn, self.never, self.kind = (
            nn.Linear(D, D),
            nn.GRU(D, K, batch_first=True),
            nn.Linear(D, D),
            kind,
        )

    def forward(self, x):
        h = self.first(x) if self.kind != "flat" else self.first(x[:, None].expand(-1, 2, -1).reshape(-1, D))
        if self.kind == "twice":
            h = self.first(h)
        if self.kind == "flat":
            h = h.reshape(len(x), 2, D).sum(1)
        if self.kind == "detached":
            h = h.detach()
        return self.rnn(h[:, None])[0][:, 0]


@pytest.mark.parametrize(
    ("kind", "wrt", "words"),
    [
        ("", "module:frist", "names no module of Odd; near it are first"),
        ("", "module:rnn", "returns a tuple, but must return a tensor"),
        ("", "module:never", "is never called in the forward pass"),
        ("twice", "module:first", "is called 2 times in one forward pass"),
        ("flat", "module:first", r"of shape \(10, 3\), but must return real numbers whose first axis is the 5 samples"),
        ("detached", "module:first", "change with the output of first but carry no derivative"),
        ("", "weights", "'params', 'inputs' or 'module:NAME'"),
    ],
)
def test_what_is_no_variable_is_refused_in_one_sentence(kind, wrt, words):
    _, x, _ = network()
    model = Odd(kind).double()
    for make in (lambda: Jacobian(model, [x], wrt=wrt), lambda: Hessian(model, nn.MSELoss(), [(x, x)], wrt=wrt)):
        with pytest.raises((ValueError, TypeError), match=words):
            make()
    assert not model.first._forward_hooks


class Noisy(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.out, self.kind = nn.Linear(D, D), nn.Linear(D, K), kind

    def forward(self, x):
        x = x + torch.randn_like(x) if self.kind == "random" else x - x.mean(0)
        return self.out(self.first(x))


@pytest.mark.parametrize(
    ("kind", "words"), [("random", "random in eval mode"), ("meet", "depend on the other samples")]
)
def test_what_happens_before_the_module_is_tested_as_the_rest_is(kind, words):
    _, x, y = network()
    with pytest.raises(ValueError, match=words):
        GaussNewton(Noisy(kind).double(), nn.CrossEntropyLoss(), [(x, y)], wrt="module:first")


def test_keywords_that_do_not_go_together_are_refused():
    model, x, y = network()
    for words, options in (
        ("layout='rows' is not known; use one of block-diagonal, summed", {"layout": "rows"}),
        ("leave it out with wrt='params'", {"layout": "summed"}),
        ("restricts wrt='params'", {"wrt": "inputs", "params": ["0.*"]}),
        ("statistics='batch' couples", {"wrt": "module:0", "statistics": "batch"}),
    ):
        own = nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, K)).double() if "statistics" in options else model
        with pytest.raises(ValueError, match=words):
            Hessian(own, nn.CrossEntropyLoss(), [(x, y)], **options)
    with pytest.raises(ValueError, match="needs inputs of one shape"):
        Hessian(nn.AdaptiveAvgPool1d(1).double(), nn.MSELoss(), [(torch.zeros(1, 1, n).double(), torch.zeros(1, 1, 1).double())
                                                                for n in (2, 3)], wrt="inputs")  # fmt: skip


def test_estimators_know_the_spectrum_of_activations():
    model, x, y = network()
    A = GaussNewton(model, nn.CrossEntropyLoss(), [(x[:2], y[:2]), (x[2:], y[2:])], wrt="module:1")
    due = np.linalg.eigvalsh(dense(A).numpy())
    values = spectral.exact(A).atoms
    assert np.allclose(np.repeat(values.values, values.multiplicities), due, atol=1e-12)
    assert spectral.top(A, 2).values == pytest.approx(due[::-1][:2])
