"""What is multiplied: operators of networks and of matrices."""

from spectral.operators.base import Gram, I, Operator
from spectral.operators.curvature import EmpiricalFisher, Fisher, GaussNewton, Hessian, blocks
from spectral.operators.jacobian import Jacobian
from spectral.operators.views import as_operator

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
]
