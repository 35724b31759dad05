"""All eigenvalues: of a matrix, or of a Gram matrix assembled in one pass over the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spectral import arrays
from spectral.estimators.assembled import PRODUCTS, assemble, laid
from spectral.estimators.budget import environment, free_memory, stoppable, symmetric_operand
from spectral.estimators.checkpoint import Checkpoint, State
from spectral.estimators.cost import WORKSPACE
from spectral.krylov.symmetry import KnownProduct, distance, random_coefficients
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Operator
from spectral.quadrature import gauss
from spectral.schema import COUNT, SWITCH, Array, Either, Fields, Number, Text, choice
from spectral.spectrum import Spectrum

WHOLE = {"how": Text(), "spent": COUNT, "shift": Number()}
STATE = Either(  # of a checkpoint: rows A e_0, A e_1, ... of the products so far; the matrix; its eigenvalues, a product of it
    PRODUCTS,
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
        A file (its folder is made); the same call goes on from it to the same bits. It keeps the products with the identity
        and the whole matrix (n^2 doubles; written now and then, if seconds went into them, and at SIGINT and SIGTERM), then
        the eigenvalues. A sweep that assembles a Jacobian's Gram is kept when it is over: interrupted before, it begins
        anew.
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
    choice(progress, "progress", (*SWITCH, None))
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
            state = _with_values(state if "matrix" in state else assemble(op, run, progress), run)
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


def _with_values(state: State, run: Checkpoint) -> State:
    """The eigenvalues in place of the matrix."""
    matrix = state["matrix"]
    with run.guard(lambda: state):
        run.stepped()  # the routine hears no signal, and no SIGKILL waits for it
        values = torch.linalg.eigvalsh(torch.add(matrix / 2, matrix.T, alpha=0.5)).cpu().numpy()
        if not np.isfinite(values).all():
            raise ValueError(
                f"eigenvalues of {run.op!r} are beyond {np.finfo(float).max:.2g}, the largest number of float64; multiply the "
                "operator by a number, such as A * 1e-10, and divide what comes out by it."
            )
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
        run.prove(
            KnownProduct(
                laid(op, c.to(op.device, op.dtype)), distance(laid(op, due.to(arrays.float64_device(op.device))))
            )
        )


def _combination(op: Operator) -> torch.Tensor:
    """A random vector (n,) in float64 whose entries the dtype of the operator has too."""
    return arrays.double(torch.from_numpy(random_coefficients(op.shape[0])).to(op.device, op.dtype))
