"""Recurrences' updates with their inner products, each in one pass over memory: CUDA kernels, through cupy's RawModule.

Vectors that one step of a recurrence without a basis reads or writes, of length n, the product not counted:

| update | torch | fused |
|---|---|---|
| Lanczos: <q_prev, w>, w - beta q_prev, <w, q> | 2 + 3 + 2 | 4 |
| Lanczos: w - alpha q, <w, w> | 3 + 1 | 3 |
| Lanczos: w / beta | 2 | 2 (torch's) |
| Chebyshev: t_prev = a w - b t - t_prev, <t_prev, t>, <t_prev, t_prev> | 2 + 3 + 3 + 2 + 1 | 4 |

13 against 9, and 11 against 4; of float32 vectors torch writes each that it upcasts for an inner product as well, 8 bytes an
entry. It goes piece by piece, so that on a processor what an update reads again is in the cache, and memory sees about what it
sees of the kernels. Where reorthogonalisation reads the whole basis nothing of this matters.

Vectors are rounded as torch rounds them, inner products are sums of float64 in a fixed order: both paths give the same numbers
to the rounding of such sums. `fused` says which vectors have kernels: contiguous ones in float32 or float64 on a CUDA device, of
LEAST entries or more, where cupy can be imported, compiles the source and gives what torch gives on vectors that are tried first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spectral import arrays, longvectors
from spectral.krylov.kernels.compiled import HERE, Kernels
from spectral.pieces import Piece, summed

THREADS = 256  # of a block, as in the source
BLOCKS = 8  # for each multiprocessor: all threads that it holds
LEAST = 1 << 20  # entries: below, an update is bound by launches
TRIED = 100_003  # entries of the vectors on which kernels are held to torch, not a multiple of anything


def _subtracted(by: Any, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> tuple[tuple[float, ...], torch.Tensor]:
    out = torch.empty_like(w)
    return by.lanczos_subtract(x, y, w, out, 0.7), out


def _shortened(by: Any, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> tuple[tuple[float, ...], torch.Tensor]:
    out = w.clone()
    return (by.lanczos_shorten(x, out, 0.7),), out


def _three_term(by: Any, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> tuple[tuple[float, ...], torch.Tensor]:
    out = x.clone()
    return by.chebyshev(out, y, w, 1.3, 0.7), out


KERNELS = {"lanczos_subtract": _subtracted, "lanczos_shorten": _shortened, "chebyshev": _three_term}  # with trials


class Fused(Kernels):
    """The kernels on one device."""

    source, names = HERE / "recurrences.cu", tuple(KERNELS)
    options = (f"-DTHREADS={THREADS}",)

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.blocks = BLOCKS * torch.cuda.get_device_properties(device).multi_processor_count

    def lanczos_subtract(
        self, q_prev: torch.Tensor, q: torch.Tensor, w: torch.Tensor, out: torch.Tensor, beta: float
    ) -> tuple[float, float]:
        """out = w - beta q_prev, which may be w; (<q_prev, w>, <out, q>)."""
        across, alpha = self._launch("lanczos_subtract", (q_prev, q, w, out), (beta,), 2)
        return across, alpha

    def lanczos_shorten(self, q: torch.Tensor, w: torch.Tensor, alpha: float) -> float:
        """w = w - alpha q; ||w||."""
        return float(self._launch("lanczos_shorten", (q, w), (alpha,), 1)[0] ** 0.5)

    def chebyshev(
        self, t_prev: torch.Tensor, t: torch.Tensor, w: torch.Tensor, a: float, b: float
    ) -> tuple[float, float]:
        """t_prev = a w - b t - t_prev; (<t_prev, t>, <t_prev, t_prev>)."""
        cross, square = self._launch("chebyshev", (t_prev, t, w), (a, b), 2)
        return cross, square

    def _launch(
        self, name: str, vectors: tuple[torch.Tensor, ...], numbers: tuple[float, ...], sums: int
    ) -> list[float]:
        """One pass, on torch's stream; the inner products, for which the host waits once."""
        n = vectors[0].numel()
        blocks = min(self.blocks, -(-n // THREADS))
        partial = torch.empty(blocks, sums, dtype=torch.float64, device=self.device)
        kernel = self.kernels[f"{name}_{arrays.dtype_name(vectors[0].dtype)}"]
        pointers = [np.uint64(x.data_ptr()) for x in vectors]
        arguments = (*pointers, *map(np.float64, numbers), np.uint64(n), np.uint64(partial.data_ptr()))
        with arrays.one_stream(self.device):
            kernel((blocks,), (THREADS,), arguments)
        found: list[float] = partial.sum(0).tolist()
        return found

    def hold(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for dtype in arrays.NUMPY:
            x, y, w = torch.randn(3, TRIED, dtype=dtype, generator=generator).to(self.device)
            for name, run in KERNELS.items():
                found, vector = run(self, x, y, w)
                due, expected = run(PLAIN, x, y, w)
                off = max(
                    np.abs(np.array(found) - due).max() / TRIED, longvectors.distance(vector, expected) / TRIED**0.5
                )
                if not off <= 4 * arrays.machine_epsilon(dtype):
                    raise ValueError(
                        f"{name} differs from torch's operations by {off:.1e} in {arrays.dtype_name(dtype)}"
                    )


class Plain:
    """The same updates by torch's operations: what the kernels are held to, and what recurrences do without them."""

    def lanczos_subtract(
        self, q_prev: torch.Tensor, q: torch.Tensor, w: torch.Tensor, out: torch.Tensor, beta: float
    ) -> tuple[float, float]:
        dots, (across, alpha) = longvectors.Dots(w), arrays.double_zeros((2,), w.device)
        for before, now, product, made in longvectors.together(q_prev, q, w, out):
            across += dots.of(before, product)
            alpha += dots.of(torch.sub(product, before, alpha=beta, out=made), now)
        return _numbers(w, across, alpha)

    def lanczos_shorten(self, q: torch.Tensor, w: torch.Tensor, alpha: float) -> float:
        dots, square = longvectors.Dots(w), arrays.double_zeros((), w.device)
        for now, made in longvectors.together(q, w):
            square += dots.of(made.sub_(now, alpha=alpha), made)
        length: float = float(summed(square, w)) ** 0.5
        return length

    def chebyshev(
        self, t_prev: torch.Tensor, t: torch.Tensor, w: torch.Tensor, a: float, b: float
    ) -> tuple[float, float]:
        dots, (cross, square) = longvectors.Dots(w), arrays.double_zeros((2,), w.device)
        for made, now, product in longvectors.together(t_prev, t, w):
            made.neg_().add_(product, alpha=a).sub_(now, alpha=b)
            cross += dots.of(made, now)
            square += dots.of(made, made)
        return _numbers(w, cross, square)


def _numbers(of: torch.Tensor, *totals: torch.Tensor) -> tuple[float, float]:
    """Two sums over entries of `of`, by one all-reduce where it lies over ranks."""
    one, two = summed(torch.stack(totals), of).cpu().tolist()
    return one, two


PLAIN = Plain()


def fused(*vectors: torch.Tensor) -> Fused | None:
    """The kernels for these vectors (n,), None where torch's operations are to be used."""
    x = vectors[0]
    if not arrays.on_cuda(x.device) or x.numel() < LEAST or x.dtype not in arrays.NUMPY:
        return None
    if isinstance(x, Piece):  # whose inner products are sums over ranks
        return None
    if not all(v.is_contiguous() and v.dtype == x.dtype and v.device == x.device for v in vectors):
        return None
    return Fused.of(x.device)


def updates(*vectors: torch.Tensor) -> Fused | Plain:
    """What makes the updates of these vectors (n,)."""
    return fused(*vectors) or PLAIN
