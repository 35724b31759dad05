"""spectral-report: a real sweep of two runs, gathered."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spectral.report import gather

TINY = ["data.train=40", "data.test=20", "training=none", "operator=input_stacked", "output=numbers"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `spectral -m seed=0,1` on a tiny problem."""
    folder = tmp_path_factory.mktemp("sweep")
    done = subprocess.run(
        [sys.executable, "-m", "spectral", "-m", "seed=0,1", *TINY],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "outputs" / "sweeps").iterdir()
    return found


def test_table_has_a_row_for_each_run_and_the_settings_that_differ(sweep: Path, capsys) -> None:
    gather.main([str(sweep)])
    with (sweep / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert "batch_size" not in rows[0]  # the same in both
    for row in rows:
        result = json.loads((Path(row["run"]) / "result.json").read_text())
        assert float(row["trace"]) == result["metrics"]["trace"]
        assert float(row["run_products"]) == result["cost"]["products"]
    shown = capsys.readouterr().out
    assert "seed=0" in shown and "seed=1" in shown and "±" in shown
    page = (sweep / "sweep.html").read_text()
    assert "How does the spectrum change with seed?" in page and "data:image/png" in page


def test_runs_are_found_once_in_the_order_of_their_numbers(tmp_path: Path, sweep: Path) -> None:
    assert len(gather.find([sweep, sweep / "0"])) == 2
    content = (sweep / "0" / "result.json").read_text()
    for number in (10, 9):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "result.json").write_text(content)
    assert [run.folder.name for run in gather.find([tmp_path])] == ["9", "10"]


def test_runs_that_make_no_spectrum_are_gathered_with_their_residuals(tmp_path: Path, sweep: Path, capsys) -> None:
    """Beside spectra: their numbers are rows, and only the spectra are curves."""
    done = subprocess.run(
        [sys.executable, "-m", "spectral", *TINY, "estimator=top", "estimator.k=2"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for folders in ([tmp_path], [sweep, tmp_path]):
        gather.main([*map(str, folders), "--output", str(tmp_path / "page")])
        shown = capsys.readouterr().out
        assert "eigenvalue 2 (± residual)" in shown and ("trace" in shown) == (len(folders) > 1)
        page = (tmp_path / "page" / "sweep.html").read_text()
        assert ("data:image/png" in page) == (len(folders) > 1)
    with (tmp_path / "page" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[2]["eigenvalue_1_residual"]) < 1e-6 * float(rows[2]["eigenvalue_1"])


def test_an_experiment_is_gathered_with_its_effects(tmp_path: Path) -> None:
    values = {
        "init": {"value": 5.0, "values": [5.0, 5.0], "errors": [0.0, 0.0]},
        "true": {"value": 1.5, "values": [1.0, 2.0], "errors": [0.0, 0.0]},
        "random": {"value": 3.5, "values": [3.0, 4.0], "errors": [0.0, 0.0]},
        "true-random": {"d": -2.8, "lower": -5.0, "upper": -0.1},
    }
    cell = {"matrix": "m", "condition": "true", "seed": 0, "metrics": {"trace": 1.0}, "spectrum": "none.npz"}
    result = {
        "config": {"seed": 0}, "cost": {}, "estimates": {"m": {"effective_rank": values}}, "cells": [cell, cell],
    }  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(result))
    (run,) = gather.find([tmp_path])
    (row,) = gather._experiment_rows(run, "")
    assert row.separates and row.effect == (-2.8, -5.0, -0.1) and row.values["true"] == (1.0, 2.0)


@pytest.mark.parametrize("kind", ["missing", "empty", "damaged"])
def test_errors_are_one_sentence(tmp_path: Path, capsys, kind: str) -> None:
    if kind == "damaged":
        (tmp_path / "result.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        gather.main([str(tmp_path / "no" if kind == "missing" else tmp_path)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("spectral-report: ") and said.count("\n") == 1
