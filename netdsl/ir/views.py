"""Views: finding the node that a view shows, and creating views."""

from __future__ import annotations

from netdsl.ops import OPS
from netdsl.types import Emitter, Graph, Node


def strip_views(graph: Graph, name: str) -> Node:
    """Returns the node that a view shows, through any chain of views; the node itself if it is not
    a view."""
    node = graph[name]
    while OPS[node.op].kind == "view":
        node = graph[node.args[0]]
    return node


def extract_row(b: Emitter, x: Node, i: int) -> Node:
    """Emits the i-th row of a matrix as a vector."""
    c = x.type.shape[1]
    return b.reshape(b.slice(x, start=(i, 0), stop=(i + 1, c), step=(1, 1)), shape=(c,))
