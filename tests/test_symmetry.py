"""One wrong finite product among many is no spectrum: <x, A y> = <A^T x, y> of products that are made anyway."""

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch

import spectral
from spectral.operators.base import Operator

N = 60
VALUES = np.geomspace(1e-3, 1.0, N)
SIGNED = np.linspace(-1.0, 1.0, N)


def rotated(values, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    A = Q * values @ Q.T
    return (A + A.T) / 2


class Once(Operator):
    """A matrix whose call number `wrong` (from 1 on) of products gives `change` of what is right, in its first column."""

    def __init__(self, M, wrong=None, change=lambda w: 0.9 * w, dtype=torch.float64, **properties):
        self.M = torch.as_tensor(np.asarray(M)).to(dtype)
        super().__init__(tuple(self.M.shape), dtype, torch.device("cpu"), **properties)
        self.wrong, self.change, self.calls, self.damage = wrong, change, 0, 0

    def _made(self, W):
        self.calls += 1
        if self.calls == self.wrong:
            self.damage += 1
            W = W.clone()
            W[:, 0] = self.change(W[:, 0])
        return W

    def _apply(self, V):
        return self._made(self.M @ V)

    def _apply_transpose(self, U):
        return self._made(self.M.T @ U)


def flipped(w):
    """The entry of the largest magnitude has the other sign."""
    w = w.clone()
    w[w.abs().argmax()] *= -1
    return w


def noisy(w):
    return w + 0.01 * w.norm() * spectral.probes.probe(9, 9, len(w), dtype=w.dtype) / len(w) ** 0.5


CHANGES = {"scaled": lambda w: 0.9 * w, "an entry flipped": flipped, "noise": noisy, "zero": lambda w: 0 * w}
SYMMETRIC = {
    "slq with the basis": lambda A: spectral.slq(A, probes=2, steps=20, reorthogonalize=True, progress=False),
    "slq, selective": lambda A: spectral.slq(A, probes=2, steps=20, reorthogonalize="selective", progress=False),
    "slq without a basis": lambda A: spectral.slq(A, probes=2, steps=20, reorthogonalize=False, progress=False),
    "kpm": lambda A: spectral.kpm(A, moments=40, progress=False),
    "kpm, chebyshev": lambda A: spectral.kpm(A, moments=40, recurrence="chebyshev", progress=False),
    "top": lambda A: spectral.top(A, 2, progress=False),
    "top, blocks": lambda A: spectral.top(A, 2, block=3, progress=False),
    "top, restarts": lambda A: spectral.top(A, 2, basis=12, progress=False),
    "svd": lambda A: spectral.svd(A, 2, progress=False),
    "svd, restarts": lambda A: spectral.svd(A, 2, basis=12, progress=False),
    "trace, hutchinson": lambda A: spectral.trace(A, probes=20, method="hutchinson", progress=False),
    "trace, hutch++": lambda A: spectral.trace(A, probes=21, method="hutch++", progress=False),
    "trace, xtrace": lambda A: spectral.trace(A, probes=20, method="xtrace", progress=False),
    "diagonal, hutchinson": lambda A: spectral.diagonal(A, probes=20, method="hutchinson", progress=False),
    "diagonal, xdiag": lambda A: spectral.diagonal(A, probes=20, method="xdiag", progress=False),
}  # fmt: skip
BY_COLUMNS = {
    "exact": lambda A: spectral.exact(A, progress=False),
    "diagonal, exact": lambda A: spectral.diagonal(A, method="exact", progress=False),
}
SEMIDEFINITE = {
    "trace, xnystrace": lambda A: spectral.trace(A, probes=20, method="xnystrace", progress=False),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [*SYMMETRIC, *BY_COLUMNS, *SEMIDEFINITE])
def test_probe(name, change):
    run = {**SYMMETRIC, **BY_COLUMNS, **SEMIDEFINITE}[name]
    values = VALUES if name in SEMIDEFINITE else SIGNED
    healthy = Once(rotated(values), symmetric=True, nonnegative=name in SEMIDEFINITE)
    run(healthy)
    missed = []
    for k in range(1, healthy.calls + 1):
        A = Once(rotated(values), k, CHANGES[change], symmetric=True, nonnegative=name in SEMIDEFINITE)
        try:
            run(A)
            missed.append(k)
        except RuntimeError as e:
            msg = str(e)
        except ValueError as e:
            msg = str(e); print("VALUE", k, e)
    print(name, "|", change, "| missed", missed, "of", healthy.calls, "|", msg if len(missed) < healthy.calls else "")
