"""spectral-report: real sweeps gathered, and laws of what may be put together."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spectral.__main__ import main as command
from spectral.app import run as application
from spectral.app import sweeps
from spectral.pages import figures, sweep
from spectral.pages.sweep import Run
from spectral.spectrum import Spectrum

TINY = ["data.train=40", "data.test=20", "training=none", "output=numbers"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of two seeds, two operators and two models."""
    folder = tmp_path_factory.mktemp("sweep")
    swept = ["-m", "seed=0,1", "operator=input_stacked,input_flattened", "model.options.widths=[8],[16]", *TINY]
    done = subprocess.run(
        [sys.executable, "-m", "spectral", *swept],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "outputs" / "sweeps").iterdir()
    return found


def table(page: str, heading: str) -> list[list[str]]:
    """The texts of the rows of the table under a heading."""
    body = page[page.index(f"<h2>{heading}</h2>") :]
    rows = body[body.index("<table") : body.index("</table>")].split("<tr")[1:]
    return [
        [html.unescape(re.sub("<[^>]+>", "", cell)).strip() for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row)]
        for row in rows
    ]


def test_a_page_has_one_row_for_each_configuration_and_a_panel_for_each_operator(real: Path, capsys) -> None:
    sweep.main([str(real)])
    shown = capsys.readouterr().out
    page = (real / "sweep.html").read_text()
    results = [json.loads(path.read_text()) for path in sorted(real.rglob("result.json"))]
    assert page.count("data:image/png") == 2 and "How does the spectrum change with widths?" in page
    for choice, heading in (
        ("input_stacked", "Stacked input Jacobian"),
        ("input_flattened", "Flattened input Jacobian"),
    ):
        titles, *rows = table(page, heading)
        assert titles[:3] == ["#", "widths", "effective rank"] and titles[-1] == "seeds"
        assert [row[:2] for row in rows] == [["1", "8"], ["2", "16"]]
        for row, width in zip(rows, (8, 16), strict=True):
            own = [
                r
                for r in results
                if (r["config"]["choices"]["operator"], r["config"]["model"]["options"]["widths"]) == (choice, [width])
            ]
            values = [r["metrics"]["effective_rank"] for r in own]
            mean, sd = map(float, row[2].split(" ± "))
            assert len(values) == 2 and row[-1] == "0, 1"
            assert mean == pytest.approx(statistics.mean(values), rel=1e-2) and sd == pytest.approx(
                statistics.stdev(values), rel=6e-2
            )
            assert row[2] in shown
    answer = re.search(r'<p class="answer found">(.*?)</p>', page)
    assert answer and html.unescape(answer.group(1)) == shown.splitlines()[1]
    assert "lies between" in answer.group(1) and "(mean ± sd over 2 seeds)" in answer.group(1)


def test_every_seed_leads_to_its_run(real: Path, tmp_path: Path) -> None:
    for output in (real, tmp_path / "else where"):
        sweep.main([str(real), "--output", str(output)])
        page = (output / "sweep.html").read_text()
        links = [link for link in re.findall(r'href="([^"]+)"', page) if "result.json" in link]
        targets = {(output / link.replace("%20", " ")).resolve() for link in links}
        assert len(links) == 8 and targets == {path.resolve() for path in real.rglob("result.json")}


def test_both_tables_hold_every_number(real: Path) -> None:
    sweep.main([str(real)])
    with (real / "sweep.csv").open(newline="") as file:
        wide = list(csv.DictReader(file))
    with (real / "sweep_long.csv").open(newline="") as file:
        long = list(csv.DictReader(file))
    assert len(wide) == 8 and "batch_size" not in wide[0]  # the same in all
    for row in wide:
        result = json.loads((Path(row["run"]) / "result.json").read_text())
        assert float(row["trace"]) == result["metrics"]["trace"]
        assert float(row["run_products"]) == result["cost"]["products"]
        assert row["operator"] == result["config"]["choices"]["operator"] and row["seed"] == str(
            result["config"]["seed"]
        )
        numbers = {r["metric"]: r for r in long if r["run"] == row["run"]}
        assert {name: float(r["value"]) for name, r in numbers.items() if r["value"]} == {
            name: value for name, value in result["metrics"].items() if value is not None
        }
        assert numbers["trace"]["error_kind"] == "stderr" and float(numbers["trace"]["error"]) == 0
        assert numbers["alpha"]["refused"] == str(result["metrics"]["alpha_accepted"] == 0)
        assert all(
            r["model.options.widths"] == json.dumps(result["config"]["model"]["options"]["widths"])
            for r in numbers.values()
        )


# What may be put together --------------------------------------------------------------------------------------------
def run(
    folder: str = "r",
    started: str = "",
    choices: dict[str, str] | None = None,
    metrics: dict[str, float] | None = None,
    **config: Any,
) -> Run:
    """A run with these settings, without files."""
    given = {
        "seed": 0,
        "operator": {"_target_": "spectral.Hessian", "samples": None},
        "training": {"noise": 0.0},
        **config,
    }
    numbers = {"effective_rank": 3.0, "effective_rank_stderr": 0.0, **(metrics or {})}
    cell = {"matrix": "m", "condition": "true", "seed": given["seed"], "metrics": numbers}
    result = {
        "config": {**given, "choices": choices or {}},
        "environment": {"started": started},
        "cost": {},
        "estimates": {},
        "cells": [cell],
    }
    return Run(Path(folder), result, sweep._settings(given))


OTHER = {
    "a number": {"training": {"noise": 0.1}},
    "a tiny number": {"training": {"noise": 1e-300}},
    "a flag": {"operator": {"_target_": "spectral.Hessian", "samples": True}},
    "one and true": {"batch_size": 1},
    "a list": {"model": {"widths": [64, 64]}},
    "a null": {"operator": {"_target_": "spectral.Hessian"}},
    "a seed that is not the run's": {"estimator": {"seed": 1}},
    "an empty group": {"model": {"options": {}}},
    "another target": {"operator": {"_target_": "spectral.Fisher", "samples": None}},
    "a further setting": {"dtype": "float32"},
}


@pytest.mark.parametrize("name", OTHER)
def test_seeds_of_different_settings_are_never_put_together(name: str) -> None:
    base, other = run(seed=0), run("s", seed=1, **OTHER[name])
    assert base.key != other.key
    found = sweep.sweep_of([base, other, run("t", seed=2)])
    assert sorted(len(c.seeds) for c in found.configurations) == [1, 2]
    assert len({(c.panel, c.values) for c in found.configurations}) == 2  # and a reader can tell them apart


def test_numbers_that_look_alike_are_told_apart_to_their_last_digit() -> None:
    runs = [run(str(i), seed=i, training={"noise": noise}) for i, noise in enumerate((0.12345678, 0.12345679))]
    found = sweep.sweep_of(runs)
    assert [c.values for c in found.configurations] == [("0.12345678",), ("0.12345679",)]


def test_all_pairs_of_other_settings_stay_apart() -> None:
    runs = [run(str(i), seed=i, **more) for i, more in enumerate([{}, *OTHER.values()])]
    found = sweep.sweep_of(runs)
    assert len(found.configurations) == len(runs) and all(len(c.seeds) == 1 for c in found.configurations)
    assert len({(c.panel, c.values) for c in found.configurations}) == len(runs)


def test_what_says_nothing_about_the_numbers_keeps_seeds_together() -> None:
    runs = [
        run(seed=0),
        run("s", seed=1, output={"root": "elsewhere"}, resume=True, training={"noise": 0}),
        run("t", seed=2, analysis={"metrics": ["trace"], "alpha_curve": False}),
    ]
    (only,) = sweep.sweep_of(runs).configurations
    assert list(only.seeds) == [0, 1, 2] and only.values == ()


def test_other_versions_and_devices_are_other_settings(tmp_path: Path) -> None:
    for name, torch in (("a", "2.13"), ("b", "2.14")):
        result = run(seed=0).result | {"environment": {"torch": torch, "spectral": "0.1"}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    found = sweep.sweep_of(sweep.find([tmp_path]))
    assert found.columns == ("torch",) and [c.values for c in found.configurations] == [("2.13",), ("2.14",)]


def test_a_repeated_run_counts_once_and_is_said() -> None:
    """The one that was started last: counting both would make the scatter too small."""
    runs = [
        run("new", started="2026-02-02", metrics={"effective_rank": 5.0}),
        run("old", started="2026-01-01", metrics={"effective_rank": 4.0}),
        run("other", started="2026-01-01", seed=1),
    ]
    found = sweep.sweep_of(runs)
    (only,) = found.configurations
    assert only.row("effective_rank").values["all"] == (5.0, 3.0)
    assert "computed more than once" in found.notes[0]


def test_swept_keys_are_short_words_and_what_follows_from_a_choice_is_left_out() -> None:
    choice = {
        "mlp": {"kind": "mlp", "images": False, "options": {"widths": [8]}},
        "cnn": {"kind": "cnn", "images": True, "options": {"width": 4}},
    }
    runs = [
        run(f"{kind}{lr}{noise}", choices={"model": kind, "operator": "hessian"}, model=choice[kind],
            data={"image": choice[kind]["images"]}, training={"noise": noise, "options": {"lr": lr}})
        for kind in choice for lr in (0.1, 0.01) for noise in (0.0, 1.0)
    ]  # fmt: skip
    found = sweep.sweep_of(runs)
    assert found.columns == ("model", "label noise", "lr") and found.panels == ("hessian",)
    assert found.name(found.series[0]) == "1: mlp · label noise 0 · lr 0.1"
    runs += [
        run(
            "wide",
            choices={"model": "mlp"},
            model=choice["mlp"] | {"options": {"widths": [16]}},
            training={"noise": 0.0, "options": {"lr": 0.1}},
        )
    ]
    assert "widths" in sweep.sweep_of(runs).columns  # differs between runs of the same choice


def test_equal_last_words_of_keys_get_their_group() -> None:
    runs = [
        run(data={"samples": n}, operator={"_target_": "spectral.Hessian", "samples": n + m})
        for n in (1, 2)
        for m in (5, 7)
    ]
    assert sweep.sweep_of(runs).columns == ("operator samples", "data samples")


def test_many_configurations_have_colours_and_numbers_of_their_own() -> None:
    runs = [run(str(i), training={"noise": i / 100}) for i in range(30)]
    found = sweep.sweep_of(runs)
    names = [found.name(values) for values in found.series]
    assert len(set(names)) == 30 and len(set(figures.styles(names, sweep._levels(found)).values())) == 30
    assert "Drawn are the first 12 of 30 configurations." in sweep.caption(found)
    picture = sweep.draw(found)
    assert picture is not None and [key.label for key in picture.keys] == names[:12]


# Others --------------------------------------------------------------------------------------------------------------
def test_runs_are_found_once_in_the_order_of_their_numbers(tmp_path: Path, real: Path) -> None:
    assert len(sweep.find([real, real / "0"])) == 8
    content = (real / "0" / "result.json").read_text()
    for number in (10, 9):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "result.json").write_text(content)
    assert [run.folder.name for run in sweep.find([tmp_path])] == ["9", "10"]


def test_runs_that_make_no_spectrum_are_gathered_with_their_residuals(
    tmp_path: Path, real: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside spectra: their numbers are rows of their own, and only the spectra are curves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["spectral", "operator=input_stacked", "estimator=top", "estimator.k=2", *TINY])
    before = signal.getsignal(signal.SIGTERM)
    command()
    signal.signal(signal.SIGTERM, before)
    capsys.readouterr()
    for folders in ([tmp_path], [real, tmp_path]):
        sweep.main([*map(str, folders), "--output", str(tmp_path / "page")])
        shown = capsys.readouterr().out
        assert "eigenvalue 1" in shown and ("effective rank" in shown) == (len(folders) > 1)
        assert "eigenvalue 2 (± residual)" in shown and "stacked input Jacobian, eigenvalues" in shown
        page = (tmp_path / "page" / "sweep.html").read_text()
        assert page.count("data:image/png") == (3 if len(folders) > 1 else 1)
    with (tmp_path / "page" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["eigenvalue_1_residual"]) < 1e-6 * float(rows[-1]["eigenvalue_1"])


def test_an_experiment_has_a_row_for_each_condition_of_each_matrix(tmp_path: Path) -> None:
    cells = [
        {
            "matrix": f"{kind}.logits.train",
            "condition": c,
            "seed": s,
            "metrics": {"effective_rank": v + s, "alpha": 2.0, "alpha_accepted": float(s)},
        }
        for kind in ("flattened", "ntk")
        for c, v in (("init", 30.0), ("true", 10.0), ("random", 20.0))
        for s in (0, 1)
    ]
    for name, lr in (("a", 0.1), ("b", 0.2)):
        config = {"seed": 0, "experiment": {"_target_": "x.real_vs_random", "seeds": [0, 1]}, "training": {"lr": lr}}
        (tmp_path / name).mkdir()
        result = {"config": config, "cost": {}, "estimates": {}, "cells": cells}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    found = sweep.sweep_of(sweep.find([tmp_path]))
    assert found.columns == ("lr", "condition") and found.panels == ("flattened.logits.train", "ntk.logits.train")
    assert len(found.configurations) == 12 and all(list(c.seeds) == [0, 1] for c in found.configurations)
    shown = sweep.table(found, "ntk.logits.train", tmp_path)
    texts = [list(entry.cells) for entry in shown.groups[0][1]]
    assert texts[1] == ["2", "0.1", "true labels", "10.50 ± 0.71", "2.000 †1/2", "0, 1"]
    assert "densities" not in sweep.caption(found)  # of cells without spectra
    assert "the flattened input Jacobian (logits, train) lies between 10.50 ± 0.71" in sweep.answer(found).sentence


def test_a_study_of_several_steps_is_gathered(tmp_path: Path) -> None:
    numbers = {"curvature": {step: {"value": 3.0, "stderr": 0.5} for step in ("one", "two")}}
    cells = [{"matrix": "s", "condition": step, "seed": 0, "metrics": {"loss": 0.1}} for step in numbers["curvature"]]
    result = {"config": {"seed": 0}, "cost": {}, "estimates": {"s": numbers}, "cells": cells}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (run,) = sweep.find([tmp_path])
    assert [row[-1] for row in sweep.rows_of([run])[0]] == ["loss", 0.1, 0.1]


@pytest.mark.parametrize("kind", ["missing", "empty", "damaged"])
def test_errors_are_one_sentence(tmp_path: Path, capsys, kind: str) -> None:
    if kind == "damaged":
        (tmp_path / "result.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        sweep.main([str(tmp_path / "no" if kind == "missing" else tmp_path)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("spectral-report: ") and said.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys) -> None:
    cell = {"matrix": "ntk.logits.train", "condition": "true", "seed": 0, "metrics": {"trace": 1.0}}
    result = {"config": {"seed": 0}, "cost": {}, "estimates": {}, "cells": [cell]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (taken := tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        sweep.main([str(tmp_path), "--output", str(taken)])
    said = capsys.readouterr().err
    assert said == f"spectral-report: {taken} cannot be read or written (File exists); name another file or folder.\n"


def test_a_finished_run_is_known_wherever_it_stands_in_a_sweep(tmp_path: Path) -> None:
    one, other = {"seed": 0, "resume": True}, {"seed": 1, "resume": False}
    (tmp_path / "0").mkdir()
    assert sweeps.place(tmp_path, tmp_path / "0", one) == (tmp_path / "0", False)
    (tmp_path / "0" / "result.json").write_text(json.dumps(run(**one).result | {"config": {"seed": 0}}))
    assert sweeps.place(tmp_path, tmp_path / "0", one) == (tmp_path / "0", True)  # of a sweep before there were marks
    sweeps.mark(tmp_path, tmp_path / "0", one)
    for number in ("0", "7"):  # resume says nothing about what a run is
        assert sweeps.place(tmp_path, tmp_path / number, {"seed": 0, "resume": False}) == (tmp_path / "0", True)
    there, finished = sweeps.place(tmp_path, tmp_path / "0", other)
    assert not finished and there.parent == tmp_path and re.fullmatch(r"0-[0-9a-f]+", there.name)
    assert sweeps.place(tmp_path, tmp_path / "1", other) == (tmp_path / "1", False)
    (tmp_path / "0" / "result.json").write_text(json.dumps(run().result | {"config": {"seed": 2}}))
    assert not sweeps.place(tmp_path, tmp_path / "3", one)[1]  # what stands there counts, not the mark
    (tmp_path / "0" / "result.json").unlink()  # a mark alone is not enough
    assert sweeps.place(tmp_path, tmp_path / "3", one) == (tmp_path / "3", False)


def test_a_sweep_without_resume_writes_over_no_other_run_of_its_folder(tmp_path: Path, monkeypatch) -> None:
    """Seeds 1 and 2, then 2 and 3, into one folder: 3 lies beside 2, and 2 is made again where it was."""

    def fake(settings: dict[str, Any], folder: Path, *more: Any) -> None:
        folder.mkdir(exist_ok=True)
        result = run().result | {"config": application.plain(application.recorded(settings))}
        (folder / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(application, "execute", fake)
    monkeypatch.chdir(tmp_path)
    for seeds in ("1,2", "2,3"):
        monkeypatch.setattr(sys, "argv", ["spectral", "-m", f"seed={seeds}", "operator=hessian", "hydra.sweep.dir=s"])
        command()
    found = {
        json.loads(file.read_text())["config"]["seed"]: file.parent.name for file in tmp_path.glob("s/*/result.json")
    }
    assert (found[1], found[2]) == ("0", "1") and found[3].startswith("1-") and len(found) == 3


def table_of(folder: Path) -> list[dict[str, str]]:
    """sweep.csv without what differs from one session to the next."""
    sweep.main([str(folder), "--tables"])
    with (folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("run", "run_seconds", "run_peak_bytes")} for row in rows]


# The command, which ends itself and all it has started by a signal once so many runs are done.
KILLED = """
import glob, os, sys, threading, time
from spectral.__main__ import main

def watch(finished=int(sys.argv.pop(1)), number=int(sys.argv.pop(1))):
    while len(glob.glob("killed/*/result.json")) < finished:
        time.sleep(0.02)
    os.killpg(0, number)

threading.Thread(target=watch, daemon=True).start()
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["", "joblib"])
def test_a_sweep_that_was_killed_twice_gives_the_table_of_one_that_was_not(tmp_path: Path, launcher: str) -> None:
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    swept = ["-m", "seed=range(0,6)", "operator=input_stacked,input_flattened", "model.options.widths=[8],[16]", *TINY]
    swept += ["launcher=joblib", "hydra.launcher.n_jobs=2"] if launcher else []
    given = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL}

    def command(name: str, *program: str) -> list[str]:
        return [sys.executable, *(program or ("-m", "spectral")), *swept, f"hydra.sweep.dir={name}", "resume=true"]

    for finished, number in ((5, signal.SIGKILL), (13, signal.SIGTERM)):
        itself = command("killed", "-c", KILLED, str(finished), str(int(number)))
        assert subprocess.run(itself, start_new_session=True, timeout=900, **given).returncode != 0
        assert finished <= len(list((tmp_path / "killed").glob("*/result.json"))) < 24
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*/result.json")}
    for name in ("killed", "undisturbed"):
        subprocess.run(command(name), check=True, timeout=900, **given)
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert (
        table_of(tmp_path / "killed") == table_of(tmp_path / "undisturbed") and len(table_of(tmp_path / "killed")) == 24
    )
    longer = [text.replace("range(0,6)", "6,0,1,2,3,4,5") for text in command("killed")]
    subprocess.run(longer, check=True, timeout=900, **given)
    assert len(table_of(tmp_path / "killed")) == 28
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())


def test_tables_are_made_without_spectra_and_as_parquet_where_it_can_be_written(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(Spectrum, "load", lambda path: pytest.fail("a spectrum was read"))
    sweep.main([str(real), "--tables", "--output", str(tmp_path)])
    written = {path.name for path in tmp_path.iterdir()}
    assert {"sweep.csv", "sweep_long.csv"} <= written and "sweep.html" not in written
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("sweep", "sweep_long"):
        found = parquet.read_table(tmp_path / f"{name}.parquet").to_pylist()
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(found) == len(rows) and list(found[0]) == list(rows[0])
        for row, texts in zip(found, rows, strict=True):
            assert {key: "" if value is None else str(value) for key, value in row.items()} == texts
