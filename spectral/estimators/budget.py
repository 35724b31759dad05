"""What an estimator may spend and shows while it spends: budgets, progress bars, and the operand every estimator takes."""

from __future__ import annotations

import copy
import math
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from tqdm import tqdm

from spectral import arrays, distributed, longvectors
from spectral.distributed import decided
from spectral.estimators.shared_out import SharedOut
from spectral.krylov.kernels import recurrences
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Gram, Operator
from spectral.schema import SWITCH, choice
from spectral.version import __version__

# products at most until an operator has chosen how it multiplies
SETTLE = 8
SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}


class Spent(NamedTuple):
    """What a run, or an operator, has cost."""

    products: int = 0
    epochs: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, A: Operator) -> Spent:
        """By an operator so far, on a clock that began some time ago."""
        return cls(A.products, A.epochs, time.monotonic())

    def since(self, begun: Spent) -> Spent:
        """The difference."""
        return Spent(self.products - begun.products, self.epochs - begun.epochs, self.seconds - begun.seconds)


class Budget:
    """A number of products, or "90s", "10min", "2h", "50epochs", "400products"; `None` is unlimited.

    >>> Budget("10min", as_operator(np.eye(2))).seconds
    600.0
    """

    def __init__(self, budget: Any, A: Operator, before: Spent = Spent()) -> None:  # noqa: B008
        """`before`: what was spent in earlier sessions, which counts. Of several ranks, that of the first one counts."""
        self.A, self.begun = A, Spent.of(A).since(before)
        budget = decided(A, budget)
        self.seconds = self.products = self.epochs = float("inf")
        if budget is None:
            return
        if isinstance(budget, int | float | np.number) and not isinstance(budget, bool) and budget > 0:
            self.products = float(budget)
            return
        text = budget if isinstance(budget, str) else ""
        match = re.fullmatch(r"\s*(\d+\.?\d*)\s*(s|sec|min|h|epochs?|products?)\s*", text)
        if not match or float(match[1]) <= 0:
            raise ValueError(
                f"budget={budget!r} is no budget; use a number of products, '10min', '50epochs' or '400products'."
            )
        amount, unit = float(match[1]), match[2]
        if unit in SECONDS:
            self.seconds = amount * SECONDS[unit]
        elif unit.startswith("epoch"):
            self.epochs = amount
        else:
            self.products = amount

    def announce(self, products: int) -> None:
        """Tell the operator how many products will be asked for, the same number on resume.

        A budget in seconds cannot say how many they are: the operator then prepares for as many as it has made.
        """
        timed = self.seconds < float("inf")
        self.A.expect(0 if timed else int(min(products, self.products, self.epochs)))

    @property
    def spent(self) -> Spent:
        """Products, epochs and seconds so far, earlier sessions included; where ranks share a budget in seconds, rank 0's."""
        if self.epochs < float("inf") and isinstance(self.A, SharedOut) and not distributed.is_apart():
            self.A.tally()
        spent = Spent.of(self.A).since(self.begun)
        if self.seconds == float("inf") or self.A.ranks == 1:
            return spent
        return Spent(spent.products, spent.epochs, distributed.first(spent.seconds))

    def exhausted(self, more: int = 1) -> bool:
        """Whether so many products more would exceed the budget (seconds: whether they are over)."""
        spent = self.spent
        return (
            spent.seconds >= self.seconds or spent.products + more > self.products or spent.epochs + more > self.epochs
        )

    def vectors(self, cost: int = 1) -> float:
        """How many vectors of `cost` products (epochs) each the budget still allows, its seconds not looked at."""
        spent = self.spent
        left = min(self.products - spent.products, self.epochs - spent.epochs)
        return left if left == float("inf") else int(left // cost)

    def vectors_now(self, cost: int) -> float:
        """How many of them are affordable at once; with seconds, one until one was timed."""
        if self.exhausted():
            return 0
        if self.seconds < float("inf"):
            return max(self.left() // cost, 1) if self.spent.products else 1
        return self.vectors(cost)

    def whole(self) -> float:
        """Products of the whole budget, at the cost of those so far."""
        return self.left() + self.spent.products

    def after(self, products: int) -> Budget:
        """What is left for one team of ranks, where others make so many products at the same time."""
        rest = copy.copy(self)
        rest.products, rest.epochs = self.products - products, self.epochs - products
        return rest

    def left(self, teams: int = 1) -> float:
        """Products that the budget still allows, at the cost of those so far; several teams of ranks make theirs at a time."""
        spent = self.spent
        by_time, by_epoch = (
            (limit - amount) / (amount / max(spent.products, 1)) if amount > 0 else float("inf")
            for limit, amount in ((self.seconds, spent.seconds), (self.epochs, spent.epochs))
        )
        return max(min(self.products - spent.products, teams * by_time, by_epoch), 0.0)


def free_memory(A: Operator) -> int:
    """Bytes that may still be taken where A's vectors lie: the same number on every rank that multiplies A."""
    free = arrays.available_memory(A.device)
    return free if A.ranks == 1 else distributed.free_memory(free, A.device)


def vectors_that_fit(A: Operator, n: int) -> int:
    """How many vectors (n,) a quarter of the free memory holds: what a basis may take."""
    return free_memory(A) // 4 // ((entries(A) if n == A.shape[1] else n) * A.dtype.itemsize)


def entries(A: Operator) -> int:
    """Of a vector that A multiplies, those that the rank with the most holds."""
    return A.shape[1] if A.shards is None else A.shards.most


def sharded(A: Operator) -> bool:
    """Whether ranks hold pieces of the vectors of A, or of what it is made of."""
    return any(leaf.shards is not None for leaf in A.sources)


def hold_whole(A: Operator, what: str) -> None:
    """One sentence where ranks hold pieces of A's vectors, which `what` needs whole."""
    if sharded(A):
        raise ValueError(
            f"{what} needs whole vectors, but the ranks hold pieces of those of {A!r}, as its parameters lie (fully_shard); use "
            "slq, kpm, trace, top, svd, solve, funm or diagonal."
        )


def settle(A: Operator, v: torch.Tensor) -> int:
    """Multiply v until products come out to the same bits again: what is run twice needs it where A tries several ways.

    Returns the most bytes that a product has taken meanwhile.
    """
    made = most = 0
    while made < SETTLE and not decided(A, A.settled):
        A @ v
        made, most = made + 1, max(most, A.first_workspace)
    if made:
        A @ v  # batches beyond the first are recorded in the sweep after
    return most


@contextmanager
def stoppable(wanted: bool) -> Iterator[None]:
    """SIGTERM raises SystemExit(143) inside, so that a checkpoint can be left, unless someone handles it already."""
    plain = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not (wanted and plain):
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def progress_bar(total: int | None, label: str, progress: bool | None, unit: str = "product") -> tqdm:
    """A progress bar on stderr; None shows it only on a terminal, and of several ranks on rank 0's."""
    choice(progress, "progress", (*SWITCH, None))
    hidden = (not sys.stderr.isatty() or not distributed.leads()) if progress is None else not progress
    return tqdm(total=total, desc=label, unit=unit, disable=hidden, leave=False, dynamic_ncols=True)


def expect(bar: tqdm, error: float, probes: float | None, each: int) -> None:
    """Show the W1 error that a stop would leave and, of an adaptive run, the products that `probes` of `each` steps will be."""
    bar.set_postfix_str(f"W1 {error:.2g}", refresh=False)
    if probes is not None and probes < 1e9:
        bar.total = max(bar.n, int(bar.n + max(probes - 1, 0) * each))


def symmetric_operand(A: Any) -> tuple[Operator, int, int]:
    """(operator to multiply with, its known zeros in the caller's dimension, the caller's dimension).

    A rectangular operator means its Gram on the smaller side; a Gram with known zeros is run on its smaller side. An operator
    whose symmetry is not known is tested with two products.
    """
    A = as_operator(A)
    if 0 in A.shape:
        raise ValueError(f"{A!r} is empty; it has no spectrum.")
    op = smaller_side(A)
    if isinstance(op, Gram):
        whole = A if isinstance(A, Gram) else A.gram()
        return op, whole.known_zeros, whole.shape[0]
    if not is_symmetric(A):
        raise ValueError(
            f"{A!r} is not symmetric, and only symmetric operators have the real spectrum meant here; use A.gram() for its "
            "squared singular values, or (A + A.T) / 2."
        )
    return A, 0, A.shape[0]


def is_symmetric(A: Operator) -> bool:
    """Whether A^T = A: two products tell where nobody knows, once."""
    if A.symmetric is None:
        A.symmetric = not _asymmetry(A) > arrays.discrepancy(A.epsilon)
    return bool(A.symmetric)


def smaller_side(A: Operator) -> Operator:
    """A; of an operator that maps a space to another one its Gram; of a Gram the one without known zeros."""
    if A.shape[0] != A.shape[1] or not A.self_map:
        A = A.gram()
    return A.smaller if isinstance(A, Gram) else A


def _asymmetry(A: Operator) -> float:
    """|<A v, u> - <v, A u>| / max(||A v||, ||A u||) for one Gaussian pair: about 1 for a skew matrix, in any dimension."""
    v, u = A.probe(0, 0), A.probe(0, 1)
    Av, Au = A @ v, A @ u
    scale = max(longvectors.norm(Av), longvectors.norm(Au))
    return abs(longvectors.dot(Av, u) - longvectors.dot(v, Au)) / scale if scale > 0 else 0.0


def versions() -> dict[str, str]:
    """Of all that a number may owe something to."""
    libraries = {"torch": torch, "numpy": np, "scipy": scipy}
    known = {name: str(library.__version__) for name, library in libraries.items()}
    return {"spectral": __version__, "python": platform.python_version(), **known}


def environment(A: Operator, identity: str | None = None) -> dict[str, Any]:
    """Versions, device and operator: what every result's meta begins with; `identity` where it is known."""
    return {
        **({"ranks": A.ranks} if A.ranks > 1 else {}),
        "operator": A.describe(),
        "identity": A.identity() if identity is None else identity,
        "device": str(A.device),
        **({"tf32": low} if A.dtype == torch.float32 and (low := arrays.tf32(A.device)) else {}),
        **({"kernels": made} if (made := recurrences.Fused.described(A.device)) else {}),
        "versions": versions(),
        "nonnegative": bool(A.nonnegative),
        **({"least": float(A.least)} if math.isfinite(A.least) and A.least != 0 else {}),  # 0 is said by `nonnegative`
        "epsilon": A.epsilon,
    }
