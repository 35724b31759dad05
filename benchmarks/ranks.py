"""What ranks bring: products of a model's matrix on several processes of one thread each, beside one process of one thread.

    python benchmarks/ranks.py [--ranks 2] [--model cnn] [--matrix GaussNewton] [--products 10] [--rounds 5] [--json FILE]

The same data in both. Rounds take turns: the first process multiplies alone by an operator over all data, while the others sleep;
then all multiply by one over their shares. Efficiency is seconds alone over ranks times seconds together, the median of the
rounds; a machine that changes its speed changes both. Beside it what the one all-reduce of a product takes, alone: as long as
that is a few per cent, there is nothing to be gained from overlapping it with the backward pass.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from machine import environment, watched
from models import build, our_operator

from spectral import collectives, distributed

WARM = 14  # products after which an operator has chosen how it multiplies, and recorded that


def timed(work: Callable[[], Any], count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - begun) / count


def measured(rank: int, asked: argparse.Namespace, folder: str) -> None:
    """The life of a process; the first writes what it has seen."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=asked.ranks)
    work = build(asked.model)
    alone = distributed.teams(1)
    with distributed.apart(alone):
        whole, _ = our_operator(work, asked.matrix)
    part, engine = our_operator(replace(work, data=distributed.share(work.data)), asked.matrix)
    v = part.probe(0, 0)
    for A in (whole, part):
        A.expect(1000)
    off = 0.0
    for _ in range(WARM):
        with distributed.apart(alone):
            w = whole @ v if rank == 0 else v
        collectives.meet()
        together = part @ v
        if rank == 0:
            off = max(off, float((together - w).norm() / w.norm()))
    seen: dict[str, list[float]] = {"alone": [], "together": [], "all_reduce": []}
    for _ in range(asked.rounds):
        with distributed.apart(alone):
            if rank == 0:
                seen["alone"].append(timed(lambda: whole @ v, asked.products))
        collectives.meet()
        distributed.all_reduce(torch.zeros(1))  # begin together
        seen["together"].append(timed(lambda: part @ v, asked.products))
        seen["all_reduce"].append(timed(lambda: distributed.all_reduce(v.clone()), asked.products))
    if rank == 0:
        found: dict[str, Any] = {key: statistics.median(values) for key, values in seen.items()}
        each = [a / (asked.ranks * b) for a, b in zip(seen["alone"], seen["together"], strict=True)]
        found |= {
            "efficiency": statistics.median(each), "of_rounds": each, "difference": off, "entries": len(v),
            "engine": engine.describe().get("engine"), "share_of_all_reduce": found["all_reduce"] / found["together"],
        }  # fmt: skip
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--matrix", default="GaussNewton")
    parser.add_argument("--products", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    asked = parser.parse_args()
    about = environment([])
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, watched(about, "others"):
        processes = [context.Process(target=measured, args=(rank, asked, folder)) for rank in range(asked.ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        found = json.loads(Path(folder, "found.json").read_text())
    print(
        f"{asked.model}, {asked.matrix}, engine {found['engine']}: a product takes {found['alone']:.4f} s on one process, "
        f"{found['together']:.4f} s on {asked.ranks}: efficiency {found['efficiency']:.1%} "
        f"(rounds {', '.join(f'{e:.1%}' for e in found['of_rounds'])}); the all-reduce of {found['entries']} entries "
        f"{found['share_of_all_reduce']:.1%} of it; products differ by {found['difference']:.1e}"
    )
    if asked.json:
        Path(asked.json).write_text(json.dumps({"about": about, "asked": vars(asked), **found}, indent=1))


if __name__ == "__main__":
    main()
