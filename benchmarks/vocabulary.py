"""What does a large vocabulary cost? Peak memory of a Gauss-Newton product in logits tensors, and its time in gradients.

    python benchmarks/vocabulary.py [--classes 1000 50257 128000] [--tokens 512] [--width 64] [--repeats 5] [--json FILE]

Three ways to the same matrix: the loss's Hessian by double backward (before), in closed form, and through the head in chunks of
tokens; each with nothing kept from product to product, and with what `memory=` keeps. Memory is what torch's allocator held
at most while a product ran, beyond what was there before: model, data and what earlier products have kept, which is given apart.
The time is the processor's, of the fastest of some products in turn with gradients.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import environment, watched
from torch import nn

import spectral


class Causal(nn.Module):
    """Tokens to logits (B, V, T) through an embedding, a gated layer and a head that shares its weight."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(classes, width), nn.Linear(width, width)
        self.head = nn.Linear(width, classes, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.embedding(ids)
        return self.head(h + torch.tanh(self.mix(h))).transpose(1, 2)


class Plain(nn.CrossEntropyLoss):
    """A subclass may be anything, and is differentiated twice."""


def whole(A: Any) -> Any:
    """The operator without its head."""
    A.network.head = None
    return A


WAYS: dict[str, Callable[..., Any]] = {
    "double backward": lambda *work, **options: spectral.GaussNewton(work[0], Plain(), work[1], **options),
    "closed form": lambda *work, **options: whole(
        spectral.GaussNewton(work[0], nn.CrossEntropyLoss(), work[1], **options)
    ),
    "head in chunks": lambda *work, **options: spectral.GaussNewton(work[0], nn.CrossEntropyLoss(), work[1], **options),
}


def held(work: Callable[[], Any]) -> tuple[int, int]:
    """(bytes that torch's allocator held at most beyond what was there, those that it holds afterwards) of some work."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    now = most = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most, now


def seconds(work: Callable[[], Any]) -> float:
    """Of the processor, which other processes disturb less than the clock."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(classes: int, tokens: int, width: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each way, with and without what is kept."""
    torch.manual_seed(0)
    model = Causal(classes, width)
    data = [(torch.randint(classes, (8, tokens // 8)), torch.randint(classes, (8, tokens // 8)))]
    loss = nn.CrossEntropyLoss()
    logits, rows = classes * tokens * 4, []
    expected: torch.Tensor | None = None

    def gradient() -> None:
        torch.autograd.grad(loss(model(data[0][0]), data[0][1]), list(model.parameters()))

    gradient_peak = held(gradient)[0]
    for memory in (0, "16GiB"):
        for name, make in WAYS.items():
            A = make(model, data, memory=memory, preflight=False, engine="fresh" if memory == 0 else "double-backward")
            v = torch.randn(A.shape[1], generator=torch.Generator().manual_seed(1))
            w: torch.Tensor = A @ v
            expected = w if expected is None else expected
            most, kept = held(lambda A=A, v=v: A @ v)
            each = [(seconds(gradient), seconds(lambda A=A, v=v: A @ v)) for _ in range(repeats)]
            slope, product = (min(times) for times in zip(*each, strict=True))
            row = {
                "classes": classes, "tokens": tokens, "width": width, "way": name, "kept": memory != 0,
                "vector": v.nbytes / logits, "gradient_peak": gradient_peak / logits, "peak": most / logits,
                "kept_logits": A.store.used / logits, "gradient_seconds": slope, "gradients": product / slope,
                "error": float((w - expected).norm() / expected.norm()), "stays": kept / logits,
            }  # fmt: skip
            rows.append(row)
            print(
                f"V = {classes:7d}  {name:16s} {'kept' if memory else 'anew'}  {row['peak']:5.2f} logits tensors, "
                f"{row['gradients']:5.2f} gradients (of {slope:.3f} s and {row['gradient_peak']:.2f}), a vector is "
                f"{row['vector']:.2f}, error {row['error']:.0e}",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", type=int, default=[1_000, 50_257, 128_000])
    parser.add_argument("--tokens", type=int, default=512, help="a multiple of 8, the number of sequences")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    stored: dict[str, Any] = {"about": environment([]), "rows": []}
    with watched(stored["about"], "others"):
        for classes in asked.classes:
            stored["rows"] += measure(classes, asked.tokens, asked.width, asked.repeats)
    if asked.json:
        asked.json.write_text(json.dumps(stored, indent=1))


if __name__ == "__main__":
    main()
