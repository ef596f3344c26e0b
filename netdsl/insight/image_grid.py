"""Arrays as pictures: scaled to bytes, enlarged, and arranged in a grid."""

from __future__ import annotations

import numpy as np

from netdsl.types import Array

MAX_ENLARGED_SIDE = 64
"""The most pixels per side to which a small map is enlarged."""
_GAP, _BACKGROUND = 2, 255


def scale_signed(maps: Array) -> Array:
    """Weights as bytes, each map scaled by its own largest magnitude: zero is middle grey."""
    largest = np.abs(maps).max(axis=tuple(range(1, maps.ndim)), keepdims=True)
    scaled = np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)
    return np.round(127.5 + 127.5 * scaled).astype(np.uint8)


def scale_to_range(maps: Array) -> Array:
    """Values as bytes, each map from its own smallest (black) to its own largest (white)."""
    axes = tuple(range(1, maps.ndim))
    low, high = maps.min(axis=axes, keepdims=True), maps.max(axis=axes, keepdims=True)
    scaled = np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low)
    return np.round(255 * scaled).astype(np.uint8)


def make_grid(maps: Array, columns: int | None = None) -> Array:
    """Maps of bytes [N,H,W,C] as one picture, row by row, as square as possible unless `columns` is
    given."""
    n, height, width, channels = maps.shape
    columns = min(n, columns or int(np.ceil(np.sqrt(n))))
    factor = max(1, MAX_ENLARGED_SIDE // max(height, width))
    enlarged = maps.repeat(factor, axis=1).repeat(factor, axis=2)
    rows = -(-n // columns)
    row_pitch, column_pitch = height * factor + _GAP, width * factor + _GAP
    shape = (rows * row_pitch - _GAP, columns * column_pitch - _GAP, channels)
    grid = np.full(shape, _BACKGROUND, dtype=np.uint8)
    for i, tile in enumerate(enlarged):
        top, left = i // columns * row_pitch, i % columns * column_pitch
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return grid
