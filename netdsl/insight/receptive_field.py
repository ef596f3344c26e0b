"""Receptive fields: which input pixels one output value depends on, and their spacing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from operator import mul, truediv

from netdsl.errors import fail
from netdsl.ops import OPS
from netdsl.types import Graph, Node

Pair = tuple[Fraction, Fraction]
_ONE, _ZERO = Fraction(1), Fraction(0)
_UNBOUNDED = Fraction(1 << 30)


@dataclass(frozen=True)
class ReceptiveField:
    """The input pixels that the values of a place depend on, in rows and columns: at most `size`
    pixels each, `jump` pixels from one value to the next. Those of the first value lie from pixel
    `start`, negative where they reach into padding, to before `end`."""

    size: Pair
    jump: Pair
    start: Pair
    end: Pair

    def window(self, position: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The first row and column that the value at a position depends on, and those after the
        last."""
        starts, ends = (_advance(edge, self.jump, position) for edge in (self.start, self.end))
        return (floor(starts[0]), floor(starts[1])), (ceil(ends[0]), ceil(ends[1]))


def receptive_field(graph: Graph, target: Node) -> tuple[int, int]:
    """Height and width, in input pixels, that one value of `target` depends on at most: at most
    those of the image."""
    image, field = find_receptive_field(graph, target)
    height, width = field.size
    return min(ceil(height), image.type.shape[1]), min(ceil(width), image.type.shape[2])


def find_receptive_field(graph: Graph, target: Node) -> tuple[Node, ReceptiveField]:
    """The image input, and the pixels of it that the values of `target` depend on.

    Each window of kernel k on values that are j pixels apart adds (k - 1) * j (Dumoulin & Visin
    2016); of several branches the widest counts. If an operator mixes all positions (a fully
    connected layer, a global pool), it is the whole input. Raises NetError if there is no image
    input.
    """
    fields: dict[str, ReceptiveField] = {}
    image = next((n for n in graph.inputs if n.type.rank == 4), None)
    if image is None:
        raise fail("a receptive field needs an image input")
    for node in graph.nodes.values():
        operand_fields = [fields[a] for a in node.args if a in fields]
        if operand_fields:
            fields[node.name] = _propagate(graph, node, operand_fields)
        elif node.op == "input":
            ones = (_ONE, _ONE)
            fields[node.name] = ReceptiveField(ones, ones, (_ZERO, _ZERO), ones)
        if node.name == target.name:
            break
    return image, fields[target.name]


def _propagate(graph: Graph, node: Node, operand_fields: list[ReceptiveField]) -> ReceptiveField:
    size = _map_pairs(max, *(f.size for f in operand_fields), (0, 0))
    jump = _map_pairs(max, *(f.jump for f in operand_fields), (0, 0))
    start = _map_pairs(min, *(f.start for f in operand_fields), (_UNBOUNDED, _UNBOUNDED))
    end = _map_pairs(max, *(f.end for f in operand_fields), (-_UNBOUNDED, -_UNBOUNDED))
    types, attrs = [graph[a].type for a in node.args], node.attrs
    kernel: Sequence[int]
    window = OPS[node.op].window
    if window is not None:
        kernel, stride, dilation = window(types, attrs)
        before = [edge[0] for edge in attrs["pad"]]
        reach = _map_pairs(lambda k, d: (k - 1) * d, kernel, dilation)
        after = _map_pairs(lambda r, p: r - p, reach, before)
        return ReceptiveField(
            _advance(size, jump, reach),
            _map_pairs(mul, jump, stride),
            _map_pairs(lambda s, p, j: s - p * j, start, before, jump),
            _advance(end, jump, after),
        )
    if node.op == "conv2d_dgrad":
        kernel, stride = types[1].shape[1:3], attrs["stride"]
        before = [edge[0] for edge in attrs["pad"]]
        values = _map_pairs(lambda k, t: -(-k // t) - 1, kernel, stride)
        finer = _map_pairs(truediv, jump, stride)
        first = _map_pairs(lambda k, p: p - (k - 1), kernel, before)
        return ReceptiveField(
            _advance(size, jump, values),
            finer,
            _advance(start, finer, first),
            _advance(end, finer, before),
        )
    if node.op == "slice" and node.type.rank == 4:
        skipped, step = attrs["start"][1:3], attrs["step"][1:3]
        edges = (_advance(edge, jump, skipped) for edge in (start, end))
        return ReceptiveField(size, _map_pairs(mul, jump, step), *edges)
    if node.op == "broadcast" and node.type.rank == 6:  # upsample: rows and columns repeated
        factors = node.type.shape[2], node.type.shape[4]
        return ReceptiveField(size, _map_pairs(truediv, jump, factors), start, end)
    if _is_global(node, types[0].shape):
        unbounded = (_UNBOUNDED, _UNBOUNDED)
        return ReceptiveField(unbounded, jump, (-_UNBOUNDED, -_UNBOUNDED), unbounded)
    return ReceptiveField(size, jump, start, end)


def _advance(edge: Pair, jump: Pair, values: Sequence[Fraction | int]) -> Pair:
    """Moves an edge by a number of values."""
    return _map_pairs(lambda e, j, n: e + j * n, edge, jump, values)


def _map_pairs(f: Callable[..., Fraction | int], *pairs: Sequence[Fraction | int]) -> Pair:
    """Applies a function to the heights, and to the widths."""
    h, w = (Fraction(f(*map(Fraction, values))) for values in zip(*pairs, strict=True))
    return h, w


def _is_global(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether an operator without a window lets every position depend on every other."""
    if node.op == "reshape":
        return len(shape) == 4 and node.type.rank < 4
    if OPS[node.op].kind == "reduce":
        axes = node.attrs.get("axes", ())
        return 1 in axes or 2 in axes
    return False
