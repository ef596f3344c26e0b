"""Receptive fields: how many input pixels one output value sees, and how far apart they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil
from operator import mul, truediv

from netdsl.errors import fail
from netdsl.ops import OPS
from netdsl.types import Graph, Node

Pair = tuple[Fraction, Fraction]
Field = tuple[Pair, Pair]
_ONE = Fraction(1)
_WHOLE = Fraction(1 << 30)


def receptive_field(graph: Graph, target: Node) -> tuple[int, int]:
    """Height and width, in input pixels, that one value of `target` depends on at most.

    Each window of kernel k on values that lie j pixels apart adds (k - 1) * j (Dumoulin & Visin
    2016); branches count by the widest. Where an operator mixes all places (a fully connected
    layer, a global pool) it is the whole input.
    """
    fields: dict[str, Field] = {}
    image = next((n for n in graph.inputs if n.type.rank == 4), None)
    if image is None:
        raise fail("a receptive field needs an image input")
    for node in graph.nodes.values():
        before = [fields[a] for a in node.args if a in fields]
        if before:
            fields[node.name] = _field(graph, node, before)
        elif node.op == "input":
            fields[node.name] = (_ONE, _ONE), (_ONE, _ONE)
        if node.name == target.name:
            break
    (height, width), _ = fields[target.name]
    return min(ceil(height), image.type.shape[1]), min(ceil(width), image.type.shape[2])


def _field(graph: Graph, node: Node, before: list[Field]) -> Field:
    size, jump = _widest(before, 0), _widest(before, 1)
    types = [graph[a].type for a in node.args]
    window = OPS[node.op].window
    if window is not None:
        kernel, stride, dilation = window(types, node.attrs)
        reach = _each(lambda k, d: (k - 1) * d, kernel, dilation)
        return _each(lambda s, r, j: s + r * j, size, reach, jump), _each(mul, jump, stride)
    if node.op == "conv2d_dgrad":
        stride = node.attrs["stride"]
        seen = _each(lambda k, t: -(-k // t) - 1, types[1].shape[1:3], stride)
        return _each(lambda s, n, j: s + n * j, size, seen, jump), _each(truediv, jump, stride)
    if node.op == "slice" and node.type.rank == 4:
        return size, _each(mul, jump, node.attrs["step"][1:3])
    if node.op == "broadcast" and node.type.rank == 6:  # upsample: rows and columns repeated
        return size, _each(truediv, jump, (node.type.shape[2], node.type.shape[4]))
    return ((_WHOLE, _WHOLE), jump) if _mixes(node, types[0].shape) else (size, jump)


def _each(f: Callable[..., Fraction | int], *pairs: Sequence[Fraction | int]) -> Pair:
    """A function of the heights, and of the widths."""
    h, w = (Fraction(f(*map(Fraction, values))) for values in zip(*pairs, strict=True))
    return h, w


def _widest(fields: list[Field], part: int) -> Pair:
    return max(f[part][0] for f in fields), max(f[part][1] for f in fields)


def _mixes(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether an operator without a window lets every place see every other."""
    if node.op == "reshape":
        return len(shape) == 4 and node.type.rank < 4
    if OPS[node.op].kind == "reduce":
        axes = node.attrs.get("axes", ())
        return 1 in axes or 2 in axes
    return False
