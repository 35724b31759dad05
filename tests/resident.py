"""How much memory a process has held: for tests that measure it in a process of their own."""

import gc
import os
import subprocess
import sys
from pathlib import Path


def peak(work):
    """Bytes that were resident at most while `work` ran. Linux."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    work()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measured(script, *arguments, **options):
    """What a script prints that may import this module, in a process of its own."""
    environment = {**os.environ, **options.pop("environment", {})}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [environment.get("PYTHONPATH")])]
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout
