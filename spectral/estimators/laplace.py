"""Curvature for Laplace approximations: dense diagonal blocks, and low rank plus diagonal with its error.

A Gaussian with the precision A + shift I needs log det and solves; both forms have them without the whole matrix.

Source: Daxberger et al. (2021), Laplace redux: effortless Bayesian deep learning, NeurIPS; Woodbury's identity for the solves.

Legend: n the dimension, k pairs, M = U^T (D + shift)^-1 U.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from spectral import arrays, cards
from spectral.estimators.assembled import matrix_of
from spectral.estimators.budget import free_memory, hold_whole
from spectral.estimators.diagonal import diagonal
from spectral.estimators.leave_one_out import widening
from spectral.estimators.top import top
from spectral.networks.blocks import blocks
from spectral.networks.curvature import GaussNewton
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Operator
from spectral.results import Estimate
from spectral.schema import integer

WORKSPACE = 2  # matrices of the size of a block, beside it


def block_diagonal(A: Any, partition: Any = None, *, by: str = "parameter") -> dict[str, torch.Tensor]:
    """The diagonal blocks of A as dense matrices, by the names of parameters, modules, or a partition.

    Cost: of GaussNewton, Fisher and EmpiricalFisher one sweep a block, with a backward pass for each term of a sample's output
    curvature (see `diagonal`, method "exact"), and one product that the block is held to. Of all others p products for a block
    of p entries. Memory: p^2 float64 for each block.

    Parameters
    ----------
    A : operator
        As for `blocks`.
    partition, by : dict or list, str
        As for `blocks`.

    Returns
    -------
    dict of str to torch.Tensor
        (p, p) each, float64, symmetric.

    Raises
    ------
    ValueError
        Where the blocks do not fit into the free memory, for a matrix that is not symmetric, for NaN, where single samples do
        not make the products, since they meet in the model, and as `blocks`.

    Examples
    --------
    >>> block_diagonal(np.diag([1.0, 2.0, 3.0]), [[0, 1], [2]])["1"]
    tensor([[3.]], dtype=torch.float64)
    """
    A = as_operator(A)
    hold_whole(A, "block_diagonal")
    if A.symmetric is False:
        raise ValueError(f"{A!r} is not symmetric, and has no curvature to give; use A[rows, cols] for a block of it.")
    parts = blocks(A, partition, by=by)
    largest = max(parts, key=lambda name: parts[name].shape[0], default="")
    sizes = [B.shape[0] ** 2 for B in parts.values()]
    needed = 8 * (sum(sizes) + WORKSPACE * max(sizes, default=0))
    if needed > free_memory(A):
        raise ValueError(
            f"the blocks need {needed / 2**30:.1f} GiB, more than is free; the largest is {largest!r} with "
            f"{parts[largest].shape[0]} entries: cut it by partition=, or use low_rank_plus_diagonal."
        )
    return {name: _dense(B) for name, B in parts.items()}


def _dense(B: Operator) -> torch.Tensor:
    """A block as a matrix."""
    alone = isinstance(B, GaussNewton) and B.separate and B.network.wrt == "params"
    made = B.single_samples(whole=True) if alone else matrix_of(B)  # type: ignore[attr-defined]
    return (made + made.T) / 2


@dataclass(frozen=True)
class LowRankPlusDiagonal(cards.Sentence):
    """U diag(s) U^T + diag(d), which stands for a symmetric matrix.

    Attributes
    ----------
    vectors : torch.Tensor
        U (n, k): eigenvectors.
    values : numpy.ndarray
        s (k,): eigenvalues, the largest in magnitude first.
    diagonal : numpy.ndarray
        d (n,): what is left of the matrix's diagonal.
    error : Estimate
        ||A - (U diag(s) U^T + diag(d))||_F / ||A||_F, from random vectors.
    diagonal_stderr : numpy.ndarray
        (n,): of d, 0 where it is exact.
    products : int
        That it took.

    Examples
    --------
    >>> L = low_rank_plus_diagonal(np.diag([9.0, 1.0, 2.0]), 1)
    >>> L.diagonal.round(9) + 0, f"{np.exp(L.logdet(shift=1.0)):.6f}"
    (array([0., 1., 2.]), '60.000000')
    """

    vectors: torch.Tensor
    values: np.ndarray
    diagonal: np.ndarray
    error: Estimate
    diagonal_stderr: np.ndarray
    products: int

    def __str__(self) -> str:
        n, k = self.vectors.shape
        return f"{k} pairs and a diagonal for {n} x {n}, relative error {self.error}"

    def __matmul__(self, b: Any) -> Any:
        """The product with b (n,) or (n, c), in float64."""
        U, B = arrays.double(self.vectors), _block(b, self)
        out = U @ (self._s()[:, None] * (U.T @ B)) + self._d(0.0)[:, None] * B
        return arrays.like(out[:, 0] if b.ndim == 1 else out, b)

    def _s(self) -> torch.Tensor:
        return torch.from_numpy(self.values).to(arrays.float64_device(self.vectors.device))

    def _d(self, shift: float) -> torch.Tensor:
        return torch.from_numpy(self.diagonal + shift).to(arrays.float64_device(self.vectors.device))

    def _inner(self, shift: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(D + shift, M, I + L^T S L for M = L L^T); ValueError unless the whole is positive definite."""
        D, U = self._d(shift), arrays.double(self.vectors)
        if not float(D.min()) > 0:
            raise ValueError(
                f"the diagonal and shift={shift} have the entry {float(D.min()):.3g}, so that there is no inverse by Woodbury's "
                "identity; use a larger shift (a prior precision)."
            )
        M = U.T @ (U / D[:, None])
        L = torch.linalg.cholesky(M)
        inner = torch.eye(len(M), dtype=M.dtype, device=M.device) + L.T @ (self._s()[:, None] * L)
        if len(M) and not float(torch.linalg.eigvalsh(inner)[0]) > 0:
            raise ValueError(f"the matrix and shift={shift} are not positive definite; use a larger shift.")
        return D, M, inner

    def logdet(self, shift: float = 0.0) -> float:
        """log det (U diag(s) U^T + diag(d) + shift I).

        Parameters
        ----------
        shift : float
            Added to the diagonal: the prior precision of a Laplace approximation.

        Returns
        -------
        float
            Of this form; how far the form is from the matrix is its `error`.

        Raises
        ------
        ValueError
            Unless the diagonal with the shift is positive, and the whole positive definite.

        Examples
        --------
        >>> L = low_rank_plus_diagonal(np.diag([7.0, 1.0, 1.0]), 1)
        >>> f"{L.logdet(shift=1.0) / np.log(2):.6f}"  # 8 * 2 * 2
        '5.000000'
        """
        D, _, inner = self._inner(shift)
        return float(D.log().sum() + torch.logdet(inner))

    def solve(self, b: Any, shift: float = 0.0) -> Any:
        """(U diag(s) U^T + diag(d) + shift I)^-1 b, by Woodbury's identity in O(n k).

        Parameters
        ----------
        b : array
            (n,) or (n, c).
        shift : float
            As for `logdet`.

        Returns
        -------
        array
            Like b, in float64.

        Raises
        ------
        ValueError
            As `logdet`.

        Examples
        --------
        >>> low_rank_plus_diagonal(np.diag([7.0, 1.0, 1.0]), 1).solve(np.ones(3), shift=1.0).round(9)
        array([0.125, 0.5  , 0.5  ])
        """
        (D, M, _), U, B = self._inner(shift), arrays.double(self.vectors), _block(b, self)
        S, right = self._s()[:, None], B / D[:, None]
        capacitance = torch.eye(len(M), dtype=M.dtype, device=M.device) + M * S.T
        out = right - (U / D[:, None]) @ (S * torch.linalg.solve(capacitance, U.T @ right))
        return arrays.like(out[:, 0] if b.ndim == 1 else out, b)


def _block(b: Any, form: LowRankPlusDiagonal) -> torch.Tensor:
    """b as columns in float64, where the vectors lie."""
    B, n = arrays.to_torch(b), len(form.vectors)
    if B.ndim not in (1, 2) or len(B) != n:
        raise ValueError(f"the array has shape {tuple(B.shape)}; use ({n},) or ({n}, c).")
    return arrays.double(B).to(arrays.float64_device(form.vectors.device)).reshape(n, -1)


def low_rank_plus_diagonal(
    A: Any, k: int, *, method: str = "exact", tol: float = 1e-8, probes: int = 10, seed: int = 0
) -> LowRankPlusDiagonal:
    """The k eigenpairs of symmetric A (n, n) that are largest in magnitude, and the diagonal of what they leave.

    A ~ U diag(s) U^T + diag(d), d = diag(A) - diag(U diag(s) U^T): the diagonal is A's own.

    Cost: that of `top` and of `diagonal`, and `probes` products for the error. Memory: k vectors and what `top` takes.

    Parameters
    ----------
    A : operator or matrix
        (n, n) symmetric; whatever `as_operator` takes.
    k : int
        How many pairs, 1 to n.
    method : str
        Of `diagonal`: "exact" (a sweep for GaussNewton, Fisher and EmpiricalFisher, else n products), or an estimate.
    tol : float
        Of `top`.
    probes : int
        Random vectors behind the error, 2 at least, and behind a diagonal that is estimated.
    seed : int
        Of all random vectors.

    Returns
    -------
    LowRankPlusDiagonal
        With `logdet`, `solve` and products.

    Raises
    ------
    ValueError
        As `top` and `diagonal`, and for fewer than two probes.

    Examples
    --------
    >>> L = low_rank_plus_diagonal(np.diag([9.0, 1.0, 2.0]), 1)
    >>> L.values.round(9), round(float(L.error), 9)
    (array([9.]), 0.0)
    """
    A = as_operator(A)
    hold_whole(A, "low_rank_plus_diagonal")
    integer(probes, "probes", "number of random vectors that an error can be estimated from", 2)
    before = A.products
    whole = diagonal(A, method=method, probes=max(probes, 4), seed=seed)
    pairs = top(A, k, which="magnitude", tol=tol, seed=seed)
    U, s = arrays.to_torch(pairs.vectors), np.asarray(pairs.values, np.float64)
    kept = arrays.double(U).square().cpu().numpy() @ s
    form = LowRankPlusDiagonal(U, s, np.asarray(whole.value) - kept, Estimate(0.0, 0.0), np.asarray(whole.stderr), 0)
    Z = torch.stack([A.probe(seed + 1, i) for i in range(probes)], 1)
    W = A @ Z
    off, all_ = (
        t.square().sum(0).cpu().numpy() for t in (arrays.double(W) - form @ arrays.double(Z), arrays.double(W))
    )
    return replace(form, error=_ratio(off, all_), products=A.products - before)


def _ratio(off: np.ndarray, whole: np.ndarray) -> Estimate:
    """The root of the ratio of two means over the same probes, with its error by the delta method."""
    m, mean = len(off), whole.mean()
    if not mean > 0:
        return Estimate(0.0, 0.0, probes=m, products=m)
    square = off.mean() / mean
    spread, root = np.std(off - square * whole, ddof=1) / np.sqrt(m) / mean * widening(m), float(np.sqrt(square))
    return Estimate(root, float(spread / (2 * root)) if root > 0 else 0.0, probes=m, products=m)
