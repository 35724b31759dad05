"""How long `spectral.layers` takes beside WeightWatcher 0.7.7, and whether it says the same.

    pip install --no-deps --target /tmp/ww weightwatcher && pip install --target /tmp/ww powerlaw
    PYTHONPATH=/tmp/ww python benchmarks/layer_table.py [--json FILE] [--only minilm] [--full]

Each model: the processor's time of `WeightWatcher(model).analyze()`, that of `spectral.layers(model)`, verdicts included, their
ratio, and the largest relative difference of alpha. Beside them what of each is spent in the library's own routine: theirs in
`scipy.linalg.svd` of each matrix in float64, ours in `scipy.linalg.eigvalsh` of its Gram matrix; `at most` is the ratio that
would be left if all else of ours took no time. `--full`: with mp_fit and detX. Ours is the median of three runs, each part with
its own. Models are random but MiniLM's: the time does not depend on values but for the search of xmin.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import statistics
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import machine
import numpy as np
import scipy.linalg
import torch
from torch import nn

import spectral


def transformer(width: int, blocks: int) -> nn.Module:
    """The matrices of a GPT-like network."""
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)] * blocks
    return nn.Sequential(*[nn.Linear(a, b) for a, b in shapes])


def resnet() -> nn.Module:
    """The convolutions of a ResNet-18."""
    widths = [(64, 64)] * 4 + [
        (64, 128),
        *[(128, 128)] * 3,
        (128, 256),
        *[(256, 256)] * 3,
        (256, 512),
        *[(512, 512)] * 3,
    ]
    return nn.Sequential(nn.Conv2d(3, 64, 7), *[nn.Conv2d(a, b, 3) for a, b in widths], nn.Linear(512, 1000))


def minilm() -> nn.Module:
    from spectral.experiments.pretrained import minilm as read

    return read()[0]


def vgg() -> nn.Module:
    """The convolutions of a VGG-11, and a smaller classifier."""
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    return nn.Sequential(*[nn.Conv2d(a, b, 3) for a, b in pairwise(widths)], nn.Linear(512, 512), nn.Linear(512, 10))


MODELS = {
    "mlp": lambda: nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)]),
    "minilm": minilm,
    "vgg11": vgg,
    "resnet18": resnet,
    "gpt2, 2 blocks": lambda: transformer(768, 2),
    "square 2048": lambda: nn.Sequential(nn.Linear(2048, 2048)),
}


def timed(function: Any, home: Any, routine: str) -> tuple[float, float, Any]:
    """(seconds of the processor, those of them inside of a library's routine, the result)."""
    inside, plain = 0.0, getattr(home, routine)

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal inside
        begin = time.process_time()
        made = plain(*arguments, **options)
        inside += time.process_time() - begin
        return made

    setattr(home, routine, counted)
    try:
        begin = time.process_time()
        result = function()
        return time.process_time() - begin, inside, result
    finally:
        setattr(home, routine, plain)


def theirs(model: nn.Module, options: dict[str, bool]) -> Any:
    import weightwatcher

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        return weightwatcher.WeightWatcher(model=model).analyze(**options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--full", action="store_true")
    asked = parser.parse_args()
    options = {"mp_fit": True, "detX": True} if asked.full else {}
    torch.manual_seed(0)
    theirs(nn.Linear(64, 64), {})  # imports
    spectral.layers(nn.Linear(64, 64), progress=False)
    rows = []
    titles = ("theirs s", "svd s", "ours s", "eigh s", "ratio", "at most", "alpha differs")
    print(f"{'model':<16} {'layers':>6} " + " ".join(f"{title:>9}" for title in titles))
    for name in [asked.only] if asked.only else MODELS:
        model = MODELS[name]()
        own = partial(spectral.layers, model, progress=False, **options)
        runs = [timed(own, scipy.linalg, "eigvalsh") for _ in range(3)]
        (ours, eigh), table = (statistics.median(run[i] for run in runs) for i in (0, 1)), runs[0][2]
        seconds, svd, details = timed(partial(theirs, model, options), scipy.linalg, "svd")
        both = {row["longname"]: row["alpha"] for row in details.to_dict("records")}
        alphas = np.array([[row["alpha"], both[row["longname"]]] for row in table if row["longname"] in both])
        differs = float(np.max(np.abs(alphas[:, 0] / alphas[:, 1] - 1)))
        numbers = (seconds, svd, ours, eigh, seconds / ours, seconds / eigh, differs)
        rows.append({"model": name, "layers": len(table), **dict(zip(titles, numbers, strict=True))})
        print(f"{name:<16} {len(table):>6} " + " ".join(f"{number:>9.3g}" for number in numbers), flush=True)
    if asked.json:
        asked.json.write_text(
            json.dumps(
                {
                    "rows": rows,
                    "options": options,
                    "machine": machine.environment(["torch", "numpy", "scipy", "weightwatcher"]),
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
