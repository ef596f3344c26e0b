"""One ONNX node while its layers are emitted: operands, attributes, names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from netdsl.interchange.onnx_import.axis_views import (
    IMAGE_ORDER,
    Axis,
    View,
    atoms_of,
    axis_size,
    image_view,
)
from netdsl.interchange.onnx_import.graph import OnnxNode
from netdsl.interchange.onnx_import.layer_records import LayerRecords
from netdsl.types import Array
from netdsl.values import Value

Operand = View | Array
Pair = tuple[int, int]


class UnsupportedError(Exception):
    """An operator, or a use of it, that no layer expresses."""


@dataclass(frozen=True)
class OnnxCall:
    """A node with its operands: views of layers' results, or constants. Axes and sizes are those of
    ONNX. `namer` gives the name of a layer that the node becomes."""

    node: OnnxNode
    operands: tuple[Operand | None, ...]
    records: LayerRecords
    opset: int
    namer: Callable[[OnnxNode, str], str]

    def view(self, index: int = 0) -> View:
        """A computed operand."""
        found = self.operands[index] if index < len(self.operands) else None
        if not isinstance(found, View):
            raise UnsupportedError(f"operand {index + 1} is a constant")
        return found

    def constant(self, index: int) -> Array | None:
        """A constant operand, or None if it is left out."""
        found = self.operands[index] if index < len(self.operands) else None
        if isinstance(found, View):
            raise UnsupportedError(f"operand {index + 1} is computed by the net")
        return found

    def required(self, index: int) -> Array:
        found = self.constant(index)
        if found is None:
            raise UnsupportedError(f"operand {index + 1} is missing")
        return found

    def integer(self, key: str, default: int) -> int:
        value = self.node.attributes.get(key, default)
        if not isinstance(value, int):
            raise UnsupportedError(f"`{key}` is not an integer")
        return value

    def number(self, key: str, default: float) -> float:
        """An attribute in the shortest digits that give the same float32."""
        value = self.node.attributes.get(key, default)
        if not isinstance(value, int | float):
            raise UnsupportedError(f"`{key}` is not a number")
        return shorten(value)

    def text(self, key: str, default: str) -> str:
        value = self.node.attributes.get(key, default)
        if not isinstance(value, str):
            raise UnsupportedError(f"`{key}` is not text")
        return value

    def integers(self, key: str, index: int | None = None) -> tuple[int, ...] | None:
        """Whole numbers of an attribute, or of the operand that later opsets have for it."""
        given = self.node.attributes.get(key)
        if given is None and index is not None:
            given = self.constant(index)
        if given is None:
            return None
        return tuple(int(v) for v in np.asarray(given).reshape(-1))

    def scalar(self, key: str, index: int) -> float | None:
        """A number of an attribute or operand."""
        given = self.node.attributes.get(key)
        found = self.constant(index) if given is None else np.asarray(given)
        if found is None:
            return None
        if found.size != 1:
            raise UnsupportedError(f"`{key}` is not a single number")
        return shorten(float(found.reshape(-1)[0]))

    def axis(self, axis: int, rank: int) -> int:
        if not -rank <= axis < rank:
            raise UnsupportedError(f"there is no axis {axis}")
        return axis % rank

    def name(self, layer: str) -> str:
        return self.namer(self.node, layer)

    def emit(
        self,
        layer: str,
        inputs: Sequence[str],
        arguments: Mapping[str, Value] | None = None,
        states: Mapping[str, Array] | None = None,
    ) -> str:
        source = self.node.inputs[1] if "weight" in (states or {}) else ""
        return self.records.emit(self.name(layer), layer, inputs, arguments, states, source)

    def emit_like(
        self,
        view: View,
        layer: str,
        arguments: Mapping[str, Value] | None = None,
        states: Mapping[str, Array] | None = None,
    ) -> View:
        """A layer that keeps the shape, whatever the order of the axes."""
        node = self.emit(layer, [self.records.use(view)], arguments, states)
        return replace(view, node=node, pixels=None)

    def arrange(self, view: View, wanted: Sequence[Axis]) -> str:
        return self.records.arrange(self.name("reshape"), view, wanted)

    def image(self, view: View) -> str:
        """The node of [n, c, h, w] as an image; of [n, c, l] as one of width 1."""
        if view.rank == 3:
            return self.arrange(view, (view.axes[0], view.axes[2], (), view.axes[1]))
        if view.rank != 4:
            raise UnsupportedError(f"its input has {view.rank} axes; images have 4")
        return self.arrange(view, [view.axes[i] for i in IMAGE_ORDER])

    def image_result(self, node: str, view: View) -> View:
        """The view of an image that a layer made of `view`, with as many axes."""
        found = image_view(node, self.records.shape(node))
        if view.rank == 3:
            found = replace(found, axes=found.axes[:3])
        batch = view.axes[0]
        return replace(found, base=(batch, *found.base[1:]), axes=(batch, *found.axes[1:]))

    def image_sized(self, view: View) -> View:
        """The same values with the axes of an image as they are here."""
        return self.image_result(self.image(view), view)

    def spatial(self, values: Sequence[int] | None, rank: int, default: int) -> Pair:
        """A setting for height and width; for a row, the width has the default."""
        found = tuple(values or ()) or (default,) * (rank - 2)
        if len(found) != rank - 2 or rank not in (3, 4):
            raise UnsupportedError("it is neither a vector nor an image")
        return (found[0], found[1] if rank == 4 else default)


def per_channel(view: View, values: Array) -> Array | None:
    """A constant that is multiplied with, or added to, the view: as one value, or as one for each
    channel in the order of the base; None if it differs otherwise."""
    shape = (1,) * (view.rank - values.ndim) + values.shape
    sizes = view.shape
    if len(shape) != len(sizes) or any(a not in (1, b) for a, b in zip(shape, sizes, strict=True)):
        return None
    along = [i for i, n in enumerate(shape) if n > 1]
    if len(along) == 1 and view.axes[along[0]] == view.base[-1]:
        return values.reshape(-1).astype(np.float32)
    is_uniform = values.size > 0 and (values == values.reshape(-1)[0]).all()
    return values.reshape(-1)[:1].astype(np.float32) if is_uniform else None


def full(values: Array, view: View) -> Array:
    """One value for each channel, from one for all or for each."""
    return np.ascontiguousarray(np.broadcast_to(values, (axis_size(view.base[-1]),)), np.float32)


def shorten(value: float) -> float:
    """The shortest number that is the same float32."""
    short = float(str(np.float32(value)))
    return int(short) if math.isfinite(short) and short == int(short) else short


def new_axis(size: int) -> Axis:
    return atoms_of(size)


Rule = Callable[[OnnxCall], Any]
"""Emits the layers of a node, and returns its results: one, or a tuple of several."""
