"""The weights of a layer as a picture: of convolutions, matrix products and local layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from netdsl.errors import fail, suggest_name
from netdsl.insight.color_scale import render_scale
from netdsl.insight.colormap import DIVERGING, ColorMap, normalize_signed
from netdsl.insight.image_grid import make_sheet, make_table, stack
from netdsl.ir.interpreter import evaluate_graph
from netdsl.ir.subgraph import extract_subgraph
from netdsl.language.network import LayerInfo, Network
from netdsl.types import Array, Graph, Node

ScaleKind = Literal["filter", "layer"]
MAX_SIDE = 4096
"""The most pixels of a page's table of maps per side."""
_PREFERRED_SIDE = 1600
_TILE_SIDE = 64
_BAR_HEIGHT = 160
_GREY = ColorMap("grey", ("000000", "ffffff"))


@dataclass(frozen=True)
class FilterPage:
    """Filters of a layer and their channels on one page of several: from the first to before the
    second of `filters` and of `channels`."""

    page: int
    pages: int
    filters: tuple[int, int]
    channels: tuple[int, int]


def find_filters(network: Network, place: str | None) -> LayerInfo:
    """The layer with weights at that path, else the first one inside that place; by default the
    net's first. Raises NetError if there is none."""
    layers = list_filter_layers(network)
    if not layers:
        raise fail(f"`{network.name}` has no layer with filters")
    if place is None:
        return layers[0]
    found = [x for x in layers if x.path == place]
    found += [x for x in layers if x.path.startswith(f"{place}.")]
    if not found:
        help = suggest_name(place, [x.path for x in layers], "layers with filters here")
        raise fail(f"`{network.name}` has no layer with filters `{place}`", help=help)
    return found[0]


def list_filter_layers(network: Network) -> list[LayerInfo]:
    """The layers with weights that can be shown as filters."""
    return [x for x in network.layers if _find_product(network, x)]


def _find_product(network: Network, layer: LayerInfo) -> Node | None:
    """The product of a layer's input with weights."""
    nodes = (network.graph[n] for n in layer.nodes)
    products = ("conv2d", "conv2d_dgrad", "matmul")
    return next((n for n in nodes if n.op in products), None)


def compute_filters(network: Network, layer: LayerInfo, states: Mapping[str, Array]) -> Array:
    """The weights of a layer, K x R x S x C, even if they are computed from others: of a
    convolution; of a matrix product, with the shape of the maps that it reads; of a local layer,
    those of all positions one after the other."""
    product = _find_product(network, layer)
    assert product is not None
    graph, name = network.graph, product.args[1]
    subgraph = extract_subgraph(graph, graph.backward_slice(name), {name: name})
    given = {k: v for k, v in states.items() if k in subgraph.nodes}
    weights = evaluate_graph(subgraph, given)[name]
    if product.op != "matmul":
        return weights
    return weights.reshape(-1, *_find_window(graph, product), order="C")


def _find_window(graph: Graph, product: Node) -> tuple[int, int, int]:
    """The height, width and channels of what a row of a matrix reads: whole maps if they are
    flattened, or the windows of a local layer, else one pixel."""
    inner = product.type.shape[-1] if not product.args else graph[product.args[0]].type.shape[-1]
    source = graph[product.args[0]]
    while source.op in ("transpose", "reshape", "cast"):
        before = graph[source.args[0]]
        if source.op == "reshape" and before.type.rank == 4:
            _, height, width, channels = before.type.shape
            if height * width * channels == inner:
                return height, width, channels
        source = before
    if source.op == "im2col":
        height, width = source.attrs["kernel"]
        return height, width, inner // (height * width)
    return 1, 1, inner


def find_page(weights: Array, page: int) -> FilterPage:
    """The filters and channels of a page, counted from 1: all on one page if they fit. Raises
    NetError if there is no such page."""
    count, height, width, channels = weights.shape
    if channels in (1, 3) and max(height, width) > 1:
        rows, columns = (MAX_SIDE // _TILE_SIDE) ** 2, channels
    else:
        rows, columns = (MAX_SIDE // _least_pitch(n) for n in (height, width))
    across, down = -(-channels // columns), -(-count // rows)
    if page > across * down:
        message = f"there is no page {page}: the filters need {across * down}"
        raise fail(message, help="pages are numbered from 1")
    top, left = (page - 1) // across * rows, (page - 1) % across * columns
    return FilterPage(
        page,
        across * down,
        (top, min(top + rows, count)),
        (left, min(left + columns, channels)),
    )


def _least_pitch(side: int) -> int:
    """The pixels from a map to the next at the smallest size that can be seen."""
    return 2 if side == 1 else 2 * side + 2


def render_filters(weights: Array, page: FilterPage, scale: ScaleKind) -> Array:
    """Filters K x R x S x C as one picture: in colour if they have three channels (zero is middle
    grey), a map each if they have one, else a row for each filter and a column for each channel,
    with a scale. Blue is negative, red positive. Each filter is scaled by its own largest weight,
    or all of them by the largest of the layer."""
    (first, last), (left, right) = page.filters, page.channels
    largest = np.abs(weights).max(axis=(1, 2, 3))
    limits = largest if scale == "filter" else np.full_like(largest, largest.max())
    shown, limits = weights[first:last, ..., left:right], limits[first:last]
    ranges = [f"{first + i}" + f" ±{m:.2g}" * (scale == "filter") for i, m in enumerate(limits)]
    positions = np.stack([normalize_signed(w, m) for w, m in zip(shown, limits, strict=True)])
    height, width, channels = weights.shape[1:]
    is_colored = channels == 3 and max(height, width) > 1
    if is_colored or (channels == 1 and max(height, width) > 1):
        pixels = np.round(255 * positions).astype(np.uint8)
        pixels = pixels if is_colored else DIVERGING(positions[..., 0])
        factor = max(1, _TILE_SIDE // max(height, width))
        tiles = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
        body = make_sheet(list(tiles), ranges, None)
    else:
        maps = DIVERGING(positions.transpose(0, 3, 1, 2))
        names = [str(i) for i in range(left, right)]
        body = make_table(maps, _choose_factor(maps), ranges, names)
    colors = _GREY if is_colored else DIVERGING
    top = float(largest.max()) if scale == "layer" else 1.0
    return stack((body, render_scale(colors, -top, top, _BAR_HEIGHT)), "right")


def _choose_factor(maps: Array) -> int:
    """The enlargement of a table of maps: as large as a page of a handy size allows."""
    rows, columns, height, width = maps.shape[:4]
    room = min(_PREFERRED_SIDE // rows - 2, _PREFERRED_SIDE // columns - 2)
    most = (_TILE_SIDE if max(height, width) > 1 else 16) // max(height, width)
    return max(2, min(room // max(height, width), most))
