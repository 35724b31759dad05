"""The front door: the empirical spectral density by whatever is cheapest and best here."""

from __future__ import annotations

from typing import Any

from spectral import arrays, distributed
from spectral.estimators import effort
from spectral.estimators.exact import WORKSPACE, exact
from spectral.estimators.slq import slq
from spectral.operators.base import Gram, Operator
from spectral.operators.jacobian import Jacobian
from spectral.operators.views import Dense, as_operator
from spectral.spectrum import Spectrum

EXACT_DIM, EXACT_SECONDS = 4096, 10.0  # all eigenvalues of a matrix of this size take about so long on two cores
# A network's Gram that is assembled in one pass, seen at 5000 on two busy cores: MLP 39 s instead of 270 s for 400
# products, CNN 107 s instead of 3100 s. Beyond 16 columns a row the assembly (2 dim^2 columns flops) may cost more than it saves.
NETWORK_DIM, LONG_ROWS = 8192, 16
METHODS = ("auto", "exact", "slq", "kpm")


def esd(
    A: Any,
    *,
    tol: Any = None,
    budget: Any = None,
    method: str = "auto",
    checkpoint: Any = None,
    **options: Any,
) -> Spectrum:
    """The spectrum of symmetric A, or of the Gram of a rectangular operator on its smaller side.

    "auto": all eigenvalues if the matrix is small (4096; 8192 for a Jacobian whose Gram one pass over the data assembles) and
    cheaper to assemble than the products of `slq`, otherwise `slq` with deflation; with tol, probes or steps, too, all
    eigenvalues where they are cheap, as they are within any tolerance; other options of slq mean slq. `meta["choice"]` says
    what was chosen and why. "kpm": Chebyshev moments, which know neither tol nor checkpoint and are chosen only when asked for:
    `slq` too holds no more than four vectors where a basis does not fit. `checkpoint` keeps what `slq` has done and is not used
    by `exact`, which has no parts to keep. `options` are those of the method.

    >>> esd(np.diag([1.0, 2.0])).method
    'exact'
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is no method; use one of {', '.join(METHODS)}.")
    A = as_operator(A)
    if method == "exact":
        if options or tol is not None or budget is not None:
            given = [*options, *(name for name, v in (("tol", tol), ("budget", budget)) if v is not None)]
            raise TypeError(
                f"method='exact' takes no options, got {', '.join(given)}; leave them out or use method='slq'."
            )
        chosen, reason = True, "asked for"
    elif method == "kpm":
        from spectral.estimators.kpm import kpm

        given = [name for name, v in (("tol", tol), ("checkpoint", checkpoint)) if v is not None]
        if given:
            raise TypeError(f"method='kpm' takes no {' and no '.join(given)}; leave it out or use method='slq'.")
        spectrum = kpm(A, budget=budget, **options)
        spectrum.meta["choice"] = "kpm: asked for"
        return spectrum
    elif method == "slq":
        chosen, reason = False, "asked for"
    else:
        chosen, reason = _exact_is_cheap(A, budget, options)
    spectrum = exact(A) if chosen else slq(A, tol=tol, budget=budget, checkpoint=checkpoint, **options)
    unused = "; checkpoint not used" if chosen and checkpoint is not None else ""
    spectrum.meta["choice"] = f"{spectrum.method}: {reason}{unused}"
    return spectrum


def _exact_is_cheap(A: Operator, budget: Any, options: dict[str, Any]) -> tuple[bool, str]:
    """(whether to compute all eigenvalues, why)."""
    limit = effort.Budget(budget, A)
    inner = A.parts[0] if isinstance(A, Gram) else A
    dim, other, free = min(inner.shape), max(inner.shape), arrays.available_memory(A.device)
    own = set(options) - {"seed", "progress", "probes", "steps"}
    if own:
        return False, f"{', '.join(sorted(own))} given"
    products, most, why = dim, EXACT_DIM, ""
    if isinstance(inner, Dense):
        products = 0
    elif isinstance(inner, Jacobian):
        rows_fit = dim * other * inner.dtype.itemsize < free // 2 and distributed.world_size() == 1
        if inner.shape[0] >= inner.shape[1] or rows_fit:
            products, why = inner.outputs, " and one pass over the data"
            most = NETWORK_DIM if other <= LONG_ROWS * dim else EXACT_DIM
    if dim > most:
        return False, f"dimension {dim} exceeds what all eigenvalues are cheap for ({most})"
    if dim * dim * 8 * WORKSPACE > free // 2:
        return False, f"all eigenvalues of dimension {dim} would take more than half of the free memory"
    if EXACT_SECONDS * (dim / EXACT_DIM) ** 3 > limit.seconds:
        return False, f"all eigenvalues of dimension {dim} may take longer than {budget}"
    affordable = min(int(options.get("probes", 4)) * int(options.get("steps", 100)), limit.products, limit.epochs)
    if products > affordable:
        return False, f"all eigenvalues would take {products} products, more than the {affordable:.0f} of slq"
    return True, f"dimension {dim}, {products} products{why} instead of up to {affordable:.0f}"
