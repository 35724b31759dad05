"""The house: no circle between modules, no import inside functions but of heavy libraries, no private name used elsewhere."""

from __future__ import annotations

import ast
from collections.abc import Container
from pathlib import Path

import pytest

import spectral

ROOT = Path(spectral.__file__).parent
HEAVY = {  # loaded when they are first needed: they take long, or are extras
    "matplotlib", "sklearn", "mlxtend", "transformers", "cupy", "cupyx", "pandas", "hydra", "omegaconf", "lightning",
    "pyarrow", "submitit", "torch.distributed.checkpoint", "torch.utils.checkpoint",
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


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name_of(path): absolute(path) for path in sorted(ROOT.rglob("*.py"))}


def target(module: str, modules: Container[str]) -> str:
    """The module of this package that an imported name lies in."""
    while module not in modules:
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


def test_modules_import_one_another_in_no_circle(trees):
    """Imports for the type checker count too."""
    graph = {
        module: {
            target(name, trees)
            for node in ast.walk(tree)
            for name in imported(node)
            if name.split(".")[0] == "spectral"
        }
        - {module}
        for module, tree in trees.items()
    }
    while graph:
        free = [module for module, needed in graph.items() if not needed & graph.keys()]
        assert free, f"a circle among {', '.join(sorted(graph))}"
        graph = {module: needed for module, needed in graph.items() if module not in free}


def test_functions_import_heavy_libraries_alone(trees):
    for module, tree in trees.items():
        names = {name for node in inside_functions(tree) for name in imported(node)}
        assert {name.split(".")[0] for name in names - HEAVY} <= HEAVY, module


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


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


TORCHS = {  # private names of torch that lie with one module for good; all others are in `engine/private.py`
    "app.configuration": {"_Loss"},
    "networks.batches": {"_iterator"},
    "networks.diagnose.checks": {"_BatchNorm", "_NormBase"},
    "networks.diagnose.derivatives": {"_forward_cls", "_sequence_nr"},
    "networks.diagnose.differences": {"_forward_cls"},
    "networks.diagnose.hooks": {"_sequence_nr"},
    "networks.model_state": {"_NormBase", "_buffers"},
    "networks.sharded": {"_fsdp_param_groups", "_get_fsdp_state", "_parameters"},
    "operators.precondition": {"_version"},  # which the engine stands on
    "pieces": {"_C"},
}


def test_private_names_of_torch_are_in_one_place_and_told(trees):
    own = set().union(
        *map(defined, trees.values()), {"_exit", "_fields", "_asdict", "_compute_damping"}
    )  # of os, named tuples, curvlinops
    told, found = (ROOT.parent / "docs" / "versions.md").read_text(), {}
    for module, tree in trees.items():
        names = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                names.append(node.attr)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names += [part for name in imported(node) if name.startswith("torch") for part in name.split(".")]
        if used := {name for name in names if private(name)} - own:
            assert all(name in told for name in used), f"docs/versions.md says nothing of {used}"
            found[module.removeprefix("spectral.")] = used
    assert found.pop("engine.private") and found == TORCHS


def test_numbers_are_widened_where_float64_is(trees):
    """Apple's GPUs have none: `arrays.double` and `arrays.double_zeros` know; what is on the processor already says so."""
    for module, tree in trees.items():
        for node in ast.walk(tree):
            text = ast.unparse(node) if isinstance(node, ast.Call) else ""
            wide = text.endswith(".double()") and not text.endswith(".cpu().double()")
            made = "dtype=torch.float64, device=" in text and text.startswith("torch.")
            if wide or made:
                assert module.removeprefix("spectral.") in WIDE, f"{module}:{node.lineno}: {text}"


WIDE = {  # that work on the processor, on CUDA alone, or have asked
    "arrays", "experiments.cell", "experiments.datasets", "krylov.kernels.draws", "krylov.kernels.recurrences", "longvectors",
    "networks.diagnose.differences", "estimators.assembled",
}  # fmt: skip


def test_no_private_name_is_used_outside_its_module(trees):
    """Of this package's own names; a class's own hooks (`self._apply`, `super()._apply`) belong to it wherever it is written."""
    own = {module: {name for name in defined(tree) if private(name)} for module, tree in trees.items()}
    for module, tree in trees.items():
        elsewhere = set().union(*(names for other, names in own.items() if other != module)) - own[module]
        used = [
            f"{ast.unparse(node)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr in elsewhere
            and ast.unparse(node.value) not in ("self", "cls", "super()")
        ]
        used += [
            name for node in ast.walk(tree) for name in imported(node)
            if name.startswith("spectral.") and private(name.rpartition(".")[2])
        ]  # fmt: skip
        assert used == [], module
