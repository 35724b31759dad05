"""Does a model of a billion parameters fit one machine? Seconds and peak memory of a Lanczos run, weights in bfloat16.

    MALLOC_MMAP_THRESHOLD_=131072 python benchmarks/scale.py [--tokens 16] [--steps 20] [--layers 22] [--json FILE]

A Llama of the Hugging Face library with the configuration of TinyLlama (22 layers of width 2048, 32 000 tokens, 1.1 billion
parameters), random weights in bfloat16, one sequence; its Gauss-Newton matrix, `slq` with one probe and no basis. Vectors are
float32. Stated: the time of a gradient in bfloat16 and of the run, and the most memory that the whole process has held (the
kernel's VmHWM), python and torch included. Fewer layers make it smaller.

A processor without bfloat16 instructions (AVX2 alone) multiplies bfloat16 matrices 40 to 70 times slower than float32 ones,
unless the second one lies by columns: `--in-float32` then multiplies each of these pairs in float32, rounded afterwards, for
everything in this process, the gradient included. What is held in float32 is one matrix at a time.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from machine import environment, status_bytes
from models import Logits
from torch import nn

import spectral

VOCABULARY = 32000


def llama(layers: int) -> nn.Module:
    """With random weights, made in bfloat16 from the beginning."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=4, max_position_embeddings=2048, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return Logits(model.eval(), lambda m, t: m(input_ids=t))


def multiply_in_float32() -> torch.library.Library:
    """torch's own products of two bfloat16 matrices, where its kernel is slow."""
    library = torch.library.Library("aten", "IMPL")

    def slow(a: torch.Tensor, b: torch.Tensor) -> bool:
        return a.dtype is torch.bfloat16 and not (a.is_contiguous() and b.t().is_contiguous())

    def mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if slow(a, b):
            return torch.mm(a.float(), b.float()).to(a.dtype)
        return torch.ops.aten.mm.out(a, b, out=a.new_empty(a.shape[0], b.shape[1]))

    def addmm_(
        total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1
    ) -> torch.Tensor:
        if slow(a, b):
            return total.mul_(beta).add_(torch.mm(a.float(), b.float()), alpha=alpha)
        return torch.ops.aten.addmm.out(total, a, b, beta=beta, alpha=alpha, out=total)

    library.impl("mm", mm, "CPU")
    library.impl("addmm_", addmm_, "CPU")
    return library


def measure(layers: int, tokens: int, steps: int) -> dict[str, Any]:
    model = llama(layers)
    ids = torch.randint(VOCABULARY, (1, tokens + 1))
    data, loss = [(ids[:, :-1].clone(), ids[:, 1:].clone())], nn.CrossEntropyLoss()
    n = sum(p.numel() for p in model.parameters())
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        loss(model(data[0][0]), data[0][1]).backward()
        model.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
    gradient = {"seconds": min(seconds), "peak_bytes": status_bytes("VmHWM")}
    print(f"{n / 1e9:.3f} billion parameters; a gradient: {gradient['seconds']:.1f} s", flush=True)
    begin = time.perf_counter()
    A = spectral.GaussNewton(model, loss, data)
    built = time.perf_counter() - begin
    s = spectral.slq(A, probes=1, steps=steps, reorthogonalize=False, deflate=False, progress=True)
    whole = time.perf_counter() - begin
    top = s.records[0].eigen[0][-1]
    found = {
        "parameters": n, "tokens": tokens, "steps": steps, "gradient": gradient, "build_seconds": built, "seconds": whole,
        "gradients": whole / gradient["seconds"], "peak_bytes": status_bytes("VmHWM"), "largest_ritz_value": float(top),
        "trace": s.integrate(lambda x: x).value, "operator": A.describe(),
    }  # fmt: skip
    print(
        f"slq, {steps} steps: {whole:.0f} s ({found['gradients']:.0f} gradients; {built:.0f} s to build), peak "
        f"{found['peak_bytes'] / 2**30:.1f} GiB",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--in-float32", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    library = multiply_in_float32() if asked.in_float32 else None
    found = {**measure(asked.layers, asked.tokens, asked.steps), "in_float32": library is not None}
    if asked.json:
        asked.json.write_text(json.dumps({"about": environment([]), "found": found}, indent=1, default=str))


if __name__ == "__main__":
    main()
