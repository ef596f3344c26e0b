"""What a net is given from Python: arrays and pictures, as batches of its input."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.data.array_advice import advise_axes, advise_channels, advise_image_type
from netdsl.data.arrays import as_array
from netdsl.data.pictures import convert_image, is_pillow_image, pictures_from_paths
from netdsl.data.preprocessing import Preprocessing
from netdsl.errors import fail
from netdsl.types import Array, dims

_HELP = (
    "give pictures (paths, Pillow images, uint8 arrays [N,H,W,C]), or floats with the shape of "
    "the net's input"
)

_ENCODED_HELP = "`PIL.Image.open` reads an open file, or `io.BytesIO(...)` with its content"


@dataclass(frozen=True)
class Inputs:
    """Images as given: an array [N,...] of floats or bytes, or a list of pictures of any size.
    `prepare` contains the preprocessing of pictures and the net's input shape."""

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
        return self.prepare.fit(_read_bytes(given, channels)[None])


@dataclass(frozen=True)
class NetInputs:
    """What a net is given at each of its inputs, by the names of these: as many images each, all
    as floats or all to be prepared."""

    by_name: Mapping[str, Inputs]

    def __len__(self) -> int:
        return len(next(iter(self.by_name.values())))

    @property
    def are_floats(self) -> bool:
        return next(iter(self.by_name.values())).are_floats

    def batch(self, start: int, end: int) -> dict[str, Array]:
        """The images of each input from `start` up to `end`."""
        return {name: inputs.batch(start, end) for name, inputs in self.by_name.items()}


def combine_inputs(by_name: Mapping[str, Inputs]) -> NetInputs:
    """The inputs of a net. Raises NetError if they do not have as many images each, or if some are
    floats and some are not."""
    counts = {name: len(inputs) for name, inputs in by_name.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"`{name}` {count:,}" for name, count in counts.items())
        raise fail(f"the inputs have different numbers of images: {listed}")
    if len({x.are_floats for x in by_name.values()}) > 1:
        raise fail(
            "some inputs are floats, used as they are, and some are pictures",
            help="give all inputs as floats or all as pictures",
        )
    return NetInputs(by_name)


def read_inputs(given: Any, shape: tuple[int, ...], prepare: Preprocessing) -> Inputs:
    """The images in whatever form they are given; `shape` is the net's input for one image. Raises
    NetError if they are not of a form that is known, or do not have this shape."""
    if isinstance(given, str | os.PathLike) or is_pillow_image(given):
        given = [given]
    elif isinstance(given, Iterator) and not isinstance(given, io.IOBase):
        given = list(given)
    if isinstance(given, list | tuple) and not given:
        return Inputs((), False, prepare)
    if isinstance(given, list | tuple) and any(map(_is_picture, given)):
        pictures = [Path(x) if isinstance(x, str | os.PathLike) else x for x in given]
        wrong = [x for x in pictures if not isinstance(x, Path) and not _is_picture(x)]
        if wrong:
            kind = type(wrong[0]).__name__
            raise fail(f"one of the images is of type {kind}, which is not a picture", help=_HELP)
        return Inputs(pictures, False, prepare)
    array = as_array(given, "the given images")
    if array.dtype.kind in "UO" and array.ndim == 1 and any(map(_is_picture, array)):
        return read_inputs(list(array), shape, prepare)
    if array.dtype.kind == "f":
        return Inputs(_shape_floats(array, shape), True, prepare)
    if array.dtype == np.uint8:
        return Inputs(_shape_bytes(array, shape), False, prepare)
    if not array.ndim:
        is_encoded = isinstance(given, bytes | bytearray | io.IOBase)
        help = _ENCODED_HELP if is_encoded else _HELP
        raise fail(f"the images are of type {type(given).__name__}", help=help)
    help = advise_image_type(array.dtype) or _HELP
    raise fail(f"the images are {dims(array.shape)} {array.dtype}", help=help)


def _is_picture(x: Any) -> bool:
    """Whether an entry of a list is a picture by itself."""
    is_array = isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim > 1
    return isinstance(x, str | os.PathLike) or is_array or is_pillow_image(x)


def _shape_floats(array: Array, shape: tuple[int, ...]) -> Array:
    if len(shape) == 3 and shape[2] == 1 and array.shape[-2:] == shape[:2] and array.ndim < 4:
        array = array[..., None]
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape:
        help = (
            "floats are used as they are, so they must be normalised and of the net's size; "
            "uint8 is normalised, resized and cropped"
        )
        raise fail(
            f"the floats are {dims(array.shape)}, but the net takes {dims(shape)} for each image",
            help=advise_axes(array.shape, shape) or help,
        )
    return array.astype(np.float32, copy=False)


def _shape_bytes(array: Array, shape: tuple[int, ...]) -> Array:
    if len(shape) != 3:
        array = array[None] if array.shape == shape else array
        if array.shape[1:] != shape:
            raise fail(f"the bytes are {dims(array.shape)}, but the net takes {dims(shape)}")
        return array
    array = _read_bytes(array, shape[2])
    return array[None] if array.ndim == 3 else array


def _read_bytes(given: Array, channels: int) -> Array:
    """Bytes [N,H,W,C] or [H,W,C], with the axis of a single channel, which may be left out: [N,H,W]
    or [H,W]."""
    array = given
    if channels == 1 and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] != 1)):
        array = array[..., None]
    if array.ndim not in (3, 4) or array.shape[-1] != channels or 0 in array.shape[1:]:
        advice = advise_axes(given.shape, (0, 0, channels))
        raise fail(
            f"the images are {dims(given.shape)}, but the net takes height x width x {channels} "
            "for each",
            help=advice or advise_channels(given.shape, channels) or _HELP,
        )
    return array
