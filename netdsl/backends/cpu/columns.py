"""Tables that tasks read, memory that they use while they run, and strides of several axes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from netdsl.backends.cpu.launch import longs
from netdsl.plan.layout import Layout
from netdsl.types import Array


class Table:
    """Tables of whole numbers whose addresses are kept."""

    def __init__(self, kept: list[Any]) -> None:
        self.kept = kept

    def add(self, *values: Any) -> int:
        table = longs(*values)
        self.kept.append(table)
        return int(table.ctypes.data)


def flat(layout: Layout, rank: int) -> int | None:
    """The stride of the first `rank` axes as one; None where there are gaps."""
    axes = [(s, t) for s, t in zip(layout.shape[:rank], layout.strides, strict=False) if s > 1]
    if any(a[1] != b[0] * b[1] for a, b in pairwise(axes)):
        return None
    return axes[-1][1] if axes else layout.strides[rank - 1] if rank else 0


_shared: list[Array] = []


def scratch(nbytes: int) -> Array:
    """Memory that one kernel uses while it runs; all kernels have the same."""
    if not _shared or _shared[-1].nbytes < nbytes:
        _shared.append(np.zeros(nbytes // 4 * 5 // 4 + 64, np.float32))
    return _shared[-1]
