"""Quadrature from records: `gauss`, `certificate`, `bounds` of one; `beta`, `pooled` of many; `cdf`, `density`, `error`."""
