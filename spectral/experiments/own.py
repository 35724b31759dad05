"""Your own network and data: functions in Python files that are allowed by name, and weights, which run nothing when read.

A file runs only where a person has listed it: `trusted` hashes what is listed, and those very bytes are run, never a cached
compilation of them. A trusted file may import others that are listed, by their names; an unlisted one beside it is refused.
A folder that is listed means all Python in it.
Weights are tensors alone: safetensors, of which one tensor at a time is in memory, or torch's own files with `weights_only`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import itertools
import os
import random
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from spectral import arrays
from spectral.experiments import pretrained
from spectral.experiments.datasets import Problem, arrays_file, in_dtype
from spectral.experiments.models import Causal, Logits
from spectral.experiments.weights import load_weights
from spectral.failures import with_kind
from spectral.networks.batches import Samples, check_data, random_state_kept
from spectral.networks.trees import mapped

PLACE = re.compile(r"(?P<file>.*\.py):(?P<name>[A-Za-z_]\w*)")
PACKAGE = Path(__file__).resolve().parents[1]
PIECE = 1 << 24  # bytes that are hashed at a time
Trust = Mapping[str, str]  # SHA-256 of the files that may run, by their resolved paths
LOADED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # what weights a network was given, in words


# Which files, and what is in them -----------------------------------------------------------------------------------------
def place(text: object) -> tuple[str, str] | None:
    """(file, function) of FILE.py:FUNCTION, None for anything else.

    >>> place("here/net.py:make"), place("mine.npz")
    (('here/net.py', 'make'), None)
    """
    found = PLACE.fullmatch(text) if isinstance(text, str) else None
    return None if found is None else (found["file"], found["name"])


def is_trusted(file: str, trust: Iterable[str]) -> bool:
    """Whether a file is listed, or Python of a folder that is, whatever links and .. lie on the way."""
    found, listed = Path(file).resolve(), [Path(item).resolve() for item in trust]
    return found in listed or (found.suffix == ".py" and any(folder in listed for folder in found.parents))


def digest(path: str | Path) -> str:
    """SHA-256 of a file; of a folder that of the names and contents of the files in it, those of its folders left out."""
    whole, found = hashlib.sha256(), Path(path)
    for file in sorted(part for part in found.iterdir() if part.is_file()) if found.is_dir() else [found]:
        whole.update(file.name.encode() if found.is_dir() else b"")
        try:
            with open(file, "rb") as opened:
                while piece := opened.read(PIECE):
                    whole.update(piece)
        except OSError as problem:
            raise ValueError(f"{path} cannot be read ({problem.strerror}); give a file that is there.") from problem
    return whole.hexdigest()


def read_by(config: Mapping[str, Any]) -> dict[str, str]:
    """{file or folder as it is named: SHA-256} of all that a configuration reads: what is trusted, weights, data."""
    model, data = config["model"], config["data"]
    named = [model.get("checkpoint"), model.get("name"), data.get("path"), data.get("tokens")]
    there = [name for name in named if isinstance(name, str) and place(name) is None and Path(name).exists()]
    listed = [Path(item) for item in config.get("trust", ())]
    python = [sorted(item.rglob("*.py")) if item.is_dir() else [item] for item in listed]
    there = [*map(str, itertools.chain(*python)), *there]
    whole = {name: Path(name).parent if name.endswith(".index.json") else name for name in there}  # with its shards
    return {name: digest(where) for name, where in whole.items()}


# Running what is trusted --------------------------------------------------------------------------------------------------
def call(setting: str, path: str, options: Mapping[str, Any] | None, trust: Trust, seed: int) -> Any:
    """What the function `path` (FILE.py:FUNCTION) returns; every failure is one sentence that names the file and the line.

    It runs with the global generators of Python, numpy and torch seeded, which are afterwards as they were.
    """
    with _under(setting, path, trust, seed) as make:
        try:
            given = inspect.signature(make).bind(**(options or {}))
        except TypeError as problem:
            group = setting.partition(".")[0]
            raise Refused(
                f"{path} cannot be called with {group}.options={dict(options or {})}: {problem}; give it the options "
                f"that it has, {group}.options.NAME=VALUE."
            ) from problem
        return make(*given.args, **given.kwargs)


def function(setting: str, path: str, trust: Trust, seed: int) -> Any:
    """The function `path` (FILE.py:FUNCTION) itself, such as a loss of (output, batch); of a class what it makes, a module."""
    with _under(setting, path, trust, seed) as given:
        return given() if inspect.isclass(given) else given


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators of Python, numpy and torch under a seed, and afterwards as they were."""
    with random_state_kept(()):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (what a user's own code draws from)
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _under(setting: str, path: str, trust: Trust, seed: int) -> Iterator[Any]:
    """What a trusted file has under the name in `path`, while code of the file may run: seeded, its imports at hand."""
    file, name = place(path) or (path, "")
    source = Path(file).resolve()
    if str(source) not in trust:
        raise Refused(f"{setting}={path} runs your own Python, which must be allowed by name: add 'trust=[{file}]'.")
    with seeded(seed), told(trust, file):
        module = ModuleType(f"own_{source.stem}_{trust[str(source)][:8]}")
        sys.modules[module.__name__] = module  # dataclasses and pickles look for it
        _run(module, source, trust)
        made = getattr(module, name, None)
        if not inspect.isroutine(made) and not inspect.isclass(made):
            callables = {n: v for n, v in vars(module).items() if inspect.isfunction(v) or inspect.isclass(v)}
            known = [n for n, v in callables.items() if v.__module__ == module.__name__]
            raise Refused(f"{file} has no function or class {name}; it has {', '.join(known) or 'none'}.")
        yield made


class Refused(ValueError):
    """A sentence of our own about a user's file."""


class Absent(Refused, ImportError):
    """The same about a folder, which may be another thing than the package that is looked for: an import that may fail does."""


def _run(module: ModuleType, source: Path, trust: Trust) -> None:
    """Execute a trusted file as this module, from the bytes that were hashed."""
    if str(source) not in trust:
        name = os.path.relpath(source) if source.is_relative_to(Path.cwd()) else source
        said = f"{name} is imported and not trusted; add it to trust=[...], or the folder that it is in."
        raise Absent(said) if source.is_dir() else Refused(said)
    try:
        content = source.read_bytes()
    except OSError as problem:
        raise Refused(f"{source} cannot be read ({problem.strerror}); give a file that is there.") from problem
    if hashlib.sha256(content).hexdigest() != trust[str(source)]:
        raise Refused(f"{source} has changed since this run began; run again.")
    module.__file__ = str(source)
    exec(compile(content, str(source), "exec"), vars(module))


class _Source(importlib.machinery.SourceFileLoader):
    """Runs a file if it is trusted; who imports it draws the same random numbers, whether it runs then or ran before."""

    def __init__(self, fullname: str, path: str, trust: Trust) -> None:
        super().__init__(fullname, path)
        self.trust = trust

    def exec_module(self, module: ModuleType) -> None:
        with random_state_kept(()):
            _run(module, Path(self.path), self.trust)


class _Trusted(importlib.abc.MetaPathFinder):
    """Imports of trusted files, those of packages too; what lies beside them, or where we are, and is not listed is refused.

    It is so once it runs, not where somebody asks whether it is there.
    """

    def __init__(self, trust: Trust) -> None:
        self.trust, self.folders, self.packages = trust, {Path.cwd()}, set[Path]()
        self.made: dict[str, str] = {}  # files of the modules that are ours, "" for a folder without one of its own
        for folder in {Path(file).parent for file in trust}:
            inner = list(itertools.takewhile(lambda f: (f / "__init__.py").is_file(), [folder, *folder.parents]))
            self.folders.add(inner[-1].parent if inner else folder)
            self.packages |= set(inner[:1])  # a script in one imports what is beside it

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        top, parent = fullname.partition(".")[0], fullname.rpartition(".")[0]
        if top == PACKAGE.name or (parent not in self.made and getattr(sys.modules.get(parent), "__file__", None)):
            return None  # of an installed package
        own = self._beside(fullname, self.folders)
        spec = own or self._beside(fullname, self.packages - self.folders) or self._beside(fullname, self.folders, True)
        if spec is None:
            return None
        # an installed module may be called like a file that belongs to a package, or like a folder that has no code
        found = spec.origin or ""
        member = own is None or any(file == found != "" and name != fullname for name, file in self.made.items())
        if member and parent not in self.made and _installed(fullname, path, found):
            return None
        self.made[fullname] = found
        return spec

    def _beside(
        self, fullname: str, folders: Iterable[Path], bare: bool = False
    ) -> importlib.machinery.ModuleSpec | None:
        """The file of this name in one of the folders, listed or not; else a folder with what is listed in it; `bare`: or not."""
        places = [folder.joinpath(*fullname.split(".")) for folder in folders]
        files = [place / "__init__.py" for place in places]
        files += [place.with_name(place.name + end) for place in places for end in importlib.machinery.all_suffixes()]
        beside = list(dict.fromkeys(str(file.resolve()) for file in files if file.is_file()))
        listed = [file for file in beside if file in self.trust]
        if len(listed) > 1:
            raise Refused(
                f"{fullname} is imported, and both {listed[0]} and {listed[1]} are trusted; rename one of them."
            )
        there = [place.resolve() for place in places if place.is_dir()]
        inside = [str(place) for place in there if any(Path(file).is_relative_to(place) for file in self.trust)]
        if inside and not beside:  # no code of its own
            spec = importlib.machinery.ModuleSpec(fullname, None)
            spec.submodule_search_locations = inside
            return spec
        if (found := next(iter([*listed, *beside, *(map(str, there) if bare else ())]), None)) is None:
            return None
        within = [str(Path(found).parent)] if Path(found).name == "__init__.py" else None
        loader = _Source(fullname, found, self.trust)
        return importlib.util.spec_from_file_location(fullname, found, loader=loader, submodule_search_locations=within)


def _installed(fullname: str, path: Any, but: str) -> bool:
    """Whether anybody else finds a module of this name, in another file."""
    finders = [finder for finder in sys.meta_path if not isinstance(finder, _Trusted)]
    specs = [finder.find_spec(fullname, path) for finder in finders if hasattr(finder, "find_spec")]
    return any(spec is not None and str(Path(spec.origin or "").resolve()) != but for spec in specs)


@contextlib.contextmanager
def _importable(trust: Trust) -> Iterator[None]:
    """Imports of what is trusted; within each other they are one, so that a module that is imported again is the same."""
    if any(isinstance(finder, _Trusted) and finder.trust == trust for finder in sys.meta_path):
        yield
        return
    finder = _Trusted(trust)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.made:  # another run may have another file of this name
            sys.modules.pop(name, None)


@contextlib.contextmanager
def told(trust: Trust, file: str = "") -> Iterator[None]:
    """A user's code may run, and import what it may; what it raises is a sentence that says where in it.

    `file` is what to say where no line of it ran.
    """
    try:
        with _importable(trust) if trust else contextlib.nullcontext():
            yield
    except Refused as problem:
        *before, said = str(problem).strip().splitlines()
        if before:  # a DataLoader puts the traceback of its worker there, whose last line has the kind
            raise Refused(said.partition(": ")[2]) from problem
        raise
    except (Exception, SystemExit) as problem:
        if isinstance(problem, SystemExit) and type(problem) is not SystemExit:
            raise  # a signal of ours
        where = _line(problem, trust) or file
        if not where:
            raise
        raise ValueError(f"{where} failed with {with_kind(problem).rstrip('.')}; mend it and run again.") from problem


def _line(problem: BaseException, trust: Trust) -> str:
    """NAME.py, line N of a user's code that an exception comes from; "" where ours ran last, or nothing of theirs."""
    if isinstance(problem, SyntaxError) and problem.filename in trust:
        return f"{Path(str(problem.filename)).name}, line {problem.lineno}"
    frames = traceback.extract_tb(problem.__traceback__)
    ran = [f for f in frames if f.filename in trust or Path(f.filename).is_relative_to(PACKAGE)]
    return f"{Path(ran[-1].filename).name}, line {ran[-1].lineno}" if ran and ran[-1].filename in trust else ""


# Networks -----------------------------------------------------------------------------------------------------------------
def model(
    problem: Problem,
    path: str,
    *,
    seed: int = 0,
    checkpoint: str | None = None,
    options: Mapping[str, Any] | None = None,
    trust: Trust | None = None,
) -> nn.Module:
    """The network that a function of a trusted file returns, with the weights of `checkpoint`; `seed` seeds what it draws."""
    made = call("model.path", path, options, trust or {}, seed)
    if not isinstance(made, nn.Module):
        raise ValueError(f"{path} returned a {type(made).__name__}; it must return a torch.nn.Module.")
    if checkpoint is not None:
        LOADED[made] = load_weights(made, checkpoint, path)
    return made


def huggingface(problem: Problem, name: str, *, seed: int = 0) -> nn.Module:
    """The model of a folder with config.json and weights, as transformers builds it; nothing is downloaded, no code of it is run.

    On text of `data=text` a causal model, (B, T) to (B, V, T); on (x, y) of your own tensors x to its logits; else as it is.
    """
    with torch.random.fork_rng(devices=[]):
        made, said = pretrained.of_folder(name)
    if isinstance(problem, Stream):
        chosen = made
    elif problem.tokens and not pretrained.is_causal(made):
        raise ValueError(
            f"{name} is a {type(made).__name__}, and {problem.name} needs a causal language model; give batches of your own by "
            "data=file data.path=FILE.py:FUNCTION."
        )
    elif problem.tokens and (problem.targets != "next" or problem.tokens not in _tokens(name)):
        raise ValueError(
            f"{name} reads its own tokens and predicts the next one, not tokens={problem.tokens} with targets={problem.targets}; "
            "leave data.tokens and data.targets out."
        )
    elif problem.tokens and problem.classes > (known := vars(made.config)["vocab_size"]):
        raise ValueError(
            f"{name} knows {known} tokens, and tokens={problem.tokens} has {problem.classes}; give batches of "
            "your own by data=file data.path=FILE.py:FUNCTION."
        )
    else:
        chosen = Causal(made) if problem.tokens or problem.y_train.ndim == 2 else Logits(made)
    LOADED[chosen] = said
    return chosen


def _tokens(name: str) -> tuple[str, ...]:
    """What a folder's model may read: its own tokens, or, where no tokenizer lies with it, those that somebody names."""
    return (name,) if (Path(name) / "tokenizer.json").is_file() else pretrained.TOKENS


def loaded(network: nn.Module) -> str:
    """What weights a network was given, in words; "" for one that has none but its own."""
    return LOADED.get(network, "")


# Data ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Stream(Problem):
    """Data that are no list of pairs (x, y) of one shape: `given` are the batches of each split, read anew for every product.

    Its tensors are empty: what needs all samples at hand (a training, an experiment) is refused before it.
    """

    given: Mapping[str, Any] = field(default_factory=dict)

    def batches(self, split: str, samples: int | None, dtype: torch.dtype) -> Any:
        """The batches of a split with their numbers in `dtype`; the first `samples` alone as a list, None: all."""
        if split not in self.given:
            raise ValueError(f"operator.split={split} is empty: {self.name} returned no batches of that name.")
        whole = InDtype(self.given[split], dtype)
        return whole if samples is None else list(_first(whole, samples))


class InDtype:
    """Batches with their floating numbers in one dtype, read anew each time; a loader's own attributes are still its own."""

    def __init__(self, data: Any, dtype: torch.dtype) -> None:
        self.data, self.dtype = data, dtype

    def __getattr__(self, name: str) -> Any:  # the generators of a DataLoader, which sweeps put back
        if name == "data":
            raise AttributeError(name)
        return getattr(self.data, name)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        def cast(_: Any, leaf: Any) -> Any:
            leaf = arrays.to_torch(leaf) if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf" else leaf
            return in_dtype(leaf, self.dtype) if isinstance(leaf, Tensor) else leaf

        for batch in self.data:
            yield mapped(cast, batch)


def _first(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """Batches until so many samples are there; the last one is cut."""
    cut = Samples()
    for batch in batches:
        size = cut.size(batch)
        yield batch if size <= samples else cut.rows(batch, size, 0, samples)
        samples -= size
        if samples <= 0:
            return


def data(
    path: str,
    *,
    seed: int = 0,
    train: int | str = "auto",
    test: int | str | None = "auto",
    standardise: str = "auto",
    options: Mapping[str, Any] | None = None,
    trust: Trust | None = None,
    whole: bool = False,
) -> Problem:
    """Your own data: the batches that a function of a trusted file returns, or an .npz file with x (N, ...) and y (N,).

    A list of pairs (x, y) of arrays of one shape is put together; other batches (a DataLoader, mappings, ragged text) stay what
    they are, a `Stream`, which `whole` refuses. {"train": batches, "test": batches} are two splits. Of an .npz file `train` and
    `test` samples are drawn, 300 each by default (None: all that remain), standardised by feature.
    """
    if place(path) is None:
        chosen = {"train": train, "test": test, "standardise": standardise}
        return arrays_file(path, seed=seed, **{k: v for k, v in chosen.items() if v != "auto"})  # type: ignore[arg-type]
    made = call("data.path", path, options, trust or {}, seed)
    split = isinstance(made, Mapping) and "train" in made and set(made) <= {"train", "test"}
    splits = made if split else {"train": made}
    for batches in splits.values():
        _check_batches(batches, path)
    found = {name: pairs(batches) for name, batches in splits.items()}
    nothing, name = (torch.zeros(0), torch.zeros(0, dtype=torch.int64)), path
    if None in found.values():
        if whole:
            raise ValueError(
                f"{path} returned a {type(splits['train']).__name__} that is no list of pairs (x, y) of tensors of one shape, "
                "and a training or an experiment needs all samples at hand; return such a list (list(loader)), or "
                "name no experiment and take training=none."
            )
        return Stream(name, *nothing, *nothing, 0, (), given=splits)
    x, y = found["train"] or nothing
    x_test, y_test = found.get("test") or nothing
    if whole and y.is_floating_point():
        raise ValueError(
            f"The labels of {path} are no whole numbers, and training here is of classes; take training=none."
        )
    if whole:  # networks train in float32
        x, x_test = in_dtype(x, torch.float32), in_dtype(x_test, torch.float32)
    classes = y.shape[-1] if y.is_floating_point() and y.ndim > 1 else 1 if y.is_floating_point() else int(y.max()) + 1
    return Problem(name, x, y, x_test, y_test, classes, tuple(x.shape[1:]))


def _check_batches(batches: Any, path: str) -> None:
    """One sentence for what is no re-iterable of at least one batch."""
    try:
        check_data(batches)
        with random_state_kept(batches):
            first = next(iter(batches), None)
    except TypeError as problem:
        raise ValueError(
            f'{path} must return batches, such as a list of (x, y), or splits of them {{"train": ..., "test": ...}}: {problem}'
        ) from problem
    if first is None:
        raise ValueError(f"{path} returned no batches; return at least one, such as [(x, y)].")


def pairs(batches: Any) -> tuple[Tensor, Tensor] | None:
    """(x, y) of a list of pairs of arrays of one shape, labels as int64 or as they are; None for other batches."""
    if not isinstance(batches, Sequence):
        return None
    parts = []
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            return None
        arrayed = all(isinstance(part, Tensor | np.ndarray) and part.ndim for part in batch)
        if not arrayed or len(batch[0]) != len(batch[1]):
            return None
        parts.append(tuple(torch.as_tensor(part).detach() for part in batch))
    if len({(x.shape[1:], x.dtype, y.shape[1:], y.dtype) for x, y in parts}) > 1 or not sum(len(x) for x, _ in parts):
        return None
    x, y = (torch.cat(column) for column in zip(*parts, strict=True))
    return x, y if y.is_floating_point() or y.is_complex() else y.long()
