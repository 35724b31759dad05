"""What WeightWatcher 0.7.7 tells of a weight matrix, by its definitions and under its names; docs/layers.md has them one by one.

Symbols: W (N, M) with N >= M, k of them where a layer is a convolution; λ the squares of their singular values, pooled, which are
not divided by N. The logarithms of columns are decimal.

Source: Martin, Peng, Mahoney (2021), Predicting trends in the quality of state-of-the-art neural networks without access to
training or testing data, Nature Communications 12; the code of version 0.7.7.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from spectral import arrays
from spectral.analysis.marchenko_pastur import marchenko_pastur
from spectral.results import Array, IntArray, nan
from spectral.spectrum import Spectrum

THRESHOLD = 1e-5  # eigenvalues above it are fitted
SMALL = 20  # with fewer, a power law is fitted without bias, and to SMALL_TAIL eigenvalues at least
SMALL_TAIL = 8
OVER_TRAINED, UNDER_TRAINED = 2.0, 6.0
EPSILON = 1e-10  # added to the parts of the entropy
WEAK = 1e-6  # an eigenvalue below is a weak loss of rank
EQUAL = 1e-12  # eigenvalues that differ by less, relative to the largest, are equal up to rounding
# Of λmin/λmax: eigh of a Gram matrix in float64 leaves errors of a few eps·λmax, 1e-5 of the smallest here
RESOLVED = 1e-10
ROWS = 1 << 19  # entries of W that are float64 at a time
BLOCK = 1 << 20  # distances at a time
FEW = 1 << 16  # distances that are cheaper to look at than to leave out
POINTS = 16  # of a tail, at which its distance is first looked at
SUMMARY = ("log_norm", "alpha", "alpha_weighted", "log_alpha_norm", "log_spectral_norm", "stable_rank", "mp_softrank")


class NotFinite(ValueError):
    """A weight that is no number, or whose square is none."""


def squared_singular_values(W: Tensor) -> tuple[Array, str]:
    """(the min(shape) squared singular values of a matrix, ascending; how they were found).

    "gram": as eigenvalues of the smaller Gram matrix in float64, its lower triangle summed over blocks of rows, so that W itself
    is never copied whole. They are off by a few eps·λmax. "svd": by singular values, where the smallest is below 1e-10 λmax so
    that this matters.

    >>> squared_singular_values(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
    (array([4., 9.]), 'gram')
    """
    W = W.detach() if W.shape[0] >= W.shape[1] else W.detach().T
    M = W.shape[1]
    G = arrays.double_zeros((M, M), W.device)
    for rows in W.split(max(ROWS // M, 1)):
        _add_gram(G, arrays.double(rows))
    if not bool(torch.isfinite(G.diagonal()).all()):
        raise NotFinite("it holds NaN, infinity, or a number whose square is none in float64")
    rows = W[:0]  # the last block is free again
    values = _eigenvalues(G)
    if values[0] >= RESOLVED * values[-1] > 0:
        return values, "gram"
    del G, rows
    return torch.linalg.svdvals(arrays.double(W)).flip(0).square().cpu().numpy(), "svd"


def _add_gram(G: Tensor, rows: Tensor) -> None:
    """The lower triangle of G += rows^T rows; BLAS has it in half of a product's operations, and torch has no name for that."""
    if G.device.type != "cpu":
        G.addmm_(rows.T, rows)
        return
    turned = rows.stride(0) == 1 and len(rows) > 1  # columns in one piece
    a = rows.numpy() if turned else rows.T.numpy()
    scipy.linalg.blas.dsyrk(1.0, a, beta=1.0, c=G.T.numpy(), trans=turned, overwrite_c=True)


def _eigenvalues(G: Tensor) -> Array:
    """Ascending, of the lower triangle; on a processor in the memory of G, of which torch would make another copy."""
    if G.device.type != "cpu":
        return torch.linalg.eigvalsh(G).cpu().numpy()
    driver = "evd" if len(G) > 1 else "ev"  # scipy 1.13 gives the former too little memory for a single entry
    options: dict[str, Any] = {"overwrite_a": True, "check_finite": False, "driver": driver}
    return np.asarray(scipy.linalg.eigvalsh(G.T.numpy(), lower=False, **options))


# The power law -----------------------------------------------------------------------------------------------------------
class Tail(NamedTuple):
    """The power law of least distance D; `spikes` eigenvalues are at least xmin."""

    alpha: float
    xmin: float
    xmax: float
    D: float
    sigma: float
    spikes: int


def least_distance(values: Array) -> Tail | None:
    """alpha = 1 + n / Σ ln(λ/xmin) over the n eigenvalues from xmin on, each eigenvalue above 1e-5 a candidate xmin: the one of
    the least D, the largest difference of the law to the share of the tail *below* each eigenvalue (one side of the CDF's step).

    sigma = (alpha − 1)/√n. Of fewer than 20 eigenvalues, n − 1 instead of n, and tails of 8 or more. None where no tail has an
    exponent: fewer than two eigenvalues, or all equal up to rounding.

    Cost: O(n) candidates at 16 points each, and all points of those few that could still be the least.
    """
    x = np.sort(values[values > THRESHOLD])
    N = len(x)
    if N < 2 or x[-1] - x[0] <= EQUAL * x[-1]:
        return None
    log_x = np.log(x / x[-1])  # sums from the largest on lose no digits
    n = np.arange(N, 1, -1)
    total = np.cumsum(log_x[::-1])[::-1][:-1] - n * log_x[:-1]
    a = np.full(N - 1, 1e300)  # equal eigenvalues at the end: no exponent, and a distance near 1
    np.divide(n - (N < SMALL), total, out=a, where=total > 0)
    first = np.flatnonzero(n >= SMALL_TAIL) if N < SMALL else np.arange(N - 1)
    i, D = _least(log_x, a, first if len(first) else np.arange(1))
    spikes = int(np.count_nonzero(values >= x[i]))
    return Tail(1 + float(a[i]), float(x[i]), float(x[-1]), D, float(a[i]) / float(np.sqrt(n[i])), spikes)


def _least(log_x: Array, a: Array, first: IntArray) -> tuple[int, float]:
    """(the first of `first`, ascending, with the least D; its D).

    D at some of a tail's points is at most D: who exceeds there what another reaches at all points is out.
    """
    points = POINTS
    while True:
        if len(first) * len(log_x) <= FEW:
            points = len(log_x)
        low = _distances(log_x, a, first, points)
        best = int(np.argmin(low))
        if points >= len(log_x) - first[0]:
            return int(first[best]), float(low[best])
        reached = _distances(log_x, a, first[best : best + 1], len(log_x))
        first, points = first[low <= reached], 4 * points


def _distances(log_x: Array, a: Array, first: IntArray, points: int) -> Array:
    """The largest |law − CDF| from each of `first` on, at so many evenly numbered points of the tail, or at all."""
    D, grid, rows = np.empty(len(first)), np.linspace(0, 1, points), max(BLOCK // points, 1)
    for start in range(0, len(first), rows):
        i = first[start : start + rows, None]
        n = len(log_x) - i
        j = np.rint(grid * (n - 1)).astype(np.int64)
        law = 1 - np.exp(-a[i] * (log_x[i + j] - log_x[i]))
        D[start : start + rows] = np.abs(law - j / n).max(axis=1)
    return D


# Columns -----------------------------------------------------------------------------------------------------------------
def columns(parts: list[Array], N: int) -> tuple[dict[str, Any], Array]:
    """(WeightWatcher's columns of the matrices whose squared singular values are given, those values pooled, ascending)."""
    values = np.sort(np.concatenate(parts))
    ranks = [_rank(part, N) for part in parts]
    largest, norm = float(values[-1]), float(values.sum())
    row: dict[str, Any] = {
        "has_esd": True,
        "num_evals": len(values),
        "sv_max": float(np.sqrt(largest)),
        "sv_min": float(np.sqrt(max(values[0], 0.0))),
        "rank_loss": len(values) - sum(ranks),
        "weak_rank_loss": int(np.count_nonzero(values < WEAK)),
        "lambda_max": largest,
    }
    tail = least_distance(values)
    alpha, xmin, xmax, D, sigma, spikes = tail or (nan, nan, nan, nan, nan, 0)
    warning = "over-trained" if alpha < OVER_TRAINED else "under-trained" if alpha > UNDER_TRAINED else ""
    row |= {"alpha": alpha, "xmin": xmin, "xmax": xmax, "D": D, "sigma": sigma, "num_pl_spikes": spikes}
    row |= {"status": "success" if tail else "failed", "warning": warning}
    with np.errstate(divide="ignore"):
        log_norm, log_largest = float(np.log10(norm)), float(np.log10(largest))
        powers = alpha * (np.log10(values) - log_largest) if tail else np.full(1, nan)
    rank = _rank(values, N)
    return row | {
        "norm": norm,
        "log_norm": log_norm,
        "spectral_norm": largest,
        "log_spectral_norm": log_largest,
        "alpha_weighted": alpha * log_largest,
        "log_alpha_norm": alpha * log_largest + float(np.log10(np.sum(10.0**powers))),
        "stable_rank": norm / largest if largest > 0 else nan,
        "matrix_rank": rank,
        "entropy": _entropy(values / norm, rank) if rank > 1 else nan,
    }, values  # fmt: skip


def _rank(values: Array, N: int) -> int:
    """Singular values above N·eps of the largest."""
    sizes = np.sqrt(np.maximum(values, 0.0))
    return int(np.count_nonzero(sizes > sizes[-1] * N * np.finfo(np.float64).eps))


def _entropy(p: Array, rank: int) -> float:
    """−Σ p ln p / ln rank, with WeightWatcher's 1e-10 in each."""
    p = p + EPSILON
    return float(-np.sum(p * np.log(p)) / np.log(rank + EPSILON))


def bulk(values: Array, N: int, M: int) -> dict[str, Any]:
    """The columns of mp_fit=True from this package's own fit and verdict, γ = M/N given; nan where it is refused."""
    spectrum = Spectrum.from_eigenvalues(values)
    fit = marchenko_pastur(spectrum, ratio=M / N)
    scale = float(np.sqrt(len(values) / values.sum())) if values.sum() > 0 else nan
    row = {
        "num_spikes": fit.spikes,
        "sigma_mp": fit.sigma * scale,
        "mp_softrank": fit.upper / float(values[-1]) if values[-1] > 0 else nan,
        "bulk_max": fit.upper,
        "bulk_min": fit.lower,
    }
    row = row if fit.accepted else dict.fromkeys(row, nan)
    return row | {"W_scale": scale, "mp_accepted": fit.accepted, "mp_reason": fit.reason}


def shuffled(values: Array, random: Array, N: int, M: int) -> dict[str, Any]:
    """The columns of randomize=True: `random` are the eigenvalues of the same matrices with their entries shuffled."""
    one, other = Spectrum.from_eigenvalues(values), Spectrum.from_eigenvalues(random)
    largest, most = float(values[-1]), float(random[-1])
    return {
        "max_rand_eval": most,
        "rand_distance": float(one.distance(other)) / float(values.mean()) if largest > 0 else nan,
        "ww_softrank": most / largest if largest > 0 else nan,
        "ww_maxdist": largest - most,
        "num_traps": bulk(random, N, M)["num_spikes"],
    }


def unit_determinant(values: Array, spikes: int) -> dict[str, Any]:
    """The columns of detX=True: how many of the largest eigenvalues, scaled to mean 1, multiply to 1 just before they fall below.

    >>> unit_determinant(np.array([0.1, 0.2, 0.7, 3.0]), 2)["detX_num"]  # 3.0 · 0.7 · 0.2 < 1 <= 3.0 · 0.7
    3
    """
    n, idx, number, unrescaled = len(values), 0, 0, nan
    if values[-1] > values[0]:  # of equal ones as many as there are, or none, would do
        scaled = values * (n / values.sum())
        with np.errstate(divide="ignore"):
            below = np.flatnonzero(np.cumsum(np.log(scaled[:0:-1])) < 0)
        idx = n - 1 - int(below[0]) if len(below) else 1
        number, unrescaled = n - idx if len(below) else n, float(scaled[idx])
    return {
        "detX_num": number, "num_ERG_spikes": number, "ERG_gap": number - spikes,
        "detX_val": float(values[idx]), "detX_val_unrescaled": unrescaled,
    }  # fmt: skip
