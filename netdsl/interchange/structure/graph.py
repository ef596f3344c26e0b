"""What a text keeps of a graph: its calls without `identity`, their arguments, and sharing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from netdsl.interchange.layer_graph import LayerGraph, LayerNode
from netdsl.interchange.structure.calls import Arguments, canonical_arguments
from netdsl.layers import normalization

PER_USE = frozenset(layer.name for layer in normalization.LAYERS) - {"scale"}
"""Layers of which every use of a shared chain has its own states."""


def shared_groups(
    graph: LayerGraph, arguments: Mapping[str, Arguments]
) -> tuple[tuple[str, ...], ...]:
    """Groups of nodes, in order, that have all states in common and are called alike.

    Nodes that have only some states in common, and normalisations, are in no group: no text can say
    so, so each gets its own copy."""
    groups: dict[object, list[str]] = {}
    for node in graph.nodes.values():
        if node.states and node.layer not in PER_USE:
            key = (node.layer, arguments[node.name], tuple(sorted(node.states.items())))
            groups.setdefault(key, []).append(node.name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def graph_arguments(graph: LayerGraph) -> dict[str, Arguments]:
    """The canonical arguments of every node."""
    return {name: canonical_arguments(node) for name, node in graph.nodes.items()}


def without_identities(graph: LayerGraph) -> LayerGraph:
    """The graph without its calls of `identity`."""
    values: dict[str, str] = {}
    nodes: dict[str, LayerNode] = {}
    for node in graph.nodes.values():
        inputs = tuple(values[i] for i in node.inputs)
        if node.layer == "identity":
            values[node.name] = inputs[0]
        else:
            values[node.name] = node.name
            nodes[node.name] = replace(node, inputs=inputs)
    outputs = {k: values[v] for k, v in graph.outputs.items()}
    return replace(graph, nodes=nodes, outputs=outputs)


def difference(
    graph: LayerGraph,
    written: LayerGraph,
    order: tuple[str, ...],
    outputs: Mapping[str, str],
) -> str | None:
    """What `written` has different from a graph, whose nodes are in `order` there: calls,
    arguments, connections, shapes, states, sharing or outputs; None if nothing."""
    if len(order) != len(written.nodes) or {*order} != {*graph.nodes}:
        return f"{len(written.nodes)} calls instead of {len(graph.nodes)}"
    origins = dict(zip(written.nodes, order, strict=True))
    arguments, written_arguments = graph_arguments(graph), graph_arguments(written)
    keys: dict[str, str] = {}
    for name, node in written.nodes.items():
        origin = graph.nodes[origins[name]]
        if node.layer != origin.layer or written_arguments[name] != arguments[origin.name]:
            return f"{name} is {node.layer}{written_arguments[name]}, not {origin}"
        if tuple(origins[i] for i in node.inputs) != origin.inputs:
            return f"{name} reads {node.inputs}, {origin.name} reads {origin.inputs}"
        if node.shape != origin.shape or {*node.states} != {*origin.states}:
            return f"{name} and {origin.name} differ in shape or states"
        for state, key in node.states.items():
            if written.state_shapes[key] != graph.state_shapes[origin.states[state]]:
                return f"{key} and {origin.states[state]} differ in shape"
            if keys.setdefault(key, origin.states[state]) != origin.states[state]:
                return f"{key} is shared"
    ends = {k: origins[written.outputs[v]] for k, v in outputs.items()}
    return None if ends == dict(graph.outputs) else f"{ends} instead of {graph.outputs}"
