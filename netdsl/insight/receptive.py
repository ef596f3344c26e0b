"""Receptive fields: how many input pixels one output value sees, and how far apart they lie."""

from __future__ import annotations

from collections.abc import Iterable

from netdsl.errors import fail
from netdsl.ops import OPS
from netdsl.types import Graph, Node

Field = tuple[tuple[int, int], tuple[int, int]]
_WHOLE = 1 << 30


def receptive_field(graph: Graph, target: Node) -> tuple[int, int]:
    """Height and width, in input pixels, that one value of `target` depends on.

    Each window of kernel k on values that lie j pixels apart adds (k - 1) * j (Dumoulin & Visin
    2016); branches count by the widest. Where an operator mixes all places (a fully connected
    layer, a global pool) it is the whole input.
    """
    fields: dict[str, Field] = {}
    image = next((n for n in graph.inputs if n.type.rank == 4), None)
    if image is None:
        raise fail("a receptive field needs an image input")
    for node in graph.nodes.values():
        fields[node.name] = _field(graph, node, [fields[a] for a in node.args if a in fields])
        if node.name == target.name:
            break
    size = fields[target.name][0]
    return min(size[0], image.type.shape[1]), min(size[1], image.type.shape[2])


def _field(graph: Graph, node: Node, before: list[Field]) -> Field:
    if not before or node.op in ("state", "const"):
        return (1, 1), (1, 1)
    size, jump = _widest(before, 0), _widest(before, 1)
    types = [graph[a].type for a in node.args]
    window = OPS[node.op].window
    if window is not None:
        kernel, stride, dilation = window(types, node.attrs)
        size = _pair(
            s + (k - 1) * d * j for s, k, d, j in zip(size, kernel, dilation, jump, strict=True)
        )
        jump = _pair(j * t for j, t in zip(jump, stride, strict=True))
    elif node.op == "slice" and node.type.rank == 4:
        jump = _pair(j * t for j, t in zip(jump, node.attrs["step"][1:3], strict=True))
    elif _mixes(node, types[0].shape):
        size = (_WHOLE, _WHOLE)
    return size, jump


def _pair(values: Iterable[int]) -> tuple[int, int]:
    h, w = values
    return h, w


def _widest(fields: list[Field], part: int) -> tuple[int, int]:
    return max(f[part][0] for f in fields), max(f[part][1] for f in fields)


def _mixes(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether an operator without a window lets every place see every other."""
    if node.op == "reshape":
        return len(shape) == 4 and node.type.rank < 4
    if OPS[node.op].kind == "reduce":
        axes = node.attrs.get("axes", ())
        return 1 in axes or 2 in axes
    return False
