"""Layouts: shape, strides and offset of a value, and the layouts of its views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from netdsl.types import Node

IntTuple = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The locations of a value's elements, counted in elements from the start of its buffer."""

    shape: IntTuple
    strides: IntTuple
    offset: int = 0

    def has_same_elements(self, other: Layout) -> bool:
        """Whether both place each element alike, whatever the strides of axes of size 1."""
        axes = zip(self.shape, self.strides, other.strides, strict=True)
        return (self.shape, self.offset) == (other.shape, other.offset) and all(
            size == 1 or own == others for size, own, others in axes
        )


def make_contiguous(shape: Sequence[int]) -> Layout:
    """Returns the row-major layout without gaps."""
    return Layout(tuple(shape), row_major_strides(shape))


def row_major_strides(extents: Sequence[int]) -> IntTuple:
    strides: list[int] = []
    step = 1
    for size in reversed(extents):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def compute_view_layout(layout: Layout, view: Node) -> Layout | None:
    """Returns the layout of a view of a value, or None if the elements must be copied first."""
    a = view.attrs
    if view.op == "reshape":
        return _reshape_layout(layout, tuple(a["shape"]))
    if view.op == "transpose":
        perm = a["perm"]
        return Layout(view.type.shape, tuple(layout.strides[p] for p in perm), layout.offset)
    if view.op == "broadcast":
        extra = view.type.rank - len(layout.shape)
        old_strides = (
            0 if s == 1 else t for s, t in zip(layout.shape, layout.strides, strict=True)
        )
        return Layout(view.type.shape, (*(0,) * extra, *old_strides), layout.offset)
    starts, steps = a["start"], a["step"]
    offset = layout.offset + sum(s * t for s, t in zip(starts, layout.strides, strict=True))
    strides = tuple(s * t for s, t in zip(steps, layout.strides, strict=True))
    return Layout(view.type.shape, strides, offset)


def _reshape_layout(layout: Layout, shape: IntTuple) -> Layout | None:
    """Returns the layout of the same elements in row-major order under another shape, or None if
    strides cannot express it. Matches groups of axes of equal size on both sides; the old axes of a
    group must be contiguous with each other."""
    old = [(s, t) for s, t in zip(layout.shape, layout.strides, strict=True) if s != 1]
    strides: list[int] = []
    at = 0
    todo = [s for s in shape if s != 1]
    i = 0
    while i < len(todo):
        new_size, old_size, first = todo[i], 1, at
        j = i + 1
        while old_size != new_size or at == first:
            if old_size < new_size:
                old_size *= old[at][0]
                at += 1
            else:
                new_size *= todo[j]
                j += 1
        run = old[first:at]
        if any(a[1] != b[0] * b[1] for a, b in pairwise(run)):
            return None
        inner = row_major_strides(todo[i:j])
        strides += [run[-1][1] * s for s in inner]
        i = j
    rest = iter(strides)
    return Layout(shape, tuple(1 if s == 1 else next(rest) for s in shape), layout.offset)
