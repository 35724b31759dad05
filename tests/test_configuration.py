"""Configurations are checked whole before anything is built, run or written, whoever wrote them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
from pathlib import Path
from typing import Any

import fuzz
import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf
from test_fuzz import said
from test_run import call, here  # noqa: F401  (a fixture)

from spectral.__main__ import config_folder, defaults
from spectral.app import configuration, hydra_node, run, single
from spectral.experiments.cell import Settings
from spectral.schema import RULED, Mismatch

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

    evil = {"model/evil.yaml": "{_target_: spectral.experiments.own.model, images: false, path: 'conf/evil.py:make'}"}
    writes = f"open({str(mark)!r}, 'w')\n"

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
        "callback of a file that is put there": ({"attack/a.yaml": "# @package hydra\ncallbacks: {x: {y: 1}}"}, use),
        "callback by a file of hydra's": (globally("defaults: [/hydra/launcher@hydra.callbacks.x: basic]"), use),
        "callback by a file of ours": (globally("defaults: [/estimator@hydra.callbacks.x: exact]"), use),
        "environment by a file of ours": (globally("defaults: [/device@hydra.job.env_set: cpu]"), use),
        "callback that is typed": ({}, ["+hydra.callbacks.x={y: 1}"]),
        "environment that is typed whole": ({}, ["hydra.job.env_set={LD_PRELOAD: x.so}"]),
        "environment by a file of ours, typed": ({}, ["+device@hydra.job.env_set=cpu"]),
        "launcher that joblib evaluates": (hydra("launcher: {pre_dispatch: 'exit()'}"), swept),
        "launcher's shell": (hydra("launcher: {setup: ['touch x']}"), swept),
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
        "sweeper that sets the environment": (
            hydra("sweeper: {params: {'+hydra.job.env_set.LD_PRELOAD': x.so}}"),
            swept,
        ),
        "sweeper that reads the environment": (hydra("sweeper: {params: {output.root: '${oc.env:HOME}'}}"), swept),
        "sweeper that puts a file there": (hydra("sweeper: {params: {'+device@hydra.job.env_set': cpu}}"), swept),
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
        "folders of a sweep, by its values": (
            hydra(
                "sweep: {dir: swept, subdir: 'x${hydra.job.override_dirname}'}, sweeper: {params: {batch_size: 7, seed: '1,2'}}, "
                "job: {config: {override_dirname: {kv_sep: '/../../..', item_sep: '/../../../../../', exclude_keys: []}}}"
            ),
            swept,
        ),
        "folders of a sweep, by a file in its values": (
            hydra("sweep: {subdir: '${hydra.job.override_dirname}'}, sweeper: {params: {data.path: '/../../x,y'}}"),
            swept,
        ),
        "folders of a sweep that are typed, of its values": (
            {"data/x.yaml": f"_target_: spectral.experiments.datasets.text\npath: '/../../../../../../{MARK}'"},
            ["data=x", "model=gpt", "hydra.sweep.subdir=x${data.path}", "seed=0,1", "-m"],
        ),
        "folder of a run that is typed, of its values": (
            {"data/x.yaml": f"_target_: spectral.experiments.datasets.text\npath: '/../../../{MARK}'"},
            ["data=x", "model=gpt", "hydra.run.dir=x${data.path}"],
        ),
        "folder of hydra's files": (hydra(f"output_subdir: '../../../../{MARK}'"), use),
        "output": (globally(f"output: {{root: '{mark}'}}"), use),
        "state": (globally(f"output: {{state: '{mark}'}}"), use),
        "search path": (hydra(f"searchpath: ['file://{folder}']"), use),
        "search path in a package": ({}, ["hydra.searchpath=[pkg://antigravity]"]),
        "resolver of the environment": (globally("output: {root: '${oc.env:HOME}'}"), use),
        "resolver named by another": (globally("output: {root: '${oc.${now:e}nv:HOME}'}"), use),
        "resolver named by a setting": (hydra("run: {dir: 'x-${oc.${hydra.job.name}:HOME}'}, job: {name: env}"), use),
        "resolver in a target": (globally("model: {_target_: '${oc.env:HOME}'}"), use),
        "resolver inside another": (globally("output: {root: '${now:${oc.env:HOME}}'}"), use),
        "model": (globally(f"model: {touch}"), use),
        "data": ({"data/x.yaml": touch}, ["data=x"]),
        "Python of its own": ({**evil, "evil.py": writes}, ["model=evil"]),
        "Python that it trusts": (
            {**evil, **globally("trust: [conf/evil.py]"), "evil.py": writes},
            ["model=evil", *use],
        ),
        "Python beside what is trusted": (
            {**evil, "evil.py": writes, "good.py": ""},
            ["model=evil", "trust=[conf/good.py]"],
        ),
        "Python behind the folder of what is trusted": (
            {
                "model/evil.yaml": evil["model/evil.yaml"].replace("evil.py", "sub/../evil.py"),
                "evil.py": writes,
                "sub/evil.py": "",
            },
            ["model=evil", "trust=[conf/sub/evil.py]"],
        ),
        "function that runs files": (
            {"model/evil.yaml": evil["model/evil.yaml"].replace(".model,", ".call,"), "evil.py": writes},
            ["model=evil", "trust=[conf/evil.py]"],
        ),
        "experiment": ({"experiment/x.yaml": touch}, ["experiment=x"]),
        "loss": (globally(f"operator: {{loss: {touch}}}"), [*use, "operator=hessian"]),
        "target where nothing is built": (globally("training: {options: {lr: {_target_: spectral.exact}}}"), use),
        "function that writes": (
            globally("model: {_target_: spectral.estimators.checkpoint.Checkpoint, path: x}"),
            use,
        ),
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
    left = {path for path in tree(tmp_path) - before if path.is_file()}
    assert not left and not (tmp_path / MARK).exists()
    assert {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"} == {
        k: v for k, v in environment.items() if k != "PYTEST_CURRENT_TEST"
    }


def test_a_foreign_configuration_may_say_where_runs_are_written_and_how_large_jobs_are(here, monkeypatch):  # noqa: F811
    (here / "mine" / "site").mkdir(parents=True)
    (here / "mine" / "site" / "a.yaml").write_text(
        "# @package _global_\nhydra: {run: {dir: 'there/${now:%H}'}, sweep: {dir: swept, subdir: 'x-${hydra.job.num}'}, "
        "job: {name: mine}, verbose: false}"
    )
    for path in Path(config_folder()).glob("launcher/*.yaml"):
        hydra_node.check_file(OmegaConf.to_container(OmegaConf.load(path)))
    folders: list[Path] = []
    monkeypatch.setattr(run, "execute", lambda settings, folder, *given: folders.append(folder))
    call(monkeypatch, "--config-dir", "mine", "operator=hessian", "+site=a")
    call(monkeypatch, "operator=hessian", "hydra.job_logging.root.level=WARNING", "hydra.run.dir=typed")
    assert [folder.relative_to(here).parts[0] for folder in folders] == ["there", "typed"]


# Random configurations ------------------------------------------------------------------------------------------------
TINY = ["data.train=40", "data.test=20", "model.options.widths=[8]"]
BASES = [
    ["experiment=real_vs_random", "experiment.seeds=[0]", *TINY],
    ["experiment=depth_sweep", "data.train=40"],
    ["experiment=label_noise_sweep", *TINY],
    ["experiment=jacobian_evolution", *TINY],
    ["operator=hessian", *TINY],
    ["operator=input_stacked", "estimator=slq", "training=none", *TINY],
    ["operator=jacobian", "estimator=top", "estimator.k=2", *TINY],
    ["operator=loss_gradients", "estimator=trace", "model=cnn", "data.train=40"],
    ["experiment=language_model", "data.train=10", "data.test=2", "model.options.width=8"],
]


class Stopped(Exception):
    """Everything was in order until something would be trained."""


def composed(arguments: list[str]) -> dict[str, Any]:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=config_folder()):
        return OmegaConf.to_container(hydra.compose("config", overrides=arguments), resolve=True)  # type: ignore[return-value]


def random_trees(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, seed: int) -> list[str]:
    """Change one thing of a configuration; "refused" in one sentence, or "accepted" and in order until it trains."""

    def stop(*given: Any, **options: Any) -> None:
        raise Stopped

    for module, name in ((single, "network"), (run, "all_cells")):
        monkeypatch.setattr(module, name, stop)
    monkeypatch.chdir(folder)
    rng, found = np.random.default_rng(seed), []
    bases = [composed(arguments) for arguments in BASES]
    for k in range(count):
        base = copy.deepcopy(bases[k % len(bases)])
        _, tree, what = fuzz.damaged(rng, {}, base)
        try:
            try:
                configuration.check(tree, defaults(tree))
                tree["output"]["root"], tree["output"]["state"] = str(folder / "out"), str(folder / "state")
                run.execute(tree, folder / "run")
            except Stopped:
                found.append("accepted")
            except (ValueError, TypeError) as problem:
                said(problem)
                found.append("refused")
            else:
                raise AssertionError("it was run")
        except Exception as problem:
            raise AssertionError(f"{BASES[k % len(bases)]}: {what}: {type(problem).__name__}: {problem}") from problem
    return found


VALUES = [
    "true", "yes", "1", "-1", "0", "1e400", "nan", "null", "", "[]", "[0,0]", "[a]", "{a: 1}", "'",
    "${seed}", "${x}", "${oc.env:HOME}",
    "../x", "abc", "10mni", "1e-3", "2.5", "9999999999999999999999",
]  # fmt: skip


def random_lines(monkeypatch: pytest.MonkeyPatch, capfd: Any, count: int, seed: int) -> list[str]:
    """Command lines with one setting changed, misspelt, or repeated."""
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "execute", lambda settings, *given: ran.append(settings))
    rng, found = np.random.default_rng(seed), []
    known = [
        [".".join(p) for p in fuzz.places(composed(b)) if all(isinstance(x, str) for x in p)] for b in BASES[:count]
    ]
    for k in range(count):
        base, keys = BASES[k % len(BASES)], known[k % len(BASES)]
        key, value = str(rng.choice(keys)), str(rng.choice(VALUES))
        how = rng.integers(6)
        key = key[:-1] if how == 0 else key.upper() if how == 1 else key
        line = [*base, ("+" if how == 2 else "~" if how == 3 else "") + key + ("" if how == 4 else f"={value}")]
        ran.clear()
        capfd.readouterr()
        try:
            call(monkeypatch, *line)
        except SystemExit as stop:
            shown = capfd.readouterr().err
            assert stop.code == 2 and shown.startswith("spectral: ") and shown.count("\n") == 1, (line, shown)
            assert "Traceback" not in shown and len(shown) < 900 and not ran, (line, shown)
            found.append("refused")
        else:
            assert len(ran) == 1, line
            configuration.check({k: v for k, v in ran[0].items() if k != "choices"}, defaults(ran[0]))
            found.append("accepted")
    return found


def test_a_configuration_with_one_thing_changed_is_refused_in_one_sentence_or_in_order(tmp_path, monkeypatch):
    assert set(random_trees(tmp_path, monkeypatch, 24, seed=0)) == {"accepted", "refused"}


def test_a_command_line_with_one_thing_changed_is_refused_in_one_sentence_or_in_order(here, monkeypatch, capfd):  # noqa: F811
    assert "refused" in random_lines(monkeypatch, capfd, 4, seed=0)


@pytest.mark.slow
def test_the_same_of_many_configurations(tmp_path, monkeypatch):
    assert len(random_trees(tmp_path, monkeypatch, 800, seed=1)) == 800


@pytest.mark.slow
def test_the_same_of_many_command_lines(here, monkeypatch, capfd):  # noqa: F811
    assert len(random_lines(monkeypatch, capfd, 200, seed=1)) == 200


# Functions ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("function", RULED, ids=lambda function: function.__name__)
def test_a_function_refuses_what_a_configuration_of_it_refuses(function):
    """Its rules are of its keywords (or of `Settings`), take its defaults, and hold for whoever calls it."""
    known, rule = inspect.signature(function).parameters, RULED[function]
    given = {name: None for name, p in known.items() if p.default is p.empty}
    assert set(rule.must) == set(given) & {*rule.must, *rule.may}
    for name, one in {**rule.must, **rule.may}.items():
        if name not in known:
            assert "settings" in known and name in {field.name for field in dataclasses.fields(Settings)}
            with pytest.raises(Mismatch, match=name):
                Settings(**{name: object()})
            continue
        if name in rule.may:
            one.check(known[name].default, name)
        with pytest.raises(Mismatch) as problem:
            function(**{**dict.fromkeys(given, "x"), name: object()})
        assert problem.value.where == name


# Products --------------------------------------------------------------------------------------------------------------
PRODUCTS = {"engine": "auto", "product_dtype": None, "memory": None, "preflight": True}
OPERATORS = sorted(path.stem for path in Path(config_folder()).glob("operator/*.yaml"))


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_the_settings_of_products(name):
    """Said once, in the group `products`; they stand with the operator, as if its own file had them."""
    tree = composed([f"operator={name}", "operator.memory=1MiB"])
    configuration.check(tree, defaults(tree))
    assert {key: tree["operator"][key] for key in PRODUCTS} == PRODUCTS | {"memory": "1MiB"}
    if name in ("jacobian", "hessian"):
        given = [f"operator={name}", "products=fresh"]
        assert composed(given)["operator"]["engine"] == "fresh"
        assert composed([*given, "operator.engine=replay"])["operator"]["engine"] == "replay"


def test_a_file_of_an_operator_may_have_its_own_settings_of_products(here, monkeypatch):  # noqa: F811
    (here / "mine" / "operator").mkdir(parents=True)
    (here / "mine" / "operator" / "old.yaml").write_text(
        "{_target_: spectral.Jacobian, of: logits, wrt: inputs, layout: stacked, split: test, samples: 5, engine: replay}"
    )
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "execute", lambda settings, *given: ran.append(settings))
    call(monkeypatch, "--config-dir", "mine", "operator=old", "operator.preflight=false")
    (settings,) = ran
    assert settings["operator"] == {
        **PRODUCTS, "_target_": "spectral.Jacobian", "of": "logits", "wrt": "inputs", "layout": "stacked",
        "split": "test", "samples": 5, "engine": "replay", "preflight": False, "chunk": None,
    }  # fmt: skip


def test_products_are_of_one_spectrum(here, monkeypatch, capsys):  # noqa: F811
    """Named alone they ask for one; an experiment, whose matrices are its own, refuses them as it does an operator."""
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "execute", lambda settings, *given: ran.append(settings))
    call(monkeypatch, "products=fresh")
    assert ran[0]["operator"]["engine"] == "fresh" and ran[0].get("experiment") is None
    assert "products" not in ran[0] and "products" not in ran[0]["choices"]
    with pytest.raises(SystemExit):
        call(monkeypatch, "experiment=real_vs_random", "products=fresh")
    assert "operator would be ignored" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["1" * 400, "../operator/hessian", "/etc/passwd", "nul\0"])
def test_names_of_a_configuration_are_looked_up_and_never_paths(kind):
    assert "model" not in defaults({"model": {"kind": kind}}) and "model" in defaults({"model": {"kind": "mlp"}})
