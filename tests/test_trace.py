"""Traces: unbiased, with calibrated errors on spectra of every shape, and an end for every tolerance."""

import numpy as np
import pytest
import torch
from torch import nn

import spectral
from spectral.estimators import samplers

N = 100
RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.standard_normal((N, N)))[0]
X = RNG.standard_normal((N, 2 * N))
SIGNS = (-1.0) ** np.arange(N)
SPECTRA = {
    "flat": np.linspace(0.9, 1.1, N),
    "marchenko-pastur": np.linalg.eigvalsh(X @ X.T / (2 * N)),
    "outliers": np.append(RNG.uniform(0, 1, N - 8), np.geomspace(3, 100, 8)),
    "one outlier": np.append(RNG.uniform(0, 0.1, N - 1), 50.0),
    "log-uniform": 10 ** RNG.uniform(-6, 0, N),
    "exponential": 0.8 ** np.arange(N),
    "power law": 1.0 / np.arange(1, N + 1) ** 2,
    "uniform, both signs": RNG.uniform(-1, 1, N),
    "decaying, both signs": SIGNS * 0.85 ** np.arange(N),
    "outliers, both signs": np.append(RNG.uniform(-1, 1, N - 6), [30.0, -20.0, 15.0, 12.0, -10.0, 9.0]),
}
METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace")


def rotated(values, dtype=np.float64):
    """A dense matrix with these eigenvalues: signs have no variance on a diagonal one."""
    U = Q if len(values) == N else np.linalg.qr(np.random.default_rng(1).standard_normal((len(values),) * 2))[0]
    A = U * np.asarray(values) @ U.T
    return ((A + A.T) / 2).astype(dtype)


def calibration(method, name, probes, trials):
    """(mean error / its standard deviation of the mean, rms z, coverage of 1.96 stderr)."""
    values = SPECTRA[name]
    A = spectral.as_operator(rotated(values))
    found = [spectral.trace(A, method=method, probes=probes, seed=seed) for seed in range(trials)]
    error = np.array([float(e) - values.sum() for e in found])
    z = error / np.array([e.stderr for e in found])
    return error.mean() / (error.std() / np.sqrt(trials)), np.sqrt(np.mean(z**2)), np.mean(np.abs(z) < 1.96)


def check(method, name, probes, trials):
    mean, rms, coverage = calibration(method, name, probes, trials)
    assert abs(mean) < 4, mean
    assert 0.8 <= rms <= 1.3, rms
    assert coverage >= 0.9, coverage


CASES = [(m, name) for m in METHODS for name, v in SPECTRA.items() if m != "xnystrace" or v.min() >= 0]


FEW = list(SPECTRA)[:5]


ORDINARY = [(m, name) for m in METHODS for name in ("flat", "outliers", "log-uniform") if m != "hutchinson"]
ORDINARY += [("hutchinson", "outliers")]  # its law knows of A only what lies beside the diagonal


@pytest.mark.parametrize(
    ("method", "name"), [pytest.param(*case, marks=[] if case in ORDINARY else [pytest.mark.slow]) for case in CASES]
)
def test_unbiased_with_a_calibrated_error(method, name):
    """XTrace with ten vectors has one tail longer than that (log-uniform: rms z 1.2 over 600 seeds, one of them -12)."""
    check(method, name, 30 if method in ("hutch++", "xtrace") else 20, 100)


@pytest.mark.slow
@pytest.mark.parametrize("probes", [30, 45, 60])
@pytest.mark.parametrize(("method", "name"), CASES)
def test_unbiased_with_a_calibrated_error_at_other_sizes(method, name, probes):
    check(method, name, probes, 600)


def quadrature(name, f, trials):
    """z-scores (trials,) of Lanczos quadrature by four probes; every spectrum has seeds of its own."""
    first = 10_000 * list(SPECTRA).index(name)
    A, truth = spectral.as_operator(rotated(SPECTRA[name])), (f or (lambda x: x))(SPECTRA[name]).sum()
    found = [spectral.trace(A, f, method="slq", probes=4, steps=16, seed=first + i) for i in range(trials)]
    return np.array([(float(e) - truth) / e.stderr for e in found])


@pytest.mark.parametrize("f", [None, lambda x: np.exp(x / 10)], ids=["identity", "exp"])
def test_quadrature_with_few_probes_is_calibrated(f, trials=10):
    z = np.array([quadrature(name, f, trials) for name in (*FEW, "outliers, both signs")])
    rms = np.sqrt(np.mean(z**2, axis=1))
    spread = 3 / np.sqrt(2 * trials)  # of the rms of that many normal numbers
    assert ((rms >= 0.8 - spread) & (rms <= 1.3 + spread)).all(), rms
    assert 0.8 <= np.sqrt(np.mean(z**2)) <= 1.3
    least = 0.95 - 3 * np.sqrt(0.95 * 0.05 / z.size)
    assert np.mean(np.abs(z) < 1.96) >= least, np.mean(np.abs(z) < 1.96, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("f", [None, lambda x: np.exp(x / 10)], ids=["identity", "exp"])
def test_quadrature_with_few_probes_is_calibrated_in_many_trials(f):
    z = np.array([quadrature(name, f, 300) for name in SPECTRA])
    rms = np.sqrt(np.mean(z**2, axis=1))
    assert ((rms >= 0.8) & (rms <= 1.3)).all(), rms
    assert np.mean(np.abs(z) < 1.96) >= 0.93, np.mean(np.abs(z) < 1.96, axis=1)


# Laws of the leave-one-out samples -------------------------------------------------------------------------------------
def orth(Y):
    return np.linalg.qr(Y)[0] if Y.shape[1] else Y


def xtrace_samples(A, Omega):
    """Written out: a QR decomposition for each vector left out."""
    n, m = Omega.shape
    e = []
    for i in range(m):
        P = orth(A @ np.delete(Omega, i, 1))
        left = Omega[:, i] - P @ (P.T @ Omega[:, i])
        e.append(np.trace(P.T @ A @ P) + (n - m + 1) * (left @ A @ left) / (left @ left))
    return np.array(e)


def xnystrace_samples(A, Omega):
    n, m = Omega.shape
    e = []
    for i in range(m):
        Oi = np.delete(Omega, i, 1)
        approximation = A @ Oi @ np.linalg.inv(Oi.T @ A @ Oi) @ Oi.T @ A
        P = orth(Oi)
        left = Omega[:, i] - P @ (P.T @ Omega[:, i])
        e.append(np.trace(approximation) + (n - m + 1) * (left @ (A - approximation) @ left) / (left @ left))
    return np.array(e)


@pytest.mark.parametrize(("method", "written"), [("xtrace", xtrace_samples), ("xnystrace", xnystrace_samples)])
def test_the_samples_are_those_of_the_definition_with_and_without_each_other_vector(method, written):
    A, m = rotated(SPECTRA["power law"]), 6
    sampler = {"xtrace": samplers.XTrace, "xnystrace": samplers.XNysTrace}[method](spectral.as_operator(A), 3)
    sampler.add(4)
    sampler.add(2)
    e, change, _ = sampler.samples()
    Omega = sampler.Omega.numpy()
    assert e == pytest.approx(written(A, Omega), rel=1e-9)
    for j in range(m):
        without = np.delete(e - change[:, j], j)
        assert without == pytest.approx(written(A, np.delete(Omega, j, 1)), rel=1e-7)


def test_xtrace_needs_no_symmetry():
    A = rotated(SPECTRA["power law"]) + 0.1 * np.triu(RNG.standard_normal((N, N)), 1) / N
    sampler = samplers.XTrace(spectral.as_operator(A), 0)
    sampler.add(5)
    assert sampler.samples()[0] == pytest.approx(xtrace_samples(A, sampler.Omega.numpy()), rel=1e-9)


@pytest.mark.parametrize("vectors", [2, 3])
def test_signs_that_look_alike_on_few_entries_state_an_error_that_holds(vectors):
    """On diag(2^-k) a quarter of the runs with two samples was beyond 2 stderr, a tenth beyond 6: their samples agreed."""
    values = 2.0 ** -np.arange(32)
    A = spectral.as_operator(np.diag(values))
    found = [spectral.trace(A, method="hutch++", probes=3 * vectors, seed=seed) for seed in range(60)]
    z = np.array([(float(e) - values.sum()) / e.stderr for e in found])
    assert (np.abs(z) < 2).mean() >= 0.95 and np.abs(z).max() < 6


# Matrices that break formulas ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("method", ["hutch++", "xtrace", "xnystrace"])
def test_low_rank_and_multiples_of_the_identity_are_exact(method, scale, dtype):
    eps = np.finfo(dtype).eps
    for values in (np.append(np.zeros(N - 7), np.arange(1.0, 8.0)), np.ones(N), np.zeros(N)):
        if method == "hutch++" and values.min() > 0:
            values = np.append(np.zeros(N - 2), [1.0, 5.0])
        e = spectral.trace(rotated(scale * values, dtype), method=method, probes=36)
        assert float(e) == pytest.approx(scale * values.sum(), abs=200 * eps * scale * values.sum())
        assert e.stderr <= 200 * eps * scale * values.sum()


@pytest.mark.parametrize("method", METHODS)
def test_scale_and_dtype_change_nothing_else(method):
    A = rotated(SPECTRA["outliers"])
    one = spectral.trace(A, method=method, probes=24, seed=5)
    for c in (2.0**-30, 2.0**30):
        other = spectral.trace(c * A, method=method, probes=24, seed=5)
        assert (other.value, other.stderr) == pytest.approx((c * one.value, c * one.stderr), rel=1e-9)
    single = spectral.trace(A.astype(np.float32), method=method, probes=24, seed=5)
    assert float(single) == pytest.approx(float(one), rel=1e-4)
    assert single.stderr == pytest.approx(one.stderr, rel=1e-2)


def test_fewer_products_for_the_same_error_where_the_spectrum_decays():
    A, truth = spectral.as_operator(rotated(SPECTRA["exponential"])), SPECTRA["exponential"].sum()
    error = {
        m: np.sqrt(np.mean([(float(spectral.trace(A, method=m, probes=60, seed=s)) - truth) ** 2 for s in range(20)]))
        for m in METHODS
    }
    assert error["hutch++"] < error["hutchinson"] / 10
    assert error["xtrace"] < error["hutch++"] / 3
    assert error["xnystrace"] < error["xtrace"] / 30


def test_an_indefinite_or_unsymmetric_matrix_is_refused_by_xnystrace():
    with pytest.raises(ValueError, match="not positive semi-definite"):
        spectral.trace(-np.eye(N), method="xnystrace", probes=10)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        spectral.trace(rotated(SPECTRA["uniform, both signs"]), method="xnystrace", probes=10)
    with pytest.raises(ValueError, match="not symmetric"):
        spectral.trace(np.triu(np.ones((N, N))), method="xnystrace", probes=10)


# Exactness, tolerances, budgets ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ("auto", *METHODS))
def test_as_many_products_as_dimensions_are_exact(method):
    e = spectral.trace(np.diag([1.0, -5.0, 2.5]), probes=3, method=method)
    assert (e.value, e.stderr, e.lower, e.upper, e.probes, e.products) == (-1.5, 0.0, -1.5, -1.5, 3, 3)
    assert spectral.trace(rotated(np.arange(N)), method=method, budget=N, probes=10**6).products == N


def test_signs_have_no_variance_on_a_diagonal_matrix():
    e = spectral.trace(np.diag(np.arange(50.0)), probes=3, method="hutchinson")
    assert (e.value, e.probes, e.products) == (1225.0, 3, 3)
    assert e.stderr < 1e-12
    assert np.isnan(e.lower)


@pytest.mark.parametrize("method", ["auto", "hutchinson", "hutch++", "xtrace"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rtol_is_met_for_positive_and_negative_traces(sign, method):
    A = spectral.as_operator(rotated(sign * np.linspace(0.5, 2, 900)))
    e = spectral.trace(A, rtol=0.01, method=method)
    assert 0 < e.stderr <= 0.01 * abs(float(e))
    assert 20 <= e.products < 900
    assert abs(float(e) - sign * 1125) < 5 * e.stderr


def test_a_trace_near_zero_becomes_exact_or_ends_with_its_error_stated(monkeypatch):
    values = np.tile([1.0, -1.0], 50)
    e = spectral.trace(rotated(values), rtol=1e-3)
    assert (e.stderr, abs(float(e)) < 1e-12) == (0.0, True)
    monkeypatch.setattr("spectral.estimators.trace.MOST", 40)
    e = spectral.trace(rotated(values), rtol=1e-3, method="hutchinson")
    assert e.probes == 40
    assert abs(float(e)) < 5 * e.stderr
    assert spectral.trace(np.zeros((50, 50)), rtol=1e-3, probes=20).stderr == 0  # 0 +- 0 meets every tolerance


def test_a_budget_ends_the_products():
    A = rotated(np.arange(float(N)))
    e = spectral.trace(A, rtol=1e-9, budget=37, method="hutchinson")
    assert (e.probes, e.products) == (37, 37)
    assert spectral.trace(A, rtol=1e-9, budget=37, method="xtrace").products == 36
    assert spectral.trace(A, probes=30, budget="24products", method="hutch++").products == 24
    with pytest.raises(ValueError, match="budget=3 allows fewer"):
        spectral.trace(A, method="xtrace", budget=3)


def test_doubling_keeps_what_was_drawn():
    A = spectral.as_operator(rotated(SPECTRA["uniform, both signs"]))
    for kind in (samplers.Hutchinson, samplers.XTrace, samplers.HutchPlusPlus):
        once, twice = kind(A, 1), kind(A, 1)
        once.add(12)
        twice.add(6)
        twice.add(6)
        assert once.estimate() == pytest.approx(twice.estimate(), rel=1e-10)


def test_auto_knows_semi_definiteness_size_and_memory(monkeypatch):
    from spectral.estimators.trace import choose

    gram, plain = spectral.as_operator(RNG.standard_normal((90, 80))).gram(), spectral.as_operator(rotated(np.ones(N)))
    assert [choose(gram, p) for p in (5, 10, 50)] == ["hutchinson", "xnystrace", "xnystrace"]
    assert [choose(plain, p) for p in (10, 20, 50)] == ["hutchinson", "xtrace", "xtrace"]
    monkeypatch.setattr(spectral.estimators.leave_one_out.arrays, "available_memory", lambda device: 1000)
    assert choose(gram, 50) == choose(plain, 50) == "hutchinson"


def test_a_rectangular_operator_means_its_gram_on_the_smaller_side():
    B = RNG.standard_normal((40, 9))
    e = spectral.trace(B)
    assert float(e) == pytest.approx((B**2).sum())
    assert e.products == 9
    wide = spectral.as_operator(B).gram("left")
    assert float(spectral.trace(wide)) == pytest.approx((B**2).sum())


def test_a_function_goes_through_quadrature():
    values = np.linspace(0.5, 2, N)
    A, truth = rotated(values), np.log(values).sum()
    e = spectral.trace(A, np.log, steps=60)
    assert abs(float(e) - truth) < 4 * e.stderr + 1e-12
    assert float(spectral.trace(2 * np.eye(50), np.log)) == pytest.approx(34.657359027997266)
    assert float(spectral.trace(A, method="slq", probes=2)) == pytest.approx(
        float(spectral.slq(A, probes=2).integrate(lambda x: x))
    )
    fine = spectral.trace(A, lambda x: x**2, rtol=0.01, steps=10)
    assert 0 < fine.stderr <= 0.01 * float(fine)
    assert abs(float(fine) - (values**2).sum()) < 4 * fine.stderr
    deep = spectral.trace(rotated(np.geomspace(1e-3, 1, N)), np.log, rtol=0.05, steps=5)
    assert abs(float(deep) - np.log(np.geomspace(1e-3, 1, N)).sum()) < 4 * deep.stderr


def test_products_that_are_not_finite_are_named():
    class Broken(spectral.Operator):
        def _apply(self, V):
            return V * float("nan")

    with pytest.raises(ValueError, match="NaN or infinity"):
        spectral.trace(Broken((50, 50), torch.float64, symmetric=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": 1}, "probes=1"),
        ({"probes": True}, "probes=True"),
        ({"probes": 2.5}, "probes=2.5"),
        ({"probes": 3, "method": "xtrace"}, "probes >= 4"),
        ({"rtol": 0.0}, "rtol=0.0"),
        ({"rtol": -1}, "rtol=-1"),
        ({"method": "guess"}, "method='guess'"),
        ({"f": np.log, "method": "hutchinson"}, "hutchinson"),
        ({"f": np.log, "method": "xtrace"}, "xtrace"),
        ({"budget": "x"}, "budget='x'"),
    ],
)
def test_a_bad_argument_is_one_sentence(options, words):
    with pytest.raises(ValueError) as error:
        spectral.trace(np.eye(30), **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="steps"):
        spectral.trace(np.eye(30), steps=5)


def test_method_of_a_budget_in_seconds_is_that_of_as_many_products():
    A = rotated(np.linspace(1, 2, 300))
    assert spectral.trace(A, budget="60s").method == spectral.trace(A).method == "xtrace"
    assert spectral.trace(A, budget=9).method == "hutchinson"


@pytest.mark.parametrize("method", ["hutch++", "xtrace", "xnystrace"])
def test_where_low_rank_leaves_nothing_but_rounding_the_error_is_that_rounding(method):
    """Of rank 4 every vector but four is exact: what is left is the rounding of float64 sums, and of the shift of "xnystrace"."""
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((200, 4)))[0]
    A = spectral.as_operator((Q * [1.0, 2.0, 3.0, 4.0]) @ Q.T)
    runs = [spectral.trace(A, method=method, probes=30, seed=seed) for seed in range(40)]
    assert max(e.stderr for e in runs) <= 1e-11
    assert np.mean([abs(e.value - 10) <= 3 * e.stderr for e in runs]) >= 0.95


class RootMeanSquare(nn.Module):
    """Llama's norm, which computes in float32 whatever its input is: products in float64 are good to eps of float32."""

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


@pytest.mark.parametrize("method", ["auto", "xnystrace"])
def test_the_symmetry_that_is_asked_for_is_that_of_the_products_rounding(method):
    """Not that of the vectors' dtype: every Llama in float64 was "not symmetric", and so was what is made of its matrices."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), RootMeanSquare(), nn.Tanh(), nn.Linear(12, 5)).double()
    x, y = torch.randn(60, 6, dtype=torch.float64), torch.arange(60) % 5
    A = spectral.GaussNewton(model, nn.CrossEntropyLoss(), [(x, y)])
    dense = A @ torch.eye(A.shape[0], dtype=torch.float64)
    exact = float(dense.trace())
    found = spectral.trace(A, method=method, probes=60)
    assert found.method == "xnystrace"
    assert abs(found.value - exact) < 4 * found.stderr < exact / 10
    squared = spectral.slq(A @ A, probes=20).integrate(
        lambda t: t
    )  # nobody knows that it is symmetric: two products tell
    assert abs(squared.value - float(dense.square().sum())) < 4 * squared.stderr
