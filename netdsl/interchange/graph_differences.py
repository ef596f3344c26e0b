"""Where two nets with the same weights may compute other values: geometry, and layers between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from netdsl.interchange.graph_units import UnitGraph
from netdsl.interchange.layer_graph import INPUT, LayerGraph, LayerNode
from netdsl.layers import LAYERS
from netdsl.layers.convolution import resolve_padding
from netdsl.text_escaping import escape_line
from netdsl.types import dims
from netdsl.values import format_value

_NEUTRAL = frozenset((INPUT, "identity", "dropout", "drop_path", "flatten", "reshape"))
_MAX_LISTED = 6


def compare_layers(
    graph: LayerGraph,
    other: LayerGraph,
    here: UnitGraph,
    there: UnitGraph,
    pairs: tuple[int, ...],
) -> Iterator[str]:
    """A line for each difference between matched nets that no weight shows: the size of images,
    strides and paddings of convolutions, and how often each layer without weights occurs."""
    sizes = [[n.shape for n in g.nodes.values() if n.layer == INPUT] for g in (graph, other)]
    if sizes[0] != sizes[1]:
        mine, theirs = (", ".join(map(dims, x)) for x in sizes)
        yield f"images are {theirs} in the file, {mine} here"
    lines = [
        line
        for unit, k in zip(here.units, pairs, strict=True)
        for line in _compare_geometry(unit.node, there.units[k].node)
    ]
    yield from lines[:_MAX_LISTED]
    if len(lines) > _MAX_LISTED:
        yield f"and {len(lines) - _MAX_LISTED:,} more"
    counts = [
        Counter(n.layer for n in g.nodes.values() if not n.states and n.layer not in _NEUTRAL)
        for g in (graph, other)
    ]
    for layer in sorted(counts[0].keys() | counts[1].keys()):
        now, then = (count[layer] for count in counts)
        if now != then:
            yield f"`{layer}` occurs {then:,} times in the file, {now:,} times here"


def _compare_geometry(node: LayerNode, other: LayerNode) -> Iterator[str]:
    mine, theirs = _geometry(node), _geometry(other)
    for key in mine.keys() & theirs.keys():
        if mine[key] != theirs[key]:
            yield (
                f"`{node.name}` has {key}={format_value(mine[key])}, "
                f"`{escape_line(other.name)}` in the file {format_value(theirs[key])}"
            )


def _geometry(node: LayerNode) -> Mapping[str, Any]:
    """Stride, padding in pixels and dilation of a convolution; nothing of another layer."""
    bound = LAYERS[node.layer].signature.bind(node.arguments, None)
    if "kernel" not in bound or "pad" not in bound:
        return {}
    dilation = bound.get("dilation", (1, 1))
    pads = resolve_padding(bound["pad"], bound["kernel"], dilation)
    return {"stride": bound["stride"], "dilation": dilation, "pad": pads}
