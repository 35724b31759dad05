"""The front door: the empirical spectral density by whatever is cheapest and best here."""

from __future__ import annotations

import inspect
from typing import Any

from spectral.cards import counted, size
from spectral.estimators.budget import Budget, free_memory, sharded, smaller_side
from spectral.estimators.cost import PASS, WORKSPACE, affine, cost
from spectral.estimators.exact import exact
from spectral.estimators.kpm import kpm
from spectral.estimators.slq import slq
from spectral.estimators.slq_options import PROBES, STEPS
from spectral.estimators.slq_options import check as check_slq
from spectral.networks.jacobian import Jacobian
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Gram, Operator
from spectral.schema import choice
from spectral.spectrum import Spectrum

WORTH = 3  # times the work of slq that all eigenvalues may take: they have no error
EXACT_DIM, EXACT_SECONDS = 4096, 10.0  # all eigenvalues of a matrix of this size take about so long on two cores
# A network's Gram that is assembled in one pass, seen at 5000 on two busy cores: MLP 39 s instead of 270 s for 400
# products, CNN 107 s instead of 3100 s. Beyond 16 columns a row the assembly (2 dim^2 columns flops) may cost more than it saves,
# unless the passes that it saves are known to be more than that.
NETWORK_DIM, LONG_ROWS = 8192, 16
METHODS = ("auto", "exact", "slq", "kpm")
KPM_OPTIONS = {"moments", "interval", "recurrence"}  # that no other method has
# vectors held at the peak, a product's result among them, what it needs inside not (seen at n = 8e6, `ru_maxrss`): slq without
# a basis (four, and one deflated while it is made), kpm by Lanczos, kpm by the Chebyshev recurrence
SLQ_VECTORS, LANCZOS_VECTORS, CHEBYSHEV_VECTORS = 7, 4, 3


def esd(
    A: Any, *, tol: Any = None, budget: Any = None, method: str = "auto", checkpoint: Any = None, **options: Any
) -> Spectrum:
    """The spectrum of symmetric A, or of the Gram of a rectangular operator on its smaller side, by whatever is cheapest here.

    Cost: that of the method. "auto" takes all eigenvalues where they cost up to three times what `slq` would, and `slq`
    otherwise.

    Parameters
    ----------
    A : operator or matrix
        (n, n) symmetric, or rectangular for its Gram on the smaller side; whatever `as_operator` takes.
    tol : float or dict, optional
        As in `slq`. kpm has none, so that tol means slq, or all eigenvalues where they are cheap, which are within any
        tolerance.
    budget : int or str, optional
        As in `slq`, kept as it is counted: all eigenvalues of a Jacobian are as many products as it has outputs, and one
        epoch.
    method : str
        "auto", "exact", "slq" or "kpm".
    checkpoint : path, optional
        A file (its folder is made) that the method keeps: the same call goes on from it to the same bits.
    **options : object
        Those of the method. With "auto", probes or steps leave the choice open; other options of `slq` mean slq, those of
        `kpm` kpm. `steps` of kpm are half its moments.

    Returns
    -------
    Spectrum
        `meta["choice"]` says what was chosen and why, with the numbers that were compared.

    Raises
    ------
    ValueError
        For an unknown method, and as the method that is chosen.
    TypeError
        For an option that the method does not take.

    Notes
    -----
    "auto" counts derivative passes, sweeps and bytes (`spectral.estimators.cost`). A product of a flattened Jacobian is as
    many passes as it has outputs, and so is its whole Gram. All eigenvalues must cost up to three times what `slq` would,
    take no more than half of the free memory, and the matrix must be small: 4096; 8192 for a Jacobian whose Gram is
    assembled from rows, more where the passes outweigh dense arithmetic.

    Products being equal, `kpm` knows nothing that slq does not, and less where slq deflates. "auto" takes it where the free
    memory holds no vectors to deflate: fewer than seven of A's dimension. It is then Lanczos with four vectors, or the
    Chebyshev recurrence with three, which loses steps in spectra with gaps.

    Examples
    --------
    >>> esd(np.diag([1.0, 2.0])).method
    'exact'
    """
    choice(method, "method", METHODS)
    A = as_operator(A)
    chosen, reason, more = chosen_method(A, tol=tol, budget=budget, method=method, options=options)
    if chosen == "exact":
        spectrum = exact(A, checkpoint=checkpoint, progress=options.get("progress"))
    elif chosen == "kpm":
        spectrum = kpm(A, budget=budget, checkpoint=checkpoint, **_for_kpm(tol, {**options, **more}))
    else:
        spectrum = slq(A, tol=tol, budget=budget, checkpoint=checkpoint, **options)
    spectrum.meta["choice"] = f"{chosen}: {reason}"
    return spectrum


def chosen_method(
    A: Operator, *, tol: Any = None, budget: Any = None, method: str = "auto", options: dict[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    """(method, why, options of it) of `esd`."""
    if method == "exact":
        given = [*(set(options) - {"progress"}), *(k for k, v in (("tol", tol), ("budget", budget)) if v is not None)]
        if given:
            raise TypeError(
                f"method='exact' takes no {' or '.join(sorted(given))}; leave them out or use method='slq'."
            )
    if method != "auto":
        return method, "asked for", {}
    if own := KPM_OPTIONS & set(options):
        return "kpm", f"{', '.join(sorted(own))} given", {}
    _check(tol, options)
    cheap, reason = _exact_is_cheap(A, budget, options)
    if cheap:
        return "exact", reason, {}
    if tol is None and not _of_slq(options) and (tight := _tight(A)):
        return "kpm", f"{reason}; {tight[1]}", {"recurrence": tight[0]}
    return "slq", reason, {}


def _check(tol: Any, options: dict[str, Any]) -> None:
    """One sentence for an option that is none, wherever the run goes."""
    known = [name for name in inspect.signature(check_slq).parameters if name != "tol"]
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(
            f"esd got unknown options {', '.join(unknown)}; it takes tol, budget, method, checkpoint, {', '.join(known)}, and of "
            f"kpm {', '.join(sorted(KPM_OPTIONS))}."
        )
    check_slq(tol=tol, **options)


def _for_kpm(tol: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options of `kpm`: steps are half its moments."""
    if tol is not None:
        raise TypeError("method='kpm' takes no tol; leave it out or use method='slq'.")
    if "steps" not in options:
        return options
    if "moments" in options:
        raise TypeError("steps and moments were given, and steps are half the moments; use one of them.")
    return {k: v for k, v in options.items() if k != "steps"} | {"moments": 2 * options["steps"]}


def _of_slq(options: dict[str, Any]) -> list[str]:
    """The options that only `slq` has."""
    return sorted(set(options) - {"seed", "progress", "probes", "steps"})


def _tight(A: Operator) -> tuple[str, str] | None:
    """(recurrence of kpm, why) where the free memory does not hold the vectors of slq."""
    n = smaller_side(A).shape[0]
    room = free_memory(A) // (n * A.dtype.itemsize)
    if room >= SLQ_VECTORS:
        return None
    recurrence, takes = ("lanczos", LANCZOS_VECTORS) if room >= LANCZOS_VECTORS else ("chebyshev", CHEBYSHEV_VECTORS)
    return recurrence, (
        f"the free memory holds {room} vectors of length {n}, of which slq takes {SLQ_VECTORS} with deflation and kpm with "
        f"recurrence={recurrence!r} {takes}"
    )


def _exact_is_cheap(A: Operator, budget: Any, options: dict[str, Any]) -> tuple[bool, str]:
    """(whether to compute all eigenvalues, why)."""
    limit, own = Budget(budget, A), _of_slq(options)
    if own:
        return False, f"{', '.join(own)} given"
    op = smaller_side(A)
    if sharded(op):
        return False, "the ranks hold pieces of its vectors"
    dim, free = op.shape[0], free_memory(A)
    probes, steps = int(options.get("probes", PROBES)), int(options.get("steps", STEPS))
    swept = limit.epochs / cost(op, 1).epochs if cost(op, 1).epochs else limit.epochs
    affordable = max(int(min(probes * min(steps, dim), limit.products, swept)), 1)
    whole, other = cost(op, free=free), cost(op, affordable)
    inner = affine(op)[2]
    J = inner.parts[0] if isinstance(inner, Gram) and isinstance(inner.parts[0], Jacobian) else None
    most = EXACT_DIM
    if J is not None and whole.epochs and whole.jvps == 0:  # from rows
        weights = sum(p.numel() for p in J.network.model.parameters())
        outweighed = whole.flops <= WORTH * PASS * weights * other.passes
        most = NETWORK_DIM if max(J.shape) <= LONG_ROWS * dim else EXACT_DIM
        most = max(most, dim) if outweighed else most
    if dim > most:
        return (
            False,
            f"dimension {dim:,} is above {most:,}, up to which all eigenvalues are cheap: they take {whole}, slq {other}",
        )
    if dim * dim * 8 * WORKSPACE > free // 2 or whole.bytes > 3 * free // 4:
        return False, (
            f"all eigenvalues of dimension {dim:,} would take more than half of the free memory: "
            f"{size(whole.bytes)} of {size(free)}"
        )
    if EXACT_SECONDS * (dim / EXACT_DIM) ** 3 > limit.seconds:
        return False, f"all eigenvalues of dimension {dim:,} may take longer than {budget}"
    spent = whole.products > limit.products or whole.epochs > limit.epochs
    if spent or whole.work > WORTH * other.work:
        than = f"the {affordable:,} of slq" if spent else f"{WORTH} times the {affordable:,} of slq"
        counts = f"all eigenvalues would take {whole.products:,} products, more than {than}"
        return False, f"{counts}: {whole} instead of {other}"
    counts = f"dimension {dim:,} takes {counted(whole.products, 'product')}"
    if whole.epochs and not whole.jvps:  # from rows
        counts += f" and {'one pass' if whole.epochs == 1 else f'{whole.epochs} passes'} over the data"
    return True, f"{counts} instead of up to {affordable:,}: {whole} instead of {other}"
