"""MNIST and data sets in the same form: four idx files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from netdsl.data.data_source import PATH, DatasetFiles, DataSource, mirror_url
from netdsl.data.download import RemoteFile, fetch
from netdsl.data.idx import find_file, read_idx, read_idx_shape
from netdsl.data.picture_table import PIXEL_TABLE_HELP
from netdsl.data.samples import Dataset, Samples
from netdsl.errors import fail
from netdsl.signature import Signature
from netdsl.types import dims

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FILE_NAMES = tuple(f"{name}.gz" for pair in FILES.values() for name in pair)


def idx_source(
    name: str,
    classes: tuple[str, ...],
    doc: str,
    base: str,
    checksums: tuple[str, ...],
    torch_name: str = "MNIST",
) -> DataSource:
    """A source of four idx files, published at `base` with these SHA-256 checksums; torchvision
    keeps them in `torch_name`/raw."""
    sha256_by_name = dict(zip(FILE_NAMES, checksums, strict=True))
    dataset_files = DatasetFiles(
        name,
        FILE_NAMES,
        lambda folder: find_file(folder, FILES["train"][0]) is not None,
        partial(_download, name, base, sha256_by_name),
        ("raw", f"{torch_name}/raw"),
        partial(_recognise, name),
    )
    load = partial(_load, dataset_files, classes)
    find = dataset_files.find
    return DataSource(Signature(name, (PATH,)), load, find, (28, 28, 1), classes, doc)


_TORCH_NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
"""The sources, and the folders in which torchvision keeps their files."""


def _recognise(name: str, folder: Path) -> str | None:
    """What to do if a folder contains the data set `name` in another form, or a similar one."""
    for source, torch_name in _TORCH_NAMES.items():
        if source != name and (folder / torch_name).is_dir():
            return f"{folder / torch_name} is another data set: `source = {source}` reads it"
    if (folder / "train.csv").is_file():
        return f"{folder / 'train.csv'} {PIXEL_TABLE_HELP}"
    if (folder / "mnist.npz").is_file():
        return f"{folder / 'mnist.npz'} is Keras's file: `source = arrays('mnist.npz')` reads it"
    for place in (folder / "processed", folder / "MNIST" / "processed"):
        if (place / "training.pt").is_file():
            return f"{place} contains pickles of an old torchvision, which are never read"
    return None


def _download(name: str, base: str, checksums: Mapping[str, str], folder: Path) -> None:
    # the presence of the first file marks the set as complete, so it comes last
    for file in reversed(FILE_NAMES):
        fetch(RemoteFile(f"{mirror_url(name, base)}/{file}", checksums[file]), folder)


def _load(
    dataset_files: DatasetFiles, classes: tuple[str, ...], folder: Path | None, path: str | None
) -> Dataset:
    root = dataset_files.find_folder(folder, path)
    _check_headers(root)
    read = partial(_read_pair, root, len(classes))
    return Dataset(read(*FILES["train"]), classes, lambda: read(*FILES["test"]))


def _check_headers(folder: Path) -> None:
    """Raises NetError if a file's header gives an unexpected size; the test set is checked too,
    before any training."""
    for images_name, labels_name in FILES.values():
        shape = read_idx_shape(folder, images_name, 3)
        labels = read_idx_shape(folder, labels_name, 1)[0]
        if shape[1:] != (28, 28):
            raise fail(f"{folder / images_name} contains images of {dims(shape[1:])}, not 28x28")
        if shape[0] != labels:
            raise fail(
                f"{folder}: {shape[0]:,} images in {images_name}, {labels:,} in {labels_name}"
            )
        if not labels:
            raise fail(f"{folder / images_name} contains no images")


def _read_pair(folder: Path, classes: int, images_name: str, labels_name: str) -> Samples:
    images = read_idx(folder, images_name, 3)[..., None]
    labels = read_idx(folder, labels_name, 1).astype(np.int32)
    if labels.max() >= classes:
        message = f"{folder / labels_name} contains the label {labels.max()}"
        raise fail(message, help=f"the labels of {classes} classes are 0 to {classes - 1}")
    return Samples(images, labels)
