"""Which Ritz pairs become exact atoms of a spectrum.

A Ritz value becomes an atom when every probe has converged to it and the probes' Ritz vectors span fewer dimensions than
there are probes: then that dimension is the eigenvalue's multiplicity. A probe sees one vector of each eigenspace, so that as
many independent vectors as probes may hide further ones; such values stay with the quadrature.

Source of the gain: replacing a converged node's random weight by 1/n (variance-reduced SLQ, RESEARCH.md section 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from spectral import arrays, measure
from spectral.recurrences.lanczos import Lanczos, LanczosRecord
from spectral.results import Atoms

ANGLE = 3e-3  # residual over gap: the largest error of a Ritz vector's direction
SAME = (
    4.0  # a Ritz vector within this many times both vectors' errors of the span of those before it is no new direction
)
NEW = 40.0  # one farther than this many times is; what lies between is undecided, and no atom


@dataclass
class Cluster:
    """One eigenvalue: its value from each probe, the Ritz index in each record, orthonormal vectors found so far."""

    values: list[float]
    indices: list[int]
    vectors: torch.Tensor  # (multiplicity so far, n)
    error: float
    angle: float  # the largest error of a vector's direction


class Deflation:
    """Collects the Ritz pairs that all probes so far have converged to."""

    def __init__(self) -> None:
        self.clusters: list[Cluster] = []
        self.probes = 0

    def add(self, state: Lanczos, record: LanczosRecord) -> None:
        """Take in the converged Ritz pairs of one probe; `state` holds its basis."""
        theta, good, error, angle = converged(record)
        indices = np.flatnonzero(good)
        if self.probes and not self.clusters:
            indices = indices[:0]
        vectors = self._vectors(state, record, indices)
        if self.probes == 0:
            self.clusters = [
                Cluster([float(theta[j])], [int(j)], vectors[i : i + 1].clone(), float(error[j]), float(angle[j]))
                for i, j in enumerate(indices)
            ]
        else:
            self.clusters = [c for c in self.clusters if self._match(c, theta, indices, error, angle, vectors)]
        self.probes += 1

    @staticmethod
    def _vectors(state: Lanczos, record: LanczosRecord, indices: np.ndarray) -> torch.Tensor:
        """Ritz vectors (len(indices), n) = S^T Q, normalised."""
        basis = state.basis
        if basis is None:
            raise ValueError("deflation needs the Lanczos basis; use reorthogonalize=True with deflate=True.")
        _, S = record.eigen
        coefficients = torch.from_numpy(np.ascontiguousarray(S[:, indices].T)).to(basis)
        return coefficients @ basis

    @staticmethod
    def _match(
        c: Cluster,
        theta: np.ndarray,
        indices: np.ndarray,
        error: np.ndarray,
        angle: np.ndarray,
        vectors: torch.Tensor,
    ) -> bool:
        """Add this probe's Ritz pair at the cluster's value; False if it has none, or if its direction is undecided.

        Two probes may point almost alike in an eigenspace of two dimensions: taking that for one, or the noise of one for two,
        would make a wrong multiplicity exact.
        """
        if len(indices) == 0:
            return False
        near = int(np.argmin(np.abs(theta[indices] - c.values[0])))
        j = int(indices[near])
        if abs(theta[j] - c.values[0]) > 4 * (error[j] + c.error):
            return False
        y = vectors[near]
        for _ in range(2):
            y = y - c.vectors.T @ (c.vectors @ y)
        length = arrays.norm(y)
        uncertain = c.angle + float(angle[j])
        if SAME * uncertain < length <= NEW * uncertain:
            return False
        if length > NEW * uncertain:
            c.vectors = torch.cat([c.vectors, (y / length)[None]])
        c.values.append(float(theta[j]))
        c.indices.append(j)
        c.error, c.angle = max(c.error, float(error[j])), max(c.angle, float(angle[j]))
        return True

    def atoms(self, limit: int) -> tuple[Atoms, list[np.ndarray], float]:
        """(atoms, removed Ritz indices of each probe aligned with them, largest value error); at most `limit` eigenvalues."""
        chosen = [c for c in self.clusters if len(c.vectors) < self.probes]
        used: list[set[int]] = [set() for _ in range(self.probes)]
        kept: list[Cluster] = []
        for c in sorted(chosen, key=lambda c: c.values[0]):
            if all(j not in seen for j, seen in zip(c.indices, used, strict=True)):
                kept.append(c)
                for j, seen in zip(c.indices, used, strict=True):
                    seen.add(j)
        multiplicities = np.array([len(c.vectors) for c in kept], dtype=np.int64)
        if multiplicities.sum() > limit:
            kept, multiplicities = [], multiplicities[:0]
        values = np.array([float(np.mean(c.values)) for c in kept])
        removed = [np.array([c.indices[k] for c in kept], dtype=np.int64) for k in range(self.probes)]
        return Atoms(values, multiplicities), removed, max((c.error for c in kept), default=0.0)


def converged(record: LanczosRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(Ritz values (k,), which have converged, error of each value, error of each vector's direction).

    An honest test: the residual is max(beta_k |s_kj|, 4 eps ||T||), since rounding of the products is a residual too; the value
    is then good to residual^2 / gap and the vector to residual / gap (Parlett 1980, ch. 11), gap to the nearest other Ritz value.
    """
    theta, _, last = measure.gauss_rule(record)
    scale = float(np.abs(theta).max())
    if len(theta) < 2 and record.betas[-1] > 0:
        return theta, np.zeros(1, dtype=bool), np.full(1, np.inf), np.full(1, np.inf)
    eps = measure.epsilon(record)
    residual = np.maximum(record.betas[-1] * last, 4 * eps * scale)
    padded = np.concatenate([[-np.inf], theta, [np.inf]])
    gap = np.minimum(np.diff(padded)[:-1], np.diff(padded)[1:])
    tiny = np.maximum(gap, max(eps**2 * scale, measure.TINY))
    error = np.maximum(np.minimum(residual, residual**2 / tiny), 4 * eps * scale)
    good = (residual <= ANGLE * tiny) & (error <= max(1e-8, 8 * eps) * scale)
    return theta, good, error, np.maximum(residual / tiny, np.sqrt(eps) / 8)  # a basis in rounding knows no finer angle
