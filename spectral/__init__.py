"""Matrix-free spectra of networks: operators, Lanczos quadrature with certificates, and what a spectrum tells."""

from spectral.analysis import compare, label_alignment, marchenko_pastur, outliers, power_law, summary
from spectral.estimators import (
    Eigenpairs,
    SingularTriplets,
    block_gap,
    condition_number,
    diagonal,
    esd,
    exact,
    frobenius,
    jackson,
    kpm,
    logdet,
    negative_mass,
    numerical_rank,
    slq,
    spectral_form,
    svd,
    top,
    trace,
)
from spectral.operators import EmpiricalFisher, Fisher, GaussNewton, Hessian, I, Jacobian, Operator, as_operator, blocks
from spectral.plan import Plan, plan
from spectral.report import report
from spectral.results import Atoms, Band, Density, Estimate
from spectral.spectrum import Spectrum
from spectral.version import __version__

__all__ = [
    "Atoms",
    "Band",
    "Density",
    "Eigenpairs",
    "EmpiricalFisher",
    "Estimate",
    "Fisher",
    "GaussNewton",
    "Hessian",
    "I",
    "Jacobian",
    "Operator",
    "Plan",
    "SingularTriplets",
    "Spectrum",
    "__version__",
    "as_operator",
    "block_gap",
    "blocks",
    "compare",
    "condition_number",
    "diagonal",
    "esd",
    "exact",
    "frobenius",
    "jackson",
    "kpm",
    "label_alignment",
    "logdet",
    "marchenko_pastur",
    "negative_mass",
    "numerical_rank",
    "outliers",
    "plan",
    "power_law",
    "report",
    "slq",
    "spectral_form",
    "summary",
    "svd",
    "top",
    "trace",
]


def __dir__() -> list[str]:
    """The contract alone; modules are imported by their own names (`spectral.arrays`)."""
    return __all__
