"""The command `spectral` (also `python -m spectral`): hydra composes the configuration, `spectral.app.run` does the work."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import hydra._internal.hydra as internal
import hydra.core.utils as utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

import spectral
from spectral import collectives, distributed, failures
from spectral.app import configuration, hydra_node, ranks, run, sweeps, targets
from spectral.experiments import own
from spectral.schema import Unknown
from spectral.threads import instead

CHOSEN = ("model", "data", "training", "operator", "estimator")  # whose choices are recorded
SINGLE = (*CHOSEN, "products")  # naming one of these asks for one spectrum
DEFAULT = "experiment=real_vs_random"
# what submitit says, before it repeats what the process wrote
LOST_JOB = re.compile(r"Job \S+ \(task: \d+\) with path (\S+)\s+has not produced any output \((state: \S+)\)")
NO_MEMORY = re.compile(r"(?i)allocate ([\d.,]+ ?(?:bytes|[kmgt]i?b))")  # torch on the CPU and on GPUs, and numpy
EXPECTED = (ValueError, TypeError, ImportError, OSError, MemoryError, RuntimeError, KeyError)
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# flags of hydra that would take the place of our own configuration, or run what a file holds
REFUSED = ("config_name", "config_path", "experimental_rerun")
SWEEPER, OVERRIDE = Plugins.instantiate_sweeper, ConfigLoaderImpl._apply_overrides_to_config
running: list[Any] = []  # hydra's settings of the job that runs now or ran last


def config_folder() -> str:
    """The checkout's conf/ if a pyproject.toml stands beside it, otherwise the one packaged with spectral."""
    here = Path(__file__).resolve().parent
    if (here.parent / "pyproject.toml").is_file() and (here.parent / "conf").is_dir():
        return str(here.parent / "conf")
    return str(here / "conf")


def main() -> None:
    """Entry point: compose, run, and turn every error into one sentence and exit status 2."""
    given = _explicit(sys.argv[1:])
    asked = os.environ.get("HYDRA_FULL_ERROR")
    full = asked == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises instead of printing, and the sentence below is ours
    signal.signal(signal.SIGTERM, _terminate)
    failures.writable_output()
    running.clear()
    quiet = instead(logging, raiseExceptions=False)  # a reader such as head may close the pipe early
    valid = instead(Plugins, instantiate_sweeper=_sweeper)
    by_one = instead(ConfigLoaderImpl, _apply_overrides_to_config=staticmethod(_apply_overrides_to_config))
    # hydra's help of an option is no str, which Python 3.14 takes for "badly formed"
    unchecked = instead(argparse.ArgumentParser, _check_help=lambda parser, action: None)
    as_text = instead(argparse.HelpFormatter, _get_help_string=lambda formatter, action: str(action.help))
    with warnings.catch_warnings(), quiet, valid, by_one, unchecked, as_text, ExitStack() as once_known:
        warnings.filterwarnings("ignore", module="hydra")
        warnings.filterwarnings("ignore", message=r"\s*\S+ is validated against ConfigStore schema")
        warnings.showwarning = _warn
        try:
            ranks.join()
            if any(len(text) > 2 and "--version".startswith(text) for text in given):
                print(f"spectral {spectral.__version__}")
                return
            flags = _flags(given)
            flags.overrides = [_as_hydra_reads(text) for text in flags.overrides]
            if distributed.world_size() > 1:  # one run has one folder, which is named by the time
                begun = ranks.begun()
                once_known.enter_context(instead(utils, datetime=SimpleNamespace(now=lambda: begun)))
            loader = partial(CheckedLoader, typed=_typed(flags.overrides))
            once_known.enter_context(instead(internal, ConfigLoaderImpl=loader))
            named = flags.overrides
            named = named if flags.hydra_help or flags.shell_completion else with_default(named)
            sys.argv[1:] = [*_flags_first(flags), *named]
            hydra.main(version_base="1.3", config_path=config_folder(), config_name="config")(task)()
            ranks.done()
        except run.Interrupted as stop:
            if full and stop.code == 2 and stop.__cause__ is not None:
                raise stop.__cause__ from None
            _leave(stop.sentence, stop.code)
        except KeyboardInterrupt:
            _leave(_interrupted(given), 130)
        except run.Terminated:
            _leave(_interrupted(given), 143)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # python flushes it once more at its end
            raise SystemExit(141) from None
        except Exception as problem:  # the other ranks must know of all; what nobody expects of a run is raised again
            collectives.leave(problem)
            expected = isinstance(problem, (HydraException, OmegaConfBaseException, *EXPECTED))
            if full or (running and not expected):
                raise
            _leave(sentence(problem, given), 2)
        finally:
            if asked is None:
                del os.environ["HYDRA_FULL_ERROR"]
            else:
                os.environ["HYDRA_FULL_ERROR"] = asked


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's loader of configurations, each held against our rules before hydra sees it: it runs what its own node names."""

    def __init__(self, config_search_path: Any, typed: Mapping[str, str]) -> None:
        super().__init__(config_search_path)
        self.typed = typed

    def _load_single_config(self, default: Any, repo: Any) -> Any:
        """A file; one that is not ours, or is put where it does not belong, says of hydra what is harmless alone."""
        found = super()._load_single_config(default, repo)
        home = default.config_path.rpartition("/")[0].replace("/", ".")
        foreign = found.path.startswith("file:") and found.provider != "main"
        if foreign or default.package not in (None, "", "_global_", home):
            hydra_node.check_file(OmegaConf.to_container(found.config, resolve=False, enum_to_str=True))
        return found

    def _compose_config_from_defaults_list(self, *given: Any, **options: Any) -> DictConfig:
        """Settings that nobody knows are let in, for our rules to say what there is; those of hydra it refuses itself."""
        config = super()._compose_config_from_defaults_list(*given, **options)
        written = [str(key) for key in config if key != "hydra" and not OmegaConf.is_missing(config, key)]
        for node in (config[key] for key in written if not OmegaConf.is_interpolation(config, key)):
            if isinstance(node, DictConfig):
                OmegaConf.set_struct(node, False)
        return config

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *more: Any, **options: Any
    ) -> DictConfig:
        """The whole configuration, and each of those of a sweep."""
        hydra_node.check_sources(self.typed)
        config = super().load_configuration(config_name, overrides, run_mode, *more, **options)
        plain: Any = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
        hydra_node.check_hydra(plain.pop("hydra"), _typed(overrides), self.typed)
        with read_write(config):
            config.hydra.output_subdir = None  # hydra would write there before anybody is asked; see `_asked`
        targets.check_targets(plain)
        configuration.check_typed(plain.get("trust"), self.typed)
        if distributed.world_size() > 1 and "BasicLauncher" not in str(config.hydra.launcher.get("_target_")):
            raise ValueError(
                f"{distributed.world_size()} processes make each run of this sweep together, and a launcher would start others; "
                "leave launcher= out, or torchrun."
            )
        # of a sweep each of its runs, before anything is written
        if config_name is not None and run_mode == RunMode.RUN:
            numbered = OmegaConf.merge(config, {"hydra": {"job": {"num": 0, "id": "0"}}})
            folders = {key: str(OmegaConf.select(numbered, key)) for key in hydra_node.FOLDERS}
            hydra_node.check_folders(folders, self.typed)
            whole = _resolved(config)
            if whole is not None:
                configuration.check(whole, defaults(whole))
        return config


def _resolved(config: DictConfig) -> dict[str, Any] | None:
    """All but hydra's node without interpolations; None where they need what is not given, or known only when the job runs."""
    try:
        return {
            str(key): OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            if OmegaConf.is_config(value)
            else value
            for key, value in ((key, config[key]) for key in config if key != "hydra")
        }
    except (MissingMandatoryValue, InterpolationToMissingValueError):  # the job says which
        return None


def defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The groups as our own files have them: operator and training that nobody names, and the model that is chosen."""
    folder = Path(config_folder())
    chosen = {
        group: name
        for entry in OmegaConf.load(folder / "config.yaml").defaults
        if isinstance(entry, DictConfig)
        for group, name in entry.items()
    }
    kind = str(config["model"].get("kind")) if isinstance(config.get("model"), Mapping) else ""
    names = {group: chosen[group] for group in ("products", "operator", "training", "data", "estimator")}
    names["model"] = kind
    ours = {(path.parent.name, path.stem): path for path in folder.glob("*/*.yaml")}  # a name from outside is no path
    groups: dict[str, Any] = {
        group: OmegaConf.to_container(OmegaConf.load(ours[group, name]))
        for group, name in names.items()
        if (group, name) in ours
    }
    if "model" in groups:  # a file that sets other groups too has its own below its name
        groups["model"] = groups["model"].get("model", groups["model"])
    for name in _trainings(folder, config.get("model")):
        if (own_choice := OmegaConf.to_container(OmegaConf.load(ours["training", name]))) == config.get("training"):
            groups["training"] = own_choice
    return groups | {"operator": groups.pop("products") | groups["operator"]}


def _trainings(folder: Path, model: Any) -> set[str]:
    """What the files of a model choose in the place of the training that nobody names."""
    files: list[Any] = [OmegaConf.to_container(OmegaConf.load(path)) for path in folder.glob("model/*.yaml")]
    return {
        entry["override /training"]
        for file in files
        for entry in file.get("defaults", ())
        if "override /training" in entry
        and isinstance(model, Mapping)
        and all(model.get(key) == file["model"].get(key) for key in ("_target_", "kind"))
    }


def task(config: DictConfig) -> None:
    """One job of hydra: a run, or one run of a sweep."""
    job = HydraConfig.get()
    running[:] = [job]
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)  # in a process that a launcher has started
    ranks.join()
    typed = (*job.overrides.task, *job.overrides.hydra)  # the folder that was named, too; hydra adds a mode
    overrides = [text for text in typed if not text.startswith(("resume=", "hydra.mode="))]
    sweep = job.mode == RunMode.MULTIRUN
    try:
        settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        configuration.check(settings, defaults(settings))
        settings["files"] = own.read_by(settings)
        settings["choices"] = {name: job.runtime.choices[name] for name in CHOSEN if name in job.runtime.choices}
        settings["resume"] = settings["resume"] or ranks.attempt() > 0
        folder = Path(job.runtime.output_dir)
        if sweep:
            folder, finished = distributed.by_first(lambda: sweeps.place(Path(job.sweep.dir), folder, settings))
            if finished and settings["resume"]:
                print(f"{folder}: finished before")
                return
        elif settings["plan"] is None:
            distributed.by_first(lambda: sweeps.check_free(folder, settings))
        run.execute(settings, folder, shlex.join(["spectral", *overrides]), _asked(config, job))
        if sweep and distributed.leads():
            sweeps.mark(Path(job.sweep.dir), folder, settings)
    except run.Interrupted as stop:
        if not sweep:
            raise
        raise run.Interrupted(_interrupted(sys.argv[1:]), stop.code) from stop
    except (OmegaConfBaseException, *EXPECTED) as problem:
        collectives.leave(problem)
        if sweep and (distributed.world_size() == 1 or ranks.of_a_job()):
            raise  # hydra names the run of the sweep that failed, and finishes the others
        # hydra would print a line of its own before the sentence if this reached it
        raise run.Interrupted(sentence(problem, []), 2) from problem


def _apply_overrides_to_config(overrides: list[Any], config: DictConfig) -> None:
    """In the place of hydra's: settings one by one, for of a key that is none of a list omegaconf says only what int says."""
    for override in overrides:
        try:
            OVERRIDE([override], config)
        except ValueError as problem:
            raise ConfigCompositionException(f"Could not override '{override.key_or_group}'.") from problem


def _sweeper(plugins: Any, **given: Any) -> Any:
    """Hydra's sweeper, which composes each of its runs, and so looks at it, before it makes the folder and not after."""
    sweeper: Any = SWEEPER(plugins, **given)
    split, validate = sweeper.split_arguments, sweeper.validate_batch_is_legal

    def valid(overrides: Any, size: int | None) -> Any:
        batches = split(overrides, size)
        for batch in batches:
            validate(batch)
        return batches

    sweeper.split_arguments, sweeper.validate_batch_is_legal = valid, lambda batch: None
    return sweeper


def _asked(config: DictConfig, job: Any) -> dict[str, str]:
    """What was asked for, as hydra writes it down: texts by the names of their files, none where output_subdir=null is typed."""
    folder = _typed(job.overrides.hydra).get("hydra.output_subdir", ".hydra").strip("'\"")
    parts = {"config": config, "hydra": HydraConfig.instance().cfg, "overrides": job.overrides.task}
    return {
        str(Path(folder, f"{name}.yaml")): OmegaConf.to_yaml(part) for name, part in parts.items() if folder != "null"
    }


def _interrupted(given: list[str]) -> str:
    """What is finished, and how to go on: of a sweep, in its own folder."""
    job = running[0] if running else None
    if job is None or job.mode != RunMode.MULTIRUN:
        return "Interrupted before anything was computed."
    folder = Path(job.sweep.dir)
    return f"Interrupted with {_go_on(folder, given)}"


def _go_on(folder: Path, given: list[str]) -> str:
    """How many runs of the sweep in this folder are finished, and the command that makes the others."""
    names = sorted((path.parent.name for path in folder.glob("*/result.json")), key=lambda name: (len(name), name))
    listed = f" ({', '.join(names)})" if names else ""
    again = [text for text in given if not re.match(r"(resume|hydra\.sweep\.dir)=", text) and text != DEFAULT]
    command = shlex.join(["spectral", *again, f"hydra.sweep.dir={folder}", "resume=true"])
    return f"{len(names)} of {_jobs()} runs finished in {folder}{listed}; go on with: {command}"


def _jobs() -> str:
    """How many runs a sweep has, as far as its command line says."""
    try:
        parsed = OverridesParser.create().parse_overrides([text for text in sys.argv[1:] if not text.startswith("-")])
        return str(len(BasicSweeper.split_arguments([o for o in parsed if not o.is_hydra_override()], None)[0]))
    except HydraException:
        return "its"


def with_default(given: list[str]) -> list[str]:
    """The arguments, with the flagship added when they name neither an experiment nor a part of a single spectrum."""
    named = {re.split(r"[=.@]", text.lstrip("+~"))[0] for text in given if not text.startswith("-")}
    chosen = any(re.match(r"[+~]*experiment(@[^=]*)?(=|$)", text) for text in given)
    of_flagship = any(text.lstrip("+~").startswith("experiment.") for text in given)
    if chosen or (named & set(SINGLE) and not of_flagship):
        return given
    return [*given, DEFAULT]


def sentence(problem: BaseException, given: list[str]) -> str:
    """An error as one sentence; for a misspelt key or option also what is allowed."""
    text = str(problem)
    if text.startswith('Could not detect "srun"'):  # submitit's words
        return "launcher=slurm needs srun, which this machine has not; run where Slurm is, or take launcher=processes."
    kinds = MissingMandatoryValue, InterpolationToMissingValueError
    if isinstance(problem, kinds) or isinstance(problem.__cause__, kinds):
        missing = problem if isinstance(problem, kinds) else problem.__cause__
        name = getattr(missing, "full_key", None)
        led = re.search(r"Missing mandatory value: ([\w.]+)", text)
        if led and (name is None or isinstance(missing, InterpolationToMissingValueError)):
            name = led[1]  # of an interpolation: what it leads to
        name, values = name or "A setting", {
            "model.path": "net.py:FUNCTION", "data.path": "batches.py:FUNCTION or data.path=FILE.npz", "model.name": "DIR",
        }  # fmt: skip
        value = values.get(name, "VALUE")
        return f"{name} must be given; add {name}={value}."
    if isinstance(problem, InterpolationKeyError) and (key := re.search(r"key '([^']+)' not found", text)):
        return f"{problem.full_key} follows {key.group(1)}, which is not there; choose another {key.group(1).split('.')[0]}."
    if options := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\s+((?:\S+\n\s)*\S+)", text):
        wanted, group, names = options.groups()
        if group == "hydra/launcher":
            return "launcher= needs hydra's launchers, which are not installed; run: pip install 'spectral[sweeps]'."
        value = wanted.partition("/")[2]
        hint = f"; your own is {group}=file {group}.path={value}" if own.place(value) else ""
        return f"There is no {wanted.replace('/', '=', 1)}; {group} is one of {', '.join(names.split())}{hint}."
    if isinstance(problem, ConfigCompositionException):
        key = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text)
        if key:
            name = key.group(1).lstrip("+~").split("=")[0]
            if "already at" in text:
                return f"{name} is there already; leave out its +."
            known = [*configuration.CONFIG.must, *configuration.CONFIG.may]
            return f"There is no setting {name}." if "." in name else configuration.of_all(Unknown("", name, known))
    if merged := re.match(r"Error merging override ([^=]+)\.\d+=", text):  # an item that the list has not
        return f"The list {merged[1]} is written whole, not item by item: {merged[1]}=[A,B]."
    if merged := re.match(r"Error merging override (.+)", text):
        return f"{merged[1]} is not possible: {failures.first_line(problem.__cause__ or problem)}."
    if text.startswith("Config group override must be"):
        return "A group takes the name of one of its choices, which null and numbers are not; `spectral --help` lists them."
    if isinstance(problem, OverrideParseException):
        return f"The argument {problem.override!r} cannot be read; write KEY=VALUE, lists as KEY=[1,2]."
    if isinstance(problem, KeyError) and problem.args:
        text = str(problem.args[0])
    if isinstance(problem, OSError) and problem.filename and problem.strerror:
        return failures.of_file(problem)
    if job := LOST_JOB.match(text):
        log = Path(job[1].replace("_result.pkl", "_log.err"))
        return f"A process of a job ended without a result ({job[2]}), see {log}; {_go_on(log.parents[2], given)}"
    if amount := NO_MEMORY.search(text):
        return (
            f"The memory does not suffice, for {amount[1]} more; use a smaller batch_size, operator.chunk=1 or fewer "
            "estimator.steps (plan=only says beforehand what is held)."
        )
    text = " ".join(text.split()) or type(problem).__name__
    return text if text.endswith((".", "!", "?")) else text + "."


def _explicit(given: list[str]) -> list[str]:
    """--info without what it shows means all of it; a setting behind it would be taken for that."""
    bare = [i for i, text in enumerate(given) if text in ("--info", "-i") and (given[i + 1 :] or [""])[0] not in INFO]
    return [f"--info={INFO[0]}" if i in bare else text for i, text in enumerate(given)]


def _flags(given: list[str]) -> argparse.Namespace:
    """The command line as hydra reads it; ValueError for flags that there are not, and for those that are not ours."""
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign, assignment]
    flags = parser.parse_intermixed_args(given)
    for name in REFUSED:
        if getattr(flags, name) is not None:
            raise ValueError(
                f"{_flag(name)} is not possible: the configuration is spectral's own; use --config-dir to add to it."
            )
    return flags


def _flags_first(flags: argparse.Namespace) -> list[str]:
    """The flags as hydra takes them: before all settings."""
    given = {name: value for name, value in vars(flags).items() if name != "overrides" and value}
    return [_flag(name) if value is True else f"{_flag(name)}={value}" for name, value in given.items()]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _as_hydra_reads(text: str) -> str:
    """`trust=a.py,b.py` as a list, since comma lists are sweeps and these files belong together; no choice of a group as such.

    >>> [_as_hydra_reads(text) for text in ("trust=net.py,batches.py", "seed=0,1", "experiment=null")]
    ['trust=[net.py,batches.py]', 'seed=0,1', '~experiment']
    """
    if text.lstrip("+") in ("experiment=null", "launcher=null"):
        return f"~{text.lstrip('+').partition('=')[0]}"
    key, _, value = text.partition("=")
    return f"{key}=[{value}]" if key.lstrip("+") == "trust" and value and not value.startswith("[") else text


def _refuse(message: str) -> None:
    raise ValueError(f"{message}; `spectral --help` shows how it is called.")


def _typed(overrides: list[str]) -> dict[str, str]:
    """The settings that stand on the command line, choices of groups left out."""
    pairs = (text.lstrip("+~").partition("=") for text in overrides)
    return {key: value for key, _, value in pairs if not {"/", "@"} & set(key)}


def _warn(message: Warning | str, *where: Any, **options: Any) -> None:
    if distributed.leads():
        print(f"spectral: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def _terminate(number: int, frame: Any) -> None:
    # not a KeyboardInterrupt: one that passes through exec() of a string, as imports and torch have, makes CPython end the
    # process with SIGINT whoever catches it
    raise run.Terminated()


def _leave(text: str, code: int) -> None:
    if distributed.world_size() > 1:
        ranks.leave(f"spectral: {text}", code)
    print(f"spectral: {text}", file=sys.stderr, flush=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
