"""How many vectors of a model's size are held at a time: memory is what a large model's spectrum is short of."""

import gc
import json
import sys
import weakref

import numpy as np
import pytest
import torch
from resident import measured
from torch import nn

import spectral

SCRIPT = """
import json, sys
import torch, spectral
from resident import peak
from torch import nn

job, matrix = sys.argv[1:]
RUN = {
    "slq": lambda A: spectral.slq(A, probes=1, steps=6, reorthogonalize=False, deflate=False, progress=False),
    "kpm": lambda A: spectral.kpm(A, probes=1, moments=8, progress=False),
    "trace": lambda A: spectral.trace(A, probes=4, progress=False),
    "diagonal": lambda A: spectral.diagonal(A, probes=3, progress=False),
}[job]

# 35 MB a vector: of lighter ones two are multiplied at a time
model = nn.Sequential(nn.Linear(2000, 2200), nn.Tanh(), nn.Linear(2200, 2000), nn.Tanh(), nn.Linear(2000, 4))
x, y = torch.randn(2, 2000), torch.randint(4, (2,))
loss = nn.CrossEntropyLoss()

def gradient():
    loss(model(x), y).backward()
    model.zero_grad(set_to_none=True)

RUN(spectral.GaussNewton(nn.Linear(100, 4), loss, [(x[:, :100], y)]))  # libraries are loaded
gradient()
base = peak(gradient)
most = peak(lambda: RUN(getattr(spectral, matrix)(model, loss, [(x, y)])))
print(json.dumps((most - base) / 4 / sum(p.numel() for p in model.parameters())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    "matrix, job, vectors",
    [
        ("GaussNewton", "slq", 4),
        pytest.param("GaussNewton", "trace", 3, marks=pytest.mark.slow),
        pytest.param("Hessian", "kpm", 4, marks=pytest.mark.slow),
        pytest.param("Hessian", "diagonal", 4.5, marks=pytest.mark.slow),
    ],
)
def test_runs_without_a_basis_hold_few_vectors_beside_model_and_gradient(job, vectors, matrix):
    frees = {"MALLOC_MMAP_THRESHOLD_": "131072"}  # what is given back is not resident: the law is of what is held
    found = json.loads(measured(SCRIPT, job, matrix, timeout=120, environment=frees))
    # a piece of a product, half a vector here, is there twice while it is added
    assert found <= vectors + 0.75


def test_signs_wait_in_bits_for_the_next_product_of_a_hessian():
    """Whose memory others could write to, so that they would be copied else."""
    model, x, y = nn.Linear(7, 3), torch.randn(4, 7), torch.tensor([0, 1, 2, 0])
    H = spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, y)])

    def alive():
        gc.collect()  # what other tests have left would go in between
        return sum(isinstance(o, torch.Tensor) and o.shape == (24,) for o in gc.get_objects())

    z = torch.from_numpy(np.where(np.arange(24) % 3, 1, -1).astype(np.float32))
    before = alive()
    w = H @ z
    assert alive() == before + 1 and w.shape == (24,)
    z *= 2  # the product is held to what was multiplied, not to this
    assert torch.allclose(H @ z, 2 * w, atol=1e-6)


@pytest.mark.parametrize("matrix", [spectral.GaussNewton, spectral.Hessian])
def test_no_vector_waits_for_a_collection(matrix):
    """Garbage in cycles goes when Python looks for it, which long products that allocate few objects put off."""
    x, y, loss = torch.randn(40, 20), torch.arange(40) % 5, nn.CrossEntropyLoss()
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))

    def run():
        A = matrix(model, loss, [(x, y)])
        for _ in range(8):  # a program is recorded and proved
            A @ torch.randn(A.shape[1])
        spectral.slq(A, probes=2, steps=20, progress=False)
        A @ torch.randn(A.shape[1], 8)
        return A

    run()  # what libraries load on first use leaves cycles of its own
    gc.collect()
    gc.disable()
    try:
        A = run()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [o for o in gc.garbage if issubclass(type(o), torch.Tensor) and o.numel() >= A.shape[1]]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("matrix", [spectral.GaussNewton, spectral.Hessian])
def test_nothing_is_kept_of_products_once_an_engine_has_passed_its_tests(matrix):
    model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3))
    A = matrix(model, nn.CrossEntropyLoss(), [(torch.randn(4, 30), torch.randint(3, (4,)))])
    for _ in range(4):
        v = torch.randn(A.shape[1])
        A @ v
        v.zero_()  # as recurrences do
    del v
    gc.collect()
    assert not [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.numel() == A.shape[1]]


class Batches(list):
    """A list that can be referred to weakly."""


def class_sum(output, batch):
    return nn.functional.cross_entropy(output, batch[1], reduction="sum"), len(batch[1])


MATRICES = {
    "Jacobian": lambda model, data, **how: spectral.Jacobian(model, data, **how),
    "gram": lambda model, data, **how: spectral.Jacobian(model, data, **how).gram("right"),
    **{
        name: lambda model, data, name=name, **how: getattr(spectral, name)(model, nn.CrossEntropyLoss(), data, **how)
        for name in ("GaussNewton", "Hessian", "Fisher", "EmpiricalFisher")
    },
    "callable": lambda model, data, **how: spectral.GaussNewton(model, class_sum, data, **how),
}
USES = {
    "built": lambda A: None,
    "one product": lambda A: A @ torch.randn(A.shape[1]),
    "products": lambda A: [A @ torch.randn(A.shape[1], 3) for _ in range(4)],
    "slq": lambda A: spectral.slq(A, probes=1, steps=3, progress=False),
    "kpm": lambda A: spectral.kpm(A, probes=1, moments=6, progress=False),
    "svd": lambda A: spectral.svd(A, 1),
}


@pytest.mark.parametrize("how", [{}, {"engine": "replay"}, {"engine": "double-backward"}, {"wrt": "inputs"}])
def test_an_operator_that_nobody_holds_is_gone_at_once_with_its_data_and_what_it_kept(how):
    """Not when the garbage collector comes, which knows nothing of gigabytes: what it keeps must not refer back to it."""
    torch.manual_seed(0)
    models = {matrix: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)) for matrix in MATRICES}
    uses = [name for name in USES if name in ("built", "one product", "products") or not how]
    cases = [(matrix, name) for matrix in MATRICES for name in uses]
    cases = [case for case in cases if case not in (("Jacobian", "slq"), ("Jacobian", "kpm"))]

    def used(matrix, name):
        data = Batches((torch.randn(6, 3), torch.randint(4, (6,))) for _ in range(2))
        USES[name](MATRICES[matrix](models[matrix], data, **how))
        return weakref.ref(data)

    for case in cases:  # what torch and scipy import at first is in a cycle of its own
        used(*case)
    gc.disable()
    try:
        assert [case for case in cases if used(*case)() is not None] == []
    finally:
        gc.enable()


def test_a_graph_is_counted_where_one_is_made_anew_and_recording_once():
    """Beside a batch's gradients: of a product that keeps nothing its graph, of a recorded one what is kept."""
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)), nn.CrossEntropyLoss()
    data = [(torch.randn(40, 20), torch.arange(40) % 5)]
    gradient = 4 * sum(p.numel() for p in model.parameters())
    anew = spectral.GaussNewton(model, loss, data, memory=0)
    anew @ torch.randn(anew.shape[1])
    assert anew.store.used == 0 and anew.workspace > gradient + 4 * 40 * 30  # the hidden layer is a part of the graph
    A = spectral.GaussNewton(model, loss, data)
    A.expect(10**6)
    for _ in range(12):
        A @ torch.randn(A.shape[1])
    assert A.describe()["engine"] == "replay" and A.workspace == gradient + A.store.used
    held = A.engine.recording
    assert A.store.used <= held and A.first_workspace == 2 * gradient + held
