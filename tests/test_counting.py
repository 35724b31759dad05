"""N(x), the number of eigenvalues from x on: exact on steps, right at nodes, a power law between them."""

import numpy as np
import pytest

from spectral import Atoms, Spectrum
from spectral.analysis.counting import counting, log_sums


def rule(nodes, weights, dim, atoms=()):
    nodes, weights = np.atleast_2d(nodes), np.atleast_2d(weights) / dim
    known = Atoms(np.array(atoms, dtype=float), np.ones(len(atoms), dtype=np.int64))
    return Spectrum(dim, nodes, weights, known, 0, 0, 0.0, "slq")


def at(c, x):
    c = c.insert(x)
    j = int(np.searchsorted(c.x, x))
    return float(c.at_least[j]), float(c.above[j])


def test_exact_eigenvalues_are_steps():
    c, without = counting(Spectrum.from_eigenvalues([4.0, 2.0, 2.0, 1.0, 0.0, -1.0], zeros=3))
    assert without == [] and c.total == 4
    assert [at(c, x) for x in (0.5, 1.0, 1.5, 2.0, 4.0, 5.0)] == [(4, 4), (4, 3), (3, 3), (3, 1), (1, 0), (0, 0)]
    assert log_sums(c)[0] == pytest.approx(np.log(4 * 2 * 2 * 1))  # Σ ln(λ/1)
    assert c.masses[0].tolist() == [1, 2, 4] and c.masses[1].tolist() == [1, 2, 1]


def test_a_node_has_half_of_its_weight_above_it_and_the_law_between_nodes_is_a_power():
    c, _ = counting(rule([1.0, 10.0, 100.0], [60.0, 30.0, 10.0], 100))
    assert at(c, 10.0)[0] == pytest.approx(10 + 15, rel=1e-3) and at(c, 100.0)[0] == pytest.approx(5)
    assert at(c, 10.0**1.5)[0] == pytest.approx(np.sqrt(25 * 5), rel=1e-3)
    assert c.total == pytest.approx(100) and at(c, 101.0)[0] == 0


def test_sums_of_logarithms_are_those_of_a_pareto():
    """N = x^-a at nodes at quantiles: the sum of ln(lambda/x) over lambda > x is N/a."""
    a, cuts = 0.7, np.geomspace(1, 1e7, 501)
    N = 1e6 * cuts**-a
    middles = np.append((N[:-1] + N[1:]) / 2, N[-1] / 2)
    spectrum = rule((middles / 1e6) ** (-1 / a), np.append(N[:-1] - N[1:], N[-1]), 10**6)
    c, _ = counting(spectrum)
    sums = log_sums(c)
    for x in (2.0, 30.0):
        j = int(np.searchsorted(c.x, x))
        assert c.at_least[j] == pytest.approx(1e6 * c.x[j] ** -a, rel=2e-3)
        assert sums[j] / c.at_least[j] == pytest.approx(1 / a, rel=5e-3)


def test_probes_are_pooled_and_left_out():
    spectrum = rule([[1.0, 10.0], [1.0, 10.0]], [[80.0, 20.0], [60.0, 40.0]], 100)
    c, without = counting(spectrum)
    assert at(c, 10.0)[0] == pytest.approx(15)
    assert [at(w, 10.0)[0] for w in without] == pytest.approx([20, 10])  # the other probe's
    assert (c.probes, without[0].probes) == (2, 1)


def test_exact_eigenvalues_carry_no_noise_of_the_probes():
    c, _ = counting(rule([1.0, 2.0], [50.0, 40.0], 100, atoms=np.arange(3.0, 13.0)))
    j = int(np.searchsorted(c.x, 3.0))
    assert c.independent(np.array([j]))[0] == pytest.approx(10)
    assert c.independent(np.array([0]))[0] == pytest.approx(100**2 / (10 + 3 * 90))  # one probe: 1 + 2/1


def test_weights_of_rounding_are_no_eigenvalues():
    c, _ = counting(rule([1.0, 2.0, 50.0], [60.0, 40.0, 1e-13], 100))
    assert c.x[-1] == 2.0


def test_inserting_a_point_changes_nothing():
    c, _ = counting(rule([1.0, 10.0, 100.0], [60.0, 30.0, 10.0], 100))
    more = c.insert(7.7)
    assert len(more.x) == len(c.x) + 1 and log_sums(more)[0] == pytest.approx(log_sums(c)[0], rel=1e-6)
    assert c.insert(10.0).x.tolist() == c.insert(10.0).insert(10.0).x.tolist()
