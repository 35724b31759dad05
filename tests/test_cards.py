"""How results show themselves: one sentence, numbers with errors, a small picture that is valid SVG and says where things are."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from functools import cache
from typing import Any

import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import spectral
from spectral import cards
from spectral.spectrum import Spectrum

MOST = 30_000  # bytes of a card


def matrix(n: int = 60) -> np.ndarray:
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    return (Q * np.geomspace(1e-3, 1.0, n)) @ Q.T


@cache
def shown() -> dict[str, Any]:
    """A result of every kind."""
    A = matrix()
    exact, signed = spectral.exact(A), spectral.exact(A - 0.1 * np.eye(60))
    estimated = spectral.slq(A, probes=3, steps=10, progress=False)
    return {
        "exact": exact,
        "estimated": estimated,
        "signed": signed,
        "one eigenvalue": Spectrum.from_eigenvalues([2.0]),
        "zeros": Spectrum.from_eigenvalues([0.0, 0.0], zeros=3),
        "negative": Spectrum.from_eigenvalues([-3.0, -2.0, -1.0]),
        "number": estimated.integrate(lambda x: x),
        "exact number": exact.moment(1),
        "numbers": spectral.diagonal(A, probes=5),
        "power law": spectral.power_law(Spectrum.from_eigenvalues((np.arange(1, 1001) / 1000) ** -1.0)),
        "no power law": spectral.power_law(exact),
        "pairs": spectral.top(A, 3),
        "not converged": spectral.top(A, 3, budget=8, tol=1e-14),
        "triplets": spectral.svd(A, 2),
        "plan": spectral.plan(np.eye(30), steps=5),
        "comparison": spectral.compare(exact, estimated),
    }


NAMES = (
    "exact", "estimated", "signed", "one eigenvalue", "zeros", "negative", "number", "exact number", "numbers", "power law",
    "no power law", "pairs", "not converged", "triplets", "plan", "comparison",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_small_valid_and_states_its_errors(name):
    text = shown()[name]._repr_html_()
    tree = ElementTree.fromstring(text)
    assert len(text.encode()) < MOST and "nan" not in text.replace("nan'", "").lower().split("aria-label")[0]
    words = " ".join(tree.itertext())
    assert any(mark in words for mark in ("±", "exact", "within", "measured", "no power law", "standard error")), words
    for svg in tree.iter("{http://www.w3.org/2000/svg}svg"):
        assert svg.get("role") == "img" and len(svg.get("aria-label", "")) > 10
        assert not svg.findall(".//{http://www.w3.org/2000/svg}style")  # it would be one of the whole notebook
        assert svg.get("fill") == "currentColor" and "#000000" not in ElementTree.tostring(svg, "unicode")


def test_the_colours_of_cards_stand_out_on_white_and_on_black():
    """Contrast of 3 : 1 on both, what WCAG 2.1 (1.4.11) asks of graphics."""
    for shade in (*cards.COLOURS[:4], cards.GREY):
        r, g, b = (((int(shade[i : i + 2], 16) / 255 + 0.055) / 1.055) ** 2.4 for i in (1, 3, 5))
        light = 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05
        assert 1.05 / light > 3 and light / 0.05 > 3, shade


def test_what_a_person_wrote_is_escaped():
    text = cards.card("<script>", [("<b>", "&")])
    assert "<script>" not in text and "<b>" not in text and "&amp;" in text


def test_marks_stand_where_their_values_are_and_a_line_has_a_gap_where_it_is_not_known():
    ax = Figure().add_subplot()
    y = np.array([1.0, 2.0, np.nan, 3.0, 4.0])
    for mark in (cards.Mark(np.arange(5.0), y), cards.Mark(np.arange(5.0), y, y - 1, y + 1, dots=True, hollow=True)):
        mark.draw(ax)
    line, dots = ax.lines
    np.testing.assert_array_equal(line.get_ydata(), y)
    assert dots.get_markerfacecolor() == "none" and len(ax.collections[0].get_segments()) == 5


def test_numbers_at_the_axes_are_whole_and_those_of_an_index_are_integers():
    """Hundredths of a pixel were cut from all of the drawing, and 0.0022 became 0.00."""
    words = " ".join(
        ElementTree.fromstring(cards.bars([("a", 0.0022, "0.0022"), ("b", 1.0, "1.0625")], "two")).itertext()
    )
    assert "0.0022" in words and "1.0625" in words
    narrow = cards.chart([cards.Mark(np.geomspace(0.18, 6.1), np.zeros(50))], "xmin", "", "a line", x_scale="log")
    assert [text.strip() for text in ElementTree.fromstring(narrow).itertext() if text.strip()] == [
        "0.2", "0.5", "1.0", "2.0", "5.0", "xmin",
    ]  # fmt: skip
    x = np.array([1.0, 2.0])
    drawn = ElementTree.fromstring(cards.chart([cards.Mark(x, x / 1000 + 2, dots=True)], "index", "", "two dots"))
    assert [text.strip() for text in drawn.itertext() if text.strip()] == ["1", "2", "index"]


@pytest.mark.parametrize("name", [name for name in spectral.__all__ if isinstance(getattr(spectral, name), type)])
def test_what_says_a_sentence_of_itself_says_it_in_a_notebook(name):
    made = getattr(spectral, name)
    if "__str__" in vars(made) and dataclasses.is_dataclass(made):
        assert hasattr(made, "_repr_html_"), "its fields would be shown, with all their numbers"


def test_a_card_is_the_same_whatever_style_the_notebook_has():
    mark = cards.Mark(np.arange(3.0), np.arange(3.0))
    plain = cards.chart([mark], "x", "y", "a line")
    with matplotlib.style.context("dark_background"):
        assert cards.chart([mark], "x", "y", "a line").count("#ffffff") == plain.count("#ffffff") == 0


def test_a_number_between_bounds_does_not_call_itself_exact() -> None:
    """Critical sharpness has no random part and is known to 5 %: its text and its card say between what, and never ± 0."""
    H = spectral.Hessian(torch.nn.Linear(2, 1), torch.nn.MSELoss(), [(torch.eye(2), torch.ones(2, 1))])
    known = spectral.critical_sharpness(H)
    assert known.lower < known.upper
    for text in (str(known), known._repr_html_()):
        assert f"in [{known.lower:.6g}, {known.upper:.6g}]" in text
        assert "± 0" not in text and "0: exact" not in text
    same = spectral.results.Estimate(2.0, 0.0, lower=2.0 - 1e-12, upper=2.0)  # bounds as close as rounding
    assert str(same) == "2 ± 0" and "0: exact" in same._repr_html_()
