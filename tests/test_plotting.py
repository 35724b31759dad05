"""`Spectrum.plot`: what is drawn, over both signs, and that several spectra share one pair of axes."""

from __future__ import annotations

from itertools import permutations

import matplotlib as mpl
import numpy as np
import pytest
from scipy.integrate import trapezoid

import spectral
from spectral import Spectrum, plotting

mpl.use("Agg")
RNG = np.random.default_rng(5)

SPECTRA = {
    "small": lambda: Spectrum.from_eigenvalues(1e-6 * RNG.uniform(0.5, 1, 5000)),
    "large": lambda: Spectrum.from_eigenvalues(1e6 * RNG.uniform(1e-3, 1, 20)),
    "signed": lambda: Spectrum.from_eigenvalues(RNG.standard_normal(300)),
    "negative": lambda: Spectrum.from_eigenvalues(-RNG.uniform(1, 3, 10)),
    "probes": lambda: spectral.slq(np.diag(np.append(RNG.uniform(-1, 1, 200), [-7.0, 40.0])), steps=30),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    mpl.pyplot.close("all")


def limits(ax):
    return np.array([*ax.get_xlim(), *ax.get_ylim()]) * [-1, 1, -1, 1]


@pytest.mark.parametrize(("first", "second"), list(permutations(SPECTRA, 2)))
def test_a_second_spectrum_hides_nothing_of_the_first(first: str, second: str) -> None:
    a, b = SPECTRA[first](), SPECTRA[second]()
    ax = a.plot()
    alone = limits(ax), limits(b.plot())
    drawn = [line.get_xydata().copy() for line in ax.lines]
    assert b.plot(ax=ax) is ax
    for line, before in zip(ax.lines, drawn, strict=False):
        np.testing.assert_array_equal(line.get_xydata(), before)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert top >= max(alone[0][3], alone[1][3]) and bottom <= min(-alone[0][2], -alone[1][2])
    for line in ax.lines:
        x, y = line.get_xydata()[np.isfinite(line.get_ydata())].T
        assert ((x >= left) & (x <= right) & (y >= bottom) & (y <= top)).all()
    gap = getattr(ax.xaxis.get_transform(), "linthresh", 0.0)
    assert all(np.abs(line.get_xdata()).min() >= gap * (1 - 1e-12) for line in ax.lines)  # logarithmic wherever drawn


@pytest.mark.parametrize("name", ["signed", "probes", "negative"])
def test_negative_eigenvalues_are_drawn_on_their_own_side(name: str) -> None:
    """The areas of both sides are the fractions of the eigenvalues of both signs."""
    s = SPECTRA[name]()
    ax = s.plot()
    assert ax.get_xscale() == "symlog" and ax.get_ylabel().startswith("|λ|·ρ(λ)")
    for sign in (-1, 1):
        x, y = np.concatenate([np.zeros((0, 2)), *(l.get_xydata() for l in ax.lines if sign * l.get_xdata()[0] > 0)]).T
        area = trapezoid(np.nan_to_num(y), np.log(np.abs(x))) if len(x) else 0.0
        band = s.count(*((-np.inf, -1e-9) if sign < 0 else (1e-9, np.inf)))
        assert band.lower / s.dim - 0.01 <= area <= band.upper / s.dim + 0.01
    label = ax.get_legend().get_texts()[0].get_text()
    assert len(ax.get_legend().get_texts()) == 1 and "not on this axis" not in label


def test_what_is_drawn_is_the_density_in_its_one_unit() -> None:
    """rho itself on a linear axis, lambda rho on a logarithmic one: both integrate to the fraction on the axis."""
    s = Spectrum.from_eigenvalues(np.geomspace(1e-2, 3, 60), zeros=20)
    x, y = s.plot(scale="linear").lines[0].get_xydata().T
    np.testing.assert_array_equal(y, s.density().value)
    assert trapezoid(y, x) == pytest.approx(0.75, abs=0.01)
    x, y = s.plot().lines[0].get_xydata().T
    seen = np.isfinite(y)
    np.testing.assert_allclose(y[seen], (x * s.density(x, scale="log").value)[seen], rtol=1e-12)
    assert trapezoid(np.nan_to_num(y), np.log(x)) == pytest.approx(0.75, abs=0.01)
    assert "per unit of λ" in plotting.LABELS["log"] and "per unit of λ" in plotting.LABELS["linear"]


def test_two_quantities_never_share_axes() -> None:
    s = SPECTRA["large"]()
    for one, two in permutations(["linear", "log"], 2):
        with pytest.raises(ValueError, match="use one scale for both") as error:
            s.plot(s.plot(scale=one), scale=two)
        assert "\n" not in str(error.value)


def test_options_reach_the_line_and_its_other_side() -> None:
    ax = SPECTRA["signed"]().plot(color="red", linestyle="--", label="mine")
    assert {(line.get_color(), line.get_linestyle()) for line in ax.lines} == {("red", "--")} and len(ax.lines) == 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mine"]
