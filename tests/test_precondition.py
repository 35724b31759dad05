"""P^{-1/2} A P^{-1/2}: against dense products, and against what torch's optimizers themselves do."""

import numpy as np
import pytest
import torch
from torch import nn

import spectral
from spectral import as_operator, precondition

x, y = torch.randn(12, 3, dtype=torch.float64), torch.randint(0, 2, (12,))
LOSS = nn.CrossEntropyLoss()


def trained(make, steps=3):
    """A small network, its optimizer after some steps, its Hessian."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    optimizer = make(model.parameters())
    for _ in range(steps):
        step(model, optimizer)
    # one engine, whose products are the same to the bit: auto may take another one in the midst
    return model, optimizer, spectral.GaussNewton(model, LOSS, [(x[:7], y[:7]), (x[7:], y[7:])], engine="fresh")


def step(model, optimizer):
    optimizer.zero_grad()
    LOSS(model(x), y).backward()
    optimizer.step()


def dense(A):
    return (A @ torch.eye(A.shape[1], dtype=A.dtype)).numpy()


def step_made(model, optimizer, name_of_moment):
    """(first moment, change of the parameters) of one more step, flat: the step is -lr moment / P."""
    before = torch.cat([p.detach().clone().reshape(-1) for p in model.parameters()])
    step(model, optimizer)
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    moment = torch.cat([
        (optimizer.state[p][name_of_moment] if name_of_moment else p.grad).reshape(-1) for p in model.parameters()
    ])  # fmt: skip
    return moment, after - before


@pytest.mark.parametrize(
    ("make", "moment"),
    [
        (lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-3), "exp_avg"),
        (lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, betas=(0.8, 0.9)), "exp_avg"),
        (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0, foreach=True), "exp_avg"),
        (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0, amsgrad=True), "exp_avg"),
        (lambda p: torch.optim.RMSprop(p, lr=0.01, eps=1e-4), ""),
        (lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True), ""),
        (lambda p: torch.optim.SGD(p, lr=0.01), ""),
    ],
    ids=["Adam", "Adam amsgrad", "AdamW", "AdamW amsgrad", "RMSprop", "RMSprop centered", "SGD"],
)
def test_the_step_that_torch_makes_is_the_moment_over_the_preconditioner(make, moment):
    """P is read from the state, and held to the parameters themselves: theta' - theta = -lr moment / P."""
    model, optimizer, A = trained(make)
    M = precondition(A, optimizer)
    m, change = step_made(model, optimizer, moment)  # P of this step is that of the state after it
    P = -0.01 * m / change
    v = torch.randn(len(P), dtype=torch.float64)
    found, due = M @ v, P**-0.5 * (A @ (P**-0.5 * v))
    assert torch.allclose(found, due, rtol=1e-6, atol=1e-7 * float(due.abs().max()))


def test_a_step_of_the_optimizer_changes_the_matrix_and_its_identity_and_nothing_else_does():
    model, optimizer, A = trained(lambda p: torch.optim.Adam(p, lr=1e-2))
    M = precondition(A, optimizer)
    first, name = dense(M), M.identity()
    assert M.identity() == name == precondition(A, optimizer).identity() and np.array_equal(dense(M), first)
    C = M.parts[1]
    entries = C.entries
    assert C.entries is entries, "nothing is computed while nothing has changed"
    frozen = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer)
    with torch.no_grad():
        for p, old in zip(model.parameters(), frozen, strict=True):
            p.copy_(old)  # the weights are as before, the state is not
    assert M.identity() != name and not np.allclose(dense(M), first, rtol=1e-3)


def test_a_checkpoint_of_another_optimizer_state_is_refused(tmp_path):
    model, optimizer, A = trained(lambda p: torch.optim.Adam(p, lr=0.0))  # lr = 0: the weights stay
    spectral.slq(precondition(A, optimizer), steps=5, probes=2, checkpoint=tmp_path / "run")
    spectral.slq(precondition(A, optimizer), steps=5, probes=2, checkpoint=tmp_path / "run")
    step(model, optimizer)
    with pytest.raises(ValueError, match="operator"):
        spectral.slq(precondition(A, optimizer), steps=5, probes=2, checkpoint=tmp_path / "run")


class AcceleratedOptimizer(torch.optim.Optimizer):
    """As accelerate's, which transformers' Trainer puts around its own: the state is that of the one inside."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)


def test_what_a_trainer_puts_around_an_optimizer_is_the_optimizer():
    _, optimizer, A = trained(lambda p: torch.optim.AdamW(p, lr=0.01))
    wrapped = AcceleratedOptimizer(optimizer)
    np.testing.assert_array_equal(dense(precondition(A, wrapped)), dense(precondition(A, optimizer)))
    kind = type("LightningOptimizer", (), {"optimizer": optimizer})
    inside = type(
        "LightningAdamW", (kind, torch.optim.AdamW), {"__init__": lambda self: None}
    )()  # as Lightning makes it
    np.testing.assert_array_equal(dense(precondition(A, inside)), dense(precondition(A, optimizer)))


def test_parameters_are_matched_by_identity_not_by_order():
    model, _, A = trained(lambda p: torch.optim.SGD(p, lr=0.1))
    groups = [{"params": [p], "eps": 10.0**-i} for i, p in enumerate(reversed(list(model.parameters())))]
    optimizer = torch.optim.RMSprop(groups, lr=0.0)
    step(model, optimizer)
    P = torch.cat([(optimizer.state[p]["square_avg"].sqrt() + 10.0**-i).reshape(-1)
                   for i, p in zip((3, 2, 1, 0), model.parameters(), strict=True)])  # fmt: skip
    root = np.diag(P.numpy() ** -0.5)
    assert np.allclose(dense(precondition(A, optimizer)), root @ dense(A) @ root, atol=1e-10)
    part = spectral.GaussNewton(model, LOSS, [(x, y)], params=["2.*"])
    assert precondition(part, optimizer).shape == (10, 10)


def test_a_diagonal_is_a_tensor_or_a_dict_and_gives_names():
    _, _, A = trained(lambda p: torch.optim.SGD(p, lr=0.1))
    P = torch.rand(A.shape[0], dtype=torch.float64) + 0.1
    root = np.diag(P.numpy() ** -0.5)
    flat, named = precondition(A, P), precondition(A, A.unflatten(P))
    assert np.allclose(dense(flat), root @ dense(A) @ root, atol=1e-12) and np.allclose(
        dense(flat), dense(named), atol=1e-13
    )
    assert flat.symmetric and flat.nonnegative and list(flat.unflatten(P)) == list(A.unflatten(P))
    assert (
        flat.describe()["of"][1]["preconditioner"] == "diagonal"
        and flat.identity() != precondition(A, 2 * P).identity()
    )


def test_the_diagonal_of_a_diagonal_matrix_gives_ones():
    for diagonal in (np.geomspace(1e-6, 1, 20), np.geomspace(1e-3, 1, 20).astype(np.float32)):
        values = spectral.exact(precondition(np.diag(diagonal), diagonal)).atoms.values
        assert np.allclose(values, 1, atol=8 * np.finfo(diagonal.dtype).eps)


def test_what_multiplies_by_the_root_may_be_an_operator_a_matrix_or_a_function():
    rng = np.random.default_rng(0)
    A, L = (rng.standard_normal((6, 6)) for _ in range(2))
    A, L = A + A.T, np.tril(L) + 3 * np.eye(6)
    W = np.linalg.inv(L)
    S = W @ W.T
    for C, root in ((S, S), (torch.from_numpy(S), S), (lambda V: torch.from_numpy(S) @ V, S), (W.T, W.T)):
        M = precondition(A, C)
        assert np.allclose(dense(M), root.T @ A @ root, atol=1e-12) and M.symmetric
    values = np.sort(spectral.exact(precondition(A, W.T)).atoms.values)
    assert np.allclose(values, np.sort(np.linalg.eigvals(np.linalg.solve(L @ L.T, A)).real), atol=1e-10)


def test_a_gram_stays_a_gram_and_keeps_the_smaller_side():
    model = nn.Linear(30, 2).double()
    J = spectral.Jacobian(model, [torch.randn(4, 30, dtype=torch.float64)])
    P = torch.rand(62, dtype=torch.float64) + 0.5
    M = precondition(J.gram("right"), P)
    root = np.diag(P.numpy() ** -0.5)
    assert M.side == "right" and M.known_zeros == 54 and list(M.unflatten(P)) == ["weight", "bias"]
    truth = np.linalg.eigvalsh(root @ dense(J.gram("right")) @ root)
    assert np.allclose(dense(M), root @ dense(J.gram("right")) @ root, atol=1e-10)
    s = spectral.exact(M)
    assert s.zeros == 54 and np.allclose(s.atoms.values, truth[54:], atol=1e-9)
    left = precondition(J.gram("left"), torch.full((8,), 4.0, dtype=torch.float64))
    assert np.allclose(dense(left), dense(J.gram("left")) / 4, atol=1e-12)


def test_a_product_of_a_preconditioned_gram_is_one_sweep():
    model = nn.Linear(3, 2).double()
    J = spectral.Jacobian(model, [torch.randn(4, 3, dtype=torch.float64)])
    M = precondition(J.gram("right"), torch.ones(8, dtype=torch.float64))
    v = torch.ones(8, dtype=torch.float64)
    M @ v
    before = J.epochs
    M @ v
    assert J.epochs - before == 1


def test_shifts_and_sums_of_network_matrices_have_their_optimizer():
    _, optimizer, A = trained(lambda p: torch.optim.Adam(p, lr=1e-2))
    whole, plain = (dense(precondition(B, optimizer)) for B in (A + 0.5 * spectral.I, A))
    assert np.allclose(whole - plain, 0.5 * np.diag(np.square(precondition(A, optimizer).parts[1].entries.numpy())))


def refused():
    model, adam, A = trained(lambda p: torch.optim.Adam(p, lr=1e-2))
    other = nn.Linear(3, 2)
    idle = torch.optim.Adam(model.parameters())
    inputs = spectral.Jacobian(model, [x], wrt="inputs", layout="flattened").gram("right")
    zero = torch.ones(A.shape[0], dtype=torch.float64)
    zero[3] = 0
    return {
        "never stepped": (A, idle, ValueError, "'0.weight' has no .* in the state of Adam; let the optimizer step once"),
        "of another model": (A, torch.optim.SGD(other.parameters(), lr=1.0), ValueError, "not among those of SGD"),
        "unknown": (A, torch.optim.Adagrad(model.parameters()), TypeError, "Adagrad is not known here"),
        "no parameters": (np.eye(3), adam, TypeError, "not with respect to a model's parameters"),
        "inputs": (inputs, adam, TypeError, "not with respect to a model's parameters"),
        "zero": (A, zero, ValueError, "1 of its 26 diagonal entries are not, such as 0 at 3"),
        "negative": (np.eye(2), np.array([1.0, -2.0]), ValueError, "such as -2 at 1"),
        "infinite": (np.eye(2), np.array([1.0, np.inf]), ValueError, "a preconditioner is positive"),
        "too short": (np.eye(2), np.ones(3), ValueError, "use"),
        "another size": (np.eye(2), np.eye(3), ValueError, "must multiply what"),
        "another dtype": (np.eye(2), np.ones(2, np.float32), TypeError, "nothing is cast silently"),
        "rectangular": (np.ones((2, 3)), np.ones(2), ValueError, "maps one space to another"),
        "nothing": (np.eye(2), "adam", TypeError, "P is a str"),
    }  # fmt: skip


def test_what_is_no_preconditioner_is_one_sentence():
    for name, (A, P, kind, words) in refused().items():
        with pytest.raises(kind, match=words):
            precondition(A, P)
            pytest.fail(name)


def test_a_function_that_changes_the_shape_is_refused_where_it_does():
    with pytest.raises(ValueError, match="must keep shape and dtype"):
        precondition(as_operator(np.eye(3)), lambda V: V[:2]) @ np.ones(3)


# KFAC and EKFAC of curvlinops ------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["KFACLinearOperator", "EKFACLinearOperator"])
def test_kfac_of_one_linear_layer_is_its_curvature_and_gives_ones(kind):
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3).double(), torch.randn(40, 4, dtype=torch.float64), torch.randn(40, 3).double()
    A = spectral.GaussNewton(model, nn.MSELoss(), [(x, y)])
    options = {"fisher_type": "type-2", "separate_weight_and_bias": False}
    K = getattr(curvlinops, kind)(model, nn.MSELoss(), list(model.parameters()), [(x, y)], **options)
    np.testing.assert_allclose(spectral.exact(precondition(A, K)).points()[0], 1.0, rtol=1e-10)
    backwards = getattr(curvlinops, kind)(model, nn.MSELoss(), [model.bias, model.weight], [(x, y)], **options)
    with pytest.raises(ValueError, match="in another order"):
        precondition(A, backwards)


@pytest.mark.slow
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("kind", ["KFACLinearOperator", "EKFACLinearOperator"])
def test_a_damped_inverse_of_kfac_gives_the_eigenvalues_of_its_product_with_the_matrix(kind, separate):
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data, loss = [(torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3)], nn.CrossEntropyLoss()
    A = spectral.GaussNewton(model, loss, data)
    options = {"fisher_type": "type-2", "separate_weight_and_bias": separate}
    K = getattr(curvlinops, kind)(model, loss, list(model.parameters()), data, **options)
    exact = {"use_exact_damping": kind == "EKFACLinearOperator"}
    inverse = curvlinops.KFACInverseLinearOperator(K, damping=0.03, **exact)
    product = (inverse @ torch.eye(len(A.empty()), dtype=torch.float64)).numpy() @ dense(A)
    expected = np.sort(np.linalg.eigvals(product).real)
    np.testing.assert_allclose(np.linalg.eigvalsh(dense(precondition(A, inverse))), expected, atol=1e-9)
    with pytest.raises(ValueError, match=r"pass KFACInverseLinearOperator.* of an EKFAC with use_exact_damping=True"):
        precondition(A, K)  # the gradients of a softmax sum to zero: singular
