"""Traces: Hutchinson's estimator of tr A, and tr f(A) by Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import t as student

from spectral import arrays
from spectral.estimators import effort
from spectral.estimators.slq import slq
from spectral.operators.views import as_operator
from spectral.probes import probe
from spectral.results import Estimate, nan

METHODS = ("auto", "hutchinson", "slq")
MOST = 10_000  # probes with rtol=


def trace(
    A: Any,
    f: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    method: str = "auto",
    probes: int | None = None,
    rtol: float | None = None,
    seed: int = 0,
    budget: Any = None,
    progress: bool | None = None,
    **options: Any,
) -> Estimate:
    """tr A for square A (n, n), or tr f(A) = sum_i f(lambda_i) for symmetric A.

    "hutchinson" (f=None): the mean of z^T A z over `probes` (default 10) sign vectors, one product each, unbiased; stderr is
    the sample standard error. rtol: probes are added, from 10 on, until stderr <= rtol |mean|, the budget ends, or there are
    10 000 of them: of a trace near 0 no relative error is met, and the returned stderr says what was.
    "slq" (any f): `spectral.slq` with its options; the default with f. Nothing is certified: lower and upper are nan.
    A rectangular operator means its Gram. Source: Hutchinson (1990).

    >>> float(trace(np.diag([1.0, 2.0, 3.0])))     # signs have no variance on a diagonal matrix
    6.0
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is no method; use one of {', '.join(METHODS)}.")
    if method == "hutchinson" and f is not None:
        raise ValueError("method='hutchinson' estimates tr A; for a function f use method='slq'.")
    if method == "slq" or f is not None:
        if probes is not None:
            options["probes"] = probes
        if rtol is not None:
            raise ValueError(
                "rtol= works with method='hutchinson'; for tr f(A) raise probes= and steps=, or give tol=."
            )
        return slq(A, seed=seed, budget=budget, progress=progress, **options).integrate(f or (lambda x: x))
    if options:
        raise TypeError(
            f"trace got unknown options {', '.join(options)}; with f=None it takes probes, rtol, seed, budget."
        )
    return _hutchinson(A, probes, rtol, seed, budget, progress)


def _hutchinson(
    A: Any, probes: int | None, rtol: float | None, seed: int, budget: Any, progress: bool | None
) -> Estimate:
    A = as_operator(A)
    A = A.gram() if A.shape[0] != A.shape[1] or not A.self_map else A
    wanted = 10 if probes is None else probes
    if isinstance(wanted, bool) or not isinstance(wanted, int | np.integer) or wanted < 2:
        raise ValueError(f"probes={probes!r} gives no error bar; use an integer >= 2.")
    if rtol is not None and not rtol > 0:
        raise ValueError(f"rtol={rtol!r} is no relative tolerance; use a positive number, such as 0.01.")
    limit, before = effort.Budget(budget, A), A.products
    values: list[float] = []
    A.expect(wanted)
    with effort.bar(wanted, "trace", progress) as shown:
        while len(values) < (wanted if rtol is None else MOST):
            if rtol is not None and len(values) >= wanted and _stderr(values) <= rtol * abs(float(np.mean(values))):
                break
            if len(values) >= 2 and limit.exhausted():
                break
            z = probe(seed, len(values), A.shape[0], kind="rademacher", dtype=A.dtype, device=A.device)
            values.append(arrays.dot(z, A @ z))
            shown.update(1)
    if not np.isfinite(values).all():
        raise ValueError(f"the products of {A!r} hold NaN or infinity; check the operator with A.adjoint_error().")
    return Estimate(float(np.mean(values)), _stderr(values), nan, nan, len(values), A.products - before)


def _stderr(values: list[float]) -> float:
    """Standard error of the mean, widened so that +- 1.96 of it is Student's 95 % interval for this many probes."""
    m = len(values)
    return float(np.std(values, ddof=1) / np.sqrt(m) * student.ppf(0.975, m - 1) / 1.959964)
