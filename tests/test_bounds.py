"""Golub-Meurant brackets: the truth inside in every arithmetic, tighter with every step, nothing certified without a reason."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import spectral
from spectral.krylov.lanczos import lanczos
from spectral.probes import probe
from spectral.quadrature.bounds import NAMED, Signed, bracket, power, shifted

N = 120
RNG = np.random.default_rng(3)
SPECTRA = {
    "laplacian": 2 - 2 * np.cos(np.arange(1, N + 1) * np.pi / (N + 1)),
    "log-uniform": 10 ** RNG.uniform(-4, 0, N),
    "outliers": np.append(RNG.uniform(0.5, 1, N - 5), np.geomspace(3, 100, 5)),
    "clusters": np.concatenate([c + 1e-6 * RNG.uniform(0, 1, N // 3) for c in (0.1, 1.0, 5.0)]),
    "strakos": np.array([0.1 + (i - 1) / 23 * 99.9 * 0.65 ** (24 - i) for i in range(1, 25)]),
    "marchenko-pastur": np.linalg.eigvalsh((lambda X: X @ X.T / 200)(RNG.standard_normal((N, 200)))),
}
FUNCTIONS = {
    **NAMED,
    "x^-1/2": power(-0.5), "x^3/2": power(1.5), "x^5/2": power(2.5), "x^7": power(7),
    "log(x + 1)": shifted(NAMED["log"], 1.0),
    "exp(-3x)": Signed(lambda x: np.exp(-3 * x), 1, -1, 0),
}  # fmt: skip


def measured(values, steps, dtype=torch.float64, reorthogonalize=True):
    """(record, weights of the start vector, eigenvalues as the products see them)."""
    A = torch.diag(torch.from_numpy(values).to(dtype))
    g = probe(1, 0, len(values), dtype=dtype)
    record = lanczos(spectral.as_operator(A), g, steps, reorthogonalize=reorthogonalize)
    weights = g.double().numpy() ** 2
    return record, weights / weights.sum(), torch.diagonal(A).double().numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reorthogonalize", [True, False])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_truth_is_inside(name, reorthogonalize, dtype):
    values = SPECTRA[name]
    for steps in (1, 2, 5, 10, 30, 100):
        record, weights, seen = measured(values, steps, dtype, reorthogonalize)
        for label, f in FUNCTIONS.items():
            truth = weights @ f.f(seen)
            tight = bracket(record, f, (seen.min(), seen.max()))
            wide = bracket(record, f, (seen.min() / 2, 2 * seen.max()))
            for found in (tight, wide):
                if 2 * steps >= f.order:
                    assert found.lower <= truth <= found.upper, (label, steps)


@pytest.mark.parametrize("name", SPECTRA)
def test_more_steps_tighten_it_to_the_truth(name):
    values = SPECTRA[name]
    ends = (values.min() / 2, 2 * values.max())
    for label, f in FUNCTIONS.items():
        width = []
        for steps in (2, 4, 8, 16, 24):
            record, weights, seen = measured(values, steps)
            found = bracket(record, f, ends)
            width.append((found.lower, found.upper))
        lower, upper = np.array(width).T
        slack = 1e-9 * (np.abs(weights @ f.f(seen)) + np.ptp(f.f(seen)))
        rounding = slack + 1e-12 * np.abs(
            [lower[:-1], upper[:-1]]
        )  # a bound takes f at the ends, which exp makes large
        assert (np.diff(lower) >= -rounding[0]).all(), label
        assert (np.diff(upper) <= rounding[1]).all(), label
        assert upper[-1] - lower[-1] <= max(0.2 * (upper[0] - lower[0]), slack), label


def test_polynomials_and_invariant_subspaces_are_exact():
    record, weights, seen = measured(SPECTRA["laplacian"], 5)
    found = bracket(record, power(9), (0.0, 4.0))  # degree 2k - 1
    assert found.upper - found.lower <= 1e-9 * found.upper
    assert found.value == pytest.approx(weights @ seen**9, rel=1e-10)
    twice = lanczos(spectral.as_operator(2 * np.eye(50)), probe(0, 0, 50), 9)
    found = bracket(twice, "log", (None, None))
    assert found == pytest.approx((np.log(2),) * 3, abs=1e-12)


def test_an_end_that_has_converged_is_a_node_like_any_other():
    """Of 100 and 1000 above two eigenvalues below 1 the last pivot at the right end cancels in T's own sequence."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values, start = np.append(rng.uniform(0, 1, 2), [10.0, 100.0, 1000.0]), rng.standard_normal(5)
        record = lanczos(spectral.as_operator(np.diag(values)), torch.from_numpy(start), 4)
        for f in ("log", "inverse", "sqrt"):
            found = bracket(record, f, (values.min(), values.max()))
            truth = start**2 @ NAMED[f].f(values) / (start @ start)
            assert found.lower <= truth <= found.upper


def test_what_hardly_varies_is_known_to_the_rounding_of_its_size():
    """The weights of a rule sum to 1 up to rounding, which a constant meets whole."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        A = spectral.as_operator(np.diag(1e6 + rng.uniform(0, 1, 8)))
        for steps in (4, 8):
            found = bracket(lanczos(A, torch.from_numpy(rng.standard_normal(8)), steps), power(0), (1e6, 1e6 + 1))
            assert found.lower <= 1 <= found.upper


def test_an_invariant_subspace_hides_what_its_residual_does_not_tell_from_0():
    """A share of 1e-16 of a vector on the eigenvalue 1e-9 ends the recurrence after one step, and is 1e-7 of A^-1 b."""
    A, b = np.diag([1.0, 1e-9]), np.array([1.0, 1e-16])
    record = lanczos(spectral.as_operator(A), torch.from_numpy(b), 2)
    found = bracket(record, power(-3), (1e-9, 1.0))
    assert record.steps == 1
    assert found.lower <= 1 + 1e-5 <= found.upper
    assert bracket(record, power(-3), (None, None))[:2] == pytest.approx((1.0, 1.0), abs=1e-12)
    product = spectral.funm(A, "inverse", b, interval=(1e-9, 1.0))
    assert product.certified
    assert np.linalg.norm(product.value - [1.0, 1e-7]) <= product.error


def test_what_is_known_of_the_ends_decides_what_is_certified():
    record, weights, seen = measured(SPECTRA["laplacian"], 10)
    truth = weights @ np.log(seen)
    nothing, psd = bracket(record, "log", (None, None)), bracket(record, "log", (0.0, None))
    assert np.isnan(nothing.lower)
    assert np.isnan(nothing.upper)  # below 0 the logarithm has no signs
    assert np.isnan(psd.lower)  # log 0 at the node
    assert truth <= psd.upper
    root = bracket(record, "sqrt", (0.0, None))
    assert root.lower <= weights @ np.sqrt(seen) <= root.upper
    both = bracket(record, shifted(NAMED["log"], 0.5), (0.0, None))
    assert both.lower <= weights @ np.log(seen + 0.5) <= both.upper
    assert np.isnan(bracket(record, Signed(np.sin, 0, 0), (0.0, 4.0)).lower)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_scale_changes_nothing_but_the_scale(scale):
    one, *_ = measured(SPECTRA["laplacian"], 12)
    other, *_ = measured(scale * SPECTRA["laplacian"], 12)
    a, b = bracket(one, "inverse", (1e-4, 4.0)), bracket(other, "inverse", (scale * 1e-4, scale * 4.0))
    assert tuple(b) == pytest.approx(tuple(x / scale for x in a), rel=1e-6)


@pytest.mark.parametrize(
    ("f", "interval", "words"),
    [("sine", (0.0, 4.0), "f='sine'"), ("log", (1.0, 4.0), "does not hold"), ("log", (4.0, 0.0), "does not hold")],
)
def test_a_bad_argument_is_one_sentence(f, interval, words):
    record, *_ = measured(SPECTRA["laplacian"], 5)
    with pytest.raises(ValueError) as error:
        bracket(record, f, interval)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    negative = lanczos(spectral.as_operator(np.diag([-1.0, 1.0, 2.0])), torch.ones(3, dtype=torch.float64), 2)
    with pytest.raises(ValueError, match="shift the matrix"):
        bracket(negative, "log", (None, None))


def test_what_was_deflated_is_added_where_it_is_known_to_be():
    """A measure cut in two by hand: T from the rest of the start vector, the others by their eigenvalues and shares."""
    values = SPECTRA["outliers"]
    _, weights, seen = measured(values, 1)
    rest = torch.from_numpy(np.where(np.arange(N) < N - 3, np.sqrt(weights), 0.0))
    part = lanczos(spectral.as_operator(np.diag(values)), rest, 8)
    record = SimpleNamespace(
        alphas=part.alphas, betas=part.betas, eigen=part.eigen, steps=part.steps, dtype=part.dtype,
        known=values[-3:], shares=weights[-3:],
    )  # fmt: skip
    for f in ("log", "inverse", "sqrt", "entropy"):
        found = bracket(record, f, (values.min() / 2, 2 * values.max()))
        assert found.lower <= weights @ NAMED[f].f(seen) <= found.upper
        assert found.upper - found.lower < 0.05 * abs(found.value)
