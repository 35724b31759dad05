"""The way in: `as_operator` for matrices and operators of other libraries.

Shapes: a matrix is (m, n); V (n, b) and U (m, b) are blocks of b columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import scipy
import torch

from spectral import arrays, persist
from spectral.checksum import checksum_of
from spectral.operators.operator import Operator


class Dense(Operator):
    """A dense (or torch-sparse) matrix on its own device."""

    new_products = True

    def __init__(self, matrix: torch.Tensor) -> None:
        if matrix.ndim != 2:
            raise ValueError(f"an operator is a matrix, but the array has shape {tuple(matrix.shape)}.")
        super().__init__(tuple(matrix.shape), matrix.dtype, matrix.device)  # type: ignore[arg-type]
        self.matrix = matrix.detach()
        self.made_of = arrays.reached_leaves([matrix])
        self.args = (self.matrix,)
        _hold_finite(self._entries()[0])
        if matrix.layout == torch.strided:
            self.symmetric = _is_symmetric(self.matrix, matrix.dtype)

    def _variables(self) -> list[torch.Tensor]:
        return self.made_of

    def _entries(self) -> tuple[torch.Tensor, ...]:
        """The entries, and where they stand."""
        A = self.matrix
        if A.layout == torch.strided:
            return (A,)
        A = A.to_sparse().coalesce()
        return A.values(), *A.indices()

    def identity(self) -> str:
        return persist.fingerprint([self.describe(), checksum_of(*self._entries())])

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return self.matrix @ V

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        if self.matrix.layout in (torch.strided, torch.sparse_coo):
            return self.matrix.T @ U
        return (U.T @ self.matrix).T  # torch has no transpose of a compressed sparse matrix


def _hold_finite(entries: Any) -> None:
    if not torch.isfinite(arrays.to_torch(entries)).all():
        raise ValueError("the matrix holds NaN or infinity; remove them.")


def _is_symmetric(A: Any, dtype: torch.dtype) -> bool:
    """A = A^T of a matrix of torch's or scipy's, up to the rounding of the sums that may have made it."""
    if A.shape[0] != A.shape[1]:
        return False
    return 0 in A.shape or float(abs(A - A.T).max()) <= 8 * arrays.machine_epsilon(dtype) * float(abs(A).max())


class Foreign(Operator):
    """A matrix of another library, known by its shape, its dtype and its products with that library's arrays."""

    new_products = True
    careful = False  # whether its library is known to leave alone what it is given, and to return new memory

    def __init__(self, matrix: Any, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(matrix.shape, dtype, device)
        self.matrix, self.args = matrix, (matrix,)

    # The crossing both ways; a subclass says what its library takes
    def _out(self, V: torch.Tensor) -> Any:
        return V

    def _in(self, W: Any) -> torch.Tensor:
        return arrays.to_torch(W).detach()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "matrix": type(self.matrix).__name__}

    def identity(self) -> str:
        if not hasattr(self.matrix, "tocoo"):
            return super().identity()  # of entries that cannot be seen, a product would be the only proof
        A = self.matrix.tocoo()
        return persist.fingerprint([self.describe(), checksum_of(*map(arrays.to_torch, (A.data, A.row, A.col)))])

    def _times(self, product: Callable[[Any], Any], V: torch.Tensor, rows: int) -> torch.Tensor:
        """The other library's product of a block (or a column), held to its shape and dtype.

        It may write into what it is given, hand that back, or one array again and again: unless it is `careful`, both are copied.
        """
        W, name = product(self._out(V if self.careful else V.clone())), type(self.matrix).__name__
        if not arrays.is_array(W):
            raise TypeError(f"{name} returned a {type(W).__name__}; its products must be arrays.")
        if tuple(W.shape) != (rows, *V.shape[1:]):
            raise ValueError(
                f"{name} of shape {self.shape} returned {tuple(W.shape)} where {(rows, *V.shape[1:])} was due; its products "
                f"must be blocks of as many columns as they are given."
            )
        if arrays.dtype_name(W.dtype) != arrays.dtype_name(V.dtype):
            raise TypeError(f"{name} returned {W.dtype} for a {V.dtype} block; its products must keep the dtype.")
        tensor = self._in(W)
        if tensor.device != V.device:
            raise ValueError(
                f"{name} returned an array on {tensor.device} for a block on {V.device}; move one of them."
            )
        if V.shape[1:] > (1,) and torch.equal(tensor[:, 0], tensor[:, -1]) and not torch.equal(V[:, 0], V[:, -1]):
            # scipy joins what matvec has returned for each column after the last one
            return torch.cat([self._times(product, v, rows) for v in torch.split(V, 1, 1)], 1)
        return tensor if self.careful else tensor.clone()

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return self._times(_product(self.matrix), V, self.shape[0])

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        if self.symmetric:
            return self._apply(U)
        try:
            blocks, columns = _transposed_product(self.matrix)
            if blocks is not None:
                return self._times(blocks, U, self.shape[1])
            if columns is not None:
                return torch.stack([self._times(columns, u, self.shape[1]) for u in U.T.contiguous()], dim=1)
        except NotImplementedError:
            pass  # scipy and curvlinops find out only when asked
        raise TypeError(
            f"{type(self.matrix).__name__} has no transposed product; give it one (.T, .H, .adjoint(), rmatmat or "
            f"rmatvec), or a symmetric matrix."
        )


def _product(matrix: Any) -> Callable[[Any], Any]:
    """A V for blocks: `matmat` where there is one, since PyLops' @ may fold its result to an image; else @."""
    return getattr(matrix, "matmat", None) or (lambda V: matrix @ V)


def _transposed_product(matrix: Any) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]:
    """(A^T U for blocks, A^T u for columns), None where there is none; of a real matrix the adjoint is the transpose."""
    if all(getattr(matrix, f"_CustomLinearOperator__{name}_impl", True) is None for name in ("rmatvec", "rmatmat")):
        return None, None  # scipy and cupyx would call the missing function of LinearOperator(matvec=...) on blocks
    if callable(getattr(matrix, "rmatmat", None)):
        return matrix.rmatmat, None
    for name in ("T", "H"):
        if hasattr(other := getattr(matrix, name, None), "__matmul__"):
            return _product(other), None
    if callable(getattr(matrix, "adjoint", None)):
        return _product(matrix.adjoint()), None
    return None, getattr(matrix, "rmatvec", None)


class Host(Foreign):
    """What multiplies numpy arrays: scipy sparse matrices, scipy and PyLops operators, anything with a numpy dtype."""

    def __init__(self, matrix: Any, dtype: torch.dtype) -> None:
        sparse = scipy.sparse.issparse(matrix)
        matrix = matrix.tocsr() if sparse and matrix.format in ("lil", "dok", "dia") else matrix
        super().__init__(matrix, dtype, "cpu")
        self.careful = sparse
        if sparse:
            _hold_finite(matrix.data)
            self.symmetric = _is_symmetric(matrix, dtype)

    def _out(self, V: torch.Tensor) -> np.ndarray:
        return V.resolve_neg().numpy()

    def _in(self, W: Any) -> torch.Tensor:
        return super()._in(np.ascontiguousarray(W))


class Tensorial(Foreign):
    """What multiplies torch tensors: curvlinops operators, anything with a torch dtype."""

    def __init__(self, matrix: Any, dtype: torch.dtype) -> None:
        where = getattr(matrix, "device", None)
        # cuda -> cuda:0
        super().__init__(matrix, dtype, torch.empty(0, device="cpu" if where is None else where).device)

    def _times(self, product: Callable[[Any], Any], V: torch.Tensor, rows: int) -> torch.Tensor:
        with torch.enable_grad():  # it may differentiate inside, whatever the caller's mode
            return super()._times(product, V, rows)


class OnCupy(Foreign):
    """What multiplies cupy arrays: cupyx sparse matrices and LinearOperators, anything defined in cupy or cupyx."""

    def __init__(self, matrix: Any, dtype: torch.dtype) -> None:
        matrix = matrix.tocsr() if getattr(matrix, "format", None) in ("coo", "dia") else matrix
        super().__init__(matrix, dtype, arrays.cupy_device(matrix))
        self.careful = hasattr(matrix, "tocoo")
        if self.careful:
            _hold_finite(matrix.data)

    def _out(self, V: torch.Tensor) -> Any:
        return arrays.to_cupy(V)

    def _times(self, product: Callable[[Any], Any], V: torch.Tensor, rows: int) -> torch.Tensor:
        with arrays.one_stream(self.device):  # what cupy makes inside belongs to torch's stream: nothing is copied
            return super()._times(product, V, rows)


def as_operator(A: Any) -> Operator:
    """A matrix, or another library's operator, as an `Operator`.

    A numpy, cupy or torch matrix, a scipy or cupyx sparse matrix or LinearOperator, a PyLops or curvlinops operator, or anything
    with `shape`, `dtype` and `@`. An `Operator` is handed back as it is.

    What it is given to multiply: cupy arrays, if a class of it is defined in cupy or cupyx; torch tensors, if its dtype is
    torch's, on its `device` (the CPU if it has none); numpy arrays otherwise. Products are those of `matmat`, else of `@`.
    Transposed ones are those of `rmatmat`, `.T`, `.H`, `.adjoint()` or `rmatvec`, the first there is. They must keep the dtype.

    Cost: one pass over a dense or scipy sparse matrix, which is tested for symmetry and finite entries here. Of anything else the
    estimators test symmetry with two products.

    Parameters
    ----------
    A : object
        (m, n), real and floating.

    Returns
    -------
    Operator
        (m, n), sharing the memory of A.

    Raises
    ------
    TypeError
        For what is no matrix, has no dtype, or is complex or integer.
    ValueError
        For another number of axes than two, and for NaN or infinity.

    Examples
    --------
    >>> as_operator(np.diag([1.0, 2.0])).symmetric
    True
    """
    arrays.hold_default_device()
    if isinstance(A, Operator):
        arrays.hold_autocast(A.device, A.dtype)
        return A
    unknown = isinstance(A, torch.Tensor) and (
        A.is_meta
        or A.is_nested
        or A.layout not in (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
        or (A.is_sparse and A.dense_dim() > 0)
    )
    if unknown:
        kind = "meta" if A.is_meta else "nested" if A.is_nested else str(A.layout).removeprefix("torch.")
        raise TypeError(
            f"the Tensor is {kind}, which has no products here; pass a dense matrix, or a sparse one of numbers."
        )
    if arrays.is_array(A):
        real = (
            A.dtype.is_floating_point if isinstance(A, torch.Tensor) else A.dtype.kind == "f" and A.dtype.itemsize <= 8
        )
        return Dense(arrays.to_torch(A)) if real else _not_real(A, A.dtype)
    if not hasattr(A, "shape") or not hasattr(A, "__matmul__"):
        raise TypeError(
            f"{type(A).__name__} is no matrix; pass something with a shape and a product @ (for a function, a LinearOperator)."
        )
    if not isinstance(A.shape, Sequence) or len(A.shape) != 2:
        raise ValueError(f"an operator is a matrix, but {type(A).__name__} has shape {A.shape}; it must be (m, n).")
    try:
        dtype = getattr(A, "dtype", None)
    except NotImplementedError:  # curvlinops' base class
        dtype = None
    if dtype is None and hasattr(A, "to_numpy"):
        raise TypeError(f"{type(A).__name__} is a table of columns; pass its matrix, A.to_numpy().")
    if dtype is None:
        raise TypeError(f"{type(A).__name__} has no dtype; set one, so that products know their precision.")
    if isinstance(dtype, torch.dtype):
        return Tensorial(A, dtype) if dtype.is_floating_point else _not_real(A, dtype)
    homes = {kind.__module__.split(".")[0] for kind in type(A).__mro__}
    known = None
    with suppress(TypeError):  # of a dtype that is none
        known = {np.dtype(theirs): ours for ours, theirs in arrays.NUMPY.items()}.get(np.dtype(dtype))
    return _not_real(A, dtype) if known is None else (OnCupy if homes & {"cupy", "cupyx"} else Host)(A, known)


def _not_real(A: Any, dtype: Any) -> Any:
    """One sentence about a matrix that is not of real floating numbers, with what to write."""
    name = arrays.dtype_name(dtype)
    if "complex" in name:
        advice = "pass the real matrix [[Re A, -Im A], [Im A, Re A]], which has each eigenvalue of a Hermitian A twice"
    elif isinstance(A, torch.Tensor):
        advice = "convert the matrix, A.to(torch.float64)"
    else:
        advice = "convert the matrix, A.astype(np.float64)" if hasattr(A, "astype") else "build it with dtype float64"
    raise TypeError(f"the entries of the {type(A).__name__} are {name}; an operator is real and floating: {advice}.")
