"""Stochastic Lanczos quadrature with deflation of what has converged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral import arrays, measure, storage
from spectral import checkpoint as files
from spectral.estimators import effort
from spectral.estimators.deflation import Cluster, Deflation
from spectral.operators.base import Operator
from spectral.probes import check_seed, probe
from spectral.recurrences.lanczos import Lanczos, LanczosRecord
from spectral.spectrum import NO_ATOMS, Spectrum

MOST_PROBES = 16  # with tol=, at most this many times `probes`
CHECK_EVERY = 10  # steps between looks at the truncation error with tol=
FORMAT = "spectral.slq/1"


def slq(
    A: Any,
    *,
    probes: int = 4,
    steps: int = 100,
    seed: int = 0,
    deflate: bool | str = "auto",
    reorthogonalize: bool | str = "auto",
    tol: float | None = None,
    budget: Any = None,
    checkpoint: Any = None,
    progress: bool | None = None,
) -> Spectrum:
    """The spectrum of symmetric A (n, n) from `probes` Gaussian vectors and `steps` Lanczos steps on each.

    Cost: probes x steps products; memory: `steps` vectors of length n where the basis is kept (reorthogonalize "auto": if it
    takes at most a quarter of the free memory), four otherwise. A rectangular operator means its Gram on the smaller side, whose
    known zeros are carried exactly. At most n steps are made; an invariant subspace ends a probe early with an exact rule.

    deflate "auto" turns eigenvalues that all probes have converged to into exact atoms (two probes or more, basis kept).
    tol: stop a probe when its truncation error, and add probes until the estimated W1 error relative to the spectral range, is
    below tol; `steps` is then the most steps, `probes` the fewest probes. budget: products, or "10min", "50epochs".
    checkpoint: a file that keeps the finished probes; the same call goes on from it. Probe i depends on (seed, i) alone.

    `meta["error"]` states the W1 error relative to the range: truncation (certified envelope) and statistical (exact variance).
    Source: Ubaru, Chen, Saad (2017); Chen, Trogdon, Ubaru (2021); the certificate: `spectral.measure.envelope`.

    >>> s = slq(2 * np.eye(50))
    >>> s.products, float(s.integrate(np.log).value)      # one step a probe: log det 2I = 50 log 2
    (4, 34.6573590279972...
    """
    op, zeros, dim = effort.symmetric_operand(A)
    _check(probes, steps, tol)
    keep = _keep_basis(op, steps, reorthogonalize)
    if deflate not in (True, False, "auto") or (deflate is True and not keep):
        raise ValueError(
            f"deflate={deflate!r} is not possible here; use 'auto', False, or True with reorthogonalize=True."
        )
    deflation = (
        Deflation() if keep and (deflate is True or (deflate == "auto" and (probes > 1 or tol is not None))) else None
    )
    settings = {
        "steps": steps,
        "seed": check_seed(seed),
        "reorthogonalize": keep,
        "deflate": deflation is not None,
        "tol": tol,
    }
    op.expect(probes * min(steps, op.shape[0]))
    run = _Run(op, settings, deflation, checkpoint)
    limit = effort.Budget(budget, op, run.before)
    stop = "probes"
    most = probes if tol is None else MOST_PROBES * probes
    with effort.bar(
        None if tol is not None else (probes - len(run.records)) * min(steps, op.shape[0]), "slq", progress
    ) as shown:
        while len(run.records) < most:
            if len(run.records) >= probes and run.spectrum(dim, zeros).meta["error"]["w1"] <= float(tol or 0):
                stop = "tolerance"
                break
            if limit.exhausted() and run.records:
                stop = "budget"
                break
            run.next_probe(steps, tol, limit, shown)
    products, epochs = run.spent
    return run.spectrum(dim, zeros, products=products, epochs=epochs, stop=stop)


def _check(probes: int, steps: int, tol: float | None) -> None:
    for name, value in (("probes", probes), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}={value!r} is no number of {name}; use an integer >= 1.")
    if tol is not None and not 0 < tol < 1:
        raise ValueError(f"tol={tol!r} is no tolerance; use a W1 error relative to the spectral range, such as 1e-3.")


def _keep_basis(op: Operator, steps: int, reorthogonalize: bool | str) -> bool:
    if reorthogonalize not in (True, False, "auto"):
        raise ValueError(f"reorthogonalize={reorthogonalize!r} is not known; use True, False or 'auto'.")
    size = min(steps, op.shape[0]) * op.shape[0] * op.dtype.itemsize
    return reorthogonalize is True or (reorthogonalize == "auto" and size <= arrays.available_memory(op.device) // 4)


class _Run:
    """The probes that are done, and what deflation knows of them; on disk too where a checkpoint is asked for."""

    def __init__(self, op: Operator, settings: dict[str, Any], deflation: Deflation | None, path: Any) -> None:
        self.op, self.settings, self.deflation, self.path = op, settings, deflation, path
        self.records: list[LanczosRecord] = []
        self.before = (0, 0.0)  # products and epochs of the probes of an earlier session
        self.begin = (op.products, op.epochs)
        self.identity = files.fingerprint([op.identity(), settings])
        if path is not None and Path(path).exists():
            self._load()

    @property
    def spent(self) -> tuple[int, float]:
        """Products and epochs of this run, earlier sessions included, whatever else the operator has multiplied."""
        return self.before[0] + self.op.products - self.begin[0], self.before[1] + self.op.epochs - self.begin[1]

    def next_probe(self, steps: int, tol: float | None, limit: effort.Budget, shown: Any) -> None:
        """Run one probe to its end, keep its record, and save."""
        index = len(self.records)
        start = probe(self.settings["seed"], index, self.op.shape[0], dtype=self.op.dtype, device=self.op.device)
        state = Lanczos(self.op, start, steps, reorthogonalize=self.settings["reorthogonalize"])
        stop = None
        while True:
            more = state.step()
            shown.update(1)
            done = len(state.alphas)
            if not more:
                break
            if tol is not None and done % CHECK_EVERY == 0 and _truncation(state.record()) <= tol / 2:
                stop = "tolerance"
                break
            if limit.exhausted():
                stop = "budget"
                break
        record = state.record(seed=self.settings["seed"], index=index, stop=stop)
        if self.deflation is not None:
            self.deflation.add(state, record)
        self.records.append(record)
        if self.path is not None:
            self._save()

    def spectrum(self, dim: int, zeros: int, *, products: int = 0, epochs: float = 0.0, stop: str = "") -> Spectrum:
        """The spectrum of the probes so far, with its stated error."""
        atoms, removed, error = NO_ATOMS, None, 0.0
        if self.deflation is not None and len(self.records) > 1:
            atoms, removed, error = self.deflation.atoms(self.op.shape[0])
        meta = {
            **effort.environment(self.op),
            **self.settings,
            "probes": len(self.records),
            "stop": stop,
            "stops": [record.stop for record in self.records],
            "value_error": error,
        }
        return Spectrum.from_records(
            self.records, dim, zeros=zeros, atoms=atoms, removed=removed, products=products, epochs=epochs, meta=meta
        )

    def _save(self) -> None:
        packed, names = storage.pack_records(self.records)
        clusters = self.deflation.clusters if self.deflation is not None else []
        for i, c in enumerate(clusters):
            wide = c.vectors.float() if c.vectors.dtype in (torch.bfloat16, torch.float16) else c.vectors
            packed[f"vectors{i}"] = wide.cpu().numpy()  # numpy has no bfloat16
        header = {
            "format": FORMAT,
            "identity": self.identity,
            "records": names,
            "clusters": [
                {"values": c.values, "indices": c.indices, "error": c.error, "angle": c.angle} for c in clusters
            ],
            "spent": self.spent,
        }
        files.save_arrays(self.path, packed, header)

    def _load(self) -> None:
        packed, header = files.load_arrays(self.path)
        if header.get("format") != FORMAT or header.get("identity") != self.identity:
            raise ValueError(
                f"the checkpoint {self.path} is of another operator, seed or setting; delete it, or name another file."
            )
        self.records = list(storage.unpack_records(packed, header["records"]))
        self.before = (int(header["spent"][0]), float(header["spent"][1]))
        if self.deflation is not None:
            self.deflation.probes = len(self.records)
            self.deflation.clusters = [
                Cluster(
                    c["values"],
                    c["indices"],
                    torch.from_numpy(packed[f"vectors{i}"]).to(self.op.device, self.op.dtype),
                    c["error"],
                    c["angle"],
                )
                for i, c in enumerate(header["clusters"])
            ]


def _truncation(record: LanczosRecord) -> float:
    """int (upper - lower) / 2 dx over the record's interval, relative to it: what the certified envelope leaves open."""
    theta, _, _ = measure.gauss_rule(record)
    span = theta[-1] - theta[0]
    if span <= 0:
        return 0.0
    grid = np.linspace(theta[0], theta[-1], 4 * len(theta) + 1)
    lower, upper = measure.envelope(record, grid)
    return float(np.trapezoid((upper - lower) / 2, grid) / span)
