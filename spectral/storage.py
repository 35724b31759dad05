"""Spectra and Lanczos records as arrays of a file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from spectral import checkpoint
from spectral.recurrences.lanczos import LanczosRecord
from spectral.results import Atoms

if TYPE_CHECKING:
    from spectral.spectrum import Spectrum

FORMAT = "spectral.Spectrum/1"


def pack_records(records: Any) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """(arrays, JSON): the recurrence coefficients end to end, and what names each record."""
    arrays = {
        "alphas": np.concatenate([np.zeros(0), *(record.alphas for record in records)]),
        "betas": np.concatenate([np.zeros(0), *(record.betas for record in records)]),
        "squared_norms": np.array([record.squared_norm for record in records], dtype=float),
    }
    names = [
        {
            "steps": record.steps,
            "dtype": record.dtype,
            "reorthogonalized": record.reorthogonalized,
            "stop": record.stop,
            "seed": record.seed,
            "index": record.index,
        }
        for record in records
    ]
    return arrays, names


def unpack_records(arrays: dict[str, np.ndarray], names: list[dict[str, Any]]) -> tuple[LanczosRecord, ...]:
    """The inverse of `pack_records`."""
    ends = np.cumsum([0, *(name["steps"] for name in names)])
    return tuple(
        LanczosRecord(
            arrays["alphas"][ends[i] : ends[i + 1]],
            arrays["betas"][ends[i] : ends[i + 1]],
            float(arrays["squared_norms"][i]),
            **{key: value for key, value in name.items() if key != "steps"},
        )
        for i, name in enumerate(names)
    )


def plain(value: Any) -> Any:
    """`value` as plain JSON: numpy scalars and arrays become numbers and lists, what JSON cannot hold becomes text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def save_spectrum(s: Spectrum, path: Any) -> None:
    """See `Spectrum.save`."""
    arrays, names = pack_records(s.records)
    arrays |= {
        "nodes": s.nodes,
        "weights": s.weights,
        "atom_values": s.atoms.values,
        "atom_multiplicities": s.atoms.multiplicities,
        "removed": np.array(s.removed, dtype=np.int64).reshape(len(s.records), -1 if len(s.records) else 0),
    }
    header = {
        "format": FORMAT,
        "dim": s.dim,
        "zeros": s.zeros,
        "products": s.products,
        "epochs": s.epochs,
        "method": s.method,
        "meta": plain(s.meta),
        "records": names,
    }
    checkpoint.save_arrays(path, arrays, header)


def load_spectrum(path: Any) -> dict[str, Any]:
    """The fields of the spectrum that `save_spectrum` wrote."""
    arrays, header = checkpoint.load_arrays(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} holds no spectrum of this version ({header.get('format')}); expected {FORMAT}.")
    fields = {key: header[key] for key in ("dim", "zeros", "products", "epochs", "method", "meta")}
    return {
        **fields,
        "nodes": arrays["nodes"],
        "weights": arrays["weights"],
        "atoms": Atoms(arrays["atom_values"], arrays["atom_multiplicities"]),
        "records": unpack_records(arrays, header["records"]),
        "removed": tuple(arrays["removed"]),
    }
