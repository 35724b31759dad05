"""Where does the curvature settle in full-batch training: gradient descent and Adam (Cohen et al. 2021, 2022)?

Symbols: η the learning rate, H the Hessian of the training loss, λmax its largest eigenvalue. On a quadratic, gradient descent
diverges where λmax > 2/η; training raises λmax to that edge, and stays there. Adam preconditions by
P = (1 − β1^t) (√(v / (1 − β2^t)) + ε), and its edge is λmax(P^{-1/2} H P^{-1/2}) = (2 + 2 β1) / ((1 − β1) η) = 38/η.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from spectral.estimators import top
from spectral.experiments.cell import TRUE, Settings
from spectral.experiments.datasets import in_dtype
from spectral.experiments.study import Cost, Findings, Line, Lines, Part, Parts, Study, block_error
from spectral.experiments.training import few_threads
from spectral.operators import Hessian, Operator, precondition
from spectral.results import Estimate, rounded

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's own for Adam
ALLOWED = {"gd": 0.10, "adam": 0.06}  # how far from 1 a mean ratio may be for yes: the and Cohen's figures
DIVERGED = 1e9  # of a loss, which begins of order 1
TAIL = 1 / 3  # of the steps, over which a ratio is averaged
NAMES = {"gd": "gradient descent", "adam": "Adam"}
RATIOS = {"gd": "λmax η / 2", "adam": "λmax(P⁻½ H P⁻½) η / 38"}


def edge_of_stability(
    settings: Settings,
    *,
    rates: Sequence[float] = (0.25,),
    adam_rates: Sequence[float] = (0.01,),
    steps: int = 1500,
    every: int = 50,
    loss: str = "squared",
) -> Study:
    """Full-batch gradient descent at each of `rates` and Adam at each of `adam_rates`, looked at `every` so many steps.

    `loss` is "squared" (half of it, of one-hot labels, as Cohen et al. have it) or "cross_entropy", under which the curvature
    falls again once all samples are fitted.
    """
    if not (rates or adam_rates):
        raise ValueError("rates and adam_rates are both empty; give a learning rate of one of them.")
    if not 1 <= every <= steps * TAIL / 8:
        raise ValueError(f"every={every} gives too few looks at {steps} steps; use at most {int(steps * TAIL / 8)}.")
    runs = [("gd", eta) for eta in rates] + [("adam", eta) for eta in adam_rates]
    return Study(
        "edge_of_stability",
        "Does training in full batches raise the curvature to the edge of stability, and stay there?",
        settings,
        {_key(*run): partial(_trained, settings, *run, steps, every, loss) for run in runs},
        partial(_concluded, runs, steps),
        "It rises to 1 and stays there: the loss falls on, although each step is as long as a quadratic bears.",
        "Cohen et al. 2021, Gradient descent on neural networks typically occurs at the edge of stability, arXiv 2103.00065; "
        "Cohen et al. 2022, Adaptive gradient methods at the edge of stability, arXiv 2207.14484",
    )


def _key(kind: str, eta: float) -> str:
    return f"{kind}-{eta:g}"


def _trained(
    settings: Settings, kind: str, eta: float, steps: int, every: int, loss: str, parts: Parts, networks: Any
) -> Part:
    """One training: the step, the ratio to the edge, its residual, λmax itself and the loss, at each look."""
    cost, seed = Cost(), settings.seeds[0]
    problem = settings.problem(seed=seed).to(settings.device)
    model = settings.build(problem, seed, TRUE).to(settings.device, settings.dtype).eval()
    x, labels = in_dtype(problem.x_train, settings.dtype), problem.y_train
    squared = loss == "squared"
    y = F.one_hot(labels, problem.classes).to(settings.dtype) if squared else labels
    criterion = nn.MSELoss() if squared else nn.CrossEntropyLoss()
    scale = (
        problem.classes / 2 if squared else 1.0
    )  # of torch's mean over all entries: half the square, a sample's classes summed
    optimiser: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    if kind == "adam":
        optimiser = torch.optim.Adam(model.parameters(), lr=eta, betas=BETAS, eps=EPSILON)
    H, rows = scale * Hessian(model, criterion, [(x, y)]), []
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
            if step == 1 or step % every == 0:
                rows.append([step, *_looked(H, optimiser, kind, eta), reached])
    step, ratio, residual, sharpness, losses = np.array(rows).T
    arrays = {"step": step, "ratio": ratio, "residual": residual, "sharpness": sharpness, "loss": losses}
    return Part(arrays, {"eta": eta, "optimiser": kind, "parameters": H.shape[0], **cost.of(H)})


def _looked(H: Operator, optimiser: torch.optim.Optimizer, kind: str, eta: float) -> tuple[float, float, float]:
    """(ratio of the curvature to the edge, how far it may be off, λmax of H)."""

    def largest(A: Operator) -> tuple[float, float]:
        found = top(A, 1, tol=1e-3, progress=False)
        return float(found.values[0]), float(found.residuals[0])

    sharpness, residual = largest(H)
    if kind == "gd":
        return sharpness * eta / 2, residual * eta / 2, sharpness
    edge = (2 + 2 * BETAS[0]) / (1 - BETAS[0]) / eta
    inside, residual = largest(precondition(H, optimiser))
    return inside / edge, residual / edge, sharpness


def _concluded(runs: Sequence[tuple[str, float]], steps: int, parts: Parts) -> Findings:
    ratios: dict[str, Estimate] = {}
    table, lines, losses, raw = [], [], [], []
    verdicts: list[str] = []
    for kind, eta in runs:
        part, key = parts[_key(kind, eta)], _key(kind, eta)
        a = part.arrays
        late = a["step"] > (1 - TAIL) * steps
        mean = float(a["ratio"][late].mean())
        error = math.hypot(block_error(a["ratio"][late]), float(a["residual"][late].max()))
        ratios[key] = Estimate(
            mean, error, products=int(part.facts["products"]), method="mean over the last third of the steps"
        )
        off = abs(mean - 1)
        verdicts.append("yes" if off <= ALLOWED[kind] else "no" if off - 2 * error > ALLOWED[kind] else "undecided")
        first, last = float(a["sharpness"][0]), float(a["sharpness"][late].mean())
        table.append(
            {
                "optimiser": NAMES[kind],
                "rate η": f"{eta:g}",
                "curvature over its edge": rounded(ratios[key]),
                "λmax, first step": f"{first:.3g}",
                "λmax, last third": f"{last:.3g}",
                "edge": f"{2 / eta:.3g}"
                if kind == "gd"
                else f"{(2 + 2 * BETAS[0]) / (1 - BETAS[0]) / eta:.3g} (of P⁻½ H P⁻½)",
                "loss at the end": f"{a['loss'][-1]:.2g}",
            }
        )
        label = f"η = {eta:g}"
        lines.append(Line(f"{NAMES[kind]}: {RATIOS[kind]}", label, a["step"], a["ratio"], a["residual"]))
        raw.append(Line(f"{NAMES[kind]}: λmax", label, a["step"], a["sharpness"]))
        losses.append(Line(f"{NAMES[kind]}: training loss", label, a["step"], a["loss"]))
    answer = "yes" if set(verdicts) == {"yes"} else "no" if "no" in verdicts else "undecided"
    said = ", ".join(
        f"{rounded(ratios[key])} for {NAMES[kind]} at η = {eta:g} ({RATIOS[kind]}, "
        f"{parts[key].arrays['ratio'][0]:.2g} after one step)"
        for kind, eta in runs
        for key in (_key(kind, eta),)
    )
    sentence = (
        f"{answer.capitalize()}: over the last third of {steps} steps the largest eigenvalue over its edge is on average "
        f"{said}."
    )
    chart: Callable[..., Lines] = partial(Lines, x_label="step", note="one line for each learning rate")
    return Findings(
        answer,
        sentence,
        {"curvature_over_edge": ratios},
        tuple(table),
        (
            chart(
                "The curvature over the edge of stability",
                "The largest eigenvalue over the value beyond which the optimiser diverges on a quadratic. Training raises it to "
                "1 (dashed), where every further rise is undone by the instability that it makes.",
                tuple(lines),
                y_label="curvature / edge",
                level=1.0,
            ),
            chart(
                "The curvature itself",
                "The largest eigenvalue of the Hessian, not preconditioned.",
                tuple(raw),
                y_label="λmax",
            ),
            chart(
                "Training",
                "The loss falls on, although not at every step.",
                tuple(losses),
                y_label="training loss",
                log_y=True,
            ),
        ),
        words={_key(kind, eta): f"{NAMES[kind]}, η = {eta:g}" for kind, eta in runs},
        facts=(
            "The errors are those of the mean over four blocks of time and of the eigenvalue's residual. "
            f"Yes means within {100 * ALLOWED['gd']:.0f} % of 1 for gradient descent and {100 * ALLOWED['adam']:.0f} % for Adam.",
        ),
    )
