"""Jackson's damping of Chebyshev moments."""

from __future__ import annotations

import numpy as np


def jackson(count: int) -> np.ndarray:
    """Jackson's damping factors g_0 = 1, ..., g_{M-1}, (M,): M moments damped by them give a density that is nowhere negative.

    The kernel is about pi / M wide in arccos(x), which biases integrals: for pictures alone. Weisse et al. (2006), eq. 71.
    """
    M, j = count, np.arange(count)
    angle = np.pi / (M + 1)
    return np.asarray(((M - j + 1) * np.cos(angle * j) + np.sin(angle * j) / np.tan(angle)) / (M + 1))
