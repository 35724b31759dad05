"""What a run would cost, before it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from spectral import arrays
from spectral.estimators import effort
from spectral.probes import probe


@dataclass(frozen=True)
class Plan:
    """Predicted cost of a Lanczos quadrature: `products`, `seconds` and `bytes` of vectors at the peak.

    `seconds_per_product` is measured (the second of two products); `free` are the bytes free now; `basis` says whether the
    Lanczos basis would be kept, as `slq` decides by itself.
    """

    products: int
    seconds: float
    bytes: int
    seconds_per_product: float
    free: int
    basis: bool

    def __str__(self) -> str:
        basis = "basis kept" if self.basis else "no basis"
        return (
            f"{self.products} products, about {self.seconds:.3g} s ({self.seconds_per_product:.3g} s each, one measured), "
            f"{self.bytes / 2**20:.4g} MiB of vectors at the peak ({basis}; {self.free / 2**20:.4g} MiB are free)"
        )


def plan(A: Any, *, steps: int = 100, probes: int = 4) -> Plan:
    """Products, seconds and bytes that `slq(A, steps=steps, probes=probes)` would take. Costs two products.

    The bytes are those of the recurrence's vectors; a network's own activations come on top, as in training.

    >>> plan(np.eye(100), steps=50, probes=2).products
    100
    """
    op, _, _ = effort.symmetric_operand(A)
    n = op.shape[0]
    steps = min(steps, n)
    v = probe(0, 0, n, dtype=op.dtype, device=op.device)
    elapsed = 0.0
    for _ in range(2):  # the first one warms up
        begin = time.perf_counter()
        arrays.norm(op @ v)  # the norm waits for the device
        elapsed = time.perf_counter() - begin
    free = arrays.available_memory(op.device)
    one = n * op.dtype.itemsize
    basis = steps * one <= free // 4
    return Plan(steps * probes, elapsed * steps * probes, one * (4 + (steps if basis else 0)), elapsed, free, basis)
