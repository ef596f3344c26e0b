"""What must hold for every drawing, and random trees to draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise

from hypothesis import strategies as st

from netdsl.insight.draw.boxes import PADDING
from netdsl.insight.draw.diagram import Diagram, DiagramView, find_shown_children
from netdsl.insight.draw.layout import DiagramLayout, Rectangle, Route
from netdsl.insight.draw.links import is_port
from netdsl.insight.draw.tree import Entry, Group, Item, LayerBox, NetTree, assemble_tree

EPSILON = 0.01


@st.composite
def trees(draw: st.DrawFn) -> NetTree:
    """Boxes in random nested groups; each but the first reads up to three of those before it."""
    entries, edges, groups = [], [], list[str]()
    for i in range(draw(st.integers(1, 14))):
        groups = groups[: draw(st.integers(0, len(groups)))]
        groups += [f"{name}{i}" for name in draw(st.lists(st.sampled_from("gh"), max_size=2))]
        is_elementwise = i > 0 and draw(st.booleans())
        size = draw(st.sampled_from((3, 30)))
        box = LayerBox(f"b{i}", f"b{i}", "word", "l" * size, "p", "8x8", "dense", is_elementwise)
        entries.append(Entry(tuple(groups), box))
        count = 1 if is_elementwise else 3
        readable = st.integers(0, i - 1) if i else st.nothing()
        read = (
            draw(st.lists(readable, min_size=min(1, i), max_size=count, unique=True)) if i else []
        )
        edges += [(f"b{j}", f"b{i}") for j in sorted(read)]
    return assemble_tree("drawn", entries, edges)


def check_drawing(diagram: Diagram, view: DiagramView, layout: DiagramLayout) -> None:
    """Siblings do not overlap, children are inside their frames, lines begin and end at what they
    connect and cross no other box beside, and text is inside its box."""
    _check_group(diagram.tree.root, view, layout)
    for r in layout.rectangles.values():
        assert r.x > 0
        assert r.y > 0
        assert r.x + r.width < layout.width
        assert r.bottom < layout.height
    for key, r in layout.rectangles.items():
        if not view.is_open(key):
            label = diagram.sizes[key]
            assert max(line.width for line in label.lines) + 2 * PADDING <= r.width + EPSILON
            assert sum(line.height for line in label.lines) < r.height


def _check_group(group: Group, view: DiagramView, layout: DiagramLayout) -> None:
    children = find_shown_children(group, view)
    rectangles = {child.key: layout.rectangles[child.key] for child in children}
    for a, b in combinations(rectangles.values(), 2):
        assert not overlap(a, b)
    frame = layout.rectangles.get(group.key)
    for r in rectangles.values() if frame else ():
        assert frame.x < r.x
        assert r.x + r.width < frame.x + frame.width
        assert frame.y < r.y
        assert r.bottom < frame.bottom
    for route in layout.routes:
        if route.group == group.key:
            _check_route(route, rectangles)
    for child in children:
        if isinstance(child, Group) and view.is_open(child.key):
            _check_group(child, view, layout)


def _check_route(route: Route, rectangles: dict[str, Rectangle]) -> None:
    link = route.link
    if not is_port(link.source):
        assert abs(route.points[0][1] - rectangles[link.source].bottom) < EPSILON
    if not is_port(link.target):
        assert abs(route.points[-1][1] - rectangles[link.target].y) < EPSILON
    for (x0, y0), (x1, y1) in pairwise(route.points):
        assert abs(x0 - x1) < EPSILON or abs(y0 - y1) < EPSILON
        line = Rectangle(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0), 0)
        for r in rectangles.values():
            assert not overlap(line, r)


def overlap(a: Rectangle, b: Rectangle) -> bool:
    return (
        a.x + EPSILON < b.x + b.width
        and b.x + EPSILON < a.x + a.width
        and a.y + EPSILON < b.bottom
        and b.y + EPSILON < a.bottom
    )


def check_edges(diagram: Diagram, view: DiagramView, layout: DiagramLayout) -> None:
    """Each edge between two things that are seen is drawn exactly once, through any ports. Every
    group of a repeat must be shown."""
    seen = {box: item.key for item in _find_seen(diagram.tree.root, view) for box in _keys(item)}
    expected = {(seen[a], seen[b], a) for a, b in diagram.tree.edges if seen[a] != seen[b]}
    steps: dict[str, list[tuple[str, str]]] = {}
    for route in layout.routes:
        link = route.link
        source = link.exit_port if view.is_open(link.source) else link.source
        target = link.entry_port if view.is_open(link.target) else link.target
        steps.setdefault(source, []).append((target, link.value))
    found = Counter[tuple[str, str, str]]()
    for item in _find_seen(diagram.tree.root, view):
        for target, value in steps.get(item.key, []):
            found.update((item.key, end, value) for end in _follow(target, steps))
    assert found == Counter(expected)


def _follow(key: str, steps: dict[str, list[tuple[str, str]]]) -> Iterator[str]:
    if not is_port(key):
        yield key
        return
    for target, _ in steps[key]:
        yield from _follow(target, steps)


def _find_seen(item: Item, view: DiagramView) -> Iterator[Item]:
    if isinstance(item, LayerBox) or not view.is_open(item.key):
        yield item
        return
    for child in item.children:
        yield from _find_seen(child, view)


def _keys(item: Item) -> list[str]:
    return [box.key for box in item.boxes]
