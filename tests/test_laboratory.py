"""Every experiment of conf/experiment, small: from the command to a page that answers, with the pictures that it names."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest
from test_run import call, here, results  # noqa: F401  (a fixture)

from spectral.__main__ import config_folder
from spectral.experiments.experiments import EXPERIMENTS
from spectral.experiments.studies import STUDIES

SMALL = ["data.train=40", "data.test=20", "training.options.max_epochs=10", "experiment.seeds=[0,1]"]
MLP = ["model.options.widths=[6]", "experiment.ntk_samples=8"]
RESNET = [f"~experiment.options.{depth}" for depth in (164, 272, 542, 1001)]
TEXT = [
    "data.train=10", "data.test=2", "data.length=8", "model.options.width=4", "model.options.depth=1", "model.options.heads=2",
    "training.options.max_epochs=2", "experiment.samples=2", "experiment.ntk_samples=1", "experiment.block_steps=4",
    "experiment.pairs=2", "experiment.block_probes=1", "estimator=slq", "estimator.probes=2", "estimator.steps=8",
    'experiment.blocks=["*query","*key"]',
]  # fmt: skip
WITH = {  # what makes each of them small, and the pictures that it must have beside the densities
    "real_vs_random": (MLP, ("effects", "alignment")),
    "label_noise_sweep": ([*MLP, "experiment.noises=[0,0.5,1]"], ("alignment",)),
    "input_noise": ([*MLP, "experiment.inputs=[real,gaussian]"], ("cdf",)),
    "jacobian_evolution": ([*MLP[1:], "model.options.widths=[6]", "experiment.epochs=[0,1,2]"], ("training",)),
    "depth_sweep": ([*MLP[1:], *(f"~experiment.options.{depth}" for depth in (4, 5))], ("training",)),
    "depth_sweep_resnet": ([*RESNET, "experiment.seeds=[0]", "training.options.max_epochs=1", "data.train=10"], ()),
    "jacobian_diagonal": (MLP[:1], ("prototypes",)),
    "ntk_information_space": (MLP, ("alignment", "effects")),
    "ggn_outliers": (["model.options.widths=[6]", "experiment.classes=[3,4]"], ("counts",)),
    "hessian_index": (["model.options.widths=[4]"], ("training",)),
    "language_model": (TEXT, ("blocks",)),
    "layer_weightwatcher": (
        ["model.options.widths=[8,8,8]", "experiment.block_steps=6", "experiment.block_probes=1"],
        (),
    ),
}


def training(name: str) -> list[str]:
    return [text for text in SMALL if not (name == "jacobian_evolution" and "max_epochs" in text)]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH)
def test_every_experiment_runs_and_its_page_answers_first(name, here, monkeypatch, capsys) -> None:  # noqa: F811
    arguments, pictures = WITH[name]
    call(monkeypatch, f"experiment={name}", *training(name), *arguments, "output.figures=false")
    (path,) = results(here)
    result, page = json.loads(path.read_text()), (path.parent / "report.html").read_text()
    sentence = html.escape(result["answer"]["sentence"], quote=False)
    assert result["answer"]["verdict"] in ("yes", "no", "undecided", "found")
    assert page.index("<h1>") < page.index('<p class="answer') < page.index("<figure")
    assert sentence in page.replace("&#39;", "'").replace("&#34;", '"')
    assert "What others lead one to expect." in page and "peak memory" in page
    for picture in ("landscape", *pictures):
        assert f'<figure id="{picture}">' in page
    assert result["answer"]["sentence"] in capsys.readouterr().out


def test_every_experiment_says_its_question_expectation_reference_cost_and_is_listed() -> None:
    files = sorted((Path(config_folder()) / "experiment").glob("*.yaml"))
    listed = (Path(__file__).parents[1] / "docs" / "experiments.md").read_text()
    for file in files:
        text = file.read_text()
        for word in ("# Question: ", "# Expectation: ", "# Reference: ", "# Cost: "):
            assert word in text, f"{file.name} lacks {word}"
        assert f"`{file.stem}`" in listed, file.stem
    named = {file.stem for file in files}
    assert named >= set(EXPERIMENTS) | set(STUDIES) and set(WITH) | set(STUDIES) == named
