"""How wrong is a spectral density after so many products, and is the stated error true?

    PYTHONPATH=/tmp/peers:/tmp/peers2 python benchmarks/accuracy.py [--matrices outliers digits] [--seeds 5] [--json FILE]
    python benchmarks/accuracy.py --show FILE [FILE ...] --pictures docs/images      # tables and pictures of stored runs

For each matrix of `spectra.py`, whose eigenvalues are known, and each number of products: the W1 error of the CDF over the range
of the spectrum, for `slq` (with and without deflation, and with budget= alone), `kpm` by both recurrences, and for the others'
stochastic Lanczos quadrature at the same number of products, with the number of probes that is their own default; for those
that return a smoothed density, that too. Median and quartiles over seeds. Then, over `--trials` seeds at COVERED products: how
often the realised error stays below `meta["error"]["w1_95"]`. `product_cost.py` says how the others are installed, beside

    python -m pip install --target /tmp/peers2 --no-deps scikit-primate
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import environment
from peers import FAILURES, first_line
from spectra import NAMES, RULES, Known, Matrix, made, present_rules

import spectral

BUDGETS = (25, 50, 100, 200, 400, 800)
COVERED = 100  # products of a trial of coverage
PATIENCE = 20  # times the budget that a package may spend, on the ends of the spectrum say, before it is stopped
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
    return s.products, known.error(*s.points()), float(s.meta["error"]["w1_95"])


# Theirs --------------------------------------------------------------------------------------------------------------
def theirs(known: Known, name: str, products: int, seed: int, smoothed: bool) -> tuple[int, float, float]:
    """(products made, error, nan: none of them states one) of a package's quadrature, or of the density it returns."""
    other = RULES[name]
    A = Matrix(known.operator.__matmul__, len(known.values), known.operator.dtype, limit=PATIENCE * products)
    steps = max(products // other.probes, 2)
    if smoothed and other.density is not None:
        found = other.density(A, other.probes, steps, seed)
        return A.products, known.error(*found), float("nan")
    rules = [other.rule(A, steps, 1000 * seed + probe) for probe in range(other.probes)]
    nodes, weights = (np.concatenate(part) for part in zip(*rules, strict=True))
    return A.products, known.error(nodes, weights), float("nan")


def methods(others: list[str]) -> dict[str, Callable[[Known, int, int], tuple[int, float, float]]]:
    """All curves by name."""
    found: dict[str, Any] = {m: lambda k, p, seed, m=m: ours(k, m, p, seed) for m in OURS}
    for name in others:
        probes = RULES[name].probes
        label = f"{name}, {probes} probe{'s' if probes > 1 else ''}"
        found[label] = lambda k, p, seed, name=name: theirs(k, name, p, seed, False)
        if RULES[name].density is not None:
            found[f"{label}, density"] = lambda k, p, seed, name=name: theirs(k, name, p, seed, True)
    return found


# The run -------------------------------------------------------------------------------------------------------------
def curves(known: Known, others: list[str], budgets: list[int], seeds: int) -> list[Record]:
    """A record for each method and budget."""
    records = []
    for method, measure in methods(others).items():
        for budget in budgets:
            record: Record = {"method": method, "budget": budget}
            try:
                results = [measure(known, budget, seed) for seed in range(seeds)]
            except FAILURES as failure:
                if method in OURS:
                    raise
                record["failure"] = first_line(failure)
            else:
                record["products"], record["error"], record["stated"] = map(list, zip(*results, strict=True))
            records.append(record)
            print(f"  {method:40s} {budget:5d}  {cell(record)}", flush=True)
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


def covered(record: Record) -> str:
    """The share of trials whose error is within the stated one; the median of stated over realised."""
    error, stated = np.array(record["error"]), np.array(record["stated"])
    ratio = np.median(np.maximum(stated, FLOOR) / np.maximum(error, FLOOR))
    return f"{np.mean(error <= stated + FLOOR):.2f} ({ratio:.1f})"


def table(stored: Record) -> str:
    """Markdown: the errors at TABLED products, then coverage; a row for each method, a column for each matrix."""
    names = list(stored["matrices"])
    text = []
    for key, show, title in (
        ("curves", cell, f"W1 error over the range at {TABLED} products, median (quartiles) over seeds"),
        (
            "coverage",
            covered,
            f"Realised error within w1_95 at {COVERED} products: share (median of stated / realised)",
        ),
    ):
        chosen = {
            (name, r["method"]): show(r)
            for name in names
            for r in stored["matrices"][name][key]
            if r.get("budget", TABLED) == TABLED
        }
        lines = [f"{title}:", "", "| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        for method in dict.fromkeys(method for _, method in chosen):
            cells = ("fails" if (c := chosen.get((n, method), "–")).startswith("fails") else c for n in names)
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        text += [*lines, ""]
    return "\n".join(text)


# Pictures ------------------------------------------------------------------------------------------------------------
def style(method: str) -> dict[str, Any]:
    """Ours solid and in colour, theirs grey or dashed, what they return smoothed dotted."""
    for k, name in enumerate(OURS):
        if method == name:
            return {"color": f"C{k}", "marker": "o", "ms": 3, "lw": 2.2 if k == 0 else 1.4}
    shade = dict(zip(RULES, ("black", "0.35", "saddlebrown", "0.6"), strict=True))
    colour = next(c for name, c in shade.items() if method.startswith(name))
    return {"color": colour, "ls": ":" if method.endswith("density") else "--", "marker": "x", "ms": 3, "lw": 1}


def pictures(stored: Record, folder: Path) -> None:
    """accuracy.png: error against products; accuracy_coverage.png: realised against stated error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for name, draw in (("accuracy", _draw_curves), ("accuracy_coverage", _draw_coverage)):
        figure, axes = plt.subplots(2, 4, figsize=(16, 8), layout="constrained")
        for ax, (matrix, found) in zip(axes.flat, stored["matrices"].items(), strict=False):
            draw(ax, found)
            ax.set_title(f"{matrix} (n = {found['n']})", fontsize=10)
        for ax in axes.flat[len(stored["matrices"]) :]:
            ax.axis("off")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        axes.flat[-1].legend(handles, labels, loc="center", fontsize=9, frameon=False)
        figure.savefig(folder / f"{name}.png", dpi=90)
        plt.close(figure)


def _draw_curves(ax: Any, found: Record) -> None:
    for method in dict.fromkeys(r["method"] for r in found["curves"]):
        points = [r for r in found["curves"] if r["method"] == method and "error" in r]
        if not points:
            continue
        x = [np.median(r["products"]) for r in points]
        low, middle, high = np.maximum(np.quantile([r["error"] for r in points], [0.25, 0.5, 0.75], axis=1), FLOOR)
        ax.plot(x, middle, label=method, **style(method))
        if method in OURS:
            ax.fill_between(x, low, high, color=style(method)["color"], alpha=0.12, lw=0)
    ax.set(xscale="log", yscale="log", xlabel="products", ylabel="W1 error / range")
    ax.grid(alpha=0.25)


def _draw_coverage(ax: Any, found: Record) -> None:
    values = []
    for record in found["coverage"]:
        error, stated = (np.maximum(record[key], FLOOR) for key in ("error", "stated"))
        ax.plot(stated, error, ".", ms=4, alpha=0.6, color=style(record["method"])["color"], label=record["method"])
        values += [*error, *stated]
    ends = [min(values) / 2, max(values) * 2]
    ax.plot(ends, ends, "k-", lw=0.8, label="realised = stated")
    ax.set(xscale="log", yscale="log", xlabel="stated, w1_95", ylabel="realised W1 error / range")
    ax.grid(alpha=0.25)


# The command ---------------------------------------------------------------------------------------------------------
def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS), help="products")
    parser.add_argument("--seeds", type=int, default=5, help="of each point of a curve")
    parser.add_argument("--trials", type=int, default=100, help="of coverage, each with its own seed")
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
                found["coverage"] = coverage(known, options.trials)
            stored["matrices"][name] = found
            if options.json:
                Path(options.json).write_text(json.dumps(stored))
    print("", table(stored), sep="\n")
    if options.pictures:
        pictures(stored, Path(options.pictures))


if __name__ == "__main__":
    main()
