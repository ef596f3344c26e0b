"""Precision: products and what moves values in 16 bits, statistics, losses and updates in 32."""

from __future__ import annotations

from netdsl.ir.builder import Builder, float_of
from netdsl.ops import OPS
from netdsl.passes.rewrite import rebuilt
from netdsl.types import Graph, Node

_MOVERS = (
    *("max_pool", "avg_pool", "lrn", "concat", "pad", "relu", "clamp", "dropout"),
    *("im2col", "col2im"),
)
"""They choose, move, average or damp values of one size, and what they read and write is half as
large. Where they or the products sum, they sum in 32 bits and round the result."""


def mixed(graph: Graph, low: str = "bfloat16") -> Graph:
    """The forward graph with `cast` where 16-bit arithmetic begins and ends (Micikevicius et al.
    2018): matrix products and movers of values compute in `low`, normalisation, losses and updates
    in the type that they have. States stay as they are, and so does the type of every output.
    """
    b = Builder()
    new: dict[str, Node] = {}
    for node in graph.nodes.values():
        with b.at(node.span, node.name, node.region):
            new[node.name] = _emit(b, node, [new[a] for a in node.args], low)
    for name in graph.roots:
        kind = graph[name].type
        if new[name].type != kind:
            with b.at(graph[name].span, name):
                new[name] = b.cast(new[name], dtype=kind.dtype)
    return rebuilt(b, graph, new)


def _emit(b: Builder, node: Node, args: list[Node], low: str) -> Node:
    kind = OPS[node.op].kind
    if not float_of(node.type) or kind == "leaf":
        wanted = None
    elif kind == "anchor" or node.op in _MOVERS:
        wanted = low
    elif kind == "view":
        wanted = args[0].type.dtype
    else:
        wanted = node.type.dtype
    if wanted is not None and node.op != "cast":
        args = [b.cast(a, dtype=wanted) if _to_cast(a, wanted) else a for a in args]
    elif wanted is None and kind != "leaf":
        args = _alike(b, args, node)
    return b.emit(node.op, *args, name=node.name, **node.attrs)


def _to_cast(a: Node, wanted: str) -> bool:
    return float_of(a.type) and a.type.dtype != wanted


def _alike(b: Builder, args: list[Node], node: Node) -> list[Node]:
    """Operands of a comparison in the widest type that one of them has."""
    kinds = [a.type.dtype for a in args if float_of(a.type)]
    if len(set(kinds)) < 2:
        return args
    wide = next(k for k in ("float64", "float32", *kinds) if k in kinds)
    return [b.cast(a, dtype=wide) if _to_cast(a, wide) else a for a in args]
