"""Strides of several axes taken as one."""

from __future__ import annotations

from itertools import pairwise

from netdsl.plan.layout import Layout


def collapse_strides(layout: Layout, rank: int) -> int | None:
    """The stride of the first `rank` axes as one; None where there are gaps."""
    axes = [(s, t) for s, t in zip(layout.shape[:rank], layout.strides, strict=False) if s > 1]
    if any(a[1] != b[0] * b[1] for a, b in pairwise(axes)):
        return None
    return axes[-1][1] if axes else layout.strides[rank - 1] if rank else 0
