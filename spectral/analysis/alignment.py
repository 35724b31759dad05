"""Do the labels live where the Jacobian is large? Their energy in its leading left singular directions.

Symbols: J (m, P) with rows ordered by sample, then output; K = J Jᵀ = U Λ Uᵀ the kernel (NTK), m = n·C; y (m,) the
labels, one-hot by sample, then class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from spectral import arrays
from spectral.estimators.assembled import gram_matrix
from spectral.estimators.leave_one_out import widening
from spectral.krylov.lanczos import lanczos
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Operator
from spectral.probes import probe
from spectral.quadrature.cdf import told_apart
from spectral.quadrature.gauss import gauss_rule, zero_level
from spectral.results import Array, IntArray, nan
from spectral.schema import SWITCH, choice, integer

EXACT_ROWS = 4000  # K in float64 is then 128 MB, and its eigenvectors take seconds
OWN_LABEL = 50  # directions in which the energy of the labels trained on is customarily quoted
NORM_PROBES = 8  # products for ‖K‖_F when K is not assembled


class Curve(NamedTuple):
    """energy[j]: that of the labels in the k[j] leading directions, whose last eigenvalue is eigenvalue[j]."""

    k: IntArray
    energy: Array
    eigenvalue: Array


@dataclass(frozen=True)
class Alignment:
    """How much of the labels' energy ||U_k^T y||^2 / ||y||^2 lies in the leading left singular directions, from 0 to 1.

    Attributes
    ----------
    curve : Curve
        `k`, `energy` and `eigenvalue`, arrays of one length: the energy in the k[j] leading directions.
    k : int
        Directions that `energy` is of.
    energy : float
        The energy at `k`.
    own_label : float
        The energy at 50 directions; at all, if there are fewer.
    kernel_target : float
        y^T K y / (||y||^2 ||K||_F).
    kernel_target_stderr : float
        Its standard error, 0 when K is assembled.
    centred : bool
        Whether means were taken from y.
    method : str
        "exact", or "lanczos", where k counts Ritz values of the Krylov space of y instead of eigenvectors.
    steps : int
        Lanczos steps, 0 when exact.
    products : int
        What it cost.
    epochs : float
        Sweeps over the data.

    Examples
    --------
    >>> fit = spectral.label_alignment(np.diag([3.0, 2.0, 1.0]), [3.0, 0.0, 4.0], centred=False)
    >>> fit.at(3)
    1.0
    """

    curve: Curve
    k: int
    energy: float
    own_label: float
    kernel_target: float
    kernel_target_stderr: float
    centred: bool
    method: str
    steps: int
    products: int
    epochs: float

    def at(self, k: int) -> float:
        """Energy in the k leading directions; beyond the end of the curve, its last value.

        Parameters
        ----------
        k : int
            At least 1.

        Returns
        -------
        float
            From 0 to 1.

        Raises
        ------
        ValueError
            For k < 1.

        Examples
        --------
        >>> fit = spectral.label_alignment(np.diag([3.0, 2.0, 1.0]), [3.0, 0.0, 4.0], centred=False)
        >>> round(fit.at(1), 9)
        0.36
        """
        integer(k, "k", "number of directions")
        return float(self.curve.energy[min(k, len(self.curve.energy)) - 1])


def label_vector(y: Any, rows: int, *, centred: bool = True) -> tuple[Array, int]:
    """Labels as a float64 vector (rows,) and the number of outputs C.

    Integers (n,) with rows = n·C become one-hot; an array (n, C) is flattened by sample; a vector (rows,) is taken as it is, C
    = 1.

    Parameters
    ----------
    y : array
        The labels.
    rows : int
        Of the Jacobian.
    centred : bool
        Take the mean over samples from each output.

    Returns
    -------
    (numpy.ndarray, int)
        The vector, and C.

    Raises
    ------
    ValueError
        Where y does not fit, is not finite, or vanishes.

    Examples
    --------
    >>> label_vector([0, 1], rows=4)
    (array([ 0.5, -0.5, -0.5,  0.5]), 2)
    """
    labels = np.asarray(y.detach().cpu() if isinstance(y, torch.Tensor) else y)
    if labels.ndim == 2 and labels.size == rows:
        table = labels.astype(np.float64)
    elif labels.shape == (rows,):
        table = labels.astype(np.float64)[:, None]
    elif labels.ndim == 1 and len(labels) and rows % len(labels) == 0 and np.issubdtype(labels.dtype, np.integer):
        C = rows // len(labels)
        if labels.min() < 0 or labels.max() >= C:
            raise ValueError(
                f"labels {labels.min()} to {labels.max()} with {C} outputs a sample; use integers from 0 to {C - 1}."
            )
        table = np.eye(C)[labels]
    else:
        raise ValueError(
            f"y has shape {labels.shape} and dtype {labels.dtype}, the Jacobian {rows} rows; use integer labels (n,) "
            f"with rows = n·C, an array (n, C), or a vector ({rows},)."
        )
    if not np.all(np.isfinite(table)):
        raise ValueError("y holds nan or infinity; give finite labels.")
    if centred:
        table = table - table.mean(axis=0)
    if not np.any(np.abs(table) > 1e-14 * max(1.0, float(np.abs(labels.astype(np.float64)).max()))):
        raise ValueError("nothing is left of y: all labels are alike or 0; use centred=False, or labels that differ.")
    return table.ravel(), table.shape[1]


def energies(values: Array, U: Array, y: Array, rounding: float) -> Array:
    """(m,) ||U_k^T y||^2 / ||y||^2 for k = 1, ..., m, of eigenvalues in descending order and their eigenvectors, columns of U.

    Eigenvectors of an eigenvalue are any basis of its space: they share the energy in it alike, which is what a random basis
    has in the mean, so that a k that cuts through them does not hang on rounding.

    Parameters
    ----------
    values : numpy.ndarray
        (m,).
    U : numpy.ndarray
        (m, m).
    y : numpy.ndarray
        (m,), the labels.
    rounding : float
        Eigenvalues that lie no further apart are one.

    Returns
    -------
    numpy.ndarray
        Ascending, up to 1.

    Examples
    --------
    >>> energies(np.array([2.0, 1.0, 1.0]), np.eye(3), np.array([0.0, 1.0, 0.0]), 1e-15)
    array([0. , 0.5, 1. ])
    """
    of = told_apart(values, rounding)
    return np.asarray(np.cumsum((np.bincount(of, (U.T @ y) ** 2) / np.bincount(of))[of]) / float(y @ y))


def gram_alignment(
    K: ArrayLike, y: Any, *, k: int | None = None, centred: bool = True, epsilon: float = 2.0**-52
) -> Alignment:
    """`label_alignment` from an assembled kernel K, so that several label vectors share one assembly.

    The curve has all m directions.

    Cost: O(m³) time, O(m²) memory, no products.

    Parameters
    ----------
    K : array
        (m, m), symmetric.
    y : array
        Labels, as for `label_alignment`.
    k : int, optional
        Directions for `energy`, by default C.
    centred : bool
        Take the mean over samples from each output.
    epsilon : float
        Relative rounding of K.

    Returns
    -------
    Alignment
        With method "exact".

    Raises
    ------
    ValueError
        As `label_alignment`.

    Examples
    --------
    >>> fit = gram_alignment(np.diag([9.0, 4.0, 1.0]), [3.0, 0.0, 4.0], k=1, centred=False)  # 9/25 in the first
    >>> round(fit.energy, 9), fit.curve.energy.round(9), round(fit.kernel_target * 98**0.5, 9)  # (81 + 16)/25
    (0.36, array([0.36, 0.36, 1.  ]), 3.88)
    """
    K = np.asarray(K, dtype=np.float64)
    y, outputs = label_vector(y, len(K), centred=centred)
    k = _directions(k, outputs, len(K))
    values, U = np.linalg.eigh(K)
    values, U = values[::-1], U[:, ::-1]
    square, frobenius = float(y @ y), float(np.linalg.norm(K))
    target = float(y @ K @ y) / (square * frobenius) if frobenius > 0 else nan
    energy = energies(values, U, y, zero_level(float(np.abs(values).max()), len(K), epsilon))
    return _alignment(energy, values, k, target, 0.0, centred, "exact", 0)


def _alignment(
    energy: Array, values: Array, k: int, target: float, error: float, centred: bool, method: str, steps: int
) -> Alignment:
    """The result of energies cumulated over descending values; what it cost is not in it yet."""
    energy = np.minimum(energy, 1.0)
    at_k, own = (float(energy[min(j, len(energy)) - 1]) for j in (k, OWN_LABEL))
    curve = Curve(np.arange(1, len(values) + 1), energy, values)
    return Alignment(curve, k, at_k, own, target, error, centred, method, steps, 0, 0.0)


def _directions(k: int | None, outputs: int, rows: int) -> int:
    return min(outputs, rows) if k is None else integer(k, "k", "number of directions", 1, rows)


def label_alignment(
    J: Any, y: Any, *, k: int | None = None, steps: int = 100, centred: bool = True, method: str = "auto", seed: int = 0
) -> Alignment:
    """Energy ||U_k^T y||^2 / ||y||^2 of the labels in the k leading left singular directions of J, for every k.

    Directions whose singular values rounding does not tell apart are in no order: they share the energy in them alike.

    "lanczos" runs on K = J J^T from y. Its curve cumulates y's spectral measure over Ritz values, largest first: k counts *Ritz
    values*, not eigenvectors. An eigenvector that y does not see gets none, so that its curve lies above that of all
    eigenvectors. As energy against eigenvalue it converges to the exact one. ||K||_F then comes from 8 Gaussian probes of
    `seed`.

    Cost: "exact" assembles K in one pass over the data, then O(m³) time for m rows. "lanczos" takes `steps` + 8 products with J
    J^T and `steps`·m numbers of memory.

    Parameters
    ----------
    J : operator or matrix
        Jacobian (n·C, P), rows by sample, then output; or anything `as_operator` takes.
    y : array
        Integer labels (n,), made one-hot; (n, C); or (n·C,).
    k : int, optional
        Directions for `energy`, by default C.
    steps : int
        Of "lanczos".
    centred : bool
        Take the mean over samples from each output, without which the energy measures the class frequencies.
    method : str
        "exact", "lanczos", or "auto": exact up to 4000 rows.
    seed : int
        Of the probes for ||K||_F.

    Returns
    -------
    Alignment
        The curve over k, and the kernel-target alignment.

    Raises
    ------
    ValueError
        Where y does not fit J or vanishes, and for another method.

    References
    ----------
    Oymak, Fabian, Li and Soltanolkotabi (2019), Generalization guarantees for neural networks via
    harnessing the low-rank structure of the Jacobian. Cristianini, Shawe-Taylor, Elisseeff and Kandola (2001), On kernel-target
    alignment.

    Examples
    --------
    >>> fit = label_alignment(np.diag([3.0, 2.0, 1.0]), [3.0, 0.0, 4.0], k=2, centred=False)
    >>> round(fit.energy, 9), round(fit.kernel_target, 6), fit.method
    (0.36, 0.391939, 'exact')
    """
    A = as_operator(J)
    choice(method, "method", ("auto", "exact", "lanczos"))
    choice(centred, "centred", SWITCH)
    vector, outputs = label_vector(y, A.shape[0], centred=centred)
    products, epochs = A.products, A.epochs
    k = _directions(k, outputs, A.shape[0])
    if method == "exact" or (method == "auto" and A.shape[0] <= EXACT_ROWS):
        K = gram_matrix(A, side="left").detach().cpu().numpy()
        fit = gram_alignment(K, vector, k=k, centred=False, epsilon=A.epsilon)
    else:
        fit = _krylov(A, vector, k, steps, seed)
    return replace(fit, centred=centred, products=A.products - products, epochs=A.epochs - epochs)


def _krylov(A: Operator, y: Array, k: int, steps: int, seed: int) -> Alignment:
    """From Lanczos on K = A Aᵀ started at y."""
    K = A.gram(side="left")
    start = torch.from_numpy(y).to(device=A.device, dtype=A.dtype)
    record = lanczos(K, start, min(steps, len(y)))
    nodes, weights, _ = gauss_rule(record)
    drawn = (probe(seed, i, K.shape[1], dtype=K.dtype, device=K.device) for i in range(NORM_PROBES))
    squares = np.array([float(torch.linalg.vector_norm(arrays.double(K @ g)) ** 2) for g in drawn])
    frobenius = float(np.sqrt(squares.mean()))  # E‖Kg‖² = ‖K‖_F²
    spread = squares.std(ddof=1) / np.sqrt(NORM_PROBES) * widening(NORM_PROBES)
    relative = float(spread / squares.mean()) if frobenius > 0 else nan
    target = float(record.alphas[0]) / frobenius if frobenius > 0 else nan
    energy, error = np.cumsum(weights[::-1]), target * relative / 2
    return _alignment(energy, nodes[::-1], k, target, error, False, "lanczos", record.steps)
