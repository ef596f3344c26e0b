"""What to do about arrays that are almost images and labels: the order of axes, types."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from netdsl.types import Array, dims

Shape = tuple[int, ...]
ONE_HOT_ADVICE = "`labels.argmax(axis=1)`, or a column `label` in a table, converts them to classes"
"""What to do about labels [N, classes] of which each image has exactly one."""
SEVERAL_LABELS_ADVICE = (
    "several labels an image are 0 and 1, count x classes: "
    "`sklearn.preprocessing.MultiLabelBinarizer().fit_transform(labels)` makes them of lists of "
    "names"
)
"""What to do about lists of names, several an image."""


CHANNELS_LAST = "channels must come last: `images.transpose(0, 2, 3, 1)`"


def has_channels_first(shape: Shape) -> bool:
    """Whether images of this shape are most likely channels x height x width."""
    return len(shape) == 3 and shape[0] in (1, 3, 4) and shape[1] == shape[2] > 4


def describe_doubts(images: Any) -> tuple[str, ...]:
    """What is probably not meant with images that a net takes as they are: channels that come
    first, and floats of the range of bytes."""
    if not isinstance(images, np.ndarray):
        return ()
    found = []
    if has_channels_first(images.shape[1:]):
        read = f"images are height x width x channels, so {dims(images.shape[1:])} has "
        found.append(f"{read}{images.shape[-1]} channels; {CHANNELS_LAST}")
    first = images[:_LOOKED_AT]
    if first.dtype.kind == "f" and first.max(initial=0) > _BYTE_LIKE:
        scaled = "`images / 255`, or bytes (uint8) with `normalize`, train better"
        found.append(f"the images are floats up to {first.max():.4g}; {scaled}")
    return tuple(found)


_LOOKED_AT, _BYTE_LIKE = 256, 100
"""How many images are looked at, and a value that normalised ones do not have."""


def advise_axes(shape: Shape, wanted: Shape, noun: str = "images") -> str | None:
    """How to put the channels of images, or of one image, last, as a net of images `wanted`
    (height, width, channels) takes them; None if they are not first."""
    if len(wanted) != 3 or len(shape) not in (3, 4):
        return None
    if shape[-3] != wanted[2] or shape[-1] == wanted[2]:
        return None
    axes = "0, 2, 3, 1" if len(shape) == 4 else "1, 2, 0"
    return f"channels must come last: `{noun}.transpose({axes})`"


def advise_channels(shape: Shape, channels: int, noun: str = "images") -> str | None:
    """How to give pictures, [N,H,W,C] or [N,H,W], the channels that a net takes."""
    if channels == 1 and len(shape) == 4 and shape[-1] in (3, 4):
        return f"`[PIL.Image.fromarray(x) for x in {noun}]` is converted to grey"
    if channels == 3 and len(shape) == 4 and shape[-1] == 4:
        return f"`{noun}[..., :3]` removes the transparency channel"
    if channels == 3 and len(shape) == 4 and shape[-1] == 1:
        return f"`np.repeat({noun}, 3, axis=-1)` converts grey to colour"
    if channels == 3 and len(shape) in (2, 3) and shape[-1] > 4:
        return f"`np.repeat({noun}[..., None], 3, axis=-1)` converts grey to colour"
    return None


def advise_rows(shape: Shape, noun: str = "images") -> str | None:
    """How to make square images of rows of pixels, grey or in colour, with the channels last."""
    if len(shape) != 2:
        return None
    for channels in (1, 3):
        side = math.isqrt(shape[1] // channels)
        if side > 1 and side * side * channels == shape[1]:
            size = f"{side}, {side}, {channels}"
            made = f"`{noun}.reshape(-1, {size})`, if the channels of a pixel are side by side"
            planes = f"`{noun}.reshape(-1, 3, {side}, {side}).transpose(0, 2, 3, 1)`, if not"
            return f"{made}; {planes}" if channels > 1 else f"`{noun}.reshape(-1, {size})`"
    return None


def advise_count(images: Shape, labels: Shape, noun: str = "images") -> str:
    """What to do if the first axes of images and labels differ: MATLAB's files have it last."""
    count = labels[0]
    if len(images) in (3, 4) and images[-1] == count:
        axes = ", ".join(map(str, (len(images) - 1, *range(len(images) - 1))))
        return f"the number of images must come first: `{noun}.transpose({axes})`"
    return "there must be a label for each image"


def advise_image_type(dtype: np.dtype[Any], noun: str = "images") -> str | None:
    """How to make bytes of other numbers."""
    cast = f"`{noun}.astype(np.uint8)`, if the values are 0 to 255"
    if dtype.kind == "f":
        scaled = f"`({noun} * 255).round().astype(np.uint8)`, if they are 0 to 1"
        return f"pictures must be bytes: {cast}; {scaled}"
    return f"pictures must be bytes: {cast}" if dtype.kind in "iu" and dtype != np.uint8 else None


def advise_numbering(is_present: Array, noun: str = "labels") -> str | None:
    """How to number classes from 0 without gaps; `is_present` says of each label whether any image
    has it. None if they are numbered so."""
    first = int(np.argmax(is_present))
    if is_present[: int(is_present.sum())].all():
        return None
    if first and is_present[first:].all():
        return f"`{noun} - {first}` numbers the classes from 0"
    return f"`np.unique({noun}, return_inverse=True)[1]` numbers the classes from 0 without gaps"


def advise_object_type(dtype: np.dtype[Any], name: str) -> str | None:
    """How to save an array of text or of Python objects, by its name."""
    if "label" in name or name.startswith("y"):
        if dtype.kind in "US":
            made = f"`classes, numbers = np.unique({name}, return_inverse=True)`"
            return f"{made}, then `np.savez(FILE, labels=numbers, classes=classes, ...)`"
        return f"`{name}.astype(str)` converts them to text, and `np.unique` numbers the result"
    if dtype.hasobject:
        return (
            "images must have one size to form an array: resize them, or save them as "
            "pictures for `folder(DIR)`"
        )
    return None


def advise_labels(shape: Shape, dtype: np.dtype[Any], noun: str = "labels") -> str | None:
    """How to make one integer per image of labels that are floats or a column."""
    if len(shape) == 2 and shape[1] == 1:
        return f"`{noun}.ravel()` has one axis"
    if len(shape) == 1 and dtype.kind == "f":
        return f"labels must be integers: `{noun}.astype(int)`"
    return None
