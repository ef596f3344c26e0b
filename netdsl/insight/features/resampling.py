"""Rotations, zooms and shifts of pictures as linear maps, with their adjoints."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np

from netdsl.types import Array


@dataclass(frozen=True)
class Resampling:
    """A linear map of pictures: each pixel of the result is a weighted mean of four pixels.
    `indices` and `weights` are [height * width, 4], with indices into the flattened picture; a
    pixel from beyond the edge has weight 0."""

    indices: Array
    weights: Array

    def apply(self, pictures: Array) -> Array:
        """Resamples pictures [N,H,W,C]."""
        n, _, _, channels = pictures.shape
        flat = pictures.reshape(n, -1, channels)
        corners = zip(self.indices.T, self.weights.T, strict=True)
        return sum(flat[:, i] * w[:, None] for i, w in corners).reshape(pictures.shape)

    def apply_adjoint(self, pictures: Array) -> Array:
        """Applies the transposed map: <apply(x), y> = <x, apply_adjoint(y)>."""
        n, height, width, channels = pictures.shape
        flat = pictures.reshape(n, -1, channels).transpose(0, 2, 1)
        values = flat[..., None] * self.weights  # [N, C, pixels, 4]
        sources = self.indices.ravel()
        sums = [
            np.bincount(sources, row.ravel(), height * width)
            for row in values.reshape(n * channels, -1)
        ]
        result = np.array(sums).reshape(n, channels, height, width).transpose(0, 2, 3, 1)
        return result.astype(pictures.dtype)


def resample(
    height: int, width: int, angle: float, zoom: float, shift: tuple[float, float]
) -> Resampling:
    """Rotates pictures by `angle` degrees and magnifies them by `zoom` about their centre, then
    moves them down and to the right by `shift` pixels. Pixels are interpolated bilinearly."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    y, x = y - (height - 1) / 2 - shift[0], x - (width - 1) / 2 - shift[1]
    c, s = cos(radians(angle)) / zoom, sin(radians(angle)) / zoom
    source_y = (c * y + s * x + (height - 1) / 2).ravel()
    source_x = (c * x - s * y + (width - 1) / 2).ravel()
    top, left = np.floor(source_y).astype(int), np.floor(source_x).astype(int)
    indices, weights = [], []
    for row, row_weight in ((top, top + 1 - source_y), (top + 1, source_y - top)):
        for column, column_weight in ((left, left + 1 - source_x), (left + 1, source_x - left)):
            is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            indices.append(np.where(is_inside, row * width + column, 0))
            weights.append(np.where(is_inside, row_weight * column_weight, 0))
    return Resampling(np.stack(indices, axis=1), np.stack(weights, axis=1).astype(np.float32))
