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
from spectral.experiments.datasets import INPUTS
from spectral.experiments.effects import KEY_METRICS, Result, Trend, collect, trend


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
    asked: tuple[str, ...] = ()
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


def real_vs_random(settings: Settings) -> Experiment:
    """The flagship: do spectra at initialisation, after true labels and after random labels differ, and in what?

    `Settings()` is digits, n = 300, the MLP 64-64-64-10, Adam to a loss of 1e-3, five seeds, every matrix: 240 cells.
    """
    question = "Does the Jacobian's spectrum tell a network that learnt a rule from one that memorised random labels?"
    return Experiment(
        "real_vs_random",
        question,
        settings,
        expectation="Networks that learnt a rule answer along fewer directions (smaller effective rank, more energy "
        "in the top C) and hold their labels there; scale goes the other way. A pilot on this network; a direction, not a law.",
        reference="Zhang et al. 2017, Understanding deep learning requires rethinking generalization; Oymak et al. 2019, "
        "arXiv 1906.05392",
    )


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
        expectation="Both move steadily from their values of true labels to those of random ones: a hypothesis.",
        reference="Zhang et al. 2017, Understanding deep learning requires rethinking generalization; Oymak et al. 2019, "
        "arXiv 1906.05392",
    )


def depth_sweep(
    settings: Settings, options: Mapping[int, Mapping[str, object]] | None = None, noise: float = 0.0
) -> Experiment:
    """Does the funnel sharpen with depth? `options` maps each depth to the model's options at that depth.

    The default is MLPs of 1 to 5 hidden layers of 64; for residual networks give, with model_for(kind="resnet") as the
    settings' model, {depth: {"depth": depth} for depth in (20, 32, 44, 56, 110)}. Training on labels with `noise`.
    """
    sizes = {depth: {"widths": (64,) * depth} for depth in (1, 2, 3, 4, 5)} if options is None else options
    options = {int(depth): chosen for depth, chosen in sizes.items()}  # a configuration's are names
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
        expectation="The funnel sharpens with depth: fewer directions. A hypothesis; public tables of residual networks show no "
        "steady exponent (CIFAR-10, ResNet-20 to 272: 3.24, 2.93, 2.98, 1.91, 7.45).",
        reference="He et al. 2016, Identity mappings in deep residual networks, arXiv 1603.05027, for the networks",
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
        expectation="The largest eigenvalue grows and then saturates, while the effective rank falls.",
        reference="Fort et al. 2020, Deep learning versus kernel learning, arXiv 2010.15110; Oymak et al. 2019, arXiv 1906.05392",
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
        rule="of_blocks",
        expectation="A gap of order 1, so that a block diagonal is no small change of the matrix, and blocks that "
        "differ by much.",
        reference="Granziol and Juarev 2026, Hessian spectral analysis at foundation model scale, arXiv 2602.00816; Zhang et al. "
        "2024, Why transformers need Adam, arXiv 2402.16788",
    )


def input_noise(settings: Settings, inputs: Sequence[str] = INPUTS) -> Experiment:
    """Is the spectrum of a network that was trained on noise that of a random matrix?

    Each condition has the true labels and other inputs (`Problem.with_inputs`); "real" and "gaussian" must be among them.
    """
    if not {"real", "gaussian"} <= set(inputs):
        raise ValueError(
            f"inputs={list(inputs)} compare nothing with noise; name real and gaussian, and others beside them."
        )
    said = {
        "real": "real inputs",
        "shuffled": "features shuffled, alike in all samples",
        "scrambled": "features shuffled in each sample",
        "gaussian": "Gaussian inputs",
    }
    return Experiment(
        "input_noise",
        "Is the spectrum of a network that was trained on noise that of a random matrix, Marchenko and Pastur's?",
        replace(settings, conditions=tuple(Condition(name, 0.0, inputs=name) for name in inputs)),
        words={name: said[name] for name in inputs},
        asked=("mp_spikes",),
        rule="of_noise",
        expectation="Like Marchenko and Pastur's law with Gaussian inputs, with few spikes above it; unlike it with real ones.",
        reference="Marchenko and Pastur 1967; Zhang et al. 2017, Understanding deep learning requires rethinking generalization, "
        "for the inputs",
    )


def jacobian_diagonal(settings: Settings) -> Experiment:
    """Is the diagonal ||J_i||_F^2 heavy-tailed for probabilities, and do networks agree on which samples stand out?

    All seeds must have the same samples (`data_seed`), or their numbers cannot be compared.
    """
    if settings.data_seed is None:
        raise ValueError("data_seed is not given, so that each seed has samples of its own; use data_seed=0.")
    return Experiment(
        "jacobian_diagonal",
        "Do a few samples hold most of the Jacobian of the probabilities, and are they the same whatever the initial weights?",
        settings,
        asked=("max_over_mean", "prototype_overlap"),
        rule="of_prototypes",
        expectation="For probabilities a heavy tail: the largest ‖Jᵢ‖² far above the mean, and the samples that stand "
        "out, next to the boundaries between classes, are shared by networks of other initial weights.",
        reference="Novak et al. 2018, Sensitivity and generalization in neural networks, arXiv 1802.08760, for ‖J‖ "
        "near boundaries; the tail is a hypothesis of this project",
    )


def ntk_information_space(settings: Settings) -> Experiment:
    """Do the labels lie in the information space, the directions that hold 90 % of the kernel's trace?"""
    return Experiment(
        "ntk_information_space",
        "Do true labels lie in the few directions in which the network is easy to move, and random labels outside of them?",
        settings,
        asked=("true_information_alignment", "information_dimension"),
        rule="of_information",
        expectation="The Jacobian has few large singular values; true labels lie in the span of their directions, "
        "random labels do not, and training makes that clearer.",
        reference="Oymak, Fabian, Li and Soltanolkotabi 2019, Generalization guarantees for neural networks via harnessing the "
        "low-rank structure of the Jacobian, arXiv 1906.05392",
    )


def ggn_outliers(settings: Settings, classes: Sequence[int] = (3, 4, 6, 8)) -> Experiment:
    """How many outliers has the Gauss-Newton matrix for how many classes, before and after training?"""
    if len(set(classes)) < len(classes) or min(classes, default=0) < 2:
        raise ValueError(f"classes={list(classes)} are no numbers of classes to compare; use 2 or more, each once.")
    before = {f"init{count}": Condition(f"init{count}", None, classes=count) for count in classes}
    after = {f"classes{count}": Condition(f"classes{count}", 0.0, classes=count) for count in classes}
    return Experiment(
        "ggn_outliers",
        "Does the curvature of a trained classifier have one outlier for each of its C classes, C or C − 1 in all?",
        replace(settings, conditions=(*before.values(), *after.values())),
        words={
            name: f"{c.classes} classes, {'before' if c.noise is None else 'after'} training"
            for name, c in (before | after).items()
        },
        asked=("outlier_gap",),
        rule="of_classes",
        expectation="After training C outliers, or C − 1 without the classes' common direction. Before it the "
        "predictions are near uniform, and C tight clusters give C (C − 1): one for each pair.",
        reference="Sagun et al. 2017, arXiv 1706.04454; Papyan 2019, arXiv 1901.08244, and 2020, arXiv 2008.11865",
    )


def hessian_index(settings: Settings) -> Experiment:
    """Which part of the Hessian is negative, before and after training?"""
    return Experiment(
        "hessian_index",
        "Does training end in a minimum, or in a point from which the loss still curves down in some directions?",
        settings,
        asked=("negative_fraction", "lambda_min", "lambda_max"),
        rule="of_index",
        expectation="Points of low loss have few directions of negative curvature, and those are shallow: nearly "
        "minima, and more so the lower the loss.",
        reference="Bray and Dean 2007, arXiv cond-mat/0611023; Dauphin et al. 2014, Identifying and attacking the saddle point "
        "problem, arXiv 1406.2572; Sagun et al. 2017, arXiv 1706.04454",
    )


def layer_weightwatcher(settings: Settings) -> Experiment:
    """Does the exponent of a layer's weight go with that of the layer's curvature, over the layers of one network?"""
    question = "Does the exponent of a layer's weight tell that of the layer's curvature?"
    return Experiment(
        "layer_weightwatcher",
        question,
        settings,
        rule="of_layers",
        expectation="None is established. Tails of small layers are seldom power laws, so the share of those that pass for one "
        "stands beside the correlation.",
        reference="Martin, Peng and Mahoney 2021, Predicting trends in the quality of state-of-the-art neural networks without "
        "access to training or testing data, Nature Communications 12, 4122, for the exponents of weights",
    )


EXPERIMENTS: dict[str, Callable[..., Experiment]] = {
    made.__name__: made
    for made in (
        real_vs_random, label_noise_sweep, input_noise, jacobian_evolution, depth_sweep, jacobian_diagonal,
        ntk_information_space, ggn_outliers, hessian_index, language_model, layer_weightwatcher,
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
