"""What a run would cost, before it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from spectral import longvectors
from spectral.estimators.budget import free_memory, symmetric_operand
from spectral.probes import probe

RECURRENCE = 4  # vectors of a recurrence without its basis


@dataclass(frozen=True)
class Plan:
    """Predicted cost of a Lanczos quadrature.

    Attributes
    ----------
    products : int
        At most.
    seconds : float
        For so many products, by the one that was measured.
    bytes : int
        Of vectors that it holds in any case.
    most_bytes : int
        While deflated vectors are made, if every Ritz pair of the first probe has converged; usually few have.
    seconds_per_product : float
        Of the second of two products.
    free : int
        Bytes free now.
    basis : bool
        Whether the Lanczos basis would be kept, as `slq` decides by itself.

    Examples
    --------
    >>> spectral.plan(np.eye(100), steps=50).basis
    True
    """

    products: int
    seconds: float
    bytes: int
    most_bytes: int
    seconds_per_product: float
    free: int
    basis: bool

    def __str__(self) -> str:
        basis = "basis kept" if self.basis else "no basis"
        mib = [f"{b / 2**20:.4g} MiB" for b in (self.bytes, self.most_bytes, self.free)]
        return (
            f"{self.products} products, about {self.seconds:.3g} s ({self.seconds_per_product:.3g} s each, one measured), "
            f"{mib[0]} of vectors ({basis}), up to {mib[1]} with what is deflated; {mib[2]} are free"
        )


def plan(A: Any, *, steps: int = 100, probes: int = 4) -> Plan:
    """What `slq(A, steps=steps, probes=probes)` would take at most: products, seconds, bytes.

    Of vectors, `slq` holds four, the basis of `steps` where that takes at most a quarter of the free memory, and with two
    probes or more what the first has converged to: at most `steps` vectors, in as much memory at most, three times while they
    are made. Without a basis they cost the first probe's products once more, and those of each probe that finds a further copy
    of an eigenvalue, which are not foreseen. A network's own activations come on top, as in training.

    Cost: two products, the second of which is timed.

    Parameters
    ----------
    A : operator or matrix
        (n, n) symmetric, or rectangular for its Gram; whatever `as_operator` takes.
    steps : int
        Lanczos steps on each probe.
    probes : int
        Random vectors.

    Returns
    -------
    Plan
        Prints as one line.

    Examples
    --------
    >>> plan(np.eye(100), steps=50, probes=2).products
    100
    """
    op, _, _ = symmetric_operand(A)
    n = op.shape[0]
    steps = min(steps, n)
    v = probe(0, 0, n, dtype=op.dtype, device=op.device)
    elapsed = 0.0
    for _ in range(2):  # the first one warms up
        begin = time.perf_counter()
        longvectors.norm(op @ v)  # the norm waits for the device
        elapsed = time.perf_counter() - begin
    free, one = free_memory(op), n * op.dtype.itemsize
    room = free // 4 // one
    basis = room >= steps
    held = RECURRENCE + (steps if basis else 0)
    deflated = min(steps, max(room, 1)) if probes > 1 else 0  # the new ones, the orthogonalised ones, and these joined
    products = steps * probes + (0 if basis or not deflated else steps - 1)
    return Plan(products, elapsed * products, one * held, one * (held + 3 * deflated), elapsed, free, basis)
