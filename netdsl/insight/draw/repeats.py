"""Siblings that repeat each other: a chain of groups with the same layers becomes one group."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

from netdsl.insight.draw.links import Link, lift_edges
from netdsl.insight.draw.tree import Group, Item, LayerBox, NetTree


def group_repeats(tree: NetTree) -> NetTree:
    """Puts each chain of two or more identical groups into a group of kind `repeat`."""
    return replace(tree, root=_RepeatFinder(tree).rebuild(tree.root))


class _RepeatFinder:
    def __init__(self, tree: NetTree) -> None:
        self.links = lift_edges(tree)
        self.positions = {box.key: i for i, box in enumerate(tree.root.boxes)}
        self.sources: dict[str, list[str]] = {}
        for source, target in tree.edges:
            self.sources.setdefault(target, []).append(source)
        self.count = 0

    def rebuild(self, group: Group) -> Group:
        children: list[Item] = []
        for run in self._find_runs(group):
            rebuilt = [self.rebuild(c) if isinstance(c, Group) else c for c in run]
            children += [self._make_repeat(rebuilt)] if len(run) > 1 else rebuilt
        return replace(group, children=tuple(children))

    def _make_repeat(self, members: Sequence[Item]) -> Group:
        self.count += 1
        groups = [m for m in members if isinstance(m, Group)]
        title = f"{groups[0].title} – {groups[-1].title}"
        return Group(f"r{self.count}", groups[0].path, title, "repeat", tuple(groups))

    def _find_runs(self, group: Group) -> Iterator[list[Item]]:
        followers = _find_followers(self.links[group.key])
        run: list[Item] = []
        for child in group.children:
            if run and (followers.get(run[-1].key) != child.key or not self._match(run[-1], child)):
                yield run
                run = []
            run.append(child)
        if run:
            yield run

    def _match(self, a: Item, b: Item) -> bool:
        return (
            isinstance(a, Group)
            and isinstance(b, Group)
            and a.kind == b.kind == "block"
            and _strip_number(a.title) == _strip_number(b.title)
            and self._make_signature(a) == self._make_signature(b)
        )

    def _make_signature(self, group: Group) -> Hashable:
        """What two groups have in common if they have the same layers, shapes, inner groups and
        edges."""
        return self._make_item_signature(group, self.positions[next(group.boxes).key])

    def _make_item_signature(self, item: Item, first: int) -> Hashable:
        if isinstance(item, Group):
            inside = tuple(self._make_item_signature(c, first) for c in item.children)
            return item.kind, inside
        sources = (self.positions[s] - first for s in self.sources.get(item.key, ()))
        return _describe(item), tuple(max(-1, s) for s in sources)


def _describe(box: LayerBox) -> Hashable:
    return box.word, box.label, box.parameters, box.shape


def _strip_number(title: str) -> str:
    return re.sub(r"\d+$", "", title)


def _find_followers(links: Sequence[Link]) -> Mapping[str, str]:
    """Each child that only one other child reads, which reads nothing else, by one value."""
    readers: dict[str, list[str]] = {}
    sources: dict[str, list[str]] = {}
    for link in links:
        readers.setdefault(link.source, []).append(link.target)
        sources.setdefault(link.target, []).append(link.source)
    return {
        source: targets[0]
        for source, targets in readers.items()
        if len(targets) == 1 and len(sources[targets[0]]) == 1
    }
