"""From an operator to its spectrum, its extreme eigenpairs, and numbers of it with their errors."""

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

__all__ = [
    "Eigenpairs",
    "LowRankPlusDiagonal",
    "Product",
    "SingularTriplets",
    "Solution",
    "block_diagonal",
    "block_gap",
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
    "logdet",
    "low_rank_plus_diagonal",
    "negative_mass",
    "numerical_rank",
    "slq",
    "solve",
    "spectral_form",
    "spectrum_of",
    "svd",
    "top",
    "trace",
]
