"""Writes a laid out diagram as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from netdsl.insight.draw.boxes import (
    ALL_BUTTON,
    BUTTON_SIZE,
    PADDING,
    SMALL_FONT_SIZE,
    TITLE_BASELINE,
    Label,
    find_all_button,
    find_baselines,
    is_pill,
    make_title,
)
from netdsl.insight.draw.colors import LIGHT, make_style
from netdsl.insight.draw.diagram import Arrangement, Diagram, DiagramView, find_shown_children
from netdsl.insight.draw.header import SWATCH_HEIGHT, SWATCH_WIDTH, Header
from netdsl.insight.draw.layout import DiagramLayout, Point, Rectangle, Route
from netdsl.insight.draw.links import is_exit
from netdsl.insight.draw.text_width import measure_text
from netdsl.insight.draw.tree import Group, Item, LayerBox
from netdsl.text_escaping import escape_line

FONT_FAMILY = "'DejaVu Sans', Verdana, 'Helvetica Neue', Arial, sans-serif"
CORNER = 5.0


def format_number(x: float) -> str:
    """A coordinate with at most one decimal, rounded as JavaScript does."""
    return f"{math.floor(x * 10 + 0.5) / 10:.1f}".removesuffix(".0")


_n = format_number


def quote(text: str) -> str:
    """Text for XML, in elements and attributes."""
    return escape(escape_line(text), quote=True)


@dataclass(frozen=True)
class Drawing:
    """A diagram as it is shown, below a header."""

    diagram: Diagram
    view: DiagramView
    layout: DiagramLayout
    header: Header

    @property
    def width(self) -> float:
        return max(self.layout.width, self.header.width)

    @property
    def height(self) -> float:
        return self.layout.height + self.header.height

    @property
    def offset(self) -> Point:
        """Where the layout begins: centred below the header."""
        return (self.width - self.layout.width) / 2, self.header.height


class SvgWriter:
    """Writes the elements of a drawing. With `is_foldable`, also those that are hidden, and buttons
    that open and fold the groups; `prefix` begins the ids, so that a page can hold several."""

    def __init__(
        self,
        diagram: Diagram,
        view: DiagramView,
        layout: DiagramLayout,
        prefix: str,
        is_foldable: bool = False,
    ) -> None:
        self.diagram = diagram
        self.view = view
        self.layout = layout
        self.prefix = prefix
        self.is_foldable = is_foldable
        self.routes: dict[tuple[str, int], Route] = {}
        for route in layout.routes:
            self.routes[route.group, route.number] = route

    def write_elements(self) -> Iterator[str]:
        """The elements in the order of reading: a frame, the lines in it, its title, its
        children."""
        yield from self._write_lines(self.diagram.tree.root)
        for child in self.diagram.tree.root.children:
            yield from self._write_item(child, 0)

    def _write_item(self, item: Item, depth: int) -> Iterator[str]:
        is_shown = item.key in self.layout.rectangles
        if isinstance(item, Group):
            is_open = is_shown and self.view.is_open(item.key)
            if is_open or self.is_foldable:
                yield self._write_frame(item, depth, is_open)
                yield from self._write_lines(item)
                yield self._write_title(item, depth, is_open)
            if self.is_foldable or (is_shown and not is_open):
                yield self._write_box(item, is_shown and not is_open)
            children = item.children if self.is_foldable else find_shown_children(item, self.view)
            if is_open or self.is_foldable:
                for child in children:
                    yield from self._write_item(child, depth + 1)
        elif is_shown or self.is_foldable:
            yield self._write_box(item, is_shown)

    def _write_frame(self, group: Group, depth: int, is_shown: bool) -> str:
        r = self.layout.rectangles.get(group.key, _NOWHERE)
        is_short = group.key in self.view.short_repeats
        offsets = (6.0, 3.0, 0.0) if group.kind == "repeat" else (0.0,)
        rects = "".join(
            f'<rect{_place(d, d)} width="{_n(r.width)}" height="{_n(r.height)}" rx="7"'
            f"{_hide(is_short or not d)}/>"
            for d in offsets
        )
        kind = f"frame{depth % 2}" + " kernel" * (group.kind == "kernel")
        return (
            f'<g class="{kind}"{self._mark("frame", group.key)}{_move_to(r)}{_hide(is_shown)}>'
            f"{rects}</g>"
        )

    def _write_title(self, group: Group, depth: int, is_shown: bool) -> str:
        r = self.layout.rectangles.get(group.key, _NOWHERE)
        kind = f"title{depth % 2}" + " kernel-title" * (group.kind == "kernel")
        x = PADDING + (BUTTON_SIZE + 4 if self.is_foldable else 0)
        text = (
            f'<text class="quiet {kind}"{_place(x, TITLE_BASELINE)} '
            f'font-size="{_n(SMALL_FONT_SIZE)}" font-weight="bold">'
            f"{quote(make_title(group))}</text>"
        )
        button = self._describe_button(group, True) if self.is_foldable else ""
        sign = self._write_sign(PADDING + BUTTON_SIZE / 2, TITLE_BASELINE - 4, True)
        place = f"{self._mark('title', group.key)}{_move_to(r)}{_hide(is_shown)}"
        title = f"<g{place}{button}><title>{quote(group.path)}</title>{sign}{text}</g>"
        if self.is_foldable and group.kind == "repeat":
            title += f"<g{place}{self._write_all_button(group)}</g>"
        return title

    def _write_all_button(self, group: Group) -> str:
        """The rest of an element that shows all groups of a repeat, or only the first one."""
        x, width = find_all_button(group), measure_text(ALL_BUTTON, SMALL_FONT_SIZE) + 2 * PADDING
        is_pressed = str(group.key not in self.view.short_repeats).lower()
        return (
            f' class="all" role="button" tabindex="0" aria-pressed="{is_pressed}" '
            f'aria-label="show all of {quote(make_title(group))}" data-repeat="{group.key}">'
            f'<rect{_place(x, 3)} width="{_n(width)}" height="15" rx="7.5"/>'
            f'<text{_place(x + PADDING, TITLE_BASELINE)} font-size="{_n(SMALL_FONT_SIZE)}">'
            f"{ALL_BUTTON}</text>"
        )

    def _describe_button(self, group: Group, is_open: bool) -> str:
        """What makes an element a button that keys and screen readers find."""
        label = self.diagram.labels[group.key]
        name = quote(", ".join((make_title(group), label.lines[0].right, label.lines[1].left)))
        return (
            f' role="button" tabindex="0" aria-expanded="{str(is_open).lower()}" '
            f'aria-label="{name}" data-toggle="{group.key}"'
        )

    def _write_sign(self, x: float, y: float, is_open: bool) -> str:
        """A plus or a minus in a circle."""
        if not self.is_foldable:
            return ""
        bar = "" if is_open else f"M{_n(x)} {_n(y - 3)}v6"
        return (
            f'<circle class="mark" cx="{_n(x)}" cy="{_n(y)}" r="5.5"/>'
            f'<path class="mark" d="M{_n(x - 3)} {_n(y)}h6{bar}"/>'
        )

    def _write_lines(self, group: Group) -> Iterator[str]:
        both: list[tuple[str, Arrangement]] = []
        short = self.diagram.short.get(group.key)
        if self.is_foldable and short is not None:
            both.append(("short", short))
        if self.is_foldable:
            both.append(("full", self.diagram.arrangements[group.key]))
        else:
            both.append(("", self.diagram.find_arrangement(group.key, self.view)))
        shown = self.diagram.find_arrangement(group.key, self.view)
        for name, arrangement in both:
            for i, link in enumerate(arrangement.links):
                route = self.routes.get((group.key, i)) if arrangement is shown else None
                if self.diagram.attached.get(link.target) == link.source:
                    continue
                if route is not None or self.is_foldable:
                    yield self._write_line(route, f"{group.key}/{name}/{i}", is_exit(link.target))

    def _write_line(self, route: Route | None, key: str, is_exit: bool) -> str:
        kind = "line skip" if route is not None and route.is_skip else "line"
        is_open = route is not None and self.view.is_open(route.link.target)
        end = "" if is_exit or is_open else self._point_to(kind)
        path = format_path(route.points) if route is not None else ""
        return (
            f'<path class="{kind}"{self._mark("line", key)} d="{path}"{end}'
            f"{_hide(route is not None)}/>"
        )

    def _point_to(self, kind: str) -> str:
        return f' marker-end="url(#{self.prefix}-{kind.replace(" ", "-")})"'

    def _write_box(self, item: Item, is_shown: bool) -> str:
        label = self.diagram.sizes[item.key]
        r = self.layout.rectangles.get(item.key, _NOWHERE)
        kind = item.family if isinstance(item, LayerBox) else "folded"
        if item.key in self.diagram.cost_levels:
            kind += f" cost{self.diagram.cost_levels[item.key]}"
        radius = label.height / 2 if is_pill(item) else 4.0
        button = sign = ""
        if self.is_foldable and isinstance(item, Group):
            button = self._describe_button(item, False)
            sign = self._write_sign(label.width - PADDING - BUTTON_SIZE / 2, 23.0, False)
        is_repeat = isinstance(item, Group) and item.kind == "repeat"
        rects = "".join(
            f'<rect{_place(d, d) if d else ""} width="{_n(label.width)}" '
            f'height="{_n(label.height)}" rx="{_n(radius)}"/>'
            for d in ((4.0, 2.0, 0.0) if is_repeat else (0.0,))
        )
        return (
            f'<g class="{kind}"{self._mark("box", item.key)}{button}{_move_to(r)}{_hide(is_shown)}>'
            f"<title>{quote(item.path)}</title>{rects}{''.join(_write_text(label))}{sign}</g>"
        )

    def _mark(self, what: str, key: str) -> str:
        return f' data-{what}="{quote(key)}"' if self.is_foldable else ""


_NOWHERE = Rectangle(0.0, 0.0, 0.0, 0.0, 0.0)


def _hide(is_shown: bool) -> str:
    return "" if is_shown else ' display="none"'


def _place(x: float, y: float) -> str:
    return f' x="{_n(x)}" y="{_n(y)}"'


def _move_to(r: Rectangle) -> str:
    return f' transform="translate({_n(r.x)} {_n(r.y)})"'


def _write_text(label: Label) -> Iterator[str]:
    for line, y in zip(label.lines, find_baselines(label), strict=True):
        weight = ' font-weight="bold"' if line.is_bold else ""
        quiet = ' class="quiet"' if line.is_small else ""
        if line.left:
            yield (
                f'<text{quiet}{_place(PADDING, y)} font-size="{_n(line.size)}"{weight}>'
                f"{quote(line.left)}</text>"
            )
        if line.right:
            yield (
                f'<text class="quiet"{_place(label.width - PADDING, y)} '
                f'font-size="{_n(SMALL_FONT_SIZE)}" text-anchor="end">{quote(line.right)}</text>'
            )


def format_path(points: Sequence[Point]) -> str:
    """The path through some points, with round corners."""
    parts = [f"M{_n(points[0][0])} {_n(points[0][1])}"]
    for first, corner, last in find_corners(points, CORNER):
        parts.append(f"L{_n(first[0])} {_n(first[1])}")
        parts.append(f"Q{_n(corner[0])} {_n(corner[1])} {_n(last[0])} {_n(last[1])}")
    parts.append(f"L{_n(points[-1][0])} {_n(points[-1][1])}")
    return "".join(parts)


def find_corners(
    points: Sequence[Point], corner_radius: float
) -> Iterator[tuple[Point, Point, Point]]:
    """Where each round corner of a path begins, where the sharp one would be, and where it ends."""
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(corner_radius, _distance(before, corner) / 2, _distance(corner, after) / 2)
        yield _move(corner, before, radius), corner, _move(corner, after, radius)


def _distance(a: Point, b: Point) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _move(start: Point, end: Point, by: float) -> Point:
    """The point that is `by` pixels from the start towards the end, along an axis."""
    distance = _distance(start, end) or 1.0
    return (
        start[0] + (end[0] - start[0]) * by / distance,
        start[1] + (end[1] - start[1]) * by / distance,
    )


def write_markers(prefix: str) -> str:
    """The heads of the arrows."""
    return "".join(
        f'<marker id="{prefix}-{kind.replace(" ", "-")}" viewBox="0 0 8 8" refX="7.5" refY="4" '
        f'markerWidth="7" markerHeight="7" markerUnits="userSpaceOnUse" orient="auto">'
        f'<path class="{kind.replace("line", "arrow")}" d="M0 0.5L8 4L0 7.5z"/></marker>'
        for kind in ("line", "line skip")
    )


def write_svg(drawing: Drawing) -> str:
    """A whole SVG file, on white paper."""
    diagram, header = drawing.diagram, drawing.header
    writer = SvgWriter(diagram, drawing.view, drawing.layout, "n")
    inside = "\n".join(writer.write_elements())
    width, height = _n(drawing.width), _n(drawing.height)
    x, y = drawing.offset
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="{FONT_FAMILY}" role="img">\n'
        f"<title>{quote(diagram.tree.name)}</title>\n<style>\n{make_style(LIGHT, '')}</style>\n"
        f"<defs>{write_markers('n')}</defs>\n"
        f'<rect class="paper" width="{width}" height="{height}"/>\n{write_header(header)}\n'
        f'<g transform="translate({_n(x)} {_n(y)})">\n{inside}\n</g>\n</svg>\n'
    )


def write_header(header: Header) -> str:
    """The elements of the lines above a drawing."""
    parts = [
        f'<g class="cost{s.level} swatch"><rect{_place(s.x, s.y)} width="{_n(SWATCH_WIDTH)}" '
        f'height="{_n(SWATCH_HEIGHT)}" rx="2"/></g>'
        for s in header.swatches
    ]
    for i, words in enumerate(header.words):
        kind = ' class="quiet"' * bool(i)
        weight = ' font-weight="bold"' * words.is_bold
        parts.append(
            f'<text{kind}{_place(words.x, words.baseline)} font-size="{_n(words.size)}"{weight}>'
            f"{quote(words.text)}</text>"
        )
    return "\n".join(parts)
