"""Folding for inference: computes once what depends only on states, and folds normalization into
the preceding weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import networkx as nx

from netdsl.ir.builder import Builder
from netdsl.ir.subgraph import extract_subgraph
from netdsl.ir.views import strip_views
from netdsl.ops import OPS
from netdsl.passes.rewrite import (
    Rewriter,
    Rule,
    count_uses,
    emit_mean_and_inverse_std,
    rebuild_graph,
)
from netdsl.passes.simplify import SIMPLIFY_RULES
from netdsl.types import Graph, Node, TensorType, find_reachable

PREPARED_PREFIX = "folded."
_STATIC_OPS = ("state", "const")


@dataclass(frozen=True)
class FoldedGraph:
    """`main` runs on every batch; `prepare` computes its `folded.` states when weights change."""

    main: Graph
    prepare: Graph


def fold_batch_norms(graph: Graph) -> Graph:
    """Replaces a normalization by known moments with a per-channel factor and offset. Factors move
    into the weights of the preceding product if nothing else reads that product (Jacob et al. 2018,
    section 3.2)."""
    b = _Folder()
    use_counts = count_uses(graph)
    new_nodes: dict[str, Node] = {}
    for node in graph.nodes.values():
        with b.at(node.span, node.name, node.region):
            args = (new_nodes[a] for a in node.args)
            found = b.emit(node.op, *args, name=node.name, **node.attrs)
        new_nodes[node.name] = found
        if use_counts[node.name] > 1:
            b.shared_names.add(found.name)
    return rebuild_graph(b, graph, new_nodes)


def split_preparation(graph: Graph) -> FoldedGraph:
    """Splits an inference graph into the part that depends on its inputs and the part that does
    not."""
    sources = [n.name for n in graph.nodes.values() if not n.args and n.op not in _STATIC_OPS]
    dynamic = find_reachable(graph.dag, sources)
    prepared = {
        n for n in _find_frontier(graph, dynamic) if OPS[strip_views(graph, n).op].kind != "leaf"
    }
    b, new_nodes = Builder(), {}
    for node in graph.nodes.values():
        with b.at(node.span, node.name, node.region):
            if node.name in prepared:
                new_nodes[node.name] = _emit_prepared_state(b, node)
            else:
                args = (new_nodes[a] for a in node.args)
                name = node.name if node.op in ("input", "state") else _strip_number(node.name)
                new_nodes[node.name] = b.emit(node.op, *args, name=name, **node.attrs)
    return FoldedGraph(rebuild_graph(b, graph, new_nodes), _build_preparation(graph, prepared))


def _is_static(node: Node, static: set[str]) -> bool:
    """Returns whether a node has the same value for every input, given the `static` nodes before
    it."""
    return node.op in _STATIC_OPS or (bool(node.args) and all(a in static for a in node.args))


class _Folder(Rewriter):
    """Tracks the `static_names`, nodes with the same value for every input, and the `shared_names`,
    nodes with several readers, which are left unchanged."""

    def __init__(self) -> None:
        self.static_names: set[str] = set()
        self.shared_names: set[str] = set()
        super().__init__(
            {op: (*SIMPLIFY_RULES.get(op, ()), *_RULES.get(op, ())) for op in _FOLDED_OPS}
        )

    def insert(self, node: Node) -> Node:
        if _is_static(node, self.static_names):
            self.static_names.add(node.name)
        return super().insert(node)

    def can_fold(self, *nodes: Node) -> bool:
        """Returns whether none of the nodes is static or has other readers."""
        return not any(n.name in self.static_names or n.name in self.shared_names for n in nodes)

    def split_static_operand(self, x: Node, z: Node) -> tuple[Node, Node] | None:
        """Returns the dynamic and the static operand, if there is one of each and the static one is
        a scalar or has one value per channel."""
        for a, s in ((x, z), (z, x)):
            if a.name not in self.static_names and s.name in self.static_names and a.type.rank:
                size, channels = s.type.size, a.type.shape[-1]
                is_per_channel = size in (1, channels) and s.type.shape[-1:] in ((), (size,))
                fits = is_per_channel and s.type.rank <= a.type.rank
                return (a, self.flatten(s)) if fits else None
        return None

    def flatten(self, s: Node) -> Node:
        return self.reshape(s, shape=(s.type.size,)) if s.type.rank > 1 else s


def _fold_normalize(b: _Folder, x: Node, m: Node, axes: Any, eps: float) -> Node | None:
    if x.name in b.static_names or m.name not in b.static_names:
        return None
    if axes != tuple(range(x.type.rank - 1)):
        return None
    mean, scale = emit_mean_and_inverse_std(b, m, eps)
    return b.add(b.mul(x, scale), b.mul(b.neg(mean), scale))


def _fold_mul(b: _Folder, x: Node, z: Node) -> Node | None:
    """Moves a per-channel factor towards the product that it scales."""
    operands = b.split_static_operand(x, z)
    if operands is None or not b.can_fold(operands[0]):
        return None
    y, factor = operands
    if y.op in _OUTPUT_CHANNEL_AXES:
        return _scale_weight(b, y, factor)
    if y.op not in ("add", "mul"):
        return None
    inner = b.split_static_operand(*(b.nodes[a] for a in y.args))
    if inner is None:
        return None
    if y.op == "mul":
        return b.mul(inner[0], b.mul(inner[1], factor))
    return b.add(b.mul(inner[0], factor), b.mul(inner[1], factor))


def _fold_add(b: _Folder, x: Node, z: Node) -> Node | None:
    """Combines successive offsets into one, and likewise the offsets of two values that are
    added."""
    operands = b.split_static_operand(x, z)
    if operands is not None:
        inner = _match_offset(b, operands[0])
        return b.add(inner[0], b.add(inner[1], operands[1])) if inner else None
    one, two = _match_offset(b, x), _match_offset(b, z)
    if one is None or two is None or x.type.shape != z.type.shape:
        return None
    return b.add(b.add(one[0], two[0]), b.add(one[1], two[1]))


def _match_offset(b: _Folder, y: Node) -> tuple[Node, Node] | None:
    """Returns a value with a single reader as another value and a per-channel offset."""
    if y.op != "add" or not b.can_fold(y):
        return None
    return b.split_static_operand(*(b.nodes[a] for a in y.args))


_OUTPUT_CHANNEL_AXES = {"conv2d": 0, "conv2d_dgrad": 3, "matmul": 0}
"""The axis of the weight that indexes the output channels."""


def _scale_weight(b: _Folder, y: Node, factor: Node) -> Node | None:
    x, w = (b.nodes[a] for a in y.args)
    is_grouped = y.op == "conv2d_dgrad" and y.attrs["groups"] != 1
    if w.name not in b.static_names or is_grouped or (y.op == "matmul" and w.type.rank != 2):
        return None
    axis = _OUTPUT_CHANNEL_AXES[y.op]
    shape = tuple(factor.type.size if a == axis else 1 for a in range(w.type.rank))
    scaled = b.emit("mul", w, b.reshape(factor, shape=shape), name=w.name)
    with b.at(y.span, y.name, y.region):
        return b.emit(y.op, x, scaled, name=y.name, **y.attrs)


_RULES: dict[str, tuple[Rule, ...]] = {
    "normalize": (_fold_normalize,),
    "mul": (_fold_mul,),
    "add": (_fold_add,),
}
_FOLDED_OPS = {*SIMPLIFY_RULES, *_RULES}


def _find_frontier(graph: Graph, dynamic: set[str]) -> set[str]:
    """Returns the static nodes that dynamic nodes read or that are roots."""
    read: set[str] = nx.node_boundary(graph.dag.reverse(copy=False), dynamic)
    return read | (set(graph.roots) - dynamic)


def _emit_prepared_state(b: Builder, node: Node) -> Node:
    kind = TensorType(node.type.shape, node.type.dtype)
    init = ("constant", 0.0)
    return b.emit(
        "state",
        name=PREPARED_PREFIX + _strip_number(node.name),
        shape=kind.shape,
        dtype=kind.dtype,
        init=init,
        trainable=False,
    )


def _strip_number(name: str) -> str:
    """Removes the suffix that made a name unique in an earlier pass."""
    return re.sub(r"~\d+$", "", name)


def _build_preparation(graph: Graph, prepared: set[str]) -> Graph:
    """Builds the graph that computes the prepared values, as updates of the states that hold
    them."""
    b = Builder(extract_subgraph(graph, graph.backward_slice(*prepared), {}))
    names = [n for n in graph.nodes if n in prepared]
    updates = {_emit_prepared_state(b, graph[n]).name: b.nodes[n] for n in names}
    return b.build({}, updates, f"{graph.name}.prepare")
