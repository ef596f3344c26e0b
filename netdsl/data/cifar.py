"""CIFAR-10's binary batches: a label byte, then a 32 x 32 plane each of red, green and blue."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from netdsl.data.data_source import PATH, DatasetFiles, DataSource, mirror_url
from netdsl.data.download import RemoteFile, fetch, unpack
from netdsl.data.memory_limits import check_memory, read_exactly
from netdsl.data.samples import Dataset, Samples
from netdsl.errors import fail
from netdsl.file_io import open_regular_file
from netdsl.signature import Signature
from netdsl.types import Array

SIDE = 32
RECORD_BYTES = 1 + 3 * SIDE * SIDE
TEST_BATCH = "test_batch.bin"
TRAIN_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CLASSES = (
    *["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
)
ARCHIVE = "cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_COPIES_IN_MEMORY = 3
"""Copies of a file held in memory while planes are converted to pixels."""


def cifar10_source() -> DataSource:
    return DataSource(
        Signature("cifar10", (PATH,)),
        _load,
        _FILES.find,
        (SIDE, SIDE, 3),
        CLASSES,
        "60,000 pictures of objects, 32x32x3 (Krizhevsky 2009)",
    )


def _load(folder: Path | None, path: str | None) -> Dataset:
    root = _FILES.find_folder(folder, path)
    test = root / TEST_BATCH
    read_test = (lambda: read_batches([test], len(CLASSES))) if test.exists() else None
    return Dataset(read_batches(_find_batches(root), len(CLASSES)), CLASSES, read_test)


def _find_batches(folder: Path) -> list[Path]:
    return [folder / name for name in TRAIN_BATCHES if (folder / name).exists()]


def _download(folder: Path) -> None:
    base = mirror_url("cifar10", "https://www.cs.toronto.edu/~kriz")
    archive = fetch(RemoteFile(f"{base}/{ARCHIVE}", SHA256), folder)
    unpack(archive, (*TRAIN_BATCHES, TEST_BATCH), folder)


_VERSIONS = ("binary", "python", "matlab")
_CIFAR_100 = (
    'save its images and labels with `np.savez`, and read them with `source = arrays("FILE.npz")`'
)


def _recognise(folder: Path) -> str | None:
    """What to do if a folder contains CIFAR-10 in another form, or packed."""
    advice = (
        f"download {ARCHIVE}, `binary version`, from https://www.cs.toronto.edu/~kriz/cifar.html"
    )
    others = ["cifar-100-binary", "cifar-100-python", *(f"cifar-100-{x}.tar.gz" for x in _VERSIONS)]
    if found := next((folder / x for x in others if (folder / x).exists()), None):
        return f"{found} is CIFAR-100, which is another data set; {_CIFAR_100}"
    if (folder / "train.bin").is_file() or (folder / "meta").is_file():
        return f"{folder} contains CIFAR-100, which is another data set; {_CIFAR_100}"
    if (folder / "train.7z").is_file() and not (folder / "train").is_dir():
        return f"unpack {folder / 'train.7z'} there: `7z x train.7z`"
    if (folder / "trainLabels.csv").is_file():
        return 'these are Kaggle\'s pictures: `source = csv("trainLabels.csv", images="train")`'
    for name in ("", "cifar-10-batches-py"):
        if (folder / name / "data_batch_1").is_file():
            place = folder / name
            return f"{place} is the Python version, a pickle, which is never read: {advice}"
    if (folder / "cifar-10-batches-mat").is_dir() or (folder / "data_batch_1.mat").is_file():
        return f"{folder} contains the Matlab version, which is not read: {advice}"
    if (folder / "cifar-10-python.tar.gz").is_file():
        return f"{folder / 'cifar-10-python.tar.gz'} is the Python version: {advice}"
    if (folder / ARCHIVE).is_file():
        return f"unpack {folder / ARCHIVE} there: `tar xf {ARCHIVE}`"
    return None


_FILES = DatasetFiles(
    "cifar10",
    (*TRAIN_BATCHES, TEST_BATCH),
    lambda folder: bool(_find_batches(folder)),
    _download,
    ("cifar-10-batches-bin",),
    _recognise,
)


def read_batches(paths: list[Path], classes: int) -> Samples:
    """Reads the images of several files as NHWC. Raises NetError, naming the file, if one is not a
    CIFAR-10 batch."""
    records = np.concatenate([_read_records(p, classes) for p in paths])
    planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return Samples(images, records[:, 0].astype(np.int32))


def _read_records(path: Path, classes: int) -> Array:
    with open_regular_file(path) as f:
        size = os.fstat(f.fileno()).st_size
        check_memory(str(path), _COPIES_IN_MEMORY * size)
        content = read_exactly(f, size) if size and size % RECORD_BYTES == 0 else None
    if content is None:
        raise fail(
            f"{path} has {size:,} bytes, not a whole number of images of {RECORD_BYTES:,}",
            help="it is truncated or not a binary batch; download it again",
        )
    records: Array = content.reshape(-1, RECORD_BYTES)
    wrong = np.flatnonzero(records[:, 0] >= classes)
    if len(wrong):
        first = int(wrong[0])
        message = f"{path} gives image {first} the label {records[first, 0]}"
        help = f"the labels of {classes} classes are 0 to {classes - 1}; is it a batch of CIFAR-10?"
        raise fail(message, help=help)
    return records
