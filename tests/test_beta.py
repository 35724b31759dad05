"""The law of pooled Gaussian probes against scipy, and against probes that were drawn."""

import numpy as np
import pytest
from scipy import stats

from spectral.quadrature import beta


@pytest.mark.parametrize(("probes", "dim"), [(1, 30), (4, 60), (7, 200)])
def test_count_interval_inverts_the_beta_law(probes, dim):
    for lower, upper in ((0.0, 0.0), (0.0, 0.01), (0.2, 0.2), (0.3, 0.5), (0.97, 0.99), (0.4, 1.0), (1.0, 1.0)):
        accepted = []
        for r in range(dim + 1):
            law = stats.beta(probes * r / 2, probes * (dim - r) / 2) if 0 < r < dim else None
            above = law.sf(lower) if law else float((r == dim) or lower == 0)
            below = law.cdf(upper) if law else float((r == 0) or upper == 1)
            if above >= 0.025 and below >= 0.025:
                accepted.append(r)
        low, high = beta.count_interval(np.array([lower]), np.array([upper]), probes, dim, 0.95)
        assert (low[0], high[0]) == (accepted[0], accepted[-1])


@pytest.mark.parametrize("r", [0, 1, 12, 50, 99, 100])
def test_count_interval_covers_the_count_of_gaussian_probes(r):
    g = np.random.default_rng(r).standard_normal((4000, 3, 100)) ** 2
    mass = g[:, :, :r].sum((1, 2)) / g.sum((1, 2))
    low, high = beta.count_interval(mass, mass, 3, 100, 0.95)
    assert 0.938 <= np.mean((low <= r) & (r <= high)) <= 1


def test_a_mass_of_one_up_to_rounding_does_not_exclude_the_whole_dimension():
    low, high = beta.count_interval(np.array([1e-16]), np.array([1 - 1e-16]), 4, 200, 0.95)
    assert (low[0], high[0]) == (0, 200)


@pytest.mark.parametrize("mass", [1e-13, 1e-10, 1e-8, 1e-6, 1e-4, 0.5, 1 - 1e-8])
@pytest.mark.parametrize("probes", [1, 5, 40])
def test_no_interval_of_counts_is_empty(mass, probes):
    """A known mass that is as good as impossible for any whole number; what projected vectors leave of themselves is none."""
    low, high = beta.count_interval(np.array([mass]), np.array([mass]), probes, 300, 0.95)
    assert 0 <= low[0] <= high[0] <= 300
    if mass < 1e-9:
        assert high[0] == 0


def test_pooled_variance_is_that_of_a_quadratic_form():
    values = np.array([0.0, 1.0, 5.0, 5.0, -2.0])
    g = np.random.default_rng(0).standard_normal((200_000, 2, 5)) ** 2
    form = (g * values).sum((1, 2)) / g.sum((1, 2))
    assert np.var(form) == pytest.approx(beta.pooled_variance(2, 5, np.var(values)), rel=0.02)


def test_a_located_eigenvalue_counts_at_least_once():
    nodes = np.array([[0.0, 5.0, 10.0], [0.0, 6.0, 10.0]])
    masses = np.array([[0.4, 0.09, 0.001], [0.4, 0.1, 0.009]])
    raised = beta.located(nodes, masses, 0.02)
    np.testing.assert_allclose(raised[:, :2], masses[:, :2])  # 5 and 6: the probes disagree
    assert raised[:, 2].sum() == pytest.approx(0.02)
