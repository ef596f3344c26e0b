"""Resizing, cropping and flipping of pictures: bytes [N,H,W,C] to bytes of another size.

Operations that only move pixels return `SpatialTransforms`, so that a device that holds the
pictures can apply them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from netdsl.backends.lazy_batch import Size, SpatialTransforms
from netdsl.errors import fail
from netdsl.types import Array, dims

DEFAULT_PAD = 4
"""Pixels of padding around a picture that is no larger than the window (He et al. 2016)."""
MAX_TRIES = 10
"""Boxes drawn before falling back to the centre."""


def resize_image(image: Array, size: Size) -> Array:
    """Resizes one picture [H,W,C]; bilinear, with antialiasing when it shrinks."""
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
    """Resizes the pictures to the smallest size that covers a window of `size`."""
    h, w = images.shape[1:3]
    return _resize_all(images, covering_size((h, w), size))


def covering_size(image_size: Size, window: Size) -> Size:
    """The size with one side equal to the window's and the other rounded down, as in torchvision's
    Resize."""
    (h, w), (tall, wide) = image_size, window
    return (tall, tall * w // h) if tall * w >= wide * h else (wide * h // w, wide)


def resize_short_side(images: Array, length: int) -> Array:
    """Resizes the pictures to a shorter side of that length, keeping the aspect ratio."""
    return resize_to_cover(images, (length, length))


def _resize_all(images: Array, size: Size) -> Array:
    if images.shape[1:3] == size:
        return images
    return np.stack([resize_image(image, size) for image in images])


def resize(images: Array, draws: Array, window: Size, size: int | Size | None) -> Array:
    """Resizes to a short side, to a height and width, or (None) to cover the window."""
    h, w = images.shape[1:3]
    return _resize_all(images, resize_output_size((h, w), window, size))


def resize_output_size(image_size: Size, window: Size, size: int | Size | None) -> Size:
    """The size to which `resize` brings that size."""
    if isinstance(size, tuple):
        return size
    return covering_size(image_size, window if size is None else (size, size))


def max_jitter_size(image_size: Size, window: Size, sides: tuple[int, int]) -> Size:
    """The largest size to which `scale_jitter` brings that size."""
    return covering_size(image_size, (sides[1], sides[1]))


def scale_jitter(images: Array, draws: Array, window: Size, sides: tuple[int, int]) -> Array:
    """Simonyan & Zisserman 2015, 3.1: the training scale S is drawn for each picture."""
    low, high = sides
    return resize_short_side(images, low + int(draws[0, 0] * (high - low + 1)))


def hflip(transforms: SpatialTransforms, draws: Array, window: Size, p: float) -> SpatialTransforms:
    return transforms.flip(draws[:, 0] < p)


def center_crop(transforms: SpatialTransforms, draws: Array, window: Size) -> SpatialTransforms:
    """Crops the window's size from the centre, with black around smaller images; the corner is that
    of torchvision's CenterCrop."""
    top, left = (_center_offset(a, b) for a, b in zip(transforms.size, window, strict=True))
    zeros = np.zeros(len(draws), np.int64)
    return transforms.crop(zeros + top, zeros + left, window)


def _center_offset(side: int, window_side: int) -> int:
    """Where the centre crop begins. A half is rounded to even; around a smaller picture, the first
    of two unequal margins is the smaller one."""
    return round((side - window_side) / 2) if side >= window_side else -((window_side - side) // 2)


def cover_and_center_crop(images: Array, window: Size) -> Array:
    """Resizes pictures to cover the window, and crops the centre."""
    images = resize_to_cover(images, window)
    identity = SpatialTransforms.identity(len(images), images.shape[1:3])
    return center_crop(identity, np.zeros((len(images), 0)), window).apply(images)


def random_crop(
    transforms: SpatialTransforms, draws: Array, window: Size, pad: int
) -> SpatialTransforms:
    """Crops the window's size at a random position: from a larger picture (Krizhevsky et al. 2012),
    or from one with `pad` zeros around it (He et al. 2016). Raises NetError if the crop could be
    mostly padding."""
    if 2 * pad > min(window):
        message = f"`random_crop({pad})` adds {pad} black pixels around pictures of {dims(window)}"
        raise fail(message, help="without it, the crop already has the net's size: `random_crop`")
    top, left = (
        _scale_draws(draws[:, i], side + 2 * pad - window_side + 1) - pad
        for i, (side, window_side) in enumerate(zip(transforms.size, window, strict=True))
    )
    return transforms.crop(top, left, window)


def cutout(
    transforms: SpatialTransforms, draws: Array, window: Size, size: int
) -> SpatialTransforms:
    """DeVries & Taylor 2017: a grey square around a random point; part of it may be outside."""
    y, x = (_scale_draws(draws[:, i], side) - size // 2 for i, side in enumerate(transforms.size))
    return transforms.add_square(y, x, size)


def _scale_draws(draws: Array, count: int) -> Array:
    return np.floor(draws * count).astype(np.int64)


def resolve_padding(size: Size, window: Size, pad: int | None) -> dict[str, int]:
    """The padding for pictures of that size."""
    return {"pad": (DEFAULT_PAD if size == window else 0) if pad is None else pad}


def is_large_enough(size: Size, window: Size, pad: int = 0) -> bool:
    """Whether pictures with `pad` pixels around them are at least as large as the window."""
    return all(a + 2 * pad >= b for a, b in zip(size, window, strict=True))


def random_resized_crop(
    images: Array,
    draws: Array,
    window: Size,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Array:
    """Szegedy et al. 2015, section 6: a part of random size and shape, resized to the window. The
    part is cut out first, so that pixels outside it have no influence."""
    found = []
    for image, (seed,) in zip(images, draws, strict=True):
        top, left, tall, wide = draw_crop_box(
            image.shape[:2], make_random_stream(seed), scale, ratio
        )
        found.append(resize_image(image[top : top + tall, left : left + wide], window))
    return np.stack(found)


def make_random_stream(seed: float) -> Callable[[], float]:
    """An endless stream of numbers in [0, 1), determined by one such number."""
    return np.random.Generator(np.random.Philox(key=int(seed * 2**53))).random


def draw_crop_box(
    size: Sequence[int],
    draw: Callable[[], float],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Top, left, height and width of torchvision's RandomResizedCrop in a picture of `size`. Draws
    area and aspect ratio (width to height, log-uniform) again until the box fits; after ten tries
    it takes the centre, with the nearest ratio. `draw` returns numbers in [0, 1)."""
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
