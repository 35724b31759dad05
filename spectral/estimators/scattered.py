"""Vectors that lie over ranks, on disk: each rank writes and reads its own part, by `torch.distributed.checkpoint`.

Every run of entries that a rank holds is a tensor of its own in the file, under the place of its first entry in the whole
vector. Ranks of any other number find what is theirs by these places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from spectral import distributed
from spectral.pieces import Piece, Shards, local


def save(folder: Path, pieces: Mapping[str, tuple[torch.Tensor, int]], shards: Shards) -> None:
    """Write pieces by name, each with the axis that lies over the ranks; all ranks together. OSError where one cannot."""
    import torch.distributed.checkpoint as dcp  # takes longer than all of torch.distributed

    parts: dict[str, torch.Tensor] = {}
    for name, (piece, axis) in pieces.items():
        x, at = local(piece).detach(), 0
        for first, count in shards.own:
            parts[f"{name}@{first}"] = x.narrow(axis, at, count).cpu().contiguous()
            at += count
    try:
        whole = {name: part for name, part in parts.items() if part.numel()}
        dcp.save(whole, storage_writer=dcp.FileSystemWriter(folder, overwrite=True))
    except dcp.CheckpointException as problem:  # the same on every rank
        raise next((one for one, _ in problem.failures.values() if isinstance(one, OSError)), problem) from None


def load(folder: Path, name: str, shape: list[int], axis: int, dtype: torch.dtype, shards: Shards) -> torch.Tensor:
    """This rank's piece, on the CPU, of what was saved under a name, of this shape as a whole; all ranks together."""
    import torch.distributed.checkpoint as dcp

    there = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    out = torch.empty(*shape[:axis], shards.entries, *shape[axis + 1 :], dtype=dtype)
    if not math.prod(shape):
        return out.as_subclass(Piece)
    saved = {}  # by the place of the first entry, what overlaps with this rank's entries
    for key, about in there.items():
        owner, _, place = key.rpartition("@")
        if owner != name:
            continue
        first, count = int(place), about.size[axis]  # type: ignore[union-attr]
        if any(first < start + length and start < first + count for start, length in shards.own):
            saved[key] = first, torch.empty(about.size, dtype=dtype)  # type: ignore[union-attr]
    dcp.load({key: part for key, (_, part) in saved.items()}, checkpoint_id=folder)
    at = filled = 0
    for start, length in shards.own:
        for first, part in saved.values():
            low, high = max(start, first), min(start + length, first + part.shape[axis])
            if low < high:
                out.narrow(axis, at + low - start, high - low).copy_(part.narrow(axis, low - first, high - low))
                filled += high - low
        at += length
    if not all(distributed.gather(lambda: filled == shards.entries)):
        raise ValueError(f"{folder} is damaged: {name} is not whole; delete it and its checkpoint, and run again.")
    return out.as_subclass(Piece)
