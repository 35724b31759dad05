"""Options of `slq`: whether they are any, and what is decided from them before the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectral.distributed import decided
from spectral.estimators.budget import vectors_that_fit
from spectral.estimators.shared_out import RANKS
from spectral.estimators.stopping import Tolerance
from spectral.krylov.basis import PLACES, free, row_bytes
from spectral.krylov.lanczos import MODES
from spectral.operators.operator import Operator
from spectral.probes import check_seed
from spectral.schema import SWITCH, choice, integer


class Default(int):
    """A number that nobody gave: no limit where tol or budget decide."""


PROBES, STEPS = Default(4), Default(100)
LOWEST = 32.0  # times eps of the largest |eigenvalue|: where the blur of eigenvalues is a third of one


def check(
    probes: Any = PROBES, steps: Any = STEPS, tol: Any = None, seed: Any = 0, deflate: Any = "auto",
    reorthogonalize: Any = "auto", progress: Any = None, ranks: Any = "data",
) -> Tolerance | None:  # fmt: skip
    """One sentence for an option of `slq` that is none; what `tol` asks for."""
    for name, value in (("probes", probes), ("steps", steps)):
        integer(value, name, f"number of {name}")
    choice(reorthogonalize, "reorthogonalize", (*MODES, "auto"))
    choice(deflate, "deflate", (True, False, "auto"))
    choice(progress, "progress", (*SWITCH, None))
    choice(ranks, "ranks", RANKS)
    check_seed(seed)
    return Tolerance.of(tol)


@dataclass(frozen=True)
class Plan:
    """What is decided before the run: most steps and probes, how the basis is kept, most deflated vectors (0: none)."""

    aim: Tolerance | None
    adaptive: bool
    steps: int
    probes: float
    mode: bool | str
    vectors: int
    choice: str

    @classmethod
    def of(
        cls,
        op: Operator,
        probes: int,
        steps: int,
        deflate: Any,
        reorthogonalize: Any,
        place: str,
        tol: Any = None,
        budget: Any = None,
    ) -> Plan:
        """See `slq`."""
        aim = check(probes, steps, tol, deflate=deflate, reorthogonalize=reorthogonalize)
        if place != "device" and reorthogonalize is False:
            raise ValueError(f"basis={place!r} with reorthogonalize=False, which keeps none; leave one of them out.")
        if aim is not None and aim.nearest < LOWEST * op.epsilon:
            raise ValueError(
                f"tol asks for the CDF at {aim.nearest:.2g} of the largest |eigenvalue|, where products that are rounded to "
                f"{op.epsilon:.2g} tell nothing; use points from {LOWEST * op.epsilon:.2g} on, or an operator in float64."
            )
        given = [not isinstance(value, Default) for value in (steps, probes)]
        adaptive = aim is not None or (budget is not None and not all(given))
        n = op.shape[0]
        most = n if adaptive and not given[0] else min(int(steps), n)
        room = held = vectors_that_fit(op, n)
        mode, choice = reorthogonalize, ""
        if place != "device":
            room = decided(op, free(place, op.device) // row_bytes(place, n, op.dtype))
        if reorthogonalize == "auto":
            mode = room >= min(most, int(steps))
            fits = "the basis fits" if mode else "no basis, two passes: it does not fit"
            choice = f"auto: {fits} {'a quarter of the free memory' if place in PLACES else 'three quarters of the free disk'}"
        if mode and reorthogonalize == "auto":
            most = min(most, room)
        wanted = deflate is True or (
            deflate == "auto" and (mode or reorthogonalize == "auto") and (probes > 1 or adaptive)
        )
        return cls(
            aim, adaptive, most, float("inf") if adaptive and not given[1] else int(probes), mode,
            max(min(held, n), 1) if wanted else 0, choice,
        )  # fmt: skip
