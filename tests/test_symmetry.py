"""One wrong finite product among many is no spectrum: <x, A y> = <A^T x, y> of products that are made anyway."""

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch

import spectral
from spectral.krylov.block_lanczos import BlockLanczos
from spectral.krylov.golub_kahan import GolubKahan
from spectral.operators.operator import Operator

N = 60
VALUES = np.geomspace(1e-3, 1.0, N)
SIGNED = np.linspace(-1.0, 1.0, N)


def rotated(values, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    A = Q * values @ Q.T
    return (A + A.T) / 2


LAST_ALONE = ("block Lanczos", "Golub-Kahan")  # their last product, or its last half, meets no other


class Once(Operator):
    """A matrix with one wrong call among its products, number `wrong` from 1 on: `change(A v, v)` in its first column."""

    def __init__(self, M, wrong=None, change=None, dtype=torch.float64, **properties):
        self.M = torch.as_tensor(np.asarray(M)).to(dtype)
        super().__init__(tuple(self.M.shape), dtype, torch.device("cpu"), **{"symmetric": True, **properties})
        self.wrong, self.change, self.calls = wrong, change, 0

    def _made(self, W, V):
        self.calls += 1
        if self.calls == self.wrong:
            W[:, 0] = self.change(W[:, 0].clone(), V[:, 0])
        return W

    def _apply(self, V):
        return self._made(self.M @ V, V)

    def _apply_transpose(self, U):
        return self._made(self.M.T @ U, U)


def flipped(w, v):
    """The entry of the largest magnitude has the other sign."""
    w[w.abs().argmax()] *= -1
    return w


def noisy(w, v):
    return w + 0.01 * w.norm() * spectral.probes.probe(9, 9, len(w), dtype=w.dtype) / len(w) ** 0.5


def against_itself(w, v):
    """Less along v than of any semi-definite matrix, and otherwise the same."""
    return w - 2 * v * (v @ w) / (v @ v)


def followed(recurrence, block):
    """From a block of rows until there is no room for another."""
    recurrence.start(block)
    while 0 < len(recurrence.pending) <= recurrence.capacity - recurrence.size:
        recurrence.step()
    return recurrence


CHANGES = {"scaled": lambda w, v: 0.9 * w, "flipped": flipped, "noisy": noisy, "zero": lambda w, v: 0 * w}
OPTIONS = {"progress": False}
SEEN = {
    "slq with the basis": lambda A: spectral.slq(A, probes=2, steps=8, reorthogonalize=True, **OPTIONS),
    "slq, selective": lambda A: spectral.slq(A, probes=2, steps=8, reorthogonalize="selective", **OPTIONS),
    "slq without a basis": lambda A: spectral.slq(A, probes=2, steps=8, reorthogonalize=False, **OPTIONS),
    "block Lanczos": lambda A: followed(BlockLanczos(A, 18), torch.eye(N, 3, dtype=A.dtype).T),
    "Golub-Kahan": lambda A: followed(GolubKahan(A, 8), torch.ones(1, N, dtype=A.dtype)),
    "kpm": lambda A: spectral.kpm(A, probes=2, moments=16, **OPTIONS),
    "kpm, Chebyshev": lambda A: spectral.kpm(A, probes=2, moments=16, recurrence="chebyshev", **OPTIONS),
    "hutchinson": lambda A: spectral.trace(A, probes=12, method="hutchinson", **OPTIONS),
    "xtrace": lambda A: spectral.trace(A, probes=12, method="xtrace", **OPTIONS),
    "xnystrace": lambda A: spectral.trace(A, probes=12, method="xnystrace", **OPTIONS),
    "diagonal by hutchinson": lambda A: spectral.diagonal(A, probes=12, method="hutchinson", **OPTIONS),
    "xdiag": lambda A: spectral.diagonal(A, probes=12, method="xdiag", **OPTIONS),
    "exact diagonal": lambda A: spectral.diagonal(A, method="exact", **OPTIONS),
    "exact": lambda A: spectral.exact(A, **OPTIONS),
}
MEASURED = {
    "top": lambda A: spectral.top(A, 2, **OPTIONS),
    "top in blocks": lambda A: spectral.top(A, 2, block=3, **OPTIONS),
    "top with restarts": lambda A: spectral.top(A, 2, basis=12, **OPTIONS),
    "svd": lambda A: spectral.svd(A, 2, **OPTIONS),
    "svd with restarts": lambda A: spectral.svd(A, 2, basis=12, **OPTIONS),
}  # their last products say how right they are


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", SEEN)
def test_one_wrong_product_at_any_step_is_no_result(name, change, stride):
    """Four changes take turns at the steps, so that each step has one; each change has the last two."""
    values, definite = (VALUES, True) if name == "xnystrace" else (SIGNED, False)
    healthy = Once(rotated(values), nonnegative=definite)
    SEEN[name](healthy)
    last = healthy.calls - (name in LAST_ALONE)
    first = 1 + list(CHANGES).index(change) % stride
    for wrong in {*range(first, last + 1, stride), max(last - 1, 1), last}:
        with pytest.raises(
            RuntimeError, match=r"was wrong: .* when it was made again .*; run again, without"
        ) as caught:
            SEEN[name](Once(rotated(values), wrong, CHANGES[change], nonnegative=definite))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MEASURED)
def test_one_wrong_product_is_seen_or_the_residuals_tell(name, change):
    healthy = Once(rotated(SIGNED))
    right, seen = MEASURED[name](healthy), 0
    every = range(1 + 5 * list(CHANGES).index(change), healthy.calls + 1, 21)
    for wrong in [*every, healthy.calls - 1, healthy.calls]:
        try:
            found = MEASURED[name](Once(rotated(SIGNED), wrong, CHANGES[change]))
        except RuntimeError as error:
            assert "was wrong: " in str(error)
            seen += 1
            continue
        off = np.abs(found.values - right.values)
        assert np.all((off <= 2 * found.threshold) | ~found.converged), wrong
    assert seen > len(every) // 2


@pytest.mark.parametrize("name", ["slq with the basis", "slq, selective", "slq without a basis", "top"])
def test_semidefinite_matrix_has_no_negative_ritz_value(name):
    run = {**SEEN, **MEASURED}[name]
    for wrong in (3, 6):
        with pytest.raises(
            RuntimeError, match=r"semi-definite matrix .*negative Ritz|semi-definite matrix the Ritz value -"
        ):
            run(Once(rotated(VALUES), wrong, against_itself, nonnegative=True))
    assert run(Once(rotated(VALUES), nonnegative=True)) is not None


def test_product_that_is_wrong_along_its_own_vector_is_that_of_another_symmetric_matrix():
    """What docs/checks.md says cannot be seen: no pair of products contradicts it."""
    found = SEEN["slq with the basis"](Once(rotated(VALUES), 6, lambda w, v: w + v))
    assert found.method == "slq"


@pytest.mark.parametrize("name", ["slq with the basis", "exact", "svd"])
def test_operator_of_another_library_is_held_to_it_too(name):
    M, calls = rotated(SIGNED), []

    def multiply(v, wrong=11):
        calls.append(1)
        return (0.5 if len(calls) == wrong else 1.0) * (M @ v.reshape(-1))

    A = sla.LinearOperator((N, N), matvec=multiply, rmatvec=multiply, dtype=np.float64)
    with pytest.raises(RuntimeError, match="was wrong: "):
        {**SEEN, **MEASURED}[name](A)


def test_weights_that_change_during_a_run_are_seen():
    model, data = torch.nn.Linear(6, 3), [(torch.randn(20, 6, generator=torch.manual_seed(0)), torch.arange(20) % 3)]
    G = spectral.GaussNewton(model, torch.nn.CrossEntropyLoss(), data, engine="fresh")
    apply, calls = G._apply, []

    def moving(V):
        calls.append(1)
        if len(calls) == 5:
            model.weight.data.mul_(3)
        return apply(V)

    G._apply = moving
    with pytest.raises(RuntimeError, match="the weights or the data changed meanwhile"):
        spectral.slq(G, probes=1, steps=12, progress=False)


def test_product_that_is_never_the_same_twice_is_refused():
    A, draw = Once(rotated(SIGNED)), torch.Generator().manual_seed(0)
    A._made = lambda W, V: W * (1 + 1e-3 * torch.randn(W.shape, generator=draw, dtype=W.dtype))
    with pytest.raises(RuntimeError, match=r"not twice the same.*use_deterministic_algorithms"):
        SEEN["slq with the basis"](A)


HEALTHY = {
    "float32": lambda: Once(rotated(SIGNED), dtype=torch.float32),
    "float32, twelve decades": lambda: Once(rotated(np.geomspace(1e-12, 1, N)), dtype=torch.float32),
    "semi-definite of low rank": lambda: Once(rotated([0.0] * 50 + [1.0] * 10), dtype=torch.float32, nonnegative=True),
    "tiny": lambda: Once(1e-30 * rotated(SIGNED)),
    "near 0": lambda: Once(rotated(np.full(N, 1e-18) * SIGNED)),
    "zero": lambda: Once(np.zeros((N, N)), nonnegative=True),
    "identity": lambda: Once(np.eye(N), nonnegative=True),
}


@pytest.mark.parametrize("kind", HEALTHY)
@pytest.mark.parametrize("name", [name for name in [*SEEN, *MEASURED] if name != "xnystrace"])
def test_rounding_is_no_wrong_product_and_costs_none(name, kind):
    A = HEALTHY[kind]()
    {**SEEN, **MEASURED}[name](A)
    assert A.asymmetry == 0  # nothing was looked at again


def test_rounding_that_is_large_beside_the_matrix_is_told_from_a_wrong_product():
    """A - B of float32 products: what remains is their rounding, which is no matrix's, but the same each time."""
    M = rotated(SIGNED)
    close = torch.from_numpy(M).float() * (1 + 1e-6)
    A = spectral.as_operator(torch.from_numpy(M).float()) - spectral.as_operator(close)
    A.symmetric = True
    for name in ("slq with the basis", "slq, selective", "slq without a basis", "kpm, Chebyshev", "top", "exact"):
        {**SEEN, **MEASURED}[name](A)


class Otherwise(Once):
    """From product `since` on another engine multiplies, which rounds otherwise: by `unit` of the norm, the same each time."""

    def __init__(self, M, since, unit):
        super().__init__(M)
        self.since, self.error = since, unit * torch.from_numpy(rotated(SIGNED, seed=5))

    def _made(self, W, V):
        self.calls += 1
        return W + self.error @ V if self.calls >= self.since else W


@pytest.mark.parametrize("name", ["slq with the basis", "slq, selective", "top"])
@pytest.mark.parametrize("since", (3, 7, 11, 15))
def test_an_engine_that_takes_over_and_rounds_otherwise_is_no_wrong_product(name, since):
    eps = torch.finfo(torch.float64).eps
    {**SEEN, **MEASURED}[name](Otherwise(rotated(SIGNED), since, 200 * eps))
    with pytest.raises(RuntimeError, match="was wrong"):
        {**SEEN, **MEASURED}[name](Otherwise(rotated(SIGNED), since, 1e-6))


class InBlocks(Otherwise):
    """Several vectors at once are multiplied by another engine than one alone."""

    def _made(self, W, V):
        return W + self.error.tril() @ V if V.shape[1] > 1 else W


@pytest.mark.parametrize("name, unit", [("xtrace", 400), ("xnystrace", 100), ("xdiag", 400)])
def test_products_in_blocks_that_round_otherwise_than_alone_are_no_wrong_products(name, unit):
    eps, definite = torch.finfo(torch.float64).eps, name == "xnystrace"
    values = VALUES if definite else SIGNED
    A = InBlocks(rotated(values), 0, unit * eps)
    A.nonnegative = definite
    SEEN[name](A)
    assert 64 * eps < A.asymmetry < 512 * eps  # it was looked at again
    with pytest.raises(RuntimeError, match="was wrong"):
        SEEN[name](InBlocks(rotated(values), 0, 1e-6))


class Precise(Once):
    """Is said to round less than the vectors themselves."""

    product_error = 0.1 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("seed", [0, 1])
def test_rounding_is_amplified_where_vectors_are_not_orthogonalised(seed):
    """An outlier of 1000 beside couplings of .5: what the recurrence knows of the step before is off by 2000 times rounding."""
    A = Precise(rotated([1000.0, *SIGNED[1:]], seed))
    spectral.slq(A, probes=2, steps=20, reorthogonalize=False, **OPTIONS)
    assert A.asymmetry > 0  # it was looked at again


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_networks_in_coarse_dtypes_are_not_refused(dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.GELU(), torch.nn.Linear(20, 5))
    data = [(torch.randn(16, 12), torch.arange(16) % 5) for _ in range(2)]
    how = {"engine": "fresh", **({"product_dtype": dtype} if dtype == torch.bfloat16 else {})}
    for A in (
        spectral.GaussNewton(model, torch.nn.CrossEntropyLoss(), data, **how),
        spectral.Jacobian(model, data, **how).gram("right"),
    ):
        for mode in (True, "selective", False):
            assert spectral.slq(A, probes=2, steps=20, reorthogonalize=mode, progress=False).method == "slq"


@pytest.mark.parametrize("scale, dtype", [(1e-41, torch.float32), (1e-7, torch.float16)])
def test_products_that_underflow_are_named_and_not_called_wrong(scale, dtype):
    V = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0]
    A = (V * np.linspace(0.1, 3, 40)) @ V.T
    A = torch.from_numpy((A + A.T) / 2 * scale).to(dtype)
    for run in (lambda: spectral.top(A, 2), lambda: spectral.svd(A, 2), lambda: spectral.slq(A, probes=3, steps=12)):
        with pytest.raises(ValueError, match=r"loses digits \(underflow\); multiply the operator by a large number"):
            run()


@pytest.mark.parametrize("scale", [1e-7, 1e-10])  # a few digits are left, none is
@pytest.mark.parametrize(
    "estimate",
    [
        lambda A: spectral.trace(A, method="hutchinson", probes=4), lambda A: spectral.trace(A, method="xtrace", probes=4),
        lambda A: spectral.diagonal(A, method="hutchinson", probes=4), lambda A: spectral.diagonal(A, method="xdiag", probes=10),
        lambda A: spectral.frobenius(A, probes=5), lambda A: spectral.solve(A, torch.ones(12).half(), method="minres"),
        lambda A: spectral.solve(A, torch.ones(12).half(), method="lsmr"),
    ],
)  # fmt: skip
def test_products_that_their_dtype_does_not_hold_are_refused_and_not_0(estimate, scale):
    """`solve` gave x = 0 as converged, `trace` and `diagonal` 0 with an error of 0, a norm with two digits."""

    class Small(spectral.Operator):
        def _apply(self, V):
            return (scale * (2 * V.double() + V.double().roll(1, 0) + V.double().roll(-1, 0))).to(V.dtype)

        _apply_transpose = _apply

    with pytest.raises(
        ValueError, match=r"torch.float16 loses digits \(underflow\); multiply the operator by a large number"
    ):
        estimate(Small((12, 12), torch.float16, symmetric=True))
