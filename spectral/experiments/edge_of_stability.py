"""Where does the curvature settle in full-batch training: gradient descent and Adam (Cohen et al. 2021, 2022)?

Symbols: η the learning rate, H the Hessian of the training loss, λmax its largest eigenvalue. On a quadratic, gradient descent
diverges where λmax > 2/η; training raises λmax to that edge, and stays there. Adam preconditions by
P = (1 − β1^t) (√(v / (1 − β2^t)) + ε), and its edge is λmax(P^{-1/2} H P^{-1/2}) = (2 + 2 β1) / ((1 − β1) η) = 38/η.

That training *raises* it is seen only where it begins below, which takes small weights before training: He's variance of
2 / fan-in puts λmax above 2/η at the rates that these networks bear, and training then brings it down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from spectral import Estimate, Hessian, Operator, precondition, top
from spectral.experiments.cell import TRUE, Settings
from spectral.experiments.datasets import in_dtype
from spectral.experiments.prose import filled, prose, say, told
from spectral.experiments.study import Cost, Findings, Line, Lines, Part, Parts, Study, block_error, one_seed
from spectral.experiments.training import few_threads
from spectral.schema import POSITIVE, SIZE, Items, Text, held, ruled

TEXTS = prose(__file__)
BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's own for Adam
ALLOWED = {"gd": 0.10, "adam": 0.06}  # how far from 1 a mean ratio may be for yes: the and Cohen's figures
# the step of the first look: before 1 / (1 − β1) steps P is still that of a few gradients
FIRST = {"gd": 1, "adam": 10}
DIVERGED = 1e9  # of a loss, which begins of order 1
TOL = 1e-2  # of a residual over the norm: a tenth of what is allowed; the eigenvalue is off by far less, by the residual squared
TAIL = 1 / 3  # of the steps, over which a ratio is averaged
LOOKS = 8  # in that part at least: two for each block of `block_error`
NAMES = {"gd": "gradient descent", "adam": "Adam"}
RATIOS = {"gd": "λmax η / 2", "adam": "λmax(P⁻½ H P⁻½) η / 38"}


RATES = Items(POSITIVE, distinct=True)


@ruled(rates=RATES, adam_rates=RATES, steps=SIZE, every=SIZE, loss=Text("squared", "cross_entropy"))
def edge_of_stability(
    settings: Settings,
    *,
    rates: Sequence[float] = (0.5, 0.35, 0.25),
    adam_rates: Sequence[float] = (0.005, 0.003),
    steps: int = 900,
    every: int = 30,
    loss: str = "squared",
) -> Study:
    """Full-batch gradient descent at each of `rates` and Adam at each of `adam_rates`, looked at `every` so many steps.

    `loss` is "squared" (half of it, of one-hot labels, as Cohen et al. have it) or "cross_entropy", under which the curvature
    falls again once all samples are fitted.
    """
    held(edge_of_stability, locals())
    one_seed(settings)
    if not (rates or adam_rates):
        raise ValueError("rates and adam_rates are both empty; give a learning rate of one of them.")
    if every > steps * TAIL / LOOKS:
        least = math.ceil(every * LOOKS / TAIL)
        raise ValueError(
            f"every={every} gives too few looks at {steps} steps; use {least} steps or more, or a smaller one."
        )
    runs = [("gd", eta) for eta in rates] + [("adam", eta) for eta in adam_rates]
    steps_of = {_key(*run): partial(_trained, settings, *run, steps, every, loss) for run in runs}
    return Study(settings=settings, steps=steps_of, conclude=partial(_concluded, runs, steps), **TEXTS["study"])


def _key(kind: str, eta: float) -> str:
    return f"{kind}-{eta:g}"


def _trained(
    settings: Settings, kind: str, eta: float, steps: int, every: int, loss: str, parts: Parts, networks: Any
) -> Part:
    """One training: the step, the ratio to the edge, its residual, λmax itself and the loss, at each look."""
    cost, seed = Cost(), one_seed(settings)
    problem = settings.problem(seed=seed).to(settings.device)
    model = settings.build(problem, seed, TRUE).to(settings.device, settings.dtype).eval()
    x, labels = in_dtype(problem.x_train, settings.dtype), problem.y_train
    squared = loss == "squared"
    y = F.one_hot(labels, problem.classes).movedim(-1, 1).to(settings.dtype) if squared else labels
    criterion = nn.MSELoss() if squared else nn.CrossEntropyLoss()
    # of torch's mean over all entries: half the square, a sample's classes summed
    scale = problem.classes / 2 if squared else 1.0
    optimiser: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    if kind == "adam":
        optimiser = torch.optim.Adam(model.parameters(), lr=eta, betas=BETAS, eps=EPSILON)
    H, rows = scale * Hessian(model, criterion, [(x, y)]), []
    held: dict[str, Any] = {}
    with few_threads(model):
        for step in range(1, steps + 1):
            optimiser.zero_grad(set_to_none=True)
            value = scale * criterion(model(x), y)
            value.backward()
            optimiser.step()
            if not (reached := float(value.detach())) < DIVERGED:
                raise ValueError(
                    f"the loss of {kind} at rate {eta:g} became {reached:g} in step {step}; use a smaller rate."
                )
            if step == FIRST[kind] or (step > FIRST[kind] and step % every == 0):
                rows.append([step, *_looked(H, optimiser, kind, eta, held), reached])
    step, ratio, residual, sharpness, losses = np.array(rows).T
    arrays = {"step": step, "ratio": ratio, "residual": residual, "sharpness": sharpness, "loss": losses}
    return Part(arrays, {"eta": eta, "optimiser": kind, "parameters": H.shape[0], **cost.of(H)})


def _looked(
    H: Operator, optimiser: torch.optim.Optimizer, kind: str, eta: float, held: dict[str, Any]
) -> tuple[float, float, float]:
    """(ratio of the curvature to the edge, how far it may be off, λmax of H). `held` are the eigenvectors of the last look, from
    which this one begins."""

    def largest(name: str, A: Operator) -> tuple[float, float]:
        found = top(A, 1, tol=TOL, start=held.get(name), progress=False)
        held[name] = found.vectors
        return float(found.values[0]), float(found.residuals[0])

    sharpness, residual = largest("H", H)
    if kind == "gd":
        return sharpness * eta / 2, residual * eta / 2, sharpness
    edge = edge_of(kind, eta)
    inside, residual = largest("inside", precondition(H, optimiser))
    return inside / edge, residual / edge, sharpness


def edge_of(kind: str, eta: float) -> float:
    """The largest eigenvalue beyond which the optimiser diverges on a quadratic: of Adam that of the preconditioned matrix."""
    return 2 / eta if kind == "gd" else (2 + 2 * BETAS[0]) / (1 - BETAS[0]) / eta


def answered(kind: str, first: float, mean: float, error: float) -> str:
    """The verdict on one training, from the ratio at the first look and its mean over the last third of the steps.

    Yes: it begins below 1 and ends at 1, both within what is allowed; no: it ends elsewhere, by twice its error; undecided
    otherwise, as where it comes down to 1 from above.
    """
    off, allowed = abs(mean - 1), ALLOWED[kind]
    if off - 2 * error > allowed:
        return "no"
    return "yes" if off <= allowed and first < 1 - allowed else "undecided"


def _concluded(runs: Sequence[tuple[str, float]], steps: int, parts: Parts) -> Findings:
    ratios: dict[str, Estimate] = {}
    table, verdicts = [], []
    drawn: dict[str, list[Line]] = {"ratio": [], "sharpness": [], "loss": []}
    said: dict[str, tuple[list[Any], ...]] = {}
    for kind, eta in runs:
        part, key = parts[_key(kind, eta)], _key(kind, eta)
        a = part.arrays
        late = a["step"] > (1 - TAIL) * steps
        first, mean = float(a["ratio"][0]), float(a["ratio"][late].mean())
        error = math.hypot(block_error(a["ratio"][late]), float(a["residual"][late].max()))
        ratios[key] = Estimate(
            mean, error, products=int(part.facts["products"]), method="mean over the last third of the steps"
        )
        verdicts.append(answered(kind, first, mean, error))
        sharpness, there = a["sharpness"][late].mean(), a["step"][a["ratio"] >= 1 - ALLOWED[kind]]
        facts = {"first": first, "ratio": ratios[key], "there": there, "a": a, "sharpness": sharpness, "looks": FIRST}
        table.append(filled(TEXTS["table"], name=NAMES[kind], eta=eta, edge=edge_of(kind, eta), **facts))
        label = f"η = {eta:g}"
        for numbers, number in zip(said.setdefault(kind, ([], [], [])), (first, ratios[key], eta), strict=True):
            numbers.append(number)
        ratio, curvature, training = (f"{NAMES[kind]}: {what}" for what in (RATIOS[kind], "λmax", "training loss"))
        drawn["ratio"].append(Line(ratio, label, a["step"], a["ratio"], a["residual"]))
        drawn["sharpness"].append(Line(curvature, label, a["step"], a["sharpness"]))
        drawn["loss"].append(Line(training, label, a["step"], a["loss"]))
    answer = "yes" if set(verdicts) == {"yes"} else "no" if "no" in verdicts else "undecided"
    sentence = say(TEXTS["sentence"], answer=answer, said=said, names=NAMES, steps=steps)
    note = "one line for each learning rate"
    charts = [Lines(lines=tuple(lines), x_label="step", note=note, **TEXTS["charts"][k]) for k, lines in drawn.items()]
    return Findings(
        answer,
        sentence,
        {"curvature_over_edge": ratios},
        tuple(table),
        tuple(charts),
        words={_key(kind, eta): f"{NAMES[kind]}, η = {eta:g}" for kind, eta in runs},
        facts=tuple(told(TEXTS["facts"], allowed=ALLOWED, looks=FIRST)),
    )
