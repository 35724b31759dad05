"""Sums and row order over the ranks of an initialised torch.distributed group; the identity on one process."""

from __future__ import annotations

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of processes that hold samples: 1 without an initialised group.

    Returns
    -------
    int
        The size of torch's default group.

    Examples
    --------
    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process.

    Returns
    -------
    int
        From 0 on.

    Examples
    --------
    >>> rank()
    0
    """
    return dist.get_rank() if world_size() > 1 else 0


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over the ranks, on every rank, in place.

    Parameters
    ----------
    tensor : torch.Tensor
        This rank's summand; it becomes the sum.

    Returns
    -------
    torch.Tensor
        `tensor`.

    Examples
    --------
    >>> all_reduce(torch.ones(2))
    tensor([1., 1.])
    """
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_counts(count: int) -> list[int]:
    """`count` of every rank, in rank order.

    Parameters
    ----------
    count : int
        This rank's.

    Returns
    -------
    list of int
        One for each rank.

    Examples
    --------
    >>> all_counts(5)
    [5]
    """
    if world_size() == 1:
        return [count]
    counts: list[int] = [0] * world_size()
    dist.all_gather_object(counts, count)
    return counts


def all_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The rows of every rank under each other, in rank order, on every rank.

    Parameters
    ----------
    rows : torch.Tensor
        This rank's, (m_r, b).
    counts : list of int
        m_r of every rank, see `all_counts`.

    Returns
    -------
    torch.Tensor
        (m, b), m the sum of `counts`.

    Examples
    --------
    >>> all_rows(torch.ones(1, 2), [1])
    tensor([[1., 1.]])
    """
    if world_size() == 1:
        return rows
    whole = rows.new_zeros((sum(counts), *rows.shape[1:]))
    start = sum(counts[: rank()])
    whole[start : start + len(rows)] = rows
    return all_reduce(whole)  # one code path for ragged counts on every backend
