"""An ONNX graph under construction: nodes named by paths, constants, and how images are stored.

netdsl's images are [N,H,W,C]; an ONNX graph holds every value of rank 4 as [N,C,H,W], and values of
other ranks as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from netdsl.types import Array

Shape = tuple[int, ...]
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True)
class ExportNode:
    """An ONNX node, and the name of its one result."""

    op: str
    name: str
    result: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportValue:
    """A value of the graph by its name. `shape` is netdsl's, batch first. `flattened` is the shape
    of the image, height x width x channels, that a row was flattened from in ONNX's order, channels
    first; None for a row in netdsl's order."""

    name: str
    shape: Shape
    flattened: Shape | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def channel_axis(self) -> int:
        """The axis of the channels where it is stored."""
        return stored_axis(self.rank, self.rank - 1)


def stored_axis(rank: int, axis: int) -> int:
    """The axis of a stored value that is `axis` in netdsl."""
    return TO_NCHW.index(axis) if rank == 4 else axis


def stored_shape(shape: Shape) -> Shape:
    return tuple(shape[a] for a in TO_NCHW) if len(shape) == 4 else shape


@dataclass(frozen=True)
class StoredLayout:
    """How an array of netdsl is stored: reshaped to `split`, its axes permuted, and reshaped to
    `shape`."""

    source: Shape
    split: Shape
    perm: Shape
    shape: Shape

    def store(self, array: Array) -> Array:
        moved = array.reshape(self.split).transpose(self.perm)
        return np.ascontiguousarray(moved).reshape(self.shape)

    def restore(self, array: Array) -> Array:
        """The inverse of `store`."""
        moved = array.reshape(tuple(self.split[a] for a in self.perm))
        back = moved.transpose(tuple(self.perm.index(a) for a in range(len(self.perm))))
        return np.ascontiguousarray(back).reshape(self.source)


def permuted(source: Shape, perm: Shape) -> StoredLayout:
    return StoredLayout(source, source, perm, tuple(source[a] for a in perm))


def unchanged(source: Shape) -> StoredLayout:
    return permuted(source, tuple(range(len(source))))


def per_channel(source: Shape, rank: int) -> StoredLayout:
    """One value for each channel (or one for all), to broadcast with a stored value of that
    rank."""
    wide = (*source, 1, 1) if rank == 4 and source != (1,) else source
    return replace(unchanged(source), shape=wide)


class ExportBuilder:
    """Collects nodes and constants. Between `begin` and `end`, nodes belong to the layer of a path:
    its result has the name of the path, and what leads to it names below it.

    `opset` is the version of ONNX's operators, `dtype` the type of all that is computed."""

    def __init__(self, opset: int, dtype: str, reserved: Sequence[str]) -> None:
        self.opset = opset
        self.dtype = dtype
        self.nodes: list[ExportNode] = []
        self.constants: dict[str, Array] = {}
        self._names = set(reserved)
        self._path = ""
        self._first = 0

    def unique(self, name: str) -> str:
        """The name, with a number if another value has it."""
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}~{count}"
        self._names.add(candidate)
        return candidate

    def begin(self, path: str) -> None:
        self._path, self._first = path, len(self.nodes)

    def end(self, value: ExportValue) -> ExportValue:
        """Gives the result of a layer, and the node that makes it, the path as name; returns any
        other value as it is."""
        if value.name not in {n.result for n in self.nodes[self._first :]}:
            return value
        return self._rename(value, self.unique(self._path), self._first)

    def name_output(self, value: ExportValue, name: str) -> ExportValue:
        """Gives the result of the graph its reserved name; the node that makes it keeps its own."""
        return self._rename(value, name, 0, renames_node=False)

    def _rename(
        self, value: ExportValue, name: str, first: int, renames_node: bool = True
    ) -> ExportValue:
        """Renames a value that only nodes from `first` on make and read."""
        for i in range(first, len(self.nodes)):
            node = self.nodes[i]
            if node.result == value.name:
                node = replace(node, result=name, name=name if renames_node else node.name)
            inputs = tuple(name if x == value.name else x for x in node.inputs)
            self.nodes[i] = replace(node, inputs=inputs)
        return replace(value, name=name)

    def emit(self, op: str, *inputs: str, **attrs: Any) -> str:
        name = self.unique(f"{self._path}.{op.lower()}")
        self.nodes.append(ExportNode(op, name, name, inputs, attrs))
        return name

    def constant(self, name: str, array: Any, dtype: str | None = None) -> str:
        """Adds a constant; floats get the graph's type unless it is given."""
        value = np.asarray(array)
        if value.dtype.kind == "f":
            with np.errstate(over="ignore"):  # what overflows is reported with all else
                value = value.astype(dtype or self.dtype)
        unique = self.unique(name)
        self.constants[unique] = value
        return unique

    def number(self, what: str, value: Any) -> str:
        """Adds a constant of the current layer: floats, or integers as shapes and axes are."""
        array = np.asarray(value)
        if array.dtype.kind == "i":
            array = array.astype(np.int64)
        return self.constant(f"{self._path}.{what}", array)

    # ---- moving values

    def reshape(self, x: str, *shape: int) -> str:
        """Reshapes; 0 keeps an axis, such as the batch."""
        return self.emit("Reshape", x, self.number("shape", shape))

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        return self.emit("Transpose", x, perm=list(perm))

    def channels_last(self, x: ExportValue) -> str:
        """The name of a value in netdsl's layout."""
        x = self.ordered(x)
        return self.transpose(x.name, TO_NHWC) if x.rank == 4 else x.name

    def ordered(self, x: ExportValue) -> ExportValue:
        """The value, a flattened image in netdsl's order."""
        if x.flattened is None:
            return x
        h, w, c = x.flattened
        image = self.reshape(x.name, 0, c, h, w)
        return ExportValue(self.reshape(self.transpose(image, TO_NHWC), 0, h * w * c), x.shape)

    def flatten(self, x: ExportValue) -> ExportValue:
        """One row for each sample, in the order in which it is stored."""
        if x.rank == 2:
            return x
        flattened = None
        if x.rank == 4 and math.prod(x.shape[1:3]) > 1 and x.shape[3] > 1:
            flattened = x.shape[1:]
        name = self.emit("Flatten", x.name, axis=1)
        return ExportValue(name, (x.shape[0], math.prod(x.shape[1:])), flattened)

    def reduce(self, op: str, x: str, axes: Sequence[int]) -> str:
        """ReduceMean or ReduceMax over axes, which stay with the size 1; from opset 18 on, axes are
        an input."""
        if self.opset < 18:
            return self.emit(op, x, axes=list(axes), keepdims=1)
        return self.emit(op, x, self.number("axes", axes), keepdims=1)
