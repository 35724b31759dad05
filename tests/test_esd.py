"""esd: the cheapest sound method, and why."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import spectral
from spectral.estimators import esd

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
        (sp.diags_array(np.arange(1.0, 1001.0)).tocsr(), {}, "exact"),  # 1000 products instead of 400
        (sp.diags_array(np.arange(1.0, 1301.0)).tocsr(), {"steps": 20}, "slq"),  # 1300 instead of 80
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


def jacobian(samples, inputs, outputs=10):
    return spectral.Jacobian(torch.nn.Linear(inputs, outputs), [torch.zeros(samples, inputs)], layout="stacked")


@pytest.mark.parametrize(
    ("samples", "inputs", "budget", "chosen", "why"),
    [
        (500, 800, None, True, "10 products and one pass over the data"),  # 5000 x 8010
        (820, 900, None, False, "is above 8,192, up to which all eigenvalues are cheap"),  # 8200 x 9010
        (450, 9000, None, False, "above 4,096"),  # rows longer than 16 times the dimension
        (450, 500, "5s", False, "longer than 5s"),
        (450, 500, 4, False, "more than the 4 of slq"),
    ],
)
def test_a_jacobian_whose_gram_one_pass_assembles_may_be_larger(samples, inputs, budget, chosen, why, monkeypatch):
    monkeypatch.setattr(spectral.arrays, "available_memory", lambda device: 2**35)
    found, reason = esd._exact_is_cheap(jacobian(samples, inputs), budget, {})
    assert found is chosen and why in reason


def many_outputs(samples, outputs):
    """One row for each sample, as long as two inputs times many outputs: a product is as many passes as the whole Gram."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, outputs, bias=False), torch.nn.ReLU()).double()
    return model, torch.randn(samples, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "factor", "shift"),
    [
        (lambda J: J, 1, 0),
        (lambda J: J.T, 1, 0),
        (lambda J: J.gram("left") / 24, 1 / 24, 0),
        (lambda J: J.gram() + spectral.I, 1, 1),
    ],
)
def test_401_outputs_of_24_samples_take_one_pass_and_not_hundreds(make, factor, shift):
    """wild_operators, case_401_outputs_flattened: the whole Gram costs half of what a single product does."""
    model, x = many_outputs(24, 401)
    J = spectral.Jacobian(model, [x], wrt="inputs", layout="flattened")
    before = J.epochs
    s = spectral.esd(make(J))
    assert (s.method, s.products, J.epochs - before) == ("exact", 401, 1)
    assert "9,624 VJPs of samples in 1 sweep" in s.meta["choice"]  # 24 x 401
    assert f"{96 * 24 * 401:,} JVPs and {96 * 24 * 401:,} VJPs" in s.meta["choice"]  # 4 probes, 24 steps each
    rows = ((model(x) > 0).double()[:, :, None] * model[0].weight.detach()).reshape(24, -1)
    expected = factor * torch.linalg.eigvalsh(rows @ rows.T) + shift
    assert np.allclose(s.points()[0], expected, atol=1e-11 * float(expected[-1]))


@pytest.mark.parametrize(
    ("samples", "outputs", "budget", "chosen", "why"),
    [
        (512, 2000, None, True, "1,024,000 VJPs of samples in 1 sweep"),
        (1500, 800, None, True, "dimension 1,500 takes 800 products and one pass"),
        (64, 401, "10epochs", True, "instead of up to 5"),  # a product with J J^T is two sweeps
        (64, 401, "1epochs", True, "instead of up to 1"),
        (64, 401, 400, False, "would take 401 products, more than the 256 of slq"),
        (64, 401, 401, True, "instead of up to 256"),
    ],
)
def test_many_outputs_are_chosen_by_passes_and_budgets_kept_as_they_are_counted(samples, outputs, budget, chosen, why):
    model, x = many_outputs(samples, outputs)
    J = spectral.Jacobian(model, [x], wrt="inputs", layout="flattened")
    found, reason = esd._exact_is_cheap(J, budget, {})
    assert found is chosen and why in reason


def test_beyond_the_limits_passes_that_are_known_to_outweigh_arithmetic_decide(monkeypatch):
    """At 9000 samples the eigenvalues take 1.6e13 flops: 400 products of 300 passes through 1e5 weights take 9e14."""
    monkeypatch.setattr(spectral.arrays, "available_memory", lambda device: 2**35)
    layers = [torch.nn.Linear(40, 200), torch.nn.ReLU(), torch.nn.Linear(200, 200), torch.nn.Linear(200, 300)]
    x = torch.zeros(9000, 40).split(3000)
    J = spectral.Jacobian(torch.nn.Sequential(*layers), list(x), wrt="inputs", layout="flattened")
    found, why = esd._exact_is_cheap(J, None, {})
    assert found and "dimension 9,000 takes 300 products and one pass" in why
    found, why = esd._exact_is_cheap(J, None, {"probes": 1, "steps": 1})
    assert (
        not found
        and "dimension 9,000 is above 8,192, up to which all eigenvalues are cheap: they take 2,700,000 VJPs" in why
    )


def test_the_smaller_side_of_a_gram_decides():
    J = jacobian(4, 600)  # 40 x 6010
    s = spectral.esd(J.gram(side="right"))
    assert s.method == "exact" and s.dim == 6010 and s.zeros == 5970


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"method": "magic"}, ValueError),
        ({"method": "exact", "steps": 3}, TypeError),
        ({"method": "exact", "tol": 0.1}, TypeError),
        ({"method": "kpm", "tol": 0.1}, TypeError),
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


@pytest.mark.parametrize("options", [{}, {"wrt": "inputs"}, {"wrt": "inputs", "layout": "flattened"}])
def test_square_jacobian_means_its_gram_like_any_other(options):
    """One sample, one output, one parameter: J is the 1 x 1 matrix (w) or (x), its spectrum is the square."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(model.weight, -0.5)
    J = spectral.Jacobian(model, [torch.full((1, 1), -3.0, dtype=torch.float64)], **options)
    expected = 9.0 if not options else 0.25
    for A in (J, J.T, -J, 0.5 * J + 0.5 * J):
        assert spectral.esd(A).interval == spectral.slq(A).interval == pytest.approx((expected, expected), rel=1e-15)
        assert float(spectral.trace(A)) == pytest.approx(expected)
    assert spectral.esd(J.T @ J).interval == pytest.approx((expected, expected))
    assert float(spectral.label_alignment(J, np.array([1.0]), centred=False).energy) == 1.0


def test_chebyshev_moments_are_chosen_when_asked_for():
    s = spectral.esd(A, method="kpm", moments=20)
    assert (s.method, s.meta["choice"]) == ("kpm", "kpm: asked for")
    assert spectral.esd(A, moments=20).meta["choice"] == "kpm: moments given"
    with pytest.raises(TypeError, match="half the moments"):
        spectral.esd(A, method="kpm", moments=20, steps=10)


@pytest.mark.parametrize(
    ("vectors", "options", "method", "recurrence"),
    [
        (7, {}, "slq", None),
        (6, {}, "kpm", "lanczos"),
        (4, {"steps": 12, "probes": 3}, "kpm", "lanczos"),
        (3, {"budget": 100}, "kpm", "chebyshev"),
        (3, {"tol": 0.5}, "slq", None),  # which kpm has not
        (3, {"deflate": False}, "slq", None),
    ],
)
def test_memory_for_three_vectors_but_not_for_deflation_means_kpm(monkeypatch, vectors, options, method, recurrence):
    """A (70, 900) rectangular operator has its Gram's vectors, of length 70."""
    values = np.random.default_rng(0).uniform(1, 2, 70)
    B = sp.diags_array(values, shape=(70, 900)).tocsr()
    monkeypatch.setattr(spectral.arrays, "available_memory", lambda device: vectors * 70 * 8 + 100)
    s = spectral.esd(B, **options)
    assert (s.method, s.meta.get("recurrence")) == (method, recurrence)
    if method == "kpm":
        assert f"the free memory holds {vectors} vectors of length 70" in s.meta["choice"]
        assert s.meta["moments"] == 2 * options.get("steps", 100)
    trace = s.integrate(lambda x: x)
    assert abs(float(trace) - np.sum(values**2)) <= 4 * trace.stderr


@pytest.mark.parametrize("method", ["slq", "kpm", "exact"])
def test_a_checkpoint_is_handed_to_the_method(tmp_path, method):
    options = {"method": method, "checkpoint": tmp_path / "run.npz", **({} if method == "exact" else {"steps": 20})}
    one = spectral.esd(spectral.as_operator(sp.csr_array(A)), progress=False, **options)
    operator = spectral.as_operator(sp.csr_array(A))
    two = spectral.esd(operator, **options)  # one product is made again, and nothing is left to multiply
    assert operator.products == 1 and one.products == two.products > 0 and one.meta["choice"] == two.meta["choice"]
    assert np.array_equal(one.nodes, two.nodes) and np.array_equal(one.weights, two.weights)
    assert np.array_equal(one.atoms.values, two.atoms.values)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tol": "abc"}, "tol='abc' is no tolerance"),
        ({"budget": "abc"}, "budget='abc' is no budget"),
        ({"probes": 0}, "probes=0 is no number of probes"),
        ({"steps": 2.5}, "steps=2.5 is no number of steps"),
        ({"seed": -1}, "seed=-1"),
        ({"deflate": "yes"}, "deflate='yes' is not known"),
        ({"reorthogonalize": "full"}, "reorthogonalize='full' is not known"),
        ({"progress": "loud"}, "progress='loud' is not known"),
        ({"prob": 3}, "esd got unknown options prob; it takes tol, budget"),
    ],
)
def test_options_are_checked_where_all_eigenvalues_are_computed_too(options, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        spectral.esd(np.diag([1.0, 2.0]), **options)
