"""Counter-based random probes: entry j of probe i is a function of (seed, i, j) alone.

Whatever was drawn before, however probes are blocked or sharded, and on whichever device the vector ends, the numbers are
the same, and the user's global generators stay untouched. Philox4x64 (Salmon, Moraes, Dror, Shaw 2011) with the key (seed, i)
and one counter block for each segment of 2^16 entries, so that any slice costs only its own segments.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from spectral import arrays
from spectral.krylov.kernels import draws
from spectral.krylov.kernels.draws import KINDS, SEGMENT

PIECE = 256 * SEGMENT  # entries on their way to another device
FEW = 1 << 10  # entries of which signs may well add up to 0 somewhere
GOLDEN = 0.5 * (math.sqrt(5) - 1)  # its multiples, without their whole parts, are as unlike as they can be


def check_seed(seed: int) -> int:
    """`seed` if it is an integer in [0, 2^64), which is what a Philox key holds.

    Raises
    ------
    ValueError
        For anything else.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 1 << 64:
        raise ValueError(f"seed={seed!r} is no seed; use an integer from 0 to 2**64 - 1.")
    return int(seed)


def probe(
    seed: int,
    index: int,
    n: int,
    *,
    start: int = 0,
    kind: str = "gaussian",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Entries start, ..., start + n - 1 of one random vector.

    They are drawn on the CPU, one segment a thread, and rounded to `dtype` segment by segment, so that every device sees the same
    numbers and no vector of float64 is made; another device gets them in pieces, so that the CPU holds no vector of its own.
    Long ones are drawn on a GPU itself where cupy is installed (`krylov/kernels/draws.py`).

    Parameters
    ----------
    seed : int
        Of the family of vectors.
    index : int
        Which of them.
    n : int
        How many entries.
    start : int
        The first of them.
    kind : str
        "gaussian" for independent N(0, 1), "rademacher" for signs +-1, "uniform" for [0, 1).
    dtype : torch.dtype
        Of the result.
    device : torch.device or str
        Of the result.

    Returns
    -------
    torch.Tensor
        (n,).

    Raises
    ------
    ValueError
        For another kind, and for a seed that is no integer from 0 to 2**64 - 1.

    References
    ----------
    Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.

    Examples
    --------
    >>> torch.equal(probe(0, 3, 10)[4:], probe(0, 3, 6, start=4))
    True
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is no kind of probe; use one of {', '.join(KINDS)}.")
    key = np.array([check_seed(seed), index], dtype=np.uint64)
    if torch.device(device).type != "cpu":
        values, end = torch.empty(n, dtype=dtype, device=device), start + n
        if (there := draws.of(values)) is not None:
            there.fill(values, int(key[0]), index, start, kind)
            return values
        for low in range(start, end, PIECE):
            count = min(PIECE, end - low)
            part = probe(seed, index, count, start=low, kind=kind, dtype=dtype)
            values[low - start : low - start + count].copy_(part)
        return values
    values = arrays.for_product((n,), torch.empty(0, dtype=dtype), arrays.waits())

    def fill(segment: int) -> None:
        low, high = max(start, segment * SEGMENT), min(start + n, (segment + 1) * SEGMENT)
        # the head of the segment is drawn and dropped
        drawn = draws.by_numpy(key, segment, kind, high - segment * SEGMENT)
        values[low - start : high - start] = torch.from_numpy(drawn[low - segment * SEGMENT :])

    segments = range(start // SEGMENT, -(-(start + n) // SEGMENT)) if n else range(0)
    threads = min(torch.get_num_threads(), len(segments))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:  # numpy draws without the interpreter's lock
            list(pool.map(fill, segments))
    else:
        list(map(fill, segments))
    return values


class Signs:
    """n independent signs +-1 for tests of products, one random bit each, a twentieth of what a Gaussian takes to draw.

    Eight of them are held in a byte; a slice gives entries, as int8. `of` holds the signs of a vector that is there.

    >>> Signs(0, 4)[1:].abs()
    tensor([1, 1, 1], dtype=torch.int8)
    """

    def __init__(self, seed: int, n: int, device: torch.device | str = "cpu", sized: bool = False) -> None:
        """`sized`: with sizes from 1 to 2, so that a slice is floating."""
        generator = np.random.Philox(key=np.array([check_seed(seed), 0], dtype=np.uint64), counter=[0, 0, 0, 3])
        words = np.atleast_1d(generator.random_raw(-(-n // 64))).astype("<u8").view(np.uint8)
        self.bytes, self.n, self.sized = torch.from_numpy(words).to(device), n, sized
        if self.bytes.device.type != "cpu":  # the signs of each byte
            bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
            self.table = torch.from_numpy(2 * bits.view(np.int8) - 1).to(device)

    @classmethod
    def of(cls, z: torch.Tensor) -> Signs:
        """Those of a vector (n,) of signs.

        >>> Signs.of(torch.tensor([1.0, -1.0, -1.0]))[:]
        tensor([ 1, -1, -1], dtype=torch.int8)
        """
        made, packed = cls(0, 0, z.device), [z.new_empty(0, dtype=torch.uint8)]
        for some in z.split(SEGMENT if z.device.type == "cpu" else PIECE):
            bits = torch.nn.functional.pad(some > 0, (0, -len(some) % 8))
            if z.device.type == "cpu":
                packed.append(torch.from_numpy(np.packbits(bits.numpy())))
            else:
                packed.append((bits.view(-1, 8) << torch.arange(7, -1, -1, device=z.device)).sum(1).to(torch.uint8))
        made.bytes, made.n = torch.cat(packed), len(z)
        return made

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, part: slice) -> torch.Tensor:
        low, high, _ = part.indices(self.n)
        signs = self._signs(low, high)
        return signs * (1 + torch.arange(low, high, device=signs.device) * GOLDEN % 1) if self.sized else signs

    def _signs(self, low: int, high: int) -> torch.Tensor:
        some = self.bytes[low // 8 : -(-high // 8)]
        if some.device.type == "cpu":  # numpy unpacks ten times as fast
            bits = torch.from_numpy(np.unpackbits(some.numpy()).view(np.int8))
            return bits[low % 8 :][: high - low].mul_(2).sub_(1)
        return self.table[some.int()].reshape(-1)[low % 8 :][: high - low]


def generic_signs(seed: int, n: int, device: torch.device | str = "cpu") -> Signs:
    """For tests of products: signs; of few entries, of which signs may add up to 0, with sizes from 1 to 2.

    >>> generic_signs(0, 4)[:].abs()
    tensor([1.0000, 1.6180, 1.2361, 1.8541])
    """
    return Signs(seed, n, device, sized=n <= FEW)


def signs(seed: int, n: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> torch.Tensor:
    """`Signs` as a vector (n,).

    >>> signs(0, 4).abs()
    tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    return Signs(seed, n, device)[:].to(dtype)


def unit_vectors(indices: range, n: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """These columns of the identity, (n, b): probes that miss nothing."""
    columns = torch.zeros(n, len(indices), dtype=dtype, device=device)
    columns[indices, range(len(indices))] = 1
    return columns
