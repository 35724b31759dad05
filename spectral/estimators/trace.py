"""Traces: tr A from products with random vectors, and tr f(A) by Lanczos quadrature.

Every method draws m vectors and gives a value with a standard error that is widened to Student's interval for m. What the
vectors have to do is in `spectral.estimators.samplers`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spectral.distributed import decided
from spectral.estimators import leave_one_out
from spectral.estimators.budget import Budget, progress_bar, smaller_side, symmetric_operand, vectors_that_fit
from spectral.estimators.checkpoint import Checkpoint, State
from spectral.estimators.diagonal import EXACT, exact_diagonal
from spectral.estimators.samplers import SAMPLERS
from spectral.estimators.shared_out import shared_out
from spectral.estimators.slq import slq
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Operator
from spectral.probes import check_seed
from spectral.results import Estimate, nan
from spectral.schema import POSITIVE, SWITCH, Either, choice, function, integer, number

METHODS = ("auto", *SAMPLERS, "slq")
STATE = Either(EXACT, *(sampler.rule(name) for name, sampler in SAMPLERS.items()))  # of a checkpoint
PROBES = 20  # by default; of fewer than 10 vectors the X methods' errors have long tails
MOST = 10_240  # products with rtol=


def trace(
    A: Any,
    f: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    method: str = "auto",
    probes: int | None = None,
    rtol: float | None = None,
    seed: int = 0,
    budget: Any = None,
    checkpoint: Any = None,
    progress: bool | None = None,
    ranks: str = "data",
    **options: Any,
) -> Estimate:
    """tr A for square A (n, n), or tr f(A) = sum_i f(lambda_i) for symmetric A, with its standard error.

    Cost: `probes` products, n at most; with f those of `slq`. Memory: O(n) for "hutchinson"; see Notes for the others.

    Parameters
    ----------
    A : operator or matrix
        (n, n), or rectangular for its Gram; whatever `as_operator` takes.
    f : callable, optional
        float64 arrays to arrays of the same shape. By default the identity.
    method : str
        "auto", "hutchinson", "hutch++", "xtrace", "xnystrace" or "slq"; see Notes.
    probes : int, optional
        Products, 20 by default; n of them or more give the exact trace, with the identity and stderr 0. Of "slq" its
        probes.
    rtol : float, optional
        The products double, all kept, until stderr <= rtol |value|, the budget ends, n products make the trace exact, or
        there are 10 240 of them; the returned stderr says what was reached.
    seed : int
        0 to 2^64 - 1. Probe i depends on (seed, i) alone.
    budget : int or str, optional
        As in `slq`. Its seconds and epochs are looked at between blocks.
    checkpoint : path, optional
        A file (its folder is made) that is written now and then, and at SIGINT and SIGTERM; the same call goes on to the
        same bits. Of "slq" with rtol each run has a file of its own beside it.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.
    ranks : str
        As in `slq`: whether the ranks of a group share the data, the vectors, or both. Shared out are the columns of a
        block; every rank holds what one process would.
    **options : object
        Of `slq`, with f or method="slq" only.

    Returns
    -------
    Estimate
        stderr includes the rounding of the products, eps ||A||_F, and is widened to Student's interval for the number of
        vectors; lower and upper are nan unless exact. `method` says what was done.

    Raises
    ------
    ValueError
        For products that hold NaN, where "xnystrace" meets a vector with x^T A x < 0 or an A that is not symmetric, for too
        few probes or too small a budget for an error bar, and for a keyword that is none of its values.
    TypeError
        For options of `slq` without f.
    RuntimeError
        For products that come out otherwise when they are made again.

    Notes
    -----
    All methods are unbiased:

    - "hutchinson": mean of z^T A z over signs z.
    - "hutch++": a third of the products find a range Q, a third give tr Q^T A Q, a third Hutchinson's estimate of the rest.
    - "xtrace": the same with every vector in both roles, each left out of its own Q; m = probes / 2 vectors, 4 m n numbers
      of memory.
    - "xnystrace": positive semi-definite A only; Nystrom's approximation, each vector left out once; m = probes, 2 m n
      numbers.
    - "slq": the integral of `slq`; the only method, and the default, with f. With rtol the probes double, or the steps
      where truncation is the larger part of the error.
    - "auto": xnystrace where A is positive semi-definite by construction, else xtrace; hutchinson with fewer than 10
      (xtrace: 20) products or where the vectors would take more than a quarter of the free memory.

    References
    ----------
    - Hutchinson (1990), A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines,
      Commun. Stat. Simul. Comput. 19.
    - Meyer, Musco, Musco, Woodruff (2021), Hutch++: optimal stochastic trace estimation, SOSA.
    - Epperly, Tropp, Webber (2024), XTrace: making the most of every sample in stochastic trace estimation, SIAM J. Matrix
      Anal. Appl. 45.

    Examples
    --------
    >>> e = trace(np.diag([1.0, 2.0, 3.0]))     # three products with the identity
    >>> e.value, e.stderr, e.products
    (6.0, 0.0, 3)
    """
    choice(method, "method", METHODS)
    choice(progress, "progress", (*SWITCH, None))
    if f is not None:
        function(f, "f", "arrays, such as np.log1p")
    if method in SAMPLERS and f is not None:
        raise ValueError(f"method={method!r} estimates tr A; for a function f use method='slq'.")
    if rtol is not None:
        number(rtol, "rtol", "relative tolerance", POSITIVE, 0.01)
    A = as_operator(A)
    if method == "slq" or f is not None:
        if probes is not None:
            options["probes"] = probes
        common = {
            "seed": check_seed(seed),
            "budget": budget,
            "checkpoint": checkpoint,
            "progress": progress,
            "ranks": ranks,
        }
        return _quadrature(A, f or (lambda x: x), rtol, options | common)
    if options:
        raise TypeError(
            f"trace got unknown options {', '.join(options)}; without f it takes probes, rtol, seed, budget, checkpoint."
        )
    (A,) = shared_out(A, ranks, lambda own: (smaller_side(own),))
    wanted = PROBES if probes is None else integer(probes, "probes", "number of products")
    settings = {"trace": method, "probes": probes, "rtol": rtol, "seed": check_seed(seed)}
    targets = {name: _targets(wanted, sampler.cost, rtol) for name, sampler in SAMPLERS.items()}
    run = Checkpoint(checkpoint, A, settings, STATE, targets=targets)
    return _sampled(A, method, wanted, rtol, seed, budget, run, progress)


def _targets(probes: int, cost: int, rtol: float | None) -> list[int]:
    """The numbers of vectors that a run aims at one after the other."""
    targets = [probes // cost]
    while rtol is not None and 0 < targets[-1] < MOST // cost:
        targets.append(min(2 * targets[-1], MOST // cost))
    return targets


def _sampled(
    A: Operator,
    method: str,
    wanted: int,
    rtol: float | None,
    seed: int,
    budget: Any,
    run: Checkpoint,
    progress: bool | None,
) -> Estimate:
    """tr A from vectors drawn until there are enough."""
    n, saved, limit = A.shape[0], run.state or {}, Budget(budget, A, run.before)
    affordable = min(wanted, limit.vectors())
    if saved.get("method") == "exact" or (not saved and n <= affordable):
        return _exact(A, run)
    # of an earlier session: "auto" may mean another with the memory of today
    name = saved.get("method") or (choose(A, int(affordable)) if method == "auto" else method)
    sampler = SAMPLERS[name](A, seed)
    target = saved.get("target", wanted // sampler.cost)
    if target < 2:
        raise ValueError(f"probes={wanted} gives no error bar with {name!r}; use probes >= {2 * sampler.cost}.")
    limit.announce(wanted)
    if saved:
        sampler.resume(saved)
        if sampler.m:
            run.prove(sampler.known_product())
            limit = Budget(budget, A, run.before)  # that product is none of the run's
    most = MOST // sampler.cost

    def state() -> State:
        return {"method": name, "target": target, **sampler.state()}

    drawn = state()  # a block that a signal cuts off is drawn again
    with progress_bar(target * sampler.cost, "trace", progress) as bar, run.guard(lambda: drawn):
        while True:
            while sampler.m < target and (room := limit.vectors_now(sampler.cost)) > 0:
                block = A.teams if limit.epochs < np.inf else leave_one_out.block_of(A)
                block = int(max(1, min(block, target - sampler.m, room)))
                sampler.add(block)
                drawn = state()
                run.stepped(end=sampler.m >= target)
                bar.update(block * sampler.cost)
            if sampler.m < 2:
                raise ValueError(
                    f"budget={budget!r} allows fewer than the {2 * sampler.cost} products of two vectors; raise it."
                )
            value, stderr = sampler.estimate()
            if rtol is None or stderr <= rtol * abs(value) or sampler.m < target or target >= most:
                return Estimate(value, stderr, nan, nan, sampler.m, run.spent.products, name)
            if 2 * target * sampler.cost >= n <= limit.vectors_now(1):
                break
            target = min(2 * target, most)
    run.state = None
    return _exact(A, run)


def choose(A: Operator, products: int) -> str:
    """What "auto" means for A and so many products."""
    fits = 2 * products <= vectors_that_fit(A, A.shape[0])
    if A.nonnegative and products >= 10 and fits:
        return "xnystrace"
    return "xtrace" if products >= 20 and fits else "hutchinson"


def _exact(A: Operator, run: Checkpoint) -> Estimate:
    value = float(exact_diagonal(A, None, run).sum())
    return Estimate(value, 0.0, value, value, A.shape[0], run.spent.products, "exact")


def _quadrature(
    A: Operator, f: Callable[[np.ndarray], np.ndarray], rtol: float | None, options: dict[str, Any]
) -> Estimate:
    """tr f(A) by `slq` with these options; with rtol probes double, or steps where truncation is the larger part of the error."""
    op, _, _ = shared_out(A, options["ranks"], symmetric_operand)
    limit, file, seed = Budget(options["budget"], op), options["checkpoint"], options["seed"]
    spectrum = slq(A, **options)
    e, spent, drawn, runs = spectrum.integrate(f), spectrum.products, 0, 1
    while rtol is not None and e.stderr > rtol * abs(float(e)):
        options = {"steps": 100, **options}
        deeper = spectrum.truncation(f) > rtol * abs(float(e)) / 2 and options["steps"] < op.shape[0]
        probes, room = len(spectrum.nodes), limit.products - spent
        if room < 1 or decided(op, limit.exhausted()) or 2 * probes * options["steps"] > MOST * 100:
            break
        if room < np.inf:
            options["budget"] = room
        if file is not None:  # every run has a file of its own
            options["checkpoint"] = Path(file).with_name(f"{Path(file).name}.{runs}")
        runs += 1
        if deeper:
            options["steps"] *= 2
            spectrum = slq(A, **options)
            spent += spectrum.products
        else:
            drawn += 1
            fresh = int(np.random.SeedSequence([seed, drawn]).generate_state(1, np.uint64)[0])
            more = slq(A, **{**options, "seed": fresh, "probes": probes})
            spent += more.products
            spectrum = spectrum.merge(more)
        e = spectrum.integrate(f)
    return Estimate(e.value, e.stderr, e.lower, e.upper, e.probes, spent, "slq")
