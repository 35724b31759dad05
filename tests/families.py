"""Tiny models of the families that users bring, Hugging Face's and torch's own, with data; oracles by torch.autograd alone.

Hugging Face's need `transformers`, which the extra `dev` brings.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

TOKENS = 11
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
GQA = {**SMALL, "num_key_value_heads": 1, "vocab_size": TOKENS, "max_position_embeddings": 16}


@dataclass(frozen=True)
class Family:
    """A model, its data in one batch, its loss (None: its own), and how exact its float64 is."""

    build: Callable[[], nn.Module]
    data: Callable[[], dict[str, torch.Tensor]]
    loss: Any = None
    shift: bool = False
    tolerance: float = 1e-9
    hugging_face: bool = True

    def model(self) -> nn.Module:
        torch.manual_seed(3)
        model = self.build().double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))  # away from the initial zeros and ones
        return model

    def cut(self, sizes: tuple[int, ...]) -> list[Any]:
        """The data in batches of these sizes."""
        torch.manual_seed(4)
        parts = {key: value.split(list(sizes)) for key, value in self.data().items()}
        batches = [{key: pieces[i] for key, pieces in parts.items()} for i in range(len(sizes))]
        return batches if self.hugging_face else [tuple(batch.values()) for batch in batches]


# Models --------------------------------------------------------------------------------------------------------------
def made(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """A Hugging Face model by the names of its classes."""

    def build() -> nn.Module:
        import transformers

        settings = getattr(transformers, config)(bos_token_id=None, eos_token_id=None, **options)
        settings._experts_implementation = "eager"  # grouped matrix products know no float64
        return getattr(transformers, model)(settings)

    return build


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cell = kind(3, 4, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.cell(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, norm_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layer(x).mean(1))


class ConvNext(nn.Module):
    """Depthwise convolution, layer norm over channels, a wide GELU, a layer scale and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 2, 2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.LayerNorm(4)
        self.wide, self.back = nn.Linear(4, 8), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.scale * self.back(nn.functional.gelu(self.wide(h)))
        return self.out((x + h.permute(0, 3, 1, 2)).mean((2, 3)))


# Data ----------------------------------------------------------------------------------------------------------------
def text(n: int = 5, length: int = 4) -> dict[str, torch.Tensor]:
    """Token ids with padding at the right, which labels ignore; one sample counts no target at all."""
    ids = torch.randint(1, TOKENS, (n, length))
    mask = torch.ones_like(ids)
    for i in range(n):
        mask[i, length - i % 3 :] = 0
    labels = torch.where(mask == 1, ids, -100)
    labels[0, 2], labels[3] = -100, -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def unmasked() -> dict[str, torch.Tensor]:
    data = text()
    return {"input_ids": data["input_ids"], "labels": data["labels"]}


def masked_words() -> dict[str, torch.Tensor]:
    data = text()
    data["labels"] = torch.where(torch.rand(data["labels"].shape) < 0.6, data["labels"], -100)
    return data


def sentences() -> dict[str, torch.Tensor]:
    return {**text(), "labels": torch.randint(3, (5,))}


def translations() -> dict[str, torch.Tensor]:
    data = text()
    start = torch.zeros_like(data["labels"][:, :1])
    return {**data, "decoder_input_ids": torch.cat([start, data["labels"][:, :-1].clamp(min=0)], 1)}


def pictures(side: int = 8, channels: int = 1) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.randn(5, channels, side, side, dtype=torch.float64), "labels": torch.randint(3, (5,))
    }  # fmt: skip


def sequences(features: int) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {"x": torch.randn(5, 3, features, dtype=torch.float64), "y": torch.randint(3, (5,))}


T5 = {
    "vocab_size": TOKENS, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0,
}  # fmt: skip
GPT2 = {"vocab_size": TOKENS, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
VIT = {**SMALL, "image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
RESNET = {
    "num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1], "layer_type": "basic", "num_labels": 3,
}  # fmt: skip
BERT = {**SMALL, "vocab_size": TOKENS, "max_position_embeddings": 16}
EXPERTS = {**GQA, "num_local_experts": 3, "num_experts_per_tok": 2}
QWEN = {**GQA, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 6, "head_dim": 4}
PLAIN = {"loss": nn.CrossEntropyLoss(), "hugging_face": False}

FAMILIES = {
    "GPT-2": Family(made("GPT2LMHeadModel", "GPT2Config", **GPT2), text, shift=True),
    "GPT-2, no mask": Family(made("GPT2LMHeadModel", "GPT2Config", **GPT2), unmasked, shift=True),
    "Llama": Family(made("LlamaForCausalLM", "LlamaConfig", **GQA), text, shift=True, tolerance=1e-6),
    "BERT, masked words": Family(made("BertForMaskedLM", "BertConfig", **BERT), masked_words),
    "BERT, sentences": Family(made("BertForSequenceClassification", "BertConfig", **BERT, num_labels=3), sentences),
    "ViT": Family(made("ViTForImageClassification", "ViTConfig", **VIT), pictures),
    "T5": Family(made("T5ForConditionalGeneration", "T5Config", **T5), translations, tolerance=1e-6),
    "ResNet (in place)": Family(made("ResNetForImageClassification", "ResNetConfig", **RESNET), pictures),
    "Mixtral": Family(made("MixtralForCausalLM", "MixtralConfig", **EXPERTS), text, shift=True, tolerance=1e-6),
    "Qwen3-MoE": Family(made("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **QWEN), text, shift=True, tolerance=1e-6),
    "torch LSTM": Family(lambda: Recurrent(nn.LSTM), sequences(3), **PLAIN),
    "torch GRU": Family(lambda: Recurrent(nn.GRU), sequences(3), **PLAIN),
    "torch TransformerEncoderLayer": Family(Encoder, sequences(4), **PLAIN),
    "ConvNeXt block": Family(ConvNext, pictures, **PLAIN),
}


# Oracles -------------------------------------------------------------------------------------------------------------
class Oracle:
    """J, H, Gauss-Newton and Fisher matrices of all data as one batch, by reverse mode alone, at the model itself."""

    def __init__(self, family: Family) -> None:
        self.family, self.model = family, family.model().eval()
        (self.batch,) = family.cut((5,))
        self.leaves = [p for p in self.model.parameters() if p.requires_grad]
        with self.kernels():
            z = self.logits()
            self.outputs = z.detach()
            self.J = torch.stack([self._row(entry) for entry in z.reshape(-1)])
            self.G = torch.stack([self._row(total) for total in self.sums(self.logits())])
        self.count = float((self.targets != -100).sum())

    @staticmethod
    def kernels() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        return stack

    def logits(self) -> torch.Tensor:
        if not self.family.hugging_face:
            return self.model(self.batch[0])
        return self.model(**{key: value for key, value in self.batch.items() if key != "labels"}).logits

    @property
    def targets(self) -> torch.Tensor:
        labels = self.batch["labels"] if self.family.hugging_face else self.batch[1]
        return labels[:, 1:] if self.family.shift else labels

    def sums(self, z: torch.Tensor) -> torch.Tensor:
        """The summed cross entropy of each sample, written out."""
        z = z[:, :-1] if self.family.shift else z
        y = self.targets
        taken = z.log_softmax(-1).gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return -(taken * (y != -100)).reshape(len(z), -1).sum(1)

    def _row(self, entry: torch.Tensor) -> torch.Tensor:
        rows = torch.autograd.grad(entry, self.leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in rows])

    def input_jacobian(self) -> torch.Tensor:
        """(n k, d): rows of each sample with respect to its own inputs, or its token embeddings."""
        with self.kernels():
            if not self.family.hugging_face:
                x = self.batch[0].clone().requires_grad_()
                z = self.model(x)
            elif "pixel_values" in self.batch:
                x = self.batch["pixel_values"].clone().requires_grad_()
                z = self.model(pixel_values=x).logits
            else:
                x = self.model.get_input_embeddings()(self.batch["input_ids"]).detach().requires_grad_()
                rest = {key: value for key, value in self.batch.items() if key not in ("labels", "input_ids")}
                z = self.model(inputs_embeds=x, **rest).logits
            z = z.reshape(len(x), -1)
            rows = [
                torch.autograd.grad(z[i, c], x, retain_graph=True)[0][i]
                for i in range(len(z))
                for c in range(len(z[0]))
            ]
        return torch.stack(rows).reshape(z.numel(), -1)

    def gauss_newton(self) -> torch.Tensor:
        """J^T H J / N, which is the exact Fisher matrix too."""
        z = self.outputs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.sums(z).sum(), z, create_graph=True)
        rows = [torch.autograd.grad(g, z, retain_graph=True)[0].reshape(-1) for g in gradient.reshape(-1)]
        return self.J.T @ torch.stack(rows) @ self.J / self.count

    def empirical_fisher(self) -> torch.Tensor:
        return self.G.T @ self.G / self.count

    def hessian_products(self, V: torch.Tensor) -> torch.Tensor:
        """H V, a column each by a second backward pass."""
        with self.kernels():
            total = self.sums(self.logits()).sum() / self.count
            gradients = torch.autograd.grad(total, self.leaves, create_graph=True, materialize_grads=True)
            flat = torch.cat([g.reshape(-1) for g in gradients])
            return torch.stack([self._row(flat @ v) for v in V.T], 1)

    def own_loss(self) -> float:
        """What the model itself says about all data."""
        return float(self.model(**self.batch).loss.detach())
