"""`report`: a page of results that are at hand. What draws and lays it out is loaded when a page is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any


def report(results: Any, path: str | Path, *, title: str | None = None) -> Path:
    """One self-contained HTML page of results: what they say in sentences first, then pictures, numbers, and what they cost.

    Pictures are PNG in the page, each with a link to itself as a vector graphic (SVG); the page needs no network and no script,
    and reads on a phone and in the dark. Several spectra are overlaid first.

    Cost: no products.

    Parameters
    ----------
    results : result, dict or list
        A `Spectrum`, `Estimate`, `PowerLaw`, `Eigenpairs`, `SingularTriplets`, `Plan`, `LayerTable`, what `compare` returns, or
        whatever else has `plot` and `to_arrays`; several in a list, or in a dict by the names that they shall have.
    path : path
        Of the page; its folder must be there.
    title : str, optional
        Above the page.

    Returns
    -------
    pathlib.Path
        Where it was written.

    Raises
    ------
    TypeError
        For a result of another kind.
    ValueError
        For no results, and a path whose folder is not there.

    Examples
    --------
    >>> import tempfile
    >>> A, path = np.diag([1.0, 2.0, 3.0]), tempfile.mkdtemp() + "/page.html"
    >>> page = report({"three": spectral.exact(A), "its trace": spectral.trace(A)}, path)
    >>> "The 3 eigenvalues reach from 1 to 3" in page.read_text(encoding="utf-8")
    True
    """
    return Path(importlib.import_module("spectral.pages.results").write(results, path, title))
