"""The loss around a trained network in two planes: along its top eigenvectors, and along filter-normalised random directions.

Symbols: θ the trained parameters (P,), H the Hessian of the mean loss there, L(θ + a d₁ + b d₂) the surface. A random direction
is scaled filter by filter to the norm of the weights (Li et al. 2018), so that networks of other scales are drawn alike; its
curvature is quoted per unit of length, dᵀHd / dᵀd, as that of an eigenvector is.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from spectral import Estimate, Hessian, Operator, probes, top
from spectral.analysis.summary import ratio_of
from spectral.experiments.cell import TRUE, Settings, Snapshot
from spectral.experiments.datasets import Problem, batches, in_dtype, stream
from spectral.experiments.prose import filled, prose, say, told
from spectral.experiments.study import Cost, Findings, Part, Parts, Sheet, Study, Surfaces, one_seed
from spectral.experiments.training import few_threads, train
from spectral.results import Array
from spectral.schema import Number, held, ruled

TEXTS = prose(__file__)
PLANES = {  # in words, each of the two directions, and its letter
    "eigenvectors": ("the top two eigenvectors", "eigenvector", "v"),
    "random": ("two filter-normalised random directions", "direction", "d"),
}
LENGTH = 1e-5  # of the steps of second differences, at most: rounding is far below
RISE = 2.0  # nats, of which the loss rises by at most twice so many along the first eigenvector in its picture


@ruled(points=Number(True, least=5), checkpoints=Number(True, least=2))
def cross_section(settings: Settings, *, points: int = 31, checkpoints: int = 12) -> Study:
    """The surface on `points` x `points` values in each plane, with `checkpoints` of the training as a path on it."""
    held(cross_section, locals())
    one_seed(settings)
    if points % 2 == 0:
        raise ValueError(f"points={points} have none in the middle; use an odd number.")
    planes = {plane: partial(_plane, settings, plane, points) for plane in PLANES}
    steps = {"training": partial(_training, settings, checkpoints), **planes}
    return Study(settings=settings, steps=steps, conclude=_concluded, **TEXTS["study"])


# Steps ---------------------------------------------------------------------------------------------------------------
def _begun(settings: Settings) -> tuple[Problem, nn.Module]:
    """The data of the first seed, and its network before training."""
    problem = settings.problem(seed=one_seed(settings)).to(settings.device)
    return problem, settings.build(problem, one_seed(settings), TRUE).to(settings.device)


def _training(settings: Settings, checkpoints: int, parts: Parts, networks: MutableMapping[str, Snapshot]) -> Part:
    """Train to the target; parameters at geometrically spaced epochs, the first and the last among them, (T, P)."""
    cost, seed, (problem, model) = Cost(), one_seed(settings), _begun(settings)
    path = [parameters_to_vector(model.parameters()).detach().clone()]

    def record(epoch: int, loss: float) -> None:
        path.append(parameters_to_vector(model.parameters()).detach().clone())

    trained = train(model, problem.x_train, problem.y_train, seed=seed, progress=record, **settings.training)  # type: ignore[arg-type]
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    networks["trained"] = Snapshot(state, trained, 0.0, 0.0)
    epochs = np.unique(np.round(np.geomspace(1, len(path), checkpoints)).astype(int) - 1)
    arrays = {"epochs": epochs.astype(float), "path": torch.stack([path[e] for e in epochs]).cpu().double().numpy()}
    facts = {"loss": trained.loss, "reached": trained.reached, "trained": trained.sentence, "parameters": len(path[0])}
    return Part(arrays, {**facts, **cost.of()})


def _plane(settings: Settings, plane: str, points: int, parts: Parts, networks: MutableMapping[str, Snapshot]) -> Part:
    """Directions (P, 2), the surface along them, and its curvature at the centre, by products and by differences."""
    cost, seed, (problem, model) = Cost(), one_seed(settings), _begun(settings)
    model.load_state_dict(networks["trained"].state)
    model = model.to(settings.dtype).eval()
    x, y = in_dtype(problem.x_train, settings.dtype), problem.y_train
    H = Hessian(model, nn.CrossEntropyLoss(), batches(x, y, settings.batch_size))
    theta = parameters_to_vector(model.parameters()).detach()
    with few_threads(model):
        facts: dict[str, float] = {}
        if plane == "eigenvectors":
            found = top(H, 2, tol=1e-6, progress=False)
            D, known, error = found.vectors, found.values, found.residuals
            radius = math.sqrt(2 * RISE / max(float(known[0]), 1e-12))  # of the quadratic, which the loss soon leaves
            with torch.no_grad():
                while max(_loss(model, x, y, theta + s * radius * D[:, 0]) for s in (-1, 1)) > 2 * RISE:
                    radius /= 1.5
                vector_to_parameters(theta, model.parameters())
        else:
            D = torch.stack([filter_normalised(model, stream(seed, "directions"), i) for i in range(2)], 1)
            (known, error), radius = rayleigh(H, D), 1.0
        measured = np.array([curvature(model, x, y, theta, d) for d in D.T])
        path = _coordinates(parts["training"].arrays["path"] - theta.cpu().double().numpy(), D.cpu().double().numpy())
        facts["path_inside"] = path[1]
        reach = np.maximum(radius, 1.1 * np.abs(path[0]).max(0))
        axes = [np.linspace(-r, r, points) for r in reach]
        z = surface(model, x, y, theta, D, *axes)
    arrays = {
        "x": axes[0], "y": axes[1], "loss": z, "path": path[0], "known": np.asarray(known, np.float64), "known_error": error,
        "measured": measured[:, 0], "measured_error": measured[:, 1],
    }  # fmt: skip
    return Part(arrays, {**facts, **cost.of(H)})


def filter_normalised(model: nn.Module, seed: int, index: int) -> Tensor:
    """A Gaussian direction (P,), each filter (row of a weight) scaled to the norm of the model's; 0 for biases and norms."""
    parts = []
    for place, p in enumerate(model.parameters()):
        d = probes.probe(seed, 2 * place + index, p.numel(), dtype=p.dtype, device=p.device).view_as(p)
        if p.ndim < 2:
            parts.append(torch.zeros_like(d).reshape(-1))
            continue
        rows, weights = d.reshape(len(d), -1), p.detach().reshape(len(p), -1)
        parts.append((rows * (weights.norm(dim=1) / rows.norm(dim=1))[:, None]).reshape(-1))
    return torch.cat(parts)


def rayleigh(H: Operator, D: Tensor) -> Array:
    """dᵀHd / dᵀd of each column by products, and its error by their rounding, which is relative to ‖Hd‖: (2, columns)."""
    HD, squares = H @ D, (D * D).sum(0)
    parts = (D * HD).sum(0) / squares, H.epsilon * HD.norm(dim=0) / squares.sqrt()
    return torch.stack(parts).cpu().double().numpy()


def surface(model: nn.Module, x: Tensor, y: Tensor, theta: Tensor, D: Tensor, a: Array, b: Array) -> Array:
    """The mean cross entropy at θ + a d₁ + b d₂, (len(b), len(a)); the model has the parameters θ afterwards."""
    with torch.no_grad():
        z = [[_loss(model, x, y, theta + float(u) * D[:, 0] + float(v) * D[:, 1]) for u in a] for v in b]
        vector_to_parameters(theta, model.parameters())
    return np.array(z)


def curvature(model: nn.Module, x: Tensor, y: Tensor, theta: Tensor, d: Tensor) -> tuple[float, float]:
    """(dᵀ H d / dᵀ d by second differences of the loss at steps of h, its error).

    The kinks of a network with ReLUs have no second derivative: one at t < h adds (h - t) / h² times its bend, which is at most
    four times what the differences at h, 2 h and 4 h are then apart. Of h = `LENGTH` and shorter ones that is taken at which
    kinks and rounding leave the least error.
    """
    found, d = [], d / d.norm()
    with torch.no_grad():
        for h in LENGTH * 0.25 ** np.arange(5.0):
            at = {k: _loss(model, x, y, theta + k * h * d) for k in (-4, -2, -1, 0, 1, 2, 4)}
            near, far, further = ((at[k] - 2 * at[0] + at[-k]) / (k * h) ** 2 for k in (1, 2, 4))
            rounding = 16 * torch.finfo(theta.dtype).eps * max(at.values()) / h**2
            found.append((float(near), float(4 * max(abs(near - far), abs(far - further)) + rounding)))
        vector_to_parameters(theta, model.parameters())
    return min(found, key=lambda each: each[1])


def _loss(model: nn.Module, x: Tensor, y: Tensor, theta: Tensor) -> float:
    vector_to_parameters(theta, model.parameters())
    return float(F.cross_entropy(model(x), y))


def _coordinates(path_TP: Array, D_P2: Array) -> tuple[Array, float]:
    """The path in the plane, by least squares (T, 2), and which part of its squared length from θ lies in it."""
    coordinates = np.asarray(np.linalg.lstsq(D_P2, path_TP.T, rcond=None)[0].T, dtype=np.float64)
    total = float((path_TP**2).sum())
    return coordinates, float(((coordinates @ D_P2.T) ** 2).sum()) / total if total > 0 else math.nan


# What follows --------------------------------------------------------------------------------------------------------
def _concluded(parts: Parts) -> Findings:
    known: dict[str, Estimate] = {}
    measured: dict[str, Estimate] = {}
    table, sheets, agree = [], [], []
    for plane, (words, noun, letter) in PLANES.items():
        a, facts = parts[plane].arrays, parts[plane].facts
        for i, place in enumerate(("first", "second")):
            key = f"{plane}-{i + 1}"
            known[key] = Estimate(float(a["known"][i]), float(a["known_error"][i]), products=int(facts["products"]))
            measured[key] = Estimate(float(a["measured"][i]), float(a["measured_error"][i]))
            allowed = 3 * (float(measured[key].stderr) + float(known[key].stderr)) + 0.01 * abs(float(known[key]))
            agree.append(abs(float(measured[key]) - float(known[key])) <= allowed)
            numbers = {"a": a, "facts": facts, "known": known[key], "measured": measured[key]}
            table.append(filled(TEXTS["table"], plane=words, direction=f"{place} {noun}", **numbers))
        axes = (f"along {letter}₁", f"along {letter}₂")
        sheets.append(Sheet(words, a["x"], a["y"], a["loss"], a["path"], *axes))
    e = parts["eigenvectors"].arrays
    sure = all(e["measured_error"] < 0.1 * np.abs(e["known"]))  # else agreement says nothing
    answer = "no" if not all(agree) else "yes" if sure else "undecided"
    seen, eigenvalues = ([x[f"eigenvectors-{i}"] for i in (1, 2)] for x in (measured, known))
    steepest, *random = (known[key] for key in ("eigenvectors-1", "random-1", "random-2"))
    flatter = sorted((abs(x), error) for x, error in (ratio_of(steepest, one) for one in random))
    inside = parts["eigenvectors"].facts["path_inside"]
    sentence = say(TEXTS["sentence"], answer=answer, seen=seen, values=eigenvalues, flatter=flatter, inside=inside)
    return Findings(
        answer,
        sentence,
        {"curvature_by_products": known, "curvature_of_surface": measured},
        tuple(table),
        (Surfaces(sheets=tuple(sheets), **TEXTS["charts"]["loss"]),),
        words={f"{plane}-{i}": f"{words}, {i}" for plane, (words, *_) in PLANES.items() for i in (1, 2)},
        facts=tuple(told(TEXTS["facts"], trained=parts["training"].facts["trained"], length=LENGTH)),
    )
