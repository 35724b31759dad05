"""The house: no circle between modules, no import inside functions but of heavy libraries, no private name used elsewhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import spectral

ROOT = Path(spectral.__file__).parent
HEAVY = {  # loaded when they are first needed: they take long, or are extras
    "matplotlib", "sklearn", "mlxtend", "transformers", "cupy", "cupyx", "pandas", "hydra", "omegaconf", "lightning",
    "pyarrow", "submitit", "torch.distributed.checkpoint",
}  # fmt: skip


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def absolute(path: Path) -> ast.Module:
    """A module's tree, with `from . import x` written out."""
    tree, package = ast.parse(path.read_text()), path.relative_to(ROOT.parent).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            home = package[: len(package) - node.level + 1]
            node.module, node.level = ".".join([*home, *([node.module] if node.module else [])]), 0
    return tree


TREES = {name_of(path): absolute(path) for path in sorted(ROOT.rglob("*.py"))}


def target(module: str) -> str:
    """The module of this package that an imported name lies in."""
    while module not in TREES:
        module = module.rpartition(".")[0]
    return module


def imported(node: ast.AST) -> list[str]:
    """What an import statement loads: modules of this package by their own names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def inside_functions(tree: ast.Module) -> set[ast.AST]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {child for function in functions for child in ast.walk(function) if imported(child)}


def test_modules_import_one_another_in_no_circle():
    """Imports for the type checker count too."""
    graph = {
        module: {target(name) for node in ast.walk(tree) for name in imported(node) if name.split(".")[0] == "spectral"}
        - {module}
        for module, tree in TREES.items()
    }
    while graph:
        free = [module for module, needed in graph.items() if not needed & graph.keys()]
        assert free, f"a circle among {', '.join(sorted(graph))}"
        graph = {module: needed for module, needed in graph.items() if module not in free}


@pytest.mark.parametrize("module", TREES)
def test_functions_import_heavy_libraries_alone(module):
    names = {name for node in inside_functions(TREES[module]) for name in imported(node)}
    assert {name.split(".")[0] for name in names - HEAVY} <= HEAVY


def defined(tree: ast.Module) -> set[str]:
    """Names that a module defines, or sets on its objects."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


DEFINED = {module: defined(tree) for module, tree in TREES.items()}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("module", TREES)
def test_no_private_name_is_used_outside_its_module(module):
    """Of this package's own names; a class's own hooks (`self._apply`, `super()._apply`) belong to it wherever it is written."""
    elsewhere = {name for other, names in DEFINED.items() if other != module for name in names if private(name)}
    used = [
        f"{ast.unparse(node)}:{node.lineno}"
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Attribute)
        and node.attr in elsewhere - DEFINED[module]
        and ast.unparse(node.value) not in ("self", "cls", "super()")
    ]
    used += [
        name for node in ast.walk(TREES[module]) for name in imported(node)
        if name.startswith("spectral.") and private(name.rpartition(".")[2])
    ]  # fmt: skip
    assert used == []
