"""Do the outliers of the Hessian go away with batch norm, and by which of its statistics (Ghorbani, Krishnan, Xiao 2019)?

Three Hessians: of a network without batch norm, and of one with it, that works with each batch's own statistics (as training sees
the loss) or with the running ones (as it is used afterwards). Each is asked for λ₁ / λ₁₀, the paper's measure of outliers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from spectral import Estimate, Hessian, slq, top
from spectral.experiments.cell import Cell, Condition, Matrix, Settings, network
from spectral.experiments.datasets import batches, in_dtype
from spectral.experiments.models import model_for
from spectral.experiments.prose import filled, prose, say
from spectral.experiments.study import Cost, Findings, Part, Parts, Study
from spectral.experiments.training import few_threads
from spectral.schema import SIZE, held, ruled

TEXTS = prose(__file__)
KINDS = {  # name: (batch norm, statistics, in words)
    "without": (False, "population", "without batch norm"),
    "batch": (True, "batch", "batch norm, each batch's own statistics"),
    "population": (True, "population", "batch norm, running statistics"),
}
TOP = 10
# what each batch's own statistics must leave of the ratio without batch norm, and of that with the running ones, for yes
LOWER = (1 / 2, 2 / 3)
MATRIX = "Hessian of the training loss"


@ruled(width=SIZE, epochs=SIZE, probes=SIZE, steps=SIZE)
def batchnorm_outliers(
    settings: Settings, *, width: int = 16, epochs: int = 30, probes: int = 1, steps: int = 80
) -> Study:
    """λ₁ / λ₁₀ of CNNs of this `width` after so many `epochs`, and the spectrum from `probes` of `steps`; of images alone."""
    held(batchnorm_outliers, locals())
    settings = replace(settings, model=partial(model_for, kind="cnn"))
    conditions = {
        norm: Condition("with" if norm else "without", 0.0, epochs, options={"width": width, "norm": norm})
        for norm in (False, True)
    }
    steps_of = {
        f"seed{seed}-{kind}": partial(_measured, settings, seed, kind, conditions[norm], probes, steps)
        for seed in settings.seeds
        for kind, (norm, *_) in KINDS.items()
    }
    return Study(settings=settings, steps=steps_of, conclude=partial(_concluded, settings.seeds), **TEXTS["study"])


def _measured(
    settings: Settings, seed: int, kind: str, condition: Condition, probes: int, steps: int, parts: Parts, networks: Any
) -> Part:
    cost, statistics = Cost(), KINDS[kind][1]
    problem = settings.problem(seed=seed).to(settings.device)
    model, snapshot = network(Cell(seed, condition, Matrix("hessian", "logits", "train")), settings, problem, networks)
    data = batches(in_dtype(problem.x_train, settings.dtype), problem.y_train, settings.batch_size)
    H = Hessian(model.to(settings.dtype), nn.CrossEntropyLoss(), data, statistics=statistics)
    with few_threads(model):
        found = top(H, TOP, tol=1e-3, progress=False)
        spectrum = slq(H, probes=probes, steps=steps, progress=False)
    loss = math.nan if snapshot is None else snapshot.trained.loss
    facts: dict[str, float] = {"seed": seed, "loss": loss, **cost.of(H)}
    if kind != "population":  # the network of "batch" once more
        facts["parameters"] = H.shape[0]
    return Part({"values": found.values, "residuals": found.residuals}, facts, {kind: spectrum})


def _concluded(seeds: tuple[int, ...], parts: Parts) -> Findings:
    ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
    estimates: dict[str, Estimate] = {}
    table, spectra = [], []
    for kind, (_, _, words) in KINDS.items():
        errors = []
        for seed in seeds:
            part = parts[f"seed{seed}-{kind}"]
            v, r = part.arrays["values"], part.arrays["residuals"]
            positive = v[-1] > r[-1]  # for certain; of fewer nothing is said
            ratios[kind].append(float(v[0] / v[-1]) if positive else math.nan)
            errors.append(abs(ratios[kind][-1]) * float(r[0] / abs(v[0]) + r[-1] / abs(v[-1])))
            spectra.append((MATRIX, kind, seed, part.spectra[kind]))
            numbers = {"v": v, "r": r, "ratio": ratios[kind][-1], "error": errors[-1], "loss": part.facts["loss"]}
            table.append(filled(TEXTS["table"], network=words, seed=seed, **numbers))
        many = len(seeds) > 1
        spread = float(np.std(ratios[kind], ddof=1) / math.sqrt(len(seeds))) if many else errors[0]
        estimates[kind] = Estimate(float(np.mean(ratios[kind])), spread)
    each = list(zip(*(ratios[kind] for kind in KINDS), strict=True))
    lower = [own < LOWER[0] * without and own < LOWER[1] * running for without, own, running in each]
    higher = [own >= without or own >= running for without, own, running in each]
    answer = "yes" if all(lower) else "no" if all(higher) else "undecided"
    sentence = say(TEXTS["sentence"], answer=answer, estimates=estimates, kinds=KINDS, seeds=seeds)
    return Findings(
        answer,
        sentence,
        {f"lambda_1_over_lambda_{TOP}": estimates},
        tuple(table),
        spectra=tuple(spectra),
        words={kind: words for kind, (_, _, words) in KINDS.items()} | {MATRIX: MATRIX},
        facts=tuple(TEXTS["facts"]),
    )
