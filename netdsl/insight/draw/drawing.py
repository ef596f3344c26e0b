"""Draws a net: as an SVG file, as a page whose groups fold, or as a part of another page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

from netdsl.insight.draw.costs import Costs, describe_items, format_count
from netdsl.insight.draw.diagram import Diagram, DiagramView, make_diagram, make_views
from netdsl.insight.draw.header import Header, Legend, make_header
from netdsl.insight.draw.layout import MARGIN, DiagramLayout, lay_out
from netdsl.insight.draw.page import write_fragment, write_page
from netdsl.insight.draw.repeats import group_repeats
from netdsl.insight.draw.svg import Drawing, write_svg
from netdsl.insight.draw.tree import NetTree, make_tree
from netdsl.language.network import Network
from netdsl.types import format_bytes

_MAX_AREA, _MAX_HEIGHT = 2.6e6, 1900.0
"""Of a drawing whose depth is not given, in pixels: more is hard to read on one sheet."""
_MIN_WRAPPED_HEIGHT, _MAX_COLUMNS, _ASPECT = 1100.0, 6, 1.5
"""A higher drawing is wrapped, into at most so many columns, towards this width by height."""
_MIN_GAIN, _COLUMN_COST = 0.75, 0.1


@dataclass(frozen=True)
class DrawOptions:
    """How a net is drawn. Groups are open down to `depth`: 0 opens none; by default as deep as the
    drawing stays readable. With `has_all_repeats`, every one of the groups that repeat each other
    is drawn. `columns` is chosen by the height unless given. `costs` colours the boxes; `tree` has
    other groups than the net's own blocks."""

    depth: int | None = None
    has_all_repeats: bool = False
    columns: int | None = None
    costs: Costs | None = None
    tree: NetTree | None = None


def draw(network: Network, options: DrawOptions = DrawOptions()) -> Drawing:
    """Lays out the graph of a net. Raises NotInstalledError if it is so entangled that it needs
    igraph, and igraph is not installed."""
    figures = (
        f"{format_count(network.params)} parameters, {format_count(network.macs)} MACs, "
        f"{format_bytes(4 * network.activations)} of activations"
    )
    costs = options.costs
    tree = group_repeats(options.tree or make_tree(network))
    notes, levels = describe_items(tree, costs) if costs else ({}, {})
    legend = Legend(costs.title, costs.legend) if costs else None
    header = make_header(network.name, figures, legend, MARGIN)
    return _choose_drawing(make_diagram(tree, notes, levels), header, options)


def _choose_drawing(diagram: Diagram, header: Header, options: DrawOptions) -> Drawing:
    views = list(make_views(diagram, options.has_all_repeats))
    if options.depth is not None:
        return _draw_view(diagram, views[min(options.depth, len(views) - 1)], header, options)
    found = _draw_view(diagram, views[0], header, options)
    for view in islice(views, 1, None):
        deeper = _draw_view(diagram, view, header, options)
        size = deeper.layout
        if size.width * size.height > _MAX_AREA or size.height > _MAX_HEIGHT:
            break
        found = deeper
    return found


def _draw_view(
    diagram: Diagram, view: DiagramView, header: Header, options: DrawOptions
) -> Drawing:
    if options.columns is not None:
        return Drawing(diagram, view, lay_out(diagram, view, options.columns), header)
    layout = lay_out(diagram, view)
    if layout.height > _MIN_WRAPPED_HEIGHT:
        layout = _wrap(diagram, view, layout)
    return Drawing(diagram, view, layout, header)


def _wrap(diagram: Diagram, view: DiagramView, single: DiagramLayout) -> DiagramLayout:
    """The best of the layouts in columns, if there is one that is clearly less high."""
    layouts = [(n, lay_out(diagram, view, n)) for n in range(2, _MAX_COLUMNS + 1)]
    shorter = [(n, x) for n, x in layouts if x.height < _MIN_GAIN * single.height]
    if not shorter:
        return single
    return min(shorter, key=lambda n: _measure_distortion(n[1]) + _COLUMN_COST * n[0])[1]


def _measure_distortion(layout: DiagramLayout) -> float:
    return abs(math.log(layout.width / layout.height / _ASPECT))


def draw_svg(network: Network, options: DrawOptions = DrawOptions()) -> str:
    """The graph of a net as an SVG file: the same bytes for the same net and options."""
    found = draw(network, options)
    return write_svg(found)


def draw_html(network: Network, options: DrawOptions = DrawOptions()) -> str:
    """The graph of a net as a page of its own, whose groups can be folded and opened."""
    found = draw(network, options)
    return write_page(found)


def html_fragment(
    network: Network, options: DrawOptions = DrawOptions(), prefix: str = "graph"
) -> str:
    """Like `draw_html`, as a `figure` for another page; `prefix` begins its ids."""
    found = draw(network, options)
    return write_fragment(found, prefix)
