"""When an adaptive run has reached what was asked for, and how it splits products between steps and probes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral.schema import FRACTION, number
from spectral.spectrum import Spectrum

SHARE = 0.5  # of a tolerance that truncation may take, the rest is for the probes' noise
STALLED = 1.25  # times rounding: a truncation that more steps do not lower
# The middle of an envelope after k free steps is wrong by about SMOOTH / k of its half width: .5 to 5 seen on uniform,
# semicircle, normal, log-uniform and Pareto spectra and on two bumps, k = 10 ... 80.
SMOOTH = 2.0
FIRST = 0.25  # of a budget, at least for the first probe: outliers are found after steps that seem to gain nothing
GROWTH = 1.12  # steps between looks: a look costs about as much in T as all looks before it
LATER = 2.0  # the same for probes whose depth is settled

# What looks at the first probe saw: {steps: (truncation, noise, found)}, in units of a tolerance.
History = Mapping[int, tuple[float, float, int]]


@dataclass(frozen=True)
class Tolerance:
    """What `tol` asks for: a W1 error relative to the range, the width of a count's interval, the error of the CDF somewhere.

    `cdf`: (t_1, ..., t_l, error), the CDF at t times the largest |eigenvalue| to +-error.
    """

    w1: float | None = None
    count: tuple[float, float, float] | None = None
    cdf: tuple[float, ...] | None = None

    @classmethod
    def of(cls, tol: Any) -> Tolerance | None:
        """From a number, or {"w1": number, "count": (lo, hi, width), "cdf": (points, error)}, some of them; None for None.

        >>> Tolerance.of({"count": (0.5, 9.0, 2), "cdf": (1e-8, 0.02)})
        Tolerance(w1=None, count=(0.5, 9.0, 2.0), cdf=(1e-08, 0.02))
        """
        if tol is None:
            return None
        given = dict(tol) if isinstance(tol, Mapping) else {"w1": tol}
        w1, count, cdf = (given.pop(name, None) for name in ("w1", "count", "cdf"))
        if given or (w1 is None and count is None and cdf is None):
            raise ValueError(
                f"tol={tol!r} is no tolerance; use a number, {{'count': (lo, hi, width)}} or {{'cdf': (points, error)}}."
            )
        if w1 is not None:
            number(w1, "tol", "tolerance of a W1 error relative to the spectral range", FRACTION, "1e-3")
            w1 = float(w1)
        if cdf is not None:
            points, error = (np.ravel(cdf[0]), float(cdf[1])) if len(cdf) == 2 else (np.zeros(1), math.nan)
            if not (len(points) and np.all((np.abs(points) > 0) & (np.abs(points) < 1)) and 0 < error < 1):
                raise ValueError(
                    f"tol={tol!r} is no tolerance; a cdf needs (points, error), points as parts of the largest |eigenvalue|, "
                    "such as ([1e-8, 1e-4], 0.02)."
                )
            cdf = (*(float(x) for x in points), error)
        if count is None:
            return cls(w1, None, cdf)
        lo, hi, width = (float(value) for value in count) if len(count) == 3 else (math.nan,) * 3
        if not (lo < hi and width > 0):
            raise ValueError(f"tol={tol!r} is no tolerance; a count needs (lo, hi, width) with lo < hi and width > 0.")
        return cls(w1, (lo, hi, width), cdf)

    def parts(self, s: Spectrum) -> tuple[float, float]:
        """(truncation, noise of the probes in 95 % of the draws) in units of the tolerance: met if they sum to 1 or less."""
        worst = (0.0, 0.0)
        if self.w1 is not None:
            error = s.meta["error"]
            worst = (error["truncation"] / self.w1, (error["w1_95"] - error["truncation"]) / self.w1)
        if self.count is not None:
            band = s.count(*self.count[:2])
            fixed = float(band.certified_upper - band.certified_lower) / self.count[2]
            found = (fixed, max(float(band.upper - band.lower) / self.count[2] - fixed, 0.0))
            worst = max(worst, found, key=sum)
        if self.cdf is not None:
            band = s.cdf(np.array(self.cdf[:-1]) * s.scale)
            half = np.array([band.certified_upper - band.certified_lower, band.upper - band.lower]) / (2 * self.cdf[-1])
            worst = max([worst, *((float(f), max(float(a - f), 0.0)) for f, a in half.T)], key=sum)
        return worst

    @property
    def nearest(self) -> float:
        """The point nearest to 0 at which the CDF is asked for, as a part of the largest |eigenvalue|; inf without one."""
        return math.inf if self.cdf is None else min(map(abs, self.cdf[:-1]))


def due(steps: int, growth: float = GROWTH) -> bool:
    """Whether to look at the error after so many steps: a fixed sequence, so that a run that is resumed looks alike."""
    log = math.log(growth)
    return steps >= 4 and math.floor(math.log(steps) / log) > math.floor(math.log(steps - 1) / log)


def probes_needed(parts: tuple[float, float], have: int) -> float:
    """How many probes of this depth meet the tolerance: noise falls with the root of their number."""
    fixed, noise = parts
    return have * (noise / (1 - fixed)) ** 2 if fixed < 1 else math.inf


def rest(history: History, most: float = math.inf) -> float:
    """Products beyond the first probe's that meet the tolerance, of at most `most` probes; inf while truncation is too large.

    Other probes need the depth at which truncation first took its share, less what was found by then, and leave that share.
    """
    last, noise, found = history[max(history)]
    if last > SHARE:
        return math.inf
    enough = [steps - known for steps, (fixed, _, known) in history.items() if fixed <= SHARE]
    others = max(math.ceil(probes_needed((SHARE, noise), 1)) - 1, 1 if found else 0)  # found values need a second probe
    return min(others, most - 1) * max(min(enough), 1)


def first_is_deep_enough(history: History, budget: float, most: float) -> bool:
    """Whether the first probe, which finds what is deflated from all others, has cost as much as those will.

    More steps find more eigenvalues and save probes; how many nobody knows before. Stopping when both costs are equal makes at
    most twice the products of the best choice (the ski-rental argument). It also stops when a budget would not do after the next
    look and does now.
    """
    steps, others = max(history), rest(history, most)
    return steps >= others or steps + others <= budget < GROWTH * steps + others


def out_of_reach(history: History, budget: float) -> bool:
    """Whether a budget cannot meet the tolerance, as far as the first probe knows: by truncation or by noise.

    Truncation falls like one over the steps or faster, and two probes share the budget.
    """
    if not history or budget == math.inf:
        return False
    steps, others = max(history), rest(history)
    return 2 * history[steps][0] * steps > budget if others == math.inf else steps + others > budget


def first_has_its_share(history: History, budget: float) -> bool:
    """Whether the first probe should leave the rest of a budget to others, by what looks at it saw, in units of W1.

    At the latest when two probes would have equal depth beyond what was found; before, but not before FIRST of the budget, when
    the noise that the other probes will leave exceeds the truncation to be expected, and the last look has neither found another
    eigenvalue nor lowered the sum of both by a tenth.
    """
    seen = []
    for steps, (fixed, noise, found) in sorted(history.items()):
        free = max(steps - found, 1)
        fixed *= min(1.0, SMOOTH / free)
        noise /= math.sqrt(1 + max(budget - steps, 0) / free)
        seen.append((fixed + noise, fixed <= noise, found))
    steps, (_, _, found) = max(history.items())
    if 2 * steps - found >= budget:
        return True
    if len(seen) < 2 or steps < FIRST * budget:
        return False
    (before, _, known), (now, settled, _) = seen[-2:]
    return settled and found == known and now > 0.9 * before


def stalled(error: Mapping[str, float]) -> bool:
    """Whether truncation is down to what rounding leaves."""
    return error["truncation"] <= STALLED * error["rounding"]
