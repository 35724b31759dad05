"""esd: the cheapest sound method, and why."""

import numpy as np
import pytest
import scipy.sparse as sp

import spectral

A = np.diag(np.arange(1.0, 41.0))


@pytest.mark.parametrize(
    ("operand", "options", "method"),
    [
        (A, {}, "exact"),
        (A, {"method": "slq"}, "slq"),
        (A, {"method": "exact"}, "exact"),
        (A, {"probes": 2, "steps": 10}, "exact"),
        (A, {"deflate": False}, "slq"),
        (sp.csr_array(A), {}, "exact"),
        (sp.csr_array(A), {"budget": 20}, "slq"),
        (sp.diags_array(np.arange(1.0, 1001.0)).tocsr(), {}, "slq"),
        (sp.diags_array(np.arange(1.0, 6001.0)).tocsr(), {"steps": 5}, "slq"),
        (np.random.default_rng(0).standard_normal((30, 90)), {}, "exact"),
    ],
)
def test_the_choice_is_made_by_cost_and_stated(operand, options, method):
    s = spectral.esd(operand, **options)
    assert s.method == method
    assert s.meta["choice"].startswith(f"{method}: ")


def test_both_methods_agree_on_the_trace():
    exact, slq = spectral.esd(A), spectral.esd(A, method="slq", steps=20)
    e = slq.integrate(lambda x: x)
    assert float(exact.integrate(lambda x: x)) == pytest.approx(820)
    assert abs(float(e) - 820) <= 4 * e.stderr


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"method": "magic"}, ValueError),
        ({"method": "exact", "steps": 3}, TypeError),
        ({"method": "exact", "tol": 0.1}, TypeError),
        ({"budget": "soon"}, ValueError),
        ({"colour": 3}, TypeError),
    ],
)
def test_a_bad_argument_is_one_sentence(options, kind):
    with pytest.raises(kind) as error:
        spectral.esd(A, **options)
    assert "\n" not in str(error.value)


def test_what_has_no_spectrum_is_refused():
    with pytest.raises(ValueError, match="empty"):
        spectral.esd(np.zeros((0, 0)))
    with pytest.raises(ValueError, match="not symmetric"):
        spectral.esd(np.array([[0.0, 1.0], [0.0, 0.0]]))
