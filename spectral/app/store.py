"""What a run keeps on disk so that it can go on: trained networks and finished cells, whole or absent, never mixed.

The folder is named by the fingerprint of the configuration. Every file carries that fingerprint and a checksum; one that
is damaged or belongs to another configuration is an error, as mixing them would give numbers of no run at all. What is read is
held against a rule, and nothing is read or written through a link; so is the result.json of a finished run.

A run that begins anew lays aside what one that did not end has kept, and says so: until it has ended itself nothing is lost.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from spectral import persist
from spectral.experiments.cell import Cell, CellResult, Snapshot
from spectral.experiments.own import digest
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
OF_CELL: dict[str, Rule] = {
    "metrics": NUMBERS,
    "alignment": Fields(may={"own": CURVE, "true": CURVE}),
    "trained": maybe(TRAINED),
    "changed": SHARE,
    "test_accuracy": Number(least=0, most=1, nan=True),
    "cost": Fields(COSTS),
    "samples": Items(NONNEGATIVE),
}
STATE = ("float32", "float64", "float16", "int64", "int32", "uint8", "bool")  # dtypes of a network's state
SHARED: dict[str, Rule] = {"products": COUNT, "epochs": NONNEGATIVE, "of": Text(), "operator": Description()}
SEARCHED = {**SHARED, "threshold": NONNEGATIVE, "complete": Flag()}
PAIRS = {
    "values": Array("float64", "k"),
    "residuals": Array("float64", "k", least=0),
    "converged": Array("bool", "k"),
}
DRAWN = {**SHARED, "method": Text(), "probes": COUNT}
NUMBERED = Fields({"value": Array("float64", "n"), "stderr": Array("float64", "n", least=0)})


def _vectors(side: str) -> Rule:
    return Either(Array("float64", side, "k"), Array("float32", side, "k"))


def _part(facts: Rule, arrays: Rule, *spectra: str) -> Fields:
    """What the file of a finished part holds: facts, arrays, and the digests of its spectra, of any names where none is given."""
    digests = Fields(dict.fromkeys(spectra, Text()), others=None if spectra else Text())
    return Fields({"of": Text(), "facts": facts, "spectra": digests, "arrays": arrays})


ESTIMATE = Either(  # what `top`, `svd`, `diagonal` and `trace` find
    _part(
        Fields({"kind": Text("eigenvalues"), **SEARCHED}, {"meta": Plain()}),
        Fields({**PAIRS, "vectors": _vectors("n")}),
    ),
    _part(
        Fields({"kind": Text("singular values"), **SEARCHED}),
        Fields({**PAIRS, "left": _vectors("m"), "right": _vectors("n")}),
    ),
    _part(Fields({"kind": Text("diagonal"), **DRAWN}, {"lower": ANY, "upper": ANY}), NUMBERED),
    _part(Fields({"kind": Text("trace"), **DRAWN, "lower": ANY, "upper": ANY}), NUMBERED),
)
FOUND = _part(NUMBERS, Fields(), "whole")  # of one spectrum
NETWORK = _part(
    Fields({"trained": TRAINED, "noise": SHARE, "changed": SHARE}),
    Fields(others=Either(*(Array(dtype, ...) for dtype in STATE))),
)
STEP = _part(  # of a study
    Fields(COSTS, others=Either(Text(), ANY, Flag())), Fields(others=Array("float64", ..., finite=False))
)

# result.json: numbers that JSON has not are null
LISTED = Fields(
    {"matrix": Text(), "condition": Text(), "seed": COUNT, "metrics": Fields(others=maybe(REAL))},
    {
        "spectrum": Text(),
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
        files, trained, probed = (len(list(self.folder.glob(f"{name}*.npz"))) for name in ("", "network-", "probes-"))
        return f"{trained} trained networks, {files - trained - probed} finished spectra and {probed} in the making"

    def probes(self, key: str) -> Path:
        """The file for the finished probes of a spectrum that is being computed; `save` removes it."""
        self._begin()
        return self.path(f"probes-{key}.npz")

    def _foreign(self, path: Path, why: str = "is of another configuration or version of spectral") -> ValueError:
        return ValueError(f"{path} {why}; delete the folder {self.folder} and run again.")

    # Finished parts: a cell of an experiment, a step of a study, what one estimator has found --------------------------
    def save(self, key: str, part: Part) -> bool:
        """First the spectra, then the file that makes them count; then no checkpoint any more. False where it is not on disk."""
        path = self.path(f"{key}.npz")
        if not self.present:
            return False
        with persist.forgiving(path):
            self._begin()
            for name, spectrum in part.spectra.items():
                spectrum.save(self._spectrum(key, name))
            checks = {name: digest(self._spectrum(key, name)) for name in part.spectra}
            facts = json.loads(json.dumps(part.facts, default=str))
            save_arrays(path, part.arrays, {"of": self.fingerprint, "facts": facts, "spectra": checks})
            for more in ("", ".vectors", ".basis"):  # beside a file of probes
                self.path(f"probes-{key}.npz{more}").unlink(missing_ok=True)
            return True
        return False  # of a full disk

    def load(self, key: str, rule: Rule) -> Part | None:
        """What `save` kept under this key, as the rule says, or None; ValueError if its files are damaged or foreign."""
        path = self.path(f"{key}.npz")
        if not (self.present and path.exists()):
            return None
        arrays, header = load_arrays(path)
        if header.get("of") != self.fingerprint:
            raise self._foreign(path)
        persist.check(path, {**header, "arrays": arrays}, rule, "")
        spectra = {name: self._spectrum(key, name) for name in header["spectra"]}
        for name, file in spectra.items():
            if not file.exists() or digest(file) != header["spectra"][name]:
                raise self._foreign(file, "is damaged or missing")
        return Part(arrays, header["facts"], {name: Spectrum.load(file) for name, file in spectra.items()})

    def save_cell(self, result: CellResult) -> None:
        """Keep a finished cell."""
        self.save(result.cell.key, Part({}, result.to_dict(), {"whole": result.spectrum}))

    def load_cell(self, cell: Cell) -> CellResult | None:
        """The finished cell, or None if it is not done."""
        part = self.load(cell.key, _part(Fields({"cell": Text(cell.key), **OF_CELL}), Fields(), "whole"))
        return None if part is None else CellResult.from_dict(part.facts, cell, part.spectra["whole"])

    def _spectrum(self, key: str, name: str) -> Path:
        return self.path(f"spectra/{key}.{name}.npz")

    # Trained networks ------------------------------------------------------------------------------------------------
    def __getitem__(self, key: str) -> Snapshot:
        if key in self.unsaved:
            return self.unsaved[key]
        part = self.load(f"network-{key}", NETWORK)
        if part is None:
            raise KeyError(key)
        state = {name.removeprefix("state."): torch.from_numpy(array.copy()) for name, array in part.arrays.items()}
        return Snapshot(state, Trained.from_dict(part.facts["trained"]), part.facts["noise"], part.facts["changed"])

    def __setitem__(self, key: str, snapshot: Snapshot) -> None:
        arrays = {f"state.{name}": value.numpy() for name, value in snapshot.state.items()}
        facts = {"trained": snapshot.trained.to_dict(), "noise": snapshot.noise, "changed": snapshot.changed}
        self.unsaved[key] = snapshot
        if self.save(f"network-{key}", Part(arrays, facts)):
            del self.unsaved[key]

    def __delitem__(self, key: str) -> None:
        if self.unsaved.pop(key, None) is None:
            self.path(f"network-{key}.npz").unlink()

    def __iter__(self) -> Iterator[str]:
        saved = (path.stem.removeprefix("network-") for path in sorted(self.folder.glob("network-*.npz")))
        yield from dict.fromkeys((*saved, *self.unsaved))

    def __len__(self) -> int:
        return sum(1 for _ in self)
