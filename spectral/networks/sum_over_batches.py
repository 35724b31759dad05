"""What `Jacobian` and the curvature matrices share: linear maps of batches, multiplied by the engine.

Legend: n columns, m rows, b vectors of a block; blocks are (b, n) inside, one vector a row.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from spectral import arrays, distributed, longvectors, persist, pieces, probes
from spectral.engine import linearize
from spectral.engine.autotune import FAILURES, AutoEngine
from spectral.engine.plain import Engine, Maps, PlainEngine, Workload
from spectral.engine.store import KEEP, Store
from spectral.engine.trace import Pieces
from spectral.failures import REFUSALS, first_line
from spectral.networks import checkpointing, sharded, survey
from spectral.networks.data_model import DataModel
from spectral.networks.diagnose import checks, differences
from spectral.networks.diagnose import derivatives as faults
from spectral.networks.diagnose.graph import GraphFacts, graph_facts
from spectral.networks.products import Products, budget_bytes
from spectral.networks.trees import tensors
from spectral.operators.operator import Operator
from spectral.threads import Weakly

NOISE_PROBES = 3
ROOM = 8.0  # times the noise that was measured
JOIN = (
    12  # parameter sizes: the largest graph of joined batches; beyond, the parameters are a small part of the traffic
)
# of a description, what every rank must have built alike
BUILT = ("operator", "model", "of", "loss", "wrt", "statistics", "layout", "draws", "seed")
JOIN_MEMORY = 1 / 16  # of what may be kept, that such a graph may take: a product makes up to four
RECORDED = 2  # graphs that recording holds for each pass of a product (J v, J^T u: one), before equal constants are one
GRAPHS = 4  # of a batch, that a product makes: a dual forward pass, the graph, a backward pass through it
VECTORS = 5  # of a recurrence without a basis, beside which a batch's graphs must fit
SYMMETRIC = ("J^T J v", "H v")
PASSES = {"J v": 1, "J^T u": 1, "J^T J v": 2, "H v": 2}


class SumOverBatches(Operator):
    """An operator whose products are made of the linear maps of its batches."""

    network: DataModel
    new_products = True
    checkpoints = True  # whether a smaller graph of J^T u bounds the memory of products
    direct = True  # whether pieces of a product go where it lies as they come, and never all lie beside it
    turns = True  # whether the second way of differentiation may be faster where the first holds
    repeats: tuple[int, ...] = ()  # how often a vector has entries for the variable, if that is not the parameters
    _own = False  # whether a vector has entries of its own for each sample
    unrolled = 1  # passes of one kind that a product is made of: of a flattened Jacobian as many as outputs

    def __init__(
        self, shape: tuple[int, int], network: DataModel, products: Products, ways: tuple[str, ...], **properties: Any
    ) -> None:
        if network.made_again is not None:
            products = replace(products, memory=0)  # a program holds all of a graph
        super().__init__(shape, network.dtype, network.device, **properties)
        self.network, self.options = network, products
        self.facts: GraphFacts | None = None  # of the first batch, once its graph was made
        self.engine: Engine = PlainEngine(ways[0])  # of a sharded model: one way, and nothing to choose or to keep
        if network.shards is None:
            store = Store(budget_bytes(products.memory))
            self.engine = AutoEngine(
                products.engine, ways, products.preflight, Weakly(self._explain), self.turns, store=store
            )
        network.keeps = self.engine.store.budget != 0
        self.kind = ""  # of the latest product
        self.noise: float | None = None  # relative error of a product in a coarser dtype, measured on the first batch
        self._graph_bytes = -1.0  # of one sample's backward graph, once measured
        self._allowed = 0.0  # how far products may be off by rounding
        self._inside = network.inside  # the coarsest dtype that the model computes in
        self._first: Any = None  # the first batch, on which engines are chosen, while a sweep is under way
        self._groups: list[range] = []  # the batches that are multiplied as one, once a sweep has begun
        self._adjoint: tuple[Any, linearize.Adjoint | None] = (None, None)  # with the model's version
        self._joins: bool | None = None  # whether they give what they give one by one, once that was seen
        self._team: tuple[distributed.Team, SumOverBatches] | None = None  # the same of one team's data, once asked for

    # pickles alone ask for the state then
    def __copy__(self) -> SumOverBatches:
        other: SumOverBatches = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> SumOverBatches:
        memo[id(self)] = other = object.__new__(type(self))
        self._forget()  # what is kept of a product hangs on its graph, which nothing copies
        try:
            other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        except REFUSALS as problem:  # parameters that lie over ranks, a lock, an open file
            raise TypeError(
                f"{type(self).__name__} cannot be copied with all that it holds ({first_line(problem)}); build another one, or "
                "take copy.copy(A), which shares the model and the data."
            ) from problem
        return other

    def __getstate__(self) -> Any:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled, for it holds graphs and the data; build it anew where it is needed, and "
            "keep results by their save()."
        )

    def _build(self, kind: type[DataModel], model: Any, data: Any, products: Products, **options: Any) -> None:
        """From a model and its data, which are looked at in a first sweep and tested."""
        self._hold_engine(model, products.engine)
        with distributed.together():
            network = sharded.modelled(kind, model, data, products=products, **options)
        self._begin(network, products)
        self._test_model()

    # What a subclass gives -------------------------------------------------------------------------------------------
    def _hold_engine(self, model: Any, engine: str) -> None:
        """One sentence for an engine that this matrix of this model does not have."""
        if engine == linearize.DIFFERENCE:
            raise ValueError(
                f"engine='finite-difference' is of the Hessian, a difference of gradients; {type(self).__name__} has exact "
                "products: leave it out."
            )

    def _maps(self, kind: str, way: str, group: range, batch: Any) -> Maps:
        """One batch, or several as one, linearised in one way for one kind of product."""
        raise TypeError(f"{type(self).__name__} multiplies nothing by itself; use one of its subclasses.")

    def _differentiated(self, batch: Any) -> Callable[..., torch.Tensor]:
        """The function of the parameters whose derivatives are taken, of one batch."""
        return self.network.function(batch)

    def _inspect(self, recorded: Any = None, below: Sequence[torch.Tensor] = ()) -> None:
        """Test the model on the first batch, once, before anything is multiplied; see `checks.inspected`."""
        if self.options.chunk is not None:
            self._check_cut()
        batch = self.network.first.batch
        self._know(checks.inspected(self.network, self._differentiated, recorded, below))
        self._make_again(batch)

    def _make_again(self, batch: Any) -> None:
        """Let graphs keep less, by modules that are made again, where the largest batch does not fit however it is cut."""
        network, allowed = self.network, self._allowed
        most = min(max(network.info.samples), network.chunk or math.inf)
        fits = GRAPHS * self._graph_bytes * most <= self._room()
        if fits or not self.checkpoints or self.options.engine not in ("auto", "fresh") or network.shards is not None:
            return
        if network.statistics != "batch" and network.samples.signature(batch) is not None:
            batch = network.samples.rows(batch, network.samples.size(batch), 0, 1)
        needed = [name for name in (network.inner, getattr(network, "head", None)) if name is not None]
        try:
            with network.opened(), torch.enable_grad():
                function, primals = self._differentiated(batch), network.primals(batch)
                network.made_again = checkpointing.chosen(function, primals, network.model, needed)
                if network.made_again is None:
                    return
                one, two = (
                    (lin := linearize.ForwardMode(made, primals)).vjp(torch.ones_like(lin.output))
                    for made in (function, network.checkpointed(function))
                )
                error = linearize.distance(one, two) / (linearize.norm(one) or 1.0)
                said = f"J^T u is off by {error:.1e}"
        except FAILURES as failure:  # a cache that grows from call to call, say
            error, said = math.inf, first_line(failure)
        if network.made_again is None or not error <= allowed:
            network.made_again = None
            network.untested["modules made again"] = said
            return
        self._graph_bytes *= network.made_again.after / network.made_again.before
        self.options = replace(self.options, memory=0)
        self.engine.store.budget, network.keeps = 0, False

    def _room(self) -> int:
        """Bytes that are free for graphs, beside the vectors of a recurrence."""
        return max(0, arrays.available_memory(self.device) - VECTORS * max(self.shape) * self.dtype.itemsize)

    def _too_large(self) -> bool:
        """Whether the largest batch does not fit, by the graph of one of its samples; batches are cut then, if they can be."""
        network, info = self.network, self.network.info
        most = max(info.samples, default=0)
        if most < 2 or network.statistics == "batch" or None in info.signatures:
            return False
        batch = network.first.batch
        with network.opened(), torch.enable_grad():
            one = network.samples.rows(batch, network.samples.size(batch), 0, 1)
            try:
                each = GRAPHS * graph_facts(self._differentiated(one), network.primals(one)).bytes
            except FAILURES:  # a model that takes batches of one size alone, say
                return False
            free = self._room()
            if each * most <= free or not self._pair_adds_up(batch):
                return False
        network.cut(max(1, int(free // each)))
        return True

    def _pair_adds_up(self, batch: Any) -> bool:
        """Whether two samples give what they give one by one."""
        samples, allowed = self.network.samples, arrays.discrepancy(self.network.compute_dtype)
        size = samples.size(batch)
        pair = [samples.rows(batch, size, i, i + 1) for i in range(min(2, size))]
        return self.network.adds_up(pair, samples.rows(batch, size, 0, 2), allowed)

    def _check_cut(self) -> None:
        batch = self.network.first_batch()
        if batch is not None and self.network.samples.size(batch) > (self.options.chunk or 0):
            with self.network.opened():
                if not self._pair_adds_up(batch):
                    raise ValueError(
                        f"chunk={self.options.chunk} cuts batches, but the samples of a batch meet in the model or in the loss: "
                        "two of them do not give what they give one by one; leave chunk= out, or pass smaller batches."
                    )

    def _test_model(self, uncut: bool = True) -> None:
        """`_inspect` on each rank that holds samples; what one of them finds wrong, every rank raises.

        Where a batch's graph would not fit, all begin anew with fewer samples at a time: on each rank as many as fit there.
        """
        if self.network.shards is not None:
            self._test_sharded()
            return

        def inside() -> tuple[bool, torch.dtype | None, dict[str, Any]]:
            built = {name: value for name, value in self.describe().items() if name in BUILT}
            if uncut and self.options.chunk is None and self._too_large():
                return True, None, built
            if self.network.info.samples:
                self._inspect()
            return False, self._inside, built

        cuts, insides, built = zip(*distributed.gather(inside), strict=True)
        survey.check_built(built)
        if any(cuts):
            self._begin(self.network, self.options)
            self._test_model(uncut=False)
            return
        kinds = [kind for kind in insides if kind is not None]
        if not self.network.info.samples and kinds:  # how products are rounded must be known alike
            self.network.inside = self._inside = max(kinds, key=arrays.machine_epsilon)

    def _test_sharded(self) -> None:
        """The adjoint identity on the first batch of all ranks: each test more would be one of them all."""
        (batch, z, _), self.network.first = self.network.first, None
        self._know(GraphFacts(z, 0, self.network.dtype, tuple(True for _ in self.network.names)))
        if not self.options.preflight or self.options.engine == linearize.DIFFERENCE:
            return
        error = sharded.adjoint_error(self.network, batch)
        if not error <= self._allowed:
            raise ValueError(
                f"<Jv, u> and <v, J^T u> of this sharded model differ by {error:.1e}, so that its products would be of no "
                "matrix; look for parameters that are used outside the module that was sharded, or for torch.no_grad inside."
            )

    def _names(self, side: str) -> dict[str, tuple[int, ...]] | None:
        network = self.network
        if network.wrt == "params":
            return network.local_shapes()
        return {network.wrt: (*self.repeats, *network.info.variable)}

    def _variables(self) -> list[torch.Tensor]:
        given = (self.network.model, self.network.loss.given, self.network.of)
        return [p for module in given if isinstance(module, torch.nn.Module) for p in module.parameters()]

    def _shards(self, side: str) -> pieces.Shards | None:
        return self.network.shards

    def _tangents(self, v: Any, size: int) -> tuple[torch.Tensor, ...]:
        """A vector, or signs, as tangents of one batch, in the dtypes of the products; of inputs one a sample, or one for all."""
        if self.network.wrt == "params":
            return self.network.split(v)
        shape = self.network.info.variable
        return (v[:].to(self.network.compute_dtype).view(-1, *shape).expand(size, *shape),)

    # Products --------------------------------------------------------------------------------------------------------
    @property
    def epochs(self) -> float:
        return float(self.network.sweeps)

    @property
    def ranks(self) -> int:  # type: ignore[override]  # a constant of other operators
        return distributed.world_size()

    @property
    def held_data(self) -> list[str]:
        return [persist.fingerprint([mark for mark in part.fingerprints if mark]) for part in self.network.info.parts]

    def of_team(self, team: distributed.Team) -> Operator:
        """By this operator's survey of the data, without a sweep; its engines are its own."""
        if team.size == 1 and not self.network.info.ranks:  # built apart
            return self
        if self._team is None or self._team[0] != team:
            network, first = self.network.restricted(self.network.names), team.index * team.size
            parts = network.info.parts[first : first + team.size]
            network.info = replace(network.info, ranks=parts if team.size > 1 else ())
            with distributed.apart(team):
                self._team = team, self._of(network, self.options)
        return self._team[1]

    @property
    def store(self) -> Store:
        """What is kept between sweeps; `store.budget = 0` keeps nothing."""
        return self.engine.store

    @property
    def settled(self) -> bool:
        return self.engine.settled

    @property
    def workspace(self) -> int:
        """The graph of the largest batch that nothing is kept of, a batch's gradients, and the store."""
        groups = self._groups or [range(i, i + 1) for i in range(len(self.network.info.samples))]
        anew = (self._samples(group) for group in groups if (self.kind, group.start) not in self.store.entries)
        graph = int(max(self._graph_bytes, 0.0) * max(anew, default=0))  # a rank may hold nothing
        return graph + self._gradient_bytes + self.store.used

    @property
    def first_workspace(self) -> int:
        """The same while an engine is chosen: what recording held, too, and signs as a tangent."""
        signs = self._gradient_bytes if self.options.preflight else 0
        return max(self.workspace, self.engine.recording + self._gradient_bytes) + signs

    @property
    def _gradient_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.network.values.values())

    @property
    def under_test(self) -> bool:
        """Whether the product that is being made will be held to its tests."""
        return self.engine.tests(self.kind)

    def _batches(self) -> Generator[tuple[range, Any], None, None]:
        """(which batches, those as one) of one sweep; closing the iterator leaves the sweep at once, also after an error.

        Small batches are joined: a product reads the parameters, its vector and its result once for each batch, and calls as
        many operations. That several give what they give one by one is tested on the first that are joined.
        """
        with self.network.sweep(lazily=True) as batches:
            waiting: list[Any] = []
            number = 0  # of the group
            for index, batch in batches:
                waiting.append(batch)
                if index == 0:
                    self._first, self._groups = batch, self._groups or self._grouped(batch)
                group = self._groups[number]
                if index + 1 < group.stop:
                    continue
                number += 1
                whole = self.network.samples.joined(waiting)
                if len(group) > 1 and self._joins is None:
                    self._joins = self._add_up(waiting, whole)
                if len(group) > 1 and not self._joins:
                    self._groups = [range(i, i + 1) for i in range(len(self.network.info.samples))]
                    number = group.stop
                    yield from zip(self._groups[group.start : group.stop], waiting, strict=True)
                else:
                    yield group, whole
                waiting = []

    def _swept(self, kind: str, V: torch.Tensor, what: str) -> torch.Tensor:
        """A symmetric product with V (n, b), in one sweep over the data."""
        self._ready()
        V_bn = arrays.rows(pieces.local(V))
        with self._sums((len(V_bn), self._entries), V_bn) as part, closing(self._batches()) as batches:
            if self._own and self.ranks > 1:
                part.tensor.zero_()  # the samples of other ranks are theirs
            for group, batch in batches:
                here = (slice(None), self.entries(group))
                self._multiply(kind, group, batch, V_bn[here], part.tensor[here], new=self._own or group.start == 0)
        return self._piece(self._total(part, what).T)

    def entries(self, group: range) -> slice:
        """Which entries of a vector belong to the samples of these batches; all where there is one variable for all samples."""
        return slice(None)

    def restricted(self, names: list[str]) -> Any:
        """The same of the named parameters alone, by this operator's survey of the data: without a sweep, counters begin at 0.

        Parameters
        ----------
        names : list of str
            Full names of parameters that this operator differentiates.

        Returns
        -------
        Operator
            The columns of a Jacobian, a diagonal block of a curvature matrix.

        Raises
        ------
        ValueError
            For names of which one is none of these, and for no names.

        Examples
        --------
        >>> J = spectral.Jacobian(torch.nn.Linear(2, 1), [torch.ones(3, 2)])
        >>> J.shape, J.restricted(["bias"]).shape
        ((3, 3), (3, 1))
        """
        own = self.network.names
        if not names or set(names) - set(own):
            has = f"it has wrt={self.network.wrt!r}"
            if own:
                has = f"those that it differentiates are {', '.join(_some(own))}"
            raise ValueError(f"restricted({names!r}) needs names of parameters of {self!r}; {has}.")
        return self._of(self.network.restricted(names), self.options)

    def _grouped(self, batch: Any) -> list[range]:
        """Consecutive batches of one form, as many as memory and use allow."""
        info, network = self.network.info, self.network
        self._measure(batch)
        parameters = sum(p.numel() * p.element_size() for p in network.values.values() or network.model.parameters())
        room = self.store.budget or KEEP * arrays.available_memory(self.device)
        limit = min(JOIN * parameters, JOIN_MEMORY * room)
        forms, groups, start = list(zip(info.signatures, info.outputs, strict=True)), [], 0
        for end in range(1, len(forms) + 1):
            if end < len(forms) and forms[end] == forms[start] and forms[start][0] is not None:
                continue
            size = sum(info.samples[start:end]) * self._graph_bytes
            pieces = min(end - start, math.ceil(size / max(limit, 1)))
            width = math.ceil((end - start) / max(pieces, 1))
            if network.chunk is not None:
                width = min(width, max(1, network.chunk // max(info.samples[start:end])))
            # `width` of all but the last, so that they share their programs
            groups += [range(at, min(at + width, end)) for at in range(start, end, width)]
            start = end
        return groups

    def _add_up(self, parts: list[Any], whole: Any) -> bool:
        self.network.open()
        try:
            return self.network.adds_up(parts, whole, self._allowed)
        except REFUSALS:
            return False  # a model that takes batches of one size alone, say

    def _forget(self) -> None:
        """What tests kept of a product until the next: long vectors."""
        self._adjoint = None, None

    def _samples(self, group: range) -> int:
        return sum(self.network.info.samples[i] for i in group)

    def _multiply(self, kind: str, group: range, batch: Any, V: torch.Tensor, W: torch.Tensor, new: bool) -> None:
        """W (b, m) += the products of a batch, or of several as one, with the rows of V (b, n); W = these if `new`."""
        self.kind, samples, network = kind, self._samples(group), self.network
        if self._graph_bytes < 0:
            self._measure(batch)
        unheld = weakref.proxy(self)  # in what the store keeps, so that it goes with the operator

        def linearized(way: str) -> Maps:
            network.open()
            maps = type(self)._maps(unheld, kind, way, group, batch)

            def product(v: torch.Tensor) -> Pieces:
                network.open()  # recorded programs need no model, so that a sweep opens it only here
                return made(v)

            made, maps.product = maps.product, product
            return maps

        def there() -> set[int]:
            """Storages of the parameters and the data."""
            own = (*self.network.values.values(), *self.network.rest.values(), *self.network.model.buffers())
            return {t.untyped_storage().data_ptr() for t in (*own, *tensors(batch))}

        graph = int(RECORDED * PASSES[kind] * self.unrolled * self._graph_bytes * samples)
        work = Workload(
            kind, group.start, linearized, samples, len(self._groups), self.expected, self.network.version, there, graph,
            self.device, kind in SYMMETRIC, self._forget,
        )  # fmt: skip
        self.engine.multiplier(work).add(V, W, new)
        if not self.engine.tests():
            self._forget()

    def _adjoint_test(self, back: linearize.Linear, v: torch.Tensor, rows: int) -> linearize.Adjoint:
        """What products of the first batch are held to; kinds of products and ways share it. `v` is like any v."""
        version, test = self._adjoint
        spent = test is not None and test.pulled is None and self.kind in ("J v", "J^T u")
        if test is None or not test.holds or spent or version != self.network.version():
            self._forget()
            test = linearize.Adjoint(back, v, rows, self._allowed)
            self._adjoint = self.network.version(), test
        return test

    def _measure(self, batch: Any) -> None:
        """What a sample's graph takes, and what rounding explains, unless the first batch has told already."""
        if self.facts is None:
            self.network.open()
            self._know(graph_facts(self._differentiated(batch), self.network.primals(batch)))

    def _know(self, facts: GraphFacts) -> None:
        self.facts = facts
        self._graph_bytes = facts.bytes / self.network.info.samples[0]
        self._inside = facts.dtype
        # vectors may be coarser than what is computed in
        self._allowed = max(arrays.discrepancy(facts.dtype), arrays.discrepancy(self.dtype))

    def _explain(self, problems: dict[str, Exception]) -> str:
        """What has no derivative, or a wrong one; `problems` by the way of differentiation."""
        if wrong := [problem for problem in problems.values() if isinstance(problem, differences.Wrong)]:
            # of a loss alone
            culprit = differences.wrong_second_derivative(self.network, self._first, self.network.total(self._first))  # type: ignore[attr-defined]
            return (
                f"{culprit} has a second derivative that is not that of its gradient: {wrong[0]}, as where a backward pass uses "
                "saved constants, or after a stop-gradient, which preflight=False takes for a constant"
            )
        parts = [f"{way}: {problem}" for way, problem in problems.items() if isinstance(problem, linearize.Wrong)]
        missing = [problem for problem in problems.values() if not isinstance(problem, linearize.Wrong)]
        if missing:
            differentiated = self._differentiated(self._first)
            parts.insert(0, faults.missing_derivative(self.network, self._first, missing[0], differentiated))
        elif self.network.needs_loss:
            parts.append("unless targets are fitted so well that gradients are rounding: float64 products tell")
        return "; ".join(parts)

    def _sums(self, shape: tuple[int, int], vectors: torch.Tensor) -> distributed.Summand:
        """Memory for this rank's part of a product with vectors, which its first batch writes: zeros where there is none."""
        again = self.direct and self.engine.settled  # pieces of a product that is tested lie beside it
        part = distributed.Summand.of(
            vectors, shape, self.network.kept_checksum if self.network.shards is None else None, again
        )
        if not self.network.info.samples:
            part.tensor.zero_()
        return part

    @property
    def _entries(self) -> int:
        """Of a vector shaped like the parameters, those that this rank holds."""
        return self.shape[1] if self.shards is None else self.shards.entries

    def _total(self, part: distributed.Summand, what: str) -> torch.Tensor:
        """The sum over the ranks of a product shaped like the parameters; a sharded model's backward pass has summed already."""
        if self.network.shards is None:
            return self._finite(part, part.sum(), what)

        def finite() -> bool:
            if part.failure is not None:
                raise part.failure
            return arrays.all_finite(part.tensor)

        if not all(distributed.gather(finite)):
            raise self._not_finite(what, "")
        return part.tensor

    def _piece(self, W: torch.Tensor) -> torch.Tensor:
        """What is handed out: a piece where vectors lie over ranks."""
        return W if self.network.shards is None else W.as_subclass(pieces.Piece)

    def _finite(self, part: distributed.Summand, result: torch.Tensor, what: str) -> torch.Tensor:
        """The product, or one sentence: which rank failed in its part, or the batch and the module that are not finite."""
        if part.parted:
            survey.check_weights(self.network, distributed.gather(self.network.checksum))
        if arrays.all_finite(result):
            return result
        part.share()
        found = distributed.gather(self._nonfinite)
        several = len(found) > 1
        told = (f"on rank {rank}, {words}" if several else words for rank, words in enumerate(found) if words)
        raise self._not_finite(what, next(told, ""))

    def _nonfinite(self) -> str:
        """The batch of this rank, and its module, whose derivative is not finite."""
        return faults.locate_nonfinite(self.network, self._differentiated)

    def _not_finite(self, what: str, where: str) -> ValueError:
        return ValueError(
            f"the product {what} holds NaN or infinity though the outputs are finite{': ' + where if where else ''}; mend the "
            "derivative there (a square root or a norm at 0, say), or multiply in float64 by product_dtype=."
        )

    def _ready(self) -> None:
        """Before each product: the group must be that of which the data are, and what is said of rounding must be known."""
        built, ranks = len(self.network.info.parts), distributed.world_size()
        if built != ranks:
            raise ValueError(
                f"this {type(self).__name__} was built by {built} process{'es' * (built > 1)}, each with its share of the data, "
                f"and {ranks} would multiply by it now; build it anew after the process group has changed."
            )
        self._know_noise()

    def _know_noise(self) -> None:
        """Measure it before the first product in a coarser dtype that was asked for.

        Weights that are themselves in half precision are not copied into a finer dtype: `epsilon` says what is known.
        """
        if self.options.dtype is not None and self.coarse and self.noise is None:
            self.measure_noise()

    @property
    def product_error(self) -> float:
        if self.noise is not None:  # the largest of a few products: room for larger ones
            return min(0.1, ROOM * self.noise)
        return super().product_error

    # Other dtypes ----------------------------------------------------------------------------------------------------
    @property
    def epsilon(self) -> float:
        return max(arrays.machine_epsilon(t) for t in (self.dtype, self.network.compute_dtype, self._inside) if t)

    @property
    def coarse(self) -> bool:
        """Whether products are made in a coarser dtype than the vectors'."""
        return arrays.machine_epsilon(self.network.compute_dtype) > arrays.machine_epsilon(self.dtype)

    def measure_noise(self) -> float:
        """||(A' - A) v|| / ||A v|| on the first batch, A' in the products' dtype and A in the vectors': the largest of three v.

        v is Gaussian. Nine products, and a copy of the parameters in the vectors' dtype.
        """
        with distributed.together():
            batch = self.network.first_batch()
        coarse, fine = self._alone(batch, self.options.dtype), self._alone(batch, self.dtype)
        coarse.noise = 0.0  # it measures none itself
        errors = []
        for i in range(NOISE_PROBES):
            v = probes.probe(1, i, fine.shape[1], dtype=self.dtype, device=self.device)
            expected = fine @ v
            scale = longvectors.norm(expected)
            errors.append(longvectors.norm(coarse @ v - expected) / scale if scale > 0 else 0.0)
        self.noise = max(errors)
        return self.noise

    def _begin(self, network: Any, products: Products) -> None:
        """Be the matrix of this network, which is surveyed if it has not been, with engines and counters from the beginning."""
        raise TypeError(f"{type(self).__name__} multiplies nothing by itself; use one of its subclasses.")

    def _of(self, network: DataModel, products: Products) -> Any:
        """The same matrix of other parameters or data."""
        other = copy.copy(self)
        other._begin(network, products)
        return other

    def _alone(self, batch: Any, dtype: torch.dtype | None, **how: Any) -> SumOverBatches:
        """The same matrix of one batch alone, multiplied in another dtype, or otherwise; its model is not tested again."""
        products = replace(self.options, **{"dtype": dtype, "preflight": False, **how})
        alone: SumOverBatches = self._of(self.network.alone(batch, products), products)
        return alone

    def identity(self) -> str:
        # of what the matrix is, its weights and its data, however many ranks they lie on
        network, what = self.network, self._what()
        marks = [mark for part in network.info.parts for mark in part.fingerprints if mark]
        if isinstance(network, sharded.ShardedModel):  # each rank has weights of its own
            weights, buffers = zip(*distributed.gather(network.mark), strict=True)
            what = {key: value for key, value in what.items() if key != "sharded"}
            return persist.fingerprint([what, network.names, sum(weights) % (1 << 64), buffers[0], marks])
        checksum = network.checksum()
        own = persist.fingerprint([what, network.names, checksum, marks])
        if self.ranks == 1:
            return own
        everyone = distributed.gather(lambda: (own, checksum))
        survey.check_weights(network, [one for _, one in everyone])
        leader = next(rank for rank, part in enumerate(network.info.parts) if part.samples)
        return everyone[leader][0]

    @property
    def _idle(self) -> list[str]:
        """The parameters, or the variable, that the function of the first batch does not depend on."""
        names = self.network.names if self.network.wrt == "params" else [self.network.wrt]
        reached = (True for _ in names) if self.facts is None else self.facts.reached
        return [name for name, there in zip(names, reached, strict=True) if not there]

    def _what(self) -> dict[str, Any]:
        """Everything that defines the matrix but its weights and data."""
        return {**super().describe(), **self.network.describe()}

    def describe(self) -> dict[str, Any]:
        # also engine, reason and times of the latest kind of product, the choices of the others, and the noise
        inside = self._inside if self._inside not in (None, self.network.compute_dtype) else None
        return {
            **self._what(),
            **({"ranks": self.ranks} if self.ranks > 1 else {}),
            **self.engine.describe(self.kind),
            **({"chunk": self.network.chunk} if self.network.chunk is not None else {}),
            **({"made_again": str(self.network.made_again)} if self.network.made_again is not None else {}),
            **({"batches_joined": max(map(len, self._groups))} if self._joins else {}),
            **({"without_influence": _some(self._idle)} if self._idle else {}),
            **({"computes_in": arrays.dtype_name(inside)} if inside else {}),
            **({"product_noise": self.noise} if self.noise is not None else {}),
            **({"asymmetry": self.asymmetry} if self.asymmetry else {}),
        }


def _some(names: list[str]) -> list[str]:
    return names if len(names) <= 8 else [*names[:7], f"... {len(names) - 7} more"]
