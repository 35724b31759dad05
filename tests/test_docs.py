"""Every Python snippet of the README and of the docs runs as it stands, page by page, in an empty folder."""

import ast
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "spectral"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
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


def test_the_changelog_links_to_no_file():
    """It is read in the repository and on the site, which lie in two folders."""
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / "CHANGELOG.md").read_text())
    assert [target for target in targets if "://" not in target] == []


def test_every_config_named_in_the_readme_exists():
    text = (ROOT / "README.md").read_text()
    for group in ("model", "data", "operator", "estimator", "experiment"):
        for name in re.findall(rf"\b{group}=([a-z0-9_,]+)", text):
            for one in name.split(","):
                assert (ROOT / "conf" / group / f"{one}.yaml").exists(), f"{group}={one}"


def paths(text):
    """What is written as a path: `spectrum.py`, `krylov/lanczos.py`, `krylov/lanczos`, `krylov/`."""
    return re.findall(r"`(__\w+__\.py|\w+\.py|[a-z_]+/[a-z_/.]*)`", text)


def test_every_path_of_the_architecture_exists():
    named = paths(ARCHITECTURE)
    homes = (PACKAGE, ROOT)
    missing = [
        name for name in named if not any((home / name).exists() or (home / f"{name}.py").exists() for home in homes)
    ]
    assert len(named) > 100 and missing == []


def test_every_class_and_function_of_the_architecture_exists():
    """Names in backticks that look like a class, or like a function of a module (`name.attribute` belongs to an object)."""
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    named = re.findall(r"`([A-Z]\w{2,}|_?[a-z]\w+)(?:\(\))?`", ARCHITECTURE)
    assert [name for name in named if not re.search(rf"\b{name}\b", code) and not list(PACKAGE.rglob(f"{name}*"))] == []


def test_every_module_of_the_reading_path_and_after_is_named():
    """Whoever adds a module says what it is."""
    text = set(re.findall(r"\w+", ARCHITECTURE))
    modules = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert [str(module) for module in modules if module.stem not in text] == []


def imported(path):
    """Modules of the package that a file imports, as paths without their end; relative imports lie in its own package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] == "spectral":
            for alias in node.names:
                whole = [*node.module.split(".")[1:], alias.name]
                yield "/".join(whole if PACKAGE.joinpath(*whole).with_suffix(".py").exists() else whole[:-1]) + ".py"


def layer_of(name, layers):
    """The layer of a module: that of its own name, or of its package; None for what gathers names."""
    of = {entry: number for number, line in enumerate(layers) for entry in paths(line)}
    return of.get(name, of.get(name.split("/")[0] + "/") if "/" in name and "__init__" not in name else None)


def test_imports_follow_the_layers_of_the_architecture():
    layers = re.search(r"<!-- layers -->\n(.*?)<!-- end", ARCHITECTURE, flags=re.DOTALL)[1].splitlines()
    modules = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert [name for name in modules if layer_of(name, layers) is None] == [], "every module has its layer"
    against = [
        f"{name} imports {other}"
        for name, path in modules.items()
        for other in imported(path)
        if (layer_of(other, layers) or 0) > layer_of(name, layers)
    ]
    assert against == []


def lines_of_code(path):
    """Lines on which a token lies that is neither a comment nor part of a docstring."""
    around = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    with tokenize.open(path) as file:
        tokens = [token for token in tokenize.generate_tokens(file.readline) if token.type not in around]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(path.read_text())):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_the_lines_of_code_of_the_architecture_are_those_that_there_are():
    """To 5 %: whoever makes a package larger or smaller by more says so."""
    count = {path.relative_to(PACKAGE): lines_of_code(path) for path in PACKAGE.rglob("*.py")}
    packages = {name.parts[0] + "/" for name in count if len(name.parts) > 1}
    found = {package: sum(n for name, n in count.items() if f"{name.parts[0]}/" == package) for package in packages}
    found["single modules"] = sum(n for name, n in count.items() if len(name.parts) == 1)
    found["all"] = sum(count.values())
    path = re.findall(
        r"^\*\*`(\S+\.py)`\*\*", ARCHITECTURE.split("## The reading path")[1].split("\n## ")[0], re.MULTILINE
    )
    found["the reading path"] = sum(count[Path(name)] for name in path)
    table = re.findall(r"^\| `?([^|`]*)`?.*\| ([\d ]+) \|$", ARCHITECTURE, flags=re.MULTILINE)
    said = {name.split(",")[0].strip(): int(number.replace(" ", "")) for name, number in table}
    assert len(path) == 14 and said == {name: pytest.approx(n, rel=0.05) for name, n in found.items()}, found
