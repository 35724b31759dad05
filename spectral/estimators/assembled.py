"""A matrix written out: from its own entries, from the rows of a Jacobian in few passes over the data, or from its products."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import torch

from spectral import arrays, distributed, longvectors
from spectral.estimators import cost
from spectral.estimators.budget import free_memory, progress_bar
from spectral.estimators.checkpoint import Checkpoint, State
from spectral.estimators.cost import SLICE
from spectral.krylov.symmetry import expected, look_again, not_finite
from spectral.networks.jacobian import Jacobian
from spectral.operators.foreign import Dense, as_operator
from spectral.operators.operator import Gram, Operator
from spectral.probes import unit_vectors
from spectral.schema import SIZE, Array, Fields

BLOCK = cost.BLOCK  # columns of the identity multiplied at a time, at most
# of a checkpoint: rows A e_0, A e_1, ... so far
PRODUCTS = Fields({"products": Array("float64", None, "n"), "width": SIZE})


def assemble(op: Operator, run: Checkpoint, progress: bool | None) -> State:
    """A as a dense float64 matrix, with how it was made and the products that it took; `run` goes on from those that it holds."""
    factor, shift, inner = cost.affine(op)
    if isinstance(inner, Dense):
        G, how, spent = arrays.double(inner.matrix.to_dense()), "dense matrix", 0
    elif (found := _of_gram(inner, run, progress)) is not None:
        G, how, spent = found
    else:
        factor, shift, (G, how, spent) = 1.0, 0.0, _by_products(op, run, progress)
    if factor != 1.0:
        G = G * factor
    if shift != 0.0:
        G = G.clone()  # perhaps the caller's own
        G.diagonal().add_(shift)
    return {"matrix": G, "how": how, "spent": spent, "shift": shift}


def laid(A: Operator, x: torch.Tensor) -> torch.Tensor:
    """x (n,) or (n, b) as A's vectors lie."""
    return x if A.shards is None else A.shards.part(x)


def gram_matrix(A: Any, side: str = "auto") -> torch.Tensor:
    """A A^T ("left") or A^T A ("right") as a dense float64 matrix; of a Jacobian in one pass over the data."""
    return matrix_of(Gram(as_operator(A), side))


def matrix_of(A: Operator) -> torch.Tensor:
    """A as a dense float64 matrix: what it is made of where that is known, else its products with the identity."""
    return assemble(A, Checkpoint(None, A, {}, PRODUCTS), False)["matrix"]


def _of_gram(gram: Operator, run: Checkpoint, progress: bool | None) -> tuple[torch.Tensor, str, int] | None:
    """(the Gram matrix in float64, how it was made, products), None where rows do not make it."""
    A = gram.parts[0] if isinstance(gram, Gram) else None
    if isinstance(gram, Gram) and isinstance(A, Dense):
        M = arrays.double(A.matrix.to_dense())
        return (M @ M.T if gram.side == "left" else M.T @ M), "dense matrix", 0
    swept = cost.sweeps(gram, free_memory(gram))
    if not isinstance(gram, Gram) or not isinstance(A, Jacobian) or not swept or run.state:
        return None  # products that were kept are gone on with
    if gram.side == "right":
        return _sum_of_rows(A, progress), "one pass over the data, J^T J summed batch by batch", A.outputs
    parts = "rows of J kept" if len(swept) == 1 else f"rows of J kept in {len(swept)} parts"
    how = f"{'one pass' if len(swept) == 1 else f'{len(swept)} passes'} over the data, {parts}"
    return _gram_of_rows(A, swept, progress), how, A.outputs * len(swept)


def _rows(J: Jacobian, progress: bool | None, first: int = 0) -> Generator[tuple[slice, torch.Tensor], None, None]:
    """The rows of J batch by batch, counted as the products that they are."""
    with closing(J.rows(first)) as blocks, progress_bar(J.shape[0], "exact", progress, "row") as bar:
        for where, block in blocks:
            yield where, block
            bar.update(len(block))
    J.products += J.outputs


def _sum_of_rows(J: Jacobian, progress: bool | None) -> torch.Tensor:
    """J^T J = sum_b J_b^T J_b."""
    n = J.shape[1]
    G = arrays.double_zeros((n, n), J.device)
    with distributed.Summand(G) as part, closing(_rows(J, progress)) as blocks:
        for _, block in blocks:
            for some in block.split(max(1, SLICE // (8 * n))):
                wide = arrays.double(some)
                G.addmm_(wide.T, wide)
    part.sum()
    if J.ranks > 1 and not arrays.all_finite(G):
        part.share()
    return G


def _gram_of_rows(J: Jacobian, swept: list[range], progress: bool | None) -> torch.Tensor:
    """J J^T: each sweep holds the rows of some batches, which meet each other and all later ones."""
    G = arrays.double_zeros((J.shape[0], J.shape[0]), J.device)
    for part in swept:
        mine = slice(J.starts[part.start], J.starts[part.stop])
        held = torch.empty(mine.stop - mine.start, J.shape[1], dtype=J.dtype, device=J.device)
        with closing(_rows(J, progress, part.start)) as blocks:
            for where, block in blocks:
                if where.start < mine.stop:
                    held[where.start - mine.start : where.stop - mine.start] = block
                else:
                    longvectors.add_products(G[mine, where], held, block, SLICE // 8)
                    G[where, mine] = G[mine, where].T
        longvectors.add_products(G[mine, mine], held, held, SLICE // 8)
    return G


def _by_products(A: Operator, run: Checkpoint, progress: bool | None) -> tuple[torch.Tensor, str, int]:
    """(A times the identity, how, products): block by block, row j of the table is A e_j, so that a part of it is contiguous."""
    n, done = A.shape[0], 0
    A.expect(n)
    table = torch.empty(n, n, dtype=torch.float64, device=arrays.float64_device(A.device))
    width = min(BLOCK, cost.columns(A, free_memory(A)))
    if run.state:
        width = run.state["width"]  # the same columns together: the same bits
        done = len(run.state["products"])
        table[:done] = run.state.pop("products")
    with run.guard(lambda: {"products": table[:done], "width": width}), progress_bar(n, "exact", progress) as bar:
        bar.update(done)
        while done < n:
            columns = unit_vectors(range(done, min(done + width, n)), n, dtype=A.dtype, device=A.device)
            block = A @ laid(A, columns)
            block = (block if A.shards is None else A.shards.whole(block)).T
            if not torch.isfinite(block).all():
                raise not_finite(f"a product of {A!r}")
            table[done : done + len(block)] = arrays.double(block)
            done += len(block)
            run.stepped()
            bar.update(len(block))
    _hold_symmetric(A, table)
    return table.T, f"{n} products", n


def _hold_symmetric(A: Operator, table: torch.Tensor) -> None:
    """The table, row j of which is A e_j, against its transpose; the pair that is furthest apart is multiplied again."""
    scale, worst, place = float(table.square().sum(1).max().sqrt()), 0.0, (0, 0)
    for start in range(0, len(table), BLOCK):
        off = (table[start : start + BLOCK] - table[:, start : start + BLOCK].T).abs()
        if float(off.max()) > worst:
            worst, at = float(off.max()), int(off.argmax())
            place = start + at // len(table), at % len(table)
    if worst > expected(A) * scale:
        eye, (j, i) = torch.eye(len(table), dtype=A.dtype, device=A.device), place
        names = f"the product with unit vector {j}", f"the product with unit vector {i}"
        look_again(A, laid(A, eye[i]), laid(A, eye[j]), float(table[j, i]), float(table[i, j]), names, scale)
