"""Images and labels that are arrays: the checks of both, and data sets of arrays in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from netdsl.data.array_advice import (
    SEVERAL_LABELS_ADVICE,
    advise_count,
    advise_image_type,
    advise_labels,
    advise_rows,
)
from netdsl.data.labels import name_classes, read_labels, read_names
from netdsl.data.samples import Dataset, Samples
from netdsl.errors import NetError, fail, suggest_name
from netdsl.types import Array, dims

_PARTS = ("train", "val", "test")
_KEYS = (*(f"{kind}_{part}" for part in _PARTS for kind in "xy"), "classes")
_HELP = 'give (images, labels), or {"x_train": images, "y_train": labels, "x_test": ..., ...}'


@dataclass(frozen=True)
class ArrayHeader:
    """Name, shape and type of an array, and the file that contains it, if any."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file: str = ""

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def title(self) -> str:
        return f"`{self.name}` in {self.file}" if self.file else f"`{self.name}`"

    def __str__(self) -> str:
        return f"{self.title} is {dims(self.shape)} {self.dtype}"


_LABELS_HELP = (
    "give one label per image (0, 1, 2, ...), or 0 and 1 for several labels per image: count x "
    "classes"
)


def _are_labels(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether an array may hold one class per image, integers [N], or several, 0 and 1 of any
    type, [N, classes]."""
    is_multi_label = len(shape) == 2 and shape[1] > 1
    return dtype.kind in "uifb" if is_multi_label else len(shape) == 1 and dtype.kind in "ui"


def check_images_and_labels(images: ArrayHeader, labels: ArrayHeader) -> None:
    """Raises NetError if arrays are not images (in memory, vectors and floats are allowed too) and
    one integer label for each, or several of 0 and 1."""
    is_file = bool(images.file)
    types, least = ((np.uint8,), 3) if is_file else ((np.uint8, np.float32), 2)
    if images.dtype not in types or not least <= len(images.shape) <= 4:
        help = "images must be bytes from 0 to 255 (uint8): count x height x width x channels"
        if not is_file:
            help += "; floats (and count x values) are used as the net's input"
        advice = advise_image_type(images.dtype, images.name)
        if is_file and advice is None:
            advice = advise_rows(images.shape, images.name)
        raise fail(str(images), help=advice or help)
    if not _are_labels(labels.shape, labels.dtype):
        help = advise_labels(labels.shape, labels.dtype, labels.name) or _LABELS_HELP
        raise fail(f"{labels}, not one integer per image", help=help)
    counts = images.shape[0], labels.shape[0]
    if counts[0] != counts[1]:
        holder = f"{images.file} contains" if is_file else "there are"
        raise fail(
            f"{holder} {counts[0]:,} {images.name} and {counts[1]:,} {labels.name}",
            help=advise_count(images.shape, labels.shape, images.name),
        )
    if not images.size:
        raise fail(f"{images.title} contains no images")


def dataset_from_arrays(given: tuple[Any, Any] | Mapping[str, Any]) -> Dataset:
    """A data set of arrays in memory: `(images, labels)`, or a mapping with `x_train`, `y_train`
    and optionally `x_val`, `y_val`, `x_test`, `y_test` and `classes`, the names of the classes.

    Images are uint8 [N,H,W,C] or [N,H,W], or floats of the net's input shape, which skip the
    preprocessing. Labels are integers from 0 without gaps, or names; or several per image, 0 and 1
    [N, classes]. Raises NetError if they are not."""
    parts = _name_parts(given)
    names, labels = _number_classes(parts)
    sets = {
        part: _make_samples(parts, part, labels[part]) for part in _PARTS if f"x_{part}" in parts
    }
    shapes = {dims(x.image_shape or ()) for x in sets.values()}
    if len(shapes) > 1:
        raise fail(
            f"the images are {' and '.join(sorted(shapes))}; they must all have the same size"
        )
    if len({x.are_floats for x in sets.values()}) > 1:
        raise fail(
            "some of the images are bytes and some are floats", help="give arrays of a single type"
        )
    test = sets.get("test")
    return Dataset(sets["train"], names, (lambda: test) if test else None, sets.get("val"))


def as_array(given: Any, title: str, help: str = "give arrays of the same shape") -> Array:
    """What NumPy makes of a value. Raises NetError if that is no array, as of rows of different
    lengths."""
    try:
        return np.asarray(given)
    except (ValueError, TypeError) as e:
        raise fail(f"{title} cannot be converted to an array: {e}", help=help) from None


def _name_parts(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise fail("data in memory must be images and labels", help=_HELP)
        given = {"x_train": given[0], "y_train": given[1]}
    for key in given:
        if key not in _KEYS:
            help = suggest_name(str(key), _KEYS, "keys are")
            raise fail(f"there is no data set `{key}`", help=help)
    for part in _PARTS:
        pair = [f"{kind}_{part}" for kind in "xy"]
        missing = [key for key in pair if key not in given]
        if len(missing) == 1 or (missing and part == "train"):
            raise fail(f"`{missing[0]}` is missing", help=_HELP)
    return given


def _number_classes(parts: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Array]]:
    """The names of the classes, and the labels of each part as samples hold them."""
    keys = {part: f"y_{part}" for part in _PARTS if f"y_{part}" in parts}
    labels = {
        part: as_array(parts[key], f"`{key}`", SEVERAL_LABELS_ADVICE) for part, key in keys.items()
    }
    names = read_names(parts.get("classes"))
    if all(_are_labels(x.shape, x.dtype) for x in labels.values()):
        found = {part: read_labels(x, f"`{keys[part]}`") for part, x in labels.items()}
        return name_classes({f"`{keys[part]}`": x for part, x in found.items()}, names), found
    for part, x in labels.items():
        if x.dtype.kind not in "USObui" or x.ndim != 1:
            raise _labels_error(keys[part], x)
    named = {part: [str(name) for name in x] for part, x in labels.items()}
    names = names or read_names(sorted({name for part in named.values() for name in part}))
    numbers = {name: i for i, name in enumerate(names)}
    for part, labelled in named.items():
        for name in labelled:
            if name not in numbers:
                raise fail(f"`y_{part}` contains `{name}`, which is not one of `classes`")
    return tuple(names), {
        part: np.array([numbers[n] for n in labelled], np.int32) for part, labelled in named.items()
    }


def _labels_error(name: str, labels: Array) -> NetError:
    """The error for labels that are neither integers nor names, one per image."""
    header, advice = str(ArrayHeader(name, labels.shape, labels.dtype)), None
    is_whole = labels.dtype.kind != "f" or bool((labels == np.round(labels)).all())
    if labels.ndim == 2 and labels.dtype.kind in "USO":
        advice = SEVERAL_LABELS_ADVICE
    elif is_whole:
        advice = advise_labels(labels.shape, labels.dtype, name)
    wanted = (
        "not one label per image" if labels.ndim != 1 else "but labels must be integers or names"
    )
    return fail(f"{header}, {wanted}", help=advice or "labels are 0, 1, 2, ..., or names")


_CHECKED_IMAGES = 256
"""How many images are checked at once."""


def check_finite(images: Array, title: str) -> None:
    """Raises NetError, naming the first image, if floats hold NaN or an infinity."""
    for start in range(0, len(images), _CHECKED_IMAGES):
        part = images[start : start + _CHECKED_IMAGES]
        is_good = np.isfinite(part).reshape(len(part), -1).all(axis=1)
        if not is_good.all():
            wrong = int(np.argmin(is_good))
            kind = "NaN" if np.isnan(part[wrong]).any() else "an infinity"
            help = "replace such values, as `np.nan_to_num` does, or leave these images out"
            raise fail(f"{title} contains {kind}, first in image {start + wrong:,}", help=help)


def _make_samples(parts: Mapping[str, Any], part: str, labels: Array) -> Samples:
    images = as_array(parts[f"x_{part}"], f"`x_{part}`")
    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold is reported below
            images = images.astype(np.float32, copy=False)
    check_images_and_labels(
        ArrayHeader(f"x_{part}", images.shape, images.dtype),
        ArrayHeader(f"y_{part}", labels.shape, labels.dtype),
    )
    if images.dtype.kind == "f":
        check_finite(images, f"`x_{part}`")
    return Samples(images[..., None] if images.ndim == 3 else images, labels)
