"""The other packages that `product_cost.py` measures beside `spectral`: how each multiplies, and which are installed here.

Each is used as its documentation says, on the same module, the same batches and the same loss. `python benchmarks/peers.py`
says which can be imported; how to install them stands in `product_cost.py`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from models import MATRICES, Workload

FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, LookupError, ImportError, OSError)
Product = Callable[[torch.Tensor], torch.Tensor]


def curvlinops_operator(work: Workload, matrix: str) -> Any:
    """Its LinearOperator."""
    import curvlinops as package

    options: dict[str, Any] = {"check_deterministic": False, "num_data": work.samples}
    if matrix == "J^T J":
        J = package.JacobianLinearOperator(work.model, work.leaves, work.data, **options)
        return J.adjoint() @ J
    kind = {"GaussNewton": package.GGNLinearOperator, "Hessian": package.HessianLinearOperator}[matrix]
    return kind(work.model, work.loss, work.leaves, work.data, **options)


def curvlinops(work: Workload, matrix: str) -> Product:
    A = curvlinops_operator(work, matrix)
    return lambda V: A @ V


def hessian_eigenthings(work: Workload, matrix: str) -> Product:
    import hessian_eigenthings as package

    if matrix == "GaussNewton":
        A = package.GGNOperator(
            work.model, work.data, package.supervised_forward, package.supervised_loss_of_output(work.loss)
        )
    else:
        A = package.HessianOperator(work.model, work.data, package.supervised_loss(work.loss))
    return lambda v: A @ v


def pyhessian(work: Workload, matrix: str) -> Product:
    """Its product over a loader; a single batch it would keep the graph of, as `spectral` does of every batch."""
    from pyhessian import hessian

    A = hessian(work.model, work.loss, dataloader=work.data, cuda=False)
    sizes = [p.numel() for p in A.params]

    def product(v: torch.Tensor) -> torch.Tensor:
        parts = [part.view_as(p) for part, p in zip(v.split(sizes), A.params, strict=True)]
        return torch.cat([h.reshape(-1) for h in A.dataloader_hv_product(parts)[1]])

    return product


@dataclass(frozen=True)
class Peer:
    """Another package: its names for import and for pip, its products, the matrices it has, whether it takes blocks."""

    module: str
    distribution: str
    product: Callable[[Workload, str], Product]
    matrices: tuple[str, ...]
    blocks: bool


PEERS = {
    "curvlinops": Peer("curvlinops", "curvlinops-for-pytorch", curvlinops, MATRICES, True),
    "hessian-eigenthings": Peer("hessian_eigenthings", "hessian-eigenthings", hessian_eigenthings, MATRICES[1:], False),
    "PyHessian": Peer("pyhessian", "PyHessian", pyhessian, MATRICES[2:], False),
}


def first_line(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {(str(failure).strip().splitlines() or ['no message'])[0]}"


def present(names: list[str]) -> list[str]:
    """The peers that can be imported; the others with the reason on stderr."""
    found = []
    for name in names:
        try:
            importlib.import_module(PEERS[name].module)
            found.append(name)
        except FAILURES as failure:
            print(f"{name} is left out: {first_line(failure)}", file=sys.stderr)
    return found


if __name__ == "__main__":
    print("found:", ", ".join(present(list(PEERS))) or "none")
