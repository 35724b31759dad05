"""Pure functions of Lanczos records: Gauss rules, the certified envelope of a CDF, and the Beta law of Gaussian probes.

Notation: T the Jacobi matrix of k steps with last residual beta_k; nodes theta_i, weights omega_i = S_{1i}^2; a probe's
measure is mu = sum_i (u_i^T g)^2 / ||g||^2 delta_{lambda_i}. Of a record with deflated eigenvectors, T stands for the rest of
mu, and its l known eigenvalues with their shares follow the Ritz values. All arrays are float64 numpy; X evaluation points.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import betainc

from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature.certificate import LEAST, Radau

LOCATED = 1e-7  # of the range: nodes of different probes as close as this are one eigenvalue
LOG_STEP = 0.36  # trapezoidal step in log y: its error is about 2 exp(-pi^2 / 0.36) = 2e-12
Y_RANGE = 2e-13, 1e4  # of y, the latter in units of the largest |x|: beyond it terms are powers of y
ROUNDING = 1e-11  # of that sum, and of the masses that come from it
MIDDLE = 1e-6  # of the mass: what is drawn and compared knows no more
CUTS = np.array([[1 / 16], [1 / 4], [1 / 2]])  # of an interval, from its higher end
SPLITS = 10  # 16^-10 of a gap is beyond rounding
DRAWS = 400  # of the probes' noise
TINY = float(np.finfo(float).tiny)


def gauss_rule(record: LanczosRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, weights, and |last components| of the eigenvectors of T, (k + l,) each: residuals are beta_k times the last."""
    nodes, S = record.eigen
    rest = max(1 - record.shares.sum(), 0.0)
    return (
        np.concatenate([nodes, record.known]),
        np.concatenate([rest * S[0] ** 2, record.shares]),
        np.concatenate([np.abs(S[-1]), np.zeros(len(record.known))]),
    )


def epsilon(record: LanczosRecord) -> float:
    """Relative rounding of the products that made the record."""
    return {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}.get(record.dtype, 2.0**-52)


def zero_level(scale: float, dim: float, eps: float) -> float:
    """See `Spectrum.rounding`. numpy's rule for ranks, dim eps, would leave nothing of a float32 matrix with 10^7 rows."""
    return float((10 * eps + np.sqrt(dim) * 2.0**-52) * scale)


def truncated_rule(record: LanczosRecord, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The Gauss rule of the first `steps` steps."""
    return gauss_rule(replace(record, alphas=record.alphas[:steps], betas=record.betas[:steps]))[:2]


def envelope(record: LanczosRecord, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sharp bounds lower <= mu((-inf, t)) <= mu((-inf, t]) <= upper at t = x, (X,) each, from the moments in the record.

    Chebyshev-Markov-Stieltjes through the Gauss-Radau rule that has x among its k + 1 nodes (Golub, Meurant 2010, ch. 6):
    lower is the weight of its nodes left of x, upper adds the weight at x. In finite precision T belongs to a matrix whose
    eigenvalues differ by some eps ||A|| (Greenbaum 1989), so that lower is taken at x - 8 eps ||T||, upper at x + 8 eps ||T||,
    eps of the products' dtype. O(k) a point: `Radau` where no Gauss node is near, else a continued fraction, for which nodes
    nearer to x than 1e-9 of the radius of T's spectrum count as undecided.
    """
    margin, (rules, centre, scale) = blur_of(record), _rules(record)
    points, rest = np.asarray(x, dtype=float), max(1 - float(record.shares.sum()), 0.0)
    own = np.abs(record.alphas).max() + 2 * record.betas.max(initial=0.0)
    rounding = max(
        ROUNDING, epsilon(record) * own / scale if scale > margin else 0.0
    )  # the weights' own, and the sum's
    x, blur = (points - centre) / scale, margin / scale
    lower, upper = np.zeros_like(x), np.ones_like(x)
    near = np.flatnonzero(np.isfinite(x))
    for side, at, found in ((-1, x - blur, lower), (+1, x + blur, upper)):
        easy = near[rules.reaches(at[near])]
        found[easy] = rules.middle(at[easy]) + side * rules.at(at[easy]) / 2
        hard = np.setdiff1d(near, easy)
        for chunk in np.array_split(hard, -(-len(hard) // 256)) if len(hard) else []:
            found[chunk] = _weight_left((record.alphas - centre) / scale, record.betas / scale, at[chunk], side)
    lower, upper = np.clip(lower - rounding, 0, 1), np.clip(upper + rounding, 0, 1)
    lower[x == np.inf], upper[x == -np.inf] = 1.0, 0.0
    order = np.argsort(record.known)  # what has been deflated is known to be where it is
    below = np.concatenate([[0.0], np.cumsum(record.shares[order])])
    lower = rest * lower + below[np.searchsorted(record.known[order], points - margin, side="left")]
    upper = rest * upper + below[np.searchsorted(record.known[order], points + margin, side="right")]
    slack = 8 * epsilon(record) if len(order) else 0.0  # the shares are dots of vectors in the products' dtype
    lower = np.where(points == np.inf, 1.0, np.clip(lower - slack, 0.0, 1.0))
    return lower, np.where(points == -np.inf, 0.0, np.clip(upper + slack, 0.0, 1.0))


def _rules(record: LanczosRecord) -> tuple[Radau, float, float]:
    """The Radau rules of T, and the (centre, radius) of their units: a shift of A moves all but the blur along."""
    centre = float(record.alphas[0])
    spread = float(np.abs(record.alphas - centre).max() + 2 * record.betas.max(initial=0.0))
    scale = max(spread, blur_of(record))
    return Radau(record, scale), centre, scale


def middle(record: LanczosRecord, x: np.ndarray) -> np.ndarray:
    """The middle of the envelope, (X,), to MIDDLE: mu left of x and half of what can sit at x, finite precision apart."""
    rules, centre, scale = _rules(record)
    points, found = (np.asarray(x, dtype=float) - centre) / scale, np.empty(len(x))
    easy = np.full(len(x), record.steps >= LEAST) | ~rules.inside(points)
    found[easy] = rules.middle(points[easy], MIDDLE)
    if not easy.all():
        alphas, betas = (record.alphas - centre) / scale, record.betas / scale
        found[~easy] = sum(_weight_left(alphas, betas, points[~easy], side) for side in (-1, +1)) / 2
    order = np.argsort(record.known)
    below = np.concatenate([[0.0], np.cumsum(record.shares[order])])
    known = sum(below[np.searchsorted(record.known[order], x, side=side)] for side in ("left", "right")) / 2
    return np.clip((1 - below[-1]) * found + known, 0.0, 1.0)


def scale_of(record: LanczosRecord) -> float:
    """A bound of ||T|| and of the known eigenvalues: what eps multiplies."""
    norm = np.abs(record.alphas).max() + 2 * record.betas.max(initial=0.0)
    return float(max(norm, np.abs(record.known).max(initial=0.0), 1e-150))


def blur_of(record: LanczosRecord) -> float:
    """How far finite precision moves an eigenvalue at most (see `envelope`)."""
    return 8 * epsilon(record) * scale_of(record)


def largest_mass(record: LanczosRecord, x: np.ndarray) -> np.ndarray:
    """The largest share, (X,), of the undeflated part that can sit at x: the Christoffel function 1 / sum_j p_j(x)^2.

    p_0, ..., p_k are the orthonormal polynomials of T and its last residual, p_k = 0 left out on an invariant subspace; it is
    the weight that the Gauss-Radau rule through x gives to x, and thereby the width of the envelope there (Akhiezer 1965).
    """
    x = np.asarray(x, dtype=float)
    before, now, total = np.zeros_like(x), np.ones_like(x), np.ones_like(x)
    for j in range(record.steps):
        if record.betas[j] == 0:
            break
        after = (x - record.alphas[j]) * now - (record.betas[j - 1] if j else 0.0) * before
        before, now = now, np.clip(after / record.betas[j], -1e100, 1e100)
        total = total + now**2
        if (total > 1e60).all():
            break
    return 1 / total


def truncation(record: LanczosRecord, gone: np.ndarray, low: float, high: float) -> float:
    """Half the area of the envelope over [low, high], of the part of mu off the nodes `gone`: the most truncation moves in W1.

    The width is `largest_mass`, integrated over `graded` points; on an invariant subspace it is 0 between the nodes. The blur of
    finite precision (see `envelope`) adds twice itself.
    """
    if record.betas[-1] == 0:
        return rounding(record, gone, low, high)
    x, w = graded(record, gone, low, high)
    area = float((np.diff(x) * (w[1:] + w[:-1]) / 2).sum())  # numpy 1 knows no np.trapezoid
    return area / 2 + blur_of(record)


def rounding(record: LanczosRecord, gone: np.ndarray, low: float, high: float) -> float:
    """What finite precision alone leaves of `truncation`, however many steps there are."""
    extra, rest = _width_beyond(record, gone)
    return min(extra / rest, 1.0) * (high - low) / 2 + blur_of(record)


def _width_beyond(record: LanczosRecord, gone: np.ndarray) -> tuple[float, float]:
    """(what rounding adds to the envelope's width, the share of mu off the nodes `gone`)."""
    extra = 2 * ROUNDING + (16 * epsilon(record) if len(record.known) else 0.0)
    return extra, max(1 - float(gauss_rule(record)[1][np.unique(gone)].sum()), TINY)


def graded(record: LanczosRecord, gone: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Points x (X,) of [low, high] and the envelope's width there, of the part of mu off `gone`; dense where the width changes.

    From the nodes and what lies between, intervals are split near their higher end until trapezoids settle to 2 %: a node that
    stands alone is a peak whose width is the root of its residual. O(k) a point, some points for each node.
    """
    theta = gauss_rule(record)[0]
    extra, rest = _width_beyond(record, gone)
    undeflated = max(1 - float(record.shares.sum()), 0.0)

    rules, centre, scale = _rules(record)

    def width(x: np.ndarray) -> np.ndarray:
        return np.minimum((undeflated * rules.at((x - centre) / scale) + extra) / rest, 1.0)

    alone = np.delete(theta, np.unique(gone))
    x = np.unique(np.clip(np.concatenate([[low, high], np.linspace(low, high, 33), alone]), low, high))
    x = np.unique(np.concatenate([x, (x[1:] + x[:-1]) / 2]))
    w = width(x)
    points, widths, settled = [x], [w], 0.0
    left, right, at_left, at_right = x[:-1], x[1:], w[:-1], w[1:]
    for _ in range(SPLITS):
        parts = (right - left) * (at_left + at_right) / 2
        total = settled + parts.sum()
        bend = (right - left) * np.abs(at_left - at_right) / 2  # of a monotone width the trapezoid errs by less
        coarse = bend > 0.02 * total / (len(bend) + 1)
        if bend.sum() <= 0.02 * total or not coarse.any():
            break
        settled += parts[~coarse].sum()
        left, right, at_left, at_right = left[coarse], right[coarse], at_left[coarse], at_right[coarse]
        cuts = np.where(at_left >= at_right, CUTS, 1 - CUTS[::-1]) * (right - left) + left
        inner = width(cuts.reshape(-1)).reshape(cuts.shape)
        points.append(cuts.reshape(-1))
        widths.append(inner.reshape(-1))
        x, w = np.vstack([left, cuts, right]), np.vstack([at_left, inner, at_right])
        left, right, at_left, at_right = (a.reshape(-1) for a in (x[:-1], x[1:], w[:-1], w[1:]))
    x, w = np.concatenate(points), np.concatenate(widths)
    x, first = np.unique(x, return_index=True)
    return x, w[first]


def _weight_left(alphas: np.ndarray, betas: np.ndarray, x: np.ndarray, side: int) -> np.ndarray:
    """Weight of the Radau nodes left of the line Re z = x + side 1e-9, for the rules that have x among their nodes.

    With m(z) = e_1^T (T_x - z)^{-1} e_1, the signed weight sum_i w_i sign(theta_i - c) is (2/pi) int_0^inf Re m(c + iy) dy:
    a trapezoidal sum in log y, each m one continued fraction. It needs no eigenvalues and has no special case where x is a
    Ritz value. With the pivots d_j of T - x I and h = x - z, m = 1 / (h c_1), c_j = 1 + c_{j+1} d_j^2 / (b_j^2 + h c_{j+1} d_j),
    c_{k+1} = 1: the pole at x stands in front, where the plain fraction cancels it to eps / 1e-9.
    """
    k = len(alphas)
    floor = np.finfo(float).eps ** 2
    d = np.empty((k, len(x)))  # Sturm sequence
    for j in range(k):
        pivot = alphas[j] - x - (betas[j - 1] ** 2 / d[j - 1] if j > 0 else 0.0)
        d[j] = np.where(np.abs(pivot) < floor, floor, pivot)
    widest = max(2.0, float(np.abs(x).max(initial=0.0)))
    y = np.exp(np.arange(np.log(Y_RANGE[0]), np.log(Y_RANGE[1] * widest), LOG_STEP))[:, None]
    h, shape = -side * 1e-9, (len(y), len(x))  # h - i y, two arrays: numpy divides complex numbers slowly
    c_re, c_im = np.ones(shape), np.zeros(shape)
    re, im, size, work = (np.empty(shape) for _ in range(4))
    for j in range(k - 1, -1, -1):
        c_re *= d[j]  # c d
        c_im *= d[j]
        np.multiply(c_re, h, out=re)  # b^2 + (h - i y) c d
        re += np.multiply(c_im, y, out=work)
        re += betas[j] ** 2
        np.multiply(c_im, h, out=im)
        im -= np.multiply(c_re, y, out=work)
        np.multiply(re, re, out=size)
        size += np.multiply(im, im, out=work)
        np.divide(d[j], size, out=size)
        np.multiply(c_re, im, out=work)  # 1 + d c d / (b^2 + h c d)
        c_re *= re
        im *= c_im
        c_re += im
        c_re *= size
        c_re += 1
        c_im *= re
        c_im -= work
        c_im *= size
    # Re 1 / ((h - i y) (c_re + i c_im))
    terms = y * (h * c_re + y * c_im) / ((h**2 + y**2) * (c_re**2 + c_im**2))
    geometric = 1 / np.expm1(LOG_STEP)  # beyond both ends the terms fall like y and like 1 / y
    signed = 2 / np.pi * LOG_STEP * (terms.sum(0) + geometric * (terms[0] + terms[-1]))
    return (1 - signed) / 2


def count_interval(
    lower: np.ndarray, upper: np.ndarray, probes: int, dim: int, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Integers r_lo <= r <= r_hi: how many of `dim` eigenvalues lie where pooled Gaussian probes have mass in [lower, upper].

    The mass that m pooled probes have on r of n eigenvectors is Beta(m r / 2, m (n - r) / 2) exactly, a ratio of chi-squares;
    the two one-sided tests at (1 - confidence) / 2 are inverted by bisection over r. The masses are known to rounding only:
    1 - 1e-16 must not exclude r = n.
    """
    tail = (1 - confidence) / 2
    lower, upper = np.where(lower < ROUNDING, 0.0, lower), np.where(upper > 1 - ROUNDING, 1.0, upper)
    a = probes / 2

    def cdf(r: np.ndarray, mass: np.ndarray) -> np.ndarray:  # P(B_r <= mass)
        inner = betainc(np.clip(a * r, 1e-300, None), np.clip(a * (dim - r), 1e-300, None), np.clip(mass, 0, 1))
        return np.where(r <= 0, 1.0, np.where(r >= dim, np.where(mass >= 1, 1.0, 0.0), inner))

    def survival(r: np.ndarray, mass: np.ndarray) -> np.ndarray:  # P(B_r >= mass)
        inner = betainc(np.clip(a * (dim - r), 1e-300, None), np.clip(a * r, 1e-300, None), np.clip(1 - mass, 0, 1))
        return np.where(r >= dim, 1.0, np.where(r <= 0, np.where(mass <= 0, 1.0, 0.0), inner))

    low = _smallest(lambda r: survival(r, lower) >= tail, dim, np.shape(lower))
    high = dim - _smallest(lambda r: cdf(dim - r, upper) >= tail, dim, np.shape(upper))
    return low, high


def _smallest(accepts, dim: int, shape: tuple[int, ...]) -> np.ndarray:
    """The smallest r in 0..dim that a test, monotone in r, accepts."""
    low, high = np.zeros(shape), np.full(shape, float(dim))
    while np.any(low < high):
        middle = np.floor((low + high) / 2)
        good = accepts(middle)
        high = np.where(good, middle, high)
        low = np.where(good, low, np.minimum(middle + 1, high))
    return high


def pooled_variance(probes: int, dim: int, variance: float | np.ndarray) -> float | np.ndarray:
    """Variance of a pooled quadratic form: 2 Var_lambda(f) / (m n + 2), exact for m pooled Gaussian probes in dimension n.

    g^T f(A) g / g^T g of one vector uniform on the sphere in R^N has variance 2 Var(f) / (N + 2); pooled probes are one such
    vector of I_m (x) f(A) in R^{m n}.
    """
    return 2 * variance / (probes * dim + 2)


def located(nodes: np.ndarray, masses: np.ndarray, least: float) -> np.ndarray:
    """`masses` (K, M) of K probes' `nodes`, raised where all probes agree on a value that they hold too light.

    A value within LOCATED of the range on which every probe has a node is an eigenvalue, whose true mass is at least `least`;
    the random mass may be far smaller, and a variance taken with it too small (with one probe, without bound).
    """
    held = masses > 0
    x, c, owner = nodes[held], masses[held], np.nonzero(held)[0]
    order = np.argsort(x, kind="stable")
    x, c, owner = x[order], c[order], owner[order]
    starts = np.flatnonzero(np.append(True, np.diff(x) > LOCATED * (x[-1] - x[0])))
    seen = np.zeros((len(starts), len(nodes)), dtype=bool)
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(x))))
    seen[group, owner] = True
    total = np.add.reduceat(c, starts)
    factor = np.where(seen.all(1), np.maximum(1.0, least / total), 1.0)
    raised = np.zeros_like(c)
    raised[order] = c * factor[group]
    result = np.zeros_like(masses)
    result[held] = raised
    return result


def w1_noise(cdf: np.ndarray, grid: np.ndarray, probes: int, dim: int, quantile: float = 0.95) -> float:
    """The `quantile` of int |F_g - F| dx over the draws of pooled Gaussian probes, F (X,) a CDF of `dim` eigenvalues that is
    constant between the points of `grid`.

    The masses that m pooled probes have on the cells of the grid are Dirichlet(m r_i / 2), r_i the eigenvalues in cell i: the
    joint law of which the Beta law is one margin. Simulated with a fixed seed.
    """
    share = np.maximum(np.diff(np.concatenate([[0.0], np.maximum.accumulate(np.clip(cdf, 0, 1)), [1.0]])), 0.0)
    draws = np.random.default_rng(0).standard_gamma(probes * dim * share / 2, (DRAWS, len(share)))
    noisy = np.cumsum(draws / draws.sum(1, keepdims=True), axis=1)[:, :-1]
    return float(np.quantile(np.abs(noisy - np.cumsum(share)[:-1])[:, :-1] @ np.diff(grid), quantile))
