"""Every Python snippet of the README and of the docs runs as it stands, page by page, in an empty folder."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
def test_snippets_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for i, code in enumerate(snippets(page)):
        exec(compile(code, f"{page.name}, snippet {i}", "exec"), names)
    assert capsys.readouterr().out or list(tmp_path.iterdir()), "a snippet shows something"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_every_config_named_in_the_readme_exists():
    text = (ROOT / "README.md").read_text()
    for group in ("model", "data", "operator", "estimator", "experiment"):
        for name in re.findall(rf"\b{group}=([a-z_,]+)", text):
            for one in name.split(","):
                assert (ROOT / "conf" / group / f"{one}.yaml").exists(), f"{group}={one}"
