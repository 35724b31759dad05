"""Linear systems against dense ones: true residuals, stated errors, what each right side has cost."""

import numpy as np
import pytest
import scipy
import torch

import spectral
from spectral import as_operator, inverse, solve
from spectral.krylov import linear

RNG = np.random.default_rng(0)
N = 60
Q = np.linalg.qr(RNG.standard_normal((N, N)))[0]
DEFINITE, INDEFINITE = (Q * np.geomspace(1e-2, 1, N)) @ Q.T, (Q * np.linspace(-1, 1.5, N)) @ Q.T
TALL = RNG.standard_normal((N, 20)) * np.geomspace(1, 1e-2, 20)
b, B = RNG.standard_normal(N), RNG.standard_normal((N, 3))


def definite(matrix):
    """A symmetric matrix as one that is known to have no negative eigenvalue."""
    A = as_operator((matrix + matrix.T) / 2)
    A.nonnegative = True
    return A


@pytest.mark.parametrize("shift", [0.0, 0.1])
@pytest.mark.parametrize("method", ["cg", "minres", "lsmr"])
def test_every_method_solves_a_definite_system_to_its_residual(method, shift):
    s = solve(definite(DEFINITE), B, shift=shift, tol=1e-9, method=method)
    matrix = DEFINITE + shift * np.eye(N)
    assert s.converged.all() and np.allclose(s.x, np.linalg.solve(matrix, B), rtol=0, atol=1e-4 if shift == 0 else 1e-7)
    rest = B - matrix @ s.x
    assert np.allclose(
        s.residuals, np.linalg.norm(matrix @ rest if method == "lsmr" else rest, axis=0), rtol=1e-3, atol=1e-14
    )


def test_minres_solves_an_indefinite_system_and_is_what_auto_takes():
    s = solve(INDEFINITE, b, shift=0.3, tol=1e-10)
    assert s.meta["method"] == "minres" and s.converged.all() and np.isnan(s.errors).all()
    assert np.allclose(s.x, np.linalg.solve(INDEFINITE + 0.3 * np.eye(N), b), atol=1e-7)


def test_conjugate_gradients_take_as_many_steps_as_there_are_eigenvalues():
    A = definite((Q * np.repeat([1.0, 2.0, 5.0], N // 3)) @ Q.T)
    s = solve(A, b, tol=1e-10)
    assert s.iterations.tolist() == [3] and s.products == 4, "one for the residual"


def test_a_block_of_right_sides_gives_each_what_it_gets_alone_and_drops_those_that_are_done():
    values, vectors = np.linalg.eigh(DEFINITE)
    easy, A = vectors[:, -1], definite(DEFINITE)
    both, alone = solve(A, np.stack([easy, b], 1), tol=1e-8), solve(A, b, tol=1e-8)
    assert both.iterations[0] == 1 and both.products == both.iterations.sum() + 2, "one for each residual"
    assert np.allclose(both.x[:, 1], alone.x, atol=1e-9) and np.allclose(both.x[:, 0], easy / values[-1], atol=1e-8)


@pytest.mark.parametrize("shift", [1e-3, 1.0])
def test_the_error_of_a_solution_is_at_most_what_is_stated(shift):
    for A, matrix, right in ((definite(DEFINITE), DEFINITE, b), (as_operator(TALL), TALL.T @ TALL, TALL.T @ b)):
        s = solve(A, b, shift=shift, tol=1e-3)
        off = np.linalg.norm(s.x - np.linalg.solve(matrix + shift * np.eye(len(matrix)), right))
        assert 0 < off <= s.errors[0] * (1 + 1e-6) and s.converged.all()


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("matrix", [TALL, TALL.T], ids=["tall", "wide"])
def test_least_squares_are_those_of_numpy(matrix, shift):
    right = RNG.standard_normal(len(matrix))
    s = solve(matrix, right, shift=shift, tol=1e-12)
    damped = np.vstack([matrix, np.sqrt(shift) * np.eye(matrix.shape[1])])
    truth = np.linalg.lstsq(damped, np.append(right, np.zeros(matrix.shape[1])), rcond=None)[0]
    assert s.meta["method"] == "lsmr" and np.allclose(s.x, truth, atol=1e-6)


def test_a_square_matrix_that_is_not_symmetric_is_shifted_and_solved():
    matrix = RNG.standard_normal((10, 10))
    s = solve(matrix, np.ones(10), shift=-0.5, tol=1e-12)
    assert np.allclose(s.x, np.linalg.solve(matrix - 0.5 * np.eye(10), np.ones(10)), atol=1e-6)


def test_what_has_no_solution_ends_as_singular_and_minres_has_the_least_residual():
    matrix = (Q * np.append(0.0, np.linspace(-1, 1, N - 1) + 0.01)) @ Q.T
    for A, method in ((as_operator(matrix), "minres"), (definite(matrix @ matrix), "cg")):
        s = solve(A, b, tol=1e-8)
        assert s.meta["method"] == method and s.meta["stops"] == ["singular"] and not s.converged.any()
        if method == "minres":
            assert s.residuals[0] == pytest.approx(abs(Q[:, 0] @ b), rel=1e-6)
    indefinite = solve(INDEFINITE, b, method="cg", tol=1e-10)
    assert indefinite.meta["stops"] in (["indefinite"], ["tolerance"])


@pytest.mark.parametrize("within", [0.0, 0.2, 1.0])
def test_a_part_of_b_in_the_kernel_stays_and_x_is_not_what_rounding_makes_of_it(within):
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 9):
        Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        values = np.append(0.0, 1 + np.arange(n - 1))
        A = (Q * values) @ Q.T
        b = within * Q[:, 0] + np.sqrt(1 - within**2) * Q[:, 1]
        s = solve((A + A.T) / 2, b)
        assert s.residuals[0] == pytest.approx(within, abs=1e-6)  # the length of what no x reaches
        assert np.linalg.norm(s.x) < 2  # b's other part is an eigenvector of 1


def test_rounding_ends_a_run_that_asks_for_more_than_there_is_and_says_so():
    A = definite(DEFINITE.astype(np.float32))
    s = solve(A, b.astype(np.float32), tol=1e-9)
    assert s.meta["stops"] == ["rounding"] and not s.converged.any() and s.x.dtype == np.float32
    truth = np.linalg.norm(b.astype(np.float32) - A.matrix.double().numpy() @ s.x)
    assert s.residuals[0] < 1e-3 and truth == pytest.approx(s.residuals[0], rel=0.5)


def test_a_second_round_mends_what_a_recurrence_has_lost():
    """A recurrence's own residual falls below what x has: the true one is solved for again."""
    values = np.geomspace(1e-6, 1, N)
    A = definite((Q * values) @ Q.T)
    s = solve(A, b, tol=2e-10)
    assert s.converged.all() and s.residuals[0] == pytest.approx(np.linalg.norm(b - A.matrix.numpy() @ s.x), rel=0.1)


@pytest.mark.parametrize("budget", [1, 4, 11, 20])
def test_a_budget_holds_with_the_products_that_measure_residuals(budget):
    for A, right in ((definite(DEFINITE), B), (as_operator(TALL), b)):
        s = solve(A, right, tol=1e-10, budget=budget)
        columns = 1 if right.ndim == 1 else 3
        assert s.products <= max(budget, columns) and not s.converged.any() and set(s.meta["stops"]) == {"budget"}
        rest = right - A.matrix.numpy() @ s.x
        assert np.allclose(s.residuals, np.linalg.norm(rest if A.nonnegative else TALL.T @ rest, axis=0))


def test_a_right_side_of_zeros_and_matrices_of_one_row():
    assert solve(DEFINITE, np.zeros(N)).x.tolist() == [0.0] * N and solve(TALL, np.zeros(N)).converged.all()
    assert solve(np.array([[4.0]]), np.array([2.0])).x.tolist() == [0.5]
    assert solve(np.zeros((3, 3)), np.ones(3)).meta["stops"] == ["singular"]


def test_recurrences_do_not_depend_on_the_scale_of_the_right_side():
    small, large = (solve(definite(DEFINITE), scale * b, tol=1e-8) for scale in (1e-150, 1e150))
    assert np.allclose(small.x * 1e150, large.x * 1e-150, rtol=1e-6) and small.converged.all() and large.converged.all()


@pytest.mark.parametrize(
    ("A", "right", "options", "words"),
    [
        (DEFINITE, b[:-1], {}, "use"),
        (DEFINITE, b.astype(np.float32), {}, "nothing is cast silently"),
        (DEFINITE, np.where(np.arange(N) == 3, np.nan, b), {}, "b holds NaN or infinity"),
        (DEFINITE, np.zeros((N, 0)), {}, "no columns"),
        (DEFINITE, b, {"tol": 0.0}, "use a number > 0 and < 1"),
        (DEFINITE, b, {"shift": np.inf}, "finite number"),
        (DEFINITE, b, {"method": "gmres"}, "is not known"),
        (TALL, b, {"method": "cg"}, "for symmetric matrices"),
        (TALL, b, {"shift": -1.0}, "shift >= 0"),
        (np.zeros((0, 0)), np.zeros(0), {}, "is empty"),
    ],
)
def test_what_does_not_fit_is_one_sentence(A, right, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        solve(A, right, **options)


def test_a_product_that_is_not_finite_is_named():
    broken = scipy.sparse.linalg.LinearOperator((3, 3), matvec=lambda x: x * np.nan, dtype=np.float64)
    A = as_operator(broken)
    A.symmetric = True
    with pytest.raises(ValueError, match="step 1 of MINRES holds NaN"):
        solve(A, np.ones(3))


@pytest.mark.slow
def test_ridge_regression_on_a_network_is_the_dense_one():
    model, x = torch.nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    J = spectral.Jacobian(model, [x[:2], x[2:]])
    y = torch.randn(10, dtype=torch.float64)
    s = solve(J, y, shift=0.1, tol=1e-12)
    dense = J @ torch.eye(8, dtype=torch.float64)
    truth = torch.linalg.solve(dense.T @ dense + 0.1 * torch.eye(8, dtype=torch.float64), dense.T @ y)
    assert torch.allclose(s.x, truth, atol=1e-9) and s.epochs > 0 and s.errors[0] < 1e-9


# The inverse ----------------------------------------------------------------------------------------------------------
def test_a_solve_ends_by_its_tolerance_if_and_only_if_it_has_converged():
    """Where the budget ended as lsmr met its tolerance, it had converged, by "budget"."""
    rng = np.random.default_rng(0)
    Q, U = (np.linalg.qr(rng.standard_normal((50, 50)))[0] for _ in range(2))
    for A in ((Q * np.geomspace(0.1, 1, 50)) @ Q.T, (U * np.geomspace(0.1, 1, 50)) @ Q.T):
        for budget in range(86, 98):
            s = solve(A, np.ones(50), budget=budget)
            assert (s.meta["stops"][0] == "tolerance") == s.converged[0]


@pytest.mark.parametrize("n", [3, 50])
@pytest.mark.parametrize("signs", [1, -1])
@pytest.mark.parametrize(("dtype", "condition"), [("float64", 1e8), ("float64", 1e11), ("float32", 1e3)])
def test_a_small_eigenvalue_is_no_kernel(n, signs, dtype, condition):
    """b is not in the range, says "singular". A shortens what is left to 1e-9 in both, but of an eigenvalue it keeps its
    direction: 1e-11, alone or below others, was a kernel to minres, which left half of b (n = 3: 1e-6 now)."""
    for seed, kernel in ((0, 0), (1, 0), (9, 0), (0, 1), (1, n // 3)):
        rng = np.random.default_rng(seed)
        Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        values = np.geomspace(1 / condition, 1, n) if kernel == 0 else np.geomspace(1e-2, 1, n)
        values[:kernel] = 0.0
        A = ((Q * values * np.where(np.arange(n) % 2, 1, signs)) @ Q.T).astype(dtype)
        s = solve((A + A.T) / 2, rng.standard_normal(n).astype(dtype), method="minres")
        assert (s.meta["stops"][0] == "singular") == (kernel > 0)
        if kernel == 0 and (n == 3 or condition <= 1e8):
            assert s.residuals[0] <= (1e-5 if dtype == "float64" else 1e-4) * np.sqrt(n)


@pytest.mark.parametrize("signs", [1, -1])
def test_no_solve_hands_back_what_is_worse_than_nothing(signs):
    """x = 0 leaves b. At a condition of 1e11 minres left 1.4 of it when its steps had ended."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((50, 50)))[0]
    A = (Q * np.geomspace(1e-11, 1, 50) * np.where(np.arange(50) % 2, 1, signs)) @ Q.T
    b = rng.standard_normal(50)
    s = solve((A + A.T) / 2, b)
    assert s.residuals[0] <= np.linalg.norm(b) * (1 + 1e-12)
    assert s.residuals[0] == pytest.approx(np.linalg.norm((A + A.T) / 2 @ s.x - b), rel=1e-3)


def test_the_inverse_is_what_scipy_needs_for_the_eigenvalues_inside():
    A = as_operator(INDEFINITE)
    values = np.linalg.eigvalsh(INDEFINITE)
    found = scipy.sparse.linalg.eigsh(
        A.to_scipy(), k=3, sigma=0.21, OPinv=inverse(A, shift=-0.21).to_scipy(), return_eigenvectors=False
    )
    nearest = values[np.argsort(np.abs(values - 0.21))[:3]]
    assert np.allclose(np.sort(found), np.sort(nearest), atol=1e-9)


def test_the_inverse_multiplies_blocks_and_says_what_it_is():
    A = definite(DEFINITE)
    R = inverse(A, 0.01)
    assert np.allclose(R @ B, np.linalg.solve(DEFINITE + 0.01 * np.eye(N), B), atol=1e-7)
    assert R.symmetric and R.nonnegative and R.adjoint_error() < 1e-8 and R.products > 3 and A.products > R.products
    told = R.describe()
    assert told["shift"] == 0.01 and told["method"] == "cg" and 0 < told["residual"] <= 1e-10
    assert R.product_error >= R.tol and R.epsilon >= R.tol
    assert R.identity() == inverse(A, 0.01).identity() != inverse(A, 0.02).identity()
    assert not inverse(A, -0.5).nonnegative and not inverse(INDEFINITE).nonnegative


def test_the_spectrum_of_the_inverse_is_that_of_the_reciprocals():
    s = spectral.slq(inverse(definite(DEFINITE), 0.01), steps=12, probes=1)
    truth = np.sort(1 / (np.linalg.eigvalsh(DEFINITE) + 0.01))
    assert np.allclose(spectral.exact(inverse(DEFINITE, 0.01)).atoms.values, truth, rtol=1e-7)
    assert 0.95 * truth[-1] <= s.interval[1] <= truth[-1] * (1 + 1e-8)


def test_a_solve_that_does_not_converge_is_no_product():
    with pytest.raises(RuntimeError, match="did not converge"):
        inverse(np.diag([0.0, 1.0, 2.0])) @ np.ones(3)
    with pytest.raises(ValueError, match="not symmetric"):
        inverse(np.triu(np.ones((3, 3))))
    with pytest.raises(ValueError, match="not symmetric"):
        inverse(TALL)
    with pytest.raises(ValueError, match="use a number > 0 and < 1"):
        inverse(DEFINITE, tol=2.0)


def test_an_inverse_in_float32_is_as_good_as_rounding():
    A = definite(DEFINITE.astype(np.float32))
    x = inverse(A, 0.1) @ b.astype(np.float32)
    assert np.linalg.norm(x - np.linalg.solve(DEFINITE + 0.1 * np.eye(N), b)) < 1e-4 * np.linalg.norm(x)


def test_what_is_known_of_the_lowest_eigenvalue_goes_through_the_algebra():
    A = definite(DEFINITE)
    shifted = A + 0.5 * spectral.I
    assert A.least == 0 and shifted.least == 0.5 and (shifted + -0.2 * spectral.I).least == pytest.approx(0.3)
    assert (shifted + -0.2 * spectral.I).nonnegative and not (A + -0.1 * spectral.I).nonnegative
    assert as_operator(INDEFINITE).least == -np.inf


@pytest.mark.parametrize("recurrence", [linear.conjugate_gradients, linear.minres])
def test_a_recurrence_asks_for_nothing_once_it_is_done(recurrence):
    run = recurrence(torch.ones(4, dtype=torch.float64), 10.0, 5, 1e-16)
    with pytest.raises(StopIteration) as end:
        next(run)
    assert end.value.value.steps == 0 and end.value.value.stop == "tolerance"


def test_an_x_that_its_dtype_does_not_hold_is_one_sentence():
    """1 / 1e-5 is beyond float16: x held infinity, and nothing said so."""
    with pytest.raises(
        ValueError, match=r"x is beyond 6\.6e\+04, the largest number of torch\.float16, or its factors are; divide b"
    ):
        spectral.solve(1e-5 * torch.eye(4, dtype=torch.float16), torch.ones(4, dtype=torch.float16))
