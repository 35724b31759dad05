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
from typing import Any

from spectral.experiments.cell import BLOCKWISE, GIVEN, INIT, TRUE, CellResult, Condition, Settings
from spectral.experiments.datasets import INPUTS
from spectral.experiments.effects import KEY_METRICS, Result, Trend, collect, trend
from spectral.experiments.prose import prose
from spectral.schema import COUNT, SHARE, Flag, Is, Items, Number, Text, held, ruled

ASKED: dict[str, dict[str, Any]] = prose(__file__)


@dataclass(frozen=True)
class Experiment:
    """What to do and what to ask: `levels` maps each condition to its place on the swept axis (empty: no axis).

    `axis` says along what in words ("with depth"), `words` names each condition as a person reads it. `asked` are metrics
    that the question names beside the one of the first picture; `expected` is "falls" or "grows" where yes means that
    direction of it, "moves" where either is a yes, "" where the question is not one of yes or no. `rule` names the rule of
    `spectral.pages.verdict` that answers ("": two conditions, or a trend where there is an axis). `expectation` is what
    others found or predicted, `reference` who.
    """

    name: str
    question: str
    settings: Settings
    levels: dict[str, float] = field(default_factory=dict)
    axis: str = ""
    words: dict[str, str] = field(default_factory=dict)
    asked: Sequence[str] = ()
    expected: str = ""
    rule: str = ""
    expectation: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Outcome:
    """An experiment with its tables, and for a sweep the trend of every key metric of every matrix."""

    experiment: Experiment
    result: Result
    trends: tuple[Trend, ...]


def _asked(name: str, settings: Settings, **more: Any) -> Experiment:
    """The experiment of this name, which asks what experiments.yaml says."""
    return Experiment(name, settings=settings, **ASKED[name], **more)


def _swept(name: str, settings: Settings, points: Sequence[tuple[Condition, float, str]]) -> Experiment:
    """An experiment along an axis: of each point the condition, its level, and its name in words."""
    return _asked(
        name,
        replace(settings, conditions=tuple(condition for condition, _, _ in points)),
        levels={condition.name: float(level) for condition, level, _ in points},
        words={condition.name: words for condition, _, words in points},
    )


def real_vs_random(settings: Settings) -> Experiment:
    """The flagship: do spectra at initialisation, after true labels and after random labels differ, and in what?

    `Settings()` is digits, n = 300, the MLP 64-64-64-10, Adam to a loss of 1e-3, five seeds, every matrix: 240 cells.
    """
    return _asked("real_vs_random", settings)


@ruled(noises=Items(SHARE, least=3, distinct=True))
def label_noise_sweep(settings: Settings, noises: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)) -> Experiment:
    """Does the spectrum move steadily from true to random labels as a fraction `noises` of them is permuted?"""
    held(label_noise_sweep, locals())
    points = [(Condition(f"noise{100 * x:g}", float(x)), x, f"{100 * x:g} % permuted") for x in noises]
    return _swept("label_noise_sweep", settings, points)


def _of_depths(given: Any) -> bool:
    """Whether these are mappings by depths, which may be in letters: hydra deletes what has a name, and no number is one."""
    known = isinstance(given, Mapping) and all(str(depth).isdecimal() and int(depth) > 0 for depth in given)
    return known and len(given) > 2 and all(isinstance(options, Mapping) for options in given.values())


MLPS: dict[int, dict[str, object]] = {depth: {"widths": (64,) * depth} for depth in (1, 2, 3, 4, 5)}


@ruled(noise=SHARE, options=Is(_of_depths, "three depths or more, with the model's options"))
def depth_sweep(
    settings: Settings, options: Mapping[int, Mapping[str, object]] = MLPS, noise: float = 0.0
) -> Experiment:
    """Does the funnel sharpen with depth? `options` maps each depth to the model's options at that depth.

    The default is MLPs of 1 to 5 hidden layers of 64; for residual networks give, with model_for(kind="resnet") as the
    settings' model, {depth: {"depth": depth} for depth in (20, 32, 44, 56, 110)}. Training on labels with `noise`.
    """
    held(depth_sweep, locals())
    sizes = {int(depth): chosen for depth, chosen in options.items()}  # a configuration's are names
    points = [(Condition(f"depth{d}", noise, options=chosen), d, f"depth {d}") for d, chosen in sizes.items()]
    return _swept("depth_sweep", settings, points)


@ruled(noise=SHARE, epochs=Items(COUNT, least=3, distinct=True))
def jacobian_evolution(
    settings: Settings, epochs: Sequence[int] = (0, 1, 2, 5, 10, 20, 50), noise: float = 0.0
) -> Experiment:
    """How does the spectrum change through training? Each point is the network after so many epochs (or at its target).

    Training is repeatable, so each network is trained afresh up to its epoch: the cost is the sum of `epochs`.
    """
    held(jacobian_evolution, locals())
    points = [(Condition(f"epoch{n}", noise, epochs=n), n, f"after {n} epoch{'s' * (n != 1)}") for n in epochs]
    return _swept("jacobian_evolution", settings, points)


@ruled(trains=Flag(), **BLOCKWISE)
def language_model(settings: Settings, trains: bool = True) -> Experiment:
    """Is the curvature of a language model block diagonal, and are its blocks alike?

    `settings.blocks` are globs of modules or parameters (`settings.by`); those that fit have their own spectra. `trains`: before
    and after training; otherwise with the weights that the model is built with.
    """
    held(language_model, locals())
    first = replace(settings, conditions=(INIT, TRUE) if trains else (GIVEN,))
    model = first.build(settings.problem(seed=settings.seeds[0]), settings.seeds[0], first.conditions[0])
    parameters = [name for name, p in model.named_parameters() if p.requires_grad]
    named = parameters if settings.by == "parameter" else [name.rpartition(".")[0] or "(root)" for name in parameters]
    chosen = tuple(dict.fromkeys(name for name in named if any(fnmatchcase(name, glob) for glob in settings.blocks)))
    if len(chosen) < 2:
        raise ValueError(
            f"blocks={list(settings.blocks)} are {len(chosen)} of {', '.join(dict.fromkeys(named))}; name two or more by globs."
        )
    return _asked("language_model", replace(first, blocks=chosen))


@ruled(inputs=Items(Text(*INPUTS), least=2, distinct=True))
def input_noise(settings: Settings, inputs: Sequence[str] = INPUTS) -> Experiment:
    """Is the spectrum of a network that was trained on noise that of a random matrix?

    Each condition has the true labels and other inputs (`Problem.with_inputs`); "real" and "gaussian" must be among them.
    """
    held(input_noise, locals())
    if not {"real", "gaussian"} <= set(inputs):
        raise ValueError(
            f"inputs={list(inputs)} compare nothing with noise; name real and gaussian, and others beside them."
        )
    conditions = tuple(Condition(name, 0.0, inputs=name) for name in inputs)
    made = _asked("input_noise", replace(settings, conditions=conditions))
    return replace(made, words={name: made.words[name] for name in inputs})


def jacobian_diagonal(settings: Settings) -> Experiment:
    """Is the diagonal ||J_i||_F^2 heavy-tailed for probabilities, and do networks agree on which samples stand out?

    All seeds must have the same samples (`data_seed`), or their numbers cannot be compared.
    """
    if settings.data_seed is None:
        raise ValueError("data_seed is not given, so that each seed has samples of its own; use data_seed=0.")
    return _asked("jacobian_diagonal", settings)


def ntk_information_space(settings: Settings) -> Experiment:
    """Do the labels lie in the information space, the directions that hold 90 % of the kernel's trace?"""
    return _asked("ntk_information_space", settings)


@ruled(classes=Items(Number(True, least=2), least=1, distinct=True))
def ggn_outliers(settings: Settings, classes: Sequence[int] = (3, 4, 6, 8)) -> Experiment:
    """How many outliers has the Gauss-Newton matrix for how many classes, before and after training?"""
    held(ggn_outliers, locals())
    before = [Condition(f"init{count}", None, classes=count) for count in classes]
    after = [Condition(f"classes{count}", 0.0, classes=count) for count in classes]
    both = ("before", before), ("after", after)
    words = {c.name: f"{c.classes} classes, {when} training" for when, conditions in both for c in conditions}
    return _asked("ggn_outliers", replace(settings, conditions=(*before, *after)), words=words)


def hessian_index(settings: Settings) -> Experiment:
    """Which part of the Hessian is negative, before and after training?"""
    return _asked("hessian_index", settings)


@ruled(**{name: BLOCKWISE[name] for name in ("block_probes", "block_steps")})
def layer_weightwatcher(settings: Settings) -> Experiment:
    """Does the exponent of a layer's weight go with that of the layer's curvature, over the layers of one network?"""
    return _asked("layer_weightwatcher", settings)


EXPERIMENTS: dict[str, Callable[..., Experiment]] = {
    made.__name__: made
    for made in (
        real_vs_random, label_noise_sweep, input_noise, jacobian_evolution, depth_sweep, jacobian_diagonal,
        ntk_information_space, ggn_outliers, hessian_index, language_model, layer_weightwatcher,
    )
}  # fmt: skip


def conclude(experiment: Experiment, results: Iterable[CellResult]) -> Outcome:
    """The tables of finished cells, and trends where the experiment has an axis and three of its levels are done."""
    result, levels = collect(results), experiment.levels
    trends = [
        trend(result, row.matrix, row.metric, levels)
        for row in result.rows
        if row.metric in KEY_METRICS and sum(name in row.values for name in levels) >= 3
    ]
    return Outcome(experiment, result, tuple(trends))
