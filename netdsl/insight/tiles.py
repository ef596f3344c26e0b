"""Arrays as pictures: scaled to bytes, enlarged, and laid side by side."""

from __future__ import annotations

import numpy as np

from netdsl.types import Array

SIDE = 64
"""Pixels that a small map is enlarged to, at most."""
_GAP, _PAPER = 2, 255


def signed(maps: Array) -> Array:
    """Weights as bytes, each map by its own largest value: zero is the middle grey."""
    largest = np.abs(maps).max(axis=tuple(range(1, maps.ndim)), keepdims=True)
    share = np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)
    return np.round(127.5 + 127.5 * share).astype(np.uint8)


def stretched(maps: Array) -> Array:
    """Values as bytes, each map from its own smallest (black) to its own largest (white)."""
    axes = tuple(range(1, maps.ndim))
    low, high = maps.min(axis=axes, keepdims=True), maps.max(axis=axes, keepdims=True)
    share = np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low)
    return np.round(255 * share).astype(np.uint8)


def tiled(maps: Array, columns: int | None = None) -> Array:
    """Maps of bytes [N,H,W,C] as one picture, row by row, as square as can be unless `columns` are
    given."""
    n, height, width, channels = maps.shape
    columns = min(n, columns or int(np.ceil(np.sqrt(n))))
    factor = max(1, SIDE // max(height, width))
    big = maps.repeat(factor, axis=1).repeat(factor, axis=2)
    rows = -(-n // columns)
    down, across = height * factor + _GAP, width * factor + _GAP
    shape = (rows * down - _GAP, columns * across - _GAP, channels)
    page = np.full(shape, _PAPER, dtype=np.uint8)
    for i, tile in enumerate(big):
        top, left = i // columns * down, i % columns * across
        page[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return page
