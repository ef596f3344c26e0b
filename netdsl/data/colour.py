"""Colour augmentations: bytes [N,H,W,C] to bytes of the same shape."""

from __future__ import annotations

from itertools import permutations
from statistics import NormalDist

import numpy as np

from netdsl.backends.lazy_batch import Size
from netdsl.errors import fail
from netdsl.types import Array

_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
"""Rec. 601: the perceived brightness of red, green and blue."""
_PCA_DEVIATIONS = np.array([55.46, 4.794, 1.148])
_PCA_DIRECTIONS = np.array(
    [[-0.5675, -0.5808, -0.5836], [0.7192, -0.0045, -0.6948], [0.4009, -0.8140, 0.4203]]
)
"""Principal components of the colours of ImageNet's pixels, one per row, and the standard
deviations along them, in bytes (as published with fb.resnet.torch)."""
_JITTER_ORDERS = tuple(permutations(range(3)))


def color_jitter(
    images: Array, draws: Array, window: Size, brightness: float, contrast: float, saturation: float
) -> Array:
    """Howard 2014: each factor is uniform within 1 +- its width; the order is random too."""
    widths = (brightness, contrast, saturation)
    return np.stack([_jitter(x, d, widths) for x, d in zip(images, draws, strict=True)])


def _jitter(image: Array, draws: Array, widths: tuple[float, float, float]) -> Array:
    y = image.astype(np.float32)
    for i in _JITTER_ORDERS[int(draws[3] * len(_JITTER_ORDERS))]:
        factor = np.float32(max(0.0, 1 + widths[i] * (2 * draws[i] - 1)))
        y = np.clip(_blend_target(y, i) * (1 - factor) + y * factor, 0, 255)
    return _to_bytes(y)


def _blend_target(y: Array, adjustment: int) -> Array:
    """What an image is blended with: black, its mean brightness, or its greyscale version."""
    if adjustment == 0:
        return np.zeros(1, np.float32)
    grey = y @ _LUMA_WEIGHTS if y.shape[2] == 3 else y.mean(axis=2)
    return grey.mean() if adjustment == 1 else grey[..., None]


def lighting(images: Array, draws: Array, window: Size, std: float) -> Array:
    """Krizhevsky et al. 2012, 4.1: adds one random colour along the principal components to all
    pixels of an image. Raises NetError if the images do not have three channels."""
    if images.shape[3] != 3:
        raise fail(
            f"`lighting` needs red, green and blue channels, but the images have "
            f"{images.shape[3]} channels"
        )
    normal = NormalDist()
    drawn = [[normal.inv_cdf(min(max(x, 1e-9), 1 - 1e-9)) for x in d] for d in draws]
    added = (np.array(drawn) * std * _PCA_DEVIATIONS) @ _PCA_DIRECTIONS
    return _to_bytes(images + added[:, None, None, :].astype(np.float32))


def _to_bytes(values: Array) -> Array:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
