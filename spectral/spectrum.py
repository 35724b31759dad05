"""`Spectrum`: all eigenvalues of a symmetric operator as one measure, and what follows from it.

Legend: K probes, M nodes each, L atoms, X evaluation points; n = dim, r = eigenvalues that are neither atoms nor known zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import scipy

from spectral import plotting, storage
from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import beta, cdf, gauss
from spectral.quadrature.density import density
from spectral.quadrature.error import between, stated_error
from spectral.quadrature.pooled import Quadrature
from spectral.results import Atoms, Band, Density, Estimate, nan, over

Function = Callable[[np.ndarray], np.ndarray]
STEEP = 64.0  # times the mean slope of a function over the spectrum
NO_ATOMS = Atoms(np.zeros(0), np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Spectrum(Quadrature):
    """A discrete measure of `dim` eigenvalues: exact atoms, known zeros, and a quadrature of the rest from K probes.

    The measure itself, `nodes`, `weights`, `atoms`, `zeros` and what is certified of it, is the `Quadrature`; here is what it
    cost, and what a person asks of it. An exact spectrum has all its eigenvalues as atoms and no probes.

    >>> s = Spectrum.from_eigenvalues([1.0, 2.0, 3.0], zeros=1)
    >>> float(s.moment(1)), float(s.count(1.5, 9.0).value)
    (1.5, 2.0)
    """

    products: int
    epochs: float
    method: str

    # Making one ------------------------------------------------------------------------------------------------------
    @classmethod
    def from_eigenvalues(
        cls,
        values: Sequence[float] | np.ndarray,
        *,
        zeros: int = 0,
        multiplicities: Sequence[int] | np.ndarray | None = None,
        method: str = "exact",
        products: int = 0,
        epochs: float = 0.0,
        meta: dict[str, Any] | None = None,
        rounding: float | None = None,
    ) -> Spectrum:
        """The spectrum whose eigenvalues are all known: `values` (with `multiplicities`, 1 by default) and `zeros` zeros.

        `rounding` is what may be left of a 0 in `values`, in their units: by default what a float64 eigenvalue routine leaves;
        0 for values of a formula, which are what they say.
        """
        values = np.asarray(values, dtype=np.float64).reshape(-1)
        if not np.isfinite(values).all():
            raise ValueError("the eigenvalues hold NaN or infinity; a spectrum is finite.")
        given = np.ones(len(values)) if multiplicities is None else np.asarray(multiplicities)
        counts = given.astype(np.int64)
        if (counts != given).any() or counts.shape != values.shape or (counts < 1).any() or zeros < 0:
            raise ValueError("multiplicities must be one integer >= 1 for each eigenvalue, and zeros must be >= 0.")
        dim = int(counts.sum()) + int(zeros)
        if dim == 0:
            raise ValueError("a spectrum needs at least one eigenvalue.")
        if rounding is not None and not 0 <= rounding < np.inf:
            raise ValueError(f"rounding={rounding!r} must be a finite number >= 0, in the units of the eigenvalues.")
        order = np.argsort(values, kind="stable")
        empty = np.zeros((0, 0))
        atoms, told = Atoms(values[order], counts[order]), {} if rounding is None else {"rounding": float(rounding)}
        return cls(dim, empty, empty, atoms, int(zeros), products, epochs, method, meta={**(meta or {}), **told})

    @classmethod
    def from_records(
        cls,
        records: Sequence[LanczosRecord],
        dim: int,
        *,
        zeros: int = 0,
        atoms: Atoms = NO_ATOMS,
        removed: Sequence[np.ndarray] | None = None,
        products: int = 0,
        epochs: float = 0.0,
        method: str = "slq",
        meta: dict[str, Any] | None = None,
    ) -> Spectrum:
        """The spectrum of Lanczos records of Gaussian probes in dimension dim - zeros.

        `removed[k]` are the Ritz values of record k that stand for the `atoms`; what they weigh is exact knowledge of where
        probe k points, so the rest is renormalised to the eigenvalues that are left.
        """
        gone = tuple(removed) if removed is not None else tuple(np.zeros((0, 1), dtype=np.int64) for _ in records)
        rest = dim - zeros - int(atoms.multiplicities.sum())
        nodes, weights = gauss.padded_rules(records, gone, dim, rest)
        spectrum = cls(
            dim, nodes, weights, atoms, zeros, products, epochs, method,
            meta=dict(meta or {}), records=tuple(records), removed=gone,
        )  # fmt: skip
        spectrum.meta["error"] = stated_error(spectrum)
        return spectrum

    # Numbers ---------------------------------------------------------------------------------------------------------
    def integrate(self, f: Function) -> Estimate:
        """sum_i f(lambda_i) over all dim eigenvalues, f mapping float64 arrays to arrays.

        stderr: sqrt(2 r^2 Var(f) / (m r + 2)), the exact law of m pooled Gaussian probes with the variance over the measure
        itself, in which an eigenvalue that all probes have found counts at least once, and the change when a quarter of the
        steps is left out, in quadrature. To both is added what `rounding` of the eigenvalues may change where f is steep, all the
        error that an exact spectrum has: its bounds are value +- stderr. ValueError where f is not finite on the spectrum, which
        holds 0 as soon as an eigenvalue cannot be told from it.
        """
        x, c = self.points()
        y = self._evaluate(f, x)
        value, steep = float(c @ y), self._steep(f, y)
        if self.is_exact:
            return Estimate(value, steep, value - steep, value + steep, len(self.nodes), self.products)
        K, r, held = len(self.nodes), self.unresolved, self.mass > 0
        Y = np.zeros_like(self.mass)
        Y[held] = self._evaluate(f, self.nodes[held])
        Y -= float((self.mass * Y).sum())
        unit = float(np.abs(Y[held]).max(initial=0.0)) or 1.0  # squares of 1e200 are no numbers
        variance = float((beta.located(self.nodes, self.mass, 1 / r) * (Y / unit) ** 2).sum())
        statistical = r * unit * float(np.sqrt(beta.pooled_variance(K, r, variance)))
        stderr = float(np.hypot(statistical, self.truncation(f))) + steep
        return Estimate(value, stderr, nan, nan, K, self.products)

    def _evaluate(self, f: Function, x: np.ndarray) -> np.ndarray:
        """f(x), finite; of a value within `rounding` of 0 that f does not take, such as the root of -1e-17, f(0)."""
        y = _apply(f, x)
        small = np.abs(x) <= self.rounding
        if small.any() and not np.isfinite(zero := _apply(f, np.zeros(1))[0]):
            raise ValueError(
                f"f is not finite at the eigenvalue 0, from which {x[small][0]:.2g} cannot be told, as rounding leaves up to "
                f"{self.rounding:.2g}; shift the matrix, or integrate a function that is finite at 0."
            )
        y = np.where(small & ~np.isfinite(y), zero if small.any() else 0.0, y)
        if not np.isfinite(y).all():
            where = x[~np.isfinite(y)][0]
            raise ValueError(f"f is not finite at the eigenvalue {where:.6g}; f must be finite on the spectrum.")
        return y

    def _steep(self, f: Function, y: np.ndarray) -> float:
        """What `rounding` of every eigenvalue but the known zeros may change, where f varies STEEP times as fast as on the whole.

        Elsewhere the same rounding is of the size of that of any sum in float64. y: f on all points.
        """
        (x, c), r = self.points(zeros=False), self.rounding
        if not len(x) or r == 0 or self.scale == 0:
            return 0.0
        here, low = self._evaluate(f, x), x - r
        low = np.maximum(low, np.minimum(x, 0.0)) if self.nonnegative else low
        moved = np.abs([_apply(f, low) - here, _apply(f, x + r) - here])
        undefined = ~np.isfinite(moved).all(0)
        if (undefined & (np.abs(x) > r)).any():
            where = x[undefined & (np.abs(x) > r)][0]
            raise ValueError(
                f"f is not finite within {r:.2g}, the rounding, of the eigenvalue {where:.6g}; f must be finite on the spectrum."
            )
        change = np.where(np.isfinite(moved), moved, 0.0).max(0)
        span = np.ptp(x)
        slope = max(float(np.ptp(y)) / span if span > 0 else 0.0, float(np.abs(y).max()) / self.scale)
        return float(c @ np.where(change > STEEP * slope * r, change, 0.0))

    def truncation(self, f: Function) -> float:
        """|change of the integral| when the last quarter of the steps is left out: what more steps would still move."""
        total = 0.0
        for share, (theta, omega, _), (short, weights) in self._unfinished:
            total += float(share * (omega @ self._evaluate(f, theta) - weights @ _apply(f, short)))
        return abs(total) * self.dim if np.isfinite(total) else float("inf")

    @cached_property
    def _unfinished(self) -> list[tuple[Any, ...]]:
        """Of each probe that more steps may still move: (its share, its Gauss rule, that of three quarters of its steps)."""
        return [
            (share, gauss.gauss_rule(record), gauss.truncated_rule(record, record.steps - max(1, record.steps // 4)))
            for share, record in zip(self.pooling, self.records, strict=True)
            if record.steps >= 4 and record.betas[-1] > 0
        ]

    def moment(self, p: float) -> Estimate:
        """The mean of lambda^p over all dim eigenvalues."""
        return over(self.integrate(lambda x: x**p), self.dim)

    def quantile(self, q: float, confidence: float = 0.95) -> Estimate:
        """The smallest value below which a fraction q of the eigenvalues lies, by `curve`; lower and upper from `cdf`'s band."""
        if not 0 <= q <= 1:
            raise ValueError(f"q={q} is no fraction; use 0 <= q <= 1.")
        value = cdf.inverse(self.curve, q)
        if self.is_exact:
            return Estimate(value, 0.0, value - self.value_error, value + self.value_error, 0, self.products)
        lower, upper = self._quantile_bounds(q, confidence)
        lower, upper = min(lower, value), max(upper, value)
        stderr = (upper - lower) / 2 / float(scipy.special.ndtri((1 + confidence) / 2))
        return Estimate(value, stderr, lower, upper, len(self.nodes), self.products)

    def _quantile_bounds(self, q: float, confidence: float) -> tuple[float, float]:
        """The last point whose upper bound is below q, and the first whose lower bound is not, to 1e-6 of the range."""
        low, high = self.interval
        ends = self.cdf(np.array([low, high]), confidence)
        below = above = (low, high)
        for _ in range(5):  # 16 parts each time, of both
            x = np.concatenate([np.linspace(a, b, 17) for a, b in (below, above)])
            band = self.cdf(x, confidence)
            i = int(np.clip((band.upper[:17] < q).sum(), 1, 16))  # monotone in x
            j = int(np.clip((band.lower[17:] < q).sum(), 1, 16))
            below, above = (float(x[i - 1]), float(x[i])), (float(x[16 + j]), float(x[17 + j]))
        return below[0] if ends.upper[0] < q else -np.inf, above[1] if ends.lower[1] >= q else np.inf

    # Functions -------------------------------------------------------------------------------------------------------
    def cdf(self, x: Any, confidence: float = 0.95) -> Band:
        """The fraction of eigenvalues <= x, (X,), with its pointwise band: certified envelope, then exact Beta law."""
        return over(self.count(-np.inf, x, confidence), self.dim)

    def count(self, lo: Any, hi: Any, confidence: float = 0.95) -> Band:
        """How many eigenvalues lie in (lo, hi], arrays or numbers, with an interval that holds with `confidence`."""
        return self._count(lo, hi, confidence, self.value_error)

    def _count(self, lo: Any, hi: Any, confidence: float, margin: float) -> Band:
        """`count` where atoms may be off by `margin`."""
        if not 0 < confidence < 1:
            raise ValueError(f"confidence={confidence} is no probability; use 0 < confidence < 1, such as 0.95.")
        lo, hi = np.broadcast_arrays(np.asarray(lo, dtype=float), np.asarray(hi, dtype=float))
        if np.isnan(lo).any() or np.isnan(hi).any() or (lo > hi).any():
            raise ValueError("count needs lo <= hi, both numbers (infinite ones allowed).")
        shape, lo, hi = lo.shape, lo.reshape(-1), hi.reshape(-1)
        value, least, most = (self._known(lo, hi, widen) for widen in (0.0, -margin, margin))
        bands = [value, least, most, least, most]
        if r := self.unresolved:
            (low_lo, low_hi), (high_lo, high_hi) = self.envelope(lo), self.envelope(hi)
            mass_low, mass_high = np.clip(high_lo - low_hi, 0, 1), np.clip(high_hi - low_lo, 0, 1)
            r_low, r_high = beta.count_interval(mass_low, mass_high, len(self.nodes), r, confidence)
            middle = np.clip(r * (high_lo + high_hi - low_lo - low_hi) / 2, r_low, r_high)
            bands = [value + middle, least + r_low, most + r_high, least + r * mass_low, most + r * mass_high]
        value, lower, upper, certain_low, certain_high = (band.reshape(shape) for band in bands)
        return Band(value, lower, upper, confidence, certain_low, certain_high)

    def count_within(self, size: float, confidence: float = 0.95) -> Band:
        """How many |eigenvalues| are at most `size`, which allows for rounding itself: computed values count as they are.

        Only what an atom's residual exceeds `rounding` by widens the interval.
        """
        return self._count(np.nextafter(-size, -np.inf), size, confidence, self.floor - self.rounding)

    def count_below(self, x: float, confidence: float = 0.95) -> Band:
        """How many eigenvalues are less than x, in the same sense."""
        return self._count(-np.inf, np.nextafter(x, -np.inf), confidence, self.floor - self.rounding)

    def _known(self, lo: np.ndarray, hi: np.ndarray, widen: float) -> np.ndarray:
        """Atoms and zeros in (lo - widen, hi + widen]."""
        below = [gauss.left_of(*self.atoms, t, "right") for t in (lo - widen, hi + widen)]
        known: np.ndarray = np.maximum(below[1] - below[0], 0) + self.zeros * ((lo < 0) & (hi >= 0))
        return known

    def density(
        self, x: Any = None, *, resolution: float | None = None, scale: str = "linear", confidence: float = 0.95
    ) -> Density:
        """The density at the points `x`, (X,): fraction of all eigenvalues per unit of lambda, smoothed by a Gaussian kernel.

        Known zeros are left out (see `outside`).

        `scale` "linear": the kernel's standard deviation is `resolution` (0.02 by default) times the range of the spectrum;
        "log": `resolution` (0.1 by default) decades. The quadrature part is the derivative of the middle of the certified
        envelope (Nex 1978), so that it needs no broadening of its own; the band adds the envelope's half width under the
        kernel's slope and the exact probe variance.
        """
        return density(self, x, resolution, scale, confidence)

    # Together --------------------------------------------------------------------------------------------------------
    def merge(self, other: Spectrum) -> Spectrum:
        """The spectrum of both sets of probes of the same operator; atoms that only one of them has go back to its probes."""
        if not self.records or not other.records:
            raise ValueError("only spectra with probes merge; an exact spectrum gains nothing from another one.")
        if (self.dim, self.zeros, self.meta.get("identity")) != (other.dim, other.zeros, other.meta.get("identity")):
            raise ValueError(
                "these spectra are of different operators; merge spectra of one operator with other probes."
            )
        records = *self.records, *other.records
        names = [(record.seed, record.index) for record in records if record.seed >= 0]
        if len(set(names)) < len(names):
            raise ValueError("both spectra contain the same probe (seed, index); use another seed for one of them.")
        tolerance = max(self.value_error, other.value_error)
        distance = np.abs(self.atoms.values[:, None] - other.atoms.values[None, :])
        same = (distance <= 2 * tolerance) & (self.atoms.multiplicities[:, None] == other.atoms.multiplicities[None, :])
        common = np.flatnonzero(same.any(1))
        partner = same[common].argmax(1) if len(common) else common
        told = {
            "value_error": tolerance,
            "probes": len(records),
            "stops": [record.stop for record in records],
            "merged": [*self.meta.get("merged", []), other.meta.get("seed")],
        }
        return Spectrum.from_records(
            records,
            self.dim,
            zeros=self.zeros,
            atoms=Atoms(self.atoms.values[common], self.atoms.multiplicities[common]),
            removed=[gone[common] for gone in self.removed] + [gone[partner] for gone in other.removed],
            products=self.products + other.products,
            epochs=self.epochs + other.epochs,
            method=self.method,
            meta={**self.meta, **told},
        )

    def distance(self, other: Spectrum, kind: str = "wasserstein") -> Estimate:
        """The distance of two CDFs (`curve`): "wasserstein", int |F - G| dx in units of lambda, or "ks", max |F - G|.

        stderr is the jackknife over the probes of both (0 between exact spectra, nan if one has a single probe).
        """
        if kind not in ("wasserstein", "ks"):
            raise ValueError(f"kind={kind!r} is no distance; use 'wasserstein' or 'ks'.")
        value, stderr = between(self, other, kind)
        bounds = (value, value) if self.is_exact and other.is_exact else (nan, nan)
        return Estimate(value, stderr, *bounds, len(self.nodes) + len(other.nodes), self.products + other.products)

    def save(self, path: Any) -> None:
        """Write one .npz without pickles, atomically."""
        storage.save_spectrum({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Any) -> Spectrum:
        """Read what `save` wrote; ValueError for anything else."""
        return cls(**storage.load_spectrum(path))

    def plot(
        self,
        ax: Any = None,
        *,
        scale: str = "log",
        resolution: float | None = None,
        label: str | None = None,
        **options: Any,
    ) -> Any:
        """Draw the density with its band (matplotlib) and return the axes; several spectra may share one `ax`.

        scale "log": lambda rho(lambda) on a logarithmic axis, on which equal areas are equal numbers of eigenvalues; with
        negative eigenvalues the axis has two sides, each logarithmic in |lambda| over five decades, and a grey gap between them.
        "linear": rho(lambda), the fraction of eigenvalues per unit of lambda. `resolution` is that of `density`. `label`
        stands in the legend, with what the axis leaves out (zeros, and the gap); `options` go to `Axes.plot`. An `ax` that
        shows other spectra keeps them in view.
        """
        name = f"{self.dim} eigenvalues, {self.method}" if label is None else label
        return plotting.plot(self, ax, scale, resolution, name, options)

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"<Spectrum of {self.dim} eigenvalues in [{low:.4g}, {high:.4g}] by {self.method}: {len(self.atoms.values)} exact, "
            f"{self.zeros} known zeros, {len(self.nodes)} probes, {self.products} products>"
        )

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"Spectrum of {self.dim} eigenvalues in [{low:.4g}, {high:.4g}] by {self.method}, "
            f"trace {self.integrate(lambda x: x)}"
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The measure: `nodes` and `weights` (K, M), `atom_values` and `atom_multiplicities` (L,), the number of `zeros`."""
        return {
            "nodes": self.nodes,
            "weights": self.weights,
            "atom_values": self.atoms.values,
            "atom_multiplicities": self.atoms.multiplicities,
            "zeros": np.asarray(self.zeros),
        }

    def estimates(self) -> dict[str, Estimate]:
        """`trace`, `mean` and `median` of the eigenvalues; `spectral.summary` has every number that a spectrum gives."""
        return {"trace": self.integrate(lambda x: x), "mean": self.moment(1), "median": self.quantile(0.5)}


def _apply(f: Function, x: np.ndarray) -> np.ndarray:
    """f(x) as float64, held to the shape of x; warnings of numpy's are answered by those who look at the values."""
    with np.errstate(all="ignore"):
        y = np.asarray(f(x), dtype=np.float64)
    if y.shape != x.shape:
        raise ValueError(f"f maps an array of shape {x.shape} to {y.shape}; f must keep the shape of its array.")
    return y
