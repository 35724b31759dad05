"""Matrix-free spectra of networks: operators, Lanczos quadrature with certificates, and what a spectrum tells."""

from spectral.operators import I, Jacobian, Operator, as_operator

__version__ = "0.1.0"
__all__ = ["I", "Jacobian", "Operator", "as_operator"]
