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
    "svd": (lambda: spectral.svd(A, 1), "1 singular value: 30 ± .*; 1 of 1 converged"),
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


ONE = np.array([[2.0]])
OF_ONE = {
    "exact": lambda: spectral.exact(ONE),
    "slq": lambda: spectral.slq(np.diag([1.0, 2.0, 4.0]), probes=1, steps=1, deflate=False),
    "known zero": lambda: spectral.exact(np.ones((1, 2))),
    "top": lambda: spectral.top(ONE, 1),
    "svd": lambda: spectral.svd(ONE, 1),
    "trace": lambda: spectral.trace(ONE),
    "diagonal": lambda: spectral.diagonal(ONE),
}


@pytest.mark.parametrize("name", OF_ONE)
def test_one_of_a_thing_is_not_called_many(name, tmp_path):
    """On the terminal, in a notebook, on a page: `1 eigenvalues` and its like nowhere."""
    made = OF_ONE[name]()
    page = spectral.report(made, tmp_path / "page.html").read_text()
    for text in (
        str(made),
        repr(made),
        made._repr_html_(),
        re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL),
    ):
        assert not re.findall(r"(?<![\w.,−-])1 (?:\w+ )?(?:eigenvalue|value|zero|probe|product|vector|number)s\b", text)


def test_a_band_says_its_values_and_how_sure():
    count = spectral.exact(np.diag([1.0, 2.0, 3.0])).count(0.5, 2.5)
    assert str(count) == "2 in [2, 2], 95 % sure"
    assert str(spectral.exact(np.eye(9)).cdf(np.arange(9.0))).endswith(", ... 3 more, 95 % sure of each")


FACES = {
    "trace": lambda: spectral.trace(A, probes=10),
    "diagonal": lambda: spectral.diagonal(A, probes=10),
    "top": lambda: spectral.top(A, 3, which="smallest"),
    "svd": lambda: spectral.svd(A, 2),
    "exact": lambda: spectral.exact(A),
    "slq": lambda: spectral.slq(A, probes=2, steps=8),
}


@pytest.mark.parametrize("name", FACES)
def test_every_result_knows_its_arrays_its_estimates_and_its_line(name, tmp_path):
    """Arrays that a file takes without pickles; numbers with errors whose bounds hold them; one line that says both."""
    result = FACES[name]()
    arrays, numbers = result.to_arrays(), result.estimates()
    np.savez(tmp_path / "arrays.npz", **arrays)
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as file:
        assert all(np.array_equal(file[key], array) for key, array in arrays.items())
    assert numbers and all(isinstance(number, Estimate) for number in numbers.values())
    for number in numbers.values():
        assert np.isfinite(float(number)) and number.stderr >= 0 and number.products == result.products
        assert not number.lower > number.value and not number.upper < number.value
    assert "\n" not in str(result) and " ± " in str(result)


def test_numbers_of_a_result_are_those_of_its_fields():
    pairs, whole = spectral.top(A, 2), spectral.exact(A)
    assert list(pairs.estimates()) == ["eigenvalue_1", "eigenvalue_2"] and list(spectral.svd(A, 1).estimates()) == [
        "singular_value_1"
    ]
    for number, value, residual in zip(pairs.estimates().values(), pairs.values, pairs.residuals, strict=True):
        assert number == Estimate(value, residual, value - residual, value + residual, products=pairs.products)
    diagonal = spectral.diagonal(A, probes=10)
    assert [float(e) for e in diagonal.estimates().values()] == diagonal.value.tolist()
    assert [e.stderr for e in diagonal.estimates().values()] == diagonal.stderr.tolist()
    numbers = whole.estimates()
    assert float(numbers["trace"]) == 465 and float(numbers["mean"]) == 15.5 and float(numbers["median"]) == 15
    arrays = whole.to_arrays()
    assert (arrays["atom_values"] @ arrays["atom_multiplicities"], int(arrays["zeros"])) == (465, 0)


def test_arrays_of_estimates_are_printed_with_an_error_each():
    assert f"{Estimate(2.0, 0.1):.3f}" == "2.000 ± 0.100" and f"{Estimate(2.0, 0.1)}" == "2 ± 0.1"
    assert str(Estimate(np.array([1.0, 2.5]), np.array([0.5, 0.25]))) == "1 ± 0.5, 2.5 ± 0.25"
    assert str(Estimate(np.ones((4, 2)), 0.0)).endswith("1 ± 0, ... 2 more")
