"""Outliers are counted where theory or training puts them, none where chance does, and a quadrature that cannot tell says so."""

import re

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

import spectral
from spectral import Spectrum, outliers
from spectral.analysis import theory

LOSS = nn.CrossEntropyLoss()


def of(values):
    return outliers(Spectrum.from_eigenvalues(np.asarray(values, dtype=np.float64)))


def quadrature(values, **options):
    return spectral.slq(scipy.sparse.diags(np.asarray(values)), **options)


def softmax_at_zero(classes, means, d=64, per=30):
    """(model, data) of a linear classifier with W = 0: its Gauss–Newton matrix is (XᵀX/n) ⊗ (I/C − 11ᵀ/C²)."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.standard_normal((means, d))[np.arange(classes) % means]
    labels = np.repeat(np.arange(classes), per)
    X = centres[labels] + rng.standard_normal((len(labels), d))
    model = nn.Linear(d, classes, bias=False).double()
    nn.init.zeros_(model.weight)
    return model, [(torch.tensor(X), torch.tensor(labels))]


def trained(classes, seed, width, per):
    """(model, data): a small network, trained on `classes` kinds of digits to a cross entropy of .1."""
    X, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(10)[:classes]
    rows = np.concatenate([rng.permutation(np.flatnonzero(y == kind))[:per] for kind in kinds])
    x, labels = torch.tensor(X[rows] / 16.0), torch.tensor(np.repeat(np.arange(classes), per))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes)).double()
    steps = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(500):
        steps.zero_grad()
        loss = LOSS(model(x), labels)
        loss.backward()
        steps.step()
        if loss.item() < 0.1:
            break
    return model, [(x, labels)]


# What theory says -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("classes", [3, 4, 10])
def test_a_softmax_at_zero_has_an_outlier_less_than_classes(classes):
    """XᵀX/n has one large eigenvalue, of the common mean; I/C − 11ᵀ/C² is 1/C on C − 1 directions."""
    model, data = softmax_at_zero(classes, means=1)
    found = outliers(spectral.exact(spectral.GaussNewton(model, LOSS, data)))
    X = data[0][0].numpy()
    law = np.linalg.eigvalsh(X.T @ X / len(X))[::-1] / classes
    assert found.accepted and found.count == classes - 1
    assert found.values == pytest.approx(np.full(classes - 1, law[0]))
    assert (found.edge, found.gap) == pytest.approx((law[1], law[0] / law[1]))


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_tight_clusters_have_one_for_each_pair_of_classes(classes):
    """The C means are C large eigenvalues of XᵀX/n: C (C − 1) outliers."""
    model, data = softmax_at_zero(classes, means=classes)
    assert outliers(spectral.exact(spectral.GaussNewton(model, LOSS, data))).count == classes * (classes - 1)


def test_spikes_above_a_marchenko_pastur_bulk_are_its_outliers():
    """ℓ above √γ lies at (1 + ℓ)(1 + γ/ℓ) (Baik, Ben Arous & Péché); .3 is below the transition, and in the bulk."""
    X = np.random.default_rng(2).standard_normal((800, 200)) * np.sqrt(1 + np.append([20.0, 8.0, 0.3], np.zeros(197)))
    found = of(np.linalg.eigvalsh(X.T @ X / 800))
    assert found.count == 2
    assert found.values == pytest.approx([21 * (1 + 0.25 / 20), 9 * (1 + 0.25 / 8)], rel=0.15)
    assert found.edge == pytest.approx(theory.marchenko_pastur_edges(0.25)[1], rel=0.05)


# Trained classifiers --------------------------------------------------------------------------------------------------
def test_a_trained_classifier_has_as_many_as_classes_or_one_less():
    model, data = trained(3, seed=0, width=8, per=40)
    A = spectral.GaussNewton(model, LOSS, data)
    exact = spectral.exact(A)
    found, estimated = outliers(exact), outliers(spectral.slq(A, steps=40))
    eigenvalues = np.sort(exact.atoms.values)[::-1]
    assert found.accepted and found.count in (2, 3)
    assert found.values == pytest.approx(eigenvalues[: found.count])
    assert found.edge == pytest.approx(eigenvalues[found.count])
    assert estimated.accepted and estimated.count == found.count
    assert (estimated.values, estimated.edge) == (pytest.approx(found.values), pytest.approx(found.edge, rel=1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("classes", "width", "per"), [(3, 8, 40), (4, 8, 30), (10, 16, 20)])
def test_trained_classifiers_have_as_many_as_classes_or_one_less(classes, width, per, seed):
    model, data = trained(classes, seed, width, per)
    A = spectral.GaussNewton(model, LOSS, data)
    found = outliers(spectral.exact(A))
    assert found.accepted and found.count in (classes - 1, classes)
    for steps in (40, 80):
        estimated = outliers(spectral.slq(A, steps=steps))
        assert not estimated.accepted or estimated.count == found.count
    H = spectral.Hessian(model, LOSS, data)
    curved, estimated = outliers(spectral.exact(H)), outliers(spectral.slq(H, steps=100))
    assert curved.count in (classes - 1, classes, 0)  # 0 in one of these nine: a gap of 3.3 that chance could make
    assert not estimated.accepted or estimated.count == curved.count


# None by chance -------------------------------------------------------------------------------------------------------
FLAT = {
    "flat": lambda r: r.uniform(1, 2, 200),
    "on a grid": lambda r: np.linspace(0.1, 1, 100) + 1e-6 * r.random(100),
    "normal": lambda r: 5 + r.standard_normal(300),
    "semicircle": lambda r: (
        3 + np.linalg.eigvalsh((lambda a: (a + a.T) / np.sqrt(1600))(r.standard_normal((200, 200))))
    ),
    "marchenko pastur": lambda r: np.linalg.svd(r.standard_normal((150, 300)), compute_uv=False) ** 2,
    "exponential": lambda r: r.exponential(size=500),
    "lognormal": lambda r: np.exp(r.standard_normal(500)),
    "power law 1.8": lambda r: (1 - r.random(300)) ** (-1 / 0.8),
    "power law 2.5": lambda r: (1 - r.random(300)) ** (-1 / 1.5),
    "log-uniform": lambda r: 10 ** r.uniform(-6, 0, 100),
}


@pytest.mark.parametrize("kind", FLAT)
def test_a_bulk_without_a_gap_has_none(kind):
    """The docstring says 1 to 4 in 100; of 8, with 4 in 100, more than 2 are 3 in 1000."""
    found = [of(FLAT[kind](np.random.default_rng(500 + seed))) for seed in range(8)]
    assert all(f.accepted for f in found)
    assert sum(f.count > 0 for f in found) <= (2 if "law" in kind or "uniform" in kind else 0)


def test_a_power_law_of_few_has_no_gap_by_chance():
    """Of m gaps the mean is itself random: i ln r over it is F(2, 2m), P(> c) = (1 + c/m)^-m, and not e^-c: 5.5 in 100 before."""
    found = [of(1 / (1 - np.random.default_rng([seed, 12, 3]).random(12))) for seed in range(250)]
    assert sum(f.accepted and f.count > 0 for f in found) <= 10  # the 4 in 100 of the docstring


@pytest.mark.parametrize("draws", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_a_heavy_tail_of_few_is_not_taken_for_a_matrix(draws):
    """Of alpha = 1.5 neighbouring gaps passed for those of a matrix, of which less is asked: 9 in 100."""
    found = [of((1 - np.random.default_rng([seed, 60, 15]).random(60)) ** -2.0) for seed in range(draws)]
    allowed = 0.04 * draws + 2 * np.sqrt(0.04 * 0.96 * draws)  # the 4 in 100 of the docstring, and two errors
    assert sum(f.accepted and f.count > 0 for f in found) <= allowed


def test_a_heavy_tail_is_no_outlier_though_its_largest_values_lie_far_apart():
    values = np.arange(1, 501.0) ** -2  # λ_1/λ_2 = 4, as alpha = 1.5 has it
    found = of(values)
    assert (found.count, found.edge, found.accepted) == (0, 1.0, True) and np.isnan(found.gap)


def test_equal_eigenvalues_have_none():
    assert of(np.ones(30)).count == 0


# Definitions ----------------------------------------------------------------------------------------------------------
def planted():
    bulk = np.linalg.eigvalsh((lambda a: a + a.T)(np.random.default_rng(3).standard_normal((80, 80)))) + 30
    return np.append(bulk, [200.0, 240.0, 240.0])


@pytest.mark.parametrize("c", [1e-9, 1e9])
def test_scale_equivariance(c):
    one, two = of(planted()), of(planted() * c)
    assert (one.count, two.count) == (3, 3)
    assert two.values == pytest.approx(one.values * c) and two.edge == pytest.approx(one.edge * c)
    assert two.gap == pytest.approx(one.gap) == pytest.approx(200 / planted()[:-3].max())


def test_zeros_rounding_and_negative_eigenvalues_are_no_part_of_it():
    one = of(planted())
    two = of(np.concatenate([planted(), np.zeros(50), np.full(20, 1e-14), np.full(20, -1e-14), [-500.0, -1.0]]))
    assert (two.count, two.gap, two.edge) == (
        one.count,
        one.gap,
        one.edge,
    ) and two.values.tolist() == one.values.tolist()


@pytest.mark.parametrize("kind", ["planted", *FLAT])
@pytest.mark.parametrize("steps", [20, 60])
def test_a_quadrature_says_what_the_eigenvalues_say_or_that_it_cannot_tell(kind, steps):
    values = planted() if kind == "planted" else np.abs(FLAT[kind](np.random.default_rng(500)))
    exact, found = of(values), outliers(quadrature(values, steps=steps))
    if found.accepted:
        assert found.count == exact.count and found.values == pytest.approx(exact.values)
    else:
        assert found.reason
    assert found.accepted or kind != "planted"


@pytest.mark.parametrize("seed", range(2))
def test_an_eigenvalue_of_many_copies_is_no_edge_of_a_bulk(seed):
    """Ten eigenvalues of nine copies each; with the first alone known exactly, nine must not pass for all."""
    copies = np.repeat([13.5, 8.1, 6.9, 5.4, 4.7, 4.1, 2.6, 2.1, 1.9, 1.3], 9)
    values = np.append(np.random.default_rng(0).uniform(0.02, 0.14, 400), copies)
    assert of(values).count == 90
    found = outliers(quadrature(values, steps=60, seed=seed))
    assert not found.accepted or found.count == 90


# Refusals -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spectrum", "text"),
    [
        (Spectrum.from_eigenvalues([0.0, -1.0, -2.0]), "No eigenvalue is positive"),
        (Spectrum.from_eigenvalues([1.0, 2.0, 3.0]), "3 positive eigenvalues, and a bulk needs 10"),
        (quadrature(np.linspace(1, 2, 200), steps=10, deflate=False), "known exactly.*deflate"),
    ],
)
def test_what_cannot_be_told_is_refused_in_one_sentence(spectrum, text):
    found = outliers(spectrum)
    assert not found.accepted and np.isnan(found.gap) and np.isnan(found.edge)
    assert re.search(text, found.reason) and "\n" not in found.reason and found.reason.endswith(".")
    assert str(found) == f"outliers unknown: {found.reason}"


def above_widths(share):
    """Three eigenvalues above a gap of 3.6; below it the logarithms lie .045 apart, neighbours as `share` to 1, in turn."""
    widths = np.where(np.arange(120) % 2, 1.0, share) * 0.09 / (1 + share)
    return np.append(np.exp(-np.cumsum(widths)), [3.5, 4.4, 5.0])


def test_a_gap_that_too_few_known_eigenvalues_judge_is_no_absence():
    """Neighbouring gaps of .5 are those of a matrix if there are 80 of them; ten cannot tell; gaps of .01 are chance."""
    values = above_widths(0.5)
    assert of(values).count == 3
    known = outliers(_first_known(values, 13))
    assert not known.accepted and "of which 10 are known exactly; use more steps" in known.reason
    assert (known.count, known.values.tolist()) == (3, [5.0, 4.4, 3.5])
    chance = outliers(_first_known(above_widths(0.01), 33))
    assert (chance.count, chance.accepted) == (0, True)


def _first_known(values, known):
    """The spectrum with `known` largest eigenvalues exact, and the others nodes of two probes with a weight of one."""
    values = np.sort(values)
    rest, top = values[:-known], values[-known:]
    nodes = np.array([rest, rest * (1 + 1e-3)])
    atoms = spectral.Atoms(top, np.ones(known, dtype=np.int64))
    return Spectrum(len(values), nodes, np.full(nodes.shape, 1 / len(values)), atoms, 0, 0, 0.0, "slq")


def test_printing_says_what_was_found():
    assert str(of(planted())).startswith("3 outliers (240, 240, 200), ")
    assert str(of(np.linspace(1, 2, 50))) == "no outliers: the largest eigenvalue, 2, is the edge of the bulk"


# Copies --------------------------------------------------------------------------------------------------------------
def copied(values, c, seed=0):
    """Each value c times (c "mixed": one or eight times), parted by rounding, as a dense solver gives the copies of K ⊗ I."""
    rng = np.random.default_rng(seed)
    each = rng.choice([1, 8], size=len(values)) if c == "mixed" else np.full(len(values), c)
    return np.repeat(values, each) * (1 + 2.0**-52 * rng.integers(0, 2, each.sum()))


@pytest.mark.parametrize("c", [2, 4, 8, "mixed"])
@pytest.mark.parametrize("kind", ["power law 1.8", "lognormal", "log-uniform"])
def test_copies_of_eigenvalues_say_what_one_of_each_says(kind, c):
    """K ⊗ I has the distinct eigenvalues of K, and chance makes the same gaps in them (of four copies 19 of 20 had outliers)."""
    for seed in range(500, 504):
        values = FLAT[kind](np.random.default_rng(seed))[:100]
        one, many = of(values), of(copied(values, c))
        assert one.accepted and many.accepted and many.edge == pytest.approx(one.edge)
        assert (many.count > 0) == (one.count > 0)
        assert c == "mixed" or many.values == pytest.approx(np.repeat(one.values, c))


def test_few_eigenvalues_that_pass_for_a_bulk_have_no_spikes_by_chance():
    """Sixty exponential ones pass for Marchenko–Pastur: 11 of 100 had "spikes"; of 30 with 4 in 100, more than 4 are 1 in 100."""
    found = [of(np.random.default_rng([seed, 60, 7]).exponential(size=60)).count > 0 for seed in range(30)]
    assert sum(found) <= 4


def spiked(p, f, seed):
    """p eigenvalues of a Wishart matrix of 3p samples, and two at f and 1.1 f times the edge of their law."""
    B = np.random.default_rng([seed, p, 11]).standard_normal((p, 3 * p))
    edge = theory.marchenko_pastur_edges(1 / 3)[1]
    return np.append(np.linalg.eigvalsh(B @ B.T / (3 * p)), [f * edge, 1.1 * f * edge])


@pytest.mark.parametrize(("p", "f"), [(30, 3), (30, 5), (50, 2), (50, 3), (50, 5), (80, 2), (120, 2)])
def test_spikes_far_above_a_bulk_of_few_are_found(p, f):
    """The smaller one lies f times above the edge, and 1 + 40/p is asked (below 100 eigenvalues none of 2 and 3 was found)."""
    for seed in range(6):
        values = spiked(p, f, seed)
        found = of(values)
        assert found.accepted and found.values.tolist() == sorted(values)[:-3:-1]


def test_spikes_that_may_be_chance_are_no_confident_none():
    """Twice the edge, of a bulk of 30: lognormal ones of that size have such in 13 of 200."""
    for seed in range(6):
        found = of(spiked(30, 2, seed))
        assert not found.accepted and found.count == 2 and np.isnan(found.gap)
        assert re.search(
            r"^2 eigenvalues may be spikes of a bulk of fewer than 100, or chance; .* 2\.33\.$", found.reason
        )


@pytest.mark.parametrize("f", [1.4, 1.6])
def test_a_spike_in_doubt_puts_no_clear_one_in_doubt(f):
    """All were unknown where the smallest lies at 1.4 of the edge and two at 3: only that one hangs on chance."""
    for seed in range(6):
        values = spiked(50, 3, seed)
        found = of(np.append(values, f * theory.marchenko_pastur_edges(1 / 3)[1]))
        assert found.accepted and found.values.tolist()[:2] == sorted(values)[:-3:-1]
        assert found.count == 2 and re.search(r"^1 eigenvalue may be a spike of .* 1\.8\.$", found.reason)
        assert str(found).endswith(found.reason[1:-1])


def test_what_lies_above_a_clear_gap_stands_apart_though_a_wider_one_may_be_chance():
    """The gap of 4.6 after two depends on those below it; three above a gap of 3.3 do not. All were unknown."""
    B = np.random.default_rng(72).standard_normal((383, 766))
    bulk = np.linalg.eigvalsh(B @ B.T / 766)
    values = np.append(bulk, bulk.max() * np.array([1.43, 1.75, 5.76, 26.26, 27.18]))
    found = spectral.outliers(spectral.slq(np.diag(values), probes=4, steps=80, progress=False))
    assert found.accepted and found.values == pytest.approx(values[:-4:-1])


@pytest.mark.parametrize("size", [30, 50, 80])
def test_exponential_eigenvalues_seldom_have_outliers_though_they_pass_for_a_bulk(size):
    """1 in 200 of 30 eigenvalues: of 25 with 2 in 100, more than 2 are 1 in 100."""
    found = [of(np.random.default_rng([seed, size, 17]).exponential(size=size)) for seed in range(25)]
    assert sum(f.accepted and f.count > 0 for f in found) <= 2


@pytest.mark.parametrize("c", [2, 4, 8])
def test_spikes_in_copies_are_as_many_times_outliers(c):
    X = np.random.default_rng(2).standard_normal((800, 200)) * np.sqrt(1 + np.append([20.0, 8.0], np.zeros(198)))
    values = np.linalg.eigvalsh(X.T @ X / 800)
    one, many = of(values), of(copied(values, c))
    assert (one.count, many.count) == (2, 2 * c)
    assert (many.edge, many.gap) == (pytest.approx(one.edge), pytest.approx(one.gap))


def test_an_outlier_may_have_copies_that_the_bulk_has_not():
    bulk = FLAT["semicircle"](np.random.default_rng(3))
    assert [of(np.append(bulk, np.full(c, 1.5 * bulk.max()))).count for c in (1, 3, 9)] == [1, 3, 9]


def test_a_spike_in_doubt_takes_none_of_the_sure_ones_with_it_to_a_clear_gap():
    """The gap after the second is clear, the third and fourth lie far above the bulk's edge, the fifth may be chance."""
    X = np.random.default_rng(0).standard_normal((60, 180))
    edge = (1 + 3**-0.5) ** 2
    spikes = edge * np.array([9.18, 8.35, 1.94, 1.81, 1.607])
    found = of(np.append(np.linalg.eigvalsh(X @ X.T / 180), spikes))
    assert found.accepted and "may be a spike" in found.reason
    np.testing.assert_allclose(found.values, spikes[:4])
