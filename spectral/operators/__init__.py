"""What is multiplied: operators of networks and of matrices."""

from spectral.networks.blocks import blocks
from spectral.networks.curvature import GaussNewton, Hessian
from spectral.networks.fisher import EmpiricalFisher, Fisher
from spectral.networks.jacobian import Jacobian
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Gram, I, Operator
from spectral.operators.precondition import precondition

__all__ = [
    "EmpiricalFisher",
    "Fisher",
    "GaussNewton",
    "Gram",
    "Hessian",
    "I",
    "Jacobian",
    "Operator",
    "as_operator",
    "blocks",
    "precondition",
]
