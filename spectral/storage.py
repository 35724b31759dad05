"""Spectra, Lanczos and Chebyshev records as arrays of a file, and what such a file must hold.

Sizes of the rules: R records with T steps and D deflated eigenvalues together, K probes with M nodes each, L atoms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from spectral import persist
from spectral.krylov.chebyshev import ChebyshevRecord
from spectral.krylov.lanczos import LanczosRecord
from spectral.quadrature import gauss
from spectral.results import Atoms
from spectral.schema import (
    COUNT,
    FLOATS,
    NONNEGATIVE,
    REAL,
    SIZE,
    Array,
    Either,
    Fields,
    Flag,
    Items,
    Law,
    Number,
    Plain,
    Row,
    Rule,
    Same,
    Sizes,
    Text,
    maybe,
    shown,
)

FORMAT = "spectral.Spectrum/1"
HEADER = ("dim", "zeros", "products", "epochs", "method")  # fields that are numbers and texts
NEAR = 1e-6  # of the largest |node|: how far the nodes of a file may be from those of its records, made elsewhere
TOTAL = 1e-6  # the same of the weights' sums
NONE = np.zeros(0)

# What a file must hold ------------------------------------------------------------------------------------------------
SEED = Number(True, least=-1, most=2**64 - 1)
PROBE = {"dtype": Text(*FLOATS), "seed": SEED, "index": SEED}
RECORD = Fields(
    {
        "steps": SIZE,
        "reorthogonalized": Either(Flag(), Same("selective")),
        "stop": Text("steps", "breakdown", "budget", "tolerance", "rounding"),
        **PROBE,
    },
    {"known": COUNT},  # files of version 0.1.0 have none
)
RECORDS = {
    "records": Items(RECORD, count="R"),
    "alphas": Array("float64", "T"),
    "betas": Array("float64", "T", least=0),
    "squared_norms": Array("float64", "R", above=0),
}
DEFLATED = {"known": Array("float64", "D"), "shares": Array("float64", "D", least=0, most=1 + TOTAL)}
MOMENTS = {
    "attempts": Items(Fields({"moments": SIZE, "stop": Text("steps", "budget", "outside"), **PROBE}), count="A"),
    "moments": Array("float64", None),
    "moments_squared_norms": Array("float64", "A", above=0),
    "intervals": Array("float64", "A", 2),
}


def _ends(names: list[dict[str, Any]], key: str) -> np.ndarray:
    """Where the part of each record begins, and where the last one ends; `key` says how long they are."""
    return np.cumsum([0, *(name.get(key, 0) for name in names)])


def _parts(array: np.ndarray, names: list[dict[str, Any]], key: str) -> list[np.ndarray]:
    """The part of each record."""
    return [array[a:b] for a, b in pairwise(_ends(names, key))]


def _shares_sum(f: Any, s: Sizes) -> bool:
    parts = _parts(f.get("shares", NONE), f["records"], "known")
    return all(part.sum() <= 1 + TOTAL for part in parts)


def _odd_and_as_many(f: Any, s: Sizes) -> bool:
    parts, sizes = _parts(f["moments"], f["attempts"], "moments"), [a["moments"] for a in f["attempts"]]
    return sum(sizes) == len(f["moments"]) and all(len(part) % 2 and part[0] == 1 for part in parts)


RECORD_LAWS = (
    Law("records whose steps are as many as there are alphas", lambda f, s: _ends(f["records"], "steps")[-1] == s["T"]),
    Law(
        "records that know as many eigenvalues as the file",
        lambda f, s: _ends(f["records"], "known")[-1] == s.get("D", 0),
    ),
    Law(
        "betas that are > 0 except for the last of a record",
        lambda f, s: bool((np.delete(f["betas"], _ends(f["records"], "steps")[1:] - 1) > 0).all()),
    ),
    Law("shares of a record that sum to at most 1", _shares_sum),
)
MOMENT_LAWS = (
    Law("moments as many as the attempts say, an odd number each, the first of them 1", _odd_and_as_many),
    Law("intervals with low < high", lambda f, s: bool((f["intervals"][:, 0] < f["intervals"][:, 1]).all())),
)


@dataclass(frozen=True)
class Description(Rule):
    """What an operator says of itself: a mapping, and so are the parts that it lists under "of"."""

    def check(self, value: Any, where: str, sizes: Sizes | None = None) -> None:
        Fields(may={"product_noise": maybe(NONNEGATIVE)}, others=Plain()).check(value, where, sizes)
        if isinstance(value.get("of"), list):
            for i, part in enumerate(value["of"]):
                self.check(part, f"{where}.of[{i}]", sizes)


def _interval_for_moments(f: Any, s: Sizes) -> bool:
    return "chebyshev_moments" not in f or ("interval" in f and f["interval"][0] < f["interval"][1])


META = Fields(
    may={
        "nonnegative": Flag(),
        "vector": Flag(),
        "dimension": SIZE,
        "least": REAL,
        "value_error": NONNEGATIVE,
        "error": Fields(
            may={
                **dict.fromkeys(("w1", "truncation", "rounding", "statistical"), NONNEGATIVE),
                "w1_95": maybe(NONNEGATIVE),
            },
            others=Plain(),
        ),
        "operator": Description(),
        "interval": Row(REAL, REAL),
        "chebyshev_moments": Items(Items(Number(least=-2, most=2), least=1)),
        "stops": Items(Text()),
        "merged": Items(Plain()),
        "identity": Text(),
        "choice": Text(),
    },
    others=Plain(),
    laws=(Law("an interval for its moments, low < high", _interval_for_moments),),
)


def _rest(f: Any) -> int:
    """How many eigenvalues only the quadrature stands for."""
    return f["dim"] - f["zeros"] - int(f["atom_multiplicities"].sum())


def _gone_in_range(f: Any, s: Sizes) -> bool:
    longest = np.diff(_ends(f["records"], "steps")) + np.diff(_ends(f["records"], "known"))
    return bool((f["removed"] >= 0).all() and (f["removed"].max((1, 2), initial=0) < np.maximum(longest, 1)).all())


def _atoms_where_nodes_were(f: Any, s: Sizes) -> bool:
    """Near each atom lies a node that a record has given up for it."""
    nodes, gone, values = f["nodes"], f["removed"], f["atom_values"]
    if not len(nodes) or not len(values):
        return True
    near = np.array([np.abs(row[out] - values[:, None]).min(1) for row, out in zip(nodes, gone, strict=True)]).min(0)
    return bool((near <= f["meta"].get("value_error", 0.0) + NEAR * np.abs(nodes).max()).all())


def _probes_once(f: Any, s: Sizes) -> bool:
    """No probe is there twice; those of given vectors have no name."""
    names = [(record["seed"], record["index"]) for record in f["records"] if record["seed"] >= 0]
    return len(set(names)) == len(names)


def _made_of_its_records(f: Any, s: Sizes) -> bool:
    """Nodes, and the sums and means of weights: single weights of nodes that are copies are rounding."""
    records = unpack_records(f)
    nodes, weights = gauss.padded_rules(records, f["removed"], f["dim"], _rest(f))
    if nodes.shape != f["nodes"].shape:
        return False
    scale = np.abs(nodes).max(initial=0.0)
    same = np.abs(np.sort(nodes) - np.sort(f["nodes"])).max(initial=0.0) <= NEAR * scale
    means = np.abs((nodes * weights - f["nodes"] * f["weights"]).sum(1)).max(initial=0.0) <= NEAR * scale
    return bool(same and means and np.abs((weights - f["weights"]).sum(1)).max(initial=0.0) <= TOTAL)


SPECTRUM = Fields(
    {
        "format": Same(FORMAT),
        "dim": SIZE,
        "zeros": Number(True, least=0),
        "products": COUNT,
        "epochs": NONNEGATIVE,
        "method": Text(),
        "meta": META,
        "nodes": Array("float64", "K", "M"),
        "weights": Array("float64", "K", "M", least=0, most=1 + TOTAL),
        "atom_values": Array("float64", "L", ascending=True),
        "atom_multiplicities": Array("int64", "L", least=1),
        "removed": Array("int64", "R", "G", None, least=0),
        **RECORDS,
    },
    DEFLATED,
    laws=(
        *RECORD_LAWS,
        Law("eigenvalues as many as dim", lambda f, s: _rest(f) >= 0 if s["R"] else _rest(f) == 0),
        Law("one record for each probe", lambda f, s: s["R"] == s["K"]),
        Law("nodes that a record gives up for each atom", lambda f, s: s["R"] == 0 or s["G"] == s["L"]),
        Law("each probe once", _probes_once),
        Law("nodes given up that a record has", _gone_in_range),
        Law("atoms where nodes were given up", _atoms_where_nodes_were),
        Law("nodes and weights that are those of its records", _made_of_its_records),
    ),
)


# Packing --------------------------------------------------------------------------------------------------------------
def _joined(records: Sequence[Any], key: str) -> np.ndarray:
    return np.concatenate([NONE, *(getattr(record, key) for record in records)])


def pack_records(records: Sequence[LanczosRecord]) -> dict[str, Any]:
    """The recurrence coefficients end to end, and what names each record (`records`, JSON)."""
    named = ("steps", "reorthogonalized", "stop", *PROBE)
    return {
        "records": [{**_named(record, named), "known": len(record.known)} for record in records],
        "squared_norms": np.array([record.squared_norm for record in records], dtype=float),
        **{key: _joined(records, key) for key in ("alphas", "betas", "known", "shares")},
    }


def unpack_records(f: Mapping[str, Any]) -> tuple[LanczosRecord, ...]:
    """The inverse of `pack_records`."""
    names = f["records"]
    steps = [_parts(f[key], names, "steps") for key in ("alphas", "betas")]
    deflated = [_parts(f.get(key, NONE), names, "known") for key in ("known", "shares")]  # version 0.1.0 has none
    return tuple(
        LanczosRecord(alphas, betas, float(norm), known=known, shares=shares, **_without(name, "steps", "known"))
        for name, norm, alphas, betas, known, shares in zip(names, f["squared_norms"], *steps, *deflated, strict=True)
    )


def _named(record: Any, keys: Sequence[str]) -> dict[str, Any]:
    return {key: getattr(record, key) for key in keys}


def _without(name: dict[str, Any], *sizes: str) -> dict[str, Any]:
    """What a record is named by, without the sizes of its arrays."""
    return {key: value for key, value in name.items() if key not in sizes}


def pack_moments(records: Sequence[ChebyshevRecord]) -> dict[str, Any]:
    """The moments of Chebyshev records end to end, and what names each (`attempts`, JSON)."""
    return {
        "attempts": [{**_named(record, ("stop", *PROBE)), "moments": len(record.moments)} for record in records],
        "moments": _joined(records, "moments"),
        "moments_squared_norms": np.array([record.squared_norm for record in records], dtype=float),
        "intervals": np.array([record.interval for record in records], dtype=float).reshape(-1, 2),
    }


def unpack_moments(f: Mapping[str, Any]) -> tuple[ChebyshevRecord, ...]:
    """The inverse of `pack_moments`."""
    parts = _parts(f["moments"], f["attempts"], "moments")
    return tuple(
        ChebyshevRecord(moments, (float(low), float(high)), float(norm), **_without(name, "moments"))
        for name, norm, moments, (low, high) in zip(
            f["attempts"], f["moments_squared_norms"], parts, f["intervals"], strict=True
        )
    )


def plain(value: Any) -> Any:
    """`value` as plain JSON: numpy scalars and arrays become numbers and lists, what JSON cannot hold becomes text."""
    if isinstance(value, Mapping):
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


def save_spectrum(fields: dict[str, Any], path: Any) -> None:
    """Write the fields of a `Spectrum`, see `Spectrum.save`."""
    arrays = pack_records(fields["records"])
    names = arrays.pop("records")
    arrays |= {
        "nodes": fields["nodes"],
        "weights": fields["weights"],
        "atom_values": fields["atoms"].values,
        "atom_multiplicities": fields["atoms"].multiplicities,
        "removed": _rectangular(fields["removed"]),
    }
    header = {"format": FORMAT, **{key: fields[key] for key in HEADER}, "meta": plain(fields["meta"]), "records": names}
    persist.save_arrays(path, arrays, header)


def _rectangular(removed: Sequence[np.ndarray]) -> np.ndarray:
    """(K, L, w): the rows of all probes at one width; a repeated index removes nothing more."""
    rows = [gone if gone.ndim == 2 else gone[:, None] for gone in removed]
    width, atoms = max((row.shape[1] for row in rows), default=1), len(rows[0]) if rows else 0
    wide = [np.pad(row, ((0, 0), (0, width - row.shape[1])), mode="edge") for row in rows if atoms]
    return np.array(wide, dtype=np.int64).reshape(len(rows), atoms, width)


def load_spectrum(path: Any) -> dict[str, Any]:
    """The fields of the spectrum that `save_spectrum` wrote."""
    arrays, header = persist.load_arrays(path)
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds no spectrum of this version ({shown(header.get('format'))}); expected {FORMAT}."
        )
    persist.check(path, {**header, **arrays}, SPECTRUM, "")
    return {
        **{key: header[key] for key in (*HEADER, "meta")},
        "nodes": arrays["nodes"],
        "weights": arrays["weights"],
        "atoms": Atoms(arrays["atom_values"], arrays["atom_multiplicities"]),
        "records": unpack_records({**header, **arrays}),
        "removed": tuple(arrays["removed"]),
    }
