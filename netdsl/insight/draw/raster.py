"""Draws a laid out diagram with matplotlib, as PNG or PDF: no browser, and its own font."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from netdsl.errors import fail
from netdsl.insight.draw.boxes import (
    PADDING,
    SMALL_FONT_SIZE,
    TITLE_BASELINE,
    Label,
    find_baselines,
    is_pill,
    make_title,
)
from netdsl.insight.draw.colors import LIGHT, Paint
from netdsl.insight.draw.diagram import find_shown_children
from netdsl.insight.draw.header import SWATCH_HEIGHT, SWATCH_WIDTH
from netdsl.insight.draw.layout import Point, Rectangle, Route
from netdsl.insight.draw.links import is_exit
from netdsl.insight.draw.svg import CORNER, Drawing, find_corners
from netdsl.insight.draw.tree import Group, Item, LayerBox
from netdsl.optional_imports import import_optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS_PER_INCH = 72
MAX_PIXELS = 30_000
"""The longest side of a picture."""


def render(drawing: Drawing, kind: Literal["png", "pdf"], scale: float) -> bytes:
    """A picture with `scale` pixels for each pixel of the layout. Raises NetError if matplotlib is
    missing or the picture is too large."""
    help = "install it with `pip install 'netdsl[draw]'`, or write an .svg or .html file"
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_pdf"):
        import_optional(module, f"a .{kind} file needs matplotlib", help)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    size = drawing.width / _POINTS_PER_INCH, drawing.height / _POINTS_PER_INCH
    if scale * max(drawing.width, drawing.height) > MAX_PIXELS:
        raise fail(
            f"a .{kind} file of this drawing is more than {MAX_PIXELS:,} pixels high or wide",
            help="give a smaller `--depth` or `--width`, or write an .svg or .html file",
        )
    with rc_context({"font.family": ["DejaVu Sans"], "pdf.fonttype": 42, "path.simplify": False}):
        figure = Figure(figsize=size, dpi=_POINTS_PER_INCH * scale)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_xlim(0, drawing.width)
        axes.set_ylim(drawing.height, 0)
        axes.set_axis_off()
        _Painter(drawing, axes).paint()
        file = io.BytesIO()
        about = {"Software": None} if kind == "png" else {"CreationDate": None, "Producer": None}
        figure.savefig(file, format=kind, dpi=figure.dpi, metadata=about)
    return file.getvalue()


class _Painter:
    def __init__(self, drawing: Drawing, axes: Axes) -> None:
        self.drawing = drawing
        self.diagram, self.view = drawing.diagram, drawing.view
        self.left, self.top = drawing.offset
        self.axes = axes
        self.order = 0
        self.routes: dict[str, list[Route]] = {}
        for route in drawing.layout.routes:
            self.routes.setdefault(route.group, []).append(route)

    def paint(self) -> None:
        header = self.drawing.header
        for i, words in enumerate(header.words):
            color = LIGHT.quiet_text if i else LIGHT.text
            self._write(words.text, words.x, words.baseline, words.size, words.is_bold, color)
        for swatch in header.swatches:
            paint = Paint(LIGHT.costs[swatch.level][0], LIGHT.quiet_text)
            self._paint_rect(swatch.x, swatch.y, SWATCH_WIDTH, SWATCH_HEIGHT, 2.0, paint)
        root = self.diagram.tree.root
        self._paint_lines(root)
        for child in root.children:
            self._paint_item(child, 0)

    def _paint_item(self, item: Item, depth: int) -> None:
        r = self.drawing.layout.rectangles[item.key]
        if isinstance(item, LayerBox) or not self.view.is_open(item.key):
            self._paint_box(item, r)
            return
        paint = LIGHT.kernel if item.kind == "kernel" else LIGHT.frames[depth % 2]
        for d in (6.0, 3.0, 0.0) if item.key in self.view.short_repeats else (0.0,):
            self._paint_rect(self.left + r.x + d, self.top + r.y + d, r.width, r.height, 7.0, paint)
        self._paint_lines(item)
        self._paint_title(item, r, paint)
        for child in find_shown_children(item, self.view):
            self._paint_item(child, depth + 1)

    def _paint_title(self, group: Group, r: Rectangle, paint: Paint) -> None:
        from matplotlib.patheffects import withStroke

        text = self._write(
            make_title(group),
            self.left + r.x + PADDING,
            self.top + r.y + TITLE_BASELINE,
            SMALL_FONT_SIZE,
            True,
            LIGHT.quiet_text,
        )
        text.set_path_effects([withStroke(linewidth=4, foreground=paint.fill)])

    def _paint_box(self, item: Item, r: Rectangle) -> None:
        label = self.diagram.sizes[item.key]
        paint = LIGHT.boxes[item.family if isinstance(item, LayerBox) else "folded"]
        text, quiet = LIGHT.text, LIGHT.quiet_text
        if item.key in self.diagram.cost_levels:
            fill, text = LIGHT.costs[self.diagram.cost_levels[item.key]]
            paint, quiet = Paint(fill, paint.stroke), text
        radius = r.height / 2 if is_pill(item) else 4.0
        is_repeat = isinstance(item, Group) and item.kind == "repeat"
        for d in (4.0, 2.0, 0.0) if is_repeat else (0.0,):
            self._paint_rect(
                self.left + r.x + d, self.top + r.y + d, r.width, r.height, radius, paint
            )
        self._write_lines(label, r, text, quiet)

    def _write_lines(self, label: Label, r: Rectangle, text: str, quiet: str) -> None:
        for line, y in zip(label.lines, find_baselines(label), strict=True):
            x, at = self.left + r.x, self.top + r.y + y
            color = quiet if line.is_small else text
            if line.left:
                self._write(line.left, x + PADDING, at, line.size, line.is_bold, color)
            if line.right:
                right = self._write(
                    line.right, x + r.width - PADDING, at, SMALL_FONT_SIZE, False, quiet
                )
                right.set_horizontalalignment("right")

    def _write(
        self, text: str, x: float, baseline: float, size: float, is_bold: bool, color: str
    ) -> Any:
        self.order += 1
        return self.axes.text(
            x,
            baseline,
            text,
            fontsize=size,
            fontweight="bold" if is_bold else "normal",
            color=color,
            verticalalignment="baseline",
            parse_math=False,
            zorder=self.order,
        )

    def _paint_rect(
        self, x: float, y: float, width: float, height: float, radius: float, paint: Paint
    ) -> None:
        from matplotlib.patches import FancyBboxPatch

        self.order += 1
        patch = FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle=f"round,pad=0,rounding_size={radius}",
            facecolor=paint.fill,
            edgecolor=paint.stroke,
            linewidth=1.0,
            zorder=self.order,
        )
        self.axes.add_patch(patch)

    def _paint_lines(self, group: Group) -> None:
        for route in self.routes.get(group.key, []):
            if not route.is_attached:
                self._paint_line(route)

    def _paint_line(self, route: Route) -> None:
        from matplotlib.patches import PathPatch, Polygon
        from matplotlib.path import Path

        self.order += 1
        color = LIGHT.skip if route.is_skip else LIGHT.line
        steps = list(_find_steps(route.points))
        points = [(x + self.left, y + self.top) for x, y in (p for _, p in steps)]
        codes = [{"M": Path.MOVETO, "L": Path.LINETO, "Q": Path.CURVE3}[code] for code, _ in steps]
        width = 1.6 if route.is_skip else 1.3
        path = Path(points, codes)
        self.axes.add_patch(
            PathPatch(path, fill=False, edgecolor=color, linewidth=width, zorder=self.order)
        )
        if is_exit(route.link.target) or self.view.is_open(route.link.target):
            return
        x, y = points[-1]
        head = [(x - 3.1, y - 6.6), (x + 3.1, y - 6.6), (x, y)]
        self.axes.add_patch(Polygon(head, facecolor=color, edgecolor="none", zorder=self.order))


def _find_steps(points: tuple[Point, ...]) -> Iterator[tuple[str, Point]]:
    """The points of a path with round corners, with the letters of SVG."""
    yield "M", points[0]
    for first, corner, last in find_corners(points, CORNER):
        yield "L", first
        yield "Q", corner
        yield "Q", last
    yield "L", points[-1]
