"""Edges of a tree lifted to its groups: within each group, which child reads which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from netdsl.insight.draw.tree import Group, LayerBox, NetTree


@dataclass(frozen=True)
class Link:
    """In a group, `target` reads a value of `source`: children of the group, or ports in its frame
    through which values from outside enter and values of the group leave. `value` is the key of the
    box that gives the value. If the source is shown in place of the sibling that gives the value,
    `source_value` is what the source gives instead."""

    source: str
    target: str
    value: str
    source_value: str = ""

    @property
    def exit_port(self) -> str:
        """The port of the source, if that is an open group."""
        return make_exit_port(self.source, self.source_value or self.value)

    @property
    def entry_port(self) -> str:
        """The port of the target, if that is an open group."""
        return make_entry_port(self.target, self.value)


def make_entry_port(group: str, value: str) -> str:
    return f"{group}<{value}"


def make_exit_port(group: str, value: str) -> str:
    return f"{group}>{value}"


def is_entry(key: str) -> bool:
    return "<" in key


def is_exit(key: str) -> bool:
    return ">" in key


def is_port(key: str) -> bool:
    return is_entry(key) or is_exit(key)


def lift_edges(tree: NetTree) -> Mapping[str, tuple[Link, ...]]:
    """The links of every group by its key. An edge becomes one link in the lowest group that
    contains both ends, and links to the ports of the groups between; several edges of one value
    share these."""
    found: dict[str, dict[Link, None]] = {group.key: {} for group in tree.root.groups}
    places = dict(_find_places(tree.root, ()))
    for source, target in tree.edges:
        above, below = places[source], places[target]
        depth = 0
        while above[depth] == below[depth]:
            depth += 1
        group, child = above[depth]
        found[group][Link(child, below[depth][1], source)] = None
        for group, child in above[depth + 1 :]:
            found[group][Link(child, make_exit_port(group, source), source)] = None
        for group, child in below[depth + 1 :]:
            found[group][Link(make_entry_port(group, source), child, source)] = None
    return {group: tuple(links) for group, links in found.items()}


Place = tuple[tuple[str, str], ...]
"""The way from the root to a box: the key of each group, with that of its child on the way."""


def _find_places(group: Group, above: Place) -> list[tuple[str, Place]]:
    places: list[tuple[str, Place]] = []
    for child in group.children:
        place = (*above, (group.key, child.key))
        places += (
            [(child.key, place)] if isinstance(child, LayerBox) else _find_places(child, place)
        )
    return places
