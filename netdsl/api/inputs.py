"""What a net is given from Python: arrays and pictures, as batches of its input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.data.pictures import convert_image, is_pillow_image, pictures_from_paths
from netdsl.data.preprocessing import Preprocessing
from netdsl.errors import fail
from netdsl.types import Array, dims

_HELP = (
    "give pictures (paths, images of Pillow, uint8 arrays [N,H,W,C]), or floats of the net's input"
)


@dataclass(frozen=True)
class Inputs:
    """Images as given: an array [N,...] of floats or bytes, or a list of pictures of any size.
    `prepare` holds the preprocessing of pictures and the net's input shape."""

    given: Array | Sequence[Any]
    are_floats: bool
    prepare: Preprocessing

    def __len__(self) -> int:
        return len(self.given)

    def batch(self, start: int, end: int) -> Array:
        """The images from `start` up to `end`, as the net's input takes them. Raises NetError,
        naming the file, if one is not a picture."""
        part = self.given[start:end]
        if isinstance(part, np.ndarray):
            if self.are_floats or part.ndim != 4:
                return part
            return self.prepare.fit(part)
        if all(isinstance(x, Path) for x in part):
            return np.asarray(self.prepare(pictures_from_paths(part)))
        return np.concatenate([self._picture(x) for x in part])

    def _picture(self, given: Any) -> Array:
        channels = self.prepare.picture_shape()[2]
        if isinstance(given, Path):
            return np.asarray(self.prepare(pictures_from_paths([given])))
        if is_pillow_image(given):
            return self.prepare.fit(convert_image(given, channels)[None])
        picture = _check_bytes(_add_channels(given, channels), channels)
        return self.prepare.fit(picture[None])


def read_inputs(given: Any, shape: tuple[int, ...], prepare: Preprocessing) -> Inputs:
    """The images in whatever form they are given; `shape` is the net's input for one image. Raises
    NetError if they are not of a form that is known, or do not have this shape."""
    if isinstance(given, str | os.PathLike) or is_pillow_image(given):
        given = [given]
    if isinstance(given, list | tuple) and any(map(_is_picture, given)):
        pictures = [Path(x) if isinstance(x, str | os.PathLike) else x for x in given]
        wrong = [x for x in pictures if not isinstance(x, Path) and not _is_picture(x)]
        if wrong:
            kind = type(wrong[0]).__name__
            raise fail(f"one of the images is of type {kind}, which is no picture", help=_HELP)
        return Inputs(pictures, False, prepare)
    array = np.asarray(given)
    if array.dtype.kind == "f":
        return Inputs(_shape_floats(array, shape), True, prepare)
    if array.dtype == np.uint8:
        return Inputs(_shape_bytes(array, shape), False, prepare)
    what = f"{dims(array.shape)} {array.dtype}" if array.ndim else type(given).__name__
    raise fail(f"the images are {what}", help=_HELP)


def _is_picture(x: Any) -> bool:
    """Whether an entry of a list is a picture by itself."""
    is_array = isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim > 1
    return isinstance(x, str | os.PathLike) or is_array or is_pillow_image(x)


def _shape_floats(array: Array, shape: tuple[int, ...]) -> Array:
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape:
        raise fail(
            f"the floats are {dims(array.shape)}, but the net takes {dims(shape)} for each image",
            help="floats are taken as they are: normalised, and of the net's size; uint8 is "
            "normalised, resized and cropped",
        )
    return array.astype(np.float32, copy=False)


def _shape_bytes(array: Array, shape: tuple[int, ...]) -> Array:
    if len(shape) != 3:
        array = array[None] if array.shape == shape else array
        if array.shape[1:] != shape:
            raise fail(f"the bytes are {dims(array.shape)}, but the net takes {dims(shape)}")
        return array
    array = _add_channels(array, shape[2])
    return _check_bytes(array[None] if array.ndim == 3 else array, shape[2])


def _add_channels(array: Array, channels: int) -> Array:
    """The array with the axis of a single channel, which may be left out: [H,W] or [N,H,W]."""
    lacks_axis = channels == 1 and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] != 1))
    return array[..., None] if lacks_axis else array


def _check_bytes(array: Array, channels: int) -> Array:
    if array.ndim not in (3, 4) or array.shape[-1] != channels or 0 in array.shape[1:]:
        wanted = f"height x width x {channels}"
        raise fail(
            f"the images are {dims(array.shape)}, but the net takes {wanted} for each",
            help=_HELP,
        )
    return array
