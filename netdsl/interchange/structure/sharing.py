"""Makes chains of shared layers: from weights in common to whole encoders in common."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from netdsl.interchange.layer_graph import LayerGraph
from netdsl.interchange.structure.calls import Arguments
from netdsl.interchange.structure.graph import PER_USE, shared_groups
from netdsl.interchange.structure.names import Naming, letter_name
from netdsl.interchange.structure.tree import (
    CallItem,
    Item,
    Sequence,
    StatementItem,
    map_sequences,
    walk_items,
    walk_sequences,
)

Chains = dict[str, Sequence]


def share_layers(
    graph: LayerGraph, arguments: Mapping[str, Arguments]
) -> tuple[dict[str, str], Chains]:
    """The shared chain that a node uses, and these chains, of one layer each."""
    shared: dict[str, str] = {}
    chains: Chains = {}
    for first, *others in shared_groups(graph, arguments):
        name = letter_name("w", chains)
        shared |= dict.fromkeys((first, *others), name)
        layer = graph.nodes[first].layer
        channels = graph.nodes[graph.nodes[first].inputs[0]].shape[-1]
        chains[name] = (CallItem(layer, arguments[first], None, (first,), channels),)
    return shared, chains


def merge_chains(
    statements: tuple[StatementItem, ...], chains: Chains, graph: LayerGraph
) -> tuple[tuple[StatementItem, ...], Chains]:
    """The statements with longer shared chains: what follows one in all of its uses is part of
    it."""
    merger = _Merger([st.items for st in statements], dict(chains), graph)
    merger.run()
    merged = zip(statements, merger.sequences, strict=True)
    return tuple(replace(st, items=items) for st, items in merged), merger.chains


def name_chains(
    statements: tuple[StatementItem, ...], chains: Chains, naming: Naming, taken: Collection[str]
) -> tuple[tuple[StatementItem, ...], Chains]:
    """Statements and shared chains with names from the modules that use them."""
    names: dict[str, str] = {}
    for old in chains:
        uses = [i.nodes for st in statements for i in walk_items(st.items) if _is_use(i, old)]
        used = {*taken, *names.values()}
        names[old] = letter_name(naming.name_of_uses(uses, used) or "w", used)

    def rename(sequence: Sequence) -> Sequence:
        return tuple(
            replace(i, name=names.get(i.name, i.name)) if isinstance(i, CallItem) else i
            for i in sequence
        )

    renamed = (replace(st, items=map_sequences(st.items, rename)) for st in statements)
    return tuple(renamed), {names[k]: v for k, v in chains.items()}


def _is_use(item: Item, name: str) -> bool:
    return isinstance(item, CallItem) and item.name == name


class _Merger:
    def __init__(self, sequences: list[Sequence], chains: Chains, graph: LayerGraph) -> None:
        self.sequences = sequences
        self.chains = chains
        self.graph = graph

    def run(self) -> None:
        for name in [*self.chains]:
            while name in self.chains and (self._enclose(name) or self._extend(name)):
                pass

    def _uses(self) -> Counter[str]:
        return Counter(
            i.name for s in self.sequences for i in walk_items(s) if isinstance(i, CallItem)
        )

    def _extend(self, name: str) -> bool:
        """Moves what follows every use of a chain into it."""
        following = [*self._following(name)]
        item = following[0]
        if not isinstance(item, CallItem) or any(f != item for f in following):
            return False
        if not self._can_share(item, len(following)):
            return False

        def change(sequence: Sequence) -> Sequence:
            found: list[Item] = []
            is_taken = False
            for before, i in itertools.pairwise((None, *sequence)):
                is_taken = not is_taken and isinstance(before, CallItem) and before.name == name
                if is_taken and isinstance(before, CallItem) and i is not None:
                    found[-1] = replace(before, nodes=(*before.nodes, *i.nodes))
                elif i is not None:
                    found.append(i)
            return tuple(found)

        self._absorb(name, (*self.chains[name], *self._dissolve(item)), change)
        return True

    def _following(self, name: str) -> Iterator[Item | None]:
        """What follows each use of a chain; None at the end of a sequence."""
        for chain in self.sequences:
            for sequence in walk_sequences(chain):
                for item, after in itertools.pairwise((*sequence, None)):
                    if item is not None and _is_use(item, name):
                        yield after

    def _enclose(self, name: str) -> bool:
        """Makes the join that encloses every use of a chain the chain."""
        joins = [
            i
            for s in self.sequences
            for i in walk_items(s)
            if isinstance(i, CallItem)
            and any(_is_use(x, name) for b in i.branches or () for x in b)
        ]
        if not joins or any(j != joins[0] for j in joins):
            return False
        inside = sum(_is_use(i, name) for i in walk_items((joins[0],)))
        if inside * len(joins) != self._uses()[name]:
            return False
        if not self._can_share(joins[0], len(joins), name):
            return False

        def change(sequence: Sequence) -> Sequence:
            return tuple(
                CallItem(name, (), None, i.nodes, i.channels)
                if isinstance(i, CallItem) and i == joins[0]
                else i
                for i in sequence
            )

        self._absorb(name, self._dissolve(joins[0]), change)
        return True

    def _can_share(self, item: CallItem, count: int, name: str | None = None) -> bool:
        """Whether an item that occurs `count` times has no weights of its own."""
        uses = self._uses()
        inside = Counter(i.name for i in walk_items((item,)) if isinstance(i, CallItem))
        for call in walk_items((item,)):
            if not isinstance(call, CallItem):
                return False
            if call.name in self.chains:
                if call.name != name and uses[call.name] != count * inside[call.name]:
                    return False
                if inside[call.name] > 1:
                    return False
            elif call.name not in PER_USE and self.graph.nodes[call.nodes[-1]].states:
                return False
        return True

    def _dissolve(self, item: CallItem) -> Sequence:
        """An item with the chains that it uses written out."""

        def change(sequence: Sequence) -> Sequence:
            found: list[Item] = []
            for i in sequence:
                is_chain = isinstance(i, CallItem) and i.name in self.chains
                found += self.chains[i.name] if is_chain and isinstance(i, CallItem) else (i,)
            return tuple(found)

        return map_sequences((item,), change)

    def _absorb(self, name: str, chain: Sequence, change: Callable[[Sequence], Sequence]) -> None:
        self.sequences = [map_sequences(s, change) for s in self.sequences]
        uses = self._uses()
        self.chains[name] = chain
        self.chains = {k: v for k, v in self.chains.items() if uses[k]}
