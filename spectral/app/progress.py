"""How far a run is: a bar on a terminal, one line for each finished cell anywhere else."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from spectral import distributed
from spectral.pages.tables import seconds


class Progress:
    """Counts the cells of an experiment on stderr; a log file of a batch job gets a line a cell, and no bar.

    The time that is left is that of the cells computed so far, for each cell that is missing; cells that an earlier run has
    kept cost nothing and say nothing about it.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done, self.computed, self.resumed = name, total, 0, 0, 0
        hidden = None if distributed.leads() else True  # None: where there is no terminal
        self.bar = tqdm(total=total, desc=name, unit="matrix", disable=hidden, dynamic_ncols=True, file=sys.stderr)
        self.started = self.begun = time.perf_counter()
        self.key = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        self._say_resumed()
        self.bar.close()

    def begin(self, key: str) -> None:
        """The cell that is computed now."""
        self.key, self.begun = key, time.perf_counter()
        self.bar.set_postfix_str(key, refresh=True)

    def end(self, resumed: bool) -> None:
        """The cell is finished; `resumed`: it was read from what an earlier run has left (one line says how many)."""
        now = time.perf_counter()
        self.bar.update(1)
        if resumed:
            self.done, self.resumed = self.done + 1, self.resumed + 1
            return
        self._say_resumed()
        self.done, self.computed = self.done + 1, self.computed + 1
        missing = self.total - self.done
        left = f", about {seconds((now - self.started) / self.computed * missing)} left" if missing else ""
        self._line(f"{self.done:{len(str(self.total))}}/{self.total}: {self.key}, {seconds(now - self.begun)}{left}")

    def _say_resumed(self) -> None:
        if self.resumed:
            self._line(f"{self.done:{len(str(self.total))}}/{self.total}: {self.resumed} kept from before")
            self.resumed = 0

    def _line(self, text: str) -> None:
        if self.bar.disable and distributed.leads():
            print(f"{self.name} {text}", file=sys.stderr, flush=True)
