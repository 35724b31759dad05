"""The ways in and out: `as_operator` for numpy, scipy, cupy and torch matrices; a scipy view of an operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch

from spectral import arrays, checkpoint
from spectral.operators.base import Operator


class Dense(Operator):
    """A dense (or torch-sparse) matrix on its own device."""

    def __init__(self, matrix: torch.Tensor) -> None:
        if matrix.ndim != 2:
            raise ValueError(f"an operator is a matrix, but the array has shape {tuple(matrix.shape)}.")
        super().__init__(tuple(matrix.shape), matrix.dtype, matrix.device)  # type: ignore[arg-type]
        self.matrix = matrix.detach()
        if not torch.isfinite(self._entries()[0]).all():
            raise ValueError("the matrix holds NaN or infinity; remove them.")
        if matrix.layout == torch.strided:
            self.symmetric = _is_symmetric(self.matrix)

    def _entries(self) -> tuple[torch.Tensor, ...]:
        """The entries, and where they stand."""
        A = self.matrix
        if A.layout == torch.strided:
            return (A,)
        A = A.to_sparse_coo().coalesce()
        return A.values(), *A.indices()

    def identity(self) -> str:
        return checkpoint.fingerprint([self.describe(), *(arrays.sketch(part, 1 << 16) for part in self._entries())])

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return self.matrix @ V

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        if self.matrix.layout in (torch.strided, torch.sparse_coo):
            return self.matrix.T @ U
        return (U.T @ self.matrix).T  # torch has no transpose of a compressed sparse matrix


def _is_symmetric(matrix: torch.Tensor) -> bool:
    """A = A^T up to the rounding of the sums that may have made it."""
    if matrix.shape[0] != matrix.shape[1]:
        return False
    asymmetry = float((matrix - matrix.T).abs().max()) if matrix.numel() else 0.0
    return asymmetry <= 8 * arrays.machine_epsilon(matrix.dtype) * float(matrix.abs().max() if matrix.numel() else 0.0)


class Host(Operator):
    """A scipy sparse matrix, a scipy LinearOperator, or anything with `shape` and `@` that multiplies numpy arrays."""

    def __init__(self, matrix: Any, dtype: torch.dtype) -> None:
        super().__init__(tuple(matrix.shape), dtype, "cpu")
        self.matrix = (
            matrix.tocsr() if scipy.sparse.issparse(matrix) and matrix.format in ("lil", "dok", "dia") else matrix
        )
        if scipy.sparse.issparse(matrix):
            matrix = self.matrix
            if not np.isfinite(matrix.data).all():
                raise ValueError("the matrix holds NaN or infinity; remove them.")
            difference = abs(matrix - matrix.T) if matrix.shape[0] == matrix.shape[1] else None
            scale = abs(matrix).max() if matrix.nnz else 0.0
            self.symmetric = difference is not None and bool(
                (difference.max() if difference.nnz else 0.0) <= 8 * arrays.machine_epsilon(dtype) * scale
            )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "matrix": type(self.matrix).__name__}

    def identity(self) -> str:
        if not scipy.sparse.issparse(self.matrix):
            return super().identity()  # of entries that cannot be seen, a product would be the only proof
        A = self.matrix.tocoo()
        parts = (torch.from_numpy(np.ascontiguousarray(part)) for part in (A.data, A.row, A.col))
        return checkpoint.fingerprint([self.describe(), *(arrays.sketch(part, 1 << 16) for part in parts)])

    def _times(self, matrix: Any, V: torch.Tensor) -> torch.Tensor:
        W = np.asarray(matrix @ V.numpy())
        if W.shape != (matrix.shape[0], V.shape[1]):
            raise ValueError(
                f"{type(self.matrix).__name__} of shape {tuple(self.matrix.shape)} returned {W.shape} for a block of "
                f"{V.shape[1]} columns; its products must be blocks."
            )
        if W.dtype != arrays.like(V, np.empty(0)).dtype:
            raise TypeError(
                f"{self.matrix!r} returned {W.dtype} for a {V.dtype} block; its products must keep the dtype."
            )
        return arrays.to_torch(np.ascontiguousarray(W))

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return self._times(self.matrix, V)

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        if self.symmetric:
            return self._apply(U)
        try:
            return self._times(self.matrix.T, U)
        except (AttributeError, NotImplementedError) as problem:
            raise TypeError(
                f"{type(self.matrix).__name__} has no transposed product; give it one (rmatvec, or .T), or a symmetric matrix."
            ) from problem


def as_operator(A: Any) -> Operator:
    """`A` as an `Operator`: a numpy, cupy or torch matrix, a scipy sparse matrix or LinearOperator, or anything with shape and @.

    Dense and sparse matrices are tested for symmetry here; of anything else the estimators test it with two products.

    >>> as_operator(np.diag([1.0, 2.0])).symmetric
    True
    """
    if isinstance(A, Operator):
        return A
    if arrays.is_array(A):
        return Dense(arrays.to_torch(A))
    if not hasattr(A, "shape") or not hasattr(A, "__matmul__"):
        raise TypeError(f"{type(A).__name__} is no matrix; pass something with a shape and a product @.")
    if len(A.shape) != 2:
        raise ValueError(f"an operator is a matrix, but {type(A).__name__} has shape {tuple(A.shape)}.")
    dtype = getattr(A, "dtype", None)
    if dtype is None:
        raise TypeError(f"{type(A).__name__} has no dtype; set one, so that products know their precision.")
    if isinstance(dtype, torch.dtype):
        return Host(A, dtype) if dtype.is_floating_point else _not_real(dtype)
    return Host(A, _torch_dtype(np.dtype(dtype)))


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    if dtype == np.float64:
        return torch.float64
    if dtype == np.float32:
        return torch.float32
    return _not_real(dtype)


def _not_real(dtype: Any) -> Any:
    raise TypeError(f"the entries are {dtype}; an operator is real and floating: convert the matrix to float64.")


class ScipyView(scipy.sparse.linalg.LinearOperator):
    """An operator's products for scipy. scipy's solvers work in the dtype of their own vectors: those are cast to the
    operator's dtype on the way in, and the result keeps the operator's dtype."""

    def __init__(self, A: Operator) -> None:
        self.operator = A
        kind = {torch.float64: np.float64, torch.float32: np.float32}.get(A.dtype)
        if kind is None:
            raise TypeError(f"scipy has no {A.dtype}; build the operator in float32 or float64.")
        super().__init__(dtype=np.dtype(kind), shape=A.shape)

    def _multiply(self, A: Operator, X: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(X):
            raise TypeError("a real operator meets a complex vector; multiply its real and imaginary parts apart.")
        tensor = arrays.to_torch(np.ascontiguousarray(X, dtype=self.dtype)).to(A.device)
        return (A @ tensor).cpu().numpy()

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._multiply(self.operator, np.asarray(x).reshape(-1))

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return self._multiply(self.operator, X)

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self._multiply(self.operator.T, np.asarray(x).reshape(-1))

    def _rmatmat(self, X: np.ndarray) -> np.ndarray:
        return self._multiply(self.operator.T, X)
