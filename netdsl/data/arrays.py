"""Images and labels that are arrays: the checks of both, and data sets of arrays in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from netdsl.data.samples import Dataset, Samples
from netdsl.errors import fail, suggest_name
from netdsl.types import Array, dims

MAX_LABEL = 99_999
_PARTS = ("train", "val", "test")
_KEYS = (*(f"{kind}_{part}" for part in _PARTS for kind in "xy"), "classes")
_HELP = 'give (images, labels), or {"x_train": images, "y_train": labels, "x_test": ..., ...}'


@dataclass(frozen=True)
class ArrayHeader:
    """Name, shape and type of an array, and the file that holds it, if any."""

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
        return f"{self.title} is {dims(self.shape) or 'one value'} {self.dtype}"


def check_images_and_labels(images: ArrayHeader, labels: ArrayHeader) -> None:
    """Raises NetError if arrays are not images (in memory, vectors and floats are allowed too) and
    one integer label for each."""
    is_file = bool(images.file)
    types, least = ((np.uint8,), 3) if is_file else ((np.uint8, np.float32), 2)
    if images.dtype not in types or not least <= len(images.shape) <= 4:
        help = "images are bytes from 0 to 255 (uint8): count x height x width x channels"
        if not is_file:
            help += "; floats (and count x values) are taken as the net's input"
        raise fail(str(images), help=help)
    if len(labels.shape) != 1 or labels.dtype.kind not in "ui":
        raise fail(f"{labels}, not one integer per image")
    counts = images.shape[0], labels.shape[0]
    if counts[0] != counts[1]:
        holder = f"{images.file} holds" if is_file else "there are"
        raise fail(f"{holder} {counts[0]:,} {images.name} and {counts[1]:,} {labels.name}")
    if not images.size:
        raise fail(f"{images.title} holds no images")


def check_label_range(labels: Array, title: str) -> None:
    """Raises NetError if a label is no class number."""
    if labels.min() < 0 or labels.max() > MAX_LABEL:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        message = f"{title} holds the label {wrong}"
        raise fail(message, help=f"labels are integers from 0 to {MAX_LABEL:,}")


def dataset_from_arrays(given: tuple[Any, Any] | Mapping[str, Any]) -> Dataset:
    """A data set of arrays in memory: `(images, labels)`, or a mapping with `x_train`, `y_train`
    and optionally `x_val`, `y_val`, `x_test`, `y_test` and `classes`, the names of the classes.

    Images are uint8 [N,H,W,C] or [N,H,W], or floats of the net's input shape, which skip the
    preprocessing. Labels are integers from 0 without gaps, or names. Raises NetError if they are
    not."""
    parts = _name_parts(given)
    names, labels = _number_classes(parts)
    sets = {
        part: _make_samples(parts, part, labels[part]) for part in _PARTS if f"x_{part}" in parts
    }
    shapes = {dims(x.image_shape or ()) for x in sets.values()}
    if len(shapes) > 1:
        raise fail(f"the images are {' and '.join(sorted(shapes))}; they must have one size")
    if len({x.are_floats for x in sets.values()}) > 1:
        raise fail("some of the images are bytes and some are floats", help="give one type")
    test = sets.get("test")
    return Dataset(sets["train"], names, (lambda: test) if test else None, sets.get("val"))


def _name_parts(given: tuple[Any, Any] | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        if not isinstance(given, tuple) or len(given) != 2:
            raise fail("data in memory are images and labels", help=_HELP)
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
    """The names of the classes, and the labels of each part as numbers."""
    labels = {part: np.asarray(parts[f"y_{part}"]) for part in _PARTS if f"y_{part}" in parts}
    names = [str(name) for name in parts.get("classes", ())]
    if all(x.dtype.kind in "ui" for x in labels.values()):
        for part, x in labels.items():
            if x.size:
                check_label_range(x, f"`y_{part}`")
        highest = max((int(x.max()) for x in labels.values() if x.size), default=0)
        if names and highest >= len(names):
            raise fail(f"the highest label is {highest}, but there are {len(names)} `classes`")
        return tuple(names or map(str, range(1 + highest))), labels
    for part, x in labels.items():
        if x.dtype.kind not in "USObui" or x.ndim != 1:
            raise fail(f"{ArrayHeader(f'y_{part}', x.shape, x.dtype)}, not one label per image")
    found = {part: [str(name) for name in x] for part, x in labels.items()}
    names = names or sorted({name for part in found.values() for name in part})
    numbers = {name: i for i, name in enumerate(names)}
    for part, labelled in found.items():
        for name in labelled:
            if name not in numbers:
                raise fail(f"`y_{part}` holds `{name}`, which is not one of `classes`")
    return tuple(names), {
        part: np.array([numbers[n] for n in labelled], np.int32) for part, labelled in found.items()
    }


def _make_samples(parts: Mapping[str, Any], part: str, labels: Array) -> Samples:
    images = np.asarray(parts[f"x_{part}"])
    if images.dtype.kind == "f":
        images = images.astype(np.float32, copy=False)
    check_images_and_labels(
        ArrayHeader(f"x_{part}", images.shape, images.dtype),
        ArrayHeader(f"y_{part}", labels.shape, labels.dtype),
    )
    return Samples(images[..., None] if images.ndim == 3 else images, labels.astype(np.int32))
