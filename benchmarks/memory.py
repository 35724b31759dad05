"""How much memory do runs take beside the model and one gradient? In vectors of the model's size, each job in its own process.

    python benchmarks/memory.py [--models wide 124m] [--jobs slq trace] [--matrices GaussNewton] [--json FILE]
    python benchmarks/memory.py --made-again        # a product with activation checkpointing beside one without, in MiB

The base is the most that computing one gradient holds: weights, activations and the gradient. A job's figure is the most that
it holds beyond, set-up, tests and recording included, over the size of a vector. Linux: the peak is that of resident memory,
with an allocator that gives freed blocks back (MALLOC_MMAP_THRESHOLD_=131072), after the same job on a tiny model, so that code
which torch loads late does not count: as `product_cost.py` measures it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import FREES, environment, forget_peak, status_bytes
from models import MATRICES, Logits, Workload, build
from short_runs import LARGE, ours

import spectral
from spectral import arrays

JOBS: dict[str, Callable[[Any], Any]] = {
    "product": lambda A: A @ torch.ones(A.shape[1]),
    "slq": lambda A: spectral.slq(A, probes=1, steps=12, reorthogonalize=False, deflate=False, progress=False),
    "kpm": lambda A: spectral.kpm(A, probes=1, moments=12, progress=False),
    "trace": lambda A: spectral.trace(A, probes=8, progress=False),
    "diagonal": lambda A: spectral.diagonal(A, probes=6, progress=False),
    "top": lambda A: spectral.top(A, k=5, tol=1e-3, progress=False),
}


def long_sequence() -> Workload:
    """A narrow GPT-2 and one sequence of 512 tokens: a graph of 60 times its weights, and no batch that could be cut."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=512, n_embd=128, n_layer=8, n_head=4, bos_token_id=None, eos_token_id=None,
        use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    ids = torch.randint(256, (1, 513))
    net = Logits(GPT2LMHeadModel(config), lambda m, t: m(input_ids=t))
    return Workload(
        net.eval(), [(ids[:, :-1].clone(), ids[:, 1:].clone())], "GPT-2, 8 blocks of 128", torch.nn.CrossEntropyLoss()
    )


def made_again(kind: str) -> dict[str, Any]:
    """The most that one Gauss-Newton product holds beside the model and a gradient, its vectors included."""
    work = long_sequence()
    work.gradient()
    before = status_bytes("VmRSS")
    if kind == "made again":
        arrays.available_memory = lambda device: 0  # nothing fits: what is chosen by itself then
    A = spectral.GaussNewton(work.model, work.loss, work.data, engine="fresh")
    v = torch.ones(A.shape[1])
    A @ v
    most = peak(lambda: A @ v)
    return {"kind": kind, "bytes": most - before, "made_again": A.describe().get("made_again")}


def peak(work: Callable[[], Any]) -> int:
    """Bytes that were resident at most while `work` ran."""
    forget_peak()
    work()
    return status_bytes("VmHWM")


def measure(model: str, matrix: str, job: str) -> dict[str, Any]:
    """One job in this process."""
    work = LARGE[model]()
    vector = work.parameters * 4

    JOBS[job](ours(build("tiny"), matrix))  # code that is loaded late does not count
    work.gradient()
    base = peak(work.gradient)
    made: list[Any] = []

    def run() -> None:
        made.append(ours(work, matrix))
        JOBS[job](made[0])

    most = peak(run)
    return {
        "model": model, "matrix": matrix, "job": job, "vectors": (most - base) / vector, "vector_bytes": vector,
        "base_vectors": base / vector, "engine": made[0].describe().get("engine"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(LARGE))
    parser.add_argument("--matrices", nargs="+", default=list(MATRICES))
    parser.add_argument("--jobs", nargs="+", default=list(JOBS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--made-again", action="store_true")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "MATRIX", "JOB"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(*asked.one)))
        return
    if asked.kind:
        print(json.dumps(made_again(asked.kind)))
        return
    if asked.made_again:
        for kind in ("plain", "made again"):
            done = subprocess.run(
                [sys.executable, __file__, "--kind", kind], capture_output=True, text=True, env=FREES, check=True
            )
            row = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"{kind:12} {row['bytes'] / 2**20:8.1f} MiB  {row['made_again'] or ''}", flush=True)
        return
    rows = []
    for model in asked.models:
        for matrix in asked.matrices:
            for job in asked.jobs:
                command = [sys.executable, __file__, "--one", model, matrix, job]
                done = subprocess.run(command, capture_output=True, text=True, env=FREES)
                if done.returncode:
                    print(f"{model} {matrix} {job}: {done.stderr.strip().splitlines()[-1]}", flush=True)
                    continue
                rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
                print(
                    f"{model:10} {matrix:12} {job:9} {rows[-1]['vectors']:6.1f} vectors  {rows[-1]['engine']}",
                    flush=True,
                )
    if asked.json:
        asked.json.write_text(json.dumps({"about": environment([]), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
