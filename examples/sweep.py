"""A sweep from the command line, read back in Python.

One learns to run every combination of some settings with one command on arrays of one's own (`data=file`), to gather the runs
(`spectral-report`), and to read the table of all numbers: a row for each number of each run, with its error.

    python examples/sweep.py [FOLDER]     # about 30 s; writes sweep.png
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np

SETTINGS = (
    "data=file", "data.path=rings.npz", "data.train=150", "data.test=150", "operator=hessian", "model.options.widths=[16]",
    "training.options.max_epochs=300", "training.options.target_loss=0.3", "output=numbers", "hydra.sweep.dir=runs",
)  # fmt: skip
SHOWN = ("trace", "lambda_max", "effective_rank")


def command(*arguments: str, cwd: Path) -> None:
    print("$", arguments[0].replace("spectral.pages.sweep", "spectral-report"), *arguments[1:], flush=True)
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def sweep(folder: Path) -> list[dict[str, str]]:
    """Four runs, and the rows of `sweep_long.csv`."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6))
    np.savez(folder / "rings.npz", x=x.astype(np.float32), y=(np.hypot(x[:, 0], x[:, 1]) > 1.2).astype(int))
    command("spectral", "-m", *SETTINGS, "training.noise=0,1", "seed=0,1", cwd=folder)
    command("spectral.pages.sweep", "runs", cwd=folder)
    with open(folder / "runs" / "sweep_long.csv", newline="") as file:
        return list(csv.DictReader(file))


def main(folder: Path) -> None:
    with TemporaryDirectory() as place:
        rows = sweep(Path(place))
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["metric"] in SHOWN and row["value"]:
            name, value, error = row["metric"], float(row["value"]), float(row["error"])
            print(f"noise {row['training.noise']} seed {row['seed']} {name:<15} {value:.4g} ± {error:.1g}")
            found[name, row["training.noise"]].append(value)
    _, axes = plt.subplots(1, len(SHOWN), figsize=(8.4, 3.0))
    for ax, name in zip(axes, SHOWN, strict=True):
        for i, noise in enumerate(("0", "1")):
            values = np.array(found[name, noise])
            print(
                f"{name:<15} noise {noise}: {values.mean():.4g} ± {values.std(ddof=1):.2g} (sd over {len(values)} seeds)"
            )
            ax.plot(np.full(len(values), i), values, "o")
        ax.set(title=name, xticks=[0, 1], xlim=(-0.5, 1.5), xticklabels=["true labels", "random labels"])
        ax.set_ylim(0, 1.15 * max(found[name, "0"] + found[name, "1"]))
    axes[0].figure.tight_layout()
    axes[0].figure.savefig(folder / "sweep.png", dpi=100)
    print(folder / "sweep.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
