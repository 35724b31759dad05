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
