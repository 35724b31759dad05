"""Curvature in the space of the outputs: products with the loss's Hessian and with the Fisher matrix, target by target.

z are a batch's outputs in the model's own shape; every function returns U (B, k) -> scale H U (B, k), U flattened per sample.

The Hessian of cross entropy is known: w (diag(p) - p p^T) for each target, p = softmax(z), w what the target weighs
(`Loss.class_mass`). Beside z and U it needs a chunk of targets at a time. All other losses are differentiated twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectral import arrays, longvectors, probes
from spectral.engine import linearize, trace
from spectral.networks.learned_loss import Loss
from spectral.networks.loss_model import LossModel, apart, joined
from spectral.networks.losses import ELEMENTWISE

Product = Callable[[torch.Tensor], torch.Tensor]
CONVEX = (
    nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
)  # fmt: skip
ENTRYWISE = (*ELEMENTWISE, nn.BCEWithLogitsLoss)  # whose Hessian is diagonal in the outputs
PREDICTIVE = (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss)


def check_predictive(loss: Any) -> None:
    """One sentence for a loss that names no predictive distribution."""
    plain = getattr(loss, "weight", None) is None and getattr(loss, "pos_weight", None) is None
    if loss is None or (type(loss) in PREDICTIVE and (plain or isinstance(loss, nn.CrossEntropyLoss))):
        return
    called = getattr(loss, "__qualname__", repr(loss))
    names = ", ".join(kind.__name__ for kind in PREDICTIVE)
    raise ValueError(
        f"loss={called} names no predictive distribution; Fisher knows {names} (weights with CrossEntropyLoss only) and None, "
        "the model's own cross entropy; use GaussNewton or EmpiricalFisher for other losses."
    )


# The closed form of cross entropy -------------------------------------------------------------------------------------
def cross_entropy_hessian(loss: Loss, z: torch.Tensor, batch: Any, scale: float = 1.0) -> Product:
    """Products with the Hessian of the summed cross entropy of the batch with respect to the logits."""
    return softmax_hessian(z, loss.class_axis(z), scale * loss.class_mass(batch, z))


def softmax_hessian(z: torch.Tensor, axis: int, mass: torch.Tensor) -> Product:
    """Products with m (diag(p) - p p^T) of each target; p = softmax(z) over `axis`, `mass` m (...), shaped like z without it.

    Cost: a softmax and its derivative, a chunk of targets at a time, so that nothing but the result is as large as z. A
    program that is being recorded keeps p whole, which is then as large as z, and multiplies by it in one pass.
    """
    m = mass.unsqueeze(axis).to(z)

    def whole(z: torch.Tensor, m: torch.Tensor, V: torch.Tensor, axis: int) -> torch.Tensor:
        return linearize.softmax_pullback(z.softmax(axis), V, axis).mul_(m)

    def product(U: torch.Tensor) -> torch.Tensor:
        V = U.reshape(z.shape)
        if trace.recording() or z.numel() <= longvectors.chunk(z.device):
            return whole(z, m, V, axis).reshape(U.shape)
        H_V = torch.empty_like(V)
        z_, m_, V_, H_V_ = (t.movedim(axis, -1) for t in (z, m, V, H_V))
        for part in chunks(z_.shape, longvectors.chunk(z.device)):
            H_V_[part] = whole(z_[part], m_[part], V_[part], -1)
        return H_V.reshape(U.shape)

    return product


def chunks(shape: Sequence[int], entries: int | None = None) -> Iterator[tuple[Any, ...]]:
    """Indices of parts of a tensor that have about `entries` (`longvectors.CHUNK`) each; its last axis stays whole."""
    width = (entries or longvectors.CHUNK) // math.prod(shape[1:])
    if len(shape) == 1:
        yield ()
    elif width > 1:
        yield from ((slice(start, start + width),) for start in range(0, shape[0], width))
    else:
        yield from ((i, *part) for i in range(shape[0]) for part in chunks(shape[1:], entries))


# As sums of squares ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Terms:
    """H_i = sum_c w_ic r_ic r_ic^T of a batch's samples: w (B, q), and `vectors(which, samples)` -> r (samples, |which|, k)."""

    weights: torch.Tensor
    vectors: Callable[[torch.Tensor, slice], torch.Tensor]

    def there(self) -> torch.Tensor:
        """The terms that have a weight in some sample: masked targets have none."""
        return (self.weights != 0).any(0).nonzero()[:, 0]

    def of(self, samples: slice) -> Terms:
        """Those of the first samples."""
        return Terms(self.weights[samples], lambda which, inner: self.vectors(which, samples)[inner])


def softmax_terms(z: torch.Tensor, axis: int, mass: torch.Tensor) -> Terms:
    """m (diag(p) - p p^T) = sum_c m p_c (e_c - p) (e_c - p)^T of each target: C terms for each, scores of its classes."""
    p = z.softmax(axis).movedim(axis, -1)
    classes, shape = p.shape[-1], p.shape[1:]
    weights = (mass.to(p).unsqueeze(-1) * p).reshape(len(z), -1)
    p = p.reshape(len(z), -1, classes)

    def vectors(which: torch.Tensor, samples: slice) -> torch.Tensor:
        targets, c, order = which // classes, which % classes, torch.arange(len(which), device=z.device)
        r = p.new_zeros(len(p[samples]), len(which), *p.shape[1:])
        r[:, order, targets] = -p[samples][:, targets]
        r[:, order, targets, c] += 1
        return r.reshape(*r.shape[:2], *shape).movedim(-1, axis + 1).reshape(*r.shape[:2], -1)

    return Terms(weights, vectors)


def diagonal_terms(product: Product, z: torch.Tensor) -> Terms:
    """Of a diagonal H: a term for each of the outputs z (B, k)."""

    def vectors(which: torch.Tensor, samples: slice) -> torch.Tensor:
        return torch.eye(z.shape[1], dtype=z.dtype, device=z.device)[which].expand(len(z[samples]), -1, -1)

    return Terms(product(torch.ones_like(z)), vectors)


def spectral_terms(product: Product, z: torch.Tensor) -> Terms:
    """Of any H: its eigenvectors in the space of the outputs z (B, k), from k products and O(k^3) a sample."""
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    H = arrays.double(torch.stack([product(e.expand_as(z)) for e in eye], 1))
    values, Q = torch.linalg.eigh((H + H.mT) / 2)
    noise = z.shape[1] * arrays.machine_epsilon(z.dtype) * values.abs().amax(1, keepdim=True)
    return Terms(torch.where(values.abs() > noise, values, 0.0), lambda which, samples: Q.mT[samples][:, which].to(z))


# Other losses ---------------------------------------------------------------------------------------------------------
def loss_hessian(model: LossModel, output: Any, batch: Any, scale: float = 1.0) -> Product:
    """Products with the Hessian of the summed loss of the batch with respect to all that it reads of the output.

    By double backward through the loss, which runs with the model's parameters of now.
    """
    loss, heads = loss_of_heads(model, batch, lambda: output)
    gradient = linearize.ReverseOverReverse(loss, heads)
    return lambda U: scale * joined(gradient.jvp(apart(U, heads)), len(U))


def loss_of_heads(
    model: LossModel, batch: Any, outputs: Callable[[], Any]
) -> tuple[Callable[..., torch.Tensor], list[torch.Tensor]]:
    """The summed loss of the batch as a function of what it reads of the output; the output's own values there."""
    output = outputs()

    def loss(*heads: torch.Tensor) -> torch.Tensor:
        return model.run(model.values, batch, lambda z: model.loss(z, batch)[0], model.with_heads(output, heads))

    return loss, model.heads(output)


# Fisher matrices ------------------------------------------------------------------------------------------------------
def _targets(loss: Loss, z: torch.Tensor, batch: Any) -> tuple[int, torch.Tensor]:
    """(axis of the classes, or no axis: z.ndim; what each target counts, shaped like z without that axis)."""
    if loss.is_cross_entropy:
        return loss.class_axis(z), loss.class_counts(batch, z)
    return z.ndim, torch.ones_like(z)


def exact_fisher(loss: Loss, z: torch.Tensor, batch: Any, scale: float = 1.0) -> Product:
    """Products with E[s s^T], s the score of a label drawn from the model's prediction."""
    if isinstance(loss.given, nn.MSELoss):
        return lambda U: (2 * scale) * U
    if isinstance(loss.given, nn.BCEWithLogitsLoss):
        variance = scale * (z.sigmoid() * (-z).sigmoid()).reshape(len(z), -1)
        return lambda U: variance * U
    axis, counts = _targets(loss, z, batch)
    return softmax_hessian(z, axis, scale * counts)


def sampled_fisher(
    loss: Loss, z: torch.Tensor, batch: Any, draws: int, seed: int, first: int, scale: float = 1.0
) -> Product:
    """Products with the mean of s s^T over `draws` labels for each target, drawn by (seed, sample) alone."""
    axis, counts = _targets(loss, z, batch)
    scores = [_score(loss.given, z, axis, _uniform(counts, seed, first, draw)) for draw in range(draws)]
    if axis == z.ndim:
        square = (scale / draws * sum(s**2 for s in scores)).reshape(len(z), -1)  # type: ignore[union-attr]
        return lambda U: square * U

    def product(U: torch.Tensor) -> torch.Tensor:
        V = U.reshape(z.shape)
        total = sum(s * (s * V).sum(axis, keepdim=True) for s in scores)
        return (scale / draws * counts.unsqueeze(axis) * total).reshape(U.shape)

    return product


def _uniform(counts: torch.Tensor, seed: int, first: int, draw: int) -> torch.Tensor:
    """Uniform numbers shaped like the targets; those of sample i are a function of (seed, i, draw)."""
    each = counts[0].numel()
    rows = [
        probes.probe(seed, first + i, each, start=draw * each, kind="uniform", dtype=counts.dtype)
        for i in range(len(counts))
    ]
    return torch.stack(rows).reshape(counts.shape).to(counts.device)


def _score(loss: Any, z: torch.Tensor, axis: int, uniform: torch.Tensor) -> torch.Tensor:
    """The gradient of the loss with respect to z at a label drawn by the inverse distribution function."""
    if isinstance(loss, nn.MSELoss):
        return -2 * (0.5**0.5) * torch.special.ndtri(arrays.double(uniform).clamp(1e-16, 1 - 1e-16)).to(z)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        p = z.sigmoid()
        return p - (uniform < p).to(z)
    p = z.softmax(axis)
    above = p.cumsum(axis) > uniform.unsqueeze(axis)
    drawn = above.to(torch.int8).argmax(axis)  # the first class whose cumulated probability exceeds the number
    last = torch.full_like(drawn, z.shape[axis] - 1)
    drawn = torch.where(above.any(axis), drawn, last)
    return p - torch.zeros_like(p).scatter_(axis, drawn.unsqueeze(axis), 1.0)
