"""The k largest (or smallest) singular triplets, every copy among them, without ever squaring the matrix.

Golub-Kahan bidiagonalisation on the short side and `top`'s search: lock what has converged, then follow a fresh random
direction in the complement until nothing better is left there. Products with J^T J would lose singular values below
sqrt(eps) ||J||; these lose them below eps ||J||.

Legend: J (m, n); K is J or J^T, whichever has its short side right; X (k, short) right, Y (k, long) left vectors of K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from spectral import arrays, longvectors
from spectral.distributed import decided
from spectral.estimators.budget import entries, progress_bar
from spectral.estimators.checkpoint import Checkpoint
from spectral.estimators.search import INNER, KEYS, Search, bounds, capacity, check, saved
from spectral.estimators.shared_out import shared_out
from spectral.krylov.golub_kahan import GolubKahan
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Operator
from spectral.probes import check_seed
from spectral.results import Measured


@dataclass(frozen=True, eq=False)
class SingularTriplets(Measured):
    """k triplets J v = sigma u, J^T u = sigma v, best first, all measured.

    Attributes
    ----------
    values : numpy.ndarray
        (k,), sigma.
    left : torch.Tensor
        (m, k), the u, on the operator's device.
    right : torch.Tensor
        (n, k), the v.
    residuals : numpy.ndarray
        (k,), max(||J v - sigma u||, ||J^T u - sigma v||): within its residual of each value there is a singular value.
    converged : numpy.ndarray
        (k,), whether the residual is at most `threshold`.
    threshold : float
        max(tol, 16 eps) ||J||, eps that of the operator's dtype, ||J|| estimated by the largest sigma.
    complete : bool
        Nothing better was left in the complement, as in `Eigenpairs`.
    products : int
        That it took, earlier sessions of a checkpoint included; J v and J^T u are one each.
    epochs : float
        Sweeps over the data that it took.

    Examples
    --------
    >>> print(spectral.svd(np.diag([1.0, 2.0]), 1).complete)
    True
    """

    left: torch.Tensor
    right: torch.Tensor

    noun, sides = "singular value", ("left", "right")


def svd(
    J: Any,
    k: int,
    *,
    tol: float = 1e-8,
    seed: int = 0,
    which: str = "largest",
    basis: int | None = None,
    budget: Any = None,
    checkpoint: Any = None,
    progress: bool | None = None,
    ranks: str = "data",
) -> SingularTriplets:
    """The k largest ("smallest") singular triplets J v = sigma u, J^T u = sigma v of J (m, n), with all copies.

    Golub-Kahan bidiagonalisation on J itself, never on its square, with one-sided reorthogonalisation on the short side and
    thick restarts. k = min(m, n) is the full decomposition.

    Cost: two products a step (J v and J^T u are one each), as many as `top` needs for J^T J, and 2k to measure the
    residuals. Memory: `basis` vectors of the short side, 3k of the long side, and those that a restart keeps.

    Parameters
    ----------
    J : operator or matrix
        (m, n); whatever `as_operator` takes.
    k : int
        How many triplets, 1 to min(m, n).
    tol : float
        Converged where both residuals are <= max(tol, 16 eps) ||J||; 0 <= tol < 1.
    seed : int
        0 to 2^64 - 1, of the random start vectors.
    which : str
        "largest" or "smallest". The smallest ones of a large matrix converge slowly.
    basis : int, optional
        Vectors of the short side that are held, k + 4 at least; by default as in `top`.
    budget : int or str, optional
        As in `slq`. A number of products is kept; of any other those that give k triplets at all (4k) are made.
    checkpoint : path, optional
        As in `top`.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.
    ranks : str
        As in `slq`. "probes" and "both" share out what is multiplied together: the products that measure residuals, and those
        of restarts. A step's are one vector each, made by the first rank (or team).

    Returns
    -------
    SingularTriplets
        Best first, with measured residuals.

    Raises
    ------
    ValueError
        For an empty matrix, k < 1 or k > min(m, n), a basis or budget that is too small for k, memory that does not hold
        one, a keyword that is none of its values, and a checkpoint that is damaged or of another call.
    RuntimeError
        For products that come out otherwise when they are made again.

    Notes
    -----
    Products with J^T J would lose singular values below sqrt(eps) ||J||; these lose them below eps ||J||. Where a value is
    below half of the tolerance and J v / sigma is rounding, the left vector is a random one less its projection on the
    range: conjugate gradients, two products a step, within the budget; `residuals` and `converged` say how good it is.

    References
    ----------
    - Golub, Kahan (1965), Calculating the singular values and pseudo-inverse of a matrix, SIAM J. Numer. Anal. B 2.
    - Simon, Zha (2000), Low-rank matrix approximation using the Lanczos bidiagonalization process, SIAM J. Sci. Comput. 21.
    - Baglama, Reichel (2005), Augmented implicitly restarted Lanczos bidiagonalization methods, SIAM J. Sci. Comput. 27.
    - Bjorck (1996), Numerical Methods for Least Squares Problems, SIAM.

    Examples
    --------
    >>> triplets = svd(np.diag([3.0, 1.0, 2.0])[:, :2], 2)
    >>> triplets.values.round(12).tolist(), triplets.left.shape, triplets.converged.tolist()
    ([3.0, 1.0], torch.Size([3, 2]), [True, True])
    """
    A = as_operator(J)
    if 0 in A.shape:
        raise ValueError(f"{A!r} is empty; it has no singular values.")
    (A,) = shared_out(A, ranks, lambda own: (own,))
    wide = A.shape[0] < A.shape[1]
    K = A.T if wide else A
    keys = {name: KEYS[name] for name in ("largest", "smallest")}
    n = K.shape[1]
    check(A, k, n, tol, which, keys)
    settings = {"svd": k, "tol": tol, "seed": check_seed(seed), "which": which, "basis": basis}
    sizes = {"m": K.shape[0], "k": int(k), "block": 1, **bounds(k, n, 1, basis)}
    file = Checkpoint(checkpoint, A, settings, saved(GolubKahan), n=n, **sizes)
    state = GolubKahan(K, capacity(file, K, sizes, basis, k + 3 * k * -(-entries(K.T) // entries(K)), sizes["most"]))
    run = Search(state, k, keys[which], tol, A, seed, 1, file, budget)
    with progress_bar(None, "svd", progress) as bar:
        complete = run.find(2 * k, bar)
    values, X, Y, residuals = _measured(K, state, k, keys[which], seed)
    run.norm = max(run.norm, float(values.max()))
    threshold = run.tol * run.norm
    lost = np.flatnonzero((residuals > threshold) & (values <= threshold / 2))
    run.reserve = 3 * len(lost)
    if len(lost) and not run.exhausted(0):  # the direction of K v is rounding and says nothing of u
        known = np.setdiff1d(np.arange(k), lost)
        Y[lost] = _outside(K, Y[known], run, seed, len(lost))
        images = ((K @ X[lost].T).T, (K.T @ Y[lost].T).T)
        residuals[lost] = decided(K, _residuals(*images, X[lost], Y[lost], values[lost]))
    left, right = (X, Y) if wide else (Y, X)
    return SingularTriplets(left=left.T, right=right.T, **run.told(values, residuals, complete))


def _measured(
    K: Operator, state: GolubKahan, k: int, key: Callable[[np.ndarray], np.ndarray], seed: int
) -> tuple[np.ndarray, torch.Tensor, torch.Tensor, np.ndarray]:
    """(values (k,), right (k, n), left (k, m), residuals (k,)) by two products a triplet, best first.

    The right vectors span a space X; the singular values of K X are those of the factor R in K X^T = Y^T R.
    """
    X = longvectors.independent(state.V[:k], state.V[:0], 0.0, state.agree)[0]
    W = (K @ X.T).T.clone(memory_format=torch.contiguous_format)
    Y, R = longvectors.independent(W.clone(), W[:0], arrays.machine_epsilon(K.dtype) ** 2 * state.norm, state.agree)
    R = np.concatenate([R, np.zeros((k - len(R), k))])
    Y = torch.cat([Y, _complement(K, Y, k - len(Y), seed)])
    P, values, Qt = state.agree(tuple(np.linalg.svd(R)))
    order = np.argsort(-key(values), kind="stable")
    values, right, left = values[order], Qt.T[:, order], P[:, order]
    X, W, Y = longvectors.rotate(X, right), longvectors.rotate(W, right), longvectors.rotate(Y, left)
    Z = (K.T @ Y.T).T
    return values, X, Y, state.agree(_residuals(W, Z, X, Y, values))


def _residuals(KX: torch.Tensor, KtY: torch.Tensor, X: torch.Tensor, Y: torch.Tensor, values: np.ndarray) -> np.ndarray:
    """max(||K x - sigma y||, ||K^T y - sigma x||) of each triplet, (k,)."""
    return np.maximum(longvectors.differences(KX, Y, values), longvectors.differences(KtY, X, values))


def _complement(K: Operator, Y: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """`count` orthonormal rows orthogonal to Y's: the left vectors of singular values that are 0."""
    if count == 0:
        return Y[:0]
    W = torch.stack([K.T.probe(seed, (1 << 32) + i) for i in range(count)])
    return longvectors.independent(W, Y, 0.0, partial(decided, K), again=True)[0]


def _outside(K: Operator, Y: torch.Tensor, run: Search, seed: int, count: int) -> torch.Tensor:
    """`count` orthonormal rows u, orthogonal to Y's, with K^T u = 0 as far as the tolerance and the budget reach.

    Random vectors less their projection on the range of K: the residuals r of least squares by conjugate gradients
    (CGLS; Bjorck 1996, algorithm 7.4.1), two products a step; the part along singular values below tol ||K|| may stay.
    """
    W = _complement(K, Y, count, seed)
    for i in range(count):
        r = W[i]  # a view
        s = K.T @ r
        p, square = s.clone(), longvectors.dot(s, s)
        for _ in range(K.shape[1]):
            enough = square <= (INNER * run.tol * run.norm) ** 2 * longvectors.dot(r, r)
            if decided(K, enough) or run.exhausted(2):
                break
            q = K @ p
            r.sub_(q, alpha=square / longvectors.dot(q, q))
            s, before = K.T @ r, square
            square = longvectors.dot(s, s)
            p.mul_(square / before).add_(s)
    return longvectors.independent(W, Y, 0.0, partial(decided, K), again=True)[0]  # q has parts along Y's
