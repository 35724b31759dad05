"""A system that lacks what Windows lacks, as far as this package can meet it on another one: `python windows.py FOLDER ...`.

No fcntl and no resource, no O_NOFOLLOW; folders cannot be opened, and files that are open neither replaced nor removed; text
files have no encoding by themselves. A run goes on from its checkpoint, and the command runs with what else is given.
Nothing here has been run on Windows itself.
"""

from __future__ import annotations

import builtins
import errno
import os
import pathlib
import shutil
import sys
import tempfile
import warnings

MISSING = ("fcntl", "resource")
importing, opening, replacing, removing = builtins.__import__, os.open, os.replace, os.unlink


def _import(name, globals=None, *more, **how):
    if name in MISSING and (globals or {}).get("__name__", "").startswith("spectral"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return importing(name, globals, *more, **how)


def is_open(path):
    return os.path.realpath(path) in {os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")}


def refuse(path):
    raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))


def _open(path, *more, **how):
    return refuse(path) if os.path.isdir(path) else opening(path, *more, **how)


def _replace(source, target, **how):
    return refuse(source) if is_open(source) or is_open(target) else replacing(source, target, **how)


def _unlink(path, **how):
    return refuse(path) if is_open(path) else removing(path, **how)


def become():
    """Before anything of spectral is imported."""
    assert shutil and tempfile  # which look for what is missing when they are imported
    warnings.filterwarnings("error", category=EncodingWarning, module="spectral")
    builtins.__import__ = _import
    os.open, os.replace, os.unlink = _open, _replace, _unlink
    del os.O_NOFOLLOW


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    become()
    import numpy as np

    import spectral
    from spectral.__main__ import main

    A, file = np.diag(np.arange(1.0, 41.0)), folder / "run"
    spectral.slq(A, probes=2, steps=8, checkpoint=file, progress=False)
    again = spectral.slq(A, probes=3, steps=8, checkpoint=file, progress=False)
    due = spectral.slq(A, probes=3, steps=8, progress=False)
    assert np.array_equal(again.points()[0], due.points()[0])
    again.save(folder / "spectrum.npz")
    assert np.array_equal(spectral.Spectrum.load(folder / "spectrum.npz").points()[0], due.points()[0])
    spectral.report(again, folder / "page.html")
    assert not list(folder.rglob("*.tmp"))
    os.chdir(folder)
    sys.argv[1:2] = []
    main()
