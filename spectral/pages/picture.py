"""Panels and what puts them together: pixels for a page, lines and letters for print, one legend for all."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image  # which matplotlib brings

# by the names that style sheets have
DASHES: dict[str, Any] = {"solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1.2, 1.6))}
DPI = 200
WIDE, NARROW = 4.6, 3.6  # inches, of a picture of one panel and of more
LEFT, TOP, BOTTOM, RIGHT = 0.68, 0.32, 0.52, 0.14  # inches around axes


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    colour: str
    dash: str = "solid"


@dataclass(frozen=True)
class Panel:
    """One pair of axes (or two, one below the other) as pixels (H, W, 4), with what it shows in words."""

    pixels: np.ndarray
    alt: str
    figure: Figure | None = None

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    def png(self) -> bytes:
        return _encoded(self.pixels)

    def svg(self, x: float, y: float) -> str:
        """Its lines and letters as a part of a larger picture, its upper left corner at (x, y) in points."""
        return "" if self.figure is None else _vector(self.figure, x, y)


@dataclass(frozen=True)
class Picture:
    """Panels of one width, what their colours mean, and what lines and bands are.

    In one picture they lie in rows of one height; a page has each at its own, so that a phone shows no hole below a shorter one.
    """

    panels: tuple[Panel, ...]
    keys: tuple[Key, ...] = ()
    note: str = ""

    def _size(self) -> tuple[int, int]:
        """(height, width) of a cell that holds any of the panels."""
        return max(panel.height for panel in self.panels), self.panels[0].width

    def png(self, columns: int = 4) -> bytes:
        """All panels in rows of at most `columns`, under the legend."""
        columns = min(columns, len(self.panels))
        height, width = self._size()
        rows = -(-len(self.panels) // columns)
        sheet = np.full((rows * height, columns * width, 4), 255, dtype=np.uint8)
        for place, panel in enumerate(self.panels):
            y, x = divmod(place, columns)
            sheet[y * height : y * height + panel.height, x * width : (x + 1) * width] = panel.pixels
        legend = self._legend(sheet.shape[1])
        return _encoded(sheet if legend is None else np.concatenate([_drawn(legend, sheet.shape[1]), sheet]))

    def svg(self, columns: int = 4) -> bytes:
        """The same as lines and letters, which print at any size."""
        columns = min(columns, len(self.panels))
        height, width = (side * 72 / DPI for side in self._size())
        legend = self._legend(round(columns * width * DPI / 72))
        top = 0.0 if legend is None else 72 * legend.get_size_inches()[1]
        places = [divmod(place, columns) for place in range(len(self.panels))]
        parts = [panel.svg(x * width, top + y * height) for panel, (y, x) in zip(self.panels, places, strict=True)]
        parts += [] if legend is None else [_vector(legend, 0, 0)]
        whole = columns * width, top + -(-len(self.panels) // columns) * height
        size = 'width="{0:g}pt" height="{1:g}pt" viewBox="0 0 {0:g} {1:g}"'.format(*whole)
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{"".join(parts)}</svg>\n'.encode()

    def _legend(self, width: int) -> Figure | None:
        """The legend as a strip of `width` pixels, in as many columns as fit."""
        if not (self.keys or self.note):
            return None
        longest = max([len(key.label) for key in self.keys], default=1)
        columns = max(1, min(len(self.keys), int(width / DPI / (0.6 + 0.085 * longest))))
        size = min(10.5, 72 * (width / DPI - 0.8) / (0.64 * longest))  # a long name in one column is written smaller
        lines = -(-len(self.keys) // columns) + bool(self.note)
        figure = Figure(figsize=(width / DPI, 0.12 + 0.21 * lines), dpi=DPI)
        handles = [Line2D([], [], color=k.colour, ls=DASHES[k.dash], lw=2, label=k.label) for k in self.keys]
        style: dict[str, Any] = {"fontsize": size, "title": self.note, "title_fontsize": min(9, size)}
        figure.legend(handles=handles, loc="center", ncols=columns, frameon=False, **style)
        return figure


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _drawn(figure: Figure, width: int) -> np.ndarray:
    """A figure as pixels, filled up with white or cut to a width."""
    strip = _pixels(figure)[:, :width]
    return np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255)


def shot(figure: Figure, alt: str) -> Panel:
    """A figure as a panel."""
    figure.set_dpi(DPI)
    return Panel(_pixels(figure).copy(), alt, figure)


def _vector(figure: Figure, x: float, y: float) -> str:
    """A figure as an SVG element at (x, y) in points; the same figure gives the same text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "spectral"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    head, body = text[text.index("<svg ") :].split(">", 1)
    size = re.findall(r'\b(width|height|viewBox)="([^"]+)"', head)
    kept = " ".join(f'{name}="{value.removesuffix("pt")}"' for name, value in size)
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" x="{x:g}" y="{y:g}" {kept}>{body}'


def _encoded(pixels: np.ndarray) -> bytes:
    """The pixels as PNG of 256 colours, which the eye does not tell from all of them, at less than half the size."""
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, :3])).quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def on_axes(
    draw: Callable[..., None],
    title: str,
    alt: str,
    width: float,
    axes: Sequence[tuple[float, float]],
    left: float = LEFT,
) -> Panel:
    """`draw(*axes)` on axes one below the other: (height, space below) in inches; `left` inches are for the labels of y.

    Margins are fixed: axes of neighbours stand in one line, and nothing has to be drawn twice to find out its size.
    """
    tall = TOP + sum(map(sum, axes))
    figure = Figure(figsize=(width, tall))
    size = min(10.0, (width - 0.1) * 72 / (0.64 * max(len(title), 1)))
    figure.text(0.5, 1 - 0.05 / tall, title, ha="center", va="top", fontsize=size, fontweight="bold")
    made, y = [], tall - TOP
    for height, below in axes:
        y -= height
        ax = figure.add_axes((left / width, y / tall, (width - left - RIGHT) / width, height / tall))
        y -= below
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color("#555555")
        ax.tick_params(which="both", labelsize=9, color="#555555")
        ax.yaxis.label.set_fontsize(9.5)
        ax.set_axisbelow(True)
        ax.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
        made.append(ax)
    draw(*made)
    return shot(figure, alt)
