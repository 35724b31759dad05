"""Recurrences: products in, immutable records or converged pairs out."""

from spectral.krylov.block_lanczos import BlockLanczos
from spectral.krylov.chebyshev import Chebyshev, ChebyshevRecord, chebyshev
from spectral.krylov.golub_kahan import GolubKahan
from spectral.krylov.lanczos import Lanczos, LanczosRecord, lanczos

__all__ = [
    "BlockLanczos",
    "Chebyshev",
    "ChebyshevRecord",
    "GolubKahan",
    "Lanczos",
    "LanczosRecord",
    "chebyshev",
    "lanczos",
]
