"""The idx format of MNIST and its kin, compressed or not."""

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

from netdsl.data.limits import check_bytes, filled
from netdsl.errors import NetError, fail
from netdsl.file_io import open_regular_file
from netdsl.types import Array


def read_idx(folder: Path, name: str, rank: int) -> Array:
    """The unsigned bytes of `folder/name`, or of `name.gz` beside it.

    Raises NetError, naming the file, where it is missing, truncated, or not such a file, and before
    anything is unpacked where its values take more memory than there is for them.
    """
    with _opened(folder, name, rank) as (path, f, shape):
        values = filled(f, math.prod(shape))
        if values is None or f.read(1):
            raise _other_length(path, "fewer" if values is None else "more")
    return values.reshape(shape)


def _other_length(path: Path, values: str) -> NetError:
    return fail(f"{path} holds {values} values than its header says", help="download it again")


def idx_shape(folder: Path, name: str, rank: int) -> tuple[int, ...]:
    """The shape that a file announces; its values are not read. Raises NetError as `read_idx`."""
    with _opened(folder, name, rank) as (_, _, shape):
        return shape


@contextmanager
def _opened(
    folder: Path, name: str, rank: int
) -> Iterator[tuple[Path, IO[bytes], tuple[int, ...]]]:
    """A file of which the header is read, and the shape that this says."""
    path = find(folder, name)
    if path is None:
        raise fail(f"{folder} holds no {name}.gz")
    with open_regular_file(path) as file:
        size, is_packed = os.fstat(file.fileno()).st_size, path.suffix == ".gz"
        plain: AbstractContextManager[IO[bytes]]
        plain = closing(_unpacked(file)) if is_packed else nullcontext(file)
        try:
            with plain as f:
                shape = _shape(f.read(4 + 4 * rank), rank, path)
                if not is_packed and math.prod(shape) > size:
                    raise _other_length(path, "fewer")
                check_bytes(f"{path}, unpacked,", math.prod(shape), size if is_packed else None)
                yield path, f, shape
        except (OSError, EOFError, zlib.error) as e:
            raise fail(f"cannot read {path}: {e}", help="download it again") from None


def _unpacked(file: BinaryIO) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile(fileobj=file))


def find(folder: Path, name: str) -> Path | None:
    """The file of that name, compressed or not."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            return path
    return None


def _shape(head: bytes, rank: int, path: Path) -> tuple[int, ...]:
    if len(head) < 4 + 4 * rank or head[:3] != b"\x00\x00\x08" or head[3] != rank:
        raise fail(f"{path} is no idx file of bytes with {rank} axes", help="is it the right file?")
    return tuple(int(n) for n in np.frombuffer(head, dtype=">u4", offset=4))
