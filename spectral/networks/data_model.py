"""A model and its data as pure functions of what is differentiated.

`DataModel` gives, for each batch, a function primals -> outputs (B, k) and the primals at which it is linearised. All that the
user gave (forward=, of=, loss=) runs inside one substitution of the parameters: what calls the model again, or reads its
parameters, is differentiated too. A sweep over the data leaves no trace (`model_state.untouched`). Each sweep replays the random
state of the first, so that a shuffling loader visits the samples in one fixed order.

Legend: n samples, B in a batch, k outputs per sample, d input features, P parameters.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.autograd.function import BackwardCFunction

from spectral import arrays, longvectors, threads
from spectral.checksum import checksum_of
from spectral.engine import linearize, private
from spectral.failures import first_line, is_own, with_kind
from spectral.networks import activations, batches, calling, checkpointing, model_state
from spectral.networks.batches import NotFinite, Samples
from spectral.networks.diagnose.graph import nodes
from spectral.networks.learned_loss import Loss
from spectral.networks.places import INPUT_KEYS, fields, input_place, output_tensor, probabilities
from spectral.networks.products import Products
from spectral.networks.trees import leaves, map_tensors, repacked, replaced, tensors
from spectral.pieces import Shards
from spectral.probes import Signs
from spectral.schema import choice, function
from spectral.threads import Weakly

FAILURES = (RuntimeError, TypeError, ValueError, IndexError)  # what torch raises for a batch that a model does not take
OF = ("logits", "probs", "loss", "loss sums")  # the last is the empirical Fisher's: each sample's summed loss
WRT = ("params", "inputs")
STATISTICS = ("population", "batch")
PATIENCE = 60  # seconds of the first sweep, before data without a length are told about


class FirstBatch(NamedTuple):
    """The first batch, what the model made of it in the first sweep, and its summed loss, if there is one."""

    batch: Any
    outputs: torch.Tensor
    total: torch.Tensor | None = None


class DataModel:
    """(model, data) as functions of the parameters or of the inputs; see the module's docstring."""

    needs_loss = False  # whether loss=None means the model's own
    shards: Shards | None = None  # how vectors shaped like the parameters lie over ranks; None: each holds all of them
    inner_gradients = False  # whether the user's code differentiates in the parameters itself
    built: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {}  # of the parameters as they were first read
    made_again: checkpointing.MadeAgain | None = None  # modules of which a graph keeps what enters them alone

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        of: str | Callable[[Any, Any], torch.Tensor] = "logits",
        wrt: str = "params",
        forward: Callable[[nn.Module, Any], Any] | None = None,
        loss: Any = None,
        params: Any = None,
        shared: Sequence[Any] = (),
        statistics: str = "population",
        products: Products = Products(),  # noqa: B008 (frozen)
    ) -> None:
        model = calling.unwrapped(model)
        calling.check_model(model)
        if not callable(of) and of not in OF:
            raise ValueError(
                f"of={of!r} is no output; use one of {', '.join(OF[:3])} or a callable(output, batch) -> (B, k)."
            )
        if wrt not in WRT and not (isinstance(wrt, str) and wrt.startswith(activations.PREFIX)):
            raise ValueError(
                f"wrt={wrt!r} is no variable; use 'params', 'inputs' or 'module:NAME', the output of that module."
            )
        choice(statistics, "statistics", STATISTICS)
        if wrt != "params" and params is not None:
            raise ValueError(f"params= restricts wrt='params'; leave it out with wrt={wrt!r}.")
        if products.chunk is not None and statistics == "batch":
            raise ValueError("chunk= cuts batches, and statistics='batch' is of whole ones; leave one of them out.")
        if isinstance(shared, str) or not isinstance(shared, Sequence):
            raise TypeError(f"shared={shared!r} must be a list of keys or positions, such as [{shared!r}].")
        batches.check_data(data)
        if forward is not None:
            function(forward, "forward", "(model, batch)")
        self.model, self.data, self.of, self.wrt = model, data, of, wrt
        # the module whose output is the variable, by its name; None where parameters or inputs are
        self.inner = None if wrt in WRT else wrt.removeprefix(activations.PREFIX)
        if self.inner is not None:
            activations.module_named(model, self.inner)
        self.statistics, self.preflight, self.chunk = statistics, products.preflight, products.chunk
        self.samples = Samples(tuple(shared))
        self.inputs = 1 if forward is not None else calling.required_inputs(model)
        self.loss = Loss(loss, self.samples, self.inputs)
        own = loss is None and (self._of_loss or self.needs_loss)
        self.loss.guess(model)
        forward = forward or (calling.labelled_forward if own else calling.default_forward)
        self.call = calling.WholeCall(model, forward, self.samples.shared)
        self.product_dtype = products.dtype
        self.untested: dict[str, str] = {}  # what could not be tested on this model, and why
        given = (loss, of, forward)
        self.roots = [model, *(state for one in given for state in _states(one))]  # what is put back
        self.reads = (*self.roots, *given)  # what the matrix depends on, with all that is read from there
        with threads.alone(model.modules()), threads.RANDOM:
            self.names = list(calling.select_parameters(model, params)) if wrt == "params" else []
            self.data = data = batches.apart(data)
            before = batches.random_state(data)
            batches.warm_up(data)
            self.state = batches.random_state(data)
            self._set_dtype(model)
            batches.rewind(data)
            batches.set_random_state(data, before)
        self.autocast = arrays.autocast_of(self.device)  # in which the matrix is built, and multiplied wherever that is
        self.sweeps = 0  # passes over the data so far, the first one (a forward pass for the sizes) included
        self.draws = True  # whether reading the data or running the model draws from a global generator
        self.first: Any = None  # `FirstBatch`, until it has been inspected
        self.info: Any = None  # `DatasetInfo`, once the first sweep has told
        self._clones: dict[str, torch.Tensor] | None = None  # of the buffers, for the sweep under way
        self._writes = False  # whether forward has been seen to write into buffers
        self._overwrites = False  # whether forward has been seen to write to its inputs
        self._copies: list[torch.Tensor] | None = None  # of a batch's tensors, on which it shows, in the first sweep
        self._stack: ExitStack | None = None  # of the sweep under way
        self._opened = False
        self._seen_version: model_state.Version | None = None  # of the sweep under way
        self._kept_checksum: tuple[model_state.Version | None, str] = (None, "")  # the latest `kept_checksum`
        self.keeps = True  # whether anything is kept from sweep to sweep
        self.counts: list[float] = []  # of each batch, the targets that a loss counts
        self.inside: torch.dtype | None = None  # what other ranks' batches are computed in, where this one has none

    @property
    def _of_loss(self) -> bool:
        """Whether the outputs are losses of single samples."""
        return self.of in ("loss", "loss sums")

    def _set_dtype(self, model: nn.Module) -> None:
        named = dict(model.named_parameters())
        floating = [named[name] for name in self.names] or [
            p for p in named.values() if calling.has_derivatives(p) and not p.is_complex()
        ]
        devices = {p.device for p in floating}
        if len(devices) > 1:
            listed = ", ".join(sorted(map(str, devices)))
            raise TypeError(f"the parameters are on several devices ({listed}); choose those of one by params=[...].")
        self.kinds = {p.dtype for p in floating}
        if self.kinds and not (self.wrt == "inputs" and len(self.kinds) > 1):
            self.own_dtype, self.device = reduce(torch.promote_types, sorted(self.kinds, key=str)), devices.pop()
        else:  # what the inputs are
            batch = self.first_batch()
            x = None if batch is None else next(iter(tensors(batch)), None)
            self.own_dtype = torch.get_default_dtype() if x is None else x.dtype
            self.device = devices.pop() if devices else torch.device("cpu") if x is None else x.device
        if not self.own_dtype.is_floating_point:
            name = next((name for name in self.names if named[name].is_complex()), None)
            what = f"the parameter {name} is" if name else "the model or its inputs are"
            way = "leave it out by params=, or make it of two real ones" if name else "convert them"
            raise TypeError(f"derivatives need floating point, but {what} {self.own_dtype}; {way}.")
        self.kinds.add(self.own_dtype)
        # a recurrence in half precision loses what it is made for: vectors and sums are float32 at least
        self.dtype = torch.promote_types(self.own_dtype, torch.float32)
        if self.product_dtype == torch.float64 and not arrays.has_float64(self.device):
            raise ValueError(
                f"product_dtype=torch.float64, but {self.device} has no float64; move the model to the CPU."
            )
        self.compute_dtype = self.product_dtype or self.own_dtype
        self.read_parameters()

    def _cast(self, t: torch.Tensor) -> torch.Tensor:
        """In the dtype of the products; without product_dtype= everything keeps its own."""
        return t.to(self.product_dtype) if self.product_dtype is not None and t.dtype in self.kinds else t

    def read_parameters(self) -> None:
        """The parameters as they are now, in the dtype of the products; the model's own objects are asked for anew."""
        named = dict(self.model.named_parameters())
        here = {name: (tuple(named[name].shape), named[name].dtype) for name in self.names if name in named}
        self.built = self.built or here
        other = next((name for name in self.names if here.get(name) != self.built[name]), None)
        if other is not None:
            now, before = (f"{of[other][0]} of {of[other][1]}" if other in of else "gone" for of in (here, self.built))
            raise ValueError(f"the parameter {other} is now {now} instead of {before}; build the operator anew.")
        hooked = next((name for name in self.names if private.is_hooked(named[name])), None)
        if hooked:
            raise ValueError(
                f"the parameter {hooked} has a hook on its gradient (register_hook), which training calls and products do not; "
                "remove it (handle.remove(), wandb.unwatch(model)), or pass copy.deepcopy(model), whose parameters have none."
            )
        values = {name: self._cast(p.detach()) for name, p in named.items()}
        self.values = {name: values.pop(name).requires_grad_(self.inner_gradients) for name in self.names}
        self.frozen = values if self.product_dtype is not None else {}
        self.rest = values

    def first_batch(self) -> Any:
        """The first batch that holds samples, as the data give it in every sweep; None if there is none."""
        with threads.RANDOM:
            self.data = batches.apart(self.data)
            before = batches.random_state(self.data)
            batches.set_random_state(self.data, self.state)
            here = torch.device("cpu")
            there = (batches.placed(batch, getattr(self, "device", here), lambda t: t) for batch in self.data)
            batch = next((b for b in there if self.samples.first(b) is None or self.samples.size(b)), None)
            batches.rewind(self.data)
            batches.set_random_state(self.data, before)
        return batch

    def restricted(self, names: list[str]) -> Any:
        """The same functions of the named parameters alone: what the first sweep has told is shared, sweeps are counted anew."""
        return self._with(names=[name for name in self.names if name in names], sweeps=0)

    def _with(self, *, read: bool = True, **others: Any) -> Any:
        """The same functions with other attributes, and its own reading of the parameters."""
        part = copy.copy(self)
        vars(part).update(others, _clones=None)
        if read:
            with threads.alone(self.model.modules()):
                part.read_parameters()
        return part

    def in_dtype(self, dtype: torch.dtype, *, cast: bool = True) -> Any:
        """The same functions in another dtype, for tests on batches of this one while its model is opened.

        `cast`: the parameters too; what reads of them but an output needs no other ones.
        """
        return self._with(read=cast, product_dtype=dtype, compute_dtype=dtype, _stack=None)

    def alone(self, batch: Any, products: Products) -> Any:
        """The same functions of one batch alone, in another dtype: not surveyed yet."""
        data = [] if batch is None else [batch]
        dtypes: dict[str, Any] = {"product_dtype": products.dtype, "compute_dtype": products.dtype or self.own_dtype}
        unseen: dict[str, Any] = {"sweeps": 0, "untested": {}, "first": None, "info": None, "counts": []}
        return self._with(data=data, state=batches.random_state(data), preflight=products.preflight, **dtypes, **unseen)

    # Sweeps ----------------------------------------------------------------------------------------------------------
    def _in_autocast(self) -> AbstractContextManager[Any]:
        kind, on, dtype = self.autocast
        if self.autocast == arrays.autocast_of(self.device):
            return nullcontext()
        return torch.autocast(kind, dtype=dtype, enabled=on)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The model in eval mode, to be run outside a sweep; it and every random state are as before afterwards."""
        with threads.alone(self.model.modules()), threads.RANDOM, self._in_autocast(), ExitStack() as stack:
            stack.callback(batches.set_random_state, self.data, batches.random_state(self.data))
            if not self._opened:
                stack.enter_context(threads.instead(self, _opened=True))
                self._open(stack)
            yield

    def open(self) -> None:
        """Prepare the model for being run in the sweep under way, outside any transform of torch.func."""
        if not self._opened and self._stack is not None:
            self._open(self._stack)
            self._opened = True

    def _open(self, stack: ExitStack) -> None:
        if self.keeps and self._stack is not None:
            self.version()
        self.modes = {module: module.training for module in self.model.modules()}
        stack.enter_context(model_state.untouched(self.model, self.roots[1:], self.statistics == "population"))
        self._clones = None if self._writes else self._cloned()

    @contextmanager
    def sweep(
        self, fingerprints: list[str] | None = None, *, lazily: bool = False
    ) -> Iterator[Iterator[tuple[int, Any]]]:
        """One pass over the data: yields an iterator of (index, batch on our device), leaving no trace.

        The first pass records the batches' `fingerprints`, the later ones hold every batch against them. Each pass sees the
        model as it is when it begins. `lazily`: who runs the model calls `open` before; recorded programs need no model.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "torch.inference_mode() records no derivatives; leave it for spectral (torch.no_grad() is fine)."
            )
        with threads.alone(self.model.modules()), self._in_autocast(), ExitStack() as stack:
            self.data = batches.apart(self.data)
            if self.draws:
                stack.enter_context(threads.RANDOM)
                stack.callback(batches.set_random_state, self.data, batches.random_state(self.data))
                batches.set_random_state(self.data, self.state)
            stack.callback(lambda: batches.rewind(self.data))
            self.read_parameters()
            if self.info is not None:
                self.loss.check_counted()
            self.sweeps += 1
            self._seen_version = None
            stack.enter_context(threads.instead(self, _stack=stack, _opened=False))
            stack.enter_context(torch.enable_grad())
            if not lazily:
                self.open()
            yield self._batches(fingerprints)

    def _batches(self, fingerprints: list[str] | None) -> Iterator[tuple[int, Any]]:
        known = self.info.fingerprints if fingerprints is None else None
        persistent = ", persistent_workers=False" if getattr(self.data, "persistent_workers", False) else ""
        index, patience = 0, time.monotonic() + PATIENCE
        for batch in self.data:
            if known is None and time.monotonic() > patience and not _ends(self.data):
                patience = math.inf
                warnings.warn(
                    f"the data have given {index} batches in {PATIENCE} s and do not say how many they are; where they "
                    "never end, pass a list of some, such as list(itertools.islice(loader, 100)).",
                    stacklevel=2,
                )
            batch = batches.placed(batch, self.device, self._cast)
            first = self.samples.first(batch)
            if first is not None and not len(first):
                continue  # an empty batch adds nothing, and many models take none
            mark = batches.fingerprint(batch)
            for part in self._cut(batch):
                if fingerprints is not None:
                    fingerprints.append(mark)
                elif known is not None and (index >= len(known) or mark != known[index]):
                    raise ValueError(
                        f"batch {index} is not what it was in the first sweep, so the products would be of another matrix; "
                        f"use a loader that gives the same batches each time (no random augmentation{persistent})."
                    )
                yield index, part
                index, mark = index + 1, ""  # a batch has one mark, in however many parts it is multiplied
        if known is not None and index != len(known):
            raise ValueError(
                f"the data held {len(known)} batches in the first sweep and {index} now; pass a list of batches or a "
                "loader that gives the same batches each time."
            )

    def _cut(self, batch: Any) -> list[Any]:
        """A batch as parts of at most `chunk` samples."""
        size = self.samples.size(batch)
        if self.chunk is None or size <= self.chunk:
            return [batch]
        if self.samples.signature(batch) is None:
            raise ValueError(
                f"chunk={self.chunk} cannot cut a batch of {size} samples some entries of which are not one a sample; name those "
                "by shared=[...], or pass smaller batches."
            )
        return [self.samples.rows(batch, size, at, at + self.chunk) for at in range(0, size, self.chunk)]

    def cut(self, chunk: int) -> None:
        """Multiply so many samples at a time from now on: the first sweep is to be made again."""
        self.chunk, self.info, self.counts, self.first = chunk, None, [], None

    def version(self) -> model_state.Version:
        """Changes with every value, setting and part of what the matrix depends on: what was kept of it before is then stale.

        Read once a sweep, before the model is run in it.
        """
        if self._seen_version is None:
            self._seen_version = model_state.Version(self.reads)
        return self._seen_version

    def checksum(self) -> str:
        """A hash of every entry of the model's (and other modules' that are called) parameters and buffers, as they are now."""
        with threads.alone(self.model.modules()):
            modules = [root for root in self.roots if isinstance(root, nn.Module)]
            found = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
            return checksum_of(*found.values())

    def kept_checksum(self) -> str:
        """`checksum`, read again only where something was written to the model since."""
        version = self.version()
        if self._kept_checksum[0] != version:
            self._kept_checksum = version, self.checksum()
        return self._kept_checksum[1]

    def checksums(self) -> dict[str, str]:
        """The same for each parameter and buffer of the model by itself, by its name."""
        with threads.alone(self.model.modules()):
            named = [*self.model.named_parameters(), *self.model.named_buffers()]
            return {name: checksum_of(t.detach()) for name, t in named}

    def look(self, index: int, batch: Any) -> tuple[int, int]:
        """(samples, outputs per sample) of a batch, from a forward pass."""

        def chosen(output: Any, there: Any) -> torch.Tensor:
            if self._of_loss:
                self._learn(index, output, there)
            return self.select(output, there)

        z = self.guarded(index, batch, self.function(batch, chosen))
        if not torch.isfinite(z).all():
            raise NotFinite(index, batch, "the model returns", self.function(batch))
        if index == 0:
            self._check_left_out(batch)
            self.first = FirstBatch(batch, z.detach())
        return z.shape[0], z.shape[1]

    def guarded(self, index: int, batch: Any, function: Callable[..., Any]) -> Any:
        """The function's value with all parameters detached, so that no graph is kept that the user's code does not ask for.

        The first batch shows whether forward writes to its parameters: by torch, or past it, which cannot be undone.
        """
        every = {**self.rest, **self.values} if index == 0 else {}
        before = {name: checksum_of(value) for name, value in every.items()}
        try:
            unwritten = model_state.Unwritten(every) if every else nullcontext()
            with threads.instead(self, frozen=self.rest), unwritten, self.lending():
                z = function(*self.primals(batch))
        except FAILURES as problem:
            if is_own(problem):
                raise
            raise _misfit(self, index, batch, problem) from problem
        for name, value in every.items():
            if checksum_of(value) != before[name]:
                raise ValueError(model_state.written_to(name))
        made = next((name for name, _ in self.model.named_parameters() if every and name not in every), None)
        if made:
            raise ValueError(
                f"forward makes the parameter {made} when it is first called; run one batch through the model before."
            )
        return z

    def _check_left_out(self, batch: Any) -> None:
        """One sentence where forward may take an entry of a batch that stands in a target's place, and of= reads none there."""
        plain = not self._of_loss and self.call.run.given is calling.default_forward and self.shards is None
        name = calling.may_take(self.model, batch) if plain else None
        if name is None:
            return

        def check(output: Any) -> None:
            seen = calling.noted(repacked(batch))
            if callable(self.of):
                self.of(output, seen)
                if not isinstance(seen, calling.Reads) or seen.whole or max(seen.read, default=0) >= self.inputs:
                    return
            calling.check_left_out(self.model, self._lent(batch), name, output)

        self.run(self.values, self._lent(batch), check)

    def _learn(self, index: int, output: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What the loss means, from a batch's output: its (sum, count)."""
        self.loss.read = self.call.run.reads or 0
        self.loss.inputs, self.loss.fixed = self.loss.read or self.loss.inputs, self.inner is not None
        self.loss.output = Weakly(self._run_anew) if self.shards is None else None  # which all ranks would have to call
        sum_count = self.loss.learn(index, output, batch)
        if index == 0 and self._of_loss:
            self.loss.check_samples(output, batch)
        return sum_count

    def _run_anew(self, batch: Any) -> Any:
        """What forward makes of a batch inside the substitution that is under way."""
        return self.call.run(self._lent(batch))

    def adds_up(self, parts: list[Any], whole: Any, allowed: float) -> bool:
        """Whether a batch of several gives what they give one by one, up to the relative error `allowed`."""
        z = torch.cat([self.function(part)(*self.primals(part)) for part in parts])
        return near(self.function(whole)(*self.primals(whole)), z, allowed)

    # Functions -------------------------------------------------------------------------------------------------------
    def linearised(self, way: str, function: Callable[..., torch.Tensor], batch: Any) -> linearize.ForwardMode:
        """A function of the primals of this batch, linearised there in one way."""
        if self.made_again is not None and way == "fresh":
            return linearize.ForwardMode(function, self.primals(batch), self.checkpointed(function))
        kind = linearize.ByRows if way == linearize.ROWS else linearize.WAYS[way]
        return kind(function, self.primals(batch))

    def checkpointed(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """The same function, whose graph makes the modules `made_again` again."""
        return checkpointing.checkpointed(function, self.model, self.made_again.pieces if self.made_again else ())

    def gradient(self, way: str, function: Callable[..., torch.Tensor], batch: Any) -> linearize.ForwardOverReverse:
        """The gradient of a scalar function of the primals of this batch, to be differentiated in one way."""
        return linearize.GRADIENTS[way](function, self.primals(batch))

    def entries(self, repeats: tuple[int, ...]) -> int:
        """Of a vector of all parameters, or of one with so many entries for each of the variable's."""
        if self.wrt == "params":
            return sum(value.numel() for value in self.values.values())
        return math.prod((*repeats, *self.info.variable))

    def local_shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters by name, as far as this rank holds them."""
        return {name: tuple(value.shape) for name, value in self.values.items()}

    def primals(self, batch: Any) -> tuple[torch.Tensor, ...]:
        """What is differentiated on this batch: the parameters, the inputs (B, ...), or a module's output (B, ...)."""
        if self.wrt == "params":
            return tuple(self.values.values())
        return (self.inputs_of(batch),)

    def _embeds(self, batch: Any) -> bool:
        """Whether the inputs are tokens, whose embeddings are differentiated."""
        named = fields(batch)
        return named is not None and "input_ids" in named and input_place(batch, self.samples.shared) is None and hasattr(
            self.model, "get_input_embeddings"
        )  # fmt: skip

    def inputs_of(self, batch: Any) -> torch.Tensor:
        """The inputs of a batch, or the output of the module that is named in their place."""
        if self.inner is not None:
            size, lent = self.samples.size(batch), self._lent(batch)
            return activations.taken(self.model, self.inner, size, lambda: self.run({}, lent, lambda z: z))
        if self._embeds(batch):
            with torch.no_grad():
                embedding: Any = self.model.get_input_embeddings
                return embedding()(fields(batch)["input_ids"]).to(self.compute_dtype)  # type: ignore[index]
        place = input_place(batch, self.samples.shared)
        if place is None:
            keys = fields(batch) or fields(batch[0]) or {}
            raise ValueError(
                f"wrt='inputs' finds no inputs among the keys {', '.join(map(str, keys))}; name the floating input one of "
                f"{', '.join(INPUT_KEYS)}."
            )
        if place == (0,) and self.inputs > 1:
            raise ValueError(
                f"wrt='inputs' differentiates one input, but {type(self.model).__name__}.forward takes {self.inputs}; pass "
                "forward=lambda model, batch: ... of the one that varies."
            )
        x = next(leaf for at, leaf in leaves(batch) if at == place)
        if not x.is_floating_point():
            raise TypeError(
                f"the inputs are {x.dtype}, which has no derivative; pass floating inputs, or a Hugging Face model, whose "
                "embeddings are differentiated, or differentiate in the parameters (wrt='params'; of an experiment kinds=[ntk])."
            )
        return x

    def with_inputs(self, batch: Any, x: torch.Tensor) -> Any:
        """The batch with other inputs."""
        if self._embeds(batch):
            rest = {name: value for name, value in fields(batch).items() if name != "input_ids"}  # type: ignore[union-attr]
            return {**rest, "inputs_embeds": x}
        return replaced(batch, {input_place(batch, self.samples.shared): x})  # type: ignore[dict-item]

    def function(self, batch: Any, then: Callable[[Any, Any], Any] | None = None) -> Callable[..., Any]:
        """The pure function primals -> outputs (B, k) of this batch, or -> then(what the model returns, batch)."""
        then = then or self.select

        def called(values: Mapping[str, torch.Tensor], batch: Any) -> Any:
            there = self._lent(batch)
            return self.run(values, there, lambda output: then(output, there))

        def of_parameters(*values: torch.Tensor) -> Any:
            return called(dict(zip(self.names, values, strict=True)), batch)

        def of_inputs(x: torch.Tensor) -> Any:
            return called({}, self.with_inputs(batch, x))

        def of_activations(h: torch.Tensor) -> Any:
            with activations.standing_in(self.model, self.inner or "", h):
                return called({}, batch)

        return of_parameters if self.wrt == "params" else of_inputs if self.inner is None else of_activations

    def run(
        self, values: Mapping[str, torch.Tensor], batch: Any, then: Callable[[Any], Any], output: Any = calling.NOTHING
    ) -> Any:
        """then(what the model returns), or then(output), with the parameters `values` in the place of the model's own."""
        if not self._opened:
            with self.opened():
                return self.run(values, batch, then, output)
        return self._called(values, batch, then, output)

    def _called(self, values: Mapping[str, torch.Tensor], batch: Any, then: Callable[[Any], Any], output: Any) -> Any:
        substituted = {**self.frozen, **values}
        for value in substituted.values():
            value._is_param = True  # type: ignore[attr-defined]  # what isinstance(value, nn.Parameter) asks for
        inside = self._everywhere({**substituted, **self._fresh_buffers()})
        again = partial(self._again, inside, private.call_again())
        with private.called_again(again):
            made = torch.func.functional_call(self.call, inside, (batch, then, output), tie_weights=False)
        for node in nodes(tensors([made])):
            if isinstance(node, BackwardCFunction) and "apply" not in vars(node):
                node.apply = partial(_backward, again, weakref.ref(node))  # type: ignore[method-assign]
        return made

    def _again(
        self, inside: dict[str, torch.Tensor], outer: Callable[..., Any], function: Callable[..., Any], *args: Any
    ) -> Any:
        """What calls the model in a backward pass: in eval mode, on the values of its forward pass."""
        with nullcontext() if self._opened else self.opened():
            then = (None, lambda _: function(*args), None)
            return outer(partial(torch.func.functional_call, tie_weights=False), self.call, inside, then)

    def _lent(self, batch: Any) -> Any:
        """The batch as forward may have it: in containers of its own and, where it writes to its inputs, with copies of these."""
        there = repacked(batch)
        if self._copies is not None:
            there = map_tensors(lambda t: t if t.requires_grad else t.clone(), there)
            self._copies += [t for t in tensors(there) if not t.requires_grad]
            return there
        return map_tensors(torch.clone, there) if self._overwrites else there

    @contextmanager
    def lending(self) -> Iterator[None]:
        """Inside, forward has copies of its inputs, which show whether it writes to them."""
        self._copies = []
        try:
            yield
        finally:
            self._overwrites = self._overwrites or any(private.version(t) > 0 for t in self._copies)
            self._copies = None

    def _everywhere(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each value at every place where a module holds the parameter or buffer of that name, tied ones included.

        A module that has several names is named once: torch's own tie_weights= substitutes it under each of them, and then puts
        back what the first one has put there, so that a weight tied to another module's is tied no longer.
        """
        own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        value_of = {id(own[name]): value for name, value in values.items() if name in own}
        for name in values.keys() & own.keys():
            values[name].held = own[name]  # type: ignore[attr-defined]  # what an embedding reads as its padding
        return {
            f"{prefix}.{name}".lstrip("."): value_of[id(held)]
            for prefix, module in self.call.named_modules()
            for named in (module.named_parameters, module.named_buffers)
            for name, held in named(recurse=False, remove_duplicate=False)
            if id(held) in value_of
        }

    def output(self, batch: Any) -> Any:
        """What the model returns, without graphs."""
        return map_tensors(torch.Tensor.detach, self.run(self.values, self._lent(batch), lambda z: z))

    def split(self, v: torch.Tensor | Signs) -> tuple[torch.Tensor, ...]:
        """A vector (P,) as tangents shaped like the parameters, in the products' dtypes: its memory where that is its own."""
        values = list(self.values.values())
        if isinstance(v, Signs):  # piece by piece, so that the vector itself is never there
            ends = np.cumsum([p.numel() for p in values])
            return tuple(
                torch.empty(p.shape, dtype=p.dtype, device=p.device).copy_(v[end - p.numel() : end].view(p.shape))
                for end, p in zip(ends.tolist(), values, strict=True)
            )
        pieces = v.split([p.numel() for p in values])
        return tuple(linearize.unviewed(piece.view_as(p)).to(p.dtype) for piece, p in zip(pieces, values, strict=True))

    def _fresh_buffers(self) -> dict[str, torch.Tensor]:
        """Clones of the buffers: of the sweep, made outside of any transform; of one call where forward writes into them.

        What is cloned inside a transform of torch.func belongs to its level, and is not to be seen by a later one.
        """
        self._writes = self._writes or any(private.version(buffer) for buffer in (self._clones or {}).values())
        return self._cloned() if self._writes or self._clones is None else self._clones

    def _cloned(self) -> dict[str, torch.Tensor]:
        return {name: self._cast(b.detach()).clone() for name, b in self.model.named_buffers()}

    def select(self, output: Any, batch: Any) -> torch.Tensor:
        """What `of` names, flattened per sample to (B, k)."""
        if callable(self.of):
            z = self.of(output, repacked(batch))
        elif self.of == "logits":
            z = output_tensor(output)
        elif self.of == "probs":
            z = probabilities(output)
        else:
            z = self.loss.means(output, batch) if self.of == "loss" else self.loss.sums(output, batch)
        first = self.samples.first(batch)
        if not isinstance(z, torch.Tensor) or z.ndim == 0 or (first is not None and z.shape[0] != first.shape[0]):
            shape = tuple(z.shape) if isinstance(z, torch.Tensor) else type(z).__name__
            size = "B" if first is None else first.shape[0]
            raise ValueError(
                f"the output is {shape}, but its first axis must be the {size} samples of the batch; let forward= or of= return"
                " a row for each, or name entries that belong to none by shared=."
            )
        if not z.is_floating_point():
            raise TypeError(
                f"the output is {z.dtype}, which has no real derivative; pass of= or forward= that gives real numbers."
            )
        return z.reshape(z.shape[0], math.prod(z.shape[1:]))

    def describe(self) -> dict[str, Any]:
        """Everything that defines the function, as plain JSON."""
        names, untested = self.names, "; ".join(f"{what}: {why}" for what, why in self.untested.items())
        return {
            "model": type(self.model).__name__,
            "of": self.of if isinstance(self.of, str) else _name(self.of),
            **({} if self.loss.given is None else {"loss": _name(self.loss.given)}),
            **self.loss.describe(),
            "wrt": self.wrt,
            "mode": "eval",
            **({"statistics": self.statistics} if self.statistics != "population" else {}),
            **({"shared": list(self.samples.shared)} if self.samples.shared else {}),
            "samples": sum(part.n for part in self.info.parts),
            "batches": sum(bool(mark) for part in self.info.parts for mark in part.fingerprints),
            "parameters": names if len(names) <= 8 else [*names[:4], f"... {len(names) - 8} more ...", *names[-4:]],
            "product_dtype": arrays.dtype_name(self.compute_dtype),
            **({} if self.preflight else {"preflight": False}),
            **({"untested": untested} if untested else {}),
        }


def _ends(data: Any) -> bool:
    """Whether the data say how many batches they hold."""
    try:
        return len(data) >= 0
    except TypeError:
        return False


def _states(given: Any) -> list[Any]:
    """What a loss, an output function or a forward function keeps: attributes of an object that is called, and modules."""
    called = getattr(given, "__self__", given)  # of a method
    own = callable(given) and not isinstance(called, nn.Module | type) and getattr(called, "__dict__", None)
    modules = [thing for thing in model_state.walk([given], model_state.read) if isinstance(thing, nn.Module)]
    return [own, *modules] if own else modules


def near(a: torch.Tensor, b: torch.Tensor, allowed: float) -> bool:
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and longvectors.distance(a, b) <= allowed * longvectors.norm(b.reshape(-1))


def _name(function: Any) -> str:
    """What a callable or a loss module is, without its address in memory."""
    if isinstance(function, nn.Module):
        options = {key: value for key, value in vars(function).items() if isinstance(value, int | float)}
        settings = [f"{key}={value}" for key, value in sorted(options.items()) if key != "training"]
        return f"{type(function).__name__}({', '.join(settings)})"
    return getattr(function, "__qualname__", type(function).__name__)


def _backward(again: Callable[..., Any], node: Callable[[], Any], *gradients: torch.Tensor) -> Any:
    """A backward pass of the user's own, which may call the model again."""
    return again(type(node()).apply, node(), *gradients)


def _misfit(model: DataModel, index: int, batch: Any, problem: Exception) -> Exception:
    """One sentence for a batch that the model does not take."""
    if model.product_dtype is not None and isinstance(problem, RuntimeError):
        words = first_line(problem)
        return TypeError(
            f"the model does not run in product_dtype={model.product_dtype} ({words}); leave product_dtype= out."
        )
    kinds = {t.dtype for t in tensors(batch) if t.is_floating_point()} - {model.compute_dtype, *model.kinds}
    kinds = kinds if isinstance(problem, RuntimeError) else set()
    odd = [name for name, p in model.model.named_parameters() if not calling.has_derivatives(p)]
    if not kinds and not odd:
        kind = next((kind for kind in (TypeError, RuntimeError) if isinstance(problem, kind)), ValueError)
        own = model.call.run.given is calling.default_forward
        withheld = [key for key in batches.LABEL_KEYS if own and key in (fields(batch) or {})]
        without = f" without its {withheld[0]}, which a model is given with loss=None alone" if withheld else ""
        several = isinstance(batch, tuple | list) and bool(batch) and isinstance(batch[0], tuple | list)
        told = "model(*batch[0])" if several else "... that calls the model as it wants to be called"
        way = f"forward=lambda model, batch: {told}" if own else "another forward="
        way = "another of=" if own and callable(model.of) else way
        return kind(
            f"the model fails on batch {index} ({with_kind(problem)}); it must take what the "
            f"batch holds{without}, or pass {way}."
        )
    if not kinds:
        return TypeError(
            f"the model fails on batch {index} ({first_line(problem)}), and its parameter {odd[0]} is "
            f"{arrays.dtype_name(model.model.get_parameter(odd[0]).dtype)}; convert it to a dtype that forward takes."
        )
    listed = " and ".join(sorted(map(str, kinds)))
    return TypeError(f"batch {index} holds {listed}, but the model is {model.compute_dtype}; convert one of them.")
