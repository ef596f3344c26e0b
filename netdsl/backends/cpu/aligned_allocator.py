"""Memory for the engine. It begins with a cache line, so that no vector lies across two."""

from __future__ import annotations

import threading

import numpy as np

from netdsl.backends.cpu.intrinsics import touch_page
from netdsl.backends.cpu.numba_loops import numba_loop
from netdsl.types import Array

_CACHE_LINE = 64
_SLACK_ELEMENTS = 64
"""Elements behind the last one, that whole vectors may read."""


def allocate_floats(count: int) -> Array:
    """So many float32, all zero."""
    whole = np.zeros(count + _SLACK_ELEMENTS + _CACHE_LINE // 4, np.float32)
    first = -whole.ctypes.data % _CACHE_LINE // 4
    return whole[first : first + count + _SLACK_ELEMENTS]


_PAGE_BYTES = 4096
_MIN_PREFAULT_BYTES = 1 << 25
"""Bytes whose pages take longer to come than a thread does."""


@numba_loop
def _touch_range(first, last):  # type: ignore[no-untyped-def]
    for at in range(first, last - 7, _PAGE_BYTES):
        touch_page(at)


def _touch_pages(buffer: Array) -> None:
    first = buffer.ctypes.data
    _touch_range.call(first, first + buffer.nbytes)


def prefault_pages(buffer: Array) -> Array:
    """A large buffer whose pages come while others work: the system gives a page when it is first
    written to, which takes a first step half of its time."""
    if buffer.nbytes >= _MIN_PREFAULT_BYTES:
        threading.Thread(
            target=_touch_pages, args=(buffer,), daemon=True, name="netdsl pages"
        ).start()
    return buffer


_scratch_buffers: list[Array] = []


def get_scratch(nbytes: int) -> Array:
    """Memory that one kernel uses while it runs; all kernels have the same."""
    if not _scratch_buffers or _scratch_buffers[-1].nbytes < nbytes:
        _scratch_buffers.append(allocate_floats(nbytes // 4 * 5 // 4))
    return _scratch_buffers[-1]


def count_scratch_bytes() -> int:
    """All scratch memory: a kernel keeps what it was given when a later one needed more."""
    return sum(buffer.nbytes for buffer in _scratch_buffers)
