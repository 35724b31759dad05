"""Laws of the experiments: dense oracles for every matrix, resumed = one shot, tables that count right."""

import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from spectral.analysis.theory import softmax_ggn_at_zero
from spectral.app.store import RunStore
from spectral.experiments.cell import (
    INIT,
    LAYERWISE,
    RANDOM,
    TRUE,
    Cell,
    CellResult,
    Matrix,
    Settings,
    all_cells,
    network,
    run_cell,
)
from spectral.experiments.datasets import Problem, digits, mixture, permute_labels
from spectral.experiments.effects import collect, heterogeneity, overlap, row_of, spearman_within, trend
from spectral.experiments.experiments import (
    conclude,
    depth_sweep,
    ggn_outliers,
    hessian_index,
    input_noise,
    jacobian_diagonal,
    jacobian_evolution,
    label_noise_sweep,
    language_model,
    layer_weightwatcher,
    ntk_information_space,
    real_vs_random,
)
from spectral.experiments.models import gpt, model_for
from spectral.layers import layers
from spectral.pages import build
from spectral.spectrum import Spectrum


def small_digits(seed=0):
    return digits(train=60, test=40, seed=seed)


def small_mlp(problem, seed=0, options=None):
    return model_for(problem, seed=seed, options=options or {"widths": (24, 24)})


SMALL = Settings(
    problem=small_digits,
    model=small_mlp,
    seeds=(0, 1),
    ntk_samples=20,
    alignment_k=12,
    batch_size=32,
    training={"target_loss": 5e-3, "batch_size": 20},
)


def perform(experiment, store=None, done=()):
    """Every cell that is not done, and the conclusion; a store that is given keeps the trained networks."""
    store, finished = {} if store is None else store, {result.cell.key: result for result in done}
    for cell in all_cells(experiment.settings):
        if cell.key not in finished:
            finished[cell.key] = run_cell(cell, experiment.settings, store)
    return conclude(experiment, [finished[cell.key] for cell in all_cells(experiment.settings)])


@pytest.fixture(scope="module")
def store():
    return {}


@pytest.fixture(scope="module")
def outcome(store):
    return perform(real_vs_random(SMALL), store=store)


def dense_jacobian(model, x, matrix):
    """(n, C, d) or (n, C, P) in float64 by torch.func, sample by sample."""
    after = (lambda z: z) if matrix.of == "logits" else (lambda z: z.softmax(-1))
    if matrix.kind != "ntk":
        return torch.func.vmap(torch.func.jacrev(lambda z: after(model(z[None])[0])))(x).flatten(2).detach()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    outputs = lambda w, z: after(torch.func.functional_call(model, w, (z[None],))[0])  # noqa: E731
    blocks = torch.func.vmap(torch.func.jacrev(outputs), (None, 0))(weights, x)
    return torch.cat([block.flatten(2) for block in blocks.values()], 2).detach()


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("of", ["logits", "probs"])
@pytest.mark.parametrize("kind", ["flattened", "stacked", "diagonal", "ntk"])
def test_every_matrix_has_the_spectrum_of_its_dense_oracle(outcome, store, kind, of, split):
    cell = Cell(1, RANDOM, Matrix(kind, of, split))
    result = next(r for r in outcome.result.cells if r.cell == cell)
    problem = small_digits(seed=1)
    model = network(cell, SMALL, problem, store)[0].double()
    x = problem.split(split)[0].double()[: 20 if kind == "ntk" else None]
    J_nCd = dense_jacobian(model, x, cell.matrix)
    if kind == "diagonal":
        expected = J_nCd.square().sum((1, 2)).sort().values.numpy()
    else:
        J = J_nCd.flatten(1) if kind == "flattened" else J_nCd.flatten(0, 1)
        small = J @ J.T if J.shape[0] <= J.shape[1] else J.T @ J
        expected = torch.linalg.eigvalsh(small).numpy()
    values, counts = result.spectrum.points()
    assert counts.sum() == len(expected)
    np.testing.assert_allclose(np.repeat(values, counts.astype(int)), expected, atol=1e-9 * expected[-1])
    if kind == "diagonal":
        assert result.metrics["max_over_mean"] == pytest.approx(expected[-1] / expected.mean())
        # the mean absolute difference over twice the mean: another definition of the same coefficient
        differences = np.abs(expected[:, None] - expected[None, :]).mean()
        assert result.metrics["gini"] == pytest.approx(differences / (2 * expected.mean()))


def test_label_alignment_is_that_of_the_dense_eigenvectors(outcome, store):
    cell = Cell(0, RANDOM, Matrix("ntk", "logits", "train"))
    result = next(r for r in outcome.result.cells if r.cell == cell)
    problem = small_digits(seed=0)
    model = network(cell, SMALL, problem, store)[0].double()
    J = dense_jacobian(model, problem.x_train[:20].double(), cell.matrix).flatten(0, 1)
    vectors = torch.linalg.eigh(J @ J.T).eigenvectors[:, -12:]
    own = permute_labels(problem.y_train, 1.0, seed=0).y
    for name, labels in (("own", own), ("true", problem.y_train)):
        y = torch.nn.functional.one_hot(labels[:20], 10).double()
        y = (y - y.mean(0)).flatten()
        energy = float((vectors.T @ y).square().sum() / y.square().sum())
        assert result.alignment[name].energy == pytest.approx(energy, abs=1e-6)
        assert result.metrics[f"{name}_label_alignment"] == result.alignment[name].energy


def test_a_kernel_of_samples_of_one_class_has_no_label_alignment_and_its_page_says_so(outcome, store):
    """It failed, once all that the page asks for was done."""
    cell = Cell(0, TRUE, Matrix("ntk", "logits", "train"))
    one = run_cell(cell, replace(SMALL, ntk_samples=1), store)
    assert one.alignment == {} and one.metrics["trace"] > 0 and "own_label_alignment" not in one.metrics
    page = build.experiment(
        conclude(outcome.experiment, [one]),
        headline=(),
        headline_metric="trace",
        metrics=None,
        about="",
        alpha_curve=False,
    )
    assert "No label alignment of 1 of 1 kernel: the labels are of one class, or no classes." in page.facts


def test_a_large_kernel_goes_by_lanczos_and_says_so(monkeypatch, outcome, store):
    cell = Cell(0, TRUE, Matrix("ntk", "logits", "train"))
    exact = next(r for r in outcome.result.cells if r.cell == cell)
    monkeypatch.setattr("spectral.experiments.cell.EXACT_ROWS", 100)
    result = run_cell(cell, SMALL, store)
    assert (exact.alignment["own"].method, result.alignment["own"].method) == ("exact", "lanczos")
    # an eigenvector that y does not see gets no Ritz value: the curve can only lie above the exact one
    assert result.alignment["own"].energy >= exact.alignment["own"].energy - 1e-6
    assert result.metrics["trace"] == pytest.approx(exact.metrics["trace"], rel=1e-10)


def test_cells_come_once_each_and_train_each_network_in_one_stretch():
    listed = all_cells(SMALL)
    assert len(listed) == 2 * 3 * 4 * 2 * 2
    assert len({cell.key for cell in listed}) == len(listed)
    changes = sum(a.network != b.network for a, b in pairwise(listed))
    assert changes == 2 * 3 - 1


def test_resumed_equals_one_shot(outcome, store):
    assert set(store) == {f"seed{s}-{c}" for s in (0, 1) for c in ("true", "random")}
    for kind, networks in (("flattened", store), ("ntk", {})):  # with the stored network, and trained anew
        cell = Cell(1, TRUE, Matrix(kind, "probs", "test"))
        before = next(r for r in outcome.result.cells if r.cell == cell)
        again = run_cell(cell, SMALL, dict(networks))
        assert again.metrics["trace"] == pytest.approx(before.metrics["trace"], rel=1e-12)
        assert again.metrics["effective_rank"] == pytest.approx(before.metrics["effective_rank"], rel=1e-9)
        assert again.trained.history == before.trained.history
    kept = [r for r in outcome.result.cells if r.cell.network != "seed1-random" or r.cell.matrix.kind == "ntk"]
    resumed = perform(outcome.experiment, store=store, done=kept)
    anew = [r.cell.network for r in resumed.result.cells if all(r is not old for old in kept)]
    assert anew == ["seed1-random"] * 12
    ours, theirs = resumed.result.rows, outcome.result.rows
    for a, b in zip(ours, theirs, strict=True):
        assert (a.matrix, a.metric) == (b.matrix, b.metric)
        if a.metric in ("trace", "effective_rank"):
            assert a.values["random"] == pytest.approx(b.values["random"], rel=1e-9)


def test_conditions_of_a_seed_share_everything_but_the_labels(store, outcome):
    problem = small_digits(seed=0)
    initial = network(Cell(0, INIT, Matrix("stacked", "logits", "train")), SMALL, problem, {})[0].state_dict()
    fresh = small_mlp(problem, seed=0).state_dict()
    assert all(torch.equal(initial[name], fresh[name]) for name in fresh)
    for result in outcome.result.cells:
        assert (result.trained is None) == (result.cell.condition is INIT)
        if result.trained is not None:
            assert result.trained.reached
            assert result.trained.accuracy == 1.0
        assert result.changed > 0.8 if result.cell.condition is RANDOM else result.changed == 0
    assert outcome.result.untrained() == ()


def test_the_global_generator_stays_put():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_cell(Cell(0, TRUE, Matrix("flattened", "logits", "train")), SMALL, {})
    assert torch.equal(torch.get_rng_state(), before)


def test_true_and_random_labels_separate_on_each_seed(outcome):
    def order(matrix, metric):
        return outcome.result.row(matrix, metric).order("true", "random")

    for matrix in ("flattened.logits.train", "flattened.probs.test", "ntk.logits.train"):
        assert order(matrix, "effective_rank") == -1
        assert order(matrix, "top_c_energy") == 1
    assert order("ntk.logits.train", "own_label_alignment") == 1
    # scale goes the other way: the larger Jacobian is that of the network that memorised
    assert order("flattened.logits.train", "trace") == -1


def test_costs_add_up_and_each_network_is_counted_once(outcome):
    cost = outcome.result.cost
    networks = {r.cell.network: r.trained for r in outcome.result.cells if r.trained is not None}
    assert len(networks) == 4
    assert cost["training_epochs"] == sum(t.epochs for t in networks.values())
    assert cost["epochs"] == pytest.approx(sum(r.cost["epochs"] for r in outcome.result.cells))
    assert all(r.cost["epochs"] > 0 for r in outcome.result.cells)


def test_results_survive_json(outcome):
    for result in outcome.result.cells[::7]:
        plain = json.loads(json.dumps(result.to_dict()))
        back = CellResult.from_dict(plain, result.cell, result.spectrum)
        assert plain["cell"] == back.cell.key
        assert back.trained == result.trained
        assert back.alignment == result.alignment
        assert back.metrics == pytest.approx(result.metrics, nan_ok=True)


def handmade(condition, seed, values):
    matrix = Matrix("flattened", "logits", "train")
    spectrum = Spectrum.from_eigenvalues(np.asarray(values, dtype=float))
    metrics = {"trace": float(sum(values)), "trace_stderr": 0.0, "top_c_energy": max(values) / sum(values)}
    cost = {"products": 1.0, "epochs": 2.0, "seconds": 3.0}
    return CellResult(Cell(seed, condition, matrix), spectrum, metrics, {}, None, 0.0, 0.5, cost)


def test_a_kept_cell_is_known_by_its_key_and_its_spectrum(tmp_path):
    store, result = RunStore(tmp_path, {}, resume=False), handmade(TRUE, 0, [1, 2])
    store.save_cell(result)
    back = store.load_cell(result.cell)
    assert back is not None and replace(back, spectrum=result.spectrum) == result
    other = replace(result.cell, seed=1)
    assert store.load_cell(other) is None
    store.path(f"{result.cell.key}.npz").rename(store.path(f"{other.key}.npz"))
    with pytest.raises(ValueError, match=r"cell must be seed1-true-flattened\.logits\.train, got 'seed0"):
        store.load_cell(other)


def test_tables_from_handmade_cells():
    numbers = {"true": [[1, 2], [1, 4], [2, 4]], "random": [[1, 5], [3, 6], [1, 3]]}
    results = [
        handmade({"true": TRUE, "random": RANDOM}[c], seed, values)
        for c, rows in numbers.items()
        for seed, values in enumerate(rows)
    ]
    table = collect(results)
    row = table.row("flattened.logits.train", "trace")
    assert row.values == {"true": (3.0, 5.0, 6.0), "random": (6.0, 9.0, 4.0)}
    assert row.errors["true"] == (0.0, 0.0, 0.0)
    # Cohen's d by hand: means 14/3 and 19/3, variances 7/3 and 19/3, pooled 13/3
    effect = row.effects["true-random"]
    assert effect.d == pytest.approx((14 / 3 - 19 / 3) / math.sqrt(13 / 3))
    assert effect.lower < effect.d < effect.upper
    assert "true-init" not in row.effects
    assert row.order("true", "random") == 0  # below on two seeds, above on one
    assert replace(row, refused={"true": (False, True, False)}).order("true", "random") is None
    assert table.cost == {"products": 6, "epochs": 12, "seconds": 18, "training_epochs": 0, "training_seconds": 0}
    with pytest.raises(KeyError, match="no metric 'gini'"):
        table.row("flattened.logits.train", "gini")


def test_a_partial_set_gives_the_rows_it_can():
    table = collect([handmade(TRUE, 0, [1, 2]), handmade(TRUE, 1, [1, 3]), handmade(RANDOM, 1, [2, 5])])
    row = table.row("flattened.logits.train", "trace")
    assert row.values["random"][1] == 7.0
    assert math.isnan(row.values["random"][0])
    assert row.effects == {}
    assert row.order("true", "random") == -1 and row.order("true", "init") is None
    assert collect([]).rows == ()


def test_spearman_agrees_with_scipy_and_its_p_value_is_calibrated():
    generator = np.random.default_rng(0)
    levels, values = np.array([0.0, 0.1, 0.1, 0.5, 0.9, 1.0]), generator.normal(size=(4, 6))
    rho, _ = spearman_within(levels, values)
    assert rho == pytest.approx(np.mean([spearmanr(levels, row).statistic for row in values]), abs=1e-10)
    small = [spearman_within(levels, generator.normal(size=(3, 6)), draws=99)[1] <= 0.05 for _ in range(400)]
    assert np.mean(small) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)  # under no trend, p <= .05 at most 5 % of the time
    assert spearman_within(levels, np.zeros((2, 6)))[0] == 0
    # a seed's own offset does not blur a steady trend
    assert spearman_within(levels[[0, 1, 3]], np.array([[1.0, 2, 3], [100, 200, 300]]))[0] == pytest.approx(1)


@pytest.mark.slow
def test_noise_sweep_runs_from_true_to_random():
    settings = replace(SMALL, kinds=("flattened",), outputs=("logits",), splits=("train",))
    experiment = label_noise_sweep(settings, (0.0, 0.5, 1.0))
    outcome = perform(experiment)
    row = outcome.result.row("flattened.logits.train", "effective_rank")
    assert set(row.values) == {"noise0", "noise50", "noise100"}
    flagship = perform(real_vs_random(replace(settings, conditions=(TRUE, RANDOM)))).result
    expected = flagship.row("flattened.logits.train", "effective_rank").values
    assert row.values["noise0"] == pytest.approx(expected["true"])
    assert row.values["noise100"] == pytest.approx(expected["random"])
    trends = {(t.matrix, t.metric): t for t in outcome.trends}
    assert trends["flattened.logits.train", "trace"].rho > 0.5
    assert trends["flattened.logits.train", "trace"].levels == (0.0, 0.5, 1.0)
    changed = {r.cell.condition.name: r.changed for r in outcome.result.cells}
    assert changed["noise0"] == 0
    assert 0.3 < changed["noise50"] < 0.5
    assert trend(outcome.result, "flattened.logits.train", "trace", experiment.levels, draws=99).rho > 0.5


def test_evolution_starts_at_the_initial_network_and_depths_differ():
    settings = replace(SMALL, seeds=(0,), kinds=("stacked",), outputs=("logits",), splits=("train",))
    evolution = perform(jacobian_evolution(settings, (0, 1, 4))).result
    initial = run_cell(Cell(0, INIT, Matrix("stacked", "logits", "train")), settings)
    trace = evolution.row("stacked.logits.train", "trace").values
    assert trace["epoch0"][0] == pytest.approx(initial.metrics["trace"])
    assert [r.trained.epochs for r in evolution.cells] == [0, 1, 4]
    assert evolution.untrained() == ()  # stopped on purpose
    depths = {n: {"widths": (16,) * n} for n in (1, 2, 3)}
    sweep = depth_sweep(settings, depths)
    problem = small_digits()
    for cell, hidden in zip(all_cells(sweep.settings), depths, strict=True):
        model, _ = network(cell, sweep.settings, problem, {})
        assert sum(isinstance(m, torch.nn.Linear) for m in model.modules()) == hidden + 1
    assert conclude(sweep, []).trends == ()


def test_settings_and_sweeps_refuse_in_one_sentence():
    with pytest.raises(ValueError, match=r"settings\.kinds\[0\] must be one of flattened, stacked, diagonal, ntk"):
        Settings(kinds=("fisher",))
    with pytest.raises(ValueError, match="leave out logits, of which curvature matrices are"):
        Settings(kinds=("hessian",), outputs=("probs",))
    with pytest.raises(
        ValueError, match=r"blocks=\['x\*'\] are 0 of tokens, positions, blocks.0.norm1, .* name two or more"
    ):
        language_model(replace(TEXT, blocks=("x*",)))
    with pytest.raises(ValueError, match="has target_loss, max_epochs, batch_size, lr, weight_decay"):
        Settings(training={"seed": 3})
    with pytest.raises(ValueError, match="without repetitions"):
        Settings(seeds=(1, 1))
    with pytest.raises(ValueError, match=r"noises must be a list of at least 3, each a number from 0 to 1"):
        label_noise_sweep(SMALL, (0.0, 1.0))
    with pytest.raises(ValueError, match=r"epochs must be a list of at least 3, each a whole number >= 0"):
        jacobian_evolution(SMALL, (0, 1))
    with pytest.raises(ValueError, match=r"options must be three depths or more"):
        depth_sweep(SMALL, {1: {}})
    with pytest.raises(ValueError, match="A trend needs three levels or more"):
        trend(collect([handmade(TRUE, 0, [1, 2])]), "flattened.logits.train", "trace", {"true": 0.0, "random": 1.0})


# Noise, classes, single samples, negative curvature ------------------------------------------------------------------------
def linear_zero(problem, seed=0, options=None):
    model = torch.nn.Linear(problem.shape[0], problem.classes)
    torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
    return model


def test_clusters_before_training_have_an_outlier_for_each_pair_of_classes():
    """Softmax regression at W = 0 has its closed form: uncentred clusters give C (C - 1) eigenvalues that stand apart."""
    settings = Settings(
        problem=partial(mixture, train=90, test=0, classes=4, features=20, separation=12.0),
        model=linear_zero, kinds=("gauss_newton",), outputs=("logits",), splits=("train",), seeds=(0,),
    )  # fmt: skip
    experiment = ggn_outliers(settings, (3, 4))
    cells = [cell for cell in all_cells(experiment.settings) if cell.condition.noise is None]
    for cell, count in zip(cells, (3, 4), strict=True):
        result, problem = run_cell(cell, experiment.settings), experiment.settings.data(0, cell.condition)
        assert problem.classes == count and (cell.condition.name, cell.condition.classes) == (f"init{count}", count)
        x = torch.cat([problem.x_train, torch.ones(len(problem.x_train), 1)], 1).double().numpy()
        expected = np.sort(softmax_ggn_at_zero(x, count))
        values, multiplicities = result.spectrum.points()
        np.testing.assert_allclose(np.repeat(values, multiplicities.astype(int)), expected, atol=1e-6 * expected[-1])
        assert result.metrics["outliers"] == count * (count - 1)
        top = expected[::-1]
        assert result.metrics["outlier_gap"] == pytest.approx(top[count * (count - 1) - 1] / top[count * (count - 1)])


def test_the_negative_part_of_a_hessian_is_that_of_the_dense_one(store):
    settings = replace(
        SMALL,
        model=partial(model_for, options={"widths": (6,)}),
        training={"max_epochs": 20},
        kinds=("hessian",),
        outputs=("logits",),
        splits=("train",),
    )
    cell = Cell(0, RANDOM, Matrix("hessian", "logits", "train"))
    networks = {}
    result = run_cell(cell, settings, networks)
    assert hessian_index(settings).settings is settings
    problem = settings.data(0, RANDOM)
    model = network(cell, settings, problem, networks)[0].double()
    matrix, _ = dense_curvature(
        model, problem.x_train.double(), permute_labels(problem.y_train, 1.0, seed=0).y, "hessian"
    )
    values = torch.linalg.eigvalsh(matrix).numpy()
    small = result.metrics["hard_rank_threshold"]
    assert result.metrics["negative_fraction"] == pytest.approx((values < -small).mean(), abs=1 / len(values))
    assert result.metrics["negative_mass"] == pytest.approx(-values[values < 0].sum() / np.abs(values).sum(), abs=1e-6)
    assert result.metrics["lambda_min"] == pytest.approx(values[0], rel=1e-6)


def test_labels_in_the_information_space_are_counted_in_the_leading_eigenvectors(outcome, store):
    cell = Cell(0, TRUE, Matrix("ntk", "logits", "train"))
    result = next(r for r in outcome.result.cells if r.cell == cell)
    problem = small_digits(seed=0)
    J = dense_jacobian(
        network(cell, SMALL, problem, store)[0].double(), problem.x_train[:20].double(), cell.matrix
    ).flatten(0, 1)
    values, vectors = torch.linalg.eigh(J @ J.T)
    inside = int((values.flip(0).cumsum(0) < 0.9 * values.sum()).sum()) + 1
    y = torch.nn.functional.one_hot(problem.y_train[:20], 10).double()
    y = (y - y.mean(0)).flatten()
    energy = float((vectors[:, -inside:].T @ y).square().sum() / y.square().sum())
    assert result.metrics["information_dimension"] == inside
    assert result.metrics["own_information_alignment"] == pytest.approx(energy, abs=1e-6)
    assert ntk_information_space(SMALL).settings is SMALL


def test_all_seeds_have_the_samples_of_the_data_seed_and_their_numbers_in_order():
    settings = replace(
        SMALL, data_seed=3, conditions=(INIT,), kinds=("diagonal",), outputs=("probs",), splits=("test",)
    )
    outcome = perform(jacobian_diagonal(settings))
    first, second = outcome.result.cells
    x = small_digits(seed=3).x_test.double()
    for result in (first, second):
        J = dense_jacobian(network(result.cell, settings, small_digits(seed=3), {})[0].double(), x, result.cell.matrix)
        np.testing.assert_allclose(result.samples, J.square().sum((1, 2)).numpy(), rtol=1e-8)
    shared = len(set(np.argsort(first.samples)[-4:]) & set(np.argsort(second.samples)[-4:])) / 4
    assert outcome.result.row("diagonal.probs.test", "prototype_overlap").values == {"init": (shared, shared)}
    back = CellResult.from_dict(json.loads(json.dumps(first.to_dict())), first.cell, first.spectrum)
    assert back.samples == first.samples
    assert run_cell(Cell(0, INIT, Matrix("diagonal", "probs", "test")), SMALL).samples == ()
    with pytest.raises(ValueError, match="use data_seed=0"):
        jacobian_diagonal(SMALL)


def test_samples_that_stand_out_by_chance_are_shared_as_much_as_is_said():
    generator = np.random.default_rng(0)
    cell = Cell(0, TRUE, Matrix("diagonal", "probs", "test"))
    found = []
    for _ in range(400):
        done = [
            replace(handmade(TRUE, seed, [1, 2]), cell=replace(cell, seed=seed), samples=tuple(generator.random(50)))
            for seed in range(3)
        ]
        found.append(overlap(done[0], done))
    shared, error = np.array([o["prototype_overlap"] for o in found]), found[0]["prototype_overlap_stderr"]
    assert abs(shared.mean() - 0.1) < 4 * error / 20
    assert shared.std() == pytest.approx(error, rel=0.12)
    assert overlap(done[0], done[:1]) == {}


def test_a_number_of_pairs_of_networks_has_no_effect_size():
    """Seeds share the pairs of which it is the mean: an interval over seeds as independent ones would be too narrow."""
    numbers = {
        name: [dict.fromkeys(("prototype_overlap", "gini"), v) for v in (0.1, 0.2, 0.4)] for name in ("true", "random")
    }
    assert row_of("M", "gini", numbers).effect is not None
    assert row_of("M", "prototype_overlap", numbers).effects == {}


def test_noise_for_inputs_reaches_the_network_and_its_matrix():
    settings = replace(SMALL, seeds=(1,), kinds=("stacked",), outputs=("logits",), splits=("train",))
    experiment = input_noise(settings, ("real", "gaussian"))
    real, gaussian = (run_cell(cell, experiment.settings) for cell in all_cells(experiment.settings))
    model = network(gaussian.cell, experiment.settings, experiment.settings.data(1, gaussian.cell.condition), {})[
        0
    ].double()
    x = small_digits(seed=1).with_inputs("gaussian", 1).x_train.double()
    J = dense_jacobian(model, x, gaussian.cell.matrix).flatten(0, 1)
    assert gaussian.metrics["trace"] == pytest.approx(float(J.square().sum()), rel=1e-9)
    assert real.metrics["trace"] != gaussian.metrics["trace"] and gaussian.trained.reached
    with pytest.raises(ValueError, match="name real and gaussian"):
        input_noise(settings, ("real", "shuffled"))
    with pytest.raises(ValueError, match=r"classes\[0\] must be a whole number >= 2, got 1"):
        ggn_outliers(settings, (1, 2))


# Language models -------------------------------------------------------------------------------------------------------
def letters(seed=0):
    """Five sequences of four tokens of eleven, each followed by the next."""
    ids = torch.randint(11, (5, 5), generator=torch.Generator().manual_seed(seed))
    x, y = ids[:, :-1].clone(), ids[:, 1:].clone()
    return Problem("letters", x[:4], y[:4], x[4:], y[4:], 11, (4,), "bytes", "next")


def tiny_gpt(problem, seed=0, options=None):
    return gpt(problem.classes, 4, width=4, depth=1, heads=2, seed=seed)


TEXT = Settings(
    problem=letters,
    model=tiny_gpt,
    seeds=(0,),
    kinds=("gauss_newton", "hessian", "ntk"),
    outputs=("logits",),
    splits=("train",),
    training={"target_loss": 1.0, "max_epochs": 20, "batch_size": 2},
    blocks=("*.query", "*.rise"),
    block_probes=2,
    block_steps=30,
    pairs=20,
    samples=3,
    ntk_samples=2,
)


@pytest.fixture(scope="module")
def language():
    """Finished cells of the trained network, its networks, and the experiment."""
    store, experiment = {}, language_model(replace(TEXT, kinds=("gauss_newton", "hessian")))
    cells = [cell for cell in all_cells(experiment.settings) if cell.condition == TRUE]
    return store, experiment, [run_cell(cell, experiment.settings, store) for cell in cells]


def dense_curvature(model, x, y, kind):
    """(P, P) of the mean cross entropy by torch.func on all parameters flat, and the places of each module."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in weights.values()])

    def logits(theta):
        parts = dict(zip(weights, theta.split([p.numel() for p in weights.values()]), strict=True))
        given = {name: part.view_as(weights[name]) for name, part in parts.items()}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            z = torch.func.functional_call(model, given, (x,))
            return z if z.ndim == 2 else z.transpose(1, 2).flatten(0, 1)

    if kind == "hessian":
        matrix = torch.autograd.functional.hessian(
            lambda t: torch.nn.functional.cross_entropy(logits(t), y.flatten()), flat
        )
    else:
        J = torch.func.jacrev(logits)(flat).detach()
        p = logits(flat).softmax(-1)
        K = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        matrix = torch.einsum("ncp,ncd,ndq->pq", J, K, J) / len(p)
    places, start = {}, 0
    for name, p in weights.items():
        module = name.rpartition(".")[0]
        places.setdefault(module, []).extend(range(start, start + p.numel()))
        start += p.numel()
    return matrix.detach(), places


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
def test_curvature_blocks_and_gap_of_a_language_model_are_those_of_the_dense_matrix(language, kind):
    store, _, results = language
    cell = Cell(0, TRUE, Matrix(kind, "logits", "train"))
    model, _ = network(cell, TEXT, letters(), store)
    matrix, places = dense_curvature(model.double(), letters().x_train[:3], letters().y_train[:3], kind)
    found = {r.cell.matrix.block: r for r in results if r.cell.matrix.kind == kind}
    assert set(found) == {"", "blocks.0.query", "blocks.0.rise"}
    values = torch.linalg.eigvalsh(matrix).numpy()
    whole = found[""]
    assert whole.spectrum.is_exact and np.abs(np.sort(whole.spectrum.points()[0])[-1] - values[-1]) < 1e-10 * values[-1]
    assert whole.metrics["trace"] == pytest.approx(float(torch.trace(matrix)), rel=1e-8)
    outside = matrix.clone()
    for rows in places.values():
        outside[np.ix_(rows, rows)] = 0
    gap = float(outside.norm() / matrix.norm())
    assert abs(whole.metrics["block_gap"] - gap) < 4 * whole.metrics["block_gap_stderr"] < 0.6
    for name in set(found) - {""}:
        part = torch.linalg.eigvalsh(matrix[np.ix_(places[name], places[name])]).numpy()
        assert found[name].spectrum.dim == len(part)
        assert found[name].metrics["lambda_max"] == pytest.approx(part[-1], rel=1e-6)
        assert abs(found[name].metrics["trace"] - part.sum()) <= 4 * found[name].metrics["trace_stderr"] + 1e-9


@pytest.mark.slow
def test_blocks_come_after_their_matrix_and_survive_json(language):
    _, experiment, results = language
    whole = "gauss_newton.logits.train"
    names = [r.cell.matrix.name for r in results]
    assert names[:4] == [whole, f"{whole}.blocks.0.query", f"{whole}.blocks.0.rise", "hessian.logits.train"]
    result = results[1]
    back = CellResult.from_dict(json.loads(json.dumps(result.to_dict())), result.cell, result.spectrum)
    assert back.metrics == pytest.approx(result.metrics, nan_ok=True)
    table = conclude(experiment, results).result
    assert table.row(whole, "block_js").values.keys() == {"true"}
    with pytest.raises(KeyError):
        table.row(f"{whole}.blocks.0.rise", "block_js")


def test_unlikeness_of_blocks_is_the_mean_over_pairs():
    cell = Cell(0, INIT, Matrix("hessian", "logits", "train"))
    whole = replace(handmade(INIT, 0, [1, 2, 3]), cell=cell)

    def block(name, values):
        return replace(handmade(INIT, 0, values), cell=replace(cell, matrix=replace(cell.matrix, block=name)))

    other = replace(block("d", [9.0]), cell=replace(block("d", [9.0]).cell, condition=TRUE))
    done = [whole, block("a", [1, 2]), block("b", [4, 8]), block("c", [1, 2]), other]
    found = heterogeneity(whole, done)  # a and c are alike, each of them and b disjoint
    assert found == {
        "block_js": pytest.approx(2 / 3),
        "block_js_stderr": 0,
        "block_js_by_lambda_max": 0,
        "block_js_by_lambda_max_stderr": 0,
    }
    assert heterogeneity(whole, [whole, done[1]]) == {}
    assert collect(done[:4]).row("hessian.logits.train", "block_js").values == {"init": (pytest.approx(2 / 3),)}


def test_given_weights_are_not_trained_and_tokens_have_no_label_alignment():
    experiment = language_model(replace(TEXT, kinds=("ntk",)), trains=False)
    (cell,) = all_cells(experiment.settings)
    assert (cell.condition.name, cell.matrix.name) == ("given", "ntk.logits.train")
    result, start = run_cell(cell, experiment.settings), run_cell(replace(cell, condition=INIT), experiment.settings)
    assert result.trained is None and result.metrics["trace"] == start.metrics["trace"]
    assert result.alignment == {} and "own_label_alignment" not in result.metrics


def test_layers_of_a_network_are_correlated_with_their_curvature():
    deep = replace(
        SMALL, kinds=("layers",), outputs=("logits",), splits=("train",), conditions=(INIT,), seeds=(0,), samples=10
    )
    settings = replace(deep, model=partial(small_mlp, options={"widths": (10,) * 4}), block_probes=1, block_steps=6)
    (cell,) = all_cells(layer_weightwatcher(settings).settings)
    result = run_cell(cell, settings)
    problem = small_digits()
    model = network(cell, settings, problem, {})[0].double()
    data = [(problem.x_train[:10].double(), problem.y_train[:10])]
    table = layers(model, data, torch.nn.CrossEntropyLoss(), probes=1, steps=6, progress=False)
    assert len(table) == 5 and result.spectrum.dim == 50 and result.cost["products"] == table["data_products"].sum() > 0
    for name, columns in LAYERWISE.items():
        assert result.metrics[f"{name}_correlation"] == pytest.approx(float(table.correlation(*columns)), nan_ok=True)
    assert result.metrics["layers_accepted"] == 0
    with pytest.raises(ValueError, match="has 3 layers with 8 singular values or more, and a correlation needs 4"):
        run_cell(cell, deep)
