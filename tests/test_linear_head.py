"""A head that is multiplied in chunks gives the plain product, holds no logits, and is taken only where logits are its own."""

import pytest
import torch
from test_output_curvature import Causal, peak
from torch import nn
from torch.nn import functional as F

from spectral import Fisher, GaussNewton, blocks

B, T, C, D = 4, 6, 24, 3


class Hidden(nn.Module):
    """x (B, T, d) -> logits (B, T, C), of each token's own cross entropy; `after` is done to them."""

    def __init__(self, after=lambda z: z, bias=True):
        super().__init__()
        self.mix, self.head, self.after = nn.Linear(D, D), nn.Linear(D, C, bias=bias), after

    def forward(self, x):
        return self.after(self.head(self.mix(x).tanh()))


def transposed(z):
    return z.transpose(1, 2)  # where torch's cross entropy wants its classes


def plain(A):
    """The same operator without its head."""
    A.network.head = None
    return A


def own(classes=C, dtype=torch.float64, **options):
    ids = torch.randint(classes, (B, T))
    batch = {"input_ids": ids, "labels": ids.masked_fill(ids % 5 == 2, -100)}
    return Causal(classes, D, **options).to(dtype), None, [batch]


def module(loss=nn.CrossEntropyLoss(), after=transposed, bias=True, dtype=torch.float64):  # noqa: B008
    y = torch.randint(C, (B, T))
    y[0, :2] = -100
    return Hidden(after, bias).to(dtype), loss, [(torch.randn(B, T, D, dtype=dtype), y)]


CASES = {
    "tied": lambda dtype: own(tied=True, dtype=dtype),
    "untied with a bias": lambda dtype: own(dtype=dtype),
    "torch's loss": lambda dtype: module(dtype=dtype),
    "weights and smoothing": lambda dtype: module(
        nn.CrossEntropyLoss(weight=torch.linspace(0, 2, C), label_smoothing=0.2), dtype=dtype
    ),
}


ENGINES = ["fresh", "double-backward", "replay"]


@pytest.mark.parametrize(
    "case, make, engine, dtype",
    [
        *((case, GaussNewton, engine, torch.float64) for case in CASES for engine in ENGINES),
        *((case, GaussNewton, "double-backward", torch.float32) for case in CASES),
        *((case, Fisher, "fresh", torch.float64) for case in CASES),
    ],
)
def test_products_in_chunks_are_the_plain_ones(case, make, engine, dtype, monkeypatch):
    torch.manual_seed(0)
    model, loss, data = CASES[case](dtype)
    monkeypatch.setattr("spectral.longvectors.CHUNK", 5 * C)
    A, expected = make(model, loss, data, engine=engine), plain(make(model, loss, data, engine=engine))
    assert A.describe()["head_in_chunks"] == "head" and "head_in_chunks" not in expected.describe()
    for _ in range(5):
        v = torch.randn(A.shape[1], dtype=dtype)
        right = expected @ v
        assert (A @ v - right).norm() <= (1e-12 if dtype == torch.float64 else 1e-6) * right.norm()
    assert A.describe()["engine"] == engine


@pytest.mark.parametrize("params", [["head.weight"], ["mix.*", "head.bias"], ["embedding.*"]])
def test_products_in_chunks_of_some_parameters(params, monkeypatch):
    """Any of h, W and b may be what does not vary."""
    torch.manual_seed(0)
    model, loss, data = own()
    monkeypatch.setattr("spectral.longvectors.CHUNK", 5 * C)
    A, expected = (GaussNewton(model, loss, data, params=params, engine="double-backward") for _ in range(2))
    v, right = torch.randn(A.shape[1], dtype=torch.float64), plain(expected)
    assert A.network.head == "head" and (A @ v - right @ v).norm() <= 1e-12 * (right @ v).norm() > 0


def test_blocks_of_vectors_and_of_parameters_go_through_the_head(monkeypatch):
    torch.manual_seed(0)
    model, loss, data = own(tied=True)
    monkeypatch.setattr("spectral.longvectors.CHUNK", 5 * C)
    A, expected = GaussNewton(model, loss, data, engine="replay"), plain(GaussNewton(model, loss, data, memory=0))
    V = torch.randn(A.shape[1], 2, dtype=torch.float64)
    right = expected @ V
    for _ in range(12):
        assert torch.allclose(A @ V, right, atol=1e-12)
    assert "vmap" in A.describe()["block"]
    part, there = blocks(A)["embedding.weight"], blocks(expected)["embedding.weight"]
    v = torch.randn(part.shape[1], dtype=torch.float64)
    assert "head_in_chunks" in part.describe() and torch.allclose(part @ v, there @ v, atol=1e-12)


def test_kept_probabilities_are_those_of_the_model_of_now():
    torch.manual_seed(0)
    model, loss, data = own()
    A = GaussNewton(model, loss, data)
    v = torch.randn(A.shape[1], dtype=torch.float64)
    for _ in range(2):
        assert torch.allclose(A @ v, plain(GaussNewton(model, loss, data)) @ v, atol=1e-13)
        with torch.no_grad():
            model.head.weight.mul_(1.5)


def test_batches_of_several_lengths_go_through_the_head():
    torch.manual_seed(0)
    model, loss, (batch,) = own()
    data = [{key: value[:3] for key, value in batch.items()}, {key: value[3:, :4] for key, value in batch.items()}]
    A, expected = GaussNewton(model, loss, data), plain(GaussNewton(model, loss, data))
    v = torch.randn(A.shape[1], dtype=torch.float64)
    assert A.network.head == "head" and torch.allclose(A @ v, expected @ v, atol=1e-13)


# Where it is taken ----------------------------------------------------------------------------------------------------
class Elsewhere(Hidden):
    """Some batches' logits are not the head's."""

    def forward(self, x):
        z = super().forward(x)
        return z if x.sum() > 0 else z * 2


class Twice(Hidden):
    """The head is called once more."""

    def forward(self, x):
        self.head(self.mix(x))
        return super().forward(x)


class Mixed(Hidden):
    """Logits in another dtype than the head's inputs."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def touched(z):
    """Other values of a token that is not compared, in place."""
    z[:, 1] *= 2
    return z


def doubled(model):
    """A hook of the user's that changes what the head gives."""
    model.head.register_forward_hook(lambda layer, args, z: 2 * z)
    return model


def steeper(model):
    """The head's values with twice its derivative in h."""
    model.head.forward = lambda h: F.linear(2 * h - h.detach(), model.head.weight, model.head.bias)
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda: Hidden(lambda z: transposed(2 * z)),
        lambda: Hidden(lambda z: transposed(z.mul_(2))),
        lambda: Hidden(lambda z: transposed(touched(z))),
        lambda: Hidden(lambda z: transposed(z[..., : C - 1])),
        lambda: Hidden(lambda z: z.view(B, C, T)),
        lambda: Twice(transposed),
        lambda: Elsewhere(transposed),
        lambda: Hidden(lambda z: transposed(2 * z - z.detach())),
        lambda: doubled(Hidden(transposed)),
    ],
)
def test_logits_that_are_not_the_heads_are_multiplied_plainly(change):
    torch.manual_seed(0)
    model = change().double()
    x, y = torch.randn(2 * B, T, D, dtype=torch.float64), torch.randint(C - 1, (2 * B, T))
    x[B:] -= 3
    data = [(x[:B], y[:B]), (x[B:], y[B:])]
    A = GaussNewton(model, nn.CrossEntropyLoss(), data, preflight=False)
    expected = GaussNewton(model, lambda z, b: (F.cross_entropy(z, b[1], reduction="sum"), b[1].numel()), data)
    v = torch.randn(A.shape[1], dtype=torch.float64)
    assert A.network.head is None and torch.allclose(A @ v, expected @ v, atol=1e-13)


def test_transposed_pictures_are_not_the_heads():
    """Of which the first places are the same."""
    torch.manual_seed(0)
    x, y = torch.randn(B, 3, 3, D, dtype=torch.float64), torch.randint(C, (B, 3, 3))
    A = GaussNewton(Hidden(lambda z: z.transpose(1, 2).movedim(-1, 1)).double(), nn.CrossEntropyLoss(), [(x, y)])
    assert A.network.head is None
    A = GaussNewton(Hidden(lambda z: z.movedim(-1, 1)).double(), nn.CrossEntropyLoss(), [(x, y)])
    v = torch.randn(A.shape[1], dtype=torch.float64)
    assert A.network.head == "head"
    product = A @ v
    assert torch.allclose(product, plain(GaussNewton(A.network.model, nn.CrossEntropyLoss(), [(x, y)])) @ v, atol=1e-13)


def test_logits_in_another_dtype_are_multiplied_plainly():
    torch.manual_seed(0)
    _, loss, data = module(dtype=torch.float32)
    assert GaussNewton(Mixed(transposed), loss, data, preflight=False).network.head is None


def shifted(model):
    """The head's values, which move with a parameter that is not the head's."""
    model.shift = nn.Parameter(torch.zeros(C, dtype=torch.float64))
    own = model.head.forward
    model.head.forward = lambda h: own(h) + model.shift
    return model


@pytest.mark.parametrize("change", [steeper, shifted])
def test_a_head_whose_derivative_is_another_is_said(change):
    torch.manual_seed(0)
    model, loss, data = module()
    A = GaussNewton(change(model), loss, data)
    assert A.network.head is None
    assert A.describe()["untested"].startswith("the head in chunks: its derivative is off by ")


def test_layers_with_more_than_a_weight_and_a_bias_are_no_heads():
    """Adapters begin with values that change nothing."""

    class Adapted(nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.down, self.up = nn.Linear(sizes[0], 2), nn.Linear(2, sizes[1])
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

        def forward(self, h):
            return super().forward(h).add_(self.up(self.down(h)))

    torch.manual_seed(0)
    model, loss, data = module()
    model.head = Adapted(D, C).double()
    assert GaussNewton(model, loss, data, preflight=False).network.head is None


def test_narrow_heads_are_multiplied_whole():
    """Whose logits are no larger than what is kept below them."""
    x, y = torch.randn(B, 8), torch.randint(31, (B,))
    assert GaussNewton(nn.Linear(8, 31), nn.CrossEntropyLoss(), [(x, y)]).network.head is None
    assert GaussNewton(nn.Linear(8, 32), nn.CrossEntropyLoss(), [(x, y)]).network.head == ""


def test_a_forward_pass_that_leaves_the_head_out_is_one_sentence():
    torch.manual_seed(0)
    model, loss, data = module()
    A = GaussNewton(model, loss, data)
    model.forward = lambda x: transposed(F.linear(model.mix(x), model.head.weight))
    with pytest.raises(
        ValueError, match="no longer calls the head that it called in the first sweep; build the operator"
    ):
        A @ torch.ones(A.shape[1], dtype=torch.float64)


def test_a_model_that_handles_exceptions_is_left_at_its_head_all_the_same():
    class Careful(Hidden):
        def forward(self, x):
            try:
                return super().forward(x)
            except Exception:
                return self.after(self.head(x))

    torch.manual_seed(0)
    _, loss, data = module()
    A = GaussNewton(Careful(transposed).double(), loss, data, preflight=False)
    v = torch.randn(A.shape[1], dtype=torch.float64)
    expected = plain(GaussNewton(A.network.model, loss, data)) @ v
    assert A.network.head == "head" and torch.allclose(A @ v, expected, atol=1e-13)


# What it holds --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine, memory, most", [("fresh", 0, 0.25), ("double-backward", None, 1.2)])
def test_a_product_holds_at_most_1_2_logits_tensors_and_none_where_nothing_is_kept(engine, memory, most):
    """V = 128 000; a vector is 1.6 % of the logits. The plain way held 10."""
    torch.manual_seed(0)
    V = 128_000
    ids = torch.randint(V, (8, 16))
    batch = {"input_ids": ids, "labels": ids}
    A = GaussNewton(Causal(V, 2, tied=True), None, [batch], engine=engine, memory=memory, preflight=False)
    v = torch.randn(A.shape[1])
    for _ in range(2):
        assert peak(lambda: A @ v) <= most * ids.numel() * V * 4
