"""The studies by their names: experiments that are no grid of cells, each in a module of its own."""

from __future__ import annotations

from collections.abc import Callable

from spectral.experiments.batchnorm_outliers import batchnorm_outliers
from spectral.experiments.block_heterogeneity import block_heterogeneity
from spectral.experiments.cross_section import cross_section
from spectral.experiments.edge_of_stability import edge_of_stability
from spectral.experiments.study import Study

STUDIES: dict[str, Callable[..., Study]] = {
    made.__name__: made for made in (edge_of_stability, cross_section, batchnorm_outliers, block_heterogeneity)
}
READS = {  # the groups of the configuration that a study looks at; the others are refused where they are not as by default
    "edge_of_stability": ("model", "data"),
    "cross_section": ("model", "data", "training"),
    "batchnorm_outliers": ("data", "training"),
    "block_heterogeneity": (),
}
