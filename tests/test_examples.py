"""The gallery: every script of examples/ compiles, stands on its page with its picture, and (slow) runs within two minutes."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
GALLERY = ROOT / "docs" / "gallery.md"


def seconds() -> float:
    """Of processors, by all children so far: another program on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def named(path: Path) -> str:
    return path.stem


def test_there_are_scripts():
    assert len(SCRIPTS) >= 7


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_a_script_compiles_and_says_what_one_learns(script):
    tree = ast.parse(script.read_text())
    compile(tree, str(script), "exec")
    told = ast.get_docstring(tree) or ""
    assert "One learns" in told and f"python examples/{script.name}" in told


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_a_script_stands_in_the_gallery_with_a_small_picture(script):
    page, picture = GALLERY.read_text(), script.with_suffix(".png")
    assert f"../examples/{script.name}" in page and f"../examples/{picture.name}" in page
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and picture.stat().st_size < 80_000


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_a_script_runs_within_two_minutes_and_prints_numbers_with_errors(script, tmp_path):
    begin = seconds()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert seconds() - begin < 120
    assert "±" in done.stdout
    assert (tmp_path / f"{script.stem}.png").stat().st_size < 80_000
