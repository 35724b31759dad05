"""Modules that are made again in the backward pass: the same matrix, from a graph that keeps less."""

import itertools

import pytest
import torch
from oracles import dense_jacobian, logits
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import spectral
from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian
from spectral.networks import checkpointing
from spectral.networks.diagnose.graph import graph_facts

LOSS = nn.CrossEntropyLoss()
MATRICES = {
    "J": lambda model, data, **o: Jacobian(model, data, **o),
    "J of inputs": lambda model, data, **o: Jacobian(model, data, wrt="inputs", **o),
    "GaussNewton": lambda model, data, **o: GaussNewton(model, LOSS, data, **o),
    "frozen": lambda model, data, **o: GaussNewton(model, LOSS, data, params=["0.*", "3.up.*"], **o),
    "Fisher": lambda model, data, **o: Fisher(model, LOSS, data, draws=2, **o),
    "EmpiricalFisher": lambda model, data, **o: EmpiricalFisher(model, LOSS, data, **o),
}


class Block(nn.Module):
    def __init__(self, up=None):
        super().__init__()
        self.norm, self.up, self.down = nn.BatchNorm1d(6), up or nn.Linear(6, 24), nn.Linear(24, 6)

    def forward(self, x):
        return x + F.gelu(self.down(F.gelu(self.up(self.norm(x))))).tanh()


def deep(*, chain=False):
    """Blocks, two of which share a weight; or a chain of layers."""
    torch.manual_seed(0)
    blocks = [Block() for _ in range(3)]
    blocks.append(Block(blocks[1].up))
    layers = [layer for _ in range(8) for layer in (nn.Linear(6, 6), nn.BatchNorm1d(6), nn.GELU())]
    return nn.Sequential(nn.Linear(5, 6), *(layers if chain else blocks), nn.Linear(6, 3)).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return [(x[:5], torch.arange(5) % 3), (x[5:], torch.arange(3))]


def short(monkeypatch, make):
    """The operator made where next to nothing is free."""
    with monkeypatch.context() as patch:
        patch.setattr(spectral.arrays, "available_memory", lambda device: 0)
        return make()


@pytest.mark.parametrize("name", MATRICES)
def test_it_is_the_same_matrix_and_the_description_says_what_is_made_again(name, monkeypatch):
    model, data = deep(), batches()
    whole, A = MATRICES[name](model, data, engine="fresh"), short(monkeypatch, lambda: MATRICES[name](model, data))
    v, u = torch.randn(A.shape[1]).double(), torch.randn(A.shape[0]).double()
    torch.testing.assert_close(A @ v, whole @ v, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(A.T @ u, whole.T @ u, rtol=1e-11, atol=1e-13)
    said = A.describe()
    assert "made again" in said["made_again"] and said["chunk"] == 1 and "made_again" not in whole.describe()
    assert A.identity() == whole.identity() and not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("chain", [False, True])
def test_samples_that_meet_in_a_batch_norm_are_not_cut_but_their_graph_keeps_less(chain, monkeypatch):
    model, data = deep(chain=chain), batches()
    whole, A = (
        make(lambda: GaussNewton(model, LOSS, data, statistics="batch", engine="fresh"))
        for make in (lambda build: build(), lambda build: short(monkeypatch, build))
    )
    v = torch.randn(A.shape[1]).double()
    torch.testing.assert_close(A @ v, whole @ v, rtol=1e-11, atol=1e-13)
    assert "chunk" not in A.describe() and (" to " in A.describe()["made_again"]) == chain
    function, primals = A.network.function(data[0]), A.network.primals(data[0])
    plain, less = graph_facts(function, primals).bytes, graph_facts(A.network.checkpointed(function), primals).bytes
    assert less < 0.5 * plain and less < A.network.made_again.after < A.network.made_again.before == plain


def test_what_gains_nothing_is_left_as_it_is(monkeypatch):
    model, data = deep(), batches()
    H = short(monkeypatch, lambda: Hessian(model, LOSS, data))  # its gradient's graph keeps what was made again
    J = short(monkeypatch, lambda: Jacobian(model, data, engine="double-backward"))
    one = short(monkeypatch, lambda: GaussNewton(nn.Linear(5, 3).double(), LOSS, data))
    assert not any("made_again" in A.describe() for A in (H, J, one))


def test_a_module_with_a_cache_that_grows_from_call_to_call_is_found_out(monkeypatch):
    class Remembering(Block):
        seen = None

        def forward(self, x):
            self.seen = x if self.seen is None else torch.cat([self.seen, x])
            return super().forward(self.seen)[-len(x) :]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), Remembering(), nn.Linear(6, 3)).double()
    A = short(monkeypatch, lambda: Jacobian(model, batches(), preflight=False))
    assert "made_again" not in A.describe() and "modules made again" in A.describe()["untested"]


def test_a_module_is_called_with_the_parameters_of_its_first_call():
    model, x = deep(), batches()[0][0]
    names = [name for name, _ in model.named_parameters()]

    def function(*values):
        return torch.func.functional_call(model.eval(), dict(zip(names, values, strict=True)), (x,))

    moved = [(p.detach() + 0.1).requires_grad_() for p in model.parameters()]
    chosen = checkpointing.chosen(function, moved, model, ["3.up"])
    assert ("3",) not in chosen.pieces and ("2",) in chosen.pieces  # nothing around what has a hook
    z = function(*moved), checkpointing.checkpointed(function, model, chosen.pieces)(*moved)
    for one, two in zip(*(torch.autograd.grad(out.square().sum(), moved) for out in z), strict=True):
        torch.testing.assert_close(one, two)


# Checkpoints of the user's own ----------------------------------------------------------------------------------------
def policy(context, operation, *args, **kwargs):
    named = operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if named else CheckpointPolicy.PREFER_RECOMPUTE


KINDS = {  # of which torch passes a selective one backward once
    "none": None,
    "reentrant": {"use_reentrant": True},
    "not": {"use_reentrant": False},
    "selective": {
        "use_reentrant": False,
        "context_fn": lambda: create_selective_checkpoint_contexts(policy),
    },
}


class Recomputed(nn.Module):
    """Its middle, a layer that is called twice and buffers included, is made again in the backward pass."""

    def __init__(self, kind):
        super().__init__()
        self.up, self.down, self.how = nn.Linear(5, 6), nn.Linear(6, 3), KINDS[kind]
        self.body = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh())

    def middle(self, x):
        return self.body(self.body(x))

    def forward(self, x):
        h = torch.tanh(self.up(x))
        return self.down(self.middle(h) if self.how is None else checkpoint(self.middle, h, **self.how))


def recomputed(kind):
    """In train mode, with running statistics that have moved."""
    torch.manual_seed(0)
    model = Recomputed(kind)
    model.body[1].running_mean += 0.1
    return model.train()


DATA = [(x.float(), y) for x, y in batches()]


@pytest.fixture(scope="module")
def dense():
    """Each matrix in float64, by torch.autograd alone, of the same model without a checkpoint."""
    model, data = recomputed("none").double(), batches()
    x, y = (torch.cat(parts) for parts in zip(*((x.float().double(), y) for x, y in data), strict=True))
    J, Jx = (dense_jacobian(model, [(x, y)], logits, wrt=wrt) for wrt in ("params", "inputs"))
    p = model.eval()(x).detach().softmax(1)
    C = torch.block_diag(*[torch.diag(q) - torch.outer(q, q) for q in p]) / len(x)
    rows = dense_jacobian(model, [(x, y)], lambda m, batch: LOSS(m(batch[0]), batch[1]))
    own = list(model.parameters())
    g = torch.autograd.grad(LOSS(model(x), y), own, create_graph=True)
    H = [torch.cat([t.reshape(-1) for t in torch.autograd.grad(entry, own, retain_graph=True, materialize_grads=True)])
         for part in g for entry in part.reshape(-1)]  # fmt: skip
    G = J.T @ C @ J
    return {"J": J, "J of inputs": Jx, "GN": G, "F": G, "EF": rows.T @ rows / len(x), "H": torch.stack(H)}


OWN = {
    "J": Jacobian,
    "J of inputs": lambda model, data, **o: Jacobian(model, data, wrt="inputs", layout="stacked", **o),
    "GN": lambda model, data, **o: GaussNewton(model, LOSS, data, **o),
    "F": lambda model, data, **o: Fisher(model, LOSS, data, **o),
    "EF": lambda model, data, **o: EmpiricalFisher(model, LOSS, data, **o),
    "H": lambda model, data, **o: Hessian(model, LOSS, data, **o),
}
OFF = {None: 2e-5, torch.float64: 1e-7, torch.bfloat16: 6e-2}  # vectors are float32
ENGINES = [*itertools.product(OWN, ("auto", "fresh", "double-backward", "replay")), ("H", "finite-difference")]
CASES = [
    (kind, name, engine)
    for kind, (name, engine) in itertools.product(("reentrant", "not", "selective"), ENGINES)
    if kind != "selective" or engine not in ("double-backward", "replay")  # which pass backward several times
]


@pytest.mark.parametrize("dtype", OFF)
@pytest.mark.parametrize("kind, name, engine", CASES)
def test_a_checkpoint_in_a_model_changes_no_product_in_any_dtype(kind, name, engine, dtype, dense):
    """In another dtype than the weights' the middle was made again of the model's own weights, and no engine multiplied."""
    model = recomputed(kind)
    A = OWN[name](model, DATA, product_dtype=dtype, engine=engine)
    v = torch.randn(A.shape[1], generator=torch.Generator().manual_seed(2))
    due, off = dense[name] @ v.double(), OFF[dtype]
    if engine == "finite-difference":
        off = {None: 3e-3, torch.float64: 1e-7, torch.bfloat16: 1.0}[dtype]
    for _ in range(3):
        assert ((A @ v).double() - due).norm() <= off * due.norm()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["GN", "H"])
def test_a_checkpoint_in_a_model_is_made_again_in_each_backward_pass(name):
    """Where torch.func differentiates, nothing can be."""
    model = recomputed("not")
    A = OWN[name](model, DATA[:1], engine="fresh", preflight=False)
    v = torch.ones(A.shape[1])
    _ = A @ v, A @ v
    calls, own = [], model.middle
    model.middle = lambda x: (calls.append(1), own(x))[1]
    _ = A @ v
    assert (
        len(calls) == {"GN": 3, "H": 1}[name]
    )  # J v, the graph's forward pass, and once more; gradient and derivative at once


class Whole(nn.Module):
    """All of it is made again."""

    def __init__(self, how):
        super().__init__()
        self.up, self.down, self.how = nn.Linear(5, 6), nn.Linear(6, 3), how

    def block(self, x):
        return self.down(self.up(x).tanh()).tanh()

    def forward(self, x):
        return self.block(x) if self.how is None else checkpoint(self.block, x, **self.how)


@pytest.mark.parametrize("engine", ["auto", "fresh", "double-backward", "replay", "finite-difference"])
@pytest.mark.parametrize("kind", ["reentrant", "not"])
def test_an_activation_in_a_checkpoint_is_the_variable_in_what_is_made_again_too(kind, engine):
    """It was made again of the module's own output: Hessians were refused, and those by differences were wrong."""
    torch.manual_seed(0)
    model = Whole(KINDS[kind]).double()
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    x = x.float().double()

    def loss(h):
        return LOSS(model.down(h.tanh()).tanh(), y)

    h = model.up(x).detach()
    due = torch.autograd.functional.hessian(loss, h).reshape(h.numel(), -1)
    A = Hessian(model, LOSS, [(x, y)], wrt="module:up", engine=engine)
    off = 1e-6 if engine == "finite-difference" else 1e-12
    assert (A @ torch.eye(len(due), dtype=torch.float64) - due).norm() <= off * due.norm()
