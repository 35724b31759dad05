"""What does watching cost? A small GPT-2, 200 steps, watched and not, in one run.

    python benchmarks/watch.py [--steps 200] [--every 20] [--share 0.05] [--samples 2] [--what top trace esd] [--json FILE]

Two networks with the same weights take the same steps in turn, one of them watched, so that a busy machine slows down both.
Seconds are those of the processor. The watched network must end with the plain one's weights, to the bit. --cold counts the
products of `top` without start= at the same weights, outside of all clocks.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from machine import environment, watched
from torch import nn

import spectral
from spectral.experiments.models import gpt

BATCH, LENGTH, VOCABULARY = 16, 64, 256


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    tokens = (
        torch.randint(VOCABULARY, (64, LENGTH + 1)).cumsum(1) % VOCABULARY
    )  # the next is not independent of the last
    plain = gpt(vocabulary=VOCABULARY, length=LENGTH, width=128, depth=3, heads=4)
    other = copy.deepcopy(plain)
    loss = nn.CrossEntropyLoss()
    optimizers = {model: torch.optim.AdamW(model.parameters(), 1e-3) for model in (plain, other)}
    x, y = tokens[: asked.samples, :-1], tokens[: asked.samples, 1:]
    made: list[spectral.Operator] = []

    def make() -> spectral.Operator:
        made.append(spectral.GaussNewton(other, loss, [(x, y)]))
        return made[0]

    apart = [0.0]  # seconds of what is no part of the watched training
    watcher = spectral.Watcher(
        make, every=asked.every, share=asked.share, what=asked.what, clock=lambda: time.process_time() - apart[0]
    )

    def step(model: nn.Module, chosen: torch.Tensor) -> float:
        begun = time.process_time()
        optimizers[model].zero_grad()
        loss(model(chosen[:, :-1]), chosen[:, 1:]).backward()
        optimizers[model].step()
        return time.process_time() - begun

    step(copy_of(plain, optimizers), tokens[:BATCH])  # libraries are loaded
    seconds: dict[str, list[float]] = {"plain": [], "watched": [], "watching": []}
    products = {"warm": 0, "cold": 0}
    for number in range(asked.steps):
        chosen = tokens[torch.randperm(len(tokens))[:BATCH]]
        seconds["plain"].append(step(plain, chosen))
        apart[0] += seconds["plain"][-1]
        seconds["watched"].append(step(other, chosen))
        begun = time.process_time()
        readings = watcher(number)
        seconds["watching"].append(time.process_time() - begun)
        begun = time.process_time()
        for reading in readings:
            if asked.cold and reading.what == "top" and len(watcher.history("top")["step"]) > 1:
                products["warm"] += reading.products
                cold = spectral.top(spectral.GaussNewton(other, loss, [(x, y)]), 1, tol=1e-2, progress=False)
                products["cold"] += cold.products
        apart[0] += time.process_time() - begun
    watcher.close()
    total = {name: sum(each) for name, each in seconds.items()}
    return {
        "ratio": (total["watched"] + total["watching"]) / total["plain"],
        "watching": total["watching"] / total["watched"],
        "seconds": total,
        "median_step": statistics.median(seconds["plain"]),
        "noise": total["watched"] / total["plain"],
        "readings": {what: sum(r.what == what for r in watcher.readings) for what in watcher.options},
        "skipped": len(watcher.skipped),
        "products": products,
        "same_weights": all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True)),
    }


def copy_of(model: nn.Module, optimizers: dict[nn.Module, Any]) -> nn.Module:
    other = copy.deepcopy(model)
    optimizers[other] = torch.optim.AdamW(other.parameters(), 1e-3)
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--what", nargs="+", default=["top", "trace", "esd"])
    parser.add_argument("--cold", action="store_true", help="count the products of top without start= as well")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    about: dict[str, Any] = environment([])
    with watched(about, "others_cores"):
        found = measure(asked)
    print(
        f"{asked.steps} steps watched / plain: {found['ratio']:.4f}; without the watcher's part (noise): {found['noise']:.4f}"
    )
    print(f"watching / training: {found['watching']:.4f} of a share of {asked.share:g}")
    print(f"readings {found['readings']}, {found['skipped']} skipped")
    if asked.cold:
        print(f"products of top: {found['products']['warm']} warm, {found['products']['cold']} cold")
    print(f"the same weights to the bit: {found['same_weights']}")
    if asked.json:
        asked.json.write_text(
            json.dumps({"asked": {**vars(asked), "json": None}, **found, "environment": about}, indent=1)
        )


if __name__ == "__main__":
    main()
