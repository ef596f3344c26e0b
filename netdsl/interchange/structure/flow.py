"""Series-parallel decomposition: from a graph to chains with branches, and labels for the rest.

Each value is first a chain from an earlier value. A value that is used once continues in the chain
that uses it (series); a join whose branches all come from one value is an element of a chain
(parallel). A join of several sources takes all but the latest by their labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

from netdsl.interchange.layer_graph import INPUT, LayerGraph
from netdsl.interchange.structure.calls import Arguments
from netdsl.interchange.structure.tree import (
    CallItem,
    Item,
    LabelItem,
    Sequence,
    StatementItem,
)
from netdsl.layers import LAYERS

_MAX_BRANCH = 5
"""Calls that a branch beside labels may have; of a longer one, most stand before the join."""
_MAX_DEPTH = 8
"""Joins inside joins of one chain; a deeper one begins with a label."""
_ENLARGING = ("convtranspose", "upsample", "pixel_shuffle")


@dataclass(frozen=True)
class _Path:
    """The chain from the value of `source` to another; from nothing, if it begins with a label or
    an input; `depth` is that of its joins."""

    source: str | None
    items: Sequence
    depth: int = 0


@dataclass
class _Decomposition:
    graph: LayerGraph
    arguments: Mapping[str, Arguments]
    shared: Mapping[str, str]
    """The shared chain that a node uses."""
    forked: frozenset[str]
    """Values that get a label although branches could start from them."""
    positions: Mapping[str, int]
    uses: Counter[str] = field(default_factory=Counter)
    pinned: set[str] = field(default_factory=set)
    paths: dict[str, _Path] = field(default_factory=dict)

    def run(self) -> None:
        self.uses.update(i for n in self.graph.nodes.values() for i in n.inputs)
        self.pinned |= {*self.graph.outputs.values(), *self.forked}
        inputs = [n.name for n in self.graph.nodes.values() if n.layer == INPUT]
        self.pinned |= {*inputs}
        for name, node in self.graph.nodes.items():
            if node.layer == INPUT:
                self.paths[name] = _Path(None, (self.call(name),))
            elif LAYERS[node.layer].arity == "one":
                self.paths[name] = self._extend(self._walk_back(node.inputs[0]), self.call(name))
            else:
                self.paths[name] = self._join(name, len(inputs) > 1)

    def call(self, name: str, branches: tuple[Sequence, ...] | None = None) -> CallItem:
        node = self.graph.nodes[name]
        channels = self.graph.nodes[node.inputs[0]].shape[-1] if node.inputs else None
        if name in self.shared:
            return CallItem(self.shared[name], (), None, (name,), channels)
        nodes = (*(n for b in branches or () for item in b for n in item.nodes), name)
        return CallItem(node.layer, self.arguments[name], branches, nodes, channels)

    def _extend(self, path: _Path, *items: Item) -> _Path:
        return _Path(path.source, (*path.items, *items), path.depth)

    def _walk_back(self, name: str) -> _Path:
        """The chain to a value from the last value that is used more than once or has a label."""
        if self.paths[name].depth >= _MAX_DEPTH:
            self.pinned.add(name)
        if name in self.pinned or self.uses[name] > 1:
            return _Path(name, ())
        return self.paths[name]

    def _join(self, name: str, has_several_inputs: bool) -> _Path:
        inputs = self.graph.nodes[name].inputs
        branches = [self._walk_back(i) for i in inputs]
        sources = dict.fromkeys(b.source for b in branches if b.source is not None)
        flow = self._flow_source(sources, has_several_inputs)
        if flow in self.forked:
            branches = [
                b if len(b.items) or b.source != flow else _Path(None, (LabelItem(b.source),))
                for b in branches
            ]
            if not any(b.source == flow for b in branches):
                flow = None
        labels = {s for s in sources if s != flow}
        self.pinned |= labels
        branches = [
            _Path(None, (LabelItem(b.source), *b.items), b.depth) if b.source in labels else b
            for b in branches
        ]
        uses = sum(b.source == flow for b in branches)
        if flow is not None and uses:
            self.uses[flow] -= uses - 1
        before: Sequence = ()
        if flow is not None and uses == 1 and len(branches) > 1:
            before, branches = self._take_out(branches)
        call = self.call(name, tuple(b.items for b in branches))
        channels = self.graph.nodes[flow].shape[-1] if flow is not None else None
        before_nodes = tuple(n for item in before for n in item.nodes)
        if before_nodes:
            channels = self.graph.nodes[before_nodes[-1]].shape[-1]
        call = CallItem(call.name, call.args, call.branches, call.nodes, channels)
        items = (*before, call)
        depth = 1 + max(b.depth for b in branches)
        if flow is not None and uses and flow not in self.pinned and self.uses[flow] == 1:
            before_flow = self.paths[flow]
            depth = max(depth, before_flow.depth)
            return _Path(before_flow.source, (*before_flow.items, *items), depth)
        return _Path(flow, items, depth)

    def _flow_source(self, sources: Mapping[str, None], has_several_inputs: bool) -> str | None:
        """The value that flows into a join: the latest of the sources of its branches."""
        if not sources:
            return None
        latest = max(sources, key=self.positions.__getitem__)
        is_input = self.graph.nodes[latest].layer == INPUT
        return None if is_input and has_several_inputs and len(sources) > 1 else latest

    def _take_out(self, branches: list[_Path]) -> tuple[Sequence, list[_Path]]:
        """What can stand before a join, whose other branches are mere labels, of its only branch
        that something flows into; and the branches without it."""
        others = [b for b in branches if b.source is None]
        if any(not isinstance(item, LabelItem) for b in others for item in b.items):
            return (), branches
        index = next(i for i, b in enumerate(branches) if b.source is not None)
        items = branches[index].items
        cut = _branch_start(items)
        kept = _Path(branches[index].source, items[cut:])
        return items[:cut], [*branches[:index], kept, *branches[index + 1 :]]


def _branch_start(items: Sequence) -> int:
    """Where the part of a chain begins that may stay in a branch."""
    joins = [i for i, item in enumerate(items) if isinstance(item, CallItem) and item.branches]
    enlarging = [
        i for i, item in enumerate(items) if isinstance(item, CallItem) and item.name in _ENLARGING
    ]
    first = joins[-1] + 1 if joins else 0
    if enlarging and enlarging[-1] >= first and len(items) - enlarging[-1] <= _MAX_BRANCH:
        return enlarging[-1]
    return first if not joins and len(items) <= _MAX_BRANCH else len(items)


def statements(
    graph: LayerGraph, arguments: Mapping[str, Arguments], shared: Mapping[str, str]
) -> tuple[StatementItem, ...]:
    """The statements of a net, as few as possible; `shared` says which chain a node uses."""
    found = _statements(graph, arguments, shared, frozenset())
    forked = frozenset(n for st in found for n in _nested_skips(st.items, st.source))
    return _statements(graph, arguments, shared, forked) if forked else found


def _statements(
    graph: LayerGraph,
    arguments: Mapping[str, Arguments],
    shared: Mapping[str, str],
    forked: frozenset[str],
) -> tuple[StatementItem, ...]:
    positions = {n: i for i, n in enumerate(graph.nodes)}
    d = _Decomposition(graph, arguments, shared, forked, positions)
    d.run()
    kept = [n for n in graph.nodes if n in d.pinned or d.uses[n] != 1]
    main = graph.outputs["main"]
    outputs = {v: k for k, v in reversed([*graph.outputs.items()]) if k != "main"}
    found = []
    for name in kept:
        path = d.paths[name]
        is_output_only = name in outputs and name != main and not d.uses[name]
        output = outputs.pop(name) if is_output_only else None
        found.append(StatementItem(name, path.items, path.source, None, output))
    return _with_outputs(graph, found, {st.output for st in found if st.output})


def flat_statements(
    graph: LayerGraph, arguments: Mapping[str, Arguments], shared: Mapping[str, str]
) -> tuple[StatementItem, ...]:
    """A statement for each call, whose branches are mere labels."""
    positions = {n: i for i, n in enumerate(graph.nodes)}
    d = _Decomposition(graph, arguments, shared, frozenset(), positions)
    found = []
    for name, node in graph.nodes.items():
        source = node.inputs[0] if node.inputs else None
        branches: tuple[Sequence, ...] | None = None
        if node.layer != INPUT and LAYERS[node.layer].arity == "many":
            branches = tuple((LabelItem(i),) for i in node.inputs)
            source = None
        call = replace(d.call(name, branches), nodes=(name,))
        found.append(StatementItem(name, (call,), source))
    return _with_outputs(graph, found)


def _with_outputs(
    graph: LayerGraph, found: list[StatementItem], named: Container[str] = ()
) -> tuple[StatementItem, ...]:
    """The statements with the outputs that are not `named` yet, and the main one as the last."""
    main = graph.outputs["main"]
    for name, node in graph.outputs.items():
        if name != "main" and name not in named:
            found.append(StatementItem(node, (LabelItem(node),), None, None, name))
    last = [st for st in found if st.output is None][-1]
    if last.node != main:
        found.append(StatementItem(main, (LabelItem(main),)))
    return tuple(found)


@dataclass(frozen=True)
class _SkipNest:
    """Joins with a bypass, one inside the branch of another: the values that they start from."""

    forks: tuple[str, ...]
    depth: int


def _nested_skips(items: Sequence, source: str | None) -> list[str]:
    """The values that skips inside skips start from, as those of a U-Net: with labels they read
    better than as branches inside branches."""
    found: list[str] = []
    value = source
    for item in items:
        if isinstance(item, CallItem) and item.branches and value is not None:
            nest = _skip_nest(item, value)
            if nest.depth > (1 if item.name == "concat" else 2):
                found += nest.forks
            else:
                found += [n for b in item.branches for n in _nested_skips(b, value)]
        value = item.nodes[-1] if item.nodes else None
    return found


def _skip_nest(join: CallItem, source: str) -> _SkipNest:
    branches = join.branches or ()
    if all(branches):
        return _SkipNest((), 0)
    inner = []
    for branch in branches:
        value = source
        for item in branch:
            if isinstance(item, CallItem) and item.branches and item.name == join.name:
                inner.append(_skip_nest(item, value))
            value = item.nodes[-1] if item.nodes else value
    depth = 1 + max((nest.depth for nest in inner), default=0)
    return _SkipNest((source, *(f for nest in inner for f in nest.forks)), depth)
