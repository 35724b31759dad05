"""Vectors shared out over the ranks of a group, which is cut into teams that each have all the data.

`ranks="data"`: every rank has its share of the data, and products are summed: one team. "probes": every rank has all the data
and is a team by itself. "both": the data repeat every p ranks, which are a team; the group is a grid of teams by shares of data.
How it is cut is read off the data that the ranks hold.

What depends on one vector at a time (a Lanczos recurrence) is made by each team `apart`, at its own pace; what takes a block of
vectors has its columns shared out. All that is decided is decided by all ranks together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from spectral import arrays, distributed
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Derived, Operator
from spectral.schema import choice

RANKS = ("data", "probes", "both")


class SharedOut(Derived):
    """A matrix that every team makes by itself: columns of a block are shared out, and inside `apart` all are one's own."""

    def __init__(self, own: Operator, team: distributed.Team) -> None:
        """`own`: the matrix of this rank's team. ValueError where another rank has another matrix."""
        super().__init__(
            (own,), own.shape, symmetric=own.symmetric, nonnegative=own.nonnegative, known_zeros=own.known_zeros
        )
        self.team, self.self_map, self.elsewhere = team, own.self_map, 0.0  # sweeps of other teams
        with distributed.apart(team):
            self._identity = own.identity()
        everyone = distributed.gather(lambda: (self._identity, own.epochs))
        self.begun = [epochs for _, epochs in everyone[:: team.size]]
        for rank, (identity, _) in enumerate(everyone):
            if identity != everyone[0][0]:
                raise ValueError(
                    f"rank {rank} has another matrix than rank 0, so that their probes do not belong together; build the "
                    "operator from the same weights and data on every rank, or use ranks='data'."
                )

    @property
    def teams(self) -> int:  # type: ignore[override]  # a constant of other operators
        return self.team.count

    @property
    def ranks(self) -> int:  # type: ignore[override]
        return distributed.world_size()

    @property
    def epochs(self) -> float:
        return super().epochs + self.elsewhere

    def expect(self, products: int) -> None:
        super().expect(-(-products // self.teams))

    def identity(self) -> str:
        return self._identity

    def describe(self) -> dict[str, Any]:
        with distributed.apart(self.team):
            own = self.parts[0].describe()
        return {**own, "ranks": self.team.count * self.team.size, "teams": self.teams}

    def _rebuilt(self, *parts: Operator) -> Operator:
        return SharedOut(parts[0], self.team)

    def tally(self, products: int = 0) -> list[int]:
        """Count what other teams have swept, and multiplied while this one has made `products` apart; those of each team."""
        told = distributed.gather(lambda: (products, super(SharedOut, self).epochs))[:: self.team.size]
        made = [count for count, _ in told]
        others = [epochs - begun for (_, epochs), begun in zip(told, self.begun, strict=True)]
        self.products += sum(made) - made[self.team.index]
        self.elsewhere = sum(others) - others[self.team.index]
        return made

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return self._by_columns(self.parts[0].multiply, V, self.shape[0])

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        own = self.parts[0]
        return self._by_columns(own.multiply if own.symmetric else own.multiply_transpose, U, self.shape[1])

    def _by_columns(self, multiply: Callable[[torch.Tensor], torch.Tensor], V: torch.Tensor, m: int) -> torch.Tensor:
        """The product (m, b) of V, of which each team makes some columns; a single one is the first team's."""
        if distributed.is_apart():
            return multiply(V)
        team = self.team
        mine = slice(*(-(-V.shape[1] * i // team.count) for i in (team.index, team.index + 1)))
        with distributed.Summand.of(V.T, (V.shape[1], m)) as part:
            part.tensor.zero_()
            with distributed.apart(team, together=True):
                made = multiply(V[:, mine]).T
                if distributed.rank() == 0:
                    part.tensor[mine] = made
        W = part.sum()
        if not arrays.all_finite(W):
            part.share()
        return W.T


def shared_out(A: Any, ranks: str, prepare: Callable[[Operator], tuple[Any, ...]]) -> tuple[Any, ...]:
    """What `prepare` makes of A, its operator first: multiplied as `ranks` says.

    ValueError where the ranks do not hold the data for it.
    """
    choice(ranks, "ranks", RANKS)
    A = as_operator(A)
    if ranks == "data" or distributed.world_size() == 1:
        return prepare(A)
    if any(leaf.shards is not None for leaf in A.sources):
        raise ValueError(f"ranks={ranks!r} is not there where parameters lie over the ranks; use ranks='data'.")
    size, everyone = 1, distributed.world_size()
    held = [data for leaf in A.sources if (data := leaf.held_data)]
    if ranks == "both":
        size = next(p for p in range(1, everyone + 1) if everyone % p == 0 and all(_repeat(marks, p) for marks in held))
        if size == everyone:
            raise ValueError(
                "ranks='both' needs data that repeat, but no two groups of ranks hold the same; give ranks 0 to p - 1 the "
                f"shares of all data, ranks p to 2p - 1 the same shares, and so on (p a divisor of {everyone}), or use "
                "ranks='data'."
            )
    for marks in held:
        if not _repeat(marks, size):
            other = next(rank for rank, mark in enumerate(marks) if mark != marks[rank % size])
            raise ValueError(
                f"ranks='probes' needs all the data on every rank, but rank {other} holds other batches than rank 0; give every "
                "rank all batches, or use ranks='data', where each has its share."
            )
    team = distributed.teams(size)
    own = A.of_team(team)
    with distributed.apart(team):
        op, *rest = prepare(own)
    return SharedOut(op, team), *rest


def _repeat(marks: list[str], period: int) -> bool:
    return all(mark == marks[rank % period] for rank, mark in enumerate(marks))
