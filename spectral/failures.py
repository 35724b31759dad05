"""What other people's exceptions say, in one line."""

from __future__ import annotations


def first_line(failure: BaseException) -> str:
    """The first line of its message, or its kind if it has none.

    >>> first_line(ValueError("no such shape\\n  at line 3")), first_line(KeyError())
    ('no such shape', 'KeyError')
    """
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]
