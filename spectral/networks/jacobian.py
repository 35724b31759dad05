"""`Jacobian`: of a network's outputs with respect to its parameters, its inputs or a module's output.

Legend: n samples, B in a batch, k outputs per sample, d input features, P parameters; J_i (k, P) or (k, d) of sample i.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import nn

from spectral import arrays, distributed, probes
from spectral.engine import linearize, trace
from spectral.engine.plain import Maps
from spectral.networks import per_sample
from spectral.networks.batches import DatasetInfo
from spectral.networks.data_model import DataModel
from spectral.networks.diagnose import checks
from spectral.networks.diagnose.graph import graph_facts
from spectral.networks.output_curvature import Terms, diagonal_terms
from spectral.networks.products import Products
from spectral.networks.sum_over_batches import SumOverBatches
from spectral.pieces import Shards, local
from spectral.schema import SWITCH, choice


class Jacobian(SumOverBatches):
    """The Jacobian J of a network over a data set, never formed.

    J_i = d z_i / d theta, z_i (k,) the outputs of sample i and theta the parameters, the inputs, or a module's output (d
    entries a sample). Rows are ordered by sample, then output: (n k, P) or (n k, d). With layout="flattened", row i is J_i
    flattened: (n, k d).

    Cost: one product is one JVP sweep over the data, one transposed product one VJP sweep (flattened: k of each). J^T J v
    takes both in one sweep. Building it takes a forward pass over the data, for sizes.

    Parameters
    ----------
    model : torch.nn.Module
        Computed in eval mode, left as it was. Each sweep sees its weights as they are when it begins.
    data : iterable of batches
        Read anew in each sweep, so that an iterator is refused. A batch is a tensor, a tuple such as (x, y), or a mapping
        (Hugging Face). Each sweep must give the same batches; the random state of a shuffling loader is replayed.
    of : str or callable
        What is differentiated: "logits", "probs", "loss" (each sample's own mean loss), or a callable (output, batch) ->
        (B, k). Outputs are flattened per sample to (B, k).
    wrt : str
        With respect to "params", to "inputs" (embeddings for token models), or to "module:NAME": the output of that module, one
        tensor (B, ...) of a module that is called once.
    layout : str
        "stacked", or, not with respect to parameters, "flattened".
    forward : callable, optional
        (model, batch) -> output. By default the model is called with the tensor, with as many entries of the tuple as its
        `forward` requires, or with the fields of the mapping without its labels.
    loss : torch.nn.Module or callable, optional
        For of="loss": as for `Hessian`; None is the model's own loss.
    params : list, optional
        The parameters to differentiate: name globs, parameters or modules in any mixture. By default those that require a
        gradient. Tied parameters count once, by any of their names.
    shared : list
        Keys or positions of a batch's entries that belong to no sample (weights, priors).
    statistics : str
        Batch norm with its running statistics, "population", or with those of each batch, "batch", as training sees them
        (refused for a model without batch norm). For wrt="params" alone. Refused also with of="loss" and for rows of single
        samples, which it couples.
    engine : str
        How products are computed. "fresh": forward-mode AD for each product anew, J^T u by a backward pass.
        "double-backward": backward passes alone, through a graph that is recorded once. "replay": a recorded program
        without what does not depend on the vector. "compiled": that program through `torch.compile`. "auto" takes the first
        product as the answer and holds it to <J v, u> = <v, J^T u>; see Notes.
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
        False leaves out the tests of the first batch: randomness, samples that meet, the adjoint identity.

    Attributes
    ----------
    samples : int
        n, over all ranks.
    outputs : int
        k of the first batch.

    Raises
    ------
    TypeError
        For data that cannot be read twice, and for a model, an output or a dtype without real derivatives.
    ValueError
        For an empty data set, NaN, outputs whose first axis is not the sample, and an unknown keyword value. From the tests
        of the first batch: a model that is random in eval mode, or in which samples meet, and outputs that carry no
        derivative. From a product: batches that are not those of the first sweep, and no engine that holds.

    Notes
    -----
    engine="auto": the first products of each kind are held to the adjoint identity, to rounding; a way that fails gives
    place to the other, with the reason in `describe()`. A program is recorded only where the products to come (estimators
    announce theirs) pay for it and `memory` holds it; it is held to the product that it was recorded from and to two more
    before it multiplies alone. Where none can be recorded and more than ten products are to come, the other way takes a turn,
    and the faster one goes on. "compiled" is tried only where a run is predicted to take more than ten minutes. `describe()` says
    which engine multiplies, why, and its seconds on the first batch. See `spectral.engine.autotune`. Where
    torch differentiates a model once and no further, J v is made of "rows": a backward pass for each of a batch's outputs,
    at most 1,024.

    Memory: the activations of a batch, as in training, and what `memory` allows between sweeps. Small batches are joined
    where that gives the same.

    In an initialised torch.distributed group, operators built alike on each rank from its own samples mean the whole.

    References
    ----------
    - Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6.
    - Griewank, Walther (2008), Evaluating Derivatives, SIAM.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> J = spectral.Jacobian(torch.nn.Linear(2, 1, bias=False), [x])
    >>> torch.equal(J @ torch.eye(2), x)     # a linear model's Jacobian is its data
    True
    """

    self_map = False

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        of: str | Callable[[Any, Any], torch.Tensor] = "logits",
        wrt: str = "params",
        layout: str = "stacked",
        forward: Callable[[nn.Module, Any], Any] | None = None,
        loss: Any = None,
        params: Any = None,
        shared: Sequence[Any] = (),
        statistics: str = "population",
        engine: str = "auto",
        product_dtype: torch.dtype | None = None,
        memory: Any = None,
        preflight: bool = True,
        chunk: int | None = None,
    ) -> None:
        choice(layout, "layout", ("stacked", "flattened"))
        if layout == "flattened" and wrt == "params":
            raise ValueError(
                "layout='flattened' is for wrt='inputs' and 'module:NAME'; use layout='stacked' with wrt='params'."
            )
        self.layout = layout
        self._build(
            DataModel, model, data, Products(engine, product_dtype, memory, preflight, chunk), of=of, wrt=wrt, forward=forward,
            loss=loss, params=params, shared=shared, statistics=statistics,
        )  # fmt: skip

    @classmethod
    def over(cls, network: DataModel, products: Products) -> Jacobian:
        """That of a network which has been surveyed, with respect to its parameters: without a sweep of its own.

        Parameters
        ----------
        network : DataModel
            Of another operator, `A.network`; its sweeps are counted anew.
        products : Products
            That operator's `options`.

        Returns
        -------
        Jacobian
            Of all that the network selects of its outputs: for one with a loss, what that reads.

        Examples
        --------
        >>> G = spectral.GaussNewton(torch.nn.Linear(2, 3), torch.nn.MSELoss(), [(torch.ones(4, 2), torch.ones(4, 3))])
        >>> Jacobian.over(G.network, G.options).shape
        (12, 9)
        """
        J = cls.__new__(cls)
        J.layout = "stacked"
        J._begin(network.restricted(network.names), products)
        return J

    def _begin(self, network: DataModel, products: Products) -> None:
        layout = self.layout
        survey = checks.surveyed(network)
        widths = [k for part in survey.parts for k in part.outputs]
        self.outputs = widths[0]
        self.unrolled = self.outputs if layout == "flattened" else 1
        if layout == "flattened" and len(set(widths)) > 1:
            raise ValueError(f"layout='flattened' needs one number of outputs per sample, got {sorted(set(widths))}.")
        self.rank_rows = [sum(self.batch_rows(part)) for part in survey.parts]
        self.rank_samples = [part.n for part in survey.parts]
        rows = self.batch_rows(survey)
        first = sum(self.rank_rows[: distributed.rank()])
        self.starts = list(itertools.accumulate(rows, initial=first))
        self.repeats = (self.outputs,) if layout == "flattened" else ()
        super().__init__((sum(self.rank_rows), network.entries(self.repeats)), network, products, tuple(linearize.WAYS))
        self.singles: per_sample.Gradients | None = None  # how rows are made, once asked for

    def batch_rows(self, part: DatasetInfo) -> list[int]:
        """The rows of each batch of a rank.

        Parameters
        ----------
        part : DatasetInfo
            What the first sweep told of that rank's batches.

        Returns
        -------
        list of int
            Rows a batch: its samples, times the outputs of each where they are stacked.

        Examples
        --------
        >>> J = spectral.Jacobian(torch.nn.Linear(2, 4), [torch.ones(3, 2)])
        >>> J.batch_rows(J.network.info.parts[0])
        [12]
        """
        return [B if self.layout == "flattened" else B * k for B, k in zip(part.samples, part.outputs, strict=True)]

    @property
    def samples(self) -> int:
        """n, over all ranks."""
        return sum(self.rank_samples)

    def _shards(self, side: str) -> Shards | None:
        return None if side == "left" else super()._shards(side)

    def _names(self, side: str) -> dict[str, tuple[int, ...]] | None:
        return None if side == "left" else super()._names(side)

    def _what(self) -> dict[str, Any]:
        return {**super()._what(), "layout": self.layout}

    def describe(self) -> dict[str, Any]:
        if self.singles is None:
            return super().describe()
        why = self.singles.reason
        return {**super().describe(), **({"rows": "one by one", "rows_reason": why} if why else {"rows": "vmap"})}

    # One batch -------------------------------------------------------------------------------------------------------
    def _maps(self, kind: str, way: str, group: range, batch: Any) -> Maps:
        function = self.network.function(batch)
        size, latest = self._samples(group), list[torch.Tensor]()
        lin = self.network.linearised(way, function, batch)

        def there(v: Any) -> trace.Pieces:
            v = v if self.network.wrt == "params" else v[:].to(self.dtype)
            return (self._forward(lin, v, size, graph=True),)

        def back(u: torch.Tensor) -> trace.Pieces:
            return self._backward(lin, u, size)

        def forward(v: torch.Tensor) -> trace.Pieces:
            return (self._forward(lin, v, size),)

        def normal(v: torch.Tensor) -> trace.Pieces:
            latest[:] = there(v)
            return back(latest[0])

        def check(v: torch.Tensor, w: trace.Pieces) -> float:
            rows = self.starts[group.stop] - self.starts[group.start]
            like = v if kind != "J^T u" else v.new_empty(1).expand(self.shape[1])
            test = self._adjoint_test(back, like, rows)
            if kind == "J v":
                return test.of_forward(v, w, there)
            if kind == "J^T u":
                return test.of_transpose(v, w, there)
            Jv = (latest.pop(),)
            return test.of_both(v, Jv, Jv, w, there)

        product = {"J v": forward, "J^T u": back, "J^T J v": normal}[kind]
        return Maps(product, check, int(linearize.COPIES[way] * self._graph_bytes * size), self._allowed, lin)

    def _forward(self, lin: linearize.ForwardMode, v: torch.Tensor, size: int, graph: bool = False) -> torch.Tensor:
        """J_b v of one batch: its rows; `graph` says that J_b^T u comes next."""
        if self.layout == "stacked":
            return lin.jvp(self._tangents(v, size), graph=graph).reshape(-1)
        per_output = v.view(self.outputs, -1)
        return sum(  # type: ignore[return-value]
            lin.jvp(self._tangents(v_c, size))[:, c] for c, v_c in enumerate(per_output)
        )

    def _pull(self, lin: linearize.ForwardMode, cotangent: torch.Tensor) -> trace.Pieces:
        """The VJP of one batch, summed over its samples: gradients of the parameters, or one (d,)."""
        pulled = lin.vjp(cotangent)
        if self.network.wrt != "params":
            pulled = (pulled[0].sum(0, dtype=self.dtype),)
        return pulled

    def _backward(self, lin: linearize.ForwardMode, u: torch.Tensor, size: int) -> trace.Pieces:
        """J_b^T u of one batch, u its rows."""
        u = u.to(self.network.compute_dtype)
        if self.layout == "stacked":
            return self._pull(lin, u.view(size, -1))
        units = torch.eye(self.outputs, dtype=u.dtype, device=u.device)
        return tuple(piece for e in units for piece in self._pull(lin, u[:, None] * e))

    # Sweeps ----------------------------------------------------------------------------------------------------------
    def _rows_of(self, group: range) -> slice:
        """The rows of these batches among this rank's."""
        return slice(self.starts[group.start] - self.starts[0], self.starts[group.stop] - self.starts[0])

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        self._ready()
        V_bn = arrays.rows(local(V))
        shape = len(V_bn), self.rank_rows[distributed.rank()]
        held = self.network.kept_checksum if self.shards is None else None
        with distributed.Summand.of(V_bn, shape, held) as part, closing(self._batches()) as batches:
            for group, batch in batches:
                self._multiply("J v", group, batch, V_bn, part.tensor[:, self._rows_of(group)], new=True)
        part.tensor = part.tensor.T
        return self._finite(part, part.rows(self.rank_rows), "J v")

    def _apply_transpose(self, U: torch.Tensor) -> torch.Tensor:
        self._ready()
        U_bm = arrays.rows(U[self.starts[0] : self.starts[-1]])
        with self._sums((len(U_bm), self._entries), U.T) as part, closing(self._batches()) as batches:
            for group, batch in batches:
                self._multiply("J^T u", group, batch, U_bm[:, self._rows_of(group)], part.tensor, new=group.start == 0)
        return self._piece(self._total(part, "J^T u").T)

    def _normal(self, V: torch.Tensor) -> torch.Tensor:
        """J^T J V in one sweep."""
        return self._swept("J^T J v", V, "J^T J v")

    # Rows ------------------------------------------------------------------------------------------------------------
    def rows(self, first: int = 0) -> Generator[tuple[slice, torch.Tensor], None, None]:
        """(rows, block) of the dense J, batch by batch from batch `first` on, of this rank's samples only.

        Cost: one sweep, k VJPs per sample. Memory: one batch's block, rows x columns entries. With respect to parameters
        the per-sample VJPs are vectorised, 256 MiB of rows at a time, and checked on the first batch against one ordinary
        VJP.

        Parameters
        ----------
        first : int
            The batch to begin with; those before are read and left out.

        Returns
        -------
        generator of (slice, torch.Tensor)
            Which rows, and their entries (rows, columns) in the operator's dtype.

        Raises
        ------
        ValueError
            With statistics="batch", for samples that meet in the model, and for NaN.

        Notes
        -----
        Where vmap fails or gives something else, the rows are made sample by sample; `describe()` says so under `rows`.

        Examples
        --------
        >>> data = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])]
        >>> J = spectral.Jacobian(torch.nn.Linear(2, 1, bias=False), data)
        >>> [(where.start, block.tolist()) for where, block in J.rows()]
        [(0, [[1.0, 2.0]]), (1, [[3.0, 4.0]])]
        """
        self._check_separate()
        with self.network.sweep() as batches:
            for index, batch in batches:
                if index < first:
                    continue
                how, units = self._gradients(index, batch)
                parts = [g for _, g in how.rows(batch, units)]
                if self.network.wrt == "params":
                    block = torch.cat([torch.cat(gradients, 1) for gradients in parts])
                else:
                    block = torch.stack([g for (g,) in parts], 1)  # (B, k, d)
                if index == 0:
                    self._check_rows(batch, block)
                where = slice(self.starts[index], self.starts[index + 1])
                block = block.reshape(where.stop - where.start, self.shape[1]).to(self.dtype)
                if not arrays.all_finite(block):
                    raise self._not_finite("e_i^T J", self._nonfinite())
                yield where, block

    def _check_separate(self) -> None:
        if self.network.shards is not None:
            raise ValueError(
                "the parameters lie over ranks, which run the model together, so that rows of single samples are not made; "
                "use products (slq, trace, top)."
            )
        if self.network.statistics == "batch":
            raise ValueError(
                "statistics='batch' couples the samples of a batch, so that rows of single samples are not defined; use "
                "statistics='population', or products (slq, trace)."
            )

    def _check_rows(self, batch: Any, block: torch.Tensor) -> None:
        """A random combination of the rows is one ordinary VJP of the batch, unless the samples meet in the model."""
        lin = linearize.ForwardMode(self.network.function(batch), self.network.primals(batch))
        u = probes.probe(0, 0, lin.output.numel(), dtype=lin.output.dtype, device=self.device)
        expected = trace.flat(self._pull(lin, u.view_as(lin.output))).to(block.dtype)
        error = block.reshape(len(u), -1).T @ u.to(block.dtype) - expected
        inside = max((graph_facts(lin.function, lin.primals).dtype, self.dtype), key=arrays.machine_epsilon)
        if error.norm() > arrays.discrepancy(inside) * expected.norm():
            raise ValueError(
                "the rows of single samples are not those of the batch: the samples of a batch meet in the model; only products "
                "are defined then (slq, trace), and they depend on the batches."
            )

    def _gradients(self, index: int, batch: Any) -> tuple[per_sample.Gradients, Terms]:
        """(how gradients of single samples are made: by vmap where that holds on two samples; a unit vector for each output)."""
        if self.facts is None:
            self._measure(batch)
        sizes, kind = self.network.info, self.facts.value.dtype  # type: ignore[union-attr]
        z = torch.empty(sizes.samples[index], sizes.outputs[index], dtype=kind, device=self.device)
        units = diagonal_terms(torch.ones_like, z)
        if self.network.wrt != "params":
            return per_sample.Gradients(self.network), units
        self.singles = self.singles or per_sample.chosen(self.network, batch, units)
        return self.singles, units

    def squared_norms(self, exact: bool = True, seed: int = 0) -> torch.Tensor:
        """||J_i||_F^2 of each sample, the diagonal of the flattened Gram, whatever the layout.

        Cost: one sweep; k VJPs per sample if exact, else one.

        Parameters
        ----------
        exact : bool
            False takes one VJP per sample with random signs s, ||J_i^T s||^2, which is unbiased; its relative standard
            deviation is at most sqrt(2).
        seed : int
            Of the signs: those of sample i depend on (seed, i) alone.

        Returns
        -------
        torch.Tensor
            (n,), float64, over all ranks.

        Raises
        ------
        ValueError
            With statistics="batch", which couples samples, and as `rows`.

        Examples
        --------
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> J = spectral.Jacobian(torch.nn.Linear(2, 1, bias=False), [x])
        >>> J.squared_norms()
        tensor([25.,  1.], dtype=torch.float64)
        """
        choice(exact, "exact", SWITCH)
        self._check_separate()
        norms = arrays.double_zeros((self.rank_samples[distributed.rank()],), self.device)
        start, first = 0, sum(self.rank_samples[: distributed.rank()])
        with distributed.Summand(norms) as part, closing(self._norms(exact, first, seed)) as batches:
            for own in batches:
                norms[start : start + len(own)] = own
                start += len(own)
        whole = part.rows(self.rank_samples)
        if self.ranks > 1 and not arrays.all_finite(whole):
            part.share()
        return whole

    def _norms(self, exact: bool, first: int, seed: int) -> Generator[torch.Tensor, None, None]:
        """Those of this rank's samples, batch by batch; its first one is sample `first` of all."""
        if exact:
            with closing(self.rows()) as blocks:
                for (_, block), size in zip(blocks, self.network.info.samples, strict=True):
                    yield arrays.double(block).reshape(size, -1).square().sum(1)
            return
        with self.network.sweep() as batches:
            for index, batch in batches:
                yield self._probed_norms(index, batch, first, seed)
                first += self.network.info.samples[index]

    def _probed_norms(self, index: int, batch: Any, first: int, seed: int) -> torch.Tensor:
        how, units = self._gradients(index, batch)
        size, k = units.weights.shape
        signs = torch.stack([probes.probe(seed, first + i, k, kind="rademacher") for i in range(size)])
        signs = signs.to(self.device, self.network.compute_dtype)
        along = Terms(units.weights[:, :1], lambda which, samples: signs[samples, None])
        rows = [sum(arrays.double(g).square().sum(1) for g in parts) for _, parts in how.rows(batch, along)]
        return torch.cat(rows)  # type: ignore[arg-type]
