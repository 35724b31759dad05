"""What differs between the versions of numpy, scipy and torch that this package runs on, each with the version that differs."""

from __future__ import annotations

import numpy as np
import scipy


def eigh_tridiagonal(alphas: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (k,), ascending, and eigenvectors (k, k), columns, of a symmetric tridiagonal matrix, by divide and conquer.

    `eigh_tridiagonal` of scipy does so from scipy 1.16 on. Before, it took MRRR, whose eigenvalues were off by 20 eps ||T|| where
    bounds allow for 8; what lies behind `eig_banded` is divide and conquer too, off by 5 there.
    """
    if hasattr(scipy.linalg.lapack, "dstevd"):
        return scipy.linalg.eigh_tridiagonal(alphas, betas, lapack_driver="stevd")
    return scipy.linalg.eig_banded(np.stack([alphas, np.append(betas, 0.0)]), lower=True)
