"""What do products, runs and recurrences cost on one GPU? Written before a card was seen, with what is expected of it.

    make gpu                                                       # the tests that need a card, then this script
    python benchmarks/gpu.py [--seconds 270] [--models gpt2-124m] [--parts products] [--out benchmarks/results]
    python benchmarks/gpu.py --table benchmarks/results/gpu-NAME.json         # the tables of a stored run, in Markdown
    python benchmarks/gpu.py --device cpu --tiny                   # the script itself, in a minute and without a card

Parts, in the order in which they run; what the seconds do not reach is listed as left out:

- `recurrences`: bytes a second of a plain copy; of an inner product, by how many entries are upcast at a time; of the updates
  of Lanczos and Chebyshev, by torch's operations and by `spectral.krylov.kernels`, counting the passes that each must make.
- `products`: a gradient, J^T J, Gauss-Newton and Hessian: milliseconds warm, over a gradient in the same precision, and the
  peak of memory beyond model, data and vectors; one vector and a block; float32 without tf32, with it, and products in
  bfloat16; beside curvlinops and hessian-eigenthings where they can be imported. Every product is held against double backward
  in plain torch.
- `slq`: a Lanczos run of Gauss-Newton end to end, the operator built anew, beside what others take for as many products.

Times are CUDA events around each call after WARM_UP calls, medians; memory is torch's count of what is allocated. EXPECTED says
beforehand what ought to come out; the table says "missed" where it does not.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import environment
from models import MATRICES, Logits, Workload, our_operator, reference
from models import build as built
from peers import FAILURES, PEERS, first_line, present
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import spectral
from spectral import longvectors, probes
from spectral.krylov.kernels import draws
from spectral.krylov.kernels.recurrences import PLAIN, Fused, fused

# What is expected. curvlinops' own figures, compiled, on an A6000: Gauss-Newton 2.1-2.2 and Hessian 2.8-2.9 gradients; on nanoGPT
# 11.0 and 17.5 GB. Bounds are those of issue 16 for float32, one vector, warm.
EXPECTED: dict[str, dict[str, float]] = {
    "ratio": {"J^T J": 1.3, "GaussNewton": 1.3, "Hessian": 2.0},
    "gigabytes": {"GaussNewton": 11.0, "Hessian": 17.5},  # of gpt2-124m, at most
    "bandwidth": {"inner product": 0.5, "torch": 0.4, "fused": 0.8},  # of a copy's bytes a second, at least
    "slq": {"gradients a step": 1.6},  # of a whole run of STEPS steps, set-up included
}
WRONG = {"float32": 1e-3, "tf32": 5e-2, "bfloat16": 0.3}  # errors beyond: another matrix
WARM_UP, REPEATS, COLUMNS, STEPS = 8, 5, 8, 30
EXPECTED_PRODUCTS = 100  # announced to the operator, so that recording may pay for itself
CASE_SECONDS = 75  # of one case, after which it counts as failed
ENTRIES = 1 << 27  # of the vectors of `recurrences`
CHUNKS = (1 << 18, 1 << 20, 1 << 22, 1 << 23, 1 << 24, 1 << 26)
Record = dict[str, Any]


class OutOfTime(RuntimeError):
    """A case took longer than it may."""


# Models --------------------------------------------------------------------------------------------------------------
def one_batch(model: nn.Module, x: torch.Tensor, y: torch.Tensor, about: str) -> Workload:
    return Workload(model.eval(), [(x, y)], about, nn.CrossEntropyLoss())


def resnet50(tiny: bool) -> Workload:
    from transformers import ResNetConfig, ResNetForImageClassification

    small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5}
    model = ResNetForImageClassification(ResNetConfig(**(small if tiny else {"num_labels": 1000})))
    side, n, classes = (32, 4, 5) if tiny else (224, 32, 1000)
    about = f"Hugging Face's ResNet-50 configuration, batch norm in eval mode; {n} pictures 3 x {side} x {side}"
    net = Logits(model, lambda m, t: m(pixel_values=t))
    return one_batch(net, torch.randn(n, 3, side, side), torch.randint(classes, (n,)), about)


def gpt2(tiny: bool) -> Workload:
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"vocab_size": 100, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2} if tiny else {}
    config = GPT2Config(**size, bos_token_id=None, eos_token_id=None, use_cache=False)
    n, T = (2, 8) if tiny else (4, 1024)  # those of curvlinops
    ids = torch.randint(config.vocab_size, (n, T + 1))
    about = f"Hugging Face's GPT-2 (124 M, nanoGPT's size), random weights; {n} sequences of {T} tokens"
    net = Logits(GPT2LMHeadModel(config), lambda m, t: m(input_ids=t))
    return one_batch(net, ids[:, :-1].clone(), ids[:, 1:].clone(), about)


def llama(tiny: bool) -> Workload:
    """The sizes of Llama 3.2 1B."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8}  # fmt: skip
    small = {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1}  # fmt: skip
    options = {
        "tie_word_embeddings": True,
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    model = LlamaForCausalLM(LlamaConfig(**(small if tiny else size), **options))
    T, classes = (8, 100) if tiny else (256, 128256)
    ids = torch.randint(classes, (1, T + 1))
    about = f"Llama 3.2 1B's configuration, random weights, vocabulary 128 256; one sequence of {T} tokens"
    net = Logits(model, lambda m, t: m(input_ids=t))
    return one_batch(net, ids[:, :-1].clone(), ids[:, 1:].clone(), about)


MODELS: dict[str, Callable[[bool], Workload]] = {
    "mlp": lambda tiny: built("tiny" if tiny else "mlp"), "gpt2-124m": gpt2, "resnet50": resnet50, "llama-1b": llama,
}  # fmt: skip


def made(name: str, device: torch.device, tiny: bool) -> Workload:
    """The model on the device: its weights are drawn there, which takes a fraction of the time for a billion of them."""
    torch.manual_seed(0)
    with device:
        work = MODELS[name](tiny)
    return replace(work, model=work.model.to(device), data=[(x.to(device), y.to(device)) for x, y in work.data])


# Clock and memory ----------------------------------------------------------------------------------------------------
def seconds(device: torch.device, action: Callable[[], Any]) -> float:
    """Of one call, between events on the device."""
    if device.type == "cpu":
        begin = time.perf_counter()
        action()
        return time.perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def median(device: torch.device, action: Callable[[], Any], repeats: int, warm_up: int) -> float:
    for _ in range(warm_up):
        action()
    return statistics.median(seconds(device, action) for _ in range(repeats))


def peak(device: torch.device, action: Callable[[], Any]) -> int | None:
    """Bytes that are allocated at most while it runs, beyond what was there; None where nobody counts."""
    if device.type == "cpu":
        action()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    action()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


@contextlib.contextmanager
def at_most(limit: float) -> Iterator[None]:
    """`OutOfTime` after so many seconds."""

    def late(*_: Any) -> None:
        raise OutOfTime(f"took more than {limit:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(limit, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Matrix products and convolutions of float32 with 10 bits of mantissa, or with all 23."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# Recurrences ---------------------------------------------------------------------------------------------------------
def recurrences(device: torch.device, tiny: bool) -> Iterator[Record]:
    """Bytes a second, counting what a pass must read and write."""
    n, size = (1 << 12 if tiny else ENTRIES), 4
    x, y, w, z = torch.randn(4, n, device=device)
    repeats = 2 if tiny else 7

    def row(what: str, passes: int, action: Callable[[], Any], **about: Any) -> Record:
        took = median(device, action, repeats, 2)
        return {
            "part": "recurrences",
            "what": what,
            "seconds": took,
            "bytes_per_second": passes * n * size / took,
            **about,
        }

    yield row("copy", 2, lambda: w.copy_(x))
    plain = longvectors.CHUNK, longvectors.CHUNK_ELSEWHERE
    for chunk in CHUNKS:
        longvectors.CHUNK = longvectors.CHUNK_ELSEWHERE = chunk
        yield row("inner product", 2, lambda: longvectors.dot(x, y), chunk=chunk)
    longvectors.CHUNK, longvectors.CHUNK_ELSEWHERE = plain
    ways: dict[str, Any] = {"torch": PLAIN}
    if (found := fused(x, y, w)) is not None:
        ways["fused"] = found
    for way, by in ways.items():
        few = way == "fused"
        yield row("Lanczos, subtract", 4 if few else 7, lambda by=by: by.lanczos_subtract(x, y, w, z, 0.1), way=way)
        yield row("Lanczos, shorten", 3 if few else 4, lambda by=by: by.lanczos_shorten(x, z, 0.1), way=way)
        yield row("Chebyshev", 4 if few else 11, lambda by=by: by.chebyshev(z, x, y, 0.1, 0.1), way=way)
    usual = draws.LEAST
    for way in ("processor", *["card"] * (draws.of(x) is not None)):
        draws.LEAST = usual if way == "card" else n + 1
        for kind in ("gaussian", "rademacher"):
            drawn = partial(probes.probe, 0, 0, n, kind=kind, dtype=x.dtype, device=device)
            yield row(f"probe, {kind}", 1, drawn, way=way)
    draws.LEAST = usual
    yield {"part": "recurrences", "what": "kernels", "way": Fused.described(x.device) or "torch"}


# Products ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """A row of `products`."""

    model: str
    package: str
    matrix: str
    precision: str = "float32"  # "tf32" or "bfloat16"
    columns: int = 1
    engine: str = "auto"


def cases(models: list[str], peers: list[str]) -> list[Case]:
    """What is worth most first: one vector in float32, then the other precisions, blocks, a compiled engine."""
    ours = [(m, "spectral", matrix) for m in models for matrix in MATRICES]
    theirs = [(m, p, matrix) for m in models for p in peers for matrix in PEERS[p].matrices if m != "llama-1b"]
    found = [Case(*row) for row in sorted(ours + theirs, key=lambda row: models.index(row[0]))]
    found += [Case(*row, precision=low) for row in ours for low in ("tf32", "bfloat16")]
    found += [Case(*row, columns=COLUMNS) for row in ours if row[0] != "llama-1b"]
    found += [Case(*row, columns=COLUMNS) for row in theirs if PEERS[row[1]].blocks]
    return found + [Case(*row, engine="compiled") for row in ours if row[0] == "gpt2-124m" and row[2] != "J^T J"]


def operator(work: Workload, case: Case) -> tuple[Callable[[torch.Tensor], torch.Tensor], Any]:
    """(V -> A V, spectral's operator or None)."""
    if case.package != "spectral":
        return PEERS[case.package].product(work, case.matrix), None
    options: dict[str, Any] = {"engine": case.engine}
    if case.precision == "bfloat16":
        options["product_dtype"] = torch.bfloat16
    A, inner = our_operator(work, case.matrix, **options)
    A.expect(EXPECTED_PRODUCTS)
    return (lambda V: A @ V), inner


def attention(package: str) -> contextlib.AbstractContextManager[None]:
    """The others do without the fused kernel, which knows neither forward mode nor double backward."""
    return contextlib.nullcontext() if package == "spectral" else sdpa_kernel(SDPBackend.MATH)


class Products:
    """The cases of one model, which share its gradients and what products must be."""

    def __init__(self, name: str, device: torch.device, tiny: bool) -> None:
        self.device, self.work, self.repeats = device, made(name, device, tiny), 2 if tiny else REPEATS
        self.V = torch.randn(self.work.parameters, 1, device=device)
        self._gradients: dict[str, Record] = {}
        self._truths: dict[str, torch.Tensor] = {}

    def gradient(self, precision: str) -> Record:
        """Seconds and peak of a gradient in this precision."""
        if precision not in self._gradients:
            work = self.work.to(torch.bfloat16) if precision == "bfloat16" else self.work
            took = median(self.device, work.gradient, self.repeats, 3)
            self._gradients[precision] = {"seconds": took, "peak": peak(self.device, work.gradient)}
        return self._gradients[precision]

    def truth(self, matrix: str) -> torch.Tensor:
        """By double backward in float32, with the first vector."""
        if matrix not in self._truths:
            with tf32(False):
                self._truths[matrix] = reference(self.work, matrix, self.V[:, 0], torch.float32).float()
        return self._truths[matrix]

    def measured(self, case: Case) -> Record:
        """Time, memory and error of one case."""
        V = self.V[:, 0].contiguous()
        if case.columns > 1:
            V = torch.cat([self.V, torch.randn(len(self.V), case.columns - 1, device=self.device)], 1)
        with tf32(case.precision == "tf32"):
            gradient = self.gradient(case.precision)
            with attention(case.package):
                first: list[Any] = []
                beginning = seconds(self.device, lambda: first.append(operator(self.work, case)))
                product, inner = first.pop()
                most = [peak(self.device, lambda: product(V)) for _ in range(WARM_UP if len(V) > 9 else 2)]
                took = median(self.device, lambda: product(V), self.repeats, 1)
                warm = peak(self.device, lambda: product(V))
                W = product(V)
        w = W if W.ndim == 1 else W[:, 0]
        truth = self.truth(case.matrix)
        error = longvectors.distance(w.contiguous().float(), truth) / longvectors.norm(truth)
        each = took / case.columns
        return {
            "seconds": each, "gradient_seconds": gradient["seconds"], "ratio": each / gradient["seconds"], "error": error,
            "wrong": not error <= WRONG[case.precision], "peak": warm,
            "peak_at_first": None if warm is None else max(map(int, most)),
            "gradient_peak": gradient["peak"], "building": beginning,
            "chosen": None if inner is None else inner.describe().get("engine"),
        }  # fmt: skip


def products(
    device: torch.device, tiny: bool, models: list[str], peers: list[str], left: Callable[[], float]
) -> Iterator[Record]:
    """A record of each case; models are made when the first case needs them, and kept."""
    known: dict[str, Products] = {}
    for case in cases(models, peers):
        record: Record = {"part": "products", **case.__dict__}
        if left() < 5:
            yield {**record, "left_out": True}
            continue
        try:
            with at_most(min(CASE_SECONDS, left())):
                if case.model not in known:
                    known[case.model] = Products(case.model, device, tiny)
                yield {**record, "about": known[case.model].work.about, **known[case.model].measured(case)}
        except (*FAILURES, OutOfTime) as failure:
            yield {**record, "failure": first_line(failure)}
        forget(device)


def forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# Runs ----------------------------------------------------------------------------------------------------------------
def slq(device: torch.device, tiny: bool, models: list[str], peers: list[str]) -> Iterator[Record]:
    """A run of Gauss-Newton, from the model to the spectrum, in gradients."""
    steps = 4 if tiny else STEPS
    for name in models:
        work = made(name, device, tiny)
        gradient = median(device, work.gradient, 3, 2)

        def ours(work: Workload = work) -> None:
            A = spectral.GaussNewton(work.model, work.loss, work.data)
            spectral.slq(A, probes=1, steps=steps, deflate=False, reorthogonalize=False, progress=False)

        def theirs(package: str, work: Workload = work) -> None:
            with attention(package):
                product, q = PEERS[package].product(work, "GaussNewton"), torch.randn(work.parameters, device=device)
                for _ in range(steps):
                    q = q / q.norm()
                    w = product(q)
                    q = w - (w @ q) * q

        runs = {"spectral": ours, **{p: (lambda p=p: theirs(p)) for p in peers if "GaussNewton" in PEERS[p].matrices}}
        for package, run in runs.items():
            record: Record = {"part": "slq", "model": name, "package": package, "steps": steps, "about": work.about}
            try:
                with at_most(CASE_SECONDS):
                    most = peak(device, run)
                    took = seconds(device, run)
                yield {**record, "seconds": took, "gradients": took / gradient, "peak": most}
            except (*FAILURES, OutOfTime) as failure:
                yield {**record, "failure": first_line(failure)}
            forget(device)


# Results -------------------------------------------------------------------------------------------------------------
def measured(asked: argparse.Namespace, write: Callable[[Record], None]) -> Record:
    device = torch.device(asked.device, 0) if asked.device == "cuda" else torch.device(asked.device)
    begin, peers = time.monotonic(), present([name for name in PEERS if name != "PyHessian"])
    stored: Record = {"environment": about(device), "expected": EXPECTED, "tiny": asked.tiny, "rows": []}

    def left() -> float:
        return asked.seconds - (time.monotonic() - begin)

    share = asked.seconds / 8  # for the runs at the end
    parts: dict[str, Callable[[], Iterator[Record]]] = {
        "recurrences": lambda: recurrences(device, asked.tiny),
        "products": lambda: products(
            device, asked.tiny, asked.models, peers, lambda: left() - ("slq" in asked.parts) * share
        ),
        "slq": lambda: slq(device, asked.tiny, [m for m in asked.models if m in ("mlp", "gpt2-124m")], peers),
    }
    for name, rows in parts.items():
        if name not in asked.parts:
            continue
        source = rows()
        while True:
            if left() < 0:
                stored["rows"].append({"part": name, "left_out": True})
                break
            try:
                record = next(source, None)
            except FAILURES as failure:
                record = {"part": name, "failure": first_line(failure)}
            if record is None:
                break
            stored["rows"].append(record)
            print(json.dumps({k: v for k, v in record.items() if k != "about"}), flush=True)
            write(stored)
            if "failure" in record and "model" not in record:
                break
    stored["seconds"] = time.monotonic() - begin
    return stored


def about(device: torch.device) -> Record:
    found = environment(
        ["transformers", "cupy-cuda12x", "cupy-cuda13x", *(peer.distribution for peer in PEERS.values())]
    )
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"card": card.name, "memory": card.total_memory, "multiprocessors": card.multi_processor_count,
                  "capability": f"{card.major}.{card.minor}", "cuda": torch.version.cuda}  # fmt: skip
    return found


def table(stored: Record) -> str:
    """Markdown: what was expected and came out, then all rows."""
    where, rows = stored["environment"], [row for row in stored["rows"] if "seconds" in row]
    lines = [
        f"{where.get('card', where['cpu'])}, torch {where['torch']}, commit {where.get('commit')}, {where['date']}.",
        "",
    ]
    bound, speed = (
        stored["expected"],
        {row["what"]: row["bytes_per_second"] for row in rows if row.get("what") == "copy"},
    )
    if speed:
        lines += ["| update of vectors | | GB/s | of a copy | expected |", "|---|---|---|---|---|"]
        for row in (row for row in rows if row["part"] == "recurrences"):
            share = row["bytes_per_second"] / speed["copy"]
            at_least = bound["bandwidth"].get(row.get("way", row["what"]))
            default = "chunk" not in row or row["chunk"] == longvectors.CHUNK_ELSEWHERE
            verdict = "" if at_least is None or not default else f"{at_least}{'' if share >= at_least else ', missed'}"
            which = row.get("way") or (f"{row['chunk']} at a time" if "chunk" in row else "")
            lines.append(f"| {row['what']} | {which} | {row['bytes_per_second'] / 1e9:.0f} | {share:.2f} | {verdict} |")
        lines.append("")
    head = ["model", "matrix", "package", "precision", "columns", "ms", "gradients", "peak, GB", "error", "expected"]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in (row for row in rows if row["part"] == "products"):
        ours = row["package"] == "spectral" and row["precision"] == "float32" and row["columns"] == 1
        limits = [bound["ratio"][row["matrix"]] if ours else None,
                  bound["gigabytes"].get(row["matrix"]) if ours and row["model"] == "gpt2-124m" else None]  # fmt: skip
        values = row["ratio"], None if row["peak"] is None else row["peak"] / 1e9
        said = [f"{limit}{'' if value is None or value <= limit else ', missed'}"
                for limit, value in zip(limits, values, strict=True) if limit is not None]  # fmt: skip
        error = f"{row['error']:.0e}{' **wrong**' if row['wrong'] else ''}"
        which = row["package"] if row["engine"] == "auto" else f"{row['package']}, {row['engine']}"
        memory = "–" if values[1] is None else f"{values[1]:.2f}"
        cells = [row["model"], row["matrix"], which, row["precision"], row["columns"], f"{1e3 * row['seconds']:.2f}",
                 f"{row['ratio']:.2f}", memory, error, "; ".join(said)]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| slq | package | steps | s | gradients | peak, GB | expected |", "|---|---|---|---|---|---|---|"]
    for row in (row for row in rows if row["part"] == "slq"):
        limit = bound["slq"]["gradients a step"] * row["steps"] if row["package"] == "spectral" else None
        verdict = "" if limit is None else f"{limit:.0f}{'' if row['gradients'] <= limit else ', missed'}"
        memory = "–" if row["peak"] is None else f"{row['peak'] / 1e9:.2f}"
        lines.append(
            f"| {row['model']} | {row['package']} | {row['steps']} | {row['seconds']:.2f} | {row['gradients']:.1f} | {memory} "
            f"| {verdict} |"
        )
    failed = [row for row in stored["rows"] if "failure" in row]
    lines += ["", *(f"- failed: {name(row)}: {row['failure']}" for row in failed)]
    lines += [f"- left out for want of time: {name(row)}" for row in stored["rows"] if row.get("left_out")]
    return "\n".join(lines)


def name(row: Record) -> str:
    keys = ("part", "model", "matrix", "package", "precision", "columns", "engine")
    return ", ".join(str(row[key]) for key in keys if key in row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and vectors: is the script itself right?")
    parser.add_argument("--seconds", type=float, default=270, help="for everything")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--parts", nargs="+", choices=["recurrences", "products", "slq"], default=["recurrences", "products", "slq"]
    )
    parser.add_argument("--out", type=Path, help="a folder for the JSON, named by the card")
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    if asked.table:
        print(table(json.loads(asked.table.read_text())))
        return
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "--device cuda needs a GPU that torch can see, and there is none; use --device cpu --tiny to try the script."
        )

    def write(stored: Record) -> None:
        if asked.out:
            where = stored["environment"]
            words = re.sub(r"[^A-Za-z0-9]+", "-", where.get("card", "cpu")).strip("-").lower()
            asked.out.mkdir(parents=True, exist_ok=True)
            (asked.out / f"gpu-{words}-{where['date']}.json").write_text(json.dumps(stored, indent=1) + "\n")

    stored = measured(asked, write)
    write(stored)
    print(table(stored))


if __name__ == "__main__":
    main()
