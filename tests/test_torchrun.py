"""The command in several processes: one run in one folder, the numbers of one process, one end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spectral.spectrum import Spectrum

TINY = ["data.train=40", "data.test=20", "model.options.widths=[8]", "training.options.max_epochs=15", "batch_size=16"]
SINGLE = [
    *TINY,
    "operator=gauss_newton",
    "operator.engine=fresh",
    "estimator=slq",
    "estimator.steps=12",
    "output=numbers",
]

# A program that is the command, but for what it does to rank 1.
PROGRAM = """
import os, signal, sys
from pathlib import Path
import spectral.__main__ as command
from spectral.app import run
from spectral.networks.curvature import Curvature
plain, products = Curvature._apply, []

def fail():
    raise OSError("the disk of this rank is gone.")

def struck(self, V):
    products.append(V.shape[1])
    if os.environ["RANK"] == "1" and len(products) == 20 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        {what}
    return plain(self, V)

Curvature._apply = struck
try:
    command.main()
finally:
    Path(f"products-{{os.environ['RANK']}}-{{os.environ['TORCHELASTIC_RESTART_COUNT']}}").write_text(str(len(products)))
"""


def torchrun(folder: Path, *program: str, ranks: int = 2, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", f"--max-restarts={restarts}"]
    return subprocess.run(
        [sys.executable, *command, *program], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip


def alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spectral", *arguments], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip


def the_result(folder: Path) -> dict:
    """Of the only run below a folder."""
    (path,) = folder.rglob("result.json")
    return json.loads(path.read_text())


def numbers(folder: Path) -> dict:
    """metrics and estimates, as one level."""
    flat: dict[str, float] = {}

    def put(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                put(f"{name}.{key}", part)
        elif isinstance(value, list):
            for i, part in enumerate(value):
                put(f"{name}.{i}", part)
        elif isinstance(value, int | float):
            flat[name] = float(value)

    result = the_result(folder)
    put("", {key: result[key] for key in ("metrics", "estimates")})
    return flat


def alike(one: Path, other: Path) -> bool:
    a, b = numbers(one), numbers(other)
    return a.keys() == b.keys() and all(np.isclose(a[key], b[key], rtol=1e-6, atol=1e-9) for key in a)


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The sentences of the command, among the words of torchrun."""
    return [line for line in done.stderr.splitlines() if line.startswith("spectral: ")]


@pytest.mark.slow
def test_torchrun_makes_one_run_in_one_folder_with_the_numbers_of_one_process(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    one.mkdir()
    done = torchrun(two, "-m", "spectral", *SINGLE)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^result: ", done.stdout, flags=re.MULTILINE)) == 1 and said(done) == []
    (day,) = (path for path in (two / "outputs").iterdir() if path.name != "state")
    assert len(list(day.iterdir())) == 1
    assert the_result(two)["environment"]["ranks"] == 2
    assert alone(one, *SINGLE).returncode == 0
    assert alike(two, one)


@pytest.mark.slow
def test_more_ranks_than_batches_and_probes_of_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "four", "probes")]
    for folder in folders:
        folder.mkdir()
    assert alone(folders[0], *SINGLE).returncode == 0
    done = torchrun(folders[1], "-m", "spectral", *SINGLE, ranks=4)  # three batches
    assert done.returncode == 0, done.stderr
    done = torchrun(folders[2], "-m", "spectral", *SINGLE, "estimator.ranks=probes")
    assert done.returncode == 0, done.stderr
    assert alike(folders[1], folders[0]) and alike(folders[2], folders[0])
    spectra = [Spectrum.load(next(folder.rglob("spectra/spectrum.npz"))) for folder in folders]
    assert spectra[2].meta["operator"]["teams"] == 2 and spectra[2].products == spectra[0].products


OTHERS = [
    ["estimator=trace", "estimator.ranks=probes"],
    ["estimator=top", "estimator.k=3"],
    ["estimator=svd", "estimator.k=2", "operator=jacobian"],
]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", OTHERS)
def test_other_estimators(tmp_path: Path, estimator: list[str]) -> None:
    given = [*TINY, "operator=gauss_newton", "output=numbers", *estimator]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    done = torchrun(tmp_path / "two", "-m", "spectral", *given)
    assert done.returncode == 0, done.stderr
    assert alone(tmp_path / "one", *given).returncode == 0
    assert alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_an_experiment_and_a_sweep(tmp_path: Path) -> None:
    wide = "model.options.widths=[72]"  # than inputs and classes: no eigenvalue is 0, whose rounding effect sizes would compare
    experiment = [
        *TINY, wide, "experiment=real_vs_random", "experiment.seeds=[0,1]", "experiment.kinds=[stacked,diagonal,ntk]",
        "experiment.outputs=[logits]", "experiment.splits=[train]", "experiment.ntk_samples=20", "output=numbers",
    ]  # fmt: skip
    for name in ("one", "two", "sweep"):
        (tmp_path / name).mkdir()
    done = torchrun(tmp_path / "two", "-m", "spectral", *experiment)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("real_vs_random")][-1].startswith(
        "real_vs_random 18/18"
    )
    assert alone(tmp_path / "one", *experiment).returncode == 0
    assert alike(tmp_path / "one", tmp_path / "two")
    done = torchrun(tmp_path / "sweep", "-m", "spectral", "-m", "seed=0,1", *SINGLE)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "sweep" / "outputs" / "sweeps").iterdir()
    assert [path.parent.name for path in sorted(sweep.rglob("result.json"))] == ["0", "1"]


@pytest.mark.slow
def test_what_one_rank_fails_with_is_one_sentence_and_a_status(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(what="fail()"))
    done = torchrun(tmp_path, "program.py", *SINGLE)
    assert done.returncode != 0
    words = "rank 1 of 2 failed (OSError: the disk of this rank is gone); mend it there, and start all ranks again."
    assert said(done) == [f"spectral: {words}"]
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.slow
def test_what_all_ranks_are_given_wrongly_is_said_once(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "-m", "spectral", *SINGLE, "estimator.tol=7")
    assert done.returncode != 0 and len(said(done)) == 1 and "estimator.tol=7 is not possible" in said(done)[0]


@pytest.mark.slow
def test_torchrun_starts_again_from_what_is_kept_when_a_rank_was_killed(tmp_path: Path) -> None:
    for name in ("killed", "one"):
        (tmp_path / name).mkdir()
    (tmp_path / "killed" / "program.py").write_text(PROGRAM.format(what="os.kill(os.getpid(), signal.SIGKILL)"))
    done = torchrun(tmp_path / "killed", "program.py", *SINGLE, restarts=1)
    assert done.returncode == 0, done.stderr
    assert alone(tmp_path / "one", *SINGLE).returncode == 0
    assert alike(tmp_path / "killed", tmp_path / "one")
    assert len([path for path in (tmp_path / "killed" / "outputs").glob("*/*") if path.parent.name != "state"]) == 1
    whole = the_result(tmp_path / "one")["cost"]["products"]
    again = int((tmp_path / "killed" / "products-0-1").read_text())
    assert again < whole  # the first probe at least was there


@pytest.mark.slow
def test_a_launcher_of_jobs_makes_each_run_in_several_processes_and_says_what_went_wrong(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    jobs = ["-m", "launcher=processes", "hydra.launcher.tasks_per_node=2"]
    for name in ("jobs", "one"):
        (tmp_path / name).mkdir()
    done = alone(tmp_path / "jobs", *jobs, *SINGLE, "data.train=40,100000")
    assert done.returncode == 2 and said(done)[0].startswith("spectral: train=100000 and test=20 do not fit")
    assert alone(tmp_path / "one", *SINGLE).returncode == 0
    assert alike(tmp_path / "jobs", tmp_path / "one") and the_result(tmp_path / "jobs")["environment"]["ranks"] == 2
