"""What do the questions to a spectrum cost, once the products are made?

    python benchmarks/postprocessing.py [--probes 20] [--steps 500] [--dim 4000]

Lanczos on a diagonal matrix with a Marchenko-Pastur bulk, a tail and a few outliers; then each question once, in seconds and as
a multiple of the eigenvalue problem of one tridiagonal matrix of so many steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
from scipy.linalg import eigh_tridiagonal

import spectral
from spectral import Spectrum


def made(dim: int, probes: int, steps: int, seed: int) -> Spectrum:
    rng = np.random.default_rng(seed)
    bulk = np.linalg.svd(rng.standard_normal((dim // 4, dim)), compute_uv=False) ** 2 / dim
    tail = rng.pareto(1.5, dim - len(bulk) - 10) + 1e-3
    values = np.concatenate([bulk, tail, np.geomspace(1e3, 1e5, 10)])
    A = scipy.sparse.diags(values)
    return spectral.slq(A, probes=probes, steps=steps, seed=seed, deflate=False)


def questions(s: Spectrum, other: Spectrum) -> dict[str, Callable[[], Any]]:
    middle = float(s.quantile(0.5).value)
    return {
        "cdf at 200 points": lambda: s.cdf(np.geomspace(1e-3, 1e5, 200)),
        "density, log": lambda: s.density(scale="log"),
        "density, linear": lambda: s.density(),
        "quantile(.5)": lambda: s.quantile(0.5),
        "count(median, max)": lambda: s.count(middle, 1e6),
        "integrate(x)": lambda: s.integrate(lambda x: x),
        "numerical_rank": lambda: spectral.numerical_rank(s),
        "summary": lambda: spectral.summary(s),
        "power_law": lambda: spectral.power_law(s),
        "marchenko_pastur": lambda: spectral.marchenko_pastur(s),
        "outliers": lambda: spectral.outliers(s),
        "distance": lambda: s.distance(other),
        "compare": lambda: spectral.compare(s, other),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("probes", 20), ("steps", 500), ("dim", 4000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    s, other = (made(args.dim, args.probes, args.steps, seed) for seed in (0, 1))
    record = s.records[0]
    begin = time.perf_counter()
    eigh_tridiagonal(record.alphas, record.betas[: len(record.alphas) - 1])
    unit = time.perf_counter() - begin
    print(f"{args.probes} probes x {args.steps} steps; the eigenvalue problem of one: {unit:.3f} s")
    for name, ask in questions(s, other).items():
        begin = time.perf_counter()
        ask()
        took = time.perf_counter() - begin
        print(f"{name:20s} {took:6.2f} s {took / unit:7.1f} x")


if __name__ == "__main__":
    main()
