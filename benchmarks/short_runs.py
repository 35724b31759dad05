"""What do short runs cost, set-up included, beside other packages? In gradients over the same data, one run of this script.

    PYTHONPATH=/tmp/peers python benchmarks/short_runs.py [--models mlp gpt2] [--matrices Hessian] [--counts 1 3 10] [--json FILE]
    PYTHONPATH=/tmp/peers python benchmarks/short_runs.py --slq 10 --models 124m --matrices GaussNewton 'J^T J' --repeats 2
    python benchmarks/short_runs.py --table FILE            # the Markdown tables of docs/performance.md from a stored run
    python benchmarks/short_runs.py --picture FILE PNG      # its picture

For each model and matrix: the operator is built and multiplies 1, 3, 10, 30 and 100 vectors, one after another, as a user's own
loop does (nothing is announced); then, for `spectral`, curvlinops (through scipy's eigsh) and hessian-eigenthings, the whole of
the five largest eigenvalues, and a Lanczos run of 20 steps. Each run is made anew --repeats times, with gradients before and
after it; the medians of the ratios stand. Every product is held against double backward in plain torch. Peers are installed as
`product_cost.py` says. Run it on an idle machine.

`wide` and `124m`: an MLP with 38 million parameters and one batch of 32 samples, GPT-2 and one sequence, where vectors weigh more
than the arithmetic of the model.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import environment, watched
from models import MATRICES, MODELS, Logits, Workload, build, our_operator, reference
from peers import FAILURES, PEERS, curvlinops_operator, first_line
from peers import present as importable
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import spectral

COUNTS = (1, 3, 10, 30, 100)
REPEATS = 3
STEPS, PAIRS = 20, 5
Run = Callable[[], Any]


@functools.cache
def present() -> list[str]:
    """The peers that can be imported."""
    return importable(list(PEERS))


def wide() -> Workload:
    """One batch of 32 for 38 million parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 4096), nn.Tanh(), nn.Linear(4096, 4096), nn.Tanh(), nn.Linear(4096, 4096), nn.Tanh(),
                          nn.Linear(4096, 10))  # fmt: skip
    data = [(torch.randn(32, 784), torch.randint(10, (32,)))]
    return Workload(model.eval(), data, "784-4096-4096-4096-10, tanh; one batch of 32", nn.CrossEntropyLoss())


def published_gpt2() -> Workload:
    """GPT-2 with 124 million parameters and one sequence."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=None, use_cache=False))
    ids = torch.randint(50257, (1, 65))
    about = "Hugging Face, GPT-2 as published with 124 million parameters, random weights; one sequence of 64 tokens"
    net = Logits(model, lambda m, t: m(input_ids=t))
    return Workload(net.eval(), [(ids[:, :-1].clone(), ids[:, 1:].clone())], about, nn.CrossEntropyLoss())


LARGE: dict[str, Callable[[], Workload]] = {"wide": wide, "124m": published_gpt2}


def ours(work: Workload, matrix: str) -> Any:
    """Our operator, built as a user would."""
    return our_operator(work, matrix)[0]


def operator(package: str, work: Workload, matrix: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """v -> A v."""
    if package != "spectral":
        return PEERS[package].product(work, matrix)
    A = ours(work, matrix)
    return lambda v: A @ v


def timed(action: Run) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def ratios(work: Workload, run: Callable[[], list[float]], repeats: int) -> list[list[float]]:
    """Cumulated seconds of a run's stages over a gradient, so many times."""
    found = []
    for _ in range(repeats):
        gc.collect()
        before = min(timed(work.gradient) for _ in range(2))
        stages = run()
        after = min(timed(work.gradient) for _ in range(2))
        found.append([2 * seconds / (before + after) for seconds in stages])
    return found


def products(
    package: str, work: Workload, matrix: str, vectors: Sequence[torch.Tensor], counts: Sequence[int], repeats: int
) -> dict[str, float]:
    """Build and so many products, in gradients."""
    truth = reference(work, matrix, vectors[0])

    def run() -> list[float]:
        stages, begin = [], time.perf_counter()
        with attention(package):
            A = operator(package, work, matrix)
            for i in range(max(counts)):
                w = A(vectors[i % len(vectors)])
                if i + 1 in counts:
                    stages.append(time.perf_counter() - begin)
                if i == 0:
                    error = float((w.double() - truth).norm() / truth.norm())
                    if not error < 1e-3:
                        raise ValueError(f"is off by {error:.1e}")
        return stages

    rows = ratios(work, run, repeats)
    return {str(count): statistics.median(row[i] for row in rows) for i, count in enumerate(counts)}


def whole_runs(work: Workload, matrix: str, repeats: int) -> dict[str, dict[str, float]]:
    """{package: {what: gradients}} of the five largest eigenvalues, and of a Lanczos run."""
    top, lanczos = f"top {PAIRS}", f"slq {STEPS}"
    options: dict[str, Any] = {"probes": 1, "steps": STEPS, "deflate": False, "reorthogonalize": False}
    runs: dict[str, dict[str, Run]] = {
        "spectral": {
            top: lambda: spectral.top(ours(work, matrix), PAIRS, tol=1e-3, progress=False),
            lanczos: lambda: spectral.slq(ours(work, matrix), **options, progress=False),
        }
    }
    for package in present():
        if package != "PyHessian" and matrix in PEERS[package].matrices:
            runs[package] = {lanczos: lambda package=package: krylov(operator(package, work, matrix), work.parameters)}
    if "curvlinops" in runs:
        runs["curvlinops"][top] = lambda: eigsh(
            curvlinops_operator(work, matrix).to_scipy(), k=PAIRS, which="LA", tol=1e-3
        )
    found: dict[str, dict[str, float]] = {}
    for package, named in runs.items():
        for what, run in named.items():
            try:
                with attention(package):
                    rows = ratios(work, lambda run=run: [timed(run)], repeats)
                found.setdefault(package, {})[what] = statistics.median(row[0] for row in rows)
            except FAILURES as failure:
                print(f"    {package}, {what}: {first_line(failure)}", flush=True)
    return found


def krylov(A: Callable[[torch.Tensor], torch.Tensor], n: int, steps: int = STEPS) -> None:
    """The products of a Lanczos run, and a minimum of work on vectors."""
    q = torch.randn(n)
    for _ in range(steps):
        q = q / q.norm()
        w = A(q)
        q = w - (w @ q) * q


def attention(package: str) -> contextlib.AbstractContextManager[None]:
    """The peers do without the fused kernel, which knows neither forward mode nor double backward."""
    return contextlib.nullcontext() if package == "spectral" else sdpa_kernel(SDPBackend.MATH)


def slq_alone(models: list[str], matrices: list[str], steps: int, repeats: int) -> None:
    """A Lanczos run of so many steps, set-up included, of each package in turn: gradients, and ours over the best peer's."""
    warm_up()
    for name in models:
        work = LARGE[name]() if name in LARGE else build(name)
        for matrix in matrices:
            packages = [p for p in present() if p != "PyHessian" and matrix in PEERS[p].matrices]
            found: dict[str, list[float]] = {package: [] for package in ("spectral", *packages)}
            options: dict[str, Any] = {"probes": 1, "steps": steps, "deflate": False, "reorthogonalize": False}
            for _ in range(repeats):
                for package, taken in found.items():

                    def run(package: str = package, matrix: str = matrix, work: Workload = work) -> None:
                        if package == "spectral":
                            spectral.slq(ours(work, matrix), **options, progress=False)  # noqa: B023
                        else:
                            krylov(operator(package, work, matrix), work.parameters, steps)

                    with attention(package):
                        taken.append(ratios(work, lambda run=run: [timed(run)], 1)[0][0])
                    print(f"{name} {matrix} {package}: {taken[-1]:.1f} gradients", flush=True)
            best = min((statistics.median(found[p]) for p in packages), default=math.nan)
            print(
                f"{name} {matrix}: ours over the best peer {statistics.median(found['spectral']) / best:.2f}",
                flush=True,
            )


# Results -------------------------------------------------------------------------------------------------------------
def measure(
    models: list[str], matrices: list[str], counts: Sequence[int], repeats: int, whole: bool = True
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    warm_up()
    for name in models:
        work = LARGE[name]() if name in LARGE else build(name)
        generator = torch.Generator().manual_seed(0)
        vectors = [torch.randn(work.parameters, generator=generator) for _ in range(4)]
        for matrix in matrices:
            for package in ["spectral", *present()]:
                if package != "spectral" and matrix not in PEERS[package].matrices:
                    continue
                try:
                    row = products(package, work, matrix, vectors, counts, repeats)
                except FAILURES as failure:
                    print(f"{name} {matrix} {package}: {first_line(failure)}", flush=True)
                    continue
                rows.append({"model": name, "matrix": matrix, "package": package, "products": row})
                print(f"{name:5} {matrix:12} {package:20}", {k: round(v, 1) for k, v in row.items()}, flush=True)
            for package, found in whole_runs(work, matrix, repeats).items() if whole else ():
                rows.append({"model": name, "matrix": matrix, "package": package, "runs": found})
                print(f"{name:5} {matrix:12} {package:20}", {k: round(v, 1) for k, v in found.items()}, flush=True)
        del work
    return {"rows": rows, "environment": environment([PEERS[name].distribution for name in present()])}


def warm_up() -> None:
    """What torch and the packages import on first use is nobody's set-up."""
    work = build("tiny")
    for package in ["spectral", *present()]:
        for matrix in MATRICES:
            try:
                A = operator(package, work, matrix)
                for _ in range(3):
                    A(torch.ones(work.parameters))
            except FAILURES:
                continue


def table(stored: dict[str, Any]) -> str:
    """Markdown: products of ours and of the best of the others, and their ratio."""
    head = "| model | matrix | 1 | 3 | 10 | 30 | 100 | best other, 10 / 100 | ours over it, 10 / 100 |"
    lines = [head, "|---|---|" + "---|" * 7]
    rows = [row for row in stored["rows"] if "products" in row]
    for model, matrix in dict.fromkeys((row["model"], row["matrix"]) for row in rows):
        here = {row["package"]: row["products"] for row in rows if (row["model"], row["matrix"]) == (model, matrix)}
        ours = here.pop("spectral")
        best = {n: min((others.get(n, math.nan) for others in here.values()), default=math.nan) for n in ("10", "100")}
        cells = [f"{ours[str(n)]:.1f}" if str(n) in ours else "–" for n in COUNTS]
        over = [ours.get(n, math.nan) / best[n] for n in ("10", "100")]
        pairs = [" / ".join("–" if math.isnan(x) else f"{x:{form}}" for x in pair) for pair, form in
                 ((best.values(), ".1f"), (over, ".2f"))]  # fmt: skip
        lines.append(f"| {model} | {matrix} | {' | '.join(cells)} | {' | '.join(pairs)} |")
    whole = [row for row in stored["rows"] if "runs" in row]
    kinds = list(dict.fromkeys(what for row in whole for what in row["runs"]))
    lines += ["", f"| model | matrix | package | {' | '.join(kinds)} |", "|---|---|---|" + "---|" * len(kinds)]
    for row in whole:
        cells = [f"{row['runs'][what]:.0f}" if what in row["runs"] else "–" for what in kinds]
        lines.append(f"| {row['model']} | {row['matrix']} | {row['package']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(stored: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    rows = [row for row in stored["rows"] if "products" in row]
    pairs = list(dict.fromkeys((row["model"], row["matrix"]) for row in rows))
    models, matrices = list(dict.fromkeys(m for m, _ in pairs)), list(dict.fromkeys(m for _, m in pairs))
    figure, axes = plt.subplots(
        len(models), len(matrices), figsize=(3.2 * len(matrices), 2.4 * len(models)), squeeze=False, sharex=True
    )
    colours = {"spectral": "C0", "curvlinops": "C1", "hessian-eigenthings": "C2", "PyHessian": "C3"}
    for row in rows:
        ax = axes[models.index(row["model"])][matrices.index(row["matrix"])]
        counts = [int(n) for n in row["products"]]
        each = [row["products"][str(n)] / n for n in counts]
        ax.plot(counts, each, "o-", ms=3, color=colours.get(row["package"], "grey"), label=row["package"])
        ax.set(xscale="log", yscale="log", title=f"{row['model']}, {row['matrix']}")
        ax.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"], minor=False)
        ax.minorticks_off()
        ax.axhline(1, color="grey", lw=0.5)
    for ax in axes[-1]:
        ax.set(xlabel="products in a row", xticks=COUNTS, xticklabels=[str(n) for n in COUNTS])
    for line in axes:
        line[0].set_ylabel("gradients a product,\nset-up included")
    named = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="upper center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*MODELS, *LARGE])
    parser.add_argument("--matrices", nargs="+", default=list(MATRICES))
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--products", action="store_true", help="products in a row alone, no eigenvalues and no Lanczos run"
    )
    parser.add_argument("--slq", type=int, metavar="STEPS", help="a Lanczos run of so many steps alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--picture", nargs=2, type=Path)
    asked = parser.parse_args()
    if asked.table:
        print(table(json.loads(asked.table.read_text())))
        return
    if asked.picture:
        picture(json.loads(asked.picture[0].read_text()), asked.picture[1])
        return
    torch.set_num_threads(asked.threads)
    load: dict[str, Any] = {}
    if asked.slq:
        with watched(load, "others"):
            slq_alone(asked.models, asked.matrices, asked.slq, asked.repeats)
        print(json.dumps(environment([]) | load))
        return
    with watched(load, "others"):
        stored = measure(asked.models, asked.matrices, asked.counts, asked.repeats, not asked.products)
    stored["load"] = load
    if asked.json:
        asked.json.write_text(json.dumps(stored, indent=1) + "\n")
    print(table(stored))


if __name__ == "__main__":
    main()
