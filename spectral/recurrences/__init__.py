"""Recurrences: products in, immutable records out."""

from spectral.recurrences.lanczos import Lanczos, LanczosRecord, lanczos

__all__ = ["Lanczos", "LanczosRecord", "lanczos"]
