"""The front door: the empirical spectral density by whatever is cheapest and best here."""

from __future__ import annotations

from typing import Any

from spectral import arrays, distributed
from spectral.estimators import effort
from spectral.estimators.exact import WORKSPACE, exact
from spectral.estimators.kpm import kpm
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
KPM_OPTIONS = {"moments", "interval", "recurrence"}  # that no other method has
# vectors held at the peak, a product's result among them, what it needs inside not (seen at n = 8e6, `ru_maxrss`): slq without
# a basis (four, and one deflated while it is made), kpm by Lanczos, kpm by the Chebyshev recurrence
SLQ_VECTORS, LANCZOS_VECTORS, CHEBYSHEV_VECTORS = 7, 4, 3


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
    eigenvalues where they are cheap, as they are within any tolerance; other options of slq mean slq, those of `kpm` kpm.
    `meta["choice"]` says what was chosen and why. Products being equal, `kpm` knows nothing that slq does not, and less where
    slq deflates; "auto" takes it where the free memory holds no vectors to deflate: fewer than seven of A's dimension. It is then
    Lanczos with four vectors, or the Chebyshev recurrence with three, which loses steps in spectra with gaps. kpm has no tol,
    which therefore means slq. `checkpoint` is a file that the method keeps: the same call goes on from it to the same bits.
    `options` are those of the method; `steps` of kpm are half its moments.

    >>> esd(np.diag([1.0, 2.0])).method
    'exact'
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is no method; use one of {', '.join(METHODS)}.")
    A = as_operator(A)
    if method == "exact":
        given = [*(set(options) - {"progress"}), *(k for k, v in (("tol", tol), ("budget", budget)) if v is not None)]
        if given:
            raise TypeError(
                f"method='exact' takes no {' or '.join(sorted(given))}; leave them out or use method='slq'."
            )
        chosen, reason = True, "asked for"
    elif method == "kpm":
        return _kpm(A, tol, budget, checkpoint, options, "asked for")
    elif method == "slq":
        chosen, reason = False, "asked for"
    elif own := KPM_OPTIONS & set(options):
        return _kpm(A, tol, budget, checkpoint, options, f"{', '.join(sorted(own))} given")
    else:
        chosen, reason = _exact_is_cheap(A, budget, options)
        if not chosen and tol is None and not _of_slq(options) and (tight := _tight(A)):
            recurrence, why = tight
            return _kpm(A, None, budget, checkpoint, {**options, "recurrence": recurrence}, f"{reason}; {why}")
    if chosen:
        spectrum = exact(A, checkpoint=checkpoint, progress=options.get("progress"))
    else:
        spectrum = slq(A, tol=tol, budget=budget, checkpoint=checkpoint, **options)
    spectrum.meta["choice"] = f"{spectrum.method}: {reason}"
    return spectrum


def _kpm(A: Operator, tol: Any, budget: Any, checkpoint: Any, options: dict[str, Any], reason: str) -> Spectrum:
    """`kpm`, with steps for half its moments."""
    if tol is not None:
        raise TypeError("method='kpm' takes no tol; leave it out or use method='slq'.")
    if "steps" in options:
        if "moments" in options:
            raise TypeError("steps and moments were given, and steps are half the moments; use one of them.")
        options = {k: v for k, v in options.items() if k != "steps"} | {"moments": 2 * options["steps"]}
    spectrum = kpm(A, budget=budget, checkpoint=checkpoint, **options)
    spectrum.meta["choice"] = f"kpm: {reason}"
    return spectrum


def _of_slq(options: dict[str, Any]) -> list[str]:
    """The options that only `slq` has."""
    return sorted(set(options) - {"seed", "progress", "probes", "steps"})


def _tight(A: Operator) -> tuple[str, str] | None:
    """(recurrence of kpm, why) where the free memory does not hold the vectors of slq."""
    op = A.gram() if A.shape[0] != A.shape[1] or not A.self_map else A
    n = (op.smaller if isinstance(op, Gram) else op).shape[0]
    room = arrays.available_memory(A.device) // (n * A.dtype.itemsize)
    if room >= SLQ_VECTORS:
        return None
    recurrence, takes = ("lanczos", LANCZOS_VECTORS) if room >= LANCZOS_VECTORS else ("chebyshev", CHEBYSHEV_VECTORS)
    return recurrence, (
        f"the free memory holds {room} vectors of length {n}, of which slq takes {SLQ_VECTORS} with deflation and kpm with "
        f"recurrence={recurrence!r} {takes}"
    )


def _exact_is_cheap(A: Operator, budget: Any, options: dict[str, Any]) -> tuple[bool, str]:
    """(whether to compute all eigenvalues, why)."""
    limit = effort.Budget(budget, A)
    inner = A.parts[0] if isinstance(A, Gram) else A
    dim, other, free = min(inner.shape), max(inner.shape), arrays.available_memory(A.device)
    if own := _of_slq(options):
        return False, f"{', '.join(own)} given"
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
