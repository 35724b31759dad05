"""P^{-1/2} of the Kronecker-factored curvature of curvlinops: KFAC, EKFAC and their damped inverses.

KFAC is A (x) G a layer, A of its inputs and G of its outputs' gradients, so that a KFAC of A^{-1/2} and G^{-1/2} multiplies by
its inverse root. EKFAC is Q diag(e) Q^T with Q of the eigenvectors of A and G: there e becomes e^{-1/2}. A damped inverse
(`KFACInverseLinearOperator`) has (A + a) (x) (G + g), or e + d. Factors are read from `state_dict()` and put into a copy; that
the copy is the root is tested on a vector, whatever a later curvlinops calls them.

Source: Martens, Grosse (2015), arXiv 1503.05671; George et al. (2018), arXiv 1806.03884.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from spectral import arrays

KINDS = {"KFACLinearOperator", "KFACInverseLinearOperator"}  # EKFAC is a kind of KFAC
DAMPED = "pass KFACInverseLinearOperator(K, damping=...) instead, of an EKFAC with use_exact_damping=True"
AGREE = 0.25  # power of eps: P^{-1/2} P^{-1/2} P v is v up to this, whatever condition P has below its inverse


def recognised(P: Any) -> bool:
    """Whether P is one of these."""
    return any(kind.__name__ in KINDS and kind.__module__.startswith("curvlinops.") for kind in type(P).__mro__)


def inverse_root(P: Any) -> Any:
    """What multiplies by P^{-1/2}, a curvlinops operator; of a KFACInverseLinearOperator, P is what it is the inverse of."""
    inverse = type(P).__name__ == "KFACInverseLinearOperator"
    K, n = getattr(P, "_A", P) if inverse else P, P.shape[0]
    v = torch.ones(n, dtype=P.dtype, device=P.device)
    image = P @ v  # makes the factors, which are made late
    told = P.state_dict()
    state, exact = (told["A"], told["use_exact_damping"]) if inverse else (told, False)
    try:
        if "corrected_eigenvalues" in state:
            d = told["damping"] if inverse else 0.0
            new = {"corrected_eigenvalues": {n: _powers(e, d, n) for n, e in state["corrected_eigenvalues"].items()}}
        elif exact:
            raise ValueError(
                "KFACInverseLinearOperator with use_exact_damping=True is no Kronecker product; use factored damping, or EKFAC."
            )
        else:
            new = {"input_covariances": {}, "gradient_covariances": {}}
            for name, G in state["gradient_covariances"].items():
                A = state["input_covariances"].get(name)
                a, g = P._compute_damping(A, G) if inverse else (0.0, 0.0)
                new["gradient_covariances"][name] = _root(G, g, name)
                if A is not None:
                    new["input_covariances"][name] = _root(A, a, name)
        C = copy.copy(K)
        for name, value in new.items():
            if not hasattr(C, f"_{name}"):
                raise KeyError(name)
            setattr(C, f"_{name}", value)
    except (KeyError, AttributeError) as missing:
        raise ValueError(
            f"this version of curvlinops has no {missing} in {type(P).__name__}; pass what multiplies by P^(-1/2) instead."
        ) from None
    twice = C @ (C @ (v if inverse else image))
    due = image if inverse else v
    if not float((twice - due).norm()) <= arrays.machine_epsilon(P.dtype) ** AGREE * float(due.norm()):
        raise ValueError(f"the inverse root of {type(P).__name__} is rounding: P is singular in {P.dtype}; {DAMPED}.")
    return C


def _root(M: torch.Tensor, damping: float, name: str) -> torch.Tensor:
    """(M + damping)^{-1/2} of a factor."""
    values, Q = torch.linalg.eigh(arrays.double(M))
    root: torch.Tensor = (Q * _power(values + damping, M.dtype, name)) @ Q.T
    return root.to(M)


def _powers(e: Any, damping: float, name: str) -> Any:
    """(e + damping)^{-1/2} of a layer's eigenvalues, or of its weight's and its bias's."""
    if isinstance(e, dict):
        return {key: _powers(value, damping, name) for key, value in e.items()}
    return _power(arrays.double(e) + damping, e.dtype, name).to(e)


def _power(values: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    least, most = float(values.min()), float(values.max())
    if not least > arrays.machine_epsilon(dtype) * most:
        raise ValueError(
            f"the layer {name!r} of P has eigenvalues from {least:.3g} to {most:.3g}, and no inverse; {DAMPED}."
        )
    return values.rsqrt()
