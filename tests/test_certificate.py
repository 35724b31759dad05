"""The envelope from eigenvectors, against the continued fraction, against all Radau nodes, and against the sign itself."""

import numpy as np
import pytest
from scipy.linalg import eigh_tridiagonal

from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import certificate
from spectral.quadrature.certificate import LEAST, MIDDLE, NEAREST, REACH, Radau, sign_poles


def record_of(alphas, betas):
    return LanczosRecord(np.asarray(alphas, float), np.asarray(betas, float), 1.0, "float64", True, "steps")


def records():
    """Jacobi matrices of many kinds, the last beta among them."""
    rng = np.random.default_rng(0)
    yield "smooth", record_of(np.full(60, 0.5), np.full(60, 0.25))
    yield "random", record_of(rng.uniform(-1, 1, 40), rng.uniform(0.05, 1, 40))
    yield "decaying, so that many nodes have converged", record_of(0.7 ** np.arange(50), 0.5 * 0.7 ** np.arange(50))
    yield "two halves with a gap", record_of(np.tile([1.0, -1.0], 30), np.tile([0.3, 0.1], 30))
    yield "shifted far from 0", record_of(1e4 + rng.uniform(-1, 1, 40), rng.uniform(0.05, 1, 40))
    yield "fewer steps than the poles are for", record_of(rng.uniform(-1, 1, LEAST - 1), rng.uniform(0.1, 1, LEAST - 1))


RECORDS = dict(records())


@pytest.mark.parametrize("nearest", [0.3, 1e-3, 1e-6, NEAREST])
@pytest.mark.parametrize("error", [1e-13, 1e-8])
def test_the_poles_give_the_sign_to_their_error(nearest, error):
    weights, squares = sign_poles(nearest, error)
    t = np.geomspace(nearest, REACH, 997)[:, None]
    assert np.abs(t[:, 0] * (weights / (t**2 + squares)).sum(1) - 1).max() <= 2 * error
    assert (weights > 0).all() and len(weights) < 130


def radau_rule(record, x):
    """(weights of the Radau rule through x, ascending, which of them is that of x), from the bordered tridiagonal matrix."""
    beta = record.betas[-1]
    d = record.alphas[0] - x
    for alpha, b in zip(record.alphas[1:], record.betas[:-1], strict=True):
        d = alpha - x - b**2 / d
    nodes, S = eigh_tridiagonal(np.append(record.alphas, x + beta**2 / d), record.betas)
    return S[0] ** 2, np.abs(nodes - x).argmin()


@pytest.mark.parametrize("name", RECORDS)
def test_the_middle_is_that_of_all_radau_nodes(name):
    record = RECORDS[name]
    theta = record.eigen[0]
    low, high = theta[0], theta[-1]
    x = np.random.default_rng(1).uniform(low - 0.3 * (high - low), high + 0.3 * (high - low), 60)
    x = x[np.abs(x[:, None] - theta).min(1) > 1e-3 * (high - low)]  # nearer, the oracle's last entry explodes
    right = []
    for point in x:
        weights, at = radau_rule(record, point)
        right.append(weights[:at].sum() + weights[at] / 2)
    np.testing.assert_allclose(certificate.middle(record, x), right, atol=2 * MIDDLE)
    lower, upper = certificate.envelope(record, x)
    np.testing.assert_allclose((lower + upper) / 2, right, atol=3e-11 if "far" not in name else 1e-9)


@pytest.mark.parametrize("name", [name for name in RECORDS if "fewer" not in name])
def test_two_algorithms_agree_as_near_to_a_node_as_the_first_goes(name):
    """The continued fraction takes the line at 1e-9 of the radius beside x: no Radau node may lie there, and no pivot be 0."""
    record = RECORDS[name]
    rules = Radau(record)
    theta = rules.theta
    x = np.concatenate([theta[:-1] + share * np.diff(theta) for share in (1e-3, 0.2, 0.47, 0.9, 1 - 1e-4)])
    x = x[rules.distance(x) > 1e-8]
    below, above = (rules.fraction(x, side) for side in (-1, 1))
    np.testing.assert_allclose(rules.middle(x), (below + above) / 2, atol=1e-11)
    np.testing.assert_allclose(rules.at(x), above - below, atol=1e-11)


@pytest.mark.parametrize("name", RECORDS)
def test_the_weight_at_a_point_is_the_christoffel_function(name):
    """By the recurrence of the orthonormal polynomials, off the nodes, where it is no better known than the nodes are."""
    record = RECORDS[name]
    rules = Radau(record)
    x = np.random.default_rng(2).uniform(-1.2, 1.2, 200)
    x = x[rules.distance(x) > 1e-6]
    p_before, p, total = np.zeros_like(x), np.ones_like(x), np.ones_like(x)
    for j in range(record.steps):
        after = (x * rules.scale + rules.centre - record.alphas[j]) * p - (record.betas[j - 1] if j else 0.0) * p_before
        p_before, p = p, np.clip(after / record.betas[j], -1e120, 1e120)
        total += p**2
    np.testing.assert_allclose(rules.at(x), 1 / total, rtol=1e-6, atol=1e-14)


def test_at_a_gauss_node_the_middle_is_that_of_the_gauss_rule():
    record = RECORDS["smooth"]
    rules = Radau(record)
    mass = record.eigen[1][0] ** 2
    np.testing.assert_allclose(rules.middle(rules.theta)[1:-1], (np.cumsum(mass) - mass / 2)[1:-1], atol=1e-12)
    assert not rules.reaches(rules.theta)[1:-1].any()
