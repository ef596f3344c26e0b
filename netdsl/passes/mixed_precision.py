"""Mixed precision: products and data movement in 16 bits; statistics, losses and updates in 32."""

from __future__ import annotations

from netdsl.ir.builder import Builder, is_float
from netdsl.ops import OPS
from netdsl.passes.rewrite import rebuild_graph
from netdsl.types import Graph, Node


def convert_to_mixed_precision(graph: Graph, low: str = "bfloat16") -> Graph:
    """Inserts `cast` nodes into the forward graph at the boundaries of 16-bit arithmetic
    (Micikevicius et al. 2018): matrix products and data movement compute in `low`; normalization,
    losses and updates in their original type. States and the types of all outputs stay
    unchanged."""
    b = Builder()
    new_nodes: dict[str, Node] = {}
    for node in graph.nodes.values():
        with b.at(node.span, node.name, node.region):
            new_nodes[node.name] = _emit_with_casts(b, node, [new_nodes[a] for a in node.args], low)
    for name in graph.roots:
        original_type = graph[name].type
        if new_nodes[name].type != original_type:
            with b.at(graph[name].span, name):
                new_nodes[name] = b.cast(new_nodes[name], dtype=original_type.dtype)
    return rebuild_graph(b, graph, new_nodes)


def _emit_with_casts(b: Builder, node: Node, args: list[Node], low: str) -> Node:
    kind = OPS[node.op].kind
    if not is_float(node.type) or kind == "leaf":
        target_dtype = None
    elif kind == "anchor" or "low_precision" in OPS[node.op].traits:
        target_dtype = low
    elif kind == "view":
        target_dtype = args[0].type.dtype
    else:
        target_dtype = node.type.dtype
    if target_dtype is not None and node.op != "cast":
        args = [b.cast(a, dtype=target_dtype) if _needs_cast(a, target_dtype) else a for a in args]
    elif target_dtype is None and kind != "leaf":
        args = _cast_to_widest(b, args, node)
    return b.emit(node.op, *args, name=node.name, **node.attrs)


def _needs_cast(a: Node, target_dtype: str) -> bool:
    return is_float(a.type) and a.type.dtype != target_dtype


def _cast_to_widest(b: Builder, args: list[Node], node: Node) -> list[Node]:
    """Casts the operands of a comparison to the widest type among them."""
    dtypes = [a.type.dtype for a in args if is_float(a.type)]
    if len(set(dtypes)) < 2:
        return args
    widest = next(k for k in ("float64", "float32", *dtypes) if k in dtypes)
    return [b.cast(a, dtype=widest) if _needs_cast(a, widest) else a for a in args]
