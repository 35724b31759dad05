"""The envelope from eigenvectors: against a continued fraction, all Radau nodes, the sign itself, and measures that are known."""

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.linalg import eigh_tridiagonal

import spectral
from spectral.krylov.lanczos import LanczosRecord, lanczos
from spectral.quadrature import certificate
from spectral.quadrature.certificate import MIDDLE, NEAREST, REACH, Radau, sign_poles, truncation_log10


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
    yield "few steps", record_of(rng.uniform(-1, 1, 6), rng.uniform(0.1, 1, 6))
    yield "two steps", record_of([0.3, -0.2], [0.4, 0.5])
    yield "one step", record_of([0.3], [0.4])


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


def fraction(record, x, side, step=0.36):
    """Weight of the Radau nodes left of the line Re z = x + side 1e-9, for the rules that have x among their nodes.

    With m(z) = e_1^T (T_x - z)^{-1} e_1 the signed weight sum_i w_i sign(theta_i - c) is (2/pi) int_0^inf Re m(c + iy) dy: a
    trapezoidal sum in log y, each m one continued fraction of the pivots d_j of T - x I, with the pole at x in front.
    """
    rules, betas = Radau(record), record.betas / Radau(record).scale
    d = []
    for j, alpha in enumerate(rules.units(record.alphas)):
        d.append(alpha - x - (betas[j - 1] ** 2 / d[j - 1] if j else 0.0))
    y = np.exp(np.arange(np.log(2e-13), np.log(2e4), step))[:, None]
    h, c = -side * 1e-9 - 1j * y, np.ones((len(y), len(x)), dtype=complex)
    for pivot, beta in zip(d[::-1], betas[::-1], strict=True):
        c = 1 + c * pivot**2 / (beta**2 + h * c * pivot)
    terms = y * (1 / (h * c)).real
    return (1 - 2 / np.pi * step * (terms.sum(0) + (terms[0] + terms[-1]) / np.expm1(step))) / 2


@pytest.mark.parametrize("name", RECORDS)
def test_two_algorithms_agree_as_near_to_a_node_as_the_first_goes(name):
    """The continued fraction takes the line at 1e-9 of the radius beside x: no Radau node may lie there, and no pivot be 0."""
    record = RECORDS[name]
    rules = Radau(record)
    theta = rules.theta
    x = np.concatenate([theta[:-1] + share * np.diff(theta) for share in (1e-3, 0.2, 0.47, 0.9, 1 - 1e-4)])
    x = x[rules.distance(x) > 1e-8]
    below, above = (fraction(record, x, side) for side in (-1, 1))
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


# Measures that are known ---------------------------------------------------------------------------------------------
def enveloped(values, start, steps, x, dtype=torch.float64):
    """(lower, the mass left of each x, with that at x, upper): of a diagonal matrix a vector's measure is its squares."""
    A = spectral.as_operator(torch.diag(torch.tensor(values, dtype=dtype)))
    lower, upper = certificate.envelope(lanczos(A, torch.tensor(start, dtype=dtype), steps), x)
    mass = np.square(torch.tensor(start, dtype=dtype).double().numpy())
    seen = torch.tensor(values, dtype=dtype).double().numpy()
    left = [np.array([mass[side(seen, t)].sum() for t in x]) / mass.sum() for side in (np.less, np.less_equal)]
    return lower, *left, upper


def test_a_point_where_a_leading_part_of_T_is_singular_is_like_any_other():
    """Of 1 and -1 and equal masses alpha_1 is 0: the envelope at 0 is one half, as everywhere between the eigenvalues."""
    x = np.array([-0.5, -1e-14, 0.0, 1e-12, 0.5])
    lower, _, upto, upper = enveloped([1.0, -1.0], [1.0, 1.0], 2, x)
    np.testing.assert_array_equal(upto, 0.5)
    np.testing.assert_allclose(lower, 0.5, atol=1e-10)
    np.testing.assert_allclose(upper, 0.5, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [1e-3, 1e-4, 1e-5])
def test_the_mass_between_close_eigenvalues_is_known_as_far_as_eigenvectors_are(gap, dtype):
    """A change of T by rounding turns eigenvectors by rounding / gap: with gaps of 1e-4, in float32 the mass moves by 1e-3."""
    values = np.concatenate([1 + gap * np.arange(4), 2 + gap * np.arange(4)])
    for seed in range(20):
        start = np.random.default_rng(seed).standard_normal(8)
        x = np.concatenate([values, (values[1:] + values[:-1]) / 2])
        lower, below, upto, upper = enveloped(values, start, 8, x, dtype)
        assert (lower <= below).all() and (upto <= upper).all()
    if dtype == torch.float64:  # and it is known well
        assert (upper - lower)[8:].max() <= 40 * 2.0**-52 / gap + 3e-11


@pytest.mark.parametrize("gap", [1e-13, 1e-12])
def test_an_invariant_subspace_is_so_as_far_as_its_residual_is_told_from_0(gap):
    """A mass of 1e-6 beside an eigenvalue is a residual of 1e-3 gap, which ends the recurrence after one step."""
    x = np.array([1.0, 1 + gap / 2, 1 + 2 * gap])
    lower, below, upto, upper = enveloped([1.0, 1 + gap], [1.0, 1e-3], 2, x)
    assert (lower <= below).all() and (upto <= upper).all()


@pytest.mark.parametrize(("steps", "dtype"), [(3, "float32"), (25, "float32"), (25, "float64")])
def test_the_area_on_a_logarithmic_axis_is_that_of_the_envelope(steps, dtype):
    """By a trapezoidal sum of the envelope itself over 10^4 points. In float32 its ends are blurred: all of it, after 3 steps."""
    values = np.array([1e-4, 1.0, 3.0]) if steps == 3 else np.append(np.logspace(-5, 0, 118), [5.0, 40.0])
    A = spectral.as_operator(np.diag(values.astype(dtype)))
    q = spectral.slq(A, probes=2, steps=steps, deflate=False, progress=False)
    floor, high = q.rounding, q.interval[1]
    for k, (record, gone) in enumerate(zip(q.records, q.removed, strict=True)):
        t = [np.linspace(np.log10(floor), np.log10(high), 2000)]
        t += [np.log10(x) + side * np.geomspace(1e-13, 1, 400) for x in q.nodes[k] if x > floor for side in (-1, 1)]
        t = np.unique(np.clip(np.concatenate(t), np.log10(floor), np.log10(high)))
        lower, upper = q.probe_envelope(k, 10.0**t)
        found = truncation_log10(record, gone, floor, high)
        assert 0.98 <= found / trapezoid(upper - lower, t) <= 1.6
