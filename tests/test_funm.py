"""f(A) b against dense functions, its stated error, its brackets; the measure of one vector."""

import itertools

import numpy as np
import pytest
import torch

import spectral
from spectral import as_operator, funm, spectrum_of
from spectral.krylov.lanczos import Lanczos, lanczos
from spectral.quadrature import applied, bounds

RNG = np.random.default_rng(1)
N = 80
Q = np.linalg.qr(RNG.standard_normal((N, N)))[0]
VALUES = {
    "log-uniform": np.geomspace(1e-4, 1, N),
    "uniform": np.linspace(0.1, 3, N),
    "outliers": np.append(np.linspace(0.01, 0.1, N - 3), [1.0, 2.0, 3.0]),
    "clusters": np.repeat([0.5, 1.0, 4.0, 4.5], N // 4),
}
b = RNG.standard_normal(N)
DENSE = {
    "log": np.log, "inverse": lambda x: 1 / x, "sqrt": np.sqrt, "exp": np.exp,
    "entropy": lambda x: -x * np.log(x),
}  # fmt: skip


def matrix(name, sign=True):
    A = as_operator((Q * VALUES[name]) @ Q.T)
    A.nonnegative = sign
    return A


def truth(name, f, v=b):
    return Q @ (f(VALUES[name]) * (Q.T @ v))


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("f", DENSE)
def test_the_error_is_at_most_what_is_stated_and_the_form_is_in_its_bracket(name, f):
    """At every depth, not only at the last: certified where the end that matters is known."""
    A, due, form = matrix(name), truth(name, DENSE[f]), b @ truth(name, DENSE[f])
    low, high = VALUES[name][[0, -1]]
    for steps in (2, 5, 17, 80):
        p = funm(A, f, b, tol=1e-15, steps=steps, interval=(low, high))
        off = np.linalg.norm(p.value - due)
        assert p.certified and off <= p.error, f"after {steps} steps"
        assert p.lower <= form <= p.upper or (np.isnan(p.lower) and f == "entropy" and steps < 2)


@pytest.mark.parametrize("f", ["log", "inverse", "sqrt", "exp"])
def test_the_bound_is_near_the_error(f):
    """Conservative, and no more than that: within a factor of 100 over six orders of magnitude."""
    A, due = matrix("uniform"), truth("uniform", DENSE[f])
    for steps in (4, 6, 8):
        p = funm(A, f, b, tol=1e-15, steps=steps, interval=(0.1, 3.0))
        assert p.error <= 100 * np.linalg.norm(p.value - due)


def test_steps_go_on_until_the_tolerance_is_met():
    for tol in (1e-2, 1e-6, 1e-9):
        p = funm(matrix("log-uniform") + 0.01 * spectral.I, "inverse", b, tol=tol)
        due = Q @ ((Q.T @ b) / (VALUES["log-uniform"] + 0.01))
        assert p.converged.all() and p.certified and p.error <= tol * np.linalg.norm(p.value)
        assert np.linalg.norm(p.value - due) <= p.error
    assert p.meta["interval"] == [0.01, None] and p.products == p.steps[0]


def test_an_end_that_nobody_knows_leaves_an_error_that_is_no_proof():
    p = funm(matrix("uniform", sign=None), "exp", b)
    assert not p.certified and p.converged.all() and np.linalg.norm(p.value - truth("uniform", np.exp)) <= p.error
    assert "about" in str(p) and np.isnan(p.estimates()["norm_1"].lower)


@pytest.mark.parametrize("f", [np.cos, lambda x: np.abs(x - 1.0), lambda x: x**3])
def test_a_function_of_which_nothing_is_known_is_looked_at_everywhere(f):
    p = funm(matrix("uniform"), f, b, tol=1e-8, steps=20, interval=(0.1, 3.0))
    assert not p.certified and np.isnan(p.lower) and np.isnan(p.upper)
    assert np.linalg.norm(p.value - truth("uniform", f)) <= p.error


def test_powers_and_own_signs_have_brackets_too():
    for g, f in (
        (bounds.power(-0.5), lambda x: x**-0.5),
        (bounds.Signed(lambda x: np.exp(-x), 1, -1, 0), lambda x: np.exp(-x)),
    ):
        p = funm(matrix("uniform"), g, b, tol=1e-5, interval=(0.1, 3.0))
        assert p.certified and p.lower <= b @ truth("uniform", f) <= p.upper
        assert np.linalg.norm(p.value - truth("uniform", f)) <= p.error


def test_without_a_basis_each_product_is_made_twice_and_gives_the_same():
    A = matrix("uniform")
    one, two = (funm(A, "sqrt", b, reorthogonalize=mode) for mode in (True, False))
    assert np.allclose(one.value, two.value, rtol=1e-5) and two.products == 2 * two.steps[0] - 1
    assert np.linalg.norm(two.value - truth("uniform", np.sqrt)) <= two.error


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("budget", [1, 6, 9])
def test_a_budget_is_kept(mode, budget):
    p = funm(matrix("log-uniform"), "sqrt", b, tol=1e-12, reorthogonalize=mode, budget=budget)
    assert p.products <= budget and p.meta["stops"] == ["budget"] and not p.converged.any()
    assert np.linalg.norm(p.value - truth("log-uniform", np.sqrt)) <= p.error


def test_several_vectors_are_each_as_alone_and_of_the_kind_that_was_given():
    B = torch.from_numpy(np.stack([b, 2 * b, 0 * b], 1))
    p = funm(matrix("outliers"), "sqrt", B)
    assert isinstance(p.value, torch.Tensor) and p.value.shape == (N, 3) and p.error.shape == (3,)
    alone = funm(matrix("outliers"), "sqrt", b)
    assert np.allclose(p.value[:, 1], 2 * alone.value) and p.error[1] == pytest.approx(2 * alone.error)
    assert p.value[:, 2].norm() == 0 and p.error[2] == 0 and p.steps[2] == 0


def test_in_float32_the_error_holds_what_rounding_leaves():
    A = as_operator(matrix("log-uniform").matrix.float())
    A.nonnegative = True
    p = funm(A, "sqrt", b.astype(np.float32), tol=1e-9)
    assert not p.converged.any() and np.linalg.norm(p.value - truth("log-uniform", np.sqrt)) <= p.error < 0.05


def test_the_error_function_is_the_error():
    """||f(A) u - V f(T) e_1|| = ||e(A) q_{k+1}||, e by its formula: the oracle of the bound, at every step."""
    A, u = matrix("uniform"), b / np.linalg.norm(b)
    record = lanczos(A, torch.from_numpy(b), 6)
    theta, S = record.eigen
    x = VALUES["uniform"]
    e = record.betas[-1] * ((np.exp(x)[:, None] - np.exp(theta)) / (x[:, None] - theta)) @ (S[-1] * S[0])
    deeper = Lanczos(A, torch.from_numpy(b), 7)
    while deeper.step():
        pass
    V = deeper.combine(np.eye(deeper.steps)).numpy()
    exact = Q @ (np.exp(x) * (Q.T @ u)) - V[:6].T @ applied.approximation(record, bounds.NAMED["exp"])
    assert np.allclose(exact, Q @ (e * (Q.T @ V[6])), atol=1e-12)


def test_without_a_vector_it_is_an_operator_that_a_preconditioner_can_be(monkeypatch):
    """What multiplies by P gives P^{-1/2}: the eigenvalues are those of P^{-1} A."""
    n = 12
    basis = np.linalg.qr(RNG.standard_normal((n, n)))[0]
    P, A = (basis * np.linspace(1, 4, n)) @ basis.T, np.diag(np.linspace(-1, 2, n))
    root = funm(P, bounds.power(-0.5), tol=1e-9)
    B = RNG.standard_normal((n, 2))
    assert np.allclose(root @ B, basis @ ((basis.T @ B) / np.sqrt(np.linspace(1, 4, n))[:, None]), atol=1e-8)
    assert root.symmetric and root.describe()["function"] == "Signed" and root.epsilon == 1e-9
    assert root.identity() == funm(P, bounds.power(-0.5), tol=1e-9).identity()
    assert root.identity() != funm(P, bounds.power(0.5), tol=1e-9).identity()
    found = np.sort(spectral.exact(spectral.precondition(A, root)).atoms.values)
    assert np.allclose(found, np.sort(np.linalg.eigvals(np.linalg.solve(P, A)).real), atol=1e-7)
    monkeypatch.setattr("spectral.estimators.funm.MOST", 10)
    with pytest.raises(RuntimeError, match="did not come as close as tol=1e-12 in 10 steps"):
        funm(np.diag(np.geomspace(1e-8, 1, 30)), "inverse", tol=1e-12) @ np.ones(30)


@pytest.mark.parametrize(
    ("A", "f", "right", "options", "words"),
    [
        (matrix("uniform"), "tan", b, {}, "is no function"),
        (np.triu(np.ones((3, 3))), "exp", np.ones(3), {}, "symmetric"),
        (np.ones((3, 2)), "exp", np.ones(2), {}, "A.gram"),
        (matrix("uniform"), "exp", b, {"tol": 2}, "use a number > 0 and < 1"),
        (matrix("uniform"), "exp", b[:-1], {}, "use"),
        (matrix("uniform"), "exp", np.full(N, np.inf), {}, "NaN or infinity"),
        (np.diag([-1.0, 1.0]), "log", np.ones(2), {}, "shift the matrix|not finite"),
        (np.zeros((2, 2)), lambda x: 1 / x, np.ones(2), {}, "not finite at the eigenvalue 0"),
        (matrix("uniform"), "exp", b, {"interval": (1.0, 2.0)}, "does not hold the Ritz values"),
        (matrix("uniform"), lambda x: x[:1], b, {}, "must keep the shape"),
        (matrix("uniform"), "exp", b, {"steps": 0}, "steps"),
        (matrix("uniform"), "exp", b, {"reorthogonalize": "some"}, "is not known"),
    ],
)
def test_what_does_not_fit_is_one_sentence(A, f, right, options, words):
    with pytest.raises(ValueError, match=words):
        funm(A, f, right, **options)


# The measure of one vector --------------------------------------------------------------------------------------------
def test_the_measure_of_a_vector_is_where_it_lies():
    name = "clusters"
    s = spectrum_of(matrix(name), b)
    parts = ((Q.T @ b) ** 2).reshape(4, -1).sum(1) / (b @ b)
    assert s.products == 4 and np.allclose(s.nodes, [0.5, 1, 4, 4.5]) and np.allclose(s.weights, [parts])
    assert s.meta["error"]["statistical"] == 0 and s.meta["error"]["w1"] < 1e-9
    assert float(s.integrate(np.exp).value) == pytest.approx(parts @ np.exp([0.5, 1, 4, 4.5]), rel=1e-12)


@pytest.mark.parametrize("name", ["log-uniform", "uniform", "outliers"])
def test_the_envelope_holds_the_measure_at_every_point(name):
    for steps in (3, 10, 30):
        s = spectrum_of(matrix(name), b, steps=steps)
        x = np.linspace(-0.1, 3.2, 200)
        mass = ((Q.T @ b) ** 2 / (b @ b) * (VALUES[name] <= x[:, None])).sum(1)
        band = s.cdf(x)
        assert (band.lower <= mass + 1e-12).all() and (mass <= band.upper + 1e-12).all()
        assert np.array_equal(band.lower, band.certified_lower) and np.array_equal(band.upper, band.certified_upper)
        assert s.weights.sum() == pytest.approx(1) and s.meta["error"]["statistical"] == 0


def test_one_step_knows_that_a_part_of_the_vector_may_lie_beyond():
    """On each of n eigenvectors lies 1 / n of it, in the mean; where that was thought to be 1, 7 of 10 were within two errors."""
    values, held = np.append(np.linspace(0.01, 1, 58), [20.0, 60.0]), []
    A = as_operator(np.diag(values))
    A.nonnegative = True
    for seed in range(30):
        b = np.random.default_rng(seed).standard_normal(60)
        e = spectrum_of(A, b, steps=1).integrate(lambda x: np.exp(x / 30))
        truth = np.exp(values / 30) @ b**2 / (b @ b)
        held.append(abs(float(e) - truth) <= 2 * e.stderr)
    assert np.mean(held) >= 0.95


def test_nothing_of_it_is_probe_noise():
    s = spectrum_of(matrix("uniform"), b, steps=60)
    mean = b @ matrix("uniform").matrix.numpy() @ b / (b @ b)
    e = s.integrate(lambda x: x)
    assert float(e) == pytest.approx(mean, rel=1e-12) and e.stderr < 1e-10
    d = s.density(np.array([1.0, 2.0]), resolution=0.2)
    assert (d.upper - d.lower < 0.1 * d.value).all()
    other = spectrum_of(matrix("uniform"), RNG.standard_normal(N), steps=60)
    assert other.distance(s).stderr == 0 and float(other.distance(s)) > 0


def test_what_counts_eigenvalues_is_refused_in_a_sentence():
    s = spectrum_of(matrix("uniform"), b, steps=20)
    refused = [
        lambda: s.count(0, 1), lambda: s.count_below(1.0), lambda: s.count_within(1.0), lambda: s.merge(s),
        lambda: spectral.power_law(s), lambda: spectral.marchenko_pastur(s), lambda: spectral.outliers(s),
        lambda: spectral.jackson(s), lambda: spectral.summary(s), lambda: spectral.logdet(s), lambda: spectral.numerical_rank(s),
    ]  # fmt: skip
    for ask in refused:
        with pytest.raises(ValueError, match="is about all eigenvalues, and this is the measure of one vector"):
            ask()


def test_it_is_saved_drawn_and_printed_as_what_it_is(tmp_path):
    s = spectrum_of(matrix("log-uniform"), b, steps=20)
    s.save(tmp_path / "one.npz")
    again = spectral.Spectrum.load(tmp_path / "one.npz")
    assert again.of_vector and np.array_equal(again.nodes, s.nodes) and again.cdf(0.5).value == s.cdf(0.5).value
    assert "one vector" in repr(s) and "one vector" in str(s) and "trace" not in s.estimates()
    ax = s.plot()
    assert "one vector" in ax.get_legend().get_texts()[0].get_text() and np.isfinite(ax.lines[0].get_ydata()).any()


def test_a_budget_ends_it_and_a_vector_that_is_none_is_refused():
    s = spectrum_of(matrix("uniform"), b, budget=7)
    assert s.products == 7 and s.meta["stops"] == ["budget"]
    for v, words in ((np.zeros(N), "not zero"), (np.ones((N, 2)), "one vector"), (np.ones(3), "use")):
        with pytest.raises(ValueError, match=words):
            spectrum_of(matrix("uniform"), v)


# The low end ----------------------------------------------------------------------------------------------------------
def sloppy(n=500, decades=10):
    values = np.geomspace(10.0**-decades, 1, n)
    basis = np.linalg.qr(np.random.default_rng(3).standard_normal((n, n)))[0]
    A = as_operator((basis * values) @ basis.T)
    A.symmetric, A.nonnegative = True, True
    return A, values


def test_the_low_end_of_a_log_uniform_spectrum_is_known_to_what_was_asked_for():
    """Ten decades: a fifth of the eigenvalues lies below 1e-8 lambda_max, where 100 steps leave two fifths open."""
    A, values = sloppy(200)
    s = spectral.slq(A, tol={"cdf": ([1e-8, 1e-6, 1e-3], 0.02)})
    x = np.array([1e-8, 1e-6, 1e-3]) * s.scale
    band, due = s.cdf(x), (values <= x[:, None]).mean(1)
    assert s.meta["stop"] in ("tolerance", "exact") and (np.abs(band.value - due) <= 0.02).all()
    assert (band.upper - band.lower <= 0.04 + 1e-9).all() and (band.lower <= due).all() and (due <= band.upper).all()


def test_points_that_rounding_does_not_tell_from_zero_are_refused():
    with pytest.raises(ValueError, match="tell nothing; use points from"):
        spectral.slq(np.eye(3, dtype=np.float32), tol={"cdf": (1e-8, 0.02)})
    for cdf in ((), (1e-8,), ([], 0.1), (0.0, 0.1), (2.0, 0.1), (0.1, 1.5)):
        with pytest.raises(ValueError, match="is no tolerance; a cdf needs"):
            spectral.slq(np.eye(3), tol={"cdf": cdf})


def test_a_first_probe_that_took_a_crowd_for_one_eigenvalue_is_outweighed_by_those_after_it():
    """Half lie below 1e-9, where one Ritz value stands for them and counted as one: after two probes it ended, .18 off."""
    rng = np.random.default_rng(0)
    values = np.append(10 ** rng.uniform(-12, -9, 75), rng.uniform(0.1, 1, 75))
    basis = np.linalg.qr(rng.standard_normal((150, 150)))[0]
    A = as_operator((basis * values) @ basis.T)
    A.symmetric, A.nonnegative = True, True
    s = spectral.slq(A, tol={"cdf": ([1e-8, 1e-4], 0.05)})
    assert s.meta["stop"] in ("tolerance", "exact")
    assert (np.abs(s.cdf(np.array([1e-8, 1e-4]) * s.scale).value - 0.5) <= 0.05).all()


@pytest.mark.slow
def test_five_hundred_eigenvalues_over_ten_decades():
    A, values = sloppy()
    s = spectral.slq(A, tol={"cdf": (1e-8, 0.02)})
    assert abs(float(s.cdf(1e-8 * s.scale).value) - (values <= 1e-8).mean()) <= 0.02


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("f", ["sqrt", "entropy", "exp"])
def test_a_tolerance_below_rounding_ends_where_rounding_is_all_that_is_left_with_and_without_a_basis(f, dtype):
    """Of rank 5 there are 6 steps; without a basis the bits of an exhausted space went on to all 60, and to a worse error."""
    rng = np.random.default_rng(0)
    V = np.linalg.qr(rng.standard_normal((60, 5)))[0]
    A = (V * np.arange(1.0, 6.0)) @ V.T
    found = [
        funm(((A + A.T) / 2).astype(dtype), f, np.ones(60, dtype), tol=1e-17, interval=(0, 5.001), reorthogonalize=mode)
        for mode in (True, False)
    ]
    assert [p.meta["stops"] for p in found] == [["rounding"], ["rounding"]]
    assert found[0].steps[0] == found[1].steps[0] <= 6 and found[1].products <= 11
    assert np.isfinite([p.error for p in found]).all()


@pytest.mark.parametrize("f", [np.log, lambda x: 1 / x, lambda x: x**-0.5, lambda x: np.log(np.abs(x))])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_not_finite_at_0_is_refused_of_a_singular_matrix_as_integrals_refuse_it(f, seed):
    """Rounding leaves +-1e-16 of the eigenvalue 0: f there is no number of the matrix."""
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 60)))[0]
    A, b = Q * np.append(0.0, np.ones(59)) @ Q.T, np.random.default_rng(seed).standard_normal(60)
    A = (A + A.T) / 2
    for ask in (
        lambda: funm(A, f, b),
        lambda: spectral.spectrum_of(A, b).integrate(f),
        lambda: spectral.exact(A).integrate(f),
    ):
        with pytest.raises(ValueError, match="not finite at the eigenvalue 0, from which"):
            ask()


def test_a_function_that_has_a_name_is_the_same_without_it():
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 60)))[0]
    A, b = Q * np.append(0.0, np.ones(59)) @ Q.T, np.random.default_rng(0).standard_normal(60)
    A = (A + A.T) / 2
    named, other = funm(A, "sqrt", b), funm(A, np.sqrt, b)
    expected = b - Q[:, 0] * (Q[:, 0] @ b)
    for p in (named, other):
        assert np.linalg.norm(p.value - expected) <= p.error <= 1e-6


def test_a_ritz_value_passes_0_on_the_way_to_the_inverse_of_an_indefinite_matrix():
    """T of the blocks (0, B; B^T, 0) has a diagonal of zeros from such a start: every odd step has the Ritz value 0."""
    rng = np.random.default_rng(0)
    B, b = rng.standard_normal((20, 20)), np.append(rng.standard_normal(20), np.zeros(20))
    A = np.block([[np.zeros((20, 20)), B], [B.T, np.zeros((20, 20))]])
    p = funm(A, lambda x: 1 / x, b)
    assert np.linalg.norm(p.value - np.linalg.solve(A, b)) <= p.error <= 1e-6 * np.linalg.norm(p.value)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("f", [np.exp, lambda x: 1 / x, lambda x: np.where(x > 0.5, 1.0, 0.0)])
def test_one_or_two_steps_have_not_seen_where_the_spectrum_ends(f, steps):
    """Of one step 0 to 10 of 100 errors of exp and of 1 / x held, up to 6e6 times too small where an eigenvalue lies apart."""
    rng = np.random.default_rng(0)
    for values in (rng.uniform(0.1, 1, 200), 10 ** rng.uniform(-4, 0, 200), np.append(rng.uniform(0.5, 1.5, 199), 20)):
        right = rng.standard_normal((200, 10))
        p = funm(np.diag(values), f, right, steps=steps)
        off = np.linalg.norm(p.value - f(values)[:, None] * right, axis=0)
        assert not p.certified and np.mean(off <= p.error) >= 0.9


@pytest.mark.parametrize("f", ["log", "inverse", "sqrt"])
def test_few_steps_have_not_seen_an_eigenvalue_below_the_bulk(f):
    """Of three steps 23 to 35 of 100 errors held, up to 3e3 times too small; those of two were infinite."""
    rng = np.random.default_rng(0)
    values, right = np.append(rng.uniform(0.5, 1.5, 199), 1e-4), rng.standard_normal((200, 40))
    for steps in range(1, 7):
        p = funm(np.diag(values), f, right, steps=steps)
        off = np.linalg.norm(p.value - DENSE[f](values)[:, None] * right, axis=0)
        assert np.mean(off <= p.error) >= 0.95


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("f", "dense"),
    [
        *((f, DENSE[f]) for f in ("log", "inverse", "sqrt", "exp")),
        (lambda x: np.where(x > 0.3, 1.0, 0.0), lambda x: np.where(x > 0.3, 1.0, 0.0)),
        (lambda x: np.exp(-20 * x), lambda x: np.exp(-20 * x)),
    ],
)
def test_what_ends_near_an_eigenvector_is_certain_only_if_it_is_true(f, dense, seed):
    """In float32 a residual below 16 eps ||T|| was 0, a turn of the eigenvectors nothing, and T as large as A: errors were up to
    1e7 times too small, and `lower` above `upper`."""
    rng = np.random.default_rng(seed)
    for values in (
        np.append(np.full(9, 1e-3), 1.0),
        np.linspace(0.1, 1, 10),
        np.append(np.linspace(0.5, 1.5, 9), 30.0),
    ):
        U = np.linalg.qr(rng.standard_normal((10, 10)))[0]
        A = ((U * values) @ U.T).astype(np.float32)
        A = (A + A.T) / 2
        values, U = np.linalg.eigh(A.astype(float))
        for part, end in itertools.product((0.0, 1e-3, 1e-6), (0, -1)):
            b = (U[:, end] + part * (U @ rng.standard_normal(10))).astype(np.float32)
            due = U @ (dense(values) * (U.T @ b))
            ends = values[0] * (1 - 1e-9), values[-1] * (1 + 1e-9)
            for steps, interval in itertools.product((1, 2, None), (ends, None)):
                p = funm(A, f, b, steps=steps, interval=interval)
                assert not p.certified or np.linalg.norm(p.value - due) <= 1.1 * p.error
                assert not p.lower > p.upper


def test_a_result_that_its_dtype_does_not_hold_is_refused():
    """It was infinite, and `certified` to 8e34; of the operator infinite and NaN."""
    A, b = np.diag([1e-20, 2e-20]).astype(np.float32), np.ones(2, np.float32)
    for product in (lambda: funm(A, bounds.power(-2), b), lambda: funm(A, bounds.power(-2)) @ b):
        with pytest.raises(ValueError, match=r"is beyond 3.4e\+38, the largest number of torch.float32"):
            product()
