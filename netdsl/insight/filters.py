"""The weights of a convolution as a picture."""

from __future__ import annotations

from collections.abc import Mapping

from netdsl.errors import fail, suggest_name
from netdsl.insight.image_grid import make_grid, scale_signed
from netdsl.ir.interpreter import evaluate_graph
from netdsl.ir.subgraph import extract_subgraph
from netdsl.language.network import LayerInfo, Network
from netdsl.types import Array, Node

MAX_FILTERS = 64
"""The most filters, and channels of each, that are drawn if every channel has its own map."""


def has_convolution(network: Network) -> bool:
    """Whether any layer of a net is a convolution."""
    return any(_find_conv_node(network, layer) for layer in network.layers)


def find_convolution(network: Network, place: str | None) -> LayerInfo:
    """The convolution with that path, else the first one inside that place; by default the net's
    first. Raises NetError if there is none."""
    layers = [x for x in network.layers if _find_conv_node(network, x)]
    if not layers:
        raise fail(f"`{network.name}` has no convolution")
    if place is None:
        return layers[0]
    found = [x for x in layers if x.path == place]
    found += [x for x in layers if x.path.startswith(f"{place}.")]
    if not found:
        help = suggest_name(place, [x.path for x in layers], "convolutions here")
        raise fail(f"`{network.name}` has no convolution `{place}`", help=help)
    return found[0]


def _find_conv_node(network: Network, layer: LayerInfo) -> Node | None:
    nodes = (network.graph[n] for n in layer.nodes)
    return next((n for n in nodes if n.op == "conv2d"), None)


def compute_weights(network: Network, layer: LayerInfo, states: Mapping[str, Array]) -> Array:
    """The weights K x R x S x C of a convolution, even if they are computed from others."""
    conv_node = _find_conv_node(network, layer)
    assert conv_node is not None
    graph, name = network.graph, conv_node.args[1]
    subgraph = extract_subgraph(graph, graph.backward_slice(name), {name: name})
    return evaluate_graph(subgraph, {k: v for k, v in states.items() if k in subgraph.nodes})[name]


def count_drawn_filters(weights: Array) -> tuple[int, int]:
    """How many filters K x R x S x C are drawn, and how many channels of each."""
    count, *_, channels = weights.shape
    return (
        (count, channels)
        if channels in (1, 3)
        else (min(count, MAX_FILTERS), min(channels, MAX_FILTERS))
    )


def render_filters(weights: Array) -> Array:
    """Filters K x R x S x C as one picture: in colour if they have three channels, else a row of
    grey maps per filter, a column per channel (with one channel, a grey map per filter). Each
    filter is scaled by its own largest weight; middle grey is zero."""
    count, channels = count_drawn_filters(weights)
    pixels = scale_signed(weights[:count])[..., :channels]
    if channels in (1, 3):
        return make_grid(pixels)
    maps = pixels.transpose(0, 3, 1, 2).reshape(-1, *pixels.shape[1:3], 1)
    return make_grid(maps, columns=channels)
