"""The answer to the question of a run, in one sentence made of the numbers that it found.

A yes needs more than half of the matrices, each by its own test at the level of 5 %: by Markov's inequality that happens by
luck in at most one run of ten, however the matrices depend on each other. The metric is the one that the configuration
names beforehand, never the one that came out best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from scipy.special import stdtrit

from spectral.analysis import marchenko_pastur
from spectral.cards import with_error
from spectral.estimators.functionals import negative_mass
from spectral.experiments.effects import SCALE, Trend, mean_and_error
from spectral.experiments.prose import prose, say
from spectral.spectrum import Spectrum

from . import Curve, Numbers, Row, Verdict, conditions_of
from .tables import matrices, words

TEXTS = prose(__file__)
LEVEL = 0.05  # of the test of each matrix
SEEN = 0.7  # a rank correlation that a sweep must have been able to see before "no" may be said of it
CONTRARY = 0.25  # of the matrices: with so many that say the opposite, the answer depends on the matrix
SMALL = 1_000_000  # parameters of a small network
NEARLY = 0.1  # a block gap below which a matrix is called block diagonal: 1 % of its squared norm lies outside
OPPOSITE = {"smaller": "larger", "larger": "smaller"}


def scope(networks: Sequence[int], what: str) -> str:
    """How much the answer is an answer of: networks by their numbers of parameters, and what they are of.

    >>> scope([8970], "mlp on digits"), scope([4810, 21450], "mlp on digits")
    ('one small network (mlp on digits, 8,970 parameters)', '2 small networks (mlp on digits, 4,810 to 21,450 parameters)')
    """
    sizes = list(dict.fromkeys(f"{size:,}" for size in sorted(networks)))
    return say(TEXTS["scope"], count=len(networks), small=max(networks) < SMALL, what=what, sizes=sizes)


@dataclass(frozen=True)
class Evidence:
    """What an experiment has found, for the rule that answers; each rule looks at its part of it.

    `metric` is the one that the configuration names, `asked` are those that the question names beside it, `expected` is that of
    `Experiment`. `labels` are names in words, `about` says how much the answer is an answer of (`scope`), `missed` (of all)
    trained networks missed their target loss. `trained` are the conditions that were trained, `classes` the numbers of classes of
    conditions, `sizes` those of the eigenvalues of matrices. `trends` run along `axis` from the first of `ends` to the last.
    """

    rows: Sequence[Row] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    metric: str = ""
    asked: Sequence[str] = ()
    expected: str = ""
    about: str = ""
    missed: tuple[int, int] = (0, 0)
    curves: Sequence[Curve] = ()
    trained: Sequence[str] = ()
    classes: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    trends: Sequence[Trend] = ()
    axis: str = ""
    ends: tuple[str, str] = ("", "")

    def words(self, name: str) -> str:
        return words(name, self.labels)

    def row(self, matrix: str, metric: str) -> Row | None:
        return next((row for row in self.rows if (row.matrix, row.metric) == (matrix, metric)), None)

    def says(self, answer: str, body: str) -> Verdict:
        """The answer with its reasons, and of how much it is one."""
        head = f"{body[0].upper()}{body[1:]}" if answer == "found" else f"{answer.capitalize()}: {body}"
        return Verdict.of(answer, head, self.about)

    def judges(self, answer: str, body: str) -> Verdict:
        """The same, undecided where networks missed their target loss."""
        why = self.doubt()
        return self.says("undecided", f"{body}, {why}") if why else self.says(answer, body)

    def doubt(self, metric: str = "", seeds: int = 2) -> str:
        """Why the numbers cannot answer, whatever they are; "" where they can."""
        why = "scale" if metric in SCALE else "missed" if self.missed[0] else "one seed" if seeds < 2 else ""
        return say(TEXTS["doubts"][why], e=self, metric=metric) if why else ""


# Two conditions ------------------------------------------------------------------------------------------------------
def compared(e: Evidence) -> Verdict:
    """Whether the metric tells the networks of true labels from those of random labels, seed by seed, over all matrices.

    Yes: on more than half of the matrices all seeds agree on the sign of the difference, the same sign, and Student's 95 %
    interval of the mean difference excludes zero, and fewer than a quarter have the other sign. No: on more than half of them
    three seeds or more disagree on the sign, or where "smaller" or "larger" is expected, is the other sign. Undecided otherwise,
    for a metric of scale, where fits were refused, and where networks missed their target loss. The numbers are those of the
    first row that does what is said, and where too many have the other sign those of the first of these.
    """
    name = e.words(e.metric)
    both = [row for row in e.rows if row.metric == e.metric and {"true", "random"} <= set(row.values)]
    own = [row for row in both if len(_differences(row)) or row.doubted("true", "random")[0]]
    if not own:
        return Verdict("undecided", f"Undecided: no matrix has the {name} of both true and random labels.")
    agreed = [_agreement(row) for row in own]
    ways = [way for way, _ in agreed]
    seen = [len(_differences(row)) for row, way in zip(own, ways, strict=True) if way != "refused"] or [0]
    lead = max(("smaller", "larger"), key=ways.count)
    against, refused, sure = ways.count(OPPOSITE[lead]), ways.count("refused"), agreed.count((lead, True))
    if 2 * (len(own) - refused) <= len(own):
        return e.says("undecided", f"the fits behind the {name} were refused in {refused} of {matrices(len(own))}")
    contrary, disagree = against >= CONTRARY * len(own), 2 * ways.count("mixed") > len(own)
    doubt, answer = e.doubt(e.metric, min(seen)), "undecided"
    if not doubt and 2 * sure > len(own) and not contrary:
        answer = "yes" if e.expected in ("", lead) else "no"
    elif not doubt and disagree and min(seen) > 2:
        answer = "no"
    shown = "mixed" if disagree else lead
    quoted = [_quoted(own[ways.index(shown)] if shown in ways else own[0], e)]
    quoted += [_quoted(own[ways.index(OPPOSITE[lead])], e)] if contrary else []
    told = {"name": name, "ways": ways, "lead": lead, "other": OPPOSITE[lead], "sure": sure, "seeds": seen}
    told |= {"answer": answer, "contrary": contrary, "disagree": disagree, "doubt": doubt, "quoted": quoted}
    return e.says(answer, say(TEXTS["compared"], matrices=matrices, **told))


def _differences(row: Row) -> np.ndarray:
    """True minus random, (seeds,), where both are known."""
    pairs = zip(row.values["true"], row.values["random"], strict=True)
    return np.array([t - r for t, r in pairs if math.isfinite(t) and math.isfinite(r)])


def _agreement(row: Row) -> tuple[str, bool]:
    """("smaller", "larger", "mixed" or "refused"; whether the interval of the mean difference excludes zero)."""
    return ("refused", False) if row.doubted("true", "random")[0] else _sign(_differences(row))


def _sign(d: np.ndarray) -> tuple[str, bool]:
    """The same of differences, one a seed."""
    if not len(d) or not ((d < 0).all() or (d > 0).all()):
        return "mixed", False
    return "smaller" if d[0] < 0 else "larger", len(d) > 1 and abs(float(d.mean())) > _half(d)


def _half(d: np.ndarray) -> float:
    """Half of Student's interval of the mean of numbers, one a seed, at `LEVEL`."""
    return float(stdtrit(len(d) - 1, 1 - LEVEL / 2)) * float(d.std(ddof=1)) / math.sqrt(len(d))


def _mean_and_half(row: Row, name: str) -> tuple[float, float]:
    """The mean over seeds and `_half` of them; of a single seed twice its own error."""
    value, error = row.mean(name)
    known = np.array([v for v in row.values[name] if math.isfinite(v)])
    return value, _half(known) if len(known) > 1 else 2 * error


def _quoted(row: Row, e: Evidence) -> str:
    """Both numbers of a row, and of what they are."""
    sides = [with_error(*row.mean(name)) for name in ("true", "random")]
    spread = " (mean ± sd)" if len(row.values["true"]) > 1 else ""
    return f"{sides[0]} against {sides[1]}{spread} for the {e.words(row.matrix)}"


# A swept axis --------------------------------------------------------------------------------------------------------
def followed(e: Evidence) -> Verdict:
    """Whether the metric, and those asked beside it, move with the levels of a sweep, over all matrices.

    A trend counts where its permutation test is below 5 %; it is ruled out where the test is not, although a rank
    correlation of 0.7 would have been seen (1.96 / sqrt(seeds (levels - 1)) is below that). More than half of the matrices
    decide for each metric, if fewer than a quarter say the opposite; where fits were refused, a matrix counts for nothing.
    """
    names = [e.metric, *(name for name in e.asked if any(t.metric == name for t in e.trends) and name != e.metric)]
    own = {name: [t for t in e.trends if t.metric == name and math.isfinite(t.rho)] for name in names}
    if not own[e.metric]:
        return Verdict("undecided", f"Undecided: no matrix has the {e.words(e.metric)} at three levels or more.")
    refused = {(row.matrix, row.metric) for row in e.rows if row.doubted()[0]}
    kinds = {name: ["open" if (t.matrix, name) in refused else _kind(t) for t in own[name]] for name in names}
    ways = {name: _way(of_each) for name, of_each in kinds.items()}
    body = ", and ".join(_clause(own[name], kinds[name], ways[name], e, first=name == e.metric) for name in names)
    if not e.expected:
        return e.says("found", body + _scale_clause(own[e.metric][0], e))
    if doubt := e.doubt(e.metric):
        return e.says("undecided", f"{body}, {doubt}")
    answers = {_answer(way, e.expected) for way in ways.values()}
    return e.says(answers.pop() if len(answers) == 1 else "undecided", body)


def _kind(t: Trend) -> str:
    """ "grows" or "falls", "flat" where a trend would have been seen, "open" where it would not."""
    if t.p_value <= LEVEL:
        return "grows" if t.rho > 0 else "falls"
    seeds, levels = len(t.values), len(t.levels)
    return "flat" if 1.96 / math.sqrt(seeds * (levels - 1)) <= SEEN else "open"


def _way(kinds: Sequence[str]) -> str:
    """What more than half of the matrices do, else "mixed"; "split" where too many do the opposite."""
    way = next((kind for kind in dict.fromkeys(kinds) if 2 * kinds.count(kind) > len(kinds)), "mixed")
    fewer = min(kinds.count("grows"), kinds.count("falls"))
    return "split" if fewer >= CONTRARY * len(kinds) else way


def _answer(way: str, expected: str) -> str:
    if way in ("open", "split", "mixed"):
        return "undecided"
    return "yes" if way == expected or (expected == "moves" and way != "flat") else "no"


def _clause(trends: Sequence[Trend], kinds: Sequence[str], way: str, e: Evidence, first: bool) -> str:
    """What one metric does along the axis, with the numbers of the first matrix that does it; the first says what the others
    leave out."""
    alike = [t for t, kind in zip(trends, kinds, strict=True) if kind == way] or trends
    ends = _ends(alike[0])
    return say(
        TEXTS["trend"], e=e, first=first, way=way, kinds=kinds, alike=alike, t=alike[0], ends=ends, matrices=matrices
    )


def _scale_clause(shown: Trend, e: Evidence) -> str:
    """How the largest eigenvalue of the same matrix goes along: of interest, but no answer."""
    largest = next((t for t in e.trends if (t.matrix, t.metric) == (shown.matrix, "lambda_max")), None)
    return f", while its {e.words('lambda_max')} goes from {' to '.join(_ends(largest))}" if largest else ""


def _ends(t: Trend) -> tuple[str, str]:
    """What a trend goes from and to: means over seeds with their standard deviations, of one seed the numbers alone."""
    columns = [[row[place] for row in t.values] for place in (0, -1)]
    first, last = (with_error(*mean_and_error(column, (0.0,) * len(column))) for column in columns)
    return first, last


# Blocks and layers ---------------------------------------------------------------------------------------------------
def of_blocks(e: Evidence) -> Verdict:
    """Whether matrices are block diagonal, and how unlike their blocks are.

    No: each gap is above `NEARLY` by more than Student's 95 % interval over seeds (of a single one, twice its error); yes: each
    is below it by so much; undecided otherwise.
    """
    gaps = [(row, *_mean_and_half(row, name)) for row in e.rows if row.metric == "block_gap" for name in row.values]
    answers = {"no" if v - half > NEARLY else "yes" if v + half < NEARLY else "undecided" for _, v, half in gaps}

    def said(row: Row) -> str:
        return " and ".join(f"{with_error(*row.mean(name))} {e.words(name)}" for name in row.values)

    outside = {row.matrix: f"{said(row)} for the {e.words(row.matrix)}" for row, *_ in gaps}
    alike = next((row for row in e.rows if row.metric == "block_js" and row.matrix in outside), None)
    text = say(TEXTS["blocks"], e=e, said=said, outside="; ".join(outside.values()), alike=alike)
    return e.says(answers.pop() if len(answers) == 1 else "undecided", text)


def of_layers(e: Evidence) -> Verdict:
    """Whether exponents of weights go with those of the curvature, over layers, after training on true labels.

    Yes: the correlation is above 0 by more than Student's 95 % interval over seeds; no: it is not, and below `SEEN` by so much;
    undecided otherwise, and where fewer than half of the exponents are of tails that pass for power laws.
    """
    shown = {row.metric: row for row in e.rows if row.metric.endswith(("_correlation", "accepted"))}
    name = "true" if "true" in shown["alpha_correlation"].values else next(iter(shown["alpha_correlation"].values))
    value, half = _mean_and_half(shown["alpha_correlation"], name)
    said = {metric: with_error(*row.mean(name)) for metric, row in shown.items() if name in row.values}
    weights, blocks = (100 * shown[metric].mean(name)[0] for metric in ("layers_accepted", "layers_data_accepted"))
    answer = "yes" if value - half > 0 else "no" if value + half < SEEN else "undecided"
    text = say(TEXTS["layers"], e=e, name=name, said=said, weights=weights, blocks=blocks)
    return e.says("undecided" if min(weights, blocks) < 50 else answer, text)


# Noise for inputs ----------------------------------------------------------------------------------------------------
def of_noise(e: Evidence) -> Verdict:
    """Whether Marchenko and Pastur's law holds for networks with Gaussian inputs.

    Yes: it is accepted in more than half of their spectra, over matrices and seeds, and in fewer than half of those with real
    inputs. No: it is refused in more than half of theirs. Undecided otherwise, and where networks missed their target loss.
    """
    verdicts = [row.values for row in e.rows if row.metric == "mp_accepted"]
    ours, theirs = ([v for values in verdicts for v in values.get(name, ())] for name in ("gaussian", "real"))
    if not ours:
        return Verdict("undecided", "Undecided: no spectrum of a network with Gaussian inputs has a bulk to look at.")
    accepted, answer = int(sum(ours)), "undecided"
    if 2 * accepted > len(ours) and 2 * sum(theirs) < max(len(theirs), 1):
        answer = "yes"
    elif 2 * accepted < len(ours):
        answer = "no"
    row = next((row for row in e.rows if row.metric == "mp_ks" and {"real", "gaussian"} <= set(row.values)), None)
    bulk = partial(_in_the_bulk, e, "" if row is None else row.matrix)  # the distance is theirs alone
    body = say(TEXTS["noise"], e=e, accepted=accepted, ours=ours, theirs=theirs, row=row, bulk=bulk)
    return e.judges(answer, body)


def _in_the_bulk(e: Evidence, matrix: str, condition: str) -> tuple[float, float]:
    """Percent of the eigenvalues that the law nearest to the spectra is fitted to, over seeds."""
    own = [c.spectrum for c in e.curves if (c.matrix, c.condition) == (matrix, condition)]
    parts = [100 * marchenko_pastur(spectrum).bulk / spectrum.dim for spectrum in own]
    return mean_and_error(parts, (math.nan,) * len(parts))


# Classes -------------------------------------------------------------------------------------------------------------
def of_classes(e: Evidence) -> Verdict:
    """Whether trained networks of C classes have C − 1 or C outliers.

    Yes: more than half of all their spectra have so many; no: more than half have another number; undecided otherwise, as where
    the spectra cannot tell, and where networks missed their target loss.
    """
    rows = [row for row in e.rows if row.metric == "outliers"]
    after: list[tuple[float, int]] = []
    before: list[tuple[float, int]] = []
    for name, C in e.classes.items():
        counts = [v for row in rows for v in row.values.get(name, (math.nan,))]
        (after if name in e.trained else before).extend((v, C) for v in counts)
    if not after:
        return Verdict("undecided", "Undecided: no trained network has a curvature to look at.")

    def share(pairs: list[tuple[float, int]], wanted: Callable[[int], int]) -> int:
        return sum(v == wanted(c) for v, c in pairs)

    one_less, one_each = share(after, lambda c: c - 1), share(after, lambda c: c)
    unknown = sum(not math.isfinite(v) for v, _ in after)
    unlike = sorted({(c, v) for v, c in after if math.isfinite(v) and v not in (c - 1, c)})
    others = [f"{v:.0f} for {c} classes" for c, v in unlike]
    fits = one_less + one_each
    answer = "yes" if 2 * fits > len(after) else "no" if 2 * (len(after) - fits - unknown) > len(after) else "undecided"
    late = {"one_less": one_less, "one_each": one_each, "others": others, "unknown": unknown}
    early = {"pairs": share(before, lambda c: c * (c - 1)), "each": share(before, lambda c: c)}
    body = say(TEXTS["classes"], e=e, after=after, before=before, **late, **early)
    return e.judges(answer, body)


# Negative curvature --------------------------------------------------------------------------------------------------
def of_index(e: Evidence) -> Verdict:
    """Whether the Hessians of trained networks have no negative eigenvalue.

    No: the 95 % interval of their number lies above 0 in every one; yes: it is 0 alone in every one; undecided otherwise,
    and where networks missed their target loss. Intervals are those of `negative_mass`; exact eigenvalues are counted.
    """
    groups = {name: [c.spectrum for c in e.curves if c.condition == name] for name in conditions_of(e.curves)}
    parts = {name: [negative_mass(spectrum) for spectrum in own] for name, own in groups.items()}
    after = [part.fraction for name in e.trained for part in parts.get(name, [])]
    if not after:
        return Verdict("undecided", "Undecided: no trained network has a Hessian to look at.")
    answer = "no" if all(f.lower > 0 for f in after) else "yes" if all(f.upper <= 0 for f in after) else "undecided"

    def said(name: str) -> str:
        mass = mean_and_error(*zip(*((100 * p.mass.value, 100 * p.mass.stderr) for p in parts[name]), strict=True))
        dims = {s.dim for s in groups[name]}
        n = dims.pop() if len(dims) == 1 and all(s.is_exact for s in groups[name]) else 0  # 0: in percent
        return say(TEXTS["index"], words=e.words(name), n=n, found=[p.fraction for p in parts[name]], mass=mass)

    order = [*e.trained, *(name for name in parts if name not in e.trained)]
    return e.judges(answer, "; ".join(said(name) for name in order if parts.get(name)))


# Single samples ------------------------------------------------------------------------------------------------------
def of_prototypes(e: Evidence) -> Verdict:
    """Whether the diagonal of the probabilities is more unequal than that of the logits, and its largest samples are shared.

    Of networks trained on true labels, split by split: unequal where the Gini coefficient of the probabilities is above that of
    the logits on all seeds and Student's 95 % interval of the mean difference excludes zero; shared where the overlap of the
    largest tenth exceeds chance by 3 standard deviations. Yes: both on every split; no: on every split one of them fails;
    undecided otherwise, and where networks missed their target loss.
    """
    known = {(row.matrix, row.metric): row for row in e.rows if "true" in row.values}
    splits = [matrix for matrix, metric in known if metric == "prototype_overlap" and ".probs." in matrix]
    if not splits:
        return Verdict("undecided", "Undecided: fewer than two seeds share samples, so that nothing can be compared.")
    both = []
    for matrix in splits:
        other = known.get((matrix.replace(".probs.", ".logits."), "gini"))
        own, overlap = known[matrix, "gini"], known[matrix, "prototype_overlap"]
        d = np.array([]) if other is None else np.array(own.values["true"]) - np.array(other.values["true"])
        chance, sd = _chance(overlap, e.sizes[matrix])
        both.append((_sign(d) == ("larger", True), bool(np.mean(overlap.values["true"]) > chance + 3 * sd)))
    answer = "yes" if all(map(all, both)) else "undecided" if any(map(all, both)) else "no"
    first = splits[0]
    known_of = {metric: known[first, metric].mean("true") for metric in ("max_over_mean", "gini", "prototype_overlap")}
    known_of["chance"] = _chance(known[first, "prototype_overlap"], e.sizes[first])
    logits = known.get((first.replace(".probs.", ".logits."), "gini"))
    body = say(TEXTS["prototypes"], e=e, matrix=first, logits=logits, both=both, **known_of)
    return e.judges(answer, body)


def _chance(overlap: Row, n: int) -> tuple[float, float]:
    """What chance gives of a tenth of n samples, and its standard deviation: each pair of seeds is in the mean twice."""
    return max(1, round(n / 10)) / n, overlap.errors["true"][0] * math.sqrt(2 / len(overlap.values["true"]))


def of_information(e: Evidence) -> Verdict:
    """Whether labels lie in the information space more if they are true, by `compared`, and what chance would give.

    A space of r of n directions holds r/n of labels that know nothing of it.
    """
    said = []
    for row in e.rows:
        space = e.row(row.matrix, "information_dimension")
        if row.metric == "own_information_alignment" and {"true", "random"} <= set(row.values) and space is not None:
            chance = [f"{space.mean(name)[0] / e.sizes[row.matrix]:.2g}" for name in ("true", "random")]
            said.append(f"{' and '.join(chance)} for the {e.words(row.matrix)}")
    clause = say(TEXTS["information"], said=said) if said else ""
    about = "; ".join(text for text in (clause, e.about) if text)
    return compared(replace(e, metric="own_information_alignment", expected="larger", about=about))


RULES: dict[str, Callable[[Evidence], Verdict]] = {
    rule.__name__: rule
    for rule in (
        compared, followed, of_blocks, of_layers, of_noise, of_classes, of_index, of_prototypes, of_information,
    )
}  # fmt: skip


# One matrix ----------------------------------------------------------------------------------------------------------
def of_spectrum(spectrum: Spectrum, numbers: Mapping[str, float], *, about: str = "") -> Verdict:
    """What one spectrum looks like: where it lies, how many eigenvalues carry it, how sure that is."""

    def said(name: str, factor: float = 1.0) -> str:
        value, error = numbers.get(name, math.nan), numbers.get(f"{name}_stderr", math.nan)
        whole = error == 0 and math.isfinite(value) and value == round(value)
        return f"{value:.0f}" if whole and factor == 1 else with_error(factor * value, factor * error)

    if not spectrum.scale > spectrum.value_error:
        return Verdict.of("found", say(TEXTS["zero"], s=spectrum), about)
    ends = [0.0 if abs(x) <= max(spectrum.value_error, 1e-15 * spectrum.scale) else x for x in spectrum.interval]
    known = [len(spectrum.atoms.values) and spectrum.atoms.values[i] for i in (0, -1)]
    bounds = [not (spectrum.is_exact or k == x) for k, x in zip(known, spectrum.interval, strict=True)]
    negative = ends[0] < 0 and math.isfinite(numbers.get("negative_mass", math.nan))
    facts = {"s": spectrum, "ends": ends, "bounds": bounds, "number": said, "negative": negative}
    text = TEXTS["one" if spectrum.dim == 1 else "spectrum"] + "; " + TEXTS["sure"]
    return Verdict.of("found", say(text, **facts), about)


def of_numbers(given: Numbers, *, which: str = "largest", about: str = "") -> Verdict:
    """What `top`, `svd`, `trace` or `diagonal` gives, with its error."""
    known = given.converged | (given.kind in TEXTS["numbers"])  # what is no pair converges to nothing
    facts = {"v": given.value[known], "e": given.error[known], "about": given.about, "exact": not given.error.any()}
    facts |= {"which": which, "one": given.kind.removesuffix("s"), "missing": int((~known).sum())}
    text = say(TEXTS["numbers"].get(given.kind, TEXTS["numbers"]["pairs"]), **facts)
    return Verdict.of("found" if known.any() else "undecided", text, about)
