"""What a measurement ran on, and whether the machine was idle meanwhile. Linux: /proc is read.

`python benchmarks/machine.py` prints it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import spectral

IDLE = 0.1  # cores that others may use before we warn


def busy_seconds() -> tuple[float, float]:
    """(seconds that all cores were busy or stolen, those of this process and its children)."""
    user, nice, system, _, _, irq, soft, stolen = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + soft + stolen) / ticks, sum(os.times()[:4])


@contextlib.contextmanager
def watched(about: dict[str, Any], key: str) -> Iterator[None]:
    """Into `about[key]`: how many cores others kept busy, on average; a loud line where they did."""
    begin, (total, own) = time.perf_counter(), busy_seconds()
    yield
    elapsed, (total_after, own_after) = time.perf_counter() - begin, busy_seconds()
    about[key] = max(0.0, (total_after - total) - (own_after - own)) / elapsed
    if about[key] > IDLE:
        line = (
            f"WARNING: the machine is not idle: others use {about[key]:.2f} cores. These ratios are not to be quoted."
        )
        print(f"\n{'!' * len(line)}\n{line}\n{'!' * len(line)}\n", file=sys.stderr, flush=True)


# Every tensor in pages of its own, so that freed memory goes back to the system.
FREES = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}


def status_bytes(key: str) -> int:
    """A line of this process's status: "VmRSS" what is resident, "VmHWM" the most that was."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":")]
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """The peak is what is resident now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def environment(packages: list[str]) -> dict[str, Any]:
    """Versions, of `packages` too where they are installed, threads, the processor, the commit and the load."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(),
        "spectral": spectral.__version__, "load_before": os.getloadavg(),
    }  # fmt: skip
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        found["commit"] = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


if __name__ == "__main__":
    about = environment([])
    with watched(about, "others_before"):
        time.sleep(1)
    print(json.dumps(about, indent=1))
