"""Elements in memory: the values that a kernel reads and writes, aligned with its domain."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.lower.expression import PaddedAxis
from netdsl.plan.layout import IntTuple, Layout

DTYPE_BYTES = {"float32": 4, "uint8": 1, "bool": 1, "int32": 4}
"""The element types that kernels read."""


@dataclass(frozen=True)
class KernelOperand:
    """What a kernel may read: the address of the buffer, the layout in it, the element type.
    `is_local` is a tile that its producer has just written, with rows one after the other."""

    address: int
    layout: Layout
    dtype: str
    is_local: bool = False


@dataclass(frozen=True, eq=False)
class MemoryRef:
    """Elements in memory, aligned with a domain: a stride for each of its axes. A padded axis is
    read through padding, whose elements are `fill`."""

    address: int
    strides: IntTuple
    dtype: str = "float32"
    padded_axes: tuple[PaddedAxis, ...] = ()
    fill: float = 0.0
    is_local: bool = False
