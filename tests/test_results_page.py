"""`spectral.report`: one page of results that are at hand."""

from __future__ import annotations

import base64
import html
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_cards import shown

import spectral
from spectral.pages import results
from spectral.spectrum import Spectrum


class Other:
    """What has a picture and arrays, and is none of ours."""

    def plot(self, ax):
        ax.plot([1, 2], [3, 4])
        return ax

    def to_arrays(self):
        return {"layer": np.array(["a", "b"]), "alpha": np.array([2.0, 3.0]), "history": np.zeros((2, 2))}

    def __str__(self) -> str:
        return "two layers"


SHOWN = ["estimated", "number", "power law", "pairs"]
MORE = ["exact", "signed", "numbers", "no power law", "triplets", "plan", "comparison"]


def made(names: list[str], folder, **others) -> str:
    given = {name: shown()[name] for name in names} | others
    return spectral.report(given, folder / "page.html", title="All <kinds>").read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return made(SHOWN, tmp_path_factory.mktemp("page"), other=Other())


def said_first(page: str, names: list[str]) -> None:
    first = page.index("</header>")
    assert first < page.index("<figure")
    for name in names:
        assert f"<b>{name}:</b>" in page[:first] and f"<h2>{name}</h2>" in page[first:]


def test_a_page_says_what_every_result_says_before_it_shows_anything(page):
    said_first(page, [*SHOWN, "other"])
    assert "The 60 eigenvalues" in page and "Two layers." in page
    assert "All &lt;kinds&gt;" in page and "All <kinds>" not in page


@pytest.mark.slow
def test_so_does_a_page_of_the_other_kinds_and_spectra_are_overlaid_first(tmp_path):
    page = made(MORE, tmp_path)
    said_first(page, MORE)
    assert page.index('id="together"') < page.index("<h2>exact</h2>") and page.count("<figure") == len(MORE) + 1


def test_a_page_needs_nothing_beside_itself_and_reads_on_a_phone_and_in_the_dark(page):
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page and "https://" not in page
    assert "width=device-width" in page and "prefers-color-scheme: dark" in page


def test_every_picture_is_there_as_pixels_and_as_a_vector_graphic(page):
    pixels = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    vectors = re.findall(r'href="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(vectors) == page.count("<figure") == 4 and len(pixels) >= 6
    for text in vectors:
        tree = ElementTree.fromstring(base64.b64decode(text))
        assert tree.tag.endswith("svg") and list(tree.iter("{http://www.w3.org/2000/svg}path"))


def test_a_single_result_answers_its_own_question(tmp_path):
    s = Spectrum.from_eigenvalues([1.0, 2.0, 3.0])
    text = spectral.report(s, tmp_path / "a.html").read_text()
    assert (
        "How are the eigenvalues of this matrix spread" in text and "reach from 1 to 3" in text and "Spectrum" in text
    )


def test_a_table_of_layers_is_a_sentence_a_picture_of_each_column_and_a_row_each(tmp_path):
    weights = {f"{i}.weight": torch.rand(9, 9, generator=torch.Generator().manual_seed(i)) for i in range(2)}
    about = {
        "data_matrix": "J^T J",
        "data_trace_stderr": 0.1,
        "data_effective_rank": 2.0,
        "data_effective_rank_stderr": 0.0,
    }
    about |= {"data_alpha": np.nan, "data_accepted": False, "data_products": 9}
    bare = spectral.layers(weights)
    table = replace(
        bare, rows=tuple({**row, "data_trace": 3.0 - i, **about} for i, row in enumerate(bare)), meta={"data": "x"}
    )
    text = spectral.report({"mine": table, "none": spectral.layers({})}, tmp_path / "a.html").read_text()
    said = html.escape(table.sentence(), quote=False).replace("'", "&#39;")
    assert said in text[: text.index("</header>")] and "Of 2 layers none" in said and "No layer has a spectrum" in text
    assert text.count("data:image/png") == 2 and "data_trace of each layer: 0 3;" in text and "60 % of that" in said
    assert all(cell in text for line in table.shown() for cell in line.values()) and "data: J^T J" in text


@pytest.mark.parametrize("s", [[2.0], [0.0], [-1.0, 1.0]], ids=str)
def test_spectra_at_the_edge_have_a_page(tmp_path, s):
    assert "eigenvalue" in spectral.report(Spectrum.from_eigenvalues(s), tmp_path / "a.html").read_text()


def test_what_has_no_page_is_refused_before_a_file_is_made(tmp_path):
    with pytest.raises(TypeError, match="is of type ndarray, of which there is no page; give a Spectrum"):
        spectral.report(np.eye(2), tmp_path / "a.html")
    with pytest.raises(ValueError, match="no results"):
        spectral.report({}, tmp_path / "a.html")
    with pytest.raises(ValueError, match="is no folder"):
        spectral.report(shown()["number"], tmp_path / "nowhere" / "a.html")
    with pytest.raises(ValueError, match="is a folder; name the page"):
        spectral.report(shown()["number"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_in_a_list_are_named_by_their_kinds():
    e = shown()["number"]
    assert list(results.named([e, shown()["exact"], e])) == ["Estimate 1", "Spectrum", "Estimate 2"]
    two = spectral.negative_mass(np.diag([-1.0, 1.0, 2.0]))
    assert list(results.named(two)) == ["NegativeMass fraction", "NegativeMass mass"]
    assert list(results.named({"below 0:": two, "e": e})) == ["below 0: fraction", "below 0: mass", "e"]


def test_every_result_that_says_a_sentence_has_a_page_that_begins_with_it(tmp_path):
    A, b = np.diag([1.0, 2.0, 3.0, 50.0]), np.ones(4)
    given = {
        "outliers": spectral.outliers(spectral.exact(A)), "bulk": spectral.marchenko_pastur(spectral.exact(A)),
        "solution": spectral.solve(A, b), "function": spectral.funm(A, "exp", b), "vector": spectral.spectrum_of(A, b),
    }  # fmt: skip
    text = html.unescape(spectral.report(given, tmp_path / "a.html").read_text())
    for name, result in given.items():
        said = str(result)[1:].rstrip(".")
        assert said in text[: text.index("</header>")], name
