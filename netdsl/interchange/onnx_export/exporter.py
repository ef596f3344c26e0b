"""Export of a net with its weights to ONNX, and the way back to its states."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from netdsl.errors import fail
from netdsl.interchange.layer_graph import INPUT, LayerGraph, layer_graph
from netdsl.interchange.onnx_export.builder import (
    TO_NCHW,
    ExportBuilder,
    ExportNode,
    ExportValue,
    stored_shape,
)
from netdsl.interchange.onnx_export.layer_rules import (
    batch_norm_states,
    emit_layer,
    find_missing_ops,
)
from netdsl.interchange.onnx_export.operator_rules import (
    MIN_OPSET,
    OPSETS,
    ExportSite,
    emit_layer_by_ops,
)
from netdsl.interchange.onnx_export.weights import ExportWeights
from netdsl.language.network import Network
from netdsl.runtime.state import draw_initial_value
from netdsl.types import Array

SCORES = "scores"
_PRODUCTS = ("conv", "depthwise", "convtranspose", "fc")


@dataclass(frozen=True)
class ExportOptions:
    """`is_half` computes in float16; `keeps_batch_norms` folds none into the product before it."""

    is_half: bool = False
    keeps_batch_norms: bool = False

    @property
    def dtype(self) -> str:
        return "float16" if self.is_half else "float32"


@dataclass(frozen=True)
class ExportInput:
    """An input: its shape as callers give it, without the batch, and its element type."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ExportedGraph:
    """A net as ONNX has it. `folded` is the number of batch norms that are part of a product,
    `sides` the side outputs that are left out."""

    name: str
    opset: int
    nodes: tuple[ExportNode, ...]
    constants: Mapping[str, Array]
    inputs: tuple[ExportInput, ...]
    output_shape: tuple[int, ...]
    folded: int
    weights: ExportWeights
    sides: tuple[str, ...] = ()


def export_graph(
    network: Network, states: Mapping[str, Array], options: ExportOptions
) -> ExportedGraph:
    """Writes what the main output of a net is computed from, as a graph of ONNX. Raises NetError
    with the paths of all layers that ONNX cannot express."""
    return _Exporter(network, states, options).export()


class _Exporter:
    def __init__(
        self, network: Network, states: Mapping[str, Array], options: ExportOptions
    ) -> None:
        self.network = network
        self.options = options
        self.layers = {layer.path: layer for layer in network.layers}
        self.calls = layer_graph(network)
        self.needed = _needed_paths(self.calls)
        ops = {n.op for n in network.graph.nodes.values()}
        opset = max([MIN_OPSET, *(v for op, v in OPSETS.items() if op in ops)])
        inputs = [n.name for n in network.graph.inputs]
        self.onnx = ExportBuilder(opset, options.dtype, [SCORES, *inputs])
        self.weights = ExportWeights(network.graph, states, self.onnx)
        self.values: dict[str, ExportValue] = {}
        """By path."""
        self.folded = {} if options.keeps_batch_norms else self._find_folded_norms()
        """The batch norms that become part of a product, by the product's path."""

    def export(self) -> ExportedGraph:
        self._check()
        inputs = [self._emit_input(path) for path in self._paths(INPUT)]
        for path in self.needed:
            if path in self.layers and path not in self.values:
                site = self._site(path)
                self.onnx.begin(path)
                self.values[path] = self.onnx.end(emit_layer(self.layers[path].layer_type, site))
                if path in self.folded:
                    self.values[self.folded[path]] = self.values[path]
        scores = self._emit_scores(self.values[self.calls.outputs["main"]])
        return ExportedGraph(
            self.network.name,
            self.onnx.opset,
            tuple(self.onnx.nodes),
            self.onnx.constants,
            tuple(inputs),
            stored_shape(scores.shape)[1:],
            len(self.folded),
            self.weights,
            tuple(name for name in self.calls.outputs if name != "main"),
        )

    def _paths(self, layer: str) -> Iterator[str]:
        return (p for p in self.needed if self.calls.nodes[p].layer == layer)

    def _check(self) -> None:
        """Raises NetError with all layers that cannot be written."""
        missing = []
        for path in self.needed:
            if path in self.layers:
                layer = self.layers[path].layer_type
                ops = find_missing_ops(layer, self._site(path, is_dry=True))
                if ops:
                    missing.append(f"`{path}` (`{layer}`): {', '.join(f'`{op}`' for op in ops)}")
        if missing:
            raise fail(
                f"`{self.network.name}` has layers without an equivalent in ONNX: {missing[0]}",
                notes=missing[1:],
            )

    def _site(self, path: str, is_dry: bool = False) -> ExportSite:
        layer = self.layers[path]
        inputs = {}
        for p in layer.input_paths:
            node = self.network.find_node(p)
            inputs[node.name] = ExportValue(p, node.type.shape) if is_dry else self.values[p]
        norm = None
        if not is_dry and path in self.folded:
            norm = batch_norm_states(self._site(self.folded[path], is_dry=True))
        states = self.calls.nodes[path].states
        return ExportSite(
            self.onnx, self.weights, path, layer.result, inputs, layer.arguments, states, norm
        )

    def _find_folded_norms(self) -> dict[str, str]:
        """Products that only a batch norm reads, and no other layer shares the weight of."""
        reads = Counter(p for path in self.needed for p in self.calls.nodes[path].inputs)
        reads[self.calls.outputs["main"]] += 1
        users = Counter(s for p in self.needed for s in set(self.calls.nodes[p].states.values()))
        found = {}
        for path in self._paths("batchnorm"):
            (before,) = self.calls.nodes[path].inputs
            product = self.calls.nodes[before]
            is_own = all(users[s] == 1 for s in product.states.values())
            if product.layer in _PRODUCTS and reads[before] == 1 and is_own:
                found[before] = path
        return found

    def _emit_input(self, path: str) -> ExportInput:
        """Adds an input as it is given: bytes [N,H,W,C], which are prepared as the data section
        says, or floats [N,C,H,W]."""
        node, prepared = self.network.graph[path], self.network.find_node(path)
        self.onnx.begin(path)
        value = ExportValue(path, node.type.shape)
        is_raw = node.name == prepared.name
        if not is_raw:
            if value.rank == 4:
                value = ExportValue(self.onnx.transpose(path, TO_NCHW), value.shape)
            site = ExportSite(self.onnx, self.weights, path, prepared.name, {path: value}, {}, {})
            value = emit_layer_by_ops(site)
        elif self.options.is_half:
            value = ExportValue(self.onnx.emit("Cast", path, to="float16"), value.shape)
        self.values[path] = value
        shape = stored_shape(node.type.shape) if is_raw else node.type.shape
        return ExportInput(path, shape[1:], node.type.dtype)

    def _emit_scores(self, value: ExportValue) -> ExportValue:
        """Names the result. A row of scores for one pixel is a row."""
        self.onnx.begin(SCORES)
        value = self.onnx.ordered(value)
        if value.rank > 2 and math.prod(value.shape[1:-1]) == 1:
            shape = (value.shape[0], value.shape[-1])
            value = ExportValue(self.onnx.emit("Flatten", value.name, axis=1), shape)
        name = value.name
        if self.options.is_half:
            name = self.onnx.emit("Cast", name, to="float32")
        elif name in {n.name for n in self.network.graph.inputs}:
            name = self.onnx.emit("Identity", name)
        return self.onnx.name_output(ExportValue(name, value.shape), SCORES)


def _needed_paths(calls: LayerGraph) -> tuple[str, ...]:
    """The calls that the main output is computed from, in order."""
    found, left = set[str](), [calls.outputs["main"]]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += calls.nodes[path].inputs
    return tuple(p for p in calls.nodes if p in found)


def restore_states(
    network: Network, constants: Mapping[str, Array], options: ExportOptions, origin: str
) -> dict[str, Array]:
    """The states of a net, by name, from the constants of its export. Batch norms that were folded
    come back as such that only scale and add, and compute the same. States that the main output
    does not need, which an export leaves out, are drawn anew. Raises NetError if the constants are
    not those of an export of the net."""
    drawn = {n.name: draw_initial_value(n, seed=0) for n in network.graph.states}
    weights = export_graph(network, drawn, options).weights
    return drawn | weights.restore(constants, origin)
