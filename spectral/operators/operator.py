"""`Operator`: a map with its algebra: sums, multiples, products, transposes, Grams and parts of maps are maps themselves.

Shapes: an operator is (m, n); V (n, b) and U (m, b) are blocks of b columns.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from spectral import arrays, distributed, longvectors, persist, probes
from spectral.checksum import checksum_of
from spectral.operators.export import cupy_view, scipy_view
from spectral.operators.linear_map import LinearMap
from spectral.pieces import Piece, Shards, local, own_rows
from spectral.schema import choice, shown

UFUNCS = {  # of numpy, and what Python calls them
    np.matmul: "matmul", np.multiply: "mul", np.divide: "truediv", np.add: "add", np.subtract: "sub", np.negative: "neg",
    np.positive: "pos", np.power: "pow",
}  # fmt: skip


class Operator(LinearMap):
    """A real (m, n) matrix given by its products `A @ V` and `A.T @ U`.

    Arrays may be numpy, torch or cupy, a vector (n,) or a block (n, b), in the operator's dtype. The result is of the same kind.
    Nothing is cast silently: an array of another dtype, device or length raises TypeError or ValueError.

    Algebra makes operators of operators, and multiplies nothing: `A.T`, `A + B`, `A - B`, `2 * A`, `A / 2`, `A @ B`, `A ** 3`,
    `A + shift * spectral.I`, `A.gram()`. Each product of theirs is one of every part.

    Only authors of operators call the constructor: a subclass gives `_apply(V)` (n, b) -> (m, b) and, unless it is symmetric,
    `_apply_transpose(U)` (m, b) -> (n, b), on torch tensors.

    Parameters
    ----------
    shape : (int, int)
        Rows m and columns n.
    dtype : torch.dtype
        Of the vectors: a real floating dtype.
    device : torch.device or str
        Where the vectors lie.
    symmetric : bool, optional
        Whether A^T = A; None where nobody knows, and then two products tell.
    nonnegative : bool
        Whether A is positive semi-definite by construction.
    known_zeros : int
        Eigenvalues that are 0 by the shapes alone.

    Attributes
    ----------
    products : int
        Columns multiplied so far.
    epochs : float
        Sweeps over the data so far.

    Raises
    ------
    TypeError
        For a dtype that is not floating.

    Examples
    --------
    >>> A = spectral.as_operator(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    >>> (A + 0.5 * spectral.I) @ torch.ones(2)
    tensor([2.5000, 3.5000])
    >>> A.products
    1
    """

    ndim = 2
    args: tuple[Any, ...] = ()  # what an expression is made of, as scipy's operators say it; of a leaf nothing
    __iter__ = None  # else `A[0], A[1], ...` would be tried, a product each

    @property
    def sources(self) -> set[Operator]:
        """The operators that it is made of, each once: in A.T @ A, a sweep of A is one sweep."""
        return {self}

    # Ranks ------------------------------------------------------------------------------------------------------------
    @property
    def held_data(self) -> list[str]:
        """A mark of the data that each rank holds, in rank order; of an operator that has none, nothing."""
        return []

    def of_team(self, team: distributed.Team) -> Operator:
        """The same matrix of the data that one team of ranks holds, to be multiplied `apart`.

        Parameters
        ----------
        team : Team
            This rank's, of `spectral.distributed.teams`.

        Returns
        -------
        Operator
            This one where it has no data.

        Examples
        --------
        >>> A = spectral.as_operator(np.eye(2))
        >>> A.of_team(spectral.distributed.teams(1)) is A
        True
        """
        return self

    # Products ---------------------------------------------------------------------------------------------------------
    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, Operator):
            if isinstance(self, Transpose) and self.parts[0] is other:
                return other.gram("right")
            if isinstance(other, Transpose) and other.parts[0] is self:
                return self.gram("left")
            return Product(self, other)
        if isinstance(other, ScaledIdentity):
            return other @ self
        W = super().__matmul__(other)
        if W is NotImplemented:
            raise TypeError(
                f"an operator multiplies arrays and operators, not {type(other).__name__}; convert it by np.asarray, or a "
                "matrix of another library by spectral.as_operator."
            )
        return W

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(
            f"{self!r} is known by its products and holds no entries; write A @ np.eye(n) for those of a small one, and "
            "A.to_scipy() for scipy's solvers."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        """numpy's functions that the algebra has: np.matmul(A, v) is A @ v; `array @ A` and `number * A` come here too."""
        if ufunc in (np.equal, np.not_equal):
            return (inputs[0] is inputs[-1]) is (ufunc is np.equal)
        if ufunc not in UFUNCS or method != "__call__" or options:
            self._refuse()
        first, *rest = inputs
        if isinstance(first, Operator):
            return getattr(first, f"__{UFUNCS[ufunc]}__")(*rest)
        return getattr(rest[0], f"__r{UFUNCS[ufunc]}__")(first)

    def __len__(self) -> int:
        raise TypeError(
            f"{self!r} holds no entries and has no length; write A.shape[0] for its rows, A @ np.eye(n) for the entries of a "
            "small one."
        )

    def __bool__(self) -> bool:
        return True

    def __rmatmul__(self, other: Any) -> Any:
        """x^T A for a vector (m,) or rows (b, m), by the transposed product."""
        return (self.T @ other.T).T if arrays.is_array(other) and other.ndim == 2 else self.T @ other

    @property
    def T(self) -> Operator:
        """The transpose, sharing the counters of this operator's data."""
        return self if self.symmetric else Transpose(self)

    @property
    def H(self) -> Operator:
        """The adjoint, which of a real matrix is the transpose: `A.H` is `A.T`."""
        return self.T

    # What scipy's linear operators are asked by name ------------------------------------------------------------------
    def dot(self, other: Any) -> Any:
        """A @ other, as scipy names it; `matvec` and `matmat` are the same, for a vector and for a block.

        Parameters
        ----------
        other : array
            (n,) or (n, b).

        Returns
        -------
        array
            (m,) or (m, b), of the kind of `other`.

        Examples
        --------
        >>> spectral.as_operator(np.diag([1.0, 2.0])).matvec(np.ones(2))
        array([1., 2.])
        """
        return self @ other

    def rmatvec(self, other: Any) -> Any:
        """A.T @ other, as scipy names it; `rmatmat` is the same for a block.

        Parameters
        ----------
        other : array
            (m,) or (m, b).

        Returns
        -------
        array
            (n,) or (n, b), of the kind of `other`.

        Examples
        --------
        >>> spectral.as_operator(np.array([[1.0, 2.0]])).rmatvec(np.ones(1))
        array([1., 2.])
        """
        return self.T @ other

    matvec = matmat = dot
    rmatmat = rmatvec

    def transpose(self) -> Operator:
        """`A.T`, as numpy names it.

        Returns
        -------
        Operator
            (n, m).

        Examples
        --------
        >>> spectral.as_operator(np.ones((2, 3))).transpose().shape
        (3, 2)
        """
        return self.T

    def adjoint(self) -> Operator:
        """`A.H`, as scipy names it: of a real matrix the transpose.

        Returns
        -------
        Operator
            (n, m).

        Examples
        --------
        >>> spectral.as_operator(np.ones((2, 3))).adjoint().shape
        (3, 2)
        """
        return self.T

    # Parts ------------------------------------------------------------------------------------------------------------
    def __getitem__(self, key: Any) -> Any:
        """A[rows, cols]: an operator, a vector or a number, each axis indexed by itself.

        Two index arrays mean the block where these rows meet these columns, as `numpy.ix_` (whose result is taken too) and
        pandas' `iloc` have it, not numpy's pairs. A[idx, idx] is a principal block: symmetric and semi-definite where A is. It
        multiplies by a product of the whole A.

        Parameters
        ----------
        key : index or (index, index)
            Each a slice, an integer, an array or list of integers (negative ones count from the end, repeated ones repeat), a
            boolean mask, or `...` for all. One alone is of rows.

        Returns
        -------
        Operator, torch.Tensor or float
            An `Operator`; with one integer a row (c,) or a column (r,) from one product; with two the entry, from one product.

        Raises
        ------
        IndexError
            For an index beyond the shape, and a mask of another length.
        TypeError
            For any other index.

        Examples
        --------
        >>> A = spectral.as_operator(np.arange(9.0).reshape(3, 3))
        >>> A[1:, [0, 2]] @ np.eye(2)
        array([[3., 5.],
               [6., 8.]])
        >>> A[1, 2], A[:, 0]
        (5.0, tensor([0., 3., 6.], dtype=torch.float64))
        """
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) > 2:
            raise IndexError(f"an operator has two axes, but the index has {len(keys)}; use A[rows, cols].")
        if any(self._shards(side) is not None for side in ("left", "right")):
            raise TypeError(f"A[rows, cols] needs whole vectors, but ranks hold pieces of those of {self!r}.")
        rows, cols = (_index(k, length, self.device) for k, length in zip((*keys, ...), self.shape, strict=False))
        if isinstance(cols, int):
            column = self.multiply(self._unit(cols, self.shape[1]))[:, 0]
            return column if rows is None else float(column[rows]) if isinstance(rows, int) else column[rows]
        if isinstance(rows, int):
            row = self.multiply_transpose(self._unit(rows, self.shape[0]))[:, 0]
            return row if cols is None else row[cols]
        return self if rows is None and cols is None else Submatrix(self, rows, cols)

    def _unit(self, at: int, length: int) -> torch.Tensor:
        return probes.unit_vectors(range(at, at + 1), length, dtype=self.dtype, device=self.device)

    # Vectors by name --------------------------------------------------------------------------------------------------
    def _names(self, side: str) -> dict[str, tuple[int, ...]] | None:
        """{name: shape} of what the columns ("right") or the rows ("left") belong to, None where they have no names."""
        return None

    def _named_space(self) -> dict[str, tuple[int, ...]]:
        names = self._names("right") or self._names("left")
        if names is None:
            raise TypeError(
                f"the vectors of {self!r} belong to no parameters or inputs of a model and have no names; unflatten and flatten "
                "are for operators over data, on the side of the parameters (A.T @ u of a Jacobian, J.gram('right'))."
            )
        return names

    def unflatten(self, v: Any) -> dict[str, torch.Tensor]:
        """A vector as {name: tensor}: parameters by their names.

        With wrt="inputs" or "module:NAME" that is the one name. Its shape is that of a sample's variable; with
        layout="flattened": outputs, then that; of a curvature matrix that is block-diagonal: samples, then that.
        Expressions have the names of their parts: `J.T`, `J.gram("right")`, `H + shift * I`. The tensors are views of v where v
        is contiguous.

        Parameters
        ----------
        v : array
            (P,), or a block (P, b), which puts b last in every shape.

        Returns
        -------
        dict
            {name: tensor}, in the order of the vector.

        Raises
        ------
        TypeError
            Where vectors have no names: matrices, `J.gram("left")`.
        ValueError
            For a vector of another length.

        Examples
        --------
        >>> J = spectral.Jacobian(torch.nn.Linear(2, 1), [torch.ones(3, 2)])
        >>> J.unflatten(J.T @ torch.ones(3))
        {'weight': tensor([[3., 3.]]), 'bias': tensor([3.])}
        """
        names, V = self._named_space(), local(_value(arrays.to_torch(v)))
        sizes = [math.prod(shape) for shape in names.values()]
        if V.ndim not in (1, 2) or len(V) != sum(sizes):
            raise ValueError(
                f"the vector has shape {tuple(V.shape)}, but the {', '.join(list(names)[:4])} of {self!r} have "
                f"{sum(sizes)} entries; use ({sum(sizes)},) or ({sum(sizes)}, b)."
            )
        pieces = torch.split(V, sizes)
        return {name: p.reshape(*shape, *V.shape[1:]) for (name, shape), p in zip(names.items(), pieces, strict=True)}

    def flatten(self, tensors: Mapping[str, Any]) -> torch.Tensor:
        """The vector whose `unflatten` is `tensors`.

        Parameters
        ----------
        tensors : mapping
            {name: tensor}, every name and no other, in any order, in A's dtype and on its device.

        Returns
        -------
        torch.Tensor
            (P,), or (P, b) where the tensors have b as their last axis.

        Raises
        ------
        TypeError
            For a tensor of another dtype or device, and where vectors have no names.
        ValueError
            For missing or unknown names, and for shapes that do not fit.

        Examples
        --------
        >>> J = spectral.Jacobian(torch.nn.Linear(2, 1), [torch.ones(3, 2)])
        >>> J @ J.flatten({"bias": torch.ones(1), "weight": torch.zeros(1, 2)})
        tensor([1., 1., 1.])
        """
        names = self._named_space()
        given = list(tensors) if isinstance(tensors, Mapping) else []
        wrong = [*(name for name in names if name not in given), *(name for name in given if name not in names)]
        if wrong or not isinstance(tensors, Mapping):
            raise ValueError(
                f"flatten takes a mapping with a tensor for each of the {len(names)} names of {self!r} and no other, got "
                f"{type(tensors).__name__} of {len(given)} ({', '.join(map(str, wrong[:4]))} missing or unknown)."
            )
        parts = {name: _value(arrays.to_torch(own_rows(tensors[name]))) for name in names}
        blocks = {tuple(parts[name].shape[len(shape) :]) for name, shape in names.items()}
        for name, shape in names.items():
            part = parts[name]
            if tuple(part.shape[: len(shape)]) != tuple(shape) or len(blocks) > 1 or part.ndim > len(shape) + 1:
                raise ValueError(
                    f"{name!r} has shape {tuple(part.shape)}; use {tuple(shape)}, or {(*shape, 'b')} with one b for all names."
                )
            if part.dtype != self.dtype or part.device != self.device:
                raise TypeError(
                    f"{name!r} is {part.dtype} on {part.device} but {self!r} multiplies {self.dtype} on {self.device}, and "
                    "nothing is cast silently; convert the tensor."
                )
        block = blocks.pop()
        whole = torch.cat([parts[name].reshape(math.prod(shape), *block) for name, shape in names.items()])
        return whole if self._shards("right" if self._names("right") else "left") is None else whole.as_subclass(Piece)

    def gram(self, side: str = "auto") -> Operator:
        """A^T A or A A^T: two squares of one matrix, which share all eigenvalues but zeros.

        Parameters
        ----------
        side : str
            "right" for A^T A (n, n), "left" for A A^T (m, m); "auto" for the smaller one, the right one if they are equal.

        Returns
        -------
        Operator
            Symmetric and positive semi-definite; see `spectral.operators.Gram`. One product is one of A and one of A.T.

        Raises
        ------
        ValueError
            For another side.

        Examples
        --------
        >>> G = spectral.as_operator(np.ones((2, 3))).gram()
        >>> G.side, G.shape, G @ np.ones(2)
        ('left', (2, 2), array([6., 6.]))
        """
        return Gram(self, side)

    def adjoint_error(self, seed: int = 0) -> float:
        """|<A v, u> - <v, A^T u>| / (||A v|| ||u||) for one random pair: round-off unless a product is wrong.

        Cost: a product and a transposed one.

        Parameters
        ----------
        seed : int
            Of the two random vectors.

        Returns
        -------
        float
            A few units of rounding if A^T is the transpose of A.

        Examples
        --------
        >>> spectral.as_operator(np.ones((2, 3))).adjoint_error() < 1e-15
        True
        """
        v, u = self.probe(seed, 0), self.T.probe(seed, 1)
        Av, Atu = self @ v, self.T @ u
        scale = max(longvectors.norm(Av) * longvectors.norm(u), longvectors.norm(Atu) * longvectors.norm(v))
        return abs(longvectors.dot(Av, u) - longvectors.dot(v, Atu)) / scale if scale > 0 else 0.0

    # Algebra ---------------------------------------------------------------------------------------------------------
    def __add__(self, other: Any) -> Operator:
        if isinstance(other, ScaledIdentity):
            return self if other.shift == 0 else Shifted(self, other.shift)
        if isinstance(other, Operator):
            return Sum(self, other)
        raise TypeError(
            f"an operator is added to operators and to multiples of spectral.I, not to {type(other).__name__}; write A + shift * "
            "spectral.I for a number on the diagonal, A + spectral.as_operator(M) for a matrix."
        )

    def __radd__(self, other: Any) -> Operator:
        return self if type(other) is int and other == 0 else self.__add__(other)  # where sum([A, B]) begins

    def __sub__(self, other: Any) -> Operator:
        return self.__add__(-other if isinstance(other, Operator | ScaledIdentity) else other)

    def __rsub__(self, other: Any) -> Operator:
        return (-self).__add__(other)

    def __neg__(self) -> Operator:
        return Scaled(self, -1.0)

    def __mul__(self, factor: Any) -> Operator:
        return Scaled(self, _number(factor))

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> Operator:
        number = _number(factor)
        return Scaled(self, _number(1.0 / number if number else math.inf))

    def __pow__(self, power: Any) -> Operator:
        """A @ A @ ... @ A, `power` >= 1 times."""
        whole = isinstance(power, int | np.integer) and not isinstance(power, bool) and power >= 1
        if not whole or self.shape[0] != self.shape[1]:
            raise ValueError(f"{self!r} ** {power!r} is no power; use a square operator and an integer >= 1.")
        return self if power == 1 else self @ self ** (power - 1)

    def _refuse(self, *others: Any) -> Any:
        raise TypeError(
            f"{self!r} has no such operation: operators have A + B, A - B, 2 * A, A / 2, A @ B, A ** 3 and A + shift * "
            "spectral.I; write spectral.funm(A, f, b) for a function of one, spectral.solve(A, b) for its inverse."
        )

    def __pos__(self) -> Operator:
        return self

    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __divmod__ = __rdivmod__ = _refuse
    __rtruediv__ = __rpow__ = __abs__ = __invert__ = _refuse

    def to_scipy(self) -> Any:
        """This operator as a `scipy.sparse.linalg.LinearOperator`, for `eigsh(A.to_scipy())` and the like.

        Of A itself they would say "Cannot interpret 'torch.float64' as a data type": they ask its dtype before anything else.
        scipy's solvers work in the dtype of their own vectors: those are cast to this operator's dtype on the way in. A complex
        vector is multiplied as its real and its imaginary part, two products.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator
            The same products, counted by this operator.

        Raises
        ------
        TypeError
            For a dtype that scipy does not have: other than float32 and float64.

        Examples
        --------
        >>> import scipy.sparse.linalg
        >>> A = spectral.as_operator(np.diag([1.0, 2.0, 3.0, 4.0])).to_scipy()
        >>> scipy.sparse.linalg.eigsh(A, k=1, return_eigenvectors=False).round(9)
        array([4.])
        """
        return scipy_view(self)

    def to_cupy(self) -> Any:
        """This operator as a `cupyx.scipy.sparse.linalg.LinearOperator`, for an operator on a CUDA device.

        Arrays cross by DLPack without a copy while cupy and torch work on one stream. On two, each block is copied once each
        way and the streams wait for each other. Real arrays are cast to this operator's dtype on the way in.

        Returns
        -------
        cupyx.scipy.sparse.linalg.LinearOperator
            The same products, counted by this operator.

        Raises
        ------
        TypeError
            For another dtype than float32 and float64.
        ValueError
            For an operator that is not on a CUDA device.
        ImportError
            Without cupy, or without the CUDA libraries that it loads.

        Examples
        --------
        >>> spectral.as_operator(np.eye(2)).to_cupy()
        Traceback (most recent call last):
        ValueError: cupy works on CUDA devices, but the operator is on cpu; build it on one, or use to_scipy().
        """
        return cupy_view(self)


def _value(t: torch.Tensor) -> torch.Tensor:
    """A parameter's numbers; all else keeps its graph."""
    return t.detach() if isinstance(t, torch.nn.Parameter) else t


def _number(value: Any) -> float:
    """A finite real scalar as a float."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # an operator, an array, a string, a complex number
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"an operator can be scaled by a finite number, not by {shown(value)}; write A @ B for a product."
        )
    return number


class ScaledIdentity:
    """`shift * I` of whatever size fits; `spectral.I` is the identity.

    Parameters
    ----------
    shift : float
        The number on the diagonal.

    Examples
    --------
    >>> (spectral.as_operator(np.zeros((2, 2))) + 3 * spectral.I) @ np.ones(2)
    array([3., 3.])
    """

    __array_ufunc__ = None

    def __init__(self, shift: float = 1.0) -> None:
        self.shift = shift

    def __mul__(self, factor: Any) -> ScaledIdentity:
        return ScaledIdentity(self.shift * _number(factor))

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> ScaledIdentity:
        number = _number(factor)
        return ScaledIdentity(_number(self.shift / number if number else math.inf))

    def __matmul__(self, other: Any) -> Any:
        if not isinstance(other, Operator) and not arrays.is_array(other):
            return NotImplemented
        return other if self.shift == 1 and isinstance(other, Operator) else self.shift * other

    __rmatmul__ = __matmul__

    def __neg__(self) -> ScaledIdentity:
        return ScaledIdentity(-self.shift)

    def __repr__(self) -> str:
        return f"{self.shift} * I"


I = ScaledIdentity()


class Derived(Operator):
    """An operator made of others, and of what is `told` beside them: it counts its own columns, the parts count their sweeps."""

    off = 0.0  # of a product, over ||A||: of one that is solved for, to a tolerance

    def __init__(
        self, parts: tuple[Operator, ...], shape: tuple[int, int], told: dict[str, Any] | None = None, **properties: Any
    ) -> None:
        first = parts[0]
        for part in parts[1:]:
            if part.dtype != first.dtype or part.device != first.device:
                raise TypeError(
                    f"{first!r} and {part!r} differ in dtype or device; build both in one dtype on one device."
                )
        super().__init__(shape, first.dtype, first.device, **properties)
        self.parts = self.args = parts
        self.told = told or {}

    def _space(self, side: str) -> tuple[Operator, str]:
        """The part, and which side of it, whose vectors are ours on this side."""
        return self.parts[0], side

    def _names(self, side: str) -> dict[str, tuple[int, ...]] | None:
        part, its = self._space(side)
        return part._names(its)

    def _shards(self, side: str) -> Shards | None:
        part, its = self._space(side)
        return part._shards(its)

    @property
    def new_products(self) -> bool:  # type: ignore[override]  # a constant of other operators
        return all(part.new_products for part in self.parts)

    @property
    def sources(self) -> set[Operator]:
        return {leaf for part in self.parts for leaf in part.sources}

    def _variables(self) -> list[torch.Tensor]:
        return [t for leaf in self.sources for t in leaf._variables()]

    @property
    def ranks(self) -> int:  # type: ignore[override]  # a constant of most operators
        return max(part.ranks for part in self.parts)

    def of_team(self, team: distributed.Team) -> Operator:
        other = self._rebuilt(*(part.of_team(team) for part in self.parts))
        if other.symmetric is None:  # two products, or the user, have told
            other.symmetric = self.symmetric
        return other

    def _rebuilt(self, *parts: Operator) -> Operator:
        """The same expression of other parts."""
        return type(self)(*parts, **self.told)  # type: ignore[arg-type]

    @property
    def product_error(self) -> float:
        return max(min(0.1, self.off), *(part.product_error for part in self.parts))

    def expect(self, products: int) -> None:
        for part in self.parts:
            part.expect(products)

    @property
    def settled(self) -> bool:
        return all(part.settled for part in self.parts)

    @property
    def workspace(self) -> int:
        return sum(leaf.workspace for leaf in self.sources) + self.between

    @property
    def first_workspace(self) -> int:
        return sum(leaf.first_workspace for leaf in self.sources) + self.between

    @property
    def between(self) -> int:
        """Bytes of a vector that a product makes between its parts' and is longer than its own."""
        longest = max(map(_longest, self.parts))
        inner = [part.between for part in self.parts if isinstance(part, Derived)]
        return (longest if longest > _longest(self) else 0) * self.dtype.itemsize + max(inner, default=0)

    @property
    def epochs(self) -> float:
        return sum(leaf.epochs for leaf in self.sources)

    @property
    def epsilon(self) -> float:
        return max(self.off, *(part.epsilon for part in self.parts))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "of": [part.describe() for part in self.parts], **self.told}

    def identity(self) -> str:
        own = {key: value for key, value in self.describe().items() if key != "of"}
        return persist.fingerprint([own, *(part.identity() for part in self.parts)])


def _longest(A: Operator) -> int:
    """Entries of its longest vectors that this rank holds."""
    shards = A._shards("left"), A._shards("right")
    return max(n if own is None else own.entries for own, n in zip(shards, A.shape, strict=True))


class Transpose(Derived):
    """A^T."""

    def __init__(self, A: Operator) -> None:
        super().__init__((A,), (A.shape[1], A.shape[0]), symmetric=A.symmetric)
        self.self_map = A.self_map

    def _space(self, side: str) -> tuple[Operator, str]:
        return self.parts[0], "left" if side == "right" else "right"

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return self.parts[0].multiply_transpose(V)

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        return self.parts[0].multiply(U)

    @property
    def T(self) -> Operator:
        return self.parts[0]


class Scaled(Derived):
    """a A."""

    def __init__(self, A: Operator, factor: float) -> None:
        nonnegative, told = A.nonnegative and factor >= 0, {"factor": factor}
        super().__init__((A,), A.shape, told, symmetric=A.symmetric, nonnegative=nonnegative, known_zeros=A.known_zeros)
        self.factor, self.args = factor, (A, factor)
        self.self_map = A.self_map

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return self.factor * self.parts[0].multiply(V)

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        return self.factor * self.parts[0].multiply_transpose(U)


class Shifted(Derived):
    """A + shift I for a square A."""

    def __init__(self, A: Operator, shift: float) -> None:
        if A.shape[0] != A.shape[1]:
            raise ValueError(f"cannot add {shift} I to {A!r}, which is not square.")
        super().__init__((A,), A.shape, {"shift": shift}, symmetric=A.symmetric, nonnegative=A.least + shift >= 0)
        self.shift, self.args = shift, (A, ScaledIdentity(shift))

    @property
    def least(self) -> float:
        return self.parts[0].least + self.shift

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return self.parts[0].multiply(V) + self.shift * V

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        return self.parts[0].multiply_transpose(U) + self.shift * U


class Sum(Derived):
    """A + B."""

    def __init__(self, A: Operator, B: Operator) -> None:
        if A.shape != B.shape:
            raise ValueError(f"cannot add {A!r} and {B!r}: their shapes differ.")
        symmetric = (A.symmetric and B.symmetric) or None
        super().__init__((A, B), A.shape, symmetric=symmetric, nonnegative=A.nonnegative and B.nonnegative)
        self.self_map = A.self_map and B.self_map

    def _names(self, side: str) -> dict[str, tuple[int, ...]] | None:
        one, two = (part._names(side) for part in self.parts)
        return one if one == two or two is None else two if one is None else None

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return self.parts[0].multiply(V) + self.parts[1].multiply(V)

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        return self.parts[0].multiply_transpose(U) + self.parts[1].multiply_transpose(U)


class Product(Derived):
    """A B."""

    def __init__(self, A: Operator, B: Operator) -> None:
        if A.shape[1] != B.shape[0]:
            raise ValueError(f"cannot multiply {A!r} with {B!r}: {A.shape[1]} columns meet {B.shape[0]} rows.")
        super().__init__((A, B), (A.shape[0], B.shape[1]))

    def _space(self, side: str) -> tuple[Operator, str]:
        return self.parts[0 if side == "left" else 1], side

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return self.parts[0].multiply(self.parts[1].multiply(V))

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        return self.parts[1].multiply_transpose(self.parts[0].multiply_transpose(U))

    def _normal(self, V: torch.Tensor) -> torch.Tensor:
        A, B = self.parts  # A^T A may be one sweep
        return B.multiply_transpose(A.multiply_normal(B.multiply(V)))


Index = torch.Tensor | None  # of an axis; None is all of it


def _index(key: Any, length: int, device: torch.device) -> int | Index:
    """One axis's index: an integer, integers (r,) from 0 on, or None for all."""
    if key is Ellipsis or (isinstance(key, slice) and key == slice(None)):
        return None
    if isinstance(key, slice):
        return torch.from_numpy(np.arange(length)[key].copy()).to(device)
    if not isinstance(key, bool) and hasattr(key, "__index__") and not getattr(key, "ndim", 0):
        at = operator.index(key)
        if not -length <= at < length:
            raise IndexError(f"index {at} is beyond the {length} entries of its axis.")
        return at % length
    if not isinstance(key, list | tuple) and not arrays.is_array(key):
        raise TypeError(f"{key!r} is no index; use a slice, an integer, an array of integers, or a boolean mask.")
    which = arrays.to_torch(key if arrays.is_array(key) else np.asarray(key, None if len(key) else np.int64)).to(device)
    if which.ndim == 2 and 1 in which.shape:  # of numpy.ix_
        which = which.reshape(-1)
    if which.ndim != 1 or which.is_floating_point() or which.is_complex():
        raise TypeError(
            f"an index array is {tuple(which.shape)} of {which.dtype}; use integers or a boolean mask, (r,) of one axis."
        )
    if which.dtype == torch.bool:
        if len(which) != length:
            raise IndexError(f"the mask has {len(which)} entries, its axis {length}.")
        return which.nonzero()[:, 0]
    which = which.long()
    if len(which) and not (-length <= int(which.min()) and int(which.max()) < length):
        raise IndexError(
            f"indices from {int(which.min())} to {int(which.max())} are beyond the {length} entries of the axis."
        )
    return which % max(length, 1)


class Submatrix(Derived):
    """A[rows, cols]: some rows and columns of A, by products of the whole."""

    def __init__(self, A: Operator, rows: Index, cols: Index) -> None:
        r, c = (length if index is None else len(index) for index, length in zip((rows, cols), A.shape, strict=True))
        principal = rows is cols or (rows is not None and cols is not None and torch.equal(rows, cols))
        symmetric, told = A.symmetric if principal else None, {"rows": rows, "cols": cols}
        super().__init__((A,), (r, c), told, symmetric=symmetric, nonnegative=A.nonnegative and principal)
        self.rows, self.cols, self.args = rows, cols, (A, rows, cols)
        self.self_map = A.self_map and principal

    def _names(self, side: str) -> dict[str, tuple[int, ...]] | None:
        return self.parts[0]._names(side) if (self.cols if side == "right" else self.rows) is None else None

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        W = self.parts[0].multiply(_spread(V, self.cols, self.parts[0].shape[1]))
        return W if self.rows is None else W[self.rows]

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        W = self.parts[0].multiply_transpose(_spread(U, self.rows, self.parts[0].shape[0]))
        return W if self.cols is None else W[self.cols]

    def describe(self) -> dict[str, Any]:
        told = {name: "all" if index is None else checksum_of(index) for name, index in self.told.items()}
        return {**super().describe(), **told}


def _spread(V: torch.Tensor, index: Index, length: int) -> torch.Tensor:
    """V (r, b) at its places in (length, b), zeros elsewhere; what comes twice is added."""
    return V if index is None else V.new_zeros(length, V.shape[1]).index_add_(0, index, V)


class Gram(Derived):
    """A^T A or A A^T of an (m, n) operator; both have the same spectrum off zero.

    Estimators run on the smaller side and carry the zeros of the larger one exactly.

    Parameters
    ----------
    A : Operator
        The factor.
    side : str
        "right" (A^T A), "left" (A A^T) or "auto" (the smaller).

    Attributes
    ----------
    side : str
        "left" or "right".
    known_zeros : int
        dim - min(m, n): eigenvalues that are 0 by the shapes alone.

    Raises
    ------
    ValueError
        For another side.

    Examples
    --------
    >>> G = spectral.operators.Gram(spectral.as_operator(np.ones((2, 3))), "right")
    >>> G.shape, G.known_zeros, G.smaller.side
    ((3, 3), 1, 'left')
    """

    def __init__(self, A: Operator, side: str = "auto") -> None:
        choice(side, "side", ("auto", "left", "right"))
        m, n = A.shape
        self.side = side if side != "auto" else ("left" if m < n else "right")
        dim = m if self.side == "left" else n
        zeros, told = dim - min(m, n), {"side": self.side}
        super().__init__((A,), (dim, dim), told, symmetric=True, nonnegative=True, known_zeros=zeros)
        self.args = (A, A.T) if self.side == "left" else (A.T, A)

    def _space(self, side: str) -> tuple[Operator, str]:
        return self.parts[0], self.side

    @property
    def smaller(self) -> Gram:
        """The Gram on the side that has no known zeros."""
        return self if self.known_zeros == 0 else Gram(self.parts[0], "auto")

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        A = self.parts[0]
        return A.multiply_normal(V) if self.side == "right" else A.multiply(A.multiply_transpose(V))
