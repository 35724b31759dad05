"""Every architecture of transformers that can be made tiny without a download, against torch.autograd in float64.

    python benchmarks/architectures.py [--tasks causal masked] [--only llama mamba] [--json FILE]     # half an hour
    python benchmarks/architectures.py --show FILE     # the table of a stored run

Each class that transformers lists for a task is built from its own configuration with small sizes, moved away from its initial
values and cast to float32, which is what people have. One batch of three samples, text with padding. J v of the logits, H v and
G v of the model's own loss (`loss=None`) for one Gaussian v are held to float64: J v and H v by two backward passes, G v by the
closed form of cross entropy and a backward pass. Where torch's second derivative is not the difference of its gradients (fused
weight norm), H v is held to that. "right" is within TOLERANCE; a sentence of ours is "refused"; classes whose tiny configuration
does not build, or that need other inputs, are counted and named in the record. No test: it takes half an hour.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import environment
from peers import first_line
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.auto import modeling_auto

import spectral

TOLERANCE = 1e-3  # of a product in float32
STEP = 1e-2  # of the difference of gradients, along a v of length about 1
LARGEST = 1_000_000  # parameters
TOKENS, LENGTH = 13, 8
TASKS = {
    "causal": "CAUSAL_LM", "to sequence": "SEQ_TO_SEQ_CAUSAL_LM", "masked": "MASKED_LM", "sequence": "SEQUENCE_CLASSIFICATION",
    "token": "TOKEN_CLASSIFICATION", "choice": "MULTIPLE_CHOICE", "next sentence": "NEXT_SENTENCE_PREDICTION",
    "image": "IMAGE_CLASSIFICATION", "audio": "AUDIO_CLASSIFICATION", "video": "VIDEO_CLASSIFICATION",
}  # fmt: skip
WIDTHS = (
    "hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "embed_dim", "lru_width"
)  # fmt: skip
INNER = (
    "intermediate_size", "n_inner", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "ffn_hidden_size"
)  # fmt: skip
LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"
)  # fmt: skip
HEADS = (
    "num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads", "num_heads"
)  # fmt: skip
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "mamba_n_heads", "mamba_num_heads", "state_size")
SIZES: dict[str, Any] = {
    **dict.fromkeys(WIDTHS, 16), **dict.fromkeys(INNER, 24), **dict.fromkeys(LAYERS, 2), **dict.fromkeys(HEADS, 2),
    **dict.fromkeys(EXPERTS, 4), **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "mamba_head_dim", "mamba_d_head"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 32),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 12),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "linear_key_head_dim", "linear_value_head_dim", "laurel_rank"), 4),
    **dict.fromkeys(("mamba_d_state", "mamba_d_conv", "time_step_rank", "mamba_chunk_size", "chunk_size"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "num_mem_blocks", "num_random_blocks"), 1),
    **dict.fromkeys(("num_experts_per_tok", "expand", "mamba_expand", "type_vocab_size", "altup_num_inputs"), 2),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "num_key_value_groups", "num_feat_extract_layers"), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "attention_window", "sliding_window", "window_size"), 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), TOKENS), "hidden_size_per_layer_input": 4, "block_size": 4,
    "rotary_dim": 4, "mamba_d_ssm": 32, "num_buckets": 4, "attention_types": [[["global", "local"], 1]],
    "num_kv_shared_layers": 0,
    "layerdrop": 0.0, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "decoder_start_token_id": 0,
    "multi_query": False, "axial_pos_embds": False, "num_frames": 4, "image_size": 32, "patch_size": 4, "num_channels": 3,
    "hidden_sizes": [8] * 4, "depths": [1] * 4, "conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (5, 4),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types")
Tensors = list[torch.Tensor]


# Models and data ------------------------------------------------------------------------------------------------------
def shrink(config: Any) -> None:
    """Small sizes wherever the configuration, or one inside it, has them; two layers, of different kinds if there are some."""
    for name, size in SIZES.items():
        if name in vars(config) and isinstance(vars(config)[name], list | tuple) == isinstance(size, list | tuple):
            with suppress(Exception):  # it validates what it is given
                setattr(config, name, size)
    if {"qk_rope_head_dim", "head_dim"} <= {*vars(config)}:
        config.head_dim, config.num_key_value_heads = (
            config.qk_rope_head_dim,
            config.num_attention_heads,
        )  # latent attention
    for part in vars(config).values():
        if isinstance(part, transformers.PretrainedConfig):
            shrink(part)
    for name in KINDS:
        kinds = list(dict.fromkeys(vars(config).get(name) or ()))
        if kinds:
            setattr(config, name, (kinds * 2)[:2])


def build(task: str, kind: str) -> torch.nn.Module:
    """A tiny float64 model in eval mode, away from its initial zeros and ones."""
    listed = getattr(modeling_auto, f"MODEL_FOR_{TASKS[task]}_MAPPING_NAMES")[kind]
    settings = transformers.CONFIG_MAPPING[kind]
    known = {*inspect.signature(settings.__init__).parameters, *getattr(settings, "__dataclass_fields__", {})}
    try:
        config = settings(**{name: size for name, size in SIZES.items() if name in known - {"conv_kernel"}})
    except Exception:  # its own sizes depend on one another
        config = settings()
    shrink(config)
    config.use_cache, config._experts_implementation = False, "eager"  # grouped products know no float64
    if "CLASSIFICATION" in TASKS[task]:
        config.num_labels = 3
    torch.manual_seed(0)
    model = getattr(transformers, listed if isinstance(listed, str) else listed[0])(config)
    if (size := sum(p.numel() for p in model.parameters())) > LARGEST:
        raise MemoryError(f"{size} parameters")
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def batch_of(task: str, model: Any) -> dict[str, torch.Tensor]:
    """Three samples in float64; the second text is padded, where each token has a label."""
    torch.manual_seed(1)
    labels, ids = torch.tensor([0, 2, 1]), torch.randint(1, TOKENS - 1, (3, LENGTH))
    mask = torch.ones_like(ids)
    if task in ("image", "video"):
        side = getattr(model.config, "image_size", 32)
        side = side if isinstance(side, int) else side[0]
        frames = [getattr(model.config, "num_frames", 4)] if task == "video" else []
        picture = torch.randn(3, *frames, getattr(model.config, "num_channels", 3), side, side)
        return {"pixel_values": picture.double(), "labels": labels}
    if task == "audio":
        return {"input_values": torch.randn(3, 2000).double(), "labels": labels}
    if task == "choice":
        ids = torch.randint(1, TOKENS - 1, (3, 4, LENGTH))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if task in ("sequence", "next sentence"):
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels.clamp(max=1) if task != "sequence" else labels,
        }
    mask[1, -2:] = 0
    each = torch.randint(3, ids.shape) if task == "token" else ids
    data = {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(mask == 1, each, -100)}
    if task == "to sequence":
        data["labels"], data["decoder_input_ids"] = ids.roll(1, 1), torch.randint(1, TOKENS - 1, ids.shape)
    return data


# Oracles --------------------------------------------------------------------------------------------------------------
def flat(parts: Any, like: Tensors) -> torch.Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g.detach()).reshape(-1) for g, p in zip(parts, like, strict=True)]
    )


class Oracle:
    """Products of a float64 model with v, by backward passes alone."""

    def __init__(self, model: Any, data: dict[str, torch.Tensor]) -> None:
        self.model, self.data = model, data
        self.asked = {key: value for key, value in data.items() if key != "labels"}
        self.leaves = [p for p in model.parameters() if p.requires_grad]
        torch.manual_seed(2)
        size = sum(p.numel() for p in self.leaves)
        self.v = torch.randn(size, dtype=torch.float64) / size**0.5
        self.parts = [
            part.view_as(p) for part, p in zip(self.v.split([p.numel() for p in self.leaves]), self.leaves, strict=True)
        ]

    def _along(self, gradients: Any) -> torch.Tensor:
        return sum((g * t).sum() for g, t in zip(gradients, self.parts, strict=True) if g is not None)  # type: ignore[return-value]

    def _gradients(self, z: torch.Tensor, u: torch.Tensor | None = None, graph: bool = True) -> Any:
        return torch.autograd.grad(z, self.leaves, u, create_graph=graph, allow_unused=True)

    def jacobian(self) -> torch.Tensor:
        """J v in the form of the logits."""
        with sdpa_kernel(SDPBackend.MATH):
            z = self.model(**self.asked).logits
            u = torch.zeros_like(z, requires_grad=True)
            return torch.autograd.grad(self._along(self._gradients(z, u)), u)[0].detach()

    def hessian(self) -> list[torch.Tensor]:
        """H v by two backward passes, and by the difference of gradients."""
        with sdpa_kernel(SDPBackend.MATH):
            gradients = self._gradients(self.model(**self.data).loss)
            exact = flat(torch.autograd.grad(self._along(gradients), self.leaves, allow_unused=True), self.leaves)
        near, far = (self._moved(h) - self._moved(-h) for h in (STEP, 2 * STEP))
        return [exact, (8 * near - far) / (12 * STEP)]

    def _moved(self, step: float) -> torch.Tensor:
        """The gradient at the parameters + step v."""
        try:
            self._move(step)
            return flat(self._gradients(self.model(**self.data).loss, graph=False), self.leaves)
        finally:
            self._move(-step)

    @torch.no_grad()
    def _move(self, step: float) -> None:
        for p, t in zip(self.leaves, self.parts, strict=True):
            p.add_(t, alpha=step)

    def gauss_newton(self, pushed: torch.Tensor) -> torch.Tensor | None:
        """J^T (diag p - p p^T) J v over the counted targets, shifted by one where that is the model's loss; else None."""
        output, labels = self.model(**self.data), self.data["labels"]
        for shift in (0, 1):
            z, u, y = output.logits.double(), pushed.double(), labels
            if shift and y.ndim > 1:
                z, u, y = z[:, :-1], u[:, :-1], y[:, 1:]
            if z.shape[:-1] != y.shape:
                continue
            mean = torch.nn.functional.cross_entropy(z.reshape(-1, z.shape[-1]), y.reshape(-1))
            if torch.isclose(mean.double(), output.loss.double(), rtol=1e-5):
                p, counted = z.softmax(-1), (y != -100).double()[..., None]
                inner = counted / counted.sum() * p * (u - (p * u).sum(-1, keepdim=True))
                return flat(self._gradients((z * inner.detach()).sum(), graph=False), self.leaves)
        return None


# One architecture -----------------------------------------------------------------------------------------------------
def verdict(product: Callable[[], torch.Tensor], expected: list[torch.Tensor]) -> str:
    """right or wrong with the relative error, or refused with our sentence."""
    try:
        w = product().double().reshape(-1)
    except (ValueError, TypeError, RuntimeError) as failure:
        return f"refused: {failure}"
    error = min(float((w - e.reshape(-1)).norm() / e.norm()) for e in expected)
    return f"{'right' if error <= TOLERANCE else 'WRONG'}: {error:.0e}"


def tried(task: str, kind: str) -> dict[str, Any]:
    """What came out for one architecture."""
    begun = time.perf_counter()
    try:
        model = build(task, kind)
        oracle = Oracle(model, batch_of(task, model))
        pushed, curved = oracle.jacobian(), oracle.hessian()
        if not all(torch.isfinite(e).all() and e.any() for e in (pushed, *curved)):
            raise ArithmeticError("its own derivatives are 0 or not finite")
        inner = oracle.gauss_newton(pushed)
    except Exception as failure:  # anything that a configuration of these sizes, or of other inputs, may end with
        return {"not built": first_line(failure)}
    small, v = build(task, kind).float(), oracle.v.float()  # a copy of what has run may hold graphs
    data = [{key: value.float() if value.is_floating_point() else value for key, value in oracle.data.items()}]
    found: dict[str, Any] = {
        "parameters": len(v),
        "Jacobian": verdict(lambda: spectral.Jacobian(small, data) @ v, [pushed]),
        "Hessian": verdict(lambda: spectral.Hessian(small, None, data) @ v, curved),
    }
    if inner is not None:
        found["GaussNewton"] = verdict(lambda: spectral.GaussNewton(small, None, data) @ v, [inner])
    return found | {"seconds": round(time.perf_counter() - begun, 1)}


# Tables ---------------------------------------------------------------------------------------------------------------
def show(record: dict[str, Any]) -> None:
    print("| task | architectures | Jacobian | Hessian | GaussNewton | not built |\n|---|---|---|---|---|---|")
    for task, found in record["tasks"].items():
        cells = []
        for name in ("Jacobian", "Hessian", "GaussNewton"):
            counts = Counter(each[name].split(":")[0] for each in found.values() if name in each)
            cells.append(", ".join(f"{count} {word}" for word, count in counts.most_common()))
        missing = sum("not built" in each for each in found.values())
        print(f"| {task} | {len(found) - missing} |", " | ".join(cells), f"| {missing} |")
    for task, found in record["tasks"].items():
        for kind, each in found.items():
            for name, said in each.items():
                if str(said).startswith(("refused", "WRONG")):
                    print(f"- {task}, {kind}, {name}: {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
    parser.add_argument("--only", nargs="+", help="architectures, as transformers names them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", type=Path)
    asked = parser.parse_args()
    if asked.show:
        show(json.loads(asked.show.read_text()))
        return
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"environment": environment(["transformers"]), "tasks": {}}
    for task, name in TASKS.items():
        if task not in asked.tasks:
            continue
        found = record["tasks"][task] = {}
        for kind in getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES"):
            if not asked.only or kind in asked.only:
                found[kind] = tried(task, kind)
                print(task, kind, found[kind], flush=True)
            if asked.json:
                asked.json.write_text(json.dumps(record, indent=1))
    show(record)


if __name__ == "__main__":
    main()
