"""Every operator on every family of models equals the dense oracle of all data as one batch, on ten calls and any cut.

Hugging Face's families are skipped where transformers is not installed; the extra `dev` brings it. Each family meets each
operator in the ordinary run, further cuts are slow.
"""

import functools

import pytest
import torch
from families import FAMILIES, Oracle, made, text

from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian
from spectral.networks import sum_over_batches

REASON = "transformers is not installed; the extra `dev` brings it"
ALIKE = ("Mixtral", "Qwen3-MoE", "GPT-2, no mask", "BERT, sentences")
SAME = ("GPT-2, no mask", "BERT, sentences")  # another model stands for their family in the ordinary run
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in SAME else name for name in FAMILIES]
OPERATORS = {
    "J": lambda f, data, **options: Jacobian(f.model(), data, **options),
    "H": lambda f, data, **options: Hessian(f.model(), f.loss, data, **options),
    "GN": lambda f, data, **options: GaussNewton(f.model(), f.loss, data, **options),
    "F": lambda f, data, **options: Fisher(f.model(), f.loss, data, **options),
    "EF": lambda f, data, **options: EmpiricalFisher(f.model(), f.loss, data, **options),
}


@functools.cache
def oracle(name):
    """The oracle, a block of vectors and what each operator makes of it."""
    if FAMILIES[name].hugging_face:
        pytest.importorskip("transformers", reason=REASON)
    o = Oracle(FAMILIES[name])
    V = torch.randn(o.J.shape[1], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    G = o.gauss_newton() @ V
    return o, V, {"J": o.J @ V, "H": o.hessian_products(V), "GN": G, "F": G, "EF": o.empirical_fisher() @ V}


def pairs():
    """Every family with every matrix; what most have of their own is in J and H, the rest is slow."""
    for each in EACH:
        name = each if isinstance(each, str) else each.values[0]
        for kind in OPERATORS:
            slow = name in (*SAME, "Mixtral") or (name not in ("GPT-2", "ViT") and kind not in ("J", "H"))
            yield pytest.param(name, kind, marks=[pytest.mark.slow] if slow else [])


PAIRS = list(pairs())
ONE_OF_A_KIND = [  # Qwen3-MoE has Mixtral's experts too
    pytest.param(name, marks=pytest.mark.slow) if name in ("Mixtral", *SAME) else name for name in FAMILIES
]


def close(W, expected, name):
    return (W - expected).norm() <= FAMILIES[name].tolerance * expected.norm()


@pytest.mark.parametrize(
    "sizes, join", [((3, 2), 0), pytest.param((2, 2, 1), sum_over_batches.JOIN, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_products_are_the_oracles_on_ten_calls(name, kind, sizes, join, monkeypatch):
    monkeypatch.setattr(sum_over_batches, "JOIN", join)
    _, V, expected = oracle(name)
    A = OPERATORS[kind](FAMILIES[name], FAMILIES[name].cut(sizes))
    for call in range(10):
        assert close(A @ V, expected[kind], name), f"block, call {call + 1}"
    assert close(A @ V[:, 0], expected[kind][:, 0], name)
    assert A.adjoint_error() <= FAMILIES[name].tolerance


@pytest.mark.parametrize(
    "sizes", [(1, 3, 1), *(pytest.param(cut, marks=pytest.mark.slow) for cut in ((5,), (1, 1, 1, 2)))]
)
@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_products_do_not_depend_on_the_cut(name, sizes, monkeypatch):
    monkeypatch.setattr(sum_over_batches, "JOIN", 0)  # each batch by itself
    _, V, expected = oracle(name)
    for kind, make in OPERATORS.items():
        A = make(FAMILIES[name], FAMILIES[name].cut(sizes), engine="double-backward")
        assert close(A @ V[:, 0], expected[kind][:, 0], name), kind


@pytest.mark.parametrize(
    "name", [n for n in FAMILIES if n not in ALIKE] + [pytest.param(n, marks=pytest.mark.slow) for n in ALIKE]
)
def test_transposed_products_and_inputs(name):
    o, _, _ = oracle(name)
    data = FAMILIES[name].cut((2, 2, 1))
    A = Jacobian(FAMILIES[name].model(), data)
    U = torch.randn(A.shape[0], 2, dtype=torch.float64)
    assert close(A.T @ U, o.J.T @ U, name)
    B, J = Jacobian(FAMILIES[name].model(), data, wrt="inputs"), o.input_jacobian()
    V = torch.randn(J.shape[1], 2, dtype=torch.float64)
    for _ in range(3):
        assert close(B @ V, J @ V, name) and close(B.T @ U, J.T @ U, name)


@pytest.mark.parametrize(
    "name",
    [
        *("GPT-2", "ViT", "ResNet (in place)"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("Llama", "BERT, masked words", "Mixtral")),
    ],
)
def test_rows_are_the_oracles(name):
    o, _, _ = oracle(name)
    A = Jacobian(FAMILIES[name].model(), FAMILIES[name].cut((2, 3)))
    assert close(torch.cat([block for _, block in A.rows()]), o.J, name)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.hugging_face])
def test_oracle_is_the_models_own_loss(name):
    o, _, _ = oracle(name)
    mean = float(o.sums(o.outputs).sum()) / o.count
    assert abs(o.own_loss() - mean) <= 1e-6 * mean
    assert OPERATORS["H"](FAMILIES[name], FAMILIES[name].cut((2, 2, 1))).count == o.count


# Engines that are wrong are refused, and programs that used to be are right ---------------------------------------------
def test_forward_mode_takes_padding_for_a_constant_as_the_backward_pass_does():
    """The row of padding_idx is tied to the output. Products by forward mode were off there, and refused."""
    name = "BERT, masked words"
    _, V, expected = oracle(name)
    A = Jacobian(FAMILIES[name].model(), FAMILIES[name].cut((5,)), engine="fresh")
    assert close(A @ V, expected["J"], name)


def test_engine_that_disagrees_with_the_backward_pass_is_refused_when_asked_for_and_not_chosen():
    """A hook on a module's gradient changes the backward pass alone, and training follows that."""
    model, x = torch.nn.Linear(3, 2), [torch.ones(4, 3)]
    model.register_full_backward_pre_hook(lambda module, out: (2 * out[0],))
    A = Jacobian(model, x, engine="fresh")
    with pytest.raises(ValueError, match=r"fresh: <Jv, u> and <v, J\^T u> differ by"):
        A @ torch.ones(A.shape[1])
    A = Jacobian(model, x)
    A @ torch.ones(A.shape[1])
    assert A.describe()["engine"] != "fresh" and "fresh: <Jv, u>" in A.describe()["reason"]


@pytest.mark.parametrize("name", ["ResNet (in place)", "torch LSTM", "GPT-2"])
def test_replay_is_right_where_torchs_linearize_is_not(name):
    """It is wrong from the second call on where constants are overwritten, and fails without an attention mask."""
    _, V, expected = oracle(name)
    for kind in ("J", "H", "GN"):
        A = OPERATORS[kind](FAMILIES[name], FAMILIES[name].cut((2, 3)), engine="replay")
        for _ in range(4):
            assert close(A @ V, expected[kind], name) and close(A @ V[:, 1], expected[kind][:, 1], name)
        assert A.describe()["engine"] == "replay", A.describe()["reason"]


def test_float32_inside_is_said():
    oracle("Llama")
    for name, inside in [("Llama", "float32"), ("GPT-2", None)]:
        A = OPERATORS["GN"](FAMILIES[name], FAMILIES[name].cut((5,)))
        A @ torch.ones(A.shape[0], dtype=torch.float64)
        assert A.describe().get("computes_in") == inside


# The model's own loss --------------------------------------------------------------------------------------------------
def test_loss_that_is_no_cross_entropy_of_the_logits_is_refused():
    pytest.importorskip("transformers", reason=REASON)
    family = FAMILIES["Mixtral"]
    model = family.model()
    model.config.output_router_logits, model.router_aux_loss_coef = True, 0.1
    with pytest.raises(ValueError, match=r"own loss \(.*\) of batch 0 is not the mean cross entropy of its logits"):
        Hessian(model, None, family.cut((5,)))


def test_real_labels_have_a_hessian_but_no_classes():
    pytest.importorskip("transformers", reason=REASON)
    options = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 17,
    }
    model = made("BertForSequenceClassification", "BertConfig", num_labels=1, **options)().double()
    whole = {**text(), "labels": torch.randn(5, dtype=torch.float64)}
    data = [{key: value[:2] for key, value in whole.items()}, {key: value[2:] for key, value in whole.items()}]
    one, two = Hessian(model, None, [whole]), Hessian(model, None, data)
    v = torch.randn(one.shape[0], dtype=torch.float64)
    assert torch.allclose(one @ v, two @ v, atol=1e-12) and one.count == two.count == 5
    for kind in (GaussNewton, Fisher, EmpiricalFisher):
        with pytest.raises(ValueError, match="the labels are real numbers"):
            kind(model, None, data) @ v


def test_uniform_logits_do_not_hide_the_shift():
    pytest.importorskip("transformers", reason=REASON)
    family = FAMILIES["GPT-2"]
    model = family.model()
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    assert Hessian(model, None, family.cut((2, 2, 1))).count == Oracle(family).count
