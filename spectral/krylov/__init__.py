"""Recurrences: products in, immutable records out."""

from spectral.krylov.block_lanczos import BlockLanczos, BlockRecord, block_lanczos
from spectral.krylov.chebyshev import Chebyshev, ChebyshevRecord, chebyshev
from spectral.krylov.golub_kahan import BidiagonalRecord, GolubKahan, golub_kahan
from spectral.krylov.lanczos import Lanczos, LanczosRecord, lanczos

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
