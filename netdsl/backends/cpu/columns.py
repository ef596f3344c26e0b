"""Tables that tasks read, and strides of several axes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from netdsl.backends.cpu.launch import longs
from netdsl.plan.layout import Layout


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
