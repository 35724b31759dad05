"""What products and all eigenvalues would cost: derivative passes, sweeps and memory, counted from shapes before any is made.

Legend: n samples, k outputs of each, B a batch, (m, n) the shape of an operator; a pass is one JVP or one VJP of one sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from spectral import distributed
from spectral.cards import counted, size
from spectral.estimators.budget import free_memory
from spectral.networks.jacobian import Jacobian
from spectral.networks.sum_over_batches import SumOverBatches
from spectral.operators.foreign import Dense
from spectral.operators.operator import Derived, Gram, Operator, Scaled, Shifted, Transpose

BLOCK = 64  # columns of the identity multiplied at a time, where memory holds so many
WORKSPACE = 3  # the matrix in float64, its copy in the eigenvalue routine, and room
SLICE = 64 << 20  # bytes of rows in float64 at a time
EIGENVALUES = 22.0  # flops per dim^3 at the speed of a matrix product: 10 s at 4096 on two cores
PASS = 4.0  # flops per parameter of a pass, at least: twice a forward pass, in which each parameter is used once


@dataclass(frozen=True)
class Cost:
    """`jvps`, `vjps`: passes of single samples. `products`: columns, as operators count them. `epochs`: sweeps over the data.

    `flops`: dense arithmetic beside the passes. `bytes`: the most that is held at a time beside what a product needs inside.
    """

    jvps: int = 0
    vjps: int = 0
    products: int = 0
    epochs: int = 0
    flops: float = 0.0
    bytes: int = 0

    @property
    def passes(self) -> int:
        return self.jvps + self.vjps

    @property
    def work(self) -> int:
        """What costs are compared by: passes over data, products of operators that have none."""
        return self.passes or self.products

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __str__(self) -> str:
        passes = [counted(count, name) for count, name in ((self.jvps, "JVP"), (self.vjps, "VJP")) if count]
        sweeps = f"{' and '.join(passes)} of samples in {counted(self.epochs, 'sweep')}"
        done = sweeps if passes else counted(self.products, "product")
        return f"{done}, {size(self.bytes)}" if self.bytes else done


def cost(A: Operator, products: int | None = None, free: int | None = None) -> Cost:
    """Of `products` products with symmetric A, one after another, or of `exact` (None) with `free` bytes of memory.

    | n samples with k outputs | JVPs | VJPs | sweeps |
    |---|---|---|---|
    | J v, stacked | n | | 1 |
    | J^T u, stacked | | n | 1 |
    | J^T J v, stacked | n | n | 1 |
    | J J^T u, stacked | n | n | 2 |
    | any of these, flattened | k n for n | k n for n | as above |
    | H v, Gauss-Newton, Fisher | n | n | 1 |
    | sums, products, multiples, shifts | those of the parts | | |
    | matrices, operators of other libraries | | | |
    | all eigenvalues of J^T J or J J^T, c J^T J + s I | | k n | 1 |
    | the same where memory holds the rows of J J^T in c parts | | at most k n (c + 1) / 2 | c |
    | all eigenvalues of anything else | dim times a product's | | dim / BLOCK times a product's |

    bytes of all eigenvalues: 3 dim^2 doubles; while J^T J is summed, dim^2 doubles and the rows of one batch; while J J^T is, the
    rows of J or a part of them, and of one batch more; else dim^2 doubles and BLOCK columns, in and out, of A and of its parts.
    """
    if products is not None:
        return _times(_product(A), products)
    dim, inner = A.shape[0], affine(A)[2]
    free = free_memory(A) if free is None else free
    values = Cost(flops=EIGENVALUES * dim**3, bytes=dim * dim * 8 * WORKSPACE)
    if isinstance(inner.parts[0] if isinstance(inner, Gram) else inner, Dense):
        return values
    made = _from_rows(inner, swept) if (swept := sweeps(inner, free)) else _from_columns(A, columns(A, free))
    return replace(values + made, bytes=max(values.bytes, made.bytes))


def _from_rows(gram: Any, swept: list[range]) -> Cost:
    """Of the Gram of a Jacobian's rows."""
    J, dim = gram.parts[0], gram.shape[0]
    survey, row = J.network.info.busiest, J.shape[1] * J.dtype.itemsize
    vjps = [B * k for B, k in zip(survey.samples, survey.outputs, strict=True)]
    held = max(_batch_rows(J)) * row  # of the batch at hand
    if gram.side == "left":
        held += max(J.starts[part.stop] - J.starts[part.start] for part in swept) * row
    return Cost(
        vjps=sum(sum(vjps[part.start :]) for part in swept),
        products=J.outputs * len(swept),
        epochs=len(swept),
        flops=2.0 * dim * dim * max(J.shape),
        bytes=dim * dim * 8 + held + min(SLICE, 8 * J.shape[0] * J.shape[1]),
    )


def _from_columns(A: Operator, width: int) -> Cost:
    """Of products with the identity, `width` columns at a time."""
    dim, one = A.shape[0], _product(A)
    taken = dim * dim * 8 + width * 2 * A.dtype.itemsize * _entries(A)
    return replace(_times(one, dim), epochs=-(-dim // width) * one.epochs, bytes=taken)


def _times(one: Cost, count: int) -> Cost:
    return Cost(one.jvps * count, one.vjps * count, count, one.epochs * count, one.flops * count, one.bytes)


def _product(A: Operator, transposed: bool = False) -> Cost:
    """Of one column."""
    if isinstance(A, Transpose):
        return _product(A.parts[0], not transposed)
    if isinstance(A, Gram):
        both = _product(A.parts[0]) + _product(A.parts[0], True)
        once = A.side == "right" and isinstance(A.parts[0], Jacobian)
        return Cost(both.jvps, both.vjps, epochs=both.epochs - once)
    if isinstance(A, Derived):
        return sum((_product(part, transposed) for part in A.parts), Cost())
    if not isinstance(A, SumOverBatches):
        return Cost()
    passes = A.network.info.busiest.n * A.unrolled
    one_way = isinstance(A, Jacobian)
    return Cost(0 if one_way and transposed else passes, 0 if one_way and not transposed else passes, epochs=1)


def _entries(A: Operator) -> int:
    """Entries of a column going in and out of an operator and of all its parts."""
    return sum(A.shape) + (sum(map(_entries, A.parts)) if isinstance(A, Derived) else 0)


def columns(A: Operator, free: int) -> int:
    """Columns of the identity that a quarter of the free memory holds, BLOCK at most."""
    return int(max(1, min(BLOCK, A.shape[1], free // 4 // (2 * A.dtype.itemsize * max(1, _entries(A))))))


def affine(A: Operator) -> tuple[float, float, Any]:
    """(factor, shift, B) with A = factor B + shift I; where B is a Gram, it is of what is no multiple and no transpose."""
    factor, shift = 1.0, 0.0
    while True:
        inner = A.parts[0] if isinstance(A, Derived) else A
        if isinstance(A, Scaled):
            factor, A = factor * A.factor, inner
        elif isinstance(A, Shifted):
            shift, A = shift + factor * A.shift, inner
        elif isinstance(A, Gram) and isinstance(inner, Scaled):
            factor, A = factor * inner.factor**2, Gram(inner.parts[0], A.side)
        elif isinstance(A, Gram) and isinstance(inner, Transpose):
            A = Gram(inner.parts[0], "right" if A.side == "left" else "left")
        else:
            return factor, shift, A


def _batch_rows(J: Any) -> list[int]:
    """Of all ranks."""
    return [rows for part in J.network.info.parts for rows in J.batch_rows(part)]


def sweeps(gram: Any, free: int) -> list[range]:
    """The batches whose rows one sweep holds, sweep by sweep, while a Jacobian's Gram is assembled from rows.

    J^T J is summed in one. For J J^T the rows that are held meet their own and all later ones; half of the free memory holds them
    and one batch more. Empty: it is no such Gram, the statistics of a batch couple its rows, a
    single batch does not fit, the rows lie on several ranks, or the parameters do.
    """
    J = gram.parts[0] if isinstance(gram, Gram) else None
    if not isinstance(J, Jacobian) or J.network.statistics == "batch" or J.network.shards is not None:
        return []
    rows, row = _batch_rows(J), J.shape[1] * J.dtype.itemsize
    count = range(len(rows))
    if gram.side == "right":
        return [count] if max(rows) * row < free // 2 else []
    if distributed.world_size() > 1:
        return []
    if sum(rows) * row < free // 2:
        return [count]
    room = free // 2 - max(rows) * row
    parts: list[range] = []
    start = held = 0
    for i in count:
        if rows[i] * row > room:
            return []
        if held + rows[i] * row > room:
            parts.append(range(start, i))
            start, held = i, 0
        held += rows[i] * row
    return [*parts, range(start, len(rows))]
