"""Places the boxes, frames and lines of a diagram, in pixels from its top left corner.

`fold.js` computes the same when a reader of a page folds a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from netdsl.insight.draw.blocks import Block, Chain, Lane, Leaf, Parallel, Rows, is_line
from netdsl.insight.draw.boxes import TITLE_HEIGHT
from netdsl.insight.draw.diagram import Arrangement, Diagram, DiagramView
from netdsl.insight.draw.links import Link, is_entry, is_exit, is_port

GAP, WIDE_GAP = 20.0, 30.0
"""Between a box and the next one below it; above and below branches."""
PORT_GAP, EXIT_GAP = TITLE_HEIGHT + 8.0, 14.0
"""From the top of a frame to its first box, and from its last box to its bottom."""
BRANCH_GAP, LANE_WIDTH, LINE_GAP = 18.0, 14.0, 4.0
"""Between branches; what a line takes; and between the last branch and the first line."""
FRAME_PADDING = 12.0
BUS_HEIGHT = 13.0
"""How far above its end a line turns sideways."""
MARGIN = 12.0
GUTTER = 34.0
"""Between columns."""


@dataclass(frozen=True)
class BlockExtent:
    """The size of a block: to the left and to the right of its axis, and its height."""

    left: float
    right: float
    height: float


@dataclass(frozen=True)
class Rectangle:
    """The place of a box or a frame; `axis` is where a line enters and leaves."""

    x: float
    y: float
    width: float
    height: float
    axis: float

    @property
    def bottom(self) -> float:
        return self.y + self.height


Point = tuple[float, float]


@dataclass(frozen=True)
class Route:
    """The line of a link, by its number in the arrangement of its group. An `attached` one has no
    length: its ends touch."""

    group: str
    number: int
    link: Link
    points: tuple[Point, ...]
    is_attached: bool
    is_skip: bool


@dataclass(frozen=True)
class DiagramLayout:
    """Where everything that can be seen is, by key."""

    width: float
    height: float
    rectangles: Mapping[str, Rectangle]
    routes: tuple[Route, ...]


@dataclass(frozen=True)
class _Passage:
    """A straight part of a lane."""

    x: float
    top: float
    bottom: float


def lay_out(diagram: Diagram, view: DiagramView, columns: int = 1) -> DiagramLayout:
    """The layout of a diagram with some of its groups open. If the net is a chain of groups, they
    can be drawn in several columns."""
    return _Placer(diagram, view).place_all(columns)


class _Placer:
    def __init__(self, diagram: Diagram, view: DiagramView) -> None:
        self.diagram = diagram
        self.view = view
        self.extents: dict[Block, BlockExtent] = {}
        self.contents: dict[str, BlockExtent] = {}
        self.rectangles: dict[str, Rectangle] = {}
        self.ports: dict[str, Point] = {}
        self.passages: dict[tuple[str, str], list[_Passage]] = {}
        self.skips: set[str] = set()
        """The ports that are branches of their own: lines past the other branches."""
        self.routes: list[Route] = []
        self.gutters: dict[str, Point] = {}
        """The space before each column but the first, and the bottom of the one before, by the
        first child in it."""

    def place_all(self, columns: int) -> DiagramLayout:
        root = self.diagram.root
        arrangement = self._find_arrangement(root)
        x, height = MARGIN, 0.0
        for run in self._split_into_columns(arrangement.block, columns):
            extent = self._measure(run)
            if x > MARGIN:
                x += GUTTER
                self.gutters[_find_first(run)] = x - GUTTER / 2, MARGIN + height
            self._place(run, x + extent.left, MARGIN + BUS_HEIGHT)
            x += extent.left + extent.right
            height = max(height, extent.height + 2 * BUS_HEIGHT)
        self._route_links(root, arrangement)
        return DiagramLayout(x + MARGIN, height + 2 * MARGIN, self.rectangles, tuple(self.routes))

    def _split_into_columns(self, block: Chain, columns: int) -> Iterator[Chain]:
        """Cuts a series between boxes or groups that follow each other, into runs that are about
        equally high."""
        limit = self._measure(block).height / columns
        run: list[Block] = []
        height = 0.0
        for item in block.items:
            own = self._measure(item).height + GAP
            is_breakable = run and isinstance(item, Leaf) and isinstance(run[-1], Leaf)
            if is_breakable and height + own / 2 > limit and self._find_gap(run[-1], item):
                yield Chain(tuple(run))
                run, height = [], 0.0
            run.append(item)
            height += own
        yield Chain(tuple(run))

    # sizes

    def _measure(self, block: Block) -> BlockExtent:
        if block not in self.extents:
            self.extents[block] = self._compute_extent(block)
        return self.extents[block]

    def _compute_extent(self, block: Block) -> BlockExtent:
        if isinstance(block, Leaf):
            return self._measure_leaf(block.key)
        if isinstance(block, Lane):
            return BlockExtent(LANE_WIDTH / 2, LANE_WIDTH / 2, 0.0)
        if isinstance(block, Chain):
            inside = [self._measure(item) for item in block.items]
            height = sum(e.height for e in inside)
            height += sum(self._find_gap(a, b) for a, b in pairwise(block.items))
            return BlockExtent(max(e.left for e in inside), max(e.right for e in inside), height)
        if isinstance(block, Parallel):
            axes = self._find_branch_axes(block)
            inside = [self._measure(branch) for branch in block.branches]
            left = max(e.left - x for x, e in zip(axes, inside, strict=True))
            right = max(x + e.right for x, e in zip(axes, inside, strict=True))
            return BlockExtent(left, right, max(e.height for e in inside))
        return self._measure_rows(block)

    def _measure_leaf(self, key: str) -> BlockExtent:
        if is_port(key):
            return BlockExtent(LANE_WIDTH / 2, LANE_WIDTH / 2, 0.0)
        if self.view.is_open(key):
            return self._measure_group(key)
        size = self.diagram.sizes[key]
        return BlockExtent(size.width / 2, size.width / 2, size.height)

    def _measure_group(self, key: str) -> BlockExtent:
        content = self._measure(self._find_arrangement(key).block)
        self.contents[key] = content
        top, bottom = self._find_insets(key)
        width = content.left + content.right + 2 * FRAME_PADDING
        missing = max(0.0, self.diagram.title_widths[key] - width) / 2
        return BlockExtent(
            content.left + FRAME_PADDING + missing,
            content.right + FRAME_PADDING + missing,
            content.height + top + bottom,
        )

    def _find_insets(self, key: str) -> tuple[float, float]:
        """The space above and below the content of a frame, if no port is there."""
        block = self._find_arrangement(key).block
        return (
            0.0 if _starts_at_port(block) else PORT_GAP,
            0.0 if _ends_at_port(block) else EXIT_GAP,
        )

    def _find_arrangement(self, key: str) -> Arrangement:
        return self.diagram.find_arrangement(key, self.view)

    def _find_gap(self, above: Block, below: Block) -> float:
        if isinstance(above, Leaf) and isinstance(below, Leaf):
            if below.key in self.diagram.attached and self.diagram.attached[below.key] == above.key:
                return 0.0
            if is_port(below.key):
                return PORT_GAP + EXIT_GAP if is_port(above.key) else EXIT_GAP
            if is_port(above.key):
                return PORT_GAP
            return GAP
        if _starts_at_port(above):
            return PORT_GAP + BUS_HEIGHT
        return WIDE_GAP

    def _find_branch_axes(self, block: Parallel) -> list[float]:
        """The axis of each branch, from that of the block: solid branches side by side, centred or
        with the spine at 0; lines to the right of them."""
        extents = [self._measure(branch) for branch in block.branches]
        axes = [0.0] * len(extents)
        right = 0.0
        solid = [i for i, branch in enumerate(block.branches) if not is_line(branch)]
        order = (
            solid if block.spine is None else [block.spine, *(i for i in solid if i != block.spine)]
        )
        for n, i in enumerate(order):
            axes[i] = right + (BRANCH_GAP + extents[i].left if n else 0.0)
            right = axes[i] + extents[i].right
        if order and block.spine is None:
            shift = (axes[order[0]] + axes[order[-1]]) / 2
            axes = [x - shift for x in axes]
            right -= shift
        lines = [i for i in range(len(extents)) if i not in solid]
        for i in lines:
            axes[i] = right + extents[i].left + (LINE_GAP if order else 0.0)
            right = axes[i] + extents[i].right
        if not order:
            shift = (axes[lines[0]] + axes[lines[-1]]) / 2
            axes = [x - shift for x in axes]
        return axes

    def _measure_rows(self, block: Rows) -> BlockExtent:
        unit = self._find_unit(block)
        cells = [(x * unit, self._measure(cell)) for row in block.rows for cell, x in row]
        middle = _find_middle(block) * unit
        heights = [max(self._measure(cell).height for cell, _ in row) for row in block.rows]
        return BlockExtent(
            max(middle - x + e.left for x, e in cells),
            max(x - middle + e.right for x, e in cells),
            sum(heights) + WIDE_GAP * (len(heights) - 1),
        )

    def _find_unit(self, block: Rows) -> float:
        """The pixels of one unit of the rows: as few as leave a gap between all neighbours."""
        unit = 1.0
        for row in block.rows:
            for (a, left), (b, right) in pairwise(row):
                needed = self._measure(a).right + self._measure(b).left + BRANCH_GAP
                unit = max(unit, needed / max(right - left, 1e-3))
        return unit

    # places

    def _place_group(self, key: str, axis: float, top: float) -> None:
        extent = self._measure(Leaf(key))
        width = extent.left + extent.right
        self.rectangles[key] = Rectangle(axis - extent.left, top, width, extent.height, axis)
        arrangement = self._find_arrangement(key)
        above, _ = self._find_insets(key)
        self._place(arrangement.block, axis, top + above)
        frame = self.rectangles[key]
        for port in arrangement.ports:
            x, _ = self.ports[port]
            self.ports[port] = x, frame.y if is_entry(port) else frame.bottom
        self._route_links(key, arrangement)

    def _route_links(self, group: str, arrangement: Arrangement) -> None:
        for number, link in enumerate(arrangement.links):
            self.routes.append(self._route(group, number, link))

    def _place(self, block: Block, axis: float, top: float) -> None:
        if isinstance(block, Leaf):
            self._place_leaf(block.key, axis, top)
        elif isinstance(block, Chain):
            y = top
            for item, following in zip(block.items, [*block.items[1:], None], strict=True):
                self._place(item, axis, y)
                y += self._measure(item).height
                y += self._find_gap(item, following) if following else 0.0
        elif isinstance(block, Parallel):
            height = self._measure(block).height
            for branch, x in zip(block.branches, self._find_branch_axes(block), strict=True):
                if isinstance(lane := branch.items[0], Lane):
                    self._add_passage(lane, axis + x, top, top + height)
                    continue
                self._place(branch, axis + x, top)
                if isinstance(lane, Leaf) and len(branch.items) == 1 and is_line(branch):
                    self.skips.add(lane.key)
                    if is_exit(lane.key):
                        self._add_passage(Lane("", lane.key), axis + x, top, top + height)
        elif isinstance(block, Rows):
            self._place_rows(block, axis, top)

    def _place_leaf(self, key: str, axis: float, top: float) -> None:
        if is_port(key):
            self.ports[key] = axis, top
        elif self.view.is_open(key):
            self._place_group(key, axis, top)
        else:
            size = self.diagram.sizes[key]
            self.rectangles[key] = Rectangle(
                axis - size.width / 2, top, size.width, size.height, axis
            )

    def _place_rows(self, block: Rows, axis: float, top: float) -> None:
        unit = self._find_unit(block)
        middle = _find_middle(block)
        for row in block.rows:
            height = max(self._measure(cell).height for cell, _ in row)
            for cell, x in row:
                at = axis + (x - middle) * unit
                if isinstance(cell, Lane):
                    self._add_passage(cell, at, top, top + height)
                else:
                    self._place(cell, at, top)
                    if isinstance(cell, Leaf) and is_exit(cell.key):
                        self._add_passage(Lane("", cell.key), at, top, top + height)
            top += height + WIDE_GAP

    def _add_passage(self, lane: Lane, x: float, top: float, bottom: float) -> None:
        passage = _Passage(x, top, bottom)
        self.passages.setdefault((lane.source, lane.target), []).append(passage)

    # lines

    def _route(self, group: str, number: int, link: Link) -> Route:
        start, end = self._find_start(link), self._find_end(link)
        passages = [
            *self.passages.get((link.source, link.target), ()),
            *self.passages.get(("", link.target), ()),
        ]
        points = [start]
        for passage in passages:
            points += _turn(points[-1], (passage.x, passage.top))
            points.append((passage.x, passage.bottom))
        if end[1] < start[1]:
            points += self._turn_to_next_column(link, start, end)
        points += _turn(points[-1], end)
        is_attached = self.diagram.attached.get(link.target) == link.source
        return Route(
            group,
            number,
            link,
            tuple(_simplify(points)),
            is_attached,
            bool(passages) or not self.skips.isdisjoint((link.source, link.target)),
        )

    def _turn_to_next_column(self, link: Link, start: Point, end: Point) -> list[Point]:
        x, bottom = self.gutters[link.target]
        return [(start[0], bottom), (x, bottom), (x, end[1] - BUS_HEIGHT)]

    def _find_start(self, link: Link) -> Point:
        if is_port(link.source):
            return self.ports[link.source]
        if self.view.is_open(link.source):
            return self.ports[link.exit_port]
        rectangle = self.rectangles[link.source]
        return rectangle.axis, rectangle.bottom

    def _find_end(self, link: Link) -> Point:
        if is_port(link.target):
            return self.ports[link.target]
        if self.view.is_open(link.target):
            return self.ports[link.entry_port]
        rectangle = self.rectangles[link.target]
        return rectangle.axis, rectangle.y


def _turn(start: Point, end: Point) -> list[Point]:
    """The points of a line that goes down, sideways just above its end, and down."""
    (x0, y0), (x1, y1) = start, end
    bus = max(y0, y1 - BUS_HEIGHT)
    return [(x0, bus), (x1, bus), end]


def _simplify(points: list[Point]) -> Iterator[Point]:
    """Leaves out points in the middle of straight parts."""
    kept: list[Point] = []
    for x, y in points:
        if kept and abs(kept[-1][0] - x) < 0.01 and abs(kept[-1][1] - y) < 0.01:
            continue
        if len(kept) > 1:
            (x0, y0), (x1, y1) = kept[-2:]
            if abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) < 0.01:
                kept.pop()
        kept.append((x, y))
    yield from kept


def _find_middle(block: Rows) -> float:
    places = [x for row in block.rows for _, x in row]
    return (min(places) + max(places)) / 2


def _find_first(run: Chain) -> str:
    first = run.items[0]
    assert isinstance(first, Leaf)
    return first.key


def _starts_at_port(block: Block) -> bool:
    if isinstance(block, Chain):
        return _starts_at_port(block.items[0])
    if isinstance(block, Parallel):
        return all(_starts_at_port(b) for b in block.branches)
    return isinstance(block, Leaf) and is_entry(block.key)


def _ends_at_port(block: Block) -> bool:
    if isinstance(block, Chain):
        return _ends_at_port(block.items[-1])
    if isinstance(block, Parallel):
        return all(_ends_at_port(b) for b in block.branches)
    return isinstance(block, Leaf) and is_exit(block.key)
