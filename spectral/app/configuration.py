"""What a configuration may say: checked whole, hydra's own part included, before any of it is built, run or written.

A folder of configurations may come from anywhere (`--config-dir`). A `_target_` names one of our own functions or a module of
torch.nn, where such a name belongs; every setting has a rule; of hydra's settings those are allowed that run and write nothing
else, and folders to write into lie in the working folder unless they were typed on the command line.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

import spectral
from spectral.analysis import METRICS
from spectral.engine import linearize
from spectral.estimators import stopping
from spectral.estimators.budget import Budget
from spectral.estimators.diagonal import METHODS as DIAGONAL_METHODS
from spectral.estimators.esd import METHODS as ESD_METHODS
from spectral.estimators.top import KEYS
from spectral.estimators.trace import METHODS as TRACE_METHODS
from spectral.experiments import own
from spectral.experiments.cell import KINDS, LAYERWISE
from spectral.experiments.datasets import INPUTS, STANDARDISATIONS, TARGETS
from spectral.experiments.experiments import EXPERIMENTS
from spectral.experiments.models import BLOCKS, GIVEN
from spectral.experiments.pretrained import check_tokens
from spectral.experiments.studies import READS as STUDIED
from spectral.experiments.studies import STUDIES
from spectral.krylov.basis import check_place
from spectral.krylov.lanczos import MODES
from spectral.networks.curvature import LAYOUTS
from spectral.networks.products import budget_bytes
from spectral.operators.foreign import as_operator
from spectral.schema import (
    COUNT,
    POSITIVE,
    REAL,
    SHARE,
    SIZE,
    Broken,
    Checked,
    Either,
    Fields,
    Flag,
    Items,
    Law,
    Mismatch,
    Number,
    Pairs,
    Plain,
    Row,
    Rule,
    Same,
    Sizes,
    Text,
    Unknown,
    maybe,
    shown,
)

# Of spectral, whose functions a `_target_` may name.
PACKAGES = ("experiments", "networks", "operators", "estimators", "analysis")
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
# Metrics of cells beside those of a spectrum.
OF_CELLS = (
    "own_label_alignment", "true_label_alignment", "own_information_alignment", "true_information_alignment", "max_over_mean",
    "gini", "prototype_overlap", "outliers", "outlier_gap", "block_gap", "block_js", "block_js_by_lambda_max",
    *(f"{name}_correlation" for name in LAYERWISE), "layers_accepted", "layers_data_accepted",
)  # fmt: skip
HIDDEN = ("checkpoint", "progress", "f")  # keywords that are the command's own to give
BUILT = ("model", "data", "operator", "operator.loss", "estimator", "experiment")  # where a `_target_` may stand

NAME = Text(pattern=r"[^\0]+", said="a text")
SEED = Number(True, least=0, most=2**63 - 1)


# Targets ---------------------------------------------------------------------------------------------------------------
def locate(target: str) -> Any:
    """The function or class that a `_target_` names: what a configuration needs of spectral, or a module of torch.nn.

    Of spectral that is: names of the top level and of the packages in `PACKAGES`. Anything else is refused before it is
    imported: a configuration file must not be a way to run any code or to write any file.
    """
    named = _named(str(target).split("."))
    if not callable(named):
        raise ValueError(
            f"_target_={target!r} is not allowed; use a public function of spectral or a module of torch.nn."
        )
    return named


def _named(parts: list[str]) -> Any:
    """What a dotted name leads to; None where it leads to nothing that may be named."""
    *home, name = parts
    if any(part.startswith("_") or not part.isidentifier() for part in parts):
        return None
    if home == ["torch", "nn"]:
        module = getattr(nn, name, None)
        return module if inspect.isclass(module) and issubclass(module, nn.Module) else None
    if home == ["spectral"]:
        return getattr(spectral, name) if name in spectral.__all__ else None
    if home[:1] != ["spectral"] or home[1] not in PACKAGES:
        return None
    try:
        own = getattr(importlib.import_module(".".join(home)), name, None)
    except ModuleNotFoundError:
        return None
    # what a module of ours has merely imported (os, torch.load, atomic_write, ...) is not its own
    ours = tuple(f"spectral.{package}" for package in PACKAGES)
    return own if str(getattr(own, "__module__", "")).startswith(ours) else None


def targets(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(where, what) of every `_target_` in a configuration."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node["_target_"]
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}[{i}]")


def check_targets(config: Any) -> None:
    """Raise for the first `_target_` that `locate` refuses, or that stands where nothing is built."""
    for where, target in targets(config):
        locate(target)
        if where not in BUILT:
            raise ValueError(f"{where}._target_={target!r} is not allowed: nothing is built there; remove it.")


@dataclass(frozen=True)
class Target(Rule):
    """A node with a `_target_`, one of those that `rules` gives the settings of."""

    rules: Callable[[Any], Fields | None]
    said: str

    def check(self, value: Any, where: str, sizes: Sizes | None = None) -> None:
        if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
            raise Mismatch(where, value, f"a mapping with the _target_ of {self.said}")
        rule = self.rules(locate(value["_target_"]))
        if rule is None:
            raise Mismatch(f"{where}._target_", value["_target_"], self.said)
        rule.check({key: item for key, item in value.items() if key != "_target_"}, where, sizes)

    def words(self, sizes: Sizes) -> str:
        return f"a mapping with the _target_ of {self.said}"


def _keywords(target: Any, skipped: tuple[str, ...] = ()) -> list[str]:
    """The keywords of a function that a configuration may give."""
    known = inspect.signature(target).parameters.values()
    named = [
        p.name for p in known if p.kind == inspect.Parameter.KEYWORD_ONLY or p.default is not inspect.Parameter.empty
    ]
    return [name for name in named if name not in (*skipped, *HIDDEN)]


# Rules of the groups -----------------------------------------------------------------------------------------------------
WIDTHS = Items(SIZE)
MODELS = {
    "mlp": Fields(may={"widths": WIDTHS}),
    "cnn": Fields(may={"width": SIZE, "norm": Flag()}),
    "resnet": Fields(may={"depth": SIZE, "width": SIZE, "block": Text(*BLOCKS), "checkpoint": Flag()}),
    "gpt": Fields(may={"width": SIZE, "depth": SIZE, "heads": SIZE}),
    **dict.fromkeys(GIVEN, Fields()),
}
TEXT = Checked(check_tokens, "bytes, smollm2, minilm, or a folder with a tokenizer.json")
# Of a model: what its data must be, read by the group data.
READS: dict[str, Rule] = {"images": Flag(), "text": TEXT, "predicts": Text(*TARGETS)}
PLACE = Text(pattern=own.PLACE.pattern, said="FILE.py:FUNCTION")
ANYTHING = Fields(others=Plain())


def _model(target: Any) -> Fields | None:
    """A network of ours for a problem, one of your own, or a module of torch.nn with its own arguments."""
    if target is own.model:
        return Fields({"path": PLACE}, {**READS, "checkpoint": maybe(NAME), "options": ANYTHING})
    if target is own.huggingface:
        return Fields({"name": NAME}, READS)
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


def _auto(rule: Rule) -> Either:
    return Either(rule, Same("auto"))


def _data(target: Any) -> Fields | None:
    if target is own.data:
        drawn: dict[str, Rule] = {"train": _auto(SIZE), "test": _auto(maybe(COUNT))}
        return Fields(
            {"path": NAME},
            {**drawn, "standardise": Text("auto", *STANDARDISATIONS), "options": ANYTHING},
            laws=(BATCHES,),
        )
    names = {
        locate(f"spectral.experiments.datasets.{name}"): name
        for name in ("digits", "mnist", "arrays_file", "text", "mixture")
    }
    if target not in names:
        return None
    if names[target] == "text":
        sizes: dict[str, Rule] = {"train": SIZE, "test": maybe(COUNT), "length": SIZE}
        return Fields(may={**sizes, "tokens": TEXT, "targets": Text(*TARGETS), "path": maybe(NAME)})
    if names[target] == "mixture":
        sizes = {"train": SIZE, "test": maybe(COUNT), "classes": Number(True, least=2), "features": SIZE}
        return Fields(may={**sizes, "separation": Number(least=0)})
    samples: dict[str, Rule] = {"train": SIZE, "test": maybe(COUNT), "standardise": Text(*STANDARDISATIONS)}
    more: dict[str, Rule] = {"path": NAME} if names[target] == "arrays_file" else {"image": Flag()}
    return Fields({"path": NAME} if "path" in more else {}, {**samples, **more})


def _loss(target: Any) -> Fields | None:
    if not (inspect.isclass(target) and issubclass(target, nn.modules.loss._Loss)):
        return None
    return Fields(may=dict.fromkeys(inspect.signature(target).parameters, Plain()))


LOSS = Either(Target(_loss, "a loss of torch.nn"), PLACE, None)  # null: the model's own
OPTIONS: dict[str, Rule] = {  # of operators, by their names
    "split": Text("train", "test"),
    "samples": maybe(SIZE),
    "loss": LOSS,
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


def _operator(target: Any) -> Fields | None:
    if target not in OPERATORS:
        return None
    names = [name for name in _keywords(target, ("forward",)) if name not in ("model", "data")]
    known = {name: OPTIONS.get(name, Plain()) for name in (*names, "split", "samples", "loss")}
    must = {name: OPTIONS[name] for name in ("split", "samples")}
    if target is spectral.Jacobian:
        return Fields(must, known, laws=LAWS)
    return Fields({**must, "loss": LOSS}, known)


TOLERANCE = Checked(
    stopping.Tolerance.of, "a number from 0 to 1, such as 1e-3, {count: [low, high, width]} or {cdf: [points, error]}"
)
BUDGET = Checked(
    lambda value: Budget(value, as_operator(np.eye(1))), "a number of products, 10min, 50epochs or 400products"
)
ENDS = Fields({"ends": Row(REAL, REAL)}, laws=(Law("low < high", lambda f, s: f["ends"][0] < f["ends"][1]),))
INTERVAL = Checked(lambda value: _holds(ENDS, {"ends": value}, ""), "two numbers [low, high], low < high")
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
    "method": Text(*ESD_METHODS),
    "ranks": Text("data", "probes"),  # "both" is a grid, of which the command does not know the shape
}
OWN_SETTINGS: dict[Any, dict[str, Rule]] = {
    **{
        run: {"basis": Checked(check_place, "device, bf16, host or the path of a folder")}
        for run in (spectral.slq, spectral.esd)
    },
    spectral.top: {"tol": Number(least=0, below=1), "which": Text(*KEYS)},
    spectral.svd: {"tol": Number(least=0, below=1), "which": Text("largest", "smallest")},
    spectral.trace: {"method": Text(*TRACE_METHODS)},
    spectral.diagonal: {"method": Text(*DIAGONAL_METHODS)},
}


def _estimator(target: Any) -> Fields | None:
    if target not in (*SPECTRA, *NUMBERS):
        return None
    names = _keywords(target) + (_keywords(spectral.slq) + _keywords(spectral.kpm) if target is spectral.esd else [])
    names += ["k"] if target in (spectral.top, spectral.svd) else []
    rules = {**SETTINGS, **OWN_SETTINGS.get(target, {})}
    must: dict[str, Rule] = {"k": SIZE} if "k" in names else {}
    return Fields(must, {name: maybe(rules.get(name, Plain())) for name in names if name not in must})


METRIC = Text(*METRICS, *OF_CELLS)
MATRIX = Text(
    pattern=rf"({'|'.join(KINDS)})\.(logits|probs)\.(train|test)", said="KIND.OUTPUT.SPLIT, such as ntk.logits.train"
)
SHARED: dict[str, Rule] = {
    "seeds": Items(SEED, least=1, distinct=True),
    "kinds": Items(Text(*KINDS), least=1, distinct=True),
    "outputs": Items(Text("logits", "probs"), least=1, distinct=True),
    "splits": Items(Text("train", "test"), least=1, distinct=True),
    "ntk_samples": SIZE,
    "samples": maybe(SIZE),
    "data_seed": maybe(SEED),
    "alignment_k": SIZE,
    "headline": Items(MATRIX),
    "headline_metric": METRIC,
}
SWEPT: dict[str, dict[str, Rule]] = {
    "label_noise_sweep": {"noises": Items(SHARE, least=3, distinct=True)},
    "depth_sweep": {"noise": SHARE, "options": Pairs(SIZE, Fields(others=Plain()), least=3)},
    "jacobian_evolution": {"noise": SHARE, "epochs": Items(COUNT, least=3, distinct=True)},
    "input_noise": {"inputs": Items(Text(*INPUTS), least=2, distinct=True)},
    "ggn_outliers": {"classes": Items(Number(True, least=2), least=1, distinct=True)},
    "language_model": {
        "trains": Flag(),
        "blocks": Items(NAME, least=1, distinct=True),
        "by": Text("module", "parameter"),
        "block_probes": SIZE,
        "block_steps": SIZE,
        "pairs": Number(True, least=2),
    },
    "layer_weightwatcher": {"samples": maybe(SIZE), "block_probes": SIZE, "block_steps": SIZE},
}


RATES = Items(POSITIVE, distinct=True)
OF_STUDIES: dict[str, dict[str, Rule]] = {
    "edge_of_stability": {
        "rates": RATES, "adam_rates": RATES, "steps": SIZE, "every": SIZE, "loss": Text("squared", "cross_entropy"),
    },
    "cross_section": {"points": Number(True, least=5), "checkpoints": Number(True, least=2)},
    "batchnorm_outliers": {"width": SIZE, "epochs": SIZE, "probes": SIZE, "steps": SIZE},
    "block_heterogeneity": dict.fromkeys(("samples", "passages", "depth", "probes", "steps"), SIZE),
}  # fmt: skip


def _experiment(target: Any) -> Fields | None:
    if target in STUDIES.values():
        return Fields(may={"seeds": SHARED["seeds"], **OF_STUDIES[target.__name__]})
    if target not in EXPERIMENTS.values():
        return None
    return Fields(may={**SHARED, **SWEPT.get(target.__name__, {})})


TRAINING = Fields(
    {
        "enabled": Flag(),
        "noise": SHARE,
        "options": Fields(
            may={
                "target_loss": POSITIVE,
                "max_epochs": COUNT,
                "batch_size": SIZE,
                "lr": POSITIVE,
                "weight_decay": Number(least=0),
            }
        ),
    },
    laws=(Law("noise 0 where nothing is trained", lambda f, s: f["enabled"] or f["noise"] == 0),),
)
CONFIG = Fields(
    {
        "model": Target(_model, "a network of spectral.experiments.models, one of your own, or a module of torch.nn"),
        "data": Target(
            _data, "digits, mnist, text, mixture or arrays_file of spectral.experiments.datasets, or data of your own"
        ),
        "training": TRAINING,
        "operator": Target(_operator, "an operator of spectral"),
        "estimator": Target(_estimator, "an estimator of spectral"),
        "analysis": Fields(
            {"top": maybe(SIZE), "alpha_curve": Flag(), "metrics": maybe(Items(METRIC, least=1, distinct=True))}
        ),
        "device": Fields({"name": Text("auto", "cpu", "cuda"), "threads": maybe(SIZE)}),
        "output": Fields({"root": NAME, "state": NAME, "figures": Flag(), "report": Flag()}),
        "seed": SEED,
        "dtype": Text(*DTYPES),
        "batch_size": SIZE,
        "resume": Flag(),
    },
    {
        "experiment": maybe(Target(_experiment, "an experiment of spectral.experiments.experiments")),
        "plan": maybe(Same("only")),
        "trust": Items(NAME, distinct=True),
    },
)
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
    except Unknown as problem:
        raise ValueError(problem.sentence.replace("; it has", "; the configuration has")) from problem
    except Broken as problem:
        raise ValueError(f"{problem.where} must have {problem.words}; change one of its settings.") from problem
    except Mismatch as problem:
        raise ValueError(f"{problem.where}={shown(problem.got)} is not possible; use {problem.words}.") from problem


def _check_trust(config: Mapping[str, Any]) -> None:
    """Raise for Python of one's own that is not listed."""
    paths = {f"{setting}.path": config[setting].get("path") for setting in ("model", "data")}
    paths["operator.loss"] = config["operator"].get("loss")
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
        raise ValueError("An experiment trains its networks; take training=adam, or name no experiment.")
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
        raise ValueError("An experiment trains its networks; leave training=none out, or name no experiment.")


# Rules of hydra's own node -----------------------------------------------------------------------------------------------
BASIC = "hydra._internal.core_plugins."
WORD = Text(pattern=r"[\w.:,=@+/-]*", said="a word", most=200)
PART = Text(pattern=r"(?!\.\.?$)[\w.-]+", said="the name of a file")  # no folder, and not the one above
LAUNCHERS: dict[str, Fields] = {
    BASIC + "basic_launcher.BasicLauncher": Fields(),
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": Fields(
        may={
            "n_jobs": Number(True),
            "backend": maybe(Text("loky", "multiprocessing", "threading")),
            "prefer": maybe(Text("processes", "threads")),
            "require": maybe(Text("sharedmem")),
            "verbose": COUNT,
            "timeout": maybe(POSITIVE),
            # joblib evaluates it
            "pre_dispatch": Either(SIZE, Text(pattern=r"all|(\d+ ?\* ?)?n_jobs", said="2*n_jobs or all")),
            "batch_size": Either(SIZE, Same("auto")),
            "temp_folder": Same(None),
            "max_nbytes": maybe(Either(SIZE, WORD)),
            "mmap_mode": maybe(Text("r", "r+", "w+", "c")),
        }
    ),
    **{
        f"hydra_plugins.hydra_submitit_launcher.submitit_launcher.{name}": Fields(
            may={
                "submitit_folder": Same("${hydra.sweep.dir}/.submitit/%j"),
                "tasks_per_node": Either(SIZE, Same("${hydra.launcher.gpus_per_node}")),
                "name": Same("${hydra.job.name}"),
                **dict.fromkeys(
                    ("setup", "srun_args", "python", "additional_parameters", "executable"),
                    Either(Same(None), Same({})),
                ),
            },
            others=maybe(Either(Number(), Flag(), WORD)),  # times, sizes, partitions, accounts
        )
        for name in ("LocalLauncher", "SlurmLauncher")
    },
}
SWEEPERS = {
    BASIC + "basic_sweeper.BasicSweeper": Fields(
        may={"max_batch_size": maybe(SIZE), "params": maybe(Fields(others=Plain()))}
    )
}
HANDLER = Either(
    Fields(
        {"class": Same("logging.StreamHandler")},
        {"stream": Text("ext://sys.stdout", "ext://sys.stderr"), "formatter": WORD, "level": WORD},
    ),
    Fields(
        {"class": Same("logging.FileHandler"), "filename": Same("${hydra.runtime.output_dir}/${hydra.job.name}.log")},
        {"formatter": WORD, "level": WORD},
    ),
)
LOGGER = Fields(may={"level": WORD, "handlers": Items(WORD), "propagate": Flag()})
LOGGING = Fields(
    may={
        "version": Same(1),
        "formatters": Fields(others=Fields(may={"format": Text(), "datefmt": maybe(Text())})),
        "handlers": Fields(others=HANDLER),
        "root": maybe(LOGGER),
        "loggers": Fields(others=LOGGER),
        "disable_existing_loggers": Flag(),
    }
)


@dataclass(frozen=True)
class Named(Rule):
    """A node whose `_target_` is one of these names, with the settings of that."""

    rules: Mapping[str, Fields]

    def check(self, value: Any, where: str, sizes: Sizes | None = None) -> None:
        target = value.get("_target_") if isinstance(value, Mapping) else None
        if not isinstance(target, str) or target not in self.rules:
            raise Mismatch(f"{where}._target_", target, self.words({}))
        self.rules[target].check({key: item for key, item in value.items() if key != "_target_"}, where, sizes)

    def words(self, sizes: Sizes) -> str:
        return f"one of {', '.join(name.rsplit('.', 1)[-1] for name in self.rules)}"


HELP = Fields(others=Text())
HYDRA = Fields(
    {
        "launcher": Named(LAUNCHERS),
        "sweeper": Named(SWEEPERS),
        "callbacks": Same({}),
        "hydra_logging": LOGGING,
        "job_logging": LOGGING,
        "run": Fields({"dir": Text()}),
        "sweep": Fields({"dir": Text(), "subdir": Text()}),
        "output_subdir": maybe(PART),
        "searchpath": Same([]),
        "job": Fields(
            may={
                "name": PART,
                "chdir": Either(Same(None), Same(False)),
                "env_set": Same({}),
                "env_copy": Same([]),
                "config": Fields(may={"override_dirname": Fields(others=Plain())}),
            },
            others=Plain(),
        ),
    },
    {"help": HELP, "hydra_help": HELP, "verbose": Either(Flag(), WORD, Items(WORD)), "mode": Plain()},
    others=Plain(),  # overrides, runtime: what hydra itself writes down
)
TYPED = re.compile(  # settings of hydra that are taken as they are where somebody has typed them
    r"run\.dir|sweep\.(dir|subdir)|output_subdir|searchpath|verbose|job\.(name|chdir|env_set\..+|env_copy)|launcher\.(?!_target_)\w+"
)
# What is written lies in or below one of these.
FOLDERS = ("output.root", "output.state", "hydra.run.dir", "hydra.sweep.dir")
RESOLVERS = ("now", "hydra")  # that configurations may use: others read the environment
SUBDIR = re.compile(r"([\w.,=+@ -]|\$\{hydra\.job\.(num|id|name|override_dirname)\})+")


def check_sources(typed: Mapping[str, str]) -> None:
    """Raise ValueError for a place to look for configurations in that is no folder: a package would be imported."""
    for path in typed.get("hydra.searchpath", "").strip("[]").split(","):
        if "://" in path and not path.strip(" '\"").startswith("file://"):
            raise ValueError(f"hydra.searchpath={path!r} is not allowed; use folders.")


def check_hydra(node: Mapping[str, Any], typed: Mapping[str, str]) -> None:
    """Raise ValueError for anything in hydra's node, its interpolations as they stand, that could run or write what is not ours.

    `typed` are the settings that stand on the command line.
    """
    own = [
        key.removeprefix("hydra.")
        for key in typed
        if key.startswith("hydra.") and TYPED.fullmatch(key.removeprefix("hydra."))
    ]
    for where, target in targets(node):
        if target not in (*LAUNCHERS, *SWEEPERS):
            raise ValueError(f"hydra.{where}._target_={target!r} is not allowed; remove it.")
    try:
        HYDRA.check(_without(node, own), "hydra")
    except Unknown as problem:
        raise ValueError(problem.sentence) from problem
    except Mismatch as problem:
        raise ValueError(
            f"{problem.where}={shown(problem.got)} is not allowed in a configuration; it must be {problem.words}."
        ) from problem
    subdir = node["sweep"]["subdir"]
    if "sweep.subdir" not in own and not (SUBDIR.fullmatch(subdir) and ".." not in subdir):
        raise ValueError(f"hydra.sweep.subdir={subdir!r} is not allowed in a configuration; use ${{hydra.job.num}}.")


def _without(node: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """The node with what was typed put to what the rule takes."""
    left = dict(node)
    harmless: dict[str, Any] = {"searchpath": [], "output_subdir": None, "verbose": False}
    for key in keys:
        first, _, rest = key.partition(".")
        if not rest:
            left[first] = harmless[first]
        elif first in ("run", "sweep"):
            left[first] = {**left[first], rest: ""}
        else:
            name = rest.split(".")[0]
            left[first] = {k: v for k, v in left[first].items() if k != name}
    return left


def check_resolvers(node: Any, where: str = "") -> None:
    """Raise ValueError for an interpolation that calls anything but the time and hydra's own settings."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            check_resolvers(key, where)
            check_resolvers(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            check_resolvers(value, f"{where}[{i}]")
    elif isinstance(node, str):
        for name in re.findall(r"\$\{\s*([^{}:\s]+)\s*:", node):
            if name not in RESOLVERS:
                raise ValueError(
                    f"{where}: the resolver {name} is not allowed in a configuration; write down the value itself."
                )


def check_folders(folders: Mapping[str, str], typed: Mapping[str, str]) -> None:
    """Raise ValueError for a folder to write into that lies outside of the working folder, unless somebody has typed it."""
    homes = [os.getcwd(), *(os.path.abspath(folders[key]) for key in FOLDERS if key in typed and key in folders)]
    for key, folder in folders.items():
        path = os.path.abspath(folder)
        if not any(os.path.commonpath([home, path]) == home for home in homes):
            raise ValueError(
                f"{key}={folder!r} lies outside of the folder that you are in; if you mean it, type {key}={folder} yourself."
            )
