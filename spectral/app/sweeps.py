"""The runs of a sweep in its folder: one that is finished is known by the hash of its configuration, whatever number it has now.

So a sweep that was killed goes on where it was, and one that is made longer, or in another order, computes what is new alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectral.app import run
from spectral.app.store import read_result
from spectral.persist import atomic_write, fingerprint, own

# In a sweep's folder: for each finished run a file named by its hash, which holds its folder's name.
FINISHED = ".finished"


def place(sweep: Path, folder: Path, settings: dict[str, Any]) -> tuple[Path, bool]:
    """(where this run is or belongs, whether it is finished); `folder` is the one of its number.

    Where that holds another run, it belongs beside it. What a folder holds its result.json says, whatever the marks say.
    """
    name = _mark(sweep, settings)
    if name.exists():
        there = sweep / name.read_text(encoding="utf-8")
        if there.resolve().is_relative_to(sweep.resolve()) and _holds(there, settings):
            return there, True
    if _holds(folder, settings):
        mark(sweep, folder, settings)  # it was killed before it could
        return folder, True
    return (folder.with_name(f"{folder.name}-{name.name}") if _taken(folder) else folder), False


def check_free(folder: Path, settings: dict[str, Any]) -> None:
    """ValueError where a single run would write over another one."""
    if _taken(folder) and not _holds(folder, settings):
        raise ValueError(
            f"{folder} holds another run, as its result.json says, and no run writes over another one; give this one a "
            "hydra.run.dir of its own, or remove that folder."
        )


def _taken(folder: Path) -> bool:
    return (folder / "result.json").exists()


def _holds(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether this very run has ended there."""
    return _taken(folder) and read_result(folder / "result.json")["config"] == _recorded(settings)


def mark(sweep: Path, folder: Path, settings: dict[str, Any]) -> None:
    """The run in this folder is finished."""
    atomic_write(_mark(sweep, settings), str(folder.resolve().relative_to(sweep.resolve())).encode())


def _mark(sweep: Path, settings: dict[str, Any]) -> Path:
    return own(sweep / FINISHED / fingerprint(_recorded(settings)))


def _recorded(settings: dict[str, Any]) -> Any:
    return run.plain(run.recorded(settings))
