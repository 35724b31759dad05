"""Every result says in print what it is, with its errors."""

import re

import numpy as np
import pytest

import spectral
from spectral.results import Estimate

A = np.diag(np.arange(1.0, 31.0))
RESULTS = {
    "trace": (lambda: spectral.trace(A, probes=10), " ± "),
    "exact trace": (lambda: spectral.trace(A, probes=30), "465 ± 0"),
    "diagonal": (lambda: spectral.diagonal(A, probes=30), "1 ± 0, 2 ± 0, 3 ± 0, 4 ± 0, 5 ± 0, 6 ± 0, ... 24 more"),
    "top": (lambda: spectral.top(A, 2), "2 eigenvalues: 30 ± .*, 29 ± .*; 2 of 2 converged .* nothing better is left"),
    "svd": (lambda: spectral.svd(A, 1), "1 singular values: 30 ± .*; 1 of 1 converged"),
    "spectrum": (lambda: spectral.slq(A), "Spectrum"),
    "quantile": (lambda: spectral.slq(A).quantile(0.5), " ± "),
    "power law": (lambda: spectral.power_law(spectral.exact(A)), "."),
    "outliers": (lambda: spectral.outliers(spectral.exact(A)), "no outliers"),
    "marchenko_pastur": (lambda: spectral.marchenko_pastur(spectral.exact(A)), "Marchenko"),
    "negative mass": (lambda: spectral.negative_mass(spectral.exact(A)), "."),
    "density": (lambda: spectral.exact(A).density(), "Density"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_printed(name):
    made, expected = RESULTS[name]
    assert re.search(expected, str(made()).replace("\n", " "))


def test_arrays_of_estimates_are_printed_with_an_error_each():
    assert str(Estimate(np.array([1.0, 2.5]), np.array([0.5, 0.25]))) == "1 ± 0.5, 2.5 ± 0.25"
    assert str(Estimate(np.ones((4, 2)), 0.0)).endswith("1 ± 0, ... 2 more")
