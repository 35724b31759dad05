"""A program of a user who checks types: the contract, used widely; `mypy --strict` must have nothing to say (test_package)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

import spectral

Batch = tuple[torch.Tensor, torch.Tensor]


def network() -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return model, [(torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))) for _ in range(2)]


def operators() -> dict[str, spectral.Operator]:
    model, data = network()
    loss = nn.CrossEntropyLoss()
    J: spectral.Jacobian = spectral.Jacobian(model, data, of="probs", wrt="params", memory="1GiB")
    H: spectral.Hessian = spectral.Hessian(model, loss, data, engine="auto", product_dtype=None)
    G = spectral.GaussNewton(model, loss, data, params=["0.*"])
    F = spectral.Fisher(model, loss, data, draws=None, seed=0)
    E = spectral.EmpiricalFisher(model, loss, data)
    parts: dict[str, spectral.Operator] = spectral.blocks(H, by="module")
    algebra: spectral.Operator = 0.5 * (H + 1e-3 * spectral.I) - F / 2 + E
    named: dict[str, torch.Tensor] = H.unflatten(torch.zeros(H.shape[1], dtype=torch.float64))
    rows: tuple[int, int] = J.gram("left").shape
    squares: torch.Tensor = J.squared_norms()
    assert rows == (30, 30) and squares.shape == (10,)
    assert H.flatten(named).shape == (H.shape[1],) and algebra.T.dtype == torch.float64
    counters: tuple[int, float, torch.device] = (H.products, H.epochs, H.device)
    assert counters[0] >= 0
    return {"jacobian": J, "hessian": H, "gauss-newton": G, "sum": algebra, **parts}


def spectra(A: spectral.Operator) -> spectral.Spectrum:
    whole: spectral.Spectrum = spectral.exact(A)
    estimated: spectral.Spectrum = spectral.slq(A, probes=2, steps=20, seed=1, progress=False)
    by_moments: spectral.Spectrum = spectral.kpm(A, probes=2, moments=40)
    chosen: spectral.Spectrum = spectral.esd(A, tol=None, budget="50epochs")
    distance: spectral.Estimate = whole.distance(estimated, kind="wasserstein")
    smooth: spectral.Density = spectral.jackson(by_moments)
    assert float(distance) >= 0 and smooth.value.shape == smooth.x.shape and chosen.is_exact
    return whole


def numbers(A: spectral.Operator, spectrum: spectral.Spectrum) -> list[spectral.Estimate]:
    plan: spectral.Plan = spectral.plan(A, steps=10, probes=2)
    pairs: spectral.Eigenpairs = spectral.top(A, 2, which="magnitude")
    band: spectral.Band = spectrum.count(0.0, np.inf)
    moments: list[spectral.Estimate] = [spectrum.integrate(np.abs), spectrum.moment(2), spectrum.quantile(0.5)]
    estimates = [
        spectral.trace(A), spectral.diagonal(A), spectral.frobenius(A), spectral.numerical_rank(A),
        spectral.logdet(A @ A, 1.0), spectral.condition_number(A), spectral.spectral_form(A @ A, 1.0),
    ]  # fmt: skip
    fraction: spectral.Estimate = spectral.negative_mass(A).fraction
    vectors: torch.Tensor = pairs.vectors
    assert plan.products == 4 and band.lower <= band.upper and vectors.shape[1] == 2
    return [*moments, *estimates, fraction]


def analysis(spectrum: spectral.Spectrum, J: spectral.Operator, labels: torch.Tensor) -> dict[str, float]:
    told: dict[str, float] = spectral.summary(spectrum, top=3)
    told |= spectral.compare(spectrum, spectrum)
    verdicts: list[bool] = [
        spectral.power_law(spectrum).accepted,
        spectral.marchenko_pastur(spectrum, ratio=0.5).accepted,
        spectral.outliers(spectrum).accepted,
    ]
    told["energy"] = spectral.label_alignment(J, labels, k=3).energy
    assert not all(verdicts)
    return told


def files(spectrum: spectral.Spectrum, folder: Path) -> spectral.Spectrum:
    spectrum.save(folder / "spectrum.npz")
    again: spectral.Spectrum = spectral.Spectrum.load(folder / "spectrum.npz")
    atoms: spectral.Atoms = again.atoms
    assert np.array_equal(atoms.values, spectrum.atoms.values)
    return again


def main() -> None:
    made = operators()
    with TemporaryDirectory() as folder:
        spectrum = files(spectra(made["hessian"]), Path(folder))
    triplets: spectral.SingularTriplets = spectral.svd(made["jacobian"], 2)
    matrix: spectral.Operator = spectral.as_operator(np.diag([1.0, 2.0]))
    labels = torch.cat([y for _, y in network()[1]])
    told = analysis(spectrum, made["jacobian"], labels)
    watcher = spectral.Watcher(lambda: made["hessian"], every=1, share=None, what={"top": {"k": 2}, "trace": {}})
    numbers_read: dict[str, float] = watcher(0)[0].numbers()
    sharpness: spectral.Estimate = spectral.critical_sharpness(made["hessian"], rtol=0.1)
    assert len(numbers_read) == 4 and float(sharpness) > 0 and watcher.history("trace")["step"].tolist() == [0]
    estimates = numbers(matrix, spectral.exact(matrix))
    print(
        f"eigenvalues {spectrum.dim}, {len(estimates)} estimates, {len(told)} metrics, sigma {triplets.values[0]:.3g}"
    )


if __name__ == "__main__":
    main()
