"""Verbs on vectors of a model's size: dots, norms and block products, summed in float64 whatever the dtype of the vectors.

Entries are upcast and summed a chunk at a time, so that no verb holds a copy of what it is given, and no sum is rounded more
often for being longer: one of 10^7 entries at a time, most of them far smaller than the first, was off by 1e-13. Rows V (j, n)
are how bases lie, columns X (n, m) how blocks are multiplied: `dots` and `rotate` take rows, `cross` and `column_dots` take
columns. Of vectors that lie over ranks (`spectral.pieces`) every sum is that of all entries, by one small all-reduce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from spectral import arrays, distributed, probes
from spectral.pieces import Piece, like, local, summed

# Entries upcast at a time: 2 MiB of float64. Larger pieces are asked of the system anew each time: nine times as long.
CHUNK = 1 << 18
# On another device 64 MiB, which its allocator keeps: a piece must outlast the four kernels that are launched for it.
CHUNK_ELSEWHERE = 1 << 23
# Entries whose products are summed in their own dtype on the processor, whose kernels add one after another: all 2^22 entries of
# two float32 vectors of one sign at a time would be off by 1e-4, and longer ones by more; pieces of 2^13 by 2e-7.
SHORT = 1 << 13
TINY = float(np.finfo(float).tiny)
# Over what was subtracted: what is left of a vector that need not be orthogonalised again, which rounding has moved by 2 eps.
LEFT = 0.5
SKETCH = 8, 1 << 12  # rows of signs, and the entries that they are for: together 2^15 numbers in place of a vector
TALL = 64  # such rows of a vector that are read at a time, 1 MiB of float32
NEAR = 64.0  # times what counts as 0: up to there ranks may round to either side of it, and ask the first


class GrowingRows(Sequence[torch.Tensor]):
    """Vectors (n,) of a state that only grow in number: of a save later on, those of this one are the first.

    Each is asked for when it is needed, so that they need not be there together.
    """

    def __init__(self, row: Callable[[int], torch.Tensor] = torch.empty, number: int = 0) -> None:
        self.row, self.number = row, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, j: int) -> torch.Tensor:  # type: ignore[override]
        if not 0 <= j < self.number:
            raise IndexError(j)
        return self.row(j)

    def tensor(self) -> torch.Tensor:
        """All of them, (count, n)."""
        return torch.stack(list(self)) if self.number else torch.zeros(0)


def chunk(device: torch.device) -> int:
    """Entries that are upcast, or made, at a time on this device."""
    return CHUNK if device.type == "cpu" else CHUNK_ELSEWHERE


def dot(x: torch.Tensor, y: torch.Tensor | probes.Signs) -> float:
    """<x, y> of (n,) and (n,), y perhaps signs of what this rank holds."""
    own = local(x)
    other = own if y is x else local(y) if isinstance(y, torch.Tensor) else y
    return float(summed(_dot(own, other), x, y))


class Dots:
    """Inner products of pieces of a vector (n,) with others, each at most `chunk` long and one at a time."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = local(x)

    @cached_property
    def room(self) -> torch.Tensor:
        """Where two pieces are upcast, of which float64 has no need."""
        entries, device = min(chunk(self.x.device), self.x.numel()), arrays.float64_device(self.x.device)
        return torch.empty(2, entries, dtype=torch.float64, device=device)

    def of(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """<x, y>, ()."""
        if x.dtype == y.dtype == torch.float64:
            return torch.dot(x, y)
        doubled = self.room[0, : len(x)].copy_(arrays.near(x))
        return torch.dot(doubled, doubled if y is x else self.room[1, : len(y)].copy_(arrays.near(y)))


def _dot(x: torch.Tensor, y: torch.Tensor | probes.Signs) -> torch.Tensor:
    """Of what this rank holds, ()."""
    dots, step = Dots(x), chunk(x.device)
    starts = range(0, max(x.numel(), 1), step)
    parts = [dots.of(some := x[a : a + step], some if y is x else y[a : a + step]) for a in starts]
    return sum(parts[1:], start=parts[0])


def together(*vectors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same pieces of several vectors (n,), as this rank holds them: what is read twice is in the cache the second time."""
    return zip(*(local(v).split(chunk(v.device)) for v in vectors), strict=True)


def added(number: float, *of: torch.Tensor) -> float:
    """A sum over entries of `of` as this rank has it, over all ranks where these lie there."""
    if not any(isinstance(x, Piece) for x in of):
        return number
    return float(summed(arrays.double_zeros((), of[0].device).add_(number), *of))


def sums(x: torch.Tensor) -> tuple[float, float]:
    """The sum of the entries of (n,), and that of their sizes."""
    total = size = 0.0
    for some in map(arrays.double, local(x).split(chunk(x.device))):
        total, size = total + float(some.sum()), size + float(some.abs().sum())
    return added(total, x), added(size, x)


def norm(x: torch.Tensor) -> float:
    """The Euclidean norm of (n,)."""
    return dot(x, x) ** 0.5


def start_square(x: torch.Tensor) -> float:
    """<x, x> of the start of a recurrence; one sentence where it cannot be one."""
    square = dot(x, x)
    if not 0 < square < math.inf:
        raise ValueError(f"the start vector has squared norm {square}; use a finite vector that is not zero.")
    return square


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """||x - y|| of two of one shape, subtracted in float64."""
    total, step = 0.0, chunk(x.device)
    for some, other in zip(local(x).reshape(-1).split(step), local(y).reshape(-1).split(step), strict=True):
        total = math.hypot(total, norm(arrays.double(some) - arrays.double(other)))
    return math.sqrt(added(total**2, x)) if isinstance(x, Piece) else total


def sketch(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """S x of a vector in pieces, S of random signs: linear, E ||S x||^2 = ||x||^2; a short vector itself, in float64.

    Where vectors are held against one another at different times, a sketch waits in place of each. The standard deviation of
    ||S x||^2 is at most half of its mean, whatever x is; of a generic x a hundredth. One pass over x.
    """
    (rows, width), n = SKETCH, sum(p.numel() for p in pieces)
    if n <= rows * width:
        return (
            torch.cat([arrays.double(p.reshape(-1)) for p in pieces]) if pieces else torch.zeros(0, dtype=torch.float64)
        )
    heights = [-(-p.numel() // width) for p in pieces]
    signs = probes.Signs(2, rows * sum(heights), pieces[0].device)[:].view(rows, -1)
    total = arrays.double_zeros((rows, width), pieces[0].device)
    for piece, own in zip(pieces, signs.split(heights, 1), strict=True):
        kind = torch.promote_types(piece.dtype, torch.float32)
        for some, of_some in zip(piece.reshape(-1).split(TALL * width), own.to(kind).split(TALL, 1), strict=True):
            whole = len(some) // width
            total += arrays.near(of_some[:, :whole] @ some[: whole * width].view(whole, width).to(kind))
            rest = some[whole * width :].to(kind)
            total[:, : len(rest)] += arrays.near(of_some[:, whole:] * rest)
    return total.div_(math.sqrt(rows)).reshape(-1)


def largest(X: torch.Tensor) -> float:
    """The largest |entry|, NaN where one is, 0 where there are none."""
    ends = extremes(X)
    return float(ends.abs().max()) if len(ends) else 0.0


def extremes(X: torch.Tensor) -> torch.Tensor:
    """(2,): the least and the largest entry, NaN where one is; (0,) where there are none."""
    own = local(X)
    ends = torch.stack(torch.aminmax(own)).cpu().tolist() if own.numel() else None
    found = [e for e in (distributed.gather(lambda: ends) if isinstance(X, Piece) else [ends]) if e is not None]
    values = torch.tensor(found, dtype=torch.float64)
    return torch.stack([values[:, 0].amin(), values[:, 1].amax()]) if found else values.reshape(0)


def finite(X: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite, on any rank that holds some."""
    own = arrays.all_finite(local(X))
    return all(distributed.gather(lambda: own)) if isinstance(X, Piece) else own


def norms(V: torch.Tensor) -> np.ndarray:
    """The norm of each row, (j,)."""
    return np.array([norm(v) for v in V])


def chunks(length: int, together: int, entries: int = CHUNK) -> list[slice]:
    """Pieces of vectors of this length, of which `together` have about so many entries."""
    width = max(1, entries // max(1, together))
    return [slice(start, start + width) for start in range(0, length, width)]


def add_products(total: torch.Tensor, V: torch.Tensor, W: torch.Tensor, entries: int | None = None) -> None:
    """total += V W^T for rows, (j, n) and (b, n) to (j, b), `entries` upcast at a time."""
    for piece in chunks(V.shape[1], max(len(V), len(W)), entries or chunk(V.device)):
        some = arrays.double(V[:, piece])
        total += some @ (some if W is V else arrays.double(W[:, piece])).T  # not addmm, which may add entry by entry


def dots(V: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    """V W^T for rows, (j, n) and (b, n) to (j, b)."""
    if V.dtype == torch.float64 and local(V).shape[1] <= chunk(V.device):
        return summed(local(V) @ local(W).T, V, W)
    total = arrays.double_zeros((len(V), len(W)), V.device)
    add_products(total, local(V), local(V) if W is V else local(W))
    return summed(total, V, W)


def coefficients(V: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    """V W^T of rows (j, n) and (b, n), or V w of (n,), in float64, by pieces of SHORT entries in their own dtype.

    2 to 6 times as fast as `dots`, off by the rounding of one piece: for Gram-Schmidt twice.
    """
    own, other = local(V), local(W) if W.ndim == 1 else local(W).T
    step = SHORT if V.device.type == "cpu" and V.dtype != torch.float64 else chunk(V.device)
    if V.dtype == torch.float64 and len(other) <= step:
        return summed(own @ other, V, W)
    total = arrays.double_zeros((len(V), *W.shape[:-1]), V.device)
    for start in range(0, len(other), step):
        total += arrays.double(own[:, start : start + step] @ other[start : start + step])
    return summed(total, V, W)


def without(w: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    """w (n,) less its part along orthonormal rows (j, n), once."""
    return w.sub(V.T @ coefficients(V, w).to(w))


def cross(X: torch.Tensor, Y: torch.Tensor) -> np.ndarray:
    """X^T Y for columns, (n, k) and (n, m) to (k, m)."""
    return dots(X.T, Y.T).cpu().numpy()


def column_dots(X: torch.Tensor, Y: torch.Tensor) -> np.ndarray:
    """x_i^T y_i of the columns, (m,)."""
    return np.array([dot(x.contiguous(), y.contiguous()) for x, y in zip(X.T, Y.T, strict=True)])


def product(C: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    """C V of a small C (c, j) and rows V (j, n), in the dtype of V.

    On a GPU in float64, since float32 may mean tf32 there, which is the user's choice for the model and not for vectors.
    """
    if V.device.type == "cpu" or V.dtype == torch.float64 or not arrays.has_float64(V.device):
        return C.to(V) @ V
    C, total = C.to(V.device, torch.float64), V.new_empty(len(C), V.shape[1])
    for piece in chunks(V.shape[1], len(V), chunk(V.device)):
        total[:, piece] = C @ V[:, piece].double()
    return total


def subtract(W: torch.Tensor, C: torch.Tensor, V: torch.Tensor) -> None:
    """W -= C^T V for rows, (b, n), C (j, b) and (j, n)."""
    if W.device.type == "cpu" or not arrays.has_float64(W.device):
        W.addmm_(C.T.to(W), V, alpha=-1)
        return
    for piece in chunks(V.shape[1], len(V), chunk(V.device)):
        W[:, piece] -= product(C.T, V[:, piece])


def combination(coefficients: np.ndarray, V: torch.Tensor) -> torch.Tensor:
    """coefficients times rows: (j,) and (j, n) to (n,), (c, j) and (j, n) to (c, n), in the dtype of V."""
    C = torch.from_numpy(np.ascontiguousarray(coefficients))
    return product(C, V) if C.ndim > 1 else V.T @ C.to(V)


def rotate(V: torch.Tensor, S: np.ndarray) -> torch.Tensor:
    """S^T V, (j, n) and (j, k) with k <= j to (k, n), written over the first k rows of V."""
    R = torch.from_numpy(np.ascontiguousarray(S.T))
    for piece in chunks(V.shape[1], len(V), chunk(V.device)):
        V[: len(R), piece] = product(R, V[:, piece])
    return V[: len(R)]


def orthogonalise(W: torch.Tensor, V: torch.Tensor, recent: int = 0) -> torch.Tensor:
    """Subtract from the rows of W, in place, their part in the span of V's; returns the coefficients (j, b).

    Classical Gram-Schmidt, twice (Giraud, Langou 2003); of long vectors once where half of them is left, whose part along V is
    then rounding (Daniel, Gragg, Kaufman, Stewart 1976). `recent`: of V's last rows, along which most of W lies; they are
    subtracted before.
    """
    total, short = arrays.double_zeros((len(V), len(W)), V.device), W.shape[1] <= SHORT
    if recent and not short:
        C = coefficients(V[-recent:], W)
        subtract(W, C, V[-recent:])
        total[-recent:] += C
    for _ in range(2):
        C = dots(V, W) if short else coefficients(V, W)
        subtract(W, C, V)
        total += C
        if not short and all(clear(w, c) for w, c in zip(W, C.T, strict=True)):
            break
    return total


def clear(w: torch.Tensor, c: torch.Tensor) -> bool:
    """Whether so much of (n,) is left beside what was subtracted along orthonormal vectors, c (k,), that it is orthogonal.

    False of vectors that lie over ranks, where all must go on alike.
    """
    return not isinstance(w, Piece) and norm(w) >= LEFT * math.sqrt(max(float((c**2).sum()), 0.0))


def independent(
    W: torch.Tensor, V: torch.Tensor, floor: float, agree: Callable[[Any], Any] = lambda numbers: numbers, again: bool = False
) -> tuple[torch.Tensor, np.ndarray]:  # fmt: skip
    """W = R^T Q for rows orthogonal to V's: (Q (r, n) orthonormal, R (r, b)); what is at most `floor` long is dropped.

    Gram-Schmidt with pivoting, overwrites W. A direction that comes out of a cancellation is orthogonalised again; `again`: the
    first may be one. `agree`: the lengths that the first rank has for this rank's, where the order of Q or its number hangs on
    their rounding.
    """
    Q, R, left, r = W.new_empty(W.shape), np.zeros((len(W), len(W))), list(range(len(W))), 0
    while left:
        lengths = np.array([norm(W[i]) for i in left])
        if len(left) > 1 or lengths[0] <= NEAR * floor:
            lengths = agree(lengths)
        i = left[int(lengths.argmax())]
        length = float(lengths.max())
        if length <= floor:
            break
        q = W[i : i + 1] / length
        share = 0.0 if r or again else 1.0  # of the length that orthogonalising leaves
        while share < 0.5 and length > floor:
            orthogonalise(q, V)
            orthogonalise(q, Q[:r])
            share = norm(q[0])
            length *= share
            q /= max(share, TINY)
        if length <= NEAR * floor:
            length = agree(length)
        if length <= floor:
            left.remove(i)
            continue
        Q[r] = q[0]
        R[r, left] = dots(q, W[left])[0].cpu().numpy()
        left.remove(i)
        if left:
            rest = W[left]
            subtract(rest, torch.from_numpy(R[r : r + 1, left]), q)
            W[left] = rest
        r += 1
    return Q[:r], R[:r]


def of_length_1(*vectors: torch.Tensor | Sequence[torch.Tensor] | None, rounding: float = 0.0) -> bool:
    """Whether vectors (n,), or rows, have length 1, to their rounding; None is no vector."""
    some = ([V] if isinstance(V, torch.Tensor) and V.ndim == 1 and len(V) else V for V in vectors if V is not None)
    return all(abs(norm(row) - 1) <= max(arrays.summation_error(row.dtype), rounding) for rows in some for row in rows)


def orthonormal(V: torch.Tensor) -> bool:
    """Whether rows are orthonormal, to their rounding."""
    distance = (dots(V, V).cpu() - torch.eye(len(V), dtype=torch.float64)).abs()
    return not len(V) or float(distance.max()) <= arrays.summation_error(V.dtype)


def differences(W: torch.Tensor, V: torch.Tensor, values: np.ndarray) -> np.ndarray:
    """||w_i - values_i v_i|| of each row, (k,)."""
    total = arrays.double_zeros((len(W),), W.device)
    factors = torch.from_numpy(np.ascontiguousarray(values)).to(total.device)[:, None]
    own, other = local(W), local(V)
    for piece in chunks(W.shape[1], len(W), chunk(W.device)):
        total += (arrays.double(own[:, piece]) - factors * arrays.double(other[:, piece])).square().sum(1)
    return summed(total, W, V).sqrt().cpu().numpy()


def triangle(Y: torch.Tensor, Omega: torch.Tensor, nu: float) -> np.ndarray:
    """R of the QR decomposition of the columns of Y + nu Omega, (n, m) to (m, m)."""
    R, y, omega = arrays.double_zeros((0, Y.shape[1]), Y.device), local(Y), local(Omega)
    for piece in chunks(len(Y), Y.shape[1], chunk(Y.device)):
        R = torch.linalg.qr(torch.cat([R, arrays.double(y[piece]) + nu * arrays.double(omega[piece])]), mode="r")[1]
    return (_joint(R)[1] if isinstance(Y, Piece) else R).cpu().numpy()


def qr(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(Q, R) of columns (n, m); of pieces by the QR decomposition of the R of all ranks (Demmel et al. 2012, TSQR)."""
    Q, R = torch.linalg.qr(local(X))
    if not isinstance(X, Piece):
        return Q, R
    S, R = _joint(R)
    return like(Q @ S, X), R


def _joint(R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(this rank's rows of Q, R) of the QR decomposition of every rank's R, (r, m) each, under one another."""
    rows, m = R.shape
    square = R.new_zeros(m, m)
    square[:rows] = R
    Q, joint = torch.linalg.qr(distributed.all_rows(square, [m] * distributed.world_size()))
    return Q[distributed.rank() * m :][:rows], joint
