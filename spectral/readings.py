"""What a watcher has measured, step by step, and the file that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral import persist
from spectral.results import Estimate
from spectral.schema import COUNT, NONNEGATIVE, Fields, Flag, Number, Plain, Row, Text, maybe

KINDS = ("top", "trace", "esd", "critical_sharpness")
HISTORY = "history.jsonl"
NUMBER = Row(*4 * [Number(finite=False, nan=True)])  # of an estimate: value, stderr, lower, upper
LINES = {  # what the lines of a history must be
    "session": Fields({"step": COUNT, "every": COUNT, "share": maybe(NONNEGATIVE), "what": Plain(), "version": Text()}),
    "operator": Fields({"seconds": NONNEGATIVE, "operator": Plain()}),
    "reading": Fields(
        {"step": COUNT, "due": COUNT, "what": Text(*KINDS), "seconds": NONNEGATIVE, "products": COUNT, "complete": Flag(),
         "estimates": Fields(others=NUMBER), "file": maybe(Text(pattern=r"esd-\d+-\d+\.npz", said="a file of this folder"))},
    ),
    "skipped": Fields({"step": COUNT, "due": COUNT, "what": Text(*KINDS), "reason": Text()}),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Reading:
    """What was measured at one step.

    Attributes
    ----------
    what : str
        "top", "trace", "esd" or "critical_sharpness".
    step : int
        Of the training, where it was measured.
    due : int
        The step for which it was asked.
    estimates : dict of str to Estimate
        Numbers with their errors; of "esd" none.
    complete : bool
        Whether all that was asked for was reached; not so for eigenvalues that the time was too short for.
    seconds : float
        That it took.
    products : int
        That it took.
    spectrum : Spectrum or path, optional
        Of "esd"; its file where there is a folder.

    Examples
    --------
    >>> watcher = spectral.Watcher(lambda: np.diag([1.0, 2.0]), every=1, share=None, what=("top",))
    >>> float(watcher(0)[0].estimates["eigenvalue_1"])
    2.0
    """

    what: str
    step: int
    due: int
    estimates: dict[str, Estimate]
    complete: bool
    seconds: float
    products: int
    spectrum: Any = None

    def numbers(self) -> dict[str, float]:
        """What is logged: each number, and half the width of what bounds it, by their names.

        Returns
        -------
        dict of str to float
            "top/eigenvalue_1", "top/eigenvalue_1_error", ...

        Examples
        --------
        >>> Reading("trace", 3, 3, {"trace": Estimate(2.0, 0.5)}, True, 0.1, 10).numbers()
        {'trace/trace': 2.0, 'trace/trace_error': 0.5}
        """
        found: dict[str, float] = {}
        for name, e in self.estimates.items():
            low, high = interval(e)
            found |= {f"{self.what}/{name}": float(e), f"{self.what}/{name}_error": (high - low) / 2}
        return found


@dataclass(frozen=True)
class Skipped:
    """A reading that was asked for and not made.

    Attributes
    ----------
    what : str
        Its kind.
    step : int
        At which it was given up.
    due : int
        The step for which it was asked.
    reason : str
        Why, in words.

    Examples
    --------
    >>> Skipped("top", 20, 10, "too dear").due
    10
    """

    what: str
    step: int
    due: int
    reason: str


def interval(e: Estimate) -> tuple[float, float]:
    """What bounds an estimate: its own bounds, or a standard error to each side."""
    value, error, low, high = float(e), float(e.stderr), float(e.lower), float(e.upper)
    return value - error if math.isnan(low) else low, value + error if math.isnan(high) else high


def plain(x: Any) -> Any:
    """A number as JSON has it: what is not finite by its name."""
    return float(x) if math.isfinite(x) else str(float(x))


def events(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a history, and what each tells, held against its rule."""
    for number, line in enumerate(persist.whole_lines(path), 1):
        where = f"line {number}"
        try:
            told = json.loads(line)
            event = told.pop("event")
            for name, four in told.get("estimates", {}).items():
                told["estimates"][name] = [float(x) for x in four]
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as problem:
            raise ValueError(
                f"{path} is damaged: {where} is no event of a history; delete it, or name another folder."
            ) from problem
        if event not in LINES:
            raise ValueError(
                f"{path} is damaged: {where} is of the unknown kind {event!r}; delete it, or name another folder."
            )
        persist.check(path, told, LINES[event], where)
        yield event, told
