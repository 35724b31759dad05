"""Configurations are checked whole before anything is built, run or written, whoever wrote them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_run import call, here  # noqa: F401  (a fixture)

from spectral import run

MARK = "hit"  # what an attack would leave behind
HYDRA = [  # the groups of hydra's own configuration
    *(
        "output: default",
        "launcher: basic",
        "sweeper: basic",
        "help: default",
        "hydra_help: default",
        "hydra_logging: default",
    ),
    *("job_logging: default", "callbacks: null", "env: default"),
]


def attacks(folder: Path) -> dict[str, tuple[dict[str, str], list[str]]]:
    """Files of a foreign configuration folder, and arguments beside --config-dir, by what they try."""
    mark = folder / MARK
    touch = f"{{_target_: subprocess.Popen, args: [touch, '{mark}']}}"
    made = f"{{(): subprocess.Popen, args: [touch, '{mark}']}}"

    def globally(text: str) -> dict[str, str]:
        return {"attack/a.yaml": "# @package _global_\n" + text}

    def hydra(text: str) -> dict[str, str]:
        return globally(f"hydra: {{{text}}}")

    use = ["+attack=a"]
    swept = [*use, "-m"]
    on_file = f"{{handlers: {{x: {{class: logging.FileHandler, filename: '{mark}'}}}}, root: {{handlers: [x]}}}}"
    return {
        "callback": (hydra(f"callbacks: {{x: {touch}}}"), use),
        "callback of hydra's own": (
            hydra("callbacks: {x: {_target_: hydra.experimental.callbacks.PickleJobInfoCallback}}"),
            use,
        ),
        "callback that is ours": (hydra("callbacks: {x: {_target_: spectral.exact}}"), use),
        "callback in a group": ({"hydra/callbacks/x.yaml": f"x: {touch}"}, ["hydra/callbacks=x"]),
        "launcher": (hydra(f"launcher: {touch}"), use),
        "launcher, swept": (hydra(f"launcher: {touch}"), swept),
        "launcher, its target alone": (hydra("launcher: {_target_: antigravity.x}"), swept),
        "launcher that is chosen": (
            {**globally("defaults: [{override /hydra/launcher: x}]"), "hydra/launcher/x.yaml": touch},
            swept,
        ),
        "launcher in place of hydra's": ({"hydra/launcher/basic.yaml": touch}, ["-m"]),
        "launcher with more": (hydra(f"launcher: {{x: {touch}}}"), swept),
        "sweeper": (hydra(f"sweeper: {touch}"), swept),
        "sweeper, its target alone": (hydra("sweeper: {_target_: antigravity.x}"), swept),
        "sweeper that is chosen": (
            {**globally("defaults: [{override /hydra/sweeper: x}]"), "hydra/sweeper/x.yaml": touch},
            swept,
        ),
        "sweeper's own settings": (hydra(f"sweeper: {{params: {{output.root: '{mark}'}}}}"), swept),
        "sweeper in place of hydra's": ({"hydra/sweeper/basic.yaml": touch}, ["-m"]),
        "one run of a sweep": (
            {**hydra(f"callbacks: {{x: {touch}}}"), "attack/b.yaml": "# @package _global_\nbatch_size: 7"},
            ["+attack=b,a", "-m"],
        ),
        "job logging to a file": (hydra(f"job_logging: {on_file}"), use),
        "job logging by a factory": (hydra(f"job_logging: {{handlers: {{x: {made}}}}}"), use),
        "job logging by a class": (hydra("job_logging: {handlers: {x: {class: subprocess.Popen, args: [ls]}}}"), use),
        "job logging by ext://": (hydra("job_logging: {handlers: {console: {stream: ext://os.environ}}}"), use),
        "formatter by a factory": (hydra(f"job_logging: {{formatters: {{x: {made}}}}}"), use),
        "filter by a factory": (hydra(f"job_logging: {{filters: {{x: {made}}}}}"), use),
        "hydra's logging": (hydra(f"hydra_logging: {{handlers: {{x: {made}}}}}"), use),
        "hydra's logging, help": (hydra(f"hydra_logging: {{handlers: {{x: {made}}}}}"), [*use, "--help"]),
        "hydra itself": (
            {"hydra/config.yaml": f"defaults: [{', '.join(HYDRA)}]\ncallbacks: {{x: {touch}}}"},
            [],
        ),
        "name of a log file": (hydra(f"job: {{name: '../../../{MARK}'}}"), [*use, "hydra/job_logging=default"]),
        "environment": (hydra("job: {env_set: {LD_PRELOAD: x.so}}"), use),
        "working folder": (hydra("job: {chdir: true}"), use),
        "folder of the run": (hydra(f"run: {{dir: '{mark}'}}"), use),
        "folder of the run, relative": (hydra(f"run: {{dir: '../{MARK}'}}"), use),
        "folder of a sweep": (hydra(f"sweep: {{dir: '{mark}'}}"), swept),
        "folders of a sweep": (hydra(f"sweep: {{subdir: '../../../../{MARK}'}}"), swept),
        "folders of a sweep, built": (hydra(f"sweep: {{subdir: '${{output.root}}/../../{MARK}'}}"), swept),
        "folder of hydra's files": (hydra(f"output_subdir: '../../../../{MARK}'"), use),
        "output": (globally(f"output: {{root: '{mark}'}}"), use),
        "state": (globally(f"output: {{state: '{mark}'}}"), use),
        "search path": (hydra(f"searchpath: ['file://{folder}']"), use),
        "search path in a package": ({}, ["hydra.searchpath=[pkg://antigravity]"]),
        "resolver of the environment": (globally("output: {root: '${oc.env:HOME}'}"), use),
        "resolver in a target": (globally("model: {_target_: '${oc.env:HOME}'}"), use),
        "resolver inside another": (globally("output: {root: '${now:${oc.env:HOME}}'}"), use),
        "model": (globally(f"model: {touch}"), use),
        "data": ({"data/x.yaml": touch}, ["data=x"]),
        "experiment": ({"experiment/x.yaml": touch}, ["experiment=x"]),
        "loss": (globally(f"operator: {{loss: {touch}}}"), [*use, "operator=hessian"]),
        "target where nothing is built": (globally("training: {options: {lr: {_target_: spectral.exact}}}"), use),
        "function that writes": (globally("model: {_target_: spectral.estimators.kept.Kept, path: x}"), use),
        "checkpoint elsewhere": (globally(f"estimator: {{checkpoint: '{mark}'}}"), [*use, "estimator=slq"]),
        "pickle of a job": ({"x.pickle": ""}, ["--experimental-rerun", "x.pickle"]),
        "configuration in place of ours": ({"mine.yaml": "hydra: {searchpath: []}"}, ["--config-name", "mine"]),
    }


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("name", attacks(Path("/nowhere")))
def test_a_foreign_configuration_runs_and_writes_nothing(tmp_path, here, monkeypatch, capfd, name):  # noqa: F811
    """One sentence and status 2; neither the file that it would make, nor any other, inside or outside of the working folder."""
    files, arguments = attacks(tmp_path)[name]
    inside = here / "a" / "b"
    inside.mkdir(parents=True)
    for file, text in files.items():
        (inside / "conf" / file).parent.mkdir(parents=True, exist_ok=True)
        (inside / "conf" / file).write_text(text)
    (inside / "conf").mkdir(exist_ok=True)
    monkeypatch.chdir(inside)
    monkeypatch.setattr(run, "execute", lambda *given: pytest.fail("it was run"))
    before, environment = tree(tmp_path), dict(os.environ)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--config-dir", str(inside / "conf"), *arguments)
    said = capfd.readouterr().err
    assert stop.value.code == 2, said
    assert said.startswith("spectral: ") and said.count("\n") == 1
    left = {path for path in tree(tmp_path) - before if path.is_file() and path.name != "multirun.yaml"}
    assert not left and not (tmp_path / MARK).exists()
    assert {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"} == {
        k: v for k, v in environment.items() if k != "PYTEST_CURRENT_TEST"
    }
