"""The idiom of locally connected layers: a convolution that copies each window into the channels,
then a matrix for each position."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from netdsl.interchange.onnx_import.graph import OnnxGraph, OnnxNode
from netdsl.types import Array

LOCAL = "netdsl.local"
"""The operator that replaces the nodes: the attributes are those of the convolution; operands are
its input, the matrices [OH,OW,C*R*S,K], and perhaps offsets [K,OH,OW]."""
_SWAPPED = (2, 3, 0, 1)


def find_local_layer(graph: OnnxGraph, node: OnnxNode) -> OnnxNode | None:
    """The locally connected layer that ends in a node: `Transpose(MatMul(Transpose(Conv)))`, or
    `Add` of that and a constant."""
    if node.operator != "Add":
        return _match_product(graph, node)
    for index in (0, 1):
        offsets, source = _constant(graph, node, 1 - index), _source(graph, node, index)
        local = _match_product(graph, source) if source and offsets is not None else None
        if local is not None and offsets is not None:
            oh, ow, _, units = graph.constants[local.inputs[1]].shape
            if offsets.shape == (units, oh, ow):
                inputs = (*local.inputs, node.inputs[1 - index])
                return replace(local, name=node.name, inputs=inputs, outputs=node.outputs)
    return None


def _match_product(graph: OnnxGraph, node: OnnxNode) -> OnnxNode | None:
    chain: list[OnnxNode] = []
    current: OnnxNode | None = node
    for operator in ("Transpose", "MatMul", "Transpose", "Conv"):
        if current is None or current.operator != operator:
            return None
        if operator == "Transpose" and current.attributes.get("perm") != _SWAPPED:
            return None
        chain.append(current)
        current = _source(graph, current, 0)
    product, windows = chain[1], chain[3]
    matrices, taps = _constant(graph, product, 1), _constant(graph, windows, 1)
    if matrices is None or matrices.ndim != 4 or taps is None or not _copies(windows, taps):
        return None
    attributes = {**windows.attributes, "kernel_shape": tuple(taps.shape[2:])}
    inputs = (windows.inputs[0], product.inputs[1])
    return replace(node, operator=LOCAL, inputs=inputs, attributes=attributes)


def _source(graph: OnnxGraph, node: OnnxNode, index: int) -> OnnxNode | None:
    """What makes an operand of a node; None if it is an input, a constant or left out."""
    return graph.producers.get(node.inputs[index]) if index < len(node.inputs) else None


def _constant(graph: OnnxGraph, node: OnnxNode, index: int) -> Array | None:
    return graph.constants.get(node.inputs[index]) if index < len(node.inputs) else None


def _copies(node: OnnxNode, taps: Array) -> bool:
    """Whether a convolution copies the pixels of each window, channel by channel."""
    group = node.attributes.get("group", 1)
    if not isinstance(group, int) or taps.ndim != 4 or taps.size == 0 or any(node.inputs[2:]):
        return False
    area = math.prod(taps.shape[2:])
    is_plain = node.attributes.get("dilations") in (None, (1, 1))
    if not is_plain or taps.shape[:2] != (group * area, 1):
        return False
    return np.array_equal(taps.reshape(group, area, area), np.tile(np.eye(area), (group, 1, 1)))
