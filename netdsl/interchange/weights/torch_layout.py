"""States as PyTorch stores them: names within a module, and the order of axes, in both directions.

Images are H x W x C here and C x H x W there. Weights of convolutions are K x R x S x C here and
K x C x R x S there; a fully connected layer behind an image reads its values in the image's order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from netdsl.language.network import LayerInfo, Network
from netdsl.types import Array

Shape = tuple[int, ...]
TORCH_NAMES = {"gamma": "weight", "beta": "bias", "slope": "weight"}
"""PyTorch's names of states, where they differ from those here."""
COUNTER = "num_batches_tracked"
"""PyTorch's count of the batches that a batch normalisation has seen, which nothing here reads."""


@dataclass(frozen=True)
class StateForm:
    """One state here and there.

    `name` is its name here. Its array of `shape`, viewed as `split`, with its `axes` permuted, has
    PyTorch's values in their order; as an array they have `torch_shape`, or one of
    `other_shapes`, which hold the same values in the same order. Value i of the last axis of
    `shape` is value `order[i]` there, if there is an `order`."""

    name: str
    shape: Shape
    torch_shape: Shape
    split: Shape
    axes: tuple[int, ...]
    other_shapes: tuple[Shape, ...] = ()
    order: Array | None = field(default=None, compare=False)

    def accepts(self, shape: Shape) -> bool:
        return shape == self.torch_shape or shape in self.other_shapes

    def to_torch(self, array: Array) -> Array:
        """The array as PyTorch has it."""
        if self.order is not None:
            placed = np.empty_like(array)
            placed[..., self.order] = array
            array = placed
        moved = array.reshape(self.split).transpose(self.axes)
        return np.ascontiguousarray(moved).reshape(self.torch_shape)

    def from_torch(self, array: Array) -> Array:
        """PyTorch's array as it is here."""
        there = tuple(self.split[a] for a in self.axes)
        back = tuple(int(a) for a in np.argsort(self.axes))
        found = np.ascontiguousarray(array.reshape(there).transpose(back)).reshape(self.shape)
        return found if self.order is None else found[..., self.order]


@dataclass(frozen=True)
class ModuleForm:
    """A layer with states, or several that share them, as a module of PyTorch. `path` is what its
    states' names here begin with; `states` are by their names there."""

    path: str
    layer: str
    states: Mapping[str, StateForm]

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether a module with states of these names and shapes holds this layer's. A parameter
        that belongs to no module of its own has the name ``."""
        if shapes.keys() == {""} and len(self.states) == 1:
            return next(iter(self.states.values())).accepts(shapes[""])
        return shapes.keys() == self.states.keys() and all(
            self.states[name].accepts(shape) for name, shape in shapes.items()
        )


def module_forms(network: Network) -> tuple[ModuleForm, ...]:
    """The layers that have states, in the order in which they run."""
    layers = {p: x for x in reversed(network.layers) for p in (x.weight_path, x.path)}
    orders = _value_orders(network)
    found: dict[str, dict[str, StateForm]] = {}
    for node in network.graph.states:
        path, _, name = node.name.rpartition(".")
        form = _state_form(layers[path], node.name, node.type.shape, orders)
        found.setdefault(path, {})[TORCH_NAMES.get(name, name)] = form
    return tuple(ModuleForm(path, layers[path].layer_type, x) for path, x in found.items())


def _state_form(
    layer: LayerInfo, name: str, shape: Shape, orders: Mapping[str, Array | None]
) -> StateForm:
    state, kind = name.rpartition(".")[2], layer.layer_type
    inputs = layer.input_types[0].shape[1:]
    if kind == "local":
        return _local_form(name, shape, state, inputs[-1])
    if state in ("weight", "weight_v"):
        if kind == "fc":
            return _fc_form(name, shape, inputs, orders[layer.input_paths[0]])
        outer, r, s, inner = shape
        others = ((outer, inner),) if r == s == 1 else ()
        return StateForm(name, shape, (outer, inner, r, s), shape, (0, 3, 1, 2), others)
    if state == "weight_g":
        rank = 2 if kind == "fc" else 4
        axis = 1 if kind == "convtranspose" else 0
        there = tuple(shape[0] if a == axis else 1 for a in range(rank))
        return StateForm(name, shape, there, shape, (0,))
    wide = ((*shape, 1, 1), (1, *shape, 1, 1)) if kind == "scale" else ()
    order = orders[layer.path] if shape == layer.output_type.shape[1:] else None
    return StateForm(name, shape, shape, shape, (0,), wide, order)


def _fc_form(name: str, shape: Shape, inputs: Shape, order: Array | None) -> StateForm:
    """A fully connected layer. A convolution that covers the whole image holds the same weights."""
    units, count = shape
    if len(inputs) == 3:
        h, w, c = inputs
        there = (units, c, h, w)
        return StateForm(name, shape, shape, (units, h, w, c), (0, 3, 1, 2), (there,))
    others = ((units, count, 1, 1),)
    return StateForm(name, shape, shape, shape, (0, 1), others, order)


def _local_form(name: str, shape: Shape, state: str, channels: int) -> StateForm:
    """PyTorch has no such layer; this is how those are usually written that unfold the image: 1 x K
    x C x H x W x taps, bias 1 x K x H x W."""
    if state == "weight_g":
        return StateForm(name, shape, shape, shape, tuple(range(len(shape))))
    h, w, outer = shape[:3]
    if state == "bias":
        return StateForm(name, shape, (1, outer, h, w), shape, (2, 0, 1))
    taps = shape[3] // channels
    there = (1, outer, channels, h, w, taps)
    return StateForm(name, shape, there, (h, w, outer, taps, channels), (2, 4, 0, 1, 3))


def _value_orders(network: Network) -> dict[str, Array | None]:
    """Where PyTorch has the values of each layer's row of values, by path: None where it has the
    same order, as for the channels of images."""
    orders: dict[str, Array | None] = {n.name: None for n in network.graph.inputs}
    for layer in network.layers:
        orders[layer.path] = _output_order(layer, [orders[p] for p in layer.input_paths])
    return orders


def _output_order(layer: LayerInfo, inputs: list[Array | None]) -> Array | None:
    shapes = [t.shape[1:] for t in layer.input_types]
    if layer.layer_type == "flatten" and len(shapes[0]) == 3:
        return _flatten_order(shapes[0])
    if layer.layer_type == "concat" and any(order is not None for order in inputs):
        return np.concatenate(list(_shifted_orders(shapes, inputs)))
    if layer.output_type.rank != 2 or layer.layer_type == "fc":
        return None
    kept = (
        o for o, shape in zip(inputs, shapes, strict=True) if shape == layer.output_type.shape[1:]
    )
    return next((o for o in kept if o is not None), None)


def _flatten_order(shape: Shape) -> Array | None:
    h, w, c = shape
    if h * w == 1 or c == 1:
        return None
    return np.arange(h * w * c).reshape(c, h, w).transpose(1, 2, 0).reshape(-1)


def _shifted_orders(shapes: list[Shape], orders: list[Array | None]) -> Iterator[Array]:
    begin = 0
    for shape, order in zip(shapes, orders, strict=True):
        count = math.prod(shape)
        yield begin + (np.arange(count) if order is None else order)
        begin += count
