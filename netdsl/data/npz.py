"""Images and labels in one NumPy file (.npz)."""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from netdsl.data.arrays import ArrayHeader, check_images_and_labels, check_label_range
from netdsl.data.data_source import DataSource
from netdsl.data.memory_limits import check_memory, read_exactly
from netdsl.data.samples import Dataset, Samples
from netdsl.errors import NetError, fail
from netdsl.file_io import open_regular_file
from netdsl.parameter_types import QuotedText
from netdsl.signature import Param, Signature
from netdsl.types import Array, dims

ARRAY_NAMES = ("images", "labels", "test_images", "test_labels")


def arrays_source() -> DataSource:
    file = Param("path", QuotedText(), doc="an .npz file, looked up in the `--data` folder")
    doc = (
        "images (uint8) and labels (0, 1, 2, ... without gaps), test_images and test_labels, "
        "as NumPy saves them"
    )
    return DataSource(Signature("arrays", (file,)), _load, None, None, doc)


def _load(folder: Path | None, path: str) -> Dataset:
    return read_arrays(folder / path if folder else Path(path))


@dataclass(frozen=True)
class _Member:
    """An array in the file, of which only the header has been read."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran_order: bool
    info: zipfile.ZipInfo

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _BoundedReader:
    """A file that limits the size of each read, whatever sizes its content claims."""

    MAX_READ = 1 << 20

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self.close = file.close

    def read(self, n: int | None = -1) -> bytes:
        if n is None or n < 0:
            n = self.MAX_READ
        if n > self.MAX_READ:
            raise ValueError(f"it has a directory of {n:,} bytes")
        return self._file.read(n)


def read_arrays(path: Path) -> Dataset:
    """Reads `images` (bytes, N x H x W or N x H x W x C) and `labels` (integers), and optionally
    `test_images` and `test_labels`. Raises NetError, naming file and array, if they are invalid;
    also, before anything is allocated, if they exceed the memory limit."""
    if not path.exists():
        raise fail(f"there is no file {path}", help='arrays("data.npz") names a NumPy file')
    with open_regular_file(path) as file:
        try:
            with zipfile.ZipFile(_BoundedReader(file)) as archive:
                return _read_archive(path, archive, os.fstat(file.fileno()).st_size)
        except NetError:
            raise
        except (zipfile.BadZipFile, zlib.error, *_ARCHIVE_ERRORS) as e:
            raise _make_damage_error(path, str(e)) from None


_ARCHIVE_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    TypeError,
)
"""What `zipfile` raises for a damaged archive besides its own errors."""
_COMPRESSION_NAMES = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA"}
_SAVE_HELP = "np.savez(FILE, images=..., labels=..., test_images=..., test_labels=...) writes one"


def _make_damage_error(path: Path, reason: str) -> NetError:
    return fail(f"{path} is not an .npz file, or is damaged: {reason}", help=_SAVE_HELP)


def _read_archive(path: Path, archive: zipfile.ZipFile, packed_size: int) -> Dataset:
    wanted = {f"{name}.npy": name for name in ARRAY_NAMES}
    entries = [i for i in archive.infolist() if i.filename in wanted]
    for file, count in Counter(i.filename for i in entries).items():
        if count > 1:
            raise fail(f"{path} holds {count:,} arrays `{wanted[file]}`", help=_SAVE_HELP)
    found = ((wanted[i.filename], i) for i in entries)
    members = {name: _read_member(path, name, archive, info) for name, info in found}
    pairs = [ARRAY_NAMES[:2]] + (
        [ARRAY_NAMES[2:]] if ARRAY_NAMES[2] in members or ARRAY_NAMES[3] in members else []
    )
    for names in pairs:
        _check_pair(path, members, *names)
    sizes = {dims(_image_shape(members[images])) for images, _ in pairs}
    if len(sizes) > 1:
        raise fail(f"{path} holds images of {' and '.join(sorted(sizes))}; they must have one size")
    check_memory(f"{path}, unpacked,", sum(m.size for m in members.values()), packed_size)
    train, *test = [_read_samples(path, archive, members, *names) for names in pairs]
    highest = max(int(x.labels.max()) for x in (train, *test))
    classes = tuple(map(str, range(1 + highest)))
    return Dataset(train, classes, (lambda: test[0]) if test else None)


def _read_member(path: Path, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    """Reads the header of an array. Raises NetError unless it is a numeric array as NumPy writes
    it."""
    if info.flag_bits & 1:
        raise fail(f"`{name}` in {path} is encrypted", help=_SAVE_HELP)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _COMPRESSION_NAMES.get(info.compress_type, f"method {info.compress_type}")
        message = f"`{name}` in {path} is compressed by {method}, which NumPy does not write"
        raise fail(message, help="np.savez_compressed(FILE, images=..., labels=...) compresses")
    with archive.open(info) as f:
        shape, dtype, is_fortran_order = _read_header(f, path, name)
    found = _Member(name, shape, dtype, is_fortran_order, info)
    if dtype.hasobject or dtype.kind not in "uibf":
        raise fail(f"`{name}` in {path} holds {dtype}, not numbers", help=_SAVE_HELP)
    if found.size > info.file_size:
        raise fail(f"`{name}` in {path} claims to have {found.size:,} bytes; it is damaged")
    return found


_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000
_HEADER = re.compile(
    r"\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': "
    r"\(((?:\d{1,19}L?, ?)*(?:\d{1,19}L?)?)\), *\} *\n?"
)


def _read_header(
    f: IO[bytes], path: Path, name: str
) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type and order of an array. Accepts only the form of header that NumPy writes, and
    does not evaluate it."""
    preamble = f.read(8)
    if preamble[:6] != _MAGIC or preamble[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise _make_damage_error(path, f"`{name}` does not start like an array")
    length = int.from_bytes(f.read(2 if preamble[6] == 1 else 4), "little")
    text = f.read(length) if length <= _MAX_HEADER else b""
    found = _HEADER.fullmatch(text.decode("latin-1"))
    if found is None:
        shown = ascii(text[:60].decode("latin-1"))
        raise _make_damage_error(
            path, f"the header of `{name}` is {shown}, not that of a plain numeric array"
        )
    shape = tuple(int(n.strip().rstrip("L")) for n in found[3].split(",") if n.strip())
    return shape, np.dtype(found[1]), found[2] == "True"


def _image_shape(images: _Member) -> tuple[int, ...]:
    """Height, width and channels."""
    return (*images.shape[1:], 1)[:3]


def _check_pair(
    path: Path, members: Mapping[str, _Member], images_name: str, labels_name: str
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
    path: Path,
    archive: zipfile.ZipFile,
    members: Mapping[str, _Member],
    images_name: str,
    labels_name: str,
) -> Samples:
    labels = _read_array(path, archive, members[labels_name])
    check_label_range(labels, f"`{labels_name}` in {path}")
    images = _read_array(path, archive, members[images_name])
    return Samples(images if images.ndim == 4 else images[..., None], labels.astype(np.int32))


def _read_array(path: Path, archive: zipfile.ZipFile, member: _Member) -> Array:
    with archive.open(member.info) as f:
        _read_header(f, path, member.name)
        content = read_exactly(f, member.size)
        if content is None or f.read(1):
            size = f"{member.size:,} bytes"
            raise fail(f"`{member.name}` in {path} does not have the {size} that its header says")
    order = "F" if member.is_fortran_order else "C"
    return content.view(member.dtype).reshape(member.shape, order=order)
