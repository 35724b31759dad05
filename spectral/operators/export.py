"""The way out: views for scipy and cupy of whatever has `@`, `.T`, `.shape`, `.dtype` and `.device`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import scipy
import torch

from spectral import arrays
from spectral.failures import first_line


def _cast_product(A: Any, X: torch.Tensor) -> torch.Tensor:
    """A X in A's dtype for X of any; of a complex X the real and the imaginary part, as columns of one block."""
    W: torch.Tensor
    if not X.is_complex():
        W = A @ X.to(A.dtype)
        return W
    parts = torch.view_as_real(X).to(A.dtype)
    W = A @ parts.flatten(1)
    return torch.view_as_complex(W.reshape(len(W), *parts.shape[1:]).contiguous())


def scipy_view(A: Any) -> Any:
    """`A` as a `scipy.sparse.linalg.LinearOperator`, see `Operator.to_scipy`.

    scipy's solvers work in the dtype of their own vectors: those are cast to the operator's dtype on the way in, and the result
    keeps the operator's dtype. A complex vector is multiplied as its real and its imaginary part, two products.
    """
    kind = {torch.float64: np.float64, torch.float32: np.float32}.get(A.dtype)
    if kind is None:
        raise TypeError(f"scipy has no {A.dtype}; build the operator in float32 or float64.")

    product = partial(_scipy_product, dtype=kind)  # partials of a module's function can be pickled, a closure cannot
    return scipy.sparse.linalg.LinearOperator(
        A.shape,
        matvec=partial(product, A, vector=True),
        rmatvec=partial(product, A.T, vector=True),
        matmat=partial(product, A),
        rmatmat=partial(product, A.T),
        dtype=np.dtype(kind),
    )


def _scipy_product(A: Any, X: np.ndarray, *, dtype: Any, vector: bool = False) -> np.ndarray:
    """A X in numpy; of a `vector` that scipy hands over as (n,) or (n, 1), (m,)."""
    X = np.asarray(X).reshape(-1) if vector else X
    dtype = np.result_type(dtype, np.complex64) if np.iscomplexobj(X) else dtype
    W: np.ndarray = _cast_product(A, arrays.to_torch(np.ascontiguousarray(X, dtype=dtype)).to(A.device)).cpu().numpy()
    return W


def _cupy_product(A: Any, X: Any) -> Any:
    return arrays.to_cupy(_cast_product(A, arrays.to_torch(X)))


def cupy_view(A: Any) -> Any:
    """`A` as a `cupyx.scipy.sparse.linalg.LinearOperator`; cupy is imported here and nowhere else."""
    if A.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"cupy's solvers have no {A.dtype}; build the operator in float32 or float64.")
    if not arrays.on_cuda(A.device):
        raise ValueError(
            f"cupy works on CUDA devices, but the operator is on {A.device}; build it on one, or use to_scipy()."
        )
    try:
        import cupy  # noqa: F401  (arrays finds it in sys.modules)
        from cupyx.scipy.sparse.linalg import LinearOperator
    except ImportError as problem:  # cupyx also raises it for a missing libcublasLt
        why = first_line(problem).rstrip(".")
        raise ImportError(
            f"to_cupy needs cupy and the CUDA libraries that it loads ({why}); run pip install 'cupy-cuda12x[ctk]'."
        ) from problem

    times, transposed = partial(_cupy_product, A), partial(_cupy_product, A.T)
    return LinearOperator(
        A.shape, matvec=times, rmatvec=transposed, matmat=times, rmatmat=transposed, dtype=arrays.dtype_name(A.dtype)
    )
