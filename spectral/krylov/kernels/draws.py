"""What draws a segment of a probe (`spectral.probes`): numpy on the processor, and a CUDA kernel, one thread a segment.

Signs and uniform entries are the same to the bit. So are Gaussian ones, but for one of 3 800 (beyond 3.65), whose logarithm a
card may round otherwise in the last place. The strips of the ziggurat are asked of numpy, so that there is one table of them.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

from spectral import arrays
from spectral.krylov.kernels.compiled import HERE, Kernels

SEGMENT = 1 << 16  # entries, as in the source
THREADS = 32  # of a block, as in the source
# Entries from which the kernel is used. Counted and not measured: a thread takes some 20 ms for its segment, however many there
# are; sixteen cores draw 2^25 entries in as much time.
LEAST = 1 << 25
KINDS = ("gaussian", "rademacher", "uniform")


def by_numpy(key: np.ndarray, segment: int, kind: str, count: int) -> np.ndarray:
    """The first entries of one segment, (count,) in float64, of the probe with this key (seed, index)."""
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, segment, KINDS.index(kind)]))
    if kind == "gaussian":
        return generator.standard_normal(count)
    if kind == "uniform":
        return generator.random(count)
    return 2.0 * generator.integers(0, 2, size=count) - 1.0


class Draws(Kernels):
    """The kernels on one device."""

    source, names = HERE / "probes.cu", KINDS
    options = ("--fmad=false",)  # numpy rounds each product

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.strips = [torch.from_numpy(table).to(device) for table in strips()]

    def fill(self, values: torch.Tensor, seed: int, index: int, start: int, kind: str) -> None:
        """values (n,) = entries start, ..., start + n - 1 of a probe."""
        segments = -(-(start + len(values)) // SEGMENT) - start // SEGMENT
        name, blocks = f"{kind}_{arrays.dtype_name(values.dtype)}", -(-segments // THREADS)
        self._launch(name, blocks, values, (start, len(values), seed, index))

    def _launch(self, name: str, blocks: int, values: torch.Tensor, numbers: tuple[int, ...]) -> None:
        tables = [np.uint64(table.data_ptr()) for table in self.strips]
        with arrays.one_stream(self.device):
            self.kernels[name]((blocks,), (THREADS,), (np.uint64(values.data_ptr()), *map(np.uint64, numbers), *tables))

    def hold(self) -> None:
        key, start = np.zeros(2, dtype=np.uint64), SEGMENT // 2
        for kind in KINDS:
            values = torch.empty(SEGMENT, dtype=torch.float64, device=self.device)
            self.fill(values, 0, 0, start, kind)
            due = np.concatenate([by_numpy(key, 0, kind, SEGMENT)[start:], by_numpy(key, 1, kind, start)])
            off = np.abs(values.cpu().numpy() - due).max()
            if not off <= (1e-15 if kind == "gaussian" else 0.0):
                raise ValueError(f"{kind} probes differ from numpy's by {off:.1e}")


def of(values: torch.Tensor) -> Draws | None:
    """What draws values (n,) on their device; None where the processor does it."""
    if not arrays.on_cuda(values.device) or len(values) < LEAST or values.dtype not in arrays.NUMPY:
        return None
    return Draws.of(values.device)


@cache
def strips() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of the ziggurat's 256 strips: abscissas that need no second look, the unit of abscissas, the density at its end.

    numpy keeps them to itself, but draws from any words that lie in a generator's buffer: a word is 52 bits of abscissa, a sign
    and 8 bits of strip, and an entry that took one word was accepted at once.
    """
    bits = np.random.Philox(0)
    generator, state = np.random.Generator(bits), bits.state
    after = 0, (1 << 64) - 1  # with which the second look, and the tail's, accept

    def drawn(strip: int, abscissa: int) -> tuple[float, bool]:
        # the first word of the buffer has been read: numpy 2.5 takes no other state
        state["buffer"], state["buffer_pos"] = np.array([0, abscissa << 9 | strip, *after], dtype=np.uint64), 1
        bits.state = state
        return generator.standard_normal(), bits.state["buffer_pos"] == 2

    half = 1 << 51
    width = np.array([drawn(strip, half)[0] / half for strip in range(256)])
    below = np.zeros(256, dtype=np.uint64)
    for strip in range(256):
        at = int(width[strip - 1] / width[strip] * (1 << 52)) if strip > 1 else 0  # or nearly so
        low, high = (at - 64, at + 64) if at else (0, 1 << 52)
        while low < high:  # the first that is not accepted at once
            middle = (low + high) // 2
            low, high = (middle + 1, high) if drawn(strip, middle)[1] else (low, middle)
        below[strip] = low
    density = np.array([1.0, *(math.exp(-0.5 * (w * (1 << 52)) ** 2) for w in width[1:])])
    return below, width, density
