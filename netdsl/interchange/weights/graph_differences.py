"""Where two nets with the same weights may compute other values: geometry, and layers between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from netdsl.interchange.layer_graph import INPUT, LayerGraph, LayerNode
from netdsl.interchange.weights.graph_units import UnitGraph
from netdsl.layers import LAYERS
from netdsl.layers.convolution import resolve_padding
from netdsl.text_escaping import escape_line
from netdsl.types import dims
from netdsl.values import format_value

_NEUTRAL = frozenset(
    (INPUT, "identity", "dropout", "drop_path", "flatten", "reshape", "add", "concat")
)
"""Layers that exporters leave out or add, or may split."""
_MAX_LISTED = 6


def compare_layers(
    graph: LayerGraph,
    other: LayerGraph,
    here: UnitGraph,
    there: UnitGraph,
    pairs: tuple[int, ...],
) -> Iterator[str]:
    """A line for each difference between matched nets that no weight shows: the size of images,
    strides, paddings and `eps` of layers with weights, and how often each other layer occurs, of
    poolings with which arguments."""
    sizes = [[n.shape for n in g.nodes.values() if n.layer == INPUT] for g in (graph, other)]
    if sizes[0] != sizes[1]:
        mine, theirs = (", ".join(map(dims, x)) for x in sizes)
        yield f"images are {theirs} in the file, {mine} here"
    lines: list[str] = []
    for unit, counterpart in zip(here.units, (there.units[k] for k in pairs), strict=True):
        lines += _compare_settings(unit.node, counterpart.node)
        if unit.norm is not None and counterpart.norm is not None:
            lines += _compare_settings(unit.norm, counterpart.norm)
    yield from lines[:_MAX_LISTED]
    if len(lines) > _MAX_LISTED:
        yield f"and {len(lines) - _MAX_LISTED:,} more such differences"
    yield from _compare_counts(*(_count_stateless(g) for g in (graph, other)))


def _compare_settings(node: LayerNode, other: LayerNode) -> Iterator[str]:
    mine, theirs = _settings(node), _settings(other)
    for key in mine:
        if key in theirs and mine[key] != theirs[key]:
            yield (
                f"`{node.name}` has {key}={format_value(mine[key])}, "
                f"`{escape_line(other.name)}` in the file {format_value(theirs[key])}"
            )


def _settings(node: LayerNode) -> Mapping[str, Any]:
    """Stride, dilation and padding in pixels of a convolution or pooling, `eps` of a norm."""
    bound = dict(LAYERS[node.layer].signature.bind(node.arguments, None))
    found: dict[str, Any] = {k: bound[k] for k in ("stride", "dilation", "eps") if k in bound}
    kernel = bound.get("kernel")
    if kernel is not None:
        found["pad"] = resolve_padding(bound["pad"], kernel, bound.get("dilation", (1, 1)))
    if "stride" in found and found["stride"] is None:
        found["stride"] = kernel
    if any(map(any, found.get("pad", ()))) and "include_pad" in bound:
        found["include_pad"] = bound["include_pad"]
    return found


def _count_stateless(graph: LayerGraph) -> Counter[tuple[str, str]]:
    """How often layers without states occur, by name and settings."""
    nodes = (n for n in graph.nodes.values() if not n.states and n.layer not in _NEUTRAL)
    return Counter((n.layer, _format_settings(_settings(n))) for n in nodes)


def _format_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={format_value(value)}" for key, value in settings.items())


def _compare_counts(
    here: Counter[tuple[str, str]], there: Counter[tuple[str, str]]
) -> Iterator[str]:
    for layer, settings in sorted(here.keys() | there.keys()):
        now, then = here[layer, settings], there[layer, settings]
        if now != then:
            shown = f"{layer}({settings})" if settings else layer
            yield f"`{shown}` occurs {_times(then)} in the file, {_times(now)} here"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
