"""What a configuration may say: checked whole before any of it is built, run or written; every setting has a rule.

A folder of configurations may come from anywhere (`--config-dir`): what may be named is in `targets`, hydra's in `hydra_node`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import spectral
from spectral.analysis import METRICS
from spectral.app.targets import Target, check_targets, locate
from spectral.engine import linearize
from spectral.estimators import diagonal, esd, kpm, stopping, trace
from spectral.estimators.budget import Budget
from spectral.estimators.search import KEYS
from spectral.experiments import own, pretrained
from spectral.experiments.cell import KINDS, RULES, SEED
from spectral.experiments.datasets import SAMPLED, TARGETS, arrays_file, digits, mixture, mnist, text
from spectral.experiments.experiments import EXPERIMENTS
from spectral.experiments.models import GIVEN, OWN
from spectral.experiments.studies import READS as STUDIED
from spectral.experiments.studies import STUDIES
from spectral.experiments.training import train
from spectral.krylov.basis import check_place
from spectral.krylov.lanczos import MODES
from spectral.networks.curvature import LAYOUTS
from spectral.networks.products import budget_bytes
from spectral.operators.foreign import as_operator
from spectral.pages.build import TEXTS
from spectral.schema import (
    NAME,
    POSITIVE,
    RULED,
    SHARE,
    SIZE,
    Checked,
    Either,
    Fields,
    Flag,
    Is,
    Items,
    Law,
    Mismatch,
    Number,
    Plain,
    Rule,
    Same,
    Text,
    maybe,
    shown,
)

DTYPES = ("float64", "float32")
PRODUCT_DTYPES = (*DTYPES, "bfloat16", "float16")
NUMBERS = {  # estimators that make no spectrum, and what they give
    spectral.top: "eigenvalues",
    spectral.svd: "singular values",
    spectral.trace: "trace",
    spectral.diagonal: "diagonal",
}
SPECTRA = (spectral.esd, spectral.slq, spectral.kpm, spectral.exact)
OPERATORS = (spectral.Jacobian, spectral.Hessian, spectral.GaussNewton, spectral.Fisher, spectral.EmpiricalFisher)
HIDDEN = ("checkpoint", "progress", "f")  # keywords that are the command's own to give


def _keywords(target: Any, skipped: tuple[str, ...] = ()) -> list[str]:
    """The keywords of a function that a configuration may give."""
    known = inspect.signature(target).parameters.values()
    named = [
        p.name for p in known if p.kind == inspect.Parameter.KEYWORD_ONLY or p.default is not inspect.Parameter.empty
    ]
    return [name for name in named if name not in (*skipped, *HIDDEN)]


# Rules of the groups -----------------------------------------------------------------------------------------------------
MODELS = {kind: RULED[make] for kind, make in OWN.items()} | dict.fromkeys(GIVEN, Fields())
# Of a model: what its data must be, read by the group data.
READS: dict[str, Rule] = {"images": Flag(), "text": pretrained.TEXT, "predicts": Text(*TARGETS)}
PLACE = Text(pattern=own.PLACE.pattern, said="FILE.py:FUNCTION")
FOLDER = Is(lambda x: isinstance(x, str) and Path(x, "config.json").is_file(), "a folder with config.json and weights")
ANYTHING = Fields(others=Plain())


def _model(target: Any) -> Fields | None:
    """A network of ours for a problem, one of your own, or a module of torch.nn with its own arguments."""
    if target is own.model:
        return Fields({"path": PLACE}, {**READS, "checkpoint": maybe(NAME), "options": ANYTHING})
    if target is own.huggingface:  # its own tokens are looked at where data are text, as data.tokens
        return Fields({"name": FOLDER}, {**READS, "text": NAME})
    if inspect.isclass(target) and issubclass(target, nn.Module) and target.__module__.startswith("torch.nn"):
        return Fields(may=READS, others=Plain())
    if target is not locate("spectral.experiments.models.model_for"):
        return None
    ours = {"kind": Text(*MODELS), "options": ANYTHING}
    law = Law(
        "options of its kind",
        lambda f, s: _holds(MODELS[f.get("kind", "mlp")], f.get("options") or {}, "model.options"),
    )
    return Fields(may={**READS, **{k: maybe(v) for k, v in ours.items()}}, laws=(law,))


def _holds(rule: Rule, value: Any, where: str) -> bool:
    """True; the rule's own `Mismatch` goes on to whoever reads the sentence."""
    rule.check(value, where)
    return True


BATCHES = Law(
    "train, test and standardise at auto where its path is FILE.py:FUNCTION, and options nowhere else",
    lambda f, s: (
        not f.get("options")
        if own.place(f["path"]) is None
        else {f.get(name, "auto") for name in ("train", "test", "standardise")} == {"auto"}
    ),
)


OPTIONAL: dict[str, Rule] = {name: Either(rule, Same("auto")) for name, rule in SAMPLED.items()}
DATA: dict[Any, Fields] = {
    own.data: Fields({"path": NAME}, {**OPTIONAL, "options": ANYTHING}, laws=(BATCHES,)),
    **{make: RULED[make] for make in (digits, mnist, arrays_file, text, mixture)},
}


def _loss(target: Any) -> Fields | None:
    if not (inspect.isclass(target) and issubclass(target, nn.modules.loss._Loss)):
        return None
    return Fields(may=dict.fromkeys(inspect.signature(target).parameters, Plain()))


LOSS = Either(Target(_loss, "a loss of torch.nn"), PLACE, None)  # null: the model's own
OPTIONS: dict[str, Rule] = {  # of operators, by their names
    "split": Text("train", "test"),
    "samples": maybe(SIZE),
    "loss": LOSS,
    "forward": PLACE,
    "of": Text("logits", "probs", "loss"),
    "wrt": Text(pattern=r"params|inputs|module:.+", said="params, inputs or module:NAME"),
    "layout": Text("stacked", "flattened", *LAYOUTS),
    "params": maybe(Items(NAME, least=1)),
    "engine": Text(*linearize.ENGINES),
    "product_dtype": maybe(Text(*PRODUCT_DTYPES)),
    "memory": maybe(Checked(budget_bytes, "bytes, such as 512MiB, 2GiB or 0")),
    "preflight": Flag(),
    "chunk": maybe(SIZE),
    "draws": maybe(SIZE),
    "seed": SEED,
}


LAWS = (  # of a Jacobian
    Law("a loss where of=loss, and nowhere else", lambda f, s: (f.get("of") == "loss") == (f.get("loss") is not None)),
    Law(
        "wrt=inputs or module:NAME where layout=flattened",
        lambda f, s: f.get("layout") != "flattened" or f.get("wrt", "params") != "params",
    ),
    Law(
        "wrt=params where params are chosen",
        lambda f, s: f.get("params") is None or f.get("wrt", "params") == "params",
    ),
)


def _operator(target: Any) -> Fields:
    names = [name for name in _keywords(target) if name not in ("model", "data")]
    known = {name: OPTIONS.get(name, Plain()) for name in (*names, "split", "samples", "loss")}
    jacobian = target is spectral.Jacobian
    must = {name: OPTIONS[name] for name in ("split", "samples", *(() if jacobian else ("loss",)))}
    return Fields(must, known, laws=LAWS if jacobian else ())


TOLERANCE = Checked(
    stopping.Tolerance.of, "a number from 0 to 1, such as 1e-3, {count: [low, high, width]} or {cdf: [points, error]}"
)
BUDGET = Checked(
    lambda value: Budget(value, as_operator(np.eye(1))), "a number of products, 10min, 50epochs or 400products"
)
INTERVAL = Checked(kpm.finite_interval, "two numbers [low, high], low < high")
SETTINGS: dict[str, Rule] = {  # of estimators, by their names; what is null is left to the estimator
    "probes": SIZE,
    "steps": SIZE,
    "moments": SIZE,
    "seed": SEED,
    "deflate": Either(Flag(), Same("auto")),
    "reorthogonalize": Either(Flag(), Text(*(m for m in MODES if isinstance(m, str)), "auto")),
    "tol": TOLERANCE,
    "budget": BUDGET,
    "interval": INTERVAL,
    "recurrence": Text("lanczos", "chebyshev"),
    "k": SIZE,
    "block": SIZE,
    "basis": SIZE,
    "rtol": POSITIVE,
    "method": Text(*esd.METHODS),
    "ranks": Text("data", "probes"),  # "both" is a grid, of which the command does not know the shape
}
BASIS = Checked(check_place, "device, bf16, host or the path of a folder")
OWN_SETTINGS: dict[Any, dict[str, Rule]] = {
    spectral.slq: {"basis": BASIS},
    spectral.esd: {"basis": BASIS},
    spectral.top: {"tol": Number(least=0, below=1), "which": Text(*KEYS)},
    spectral.svd: {"tol": Number(least=0, below=1), "which": Text("largest", "smallest")},
    spectral.trace: {"method": Text(*trace.METHODS)},
    spectral.diagonal: {"method": Text(*diagonal.METHODS)},
}


def _estimator(target: Any) -> Fields:
    names = _keywords(target) + (_keywords(spectral.slq) + _keywords(spectral.kpm) if target is spectral.esd else [])
    names += ["k"] if target in (spectral.top, spectral.svd) else []
    rules = {**SETTINGS, **OWN_SETTINGS.get(target, {})}
    must: dict[str, Rule] = {"k": SIZE} if "k" in names else {}
    return Fields(must, {name: maybe(rules.get(name, Plain())) for name in names if name not in must})


METRIC = Text(*METRICS, *TEXTS["notes"])
MATRIX = Text(
    pattern=rf"({'|'.join(KINDS)})\.(logits|probs)\.(train|test)", said="KIND.OUTPUT.SPLIT, such as ntk.logits.train"
)


SHARED: dict[str, Rule] = {**RULES, "headline": Items(MATRIX), "headline_metric": METRIC}
OF_EXPERIMENTS: dict[Any, Fields] = {
    **{study: Fields(may={"seeds": SHARED["seeds"], **RULED[study].may}) for study in STUDIES.values()},
    **{made: Fields(may={**SHARED, **RULED.get(made, Fields()).may}) for made in EXPERIMENTS.values()},
}


TRAINING = Fields(
    {"enabled": Flag(), "noise": SHARE, "options": RULED[train]},
    laws=(Law("noise 0 where nothing is trained", lambda f, s: f["enabled"] or f["noise"] == 0),),
)
CONFIG = Fields(
    {
        "model": Target(_model, "a network of spectral.experiments.models, one of your own, or a module of torch.nn"),
        "data": Target(
            DATA.get,
            "digits, mnist, text, mixture or arrays_file of spectral.experiments.datasets, or data of your own",
        ),
        "training": TRAINING,
        "operator": Target({A: _operator(A) for A in OPERATORS}.get, "an operator of spectral"),
        "estimator": Target({f: _estimator(f) for f in (*SPECTRA, *NUMBERS)}.get, "an estimator of spectral"),
        "analysis": Fields(
            {"top": maybe(SIZE), "alpha_curve": Flag(), "metrics": maybe(Items(METRIC, least=1, distinct=True))}
        ),
        "device": Fields({"name": Text("auto", "cpu", "cuda", "mps"), "threads": maybe(SIZE)}),
        "output": Fields({"root": NAME, "state": NAME, "figures": Flag(), "report": Flag()}),
        "seed": SEED,
        "dtype": Text(*DTYPES),
        "batch_size": SIZE,
        "resume": Flag(),
    },
    {
        "experiment": maybe(Target(OF_EXPERIMENTS.get, "an experiment of spectral.experiments.experiments")),
        "plan": maybe(Same("only")),
        "trust": Items(NAME, distinct=True),
    },
)
UNTRAINED = "An experiment trains its networks; take training=adam, or name no experiment."
NOTED = ("choices", "files")  # what the command itself writes down beside the settings


def check(config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Raise ValueError, one sentence, unless every setting is known, of its kind, in its range, and used by what is run.

    `defaults` are the groups as they are if nobody names them: what an experiment does not look at must be as there.
    """
    check_targets(config)
    ours = {key: value for key, value in config.items() if key not in NOTED}
    try:
        CONFIG.check(ours, "")
        _check_trust(ours)
        _combination(ours, defaults or {})
    except Mismatch as problem:
        raise ValueError(of_all(problem)) from problem


def of_all(problem: Mismatch) -> str:
    """The sentence, of a whole configuration."""
    return problem.sentence.replace("; it has", "; the configuration has")


def _check_trust(config: Mapping[str, Any]) -> None:
    """Raise for Python of one's own that is not listed."""
    paths = {f"{setting}.path": config[setting].get("path") for setting in ("model", "data")}
    paths |= {f"operator.{name}": config["operator"].get(name) for name in ("loss", "forward")}
    files = {setting: found[0] for setting, path in paths.items() if (found := own.place(path))}
    for setting, file in files.items():
        if not own.is_trusted(file, config.get("trust", ())):
            needed = ",".join(dict.fromkeys(files.values()))
            raise ValueError(
                f"{setting}={paths[setting]} runs your own Python, which must be allowed by name: add 'trust=[{needed}]'."
            )


def check_typed(trust: Any, typed: Mapping[str, str]) -> None:
    """Raise unless the files of `trust`, as a configuration has them before interpolation, are those that somebody has typed."""
    given = [part.strip(" '\"") for part in typed.get("trust", "").strip("[] ").split(",") if part.strip(" '\"")]
    if (trust or []) != given or any("$" in file for file in given):
        raise ValueError(
            f"trust={shown(trust)} lets Python of your own run; type trust=[FILE.py] yourself, file by file."
        )


def _combination(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """What is not possible, or would be ignored, together."""
    node = config.get("experiment")
    if not node:
        return
    name = locate(node["_target_"]).__name__
    training = config["training"]
    if config["seed"]:
        raise ValueError(f"seed={config['seed']} is of one spectrum; an experiment has experiment.seeds=[0,1,2].")
    if name in STUDIES:
        _read(name, config, defaults)
        return
    if name == "language_model":
        if training["enabled"] != node.get("trains", True):
            raise ValueError(
                "experiment.trains follows training.enabled; leave it out, and choose training=none or another."
            )
    elif not training["enabled"]:
        raise ValueError(UNTRAINED)
    if locate(config["estimator"]["_target_"]) in NUMBERS:
        raise ValueError("An experiment compares spectra, and this estimator gives none; use esd, slq, kpm or exact.")
    if training["noise"]:
        raise ValueError("An experiment sets the label noise itself; leave training.noise out.")
    if config["estimator"].get("ranks") not in (None, "data"):
        raise ValueError("The ranks of an experiment share its data; leave estimator.ranks out.")
    if config["analysis"]["top"] is not None:
        raise ValueError("An experiment counts as many classes as its data have; leave analysis.top out.")
    if config["operator"] != defaults.get("operator", config["operator"]):
        raise ValueError(
            f"The experiment {name} has matrices of its own (experiment.kinds), and operator would be ignored; leave it out, or "
            f"take experiment=null with model={config['model'].get('kind') or 'mlp'} for one spectrum."
        )
    if name == "depth_sweep":
        if config["model"].get("options") != defaults.get("model", config["model"]).get("options"):
            raise ValueError(
                "depth_sweep gives the model its options at each depth; set experiment.options, not model.options."
            )
        if (kind := config["model"].get("kind")) in MODELS:
            for depth, options in (node.get("options") or {}).items():
                MODELS[kind].check(options, f"experiment.options.{depth}")
    if name == "jacobian_evolution":
        ours, theirs = (c["options"].get("max_epochs") for c in (training, defaults.get("training", training)))
        if ours != theirs:
            raise ValueError("jacobian_evolution trains for experiment.epochs; leave training.options.max_epochs out.")


def _read(study: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """A study trains, and takes its own estimators: groups that it does not look at must be as by default."""
    reads = STUDIED[study]
    for group in ("model", "data", "training", "operator", "estimator"):
        given, ours = (
            {k: v for k, v in node[group].items() if k != "image"} for node in (config, {**config, **defaults})
        )
        other = group == "model" and given.get("kind") != ("cnn" if study == "batchnorm_outliers" else "mlp")
        if group not in reads and (given != ours or other):
            said = f"it reads {' and '.join(reads)}" if reads else "it has networks and data of its own"
            raise ValueError(
                f"The experiment {study} does not look at {group}, which would be ignored; leave it out: {said}."
            )
    if "training" in reads and not config["training"]["enabled"]:
        raise ValueError(UNTRAINED)
