"""The layer calls of a net in the making: emitted one by one, with the shapes that the layers
themselves infer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice

import numpy as np

from netdsl.errors import fail
from netdsl.interchange.layer_graph import INPUT, LayerGraph, LayerNode, Shape
from netdsl.interchange.onnx_import.axis_views import (
    Axis,
    Pixels,
    View,
    ViewError,
    axis_size,
    flat,
)
from netdsl.interchange.padding_text import pair
from netdsl.ir.builder import Builder
from netdsl.layers import LAYERS, Site
from netdsl.limits import MAX_ELABORATION_STEPS, MAX_TENSOR_SIZE, STEPS_PER_LAYER
from netdsl.types import Array, Node, TensorType
from netdsl.values import Argument, Size, Value

BIAS = "bias"
"""One offset for each channel: no layer of netdsl, but of the records until they are fused."""
_POSITIONAL = {
    "conv": 2,
    "local": 2,
    "convtranspose": 2,
    "depthwise": 1,
    "fc": 1,
    "maxpool": 1,
    "avgpool": 1,
    "groupnorm": 1,
    "upsample": 2,
    "pixel_shuffle": 1,
    "reshape": 1,
    "shuffle": 1,
    "constant": 1,
    "clamp": 2,
    "leaky_relu": 1,
    "elu": 1,
    "gelu": 1,
    "dropout": 1,
}
"""How many of a layer's arguments are written without their names."""


@dataclass
class LayerRecord:
    """A layer call that may still change. `arguments` contains what differs from the defaults,
    `weight_source` is what the weight was read from."""

    name: str
    layer: str
    arguments: dict[str, Value]
    inputs: list[str]
    states: dict[str, Array]
    shape: Shape
    weight_source: str = ""


@dataclass
class LayerRecords:
    """Emits layers for a batch of `batch` samples, with at most `max_values` values of states in
    all. `pixels` is the factor and the offset that turn the bytes of the input into what the net
    expects, if it takes bytes."""

    batch: int
    max_values: int
    records: dict[str, LayerRecord] = field(default_factory=dict)
    builder: Builder = field(default_factory=Builder)
    pixels: Pixels | None = None
    _nodes: dict[str, Node] = field(default_factory=dict)

    def add_input(self, name: str, shape: Shape) -> str:
        unique = self._unique(name)
        node = self.builder.input(unique, TensorType((self.batch, *shape), "float32"))
        return self._add(LayerRecord(unique, INPUT, {"shape": Size(shape)}, [], {}, shape), node)

    def emit(
        self,
        name: str,
        layer: str,
        inputs: Sequence[str],
        arguments: Mapping[str, Value] | None = None,
        states: Mapping[str, Array] | None = None,
        weight_source: str = "",
    ) -> str:
        """Adds a layer and returns its name. Raises NetError where the layer refuses its arguments
        or inputs, or where its states have other shapes than those given."""
        record = LAYERS[layer]
        given = _drop_defaults(layer, arguments or {})
        bound = record.signature.bind(_format(layer, given), None)
        unique = self._unique(name)
        nodes = [self._nodes[i] for i in inputs]
        site = Site(self.builder, unique, unique, training=False)
        count = len(self.builder.nodes)
        y = record.build(site, nodes if record.arity == "many" else nodes[0], **bound)
        emitted = list(islice(reversed(self.builder.nodes), len(self.builder.nodes) - count))
        if any(self.builder.nodes[n].type.size > MAX_TENSOR_SIZE for n in emitted):
            raise fail("a tensor is too large for any machine")
        steps = len(self.builder.nodes) + STEPS_PER_LAYER * len(self.records)
        if steps > MAX_ELABORATION_STEPS:
            raise fail(f"the net has more than {MAX_ELABORATION_STEPS:,} layers and operators")
        arrays = self._check_states(unique, emitted, dict(states or {}))
        shape = y.type.shape[1:]
        found = LayerRecord(unique, layer, given, list(inputs), arrays, shape, weight_source)
        return self._add(found, y)

    def emit_bias(self, name: str, source: str, offsets: Array) -> str:
        """Adds an offset for each channel, which is no layer: `fuse` makes it part of one."""
        unique, node = self._unique(name), self._nodes[source]
        record = LayerRecord(unique, BIAS, {}, [source], {"bias": offsets}, node.type.shape[1:])
        return self._add(record, node)

    def shape(self, name: str) -> Shape:
        """The shape of a batch of results."""
        return self._nodes[name].type.shape

    def use(self, view: View) -> str:
        """The node of a view; of bytes, it settles how they are normalised. Raises ViewError for
        integers, and for bytes that are normalised in two ways."""
        if view.is_integer:
            raise ViewError("it computes with integers")
        if view.pixels is not None:
            if self.pixels not in (None, view.pixels):
                raise ViewError("its pixels are normalised in two ways")
            self.pixels = view.pixels
        return view.node

    def arrange(self, name: str, view: View, wanted: Sequence[Axis]) -> str:
        """A node whose axes are `wanted`, batch first. Raises ViewError if no layer gives it."""
        node, base = self.use(view), view.base
        if tuple(wanted) == base:
            return node
        if wanted[0] != base[0]:
            raise ViewError
        if flat(wanted) == flat(base):
            return self._reshape(name, node, wanted)
        if len(base) != 4 or len(wanted) != 4:
            raise ViewError
        if tuple(wanted[1:3]) == base[1:3]:
            return self._rotate(name, node, base[3], wanted[3])
        if len(flat(wanted[1:3])) > len(flat(base[1:3])):
            return self._pixel_shuffle(name, node, base, wanted)
        return self._space_to_depth(name, node, base, wanted)

    def _reshape(self, name: str, node: str, wanted: Sequence[Axis]) -> str:
        if len(wanted) == 2:
            return self.emit(name, "flatten", [node])
        sizes = tuple(map(axis_size, wanted[1:]))
        return self.emit(name, "reshape", [node], {"shape": Size(sizes)})

    def _rotate(self, name: str, node: str, base: Axis, wanted: Axis) -> str:
        """Channels as groups in another order: [groups, n] become [n, groups]."""
        if base == wanted:
            return node
        for i in range(1, len(base)):
            if base[i:] + base[:i] == wanted:
                groups = axis_size(base[:i])
                return self.emit(name, "shuffle", [node], {"groups": groups})
        raise ViewError

    def _pixel_shuffle(
        self, name: str, node: str, base: Sequence[Axis], wanted: Sequence[Axis]
    ) -> str:
        """Atoms of the channels at the end of the height and the width."""
        tails = [_tail(wanted[i], base[i]) for i in (1, 2)]
        node = self._rotate(name, node, base[3], (*wanted[3], *tails[0], *tails[1]))
        factor = axis_size(tails[0]), axis_size(tails[1])
        return self.emit(name, "pixel_shuffle", [node], {"factor": pair(factor)})

    def _space_to_depth(
        self, name: str, node: str, base: Sequence[Axis], wanted: Sequence[Axis]
    ) -> str:
        """Atoms at the end of the height and the width among the channels: every n-th pixel, side
        by side."""
        tails = [_tail(base[i], wanted[i]) for i in (1, 2)]
        factors = [axis_size(t) for t in tails]
        sizes = [axis_size(base[i]) for i in (1, 2)]
        parts = []
        for i in range(factors[0]):
            for j in range(factors[1]):
                cut: dict[str, Value] = {"step": pair((factors[0], factors[1]))}
                cut |= {"height": (i, sizes[0])} if i else {}
                cut |= {"width": (j, sizes[1])} if j else {}
                parts.append(self.emit(f"{name}.slice", "slice", [node], cut))
        joined = self.emit(f"{name}.concat", "concat", parts)
        return self._rotate(name, joined, (*tails[0], *tails[1], *base[3]), wanted[3])

    def _unique(self, name: str) -> str:
        if name not in self.records:
            return name
        number = 2
        while f"{name}_{number}" in self.records:
            number += 1
        return f"{name}_{number}"

    def _add(self, record: LayerRecord, node: Node) -> str:
        self.records[record.name] = record
        self._nodes[record.name] = node
        return record.name

    def _check_states(
        self, name: str, emitted: Sequence[str], given: dict[str, Array]
    ) -> dict[str, Array]:
        """The states as float32. Raises NetError where they are not those of the layer."""
        nodes = [self.builder.nodes[n] for n in emitted]
        shapes = {n.name.rpartition(".")[2]: n.type.shape for n in nodes if n.op == "state"}
        for key, shape in shapes.items():
            if key not in given or given[key].shape != shape:
                found = given[key].shape if key in given else None
                raise fail(f"`{key}` of `{name}` has the shape {found}, but needs {shape}")
            self.max_values -= given[key].size
        if self.max_values < 0:
            raise fail("it uses the same weights too often")
        return {key: np.asarray(given[key], np.float32) for key in shapes}


def _tail(axis: Axis, head: Axis) -> Axis:
    """What follows `head` in an axis. Raises ViewError if it does not begin so."""
    if axis[: len(head)] != head:
        raise ViewError
    return axis[len(head) :]


def _drop_defaults(layer: str, arguments: Mapping[str, Value]) -> dict[str, Value]:
    """The arguments in the order of the signature, without those at their defaults."""
    params = LAYERS[layer].signature.params
    return {
        p.name: arguments[p.name]
        for p in params
        if p.name in arguments and arguments[p.name] != p.default
    }


def _format(layer: str, arguments: Mapping[str, Value]) -> tuple[Argument, ...]:
    """Arguments as they are written: the first ones without names."""
    names = [p.name for p in LAYERS[layer].signature.params][: _POSITIONAL.get(layer, 0)]
    leading = 0
    while leading < len(names) and names[leading] in arguments:
        leading += 1
    return tuple(
        Argument(None if name in names[:leading] else name, value)
        for name, value in arguments.items()
    )


def _identity(record: LayerRecord) -> object:
    """What layers that share their weights have in common: what the weight was read from, not only
    its values, and all arguments and states. Values for each channel are never shared by
    themselves: exporters store equal ones, such as zeros, once."""
    if "weight" not in record.states or not record.weight_source:
        return record.name
    arrays = tuple((k, v.shape, sha256(v.tobytes()).digest()) for k, v in record.states.items())
    return record.layer, tuple(record.arguments.items()), record.weight_source, arrays


def layer_graph_of(
    name: str, records: Mapping[str, LayerRecord], outputs: Mapping[str, str]
) -> tuple[LayerGraph, dict[str, Array]]:
    """The finished records as a graph, and the states by its keys."""
    nodes: dict[str, LayerNode] = {}
    states: dict[str, Array] = {}
    owners: dict[object, str] = {}
    for record in records.values():
        owner = owners.setdefault(_identity(record), record.name)
        keys = {key: f"{owner}.{key}" for key in record.states}
        states |= {keys[key]: value for key, value in record.states.items()}
        arguments: tuple[Argument, ...]
        if record.layer == INPUT:
            arguments = (Argument(None, record.arguments["shape"]),)
        else:
            arguments = _format(record.layer, record.arguments)
        nodes[record.name] = LayerNode(
            record.name, record.layer, arguments, tuple(record.inputs), keys, record.shape
        )
    shapes = {key: value.shape for key, value in states.items()}
    return LayerGraph(name, nodes, dict(outputs), shapes), states
