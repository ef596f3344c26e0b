"""A diagram: a tree of groups, the arrangement of every group, and the sizes of its boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from netdsl.insight.draw.blocks import Chain, arrange
from netdsl.insight.draw.boxes import Label, align_widths, make_label, measure_title
from netdsl.insight.draw.links import (
    Link,
    is_entry,
    is_exit,
    is_port,
    lift_edges,
    make_entry_port,
    make_exit_port,
)
from netdsl.insight.draw.tree import Group, Item, LayerBox, NetTree


@dataclass(frozen=True)
class Arrangement:
    """How a group shows its children: the block, the links in it, and the ports in its frame."""

    block: Chain
    links: tuple[Link, ...]

    @property
    def ports(self) -> tuple[str, ...]:
        ends = (key for link in self.links for key in (link.source, link.target))
        return tuple(dict.fromkeys(key for key in ends if is_port(key)))


@dataclass(frozen=True)
class DiagramView:
    """What is shown: the groups that are open, and those of them that repeat a group and show only
    the first one."""

    open_groups: frozenset[str]
    short_repeats: frozenset[str]

    def is_open(self, key: str) -> bool:
        return key in self.open_groups


@dataclass(frozen=True)
class Diagram:
    """Everything that a layout needs. `attached` maps a box to the one that it sticks to;
    `short` has the arrangement of each repeat that shows only its first group."""

    tree: NetTree
    items: Mapping[str, Item]
    arrangements: Mapping[str, Arrangement]
    short: Mapping[str, Arrangement]
    labels: Mapping[str, Label]
    sizes: Mapping[str, Label]
    title_widths: Mapping[str, float]
    attached: Mapping[str, str]
    cost_levels: Mapping[str, int]

    @property
    def root(self) -> str:
        return self.tree.root.key

    def find_arrangement(self, key: str, view: DiagramView) -> Arrangement:
        return self.short[key] if key in view.short_repeats else self.arrangements[key]


def make_diagram(
    tree: NetTree, notes: Mapping[str, str], cost_levels: Mapping[str, int]
) -> Diagram:
    """Arranges every group of a tree. `notes` has a line of text for the keys of boxes and
    groups."""
    links = lift_edges(tree)
    groups = list(tree.root.groups)
    items: dict[str, Item] = {g.key: g for g in groups}
    items |= {box.key: box for box in tree.root.boxes}
    labels = {key: _label(item, notes) for key, item in items.items()}
    sizes: dict[str, Label] = {tree.root.key: labels[tree.root.key]}
    attached: dict[str, str] = {}
    for group in groups:
        attached |= _find_attached(group, links[group.key])
        for key, width in align_widths(group, labels).items():
            sizes[key] = replace(labels[key], width=width)
    return Diagram(
        tree,
        items,
        {g.key: _make_arrangement(g, links[g.key]) for g in groups},
        {g.key: _arrange_first(g, links) for g in groups if g.kind == "repeat"},
        labels,
        sizes,
        {g.key: measure_title(g) for g in groups},
        attached,
        cost_levels,
    )


def _label(item: Item, notes: Mapping[str, str]) -> Label:
    *_, last = item.boxes
    return make_label(item, notes.get(item.key, ""), last.shape)


def _find_attached(group: Group, links: Sequence[Link]) -> dict[str, str]:
    """The boxes that are attached to the one above: elementwise ones that alone read it."""
    boxes = {c.key: c for c in group.children if isinstance(c, LayerBox)}
    readers = Counter(link.source for link in links)
    return {
        link.target: link.source
        for link in links
        if link.target in boxes
        and boxes[link.target].is_elementwise
        and link.source in boxes
        and boxes[link.source].family != "input"
        and readers[link.source] == 1
    }


def _arrange_first(repeat: Group, links: Mapping[str, tuple[Link, ...]]) -> Arrangement:
    """The inside of the first of the groups that repeat each other, in the frame of the repeat:
    what enters and leaves the first one enters and leaves the repeat."""
    first = repeat.children[0]
    assert isinstance(first, Group)
    given = next(link.value for link in links[repeat.key] if is_exit(link.target))
    shown = []
    for link in links[first.key]:
        if is_entry(link.source):
            link = replace(link, source=make_entry_port(repeat.key, link.value))
        if is_exit(link.target):
            port = make_exit_port(repeat.key, given)
            link = replace(link, target=port, value=given, source_value=link.value)
        shown.append(link)
    return _make_arrangement(first, shown)


def _make_arrangement(group: Group, links: Sequence[Link]) -> Arrangement:
    weights = {child.key: sum(1 for _ in child.boxes) for child in group.children}
    ends = dict.fromkeys(key for link in links for key in (link.source, link.target))
    entries = [key for key in ends if is_entry(key)]
    exits = [key for key in ends if is_exit(key)]
    pairs = [(link.source, link.target) for link in links]
    keys = [*entries, *weights, *exits]
    return Arrangement(arrange(keys, pairs, weights), tuple(links))


def make_views(diagram: Diagram, has_all_repeats: bool = False) -> Iterator[DiagramView]:
    """The views by depth: first no group is open, then the groups of the net itself, and so on."""
    short = frozenset() if has_all_repeats else frozenset(diagram.short)
    depths = dict(_find_depths(diagram.tree.root, 0))
    for depth in range(max(depths.values()) + 1):
        yield DiagramView(frozenset(key for key, d in depths.items() if d <= depth), short)


def _find_depths(group: Group, depth: int) -> Iterator[tuple[str, int]]:
    yield group.key, depth
    for child in group.children:
        if isinstance(child, Group):
            own = depth + (
                (child.kind == "block" and group.kind != "repeat") or child.kind == "repeat"
            )
            yield from _find_depths(child, own)


def find_shown_children(group: Group, view: DiagramView) -> tuple[Item, ...]:
    """What an open group shows: its children, or those of the first group that is repeated."""
    first = group.children[0]
    if group.key in view.short_repeats and isinstance(first, Group):
        return first.children
    return group.children
