"""Memory of the engine's own. It begins with a cache line, so that no vector lies across two."""

from __future__ import annotations

import numpy as np

from netdsl.types import Array

_LINE = 64
_SLACK = 64
"""Elements behind the last one, that whole vectors may read."""


def floats(count: int) -> Array:
    """So many float32, all zero."""
    whole = np.zeros(count + _SLACK + _LINE // 4, np.float32)
    first = -whole.ctypes.data % _LINE // 4
    return whole[first : first + count + _SLACK]


_shared: list[Array] = []


def scratch(nbytes: int) -> Array:
    """Memory that one kernel uses while it runs; all kernels have the same."""
    if not _shared or _shared[-1].nbytes < nbytes:
        _shared.append(floats(nbytes // 4 * 5 // 4))
    return _shared[-1]
