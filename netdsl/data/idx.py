"""The idx format of MNIST and related data sets, compressed or not."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np

from netdsl.data.memory_limits import check_memory, read_exactly
from netdsl.errors import NetError, fail
from netdsl.file_io import open_regular_file
from netdsl.types import Array


def read_idx(folder: Path, name: str, rank: int) -> Array:
    """Reads the unsigned bytes of `folder/name`, or of `name.gz` in the same folder.

    Raises NetError, naming the file, if it is missing, truncated, or not such a file; also, before
    anything is unpacked, if its values exceed the memory limit.
    """
    with _open_idx(folder, name, rank) as (path, f, shape):
        values = read_exactly(f, math.prod(shape))
        if values is None or f.read(1):
            raise _make_length_error(path, "fewer" if values is None else "more")
    return values.reshape(shape)


def _make_length_error(path: Path, comparison: str) -> NetError:
    return fail(
        f"{path} contains {comparison} values than its header declares", help="download it again"
    )


def read_idx_shape(folder: Path, name: str, rank: int) -> tuple[int, ...]:
    """The shape in a file's header; the values are not read. Raises NetError as `read_idx` does."""
    with _open_idx(folder, name, rank) as (_, _, shape):
        return shape


@contextmanager
def _open_idx(
    folder: Path, name: str, rank: int
) -> Iterator[tuple[Path, IO[bytes], tuple[int, ...]]]:
    """Opens a file, reads its header and yields the shape in it."""
    path = find_file(folder, name)
    if path is None:
        raise fail(f"{folder} contains no {name}.gz")
    with open_regular_file(path) as file:
        size, is_packed = os.fstat(file.fileno()).st_size, path.suffix == ".gz"
        unpacked_file: AbstractContextManager[IO[bytes]]
        unpacked_file = closing(_open_gzip(file)) if is_packed else nullcontext(file)
        try:
            with unpacked_file as f:
                shape = _parse_shape(f.read(4 + 4 * rank), rank, path)
                if not is_packed and math.prod(shape) > size:
                    raise _make_length_error(path, "fewer")
                check_memory(f"{path}, unpacked,", math.prod(shape), size if is_packed else None)
                yield path, f, shape
        except (OSError, EOFError, zlib.error) as e:
            raise fail(f"cannot read {path}: {e}", help="download it again") from None


def _open_gzip(file: BinaryIO) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile(fileobj=file))


def find_file(folder: Path, name: str) -> Path | None:
    """The file of that name, or with a dot before `idx`, compressed or not, in the folder or in
    one of its own name, as some archives unpack; None if there is none."""
    names = (name, name.replace("-idx", ".idx"))
    for place in (folder, *(folder / n for n in names)):
        for path in (place / f"{n}{suffix}" for n in names for suffix in (".gz", "")):
            if os.path.exists(path) and not os.path.isdir(path):
                return path
    return None


def _parse_shape(header: bytes, rank: int, path: Path) -> tuple[int, ...]:
    if len(header) < 4 + 4 * rank or header[:3] != b"\x00\x00\x08" or header[3] != rank:
        raise fail(
            f"{path} is not an idx file of bytes with {rank} axes", help="is it the right file?"
        )
    return tuple(int(n) for n in np.frombuffer(header, dtype=">u4", offset=4))
