"""Gradients of single samples, whose squares are the diagonal of sum_i J_i^T H_i J_i, and whose products are its blocks.

With H_i = sum_c w_ic r_ic r_ic^T and g_ic = J_i^T r_ic the matrix is sum_i sum_c w_ic g_ic g_ic^T: one backward pass for each
term, C a sample for a cross entropy of C classes.

Source: Dangel, Kunstner, Hennig (2020), BackPACK: packing more into backprop, ICLR.

Legend: B samples in a batch, q terms of each sample, k outputs, P parameters; r (B, q, k), w (B, q), g (rows, P).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from spectral import arrays, longvectors, probes
from spectral.engine import linearize, trace
from spectral.failures import first_line, is_own, with_kind
from spectral.networks.data_model import FAILURES, DataModel
from spectral.networks.diagnose.graph import graph_facts
from spectral.networks.output_curvature import Terms

ROOM = 256 << 20  # bytes of gradients that are held at a time
Rows = Iterator[tuple[torch.Tensor, list[torch.Tensor]]]  # weights (rows,), gradients (rows, p) of each parameter


@dataclass(frozen=True)
class Gradients:
    """How single samples' gradients are made: by vmap over samples, or one by one for `reason`."""

    model: DataModel
    reason: str = ""

    def describe(self) -> dict[str, Any]:
        return {"single_samples": f"one by one: {self.reason}" if self.reason else "vmap"}

    @property
    def entries(self) -> int:
        return sum(value.numel() for value in self.model.values.values())

    def add(self, batch: Any, terms: Terms, total: torch.Tensor, z: torch.Tensor) -> float:
        """total (P,) += sum of w g^2, or total (P, P) += sum of w g g^T, in float64; returns the sum of w (g . z)^2."""
        form, of_z = 0.0, z.split([value.numel() for value in self.model.values.values()])
        for w, g in self.rows(batch, terms):
            along = torch.stack([arrays.double(part) @ own for part, own in zip(g, of_z, strict=True)]).sum(0)
            form += float(w @ along.square())
            if total.ndim == 1:
                total += torch.cat([w @ arrays.double(part).square() for part in g])
            else:
                wide = arrays.double(torch.cat(g, 1))
                total.addmm_((w[:, None] * wide).T, wide)
        return form

    def rows(self, batch: Any, terms: Terms) -> Rows:
        """The gradients of a batch's samples, one after another, as many as there is room for; of inputs term by term."""
        some, size = terms.there(), len(terms.weights)
        if self.model.wrt != "params":  # samples are separate, so that one backward pass has a term of all
            lin = linearize.ForwardMode(self.model.function(batch), self.model.primals(batch))
            for c in some:
                pulled = lin.vjp(terms.vectors(c[None], slice(None))[:, 0])
                yield arrays.double(terms.weights[:, c]), [pulled[0].reshape(size, -1)]
            return
        if self.reason:
            yield from self._one_by_one(batch, terms, some)
            return
        width = max(1, ROOM // max(1, self.entries * self.model.compute_dtype.itemsize))  # gradients at a time
        each = max(1, width // max(1, len(some)))
        for start in range(0, size, each):
            samples = slice(start, min(start + each, size))
            part = self.model.samples.rows(batch, size, samples.start, samples.stop)
            for which in some.split(width):
                w = arrays.double(terms.weights[samples, which]).reshape(-1)
                yield w, self._vectorised(part, terms.vectors(which, samples))

    def _vectorised(self, batch: Any, r: torch.Tensor) -> list[torch.Tensor]:
        primals = self.model.primals(batch)
        per_sample, rebuilt = self.model.samples.apart(batch, len(r))

        def one(parts: list[torch.Tensor], r: torch.Tensor) -> tuple[torch.Tensor, ...]:
            function = self.model.function(rebuilt([part.unsqueeze(0) for part in parts]))
            pull = torch.func.vjp(lambda *p: function(*p)[0], *primals)[1]
            return trace.vmap(pull)(r)

        with linearize.math_attention():  # the fused one has no batching rule
            pulled = trace.vmap(one)(per_sample, r)
        return [g.detach().reshape(len(r) * r.shape[1], -1) for g in pulled]

    def _one_by_one(self, batch: Any, terms: Terms, some: torch.Tensor) -> Rows:
        for i, w in enumerate(terms.weights):
            single = self.model.samples.rows(batch, len(terms.weights), i, i + 1)
            lin = linearize.ForwardMode(self.model.function(single), self.model.primals(single))
            for c in some[w[some] != 0]:
                pulled = lin.vjp(terms.vectors(c[None], slice(i, i + 1))[:, 0])
                yield arrays.double(w[c][None]), [g.reshape(1, -1) for g in pulled]


def chosen(model: DataModel, batch: Any, terms: Terms) -> Gradients:
    """By vmap, if it gives on two samples of this batch what they give one by one: a random combination of all gradients.

    Each has a coefficient of its own, so that another order or sign shows as another entry does, and one vector is held.
    """
    few = slice(0, min(2, len(terms.weights)))
    two = model.samples.rows(batch, len(terms.weights), 0, few.stop)
    coefficients = probes.probe(0, 0, terms.weights[few].numel(), device=arrays.float64_device(model.device))

    def combined(how: Gradients) -> torch.Tensor:
        total, at = arrays.double_zeros((how.entries,), model.device), 0
        for w, g in how.rows(two, terms.of(few)):
            there = w != 0  # one by one makes no others
            c = coefficients[at : at + int(there.sum())] * w[there].abs().sqrt()
            total += torch.cat([c @ arrays.double(part[there]) for part in g])
            at += len(c)
        return total

    try:
        due = combined(Gradients(model, "asked for"))
    except FAILURES as failure:
        if is_own(failure):
            raise
        raise ValueError(
            f"the model fails on a single sample of a batch ({with_kind(failure)}), so that rows and "
            "gradients of single samples are not made; use products (slq, trace, top), which are of whole batches."
        ) from failure
    try:
        got = combined(Gradients(model))
    except (RuntimeError, ValueError, TypeError) as failure:
        return Gradients(model, f"vmap: {first_line(failure)}")
    off, size = longvectors.distance(got, due), longvectors.norm(due)
    allowed = arrays.discrepancy(graph_facts(model.function(two), model.primals(two)).dtype)
    return Gradients(model, "" if off <= allowed * size else f"vmap differs by {off / (size or 1.0):.1e}")
