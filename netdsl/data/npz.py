"""Images and labels in one NumPy file (.npz)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from netdsl.data.arrays import ArrayHeader, check_images_and_labels
from netdsl.data.data_source import DatasetNotFound, DataSource
from netdsl.data.labels import name_classes, read_labels, read_names
from netdsl.data.npz_archive import NpzArchive, NpzMember, open_npz
from netdsl.data.samples import Dataset, Samples
from netdsl.errors import Diagnostic, fail
from netdsl.parameter_types import QuotedText
from netdsl.signature import Param, Signature
from netdsl.types import dims

ARRAY_NAMES = ("images", "labels", "test_images", "test_labels")
_CLASSES = "classes"


def arrays_source() -> DataSource:
    file = Param("path", QuotedText(), doc="an .npz file, also searched for in the `--data` folder")
    doc = (
        "images (uint8) and labels (0, 1, 2, ... without gaps; or several labels per image, "
        "0 and 1, count x classes), test_images, test_labels and names in classes, as NumPy saves "
        "them"
    )
    return DataSource(Signature("arrays", (file,)), _load, None, None, doc)


def _load(folder: Path | None, path: str) -> Dataset:
    return read_arrays(folder / path if folder else Path(path))


def read_arrays(path: Path) -> Dataset:
    """Reads `images` (bytes, N x H x W or N x H x W x C) and `labels` (integers, or 0 and 1, N x
    classes), and optionally `test_images`, `test_labels` and `classes`, their names. Raises
    NetError, naming file and array, if they are invalid; also, before anything is allocated, if
    they exceed the memory limit."""
    if not path.exists():
        help = 'arrays("data.npz") names a NumPy file, and `--data DIR` its folder'
        raise DatasetNotFound(Diagnostic(f"there is no file {path}", help=help))
    with open_npz(path, _SAVE_HELP) as archive:
        return _read_archive(archive)


_SAVE_HELP = "np.savez(FILE, images=..., labels=..., test_images=..., test_labels=...) writes one"


def _read_archive(archive: NpzArchive) -> Dataset:
    path, members = archive.path, archive.members((*ARRAY_NAMES, _CLASSES), texts=(_CLASSES,))
    pairs = [ARRAY_NAMES[:2]] + (
        [ARRAY_NAMES[2:]] if ARRAY_NAMES[2] in members or ARRAY_NAMES[3] in members else []
    )
    for names in pairs:
        _check_pair(path, members, *names)
    sizes = {dims(_image_shape(members[images])) for images, _ in pairs}
    if len(sizes) > 1:
        raise fail(
            f"{path} holds images of {' and '.join(sorted(sizes))}; they must all have "
            f"the same size"
        )
    archive.check_size(members)
    train, *test = [_read_samples(archive, members, *names) for names in pairs]
    labels = {
        f"`{name}` in {path}": x.labels for (_, name), x in zip(pairs, (train, *test), strict=True)
    }
    classes = name_classes(labels, _read_class_names(archive, members))
    return Dataset(train, classes, (lambda: test[0]) if test else None)


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
        raise fail(f"{title} holds a character that does not exist; it is damaged")
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
            raise fail(f"{path} holds no array `{name}`", help=_SAVE_HELP)
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
