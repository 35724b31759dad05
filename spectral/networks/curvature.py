"""`Hessian` and `GaussNewton` of a loss over a data set, and what `Fisher` and `EmpiricalFisher` rest on.

Every matrix is that of torch's own mean over the counted targets of all data at once: sums over batches, one division at
the end, so that it never matters how the data are batched.

Legend: n samples, B in a batch, z the outputs (logits) of a batch, U a change of them, P parameters, d entries of a sample's
inputs or of a module's output, N counted targets, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from spectral import arrays, distributed, longvectors, probes
from spectral.engine import linearize, private, trace
from spectral.engine.autotune import FAILURES
from spectral.engine.plain import Maps
from spectral.networks import losses, per_sample, sharded, survey
from spectral.networks import output_curvature as outputs
from spectral.networks.diagnose import checks, differences
from spectral.networks.linear_head import HeadCurvature
from spectral.networks.loss_model import LossModel
from spectral.networks.products import Products
from spectral.networks.sum_over_batches import SumOverBatches
from spectral.schema import choice
from spectral.threads import instead

Forward = Callable[[nn.Module, Any], Any] | None
Product = Callable[[torch.Tensor], torch.Tensor]
LAYOUTS = ("block-diagonal", "summed")  # of what is differentiated of each sample


class Curvature(SumOverBatches):
    """A symmetric matrix: a sum over batches divided by the number N of counted targets; (P, P), or (n d, n d) or (d, d).

    Its keywords are documented on each of its subclasses.
    """

    network: LossModel
    of = "logits"  # what is differentiated first
    semidefinite = False  # whether the matrix is so by construction
    ways: Collection[str] = linearize.WAYS  # in the order in which they are tried

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        data: Any,
        *,
        wrt: str = "params",
        layout: str = "block-diagonal",
        params: Any = None,
        forward: Forward = None,
        shared: Sequence[Any] = (),
        statistics: str = "population",
        engine: str = "auto",
        product_dtype: torch.dtype | None = None,
        memory: Any = None,
        preflight: bool = True,
        chunk: int | None = None,
    ) -> None:
        choice(layout, "layout", LAYOUTS)
        if layout == "summed" and wrt == "params":
            raise ValueError("layout='summed' is for wrt='inputs' and 'module:NAME'; leave it out with wrt='params'.")
        products = Products(engine, product_dtype, memory, preflight, chunk)
        self.layout = layout
        self._build(
            LossModel, model, data, products, loss=loss, forward=forward, wrt=wrt, params=params, shared=shared,
            statistics=statistics, of=self.of,
        )  # fmt: skip

    def _begin(self, network: Any, products: Products) -> None:
        self.loss, survey = network.loss.given, checks.surveyed(network)
        self.samples = sum(part.n for part in survey.parts)
        first = sum(part.n for part in survey.parts[: distributed.rank()])
        self.starts = list(itertools.accumulate(survey.samples, initial=first))  # samples before a batch
        self.count = sum(part.counted for part in survey.parts)
        if self.count == 0:
            raise ValueError("no target is counted (all are ignored, say), so that the mean loss is not defined.")
        self._own = network.wrt != "params" and self.layout == "block-diagonal"  # entries of a vector for each sample
        self.repeats = (self.samples,) if self._own else ()
        size = network.entries(self.repeats)
        self.singles: per_sample.Gradients | None = None  # how single samples' gradients are made, once asked for
        self._held: set[str] = set()  # ways whose second derivatives, or the loss's, have been held to differences
        self._earlier: Earlier | None = None
        super().__init__(
            (size, size), network, products, tuple(self.ways), symmetric=True, nonnegative=self.semidefinite
        )

    def _what(self) -> dict[str, Any]:
        layout = {} if self.network.wrt == "params" else {"layout": self.layout}
        return {**super()._what(), **layout, "count": self.count}

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        W = self._swept("H v", V, f"with {type(self).__name__}")
        return W.div_(self.count) if self.coarse else W

    # The loss itself --------------------------------------------------------------------------------------------------
    def mean_loss(self, shift: torch.Tensor | None = None) -> float:
        """L at the parameters, or at the parameters plus `shift` (P,): one forward sweep. The model's own are not written to."""
        network = self._with_whole_parameters("mean_loss")
        moves = None if shift is None else network.split(self.columns(shift)[:, 0])

        def total() -> float:
            with network.sweep() as batches:  # with gradients, which a loss may ask for (of the output in the inputs)
                values = tuple(network.values.values())
                moved = values if moves is None else [p + move for p, move in zip(values, moves, strict=True)]
                return sum(float(network.total(batch)(*moved).detach()) for _, batch in batches)

        if self.ranks == 1:
            return total() / self.count
        everyone = distributed.gather(
            lambda: (total(), 0.0 if shift is None else float(distributed.mark(shift[None])), network.kept_checksum())
        )
        distributed.hold_alike([mark for _, mark, _ in everyone])
        survey.check_weights(network, [held for *_, held in everyone])
        return sum(value for value, *_ in everyone) / self.count

    def gradient(self) -> torch.Tensor:
        """The gradient of L, (P,): one forward and one backward pass over the data."""
        network = self._with_whole_parameters("gradient")
        g = torch.zeros(self.shape[1], dtype=self.dtype, device=self.device)
        with distributed.Summand(g) as part, network.sweep() as batches:
            values = tuple(p.detach().requires_grad_() for p in network.values.values())
            for _, batch in batches:
                trace.add_pieces(g, linearize.gradients(network.total(batch)(*values), values))
        total = part.sum().div_(self.count)
        if not arrays.all_finite(total):
            part.share()
            raise ValueError("the gradient of the loss holds NaN or infinity.")
        return total

    def _with_whole_parameters(self, what: str) -> LossModel:
        if self.network.wrt != "params":
            raise ValueError(
                f"{what} is of the parameters, but this matrix is of wrt={self.network.wrt!r}; build one of wrt='params'."
            )
        if self.network.shards is not None:
            raise ValueError(
                f"{what} needs whole parameters, but this model's lie over ranks (fully_shard); use it before it is sharded."
            )
        return self.network

    @property
    def share(self) -> float:
        """1 / N where products are divided inside, which costs no pass over them; coarse dtypes might underflow: 1."""
        return 1.0 if self.coarse else 1.0 / self.count

    def entries(self, group: range) -> slice:
        """Which entries of a vector belong to the samples of these batches; all where there is one variable for all samples."""
        each = self.shape[0] // self.samples
        return slice(self.starts[group.start] * each, self.starts[group.stop] * each) if self._own else slice(None)

    def _pieces(self, gradients: trace.Pieces) -> trace.Pieces:
        """What a batch adds to a product: the gradients of its variable, summed over the samples where it is one for all."""
        if self.layout == "summed":
            return (gradients[0].sum(0, dtype=self.dtype),)
        return gradients

    def _difference(
        self, way: str, places: Iterable[differences.Probe], product: Callable[[differences.Probe], Any]
    ) -> float:
        """How far a second derivative is off from a difference of gradients; differences.Wrong if it is no rounding."""
        error = differences.hold(places, product, way)
        if error is None:
            why = "differences of gradients do not tell (kinks, rounding, dtypes)"
            self.network.untested["second derivatives"] = why
        return error or 0.0


class Earlier(NamedTuple):
    """A product of a Hessian, which waits for the next one: the way, the model's version, the vector and what it gave."""

    way: str
    model: Any
    v: torch.Tensor | probes.Signs
    product: linearize.Waiting
    version: int

    @property
    def there(self) -> bool:
        """Whether the vector is still what was multiplied: others may have written to it."""
        return _writes(self.v) == self.version


def _writes(v: torch.Tensor | probes.Signs) -> int:
    return 0 if isinstance(v, probes.Signs) else private.version(v)


class Hessian(Curvature):
    """The Hessian of the mean loss with respect to the parameters, (P, P): symmetric, in general indefinite.

    H = d^2 L / d theta^2 of L = (1/N) sum_i loss_i, N the number of counted targets.

    Cost: one product is one sweep over the data, the derivative of the gradient along v. Building it takes a forward pass
    over the data, for sizes and counts.

    Parameters
    ----------
    model : torch.nn.Module
        Computed in eval mode, left as it was. Each sweep sees its weights as they are when it begins.
    loss : torch.nn.Module or callable, optional
        A torch loss module under any reduction; a callable (output, batch) that returns (sum, count), the mean over the
        samples, or one number for each; None for the model's own loss (Hugging Face, labels in the batch). A callable gets
        the output as the model gives it, and the whole batch.
    data : iterable of batches
        Read anew in each sweep, so that an iterator is refused. A batch is a tensor, a tuple such as (x, y), or a mapping
        (Hugging Face). Each sweep must give the same batches; the random state of a shuffling loader is replayed.
    wrt : str
        With respect to "params", to "inputs" (embeddings for token models), or to "module:NAME": the output of that module, one
        tensor (B, ...) of a module that is called once.
    layout : str
        Not for parameters: "block-diagonal", every sample's variable by itself, or "summed", one change for all samples.
    params : list, optional
        The parameters to differentiate: name globs, parameters or modules in any mixture. By default those that require a
        gradient. Tied parameters count once, by any of their names.
    forward : callable, optional
        (model, batch) -> output. By default the model is called with the tensor, with as many entries of the tuple as its
        `forward` requires, or with the fields of the mapping without its labels.
    shared : list
        Keys or positions of a batch's entries that belong to no sample (weights, priors).
    statistics : str
        Batch norm with its running statistics, "population", or with those of each batch, "batch", as training sees them
        (refused for a model without batch norm). For wrt="params" alone.
    engine : str
        How products are computed. "double-backward": a second backward pass through the gradient's graph, which is recorded
        once. "fresh": forward-mode AD of a backward pass, for each product anew. "replay": a recorded program without what
        does not depend on the vector. "compiled": that program through `torch.compile`. "finite-difference": a central
        difference of gradients, never chosen by itself. "auto": see Notes.
    product_dtype : torch.dtype, optional
        Of the products; by default the model's. Vectors are in the model's, float32 at least. What a coarser one that is given
        costs in accuracy is measured on the first batch (nine products) and stored as `product_noise` in `describe()`.
    memory : int or str, optional
        What engines may keep between sweeps: bytes, "512MiB", "2GiB", 0 for nothing. By default a quarter of the free
        memory.
    chunk : int, optional
        Samples of a batch that are multiplied at a time, so that their activations fit. By default all of them, or as many as
        the free memory has room for (then in `describe()`). Refused where the samples of a batch meet.
    preflight : bool
        False leaves out the tests of the first batch: randomness, samples that meet, second derivatives against a
        difference of gradients, symmetry.

    Attributes
    ----------
    count : float
        N, over all ranks.

    Raises
    ------
    TypeError
        For data that cannot be read twice, a loss that is a class or no callable, and a model or dtype without real
        derivatives.
    ValueError
        For an empty data set or no counted target, NaN, outputs whose first axis is not the sample, and an unknown keyword
        value. From the tests of the first batch: a model that is random in eval mode, or in which samples meet, and outputs
        that carry no derivative. From a product: batches that are not those of the first sweep, and no engine that holds.

    Notes
    -----
    The mean is torch's own over the counted targets of the whole data set at once: sums over batches, one division at the
    end. How the data are cut into batches never matters, nor does a module's reduction; class weights, ignored targets and
    label smoothing count as in torch.

    With wrt="inputs" or "module:NAME" the variable is all samples' inputs or activations, d entries each: (n d, n d), ordered by
    sample, block diagonal where samples do not meet in the loss, the block of sample i being its own matrix over N. With
    layout="summed" it is one change d of all samples: the sum of these blocks, (d, d), as Jacobian's columns are.

    engine="auto" takes the first product as the answer, by "double-backward". It is held to a difference of gradients before it
    is used, and with the second to <u, H v> = <v, H u>; if it fails, "fresh" takes its place and is held to the same, with the
    reason in `describe()`. A program is recorded only where the products to come (estimators announce theirs) pay for it and
    `memory` holds it; it is held to the product that it was recorded from and to two more before it multiplies alone.
    "compiled" is tried only where a run is predicted to take more than ten minutes. See `spectral.engine.autotune`. Kinks,
    rounding and coarse dtypes may leave a difference of gradients without a verdict.

    engine="finite-difference" takes two gradients a product, and memory for no graph but theirs: for models without second
    derivatives, and the only one for parameters that lie over ranks (`fully_shard`). It moves the parameters by a relative
    eps^(1/3). Its relative error is measured before the first product against an exact one of the first batch (against a step
    twice as long where there is none, or it does not fit), and stands in `describe()` as "finite_difference". Where there
    is none, the gradient is held to a difference of losses: a stop-gradient's has no Hessian.

    Memory: the activations of a batch, as in training, and what `memory` allows between sweeps. In an initialised
    torch.distributed group, operators built alike on each rank from its own samples mean the whole.

    References
    ----------
    Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6.

    Examples
    --------
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> H = Hessian(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), [(x, y)])
    >>> H @ torch.ones(1)  # d2/dw2 of (w^2 + (2 w)^2) / 2
    tensor([5.])
    """

    ways: Collection[str] = linearize.EXACT
    turns = False  # the second way's product is never the faster one
    direct = False  # a leaf's gradient waits for its second part
    checkpoints = False  # a gradient that is differentiated keeps what was made again
    factor = 1.0  # of the steps of differences
    measured_by = "an exact product of the first batch"

    def _hold_engine(self, model: Any, engine: str) -> None:
        if engine != linearize.DIFFERENCE and sharded.lies_over_ranks(model):
            raise ValueError(
                f"engine={engine!r}: the Hessian of a model whose parameters lie over ranks has no exact products, since torch "
                "has no second derivatives through fully_shard; use engine='finite-difference', GaussNewton, or the model "
                "before it is sharded."
            )

    def _begin(self, network: Any, products: Products) -> None:
        self.ways = (linearize.DIFFERENCE,) if products.engine == linearize.DIFFERENCE else linearize.EXACT
        super()._begin(network, products)

    def _differentiated(self, batch: Any) -> Callable[..., torch.Tensor]:
        return self.network.total(batch)

    def _maps(self, kind: str, way: str, group: range, batch: Any) -> Maps:
        total = self._differentiated(batch)
        gradient = self.network.gradient(way, lambda *values: self.share * total(*values), batch)
        here: list[torch.Tensor] = []  # the sketch of the gradient at the point, where the latest product made it

        def product(v: torch.Tensor) -> trace.Pieces:
            tangents = self._tangents(v, self._samples(group))
            if isinstance(gradient, linearize.CentralDifference):
                return self._pieces(gradient.jvp(tangents, self.factor))
            here.clear()
            if self._earlier is not None and not self._earlier.there:
                self._earlier.product.clear()  # no product can be held to it
            # other vectors are not what the test goes along
            tested = self.under_test and way not in self._held and linearize.is_generic(v)
            gradient.see = (lambda g: here.append(longvectors.sketch(g))) if tested else None
            return self._pieces(gradient.jvp(tangents))

        def check(v: torch.Tensor, w: trace.Pieces) -> float:
            if way == linearize.DIFFERENCE:  # which is no derivative: `_know_noise` says how far it is off
                return 0.0
            # what fails a test is kept as it is: whoever asks again is told again
            earlier = self._earlier
            if earlier is not None and (earlier.way, earlier.model) == (way, self.network.version()):
                error = 0.0
                if earlier.there:
                    error = linearize.symmetry_error(earlier.v, earlier.product, v, w, self._allowed)
                    self._earlier = None
                else:
                    self._hold(way, v, w)  # the earlier vector is there no longer
                return error
            if way in self._held and earlier is None:
                return 0.0
            self._earlier = None
            error = self._second_derivative_error(way, batch, v, w, here[0] if here else None)
            if way == "fresh":  # hooks and transforms of forward are seen by one of its two modes: told at once
                u = probes.signs(0, len(v), dtype=v.dtype, device=v.device)
                error = max(error, linearize.symmetry_error(u, product(u), v, w, self._allowed))
            else:
                self._hold(way, v, w)
            self._held.add(way)
            return error

        kept = linearize.COPIES[way] * self._graph_bytes * self._samples(group) if way == "double-backward" else 0
        return Maps(product, check, int(kept), self._allowed, gradient)

    # By differences ---------------------------------------------------------------------------------------------------
    @property
    def _differs(self) -> bool:
        return self.options.engine == linearize.DIFFERENCE

    @property
    def epsilon(self) -> float:
        exact = super().epsilon
        return max(exact, exact ** (2 / 3) if self.noise is None else self.noise) if self._differs else exact

    def _know_noise(self) -> None:
        """Also before the first product by differences: ||(H' - H) v|| / ||H v|| on the first batch, v Gaussian.

        H v is an exact product. Where that has no derivative or does not fit, and where parameters lie over ranks, H' v with
        a step twice as long stands for it, whose truncation is four times as large.
        """
        if not self._differs or self.noise is not None:
            super()._know_noise()
            return
        with instead(self, noise=0.0):  # what is multiplied now measures none itself
            error = self._error()
        self.noise = error

    def _error(self) -> float:
        """Of a product by differences, relative."""
        mine, exact = self, None
        if self.shards is None:
            with distributed.together():
                batch = self.network.first_batch()
            mine = self._alone(batch, self.options.dtype)  # type: ignore[assignment]
            exact = self._alone(batch, None, engine="auto", preflight=True)
            mine.noise = 0.0
        v = mine.probe(1, 0)[:, None]
        w = mine.multiply(v)
        due = None if exact is None else mine._exactly(exact, v)
        if due is None:
            if exact is not None and self.options.preflight:
                with mine.network.sweep() as batches:
                    differences.hold_gradient(mine.network, next(iter(batches))[1], self._allowed)
            self.measured_by = "a step twice as long"
            with instead(mine, factor=2.0):
                due = mine.multiply(v)
        if mine is self:
            self.products -= 2  # none that anybody asked for
        scale = longvectors.norm(due[:, 0])
        return longvectors.norm((w - due)[:, 0]) / scale if scale > 0 else 0.0

    def _exactly(self, exact: SumOverBatches, v: torch.Tensor) -> torch.Tensor | None:
        """The exact product; None where it does not fit or cannot be made."""
        free = distributed.free_memory(arrays.available_memory(self.device), self.device)
        graph = linearize.COPIES["double-backward"] * max(self._graph_bytes, 0.0) * sum(self.network.info.samples)
        if not all(distributed.gather(lambda: graph <= free)):
            return None
        try:
            return exact.multiply(v)
        except FAILURES:
            return None

    def describe(self) -> dict[str, Any]:
        if not self._differs:
            return super().describe()
        by = "the first product to come" if self.noise is None else self.measured_by
        return {**super().describe(), "finite_difference": {"error": self.noise, "measured_by": by}}

    def _hold(self, way: str, v: torch.Tensor, w: trace.Pieces) -> None:
        """Keep a product for the next one's test, its vector in bits if it is one of signs, copied where others can write."""
        signs = all(bool((some.abs() == 1).all()) for some in v.split(linearize.PART))
        x = probes.Signs.of(v) if signs else v if v.untyped_storage().resizable() else v.clone()
        self._earlier = Earlier(way, self.network.version(), x, linearize.waiting(list(w)), _writes(x))

    def _forget(self) -> None:
        super()._forget()
        self._earlier = None

    def _second_derivative_error(
        self, way: str, batch: Any, v: torch.Tensor, w: trace.Pieces, here: torch.Tensor | None
    ) -> float:
        """How far a product is off from a difference of gradients; `here`: a sketch of the gradient, times `share`."""

        def made(p: differences.Probe) -> trace.Pieces:
            if p.trial and self.layout != "summed":
                return w
            return tuple(p.share * t for t in linearize.GRADIENTS[way](p.function, p.primals).jvp(p.tangents))

        size = self.network.samples.size(batch)
        trial = differences.Trial(self._tangents(v, size), self.share, here, self._inside, self._graph_bytes * size)
        return self._difference(
            way, differences.candidates(self.network, batch, differences.of_parameters, trial), made
        )


class GaussNewton(Curvature):
    """The Gauss-Newton matrix J^T H J / N, (P, P): the curvature of the mean loss through the linearised network.

    J is the Jacobian of the outputs z, H the Hessian of the summed loss with respect to z, N the number of counted targets.
    z are the logits for torch's loss modules, and all that the loss reads of the output for a callable. Positive
    semi-definite where the loss is convex in z, as torch's are.

    Cost: one product is one sweep over the data: J v, a product with H (of the outputs alone), J^T u. Building it takes a
    forward pass over the data, for sizes and counts.

    Parameters
    ----------
    model : torch.nn.Module
        Computed in eval mode, left as it was. Each sweep sees its weights as they are when it begins.
    loss : torch.nn.Module or callable, optional
        A torch loss module under any reduction; a callable (output, batch) that returns (sum, count), the mean over the
        samples, or one number for each; None for the model's own loss (Hugging Face, labels in the batch). A callable gets
        the output as the model gives it, and the whole batch.
    data : iterable of batches
        Read anew in each sweep, so that an iterator is refused. A batch is a tensor, a tuple such as (x, y), or a mapping
        (Hugging Face). Each sweep must give the same batches; the random state of a shuffling loader is replayed.
    wrt : str
        With respect to "params", to "inputs" (embeddings for token models), or to "module:NAME": the output of that module, one
        tensor (B, ...) of a module that is called once.
    layout : str
        Not for parameters: "block-diagonal", every sample's variable by itself, or "summed", one change for all samples.
    params : list, optional
        The parameters to differentiate: name globs, parameters or modules in any mixture. By default those that require a
        gradient. Tied parameters count once, by any of their names.
    forward : callable, optional
        (model, batch) -> output. By default the model is called with the tensor, with as many entries of the tuple as its
        `forward` requires, or with the fields of the mapping without its labels.
    shared : list
        Keys or positions of a batch's entries that belong to no sample (weights, priors).
    statistics : str
        Batch norm with its running statistics, "population", or with those of each batch, "batch", as training sees them
        (refused for a model without batch norm). For wrt="params" alone.
    engine : str
        How products are computed. "fresh": forward-mode AD for each product anew, J^T u by a backward pass.
        "double-backward": backward passes alone, through a graph that is recorded once. "replay": a recorded program
        without what does not depend on the vector. "compiled": that program through `torch.compile`. "auto": see Notes.
    product_dtype : torch.dtype, optional
        Of the products; by default the model's. Vectors are in the model's, float32 at least. What a coarser one that is given
        costs in accuracy is measured on the first batch (nine products) and stored as `product_noise` in `describe()`.
    memory : int or str, optional
        What engines may keep between sweeps: bytes, "512MiB", "2GiB", 0 for nothing. By default a quarter of the free
        memory.
    chunk : int, optional
        Samples of a batch that are multiplied at a time, so that their activations fit. By default all of them, or as many as
        the free memory has room for (then in `describe()`). Refused where the samples of a batch meet.
    preflight : bool
        False leaves out the tests of the first batch: randomness, samples that meet, a callable loss that reads parameters,
        the adjoint identity, the loss's second derivative against a difference of its gradients.

    Attributes
    ----------
    count : float
        N, over all ranks.

    Raises
    ------
    TypeError
        For data that cannot be read twice, a loss that is a class or no callable, and a model or dtype without real
        derivatives.
    ValueError
        For an empty data set or no counted target, NaN, outputs whose first axis is not the sample, and an unknown keyword
        value. From the tests of the first batch: a model that is random in eval mode, or in which samples meet, and outputs
        that carry no derivative. From a product: batches that are not those of the first sweep, and no engine that holds.
        Also for a loss that reads parameters beside the outputs, whose terms would be left out, or numbers that the model
        has reduced already.

    Notes
    -----
    The mean is torch's own over the counted targets of the whole data set at once: sums over batches, one division at the
    end. How the data are cut into batches never matters, nor does a module's reduction; class weights, ignored targets and
    label smoothing count as in torch.

    With wrt="inputs" or "module:NAME" the variable is all samples' inputs or activations, d entries each: (n d, n d), ordered by
    sample, block diagonal where samples do not meet in the loss, the block of sample i being its own matrix over N. With
    layout="summed" it is one change d of all samples: the sum of these blocks, (d, d), as Jacobian's columns are. A head's
    logits are then made whole.

    engine="auto" takes the first product as the answer and holds the first ones to <J v, u> = <v, J^T u>, to rounding; a way
    that fails gives place to the other, with the reason in `describe()`. A program is recorded only where the products to come
    (estimators announce theirs) pay for it and `memory` holds it; it is held to the product that it was recorded from and to
    two more before it multiplies alone. Where none can be recorded and more than ten products are to come, the other way takes
    a turn, and the faster one goes on. "compiled" is tried only where a run is predicted to take more than ten minutes. See
    `spectral.engine.autotune`. The loss's second derivative is held to a difference of its gradients.

    Memory: the activations of a batch, as in training, and what `memory` allows between sweeps. Cross entropy's H is known,
    and needs beside the logits and J v its result alone; other losses keep the graph of their gradient. Where a wide linear
    layer gives the logits (a language model's head, tied or not: on every batch its one call's result, unchanged), they are
    never made: a product holds three chunks, each a sixteenth of them or a quarter of the layer's weight, and probabilities
    where `memory` keeps them, 1.2 logits tensors in all; `describe()` names the layer as "head_in_chunks". The preflight
    holds the logits' derivative on the first batch to that of the layer; the first sweep and the tests run the model as it
    is, logits and all. Other models hold the logits, their tangent in three parts and H J v. In an initialised torch.distributed
    group, operators built alike on each rank from its own samples mean the whole.

    References
    ----------
    - Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent, Neural Computation 14.
    - Martens (2020), New insights and perspectives on the natural gradient method, JMLR 21.

    Examples
    --------
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> GaussNewton(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), [(x, y)]) @ torch.ones(1)
    tensor([5.])
    """

    draws: int | None = None  # labels that are drawn for each target

    @property
    def semidefinite(self) -> bool:  # type: ignore[override]  # a constant of other matrices
        return self.loss is None or type(self.loss) in outputs.CONVEX  # a subclass may be anything

    def describe(self) -> dict[str, Any]:
        singles = {} if self.singles is None else self.singles.describe()
        return {**super().describe(), **({"head_in_chunks": self.network.head} if self.chunked else {}), **singles}

    def _inspect(self, recorded: Any = None, below: Sequence[torch.Tensor] = ()) -> None:
        first = self.network.first
        if self.loss is None:
            losses.check_classes(self.network.loss.shift)
        with self.network.opened():  # once for all
            if self.chunked and self.options.preflight:
                recorded, below, seen = self.network.cut_at_head(first.batch)
                super()._inspect(recorded, below)
                self._hold_head(seen)
            else:
                super()._inspect()
            checks.check_loss_of_outputs(self.network, first, type(self).__name__)

    @property
    def chunked(self) -> bool:
        """Whether the head's logits are multiplied a chunk of tokens at a time, and never made whole."""
        return self.network.head is not None

    def _hold_head(self, seen: Sequence[Any]) -> None:
        """The logits' derivative is that of the head alone, on the first batch; else the head is not taken."""
        network = self.network
        with torch.enable_grad():
            gap, scale = network.head_pullback(*seen)
        if not gap <= self._allowed * scale:
            network.head = None
            network.untested["the head in chunks"] = f"its derivative is off by {gap / scale:.1e}"

    def _head_curvature(self, seen: Sequence[Any], batch: Any, keeps: bool) -> Callable[..., Sequence[torch.Tensor]]:
        """(dh, dW, db), the latter if they vary -> the loss's curvature with respect to these, times `share`."""
        h, weight = (t.detach() for t in seen[:2])
        bias = None if seen[2] is None else seen[2].detach()
        product = HeadCurvature(h, weight, bias, self.share * self._target_mass(batch, h), keeps)
        varies = [i is not None for i in self.network.of_head()]

        def curved(dh: torch.Tensor, *own: torch.Tensor) -> Sequence[torch.Tensor]:
            rest = iter(own)
            return [t for t in product(dh, *(next(rest) if v else None for v in varies)) if t is not None]

        return curved

    def _target_mass(self, batch: Any, like: torch.Tensor) -> torch.Tensor:
        """What stands before diag(p) - p p^T in the curvature of each target."""
        return self.network.loss.class_mass(batch, like)

    def _maps(self, kind: str, way: str, group: range, batch: Any) -> Maps:
        network, seen = self.network, list[Any]()  # what the curvature is taken at needs no forward pass of its own
        kept = int(linearize.COPIES[way] * self._graph_bytes * self._samples(group))
        logits = network.samples.size(batch) * network.info.outputs[group.start] * network.compute_dtype.itemsize
        keeps = self.chunked and self.store.room(kept + logits, self.device)
        latest, curves = list[Sequence[torch.Tensor]](), list[Callable[..., Sequence[torch.Tensor]]]()
        # the parameters of a head that is multiplied in chunks are outputs of the linearised function, beside what it reads
        own = [i for i in network.of_head() if i is not None] if self.chunked else []

        def whole(output: Any, there: Any) -> torch.Tensor:
            seen[:] = [output]
            return network.select(output, there)

        function = network.before_head(batch, seen) if self.chunked else network.function(batch, whole)
        lin = network.linearised(way, function, batch)

        def curvature() -> Callable[..., Sequence[torch.Tensor]]:
            _ = lin.output  # plain tensors, where forward-mode AD left its own
            if self.chunked:
                return self._head_curvature(seen, batch, keeps)
            product = self._output_curvature(seen.pop(), batch, self.starts[group.start])
            return lambda jv: (product(jv),)

        def there(v: Any) -> trace.Pieces:
            tangents = self._tangents(v, self._samples(group))
            return (lin.jvp(tangents), *(tangents[i] for i in own))

        def back(u: torch.Tensor) -> trace.Pieces:
            jv = latest[0][0]
            return pulled([u.to(jv.dtype).view_as(jv)])

        def pulled(u: Sequence[torch.Tensor]) -> trace.Pieces:
            pieces = list(lin.vjp(u[0]))
            for i, g in zip(own, u[1:], strict=False):  # none where u is of what the head reads alone
                # in place, unless that is a constant of a program, or u itself
                ours = not trace.recording() and pieces[i].is_contiguous() and pieces[i].data_ptr() != u[0].data_ptr()
                pieces[i] = pieces[i].add_(g) if ours else g + pieces[i]
            return self._pieces(tuple(pieces))

        def product(v: torch.Tensor) -> trace.Pieces:
            tangents = self._tangents(v, self._samples(group))
            jv = (lin.jvp(tangents, graph=True), *(tangents[i] for i in own))
            if not curves:
                curves.append(curvature())
            u = curves[0](*jv)
            latest[:] = [jv, u] if self.under_test else []
            del jv
            return pulled(u)

        def check(v: torch.Tensor, w: trace.Pieces) -> float:
            jv, u = (tuple(t.reshape(-1) for t in some) for some in latest)
            error = 0.0 if way in self._held else self._curvature_error(batch)
            self._held.add(way)
            test = self._adjoint_test(back, v, len(jv[0]))  # a head's parameters are outputs as they are
            latest.clear()
            return max(error, test.of_both(v, jv, u, w, there))

        return Maps(product, check, kept + keeps * logits, self._allowed, lin)

    def _output_curvature(self, output: Any, batch: Any, first: int) -> Product:
        """U (B, k) -> H U, times `share`."""
        if self.network.loss.is_cross_entropy:
            (z,) = (head.detach() for head in self.network.heads(output))
            return outputs.cross_entropy_hessian(self.network.loss, z, batch, self.share)
        return outputs.loss_hessian(self.network, output, batch, self.share)

    # Sample by sample -------------------------------------------------------------------------------------------------
    @property
    def separate(self) -> bool:
        """Whether the matrix is a sum over single samples."""
        network = self.network
        couples = network.loss.couples or network.loss.form == "whole"
        return network.shards is None and network.statistics == "population" and not couples

    def single_samples(self, *, whole: bool = False) -> torch.Tensor:
        """The diagonal from the gradients of single samples, or the whole matrix, of one that is `separate`.

        Cost: one sweep; a backward pass for each term of a sample's output curvature: C for a cross entropy of C classes (for
        each counted target), one for each output of other losses, one for the empirical Fisher. And a product: z^T A z of
        random signs z must come out as it does by single samples.

        Parameters
        ----------
        whole : bool
            (P, P) instead of (P,); with respect to parameters alone.

        Returns
        -------
        torch.Tensor
            float64, over all ranks.

        Raises
        ------
        ValueError
            Where the loss reads outputs that belong to no sample, for samples that meet in the model, for NaN, and for
            whole=True with respect to anything but parameters.

        Examples
        --------
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
        >>> GaussNewton(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), [(x, y)]).single_samples()
        tensor([5.], dtype=torch.float64)
        """
        network, form, z = self.network, 0.0, self.probe(0, 0, "rademacher")
        if whole and network.wrt != "params":
            raise ValueError(f"whole=True is for wrt='params', got {network.wrt!r}; multiply by the identity.")
        signs = arrays.double(z)
        total = arrays.double_zeros(self.shape if whole else self.shape[:1], self.device)
        with distributed.Summand(total) as part, network.sweep() as batches:
            for index, batch in batches:
                terms = self._terms(network.output(batch), batch, self.starts[index])
                if network.wrt == "params":
                    self.singles = self.singles or per_sample.chosen(network, batch, terms)
                    form += self.singles.add(batch, terms, total, signs)
                    continue
                own = self.entries(range(index, index + 1))
                (of_batch,) = self._tangents(z[own], size := network.info.samples[index])
                along = arrays.double(of_batch).reshape(size, -1)
                added = torch.zeros_like(along)
                for w, (pulled,) in per_sample.Gradients(network).rows(batch, terms):
                    g = arrays.double(pulled)
                    added += w[:, None] * g.square()
                    form += float(w @ (g * along).sum(1).square())
                total[own] += (added.sum(0) if self.layout == "summed" else added).reshape(-1)
        made = self._finite(part, part.sum(), "of single samples")
        if self.coarse:
            made, form = made.div_(self.count), form / self.count
        w = self @ z
        parts, rounding = zip(*distributed.gather(lambda: (form, self._allowed)), strict=True)
        form, due = sum(parts), longvectors.dot(z, w)
        if not abs(form - due) <= max(*rounding, self.product_error) * max(abs(due), longvectors.norm(w)):
            raise ValueError(
                f"z^T A z of random signs z is {form:.6g} by single samples and {due:.6g} by a product: the samples of a batch "
                "meet in the model, so that only products are defined."
            )
        return made

    def _terms(self, output: Any, batch: Any, first: int) -> outputs.Terms:
        """The curvature of a batch's outputs, times `share`, as sums of squares."""
        loss, z = self.network.loss, self.network.select(output, batch).detach()
        if len(z) != self.network.samples.size(batch):
            raise ValueError(
                "the loss reads outputs that have no row for each sample, so that the diagonal is no sum over samples; use "
                "diagonal(A, method='xdiag'), or probes=n for products with unit vectors."
            )
        if loss.is_cross_entropy and self.draws is None:
            (logits,) = (head.detach() for head in self.network.heads(output))
            return outputs.softmax_terms(logits, loss.class_axis(logits), self.share * self._target_mass(batch, logits))
        product = self._output_curvature(output, batch, first)
        return (outputs.diagonal_terms if type(loss.given) in outputs.ENTRYWISE else outputs.spectral_terms)(product, z)

    def _curvature_error(self, batch: Any) -> float:
        """How far the loss's own second derivative is off from a difference of its gradients."""
        if self.network.loss.is_cross_entropy:
            return 0.0  # in closed form
        places = differences.candidates(self.network, batch, outputs.loss_of_heads)
        return self._difference("the loss's second derivative", places, differences.double_backward)
