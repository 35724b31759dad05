"""Recurrences: products in, immutable records out.

`lanczos` of a symmetric matrix, `block_lanczos` of several vectors at once, `golub_kahan` of a rectangular one, `chebyshev`
moments. A record holds the few numbers that the recurrence made (T, B or the moments) and what it rests on. Everything that
estimators say is a pure function of records, so that a spectrum can be stored, merged and looked at again without one more
product.
"""

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
