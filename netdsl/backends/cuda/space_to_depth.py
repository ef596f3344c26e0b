"""Space-to-depth for strided convolutions of few channels: blocks of pixels become channels.

A convolution with stride s over pixels of c channels equals one with stride 1 over pixels of
s * s * c channels, with a kernel an s-th as large, whose weight is shifted and padded with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netdsl.lower.expression import Load, PaddedAxis
from netdsl.lower.index_terms import (
    address_terms,
    domain_coordinates,
    reshape_coordinates,
)
from netdsl.lower.trace import Store, TracedKernel, trace_copy
from netdsl.plan.layout import IntTuple, Layout, row_major_strides
from netdsl.plan.placement import Placement
from netdsl.types import Attrs, Node

_MAX_CHANNELS = 64
"""The most channels of a pixel of the blocked image."""


@dataclass(frozen=True)
class SpaceToDepth:
    """How an image and a weight are blocked: `block` pixels, with `leading_blocks` blocks of zeros
    before the image and `weight_shift` zeros before the weight, on each axis."""

    block: tuple[int, int]
    leading_blocks: tuple[int, int]
    weight_shift: tuple[int, int]
    kernel: tuple[int, int]
    image_shape: IntTuple
    channels: int

    @property
    def attrs(self) -> dict[str, object]:
        """The attributes that differ in the blocked convolution."""
        return {"stride": (1, 1), "pad": ((0, 0), (0, 0)), "kernel": self.kernel}

    def weight_shape(self, count: int) -> IntTuple:
        return (count, *self.kernel, self.image_shape[3])


def find_space_to_depth(
    node: Node, image: IntTuple, weight: IntTuple, out: IntTuple
) -> SpaceToDepth | None:
    """Returns the blocks for a convolution of these shapes; None if they do not help it."""
    stride = node.attrs["stride"]
    block_channels = stride[0] * stride[1] * image[3]
    is_divisible = all(size % s == 0 for size, s in zip(image[1:3], stride, strict=True))
    if (
        node.attrs["dilation"] != (1, 1)
        or min(stride) < 2
        or block_channels > _MAX_CHANNELS
        or not is_divisible
    ):
        return None
    pad_before = [p[0] for p in node.attrs["pad"]]
    lead = [-(-p // s) for p, s in zip(pad_before, stride, strict=True)]
    shift = [n * s - p for n, s, p in zip(lead, stride, pad_before, strict=True)]
    kernel = [-(-(r + q) // s) for r, q, s in zip(weight[1:3], shift, stride, strict=True)]
    size = [o + r - 1 for o, r in zip(out[1:3], kernel, strict=True)]
    channels = -(-block_channels // 8) * 8
    if any(n + i // s > z for n, i, s, z in zip(lead, image[1:3], stride, size, strict=True)):
        return None
    shape = (image[0], size[0], size[1], channels)
    return SpaceToDepth(stride, _pair(lead), _pair(shift), _pair(kernel), shape, image[3])


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]


def rewrite_convolution(node: Node, blocks: SpaceToDepth) -> Node:
    """Returns the convolution over the blocked image."""
    other_attrs = {k: v for k, v in node.attrs.items() if k not in blocks.attrs}
    return Node(node.name, node.op, node.args, Attrs({**other_attrs, **blocks.attrs}), node.type)


def trace_image_copy(blocks: SpaceToDepth, image: Placement, target: Placement) -> TracedKernel:
    """Copies the image into blocks; the rest of `target` stays zero."""
    (sh, sw), (lh, lw), c = blocks.block, blocks.leading_blocks, blocks.channels
    n, h, w, _ = image.layout.shape
    tn, th, tw, tc = image.layout.strides
    shape = (n, h // sh, sh, w // sw, sw, c)
    source = Layout(shape, (tn, sh * th, th, sw * tw, tw, tc), image.layout.offset)
    on, oh, ow, _ = row_major_strides(blocks.image_shape)
    strides = (on, oh, sw * c, ow, c, 1)
    inner = Layout(shape, strides, lh * oh + lw * ow)
    return trace_copy(_with_layout(image, source), _with_layout(target, inner))


def trace_weight_copy(blocks: SpaceToDepth, weight: Placement, target: Placement) -> TracedKernel:
    """Copies the weight into blocks, with zeros where it has no element."""
    (sh, sw), (qh, qw), (r, s), c = (
        blocks.block,
        blocks.weight_shift,
        blocks.kernel,
        blocks.channels,
    )
    k, kh, kw, _ = weight.layout.shape
    tk, th, tw, tc = weight.layout.strides
    coordinates = domain_coordinates((k, r * sh, s * sw, c))
    windows = (PaddedAxis(coordinates[1], qh, 1, kh, th), PaddedAxis(coordinates[2], qw, 1, kw, tw))
    plain_terms = address_terms((coordinates[0], coordinates[3]), (tk, tc))
    load = Load(
        "load",
        weight.dtype,
        place=weight,
        terms=plain_terms,
        offset=weight.layout.offset,
        padded_axes=windows,
    )
    padded_channels = blocks.image_shape[3]
    strides = (r * s * padded_channels, s * padded_channels, sw * c, padded_channels, c, 1)
    split = reshape_coordinates(coordinates, (k, r, sh, s, sw, c))
    place = _with_layout(target, Layout((k, r, sh, s, sw, c), strides))
    return TracedKernel(
        k * r * sh * s * sw * c, (Store(load, place, address_terms(split, strides)),), ()
    )


def trace_weight_gradient_copy(
    blocks: SpaceToDepth, source: Placement, weight: Placement
) -> TracedKernel:
    """Copies a weight's gradient out of its blocks."""
    (sh, sw), (qh, qw), (r, s), c = (
        blocks.block,
        blocks.weight_shift,
        blocks.kernel,
        blocks.channels,
    )
    k, kh, kw, _ = weight.layout.shape
    coordinates = domain_coordinates((k, kh, kw, c))
    padded_channels = blocks.image_shape[3]
    windows = (
        PaddedAxis(coordinates[1], -qh, sh, r, s * padded_channels, sw * c),
        PaddedAxis(coordinates[2], -qw, sw, s, padded_channels, c),
    )
    plain_terms = address_terms((coordinates[0], coordinates[3]), (r * s * padded_channels, 1))
    load = Load(
        "load", source.dtype, place=source, terms=plain_terms, offset=0, padded_axes=windows
    )
    return TracedKernel(
        k * kh * kw * c,
        (Store(load, weight, address_terms(coordinates, weight.layout.strides)),),
        (),
    )


def _with_layout(place: Placement, layout: Layout) -> Placement:
    return Placement(place.buffer, place.dtype, layout)
