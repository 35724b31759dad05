"""Experiments that are no grids: they measure what closed forms and dense matrices say, and each step is kept."""

from __future__ import annotations

import copy
import html
import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy.integrate import quad
from torch import nn
from torch.nn.utils import parameters_to_vector

import spectral
from spectral.__main__ import config_folder, defaults
from spectral.app import configuration, run
from spectral.app.store import STEP, RunStore
from spectral.experiments.batchnorm_outliers import batchnorm_outliers
from spectral.experiments.block_heterogeneity import block_heterogeneity, heterogeneity
from spectral.experiments.cell import Settings
from spectral.experiments.cross_section import cross_section, curvature, filter_normalised, rayleigh, surface
from spectral.experiments.datasets import digits, text
from spectral.experiments.edge_of_stability import answered, edge_of_stability
from spectral.experiments.models import cnn, model_for
from spectral.experiments.study import Part, block_error, perform
from spectral.pages import charts, page
from spectral.spectrum import Spectrum


def tiny(**more) -> Settings:
    return Settings(
        problem=lambda seed: digits(40, 10, seed),
        model=lambda problem, seed=0, options=None: model_for(problem, seed=seed, options={"widths": (8,)}),
        training={"max_epochs": 20, "lr": 1e-2},
        seeds=(0,),
        **more,
    )


# Edge of stability ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_training_is_looked_at_as_a_dense_hessian_says():
    study = edge_of_stability(tiny(), rates=(0.1,), adam_rates=(), steps=24, every=1)
    part = study.steps["gd-0.1"]({}, {})
    settings, criterion = study.settings, nn.MSELoss()
    problem = settings.problem(seed=0)
    model = settings.build(problem, 0, settings.conditions[0]).double()
    x, y = problem.x_train.double(), nn.functional.one_hot(problem.y_train, 10).double()
    for _ in range(2):
        grads = torch.autograd.grad(5 * criterion(model(x), y), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.1 * g
    H = 5 * (spectral.Hessian(model, criterion, [(x, y)]) @ torch.eye(part_size(model), dtype=torch.float64))
    largest = float(torch.linalg.eigvalsh(H)[-1])
    assert part.arrays["sharpness"][1] == pytest.approx(largest, rel=1e-3)
    assert abs(part.arrays["ratio"][1] - largest * 0.1 / 2) <= part.arrays["residual"][1] + 1e-9
    assert len(part.arrays["step"]) == 24 and part.facts["products"] > 0


def part_size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_study_takes_labels_of_every_token():
    """The half square of a language model, its classes summed and its tokens averaged, is that of the definition."""
    data = {"train": 2, "test": 1, "length": 4}
    model = partial(model_for, kind="gpt", options={"width": 4, "depth": 1, "heads": 1})
    settings = Settings(problem=partial(text, **data), model=model, seeds=(0,))
    study = edge_of_stability(settings, rates=(1e-9,), adam_rates=(), steps=24, every=1)
    part = study.steps["gd-1e-09"]({}, {})
    problem = settings.problem(seed=0)
    network = settings.build(problem, 0, settings.conditions[0]).double().eval()
    p = network(problem.x_train).transpose(1, 2).flatten(0, 1)  # (tokens, classes)
    squares = p.square().sum(1) + 1 - 2 * p[torch.arange(len(p)), problem.y_train.flatten()]
    np.testing.assert_allclose(part.arrays["loss"], float(squares.detach().mean()) / 2, rtol=1e-6)


def test_rates_that_diverge_and_too_few_looks_are_refused():
    with pytest.raises(ValueError, match="too few looks at 20 steps; use 240 steps or more"):
        edge_of_stability(tiny(), steps=20, every=10)
    with pytest.raises(ValueError, match="give a learning rate"):
        edge_of_stability(tiny(), rates=(), adam_rates=())
    study = edge_of_stability(tiny(), rates=(1e9,), adam_rates=(), steps=24, every=1)
    with pytest.raises(ValueError, match="use a smaller rate"):
        study.steps["gd-1e+09"]({}, {})


@pytest.mark.parametrize("study", [edge_of_stability, cross_section, block_heterogeneity])
def test_seeds_that_a_study_would_ignore_are_refused(study):
    with pytest.raises(ValueError, match=r"seeds=\[3, 4\] are 2, and this study takes one; use \[3\]"):
        study(replace(tiny(), seeds=(3, 4)))


def test_only_a_curvature_that_rises_to_the_edge_and_stays_is_a_yes():
    assert answered("gd", 0.3, 1.05, 0.01) == answered("adam", 0.3, 0.96, 0.01) == "yes"
    assert answered("gd", 27.0, 1.05, 0.01) == "undecided"  # it comes down to the edge
    assert answered("gd", 0.3, 0.6, 0.01) == "no" and answered("gd", 0.3, 0.85, 0.1) == "undecided"


@pytest.mark.slow
def test_the_curvature_rises_to_where_cohen_says(tmp_path: Path):
    """By the default configuration, whole: a minute of one core."""
    run.execute(composed(tmp_path, "experiment=edge_of_stability"), tmp_path / "run")
    answer = json.loads((tmp_path / "run" / "result.json").read_text())["answer"]
    assert answer["verdict"] == "yes", answer["sentence"]


def test_a_study_counts_kinds_of_networks_as_an_experiment_does(tmp_path: Path, monkeypatch):
    from spectral.experiments import edge_of_stability as module

    found = SimpleNamespace(values=[1.0], residuals=[0.0], vectors=None)
    monkeypatch.setattr(module, "top", lambda *args, **options: found)
    made = composed(tmp_path, "experiment=edge_of_stability", "data.train=20", "model.options.widths=[4]")
    made["experiment"] |= {"rates": [0.1, 0.05], "adam_rates": [], "steps": 24, "every": 1}
    run.execute(made | {"choices": {"model": "tanh", "data": "digits"}}, tmp_path / "run")
    sentence = json.loads((tmp_path / "run" / "result.json").read_text())["answer"]["sentence"]
    # of (64 + 1) 4 + (4 + 1) 10 parameters, trained at two rates
    assert "one small network (tanh on digits, 310 parameters)" in sentence


def test_an_error_over_blocks_knows_a_series_that_remembers():
    """An AR(1) series of memory ρ: the variance of its mean is (1 + ρ) / (1 − ρ) times that of independent numbers."""
    generator, rho, n = np.random.default_rng(0), 0.9, 4000
    x = np.zeros(n)
    for i in range(1, n):
        x[i] = rho * x[i - 1] + generator.standard_normal()
    expected = math.sqrt((1 + rho) / (1 - rho) / (1 - rho**2) / n)
    assert 0.5 < block_error(x, 40) / expected < 1.5
    assert math.isnan(block_error(np.ones(5), 4)) and block_error(np.ones(8), 4) == 0


# Cross-section -------------------------------------------------------------------------------------------------------
def test_the_curvature_of_the_surface_is_that_of_the_hessian():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 4).double(), torch.randn(20, 3, dtype=torch.float64), torch.randint(0, 4, (20,))
    theta = parameters_to_vector(model.parameters()).detach()
    H = spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, y)])
    for d in (torch.randn(16, dtype=torch.float64), spectral.top(H, 1).vectors[:, 0]):
        value, error = curvature(model, x, y, theta, d)
        assert abs(value - float(d @ (H @ d) / (d @ d))) <= error < 0.01 * value  # of a unit of length
    assert torch.equal(parameters_to_vector(model.parameters()), theta)


@pytest.mark.parametrize("kink", [3e-7, 3e-6, 20 / 3 * 1e-6, 1.4e-5, 1e-3])
def test_kinks_near_the_centre_are_not_taken_for_curvature(kink):
    """A unit that begins `kink` away: the Hessian does not see it. What is left is rounding at steps of kink / 16 or more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 3)).double()
    x, y, d = torch.ones(1, 1, dtype=torch.float64), torch.tensor([1]), torch.zeros(13, dtype=torch.float64)
    d[2], d[3] = 0.8, 0.6
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias[:] = torch.tensor([-0.8 * kink, 0.5])
    theta = parameters_to_vector(model.parameters()).detach()
    value, error = curvature(model, x, y, theta, d)
    H = spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, y)])
    assert abs(value - float(d @ (H @ d))) <= error
    rounding = 64 * torch.finfo(torch.float64).eps * float(nn.CrossEntropyLoss()(model(x), y).detach())
    assert error < rounding * (16 / min(kink, 1e-4)) ** 2 + 0.01 * value


def test_a_random_direction_has_the_norms_of_the_filters():
    model = cnn(1, 10, 4, norm=True)
    d = filter_normalised(model, 0, 1)
    assert not torch.equal(d, filter_normalised(model, 0, 0))
    for part, p in zip(d.split([p.numel() for p in model.parameters()]), model.parameters(), strict=True):
        if p.ndim > 1:
            np.testing.assert_allclose(
                part.view(len(p), -1).norm(dim=1), p.detach().view(len(p), -1).norm(dim=1), rtol=1e-5
            )
        else:
            assert not part.any()


def test_curvatures_by_products_and_their_ratio_lie_within_two_of_their_errors():
    """Against a dense Hessian in float64. Along directions hundreds of times flatter the error was relative to what is left, and
    up to 2.6 of it too small; "times flatter" had none."""
    flat = []
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
        H = spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, y)])
        D = torch.stack([filter_normalised(model, seed, i) for i in (0, 1)], 1)
        dense = (
            spectral.Hessian(copy.deepcopy(model).double(), nn.CrossEntropyLoss(), [(x.double(), y)])
            @ torch.eye(67).double()
        )
        values, V = torch.linalg.eigh(dense)
        # nearly along an eigenvector of no curvature: what is left is the difference of large numbers
        D = torch.cat([D, (V[:, :1] * values[-1].sqrt() + V[:, -1:] * values[0].abs().sqrt()).float()], 1)
        value, error = rayleigh(H, D)
        true = ((D.double() * (dense @ D.double())).sum(0) / (D.double() ** 2).sum(0)).numpy()
        assert (abs(value - true) <= 2 * error).all() and (error <= 2e-7 * float(values.abs().max())).all()
        flat.append(abs(value[2]) / float(values[-1]))
    assert max(flat) < 1e-5


def test_the_surface_of_a_linear_model_is_its_loss():
    model = nn.Linear(1, 2, bias=False).double()
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    z = surface(
        model,
        x,
        y,
        torch.zeros(2, dtype=torch.float64),
        torch.eye(2, dtype=torch.float64),
        np.array([0.0, 1]),
        np.array([0.0]),
    )
    np.testing.assert_allclose(z, [[math.log(2), math.log(1 + math.exp(-1))]], atol=1e-15)


@pytest.fixture(scope="module")
def section():
    study = cross_section(tiny(), points=5, checkpoints=4)
    return study, perform(study)


def test_a_cross_section_whose_curvatures_are_not_known_is_undecided(section):
    """Their errors are a fifth of the eigenvalues: that they agree says nothing."""
    study, _ = section

    def unsure(parts):
        arrays = dict(parts["eigenvectors"].arrays)
        arrays["measured_error"] = 0.2 * arrays["known"]
        return study.conclude(parts | {"eigenvectors": replace(parts["eigenvectors"], arrays=arrays)})

    assert perform(replace(study, conclude=unsure)).answer == "undecided"


def test_how_much_flatter_a_random_direction_is_has_an_error(section):
    """A tenth of the curvature is a tenth of the ratio."""
    study, findings = section

    def unsure(parts):
        arrays = dict(parts["random"].arrays)
        arrays["known_error"] = 0.1 * np.abs(arrays["known"])
        return study.conclude(parts | {"random": replace(parts["random"], arrays=arrays)})

    said = perform(replace(study, conclude=unsure)).sentence
    (pairs,) = re.findall(r"random directions are (.*) ± (.*) and (.*) ± (.*) times flatter", said)
    value, error = np.array(pairs[::2], float), np.array(pairs[1::2], float)
    products = [float(e) for e in findings.estimates["curvature_by_products"].values()]
    np.testing.assert_allclose(value, sorted(products[0] / np.abs(products[2:])), rtol=0.05)
    np.testing.assert_allclose(error, 0.1 * value, rtol=0.05)


def test_a_cross_section_agrees_with_the_eigenvalues_and_says_so(section):
    _, findings = section
    assert findings.answer == "yes" and "top two eigenvectors, whose eigenvalues are" in findings.sentence
    products, surfaces = (findings.estimates[name] for name in ("curvature_by_products", "curvature_of_surface"))
    for key, value in products.items():
        assert float(surfaces[key]) == pytest.approx(float(value), rel=0.01)
        assert float(value) <= float(products["eigenvectors-1"]) * (1 + 1e-6)  # no direction is steeper
    for sheet in findings.charts[0].sheets:
        assert sheet.z.shape == (5, 5) and sheet.z.argmin() == 12  # the centre
        np.testing.assert_allclose(sheet.path[-1], 0, atol=1e-6)  # the trained network, to the float32 of its training
    with pytest.raises(ValueError, match="odd number"):
        cross_section(tiny(), points=6)


def test_a_study_has_a_page_with_its_answer_and_pictures(section):
    study, findings = section
    report = charts.report(study, findings, "mlp on digits")
    pictures = page.draw(report)
    text = page.render(report, pictures)
    assert report.verdict.sentence.endswith("; mlp on digits.") and report.verdict.sentence.count(".;") == 0
    assert len(pictures["chart1"].panels) == 4 and text.count("<img") == 4
    assert "The loss around the trained network" in text and "dᵀHd / dᵀd by products" in text
    assert findings.sentence.removesuffix(".") in page.text(report)
    assert study.expectation in html.unescape(text) and study.reference in html.unescape(text)


# Batch norm, blocks --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_batch_norm_takes_the_outliers_out_and_its_running_statistics_bring_them_back():
    settings = Settings(problem=lambda seed: digits(seed=seed, image=True), seeds=(0,))
    findings = perform(batchnorm_outliers(settings, epochs=30, steps=20))
    assert findings.answer == "yes", findings.sentence


def exact(*values: float) -> Spectrum:
    return Spectrum.from_eigenvalues(np.array(values))


def test_a_tenth_eigenvalue_that_may_not_be_positive_says_nothing():
    """A ratio of -3 is no small one."""
    study = batchnorm_outliers(tiny())
    for tenth, answer in ((2.0, "yes"), (-1.0, "undecided"), (1e-9, "undecided")):
        values = {
            "without": np.linspace(30, 1, 10),
            "batch": np.linspace(3, tenth, 10),
            "population": np.linspace(9, 1, 10),
        }
        parts = {
            f"seed0-{kind}": Part({"values": v, "residuals": np.full(10, 1e-8)}, {"loss": 0.1}, {kind: exact(1.0, 2.0)})
            for kind, v in values.items()
        }
        assert study.conclude(parts).answer == answer


@pytest.mark.parametrize("gap", [0.0, 0.5, 2.0, 40.0])
def test_the_divergence_of_two_smoothed_eigenvalues_is_that_of_two_gaussians(gap):
    def term(x: float) -> float:
        p, q = (math.exp(-0.5 * (x - c) ** 2) / math.sqrt(2 * math.pi) for c in (0, gap))
        return 0.5 * sum(r * math.log2(2 * r / (p + q)) for r in (p, q) if r > 0)

    expected = quad(term, -9, gap + 9, limit=200, points=[0, gap / 2, gap])[0]
    assert heterogeneity([exact(3.0), exact(3.0 + 0.1 * gap)], 0.1)[0] == pytest.approx(expected, abs=2e-4)


def test_heterogeneity_is_the_mean_over_pairs_with_a_jackknife_over_blocks():
    assert heterogeneity([exact(0.0), exact(0.0), exact(1.0)]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert heterogeneity([exact(0.0)] * 3) == (0.0, 0.0)
    assert all(map(math.isnan, heterogeneity([exact(0.0)])))
    far = [exact(0.0, 1e6), exact(0.0, 1e-9)]  # nine decades and a range of 1e8 sigma on sparse cells
    shared = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25) - 0.5  # half of one is where the other is
    assert heterogeneity(far)[0] == pytest.approx(shared)


# Kept and resumed ----------------------------------------------------------------------------------------------------
def test_a_step_is_kept_as_it_was(tmp_path: Path):
    store = RunStore(tmp_path, {"of": "this"}, resume=False)
    part = Part(
        {"x": np.array([1.0, math.nan]), "y": np.arange(12.0).reshape(4, 3)[:, 1]},
        {"products": 3.0, "epochs": 1.0, "seconds": 0.5, "said": "yes"},
        {"a.b": exact(1.0, 2.0)},
    )
    assert store.load("step", STEP) is None
    store.save("step", part)
    again = RunStore(tmp_path, {"of": "this"}, resume=True).load("step", STEP)
    assert again is not None and again.facts == part.facts
    np.testing.assert_array_equal(again.arrays["x"], part.arrays["x"])
    np.testing.assert_array_equal(again.arrays["y"], [1.0, 4.0, 7.0, 10.0])
    assert again.arrays["y"].strides == part.arrays["y"].strides  # or sums differ by their last bits
    np.testing.assert_array_equal(again.spectra["a.b"].points()[0], [1.0, 2.0])
    (kept,) = store.folder.glob("spectra/*")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged or missing"):
        store.load("step", STEP)


def composed(tmp_path: Path, *overrides: str) -> dict:
    """A configuration as the command makes it, without pictures."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        made = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    made["output"] |= {"figures": False, "report": False, "state": str(tmp_path / "state")}
    return made


def config(tmp_path: Path) -> dict:
    made = composed(tmp_path, "experiment=cross_section", "data.train=40", "model.options.widths=[8]")
    made["training"]["options"]["max_epochs"] = 20
    made["experiment"] |= {"points": 5, "checkpoints": 3}
    return made


def leaves(tree):
    """The numbers of nested dictionaries, in order."""
    for value in tree.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


def test_an_interrupted_study_goes_on_to_the_same_numbers(tmp_path: Path, monkeypatch, capsys):
    from spectral.experiments import cross_section as module

    settings = config(tmp_path)
    shown, steps = module.surface, []

    def once(*args):
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return shown(*args)

    monkeypatch.setattr(module, "surface", once)
    with pytest.raises(run.Interrupted):
        run.execute(settings, tmp_path / "one")
    run.execute(settings | {"resume": True}, tmp_path / "one")
    assert len(steps) == 3  # the first plane was not made again
    monkeypatch.setattr(module, "surface", shown)
    run.execute(settings | {"output": settings["output"] | {"state": str(tmp_path / "other")}}, tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    numbers = [np.array(list(leaves(found["estimates"]))) for found in (one, two)]
    np.testing.assert_allclose(*numbers, rtol=1e-6, atol=1e-12)  # which engine multiplied is measured anew
    assert one["answer"]["verdict"] == two["answer"]["verdict"]
    assert [cell["condition"] for cell in one["cells"]] == ["training", "eigenvectors", "random"]
    assert (tmp_path / "one" / "training.npz").exists()


@pytest.mark.parametrize("model", sorted(path.stem for path in Path(config_folder()).glob("model/*.yaml")))
def test_what_the_file_of_a_model_chooses_is_named_by_nobody(model, tmp_path: Path, monkeypatch):
    """A study that looks at models takes each of them as it comes: a training that it does not look at was not asked for."""
    own = {"file": ["model.path=net.py:make", "data.path=data.npz", "trust=[net.py]"], "huggingface": ["model.name=."]}
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    arguments = ["experiment=edge_of_stability", f"model={model}", *own.get(model, [])]
    settings = composed(tmp_path, *arguments)
    configuration.check(settings, defaults(settings))
    typed = settings | {"training": settings["training"] | {"enabled": True, "options": {"lr": 0.5}}}
    with pytest.raises(ValueError, match="does not look at training, which would be ignored"):
        configuration.check(typed, defaults(typed))


def test_groups_that_a_study_does_not_look_at_are_refused(tmp_path: Path):
    settings = config(tmp_path)
    configuration.check(settings)
    changed = settings | {"estimator": {"_target_": "spectral.slq"}}
    with pytest.raises(ValueError, match="does not look at estimator, which would be ignored"):
        configuration.check(changed, {"estimator": settings["estimator"]})
    with pytest.raises(ValueError, match="take training=adam"):
        configuration.check(settings | {"training": {"enabled": False, "noise": 0.0, "options": {}}})
    blocks = {"_target_": "spectral.experiments.block_heterogeneity.block_heterogeneity"}
    with pytest.raises(ValueError, match="it has networks and data of its own"):
        configuration.check(
            settings | {"experiment": blocks, "model": settings["model"] | {"kind": "cnn", "options": {}}}
        )
