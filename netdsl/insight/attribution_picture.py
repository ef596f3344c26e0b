"""Attributions as pictures: the photograph, the heat over it, and a scale with numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from netdsl.insight.attribution import GradCam, Saliency
from netdsl.insight.color_scale import render_scale, render_text
from netdsl.insight.colormap import (
    DIVERGING,
    SEQUENTIAL,
    ColorMap,
    blend,
    normalize,
    normalize_signed,
)
from netdsl.types import Array

DEFAULT_SIZE = 320
"""Pixels of the photograph's height."""
_STRONG_PERCENTILE = 99.5
"""The share of pixels, in per cent, below the end of a scale: a few strong ones would leave the
others without colour."""
_CELLS = 64
_MAX_OPACITY = 0.75
_GAP, _MARGIN, _PAPER = 8, 8, 255


def render_saliency(found: Saliency, size: int = DEFAULT_SIZE, cell: int | None = None) -> Array:
    """The photograph, and beside it in pale grey under the attributions: red adds to the score,
    blue takes from it. Those of squares of `cell` pixels (None: such that there are about 64 in a
    column) are added up, so that what cancels out is not seen. Bytes [height, width, 3]."""
    heat = sum_cells(found.attributions, cell or max(1, round(len(found.picture) / _CELLS)))
    largest = float(np.percentile(np.abs(heat), _STRONG_PERCENTILE)) or float(np.abs(heat).max())
    photograph = _resize_picture(found.picture, size)
    heat = _resize(heat, size, is_smooth=False, shape=photograph.shape[:2])
    positions = normalize_signed(heat, largest)
    grey = 255 - (255 - photograph.mean(axis=-1, keepdims=True)) * 0.4
    opacity = np.sqrt(np.abs(2 * positions - 1))
    overlay = blend(np.repeat(grey, 3, axis=-1), DIVERGING(positions), opacity)
    return _compose(found.chosen.describe(), photograph, overlay, DIVERGING, -largest, largest)


def sum_cells(attributions: Array, cell: int) -> Array:
    """The sums [h,w] of attributions [H,W,C] over channels and squares of `cell` pixels; those at
    the lower and right edge may be smaller. Their total is the same."""
    rows, columns = (np.arange(0, n, cell) for n in attributions.shape[:2])
    return np.add.reduceat(np.add.reduceat(attributions.sum(axis=-1), rows, 0), columns, 1)


def render_grad_cam(found: GradCam, size: int = DEFAULT_SIZE) -> Array:
    """The photograph, and beside it under the heat, from transparent at 0. Bytes [height, width,
    3]."""
    largest = float(found.heat.max())
    photograph = _resize_picture(found.picture, size)
    heat = _resize(found.heat, size, is_smooth=True, shape=photograph.shape[:2])
    positions = normalize(heat, 0, largest)
    grey = np.repeat(photograph.mean(axis=-1, keepdims=True), 3, axis=-1)
    overlay = blend(grey, SEQUENTIAL(positions), 0.25 + (_MAX_OPACITY - 0.25) * positions)
    return _compose(found.chosen.describe(), photograph, overlay, SEQUENTIAL, 0, largest)


def _compose(
    title: str, photograph: Array, overlay: Array, colors: ColorMap, low: float, high: float
) -> Array:
    """A title above the photograph, the overlay and the scale."""
    scale = render_scale(colors, low, high, photograph.shape[0])
    row = _join([photograph, overlay, scale], axis=1)
    page = _join([render_text(title, row.shape[1]), row], axis=0)
    return np.pad(page, ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)), constant_values=_PAPER)


def _join(parts: Sequence[Array], axis: int) -> Array:
    """Pictures one beside or below the other, on white, with gaps."""
    across = max(x.shape[1 - axis] for x in parts)
    tiles = []
    for i, part in enumerate(parts):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[1 - axis] = (0, across - part.shape[1 - axis])
        pad[axis] = (_GAP if i else 0, 0)
        tiles.append(np.pad(part, pad, constant_values=_PAPER))
    return np.concatenate(tiles, axis=axis)


def _resize_picture(picture: Array, size: int) -> Array:
    """A picture [H,W,C] of grey levels as bytes [size, width, 3]: single pixels stay squares."""
    rgb = np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture[..., :3]
    channels = [_resize(rgb[..., i], size, size < 2 * len(picture)) for i in range(3)]
    return np.round(np.clip(np.stack(channels, axis=-1), 0, 255)).astype(np.uint8)


def _resize(
    values: Array, size: int, is_smooth: bool, shape: tuple[int, int] | None = None
) -> Array:
    """Values [h,w] as [size, width], or of that shape: interpolated, or if they are not smooth each
    as a rectangle (where there are too many, their mean)."""
    from PIL import Image

    height, width = shape or (size, max(1, round(size * values.shape[1] / values.shape[0])))
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    method = Image.Resampling.BILINEAR if is_smooth else Image.Resampling.BOX
    return np.asarray(image.resize((width, height), method))
