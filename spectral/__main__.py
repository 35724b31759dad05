"""The command `spectral` (also `python -m spectral`): hydra composes the configuration, `spectral.run` does the work."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from spectral import run

SINGLE = ("model", "data", "training", "operator", "estimator")  # naming one of these asks for one spectrum
DEFAULT = "experiment=real_vs_random"
EXPECTED = (ValueError, TypeError, ImportError, OSError, MemoryError, RuntimeError, KeyError)
LAUNCHERS = ("hydra._internal.core_plugins.", "hydra_plugins.")


def config_folder() -> str:
    """The checkout's conf/ if a pyproject.toml stands beside it, otherwise the one packaged with spectral."""
    here = Path(__file__).resolve().parent
    if (here.parent / "pyproject.toml").is_file() and (here.parent / "conf").is_dir():
        return str(here.parent / "conf")
    return str(here / "conf")


def main() -> None:
    """Entry point: compose, run, and turn every error into one sentence and exit status 2."""
    given = sys.argv[1:]
    asked = os.environ.get("HYDRA_FULL_ERROR")
    full = asked == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises instead of printing, and the sentence below is ours
    signal.signal(signal.SIGTERM, _terminate)
    warnings.filterwarnings("ignore", module="hydra")
    try:
        _refuse_targets(given)
        sys.argv[1:] = with_default(given)
        hydra.main(version_base="1.3", config_path=config_folder(), config_name="config")(task)()
    except run.Interrupted as stop:
        if full and stop.code == 2 and stop.__cause__ is not None:
            raise stop.__cause__ from None
        _leave(stop.sentence, stop.code)
    except KeyboardInterrupt:
        _leave("Interrupted before anything was computed.", 130)
    except run.Terminated:
        _leave("Interrupted before anything was computed.", 143)
    except (HydraException, OmegaConfBaseException, *EXPECTED) as problem:
        if full:
            raise
        _leave(sentence(problem, given), 2)
    finally:
        if asked is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = asked


def task(config: DictConfig) -> None:
    """One job of hydra: a run, or one run of a sweep."""
    job = HydraConfig.get()
    overrides = [text for text in job.overrides.task if not text.startswith("resume=")]
    try:
        settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        settings["choices"] = {name: job.runtime.choices[name] for name in SINGLE if name in job.runtime.choices}
        run.execute(settings, job.runtime.output_dir, shlex.join(["spectral", *overrides]))
    except (OmegaConfBaseException, *EXPECTED) as problem:
        if job.mode == RunMode.MULTIRUN:
            raise  # hydra names the run of the sweep that failed, and finishes the others
        # hydra would print a line of its own before the sentence if this reached it
        raise run.Interrupted(sentence(problem, []), 2) from problem


def with_default(given: list[str]) -> list[str]:
    """The arguments, with the flagship added when they name neither an experiment nor a part of a single spectrum."""
    named = {re.split(r"[=.@]", text.lstrip("+~"))[0] for text in given if not text.startswith("-")}
    chosen = any(re.match(r"[+~]*experiment(@[^=]*)?=", text) for text in given)
    of_flagship = any(text.lstrip("+~").startswith("experiment.") for text in given)
    if chosen or (named & set(SINGLE) and not of_flagship):
        return given
    return [*given, DEFAULT]


def sentence(problem: BaseException, given: list[str]) -> str:
    """An error as one sentence; for a misspelt key or option also what is allowed."""
    text = str(problem)
    if isinstance(problem, MissingMandatoryValue) or isinstance(problem.__cause__, MissingMandatoryValue):
        name = getattr(problem, "full_key", None) or getattr(problem.__cause__, "full_key", None) or "A setting"
        return f"{name} must be given; add {name}=VALUE."
    if options := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\s+((?:\S+\n\s)*\S+)", text):
        wanted, group, names = options.groups()
        return f"There is no {wanted.replace('/', '=', 1)}; {group} is one of {', '.join(names.split())}."
    if isinstance(problem, ConfigCompositionException):
        key = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text)
        if key:
            return _unknown_key(key.group(1).lstrip("+~").split("=")[0], given)
    if isinstance(problem, OverrideParseException):
        return f"The argument {problem.override!r} cannot be read; write KEY=VALUE, lists as KEY=[1,2]."
    if isinstance(problem, KeyError) and problem.args:
        text = str(problem.args[0])
    text = " ".join(text.split()) or type(problem).__name__
    return text if text.endswith((".", "!", "?")) else text + "."


def _unknown_key(key: str, given: list[str]) -> str:
    """What is allowed where the unknown `key` was put."""
    parent, _, name = key.rpartition(".")
    choices = [g for g in given if re.match(r"[+]*\w+=", g) and not g.startswith((f"{key}=", f"+{key}="))]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=config_folder()):
            whole = hydra.compose("config", overrides=with_default(choices))
        node = OmegaConf.select(whole, parent) if parent else whole
        allowed = sorted(map(str, node)) if isinstance(node, DictConfig) else []
    except (HydraException, OmegaConfBaseException):
        allowed = []
    if not allowed:
        return f"There is no setting {key}; `spectral --cfg job` prints all settings."
    near = difflib.get_close_matches(name, allowed, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"There is no setting {key}{hint}; {parent or 'the configuration'} has {', '.join(allowed)}."


def _refuse_targets(given: list[str]) -> None:
    """Refuse a forbidden `_target_` on the command line before hydra could call it itself (callbacks, launchers)."""
    for text in given:
        for target in re.findall(r"_target_['\"]?\s*[:=]\s*['\"]?([^\s'\",}\]]*)", text):
            if not (text.lstrip("+").startswith("hydra.") and target.startswith(LAUNCHERS)):
                run.locate(target)


def _terminate(number: int, frame: Any) -> None:
    # not a KeyboardInterrupt: one that passes through exec() of a string, as imports and torch have, makes CPython end the
    # process with SIGINT whoever catches it
    raise run.Terminated()


def _leave(text: str, code: int) -> None:
    print(f"spectral: {text}", file=sys.stderr, flush=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
