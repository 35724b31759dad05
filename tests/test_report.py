"""The report: numbers with their digits, tables, sentences and pictures from spectra whose answer is known."""

from __future__ import annotations

import base64
import html
import io
import math
import shutil
import subprocess
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy.integrate import trapezoid

from spectral import cards, esd, slq
from spectral.analysis.compare import Effect
from spectral.experiments.effects import Row, mean_and_error
from spectral.pages import (
    Curve,
    Line,
    Numbers,
    Prototype,
    Report,
    Verdict,
    build,
    conditions_of,
    figures,
    page,
    tables,
)  # fmt: skip
from spectral.pages import picture as pictured
from spectral.quadrature.density import is_signed, mirrored, one_eigenvalue, per_efold
from spectral.spectrum import Spectrum

SCALE = {"init": 1.0, "true": 3.0, "random": 30.0}


def spectra() -> list[Curve]:
    """Three conditions and two seeds of a log-uniform spectrum of 40 eigenvalues with ten zeros."""
    return [
        Curve("matrix", name, seed, Spectrum.from_eigenvalues(scale * np.geomspace(1e-3, 1 + seed, 40), zeros=10))
        for name, scale in SCALE.items()
        for seed in (0, 1)
    ]


def apart_by(*d: float) -> dict[str, Effect]:
    return {"true-random": Effect(*d)}


def rows() -> list[Row]:
    zero = dict.fromkeys(SCALE, (0.0, 0.0))
    apart = {"init": (30.0, 31.0), "true": (10.0, 11.0), "random": (20.0, 22.0)}
    mixed = {"init": (1.0, 2.0), "true": (1.0, 4.0), "random": (2.0, 3.0)}
    return [
        Row("matrix", "effective_rank", apart, zero, apart_by(-6.6, -12.0, -1.0)),
        Row("matrix", "stable_rank", mixed, zero, apart_by(0.0, -2.0, 2.0)),
        Row("matrix", "trace", apart, zero, apart_by(-99.0, -150.0, -50.0)),
        Row("matrix", "alpha", apart, zero, apart_by(-88.0, -120.0, -50.0), refused={"true": (False, True)}),
    ]


FOUND = Verdict("found", "What was found in <one> sentence.")


@pytest.fixture(scope="module")
def pictures(report: Report) -> dict[str, pictured.Picture]:
    """All pictures of the report; drawing them leaves pyplot alone."""
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    drawn = page.draw(report)
    assert plt.get_fignums() == before
    return drawn


@pytest.fixture(scope="module")
def report() -> Report:
    x = np.linspace(0, 1, 5)
    return Report(
        title="A title <with> marks",
        question="A question?",
        verdict=Verdict("yes", "Yes: it's 3 ± 1 < 4."),
        curves=spectra(),
        rows=rows(),
        headline=("matrix",),
        headline_metric="effective_rank",
        alignment=[Line("matrix", "true", x, x)],
        alpha=[Line("matrix", name, x + 1, x + 2, x, (1.5, 2.5), name == "random") for name in ("true", "random")],
        losses=[Line("loss", "true", x + 1, np.exp(-x))],
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
        (-2.5, 0.25, "−2.50 ± 0.25"),
    ],
)
def test_digits_follow_the_error(value: float, error: float, text: str) -> None:
    assert cards.with_error(value, error) == text


def test_error_of_several_seeds_is_their_standard_deviation_and_of_one_its_own() -> None:
    assert mean_and_error((1.0, 3.0, math.nan), (9.0, 9.0, 9.0)) == (2.0, math.sqrt(2))
    assert mean_and_error((1.0,), (0.5,)) == (1.0, 0.5)
    assert math.isnan(mean_and_error((math.nan,), (0.5,))[0])


def test_conditions_come_in_the_order_of_the_question() -> None:
    assert conditions_of([Row("m", "x", {"random": (1.0,), "other": (1.0,), "init": (1.0,)}, {})]) == [
        "init",
        "random",
        "other",
    ]


def drawn_axes(monkeypatch, draw, *arguments, **options) -> list:
    """The axes of the last panel that `draw` makes."""
    seen = []
    real = figures.Figure.add_axes
    monkeypatch.setattr(
        figures.Figure, "add_axes", lambda self, where: seen.append((self, real(self, where))) or seen[-1][1]
    )
    assert draw(*arguments, **options) is not None
    return [ax for figure, ax in seen if figure is seen[-1][0]]


def pairs(value: np.ndarray) -> Numbers:
    error = np.full(len(value), 1e-9)
    error[-1] = 0.5
    about = {"kind": "eigenvalues", "threshold": 1e-8, "complete": False, "of": "Of the matrix.", "products": 9}
    return Numbers(value, error, error <= 1e-8, about)


@pytest.mark.parametrize(("value", "scale"), [([100.0, 3.0, 0.01], "log"), ([3.0, 2.0, -1.0], "linear")])
def test_pairs_are_drawn_with_their_residuals_on_a_log_axis_where_all_are_positive(monkeypatch, value, scale) -> None:
    found = pairs(np.array(value))
    upper, lower = drawn_axes(monkeypatch, figures.numbers, found)
    assert upper.get_yscale() == scale and lower.get_yscale() == "log"
    shown = np.concatenate([np.asarray(line.get_xydata()) for line in lower.lines if line.get_linestyle() != "--"])
    np.testing.assert_array_equal(shown, np.column_stack([[1, 2, 3], found.error]))
    assert found.estimates()["eigenvalue_3"] == {"value": value[2], "residual": 0.5, "converged": False}
    table = tables.of_numbers(found).text().splitlines()
    assert table[0].split() == ["value", "residual", "converged"] and table[3].split()[-2:] == ["0.5", "no"]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_bars_of_numbers_none_of_which_is_negative_do_not_reach_below_0(monkeypatch, sign: float) -> None:
    """Counts of outliers, 0 and 3, 1.5 ± 2.1 over seeds, and 0 ± 4 of a diagonal had bars to -.6 and -4."""

    def lowest(ax) -> float:
        return min(float(bar[:, 1].min()) for bars in ax.collections for bar in bars.get_segments())

    row = Row("matrix", "outliers", {"true": (0.0, 3.0 * sign)}, {"true": (0.0, 0.0)})
    strip = drawn_axes(monkeypatch, figures.landscape, [], [row], ["matrix"], "outliers", {})[-1]
    mean, sigma = row.mean("true")
    assert lowest(strip) == pytest.approx(0.0 if sign > 0 else mean - sigma)
    given = Numbers.of({"value": np.array([2.0, 0.0, sign]), "stderr": np.array([1.0, 4.0, 1.0])}, {"kind": "diagonal"})
    (ax,) = drawn_axes(monkeypatch, figures.numbers, given)
    assert lowest(ax) == (0.0 if sign > 0 else -4.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_diagonal_lists_its_extreme_entries_and_a_trace_has_no_picture(monkeypatch, sign: float) -> None:
    value = np.array([2.0, 5.0 * sign, 1.0])
    found = Numbers.of({"value": value, "stderr": value**2}, {"kind": "diagonal"})
    assert found.estimates()["largest_entry"]["index"] == (1 if sign > 0 else 0)
    assert found.estimates()["smallest_entry"] == {
        "value": value.min(),
        "stderr": value.min() ** 2,
        "index": int(value.argmin()),
    }
    (ax,) = drawn_axes(monkeypatch, figures.numbers, found)
    assert ax.get_yscale() == ("log" if sign > 0 else "symlog")
    np.testing.assert_array_equal(ax.lines[-1].get_ydata(), np.sort(value)[::-1])
    of_trace = {"kind": "trace", "lower": math.nan, "upper": 9.0}
    found = Numbers.of({"value": np.array([8.0]), "stderr": np.array([1.0])}, of_trace)
    assert figures.numbers(found) is None
    assert found.estimates() == {"trace": {"value": 8.0, "stderr": 1.0, "upper": 9.0}}


def test_equal_areas_are_equal_numbers_of_eigenvalues() -> None:
    """The integral of lambda rho over ln lambda is the fraction of the eigenvalues, zeros left out; one of n peaks at 1.7/n."""
    spectrum = spectra()[0].spectrum
    grid = np.geomspace(1e-5, 1e2, 4000)
    value, lower, upper = per_efold(spectrum, grid)
    assert trapezoid(value, np.log(grid)) == pytest.approx(40 / 50, rel=1e-3)
    assert (lower <= value + 1e-12).all() and (value <= upper + 1e-12).all()
    alone = Spectrum.from_eigenvalues([2.0], zeros=99)
    assert per_efold(alone, np.array([2.0]))[0][0] == pytest.approx(one_eigenvalue(100))
    assert one_eigenvalue(100) == pytest.approx(0.017, abs=0.0005)


def test_the_negative_side_is_the_spectrum_of_minus_a() -> None:
    """Exact and with probes: the mirrored CDF is 1 - F(-x), and its density counts the negative eigenvalues."""
    values = np.concatenate([-np.geomspace(1e-2, 1, 30), np.geomspace(1e-3, 5, 120)])
    grid = np.geomspace(1e-5, 1e2, 4000)
    for s in (Spectrum.from_eigenvalues(values), slq(np.diag(values), probes=2, steps=30), esd(np.diag(values))):
        turned = mirrored(s)
        x = np.array([-0.3, -0.011, 0.0101, 1.7])
        assert is_signed(s)
        np.testing.assert_allclose(s.cdf(x).lower, 1 - turned.cdf(-x).upper, atol=1e-9)
        value, lower, upper = (150 * part for part in per_efold(turned, grid))
        inside = (trapezoid(lower, np.log(grid)), trapezoid(upper, np.log(grid)))
        assert inside[0] - 0.1 <= 30 <= inside[1] + 0.1
        assert not s.is_exact or trapezoid(value, np.log(grid)) == pytest.approx(30, rel=1e-3)
    assert not is_signed(Spectrum.from_eigenvalues([-1e-17, 0.0, 1.0]))


def test_deflated_atoms_are_mirrored_with_their_copies() -> None:
    """Atoms of both signs, one of them twice, all deflated from the later probes: 1 - F(-x), and the truth within the band."""
    values = np.concatenate([np.linspace(-1, 1, 300), [-9.0, -4.0, 5.0, 5.0, 20.0]])
    s = slq(np.diag(values), probes=4, steps=40)
    turned = mirrored(s)
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
    (row,) = build._products([(c.matrix, c.spectrum.meta["operator"]) for c in curves])
    assert row == {
        "matrix": "J", "engine": "replay", "why": "asked <for>", "dtype": "bfloat16", "relative error of a product": 0.034,
    }  # fmt: skip
    text = page.render(Report("t", "q", FOUND, curves, [], products=[row]), {})
    assert "How the products were computed" in text and "asked &lt;for&gt;" in text and "0.034" in text


def test_a_matrix_that_depends_on_its_batches_says_so() -> None:
    leaf = {
        "operator": "Hessian",
        "engine": "fresh",
        "loss_couples_samples": "halves do not add up",
        "statistics": "batch",
    }
    said = build._cautions({"operator": "Sum", "of": [leaf, leaf]})
    assert said == [
        "The loss couples the samples of a batch (halves do not add up): the matrix is that of the batches as cut.",
        "Batch norm works with each batch's own statistics: the matrix is that of the batches as cut.",
    ]
    assert build._cautions({"operator": "Hessian", "of": "loss"}) == []
    (row,) = build._products([("H", leaf)])
    assert row["the loss couples samples"] == "halves do not add up" and row["statistics of batch norm"] == "batch"


def test_negative_eigenvalues_are_drawn_and_counted_in_words(monkeypatch) -> None:
    curves = [Curve("H", "init", 0, Spectrum.from_eigenvalues([-2.0, -1.0, 1e-9, 4.0]))]
    caption = page.captions(Report("t", "q", FOUND, curves, []))["landscape"]
    assert "those left of the strip and those in it: init, seed 0: 2 and 1." in caption
    (ax,) = drawn_axes(monkeypatch, figures.landscape, curves, [], ["H"], "", {})
    assert ax.get_xscale() == "symlog" and ax.get_xlim()[0] < -2


def test_zero_matrix_and_negative_eigenvalues_draw() -> None:
    curves = [
        Curve("zero", "true", 0, Spectrum.from_eigenvalues([0.0, 0.0], zeros=3)),
        Curve("negative", "true", 0, Spectrum.from_eigenvalues([-2.0, -1.0, 4.0])),
    ]
    picture = page.draw(Report("t", "q", FOUND, curves, []))["landscape"]
    assert len(picture.panels) == 2 and picture.png().startswith(b"\x89PNG")


# Tables --------------------------------------------------------------------------------------------------------------
def cells_of(markup: str) -> list[list[str]]:
    """The texts of the rows of the first table in a page."""
    body = markup[markup.index("<table") : markup.index("</table>")]
    rows = []
    for row in body.split("<tr")[1:]:
        inner = row.partition(">")[2]
        parts = [part.partition(">")[2] for part in inner.replace("<td", "<th").split("<th")[1:]]
        rows.append([html.unescape(part.partition("</t")[0]).strip() for part in parts])
    return rows


def test_a_terminal_and_a_page_show_the_same_table() -> None:
    table = tables.of_rows(rows(), {"matrix": "a <matrix>"})
    text = table.text()
    for cell in ("10.50 ± 0.71", "21.0 ± 1.4", "−6.6 [−12.0, −1.0]", "yes", "no", "scale", "refused", "†1/2"):
        assert cell in text
    markup = page.template("parts.html.j2").module.table(table)
    shown = cells_of(str(markup))
    assert shown[0] == list(table.titles) and ["a <matrix>"] in shown and "a &lt;matrix&gt;" in markup
    for row in shown:
        assert all(cell in text for cell in row)
    width = {len(line) for line in text.splitlines()[:-1] if len(line.split("  ")) > 3}
    assert len(width) == 1  # columns are aligned


def test_columns_line_up_whatever_is_in_them() -> None:
    entries = [{"name": "a", "long title": "1", "x": "12345"}, {"name": "longer", "x": "6"}]
    lines = tables.of_mappings(entries).text().splitlines()
    assert lines == ["name    long title      x", "a                1  12345", "longer                  6"]
    assert tables.of_mappings([{"name": "a"}, {"name": "bc"}]).text() == "name\na\nbc"  # of one column too


def test_csv_holds_what_it_was_given() -> None:
    text = tables.csv_text([["a", "b"], [1.5, None], [math.nan, 'x "quoted", y']])
    assert text == 'a,b\n1.5,\n,"x ""quoted"", y"\n'


# Sentences -----------------------------------------------------------------------------------------------------------
def test_findings_name_what_separates_and_what_does_not(report: Report) -> None:
    said = page.findings(report)
    first, refused, mixed, scale, chance = map("".join, said)
    assert first.startswith(
        "Effective rank: smaller with true labels on every seed in 1 of 1 matrix, most clearly in matrix"
    )
    assert "10.50 ± 0.71 against 21.0 ± 1.4" in first
    assert refused == "Alpha †: not compared, its fits were refused in every matrix."
    assert mixed.startswith("On no matrix") and "stable rank" in mixed
    assert "50 % would have the same sign on all 2 seeds by chance" in chance and "paired" in chance
    assert scale.startswith("Scale says how steep a network is") and "trace in 1 of 1 matrix" in scale


@pytest.mark.parametrize("lost", [1, 2])
def test_a_refused_fit_is_marked_whether_or_not_it_left_a_number(lost: int) -> None:
    values = {"true": (math.nan, 2.0)[:2] if lost == 1 else (math.nan, math.nan), "random": (1.0, 1.5)}
    flags = {"true": (True, lost == 2)}
    row = Row("matrix", "alpha", values, dict.fromkeys(values, (0.1, 0.1)), refused=flags)
    assert tables.number(row, "true") == ("2.00 ± 0.10 †1/2" if lost == 1 else "refused †2/2")
    assert tables.number(row, "random") == "1.25 ± 0.35"
    other = Row("matrix", "effective_rank", values | {"true": (3.0, 4.0)}, {}, apart_by(2.0, 1.0, 3.0))
    said = list(map("".join, page.findings(Report("t", "q", FOUND, [], [other, row]))))
    assert "Alpha †: not compared, its fits were refused in every matrix." in said
    single = Row("matrix", "alpha", {"init": (math.nan,)}, {"init": (math.nan,)}, refused={"init": (True,)})
    assert tables.number(single, "init") == "refused †"


def test_neither_scale_nor_a_refused_fit_is_ever_most_clear(pictures) -> None:
    """However large the effect: not in the sentences as separating, not in the picture, not set apart in the table."""
    for metric in ("trace", "alpha"):
        row = next(row for row in rows() if row.metric == metric)
        assert not row.candidate
        alone = Report("t", "q", FOUND, [], [row])
        assert not any("most clearly" in "".join(finding) for finding in page.findings(alone))
        assert "effects" not in page.draw(alone)
        ((_, (entry,)),) = tables.of_rows([row], {}).groups
        assert not entry.strong and entry.cells[-1] in ("scale", "refused")
    picture = pictures["effects"]
    assert "effective rank" in picture.panels[0].alt and "trace" not in picture.panels[0].alt


def test_the_names_of_all_metrics_fit_beside_their_effects() -> None:
    for name in build.NAMES.values():
        row = Row("matrix", "x", {}, {}, apart_by(1.0, 0.0, 2.0))
        (ax,) = figures.effects([row], {"x": name}).panels[0].figure.axes
        assert min(label.get_window_extent().x0 for label in ax.get_yticklabels()) >= 0, name


@pytest.mark.parametrize("reach", [2.0, 20.0, 90.0])
def test_no_letter_of_a_picture_is_cut_off_or_upon_another(pictures, reach) -> None:
    narrow = figures.effects([Row(matrix, "x", {}, {}, apart_by(1.0, 0.0, reach)) for matrix in ("a", "b")], {})
    boxes = [label.get_window_extent() for label in narrow.panels[0].figure.axes[0].get_xticklabels()]
    assert all(left.x1 + 5 < right.x0 for left, right in pairwise(boxes))
    for name, picture in {**pictures, "narrow": narrow}.items():
        for panel in picture.panels:
            axes = [] if panel.figure is None else panel.figure.axes
            for text in (
                text for ax in axes for text in (ax.xaxis.label, ax.yaxis.label, *ax.texts, *panel.figure.texts)
            ):
                low, high = text.get_window_extent().get_points()
                assert (low >= 0).all() and (high <= panel.figure.bbox.max).all(), (name, text.get_text())


def test_refused_fits_are_hollow_where_they_are_drawn(monkeypatch, report: Report) -> None:
    (ax,) = drawn_axes(monkeypatch, figures.lines, report.alpha, {}, x_label="xmin", y_label="alpha")
    fill = {line.get_color(): line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"}
    assert fill == {cards.COLOURS[0]: cards.COLOURS[0], cards.COLOURS[1]: "white"}
    alpha = next(row for row in rows() if row.metric == "alpha")
    style = figures.styles(["init", "true", "random"])
    strip = drawn_axes(monkeypatch, figures.landscape, [], [alpha], ["matrix"], "alpha", {})[-1]
    hollow = [line for line in strip.lines if line.get_fillstyle() == "none"]
    assert [line.get_color() for line in hollow] == [style["true"][0]] and float(hollow[0].get_ydata()[0]) == 11.0


# Pictures ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 3, 8, 9, 12, 40])
@pytest.mark.parametrize("ordered", [True, False])
def test_no_two_conditions_look_alike(count: int, ordered: bool) -> None:
    names = [f"n{i}" for i in range(count)]
    found = figures.styles(["init", "true", *names], {n: float(i) for i, n in enumerate(names)} if ordered else None)
    assert len({colour for colour, _ in found.values()}) == count + 2 or count > 8
    assert len(set(found.values())) == count + 2
    assert found["true"] == (cards.COLOURS[0], "solid")


def test_a_legend_of_many_long_names_fits_its_picture() -> None:
    keys = tuple(pictured.Key(f"{i}: a configuration with a long name, lr 0.00{i}", "#0072B2") for i in range(12))
    panel = pictured.Panel(np.zeros((100, int(3.6 * pictured.DPI), 4), dtype=np.uint8), "")
    picture = pictured.Picture((panel,), keys, "a note")
    strip = pictured._drawn(picture._legend(panel.width), panel.width)
    assert strip.shape[1] == panel.width and strip.shape[0] > 12 * 0.15 * pictured.DPI  # one below the other
    edges = np.concatenate([strip[:, :3, :3], strip[:, -3:, :3]], axis=1)
    assert (edges == 255).all()  # nothing is cut off
    assert (strip[:3, :, :3] == 255).all() and (strip[-3:, :, :3] == 255).all()


def test_the_file_of_a_picture_holds_every_panel() -> None:
    curves = [Curve(f"m{i}", "true", 0, Spectrum.from_eigenvalues(np.geomspace(1, 10 + i, 9))) for i in range(4)]
    picture = figures.distributions(curves, {})
    whole = Image.open(io.BytesIO(picture.png(columns=2)))
    assert whole.width == 2 * picture.panels[0].width and whole.height > 2 * picture.panels[0].height
    assert all(panel.alt.startswith("Distribution function of the eigenvalues of m") for panel in picture.panels)


def test_the_vector_file_has_the_panels_where_the_other_has_them() -> None:
    curves = [Curve(f"m{i}", "true", 0, Spectrum.from_eigenvalues(np.geomspace(1, 10 + i, 9))) for i in range(3)]
    picture = figures.distributions(curves, {})
    text = picture.svg(columns=2)
    parts = [child.attrib for child in ElementTree.fromstring(text)]
    width, height = (side * 72 / pictured.DPI for side in (picture.panels[0].width, picture.panels[0].height))
    legend = parts.pop()
    top = float(legend["height"])
    found = [[float(part[name]) for name in ("x", "y", "width", "height")] for part in parts]
    expected = [[x * width, top + y * height, width, height] for x, y in ((0, 0), (1, 0), (0, 1))]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert (legend["x"], legend["y"]) == ("0", "0") and picture.svg(columns=2) == text
    whole = Image.open(io.BytesIO(picture.png(columns=2)))
    size = ElementTree.fromstring(text).attrib["viewBox"].split()[2:]
    np.testing.assert_allclose([float(x) * pictured.DPI / 72 for x in size], whole.size, atol=1.5)


def test_outliers_are_counted_against_classes_and_laws_overlaid(monkeypatch) -> None:
    lines = [
        Line("G", state, np.array([3.0, 4.0]), np.array([2.0, y])) for state, y in (("init", 12.0), ("true", math.nan))
    ]
    (ax,) = drawn_axes(monkeypatch, figures.counts, lines, {})
    drawn = [line.get_ydata() for line in ax.lines]
    assert [list(y[[0, -1]]) for y in drawn[:3]] == [[2, 3], [3, 4], [6, 12]] and list(drawn[3]) == [2, 12]
    assert "init: 2 of 3, 12 of 4; true: 2 of 3" in figures.counts(lines, {}).panels[0].alt
    curve = Curve("G", "true", 0, Spectrum.from_eigenvalues(np.append(np.linspace(1, 2, 50), 9.0)))
    stem = Line("G", "true", np.array([9.0]), np.array([0.03]))
    law = Line("G", "true", np.array([1.0, 2.0]), np.array([0.5, 0.5]))
    ax = drawn_axes(monkeypatch, partial(figures.landscape, theory=[law], stems=[stem]), [curve], [], ["G"], "", {})[0]
    dashed = [line for line in ax.lines if line.is_dashed()]
    assert list(dashed[0].get_xdata()) == [1, 2] and list(ax.lines[-1].get_xdata()) == [9]


def test_samples_are_shown_at_both_ends_with_class_and_size() -> None:
    items = [Prototype(end, np.eye(8) * k, k, 10.0 / (k + 1)) for end in ("largest", "smallest") for k in range(5)]
    picture = figures.prototypes(items)
    assert [panel.alt[:25] for panel in picture.panels] == ["Samples with the largest,", "Samples with the smallest"]
    assert "class 1 5×, class 2 3.3×" in picture.panels[0].alt
    assert len(picture.panels[0].figure.axes) == 5
    page_text = page.render(
        Report("t", "q", FOUND, [], [], prototypes=items, expectation="a <tail>", reference="Who"), {}
    )
    assert "a &lt;tail&gt; <span>Who.</span>" in page_text


def test_alternative_texts_say_what_is_drawn(pictures) -> None:
    alt = pictures["landscape"].panels[0].alt
    assert alt.startswith(
        "Eigenvalues of matrix, density on logarithmic axes: init from 0.001 to 2; true from 0.003 to 6"
    )
    assert "Effective rank: init 30.50 ± 0.71, true 10.50 ± 0.71, random 21.0 ± 1.4." in alt
    for picture in pictures.values():
        assert all(len(panel.alt) > 30 for panel in picture.panels)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.alts: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.alts += [value or "" for name, value in attrs if name == "alt"]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["style"], ["title"]) and data.strip():
            self.texts.append(" ".join(data.split()))


def test_page_is_self_contained_and_complete(report: Report, pictures, tmp_path) -> None:
    text = page.write(tmp_path / "report.html", report, pictures).read_text(encoding="utf-8")
    parser = _Links()
    parser.feed(text)
    assert parser.sources and all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "script" not in parser.tags and "link" not in parser.tags
    assert base64.b64decode(parser.sources[0].partition(",")[2]).startswith(b"\x89PNG")
    assert parser.texts[:3] == ["A title <with> marks", "A question?", "Yes: it's 3 ± 1 < 4."]  # the answer comes first
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
    assert "smallest to largest" in text  # what the band is
    assert set(pictures) == {"landscape", "cdf", "effects", "alignment", "alpha", "training"}
    for name, picture in pictures.items():
        assert f'id="{name}"' in text
        assert all(panel.alt in parser.alts for panel in picture.panels)
    assert len(parser.alts) == len(parser.sources) == sum(len(picture.panels) for picture in pictures.values())
    settings = text[text.rindex("<details", 0, text.index("model.kind")) :]
    assert settings.startswith("<details><summary>Settings")  # folded


def test_a_page_shows_diagonal_blocks_in_one_panel_with_their_numbers() -> None:
    parts = [
        Curve("Hessian, before training", f"layer.{i}", 0, Spectrum.from_eigenvalues([0.1, 10.0**i])) for i in range(12)
    ]
    table = [{"matrix": c.matrix, "block": c.condition, "parameters": "2", "λmax": "1.0 ± 0.1"} for c in parts]
    given = Report("t", "q?", FOUND, spectra()[:1], [], blocks=parts, parts=table)
    pictures = page.draw(given)
    assert len(pictures["blocks"].panels) == 1
    assert len({(key.colour, key.dash) for key in pictures["blocks"].keys}) == 12
    text = page.render(given, pictures)
    assert 'id="blocks"' in text and "layer.11" in text and "The numbers of each block" in text
    assert "blocks" not in page.draw(Report("t", "q?", FOUND, spectra()[:1], []))


def test_everything_that_a_page_is_given_is_escaped(report: Report) -> None:
    """A name, a sentence or a setting from somewhere else is text on the page, never markup."""
    evil = "<img src=x onerror=alert(1)>'\""
    given = Report(
        title=evil,
        question=evil,
        verdict=Verdict("found", evil),
        curves=[Curve(evil, evil, 0, Spectrum.from_eigenvalues([1.0, 2.0]))],
        rows=[Row(evil, evil, {evil: (1.0,)}, {evil: (0.0,)})],
        training=[{evil: evil}],
        trends=[{evil: evil}],
        products=[{"matrix": evil, evil: evil}],
        labels={f"note:{evil}": evil},
        facts=(evil,),
        config={evil: {evil: evil}},
        environment={"spectral": evil},
        cost={"products": 1},
    )
    text = page.render(given, page.draw(given))
    assert "<img src=x" not in text and text.count("&lt;img src=x onerror") >= 12
    parser = _Links()
    parser.feed(text)
    assert all(source.startswith("data:image/png") for source in parser.sources)


def test_a_page_needs_no_wide_screen() -> None:
    """Rows become cards on a narrow screen: every cell says of which column it is."""
    text = page.render(Report("t", "q", FOUND, spectra(), rows(), headline=("matrix",)), {})
    body = text[text.index("<table") : text.index("</table>")]
    titles = [html.escape(title, quote=False) for title in tables.of_rows(rows(), {}).titles]
    assert all(f'data-label="{title}"' in body for title in titles)
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text
    for kind in ("prefers-color-scheme: dark", "@media print", "@media screen and (max-width: 50rem)"):
        assert kind in text


FRAME = """<!doctype html><iframe id=f src="file://{page}" width={width} height=900 style="border:0"></iframe><script>
f.onload = () => {{
  const page = f.contentDocument
  page.querySelectorAll("details").forEach(d => d.open = true)
  document.title = page.documentElement.scrollWidth + " " + page.documentElement.clientWidth
}}</script>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways_in_a_real_browser(report: Report, tmp_path, width: int) -> None:
    path = page.write(tmp_path / "report.html", report)
    (tmp_path / "frame.html").write_text(FRAME.format(page=path, width=width))
    shown = subprocess.run(
        [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
            "--no-first-run", "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'frame.html'}",
        ],
        capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    inner, outer = map(int, shown.partition("<title>")[2].partition("</title>")[0].split())
    assert inner == outer and 0 <= width - outer < 20
