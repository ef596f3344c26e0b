"""Extraction of a subgraph."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from netdsl.types import Graph


def extract_subgraph(
    graph: Graph,
    names: Collection[str],
    outputs: Mapping[str, str],
    updates: Mapping[str, str] | None = None,
) -> Graph:
    """Returns the nodes with these names, in graph order, as a new graph."""
    nodes = {name: node for name, node in graph.nodes.items() if name in names}
    return Graph(nodes, outputs, updates or {}, graph.name)
