"""`blocks`: one operator for each parameter tensor or module, sharing the sweep and the memory."""

from __future__ import annotations

import fnmatch
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from spectral.engine.store import Store
from spectral.networks.curvature import Curvature
from spectral.networks.jacobian import Jacobian
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Gram, Operator, Submatrix
from spectral.schema import choice


def blocks(A: Operator, partition: Any = None, *, by: str = "parameter") -> dict[str, Operator]:
    """The diagonal blocks of A by name, one operator for each part: parameter tensors, modules, or a partition of your own.

    A block of parameters is the same matrix restricted to them (as by `params=`) on the same data.

    Cost: none to build; sizes, counts, fingerprints and preflight are A's. One product is a sweep as A's is. Together the
    blocks keep no more than A's `memory` between sweeps (beside what A keeps).

    Parameters
    ----------
    A : operator
        A Hessian, GaussNewton, Fisher or EmpiricalFisher, or the Gram J^T J of a parameter Jacobian, `J.gram("right")`; with
        indices as `partition` any square operator.
    partition : dict or list, optional
        {name: part}, or parts that are named "0", "1", ... A part is a glob of parameter names, a list of them, or what indexes
        a vector: a slice, integers, a boolean mask. Parts must not meet; what is in no part is in no block.
    by : str
        Without a partition: "parameter", or "module": one block for each module that owns parameters itself, not by its
        children ("(root)" is the model). Tied parameters are in one block, that of their first name.

    Returns
    -------
    dict of str to Operator
        Each (p, p) for p entries of the block, in the order of the parameters, or of the indices. Of parameters `epochs` counts
        from 0; a block of indices is `A[part, part]`, whose products are A's.

    Raises
    ------
    TypeError
        For an operator without blocks.
    ValueError
        For another `by`, and for parts that meet, are empty, or match no parameter.

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
    >>> {name: B.shape for name, B in blocks(H, {"weights": "*.weight", "last": slice(-2, None)}).items()}
    {'weights': (20, 20), 'last': (2, 2)}
    """
    if partition is not None:
        if by != "parameter":
            raise ValueError(f"by={by!r} and partition= both say what a block is; leave one of them out.")
        return _parts(as_operator(A), partition)
    if not isinstance(by, str):
        raise TypeError(
            f"by= is of type {type(by).__name__}, and takes a word; what says the parts goes to partition=."
        )
    choice(by, "by", ("parameter", "module"))
    inner = _of_parameters(A)
    if inner is None:
        raise TypeError(
            f"{A!r} has no blocks; pass a Hessian, GaussNewton, Fisher, EmpiricalFisher, or J.gram('right') of a Jacobian, with "
            "respect to parameters, or a partition of indices."
        )
    names: dict[str, list[str]] = {}
    for name in inner.network.values:
        names.setdefault(name if by == "parameter" else name.rpartition(".")[0] or "(root)", []).append(name)
    return _restricted(inner, names)


def _of_parameters(A: Operator) -> Any:
    """What can be restricted to some parameters: a curvature matrix, or the Jacobian of a Gram; None for other operators."""
    if isinstance(A, Gram):
        inner: Any = A.parts[0] if A.side == "right" and isinstance(A.parts[0], Jacobian) else None
    else:
        inner = A if isinstance(A, Curvature) else None
    return inner if inner is not None and inner.network.wrt == "params" else None


def _restricted(inner: Any, names: dict[str, list[str]]) -> dict[str, Operator]:
    """One operator for each list of names, within one budget of memory."""
    if inner.network.shards is not None:
        raise ValueError(
            f"the parameters of {inner!r} lie over ranks (fully_shard): it has no blocks; build an operator of each by params=."
        )
    made: dict[str, Operator] = {}
    family: weakref.WeakSet[Store] = weakref.WeakSet()
    for block, its in names.items():
        B = inner.restricted(its)
        B.engine.store = Store(inner.store.budget, family)
        made[block] = B.gram("right") if isinstance(inner, Jacobian) else B
    return made


def _parts(A: Operator, partition: Any) -> dict[str, Operator]:
    """The blocks of a partition of one's own."""
    if not isinstance(partition, Mapping | list | tuple):
        raise TypeError(
            f"partition is a {type(partition).__name__}; use {{name: part}} or a list of parts, a part being globs or indices."
        )
    parts = partition if isinstance(partition, Mapping) else {str(i): part for i, part in enumerate(partition)}
    if A.shape[0] != A.shape[1] or not A.self_map:
        raise ValueError(f"{A!r} has no diagonal blocks; use a square matrix, or A.gram('right').")
    inner, taken = _of_parameters(A), torch.zeros(A.shape[0], dtype=torch.bool, device=A.device)
    named: dict[str, list[str]] = {}
    made: dict[str, Operator] = {}
    for name, part in parts.items():
        globs = [part] if isinstance(part, str) else part
        if isinstance(globs, list | tuple) and globs and all(isinstance(glob, str) for glob in globs):
            named[name] = _matching(A, inner, name, globs)
            own = [torch.full((v.numel(),), one in named[name]) for one, v in inner.network.values.items()]
            where = torch.cat(own).to(A.device).nonzero()[:, 0]
        else:
            if hasattr(part, "__index__") and not getattr(part, "ndim", 0):
                raise TypeError(f"partition[{name!r}] is {part!r}, one entry; use [{part!r}].")
            made[name] = block = A[part, part]
            rows = block.rows if isinstance(block, Submatrix) else None
            where = torch.arange(len(taken), device=A.device) if rows is None else rows
        if not len(where):
            raise ValueError(f"partition[{name!r}] is empty; leave it out.")
        if bool(taken[where].any()) or len(where.unique()) < len(where):
            raise ValueError(
                f"partition[{name!r}] has an entry twice or shares one; every entry is in one part at most."
            )
        taken[where] = True
    made |= _restricted(inner, named) if named else {}
    return {name: made[name] for name in parts}


def _matching(A: Operator, inner: Any, name: str, globs: Sequence[str]) -> list[str]:
    """The parameters that some globs match, in their order."""
    own = [] if inner is None else list(inner.network.values)
    for glob in globs:
        if not fnmatch.filter(own, glob):
            raise ValueError(
                f"partition[{name!r}]: {glob!r} matches no parameter of {A!r}; the names are {', '.join(own[:12]) or 'none'}."
            )
    return [one for one in own if any(fnmatch.fnmatchcase(one, glob) for glob in globs)]
