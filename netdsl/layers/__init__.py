"""The layers of the language: the layer modules, and every operator marked as a layer."""

from __future__ import annotations

from typing import Any

from netdsl.layers import (
    activation,
    convolution,
    dense,
    normalization,
    pooling,
    rearrangement,
    structure,
)
from netdsl.layers.layer import Layer, Site
from netdsl.ops import OPS
from netdsl.ops.op import Op
from netdsl.signature import Signature
from netdsl.types import Node


def _make_layer(op: Op) -> Layer:
    """Wraps an operator of one operand as a layer."""

    def build(site: Site, x: Node, **attrs: Any) -> Node:
        return site.b.emit(op.name, x, **attrs)

    return Layer(op.name, Signature(op.name, op.attrs), build, doc=op.doc)


_FAMILIES = (convolution, dense, pooling, normalization, structure, rearrangement, activation)

LAYERS: dict[str, Layer] = {
    layer.name: layer for family in _FAMILIES for layer in family.LAYERS
} | {op.name: _make_layer(op) for op in OPS.values() if op.is_layer}

LAYER_FAMILIES: dict[str, str] = dict.fromkeys(LAYERS, "activation") | {
    layer.name: family.__name__.rpartition(".")[2]
    for family in _FAMILIES
    for layer in family.LAYERS
}
"""The family of each layer: the module that defines it; operators that are layers activate."""

__all__ = ["LAYERS", "LAYER_FAMILIES", "Layer", "Site"]
