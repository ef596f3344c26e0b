"""Resizing, cropping and turning of pictures: bytes [N,H,W,C] to bytes of another height and width.

What only moves pixels gives `Moves`, so that a device which has the pictures can make them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from netdsl.backends.picked import Moves, Size
from netdsl.errors import fail
from netdsl.types import Array, dims

PADDED = 4
"""Pixels around a picture that is no larger than the window (He et al. 2016)."""


def resized(
    image: Array, size: Size, box: tuple[float, float, float, float] | None = None
) -> Array:
    """One picture [H,W,C], or its `box` (left, top, right, bottom), at another size; bilinear, and
    smoothed where it becomes smaller."""
    from PIL import Image

    if image.shape[2] != 3:
        planes = (_resized(Image.fromarray(p), size, box) for p in np.moveaxis(image, 2, 0))
        return np.stack(list(planes), axis=2)
    return _resized(Image.fromarray(image), size, box)


def _resized(picture: object, size: Size, box: tuple[float, float, float, float] | None) -> Array:
    from PIL import Image

    assert isinstance(picture, Image.Image)
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR, box))


def covering(images: Array, size: Size) -> Array:
    """The pictures at the smallest size that leaves no part of a window of `size` empty."""
    h, w = images.shape[1:3]
    scale = max(size[0] / h, size[1] / w)
    return _all_resized(images, (max(size[0], round(h * scale)), max(size[1], round(w * scale))))


def short_side(images: Array, length: int) -> Array:
    """The pictures with a shorter side of that length; height to width stays as it is."""
    h, w = images.shape[1:3]
    scale = length / min(h, w)
    return _all_resized(images, (max(1, round(h * scale)), max(1, round(w * scale))))


def _all_resized(images: Array, size: Size) -> Array:
    if images.shape[1:3] == size:
        return images
    return np.stack([resized(image, size) for image in images])


def resize(images: Array, draws: Array, window: Size, size: int | Size | None) -> Array:
    """To a short side, to a height and width, or (None) to what covers the window."""
    if size is None:
        return covering(images, window)
    return short_side(images, size) if isinstance(size, int) else _all_resized(images, size)


def scale_jitter(images: Array, draws: Array, window: Size, sides: tuple[int, int]) -> Array:
    """Simonyan & Zisserman 2015, 3.1: the training scale S is drawn for each picture."""
    low, high = sides
    return short_side(images, low + int(draws[0, 0] * (high - low + 1)))


def hflip(at: Moves, draws: Array, window: Size, p: float) -> Moves:
    return at.flip(draws[:, 0] < p)


def center_crop(at: Moves, draws: Array, window: Size) -> Moves:
    """The window's size out of the middle."""
    top, left = ((a - b) // 2 for a, b in zip(at.size, window, strict=True))
    zeros = np.zeros(len(draws), np.int64)
    return at.crop(zeros + top, zeros + left, window)


def middle(images: Array, window: Size) -> Array:
    """The window's size out of the middle of pictures that are brought to cover it."""
    images = covering(images, window)
    plain = Moves.none(len(images), images.shape[1:3])
    return center_crop(plain, np.zeros((len(images), 0)), window).applied(images)


def random_crop(at: Moves, draws: Array, window: Size, pad: int) -> Moves:
    """The window's size out of anywhere: of a larger picture (Krizhevsky et al. 2012), of one with
    `pad` zeros around it (He et al. 2016). Raises NetError where these would be most of it."""
    if 2 * pad > min(window):
        message = f"`random_crop({pad})` puts {pad} black pixels around pictures of {dims(window)}"
        raise fail(message, help="what it cuts out has the net's size anyway: `random_crop`")
    top, left = (
        _drawn(draws[:, i], there + 2 * pad - wanted + 1) - pad
        for i, (there, wanted) in enumerate(zip(at.size, window, strict=True))
    )
    return at.crop(top, left, window)


def cutout(at: Moves, draws: Array, window: Size, size: int) -> Moves:
    """DeVries & Taylor 2017: a grey square about a point anywhere; part of it may lie outside."""
    y, x = (_drawn(draws[:, i], side) - size // 2 for i, side in enumerate(at.size))
    return at.square(y, x, size)


def _drawn(draws: Array, count: int) -> Array:
    return np.floor(draws * count).astype(np.int64)


def padded(size: Size, window: Size, pad: int | None) -> dict[str, int]:
    """How many pixels come around pictures of that size."""
    return {"pad": (PADDED if size == window else 0) if pad is None else pad}


def covers(size: Size, window: Size, pad: int = 0) -> bool:
    """Whether pictures, with `pad` pixels around them, are as large as the window."""
    return all(a + 2 * pad >= b for a, b in zip(size, window, strict=True))


def random_resized_crop(
    images: Array,
    draws: Array,
    window: Size,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Array:
    """Szegedy et al. 2015, section 6: a part of any size and shape, brought to the window's."""
    parts = (_part(image.shape, d, scale, ratio) for image, d in zip(images, draws, strict=True))
    return np.stack([resized(x, window, box) for x, box in zip(images, parts, strict=True)])


def _part(
    shape: Sequence[int], draws: Array, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[float, float, float, float]:
    """A box in an image. Its area is uniform; its ratio of width to height is log-uniform among
    those with which that area fits, else the nearest to them, and the box then smaller."""
    h, w = shape[:2]
    area = h * w * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = (min(max(r, area / h**2), w**2 / area) for r in ratio)
    shaped = math.exp(math.log(low) + (math.log(high) - math.log(low)) * draws[1])
    shaped = min(max(shaped, ratio[0]), ratio[1])
    wide = min(w, max(1, round(math.sqrt(area * shaped))))
    tall = min(h, max(1, round(math.sqrt(area / shaped))))
    top, left = int(draws[2] * (h - tall + 1)), int(draws[3] * (w - wide + 1))
    return left, top, left + wide, top + tall
