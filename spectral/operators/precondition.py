"""`precondition`: P^{-1/2} A P^{-1/2}, the matrix whose eigenvalues a preconditioned gradient descent feels.

theta <- theta - eta P^{-1} grad is plain gradient descent in the coordinates P^{1/2} theta, where the curvature A is
P^{-1/2} A P^{-1/2}. An optimizer's P is what torch divides its step by, read from its state at each product, as a model's weights
are: `Optimizer` looks at the version counters of the state and computes only what has changed.

Source: Cohen et al. (2022), Adaptive gradient methods at the edge of stability, arXiv 2207.14484, for Adam's P.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from spectral import arrays, persist
from spectral.checksum import checksum_of
from spectral.operators import kronecker
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Derived, Gram, Operator, Product
from spectral.pieces import Piece, Shards, local


def precondition(A: Any, P: Any) -> Operator:
    """P^{-1/2} A P^{-1/2} of square A (n, n): its eigenvalues are those of P^{-1} A.

    Cost: none to build. A product is one of A and two of P^{-1/2}, which for an optimizer or a diagonal are entry by entry.

    Parameters
    ----------
    A : operator or matrix
        (n, n); whatever `as_operator` takes. With an optimizer, or a diagonal by names, an operator over parameters of a model:
        Hessian, GaussNewton, Fisher, EmpiricalFisher, J.gram("right"), sums and shifts of them.
    P : torch.optim.Optimizer, array, mapping, operator or callable
        An optimizer: Adam or AdamW (amsgrad too), RMSprop (centered too), SGD (the identity). A diagonal: an array (n,), or
        {name: tensor} as `A.unflatten` gives it. KFAC or EKFAC of curvlinops over the parameters of A in its order, or the
        KFACInverseLinearOperator of one, whose damping is then a part of P; factors are those of now. Else what multiplies by
        P^{-1/2} (not by P): whatever `as_operator` takes (n, n), or a function of a block (n, b), which is then meant to be
        symmetric.

    Returns
    -------
    Operator
        C^T A C with C = P^{-1/2}: symmetric and nonnegative where A is. Of a Gram again a Gram, so that the smaller side is
        multiplied. Its description names P, and its identity changes with P.

    Raises
    ------
    TypeError
        For a P that is none of these, an optimizer that is none of the four, and one with an A over no parameters.
    ValueError
        For an A that is not square, a diagonal of another size or with an entry that is not finite and positive, and a
        parameter of A that is not the optimizer's or has not been stepped yet; KFAC that is singular or of other parameters.

    Notes
    -----
    P of Adam and AdamW is (1 - beta_1^t) (sqrt(v / (1 - beta_2^t)) + eps), v the second moment (its maximum with amsgrad):
    torch's step is the learning rate times the first moment over it. Gradient descent with momentum beta_1 and this P is
    stable up to lambda_max = (2 + 2 beta_1) / ((1 - beta_1) eta), 38 / eta for beta_1 = 0.9. RMSprop's P is sqrt(v) + eps.
    Learning rates, weight decay and momentum are no part of P. State is read as each product is made, weights and all;
    parameters are matched by identity, not by name or order.

    References
    ----------
    Cohen et al. (2022), Adaptive gradient methods at the edge of stability, arXiv 2207.14484.

    Examples
    --------
    >>> A = np.diag([1.0, 4.0])
    >>> spectral.exact(precondition(A, np.diag(A).copy())).atoms.values
    array([1., 1.])
    """
    A = as_operator(A)
    if A.shape[0] != A.shape[1] or not A.self_map:
        raise ValueError(
            f"{A!r} maps one space to another, and P^(-1/2) A P^(-1/2) is of a square matrix; use A.gram('right') or "
            "A.gram('left')."
        )
    C = _root(A, P)
    if C.shape != A.shape or C.dtype != A.dtype or C.device != A.device:
        raise ValueError(
            f"P is given by {C!r}, but it must multiply what {A!r} does; build both of one size, in one dtype, on one device."
        )
    if isinstance(A, Gram):
        K = A.parts[0]
        return Gram(Product(K, C), "right") if A.side == "right" else Gram(Product(C.T, K), "left")
    return Preconditioned(A, C)


class Preconditioned(Derived):
    """C^T A C, C = P^{-1/2} of full rank."""

    def __init__(self, A: Operator, C: Operator) -> None:
        super().__init__((A, C), A.shape, symmetric=A.symmetric, nonnegative=A.nonnegative, known_zeros=A.known_zeros)

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        A, C = self.parts
        return C.multiply_transpose(A.multiply(C.multiply(V)))

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        A, C = self.parts
        return C.multiply_transpose(A.multiply_transpose(C.multiply(U)))


class Root(Operator):
    """P^{-1/2}, `given` as its description says it."""

    given = "diagonal"

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "preconditioner": self.given}


class Diagonal(Root):
    """P^{-1/2} of a diagonal P > 0 (n,), laid out as the vectors of A are."""

    new_products = True

    def __init__(self, A: Operator, P: torch.Tensor) -> None:
        super().__init__(A.shape, A.dtype, A.device, symmetric=True, nonnegative=True)
        self.like, self._entries = A, _positive(P).rsqrt()

    @property
    def entries(self) -> torch.Tensor:
        """P^{-1/2} (n,)."""
        return self._entries

    def _names(self, side: str) -> dict[str, tuple[int, ...]] | None:
        return self.like._names(side)  # as A's: a class's own hook

    def _shards(self, side: str) -> Shards | None:
        return self.like.shards

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return V * self.entries[:, None]

    def identity(self) -> str:
        return persist.fingerprint([self.describe(), checksum_of(local(self.entries))])


class Optimizer(Diagonal):
    """P^{-1/2} of a torch optimizer's state as it is now."""

    def __init__(self, A: Operator, optimizer: torch.optim.Optimizer) -> None:
        if type(optimizer) not in READERS:
            raise TypeError(
                f"the preconditioner of {type(optimizer).__name__} is not known here; use one of "
                f"{', '.join(kind.__name__ for kind in READERS)}, or pass its diagonal as a tensor or a dict by parameter."
            )
        self.optimizer, self.read = optimizer, READERS[type(optimizer)]
        self.parameters = _matched(A, optimizer)
        self._seen: list[tuple[torch.Tensor | None, Any]] = []
        self.given = type(optimizer).__name__
        super().__init__(A, self._flat(A))

    def _flat(self, A: Operator) -> torch.Tensor:
        """P (n,), and what it was read from."""
        self._seen = list(self._state())
        # the state may be in another dtype than the vectors, which `flatten` holds to theirs
        return A.flatten({name: self._of(name, p).to(A.device, A.dtype) for name, p in self.parameters.items()})

    def _of(self, name: str, p: torch.Tensor) -> torch.Tensor:
        group = next(group for group in self.optimizer.param_groups if any(p is other for other in group["params"]))
        try:
            with torch.no_grad():
                return self.read(p.detach(), self.optimizer.state.get(p, {}), group)
        except KeyError as missing:
            raise ValueError(
                f"the parameter {name!r} has no {missing} in the state of {type(self.optimizer).__name__}; let the "
                "optimizer step once, or leave the parameter out of A by params=[...]."
            ) from None

    def _state(self) -> Iterable[tuple[torch.Tensor | None, Any]]:
        """(tensor, version) or (None, number) of all that P depends on."""
        for group in self.optimizer.param_groups:
            yield None, [group.get(key) for key in ("betas", "eps", "amsgrad", "centered")]
        for p in self.parameters.values():
            for value in self.optimizer.state.get(p, {}).values():
                yield (value, value._version) if isinstance(value, torch.Tensor) else (None, value)

    @property
    def entries(self) -> torch.Tensor:
        now = list(self._state())
        if len(now) != len(self._seen) or any(
            one is not other or this != that for (one, this), (other, that) in zip(now, self._seen, strict=True)
        ):
            self._entries = _positive(self._flat(self.like)).rsqrt()
        return self._entries


class Function(Root):
    """A function V (n, b) -> P^{-1/2} V."""

    def __init__(self, A: Operator, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__(A.shape, A.dtype, A.device, symmetric=True)
        self.function, self.given = function, getattr(function, "__qualname__", type(function).__name__)

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        W = self.function(V)
        if not isinstance(W, torch.Tensor) or W.shape != V.shape or W.dtype != V.dtype:
            got = f"{tuple(W.shape)} of {W.dtype}" if isinstance(W, torch.Tensor) else type(W).__name__
            raise ValueError(
                f"the preconditioner gave {got} for a block {tuple(V.shape)} of {V.dtype}; it must keep shape and dtype."
            )
        return W.detach().clone() if W is V else W.detach()


def _root(A: Operator, P: Any) -> Operator:
    """C = P^{-1/2} as an operator."""
    if isinstance(P, torch.optim.Optimizer):
        given: Any = P
        wrapped = {kind.__name__ for kind in type(P).__mro__} & WRAPPERS
        return Optimizer(A, given.optimizer if wrapped else given)
    if isinstance(P, Mapping):
        return Diagonal(A, A.flatten(P))
    if arrays.is_array(P) and P.ndim == 1:
        if A.shards is not None and isinstance(P, torch.Tensor) and not isinstance(P, Piece) and len(P) == A.shape[0]:
            P = A.shards.part(P)
        return Diagonal(A, A.columns(P)[:, 0])
    if kronecker.recognised(P):
        _in_order(A, P)
        return as_operator(kronecker.inverse_root(P))
    if hasattr(P, "shape") and hasattr(P, "__matmul__"):
        return as_operator(P)
    if callable(P):
        return Function(A, P)
    raise TypeError(
        f"P is a {type(P).__name__}; use a torch optimizer, its diagonal (a tensor, or a dict by parameter), or "
        "what multiplies by P^(-1/2)."
    )


def _positive(P: torch.Tensor) -> torch.Tensor:
    """P as it is; one sentence where an entry has no root."""
    own = local(P)
    bad = ~((own > 0) & torch.isfinite(own))
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"a preconditioner is positive, but {int(bad.sum())} of its {len(own)} diagonal entries are not, such as "
            f"{float(own[i]):.3g} at {i}; add what the optimizer's eps is for, or leave these parameters out."
        )
    return P


# Optimizers -----------------------------------------------------------------------------------------------------------
# what trainers of transformers and Lightning put around an optimizer, to which they hand each step
WRAPPERS = {"AcceleratedOptimizer", "LightningOptimizer"}
Reader = Callable[[torch.Tensor, Mapping[str, Any], Mapping[str, Any]], torch.Tensor]


def _adam(p: torch.Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> torch.Tensor:
    (beta_1, beta_2), t = (float(beta) for beta in group["betas"]), float(state["step"])
    v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    P: torch.Tensor = ((v / (1 - beta_2**t)).sqrt_() + group["eps"]) * (1 - beta_1**t)
    return P


def _rmsprop(p: torch.Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> torch.Tensor:
    v = state["square_avg"]
    if group["centered"]:
        v = v - state["grad_avg"] ** 2
    P: torch.Tensor = v.sqrt() + group["eps"]
    return P


def _sgd(p: torch.Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> torch.Tensor:
    return torch.ones_like(p)


READERS: dict[type[torch.optim.Optimizer], Reader] = {
    torch.optim.Adam: _adam, torch.optim.AdamW: _adam, torch.optim.RMSprop: _rmsprop, torch.optim.SGD: _sgd,
}  # fmt: skip


def _in_order(A: Operator, P: Any) -> None:
    """One sentence where curvlinops has other parameters than A, or in another order."""
    networks = [leaf.network for leaf in A.sources if hasattr(leaf, "network")]
    theirs = getattr(getattr(P, "_A", P), "_params", None)
    if not networks or theirs is None:
        return
    named = dict(networks[0].model.named_parameters())
    ours = [named.get(name) for name in A.unflatten(A.empty().zero_())]
    if [id(p) for p in ours] != [id(p) for p in theirs]:
        raise ValueError(
            f"{type(P).__name__} is over other parameters than {A!r}, or has them in another order; build it with "
            "[p for p in model.parameters() if p.requires_grad], or A with params=[...]."
        )


def _matched(A: Operator, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's own tensors for the parameters that A differentiates, by the names that A has for them."""
    networks = [leaf.network for leaf in A.sources if hasattr(leaf, "network")]
    if not networks or any(network.wrt != "params" for network in networks):
        raise TypeError(
            f"{A!r} is not with respect to a model's parameters, and an optimizer knows no others; pass the diagonal as a tensor."
        )
    names = A.unflatten(A.empty().zero_())
    named = dict(networks[0].model.named_parameters())
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name in names:
        if id(named.get(name)) not in known:
            raise ValueError(
                f"the parameter {name!r} of {A!r} is not among those of {type(optimizer).__name__}; build the "
                "optimizer of this model, or leave the parameter out of A by params=[...]."
            )
    return {name: named[name] for name in names}
