"""Views: what a node shows, whatever lies between."""

from __future__ import annotations

from netdsl.ops import OPS
from netdsl.types import Graph, Node


def shown(graph: Graph, name: str) -> Node:
    """The node that a view shows, through all views between; the node itself where it is none."""
    node = graph[name]
    while OPS[node.op].kind == "view":
        node = graph[node.args[0]]
    return node
