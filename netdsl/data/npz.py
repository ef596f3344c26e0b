"""Images and labels in one NumPy file (.npz)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from netdsl.data.arrays import ArrayHeader, check_images_and_labels
from netdsl.data.data_source import DatasetNotFound, DataSource
from netdsl.data.inventory import abbreviate
from netdsl.data.labels import name_classes, read_labels, read_names
from netdsl.data.npz_archive import NpzArchive, NpzMember, open_npz
from netdsl.data.path_lookup import PathLookup
from netdsl.data.samples import Dataset, Samples
from netdsl.errors import Diagnostic, fail
from netdsl.file_kinds import ARRAY, KERAS, PICKLE, PICTURE, recognise
from netdsl.parameter_types import QuotedText
from netdsl.signature import Param, Signature
from netdsl.types import dims

Pair = tuple[str, str]
"""The names of an array of images and of that of their labels."""


def _name_parts(pattern: str, images: str, labels: str) -> tuple[Pair, ...]:
    """The names for training, validation and testing."""
    parts = ("train", "val", "test")
    return tuple((pattern.format(images, x), pattern.format(labels, x)) for x in parts)


_STYLES: tuple[tuple[Pair, ...], ...] = (
    (("images", "labels"), *_name_parts("{1}_{0}", "images", "labels")[1:]),
    _name_parts("{1}_{0}", "images", "labels"),
    _name_parts("{0}_{1}", "x", "y"),
    _name_parts("{0}_{1}", "X", "y"),
    (("x", "y"),),
    (("X", "y"),),
)
"""The names of a file's arrays: those of netdsl, of MedMNIST, of Keras and of scikit-learn."""
_CLASSES = "classes"


def arrays_source() -> DataSource:
    file = Param("path", QuotedText(), doc="an .npz file, also searched for in the `--data` folder")
    doc = (
        "images (uint8) and labels (0, 1, 2, ... without gaps; or several labels per image, "
        "0 and 1, count x classes), test_images, test_labels and names in classes, as saved by "
        "NumPy; or x_train, y_train, x_val, y_val, x_test, y_test"
    )
    return DataSource(Signature("arrays", (file,)), _load, _find, None, None, doc)


def _load(data_folder: Path | None, path: str) -> Dataset:
    return read_arrays(_find(data_folder, path)["path"])


def _find(data_folder: Path | None, path: str) -> dict[str, Path]:
    lookup = PathLookup(path, data_folder)
    found = lookup.find_file()
    if found is not None:
        return {"path": found}
    help = lookup.advise() or 'arrays("data.npz") names a NumPy file, and `--data DIR` its folder'
    raise DatasetNotFound(Diagnostic(lookup.describe("file"), lookup.span, help))


def read_arrays(path: Path) -> Dataset:
    """Reads `images` (bytes, N x H x W or N x H x W x C) and `labels` (integers, or 0 and 1, N x
    classes), and optionally `val_images`, `val_labels`, `test_images`, `test_labels` and `classes`,
    their names; or all by the names of Keras. Raises NetError, naming file and array, if they are
    invalid; also, before anything is allocated, if they exceed the memory limit."""
    kind = recognise(path)
    if kind in (ARRAY, KERAS, PICTURE, PICKLE):
        raise fail(f"{path} is {kind.name}, not an .npz file", help=_SAVE_HELP)
    with open_npz(path, _SAVE_HELP) as archive:
        return _read_archive(archive)


_SAVE_HELP = "np.savez(FILE, images=..., labels=..., test_images=..., test_labels=...) writes one"


def _read_archive(archive: NpzArchive) -> Dataset:
    path = archive.path
    style = _find_style(archive)
    names = [name for pair in style for name in pair]
    members = archive.members((*names, _CLASSES), texts=(_CLASSES,))
    pairs = [pair for pair in style if pair == style[0] or not members.keys().isdisjoint(pair)]
    for pair in pairs:
        _check_pair(path, members, *pair)
    sizes = {dims(_image_shape(members[images])) for images, _ in pairs}
    if len(sizes) > 1:
        raise fail(
            f"{path} contains images of {' and '.join(sorted(sizes))}; they must all have "
            f"the same size"
        )
    archive.check_size(members)
    parts = {pair: _read_samples(archive, members, *pair) for pair in pairs}
    labels = {f"`{name}` in {path}": x.labels for (_, name), x in parts.items()}
    classes = name_classes(labels, _read_class_names(archive, members))
    train, *others = (parts.get(pair) for pair in style)
    validation, test = others or (None, None)
    assert train is not None
    return Dataset(train, classes, None if test is None else lambda: test, validation)


def _find_style(archive: NpzArchive) -> tuple[Pair, ...]:
    """The names of the arrays: the first style of which there are training images, else labels.
    Raises NetError if there are neither."""
    there = archive.names()
    for kind in (0, 1):
        for style in _STYLES:
            if style[0][kind] in there:
                return style
    message = f"{archive.path} contains no array `images`"
    if there:
        message += f", but {abbreviate(there)}"
    known = "; `x_train`, `y_train`, `x_test` and `y_test` are read too"
    raise fail(message, help=_SAVE_HELP + known)


def _read_class_names(archive: NpzArchive, members: Mapping[str, NpzMember]) -> list[str]:
    """The names of the classes, if the file has them."""
    if _CLASSES not in members:
        return []
    names, title = archive.read(members[_CLASSES]), f"`{_CLASSES}` in {archive.path}"
    if names.ndim != 1:
        message = f"{title} is {dims(names.shape)}, not a list of names"
        raise fail(message, help="np.savez(FILE, classes=[...], ...) takes one name per class")
    codes = np.frombuffer(names.tobytes(), np.dtype("u4").newbyteorder(names.dtype.byteorder))
    if codes.max(initial=0) > sys.maxunicode:
        raise fail(f"{title} contains an invalid character; it is damaged")
    return read_names(names, title)


def _image_shape(images: NpzMember) -> tuple[int, ...]:
    """Height, width and channels."""
    return (*images.shape[1:], 1)[:3]


def _check_pair(
    path: Path, members: Mapping[str, NpzMember], images_name: str, labels_name: str
) -> None:
    """Raises NetError if the headers of two arrays are not those of images and their labels."""
    for name in (images_name, labels_name):
        if name not in members:
            message = f"{path} contains no array `{name}`, but {abbreviate([*members])}"
            raise fail(message, help=_SAVE_HELP)
    images, labels = (
        ArrayHeader(m.name, m.shape, m.dtype, str(path))
        for m in (members[images_name], members[labels_name])
    )
    check_images_and_labels(images, labels)


def _read_samples(
    archive: NpzArchive, members: Mapping[str, NpzMember], images_name: str, labels_name: str
) -> Samples:
    labels = read_labels(archive.read(members[labels_name]), f"`{labels_name}` in {archive.path}")
    images = archive.read(members[images_name])
    return Samples(images if images.ndim == 4 else images[..., None], labels)
