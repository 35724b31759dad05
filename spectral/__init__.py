"""Matrix-free spectra of networks: operators, Lanczos quadrature with certificates, and what a spectrum tells."""

from spectral.analysis import compare, label_alignment, marchenko_pastur, power_law, summary
from spectral.estimators import esd, exact, slq, trace
from spectral.operators import (
    EmpiricalFisher,
    Fisher,
    GaussNewton,
    Hessian,
    I,
    Jacobian,
    Operator,
    as_operator,
    blocks,
)
from spectral.plan import Plan, plan
from spectral.results import Atoms, Band, Density, Estimate
from spectral.spectrum import Spectrum

__version__ = "0.1.0"
__all__ = [
    "Atoms",
    "Band",
    "Density",
    "EmpiricalFisher",
    "Estimate",
    "Fisher",
    "GaussNewton",
    "Hessian",
    "I",
    "Jacobian",
    "Operator",
    "Plan",
    "Spectrum",
    "as_operator",
    "blocks",
    "compare",
    "esd",
    "exact",
    "label_alignment",
    "marchenko_pastur",
    "plan",
    "power_law",
    "slq",
    "summary",
    "trace",
]
