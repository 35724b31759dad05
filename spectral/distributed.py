"""What the ranks of an initialised torch.distributed group do together; on one process all of it is the identity.

They sum (`all_reduce`, `Summand`), put rows in rank order (`all_rows`), and take one decision where each would take its own
(`first`, `gather`, `free_memory`). The group may be cut into teams of consecutive ranks (`teams`): inside `apart` only those of
one team are there, and teams go each at its own pace until they `meet`.

They also end together. A rank that fails while it makes its part of a sum puts NaN in its place: every rank sees it in the sum,
which is looked through for NaN anyway, and asks who has failed. It costs nothing, and leaves the ranks in step. A rank that does
not come at all is known by `spectral.heartbeat`.
"""

from __future__ import annotations

import pickle
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from spectral import heartbeat
from spectral.failures import first_line

T = TypeVar("T")
SLOT = 1 << 10  # bytes of what ranks tell each other in one collective; more takes a second one
PREFIX = 8  # of them for the length
GIVEN = (ValueError, TypeError)  # what is wrong with what all ranks were given, each seeing its own part of it
LATENCY, LONGEST = 1 / 16, 1e-3  # how long a wait may be overslept: a part of it, and in seconds
UNHURRIED = 0.05  # the same where teams wait for one another


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
    if size == _everyone():
        return Team(dist.group.WORLD if size > 1 else None, 0, 1, size)
    key = dist.group.WORLD, size
    if size > 1 and key not in _subgroups:
        _subgroups[key] = dist.new_subgroups(size)[0]
    return Team(_subgroups.get(key), dist.get_rank() // size, _everyone() // size, size)


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
        heart = _heart(dist.group.WORLD)
        if time.monotonic() - heart.looked >= heartbeat.BEAT:
            _watch(heart)


def meet() -> None:
    """Wait for all ranks, however long they take (a collective has a time-out), unless one fails meanwhile or is gone."""
    if _everyone() == 1 or (heart := _heart(dist.group.WORLD)).store is None:
        return
    begun, key = time.monotonic(), f"spectral/meet/{heart.count}"
    heart.begin_to_watch()
    heart.store.add(key, 1)
    while heart.store.add(key, 0) < heart.size:
        if time.monotonic() - heart.looked >= heartbeat.BEAT:
            _watch(heart)
        time.sleep(min(LATENCY * (time.monotonic() - begun), UNHURRIED))


def _watch(heart: heartbeat.Heartbeat) -> None:
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
    _carry(lambda: dist.all_reduce(there, group=_group(), async_op=True))
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
    return rows if world_size() == 1 else all_reduce(_placed(rows, counts))


def _placed(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """This rank's rows in their place, zeros elsewhere: one code path for ragged counts on every backend."""
    whole = rows.new_zeros((sum(counts), *rows.shape[1:]))
    start = sum(counts[: rank()])
    whole[start : start + len(rows)] = rows
    return whole


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
        self.tensor = tensor
        self.failure: BaseException | None = None

    def __enter__(self) -> Summand:
        return self

    def __exit__(self, kind: Any, failure: BaseException | None, trace: Any) -> bool:
        self.failure = failure if world_size() > 1 else None
        return self.failure is not None

    def sum(self) -> torch.Tensor:
        """Over the ranks; NaN if one of them has failed."""
        return all_reduce(self._or_nan(self.tensor))

    def rows(self, counts: list[int]) -> torch.Tensor:
        """Those of every rank under each other, `all_rows`; NaN if one of them has failed."""
        return self.tensor if world_size() == 1 else all_reduce(self._or_nan(_placed(self.tensor, counts)))

    def _or_nan(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.failure is None else tensor.fill_(torch.nan)

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
    data = pickle.dumps(_without(value, tensors)) if own else b""
    slot = _broadcast(_slot(data, SLOT), source)
    if (size := _size(slot)) > SLOT - PREFIX:
        slot = _broadcast(_slot(data, size + PREFIX), source)
    waiting = iter(tensors)

    def received(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: received(part) for name, part in node.items()}
        if not isinstance(node, _Form):
            return node
        tensor = next(waiting) if own else torch.empty(node.shape, dtype=node.dtype, device=device)
        there = _broadcast(tensor.contiguous().to(served(tensor.device)), source)
        return tensor if own else there.to(tensor.device)

    made: T = received(_content(slot))
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
        _heart(_group()).leave(
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
    return dist.group.WORLD if team is None else team.group


def _base() -> int:
    """The rank among all of the first that is there."""
    team = _team.get()
    return 0 if team is None else team.index * team.size


def _heart(group: Any) -> heartbeat.Heartbeat:
    """This rank's heartbeat in a group, which begins with the group's first collective."""
    world = dist.group.WORLD
    if world not in _hearts:
        for other in _hearts.values():
            other.stop()
        _hearts.clear()
        _subgroups.clear()
        _hearts[world] = _begun(world, 0)
    if group not in _hearts:
        _hearts[group] = _begun(group, _base())
    return _hearts[group]


def _begun(group: Any, base: int) -> heartbeat.Heartbeat:
    store = getattr(group, "get_group_store", lambda: None)()
    names = range(base, base + dist.get_world_size(group))
    return heartbeat.Heartbeat(store, dist.get_rank(group), len(names), names, _everyone())


def _carry(start: Callable[[], Any]) -> None:
    """Wait for a collective, but not for ranks that are gone."""
    heart = _heart(_group())
    try:
        work, begun, look = start(), time.monotonic(), heartbeat.PATIENCE
        while not work.is_completed():
            waited = time.monotonic() - begun
            if waited > look:
                if look == heartbeat.PATIENCE:
                    heart.begin_to_watch()
                if words := heart.missing():
                    raise RankFailed(words)
                look = waited + heartbeat.BEAT
            time.sleep(min(LATENCY * waited, LONGEST))
        work.wait()
        heart.count += 1
    except RankFailed as failure:
        heart.leave(str(failure))
        raise
    except RuntimeError as problem:  # the connection to a rank broke: which one is gone shows
        words = _blame(heart, problem)
        heart.leave(words)
        raise RankFailed(words) from problem


def _blame(heart: heartbeat.Heartbeat, problem: RuntimeError) -> str:
    """Who is gone, or what the backend says where that does not show."""
    begun = time.monotonic()
    heart.begin_to_watch()
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


def _content(slot: torch.Tensor) -> Any:
    return pickle.loads(slot[PREFIX : PREFIX + _size(slot)].cpu().numpy().tobytes())


def _broadcast(slot: torch.Tensor, source: int) -> torch.Tensor:
    _carry(lambda: dist.broadcast(slot, _base() + source, group=_group(), async_op=True))
    return slot


def _gathered(value: Any) -> list[Any]:
    """`value` of every rank, in rank order: one collective for what is short."""
    data = pickle.dumps(value)
    slots = _all_gather(_slot(data, SLOT))
    if (size := max(map(_size, slots))) > SLOT - PREFIX:
        slots = _all_gather(_slot(data, size + PREFIX))
    return [_content(slot) for slot in slots]


def _all_gather(slot: torch.Tensor) -> list[torch.Tensor]:
    slots = [torch.empty_like(slot) for _ in range(world_size())]
    _carry(lambda: dist.all_gather(slots, slot, group=_group(), async_op=True))
    return slots
