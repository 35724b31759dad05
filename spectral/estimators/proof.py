"""One product of a run, repeated before its checkpoint is gone on with: a record of another matrix shows itself.

Of an operator that has nothing but products no hash can say what it is, and no hash of any other sees all: a forward function
that closes over a number, a module's attribute. A product must come out as the record says, within its noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from spectral import arrays
from spectral.operators.operator import Operator

ROUNDING = 1e3  # times eps, at most its root: other blocks, threads and processors sum in another order


def repeat(
    op: Operator,
    path: Any,
    x: torch.Tensor,
    differs: Callable[[torch.Tensor], float],
    scale: float = 0.0,
    slack: float = 0.0,
) -> None:
    """Multiply x (n,) once more; `differs` says how far the product is from what the record of the run says.

    ValueError if that is more than rounding or the operator's own `product_error`, relative to the product or to `scale`, and
    `slack`.
    """
    y = op @ x
    distance = differs(y)
    size = max(arrays.norm(y), scale)
    if not distance <= max(rounding(op.dtype), op.product_error) * size + slack:
        raise ValueError(
            f"the checkpoint {path} is of another operator: a product of its run, made again, differs by "
            f"{distance / size if size else math.inf:.2g} of its size; delete it, or name another file."
        )


def rounding(dtype: torch.dtype) -> float:
    """How far, relative to its size, what is computed in `dtype` may be from what the same sums in another order give."""
    eps = arrays.machine_epsilon(dtype)
    return min(ROUNDING * eps, math.sqrt(eps))


def away(expected: torch.Tensor) -> Callable[[torch.Tensor], float]:
    """How far a product is from the vector that it was."""
    return lambda y: arrays.norm(y.to(expected.dtype) - expected)


def combined(rows: torch.Tensor, coefficients: np.ndarray) -> torch.Tensor:
    """coefficients (l,) times rows (l, n): (n,)."""
    return rows.T @ torch.from_numpy(np.ascontiguousarray(coefficients)).to(rows)


def coefficients(count: int) -> np.ndarray:
    """Random numbers (count,), the same each time: a product of a combination holds all products that it is made of."""
    return np.random.default_rng(0).standard_normal(count)
