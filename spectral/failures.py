"""What other people's exceptions say, in one line, and an output that can write it.

The package imports this before anything else: Ctrl-C while torch is loading, which takes seconds, is one line of a command too.
"""

from __future__ import annotations

import dis
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

# what torch, a model or a loss raises at an input or a transform that it does not know; all else is the caller's to see
REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
COMMANDS = ("spectral", "spectral-report")
# torch goes on in hints for modes
OPERATOR = re.compile(r"There was no rule registered for (?:HigherOrderOperator|HOP) (\w+).*")


def is_own(failure: BaseException) -> bool:
    """Whether this package has raised it, and not what it calls."""
    trace = failure.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not str(trace.tb_frame.f_globals.get("__name__")).startswith("spectral."):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def first_line(failure: BaseException) -> str:
    """The first line of its message, after its kind where that is a missing key; its kind if it has none.

    >>> first_line(ValueError("no such shape\\n  at line 3")), first_line(KeyError())
    ('no such shape', 'KeyError')
    >>> first_line(KeyError("image"))
    "KeyError 'image'"
    """
    said = _said(failure)
    return f"{type(failure).__name__} {said}".strip() if isinstance(failure, KeyError) or not said else said


def with_kind(failure: BaseException) -> str:
    """Its kind and the first line of its message.

    >>> with_kind(ValueError("no such shape")), with_kind(KeyError("image")), with_kind(KeyError())
    ('ValueError: no such shape', "KeyError: 'image'", 'KeyError')
    """
    return f"{type(failure).__name__}: {_said(failure)}".removesuffix(": ")


def _said(failure: BaseException) -> str:
    """The first line of its message, "" if it has none."""
    line = (str(failure).strip().splitlines() or [""])[0]
    return OPERATOR.sub(
        r"torch.func does not differentiate the operator \1; write its branches or its loop in Python", line
    )


def of_file(failure: OSError) -> str:
    """What a file or folder that cannot be used is called, and what to do; its own words where it names none.

    >>> of_file(PermissionError(13, "Permission denied", "out.npz"))
    'out.npz cannot be read or written (Permission denied); name another file or folder.'
    """
    if not (failure.filename and failure.strerror):
        return str(failure)
    return f"{failure.filename} cannot be read or written ({failure.strerror}); name another file or folder."


def writable_output() -> None:
    """Letters that an output does not have, as Windows' pipes have none for lambda, are written by their numbers."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def command() -> str:
    """Which of our commands this process is, "" for anybody else's program."""
    name, given = Path(sys.argv[0]).stem if sys.argv else "", sys.orig_argv
    # as long as the package is imported, `python -m` has not put a file there
    module = given[given.index("-m") + 1] if name == "-m" and "-m" in given[:-1] else ""
    return name if name in COMMANDS else "spectral" if module == "spectral" else ""


def _interrupted(kind: Any, failure: Any, trace: Any) -> None:
    """In place of a traceback where nobody catches Ctrl-C."""
    if issubclass(kind, KeyboardInterrupt) and os.environ.get("HYDRA_FULL_ERROR") != "1":
        print(f"{COMMAND}: Interrupted.", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, failure, trace)


if COMMAND := command():
    sys.excepthook = _interrupted
