"""All eigenvalues: of a matrix, or of a Gram matrix assembled in one pass over the data."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np
import torch

from spectral import arrays, distributed, longvectors
from spectral.estimators import cost
from spectral.estimators.budget import environment, free_memory, progress_bar, stoppable, symmetric_operand
from spectral.estimators.checkpoint import Checkpoint, State
from spectral.estimators.cost import SLICE, WORKSPACE
from spectral.krylov.symmetry import KnownProduct, distance, expected, look_again, not_finite, random_coefficients
from spectral.networks.jacobian import Jacobian
from spectral.operators.foreign import Dense, as_operator
from spectral.operators.operator import Gram, Operator
from spectral.probes import unit_vectors
from spectral.quadrature import gauss
from spectral.schema import COUNT, SIZE, Array, Either, Fields, Number, Text
from spectral.spectrum import Spectrum

BLOCK = cost.BLOCK  # columns of the identity multiplied at a time, at most
WHOLE = {"how": Text(), "spent": COUNT, "shift": Number()}
STATE = Either(  # of a checkpoint: rows A e_0, A e_1, ... of the products so far; the matrix; its eigenvalues, a product of it
    Fields({"products": Array("float64", None, "n"), "width": SIZE}),
    Fields({"matrix": Array("float64", "n", "n"), **WHOLE}),
    Fields({"values": Array("float64", "n", ascending=True), "image": Array("float64", "n"), **WHOLE}),
)


def exact(A: Any, *, checkpoint: Any = None, progress: bool | None = None) -> Spectrum:
    """All eigenvalues of symmetric A (n, n), or of the Gram of a rectangular or network operator on its smaller side.

    Cost: of a Jacobian's Gram (also of its multiples and shifts) one sweep over the data, k VJPs a sample, counted as k
    products; of anything else n products with the identity, of a matrix none. Memory: n^2 doubles, and for J J^T the rows
    of J. Time: O(n^3) for the eigenvalues.

    Parameters
    ----------
    A : operator or matrix
        (n, n) symmetric, or rectangular for its Gram on the smaller side; whatever `as_operator` takes.
    checkpoint : path, optional
        A file; the same call goes on from it to the same bits. It keeps the products with the identity and the whole matrix
        (n^2 doubles; written now and then, if seconds went into them, and at SIGINT and SIGTERM), then the eigenvalues. A
        sweep that assembles a Jacobian's Gram is kept when it is over: interrupted before, it begins anew.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.

    Returns
    -------
    Spectrum
        All eigenvalues as atoms, by method "exact". `meta["assembled"]` says how the matrix was made.

    Raises
    ------
    ValueError
        When the matrix does not fit into memory, for an operator that is not symmetric, for products that hold NaN, and for
        a checkpoint that is damaged or of another operator.
    RuntimeError
        For products that come out otherwise when they are made again.

    Notes
    -----
    A Jacobian's Gram is assembled in float64. Where half of the free memory does not hold it and the rows of J, it holds a
    part of them in each of several sweeps, which all later rows meet; `spectral.estimators.cost` counts it.

    Products with the identity are held against each other: <e_i, A e_j> = <A e_i, e_j>, see `spectral.krylov.symmetry`.
    `meta["value_error"]`, the error of each eigenvalue, is `Spectrum.rounding`: that of products and of the eigenvalue
    routine.

    Examples
    --------
    >>> exact(np.diag([3.0, 1.0, 2.0])).atoms.values.tolist()
    [1.0, 2.0, 3.0]
    """
    A = as_operator(A)
    products, epochs = A.products, A.epochs
    op, zeros, _ = symmetric_operand(A)
    tested = A.products - products if op is A else 0  # the two products of the symmetry test
    before = op.epochs - epochs
    n = op.shape[0]
    if (needed := n * n * 8 * WORKSPACE) > free_memory(op):
        raise ValueError(
            f"exact needs {needed / 2**30:.1f} GiB for the {n} x {n} matrix, more than is free; use spectral.slq, which never "
            "forms it."
        )
    run = Checkpoint(checkpoint, op, {"estimator": "exact"}, STATE)
    state = run.state or {}
    with stoppable(checkpoint is not None):
        _prove(op, run)
        if "values" not in state:
            state = _with_values(state if "matrix" in state else _matrix(op, run, progress), run)
    values, how, spent, shift = (state[key] for key in ("values", "how", "spent", "shift"))
    spectrum = Spectrum.from_eigenvalues(
        values,
        zeros=zeros,
        products=spent + tested,
        epochs=before + run.spent.epochs,
        meta={**environment(op), "assembled": how},
    )
    if shift:  # what was rounded may have been larger
        scale = float(max(np.abs(values).max(), np.abs(values - shift).max()))
        spectrum.meta["rounding"] = gauss.zero_level(scale, spectrum.dim, spectrum.epsilon)
    spectrum.meta["value_error"] = spectrum.rounding
    return spectrum


def _matrix(op: Operator, run: Checkpoint, progress: bool | None) -> State:
    """The matrix, how it was made, its products."""
    factor, shift, inner = cost.affine(op)
    if isinstance(inner, Dense):
        matrix, how, spent = inner.matrix.to_dense().double(), "dense matrix", 0
    elif (assembled := _assemble(inner, run, progress)) is not None:
        matrix, how, spent = assembled
    else:
        factor, shift, (matrix, how, spent) = 1.0, 0.0, _by_products(op, run, progress)
    if factor != 1.0:
        matrix = matrix * factor
    if shift != 0.0:
        matrix = matrix.clone()  # perhaps the caller's own
        matrix.diagonal().add_(shift)
    return {"matrix": matrix, "how": how, "spent": spent, "shift": shift}


def _with_values(state: State, run: Checkpoint) -> State:
    """The eigenvalues in place of the matrix."""
    matrix = state["matrix"]
    with run.guard(lambda: state):
        run.stepped()  # the routine hears no signal, and no SIGKILL waits for it
        values = torch.linalg.eigvalsh((matrix + matrix.T) / 2).cpu().numpy()
        image = (matrix @ _combination(run.op)).cpu().numpy()
        state = {"values": values, "image": image, **{key: state[key] for key in WHOLE}}
        run.stepped(end=True)
    return state


def _prove(op: Operator, run: Checkpoint) -> None:
    """Repeat the products that a checkpoint knows, all of them in one random combination."""
    state: State = run.state or {}
    c = _combination(op)
    if "image" in state:
        due = torch.from_numpy(state["image"])
    else:
        rows: Any = state.get("products", state.get("matrix", torch.zeros(0, op.shape[0])))
        c[len(rows) :] = 0
        due = rows.T @ c[: len(rows)].to(rows)
    if run.state and c.any():
        run.prove(KnownProduct(_laid(op, c.to(op.dtype)), distance(_laid(op, due.to(op.device)))))


def _laid(A: Operator, x: torch.Tensor) -> torch.Tensor:
    """x (n,) or (n, b) as A's vectors lie."""
    return x if A.shards is None else A.shards.part(x)


def _combination(op: Operator) -> torch.Tensor:
    """A random vector (n,) in float64 whose entries the dtype of the operator has too."""
    return torch.from_numpy(random_coefficients(op.shape[0])).to(op.device, op.dtype).double()


def gram_matrix(A: Any, side: str = "auto") -> torch.Tensor:
    """A A^T ("left") or A^T A ("right") as a dense float64 matrix; of a Jacobian in one pass over the data."""
    return matrix_of(Gram(as_operator(A), side))


def matrix_of(A: Operator) -> torch.Tensor:
    """A as a dense float64 matrix: what it is made of where that is known, else its products with the identity."""
    return _matrix(A, Checkpoint(None, A, {}, STATE), False)["matrix"]


def _assemble(gram: Operator, run: Checkpoint, progress: bool | None) -> tuple[torch.Tensor, str, int] | None:
    """(the Gram matrix in float64, how it was made, products), None where rows do not make it."""
    A = gram.parts[0] if isinstance(gram, Gram) else None
    if isinstance(gram, Gram) and isinstance(A, Dense):
        matrix = A.matrix.to_dense().double()
        return (matrix @ matrix.T if gram.side == "left" else matrix.T @ matrix), "dense matrix", 0
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
    G = torch.zeros(n, n, dtype=torch.float64, device=J.device)
    with distributed.Summand(G) as part, closing(_rows(J, progress)) as blocks:
        for _, block in blocks:
            for some in block.split(max(1, SLICE // (8 * n))):
                wide = some.double()
                G.addmm_(wide.T, wide)
    part.sum()
    if J.ranks > 1 and not arrays.all_finite(G):
        part.share()
    return G


def _gram_of_rows(J: Jacobian, swept: list[range], progress: bool | None) -> torch.Tensor:
    """J J^T: each sweep holds the rows of some batches, which meet each other and all later ones."""
    G = torch.zeros(J.shape[0], J.shape[0], dtype=torch.float64, device=J.device)
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
    table = torch.empty(n, n, dtype=torch.float64, device=A.device)
    width = min(BLOCK, cost.columns(A, free_memory(A)))
    if run.state:
        width = run.state["width"]  # the same columns together: the same bits
        done = len(run.state["products"])
        table[:done] = run.state.pop("products")
    with run.guard(lambda: {"products": table[:done], "width": width}), progress_bar(n, "exact", progress) as bar:
        bar.update(done)
        while done < n:
            columns = unit_vectors(range(done, min(done + width, n)), n, dtype=A.dtype, device=A.device)
            block = A @ _laid(A, columns)
            block = (block if A.shards is None else A.shards.whole(block)).T
            if not torch.isfinite(block).all():
                raise not_finite(f"a product of {A!r}")
            table[done : done + len(block)] = block
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
        look_again(A, _laid(A, eye[i]), _laid(A, eye[j]), float(table[j, i]), float(table[i, j]), names, scale)
