"""What is multiplied: matrices known by their products, and the algebra of them."""

from spectral.operators.operator import Gram

__all__ = ["Gram"]
