"""What a configuration may say of hydra itself, whose settings name what it runs, and where it writes.

A file that is neither ours nor of an installed package may say where runs are written, in the working folder, and how large
jobs are; all else that hydra runs and writes is hydra's own and ours, unless somebody has typed it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from spectral.app.targets import targets, walked
from spectral.schema import Either, Fields, Flag, Items, Mismatch, Number, Plain, Same, Text, maybe

BASIC, PLUGINS = "hydra._internal.core_plugins.", "hydra_plugins.hydra_"
BUILT = (  # what hydra may build
    f"{BASIC}basic_launcher.BasicLauncher", f"{BASIC}basic_sweeper.BasicSweeper",
    f"{PLUGINS}joblib_launcher.joblib_launcher.JoblibLauncher",
    f"{PLUGINS}submitit_launcher.submitit_launcher.LocalLauncher", f"{PLUGINS}submitit_launcher.submitit_launcher.SlurmLauncher",
)  # fmt: skip
SIZES = (  # settings of launchers that run and write nothing: times, sizes, partitions, accounts
    "n_jobs", "backend", "prefer", "verbose", "timeout", "batch_size", "timeout_min", "nodes", "tasks_per_node", "gpus_per_node",
    "gpus_per_task", "cpus_per_task", "cpus_per_gpu", "mem_gb", "mem_per_cpu", "mem_per_gpu", "partition", "qos", "account",
    "constraint", "exclude", "comment", "signal_delay_s", "max_num_timeout", "array_parallelism", "stderr_to_stdout",
)  # fmt: skip
WORD = Text(pattern=r"[\w.:,=@+/-]*", said="a word", most=200)
SIZE = maybe(Either(Number(), Flag(), WORD, Same("${hydra.launcher.gpus_per_node}")))
PART = Text(pattern=r"(?!\.\.?$)[\w.-]+", said="the name of a file")  # no folder, and not the one above
SUBDIR = r"(?!.*\.\.)([\w.,=+@ -]|\$\{hydra\.job\.(num|id|name)\})+"  # no values of a sweep, which may hold a folder
HELP = Fields(others=Text())
FOREIGN = Fields(
    may={
        "run": Fields(may={"dir": Text()}),
        "sweep": Fields(may={"dir": Text(), "subdir": Text(pattern=SUBDIR, said="a name, such as ${hydra.job.num}")}),
        "job": Fields(may={"name": PART}),
        "sweeper": Fields(may={"params": Fields(others=Plain()), "max_batch_size": SIZE}),
        "launcher": Fields(may=dict.fromkeys(SIZES, SIZE)),
        "help": HELP,
        "hydra_help": HELP,
        "verbose": Either(Flag(), WORD, Items(WORD)),
        "mode": Plain(),
    }
)
TYPED = re.compile(  # settings of hydra that are taken as they are where somebody has typed them
    r"run\.dir|sweep\.(dir|subdir)|output_subdir|searchpath|verbose|job\.(name|env_set\..+|env_copy)|"
    r"launcher\.(?!_target_)\w+|help\..+|(job|hydra)_logging\.(root|loggers\.\w+)\.level"
)
# What is written lies in or below one of these.
FOLDERS = ("output.root", "output.state", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
RESOLVERS = ("now", "hydra")  # that configurations may use: others read the environment


def check_sources(typed: Mapping[str, str]) -> None:
    """Raise ValueError for a place to look for configurations in that is no folder: a package would be imported."""
    for path in typed.get("hydra.searchpath", "").strip("[]").split(","):
        if "://" in path and not path.strip(" '\"").startswith("file://"):
            raise ValueError(f"hydra.searchpath={path!r} is not allowed; use folders.")


def check_file(config: Any) -> None:
    """Raise ValueError for what a foreign file says of hydra that is not harmless, its interpolations as they stand, and for an
    interpolation that calls anything but the time and hydra's own settings, or is named by another one.
    """
    for where, part in walked(config):
        text = " ".join(map(str, part)) if isinstance(part, Mapping) else str(part)
        if built := re.search(r"\$\{[^{}:]*\$\{[^{}]*\}?", text):
            raise ValueError(f"{where}: {built.group()} is not allowed in a configuration; write down the name itself.")
        named = re.findall(r"\$\{\s*([^{}:\s]+)\s*:", text)
        if name := next((name for name in named if name not in RESOLVERS), ""):
            raise ValueError(
                f"{where}: the resolver {name} is not allowed in a configuration; write down the value itself."
            )
    try:
        Fields(may={"hydra": FOREIGN}, others=Plain()).check(config, "")
    except Mismatch as problem:
        raise ValueError(problem.sentence) from problem


def check_hydra(node: Mapping[str, Any], given: Mapping[str, str], typed: Mapping[str, str]) -> None:
    """Raise ValueError for what hydra would build that is not its own, and for settings `given` to it that nobody has typed, or
    may type: a file may say what a sweep gives. Its mode hydra gives itself.
    """
    for where, target in targets(node):
        if target not in BUILT:
            raise ValueError(f"hydra.{where}._target_={target!r} is not allowed; remove it.")
    for key, value in given.items():
        first, _, rest = key.partition(".")
        harmless = TYPED.fullmatch(rest) or (rest, value.lower()) == ("job.chdir", "false")
        if first == "hydra" and rest != "mode" and not (key in typed and harmless):
            raise ValueError(f"{key}={value} is not allowed; leave it out.")


def check_folders(folders: Mapping[str, str], typed: Mapping[str, str]) -> None:
    """Raise ValueError for a folder to write into that lies outside of the working folder, unless somebody has typed it.

    Of what is typed with the value of another setting, which a file may have said, only what stands before it is typed.
    """
    above = {"hydra.sweep.subdir": folders["hydra.sweep.dir"]}  # in which it lies
    paths = {key: os.path.abspath(os.path.join(above.get(key, ""), folder)) for key, folder in folders.items()}
    homes = [os.getcwd()]
    for key in typed.keys() & paths.keys():
        text = typed[key].strip(" '\"")
        head, tail = os.path.split(text.partition("$")[0])
        start = os.path.join(os.path.abspath(os.path.join(above.get(key, ""), head)), tail)
        if not re.search(r"\$\{[^{}:]*\}", text) or paths[key].startswith(start):
            homes.append(paths[key])
    for key, path in paths.items():
        if not any(os.path.commonpath([home, path]) == home for home in homes):
            raise ValueError(
                f"{key}={folders[key]!r} lies outside of the folder that you are in; if you mean it, type {key}={folders[key]} "
                "yourself."
            )
