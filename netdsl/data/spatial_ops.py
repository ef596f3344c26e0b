"""Resizing, cropping and turning of pictures: bytes [N,H,W,C] to bytes of another height and width.

What only moves pixels gives `Moves`, so that a device which has the pictures can make them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from netdsl.backends.lazy_batch import Size, SpatialTransforms
from netdsl.errors import fail
from netdsl.types import Array, dims

DEFAULT_PAD = 4
"""Pixels around a picture that is no larger than the window (He et al. 2016)."""
MAX_TRIES = 10
"""Boxes that are drawn before the middle is taken."""


def resize_image(image: Array, size: Size) -> Array:
    """One picture [H,W,C] at another size; bilinear, and smoothed where it becomes smaller."""
    from PIL import Image

    if image.shape[2] != 3:
        planes = (_resize_pillow(Image.fromarray(p), size) for p in np.moveaxis(image, 2, 0))
        return np.stack(list(planes), axis=2)
    return _resize_pillow(Image.fromarray(image), size)


def _resize_pillow(picture: object, size: Size) -> Array:
    from PIL import Image

    assert isinstance(picture, Image.Image)
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))


def resize_to_cover(images: Array, size: Size) -> Array:
    """The pictures at the smallest size that leaves no part of a window of `size` empty."""
    h, w = images.shape[1:3]
    return _resize_all(images, covering_size((h, w), size))


def covering_size(image_size: Size, window: Size) -> Size:
    """One side is the window's, the other is rounded down, as torchvision's Resize does."""
    (h, w), (tall, wide) = image_size, window
    return (tall, tall * w // h) if tall * w >= wide * h else (wide * h // w, wide)


def resize_short_side(images: Array, length: int) -> Array:
    """The pictures with a shorter side of that length; height to width stays as it is."""
    return resize_to_cover(images, (length, length))


def _resize_all(images: Array, size: Size) -> Array:
    if images.shape[1:3] == size:
        return images
    return np.stack([resize_image(image, size) for image in images])


def resize(images: Array, draws: Array, window: Size, size: int | Size | None) -> Array:
    """To a short side, to a height and width, or (None) to what covers the window."""
    h, w = images.shape[1:3]
    return _resize_all(images, resize_output_size((h, w), window, size))


def resize_output_size(image_size: Size, window: Size, size: int | Size | None) -> Size:
    """What `resize` makes of that size."""
    if isinstance(size, tuple):
        return size
    return covering_size(image_size, window if size is None else (size, size))


def max_jitter_size(image_size: Size, window: Size, sides: tuple[int, int]) -> Size:
    """The largest that `scale_jitter` makes of that size."""
    return covering_size(image_size, (sides[1], sides[1]))


def scale_jitter(images: Array, draws: Array, window: Size, sides: tuple[int, int]) -> Array:
    """Simonyan & Zisserman 2015, 3.1: the training scale S is drawn for each picture."""
    low, high = sides
    return resize_short_side(images, low + int(draws[0, 0] * (high - low + 1)))


def hflip(transforms: SpatialTransforms, draws: Array, window: Size, p: float) -> SpatialTransforms:
    return transforms.flip(draws[:, 0] < p)


def center_crop(transforms: SpatialTransforms, draws: Array, window: Size) -> SpatialTransforms:
    """The window's size out of the middle, with black around what is smaller: the corner is
    torchvision's CenterCrop's."""
    top, left = (_center_offset(a, b) for a, b in zip(transforms.size, window, strict=True))
    zeros = np.zeros(len(draws), np.int64)
    return transforms.crop(zeros + top, zeros + left, window)


def _center_offset(side: int, window_side: int) -> int:
    """Where the middle begins. A half is rounded to the even number; around a smaller picture the
    first of two unequal margins is the smaller one."""
    return round((side - window_side) / 2) if side >= window_side else -((window_side - side) // 2)


def cover_and_center_crop(images: Array, window: Size) -> Array:
    """The window's size out of the middle of pictures that are brought to cover it."""
    images = resize_to_cover(images, window)
    identity = SpatialTransforms.identity(len(images), images.shape[1:3])
    return center_crop(identity, np.zeros((len(images), 0)), window).apply(images)


def random_crop(
    transforms: SpatialTransforms, draws: Array, window: Size, pad: int
) -> SpatialTransforms:
    """The window's size out of anywhere: of a larger picture (Krizhevsky et al. 2012), of one with
    `pad` zeros around it (He et al. 2016). Raises NetError where these would be most of it."""
    if 2 * pad > min(window):
        message = f"`random_crop({pad})` puts {pad} black pixels around pictures of {dims(window)}"
        raise fail(message, help="what it cuts out has the net's size anyway: `random_crop`")
    top, left = (
        _scale_draws(draws[:, i], side + 2 * pad - window_side + 1) - pad
        for i, (side, window_side) in enumerate(zip(transforms.size, window, strict=True))
    )
    return transforms.crop(top, left, window)


def cutout(
    transforms: SpatialTransforms, draws: Array, window: Size, size: int
) -> SpatialTransforms:
    """DeVries & Taylor 2017: a grey square about a point anywhere; part of it may lie outside."""
    y, x = (_scale_draws(draws[:, i], side) - size // 2 for i, side in enumerate(transforms.size))
    return transforms.add_square(y, x, size)


def _scale_draws(draws: Array, count: int) -> Array:
    return np.floor(draws * count).astype(np.int64)


def resolve_padding(size: Size, window: Size, pad: int | None) -> dict[str, int]:
    """How many pixels come around pictures of that size."""
    return {"pad": (DEFAULT_PAD if size == window else 0) if pad is None else pad}


def is_large_enough(size: Size, window: Size, pad: int = 0) -> bool:
    """Whether pictures, with `pad` pixels around them, are as large as the window."""
    return all(a + 2 * pad >= b for a, b in zip(size, window, strict=True))


def random_resized_crop(
    images: Array,
    draws: Array,
    window: Size,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Array:
    """Szegedy et al. 2015, section 6: a part of any size and shape, brought to the window's. The
    part is cut out first, so that no pixel outside it counts."""
    found = []
    for image, (seed,) in zip(images, draws, strict=True):
        top, left, tall, wide = draw_crop_box(
            image.shape[:2], make_random_stream(seed), scale, ratio
        )
        found.append(resize_image(image[top : top + tall, left : left + wide], window))
    return np.stack(found)


def make_random_stream(seed: float) -> Callable[[], float]:
    """As many numbers in [0, 1) as are asked for, determined by one such number."""
    return np.random.Generator(np.random.Philox(key=int(seed * 2**53))).random


def draw_crop_box(
    size: Sequence[int],
    draw: Callable[[], float],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Top, left, height and width of torchvision's RandomResizedCrop in a picture of `size`. Area
    and ratio of width to height are drawn anew while the box does not fit, the ratio log-uniform;
    after ten times it is the middle, of the nearest ratio. `draw` gives numbers in [0, 1)."""
    (h, w), low, high = size, math.log(ratio[0]), math.log(ratio[1])
    for _ in range(MAX_TRIES):
        area = h * w * (scale[0] + (scale[1] - scale[0]) * draw())
        aspect = math.exp(low + (high - low) * draw())
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= w and 0 < tall <= h:
            return int(draw() * (h - tall + 1)), int(draw() * (w - wide + 1)), tall, wide
    tall = h if w / h >= ratio[0] else max(1, round(w / ratio[0]))
    wide = w if w / h <= ratio[1] else max(1, round(h * ratio[1]))
    return (h - tall) // 2, (w - wide) // 2, tall, wide
