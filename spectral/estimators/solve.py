"""Linear systems with their true residuals, and the inverse as an operator.

Every right side has a recurrence of its own (`spectral.krylov.linear`), and one that has converged is done; what they ask for is
multiplied together, so that ten right sides are one sweep over the data a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spectral import arrays, cards, distributed, longvectors, persist
from spectral.checksum import checksum_of
from spectral.estimators.budget import Budget, Spent, environment, is_symmetric, progress_bar
from spectral.krylov import linear
from spectral.krylov.symmetry import hold_first
from spectral.operators.foreign import as_operator
from spectral.operators.linear_map import ROUNDING
from spectral.operators.operator import Derived, I, Operator
from spectral.results import Estimate, bounded
from spectral.schema import FRACTION, REAL, choice, number

METHODS = ("auto", "cg", "minres", "lsmr")
MOST = 50, 1000  # times the dimension, and beside: steps after which a recurrence has stalled
TOL = {torch.float64: 1e-10}  # of an inverse
COARSE = 1e-5  # the same in other dtypes


@dataclass(frozen=True, eq=False)
class Solution(cards.Sentence):
    """x of (A + shift I) x = b for each of c right sides, all measured; of a rectangular A the least squares solution.

    Attributes
    ----------
    x : array
        (n,) or (n, c), of the kind of b.
    residuals : numpy.ndarray
        (c,), ||b - (A + shift I) x||, made anew by a product with x. Of least squares that of the normal equations,
        ||A^T (b - A x) - shift x||.
    iterations : numpy.ndarray
        (c,), steps of the recurrence.
    converged : numpy.ndarray
        (c,), whether the residual is at most `threshold`.
    threshold : numpy.ndarray
        (c,), tol ||b||; of least squares tol ||A^T b||.
    errors : numpy.ndarray
        (c,), what x is off by at most in the Euclidean norm, where the matrix says so: residual / m for one whose eigenvalues are
        known to be at least m > 0, such as a semi-definite A with shift m. Else nan.
    products : int
        That it took, transposed ones too.
    epochs : float
        Sweeps over the data that it took.
    meta : dict
        Plain JSON: `method` and why, `stops` (why each ended: "tolerance", "budget", "rounding", "singular" where b is not in the
        range of A, "indefinite", "iterations"), `norm` (of the matrix, as seen), `seconds`, what the operator was.

    Examples
    --------
    >>> s = spectral.solve(np.diag([1.0, 4.0]), np.array([1.0, 2.0]))
    >>> s.x.round(9), bool(s.converged.all())
    (array([1. , 0.5]), True)
    """

    x: Any
    residuals: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    threshold: np.ndarray
    errors: np.ndarray
    products: int
    epochs: float
    meta: dict[str, Any]

    def __str__(self) -> str:
        worst = int(np.argmax(self.residuals / np.maximum(self.threshold, longvectors.TINY)))
        error = f", x is off by at most {np.max(self.errors):.2g}" if np.isfinite(self.errors).all() else ""
        return (
            f"{len(self.residuals)} solution{'s' if len(self.residuals) > 1 else ''} by {self.meta['method']}: "
            f"{int(self.converged.sum())} converged, the worst to a residual of {self.residuals[worst]:.2g} "
            f"(asked for: {self.threshold[worst]:.2g}){error}; {self.products} products"
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What stands in a file of results, on the CPU.

        Returns
        -------
        dict of str to numpy.ndarray
            `x` (n, c), `residuals`, `iterations`, `converged` and `errors` (c,).

        Examples
        --------
        >>> spectral.solve(np.eye(2), np.ones(2)).to_arrays()["x"].shape
        (2, 1)
        """
        x = arrays.to_torch(self.x).cpu().numpy().reshape(-1, len(self.residuals))
        return {"x": x, **{k: getattr(self, k) for k in ("residuals", "iterations", "converged", "errors")}}

    def estimates(self) -> dict[str, Estimate]:
        """The length of each x, with what it is off by.

        Returns
        -------
        dict of str to Estimate
            norm_1, norm_2, ...; their errors are nan where nothing is known.

        Examples
        --------
        >>> float(spectral.solve(np.eye(2), np.array([3.0, 4.0])).estimates()["norm_1"])
        5.0
        """
        X = arrays.to_torch(self.x)
        return bounded("norm", longvectors.norms(X[None] if X.ndim == 1 else X.T), self.errors, self.products)


def solve(
    A: Any,
    b: Any,
    *,
    shift: float = 0.0,
    tol: float = 1e-6,
    method: str = "auto",
    budget: Any = None,
    progress: bool | None = None,
) -> Solution:
    """(A + shift I) x = b for symmetric A (n, n), or the least squares solution for a rectangular one, with true residuals.

    Least squares: min ||A x - b||^2 + shift ||x||^2, the solution of (A^T A + shift I) x = A^T b.

    Cost: a product for each right side and step, of least squares one of A and one of A^T, and one (two) at the end for the
    residual. About sqrt(kappa) / 2 ln(2 / tol) steps for condition number kappa of A + shift I; fewer where the eigenvalues
    cluster. Memory: four ("cg"), seven ("minres") or six ("lsmr") vectors for each right side.

    Parameters
    ----------
    A : operator or matrix
        (m, n); whatever `as_operator` takes.
    b : array
        (m,) or (m, c) for c right sides, numpy, torch or cupy, in A's dtype.
    shift : float
        Added to every eigenvalue; of a rectangular A the damping of its normal equations, which must be >= 0.
    tol : float
        Converged where the true residual is at most tol ||b||; 0 < tol < 1. Of least squares, that of the normal equations
        relative to ||A^T b||.
    method : str
        "auto": "cg" where A + shift I is known to be semi-definite, else "minres" for symmetric A, else "lsmr".
    budget : int or str, optional
        As in `slq`. The products that measure residuals are kept back.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.

    Returns
    -------
    Solution
        x, true residuals, and where A + shift I has a known smallest eigenvalue a bound of the error of x.

    Raises
    ------
    ValueError
        For b that does not fit or is not finite, a tol or shift that is none, a method that does not fit A, and a product that is
        not finite.
    TypeError
        For b in another dtype.

    Notes
    -----
    A recurrence knows its residual by its own arithmetic, and rounding parts the two. The residual is therefore made anew, and
    what is left of b is solved for again, until it is small enough or no longer falls ("rounding" in `meta["stops"]`). A system
    without a solution ends with "singular": minres then has the x of least residual. Where eigenvalues of A lie below sqrt(eps)
    ||A||, minres loses their part of x to rounding, most of it where they are many, and says "rounding".

    References
    ----------
    - Hestenes, Stiefel (1952), Methods of conjugate gradients for solving linear systems, J. Res. Nat. Bur. Standards 49.
    - Paige, Saunders (1975), Solution of sparse indefinite systems of linear equations, SIAM J. Numer. Anal. 12.
    - Fong, Saunders (2011), LSMR: an iterative algorithm for sparse least-squares problems, SIAM J. Sci. Comput. 33.

    Examples
    --------
    >>> A = np.diag([-1.0, 1.0, 2.0])
    >>> solve(A, np.ones(3), shift=2.0).x.round(9)
    array([1.        , 0.33333333, 0.25      ])
    """
    A = as_operator(A)
    number(tol, "tol", "residual relative to the right side", FRACTION, "1e-6")
    op, damp, name, choice = _system(A, shift, method)
    B = finite_columns(op.T if name == "lsmr" else op, b, "b")
    begun, limit = Spent.of(op), Budget(budget, op)
    limit.announce(B.shape[1] * min(2 * op.shape[1], 1000))
    with progress_bar(None, "solve", progress) as bar:
        found = solved(op, B, float(tol), name, damp, limit, bar)
    spent, least = Spent.of(op).since(begun), damp**2 if name == "lsmr" else op.least
    residuals = np.array([one.residual for one in found])
    threshold = float(tol) * np.array([one.scale for one in found])
    X = torch.stack([one.x for one in found], 1)
    if not longvectors.finite(X):
        raise beyond(op, "x")
    return Solution(
        x=arrays.like(X[:, 0] if np.ndim(b) == 1 else X, b),
        residuals=residuals,
        iterations=np.array([one.steps for one in found]),
        converged=residuals <= threshold,
        threshold=threshold,
        errors=residuals / least if least > 0 else np.full(len(found), math.nan),
        products=spent.products,
        epochs=spent.epochs,
        meta={
            **environment(op),
            "method": name,
            "choice": choice,
            "shift": float(shift),
            "tol": float(tol),
            "stops": [one.stop for one in found],
            "norm": max(one.norm for one in found),
            "seconds": spent.seconds,
        },
    )


def finite_columns(A: Operator, array: Any, name: str) -> torch.Tensor:
    """What A may multiply as columns (n, c), c >= 1, all of it finite."""
    V = A.columns(array)
    if not V.shape[1]:
        raise ValueError(f"{name} has no columns; give at least one.")
    if not longvectors.finite(V):
        raise ValueError(f"{name} holds NaN or infinity; it must be finite.")
    if A.ranks > 1 and A.shards is None:
        marks = distributed.gather(lambda: checksum_of(V))
        for rank, mark in enumerate(marks):
            if mark != marks[0]:
                raise ValueError(
                    f"rank {rank} was given another {name} than rank 0; give every rank rank 0's (torch.distributed.broadcast)."
                )
    return V


def _system(A: Operator, shift: float, method: str) -> tuple[Operator, float, str, str]:
    """(the matrix, its damping, the method, why) of a system."""
    choice(method, "method", METHODS)
    number(shift, "shift", "shift, in units of the eigenvalues", REAL)
    if 0 in A.shape:
        raise ValueError(f"{A!r} is empty; it has no solution.")
    square = A.shape[0] == A.shape[1] and A.self_map
    symmetric = square and method != "lsmr" and is_symmetric(A)
    if not symmetric and method in ("cg", "minres"):
        raise ValueError(f"method={method!r} is for symmetric matrices, and {A!r} is not; use 'lsmr' or 'auto'.")
    if not square and shift < 0:
        raise ValueError(f"shift={shift:g} dampens the normal equations of {A!r}, which is not square; use shift >= 0.")
    op = A + float(shift) * I if square else A
    if method != "auto":
        return op, 0.0 if square else math.sqrt(shift), method, "asked for"
    if not symmetric:
        why = "the matrix is not symmetric" if square else "the matrix maps one space to another"
        return op, 0.0 if square else math.sqrt(shift), "lsmr", why
    if op.least >= 0:
        return op, 0.0, "cg", f"no eigenvalue is below {op.least:g}"
    return op, 0.0, "minres", "symmetric, and eigenvalues may be negative"


def solved(
    op: Operator, B: torch.Tensor, tol: float, method: str, damp: float, limit: Budget, bar: Any
) -> list[linear.Solved]:
    """What the recurrence of each column of B (m, c) ended with."""
    most = MOST[0] * max(op.shape) + MOST[1]
    if method == "lsmr":
        return together(op, [linear.lsmr(b.contiguous(), tol, most, damp) for b in B.T], limit, bar)
    each = linear.conjugate_gradients if method == "cg" else linear.minres
    return together(op, [linear.refined(each, b.contiguous(), tol, most, op.epsilon) for b in B.T], limit, bar)


def beyond(op: Operator, name: str) -> ValueError:
    """The error of a result whose entries its dtype does not hold."""
    limit = f"{torch.finfo(op.dtype).max:.2g}, the largest number of {op.dtype}, or its factors are"
    return ValueError(
        f"{name} is beyond {limit}; divide b by a number, and multiply {name} by it, or give both in float64."
    )


def together(op: Operator, runs: list[linear.Run], limit: Budget, bar: Any) -> list[linear.Solved]:
    """Answer what recurrences ask for, side by side, until each has ended; where the budget ends, all but their last products."""
    asked: dict[int, linear.Ask] = {}
    done: dict[int, linear.Solved] = {}

    def answer(i: int, product: torch.Tensor | None) -> None:
        asked.pop(i, None)
        try:
            asked[i] = runs[i].send(product)
        except StopIteration as end:
            done[i] = end.value
        except RuntimeError as problem:
            if "without overflow" not in str(problem):  # torch's, of a factor in float16
                raise
            raise beyond(op, "x") from problem

    for i in range(len(runs)):
        answer(i, None)  # the first one starts it
    first = True
    while asked:
        own = [i for i, one in asked.items() if not one.last]
        # of each two products at the end, at most, and that of this step
        if own and limit.exhausted(len(own) + 2 * len(asked)):
            for i in own:
                answer(i, None)
            continue
        groups = [[i for i, one in asked.items() if one.transposed is way] for way in (False, True)]
        for transposed, some in enumerate(groups):
            if not some:
                continue
            vectors = [asked[i].vector for i in some]
            V = vectors[0][:, None] if len(some) == 1 else torch.stack(vectors, 1)
            W = op.multiply_transpose(V) if transposed else op.multiply(V)
            bar.update(len(some))
            if first:
                hold_first(op.T if transposed else op, V, W, "the first product of the solve")
            for i, w in zip(some, W.T if len(some) == 1 else W.T.contiguous(), strict=True):
                answer(i, w)
        first = False
    return [done[i] for i in range(len(runs))]


# The inverse ----------------------------------------------------------------------------------------------------------
class Inverse(Derived):
    """(A + shift I)^{-1} of symmetric A; each product is a solve, see `inverse`."""

    new_products = True

    def __init__(self, A: Operator, shift: float, tol: float) -> None:
        self.system, _, self.method, self.choice = _system(A, shift, "auto")
        if self.method == "lsmr":
            raise ValueError(
                f"{A!r} is not symmetric, and has no inverse here; use solve(A, b), or the inverse of A.gram('right')."
            )
        self.shift, self.tol, self.worst, self.off = float(shift), tol, 0.0, tol
        told, nonnegative = {"shift": self.shift, "tol": tol}, self.system.least >= 0
        super().__init__((A,), A.shape, told, symmetric=True, nonnegative=nonnegative)

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        with progress_bar(None, "", False) as hidden:
            found = solved(self.system, V, self.tol, self.method, 0.0, Budget(None, self.system), hidden)
        for one, v in zip(found, V.T, strict=True):
            size = longvectors.norm(v)
            floor = ROUNDING * self.system.epsilon * (one.norm * longvectors.norm(one.x) + size)
            if not (one.residual <= self.tol * one.scale or (one.stop == "rounding" and one.residual <= floor)):
                raise RuntimeError(
                    f"a product of the inverse of {self.system!r} did not converge: its residual is {one.residual / size:.2g} "
                    f"of the vector after {one.steps} steps of {self.method} ({one.stop}) where {self.tol:.2g} was asked for; "
                    "give it a larger tol= or another shift=."
                )
            self.worst = max(self.worst, one.residual / size if size > 0 else 0.0)
        self.off = max(self.off, self.worst)
        return torch.stack([one.x for one in found], 1)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "method": self.method, "choice": self.choice, "residual": self.worst}

    def identity(self) -> str:
        return persist.fingerprint(["Inverse", self.shift, self.tol, self.parts[0].identity()])


def inverse(A: Any, shift: float = 0.0, *, tol: float | None = None) -> Operator:
    """(A + shift I)^{-1} of symmetric A (n, n) as an operator: each product is a solve.

    Cost: none to build (two products where nobody knows whether A is symmetric); a product is as many of A as `solve` takes.

    Parameters
    ----------
    A : operator or matrix
        (n, n) symmetric; whatever `as_operator` takes.
    shift : float
        Added to every eigenvalue. scipy's `eigsh(..., sigma=s, OPinv=...)` needs the inverse of A - s I: shift = -s.
    tol : float, optional
        Of the true residual relative to the vector, which bounds the error of a product relative to the norm of the inverse; by
        default 1e-10 in float64 and 1e-5 else, or what rounding leaves.

    Returns
    -------
    Operator
        Symmetric, and nonnegative where A + shift I is known to be. Its description says the largest residual so far, and
        `product_error` and `epsilon` are no smaller: what is made of its products knows that they are no better.

    Raises
    ------
    ValueError
        For an A that is not symmetric, or a tol or shift that is none.
    RuntimeError
        As a product is made, where the solve does not converge.

    Notes
    -----
    scipy's shift-invert mode asks for the eigenvalues nearest to s. For A that is indefinite about s the solves are MINRES, of
    which the number of steps grows with the condition number itself, not with its root.

    Examples
    --------
    >>> import scipy.sparse.linalg
    >>> A = spectral.as_operator(np.diag([1.0, 2.0, 3.0, 4.0]))
    >>> OPinv = inverse(A, shift=-2.9).to_scipy()
    >>> scipy.sparse.linalg.eigsh(A.to_scipy(), k=1, sigma=2.9, OPinv=OPinv, return_eigenvectors=False).round(9)
    array([3.])
    """
    A = as_operator(A)
    tol = TOL.get(A.dtype, COARSE) if tol is None else tol
    number(tol, "tol", "residual relative to the vector", FRACTION, "1e-10")
    return Inverse(A, shift, float(tol))
