"""Draws a net: as an SVG file, as a page whose groups fold, or as a part of another page."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.insight.draw.diagram import Diagram, View, make_diagram, make_view
from netdsl.insight.draw.layout import Layout, lay_out
from netdsl.insight.draw.page import write_fragment, write_page
from netdsl.insight.draw.repeats import group_repeats
from netdsl.insight.draw.svg import write_svg
from netdsl.insight.draw.tree import make_tree
from netdsl.language.network import Network


@dataclass(frozen=True)
class DrawOptions:
    """How a net is drawn. Groups are open down to `depth`; by default as deep as the drawing stays
    readable. With `has_all_repeats`, every one of the groups that repeat each other is drawn."""

    depth: int | None = None
    has_all_repeats: bool = False


@dataclass(frozen=True)
class Drawing:
    """A diagram as it is shown."""

    diagram: Diagram
    view: View
    layout: Layout


def draw(network: Network, options: DrawOptions = DrawOptions()) -> Drawing:
    """Lays out the graph of a net. Raises NotInstalledError if it is so entangled that it needs
    igraph, and igraph is not installed."""
    diagram = make_diagram(group_repeats(make_tree(network)), {}, {})
    view = make_view(diagram, options.depth, options.has_all_repeats)
    return Drawing(diagram, view, lay_out(diagram, view))


def draw_svg(network: Network, options: DrawOptions = DrawOptions()) -> str:
    """The graph of a net as an SVG file: the same bytes for the same net and options."""
    found = draw(network, options)
    return write_svg(found.diagram, found.view, found.layout)


def draw_html(network: Network, options: DrawOptions = DrawOptions()) -> str:
    """The graph of a net as a page of its own, whose groups can be folded and opened."""
    found = draw(network, options)
    return write_page(found.diagram, found.view, found.layout)


def html_fragment(
    network: Network, options: DrawOptions = DrawOptions(), prefix: str = "graph"
) -> str:
    """Like `draw_html`, as a `figure` for another page; `prefix` begins its ids."""
    found = draw(network, options)
    return write_fragment(found.diagram, found.view, found.layout, prefix)
