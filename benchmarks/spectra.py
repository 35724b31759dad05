"""Symmetric matrices whose eigenvalues are known, and the quadratures that other packages make of their products.

`SPECTRA` are matrices A = U diag(values) U^T with U = diag(signs) C^T, C the orthogonal cosine transform: a product costs
O(n log n), and the squared components of a +-1 vector scatter as they do in any basis that nobody chose (on a diagonal matrix
they would not, and +-1 probes would be exact). `digits` is the Gauss-Newton matrix of a trained network, with its eigenvalues
from a dense float64 matrix assembled by torch.func alone. `RULES` are the others' stochastic Lanczos quadratures, driven
through their own functions. `python benchmarks/spectra.py` lists all of them.

Legend: n the dimension, B samples in a batch, C classes, P parameters.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unittest import mock

import numpy as np
import scipy.fft
import scipy.sparse.linalg
import torch
from models import Workload, workload
from peers import FAILURES, Product, first_line
from torch.func import functional_call, jacrev, vmap

import spectral
from spectral.experiments.datasets import digits as digits_problem
from spectral.experiments.models import mlp
from spectral.experiments.training import train
from spectral.operators.operator import Operator

Rule = tuple[np.ndarray, np.ndarray]  # nodes and weights, the weights sum to 1


class Rotated(Operator):
    """U diag(values) U^T in float64."""

    def __init__(self, values: np.ndarray, seed: int) -> None:
        super().__init__((len(values), len(values)), torch.float64, symmetric=True)
        rng = np.random.default_rng(seed)
        self.values = values[:, None]
        self.signs = rng.choice([-1.0, 1.0], (len(values), 1))

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        W = self.values * scipy.fft.dct(self.signs * V.numpy(), axis=0, norm="ortho")
        return torch.from_numpy(self.signs * scipy.fft.idct(W, axis=0, norm="ortho"))


@dataclass(frozen=True)
class Known:
    """A matrix by its products, with all its eigenvalues (float64, ascending)."""

    name: str
    about: str
    values: np.ndarray
    operator: Operator

    @property
    def range(self) -> float:
        return float(self.values[-1] - self.values[0])

    @cached_property
    def steps(self) -> np.ndarray:
        return np.arange(1, len(self.values) + 1) / len(self.values)

    def error(self, nodes: np.ndarray, weights: np.ndarray) -> float:
        """W1 = int |F - G| dx over the range; weights count as shares of their sum. Nothing of the package is used."""
        if not (np.isfinite(nodes).all() and np.isfinite(weights).all()):
            return float("nan")
        order = np.argsort(nodes, kind="stable")
        nodes, share = nodes[order], np.cumsum(weights[order]) / weights.sum()
        x = np.sort(np.concatenate([self.values, nodes]), kind="stable")
        truth = np.append(0.0, self.steps)[np.searchsorted(self.values, x[:-1], side="right")]
        found = np.append(0.0, share)[np.searchsorted(nodes, x[:-1], side="right")]
        return float(np.abs(truth - found) @ np.diff(x)) / self.range

    def error_of(self, s: spectral.Spectrum) -> float:
        """The same for the CDF of a spectrum of ours: a piecewise linear curve with jumps, or the steps of its nodes."""
        if not hasattr(s, "curve"):
            return self.error(*s.points())
        t, F = s.curve
        x = np.unique(np.concatenate([self.values, t]))
        truth = np.append(0.0, self.steps)[np.searchsorted(self.values, x[:-1], side="right")]

        def of(x: np.ndarray, after: np.ndarray) -> np.ndarray:  # F at x, from the piece that ends at t[after]
            b = np.clip(after, 1, len(t) - 1)
            share = np.clip((x - t[b - 1]) / np.where(t[b] > t[b - 1], t[b] - t[b - 1], 1.0), 0.0, 1.0)
            return np.where(after == 0, 0.0, np.where(after == len(t), F[-1], F[b - 1] + share * (F[b] - F[b - 1])))

        begin = of(x[:-1], np.searchsorted(t, x[:-1], side="right")) - truth
        end = of(x[1:], np.searchsorted(t, x[1:], side="left")) - truth
        size = np.abs(begin) + np.abs(end)  # the line from begin to end: a trapezium, or two triangles
        area = np.where(begin * end >= 0, size, (begin**2 + end**2) / np.maximum(size, 1e-300)) / 2
        return float(area @ np.diff(x)) / self.range


# Spectra -------------------------------------------------------------------------------------------------------------
def outliers() -> tuple[str, np.ndarray]:
    bulk = np.random.default_rng(0).uniform(0, 0.3, 20_000 - 60)
    return "60 outliers from 0.5 to 100 over a uniform bulk on [0, 0.3]", np.append(bulk, np.geomspace(0.5, 100, 60))


def marchenko_pastur() -> tuple[str, np.ndarray]:
    X = np.random.default_rng(1).standard_normal((2000, 4000))
    return "X X^T / 4000 of a Gaussian X (2000, 4000)", np.linalg.eigvalsh(X @ X.T / 4000)


def uniform() -> tuple[str, np.ndarray]:
    return "evenly spaced on [0, 1]", np.linspace(0, 1, 4000)


def two_point() -> tuple[str, np.ndarray]:
    return "1 a thousand times and 3 three thousand times", np.repeat([1.0, 3.0], [1000, 3000])


def log_uniform() -> tuple[str, np.ndarray]:
    return "10^x, x uniform on [-6, 0]", 10 ** np.random.default_rng(2).uniform(-6, 0, 4000)


def indefinite() -> tuple[str, np.ndarray]:
    bulk = 0.1 * np.random.default_rng(3).standard_normal(3980)
    ends = np.concatenate([np.geomspace(0.6, 5, 12), -np.geomspace(0.5, 2, 8)])
    return "a normal bulk of deviation 0.1, 12 outliers up to 5 and 8 down to -2", np.append(bulk, ends)


def network(seed: int = 0) -> Workload:
    """scikit-learn's digits on a ReLU network 64-32-10 (2410 parameters), Adam to a loss of 0.01; four batches of 400."""
    problem = digits_problem(train=1600, test=None, seed=seed)
    model = mlp(64, (32,), 10, seed=seed)
    said = train(model, problem.x_train, problem.y_train, target_loss=1e-2, seed=seed, progress=False)
    return workload(model, problem.x_train, problem.y_train, f"ReLU network 64-32-10 on 1600 digits; {said.sentence}")


def dense_gauss_newton(work: Workload) -> torch.Tensor:
    """(P, P) float64: the mean of J^T (diag p - p p^T) J over all samples, J in reverse mode; B C P numbers at a time."""
    model = copy.deepcopy(work.model).double()
    params = {name: p.detach() for name, p in model.named_parameters()}

    def logits(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, params, (x[None],))[0]

    total = torch.zeros(work.parameters, work.parameters, dtype=torch.float64)
    for x, _ in work.data:
        x = x.double()
        with torch.no_grad():
            p = model(x).softmax(-1)
        rows = vmap(jacrev(logits), (None, 0))(params, x)
        J = torch.cat([rows[name].flatten(2) for name in params], 2)
        HJ = p[:, :, None] * (J - p[:, None, :] @ J)
        total += J.flatten(0, 1).T @ HJ.flatten(0, 1)
    return (total + total.T) / (2 * work.samples)


def digits() -> Known:
    """Products in float32, by the package; the eigenvalues are those of the dense float64 matrix."""
    work = network()
    values = torch.linalg.eigvalsh(dense_gauss_newton(work)).numpy()
    A = spectral.GaussNewton(work.model, work.loss, work.data)
    return Known("digits Gauss-Newton", work.about, values, A)


def made(name: str) -> Known:
    """The matrix called `name`."""
    if name == "digits":
        return digits()
    about, values = SPECTRA[name]()
    values = np.sort(values)
    return Known(name, about, values, Rotated(values, seed=7))


SPECTRA: dict[str, Callable[[], tuple[str, np.ndarray]]] = {
    "outliers": outliers,
    "marchenko-pastur": marchenko_pastur,
    "uniform": uniform,
    "two-point": two_point,
    "log-uniform": log_uniform,
    "indefinite": indefinite,
}
NAMES = [*SPECTRA, "digits"]


# The others ----------------------------------------------------------------------------------------------------------
class Matrix:
    """An operator as the others want to see it: one vector at a time, counted, at most `limit` of them."""

    def __init__(self, product: Product, size: int, dtype: torch.dtype, limit: float = float("inf")) -> None:
        self.product, self.size, self.dtype, self.device = product, size, dtype, torch.device("cpu")
        self.shape, self.products, self.limit = (size, size), 0, limit

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        if self.products >= self.limit:
            raise RuntimeError(f"no result after {self.limit} products")
        self.products += 1
        return self.product(v)

    matvec = __matmul__

    def to_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        kind = np.float64 if self.dtype == torch.float64 else np.float32

        def product(v: np.ndarray) -> np.ndarray:
            return (self @ torch.from_numpy(np.ascontiguousarray(v.reshape(-1), dtype=kind))).numpy()

        return scipy.sparse.linalg.LinearOperator(self.shape, matvec=product, dtype=kind)


def curvlinops_rule(A: Any, steps: int, seed: int) -> Rule:
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    torch.manual_seed(seed)
    nodes, vectors = fast_lanczos(A, steps)
    return nodes.double().numpy(), (vectors[0] ** 2).double().numpy()


def eigenthings_rule(A: Any, steps: int, seed: int) -> Rule:
    from hessian_eigenthings.algorithms.spectral_density import spectral_density

    found = spectral_density(A, num_runs=1, lanczos_steps=steps, num_grid_points=2, seed=seed)
    return found.raw_eigenvalues[0].double().numpy(), found.raw_weights[0].double().numpy()


def pyhessian_rule(A: Any, steps: int, seed: int) -> Rule:
    """Its `density` with the product of A in place of its own, and torch.linalg.eigh for torch.eig, which torch has removed."""
    from pyhessian import hessian

    h = hessian.__new__(hessian)
    h.device, h.full_dataset, h.model = "cpu", True, torch.nn.Identity()
    h.params = [torch.zeros(A.shape[0], dtype=A.dtype)]
    h.dataloader_hv_product = lambda v: (None, [A @ v[0]])

    def eig(T: torch.Tensor, eigenvectors: bool) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = torch.linalg.eigh(T)
        return values[:, None], vectors

    torch.manual_seed(seed)
    with mock.patch.object(torch, "eig", eig, create=True):
        ((nodes,), (weights,)) = h.density(iter=steps, n_v=1)
    return np.asarray(nodes, dtype=float), np.asarray(weights, dtype=float)


def primate_rule(A: Any, steps: int, seed: int) -> Rule:
    """Without reorthogonalisation, its default, from a Gaussian vector."""
    from primate.integrate import quadrature
    from primate.lanczos import lanczos

    start = np.random.default_rng(seed).standard_normal(A.shape[0])
    a, b = lanczos(A.to_scipy(), v0=start, deg=steps)
    nodes, weights = quadrature(a, b)
    return np.asarray(nodes, dtype=float), np.asarray(weights, dtype=float)


def curvlinops_density(A: Any, probes: int, steps: int, seed: int) -> Rule:
    """The density that it returns, all settings its own (1024 points, bumps of kappa = 3, eigsh for the ends)."""
    from curvlinops.papyan2020traces.spectrum import lanczos_approximate_spectrum

    torch.manual_seed(seed)
    grid, density = lanczos_approximate_spectrum(A, steps, num_repeats=probes)
    return grid.double().numpy(), density.double().numpy()


def eigenthings_density(A: Any, probes: int, steps: int, seed: int) -> Rule:
    """The density that it returns, all settings its own (10 000 points, bumps of range / steps)."""
    from hessian_eigenthings.algorithms.spectral_density import spectral_density

    found = spectral_density(A, num_runs=probes, lanczos_steps=steps, seed=1000 * seed)
    return found.grid.double().numpy(), found.density.double().numpy()


@dataclass(frozen=True)
class Other:
    """A package: its quadrature of one probe, the density it returns, and its own default numbers of probes and steps."""

    module: str
    distribution: str
    rule: Callable[[Any, int, int], Rule]
    density: Callable[[Any, int, int, int], Rule] | None
    probes: int
    steps: int | None


RULES = {
    "curvlinops": Other("curvlinops", "curvlinops-for-pytorch", curvlinops_rule, curvlinops_density, 1, None),
    "hessian-eigenthings": Other(
        "hessian_eigenthings", "hessian-eigenthings", eigenthings_rule, eigenthings_density, 10, 80
    ),
    "PyHessian": Other("pyhessian", "PyHessian", pyhessian_rule, None, 1, 100),
    "scikit-primate": Other("primate", "scikit-primate", primate_rule, None, 1, None),
}
LEFT_OUT = {"imate": "it takes arrays and no products, and its quadrature begins anew for each point of the density"}


def present_rules() -> list[str]:
    """The packages that can be imported; the others with the reason on stderr."""
    found = []
    for name, other in RULES.items():
        try:
            importlib.import_module(other.module)
            found.append(name)
        except FAILURES as failure:
            print(f"{name} is left out: {first_line(failure)}", file=sys.stderr)
    for name, reason in LEFT_OUT.items():
        print(f"{name} is left out: {reason}.", file=sys.stderr)
    return found


if __name__ == "__main__":
    for name in NAMES:
        known = made(name)
        print(f"{name}: n = {len(known.values)}, [{known.values[0]:.3g}, {known.values[-1]:.3g}]; {known.about}")
    print("others:", ", ".join(present_rules()) or "none")
