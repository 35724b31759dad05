"""What the threads of a process share: locks of modules, settings that are handed back by the last who needs them.

Two threads may multiply at the same time: by one model in turns (`alone`), by several models side by side. torch keeps one level
of forward-mode differentiation and one set of attention kernels for the whole process, hence FORWARD_MODE and `Shared`.
"""

from __future__ import annotations

import contextvars
import copy
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

RANDOM = threading.RLock()  # who draws from the global generators, or reseeds them, does so alone
# torch.autograd.forward_ad and torch.func.jvp count their levels for all threads at once
FORWARD_MODE = threading.RLock()

_LOCKS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_REGISTRY = threading.Lock()


_FORKED = threading.Event()  # whether a thread that holds one of these locks has stayed in the parent process


def _in_child() -> None:
    """After a fork: who holds a lock there never gives it back here, and has left its model half opened."""
    for lock in (RANDOM, FORWARD_MODE, _REGISTRY, *_LOCKS.values()):
        if lock.acquire(blocking=False):
            lock.release()
        else:
            _FORKED.set()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)


@contextmanager
def alone(modules: Iterable[Any]) -> Iterator[None]:
    """No other thread is inside with one of these modules: each has a lock, and they are taken in one order."""
    if _FORKED.is_set():
        raise RuntimeError(
            "this process was forked while another thread was multiplying, so that models are not whole here; fork before or "
            "after its products, or start processes by multiprocessing's 'spawn'."
        )
    with _REGISTRY:
        locks = [_LOCKS.setdefault(module, threading.RLock()) for module in sorted(modules, key=id)]
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


class Weakly:
    """A bound method that does not keep its object: what holds it and is held by that is freed at once, with its tensors.

    >>> class Box:
    ...     def size(self): return 3
    >>> box = Box()
    >>> Weakly(box.size)()
    3
    """

    def __init__(self, method: Any) -> None:
        self.method = weakref.WeakMethod(method)

    def __call__(self, *given: Any) -> Any:
        return self.method()(*given)  # type: ignore[misc]  # who calls it has the object

    def __deepcopy__(self, memo: dict[int, Any]) -> Weakly:
        return Weakly(copy.deepcopy(self.method(), memo))


@contextmanager
def instead(owner: Any, **others: Any) -> Iterator[None]:
    """Inside, an object, a class or a module has `others` for its attributes of these names.

    >>> with instead(np, pi=3):
    ...     np.pi
    3
    """
    own = {name: vars(owner)[name] for name in others if name in vars(owner)}
    for name, other in others.items():
        setattr(owner, name, other)
    try:
        yield
    finally:
        for name in others:
            setattr(owner, name, own[name]) if name in own else delattr(owner, name)


class Shared:
    """A process-wide setting that several threads need at a time: the first one sets it, the last one hands it back.

    Both in one `contextvars.Context`: what a setting keeps in context variables (torch's sdpa_kernel from 2.15 on) may be handed
    back only where it was set, and the last one is often another thread.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[Any]]) -> None:
        self.setting, self.lock, self.users, self.stack = setting, threading.Lock(), 0, ExitStack()
        self.context = contextvars.Context()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if self.users == 0:
                self.context = contextvars.copy_context()
                self.context.run(lambda: self.stack.enter_context(self.setting()))
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    self.context.run(self.stack.close)
