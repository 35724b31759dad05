"""What `plan` predicts is what `slq` then does: products exactly, bytes as far as vectors are what there is."""

import numpy as np
import pytest
import torch

import spectral


class Counted(spectral.operators.operator.Operator):
    def __init__(self, n):
        super().__init__((n, n), torch.float64, torch.device("cpu"), symmetric=True)
        self.d = torch.linspace(0, 1, n, dtype=torch.float64)

    def _apply(self, V):
        return self.d[:, None] * V


@pytest.mark.parametrize("n, steps, probes", [(1, 3, 2), (2, 2, 1), (3, 30, 2), (200, 12, 3)])
def test_products_are_those_of_the_run_and_parts_are_summed(n, steps, probes):
    plan = spectral.plan(Counted(n), steps=steps, probes=probes)
    spectrum = spectral.slq(Counted(n), steps=steps, probes=probes)
    assert plan.products == min(steps, n) * probes >= spectrum.products
    assert plan.seconds == pytest.approx(sum(plan.parts.values())) and min(plan.parts.values()) >= 0
    assert plan.bytes == sum(plan.held.values()) <= plan.most_bytes and plan.fits


def test_a_matrix_of_zeros_has_a_plan():
    assert spectral.plan(np.zeros((4, 4)), steps=2, probes=1).products == 2


def test_without_room_for_a_basis_the_first_probe_is_made_twice(monkeypatch):
    monkeypatch.setattr(spectral.arrays, "available_memory", lambda device: 4 * 20 * 200 * 8)
    plan = spectral.plan(Counted(200), steps=50, probes=2)
    assert not plan.basis and plan.products == 50 * 2 + 49
    assert plan.held["basis"] == 0 and plan.parts["orthogonalisation"] == 0
    # what is deflated fits a quarter of what is free: 20 vectors
    assert plan.most_bytes == sum(plan.held.values()) - plan.held["deflation"] + 20 * 200 * 8


def test_a_plan_is_of_the_options_that_the_run_is_given(monkeypatch, tmp_path):
    n, steps = 200, 40
    made = {name: spectral.plan(Counted(n), steps=steps, probes=2, **options) for name, options in {
        "auto": {}, "none": {"reorthogonalize": False}, "disk": {"basis": tmp_path}, "free": {"deflate": False},
    }.items()}  # fmt: skip
    assert [p.held["basis"] for p in made.values()] == [steps * n * 8, 0, 0, steps * n * 8]
    assert [p.basis for p in made.values()] == [True, False, True, True]
    assert [p.products for p in made.values()] == [80] * 4  # without a basis nothing is deflated unless asked for
    assert [bool(p.held["deflation"]) for p in made.values()] == [True, False, True, False]
    assert spectral.plan(Counted(n), steps=steps, probes=2, reorthogonalize=False, deflate=True).products == 80 + 39
    with pytest.raises(ValueError, match="is no folder"):
        spectral.plan(Counted(n), basis=tmp_path / "none")


def test_vectors_that_a_product_makes_between_its_factors_are_counted():
    wide = spectral.as_operator(torch.ones(3, 5000, dtype=torch.float64))
    one = 5000 * 8
    plans = [spectral.plan(A, steps=3, probes=1) for A in (wide.gram("left"), wide @ wide.T, 2.0 * wide.gram("left"))]
    assert [plan.held["products"] for plan in plans] == [one] * 3
    assert (
        spectral.plan(wide.gram("right") + spectral.as_operator(torch.eye(5000).double()), probes=1).held["products"]
        == 0
    )
    model = torch.nn.Linear(1000, 2)
    J = spectral.Jacobian(model, [torch.ones(2, 1000)])
    # J^T u and the pieces it is written from, signs as tangents and what comes of them
    assert spectral.plan(J.gram("left"), steps=3, probes=1).held["products"] >= 4 * 2002 * 4
