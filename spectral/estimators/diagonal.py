"""The diagonal of a square operator, entry by entry with its error."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spectral import arrays
from spectral.estimators import leave_one_out
from spectral.estimators.budget import progress_bar
from spectral.estimators.search_checkpoint import Kept, State
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Operator
from spectral.probes import check_seed
from spectral.results import Estimate, nan
from spectral.schema import Array, Either, Fields, Law, Number, Same

METHODS = ("auto", "xdiag", "hutchinson", "exact")
BLOCK = 64  # columns of the identity multiplied at a time
SHARED = 8  # random vectors multiplied at a time: sweeps are shared
EXACT = Fields(  # of a checkpoint: the entries so far, and the column A e_0
    {
        "method": Same("exact"),
        "first": Number(True, least=0, most="n"),
        "value": Array("float64", "n"),
        "column": Array("float64", "n"),
    }
)
STATE = Either(
    EXACT,
    Fields(
        {
            "method": Same("hutchinson"),
            "done": Number(True, least=0, most="most"),
            "mean": Array("float64", "n"),
            "squares": Array("float64", "n", least=0),
            "first": Array("dtype", "n"),
        }
    ),
    Fields(
        {
            "method": Same("xdiag"),
            "Y": Array("dtype", "n", None),
            "Q": Array("dtype", "n", "rank"),
            "Z": Array("dtype", "n", "rank"),
        },
        laws=(
            Law("at most as many columns as there are vectors", lambda f, s: s["rank"] <= f["Y"].shape[1] <= s["half"]),
            Law("a basis of all columns alone", lambda f, s: s["rank"] == 0 or f["Y"].shape[1] == s["half"]),
            Law("an orthonormal basis", lambda f, s: leave_one_out.orthonormal(f["Q"])),
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
) -> Estimate:
    """The diagonal of square A (n, n): value and stderr are float64 arrays (n,).

    `probes` is the number of products; n or more, or method="exact", multiply the identity: n products, stderr 0.
    "hutchinson": the mean of z * (A z) over signs z (Bekas, Kokiopoulou, Saad 2007); O(n) memory.
    "xdiag": m = probes / 2 sign vectors; the diagonal of the part of A in the range of their products, exactly, and the mean of
    what each left out says of the rest (Epperly, Tropp, Webber 2024): far better where the spectrum decays; takes m transposed
    products and 4 m n numbers of memory.
    "auto": exact, else xdiag with 20 products or more where A's transpose is known and the memory is there, else hutchinson.
    Each stderr is that of its entry, widened to Student's interval; `xdiag` includes the covariance of its samples
    (`spectral.estimators.leave_one_out`). Both are unbiased.
    checkpoint: a file that is written now and then, and at SIGINT and SIGTERM; the same call goes on from it, to the same bits.
    Raises ValueError for an operator that is not square.

    >>> e = diagonal(np.array([[2.0, 1.0], [1.0, 3.0]]))
    >>> e.value.tolist(), e.stderr.tolist(), e.products
    ([2.0, 3.0], [0.0, 0.0], 2)
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is no method; use one of {', '.join(METHODS)}.")
    if isinstance(probes, bool) or not isinstance(probes, int | np.integer) or probes < 1:
        raise ValueError(f"probes={probes!r} is no number of products; use an integer >= 2.")
    A = as_operator(A)
    if A.shape[0] != A.shape[1] or not A.self_map:
        raise ValueError(
            f"{A!r} has no diagonal; use A.gram('left') for that of A A^T, the rows, or A.gram('right') for the columns."
        )
    n, seed = A.shape[0], check_seed(seed)
    settings = {"diagonal": method, "probes": int(probes), "seed": seed}
    kept = Kept(checkpoint, A, settings, STATE, n=n, most=int(probes), half=int(probes) // 2)
    if method == "exact" or probes >= n:
        value = exact_diagonal(A, progress, kept)
        return Estimate(value, np.zeros(n), value, value, n, kept.spent[0], "exact")
    name = _choose(A, int(probes)) if method == "auto" else method
    if kept.state is not None:
        name = kept.state["method"]  # "auto" may mean another with the memory of today
    m = int(probes) // 2 if name == "xdiag" else int(probes)
    if m < 2:
        raise ValueError(
            f"probes={probes} gives no error bar with {name!r}; use probes >= {4 if name == 'xdiag' else 2}."
        )
    A.expect(int(probes))
    value, stderr = (_xdiag if name == "xdiag" else _hutchinson)(A, m, seed, progress, kept)
    bounds = np.full(n, nan)
    return Estimate(value, stderr, bounds, bounds, m, kept.spent[0], name)


def _choose(A: Operator, probes: int) -> str:
    free = arrays.available_memory(A.device) // 4 // (A.shape[0] * A.dtype.itemsize)
    return "xdiag" if probes >= 20 and A.symmetric is not None and 4 * probes <= free else "hutchinson"


def exact_diagonal(A: Operator, progress: bool | None, kept: Kept) -> np.ndarray:
    """The diagonal (n,) from n products with the identity."""
    n, first = A.shape[0], 0
    A.expect(n)
    value, column = np.zeros(n), np.zeros(n)
    if kept.state is not None:
        first, value, column = (kept.state[name] for name in ("first", "value", "column"))
        if first:
            kept.prove(_unit(A, range(1))[:, 0], torch.from_numpy(column).to(A.device))

    def whole() -> State:
        return {"method": "exact", "first": first, "value": value, "column": column}

    with progress_bar(n, "diagonal", progress) as shown, kept.guard(whole):
        for start in range(first, n, BLOCK):
            size = min(BLOCK, n - start)
            columns = _unit(A, range(start, start + size))
            product = leave_one_out.multiply(A, columns)
            if start == 0:
                column = product[:, 0].double().cpu().numpy()
            among = product[start : start + size].double().cpu().numpy()
            leave_one_out.hold_products(A, columns, product, columns, product, (among, among.T))
            value[start : start + size] = torch.diagonal(product[start : start + size]).double().cpu().numpy()
            first = start + size
            kept.stepped(whole(), end=first == n)
            shown.update(size)
    return value


def _unit(A: Operator, indices: range) -> torch.Tensor:
    """These columns of the identity, (n, b)."""
    columns = torch.zeros(A.shape[0], len(indices), dtype=A.dtype, device=A.device)
    columns[indices, range(len(indices))] = 1
    return columns


def _hutchinson(A: Operator, m: int, seed: int, progress: bool | None, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of z * (A z), by Welford's recurrence."""
    zero = np.zeros(A.shape[0])
    first = torch.zeros(A.shape[0], dtype=A.dtype, device=A.device)
    drawn: State = {"method": "hutchinson", "done": 0, "mean": zero, "squares": zero, "first": first}
    last: tuple[torch.Tensor, torch.Tensor] | None = None
    if kept.state is not None:
        drawn = kept.state
        if drawn["done"]:
            kept.prove(leave_one_out.draw(A, seed, range(1), "rademacher")[:, 0], drawn["first"])
    with progress_bar(m, "diagonal", progress) as shown, kept.guard(lambda: drawn):
        for i in range(drawn["done"], m):
            z = leave_one_out.draw(A, seed, range(i, i + 1), "rademacher")
            product = leave_one_out.multiply(A, z)
            last = leave_one_out.hold_neighbours(A, last, z, product, arrays.norm(product[:, 0]))
            sample = (z * product)[:, 0].double().cpu().numpy()
            step = sample - drawn["mean"]
            mean = drawn["mean"] + step / (i + 1)
            squares = drawn["squares"] + step * (sample - mean)
            first = drawn["first"] if i else product[:, 0].clone()
            drawn = {**drawn, "done": i + 1, "mean": mean, "squares": squares, "first": first}
            kept.stepped(drawn, end=i + 1 == m)
            shown.update(1)
    mean, squares = drawn["mean"], drawn["squares"]
    return mean, np.sqrt(squares / (m - 1) / m) * leave_one_out.widening(m)


def _xdiag(A: Operator, m: int, seed: int, progress: bool | None, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of diag(Q_i Q_i^T A) + omega_i * (I - Q_i Q_i^T) A omega_i over i.

    With f_i = Q s_i and g_i = A^T Q s_i the i-th is diag(Q Z^T) - f_i * g_i + omega_i * f_i (s_i^T r_i); without y_j as well,
    p = (s_j - gamma s_i) / nu joins s_i, and d_ij = Q p * A^T Q p - omega_i * Q p (p^T r_i).
    """
    basis = leave_one_out.Range(A.T)
    drawn: State = {
        "Y": leave_one_out.empty(A),
        "Q": leave_one_out.empty(A),
        "Z": leave_one_out.empty(A),
        "method": "xdiag",
    }
    drawn = drawn if kept.state is None else kept.state
    Omega = leave_one_out.draw(A, seed, range(m), "rademacher")
    if drawn["Y"].shape[1]:
        pairs = [(Omega[:, : drawn["Y"].shape[1]], drawn["Y"]), *([(drawn["Q"], drawn["Z"])] if A.symmetric else [])]
        kept.prove(*leave_one_out.together(pairs))
    with progress_bar(2 * m, "diagonal", progress) as shown, kept.guard(lambda: drawn):
        while (done := drawn["Y"].shape[1]) < m:
            columns = leave_one_out.multiply(A, Omega[:, done : done + SHARED].contiguous())
            drawn = {**drawn, "Y": torch.cat([drawn["Y"], columns], 1)}
            kept.stepped(drawn)
            shown.update(columns.shape[1])
        Y = drawn["Y"]
        if not drawn["Q"].shape[1]:
            basis.extend(Y)
            drawn = {**drawn, "Q": basis.Q, "Z": basis.Z}
        basis.Q, basis.Z = drawn["Q"], drawn["Z"]
        kept.stepped(drawn, end=True)
        shown.update(m)
    R = leave_one_out.cross(basis.Q, Y)
    leave_one_out.hold_products(
        A, basis.Q, basis.Z, Omega, Y, (R, leave_one_out.cross(basis.Z, Omega)), transposed=True
    )
    S, alone = leave_one_out.directions(R)
    gamma, SR = S.T @ S, (S * R).sum(0)
    nu = np.sqrt(np.maximum(1 - gamma**2, leave_one_out.PARALLEL))
    Q, Z, signs = (X.double().cpu().numpy() for X in (basis.Q, basis.Z, Omega))
    F, E = Q @ S, Z @ S
    samples = (Q * Z).sum(1)[:, None] - F * E + signs * F * SR
    covariance = np.zeros(len(Q))
    for i in range(m):
        for j in range(i):
            if alone[i] and alone[j]:
                covariance += 2 * _change(i, j, F, E, signs, gamma, nu, SR) * _change(j, i, F, E, signs, gamma, nu, SR)
    variance = samples.var(axis=1, ddof=1) / m + np.maximum(covariance, 0) / (m * (m - 1))
    eps = arrays.machine_epsilon(A.dtype)
    rounding = eps * np.sqrt((Y.double() ** 2).mean(1).cpu().numpy())  # of each row's product
    return samples.mean(1), np.hypot(np.sqrt(variance) * leave_one_out.widening(m), rounding)


def _change(
    i: int,
    j: int,
    F: np.ndarray,
    E: np.ndarray,
    signs: np.ndarray,
    gamma: np.ndarray,
    nu: np.ndarray,
    SR: np.ndarray,
) -> np.ndarray:
    """d_ij (n,): what y_j in its basis changes of sample i."""
    f, e = (F[:, j] - gamma[i, j] * F[:, i]) / nu[i, j], (E[:, j] - gamma[i, j] * E[:, i]) / nu[i, j]
    return f * e + signs[:, i] * f * (gamma[i, j] * SR[i] / nu[i, j])
