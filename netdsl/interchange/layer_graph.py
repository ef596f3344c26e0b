"""A net as a graph of layer calls, without blocks and loops: what imports and exports have in
common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from netdsl.language.network import LayerInfo, Network
from netdsl.types import Node
from netdsl.values import Argument, Size

Shape = tuple[int, ...]
INPUT = "input"
"""The layer name of a graph's inputs, whose one argument is the shape of a sample."""


@dataclass(frozen=True)
class LayerNode:
    """A layer call, or an input.

    `arguments` are those that would be written in a file, without spans: positional ones first.
    `inputs` are the names of the nodes it reads, in order. `states` maps the layer's own names of
    its states (`weight`, `running_mean`) to keys of `LayerGraph.state_shapes`; nodes that share
    weights have keys in common. `shape` is that of the result for one sample."""

    name: str
    layer: str
    arguments: tuple[Argument, ...]
    inputs: tuple[str, ...]
    states: Mapping[str, str]
    shape: Shape


@dataclass(frozen=True)
class LayerGraph:
    """Layer calls by name, in an order in which they can run. `outputs` maps `main` and the names
    of side outputs to nodes; `state_shapes` holds the shape of each state in netdsl's layout."""

    name: str
    nodes: Mapping[str, LayerNode]
    outputs: Mapping[str, str]
    state_shapes: Mapping[str, Shape]


def layer_graph(network: Network) -> LayerGraph:
    """The layer calls of an elaborated net, named by their paths; states keep their names."""
    graph = network.graph
    nodes = {n.name: _input_node(n) for n in graph.inputs if n.type.rank > 1}
    names = _state_names(network)
    for layer in network.layers:
        nodes[layer.path] = LayerNode(
            layer.path,
            layer.layer_type,
            tuple(replace(a, span=None) for a in layer.written),
            layer.input_paths,
            _layer_states(layer, names),
            layer.output_type.shape[1:],
        )
    shapes = {n.name: n.type.shape for n in graph.states}
    return LayerGraph(network.name, nodes, network.output_paths, shapes)


def _input_node(node: Node) -> LayerNode:
    shape = node.type.shape[1:]
    return LayerNode(node.name, INPUT, (Argument(None, Size(shape)),), (), {}, shape)


def _state_names(network: Network) -> dict[str, list[str]]:
    """The states of a network by the path of their layer."""
    found: dict[str, list[str]] = {}
    for node in network.graph.states:
        found.setdefault(node.name.rpartition(".")[0], []).append(node.name)
    return found


def _layer_states(layer: LayerInfo, names: Mapping[str, list[str]]) -> dict[str, str]:
    """The states that a layer reads, by its own names of them."""
    paths = dict.fromkeys((layer.weight_path, layer.path))
    return {n.rpartition(".")[2]: n for path in paths for n in names.get(path, ())}
