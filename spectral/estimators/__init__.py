"""From an operator to its spectrum and its traces."""

from spectral.estimators.esd import esd
from spectral.estimators.exact import exact
from spectral.estimators.slq import slq
from spectral.estimators.trace import trace

__all__ = ["esd", "exact", "slq", "trace"]
