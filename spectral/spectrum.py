"""`Spectrum`: all eigenvalues of a symmetric operator as one measure, and what follows from it.

Legend: K probes, M nodes each, L atoms, X evaluation points; n = dim, r = eigenvalues that are neither atoms nor known zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import scipy

from spectral import cards, plotting, storage
from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import beta, cdf, gauss
from spectral.quadrature.density import density
from spectral.quadrature.error import between, stated_error
from spectral.quadrature.farthest import Unfinished, farthest, first_of, unfinished
from spectral.quadrature.function import Function, moved_by_atoms, moved_by_rounding, values_of, values_on
from spectral.quadrature.pooled import Quadrature
from spectral.results import Atoms, Band, Density, Estimate, nan, over, rounded
from spectral.schema import FRACTION, NONNEGATIVE, SHARE, choice, number

NO_ATOMS = Atoms(np.zeros(0), np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Spectrum(Quadrature):
    """A discrete measure of `dim` eigenvalues: exact atoms, known zeros, and a quadrature of the rest from K probes.

    For each probe k: sum(weights[k]) + sum(atoms.multiplicities) / dim + zeros / dim = 1. An exact spectrum has all its
    eigenvalues as atoms and no probes. Estimators make spectra, or `from_eigenvalues` of eigenvalues that are known; nobody
    else calls the constructor.

    Attributes
    ----------
    dim : int
        How many eigenvalues.
    nodes : numpy.ndarray
        (K, M), of the K probes, in units of lambda.
    weights : numpy.ndarray
        (K, M), fractions of dim; rows shorter than M are padded with weight 0.
    atoms : Atoms
        Exact eigenvalues and their multiplicities, (L,) each.
    zeros : int
        Eigenvalues known to be 0.
    products : int
        Products with the operator that it took.
    epochs : float
        Sweeps over the data that it took.
    method : str
        "exact", "slq", "kpm" or "spectrum_of", the measure of one vector.
    meta : dict
        Plain JSON: versions, seeds, dtypes, what the operator was, why the run ended, and for spectra with probes `error`,
        the W1 error relative to the range.
    records : tuple
        The Lanczos record of each probe, from which the nodes come.
    removed : tuple
        (L, w) of each record: which of its nodes became atoms, repeats allowed.
    unresolved : int
        r, how many eigenvalues only the quadrature stands for.
    is_exact : bool
        Whether there are none: every eigenvalue is an atom or a known zero.
    rounding : float
        What rounding may leave of a 0, in units of lambda: a value of that size or less may be 0, or of the other sign.
    value_error : float
        How far an atom, or what was deflated, may be from the truth: `rounding` where all were computed, or its residual.

    Notes
    -----
    Probes are pooled by their squared norms off the atoms, which makes the pooled counts follow an exact Beta law.

    Frozen, and safe to read from any number of threads. Nothing here multiplies.

    Examples
    --------
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
        """The spectrum whose eigenvalues are all known.

        Parameters
        ----------
        values : array
            (L,), in any order, in units of lambda.
        zeros : int
            Further eigenvalues that are 0.
        multiplicities : array, optional
            (L,), 1 by default.
        method : str
            What made them.
        products : int
            That they took.
        epochs : float
            Sweeps over the data that they took.
        meta : dict, optional
            What else is known of them.
        rounding : float, optional
            What may be left of a 0 in `values`, in their units: by default what a float64 eigenvalue routine leaves; 0 for
            values of a formula, which are what they say.

        Returns
        -------
        Spectrum
            Exact, of dimension sum(multiplicities) + zeros.

        Raises
        ------
        ValueError
            For values that are not finite, multiplicities that are not one integer >= 1 for each, no eigenvalue at all, and
            a rounding that is no finite number >= 0.

        Examples
        --------
        >>> Spectrum.from_eigenvalues([2.0, 1.0], multiplicities=[3, 1], zeros=2).dim
        6
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
        if rounding is not None:
            number(rounding, "rounding", "error in the units of the eigenvalues", NONNEGATIVE)
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

        Parameters
        ----------
        records : sequence of LanczosRecord
            One for each probe.
        dim : int
            Of the matrix, zeros included.
        zeros : int
            Eigenvalues known to be 0, which the records do not see.
        atoms : Atoms
            Eigenvalues that are known exactly.
        removed : sequence of array, optional
            `removed[k]` are the indices of the Ritz values of record k that stand for the atoms, (L, w); none by default.
        products : int
            That the records took.
        epochs : float
            Sweeps over the data that they took.
        method : str
            What made them.
        meta : dict, optional
            What else is known of them; `error` is stated here.

        Returns
        -------
        Spectrum
            Of K = len(records) probes.

        Notes
        -----
        What the removed Ritz values weigh is exact knowledge of where probe k points, so the rest is renormalised to the
        eigenvalues that are left.

        Examples
        --------
        >>> s = spectral.slq(np.diag([1.0, 2.0, 3.0]), probes=2, deflate=False)
        >>> Spectrum.from_records(s.records, 4, zeros=1).dim
        4
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
        """sum_i f(lambda_i) over all dim eigenvalues.

        Parameters
        ----------
        f : callable
            float64 arrays to arrays of the same shape.

        Returns
        -------
        Estimate
            Bounds of an exact spectrum are value +- stderr, else nan.

        Raises
        ------
        ValueError
            Where f is not finite on the spectrum, which holds 0 as soon as an eigenvalue cannot be told from it, or within
            `rounding` of an eigenvalue; and for an f that changes the shape.

        Notes
        -----
        stderr has three parts, added in quadrature. One is sqrt(2 r^2 Var(f) / (m r + 2)), the exact law of m pooled Gaussian
        probes and r unresolved eigenvalues, with the largest variance that the rules of `truncation` give; an eigenvalue that
        all probes have found counts at least once. The other is `truncation`. A third is what `value_error` of each atom may
        change. To these is added what `rounding` of the eigenvalues may change where f is steep, all the error that an exact
        spectrum has.

        Examples
        --------
        >>> s = Spectrum.from_eigenvalues([1.0, 2.0], zeros=1)
        >>> float(s.integrate(np.exp2).value)  # 1 + 2 + 4
        7.0
        """
        x, c = self.points()
        y = values_on(self, f, x)
        value, steep = float(c @ y), moved_by_rounding(self, f, y)
        if self.is_exact:
            return Estimate(value, steep, value - steep, value + steep, len(self.nodes), self.products)
        K, r, held = len(self.nodes), self.unresolved, self.mass > 0
        Y = np.zeros_like(self.mass)
        Y[held] = values_on(self, f, self.nodes[held])
        mean = float((self.mass * Y).sum())
        Y -= mean
        unit = float(np.abs(Y[held]).max(initial=0.0)) or 1.0  # squares of 1e200 are no numbers
        variance = float((beta.located(self.nodes, self.mass, 1 / r) * (Y / unit) ** 2).sum())
        variance += float(self._reach(lambda x: ((values_of(f, x) - mean) / unit) ** 2)[0]) / r
        statistical = r * unit * float(np.sqrt(self.noise(variance)))
        parts = statistical, self.truncation(f), moved_by_atoms(self, f)
        stderr = float(np.linalg.norm(parts)) + steep
        return Estimate(value, stderr, nan, nan, K, self.products)

    def truncation(self, f: Function) -> float:
        """How far the integral of f may be, of the vectors that were drawn, as far as their steps tell.

        The rule of k steps is one of many with moments like those of the record (`quadrature.gauss.alike`): the others have nodes
        in all its gaps, and none where a semi-definite matrix has no eigenvalue. This is the farthest that any of them is from
        it, of each probe. Few steps have not seen the ends of the spectrum: an eigenvalue may lie as far out as it may weigh a
        quarter of what it does in the mean. Where f jumps near a node, all that the node stands for may lie on the other side, as
        far as its mean and its spread, the residual, let it. Where the derivatives of f have one sign, as of x / (x + c), the
        farthest rules are the bounds. 1 / x and log have no value at 0, and say that the matrix is positive: then no eigenvalue
        lies nearer to 0 than rounding tells, nor where 5 % of the draws are lighter than moments let it be. That near it may.

        Parameters
        ----------
        f : callable
            As in `integrate`. It is asked for values beside the nodes too; those that are not finite are left out.

        Returns
        -------
        float
            0 for an exact spectrum, and for probes that ended in an invariant subspace; inf where no other rule meets a
            finite f.

        Examples
        --------
        >>> Spectrum.from_eigenvalues([1.0, 2.0]).truncation(np.log)
        0.0
        """
        return float(max(self._reach(f)))

    def _reach(self, f: Function) -> np.ndarray:
        return farthest(self, f, self.unfinished, lambda: self._positive)

    @cached_property
    def unfinished(self) -> list[Unfinished]:
        """The probes that more steps may move."""
        return unfinished(self, self.least)

    @cached_property
    def _positive(self) -> list[Unfinished]:
        """The same if no eigenvalue is negative; empty where a node is."""
        return unfinished(self, 0.0) if first_of(self) > 0 else []

    def moment(self, p: float) -> Estimate:
        """The mean of lambda^p over all dim eigenvalues.

        Parameters
        ----------
        p : float
            The exponent.

        Returns
        -------
        Estimate
            (1 / dim) sum_i lambda_i^p, with errors as in `integrate`.

        Examples
        --------
        >>> float(Spectrum.from_eigenvalues([1.0, 2.0, 3.0], zeros=1).moment(2))
        3.5
        """
        return over(self.integrate(lambda x: x**p), self.dim)

    def quantile(self, q: float, confidence: float = 0.95) -> Estimate:
        """The smallest value below which a fraction q of the eigenvalues lies, by `curve`.

        Parameters
        ----------
        q : float
            0 to 1.
        confidence : float
            Of the interval.

        Returns
        -------
        Estimate
            lower and upper come from `cdf`'s band, to 1e-6 of the range, and stderr is half their distance over the normal
            quantile.

        Raises
        ------
        ValueError
            For a q that is no fraction, and a confidence that is no probability.

        Examples
        --------
        >>> float(Spectrum.from_eigenvalues([1.0, 2.0, 3.0]).quantile(0.5))
        2.0
        """
        number(q, "q", "fraction", SHARE)
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
        """The fraction of eigenvalues <= x, with its pointwise band: certified envelope, then exact Beta law.

        Parameters
        ----------
        x : array
            (X,) points, or a number, in units of lambda.
        confidence : float
            Of each point by itself.

        Returns
        -------
        Band
            Fractions of dim, in the shape of x.

        Raises
        ------
        ValueError
            For NaN, and for a confidence that is no probability.

        Examples
        --------
        >>> Spectrum.from_eigenvalues([1.0, 2.0, 3.0, 4.0]).cdf([0.0, 2.5]).value
        array([0. , 0.5])
        """
        return over(self._count(-np.inf, x, confidence, self.value_error), self.dim)

    def count(self, lo: Any, hi: Any, confidence: float = 0.95) -> Band:
        """How many eigenvalues lie in (lo, hi].

        Parameters
        ----------
        lo, hi : array
            Arrays that broadcast, or numbers, infinite ones allowed.
        confidence : float
            With which the interval holds.

        Returns
        -------
        Band
            Numbers of eigenvalues: certified envelope, then exact Beta law. Atoms that their error may move across an end
            widen it.

        Raises
        ------
        ValueError
            For lo > hi, NaN, and a confidence that is no probability.

        Examples
        --------
        >>> float(Spectrum.from_eigenvalues([1.0, 2.0, 3.0]).count(1.0, 3.0).value)
        2.0
        """
        hold_eigenvalues(self, "a count")
        return self._count(lo, hi, confidence, self.value_error)

    def _count(self, lo: Any, hi: Any, confidence: float, margin: float) -> Band:
        """`count` where atoms may be off by `margin`."""
        number(confidence, "confidence", "probability", FRACTION, 0.95)
        lo, hi = np.broadcast_arrays(np.asarray(lo, dtype=float), np.asarray(hi, dtype=float))
        if np.isnan(lo).any() or np.isnan(hi).any() or (lo > hi).any():
            raise ValueError("count needs lo <= hi, both numbers (infinite ones allowed).")
        shape, lo, hi = lo.shape, lo.reshape(-1), hi.reshape(-1)
        value, least, most = (self._known(lo, hi, widen) for widen in (0.0, -margin, margin))
        bands = [value, least, most, least, most]
        if r := self.unresolved:
            (low_lo, low_hi), (high_lo, high_hi) = self.envelope(lo), self.envelope(hi)
            mass_low, mass_high = np.clip(high_lo - low_hi, 0, 1), np.clip(high_hi - low_lo, 0, 1)
            r_low, r_high = mass_low, mass_high  # of one vector, of mass r = 1
            if not self.of_vector:
                r_low, r_high = beta.count_interval(mass_low, mass_high, len(self.nodes), r, confidence)
            middle = np.clip(r * (high_lo + high_hi - low_lo - low_hi) / 2, r_low, r_high)
            bands = [value + middle, least + r_low, most + r_high, least + r * mass_low, most + r * mass_high]
        value, lower, upper, certain_low, certain_high = (band.reshape(shape) for band in bands)
        return Band(value, lower, upper, confidence, certain_low, certain_high)

    def count_within(self, size: float, confidence: float = 0.95) -> Band:
        """How many |eigenvalues| are at most `size`, which allows for rounding itself: computed values count as they are.

        Parameters
        ----------
        size : float
            In units of lambda, such as `rounding`.
        confidence : float
            With which the interval holds.

        Returns
        -------
        Band
            Of numbers. Only what an atom's residual exceeds `rounding` by widens it.

        Examples
        --------
        >>> float(Spectrum.from_eigenvalues([-1.0, 0.5, 2.0]).count_within(1.0).value)
        2.0
        """
        hold_eigenvalues(self, "a count")
        return self._count(np.nextafter(-size, -np.inf), size, confidence, self.floor - self.rounding)

    def count_below(self, x: float, confidence: float = 0.95) -> Band:
        """How many eigenvalues are less than x, computed values counting as they are.

        Parameters
        ----------
        x : float
            In units of lambda.
        confidence : float
            With which the interval holds.

        Returns
        -------
        Band
            Of numbers. Only what an atom's residual exceeds `rounding` by widens it.

        Examples
        --------
        >>> float(Spectrum.from_eigenvalues([1.0, 2.0, 3.0]).count_below(2.0).value)
        1.0
        """
        hold_eigenvalues(self, "a count")
        return self._count(-np.inf, np.nextafter(x, -np.inf), confidence, self.floor - self.rounding)

    def _known(self, lo: np.ndarray, hi: np.ndarray, widen: float) -> np.ndarray:
        """Atoms and zeros in (lo - widen, hi + widen]."""
        below = [gauss.left_of(*self.atoms, t, "right") for t in (lo - widen, hi + widen)]
        return np.asarray(np.maximum(below[1] - below[0], 0) + self.zeros * ((lo < 0) & (hi >= 0)))

    def density(
        self, x: Any = None, *, resolution: float | None = None, scale: str = "linear", confidence: float = 0.95
    ) -> Density:
        """The density at some points, smoothed by a Gaussian kernel: the fraction of all eigenvalues per unit of lambda.

        Parameters
        ----------
        x : array, optional
            (X,) points in units of lambda, positive on the log scale. By default over the spectrum and three kernel widths
            beyond.
        resolution : float, optional
            The kernel's standard deviation: on the linear scale a part of the range of the spectrum (0.02 by default), on
            the log scale decades (0.1 by default).
        scale : str
            "linear" or "log".
        confidence : float
            Of the band at each point.

        Returns
        -------
        Density
            Known zeros are left out (see its `outside`).

        Raises
        ------
        ValueError
            For another scale, a resolution that is no width, points that are not positive or no positive eigenvalue on the
            log scale, and a kernel too narrow for the axis.

        Notes
        -----
        The quadrature part is the derivative of the middle of the certified envelope, so that it needs no broadening of its
        own. The band adds the envelope's half width under the kernel's slope and the exact probe variance.

        References
        ----------
        Nex (1978), Estimation of integrals with respect to a density of states, J. Phys. A 11.

        Examples
        --------
        >>> d = Spectrum.from_eigenvalues([0.0, 1.0]).density([0.0, 0.5], resolution=0.1)
        >>> (d.value * 0.1 * np.sqrt(2 * np.pi)).round(3)  # half of the mass, and the kernel five widths away
        array([0.5, 0. ])
        """
        return density(self, x, resolution, scale, confidence)

    # Together --------------------------------------------------------------------------------------------------------
    def merge(self, other: Spectrum) -> Spectrum:
        """The spectrum of both sets of probes of the same operator.

        Parameters
        ----------
        other : Spectrum
            Of the same operator, with other probes.

        Returns
        -------
        Spectrum
            Products and epochs are those of both. Atoms that only one of them has go back to its probes.

        Raises
        ------
        ValueError
            For exact spectra, other operators, and a probe (seed, index) that both contain.

        Examples
        --------
        >>> A = np.diag(np.arange(1.0, 101.0))
        >>> one, two = (spectral.slq(A, steps=10, seed=seed) for seed in (0, 1))
        >>> len(one.merge(two).nodes)
        8
        """
        for one in (self, other):
            hold_eigenvalues(one, "a merged spectrum")
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
        """The distance of two CDFs F and G, by `curve`.

        Parameters
        ----------
        other : Spectrum
            Of any matrix.
        kind : str
            "wasserstein", int |F - G| dx in units of lambda, or "ks", max |F - G| at points that rounding tells apart.

        Returns
        -------
        Estimate
            Of "wasserstein" stderr is how far both CDFs may be from the truth in W1, in quadrature: half of w1_95, in units of
            lambda. Of "ks" it is √(variance + bias²) of the jackknife over the probes of both (nan if one has a
            single probe), with half the certified envelopes of both where the distance is largest. 0 between exact spectra.

        Raises
        ------
        TypeError
            For what is no spectrum.
        ValueError
            For another kind.

        Examples
        --------
        >>> one, two = Spectrum.from_eigenvalues([1.0, 2.0]), Spectrum.from_eigenvalues([2.0, 3.0])
        >>> float(one.distance(two)), float(one.distance(two, "ks"))
        (1.0, 0.5)
        """
        hold_spectrum(other, "a distance")
        choice(kind, "kind", ("wasserstein", "ks"))
        value, stderr = between(self, other, kind)
        bounds = (value, value) if self.is_exact and other.is_exact else (nan, nan)
        return Estimate(value, stderr, *bounds, len(self.nodes) + len(other.nodes), self.products + other.products)

    def save(self, path: Any) -> None:
        """Write one .npz without pickles, atomically.

        Parameters
        ----------
        path : path
            Of the file. Its folder is made where it is missing; a link there is replaced, not followed.

        Raises
        ------
        TypeError
            For what is no path.
        OSError
            For a place that cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/spectrum.npz"
        >>> Spectrum.from_eigenvalues([1.0, 2.0]).save(path)
        >>> Spectrum.load(path).dim
        2
        """
        storage.save_spectrum({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Any) -> Spectrum:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path
            Of the file.

        Returns
        -------
        Spectrum
            The same, to the bit.

        Raises
        ------
        ValueError
            For anything else than such a file, whole and undamaged.
        FileNotFoundError
            For a file that is not there.

        Examples
        --------
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/spectrum.npz"
        >>> Spectrum.from_eigenvalues([1.0, 2.0]).save(path)
        >>> Spectrum.load(path).atoms.values
        array([1., 2.])
        """
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
        """Draw the density with its band (matplotlib); several spectra may share one `ax`.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw, a new figure by default. One that shows other spectra keeps them in view.
        scale : str
            "log": lambda rho(lambda) on a logarithmic axis, on which equal areas are equal numbers of eigenvalues; with
            negative eigenvalues the axis has two sides, each logarithmic in |lambda| over five decades, and a grey gap
            between them. "linear": rho(lambda), the fraction of eigenvalues per unit of lambda.
        resolution : float, optional
            As in `density`.
        label : str, optional
            Stands in the legend, with what the axis leaves out (zeros, and the gap).
        **options : object
            Of `Axes.plot`, such as color.

        Returns
        -------
        matplotlib.axes.Axes
            Where it was drawn.

        Examples
        --------
        >>> ax = Spectrum.from_eigenvalues(np.arange(1.0, 101.0)).plot(label="one to a hundred")
        >>> ax.get_legend().get_texts()[0].get_text()
        'one to a hundred'
        """
        name = f"{self._what}, {self.method}" if label is None else label
        return plotting.plot(self, ax, scale, resolution, name, options)

    @property
    def _what(self) -> str:
        return "one vector" if self.of_vector else cards.counted(self.dim, "eigenvalue")

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"<Spectrum of {self._what} in [{low:.4g}, {high:.4g}] by {self.method}: {len(self.atoms.values)} exact, "
            f"{cards.counted(self.zeros, 'known zero')}, "
            f"{cards.counted(len(self.nodes), 'probe')}, {cards.counted(self.products, 'product')}>"
        )

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"Spectrum of {self._what} in [{low:.4g}, {high:.4g}] by {self.method}, "
            f"{'mean' if self.of_vector else 'trace'} {self.integrate(lambda x: x)}"
        )

    def _repr_html_(self) -> str:
        low, high = self.interval
        said = f"{self._what} from {low:.4g} to {high:.4g}, by {self.method}."
        took = f"{cards.counted(self.products, 'product')}, {self.epochs:.4g} sweeps over the data"
        return plotting.card(self, said, rounded(self.integrate(lambda x: x)), took)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The measure as arrays.

        Returns
        -------
        dict of str to numpy.ndarray
            `nodes` and `weights` (K, M), `atom_values` and `atom_multiplicities` (L,), the number of `zeros`.

        Examples
        --------
        >>> Spectrum.from_eigenvalues([1.0, 2.0]).to_arrays()["atom_values"]
        array([1., 2.])
        """
        return {
            "nodes": self.nodes,
            "weights": self.weights,
            "atom_values": self.atoms.values,
            "atom_multiplicities": self.atoms.multiplicities,
            "zeros": np.asarray(self.zeros),
        }

    def estimates(self) -> dict[str, Estimate]:
        """Three numbers of the eigenvalues; `spectral.summary` has every number that a spectrum gives.

        Returns
        -------
        dict of str to Estimate
            `trace`, `mean` and `median`; of one vector the latter two.

        Examples
        --------
        >>> {name: float(e) for name, e in Spectrum.from_eigenvalues([1.0, 2.0, 6.0]).estimates().items()}
        {'trace': 9.0, 'mean': 3.0, 'median': 2.0}
        """
        trace = {} if self.of_vector else {"trace": self.integrate(lambda x: x)}
        return {**trace, "mean": self.moment(1), "median": self.quantile(0.5)}


def hold_spectrum(given: Any, what: str) -> None:
    """One sentence where something else is given than a spectrum, such as an operator."""
    if not isinstance(given, Spectrum):
        raise TypeError(
            f"{what} is of a Spectrum, and {type(given).__name__} is none; take its spectrum, spectral.esd(A)."
        )


def hold_eigenvalues(spectrum: Spectrum, what: str) -> None:
    """One sentence where `what` is about all eigenvalues, and this is no spectrum or the measure of one vector."""
    hold_spectrum(spectrum, what)
    if spectrum.of_vector:
        raise ValueError(
            f"{what} is about all eigenvalues, and this is the measure of one vector (spectrum_of), which tells what part of the "
            "vector lies where (cdf, integrate, density); use slq or esd for the eigenvalues."
        )
