"""The report: numbers with their digits, tables, sentences and pictures from spectra whose answer is known."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from spectral import esd, slq
from spectral.report import Curve, Line, Numbers, Report, Row, compose, conditions_of, figures, page, tables
from spectral.spectrum import Spectrum

SCALE = {"init": 1.0, "true": 3.0, "random": 30.0}


def spectra() -> list[Curve]:
    """Three conditions and two seeds of a log-uniform spectrum of 40 eigenvalues with ten zeros."""
    return [
        Curve("matrix", name, seed, Spectrum.from_eigenvalues(scale * np.geomspace(1e-3, 1 + seed, 40), zeros=10))
        for name, scale in SCALE.items()
        for seed in (0, 1)
    ]


def rows() -> list[Row]:
    zero = dict.fromkeys(SCALE, (0.0, 0.0))
    apart = {"init": (30.0, 31.0), "true": (10.0, 11.0), "random": (20.0, 22.0)}
    mixed = {"init": (1.0, 2.0), "true": (1.0, 4.0), "random": (2.0, 3.0)}
    return [
        Row("matrix", "effective_rank", apart, zero, (-6.6, -12.0, -1.0), True),
        Row("matrix", "alpha", mixed, zero, (0.0, -2.0, 2.0), False),
    ]


@pytest.fixture
def report() -> Report:
    x = np.linspace(0, 1, 5)
    return Report(
        title="A title <with> marks",
        question="A question?",
        curves=spectra(),
        rows=rows(),
        headline=("matrix",),
        headline_metric="effective_rank",
        alignment=[Line("matrix", "true", 0, x, x)],
        losses=[Line("loss", "true", 0, x + 1, np.exp(-x))],
        training=[{"condition": "true", "seed": 0, "reached target": True, "target loss": 1e-3}],
        config={"seed": 0, "model": {"kind": "mlp"}},
        cost={"products": 12, "epochs": 3.5, "seconds": 75.0, "peak_bytes": 2**28},
    )


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.14159, 0.0123, "3.142 ± 0.012"),
        (351234.0, 1200.0, "(3.512 ± 0.012)e5"),
        (1.5e-7, 2e-8, "(1.50 ± 0.20)e-7"),
        (12.3456, 0.0, "12.35"),
        (0.0, 0.0, "0.000"),
        (2.0, math.nan, "2.000 ± ?"),
        (math.nan, 1.0, "–"),
        (0.4, 123.0, "0 ± 123"),
        (-2.5, 0.25, "-2.50 ± 0.25"),
    ],
)
def test_digits_follow_the_error(value: float, error: float, text: str) -> None:
    assert tables.with_error(value, error) == text


def test_error_of_several_seeds_is_their_standard_deviation_and_of_one_its_own() -> None:
    assert tables.mean_and_error((1.0, 3.0, math.nan), (9.0, 9.0, 9.0)) == (2.0, math.sqrt(2))
    assert tables.mean_and_error((1.0,), (0.5,)) == (1.0, 0.5)
    assert math.isnan(tables.mean_and_error((math.nan,), (0.5,))[0])


def test_conditions_come_in_the_order_of_the_question() -> None:
    assert conditions_of([Row("m", "x", {"random": (1.0,), "other": (1.0,), "init": (1.0,)}, {})]) == [
        "init",
        "random",
        "other",
    ]


def pairs(value: np.ndarray) -> Numbers:
    error = np.full(len(value), 1e-9)
    error[-1] = 0.5
    about = {"kind": "eigenvalues", "threshold": 1e-8, "complete": False, "of": "Of the matrix.", "products": 9}
    return Numbers(value, error, error <= 1e-8, about)


@pytest.mark.parametrize(("value", "scale"), [([100.0, 3.0, 0.01], "log"), ([3.0, 2.0, -1.0], "linear")])
def test_pairs_are_drawn_with_their_residuals_on_a_log_axis_where_all_are_positive(value, scale) -> None:
    found = pairs(np.array(value))
    figure = figures.numbers(found)
    upper, lower = figure.axes
    assert upper.get_yscale() == scale and lower.get_yscale() == "log"
    shown = np.concatenate([np.asarray(line.get_xydata()) for line in lower.lines if line.get_linestyle() != "--"])
    np.testing.assert_array_equal(shown, np.column_stack([[1, 2, 3], found.error]))
    assert found.estimates()["eigenvalue_3"] == {"value": value[2], "residual": 0.5, "converged": False}
    table = tables.text_entries(found).splitlines()
    assert table[0].split() == ["value", "residual", "converged"] and table[3].split()[-2:] == ["0.5", "no"]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_diagonal_lists_its_extreme_entries_and_a_trace_has_no_picture(sign: float) -> None:
    value = np.array([2.0, 5.0 * sign, 1.0])
    found = compose.of_arrays({"value": value, "stderr": value**2}, {"kind": "diagonal"})
    assert found.estimates()["largest_entry"]["index"] == (1 if sign > 0 else 0)
    assert found.estimates()["smallest_entry"] == {
        "value": value.min(),
        "stderr": value.min() ** 2,
        "index": int(value.argmin()),
    }
    (ax,) = figures.numbers(found).axes
    assert ax.get_yscale() == ("log" if sign > 0 else "symlog")
    np.testing.assert_array_equal(ax.lines[-1].get_ydata(), np.sort(value)[::-1])
    of_trace = {"kind": "trace", "lower": math.nan, "upper": 9.0}
    found = compose.of_arrays({"value": np.array([8.0]), "stderr": np.array([1.0])}, of_trace)
    assert figures.numbers(found) is None
    assert found.estimates() == {"trace": {"value": 8.0, "stderr": 1.0, "upper": 9.0}}


def test_density_counts_every_eigenvalue_once() -> None:
    """The integral of eigenvalues per decade over decades is their number, zeros left out."""
    spectrum = spectra()[0].spectrum
    grid = np.geomspace(1e-5, 1e2, 4000)
    value, lower, upper = figures.per_decade(spectrum, grid)
    assert np.trapezoid(value, np.log10(grid)) == pytest.approx(40, rel=1e-3)
    assert (lower <= value + 1e-12).all() and (value <= upper + 1e-12).all()


def test_the_negative_side_is_the_spectrum_of_minus_a() -> None:
    """Exact and with probes: the mirrored CDF is 1 - F(-x), and its density counts the negative eigenvalues."""
    values = np.concatenate([-np.geomspace(1e-2, 1, 30), np.geomspace(1e-3, 5, 120)])
    grid = np.geomspace(1e-5, 1e2, 4000)
    for s in (Spectrum.from_eigenvalues(values), slq(np.diag(values), probes=2, steps=30), esd(np.diag(values))):
        turned = figures.mirrored(s)
        x = np.array([-0.3, -0.011, 0.0101, 1.7])
        assert figures.is_signed(s)
        np.testing.assert_allclose(s.cdf(x).lower, 1 - turned.cdf(-x).upper, atol=1e-9)
        value, lower, upper = figures.per_decade(turned, grid)
        inside = (np.trapezoid(lower, np.log10(grid)), np.trapezoid(upper, np.log10(grid)))
        assert inside[0] - 0.1 <= 30 <= inside[1] + 0.1
        assert not s.is_exact or np.trapezoid(value, np.log10(grid)) == pytest.approx(30, rel=1e-3)
    assert not figures.is_signed(Spectrum.from_eigenvalues([-1e-17, 0.0, 1.0]))


def test_deflated_atoms_are_mirrored_with_their_copies() -> None:
    """Atoms of both signs, one of them twice, all deflated from the later probes: 1 - F(-x), and the truth within the band."""
    values = np.concatenate([np.linspace(-1, 1, 300), [-9.0, -4.0, 5.0, 5.0, 20.0]])
    s = slq(np.diag(values), probes=4, steps=40)
    turned = figures.mirrored(s)
    assert [r.known.size > 0 for r in s.records] == [False, True, True, True]
    np.testing.assert_allclose(turned.atoms.values, [-20.0, -5.0, 4.0, 9.0], rtol=1e-8)
    assert turned.atoms.multiplicities.tolist() == [1, 2, 1, 1]
    x = np.array(
        [-19.0, -6.0, -3.0, -0.5, 0.123, 0.8, 3.0, 8.0, 10.0]
    )  # no eigenvalue: right or left of it is the same
    there, back = turned.cdf(x), s.cdf(-x)
    for a, b in ((there.value, back.value), (there.lower, back.upper), (there.upper, back.lower)):
        np.testing.assert_allclose(a, 1 - b, atol=1e-9)
    truth = (-values[:, None] <= x).mean(0)
    assert (
        (there.certified_lower <= there.value + 1e-12).all()
        and (there.lower <= truth).all()
        and (truth <= there.upper).all()
    )
    for record, gone in zip(
        turned.records, turned.removed, strict=True
    ):  # a row of nodes stands for the atom of its place
        nodes = np.concatenate([record.eigen[0], record.known])[gone]
        np.testing.assert_allclose(nodes, np.broadcast_to(turned.atoms.values[:, None], nodes.shape), rtol=1e-6)


def test_the_page_says_how_products_were_computed() -> None:
    leaf = {
        "operator": "Jacobian",
        "of": "logits",
        "engine": "replay",
        "reason": "asked <for>",
        "product_dtype": "bfloat16",
    }
    curves = []
    for seed, noise in ((0, 0.012), (1, 0.034)):
        curves.append(Curve("J", "true", seed, Spectrum.from_eigenvalues([1.0])))
        curves[-1].spectrum.meta["operator"] = {"operator": "Gram", "of": [{**leaf, "product_noise": noise}]}
    (row,) = compose._products([(c.matrix, c.spectrum.meta["operator"]) for c in curves])
    assert row == {
        "matrix": "J", "engine": "replay", "why": "asked <for>", "dtype": "bfloat16", "relative error of a product": 0.034,
    }  # fmt: skip
    text = page.render(Report("t", "q", curves, [], products=[row]), {})
    assert "How the products were computed" in text and "asked &lt;for&gt;" in text and "0.034" in text


def test_negative_eigenvalues_are_drawn_and_counted_in_words() -> None:
    curves = [Curve("H", "init", 0, Spectrum.from_eigenvalues([-2.0, -1.0, 1e-9, 4.0]))]
    report = Report("t", "q", curves, [])
    assert (
        "those left of the strip and those in it: at initialisation, seed 0: 2 and 1."
        in page.captions(report)["landscape"]
    )
    figure = figures.panels(curves, "density", {})
    assert figure.axes[0].get_xscale() == "symlog" and figure.axes[0].get_xlim()[0] < -2


def test_zero_matrix_and_negative_eigenvalues_draw() -> None:
    curves = [
        Curve("zero", "true", 0, Spectrum.from_eigenvalues([0.0, 0.0], zeros=3)),
        Curve("negative", "true", 0, Spectrum.from_eigenvalues([-2.0, -1.0, 4.0])),
    ]
    picture = page.draw(Report("t", "q", curves, []))["landscape"]
    assert picture.startswith(b"\x89PNG")


def test_text_and_html_table_say_the_same() -> None:
    text, markup = tables.text_table(rows(), {}), tables.html_table(rows(), {}, {})
    for cell in ("10.50 ± 0.71", "21.0 ± 1.4", "−6.6 [−12.0, −1.0]", "yes", "no"):
        assert cell in text and cell in markup


def test_findings_name_what_separates_and_what_does_not(report: Report) -> None:
    first, last, chance = page.findings(report)
    assert "50 % would have the same sign on all 2 seeds by chance" in chance and "paired" in chance
    assert "effective rank" in first and "smaller with true labels" in first and "1 of 1 matrix" in first
    assert "no matrix" in last and "alpha" in last
    assert "<" not in page.as_text(first)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_page_is_self_contained_and_complete(report: Report, tmp_path) -> None:
    text = page.write(tmp_path / "report.html", report).read_text(encoding="utf-8")
    parser = _Links()
    parser.feed(text)
    assert parser.sources and all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "script" not in parser.tags and "link" not in parser.tags
    assert base64.b64decode(parser.sources[0].partition(",")[2]).startswith(b"\x89PNG")
    assert "A title &lt;with&gt; marks" in text and "A question?" in text
    for words in (
        "How to read",
        "What separates",
        "The numbers",
        "What it cost",
        "1 min 15 s",
        "256 MiB",
        "model.kind",
    ):
        assert words in text
    assert "10 of 50" in text  # the known zeros
    assert "smallest to largest of the seeds" in text  # what the band is
    for picture in ("landscape", "cdf", "effects", "alignment", "training"):
        assert re.search(f'alt="{picture}"', text)


def test_drawing_leaves_pyplot_alone(report: Report) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    page.draw(report)
    assert plt.get_fignums() == before
