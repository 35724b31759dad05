"""How results show themselves in a notebook: one sentence, numbers with their errors, a small picture.

Strings alone: no library is loaded, and a card is a few kilobytes of HTML and SVG that follow the notebook's own colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

WIDTH, HEIGHT = 340, 170  # of a picture, in pixels
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 8, 36  # of these, around its axes
# Of every picture of this package: Okabe and Ito (2008), which all eyes tell apart, and a brown. The first four, which cards have
# to do with, stand out on white and on black; pages turn their pictures' lightness in the dark.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#000000")
GREY = "#767676"  # of what is compared with: a network before training, a line that warns
POINTS = 240  # of a line at most
TICKS = 5
GAP = 0.4  # decades that a two-sided axis leaves around zero
Pixel = Callable[[np.ndarray], np.ndarray]
POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


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


# Pictures -----------------------------------------------------------------------------------------------------------------
def chart(
    marks: Sequence[Mark],
    x_label: str,
    y_label: str,
    alt: str,
    x_scale: str = "linear",
    y_scale: str = "linear",
    low: float = 1.0,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines and dots on one pair of axes, as SVG; scales are "linear", "log" and, from |x| = `low` on, "signed"."""
    marks = [_thinned(mark) for mark in marks]
    xs = _finite([mark.x for mark in marks], x_scale)
    ys = _finite([part for m in marks for part in (m.y, m.lower, m.upper) if part is not None], y_scale)
    x, x_ticks = _axis(x_scale, float(xs.min()), float(xs.max()), low, LEFT, WIDTH - RIGHT)
    ends = y_range or (float(ys.min()), float(ys.max()))
    y, y_ticks = _axis(y_scale, *ends, low, HEIGHT - BOTTOM, TOP)
    parts = []
    for place, tick in x_ticks:
        parts.append(f'<path d="M{place:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke-opacity=".15"/>')
        parts.append(_text(place, HEIGHT - BOTTOM + 13, tick, "middle"))
    for place, tick in y_ticks if y_label else ():
        parts.append(f'<path d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}" stroke-opacity=".15"/>')
        parts.append(_text(LEFT - 5, place + 3.5, tick, "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_label, "middle"))
    turned = f'transform="rotate(-90 11 {(TOP + HEIGHT - BOTTOM) / 2:.0f})"'
    parts.append(_text(11, (TOP + HEIGHT - BOTTOM) / 2, y_label, "middle", turned))
    parts += [_drawn(mark, COLOURS[mark.colour], x, y) for mark in marks]
    return _svg("".join(parts), alt, HEIGHT)


def bars(rows: Sequence[tuple[str, float, str]], alt: str) -> str:
    """A bar for each (name, length, what is written at its end), as SVG."""
    most, step, left = max((value for _, value, _ in rows), default=0.0) or 1.0, 20, 128
    parts = []
    for i, (name, value, said) in enumerate(rows):
        long = (WIDTH - left - 60) * value / most
        parts.append(_text(left - 6, i * step + 14, name, "end"))
        shade = f'fill="{COLOURS[0]}" stroke="none"'
        parts.append(f'<rect x="{left}" y="{i * step + 4}" width="{max(long, 1):.1f}" height="12" {shade}/>')
        parts.append(_text(left + long + 5, i * step + 14, said, "start"))
    return _svg("".join(parts), alt, step * len(rows) + 4)


def _svg(content: str, alt: str, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(alt)}" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" style="max-width:100%;height:auto" fill="none" stroke="currentColor" '
        f'font-size="10.5" font-family="system-ui,sans-serif">{content}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" stroke="none" fill="currentColor" {more}>{escape(text)}</text>'


def _finite(parts: Sequence[np.ndarray], scale: str) -> np.ndarray:
    """All numbers that an axis can show; 0 and 1 without any."""
    whole = np.concatenate([np.asarray(part, float) for part in parts]) if parts else np.zeros(0)
    whole = whole[np.isfinite(whole) & ((whole > 0) | (scale != "log"))]
    return whole if len(whole) else np.array([0.1, 1.0])


def _thinned(mark: Mark) -> Mark:
    keep = np.unique(np.linspace(0, len(mark.x) - 1, min(len(mark.x), POINTS)).astype(int))
    parts = {name: getattr(mark, name) for name in ("x", "y", "lower", "upper")}
    return replace(mark, **{name: np.asarray(part, float)[keep] for name, part in parts.items() if part is not None})


def _axis(
    scale: str, first: float, last: float, low: float, begin: float, end: float
) -> tuple[Pixel, list[tuple[float, str]]]:
    """(a function from values to pixels, [(pixel, what is written there)])."""

    def coordinate(v: np.ndarray) -> np.ndarray:
        v = np.asarray(v, float)
        if scale == "linear":
            return v
        with np.errstate(all="ignore"):
            far = np.log10(np.abs(v) / (low if scale == "signed" else 1.0))
            return np.sign(v) * np.maximum(far + GAP, GAP) if scale == "signed" else far

    a, b = (float(t) for t in coordinate(np.array([first, last])))
    if b - a <= 1e-12 * max(abs(a), abs(b), 1e-300):
        a, b = (a - 0.5, b + 0.5) if scale != "linear" else (a - (abs(a) or 1.0) / 10, b + (abs(b) or 1.0) / 10)
    a, b = a - 0.03 * (b - a), b + 0.03 * (b - a)

    def pixel(v: np.ndarray) -> np.ndarray:
        return begin + (coordinate(v) - a) / (b - a) * (end - begin)

    if scale == "linear":
        step = _step((b - a) / TICKS)
        values = [step * k for k in range(math.ceil(a / step), math.floor(b / step) + 1)]
        return pixel, [(float(pixel(np.array(v))), f"{0.0 if abs(v) < 1e-9 * step else v:.6g}") for v in values]
    if scale == "signed":
        top = max(abs(first), abs(last), low)
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(top)) + 1)
        chosen = list(powers)[:: -max(1, math.ceil(len(powers) / 2))]
        values = [sign * 10.0**k for k in chosen for sign in (-1, 1) if first <= sign * 10.0**k <= last]
        zero = [(float(pixel(np.array(0.0))), "0")] if first < 0 < last else []
        return pixel, zero + [(float(pixel(np.array(v))), _power(v)) for v in values]
    powers = range(math.ceil(a), math.floor(b) + 1)
    if len(powers) < 2:  # hardly a power of ten is in sight
        values = [float(f"{10.0**t:.2g}") for t in np.linspace(a, b, 4)[1:-1]]
        return pixel, [(float(pixel(np.array(v))), f"{v:g}") for v in values]
    chosen = list(powers)[:: max(1, math.ceil(len(powers) / TICKS))]
    return pixel, [(float(pixel(np.array(10.0**k))), _power(10.0**k)) for k in chosen]


def _step(width: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is no smaller.

    >>> _step(0.3), _step(7.0)
    (0.5, 10.0)
    """
    power = 10.0 ** math.floor(math.log10(width))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= width * (1 - 1e-9)))


def _power(value: float) -> str:
    """
    >>> _power(1e-3), _power(-100.0)
    ('10⁻³', '−10²')
    """
    return ("−" if value < 0 else "") + "10" + str(round(math.log10(abs(value)))).translate(POWERS)


def _drawn(mark: Mark, colour: str, x: Pixel, y: Pixel) -> str:
    """One mark in pixels."""
    top, bottom = TOP - 2.0, HEIGHT - BOTTOM + 2.0

    def placed(v: np.ndarray) -> np.ndarray:
        return np.clip(np.nan_to_num(y(v), nan=bottom, neginf=bottom, posinf=top), top, bottom)

    px, py, shown = x(mark.x), placed(mark.y), np.isfinite(mark.y) & np.isfinite(x(mark.x))
    parts = []
    if mark.lower is not None and mark.upper is not None:
        low, high = placed(mark.lower), placed(mark.upper)
        if mark.dots:
            bars = "".join(f"M{a:.1f} {b:.1f}V{c:.1f}" for a, b, c in zip(px, low, high, strict=True))
            parts.append(f'<path d="{bars}" stroke="{colour}" stroke-width="1.5"/>')
        else:
            there = np.isfinite(px)
            around = [*zip(px[there], high[there], strict=True), *zip(px[there][::-1], low[there][::-1], strict=True)]
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in around)
            parts.append(f'<polygon points="{points}" fill="{colour}" fill-opacity=".25" stroke="none"/>')
    if mark.dots:
        fill = "none" if mark.hollow else colour
        parts += [
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{fill}" stroke="{colour}"/>'
            for a, b in zip(px[shown], py[shown], strict=True)
        ]
    else:
        pen, path = "M", []
        for a, b, there in zip(px, py, shown, strict=True):
            path.append(f"{pen}{a:.1f} {b:.1f}" if there else "")
            pen = "L" if there else "M"
        parts.append(f'<path d="{"".join(path)}" stroke="{colour}" stroke-width="1.8"/>')
    return "".join(parts)
