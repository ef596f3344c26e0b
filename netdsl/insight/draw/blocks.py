"""How the children of a group are arranged: chains and branches, and rows where neither fits.

A group's graph is split at the children that every path passes through; what is between two of them
falls apart into branches, and so on inside (series-parallel decomposition, Valdes, Tarjan and
Lawler 1982, "The recognition of series parallel digraphs"). What cannot be split is arranged in
rows by igraph's layouter (Sugiyama, Tagawa and Toda 1981).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import networkx as nx

from netdsl.insight.draw.links import is_port
from netdsl.optional_imports import import_optional


@dataclass(frozen=True)
class Leaf:
    """A child or a port."""

    key: str


@dataclass(frozen=True)
class Lane:
    """The way of a link past something, by the keys of its ends."""

    source: str
    target: str


@dataclass(frozen=True)
class Chain:
    """Blocks below each other, on one axis."""

    items: tuple[Block, ...]


@dataclass(frozen=True)
class Parallel:
    """Branches beside each other. `spine` is the branch on the axis; without one, the branches that
    contain more than lines are centred on it."""

    branches: tuple[Chain, ...]
    spine: int | None


@dataclass(frozen=True)
class Rows:
    """Leaves and lanes in rows, each with its horizontal place in a common unit."""

    rows: tuple[tuple[tuple[Leaf | Lane, float], ...], ...]


Block = Leaf | Lane | Chain | Parallel | Rows


def is_line(block: Block) -> bool:
    """Whether a block contains only lines and ports."""
    if isinstance(block, Leaf):
        return is_port(block.key)
    if isinstance(block, Chain):
        return all(map(is_line, block.items))
    return isinstance(block, Lane)


def count_leaves(block: Block, weights: Mapping[str, int]) -> int:
    """The sum of the weights of the leaves of a block."""
    if isinstance(block, Leaf):
        return weights.get(block.key, 0)
    if isinstance(block, Chain):
        return sum(count_leaves(item, weights) for item in block.items)
    if isinstance(block, Parallel):
        return sum(count_leaves(branch, weights) for branch in block.branches)
    if isinstance(block, Rows):
        return sum(count_leaves(cell, weights) for row in block.rows for cell, _ in row)
    return 0


_START, _END = "start", "end"


def arrange(
    keys: Sequence[str], links: Sequence[tuple[str, str]], weights: Mapping[str, int]
) -> Chain:
    """Arranges a group: its keys, each before those that read it, and its links by their ends.
    `weights` are the numbers of boxes of the children: where branches never meet, the heaviest goes
    on."""
    dag = nx.DiGraph()
    dag.add_nodes_from((_START, *keys, _END))
    dag.add_edges_from(links)
    for key in keys:
        if not dag.pred[key]:
            dag.add_edge(_START, key)
        if not dag.succ[key]:
            dag.add_edge(key, _END)
    return _Arranger(dag, weights).arrange_series(_START, list(keys), _END)


class _Arranger:
    def __init__(self, dag: nx.DiGraph, weights: Mapping[str, int]) -> None:
        self.dag = dag
        self.weights = weights

    def arrange_series(self, start: str, inner: Sequence[str], end: str) -> Chain:
        """The blocks between two nodes, split at the nodes that every path passes through."""
        order = [start, *inner, end]
        at = {key: i for i, key in enumerate(order)}
        cuts = [0, *self._find_cuts(order, at), len(order) - 1]
        items: list[Block] = []
        for first, last in pairwise(cuts):
            is_whole = len(cuts) == 2  # a link past all of it has its lane outside
            is_direct = not is_whole and self.dag.has_edge(order[first], order[last])
            region = order[first + 1 : last]
            items += self._arrange_region(order[first], region, order[last], is_direct)
            items.append(Leaf(order[last]))
        return Chain(tuple(items[:-1]))

    def _find_cuts(self, order: Sequence[str], at: Mapping[str, int]) -> list[int]:
        """The positions that no edge jumps over: in an executable order, these are the nodes on
        every path."""
        changes = [0] * (len(order) + 1)
        for source in order[:-1]:
            for target in self.dag.succ[source]:
                if target in at and (source, target) != (order[0], order[-1]):
                    changes[at[source] + 1] += 1
                    changes[at[target]] -= 1
        jumps = list(accumulate(changes))
        return [i for i in range(1, len(order) - 1) if not jumps[i]]

    def _arrange_region(
        self, start: str, inner: Sequence[str], end: str, is_direct: bool
    ) -> Iterator[Block]:
        if not inner:
            return
        components = list(self._split(inner))
        if len(components) == 1 and not is_direct:
            yield self._arrange_rows(start, inner, end)
            return
        branches = [self.arrange_series(start, keys, end) for keys in components]
        if is_direct:
            branches.append(Chain((Lane(start, end),)))
        yield Parallel(tuple(branches), self._find_spine(branches, end))

    def _find_spine(self, branches: Sequence[Chain], end: str) -> int | None:
        solid = [i for i, b in enumerate(branches) if not is_line(b)]
        if len(solid) == 1:
            return solid[0]
        if end != _END or not solid:
            return None
        return max(solid, key=lambda i: count_leaves(branches[i], self.weights))

    def _split(self, inner: Sequence[str]) -> Iterator[list[str]]:
        """The connected parts of some nodes, in the order of their first nodes."""
        part = self.dag.subgraph(inner).to_undirected(as_view=True)
        left = dict.fromkeys(inner)
        while left:
            found = nx.node_connected_component(part, next(iter(left)))
            yield [key for key in left if key in found]
            left = {key: None for key in left if key not in found}

    def _arrange_rows(self, start: str, inner: Sequence[str], end: str) -> Rows:
        """Rows by the longest path from the start; a link that passes a row has a lane in it."""
        region = nx.DiGraph(self.dag.subgraph((start, *inner, end)))
        region.remove_edges_from([(start, end)])
        ranks: dict[str, int] = {}
        for key in (start, *inner, end):
            ranks[key] = max((ranks[p] + 1 for p in region.pred[key]), default=0)
        cells: list[Leaf | Lane] = [Leaf(key) for key in (start, *inner, end)]
        layers = [ranks[key] for key in (start, *inner, end)]
        at = {key: i for i, key in enumerate((start, *inner, end))}
        edges = []
        for source, target in region.edges:
            previous = at[source]
            for rank in range(ranks[source] + 1, ranks[target]):
                cells.append(Lane(source, target))
                layers.append(rank)
                edges.append((previous, len(cells) - 1))
                previous = len(cells) - 1
            edges.append((previous, at[target]))
        igraph = import_optional(
            "igraph",
            "drawing this graph needs igraph",
            "install it with `pip install 'netdsl[draw]'`",
        )
        graph = igraph.Graph(len(cells), edges, directed=True)
        found = graph.layout_sugiyama(layers=layers, maxiter=100)
        rows: list[list[tuple[Leaf | Lane, float]]] = [[] for _ in range(ranks[end] + 1)]
        for cell, layer, (x, _) in zip(cells, layers, found.coords, strict=False):
            rows[layer].append((cell, x))
        return Rows(tuple(tuple(sorted(row, key=lambda c: c[1])) for row in rows[1:-1]))
