"""`Hessian`, `GaussNewton`, `Fisher` and `EmpiricalFisher` of a loss over a data set.

Every matrix is that of torch's own mean over the counted targets of all data at once: sums over batches, one division at
the end, so that it never matters how the data are batched.

Legend: B samples in a batch, z the outputs (logits) of a batch, U a change of them, P parameters, N counted targets, C classes.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from spectral import arrays, checkpoint, distributed
from spectral.operators import engines, losses, outputs
from spectral.operators.base import Operator
from spectral.operators.data import first_tensor, is_finite
from spectral.operators.functional import Network
from spectral.operators.losses import output_tensor

Forward = Callable[[nn.Module, Any], Any] | None
Product = Callable[[torch.Tensor], torch.Tensor]


class LossNetwork(Network):
    """A network with a loss: its first sweep counts the targets."""

    def __init__(self, model: nn.Module, data: Any, loss: Any, forward: Forward, **options: Any) -> None:
        if loss is None and forward is None:
            forward = _with_labels
        super().__init__(model, data, loss=loss, forward=forward, **options)
        names = f"{getattr(model, 'loss_type', '')} {type(model).__name__}"
        self.shift: bool | None = "CausalLM" in names or "LMHead" in names  # until a batch's own loss tells
        self.counts: list[float] = []
        self.shapes: list[tuple[int, ...]] = []

    def _checked_outputs(self, index: int, batch: Any) -> torch.Tensor:
        output = self.raw(self.values, batch)
        if self.loss is None and is_finite(batch):
            self._recognise(index, output, batch)
        total, count = losses.loss_sum(self.loss, output, batch, self.shift)
        if not torch.isfinite(total):
            culprit = "the loss is" if is_finite(batch) else "the data hold"
            raise ValueError(f"{culprit} NaN or infinity in batch {index}; remove those samples or mend the model.")
        if index == 0:
            again = losses.loss_sum(self.loss, self.raw(self.values, batch), batch, self.shift)[0]
            if abs(float(total - again)) > 1e3 * arrays.machine_epsilon(total.dtype) ** 0.75 * abs(float(total)):
                raise ValueError("two losses of one batch differ: the model is random in eval mode; remove the noise.")
        self.counts.append(float(count))
        first = first_tensor(batch)
        return total.expand(1 if first is None else first.shape[0], 1)

    def _recognise(self, index: int, output: Any, batch: Any) -> None:
        """Hold the model's own loss against the cross entropy of its logits, with labels in place and shifted.

        Its name does not tell; a mean of anything else (an auxiliary loss) would depend on how the data are batched.
        """
        if losses.target_of(batch).is_floating_point():
            self.shift = None
            return
        fits = losses.own_shifts(output, batch)
        if self.shift in fits:
            return
        mean = float(losses.own_mean(output))
        if not fits or any(self.counts):
            raise ValueError(
                f"the model's own loss ({mean:.6g}) of batch {index} is not the mean cross entropy of its logits over labels "
                "that are not -100, in place or shifted by one (an auxiliary loss, say); pass loss= as a callable "
                "(output, batch) -> (sum, count)."
            )
        self.shift = fits[0]

    def total(self, values: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
        """The loss summed over the counted targets of a batch, as a function of the parameters."""
        return losses.loss_sum(self.loss, self.raw(values, batch), batch, self.shift)[0]

    def _select(self, output: Any, batch: Any) -> torch.Tensor:
        z = self.of(output, batch) if callable(self.of) else output_tensor(output)
        return z.reshape(z.shape[0], -1)


def _with_labels(model: nn.Module, batch: Any) -> Any:
    """The model's forward pass with its labels, which makes it return its own loss."""
    if not isinstance(batch, dict):
        raise ValueError(
            "loss=None means the model's own loss, which needs mappings with labels as batches; pass loss=."
        )
    return model(**batch)


class Curvature(Operator):
    """A symmetric (P, P) matrix: a sum over batches divided by the number N of counted targets.

    `loss`: a torch loss module under any reduction, a callable (output, batch) -> (sum, count), or None for the model's own
    loss (Hugging Face, labels in the batch). A subclass gives `_prepare`, the product with one batch's sum.
    """

    engines: tuple[str, ...] = engines.ENGINES

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        data: Any,
        *,
        params: list[str] | None = None,
        forward: Forward = None,
        engine: str = "auto",
        product_dtype: torch.dtype | None = None,
    ) -> None:
        if engine not in self.engines:
            raise ValueError(
                f"engine={engine!r} is no engine of {type(self).__name__}; use one of {', '.join(self.engines)}."
            )
        self.network = LossNetwork(
            model, data, loss, forward, params=params, product_dtype=product_dtype, of=self._of()
        )
        self.loss, self.engine = loss, engine
        self._how: dict[str, Any] = {"forward": forward, "engine": engine, "product_dtype": product_dtype}
        self.first_sample = sum(distributed.all_counts(self.network.survey.n)[: distributed.rank()])
        self.count = float(distributed.all_reduce(torch.tensor(sum(self.network.counts), dtype=torch.float64)))
        if self.count == 0:
            raise ValueError("no target is counted (all are ignored, say), so that the mean loss is not defined.")
        size = sum(value.numel() for value in self.network.values.values())
        super().__init__(
            (size, size), self.network.dtype, self.network.device, symmetric=True, nonnegative=self._semidefinite()
        )
        self.store = engines.Store()  # store.budget = 0 keeps nothing
        self.choice: engines.Choice | None = None
        self._bytes_per_sample = -1.0

    def _semidefinite(self) -> bool:
        """Whether the matrix is positive semi-definite by construction."""
        return False

    def _of(self) -> Any:
        """What is differentiated: the logits, or a callable (output, batch) -> (B, k)."""
        return "logits"

    def restricted(self, names: list[str]) -> Curvature:
        """The same matrix with respect to the named parameters alone: a diagonal block."""
        params = [glob.escape(name) for name in names]
        return type(self)(self.network.model, self.loss, self.network.data, params=params, **self._how)

    @property
    def epochs(self) -> float:
        return float(self.network.sweeps)

    def describe(self) -> dict[str, Any]:
        chosen = {} if self.choice is None else self.choice.describe(self.expected)
        return {**super().describe(), **self.network.describe(), "count": self.count, "engine": self.engine, **chosen}

    def identity(self) -> str:
        what = {**super().describe(), **self.network.describe(), "count": self.count}
        state = [arrays.sketch(t) for t in (*self.network.model.parameters(), *self.network.model.buffers())]
        return checkpoint.fingerprint([what, list(self.network.values), state, self.network.survey.fingerprints])

    def expect(self, products: int) -> None:
        if products != self.expected:
            self.expected = products
            self.store.clear()

    def _prepare(self, index: int, batch: Any, first: int) -> tuple[Product, float]:
        """(v (P,) -> this batch's part of N A v, bytes a sample that keeping it takes); `first`: index of its first sample."""
        raise TypeError(f"{type(self).__name__} multiplies nothing by itself; use one of its subclasses.")

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        W, first = torch.zeros_like(V), self.first_sample
        version = self.network.versions()
        with self.network.sweep() as batches:
            for index, batch in batches:
                size = self.network.survey.samples[index]
                product = self.store.get(index, version)
                if product is None:
                    product, each = self._prepare(index, batch, first)
                    if self.store.room(int(each * size), self.device):
                        self.store.put(index, product, int(each * size))
                for j in range(V.shape[1]):
                    W[:, j] += product(V[:, j]).to(V.dtype)
                first += size
        W = distributed.all_reduce(W) / self.count
        if not torch.isfinite(W).all():
            raise ValueError(
                f"the product with {type(self).__name__} holds NaN or infinity though the loss is finite: a derivative of the "
                "model is not finite (a square root or a norm at 0, say); mend the model, or multiply in float64 by "
                "product_dtype=."
            )
        return W


class Hessian(Curvature):
    """The Hessian of the mean loss with respect to the parameters, (P, P): symmetric, in general indefinite.

    The graph of each batch's gradient is recorded (about a gradient and a half) and kept as memory allows; one product is one
    backward pass through it. Arguments as for `Curvature`; `engine` is "auto" or "double-backward". Source: Pearlmutter (1994).

    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> H = Hessian(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), [(x, y)])
    >>> H @ torch.ones(1)  # d2/dw2 of (w^2 + (2 w)^2) / 2
    tensor([5.])
    """

    engines: tuple[str, ...] = ("auto", "double-backward")

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "engine": "double-backward"}

    def _prepare(self, index: int, batch: Any, first: int) -> tuple[Product, float]:
        values = self.network.values
        leaves = tuple(p.detach().requires_grad_() for p in values.values())
        with engines.math_attention():  # the fused one has no double backward
            total = self.network.total(dict(zip(values, leaves, strict=True)), batch)
            gradients = engines.gradients(total, leaves, create_graph=True)
        linked = [i for i, g in enumerate(gradients) if g.requires_grad]
        if self._bytes_per_sample < 0:

            def function(*p: torch.Tensor) -> torch.Tensor:
                return self.network.total(dict(zip(values, p, strict=True)), batch)

            self._bytes_per_sample = 4 * engines.graph_bytes(function, leaves) / self.network.survey.samples[index]

        def product(v: torch.Tensor) -> torch.Tensor:
            if not linked:
                return torch.zeros_like(v)
            tangents = self.network.split(v)
            pulled = torch.autograd.grad(
                [gradients[i] for i in linked],
                leaves,
                [tangents[i] for i in linked],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return torch.cat([g.reshape(-1) for g in pulled])

        return product, self._bytes_per_sample


class GaussNewton(Curvature):
    """J^T H J / N: J the Jacobian of the logits z, H the Hessian of the summed loss with respect to z; (P, P).

    Positive semi-definite where the loss is convex in z, as torch's are. One product: J v, a product with H (of the outputs
    alone), J^T u; see `spectral.operators.engines`. Arguments as for `Curvature`. Source: Schraudolph (2002); Martens (2020).

    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> GaussNewton(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), [(x, y)]) @ torch.ones(1)
    tensor([5.])
    """

    def _semidefinite(self) -> bool:
        return outputs.is_convex(self.loss)

    def _prepare(self, index: int, batch: Any, first: int) -> tuple[Product, float]:
        function, primals = self.network.function(batch), self.network.primals(batch)
        if self.choice is None:
            self.choice = engines.choose(self.engine, function, primals)
            self._bytes_per_sample = engines.graph_bytes(function, primals) / self.network.survey.samples[index]
        name = self.choice.kept(self.expected)
        each = engines.COPIES[name] * self._bytes_per_sample
        if not self.store.room(int(each * self.network.survey.samples[index]), self.device):
            name = self.choice.once
        lin = engines.CLASSES[name](function, primals)
        curve = self._output_curvature(batch, first)

        def product(v: torch.Tensor) -> torch.Tensor:
            u = curve(lin.jvp(self.network.split(v)))
            return torch.cat([g.reshape(-1) for g in lin.vjp(u)])

        return product, each

    def _logits(self, batch: Any) -> tuple[torch.Tensor, Any]:
        """(logits without a graph, the whole output) of a batch."""
        with torch.no_grad():
            output = self.network.raw(self.network.values, batch)
        return output_tensor(output).detach(), output

    def _output_curvature(self, batch: Any, first: int) -> Product:
        """U (B, k) -> H U."""
        z, output = self._logits(batch)
        return outputs.loss_hessian(self.loss, z, output, batch, self.network.shift)


class Fisher(GaussNewton):
    """The Fisher information of the model's predictive distribution, (P, P): J^T F J / N, positive semi-definite.

    F is the expected outer product of the score with respect to the logits under the model's own predictions: diag(p) - p p^T
    for cross entropy, p (1 - p) for binary cross entropy, 2 for the squared error (torch's MSELoss is the negative
    log-likelihood of variance 1/2). draws=None takes that expectation exactly; an integer draws so many labels for each target,
    by (seed, sample) alone, whatever the batching. Ignored targets and class weights count as in the loss. Source: Amari (1998);
    Kunstner, Balles, Hennig (2019).

    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> Fisher(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), [(x, y)]) @ torch.ones(1)
    tensor([5.])
    """

    def __init__(
        self, model: nn.Module, loss: Any, data: Any, *, draws: int | None = None, seed: int = 0,
        params: list[str] | None = None, forward: Forward = None, engine: str = "auto",
        product_dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        if draws is not None and (isinstance(draws, bool) or not isinstance(draws, int) or draws < 1):
            raise ValueError(
                f"draws={draws!r} is no number of draws; use an integer >= 1, or None for the exact Fisher."
            )
        outputs.check_predictive(loss)
        self.draws, self.seed = draws, seed
        super().__init__(model, loss, data, params=params, forward=forward, engine=engine, product_dtype=product_dtype)
        self._how |= {"draws": draws, "seed": seed}

    def _semidefinite(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "draws": self.draws, **({} if self.draws is None else {"seed": self.seed})}

    def identity(self) -> str:
        return checkpoint.fingerprint([super().identity(), self.draws, self.seed])

    def _output_curvature(self, batch: Any, first: int) -> Product:
        z, _ = self._logits(batch)
        if self.draws is None:
            return outputs.exact_fisher(self.loss, z, batch, self.network.shift)
        return outputs.sampled_fisher(self.loss, z, batch, self.network.shift, self.draws, self.seed, first)


class EmpiricalFisher(GaussNewton):
    """sum_i g_i g_i^T / N: g_i the gradient of sample i's summed loss; (P, P), positive semi-definite.

    It is the Gram matrix of the Jacobian of the n per-sample losses; one product is one J v and one J^T u of it. It is no
    Fisher matrix: the labels are the data's. Source: Kunstner, Balles, Hennig (2019).

    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> EmpiricalFisher(model, torch.nn.MSELoss(), [(x, y)]) @ torch.ones(1)  # gradients 2 and 8: (4 + 64) / 2
    tensor([34.])
    """

    def _semidefinite(self) -> bool:
        return True

    def _of(self) -> Any:
        return lambda output, batch: losses.per_sample_sums(self.network.loss, output, batch, self.network.shift)

    def _output_curvature(self, batch: Any, first: int) -> Product:
        return lambda u: u


def blocks(A: Operator) -> dict[str, Operator]:
    """The diagonal blocks of A, one operator for each parameter tensor, in the order of the parameters.

    A is a Hessian, GaussNewton, Fisher or EmpiricalFisher, or the Gram J^T J of a parameter Jacobian; each block is the same
    matrix restricted to that parameter (`params=[name]`) on the same data.

    >>> x, y = torch.ones(1, 3), torch.zeros(1, 2)
    >>> {name: B.shape for name, B in blocks(Hessian(torch.nn.Linear(3, 2), torch.nn.MSELoss(), [(x, y)])).items()}
    {'weight': (6, 6), 'bias': (2, 2)}
    """
    from spectral.operators.base import Gram
    from spectral.operators.jacobian import Jacobian

    inner = A.parts[0] if isinstance(A, Gram) and A.side == "right" else A
    if not isinstance(inner, Curvature | Jacobian) or (isinstance(inner, Jacobian) and inner is A):
        raise TypeError(
            f"{A!r} has no blocks; pass a Hessian, GaussNewton, Fisher, EmpiricalFisher, or J.gram('right') of a Jacobian."
        )
    made = {name: inner.restricted([name]) for name in inner.network.values}
    return {name: B if inner is A else B.gram("right") for name, B in made.items()}
