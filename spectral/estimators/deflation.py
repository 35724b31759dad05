"""Eigenvectors that a first probe has converged to, deflated from the others, and which of them become exact atoms.

What the first probe has found is projected out of every later one, so that these spend their steps on the rest, and so that a
further copy of a found eigenvalue shows itself: a probe has a component in every eigenspace that is left. An eigenvalue becomes
an atom with as many copies as have been found once a probe, deflated of all of them, shows that no mass is left there.

Sources: a converged node's random weight becomes 1/n (variance-reduced SLQ); Q f(T) e_1 is the
projection f(A) q_1 with and without reorthogonalisation (Druskin, Knizhnerman 1991); residual and gap: Parlett (1980), ch. 11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from spectral import longvectors
from spectral.krylov.lanczos import NONE, LanczosRecord
from spectral.quadrature import beta, gauss
from spectral.quadrature.certificate import largest_mass
from spectral.results import Atoms

ANGLE = 3e-3  # residual over gap: the largest error of a Ritz vector's direction
NEAR = 10.0  # residuals around a Ritz value in which another eigenvalue might hide, with weight 1 / NEAR^2 at the edge
GHOST = 64.0  # without full reorthogonalisation, Ritz values within GHOST eps ||T|| are copies of one


@dataclass(frozen=True)
class Pair:
    """A converged Ritz pair: value, its error, the window in which it could hide another, the nodes, and S_C S_1C (k,)."""

    value: float
    error: float
    window: float
    nodes: np.ndarray
    coefficients: np.ndarray


@dataclass(frozen=True)
class Deflated:
    """An eigenvector that was found: by which probe, at which nodes of its record."""

    value: float
    error: float
    window: float
    probe: int
    nodes: tuple[int, ...]


class Deflation:
    """The orthonormal eigenvectors `vectors` (l, n) so far, None before the first; `deflated` says where each comes from."""

    def __init__(self, most: int, n: int) -> None:
        """`most`: vectors that may be held; `n`: their dimension."""
        self.most, self.n = most, n
        self.deflated: list[Deflated] = []
        self.vectors: torch.Tensor | None = None
        self.looked = 0  # probes that have been taken in
        self._told: dict[int, tuple[LanczosRecord, np.ndarray]] = {}

    @property
    def known(self) -> np.ndarray:
        return np.array([f.value for f in self.deflated]) if self.deflated else NONE

    def add(
        self, record: LanczosRecord, combine: Callable[[np.ndarray], torch.Tensor] | None, most: float = np.inf
    ) -> None:
        """Take in a probe; `combine` makes vectors from coefficients (c, k), None where they cannot be had.

        Later probes add only further copies of what the first has found: what it has not, its record cannot give up. `most`: of
        those, the ones with at most so much mass, in units of what an eigenvector has in the mean.
        """
        index, self.looked = self.looked, self.looked + 1
        pairs = converged(record)
        if index > 0:
            pairs = [p for p in pairs if any(abs(p.value - f.value) <= p.window + f.window for f in self.deflated)]
        if pairs and index > 0 and self.vectors is not None:
            unit = 1 / (self.n - len(record.known))
            pairs = [p for p in pairs if (record.eigen[1][0, p.nodes] ** 2).sum() <= most * unit]
        pairs = sorted(pairs, key=lambda p: p.window)[: max(0, self.most - len(self.deflated))]
        if not pairs or combine is None:
            return
        made = combine(np.array([p.coefficients for p in pairs]))  # its first rows become what is new
        held = [] if self.vectors is None else [self.vectors]
        blocks, new = held, 0
        for pair, y in zip(pairs, made, strict=True):
            for _ in range(2):
                for block in blocks:
                    y = longvectors.without(y, block)
            length = longvectors.norm(y)
            if length > 0.9:  # else the projection of a vector that is held already
                torch.div(y, length, out=made[new])
                new += 1
                blocks = [*blocks, made[new - 1 : new]] if len(blocks) < 8 else [*held, made[:new]]
                nodes = tuple(map(int, pair.nodes))
                self.deflated.append(Deflated(pair.value, pair.error, pair.window, index, nodes))
        if new:
            self.vectors = (
                torch.cat([*held, made[:new]]) if held else made[:new] if new == len(made) else made[:new].clone()
            )

    def take(self, known: int, found: list[Deflated], vectors: torch.Tensor | None, looked: int) -> None:
        """Go on from the first `known` vectors and those that another team of ranks has found, after so many probes."""
        held = None if self.vectors is None else self.vectors[:known]
        self.deflated, self.looked = [*self.deflated[:known], *found], looked
        self.vectors = held if vectors is None else vectors if held is None else torch.cat([held, vectors])

    def atoms(self, records: list[LanczosRecord]) -> tuple[Atoms, list[np.ndarray], float]:
        """(atoms, nodes (L, w) that each record gives up for them, largest error of a deflated value)."""
        found: list[tuple[float, int, list[list[int]]]] = []
        error, empty = max((one.error for one in self.deflated), default=0.0), self._empty(records)
        for members in self._clusters():
            if self.deflated[members[0]].probe > 0 or not empty[:, members].all(1).any():
                continue
            for copies in self._values(members):
                values = [self.deflated[i].value for i in copies]
                rows = [self._nodes(record, k, copies, members) for k, record in enumerate(records)]
                if all(rows):
                    found.append((float(np.mean(values)), len(copies), rows))
                    error = max(error, float(np.ptp(values)))
        found.sort(key=lambda one: one[0])
        width = max((len(row) for *_, rows in found for row in rows), default=1)
        removed = [padded([rows[k] for *_, rows in found], width) for k in range(len(records))]
        values, counts = [value for value, *_ in found], [copies for _, copies, _ in found]
        return Atoms(np.array(values, dtype=float), np.array(counts, dtype=np.int64)), removed, error

    def _clusters(self) -> list[list[int]]:
        """The deflated vectors by eigenvalue, in the order in which they were found."""
        order = np.argsort(self.known, kind="stable").tolist()
        return self._grouped(order, lambda one: one.window, chained=True)

    def _values(self, members: list[int]) -> list[list[int]]:
        """A cluster by value: vectors whose values differ by less than their errors are copies."""
        order = sorted(members, key=lambda i: self.deflated[i].value)
        return self._grouped(order, lambda one: one.error)

    def _grouped(self, order: list[int], width: Callable[[Deflated], float], chained: bool = False) -> list[list[int]]:
        """Vectors in the order of their values, apart where these differ by more than both widths.

        `chained`: a vector joins a group where it is near any of its members, not the last alone.
        """
        groups: list[list[int]] = []
        for i in order:
            one = self.deflated[i]
            before = [self.deflated[j] for j in (groups[-1] if chained else groups[-1][-1:])] if groups else []
            if any(abs(one.value - other.value) <= width(one) + width(other) for other in before):
                groups[-1].append(i)
            else:
                groups.append([i])
        return [sorted(group) for group in groups]

    def _nodes(self, record: LanczosRecord, index: int, copies: list[int], members: list[int]) -> list[int]:
        """Where record `index` holds its mass on the vectors `copies`: its own Ritz values, and what it was deflated of.

        A copy that a later probe found has its mass in the node that this one has for the cluster, the nearest of its `members`.
        """
        known = [record.steps + i for i in copies if i < len(record.known)]
        own = [i for i in copies if self.deflated[i].probe == index]
        mine = [i for i in members if self.deflated[i].probe == index]
        if not known and not own and mine:
            own = [min(mine, key=lambda i: abs(self.deflated[i].value - self.deflated[copies[0]].value))]
        return [node for i in own for node in self.deflated[i].nodes] + known

    def _empty(self, records: list[LanczosRecord]) -> np.ndarray:
        """(K, L): whether record k shows that no copy of found vector i is left; None of a probe before its own was deflated."""
        values, windows = self.known, np.array([f.window for f in self.deflated])
        told = np.zeros((len(records), len(self.deflated)), dtype=bool)
        for k, record in enumerate(records):
            held = self._told.get(k)
            if held is None or held[0] is not record or len(held[1]) != len(self.deflated):
                self._told[k] = held = record, _is_empty(record, values, windows, self.n - len(record.known))
            told[k, : len(record.known)] = held[1][: len(record.known)]
        return told | (len(self.deflated) == self.n)


def _is_empty(record: LanczosRecord, values: np.ndarray, windows: np.ndarray, rank: int) -> np.ndarray:
    """Whether the undeflated part of a probe has less mass near each value than it would have on an eigenvector there."""
    theta, S = record.eigen
    cumulated = np.append(0.0, np.cumsum(S[0] ** 2))
    ends = [np.searchsorted(theta, values + windows, "right"), np.searchsorted(theta, values - windows, "left")]
    empty = (cumulated[ends[0]] - cumulated[ends[1]]) * rank <= beta.MISSED
    if record.betas[-1] > 0:
        around = (values + windows * np.array([[-1.0], [0.0], [1.0]])).reshape(-1)
        most = largest_mass(record, around).reshape(3, -1).max(0)
        empty &= most * rank <= beta.MISSED
    return empty


def padded(rows: list[list[int]], width: int) -> np.ndarray:
    """(L, width): a repeated index removes nothing more."""
    wide = [row + row[-1:] * (width - len(row)) for row in rows]
    return np.array(wide, dtype=np.int64).reshape(len(rows), width)


def converged(record: LanczosRecord) -> list[Pair]:
    """The Ritz pairs that are as good as eigenpairs.

    An honest test: the residual is max(beta_k |s_k|, 4 eps ||T||), since rounding of the products is a residual too; the value
    is then good to the residual, and to residual^2 / gap, and the vector to residual / gap, gap to the nearest other Ritz value.
    Of a cluster that has converged as a whole the values are good to the residual however close they are, and the space to
    residual / gap, gap to what has not converged: which of its vectors is which does not matter (Parlett 1980, ch. 11).

    Where copies arise (no full reorthogonalisation), those of one eigenvalue are one pair, and a copy on its way, whose weight
    omega at distance d is below (GHOST eps ||T|| / d)^2, is no neighbour.
    """
    theta, S = record.eigen
    eps, k = gauss.epsilon(record), record.steps
    scale = max(float(np.abs(theta).max()), float(np.abs(record.known).max(initial=0.0)))
    if k < 2 and record.betas[-1] > 0:
        return []
    ghosts = 0 if record.reorthogonalized is True else GHOST * eps * scale
    ends = np.append(np.flatnonzero(np.diff(theta) > ghosts), k - 1)
    groups = np.split(np.arange(k), ends[:-1] + 1)
    omega = np.array([(S[0, g] ** 2).sum() for g in groups])
    pairs = zip(groups, omega, strict=True)
    value = np.array([theta[g[0]] + (theta[g] - theta[g[0]]) @ S[0, g] ** 2 / max(w, gauss.TINY) for g, w in pairs])
    weight = np.sqrt(omega)
    residuals, gaps, vectors = np.zeros(len(groups)), np.zeros(len(groups)), []
    distances = np.abs(value[:, None] - value)
    if record.reorthogonalized is not True:
        distances[weight * distances <= GHOST * eps * scale] = np.inf
    np.fill_diagonal(distances, np.inf)
    for i, nodes in enumerate(groups):
        c = S[:, nodes] @ S[0, nodes] if len(nodes) > 1 else S[:, nodes[0]].copy()
        vectors.append(c / max(float(np.linalg.norm(c)), gauss.TINY))
        residuals[i] = max(float(record.betas[-1]) * abs(vectors[-1][-1]), 4 * eps * scale)
    gaps = np.maximum(distances.min(axis=1), max(eps**2 * scale, gauss.TINY))
    errors = np.maximum(np.minimum(residuals, residuals**2 / gaps), 4 * eps * scale)
    exact = max(1e-8, 8 * eps) * scale
    alone = (residuals <= ANGLE * gaps) & (errors <= exact)
    candidates = alone | (residuals <= exact)
    outside = np.where(candidates, np.inf, distances).min(axis=1)
    good = alone | (candidates & (residuals <= ANGLE * outside))
    return [
        Pair(float(value[i]), float(errors[i]), float(NEAR * residuals[i]), groups[i], vectors[i])
        for i in np.flatnonzero(good)
    ]
