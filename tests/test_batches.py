"""What users bring as data and models: mappings in tuples, dataclasses, NumPy, loaders, exported programs, mixed dtypes."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import dense_jacobian
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import spectral
from spectral.networks.batches import Samples
from spectral.networks.trees import map_tensors, repacked, tensors

DOUBLE = torch.float64
N = 6


@dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    label: torch.Tensor
    note: str = "kept"


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x, scale=1.0, note=""):
        return self.net(x) * scale


class Pair(ByName):
    def forward(self, a, b):
        return self.net(a) + self.net(b).sin()


torch.manual_seed(0)
X, Y = torch.randn(N, 3, dtype=DOUBLE), torch.randint(3, (N,))
KINDS = {
    "mapping": lambda x, y: {"x": x, "labels": y},
    "target": lambda x, y: {"x": x, "target": y},
    "mapping with options": lambda x, y: {"x": x, "y": y, "scale": 1.0},
    "mapping in a tuple": lambda x, y: ({"x": x}, y),
    "mapping in a list": lambda x, y: [{"x": x}, y],
    "dataclass": Batch,
    "dataclass in a tuple": lambda x, y: (Batch(x, y), y),
    "plain object": lambda x, y: SimpleNamespace(x=x, label=y),
    "numpy": lambda x, y: (x.numpy(), y.numpy()),
    "numpy in a mapping": lambda x, y: {"x": x.numpy(), "labels": y.numpy()},
    "read-only numpy": lambda x, y: (np.broadcast_to(x.numpy(), x.shape), y.numpy()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_many_kinds_give_one_matrix(kind):
    torch.manual_seed(0)
    model = ByName().double()
    data = [KINDS[kind](X[:4], Y[:4]), KINDS[kind](X[4:], Y[4:])]
    plain = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    loss = nn.CrossEntropyLoss()
    for make in (
        lambda d: spectral.Hessian(model, loss, d),
        lambda d: spectral.Jacobian(model, d, wrt="inputs", layout="flattened"),
        lambda d: spectral.Jacobian(model, d, of="loss", loss=loss),
    ):
        A, B = make(data), make(plain)
        V = torch.randn(A.shape[1], 2, dtype=DOUBLE)
        assert torch.allclose(A @ V, B @ V, atol=1e-12)
    assert spectral.Jacobian(model, data).squared_norms().shape == (N,)


def test_two_inputs_and_a_label():
    model, b = Pair().double(), torch.randn(N, 3, dtype=DOUBLE)
    H = spectral.Hessian(model, nn.CrossEntropyLoss(), [(X[:4], b[:4], Y[:4]), (X[4:], b[4:], Y[4:])])
    params = list(model.parameters())
    v = torch.randn(H.shape[1], dtype=DOUBLE)
    g = torch.autograd.grad(F.cross_entropy(model(X, b), Y), params, create_graph=True)
    right = torch.autograd.grad(torch.cat([p.reshape(-1) for p in g]) @ v, params)
    assert torch.allclose(H @ v, torch.cat([p.reshape(-1) for p in right]), atol=1e-12)
    with pytest.raises(ValueError, match=r"wrt='inputs' differentiates one input, but Pair.forward takes 2"):
        spectral.Jacobian(model, [(X, b)], wrt="inputs")


CALLS = {
    "too few": (
        Pair,
        lambda: (X,),
        r"Pair.forward cannot be called with the first entry of a batch \(missing a required",
    ),
    "unknown name": (ByName, lambda: {"x": X, "index": Y}, r"ByName.forward cannot be called with x, index of a batch"),
    "missing name": (ByName, lambda: {"inputs": X}, r"cannot be called with inputs of a batch"),
}


@pytest.mark.parametrize("kind", CALLS)
def test_batch_that_does_not_fit_the_model_is_one_sentence(kind):
    make, batch, words = CALLS[kind]
    with pytest.raises(TypeError, match=words) as caught:
        spectral.Jacobian(make().double(), [batch()])
    assert "pass forward=lambda model, batch:" in str(caught.value) and "\n" not in str(caught.value)


def test_empty_batches_add_nothing_and_alone_are_refused():
    model, loss = ByName().double(), nn.CrossEntropyLoss()
    v = torch.randn(31, dtype=DOUBLE)
    H = spectral.Hessian(model, loss, [(X[:0], Y[:0]), (X, Y), (X[:0], Y[:0])])
    assert torch.allclose(H @ v, spectral.Hessian(model, loss, [(X, Y)]) @ v) and H.describe()["batches"] == 1
    with pytest.raises(ValueError, match="data holds no batches, or empty ones alone"):
        spectral.Hessian(model, loss, [(X[:0], Y[:0])])


@pytest.mark.parametrize("persistent", [False, True])
def test_shuffling_workers_give_one_order(persistent):
    model = ByName().double()
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, num_workers=1, persistent_workers=persistent, shuffle=True)
    H, v = spectral.Hessian(model, nn.CrossEntropyLoss(), loader), torch.randn(31, dtype=DOUBLE)
    right = spectral.Hessian(model, nn.CrossEntropyLoss(), [(X, Y)]) @ v
    before = torch.get_rng_state()
    assert torch.allclose(H @ v, right, atol=1e-12) and torch.allclose(H @ v, right, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("built", ["before", "inside"])
def test_a_pass_of_yours_goes_on_whatever_is_multiplied_in_it(built):
    """torch has one iterator for a loader whose workers persist: a product left it at its end, and the epoch with it."""
    model = ByName().double()
    loader = DataLoader(TensorDataset(X, Y), batch_size=2, num_workers=1, persistent_workers=True, shuffle=True)
    right, v = spectral.Hessian(model, nn.CrossEntropyLoss(), [(X, Y)]), torch.randn(31, dtype=DOUBLE)
    H = spectral.Hessian(model, nn.CrossEntropyLoss(), loader) if built == "before" else None
    seen, before = [], torch.get_rng_state()
    for i, (x, _) in enumerate(loader):
        drawn = torch.get_rng_state()
        seen.append(x)
        if i < 2:
            H = H or spectral.Hessian(model, nn.CrossEntropyLoss(), loader)
            assert torch.allclose(H @ v, right @ v, atol=1e-12) and torch.equal(torch.get_rng_state(), drawn)
    assert not torch.equal(before, drawn)
    assert torch.equal(torch.cat(seen).sort(0)[0], X.sort(0)[0])
    assert torch.allclose(H @ v, right @ v, atol=1e-12)


@pytest.mark.parametrize("preflight", [True, False])
@pytest.mark.parametrize("copies", [False, True])
def test_batches_of_one_buffer_are_told_or_copied(preflight, copies):
    """A loader that writes each batch over the one before: a batch is what it was when it was read, or one sentence."""
    model, x, y = nn.Linear(3, 4), torch.randn(6, 3), torch.randint(4, (6,))

    class Buffer:
        def __iter__(self):
            z, t = torch.empty_like(x[:2]), torch.empty_like(y[:2])
            for i in (0, 2, 4):
                z.copy_(x[i : i + 2]), t.copy_(y[i : i + 2])
                yield (z.clone(), t.clone()) if copies else (z, t)

    if copies:
        plain = [(x[i : i + 2], y[i : i + 2]) for i in (0, 2, 4)]
        A, B = (
            spectral.GaussNewton(model, nn.CrossEntropyLoss(), data, preflight=preflight) for data in (Buffer(), plain)
        )
        v = torch.randn(16)
        assert torch.allclose(A @ v, B @ v, rtol=1e-5)
        return
    with pytest.raises(ValueError, match=r"write later batches over it, .*; let them give copies"):
        spectral.Hessian(model, nn.CrossEntropyLoss(), Buffer(), preflight=preflight) @ torch.ones(16)


def test_one_changed_entry_of_the_data_is_seen():
    x = torch.randn(40, 300)
    J = spectral.Jacobian(nn.Linear(300, 2), [x])
    x[17, 123] += 1e-3
    with pytest.raises(ValueError, match="batch 0 is not what it was in the first sweep"):
        J @ torch.ones(602)


def test_flags_of_the_users_data_stay():
    x = torch.randn(4, 3)

    def forward(model, batch):
        return model(batch.requires_grad_())

    J = spectral.Jacobian(nn.Linear(3, 2), [x], forward=forward)
    J @ torch.ones(8)
    assert not x.requires_grad


# Parameters ----------------------------------------------------------------------------------------------------------
def test_parameters_by_globs_tensors_and_modules():
    model = ByName().double()
    J = spectral.Jacobian(model, [X])
    D = J @ torch.eye(31, dtype=DOUBLE)
    choices = {
        "all": (list(model.parameters()), slice(0, 31)),
        "generator": (model.parameters(), slice(0, 31)),
        "module": (model.net[0], slice(0, 16)),
        "module in a list": ([model.net[2]], slice(16, 31)),
        "tensor": (model.net[0].bias, slice(12, 16)),
        "mixture": (["net.2.bias", model.net[0]], [*range(16), *range(28, 31)]),
    }
    for name, (params, columns) in choices.items():
        K = spectral.Jacobian(model, [X], params=params)
        assert torch.allclose(K @ torch.eye(K.shape[1], dtype=DOUBLE), D[:, columns], atol=1e-13), name
    for wrong, words in (
        (torch.ones(3), r"a tensor of shape \(3,\) that is no parameter"),
        (nn.Linear(2, 2), "a Linear that"),
    ):
        with pytest.raises(ValueError, match=words):
            spectral.Jacobian(model, [X], params=[wrong])
    with pytest.raises(TypeError, match="must hold name globs, parameters or modules, got a int"):
        spectral.Jacobian(model, [X], params=[3])


def test_tied_parameter_under_either_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    J = spectral.Jacobian(model, [X], params=[model[2]])
    assert J.network.names == ["0.weight", "2.bias"]


# Models --------------------------------------------------------------------------------------------------------------
def test_exported_programs():
    model = ByName().double()
    program = torch.export.export(model, (X[:3],))
    right = dense_jacobian(model, [X], lambda m, batch: m(batch))
    J = spectral.Jacobian(program.module(), [X[:3], X[3:]])
    assert torch.allclose(J @ torch.eye(31, dtype=DOUBLE), right, atol=1e-12)
    assert "copies of one sample alone" in J.describe()["untested"]  # it takes three samples, and no other number
    with pytest.raises(TypeError, match=r"model is a ExportedProgram; pass program.module\(\)"):
        spectral.Jacobian(program, [X])


class Mixed(nn.Module):
    """bf16 weights with float32 norms, as large models are kept."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 8).bfloat16(), nn.LayerNorm(8), nn.Linear(8, 3).bfloat16()

    def forward(self, x):
        return self.b(self.norm(self.a(x.bfloat16()).float()).bfloat16()).float()


class Fine(Mixed):
    def forward(self, x):
        return self.b(self.norm(self.a(x)))


def test_mixed_dtypes_of_parameters():
    model, fine = Mixed(), Fine()
    fine.load_state_dict(model.state_dict())
    x = X.float().bfloat16().float()
    J, D = spectral.Jacobian(model, [x]), dense_jacobian(fine.double(), [x.double()], lambda m, b: m(b))
    V = torch.randn(J.shape[1], 3)
    assert J.dtype == torch.float32 and J.describe()["computes_in"] == "bfloat16"
    assert (J @ V - (D @ V.double())).norm() < 2e-2 * (D @ V.double()).norm()
    H, K = (spectral.Hessian(m, nn.CrossEntropyLoss(), [(data, Y)]) for m, data in ((model, x), (fine, x.double())))
    assert (H @ V - K @ V.double()).norm() < 5e-2 * (K @ V.double()).norm()
    with pytest.raises(TypeError, match=r"the model does not run in product_dtype=torch.float32 \(mat1 and mat2"):
        spectral.Jacobian(model, [x], product_dtype=torch.float32)  # it casts by itself


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_those_of_the_dense_embedding(make):
    class Bag(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.head = make(7, 3, sparse=sparse), nn.Linear(3, 4)

        def forward(self, tokens):
            h = self.embed(tokens)
            return self.head(torch.tanh(h.mean(1) if h.ndim == 3 else h))

    tokens = torch.randint(0, 7, (N, 5))
    sparse, plain = Bag(True).double(), Bag(False).double()
    J, K = spectral.Jacobian(sparse, [tokens[:4], tokens[4:]]), spectral.Jacobian(plain, [tokens])
    u = torch.randn(J.shape[0], dtype=DOUBLE)
    assert torch.allclose(J.T @ u, K.T @ u, atol=1e-12)
    v = torch.randn(J.shape[1], dtype=DOUBLE)
    loss = nn.CrossEntropyLoss()
    H, G = (spectral.Hessian(m, loss, [(tokens, Y)]) for m in (sparse, plain))
    assert torch.allclose(H @ v, G @ v, atol=1e-12)
    assert sparse.embed.sparse


# Batch norm in the statistics of each batch -----------------------------------------------------------------------------
def normed(track=True):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=track), nn.Tanh(), nn.Dropout(0.0), nn.Linear(4, 3)
    ).double()


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def curvature(model, loss, kind, batches):
    """Through the model in train mode: d2 of the summed losses over n, or J^T H J with each batch's outputs."""
    params, total = list(model.parameters()), 0
    model.train()
    for x, y in batches:
        z = model(x)
        if kind is spectral.Hessian:
            g = flat(torch.autograd.grad(loss(z, y) * len(x), params, create_graph=True))
            total = total + torch.stack([flat(torch.autograd.grad(e, params, retain_graph=True)) for e in g])
        else:
            p = z.detach().softmax(1)
            J = torch.stack([flat(torch.autograd.grad(e, params, retain_graph=True)) for e in z.reshape(-1)])
            total = total + J.T @ torch.block_diag(*[torch.diag(q) - q[:, None] * q for q in p]) @ J
    return total / sum(len(x) for x, _ in batches)


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("kind", [spectral.Hessian, spectral.GaussNewton, spectral.Fisher])
def test_batch_norm_as_training_sees_it(kind, track):
    model, data, loss = normed(track), [(X[:4], Y[:4]), (X[4:], Y[4:])], nn.CrossEntropyLoss()
    right = curvature(normed(track), loss, kind, data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    A = kind(model, loss, data, statistics="batch")
    V = torch.randn(A.shape[1], 3, dtype=DOUBLE)
    for _ in range(3):
        assert torch.allclose(A @ V, right @ V, atol=1e-11)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and model.training
    described = A.describe()
    assert described["statistics"] == "batch" and "batches_joined" not in described
    if track:
        other = kind(model, loss, data)
        assert not torch.allclose(other @ V, right @ V, atol=1e-3) and "statistics" not in other.describe()
    else:
        with pytest.raises(ValueError, match=r"without running statistics.*or statistics='batch'"):
            kind(model, loss, data)


def test_rows_of_single_samples_have_no_statistics_of_a_batch():
    model, loss = normed(), nn.CrossEntropyLoss()
    J = spectral.Jacobian(model, [X], statistics="batch")
    J @ torch.ones(J.shape[1], dtype=DOUBLE)
    for action in (J.squared_norms, lambda: list(J.rows()), lambda: J.squared_norms(exact=False)):
        with pytest.raises(ValueError, match="statistics='batch' couples the samples of a batch"):
            action()
    for make in (
        lambda: spectral.Jacobian(model, [X], statistics="batch", wrt="inputs"),
        lambda: spectral.Jacobian(model, [(X, Y)], statistics="batch", of="loss", loss=loss),
        lambda: spectral.EmpiricalFisher(model, loss, [(X, Y)], statistics="batch"),
    ):
        with pytest.raises(ValueError, match="statistics='batch' couples the samples of a batch"):
            make()
    with pytest.raises(ValueError, match="statistics='batch' is for models with batch norm"):
        spectral.Hessian(ByName().double(), loss, [(X, Y)], statistics="batch")
    with pytest.raises(ValueError, match="statistics='train' is not known; use one of population, batch"):
        spectral.Hessian(model, loss, [(X, Y)], statistics="train")


# Trees and samples ----------------------------------------------------------------------------------------------------
def test_trees_are_rebuilt_in_their_kinds():
    tree = {"a": [X, (Y, None)], "b": Batch(X, Y), "c": SimpleNamespace(z=X, w=3)}
    doubled = map_tensors(lambda t: t * 2, tree)
    assert type(doubled["b"]) is Batch and doubled["b"].note == "kept" and doubled["c"].w == 3
    assert [torch.equal(a, 2 * b) for a, b in zip(tensors(doubled), tensors(tree), strict=True)] == [True] * 5
    assert map_tensors(lambda t: t, tree) is tree


def test_an_object_of_a_tree_is_one_in_the_new_tree():
    """Thirty records that all refer to one another: by every path they would be 30! of them."""
    records = [SimpleNamespace(x=X, others=[]) for _ in range(30)]
    for one in records:
        one.others.extend(other for other in records if other is not one)
    free = SimpleNamespace(w=3)
    new = map_tensors(lambda t: 2 * t, {"a": records[0], "b": records[1], "c": free})
    assert new["a"].others[0] is new["b"] and new["b"].others[0] is new["a"] and new["c"] is free
    assert len(tensors(new)) == 30 and torch.equal(new["b"].others[5].x, 2 * X) and records[0].others[0] is records[1]
    other = repacked((Batch(X, records), Y))[0]
    assert other.x is X and other.label is not records and other.label[0] is records[0]


def test_what_an_object_of_a_batch_leads_back_to_is_differentiated():
    scene = SimpleNamespace(x=X)
    scene.nodes = [SimpleNamespace(scene=scene)]
    layer = nn.Linear(3, 2).double()
    J = spectral.Jacobian(
        layer, [scene], wrt="inputs", layout="flattened", forward=lambda m, batch: m(batch.nodes[0].scene.x)
    )
    assert torch.allclose(J @ torch.eye(J.shape[1], dtype=DOUBLE), layer.weight.reshape(1, 6).expand(N, 6))


def test_samples_of_a_batch():
    samples, batch = Samples(("w",)), {"w": torch.ones(2), "x": torch.arange(4.0), "y": torch.arange(4), "s": 1.0}
    assert samples.size(batch) == 4 and samples.rows(batch, 4, 1, 3)["x"].tolist() == [1.0, 2.0]
    parts, rebuild = samples.apart(batch, 4)
    assert len(parts) == 2 and rebuild([-p for p in parts])["x"].tolist() == [0.0, -1.0, -2.0, -3.0]
    assert samples.signature(batch) is None  # w belongs to no sample, so that batches are not joined
    free = {"x": torch.arange(4.0), "s": 1.0}
    assert Samples().joined([free, free])["x"].shape == (8,) and Samples().signature(free) is not None
