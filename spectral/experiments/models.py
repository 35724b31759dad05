"""The networks of the experiments: MLP, a small CNN, the CIFAR family of residual networks, and language models.

All map (B, *input shape) to logits (B, classes), or tokens (B, T) to logits (B, classes, T), use no in-place operation
(forward-mode differentiation stays exact), and are initialised from their own seed: torch's global generator is as before.

Sources: He et al. 2015 (the initialisation), He et al. 2016a "Deep residual learning" (ResNet-20 ... 110),
He et al. 2016b "Identity mappings" (ResNet-164, 1001), Radford et al. 2019 (GPT-2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from spectral import arrays
from spectral.experiments import pretrained
from spectral.experiments.datasets import Problem, stream
from spectral.schema import POSITIVE, SIZE, Flag, Items, Number, Text, held, ruled

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
FORMS = {"basic": (6, 8), "bottleneck": (9, 11)}  # depth = period n + 2, from the depth of one block a stage
BLOCKS = ("auto", *FORMS)
DEEP = 164  # from this depth on the papers take bottlenecks
IMAGES = ("cnn", "resnet")
GIVEN = ("smollm2", "minilm")  # that come with their weights
TOKENS = ("gpt", *GIVEN)
DEEPEST = 1000  # blocks of a GPT: more would take longer to build than to refuse
SPREAD = 0.02  # standard deviation of the weights of a GPT-2 before training
M = TypeVar("M", bound=nn.Module)


@ruled(widths=Items(SIZE), activation=Text(*ACTIVATIONS), scale=POSITIVE)
def mlp(
    in_features: int,
    widths: Sequence[int] = (64, 64),
    classes: int = 10,
    *,
    activation: str = "relu",
    scale: float = 2.0,
    seed: int = 0,
) -> nn.Module:
    """A multilayer perceptron in_features - widths - classes; images are flattened first.

    `activation` is relu or tanh; weights before training are N(0, scale / fan_in): 2 as He et al. have it, 1/3 as torch has it.

    >>> sum(p.numel() for p in mlp(64).parameters())     # (64*64 + 64) * 2 + 64*10 + 10
    8970
    """
    held(mlp, locals(), in_features=SIZE, classes=SIZE)
    sizes = [in_features, *widths, classes]

    def build() -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(sizes[:-1]):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))

    return _seeded(build, seed, scale=scale)


@ruled(width=SIZE, norm=Flag())
def cnn(in_channels: int = 1, classes: int = 10, width: int = 16, *, norm: bool = False, seed: int = 0) -> nn.Module:
    """A small CNN: three 3x3 convolutions of width, 2 width, 2 width channels (stride 1, 2, 2), spatial mean, linear.

    Any image size works. norm=True puts a batch norm after each convolution.

    >>> cnn()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    held(cnn, locals(), in_channels=SIZE, classes=SIZE)

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        channels = in_channels
        for out, stride in ((width, 1), (2 * width, 2), (2 * width, 2)):
            layers.append(nn.Conv2d(channels, out, 3, stride, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(out)] if norm else []
            layers.append(nn.ReLU())
            channels = out
        return nn.Sequential(*layers, SpatialMean(), nn.Linear(channels, classes))

    return _seeded(build, seed)


@ruled(depth=SIZE, width=SIZE, block=Text(*BLOCKS), checkpoint=Flag())
def resnet(
    depth: int = 20,
    classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    *,
    block: str = "auto",
    checkpoint: bool = False,
    seed: int = 0,
) -> nn.Module:
    """The CIFAR-style residual network of a given depth, with batch norm; any image size works.

    Three stages of `width`, 2 `width`, 4 `width` channels. block="basic" is He et al. 2016a: depth 6n+2, two 3x3
    convolutions a block, shortcuts without parameters (option A: stride, then zero channels). block="bottleneck" is the
    pre-activation network of He et al. 2016b: depth 9n+2, 1x1-3x3-1x1 with four times the channels out, 1x1 projections
    where the shape changes. "auto" follows the two papers: basic below depth 164, bottleneck from 164 on (20, 32, 44,
    56 and 110 are basic; 164 and 1001 bottlenecks), and the only one that fits for other depths.

    checkpoint=True trains in the memory of about √n of n blocks' activations, for a third forward pass: the others are
    computed again in the backward pass (Chen et al. 2016). The weights that come out are the same.

    Errors: a depth of neither form; the sentence names the nearest that are.

    >>> sum(p.numel() for p in resnet(20).parameters())  # He et al. 2016a, Table 6: 0.27M
    269722
    """
    held(resnet, locals(), in_channels=SIZE, classes=SIZE)
    kind = _block_kind(depth, block)
    n = (depth - 2) // FORMS[kind][0]
    return _seeded(lambda: ResNet(kind, n, classes, in_channels, width, checkpoint), seed)


@ruled(width=SIZE, depth=Number(True, least=1, most=DEEPEST), heads=SIZE)
def gpt(
    vocabulary: int = 256, length: int = 64, width: int = 64, depth: int = 2, heads: int = 4, *, seed: int = 0
) -> nn.Module:
    """A small GPT-2: tokens (B, T), T <= length, to logits (B, vocabulary, T) of the token after each.

    Learned positions, `depth` pre-norm blocks of causal attention and a GELU layer of 4 width, norm, a head of its own. Query,
    key and value are layers of their own, so that each is a block of the curvature. Weights N(0, 0.02^2), biases 0.

    >>> gpt(vocabulary=11, length=8)(torch.zeros(2, 8, dtype=torch.int64)).shape
    torch.Size([2, 11, 8])
    """
    held(gpt, locals(), vocabulary=SIZE, length=SIZE)
    if width % heads:
        raise ValueError(f"width={width} is no width of {heads} heads; use a multiple of heads.")
    return _seeded(lambda: GPT(vocabulary, length, width, depth, heads), seed, SPREAD)


OWN: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn, "resnet": resnet, "gpt": gpt}  # with options


def model_for(
    problem: Problem, kind: str = "mlp", *, seed: int = 0, options: Mapping[str, object] | None = None
) -> nn.Module:
    """The network of a kind whose inputs and classes are those of `problem`: mlp, cnn, resnet, gpt, smollm2, minilm.

    `options` are the other arguments of the function of that name: widths, activation and scale for mlp; width and norm for cnn;
    depth, width and block for resnet; width, depth and heads for gpt. Convolutional networks need images: build the problem with
    image=True. Language models need tokens of their own kind: `text(tokens=...)`; smollm2 and minilm have weights of training.
    """
    given: dict[str, object] = {**(options or {}), "classes": problem.classes, "seed": seed}
    if kind in TOKENS:
        return _language(problem, kind, seed, options or {})
    if problem.tokens and kind in ("mlp", *IMAGES):
        raise ValueError(
            f"A {kind} reads numbers, and {problem.name} is tokens; use one of {', '.join(TOKENS)}, or other data."
        )
    if kind == "mlp":
        return mlp(math.prod(problem.shape), **given)  # type: ignore[arg-type]
    if kind not in IMAGES:
        raise ValueError(f"model kind {kind!r} is unknown; use one of mlp, {', '.join((*IMAGES, *TOKENS))}.")
    if len(problem.shape) != 3:
        raise ValueError(
            f"A {kind} needs images (channels, height, width), but the inputs of {problem.name} have the shape "
            f"{problem.shape}; use data of images, such as mnist, in Python with image=True."
        )
    return OWN[kind](in_channels=problem.shape[0], **given)  # type: ignore[arg-type]


def _language(problem: Problem, kind: str, seed: int, options: Mapping[str, object]) -> nn.Module:
    """A language model for a problem of its tokens and of the targets that it gives logits for."""
    needed = {"gpt": ("bytes", "next"), "smollm2": ("smollm2", "next"), "minilm": ("minilm", "topic")}[kind]
    if (problem.tokens, problem.targets) != needed:
        raise ValueError(
            f"A {kind} needs text in tokens={needed[0]} with targets={needed[1]}, but {problem.name} has "
            f"tokens={problem.tokens or 'none'} with targets={problem.targets or 'of its own'}; use data=text, which takes "
            "those of the model."
        )
    if kind == "gpt":
        return gpt(problem.classes, problem.shape[0], seed=seed, **options)  # type: ignore[arg-type]
    if options:
        raise ValueError(f"{kind} is what it is and takes no options, got {', '.join(options)}; leave them out.")
    if kind == "smollm2":
        return Causal(pretrained.smollm2())
    encoder, width = pretrained.minilm()
    return Classifier(encoder, _seeded(lambda: nn.Linear(width, problem.classes), seed, width**-0.5))


class Logits(nn.Module):
    """A model of Hugging Face as a function of its first input: its logits."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).logits


class Causal(Logits):
    """A causal model's, of tokens (B, T): logits (B, V, T), classes where torch's cross entropy reads them."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).transpose(1, 2)


class Classifier(nn.Module):
    """The mean of an encoder's last states over the tokens (B, T), all of which count, and a linear head: (B, classes)."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(input_ids=ids).last_hidden_state.mean(1))


class CausalBlock(nn.Module):
    """x + attention(norm x), then x + fall(gelu(rise(norm x))): Radford et al. 2019."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.project = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        a = self.norm1(x)
        of_heads = (layer(a).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
        q, k, v = (x.transpose(1, 2) for x in of_heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.fall(F.gelu(self.rise(self.norm2(x))))


class GPT(nn.Module):
    """Embeddings of tokens and positions, causal blocks, norm, linear head."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(CausalBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x))).transpose(1, 2)


class SpatialMean(nn.Module):
    """(B, c, h, w) to (B, c): the mean over the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv x)))) + shortcut x), He et al. 2016a, figure 2 with option A."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride = stride
        self.extra = out - channels

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return F.relu(h + shortcut)


class PreactBottleneck(nn.Module):
    """shortcut + conv1x1 relu bn conv3x3 relu bn conv1x1 relu bn x, He et al. 2016b, figure 4e."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        inner = out // 4
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        projects = channels != out or stride != 1
        self.project: nn.Module | None = nn.Conv2d(channels, out, 1, stride, bias=False) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        shortcut = x if self.project is None else self.project(a)  # projections see the shared pre-activation
        h = self.conv1(a)
        h = self.conv2(F.relu(self.bn2(h)))
        h = self.conv3(F.relu(self.bn3(h)))
        return h + shortcut


class ResNet(nn.Module):
    """conv, three stages of n blocks, mean, linear; batch norm and ReLU stand before basic blocks, and behind bottlenecks."""

    def __init__(self, kind: str, n: int, classes: int, in_channels: int, width: int, checkpoint: bool = False):
        super().__init__()
        self.basic = kind == "basic"
        outs = [width * 2**stage * (1 if self.basic else 4) for stage in range(3)]
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        if self.basic:
            self.bn = nn.BatchNorm2d(width)
        self.blocks = _stages(BasicBlock if self.basic else PreactBottleneck, n, width, outs, checkpoint)
        if not self.basic:  # the order of parameters is that of the data through them
            self.bn = nn.BatchNorm2d(outs[-1])
        self.pool = SpatialMean()
        self.head = nn.Linear(outs[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        h = self.blocks(F.relu(self.bn(h))) if self.basic else F.relu(self.bn(self.blocks(h)))
        return self.head(self.pool(h))


class Checkpointed(nn.Sequential):
    """Blocks one after the other; in training about √n groups of them, whose activations are computed again in the backward pass.

    Nothing else differs: names, values, gradients, and the running statistics of batch norm, which the second pass leaves alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        blocks, size = list(self), max(1, math.isqrt(len(self)))

        def part(x: Tensor, start: int) -> Tensor:
            for block in blocks[start : start + size]:
                x = block(x)
            return x

        for start in range(0, len(blocks), size):
            x = recomputed(part, x, start, use_reentrant=False, context_fn=lambda: (nullcontext(), _untracked(self)))
        return x


@contextmanager
def _untracked(module: nn.Module) -> Iterator[None]:
    """Batch norm in the statistics of the batch, which its running statistics do not see: they would be moved twice."""
    norms = [(m, m.momentum, m.num_batches_tracked) for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    counted = [None if count is None else count.clone() for _, _, count in norms]
    try:
        for norm, _, _ in norms:
            norm.momentum = 0.0
        yield
    finally:
        for (norm, momentum, count), before in zip(norms, counted, strict=True):
            norm.momentum = momentum
            if count is not None and before is not None:
                count.copy_(before)


def _stages(
    block: Callable[..., nn.Module], n: int, channels: int, outs: Sequence[int], checkpoint: bool
) -> nn.Sequential:
    """Three stages of n blocks; the first block of each stage but the first has stride 2."""
    blocks = []
    for stage, out in enumerate(outs):
        for i in range(n):
            blocks.append(block(channels, out, stride=2 if stage > 0 and i == 0 else 1))
            channels = out
    return (Checkpointed if checkpoint else nn.Sequential)(*blocks)


def _block_kind(depth: int, block: str) -> str:
    """The blocks that a network of this depth is made of; where both would do, those of the paper that has such a depth."""
    forms = {kind: form for kind, form in FORMS.items() if block in ("auto", kind)}

    def allowed(d: int) -> list[str]:
        return [kind for kind, (period, least) in forms.items() if d >= least and (d - 2) % period == 0]

    if kinds := allowed(depth):
        return kinds[0 if depth < DEEP else -1]
    said = [f"{period}n+2 ({kind})" for kind, (period, _) in forms.items()]
    below = [d for d in range(max(depth, 8) - 9, depth) if allowed(d)]
    above = [d for d in range(max(depth + 1, 8), max(depth, 8) + 10) if allowed(d)]
    raise ValueError(
        f"depth={depth} is not of the form {' or '.join(said)}; the nearest allowed depths are "
        f"{' and '.join(map(str, below[-1:] + above[:1]))}."
    )


def _check_fits(build: Callable[[], nn.Module]) -> None:
    """One sentence for a network that memory does not hold; none of it is allocated."""
    free = arrays.available_memory(torch.device("cpu"))
    try:
        with torch.device("meta"):
            size = float(sum(p.nbytes for p in build().parameters()))
    except (RuntimeError, OverflowError):  # a number of entries that torch cannot count
        size = math.inf
    if size > free:
        raise ValueError(
            f"the network's parameters take {size / 2**30:.3g} GiB, more than the {free / 2**30:.3g} GiB that are free; use "
            "smaller sizes."
        )


def _seeded(build: Callable[[], M], seed: int, spread: float | None = None, scale: float = 2.0) -> M:
    """Build a module and initialise it from `seed` alone, leaving the global generators as they were.

    Convolutions, linear layers and embeddings: weights N(0, spread^2), by default N(0, scale / fan_in), biases 0,
    also in the last layer; norms: scale 1, shift 0. In the order of `modules()`, drawn on the CPU, so the device does not matter.
    """
    with torch.random.fork_rng(devices=[]):  # torch's own constructors draw from the global generator
        _check_fits(build)
        model = build()
    generator = torch.Generator().manual_seed(stream(seed, "weights"))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, spread or math.sqrt(scale / fan_in), generator=generator)
                if isinstance(bias := getattr(module, "bias", None), Tensor):
                    bias.zero_()
    return model
