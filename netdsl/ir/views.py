"""Views: what a node shows, whatever lies between."""

from __future__ import annotations

from netdsl.ops import OPS
from netdsl.types import Emitter, Graph, Node


def strip_views(graph: Graph, name: str) -> Node:
    """The node that a view shows, through all views between; the node itself where it is none."""
    node = graph[name]
    while OPS[node.op].kind == "view":
        node = graph[node.args[0]]
    return node


def extract_row(b: Emitter, x: Node, i: int) -> Node:
    """The i-th of what a matrix holds along its first axis, as a vector."""
    c = x.type.shape[1]
    return b.reshape(b.slice(x, start=(i, 0), stop=(i + 1, c), step=(1, 1)), shape=(c,))
