"""The idx format of MNIST and its kin, compressed or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from netdsl.errors import fail
from netdsl.types import Array

_MOST_VALUES = 2**31


def read_idx(folder: Path, name: str, rank: int) -> Array:
    """The unsigned bytes of `folder/name`, or of `name.gz` beside it.

    Raises NetError, naming the file, where it is missing, truncated, or not such a file.
    """
    shape, body = _read(folder, name, rank, whole=True)
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def idx_shape(folder: Path, name: str, rank: int) -> tuple[int, ...]:
    """The shape that a file announces; its values are not read."""
    return _read(folder, name, rank, whole=False)[0]


def _read(folder: Path, name: str, rank: int, whole: bool) -> tuple[tuple[int, ...], bytes]:
    path = find(folder, name)
    if path is None:
        raise fail(f"{folder} holds no {name}.gz")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
            shape = _shape(f.read(4 + 4 * rank), rank, path)
            count = math.prod(shape)
            if count > _MOST_VALUES:
                raise fail(f"{path} says that it holds {count:,} values; it is damaged")
            body = f.read(count + 1) if whole else b""
    except (OSError, EOFError, zlib.error) as e:
        raise fail(f"cannot read {path}: {e}", help="download it again") from None
    if whole and len(body) != count:
        more = "more" if len(body) > count else "fewer"
        message = f"{path} holds {more} values than its header says"
        raise fail(message, help="download it again")
    return shape, body


def find(folder: Path, name: str) -> Path | None:
    """The file of that name, compressed or not."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None


def _shape(head: bytes, rank: int, path: Path) -> tuple[int, ...]:
    if len(head) < 4 + 4 * rank or head[:3] != b"\x00\x00\x08" or head[3] != rank:
        raise fail(f"{path} is no idx file of bytes with {rank} axes", help="is it the right file?")
    return tuple(int(n) for n in np.frombuffer(head, dtype=">u4", offset=4))
