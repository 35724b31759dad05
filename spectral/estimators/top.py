"""The k largest (smallest, largest in magnitude) eigenpairs, every copy of a multiple eigenvalue among them.

One Krylov space holds one vector of each eigenspace (b of them, from a block of b). Therefore: once k pairs have converged
they are locked, and a fresh random direction is followed in their complement until it shows that nothing better is left there.
It shows it in one of three ways: its Krylov space is invariant and has been seen whole; its best pair has converged to
something worse; or the bound of Kuczynski and Wozniakowski (1992) for random starts rules anything better out.

From vectors of an earlier run (`start`) the search begins with their Rayleigh-Ritz pairs, one product a vector. Those that still
hold are locked at once, and those that nearly do after a step along their own residuals; others are followed together, from their
sum, which costs a step for each of them and not a block.

Legend: n the dimension, k pairs, b vectors in a block, l locked vectors, j start vectors; theta Ritz values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from spectral import arrays, longvectors
from spectral.checksum import checksum_of
from spectral.distributed import decided
from spectral.estimators.budget import progress_bar, symmetric_operand
from spectral.estimators.checkpoint import Checkpoint
from spectral.estimators.search import FEW, KEYS, Search, beyond, bounds, capacity, check, saved
from spectral.estimators.shared_out import RANKS, shared_out
from spectral.krylov.block_lanczos import BlockLanczos
from spectral.krylov.symmetry import expected, hold, hold_form
from spectral.operators.operator import Gram, Operator
from spectral.pieces import Piece
from spectral.probes import check_seed
from spectral.results import Measured
from spectral.schema import choice, integer

TOGETHER = 1 << 26  # bytes of vectors that are multiplied together where residuals are measured


@dataclass(frozen=True, eq=False)
class Eigenpairs(Measured):
    """k eigenpairs A v = theta v, best first, all measured.

    Attributes
    ----------
    values : numpy.ndarray
        (k,), theta.
    vectors : torch.Tensor
        (n, k), orthonormal columns, on the operator's device.
    residuals : numpy.ndarray
        (k,), ||A v - theta v||: within its residual of each value there is an eigenvalue.
    converged : numpy.ndarray
        (k,), whether the residual is at most `threshold`.
    threshold : float
        max(tol, 16 eps) ||A||, eps that of the operator's dtype, ||A|| estimated by the largest |theta|.
    complete : bool
        Nothing better was left in the complement. Otherwise (budget, or 50 n products) a converged pair is one of A, but a
        better may be missing.
    products : int
        That it took, earlier sessions of a checkpoint included.
    epochs : float
        Sweeps over the data that it took.
    meta : dict
        {"basis": vectors that the search held}. Of a run with `start` also {"start": {"vectors": j, "independent": how many of
        them, "held": how many of the k pairs had converged already}, "missed": the chance, at most, that something better was
        ruled out wrongly}.

    Examples
    --------
    >>> print(spectral.top(np.diag([1.0, 2.0]), 1).complete)
    True
    """

    vectors: torch.Tensor
    meta: dict[str, Any] = field(default_factory=dict)

    noun, sides = "eigenvalue", ("vectors",)


def top(
    A: Any,
    k: int,
    *,
    tol: float = 1e-8,
    seed: int = 0,
    which: str = "largest",
    block: int = 1,
    basis: int | None = None,
    start: Any = None,
    budget: Any = None,
    checkpoint: Any = None,
    progress: bool | None = None,
    ranks: str = "data",
) -> Eigenpairs:
    """The k largest ("smallest", or largest in "magnitude") eigenpairs of symmetric A (n, n), with all copies.

    A v = theta v by thick-restart (block) Lanczos with full reorthogonalisation. Eigenvalues closer than the tolerance
    count as equal.

    Cost: until convergence, then about 5 / sqrt(gap) to 11 / sqrt(gap) products to rule out missed copies (gap: from
    theta_k to the next, relative to the range), then k to measure residuals. Memory: `basis` vectors of length n, k more at
    the end, and a product's own.

    Parameters
    ----------
    A : operator or matrix
        (n, n) symmetric, or rectangular for its Gram on the smaller side; whatever `as_operator` takes. A Gram itself keeps
        the side that it has.
    k : int
        How many pairs, 1 to n.
    tol : float
        Converged where ||A v - theta v|| <= max(tol, 16 eps) ||A||; 0 <= tol < 1.
    seed : int
        0 to 2^64 - 1. Start vectors depend on (seed, i).
    which : str
        "largest", "smallest" or "magnitude".
    block : int
        Directions that are multiplied at a time.
    basis : int, optional
        Vectors that are held, k + 3 block + 1 at least. By default 64 MiB of them beyond k, but 128 at most and 16 or k at
        least, and no more than a quarter of the free memory holds; of vectors of 64 MiB and more k + 7, see Notes.
    start : array, optional
        (n, j) vectors of an earlier run, of a matrix near this one: `pairs.vectors`. They are orthonormalised. Any others are
        right too, and cost j products. See Notes.
    budget : int or str, optional
        As in `slq`. A number of products is kept; of any other the products that give k pairs at all (2k + block - 1, and one
        for each independent vector of `start`) are made.
    checkpoint : path, optional
        A file (its folder is made) that is written now and then, and at SIGINT and SIGTERM; the same call goes on to the
        same bits.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.
    ranks : str
        As in `slq`. "probes" and "both" share out the directions of a block, and need block >= 2.

    Returns
    -------
    Eigenpairs
        Best first, with measured residuals.

    Raises
    ------
    ValueError
        For k < 1 or k > n, a basis or budget that is too small for k, memory that does not hold one, an operator that is
        not symmetric, a keyword that is none of its values, a `start` that does not fit, holds NaN or a column of zeros, and
        a checkpoint that is damaged or of another call.
    TypeError
        For a `start` in another dtype than the operator's.
    RuntimeError
        For products that come out otherwise when they are made again.

    Notes
    -----
    One Krylov space holds one vector of each eigenspace. Converged pairs are locked, and a fresh random direction is
    followed in their complement until nothing better is left there: its space is invariant, its best pair has converged to
    something worse, or the bound for random starts rules anything better out (wrongly with a probability of 1e-4).

    With k + 7 vectors a search holds k + 12 at its peak, a product's own included, and its result keeps these k + 7.
    Eigenvalues that fall like those of networks then take no more products than with k + 128; where they lie close at the
    end that is asked for, restarts cost products: name a larger `basis` there. A large one costs time as well, since each
    product is orthogonalised against it. `meta["basis"]` says what was held.

    `start` takes one product a vector; pairs that are still within the tolerance then cost nothing more, their residuals
    included, and where all are within ten times of it, the others about one each, a step along their own residual. What is
    left is to look for something better along a random direction. Where all residuals are below 0.05 ||A||,
    so that the matrix has moved slowly, an earlier run has looked before: the look ends once the mass that its record leaves
    for anything better is one that a random direction is below with a chance of 0.1 (`meta["missed"]`). Four such runs in a
    row, each with another `seed`, are as sure as a run without `start`. Else that chance is 1e-4 as ever.

    References
    ----------
    - Wu, Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J. Matrix Anal. Appl. 22.
    - Golub, Underwood (1977), The block Lanczos method for computing eigenvalues, Mathematical Software III.
    - The bound: Kuczynski, Wozniakowski (1992), SIAM J. Matrix Anal. Appl. 13.

    Examples
    --------
    >>> pairs = top(np.diag([3.0, 1.0, 3.0, 2.0]), 3)
    >>> pairs.values.round(12).tolist(), pairs.converged.tolist()
    ([3.0, 3.0, 2.0], [True, True, True])
    >>> top(np.diag([3.1, 1.0, 3.0, 2.0]), 3, start=pairs.vectors).values.round(12).tolist()
    [3.1, 3.0, 2.0]
    """
    if ranks != "data" and block == 1:
        choice(ranks, "ranks", RANKS)
        raise ValueError(
            f"ranks={ranks!r} shares out the directions of a block, and top follows one after the other with block=1; use "
            "block=2 or more, or ranks='data', where every rank has its share of each product."
        )
    op, *_ = shared_out(A, ranks, lambda own: (own,) if isinstance(own, Gram) else symmetric_operand(own))
    n = op.shape[0]
    check(op, k, n, tol, which, KEYS)
    block = integer(block, "block", "block size", 1, n)
    settings = {"top": k, "tol": tol, "seed": check_seed(seed), "which": which, "block": block, "basis": basis}
    more = beyond(k, n * op.dtype.itemsize)
    few = more == FEW
    sizes = {"k": int(k), "block": block, **bounds(k, n, block, basis, few)}
    given, begin = _start(op, start, sizes["most"])
    if begin is not None:
        settings["start"] = checksum_of(begin) if op.shards is None else op.shards.checksum(begin)
    file = Checkpoint(checkpoint, op, settings, saved(BlockLanczos), **sizes)
    wanted = max(k + more, given + block)
    state = BlockLanczos(op, capacity(file, op, sizes, basis, 0 if few else k, wanted))
    run = Search(state, k, KEYS[which], tol, op, seed, block, file, budget)
    with progress_bar(None, "top", progress) as bar:
        complete = run.find(k, bar, begin)
    if run.measured is None:
        values, X, residuals = _measured(op, state.V, state.locked_values[:k], KEYS[which], run.norm)
    else:  # by the first products, and nothing has been locked since
        values, X, residuals = state.locked_values[:k], state.V[:k].clone(), run.measured
    meta: dict[str, Any] = {"basis": state.capacity}
    if begin is not None:
        meta |= {"start": {"vectors": given, "independent": len(begin), "held": run.held}, "missed": run.missed}
    return Eigenpairs(vectors=X.T, meta=meta, **run.told(values, residuals, complete))


def _start(op: Operator, start: Any, most: int) -> tuple[int, torch.Tensor | None]:
    """(how many vectors were given, an orthonormal basis (r, n) of their span), or one sentence about what does not fit."""
    if start is None:
        return 0, None
    V, n = arrays.to_torch(start).detach(), op.shape[1] if op.shards is None else op.shards.entries
    V = V[:, None] if V.ndim == 1 else V
    if V.ndim != 2 or V.shape[0] != n or not 1 <= V.shape[1] <= most or isinstance(V, Piece) != (op.shards is not None):
        raise ValueError(
            f"start has shape {tuple(V.shape)}; use (n, j) with n={n}, as the operator's vectors are, and 1 <= j <= {most}, what "
            "the basis holds."
        )
    if V.dtype != op.dtype:
        raise TypeError(
            f"start is {V.dtype}, and {op!r} multiplies {op.dtype}; convert it, since nothing is cast silently."
        )
    W = V.to(op.device).T.clone(memory_format=torch.contiguous_format)
    lengths = longvectors.norms(W)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError("start holds NaN, infinity or a column of zeros; use finite vectors that are not zero.")
    for w, length in zip(W, lengths, strict=True):
        w /= length
    floor = math.sqrt(arrays.machine_epsilon(op.dtype))
    return V.shape[1], longvectors.independent(W, W[:0], floor, partial(decided, op))[0]


def _measured(
    op: Operator, V: torch.Tensor, known: np.ndarray, key: Callable[[np.ndarray], np.ndarray], norm: float
) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """(values (k,), vectors (k, n), residuals (k,)) by one product with each of the first k rows of V, best first.

    `known` (k,) are the Ritz values of the rows, `norm` estimates ||A||: what products are held against. The products take the
    memory of V, large ones one at a time, so that k vectors are held beside it; none beside a basis of few.
    """
    k, large = len(known), len(known) * op.shape[0] * op.dtype.itemsize > TOGETHER
    if large and len(V) <= k + FEW:
        return _measured_one_by_one(op, V[:k], known, key, norm)
    X = longvectors.independent(V[:k], V[:0], 0.0, partial(decided, op))[0]
    W, width = V[:k], 1 if large else k
    for i in range(0, k, width):
        W[i : i + width] = (op @ X[i : i + width].T).T
    H = longvectors.dots(X, W).cpu().numpy()
    name, scale = "a product that measures residuals", max(norm, float(np.abs(H).max()))
    hold(op, H, H.T, lambda i: X[i], lambda j: X[j], scale, (name, name))
    _hold_values(op, X, np.diag(H), known, scale, name)
    values, S = decided(op, tuple(np.linalg.eigh((H + H.T) / 2)))  # Rayleigh-Ritz: the residuals lie outside the span
    order = np.argsort(-key(values), kind="stable")
    values, S = values[order], S[:, order]
    X, W = longvectors.rotate(X, S), longvectors.rotate(W, S)
    return values, X, decided(op, longvectors.differences(W, X, values))


def _measured_one_by_one(
    op: Operator, X: torch.Tensor, known: np.ndarray, key: Callable[[np.ndarray], np.ndarray], norm: float
) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """The same with one product held at a time, of rows X (k, n) that are orthonormalised in place, and rotated no more."""
    k, name = len(known), "a product that measures residuals"
    H, residuals = np.zeros((k, k)), np.zeros(k)
    for i in range(k):
        x = X[i : i + 1]
        longvectors.orthogonalise(x, X[:i])
        x /= longvectors.norm(x[0])
    for i in range(k):
        w = (op @ X[i : i + 1].T).T
        H[:, i] = longvectors.dots(X, w)[:, 0].cpu().numpy()
        residuals[i] = longvectors.differences(w, X[i : i + 1], H[i : i + 1, i])[0]
    H, residuals = decided(op, (H, residuals))
    values, scale = np.diag(H).copy(), max(norm, float(np.abs(H).max()))
    hold(op, H, H.T, lambda i: X[i], lambda j: X[j], scale, (name, name))
    _hold_values(op, X, values, known, scale, name)
    order = np.argsort(-key(values), kind="stable")
    if (order != np.arange(k)).any():
        longvectors.rotate(X, np.eye(k)[:, order])
    return values[order], X, residuals[order]


def _hold_values(op: Operator, X: torch.Tensor, values: np.ndarray, known: np.ndarray, scale: float, name: str) -> None:
    """What an eigenvector's product has along itself, `values` (k,), against the Ritz values (k,): no other vector shows it."""
    order, known = np.argsort(values), np.sort(known)
    off = np.abs(values[order] - known)
    worst = int(off.argmax())
    # n products are added one after another, perhaps: those that are small beside the first are lost (Higham 2002, section 4.2)
    if off[worst] > (expected(op) + X.shape[1] * 2.0**-53) * scale:
        i = order[worst]
        found = f"it gave the eigenvalue {values[i]:.6g} where {known[worst]:.6g} was due"
        hold_form(op, X[i], values[i], off[worst] / 2, name, found)
