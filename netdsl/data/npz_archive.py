"""Arrays in a NumPy archive (.npz): headers are checked before any array is allocated, and nothing
in the file is evaluated."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from netdsl.data.array_advice import advise_object_type
from netdsl.data.memory_limits import check_memory, read_exactly
from netdsl.data.npy import SUFFIX, HeaderError, NpyHeader, read_header
from netdsl.errors import NetError, fail
from netdsl.file_io import open_regular_file
from netdsl.text_escaping import escape_line
from netdsl.types import Array


@dataclass(frozen=True)
class NpzMember:
    """An array in the file, of which only the header has been read."""

    name: str
    header: NpyHeader
    info: zipfile.ZipInfo

    @property
    def shape(self) -> tuple[int, ...]:
        return self.header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.header.dtype

    @property
    def size(self) -> int:
        return self.header.size


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


@dataclass(frozen=True)
class NpzArchive:
    """An open archive. `save_help` is the help line that says how to write such a file."""

    path: Path
    packed_size: int
    save_help: str
    _zip: zipfile.ZipFile

    def files(self) -> list[str]:
        """The names of all files in the archive."""
        return [i.filename for i in self._zip.infolist()]

    def names(self) -> list[str]:
        """The names of all arrays."""
        return [name.removesuffix(SUFFIX) for name in self.files() if name.endswith(SUFFIX)]

    def members(
        self, names: list[str] | tuple[str, ...], texts: tuple[str, ...] = ()
    ) -> dict[str, NpzMember]:
        """The headers of those of the arrays that the file holds. Raises NetError unless they are
        numeric arrays as NumPy writes them, or those in `texts` arrays of text, each once."""
        wanted = {f"{name}{SUFFIX}": name for name in names}
        entries = [i for i in self._zip.infolist() if i.filename in wanted]
        for file, count in Counter(i.filename for i in entries).items():
            if count > 1:
                shown = escape_line(wanted[file])
                raise fail(f"{self.path} holds {count:,} arrays `{shown}`", help=self.save_help)
        return {
            name: self._read_member(name, i, "U" if name in texts else "uibf")
            for i in entries
            for name in (wanted[i.filename],)
        }

    def check_size(self, members: dict[str, NpzMember]) -> None:
        """Raises NetError if the arrays, unpacked, exceed the memory limit."""
        size = sum(m.size for m in members.values())
        check_memory(f"{self.path}, unpacked,", size, self.packed_size)

    def _read_member(self, name: str, info: zipfile.ZipInfo, kinds: str) -> NpzMember:
        """The header of an array. Raises NetError unless its type is of one of NumPy's `kinds`."""
        shown = f"`{escape_line(name)}` in {self.path}"
        if info.flag_bits & 1:
            raise fail(f"{shown} is encrypted", help=self.save_help)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            method = _COMPRESSION_NAMES.get(info.compress_type, f"method {info.compress_type}")
            message = f"{shown} is compressed by {method}, which NumPy does not write"
            raise fail(message, help="np.savez_compressed(FILE, NAME=ARRAY, ...) compresses")
        with self._zip.open(info) as f:
            found = NpzMember(name, self._read_header(f, name), info)
        dtype = found.dtype
        if dtype.hasobject or dtype.kind not in kinds:
            noun = "text" if kinds == "U" else "numbers"
            held = "Python objects, a pickle, which is never read" if dtype.hasobject else dtype
            help = advise_object_type(dtype, name) or self.save_help
            raise fail(f"{shown} holds {held}, not {noun}", help=help)
        if found.size > info.file_size:
            raise fail(f"{shown} claims to have {found.size:,} bytes; it is damaged")
        return found

    def _read_header(self, f: IO[bytes], name: str) -> NpyHeader:
        """Shape, type and order of an array."""
        try:
            return read_header(f)
        except HeaderError as e:
            raise self._damage_error(f"`{escape_line(name)}` {e}") from None

    def _damage_error(self, reason: str) -> NetError:
        return _make_damage_error(self.path, reason, self.save_help)

    def read(self, member: NpzMember) -> Array:
        """The values of an array."""
        with self._zip.open(member.info) as f:
            self._read_header(f, member.name)
            content = read_exactly(f, member.size)
            if content is None or f.read(1):
                name, size = escape_line(member.name), f"{member.size:,} bytes"
                message = (
                    f"`{name}` in {self.path} does not have the {size} that its header declares"
                )
                raise fail(message)
        return member.header.shape_values(content)


_COMPRESSION_NAMES = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA"}
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


@contextmanager
def open_npz(path: Path, save_help: str) -> Iterator[NpzArchive]:
    """Opens an archive. Raises NetError, also for what is read from it inside the `with` block, if
    the file is no archive or is damaged."""
    with open_regular_file(path) as file:
        try:
            with zipfile.ZipFile(_BoundedReader(file)) as archive:
                yield NpzArchive(path, os.fstat(file.fileno()).st_size, save_help, archive)
        except NetError:
            raise
        except (zipfile.BadZipFile, zlib.error, *_ARCHIVE_ERRORS) as e:
            raise _make_damage_error(path, str(e), save_help) from None


def _make_damage_error(path: Path, reason: str, save_help: str) -> NetError:
    return fail(f"{path} is not an .npz file, or is damaged: {reason}", help=save_help)
