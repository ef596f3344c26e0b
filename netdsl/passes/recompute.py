"""Recompute (gradient checkpointing): the backward pass recomputes a region's inner values instead
of storing them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from netdsl.ir.builder import Builder
from netdsl.ops import OPS
from netdsl.passes.rewrite import rebuild_graph
from netdsl.types import Graph, Node


def recompute(graph: Graph, forward: Collection[str], regions: Mapping[str, str]) -> Graph:
    """Returns a training step that stores fewer values (Chen et al. 2016, "Training deep nets with
    sublinear memory cost").

    `forward` names the nodes of the forward pass, `regions` the region of those among them that are
    not to be stored. If a node of the backward pass reads a value that the forward pass reads only
    within its region, it reads a copy instead, recomputed from the region's inputs just before it
    is needed.
    """
    saved = _find_saved_values(graph, forward, regions)
    recomputer = _Recomputer(graph, {n: r for n, r in regions.items() if n not in saved})
    for node in graph.nodes.values():
        args = [
            recomputer.new_nodes[a] if node.name in forward else recomputer.find_or_recompute(a)
            for a in node.args
        ]
        recomputer.emit(node, node.name, args, node.region)
    return rebuild_graph(recomputer.b, graph, recomputer.new_nodes)


def _find_saved_values(
    graph: Graph, forward: Collection[str], regions: Mapping[str, str]
) -> set[str]:
    """Returns the values that flow from one region into another part of the forward pass, and the
    small ones: leaves and results of reductions."""
    saved = {n.name for n in graph.nodes.values() if OPS[n.op].kind in ("leaf", "reduce")}
    for name, region in regions.items():
        readers = (n for n in graph.dag.successors(name) if n in forward)
        if any(regions.get(n) != region for n in readers):
            saved.add(name)
    return saved | set(graph.outputs.values())


class _Recomputer:
    """Emits nodes, and copies of those that are recomputed."""

    def __init__(self, graph: Graph, regions: Mapping[str, str]) -> None:
        self.graph = graph
        self.regions = regions
        self.position = {name: i for i, name in enumerate(graph.nodes)}
        self.b = Builder()
        self.new_nodes: dict[str, Node] = {}
        self.copies: dict[str, Node] = {}

    def emit(self, node: Node, old: str, args: list[Node], region: str) -> None:
        with self.b.at(node.span, node.name, region):
            self.new_nodes[old] = self.b.emit(node.op, *args, name=node.name, **node.attrs)

    def find_or_recompute(self, name: str) -> Node:
        """Returns what a node of the backward pass reads for `name`."""
        if name not in self.regions:
            return self.new_nodes[name]
        for missing in self._find_missing(name):
            node = self.graph[missing]
            args = [self.copies[a] if a in self.regions else self.new_nodes[a] for a in node.args]
            with self.b.at(node.span, node.name, self.regions[missing]):
                self.copies[missing] = self.b.emit(
                    node.op, *args, name=f"again.{missing}", **node.attrs
                )
        return self.copies[name]

    def _find_missing(self, name: str) -> list[str]:
        """Returns what must still be recomputed for `name`, in graph order."""
        found: set[str] = set()
        worklist = [name]
        while worklist:
            current = worklist.pop()
            if current in self.regions and current not in self.copies and current not in found:
                found.add(current)
                worklist += self.graph[current].args
        return sorted(found, key=self.position.__getitem__)
