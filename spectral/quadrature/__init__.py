"""Quadrature from Lanczos records; the modules of `measure`, `curve`, `brackets` and `density` move here."""
