"""What a run would cost, before it runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from spectral import cards
from spectral.distributed import decided
from spectral.estimators import slq_options
from spectral.estimators.budget import Spent, entries, free_memory, settle, symmetric_operand
from spectral.estimators.slq import slq
from spectral.krylov.basis import Basis, check_place, row_bytes
from spectral.krylov.lanczos import Lanczos
from spectral.operators.operator import Operator
from spectral.pieces import local

RECURRENCE = 4  # vectors of a recurrence without its basis, the product's own pieces among them
MANY = 20  # products that must be expected before more than two are measured
TIMED = 5  # products that are timed at most, once an operator has chosen
SHARE = 0.02  # of the run, that they may take
PASSES = 4  # over a vector that is orthogonalised against: twice, each for the dot and for the difference
ROWS, STEPS = 32, 4  # basis vectors, and steps of a recurrence, on which what vectors take is timed
STAND_IN = 4  # times `steps`: the dimension of a small matrix that tells what a run takes beside its long vectors
CONVERGED = 0.125  # of the first probe's Ritz vectors, that are expected to converge and to be deflated


@dataclass(frozen=True)
class Plan:
    """Predicted cost of a Lanczos quadrature.

    Attributes
    ----------
    products : int
        At most.
    seconds : float
        Of the whole run: the sum of `parts`.
    bytes : int
        At the peak, beside what is there now: the sum of `held`.
    most_bytes : int
        The same if every Ritz pair of the first probe converges and is deflated; usually few do.
    seconds_per_product : float
        Of the last one that was measured.
    free : int
        Bytes free now.
    basis : bool
        Whether the Lanczos basis would be kept, as `slq` decides by itself.
    parts : dict
        Seconds by what takes them: first products, products (the others), recurrence, orthogonalisation, random vectors,
        deflation, recording (all that does not depend on the length of vectors: small eigenproblems, the certificate).
    held : dict
        Bytes by what takes them: vectors, basis, deflation, products. Where choosing how to multiply, before there is a basis,
        takes more than all of them later, products are what is missing.

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
    parts: dict[str, float] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether the peak is below what is free now."""
        return self.bytes <= self.free

    def __str__(self) -> str:
        basis = "basis kept" if self.basis else "no basis"
        peak, most, free = map(cards.size, (self.bytes, self.most_bytes, self.free))
        return (
            f"{cards.counted(self.products, 'product')}, about {self.seconds:.3g} s "
            f"({self.seconds_per_product:.3g} s each, measured), "
            f"{peak} at the peak ({basis}), up to {most} with all that may be deflated; {free} are free"
        )

    def _repr_html_(self) -> str:
        seconds = [(f"{name} (s)", value, f"{value:.2g}") for name, value in self.parts.items()]
        held = [(name, cards.size(size)) for name, size in self.held.items() if size]
        rows = [*held, ("at the peak", f"{cards.size(self.bytes)} of {cards.size(self.free)} that are free")]
        picture = cards.bars(seconds, "seconds by what takes them")
        return cards.card(f"{self}{'' if self.fits else ': it does not fit'}.", rows, picture)


def plan(
    A: Any, *, steps: int = 100, probes: int = 4, deflate: bool | str = "auto", reorthogonalize: bool | str = "auto",
    basis: Any = "device",
) -> Plan:  # fmt: skip
    """What `slq` would take at most with these options: products, seconds, bytes.

    The run is announced to the operator, which then chooses how it multiplies as it would in the run itself. Products are
    measured until it has chosen; then the median of some is what each takes. Beside them a few steps of the recurrence are timed
    on a diagonal matrix of the same size, some rows of a basis, and a whole run of a small matrix.

    Cost: two products; at most fifteen where twenty or more are planned and the operator tries several ways to multiply. What
    these took, choosing included, is part of the prediction, as in a run of an operator built anew; a run of this one goes on
    with what was chosen.

    Parameters
    ----------
    A : operator or matrix
        (n, n) symmetric, or rectangular for its Gram; whatever `as_operator` takes.
    steps : int
        Lanczos steps on each probe.
    probes : int
        Random vectors.
    deflate, reorthogonalize, basis : object
        As in `slq`.

    Returns
    -------
    Plan
        Prints as one line.

    Notes
    -----
    Of vectors, `slq` holds four, the basis of `steps` where it keeps one in this memory, and where it deflates what the first
    probe has converged to: an eighth of its steps are expected, all of them at most. Without a
    basis they cost the first probe's products once more, and those of each probe that finds a further copy of an
    eigenvalue, which are not foreseen. The small matrices' eigenvectors take steps^2 doubles for each probe. Products take
    the activations of a batch, as in training, and what the engine keeps between sweeps.

    Examples
    --------
    >>> plan(np.eye(100), steps=50, probes=2).products
    100
    """
    op, _, _ = symmetric_operand(A)
    place = check_place(basis, op.dtype)
    chosen = slq_options.Plan.of(op, probes, steps, deflate, reorthogonalize, place)
    n, steps, keeps = entries(op), chosen.steps, bool(chosen.mode)
    free, one = free_memory(op), n * op.dtype.itemsize
    deflated = min(steps, chosen.vectors)  # at most
    products = steps * probes + (steps - 1 if deflated and not keeps else 0)
    begin = time.perf_counter()
    v = op.probe(0, 0)
    drawn = time.perf_counter() - begin
    first, made, each, choosing = _measured(op, v, products)
    step, row, kept = _vector_seconds(local(v), min(ROWS, steps) if keeps else 0, place)
    # whether the basis lies in the memory of which `free` is left
    here = place in ("device", "bf16") or (place == "host" and op.device.type == "cpu")
    converged = int(CONVERGED * deflated)
    parts = {
        "first products": first,
        "products": each * max(products - made, 0),
        "recurrence": products * (step + kept),
        "orthogonalisation": probes * row * steps * (steps + 1) / 2 if keeps else 0.0,
        "random vectors": probes * drawn,
        # made of the basis, orthogonalised, and projected out of each later product: half of what a row of a basis takes
        "deflation": row * converged * (steps / 4 + converged / 2 + (probes - 1) * steps / 2),
        "recording": _recording(steps, probes),
    }
    held = {
        "vectors": RECURRENCE * one,
        "basis": steps * row_bytes(place, n, op.dtype) if keeps and here else 0,
        "deflation": converged * one,
        # each probe's small eigenvectors, and two more of them while they are made
        "records": (probes + 2) * 8 * steps**2,
    }
    # the first come before these, and before two of the recurrence's vectors
    held["products"] = max(op.workspace, choosing - held["basis"] - held["deflation"] - 2 * one)
    total = sum(held.values())
    most = total + (deflated - converged) * one
    return Plan(products, sum(parts.values()), total, most, each, free, keeps, parts, held)


def _measured(op: Operator, v: torch.Tensor, products: int) -> tuple[float, int, float, int]:
    """(seconds of the first products, how many, seconds of one once it is chosen how they are made, bytes until then)."""
    op.expect(products)
    begun = Spent.of(op)
    workspace = settle(op, v) if products >= MANY else 0
    if op.products == begun.products:
        op @ v
    _wait(v)
    workspace, first = max(workspace, op.first_workspace), Spent.of(op).since(begun)
    each = [_seconds(lambda: _wait(op @ v))]
    while len(each) < TIMED and decided(op, sum(each) < SHARE * products * each[0]):
        each.append(_seconds(lambda: _wait(op @ v)))
    return first.seconds, first.products, statistics.median(each), workspace


def _wait(x: torch.Tensor) -> float:
    """A number waits for the device."""
    return float(local(x)[:1].sum())


class _Diagonal(Operator):
    """diag(d): a product that takes next to nothing."""

    new_products = True

    def __init__(self, d: torch.Tensor) -> None:
        super().__init__((len(d), len(d)), d.dtype, d.device, symmetric=True)
        self.d = d

    def _apply(self, V: torch.Tensor) -> torch.Tensor:
        return self.d[:, None] * V


def _vector_seconds(v: torch.Tensor, rows: int, place: str) -> tuple[float, float, float]:
    """Seconds of a step without its product, of orthogonalising against a vector of a basis of so many rows, of keeping one."""
    D = _Diagonal(v)
    free = _seconds(lambda: float((D @ v)[0]), STEPS)
    lanczos = Lanczos(D, v, STEPS + 1, reorthogonalize=False)
    lanczos.step()  # the first has no vector before it
    step = max(0.0, _seconds(lambda: lanczos.ended or lanczos.step(), STEPS) - free)
    if not rows:
        return step, PASSES * free / 2, 0.0
    there = Basis(v, rows, place)

    def keep() -> None:  # in memory that nobody has touched before, as a run does
        for j in range(rows):
            there.keep(j, v)
        float(there.row(rows - 1)[0])

    kept = _seconds(keep) / rows
    w = torch.empty_like(v)
    return step, _seconds(lambda: there.orthogonalise(w.copy_(v), rows), 3) / rows, kept


def _seconds(work: Callable[[], Any], times: int = 1) -> float:
    """The median of so many; `work` waits for the device."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def _recording(steps: int, probes: int) -> float:
    """Seconds of a run that do not depend on the length of its vectors."""
    small = _Diagonal(torch.linspace(-1, 1, STAND_IN * steps, dtype=torch.float64))

    def run() -> None:
        slq(small, steps=steps, probes=probes, progress=False)

    first = _seconds(run)
    return first if first > 1 else min(first, _seconds(run))  # the first one may have loaded libraries
