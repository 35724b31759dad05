"""Names that torch does not promise, in one place, each with what happens when it is gone.

Those that lie with one module for good (of `fully_shard`, of a module's buffers) stay there; `docs/versions.md` lists all.
"""

from __future__ import annotations

from typing import Any

import torch

# Without these, importing this module raises ImportError or AttributeError with the name.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

aten: Any = torch.ops.aten
unsafe_view = aten._unsafe_view.default
has_same_storage_numel = aten._has_same_storage_numel.default

__all__ = [
    "TorchDispatchMode",
    "dispatch_modes",
    "has_same_storage_numel",
    "tree_flatten",
    "tree_unflatten",
    "unsafe_view",
]


def version(t: torch.Tensor) -> int:
    """How often its memory was written to. Without it the first product raises AttributeError."""
    return t._version


def is_view(t: torch.Tensor) -> bool:
    """Whether it lies in another's memory. Without it the first product in forward mode raises AttributeError."""
    return t._is_view()


def is_zero(t: torch.Tensor) -> bool:
    """Whether it is forward mode's zero, which has no memory. Without it nothing can be recorded, as `describe()` says."""
    try:
        return t._is_zerotensor()
    except AttributeError as gone:
        raise RuntimeError("this torch does not say which tensors are zeros without memory") from gone


def schema(operation: Any) -> Any:
    """Which operands an operation writes, None if nobody knows. Without it nothing can be recorded, as `describe()` says."""
    return getattr(operation, "_schema", None)


def softmax_backward(u: torch.Tensor, p: torch.Tensor, axis: int) -> torch.Tensor:
    """(diag(p) - p p^T) u. Without it the first product with a cross entropy's curvature raises AttributeError."""
    return torch._softmax_backward_data(u, p, axis, p.dtype)
