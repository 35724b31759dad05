"""Signs of life of the ranks of a torch.distributed group, in the store by which they have found one another.

A collective waits for every rank, and a rank that is gone never comes: backends notice after their time-out (half an hour), and
then do not say which. Each rank therefore writes a number that grows into the store, once a second, in a thread of its own, and
where its program is, if it is asked. Who waits for long looks: a rank whose number stands still is gone; one that waits itself,
but for another collective, was asked for something else, and so were all that wait for it; one that is elsewhere may still come.
A rank that leaves a run by an exception says so there.
"""

from __future__ import annotations

import atexit
import faulthandler
import inspect
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import torch
import torch.distributed as dist

BEAT = 1.0  # seconds between signs of life
PATIENCE = 5.0  # that a collective may take before anyone looks
SILENT = 30.0  # without a sign of life after which a rank counts as gone: other libraries may hold the interpreter for seconds
COLLECTIVES = dist.distributed_c10d.__file__ if dist.is_available() else ""  # torch's own
EVERY = "operators and estimators must be called on every rank, not on one alone."
THEIRS = "torch.distributed"
NOT_YET = "its beginning, before its first operator"
GREETING = 20_260_727  # the tag
PLUMBING = ("heartbeat", "collectives", "distributed")  # modules that ask for nothing themselves
LOST = "the store of the group cannot be reached, which rank 0 (or the launcher) keeps: it has died, or the network is down"
# where frames of a stack lie
OWN, TORCH, LIBRARY = (f"{Path(file).parent}{os.sep}" for file in (__file__, torch.__file__, os.__file__))


class Heartbeat:
    """This rank's signs of life, and what is to be seen of the others'."""

    def __init__(
        self, store: Any, rank: int, size: int, names: Sequence[int] | None = None, everyone: int | None = None
    ) -> None:
        """`store`: torch's, or None where this torch does not give it away; then nothing is known of others.

        `names`: what the ranks are called, of `everyone`, where the group is a part of all.
        """
        self.store, self.rank, self.size = store, rank, size
        self.names, self.everyone = range(size) if names is None else names, everyone or size
        self.looked = 0.0  # when somebody last asked who is missing
        self.turn, self.count = 0, 0  # how often ranks have left a run, and collectives since
        self.left = False  # whether it has left a run by an exception since
        self.broken = False  # whether it has given up a collective, which will never end
        # of this rank: the clock by which others are silent, which stands still while this process is stopped
        self.beats = 0
        self.seen: dict[int, tuple[str, int]] = {}  # of each rank its latest sign, and when it was first seen
        self.waits: dict[int, tuple[str, int]] = {}  # of each rank that waits for what, and when that was first seen
        self.stays: dict[int, tuple[str, int]] = {}  # of each rank that is elsewhere where, and since when
        self.waiting = ""  # for which collective, if for long
        self.warned = False
        self.thread = threading.get_ident()  # that multiplies
        self.over = threading.Event()
        # since which beat this rank may wait in collectives in which nobody looks, how they are given up, and why they were
        self.guarded: tuple[int, Callable[[], None]] | None = None
        self.given_up = ""
        if store is not None:
            thread = threading.Thread(target=self._beat, name="spectral heartbeat", daemon=True)
            thread.start()
            atexit.register(self.stop, thread)

    def _beat(self) -> None:
        try:
            while not self.over.is_set():
                self.beats += 1
                place = elsewhere(self.thread) if self._of("ask", self.rank) else ""
                self.store.set(self._key("beat", self.rank), f"{self.beats} {place}")
                self._guard()
                self.over.wait(BEAT)
        except (RuntimeError, OSError):  # the store is gone, and with it the group
            self.over.set()

    def _guard(self) -> None:
        """Give up what this rank waits for once another one will not come."""
        if (guarded := self.guarded) is None or (self.beats - guarded[0]) * BEAT < PATIENCE:
            return
        self.guarded = self.beats, guarded[1]
        if (words := self.missing()) and not self.given_up:
            self.given_up = words
            warnings.warn(f"{words} This rank waits for it inside the model.", stacklevel=2)
            guarded[1]()

    def stop(self, thread: threading.Thread | None = None) -> None:
        """No more signs of life: the group is done with, or the interpreter ends, in which no thread may be inside torch."""
        if thread is not None and not self.over.is_set() and dist.is_initialized():
            self.leave(
                f"rank {self.names[self.rank]} of {self.everyone} has come to its end, and is still waited for; {EVERY}"
            )
        self.over.set()
        if thread is not None:
            thread.join(BEAT)

    @staticmethod
    def _key(what: str, rank: int) -> str:
        return f"spectral/{what}/{rank}"

    def _of(self, what: str, rank: int) -> str:
        """What a rank has written there, "" if nothing."""
        key = self._key(what, rank)
        return str(self.store.get(key).decode()) if self.store.check([key]) else ""

    def leave(self, words: str) -> None:
        """Tell whoever waits for this rank that it does not come, and why; until the ranks begin anew no more is to be said."""
        if not self.left:
            self._tell("words", f"{self.turn} {words}")
        self.left = True

    def agreed(self, words: str) -> str:
        """Of what several ranks end with at the same place the first to be said, on each of them."""
        if self.store is None:
            return words
        try:
            return self.store.compare_set(f"spectral/end/{self.place}", "", words).decode()
        except (RuntimeError, OSError):  # there is nobody left
            return words

    @property
    def place(self) -> str:
        """Of this rank's next collective among all."""
        return f"{self.turn}.{self.count}"

    def begin(self) -> None:
        """After ranks have left a run their collectives are counted anew; where this one stood is told."""
        stood = f"{self.place} {self.broken}"
        if self.left:
            self.turn, self.count = self.turn + 1, 0
        self.left = self.broken = False
        self._tell(f"stood/{self.turn}", stood)

    def in_step(self) -> bool:
        """Whether all ranks, which have begun, stood at the same place, with nothing under way that will never end."""
        stood = {self._of(f"stood/{self.turn}", rank) for rank in range(self.size)}
        return len(stood) == 1 and stood.pop().endswith(str(False))

    def _tell(self, what: str, words: str) -> None:
        if self.store is None:
            return
        try:
            self.store.set(self._key(what, self.rank), words)
        except (RuntimeError, OSError):  # there is nobody left to tell
            self.over.set()

    def watch(self, collective: str = "") -> None:
        """Begin to look at the others, as this rank has waited for long: what was seen before says nothing of now."""
        self.seen.clear()
        self.waits.clear()
        self.stays.clear()
        self.thread, self.warned, self.waiting = threading.get_ident(), False, collective
        if collective:
            self._tell("wait", f"{self.place} {collective} {asked()}")

    def come(self) -> None:
        """What this rank has waited for is there."""
        if self.waiting:
            self.waiting = ""
            self._tell("wait", "")

    def missing(self) -> str:
        """Why another rank will not come, "" as long as all may; to be asked again and again while one waits.

        What a rank left with counts until the ranks begin anew, wherever this one stands by now: the last sum of one that was
        interrupted may have come about without it, and a broadcast goes ahead of those who wait. Not if this one left as well.
        """
        if self.store is None:
            return ""
        try:
            others = [rank for rank in range(self.size) if rank != self.rank]
            for rank in others:
                turn, _, words = self._of("words", rank).partition(" ")
                if words and turn == str(self.turn) and not self.left:  # it comes to none of this turn any more
                    return words
            for rank in others:
                sign = self._of("beat", rank)
                if not sign or sign.split(" ", 1)[0] != self.seen.get(rank, ("", 0))[0].split(" ", 1)[0]:
                    self.seen[rank] = sign, self.beats  # who has not begun yet may take its time
            gone = [rank for rank in others if self._silent(self.seen[rank][1])]
            apart = self._apart() if self.waiting and not gone else ""
        except (RuntimeError, OSError):
            return LOST
        if not gone:
            return apart
        names = ", ".join(str(self.names[rank]) for rank in gone)
        return (
            f"rank{'s' * (len(gone) > 1)} {names} of {self.everyone} died or was cut off: no sign of life for {SILENT:g} s; see "
            "its own log (it may have run out of memory), and start all ranks again."
        )

    def _silent(self, since: int) -> bool:
        return (self.beats - since) * BEAT > SILENT

    def _apart(self) -> str:
        """What ranks wait for that wait for one another; a warning where one that this rank waits for is elsewhere."""
        for rank in range(self.size):
            wait = self._of("wait", rank)
            if wait != self.waits.get(rank, ("", 0))[0]:
                self.waits[rank] = wait, self.beats
            if not wait:
                self.store.set(self._key("ask", rank), "where")
        stand = [rank for rank, (wait, _) in sorted(self.waits.items()) if wait]
        place, what, _ = self.waits[stand[0]][0].split(" ", 2)
        for rank in stand[1:]:
            (wait, since), first = self.waits[rank], self.waits[stand[0]][1]
            own, other, _ = wait.split(" ", 2)
            # a large broadcast may end on its source long before it has arrived
            certain = self.beats > max(since, first) + 1 if own == place else self._silent(max(since, first))
            if (own, other) != (place, what) and certain:
                return parted({self.names[r]: self.waits[r][0].split(" ", 2)[2] for r in (stand[0], rank)})
        for rank, (sign, _) in self.seen.items():
            if (there := sign.partition(" ")[2] if sign else NOT_YET) != self.stays.get(rank, ("", 0))[0]:
                self.stays[rank] = there, self.beats
        late = {rank: stay for rank, stay in self.stays.items() if stay[0] and rank not in stand}
        for rank, (there, since) in late.items():
            if THEIRS in there and self._silent(since):  # each waits for the other
                return f"rank {self.names[rank]} waits at {there}, and rank {self.names[self.rank]} for it in {asked()}; {EVERY}"
        if late and not self.warned and self._silent(self.waits[self.rank][1]):
            self.warned = True
            where = ", ".join(f"rank {self.names[rank]}, which is at {there}" for rank, (there, _) in late.items())
            warnings.warn(
                f"rank {self.names[self.rank]} has waited for {SILENT:g} s in {asked()} for {where}; {EVERY}",
                stacklevel=2,
            )
        return ""


class Greeting:
    """Messages to all ranks of the default group, and from all, with a tag of their own: they break where a rank is gone."""

    def __init__(self) -> None:
        self.gone: int | None = None  # whose does not come
        self.words = torch.zeros(2, dist.get_world_size())  # to each, and from each
        self.sent: list[Any] = []
        self.received: dict[int, Any] = {}
        self.thread = threading.Thread(target=self._listen, name="spectral greeting", daemon=True)
        for rank in [rank for rank in range(dist.get_world_size()) if rank != dist.get_rank()]:
            to, by = self.words[:, rank : rank + 1]
            try:
                self.received[rank] = dist.irecv(by, rank, tag=GREETING)
                self.sent.append(dist.isend(to, rank, tag=GREETING))
            except RuntimeError:
                self.gone = rank  # the others are to have theirs all the same
        if self.gone is None:
            self.thread.start()

    def _listen(self) -> None:
        """Until all have come: whether one has cannot be asked."""
        for rank, work in self.received.items():
            try:
                work.wait()
            except RuntimeError:
                self.gone = rank
                return


def parted(asked: dict[int, str]) -> str:
    """The sentence about two ranks that are in different calls."""
    where = " and ".join(f"rank {rank} {'is ' * (not i)}in {what}" for i, (rank, what) in enumerate(asked.items()))
    return (
        f"the ranks were asked for different things: {where}; call operators and estimators alike on every rank, with the same "
        "keywords."
    )


def _frames() -> Iterator[tuple[str, int, CodeType]]:
    """File, line and code of this thread's calls, from the innermost on."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code
        frame = frame.f_back


def elsewhere(thread: int) -> str:
    """File and line of a thread in somebody's program, torch and Python's own library left out; "" where it is inside of ours."""
    # frames of a thread that runs may go while they are looked at: not so in one call
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        threads = file.read().decode(errors="replace").split("\n\n")
    own = next((text for text in threads if f"0x{thread:016x}" in text), "")
    there = re.findall(r'File "(.*)", line (\d+) in (.*)', own)  # from the innermost on
    if any(file.startswith(OWN) for file, _, _ in there):
        return ""
    theirs = next((f" (in {THEIRS}'s {name})" for file, _, name in there if file == COLLECTIVES), "")
    return next(
        (f"{Path(file).name}:{line}{theirs}" for file, line, _ in there if not file.startswith((TORCH, LIBRARY))), ""
    )


def purpose() -> str:
    """What a collective is for: the function of this package, the same on every rank, that has asked for it."""
    own = ((Path(file).stem, code) for file, _, code in _frames() if file.startswith(OWN))
    # by its first line: that of a `with` which an exception ends is not always that of one which ends well
    return next((f"{module}:{code.co_firstlineno}" for module, code in own if module not in PLUMBING), "")


def asked() -> str:
    """What somebody has asked this package for, and where."""
    there = list(_frames())
    last = max(i for i, (file, *_) in enumerate(there) if file.startswith(OWN))
    place = f" (called at {Path(there[last + 1][0]).name}:{there[last + 1][1]})" if last + 1 < len(there) else ""
    return f"{getattr(there[last][2], 'co_qualname', there[last][2].co_name)}{place}"  # Python 3.11
