"""Reading what a run leaves behind: result.json, spectrum.npz, and two runs side by side.

One learns where numbers and their errors lie in `result.json`, that `spectra/spectrum.npz` is the whole spectrum, of which
anything can be asked later without one more product, and how to say how far two spectra are apart (`compare`), with an error.

    python examples/read_report.py [FOLDER]     # about 40 s; writes read_report.png
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np

import spectral


def run(folder: Path, name: str, *settings: str) -> Path:
    """One run of the command in its own folder; on a real one, this is where you have been already."""
    arguments = [
        "data=file", "data.path=blobs.npz", "data.train=120", "data.test=60", "operator=gauss_newton",
        "model.options.widths=[24]",
        "estimator=slq", "estimator.probes=3", "estimator.steps=50", "training.options.max_epochs=200",
        "training.options.target_loss=0.2", f"hydra.run.dir={name}", *settings,
    ]  # fmt: skip
    print("$ spectral", *arguments, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "spectral", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return folder / name


def main(folder: Path) -> None:
    with TemporaryDirectory() as place:
        rng = np.random.default_rng(0)
        y = np.arange(180) % 3
        np.savez(
            Path(place) / "blobs.npz", x=(rng.standard_normal((180, 12)) + 1.5 * np.eye(12)[y]).astype(np.float32), y=y
        )
        settings = {"true": "training.noise=0", "random": "training.noise=1"}
        runs = {name: run(Path(place), f"runs/{name}", setting) for name, setting in settings.items()}
        results = {name: json.loads((path / "result.json").read_text()) for name, path in runs.items()}
        spectra = {name: spectral.Spectrum.load(path / "spectra" / "spectrum.npz") for name, path in runs.items()}

    for name, result in results.items():
        cost = result["cost"]
        print(f"{name} labels: {result['answer']['sentence'] if 'sentence' in result['answer'] else result['title']}")
        print(f"  {cost['products']} products, {cost['seconds']:.1f} s")
        for key in ("trace", "effective_rank", "stable_rank"):
            estimate = result["estimates"][key]
            print(f"  {key:<15} {estimate['value']:.4g} ± {estimate['stderr']:.2g}")
    one, other = spectra.values()
    above = one.count(0.1, np.inf)  # a question that nobody asked while it ran
    print(f"true labels, above 0.1: {above.value:.0f} eigenvalues, 95 % sure of {above.lower:.0f} to {above.upper:.0f}")
    apart = spectral.compare(one, other)
    for key in ("wasserstein", "wasserstein_by_mean", "ks", "trace_ratio", "effective_rank_ratio"):
        print(f"{key:<21} {apart[key]:.4g} ± {apart[f'{key}_stderr']:.2g}")

    _, ax = plt.subplots(figsize=(6.4, 3.6))
    for name, spectrum in spectra.items():
        spectrum.plot(ax, label=f"{name} labels")
    ax.set_title("Gauss-Newton matrix, two runs")
    ax.legend()
    ax.figure.savefig(folder / "read_report.png", dpi=110, bbox_inches="tight")
    print(folder / "read_report.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
