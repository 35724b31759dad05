"""`Quadrature`: the measure of all eigenvalues by exact atoms, known zeros, and the Gauss rules of pooled Gaussian probes.

Legend: K probes, M nodes each, L atoms, X evaluation points; n = dim, r = eigenvalues that are neither atoms nor known zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import scipy

from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import beta, cdf, gauss
from spectral.quadrature.cdf import Curve
from spectral.quadrature.certificate import envelope, largest_mass, middle
from spectral.quadrature.traced import traced
from spectral.results import Atoms


@dataclass(frozen=True, eq=False)
class Quadrature:
    """All eigenvalues as a discrete measure: exact atoms, known zeros, and for the rest the Gauss rules of K probes.

    For each probe k: sum(weights[k]) + sum(atoms.multiplicities) / dim + zeros / dim = 1; rows shorter than M are padded with
    weight 0. Without probes all eigenvalues are atoms or zeros. Probes are pooled by their squared norms off the atoms, which
    makes the pooled counts follow an exact Beta law.

    The nodes come from `records`; `removed[k]` (L, w) are the indices of those of record k that became atoms, repeats allowed.
    `meta` says whether the operator is "nonnegative", and to what its products and its atoms are rounded: "epsilon", "rounding",
    "value_error".
    """

    dim: int
    nodes: np.ndarray
    weights: np.ndarray
    atoms: Atoms
    zeros: int
    meta: dict[str, Any] = field(default_factory=dict, kw_only=True)
    records: tuple[LanczosRecord, ...] = field(default=(), kw_only=True)
    removed: tuple[np.ndarray, ...] = field(default=(), kw_only=True)

    @property
    def is_exact(self) -> bool:
        """Every eigenvalue is an atom or a known zero."""
        return self.unresolved == 0

    @property
    def unresolved(self) -> int:
        """r: how many eigenvalues only the quadrature stands for."""
        return self.dim - self.zeros - int(self.atoms.multiplicities.sum())

    @property
    def eigenvalues(self) -> int:
        """How many eigenvalues what is not resolved may be spread over."""
        return int(self.meta.get("dimension", self.dim)) if self.of_vector else self.unresolved

    @property
    def nonnegative(self) -> bool:
        """No eigenvalue is negative, for certain."""
        return bool(self.meta.get("nonnegative"))

    @property
    def least(self) -> float:
        """Below this there is no eigenvalue, for certain: 0 of a semi-definite matrix, or what a caller knows ("least")."""
        return max(float(self.meta.get("least", -np.inf)), 0.0 if self.nonnegative else -np.inf)

    @property
    def of_vector(self) -> bool:
        """The measure of one given vector, of mass 1: nothing was drawn, and nothing is said of how many "
        "eigenvalues there are."""
        return bool(self.meta.get("vector"))

    def noise(self, variance: float | np.ndarray) -> float | np.ndarray:
        """Variance of a pooled quadratic form over the draws of the probes, `variance` that over the measure."""
        return 0.0 * variance if self.of_vector else beta.pooled_variance(len(self.nodes), self.unresolved, variance)

    # Rounding --------------------------------------------------------------------------------------------------------
    @property
    def epsilon(self) -> float:
        """Relative rounding of the products: of the coarsest dtype they were computed in, float64 where nothing says."""
        return float(self.meta.get("epsilon", max((gauss.epsilon(r) for r in self.records), default=2.0**-52)))

    @cached_property
    def rounding(self) -> float:
        """What rounding may leave of a 0, in units of lambda: a value of that size or less may be 0, or of the other sign.

        (10 eps + sqrt(dim) 2^-52) max |lambda|: a few units of rounding of the products, which do not grow with the dimension,
        and what a float64 eigenvalue routine leaves; of a quadrature also the blur of its envelopes. The one level by which rank,
        signs, condition and logarithms are told.
        """
        if "rounding" in self.meta:
            return float(self.meta["rounding"])
        blur = max((gauss.blur(record) for record in self.records), default=0.0)
        return gauss.zero_level(self.scale, self.dim, self.epsilon) + blur

    @property
    def value_error(self) -> float:
        """How far an atom, or what was deflated, may be from the truth: `rounding` where all were computed, or its residual."""
        return float(self.meta.get("value_error", 0.0))

    @property
    def floor(self) -> float:
        """The size that an atom must exceed to have a sign: `rounding`, or its own error."""
        return max(self.value_error, self.rounding)

    # The measure -----------------------------------------------------------------------------------------------------
    def probe_points(self, zeros: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:
        """The measure that each probe alone gives: [(values ascending, eigenvalue counts)]; one entry if exact."""
        alone = [self._assemble(range(k, k + 1), zeros) for k in range(len(self.nodes))]
        return alone or [self._assemble(range(0), zeros)]

    def points(self, zeros: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The pooled measure: values ascending and eigenvalue counts that sum to dim (to dim - self.zeros without zeros)."""
        return self._assemble(range(len(self.nodes)), zeros)

    def known_points(self) -> tuple[np.ndarray, np.ndarray]:
        """The atoms and known zeros alone: values ascending and eigenvalue counts."""
        return self._assemble(range(0), True)

    def _assemble(self, probes: range, zeros: bool) -> tuple[np.ndarray, np.ndarray]:
        shares = self.pooling[probes.start : probes.stop]
        values = [self.atoms.values, *(self.nodes[k] for k in probes)]
        counts = [self.atoms.multiplicities.astype(float)]
        counts += [self.dim * self.weights[k] * share / shares.sum() for k, share in zip(probes, shares, strict=True)]
        if zeros and self.zeros:
            values.append(np.zeros(1))
            counts.append(np.array([float(self.zeros)]))
        x, c = np.concatenate(values), np.concatenate(counts)
        order = np.flatnonzero(c > 0)
        order = order[np.argsort(x[order], kind="stable")]
        return x[order], c[order]

    @cached_property
    def pooling(self) -> np.ndarray:
        """Share of each probe, (K,): its squared norm off the atoms over that of all."""
        if not self.records:
            return np.full(len(self.nodes), 1 / max(1, len(self.nodes)))
        probes = zip(self.records, self.removed, strict=True)
        norms = np.array([record.squared_norm * gauss.free_share(record, gone) for record, gone in probes])
        return np.asarray(norms / norms.sum())

    @cached_property
    def mass(self) -> np.ndarray:
        """What the nodes weigh of the unresolved part, (K, M), all probes together 1."""
        return self.weights * (self.dim / self.unresolved * self.pooling[:, None])

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The smallest and the largest value of the measure."""
        x, _ = self.points()
        return float(x[0]), float(x[-1])

    @property
    def scale(self) -> float:
        """The largest |value|."""
        return max(map(abs, self.interval))

    # The certified envelope of the unresolved part -------------------------------------------------------------------
    def envelope(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Certified bounds of the pooled mass of the unresolved eigenvalues at or left of x, (X,) each."""
        lower, upper = np.zeros_like(x), np.zeros_like(x)
        for k, share in enumerate(self.pooling):
            low, high = self.probe_envelope(k, x)
            lower, upper = lower + share * low, upper + share * high
        return lower, upper

    def probe_envelope(self, k: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The envelope of probe k with the mass of the atoms taken out, and with what positive semi-definiteness adds."""
        low, high = envelope(self.records[k], x, self.removed[k], self.value_error)
        free = gauss.free_share(self.records[k], self.removed[k])
        low = np.clip((low - self._taken(k, x + self.value_error, "right")) / free, 0, 1)
        high = np.clip((high - self._taken(k, x - self.value_error, "right")) / free, 0, 1)
        if self.nonnegative:
            high = np.where(x < -self.rounding, 0.0, high)
        return np.minimum(low, high), high

    def chance(self, x: np.ndarray) -> np.ndarray:
        """The chance, (X,), of draws in which an eigenvalue at x is as light as the probes' moments ask for."""
        return self._lighter([largest_mass(record, x) for record in self.records])

    def heavier(self, x: float, window: float) -> float:
        """The chance of draws in which one eigenvalue is as heavy as all nodes within `window` of x together."""
        near = [np.abs(record.eigen[0] - x) <= window for record in self.records]
        return 1 - float(
            self._lighter([(r.eigen[1][0] ** 2)[held].sum() for r, held in zip(self.records, near, strict=True)])
        )

    def _lighter(self, masses: Sequence[Any]) -> np.ndarray:
        """The chance that an eigenvalue has no more than these masses of T's of all probes, by the Beta law."""
        K, r = len(self.records), max(self.eigenvalues, 2)
        probes = zip(self.pooling, self.records, self.removed, masses, strict=True)
        parts = [share * gauss.undeflated(p) / gauss.free_share(p, gone) * mass for share, p, gone, mass in probes]
        return np.asarray(scipy.special.betainc(K / 2, K * (r - 1) / 2, np.minimum(np.sum(parts, axis=0), 1.0)))

    def probe_middle(self, k: int, x: np.ndarray) -> np.ndarray:
        """The middle of that envelope, (X,), without what rounding adds to it."""
        taken = (self._taken(k, x, "left") + self._taken(k, x, "right")) / 2
        mass = (middle(self.records[k], x) - taken) / gauss.free_share(self.records[k], self.removed[k])
        return np.asarray(np.clip(mass, 0, 1))

    def _taken(self, k: int, x: np.ndarray, side: gauss.Side) -> np.ndarray:
        """What probe k has on the atoms left of x, (X,), with those at x or without."""
        theta, omega, _ = gauss.gauss_rule(self.records[k])
        gone = np.unique(self.removed[k])
        return gauss.left_of(theta[gone], omega[gone], x, side)

    # The CDF as a curve ----------------------------------------------------------------------------------------------
    @cached_property
    def curve(self) -> Curve:
        """The CDF that `cdf` gives, whole: (t, F), piecewise linear, with jumps at the atoms and known zeros (t stands twice)."""
        if self.is_exact:
            return cdf.staircase(*self.points())
        rest = self.unresolved / self.dim
        if rest == 1:
            return cdf.pooled(self.probe_curves, list(self.pooling))
        return cdf.pooled([*self.probe_curves, cdf.staircase(*self.known_points())], [*(self.pooling * rest), 1 - rest])

    @cached_property
    def probe_curves(self) -> list[Curve]:
        """The same of each probe alone, for the eigenvalues that are neither atoms nor known zeros."""
        return [self._probe_curve(k) for k in range(len(self.nodes))]

    def _probe_curve(self, k: int) -> Curve:
        """The middle of probe k's envelope, off the atoms; steps where its rule is exact or has no record."""
        if not self.records or self.records[k].betas[-1] == 0:
            held = self.weights[k] > 0
            return cdf.staircase(*cdf.ascending(self.nodes[k][held], self.weights[k][held]))
        return traced(self.records[k], self.removed[k], self.interval, lambda x: self.probe_middle(k, x))
