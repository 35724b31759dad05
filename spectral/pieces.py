"""Vectors that lie over the ranks of a group: each rank holds a `Piece` of every one, by the same `Shards`.

A piece is a tensor whose long axis holds this rank's entries. What is done entry by entry is done on each rank alone, and gives
a piece. A product of two pieces is a sum over entries, and so is summed over the ranks; a product of a piece with plain numbers
(a rotation of a basis) is a piece. Whatever else would add up entries is refused: on one rank it would be a wrong number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from spectral import distributed, probes

PRODUCTS = {"matmul", "rmatmul", "mm", "mv", "dot"}
UPDATES = {"addmm"}  # a sum of a tensor and a product
IN_KIND = {"to", "type_as", "setitem", "copy"}  # give what their first argument is
LOCAL = {  # what is done entry by entry, or to the other axis alone
    "get", "set", "size", "dim", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "element_size",
    "data_ptr", "untyped_storage", "len", "iter", "unbind", "getitem", "add", "iadd", "radd", "sub", "isub", "rsub", "mul",
    "imul", "rmul", "div", "truediv", "itruediv", "neg", "clone", "contiguous", "double", "float", "cpu", "cuda", "detach",
    "cat", "stack", "t", "unsqueeze", "split", "chunk", "new_empty", "new_zeros", "empty_like", "zeros_like", "zero",
    "numpy", "tolist", "repr", "format", "reduce_ex", "deepcopy", "hash", "requires_grad", "type", "is_complex", "is_neg",
    "is_conj", "is_inference", "resize", "dim_order",
}  # fmt: skip


class Piece(torch.Tensor):
    """This rank's entries of vectors, (n_r,), of columns (n_r, b) or of rows (b, n_r); see the module's docstring.

    >>> x = torch.ones(3).as_subclass(Piece)
    >>> float(x @ x), type(2 * x).__name__
    (3.0, 'Piece')
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.strip("_")
        factors = args[1:3] if name in UPDATES else args[:2]
        over_entries = name in PRODUCTS | UPDATES and all(isinstance(factor, cls) for factor in factors)
        if name not in LOCAL | IN_KIND | PRODUCTS | UPDATES or (over_entries and name in UPDATES):
            raise TypeError(
                f"{func.__name__} of a vector of which each rank holds a piece is not defined on one rank; use products (x @ y), "
                "spectral.longvectors, or A.shards.whole(x), which is all of it."
            )
        with torch._C.DisableTorchFunctionSubclass():
            made = func(*args, **(kwargs or {}))
        if name == "iter":
            return iter([_of(one, cls) for one in made])
        if over_entries:
            return distributed.all_reduce(made.as_subclass(torch.Tensor))
        in_place = (func.__name__.endswith("_") and not func.__name__.endswith("__")) or (
            name.startswith("i") and name[1:] in LOCAL
        )
        if name in IN_KIND or in_place:
            return args[0] if made is args[0] or in_place else _of(made, type(args[0]))
        return _of(made, cls)


def _of(made: Any, kind: type) -> Any:
    """Tensors of a result, in this class."""
    if isinstance(made, tuple | list):
        return type(made)([_of(one, kind) for one in made]) if type(made) in (tuple, list) else made
    if isinstance(made, torch.Tensor) and type(made) is not kind:
        with torch._C.DisableTorchFunctionSubclass():
            return made.as_subclass(kind)
    return made


def local(x: torch.Tensor) -> torch.Tensor:
    """The same memory as a plain tensor: what this rank holds."""
    return _of(x, torch.Tensor) if isinstance(x, Piece) else x


def own_rows(t: Any) -> Any:
    """What this rank holds of a DTensor; anything else as it is."""
    return t.to_local() if hasattr(t, "to_local") else t


def like(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """x, as a piece where `other` is one."""
    return _of(x, Piece) if isinstance(other, Piece) else x


def checksum(x: torch.Tensor, spans: tuple[tuple[int, int], ...], chunk: int = 1 << 20) -> int:
    """A hash of entries (n_r,) that lie at `spans` of a vector: summed over all ranks, modulo 2^64, it is that of the vector.

    Each entry's bits, as an integer, times an odd number that its place gives (the finaliser of splitmix64).
    """
    bits = x.reshape(-1).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    at = 0
    for first, count in spans:
        for start in range(0, count, chunk):
            some = bits[at + start : at + min(start + chunk, count)].long()
            place = torch.arange(first + start, first + start + len(some), device=x.device)
            for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
                place = (place ^ ((place >> shift) & ((1 << (64 - shift)) - 1))) * factor
            total += (some * (place | 1)).sum()
        at += count
    return int(total) % (1 << 64)


def summed(total: torch.Tensor, *of: Any) -> torch.Tensor:
    """A sum over entries of `of`, plain numbers: over those of all ranks where these are pieces."""
    apart = any(isinstance(x, Piece) for x in of) and total.numel() > 0
    return distributed.all_reduce(total.contiguous()) if apart else total


@dataclass(frozen=True)
class Shards:
    """Which entries of a vector (n,) each rank holds: `spans` of rank r are (first, count) in the order in which it has them.

    Attributes
    ----------
    n : int
        Entries of the whole vector.
    spans : tuple
        Of each rank, its (first, count).
    """

    n: int
    spans: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def own(self) -> tuple[tuple[int, int], ...]:
        """Those of this rank."""
        return self.spans[distributed.rank()]

    @property
    def entries(self) -> int:
        """How many this rank holds."""
        return sum(count for _, count in self.own)

    @property
    def most(self) -> int:
        """How many the rank with the most holds."""
        return max(sum(count for _, count in spans) for spans in self.spans)

    def probe(
        self, seed: int, index: int, *, kind: str = "gaussian", dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """This rank's piece of a random vector, whose entries are those that one process would draw."""
        how: Any = {"kind": kind, "dtype": dtype, "device": device}
        parts = [probes.probe(seed, index, count, start=first, **how) for first, count in self.own]
        return _of(torch.cat(parts), Piece)

    def checksum(self, rows: torch.Tensor) -> int:
        """A hash of vectors (j, n_r) of which this rank has its pieces, the same on every rank and on any number of them."""
        own = [
            checksum(local(row), tuple((first + i * self.n, count) for first, count in self.own))
            for i, row in enumerate(rows)
        ]
        return sum(map(sum, distributed.gather(lambda: own))) % (1 << 64)

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's piece of a vector (n,), or of columns (n, b), of which every rank has all."""
        return _of(torch.cat([whole[first : first + count] for first, count in self.own]), Piece)

    def whole(self, piece: torch.Tensor) -> torch.Tensor:
        """All of a vector (n,), or of columns (n, b), on every rank: a plain tensor of that size."""
        x = local(piece)
        out, at = x.new_zeros(self.n, *x.shape[1:]), 0
        for first, count in self.own:
            out[first : first + count] = x[at : at + count]
            at += count
        return distributed.all_reduce(out)
