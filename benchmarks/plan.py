"""Does `plan` tell the truth? Seconds and peak memory of ten runs of five kinds, predicted and measured.

    python benchmarks/plan.py [--jobs dense mlp-gn] [--threads 2] [--cpu] [--json FILE]

Each job in a process of its own: the operator is built, `plan` predicts a run of `slq`, then the run is made on an operator
that is built anew, as a user would who looked at the plan first. Peak memory is that of resident memory beyond what was there
before the run, with an allocator that gives freed blocks back, as in `memory.py`; a small run before has loaded the libraries.
`--cpu` takes the processor's seconds of one thread for time, which a loaded machine does not change much. Linux.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from machine import FREES, environment, status_bytes, watched
from memory import peak
from models import build
from short_runs import LARGE, ours

import spectral


def dense() -> Any:
    X = np.random.default_rng(0).standard_normal((3000, 3000))
    return spectral.as_operator(X + X.T)


def sparse() -> Any:
    return spectral.as_operator(
        scipy.sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(10**6, 10**6)).tocsr()
    )


def network(name: str, matrix: str) -> Callable[[], Any]:
    return lambda: ours(LARGE[name]() if name in LARGE else build(name), matrix)


JOBS: dict[str, tuple[Callable[[], Any], dict[str, int]]] = {  # the operator, steps and probes
    "dense": (dense, {"steps": 100, "probes": 4}),
    "sparse": (sparse, {"steps": 60, "probes": 2}),
    "mlp-gn": (network("mlp", "GaussNewton"), {"steps": 60, "probes": 2}),
    "mlp-hessian": (network("mlp", "Hessian"), {"steps": 30, "probes": 1}),
    "cnn-gn": (network("cnn", "GaussNewton"), {"steps": 20, "probes": 1}),
    "gpt2-gram": (network("gpt2", "J^T J"), {"steps": 40, "probes": 2}),
    "gpt2-hessian": (network("gpt2", "Hessian"), {"steps": 20, "probes": 1}),
    "bert-gn": (network("bert", "GaussNewton"), {"steps": 20, "probes": 1}),
    "wide-gn": (network("wide", "GaussNewton"), {"steps": 20, "probes": 1}),
    "wide-gram": (network("wide", "J^T J"), {"steps": 40, "probes": 2}),
}


def measure(job: str) -> dict[str, Any]:
    make, size = JOBS[job]
    spectral.slq(spectral.as_operator(np.diag(np.arange(300.0))), steps=100, progress=False)  # libraries are loaded
    predicted = spectral.plan(make(), **size)
    A = make()
    made: list[Any] = []
    gc.collect()
    before, begin = status_bytes("VmRSS"), time.perf_counter()
    most = peak(lambda: made.append(spectral.slq(A, **size, progress=False))) - before
    seconds = time.perf_counter() - begin
    return {
        "job": job, **size, "predicted_s": predicted.seconds, "measured_s": seconds, "predicted_bytes": predicted.bytes,
        "measured_bytes": most, "deflated": int(made[0].atoms.multiplicities.sum()),
        "parts": predicted.parts, "held": predicted.held,
    }  # fmt: skip


def _rounded(row: dict[str, Any]) -> str:
    """The parts, in seconds and MiB, and how many eigenvectors were deflated."""
    seconds = {name: float(f"{value:.2g}") for name, value in row["parts"].items()}
    return f"{seconds} { ({name: size >> 20 for name, size in row['held'].items()}) } {row['deflated']} deflated"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        if asked.cpu:
            time.perf_counter = time.process_time
        torch.set_num_threads(1 if asked.cpu else asked.threads)
        print(json.dumps(measure(asked.one)))
        return
    about, rows = environment([]), []
    with watched(about, "others"):
        for job in asked.jobs:
            command = [sys.executable, __file__, "--one", job, "--threads", str(asked.threads)]
            command += ["--cpu"] if asked.cpu else []
            done = subprocess.run(command, capture_output=True, text=True, env=FREES)
            if done.returncode:
                print(f"{job}: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            row = json.loads(done.stdout.strip().splitlines()[-1])
            rows.append(row)
            time_ratio, memory_ratio = (row[f"predicted_{k}"] / max(row[f"measured_{k}"], 1e-9) for k in ("s", "bytes"))
            print(f"{job:13} {row['measured_s']:7.1f} s, predicted over measured {time_ratio:5.2f};"
                  f" {row['measured_bytes'] / 2**20:7.0f} MiB, {memory_ratio:5.2f}; {_rounded(row)}", flush=True)  # fmt: skip
    if asked.json:
        asked.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
