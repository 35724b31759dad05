"""The first sentence of a page: yes, no or undecided on data whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from spectral import slq
from spectral.analysis import summary
from spectral.analysis.theory import marchenko_pastur_cdf
from spectral.experiments.effects import SCALE, Row, Trend, refused, spearman_within
from spectral.pages import Curve, Numbers, verdict
from spectral.spectrum import Spectrum

RNG = np.random.default_rng(3)
ZERO = (0.0,) * 5
LABELS = {"m0": "first matrix", "m2": "third matrix", "effective_rank": "effective rank", "lambda_max": "λmax"}


def judged(rule: str, rows=(), metric: str = "effective_rank", labels=LABELS, **more):  # type: ignore[no-untyped-def]
    return verdict.RULES[rule](verdict.Evidence(rows, labels, metric, **more))


def row(number: int, true, random, *, metric: str = "effective_rank", **more) -> Row:
    zeros = (0.0,) * len(true)
    errors = {"true": zeros, "random": zeros}
    return Row(f"m{number}", metric, {"true": tuple(true), "random": tuple(random)}, errors, **more)


def around(mean: float, scatter: float = 1.0, seeds: int = 5) -> np.ndarray:
    return mean + scatter * np.linspace(-1, 1, seeds)


APART = [row(i, around(10), around(20) + i) for i in range(15)]
ODD = row(15, (1.0, 5.0, 3.0, 2.0, 9.0), (2.0, 4.0, 5.0, 1.0, 3.0))


# Two conditions ------------------------------------------------------------------------------------------------------
def test_yes_says_on_how_many_seeds_in_how_many_matrices_by_how_much_and_of_what() -> None:
    said = judged("compared", [*APART, ODD], about=verdict.scope([8970], "mlp on digits"))
    assert said.answer == "yes"
    assert said.sentence == (
        "Yes: the effective rank is smaller with true labels on all 5 seeds in 15 of 16 matrices, 10.00 ± 0.79 against "
        "20.00 ± 0.79 (mean ± sd) for the first matrix; one small network (mlp on digits, 8,970 parameters)."
    )


def test_larger_is_a_yes_too_and_is_said() -> None:
    rows = [row(i, around(20), around(10)) for i in range(3)]
    assert judged("compared", rows).sentence.startswith(
        "Yes: the effective rank is larger with true labels on all 5 seeds in 3 of 3 matrices, 20.00 ± 0.79 against"
    )


def test_no_where_the_seeds_disagree() -> None:
    said = judged("compared", [APART[0], ODD, ODD])
    assert said.answer == "no"
    assert said.sentence.startswith(
        "No: in 2 of 3 matrices the seeds do not agree on whether the effective rank is smaller or larger with true labels, "
        "4.0 ± 3.2 against 3.0 ± 1.6"  # of a matrix of which that holds
    )


def test_no_where_networks_are_equal() -> None:
    same = [row(i, around(10), around(10)) for i in range(3)]
    assert judged("compared", same).sentence.startswith("No: in 3 of 3 matrices the seeds do not agree on whether")


UNDECIDED: dict[str, tuple[list[Row], dict, str]] = {
    "one seed": ([row(i, (10.0,), (20.0,)) for i in range(4)], {}, "and one seed does not say how far seeds scatter"),
    "seeds that scatter": (
        [row(i, (1.0, 1.0, 1.0), (1.1, 2.0, 30.0)) for i in range(3)],
        {},
        "but the seeds scatter: the 95 % interval of the difference includes zero in 3 of these",
    ),
    "two seeds that disagree": (
        [row(0, (1.0, 3.0), (2.0, 2.0))],
        {},
        "but 2 seeds are too few to take that for an answer",
    ),
    "both directions": (
        [row(0, around(1), around(9)), row(1, around(9), around(1))],
        {},
        "on all 5 seeds in 1 of 2 matrices and larger in 1",
    ),
    "a large minority of the other direction": (
        [*(row(i, around(1), around(9)) for i in range(2)), row(2, around(9), around(1))],
        {},
        "in 2 of 3 matrices and larger in 1, 1.00 ± 0.79 against 9.00 ± 0.79 (mean ± sd) for the first matrix and "
        "9.00 ± 0.79 against 1.00 ± 0.79 (mean ± sd) for the third matrix, so that it",
    ),
    "networks that are not alike": (
        APART,
        {"missed": (2, 10)},
        "but 2 of 10 trained networks missed their target loss",
    ),
    "refused fits": (
        [row(i, around(1), around(9), refused={"true": (True, *[False] * 4)}) for i in range(3)],
        {},
        "the fits behind the effective rank were refused in 3 of 3 matrices",
    ),
    "fits that were refused and left no number": (
        [row(i, (math.nan,) * 5, around(9), refused={"true": (True,) * 5}) for i in range(3)],
        {},
        "the fits behind the effective rank were refused in 3 of 3 matrices",
    ),
    "nothing": ([], {}, "no matrix has the effective rank of both true and random labels"),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_undecided_says_why(name: str) -> None:
    rows, more, why = UNDECIDED[name]
    said = judged("compared", rows, **more)
    assert said.answer == "undecided" and said.sentence.startswith("Undecided: ") and why in said.sentence
    assert said.sentence.endswith(".") and "\n" not in said.sentence


def test_scale_never_answers_however_far_apart() -> None:
    rows = [row(i, around(10), around(2000), metric="trace") for i in range(16)]
    said = judged("compared", rows, "trace")
    assert (
        said.answer == "undecided"
        and "says how steep the network is, and nothing of what it has learnt" in said.sentence
    )


def test_a_refused_fit_supports_no_answer() -> None:
    """Half of the matrices agree with fits that hold; those that were refused do not make it more."""
    good = [row(i, around(1), around(9)) for i in range(2)]
    bad = [row(i, around(1), around(9), refused={"random": (True,) * 5}) for i in range(2, 4)]
    assert judged("compared", good).answer == "yes"
    assert judged("compared", good + bad).answer == "undecided"


def test_seeds_that_one_side_lacks_are_not_compared() -> None:
    rows = [row(0, (1.0, 2.0, 3.0, 4.0), (11.0, 12.5, math.nan, 14.0))]
    said = judged("compared", rows)
    assert said.answer == "yes" and "on all 3 seeds" in said.sentence


def test_luck_says_yes_in_at_most_one_run_of_ten() -> None:
    """Labels that mean nothing, with matrices that go together, go apart, or do not know of each other."""
    runs = 400
    for share in (0.0, 0.9, 1.0):
        yes = 0
        for _ in range(runs):
            common = RNG.standard_normal((2, 5))
            own = RNG.standard_normal((6, 2, 5))
            values = 10 + share * common + math.sqrt(1 - share**2) * own
            rows = [row(i, true, random) for i, (true, random) in enumerate(values)]
            yes += judged("compared", rows).answer == "yes"
        assert yes / runs <= 0.1


def test_the_interval_is_that_of_a_paired_test() -> None:
    for _ in range(200):
        true, random = RNG.standard_normal(6), 1 + RNG.standard_normal(6)
        way, apart = verdict._agreement(row(0, true, random))
        assert apart == (way in ("smaller", "larger") and ttest_rel(true, random).pvalue < 0.05)


# A swept axis --------------------------------------------------------------------------------------------------------
def trend(number: int, values, metric: str = "effective_rank") -> Trend:
    values = np.asarray(values, dtype=float)
    levels = np.arange(values.shape[1], dtype=float)
    rho, p = spearman_within(levels, values, draws=999)
    return Trend(f"m{number}", metric, tuple(levels), tuple(map(tuple, values)), rho, p)


def growing(slope: float, seeds: int = 3, levels: int = 6) -> np.ndarray:
    return 10 + slope * np.arange(levels) + 0.1 * RNG.standard_normal((seeds, levels))


FLAT = np.array([[1, 5, 2, 6, 3, 4], [4, 3, 6, 2, 5, 1], [3, 4, 1, 6, 2, 5]])
AXIS = {"axis": "with the noise", "ends": ("no noise", "all noise"), "expected": "moves"}


def followed(trends, metric: str = "effective_rank", **more):  # type: ignore[no-untyped-def]
    return judged("followed", more.pop("rows", ()), metric, trends=trends, **(AXIS | more))


def test_a_trend_that_is_there_is_a_yes_with_its_numbers() -> None:
    said = followed([trend(0, growing(2.0)), trend(1, growing(1.0))], about="one network")
    assert said.answer == "yes"
    assert said.sentence.startswith("Yes: the effective rank grows with the noise in 2 of 2 matrices, from ")
    assert "(no noise) to " in said.sentence and "(all noise, mean ± sd) for the first matrix" in said.sentence
    assert "Spearman's ρ 1.00, p = 0.001, 3 seeds" in said.sentence and said.sentence.endswith("; one network.")


def test_the_direction_that_was_expected_decides() -> None:
    up, down = [trend(0, growing(1.0))], [trend(0, growing(-1.0))]
    for trends, answer, way in ((up, "no", "grows"), (down, "yes", "falls")):
        said = followed(trends, expected="falls")
        assert said.answer == answer and f"the effective rank {way} with the noise" in said.sentence
    assert "ρ −1.00" in followed(down).sentence


def test_matrices_that_contradict_each_other_leave_it_undecided() -> None:
    """Two that fall a little and one that grows fourfold are no yes; one of five is."""
    falls, grows = [trend(i, growing(-1.0)) for i in range(4)], trend(9, growing(5.0))
    said = followed([*falls[:2], grows], expected="falls")
    assert said.answer == "undecided" and "grows with the noise in 1 and falls in 2 of 3 matrices" in said.sentence
    said = followed([*falls, grows], expected="falls")
    assert said.answer == "yes" and "falls with the noise in 4 of 5 matrices and grows in 1, from" in said.sentence


def test_no_needs_a_sweep_that_would_have_seen_a_trend() -> None:
    """Three seeds and six levels would have seen a rank correlation of 0.5; one seed and four levels would have missed 0.9."""
    assert trend(0, FLAT).p_value > 0.05
    said = followed([trend(0, FLAT)])
    assert said.answer == "no" and "has no steady trend with the noise in 1 of 1 matrix" in said.sentence
    said = followed([trend(0, FLAT[:1, :4])])
    assert said.answer == "undecided" and "do not say whether the effective rank moves" in said.sentence
    assert "from 1.000 (no noise) to 6.000 (all noise) for the first matrix" in said.sentence


def test_what_no_majority_does_is_counted() -> None:
    said = followed([trend(0, growing(-1.0)), trend(1, FLAT)])
    assert said.answer == "undecided"
    assert (
        "the effective rank, with the noise, falls in 1 and has no steady trend in 1 of 2 matrices, from"
        in said.sentence
    )
    unsure, fit = trend(2, FLAT[:1, :4]), row(3, around(1), around(9), refused={"true": (True, *[False] * 4)})
    said = followed([trend(0, growing(1.0)), trend(1, FLAT), unsure, trend(3, growing(1.0))], rows=[fit])
    assert "grows in 1, has no steady trend in 1 and cannot be told to move in 2 of 4 matrices" in said.sentence


def test_every_metric_that_was_asked_for_has_to_answer_alike() -> None:
    rank, other = trend(0, growing(1.0)), trend(0, FLAT, "own_label_alignment")
    said = followed([rank, other], asked=("own_label_alignment",))
    assert said.answer == "undecided" and ", and the own label alignment has no steady trend" in said.sentence
    with_it = followed([rank, trend(0, growing(-1), "own_label_alignment")], asked=("own_label_alignment",))
    assert with_it.answer == "yes" and "own label alignment falls" in with_it.sentence


def test_refused_fits_missed_targets_and_scale_leave_a_sweep_undecided() -> None:
    trends = [trend(0, growing(1.0))]
    fit = row(0, around(1), around(9), refused={"true": (True, *[False] * 4)})
    for more in ({"rows": [fit]}, {"missed": (1, 9)}):
        assert followed(trends, **more).answer == "undecided"
    assert followed([trend(0, growing(1.0), "trace")], "trace").answer == "undecided"
    assert followed([]).answer == "undecided"


def test_how_is_answered_with_what_was_found() -> None:
    trends = [trend(0, growing(-1.0)), trend(0, growing(3.0), "lambda_max")]
    said = followed(trends, axis="through training", ends=("after 0 epochs", "after 50 epochs"), expected="")
    assert said.answer == "found"
    assert said.sentence.startswith("The effective rank falls through training in 1 of 1 matrix, from ")
    assert "(after 0 epochs) to " in said.sentence and "(after 50 epochs, mean ± sd)" in said.sentence
    assert "while its λmax goes from " in said.sentence


# One matrix ----------------------------------------------------------------------------------------------------------
def test_a_spectrum_is_told_by_where_it_lies_and_what_carries_it() -> None:
    s = Spectrum.from_eigenvalues([4.0] * 3 + [1e-3], zeros=6)
    said = verdict.of_spectrum(s, summary(s), about="the network at initialisation")
    assert said.sentence == (
        "The 10 eigenvalues (6 of them zero by its shape) reach from 0 to 4 and count as 3.002 equal ones (effective rank); "
        "3 of them hold 90 % of their sum; all are exact; the network at initialisation."
    )


def test_an_estimate_says_what_is_bound_and_how_sure() -> None:
    values = np.append(np.linspace(-1, 1, 300), [30.0])
    s = slq(np.diag(values), probes=3, steps=20)
    sentence = verdict.of_spectrum(s, summary(s)).sentence
    assert (
        "reach from at most -" in sentence and " to 30 and" in sentence
    )  # the outlier is an atom, the other end is not
    assert "of the range (W1)" in sentence and "3 random vectors" in sentence and "Σ|λ|, negative ones" in sentence
    assert sentence.count("±") == 3


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, -0.0, 0.0]])
def test_a_zero_matrix_is_said_to_be_one(values) -> None:
    s = Spectrum.from_eigenvalues(values, zeros=2)
    assert verdict.of_spectrum(s, summary(s)).sentence == f"All {s.dim} eigenvalues are zero."


def numbers(kind: str, value, error, **about) -> Numbers:
    value, error = np.array(value, dtype=float), np.array(error, dtype=float)
    return Numbers(
        value, error, error <= 1e-8, {"kind": kind, "complete": True, "method": "xtrace", "products": 20, **about}
    )


def test_numbers_are_told_with_their_errors() -> None:
    said = verdict.of_numbers(numbers("trace", [8.0], [0.25]))
    assert said.sentence == "The trace is 8.00 ± 0.25 (one standard error; xtrace, 20 products)."
    assert verdict.of_numbers(numbers("trace", [8.0], [0.0])).sentence == "The trace is 8.000 exactly."
    said = verdict.of_numbers(numbers("eigenvalues", [9.0, 4.0, 1.0], [1e-9, 1e-10, 0.5], complete=False))
    assert said.sentence == (
        "The 2 largest eigenvalues are 9 to 4, each within 1e-09; 1 more has not converged; the search was cut off, and a better "
        "one may be missing."
    )
    said = verdict.of_numbers(numbers("singular values", [3.0], [0.0]), which="smallest")
    assert said.sentence == "The smallest singular value is 3, within 0."
    assert verdict.of_numbers(numbers("eigenvalues", [9.0], [1.0])).answer == "undecided"
    said = verdict.of_numbers(numbers("diagonal", [1.0, -2.0, 6.0], [0.0, 0.0, 0.0]))
    assert "reach from −2.000 (entry 1) to 6.000 (entry 2), their mean is 1.667; all are exact." in said.sentence
    said = verdict.of_numbers(numbers("diagonal", [1.0, -0.2, 6.0], [0.3, 0.3, 0.3]))
    assert said.sentence == (
        "Estimates of the 3 diagonal entries reach from −0.20 ± 0.30 (entry 1) to 6.00 ± 0.30 (entry 2), their mean is 2.267; "
        "one standard error each, which spreads the ends of so many."
    )


# What may be offered -------------------------------------------------------------------------------------------------
def test_scale_is_what_changes_when_the_matrix_is_multiplied_by_a_number() -> None:
    values = np.append(RNG.pareto(1.5, 3000) + 1, RNG.standard_normal(200))
    one, two = (summary(Spectrum.from_eigenvalues(c * values), top=10) for c in (1.0, 7.0))
    names = [name for name in one if not name.endswith("_stderr") and math.isfinite(one[name])]
    moved = {name for name in names if abs(one[name] - two[name]) > 1e-6 * abs(one[name])}
    assert moved <= SCALE
    assert {"trace", "lambda_max", "frobenius"} <= moved
    assert not {"effective_rank", "stable_rank", "top_c_energy", "alpha", "entropy", "gap"} & SCALE


def test_a_number_is_refused_with_the_fit_that_it_comes_from() -> None:
    assert refused("alpha", {"alpha": math.nan, "alpha_accepted": 0.0})
    assert refused("alpha_hat", {"alpha_accepted": 0.0}) and not refused("alpha_hat", {"alpha_accepted": 1.0})
    assert refused("mp_edge", {"mp_accepted": 0.0}) and not refused("mp_edge", {"alpha_accepted": 0.0})
    assert not refused("effective_rank", {"alpha_accepted": 0.0})


# Blocks ----------------------------------------------------------------------------------------------------------------
def blocks(gaps: dict[str, tuple[float, float]], js: tuple[float, float] | None = (0.4, 0.02)) -> list[Row]:
    """Rows of a Gauss-Newton matrix: {condition: (gap, error)}, and the unlikeness of its blocks."""

    def one(metric: str, numbers: dict[str, tuple[float, float]]) -> Row:
        values, errors = ({name: (pair[k],) for name, pair in numbers.items()} for k in (0, 1))
        return Row("gauss_newton.logits.train", metric, values, errors)

    return [one("block_gap", gaps)] + ([one("block_js", dict.fromkeys(gaps, js))] if js else [])


@pytest.mark.parametrize(
    ("gaps", "answer"),
    [
        ({"init": (0.8, 0.02), "true": (0.5, 0.1)}, "no"),
        ({"init": (0.8, 0.02), "true": (0.05, 0.01)}, "undecided"),  # one is block diagonal and one is not
        ({"init": (0.04, 0.02), "true": (0.05, 0.02)}, "yes"),
        ({"init": (0.2, 0.06)}, "undecided"),  # within two errors of a tenth
    ],
)
def test_a_block_gap_answers_where_its_error_lets_it(gaps, answer) -> None:
    found = judged(
        "of_blocks", blocks(gaps), labels={"init": "before training", "true": "after training"}, about="one network"
    )
    assert found.answer == answer
    assert found.sentence.startswith(f"{answer.capitalize()}: outside of the blocks lies")
    assert found.sentence.endswith("; one network.")
    for value, error in gaps.values():
        assert f"{value:.3f} ± {error:.3f}" in found.sentence or f"{value:.2f} ± {error:.2f}" in found.sentence
    assert "0.400 ± 0.020 before training" in found.sentence


@pytest.mark.parametrize(
    ("correlations", "accepted", "answer"),
    [
        ((0.6, 0.7, 0.65), 0.8, "yes"),
        ((0.1, -0.1, 0.05), 0.8, "no"),
        ((0.9, -0.5, 0.4), 0.8, "undecided"),  # the seeds scatter
        ((0.5, 0.7), 0.8, "undecided"),  # Student's interval of two is 12.7/√2 standard deviations: .6 ± 1.27
        ((0.6, 0.7, 0.65), 0.2, "undecided"),  # of exponents that were refused
    ],
)
def test_exponents_over_layers_answer_where_seeds_agree_and_tails_are_power_laws(
    correlations, accepted, answer
) -> None:
    numbers = {
        "alpha_correlation": correlations, "rank_correlation": (0.5,) * 3, "scale_correlation": (0.25,) * 3,
        "layers_accepted": (accepted,) * 3, "layers_data_accepted": (1.0,) * 3,
    }  # fmt: skip
    rows = [Row("layers.logits.train", k, {"true": v}, {"true": (0.0,) * len(v)}) for k, v in numbers.items()]
    found = judged("of_layers", rows, labels={"true": "true labels"}, about="three networks")
    assert found.answer == answer and found.sentence.startswith(
        f"{answer.capitalize()}: over layers, true labels, exponents"
    )
    assert f"{100 * accepted:.0f} % of the weights and 100 % of the blocks" in found.sentence
    assert found.sentence.endswith("; three networks.")


def test_unlikeness_is_left_out_where_it_is_not_known() -> None:
    assert "unlike" not in judged("of_blocks", blocks({"init": (0.8, 0.02)}, None)).sentence


# Noise, classes, negative curvature, single samples ------------------------------------------------------------------------
def of(metric: str, values: dict[str, tuple[float, ...]], matrix: str = "m0", errors: float = 0.0) -> Row:
    return Row(matrix, metric, values, {name: (errors,) * len(v) for name, v in values.items()})


@pytest.mark.parametrize(
    ("real", "gaussian", "answer"),
    [
        ((0.0, 0.0), (1.0, 1.0), "yes"),
        ((0.0, 0.0), (1.0, 0.0), "undecided"),
        ((0.0, 0.0), (0.0, 0.0), "no"),
        ((1.0, 1.0), (1.0, 1.0), "undecided"),  # it tells nothing apart
    ],
)
def test_noise_is_random_where_the_law_holds_for_it_alone(real, gaussian, answer) -> None:
    rows = [
        of("mp_accepted", {"real": real, "gaussian": gaussian}),
        of("mp_ks", {"real": (0.3, 0.4), "gaussian": (0.02, 0.04)}),
    ]
    x = np.linspace(0.25, 2.25, 20001)
    bulk = np.interp((np.arange(90) + 0.5) / 90, marchenko_pastur_cdf(x, 0.25), x)
    tails = {"gaussian": (10, 10), "real": (30, 60)}  # far above the edge
    curves = [
        Curve("m0", name, seed, Spectrum.from_eigenvalues(np.append(bulk, np.geomspace(50, 500, count))))
        for name, counts in tails.items()
        for seed, count in enumerate(counts)
    ]
    said = judged("of_noise", rows, about="one network", curves=curves)
    assert (
        "holds 90.00 % of the eigenvalues with Gaussian and 68 ± 11 % with real inputs, and that bulk's CDF"
        in said.sentence
    )
    assert said.answer == answer and said.sentence.endswith("(mean ± sd) for the first matrix; one network.")
    assert (
        f"the law holds in {sum(gaussian):.0f} of 2 spectra with Gaussian inputs and in {sum(real):.0f} of 2"
        in said.sentence
    )
    assert "away with Gaussian and 0.350 ± 0.071 with real inputs" in said.sentence
    assert judged("of_noise", rows, missed=(1, 4), curves=curves).answer == "undecided"
    assert judged("of_noise", []).answer == "undecided"


CLASSES = {"init3": 3, "init4": 4, "classes3": 3, "classes4": 4}


@pytest.mark.parametrize(
    ("three", "four", "answer", "said"),
    [
        (
            (2, 3),
            (3, 4),
            "yes",
            "C − 1 eigenvalues stand apart in 2 and C in 2 of 4 spectra after training, C from 3 to 4;",
        ),
        (
            (6, 6),
            (12, 3),
            "no",
            "stand apart in 1 and C in 0 of 4 spectra after training, C from 3 to 4 (else 6 for 3 classes, 12 for",
        ),
        ((2, 5), (3, 9), "undecided", "in 2 and C in 0 of 4"),
        (
            (math.nan, math.nan),
            (3, math.nan),
            "undecided",
            "in 1 and C in 0 of 4 spectra after training, C from 3 to 4, and 3 cannot tell",
        ),
    ],
)
def test_outliers_are_counted_against_the_classes(three, four, answer, said) -> None:
    rows = [of("outliers", {"init3": (6.0, 3.0), "init4": (12.0, 12.0), "classes3": three, "classes4": four})]
    found = judged("of_classes", rows, classes=CLASSES, trained=("classes3", "classes4"))
    assert found.answer == answer and said in found.sentence
    assert "before training C (C − 1) in 3 and C in 1 of 4" in found.sentence
    assert judged("of_classes", rows, classes=CLASSES, trained=("classes3",), missed=(1, 2)).answer == "undecided"


def index(curves: list[Curve]):  # type: ignore[no-untyped-def]
    return judged("of_index", labels={}, curves=curves, trained=["true"])


def hessian(condition: str, seed: int, values) -> Curve:
    return Curve("hessian", condition, seed, Spectrum.from_eigenvalues(np.asarray(values, dtype=float)))


def test_a_minimum_has_no_negative_curvature_and_a_saddle_has_some_in_every_network() -> None:
    saddle, bowl = [-1.0, 1.0, 2.0, 4.0], [0.0, 1.0, 2.0, 4.0]
    start = hessian("init", 0, [-4.0, -4.0, 4.0, 4.0])
    said = index([start, hessian("true", 0, saddle), hessian("true", 1, saddle)])
    assert said.answer == "no"
    assert said.sentence == (
        "No: true, 1 of 4 eigenvalues are negative and hold 12.50 % (mean ± sd) of Σ|λ|; "
        "init, 2 of 4 eigenvalues are negative and hold 50.00 % of Σ|λ|."
    )
    assert index([start, hessian("true", 0, bowl)]).answer == "yes"
    assert index([hessian("true", 0, bowl), hessian("true", 1, saddle)]).answer == "undecided"
    assert index([start]).answer == "undecided"


def test_an_estimated_index_says_its_interval_and_decides_by_it() -> None:
    """Three of 300 eigenvalues are negative and far from 0: found. One of 3000 just below 0: 40 products cannot say."""
    clear = slq(np.diag(np.append(np.linspace(1, 2, 297), [-5.0, -6.0, -7.0])), probes=3, steps=40)
    said = index([Curve("hessian", "true", 0, clear)])
    assert said.answer == "no" and "true, 1 %" in said.sentence
    hidden = slq(np.diag(np.append(np.geomspace(1e-9, 1, 2999), -1e-9)), probes=2, steps=20)
    said = index([Curve("hessian", "true", 0, hidden)])
    assert said.answer == "undecided" and "(95 %: 0 to " in said.sentence


def diagonal(probs: float, logits: float, overlap: float, split: str = "test") -> list[Row]:
    shift = 0.01 * np.arange(3)
    return [
        of("gini", {"true": tuple(probs + shift)}, f"diagonal.probs.{split}"),
        of("gini", {"true": tuple(logits - shift)}, f"diagonal.logits.{split}"),
        of("max_over_mean", {"true": (20.0, 21.0, 22.0)}, f"diagonal.probs.{split}"),
        of("prototype_overlap", {"true": (overlap,) * 3}, f"diagonal.probs.{split}", 0.04),
    ]


def test_prototypes_are_shared_beyond_chance_and_the_tail_heavier_than_that_of_the_logits() -> None:
    sizes = dict.fromkeys(("diagonal.probs.test", "diagonal.probs.train"), 300)

    def answer(*rows: Row) -> str:
        return judged("of_prototypes", rows, sizes=sizes).answer

    good, alone, even = diagonal(0.8, 0.2, 0.5), diagonal(0.8, 0.2, 0.12), diagonal(0.2, 0.2, 0.5)
    assert (answer(*good), answer(*alone), answer(*even)) == ("yes", "no", "no")
    assert answer(*good, *diagonal(0.8, 0.2, 0.12, "train")) == "undecided"
    said = judged("of_prototypes", good, sizes=sizes).sentence
    assert "Gini coefficient 0.810 ± 0.010 (logits: 0.190 ± 0.010), and 50 % of the tenth" in said
    assert said.endswith(
        "of which chance gives 10.0 ± 3.3 %."
    )  # 0.04 over three seeds, that is three pairs of which each counts twice
    assert answer(*good[:3]) == "undecided"  # one seed


def test_labels_in_the_information_space_are_those_of_the_rule_if_they_are_the_more() -> None:
    def rows(true: float, random: float) -> list[Row]:
        shift = 0.01 * np.arange(5)
        held = of("own_information_alignment", {"true": tuple(true + shift), "random": tuple(random + 0.5 * shift)})
        return [held, of("information_dimension", {"true": (10.0,) * 5, "random": (30.0,) * 5})]

    said = judged("of_information", rows(0.6, 0.1), sizes={"m0": 100}, about="one network")
    assert said.answer == "yes" and "is larger with true labels on all 5 seeds in 1 of 1 matrix" in said.sentence
    assert said.sentence.endswith(
        "; inside are the directions that hold 90 % of the trace, where labels that know nothing of them have, with true and "
        "with random labels, 0.1 and 0.3 for the first matrix; one network."
    )
    assert judged("of_information", rows(0.1, 0.6), sizes={"m0": 100}).answer == "no"
