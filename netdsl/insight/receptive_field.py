"""Receptive fields: how many input pixels one output value depends on, and their spacing."""

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
_UNBOUNDED = Fraction(1 << 30)


def receptive_field(graph: Graph, target: Node) -> tuple[int, int]:
    """Height and width, in input pixels, that one value of `target` depends on at most.

    Each window of kernel k on values that are j pixels apart adds (k - 1) * j (Dumoulin & Visin
    2016); of several branches the widest counts. If an operator mixes all positions (a fully
    connected layer, a global pool), it is the whole input.
    """
    fields: dict[str, Field] = {}
    image = next((n for n in graph.inputs if n.type.rank == 4), None)
    if image is None:
        raise fail("a receptive field needs an image input")
    for node in graph.nodes.values():
        operand_fields = [fields[a] for a in node.args if a in fields]
        if operand_fields:
            fields[node.name] = _propagate(graph, node, operand_fields)
        elif node.op == "input":
            fields[node.name] = (_ONE, _ONE), (_ONE, _ONE)
        if node.name == target.name:
            break
    (height, width), _ = fields[target.name]
    return min(ceil(height), image.type.shape[1]), min(ceil(width), image.type.shape[2])


def _propagate(graph: Graph, node: Node, operand_fields: list[Field]) -> Field:
    size, jump = _max_pair(operand_fields, 0), _max_pair(operand_fields, 1)
    types = [graph[a].type for a in node.args]
    window = OPS[node.op].window
    if window is not None:
        kernel, stride, dilation = window(types, node.attrs)
        reach = _map_pairs(lambda k, d: (k - 1) * d, kernel, dilation)
        return _map_pairs(lambda s, r, j: s + r * j, size, reach, jump), _map_pairs(
            mul, jump, stride
        )
    if node.op == "conv2d_dgrad":
        stride = node.attrs["stride"]
        seen = _map_pairs(lambda k, t: -(-k // t) - 1, types[1].shape[1:3], stride)
        return _map_pairs(lambda s, n, j: s + n * j, size, seen, jump), _map_pairs(
            truediv, jump, stride
        )
    if node.op == "slice" and node.type.rank == 4:
        return size, _map_pairs(mul, jump, node.attrs["step"][1:3])
    if node.op == "broadcast" and node.type.rank == 6:  # upsample: rows and columns repeated
        return size, _map_pairs(truediv, jump, (node.type.shape[2], node.type.shape[4]))
    return ((_UNBOUNDED, _UNBOUNDED), jump) if _is_global(node, types[0].shape) else (size, jump)


def _map_pairs(f: Callable[..., Fraction | int], *pairs: Sequence[Fraction | int]) -> Pair:
    """Applies a function to the heights, and to the widths."""
    h, w = (Fraction(f(*map(Fraction, values))) for values in zip(*pairs, strict=True))
    return h, w


def _max_pair(fields: list[Field], part: int) -> Pair:
    return max(f[part][0] for f in fields), max(f[part][1] for f in fields)


def _is_global(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether an operator without a window lets every position depend on every other."""
    if node.op == "reshape":
        return len(shape) == 4 and node.type.rank < 4
    if OPS[node.op].kind == "reduce":
        axes = node.attrs.get("axes", ())
        return 1 in axes or 2 in axes
    return False
