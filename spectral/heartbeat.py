"""Signs of life of the ranks of a torch.distributed group, in the store by which they have found one another.

A collective waits for every rank, and a rank that is gone never comes: backends notice after their time-out (half an hour), and
then do not say which. Each rank therefore counts up a number in the store, once a second, in a thread of its own. Who waits for
long looks at the numbers: a rank whose number stands still is gone. A rank that leaves a run by an exception says so there.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Sequence
from typing import Any

BEAT = 1.0  # seconds between signs of life
PATIENCE = 5.0  # that a collective may take before anyone looks
SILENT = 30.0  # without a sign of life after which a rank counts as gone: other libraries may hold the interpreter for seconds
LOST = "the store of the group cannot be reached, which rank 0 (or the launcher) keeps: it has died, or the network is down"


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
        self.count = 0  # collectives so far
        self.left = -1  # how many there had been when this rank last left a run by an exception
        self.seen: dict[int, tuple[int, float]] = {}  # of each rank its number, and when it was first seen
        self.over = threading.Event()
        if store is not None:
            thread = threading.Thread(target=self._beat, name="spectral heartbeat", daemon=True)
            thread.start()
            atexit.register(self.stop, thread)

    def _beat(self) -> None:
        try:
            while not self.over.is_set():
                self.store.add(self._key("beat", self.rank), 1)
                self.over.wait(BEAT)
        except (RuntimeError, OSError):  # the store is gone, and with it the group
            self.over.set()

    def stop(self, thread: threading.Thread | None = None) -> None:
        """No more signs of life: the group is done with, or the interpreter ends, in which no thread may be inside torch."""
        self.over.set()
        if thread is not None:
            thread.join(BEAT)

    @staticmethod
    def _key(what: str, rank: int) -> str:
        return f"spectral/{what}/{rank}"

    def leave(self, words: str) -> None:
        """Tell whoever waits for this rank that it does not come, and why."""
        self.left = self.count
        if self.store is None:
            return
        try:
            self.store.set(self._key("words", self.rank), f"{self.count} {words}")
        except (RuntimeError, OSError):  # there is nobody left to tell
            self.over.set()

    def missing(self) -> str:
        """Why another rank will not come, "" as long as all may; to be asked again and again while one waits.

        What a rank said before a later collective does not count, and neither does what this one left with it.
        """
        if self.store is None:
            return ""
        try:
            others = [rank for rank in range(self.size) if rank != self.rank]
            for rank in others:
                key = self._key("words", rank)
                count, words = self.store.get(key).decode().split(" ", 1) if self.store.check([key]) else ("-1", "")
                if int(count) == self.count != self.left:
                    return str(words)
            now = time.monotonic()
            for rank in others:
                beats = self.store.add(self._key("beat", rank), 0)
                if beats == 0 or beats != self.seen.get(rank, (0, 0.0))[0]:  # who has not begun yet may take its time
                    self.seen[rank] = beats, now
            gone = [rank for rank in others if now - self.seen[rank][1] > SILENT]
        except (RuntimeError, OSError):
            return LOST
        if not gone:
            return ""
        names = ", ".join(str(self.names[rank]) for rank in gone)
        return (
            f"rank{'s' * (len(gone) > 1)} {names} of {self.everyone} died or was cut off: no sign of life for {SILENT:g} s; see "
            "its own log (it may have run out of memory), and start all ranks again."
        )

    def begin_to_watch(self) -> None:
        """What was seen before says nothing of now."""
        self.seen.clear()
