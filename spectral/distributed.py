"""What the ranks of an initialised torch.distributed group do together; on one process all of it is the identity.

They sum (`all_reduce`, `Summand`), put rows in rank order (`all_rows`), and take one decision where each would take its own
(`first`, `gather`, `free_memory`). The group may be cut into teams of consecutive ranks (`teams`): inside `apart` only those of
one team are there, and teams go each at its own pace until they `meet`.

Their collectives go through a group of their own, so that none of them is ever taken for one of somebody else's: where one
rank alone multiplies while the others train, no gradient is added to its product.

They also end together. A rank that fails while it makes its part of a sum puts NaN in its place: every rank sees it in the sum,
which is looked through for NaN anyway, and asks who has failed. It costs nothing, and leaves the ranks in step. A rank that does
not come at all is known by `spectral.heartbeat`.
"""

from __future__ import annotations

import math
import os
import pickle
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from spectral import arrays, heartbeat
from spectral.failures import first_line

T = TypeVar("T")
SLOT = 1 << 10  # bytes of what ranks tell each other in one collective; more takes a second one
PREFIX = 8  # of them for the length
GIVEN = (ValueError, TypeError)  # what is wrong with what all ranks were given, each seeing its own part of it
LATENCY, LONGEST = 1 / 16, 1e-3  # how long a wait may be overslept: a part of it, and in seconds
UNHURRIED = 0.05  # the same where teams wait for one another
MARKS = 2  # numbers that go with the sum of a product
SEEN = 1 << 12  # entries of a vector by which it is known, at least
ALIKE = 1e-4  # variance of the marks of ranks whose vectors are the same but for rounding, at most; of others it is 1


class RankFailed(RuntimeError):
    """Another rank has failed, or is gone: one sentence, the same on every rank."""


# Who is there ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Team:
    """One of `count` teams of `size` consecutive ranks; `group` is torch's, None where each process is alone."""

    group: Any
    index: int
    count: int
    size: int


_team: ContextVar[Team | None] = ContextVar("team", default=None)  # whose ranks are there now; None: all
_subgroups: dict[tuple[Any, int], Any] = {}  # that exist, by group and size


def world_size() -> int:
    """Number of processes that make a product together: 1 without an initialised group.

    Returns
    -------
    int
        The size of torch's default group, or of this rank's team inside `apart`.

    Examples
    --------
    >>> world_size()
    1
    """
    team = _team.get()
    return _everyone() if team is None else team.size


def rank() -> int:
    """Index of this process among them.

    Returns
    -------
    int
        From 0 on.

    Examples
    --------
    >>> rank()
    0
    """
    return dist.get_rank() % world_size() if world_size() > 1 else 0


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
    return _everyone() == 1 or dist.get_rank() == 0


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


def _everyone() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


# Teams ----------------------------------------------------------------------------------------------------------------
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
    if _everyone() == 1:
        return Team(None, 0, 1, 1)
    key = dist.group.WORLD, size
    group = None if size == 1 else _own_group()
    if 1 < size < _everyone():
        group = _subgroups[key] = _subgroups.get(key) or dist.new_subgroups(size, timeout=_timeout())[0]
    return Team(group, dist.get_rank() // size, _everyone() // size, size)


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
    before = _team.set(team)
    try:
        yield
    except BaseException as failure:
        for told in () if together else (team, None):
            _team.set(told)
            leave(failure)
        raise
    finally:
        _team.reset(before)


def is_apart() -> bool:
    """Whether the ranks of other teams are not there."""
    return _team.get() is not None


def look() -> None:
    """Raise what has ended another team, or the sentence about a rank that is gone; asks once a second at most."""
    if _team.get() is not None and _everyone() > 1:
        _watch(_heart(dist.group.WORLD))


def meet() -> None:
    """Wait for all ranks, however long they take (a collective has a time-out), unless one fails meanwhile or is gone."""
    if _everyone() == 1 or (heart := _heart(dist.group.WORLD)).store is None:
        return
    key = f"spectral/meet/{heart.place}"
    heart.store.add(key, 1)
    _await(heart, lambda: heart.store.add(key, 0) >= heart.size)


def _await(heart: heartbeat.Heartbeat, met: Callable[[], bool]) -> None:
    """Until all have met, unless one fails meanwhile or is gone."""
    begun = time.monotonic()
    heart.watch("meet")
    try:
        while not met():
            _watch(heart)
            time.sleep(min(LATENCY * (time.monotonic() - begun) + LONGEST, UNHURRIED))
    finally:
        heart.come()


def _watch(heart: heartbeat.Heartbeat) -> None:
    if time.monotonic() - heart.looked >= heartbeat.BEAT:
        heart.looked = time.monotonic()
        if words := heart.missing():
            raise RankFailed(words)


# Sums -----------------------------------------------------------------------------------------------------------------
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
    there = tensor.to(served(tensor.device))
    _carry(dist.all_reduce, there)
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
    norm = torch.linalg.vector_norm(vectors).double()
    found = vectors[:, ::stride].sum(dtype=torch.float64) * stride**0.5 / norm
    return torch.where(norm > 0, found, 0.0)


def hold_alike(marks: Sequence[float]) -> None:
    """One sentence about the rank whose vectors are others than those of the first; `marks` of every rank's, in rank order."""
    off = [abs(other - marks[0]) for other in marks]
    if max(off) ** 2 > ALIKE * max(1.0, marks[0] ** 2):
        raise ValueError(
            f"rank {_base() + off.index(max(off))} multiplies another vector than rank {_base()}, so that the sum would be of no "
            "product; draw it from the same seed on every rank (A.probe), or give every rank that of one of them "
            "(torch.distributed.broadcast)."
        )


class Summand:
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
        self.failure: BaseException | None = None

    @classmethod
    def of(cls, vectors: torch.Tensor, shape: tuple[int, int], alike: bool = True) -> Summand:
        """Memory for this rank's part of a product with vectors (b, n); ranks that multiply different ones have no sum.

        Two numbers more go with the sum, a mark of the vectors and its square, whose variance over the ranks is 0. `alike`:
        False where a rank holds vectors, or pieces of them, of its own.
        """
        if world_size() == 1 or not alike:
            return cls(arrays.empty(shape, vectors))
        whole = arrays.empty((math.prod(shape) + MARKS,), vectors)
        part = cls(whole[:-MARKS].view(shape))
        part.whole, part.vectors = whole, vectors
        return part

    def __enter__(self) -> Summand:
        return self

    def __exit__(self, kind: Any, failure: BaseException | None, trace: Any) -> bool:
        self.failure = failure if world_size() > 1 else None
        return self.failure is not None

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
            whole[-MARKS:] = torch.stack([own, own.square()]).to(whole)
        all_reduce(whole if self.failure is None else whole.fill_(torch.nan))
        if own is None:
            return
        mean, square = (whole[-MARKS:].double() / world_size()).tolist()
        if square - mean * mean > ALIKE * max(1.0, mean * mean):  # not so of NaN
            hold_alike(gather(lambda: float(own)))

    def share(self) -> None:
        """Every rank calls it where the sum holds NaN: raises if that is because a rank has failed."""
        if world_size() > 1:
            _raise(self.failure, _gathered(_said(self.failure)))


# One decision ---------------------------------------------------------------------------------------------------------
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
    if world_size() == 1:
        return [make()]
    made = failure = None
    try:
        made = make()
    except BaseException as problem:
        failure = problem
    told = _gathered((made, _said(failure)))
    _raise(failure, [said for _, said in told])
    return [value for value, _ in told]


@contextmanager
def together() -> Iterator[None]:
    """What one rank fails with inside, every rank raises at its end; the ranks must have no collective inside."""
    if world_size() == 1:
        yield
        return
    failure: BaseException | None = None
    try:
        yield
    except BaseException as problem:
        failure = problem
    _raise(failure, _gathered(_said(failure)))


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
    ((its, asked, content),) = _exchanged(data, lambda slot: [_broadcast(slot, source)])
    waiting = iter(tensors)

    def received(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: received(part) for name, part in node.items()}
        if not isinstance(node, _Form):
            return node
        tensor = next(waiting) if own else torch.empty(node.shape, dtype=node.dtype, device=device)
        there = _broadcast(tensor.contiguous().to(served(tensor.device)), source)
        return tensor if own else there.to(tensor.device)

    if its != purpose:
        failure = RankFailed(heartbeat.parted({_base() + source: asked, _base() + rank(): heartbeat.asked()}))
        leave(failure)  # the source of it has seen nothing
        raise failure
    made: T = received(content)
    return made


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
    value: T = first(made)
    return value


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
    place = platform.node() if device.type == "cpu" else f"{platform.node()} {_base() + rank()}"
    seen = gather(lambda: (place, free))
    places = [place for place, _ in seen]
    return min(free // places.count(place) for place, free in seen)


# One end --------------------------------------------------------------------------------------------------------------
def leave(failure: BaseException) -> None:
    """Tell the others that this rank ends a run by an exception, between collectives: who waits for it ends as well."""
    if world_size() > 1:
        _heart(dist.group.WORLD if (team := _team.get()) is None else team.group).leave(
            str(failure) if isinstance(failure, RankFailed) else _sentence(rank(), _said(failure) or "")
        )


def end(seconds: float = 0.0) -> bool:
    """This process has come to its end: wait so many seconds at most for all others to come to theirs; whether the first has.

    A launcher that sees one process fail stops all others, who then say nothing of why.
    """
    if _everyone() == 1:
        return True
    store, begun, keys = _heart(dist.group.WORLD).store, time.monotonic(), ("spectral/end", "spectral/end of the first")
    if store is None:
        return leads()
    try:
        store.add(keys[1], int(leads()))
        there = store.add(keys[0], 1)
        while there < _everyone() and time.monotonic() - begun < seconds:
            time.sleep(UNHURRIED)
            there = store.add(keys[0], 0)
        return bool(store.add(keys[1], 0))
    except (RuntimeError, OSError):  # the store has gone with the first rank, which kept it
        return True


def _tell_of_what_ends_the_process() -> None:
    """An exception that nobody catches, here or in somebody's own program, is told to the ranks that wait for this one."""
    plain = sys.excepthook
    if getattr(plain, "__module__", "") == __name__:
        return

    def hook(kind: type[BaseException], failure: BaseException, trace: Any) -> None:
        plain(kind, failure, trace)
        if _everyone() > 1:
            leave(failure)
            if leads():  # the store goes with it, and the others must have read
                time.sleep(2 * heartbeat.BEAT)

    sys.excepthook = hook


def _said(failure: BaseException | None) -> str | None:
    return None if failure is None else f"{type(failure).__name__}: {first_line(failure)}"


def _sentence(who: int, said: str) -> str:
    return (
        f"rank {_base() + who} of {_everyone()} failed ({said.rstrip('.')}); mend it there, and start all ranks again."
    )


def _raise(failure: BaseException | None, said: list[str | None]) -> None:
    """Whatever was said by ranks that have failed; nothing if none has."""
    failed = [who for who, words in enumerate(said) if words is not None]
    if not failed:
        return
    if failure is not None and (
        (len(failed) == len(said) and len(set(said)) == 1) or not isinstance(failure, Exception)
    ):
        raise failure  # the same everywhere: it is about what all were given
    kind, words = (said[failed[0]] or "").split(": ", 1)
    if kind == RankFailed.__name__:  # of a team: it names the rank
        raise RankFailed(words) from failure
    if len(failed) == len(said) and isinstance(failure, GIVEN) and type(failure).__name__ == kind:
        raise type(failure)(words) from failure
    raise RankFailed(_sentence(failed[0], f"{kind}: {words}")) from failure


# Collectives ----------------------------------------------------------------------------------------------------------
def served(device: torch.device) -> torch.device:
    """`device`, or where the backend has none for it one that its collectives take: NCCL refuses tensors on the CPU."""
    kinds = [pair.split(":")[0] for pair in dist.get_backend_config().split(",")]
    if device.type in kinds:
        return device
    if "cpu" in kinds:
        return torch.device("cpu")
    bound: torch.device | None = getattr(dist.group.WORLD, "bound_device_id", None)
    return bound or torch.device(kinds[0])  # of torch.cuda.set_device


_hearts: dict[Any, heartbeat.Heartbeat] = {}  # of the present group and its teams alone


def _group() -> Any:
    """Torch's group of the ranks that are there."""
    team = _team.get()
    return _own_group() if team is None else team.group


def _own_group() -> Any:
    """Of all ranks, for this package alone; it is made when all of them have come to their first collective.

    After ranks have left a run another one takes its place, unless they are in step: what was given up would be summed with
    what comes next.
    """
    heart, key = _heart(dist.group.WORLD), (dist.group.WORLD, _everyone())
    if heart.left or key not in _subgroups:
        heart.begin()
        if key in _subgroups:
            meet()
        else:
            _greet(heart)
        if key not in _subgroups or not heart.in_step():
            for group in [group for group in _hearts if group is not dist.group.WORLD]:
                _hearts.pop(group).stop()
            _subgroups.clear()
            _subgroups[key] = dist.new_group(timeout=_timeout())
    return _subgroups[key]


def _greet(heart: heartbeat.Heartbeat) -> None:
    """Meet for the first time, as a rank may have gone before it gave a sign of life: by messages, which break then.

    They have a tag, so that they come between no collectives. NCCL has none.
    """
    if served(torch.device("cpu")).type != "cpu" or heart.store is None:
        return meet()
    world = dist.group.WORLD
    if world not in _greetings:  # else somebody has given up waiting for them
        _greetings.clear()
        _greetings[world] = heartbeat.Greeting()
    greeting = _greetings[world]
    _await(heart, lambda: not greeting.thread.is_alive())
    if greeting.gone is not None:
        words = heart.missing() or (
            f"rank {greeting.gone} of {_everyone()} died or was cut off before it came to its first operator; see its own log "
            "(it may have run out of memory), and start all ranks again."
        )
        heart.leave(words)
        raise RankFailed(words)
    for work in greeting.sent:
        work.wait()
    return None


_greetings: dict[Any, heartbeat.Greeting] = {}  # of the present group


def _timeout() -> Any:
    """That of the default group's collectives, None (torch's default) where this torch does not tell."""
    group, device = dist.group.WORLD, served(torch.device("cpu"))
    options = getattr(getattr(group, "_get_backend", lambda device: None)(device), "options", None)
    return getattr(options, "_timeout", None)


def _base() -> int:
    """The rank among all of the first that is there."""
    team = _team.get()
    return 0 if team is None else team.index * team.size


def _heart(group: Any) -> heartbeat.Heartbeat:
    """This rank's heartbeat in a group, which begins with the group's first collective; all ranks have that of torch's own."""
    world = dist.group.WORLD
    if world not in _hearts:
        for other in _hearts.values():
            other.stop()
        _hearts.clear()
        _hearts[world] = _begun(world)
        _tell_of_what_ends_the_process()
    if group is _subgroups.get((world, _everyone())):
        return _hearts[world]
    if group not in _hearts:
        _hearts[group] = _begun(group)
    return _hearts[group]


def _begun(group: Any) -> heartbeat.Heartbeat:
    if hasattr(group, "get_group_store"):
        store = group.get_group_store()
    else:  # torch 2.6
        store = getattr(getattr(dist.distributed_c10d, "_world", None), "pg_map", {}).get(group, (None, None))[1]
    if store is not None:  # which torchrun may go on with when it starts all ranks again
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    base, size = 0 if group is dist.group.WORLD else _base(), dist.get_world_size(group)
    return heartbeat.Heartbeat(store, dist.get_rank(group), size, range(base, base + size), _everyone())


def _carry(collective: Callable[..., Any], *operands: Any) -> None:
    """Wait for a collective, but not for ranks that are gone, or that wait for another one."""
    group = _group()
    heart = _heart(group)
    try:
        work, begun, look = collective(*operands, group=group, async_op=True), time.monotonic(), heartbeat.PATIENCE
        while not work.is_completed():
            waited = time.monotonic() - begun
            if waited > look:
                if look == heartbeat.PATIENCE:
                    size = next(one.numel() for one in reversed(operands) if isinstance(one, torch.Tensor))
                    heart.watch(f"{collective.__name__}:{size}")
                if words := heart.missing():
                    raise RankFailed(words)
                look = waited + heartbeat.BEAT
            time.sleep(min(LATENCY * waited, LONGEST))
        work.wait()
        heart.count += 1
    except RuntimeError as problem:  # else the connection to a rank broke: which one is gone shows
        failure = problem if isinstance(problem, RankFailed) else RankFailed(_blame(heart, problem))
        heart.leave(str(failure))
        _heart(dist.group.WORLD).broken = True
        raise failure from (None if failure is problem else problem)
    finally:
        heart.come()


def _blame(heart: heartbeat.Heartbeat, problem: RuntimeError) -> str:
    """Who is gone, or what the backend says where that does not show."""
    begun = time.monotonic()
    heart.watch()
    while time.monotonic() - begun < heartbeat.SILENT + 4 * heartbeat.BEAT and heart.store is not None:
        if words := heart.missing():
            return words
        time.sleep(heartbeat.BEAT / 4)
    return f"the ranks lost one another ({first_line(problem)}); see the log of each rank, and start all of them again."


def _slot(data: bytes, size: int) -> torch.Tensor:
    """(size,) bytes that begin with the length of `data`, and hold it if it fits."""
    padded = (len(data).to_bytes(PREFIX, "little") + data)[:size].ljust(size, b"\0")
    return torch.frombuffer(bytearray(padded), dtype=torch.uint8).to(served(torch.device("cpu")))


def _size(slot: torch.Tensor) -> int:
    return int.from_bytes(slot[:PREFIX].cpu().numpy().tobytes(), "little")


def _broadcast(slot: torch.Tensor, source: int) -> torch.Tensor:
    _carry(dist.broadcast, slot, _base() + source)
    return slot


def _gathered(value: Any) -> list[Any]:
    """`value` of every rank, in rank order: one collective for what is short. They must have been asked for the same."""
    told = _slots((heartbeat.purpose(), value))
    if any(purpose != told[0][0] for purpose, _ in told):
        asked = _slots(heartbeat.asked())
        other = next(rank for rank, (purpose, _) in enumerate(told) if purpose != told[0][0])
        raise RankFailed(heartbeat.parted({_base() + rank: asked[rank] for rank in (0, other)}))
    return [own for _, own in told]


def _slots(value: Any) -> list[Any]:
    return _exchanged(pickle.dumps(value), _all_gather)


def _exchanged(data: bytes, send: Callable[[torch.Tensor], list[torch.Tensor]]) -> list[Any]:
    """What was sent by every rank that sends, in one collective where it is short."""
    slots = send(_slot(data, SLOT))
    if (size := max(map(_size, slots))) > SLOT - PREFIX:
        slots = send(_slot(data, size + PREFIX))
    return [pickle.loads(slot[PREFIX : PREFIX + _size(slot)].cpu().numpy().tobytes()) for slot in slots]


def _all_gather(slot: torch.Tensor) -> list[torch.Tensor]:
    slots = [torch.empty_like(slot) for _ in range(world_size())]
    _carry(dist.all_gather, slots, slot)
    return slots
