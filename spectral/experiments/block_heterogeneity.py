"""Are the diagonal blocks of the Hessian less alike in a transformer than in a CNN (Zhang et al. 2024)?

Symbols, as in the paper and its code: for each weight matrix l the density p_l of the block's eigenvalues, by stochastic Lanczos
quadrature, on a linear axis under a Gaussian of variance σ² = 1e-5; JS⁰ is the mean over all pairs of blocks of
JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q) / 2, before training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

from spectral import Estimate, Hessian, Spectrum, blocks, compare, slq
from spectral.analysis.compare import bits_apart
from spectral.experiments.cell import Settings
from spectral.experiments.datasets import batches, digits, in_dtype, text
from spectral.experiments.models import model_for
from spectral.experiments.prose import filled, prose, say, told
from spectral.experiments.study import Cost, Findings, Line, Lines, Part, Parts, Study, one_seed
from spectral.experiments.training import few_threads
from spectral.quadrature.error import jackknife_variance
from spectral.results import Array
from spectral.schema import SIZE, held, ruled

TEXTS = prose(__file__)
SIGMA = 1e-5**0.5  # of the authors' code
WIDTHS = (SIGMA / 10, SIGMA, SIGMA * 10)  # beside theirs: what the answer owes to the width
PER_WIDTH, TAILS = 6, 8  # grid points in σ; how many σ a density reaches beyond its values
LEAST = 1e-6  # of an |λ| that is drawn


@ruled(samples=SIZE, passages=SIZE, depth=SIZE, probes=SIZE, steps=SIZE)
def block_heterogeneity(
    settings: Settings, *, samples: int = 64, passages: int = 16, depth: int = 1, probes: int = 2, steps: int = 40
) -> Study:
    """JS⁰ of a small GPT on `passages` of text, of a CNN and an MLP on `samples` digits; each block from `probes` of `steps`."""
    held(block_heterogeneity, locals())
    one_seed(settings)
    kinds = {"gpt": passages, "cnn": samples, "mlp": samples}
    measured = {kind: partial(_measured, settings, kind, count, depth, probes, steps) for kind, count in kinds.items()}
    return Study(settings=settings, steps=measured, conclude=_concluded, **TEXTS["study"])


NAMES = {"gpt": "transformer", "cnn": "convolutional network", "mlp": "multilayer perceptron"}


def _measured(
    settings: Settings, kind: str, count: int, depth: int, probes: int, steps: int, parts: Parts, networks: Any
) -> Part:
    """The spectra of all blocks of weights, before training."""
    cost, seed = Cost(), one_seed(settings)
    if kind == "gpt":
        problem = text(train=count, test=1, seed=seed, length=32).to(settings.device)
    else:
        problem = digits(count, 10, seed, image=kind == "cnn").to(settings.device)
    options = {"gpt": {"width": 32, "depth": depth, "heads": 2}, "cnn": {"width": 16}, "mlp": {}}[kind]
    model = model_for(problem, kind, seed=seed, options=options).to(settings.device, settings.dtype).eval()
    data = batches(in_dtype(problem.x_train, settings.dtype), problem.y_train, count)
    H = Hessian(model, nn.CrossEntropyLoss(), data)
    matrices = {name for name, p in model.named_parameters() if p.ndim > 1}
    made = {name: B for name, B in blocks(H).items() if name in matrices}
    with few_threads(model):
        spectra = {n: slq(B, probes=probes, steps=min(steps, B.shape[0]), progress=False) for n, B in made.items()}
    found = list(spectra.values())
    distances = [heterogeneity(found, width) for width in WIDTHS]
    distances.append(over_pairs(len(found), lambda i, j: compare(found[i], found[j])["js"]))  # on a logarithmic axis
    facts = {"blocks": len(made), "parameters": H.shape[0]}
    arrays = {"distances": np.array(distances), "largest": np.array([max(map(abs, s.interval)) for s in found])}
    return Part(arrays, {**facts, **cost.of(H, *made.values())}, spectra)


def smoothed(s: Spectrum, sigma: float = SIGMA) -> tuple[np.ndarray, np.ndarray]:
    """(cells, mass): the density under a Gaussian of width `sigma`, on cells of σ / 6, of which only those near an eigenvalue are
    kept, whatever the range."""
    values, counts = s.points()
    centres = np.round(values / sigma * PER_WIDTH)
    cells = centres[:, None] + np.arange(-TAILS * PER_WIDTH, TAILS * PER_WIDTH + 1)
    mass = np.exp(-0.5 * (cells / PER_WIDTH - values[:, None] / sigma) ** 2)
    mass *= (counts / counts.sum() / mass.sum(1))[:, None]
    kept, place = np.unique(cells, return_inverse=True)
    return kept, np.bincount(place.ravel(), weights=mass.ravel())


def _divergence(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    cells, place = np.unique(np.concatenate([a[0], b[0]]), return_inverse=True)
    each = zip(np.split(place, [len(a[0])]), (a[1], b[1]), strict=True)
    return float(bits_apart(*(np.bincount(where, mass, len(cells)).astype(np.float64) for where, mass in each)))


def heterogeneity(spectra: list[Spectrum], sigma: float = SIGMA) -> tuple[float, float]:
    """JS⁰, the mean over all pairs, and the jackknife's standard error over blocks; of each pair the divergence in bits.

    >>> alone = [[Spectrum.from_eigenvalues(np.array([x])) for x in (0.0, y)] for y in (0.0, 1.0)]
    >>> [round(heterogeneity(spectra)[0], 12) for spectra in alone]
    [0.0, 1.0]
    """
    densities = [smoothed(s, sigma) for s in spectra]
    return over_pairs(len(spectra), lambda i, j: _divergence(densities[i], densities[j]))


def over_pairs(n: int, apart: Callable[[int, int], float]) -> tuple[float, float]:
    """The mean of a distance over all pairs of n blocks, and the jackknife's standard error over blocks.

    >>> over_pairs(3, lambda i, j: 1.0), over_pairs(2, lambda i, j: 1.0)
    ((1.0, 0.0), (1.0, nan))
    """
    pairs: Array = np.zeros((n, n))
    for i, j in combinations(range(n), 2):
        pairs[i, j] = pairs[j, i] = apart(i, j)
    if n < 3:
        return (float(pairs[0, 1]) if n == 2 else math.nan), math.nan
    without = (pairs.sum() - 2 * pairs.sum(0)) / ((n - 1) * (n - 2))
    return float(pairs.sum() / (n * (n - 1))), math.sqrt(jackknife_variance(without))


def fractions_above(s: Spectrum) -> tuple[Array, Array]:
    """(x, y): the fraction of a block's eigenvalues that are at least so large, whatever their sign, as steps.

    >>> [[float(v) for v in part] for part in fractions_above(Spectrum.from_eigenvalues(np.array([-1.0, 2.0])))]
    [[1e-06, 1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 0.5, 0.5, 0.0]]
    """
    values, counts = s.points()
    order = np.argsort(np.abs(values))
    x, above = np.abs(values)[order], np.cumsum(counts[order][::-1])[::-1] / counts.sum()
    shown = x > LEAST
    x, above = x[shown], above[shown]
    return np.repeat(np.append(LEAST, x), 2)[1:], np.append(np.repeat(above, 2), 0.0)


def _concluded(parts: Parts) -> Findings:
    wide = {kind: [Estimate(*pair) for pair in part.arrays["distances"].tolist()] for kind, part in parts.items()}
    js = {kind: distances[WIDTHS.index(SIGMA)] for kind, distances in wide.items()}
    gap, error = float(js["gpt"]) - float(js["cnn"]), math.hypot(float(js["gpt"].stderr), float(js["cnn"].stderr))
    answer = "yes" if gap > 2 * error and float(js["gpt"]) > 2 * float(js["cnn"]) else "no" if gap < 0 else "undecided"
    sentence = say(TEXTS["sentence"], answer=answer, js=js, names=NAMES)
    table = [filled(TEXTS["table"], name=NAMES[kind], distances=wide[kind], part=p) for kind, p in parts.items()]
    lines = [
        Line(NAMES[kind], f"block {i}", *fractions_above(s))
        for kind, part in parts.items()
        for i, s in enumerate(part.spectra.values(), 1)
    ]
    return Findings(
        answer,
        sentence,
        {"js": js},
        tuple(table),
        (Lines(lines=tuple(lines), **TEXTS["charts"]["blocks"]),),
        words=NAMES,
        facts=tuple(told(TEXTS["facts"], sigma=SIGMA)),
    )
