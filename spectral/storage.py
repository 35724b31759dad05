"""Spectra, Lanczos and Chebyshev records as arrays of a file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from spectral import checkpoint
from spectral.recurrences.chebyshev import ChebyshevRecord
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
        "known": np.concatenate([np.zeros(0), *(record.known for record in records)]),
        "shares": np.concatenate([np.zeros(0), *(record.shares for record in records)]),
    }
    names = [
        {
            "steps": record.steps,
            "known": len(record.known),
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
    deflated = np.cumsum([0, *(name.get("known", 0) for name in names)])  # files of version 0.1.0 have none
    none = np.zeros(0)
    return tuple(
        LanczosRecord(
            arrays["alphas"][ends[i] : ends[i + 1]],
            arrays["betas"][ends[i] : ends[i + 1]],
            float(arrays["squared_norms"][i]),
            known=arrays.get("known", none)[deflated[i] : deflated[i + 1]],
            shares=arrays.get("shares", none)[deflated[i] : deflated[i + 1]],
            **{key: value for key, value in name.items() if key not in ("steps", "known")},
        )
        for i, name in enumerate(names)
    )


def pack_moments(records: Any) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """(arrays, JSON) of Chebyshev records: their moments end to end, and what names each."""
    arrays = {
        "moments": np.concatenate([np.zeros(0), *(record.moments for record in records)]),
        "moments_squared_norms": np.array([record.squared_norm for record in records], dtype=float),
        "intervals": np.array([record.interval for record in records], dtype=float).reshape(-1, 2),
    }
    names = [
        {"moments": len(r.moments), "dtype": r.dtype, "stop": r.stop, "seed": r.seed, "index": r.index} for r in records
    ]
    return arrays, names


def unpack_moments(arrays: dict[str, np.ndarray], names: list[dict[str, Any]]) -> tuple[ChebyshevRecord, ...]:
    """The inverse of `pack_moments`."""
    ends = np.cumsum([0, *(name["moments"] for name in names)])
    return tuple(
        ChebyshevRecord(
            arrays["moments"][ends[i] : ends[i + 1]],
            (float(arrays["intervals"][i, 0]), float(arrays["intervals"][i, 1])),
            float(arrays["moments_squared_norms"][i]),
            **{key: value for key, value in name.items() if key != "moments"},
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
        "removed": _rectangular(s.removed),
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


def _rectangular(removed: Any) -> np.ndarray:
    """(K, L, w): the rows of all probes at one width; a repeated index removes nothing more."""
    rows = [gone if gone.ndim == 2 else gone[:, None] for gone in removed]
    width = max((row.shape[1] for row in rows), default=1)
    wide = [np.pad(row, ((0, 0), (0, width - row.shape[1])), mode="edge") if len(row) else row for row in rows]
    return (
        np.array(wide, dtype=np.int64).reshape(len(rows), -1, width)
        if len(rows) and len(rows[0])
        else np.zeros((len(rows), 0, width), dtype=np.int64)
    )


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
