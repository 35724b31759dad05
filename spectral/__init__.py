"""Matrix-free spectra of networks: operators, Lanczos quadrature with certificates, and what a spectrum tells."""

from spectral import failures  # noqa: F401 (before what takes seconds to load)
from spectral.analysis import (
    class_structure,
    compare,
    label_alignment,
    lyapunov,
    marchenko_pastur,
    outliers,
    power_law,
    summary,
)
from spectral.estimators.block_gap import block_gap
from spectral.estimators.critical_sharpness import critical_sharpness
from spectral.estimators.diagonal import diagonal
from spectral.estimators.esd import esd
from spectral.estimators.exact import exact
from spectral.estimators.functionals import (
    condition_number,
    frobenius,
    logdet,
    negative_mass,
    numerical_rank,
    spectral_form,
)
from spectral.estimators.funm import Product, funm, spectrum_of
from spectral.estimators.kpm import jackson, kpm
from spectral.estimators.laplace import LowRankPlusDiagonal, block_diagonal, low_rank_plus_diagonal
from spectral.estimators.slq import slq
from spectral.estimators.solve import Solution, inverse, solve
from spectral.estimators.svd import SingularTriplets, svd
from spectral.estimators.top import Eigenpairs, top
from spectral.estimators.trace import trace
from spectral.layer_table import LayerTable
from spectral.layers import layers
from spectral.networks.blocks import blocks
from spectral.networks.curvature import GaussNewton, Hessian
from spectral.networks.fisher import EmpiricalFisher, Fisher
from spectral.networks.jacobian import Jacobian
from spectral.operators.foreign import as_operator
from spectral.operators.operator import I, Operator
from spectral.operators.precondition import precondition
from spectral.plan import Plan, plan
from spectral.report import report
from spectral.results import Atoms, Band, Density, Estimate
from spectral.spectrum import Spectrum
from spectral.version import __version__
from spectral.watch import Watcher

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
    "LayerTable",
    "LowRankPlusDiagonal",
    "Operator",
    "Plan",
    "Product",
    "SingularTriplets",
    "Solution",
    "Spectrum",
    "Watcher",
    "__version__",
    "as_operator",
    "block_diagonal",
    "block_gap",
    "blocks",
    "class_structure",
    "compare",
    "condition_number",
    "critical_sharpness",
    "diagonal",
    "esd",
    "exact",
    "frobenius",
    "funm",
    "inverse",
    "jackson",
    "kpm",
    "label_alignment",
    "layers",
    "logdet",
    "low_rank_plus_diagonal",
    "lyapunov",
    "marchenko_pastur",
    "negative_mass",
    "numerical_rank",
    "outliers",
    "plan",
    "power_law",
    "precondition",
    "report",
    "slq",
    "solve",
    "spectral_form",
    "spectrum_of",
    "summary",
    "svd",
    "top",
    "trace",
]


def __dir__() -> list[str]:
    """The contract alone; modules are imported by their own names (`spectral.arrays`)."""
    return __all__
