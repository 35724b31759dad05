"""How long until the spectral density of a network's Gauss-Newton matrix is within 2e-5 of lambda_max, in W1?

    PYTHONPATH=/tmp/peers python benchmarks/time_to_accuracy.py [--seeds 3] [--limit 180] [--json FILE]
    python benchmarks/time_to_accuracy.py --table FILE

The matrix is `spectra.network`'s: digits, 2410 parameters; its eigenvalues are known from a dense float64 matrix. Each package
multiplies by its own operator, in float32, on the same module, loss and data, in one batch, which is fastest for all of them;
each clock starts before the operator is built. PyHessian has no Gauss-Newton matrix: its quadrature gets the
fastest product of the others. `spectral.slq(A, tol=2e-5)` does not know the eigenvalues and has no limit of time: it stops
when its stated error says so. The others state no error, so everything is decided in their favour with the eigenvalues at
hand: they take the number of steps that serves best (from a pilot on the dense matrix, not timed), add probe after probe, are
looked at with the clock stopped, and end when their error first touches the target. Their quadrature nodes count, not the
smoothed density. The quadrature whose probe is fastest in a trial has --limit seconds; the others a tenth of it, and the time
that they would need is extrapolated. All eigenvalues of the matrix assembled column by column stand beside them: at this size
that is a rival too. All run in turn, seed by seed, in one process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import environment, watched
from models import Workload, build
from peers import PEERS, present
from scipy.linalg import eigh_tridiagonal
from spectra import RULES, Known, Matrix, dense_gauss_newton, network

import spectral

TARGET = 2e-5  # W1 over lambda_max
DEPTHS = (20, 30, 40, 60, 80, 120, 160, 240, 320, 480)
PILOT = 64  # probes
GROWTH = 1.02  # probes between looks
OWN = f"spectral, slq(tol={TARGET:g})"
TRIALS = 5  # probes of a trial, the fastest counts
COLUMNS = 64  # of a block of the identity
Record = dict[str, Any]


# The pilot -----------------------------------------------------------------------------------------------------------
def pilot(G: torch.Tensor, known: Known) -> dict[int, tuple[float, float]]:
    """{steps: (error that no number of probes removes, probes' noise of one product)} of plain Lanczos quadrature, estimated.

    PILOT Gaussian probes at once on the dense matrix. Their noise is their error at the largest depth, and falls with the root of
    their number; what fewer steps add to the error of the same probes stays.
    """
    n, generator = len(G), torch.Generator().manual_seed(0)
    V = torch.randn(n, PILOT, dtype=G.dtype, generator=generator)
    V, before, beta = V / V.norm(dim=0), torch.zeros_like(V), torch.zeros(PILOT, dtype=G.dtype)
    alphas, betas = [], []
    for _ in range(max(DEPTHS)):
        W = G @ V - beta * before
        alphas.append((W * V).sum(0))
        W -= alphas[-1] * V
        beta = W.norm(dim=0)
        betas.append(beta)
        before, V = V, W / beta
    a, b = torch.stack(alphas).numpy(), torch.stack(betas).numpy()

    def pooled(k: int) -> tuple[np.ndarray, np.ndarray]:
        rules = [eigh_tridiagonal(a[:k, j], b[: k - 1, j]) for j in range(PILOT)]
        return np.concatenate([x for x, _ in rules]), np.concatenate([S[0] ** 2 for _, S in rules]) / PILOT

    deepest = pooled(max(DEPTHS))
    noise = known.error(*deepest)
    order = np.argsort(deepest[0])
    limit = Known("pilot", "", deepest[0][order], known.operator)
    found = {}
    for k in DEPTHS[:-1]:
        nodes, weights = pooled(k)
        x = np.sort(np.concatenate([limit.values, nodes]))
        gap = _cdf(x, limit.values, deepest[1][order]) - _cdf(x, *_sorted(nodes, weights))
        cut = float(np.abs(gap[:-1]) @ np.diff(x)) / known.range
        found[k] = (cut, noise * (PILOT * k) ** 0.5)
    return found


def best_steps(guess: dict[int, tuple[float, float]], affordable: float) -> tuple[int, str]:
    """The steps that reach TARGET with fewest products, or, if none does with `affordable` ones, come nearest; and why."""
    needed = {k: (noise / (TARGET - cut)) ** 2 for k, (cut, noise) in guess.items() if cut < TARGET}
    if needed and min(needed.values()) <= affordable:
        steps = min(needed, key=lambda k: needed[k])
        return steps, f"{steps} steps a probe meet the target soonest, with about {needed[steps]:.0f} products"
    reached = {k: float(np.hypot(cut, noise / affordable**0.5)) for k, (cut, noise) in guess.items()}
    steps = min(reached, key=lambda k: reached[k])
    least = f"{min(needed.values()):.0f}" if needed else "more than any tried"
    return steps, (
        f"the target needs about {least} products and the limit allows {affordable:.0f}; {steps} steps a probe come nearest"
    )


def _sorted(nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(nodes)
    return nodes[order], weights[order]


def _cdf(x: np.ndarray, nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.append(0.0, np.cumsum(weights))[np.searchsorted(nodes, x, side="right")]


# Runs ----------------------------------------------------------------------------------------------------------------
def ours(work: Workload, known: Known, seed: int) -> Record:
    """Until its own stated error meets TARGET; no limit, since a budget would change what the run does."""
    begin = time.perf_counter()
    A = spectral.GaussNewton(work.model, work.loss, work.data)
    s = spectral.slq(A, tol=TARGET, seed=seed, progress=False)
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds, "products": s.products, "error": known.error_of(s),
        "met": s.meta["stop"] in ("tolerance", "exact"),
        "stated": s.meta["error"]["w1_95"], "stop": s.meta["stop"], "probes": len(s.records), "atoms": len(s.atoms.values),
        "steps": [record.steps for record in s.records],
    }  # fmt: skip


def theirs(name: str, factor: str, work: Workload, known: Known, seed: int, steps: int, limit: float) -> Record:
    """Probe after probe of `steps` steps, by `factor`'s product, until the true error touches TARGET or `limit` seconds end."""
    begin = time.perf_counter()
    A = Matrix(PEERS[factor].product(work, "GaussNewton"), work.parameters, torch.float32)
    elapsed, look, error = time.perf_counter() - begin, 1, float("nan")
    nodes: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    trace: list[tuple[float, int, float]] = []
    while not error <= TARGET and elapsed < limit:
        begin = time.perf_counter()
        x, w = RULES[name].rule(A, steps, 1_000_000 * seed + len(nodes))
        elapsed += time.perf_counter() - begin
        nodes.append(x)
        weights.append(w / w.sum())
        if len(nodes) >= look or elapsed >= limit:
            look = int(GROWTH * len(nodes)) + 1
            error = known.error(np.concatenate(nodes), np.concatenate(weights))
            trace.append((elapsed, A.products, error))
    return {
        "seconds": elapsed, "products": A.products, "error": error, "met": error <= TARGET, "probes": len(nodes),
        "steps": steps, "trace": trace,
    }  # fmt: skip


def fastest(work: Workload, peers: list[str]) -> tuple[dict[str, str], str, float]:
    """({quadrature: whose product it takes}, the quadrature whose probe is fastest, its seconds a product), by trials."""
    steps, seconds = DEPTHS[2], {}
    for name in peers:
        for factor in [name] if "GaussNewton" in PEERS[name].matrices else [p for p in peers if p != name]:
            A = Matrix(PEERS[factor].product(work, "GaussNewton"), work.parameters, torch.float32)
            seconds[name, factor] = min(_seconds(RULES[name].rule, A, steps, k) for k in range(TRIALS))
            print(f"{steps} steps of {name} with the product of {factor}: {seconds[name, factor] * 1e3:.1f} ms")
    best = min(seconds, key=lambda pair: seconds[pair])
    ranked = sorted(seconds, key=lambda pair: -seconds[pair])
    return dict(ranked), best[0], seconds[best] / steps


def _seconds(rule: Callable[..., Any], *given: Any) -> float:
    begin = time.perf_counter()
    rule(*given)
    return time.perf_counter() - begin


def assembled(name: str, work: Workload, known: Known) -> Record:
    """All eigenvalues: the products with the identity in blocks, then LAPACK in float64."""
    begin = time.perf_counter()
    if name == "spectral":
        s = spectral.exact(spectral.GaussNewton(work.model, work.loss, work.data))
        values, products = s.points()[0], s.products
    else:
        product, products = PEERS[name].product(work, "GaussNewton"), work.parameters
        width = COLUMNS if PEERS[name].blocks else 1
        blocks = torch.eye(work.parameters).split(width, dim=1)
        G = (
            torch.cat([product(E if width > 1 else E[:, 0].contiguous()).reshape(len(E), -1) for E in blocks], 1)
            .detach()
            .double()
        )
        values = torch.linalg.eigvalsh((G + G.T) / 2).numpy()
    seconds = time.perf_counter() - begin
    error = known.error(values, np.ones(len(values)))
    return {"seconds": seconds, "products": products, "error": error, "met": error <= TARGET}


# The table -----------------------------------------------------------------------------------------------------------
def line(r: Record) -> str:
    """What one run did."""
    said = "" if r["met"] else " NOT MET,"
    stated = f", stated {r['stated']:.1e} ({r['stop']}, {r['atoms']} atoms)" if "stated" in r else ""
    probes = f", {r['probes']} probes" if "probes" in r else ""
    return f"{r['seconds']:8.2f} s,{said} {r['products']} products{probes}, error {r['error']:.1e}{stated}"


def table(stored: Record) -> str:
    """Markdown: seconds, products and errors as medians (range) over seeds, and the ratio to ours run by run."""
    rows: dict[str, list[Record]] = stored["runs"]
    own = rows[OWN]
    about = stored["environment"]
    lines = [
        ", ".join(f"{key} {about[key]}" for key in ("date", "cpu", "threads", "torch", "commit") if key in about)
        + (f"; others kept {stored['others']:.2f} cores busy." if "others" in stored else "."),
        "",
        "| | seconds | products | W1 reached | met | times ours |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in rows.items():
        bound = "" if all(r["met"] for r in runs) else "> "
        ratios = [r["seconds"] / o["seconds"] for r, o in zip(runs, own, strict=False)]
        cells = [
            bound + spread([r["seconds"] for r in runs], ".1f"),
            f"{statistics.median(r['products'] for r in runs):.0f}",
            spread([r["error"] for r in runs], ".1e"),
            f"{sum(r['met'] for r in runs)} of {len(runs)}",
            bound + spread(ratios, ".2f"),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", *([f"Pilot: {stored['why']}.", ""] if "why" in stored else [])]
    for name, runs in rows.items():
        if missed := [r for r in runs if not r["met"] and r["seconds"] > 0]:
            more = statistics.median(r["seconds"] * max(r["error"] / TARGET, 1.0) ** 2 for r in missed)
            reached = spread([r["error"] for r in missed], ".1e")
            lines.append(
                f"- {name}: not met in {missed[0]['seconds']:.0f} s, reached {reached}; an error that falls with the root of "
                f"the time, as that of probes does, would need about {more:.0f} s."
            )
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


# The command ---------------------------------------------------------------------------------------------------------
def warmed(work: Workload, G: torch.Tensor, peers: list[str]) -> None:
    """One run of everything on a tiny model, so that late imports are not timed; then every product is held against G."""
    tiny = build("tiny")
    spectral.slq(spectral.GaussNewton(tiny.model, tiny.loss, tiny.data), tol=0.1, progress=False)
    v = torch.randn(work.parameters)
    truth = G @ v.double()
    products: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "spectral": spectral.GaussNewton(work.model, work.loss, work.data).__matmul__
    }
    for name in peers:
        RULES[name].rule(Matrix(PEERS[name].product(tiny, "GaussNewton"), tiny.parameters, torch.float32), 2, 0)
        products[name] = PEERS[name].product(work, "GaussNewton")
    for name, product in products.items():
        wrong = float((product(v).double() - truth).norm() / truth.norm())
        print(f"product of {name}: relative error {wrong:.0e}")
        if not wrong < 1e-4:
            raise SystemExit(f"{name} multiplies by another matrix (relative error {wrong:.0e}); nothing is compared.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for a run of the fastest other quadrature")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the network is small")
    parser.add_argument("--no-peers", action="store_true", help="spectral alone")
    parser.add_argument("--json", metavar="FILE", help="write the numbers and the environment here")
    parser.add_argument("--table", metavar="FILE", help="print the table of a stored run and end")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(Path(options.table).read_text())))
        return
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    peers = [] if options.no_peers else present(list(PEERS))
    stored: Record = {"environment": environment([PEERS[n].distribution for n in peers]), "runs": {}}
    work = network()
    work = dataclasses.replace(
        work, data=[(torch.cat([x for x, _ in work.data]), torch.cat([y for _, y in work.data]))]
    )
    rows = prepared(work, peers, options.limit, stored)
    with watched(stored, "others"):
        for seed in range(options.seeds):
            for name, run in rows.items():
                stored["runs"].setdefault(name, []).append(run(seed))
                print(f"seed {seed}  {name:42s} {line(stored['runs'][name][-1])}", flush=True)
                if options.json:
                    Path(options.json).write_text(json.dumps(stored))
    if options.json:
        Path(options.json).write_text(json.dumps(stored))
    print("", table(stored), sep="\n")


def prepared(work: Workload, peers: list[str], limit: float, stored: Record) -> dict[str, Callable[[int], Record]]:
    """The runs by name, each from a seed; what was checked and chosen before is printed and stored."""
    G = dense_gauss_newton(work)
    values = torch.linalg.eigvalsh(G).numpy()
    known = Known("digits", work.about, values, spectral.as_operator(G))
    print(f"{work.about}; n = {len(values)}, lambda_max = {values[-1]:.4g}; target W1 <= {TARGET:g} lambda_max")
    owners = [name for name in peers if "GaussNewton" in PEERS[name].matrices]
    warmed(work, G, owners)
    rows: dict[str, Callable[[int], Record]] = {
        OWN: partial(ours, work, known),
        "spectral, exact": lambda seed: assembled("spectral", work, known),
    }
    if not owners:
        return rows
    guess = pilot(G, known)
    factors, first, seconds = fastest(work, peers)
    steps, why = best_steps(guess, limit / seconds)
    print(f"pilot: {why}")
    stored |= {"pilot": guess, "steps": steps, "why": why, "factors": factors}

    def identity(name: str, seed: int) -> Record:
        return assembled(name, work, known)

    def quadrature(name: str, seed: int) -> Record:
        return theirs(name, factors[name], work, known, seed, steps, limit if name == first else limit / 10)

    for name in owners:
        rows[f"{name}, identity and LAPACK"] = partial(identity, name)
    for name in peers:
        whose = "" if factors[name] == name else f" with {factors[name]}'s product"
        rows[f"{name}, quadrature{whose}"] = partial(quadrature, name)
    return rows


if __name__ == "__main__":
    main()
