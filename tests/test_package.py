"""The package as others meet it: what it shows, what it loads, what a type checker says of a program that uses it."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import spectral

ROOT = Path(__file__).parents[1]
HEAVY = (
    "matplotlib", "hydra", "omegaconf", "jinja2", "sklearn", "mlxtend", "pandas", "transformers", "cupy", "sympy",
    "torch._dynamo", "scipy.stats", "scipy.optimize", "scipy.ndimage",
    "scipy.special", "scipy.linalg", "scipy.sparse",  # a quarter of a second by what they share; modules say `import scipy`
)  # fmt: skip


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_dir_is_the_contract():
    assert dir(spectral) == sorted(spectral.__all__)


@pytest.mark.parametrize(
    "module", ["arrays", "probes", "distributed", "krylov", "operators", "estimators", "analysis", "results"]
)
def test_modules_are_still_imported_by_their_names(module):
    assert importlib.import_module(f"spectral.{module}") is getattr(spectral, module)


RECORDED = """
import sys, torch, spectral
print(*sys.modules)
A = spectral.GaussNewton(torch.nn.Linear(2, 2), torch.nn.MSELoss(), [(torch.ones(2, 2), torch.ones(2, 2))], engine="replay")
for _ in range(4): A @ torch.randn(6)
print(A.describe()["engine"], *sys.modules)
"""


@pytest.fixture(scope="module")
def loaded() -> list[set[str]]:
    """By the import, and by a product that is recorded."""
    return [set(line.split()) for line in python("-c", RECORDED).stdout.splitlines()]


@pytest.mark.parametrize("module", HEAVY)
def test_import_loads_no_library_that_takes_long(module, loaded):
    assert "spectral" in loaded[0]
    assert module not in loaded[0]


def test_recording_a_product_does_not_load_the_compiler_of_torch(loaded):
    assert "replay" in loaded[1]
    assert "torch._dynamo" not in loaded[1]


@pytest.mark.slow  # `make check` holds it to the same rules, beside the package
def test_a_typed_program_that_uses_the_whole_contract_passes_strict_checking():
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed; it is in the extra dev")
    found = python(
        "-m", "mypy", "--strict", "--ignore-missing-imports", "--follow-imports=silent", "tests/typed_client.py"
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_the_typed_program_runs():
    found = python("tests/typed_client.py")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("eigenvalues")
