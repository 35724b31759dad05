"""What the ranks of an initialised torch.distributed group do together; on one process all of it is the identity.

They sum (`all_reduce`, `Summand`), put rows in rank order (`all_rows`), and take one decision where each would take its own
(`first`, `gather`, `free_memory`). The group may be cut into teams of consecutive ranks (`teams`): inside `apart` only those of
one team are there, and teams go each at its own pace until they `collectives.meet`.

They also end together. A rank that fails while it makes its part of a sum puts NaN in its place: every rank sees it in the sum,
which is looked through for NaN anyway, and asks who has failed. It costs nothing, and leaves the ranks in step. A rank that does
not come at all is known by `spectral.heartbeat`.
"""

from __future__ import annotations

import math
import pickle
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from spectral import arrays, collectives, heartbeat
from spectral.collectives import RankFailed, Team, rank, world_size

T = TypeVar("T")
A = TypeVar("A", bound="_Attempt")
GIVEN = (ValueError, TypeError)  # what is wrong with what all ranks were given, each seeing its own part of it
SIGNS = 16  # of a hash of what all ranks hold
MARKS = 2 + SIGNS  # numbers that go with the sum of a product
SEEN = 1 << 12  # entries of a vector by which it is known, at least
ALIKE = 1e-4  # variance of the marks of ranks whose vectors are the same but for rounding, at most; of others it is 1


def leads() -> bool:
    """Whether this process is the first of all, which writes files and shows progress.

    Returns
    -------
    bool
        True without a group.

    Examples
    --------
    >>> leads()
    True
    """
    return collectives.everyone() == 1 or dist.get_rank() == 0


def share(items: Sequence[T]) -> list[T]:
    """This rank's part of what all ranks have, in their order: consecutive, as even as it goes, perhaps empty.

    Parameters
    ----------
    items : sequence
        Batches, say; the same on every rank.

    Returns
    -------
    list
        Those of all ranks one after another are `items`.

    Examples
    --------
    >>> share("abc")
    ['a', 'b', 'c']
    """
    ends = [len(items) * i // world_size() for i in (rank(), rank() + 1)]
    return list(items[slice(*ends)])


# Teams ---------------------------------------------------------------------------------------------------------------
def teams(size: int) -> Team:
    """The group cut into teams of `size` consecutive ranks, and this rank's among them; every rank must ask for it.

    Parameters
    ----------
    size : int
        A divisor of the number of ranks.

    Returns
    -------
    Team
        To go `apart` with.

    Examples
    --------
    >>> teams(1)
    Team(group=None, index=0, count=1, size=1)
    """
    if collectives.everyone() == 1:
        return Team(None, 0, 1, 1)
    key = dist.group.WORLD, size
    group = None if size == 1 else collectives.own_group()
    if 1 < size < collectives.everyone():
        known = collectives.subgroups
        group = known[key] = known.get(key) or dist.new_subgroups(size, timeout=collectives.timeout())[0]
    return Team(group, dist.get_rank() // size, collectives.everyone() // size, size)


@contextmanager
def apart(team: Team, *, together: bool = False) -> Iterator[None]:
    """Inside, only the ranks of this team are there; whoever ends it by an exception tells all others, who see it by `look`.

    Parameters
    ----------
    team : Team
        This rank's.
    together : bool
        Whether a collective of all follows at once, in which a failure is told.

    Examples
    --------
    >>> with apart(teams(1)):
    ...     world_size()
    1
    """
    before = collectives.present.set(team)
    try:
        yield
    except BaseException as failure:
        for told in () if together else (team, None):
            collectives.present.set(told)
            collectives.leave(failure)
        raise
    finally:
        collectives.present.reset(before)


def is_apart() -> bool:
    """Whether the ranks of other teams are not there."""
    return collectives.present.get() is not None


# Sums ----------------------------------------------------------------------------------------------------------------
def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over the ranks, on every rank, in place.

    Parameters
    ----------
    tensor : torch.Tensor
        This rank's summand; it becomes the sum. One on a device that the backend does not serve (NCCL has no collectives
        for the CPU) is summed on one that it does.

    Returns
    -------
    torch.Tensor
        `tensor`.

    Raises
    ------
    RankFailed
        When another rank does not come.

    Examples
    --------
    >>> all_reduce(torch.ones(2))
    tensor([1., 1.])
    """
    if world_size() == 1:
        return tensor
    there = tensor.to(collectives.served(tensor.device))
    collectives.carry(dist.all_reduce, there)
    return tensor if there is tensor else tensor.copy_(there)


def all_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The rows of every rank under each other, in rank order, on every rank.

    Parameters
    ----------
    rows : torch.Tensor
        This rank's, (m_r, b).
    counts : list of int
        m_r of every rank.

    Returns
    -------
    torch.Tensor
        (m, b), m the sum of `counts`.

    Examples
    --------
    >>> all_rows(torch.ones(1, 2), [1])
    tensor([[1., 1.]])
    """
    return rows if world_size() == 1 else all_reduce(_placed(rows, counts)[1])


def _placed(rows: torch.Tensor, counts: list[int], more: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(memory with so many numbers more, this rank's rows in their place in it): one code path for ragged counts everywhere."""
    shape, start = (sum(counts), *rows.shape[1:]), sum(counts[: rank()])
    whole = rows.new_zeros(math.prod(shape) + more)
    there = whole[: math.prod(shape)].view(shape)
    there[start : start + len(rows)] = rows
    return whole, there


def mark(vectors: torch.Tensor) -> torch.Tensor:
    """Of order one for random vectors (b, n), and another one for others: a sum of some thousand entries over their norm."""
    stride = max(1, vectors.shape[1] // SEEN)
    norm = arrays.double(torch.linalg.vector_norm(vectors))
    found = arrays.near(vectors[:, ::stride]).sum(dtype=torch.float64) * stride**0.5 / norm
    return torch.where(norm > 0, found, 0.0)


def hold_alike(marks: Sequence[float]) -> None:
    """One sentence about the rank whose vectors are others than those of the first; `marks` of every rank's, in rank order."""
    off, start = [abs(other - marks[0]) for other in marks], collectives.base()
    if max(off) ** 2 > ALIKE * max(1.0, marks[0] ** 2):
        raise ValueError(
            f"rank {start + off.index(max(off))} multiplies another vector than rank {start}, so that the sum would be of no "
            "product; draw it from the same seed on every rank (A.probe), or give every rank that of one of them "
            "(torch.distributed.broadcast)."
        )


class _Attempt:
    """What this rank fails with inside `with` is held back until the ranks tell each other; on one process nothing is."""

    failure: BaseException | None = None

    def __enter__(self: A) -> A:
        return self

    def __exit__(self, kind: Any, failure: BaseException | None, trace: Any) -> bool:
        self.failure = failure if world_size() > 1 and not isinstance(failure, RankFailed) else None
        return self.failure is not None


class Summand(_Attempt):
    """This rank's part of a sum over the ranks, made inside `with`: what one rank fails with there, every rank raises.

    The collective is made all the same, so that the ranks stay in step; after it somebody must look for NaN and call `share`.
    On one process nothing is held back.

    >>> with Summand(torch.zeros(2)) as part:
    ...     part.tensor += 1
    >>> part.sum()
    tensor([1., 1.])
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        """`tensor` is written to inside, and becomes the sum."""
        self.tensor = self.whole = tensor
        self.vectors: torch.Tensor | None = None  # of which the part is made, where every rank must have the same
        self.held: Callable[[], str] = str  # a hash of what else all must have, once the part is made
        self.parted = False  # whether that of a rank is another

    @classmethod
    def of(
        cls, vectors: torch.Tensor, shape: tuple[int, int], held: Callable[[], str] | None = str, again: bool = False
    ) -> Summand:
        """Memory for this rank's part of a product with vectors (b, n); ranks that multiply different ones have no sum.

        Some numbers more go with the sum: a mark of the vectors and its square, whose variance over the ranks is 0, and the first
        bits of a hash of what all ranks have (`held`) as signs. None: a rank holds vectors, or pieces of them, of its own.
        `again`: as of `arrays.for_product`.
        """
        if world_size() == 1 or held is None:
            return cls(arrays.for_product(shape, vectors, again))
        whole = arrays.for_product((math.prod(shape) + MARKS,), vectors, again)
        part = cls(whole[:-MARKS].view(shape))
        part.whole, part.vectors, part.held = whole, vectors, held
        return part

    def sum(self) -> torch.Tensor:
        """Over the ranks; NaN if one of them has failed."""
        self._reduce(self.whole)
        return self.tensor

    def rows(self, counts: list[int]) -> torch.Tensor:
        """Those of every rank under each other, `all_rows`; NaN if one of them has failed."""
        if world_size() == 1:
            return self.tensor
        whole, rows = _placed(self.tensor, counts, 0 if self.vectors is None else MARKS)
        self._reduce(whole)
        return rows

    def _reduce(self, whole: torch.Tensor) -> None:
        """Sum over the ranks what ends with the marks, if there are any."""
        own = None if self.vectors is None else mark(self.vectors)
        if own is not None:
            bits = int(self.held()[: SIGNS // 4] or "0", 16)
            whole[-MARKS:-SIGNS] = torch.stack([own, own.square()]).to(whole)
            whole[-SIGNS:] = torch.tensor([1 - 2 * (bits >> i & 1) for i in range(SIGNS)]).to(whole)
        all_reduce(whole if self.failure is None else whole.fill_(torch.nan))
        if own is None:
            return
        mean, square, *signs = (arrays.double(whole[-MARKS:]) / world_size()).tolist()
        if square - mean * mean > ALIKE * max(1.0, mean * mean):  # not so of NaN
            hold_alike(gather(lambda: float(own)))
        self.parted = any(abs(sign) < 1 - torch.finfo(whole.dtype).eps for sign in signs)

    def share(self) -> None:
        """Every rank calls it where the sum holds NaN: raises if that is because a rank has failed."""
        _told(None, self.failure)


# One decision --------------------------------------------------------------------------------------------------------
def gather(make: Callable[[], T]) -> list[T]:
    """What every rank makes, in rank order; what one of them fails with, every rank raises.

    Parameters
    ----------
    make : callable
        () -> what can be pickled.

    Returns
    -------
    list
        One for each rank.

    Raises
    ------
    RankFailed
        When another rank fails, or does not come. What all ranks fail with alike is raised as it is.

    Examples
    --------
    >>> gather(lambda: 5)
    [5]
    """
    made: Any = None
    with _Attempt() as attempt:
        made = make()
    return _told(made, attempt.failure)


@contextmanager
def together() -> Iterator[None]:
    """What one rank fails with inside, every rank raises at its end; the ranks must have no collective inside."""
    with _Attempt() as attempt:
        yield
    _told(None, attempt.failure)


def _told(own: Any, failure: BaseException | None) -> list[Any]:
    """`own` of every rank; what one has failed with, every rank raises."""
    if world_size() == 1:
        return [own]
    told = collectives.gathered(own, collectives.said(failure))
    said = [words for _, words in told]
    failed = [who for who, words in enumerate(said) if words is not None]
    if not failed:
        return [value for value, _ in told]
    if failure is not None and (
        (len(failed) == len(said) and len(set(said)) == 1) or not isinstance(failure, Exception)
    ):
        raise failure  # the same everywhere: it is about what all were given
    kind, words = (said[failed[0]] or "").split(": ", 1)
    if kind == RankFailed.__name__:  # of a team: it names the rank
        raise RankFailed(words) from failure
    given = next((one for one in GIVEN if isinstance(failure, one)), None)
    if given is not None and {str(one).split(": ")[0] for one in said} == {type(failure).__name__}:
        raise given(words) from failure
    raise RankFailed(collectives.sentence(failed[0], f"{kind}: {words}")) from failure


def first(value: T, device: torch.device | None = None, source: int = 0) -> T:
    """That of one rank, the first by default, on every rank.

    Parameters
    ----------
    value : object
        What can be pickled; that of other ranks is not looked at. Tensors in nested dictionaries are sent one by one.
    device : torch.device, optional
        Where other ranks put such tensors; by default on the CPU.
    source : int
        Whose it is.

    Returns
    -------
    object
        That rank's.

    Examples
    --------
    >>> first("so")
    'so'
    """
    if world_size() == 1:
        return value
    tensors: list[torch.Tensor] = []
    own = rank() == source
    purpose = heartbeat.purpose()
    data = pickle.dumps((purpose, heartbeat.asked(), _without(value, tensors))) if own else b""
    ((its, asked, content),) = collectives.exchanged(data, lambda slot: [collectives.broadcast(slot, source)])
    waiting = iter(tensors)

    def received(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: received(part) for name, part in node.items()}
        if not isinstance(node, _Form):
            return node
        tensor = next(waiting) if own else torch.empty(node.shape, dtype=node.dtype, device=device)
        there = collectives.broadcast(tensor.contiguous().to(collectives.served(tensor.device)), source)
        return tensor if own else there.to(tensor.device)

    if its != purpose:
        start = collectives.base()
        failure = RankFailed(heartbeat.parted({start + source: asked, start + rank(): heartbeat.asked()}))
        collectives.leave(failure)  # the source of it has seen nothing
        raise failure
    return received(content)


def decided(A: Any, verdict: T) -> T:
    """The verdict of the first of the ranks that multiply A, where others may have rounded otherwise.

    Parameters
    ----------
    A : Operator
        Whose `ranks` say how many these are.
    verdict : object
        This rank's: whatever later collectives depend on. Tensors are sent too, as of `first`.

    Returns
    -------
    object
        That of the first of them.

    Examples
    --------
    >>> decided(spectral.as_operator(np.eye(2)), True)
    True
    """
    return verdict if A.ranks == 1 else first(verdict)


def by_first(make: Callable[[], T]) -> T:
    """What rank 0 alone makes, without collectives, on every rank; what it fails with, every rank raises.

    >>> by_first(lambda: 5)
    5
    """
    if world_size() == 1:
        return make()
    made: Any = None
    with together():
        if rank() == 0:
            made = make()
    return first(made)


class _Form(NamedTuple):
    """A tensor that is sent by itself."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _without(node: Any, tensors: list[torch.Tensor]) -> Any:
    """A nested dictionary with the forms of its `tensors` in their places."""
    if isinstance(node, dict):
        return {name: _without(part, tensors) for name, part in node.items()}
    if not isinstance(node, torch.Tensor):
        return node
    tensors.append(node)
    return _Form(tuple(node.shape), node.dtype)


def free_memory(free: int, device: torch.device) -> int:
    """Bytes that each rank may count on where each sees `free` of them: the least.

    Ranks of one machine share what it has.

    Parameters
    ----------
    free : int
        What this rank sees.
    device : torch.device
        Where.

    Returns
    -------
    int
        The same on every rank.

    Examples
    --------
    >>> free_memory(1000, torch.device("cpu"))
    1000
    """
    place = platform.node() if device.type == "cpu" else f"{platform.node()} {collectives.base() + rank()}"
    seen = gather(lambda: (place, free))
    places = [place for place, _ in seen]
    return min(free // places.count(place) for place, free in seen)
