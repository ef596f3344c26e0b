"""How values reach their readers: through which views, and whether elementwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from netdsl.ops import OPS
from netdsl.plan.layout import (
    IntTuple,
    Layout,
    compute_view_layout,
    make_contiguous,
    row_major_strides,
)
from netdsl.types import Graph, Node


@dataclass(frozen=True, slots=True)
class Edge:
    """One operand of a node. `base` is the value in memory that `arg` is a view of (or is itself).

    `is_pointwise`: the node reads it elementwise and does not depend on its exact bits, so both may
    be computed in one launch. `is_one_to_one`: in addition, it has one element for each element of
    the node's domain, in the same order.
    """

    arg: str
    base: str
    is_pointwise: bool
    is_one_to_one: bool


def _have_common_digits(shape: IntTuple, reshape: Node) -> bool:
    """Whether the axes of both shapes can be split into the same finer ones, so that one loop nest
    goes over both: 6 and 3x2 can, 3x2 and 2x3 cannot."""
    extents = {*row_major_strides(shape), *row_major_strides(reshape.type.shape)}
    return all(b % a == 0 for a, b in pairwise(sorted(extents)))


class DataflowGraph:
    """The edges of a graph between computed values, with views resolved."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        needed = graph.live_names
        # a dict, since planning looks up every node dozens of times
        self.nodes = {name: n for name, n in graph.nodes.items() if name in needed}
        self.position = {name: i for i, name in enumerate(self.nodes)}
        self.base: dict[str, str] = {}
        self.copied_views: set[str] = set()
        """Views that strides cannot express; these are computed by copying."""
        self._is_order_preserving: dict[str, bool] = {}
        self._resolve_views()
        self.edges = {n.name: tuple(self._make_edges(n)) for n in self.find_computed_nodes()}
        self.readers: dict[str, list[str]] = {}
        for name, edges in self.edges.items():
            for base in dict.fromkeys(e.base for e in edges):
                self.readers.setdefault(base, []).append(name)
        self.roots = {self.base[name] for name in graph.roots}

    def find_computed_nodes(self) -> Iterator[Node]:
        """Yields the nodes that need computation."""
        for n in self.nodes.values():
            if OPS[n.op].kind != "leaf" and self.base[n.name] == n.name:
                yield n

    def _resolve_views(self) -> None:
        layouts: dict[str, Layout] = {}
        for n in self.nodes.values():
            name = n.name
            layout = None
            if OPS[n.op].kind == "view":
                layout = compute_view_layout(layouts[n.args[0]], n)
                if layout is None:
                    self.copied_views.add(name)
            if layout is None:
                layout, self.base[name], self._is_order_preserving[name] = (
                    make_contiguous(n.type.shape),
                    name,
                    True,
                )
            else:
                arg = n.args[0]
                self.base[name] = self.base[arg]
                is_same_order = n.op == "broadcast" or (
                    n.op == "reshape" and _have_common_digits(self.nodes[arg].type.shape, n)
                )
                self._is_order_preserving[name] = self._is_order_preserving[arg] and is_same_order
            layouts[name] = layout

    def _make_edges(self, node: Node) -> Iterator[Edge]:
        op = OPS[node.op]
        is_elementwise_op = op.kind in ("elementwise", "reduce")
        domain = self.domain_size(node.name)
        for i, arg in enumerate(node.args):
            base = self.base[arg]
            operand = op.operands[0 if op.is_variadic else i]
            is_elementwise_operand = (
                operand not in op.whole_operands and operand not in op.bitwise_operands
            )
            pointwise = (
                is_elementwise_op and is_elementwise_operand and self._is_order_preserving[arg]
            )
            full = pointwise and self.nodes[base].type.size == domain
            yield Edge(arg, base, pointwise, full)

    def domain_size(self, name: str) -> int:
        """Returns the number of elements that a node iterates over."""
        node = self.nodes[name]
        if OPS[node.op].kind == "reduce":
            return self.nodes[node.args[0]].type.size  # moments may be larger than their operand
        return node.type.size

    def op_kind(self, name: str) -> str:
        return "copy" if name in self.copied_views else OPS[self.nodes[name].op].kind

    def find_views(self, arg: str) -> Iterator[str]:
        """Yields the views between an operand and its base, outermost first."""
        while self.base[arg] != arg:
            yield arg
            arg = self.nodes[arg].args[0]

    def nbytes(self, base: str) -> int:
        return self.nodes[base].type.nbytes

    def reduction_key(self, name: str) -> tuple[object, ...] | None:
        """Returns the shape and axes of a reduction; reductions with equal keys can share a
        launch."""
        node = self.nodes[name]
        if self.op_kind(name) != "reduce":
            return None
        return (self.nodes[node.args[0]].type.shape, node.attrs.get("axes"))

    def is_channel_reduction(self, name: str) -> bool:
        """Returns whether a reduction keeps only the last axis."""
        key = self.reduction_key(name)
        if key is None:
            return False
        shape, axes = key
        return axes == tuple(range(len(shape) - 1))  # type: ignore[arg-type]
