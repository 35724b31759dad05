"""Hessian, Gauss-Newton and Fisher matrices equal dense oracles: torch's own mean on all data at once, differentiated twice."""

import copy
import json
from functools import cache

import numpy as np
import pytest
import torch
from oracles import CASES, cut, dense_jacobian, logits, random_states
from torch import nn

import spectral
from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian, blocks
from spectral.engine import linearize

TOLERANCE = 1e-9


def parameters(model):
    return [p for p in model.parameters() if p.requires_grad]


def dense_hessian(model, loss, batch):
    """d2 of torch's own loss on one batch of all data, column by column."""
    model = copy.deepcopy(model).eval()
    leaves = parameters(model)
    total = loss(model(batch[0]), batch[1])
    gradient = torch.cat(
        [
            g.reshape(-1)
            for g in torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        ]
    )
    rows = []
    for entry in gradient:
        if not entry.requires_grad:
            rows.append(torch.zeros(len(gradient), dtype=gradient.dtype))
            continue
        row = torch.autograd.grad(entry, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in row]))
    return torch.stack(rows)


def output_hessians(model, loss, batch):
    """(n, k, k): the Hessian of torch's own mean loss with respect to each sample's logits."""
    z = copy.deepcopy(model).eval()(batch[0]).detach()
    H = torch.autograd.functional.hessian(lambda t: loss(t.reshape(z.shape), batch[1]), z.reshape(-1))
    k = z[0].numel()
    return torch.stack([H[i * k : (i + 1) * k, i * k : (i + 1) * k] for i in range(len(z))])


def sandwich(J, H):
    """J^T blockdiag(H) J."""
    blocks_J = J.reshape(len(H), -1, J.shape[1])
    return torch.einsum("nkp,nkl,nlq->pq", blocks_J, H, blocks_J)


def ready(name, sizes=(2, 2, 1)):
    model = CASES[name].network()
    x, y = CASES[name].data(sum(sizes))
    return model, (x, y), cut(x, y, list(sizes))


def flat_mean(z, y):
    return nn.functional.cross_entropy(z.flatten(1), y)


def flat_sum(output, batch):
    z = output.flatten(1)
    return nn.functional.cross_entropy(z, batch[1], reduction="sum"), len(z)


@pytest.mark.parametrize("name", CASES)
def test_hessian_is_dense_hessian_on_every_call(name):
    model, whole, data = ready(name)
    loss = nn.CrossEntropyLoss() if name != "tied" else flat_sum  # its outputs have a token axis
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
        dense = dense_hessian(model, flat_mean, whole)
    H = Hessian(model, loss, data)
    V = torch.randn(H.shape[1], 3, dtype=torch.float64)
    for _ in range(4):
        assert (H @ V - dense @ V).norm() <= TOLERANCE * (dense @ V).norm().clamp(min=1)
    assert torch.allclose(H @ V[:, 0], dense @ V[:, 0], atol=1e-10)
    assert H.symmetric and not H.nonnegative and H.adjoint_error() < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_gauss_newton_and_fisher_are_sandwiches_on_every_call(name):
    model, whole, data = ready(name)
    dense = sandwich(dense_jacobian(model, data, logits), output_hessians(model, flat_mean, whole))
    made = [GaussNewton(model, flat_sum, data)]
    if name != "tied":  # its outputs have a token axis
        made = [GaussNewton(model, nn.CrossEntropyLoss(), data), Fisher(model, nn.CrossEntropyLoss(), data)]
    for A in made:
        V = torch.randn(A.shape[1], 3, dtype=torch.float64)
        for _ in range(4):
            assert (A @ V - dense @ V).norm() <= TOLERANCE * (dense @ V).norm()
        assert A.adjoint_error() < 1e-12 and A.nonnegative == (name != "tied")


@pytest.mark.parametrize("name", ["mlp", "batch-norm", "attention", "function-without-jvp"])
def test_empirical_fisher_is_sum_of_gradient_outer_products(name):
    model, whole, data = ready(name)
    G = dense_jacobian(model, data, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="sum"))
    A = EmpiricalFisher(model, nn.CrossEntropyLoss(), data)
    V = torch.randn(A.shape[1], 2, dtype=torch.float64)
    dense = G.T @ G / len(whole[1])
    assert (A @ V - dense @ V).norm() <= TOLERANCE * (dense @ V).norm()


class Dense(nn.Module):
    """Logits (B, C, T) of inputs (B, T, f): targets of several places a sample."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return self.layer(x).tanh().transpose(1, 2)


def losses():
    g = torch.Generator().manual_seed(5)
    weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    y = torch.randint(3, (5, 4), generator=g)
    y[0, :3], y[3] = -100, -100  # one sample counts a single place, another none
    soft = torch.rand(5, 3, 4, generator=g, dtype=torch.float64).softmax(1)
    real = torch.randn(5, 3, 4, generator=g, dtype=torch.float64)
    return {
        "ignored": (nn.CrossEntropyLoss(), y),
        "weights": (nn.CrossEntropyLoss(weight=weight), y),
        "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), y),
        "smoothing and weights": (nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2), y),
        "soft targets": (nn.CrossEntropyLoss(), soft),
        "mse": (nn.MSELoss(), real),
        "bce": (nn.BCEWithLogitsLoss(), (real > 0).double()),
        "huber": (nn.HuberLoss(), real),
    }


@pytest.mark.parametrize("kind", losses())
@pytest.mark.parametrize(
    ("sizes", "reduction"), [((5,), "none"), ((2, 3), "mean"), ((1, 1, 1, 2), "sum"), ((1, 1, 1, 2), "mean")]
)
def test_matrix_is_of_torchs_mean_on_all_data_however_cut_and_reduced(kind, sizes, reduction):
    torch.manual_seed(0)
    model = Dense().double()
    loss, y = losses()[kind]
    x = torch.randn(5, 4, 2, dtype=torch.float64)
    dense_H = dense_hessian(model, loss, (x, y))
    dense_G = sandwich(dense_jacobian(model, cut(x, y, [5]), logits), output_hessians(model, loss, (x, y)))
    other = copy.copy(loss)
    other.reduction = reduction
    data = cut(x, y, list(sizes))
    eye = torch.eye(9, dtype=torch.float64)
    assert torch.allclose(Hessian(model, other, data, engine="double-backward") @ eye, dense_H, atol=1e-11)
    assert torch.allclose(GaussNewton(model, other, data, engine="double-backward") @ eye, dense_G, atol=1e-11)
    if kind in ("ignored", "weights", "soft targets", "mse", "bce"):  # here the output Hessian is the Fisher matrix
        assert torch.allclose(Fisher(model, other, data, engine="double-backward") @ eye, dense_G, atol=1e-11)


@pytest.mark.parametrize("kind", ["ignored", "weights", "mse", "bce"])
def test_sampled_fisher_is_unbiased_and_depends_on_seed_and_sample_alone(kind):
    torch.manual_seed(0)
    model = Dense().double()
    loss, y = losses()[kind]
    x = torch.randn(5, 4, 2, dtype=torch.float64)
    eye = torch.eye(9, dtype=torch.float64)
    exact = Fisher(model, loss, cut(x, y, [5])) @ eye
    parts = [Fisher(model, loss, cut(x, y, [5]), draws=16, seed=s, engine="fresh") @ eye for s in range(20)]
    drawn = torch.stack(parts)
    z = (drawn.mean(0) - exact) / (drawn.std(0) / 20**0.5).clamp(min=1e-12)
    assert z.abs().max() < 5 and z.square().mean().sqrt() < 1.6
    one = Fisher(model, loss, cut(x, y, [2, 3]), draws=3, seed=7)
    two = Fisher(model, loss, cut(x, y, [4, 1]), draws=3, seed=7)
    assert torch.allclose(one @ eye, two @ eye, atol=1e-12)
    assert one.identity() != Fisher(model, loss, cut(x, y, [2, 3]), draws=3, seed=8).identity()
    assert not torch.allclose(one @ eye, Fisher(model, loss, cut(x, y, [2, 3]), draws=3, seed=8) @ eye)


def test_gradient_without_a_forward_mode_is_named_where_forward_mode_is_asked_for():
    loss, y = losses()["huber"]
    H = Hessian(Dense().double(), loss, cut(torch.randn(5, 4, 2, dtype=torch.float64), y, [5]), engine="fresh")
    with pytest.raises(ValueError, match=r"\(the gradient of huber_loss has no forward-mode derivative\)"):
        H @ torch.ones(9, dtype=torch.float64)


def test_callable_loss_gives_sum_and_count():
    model, whole, data = ready("mlp")

    def squared(output, batch):
        return ((output - 1) ** 2).sum(), output.numel()

    def mean(z, y):
        return ((z - 1) ** 2).mean()

    eye = torch.eye(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    assert torch.allclose(Hessian(model, squared, data) @ eye, dense_hessian(model, mean, whole), atol=1e-11)
    dense = sandwich(dense_jacobian(model, data, logits), output_hessians(model, mean, whole))
    assert torch.allclose(GaussNewton(model, squared, data) @ eye, dense, atol=1e-11)
    assert not GaussNewton(model, squared, data).nonnegative  # nothing says that a callable is convex
    with pytest.raises(ValueError, match=r"names no predictive distribution; Fisher knows CrossEntropyLoss"):
        Fisher(model, squared, data)


def test_gauss_newton_of_a_linear_model_is_its_hessian():
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(4, (6,))
    model = nn.Linear(3, 4).double()
    H, G = Hessian(model, nn.CrossEntropyLoss(), [(x, y)]), GaussNewton(model, nn.CrossEntropyLoss(), [(x, y)])
    v = torch.randn(16, dtype=torch.float64)
    assert torch.allclose(H @ v, G @ v, atol=1e-14)


def test_softmax_gauss_newton_at_zero_weights_has_its_closed_form():
    """(X^T X / n) (x) (I/C - 11^T/C^2): each eigenvalue C - 1 times, divided by C, and d zeros."""
    n, d, C = 40, 5, 4
    X = torch.randn(n, d, dtype=torch.float64)
    model = nn.Linear(d, C, bias=False).double()
    nn.init.zeros_(model.weight)
    s = spectral.exact(GaussNewton(model, nn.CrossEntropyLoss(), [(X, torch.randint(C, (n,)))]))
    expected = np.sort(np.concatenate([np.zeros(d), np.repeat(np.linalg.eigvalsh((X.T @ X / n).numpy()) / C, C - 1)]))
    assert np.allclose(s.atoms.values, expected, atol=1e-13)


# Blocks ----------------------------------------------------------------------------------------------------------------
class Read:
    """Batches, and how many have been read."""

    def __init__(self, batches):
        self.batches, self.count = batches, 0

    def __iter__(self):
        for batch in self.batches:
            self.count += 1
            yield batch


@cache
def dense_matrices(name, sizes):
    """Each kind by autograd."""
    model, whole, data = ready(name, sizes)
    J = dense_jacobian(model, data, logits)
    G = dense_jacobian(model, data, lambda m, b: flat_mean(m(b[0]), b[1]))  # of single samples: a mean is a sum
    return {
        "H": dense_hessian(model, flat_mean, whole),
        "GN": sandwich(J, output_hessians(model, flat_mean, whole)),
        "J^T J": J.T @ J,
        "EF": G.T @ G / len(whole[1]),
    }


def every_matrix(name, sizes=(2, 2, 1), **options):
    """(matrix, its dense self by autograd) of each kind with blocks, on data that count how they are read."""
    model, _, data = ready(name, sizes)
    dense, loss = dense_matrices(name, sizes), flat_sum if name == "tied" else nn.CrossEntropyLoss()
    made = {"H": (Hessian(model, loss, Read(data), **options), dense["H"]),
            "GN": (GaussNewton(model, loss, Read(data), **options), dense["GN"]),
            "J^T J": (Jacobian(model, Read(data), **options).gram("right"), dense["J^T J"])}  # fmt: skip
    if name != "tied":  # a callable loss names no distribution
        drawn = Fisher(model, loss, Read(data), draws=2, seed=3, **options)
        made["F"] = drawn, drawn @ torch.eye(drawn.shape[1], dtype=torch.float64)
        made["EF"] = EmpiricalFisher(model, loss, Read(data), **options), dense["EF"]
    return model, made


def places(model, by):
    """The columns of each block, by the module objects themselves."""
    found, start = {}, 0
    for name, p in model.named_parameters():
        if p.requires_grad:
            owner = next(
                m for m, module in model.named_modules() if any(p is q for q in module.parameters(recurse=False))
            )
            found.setdefault(name if by == "parameter" else owner or "(root)", []).extend(
                range(start, start + p.numel())
            )
            start += p.numel()
    return found


def of(A):
    """The operator over data: of a Gram its Jacobian."""
    return A.parts[0] if isinstance(A, spectral.operators.Gram) else A


@pytest.mark.parametrize(
    ("name", "by"),
    [
        *(("mlp", "module"), ("tied", "parameter"), ("tied", "module")),
        *(("unused-parameter", "parameter"), ("frozen-parameter", "module")),
    ],
)
def test_blocks_are_the_diagonal_blocks_and_cost_no_sweep(name, by):
    model, made = every_matrix(name)
    for A, dense in made.values():
        data, epochs, products = of(A).network.data, A.epochs, A.products
        before = data.count
        parts = blocks(A, by=by)
        assert data.count == before and list(parts) == list(places(model, by))
        for B, place in zip(parts.values(), places(model, by).values(), strict=True):
            assert B.epochs == B.products == 0
            V = torch.randn(B.shape[0], 2, dtype=torch.float64)
            for call in range(1, 4):
                assert torch.allclose(B @ V, dense[place][:, place] @ V, atol=1e-11)
                assert B.epochs == call and data.count == before + 3 * call  # three batches
            before = data.count
        assert (A.epochs, A.products) == (epochs, products)


@pytest.mark.parametrize("kind", ["H", "GN", "F", "EF", "J^T J"])
def test_blocks_are_what_params_would_make(kind):
    """Block by block the operator that `params=` builds by a sweep of its own: the same identity, with A's options."""
    model, made = every_matrix("mlp", engine="double-backward", memory="1MiB")
    A, _ = made[kind]
    make = {"H": Hessian, "GN": GaussNewton, "F": Fisher, "EF": EmpiricalFisher}.get(kind)
    for name, B in blocks(A, by="module").items():
        options = {"params": [f"{name}.*"], **({"draws": 2, "seed": 3} if kind == "F" else {})}
        data = of(A).network.data.batches
        if make is None:
            alone = Jacobian(model, data, **options).gram("right")
        else:
            alone = make(model, nn.CrossEntropyLoss(), data, **options)
        assert of(B).identity() == of(alone).identity() != of(A).identity()
        v = torch.ones(B.shape[0], dtype=torch.float64)
        assert torch.allclose(B @ v, alone @ v, atol=1e-12)
        assert of(B).describe()["engine"] == "double-backward" and of(B).store.budget == 2**20


def test_blocks_follow_the_model_and_refuse_other_data():
    model, made = every_matrix("mlp")
    for A, _ in made.values():
        B = blocks(A)["0.weight"]
        v = torch.randn(B.shape[0], dtype=torch.float64)
        old = B @ v
        with torch.no_grad():
            model[0].weight.mul_(1.1)
        assert torch.allclose(B @ v, blocks(A)["0.weight"] @ v, atol=1e-13) and not torch.allclose(B @ v, old)
        data = of(A).network.data
        x, y = data.batches[1]
        data.batches = [data.batches[0], (x + 1, y), data.batches[2]]
        with pytest.raises(ValueError, match="batch 1 is not what it was in the first sweep"):
            B @ v
        with pytest.raises(ValueError, match="batch 1 is not what it was in the first sweep"):
            blocks(A)["2.bias"] @ torch.ones(3, dtype=torch.float64)


def test_blocks_of_a_shuffling_loader_see_its_one_order():
    model, (x, y), _ = ready("mlp")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2, shuffle=True)
    A = Fisher(model, nn.CrossEntropyLoss(), loader, draws=1)
    torch.rand(3)  # the user's random numbers go on
    dense, parts = A @ torch.eye(A.shape[0], dtype=torch.float64), blocks(A)
    for B, place in zip(parts.values(), places(model, "parameter").values(), strict=True):
        assert torch.allclose(B @ torch.eye(len(place), dtype=torch.float64), dense[place][:, place], atol=1e-12)


def test_blocks_in_a_coarser_dtype_measure_their_own_noise():
    _, made = every_matrix("mlp", product_dtype=torch.float32)
    A, dense = made["GN"]
    for B, place in zip(blocks(A).values(), places(A.network.model, "parameter").values(), strict=True):
        v = torch.randn(B.shape[0], dtype=torch.float64)
        error = (B @ v - dense[place][:, place] @ v).norm() / (dense[place][:, place] @ v).norm()
        assert 1e-10 < error < 1e-5 and 0 < B.describe()["product_noise"] < 1e-5


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"tied"}))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_model_is_recorded_in_any_dtype(name, dtype):
    """Pieces in a coarser one are summed up in the dtype of vectors."""
    if name == "checkpointed" and dtype != torch.float64:
        pytest.skip("torch makes what was forgotten again from the model's own weights")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the oracles' second derivatives
        _, made = every_matrix(name, (2, 1), product_dtype=dtype, engine="replay")
    for kind, (A, dense) in made.items():
        for seed in range(6):
            v = torch.randn(A.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            w = A @ v
        told = (A.args[-1] if kind == "J^T J" else A).describe()
        assert told["engine"] == "replay" and "replay: " not in told["reason"], (kind, told)
        assert (w - dense @ v).norm() <= (1e-10 if dtype == torch.float64 else 0.1) * (dense @ v).norm(), kind


def test_blocks_share_one_budget():
    """In turns they keep what fits together; one that goes on alone takes the room of the others."""
    model, _, data = ready("group-norm")
    free = blocks(Hessian(model, nn.CrossEntropyLoss(), data, engine="replay"), by="module")
    used = {}
    for name, B in free.items():
        B @ torch.ones(B.shape[0], dtype=torch.float64)
        used[name] = B.store.used
    budget = 5 * max(used.values()) // 4  # recording holds a little more than what is kept
    assert budget < sum(used.values()) and len({B.store.budget for B in free.values()}) == 1
    parts = blocks(Hessian(model, nn.CrossEntropyLoss(), data, engine="replay", memory=budget), by="module")
    ones = {name: torch.ones(B.shape[0], dtype=torch.float64) for name, B in parts.items()}
    seen = set()
    for turn in range(8):
        for name, B in parts.items():
            B @ ones[name]
            assert sum(other.store.used for other in parts.values()) <= budget
            if turn >= 3:  # programs are tested beside what they are held to
                seen.add(parts["0"].store.used)
    assert len(seen) == 1 and 0 not in seen  # nobody recorded anew
    for name, B in parts.items():
        for _ in range(5):
            product = B @ ones[name]
            assert sum(other.store.used for other in parts.values()) <= budget
        assert B.store.used > 0 and torch.allclose(product, free[name] @ ones[name], atol=1e-13)


def test_blocks_of_a_hessian_are_tested_by_their_own_products():
    """The first product of the whole, which waits for a second one, says nothing of a block's."""
    model, _, data = ready("mlp")
    H = Hessian(model, nn.CrossEntropyLoss(), data)
    H @ torch.ones(H.shape[0], dtype=torch.float64)
    for name, B in blocks(H).items():
        u = torch.ones(B.shape[0], dtype=torch.float64)
        expected = H @ H.flatten(
            {n: u.view(s) if n == name else torch.zeros(s).double() for n, s in H._names("right").items()}
        )
        for _ in range(2):
            assert torch.allclose(B @ u, B.flatten({name: H.unflatten(expected)[name]}), atol=1e-12)
        assert B.describe()["engine"] == "double-backward" and ";" not in B.describe()["reason"]


def test_no_blocks_is_one_sentence():
    model, _, data = ready("mlp")
    H = Hessian(model, nn.CrossEntropyLoss(), data)
    J, X = Jacobian(model, data), Jacobian(model, data, wrt="inputs")
    for A in (spectral.as_operator(np.eye(2)), J, J.gram("left"), X.gram("right"), H.gram("right"), H + spectral.I):
        with pytest.raises(TypeError, match="has no blocks; pass a Hessian"):
            blocks(A)
    with pytest.raises(ValueError, match=r"by='layer' is not known; use one of parameter, module"):
        blocks(H, by="layer")
    with pytest.raises(
        TypeError, match=r"by= is of type dict, and takes a word; what says the parts goes to partition="
    ):
        blocks(H, by={"a": [0]})


def test_leaves_no_trace_and_follows_the_model():
    model, _, data = ready("batch-norm")
    model.train()
    before, states = copy.deepcopy(model.state_dict()), random_states()
    A, B = Hessian(model, nn.CrossEntropyLoss(), data), GaussNewton(model, nn.CrossEntropyLoss(), data)
    v = torch.randn(A.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    old = [A @ v, B @ v]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters()) and random_states() == states
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)  # what was kept of the old weights is dropped
    new = [Hessian(model, nn.CrossEntropyLoss(), data) @ v, GaussNewton(model, nn.CrossEntropyLoss(), data) @ v]
    for kept, fresh, stale in zip((A @ v, B @ v), new, old, strict=True):
        assert torch.allclose(kept, fresh, atol=1e-13) and not torch.allclose(kept, stale)


def test_nothing_kept_gives_the_same_products():
    model, _, data = ready("group-norm")
    for make in (Hessian, GaussNewton, EmpiricalFisher):
        kept, once = make(model, nn.CrossEntropyLoss(), data), make(model, nn.CrossEntropyLoss(), data)
        once.store.budget = 0
        v = torch.randn(kept.shape[0], dtype=torch.float64)
        assert torch.allclose(kept @ v, once @ v, atol=1e-13)
        assert len(once.store.entries) == 0 and len(kept.store.entries) >= 1


def test_low_precision_products_and_the_record():
    model, _, data = ready("mlp")
    exact = GaussNewton(model, nn.CrossEntropyLoss(), data)
    rough = GaussNewton(model, nn.CrossEntropyLoss(), data, product_dtype=torch.float32)
    v = torch.randn(exact.shape[0], dtype=torch.float64)
    assert 1e-9 < (rough @ v - exact @ v).norm() / (exact @ v).norm() < 1e-5
    record = json.loads(json.dumps(exact.describe()))
    assert record["operator"] == "GaussNewton" and record["count"] == 5 and "CrossEntropyLoss" in record["loss"]
    assert record["engine"] in ("fresh", "double-backward") and "fastest of those that hold" in record["reason"]
    assert exact.products == 2 and exact.epochs == 3  # the first sweep counts targets


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"loss": "mse"}, TypeError, r"loss is a str; pass a torch loss module"),
        ({"loss": None}, ValueError, r"loss=None means the model's own loss, which needs mappings with labels"),
        ({"engine": "quick"}, ValueError, r"engine='quick' is not known; use one of auto, fresh"),
        ({"memory": "2 GB"}, ValueError, r"memory='2 GB' is no amount; use bytes, '512MiB'"),
        ({"params": ["x*"]}, ValueError, r"'x\*' matches no parameter"),
        ({"draws": 2}, TypeError, r"unexpected keyword argument 'draws'"),
    ],
)
def test_wrong_options_are_one_sentence(options, error, words):
    model, _, data = ready("mlp")
    with pytest.raises(error, match=words):
        GaussNewton(model, **{"loss": nn.CrossEntropyLoss(), "data": data, **options})


def test_bad_data_and_targets_are_one_sentence():
    model, (x, y), data = ready("mlp")
    with pytest.raises(ValueError, match="no target is counted"):
        Hessian(model, nn.CrossEntropyLoss(), [(x, torch.full_like(y, -100))])
    with pytest.raises(ValueError, match="data holds no batches"):
        Hessian(model, nn.CrossEntropyLoss(), [])
    with pytest.raises(ValueError, match=r"the data hold NaN or infinity in batch 1"):
        Hessian(model, nn.CrossEntropyLoss(), [data[0], (x * torch.nan, y)])
    with pytest.raises(ValueError, match=r"draws=0 is no number of draws"):
        Fisher(model, nn.CrossEntropyLoss(), data, draws=0)


def test_spectra_of_curvature():
    """tr H by Hutchinson and by all eigenvalues agree; a Hessian may be indefinite, a Gauss-Newton matrix is not."""
    model, _, data = ready("mlp", sizes=(8, 7))
    H, G = Hessian(model, nn.CrossEntropyLoss(), data), GaussNewton(model, nn.CrossEntropyLoss(), data)
    values = spectral.exact(H).atoms.values
    assert values[0] < -1e-6 < spectral.exact(G).atoms.values[0]
    estimate = spectral.trace(H, probes=200)
    assert abs(float(estimate) - values.sum()) < 4 * estimate.stderr + 1e-12
    s = spectral.slq(H, probes=2, steps=len(values))
    assert np.allclose(s.moment(2).value, (values**2).mean(), rtol=0.5)


@pytest.mark.parametrize("ask", ["gradient", "mean_loss"])
def test_the_gradient_and_the_loss_of_a_matrix_of_inputs_are_refused(ask):
    data = [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))]
    H = Hessian(nn.Linear(3, 2), nn.CrossEntropyLoss(), data, wrt="inputs")
    with pytest.raises(
        ValueError, match=rf"{ask} is of the parameters, but this matrix is of wrt='inputs'; build one of wrt="
    ):
        getattr(H, ask)()


@pytest.mark.parametrize("announced", [0, 1000])
def test_a_way_that_is_not_symmetric_is_refused_whether_or_not_its_second_product_is_recorded(monkeypatch, announced):
    """What differences of gradients leave without a verdict shows in the second product, and in no later one."""
    plain = linearize.ReverseOverReverse.jvp

    def wrong(self, tangents):
        return tuple(w + 0.5 * t.roll(1, 0) for w, t in zip(plain(self, tangents), tangents, strict=True))

    monkeypatch.setattr(linearize.ReverseOverReverse, "jvp", wrong)
    monkeypatch.setattr(Hessian, "_second_derivative_error", lambda self, *given: 0.0)
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), []
    data.append((torch.randn(6, 4).double(), torch.randint(3, (6,))))
    H, due = (Hessian(model, nn.CrossEntropyLoss(), data, engine=engine) for engine in ("auto", "fresh"))
    H.expect(announced)
    for call in range(5):
        v = torch.randn(H.shape[1]).double()
        product = H @ v
        assert call == 0 or torch.allclose(product, due @ v, rtol=1e-12, atol=1e-14)
    assert H.engine.choices["H v"].way == "fresh" and "<u, H v> and <v, H u> differ" in H.describe()["reason"]


class Shared(nn.Module):
    """Weights that are used once, several times, transposed, and never; one of them is its own gradient."""

    def __init__(self):
        super().__init__()
        self.words, self.inner, self.back = nn.Embedding(9, 5), nn.Linear(5, 7), nn.Linear(7, 5, bias=False)
        self.idle, self.plain = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(4, 2))

    def forward(self, ids):
        hidden = self.words(ids).mean(1)
        for _ in range(3):
            hidden = self.back(torch.tanh(self.inner(hidden)))
        own = (self.inner.weight**2).sum() + (self.back.weight.T @ self.back.weight).sum()
        return hidden @ self.words.weight.T + own


def test_parts_of_a_large_gradient_are_added_where_they_come_in_a_second_backward_pass(monkeypatch):
    """Autograd keeps what one operation gives until the last has given: a copy more of each large parameter."""
    monkeypatch.setattr(linearize, "LARGE", 1)
    torch.manual_seed(0)
    net, ids, labels = Shared().double(), torch.randint(9, (4, 6)), torch.randint(9, (4,))
    names, primals = zip(*((name, p.detach()) for name, p in net.named_parameters()), strict=True)

    class Half(torch.autograd.Function):
        """|w|^2 / 2, whose gradient is the leaf itself, so that the cotangent goes straight into it."""

        @staticmethod
        def forward(ctx, w):
            ctx.save_for_backward(w)
            return (w**2).sum() / 2

        @staticmethod
        def backward(ctx, g):
            return ctx.saved_tensors[0] if bool(g == 1) else g * ctx.saved_tensors[0]

    class Marked(torch.autograd.Function):
        """Looks like a leaf's node, which torch gives a `variable` too."""

        @staticmethod
        def forward(ctx, x, w):
            ctx.variable = w
            ctx.save_for_backward(x, w)
            return x @ w.T

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g @ w, g.T @ x

    def total(*values):
        named = dict(zip(names, values, strict=True))
        marked = torch.tanh(Marked.apply(named["inner.weight"].T, named["back.weight"])).sum()
        entropy = nn.functional.cross_entropy(torch.func.functional_call(net, named, (ids,)), labels)
        return entropy + marked + Half.apply(named["plain"])

    lin = linearize.ReverseOverReverse(total, primals)
    tangents = [torch.randn_like(p) for p in primals]
    due = torch.autograd.functional.hvp(total, primals, tuple(tangents))[1]
    handed, grad = [], torch.autograd.grad

    def seen(*given, **options):
        handed.append(grad(*given, **options))
        return handed[-1]

    lin.jvp(tangents)
    monkeypatch.setattr(torch.autograd, "grad", seen)
    for _ in range(2):
        lin.room = room = torch.full((sum(p.numel() for p in primals),), torch.nan, dtype=torch.float64)
        found = lin.jvp(tangents)
        places = room.split([p.numel() for p in primals])
        for name, w, h, place, given in zip(names, found, due, places, handed[-1], strict=True):
            assert torch.allclose(w, h, rtol=1e-12, atol=1e-14), name
            assert name == "idle" or w.data_ptr() == place.data_ptr()
            assert (given is None) == (name != "plain"), name  # what autograd itself was left to sum
