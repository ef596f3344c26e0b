"""How much memory reading data may take: held against what headers say, before it is allocated."""

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

VARIABLE = "NETDSL_MEMORY"
USUAL = 4 * 10**9
SMALL, MOST_PACKED = 250 * 10**6, 100
"""A compressed file may unpack to that many bytes, or to that many times its size: what grows
further is more likely made to fill the memory than to be learnt from."""
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) *([kMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def limit() -> int:
    """Bytes that the images of a data set may take. Raises NetError where the environment does
    not say a size."""
    return _given() or USUAL


def _given() -> int | None:
    text = read_variable(VARIABLE)
    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size < 1:
        raise fail(f"{format_variable(VARIABLE, text)} is not a size", help=f"as in {VARIABLE}=8GB")
    return size


def check_bytes(what: str, size: int, packed: int | None = None) -> None:
    """Raises NetError where `what` would take `size` bytes, and that is over the limit, or far
    more than the `packed` bytes of a compressed file."""
    most = limit()
    if packed is not None and _given() is None:
        most = min(most, max(SMALL, MOST_PACKED * packed))
    if size > most:
        small = f" out of {format_bytes(packed)}" if packed is not None and most < limit() else ""
        raise over(f"{what} would take {format_bytes(size)} of memory{small}", most, size)


def check_pixels(what: str, pixels: int, each: int) -> None:
    """Raises NetError where one picture, at any size on its way, has more pixels than all that are
    decoded at once may have, where each takes so many bytes."""
    most = decoding() // each
    if pixels > most:
        message = f"{what} has {pixels:,} pixels, and at most {most:,} are decoded at once"
        raise fail(message, help=_raised(4 * each * pixels))


def check_work(what: str, size: int) -> None:
    """Raises NetError where making images ready takes more memory than there is for it."""
    if size > decoding():
        raise over(f"{what} would take {format_bytes(size)} of memory", decoding(), 4 * size)


def over(message: str, most: int, wanted: int) -> NetError:
    """What is said where something takes more than its limit, and how the limit is raised."""
    return fail(f"{message}, and the limit is {format_bytes(most)}", help=_raised(wanted))


def _raised(wanted: int) -> str:
    size = max(1, -(-wanted // 10**9))
    return f"`{VARIABLE}={size}GB` in the environment allows it, where there is that much"


def decoding() -> int:
    """Bytes that pictures may take while they are decoded: all of them that are at it."""
    return limit() // 4


_PIECE = 1 << 20


def filled(file: IO[bytes], size: int) -> Array | None:
    """The next `size` bytes of a file, read in pieces into one array that is not copied again;
    None where there are fewer."""
    content: Array = np.empty(size, np.uint8)
    done = 0
    while done < size:
        piece = file.read(min(_PIECE, size - done))
        if not piece:
            return None
        content[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return content


class Gate:
    """Lets threads work as long as what all of them need fits into the memory for decoding; one
    alone is always let in."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._taken = 0

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Waits until there is room for `size` bytes, and keeps it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= decoding())
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


DECODING = Gate()
"""The memory for decoding, which all threads share."""
