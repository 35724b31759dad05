"""The experiments: which cells each one is made of, and what is asked of them.

An `Experiment` is a name, `Settings` and the level of each condition. Whoever performs it does the loop, and may show, store
and resume what is finished:

    experiment = real_vs_random(Settings())
    store = {}                                    # or a mapping over files: key -> Snapshot
    for cell in all_cells(experiment.settings):
        finished.append(run_cell(cell, experiment.settings, store))
    outcome = conclude(experiment, finished)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from spectral.experiments.cell import GIVEN, INIT, TRUE, CellResult, Condition, Settings
from spectral.experiments.effects import KEY_METRICS, Result, Trend, collect, trend


@dataclass(frozen=True)
class Experiment:
    """What to do and what to ask: `levels` maps each condition to its place on the swept axis (empty: no axis).

    `axis` says along what in words ("with depth"), `words` names each condition as a person reads it. `asked` are metrics
    that the question names beside the one of the first picture; `expected` is "falls" or "grows" where yes means that
    direction of it, "moves" where either is a yes, "" where the question is not one of yes or no.
    """

    name: str
    question: str
    settings: Settings
    levels: dict[str, float] = field(default_factory=dict)
    axis: str = ""
    words: dict[str, str] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    expected: str = ""


@dataclass(frozen=True)
class Outcome:
    """An experiment with its tables, and for a sweep the trend of every key metric of every matrix."""

    experiment: Experiment
    result: Result
    trends: tuple[Trend, ...]


def real_vs_random(settings: Settings) -> Experiment:
    """The flagship: do spectra at initialisation, after true labels and after random labels differ, and in what?

    `Settings()` is digits, n = 300, the MLP 64-64-64-10, Adam to a loss of 1e-3, five seeds, every matrix: 240 cells.
    """
    question = "Does the Jacobian's spectrum tell a network that learnt a rule from one that memorised random labels?"
    return Experiment("real_vs_random", question, settings)


def label_noise_sweep(settings: Settings, noises: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)) -> Experiment:
    """Does the spectrum move steadily from true to random labels as a fraction `noises` of them is permuted?"""
    if len(noises) < 3 or any(not 0 <= noise <= 1 for noise in noises):
        raise ValueError(f"noises={list(noises)} is no sweep; use three fractions or more, each from 0 to 1.")
    levels = {f"noise{100 * noise:g}": float(noise) for noise in noises}
    conditions = tuple(Condition(name, noise) for name, noise in levels.items())
    question = "Do rank and alignment of the Jacobian's spectrum follow the fraction of permuted labels?"
    return Experiment(
        "label_noise_sweep",
        question,
        replace(settings, conditions=conditions),
        levels,
        axis="with the fraction of permuted labels",
        words={name: f"{100 * level:g} % permuted" for name, level in levels.items()},
        asked=("own_label_alignment",),
        expected="moves",
    )


def depth_sweep(
    settings: Settings, options: Mapping[int, Mapping[str, object]] | None = None, noise: float = 0.0
) -> Experiment:
    """Does the funnel sharpen with depth? `options` maps each depth to the model's options at that depth.

    The default is MLPs of 1 to 5 hidden layers of 64; for residual networks give, with model_for(kind="resnet") as the
    settings' model, {depth: {"depth": depth} for depth in (20, 32, 44, 56, 110)}. Training on labels with `noise`.
    """
    options = {depth: {"widths": (64,) * depth} for depth in (1, 2, 3, 4, 5)} if options is None else options
    if len(options) < 3:
        raise ValueError(f"depths {list(options)} are no sweep; give three depths or more.")
    levels = {f"depth{depth}": float(depth) for depth in options}
    conditions = tuple(Condition(f"depth{depth}", noise, options=chosen) for depth, chosen in options.items())
    question = "Does the Jacobian's spectrum sharpen with depth, to fewer directions?"
    return Experiment(
        "depth_sweep",
        question,
        replace(settings, conditions=conditions),
        levels,
        axis="with depth",
        words={name: f"depth {level:g}" for name, level in levels.items()},
        expected="falls",
    )


def jacobian_evolution(
    settings: Settings, epochs: Sequence[int] = (0, 1, 2, 5, 10, 20, 50), noise: float = 0.0
) -> Experiment:
    """How does the spectrum change through training? Each point is the network after so many epochs (or at its target).

    Training is repeatable, so each network is trained afresh up to its epoch: the cost is the sum of `epochs`.
    """
    if len(epochs) < 3 or min(epochs) < 0:
        raise ValueError(f"epochs={list(epochs)} show no evolution; use three numbers or more, each >= 0.")
    levels = {f"epoch{epoch}": float(epoch) for epoch in epochs}
    conditions = tuple(Condition(f"epoch{epoch}", noise, epochs=epoch) for epoch in epochs)
    question = "How does the Jacobian's spectrum grow out of that at initialisation?"
    return Experiment(
        "jacobian_evolution",
        question,
        replace(settings, conditions=conditions),
        levels,
        axis="through training",
        words={name: f"after {level:g} epoch{'s' * (level != 1)}" for name, level in levels.items()},
    )


def language_model(settings: Settings, trains: bool = True) -> Experiment:
    """Is the curvature of a language model block diagonal, and are its blocks alike?

    `settings.blocks` are globs of modules or parameters (`settings.by`); those that fit have their own spectra. `trains`: before
    and after training; otherwise with the weights that the model is built with.
    """
    first = replace(settings, conditions=(INIT, TRUE) if trains else (GIVEN,))
    model = first.build(settings.problem(seed=settings.seeds[0]), settings.seeds[0], first.conditions[0])
    parameters = [name for name, p in model.named_parameters() if p.requires_grad]
    named = parameters if settings.by == "parameter" else [name.rpartition(".")[0] or "(root)" for name in parameters]
    chosen = tuple(dict.fromkeys(name for name in named if any(fnmatchcase(name, glob) for glob in settings.blocks)))
    if len(chosen) < 2:
        raise ValueError(
            f"blocks={list(settings.blocks)} are {len(chosen)} of {', '.join(dict.fromkeys(named))}; name two or more by globs."
        )
    return Experiment(
        "language_model",
        "Is the curvature of a language model block diagonal, and are its blocks alike?",
        replace(first, blocks=chosen),
        words={"init": "before training", "true": "after training", "given": "with its given weights"},
    )


def layer_weightwatcher(settings: Settings) -> Experiment:
    """Does the exponent of a layer's weight go with that of the layer's curvature, over the layers of one network?"""
    question = "Does the exponent of a layer's weight tell that of the layer's curvature?"
    return Experiment("layer_weightwatcher", question, settings)


EXPERIMENTS: dict[str, Callable[..., Experiment]] = {
    made.__name__: made
    for made in (
        real_vs_random, label_noise_sweep, depth_sweep, jacobian_evolution, language_model, layer_weightwatcher,
    )
}  # fmt: skip


def conclude(experiment: Experiment, results: Iterable[CellResult]) -> Outcome:
    """The tables of finished cells, and trends where the experiment has an axis and three of its levels are done."""
    result = collect(results)
    trends = []
    reached = [name for name in experiment.levels if name in result.conditions]
    if len(reached) >= 3:
        trends = [
            trend(result, row.matrix, row.metric, {name: experiment.levels[name] for name in reached})
            for row in result.rows
            if row.metric in KEY_METRICS and sum(name in row.values for name in reached) >= 3
        ]
    return Outcome(experiment, result, tuple(trends))
