"""What is installed is what stands in the checkout: modules, templates of the pages, configurations."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_a_wheel_holds_every_module_template_text_and_configuration(tmp_path: Path, monkeypatch) -> None:
    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    names = set(zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))).namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for kind in ("py", "j2", "yaml")
        for path in (ROOT / "spectral").rglob(f"*.{kind}")
    }
    wanted |= {"spectral/py.typed"} | {
        f"spectral/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")
    }
    assert "spectral/pages/page.html.j2" in wanted and "spectral/pages/sweep.html.j2" in wanted
    assert wanted <= names
