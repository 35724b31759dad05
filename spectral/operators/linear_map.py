"""`LinearMap`: a real matrix known by its products: what it must offer, what estimators may rely on, what is counted.

Shapes: a map is (m, n); V (n, b) and U (m, b) are blocks of b columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from spectral import arrays, longvectors, persist, probes
from spectral.operators.differentiated import Differentiated
from spectral.pieces import Piece, Shards

# eps, of a product with a unit vector over ||A||: below 15 seen in networks; see `spectral.krylov.symmetry`
ROUNDING = 64.0


class LinearMap:
    """A real (m, n) matrix given by its products `A @ V`, counted; `Operator`, which everybody uses, adds the algebra.

    A subclass gives `_apply(V)` (n, b) -> (m, b) and, unless it is symmetric, `_apply_transpose(U)` (m, b) -> (n, b), on torch
    tensors. Whoever multiplies gives (n,) or (n, b), of numpy, torch or cupy, and gets the same kind; another dtype, device or
    length raises TypeError or ValueError, since nothing is cast silently.
    """

    self_map = True  # rows and columns are one space; a Jacobian's are not, even where it happens to be square
    ranks = 1  # processes that make a product together, each of its own data
    teams = 1  # of ranks that multiply columns of their own
    new_products = False  # whether a product is memory of its own, which recurrences may overwrite
    __array_ufunc__ = None  # numpy hands `array @ A` and `number * A` over to us

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        symmetric: bool | None = None,
        nonnegative: bool = False,
        known_zeros: int = 0,
    ) -> None:
        arrays.hold_default_device()
        sides = shape if isinstance(shape, Sequence) and len(shape) == 2 else (-1,)
        if not all(isinstance(side, int | np.integer) and side >= 0 for side in sides):
            raise ValueError(f"{type(self).__name__} has shape {shape!r}; it must be (m, n), whole numbers >= 0.")
        self.shape = (int(shape[0]), int(shape[1]))
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
            raise TypeError(
                f"the entries are {dtype}; an operator is real and floating, of 16 bits or more: convert the matrix to float64."
            )
        self.dtype, self.device = dtype, torch.device(device)
        self.symmetric = symmetric if self.shape[0] == self.shape[1] else False  # None: unknown, two products tell
        self.nonnegative = nonnegative  # positive semi-definite by construction
        self.known_zeros = known_zeros  # eigenvalues that are 0 by the shapes alone
        self.products = 0
        self.asymmetry = 0.0  # the largest |<x, A y> - <A x, y>| / ||A|| seen to be rounding, where it is large
        self.expected = 0  # products to come, 0 if nobody said: recording a program must pay for itself

    # What a subclass gives -------------------------------------------------------------------------------------------
    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        """A V: (n, b) -> (m, b)."""
        raise TypeError(f"{type(self).__name__} has no product.")

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        """A^T U: (m, b) -> (n, b)."""
        if self.symmetric:
            return self._apply(U)
        raise TypeError(f"{type(self).__name__} has no transposed product; give one, or a symmetric matrix.")

    def _normal(self, V: torch.Tensor) -> torch.Tensor:
        """A^T A V: (n, b) -> (n, b); operators over data do it in one sweep."""
        return self._apply_transpose(self._apply(V))

    @property
    def product_error(self) -> float:
        """How far a product with a unit vector is expected to be off by rounding, over ||A||; more is looked at again."""
        return min(0.1, ROUNDING * self.epsilon)

    def expect(self, products: int) -> None:
        """Tell the operator how many products will be asked for, so that it can prepare for them; estimators do.

        Parameters
        ----------
        products : int
            Columns to come. It changes time and memory, never the matrix.

        Examples
        --------
        >>> A = spectral.as_operator(np.eye(2))
        >>> A.expect(100)
        >>> A.expected
        100
        """
        self.expected = products

    @property
    def settled(self) -> bool:
        """Whether products to come take what the latest one took: nothing is tested or tried any more."""
        return True

    @property
    def workspace(self) -> int:
        """Bytes that a product takes beside the vector and the result, and what is kept for the next one."""
        return 0

    @property
    def first_workspace(self) -> int:
        """The same while it is chosen how products are made."""
        return self.workspace

    @property
    def least(self) -> float:
        """A number that no eigenvalue is below, for certain: 0 of a semi-definite operator, -inf where nobody knows one."""
        return 0.0 if self.nonnegative else -math.inf

    @property
    def epochs(self) -> float:
        """Sweeps over the data so far; 0 for an operator that has no data."""
        return 0.0

    @property
    def epsilon(self) -> float:
        """Relative rounding of the products: the unit of the coarsest dtype that they are computed in."""
        return arrays.machine_epsilon(self.dtype)

    def describe(self) -> dict[str, Any]:
        """What the operator is, as plain JSON; stored with every result.

        Returns
        -------
        dict
            Class, shape and dtype; of an operator over data also how it is computed.

        Examples
        --------
        >>> spectral.as_operator(np.eye(2)).describe()
        {'operator': 'Dense', 'shape': [2, 2], 'dtype': 'float64'}
        """
        return {"operator": type(self).__name__, "shape": list(self.shape), "dtype": arrays.dtype_name(self.dtype)}

    def identity(self) -> str:
        """A short hash of what the matrix is, of all that can be seen of it: checkpoints and merges refuse another one.

        Returns
        -------
        str
            The same for the same matrix, in other processes too.

        Examples
        --------
        >>> one, other = spectral.as_operator(np.eye(2)), spectral.as_operator(np.ones((2, 2)))
        >>> one.identity() == other.identity()
        False
        """
        return persist.fingerprint(self.describe())

    # Vectors ---------------------------------------------------------------------------------------------------------
    def _variables(self) -> list[torch.Tensor]:
        """The tensors of the user's that A is a function of."""
        return []

    def _shards(self, side: str) -> Shards | None:
        """How the vectors that A multiplies ("right"), or its products ("left"), lie over ranks; None: each holds all of them."""
        return None

    @property
    def shards(self) -> Shards | None:
        """How the vectors that A multiplies lie over the ranks; None where every rank holds all of each."""
        return self._shards("right")

    def probe(self, seed: int, index: int, kind: str = "gaussian") -> torch.Tensor:
        """A random vector that A multiplies: entry j depends on (seed, index, j) alone, however vectors lie.

        Parameters
        ----------
        seed : int
            Of the family of vectors.
        index : int
            Which of them.
        kind : str
            "gaussian", "rademacher" or "uniform".

        Returns
        -------
        torch.Tensor
            (n,), or this rank's piece of it.

        Examples
        --------
        >>> spectral.as_operator(np.eye(2)).probe(0, 0, "rademacher").abs()
        tensor([1., 1.], dtype=torch.float64)
        """
        how: dict[str, Any] = {"kind": kind, "dtype": self.dtype, "device": self.device}
        if self.shards is not None:
            return self.shards.probe(seed, index, **how)
        return probes.probe(seed, index, self.shape[1], **how)

    def empty(self, *rows: int) -> torch.Tensor:
        """Memory for vectors that A multiplies.

        Parameters
        ----------
        *rows : int
            How many, one beneath the other; nothing for a single vector.

        Returns
        -------
        torch.Tensor
            (*rows, n), or this rank's pieces.

        Examples
        --------
        >>> spectral.as_operator(np.eye(2)).empty(3).shape
        torch.Size([3, 2])
        """
        entries = self.shape[1] if self.shards is None else self.shards.entries
        made = torch.empty(*rows, entries, dtype=self.dtype, device=self.device)
        return made if self.shards is None else made.as_subclass(Piece)

    # Products --------------------------------------------------------------------------------------------------------
    def columns(self, array: Any) -> torch.Tensor:
        """What A may multiply, as columns: nothing is cast.

        Parameters
        ----------
        array : array
            (n,) or (n, b), numpy, torch or cupy, in A's dtype.

        Returns
        -------
        torch.Tensor
            (n, b) on A's device, sharing the memory of `array` where that is there.

        Raises
        ------
        ValueError
            For another length, or a tensor on another device.
        TypeError
            For another dtype, a sparse tensor, and one that requires grad: products alone are differentiated.

        Examples
        --------
        >>> spectral.as_operator(np.eye(2)).columns(np.ones(2)).shape
        torch.Size([2, 1])
        """
        V, shards = arrays.to_torch(array), self.shards
        if isinstance(V, Piece) != (shards is not None):
            raise TypeError(
                f"{type(self).__name__} multiplies vectors of which every rank holds a piece, as its parameters lie; make one by "
                "A.flatten, A.probe or A.shards.part."
                if shards is not None
                else f"{type(self).__name__} multiplies whole vectors; make one of the pieces by shards.whole."
            )
        if shards is None and not arrays.has_memory(V):
            raise TypeError(
                "the array is one of torch.vmap, torch.func.grad or torch.func.jvp, without numbers; multiply outside of them."
            )
        V = arrays.without_graph(V)
        if V.layout != torch.strided:
            raise TypeError(f"the array is {V.layout}; pass a dense one, such as array.to_dense().")
        n = self.shape[1] if shards is None else shards.entries
        if V.ndim not in (1, 2) or V.shape[0] != n:
            raise ValueError(
                f"cannot multiply {type(self).__name__} of shape {self.shape} with an array of shape {tuple(V.shape)}; "
                f"use ({n},) or ({n}, b)."
            )
        if V.dtype != self.dtype:
            raise TypeError(
                f"the array is {V.dtype} but {type(self).__name__} multiplies {self.dtype}, and nothing is cast silently; "
                f"convert the array to {self.dtype}."
            )
        if isinstance(array, torch.Tensor) and V.device != self.device:
            raise ValueError(f"the array is on {V.device}, the operator on {self.device}; move one of them.")
        V = V.to(self.device)
        return V[:, None] if V.ndim == 1 else V

    def __matmul__(self, other: Any) -> Any:
        if not arrays.is_array(other) and not isinstance(other, Mapping | list | tuple):
            return NotImplemented  # another library's operator, or nothing that can be multiplied; `columns` refuses the rest
        if isinstance(other, torch.Tensor) and arrays.has_memory(other) and arrays.differentiated(other):
            return Differentiated.apply(self, other, self._variables())  # type: ignore[no-untyped-call]
        V = self.columns(other)
        if not longvectors.finite(V):
            raise ValueError(f"the array that {type(self).__name__} is to multiply holds NaN or infinity; mend it.")
        W = self.multiply(V)
        return arrays.like(W[:, 0] if other.ndim == 1 else W, other)

    def multiply(self, V: torch.Tensor) -> torch.Tensor:
        """A V, counted: what the operators made of this one call.

        Parameters
        ----------
        V : torch.Tensor
            A block (n, b) that fits; nothing is checked here. `A @ V` is for everybody else.

        Returns
        -------
        torch.Tensor
            (m, b).

        Examples
        --------
        >>> spectral.as_operator(torch.tensor([[2.0, 1.0]])).multiply(torch.ones(2, 1))
        tensor([[3.]])
        """
        self.products += V.shape[1]
        return self._apply(V) if V.shape[1] else V.new_empty(self.shape[0], 0)

    def multiply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        """A^T U, counted.

        Parameters
        ----------
        U : torch.Tensor
            A block (m, b) that fits.

        Returns
        -------
        torch.Tensor
            (n, b).

        Examples
        --------
        >>> spectral.as_operator(torch.tensor([[2.0, 1.0]])).multiply_transpose(torch.ones(1, 1))
        tensor([[2.],
                [1.]])
        """
        self.products += U.shape[1]
        return self._apply_transpose(U) if U.shape[1] else U.new_empty(self.shape[1], 0)

    def multiply_normal(self, V: torch.Tensor) -> torch.Tensor:
        """A^T A V, counted as a product and a transposed one; operators over data do it in one sweep.

        Parameters
        ----------
        V : torch.Tensor
            A block (n, b) that fits.

        Returns
        -------
        torch.Tensor
            (n, b).

        Examples
        --------
        >>> spectral.as_operator(torch.tensor([[2.0, 1.0]])).multiply_normal(torch.ones(2, 1))
        tensor([[6.],
                [3.]])
        """
        self.products += 2 * V.shape[1]
        return self._normal(V) if V.shape[1] else V.new_empty(self.shape[1], 0)

    def __repr__(self) -> str:
        m, n = self.shape
        return f"<{type(self).__name__} {m} x {n}, {arrays.dtype_name(self.dtype)} on {self.device}>"
