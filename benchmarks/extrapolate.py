"""What would a spectrum of 7, 70 or 175 billion parameters take? Bytes, collectives, GPUs and hours, by arithmetic alone.

    python benchmarks/extrapolate.py [--tokens 262144] [--steps 100] [--rate 400] [--network 40] [--nvlink 300]

`slq` without a basis, one probe, on parameters that lie over GPUs (`fully_shard`), weights in bfloat16 and vectors in float32,
sequences of 512 tokens one at a time on each GPU. Nothing here is measured: it is `plan`'s count of vectors, and what
`docs/performance.md` counts for a product, put together with the rates that are given.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from spectral.plan import RECURRENCE

SEQUENCE = 512  # tokens of a batch
PASSES = 6  # forward passes in a product: J v with its values 3, the graph 1, J^T u 2; two gradients take as many
GATHERS = 5  # of all weights a product: J v gathers them and the vector, J^T u gathers twice and sums the gradients
BLOCKS = 2  # whole at a time, one multiplied and one on its way: weights, a vector and gradients of each
LOGITS = 10  # tensors of that size where a head is multiplied whole (docs/scale.md)
GIB = 2**30


@dataclass(frozen=True)
class Model:
    name: str
    parameters: float
    layers: int
    width: int
    heads: int
    vocabulary: int
    gpus: int


MODELS = (
    Model("7 B (Llama 2)", 6.74e9, 32, 4096, 32, 32000, 8),
    Model("70 B (Llama 2)", 69.0e9, 80, 8192, 64, 32000, 64),
    Model("175 B (GPT-3)", 175e9, 96, 12288, 96, 50257, 256),
)


def held(m: Model) -> dict[str, float]:
    """Bytes of one GPU."""
    # Korthikanti et al. (2022), eq. (1), without recomputation; attention without a fused kernel, as products need it
    graph = m.layers * SEQUENCE * (34 * m.width + 5 * m.heads * SEQUENCE)
    return {
        "weights and gradient": 4 * m.parameters / m.gpus,
        "vectors": RECURRENCE * 4 * m.parameters / m.gpus,
        "gathered": BLOCKS * 6 * m.parameters / m.layers,
        "graph and logits": graph + LOGITS * 2 * SEQUENCE * m.vocabulary,
    }


def seconds(m: Model, tokens: int, rate: float, network: float, nvlink: float) -> tuple[float, float]:
    """Of one product: (multiplying, collectives), where neither waits for the other."""
    batches = -(-tokens // (SEQUENCE * m.gpus))
    multiply = PASSES * 2 * m.parameters * SEQUENCE * batches / (rate * 1e12)
    move = GATHERS * 2 * m.parameters * batches / ((nvlink if m.gpus <= 8 else network) * 1e9)
    return multiply, move


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1 << 18)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=400, help="teraflops a GPU reaches in bfloat16")
    parser.add_argument("--network", type=float, default=40, help="GB a second for each GPU between machines")
    parser.add_argument("--nvlink", type=float, default=300, help="the same among the eight GPUs of one")
    asked = parser.parse_args()
    columns = (
        "model",
        "GPUs",
        *held(MODELS[0]),
        "GiB a GPU",
        "a product: multiplying, collectives",
        "hours, GPU hours",
    )
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for m in MODELS:
        parts = held(m)
        multiply, move = seconds(m, asked.tokens, asked.rate, asked.network, asked.nvlink)
        hours = asked.steps * (multiply + move) / 3600
        sizes = " | ".join(f"{size / GIB:.1f}" for size in (*parts.values(), sum(parts.values())))
        print(f"| {m.name} | {m.gpus} | {sizes} | {multiply:.1f} s, {move:.1f} s | {hours:.1f}, {hours * m.gpus:.0f} |")


if __name__ == "__main__":
    main()
