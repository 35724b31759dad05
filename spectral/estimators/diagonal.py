"""The diagonal of a square operator, entry by entry with its error."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from spectral import arrays, distributed, longvectors
from spectral.estimators import cost, leave_one_out
from spectral.estimators.budget import hold_whole, progress_bar, vectors_that_fit
from spectral.estimators.checkpoint import Checkpoint, State
from spectral.estimators.shared_out import SharedOut, shared_out
from spectral.krylov.symmetry import KnownProduct, distance
from spectral.longvectors import cross
from spectral.networks.curvature import GaussNewton
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Operator
from spectral.pieces import like, local
from spectral.probes import check_seed, unit_vectors
from spectral.results import Estimate, nan
from spectral.schema import NONNEGATIVE, Array, Either, Fields, Law, Number, Same, choice, integer

METHODS = ("auto", "xdiag", "hutchinson", "exact")
EXACT = Fields(  # of a checkpoint: the entries so far, and the column A e_0
    {
        "method": Same("exact"),
        "first": Number(True, least=0, most="n"),
        "value": Array("float64", "n"),
        "column": Array("float64", "n"),
    }
)
# the diagonal by samples, and the column of its largest entry
SQUARES = Fields({"method": Same("squares"), "value": Array("float64", "n"), "column": Array("float64", "n")})
STATE = Either(
    EXACT,
    SQUARES,
    Fields(
        {
            "method": Same("hutchinson"),
            "mean": Array("dtype", "n"),
            "scatter": Array("dtype", "n", least=0),  # in squares of `_unit`
            "along": Array("float64", "done"),  # z^T A z of each sample
            "length": NONNEGATIVE,
        },
        laws=(
            Law("at most as many samples as there are vectors", lambda f, s: s["done"] <= s["most"]),
            Law("a mean that adds up to that of the samples", lambda f, s: _adds_up(f["mean"], f["along"])),
        ),
    ),
    Fields(
        {"method": Same("xdiag"), "Y": Array("dtype", "n", None), "range": leave_one_out.RANGE},
        laws=(
            Law("at most as many columns as there are vectors", lambda f, s: s["rank"] <= f["Y"].shape[1] <= s["half"]),
            Law("a basis of all columns alone", lambda f, s: s["rank"] == 0 or f["Y"].shape[1] == s["half"]),
        ),
    ),
)


def diagonal(
    A: Any,
    *,
    method: str = "auto",
    probes: int = 20,
    seed: int = 0,
    checkpoint: Any = None,
    progress: bool | None = None,
    ranks: str = "data",
) -> Estimate:
    """The diagonal of square A (n, n), entry by entry with its error.

    d_i = e_i^T A e_i, estimated by the mean of z * (A z) over sign vectors z, after what the range of few products holds
    exactly.

    Cost: `probes` products, n at most; "exact" of a GaussNewton, Fisher or EmpiricalFisher one sweep and one product (two with a
    checkpoint). Memory: O(n), or 4 m n numbers for "xdiag" with m = probes / 2.

    Parameters
    ----------
    A : operator or matrix
        (n, n); whatever `as_operator` takes.
    method : str
        "auto", "xdiag", "hutchinson" or "exact"; see Notes.
    probes : int
        Products; n or more multiply the identity: n products, stderr 0.
    seed : int
        0 to 2^64 - 1. Probe i depends on (seed, i) alone.
    checkpoint : path, optional
        A file (its folder is made) that is written now and then, and at SIGINT and SIGTERM; the same call goes on to the
        same bits.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.
    ranks : str
        As in `slq`: "probes" and "both" share out the vectors, in blocks of one for each rank (or team); every rank holds such
        a block, and else what one process would. The one sweep of "exact" every team makes for itself.

    Returns
    -------
    Estimate
        value and stderr are float64 arrays (n,); lower and upper are nan unless exact. Each stderr is that of its entry,
        widened to Student's interval.

    Raises
    ------
    ValueError
        For an operator that is not square, products that hold NaN, fewer probes than give an error bar (2; "xdiag": 4), a
        keyword that is none of its values, and a checkpoint that is damaged or of another call.
    RuntimeError
        For products that come out otherwise when they are made again.

    Notes
    -----
    Both random methods are unbiased:

    - "hutchinson": the mean of z * (A z) over signs z.
    - "xdiag": m = probes / 2 sign vectors; the diagonal of the part of A in the range of their products, exactly, and the
      mean of what each left out says of the rest: far better where the spectrum decays. Takes m transposed products. stderr
      includes the covariance of its samples (`spectral.estimators.leave_one_out`).
    - "exact": of GaussNewton, Fisher and EmpiricalFisher (their multiples and shifts too) the squares of single samples'
      gradients, summed in one sweep: one backward pass a sample for EmpiricalFisher, C for a cross entropy of C classes (for
      each counted target), else one for each output. Where vmap fails samples go one by one; `describe()` of the operator says
      so as "single_samples". z^T A z of random signs z is held to a product. Of all other operators, and where samples meet
      (batch norm's own statistics, a loss that couples them), n products with the identity.
    - "auto": n products if `probes` allows, else xdiag with 20 products or more where A's transpose is known and the memory
      is there, else hutchinson.

    References
    ----------
    - Bekas, Kokiopoulou, Saad (2007), An estimator for the diagonal of a matrix, Appl. Numer. Math. 57.
    - Epperly, Tropp, Webber (2024), XTrace: making the most of every sample in stochastic trace estimation, SIAM J. Matrix
      Anal. Appl. 45.

    Examples
    --------
    >>> e = diagonal(np.array([[2.0, 1.0], [1.0, 3.0]]))
    >>> e.value.tolist(), e.stderr.tolist(), e.products
    ([2.0, 3.0], [0.0, 0.0], 2)
    """
    choice(method, "method", METHODS)
    probes = integer(probes, "probes", "number of products")
    A = as_operator(A)
    if A.shape[0] != A.shape[1] or not A.self_map:
        raise ValueError(
            f"{A!r} has no diagonal; use A.gram('left') for that of A A^T, the rows, or A.gram('right') for the columns."
        )
    (A,) = shared_out(A, ranks, lambda own: (own,))
    n, seed = A.shape[0], check_seed(seed)
    settings = {"diagonal": method, "probes": probes, "seed": seed}
    run = Checkpoint(checkpoint, A, settings, STATE, most=probes, half=probes // 2)
    if method == "exact" or probes >= n:
        factor, shift, inner = cost.affine(A.parts[0] if isinstance(A, SharedOut) else A)
        by_samples = method == "exact" and isinstance(inner, GaussNewton) and inner.separate
        value = _of_squares(A, factor, shift, inner, run) if by_samples else exact_diagonal(A, progress, run)
        return Estimate(value, np.zeros(n), value, value, 0 if by_samples else n, run.spent.products, "exact")
    name = _choose(A, probes) if method == "auto" else method
    if run.state is not None:
        name = run.state["method"]  # "auto" may mean another with the memory of today
    m = probes // 2 if name == "xdiag" else probes
    if m < 2:
        raise ValueError(
            f"probes={probes} gives no error bar with {name!r}; use probes >= {4 if name == 'xdiag' else 2}."
        )
    A.expect(probes)
    value, stderr = (_xdiag if name == "xdiag" else _hutchinson)(A, m, seed, progress, run)
    bounds = np.broadcast_to(nan, len(value))  # takes no memory
    return Estimate(value, stderr, bounds, bounds, m, run.spent.products, name)


def _choose(A: Operator, probes: int) -> str:
    fits = 4 * probes <= vectors_that_fit(A, A.shape[0])
    return "xdiag" if probes >= 20 and A.symmetric is not None and fits else "hutchinson"


def exact_diagonal(A: Operator, progress: bool | None, run: Checkpoint) -> np.ndarray:
    """The diagonal (n,) from n products with the identity."""
    hold_whole(A, "the exact diagonal")
    n, first = A.shape[0], 0
    A.expect(n)
    value, column = np.zeros(n), np.zeros(n)
    if run.state is not None:
        first, value, column = (run.state[name] for name in ("first", "value", "column"))
        if first:
            one = unit_vectors(range(1), n, dtype=A.dtype, device=A.device)[:, 0]
            run.prove(KnownProduct(one, distance(torch.from_numpy(column).to(arrays.float64_device(A.device)))))

    def state() -> State:
        return {"method": "exact", "first": first, "value": value, "column": column}

    with progress_bar(n, "diagonal", progress) as bar, run.guard(state):
        for start in range(first, n, cost.BLOCK):
            stop = min(start + cost.BLOCK, n)
            columns = unit_vectors(range(start, stop), n, dtype=A.dtype, device=A.device)
            product = leave_one_out.multiply(A, columns)
            if start == 0:
                column = arrays.double(product[:, 0]).cpu().numpy()
            among = arrays.double(product[start:stop]).cpu().numpy()
            leave_one_out.hold_products(A, (columns, product), (columns, product), (among, among.T))
            value[start:stop] = np.diag(among)
            first = stop
            run.stepped(end=first == n)
            bar.update(stop - start)
    return value


def _of_squares(A: Operator, factor: float, shift: float, G: GaussNewton, run: Checkpoint) -> np.ndarray:
    """The diagonal (n,) of A = factor G + shift I from the gradients of single samples, in one sweep, held to a product."""
    state, before = run.state, G.products
    if state is None:
        with run.guard(dict, lambda: False), distributed.apart(A.team) if isinstance(A, SharedOut) else nullcontext():
            state = {"method": "squares", "value": (factor * G.single_samples() + shift).cpu().numpy()}
        A.products += 0 if A is G else G.products - before
    if run.path is None:
        return state["value"]
    largest = int(np.abs(state["value"]).argmax())
    one = unit_vectors(range(largest, largest + 1), A.shape[0], dtype=A.dtype, device=A.device)
    if run.state is not None:
        run.prove(
            KnownProduct(one[:, 0], distance(torch.from_numpy(state["column"]).to(arrays.float64_device(A.device))))
        )
        return state["value"]
    state["column"] = arrays.double(leave_one_out.multiply(A, one)[:, 0]).cpu().numpy()
    with run.guard(lambda: state):
        run.stepped(end=True)
    return state["value"]


@arrays.scarce()
def _hutchinson(
    A: Operator, m: int, seed: int, progress: bool | None, run: Checkpoint
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of z * (A z), by Welford's recurrence."""
    mean = leave_one_out.zeros(A)
    stderr = np.zeros(local(mean).numel())  # takes its memory as it is written to: half of it while samples are drawn
    scatter = _within(stderr, mean)
    drawn: State = {"method": "hutchinson", "mean": mean, "scatter": scatter, "along": np.zeros(0), "length": 0.0}
    neighbours, whole = leave_one_out.Neighbours(A), True
    if run.state is not None:
        drawn = run.state
        local(scatter).copy_(local(drawn["scatter"]))
        drawn["scatter"] = scatter
        if len(drawn["along"]):
            z = leave_one_out.draw(A, seed, range(1), "rademacher")[:, 0]
            run.prove(leave_one_out.two_numbers(z, float(drawn["along"][0]), drawn["length"]))
    with progress_bar(m, "diagonal", progress) as bar, run.guard(lambda: drawn, lambda: whole):
        while (i := len(drawn["along"])) < m:
            Z = leave_one_out.draw(A, seed, range(i, min(i + A.teams, m)), "rademacher")
            neighbours.meet(Z[:, 0])
            Y = leave_one_out.multiply(A, Z, first=not i)
            lengths = longvectors.norms(Y.T)
            neighbours.hold(Z, Y, float(lengths.max()))
            whole, mean = False, drawn["mean"]
            if i == 0:
                drawn["length"] = float(lengths[0])
            along = longvectors.column_dots(Z, Y)
            for j, (z, y) in enumerate(zip(Z.T, Y.T, strict=True), i + 1):
                out = z if A.new_products and z.is_contiguous() else mean  # a vector less while a test waits with z
                leave_one_out.welford(mean, z, y, j, out, drawn["scatter"], _unit(drawn, A))
                mean = out
            drawn["mean"], drawn["along"], whole = mean, np.append(drawn["along"], along), True
            bar.update(len(lengths))
            del Z, Y, z, y, out
            run.stepped(end=i + len(lengths) == m)
    del neighbours, mean
    run.current = dict  # the vectors of the state go as those of the result come
    value = arrays.double(drawn.pop("mean")).cpu().numpy()
    factor = leave_one_out.widening(m) * _unit(drawn, A)
    for piece in longvectors.chunks(len(stderr), 1):  # written up to where the next piece is read, at most
        stderr[piece] = np.sqrt(arrays.double(local(scatter)[piece]).cpu().numpy() / (m - 1) / m) * factor
    return value, stderr


def _adds_up(mean: torch.Tensor, along: np.ndarray) -> bool:
    """Whether the entries of a mean of samples z * A z add up to that of z^T A z, to their rounding."""
    total, size = longvectors.sums(mean)
    allowed = 4 * max(len(along), 1) * arrays.machine_epsilon(mean.dtype) * size
    return abs(total - (along.mean() if len(along) else 0.0)) <= allowed


def _within(wide: np.ndarray, mean: torch.Tensor) -> torch.Tensor:
    """Zeros like `mean`; on the processor in the last bytes of `wide`, the float64 numbers that they become."""
    if mean.device.type != "cpu" or mean.dtype not in arrays.NUMPY:
        return torch.zeros_like(mean)
    return like(torch.from_numpy(wide.view(arrays.NUMPY[mean.dtype])[-len(wide) :]), mean)


def _unit(drawn: State, A: Operator) -> float:
    """The power of two above an entry of the first product, in the mean of squares."""
    return math.ldexp(1.0, math.frexp(drawn["length"] / math.sqrt(A.shape[0]))[1])


def _xdiag(A: Operator, m: int, seed: int, progress: bool | None, run: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of diag(Q_i Q_i^T A) + omega_i * (I - Q_i Q_i^T) A omega_i over i.

    With f_i = Q s_i and g_i = A^T Q s_i the i-th is diag(Q Z^T) - f_i * g_i + omega_i * f_i (s_i^T r_i); without y_j as well,
    p = (s_j - gamma s_i) / nu joins s_i, and d_ij = Q p * A^T Q p - omega_i * Q p (p^T r_i).
    """
    basis = leave_one_out.Range(A.T)
    drawn: State = {"method": "xdiag", "Y": leave_one_out.empty(A), "range": basis.state()}
    Omega = leave_one_out.draw(A, seed, range(m), "rademacher")
    if run.state is not None:
        drawn = run.state
        basis.resume(drawn["range"])
        if done := drawn["Y"].shape[1]:
            pairs = [(Omega[:, :done], drawn["Y"]), *([(basis.Q, basis.Z)] if A.symmetric else [])]
            run.prove(leave_one_out.known_product(pairs))
    with progress_bar(2 * m, "diagonal", progress) as bar, run.guard(lambda: drawn):
        while (done := drawn["Y"].shape[1]) < m:
            block = Omega[:, done : done + leave_one_out.block_of(A)].contiguous()
            columns = leave_one_out.multiply(A, block, first=not done)
            drawn = {**drawn, "Y": torch.cat([drawn["Y"], columns], 1)}
            run.stepped()
            bar.update(columns.shape[1])
        Y = drawn["Y"]
        if not basis.Q.shape[1]:
            basis.extend(Y)
            drawn = {**drawn, "range": basis.state()}
        run.stepped(end=True)
        bar.update(m)
    R = cross(basis.Q, Y)
    tables = R, cross(basis.Z, Omega)
    leave_one_out.hold_products(A, (basis.Q, basis.Z), (Omega, Y), tables, transposed=True)
    S, alone = leave_one_out.directions(R)
    gamma, SR = S.T @ S, (S * R).sum(0)
    nu = np.sqrt(np.maximum(1 - gamma**2, leave_one_out.PARALLEL))
    Q, Z, signs = (arrays.double(X).cpu().numpy() for X in (basis.Q, basis.Z, Omega))
    F, E = Q @ S, Z @ S
    samples = (Q * Z).sum(1)[:, None] - F * E + signs * F * SR
    covariance = np.zeros(len(Q))

    def change(i: int, j: int) -> np.ndarray:  # d_ij (n,): what y_j in its basis changes of sample i
        f, e = (F[:, j] - gamma[i, j] * F[:, i]) / nu[i, j], (E[:, j] - gamma[i, j] * E[:, i]) / nu[i, j]
        return f * e + signs[:, i] * f * (gamma[i, j] * SR[i] / nu[i, j])

    for i in range(m):
        for j in range(i):
            if alone[i] and alone[j]:
                covariance += 2 * change(i, j) * change(j, i)
    variance = samples.var(axis=1, ddof=1) / m + np.maximum(covariance, 0) / (m * (m - 1))
    rounding = A.epsilon * np.sqrt((arrays.double(local(Y)) ** 2).mean(1).cpu().numpy())  # of each row's product
    return samples.mean(1), np.hypot(np.sqrt(variance) * leave_one_out.widening(m), rounding)
