"""Recompute: the backward pass computes a region's inner values again instead of keeping them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from netdsl.ir.builder import Builder
from netdsl.ops import OPS
from netdsl.passes.rewrite import rebuilt
from netdsl.types import Graph, Node


def recompute(graph: Graph, forward: Collection[str], regions: Mapping[str, str]) -> Graph:
    """A training step that remembers less (Chen et al. 2016, "Training deep nets with sublinear
    memory cost").

    `forward` names the nodes of the forward pass, `regions` the region of those among them that are
    not to be kept. Where a node of the backward pass reads one that only its own region reads, it
    is given a copy, computed from what flows into the region just before it is needed.
    """
    kept = _leaving(graph, forward, regions)
    again = _Again(graph, {n: r for n, r in regions.items() if n not in kept})
    for node in graph.nodes.values():
        args = [again.new[a] if node.name in forward else again.copy(a) for a in node.args]
        again.emit(node, node.name, args, node.region)
    return rebuilt(again.b, graph, again.new)


def _leaving(graph: Graph, forward: Collection[str], regions: Mapping[str, str]) -> set[str]:
    """What flows from one region into another part of the forward pass, and what is small: leaves
    and the results of reductions."""
    kept = {n.name for n in graph.nodes.values() if OPS[n.op].kind in ("leaf", "reduce")}
    for name, region in regions.items():
        readers = (n for n in graph.dag.successors(name) if n in forward)
        if any(regions.get(n) != region for n in readers):
            kept.add(name)
    return kept | set(graph.outputs.values())


class _Again:
    """Emits nodes, and copies of those that are computed again."""

    def __init__(self, graph: Graph, regions: Mapping[str, str]) -> None:
        self.graph = graph
        self.regions = regions
        self.place = {name: i for i, name in enumerate(graph.nodes)}
        self.b = Builder()
        self.new: dict[str, Node] = {}
        self.copies: dict[str, Node] = {}

    def emit(self, node: Node, old: str, args: list[Node], region: str) -> None:
        with self.b.at(node.span, node.name, region):
            self.new[old] = self.b.emit(node.op, *args, name=node.name, **node.attrs)

    def copy(self, name: str) -> Node:
        """What a node of the backward pass reads for `name`."""
        if name not in self.regions:
            return self.new[name]
        for missing in self._missing(name):
            node = self.graph[missing]
            args = [self.copies[a] if a in self.regions else self.new[a] for a in node.args]
            with self.b.at(node.span, node.name, self.regions[missing]):
                self.copies[missing] = self.b.emit(
                    node.op, *args, name=f"again.{missing}", **node.attrs
                )
        return self.copies[name]

    def _missing(self, name: str) -> list[str]:
        """What has to be computed again for `name` and is not yet, in the order of the graph."""
        found: set[str] = set()
        todo = [name]
        while todo:
            at = todo.pop()
            if at in self.regions and at not in self.copies and at not in found:
                found.add(at)
                todo += self.graph[at].args
        return sorted(found, key=self.place.__getitem__)
