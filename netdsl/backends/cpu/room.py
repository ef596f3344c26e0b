"""Memory for the engine. It begins with a cache line, so that no vector lies across two."""

from __future__ import annotations

import threading

import numpy as np

from netdsl.backends.cpu.loops import loop
from netdsl.backends.cpu.memory import touch
from netdsl.types import Array

_LINE = 64
_SLACK = 64
"""Elements behind the last one, that whole vectors may read."""


def floats(count: int) -> Array:
    """So many float32, all zero."""
    whole = np.zeros(count + _SLACK + _LINE // 4, np.float32)
    first = -whole.ctypes.data % _LINE // 4
    return whole[first : first + count + _SLACK]


_PAGE = 4096
_LARGE = 1 << 25
"""Bytes whose pages take longer to come than a thread does."""


@loop
def _touched(first, last):  # type: ignore[no-untyped-def]
    for at in range(first, last - 7, _PAGE):
        touch(at)


def _fetch(buffer: Array) -> None:
    first = buffer.ctypes.data
    _touched.call(first, first + buffer.nbytes)


def fetched(buffer: Array) -> Array:
    """A large buffer whose pages come while others work: the system gives a page when it is first
    written to, which takes a first step half of its time."""
    if buffer.nbytes >= _LARGE:
        threading.Thread(target=_fetch, args=(buffer,), daemon=True, name="netdsl pages").start()
    return buffer


_shared: list[Array] = []


def scratch(nbytes: int) -> Array:
    """Memory that one kernel uses while it runs; all kernels have the same."""
    if not _shared or _shared[-1].nbytes < nbytes:
        _shared.append(floats(nbytes // 4 * 5 // 4))
    return _shared[-1]
