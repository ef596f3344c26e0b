"""The scale beside a picture: a bar of a colour map with numbers, and lines of text."""

from __future__ import annotations

from typing import Any

import numpy as np

from netdsl.insight.colormap import ColorMap
from netdsl.types import Array

FONT_SIZE = 13
"""Pixels of a line of text."""
_BAR_WIDTH, _GAP, _MARGIN = 16, 6, 8
_INK, _PAPER = 32, 255


def render_scale(
    colors: ColorMap, low: float, high: float, height: int, middle: bool = True
) -> Array:
    """A vertical bar, `high` at the top and `low` at the bottom, with these numbers and, if it is
    tall enough, the one in the middle: bytes [height, width, 3]."""
    height = max(height, 3 * FONT_SIZE)
    bar_top, bar_height = FONT_SIZE // 2, height - FONT_SIZE
    marks = [(0.0, high), (1.0, low)]
    if middle and bar_height >= 4 * FONT_SIZE:
        marks.insert(1, (0.5, (low + high) / 2))
    labels = [(share, format_value(value)) for share, value in marks]
    width = _MARGIN + _BAR_WIDTH + _GAP + max(measure_text(text) for _, text in labels)
    page = np.full((height, width, 3), _PAPER, np.uint8)
    ramp = colors(np.linspace(1, 0, bar_height))[:, None]
    page[bar_top : bar_top + bar_height, _MARGIN : _MARGIN + _BAR_WIDTH] = ramp
    picture, pen = _open_pen(page)
    for share, text in labels:
        y = bar_top + share * (bar_height - 1)
        pen.text(
            (_MARGIN + _BAR_WIDTH + _GAP, y), text, fill=(_INK,) * 3, font=_font(), anchor="lm"
        )
    return np.asarray(picture)


def format_value(value: float) -> str:
    """A value with three significant digits, and all digits of its integer part below a million:
    1653 instead of 1.65e+03."""
    whole = 1000 <= abs(value) < 10**6
    return f"{value:.0f}" if whole else f"{value + 0.0:.3g}"  # no -0


def render_text(text: str, width: int) -> Array:
    """A line of text on white, bytes [line height, width, 3]; dots stand for what is too long."""
    if measure_text(text) > width:
        while text and measure_text(f"{text}...") > width:
            text = text[:-1]
        text = f"{text}..."
    page = np.full((FONT_SIZE + _GAP, width, 3), _PAPER, np.uint8)
    picture, pen = _open_pen(page)
    pen.text((0, FONT_SIZE // 2 + 1), text, fill=(_INK,) * 3, font=_font(), anchor="lm")
    return np.asarray(picture)


def _open_pen(page: Array) -> tuple[Any, Any]:
    from PIL import Image, ImageDraw

    picture = Image.fromarray(page)
    return picture, ImageDraw.Draw(picture)


def _font() -> Any:
    """Pillow's own font, which is the same on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(FONT_SIZE)


def measure_text(text: str) -> int:
    """The width of a text in pixels."""
    return int(np.ceil(_font().getlength(text)))
