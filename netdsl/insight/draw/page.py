"""Writes a drawing for a web page: the same SVG, with a script that folds its groups."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from netdsl.insight.draw import layout as sizes
from netdsl.insight.draw.blocks import Block, Chain, Lane, Leaf, Parallel
from netdsl.insight.draw.colors import DARK, LIGHT, make_style
from netdsl.insight.draw.diagram import Arrangement, Diagram, DiagramView
from netdsl.insight.draw.header import Header
from netdsl.insight.draw.layout import lay_out
from netdsl.insight.draw.svg import (
    CORNER,
    FONT_FAMILY,
    Drawing,
    SvgWriter,
    format_number,
    quote,
    write_header,
    write_markers,
)

_SCRIPT = files("netdsl.insight.draw").joinpath("fold.js")
_SCOPE = ".netdsl-graph "
_CONSTANTS = {
    "margin": sizes.MARGIN,
    "lane": sizes.LANE_WIDTH,
    "framePadding": sizes.FRAME_PADDING,
    "portGap": sizes.PORT_GAP,
    "exitGap": sizes.EXIT_GAP,
    "gap": sizes.GAP,
    "wideGap": sizes.WIDE_GAP,
    "branchGap": sizes.BRANCH_GAP,
    "lineGap": sizes.LINE_GAP,
    "bus": sizes.BUS_HEIGHT,
    "corner": CORNER,
}
_PAGE_STYLE = """
.netdsl-graph { margin: 0; }
.netdsl-graph svg { display: block; height: auto; max-width: max(100%, 560px); }
.netdsl-graph .scroll svg { margin: 0 auto; }
.netdsl-graph .scroll { overflow-x: auto; }
.netdsl-graph .tools { display: flex; flex-wrap: wrap; gap: .5em; margin: .5em 0; }
.netdsl-graph button { font: inherit; padding: .3em .8em; cursor: pointer; }
.netdsl-graph [role=button] { cursor: pointer; }
.netdsl-graph [role=button]:focus { outline: none; }
.netdsl-graph [role=button]:focus-visible { outline: 3px solid #2563eb; outline-offset: 2px; }
"""


def write_fragment(drawing: Drawing, prefix: str) -> str:
    """A `figure` for a page that fetches nothing: style, drawing, data and script. `prefix` begins
    the ids; two drawings of a page need different ones."""
    diagram, view = drawing.diagram, drawing.view
    layout = lay_out(diagram, view)
    inside = "\n".join(SvgWriter(diagram, view, layout, prefix, is_foldable=True).write_elements())
    width, height = format_number(layout.width), format_number(layout.height)
    name = quote(diagram.tree.name)
    return (
        f'<figure class="netdsl-graph" role="group" aria-label="Graph of {name}">\n'
        f"<style>{make_fragment_style()}</style>\n"
        f"{_write_head(drawing.header)}"
        '<div class="tools" hidden><button type="button" data-all="open">Open all</button>'
        '<button type="button" data-all="fold">Fold all</button>'
        '<button type="button" data-all="reset">Reset</button></div>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Drawing of {name}">'
        f'<svg xmlns="http://www.w3.org/2000/svg" style="width: {width}px" '
        f'viewBox="0 0 {width} {height}" font-family="{FONT_FAMILY}" role="group" '
        f'aria-label="Layers of {name}">\n'
        f"<defs>{write_markers(prefix)}</defs>\n{inside}\n</svg></div>\n"
        f'<script type="application/json">{_write_data(diagram, view, prefix)}</script>\n'
        f"<script>{read_fragment_script()}</script>\n</figure>\n"
    )


def read_fragment_script() -> str:
    """The content of the `script` element of a fragment, the same for every net."""
    return f"\n{_SCRIPT.read_text(encoding='utf-8')}"


def make_fragment_style() -> str:
    """The content of the `style` element of a fragment, the same for every net."""
    dark = make_style(DARK, _SCOPE)
    light = f"{_PAGE_STYLE}{make_style(LIGHT, _SCOPE)}"
    return f"{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"


def _write_head(header: Header) -> str:
    width, height = format_number(header.width), format_number(header.height)
    about = quote(", ".join(words.text for words in header.words))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" style="width: {width}px" '
        f'viewBox="0 0 {width} {height}" font-family="{FONT_FAMILY}" role="img" '
        f'aria-label="{about}">\n{write_header(header)}\n</svg>\n'
    )


def write_page(drawing: Drawing) -> str:
    """A whole page."""
    name = quote(drawing.diagram.tree.name)
    style = (
        f":root {{ color-scheme: light dark; }}\n"
        f"body {{ margin: 1rem; font-family: {FONT_FAMILY}; "
        f"background: {LIGHT.paper}; color: {LIGHT.text}; }}\n"
        f"@media (prefers-color-scheme: dark) {{ body {{ background: {DARK.paper}; "
        f"color: {DARK.text}; }} }}\n"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{write_fragment(drawing, 'n')}</main>\n</body>\n</html>\n"
    )


def _write_data(diagram: Diagram, view: DiagramView, prefix: str) -> str:
    """The data for the script as JSON that no text can end early."""
    groups = {}
    for group in diagram.tree.root.groups:
        groups[group.key] = {
            "title": diagram.title_widths[group.key],
            "full": _encode_arrangement(diagram.arrangements[group.key]),
        }
        if group.key in diagram.short:
            groups[group.key]["short"] = _encode_arrangement(diagram.short[group.key])
    data = {
        "prefix": prefix,
        "root": diagram.root,
        "constants": _CONSTANTS,
        "groups": groups,
        "sizes": {key: (label.width, label.height) for key, label in diagram.sizes.items()},
        "attached": dict(diagram.attached),
        "open": sorted(view.open_groups),
        "short": sorted(view.short_repeats),
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _encode_arrangement(arrangement: Arrangement) -> dict[str, Any]:
    links = [
        (link.source, link.target, link.value, link.source_value or link.value)
        for link in arrangement.links
    ]
    return {"block": _encode(arrangement.block), "links": links}


def _encode(block: Block) -> Any:
    if isinstance(block, Leaf):
        return block.key
    if isinstance(block, Lane):
        return {"lane": (block.source, block.target)}
    if isinstance(block, Chain):
        return {"series": [_encode(item) for item in block.items]}
    if isinstance(block, Parallel):
        branches = [_encode(branch) for branch in block.branches]
        return {"parallel": branches, "spine": block.spine}
    return {"rows": [[(_encode(cell), x) for cell, x in row] for row in block.rows]}
