"""Products of many matrices: Lyapunov spectra along a trajectory, and singular values of deep products, by QR without overflow.

Symbols: x_{t+1} = F(x_t), J_t the Jacobian of F at x_t, (d, d); J_t Q_t = Q_{t+1} R_{t+1}, R upper triangular with a positive
diagonal. The product of all J is Q R_T ... R_1 Q_0^T: its growth is in the diagonals of R, whose logarithms add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from spectral import arrays, cards, probes
from spectral.engine import trace
from spectral.estimators.leave_one_out import widening
from spectral.results import Array, listed, nan
from spectral.schema import function, integer, several

TRANSIENT = 10  # by default a part of the steps, in which Q turns into the directions of Oseledets


@dataclass(frozen=True)
class Lyapunov(cards.Sentence):
    """The Lyapunov exponents of a trajectory, largest first: the mean rates ln σ / t at which perturbations of it grow.

    Attributes
    ----------
    values : numpy.ndarray
        (k,), in 1 / step; -inf where a direction is lost.
    stderr : numpy.ndarray
        (k,), the standard error over blocks of time, widened to Student's interval, and in quadrature half of what the later
        half of them drifts from the earlier: it holds where a block is longer than the trajectory remembers.
    blocks : numpy.ndarray
        (blocks, k), the exponents of each block of time.
    steps : int
        That were averaged over.
    state : torch.Tensor
        The last state, to go on from.

    Examples
    --------
    >>> found = spectral.lyapunov(lambda x: 2 * x, torch.ones(1, dtype=torch.float64), steps=20)
    >>> found.values.round(12), found.stderr
    (array([0.69314718]), array([0.]))
    """

    values: Array
    stderr: Array
    blocks: Array
    steps: int
    state: Tensor

    @property
    def dimension(self) -> float:
        """The Kaplan-Yorke dimension: how many directions together neither grow nor shrink; nan if even all k together grow."""
        sums = np.cumsum(self.values)
        if self.values[0] < 0:
            return 0.0
        if sums[-1] >= 0:
            return nan
        j = int(np.argmax(sums < 0))  # the first j of them still grow
        return j + float(sums[j - 1] / -self.values[j])

    def __str__(self) -> str:
        return f"{len(self.values)} Lyapunov exponents from {self.steps} steps: {listed(self.values, self.stderr)}"


def lyapunov(
    step: Callable[..., Tensor],
    state: Tensor,
    inputs: Sequence[Any] | Tensor | None = None,
    *,
    k: int | None = None,
    steps: int | None = None,
    discard: int | None = None,
    blocks: int = 10,
    seed: int = 0,
) -> Lyapunov:
    """The k largest Lyapunov exponents of x_{t+1} = step(x_t), or step(x_t, input_t), by QR after every step.

    λ_i = lim (1/T) Σ_t ln |(R_t)_ii|. A recurrent network driven by its inputs has such exponents: below zero it forgets, above
    zero it is chaotic; gradients through T steps grow or vanish as e^{λT}. A linear step gives ln |eigenvalue|.

    Cost: k Jacobian-vector products a step, and a QR of (d, k).

    Parameters
    ----------
    step : callable
        state -> state, or (state, input) -> state, differentiable in forward mode: `lambda h, x: cell(x[None], h)` of an RNNCell.
    state : torch.Tensor
        The first state, of any shape, d real numbers in all.
    inputs : sequence, optional
        One for each step; None for a step that takes none.
    k : int, optional
        How many; by default all d.
    steps : int, optional
        That count; by default 1000, or all inputs but those discarded.
    discard : int, optional
        Steps before; by default a tenth of all.
    blocks : int
        Of time, at least two, for the standard error.
    seed : int
        Of the first directions.

    Returns
    -------
    Lyapunov
        Exponents with their standard errors.

    Raises
    ------
    TypeError
        For a state that is not floating, and for torch's own cells, which take their input first.
    ValueError
        For numbers out of range, too few inputs, a step that changes the shape, and a trajectory that leaves the finite.

    References
    ----------
    - Benettin, Galgani, Giorgilli, Strelcyn (1980), Lyapunov characteristic exponents for smooth dynamical systems, Meccanica 15.
    - Engelken, Wolf, Abbott (2023), Lyapunov spectra of chaotic recurrent neural networks, Physical Review Research 5.

    Examples
    --------
    >>> W = torch.tensor([[0.5, 1.0], [0.0, -0.25]], dtype=torch.float64)
    >>> found = spectral.lyapunov(lambda h: W @ h, torch.ones(2, dtype=torch.float64), steps=2000)
    >>> np.exp(found.values).round(6)
    array([0.5 , 0.25])
    """
    function(step, "step", "a state")
    if isinstance(step, nn.RNNCellBase | nn.RNNBase):
        way = (
            "lambda s, x: torch.cat(cell(x, s.chunk(2)))"
            if "LSTM" in type(step).__name__
            else "lambda h, x: cell(x, h)"
        )
        raise TypeError(
            f"step is torch's {type(step).__name__}, which takes (input, state), and step is called with (state, input); pass "
            f"{way} of a cell."
        )
    if not isinstance(state, Tensor) or not state.is_floating_point():
        kind = state.dtype if isinstance(state, Tensor) else f"a {type(state).__name__}"
        raise TypeError(
            f"the state is {kind}; Lyapunov exponents need a real floating state, one tensor: join its parts, in float64."
        )
    d = state.numel()
    k = d if k is None else k
    if inputs is not None:
        several(inputs, "inputs", "what each step takes")
    given = None if inputs is None else len(inputs)
    if steps is None:
        steps = 1000 if given is None else given - (given // TRANSIENT if discard is None else discard)
    integer(steps, "steps", "number of steps")
    if discard is None:
        discard = steps // TRANSIENT if given is None else max(0, min(steps // TRANSIENT, given - steps))
    integer(k, "k", "number of exponents", 1, d)
    integer(discard, "discard", "number of steps", 0)
    integer(blocks, "blocks", "number of blocks", 2)
    integer(steps, "steps", "number of steps", blocks, None if given is None else given - discard)

    def moved(x: Tensor, Q: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """F(x) and J Q, Q (d, k)."""

        def of_state(x: Tensor) -> Tensor:
            return step(x) if inputs is None else step(x, inputs[t])

        def along(v: Tensor) -> tuple[Any, ...]:
            return torch.func.jvp(of_state, (x,), (v,))

        ys, JQ = trace.vmap(along)(Q.T.reshape(k, *x.shape).to(x))
        return ys[0].detach(), arrays.double(JQ.detach().reshape(k, -1).T)

    x = state.detach()
    start = torch.stack([probes.probe(probes.check_seed(seed), i, d) for i in range(k)], 1)
    Q = torch.linalg.qr(start.to(arrays.float64_device(state.device)))[0]
    logs = np.empty((steps, k))
    for t in range(-discard, steps):
        y, JQ = moved(x, Q, t + discard)
        if y.shape != x.shape:
            raise ValueError(
                f"step takes a state {tuple(x.shape)} to {tuple(y.shape)}; it must give one of the same shape."
            )
        if not (bool(torch.isfinite(y).all()) and bool(torch.isfinite(JQ).all())):
            raise ValueError(
                f"the trajectory or its Jacobian is not finite at step {t + discard}; start where it stays bounded."
            )
        x, (Q, R) = y, torch.linalg.qr(JQ)
        if t >= 0:
            logs[t] = R.diagonal().abs().log().cpu().numpy()
    each = np.stack([part.mean(0) for part in np.array_split(logs, blocks)])
    values = logs.mean(0)
    order = np.argsort(-values, kind="stable")
    with np.errstate(invalid="ignore"):
        drift = each[: blocks // 2].mean(0) - each[-(blocks // 2) :].mean(0)  # of directions that still turn
        stderr = np.hypot(each.std(0, ddof=1) / math.sqrt(blocks) * widening(blocks), drift / 2)
    return Lyapunov(values[order], stderr[order], each[:, order], steps, x)


@dataclass(frozen=True)
class LogSingularValues:
    """The logarithms of the singular values of a product of matrices, largest first.

    Attributes
    ----------
    values : numpy.ndarray
        (r,), ln σ; -inf for σ = 0.
    error : float
        How far each may be off, a bound but for the rounding of the QR factorisations; inf where none is known yet.
    sweeps : int
        How often the product was run through.

    Examples
    --------
    >>> found = log_singular_values([np.diag([1e200, 1e-200])] * 3)
    >>> (found.values / np.log(10)).round(9)
    array([ 600., -600.])
    """

    values: Array
    error: float
    sweeps: int


def log_singular_values(factors: Iterable[Any], *, tol: float = 1e-10, sweeps: int = 200) -> LogSingularValues:
    """ln σ of A_L ... A_2 A_1 for any number of factors, without forming the product: none overflows, and small ones are exact.

    The factors are made triangular one after another, which gives R_L ... R_1 with the same singular values; then the transposed
    product is, and so on: unshifted QR iteration for the singular values of a product, whose off-diagonal part dies as
    (σ_j / σ_i)². Let D be the diagonal of the product and D (I + E) the product itself: σ_i lies within [1 − ‖E‖, 1 + ‖E‖] of
    D_i (Ostrowski), which is the stated error.

    Cost: no products with an operator; O(L n³) a sweep.

    Parameters
    ----------
    factors : iterable of array
        A_1, A_2, ..., the first to be applied first; each (n_{l+1}, n_l).
    tol : float
        Of the stated error, at which to stop.
    sweeps : int
        At most so many; equal singular values converge at once or, where factors mix them, slowly.

    Returns
    -------
    LogSingularValues
        min(n_l) values: those beyond are zero by shape.

    Raises
    ------
    ValueError
        For no factors, shapes that do not fit, and entries that are not finite.

    References
    ----------
    - Stewart (1997), On graded QR decompositions of products of matrices, ETNA 5.
    - Oliveira and Stewart (2000), Exponential splittings of products of matrices and accurately computing singular values of
      long products, Linear Algebra and its Applications 309.

    Examples
    --------
    >>> float(np.exp(log_singular_values([np.ones((3, 2)), np.ones((2, 3))]).values[0]).round(9))
    6.0
    """
    A = [np.asarray(f.detach().cpu() if isinstance(f, Tensor) else f, dtype=np.float64) for f in factors]
    if not A or any(a.ndim != 2 for a in A):
        raise ValueError(f"factors of shapes {[a.shape for a in A]} are no product; give one matrix or more.")
    for first, second in pairwise(A):
        if first.shape[0] != second.shape[1]:
            raise ValueError(
                f"a factor {first.shape} is followed by one {second.shape}; its columns must be the rows before."
            )
    if not all(np.isfinite(a).all() for a in A):
        raise ValueError("the factors hold NaN or infinity; remove them.")
    rank = min(min(a.shape) for a in A)
    if rank == 0:
        return LogSingularValues(np.zeros(0), 0.0, 0)
    narrow = min(range(len(A) + 1), key=lambda place: ([a.shape[1] for a in A] + [A[-1].shape[0]])[place])
    # from the narrowest place to the left end, then back to the right: all factors are (rank, rank) afterwards
    left, _ = _triangular(A[narrow:], rank)
    right, _ = _triangular([a.T for a in A[:narrow]][::-1], rank)
    R = [r.T for r in right][::-1] + left
    values, error, count = np.zeros(rank), math.inf, 1
    while count <= sweeps:
        R, (values, error) = _triangular(R, rank)
        if error <= tol or count == sweeps:
            break
        R, count = [r.T for r in R][::-1], count + 1
    return LogSingularValues(np.sort(values)[::-1].copy(), error, count)


def _triangular(factors: list[Array], n: int) -> tuple[list[Array], tuple[Array, float]]:
    """Upper triangular factors (n, n) with the same product but for an orthogonal matrix on each side; ln of its diagonal, and a
    bound of how far that is from ln σ."""
    Q, made = np.eye(n), []
    logs, U = np.zeros(n), np.eye(n)
    for a in factors:
        Q, R = scipy.linalg.qr(a @ Q, mode="economic")
        signs = np.where(R.diagonal() < 0, -1.0, 1.0)
        Q, R = Q * signs, signs[:, None] * R
        made.append(R)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            # product = diag(e^logs) U: U <- diag(e^-logs) (R / diag R) diag(e^logs) U, whose ratios are at most about 1
            U = (R / R.diagonal()[:, None] * np.exp(logs[None] - logs[:, None])) @ U if np.isfinite(U).all() else U
            logs = logs + np.log(R.diagonal())
    E = np.triu(U, 1)
    size = float(np.linalg.norm(E)) if np.isfinite(E).all() else math.inf
    return made, (logs, -math.log1p(-size) if size < 1 else math.inf)
