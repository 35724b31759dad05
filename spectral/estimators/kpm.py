"""The kernel polynomial method: Chebyshev moments of the spectrum, and what they determine.

Legend: K probes, M moments, X evaluation points; h the half width of the interval, t = (x - c) / h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
from numpy.polynomial.chebyshev import chebvander

from spectral.distributed import decided
from spectral.estimators.budget import Budget, environment, progress_bar, symmetric_operand
from spectral.estimators.probe_run import ProbeRun
from spectral.estimators.shared_out import shared_out
from spectral.krylov.chebyshev import Chebyshev, ChebyshevRecord, bounds, centre, jacobi, rescaled
from spectral.krylov.lanczos import Lanczos, LanczosRecord
from spectral.probes import check_seed
from spectral.quadrature import gauss
from spectral.quadrature.beta import pooled_variance
from spectral.results import Density
from spectral.schema import FRACTION, choice, integer, number, pair, reals
from spectral.spectrum import Spectrum, hold_eigenvalues

Interval = tuple[float, float]
POINTS = 400
SOUGHT = "the budget ended while the interval was sought; raise budget=, or use recurrence='lanczos'."
BOUND_STEPS, BOUND_SHARE = 20, 4  # Lanczos steps for the interval: at least so many, and a quarter of those of a probe
WIDER = 0.005  # of the width, on both sides, at least, where an eigenvalue was found outside; twice that the next time


def kpm(
    A: Any,
    *,
    probes: int = 4,
    moments: int = 200,
    seed: int = 0,
    interval: Sequence[float] | None = None,
    recurrence: str = "lanczos",
    budget: Any = None,
    checkpoint: Any = None,
    progress: bool | None = None,
    ranks: str = "data",
) -> Spectrum:
    """The spectrum of symmetric A (n, n) from Chebyshev moments, the kernel polynomial method without its damping.

    mu_j = <g, T_j((A - c) / h) g> of `probes` Gaussian vectors g, on the interval c - h to c + h. Each probe becomes its
    Gauss rule, exact for polynomials of degree < `moments`. `jackson` draws the damped density.

    Cost: two moments a product, so `moments` / 2 products a probe (rounded up, at most n). Memory: no basis; four vectors
    of length n by "lanczos", three by "chebyshev".

    Parameters
    ----------
    A : operator or matrix
        (n, n) symmetric, or rectangular for its Gram on the smaller side; whatever `as_operator` takes. Known zeros of a
        Gram are carried exactly.
    probes : int
        Gaussian vectors.
    moments : int
        Of each probe.
    seed : int
        0 to 2^64 - 1. Probe i depends on (seed, i) alone.
    interval : (float, float), optional
        (low, high) that holds the spectrum. By default it is found.
    recurrence : str
        "lanczos": spectrum-adaptive, the moments come from the Lanczos matrix of each probe and the interval is chosen
        afterwards. "chebyshev": the moments themselves, and dots that nothing waits for; see Notes. Gaps in the spectrum
        call for "lanczos".
    budget : int or str, optional
        A number of products, or "10min", "50epochs", ..., as in `slq`.
    checkpoint : path, optional
        A file (its folder is made), saved every few seconds and at SIGINT and SIGTERM. The same call goes on from it to the
        same bits, with more `probes` too. Lanczos steps for the interval are kept once they are done.
    progress : bool, optional
        A progress bar on stderr; by default only on a terminal.
    ranks : str
        As in `slq`: "probes" and "both" share out the probes. The interval is sought by the first rank (or team), and with a
        budget the first probe is made before the others.

    Returns
    -------
    Spectrum
        By method "kpm"; `meta` holds the moments, the interval and what was made.

    Raises
    ------
    ValueError
        For a square operator that is not symmetric (two products tell where nobody knows) or is empty, a keyword that is
        none of its values, an interval outside of which an eigenvalue shows itself, a budget that ends while the interval
        is sought, and a checkpoint that is damaged or of another operator, seed or setting.
    RuntimeError
        For products that come out otherwise when they are made again.

    Notes
    -----
    recurrence="chebyshev": the interval comes from at least 20 Lanczos steps more, and moments that grow restart a probe on
    a wider one, as `meta["restarts"]` counts. These moments know no more of the Gauss rule than their rounding leaves:
    `meta["kept_steps"]` of `meta["made_steps"]` survive (`meta["stops"]` then says "rounding"), and bounds are as wide as
    the kept ones leave them. Where a gap takes a share of the interval, how few is in `spectral.krylov.chebyshev.jacobi`.

    recurrence="lanczos" keeps no basis: once a Ritz value has converged (20 steps are enough), the last bits of products,
    which other ranks, batches and engines round otherwise, are the first digits of the coefficients that follow. Sums of
    smooth functions keep all digits, others agree within their stated errors; what has none, such as a condition number,
    may move by more.

    References
    ----------
    - Weisse, Wellein, Alvermann, Fehske (2006), The kernel polynomial method, Rev. Mod. Phys. 78.
    - Chen (2023), A spectrum adaptive kernel polynomial method, J. Chem. Phys. 159.
    - The recurrences: `spectral.krylov.chebyshev`.

    Examples
    --------
    >>> s = kpm(2 * np.eye(50))
    >>> s.products, float(s.integrate(np.log).value)      # one step a probe: log det 2I = 50 log 2
    (4, 34.6573590279972...
    """
    op, zeros, dim = shared_out(A, ranks, symmetric_operand)
    for name, value in (("probes", probes), ("moments", moments)):
        integer(value, name, f"number of {name}")
    choice(recurrence, "recurrence", ("lanczos", "chebyshev"))
    given = None if interval is None else finite_interval(interval)
    steps = min(-(-moments // 2), op.shape[0])
    settings = {
        "estimator": "kpm", "seed": check_seed(seed), "recurrence": recurrence, "steps": steps, "interval": given,
    }  # fmt: skip
    run = ProbeRun(checkpoint, op, settings, probes, least=steps, most=steps)
    limit = Budget(budget, op, run.checkpoint.before)
    limit.announce(probes * steps)
    left = (probes - len(run.records) - len(run.attempts)) * steps
    with run.guard(), progress_bar(max(left, 0), "kpm", progress) as bar:
        draw = _lanczos if recurrence == "lanczos" else _chebyshev
        records, about = draw(run, steps, limit, bar, probes, given)
    products, epochs, _ = run.checkpoint.counted
    meta = {
        **environment(op, run.matrix),
        "seed": int(seed),
        "probes": len(records),
        "moments": moments,
        "recurrence": recurrence,
        "damping": "none",
        **about,
        "stop": "probes" if len(records) >= probes else "budget",
        "stops": [record.stop for record in records],
        "kept_steps": [record.steps for record in records],
    }
    return Spectrum.from_records(records, dim, zeros=zeros, products=products, epochs=epochs, method="kpm", meta=meta)


def finite_interval(interval: Any) -> Interval:
    """What was given as an interval, as two numbers; one sentence for anything else."""
    ends = np.array(pair(interval), float)
    if not np.isfinite(ends).all() or not ends[0] < ends[1]:
        raise ValueError(f"interval={interval!r} is no interval; use two finite numbers, low < high.")
    return float(ends[0]), float(ends[1])


def _outside(given: Interval) -> ValueError:
    return ValueError(
        f"interval={given} does not hold the spectrum: an eigenvalue lies outside; widen it, or leave it out to have it found."
    )


def _lanczos(
    run: ProbeRun, steps: int, limit: Budget, bar: Any, probes: int, given: Interval | None
) -> tuple[list[LanczosRecord], dict[str, Any]]:
    """Records by Lanczos without a basis, and their moments on an interval chosen afterwards."""
    records = run.records

    def probe(index: int, left: Budget) -> LanczosRecord:
        state = run.begin(index, lambda start: run.lanczos(start, steps))
        return state.record(seed=run.seed, index=index, stop=run.follow(left, bar))

    while len(records) < probes and not (records and run.recurrence is None and limit.exhausted()):
        each = records[0].steps if records else steps
        for record in run.side_by_side(len(records), probes, each, limit, bar, probe):
            if given is not None:  # Ritz values lie within the spectrum
                theta, slack = record.eigen[0], 8 * gauss.epsilon(record) * np.abs(record.eigen[0]).max()
                if decided(run.op, bool(theta[0] < given[0] - slack or theta[-1] > given[1] + slack)):
                    raise _outside(given)
            run.finish(record)
    interval = given or decided(run.op, bounds(records))
    return records, {
        "interval": list(interval),
        "interval_from": "given" if given else "Ritz values and residuals",
        "restarts": 0,
        "made_steps": [record.steps for record in records],
        "chebyshev_moments": [moments_of(record, interval, 2 * steps).tolist() for record in records],
    }


def _chebyshev(
    run: ProbeRun, steps: int, limit: Budget, bar: Any, probes: int, given: Interval | None
) -> tuple[list[LanczosRecord], dict[str, Any]]:
    """Records by the modified Chebyshev algorithm from moments on an interval found before, widened where they grow."""
    interval, source = given or (0.0, 0.0), "given"
    if given is None:
        interval, steps, source = _find_interval(run, steps, limit, bar)
    done: list[ChebyshevRecord] = []
    restarts = tried = 0

    def attempt(index: int, left: Budget) -> ChebyshevRecord:
        state = run.begin(index, lambda start: Chebyshev(run.op, start, steps, interval))
        state.limit = steps
        if state.interval != interval:
            raise run.checkpoint.damaged("its interval is not that of the run")
        return state.record(seed=run.seed, index=index, stop=run.follow(left, bar))

    while len(done) < probes:
        if tried == len(run.attempts):
            if done and run.recurrence is None and limit.exhausted():
                break
            for record in run.side_by_side(len(done), probes, steps, limit, bar, attempt):
                run.finish(record)
                if record.stop == "outside":
                    break  # those beside it were made on an interval that is too small
        record, tried = run.attempts[tried], tried + 1
        if record.stop != "outside":
            done.append(record)
            continue
        if given is not None:
            raise _outside(given)
        if limit.exhausted() and tried == len(run.attempts):
            raise ValueError(SOUGHT)
        low, high = decided(run.op, bounds([jacobi(record)]))
        margin = WIDER * 2**restarts * (interval[1] - interval[0])
        interval, restarts = (min(low, interval[0] - margin), max(high, interval[1] + margin)), restarts + 1
    return [jacobi(record) for record in done], {
        "interval": list(interval),
        "interval_from": source,
        "restarts": restarts,
        "made_steps": [record.steps for record in done],
        "chebyshev_moments": [
            (rescaled(r.moments, r.interval, interval) if r.interval != interval else r.moments).tolist() for r in done
        ],
    }


def _find_interval(run: ProbeRun, steps: int, limit: Budget, bar: Any) -> tuple[Interval, int, str]:
    """(interval, steps, how) from a few Lanczos steps on the first probe; as many steps as its invariant subspace has are enough.

    Every Gaussian probe has the Krylov dimension of the first, the number of distinct eigenvalues, almost surely.
    """
    if not run.records:
        few = max(BOUND_STEPS, steps // BOUND_SHARE)
        state = Lanczos(run.op, run.start(0), few, reorthogonalize=False, overwrite=True)
        while not state.ended and not limit.exhausted():
            state.step()
            bar.update(1)
        if limit.exhausted():
            raise ValueError(SOUGHT)
        run.finish(state.record(seed=run.seed, index=0))
    record = run.records[0]
    enough = min(steps, record.steps) if record.betas[-1] == 0 else steps
    return decided(run.op, bounds([record])), enough, f"{record.steps} Lanczos steps"


def moments_of(record: LanczosRecord, interval: Interval, count: int) -> np.ndarray:
    """mu_0 = 1, ..., mu_{count - 1} of a record's probe on `interval`: e_1^T T_j((T - c) / h) e_1, without a product (Chen 2023).

    Of k steps the first 2k are those of the probe, and only those are given, unless the record is exact.
    """
    c, h = centre(interval)
    theta, omega, _ = gauss.gauss_rule(record)
    known = count if record.betas[-1] == 0 else min(count, 2 * record.steps)
    return omega @ chebvander((theta - c) / h, known - 1)


def jackson(spectrum: Spectrum, x: Any = None, *, moments: int | None = None, confidence: float = 0.95) -> Density:
    """The density damped by Jackson's kernel: a picture, nowhere negative.

    sum_j g_j mu_j T_j(t) / (pi h sqrt(1 - t^2)) with t = (x - c) / h, mu_j the moments and g_j Jackson's coefficients.

    Cost: O(X M) flops for X points and M moments, no product.

    Parameters
    ----------
    spectrum : Spectrum
        Of `kpm`, or any with probes (`slq`), whose records hold moments.
    x : array, optional
        (X,) points, in units of lambda. By default 400 over the interval.
    moments : int, optional
        How many to take, all by default. They are those on `meta["interval"]`, or on an interval around all Ritz values.
    confidence : float
        Of the band at each point.

    Returns
    -------
    Density
        Zero outside the interval; known zeros are left out. `resolution` is pi / (2 M).

    Raises
    ------
    ValueError
        For an exact spectrum, a confidence that is no probability, and moments that are not there.

    Notes
    -----
    The kernel is pi h sqrt(1 - t^2) / M wide: narrow at the ends, where moments resolve most. The value is exact for what
    the probes see through the kernel, so that the band is probe noise alone: sqrt(2 Var / (m r + 2)) for m probes and r
    eigenvalues. Integrals of it are biased; `Spectrum.integrate` has none of this.

    References
    ----------
    Weisse, Wellein, Alvermann, Fehske (2006), The kernel polynomial method, Rev. Mod. Phys. 78, section II.C.

    Examples
    --------
    >>> d = jackson(kpm(np.diag([1.0, 2.0, 3.0])), np.array([0.0, 2.0, 9.0]))
    >>> bool(d.value[0] == d.value[2] == 0 < d.value[1])
    True
    """
    hold_eigenvalues(spectrum, "a density with the noise of probes")
    if not spectrum.records:
        raise ValueError("an exact spectrum has no moments to damp; use Spectrum.density.")
    number(confidence, "confidence", "probability", FRACTION, 0.95)
    interval, mu_KM = _moments(spectrum)
    M = mu_KM.shape[1] if moments is None else integer(moments, "moments", "number of moments", 1, mu_KM.shape[1])
    norms = np.array([record.squared_norm for record in spectrum.records])
    c, h = centre(interval)
    r = spectrum.dim - spectrum.zeros
    g = damping(M) * np.where(np.arange(M) == 0, 1.0, 2.0)
    y = np.cos(np.pi * (np.arange(2 * M) + 0.5) / (2 * M))  # the damped measure on 2 M nodes: exact to degree 4 M - 1
    mass = np.maximum(chebvander(y, M - 1) @ (g * (norms @ mu_KM[:, :M] / norms.sum())) / (2 * M), 0.0)
    nodes = c + h * np.cos(np.pi * (POINTS - np.arange(POINTS) - 0.5) / POINTS)
    points = nodes if x is None else reals(x, "x", "point")
    t = (points.reshape(-1) - c) / h
    inside = np.abs(t) < 1
    value, variance = np.zeros(len(t)), np.zeros(len(t))
    V = chebvander(t[inside], M - 1)
    root = np.pi * h * np.sqrt(1 - t[inside] ** 2)
    value[inside] = V @ (g * (norms @ mu_KM[:, :M] / norms.sum())) / root
    K = (V * g) @ chebvander(y, M - 1).T / root[:, None]
    variance[inside] = np.maximum(K**2 @ mass - (K @ mass) ** 2, 0.0)
    noise = float(scipy.special.ndtri((1 + confidence) / 2)) * np.sqrt(pooled_variance(len(norms), r, variance))
    share = r / spectrum.dim
    return Density(
        points.reshape(-1),
        value * share,
        np.maximum(value - noise, 0.0) * share,
        (value + noise) * share,
        np.pi / (2 * M),
        "linear",
        1 - share,
    )


def damping(count: int) -> np.ndarray:
    """Jackson's damping factors g_0 = 1, ..., g_{M-1}, (M,): M moments damped by them give a density that is nowhere negative.

    The kernel is about pi / M wide in arccos(x), which biases integrals: for pictures alone. Weisse et al. (2006), eq. 71.
    """
    M, j = count, np.arange(count)
    angle = np.pi / (M + 1)
    return np.asarray(((M - j + 1) * np.cos(angle * j) + np.sin(angle * j) / np.tan(angle)) / (M + 1))


def _moments(spectrum: Spectrum) -> tuple[Interval, np.ndarray]:
    """The interval and the moments (K, M) on it, those that all probes have."""
    kept = spectrum.meta.get("chebyshev_moments", [])
    if len(kept) == len(spectrum.records):
        low, high = spectrum.meta["interval"]
    else:  # of another estimator, or merged
        low, high = bounds(spectrum.records)
        low, high = min(low, float(spectrum.nodes.min())), max(high, float(spectrum.nodes.max()))
        most = 2 * max(record.steps for record in spectrum.records)
        kept = [moments_of(record, (low, high), most) for record in spectrum.records]
    count = min(map(len, kept))
    return (low, high), np.array([m[:count] for m in kept])
