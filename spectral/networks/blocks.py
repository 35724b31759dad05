"""`blocks`: one operator for each parameter tensor or module, sharing the sweep and the memory."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch

from spectral.engine.store import Store
from spectral.networks.curvature import Curvature
from spectral.networks.jacobian import Jacobian
from spectral.operators.operator import Gram, Operator


class Share(Store):
    """What one block keeps, within one budget for all blocks.

    Where it is full, a block that goes on multiplying alone takes the room of the others after PATIENCE sweeps: blocks that
    multiply one after another have all of it, those that multiply in turns do not record anew at each turn.
    """

    PATIENCE = 3  # waiting for so many products costs about what recording once too often would

    def __init__(self, budget: int | None, shares: weakref.WeakSet[Share]) -> None:
        super().__init__(budget)
        self.shares, self.key = shares, None
        self.visits: Counter[Any] = Counter()  # of each batch since another block multiplied
        shares.add(self)

    def get(self, key: Any, version: Any) -> Any:
        for other in self.shares - {self}:
            other.visits.clear()
        self.key = key
        self.visits[key] += 1
        return super().get(key, version)

    def left(self, device: torch.device) -> int:
        others = self.shares - {self}
        free = super().left(device)
        for other in others:
            other.budget = self.budget if other.budget is None else other.budget  # free memory is read once for all
        return max(free - sum(other.used for other in others), 0)

    def room(self, size: int, device: torch.device) -> bool:
        if super().room(size, device):
            return True
        if self.used + size > (self.budget or 0) or self.visits[self.key] <= self.PATIENCE:
            return False
        for other in self.shares - {self}:
            other.clear()
        return True


def blocks(A: Operator, *, by: str = "parameter") -> dict[str, Operator]:
    """The diagonal blocks of A by name, one operator for each parameter tensor or module, in the order of the parameters.

    Each block is the same matrix restricted to some parameters (as by `params=`) on the same data.

    Cost: none to build; sizes, counts, fingerprints and preflight are A's. One product is a sweep as A's is. Together the
    blocks keep no more than A's `memory` between sweeps (beside what A keeps).

    Parameters
    ----------
    A : operator
        A Hessian, GaussNewton, Fisher or EmpiricalFisher, or the Gram J^T J of a parameter Jacobian, `J.gram("right")`.
    by : str
        "parameter", or "module": one block for each module that owns parameters itself, not by its children ("(root)" is
        the model). Tied parameters are in one block, that of their first name.

    Returns
    -------
    dict of str to Operator
        Each (p, p) for p parameters of the block; `epochs` counts from 0.

    Raises
    ------
    TypeError
        For an operator without blocks.
    ValueError
        For another `by`.

    Notes
    -----
    Where the memory is full, a block that multiplies alone for more than three sweeps takes the room of the others. Blocks
    that multiply one after another have all of it; those that multiply in turns do not record anew at each turn.

    Examples
    --------
    >>> x, y = torch.ones(1, 3), torch.zeros(1, 2)
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    >>> H = spectral.Hessian(model, torch.nn.MSELoss(), [(x, y)])
    >>> {name: B.shape for name, B in blocks(H).items()}
    {'0.weight': (12, 12), '0.bias': (4, 4), '1.weight': (8, 8), '1.bias': (2, 2)}
    >>> {name: B.shape for name, B in blocks(H, by="module").items()}
    {'0': (16, 16), '1': (10, 10)}
    """
    if by not in ("parameter", "module"):
        raise ValueError(f"by={by!r} is no kind of block; use 'parameter' or 'module'.")
    J = A.parts[0] if isinstance(A, Gram) and A.side == "right" else None
    right = isinstance(J, Jacobian) and J.network.wrt == "params"
    if not right and not isinstance(A, Curvature):
        raise TypeError(
            f"{A!r} has no blocks; pass a Hessian, GaussNewton, Fisher, EmpiricalFisher, or J.gram('right') of a Jacobian with "
            "respect to parameters."
        )
    inner: Any = J if right else A
    names: dict[str, list[str]] = {}
    for name in inner.network.values:
        names.setdefault(name if by == "parameter" else name.rpartition(".")[0] or "(root)", []).append(name)
    made: dict[str, Operator] = {}
    shares: weakref.WeakSet[Share] = weakref.WeakSet()
    for block, its in names.items():
        B = inner.restricted(its)
        B.engine.store = Share(inner.store.budget, shares)
        made[block] = B.gram("right") if right else B
    return made
