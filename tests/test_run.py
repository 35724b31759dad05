"""The command: what it writes, what it refuses and how it says so, and that a resumed run is the uninterrupted one."""

from __future__ import annotations

import argparse
import errno
import html
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spectral import persist
from spectral.__main__ import main, sentence, with_default
from spectral.app import run, targets
from spectral.estimators import checkpoint
from spectral.persist import alone
from spectral.spectrum import Spectrum

TINY = ["data.train=40", "data.test=20", "model.options.widths=[8]", "training.options.max_epochs=15"]
SINGLE = [*TINY, "operator=input_stacked", "output=numbers"]
EXPERIMENT = [
    *TINY, "experiment=real_vs_random", "experiment.seeds=[0,1]", "experiment.kinds=[stacked,ntk]",
    "experiment.outputs=[logits]", "experiment.splits=[train]", "experiment.ntk_samples=10", "output=numbers",
]  # fmt: skip


def spectral(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.run(
        [sys.executable, "-m", "spectral", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An unrelated folder to call the command in, with process-wide settings put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command in this process."""
    monkeypatch.setattr(sys, "argv", ["spectral", *arguments])
    main()


def results(folder: Path) -> list[Path]:
    return sorted(folder.rglob("result.json"))


def result_files(folder: Path) -> set[str]:
    """The spectra of a run: those in its folder, and those that its result.json names."""
    named = {cell["spectrum"] for cell in json.loads((folder / "result.json").read_text())["cells"]}
    assert named == {path.relative_to(folder).as_posix() for path in folder.rglob("*.npz")}
    return named


def said_first(folder: Path, shown: str) -> str:
    """The sentence below the question: the same on the terminal, on the page (where there is one) and in result.json."""
    result = json.loads((folder / "result.json").read_text())
    lines = shown.splitlines()
    place = next(i for i, line in enumerate(lines) if line.endswith(result["question"]))
    if (folder / "report.html").exists():
        page = (folder / "report.html").read_text()
        answers = re.findall(rf'<p class="answer {result["answer"]["verdict"]}">(.*?)</p>', page)
        assert [html.unescape(text) for text in answers] == [lines[place + 1]]
        assert page.index("<h1>") < page.index(answers[0]) < page.index("<figure" if "<figure" in page else "<h2>")
    return lines[place + 1]


def test_a_plan_is_said_for_each_job_and_nothing_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    call(monkeypatch, "-m", *SINGLE, "model=mlp", "estimator=slq", "estimator.steps=5,9", "plan=only")
    said = [line for line in capfd.readouterr().out.splitlines() if " products, about " in line]
    assert [line.split(": ")[1].split()[0] for line in said] == ["20", "36"] and not results(here)

    def said_by(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["spectral", *arguments, "plan=only"])
        with suppress(SystemExit):
            main()
        return "".join(capfd.readouterr())

    assert "plan=only is of one spectrum by slq or esd" in said_by()
    one = (*SINGLE, "model=mlp", "estimator=slq")
    assert "16 products, about" in said_by(*one, "estimator.steps=4", "estimator.tol=1e-2", "estimator.probes=4")
    assert "tol decides in the run how many these are" in said_by(*one, "estimator.tol=1e-2")
    assert ": exact: dimension" in said_by(*SINGLE, "model=mlp", "estimator=esd")  # as the run then does
    assert "no basis" in said_by(*one, "estimator.steps=4", "estimator.reorthogonalize=false")
    monkeypatch.setattr(sys.modules["spectral.plan"], "free_memory", lambda A: 1000)
    assert "which does not fit; most are for" in said_by(*one)


def test_a_run_that_takes_long_says_beforehand_what_it_takes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(sys.modules["spectral.app.single"], "LONG", 1e-9)
    call(monkeypatch, *SINGLE, "model=mlp", "estimator=slq", "estimator.steps=5")
    assert sum(" products, about " in line for line in capfd.readouterr().out.splitlines()) == 1


def test_a_single_spectrum_from_an_unrelated_folder(tmp_path: Path) -> None:
    done = spectral(*SINGLE, "output=default", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet when not a terminal
    (path,) = results(tmp_path)
    assert done.stdout.splitlines()[-1] == f"report: {path.parent / 'report.html'}"
    assert {"report.html", "landscape.png", "cdf.png", "spectra"} <= {p.name for p in path.parent.iterdir()}
    assert result_files(path.parent) == {"spectra/spectrum.npz"}
    result = json.loads(path.read_text())
    assert {"config", "environment", "cost", "metrics", "estimates"} <= set(result)
    assert {"products", "epochs", "seconds", "peak_bytes"} <= set(result["cost"])
    assert result["config"]["data"]["train"] == 40
    values, counts = Spectrum.load(path.parent / "spectra" / "spectrum.npz").points()
    assert result["metrics"]["trace"] == pytest.approx(values @ counts)
    assert result["estimates"]["trace"]["stderr"] == 0  # exact
    assert "±" in done.stdout and "effective rank" in done.stdout
    assert result["answer"]["verdict"] == "found" and result["answer"]["sentence"] == said_first(
        path.parent, done.stdout
    )


def test_errors_are_one_sentence_and_status_2(tmp_path: Path) -> None:
    done = spectral("model=transformer", folder=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr
        == "spectral: There is no model=transformer; model is one of cnn, deep, file, gpt, huggingface, minilm, mlp, resnet, "
        "small, smollm2, tanh.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.options.widhts=[3]"], "did you mean widths?"),
        (["sede=1"], "did you mean seed?"),
        (["experiment.sede=1"], "There is no experiment.sede (did you mean seeds?); experiment has seeds, "),
        (["trust.foo=1"], "There is no setting trust.foo."),
        (["experiment=ggn_outliers", "experiment.seeds.foo=1"], "There is no setting experiment.seeds.foo."),
        (["operator=null"], "A group takes the name of one of its choices, which null and numbers are not;"),
        (["-m", "experiment=null,ggn_outliers"], "A group takes the name of one of its choices"),
        (["experiment=null", "seed=abc"], "seed='abc' is not possible; use a whole number >= 0."),
        (["launcher=null", "hydra.job.chdir=false", "model=mlp", "seed=abc"], "seed='abc' is not possible"),
        (["operator=hessian", "operator.loss.foo=3"], "There is no operator.loss.foo; operator.loss has weight, "),
        (["+seed=1"], "seed is there already; leave out its +."),
        (["experiment=fun"], "experiment is one of batchnorm_outliers"),
        (["operator._target_=os.system"], "'os.system' is not allowed"),
        (["operator._target_=spectral.app.run.os.system"], "is not allowed"),
        (["operator=loss_gradients", "operator.loss._target_=torch.load"], "'torch.load' is not allowed"),
        (["+hydra.callbacks.x._target_=subprocess.run"], "'subprocess.run' is not allowed"),
        (
            ["hydra.job.num=abc"],
            "hydra.job.num=abc is not possible: Value 'abc' of type 'str' could not be converted to Integer.",
        ),
        (["model=file", "data.path=x.npz"], "model.path must be given; add model.path=net.py:FUNCTION."),
        (["model=mlp", "trust.0=net.py"], "The list trust is written whole, not item by item: trust=[A,B]."),
        (["data=file"], "data.path must be given; add data.path=batches.py:FUNCTION or data.path=FILE.npz."),
        (["model=net.py:Net"], "tanh; your own is model=file model.path=net.py:Net."),
        (["data=file", "data.path=nowhere.npz"], "nowhere.npz does not exist"),
        (["model=cnn", "data.image=false"], "image=True"),
        (["model=cnn", "data=text"], "data.tokens follows model.text, which is not there; choose another model."),
        (
            ["model=cnn", "data=text", "data.tokens=bytes", "data.targets=next"],
            "A cnn reads numbers, and text is tokens",
        ),
        (["model=gpt", "data=digits"], "A gpt needs text in tokens=bytes with targets=next, but digits has"),
        (["experiment=language_model", "experiment.trains=false"], "experiment.trains follows training.enabled"),
        (["model=resnet", "model.options.depth=21"], "nearest allowed depths"),
        (["estimator.method=magic"], "use one of auto"),
        (["model=mlp", "what"], "write KEY=VALUE"),
        (["seed=3"], "experiment.seeds"),
        (["model=mlp", "seed=abc"], "seed='abc' is not possible; use a whole number >= 0."),
        (["model=mlp", "device.threads=0"], "device.threads=0 is not possible"),
        (["model=mlp", "device=mps"], "device=mps has no float64; add dtype=float32, or use device=cpu."),
        (["model=mlp", "device=mps", "dtype=float32"], "device=mps needs a GPU that torch can see, and there is none"),
        (["operator=input_stacked", "operator.samples=-2"], "operator.samples=-2 is not possible"),
        (["operator=input_stacked", "analysis.top=0"], "analysis.top=0 is not possible"),
        (["operator=input_stacked", "operator.product_dtype=int8"], "float64, float32, bfloat16 or float16"),
        (["operator=input_stacked", "operator.split=all"], "operator.split='all' is not possible; use train or test."),
        (
            ["operator=input_stacked", "estimator=top", "estimator.k=0"],
            "estimator.k=0 is not possible; use a whole number >= 1.",
        ),
        (["operator=input_stacked", "estimator=svd", "estimator.which=magnitude"], "use largest or smallest or null."),
        (
            ["operator=input_stacked", "estimator=trace", "estimator.rtol=-1"],
            "estimator.rtol=-1 is not possible; use a number > 0 or null.",
        ),
        (
            ["operator=input_stacked", "estimator=diagonal", "estimator.probes=0"],
            "estimator.probes=0 is not possible; use a whole number >= 1 or null.",
        ),
        (["experiment=depth_sweep", "estimator=top"], "An experiment compares spectra, and this estimator gives none"),
    ],
)
def test_errors_say_what_to_do(here: Path, monkeypatch, capsys, arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments, "training=none") if arguments[0].startswith("operator=input") else call(
            monkeypatch, *arguments
        )
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert said in shown.err and shown.err.startswith("spectral: ") and shown.err.count("\n") == 1
    assert "Traceback" not in shown.err


def test_options_of_operator_and_estimator_are_settable(here: Path, monkeypatch) -> None:
    """They reach the operator and the run, and stand in the description of what was done."""
    call(
        monkeypatch, *SINGLE, "operator.engine=replay", "operator.memory=1MiB", "operator.preflight=false",
        "operator.product_dtype=float32", "estimator=slq", "estimator.tol=0.2",
    )  # fmt: skip
    call(monkeypatch, *SINGLE, "estimator=slq", "estimator.budget=30products", "estimator.steps=9")
    by_tolerance, by_budget = (Spectrum.load(path.parent / "spectra" / "spectrum.npz") for path in results(here))
    described = by_tolerance.meta["operator"]
    described = described.get("of", [described])[0] if isinstance(described.get("of"), list) else described
    assert described["engine"] == "replay" and described["preflight"] is False
    assert described["product_dtype"] == "float32" and described["product_noise"] > 0
    assert by_tolerance.meta["stop"] == "tolerance" and by_tolerance.meta["error"]["w1_95"] <= 0.2
    assert by_tolerance.meta["steps"] is None and by_budget.meta["steps"] == 9
    assert by_budget.products <= 30 and max(record.steps for record in by_budget.records) <= 9


FOUND = [
    ("top", ["operator=hessian", "estimator.k=4", "estimator.tol=1e-10"], ["values", "residuals", "converged", "vectors"]),
    pytest.param(
        "svd", ["operator=jacobian", "operator.samples=12"], ["values", "residuals", "converged", "left", "right"],
        marks=pytest.mark.slow,
    ),
    ("trace", ["operator=fisher", "operator.draws=2", "estimator.probes=30"], ["value", "stderr"]),
    pytest.param(
        "diagonal", ["operator=empirical_fisher", "estimator.probes=40"], ["value", "stderr"], marks=pytest.mark.slow
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "arrays"), FOUND)
def test_other_estimators_write_numbers_with_their_errors_and_resume(
    here: Path, monkeypatch, capsys, name: str, arguments: list[str], arrays: list[str]
) -> None:
    given = [*TINY, f"estimator={name}", *arguments, "operator.engine=fresh"]
    stepped, calls = checkpoint.Checkpoint.stepped, []
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0.0)

    def struck(self, *state, **options):
        calls.append(self)
        if len(calls) == 2:
            raise run.Terminated
        stepped(self, *state, **options)

    monkeypatch.setattr(checkpoint.Checkpoint, "stepped", struck)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *given)
    assert stop.value.code == 143 and "1 in the making" in capsys.readouterr().err
    monkeypatch.setattr(checkpoint.Checkpoint, "stepped", stepped)
    for more in (["resume=true"], ["resume=true"], []):
        capsys.readouterr()
        call(monkeypatch, *given, *more)
    resumed, again, whole = results(here)
    assert comparable(resumed) == comparable(whole) == comparable(again)
    result = json.loads(whole.read_text())
    pictures = {"training.png"} | (set() if name == "trace" else {"numbers.png"})
    assert {p.name for p in whole.parent.glob("*.png")} == pictures
    with np.load(whole.parent / "estimate.npz", allow_pickle=False) as file:
        assert set(arrays) <= set(file.files)
        first = file[arrays[0]]
    page = (whole.parent / "report.html").read_text()
    assert result["answer"]["sentence"] == said_first(whole.parent, capsys.readouterr().out)
    for number in result["estimates"].values():
        assert {"stderr", "residual"} & set(number) and f"{number['value']:.6g}" in page
        assert number["value"] in first
    assert page.count("data:image/png") == len(pictures) and "http" not in page
    assert not list(here.glob("outputs/state/*/probes-*"))
    if name == "top":
        assert (
            all(number["converged"] for number in result["estimates"].values())
            and result["cells"][0]["found"]["complete"]
        )


def test_the_diagonal_of_a_rectangular_operator_is_said_to_be_its_grams(here: Path, monkeypatch, capsys) -> None:
    call(monkeypatch, *SINGLE, "estimator=diagonal", "estimator.method=exact", "operator=input_flattened")
    assert (
        "The matrix is 40 x 640: the numbers are those of its Gram, 40 x 40, on the left side."
        in capsys.readouterr().out
    )
    call(monkeypatch, *SINGLE, "estimator=exact", "operator=input_flattened")
    first, second = (json.loads(path.read_text()) for path in results(here))
    with np.load(results(here)[0].parent / "estimate.npz") as file:
        assert file["value"].sum() == pytest.approx(second["metrics"]["trace"])  # the trace both ways
    assert first["cells"][0]["found"]["method"] == "exact"


def test_full_error_shows_the_exception(here: Path, monkeypatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="use one of auto"):
        call(monkeypatch, *SINGLE, "estimator.method=magic")


def test_no_target_outside_our_own_is_located() -> None:
    for target in (
        "spectral.esd", "spectral.Jacobian", "spectral.experiments.datasets.digits", "torch.nn.MSELoss",
        "spectral.experiments.datasets.arrays_file", "spectral.experiments.own.model", "spectral.estimators.slq.slq",
        "spectral.experiments.models.model_for",
    ):  # fmt: skip
        assert callable(targets.locate(target))
    for target in (
        "os.system", "torch.load", "builtins.eval", "spectral", "spectral.app.run.Path", "spectral.app.run.torch.load",
        "spectral.persist.atomic_write", "spectral.app.store.RunStore", "spectral.app.run.execute", "spectral.pages.page.write",
        "spectral.experiments.cell.replace", "spectral.analysis.marchenko_pastur.np",
        "spectral.estimators.slq.persist", "spectral.storage.save",
        "spectral.app.run.partial", "torch.nn.Module.load_state_dict", "torch.nn.init", "spectral.app.run._measure",
        "spectral.nothing",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="_target_"):
            targets.locate(target)
    with pytest.raises(ValueError, match="not allowed"):
        targets.check_targets({"a": [{"b": {"_target_": "os.remove"}}]})


def test_the_flagship_is_run_unless_a_part_is_named() -> None:
    assert with_default([]) == ["experiment=real_vs_random"]
    assert with_default(["-m", "experiment.seeds=[0]"])[-1] == "experiment=real_vs_random"
    assert with_default(["experiment.seeds=[0]", "training.options.lr=0.1"])[-1] == "experiment=real_vs_random"
    assert with_default(["model=cnn"]) == ["model=cnn"]
    assert with_default(["training.noise=1"]) == ["training.noise=1"]
    assert with_default(["experiment=depth_sweep", "model=cnn"]) == ["experiment=depth_sweep", "model=cnn"]


def test_an_error_without_a_full_stop_becomes_a_sentence() -> None:
    assert sentence(KeyError("no such\n thing"), []) == "no such thing."
    there = RuntimeError('Could not detect "srun", are you indeed on a slurm cluster?')
    assert sentence(there, []).startswith("launcher=slurm needs srun, which this machine has not; run where Slurm is")


def test_what_cannot_be_read_or_written_is_named_with_what_to_do() -> None:
    said = sentence(FileExistsError(errno.EEXIST, "File exists", "net.py"), [])
    assert said == "net.py cannot be read or written (File exists); name another file or folder."


def comparable(path: Path) -> dict:
    """metrics and estimates, which must not depend on when or how often a run was interrupted."""
    result = json.loads(path.read_text())
    return {key: result[key] for key in ("metrics", "estimates")}


def test_the_command_that_goes_on_writes_into_the_folder_that_was_named(here: Path, monkeypatch) -> None:
    told = []
    monkeypatch.setattr(run, "execute", lambda config, folder, command, asked: told.append((Path(folder), command)))
    given = ["operator=hessian", "hydra.run.dir=a folder", "data.train=20"]
    call(monkeypatch, *given)
    ((folder, command),) = told
    assert folder.name == "a folder" and sorted(shlex.split(command)) == sorted(["spectral", *given])
    call(monkeypatch, *shlex.split(command)[1:], "resume=true")
    assert told[1] == (folder, command)


def test_an_interrupted_experiment_goes_on_to_the_same_numbers(here: Path, monkeypatch, capsys) -> None:
    real = run.run_cell
    calls: list[object] = []

    def third_time_killed(*arguments, **options):
        if len(calls) == 3:
            raise run.Terminated
        calls.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(run, "run_cell", third_time_killed)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *EXPERIMENT)
    said = capsys.readouterr().err
    assert (
        stop.value.code == 143
        and "resume=true" in said
        and "5 trained networks" not in said
        and "3 finished spectra" in said
    )
    lines = said.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        f"real_vs_random {i}/12".replace(" ", "  ", 1) for i in (1, 2, 3)
    ]
    assert not results(here)

    def counted(*arguments, **options):
        calls.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(run, "run_cell", counted)
    call(monkeypatch, *EXPERIMENT, "resume=true")
    assert len(calls) == 12  # 2 seeds x 3 conditions x 2 matrices, none of them twice
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and ["3 kept from before" in line for line in lines] == [True] + [False] * 9
    call(monkeypatch, *EXPERIMENT)  # afresh
    assert len(calls) == 24
    resumed, whole = results(here)
    assert comparable(resumed) == comparable(whole)
    answer = json.loads(whole.read_text())["answer"]
    assert answer["verdict"] == "undecided"  # four networks that were trained for fifteen epochs
    assert "4 of 4 trained networks missed their target loss" in answer["sentence"]
    assert "one small network (mlp on digits, 610 parameters)" in answer["sentence"]
    assert answer["sentence"] == said_first(whole.parent, capsys.readouterr().out)
    assert len(result_files(whole.parent)) == 12
    for name in result_files(whole.parent):
        a, b = Spectrum.load(resumed.parent / name), Spectrum.load(whole.parent / name)
        assert np.array_equal(a.points()[0], b.points()[0])


@pytest.mark.parametrize(
    ("said", "amount"),
    [
        ("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 432000 "
         "bytes. Error code 12 (Cannot allocate memory)", "432000 bytes"),
        ("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB", "20.00 GiB"),
        ("Unable to allocate 74.5 GiB for an array with shape (100000, 100000) and data type float64", "74.5 GiB"),
    ],
)  # fmt: skip
def test_memory_that_runs_out_is_said_with_what_to_do(said, amount):
    told = sentence(RuntimeError(said), [])
    assert (
        told.startswith(f"The memory does not suffice, for {amount} more; use a smaller batch_size")
        and "alloc_cpu" not in told
    )


def test_a_run_that_begins_anew_loses_nothing_of_one_that_did_not_end(here: Path, monkeypatch, capsys) -> None:
    real = run.single

    def killed(*given: object) -> None:
        real(*given)
        raise KeyboardInterrupt

    def at_once(*given: object) -> None:
        raise KeyboardInterrupt

    for work in (killed, at_once):
        monkeypatch.setattr(run, "single", work)
        with pytest.raises(SystemExit):
            call(monkeypatch, *SINGLE)
        said = capsys.readouterr().err
        assert ("did not end: 1 trained networks, 1 finished spectra" in said) == (work is at_once)
    (state,) = here.glob("outputs/state/*.before")
    found = []
    monkeypatch.setattr(run, "single", lambda *given: found.append(given[2].parts()) or real(*given))
    call(monkeypatch, *SINGLE, "resume=true")
    assert found[0].startswith("1 trained networks, 1 finished spectra") and not state.exists()
    call(monkeypatch, *SINGLE)
    assert found[1].startswith("0 trained networks, 0 finished") and capsys.readouterr().err == ""


def test_no_run_writes_over_another_one(here: Path, monkeypatch, capsys) -> None:
    """The same run may be made again where it was; another one, or one at the same time, is refused and changes no file."""
    call(monkeypatch, *SINGLE, "hydra.run.dir=mine")
    first = {path: path.read_bytes() for path in (here / "mine").rglob("*") if path.is_file()}
    assert b"seed: 0" in first[here / "mine" / ".hydra" / "config.yaml"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as problem:
        call(monkeypatch, *SINGLE, "hydra.run.dir=mine", "estimator=trace")
    assert problem.value.code == 2 and "mine holds another run" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1 and all(path.read_bytes() == was for path, was in first.items())
    assert {path for path in (here / "mine").rglob("*") if path.is_file()} == set(first)
    call(monkeypatch, *SINGLE, "hydra.run.dir=mine")
    metrics = json.loads((here / "mine" / "result.json").read_text())["metrics"]
    assert metrics == json.loads(first[here / "mine" / "result.json"])["metrics"]
    call(monkeypatch, *SINGLE, "hydra.run.dir=mine", "hydra.output_subdir=asked")
    call(monkeypatch, *SINGLE, "hydra.run.dir=mine", "hydra.output_subdir=")  # beside the result, as hydra has it
    for place in ("asked/config.yaml", "config.yaml"):
        assert (here / "mine" / place).read_bytes() == first[here / "mine" / ".hydra" / "config.yaml"]
    (here / "busy").mkdir()
    kept = sorted((here / "outputs" / "state").rglob("*"))
    with alone(here / "busy"), pytest.raises(SystemExit):
        call(monkeypatch, *SINGLE, "hydra.run.dir=busy")
    assert "Another run is writing into" in capsys.readouterr().err and not any((here / "busy").iterdir())
    assert sorted((here / "outputs" / "state").rglob("*")) == kept  # the other run's state is where it was


def test_each_run_of_a_sweep_has_what_was_asked_for_in_its_own_folder(here: Path, monkeypatch) -> None:
    """Also where another one has the folder of its number."""
    for seed in ("0", "1"):
        call(monkeypatch, "-m", *SINGLE, "hydra.sweep.dir=swept", f"seed={seed}")
    asked = sorted(path.parent for path in (here / "swept").rglob("config.yaml"))
    assert [path.parent for path in asked] == sorted(path.parent for path in results(here / "swept"))
    assert [(path / "overrides.yaml").read_text().count("seed=0") for path in asked] == [1, 0]


def test_ctrl_c_while_torch_is_loading_is_one_line_of_a_command_and_a_traceback_of_a_program(tmp_path: Path) -> None:
    (tmp_path / "stub").mkdir()
    stub = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.raise_signal(signal.SIGINT)\n"
    )
    (tmp_path / "stub" / "torch.py").write_text(stub)  # a shell's background jobs ignore it
    for name in ("spectral", "spectral-report", "mine.py"):
        (tmp_path / name).write_text("import spectral\n")
    path = os.pathsep.join(map(str, (tmp_path / "stub", Path(run.__file__).parents[2])))
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | {"PYTHONPATH": path}
    for arguments, said in {
        ("-m", "spectral"): "spectral: Interrupted.\n",
        ("-u", "-m", "spectral", "-m"): "spectral: Interrupted.\n",
        ("spectral", "seed=1"): "spectral: Interrupted.\n",
        ("spectral-report", "x"): "spectral-report: Interrupted.\n",
        ("mine.py",): "",
    }.items():
        line = [sys.executable, *arguments]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode and done.stderr == said if said else "Traceback" in done.stderr, (arguments, done.stderr)
        if os.name == "posix":
            assert done.returncode == -signal.SIGINT


def test_a_full_disk_at_the_end_is_one_sentence_and_what_was_computed_is_kept(here: Path, monkeypatch, capsys) -> None:
    plain = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "result.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *SINGLE)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert (
        "result.json could not be written (No space left on device); 1 trained networks, 1 finished spectra and 0 in"
        in said
    )
    assert "make room, and run it again with resume=true." in said and not results(here)


def test_damaged_or_foreign_state_is_an_error(here: Path, monkeypatch, capsys) -> None:
    call(monkeypatch, *SINGLE)
    (spectrum,) = here.glob("outputs/state/*/spectrum.npz")
    content = spectrum.read_bytes()
    spectrum.write_bytes(content[: len(content) // 2])
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *SINGLE, "resume=true")
    assert stop.value.code == 2 and "damaged" in capsys.readouterr().err
    spectrum.write_bytes(content)
    arrays, header = persist.load_arrays(spectrum)
    persist.save_arrays(spectrum, arrays, {**header, "of": "0" * 16})
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *SINGLE, "resume=true")
    assert stop.value.code == 2 and "another configuration" in capsys.readouterr().err


def test_other_settings_never_share_state(here: Path, monkeypatch) -> None:
    call(monkeypatch, *SINGLE)
    call(monkeypatch, *SINGLE, "seed=1", "resume=true")
    first, second = results(here)
    assert comparable(first) != comparable(second)
    assert len(list(here.glob("outputs/state/*"))) == 2


# Where the signal comes: in a step of the training; or in an exec of a string, as imports and torch have them, where CPython ends
# with SIGINT if a KeyboardInterrupt has passed through it.
PLANTED = {
    "training": """
def step(self, *given, plain=torch.optim.Adam.step, made=[], **options):
    made.append(plain(self, *given, **options))
    if len(made) == 20:
        os.kill(os.getpid(), signal.SIGTERM)
    return made[-1]
torch.optim.Adam.step = step
""",
    "exec": 'targets.check_targets = lambda config: exec("os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)")',
}


@pytest.mark.parametrize("where", ["training", pytest.param("exec", marks=pytest.mark.slow)])
def test_sigterm_ends_the_command_with_143_and_one_sentence(tmp_path: Path, where: str) -> None:
    """A real signal to a real process."""
    program = "import os, signal, time, torch\nimport spectral.__main__ as command\nfrom spectral.app import targets\n"
    program += PLANTED[where] + "\ncommand.main()"
    arguments = [*SINGLE, "training.options.max_epochs=100000", "training.options.target_loss=1e-30"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, timeout=300
    )  # fmt: skip
    assert done.returncode == 143
    assert done.stderr.startswith("spectral: Interrupted") and done.stderr.count("\n") == 1
    assert where == "training" or done.stderr == "spectral: Interrupted before anything was computed.\n"


def test_own_arrays_from_a_file(here: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    np.savez(here / "mine.npz", x=rng.normal(size=(60, 5)), y=np.arange(60) % 3)
    call(
        monkeypatch,
        "data=file",
        "data.path=mine.npz",
        "data.train=40",
        "data.test=20",
        "training=none",
        "operator=input_stacked",
        "output=numbers",
    )
    (path,) = results(here)
    result = json.loads(path.read_text())
    assert result["metrics"]["dim"] == 5 and result["cells"][0]["condition"] == "init"


def test_an_interrupted_sweep_says_what_is_finished_and_goes_on_in_its_own_folder(
    here: Path, monkeypatch, capsys
) -> None:
    real, calls = run.execute, []

    def cut_off(*given: Any) -> Path:
        calls.append(given)
        if len(calls) == 2:
            raise run.Terminated
        return real(*given)

    monkeypatch.setattr(run, "execute", cut_off)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "-m", "seed=0,1,2", *SINGLE)
    said = capsys.readouterr().err
    assert stop.value.code == 143 and said.count("\n") == 1, said
    (folder,) = (here / "outputs" / "sweeps").iterdir()
    assert "Interrupted with 1 of 3 runs finished" in said and "(0); go on with: spectral" in said
    call(monkeypatch, *shlex.split(said.partition("go on with: spectral ")[2]))
    assert len(calls) == 4  # one, the one that was cut off, and two more
    assert list((here / "outputs" / "sweeps").iterdir()) == [folder]
    assert [path.parent.name for path in results(folder)] == ["0", "1", "2"]


def test_a_job_that_a_launcher_has_lost_is_one_sentence_with_its_log_and_the_way_on(here: Path, monkeypatch) -> None:
    folder = here / "sweep"
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "result.json").write_text("{}")
    path = folder / ".submitit" / "7_1" / "7_1_0_result.pkl"
    lost = RuntimeError(
        f"Job 7_1 (task: 0) with path {path}\nhas not produced any output (state: FAILED)\nError stream produced:\n---\nTrace"
    )
    given = ["-m", "launcher=slurm", "seed=0,1"]
    monkeypatch.setattr(sys, "argv", ["spectral", *given])
    said, log = sentence(lost, given), path.with_name("7_1_0_log.err")
    assert said == (
        f"A process of a job ended without a result (state: FAILED), see {log}; 1 of 2 runs finished in {folder} (0); "
        f"go on with: spectral -m launcher=slurm seed=0,1 hydra.sweep.dir={folder} resume=true"
    )


def test_helps_of_options_that_are_no_text_do_not_stop_the_command(here, monkeypatch, capsys):
    """Python 3.14 looks at each of them when the option is made; hydra's of --shell-completion is an object."""
    add = argparse.ArgumentParser.add_argument

    def looked_at(parser, *given, **options):
        action = add(parser, *given, **options)
        parser._check_help(action)
        return action

    def check(parser, action):
        if action.help and not isinstance(argparse.HelpFormatter("")._get_help_string(action), str):
            raise ValueError("badly formed help string")

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", looked_at)
    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check, raising=False)
    with pytest.raises(SystemExit, match="0"):
        call(monkeypatch, "--help")
    assert "spectral experiment=NAME" in capsys.readouterr().out
