"""What a configuration may say of hydra itself, whose settings name what it runs, and where it writes.

Those are allowed that run and write nothing else. Folders to write into lie in the working folder unless somebody has typed them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from spectral.app.targets import Target, targets, walked
from spectral.schema import (
    COUNT,
    POSITIVE,
    SIZE,
    Either,
    Fields,
    Flag,
    Items,
    Mismatch,
    Number,
    Plain,
    Same,
    Text,
    Unknown,
    maybe,
    shown,
)

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


def _one_of(names: Iterable[str]) -> str:
    return f"one of {', '.join(name.rsplit('.', 1)[-1] for name in names)}"


HELP = Fields(others=Text())
HYDRA = Fields(
    {
        "launcher": Target(LAUNCHERS.get, _one_of(LAUNCHERS), str),
        "sweeper": Target(SWEEPERS.get, _one_of(SWEEPERS), str),
        "callbacks": Same({}),
        "hydra_logging": LOGGING,
        "job_logging": LOGGING,
        "run": Fields({"dir": Text()}),
        "sweep": Fields({"dir": Text(), "subdir": Text()}),
        "output_subdir": Same(None),
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
    of_hydra = [key.removeprefix("hydra.") for key in typed if key.startswith("hydra.")]
    own = [key for key in of_hydra if TYPED.fullmatch(key)]
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


def check_resolvers(node: Any, typed: Mapping[str, str]) -> None:
    """Raise ValueError for an interpolation that calls anything but the time and hydra's own settings, unless it was typed."""
    for where, part in walked(node, left_out=typed):
        for text in part if isinstance(part, Mapping) else [part] if isinstance(part, str) else []:
            for name in re.findall(r"\$\{\s*([^{}:\s]+)\s*:", str(text)):
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
