"""Arrangements of pictures on white paper: grids, tables with numbered rows and columns, stacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from netdsl.insight.color_scale import FONT_SIZE, measure_text, render_text
from netdsl.types import Array

MAX_ENLARGED_SIDE = 64
"""The most pixels per side to which a small map is enlarged."""
_GAP, _BACKGROUND = 2, 255
_LINE = FONT_SIZE + 4
_CHARACTER = 8
"""At least the width of a digit in pixels."""
_LEAST_CAPTION = 160
"""Pixels to which a small picture is padded at least, if its caption is that long."""


def scale_to_range(maps: Array) -> Array:
    """Values as bytes, each map from its own smallest (black) to its own largest (white)."""
    axes = tuple(range(1, maps.ndim))
    low, high = maps.min(axis=axes, keepdims=True), maps.max(axis=axes, keepdims=True)
    scaled = np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low)
    return np.round(255 * scaled).astype(np.uint8)


def make_grid(maps: Array, columns: int | None = None, side: int = MAX_ENLARGED_SIDE) -> Array:
    """Maps of bytes [N,H,W,C] as one picture, row by row, as square as possible unless `columns` is
    given. Small ones are enlarged by a whole factor to at most `side` pixels."""
    n, height, width, channels = maps.shape
    columns = min(n, columns or int(np.ceil(np.sqrt(n))))
    factor = max(1, side // max(height, width))
    enlarged = enlarge(maps, factor)
    rows = -(-n // columns)
    row_pitch, column_pitch = height * factor + _GAP, width * factor + _GAP
    shape = (rows * row_pitch - _GAP, columns * column_pitch - _GAP, channels)
    grid = np.full(shape, _BACKGROUND, dtype=np.uint8)
    for i, tile in enumerate(enlarged):
        top, left = i // columns * row_pitch, i % columns * column_pitch
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return grid


def enlarge(pictures: Array, factor: int) -> Array:
    """Pictures [N,H,W,C] with each pixel repeated."""
    return pictures.repeat(factor, axis=1).repeat(factor, axis=2)


def fit_picture(picture: Array, side: int) -> Array:
    """A picture of bytes [H,W,C] whose larger side has `side` pixels. Small pictures keep sharp
    pixels; others are interpolated."""
    from PIL import Image

    height, width, channels = picture.shape
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    method = Image.Resampling.NEAREST if factor >= 3 else Image.Resampling.LANCZOS
    pixels = picture[..., 0] if channels == 1 else picture
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, method)
    return np.asarray(resized).reshape(size[1], size[0], channels)


def add_caption(picture: Array, text: str, width: int) -> Array:
    """A picture in colour with a line of text of that width below it."""
    return stack((picture, render_text(text, width)), "down", gap=_GAP)


def make_sheet(pictures: Sequence[Array], captions: Sequence[str], columns: int | None) -> Array:
    """Pictures [H,W,C] of the same size with a caption below each, in rows, as square as possible
    unless `columns` is given. The columns are as wide as the captions, but at most twice as wide as
    the pictures, or `_LEAST_CAPTION`."""
    side = pictures[0].shape[1]
    longest = max(map(measure_text, captions)) + _GAP
    width = max(side, min(longest, max(2 * side, _LEAST_CAPTION)))
    tiles = np.stack([add_caption(p, c, width) for p, c in zip(pictures, captions, strict=True)])
    return make_grid(tiles, columns, side=0)


def make_table(maps: Array, factor: int, rows: Sequence[str], columns: Sequence[str]) -> Array:
    """Maps of bytes [rows,columns,H,W,C] as a table, each pixel enlarged, with the names of rows at
    the left and of columns at the top; where there is too little room, only some are named."""
    height, width, channels = maps.shape[2:]
    has_gap = max(height, width) > 1
    tiles = maps.reshape(-1, height, width, channels)
    if has_gap:
        body = make_grid(tiles, len(columns), side=factor * max(height, width))
    else:
        body = enlarge(maps.reshape(1, len(rows), len(columns), channels), factor)[0]
    gap = _GAP if has_gap else 0
    pitches = height * factor + gap, width * factor + gap
    longest = max(map(len, columns))
    header = np.full((_LINE, body.shape[1] + _CHARACTER * longest, 3), _BACKGROUND, np.uint8)
    for i in range(0, len(columns), -(-_CHARACTER * (longest + 1) // pitches[1])):
        text = render_text(columns[i], _CHARACTER * longest)[:_LINE]
        header[: len(text), i * pitches[1] :][:, : text.shape[1]] = text
    names = np.full((len(body) + _LINE, _CHARACTER * max(map(len, rows)), 3), _BACKGROUND, np.uint8)
    for i in range(0, len(rows), -(-_LINE // pitches[0])):
        text = render_text(rows[i], names.shape[1])
        names[i * pitches[0] :][: len(text)] = text
    corner = np.full((_LINE, names.shape[1], 3), _BACKGROUND, np.uint8)
    left = np.concatenate([corner, names[: len(body)]])
    return stack((left, stack((header, body), "down", gap=0)), "right", gap=_GAP)


def stack(parts: Sequence[Array], direction: Literal["down", "right"], gap: int = 12) -> Array:
    """Pictures of any size below each other, or side by side, in colour: bytes [H,W,3]."""
    axis = 0 if direction == "down" else 1
    size = max(p.shape[1 - axis] for p in parts)
    padded = []
    for i, part in enumerate(parts):
        shape = [part.shape[0], part.shape[1], 3]
        shape[1 - axis] = size
        shape[axis] += gap if i < len(parts) - 1 else 0
        page = np.full(shape, _BACKGROUND, np.uint8)
        page[: part.shape[0], : part.shape[1]] = part  # a grey one fills all three channels
        padded.append(page)
    return np.concatenate(padded, axis=axis)
