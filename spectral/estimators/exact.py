"""All eigenvalues: of a matrix, or of a Gram matrix assembled in one pass over the data."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import torch

from spectral import arrays, distributed
from spectral.estimators import effort
from spectral.operators.base import Gram, Operator
from spectral.operators.jacobian import Jacobian
from spectral.operators.views import Dense, as_operator
from spectral.spectrum import Spectrum

BLOCK = 64  # columns of the identity multiplied at a time
WORKSPACE = 3  # the matrix in float64, its copy in the eigenvalue routine, and room


def exact(A: Any) -> Spectrum:
    """All eigenvalues of symmetric A (n, n), or of the Gram of a rectangular or network operator on its smaller side.

    A Jacobian's Gram is assembled in float64 in one sweep over the data (k VJPs a sample, counted as k products); anything
    else takes n products with the identity. Memory: n^2 doubles, and for J J^T the rows of J. Time: O(n^3) for the eigenvalues.
    `meta["value_error"]` bounds the error of each eigenvalue by the rounding of products and of the eigenvalue routine.

    Raises ValueError when the matrix does not fit into memory.

    >>> exact(np.diag([3.0, 1.0, 2.0])).atoms.values.tolist()
    [1.0, 2.0, 3.0]
    """
    A = as_operator(A)
    products, epochs = A.products, A.epochs
    op, zeros, _ = effort.symmetric_operand(A)
    tested = A.products - products if op is A else 0  # the two products of the symmetry test
    n = op.shape[0]
    if (needed := n * n * 8 * WORKSPACE) > arrays.available_memory(op.device):
        raise ValueError(
            f"exact needs {needed / 2**30:.1f} GiB for the {n} x {n} matrix, more than is free; use spectral.slq, which never "
            "forms it."
        )
    if isinstance(op, Gram):
        matrix, how, spent = _assemble(op)
    elif isinstance(op, Dense):
        matrix, how, spent = op.matrix.to_dense().double(), "dense matrix", 0
    else:
        matrix, how, spent = _by_products(op), f"{n} products", n
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    scale = float(values.abs().max())
    eps = arrays.machine_epsilon(op.dtype)
    error = 4 * n * 2.3e-16 * scale + (8 * eps * scale if op.dtype != torch.float64 else 0.0)
    return Spectrum.from_eigenvalues(
        values.cpu().numpy(),
        zeros=zeros,
        products=spent + tested,
        epochs=op.epochs - epochs,
        meta={**effort.environment(op), "assembled": how, "value_error": error},
    )


def gram_matrix(A: Any, side: str = "auto") -> torch.Tensor:
    """A A^T ("left") or A^T A ("right") as a dense float64 matrix; of a Jacobian in one pass over the data."""
    return _assemble(Gram(as_operator(A), side))[0]


def _assemble(gram: Gram) -> tuple[torch.Tensor, str, int]:
    """(the Gram matrix in float64, how it was made, products)."""
    A = gram.parts[0]
    if isinstance(A, Dense):
        matrix = A.matrix.to_dense().double()
        return (matrix @ matrix.T if gram.side == "left" else matrix.T @ matrix), "dense matrix", 0
    if isinstance(A, Jacobian):
        if gram.side == "right":
            return _sum_of_rows(A), "one pass over the data, J^T J summed batch by batch", A.outputs
        size = A.shape[0] * A.shape[1] * A.dtype.itemsize
        if distributed.world_size() == 1 and size < arrays.available_memory(A.device) // 2:
            return _gram_of_rows(A), "one pass over the data, rows of J kept", A.outputs
    return _by_products(gram), f"{gram.shape[0]} products", gram.shape[0]


def _sum_of_rows(J: Jacobian) -> torch.Tensor:
    """J^T J = sum_b J_b^T J_b."""
    n = J.shape[1]
    G = torch.zeros(n, n, dtype=torch.float64, device=J.device)
    with closing(J.rows()) as blocks:
        for _, block in blocks:
            wide = block.double()
            G.addmm_(wide.T, wide)
    J.products += J.outputs
    return distributed.all_reduce(G)


def _gram_of_rows(J: Jacobian) -> torch.Tensor:
    """J J^T from all rows, summed over slices of columns in float64."""
    rows = torch.empty(J.shape, dtype=J.dtype, device=J.device)
    with closing(J.rows()) as blocks:
        for where, block in blocks:
            rows[where] = block
    J.products += J.outputs
    G = torch.zeros(J.shape[0], J.shape[0], dtype=torch.float64, device=J.device)
    width = max(1, (64 << 20) // (8 * J.shape[0]))
    for start in range(0, J.shape[1], width):
        wide = rows[:, start : start + width].double()
        G.addmm_(wide, wide.T)
    return G


def _by_products(A: Operator) -> torch.Tensor:
    """A times the identity, block by block."""
    n = A.shape[0]
    matrix = torch.empty(n, n, dtype=torch.float64, device=A.device)
    for start in range(0, n, BLOCK):
        columns = torch.zeros(n, min(BLOCK, n - start), dtype=A.dtype, device=A.device)
        columns[range(start, start + columns.shape[1]), range(columns.shape[1])] = 1
        matrix[:, start : start + columns.shape[1]] = (A @ columns).double()
    if not torch.isfinite(matrix).all():
        raise ValueError(f"the products of {A!r} hold NaN or infinity; check the operator with A.adjoint_error().")
    return matrix
