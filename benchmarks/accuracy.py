"""How wrong is a spectral density after so many products, and is the stated error true?

    PYTHONPATH=/tmp/peers:/tmp/peers2 python benchmarks/accuracy.py [--matrices outliers digits] [--seeds 5] [--json FILE]
    python benchmarks/accuracy.py --show FILE [FILE ...] --pictures docs/images      # tables and pictures of stored runs

For each matrix of `spectra.py`, whose eigenvalues are known, and each number of products: the W1 error of the CDF over the range
of the spectrum, for `slq` (with and without deflation, and with budget= alone), `kpm` by both recurrences, and for the others'
stochastic Lanczos quadrature at the same number of products, with that number of PROBES (their defaults are among them) whose
median error is least: a choice that takes the true eigenvalues. For those that return a smoothed density, that too, with their
default probes. Median and quartiles over seeds. Then `slq(tol=)`: products taken and error reached. Then, over `--trials` other
seeds at COVERED products: how often the realised error stays below `meta["error"]["w1_95"]`. All matrices take about 20 minutes
of one core; --matrices runs some, and --show puts stored runs together. `product_cost.py` says how others are installed, beside

    python -m pip install --target /tmp/peers2 --no-deps scikit-primate
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import environment
from peers import FAILURES, first_line
from spectra import NAMES, RULES, Known, Matrix, made, present_rules

import spectral

BUDGETS = (25, 50, 100, 200, 400)
PROBES = (1, 4, 10)  # of the others
TOLERANCES = (1e-2, 1e-3)
CEILING = 400  # products that a tolerance may take
COVERED = 100  # products of a trial of coverage
PATIENCE = 20  # times the budget that a package may spend, on the ends of the spectrum say, before it is stopped
MET = ("tolerance", "exact")  # meta["stop"] of a run that has met its tolerance
TABLED = 200  # products of the table
FLOOR = 1e-17  # where an error of 0 is drawn
Record = dict[str, Any]


# Ours ----------------------------------------------------------------------------------------------------------------
def chebyshev(A: Any, products: int, seed: int) -> spectral.Spectrum:
    """Four probes by Chebyshev moments; the interval takes 20 Lanczos steps, or a quarter of a probe's if that is more."""
    steps = max(min((products - 20) // 4, int(products / 4.25)), 1)
    return spectral.kpm(A, probes=4, moments=2 * steps, recurrence="chebyshev", seed=seed, progress=False)


OURS: dict[str, Callable[[Any, int, int], spectral.Spectrum]] = {
    "slq(budget=)": lambda A, p, seed: spectral.slq(A, budget=p, seed=seed, progress=False),
    "slq, 4 probes": lambda A, p, seed: spectral.slq(A, probes=4, steps=p // 4, seed=seed, progress=False),
    "slq, 4 probes, deflate=False": lambda A, p, seed: spectral.slq(
        A, probes=4, steps=p // 4, deflate=False, seed=seed, progress=False
    ),
    "kpm, 4 probes, Lanczos": lambda A, p, seed: spectral.kpm(
        A, probes=4, moments=2 * (p // 4), seed=seed, progress=False
    ),
    "kpm, 4 probes, Chebyshev": chebyshev,
}


def ours(known: Known, method: str, products: int, seed: int) -> tuple[int, float, float]:
    """(products made, error, stated w1_95)."""
    s = OURS[method](known.operator, products, seed)
    return s.products, known.error_of(s), float(s.meta["error"]["w1_95"])


def stated(known: Known, method: str, seeds: int, budget: int) -> Record:
    products, error, said = map(list, zip(*(ours(known, method, budget, k) for k in range(seeds)), strict=True))
    return {"products": products, "error": error, "stated": said}


# Theirs --------------------------------------------------------------------------------------------------------------
def theirs(known: Known, name: str, products: int, probes: int, seed: int) -> tuple[int, float]:
    """(products made, error) of the quadrature nodes of `probes` probes."""
    other = RULES[name]
    A = Matrix(known.operator.__matmul__, len(known.values), known.operator.dtype, limit=PATIENCE * products)
    rules = [other.rule(A, products // probes, 1000 * seed + probe) for probe in range(probes)]
    nodes, weights = (np.concatenate(part) for part in zip(*rules, strict=True))
    return A.products, known.error(nodes, weights / probes)


def smoothed(known: Known, name: str, products: int, seed: int) -> tuple[int, float]:
    """(products made, error) of the density that the package returns."""
    other = RULES[name]
    if other.density is None:
        raise ValueError(f"{name} returns no density.")
    A = Matrix(known.operator.__matmul__, len(known.values), known.operator.dtype, limit=PATIENCE * products)
    return A.products, known.error(*other.density(A, other.probes, max(products // other.probes, 2), seed))


def attempt(measure: Callable[[int], tuple[int, float]], seeds: int) -> Record:
    """Products and errors over seeds, or the failure in the package's words."""
    try:
        products, error = map(list, zip(*map(measure, range(seeds)), strict=True))
    except FAILURES as failure:
        return {"failure": first_line(failure)}
    return {"products": products, "error": error} if np.isfinite(error).all() else {"failure": "a result is not finite"}


def best(known: Known, name: str, seeds: int, budget: int) -> Record:
    """The record with the least median error among PROBES."""
    found = {k: attempt(partial(theirs, known, name, budget, k), seeds) for k in PROBES if budget // k > 1}
    good = {k: r for k, r in found.items() if "error" in r}
    if not good:
        return next(iter(found.values()))
    probes = min(good, key=lambda k: float(np.median(good[k]["error"])))
    return {**good[probes], "probes": probes}


def returned(known: Known, name: str, seeds: int, budget: int) -> Record:
    return attempt(partial(smoothed, known, name, budget), seeds)


# The run -------------------------------------------------------------------------------------------------------------
def curves(known: Known, others: list[str], budgets: list[int], seeds: int) -> list[Record]:
    """A record for each method and budget."""
    measures: dict[str, Callable[[int], Record]] = {m: partial(stated, known, m, seeds) for m in OURS}
    for name in others:
        measures[name] = partial(best, known, name, seeds)
        if RULES[name].density is not None:
            measures[f"{name}, density"] = partial(returned, known, name, seeds)
    records = []
    for method, measure in measures.items():
        for budget in budgets:
            records.append({"method": method, "budget": budget, **measure(budget)})
            print(f"  {method:40s} {budget:5d}  {cell(records[-1])}", flush=True)
    return records


def tolerances(known: Known, seeds: int) -> list[Record]:
    """What slq(tol=) took and reached, with at most CEILING products."""
    records = []
    for tol in TOLERANCES:
        runs = [spectral.slq(known.operator, tol=tol, budget=CEILING, seed=k, progress=False) for k in range(seeds)]
        records.append(
            {
                "method": f"slq(tol={tol:g})",
                "tol": tol,
                "products": [s.products for s in runs],
                "error": [known.error_of(s) for s in runs],
                "stated": [float(s.meta["error"]["w1_95"]) for s in runs],
                "stop": [s.meta["stop"] for s in runs],
            }
        )
        print(f"  {records[-1]['method']:40s} {reached(records[-1])}", flush=True)
    return records


def coverage(known: Known, trials: int) -> list[Record]:
    """Realised and stated errors of our methods at COVERED products, over other seeds than those of the curves."""
    records = []
    for method in OURS:
        found = [ours(known, method, COVERED, 10_000 + seed)[1:] for seed in range(trials)]
        error, stated = map(list, zip(*found, strict=True))
        records.append({"method": method, "error": error, "stated": stated})
        print(f"  {method:40s} {covered(records[-1])}", flush=True)
    return records


# Tables --------------------------------------------------------------------------------------------------------------
def cell(record: Record) -> str:
    """Median (quartiles) of the errors."""
    if "failure" in record:
        return f"fails: {record['failure']}"
    low, middle, high = np.quantile(record["error"], [0.25, 0.5, 0.75])
    return f"{middle:.1e} ({low:.1e}–{high:.1e})"


def shortened(text: str) -> str:
    """A failure in a word; `curves` has printed it in full."""
    return "stopped" if "no result after" in text else "fails" if text.startswith("fails") else text


def covered(record: Record) -> str:
    """The share of trials whose error is within the stated one; the median of stated over realised."""
    error, stated = np.array(record["error"]), np.array(record["stated"])
    ratio = np.median(np.maximum(stated, FLOOR) / np.maximum(error, FLOOR))
    return f"{np.mean(error <= stated + FLOOR):.2f} ({ratio:.1f})"


def reached(record: Record) -> str:
    """Median products, median error; how many runs met the tolerance by their own account, and how many in truth."""
    met = sum(stop in MET for stop in record["stop"])
    true = sum(error <= record["tol"] for error in record["error"])
    runs = len(record["error"])
    middle = f"{np.median(record['products']):.0f} products, {np.median(record['error']):.1e}"
    return f"{middle}; said to be met {met}, truly met {true} of {runs}"


def table(stored: Record) -> str:
    """Markdown: the errors at TABLED products, then coverage; a row for each method, a column for each matrix."""
    names = list(stored["matrices"])
    text = []
    for key, show, title in (
        ("curves", cell, f"W1 error over the range at {TABLED} products, median (quartiles) over seeds"),
        (
            "coverage",
            covered,
            f"Realised error within w1_95 at {COVERED} products: share of trials (median of stated / realised)",
        ),
        ("tolerances", reached, f"Until the stated error is below tol, at most {CEILING} products"),
    ):
        chosen = {
            (name, r["method"]): show(r)
            for name in names
            for r in stored["matrices"][name].get(key, [])
            if r.get("budget", TABLED) == TABLED
        }
        lines = [f"{title}:", "", "| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        for method in dict.fromkeys(method for _, method in chosen):
            cells = (shortened(chosen.get((n, method), "–")) for n in names)
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        text += [*lines, ""]
    return "\n".join(text)


# Pictures ------------------------------------------------------------------------------------------------------------
INK = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00")  # Okabe and Ito's, told apart by all eyes
SHADE = {"curvlinops": ("k", "s"), "hessian-eigenthings": ("0.4", "^"), "PyHessian": ("0.65", "v"),
         "scikit-primate": ("#CC79A7", "x")}  # fmt: skip


def style(method: str) -> dict[str, Any]:
    """Ours solid and in colour, theirs dashed, what they return smoothed dotted."""
    if method in OURS:
        k = list(OURS).index(method)
        return {"color": INK[k], "marker": "o", "ms": 3.5, "lw": 3 if k == 0 else 1.6, "zorder": 5 - k}
    colour, marker = SHADE[method.removesuffix(", density")]
    line = {"ls": ":", "lw": 1, "ms": 2.5} if method.endswith("density") else {"ls": "--", "lw": 1.3, "ms": 4.5}
    return {"color": colour, "marker": marker, **line}


def pictures(stored: Record, folder: Path) -> None:
    """accuracy.png: error against products; accuracy_coverage.png: realised against stated error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for name, draw in (("accuracy", _draw_curves), ("accuracy_coverage", _draw_coverage)):
        figure, axes = plt.subplots(2, 4, figsize=(17, 8.5), layout="constrained")
        for ax, (matrix, found) in zip(axes.flat, stored["matrices"].items(), strict=False):
            ax.set(xscale="log", yscale="log")
            ax.set_title(f"{matrix} (n = {found['n']})", fontsize=12)
            ax.grid(alpha=0.25)
            draw(ax, found)
        for ax in axes.flat[len(stored["matrices"]) :]:
            ax.axis("off")
        labelled = {
            label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        names = sorted(labelled, key=lambda label: (label.endswith("density"), label.startswith("slq(tol=)")))
        axes.flat[-1].legend([labelled[label] for label in names], names, loc="center", fontsize=11, frameon=False)
        figure.savefig(folder / f"{name}.png", dpi=90)
        plt.close(figure)


def _draw_curves(ax: Any, found: Record) -> None:
    for method in dict.fromkeys(r["method"] for r in found["curves"]):
        points = [r for r in found["curves"] if r["method"] == method and "error" in r]
        if not points:
            continue
        x = [r["budget"] for r in points]
        low, middle, high = np.maximum(np.quantile([r["error"] for r in points], [0.25, 0.5, 0.75], axis=1), FLOOR)
        ax.plot(x, middle, label=method, **style(method))
        if not method.endswith("density"):
            ax.fill_between(x, low, high, color=style(method)["color"], alpha=0.15, lw=0)
    met = [r for r in found["tolerances"] if all(stop in MET for stop in r["stop"])]
    if met:
        x, y = ([np.median(r[key]) for r in met] for key in ("products", "error"))
        ax.plot(x, y, "*", color=INK[0], ms=13, mec="k", mew=0.6, zorder=9, label="slq(tol=), where it was met")
    ticks = sorted({r["budget"] for r in found["curves"]})
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.minorticks_off()
    ax.set(xlabel="products allowed", ylabel="W1 error / range")


def _draw_coverage(ax: Any, found: Record) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    values = []
    for record in found["coverage"]:
        error, stated = (np.maximum(record[key], FLOOR) for key in ("error", "stated"))
        colour = style(record["method"])["color"]
        ax.plot(stated, error, "o", ms=4, alpha=0.55, mew=0, color=colour, label=record["method"])
        values += [*error, *stated]
    ends = [min(values) / 2, max(values) * 2]
    ax.plot(ends, ends, "k-", lw=1, label="realised = stated")
    share = np.mean([e <= s + FLOOR for r in found["coverage"] for e, s in zip(r["error"], r["stated"], strict=True)])
    ax.text(0.04, 0.94, f"below the line: {share:.1%}", transform=ax.transAxes, fontsize=11, va="top")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3) if ends[1] < 100 * ends[0] else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
    ax.minorticks_off()
    ax.set(xlabel="stated error, w1_95", ylabel="realised W1 error / range", xlim=ends, ylim=ends, aspect="equal")


# The command ---------------------------------------------------------------------------------------------------------
def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS), help="products")
    parser.add_argument("--seeds", type=int, default=5, help="of each point of a curve")
    parser.add_argument("--trials", type=int, default=40, help="of coverage, each with its own seed")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the matrices are small")
    parser.add_argument("--no-peers", action="store_true", help="spectral alone")
    parser.add_argument("--json", metavar="FILE", help="write the numbers and the environment here, matrix by matrix")
    parser.add_argument("--show", metavar="FILE", nargs="+", help="print the tables of stored runs together and end")
    parser.add_argument("--pictures", metavar="FOLDER", help="draw accuracy.png and accuracy_coverage.png there")
    options = parser.parse_args()
    if min(options.seeds, options.trials, *options.budgets) < 1 or min(options.budgets) < 25:
        parser.error("use at least 25 products, 1 seed and 1 trial.")
    return options


def main() -> None:
    options = arguments()
    stored: Record = {"matrices": {}}
    if options.show:
        for file in options.show:
            stored["matrices"] |= json.loads(Path(file).read_text())["matrices"]
        stored["matrices"] = {name: stored["matrices"][name] for name in NAMES if name in stored["matrices"]}
    else:
        torch.set_num_threads(options.threads)
        stored["environment"] = environment([other.distribution for other in RULES.values()])
        others = [] if options.no_peers else present_rules()
        for name in options.matrices:
            known = made(name)
            print(f"\n{name}: n = {len(known.values)}; {known.about}", flush=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = {"about": known.about, "n": len(known.values)}
                found["curves"] = curves(known, others, options.budgets, options.seeds)
                found["tolerances"] = tolerances(known, options.seeds)
                found["coverage"] = coverage(known, options.trials)
            stored["matrices"][name] = found
            if options.json:
                Path(options.json).write_text(json.dumps(stored))
    print("", table(stored), sep="\n")
    if options.pictures:
        Path(options.pictures).mkdir(parents=True, exist_ok=True)
        pictures(stored, Path(options.pictures))


if __name__ == "__main__":
    main()
