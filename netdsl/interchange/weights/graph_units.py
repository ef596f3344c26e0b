"""The layers with states of a net and what they read of each other, whatever lies between them.

Exporters fold batch normalisations into convolutions, and write activations, dropout and reshapes
in many ways. What they keep is which weights read the results of which, through which sums,
products and concatenations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from netdsl.errors import fail
from netdsl.interchange.layer_graph import INPUT, LayerGraph, LayerNode, Shape

PRODUCTS = frozenset(("conv", "depthwise", "fc"))
"""Layers that multiply by a matrix: a fully connected one is a convolution of the whole image."""
_JOINS = frozenset(("add", "mul", "sub", "concat"))
_COMMUTATIVE = frozenset(("add", "mul"))


@dataclass(frozen=True, eq=False)
class UnitSource:
    """What a unit reads: the result of another one (`unit`), an input of the net (`unit` is -1), or
    a join of several, in which nested joins of one kind are one. `units` are all units in it,
    `depth` says how deeply joins are nested."""

    unit: int
    join: str = ""
    parts: tuple[UnitSource, ...] = ()
    units: frozenset[int] = frozenset()
    depth: int = 0


@dataclass(frozen=True)
class Unit:
    """A layer with states, and the batch normalisation that alone reads it, if there is one."""

    node: LayerNode
    norm: LayerNode | None
    shape: tuple[object, ...]
    source: UnitSource


@dataclass(frozen=True)
class UnitGraph:
    """The units of a net in the order in which they run; `outputs` are what its outputs read."""

    units: tuple[Unit, ...]
    outputs: Mapping[str, UnitSource]


def unit_graph(
    graph: LayerGraph, has_sizes: bool = True, left_out: Collection[str] = ()
) -> UnitGraph:
    """The units of a net. Layers without states and those
    `left_out` give what they read. Without `has_sizes` the sizes of images are no part of a unit's
    shape."""
    norms = _folded_norms(graph)
    units: list[Unit] = []
    sources: dict[str, UnitSource] = {}
    for node in graph.nodes.values():
        if node.layer == INPUT:
            sources[node.name] = UnitSource(-1)
        elif node.name in norms or node.name in left_out:
            sources[node.name] = sources[node.inputs[0]]
        elif node.states:
            norm = next((graph.nodes[n] for n, p in norms.items() if p == node.name), None)
            shape = _unit_shape(graph, node, has_sizes)
            units.append(Unit(node, norm, shape, sources[node.inputs[0]]))
            number = len(units) - 1
            sources[node.name] = UnitSource(number, units=frozenset((number,)))
        elif node.layer in _JOINS:
            sources[node.name] = _join(node.layer, [sources[p] for p in node.inputs])
        else:
            sources[node.name] = sources[node.inputs[0]]
    return UnitGraph(tuple(units), {k: sources[p] for k, p in graph.outputs.items()})


def _folded_norms(graph: LayerGraph) -> dict[str, str]:
    """The batch normalisations that alone read a product, with that product."""
    readers: dict[str, int] = {}
    for node in graph.nodes.values():
        for path in node.inputs:
            readers[path] = readers.get(path, 0) + 1
    for path in graph.outputs.values():
        readers[path] = readers.get(path, 0) + 1
    return {
        n.name: n.inputs[0]
        for n in graph.nodes.values()
        if n.layer == "batchnorm"
        and graph.nodes[n.inputs[0]].layer in PRODUCTS
        and readers[n.inputs[0]] == 1
    }


_MAX_PARTS, MAX_DEPTH = 10_000, 100
"""Parts of a join; a net that adds values to themselves again and again would have many more."""


def _join(kind: str, parts: list[UnitSource]) -> UnitSource:
    if len(parts) == 1:
        return parts[0]
    flat = [q for p in parts for q in (p.parts if p.join == kind != "sub" else (p,))]
    kept = tuple(parts if len(flat) > _MAX_PARTS else flat)
    depth = 1 + max(p.depth for p in kept)
    if depth > MAX_DEPTH:
        raise fail(f"joins are nested more than {MAX_DEPTH} deep without weights between them")
    return UnitSource(-1, kind, kept, frozenset().union(*(p.units for p in parts)), depth)


def _unit_shape(graph: LayerGraph, node: LayerNode, has_sizes: bool) -> tuple[object, ...]:
    """What a unit has in common with the one of another net that it can match."""
    result = tuple(n for n in node.shape[:-1] if n != 1 and has_sizes) + node.shape[-1:]
    if node.layer in PRODUCTS:
        shape = graph.state_shapes[_weight_key(node)]
        return "product", _matrix_shape(node.layer, shape, graph, node), result
    states = (graph.state_shapes[key] for key in node.states.values())
    return node.layer, *sorted(states), result


def _weight_key(node: LayerNode) -> str:
    return node.states.get("weight") or node.states["weight_v"]


def _matrix_shape(layer: str, shape: Shape, graph: LayerGraph, node: LayerNode) -> Shape:
    """Rows and columns; of a convolution that moves over the image also its kernel."""
    moves = layer != "fc" and any(n != 1 for n in graph.nodes[node.inputs[0]].shape[:-1])
    covers = layer != "fc" and shape[1:3] == graph.nodes[node.inputs[0]].shape[:-1]
    return shape if moves and not covers else (shape[0], math.prod(shape[1:]))


class ColourTable:
    """Numbers of what units are and read: equal ones have one number, in whichever net."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[object, ...], int] = {}

    def number(self, *parts: object) -> int:
        return self._numbers.setdefault(parts, len(self._numbers))

    def source(self, source: UnitSource, colours: Mapping[int, int]) -> int:
        """The number of what a unit reads, given those of the units in it."""
        return self._source(source, colours, {})

    def _source(self, source: UnitSource, colours: Mapping[int, int], known: dict[int, int]) -> int:
        if not source.join:
            return self.number("unit", colours[source.unit] if source.unit >= 0 else "input")
        if id(source) not in known:
            parts = [self._source(p, colours, known) for p in source.parts]
            if source.join in _COMMUTATIVE:
                parts.sort()
            known[id(source)] = self.number(source.join, *parts)
        return known[id(source)]
