"""The front door: the empirical spectral density by whatever is cheapest and best here."""

from __future__ import annotations

from typing import Any

from spectral import arrays
from spectral.estimators import effort
from spectral.estimators.exact import WORKSPACE, exact
from spectral.estimators.slq import slq
from spectral.operators.base import Gram, Operator
from spectral.operators.jacobian import Jacobian
from spectral.operators.views import Dense, as_operator
from spectral.spectrum import Spectrum

EXACT_DIM = 4096  # all eigenvalues of a matrix of this size take about ten seconds on two cores
PRODUCTS = 400  # what slq spends by default: 4 probes x 100 steps
METHODS = ("auto", "exact", "slq")


def esd(A: Any, *, tol: float | None = None, budget: Any = None, method: str = "auto", **options: Any) -> Spectrum:
    """The spectrum of symmetric A, or of the Gram of a rectangular operator on its smaller side.

    "auto": all eigenvalues if the matrix is small and cheaper to assemble than the products of `slq` (a Jacobian's Gram takes
    one pass over the data), otherwise `slq` with deflation; asking for tol or for options of slq means slq unless the matrix
    is small. `meta["choice"]` says what was chosen and why. `options` are those of `slq`.

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
    elif method == "slq":
        chosen, reason = False, "asked for"
    else:
        chosen, reason = _exact_is_cheap(A, budget, options)
    spectrum = exact(A) if chosen else slq(A, tol=tol, budget=budget, **options)
    spectrum.meta["choice"] = f"{spectrum.method}: {reason}"
    return spectrum


def _exact_is_cheap(A: Operator, budget: Any, options: dict[str, Any]) -> tuple[bool, str]:
    """(whether to compute all eigenvalues, why)."""
    effort.Budget(budget, A)  # a sentence for a budget that is none
    dim = min(A.shape)
    own = set(options) - {"seed", "progress", "probes", "steps"}
    if own:
        return False, f"{', '.join(sorted(own))} given"
    if dim > EXACT_DIM or dim * dim * 8 * WORKSPACE > arrays.available_memory(A.device) // 2:
        return False, f"dimension {dim} exceeds what all eigenvalues are cheap for ({EXACT_DIM})"
    inner = A.parts[0] if isinstance(A, Gram) else A
    products = dim
    if isinstance(inner, Dense):
        products = 0
    elif isinstance(inner, Jacobian):
        left = inner.shape[0] < inner.shape[1]
        fits = (
            not left or inner.shape[0] * inner.shape[1] * inner.dtype.itemsize < arrays.available_memory(A.device) // 2
        )
        products = inner.outputs if fits else dim
    affordable = int(options.get("probes", 4)) * int(options.get("steps", 100))
    if isinstance(budget, int | float):
        affordable = min(affordable, int(budget))
    if products > affordable:
        return False, f"all eigenvalues would take {products} products, more than the {affordable} of slq"
    return True, f"dimension {dim}, {products} products instead of up to {affordable}"
