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
    return b.reshape(slice_axis(b, x, 0, i, i + 1), shape=x.type.shape[1:])


def slice_axis(b: Emitter, x: Node, axis: int, start: int, stop: int) -> Node:
    """Emits the part of a value from `start` to `stop` along one axis."""
    first, last = [0] * x.type.rank, list(x.type.shape)
    first[axis], last[axis] = start, stop
    return b.slice(x, start=tuple(first), stop=tuple(last), step=(1,) * x.type.rank)
