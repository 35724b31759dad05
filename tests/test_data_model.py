"""A sweep leaves no trace, sees one fixed data set, and says in one sentence what it cannot read."""

import copy
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from oracles import CASES, dense_jacobian, logits, random_states
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import spectral


def traces(model):
    """Everything about a model and the process that a sweep may not change."""
    return (
        [m.training for m in model.modules()],
        [(name, b.tolist(), id(b), b._version) for name, b in model.named_buffers()],
        [(name, p.tolist(), id(p), p._version, p.requires_grad, p.grad) for name, p in model.named_parameters()],
        random_states(),
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    )


class Counting(nn.Module):
    """Writes into its buffer also in eval mode, and reads it: each batch must see the value handed in."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)
        self.fail_at, self.forwards = fail_at, 0

    def forward(self, x):
        self.calls += 1
        z = self.layer(x) * self.scale.clone()
        self.scale.mul_(2)
        self.forwards += 1
        if self.forwards == self.fail_at:
            raise KeyError("a failure in the middle of a sweep")
        return z


def use(J):
    J @ torch.ones(J.shape[1], 2).to(J.dtype)
    J.T @ torch.ones(J.shape[0]).to(J.dtype)
    J.gram("right") @ torch.ones(J.shape[1]).to(J.dtype)
    J.squared_norms(), J.squared_norms(exact=False), J.identity(), J.describe()


# No trace ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrt", ["params", "inputs"])
@pytest.mark.parametrize("name", ["batch-norm", "attention", "encoder-layer", "checkpointed", "frozen-parameter"])
def test_sweep_leaves_no_trace(name, wrt):
    case = CASES[name]
    model = case.network().train()
    list(model.modules())[-1].eval()  # mixed modes are handed back module by module
    before = traces(model)
    use(spectral.Jacobian(model, case.batches(), wrt=wrt))
    assert traces(model) == before


def test_gradients_already_there_stay():
    case = CASES["mlp"]
    model = case.network()
    kept = torch.full_like(model[0].weight, 3.0)
    model[0].weight.grad = kept
    use(spectral.Jacobian(model, case.batches()))
    assert model[0].weight.grad is kept and float(kept.min()) == float(kept.max()) == 3.0


def test_buffers_written_in_eval_mode_are_as_before_in_every_batch():
    model, x = Counting().double(), torch.randn(5, 3).double()
    before = traces(model)
    J = spectral.Jacobian(model, [x[:2], x[2:]])
    D = dense_jacobian(nn.Sequential(model.layer), [x], logits)
    for _ in range(2):
        assert torch.allclose(J @ torch.eye(8).double(), D) and torch.allclose(J.T @ torch.eye(10).double(), D.T)
    use(J)
    assert traces(model) == before


def test_buffers_written_under_activation_checkpointing_are_as_before():
    class Bump(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return x.tanh()

    case = CASES["checkpointed"]
    model = case.network()
    model.inner.append(Bump())
    use(spectral.Jacobian(model, case.batches()))
    assert float(model.inner[-1].calls) == 0


@pytest.mark.parametrize("fail_at", [1, 2, 4, 6, 8])
def test_failure_in_the_middle_leaves_no_trace_while_the_exception_lives(fail_at):
    model, x = Counting(fail_at).double(), torch.randn(5, 3).double()
    before = traces(model)
    with pytest.raises(KeyError) as kept:
        use(spectral.Jacobian(model, [x[:2], x[2:]], engine="fresh"))
    assert kept.value.args and traces(model) == before


@pytest.mark.parametrize("action", ["product", "transposed", "normal", "norms", "probed"])
def test_failing_loader_leaves_no_trace(action):
    class Loader:
        fail = False

        def __iter__(self):
            yield torch.ones(2, 3)
            if self.fail:
                raise OSError("the disk is gone")
            yield torch.ones(1, 3)

    model, loader = CASES["unused-parameter"].network(torch.float32), Loader()
    before = traces(model)
    J = spectral.Jacobian(model, loader)
    loader.fail = True
    run = {
        "product": lambda: J @ torch.ones(10),
        "transposed": lambda: J.T @ torch.ones(6),
        "normal": lambda: J.gram("right") @ torch.ones(10),
        "norms": lambda: J.squared_norms(),
        "probed": lambda: J.squared_norms(exact=False),
    }[action]
    with pytest.raises(OSError, match="disk") as kept:
        run()
    assert kept.value.args and traces(model) == before


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_generators_of_a_loader_are_handed_back(own, workers):
    case = CASES["mlp"]
    generator = torch.Generator().manual_seed(3) if own else None
    loader = DataLoader(
        TensorDataset(*case.data(7)), batch_size=2, shuffle=True, generator=generator, num_workers=workers
    )
    model = case.network()
    before, private = traces(model), generator.get_state().tolist() if own else None
    J = spectral.Jacobian(model, loader)
    assert traces(model) == before
    if not workers:
        use(J)
    J @ torch.ones(31).double()
    assert traces(model) == before and (not own or generator.get_state().tolist() == private)


def test_tied_weights_count_once_and_stay_tied():
    case = CASES["tied"]
    model = case.network()
    assert spectral.Jacobian(model, case.batches()).shape[1] == 5 * 3 + 9 + 3
    assert model.head.weight is model.embed.weight


class OfTwoNames(nn.Module):
    """One embedding under two names, its weight tied to another layer's: T5 is so made."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(5, 3)
        self.inner = nn.Sequential(self.shared, nn.Tanh())
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.shared.weight

    def forward(self, x):
        return self.head(self.inner(x)).sum(1)


@pytest.mark.parametrize("engine", ["auto", "fresh", "double-backward", "replay"])
def test_module_of_two_names_whose_weight_is_tied_elsewhere(engine):
    torch.manual_seed(0)
    model, x, y = OfTwoNames().double(), torch.tensor([[0, 1], [2, 3], [4, 4], [1, 2]]), torch.tensor([0, 3, 1, 4])

    def logits(w):
        return nn.functional.linear(torch.tanh(w.view(5, 3)[x]), w.view(5, 3)).sum(1)

    w, v = model.shared.weight.detach().reshape(-1), torch.randn(15, dtype=torch.float64)
    J = torch.func.jacrev(logits)(w).reshape(20, 15)
    H = torch.func.hessian(lambda w: nn.functional.cross_entropy(logits(w), y))(w)
    A = spectral.Jacobian(model, [x[:2], x[2:]], engine=engine)
    B = spectral.Hessian(model, nn.CrossEntropyLoss(), [(x[:2], y[:2]), (x[2:], y[2:])], engine=engine)
    for _ in range(5):
        assert torch.allclose(A @ v, J @ v, atol=1e-12) and torch.allclose(A.T @ (J @ v), J.T @ (J @ v), atol=1e-12)
        assert torch.allclose(B @ v, H @ v, atol=1e-12)
    assert model.head.weight is model.shared.weight and type(model.shared.weight) is nn.Parameter


# One data set --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("own", [False, True])
def test_shuffling_loader_gives_one_order(own):
    case = CASES["mlp"]
    generator = torch.Generator().manual_seed(3) if own else None
    loader = DataLoader(TensorDataset(*case.data(9)), batch_size=4, shuffle=True, generator=generator)
    J = spectral.Jacobian(case.network(), loader)
    v, u = torch.randn(31).double(), torch.randn(27).double()
    a = J @ v
    list(loader), torch.rand(3)  # the user goes on with his own sweeps
    assert torch.allclose(J @ v, a, atol=1e-12) and abs(float(a @ u - v @ (J.T @ u))) < 1e-12


def test_augmentation_from_the_global_generators_is_replayed():
    class Noisy(Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return torch.full((3,), float(i)) + torch.randn(3) + random.random() + np.random.rand()  # noqa: NPY002

    J = spectral.Jacobian(nn.Linear(3, 2), DataLoader(Noisy(), batch_size=2))
    v = torch.ones(8)
    assert torch.allclose(J @ v, J @ v)


class Drifting:
    """Batches with an own counter: batch `index` changes with every sweep, in one column of the images."""

    def __init__(self, change):
        self.sweep, self.change = 0, change

    def __iter__(self):
        self.sweep += 1
        batches = [torch.zeros(64, 28, 28) for _ in range(3)]
        batches[1] = self.change(batches[1], self.sweep)
        return iter(batches)


CHANGES = {
    "column": lambda x, sweep: x.index_fill(2, torch.tensor([13]), float(sweep)),
    "tuple": lambda x, sweep: (x, {"deep": [torch.tensor(float(sweep))]}),
    "number of numpy": lambda x, sweep: (x, np.int64(sweep)),
    "array of words": lambda x, sweep: (x, np.array(["w" * sweep])),
    "bytes": lambda x, sweep: (x, b"w" * sweep),
    "complex": lambda x, sweep: (x, complex(sweep)),
    "set": lambda x, sweep: (x, {sweep}),
    "fraction": lambda x, sweep: (x, Fraction(sweep)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_random_augmentation_names_the_batch(kind):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 1))
    J = spectral.Jacobian(model, Drifting(CHANGES[kind]))
    with pytest.raises(ValueError, match=r"batch 1 is not what it was in the first sweep.*no random augmentation"):
        J @ torch.ones(785)
    model_is_whole = all(m.training for m in model.modules())
    assert model_is_whole


def test_objects_without_a_value_and_sets_in_another_order_are_the_same_batch():
    words = list("abcdefgh")
    batches = Drifting(lambda x, sweep: (x, object(), set(words[:: 1 if sweep % 2 else -1]), lambda: None))
    J = spectral.Jacobian(nn.Sequential(nn.Flatten(), nn.Linear(784, 1)), batches)
    assert torch.equal((J @ torch.ones(785))[-64:], torch.ones(64))


@pytest.mark.parametrize("later", [1, 3])
def test_another_number_of_batches_is_one_sentence(later):
    class Growing:
        length = 2

        def __iter__(self):
            return iter([torch.ones(2, 3)] * self.length)

    data = Growing()
    J = spectral.Jacobian(nn.Linear(3, 1), data)
    data.length = later
    with pytest.raises(
        ValueError, match=r"the data held 2 batches in the first sweep and 1 now|batch 2 is not what it was"
    ):
        J @ torch.ones(4)


# One sentence --------------------------------------------------------------------------------------------------------
x32 = torch.ones(2, 3)
DATA = {
    "generator": (lambda: (x32 for _ in range(2)), TypeError, r"a generator that can be read only once.*pass a list"),
    "map": (lambda: map(abs, [x32]), TypeError, r"a map that can be read only once"),
    "tensor": (lambda: x32, TypeError, r"data is one Tensor.*\[data\] for one"),
    "array": (lambda: np.ones((2, 3)), TypeError, r"data is one ndarray"),
    "mapping": (lambda: {"x": x32}, TypeError, r"data is one dict"),
    "tuple": (lambda: (x32, x32), TypeError, r"tuple of tensors.*pass \[\(x, y\)\]"),
    "number": (lambda: 3, TypeError, r"data is a int.*iterable of batches"),
    "dataset": (lambda: TensorDataset(x32), TypeError, r"TensorDataset of single samples.*DataLoader"),
    "empty": (list, ValueError, r"data holds no batches"),
    "arrays": (lambda: [np.ones((2, 3))], TypeError, r"batch 0 holds torch.float64, but the model is torch.float32"),
    "strings": (lambda: [("a", "b")], TypeError, r"a batch is a tuple that holds no tensor"),
    "nan": (lambda: [x32, x32 * torch.nan], ValueError, r"the data hold NaN or infinity in batch 1"),
    "infinity": (lambda: [x32, x32, x32 / 0], ValueError, r"the data hold NaN or infinity in batch 2"),
    "double": (lambda: [x32.double()], TypeError, r"batch 0 holds torch.float64, but the model is torch.float32"),
}


@pytest.mark.parametrize("wrt", ["params", "inputs"])
@pytest.mark.parametrize("kind", DATA)
def test_data_that_cannot_be_read_is_one_sentence(kind, wrt):
    make, error, words = DATA[kind]
    model = nn.Linear(3, 2)
    before = traces(model)
    with pytest.raises(error, match=words) as caught:
        spectral.Jacobian(model, make(), wrt=wrt)
    assert "\n" not in str(caught.value) and traces(model) == before


def test_nan_of_the_model_is_told_from_nan_of_the_data():
    class Log(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return (self.w * x).log()

    with pytest.raises(ValueError, match=r"the model returns NaN or infinity in batch 1, first in the model \(Log\);"):
        spectral.Jacobian(Log(), [x32, -x32])


def test_integer_inputs_have_no_derivative():
    case = CASES["tied"]
    with pytest.raises(TypeError, match=r"the inputs are torch.int64, which has no derivative"):
        spectral.Jacobian(case.network(), case.batches(), wrt="inputs")


def test_inputs_of_two_shapes_are_one_sentence():
    with pytest.raises(ValueError, match=r"inputs of one shape, but batch 1 has \(4, 3\) after \(2, 3\)"):
        spectral.Jacobian(nn.Linear(3, 2), [torch.ones(2, 2, 3), torch.ones(2, 4, 3)], wrt="inputs")


def test_mapping_without_an_input_names_its_keys():
    with pytest.raises(ValueError, match=r"finds no inputs among the keys left, right, y"):
        spectral.Jacobian(
            nn.Linear(3, 2), [{"left": x32, "right": x32, "y": x32}], wrt="inputs", forward=lambda m, b: m(b["left"])
        )


def test_model_without_parameters():
    with pytest.raises(ValueError, match=r"no parameter that requires a gradient; name some with params="):
        spectral.Jacobian(nn.Tanh(), [x32])
    frozen = nn.Linear(3, 2).requires_grad_(False)
    with pytest.raises(ValueError, match=r"no parameter that requires a gradient"):
        spectral.Jacobian(frozen, [x32])
    assert spectral.Jacobian(frozen, [x32], params=["*"]).shape == (4, 8)
    for dtype in (torch.int8, torch.float8_e4m3fn):  # params=["*"] would not help
        frozen.weight.data = frozen.weight.data.to(dtype)
        with pytest.raises(TypeError, match=r"the parameter weight is .*8.*, in which no derivative can be computed"):
            spectral.Jacobian(frozen, [x32])
    assert spectral.Jacobian(nn.Tanh(), [x32.double()], wrt="inputs").dtype == torch.float64
    with pytest.raises(TypeError, match=r"the model or its inputs are torch.int64"):
        spectral.Jacobian(nn.Identity(), [x32.long()], wrt="inputs")


def test_no_module_is_one_sentence():
    with pytest.raises(TypeError, match=r"model is a function; pass a torch.nn.Module"):
        spectral.Jacobian(lambda x: x, [x32])


def test_batch_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(ValueError, match=r"1 is a BatchNorm1d without running statistics.*couples the samples"):
        spectral.Jacobian(model, [x32])


def test_random_model_is_refused():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(2)

    with pytest.raises(ValueError, match=r"the model \(Noisy\) is random in eval mode; remove the noise"):
        spectral.Jacobian(Noisy(3, 2), [x32])


def test_probs_that_are_ambiguous_or_constant_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\) is ambiguous; pass a callable"):
        spectral.Jacobian(nn.Linear(3, 2), [torch.ones(2, 2, 3)], of="probs")
    with pytest.raises(ValueError, match=r"single logit is constant.*sigmoid"):
        spectral.Jacobian(nn.Linear(3, 1), [x32], of="probs")


def test_labels_of_a_mapping_are_not_handed_to_the_model():
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x)

    model = Strict()
    for key in ("labels", "label", "y", "targets"):
        batch = {"x": x32, key: torch.tensor([0, 1])}
        assert spectral.Jacobian(model, [batch], of="loss", loss=nn.CrossEntropyLoss()).shape == (2, 8)


def test_copy_of_the_model_gives_the_same_matrix():
    case = CASES["batch-norm"]
    model, batches = case.network(), case.batches()
    v = torch.randn(sum(p.numel() for p in model.parameters())).double()
    a, b = (spectral.Jacobian(m, batches) @ v for m in (model, copy.deepcopy(model)))
    assert torch.allclose(a, b, atol=1e-12)


def test_a_deep_copy_of_a_matrix_has_a_model_of_its_own_also_after_products():
    case = CASES["batch-norm"]
    model, batches = case.network(), case.batches()
    for A in (spectral.Jacobian(model, batches), spectral.Hessian(model, nn.CrossEntropyLoss(), batches)):
        v = torch.randn(A.shape[1], dtype=A.dtype)
        expected = [A @ v for _ in range(4)][-1]  # graphs and programs are kept by then
        other = copy.deepcopy(A)
        with torch.no_grad():
            model[0].weight.mul_(2)
        assert torch.allclose(other @ v, expected, atol=1e-12)
        assert not torch.allclose(A @ v, expected, atol=1e-3)


def test_a_model_that_makes_inputs_of_its_labels_is_told_what_it_was_not_given():
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, labels=None):
            return self.layer(x) + labels

    batch = {"x": torch.randn(2, 3), "labels": torch.zeros(2, 2)}
    with pytest.raises(
        TypeError, match="what the batch holds without its labels, which a model is given with loss=None alone"
    ):
        spectral.Jacobian(Translator(), [batch])
    assert spectral.Jacobian(Translator(), [batch], forward=lambda model, batch: model(**batch)).shape == (4, 8)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), r"the parameter 0.weight has no shape yet .* run one batch through"),
        (
            lambda: nn.Linear(4, 3, device="meta"),
            r"the parameter weight is on the device meta .* load the model's weights",
        ),
    ],
)
def test_parameters_without_values_are_said(model, why):
    with pytest.raises(ValueError, match=why):
        spectral.Jacobian(model(), [torch.randn(2, 4)])


@pytest.mark.parametrize("statistics", ["population", "batch"])
@pytest.mark.parametrize("engine", ["fresh", "auto"])
def test_buffers_of_one_transform_are_not_seen_by_the_next(statistics, engine):
    """What is cloned inside a level of torch.func dies with it; running statistics are written in every call."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(12, 2)
    ).double()
    data = [(torch.randn(4, 1, 4, 4).double(), torch.randint(2, (4,))) for _ in range(2)]
    loss = torch.nn.CrossEntropyLoss()
    H = spectral.Hessian(model, loss, data, statistics=statistics, engine=engine)
    G = spectral.GaussNewton(model, loss, data, statistics=statistics, engine=engine)
    expected = spectral.Hessian(model, loss, data, statistics=statistics, engine="double-backward")
    V = torch.randn(H.shape[1], 3, generator=torch.Generator().manual_seed(0)).double()
    for _ in range(2):  # several in one sweep, and sweep by sweep
        assert torch.allclose(H @ V, expected @ V, atol=1e-10)
        assert torch.isfinite(G @ V).all()
    assert int(model[1].num_batches_tracked) == 0
