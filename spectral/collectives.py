"""How the ranks of an initialised torch.distributed group reach one another, and end together; `distributed` is made of it.

Their collectives go through a group of their own, so that none of them is ever taken for one of somebody else's: where one
rank alone multiplies while the others train, no gradient is added to its product. The group may be cut into teams: `present` is
the one whose ranks are there now.

A collective is waited for as long as every rank that is missing gives signs of life (`spectral.heartbeat`).
"""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from spectral import heartbeat
from spectral.failures import first_line

SLOT = 1 << 10  # bytes of what ranks tell each other in one collective; more takes a second one
PREFIX = 8  # of them for the length
LATENCY, LONGEST = 1 / 16, 1e-3  # how long a wait may be overslept: a part of it, and in seconds
THEIRS = os.path.dirname(dist.__file__)
UNHURRIED = 0.05  # the same where teams wait for one another


class RankFailed(RuntimeError):
    """Another rank has failed, or is gone: one sentence, the same on every rank, which all of them raise."""


@dataclass(frozen=True)
class Team:
    """One of `count` teams of `size` consecutive ranks; `group` is torch's, None where each process is alone."""

    group: Any
    index: int
    count: int
    size: int


present: ContextVar[Team | None] = ContextVar("team", default=None)  # whose ranks are there now; None: all
subgroups: dict[tuple[Any, int], Any] = {}  # that exist, by group and size


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
    team = present.get()
    return everyone() if team is None else team.size


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


def everyone() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def base() -> int:
    """The rank among all of the first that is there."""
    team = present.get()
    return 0 if team is None else team.index * team.size


# Waiting -------------------------------------------------------------------------------------------------------------
def look() -> None:
    """Raise what has ended another team, or the sentence about a rank that is gone; asks once a second at most."""
    if present.get() is not None and everyone() > 1:
        _watch(_heart(dist.group.WORLD))


def meet() -> None:
    """Wait for all ranks, however long they take (a collective has a time-out), unless one fails meanwhile or is gone."""
    if everyone() == 1 or (heart := _heart(dist.group.WORLD)).store is None:
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


# One end -------------------------------------------------------------------------------------------------------------
def leave(failure: BaseException) -> None:
    """Tell the others that this rank ends a run by an exception, between collectives: who waits for it ends as well."""
    if world_size() > 1:
        heart = _heart(dist.group.WORLD)
        if (team := present.get()) is not None:
            heart.broken, heart = True, _heart(team.group)  # a team does not begin anew: another one takes its place
        heart.leave(str(failure) if isinstance(failure, RankFailed) else sentence(rank(), said(failure) or ""))


def end(seconds: float = 0.0) -> bool:
    """This process has come to its end: wait so many seconds at most for all others to come to theirs; whether the first has.

    A launcher that sees one process fail stops all others, who then say nothing of why.
    """
    if everyone() == 1:
        return True
    store, begun, keys = _heart(dist.group.WORLD).store, time.monotonic(), ("spectral/end", "spectral/end of the first")
    if store is None:
        return dist.get_rank() == 0
    try:
        store.add(keys[1], int(dist.get_rank() == 0))
        there = store.add(keys[0], 1)
        while there < everyone() and time.monotonic() - begun < seconds:
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
        if everyone() > 1:
            leave(failure)
            if dist.get_rank() == 0:  # the store goes with it, and the others must have read
                time.sleep(heartbeat.PATIENCE + 2 * heartbeat.BEAT)

    sys.excepthook = hook


def said(failure: BaseException | None) -> str | None:
    return None if failure is None else f"{type(failure).__name__}: {first_line(failure)}"


def sentence(who: int, said: str) -> str:
    return f"rank {base() + who} of {everyone()} failed ({said.rstrip('.')}); mend it there, and start all ranks again."


@contextmanager
def guarded(group: Any) -> Iterator[None]:
    """Inside, the ranks meet in torch's own collectives of a group, where nobody looks: one that fails, or is gone, ends all.

    NCCL's collectives are given up. Gloo's cannot be: they end when the process that failed does.
    """
    if everyone() == 1:
        yield
        return
    heart = _heart(dist.group.WORLD)
    heart.seen.clear()
    heart.given_up, heart.guarded = "", (heart.beats, getattr(group, "abort", lambda: None))  # torch 2.8
    try:
        yield
    except BaseException as failure:
        heart.guarded, words = None, sentence(rank(), said(failure) or "")
        if isinstance(failure, RuntimeError) and _of_torch(failure):
            words = heart.given_up or _blame(heart, failure)
        heart.leave(words := heart.agreed(words))
        raise RankFailed(words) from failure
    finally:
        heart.guarded = None


def _of_torch(failure: BaseException) -> bool:
    """Whether a collective of torch's own has ended by it."""
    last = list(traceback.walk_tb(failure.__traceback__))[-1][0]
    return last.f_code.co_filename.startswith(THEIRS)


# Groups --------------------------------------------------------------------------------------------------------------
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
_greetings: dict[Any, heartbeat.Greeting] = {}  # of the present group


def _group() -> Any:
    """Torch's group of the ranks that are there."""
    team = present.get()
    return own_group() if team is None else team.group


def own_group() -> Any:
    """Of all ranks, for this package alone; it is made when all of them have come to their first collective.

    After ranks have left a run another one takes its place, unless they are in step: what was given up would be summed with
    what comes next.
    """
    heart, key = _heart(dist.group.WORLD), (dist.group.WORLD, everyone())
    if heart.left or key not in subgroups:
        heart.begin()
        if key in subgroups:
            meet()
        else:
            _greet(heart)
        if key not in subgroups or not heart.in_step():
            for group in [group for group in _hearts if group is not dist.group.WORLD]:
                _hearts.pop(group).stop()
            subgroups.clear()
            subgroups[key] = dist.new_group(timeout=timeout())
    return subgroups[key]


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
            f"rank {greeting.gone} of {everyone()} died or was cut off before it came to its first operator; see its own log "
            "(it may have run out of memory), and start all ranks again."
        )
        heart.leave(words)
        raise RankFailed(words)
    for work in greeting.sent:
        work.wait()
    return None


def timeout() -> Any:
    """That of the default group's collectives, None (torch's default) where this torch does not tell."""
    group, device = dist.group.WORLD, served(torch.device("cpu"))
    options = getattr(getattr(group, "_get_backend", lambda device: None)(device), "options", None)
    return getattr(options, "timeout", None)


def _heart(group: Any) -> heartbeat.Heartbeat:
    """This rank's heartbeat in a group, which begins with the group's first collective; all ranks have that of torch's own."""
    world = dist.group.WORLD
    if world not in _hearts:
        for other in _hearts.values():
            other.stop()
        _hearts.clear()
        _hearts[world] = _begun(world)
        _tell_of_what_ends_the_process()
    if group is subgroups.get((world, everyone())):
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
    start, size = 0 if group is dist.group.WORLD else base(), dist.get_world_size(group)
    return heartbeat.Heartbeat(store, dist.get_rank(group), size, range(start, start + size), everyone())


# Collectives ---------------------------------------------------------------------------------------------------------
def carry(collective: Callable[..., Any], *operands: Any) -> None:
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
    except BaseException as problem:
        _heart(dist.group.WORLD).broken = True
        if not isinstance(problem, RuntimeError):  # Ctrl-C, say, while its part is under way
            leave(problem)
            raise
        # else the connection to a rank broke: which one is gone shows
        failure = problem if isinstance(problem, RankFailed) else RankFailed(_blame(heart, problem))
        heart.leave(str(failure))
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


def broadcast(slot: torch.Tensor, source: int) -> torch.Tensor:
    carry(dist.broadcast, slot, base() + source)
    return slot


def gathered(value: Any, failed: str | None) -> list[tuple[Any, str | None]]:
    """`value` of every rank, in rank order, and what it has failed with: one collective for what is short.

    They must have been asked for the same, unless one has failed on its way.
    """
    told = _slots((heartbeat.purpose(), value, failed))
    other = next((rank for rank, (purpose, *_) in enumerate(told) if purpose != told[0][0]), None)
    if other is not None and all(words is None for *_, words in told):
        asked = _slots(heartbeat.asked())
        raise RankFailed(heartbeat.parted({base() + rank: asked[rank] for rank in (0, other)}))
    return [(own, words) for _, own, words in told]


def _slots(value: Any) -> list[Any]:
    return exchanged(pickle.dumps(value), _all_gather)


def exchanged(data: bytes, send: Callable[[torch.Tensor], list[torch.Tensor]]) -> list[Any]:
    """What was sent by every rank that sends, in one collective where it is short."""
    slots = send(_slot(data, SLOT))
    if (size := max(map(_size, slots))) > SLOT - PREFIX:
        slots = send(_slot(data, size + PREFIX))
    return [pickle.loads(slot[PREFIX : PREFIX + _size(slot)].cpu().numpy().tobytes()) for slot in slots]


def _slot(data: bytes, size: int) -> torch.Tensor:
    """(size,) bytes that begin with the length of `data`, and hold it if it fits."""
    padded = (len(data).to_bytes(PREFIX, "little") + data)[:size].ljust(size, b"\0")
    return torch.frombuffer(bytearray(padded), dtype=torch.uint8).to(served(torch.device("cpu")))


def _size(slot: torch.Tensor) -> int:
    return int.from_bytes(slot[:PREFIX].cpu().numpy().tobytes(), "little")


def _all_gather(slot: torch.Tensor) -> list[torch.Tensor]:
    slots = [torch.empty_like(slot) for _ in range(world_size())]
    carry(dist.all_gather, slots, slot)
    return slots
