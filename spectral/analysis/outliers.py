"""Outliers: the few eigenvalues that stand apart above the bulk of a spectrum.

The curvature of a trained classifier with C classes has C or C − 1 of them, one for each class mean (Sagun et al. 2017, Papyan
2019, 2020). What counts is the gap below them. Symbols: λ_1 ≥ λ_2 ≥ … the eigenvalues, and of the gap below the i-th the ratio
r_i = λ_i/λ_{i+1} and z_i = i ln r_i. Of independent values with density λ^{−alpha} the z_i are independent and exponential
with mean 1/(alpha − 1) (Rényi 1953), so that λ_1/λ_2 = 10 is nothing in a heavy tail, and λ_10/λ_11 = 2 is much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectral import cards
from spectral.analysis.counting import counted_once, counting
from spectral.analysis.exponents import top_values
from spectral.analysis.jackknife import merged
from spectral.analysis.marchenko_pastur import marchenko_pastur, positive_floor
from spectral.quadrature.cdf import told_apart
from spectral.results import Array, nan
from spectral.spectrum import Spectrum

Flags = NDArray[np.bool_]
# Eigenvalues below a gap, at least, that say how wide gaps are there; twice as many as stand above it, if more
WINDOW = 20
MIN_WINDOW = 5
# Eigenvalues of a Marchenko–Pastur bulk that tell it from others. Of fewer, n, exponential and lognormal ones pass for it with
# spikes (of 30 in 20 to 26 of 100); spikes above 1 + FEW/n times its edge they have in 0 to 4 of 100 (n = 30 to 80)
TOLD, FEW = 100, 40.0
SHARE = 1 / 3  # outliers are at most so many of the positive eigenvalues
MIN_RATIO = 1.2  # a narrower gap is nothing to see
ALONE = 3.0  # a node that weighs no more stands for one eigenvalue, or a few
AGREED = 1e-6  # of a node: how near the nodes of other probes are, if they are one eigenvalue
# The mean ratio of the smaller and the larger of two gaps that follow each other: .386 of independent values, .531 of a random
# symmetric matrix (Atas et al. 2013), .53 ± .03 in 108 small trained networks. A pair of gaps scatters by .28.
INDEPENDENT, REPELLED, SCATTER, PAIRS = 0.386, 0.53, 0.28, 80
# Errors of that mean: by 1.5 heavy tails (alpha = 1.5) pass for a matrix in 5 to 9 of 100, by 2 in 3 to 4; by 2.5 clusters of
# classes are lost.
SURE = 2.0


@dataclass(frozen=True, eq=False)
class Outliers(cards.Sentence):
    """The eigenvalues above the bulk.

    Attributes
    ----------
    count : int
        How many. No outliers are an answer, 0, and accepted.
    values : numpy.ndarray
        (count,), the largest first.
    gap : float
        The smallest of them over the edge, nan without outliers.
    edge : float
        The upper end of the bulk, its largest eigenvalue (of a quadrature, its largest node), in units of λ.
    accepted : bool
        False where the spectrum cannot tell how many there are. `count` and `values` are then those in doubt (above a gap,
        or spikes), if there are any, and `gap` and `edge` nan.
    reason : str
        One sentence that says why not; of an accepted count, which more may stand apart, or "".

    Examples
    --------
    >>> print(spectral.outliers(spectral.exact(np.diag(np.append(np.linspace(0.1, 1, 60), 9.0)))))
    1 outlier (9), 9 times above the edge 1
    """

    count: int
    values: Array
    gap: float
    edge: float
    accepted: bool
    reason: str

    def __str__(self) -> str:
        if not self.accepted:
            return f"outliers unknown: {self.reason}"
        if self.count == 0:
            return f"no outliers: the largest eigenvalue, {self.edge:.4g}, is the edge of the bulk"
        shown = ", ".join(f"{v:.4g}" for v in self.values[:10]) + (", …" if self.count > 10 else "")
        plural = "s" if self.count > 1 else ""
        more = f"; {self.reason[:1].lower()}{self.reason[1:].rstrip('.')}" if self.reason else ""
        return f"{self.count} outlier{plural} ({shown}), {self.gap:.3g} times above the edge {self.edge:.4g}{more}"


class _Gaps(NamedTuple):
    """Of each gap between neighbouring points: how many draws lie above it and below, and its ends.

    z and log_ratio are the means of z and of ln r over the draws below the gap, `seen` of them for z.
    """

    above: Array
    below: Array
    upper: Array
    lower: Array
    z: Array
    log_ratio: Array
    seen: Array


def _draws(spectrum: Spectrum, values: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Points descending with their counts, copies put together, and how many draws each is.

    The copies of an eigenvalue say together what one says: an exact one is one draw. A node does not show what it stands for,
    and is taken for eigenvalues of as many copies as exact ones have on average.
    """
    of = told_apart(values, spectrum.rounding)
    first, total = np.searchsorted(of, np.arange(of[-1] + 1)), np.bincount(of, counts).astype(np.float64)
    exact = np.bincount(of, np.where(np.isin(values, spectrum.atoms.values), np.round(counts), 0.0))
    copies = float(exact[exact > 0].mean()) if exact.any() else 1.0
    return values[first], total, np.where(exact > 0, 1.0, total / copies).astype(np.float64)


def _gaps(values: Array, draws: Array) -> _Gaps:
    """Of values descending, equal ones once, with how many draws each stands for."""
    above, log = np.cumsum(draws), np.log(values)
    sums = np.concatenate([[0.0], np.cumsum(above[:-1] * -np.diff(log))])  # Σ z down to a point
    i, next_ = above[:-1], np.arange(1, len(values))
    widths = np.maximum(WINDOW, 2 * i), WINDOW
    end, near = (np.minimum(np.searchsorted(above, i + width), len(values) - 1) for width in widths)
    z = (sums[end] - sums[next_]) / np.maximum(above[end] - i, 1e-300)
    log_ratio = (log[next_] - log[near]) / np.maximum(above[near] - i, 1e-300)
    return _Gaps(i, above[-1] - i, values[:-1], values[1:], z, log_ratio, np.maximum(above[end] - i, 1e-300))


def _repelled(known: Array, above: Array, complete: bool) -> tuple[Flags, Flags]:
    """Whether the eigenvalues below a gap keep their distance, as those of a matrix do and independent values do not.

    known: exact eigenvalues, descending, all there are if complete; above: how many of them lie above each gap. The second
    answer says where too few are known to deny it.
    """
    widths = -np.diff(np.log(known))
    smaller, larger = np.minimum(widths[1:], widths[:-1]), np.maximum(widths[1:], widths[:-1])
    sums = np.concatenate([[0.0], np.cumsum(np.where(larger > 0, smaller / np.where(larger > 0, larger, 1.0), 0.0))])
    first = np.minimum(np.round(above).astype(int), len(sums) - 1)
    last = np.minimum(first + PAIRS, len(sums) - 1)
    pairs = last - first
    mean, error = (sums[last] - sums[first]) / np.maximum(pairs, 1), SCATTER / np.sqrt(np.maximum(pairs, 1))
    repelled = (pairs >= MIN_WINDOW) & (mean > INDEPENDENT + SURE * error)
    short = (pairs < PAIRS) & ((pairs < MIN_WINDOW) | (mean > REPELLED - 2.5 * error))
    return repelled, ~repelled & short & (not complete)


def _clear(g: _Gaps, repelled: Flags) -> Flags:
    """Which gaps chance does not make.

    Measured by the m gaps below it, z of a gap after i eigenvalues must be so large that e^-5 / i² of independent values of a
    power law of whatever exponent have it, (1 + z/m)^-m (the F law of an exponential variable over the mean of m others): 5 +
    2 ln i of many. In 1 to 4 of 100 spectra one such gap is found. That asks for much where the bulk is as heavy as a network's,
    λ_2/λ_3 > 50. Eigenvalues that repel each other leave no such gaps by chance: there it is enough that z is 1.4
    times that of the gaps below, that i independent values of alpha = 2 would have such a gap in 8 of 100 for i = 2 and in
    the more seldom the larger i is, and that the gap is wide beside those next to it (in a spectrum that falls exponentially, z
    grows with i).
    """
    i = np.maximum(g.above, 1.0)
    ratio = np.log(g.upper / g.lower)
    gaps = np.maximum(g.seen - 1, 1.0)  # between that many draws, whose sum is seen * z
    seldom = i * ratio > np.expm1((5 + 2 * np.log(i)) / gaps) * g.seen * g.z
    apart = (i * ratio > 1.4 * g.z) & (i * ratio > 2.5 * (1 + np.log(i / 2))) & (ratio > (4 + np.log(i)) * g.log_ratio)
    held = (g.above <= SHARE * (g.above + g.below)) & (g.below >= MIN_WINDOW) & (ratio > np.log(MIN_RATIO))
    return np.asarray((seldom | (apart & repelled & (i > 1.5))) & held)


def outliers(spectrum: Spectrum) -> Outliers:
    """The eigenvalues that stand apart above the bulk: how many, which, and how far above its edge.

    If all eigenvalues are known and the bulk is Marchenko–Pastur, they are its spikes: those of n < 100 eigenvalues if all exceed
    its edge 1 + 40/n times (exponential and lognormal ones pass for such a bulk too). Otherwise they are what lies above the
    widest gap λ_i/λ_{i+1} that is wider than chance makes it; `gap` is that ratio, `edge` is λ_{i+1}. Below the i largest of
    independent values with a power law, i ln(λ_i/λ_{i+1}) is exponential, and its mean is seen in the gaps below, so that heavy
    tails have no outliers although their largest values lie far apart. Where the eigenvalues below the gap repel each other, as
    those of a matrix do, less is asked for. Of spectra without a gap, 1 to 4 in 100 are said to have one; where there is none,
    and spikes that do not exceed the edge by so much, `accepted` is False. The copies of an eigenvalue (no further apart than
    rounding) are one draw, and count as often as they stand there.

    Of trained classifiers expect C or C − 1, one direction for each class mean, less their common one; C(C − 1) where the
    classes are tight clusters, as in a Gaussian mixture; and 0 where the directions of the classes merge into the bulk.

    A quadrature must know its largest eigenvalues one by one (`slq` deflates them by default, with two probes or more), and some
    below the gap: `accepted` is False where it does not. Negative eigenvalues are no part of it; -A has them above.

    Cost: no products, O(points) memory.

    Parameters
    ----------
    spectrum : Spectrum
        Exact, or a quadrature with atoms.

    Returns
    -------
    Outliers
        With a verdict: `accepted` and `reason`.

    Raises
    ------
    ValueError
        For eigenvalues whose squares float64 does not hold.

    References
    ----------
    Papyan (2019), Measurements of three-level hierarchical structure in the outliers in the spectrum of
    deepnet Hessians. Papyan (2020), Traces of class/cross-class structure pervade deep learning spectra. Rényi (1953), On the
    theory of order statistics, for gaps of a power law. Atas, Bogomolny, Giraud and Roux (2013), Distribution of the ratio of
    consecutive level spacings, for those of a matrix.

    Examples
    --------
    >>> from spectral.spectrum import Spectrum
    >>> found = outliers(Spectrum.from_eigenvalues(np.append(np.linspace(0.1, 1, 60), [5.0, 6.0, 9.0])))
    >>> found.count, found.values, found.gap, found.edge
    (3, array([9., 6., 5.]), 5.0, 1.0)
    """
    floor = positive_floor(spectrum)
    points, weights = spectrum.points(zeros=False)
    kept = points > floor
    if not kept.any():
        return Outliers(0, np.zeros(0), nan, nan, False, "No eigenvalue is positive, so there is no bulk.")
    values, counts = (v[::-1] for v in merged(points[kept], weights[kept]))
    values, counts, draws = _draws(spectrum, values, counts)
    sure, count, reason = _count(spectrum, values, counts, draws, floor)
    count = sure or count
    known = top_values(spectrum, count)
    if len(known) < count and (sure or not reason):
        sure = 0
        reason = f"{count} eigenvalues stand above a gap, but {len(known)} of them are known exactly; use more steps and deflate."
    if reason and not sure:
        return Outliers(count, known, nan, nan, False, reason)
    edge = float(values[values < known[-1]][0] if count else values[0])
    return Outliers(count, known, float(known[-1] / edge) if count else nan, edge, True, reason)


def _count(spectrum: Spectrum, values: Array, counts: Array, draws: Array, floor: float) -> tuple[int, int, str]:
    """(how many eigenvalues surely stand apart, how many with those in doubt, what the doubt is) of points > 0, descending."""
    total = float(draws.sum())
    if len(values) == 1 and spectrum.is_exact and counts[0] >= 2 * MIN_WINDOW:
        return 0, 0, ""
    if total < 2 * MIN_WINDOW:
        some = counted_once(total, float(counts.sum()))
        return 0, 0, f"The spectrum has {total:.3g} positive eigenvalues{some}, and a bulk needs {2 * MIN_WINDOW}."
    spikes = _spikes(values, counts) if spectrum.is_exact else None
    if spikes is not None and not spikes[2]:
        return spikes
    known = top_values(spectrum, spectrum.dim)
    known = known[known > floor]
    if not len(known):
        why = "No eigenvalue is known exactly, so none can be said to stand apart"
        return 0, 0, f"{why}; deflate, with two probes or more."
    if len(values) == 1:
        return 0, 0, ""
    gaps = _gaps(values, draws)
    repelled, unknown = _repelled(values[values >= known[-1]], gaps.above, spectrum.is_exact)
    empty = _empty(spectrum, gaps, floor)
    clear, perhaps = _clear(gaps, repelled) & empty, _clear(gaps, repelled | unknown)
    perhaps &= empty | _agreed(spectrum, gaps.upper)
    (sure, _), (count, ratio) = (_widest(gaps, counts, flags) for flags in (clear, perhaps))
    if spikes and (spikes[0] > sure or max(sure, count) == 0):
        return spikes
    if sure >= count:
        return sure, sure, ""
    doubt = (
        f"Whether the gap of {ratio:.3g} after {count} eigenvalues is chance depends on those below it, "
        f"of which {max(len(known) - count, 0)} are known exactly; use more steps."
    )
    return sure, count, doubt


def _widest(gaps: _Gaps, counts: Array, flags: Flags) -> tuple[int, float]:
    """How many eigenvalues lie above the widest of these gaps, and the ratio of its ends; (0, 0.0) where there is none."""
    ratios = np.where(flags, gaps.upper / gaps.lower, 0.0)
    widest = int(np.argmax(ratios))
    return (round(float(np.cumsum(counts)[widest])) if flags.any() else 0), float(ratios[widest])


def _spikes(values: Array, counts: Array) -> tuple[int, int, str] | None:
    """As `_count`, of exact eigenvalues with a Marchenko–Pastur bulk: its spikes; None without such a bulk.

    None too where a bulk of few has no spikes: other laws pass for it. Spikes near its edge may be chance, those beyond are not.
    """
    bulk = marchenko_pastur(Spectrum.from_eigenvalues(values))
    if not bulk.accepted or (bulk.bulk < TOLD and not bulk.spikes):
        return None
    found, least = int(bulk.spikes), 1 + FEW / bulk.bulk
    beyond = found if bulk.bulk >= TOLD else int((values[:found] > least * bulk.upper).sum())
    sure, spikes = (int(counts[:some].sum()) for some in (beyond, found))
    if sure == spikes:
        return sure, spikes, ""
    lies, most = cards.apart(values[found - 1] / bulk.upper, least, 3)
    some = f"{spikes - sure} eigenvalues may be spikes" if spikes - sure > 1 else "1 eigenvalue may be a spike"
    smallest = f"the smallest is {lies} times its edge, and of so few must exceed {most}."
    return sure, spikes, f"{some} of a bulk of fewer than {TOLD}, or chance; {smallest}"


def _empty(spectrum: Spectrum, gaps: _Gaps, floor: float) -> Flags:
    """Which gaps hold no eigenvalue: nodes that stand for many eigenvalues lie apart, and the eigenvalues between them."""
    c, _ = counting(spectrum, floor)
    middle = np.searchsorted(c.x, np.sqrt(gaps.upper * gaps.lower))
    return np.asarray(c.loose[np.minimum(middle, len(c.x) - 1)] <= ALONE)


def _agreed(spectrum: Spectrum, points: Array) -> Flags:
    """At which points every probe has a node: an eigenvalue, of many copies if the nodes are heavy, and not some of a bulk."""
    agreed = np.full(len(points), len(spectrum.nodes) > 1)
    for nodes in spectrum.nodes:
        nodes = np.sort(nodes)
        after = np.searchsorted(nodes, points)
        near = (nodes[np.clip(i, 0, len(nodes) - 1)] for i in (after - 1, after))
        agreed &= np.min([np.abs(v - points) for v in near], axis=0) <= AGREED * points
    return agreed
