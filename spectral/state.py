"""What a run keeps on disk so that it can go on: trained networks and finished cells, whole or absent, never mixed.

The folder is named by the fingerprint of the configuration. Every file carries that fingerprint and a checksum; one that
is damaged or belongs to another configuration is an error, as mixing them would give numbers of no run at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral.checkpoint import atomic_write, fingerprint, load_arrays, save_arrays
from spectral.landscape.cell import CellResult, Snapshot
from spectral.landscape.training import Trained
from spectral.spectrum import Spectrum


class State(MutableMapping[str, Snapshot]):
    """The folder ROOT/<fingerprint of `description`>; as a mapping it holds the trained networks by their key."""

    def __init__(self, root: str | Path, description: Any, resume: bool) -> None:
        self.fingerprint = fingerprint(description)
        self.folder = Path(root) / self.fingerprint
        self.description = json.dumps(description, sort_keys=True, default=str, indent=1)
        for stale in self.folder.glob(".*.tmp"):  # a process that was killed while it wrote
            stale.unlink(missing_ok=True)
        if not resume:
            for old in (*self.folder.glob("*.json"), *self.folder.glob("*.npz"), *self.folder.glob("probes-*.npz.*")):
                old.unlink(missing_ok=True)

    def _begin(self) -> None:
        """Say what the folder is of; with the first part that is kept, so that a run that fails at once leaves none."""
        if not self.path("settings.json").exists():
            atomic_write(self.path("settings.json"), self.description.encode())

    def path(self, name: str) -> Path:
        """Where a file of this state lies."""
        return self.folder / name

    def parts(self) -> str:
        """What is kept, in words.

        >>> State("nowhere", {}, resume=True).parts()
        '0 trained networks, 0 finished spectra and the finished probes of 0'
        """
        spectra = sum(path.name != "settings.json" for path in self.folder.glob("*.json"))
        probed = sum(1 for _ in self.folder.glob("probes-*.npz"))
        return f"{len(self)} trained networks, {spectra} finished spectra and the finished probes of {probed}"

    def probes(self, key: str) -> Path:
        """The file for the finished probes of a spectrum that is being computed; `save_spectrum` removes it."""
        self._begin()
        return self.path(f"probes-{key}.npz")

    # Finished cells --------------------------------------------------------------------------------------------------
    def save_cell(self, result: CellResult) -> None:
        """Keep a finished cell."""
        self.save_spectrum(result.cell.key, result.spectrum, result.to_dict())

    def load_cell(self, key: str) -> CellResult | None:
        """The finished cell of this key, or None if it is not done; ValueError if its files are damaged or foreign."""
        kept = self.load_spectrum(key)
        return None if kept is None else CellResult.from_dict(kept[1], kept[0])

    def save_spectrum(self, key: str, spectrum: Spectrum, plain: dict[str, Any]) -> None:
        """Keep a spectrum and plain data that belong together: first the spectrum, then the record that makes it count."""
        self._begin()
        spectrum.save(self.path(f"{key}.npz"))
        self._finish(key, plain)

    def save_arrays(self, key: str, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        """The same for arrays that make no spectrum."""
        self._begin()
        save_arrays(self.path(f"{key}.npz"), arrays, {"of": self.fingerprint})
        self._finish(key, plain)

    def _finish(self, key: str, plain: dict[str, Any]) -> None:
        """The record, and no checkpoint any more."""
        self._save_record(key, plain, self.path(f"{key}.npz"))
        for more in ("", ".vectors", ".basis"):  # beside a file of probes: see `estimators.flight`
            self.path(f"probes-{key}.npz{more}").unlink(missing_ok=True)

    def load_spectrum(self, key: str) -> tuple[Spectrum, dict[str, Any]] | None:
        """What `save_spectrum` kept under this key, or None."""
        plain = self._load_record(key)
        return None if plain is None else (Spectrum.load(self.path(f"{key}.npz")), plain)

    def load_arrays(self, key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """What `save_arrays` kept under this key, or None."""
        plain = self._load_record(key)
        return None if plain is None else (load_arrays(self.path(f"{key}.npz"))[0], plain)

    def _save_record(self, key: str, plain: dict[str, Any], spectrum: Path) -> None:
        text = json.dumps(plain, sort_keys=True, default=str)
        record = {"of": self.fingerprint, "check": _digest(text.encode(), spectrum.read_bytes()), "text": text}
        atomic_write(self.path(f"{key}.json"), json.dumps(record).encode())

    def _load_record(self, key: str) -> dict[str, Any] | None:
        path, spectrum = self.path(f"{key}.json"), self.path(f"{key}.npz")
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_bytes())
            of, check, text = record["of"], record["check"], record["text"]
        except (ValueError, KeyError, TypeError) as problem:
            raise ValueError(f"{path} is damaged; delete the folder {self.folder} and run again.") from problem
        if of != self.fingerprint:
            raise ValueError(f"{path} belongs to another configuration; delete the folder {self.folder} and run again.")
        if not spectrum.exists() or check != _digest(text.encode(), spectrum.read_bytes()):
            raise ValueError(
                f"{spectrum} is damaged or missing: it does not fit its record; delete the folder {self.folder} and run again."
            )
        return json.loads(text)

    # Trained networks ------------------------------------------------------------------------------------------------
    def __getitem__(self, key: str) -> Snapshot:
        path = self._network(key)
        if not path.exists():
            raise KeyError(key)
        arrays, header = load_arrays(path)
        if header.get("of") != self.fingerprint:
            raise ValueError(f"{path} belongs to another configuration; delete the folder {self.folder} and run again.")
        state = {name.removeprefix("state."): torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return Snapshot(state, Trained.from_dict(header["trained"]), header["noise"], header["changed"])

    def __setitem__(self, key: str, snapshot: Snapshot) -> None:
        self._begin()
        arrays = {f"state.{name}": value.numpy() for name, value in snapshot.state.items()}
        header = {
            "of": self.fingerprint,
            "trained": snapshot.trained.to_dict(),
            "noise": snapshot.noise,
            "changed": snapshot.changed,
        }
        save_arrays(self._network(key), arrays, header)

    def __delitem__(self, key: str) -> None:
        self._network(key).unlink()

    def __iter__(self) -> Iterator[str]:
        return (path.stem.removeprefix("network-") for path in sorted(self.folder.glob("network-*.npz")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _network(self, key: str) -> Path:
        return self.path(f"network-{key}.npz")


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
