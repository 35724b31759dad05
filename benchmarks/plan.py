"""Does `plan` tell the truth? Seconds and peak memory of ten runs of five kinds, predicted and measured.

    python benchmarks/plan.py [--jobs dense mlp-gn] [--json FILE]

Each job in a process of its own: the operator is built, `plan` predicts a run of `slq`, then the run is made on an operator
that is built anew, as a user would who looked at the plan first. Peak memory is that of resident memory beyond what was there
before the run. Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from machine import environment, status_bytes, watched
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
    predicted = spectral.plan(make(), **size)
    A = make()
    spectral.as_operator(np.eye(3)) @ np.ones(3)  # scipy is loaded
    before = status_bytes("VmRSS")
    begin = time.perf_counter()
    most = peak(lambda: spectral.slq(A, **size, progress=False)) - before
    seconds = time.perf_counter() - begin
    return {
        "job": job, **size, "predicted_s": predicted.seconds, "measured_s": seconds, "predicted_bytes": predicted.bytes,
        "measured_bytes": most, "parts": predicted.parts, "held": predicted.held,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one)))
        return
    about, rows = environment([]), []
    with watched(about, "others"):
        for job in asked.jobs:
            done = subprocess.run([sys.executable, __file__, "--one", job], capture_output=True, text=True)
            if done.returncode:
                print(f"{job}: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            row = json.loads(done.stdout.strip().splitlines()[-1])
            rows.append(row)
            time_ratio, memory_ratio = (row[f"predicted_{k}"] / max(row[f"measured_{k}"], 1e-9) for k in ("s", "bytes"))
            print(f"{job:13} {row['measured_s']:7.1f} s, predicted over measured {time_ratio:5.2f};"
                  f" {row['measured_bytes'] / 2**20:7.0f} MiB, {memory_ratio:5.2f}", flush=True)  # fmt: skip
    if asked.json:
        asked.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
