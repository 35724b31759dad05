"""A model and its data as pure functions of what is differentiated.

`DataModel` gives, for each batch, a function primals -> outputs (B, k) and the primals at which it is linearised. It sees to
it that a sweep over the data leaves no trace: eval mode is set and handed back module by module, buffers are cloned, no
gradient is written, and every global random state is as before. Each sweep replays the random state of the first, so that a
shuffling loader visits the samples in one fixed order.

Legend: n samples, B in a batch, k outputs per sample, d input features, P parameters.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from spectral.networks.batches import (
    check_data,
    differentiable_kernels,
    evaluation,
    fingerprint,
    first_tensor,
    is_finite,
    random_state,
    set_random_state,
    signature,
    tensors,
)
from spectral.networks.diagnose import checks
from spectral.networks.losses import LABEL_KEYS, output_tensor, per_sample_loss

INPUT_KEYS = ("inputs_embeds", "pixel_values", "input_values", "input_features", "inputs", "x")
OF = ("logits", "probs", "loss")
WRT = ("params", "inputs")


@dataclass(frozen=True)
class DatasetInfo:
    """What one forward sweep tells of the data: samples and outputs per batch, a fingerprint to recognise each, and its form."""

    samples: list[int]
    outputs: list[int]
    feature_shape: tuple[int, ...] | None
    fingerprints: list[float] = field(repr=False)
    signatures: list[Any] = field(repr=False)

    @property
    def n(self) -> int:
        return sum(self.samples)


def select_parameters(model: nn.Module, params: list[str] | None) -> dict[str, nn.Parameter]:
    """The parameters that are differentiated: those that require a gradient, or all that match the name globs `params`."""
    named = dict(model.named_parameters())  # deduplicated: tied weights count once
    if params is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise ValueError("the model has no parameter that requires a gradient; name some with params=['*'].")
        return chosen
    if isinstance(params, str):
        raise TypeError(f"params={params!r} is a string; pass a list of name globs, such as [{params!r}].")
    for glob in params:
        if not fnmatch.filter(named, glob):
            raise ValueError(f"params: {glob!r} matches no parameter; the names are {', '.join(list(named)[:12])}, ...")
    chosen = {name: p for name, p in named.items() if any(fnmatch.fnmatchcase(name, glob) for glob in params)}
    if not chosen:
        raise ValueError("params=[] names no parameter; leave it out for all that require a gradient.")
    return chosen


def default_forward(model: nn.Module, batch: Any) -> Any:
    """model(x) for a tensor or a tuple (x, ...), model(**batch) without its labels (LABEL_KEYS) for a mapping."""
    if isinstance(batch, torch.Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**{key: value for key, value in batch.items() if key not in LABEL_KEYS})
    return model(batch[0])


def probabilities(output: Any) -> torch.Tensor:
    """Softmax over the classes: the last axis of (B, C), or of the logits of a mapping's model."""
    logits = output_tensor(output)
    if logits is output and logits.ndim != 2:
        raise ValueError(
            f"of='probs' of an output of shape {tuple(logits.shape)} is ambiguous; pass a callable that says which axis holds "
            "the classes, such as of=lambda output, batch: output.softmax(1)."
        )
    if logits.shape[-1] == 1:
        raise ValueError("of='probs' of a single logit is constant; pass of=lambda output, batch: output.sigmoid().")
    return logits.softmax(-1)


class _Call(nn.Module):
    """`forward(model, batch)` as a module, so that any forward can run on substituted parameters."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model = model
        self.run = forward

    def forward(self, batch: Any) -> Any:
        return self.run(self.model, batch)


class DataModel:
    """(model, data) as functions of the parameters or of the inputs; see the module's docstring."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        of: str | Callable[[Any, Any], torch.Tensor] = "logits",
        wrt: str = "params",
        forward: Callable[[nn.Module, Any], Any] | None = None,
        loss: Any = None,
        params: list[str] | None = None,
        product_dtype: torch.dtype | None = None,
        preflight: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; pass a torch.nn.Module (wrap a function in one).")
        if not callable(of) and of not in OF:
            raise ValueError(
                f"of={of!r} is no output; use one of {', '.join(OF)} or a callable(output, batch) -> (B, k)."
            )
        if wrt not in WRT:
            raise ValueError(f"wrt={wrt!r} is no variable; use 'params' or 'inputs'.")
        if of == "loss" and loss is None:
            raise ValueError("of='loss' needs loss=: a torch loss module or a callable(output, batch) -> (sum, count).")
        if wrt == "inputs" and params is not None:
            raise ValueError("params= restricts wrt='params'; leave it out with wrt='inputs'.")
        check_data(data)
        checks.check_model(model)
        self.model, self.data, self.of, self.wrt, self.loss = model, data, of, wrt, loss
        self.call = _Call(model, forward or default_forward)
        self.product_dtype, self.preflight = product_dtype, preflight
        self.untested = ""  # what the preflight could not test on this model
        self.parameters = select_parameters(model, params) if wrt == "params" else {}
        self.state = random_state(data)
        self.sweeps = 0  # passes over the data so far, the first one (a forward pass for the sizes) included
        self._survey: DatasetInfo | None = None
        self._buffers: dict[str, torch.Tensor] = {}
        self._set_dtype(model)

    def _set_dtype(self, model: nn.Module) -> None:
        floating = list(self.parameters.values()) or [p for p in model.parameters() if p.is_floating_point()]
        kinds = {(p.dtype, p.device) for p in floating}
        if len(kinds) > 1:
            listed = ", ".join(f"{dtype} on {device}" for dtype, device in sorted(kinds, key=str))
            raise TypeError(f"the parameters are of several kinds ({listed}); choose one kind by params=[...].")
        if kinds:
            self.dtype, self.device = kinds.pop()
        else:  # a model without parameters takes what its inputs are
            batch = self.first_batch()
            x = None if batch is None else first_tensor(batch)
            self.dtype, self.device = (
                (torch.get_default_dtype(), torch.device("cpu")) if x is None else (x.dtype, x.device)
            )
        if not self.dtype.is_floating_point:
            raise TypeError(
                f"derivatives need floating point, but the model or its inputs are {self.dtype}; convert them."
            )
        if self.product_dtype is not None and not self.product_dtype.is_floating_point:
            raise TypeError(
                f"product_dtype={self.product_dtype} is not floating point; use torch.bfloat16, for example."
            )
        self.compute_dtype = self.product_dtype or self.dtype
        self.values: dict[str, torch.Tensor] = {}
        self.frozen: dict[str, torch.Tensor] = {}
        self._read_parameters()

    def _read_parameters(self) -> None:
        """The parameters as they are now, in the dtype of the products."""
        if self.compute_dtype == self.dtype:
            self.values = {name: p.detach() for name, p in self.parameters.items()}
        else:
            cast = {
                name: p.detach().to(self.compute_dtype if p.is_floating_point() else p.dtype)
                for name, p in self.model.named_parameters()
            }
            self.values = {name: cast[name] for name in self.parameters}
            self.frozen = {name: value for name, value in cast.items() if name not in self.values}

    def first_batch(self) -> Any:
        """The first batch as the data give it in every sweep, None if there is none; the random state as before."""
        before = random_state(self.data)
        set_random_state(self.data, self.state)
        batch = next(iter(self.data), None)
        set_random_state(self.data, before)
        return batch

    def restricted(self, names: list[str]) -> Any:
        """The same functions of the named parameters alone: what the survey found is shared, sweeps are counted anew."""
        part = copy.copy(self)
        part.parameters = {name: self.parameters[name] for name in names}
        part.values = {name: self.values[name] for name in names}
        if self.compute_dtype != self.dtype:
            part.frozen = {**self.frozen, **{name: p for name, p in self.values.items() if name not in part.values}}
        part.sweeps, part._survey, part._buffers = 0, self.survey, {}
        return part

    # Sweeps ----------------------------------------------------------------------------------------------------------
    @contextmanager
    def sweep(self, fingerprints: list[float] | None = None) -> Iterator[Iterator[tuple[int, Any]]]:
        """One pass over the data: yields an iterator of (index, batch on our device), in eval mode, leaving no trace.

        The first pass records the batches' `fingerprints`, the later ones hold every batch against them. Each pass sees the
        model as it is when it begins.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "torch.inference_mode() records no derivatives; leave it for spectral (torch.no_grad() is fine)."
            )
        self._read_parameters()
        self._buffers = {}
        before = random_state(self.data)
        held = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        self.sweeps += 1
        with evaluation(self.model), torch.enable_grad(), differentiable_kernels():
            set_random_state(self.data, self.state)
            try:
                yield self._batches(fingerprints)
            finally:
                set_random_state(self.data, before)
                for buffer, value in held:  # activation checkpointing runs forward again with the model's own buffers
                    if not torch.equal(buffer, value):
                        buffer.detach().copy_(value)

    def _batches(self, fingerprints: list[float] | None) -> Iterator[tuple[int, Any]]:
        known = self.survey.fingerprints if fingerprints is None else None
        index = -1
        for index, batch in enumerate(self.data):
            mark = fingerprint(batch)
            if fingerprints is not None:
                fingerprints.append(mark)
            elif known is not None and (index >= len(known) or mark != known[index]):
                raise ValueError(
                    f"batch {index} is not what it was in the first sweep, so the products would be of another matrix; "
                    "use a loader that gives the same batches each time (no random augmentation)."
                )
            yield index, self._place(batch)
        if known is not None and index + 1 != len(known):
            raise ValueError(
                f"the data held {len(known)} batches in the first sweep and {index + 1} now; pass a list of batches or a "
                "loader that gives the same batches each time."
            )

    def _place(self, batch: Any) -> Any:
        if first_tensor(batch) is None:
            raise TypeError(
                f"a batch is a {type(batch).__name__} that holds no tensor; pass tensors, tuples (x, y) or mappings of tensors."
            )
        if isinstance(batch, Mapping):
            batch = dict(batch)  # tree_map does not look into a Hugging Face BatchEncoding
        batch = tree_map_only(torch.Tensor, lambda t: t.to(self.device), batch)
        if self.compute_dtype != self.dtype:
            batch = tree_map_only(
                torch.Tensor, lambda t: t.to(self.compute_dtype) if t.dtype == self.dtype else t, batch
            )
        return batch

    @property
    def survey(self) -> DatasetInfo:
        """Sizes of all batches, from one forward sweep on first use (which also finds NaN and an empty data set)."""
        if self._survey is None:
            samples: list[int] = []
            outputs: list[int] = []
            fingerprints: list[float] = []
            signatures: list[Any] = []
            shape: tuple[int, ...] | None = None
            with self.sweep(fingerprints) as batches, torch.no_grad():
                for index, batch in batches:
                    z = self._checked_outputs(index, batch)
                    samples.append(z.shape[0])
                    outputs.append(z.shape[1])
                    signatures.append(signature(batch))
                    if self.wrt == "inputs":
                        shape = self._checked_shape(index, batch, shape)
            if not samples:
                raise ValueError("data holds no batches; pass at least one batch.")
            self._survey = DatasetInfo(samples, outputs, shape, fingerprints, signatures)
        return self._survey

    def _checked_shape(self, index: int, batch: Any, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        x = self._inputs(batch)
        if x.dtype != self.compute_dtype:
            raise TypeError(f"the inputs are {x.dtype} but the model is {self.compute_dtype}; convert one of them.")
        if shape is not None and tuple(x.shape[1:]) != shape:
            raise ValueError(
                f"wrt='inputs' needs inputs of one shape, but batch {index} has {tuple(x.shape[1:])} after {shape}; pad or "
                "crop them."
            )
        return tuple(x.shape[1:])

    def _checked_outputs(self, index: int, batch: Any) -> torch.Tensor:
        """Outputs (B, k) of a batch, finite."""
        try:
            z = self.function(batch)(*self.primals(batch))
        except RuntimeError as problem:
            kinds = {t.dtype for t in tensors(batch) if t.is_floating_point()} - {self.compute_dtype}
            if not kinds:
                raise
            listed = " and ".join(sorted(map(str, kinds)))
            raise TypeError(
                f"batch {index} holds {listed}, but the model is {self.compute_dtype}; convert one of them."
            ) from problem
        if not torch.isfinite(z).all():
            raise ValueError(self._nonfinite(index, batch))
        if index == 0 and self.preflight:
            self.untested = checks.check_batch(self, batch, z)
        return z

    def _nonfinite(self, index: int, batch: Any) -> str:
        """The sentence for a batch whose outputs are not finite."""
        if not is_finite(batch):
            return f"the data hold NaN or infinity in batch {index}; remove those samples."
        culprit = checks.first_nonfinite_module(self, batch)
        first = "" if culprit is None else f", first in {culprit}"
        return f"the model returns NaN or infinity in batch {index}{first}; remove those samples or mend the model."

    def adds_up(self, parts: list[Any], whole: Any, allowed: float) -> bool:
        """Whether a batch of several gives what they give one by one, up to the relative error `allowed`."""
        z = torch.cat([self.function(part)(*self.primals(part)) for part in parts])
        return _near(self.function(whole)(*self.primals(whole)), z, allowed)

    # Functions -------------------------------------------------------------------------------------------------------
    def primals(self, batch: Any) -> tuple[torch.Tensor, ...]:
        """What is differentiated on this batch: the parameters, or the inputs (B, ...)."""
        if self.wrt == "params":
            return tuple(self.values.values())
        return (self._inputs(batch),)

    def _inputs(self, batch: Any) -> torch.Tensor:
        if isinstance(batch, Mapping):
            key = next((key for key in INPUT_KEYS if key in batch), None)
            if key is None and "input_ids" in batch and hasattr(self.model, "get_input_embeddings"):
                with torch.no_grad():
                    embedding: Any = self.model.get_input_embeddings
                    return embedding()(batch["input_ids"]).to(self.compute_dtype)
            if key is None:
                raise ValueError(
                    f"wrt='inputs' finds no inputs among the keys {', '.join(map(str, batch))}; name the floating input one of "
                    f"{', '.join(INPUT_KEYS)}."
                )
            x = batch[key]
        else:
            x = batch if isinstance(batch, torch.Tensor) else batch[0]
        if not x.is_floating_point():
            raise TypeError(
                f"the inputs are {x.dtype}, which has no derivative; pass floating inputs, or a Hugging Face model, whose "
                "embeddings are differentiated."
            )
        return x

    def _with_inputs(self, batch: Any, x: torch.Tensor) -> Any:
        if isinstance(batch, torch.Tensor):
            return x
        if isinstance(batch, Mapping):
            key = next((key for key in INPUT_KEYS if key in batch), "inputs_embeds")
            rest = {name: value for name, value in batch.items() if name not in (key, "input_ids")}
            return {**rest, key: x}
        return (x, *batch[1:])

    def function(self, batch: Any) -> Callable[..., torch.Tensor]:
        """The pure function primals -> outputs (B, k) of this batch."""
        if self.wrt == "params":
            return lambda *values: self.outputs(dict(zip(self.values, values, strict=True)), batch)
        return lambda x: self.outputs({}, self._with_inputs(batch, x))

    def outputs(self, values: Mapping[str, torch.Tensor], batch: Any) -> torch.Tensor:
        """Outputs (B, k) with the parameters `values` in the place of the model's own."""
        return self.select(self.raw(values, batch), batch)

    def raw(self, values: Mapping[str, torch.Tensor], batch: Any) -> Any:
        """What the model itself returns, with the parameters `values` in the place of its own."""
        substituted = {f"model.{name}": value for name, value in {**self.frozen, **values}.items()}
        buffers = {f"model.{name}": b for name, b in self._fresh_buffers().items()}
        return torch.func.functional_call(self.call, {**substituted, **buffers}, (batch,))

    def split(self, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A vector (P,) as tangents shaped like the parameters, in the dtype of the products."""
        values = list(self.values.values())
        pieces = v.to(self.compute_dtype).split([p.numel() for p in values])
        return tuple(piece.view_as(p) for piece, p in zip(pieces, values, strict=True))

    def versions(self) -> tuple[tuple[int, int], ...]:
        """Changes with every write into a parameter or buffer: what was kept of the model before is then stale."""
        return tuple((t.data_ptr(), t._version) for t in (*self.model.parameters(), *self.model.buffers()))

    def _fresh_buffers(self) -> dict[str, torch.Tensor]:
        """Clones of the buffers, cloned anew only after a forward has written into them."""
        if not self._buffers or any(buffer._version for buffer in self._buffers.values()):
            self._buffers = {}
            for name, buffer in self.model.named_buffers():
                cast = self.compute_dtype if buffer.dtype == self.dtype else buffer.dtype
                self._buffers[name] = buffer.detach().to(cast, copy=True)
        return self._buffers

    def select(self, output: Any, batch: Any) -> torch.Tensor:
        """What `of` names, flattened per sample to (B, k)."""
        if callable(self.of):
            z = self.of(output, batch)
        elif self.of == "logits":
            z = output_tensor(output)
        elif self.of == "probs":
            z = probabilities(output)
        else:
            z = per_sample_loss(self.loss, output, batch)
        first = first_tensor(batch)
        if not isinstance(z, torch.Tensor) or z.ndim == 0 or (first is not None and z.shape[0] != first.shape[0]):
            shape = tuple(z.shape) if isinstance(z, torch.Tensor) else type(z).__name__
            size = "B" if first is None else first.shape[0]
            raise ValueError(f"the output is {shape}, but its first axis must be the {size} samples of the batch.")
        if not z.is_floating_point():
            raise TypeError(
                f"the output is {z.dtype}, which has no real derivative; pass of= or forward= that gives real numbers."
            )
        return z.reshape(z.shape[0], -1)

    def describe(self) -> dict[str, Any]:
        """Everything that defines the function, as plain JSON."""
        names = list(self.parameters)
        return {
            "model": type(self.model).__name__,
            "of": self.of if isinstance(self.of, str) else _name(self.of),
            **({} if self.loss is None else {"loss": _name(self.loss)}),
            "wrt": self.wrt,
            "mode": "eval",
            "samples": self.survey.n,
            "batches": len(self.survey.samples),
            "parameters": names if len(names) <= 8 else [*names[:4], f"... {len(names) - 8} more ...", *names[-4:]],
            "product_dtype": str(self.compute_dtype).removeprefix("torch."),
            **({} if self.preflight else {"preflight": False}),
            **({"untested": self.untested} if self.untested else {}),
        }


def _near(a: torch.Tensor, b: torch.Tensor, allowed: float) -> bool:
    return a.shape == b.shape and bool((a - b).double().norm() <= allowed * b.double().norm())


def _name(function: Any) -> str:
    """What a callable or a loss module is, without its address in memory."""
    if isinstance(function, nn.Module):
        options = {key: value for key, value in vars(function).items() if isinstance(value, int | float)}
        settings = [f"{key}={value}" for key, value in sorted(options.items()) if key != "training"]
        return f"{type(function).__name__}({', '.join(settings)})"
    return getattr(function, "__qualname__", type(function).__name__)
