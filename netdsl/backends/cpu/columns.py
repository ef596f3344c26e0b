"""Cutting matrices to the sizes of micro-kernels, and the tables that tasks read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from netdsl.backends.cpu.launch import longs
from netdsl.backends.cpu.target import width
from netdsl.backends.cpu.tile import widths
from netdsl.plan.layout import Layout
from netdsl.types import Array


def blocks_of(columns: int) -> list[tuple[int, int, int]]:
    """Column blocks: first column, vectors, columns; all but the last ones alike."""
    lanes = width()
    vectors = -(-columns // lanes)
    fits = [v for v in widths() if vectors % v == 0]
    main = fits[0] if fits and (fits[0] > 1 or vectors < 3) else widths()[0]
    main = main if main <= vectors else next(v for v in widths() if v <= vectors)
    found, at = [], 0
    while vectors > 0:
        take = next(v for v in widths() if v <= min(main, vectors))
        found.append((at, take, min(columns - at, take * lanes)))
        at += take * lanes
        vectors -= take
    return found


def strips(pixels: int, most: int) -> tuple[int, int, int]:
    """Long strips, their length, and strips of one pixel less."""
    count = -(-pixels // most)
    length = -(-pixels // count)
    longer = pixels - count * (length - 1)
    return longer, length, count - longer


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
