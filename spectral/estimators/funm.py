"""f(A) b by Lanczos, with the error of the vector and brackets of b^T f(A) b, and the spectral measure of one vector.

Both are one recurrence from the given vector. What bounds them is in `spectral.quadrature`: `applied.vector_error` and
`bounds.bracket` of f(A) b, the certified envelope of the measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from spectral import arrays, cards, longvectors
from spectral.estimators import stopping
from spectral.estimators.budget import Budget, Spent, environment, is_symmetric, progress_bar, settle, vectors_that_fit
from spectral.estimators.solve import beyond, finite_columns
from spectral.krylov.again import second_pass
from spectral.krylov.lanczos import MODES, Lanczos, LanczosRecord
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Derived, Operator
from spectral.quadrature import applied, bounds
from spectral.quadrature.function import Undefined
from spectral.results import Estimate, bounded
from spectral.schema import FRACTION, choice, integer, number, pair
from spectral.spectrum import Spectrum

Interval = tuple[float | None, float | None]
SEEN = np.array([1e-3, 0.1, 1.0, 2.0, 10.0, 1e3])  # where f is looked at, to tell it from another
MOST = 1000  # steps of f(A) b where nobody says


@dataclass(frozen=True, eq=False)
class Product(cards.Sentence):
    """f(A) b for each of c vectors b.

    Attributes
    ----------
    value : array
        (n,) or (n, c), of the kind of b.
    error : float or numpy.ndarray
        A number, or (c,): what `value` is off by at most in the Euclidean norm, see `certified`.
    lower, upper : float or numpy.ndarray
        A number, or (c,): certified bounds of b^T f(A) b; nan where the signs of derivatives, or what is known of the ends of the
        spectrum, give none.
    certified : bool
        Whether `error` is a bound (signs of derivatives and the end of the spectrum that matters are known), or leaves to the
        Ritz values where the spectrum ends.
    steps : numpy.ndarray
        (c,), of Lanczos.
    converged : numpy.ndarray
        (c,), whether the error is at most tol ||value||.
    products : int
        That it took.
    epochs : float
        Sweeps over the data that it took.
    meta : dict
        Plain JSON: what the operator was, `stops`, `interval`, `seconds`, how the basis was kept.

    Examples
    --------
    >>> p = spectral.funm(np.diag([1.0, 4.0]), "sqrt", np.array([1.0, 1.0]))
    >>> p.value.round(9), p.steps
    (array([1., 2.]), array([2]))
    """

    value: Any
    error: float | np.ndarray
    lower: float | np.ndarray
    upper: float | np.ndarray
    certified: bool
    steps: np.ndarray
    converged: np.ndarray
    products: int
    epochs: float
    meta: dict[str, Any]

    def __str__(self) -> str:
        error, kind = np.atleast_1d(self.error), "at most" if self.certified else "about"
        count = f"{len(error)} vectors" if len(error) > 1 else "1 vector"
        return (
            f"f(A) b of {count}, off by {kind} {error.max():.2g}: {int(self.converged.sum())} of {len(error)} as close as was "
            f"asked for; {self.products} products"
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What stands in a file of results, on the CPU.

        Returns
        -------
        dict of str to numpy.ndarray
            `value` (n, c), `error`, `lower`, `upper`, `steps` and `converged` (c,).

        Examples
        --------
        >>> spectral.funm(np.eye(2), "exp", np.ones(2)).to_arrays()["value"].shape
        (2, 1)
        """
        value = arrays.to_torch(self.value).cpu().numpy().reshape(-1, len(self.steps))
        names = ("error", "lower", "upper", "steps", "converged")
        return {"value": value, **{name: np.atleast_1d(getattr(self, name)) for name in names}}

    def estimates(self) -> dict[str, Estimate]:
        """The length of each f(A) b, with what it is off by.

        Returns
        -------
        dict of str to Estimate
            norm_1, norm_2, ...

        Examples
        --------
        >>> float(spectral.funm(np.eye(2), "inverse", np.array([3.0, 4.0])).estimates()["norm_1"])
        5.0
        """
        V = arrays.to_torch(self.value)
        sizes = longvectors.norms(V[None] if V.ndim == 1 else V.T)
        return bounded("norm", sizes, np.atleast_1d(self.error), self.products, self.certified)


@overload
def funm(A: Any, f: bounds.Given, b: None = None, *, tol: float = ..., interval: Interval | None = ...) -> Operator: ...


@overload
def funm(
    A: Any, f: bounds.Given, b: Any, *, tol: float = ..., interval: Interval | None = ..., steps: int | None = ...,
    reorthogonalize: bool | str = ..., budget: Any = ..., progress: bool | None = ...,
) -> Product: ...  # fmt: skip


def funm(
    A: Any,
    f: bounds.Given,
    b: Any = None,
    *,
    tol: float = 1e-6,
    interval: Interval | None = None,
    steps: int | None = None,
    reorthogonalize: bool | str = "auto",
    budget: Any = None,
    progress: bool | None = None,
) -> Product | Operator:
    """f(A) b of symmetric A (n, n) by Lanczos: ||b|| V f(T) e_1, with a bound of its error and brackets of b^T f(A) b.

    Cost: a product a step for each vector, twice without a basis. Memory: `steps` vectors of length n with a basis, else four.

    Parameters
    ----------
    A : operator or matrix
        (n, n) symmetric; whatever `as_operator` takes. f(A) of A + s I is that of `A + s * spectral.I`.
    f : str, Signed or callable
        "log", "inverse", "sqrt", "exp", "entropy" (-x log x); `spectral.quadrature.bounds.power(p)`; a
        `spectral.quadrature.bounds.Signed`, which states the signs of derivatives; or a function of float64 arrays, of which
        nothing is known: its error is no proof, and b^T f(A) b has no bounds.
    b : array, optional
        (n,) or (n, c), numpy, torch or cupy, in A's dtype. Without it f(A) is given as an operator, each product a run to `tol`.
    tol : float
        Steps go on until the error is at most tol ||f(A) b||, or rounding is half of it or more, which further steps do not
        lower ("rounding" in `meta["stops"]`); 0 < tol < 1.
    interval : (float, float), optional
        (lo, hi): bounds of all eigenvalues of A that you know, None for an end that you do not. What A knows of itself is used
        anyway: 0 of a semi-definite operator, s of one that was shifted by s.
    steps : int, optional
        At most so many; 1000 by default, or what memory holds a basis for.
    reorthogonalize : bool or str
        True (fully, with a basis), False (four vectors, and each product twice), or "auto": True where a basis takes at most a
        quarter of the free memory.
    budget : int or str, optional
        As in `slq`, for all vectors together.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.

    Returns
    -------
    Product or Operator
        The vectors, their errors, and brackets; without b the operator, which raises where a product does not come as close as
        tol.

    Raises
    ------
    ValueError
        For an A that is not symmetric, b that does not fit or is not finite, f that is not known, or not finite at a Ritz value
        or at 0 where one cannot be told from it,
        an interval that does not hold these, and keywords that are none of their values.
    TypeError
        For b in another dtype.
    RuntimeError
        For products that come out otherwise when they are made again.

    Notes
    -----
    The error after k steps is ||b|| e(A) q_{k+1}, e(x) = beta_k sum_i S_ki S_1i (f(x) - f(theta_i)) / (x - theta_i), of norm at
    most ||b|| max |e| over the spectrum. Where the derivatives of f keep their signs e is monotone, and its value at one end of
    the spectrum is the bound: the lower end for log, inverse, sqrt, the upper end for exp. If that end is not known, the end
    Ritz value and its residual stand for it, of up to five steps what an eigenvalue may be that they have not seen (the error of
    log and inverse is then infinite, mostly), and `certified` is False. Rounding of products and sums is added. (In exact
    arithmetic the bound is a theorem; in floating point it rests on Lanczos being that of a nearby matrix, as all bounds here
    do.)

    References
    ----------
    - Saad (1992), Analysis of some Krylov subspace approximations to the matrix exponential operator, SIAM J. Numer. Anal. 29.
    - Frommer, Schweitzer (2016), Error bounds and estimates for Krylov subspace approximations of Stieltjes matrix functions, BIT
      56.
    - Chen, Greenbaum, Musco, Musco (2022), Error bounds for Lanczos-based matrix function approximation, SIAM J. Matrix Anal.
      Appl. 43.
    - The brackets: Golub, Meurant (2010), see `spectral.quadrature.bounds`.

    Examples
    --------
    >>> p = funm(np.diag([1.0, 2.0, 4.0]), "inverse", np.ones(3), interval=(1.0, None))
    >>> p.value.round(9), p.certified                      # b^T f(A) b = 1.75
    (array([1.  , 0.5 , 0.25]), True)
    >>> bool(p.lower <= 1.75 <= p.upper)
    True
    """
    g, A = bounds.signed(f), as_operator(A)
    number(tol, "tol", "error relative to the result", FRACTION, "1e-6")
    low, high = pair(interval)
    if np.isfinite(A.least):
        low = A.least if low is None else max(float(low), A.least)
    if b is None:
        return Applied(A, f, g, (low, high), float(tol))
    vector, limit, mode, most = _operands(A, b, "b", steps, MOST, reorthogonalize, budget)
    begun = Spent.of(A)
    if not mode:
        settle(A, vector[:, 0].contiguous())
    with progress_bar(None, "funm", progress) as bar:
        found = [_one(A, g, column.contiguous(), (low, high), tol, most, mode, limit, bar) for column in vector.T]
    spent = Spent.of(A).since(begun)
    W = torch.stack([one[0] for one in found], 1)
    single = np.ndim(b) == 1
    error, lower, upper = (np.array([one[i] for one in found]) for i in (1, 2, 3))
    return Product(
        value=arrays.like(W[:, 0] if single else W, b),
        error=float(error[0]) if single else error,
        lower=float(lower[0]) if single else lower,
        upper=float(upper[0]) if single else upper,
        certified=all(one[4] for one in found),
        steps=np.array([one[5] for one in found]),
        converged=np.array([one[6] == "tolerance" for one in found]),
        products=spent.products,
        epochs=spent.epochs,
        meta={
            **environment(A),
            "function": _name(f),
            "tol": float(tol),
            "interval": [low, high],
            "reorthogonalize": mode,
            "stops": [one[6] for one in found],
            "seconds": spent.seconds,
        },
    )


class Applied(Derived):
    """f(A) of symmetric A; each product is a run of Lanczos, see `funm`."""

    new_products = True

    def __init__(self, A: Operator, given: bounds.Given, g: bounds.Signed, interval: Interval, tol: float) -> None:
        _symmetric(A)
        super().__init__((A,), A.shape, symmetric=True)
        self.given, self.g, self.within, self.tol, self.off = given, g, interval, tol, tol

    def _rebuilt(self, *parts: Operator) -> Operator:
        return Applied(parts[0], self.given, self.g, self.within, self.tol)

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        A = self.parts[0]
        columns, limit, mode, most = _operands(A, V, "V", None, MOST, "auto", None)
        with progress_bar(None, "", False) as hidden:
            how = self.within, self.tol, most, mode, limit, hidden
            found = [_one(A, self.g, v.contiguous(), *how) for v in columns.T]
        for y, error, *_, steps, stop in found:
            if stop not in ("tolerance", "rounding"):
                raise RuntimeError(
                    f"a product with {_name(self.given)} of {A!r} did not come as close as tol={self.tol:.2g} in {steps} steps: "
                    f"it is off by {error / max(longvectors.norm(y), longvectors.TINY):.2g} of its length; give it a larger tol=."
                )
        return torch.stack([one[0] for one in found], 1)

    def describe(self) -> dict[str, Any]:
        told = {"function": _name(self.given), "tol": self.tol, "interval": list(self.within)}
        return {**super().describe(), **told, "values": self._values}

    @property
    def _values(self) -> list[str]:
        """f at some points: what can be seen of it."""
        return [f"{y:.9g}" for y in bounds.real_values(self.g.f, np.clip(SEEN, *self.g.domain))]


def _name(f: bounds.Given) -> str:
    return f if isinstance(f, str) else str(getattr(f, "__qualname__", type(f).__name__))


def _operands(
    A: Operator, b: Any, name: str, steps: int | None, default: int, reorthogonalize: Any, budget: Any
) -> tuple[torch.Tensor, Budget, bool | str, int]:
    """(columns, budget, how the basis is kept, steps at most) of runs from given vectors."""
    _symmetric(A)
    choice(reorthogonalize, "reorthogonalize", (*MODES, "auto"))
    n = A.shape[0]
    most = min(default if steps is None else integer(steps, "steps", "number of steps"), n)
    columns = finite_columns(A, b, name)
    mode = reorthogonalize
    if mode == "auto":
        room = vectors_that_fit(A, n)
        mode = room >= min(most, 100)
        most = min(most, room) if mode and steps is None else most
        mode = mode and room >= most
    limit = Budget(budget, A)
    limit.announce(most * columns.shape[1])
    return columns, limit, mode, most


def _symmetric(A: Operator) -> None:
    if A.shape[0] != A.shape[1] or not A.self_map or 0 in A.shape or not is_symmetric(A):
        raise ValueError(
            f"{A!r} has no spectrum of its own: it must be square, symmetric and not empty; use A.gram('right') "
            "or A.gram('left')."
        )


def _one(
    A: Operator, g: bounds.Signed, b: torch.Tensor, interval: Interval, tol: float, most: int, mode: bool | str,
    limit: Budget, bar: Any,
) -> tuple[torch.Tensor, float, float, float, bool, int, str]:  # fmt: skip
    """(f(A) b, its error, lower, upper, whether the error is certain, steps, why it ended) of one vector."""
    if not longvectors.norm(b) > 0:
        return torch.zeros_like(b), 0.0, 0.0, 0.0, True, 0, "tolerance"
    state, stop = Lanczos(A, b, most, reorthogonalize=mode), "steps"
    size = float(np.sqrt(state.squared_norm))
    while True:
        more = state.step()
        bar.update(1)
        last = not more or limit.exhausted(1 if mode else state.steps + 1)  # without a basis all are made again
        if not (last or stopping.due(state.steps)):
            continue
        record = state.record()
        try:
            y = applied.approximation(record, g)
        except Undefined:  # a Ritz value on its way may pass where f is not finite
            if last:
                raise
            continue
        error, certain, rounding = applied.vector_error(record, g, interval, A.shape[0])
        if error <= tol * float(np.linalg.norm(y)):
            stop = "tolerance"
            break
        if error <= 2 * rounding < np.inf or record.betas[-1] == 0:
            stop = "rounding"  # what more steps would lower is less than what they cannot
            break
        if last:
            stop = "budget" if more else "steps"
            break
    value = (state.combine(y[None]) if mode else second_pass(state, b, y[None]))[0].mul_(size)
    if not longvectors.finite(value):
        raise beyond(A, "f(A) b")
    b_f_b = bounds.bracket(record, g, interval)
    scale = state.squared_norm
    return value, size * error, scale * b_f_b.lower, scale * b_f_b.upper, certain, record.steps, stop


def spectrum_of(
    A: Any,
    v: Any,
    *,
    steps: int = 100,
    reorthogonalize: bool | str = "auto",
    budget: Any = None,
    progress: bool | None = None,
) -> Spectrum:
    """The spectral measure of one vector: which part of v lies on which eigenvalues of symmetric A (n, n), the local density.

    mu(x) = sum of (u_i^T v)^2 / ||v||^2 over the eigenvalues lambda_i <= x, u_i their eigenvectors.

    Cost: `steps` products. Memory: `steps` vectors of length n with a basis, else four.

    Parameters
    ----------
    A : operator or matrix
        (n, n) symmetric; whatever `as_operator` takes.
    v : array
        (n,), numpy, torch or cupy, in A's dtype: a gradient, the labels, a direction of interest.
    steps : int
        Lanczos steps, at most n.
    reorthogonalize : bool or str
        True (fully, with a basis), "selective", False (four vectors), or "auto": True where a basis takes at most a quarter of
        the free memory.
    budget : int or str, optional
        As in `slq`.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.

    Returns
    -------
    Spectrum
        Of total mass 1: `dim` is 1, `weights` (1, k) sum to 1, `integrate(f)` is v^T f(A) v / ||v||^2, `cdf` is mu with its
        certified envelope. No band has a statistical part, as nothing was drawn. What counts eigenvalues (`count`, `merge`, the
        fits of `spectral.analysis`) is refused: one vector knows where it lies, not how many eigenvalues there are.

    Raises
    ------
    ValueError
        For an A that is not symmetric, a v that is no vector (n,), is 0 or not finite, and keywords that are none of their
        values.
    TypeError
        For v in another dtype.
    RuntimeError
        For products that come out otherwise when they are made again.

    References
    ----------
    Golub, Meurant (2010), Matrices, Moments and Quadrature with Applications, Princeton: the measure of a vector by its moments.

    Examples
    --------
    >>> s = spectrum_of(np.diag([1.0, 2.0, 5.0]), np.array([1.0, 1.0, 0.0]))
    >>> s.nodes.round(9), s.weights.round(9), s.products
    (array([[1., 2.]]), array([[0.5, 0.5]]), 2)
    """
    A = as_operator(A)
    if arrays.is_array(v) and v.ndim != 1:
        raise ValueError(f"v has shape {tuple(np.shape(v))}, but it must be one vector ({A.shape[1]},).")
    integer(steps, "steps", "number of steps")
    columns, limit, mode, most = _operands(A, v, "v", steps, steps, reorthogonalize, budget)
    state, begun = Lanczos(A, columns[:, 0], most, reorthogonalize=mode), Spent.of(A)
    stop = None
    with progress_bar(most, "spectrum_of", progress) as bar:
        while state.step():
            bar.update(1)
            if limit.exhausted():
                stop = "budget"
                break
    record: LanczosRecord = state.record(stop=stop)
    spent = Spent.of(A).since(begun)
    return Spectrum.from_records(
        [record],
        1,
        products=spent.products,
        epochs=spent.epochs,
        method="spectrum_of",
        meta={
            **environment(A),
            "vector": True,
            "dimension": A.shape[0],
            "steps": most,
            "reorthogonalize": mode,
            "stops": [record.stop],
        },
    )
