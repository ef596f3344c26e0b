"""Single arrays in NumPy's format (.npy): the header is read without evaluating it, and checked
before the array is allocated."""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from netdsl.data.memory_limits import check_memory, read_exactly
from netdsl.errors import fail
from netdsl.file_io import open_regular_file
from netdsl.types import Array

SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000
_MAX_AXES = 32
_HEADER = re.compile(
    r"\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': "
    r"\(((?:\d{1,19}L?, ?)*(?:\d{1,19}L?)?)\), *\} *\n?"
)
_SAVE_HELP = "`np.save(FILE, array)` writes an array of numbers"


class HeaderError(ValueError):
    """What is wrong with a header, as a sentence that follows a noun."""


@dataclass(frozen=True)
class NpyHeader:
    """What precedes the values of an array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran_order: bool

    @property
    def size(self) -> int:
        """The bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def shape_values(self, content: Array) -> Array:
        """The bytes of the values as the array."""
        order = "F" if self.is_fortran_order else "C"
        return content.view(self.dtype).reshape(self.shape, order=order)


def read_header(f: IO[bytes]) -> NpyHeader:
    """Shape, type and order of an array. Accepts only the form of header that NumPy writes, and
    does not evaluate it. Raises HeaderError for any other, ValueError or TypeError for a type that
    NumPy does not know."""
    preamble = f.read(8)
    if preamble[:6] != _MAGIC or preamble[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise HeaderError("does not start like an array")
    length = int.from_bytes(f.read(2 if preamble[6] == 1 else 4), "little")
    text = f.read(length) if length <= _MAX_HEADER else b""
    found = _HEADER.fullmatch(text.decode("latin-1"))
    if found is None:
        excerpt = ascii(text[:60].decode("latin-1"))
        raise HeaderError(f"has the header {excerpt}, not that of a plain numeric array")
    shape = tuple(int(n.strip().rstrip("L")) for n in found[3].split(",") if n.strip())
    if len(shape) > _MAX_AXES:
        raise HeaderError(f"has {len(shape)} axes; NumPy writes at most {_MAX_AXES}")
    return NpyHeader(shape, np.dtype(found[1]), found[2] == "True")


def read_npy(path: Path) -> Array:
    """The array in a file. Raises NetError if the file is damaged, is not numeric, or
    exceeds the memory limit."""
    with open_regular_file(path) as f:
        try:
            header = read_header(f)
        except HeaderError as e:
            raise fail(f"{path} {e}", help=_SAVE_HELP) from None
        except (ValueError, TypeError) as e:
            raise fail(f"{path} contains values of an unknown type: {e}", help=_SAVE_HELP) from None
        if header.dtype.hasobject or header.dtype.kind not in "uibf":
            held = "Python objects, a pickle, which is never read"
            held = held if header.dtype.hasobject else str(header.dtype)
            raise fail(f"{path} contains {held}, not numbers", help=_SAVE_HELP)
        if not header.size:
            raise fail(f"{path} contains no values: its shape is {header.shape}", help=_SAVE_HELP)
        if header.size > os.fstat(f.fileno()).st_size:
            raise fail(f"{path} claims to have {header.size:,} bytes of values; it is damaged")
        check_memory(str(path), header.size)
        content = read_exactly(f, header.size)
        if content is None or f.read(1):
            message = f"{path} does not have the {header.size:,} bytes that its header declares"
            raise fail(message, help=_SAVE_HELP)
    return header.shape_values(content)


def format_npy(array: Array) -> bytes:
    """An array as the content of a .npy file."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def format_npz(arrays: Mapping[str, Array]) -> bytes:
    """Arrays by name as the content of an .npz file; the same arrays give the same bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}{SUFFIX}"), format_npy(array))
    return content.getvalue()
