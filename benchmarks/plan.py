"""Does `plan` tell the truth? Seconds and peak memory of ten runs of five kinds, predicted and measured.

    python benchmarks/plan.py [--jobs dense mlp-gn] [--threads 2] [--cpu] [--json FILE]

Each job in a process of its own: the operator is built, `plan` predicts a run of `slq`, then the run is made on an operator
that is built anew, as a user would who looked at the plan first. Peak memory is that of resident memory beyond what was there
before the run, of another process with an allocator that gives freed blocks back, as in `memory.py`, which costs time. Small
runs before have loaded the libraries. `--what bytes` leaves out the seconds, `--what seconds` the bytes.
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
    "dense": (dense, {"steps": 400, "probes": 4}),  # a basis above what resident memory resolves
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
    for matrix in ("J^T J", "GaussNewton", "Hessian"):  # what torch loads on first use is no part of a run
        spectral.slq(ours(build("tiny"), matrix), steps=30, probes=2, progress=False)
    predicted = spectral.plan(make(), **size)
    A = make()
    made: list[Any] = []
    gc.collect()
    before, begin = status_bytes("VmRSS"), time.perf_counter()
    most = peak(lambda: made.append(spectral.slq(A, **size, progress=False))) - before
    seconds = time.perf_counter() - begin
    parts = {name: float(f"{value:.3g}") for name, value in predicted.parts.items()}
    held = {**predicted.held, "deflated": int(made[0].atoms.multiplicities.sum())}  # how many vectors in fact
    return {
        "seconds": {"measured": seconds, "predicted": predicted.seconds, "parts": parts},
        "bytes": {"measured": most, "predicted": predicted.bytes, "parts": held},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--what", nargs="+", default=["seconds", "bytes"], choices=["seconds", "bytes"])
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
            row: dict[str, Any] = {"job": job, **JOBS[job][1]}
            for what in asked.what:
                command = [sys.executable, __file__, "--one", job, "--threads", str(asked.threads)]
                command += ["--cpu"] if asked.cpu else []
                env = FREES if what == "bytes" else None
                done = subprocess.run(command, capture_output=True, text=True, env=env)
                if done.returncode:
                    print(f"{job}: {done.stderr.strip().splitlines()[-1]}", flush=True)
                    continue
                row[what] = found = json.loads(done.stdout.strip().splitlines()[-1])[what]
                ratio = found["predicted"] / max(found["measured"], 1e-9)
                print(
                    f"{job:13} {what:7} {found['measured']:12.4g}, predicted over measured {ratio:5.2f}; {found}",
                    flush=True,
                )
            rows.append(row)
    if asked.json:
        asked.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
