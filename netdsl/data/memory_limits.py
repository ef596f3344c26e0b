"""Limits on the memory for reading data, checked against file headers before any allocation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
from typing import IO

import numpy as np

from netdsl.environment import format_variable, read_variable
from netdsl.errors import NetError, fail
from netdsl.types import Array, format_bytes

MEMORY_VARIABLE = "NETDSL_MEMORY"
DEFAULT_MEMORY_LIMIT = 4 * 10**9
MIN_UNPACKED_LIMIT, MAX_COMPRESSION_RATIO = 250 * 10**6, 100
"""A compressed file may unpack to that many bytes, or to that many times its size: one that expands
further is more likely made to fill the memory than to be trained on."""
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) *([kMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def memory_limit() -> int:
    """Bytes that the images of a data set may take. Raises NetError if the environment variable is
    not a size."""
    return _read_limit() or DEFAULT_MEMORY_LIMIT


def _read_limit() -> int | None:
    text = read_variable(MEMORY_VARIABLE)
    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size < 1:
        raise fail(
            f"{format_variable(MEMORY_VARIABLE, text)} is not a size",
            help=f"as in {MEMORY_VARIABLE}=8GB",
        )
    return size


def check_memory(what: str, size: int, packed_size: int | None = None) -> None:
    """Raises NetError if `size` bytes, which `what` would take, exceed the limit, or are far more
    than the `packed_size` bytes of a compressed file."""
    max_bytes = memory_limit()
    if packed_size is not None and _read_limit() is None:
        max_bytes = min(max_bytes, max(MIN_UNPACKED_LIMIT, MAX_COMPRESSION_RATIO * packed_size))
    if size > max_bytes:
        compared = (
            f" out of {format_bytes(packed_size)}"
            if packed_size is not None and max_bytes < memory_limit()
            else ""
        )
        raise make_limit_error(
            f"{what} would take {format_bytes(size)} of memory{compared}", max_bytes, size
        )


def check_pixels(what: str, pixels: int, bytes_per_pixel: int) -> None:
    """Raises NetError if a picture, at any intermediate size, has more pixels than may be decoded
    at once with `bytes_per_pixel`."""
    max_pixels = decoding_limit() // bytes_per_pixel
    if pixels > max_pixels:
        message = f"{what} has {pixels:,} pixels, but at most {max_pixels:,} are decoded at once"
        raise fail(message, help=_limit_help(4 * bytes_per_pixel * pixels))


def check_decoding_memory(what: str, size: int) -> None:
    """Raises NetError if preparing images takes more memory than the limit."""
    if size > decoding_limit():
        raise make_limit_error(
            f"{what} would take {format_bytes(size)} of memory", decoding_limit(), 4 * size
        )


def make_limit_error(message: str, max_bytes: int, needed_bytes: int) -> NetError:
    """The error for something that exceeds its limit; says how to raise the limit."""
    return fail(
        f"{message}, and the limit is {format_bytes(max_bytes)}", help=_limit_help(needed_bytes)
    )


def _limit_help(needed_bytes: int) -> str:
    size = max(1, -(-needed_bytes // 10**9))
    return (
        f"`{MEMORY_VARIABLE}={size}GB` in the environment allows it if the "
        f"machine has that much memory"
    )


def decoding_limit() -> int:
    """Bytes that all pictures being decoded at the same time may take together."""
    return memory_limit() // 4


_CHUNK = 1 << 20


def read_exactly(file: IO[bytes], size: int) -> Array | None:
    """The next `size` bytes of a file, read in chunks into one array without another copy; None if
    there are fewer."""
    content: Array = np.empty(size, np.uint8)
    done = 0
    while done < size:
        chunk = file.read(min(_CHUNK, size - done))
        if not chunk:
            return None
        content[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
        done += len(chunk)
    return content


class MemorySemaphore:
    """Lets threads work while the memory that they need together is within the decoding limit; a
    single thread is always admitted."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._reserved_bytes = 0

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Waits until `size` bytes are available, and reserves them."""
        with self._condition:
            self._condition.wait_for(
                lambda: not self._reserved_bytes or self._reserved_bytes + size <= decoding_limit()
            )
            self._reserved_bytes += size
        try:
            yield
        finally:
            with self._condition:
                self._reserved_bytes -= size
                self._condition.notify_all()


DECODING_MEMORY = MemorySemaphore()
"""The decoding memory that all threads share."""
