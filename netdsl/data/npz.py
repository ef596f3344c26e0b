"""Images and labels in one NumPy file (.npz)."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from netdsl.data.samples import Dataset, Samples
from netdsl.data.source import DataSource
from netdsl.errors import NetError, fail
from netdsl.kinds import Text
from netdsl.signature import Param, Signature
from netdsl.types import Array, dims

NAMES = ("images", "labels", "test_images", "test_labels")
_MOST_BYTES = 2**31


def arrays() -> DataSource:
    file = Param("path", Text(), doc="a .npz file, looked for where `--data` says")
    doc = "images (uint8) and labels, test_images and test_labels, as NumPy saves them"
    return DataSource(Signature("arrays", (file,)), _load, None, None, doc)


def _load(folder: Path | None, path: str) -> Dataset:
    return read_arrays(folder / path if folder else Path(path))


def read_arrays(path: Path) -> Dataset:
    """`images` (bytes, N x H x W or N x H x W x C) and `labels` (whole numbers), perhaps
    `test_images` and `test_labels`. Raises NetError, naming file and array, where they are not."""
    arrays = _arrays(path)
    train = _samples(path, arrays, *NAMES[:2])
    test = _samples(path, arrays, *NAMES[2:]) if NAMES[2] in arrays else None
    if test is not None and test.shape != train.shape:
        sizes = " and ".join(dims(x.shape or ()) for x in (train, test))
        raise fail(f"{path} holds images of {sizes}; they must be alike")
    labels = [x.labels for x in (train, test) if x is not None]
    classes = tuple(map(str, range(1 + int(max(x.max() for x in labels)))))
    return Dataset(train, classes, None if test is None else lambda: test)


def _arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise fail(f"there is no file {path}", help='arrays("data.npz") names a NumPy file')
    try:
        with zipfile.ZipFile(path) as archive:
            there = {i.filename: i for i in archive.infolist()}
            wanted = [n for n in NAMES if f"{n}.npy" in there]
            return {n: _array(path, archive, there[f"{n}.npy"]) for n in wanted}
    except NetError:
        raise
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError) as e:
        raise fail(f"{path} is no .npz file, or damaged: {e}", help=_HOW) from None
    except (zipfile.BadZipFile, zlib.error, SyntaxError, TypeError, OverflowError) as e:
        raise fail(f"{path} is no .npz file, or damaged: {e}", help=_HOW) from None
    except (tokenize.TokenError, RecursionError, MemoryError) as e:  # a header is parsed as Python
        raise fail(f"{path} is no .npz file, or damaged: {e}", help=_HOW) from None


_LABELS = "labels are whole numbers from 0 to 99,999"
_HOW = "np.savez(FILE, images=..., labels=..., test_images=..., test_labels=...) writes one"


def _array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as f:
        shape, fortran, dtype = _header(f)
        size = math.prod(shape) * dtype.itemsize
        name = info.filename.removesuffix(".npy")
        if dtype.hasobject or dtype.kind not in "uibf":
            raise fail(f"`{name}` in {path} holds {dtype}, not numbers", help=_HOW)
        if not 0 <= size <= min(info.file_size, _MOST_BYTES):
            raise fail(f"`{name}` in {path} says that it has {size:,} bytes; it is damaged")
        content = f.read(size + 1)
        if len(content) != size:
            raise fail(f"`{name}` in {path} has other than the {size:,} bytes it speaks of")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _header(f: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(f)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of the .npy format")
    return read(f)


def _samples(path: Path, arrays: dict[str, Array], images_name: str, labels_name: str) -> Samples:
    for name in (images_name, labels_name):
        if name not in arrays:
            raise fail(f"{path} holds no array `{name}`", help=_HOW)
    images, labels = arrays[images_name], arrays[labels_name]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise fail(
            f"`{images_name}` in {path} is {dims(images.shape)} {images.dtype}",
            help="images are bytes from 0 to 255 (uint8): count x height x width x channels",
        )
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        kind = f"{dims(labels.shape)} {labels.dtype}"
        raise fail(f"`{labels_name}` in {path} is {kind}, not one whole number an image")
    if len(images) != len(labels):
        raise fail(f"{path} holds {len(images):,} {images_name} and {len(labels):,} {labels_name}")
    if not images.size:
        raise fail(f"`{images_name}` in {path} holds no images")
    if labels.min() < 0 or labels.max() >= 100_000:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise fail(f"`{labels_name}` in {path} holds the label {wrong}", help=_LABELS)
    return Samples(images if images.ndim == 4 else images[..., None], labels.astype(np.int32))
