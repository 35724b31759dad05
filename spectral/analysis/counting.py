"""How many eigenvalues are at least x: the function N(x) that tails, bulks and outliers are fitted to.

Exact eigenvalues are steps of N. A quadrature node of weight w stands for about w eigenvalues on both sides of it, so that N
is known at the node (what lies above, and half of w) and interpolated between nodes, ln N linearly in ln x. Sums over nodes
cut at some x take the nearest node whole or not at all: for an exponent of 1.8 from 40 steps that was an error of .17, and
.02 with N interpolated.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectral.analysis.jackknife import Measure, merged
from spectral.quadrature.cdf import told_apart
from spectral.quadrature.gauss import gauss_rule
from spectral.results import Array, IntArray
from spectral.spectrum import Spectrum, hold_eigenvalues

POINTS = 1024  # on which the interpolated part is tabulated
# Between the smallest nodes of tails of full rank over six decades, 20 to 100 steps, lies a factor of 55 at most
EMPTY, RESOLVED = 100.0, 8.0
MASSIVE = 1e-8  # of an eigenvalue: less is what rounding leaves on a deflated direction


class Counting(NamedTuple):
    """N on the points `x` (X,), ascending and above a floor: `at_least` eigenvalues are >= x, `above` are > x.

    `exact` of those at x or above are known one by one, `squares` is the sum of c² over the values that have c copies each among
    them; `loose` is the weight between the two nodes on either side of x, within which N is interpolated (0 for exact spectra).
    `probes` made the quadrature, 0 for an exact spectrum.
    """

    x: Array
    at_least: Array
    above: Array
    exact: Array
    squares: Array
    loose: Array
    probes: int

    @property
    def total(self) -> float:
        """Eigenvalues above the floor."""
        return float(self.at_least[0]) if len(self.x) else 0.0

    @property
    def masses(self) -> tuple[Array, Array]:
        """N as a discrete measure: values and counts, what lies between two points at their geometric mean."""
        between = np.maximum(self.above[:-1] - self.at_least[1:], 0.0)
        values = np.concatenate([self.x, np.sqrt(self.x[1:] * self.x[:-1])])
        counts = np.concatenate([self.at_least - self.above, between])
        order = np.argsort(values, kind="stable")
        return values[order][counts[order] > 0], counts[order][counts[order] > 0]

    def independent(self, first: IntArray, last: int = -1, probes: bool = True) -> Array:
        """How many independent eigenvalues say as much as those from the points `first` to the point `last`.

        The c copies of a value are one draw, and add c² to the variance of a sum. m Gaussian probes add to that of eigenvalues
        that they stand for 2/m of it (each weighs as a chi square with m degrees of freedom), unless not `probes`, and nothing to
        that of exact ones: n_eff = n²/(Σc² + (1 + 2/m)(n − exact)).
        """
        after = last + 1 if 0 <= last < len(self.x) - 1 else None
        exact, squares = (a[first] - (0.0 if after is None else a[after]) for a in (self.exact, self.squares))
        n = self.at_least[first] - self.above[last]
        noise = 1 + 2 / self.probes if self.probes and probes else 1.0
        return np.asarray(n**2 / np.maximum(squares + noise * np.maximum(n - exact, 0.0), 1e-300))

    def insert(self, value: float) -> Counting:
        """The same with `value` among its points."""
        j = int(np.searchsorted(self.x, value))
        if j < len(self.x) and self.x[j] == value:
            return self
        after = self.at_least[j] if j < len(self.x) else 0.0
        before = self.above[j - 1] if j > 0 else after
        n, loose = after, 0.0
        if 0 < j < len(self.x) and before > after:
            share = np.log(value / self.x[j - 1]) / np.log(self.x[j] / self.x[j - 1])
            n = float(before ** (1 - share) * after**share) if after > 0 else before
            loose = max(self.loose[j - 1], self.loose[j])
        exact, squares = (a[j] if j < len(self.x) else 0.0 for a in (self.exact, self.squares))
        x, at_least, above, known, square, open_ = (
            np.insert(a, j, v) for a, v in zip(self[:6], (value, n, n, exact, squares, loose), strict=True)
        )
        return Counting(x, at_least, above, known, square, open_, self.probes)


def counted_once(draws: float, size: float) -> str:
    """What a sentence says behind a number of draws where with their copies they are more.

    >>> counted_once(3.0, 12.0), counted_once(3.0, 3.0)
    (' (copies counted once)', '')
    """
    return " (copies counted once)" if size > draws * (1 + 1e-9) else ""


def log_sums(c: Counting) -> Array:
    """Σ ln(λ/x) over the eigenvalues λ > x, at each point: ∫ N(t) dt/t from x on, (X,)."""
    a, b = c.above[:-1], c.at_least[1:]
    with np.errstate(all="ignore"):
        ratio = np.log(a / b)
        mean = np.where(np.abs(ratio) < 1e-6, (a + b) / 2, (a - b) / ratio)
    parts = np.where(b > 0, mean, a / 2) * np.diff(np.log(c.x))
    return np.append(np.cumsum(parts[::-1])[::-1], 0.0)


def counting(spectrum: Spectrum, floor: float = 0.0) -> tuple[Counting, list[Counting]]:
    """N of the eigenvalues above `floor` >= 0, and N without probe 0, without probe 1, ...: none with fewer than two.

    Values that lie no further apart than `floor`, and than rounding, are one: copies, or nodes that have found the same.

    >>> from spectral.spectrum import Spectrum
    >>> counting(Spectrum.from_eigenvalues([1.0, 2.0, 2.0, -3.0]))[0].at_least
    array([3., 2.])
    """
    hold_eigenvalues(spectrum, "a fit")
    points = np.unique(np.append(spectrum.atoms.values, spectrum.nodes))
    of = told_apart(points, min(floor, spectrum.rounding))
    first = points[np.searchsorted(of, of)]

    def one(values: Array, counts: Array) -> Measure:
        return merged(first[np.searchsorted(points, values)], counts)

    kept = spectrum.atoms.values > floor
    values, counts = one(spectrum.atoms.values[kept], spectrum.atoms.multiplicities[kept])
    if spectrum.is_exact:
        none = np.zeros((1, len(values)))
        return _pooled(values, values, counts, none, none, np.ones(1), 0), []
    shares = spectrum.pooling
    rules = zip(spectrum.nodes, spectrum.weights * spectrum.dim, strict=True)
    tables = [_table(*one(nodes, weights), floor) for nodes, weights in rules]
    ends = [t[0][[0, -1]] for t in tables if len(t[0])]
    x = values
    if ends:
        lowest, highest = min(e[0] for e in ends), max(e[1] for e in ends)
        x = np.unique(np.append(values, np.clip(np.geomspace(lowest, highest, POINTS), lowest, highest)))
    found = [_interpolated(*t, x) for t in tables]
    N_KX, loose_KX = (np.array([f[i] for f in found]).reshape(len(shares), len(x)) for i in (0, 1))

    def pooled(keep: NDArray[np.bool_]) -> Counting:
        return _pooled(x, values, counts, N_KX[keep], loose_KX[keep], shares[keep], int(keep.sum()))

    each = np.eye(len(shares), dtype=bool) if len(shares) > 1 else np.zeros((0, 1), dtype=bool)
    return pooled(np.ones(len(shares), bool)), [pooled(~out) for out in each]


def zero_within_residual(spectrum: Spectrum) -> float:
    """The largest node >= 0 that cannot be told from an eigenvalue 0, or 0.

    Zeros that nobody knew of become one heavy node: it is no further from 0 than its residual. Where 0 is the end of the
    spectrum, the node approaches it from above, and is EMPTY times nearer to it than the next; elsewhere that is chance, and
    its residual is RESOLVED times less than the next is away. What ln x would make of it is a tail of many decades. One matrix
    has one 0: the probes decide together, by the median. Where nodes at an end are does not hang on the last bits of products,
    as residuals do.
    """
    at_end, ratios, found = spectrum.interval[0] >= -spectrum.rounding, [], [0.0]
    for record in spectrum.records:
        nodes, _, last = gauss_rule(record)
        order = np.argsort(np.abs(nodes))
        nodes, residual = nodes[order], np.maximum((record.betas[-1] * last)[order], spectrum.rounding)
        size = np.maximum(np.abs(nodes), spectrum.rounding)
        ratio = np.append(size[1:], 0.0) / (size if at_end else residual) * (size <= residual)
        ratios.append(ratio.max())
        found.append(nodes[ratio.argmax()])
    return float(max(found)) if np.median(ratios or [0.0]) >= (EMPTY if at_end else RESOLVED) else 0.0


def _table(nodes: Array, weights: Array, floor: float) -> tuple[Array, Array, Array]:
    """N at the nodes of one rule, ascending, with weights in eigenvalues, and the weight between each node and the one before.

    The lower half of the first node's weight lies below it: N is continued as between the first two nodes until it holds all, or
    as far below the first, in ln x, as the second lies above it.
    """
    nodes, weights = nodes[weights > MASSIVE], weights[weights > MASSIVE]
    middle = np.cumsum(weights[::-1])[::-1] - weights / 2
    kept = nodes > floor
    nodes, weights, middle = nodes[kept], weights[kept], middle[kept]
    if len(nodes) < 2:
        return nodes, weights, weights  # one node: all of its weight is at it
    with np.errstate(divide="ignore"):  # of copies of one node
        slope = np.log(middle[0] / middle[1]) / np.log(nodes[1] / nodes[0])
    total = middle[0] + weights[0] / 2
    step = min(np.log(total / middle[0]) / slope, np.log(nodes[1] / nodes[0])) if slope > 0 else 0.0
    first = max(nodes[0] * np.exp(-step), floor * (1 + 1e-12))
    gaps = np.concatenate([weights[:1], weights[:1], middle[:-1] - middle[1:]])
    return np.append(first, nodes), np.append(total, middle), gaps


def _interpolated(nodes: Array, N: Array, gaps: Array, x: Array) -> tuple[Array, Array]:
    """N of one rule at x, and the weight between the nodes around x."""
    if not len(nodes) or not len(x):
        return np.zeros(len(x)), np.zeros(len(x))
    inside = x <= nodes[-1]
    at = np.minimum(np.searchsorted(nodes, x), len(nodes) - 1)
    return np.exp(np.interp(np.log(x), np.log(nodes), np.log(N))) * inside, gaps[at] * inside


def _pooled(
    x: Array, values: Array, counts: Array, N_KX: Array, loose_KX: Array, shares: Array, probes: int
) -> Counting:
    shares = shares / shares.sum()
    N, loose = shares @ N_KX, shares @ loose_KX
    steps = np.zeros((2, len(x)))
    steps[:, np.searchsorted(x, values)] = counts, counts**2
    exact, squares = np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]
    above = N + exact - steps[0]
    if len(x):
        above[-1] = 0.0  # half of the last node's weight sits on it
    return Counting(x, N + exact, above, exact, squares, loose, probes)
