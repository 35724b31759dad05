"""The package as others meet it: what it shows, what it loads, what a type checker says of a program that uses it."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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


MATRIX = np.diag(np.arange(1.0, 7.0))
KEYWORDS = {  # those that Python's own exceptions came from, or that took anything
    "sizes": lambda x: spectral.block_gap(MATRIX, x), "interval": lambda x: spectral.logdet(MATRIX, interval=x),
    "interval of f": lambda x: spectral.funm(MATRIX, np.exp, interval=x), "shifts": lambda x: spectral.spectral_form(MATRIX, x),
    "interval of kpm": lambda x: spectral.kpm(MATRIX, moments=4, interval=x), "top": lambda x: spectral.summary(EXACT, x),
    "step": lambda x: spectral.lyapunov(x, torch.ones(1)), "state": lambda x: spectral.lyapunov(torch.sin, x),
    "inputs": lambda x: spectral.lyapunov(torch.add, torch.ones(1), inputs=x),
    "xmin": lambda x: spectral.power_law(EXACT, xmin=x),
    "steps": lambda x: spectral.lyapunov(torch.sin, torch.ones(1), steps=x), "which": lambda x: spectral.top(MATRIX, 1, which=x),
    "steps of a vector": lambda x: spectral.spectrum_of(MATRIX, np.ones(6), steps=x),
    "progress": lambda x: spectral.trace(MATRIX, progress=x), "params": lambda x: spectral.layers({}, params=x or 0),
    "forward": lambda x: spectral.Jacobian(torch.nn.Linear(2, 2), [torch.ones(1, 2)], forward=x),
    "moments": lambda x: spectral.jackson(DAMPED, moments=x), "x": lambda x: spectral.jackson(DAMPED, x),
    "shape": lambda x: spectral.as_operator(type("Theirs", (), {"shape": x, "dtype": float, "__matmul__": None})()),
    "dtype": lambda x: spectral.as_operator(type("Theirs", (), {"shape": (6, 6), "dtype": x, "__matmul__": None})()),
    "dtype of one's own": lambda x: spectral.Operator((6, 6), x),
}  # fmt: skip
EXACT, DAMPED = spectral.exact(MATRIX), spectral.kpm(MATRIX, moments=4, probes=2)


@pytest.mark.parametrize("name", KEYWORDS)
def test_what_no_keyword_can_be_is_refused_in_one_sentence_of_our_own(name):
    for wrong in (object(), b"much", {}, [object()], 0 if name == "progress" else [], float("nan")):
        with pytest.raises((ValueError, TypeError), match=r"^[^\n]+\.$"):  # Python's have no full stop
            KEYWORDS[name](wrong)
