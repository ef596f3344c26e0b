"""Lowers convolutions to matrix products: 1x1 and full-image ones always, any other by im2col."""

from __future__ import annotations

import math
from typing import Any

from netdsl.ir.builder import Builder
from netdsl.ir.views import slice_axis
from netdsl.passes.rewrite import rewrite_graph
from netdsl.types import Graph, Node

_NO_PADDING = ((0, 0), (0, 0))


def lower_convolutions(graph: Graph) -> Graph:
    """Turns convolutions that are matrix products into `matmul`: 1x1 kernels at any stride, and
    kernels as large as their image. Runs before differentiation, so that the backward pass uses
    matrix products too."""
    return rewrite_graph(graph, {"conv2d": (_lower_pointwise, _lower_full_image)})


def lower_im2col(graph: Graph) -> Graph:
    """Lowers every convolution to one matrix product over its unfolded windows (Chellapilla et al.
    2006); grouped ones to one product per group, concatenated."""
    return rewrite_graph(graph, {"conv2d": (_lower_pointwise, _lower_full_image, _lower_by_im2col)})


def _reshape_to_matrix(b: Builder, w: Node) -> Node:
    """Reshapes a weight K x R x S x C to the matrix [K, R*S*C]."""
    return b.reshape(w, shape=(w.type.shape[0], math.prod(w.type.shape[1:])))


def _lower_pointwise(
    b: Builder, x: Node, w: Node, stride: Any, pad: Any, dilation: Any, groups: int
) -> Node | None:
    if w.type.shape[1:3] != (1, 1) or pad != _NO_PADDING or groups != 1:
        return None
    if stride != (1, 1):
        n, h, width, c = x.type.shape
        step = (1, *stride, 1)
        x = b.slice(x, start=(0, 0, 0, 0), stop=(n, h, width, c), step=step)
    return b.matmul(x, _reshape_to_matrix(b, w))


def _lower_full_image(
    b: Builder, x: Node, w: Node, stride: Any, pad: Any, dilation: Any, groups: int
) -> Node | None:
    """Lowers a fully connected layer written as a convolution."""
    is_full_image = w.type.shape[1:3] == x.type.shape[1:3]
    if not is_full_image or pad != _NO_PADDING or dilation != (1, 1) or groups != 1:
        return None
    n = x.type.shape[0]
    rows = b.reshape(x, shape=(n, 1, 1, math.prod(x.type.shape[1:])))
    return b.matmul(rows, _reshape_to_matrix(b, w))


def _lower_by_im2col(
    b: Builder, x: Node, w: Node, stride: Any, pad: Any, dilation: Any, groups: int
) -> Node:
    k, r, s, c = w.type.shape
    window_attributes = {"kernel": (r, s), "stride": stride, "pad": pad, "dilation": dilation}
    products = []
    for g in range(groups):
        image = _take_group(b, x, 3, g, c)
        weight = _take_group(b, w, 0, g, k // groups)
        products.append(
            b.matmul(b.im2col(image, **window_attributes), _reshape_to_matrix(b, weight))
        )
    return products[0] if groups == 1 else b.concat(*products, axis=3)


def _take_group(b: Builder, x: Node, axis: int, group: int, size: int) -> Node:
    """The part of an axis that belongs to a group; all of it if there is only one."""
    if size == x.type.shape[axis]:
        return x
    return slice_axis(b, x, axis, group * size, (group + 1) * size)
