"""Files that hold what nobody has computed, under a valid checksum: one sentence, or the numbers of the run itself."""

from __future__ import annotations

import json
import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pytest
from test_persist import PROVEN, SYMMETRIC, Opaque, interrupted

import spectral
from spectral import persist
from spectral.pages import sweep
from spectral.results import Atoms
from spectral.spectrum import Spectrum

HOME = str(Path(spectral.__file__).parent)


def said(problem: Exception) -> None:
    """One sentence, raised by a `raise` in our own code."""
    frame = problem.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    assert frame is not None
    file, code = frame.tb_frame.f_code.co_filename, ""
    for line in range(frame.tb_lineno, 0, -1):  # a statement may begin above its last line
        code = linecache.getline(file, line).strip()
        if code.startswith("raise"):
            break
        assert frame.tb_lineno - line < 8, f"{file}:{frame.tb_lineno}: {problem!r}"
    assert file.startswith(HOME), f"{file}:{frame.tb_lineno}: {problem!r}"
    text = str(problem)
    assert text and "\n" not in text and len(text) < 800, text


SPECTRA: dict[str, Callable[[], Spectrum]] = {
    "slq": lambda: spectral.slq(Opaque(SYMMETRIC, symmetric=True), probes=3, steps=20, progress=False),
    "slq, deflated": lambda: spectral.slq(
        Opaque(SYMMETRIC, symmetric=True), probes=2, steps=16, deflate=True, progress=False
    ),
    "kpm": lambda: spectral.kpm(Opaque(SYMMETRIC, symmetric=True), probes=2, moments=40, progress=False),
    "kpm, chebyshev": lambda: spectral.kpm(
        Opaque(SYMMETRIC, symmetric=True), probes=2, moments=40, recurrence="chebyshev", progress=False
    ),
    "exact": lambda: spectral.exact(Opaque(SYMMETRIC, symmetric=True), progress=False),
    "eigenvalues": lambda: Spectrum.from_eigenvalues(np.linspace(-1, 2, 30)),
}


def read_spectrum(path: Path, whole: Spectrum) -> str:
    """Load it and ask it everything; "refused", or "read" where its eigenvalues and weights are those of the run."""
    try:
        s = Spectrum.load(path)
    except (ValueError, TypeError) as problem:
        said(problem)
        return "refused"
    for ask in (str, lambda s: s.quantile(0.3), lambda s: s.cdf([0.5]), lambda s: s.density()):
        try:
            ask(s)
        except (ValueError, TypeError) as problem:
            said(problem)
    if len(whole.nodes):  # of eigenvalues alone every list is somebody's
        np.testing.assert_allclose(s.nodes, whole.nodes, atol=1e-6)
        np.testing.assert_allclose(s.weights, whole.weights, atol=1e-6)
        assert s.dim == whole.dim and s.zeros == whole.zeros
    return "read"


ONLY_THE_RUN_KNOWS = {  # sums and records of probes whose vectors are gone: no product of the matrix tells them from others
    "diagonal": ("mean", "scatter"),
    "slq": ("alphas", "betas", "records", "norms"),
    "slq, no basis": ("alphas", "betas", "records", "norms", "recurrence.alphas", "recurrence.betas"),
    "kpm": (
        "alphas",
        "betas",
        "records",
        "norms",
        "moments",
        "attempts",
        "intervals",
        "recurrence.moments",
        "recurrence.alphas",
        "recurrence.betas",
    ),
    "top": ("search.norm",),
    "svd": ("search.norm",),
}


def numbers(result: Any) -> dict[str, Any]:
    """What a result says, without what it cost and how it came about."""
    skipped = ("products", "epochs", "method", "meta", "records", "removed", "probes")
    return {k: getattr(result, k) for k in result.__dataclass_fields__ if k not in skipped}


def goes_on(path: Path, name: str, whole: Any, what: str) -> str:
    """Go on from it: "refused", or "read" where the end is that of a run that was never interrupted."""
    matrix, run = PROVEN[name]
    A = Opaque(matrix, symmetric=True if matrix.shape[0] == matrix.shape[1] else None)
    try:
        result = run(A, checkpoint=path, progress=False)
    except (ValueError, TypeError) as problem:
        said(problem)
        return "refused"
    except RuntimeError as problem:  # what no product of the record tells, later ones did
        said(problem)
        assert "was wrong" in str(problem)
        return "refused"
    if what.removeprefix("state.").startswith(
        ONLY_THE_RUN_KNOWS.get(name, ONLY_THE_RUN_KNOWS.get(name.partition(",")[0], ("nothing",)))
    ):
        return "read"
    if hasattr(result, "residuals"):
        certified(result, whole, matrix)
    else:
        same(numbers(result), numbers(whole))
    return "read"


def certified(result: Any, whole: Any, matrix: np.ndarray) -> None:
    """A search ends with values that have a true one within their residuals, and with all that it calls complete."""
    true = np.linalg.svd(matrix, compute_uv=False)
    true = true if hasattr(result, "left") else np.concatenate([true, -true])
    distance = np.abs(result.values[:, None] - true).min(1)
    assert (distance <= result.residuals + 1e-9 * true.max()).all()
    np.testing.assert_allclose(result.threshold, whole.threshold, rtol=1e-2)
    if result.complete and result.converged.all():
        np.testing.assert_allclose(result.values, whole.values, atol=1e-5 * true.max())


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key, value in theirs.items():
        for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (ours[key], value)), strict=True):
            if isinstance(a, Atoms):
                a, b = a.values, b.values
            if b is None or isinstance(b, bool | str):
                assert a == b, key
            else:
                a, b = (np.asarray(x, dtype=float) for x in (a, b))
                scale = max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
                np.testing.assert_allclose(a, b, atol=1e-5 * scale, err_msg=key)


CELLS = [
    {
        "spectrum": "spectra/x.npz", "matrix": matrix, "condition": c, "seed": seed, "test_accuracy": 0.5,
        "metrics": {"effective_rank": 3.0, "effective_rank_stderr": 0.5, "alpha": None, "alpha_accepted": 0.0},
        "trained": {"reached": True, "loss": 0.1},
    }
    for matrix in ("ntk.logits.train", "stacked.logits.test") for c in ("true", "random") for seed in (0, 1)
]  # fmt: skip
ESTIMATE = {"value": 3.0, "stderr": 0.5, "values": [3.0, 3.0], "errors": [0.5, None]}
SHOWN: dict[str, dict[str, Any]] = {
    "experiment": {
        "config": {
            "seed": 0, "choices": {"model": "mlp"}, "experiment": {"_target_": "x.real_vs_random", "seeds": [0, 1]},
            "model": {"options": {"widths": [8]}},
        },
        "environment": {"spectral": "1", "started": "2026-01-01", "threads": 1},
        "cost": {"products": 3, "epochs": 2.0, "seconds": 1.5, "peak_bytes": 7},
        "estimates": {
            m: {"effective_rank": {"true": ESTIMATE, "random": ESTIMATE, "true-random": {"d": 1.0, "lower": 0.0, "upper": 2.0}}}
            for m in ("ntk.logits.train", "stacked.logits.test")
        },
        "conditions": {"true": "true labels"},
        "cells": CELLS,
    },
    "numbers": {
        "config": {"seed": 1, "choices": {"operator": "jacobian"}, "operator": {"_target_": "spectral.Jacobian"}},
        "environment": {},
        "cost": {"products": 3},
        "estimates": {"1": {"value": 1.0, "residual": 0.1}},
        "cells": [
            {
                "arrays": "estimate.npz", "matrix": "m", "condition": "init", "seed": 1, "test_accuracy": None, "trained": None,
                "metrics": {"1": 1.0, "1_residual": 0.1}, "found": {"kind": "eigenvalues"},
            }
        ],
    },
}  # fmt: skip


def gathered(path: Path) -> str:
    """Gather the run into tables; "refused" or "read"."""
    try:
        found = sweep.sweep_of(runs := sweep.find([path.parent]))
        sweep.rows_of(runs)
        for panel in found.panels:
            assert sweep.table(found, panel, path.parent).text()
        assert sweep.answer(found).sentence and sweep.question(found)
    except (ValueError, TypeError) as problem:
        said(problem)
        return "refused"
    return "read"


def attempts(folder: Path, name: str, count: int, seed: int) -> list[str]:
    """What comes of so many random changes of a file of this kind, each under a valid checksum."""
    kind, _, rest = name.partition(": ")
    rng = np.random.default_rng([seed, *name.encode()])
    path = folder / ("result.json" if kind == "result" else "file.npz")
    whole: Any = None
    if kind == "spectrum":
        whole = SPECTRA[rest]()
        whole.save(path)
    elif kind == "checkpoint":
        matrix, run = PROVEN[rest]
        A = Opaque(matrix, symmetric=True if matrix.shape[0] == matrix.shape[1] else None)
        whole = run(A, progress=False)
        for share in (0.6, 0.85, 0.35):  # until there is one with something in it
            if interrupted(run, Opaque(matrix, symmetric=A.symmetric), int(share * A.products), path) and path.exists():
                break
    beside = {file: file.read_bytes() for file in folder.iterdir() if file != path}
    arrays, header = persist.load_arrays(path) if path.suffix == ".npz" else ({}, SHOWN[rest])
    found = []
    for _ in range(count):
        for file, content in beside.items():
            file.write_bytes(content)
        changed, plain, what = fuzz.damaged(rng, arrays, header)
        try:
            if kind == "result":
                path.write_text(json.dumps(plain))
                found.append(gathered(path))
                continue
            persist.save_arrays(path, {k: v for k, v in changed.items() if v.dtype != object}, plain)
            found.append(read_spectrum(path, whole) if kind == "spectrum" else goes_on(path, rest, whole, what))
        except Exception as problem:
            raise AssertionError(f"{name}: {what}: {type(problem).__name__}: {problem}") from problem
    return found


NAMES = [
    *(f"spectrum: {name}" for name in SPECTRA),
    *(f"checkpoint: {name}" for name in PROVEN),
    *(f"result: {name}" for name in SHOWN),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_holds_is_refused_in_one_sentence_or_is_what_the_run_wrote(tmp_path, name):
    assert "refused" in attempts(tmp_path, name, 7, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_the_same_of_many_changes(tmp_path, name):
    found = attempts(tmp_path, name, 150, seed=1)
    assert found.count("refused") > 40
