"""Recurrences: products in, immutable records out."""

from spectral.recurrences.bidiagonal import BidiagonalRecord, GolubKahan, golub_kahan
from spectral.recurrences.block import BlockLanczos, BlockRecord, block_lanczos
from spectral.recurrences.chebyshev import Chebyshev, ChebyshevRecord, chebyshev
from spectral.recurrences.lanczos import Lanczos, LanczosRecord, lanczos

__all__ = [
    "BidiagonalRecord",
    "BlockLanczos",
    "BlockRecord",
    "Chebyshev",
    "ChebyshevRecord",
    "GolubKahan",
    "Lanczos",
    "LanczosRecord",
    "block_lanczos",
    "chebyshev",
    "golub_kahan",
    "lanczos",
]
