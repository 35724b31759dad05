"""The basis of a recurrence: orthonormal vectors q_1 ... q_k as rows, beside its vectors or where there is room for them.

- "device": where the vectors are, in their dtype.
- "bf16": there, rounded to bfloat16.
- "host": in the processor's memory, moved to the vectors a piece at a time.
- a path: in files in this folder, mapped into memory, which have no name and go with the run.

A rounded row is off by e, of length 2^-9 at most: what is orthogonalised against it keeps <e, w>, a number of the size 2^-9 ||w||
/ sqrt(3 m) where the vectors live on about m entries, and is changed by as much without need. So far are the values of T off,
relative to ||A||: rounding of float32 from m = 10^7 on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral import arrays, longvectors
from spectral.pieces import like

ROWS = 32  # rows allocated at a time
PLACES = ("device", "bf16", "host")
PIECE = 1 << 22  # entries that are converted or moved at a time
ROUNDED = 2.0**-8  # what an inner product with a rounded row is less off by, vectors of length 1
DISK = 0.75  # of what is free there


def check_place(place: Any, dtype: torch.dtype | None = None) -> str:
    """`place` as text; one sentence for what is no place, and for vectors (of this dtype) whose digits bfloat16 cannot keep."""
    if not isinstance(place, str | os.PathLike):
        raise TypeError(f"basis={place!r} is no place; use 'device', 'bf16', 'host' or the path of a folder.")
    text = os.fspath(place)
    if text == "bf16" and dtype == torch.float64:
        raise ValueError(
            "basis='bf16' leaves float64 vectors no more digits than float32 has; use "
            "'host' or a path, or an operator in float32."
        )
    if text not in PLACES and not Path(text).is_dir():
        raise ValueError(
            f"basis={text!r} is no folder; use 'device', 'bf16', 'host' or the path of a folder that is there."
        )
    return text


def free(place: str, device: torch.device) -> int:
    """Bytes that a basis may take in this place: a quarter of the memory that is free, or three quarters of the disk."""
    if place in ("device", "bf16"):
        return arrays.available_memory(device) // 4
    if place == "host":
        return arrays.available_memory(torch.device("cpu")) // 4
    return int(DISK * shutil.disk_usage(place).free)


def row_bytes(place: str, n: int, dtype: torch.dtype) -> int:
    """Bytes of one of its vectors (n,)."""
    return n * (2 if place == "bf16" else dtype.itemsize)


class Basis:
    """Rows that grow in number, `most` at the most: vectors like `vector` (n,)."""

    def __init__(self, vector: torch.Tensor, most: int, place: str = "device") -> None:
        self.like, self.most, self.place = vector[:0], most, place
        self.blocks: list[torch.Tensor] = []
        self.exact = place != "bf16"  # whether rows are the vectors to the bit
        here = self.exact and (place == "device" or vector.device.type == "cpu")
        self.n, self.plain = len(vector), here  # whether blocks can be multiplied as they are

    @property
    def rounding(self) -> float:
        """How far an inner product of a row with a vector of length 1 may be off because the row is rounded."""
        return 0.0 if self.exact else ROUNDED

    def keep(self, j: int, q: torch.Tensor) -> None:
        """q is row j; those before it are there."""
        if j // ROWS == len(self.blocks):
            self.blocks.append(self._allocated(min(ROWS, self.most - j)))
        self.blocks[j // ROWS][j % ROWS].copy_(q)

    def row(self, j: int) -> torch.Tensor:
        """Row j as a vector like the others."""
        return self.blocks[j // ROWS][j % ROWS].to(self.like)

    def combine(self, coefficients: np.ndarray) -> torch.Tensor:
        """coefficients (c, k) times the first k rows: (c, n)."""
        total = self.like.new_zeros(len(coefficients), self.n)
        for i, part in enumerate(self._first(coefficients.shape[1])):
            some = torch.from_numpy(np.ascontiguousarray(coefficients[:, i * ROWS : i * ROWS + len(part)])).to(total)
            for piece, rows in self._pieces(part):  # nothing of the result's size beside it
                total[:, piece] += longvectors.product(some, rows)
        return total

    def orthogonalise(self, w: torch.Tensor, k: int) -> np.ndarray:
        """Subtract from w (n,), in place, its part along the first k rows, as `longvectors.orthogonalise` does; <q_i, w> (k,)."""
        along: list[torch.Tensor] = []
        for _ in range(2):
            products = [self._dots(part, w) for part in self._first(k)]
            along = along or products
            for part, exact in zip(self._first(k), products, strict=True):
                c = exact.to(w)
                if self.plain:
                    w.sub_(part.T @ c)
                    continue
                for piece, rows in self._pieces(part):
                    w[piece].sub_(rows.T @ c)
            if self.exact and self.n > longvectors.SHORT and longvectors.clear(w, torch.cat(products)):
                break
        return torch.cat(along).cpu().numpy()

    def _first(self, k: int) -> list[torch.Tensor]:
        """The first k rows, by blocks."""
        return [block[: k - i * ROWS] for i, block in enumerate(self.blocks[: -(-k // ROWS)])]

    def _dots(self, part: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if self.plain:
            return longvectors.coefficients(part, w)
        total = arrays.double_zeros((len(part),), w.device)
        for piece, rows in self._pieces(part):
            total += longvectors.coefficients(rows, w[piece])
        return total

    def _pieces(self, part: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some columns of a block at a time, like the vectors."""
        for piece in longvectors.chunks(self.n, len(part), PIECE):
            if part.device == self.like.device:
                yield piece, part[:, piece].to(self.like)
                continue
            some = self.like.new_empty(len(part), len(part[0, piece]))
            # what does not lie together does not move by itself
            for row, there in zip(some, part[:, piece], strict=True):
                row.copy_(there, non_blocking=True)
            yield piece, some

    def _allocated(self, rows: int) -> torch.Tensor:
        """Memory for so many rows."""
        if self.place == "device":
            return self.like.new_empty(rows, self.n)
        if self.place == "bf16":
            return self.like.new_empty(rows, self.n, dtype=torch.bfloat16)
        if self.place == "host":
            pinned = self.like.device.type == "cuda"
            return like(torch.empty(rows, self.n, dtype=self.like.dtype, pin_memory=pinned), self.like)
        size = rows * row_bytes(self.place, self.n, self.like.dtype)
        handle, name = tempfile.mkstemp(prefix="spectral-basis-", dir=self.place)
        try:
            os.posix_fallocate(handle, 0, size)  # a full disk says so here, not where a page is written
            block = torch.from_file(name, shared=True, size=rows * self.n, dtype=self.like.dtype)
        except OSError as full:
            raise OSError(
                f"basis={self.place!r} has no room for {size / 2**30:.3g} GiB more ({full.strerror}); name a larger disk, or use "
                "reorthogonalize=False."
            ) from full
        finally:
            os.close(handle)
            os.unlink(name)  # the mapping stays; whatever ends the process, nothing is left
        return like(block.view(rows, self.n), self.like)
