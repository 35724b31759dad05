"""What a run keeps on disk so that it can go on: trained networks and finished cells, whole or absent, never mixed.

The folder is named by the fingerprint of the configuration. Every file carries that fingerprint and a checksum; one that
is damaged or belongs to another configuration is an error, as mixing them would give numbers of no run at all. What is read is
held against a rule, and nothing is read or written through a link; so is the result.json of a finished run.

A run that begins anew lays aside what one that did not end has kept, and says so: until it has ended itself nothing is lost.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral import persist
from spectral.experiments.cell import KINDS, CellResult, Snapshot
from spectral.experiments.datasets import INPUTS
from spectral.experiments.study import Part
from spectral.experiments.training import Trained
from spectral.persist import atomic_write, fingerprint, load_arrays, save_arrays
from spectral.schema import (
    COUNT,
    NONNEGATIVE,
    REAL,
    SHARE,
    SIZE,
    Array,
    Either,
    Fields,
    Flag,
    Items,
    Law,
    Mismatch,
    Number,
    Plain,
    Row,
    Rule,
    Text,
    maybe,
)
from spectral.spectrum import Spectrum
from spectral.storage import Description

MOST_BYTES = 1 << 28  # of a result.json

# What files must hold -------------------------------------------------------------------------------------------------
ANY = Number(finite=False, nan=True)
NUMBERS = Fields(others=ANY)
COSTS = {"products": NONNEGATIVE, "epochs": NONNEGATIVE, "seconds": NONNEGATIVE}
TRAINED = Fields(
    {
        "reached": Flag(),
        "loss": NONNEGATIVE,
        "accuracy": SHARE,
        "epochs": COUNT,
        "seconds": NONNEGATIVE,
        "target_loss": Number(above=0),
        "settings": Fields(others=Plain()),
    },
    {"history": Items(Row(SIZE, REAL, NONNEGATIVE))},
    laws=(Law("a row of its history for each epoch", lambda f, s: len(f.get("history", ())) in (0, f["epochs"])),),
)
CURVE = Fields(
    {
        "method": Text("exact", "lanczos"),
        "k": SIZE,
        "energy": REAL,
        "sizes": Items(Number(above=0), least=1),
        "energies": Items(REAL),
    },
    laws=(Law("as many energies as sizes", lambda f, s: len(f["sizes"]) == len(f["energies"])),),
)
CONDITION = Fields(
    {"name": Text(), "noise": maybe(SHARE), "epochs": maybe(COUNT), "options": maybe(Fields(others=Plain()))},
    {"inputs": Text(*INPUTS), "classes": maybe(SIZE)},
)
MATRIX = Fields(
    {"kind": Text(*KINDS), "of": Text("logits", "probs"), "split": Text("train", "test")}, {"block": Text()}
)
CELL = Fields(
    {
        "cell": Fields({"seed": COUNT, "condition": CONDITION, "matrix": MATRIX}),
        "metrics": NUMBERS,
        "alignment": Fields(may={"own": CURVE, "true": CURVE}),
        "trained": maybe(TRAINED),
        "changed": SHARE,
        "test_accuracy": Number(least=0, most=1, nan=True),
        "cost": Fields(COSTS),
    },
    {"samples": Items(NONNEGATIVE)},
)
STATE = ("float32", "float64", "float16", "int64", "int32", "uint8", "bool")  # dtypes of a network's state
NETWORK = Fields(
    {"of": Text(), "trained": TRAINED, "noise": SHARE, "changed": SHARE},
    others=Either(*(Array(dtype, ...) for dtype in STATE)),
)
SHARED: dict[str, Rule] = {"products": COUNT, "epochs": NONNEGATIVE, "of": Text(), "operator": Description()}
SEARCHED = {
    "values": Array("float64", "k"),
    "residuals": Array("float64", "k", least=0),
    "converged": Array("bool", "k"),
    "threshold": NONNEGATIVE,
    "complete": Flag(),
}
DRAWN = {"value": Array("float64", "n"), "stderr": Array("float64", "n", least=0), "method": Text(), "probes": COUNT}


def _vectors(side: str) -> Rule:
    return Either(Array("float64", side, "k"), Array("float32", side, "k"))


ESTIMATE = Either(  # what `top`, `svd`, `diagonal` and `trace` find
    Fields({"kind": Text("eigenvalues"), **SHARED, **SEARCHED, "vectors": _vectors("n")}, {"meta": Plain()}),
    Fields({"kind": Text("singular values"), **SHARED, **SEARCHED, "left": _vectors("m"), "right": _vectors("n")}),
    Fields({"kind": Text("diagonal"), **SHARED, **DRAWN}, {"lower": ANY, "upper": ANY}),
    Fields({"kind": Text("trace"), **SHARED, **DRAWN, "lower": ANY, "upper": ANY}),
)
PART = Fields({**COSTS, "spectra": Items(Text())}, others=Either(Text(), ANY, Flag()))  # of a step of a study
RECORD = Fields({"of": Text(), "check": Text(), "text": Text(most=MOST_BYTES)})

# result.json: numbers that JSON has not are null
ESTIMATED = Fields(
    may={
        "values": Items(maybe(REAL)),
        "errors": Items(maybe(REAL)),
        **dict.fromkeys(("d", "lower", "upper"), maybe(REAL)),
    },
    others=Plain(),
    laws=(
        Law("an error for each value", lambda f, s: len(f.get("values", ())) == len(f.get("errors", ()))),
        Law("an interval of its d", lambda f, s: "values" in f or {"d", "lower", "upper"} <= set(f)),
    ),
)
PAIRED = Law(
    "as many values of true as of random labels where they are compared",
    lambda f, s: "true-random" not in f or len(f["true"]["values"]) == len(f["random"]["values"]),
)
COMPARED = Fields(others=ESTIMATED, laws=(PAIRED,))
LISTED = Fields(
    {"matrix": Text(), "condition": Text(), "seed": COUNT, "metrics": Fields(others=maybe(REAL))},
    {
        "spectrum": Text(),
        "arrays": Text(),
        "test_accuracy": maybe(SHARE),
        "trained": maybe(Fields({"reached": Flag()}, others=Plain())),
        "found": Fields(may={"kind": Text()}, others=Plain()),
    },
    others=Plain(),
)
RESULT = Fields(
    {
        "config": Fields(may={"choices": Fields(others=maybe(Text()))}, others=Plain()),
        "cost": Fields(others=maybe(REAL)),
        "estimates": Fields(others=Plain()),
        "cells": Items(LISTED, least=1),
    },
    {
        "environment": Fields(may={"started": Text()}, others=Either(Text(), Number(), Flag(), None)),
        "conditions": Fields(others=Text()),
    },
    others=Plain(),
)


def read_result(path: Path) -> dict[str, Any]:
    """The result.json of a run; ValueError in one sentence for anything that no run has written."""
    refusal = f"{path} is no result of spectral or is damaged"
    if persist.own(path).stat().st_size > MOST_BYTES:
        raise ValueError(f"{refusal}: it is larger than {MOST_BYTES >> 20} MiB; remove its folder.")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        RESULT.check(result, "")
        if len(result["cells"]) > 1:
            Fields(others=Fields(others=COMPARED)).check(result["estimates"], "estimates")
    except (ValueError, RecursionError) as problem:
        why = str(problem) if isinstance(problem, Mismatch) else "it cannot be read"
        raise ValueError(f"{refusal}: {why}; remove its folder.") from problem
    return result


def inside(folder: Path, name: str) -> Path:
    """The file of that name in or below a run's folder; ValueError for one that would lead out of it."""
    path, file = Path(name), folder / name
    if path.is_absolute() or ".." in path.parts or not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder / 'result.json'} names {name!r}, which lies outside of its folder; remove it.")
    return persist.own(file)


class RunStore(MutableMapping[str, Snapshot]):
    """The folder ROOT/<fingerprint of `description`>; as a mapping it holds the trained networks by their key.

    Where it is not `present`, on ranks that another one reads and writes for, nothing is on disk.
    """

    def __init__(self, root: str | Path, description: Any, resume: bool, present: bool = True) -> None:
        self.present = present
        self.fingerprint = fingerprint(description)
        self.folder = persist.own_folder(Path(root) / self.fingerprint)
        self.description = json.dumps(description, sort_keys=True, default=str, indent=1)
        self.unsaved: dict[str, Snapshot] = {}  # networks that a full disk did not take
        self.before = self.folder.with_name(f"{self.folder.name}.before")
        if not present:
            return
        persist.sweep(self.folder)
        if resume and self.before.exists() and not self.folder.exists():
            self.before.rename(self.folder)
        elif not resume and self.path("ended").exists():
            shutil.rmtree(self.folder)
        elif not resume and self.folder.exists():
            print(
                f"An earlier run of this configuration did not end: {self.parts()} are kept. This one begins anew; until it ends "
                f"they lie in {self.before}. To go on from them, stop now and give resume=true.",
                file=sys.stderr,
            )
            shutil.rmtree(self.before, ignore_errors=True)
            self.folder.rename(self.before)

    def end(self) -> None:
        """The run has ended: its results are elsewhere, and what an earlier one had kept is needed no more."""
        if self.present and self.folder.exists():
            with suppress(OSError):  # of a full disk: the next run then lays aside what it need not
                atomic_write(self.path("ended"), b"")
            shutil.rmtree(self.before, ignore_errors=True)

    def _begin(self) -> None:
        """Say what the folder is of; with the first part that is kept, so that a run that fails at once leaves none."""
        if self.present and not self.path("settings.json").exists():
            atomic_write(self.path("settings.json"), self.description.encode())

    def path(self, name: str) -> Path:
        """Where a file of this store lies; ValueError where a link stands there."""
        return persist.own(self.folder / name)

    def parts(self) -> str:
        """What is kept, in words.

        >>> RunStore("nowhere", {}, resume=True).parts()
        '0 trained networks, 0 finished spectra and 0 in the making'
        """
        spectra = sum(path.name != "settings.json" for path in self.folder.glob("*.json"))
        trained, probed = (len(list(self.folder.glob(name))) for name in ("network-*.npz", "probes-*.npz"))
        return f"{trained} trained networks, {spectra} finished spectra and {probed} in the making"

    def probes(self, key: str) -> Path:
        """The file for the finished probes of a spectrum that is being computed; `save_spectrum` removes it."""
        self._begin()
        return self.path(f"probes-{key}.npz")

    def _foreign(self, path: Path, why: str = "belongs to another configuration") -> ValueError:
        return ValueError(f"{path} {why}; delete the folder {self.folder} and run again.")

    # Finished cells --------------------------------------------------------------------------------------------------
    def save_cell(self, result: CellResult) -> None:
        """Keep a finished cell."""
        self.save_spectrum(result.cell.key, result.spectrum, result.to_dict())

    def load_cell(self, key: str) -> CellResult | None:
        """The finished cell of this key, or None if it is not done; ValueError if its files are damaged or foreign."""
        stored = self.load_spectrum(key, CELL)
        if stored is None:
            return None
        result = CellResult.from_dict(stored[1], stored[0])
        if result.cell.key != key:
            raise self._foreign(self.path(f"{key}.json"), "is of another matrix")
        return result

    def save_spectrum(self, key: str, spectrum: Spectrum, plain: dict[str, Any]) -> None:
        """Keep a spectrum and plain data that belong together."""
        self._save(key, spectrum.save, plain)

    def save_arrays(self, key: str, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        """The same for arrays that make no spectrum."""
        self._save(key, lambda path: save_arrays(path, arrays, {"of": self.fingerprint}), plain)

    def _save(self, key: str, write: Callable[[Path], None], plain: dict[str, Any]) -> None:
        """First the arrays, then the record that makes them count; then no checkpoint any more."""
        if not self.present:
            return
        path, text = self.path(f"{key}.npz"), json.dumps(plain, sort_keys=True, default=str)
        with persist.forgiving(path):
            self._begin()
            write(path)
            record = {"of": self.fingerprint, "check": _digest(text.encode(), path.read_bytes()), "text": text}
            atomic_write(self.path(f"{key}.json"), json.dumps(record).encode())
            for more in ("", ".vectors", ".basis"):  # beside a file of probes
                self.path(f"probes-{key}.npz{more}").unlink(missing_ok=True)

    def save_part(self, key: str, part: Part) -> None:
        """Keep a finished step of a study: its spectra, then what makes them count."""
        for name, spectrum in part.spectra.items():
            self.save_spectrum(f"{key}.{name}", spectrum, {})
        self.save_arrays(key, dict(part.arrays), {**part.facts, "spectra": list(part.spectra)})

    def load_part(self, key: str) -> Part | None:
        """The finished step of this key, or None if it is not done; ValueError if its files are damaged or foreign."""
        plain = self._load_record(key, PART)
        if plain is None:
            return None
        arrays = self._own_arrays(key)
        persist.check(self.path(f"{key}.npz"), arrays, Fields(others=Array("float64", ..., finite=False)), "")
        spectra = {name: self.load_spectrum(f"{key}.{name}") for name in plain.pop("spectra")}
        if lost := [name for name, found in spectra.items() if found is None]:
            raise self._foreign(self.path(f"{key}.{lost[0]}.npz"), "is missing")
        return Part(arrays, plain, {name: found[0] for name, found in spectra.items() if found is not None})

    def _own_arrays(self, key: str) -> dict[str, np.ndarray]:
        """The arrays of this key, which must be of this configuration."""
        path = self.path(f"{key}.npz")
        arrays, header = load_arrays(path)
        persist.check(path, header, Fields({"of": Text(self.fingerprint)}), "")
        return arrays

    def load_spectrum(self, key: str, rule: Rule = NUMBERS) -> tuple[Spectrum, dict[str, Any]] | None:
        """What `save_spectrum` kept under this key with plain data as the rule says, or None."""
        plain = self._load_record(key, rule)
        return None if plain is None else (Spectrum.load(self.path(f"{key}.npz")), plain)

    def load_arrays(self, key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """What `save_arrays` kept under this key, or None."""
        plain = self._load_record(key, Fields(others=Plain()))
        if plain is None:
            return None
        path, arrays = self.path(f"{key}.npz"), self._own_arrays(key)
        persist.check(path, {**plain, **arrays}, ESTIMATE, "")
        return arrays, plain

    def _load_record(self, key: str, rule: Rule) -> dict[str, Any] | None:
        """The plain data of this key, as the rule says, whose arrays are those that it was kept with, or None."""
        path, arrays = self.path(f"{key}.json"), self.path(f"{key}.npz")
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_bytes())
            RECORD.check(record, "")
            plain = json.loads(record["text"])
        except (ValueError, RecursionError) as problem:
            raise self._foreign(path, "is damaged") from problem
        if record["of"] != self.fingerprint:
            raise self._foreign(path)
        if not arrays.exists() or record["check"] != _digest(record["text"].encode(), arrays.read_bytes()):
            raise self._foreign(arrays, "is damaged or missing: it does not fit its record")
        persist.check(path, plain, rule, "")
        return plain

    # Trained networks ------------------------------------------------------------------------------------------------
    def __getitem__(self, key: str) -> Snapshot:
        path = self._network(key)
        if key in self.unsaved:
            return self.unsaved[key]
        if not self.present or not path.exists():
            raise KeyError(key)
        arrays, header = load_arrays(path)
        if header.get("of") != self.fingerprint:
            raise self._foreign(path)
        persist.check(path, {**header, **arrays}, NETWORK, "")
        state = {name.removeprefix("state."): torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return Snapshot(state, Trained.from_dict(header["trained"]), header["noise"], header["changed"])

    def __setitem__(self, key: str, snapshot: Snapshot) -> None:
        arrays = {f"state.{name}": value.numpy() for name, value in snapshot.state.items()}
        header = {"trained": snapshot.trained.to_dict(), "noise": snapshot.noise, "changed": snapshot.changed}
        self.unsaved[key] = snapshot
        if not self.present:
            return
        with persist.forgiving(self._network(key)):
            self._begin()
            save_arrays(self._network(key), arrays, {"of": self.fingerprint, **header})
            del self.unsaved[key]

    def __delitem__(self, key: str) -> None:
        if self.unsaved.pop(key, None) is None:
            self._network(key).unlink()

    def __iter__(self) -> Iterator[str]:
        saved = (path.stem.removeprefix("network-") for path in sorted(self.folder.glob("network-*.npz")))
        yield from dict.fromkeys((*saved, *self.unsaved))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _network(self, key: str) -> Path:
        return self.path(f"network-{key}.npz")


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
