"""Placement: the buffer and the location in it of a value."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.ops.windows import Pads
from netdsl.plan.layout import IntTuple, Layout, row_major_strides
from netdsl.types import ITEMSIZE

ARENA = "arena"
NO_HALO: Pads = ((0, 0), (0, 0))


@dataclass(frozen=True, slots=True)
class ImagePadding:
    """What is allocated around and after an image's values: `halo` pixels of zeros at top, bottom,
    left and right, and `channels` channels in total."""

    halo: Pads
    channels: int

    def padded_shape(self, shape: IntTuple) -> IntTuple:
        n, h, w, _ = shape
        (top, bottom), (left, right) = self.halo
        return (n, top + h + bottom, left + w + right, self.channels)

    def make_layout(self, shape: IntTuple) -> Layout:
        (top, _), (left, _) = self.halo
        strides = row_major_strides(self.padded_shape(shape))
        return Layout(shape, strides, top * strides[1] + left * strides[2])


@dataclass(frozen=True, slots=True)
class Placement:
    """`layout` counts elements of `dtype` from the start of `buffer`: the arena, or the input,
    state or constant of that name. A value with `padding` owns the zeros around it: whoever writes
    the value writes them too."""

    buffer: str
    dtype: str
    layout: Layout
    padding: ImagePadding | None = None

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def start(self) -> int:
        """The byte offset of the value itself."""
        return self.layout.offset * self.itemsize

    def byte_range(self) -> tuple[int, int]:
        """Returns the first byte of the value and its zeros, and the one past the last."""
        layout = self.padded_layout()
        last = sum((s - 1) * t for s, t in zip(layout.shape, layout.strides, strict=True))
        first = layout.offset * self.itemsize
        return first, first + (last + 1) * self.itemsize

    def overlaps(self, other: Placement) -> bool:
        """Returns whether the byte ranges of two values in the same buffer intersect."""
        (first, last), (start, stop) = self.byte_range(), other.byte_range()
        return self.buffer == other.buffer and first < stop and start < last

    def has_same_elements(self, other: Placement) -> bool:
        """Returns whether both values are the same elements of one buffer."""
        return self.buffer == other.buffer and self.layout.has_same_elements(other.layout)

    def padded_layout(self) -> Layout:
        """Returns the layout of the value including the zeros around it."""
        if self.padding is None:
            return self.layout
        shape = self.padding.padded_shape(self.layout.shape)
        (top, _), (left, _) = self.padding.halo
        offset = self.layout.offset - top * self.layout.strides[1] - left * self.layout.strides[2]
        return Layout(shape, self.layout.strides, offset)
