"""The table of docs/models.md: on each family of models, which engine each operator takes and how far it is from the oracle.

Run it with transformers installed: python benchmarks/model_table.py. The models are tiny and in float64; an entry is the
engine and the largest relative error of ten products with a block of three vectors, data cut in batches of 2, 2 and 1.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from families import FAMILIES, Family, Oracle

from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian
from spectral.operators.operator import Operator

KINDS = ("Jacobian", "wrt inputs", "Hessian", "GaussNewton", "Fisher", "EmpiricalFisher")


def operator(kind: str, family: Family) -> Operator:
    model, data = family.model(), family.cut((2, 2, 1))
    if kind in ("Jacobian", "wrt inputs"):
        return Jacobian(model, data, wrt="inputs" if kind == "wrt inputs" else "params")
    if kind == "Hessian":
        return Hessian(model, family.loss, data)
    classes = {"GaussNewton": GaussNewton, "Fisher": Fisher, "EmpiricalFisher": EmpiricalFisher}
    return classes[kind](model, family.loss, data)


def expected(kind: str, oracle: Oracle, V: torch.Tensor) -> torch.Tensor:
    if kind == "Hessian":
        return oracle.hessian_products(V)
    dense = {
        "Jacobian": lambda: oracle.J, "wrt inputs": oracle.input_jacobian, "GaussNewton": oracle.gauss_newton,
        "Fisher": oracle.gauss_newton, "EmpiricalFisher": oracle.empirical_fisher,
    }  # fmt: skip
    return dense[kind]() @ V


def entry(kind: str, family: Family, oracle: Oracle) -> tuple[str, list[str], str]:
    """(cell, engines refused and why, dtype inside) of one operator on one family."""
    try:
        A = operator(kind, family)
        V = torch.randn(A.shape[1], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
        W = expected(kind, oracle, V)
        error = max(float((A @ V - W).norm() / W.norm()) for _ in range(10))
    except (ValueError, TypeError, RuntimeError) as failure:
        return f"fails: {failure}", [], ""
    record = A.describe()
    verdict = "" if error <= family.tolerance else "**wrong**: "
    reasons = record.get("reason", "").split("; ")[1:]
    return f"{verdict}{record['engine']}, {error:.0e}", reasons, record.get("computes_in", "")


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    notes: list[str] = []
    print("| model | parameters |", " | ".join(KINDS), "|")
    print("|---|---|" + "---|" * len(KINDS))
    for name, family in FAMILIES.items():
        oracle = Oracle(family)
        cells = [entry(kind, family, oracle) for kind in KINDS]
        print(f"| {name} | {oracle.J.shape[1]} |", " | ".join(cell for cell, _, _ in cells), "|", flush=True)
        inside = {dtype for _, _, dtype in cells if dtype}
        refused = dict.fromkeys(
            reason.split(": ")[0] + ": " + _short(reason) for _, rs, _ in cells for reason in rs if ": " in reason
        )
        said = [f"computes in {', '.join(inside)} inside"] * bool(inside) + [f"refused {line}" for line in refused]
        if said:
            notes.append(f"- {name}: {'; '.join(said)}.")
    print("", *notes, sep="\n")


def _short(reason: str) -> str:
    """Why an engine was refused, without figures and advice."""
    text = reason.split(": ", 1)[1]
    if "differ by" in text:
        return f"wrong on {text.split(' on ')[1]}"
    return "the model branches on values of its data" if "tracing tensor" in text else text[:80]


if __name__ == "__main__":
    main()
