"""Colour maps: numbers from 0 to 1 as colours, interpolated between a few control points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from netdsl.types import Array


@dataclass(frozen=True)
class ColorMap:
    """Colours at evenly spaced positions from 0 to 1, as hexadecimal RGB."""

    name: str
    colors: tuple[str, ...]

    @cached_property
    def _points(self) -> Array:
        """The control points, [points, 3]."""
        return np.array([list(bytes.fromhex(c)) for c in self.colors], np.float64)

    def __call__(self, values: Array) -> Array:
        """The colours of values [...] as bytes [..., 3], linear between control points. Values
        outside 0 to 1 have the colour of the nearer end, and NaN that of 0."""
        positions = np.linspace(0, 1, len(self._points))
        x = np.nan_to_num(np.asarray(values, np.float64), nan=0.0)
        channels = [np.interp(x, positions, self._points[:, i]) for i in range(3)]
        return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


SEQUENTIAL = ColorMap(
    "viridis",
    (
        *("440154", "472d7b", "3b528b", "2c728e", "21918c"),
        *("28ae80", "5ec962", "addc30", "fde725"),
    ),
)
"""For values from low to high: brightness grows evenly, also for colour-blind readers (Smith and
van der Walt 2015)."""
DIVERGING = ColorMap(
    "RdBu",
    (
        *("053061", "2166ac", "4393c3", "92c5de", "d1e5f0", "f7f7f7"),
        *("fddbc7", "f4a582", "d6604d", "b2182b", "67001f"),
    ),
)
"""For signed values: blue below zero, light grey at zero, red above (Brewer 2003)."""


def normalize(values: Array, low: float, high: float) -> Array:
    """Values as positions from 0 (`low`) to 1 (`high`); 0 everywhere if both are the same, or if
    one is not finite."""
    is_scale = low < high and math.isfinite(high - low)
    return np.clip((values - low) / (high - low), 0, 1) if is_scale else np.zeros(np.shape(values))


def normalize_signed(values: Array, largest: float) -> Array:
    """Values as positions with 0 in the middle, from -`largest` to `largest`; all in the middle if
    `largest` is 0 or not finite."""
    is_scale = 0 < largest < math.inf
    return normalize(values, -largest, largest) if is_scale else np.full(np.shape(values), 0.5)


def blend(picture: Array, colors: Array, opacity: Array | float) -> Array:
    """Colours [H,W,3] over a picture [H,W,1 or 3], both bytes; opacity from 0 to 1, a number or
    [H,W]."""
    alpha = np.broadcast_to(np.asarray(opacity, np.float64), picture.shape[:2])[..., None]
    return np.round(picture * (1 - alpha) + colors * alpha).astype(np.uint8)
