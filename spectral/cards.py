"""How results show themselves in a notebook: one sentence, numbers with their errors, a small picture.

A card is some kilobytes of HTML and SVG that follow the notebook's own colours; matplotlib is loaded with the first picture.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

WIDTH, HEIGHT = 340, 170  # of a picture, in pixels
# Of every picture of this package: Okabe and Ito (2008), which all eyes tell apart, and a brown. The first four, which cards have
# to do with, stand out on white and on black; pages turn their pictures' lightness in the dark.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#000000")
GREY = "#767676"  # of what is compared with: a network before training, a line that warns
POINTS = 160  # of a line at most
STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 1.4, "lines.markersize": 4.5,
}  # fmt: skip
# What matplotlib writes that would reach beyond its own picture in a notebook: a style for all elements, names that come again.
HUNDREDTHS = re.compile(r"(\.\d\d)\d+")  # of a pixel are enough
ELEMENT = re.compile(r"<[^>]*>")  # where pixels stand: between them are words and numbers, of which nothing is cut
FEW = 100.0  # end to end of a logarithmic axis: decades are too few to be its ticks
MANY_DECADES = 1e3  # the same: ticks between decades are too many
BEYOND = re.compile(r"<style.*?</style>|<metadata.*?</metadata>|<!--.*?-->|\n| id=\"[^\"]*_\d+\"", re.DOTALL)


@dataclass(frozen=True)
class Mark:
    """y against x, (n,) each: a line, or `dots`; between `lower` and `upper` a band, or bars."""

    x: np.ndarray
    y: np.ndarray
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    dots: bool = False
    hollow: bool = False
    colour: int = 0

    def draw(self, ax: Any) -> None:
        """Put it on matplotlib's axes."""
        keep = np.unique(np.linspace(0, len(self.x) - 1, min(len(self.x), POINTS)).astype(int))
        x, y, shade = self.x[keep], self.y[keep], COLOURS[self.colour]
        ax.plot(x, y, "o" if self.dots else "-", color=shade, markerfacecolor="none" if self.hollow else shade)
        if self.lower is not None and self.upper is not None and self.dots:
            ax.vlines(x, self.lower[keep], self.upper[keep], color=shade, linewidth=1)
        elif self.lower is not None and self.upper is not None:
            ax.fill_between(x, self.lower[keep], self.upper[keep], color=shade, alpha=0.25, linewidth=0)


def card(sentence: str, rows: Sequence[tuple[str, str]], picture: str = "") -> str:
    """A sentence over a picture and rows of (what, how much).

    >>> card("Two < three.", [("trace", "2 ± 0.1")]).count("Two &lt; three.")
    1
    """
    left, cell = "text-align:left;vertical-align:top", "padding:.1em .8em .1em 0;border:0;background:none"
    table = "".join(
        f'<tr><td style="{left};{cell};opacity:.7">{escape(a)}</td><td style="{left};{cell}">{escape(b)}</td></tr>'
        for a, b in rows
    )
    return (
        f'<div style="max-width:46em"><p style="margin:.2em 0 .5em">{escape(sentence)}</p>'
        f'<div style="display:flex;flex-wrap:wrap;gap:.3em 1.6em;align-items:center">{picture}'
        f'<table style="border-collapse:collapse;margin:0;max-width:100%">{table}</table></div></div>'
    )


def in_columns(lines: Sequence[Sequence[str]], heads: int) -> list[str]:
    """Lines of cells, each column as wide as its texts need, those after the first `heads` set to the right.

    >>> in_columns([["", "trace"], ["MLP", "2.0"]], heads=1)
    ['     trace', 'MLP    2.0']
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [str.ljust] * heads + [str.rjust] * (len(widths) - heads)
    padded = ([side(cell, w) for side, cell, w in zip(sides, line, widths, strict=True)] for line in lines)
    return ["  ".join(cells).rstrip() for cells in padded]


def counted(count: float, noun: str) -> str:
    """So many of them.

    >>> counted(1, "eigenvalue"), counted(2000, "eigenvalue")
    ('1 eigenvalue', '2,000 eigenvalues')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def size(count: float) -> str:
    """Bytes in a unit of which there are less than a thousand."""
    units = iter(("bytes", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while count >= 1000 and unit != "TiB":
        count, unit = count / 1024, next(units)
    return f"{count:.3g} {unit}"


def apart(a: float, b: float, least: int = 2) -> tuple[str, str]:
    """A number and its limit, with as many digits, `least` at least, as tell them apart.

    >>> apart(0.1, 0.3), apart(0.1635, 0.1629)
    (('0.1', '0.3'), ('0.164', '0.163'))
    >>> apart(3760.0, 50.0)
    ('3760', '50')
    """
    for digits in range(least, 18):
        x, y = (f"{z:.0f}" if 10**digits <= abs(z) < 1e9 else f"{z:.{digits}g}" for z in (a, b))
        if x != y:
            break
    return x, y


def whiskers(value: np.ndarray, error: np.ndarray) -> np.ndarray:
    """How far bars reach below and above numbers that belong together, (2, n): below 0 only if one of them is negative.

    >>> whiskers(np.array([3.0, 1.0]), np.array([0.5, 2.0]))
    array([[0.5, 1. ],
           [0.5, 2. ]])
    """
    return np.array([error if (value < 0).any() else np.minimum(error, value), error])


def with_error(value: float, error: float) -> str:
    """The value and its error, rounded to two significant digits of the error.

    >>> with_error(3.14159, 0.0123), with_error(351234.0, 1200.0), with_error(12.3456, 0.0)
    ('3.142 ± 0.012', '(3.512 ± 0.012)e5', '12.35')
    >>> with_error(-0.38, 0.32)  # the sign of print, as everywhere on a page
    '−0.38 ± 0.32'
    >>> with_error(0.5, float("nan")), with_error(float("nan"), 1.0)
    ('0.5000 ± ?', '–')
    """
    if not math.isfinite(value):
        return "–"
    power = math.floor(math.log10(abs(value))) if value else 0
    far = not -3 <= power < 5
    if far:
        value, error = value / 10.0**power, error / 10.0**power
    if not math.isfinite(error):
        text = f"{_significant(value)} ± ?"
    elif error <= 0 or (value and abs(error / value) < 1e-9):
        text = _significant(value)
        return f"{text}e{power}" if far else text
    else:
        digits = min(max(1 - math.floor(math.log10(error)), 0), 9)
        text = f"{value:.{digits}f} ± {error:.{digits}f}".replace("-", "−")
    return f"({text})e{power}" if far else text


def _significant(value: float) -> str:
    """A number of moderate size with four significant digits and no exponent."""
    power = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(3 - power, 0)}f}".replace("-", "−")


class Sentence:
    """A result whose sentence is its card."""

    def _repr_html_(self) -> str:
        return card(f"{self}.", [])


# Pictures -----------------------------------------------------------------------------------------------------------------
def svg(draw: Callable[[Any], Any], alt: str, height: int = HEIGHT) -> str:
    """What `draw(axes)` puts on matplotlib's axes as a small SVG in the colours of the text around it; `alt` says what it is."""
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    content = io.StringIO()
    with style.context(["default", STYLE]):  # whatever style the notebook has for its own pictures
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        figure.patch.set_visible(False)
        ax = figure.add_subplot()
        ax.patch.set_visible(False)
        draw(ax)
        FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None})
    drawn = BEYOND.sub("", content.getvalue().partition("<svg ")[2].partition(">")[2])
    drawn = ELEMENT.sub(lambda found: HUNDREDTHS.sub(r"\1", found[0]), drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{escape(alt)}" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'style="max-width:100%;height:auto" fill="currentColor">{drawn.replace("#000000", "currentColor")}'
    )


def chart(
    marks: Sequence[Mark], x_label: str, y_label: str, alt: str, x_scale: str = "linear", y_range: Any = None
) -> str:
    """Lines and dots on one pair of axes, as SVG; without a name y has no ticks."""

    def draw(ax: Any) -> None:
        for mark in marks:
            mark.draw(ax)
        ax.set(xlabel=x_label, ylabel=y_label, xscale=x_scale, ylim=y_range)
        thin_ticks(ax)
        if all((mark.x == np.round(mark.x)).all() for mark in marks):
            ax.xaxis.get_major_locator().set_params(integer=True)
        if not y_label:
            ax.set_yticks([])

    return svg(draw, alt)


def thin_ticks(ax: Any) -> None:
    """Labels on each logarithmic axis that can be read: at most six decades, or plain numbers where there are hardly two."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            if high > FEW * low:
                axis.set_major_locator(LogLocator(numticks=7))
                axis.set_minor_formatter(NullFormatter())
            else:
                wide = high > 4 * low
                axis.set_major_locator(
                    LogLocator(subs=(1.0, 2.0, 5.0)) if wide else MaxNLocator(6, steps=[1, 2, 5, 10])
                )
                axis.set_major_formatter(ScalarFormatter())
            if not FEW * low < high <= MANY_DECADES * low:
                axis.set_minor_locator(NullLocator())


def bars(rows: Sequence[tuple[str, float, str]], alt: str) -> str:
    """A bar for each (name, length, what is written at its end), as SVG."""

    def draw(ax: Any) -> None:
        names, lengths, said = zip(*rows, strict=True)
        ax.bar_label(ax.barh(names, lengths, color=COLOURS[0], height=0.6), said, padding=3)
        ax.invert_yaxis()
        ax.margins(x=0.15)

    return svg(draw, alt, 22 * len(rows) + 30)
