"""How much of a square matrix lies outside of its diagonal blocks, in the Frobenius norm.

D is the block diagonal of A, T = diag(t) a sign t_b for each block. T A T is A with the blocks (b, c) negated where t_b and t_c
differ: A - T A T is twice these, and 0 elsewhere. If any two blocks differ with the same probability p,

    E ||A - T A T||_F^2 = 4 p ||A - D||_F^2,

and a vector g of random signs has E ||M g||^2 = ||M||_F^2. Two products, with g and with T g, however many blocks there are, give

    outside = ||A g - T A T g||^2 / 4p,    whole = (||A g||^2 + ||A T g||^2) / 2

without bias; `outside` is 0 for every g where A = D. Half of the blocks have t_b = -1: p = 2 k (B - k) / (B (B - 1)) with
k = B // 2 of B, larger than the 1/2 of independent signs, which waste the draws in which most are alike.

Source: Hutchinson (1990) for the norm; signs that cancel what lies off a pattern: Bekas, Kokiopoulou, Saad (2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from spectral import longvectors
from spectral.estimators.budget import hold_whole, progress_bar
from spectral.estimators.leave_one_out import block_of, draw, multiply, widening
from spectral.operators.foreign import as_operator
from spectral.probes import check_seed
from spectral.quadrature.error import jackknife_variance
from spectral.results import Estimate
from spectral.schema import integer, several


def block_gap(
    A: Any, sizes: Sequence[int], *, pairs: int = 10, seed: int = 0, progress: bool | None = None
) -> Estimate:
    """The block gap ||A - D||_F / ||A||_F of a square matrix, D its diagonal blocks: 0 for A = D, at most 1.

    1 - gap^2 is the part of the squared Frobenius norm that the blocks hold.

    Cost: 2 `pairs` products, however many blocks there are. Memory: four vectors.

    Parameters
    ----------
    A : operator or matrix
        (n, n); whatever `as_operator` takes.
    sizes : sequence of int
        Of the diagonal blocks, in their order; their sum is n. Of a network's matrix `[B.shape[0] for B in blocks(A).values()]`.
    pairs : int
        Pairs of products, 2 or more.
    seed : int
        0 to 2^64 - 1. Pair i depends on (seed, i) alone.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.

    Returns
    -------
    Estimate
        The root of a ratio of means over the pairs; `stderr` is its jackknife over them, widened to Student's interval. Exact, 0,
        for a single block.

    Raises
    ------
    ValueError
        For an operator that is not square, sizes that are not those of its blocks, one pair, a product that holds NaN, and a
        matrix all of whose products are 0, which has no gap.

    Notes
    -----
    With signs t of the blocks and T = diag(t), A - T A T is twice the blocks of unlike signs: ||(A - T A T) g||^2 and
    ||A g||^2 + ||A T g||^2 of random signs g are unbiased for both squared norms (`spectral.estimators.block_gap`). Where one
    eigenvalue has most of the norm both scatter like chi-squares of one degree of freedom; their ratio does so less.

    References
    ----------
    - Bekas, Kokiopoulou, Saad (2007), An estimator for the diagonal of a matrix, Appl. Numer. Math. 57.
    - Hutchinson (1990), A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines, Commun.
      Stat. 19.

    Examples
    --------
    >>> float(block_gap(np.diag([1.0, 2.0, 3.0]), [1, 2]))
    0.0
    >>> float(block_gap(np.array([[0.0, 5.0], [5.0, 0.0]]), [1, 1]))
    1.0
    """
    A, pairs, seed = as_operator(A), integer(pairs, "pairs", "number of pairs", least=2), check_seed(seed)
    hold_whole(A, "block_gap")
    several(sizes, "sizes", "whole numbers, one for each block")
    sizes = [integer(size, "sizes", "size of a block") for size in sizes]
    if A.shape[0] != A.shape[1] or sum(sizes) != A.shape[1]:
        raise ValueError(
            f"{len(sizes)} blocks of {sum(sizes)} rows are not those of {A!r}; give sizes that sum to its dimension."
        )
    if len(sizes) == 1:
        return Estimate(0.0, 0.0, 0.0, 0.0, method="exact")
    A.expect(2 * pairs)
    before = A.products
    outside, whole = np.empty(pairs), np.empty(pairs)
    with progress_bar(2 * pairs, "block gap", progress) as bar:
        for i in range(pairs):
            outside[i], whole[i] = _pair(A, sizes, seed, i)
            bar.update(2)
    if not whole.any():
        raise ValueError(f"all products of {A!r} are 0, and 0 has no block gap.")
    rest = (outside.sum() - outside) / (whole.sum() - whole)
    stderr = float(np.sqrt(jackknife_variance(np.sqrt(rest)))) * widening(pairs)
    value = float(np.sqrt(outside.sum() / whole.sum()))
    return Estimate(value, stderr, probes=pairs, products=A.products - before, method="signs")


def _pair(A: Any, sizes: Sequence[int], seed: int, i: int) -> tuple[float, float]:
    """(outside, whole) of one vector and one set of signs."""
    blocks = len(sizes)
    minus = blocks // 2
    apart = 2 * minus * (blocks - minus) / (blocks * (blocks - 1))
    # a counter that no probe of this key has
    order = np.random.Generator(np.random.Philox(key=[seed, i], counter=[0, 0, 0, 4])).permutation(blocks)
    signs = torch.from_numpy(np.where(order < minus, -1.0, 1.0)).to(A.device, A.dtype)

    def flip(x: torch.Tensor) -> torch.Tensor:
        for part, sign in zip(x.split(list(sizes)), signs, strict=True):
            part.mul_(sign)
        return x

    g = draw(A, seed, range(i, i + 1), "rademacher")
    if block_of(A) > 1:  # one sweep for both
        x, y = multiply(A, torch.cat([g, flip(g[:, 0].clone())[:, None]], 1)).T.contiguous()
    else:
        x = multiply(A, g)[:, 0]
        y = multiply(A, flip(g[:, 0])[:, None])[:, 0]
    whole = (longvectors.dot(x, x) + longvectors.dot(y, y)) / 2
    return longvectors.distance(x, flip(y)) ** 2 / (4 * apart), whole
