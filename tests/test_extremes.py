"""Entries of any size: a number is that of the matrix of ordinary size, scaled, or one sentence says that float64 cannot."""

import numpy as np
import pytest

import spectral

VALUES = np.append(np.linspace(1, 2, 38), [5.0, 9.0])
Q = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0]
A = (Q * VALUES) @ Q.T
A = (A + A.T) / 2
FLOAT32 = A.astype(np.float32)
NUMBERS = {
    "slq": lambda B: spectral.slq(B, probes=2, steps=40).integrate(lambda x: x).value,
    "slq without a basis": lambda B: spectral.slq(B, probes=2, steps=40, reorthogonalize=False).points()[0].max(),
    "kpm": lambda B: spectral.kpm(B, probes=2, moments=20).integrate(lambda x: x).value,
    "kpm, chebyshev": lambda B: spectral.kpm(B, probes=2, moments=20, recurrence="chebyshev").quantile(0.5).value,
    "top": lambda B: spectral.top(B, 2).values,
    "top, blocks": lambda B: spectral.top(B, 2, block=2).values,
    "svd": lambda B: spectral.svd(B, 2).values,
    "exact": lambda B: spectral.exact(B).points()[0],
    "xtrace": lambda B: spectral.trace(B, probes=20, method="xtrace").value,
    "xnystrace": lambda B: spectral.trace(B, probes=20, method="xnystrace").value,
    "hutch++": lambda B: spectral.trace(B, probes=21, method="hutch++").value,
    "hutchinson": lambda B: spectral.trace(B, probes=20, method="hutchinson").value,
    "diagonal": lambda B: spectral.diagonal(B, probes=20).value,
    "quantile": lambda B: spectral.exact(B).quantile(0.5).value,
    "distance": lambda B: spectral.exact(B).distance(spectral.exact(1.5 * B)).value,
    "bulk": lambda B: spectral.marchenko_pastur(spectral.exact(B)).upper,
    "edge": lambda B: spectral.outliers(spectral.exact(B)).edge,
    "xmin": lambda B: spectral.power_law(spectral.exact(B)).xmin,
    "lambda_max": lambda B: spectral.summary(spectral.exact(B))["lambda_max"],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e200, 1e-200, 1e130, 1e-130])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_scale_or_are_refused(name, size):
    number = NUMBERS[name]
    try:
        found = number(size * A)
    except ValueError as problem:
        assert "float64 does not hold" in str(problem) and "multiply the operator by a number" in str(problem)
        assert not 1e-130 <= size <= 1e130
    else:
        assert np.allclose(np.asarray(found) / size, number(A), rtol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e30, 1e-30])
@pytest.mark.parametrize("name", ["slq", "top", "svd", "exact", "kpm", "hutchinson"])
def test_numbers_of_single_precision_scale(name, size):
    number = NUMBERS[name]
    assert np.allclose(np.asarray(number(np.float32(size) * FLOAT32)) / size, number(FLOAT32), rtol=1e-4)
