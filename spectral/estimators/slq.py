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
    run = _Run(op, settings, deflation, checkpoint)
    limit = effort.Budget(budget, op)
    before = op.products, op.epochs
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
    spent = run.before[0] + op.products - before[0], run.before[1] + op.epochs - before[1]
    return run.spectrum(dim, zeros, products=spent[0], epochs=spent[1], stop=stop)


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
        self.before = (0, 0.0)  # products and epochs of an earlier session
        self.identity = files.fingerprint([op.identity(), settings])
        if path is not None and Path(path).exists():
            self._load()

    def next_probe(self, steps: int, tol: float | None, limit: effort.Budget, shown: Any) -> None:
        """Run one probe to its end, keep its record, and save."""
        index = len(self.records)
        start = probe(self.settings["seed"], index, self.op.shape[0], dtype=self.op.dtype, device=self.op.device)
        state = Lanczos(self.op, start, steps, reorthogonalize=self.settings["reorthogonalize"])
        stop = None
        products, epochs = self.op.products, self.op.epochs
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
            self.saved = (self.before[0] + self.op.products - products, self.before[1] + self.op.epochs - epochs)
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
        made = Spectrum.from_records(
            self.records, dim, zeros=zeros, atoms=atoms, removed=removed, products=products, epochs=epochs, meta=meta
        )
        made.meta["error"] = w1_error(made)
        return made

    def _save(self) -> None:
        packed, names = storage.pack_records(self.records)
        clusters = self.deflation.clusters if self.deflation is not None else []
        for i, c in enumerate(clusters):
            packed[f"vectors{i}"] = c.vectors.cpu().numpy()
        header = {
            "format": FORMAT,
            "identity": self.identity,
            "records": names,
            "clusters": [{"values": c.values, "indices": c.indices, "error": c.error} for c in clusters],
            "spent": [self.before[0] + self.op.products, self.before[1] + self.op.epochs],
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
                    c["values"], c["indices"], torch.from_numpy(packed[f"vectors{i}"]).to(self.op.device), c["error"]
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


def w1_error(s: Spectrum) -> dict[str, float]:
    """Estimated W1 error of the CDF relative to the range: truncation from the envelope, statistical from the Beta variance."""
    low, high = s.interval
    r, K = s.unresolved, len(s.nodes)
    if r == 0 or high <= low:
        return {"w1": 0.0, "truncation": 0.0, "statistical": 0.0}
    held = s.nodes[s.weights > 0]
    grid = np.unique(np.concatenate([np.linspace(low, high, 201), held[:: max(1, len(held) // 400)]]))
    lower, upper = s._rest(grid)
    F = np.clip((lower + upper) / 2, 0, 1)
    share = r / s.dim / (high - low)
    truncation = float(np.trapezoid((upper - lower) / 2, grid)) * share
    deviation = np.sqrt(np.asarray(measure.pooled_variance(K, r, F * (1 - F))))
    statistical = float(np.trapezoid(deviation, grid)) * share * np.sqrt(2 / np.pi)  # mean absolute value of a normal
    return {"w1": truncation + statistical, "truncation": truncation, "statistical": statistical}
